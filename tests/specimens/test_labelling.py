"""Real tomograms with picks or labels, in every format that they come in."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faket_aug import FileFormatError, LabelledPatches, LabelledTomogram, SimulationError
from faket_aug.formats.copick import write_copick
from faket_aug.formats.deepfinder import write_object_list
from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.shrec import write_class_conversion_table, write_particle_locations
from faket_aug.formats.star import write_particles_star
from faket_aug.specimens.grandmodel import GrandModel
from tests._helpers import CLASS_NAMES, SHAPE, VOXEL_SIZE, generator, specimen

needs_copick = pytest.mark.skipif(find_spec("copick") is None, reason="needs the optional package copick")
NUMBERS = {name: number for number, name in CLASS_NAMES.items()}
TOMOGRAM = torch.randn(SHAPE, generator=generator(3))
FORMATS = [".star", "3.star", ".xml", ".csv", ".txt", pytest.param("copick", marks=needs_copick)]


def _particles(thing: GrandModel) -> ParticleList:
    names = tuple(CLASS_NAMES[int(number)] for number in thing.particles.classes)
    return ParticleList(names, thing.particles.positions, np.full((len(names), 3, 3), np.nan))


def _write(folder: Path, kind: str, particles: ParticleList, numbers: dict[str, int] = NUMBERS) -> Path:
    """Write picks in a format, beside another tomogram's where it holds several."""
    path = folder / f"picks{kind}"
    other = ParticleList(("large",), np.array([[1.0, 2.0, 3.0]]), np.full((1, 3, 3), np.nan))
    match kind:
        case ".star" | "3.star":
            lists, version = {"other": other, "tomo": particles}, 5 if kind == ".star" else 3
            write_particles_star(
                path, lists, voxel_size=VOXEL_SIZE, class_numbers=numbers, shape=SHAPE, version=version
            )
        case ".xml":
            write_object_list(path, [other, particles], class_numbers=numbers)
        case ".csv":
            rows = zip(particles.names, particles.positions.tolist(), strict=True)
            path.write_text("class,x,y,z\n" + "".join(f"{name},{x},{y},{z}\n" for name, (z, y, x) in rows))
        case ".txt":
            write_particle_locations(path, particles)
        case _:
            path = folder / "project"
            for run, one in (("other", other), ("tomo", particles)):
                write_copick(path, run=run, particles=one, class_numbers=numbers, voxel_size=VOXEL_SIZE)
    return path


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    """A tomogram's file, and the table of classes beside it."""
    write_mrc(tmp_path / "tomo.mrc", TOMOGRAM, voxel_size=VOXEL_SIZE)
    write_class_conversion_table(tmp_path / "class_conversion_table.txt", CLASS_NAMES)
    return tmp_path / "tomo.mrc"


def _name(kind: str) -> str | None:
    # Lists in XML number the tomograms.
    return "1" if kind == ".xml" else "tomo"


@pytest.mark.parametrize("kind", FORMATS)
def test_reads_picks(tomogram: Path, kind: str) -> None:
    """Picks are those of the tomogram, as classes, and in its voxels, whatever their format."""
    thing = specimen(5)
    path = _write(tomogram.parent, kind, _particles(thing))
    found = LabelledTomogram.read(tomogram, picks=path, name=_name(kind))
    assert torch.equal(found.tomogram, TOMOGRAM)
    assert found.voxel_size == pytest.approx(VOXEL_SIZE)
    # copick sorts by class.
    order, expected = (np.lexsort(table.positions.T) for table in (found.particles, thing.particles))
    assert found.particles.classes[order].tolist() == thing.particles.classes[expected].tolist()
    np.testing.assert_allclose(found.particles.positions[order], thing.particles.positions[expected], atol=1e-3)
    assert found.class_names == CLASS_NAMES
    assert not found.labels.any()


def test_default_name_is_the_files(tomogram: Path) -> None:
    """Of a list of several tomograms the one with the file's name is taken."""
    path = _write(tomogram.parent, ".star", _particles(specimen(5)))
    assert len(LabelledTomogram.read(tomogram, picks=path).particles) == 5
    with pytest.raises(FileFormatError, match="picks.star: expected particles of tomogram third, got those of other"):
        LabelledTomogram.read(tomogram, picks=path, name="third")


def test_reads_labels(tomogram: Path) -> None:
    """Labels alone do, too; bright particles are turned dark; a voxel size that is given wins."""
    thing = specimen(5)
    write_mrc(tomogram.parent / "labels.mrc", thing.labels, voxel_size=VOXEL_SIZE)
    found = LabelledTomogram.read(tomogram, labels=tomogram.parent / "labels.mrc", dark=False, voxel_size=7.5)
    assert torch.equal(found.tomogram, -TOMOGRAM)
    assert torch.equal(found.labels, thing.labels)
    assert (len(found.particles), found.voxel_size, found.label_voxel_size) == (0, 7.5, 7.5)
    items = list(LabelledPatches([found], patch_size=8, patches_per_tomogram=3))
    assert len(items) == 3


