"""How tilts and tomograms look, in numbers: power, what neighbouring tilts share, and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.ndimage import gaussian_filter
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug.microscope.spectra import RINGS, sorted_spectra
from faket_aug.tilts.series import TiltSeries

#: Tilts are grouped by their angle, |θ| in thirds of the largest one.
GROUPS = ("low tilts", "medium tilts", "high tilts")
#: Edges of the histograms, in standard deviations from the mean.
EDGES: FloatArray = np.linspace(-6.0, 6.0, 61)
#: Voxels, of the Gaussian after which the standard deviation is taken again: what is left is coarse texture.
SMOOTHING = 1.5
#: The rings that are compared: not the mean, not the corners of the spectrum.
KEPT = (RINGS > 0) & (RINGS < 0.5)


@dataclass(frozen=True, kw_only=True, eq=False)
class Appearance:
    """How a tilt-series and its tomogram look.

    Parameters
    ----------
    power
        `(3, ring)`, radial power of the tilts, mean over low, medium and high tilts.
    shared
        `(ring,)`, the power that neighbouring tilts share near the Fourier line of the tilt axis: signal without noise.
    tilt_values, values
        `(bin,)`, share of the pixels of the tilts, and of the voxels of the tomogram, in each bin of `EDGES`; each tilt
        and the tomogram with mean 0 and standard deviation 1.
    moments
        `(2,)`, skewness and excess kurtosis of the voxels.
    smoothed
        Standard deviation of the tomogram after a Gaussian of 1.5 voxels, as a share of that before.
    """

    power: FloatArray
    shared: FloatArray
    tilt_values: FloatArray
    values: FloatArray
    moments: FloatArray
    smoothed: float


def appearance_of(series: TiltSeries, tomogram: Tensor) -> Appearance:
    """Compute the numbers of a tilt-series `(tilt, y, x)` and its tomogram `(z, y, x)`.

    Raises
    ------
    ValueError
        If a tilt is constant.
    """
    spectra = sorted_spectra(series.tilts, series.tilt_angles, series.name)
    angle = np.abs(spectra.tilt_angles)
    group = np.minimum((3 * angle / max(float(angle.max()), 1e-9)).astype(int), 2)
    power = [spectra.power[group == g].mean(axis=0) if (group == g).any() else spectra.power.mean(0) for g in range(3)]
    shared = spectra.shared.mean(axis=0) if len(spectra.shared) else np.zeros(len(RINGS))
    tilts = np.mean([_histogram(_standard(tilt)) for tilt in series.tilts], axis=0)
    voxels = _standard(tomogram)
    return Appearance(
        power=np.array(power)[:, KEPT],
        shared=shared[KEPT],
        tilt_values=tilts,
        values=_histogram(voxels),
        moments=np.array([float((voxels**3).mean()), float((voxels**4).mean()) - 3]),
        smoothed=float(gaussian_filter(voxels, SMOOTHING).std()),
    )


def mean_appearance(several: Sequence[Appearance]) -> Appearance:
    """Average the numbers of several tomograms."""
    means = {entry.name: np.mean([getattr(one, entry.name) for one in several], axis=0) for entry in fields(Appearance)}
    return Appearance(**means | {"smoothed": float(means["smoothed"])})


def _standard(values: Tensor) -> FloatArray:
    wide = values.detach().cpu().double().numpy()
    standard: FloatArray = (wide - wide.mean()) / max(float(wide.std()), 1e-300)
    return standard


def _histogram(values: FloatArray) -> FloatArray:
    count, _ = np.histogram(values.clip(EDGES[0], EDGES[-1]), bins=EDGES)
    share: FloatArray = count / values.size
    return share
