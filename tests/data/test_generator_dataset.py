"""A dataset over a generator: the same drills as over a list of specimens, and a new specimen for every tomogram."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import (
    MORE_WORKERS_THAN_CORES,
    WatchedSimulator,
    assert_same_item,
    assert_same_items,
    blobs,
    dataset,
    error_of,
    indices,
    loader,
    simulator,
    unbatched,
)

from faket_aug import FakETDataset, SimulationError
from faket_aug.generation.filaments import FilamentSpecies
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.ice import IceSlab
from faket_aug.generation.membranes import MembraneSpecies
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.templates import ParticleTemplate

pytestmark = [
    pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES),
    # torchdata 0.11 calls a function of torch that later versions call deprecated.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

Items = list[dict[str, Any]]
SHAPE = (22, 36, 44)


def _template(name: str, spread: float) -> ParticleTemplate:
    density = 3 * blobs((13, 11, 15), [(6, 5, 7), (6, 7, 9)], spread)
    return ParticleTemplate(density=density, voxel_size=10.0, threshold=1.0, name=name)


def _generator(**settings: Any) -> GrandModelGenerator:
    """Two kinds of particles, a membrane, a filament and gold in a slab of ice."""
    given: dict[str, Any] = {
        "particles": [
            ParticleSpecies(templates=_template("small", 1.0), count=(8, 12)),
            ParticleSpecies(templates=_template("large", 1.6), count=6),
            ParticleSpecies(templates=_template("bound", 1.0), count=2, membrane_bound=True),
        ],
        "membranes": MembraneSpecies(kind="sphere", radius=(60.0, 70.0)),
        "filaments": FilamentSpecies(subunit="actin", length=300.0),
        "fiducials": FiducialSpecies(count=1, radius=20.0),
        "slab": IceSlab(thickness=200.0, tilt=(0.0, 2.0)),
        "shape": SHAPE,
        "voxel_size": 10.0,
    }
    return GrandModelGenerator(**(given | settings))


def _data(folder: Path | None = None, *, modality: str = "noisy", tomograms: int = 5, **settings: Any) -> FakETDataset:
    given: dict[str, Any] = {"patches_per_tomogram": 4, "seed": 11, "patch_size": (8, 10, 12)}
    source = settings.pop("generator", None) or _generator()
    return dataset(simulator(modality, folder), specimens=source, tomograms_per_epoch=tomograms, **(given | settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the narrow encoder's file lies."""
    return tmp_path_factory.mktemp("encoder")


@pytest.fixture(scope="module")
def expected() -> Items:
    """The items of epoch 0, read in the main process."""
    return list(_data())


# --- a new specimen for each tomogram ---------------------------------------------------------------------------------


def test_items_are_labelled_and_all_different(expected: Items) -> None:
    """Patches have labels of the generator's classes; no two items, and no two tomograms, are the same."""
    assert len(expected) == 20
    numbers = {int(n) for item in expected for n in item["label"].unique()}
    assert numbers <= set(_generator().class_names)
    assert {1, 2, 4} <= numbers
    for i, item in enumerate(expected):
        assert item["image"].shape == (1, 8, 10, 12)
        assert not any(torch.equal(item["image"], other["image"]) for other in expected[i + 1 :])


def test_patches_are_centred_on_particles(expected: Items) -> None:
    """Subunits, beads and particles are looked for; the middle of a vesicle is not, though it has its row."""
    numbers = {name: number for number, name in _generator().class_names.items()}
    found = {item["particle_class"] for item in expected}
    assert numbers["membrane"] in _generator().generate(seed=0).particles.classes
    assert numbers["membrane"] not in found
    assert numbers["small"] in found


def test_each_tomogram_is_the_generators_own() -> None:
    """The tomogram of an address is made of the specimen of that address, in every epoch another."""
    watched = WatchedSimulator(simulator())
    data = FakETDataset(_generator(), watched, patch_size=8, tomograms_per_epoch=3, patches_per_tomogram=2, seed=7)  # type: ignore[arg-type]
    for epoch in (0, 4):
        data.set_epoch(epoch)
        list(data)
    assert sorted(watched.made) == [
        (epoch, tomogram, f"generated specimen {tomogram} of epoch {epoch}, seed 7")
        for epoch in (0, 4)
        for tomogram in range(3)
    ]


