"""Grandmodels: specimens with their labels, instances and particles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_finite, check_ndim, check_positive
from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.formats.particles import ParticleList, match_names
from faket_aug.formats.shrec import SHREC_2019_CLASSES, find_class_names, read_particle_locations

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


class Labelled(Protocol):
    """What particles are read for: labels `(z, y, x)`, their voxel size in Å, and the names of their classes."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def label_voxel_size(self) -> float: ...
    @property
    def class_names(self) -> Mapping[int, str]: ...


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
    not_particles
        Class numbers of what is labelled, and has rows in the table, but is no particle to be picked: membranes.
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
    not_particles: frozenset[int] = frozenset()
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
        if self.instances is not None and len(self.particles) and int(self.instances.max()) > len(self.particles):
            raise FileFormatError(
                f"{self.name}: expected instances of the {len(self.particles)} rows of the particle table, got "
                f"{int(self.instances.max())}"
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
        cls,
        folder: str | Path,
        *,
        z_range: str | tuple[int, int] | None = "auto",
        voxel_size: float | None = None,
        memory_map: bool = False,
    ) -> Self:
        """Read a specimen in SHREC's layout.

        2020 and 2021: the folder holds `grandmodel_unbinned.mrc` or `grandmodel.mrc` (the first that is there),
        `class_mask.mrc`, and, where known, `occupancy_mask.mrc`, `particle_locations.txt` and
        `class_conversion_table.txt` (there or in the folder above). 2019, told by its file names: `grandmodel_0.mrc`,
        `hitbox_0.mrc` (1-based rows of the table) and `particle_locations_model_0.txt`; labels are those of the hitbox,
        particles have no orientation.

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
        memory_map
            Leave the density (half or single precision) on disk: it is read to be checked, and while it is projected.
            What is sent to a worker is copied: let `ShrecSpecimens` open it there.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If a file is missing or damaged, or shapes do not go together; the message names the file.
        """
        if voxel_size is not None:
            check_positive("voxel_size", voxel_size)
        files = _ShrecFiles.find(Path(folder))
        shape = read_mrc_shape(files.labels)
        keep = label_range(shape, z_range, files.labels)
        depth = read_mrc_shape(files.density)[0]
        bin_z, rest = divmod(depth, shape[0])
        if rest or bin_z == 0:
            raise FileFormatError(
                f"{files.labels}: expected labels of the depth of {files.density}, {depth}, or smaller by a whole "
                f"factor, got {shape[0]}"
            )
        rows = slice(keep.start * bin_z, keep.stop * bin_z)
        density, header_size = read_mrc(files.density, rows=rows, memory_map=memory_map)
        particles = _particles(files, keep)
        return cls(
            density=density if memory_map else density.to(torch.float32),
            labels=_labels(files, particles, keep),
            instances=_instances(files.instances, shape, keep),
            particles=particles,
            voxel_size=choose_voxel_size(voxel_size, header_size, files.density),
            class_names=files.class_names,
            name=str(folder),
        )

    @classmethod
    def from_files(
        cls,
        density: str | Path,
        labels: str | Path,
        *,
        instances: str | Path | None = None,
        particles: ParticleList | None = None,
        class_names: Mapping[int, str] | None = None,
        voxel_size: float | None = None,
        memory_map: bool = False,
    ) -> Self:
        """Read a specimen from single MRC files, `(z, y, x)`.

        Parameters
        ----------
        density, labels, instances
            The files, with the content of the parameters of the same name.
        particles
            Particles in voxels of the labels.
        class_names
            Names of the numbers, which labels and particles have to be among; without, numbers are particles' names.
        voxel_size
            Å, of the density; by default the header's.
        memory_map
            As for `from_shrec`.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If a file is missing or wrong, or labels or particles are not in the table of names.
        """
        names = dict(class_names or {})
        values, header = read_mrc(density, memory_map=memory_map)
        stored, _ = read_mrc(labels)
        return cls(
            density=values if memory_map else values.to(torch.float32),
            labels=as_labels(stored, Path(labels), names),
            instances=None if instances is None else read_mrc(instances)[0].to(torch.int32),
            particles=ParticleTable.empty() if particles is None else particle_table(particles, names, Path(labels)),
            voxel_size=choose_voxel_size(voxel_size, header, Path(density)),
            class_names=names,
            name=str(density),
        )


