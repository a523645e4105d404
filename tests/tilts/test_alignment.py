"""Coarse alignment: shifts that were put into tilts are found, and neighbours share more after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import TiltSeries, align_by_neighbours, project
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.geometry import turns
from faket_aug.microscope.spectra import series_spectra
from faket_aug.tomography.resample import transform_images

ANGLES = np.arange(-45.0, 46.0, 3.0)
SIZE = 192


def _tilts() -> Tensor:
    """Dark projections of a thin layer of blobs, which wraps around, so that no side comes into view."""
    generator = np.random.default_rng(0)
    volume = torch.zeros(24, SIZE, SIZE)
    z, y, x = torch.meshgrid(*(torch.arange(-4.0, 5.0),) * 3, indexing="ij")
    blob = torch.exp(-(z**2 + y**2 + x**2) / 6)
    for place in generator.integers((0, 0, 0), (15, SIZE - 9, SIZE - 9), size=(160, 3)):
        volume[tuple(slice(p, p + 9) for p in place)] += blob
    return -project(volume, ANGLES, extend="wrap")


def _measured(shifts: np.ndarray, axis_angle: float = 0.0) -> TiltSeries:
    """Tilts whose axis lies turned and shifted (y, x) in the image, with as much noise as signal."""
    # Where the aligned tilt is read in the image, undone: (x', y) = turn⁻¹ (u, v) − turn⁻¹ shift.
    back = turns(np.full(len(ANGLES), -axis_angle))
    moved = -np.einsum("nij,nj->ni", back, shifts[:, ::-1])[:, ::-1]
    tilts = transform_images(_tilts(), back, moved, fill="edge")
    noise = torch.randn(tilts.shape, generator=torch.Generator().manual_seed(1)) * tilts.std()
    return TiltSeries(tilts=1000 + tilts + noise, tilt_angles=ANGLES, pixel_size=10.0)


@pytest.mark.parametrize("axis_angle", [0.0, 30.0, -95.0])
def test_shifts_are_found(axis_angle: float) -> None:
    """Jumps between tilts come out to a pixel; along the axis nothing drifts."""
    shifts = np.random.default_rng(3).normal(0, 4, (len(ANGLES), 2))
    shifts -= shifts[len(ANGLES) // 2]
    found = align_by_neighbours(_measured(shifts, axis_angle), axis_angle=axis_angle)
    assert found.shifts is not None
    off = np.einsum("nij,nj->ni", turns(np.full(len(ANGLES), -axis_angle)), (found.shifts - shifts)[:, ::-1])
    assert np.abs(off[:, 1]).max() < 1.0, "along the axis"
    assert np.abs(np.diff(off[:, 0])).max() < 1.5, "across, from tilt to tilt"


def test_neighbours_share_more() -> None:
    shifts = np.random.default_rng(4).normal(0, 5, (len(ANGLES), 2))
    series = _measured(shifts)
    metadata = TiltMetadata(sections=np.arange(len(ANGLES)), exposure=3.0 * np.arange(len(ANGLES)), voltage_kv=200.0)
    known = replace(series, metadata=metadata)
    found = align_by_neighbours(known)
    assert found.is_alignment
    assert found.voltage_kv == 200.0
    assert found.exposure is not None
    aligned = replace(known, metadata=found).aligned()
    share = []
    for one in (series, aligned):
        spectra = series_spectra(one.tilts, one.tilt_angles)
        share.append(spectra.shared[:, 4:16].sum() / spectra.power[1:, 4:16].sum())
    assert share[1] > share[0] + 0.2


def test_what_cannot_be_aligned() -> None:
    series = _measured(np.zeros((len(ANGLES), 2)))
    one = TiltSeries(tilts=series.tilts[:1], tilt_angles=ANGLES[:1])
    with pytest.raises(ValueError, match="expected two tilts or more, since neighbours are compared, got 1"):
        align_by_neighbours(one)
    with pytest.raises(ValueError, match=r"expected a `band` of two increasing frequencies up to 0.5"):
        align_by_neighbours(series, band=(0.3, 0.1))
    with pytest.raises(ValueError, match="farthest"):
        align_by_neighbours(series, farthest=1.5)
