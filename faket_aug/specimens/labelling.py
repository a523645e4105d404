"""Reading labels and particles that belong to specimens, tomograms and tilt-series."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError
from faket_aug.formats import copick
from faket_aug.formats._text import find_name
from faket_aug.formats.deepfinder import read_object_list
from faket_aug.formats.mrc import read_mrc
from faket_aug.formats.particles import ParticleList, match_names, read_particles_csv
from faket_aug.formats.shrec import find_class_names, read_particle_locations
from faket_aug.formats.star import has_tomogram_names, read_particles_star
from faket_aug.specimens.particles import Labelled, ParticleTable

#: Suffixes of the files that hold lists of particles.
PARTICLE_LISTS = (".star", ".xml", ".csv", ".tsv", ".txt")
_ALL_BACKGROUND = "a training takes all of it for background; give the file that belongs to it, or leave it out"

AnyLabelled = TypeVar("AnyLabelled", bound=Labelled)


def choose_voxel_size(given: float | None, header: float, path: Path) -> float:
    """Choose the given voxel size, or the header's; raise an error where neither is known."""
    size = header if given is None else given
    if size <= 0:
        raise FileFormatError(f"{path}: expected a voxel size in the header, got 0; set `voxel_size` in Å")
    return size


def as_labels(labels: Tensor, path: Path, class_names: Mapping[int, str]) -> Tensor:
    """Convert the contents of a file to labels, uint8; all must be in the table of class names, if there is one."""
    low, high = (float(value) for value in torch.aminmax(labels))
    if low < 0 or high > 255 or (labels.is_floating_point() and bool((labels != labels.round()).any())):
        raise FileFormatError(f"{path}: expected whole class numbers from 0 to 255, got values from {low} to {high}")
    found = labels.to(torch.uint8)
    unknown = set(torch.bincount(found.flatten()).nonzero()[:, 0].tolist()) - {0, *class_names}
    if class_names and unknown:
        table = ", ".join(f"{number} {name}" for number, name in class_names.items())
        raise FileFormatError(f"{path}: expected labels of the class table ({table}), got {sorted(unknown)}")
    return found


def particle_table(
    particles: ParticleList, class_names: Mapping[int, str], path: Path, *, first: int = 0
) -> ParticleTable:
    """Make a particle table of a list, by class names, whatever their case; `first` sections of z were left out.

    Without a table of names, a name has to be the class number.
    """
    numbers = match_names(particles.names, class_names)
    if not class_names:
        numbers = {name: int(name) for name in particles.names if name.isdigit() and int(name) > 0}
    unknown = sorted(set(particles.names) - set(numbers))
    if unknown:
        raise FileFormatError(
            f"{path}: expected class names of class_conversion_table.txt ({', '.join(class_names.values()) or 'none'})"
            f", got {', '.join(unknown)}"
        )
    return ParticleTable(
        classes=np.array([numbers[name] for name in particles.names], dtype=np.int64),
        positions=particles.positions - np.array([first, 0, 0]),
        orientations=particles.orientations,
    )


def is_copick(path: str | Path) -> bool:
    """Tell whether a path is a copick project (its folder or its configuration) and not a list or a volume."""
    return Path(path).suffix == ".json" or Path(path).is_dir()


def read_class_names(paths: Sequence[str | Path | None]) -> dict[int, str]:
    """Read the class names of labels and picks, from their copick project or from a table beside them.

    The table is SHREC's `class_conversion_table.txt`, in the folder of a file or the one above. Without it there are no
    names.
    """
    sources = [Path(path) for path in paths if path is not None]
    tables = (
        copick.read_copick_classes(path) if is_copick(path) else find_class_names(path.parent) for path in sources
    )
    return next((names for names in tables if names), {})


def choose_name(paths: Sequence[str | Path | None], name: str | None, default: str) -> str:
    """Choose a tomogram of a list, or a run of a copick project: the one asked for, or the only one.

    Raises
    ------
    FileFormatError
        If a project has several runs and none is chosen.
    """
    projects = [path for path in paths if path is not None and is_copick(path)]
    if name is not None or not projects:
        return default if name is None else name
    runs = copick.read_copick_runs(projects[0])
    if len(runs) != 1:
        raise FileFormatError(f"{projects[0]}: expected one run, got {', '.join(runs) or 'none'}; set `name` to one")
    return runs[0]


