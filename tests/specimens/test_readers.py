"""Specimens of several programs: folders are told by their files, read when asked for, and go together."""

from __future__ import annotations

import pickle
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import CLASS_NAMES, SHAPE, dataset, specimen, write_shrec

from faket_aug import FileFormatError, GrandModel
from faket_aug.formats.deepfinder import write_object_list
from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.shrec import write_class_conversion_table, write_particle_locations
from faket_aug.formats.star import write_particles_star
from faket_aug.specimens.labelling import read_particles
from faket_aug.specimens.lazy import FileSpecimens, renumbered
from faket_aug.specimens.readers import (
    CopickSpecimens,
    FolderSpecimens,
    PolnetSpecimens,
    read_specimens,
)

needs_copick = pytest.mark.skipif(find_spec("copick") is None, reason="needs the optional package copick")
CLASS_NUMBERS = {name: number for number, name in CLASS_NAMES.items()}


def _list_of(thing: GrandModel) -> ParticleList:
    particles = thing.particles
    names = tuple(thing.class_names[int(number)] for number in particles.classes)
    return ParticleList(names, particles.positions, particles.orientations)


def _assert_same(found: GrandModel, expected: GrandModel, *, atol: float = 1e-4) -> None:
    assert torch.equal(found.density, expected.density)
    assert torch.equal(found.labels, expected.labels)
    assert found.labels.dtype == torch.uint8
    assert found.particles.classes.tolist() == expected.particles.classes.tolist()
    np.testing.assert_allclose(found.particles.positions, expected.particles.positions, atol=atol)
    assert found.voxel_size == pytest.approx(expected.voxel_size)
    assert found.class_names == expected.class_names


