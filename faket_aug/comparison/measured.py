"""Tomograms of measured tilt-series, with the labels of the specimens that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faket_aug._checks import FileFormatError
from faket_aug._settings import setting_of
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.formats.mrc import read_mrc_shape
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.particles import ParticleTable
from faket_aug.specimens.shrec import label_range
from faket_aug.tilts.series import TiltSeries
from faket_aug.tomography.reconstruction import reconstruct

#: Which sections are kept, where nothing is said: as the library has it.
Z_RANGE = setting_of(GrandModel.from_shrec, "z_range").default


class MeasuredTomograms(Sequence[LabelledTomogram]):
    """Tomograms of the target's own tilt-series with the specimens' labels; each is reconstructed when asked for.

    Parameters
    ----------
    folders
        In SHREC's layout, with `projections.mrc`.
    filter
        Of the reconstruction.
    z_range
        As for `GrandModel.from_shrec`.
    """

    def __init__(self, folders: Sequence[str], *, filter: str, z_range: str | tuple[int, int] | None) -> None:
        self.folders, self.filter, self.z_range = tuple(folders), filter, z_range
        self._made: dict[int, LabelledTomogram] = {}

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: Any) -> Any:
        if index not in self._made:
            self._made[index] = measured_tomogram(self.folders[index], filter=self.filter, z_range=self.z_range)
        return self._made[index]


def measured_tomogram(
    folder: str | Path, *, filter: str, z_range: str | tuple[int, int] | None = Z_RANGE
) -> LabelledTomogram:
    """Reconstruct the tilt-series of a folder in SHREC's layout, and put the specimen's labels to it.

    The axis of rotation goes through the middle of the whole depth, before `z_range` is cut out.

    Parameters
    ----------
    folder
        With `projections.mrc` or `projections_unbinned.mrc`, and a specimen.
    filter, z_range
        See `reconstruct` and `GrandModel.from_shrec`.

    Raises
    ------
    FileFormatError
        If tilts and labels do not go together.
    """
    specimen = GrandModel.from_shrec(folder, z_range=z_range)
    series = TiltSeries.read(folder)
    bin, rest = divmod(series.tilts.shape[-1], specimen.labels.shape[-1])
    if rest or bin < 1:
        raise FileFormatError(
            f"{folder}: expected tilts as wide as the labels, {specimen.labels.shape[-1]}, or a whole factor wider, "
            f"got {series.tilts.shape[-1]}"
        )
    keep, depth = kept_sections(folder, z_range)
    whole = reconstruct(series.tilts, series.tilt_angles, depth=depth, filter=filter, bin=bin)
    return LabelledTomogram(
        tomogram=whole[keep].clone(),
        labels=specimen.labels,
        particles=_within(specimen.particles, specimen.labels.shape),
        voxel_size=specimen.label_voxel_size,
        class_names=specimen.class_names,
        name=str(folder),
    )


def _within(particles: ParticleTable, shape: Sequence[int]) -> ParticleTable:
    """The particles whose centres lie in what is kept of a specimen."""
    nearest = np.rint(particles.positions)
    kept = ((nearest >= 0) & (nearest < np.array(shape))).all(axis=1)
    return ParticleTable(
        classes=particles.classes[kept],
        positions=particles.positions[kept],
        orientations=particles.orientations[kept],
    )


def kept_sections(folder: str | Path, z_range: str | tuple[int, int] | None) -> tuple[slice, int]:
    """Which sections of the labels are kept, and how many there are."""
    path = Path(folder) / "class_mask.mrc"
    shape = read_mrc_shape(path)
    return label_range(shape, z_range, path), shape[0]
