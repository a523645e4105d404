"""Grandmodels: specimens with their labels, instances and particles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_finite, check_ndim, check_positive
from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.formats.particles import ParticleList
from faket_aug.specimens.labelling import as_labels, choose_voxel_size, particle_table
from faket_aug.specimens.particles import Labelled, ParticleTable
from faket_aug.specimens.shrec import (
    ShrecFiles,
    label_range,
    matching_instances,
    shrec_instances,
    shrec_labels,
    shrec_particles,
)


@dataclass(frozen=True, kw_only=True)
class GrandModel(Labelled):
    """A specimen: its density, and the class and the particle that each voxel belongs to.

    Parameters
    ----------
    density
        `(z, y, x)`, floating point, positive is denser than the surrounding ice.
    labels, instances
        As of `Labelled`. They may be coarser than the density by a whole factor, the binning of the tomograms.
    voxel_size
        Å, of the density.
    particles, class_names, not_particles, name
        As of `Labelled`.

    Raises
    ------
    ValueError, FileFormatError
        If shapes do not fit together, or the density holds NaN or infinite values.
    """

    density: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ndim("density", self.density, "z y x")
        if not self.density.is_floating_point():
            raise ValueError(f"{self.name}: expected a floating-point density, got {self.density.dtype}")
        if 0 in self.density.shape:
            raise ValueError(f"{self.name}: expected a density with voxels, got the shape {tuple(self.density.shape)}")
        check_finite(self.density, f"{self.name}: density")
        bins = [a / b for a, b in zip(self.density.shape, self.labels.shape, strict=True)]
        if len(set(bins)) != 1 or not bins[0].is_integer():
            raise FileFormatError(
                f"{self.name}: expected labels of the density's shape {tuple(self.density.shape)}, or smaller by one "
                f"whole factor, got {tuple(self.labels.shape)}"
            )
        self._check_contents()

    @property
    def bin(self) -> int:
        """Voxels of the density, along each axis, per voxel of the labels."""
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

        SHREC 2020 and 2021: the folder holds `grandmodel_unbinned.mrc` or, without it, `grandmodel.mrc`; it holds
        `class_mask.mrc` and may hold `occupancy_mask.mrc`, `particle_locations.txt` (or, without it, the list that a
        simulated tomogram was saved with) and `class_conversion_table.txt` (there or in the folder above). SHREC 2019,
        recognised by the names of its files: `grandmodel_0.mrc`, `hitbox_0.mrc` (rows of the table, counted from 1) and
        `particle_locations_model_0.txt`. Its labels are made from the hitbox, and its particles have no orientation.

        Parameters
        ----------
        folder
            The model's folder.
        z_range
            Sections of the *labels* to keep along z, `(first, last + 1)`. `None` keeps all. `"shrec2021"` keeps the
            part that the ground truth of SHREC 2021 fills, 0.322 to 0.674 of z. `"auto"` does so only for labels of
            512³. Positions are shifted accordingly, and the axis of rotation goes through the middle of the kept part:
            keep all sections to compare projections with measured tilts.
        voxel_size
            Å, of the density; by default the header's.
        memory_map
            Leave the density (half or single precision) on disk. It is read when it is checked and while it is
            projected. A specimen that is sent to a worker is copied as a whole: use `ShrecSpecimens`, which opens the
            file there.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If a file is missing or damaged, or shapes do not fit together; the message names the file.
        """
        if voxel_size is not None:
            check_positive("voxel_size", voxel_size)
        files = ShrecFiles.find(Path(folder))
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
        particles = shrec_particles(files, keep, shape)
        return cls(
            density=density if memory_map else density.to(torch.float32),
            labels=shrec_labels(files, particles, keep),
            instances=matching_instances(shrec_instances(files.instances, shape, keep), files, particles),
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
            The files; their contents are those of the parameters of `GrandModel` with the same names.
        particles
            The particles; positions in voxels of the labels.
        class_names
            Names of the class numbers. All labels and particles must be among them. Without it, the names of particles
            are their class numbers.
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
