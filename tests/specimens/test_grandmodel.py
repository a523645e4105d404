"""Specimens: density, labels, instances and particles go together, whichever way they were stored."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from _helpers import CLASS_NAMES, SHAPE, blobs, simulator, specimen, table, write_shrec
from scipy.ndimage import center_of_mass
from torch import Tensor

from faket_aug import FileFormatError, GrandModel, ParticleTable, ShrecSpecimens
from faket_aug.formats.particles import ParticleList
from faket_aug.specimens import shrec as specimen_module

# --- a specimen -------------------------------------------------------------------------------------------------------


def test_bin_and_voxel_size() -> None:
    """Labels may be coarser than the density by a whole factor: that is `bin`, and their voxels are larger by it."""
    for factor in (1, 2, 3):
        thing = specimen(0, bin=factor)
        assert thing.bin == factor
        assert thing.voxel_size == pytest.approx(10 / factor)
        assert thing.label_voxel_size == pytest.approx(10)


@pytest.mark.parametrize("shape", [(16, 24), (2, 16, 24, 32), (24, 16, 32), (16, 24, 31), (32, 48, 64), (8, 12, 32)])
def test_labels_of_another_shape(shape: tuple[int, ...]) -> None:
    """Labels that are not of the density's shape, or smaller by one whole factor, are an error with both shapes."""
    with pytest.raises(ValueError, match="expected .*labels.*got") as caught:
        replace(specimen(0, name="mine"), labels=torch.zeros(shape, dtype=torch.uint8), instances=None)
    assert str(shape) in str(caught.value)


