"""The particle table of a specimen, and what readers of specimens share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError
from faket_aug.formats.particles import ParticleList, match_names


@dataclass(frozen=True, kw_only=True)
class ParticleTable:
    """Particles of a specimen; the instance volume counts its rows from 1.

    Parameters
    ----------
    classes
        `(n,)`, class numbers; 0 is never used.
    positions
        `(n, 3)`, **(z, y, x)** in voxels of the labels, 0-based, a voxel's centre at its integer index.
    orientations
        `(n, 3, 3)`, rotation matrices on column vectors (x, y, z), template to specimen; NaN without orientation.
    """

    classes: npt.NDArray[np.int64]
    positions: npt.NDArray[np.float64]
    orientations: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.classes)
        shapes = (self.classes.shape, self.positions.shape, self.orientations.shape)
        if shapes != ((count,), (count, 3), (count, 3, 3)):
            raise ValueError(f"expected particles of shapes (n,), (n, 3) and (n, 3, 3), got {shapes}")

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def empty(cls) -> Self:
        """Make a table without particles."""
        return cls(classes=np.zeros(0, np.int64), positions=np.zeros((0, 3)), orientations=np.zeros((0, 3, 3)))


class Labelled(Protocol):
    """What particles are read for: labels `(z, y, x)`, their voxel size in Å, and the names of their classes."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def label_voxel_size(self) -> float: ...
    @property
    def class_names(self) -> Mapping[int, str]: ...


def choose_voxel_size(given: float | None, header: float, path: Path) -> float:
    """Take the voxel size that is given, else the header's; ask for one where there is none."""
    size = header if given is None else given
    if size <= 0:
        raise FileFormatError(f"{path}: expected a voxel size in the header, got 0; set `voxel_size` in Å")
    return size


def as_labels(labels: Tensor, path: Path, class_names: Mapping[int, str]) -> Tensor:
    """Turn what a file holds into labels, uint8; each has to be in the table of class names, if there is one."""
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
    """Turn the class names of a list into their numbers, whatever their case; `first` voxels of z were left out.

    Where there is no table of names, names that are numbers stand for themselves.
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
