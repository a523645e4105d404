"""Grandmodels: specimens with their labels, instances and particles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_finite, check_ndim, check_positive
from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.formats.shrec import read_class_conversion_table, read_particle_locations

#: The part of z that SHREC 2021's ground truth fills (165 to 345 of 512).
SHREC_Z_RANGE = (165 / 512, 345 / 512)
_SHREC_LABEL_SIZE = (512, 512, 512)
_DENSITIES = ("grandmodel_unbinned.mrc", "grandmodel.mrc")


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


@dataclass(frozen=True, kw_only=True)
class GrandModel:
    """A specimen: its density, and which voxel belongs to which class and particle.

    Parameters
    ----------
    density
        `(z, y, x)`, floating point, positive is denser than the surrounding ice.
    labels
        `(z, y, x)`, uint8, class numbers, 0 is background. May be coarser than the density by a whole factor, the
        binning of the tomograms.
    instances
        `(z, y, x)`, int32, 1-based rows of the particle table, of the labels' shape; may be left out.
    particles
        The particle table.
    voxel_size
        Å, of the density.
    class_names
        Names of the class numbers.
    name
        For messages and records.

    Raises
    ------
    ValueError, FileFormatError
        If shapes do not go together, or the density holds NaN or infinite values.
    """

    density: Tensor
    labels: Tensor
    particles: ParticleTable
    voxel_size: float
    instances: Tensor | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)
    name: str = "specimen"

    def __post_init__(self) -> None:
        check_ndim("density", self.density, "z y x")
        check_positive("voxel_size", self.voxel_size)
        if not self.density.is_floating_point():
            raise ValueError(f"{self.name}: expected a floating-point density, got {self.density.dtype}")
        check_finite(self.density, f"{self.name}: density")
        check_ndim("labels", self.labels, "z y x")
        if 0 in (*self.density.shape, *self.labels.shape):
            raise ValueError(
                f"{self.name}: expected voxels, got a density of {tuple(self.density.shape)} and labels of "
                f"{tuple(self.labels.shape)}"
            )
        bins = [a / b for a, b in zip(self.density.shape, self.labels.shape, strict=True)]
        if len(set(bins)) != 1 or not bins[0].is_integer():
            raise FileFormatError(
                f"{self.name}: expected labels of the density's shape {tuple(self.density.shape)}, or smaller by one "
                f"whole factor, got {tuple(self.labels.shape)}"
            )
        if self.instances is not None and self.instances.shape != self.labels.shape:
            raise FileFormatError(
                f"{self.name}: expected instances of the labels' shape {tuple(self.labels.shape)}, got "
                f"{tuple(self.instances.shape)}"
            )
        if self.labels.dtype != torch.uint8:
            raise ValueError(f"{self.name}: expected uint8 labels, got {self.labels.dtype}")

    @property
    def bin(self) -> int:
        """Voxels of the density, along each axis, to one voxel of the labels."""
        return self.density.shape[-1] // self.labels.shape[-1]

    @property
    def label_voxel_size(self) -> float:
        """Voxel size of the labels, Å."""
        return self.voxel_size * self.bin

    @classmethod
    def from_shrec(
        cls, folder: str | Path, *, z_range: str | tuple[int, int] | None = "auto", voxel_size: float | None = None
    ) -> Self:
        """Read a specimen in SHREC's layout.

        The folder holds `grandmodel_unbinned.mrc` or `grandmodel.mrc` (the first that is there), `class_mask.mrc`,
        and, where known, `occupancy_mask.mrc`, `particle_locations.txt` and `class_conversion_table.txt` (there or in
        the folder above).

        Parameters
        ----------
        folder
            The model's folder.
        z_range
            Which voxels of the *labels* to keep along z, `(first, last + 1)`; `None` keeps all; `"shrec2021"` keeps
            the part that SHREC 2021's ground truth fills, relative 0.322 to 0.674; `"auto"` does so for labels of
            512³ only. Positions are moved along, and the axis of rotation goes through the middle of what is kept: keep
            all where projections are to be compared with measured ones.
        voxel_size
            Å, of the density; by default the header's.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If a file is missing or damaged, or shapes do not go together; the message names the file.
        """
        if voxel_size is not None:
            check_positive("voxel_size", voxel_size)
        folder = Path(folder)
        labels_path = folder / "class_mask.mrc"
        density_path = _first_file(folder, _DENSITIES)
        labels, _ = read_mrc(labels_path)
        keep = _label_range(tuple(labels.shape), z_range, labels_path)
        depth = read_mrc_shape(density_path)[0]
        bin_z, rest = divmod(depth, labels.shape[0])
        if rest or bin_z == 0:
            raise FileFormatError(
                f"{labels_path}: expected labels of the depth of {density_path}, {depth}, or smaller by a whole "
                f"factor, got {labels.shape[0]}"
            )
        density, header_size = read_mrc(density_path, rows=slice(keep.start * bin_z, keep.stop * bin_z))
        size = header_size if voxel_size is None else voxel_size
        if size <= 0:
            raise FileFormatError(f"{density_path}: expected a voxel size in the header, got 0; set `voxel_size` in Å")
        class_names = _class_names(folder)
        return cls(
            density=density.to(torch.float32),
            labels=_as_labels(labels[keep], labels_path),
            instances=_instances(folder, tuple(labels.shape), keep),
            particles=_particles(folder, class_names, keep),
            voxel_size=size,
            class_names=class_names,
            name=str(folder),
        )


class ShrecSpecimens(Sequence[GrandModel]):
    """Specimens in SHREC's layout, read when they are asked for; none is kept in memory.

    Parameters
    ----------
    folders
        One folder a specimen.
    z_range, voxel_size
        As for `GrandModel.from_shrec`.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        *,
        z_range: str | tuple[int, int] | None = "auto",
        voxel_size: float | None = None,
    ) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self._z_range = z_range
        self._voxel_size = voxel_size
        for folder in self.folders:
            _first_file(folder, _DENSITIES)
            _first_file(folder, ("class_mask.mrc",))

    def __len__(self) -> int:
        return len(self.folders)

    @overload
    def __getitem__(self, index: int) -> GrandModel: ...
    @overload
    def __getitem__(self, index: slice) -> ShrecSpecimens: ...
    def __getitem__(self, index: int | slice) -> GrandModel | ShrecSpecimens:
        if isinstance(index, slice):
            return ShrecSpecimens(self.folders[index], z_range=self._z_range, voxel_size=self._voxel_size)
        return GrandModel.from_shrec(self.folders[index], z_range=self._z_range, voxel_size=self._voxel_size)

    def __iter__(self) -> Iterator[GrandModel]:
        return (self[index] for index in range(len(self)))