def _plain(folder: Path, thing: GrandModel, *, prefix: str = "", particles: str | None = ".star") -> Path:
    """Write a plain folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_mrc(folder / f"{prefix}density.mrc", thing.density, voxel_size=thing.voxel_size)
    write_mrc(folder / f"{prefix}labels.mrc", thing.labels, voxel_size=thing.label_voxel_size)
    assert thing.instances is not None
    write_mrc(folder / f"{prefix}instances.mrc", thing.instances, voxel_size=thing.label_voxel_size)
    write_class_conversion_table(folder / "class_conversion_table.txt", CLASS_NAMES)
    path = folder / f"{prefix}particles{particles}"
    listed = _list_of(thing)
    if particles == ".star":
        shape = tuple(thing.labels.shape)
        write_particles_star(
            path,
            {prefix.rstrip("_") or "t": listed},
            voxel_size=thing.label_voxel_size,
            shape=shape,  # type: ignore[arg-type]
            class_numbers=CLASS_NUMBERS,
        )
    elif particles == ".xml":
        write_object_list(path, listed, class_numbers=CLASS_NUMBERS)
    elif particles == ".txt":
        write_particle_locations(path, listed)
    elif particles == ".csv":
        rows = [f"{name},{x},{y},{z}" for name, (z, y, x) in zip(listed.names, listed.positions, strict=True)]
        path.write_text("\n".join(["class,x,y,z", *rows]) + "\n")
    return folder


# --- plain folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bin", [1, 2])
@pytest.mark.parametrize("particles", [".star", ".xml", ".txt", ".csv"])
def test_plain_folder(tmp_path: Path, particles: str, bin: int) -> None:
    """Density, labels, instances and particles of any kind of list, in voxels of the labels."""
    thing = specimen(0, bin=bin)
    folder = _plain(tmp_path / "mine", thing, particles=particles)
    (found,) = FolderSpecimens(folder)
    _assert_same(found, thing)
    assert found.bin == bin
    assert found.instances is not None
    assert thing.instances is not None
    assert torch.equal(found.instances, thing.instances)
    assert found.name == str(folder / "density.mrc")


def test_several_in_a_plain_folder(tmp_path: Path) -> None:
    """Files with a word in front belong together, whatever their endings; a list may hold several tomograms."""
    things = [specimen(0), specimen(1)]
    for word, thing in zip("ab", things, strict=True):
        _plain(tmp_path, thing, prefix=f"{word}_")
    found = FolderSpecimens(tmp_path)
    assert len(found) == 2
    for one, expected in zip(found, things, strict=True):
        _assert_same(one, expected)
    both = {word: _list_of(thing) for word, thing in zip("ab", things, strict=True)}
    for word in "ab":
        write_particles_star(
            tmp_path / f"{word}_particles.star", both, voxel_size=10.0, shape=SHAPE, class_numbers=CLASS_NUMBERS
        )
    for one, expected in zip(FolderSpecimens(tmp_path), things, strict=True):
        _assert_same(one, expected)


def test_what_a_plain_folder_may_lack(tmp_path: Path) -> None:
    """Without a table of names classes are numbers, without a list there are no particles."""
    thing = specimen(0)
    folder = _plain(tmp_path / "mine", thing, particles=".csv")
    (folder / "class_conversion_table.txt").unlink()
    with pytest.raises(FileFormatError, match=r"particles.csv: expected class names of .*\(none\), got large, small"):
        FolderSpecimens(folder)[0]
    path = folder / "particles.csv"
    path.write_text(path.read_text().replace("small", "1").replace("large", "2"))
    (found,) = FolderSpecimens(folder)
    assert found.class_names == {}
    assert found.particles.classes.tolist() == thing.particles.classes.tolist()
    path.unlink()
    (folder / "instances.mrc").unlink()
    (found,) = FolderSpecimens(folder, voxel_size=3.0)
    assert len(found.particles) == 0
    assert found.instances is None
    assert found.voxel_size == 3.0


def test_bad_plain_folders(tmp_path: Path) -> None:
    """Labels that are missing or outside the table, and lists of other tomograms, are errors with the file's name."""
    thing = specimen(0)
    with pytest.raises(FileNotFoundError, match=r"expected a specimen with density.mrc and labels.mrc, found none"):
        FolderSpecimens(tmp_path)
    folder = _plain(tmp_path / "mine", thing)
    (folder / "labels.mrc").rename(folder / "other.mrc")
    with pytest.raises(FileNotFoundError, match=r"density.mrc: expected labels.mrc beside it, found none"):
        FolderSpecimens(folder)
    write_mrc(folder / "labels.mrc", torch.where(thing.labels == 2, 9, thing.labels), voxel_size=10.0)
    with pytest.raises(FileFormatError, match=r"labels.mrc: expected labels of the class table \(1 small, .*\), got"):
        FolderSpecimens(folder)[0]
    write_mrc(folder / "labels.mrc", thing.labels, voxel_size=10.0)
    lists = {"x": _list_of(thing), "y": _list_of(thing)}
    write_particles_star(folder / "particles.star", lists, voxel_size=10.0, shape=SHAPE, class_numbers=CLASS_NUMBERS)
    with pytest.raises(FileFormatError, match=r"particles.star: expected particles of tomogram mine, got those of x"):
        FolderSpecimens(folder)[0]
    (folder / "density.mrc").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="density.mrc: expected an MRC file"):
        FolderSpecimens(folder)[0]


def test_no_voxel_size(tmp_path: Path) -> None:
    """A header without voxel size asks for one."""
    import mrcfile

    folder = _plain(tmp_path / "mine", specimen(0))
    with mrcfile.open(folder / "density.mrc", mode="r+") as file:
        file.voxel_size = 0.0
    with pytest.raises(FileFormatError, match="density.mrc: expected a voxel size in the header, got 0; set `voxel"):
        FolderSpecimens(folder)[0]
    with pytest.raises(FileFormatError, match="density.mrc: expected a voxel size in the header, got 0; set `voxel"):
        read_specimens(folder)[0]
    assert read_specimens(folder, voxel_size=10.0)[0].voxel_size == 10.0


def test_lists_of_no_kind(tmp_path: Path) -> None:
    """A list of particles with another ending is refused with those that are known."""
    with pytest.raises(FileFormatError, match=r"a.json: expected a list of particles that ends in .star, .xml, .csv"):
        read_particles(tmp_path / "a.json", specimen(0))
    nothing = ParticleList((), np.zeros((0, 3)), np.zeros((0, 3, 3)))
    write_object_list(tmp_path / "a.xml", nothing, class_numbers={})
    assert len(read_particles(tmp_path / "a.xml", specimen(0))) == 0


# --- PolNet -----------------------------------------------------------------------------------------------------------