def test_instances_of_another_shape() -> None:
    """Instances have the labels' shape."""
    with pytest.raises(FileFormatError, match=r"mine: expected instances of the labels' shape \(16, 24, 32\), got \("):
        replace(specimen(0, name="mine"), instances=torch.zeros((1, 24, 32), dtype=torch.int32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(SHAPE, dtype=torch.int64)}, "mine: expected uint8 labels, got torch.int64"),
        ({"density": torch.zeros(SHAPE, dtype=torch.int16)}, "mine: expected a floating-point density, got torch.int"),
        ({"density": torch.zeros(SHAPE[1:])}, r"expected `density` of shape \(z, y, x\), got \(24, 32\)"),
        ({"voxel_size": 0.0}, "expected `voxel_size` to be more than 0, got 0.0"),
        ({"voxel_size": -10.0}, "expected `voxel_size` to be more than 0, got -10.0"),
    ],
)
def test_bad_specimens(changes: dict[str, object], message: str) -> None:
    """A specimen that cannot be is refused, with what was expected and what was found."""
    with pytest.raises(ValueError, match=message):
        replace(specimen(0, name="mine"), **changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_density_that_is_not_finite(value: float) -> None:
    """NaN and infinite densities are an error that names the specimen and the first such voxel."""
    density = specimen(0).density.clone()
    density[3, 4, 5] = value
    message = r"mine: density: expected finite numbers, got 1 NaN or infinite values, the first at index \(3, 4, 5\)"
    with pytest.raises(FileFormatError, match=message):
        replace(specimen(0, name="mine"), density=density)


def test_particle_table_shapes() -> None:
    """The columns of a particle table have as many rows as there are particles."""
    good = table((1, 2), [(1, 2, 3), (4, 5, 6)])
    assert len(good) == 2
    assert len(ParticleTable.empty()) == 0
    for changes in (
        {"classes": np.zeros(3, np.int64)},
        {"positions": np.zeros((2, 2))},
        {"orientations": np.zeros((2, 3))},
    ):
        with pytest.raises(ValueError, match=r"expected particles of shapes \(n,\), \(n, 3\) and \(n, 3, 3\), got"):
            replace(good, **changes)


def test_specimen_can_be_sent_to_a_worker() -> None:
    """A specimen is the same after pickling."""
    thing = specimen(0)
    again = pickle.loads(pickle.dumps(thing))
    assert torch.equal(again.density, thing.density)
    assert torch.equal(again.labels, thing.labels)
    assert np.array_equal(again.particles.positions, thing.particles.positions)
    assert (again.name, again.voxel_size, again.class_names) == (thing.name, thing.voxel_size, thing.class_names)


# --- SHREC's layout ---------------------------------------------------------------------------------------------------


def _assert_same(found: GrandModel, expected: GrandModel) -> None:
    assert torch.equal(found.density, expected.density)
    assert torch.equal(found.labels, expected.labels)
    assert found.instances is not None
    assert torch.equal(found.instances, expected.instances)
    assert found.particles.classes.tolist() == expected.particles.classes.tolist()
    np.testing.assert_allclose(found.particles.positions, expected.particles.positions)
    assert found.voxel_size == pytest.approx(expected.voxel_size)
    assert found.class_names == expected.class_names


@pytest.mark.parametrize("where", ["here", "above"])
@pytest.mark.parametrize("density", ["grandmodel.mrc", "grandmodel_unbinned.mrc"])
def test_spellings(tmp_path: Path, density: str, where: str) -> None:
    """A specimen in SHREC's layout reads as it was, under either name, with the class table here or above."""
    thing = specimen(0)
    folder = write_shrec(tmp_path / "model_0", thing, density=density, table=where)
    found = GrandModel.from_shrec(folder)
    _assert_same(found, thing)
    assert found.name == str(folder)
    assert found.density.dtype == torch.float32
    assert found.labels.dtype == torch.uint8
    assert found.instances is not None
    assert found.instances.dtype == torch.int32
    _assert_same(GrandModel.from_shrec(str(folder)), thing)


def test_unbinned_goes_first(tmp_path: Path) -> None:
    """Where both densities are there, the unbinned one is read."""
    fine, coarse = specimen(0, bin=2), specimen(0)
    folder = write_shrec(tmp_path, coarse)
    write_shrec(tmp_path, fine, density="grandmodel_unbinned.mrc")
    assert GrandModel.from_shrec(folder).bin == 2


def test_half_precision_density(tmp_path: Path) -> None:
    """A density in half precision (mode 12) is read as float32."""
    thing = specimen(0)
    folder = write_shrec(tmp_path, thing)
    with mrcfile.new(folder / "grandmodel.mrc", overwrite=True) as file:
        file.set_data(thing.density.half().numpy())
        file.voxel_size = 10.0
    found = GrandModel.from_shrec(folder)
    assert torch.equal(found.density, thing.density.half().float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_density_left_on_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    """A density that is left on disk keeps its precision there, and gives the tilts and patches of one in memory."""
    thing = replace(specimen(0), density=specimen(0).density.to(dtype))
    folder = write_shrec(tmp_path, thing)
    found = ShrecSpecimens([folder], memory_map=True)[:1][0]
    assert found.density.dtype == dtype
    assert torch.equal(found.density, thing.density)
    simulate = simulator("noisy")
    again, expected = (simulate(each, seed=0) for each in (found, GrandModel.from_shrec(folder)))
    assert torch.equal(again.tomogram, expected.tomogram)
    files = folder / "grandmodel.mrc", folder / "class_mask.mrc"
    assert GrandModel.from_files(*files, memory_map=True).density.dtype == dtype
    assert torch.equal(GrandModel.from_files(*files).density, thing.density.float())
    values = np.memmap(files[0], dtype=np.float16 if dtype == torch.float16 else np.float32, offset=1024, mode="r+")
    values[7] = np.nan
    values.flush()
    with pytest.raises(FileFormatError, match=r"density: expected finite numbers, got 1 NaN .* index \(0, 0, 7\)"):
        GrandModel.from_shrec(folder, memory_map=True)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32])
def test_labels_of_any_type(tmp_path: Path, dtype: type) -> None:
    """Labels may be stored as integers or as whole floating-point numbers."""
    thing = specimen(0)
    folder = write_shrec(tmp_path, thing)
    with mrcfile.new(folder / "class_mask.mrc", overwrite=True) as file:
        file.set_data(thing.labels.numpy().astype(dtype))
    _assert_same(GrandModel.from_shrec(folder), thing)


