"""How deep the matter of a specimen is: the deeper, the sooner two tilts share nothing away from the tilt axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_ndim
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.spectra import LINE, fade, faded_spectrum

#: Degrees. Tilts up to this angle are compared, ...
_LARGEST = 36.0
#: ... if they are no farther apart than this.
_FARTHEST = 26.0
#: Cycles per pixel along the tilt axis. Below, backgrounds differ; above, there is less signal.
_BAND = (0.05, 0.3)
#: Parts of the spectrum that have a depth of their own.
_BANDS = ((0.02, 0.06), (0.05, 0.1), (0.1, 0.2), (0.2, 0.35))
#: Voxels. Depths that are tried.
_DEPTHS: FloatArray = np.geomspace(12.0, 1500.0, 97)
#: Degrees. How far the specimen may be inclined at a tilt of 0°.
_INCLINATIONS: FloatArray = np.arange(-12.0, 12.1, 2.0)
#: Every so many pixels of the image's profile across the axis are summed.
_EVERY = 4
#: Neighbours share a signal if at least this fraction of what their spectra hold near the axis is the same, and this is
#: so many times its error; ...
_SHARED, _SIGNIFICANT = 0.03, 5.0
#: ... the depth is known if parts of the series agree in it within this relative error.
_ERROR = 0.25
#: For the standard error, the tilts are divided into so many parts, and each one's pairs are left out once.
_PARTS = 5


@dataclass(frozen=True, kw_only=True)
class MatterThickness:
    """The depth over which the matter of a specimen is spread, as a slab of even density.

    Parameters
    ----------
    voxels
        Its depth perpendicular to the specimen's plane, in pixels of the tilts.
    error
        Standard error, pixels.
    inclination
        Degrees. The slab is inclined about the tilt axis as one that is level at 0° is at this tilt.
    frequencies, depths
        `(n,)`, cycles per pixel, and `(n,)`, pixels: the depth of matter of these frequencies along the axis. Large
        structures (the cell's shape, membranes) may be deeper than small ones. Empty where no part tells by itself.
    """

    voxels: float
    error: float
    inclination: float
    frequencies: tuple[float, ...] = ()
    depths: tuple[float, ...] = ()

    def at(self, frequencies: FloatArray) -> FloatArray:
        """Return the depth of matter at frequencies in cycles per pixel, pixels; any shape."""
        if not self.frequencies:
            return np.full(np.shape(frequencies), self.voxels)
        result: FloatArray = np.interp(frequencies, self.frequencies, self.depths)
        return result


def matter_thickness(images: Tensor, tilt_angles: Angles, *, measured: Tensor | None = None) -> MatterThickness | None:
    """Estimate how deep the matter lies that tilts show, without any knowledge of it.

    The Fourier transforms of two projections are the same on the line of their common axis. At a distance `k` across
    it, and with angles that differ by `Δθ`, they are alike as far as the transform of the depth profile reaches: for a
    slab of depth T by `sinc(k Δθ T)`. Foreshortening, and a slab that is inclined, make them differ as well, and are
    taken into account.

    Parameters
    ----------
    images
        `(tilt, y, x)`, aligned; the tilt axis is y.
    tilt_angles
        `(tilt,)`, degrees.
    measured
        `(tilt, y, x)`, bool: the pixels that count; by default all.

    Returns
    -------
    The depth; None if it cannot be told: too few tilts within 36° of 0°, too little shared signal, or parts of the
    series that do not agree.
    """
    check_ndim("images", images, "tilt y x")
    angles = as_tilt_angles(tilt_angles, count=images.shape[0])
    used = [int(i) for i in np.argsort(angles, kind="stable") if abs(angles[i]) <= _LARGEST]
    pairs = [
        (one, other)
        for place, one in enumerate(used)
        for other in used[place + 1 :]
        if 0 < angles[other] - angles[one] <= _FARTHEST
    ]
    if len(pairs) < _PARTS * 2:
        return None
    theta = np.deg2rad([(angles[one], angles[other]) for one, other in pairs])
    step = max(float(np.median(np.diff(angles[used]))), 1e-3)
    groups = np.rint(np.rad2deg(theta[:, 1] - theta[:, 0]) / step).astype(np.int64)
    first = np.array([used.index(one) for one, _ in pairs])
    geometry = _Pairs(theta, groups, first * _PARTS // (first.max() + 1), int(images.shape[-1]))
    bands = [_BAND, *_BANDS]
    coherences = _coherences(images, measured, used, pairs, bands)
    whole, *each = (geometry.depth(one) for one in coherences)
    if whole is None:
        return None
    known = [(sum(band) / 2, one.voxels) for band, one in zip(_BANDS, each, strict=True) if one is not None]
    frequencies, depths = zip(*known, strict=True) if known else ((), ())
    return replace(whole, frequencies=frequencies, depths=depths)


def _coherences(
    images: Tensor,
    measured: Tensor | None,
    used: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    bands: Sequence[tuple[float, float]],
) -> list[FloatArray]:
    """What pairs share at frequencies across the axis, over the root of their powers, `(pair, n)`, for each band."""
    height, width = images.shape[-2:]
    along, count = np.abs(np.fft.fftfreq(height)), int(LINE * width) + 1
    rows = [torch.from_numpy((along >= low) & (along < high)) for low, high in bands]
    lines = {
        index: faded_spectrum(images[index], None if measured is None else measured[index])[:, :count] for index in used
    }
    found = []
    for own in rows:
        parts = {index: line[own] for index, line in lines.items()}
        scaled = {i: part / part.abs().square().mean().sqrt().clamp(min=1e-30) for i, part in parts.items()}
        shared = [(scaled[one].conj() * scaled[other]).real.mean(dim=0).double().numpy() for one, other in pairs]
        found.append(np.stack(shared))
    return found


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The angles of pairs of tilts, radians; which are equally far apart; the parts of the series."""

    theta: FloatArray
    groups: IntArray
    part: IntArray
    width: int

    def depth(self, coherence: FloatArray) -> MatterThickness | None:
        """The depth that a part of the spectrum tells, if it does."""
        nearest = coherence[self.groups == self.groups.min()][:, :2].ravel()
        if nearest.mean() < max(_SHARED, _SIGNIFICANT * nearest.std() / np.sqrt(len(nearest))):
            return None
        across = np.arange(coherence.shape[1]) / self.width
        costs = _costs(coherence, across, self.theta, self.groups, self.part, self.width)
        total = costs.sum(axis=2)
        best, at = _lowest(total)
        parts = np.array([_lowest(total - costs[:, :, part])[0] for part in range(_PARTS)])
        error = float(parts.std() * np.sqrt(_PARTS - 1))
        ends = (_DEPTHS[0] * 1.01, _DEPTHS[-1] / 1.01)
        if not (ends[0] < best < ends[1]) or error > _ERROR * best:
            return None
        return MatterThickness(voxels=best, error=error, inclination=float(_INCLINATIONS[at]))


def _costs(
    coherence: FloatArray,
    across: FloatArray,
    theta: FloatArray,
    groups: IntArray,
    part: IntArray,
    width: int,
) -> FloatArray:
    """Squared residuals `(inclination, depth, part)`; pairs that are equally far apart have one amplitude."""
    apart = theta[:, 1] - theta[:, 0]
    window = fade(width, torch.device("cpu")).numpy().astype(np.float64)[::_EVERY] ** 2
    window /= window.sum()
    place = (np.arange(width) - (width - 1) / 2)[::_EVERY]
    kinds = np.unique(groups)
    belongs = groups == kinds[:, None]
    result = np.empty((len(_INCLINATIONS), len(_DEPTHS), _PARTS))
    for i, inclination in enumerate(np.deg2rad(_INCLINATIONS)):
        # What is inclined at 0° is level at another angle.
        one, other = theta.T + inclination
        middle = np.cos((one + other) / 2)
        stretch = (((np.cos(other) - np.cos(one)) / middle)[:, None] * across)[..., None]
        side = np.cos(2 * np.pi * stretch * place) @ window
        for j, depth in enumerate(_DEPTHS):
            model = np.sinc(across * (apart / middle * depth)[:, None]) * side
            # Two sums of each pair give the amplitude of its group.
            right, square = (coherence * model).sum(axis=1), (model**2).sum(axis=1)
            amplitude = (belongs @ right) / np.maximum(belongs @ square, 1e-12)
            rest = coherence - amplitude[np.searchsorted(kinds, groups)][:, None] * model
            result[i, j] = np.bincount(part, weights=(rest**2).sum(axis=1), minlength=_PARTS)
    return result


def _lowest(costs: FloatArray) -> tuple[float, int]:
    """The depth of the lowest cost `(inclination, depth)`, between the depths of the table, and its inclination."""
    i, j = np.unravel_index(int(costs.argmin()), costs.shape)
    if not 0 < j < len(_DEPTHS) - 1:
        return float(_DEPTHS[j]), int(i)
    before, at, after = costs[i, j - 1 : j + 2]
    shift = 0.5 * (before - after) / max(before - 2 * at + after, 1e-300)
    ratio = float(np.log(_DEPTHS[1] / _DEPTHS[0]))
    return float(_DEPTHS[j] * np.exp(shift * ratio)), int(i)
