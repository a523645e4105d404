"""The fit of a map of the ice's thickness to the intensities of measured tilts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug.geometry import axis_index
from faket_aug.microscope.background import SHORTEST, SlowWaves, slow_waves

#: Ice is at most ten times as deep in a tilt as at 0°.
LEAST_COSINE = 0.1
#: About so many waves are fitted at most: over a plane of more than half a square micrometre they are longer.
_WAVES = 250
#: The side of the blocks whose mean intensities are compared, as a share of the shortest wave, ...
_BLOCK = 1 / 8
#: ... if at least this share of their pixels was measured.
_MEASURED = 0.5
#: The map is at most so many times as wide as the image.
_WIDEST = 2.5
#: The distance of points of the map, as a share of the shortest wave.
_STEP = 1 / 4
#: Fewest tilts, and the least difference of `1 / cos θ` between them.
_TILTS, _RANGE = 4, 0.2
#: A tilt is blank with less than this fraction of the intensity of the others.
_BLANK = 0.02
#: The mean depth has to be so many times its standard error.
_SIGNIFICANT = 3.0
#: A block has at least this share of its tilt's median intensity: gold beads are darker.
_DARKEST = 0.05
#: Expected standard deviation of t/Λ of the longest wave; shorter ones have less, as of drawn waves.
_EXPECTED = 0.3
#: So many neighbouring blocks differ alike: by particles, membranes and beads.
_ALIKE = 4.0
#: Residuals beyond so many standard deviations count less.
_ROBUST = 2.0
_ROUNDS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class _Blocks:
    """The logarithms of the mean intensities of blocks of a tilt, and their weights, `(y, x)`; their places in Å."""

    values: FloatArray
    weights: FloatArray
    y: FloatArray
    x: FloatArray


def fitted_depths(
    tilts: Tensor, angles: FloatArray, pixel_size: float, *, zero: float, measured: Tensor | None
) -> tuple[FloatArray, tuple[float, float]] | None:
    """Carry out `ThicknessMap.fit`: find depths `(y, x)` on an even grid, and its extent `(y, x)`, Å."""
    cosine: FloatArray = np.cos(np.deg2rad(angles)).clip(LEAST_COSINE)
    if len(angles) < _TILTS or np.ptp(1 / cosine) < _RANGE:
        return None
    height, width = (n * pixel_size for n in tilts.shape[1:])
    extent = (height, width * min(float(1 / cosine.min()), _WIDEST))
    shortest = max(SHORTEST, math.sqrt(math.pi * extent[0] * extent[1] / _WAVES))
    side = max(1, round(_BLOCK * shortest / pixel_size))
    blocks = [
        _blocks(image, None if measured is None else measured[tilt], side, pixel_size, zero)
        for tilt, image in enumerate(tilts)
    ]
    slow = slow_waves(extent, shortest)
    # A tilt of which nothing was measured, or that no electron has reached, tells nothing.
    levels = np.array([np.median(b.values[b.weights > 0]) if b.weights.any() else -np.inf for b in blocks])
    seen = levels > np.median(levels) + math.log(_BLANK)
    if seen.sum() < _TILTS or np.ptp(1 / cosine[seen]) < _RANGE:
        return None
    blocks, cosine = [one for one, own in zip(blocks, seen, strict=True) if own], cosine[seen]
    amplitudes, constants = _solve(blocks, slow, extent, cosine)
    mean = _mean_depth(constants, cosine)
    if mean is None:
        return None
    count = [max(math.ceil(length / (_STEP * shortest)), 4) for length in extent]
    places = [(np.arange(n) + 0.5) / n for n in count]
    waves = [np.cos(np.pi * k * p[:, None]) for k, p in zip(slow.counts.T, places, strict=True)]
    changes = np.einsum("yk,xk,k->yx", *waves, amplitudes)
    # Where exposures grow with the angle the mean comes out too low; the changes are right, and nothing is cut off.
    depths: FloatArray = changes + max(mean, -float(changes.min()))
    return depths, extent


def _blocks(image: Tensor, measured: Tensor | None, side: int, pixel_size: float, zero: float) -> _Blocks:
    """Average a tilt over blocks of so many pixels along each side."""
    values = image.double().cpu().numpy() - zero
    mask = np.ones_like(values) if measured is None else measured.cpu().numpy().astype(np.float64)
    starts = [np.arange(0, n, side) for n in values.shape]

    def summed(array: FloatArray) -> FloatArray:
        result: FloatArray = np.add.reduceat(np.add.reduceat(array, starts[0], axis=0), starts[1], axis=1)
        return result

    known, pixels = summed(mask), summed(np.ones_like(mask))
    mean = summed(values * mask) / np.maximum(known, 1)
    kept = (known >= _MEASURED * pixels) & (pixels > 0)
    middle = float(np.median(mean[kept])) if kept.any() else 0.0
    # Where more electrons make lower gray values, the intensity has the other sign.
    relative = mean / middle if middle else np.ones_like(mean)
    places = [
        (start + np.minimum(start + side, n) - 1) / 2 - (n - 1) / 2
        for start, n in zip(starts, values.shape, strict=True)
    ]
    places[1] += (values.shape[1] - 1) / 2 - axis_index(values.shape[1])
    return _Blocks(
        values=np.log(relative.clip(_DARKEST)) + np.log(max(abs(middle), 1e-300)),
        weights=np.where(kept, known / pixels, 0.0),
        y=places[0] * pixel_size,
        x=places[1] * pixel_size,
    )


def _table(blocks: _Blocks, counts: FloatArray, extent: tuple[float, float], cosine: float) -> FloatArray:
    """What each wave of the map takes from the logarithm of the intensity of each block; `(block, wave)`."""
    y = np.cos(np.pi * counts[:, 0] * (blocks.y[:, None] / extent[0] + 0.5))
    place = (blocks.x / cosine).clip(-extent[1] / 2, extent[1] / 2)
    x = np.cos(np.pi * counts[:, 1] * (place[:, None] / extent[1] + 0.5))
    result: FloatArray = -(y[:, None] * x).reshape(blocks.values.size, len(counts)) / cosine
    return result


def _solve(
    blocks: list[_Blocks], slow: SlowWaves, extent: tuple[float, float], cosine: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Find the amplitudes of the waves, and the constant of each tilt, by robust least squares."""
    values = [one.values.ravel() for one in blocks]
    given = [one.weights.ravel() for one in blocks]
    weights, spread = given, 0.1
    amplitudes: FloatArray
    constants: FloatArray
    expected = _EXPECTED * (slow.lengths / max(slow.lengths, default=1.0)) ** 1.5

    def tables() -> Iterator[FloatArray]:
        # One after the other: together they would take hundreds of megabytes.
        return (_table(one, slow.counts, extent, float(own)) for one, own in zip(blocks, cosine, strict=True))

    for _ in range(_ROUNDS):
        matrix = np.diag(_ALIKE * spread**2 / expected**2)
        vector = np.zeros(len(expected))
        for table, value, weight in zip(tables(), values, weights, strict=True):
            total = max(float(weight.sum()), 1e-300)
            # Without the mean: the exposure of a tilt is free.
            centred = table - weight @ table / total
            weighted = weight[:, None] * centred
            matrix += weighted.T @ centred
            vector += weighted.T @ (value - weight @ value / total)
        amplitudes = np.asarray(np.linalg.solve(matrix, vector), dtype=np.float64)
        rest = [value - table @ amplitudes for table, value in zip(tables(), values, strict=True)]
        constants = np.array([_mean(one, weight) for one, weight in zip(rest, weights, strict=True)])
        rest = [one - constant for one, constant in zip(rest, constants, strict=True)]
        known = np.concatenate([one[weight > 0] for one, weight in zip(rest, given, strict=True)])
        spread = max(1.4826 * float(np.median(np.abs(known))), 1e-6) if len(known) else spread
        weights = [
            weight / np.maximum(1, np.abs(one) / (_ROBUST * spread)) for one, weight in zip(rest, given, strict=True)
        ]
    return amplitudes, constants


def _mean(values: FloatArray, weights: FloatArray) -> float:
    return float(weights @ values / max(float(weights.sum()), 1e-300))


def _mean_depth(constants: FloatArray, cosine: FloatArray) -> float | None:
    """The mean t/Λ of the map, from the logarithms of mean intensities over `1 / cos θ`; None if it is not known."""
    design = np.stack([-1 / cosine, np.ones_like(cosine)], axis=1)
    weights = np.ones(len(cosine))
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        found = np.linalg.lstsq(design * root[:, None], constants * root, rcond=None)[0]
        rest = constants - design @ found
        spread = max(1.4826 * float(np.median(np.abs(rest))), 1e-12)
        weights = 1 / np.maximum(1, np.abs(rest) / (_ROBUST * spread))
    covariance = np.linalg.inv((design * weights[:, None]).T @ design) * spread**2
    known = found[0] > _SIGNIFICANT * float(np.sqrt(covariance[0, 0]))
    return float(found[0]) if known else None