def _polnet(folder: Path, thing: GrandModel, number: int = 1, *, names: dict[int, str] | None = None) -> Path:
    """Write a specimen as PolNet 1.1 does."""
    where = folder / f"Tomo{number:03d}"
    where.mkdir(parents=True, exist_ok=True)
    stem = f"tomo_{number:03d}"
    write_mrc(where / f"{stem}_den.mrc", thing.density, voxel_size=10.0)
    write_mrc(where / f"{stem}_lbl.mrc", thing.labels, voxel_size=10.0)
    codes = names or {number: name for number, name in CLASS_NAMES.items() if number < 3}
    rows = [
        ["cprotein", label, codes[int(label)], 0, x * 10, y * 10, z * 10, 1, 0, 0, 0]
        for label, (z, y, x) in zip(thing.particles.classes, thing.particles.positions, strict=True)
    ]
    header = "type label code polymer x y z q1 q2 q3 q4".split()  # noqa: SIM905
    lines = ["\t".join(map(str, row)) for row in [header, *rows]]
    (where / f"{stem}_motif_list.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_polnet(tmp_path: Path) -> None:
    """PolNet's output is a sequence of specimens with identity turns, as written."""
    things = [specimen(0), specimen(1)]
    for number, thing in enumerate(things, start=1):
        _polnet(tmp_path, thing, number)
    found = PolnetSpecimens(tmp_path)
    assert len(found) == 2
    for one, expected in zip(found, things, strict=True):
        _assert_same(replace(one, class_names=CLASS_NAMES), expected)
        np.testing.assert_allclose(one.particles.orientations, np.broadcast_to(np.eye(3), (5, 3, 3)))
    assert found[0].class_names == {1: "small", 2: "large"}
    assert len(PolnetSpecimens([tmp_path, tmp_path])) == 4


def test_polnet_numbers_that_mean_two_things(tmp_path: Path) -> None:
    """Where one number means two codes, all tomograms are numbered anew, labels and particles alike."""
    _polnet(tmp_path, specimen(0), 1, names={1: "a", 2: "b"})
    _polnet(tmp_path, specimen(1), 2, names={1: "c", 2: "b"})
    one, other = PolnetSpecimens(tmp_path)
    assert one.class_names == other.class_names == {1: "a", 2: "b", 3: "c"}
    assert torch.equal(one.labels, specimen(0).labels)
    was = specimen(1)
    assert torch.equal(other.labels, torch.where(was.labels == 1, 3, was.labels))
    assert other.particles.classes.tolist() == [3 if number == 1 else 2 for number in was.particles.classes]


def test_bad_polnet(tmp_path: Path) -> None:
    """Other folders, labels outside the list and rows outside the volume are errors."""
    with pytest.raises(FileNotFoundError, match=r"expected PolNet's output with Tomo001/tomo_001_den.mrc or tomos"):
        PolnetSpecimens(tmp_path)
    thing = specimen(0)
    with pytest.warns(UserWarning, match="got labels of class 7 without a name"):
        wrong = replace(thing, labels=torch.where(thing.labels == 2, 7, thing.labels))
    _polnet(tmp_path, wrong)
    with pytest.raises(FileFormatError, match=r"tomo_001_lbl.mrc: expected labels of the class table .*, got \[7\]"):
        PolnetSpecimens(tmp_path)[0]
    moved = replace(thing.particles, positions=thing.particles.positions + np.array([0, 0, 30]))
    _polnet(tmp_path, replace(thing, particles=moved))
    with pytest.raises(FileFormatError, match=r"motif_list.csv, line 2: expected a place within the volume of \(320.0"):
        PolnetSpecimens(tmp_path)[0]


def test_real_polnet(reference: Path) -> None:
    """Real output of both versions: numbers of skipped classes are united, labels at the particles are theirs."""
    found = read_specimens(reference / "data" / "polnet" / "v1.1_skipped")
    assert [one.class_names for one in found] == [{1: "pdb_5mrc", 2: "pdb_1s3x", 3: "pdb_3cf3"}] * 2
    assert [one.particles.classes.tolist() for one in found] == [[1, 2, 2], [3, 2, 2]]
    for name in ("v1.0", "v1.1", "v1.1_skipped"):
        for one in PolnetSpecimens(reference / "data" / "polnet" / name):
            at = tuple(np.rint(one.particles.positions).astype(int).T)
            assert (one.labels[at].numpy() == one.particles.classes).mean() > 0.99
            assert one.density.min() >= 0
            assert one.voxel_size == 10.0


# --- copick -----------------------------------------------------------------------------------------------------------


def _copick(folder: Path, things: list[GrandModel], **tomograms: Any) -> Path:
    from faket_aug.formats.copick import write_copick

    for i, thing in enumerate(things):
        write_copick(
            folder,
            run=f"run_{i}",
            particles=_list_of(thing),
            class_numbers=CLASS_NUMBERS,
            voxel_size=10.0,
            labels=thing.labels,
            tomograms={"density": thing.density} | tomograms,
        )
    return folder


@needs_copick
def test_copick(tmp_path: Path) -> None:
    """A copick project is a sequence of its runs."""
    things = [specimen(0), specimen(1)]
    folder = _copick(tmp_path / "project", things)
    found = CopickSpecimens(folder)
    assert len(found) == 2
    for one, expected in zip(found, things, strict=True):
        _assert_same(one, expected)
    assert found[1].name == f"{folder}/run_1"
    assert len(CopickSpecimens(folder / "copick_config.json", runs=["run_1"])) == 1


@needs_copick
def test_dark_tomograms(tmp_path: Path) -> None:
    """A microscope's particles are dark: read so, they are bright, and read otherwise, the user is told."""
    thing = specimen(0, bin=2)
    folder = _copick(tmp_path / "project", [specimen(0)], tilted=-specimen(0).density)
    found = CopickSpecimens(folder, tomogram_type="tilted", dark=True)
    for one in (found[0], found[:1][0]):
        assert torch.equal(one.density, specimen(0).density)
    with pytest.warns(UserWarning, match="project/run_0: expected particles that are denser .*; set `dark` where"):
        CopickSpecimens(folder, tomogram_type="tilted")[0]
    (tmp_path / "plain").mkdir()
    write_mrc(tmp_path / "plain" / "density.mrc", -thing.density, voxel_size=5.0)
    write_mrc(tmp_path / "plain" / "labels.mrc", thing.labels, voxel_size=10.0)
    assert torch.equal(read_specimens(tmp_path / "plain", dark=True)[0].density, thing.density)
    with pytest.warns(UserWarning, match="density.mrc: expected particles that are denser"):
        read_specimens(tmp_path / "plain")[0]


@needs_copick
def test_copick_settings(tmp_path: Path) -> None:
    """Where there are several tomograms, one is chosen; what is not there is an error."""
    folder = _copick(tmp_path, [specimen(0)], raw=torch.zeros(SHAPE))
    with pytest.raises(FileFormatError, match="run run_0: expected one tomogram, got .*; set `tomogram_type`"):
        CopickSpecimens(folder)[0]
    _assert_same(CopickSpecimens(folder, tomogram_type="density")[0], specimen(0))
    with pytest.raises(FileFormatError, match=r"copick_config.json: expected runs of run_0, got run_7"):
        CopickSpecimens(folder, runs=["run_7"])
    with pytest.raises(FileFormatError, match="run run_0: expected one multilabel segmentation, got none"):
        CopickSpecimens(folder, segmentation="membranes")[0]


# --- any of them ------------------------------------------------------------------------------------------------------


def test_layouts_are_told_by_their_files(tmp_path: Path) -> None:
    """Whichever program wrote a folder, or the folders within one, its specimens are found, in order."""
    things = [specimen(i) for i in range(5)]
    for i in (0, 1):
        write_shrec(tmp_path / "shrec" / f"model_{i}", things[i])
    _polnet(tmp_path / "polnet", things[2])
    _plain(tmp_path / "plain", things[3])
    layouts = {"shrec": things[:2], "polnet": things[2:3], "plain": things[3:4]}
    if find_spec("copick"):
        _copick(tmp_path / "copick", things[4:])
        layouts["copick"] = things[4:]
    for name, expected in layouts.items():
        found = read_specimens(tmp_path / name)
        assert isinstance(found, FileSpecimens)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.density, other.density), name
            assert one.particles.classes.tolist() == other.particles.classes.tolist(), name
    several = read_specimens([tmp_path / name for name in layouts])
    assert len(several) == sum(len(expected) for expected in layouts.values())
    assert torch.equal(read_specimens(tmp_path / "shrec" / "model_1")[0].density, things[1].density)
    assert torch.equal(read_specimens(str(tmp_path / "polnet" / "Tomo001"))[0].density, things[2].density)