def test_case_of_names_does_not_matter(tmp_path: Path) -> None:
    """Class names are met whatever their case, as SHREC mixes it."""
    thing = specimen(0)
    folder = write_shrec(tmp_path, thing)
    path = folder / "particle_locations.txt"
    path.write_text(path.read_text().upper())
    _assert_same(GrandModel.from_shrec(folder), thing)


def test_names_that_differ_in_case_only(tmp_path: Path) -> None:
    """The same name goes first; where none is the same and two are alike, nobody is guessed."""
    thing = replace(specimen(0), class_names={1: "Ab", 2: "aB"})
    found = ParticleList(("aB", "Ab"), np.zeros((2, 3)), np.full((2, 3, 3), np.nan))
    assert specimen_module.particle_table(found, thing.class_names, tmp_path).classes.tolist() == [2, 1]
    found = ParticleList(("AB",), np.zeros((1, 3)), np.full((1, 3, 3), np.nan))
    with pytest.raises(FileFormatError, match=r"expected class names of .* \(Ab, aB\), got AB"):
        specimen_module.particle_table(found, thing.class_names, tmp_path)


def test_instances_beyond_the_table() -> None:
    """Instances count rows; one that the table does not have is an error."""
    thing = specimen(0)
    assert thing.instances is not None
    with pytest.raises(FileFormatError, match="specimen 0: expected instances of the 5 rows .*, got 6"):
        replace(thing, instances=torch.where(thing.instances == 5, 6, thing.instances))
    replace(thing, particles=ParticleTable.empty())


def test_what_may_be_missing(tmp_path: Path) -> None:
    """Density and labels are enough; particles need the class table."""
    thing = specimen(0)
    folder = write_shrec(tmp_path / "a", thing, instances=False, particles=False, table=None)
    found = GrandModel.from_shrec(folder)
    assert found.instances is None
    assert len(found.particles) == 0
    assert found.class_names == {}
    message = r"particle_locations.txt: expected class names of .*\(none\), got large, small"
    with pytest.raises(FileFormatError, match=message):
        GrandModel.from_shrec(write_shrec(tmp_path / "b", thing, table=None))


def test_no_particles_in_the_file(tmp_path: Path) -> None:
    """An empty list of particles is a specimen without particles."""
    found = GrandModel.from_shrec(write_shrec(tmp_path, specimen(0, classes=())))
    assert len(found.particles) == 0


