"""Specimens whose tilts another program has simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError, check_finite, check_ndim
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.labelling import choose_name, read_class_names, read_labels, with_picks
from faket_aug.specimens.particles import Labelled, ParticleTable
from faket_aug.tilts.series import TiltSeries

#: Degrees. Angles that differ by less are the same.
ANGLE_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class TiltedSpecimen(Labelled):
    """A specimen whose tilts another program has simulated, with its labels.

    The simulator takes these tilts in place of the projections of a `GrandModel`.

    Parameters
    ----------
    tilts
        `(tilt, y, x)`, floating point, **dark** particles, as a microscope's; any unit.
    tilt_angles
        `(tilt,)`, degrees, right-handed about +y; the same as the simulator's.
    noisy
        Whether the tilts contain noise already. The simulator adds noise only to tilts without noise.
    labels, instances
        As of `Labelled`. The tilts are as wide and high as the labels, or finer by a whole factor, the binning of the
        tomogram; the axis of rotation goes through their middle.
    voxel_size
        Å, of the tilts' pixels.
    particles, class_names, not_particles, name
        As of `Labelled`.

    Raises
    ------
    ValueError, FileFormatError
        If shapes do not fit together, or a value is not finite.
    """

    tilts: Tensor
    tilt_angles: FloatArray
    noisy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ndim("tilts", self.tilts, "tilt y x")
        check_finite(self.tilts, f"{self.name}: tilts")
        object.__setattr__(self, "tilt_angles", as_tilt_angles(self.tilt_angles, count=len(self.tilts)))
        if not self.tilts.is_floating_point():
            raise ValueError(f"{self.name}: expected floating-point tilts, got {self.tilts.dtype}")
        if 0 in self.tilts.shape or len(self._bins) != 1 or self._bins & {0}:
            raise FileFormatError(
                f"{self.name}: expected tilts as high and wide as the labels of {tuple(self.labels.shape)} (z, y, x), "
                f"or larger by one whole factor, got {tuple(self.tilts.shape)} (tilt, y, x)"
            )
        self._check_contents()

    @property
    def _bins(self) -> set[int]:
        """Pixels per voxel along y and x: one number if the shapes fit, 0 where it is not a whole one."""
        sides = zip(self.tilts.shape[1:], self.labels.shape[1:], strict=True)
        return {0 if pixels % voxels else pixels // voxels for pixels, voxels in sides}

    @property
    def bin(self) -> int:
        """Pixels of the tilts, along each axis, per voxel of the labels."""
        return self.tilts.shape[-1] // self.labels.shape[-1]

    @property
    def label_voxel_size(self) -> float:
        """Voxel size of the labels, Å."""
        return self.voxel_size * self.bin

    def tilts_at(self, tilt_angles: Angles) -> Tensor:
        """Return the tilts in the order of a simulator's angles.

        Raises
        ------
        ValueError
            If the angles differ from the specimen's.
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
            STAR, DeepFinder's XML, CSV, SHREC's text, or a copick project. Without it, patches are placed at random.
        noisy
            Whether the tilts contain noise already.
        dark
            Whether particles are dark in the tilts. If not, the tilts are negated.
        class_names
            Names of the class numbers. By default those of the copick project, or of a `class_conversion_table.txt`
            beside labels or picks or in the folder above. Without any names, the numbers are used.
        name
            Name of the tomogram in a list of several, or run of a copick project; by default the name of the stack.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If a file is missing or wrong, or the files do not fit together.
        """
        series = TiltSeries.read(tilts, tilt_angles=tilt_angles, pixel_size=voxel_size)
        if series.pixel_size <= 0:
            raise FileFormatError(f"{series.name}: expected a pixel size in the header, got 0; set `voxel_size` in Å")
        files = (labels, picks)
        names = read_class_names(files) if class_names is None else dict(class_names)
        name = choose_name(files, name, Path(series.name).stem)
        made = cls(
            tilts=series.tilts if dark else -series.tilts,
            tilt_angles=series.tilt_angles,
            noisy=noisy,
            labels=read_labels(labels, name=name, class_names=names),
            particles=ParticleTable.empty(),
            voxel_size=series.pixel_size,
            class_names=names,
            name=series.name,
        )
        return with_picks(made, picks, name=name)


#: A simulator makes a tomogram of one of these.
Specimen = GrandModel | TiltedSpecimen


def _spoken(angles: FloatArray) -> str:
    return f"{len(angles)} from {angles.min():g}° to {angles.max():g}°"
