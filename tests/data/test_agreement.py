"""Tomograms of one stream: one numbering of classes, one voxel size, whoever reads them and in whatever order."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import (
    CLASS_NAMES,
    assert_same_items,
    dataset,
    empty_specimen,
    error_of,
    labelled_tomograms,
    loader,
    simulator,
    specimen,
    style_series,
    table,
    unbatched,
)

from faket_aug import (
    FakETDataset,
    GrandModel,
    GrandModelGenerator,
    LabelledPatches,
    LabelledTomogram,
    MixedPatches,
    ParticleSpecies,
    ParticleTemplate,
    ShrecSpecimens,
    SimulationError,
    StyleBank,
    TiltSeries,
    read_specimens,
)
from faket_aug.data.agreement import Agreement, united
from faket_aug.formats.mrc import write_mrc
from faket_aug.specimens.lazy import FileSpecimens

PATCHES: dict[str, Any] = {"patch_size": 8, "patches_per_tomogram": 5, "shift": 2}
#: The same three names in another order, and in another case.
OTHERS = {1: "rare", 2: "Small", 3: "large"}
#: The number in `CLASS_NAMES` of each of `OTHERS`.
NEW = {0: 0, 1: 3, 2: 1, 3: 2}
MANY = pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning")


def _numbered(thing: GrandModel, names: Mapping[int, str], numbers: Mapping[int, int]) -> GrandModel:
    """The same specimen, written with other numbers: `numbers` gives the new one of each."""
    labels = torch.zeros_like(thing.labels)
    for old, new in numbers.items():
        labels[thing.labels == old] = new
    classes = np.array([numbers[int(number)] for number in thing.particles.classes])
    particles = replace(thing.particles, classes=classes)
    return replace(thing, labels=labels, particles=particles, class_names=names)


def _other(thing: GrandModel) -> GrandModel:
    """A specimen of `CLASS_NAMES`, in the numbers of `OTHERS`."""
    return _numbered(thing, OTHERS, {new: old for old, new in NEW.items()})


class _Reader(Sequence[GrandModel]):
    """Specimens of one's own that are read one by one; it counts."""

    def __init__(self, things: Sequence[GrandModel]) -> None:
        self.things, self.read = things, list[int]()

    def __len__(self) -> int:
        return len(self.things)

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        return self.things[index]


def _write(folder: Path, thing: GrandModel, *, voxel_size: float = 10.0, table: bool = True) -> Path:
    """Write a specimen in SHREC's layout."""
    folder.mkdir(parents=True)
    write_mrc(folder / "grandmodel.mrc", thing.density, voxel_size=voxel_size)
    write_mrc(folder / "class_mask.mrc", thing.labels, voxel_size=voxel_size)
    names = {int(number): name for number, name in thing.class_names.items()}
    rows = zip(thing.particles.classes, thing.particles.positions, strict=True)
    text = "".join(f"{names[int(number)]} {x:g} {y:g} {z:g} 0 0 0\n" for number, (z, y, x) in rows)
    (folder / "particle_locations.txt").write_text(text)
    if table:
        lines = "".join(f"{number} {name}\n" for number, name in names.items())
        (folder / "class_conversion_table.txt").write_text("0 background\n" + lines)
    return folder


# --- class numbers ----------------------------------------------------------------------------------------------------


def test_classes_get_the_first_specimens_numbers() -> None:
    """Specimens of another table give the items that they give in the table of the first, bit for bit."""
    same = [specimen(seed) for seed in range(3)]
    expected = list(dataset(specimens=same))
    found = list(dataset(specimens=[same[0], _other(same[1]), _other(same[2])]))
    assert_same_items(found, expected)
    assert {item["particle_class"] for item in found} == {1, 2}


@MANY
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_and_resumption_do_not_change_it(workers: int) -> None:
    """A worker that never reads the first specimen numbers as all others do, also after a resume."""
    same = [specimen(seed) for seed in range(5)]
    things = [same[0], *(_other(thing) for thing in same[1:])]
    expected = {item["index"]: item for item in dataset(specimens=same)}
    made = dataset(specimens=things)
    reader = loader(made, workers=workers, batch_size=3)
    found, state = [], None
    for number, batch in enumerate(reader, start=1):
        found.append(batch)
        if number == 3:
            state = made.state_dict(batches=3, batch_size=3, num_workers=workers)
    items = unbatched(found)
    ordered = sorted(items, key=lambda item: item["index"])
    assert_same_items(ordered, [expected[index] for index in sorted(expected)])
    again = dataset(specimens=things)
    assert state is not None
    again.load_state_dict(state)
    assert_same_items(unbatched(loader(again, workers=workers, batch_size=3)), unbatched(found[3:]))