def _first_file(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: expected a specimen in SHREC's layout with {' or '.join(names)}, found none")


def _label_range(shape: tuple[int, ...], z_range: str | tuple[int, int] | None, path: Path) -> slice:
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


def _as_labels(labels: Tensor, path: Path) -> Tensor:
    low, high = (float(value) for value in torch.aminmax(labels))
    if low < 0 or high > 255 or (labels.is_floating_point() and bool((labels != labels.round()).any())):
        raise FileFormatError(f"{path}: expected whole class numbers from 0 to 255, got values from {low} to {high}")
    return labels.to(torch.uint8)


def _instances(folder: Path, shape: tuple[int, ...], keep: slice) -> Tensor | None:
    path = folder / "occupancy_mask.mrc"
    if not path.is_file():
        return None
    found = read_mrc_shape(path)
    if found != shape:
        raise FileFormatError(f"{path}: expected an occupancy mask of the labels' shape {shape}, got {found}")
    instances, _ = read_mrc(path, rows=keep)
    return instances.to(torch.int32)


def _class_names(folder: Path) -> dict[int, str]:
    for path in (folder / "class_conversion_table.txt", folder.parent / "class_conversion_table.txt"):
        if path.is_file():
            return read_class_conversion_table(path)
    return {}


def _particles(folder: Path, class_names: Mapping[int, str], keep: slice) -> ParticleTable:
    path = folder / "particle_locations.txt"
    if not path.is_file():
        return ParticleTable.empty()
    found = read_particle_locations(path)
    if not found.names:
        return ParticleTable.empty()
    numbers = {name.lower(): number for number, name in class_names.items()}
    unknown = sorted({name for name in found.names if name.lower() not in numbers})
    if unknown:
        raise FileFormatError(
            f"{path}: expected class names of class_conversion_table.txt ({', '.join(class_names.values()) or 'none'})"
            f", got {', '.join(unknown)}"
        )
    return ParticleTable(
        classes=np.array([numbers[name.lower()] for name in found.names], dtype=np.int64),
        positions=found.positions - np.array([keep.start, 0, 0]),
        orientations=found.orientations,
    )