def test_orientations(tmp_path: Path) -> None:
    """Angles become rotation matrices, NaN none; row by row with the classes and positions."""
    folder = write_shrec(tmp_path, specimen(0))
    (folder / "occupancy_mask.mrc").unlink()
    (folder / "particle_locations.txt").write_text("small 1 2 3 90 0 0\nlarge 4 5 6 NaN NaN NaN\n")
    particles = GrandModel.from_shrec(folder).particles
    # A turn by 90° about z brings x to y.
    np.testing.assert_allclose(particles.orientations[0] @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    assert np.isnan(particles.orientations[1]).all()
    assert particles.classes.tolist() == [1, 2]
    assert particles.positions.tolist() == [[3, 2, 1], [6, 5, 4]]


def test_twice_the_resolution(tmp_path: Path) -> None:
    """A grandmodel at twice the resolution of masks and positions, as SHREC 2021's: they line up, `bin` is 2."""
    centers = [(5.0, 6.0, 9.0), (10.0, 16.0, 22.0), (4.0, 18.0, 12.0)]
    thing = _separate(centers, bin=2)
    found = GrandModel.from_shrec(write_shrec(tmp_path, thing, density="grandmodel_unbinned.mrc"))
    assert found.bin == 2
    assert found.voxel_size == pytest.approx(5)
    assert found.label_voxel_size == pytest.approx(10)
    assert found.density.shape == (32, 48, 64)
    assert found.labels.shape == (16, 24, 32)
    _assert_lined_up(found, centers)


def _separate(centers: list[tuple[float, float, float]], *, bin: int) -> GrandModel:
    """A specimen of one blob a class, each with a ball of labels and instances about it."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    labels, instances = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.int32)
    for row, center in enumerate(centers, start=1):
        ball = ((grid - np.array(center)) ** 2).sum(-1) <= 9
        labels[ball], instances[ball] = row, row
    return GrandModel(
        density=blobs([n * bin for n in SHAPE], np.array(centers) * bin, 1.0 * bin),
        labels=torch.from_numpy(labels),
        instances=torch.from_numpy(instances),
        particles=table(range(1, len(centers) + 1), centers),
        voxel_size=10.0 / bin,
        class_names=CLASS_NAMES,
    )


def _assert_lined_up(found: GrandModel, centers: list[tuple[float, float, float]]) -> None:
    """Where labels, instances and positions say that a particle is, there is density."""
    assert found.instances is not None
    fine = np.kron(found.labels.numpy(), np.ones((found.bin,) * 3))
    for row, center in enumerate(centers, start=1):
        position = found.particles.positions[row - 1]
        np.testing.assert_allclose(position, center)
        assert found.labels[tuple(position.astype(int))] == row
        assert found.instances[tuple(position.astype(int))] == row
        middle = np.array(center_of_mass(np.where(fine == row, found.density.numpy(), 0)))
        # The labels' voxel j spans the density's voxels 2j and 2j + 1, so the middle is within half a coarse voxel.
        np.testing.assert_allclose(middle / found.bin, position, atol=0.5)


# --- parts along z ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bin", [1, 2])
@pytest.mark.parametrize(
    ("z_range", "first", "stop"), [((3, 12), 3, 12), ((0, 16), 0, 16), (None, 0, 16), ("auto", 0, 16)]
)
def test_z_range(tmp_path: Path, bin: int, z_range: object, first: int, stop: int) -> None:
    """A part along z is cut out of density, labels and instances alike; positions move along."""
    thing = specimen(0, bin=bin)
    folder = write_shrec(tmp_path, thing, density="grandmodel_unbinned.mrc")
    found = GrandModel.from_shrec(folder, z_range=z_range)
    assert torch.equal(found.labels, thing.labels[first:stop])
    assert torch.equal(found.density, thing.density[first * bin : stop * bin])
    assert found.instances is not None
    assert torch.equal(found.instances, thing.instances[first:stop])
    np.testing.assert_allclose(found.particles.positions, thing.particles.positions - [first, 0, 0])
    assert found.bin == bin


def test_particles_outside_the_range_stay_in_the_table(tmp_path: Path) -> None:
    """Rows keep their numbers, which the instances count: particles outside are not taken out of the table."""
    thing = specimen(0)
    found = GrandModel.from_shrec(write_shrec(tmp_path, thing), z_range=(6, 9))
    assert len(found.particles) == len(thing.particles)
    assert found.instances is not None
    for row in found.instances.unique().tolist():
        if row:
            assert found.labels[found.instances == row].unique().tolist() == [found.particles.classes[row - 1]]


def test_shrec_2021_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`"shrec2021"` keeps 165 to 345 of 512, at any depth; `"auto"` does so for labels of SHREC 2021's size only."""
    assert specimen_module.label_range((512, 512, 512), "auto", tmp_path) == slice(165, 345)
    assert specimen_module.label_range((512, 512, 512), None, tmp_path) == slice(0, 512)
    assert specimen_module.label_range((512, 256, 256), "auto", tmp_path) == slice(0, 512)
    assert specimen_module.label_range((256, 256, 256), "shrec2021", tmp_path) == slice(82, 172)
    folder = write_shrec(tmp_path, specimen(0, bin=2), density="grandmodel_unbinned.mrc")
    assert GrandModel.from_shrec(folder, z_range="shrec2021").labels.shape == (6, 24, 32)
    monkeypatch.setattr(specimen_module, "_SHREC_LABEL_SIZE", SHAPE)
    found = GrandModel.from_shrec(folder)
    assert found.labels.shape == (6, 24, 32)
    assert found.density.shape == (12, 48, 64)


@pytest.mark.parametrize("z_range", [(-1, 5), (5, 5), (7, 3), (0, 17)])
def test_z_range_outside(tmp_path: Path, z_range: tuple[int, int]) -> None:
    """A range beyond the labels, or an empty one, is refused with the depth."""
    folder = write_shrec(tmp_path, specimen(0))
    with pytest.raises(ValueError, match=r"class_mask.mrc: expected `z_range` within its depth of 16, got \("):
        GrandModel.from_shrec(folder, z_range=z_range)


def test_unknown_z_range(tmp_path: Path) -> None:
    """An unknown name of a range is refused with those that are known."""
    folder = write_shrec(tmp_path, specimen(0))
    message = 'expected `z_range` to be "auto", "shrec2021", a pair or None, got \'shrec2020\''
    with pytest.raises(ValueError, match=message):
        GrandModel.from_shrec(folder, z_range="shrec2020")


# --- what is wrong with files -----------------------------------------------------------------------------------------


def _write(path: Path, values: Tensor | np.ndarray, voxel_size: float = 10.0) -> None:
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.asarray(values))
        file.voxel_size = voxel_size


