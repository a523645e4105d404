"""The power spectrum of images, averaged in cells of direction and frequency, and its part that is not smooth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from faket_aug._masks import fading, without_holes
from faket_aug.microscope.spectra import FADE, OUTLIERS

FloatArray = npt.NDArray[np.float64]
#: Å. Rings between these resolutions are compared: specimens differ at coarser ones; ice has a ring at 3.7 Å.
RESOLUTION_RANGE = (30.0, 4.0)
#: The same in pixels, for large pixels: the limits are at least so many pixels.
PIXEL_RANGE = (6.0, 1 / 0.45)
#: The smallest number of rings that are compared.
LEAST_RINGS = 12
#: Directions over 180°.
SECTORS = 36
#: Ratio of the frequencies of two knots of the smooth background. Thon rings are closer than that.
KNOTS = 1.6
#: Tiles of which less than this fraction was measured are left out.
LEAST_COVERED = 0.1
#: Rings next to the centre of a spectrum, and lines next to its axes, that the peak of the window covers.
_PEAK = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class RingPower:
    """The power spectrum of images, averaged in cells of direction and frequency.

    Parameters
    ----------
    q
        `(ring,)`, 1/Å.
    angles
        `(sector,)`, radians, from +x towards +y.
    total, counts
        `(sector, ring)`: sum of the power in a cell, and how many numbers it has; some cells near the centre have none.
    tile
        Side of the tiles that were Fourier transformed, pixels.
    pixel_size
        Å.
    """

    q: FloatArray
    angles: FloatArray
    total: FloatArray
    counts: FloatArray
    tile: int
    pixel_size: float

    @classmethod
    def of(
        cls,
        images: Tensor,
        pixel_size: float,
        length: int,
        resolution_range: tuple[float, float],
        measured: Tensor | None = None,
    ) -> Self:
        """Average the power of overlapping square tiles, `length` pixels a side, of images `(image, y, x)`.

        Only the pixels that were `measured` (a mask of the images' shape) count.

        Raises
        ------
        ValueError
            If there are too few rings within `resolution_range`, Å.
        """
        low = max(resolution_range[0], PIXEL_RANGE[0] * pixel_size)
        high = max(resolution_range[1], PIXEL_RANGE[1] * pixel_size)
        side = length * pixel_size
        first, last = max(math.ceil(side / low), _PEAK + 1), math.floor(side / high)
        count = max(last - first + 1, 0)
        if count < LEAST_RINGS:
            raise ValueError(
                f"expected {LEAST_RINGS} rings or more from {low:g} to {high:g} Å, got {count} in tiles "
                f"of {length} pixels of {pixel_size:g} Å; set `resolution_range` or `tile`, or take larger images"
            )
        x, y = np.fft.rfftfreq(length) * length, np.fft.fftfreq(length)[:, None] * length
        radius = np.hypot(x, y)
        ring = np.rint(radius).astype(np.int64) - first
        # Of the lines next to the axes, edges and rows of a camera make crosses.
        use = (ring >= 0) & (ring <= last - first) & (x >= _PEAK) & (np.abs(y) >= _PEAK)
        sector = np.floor((np.arctan2(y, x) / np.pi + 0.5) * SECTORS).astype(np.int64)
        shape = (SECTORS, count)
        cell = (sector * shape[1] + ring)[use]
        power = _power(images, length, measured)[use]
        return cls(
            # The phase goes with the square of the frequency, so does its mean over a ring.
            q=np.sqrt(np.bincount(ring[use], radius[use] ** 2) / np.bincount(ring[use])) / side,
            angles=((np.arange(SECTORS) + 0.5) / SECTORS - 0.5) * np.pi,
            total=np.bincount(cell, power, minlength=math.prod(shape)).astype(np.float64).reshape(shape),
            counts=np.bincount(cell, minlength=math.prod(shape)).astype(np.float64).reshape(shape),
            tile=length,
            pixel_size=pixel_size,
        )

    def mean(self) -> Self:
        """Return the mean over all directions, as a single direction halfway between axis and diagonal."""
        total, counts = (values.sum(axis=0, keepdims=True) for values in (self.total, self.counts))
        return replace(self, angles=np.array([np.pi / 8]), total=total, counts=counts)

    @cached_property
    def root(self) -> FloatArray:
        """Square root of the counts. The standard error of the mean of a cell is in inverse proportion to it."""
        return np.sqrt(self.counts)

    @cached_property
    def values(self) -> FloatArray:
        """Power divided by its background, minus 1, without its smooth part; weighted by `root`."""
        weight = self.counts.sum(axis=0)
        basis = self._basis * np.sqrt(weight)[:, None]
        level = np.log(self.total.sum(axis=0) / weight) * np.sqrt(weight)
        background = np.exp(self._basis @ np.linalg.lstsq(basis, level, rcond=None)[0])
        return self.rest(self.total / np.maximum(self.counts, 1.0) / background - 1)

    def rest(self, values: FloatArray) -> FloatArray:
        """Return values `(..., sector, ring)` without their smooth part, weighted by `root`."""
        weighted = values * self.root
        smooth = np.einsum("...sr,srk->...sk", weighted, self._smooth)
        result: FloatArray = weighted - np.einsum("...sk,srk->...sr", smooth, self._smooth)
        return result

    @cached_property
    def _smooth(self) -> FloatArray:
        """An orthonormal basis of smooth curves for each direction, `(sector, ring, k)`."""
        smooth: FloatArray = np.linalg.qr(self._basis * self.root[..., None]).Q
        return smooth

    @cached_property
    def _basis(self) -> FloatArray:
        count = max(round(math.log(self.q[-1] / self.q[0], KNOTS)), 1)
        inner = np.geomspace(self.q[0], self.q[-1], count + 1)
        inner[[0, -1]] = self.q[[0, -1]]
        knots = np.concatenate([[self.q[0]] * 3, inner, [self.q[-1]] * 3])
        basis: FloatArray = BSpline.design_matrix(self.q, knots, 3).toarray()
        return basis


def _power(images: Tensor, length: int, measured: Tensor | None) -> FloatArray:
    """The mean power of the tiles of all images, `(y, x // 2 + 1)`."""
    window = torch.hann_window(length, device=images.device)
    window = window[:, None] * window
    total = torch.zeros(length, length // 2 + 1, dtype=torch.float64, device=images.device)
    count = 0.0
    for index, image in enumerate(images):
        known = None if measured is None or bool(measured[index].all()) else measured[index]
        if known is not None:
            power, share = _power_where(image, known, window)
            total += power
            count += share
            continue
        for tile in _tiles(_clipped(image), length):
            total += torch.fft.rfft2((tile - tile.mean()) * window).abs() ** 2
            count += 1
    if count <= 0:
        raise ValueError(
            f"expected tiles of {length} pixels with measured pixels, got none; set `tile` to a smaller one, or check "
            "`measured`"
        )
    result: FloatArray = (total / count).cpu().numpy()
    return result


def _power_where(image: Tensor, known: Tensor, window: Tensor) -> tuple[Tensor, float]:
    """Sum the power of an image's tiles over measured pixels; and how many whole tiles these are."""
    length = len(window)
    values, solid = without_holes(image, known)
    values = _clipped(values, known)
    soft = fading(solid, FADE * min(length, *image.shape))
    total, count = torch.zeros(length, length // 2 + 1, dtype=torch.float64, device=image.device), 0.0
    whole = float((window**2).sum())
    for tile, weight in zip(_tiles(values, length), _tiles(soft, length), strict=True):
        own = window * weight
        share = float((own**2).sum()) / whole
        if share > LEAST_COVERED:
            middle = (tile * own).sum() / own.sum()
            # Divided and weighted by the share: the sum stays as it is.
            total += torch.fft.rfft2((tile - middle) * own).abs() ** 2
            count += share
    return total, count


def _clipped(image: Tensor, measured: Tensor | None = None) -> Tensor:
    values = image.to(torch.float64)
    own = values if measured is None else values[measured]
    values = values - own.mean()
    limit = float((own - own.mean()).std()) * OUTLIERS
    return values.clamp(-limit, limit).to(torch.float32)


def _tiles(image: Tensor, length: int) -> Iterator[Tensor]:
    """Tiles that lie evenly over the image, and overlap by a half or more."""
    sides = (np.linspace(0, n - length, math.ceil(2 * (n - length) / length) + 1) for n in image.shape)
    for y, x in product(*(np.rint(side).astype(np.int64).tolist() for side in sides)):
        yield image[y : y + length, x : x + length]