def test_only_the_headers_of_the_first_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first specimen says comes from its small files: its volumes are not read for it."""
    folders = [_write(tmp_path / "a", specimen(0)), _write(tmp_path / "b", _other(specimen(1)))]
    read = []
    original = GrandModel.from_shrec.__func__
    monkeypatch.setattr(
        GrandModel, "from_shrec", classmethod(lambda cls, f, **s: read.append(f) or original(cls, f, **s))
    )
    data = FakETDataset(ShrecSpecimens(folders), simulator(), tomograms_per_epoch=2, **PATCHES)
    for tomogram in range(2):
        data.source.make(0, tomogram)
    assert sorted(read) == folders
    alone = FakETDataset(ShrecSpecimens(folders), simulator(), tomograms_per_epoch=1, **PATCHES)
    assert alone.class_names == CLASS_NAMES
    assert len(read) == 2


@pytest.mark.parametrize("layout", ["shrec", "found"])
def test_specimens_in_files(tmp_path: Path, layout: str) -> None:
    """Folders of two tables give one number a class, in labels and particles."""
    thing = specimen(1, classes=(1, 1, 1))
    folders = [_write(tmp_path / "a", thing), _write(tmp_path / "b", _other(thing))]
    found = ShrecSpecimens(folders) if layout == "shrec" else read_specimens(folders)
    assert found[1].particles.classes.tolist() == [2, 2, 2]
    items = list(FakETDataset(found, simulator(), **PATCHES))
    assert {item["particle_class"] for item in items} == {1}
    assert set(torch.cat([item["label"].unique() for item in items]).tolist()) == {0, 1}


def test_a_sequence_of_ones_own_reads_its_first_once() -> None:
    """Where nothing small tells, the first is read; not a second time if it was read already."""
    things = [specimen(0), _other(specimen(1))]
    for tomogram in range(2):
        reader = _Reader(things)
        data = dataset(specimens=reader)
        data.source.make(0, tomogram)
        own = reader.read[0]
        assert reader.read == ([0] if own == 0 else [1, 0])
        data.source.make(0, 1 - tomogram)
        assert len(reader.read) == (2 if own == 0 else 3)


def test_other_names_keep_their_numbers_or_get_free_ones() -> None:
    """The first table decides; a name that it lacks keeps its number if that is free, whatever is read first."""
    tables = [{1: "a", 2: "b"}, {1: "c", 2: "A", 5: "d"}, {3: "e", 5: "f"}]
    assert united(tables) == {1: "a", 2: "b", 5: "d", 3: "e", 4: "c", 6: "f"}
    with pytest.raises(ValueError, match="expected at most 255 classes in one stream, got one more, y"):
        united([{n: f"x{n}" for n in range(1, 256)}, {1: "y"}])
    first, more = specimen(0), _numbered(specimen(1), {1: "new", 2: "small"}, {0: 0, 1: 2, 2: 1})
    data = dataset(specimens=[first, more])
    assert data.class_names == {**CLASS_NAMES, 4: "new"}
    numbering = Agreement([[first, more]]).numbering(more)
    assert numbering is not None
    made = numbering.of(more)
    assert torch.equal(made.labels == 4, more.labels == 1)
    assert torch.equal(made.labels == 1, more.labels == 2)
    assert made.particles.classes.tolist() == [{1: 4, 2: 1}[int(n)] for n in more.particles.classes]
    assert made.class_names == {**CLASS_NAMES, 4: "new"}


def test_names_that_are_not_known_before_are_refused() -> None:
    """If only reading all specimens told the numbers, both are named, and what to do."""
    more = _numbered(specimen(1), {1: "new", 2: "small"}, {0: 0, 1: 2, 2: 1})
    error = error_of(lambda: list(dataset(specimens=_Reader([specimen(0), more]))))
    assert isinstance(error, SimulationError)
    assert str(error).startswith("specimen 1: expected classes of the first specimen, specimen 0 (small, large, rare),")
    assert "got new" in str(error)
    assert "`class_names`" in str(error)


def test_without_names_equal_numbers_are_the_same() -> None:
    """Nothing changes where one of the two has no names."""
    named, nameless = specimen(0), replace(specimen(1), class_names={})
    for things in ([named, nameless], [nameless, named]):
        expected = dataset(specimens=[replace(one, class_names={}) for one in things])
        assert_same_items(list(dataset(specimens=things)), list(expected))


def test_a_class_without_a_name_is_not_mixed_with_another() -> None:
    """If a specimen's classes are numbered anew, one without a name would take another one's number."""
    with pytest.warns(UserWarning, match="without a name"):
        partly = replace(specimen(1), class_names={1: "large"})
    error = error_of(lambda: list(dataset(specimens=[specimen(0), partly])))
    assert isinstance(error, SimulationError)
    assert "specimen 1: expected names of all of its classes, since specimen 0 numbers them differently" in str(error)
    assert "got none for [2]" in str(error)


def test_radii_follow_the_stream() -> None:
    """Radii by name and by the first specimen's number mean the same class in every specimen."""
    same = [specimen(seed) for seed in range(2)]
    for radii in ({"small": 30.0}, {1: 30.0}):
        expected = list(dataset(specimens=same, target="sphere", radii=radii))
        found = list(dataset(specimens=[same[0], _other(same[1])], target="sphere", radii=radii))
        assert_same_items(found, expected)


