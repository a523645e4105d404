"""Specimens in SHREC's layout: finding and reading their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError
from faket_aug.formats._text import find_name
from faket_aug.formats.deepfinder import read_object_list
from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.formats.shrec import SHREC_2019_CLASSES, find_class_names, read_particle_locations
from faket_aug.formats.star import read_particles_star
from faket_aug.specimens.labelling import as_labels, particle_table
from faket_aug.specimens.particles import ParticleTable

#: The part of z that the ground truth of SHREC 2021 fills (165 to 345 of 512).
SHREC_Z_RANGE = (165 / 512, 345 / 512)


_SHREC_LABEL_SIZE = (512, 512, 512)


_DENSITIES = ("grandmodel_unbinned.mrc", "grandmodel.mrc")
_LOCATIONS = "particle_locations.txt"
#: What a simulated tomogram may have in its place, see `SimulatedTomogram.save`.
_OTHER_LISTS = ("particles_relion5.star", "particles_relion4.star", "particles_relion3.star", "object_list.xml")


def _first_file(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: expected a specimen in SHREC's layout with {' or '.join(names)}, found none")


def label_range(shape: tuple[int, ...], z_range: str | tuple[int, int] | None, path: Path) -> slice:
    """Find the sections of labels that are kept along z; see `GrandModel.from_shrec`."""
    depth = shape[0]
    if z_range == "auto":
        z_range = "shrec2021" if shape == _SHREC_LABEL_SIZE else None
    if z_range is None:
        return slice(0, depth)
    if z_range == "shrec2021":
        return slice(round(SHREC_Z_RANGE[0] * depth), round(SHREC_Z_RANGE[1] * depth))
    if isinstance(z_range, str):
        raise ValueError(f'expected `z_range` to be "auto", "shrec2021", a pair or None, got {z_range!r}')
    first, stop = z_range
    if not 0 <= first < stop <= depth:
        raise ValueError(f"{path}: expected `z_range` within its depth of {depth}, got {z_range}")
    return slice(first, stop)


@dataclass(frozen=True)
class ShrecFiles:
    """The files of a specimen; a missing one is None. In SHREC 2019 `labels` holds the instances."""

    density: Path
    labels: Path
    instances: Path | None
    locations: Path | None
    layout: str
    class_names: Mapping[int, str]

    @property
    def other_list(self) -> Path | None:
        """A list of the particles for another program."""
        paths = (self.labels.parent / name for name in _OTHER_LISTS)
        return next((path for path in paths if path.is_file()), None)

    @classmethod
    def find(cls, folder: Path) -> Self:
        """Find the files of a folder.

        Raises
        ------
        FileNotFoundError
            If there is no density, or no labels.
        """
        for hitbox in sorted(folder.glob("hitbox_*.mrc")):
            number = hitbox.stem.removeprefix("hitbox_")
            density = _first_file(folder, (f"grandmodel_{number}.mrc",))
            locations = _first_file(folder, (f"particle_locations_model_{number}.txt",))
            return cls(density, hitbox, hitbox, locations, "2019", SHREC_2019_CLASSES)
        density, labels = _first_file(folder, _DENSITIES), _first_file(folder, ("class_mask.mrc",))
        instances, locations = folder / "occupancy_mask.mrc", folder / _LOCATIONS
        return cls(
            density,
            labels,
            instances if instances.is_file() else None,
            locations if locations.is_file() else None,
            "2021",
            find_class_names(folder),
        )


def shrec_labels(files: ShrecFiles, particles: ParticleTable, keep: slice) -> Tensor:
    """Read the classes `(z, y, x)`, uint8, of the sections to keep."""
    stored, _ = read_mrc(files.labels, rows=keep)
    if files.layout != "2019":
        return as_labels(stored, files.labels, files.class_names)
    if not 0 <= int(stored.min()) <= int(stored.max()) <= len(particles):
        raise FileFormatError(
            f"{files.labels}: expected rows of {files.locations}, 1 to {len(particles)}, got {int(stored.max())}"
        )
    return torch.from_numpy(np.concatenate([[0], particles.classes])).to(torch.uint8)[stored.long()]


def shrec_instances(path: Path | None, shape: tuple[int, ...], keep: slice) -> Tensor | None:
    """Read the instances `(z, y, x)`, int32, of the sections to keep, of labels of this shape; None without a file."""
    if path is None:
        return None
    found = read_mrc_shape(path)
    if found != shape:
        raise FileFormatError(f"{path}: expected an occupancy mask of the labels' shape {shape}, got {found}")
    instances, _ = read_mrc(path, rows=keep)
    return instances.to(torch.int32)


def shrec_particles(files: ShrecFiles, keep: slice, shape: tuple[int, int, int]) -> ParticleTable:
    """Read the particles of labels of a shape, with positions within the sections to keep; none without a list."""
    if files.locations is not None:
        found = read_particle_locations(files.locations, layout=files.layout)
        return particle_table(found, files.class_names, files.locations, first=keep.start)
    path = files.other_list
    if path is None:
        return ParticleTable.empty()
    _, voxel_size = read_mrc(files.labels, rows=slice(0, 1))
    names = files.class_names or None
    if path.suffix == ".xml":
        lists = {str(index): one for index, one in read_object_list(path, class_names=names).items()}
    else:
        lists = read_particles_star(path, voxel_size=voxel_size or None, shape=shape, class_names=names)
    if not lists:
        # A tomogram without particles has a list without rows.
        return ParticleTable.empty()
    name = next(iter(lists)) if len(lists) == 1 else find_name(path.parent.name, lists)
    if name is None:
        raise FileFormatError(
            f"{path}: expected particles of {path.parent.name}, got those of {', '.join(lists)}; write them "
            f"as {_LOCATIONS}"
        )
    return particle_table(lists[name], files.class_names, path, first=keep.start)


def matching_instances(instances: Tensor | None, files: ShrecFiles, particles: ParticleTable) -> Tensor | None:
    """Leave out instances whose rows another program's list may lack: it has no membranes."""
    other = files.locations is None and files.other_list is not None
    if instances is None or not other or int(instances.max()) == len(particles):
        return instances
    return None