def test_nothing_is_kept(tmp_path: Path) -> None:
    """Specimens are read when they are asked for; slices too; pickling carries paths only."""
    for i in range(3):
        write_shrec(tmp_path / "shrec" / f"model_{i}", specimen(i))
        _plain(tmp_path / "plain" / f"model_{i}", specimen(i))
        _polnet(tmp_path / "polnet", specimen(i), i + 1)
    for folder in (tmp_path / "shrec", tmp_path / "plain", tmp_path / "polnet"):
        found = read_specimens(folder)
        assert len(found) == 3
        packed = pickle.dumps(found)
        assert len(packed) < 5000
        assert torch.equal(pickle.loads(packed)[2].density, specimen(2).density)
        part = found[1:]
        assert isinstance(part, FileSpecimens)
        assert torch.equal(part[0].density, specimen(1).density)
        assert [one.name for one in found] == [found[i].name for i in range(3)]
        with pytest.raises(IndexError):
            found[3]
    found = read_specimens(tmp_path / "shrec")
    write_shrec(tmp_path / "shrec" / "model_0", specimen(7))
    assert torch.equal(found[0].density, specimen(7).density)


def test_an_error_while_reading_is_no_end() -> None:
    """An `IndexError` of a reader reaches the one who iterates; slices keep class and settings."""

    def broken() -> GrandModel:
        raise IndexError("no such section")

    things = FileSpecimens([lambda: specimen(0), broken], dark=False, class_names=CLASS_NAMES)
    reading = iter(things[:])
    assert next(reading).name == "specimen 0"
    with pytest.raises(IndexError, match="no such section"):
        next(reading)