class ShrecSpecimens(Sequence[GrandModel]):
    """Specimens in SHREC's layout, read when they are asked for; none is kept in memory.

    Parameters
    ----------
    folders
        One folder a specimen.
    z_range, voxel_size, memory_map
        As for `GrandModel.from_shrec`.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        *,
        z_range: str | tuple[int, int] | None = "auto",
        voxel_size: float | None = None,
        memory_map: bool = False,
    ) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self._reading: dict[str, Any] = {"z_range": z_range, "voxel_size": voxel_size, "memory_map": memory_map}
        for folder in self.folders:
            _ShrecFiles.find(folder)

    def __len__(self) -> int:
        return len(self.folders)

    @overload
    def __getitem__(self, index: int) -> GrandModel: ...
    @overload
    def __getitem__(self, index: slice) -> ShrecSpecimens: ...
    def __getitem__(self, index: int | slice) -> GrandModel | ShrecSpecimens:
        if isinstance(index, slice):
            return ShrecSpecimens(self.folders[index], **self._reading)
        return GrandModel.from_shrec(self.folders[index], **self._reading)

    def __iter__(self) -> Iterator[GrandModel]:
        return (self[index] for index in range(len(self)))


def _first_file(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: expected a specimen in SHREC's layout with {' or '.join(names)}, found none")


def label_range(shape: tuple[int, ...], z_range: str | tuple[int, int] | None, path: Path) -> slice:
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


@dataclass(frozen=True)
class _ShrecFiles:
    """The files of a specimen; what may be missing is nothing then. `labels` are the instances in SHREC 2019."""

    density: Path
    labels: Path
    instances: Path | None
    locations: Path | None
    layout: str
    class_names: Mapping[int, str]

    @classmethod
    def find(cls, folder: Path) -> Self:
        for hitbox in sorted(folder.glob("hitbox_*.mrc")):
            number = hitbox.stem.removeprefix("hitbox_")
            density = _first_file(folder, (f"grandmodel_{number}.mrc",))
            locations = _first_file(folder, (f"particle_locations_model_{number}.txt",))
            return cls(density, hitbox, hitbox, locations, "2019", SHREC_2019_CLASSES)
        density, labels = _first_file(folder, _DENSITIES), _first_file(folder, ("class_mask.mrc",))
        instances, locations = folder / "occupancy_mask.mrc", folder / "particle_locations.txt"
        return cls(
            density,
            labels,
            instances if instances.is_file() else None,
            locations if locations.is_file() else None,
            "2021",
            find_class_names(folder),
        )


def _labels(files: _ShrecFiles, particles: ParticleTable, keep: slice) -> Tensor:
    stored, _ = read_mrc(files.labels, rows=keep)
    if files.layout != "2019":
        return as_labels(stored, files.labels, files.class_names)
    if not 0 <= int(stored.min()) <= int(stored.max()) <= len(particles):
        raise FileFormatError(
            f"{files.labels}: expected rows of {files.locations}, 1 to {len(particles)}, got {int(stored.max())}"
        )
    return torch.from_numpy(np.concatenate([[0], particles.classes])).to(torch.uint8)[stored.long()]


def _instances(path: Path | None, shape: tuple[int, ...], keep: slice) -> Tensor | None:
    if path is None:
        return None
    found = read_mrc_shape(path)
    if found != shape:
        raise FileFormatError(f"{path}: expected an occupancy mask of the labels' shape {shape}, got {found}")
    instances, _ = read_mrc(path, rows=keep)
    return instances.to(torch.int32)


def _particles(files: _ShrecFiles, keep: slice) -> ParticleTable:
    if files.locations is None:
        return ParticleTable.empty()
    found = read_particle_locations(files.locations, layout=files.layout)
    return particle_table(found, files.class_names, files.locations, first=keep.start)


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