def test_no_voxel_size(tmp_path: Path) -> None:
    """A header without voxel size asks for one; the one that is given goes before the header's."""
    folder = write_shrec(tmp_path, specimen(0))
    assert GrandModel.from_shrec(folder, voxel_size=7.5).voxel_size == 7.5
    _write(folder / "grandmodel.mrc", specimen(0).density.numpy(), voxel_size=0.0)
    with pytest.raises(FileFormatError, match="grandmodel.mrc: expected a voxel size in the header, got 0; set `v"):
        GrandModel.from_shrec(folder)
    assert GrandModel.from_shrec(folder, voxel_size=7.5).voxel_size == 7.5
    with pytest.raises(ValueError, match="expected `voxel_size` to be more than 0, got 0"):
        GrandModel.from_shrec(folder, voxel_size=0.0)


@pytest.mark.parametrize("missing", ["grandmodel.mrc", "class_mask.mrc"])
def test_missing_files(tmp_path: Path, missing: str) -> None:
    """A folder without density or labels is a FileNotFoundError that says what was looked for, and where."""
    folder = write_shrec(tmp_path / "model", specimen(0))
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"model.*{missing}|{missing}.*model"):
        GrandModel.from_shrec(folder)
    with pytest.raises(FileNotFoundError, match=f"model: expected a specimen in SHREC's layout with .*{missing}"):
        ShrecSpecimens([folder])


@pytest.mark.parametrize("depth", [7, 24, 8])
def test_density_of_another_depth(tmp_path: Path, depth: int) -> None:
    """A density whose depth is no multiple of the labels' is an error that names both files."""
    folder = write_shrec(tmp_path, specimen(0))
    _write(folder / "grandmodel.mrc", np.zeros((depth, 24, 32), np.float32))
    message = f"class_mask.mrc: expected labels of the depth of .*grandmodel.mrc, {depth}"
    with pytest.raises(FileFormatError, match=message):
        GrandModel.from_shrec(folder)


