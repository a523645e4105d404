"""The labelled record: labels, instances and particles, which specimens and tomograms share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import FileFormatError, check_ndim, check_positive
from faket_aug.formats.particles import ParticleList


@dataclass(frozen=True, kw_only=True)
class ParticleTable:
    """The particles of a specimen, one in each row; instances are the rows' numbers, counted from 1.

    Parameters
    ----------
    classes
        `(n,)`, class numbers; 0 is never used.
    positions
        `(n, 3)`, **(z, y, x)** in voxels of the labels, 0-based, a voxel's centre at its integer index.
    orientations
        `(n, 3, 3)`, rotation matrices on column vectors (x, y, z), template to specimen; NaN without orientation.
    """

    classes: IntArray
    positions: FloatArray
    orientations: FloatArray

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


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labels with their instances, particles and class names: the part that specimens and tomograms share.

    Parameters
    ----------
    labels
        `(z, y, x)`, uint8, class numbers, 0 is background.
    instances
        `(z, y, x)`, int32, rows of the particle table, counted from 1; 0 is background. It may be left out.
    particles
        The particle table.
    voxel_size
        Å.
    class_names
        Names of the class numbers.
    not_particles
        Class numbers that a picker should not learn, such as membranes: they are labelled, and have rows in the
        particle table.
    name
        For messages and records.

    Raises
    ------
    ValueError, FileFormatError
        If labels, instances and particle table do not fit together.
    """

    labels: Tensor
    particles: ParticleTable
    voxel_size: float
    instances: Tensor | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)
    not_particles: frozenset[int] = frozenset()
    name: str = "specimen"

    def __post_init__(self) -> None:
        check_ndim("labels", self.labels, "z y x")
        check_positive("voxel_size", self.voxel_size)
        if self.labels.dtype != torch.uint8:
            raise ValueError(f"{self.name}: expected uint8 labels, got {self.labels.dtype}")
        if 0 in self.labels.shape:
            raise ValueError(f"{self.name}: expected labels with voxels, got the shape {tuple(self.labels.shape)}")
        if self.instances is None:
            return
        if self.instances.shape != self.labels.shape:
            raise FileFormatError(
                f"{self.name}: expected instances of the labels' shape {tuple(self.labels.shape)}, got "
                f"{tuple(self.instances.shape)}"
            )
        if len(self.particles) and int(self.instances.max()) > len(self.particles):
            raise FileFormatError(
                f"{self.name}: expected instances of the {len(self.particles)} rows of the particle table, got "
                f"{int(self.instances.max())}"
            )

    @property
    def label_voxel_size(self) -> float:
        """Voxel size of the labels, Å."""
        return self.voxel_size

    @property
    def all_class_names(self) -> dict[int, str]:
        """Names of all classes but the background; a class without a name is called after its number."""
        numbers = np.union1d(torch.unique(self.labels).cpu().numpy(), self.particles.classes)
        unnamed = [int(number) for number in numbers if number not in self.class_names]
        names = {int(n): name for n, name in self.class_names.items()} | {n: f"class_{n}" for n in unnamed}
        return {number: name for number, name in names.items() if number > 0}

    def with_numbers(self, numbers: IntArray, class_names: Mapping[int, str]) -> Self:
        """Return it with other class numbers, in the labels and in the particle table.

        Parameters
        ----------
        numbers
            `(256,)`, the new number of each.
        class_names
            Names of the new numbers.
        """
        table = torch.from_numpy(numbers).to(self.labels.device, torch.uint8)
        return replace(
            self,
            labels=table[self.labels.long()],
            particles=replace(self.particles, classes=numbers[self.particles.classes]),
            class_names=dict(class_names),
            not_particles=frozenset(numbers[[*self.not_particles]].tolist()),
        )

    def listed(self, *, picked: bool = False) -> ParticleList:
        """List the particles by the names of their classes.

        Parameters
        ----------
        picked
            Leave out the rows of classes that are `not_particles`.
        """
        names, table = self.all_class_names, self.particles
        rows = [row for row, number in enumerate(table.classes) if not picked or number not in self.not_particles]
        return ParticleList(
            tuple(names[int(table.classes[row])] for row in rows), table.positions[rows], table.orientations[rows]
        )