def read_labels(
    path: str | Path,
    *,
    name: str,
    class_names: Mapping[int, str],
    voxel_size: float | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
) -> Tensor:
    """Read labels `(z, y, x)`, uint8.

    Parameters
    ----------
    path
        An MRC file, or a copick project with a multilabel segmentation.
    name
        The project's run.
    class_names
        Names of the class numbers. If there are any, each label needs one.
    voxel_size, user_id, session_id
        Which segmentation, where a run has several; the voxel size in Å.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If the file is missing or wrong, or a class has no name.
    """
    if is_copick(path):
        whose = {"user_id": user_id, "session_id": session_id}
        stored, _ = copick.read_copick_segmentation(path, run=name, voxel_size=voxel_size, **whose)
    else:
        stored, _ = read_mrc(path)
    found = as_labels(stored, Path(path), class_names)
    if not bool(found.any()):
        warnings.warn(f"{path}: expected labels of particles, got 0 in every voxel: {_ALL_BACKGROUND}", stacklevel=3)
    return found


def read_picks(
    path: str | Path,
    labelled: Labelled,
    *,
    name: str,
    user_id: str | None = None,
    session_id: str | None = None,
) -> ParticleTable:
    """Read particles.

    Parameters
    ----------
    path
        What `read_particles` reads (STAR, DeepFinder's XML, CSV, SHREC's text), or a copick project.
    labelled
        The specimen or tomogram that they belong to.
    name
        Name of the tomogram in a list of several, or run of a copick project.
    user_id, session_id
        Whose picks of a copick project, where there are several.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If the file is missing or wrong, or a class has no name.
    """
    if not is_copick(path):
        found = read_particles(path, labelled, tomogram=name, only_named=True)
        if not len(found):
            warnings.warn(f"{path}: expected particles of {name}, got none: {_ALL_BACKGROUND}", stacklevel=3)
        return found
    size, names = labelled.label_voxel_size, labelled.class_names
    listed = copick.read_copick_picks(path, run=name, voxel_size=size, user_id=user_id, session_id=session_id)
    if not len(listed):
        warnings.warn(f"{path}, run {name}: expected picks, got none: {_ALL_BACKGROUND}", stacklevel=3)
    return particle_table(listed, names, Path(path))


def with_picks(
    made: AnyLabelled,
    picks: str | Path | None,
    *,
    name: str,
    user_id: str | None = None,
    session_id: str | None = None,
) -> AnyLabelled:
    """Give a specimen or a tomogram the particles of its list, if there is one; see `read_picks`."""
    if picks is None:
        return made
    return replace(made, particles=read_picks(picks, made, name=name, user_id=user_id, session_id=session_id))


def read_particles(
    path: str | Path, specimen: Labelled, *, tomogram: str | None = None, only_named: bool = False
) -> ParticleTable:
    """Read the particles of a specimen or a tomogram from a list.

    Parameters
    ----------
    path
        RELION's `.star`, DeepFinder's `.xml`, a plain `.csv` or `.tsv`, or SHREC's `.txt`. Positions are in voxels of
        the labels, or in Å in a STAR file that says so.
    specimen
        The specimen or tomogram, whose class names give the numbers.
    tomogram
        Which tomogram of a list of several: its name in a STAR file, its index in an XML file. What processing adds to
        names does not matter (`TS_1_10.00Apx` is `TS_1`).
    only_named
        Refuse the particles of a STAR file that names only another tomogram; otherwise they are taken.

    Raises
    ------
    FileFormatError
        If the file is wrong, a class is not in the table, or the list holds other tomograms only.
    """
    path, names = Path(path), specimen.class_names or None
    lists: Mapping[str, ParticleList]
    match path.suffix.lower():
        case ".txt":
            lists = {"": read_particle_locations(path)}
        case ".csv" | ".tsv":
            lists = {"": read_particles_csv(path)}
        case ".xml":
            lists = {str(index): one for index, one in read_object_list(path, class_names=names).items()}
        case ".star":
            depth, height, width = specimen.labels.shape
            size, shape = specimen.label_voxel_size, (depth, height, width)
            lists = read_particles_star(path, voxel_size=size, shape=shape, class_names=names)
        case _:
            raise FileFormatError(f"{path}: expected a list of particles that ends in {', '.join(PARTICLE_LISTS)}")
    if not lists:
        return ParticleTable.empty()
    named = only_named and path.suffix.lower() == ".star" and has_tomogram_names(path)
    return particle_table(lists[_chosen(path, list(lists), tomogram, named)], specimen.class_names, path)


def _chosen(path: Path, names: Sequence[str], tomogram: str | None, named: bool) -> str:
    """Choose a tomogram of a list."""
    found = None if tomogram is None else find_name(tomogram, names)
    if found is not None:
        return found
    if len(names) > 1 or (named and tomogram is not None):
        raise FileFormatError(
            f"{path}: expected particles of tomogram {tomogram}, got those of {', '.join(names)}; set `name` to the "
            "one that is meant"
        )
    return names[0]