@pytest.mark.parametrize("shape", [(16, 24, 31), (16, 12, 32), (32, 24, 32)])
def test_density_of_another_shape(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """A density of another shape than the labels is an error that names the specimen and both shapes."""
    folder = write_shrec(tmp_path / "model", specimen(0))
    _write(folder / "grandmodel.mrc", np.zeros(shape, np.float32))
    with pytest.raises(FileFormatError, match=r"model: expected labels of the density's shape .*got \(16, 24") as e:
        GrandModel.from_shrec(folder)
    assert str(shape) in str(e.value)


@pytest.mark.parametrize("z_range", [None, (2, 9)])
@pytest.mark.parametrize(
    "shape",
    [
        (16, 24, 31),
        (7, 24, 32),
        (17, 24, 32),
    ],
)
def test_instances_of_another_shape_in_the_file(
    tmp_path: Path, shape: tuple[int, int, int], z_range: tuple[int, int] | None
) -> None:
    """An occupancy mask of another shape than the labels is an error with its name, even where only a part is read."""
    folder = write_shrec(tmp_path, specimen(0))
    _write(folder / "occupancy_mask.mrc", np.zeros(shape, np.int16))
    with pytest.raises(FileFormatError, match=r"occupancy_mask.mrc: expected an occupancy mask of the labels' shape"):
        GrandModel.from_shrec(folder, z_range=z_range)


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0])
def test_labels_that_are_no_class_numbers(tmp_path: Path, value: float) -> None:
    """Labels are whole numbers from 0 to 255; others are an error with the file's name and the range found."""
    folder = write_shrec(tmp_path, specimen(0))
    labels = np.zeros(SHAPE, np.float32)
    labels[1, 2, 3] = value
    _write(folder / "class_mask.mrc", labels)
    with pytest.raises(FileFormatError, match="class_mask.mrc: expected whole class numbers from 0 to 255, got values"):
        GrandModel.from_shrec(folder)


def test_unknown_class(tmp_path: Path) -> None:
    """A particle of a class that the table does not hold is an error with file, known and unknown names."""
    folder = write_shrec(tmp_path, specimen(0))
    with (folder / "particle_locations.txt").open("a") as file:
        file.write("ribosome 1 2 3 0 0 0\n")
    message = r"particle_locations.txt: expected class names of .*\(small, large, rare\), got ribosome"
    with pytest.raises(FileFormatError, match=message):
        GrandModel.from_shrec(folder)


def test_nan_in_the_density_file(tmp_path: Path) -> None:
    """A density file with NaN is an error with its name."""
    folder = write_shrec(tmp_path, specimen(0))
    raw = bytearray((folder / "grandmodel.mrc").read_bytes())
    raw[1024:1028] = np.float32(np.nan).tobytes()
    (folder / "grandmodel.mrc").write_bytes(bytes(raw))
    with pytest.raises(FileFormatError, match="grandmodel.mrc: expected finite numbers, got 1 NaN or infinite values"):
        GrandModel.from_shrec(folder)