def test_specimens_set_anew_are_compared_anew() -> None:
    """The standard is that of the specimens that the dataset has now."""
    data = dataset(specimens=[specimen(0)], tomograms_per_epoch=2)
    assert data.class_names == CLASS_NAMES
    data.specimens = [_other(specimen(0)), specimen(1)]
    assert data.class_names == OTHERS
    data.set_epoch(1)
    assert {item["particle_class"] for item in data} == {2, 3}


def test_it_pickles() -> None:
    """A source that has begun is sent to a spawned worker with what it knows."""
    data = dataset(specimens=[specimen(0), _other(specimen(1))])
    items = list(data)
    data.set_epoch(0)
    assert_same_items(list(pickle.loads(pickle.dumps(data))), items)


# --- mixtures ---------------------------------------------------------------------------------------------------------


def _real(**changes: Any) -> list[LabelledTomogram]:
    return [replace(one, **changes) for one in labelled_tomograms()]


def test_simulated_specimens_decide_in_a_mixture() -> None:
    """Real tomograms get the simulated ones' numbers."""
    real = LabelledPatches(_real(class_names=OTHERS), seed=2, **PATCHES)
    alone = {(item["tomogram"], item["particle_class"]) for item in real}
    mixed = MixedPatches(real, dataset(specimens=[specimen(0)]), real_share=1.0, tomograms_per_epoch=2)
    found = {(item["tomogram"], item["particle_class"]) for item in mixed}
    assert found == {(tomogram, NEW[number]) for tomogram, number in alone}
    assert mixed.class_names == CLASS_NAMES


def test_real_tomograms_of_another_voxel_size_are_refused() -> None:
    real = LabelledPatches(_real(voxel_size=13.0), **PATCHES)
    mixed = MixedPatches(real, dataset(specimens=[specimen(0)]), real_share=1.0, tomograms_per_epoch=1)
    with pytest.raises(SimulationError, match=r"real \d: expected voxels of 10 Å, as of specimen 0, got 13 Å"):
        list(mixed)
    close = LabelledPatches(_real(voxel_size=10.1), **PATCHES)
    assert len(list(MixedPatches(close, dataset(specimens=[specimen(0)]), real_share=1.0))) == 15


def test_a_generator_says_what_it_makes() -> None:
    """It is compared without generating anything."""
    template = ParticleTemplate(density=torch.ones(5, 5, 5), voxel_size=10.0, threshold=0.5, name="large")
    made = GrandModelGenerator(
        particles=ParticleSpecies(templates=template, count=2), shape=(16, 24, 32), voxel_size=10.0
    )
    fake = FakETDataset(made, simulator(), tomograms_per_epoch=1, **PATCHES)
    mixed = MixedPatches(LabelledPatches(_real(), **PATCHES), fake, real_share=1.0, tomograms_per_epoch=2)
    # The generator numbers large as 1; small, whose number is taken, gets a free one, and rare keeps its own.
    assert mixed.class_names == {1: "large", 2: "small", 3: "rare"}
    alone = {(item["tomogram"], item["particle_class"]) for item in LabelledPatches(_real(), **PATCHES)}
    found = {(item["tomogram"], item["particle_class"]) for item in mixed}
    assert found == {(tomogram, {1: 2, 2: 1, 3: 3}[number]) for tomogram, number in alone}