def test_labels_are_those_of_the_specimen() -> None:
    """A patch's labels are cut from the specimen that the generator makes for its address."""
    data = _data(modality="noiseless", half_turn=False, seed=5)
    data.set_epoch(2)
    for item in data:
        made = _generator().generate(seed=5, epoch=2, tomogram=item["tomogram"])
        z, y, x = (int(c) - n // 2 for c, n in zip(item["position"], (8, 10, 12), strict=True))
        assert torch.equal(item["label"], made.labels[z : z + 8, y : y + 10, x : x + 12].long())


# --- determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_any_number_of_forked_workers(expected: Items, workers: int) -> None:
    """The same items, bit for bit, for any number of workers."""
    assert_same_items(loader(_data(), workers=workers, batch_size=None), expected)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_spawned_workers(expected: Items, workers: int) -> None:
    """The same items from spawned workers: the generator is pickled."""
    assert_same_items(loader(_data(), workers=workers, start="spawn", batch_size=None), expected)


def test_the_whole_chain_with_style(folder: Path) -> None:
    """With style transfer, too: two workers deliver what the main process does."""
    alone = list(_data(folder, modality="faket", tomograms=2))
    assert_same_items(loader(_data(folder, modality="faket", tomograms=2), workers=2, batch_size=None), alone)


def test_threads_of_the_process_do_not_matter(expected: Items) -> None:
    """Items do not depend on the number of intra-op threads that the process has, and leave it as it was."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_same_items(list(_data()), expected)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_differ(expected: Items, workers: int) -> None:
    """Another epoch has other specimens under the same indices; going back gives the first again."""
    data = _data()
    by_index = {item["index"]: item for item in expected}
    data.set_epoch(1)
    items = list(loader(data, workers=workers, batch_size=None))
    assert sorted(indices(items)) == sorted(by_index)
    assert not any(torch.equal(item["image"], by_index[item["index"]]["image"]) for item in items)
    assert not all(torch.equal(item["label"], by_index[item["index"]]["label"]) for item in items)
    data.set_epoch(0)
    assert_same_items(loader(data, workers=workers, batch_size=None), expected)


def test_persistent_workers_see_the_epoch() -> None:
    """`set_epoch` in the main process reaches workers that live on."""
    data = _data(tomograms=3)
    reader = loader(data, workers=2, batch_size=None, persistent_workers=True)
    for epoch in (0, 2, 1):
        data.set_epoch(epoch)
        fresh = _data(tomograms=3)
        fresh.set_epoch(epoch)
        assert_same_items(reader, list(fresh))


def test_ranks_share_the_tomograms(expected: Items) -> None:
    """Two ranks, each with two workers, together give the items of one."""
    shards = [list(loader(_data(rank=rank, world_size=2), workers=2, batch_size=None)) for rank in range(2)]
    assert len(shards[0]) == 12
    assert_same_items(shards[0] + shards[1], expected)


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 7, 19, 20])
def test_resume_in_the_main_process(expected: Items, taken: int) -> None:
    """From any place the remainder is the uninterrupted one, bit for bit, with a fresh generator."""
    data = _data()
    iterator = iter(data)
    for _ in range(taken):
        next(iterator)
    state = json.loads(json.dumps(data.state_dict()))
    fresh = _data()
    fresh.load_state_dict(state)
    found = list(fresh)
    assert len(found) == 20 - taken
    for item, other in zip(found, expected[taken:], strict=True):
        assert_same_item(item, other)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_resume_with_workers(taken: int) -> None:
    """A loader with two workers goes on after the batches that were taken."""
    settings = {"workers": 2, "batch_size": 4}
    whole = unbatched(loader(_data(), **settings))
    state = _data().state_dict(batches=taken, batch_size=4, num_workers=2)
    fresh = _data()
    fresh.load_state_dict(json.loads(json.dumps(state)))
    found = unbatched(loader(fresh, **settings))
    assert len(found) == len(whole) - 4 * taken
    for item, other in zip(found, whole[4 * taken :], strict=True):
        assert_same_item(item, other)


def test_stateful_loader() -> None:
    """`StatefulDataLoader` saves and goes on, with a worker."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    whole = unbatched(loader(_data(tomograms=2), workers=1, batch_size=2, cls=StatefulDataLoader))
    first = loader(_data(tomograms=2), workers=1, batch_size=2, cls=StatefulDataLoader)
    list(islice(iter(first), 2))
    state = first.state_dict()
    second = loader(_data(tomograms=2), workers=1, batch_size=2, cls=StatefulDataLoader)
    second.load_state_dict(state)
    found = unbatched(second)
    assert len(found) == 4
    for item, other in zip(found, whole[4:], strict=True):
        assert_same_item(item, other)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_generator_has_no_length_of_its_own() -> None:
    """Someone has to say how many tomograms make an epoch."""
    with pytest.raises(ValueError, match=r"expected `tomograms_per_epoch` with a generator, which has no end of"):
        FakETDataset(_generator(), simulator(), patch_size=8)
    with pytest.raises(ValueError, match=r"expected `tomograms_per_epoch` to be a whole number of 1 or more, got 0"):
        FakETDataset(_generator(), simulator(), patch_size=8, tomograms_per_epoch=0)
    assert (
        len(FakETDataset(_generator(), simulator(), patch_size=8, tomograms_per_epoch=3, patches_per_tomogram=2)) == 6
    )


def test_threads_of_the_generator_do_not_survive_a_fork() -> None:
    """A generator with several threads in a forked worker is refused with the remedy."""
    data = _data(generator=_generator(threads=2))
    error = error_of(lambda: list(loader(data, workers=1, batch_size=None)))
    assert "expected `threads=1` in a forked worker, got 2" in str(error)
    assert 'give the DataLoader `multiprocessing_context="spawn"`, or the generator `threads=1`' in str(error)


def test_a_gpu_that_is_not_there() -> None:
    """A generator on CUDA is refused where there is none, before anything is made."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"expected a CUDA device for `device` 'cuda', found none"):
        next(iter(_data(generator=_generator(device="cuda"))))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_generator_names_the_specimen(workers: int) -> None:
    """What goes wrong while a specimen is made reaches the reader, with its address."""
    crowd = ParticleSpecies(templates=_template("crowd", 1.6), count=160)
    data = _data(generator=_generator(particles=crowd, filaments=(), membranes=()))
    error = error_of(lambda: list(loader(data, workers=workers, batch_size=None)))
    # Warnings are errors in tests; a shortfall is one that a user's generator may have.
    assert isinstance(error, SimulationError)
    assert "generated specimen" in str(error)
    assert "expected 160 of crowd, placed" in str(error)


def test_patches_larger_than_the_specimen() -> None:
    """The error names the specimen."""
    with pytest.raises(SimulationError, match=r"generated specimen \d of epoch 0, seed 11: expected"):
        next(iter(_data(patch_size=30)))


def test_a_sphere_target_by_name() -> None:
    """Radii are given by the generator's class names."""
    data = _data(modality="noiseless", target="sphere", radii={"large": 30.0}, tomograms=2)
    numbers = {int(n) for item in data for n in item["label"].unique()}
    assert numbers == {0, 2}