def test_wrong_machine_stamp_warns_once_and_reads(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A density that only the permissive mode reads is read, with a warning that names it."""
    thing = specimen(0)
    folder = write_shrec(tmp_path, thing)
    raw = bytearray((folder / "grandmodel.mrc").read_bytes())
    raw[212:216] = b"\x12\x34\0\0"
    (folder / "grandmodel.mrc").write_bytes(bytes(raw))
    _assert_same(GrandModel.from_shrec(folder), thing)
    (warning,) = recwarn
    assert f"{folder / 'grandmodel.mrc'}: not quite an MRC file, read all the same" in str(warning.message)


def test_labels_outside_the_table(tmp_path: Path) -> None:
    """Labels that the table of class names lacks are an error with the file's name; without a table any will do."""
    thing = specimen(0)
    folder = write_shrec(tmp_path, thing, particles=False)
    (folder / "class_conversion_table.txt").write_text("0 background\n1 small\n")
    message = r"class_mask.mrc: expected labels of the class table \(1 small\), got \[2\]"
    with pytest.raises(FileFormatError, match=message):
        GrandModel.from_shrec(folder)
    (folder / "class_conversion_table.txt").unlink()
    assert torch.equal(GrandModel.from_shrec(folder).labels, thing.labels)


# --- SHREC 2019's layout ----------------------------------------------------------------------------------------------


def _write_2019(folder: Path, thing: GrandModel, number: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    assert thing.instances is not None
    _write(folder / f"grandmodel_{number}.mrc", thing.density)
    _write(folder / f"hitbox_{number}.mrc", thing.instances.numpy().astype(np.int16))
    names = {1: "1bxn", 2: "4D8Q"}
    rows = zip(thing.particles.classes, thing.particles.positions.round().astype(int), strict=True)
    lines = [f"{names[int(c)]} {z:4d} {y:4d} {x:4d}   10   20   30\n" for c, (z, y, x) in rows]
    (folder / f"particle_locations_model_{number}.txt").write_text("".join(lines))
    return folder


def test_shrec_2019(tmp_path: Path) -> None:
    """Told by its file names: z comes first, labels are the hitbox's, classes have the challenge's numbers."""
    thing = specimen(0)
    found = GrandModel.from_shrec(_write_2019(tmp_path / "3", thing))
    assert torch.equal(found.density, thing.density)
    assert found.instances is not None
    assert torch.equal(found.instances, thing.instances)
    assert found.particles.classes.tolist() == [{1: 1, 2: 12}[number] for number in thing.particles.classes]
    np.testing.assert_array_equal(found.particles.positions, thing.particles.positions.round())
    assert np.isnan(found.particles.orientations).all()
    classes = np.concatenate([[0], found.particles.classes])
    assert np.array_equal(found.labels.numpy(), classes[found.instances.numpy()])
    assert found.labels.dtype == torch.uint8
    assert found.class_names[1] == "1bxn"
    assert found.class_names[12] == "4d8q"
    part = GrandModel.from_shrec(tmp_path / "3", z_range=(2, 9))
    assert torch.equal(part.labels, found.labels[2:9])
    assert torch.equal(part.density, found.density[2:9])
    np.testing.assert_array_equal(part.particles.positions, found.particles.positions - [2, 0, 0])
    assert torch.equal(ShrecSpecimens([tmp_path / "3"])[0].labels, found.labels)


def test_bad_shrec_2019(tmp_path: Path) -> None:
    """Files that are missing, and hitboxes with rows that the list lacks, are errors."""
    folder = _write_2019(tmp_path / "3", specimen(0))
    path = folder / "particle_locations_model_3.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    message = r"hitbox_3.mrc: expected rows of .*particle_locations_model_3.txt, 1 to 3, got 5"
    with pytest.raises(FileFormatError, match=message):
        GrandModel.from_shrec(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="SHREC's layout with particle_locations_model_3.txt, found none"):
        ShrecSpecimens([folder])
    (folder / "grandmodel_3.mrc").unlink()
    with pytest.raises(FileNotFoundError, match=r"SHREC's layout with grandmodel_3.mrc, found none"):
        GrandModel.from_shrec(folder)


# --- single files -----------------------------------------------------------------------------------------------------


def test_from_files(tmp_path: Path) -> None:
    """A specimen from MRC files of any name, with or without instances and particles."""
    thing = specimen(0, bin=2)
    assert thing.instances is not None
    _write(tmp_path / "a.mrc", thing.density, voxel_size=0.0)
    _write(tmp_path / "b.mrc", thing.labels.numpy().astype(np.float32))
    _write(tmp_path / "c.mrc", thing.instances.numpy().astype(np.int16))
    names = tuple(CLASS_NAMES[int(number)] for number in thing.particles.classes)
    listed = ParticleList(names, thing.particles.positions, thing.particles.orientations)
    found = GrandModel.from_files(
        tmp_path / "a.mrc",
        tmp_path / "b.mrc",
        instances=tmp_path / "c.mrc",
        particles=listed,
        class_names=CLASS_NAMES,
        voxel_size=5.0,
    )
    _assert_same(found, thing)
    bare = GrandModel.from_files(tmp_path / "a.mrc", tmp_path / "b.mrc", voxel_size=5.0)
    assert (bare.instances, len(bare.particles), bare.class_names) == (None, 0, {})
    with pytest.raises(FileFormatError, match=r"a.mrc: expected a voxel size in the header, got 0; set `voxel_size`"):
        GrandModel.from_files(tmp_path / "a.mrc", tmp_path / "b.mrc")
    with pytest.raises(FileFormatError, match=r"b.mrc: expected labels of the class table \(1 a\), got \[2\]"):
        GrandModel.from_files(tmp_path / "a.mrc", tmp_path / "b.mrc", class_names={1: "a"}, voxel_size=5.0)


# --- a sequence of folders --------------------------------------------------------------------------------------------


def test_shrec_specimens(tmp_path: Path) -> None:
    """A sequence that reads each specimen when it is asked for: index, slice, iteration, length."""
    folders = [write_shrec(tmp_path / f"model_{i}", specimen(i)) for i in range(3)]
    things = ShrecSpecimens(folders, z_range=(2, 10), voxel_size=5.0)
    assert len(things) == 3
    assert [thing.name for thing in things] == [str(folder) for folder in folders]
    assert things[1].labels.shape == (8, 24, 32)
    assert things[-1].name == str(folders[2])
    part = things[1:]
    assert isinstance(part, ShrecSpecimens)
    assert [thing.name for thing in part] == [str(folder) for folder in folders[1:]]
    assert part[0].voxel_size == 5.0
    with pytest.raises(IndexError):
        things[3]


def test_shrec_specimens_keep_nothing(tmp_path: Path) -> None:
    """Nothing is kept: what changed on the disk is seen, and pickling carries paths only."""
    folder = write_shrec(tmp_path / "model", specimen(0))
    things = ShrecSpecimens([folder])
    assert len(pickle.dumps(things)) < 1000
    assert torch.equal(things[0].density, specimen(0).density)
    shutil.rmtree(folder)
    write_shrec(folder, specimen(1))
    assert torch.equal(things[0].density, specimen(1).density)


def test_shrec_specimens_missing(tmp_path: Path) -> None:
    """A folder without a specimen is an error when the sequence is made, not in the middle of an epoch."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: expected a specimen in SHREC's layout with grandmodel"):
        ShrecSpecimens([tmp_path / "empty"])


# --- the reference data -----------------------------------------------------------------------------------------------


def test_minishrec(reference: Path) -> None:
    """In `minishrec` labels and instances at the particles' positions are their classes and rows."""
    thing = GrandModel.from_shrec(reference / "data" / "minishrec" / "model_0")
    assert thing.density.shape == thing.labels.shape == (64, 256, 256)
    assert thing.bin == 1
    assert thing.voxel_size == pytest.approx(10)
    assert len(thing.particles) == 164
    assert thing.instances is not None
    at = tuple(np.rint(thing.particles.positions).astype(int).T)
    labels, instances = thing.labels[at].numpy(), thing.instances[at].numpy()
    # Some particles are hollow: there is nothing at their centre. Everywhere else it is they.
    assert (labels > 0).mean() > 0.7
    assert np.array_equal(labels > 0, instances > 0)
    assert np.array_equal(labels[labels > 0], thing.particles.classes[labels > 0])
    assert np.array_equal(instances[labels > 0], np.arange(1, 165)[labels > 0])
    # The middle of each instance's voxels is the particle's position: no axis is turned or moved.
    middles = center_of_mass(np.ones(thing.instances.shape), thing.instances.numpy(), np.arange(1, 165))
    offsets = np.array(middles) - thing.particles.positions
    assert np.linalg.norm(offsets, axis=1).max() < 2
    assert np.abs(offsets.mean(axis=0)).max() < 0.1
    names = [thing.class_names[number] for number in thing.particles.classes]
    assert names.count("fiducial") == 4
    assert names.count("4CR2") == 20
    oriented = ~np.isnan(thing.particles.orientations).any(axis=(1, 2))
    assert oriented.tolist() == [name != "fiducial" for name in names]
    turned = thing.particles.orientations[oriented]
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turned.shape), atol=1e-9)


def test_minishrec_every_instance_has_its_class(reference: Path) -> None:
    """Every voxel's instance is a row of the table, and its label is that row's class."""
    thing = GrandModel.from_shrec(reference / "data" / "minishrec" / "model_0")
    assert thing.instances is not None
    classes = np.concatenate([[0], thing.particles.classes])
    inside = thing.instances > 0
    assert np.array_equal(classes[thing.instances[inside].numpy()], thing.labels[inside].numpy())