def test_nothing_found(tmp_path: Path) -> None:
    """Where nothing is found, the message lists what was looked for."""
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "tilts.mrc").write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        read_specimens(tmp_path)
    for words in (str(tmp_path), "class_mask.mrc", "hitbox_0.mrc", "tomo_den_0.mrc", "copick", "labels.mrc"):
        assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match="expected a folder of specimens, found none at .*nowhere"):
        read_specimens(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected `voxel_size` to be more than 0, got -1"):
        read_specimens(tmp_path, voxel_size=-1)


def test_common_numbers(tmp_path: Path) -> None:
    """Folders that number their classes differently are given one table, by the names."""
    write_shrec(tmp_path / "a", specimen(0))
    _polnet(tmp_path / "b", specimen(1), names={1: "Large", 2: "rare"})
    table = {5: "rare", 6: "large", 9: "small"}
    one, other = read_specimens([tmp_path / "a", tmp_path / "b"], class_names=table)
    assert one.class_names == other.class_names == table
    assert one.labels.unique().tolist() == [0, 6, 9]
    assert other.labels.unique().tolist() == [0, 5, 6]
    assert set(other.particles.classes) == {5, 6}
    was = specimen(1).labels
    assert torch.equal(other.labels == 6, was == 1)
    with pytest.raises(ValueError, match=r"expected classes of the table \(small\), got .*large.*; add them to `class"):
        read_specimens(tmp_path / "a", class_names={1: "small"})[0]


def test_renumbered_by_hand() -> None:
    """The same table leaves a specimen as it is; another moves labels and particles."""
    thing = specimen(0)
    assert renumbered(thing, CLASS_NAMES) is thing
    swapped = renumbered(thing, {1: "large", 2: "small", 3: "rare"})
    assert torch.equal(swapped.labels == 1, thing.labels == 2)
    assert swapped.particles.classes.tolist() == [3 - number for number in thing.particles.classes]


@pytest.mark.touches_global_rng
def test_a_dataset_takes_them(tmp_path: Path) -> None:
    """A dataset over them delivers items."""
    _polnet(tmp_path, specimen(0))
    items = list(dataset(specimens=read_specimens(tmp_path)))
    assert len(items) == 5
    assert items[0]["image"].shape == (1, 8, 8, 8)
