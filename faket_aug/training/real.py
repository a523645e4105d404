"""Real labelled tomograms of a training: their picks of the classes that are learned."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from faket_aug._checks import FileFormatError
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.formats.found_particles import OtherTomogramsError, find_names, find_particles, find_tomograms
from faket_aug.formats.mrc import read_mrc
from faket_aug.formats.particles import ParticleList, match_names
from faket_aug.picking.flavours import read_flavours
from faket_aug.specimens.particles import ParticleTable
from faket_aug.training.classes import TaughtClasses

#: What readers call particles whose file names no class.
_NAMELESS = ("", "particle")


def read_real(
    tomogram: str | Path, picks: str | Path, classes: TaughtClasses, *, flavours: Sequence[str] = ()
) -> LabelledTomogram:
    """Read a real tomogram with its picks of the classes that are learned.

    Parameters
    ----------
    tomogram
        An MRC file, dark particles, with its voxel size in the header.
    picks
        A list of any format that is read. Picks of other classes are left out, with a warning. If one class is learned
        and the list has no names of classes, all picks are of it.
    classes
        The classes that are learned.
    flavours
        That the network sees: the file is of the first one, and the others are beside it, see `find_flavours`.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If a file is missing or wrong, or there are no picks of these classes; the message names the file.
    """
    path = Path(tomogram)
    if not path.is_file():
        raise FileNotFoundError(f"expected a real tomogram, found none at {path}")
    volume, size = read_mrc(path)
    if not size > 0:
        raise FileFormatError(f"{path}: expected a voxel size in the header, got 0; write it with one")
    volume = volume.float()
    depth, height, width = volume.shape
    shape, names = (depth, height, width), find_names(picks) or None
    try:
        found = find_particles(picks, tomogram=path.stem, voxel_size=size, shape=shape, class_names=names)
    except OtherTomogramsError as error:
        raise FileFormatError(
            f"{picks}: expected picks of {path.stem}, as the file {path} is named, got those of "
            f"{', '.join(find_tomograms(picks))}; give a list of this tomogram, or name the file as in the list"
        ) from error
    listed = _named(found.particles, classes)
    numbers = match_names(listed.names, classes.names)
    rows = np.array([row for row, name in enumerate(listed.names) if name in numbers], dtype=np.int64)
    others = sorted(set(listed.names) - set(numbers))
    if not len(rows):
        raise FileFormatError(
            f"{picks}: expected picks of {', '.join(classes.names.values())}, got "
            f"{'those of ' + ', '.join(others) if others else 'none'}; name them so, or set `classes`"
        )
    if others:
        warnings.warn(f"{picks}: picks of {', '.join(others)} are left out, which are not learned", stacklevel=2)
    table = ParticleTable(
        classes=np.array([numbers[listed.names[row]] for row in rows], dtype=np.int64),
        positions=listed.positions[rows],
        orientations=listed.orientations[rows],
    )
    return LabelledTomogram(
        tomogram=volume,
        flavours=read_flavours(path, volume, flavours),
        labels=torch.zeros(volume.shape, dtype=torch.uint8, device="cpu"),
        particles=table,
        voxel_size=size,
        class_names={0: "background", **classes.names},
        name=f"{path} with {picks}",
    )


def _named(listed: ParticleList, classes: TaughtClasses) -> ParticleList:
    """Give picks that have a number or nothing for a name the name of the only class."""
    names = set(listed.names)
    if len(classes.names) > 1 or len(names) != 1 or not (min(names) in _NAMELESS or min(names).isdigit()):
        return listed
    (only,) = classes.names.values()
    return ParticleList((only,) * len(listed.names), listed.positions, listed.orientations)
