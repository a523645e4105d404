"""The labelled record: labels, instances and particles, which specimens and tomograms share."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import FileFormatError, check_ndim, check_positive, check_same_shape, check_tensor
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
        for name in ("classes", "positions", "orientations"):
            # Lists and tensors mean one thing only.
            if not isinstance(getattr(self, name), np.ndarray):
                object.__setattr__(self, name, np.asarray(getattr(self, name)))
        count = len(self.classes)
        shapes = (self.classes.shape, self.positions.shape, self.orientations.shape)
        if shapes != ((count,), (count, 3), (count, 3, 3)):
            raise ValueError(f"expected particles of shapes (n,), (n, 3) and (n, 3, 3), got {shapes}")
        if not np.issubdtype(self.classes.dtype, np.integer) or (count and self.classes.min() < 0):
            raise ValueError(
                f"expected `classes` of particles as whole numbers of 0 or more, got {self.classes.dtype} from "
                f"{self.classes.min() if count else 0}"
            )

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
        if not isinstance(self.particles, ParticleTable):
            raise TypeError(
                f"{self.name}: expected `particles` as a `ParticleTable`, got {type(self.particles).__name__}; without "
                "particles give `ParticleTable.empty()`"
            )
        if self.instances is None:
            return
        check_tensor("instances", self.instances)
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

    def _check_contents(self) -> None:
        """Refuse positions that cannot be; warn of classes without a name."""
        self._check_positions()
        named = {int(number) for number in self.class_names} - {0}
        if not named:
            return
        found = {"labels": _numbers(self.labels, named), "particles": set(self.particles.classes.tolist()) - {0}}
        unnamed = {what: sorted(numbers - named) for what, numbers in found.items()}
        if any(unnamed.values()):
            listed = " and ".join(f"{what} of class {_listed(n)}" for what, n in unnamed.items() if n)
            table = ", ".join(f"{number} {self.class_names[number]}" for number in sorted(named))
            warnings.warn(
                f"{self.name}: expected classes of `class_names` ({table}), got {listed} without a name; add them to "
                "`class_names`, or leave them out",
                stacklevel=5,
            )

    def _check_finite_positions(self) -> None:
        finite = np.isfinite(self.particles.positions).all(axis=1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            raise FileFormatError(
                f"{self.name}: expected finite positions of particles, got {int((~finite).sum())} with NaN or infinite "
                f"ones, the first in row {row + 1}; leave these particles out"
            )

    def _check_positions(self) -> None:
        self._check_finite_positions()
        positions, shape = self.particles.positions, np.array(self.labels.shape)
        # Sections that were left out may hold particles: as far away as the specimen is large.
        far = ((positions < -shape.max()) | (positions > shape + shape.max())).any(axis=1)
        if far.any():
            row = int(np.flatnonzero(far)[0])
            raise FileFormatError(
                f"{self.name}: expected particles within {tuple(shape.tolist())} voxels (z, y, x), got "
                f"{int(far.sum())} far outside, the first in row {row + 1} at "
                f"{np.round(positions[row], 1).tolist()}; look at voxel size, order and origin"
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


def check_companions(
    halves: Sequence[Tensor] | None, clean: Tensor | None, flavours: Mapping[str, Tensor], tomogram: Tensor
) -> None:
    """Raise a `ValueError` unless what goes with a tomogram, where it is given, has the tomogram's shape."""
    if halves is not None and len(halves) != 2:
        raise ValueError(f"expected two `halves` of a tomogram, got {len(halves)}")
    for name, one in [*(("halves", half) for half in halves or ()), ("clean", clean), *flavours.items()]:
        if one is not None:
            check_same_shape(name, one.shape, "tomogram", tomogram.shape)


def _numbers(labels: Tensor, named: set[int]) -> set[int]:
    """Find which class numbers labels hold; those within `named` may be missing."""
    high = int(labels.max())
    if set(range(1, high)) <= named:
        return {high} - {0}
    return set(torch.bincount(labels.flatten()).nonzero()[:, 0].tolist()) - {0}


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in numbers)