@needs_copick
def test_reads_a_copick_project(tmp_path: Path) -> None:
    """Tomogram, labels and picks may all be a project's; its only run needs no name."""
    thing = specimen(5)
    write_copick(
        tmp_path,
        run="tomo",
        particles=_particles(thing),
        class_numbers=NUMBERS,
        voxel_size=VOXEL_SIZE,
        labels=thing.labels,
        tomograms={"wbp": TOMOGRAM},
    )
    found = LabelledTomogram.read(tmp_path, picks=tmp_path, labels=tmp_path)
    assert torch.equal(found.tomogram, TOMOGRAM)
    assert torch.equal(found.labels, thing.labels)
    assert len(found.particles) == 5
    assert len(LabelledTomogram.read(tmp_path).particles) == 5
    with pytest.raises(FileFormatError, match="expected one of the project's runs \\(tomo\\), got 'other'"):
        LabelledTomogram.read(tmp_path, name="other")
    write_copick(tmp_path, run="b", particles=_particles(thing), class_numbers=NUMBERS, voxel_size=VOXEL_SIZE)
    with pytest.raises(FileFormatError, match="expected one run, got b, tomo; set `name` to one"):
        LabelledTomogram.read(tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_picks_outside(tomogram: Path, kind: str) -> None:
    """A pick outside the tomogram is an error that names tomogram and picks, the row and the place."""
    places = np.array([[3.0, 4.0, 5.0], [3.0, 40.0, 5.0]])
    particles = ParticleList(("small", "small"), places, np.full((2, 3, 3), np.nan))
    path = _write(tomogram.parent, kind, particles)
    message = r"tomo.mrc.*: expected particles within \(16, 24, 32\) voxels.*1 outside, the first in row 2 at \[3.0, 40"
    with pytest.raises(FileFormatError, match=message) as caught:
        LabelledTomogram.read(tomogram, picks=path, name=_name(kind))
    assert kind == "copick" or str(path) in str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_unknown_classes(tomogram: Path, kind: str) -> None:
    """A class without a name is an error that names the picks and the class."""
    particles = ParticleList(("small", "stranger"), np.ones((2, 3)), np.full((2, 3, 3), np.nan))
    path = _write(tomogram.parent, kind, particles, NUMBERS | {"stranger": 9})
    names = CLASS_NAMES if kind == "copick" else None
    with pytest.raises(FileFormatError, match=rf"{path.name}.*: expected .*class.*got (stranger|9)"):
        LabelledTomogram.read(tomogram, picks=path, name=_name(kind), class_names=names)


def test_unknown_labels(tomogram: Path) -> None:
    write_mrc(tomogram.parent / "labels.mrc", torch.full(SHAPE, 7, dtype=torch.uint8), voxel_size=VOXEL_SIZE)
    with pytest.raises(FileFormatError, match=r"labels.mrc: expected labels of the class table .*, got \[7\]"):
        LabelledTomogram.read(tomogram, labels=tomogram.parent / "labels.mrc")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "tomo.mrc: expected its picks, labels or both, got none; set `picks` or `labels`"),
        ({"picks": "nowhere.star"}, "nowhere.star"),
        ({"labels": "nowhere.mrc"}, "expected an MRC file, found none at .*nowhere.mrc"),
        ({"picks": "tomo.mrc"}, "tomo.mrc: expected a list of particles that ends in .star, .xml"),
        (
            {"labels": "small.mrc"},
            r"expected labels of the tomogram's shape \(16, 24, 32\), got \(8, 24, 32\)",
        ),
        ({"picks": "."}, "expected the configuration of a copick project"),
    ],
)
def test_bad_input(tomogram: Path, given: dict[str, str], message: str) -> None:
    write_mrc(tomogram.parent / "small.mrc", torch.ones(8, 24, 32, dtype=torch.uint8), voxel_size=VOXEL_SIZE)
    paths: dict[str, Any] = {key: tomogram.parent / value for key, value in given.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        LabelledTomogram.read(tomogram, **paths)


def test_shapes_need_labels(tomogram: Path) -> None:
    """Where only places are known the target has to be spheres: else everything would be background."""
    path = _write(tomogram.parent, ".csv", _particles(specimen(5)))
    real = LabelledTomogram.read(tomogram, picks=path)
    with pytest.raises(SimulationError, match='expected labels for `target="shape"`, got particles and no labels'):
        list(LabelledPatches([real], patch_size=8))
    radii = {"small": 25.0, "large": 35.0}
    items = list(LabelledPatches([real], patch_size=8, patches_per_tomogram=9, shift=0, target="sphere", radii=radii))
    assert all(item["label"][4, 4, 4] == item["particle_class"] for item in items)