# --- voxel sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, _Reader])
def test_specimens_of_two_voxel_sizes_are_refused(kind: Any) -> None:
    """Both are named with their sizes; 2 % more is the same."""
    wider = [specimen(0), replace(specimen(1), voxel_size=13.0)]
    with pytest.raises(SimulationError, match=r"^specimen 1: expected voxels of 10 Å, as of specimen 0, got 13 Å; bin"):
        list(dataset(specimens=kind(wider)))
    assert len(list(dataset(specimens=[specimen(0), replace(specimen(1), voxel_size=10.19)]))) == 10


def test_the_labels_voxels_count() -> None:
    """A finer density with labels of the same voxels goes with a coarse one."""
    assert len(list(dataset(specimens=[specimen(0), specimen(1, bin=2)]))) == 10


def test_files_of_two_voxel_sizes_are_refused(tmp_path: Path) -> None:
    folders = [_write(tmp_path / "a", specimen(0)), _write(tmp_path / "b", specimen(1), voxel_size=13.0)]
    data = FakETDataset(read_specimens(folders), simulator(), **PATCHES)
    with pytest.raises(SimulationError, match=r"b: expected voxels of 10 Å, as of .*/a, got 13 Å"):
        list(data)


def test_a_damaged_first_specimen_is_named(tmp_path: Path) -> None:
    folders = [_write(tmp_path / "a", specimen(0)), _write(tmp_path / "b", specimen(1))]
    found = ShrecSpecimens(folders)
    (folders[0] / "grandmodel.mrc").write_bytes(b"no map")
    with pytest.raises(SimulationError, match=r"specimen 0: FileFormatError: .*a/grandmodel.mrc: expected an MRC file"):
        list(FakETDataset(found, simulator(), **PATCHES))


def test_functions_that_tell_nothing_are_read() -> None:
    """Sources of one's own, plain functions, need not describe what they read."""
    found = FileSpecimens([lambda: specimen(0), lambda: _other(specimen(1))])
    assert found.describe(0) is None
    assert_same_items(list(dataset(specimens=found)), list(dataset(count=2)))


def test_style_pixels_are_those_of_the_specimens(tmp_path: Path) -> None:
    """The bank knows them, also from its cache; tilts of unknown pixel size are not compared."""
    made = simulator("faket", tmp_path)
    with pytest.raises(SimulationError, match=r"expected voxels of 10 Å, as of the style style 0, got 5 Å"):
        made(specimen(0, bin=2), seed=0)
    features, unknown = made.features, simulator("faket", tmp_path, pixel_size=0.0)
    unknown(specimen(0, bin=2), seed=0)
    assert features is not None
    for size in (0.0, 13.0):
        series = style_series(pixel_size=size)
        bank = StyleBank.build(series, features, style_layers=(1,), cache=tmp_path / "cache")
        assert bank.series[0].pixel_size == size


def test_halves_of_two_voxel_sizes_are_refused(tmp_path: Path) -> None:
    volume = torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, size in (("even", 10.0), ("odd", 13.0)):
        write_mrc(tmp_path / f"{name}.mrc", volume, voxel_size=size)
    halves = [tmp_path / "even.mrc", tmp_path / "odd.mrc"]
    with pytest.raises(ValueError, match=r"odd.mrc: expected voxels of 10 Å, as of .*even.mrc, got 13 Å; give the two"):
        TiltSeries.from_tomogram(halves, range(-60, 61, 10))


# --- particle tables --------------------------------------------------------------------------------------------------


def test_settings_that_need_a_particle_table() -> None:
    """Spheres cannot be drawn of labels alone; classes cannot be balanced. Without labels there is nothing to say."""
    bare = replace(specimen(0), particles=table([], []))
    with pytest.raises(
        SimulationError, match='specimen 0: expected a particle table for `target="sphere"`, got labels'
    ):
        list(dataset(specimens=[bare], target="sphere", radii={1: 30.0}))
    with pytest.warns(UserWarning, match="specimen 0: expected a particle table for `class_balanced`, got labels with"):
        list(dataset(specimens=[bare], class_balanced=True))
    assert len(list(dataset(specimens=[empty_specimen()], class_balanced=True))) == 5
    real = [replace(one, particles=table([], [])) for one in labelled_tomograms()]
    with pytest.raises(SimulationError, match='expected a particle table for `target="sphere"`'):
        list(LabelledPatches(real, target="sphere", radii={1: 30.0}, **PATCHES))
