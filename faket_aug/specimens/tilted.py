"""Specimens that another program has already turned into tilts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_finite, check_ndim, check_positive
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.labelling import (
    Labelling,
    choose_name,
    read_class_names,
    read_labels,
    read_picks,
)
from faket_aug.specimens.particles import ParticleTable
from faket_aug.tilts.series import TiltSeries

#: Degrees that angles may differ by and still be the same.
ANGLE_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class TiltedSpecimen:
    """A specimen that is known by its tilts: simulated elsewhere, with labels.

    The simulator takes these tilts where it would project a `GrandModel`.

    Parameters
    ----------
    tilts
        `(tilt, y, x)`, floating point, **dark** particles, as a microscope's; any unit.
    tilt_angles
        `(tilt,)`, degrees, right-handed about +y; those of the simulator.
    noisy
        Whether the tilts have noise already. The simulator adds some to those that have none, and none to these.
    labels
        `(z, y, x)`, uint8, class numbers, 0 is background. The tilts are as wide and high as they, or finer by a whole
        factor, the binning of the tomogram; the axis of rotation goes through their middle.
    instances
        `(z, y, x)`, int32, 1-based rows of the particle table; may be left out.
    particles
        The particle table.
    voxel_size
        Å, of the tilts' pixels.
    class_names
        Names of the class numbers.
    not_particles
        See `GrandModel`.
    name
        For messages and records.

    Raises
    ------
    ValueError, FileFormatError
        If shapes do not go together, or a value is not finite.
    """

    tilts: Tensor
    tilt_angles: npt.NDArray[np.float64]
    labels: Tensor
    particles: ParticleTable
    voxel_size: float
    noisy: bool = False
    instances: Tensor | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)
    not_particles: frozenset[int] = frozenset()
    name: str = "specimen"

    def __post_init__(self) -> None:
        check_ndim("tilts", self.tilts, "tilt y x")
        check_ndim("labels", self.labels, "z y x")
        check_positive("voxel_size", self.voxel_size)
        check_finite(self.tilts, f"{self.name}: tilts")
        object.__setattr__(self, "tilt_angles", as_tilt_angles(self.tilt_angles, count=len(self.tilts)))
        if not self.tilts.is_floating_point() or self.labels.dtype != torch.uint8:
            raise ValueError(
                f"{self.name}: expected floating-point tilts and uint8 labels, got {self.tilts.dtype} and "
                f"{self.labels.dtype}"
            )
        if 0 in (*self.tilts.shape, *self.labels.shape) or len(self._bins) != 1 or self._bins & {0}:
            raise FileFormatError(
                f"{self.name}: expected tilts as high and wide as the labels of {tuple(self.labels.shape)} (z, y, x), "
                f"or larger by one whole factor, got {tuple(self.tilts.shape)} (tilt, y, x)"
            )
        if self.instances is not None and self.instances.shape != self.labels.shape:
            raise FileFormatError(
                f"{self.name}: expected instances of the labels' shape {tuple(self.labels.shape)}, got "
                f"{tuple(self.instances.shape)}"
            )

    @property
    def _bins(self) -> set[int]:
        """Pixels to a voxel along y and x: one number if all is well, 0 where it is no whole one."""
        sides = zip(self.tilts.shape[1:], self.labels.shape[1:], strict=True)
        return {0 if pixels % voxels else pixels // voxels for pixels, voxels in sides}

    @property
    def bin(self) -> int:
        """Pixels of the tilts, along each axis, to one voxel of the labels."""
        return self.tilts.shape[-1] // self.labels.shape[-1]

    @property
    def label_voxel_size(self) -> float:
        """Voxel size of the labels, Å."""
        return self.voxel_size * self.bin

    def tilts_at(self, tilt_angles: Angles) -> Tensor:
        """Return the tilts, ordered as the angles that a simulator has.

        Raises
        ------
        ValueError
            If the angles are not the specimen's.
        """
        wanted = as_tilt_angles(tilt_angles)
        own, asked = np.argsort(self.tilt_angles, kind="stable"), np.argsort(wanted, kind="stable")
        same = len(own) == len(asked) and np.allclose(
            self.tilt_angles[own], wanted[asked], rtol=0, atol=ANGLE_TOLERANCE
        )
        if not same:
            raise ValueError(
                f"expected tilts at the simulator's angles, {_spoken(wanted)}, got {_spoken(self.tilt_angles)}; set "
                "`tilt_angles` of the simulator to the specimen's"
            )
        order = np.empty(len(own), dtype=np.int64)
        order[asked] = own
        return self.tilts[torch.from_numpy(order)]

    @classmethod
    def read(
        cls,
        tilts: str | Path,
        *,
        labels: str | Path,
        picks: str | Path | None = None,
        noisy: bool = False,
        dark: bool = True,
        tilt_angles: str | Path | Angles | None = None,
        class_names: Mapping[int, str] | None = None,
        voxel_size: float | None = None,
        name: str | None = None,
    ) -> Self:
        """Read tilts with their labels and, where there are any, particles.

        Parameters
        ----------
        tilts, tilt_angles, voxel_size
            As for `TiltSeries.read` (`path`, `tilt_angles`, `pixel_size`).
        labels
            An MRC file, or a copick project.
        picks
            STAR, DeepFinder's XML, CSV, SHREC's text, or a copick project; without, patches are placed at random.
        noisy
            Whether the tilts have noise already.
        dark
            Whether particles are dark in the tilts. If not, these are negated.
        class_names
            Names of the class numbers; by default the copick project's, or those of a `class_conversion_table.txt`
            beside labels or picks, or in the folder above. Without any, classes are named by numbers.
        name
            Which tomogram, where a list holds several, or the run of a copick project; by default the stack's name.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If a file is missing or wrong, or the files do not go together.
        """
        series = TiltSeries.read(tilts, tilt_angles=tilt_angles, pixel_size=voxel_size)
        if series.pixel_size <= 0:
            raise FileFormatError(f"{series.name}: expected a pixel size in the header, got 0; set `voxel_size` in Å")
        files = (labels, picks)
        names = read_class_names(files) if class_names is None else dict(class_names)
        name = choose_name(files, name, Path(series.name).stem)
        volume = read_labels(labels, name=name, class_names=names)
        made = cls(
            tilts=series.tilts if dark else -series.tilts,
            tilt_angles=series.tilt_angles,
            noisy=noisy,
            labels=volume,
            particles=ParticleTable.empty(),
            voxel_size=series.pixel_size,
            class_names=names,
            name=series.name,
        )
        if picks is None:
            return made
        labelling = Labelling(labels=volume, label_voxel_size=made.label_voxel_size, class_names=names)
        return replace(made, particles=read_picks(picks, labelling, name=name))


#: What a simulator makes a tomogram of.
Specimen = GrandModel | TiltedSpecimen


def _spoken(angles: npt.NDArray[np.float64]) -> str:
    return f"{len(angles)} from {angles.min():g}° to {angles.max():g}°"
