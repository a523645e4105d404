"""Rings of the half spectrum of an image: their frequencies, and means over them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray

#: Distance between two rings, cycles per pixel.
RING_WIDTH = 1 / 128
#: Frequencies of the rings, cycles per pixel, from 0 to the corners of the spectrum.
RINGS: FloatArray = np.arange(92, dtype=np.float64) * RING_WIDTH


def ring_radius(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Return the radius on the half spectrum of an image `(y, x // 2 + 1)`, cycles per pixel."""
    k_y = torch.fft.fftfreq(shape[0], device=device)[:, None]
    return torch.hypot(k_y, torch.fft.rfftfreq(shape[1], device=device))


def _members(index: Tensor, count: int) -> Tensor:
    """List the places of each of `count` rings, `(ring, place)`, where `index` names the ring of each place.

    Rings with fewer places than the largest one are filled up with a place behind the last.
    """
    ring, order = index.sort(stable=True)
    sizes = torch.bincount(index, minlength=count)
    members = torch.full((count, int(sizes.max())), len(index), dtype=torch.int64, device=index.device)
    members[ring, torch.arange(len(index), device=index.device) - (sizes.cumsum(0) - sizes)[ring]] = order
    return members


class RingMeans:
    """Means over rings of a half spectrum, at the frequencies `RINGS`."""

    def __init__(self, shape: tuple[int, int], line: float, device: torch.device) -> None:
        # Small images have coarser rings; the values at `RINGS` are interpolated.
        self._width = max(RING_WIDTH, 1 / min(shape))
        radius = ring_radius(shape, device)
        k_x = torch.fft.rfftfreq(shape[1], device=device)
        # All columns but the first (and the last of an even size) stand for two of the whole spectrum.
        weight = torch.full((shape[1] // 2 + 1,), 2.0, dtype=torch.float64, device=device)
        weight[0] = 1.0
        if shape[1] % 2 == 0:
            weight[-1] = 1.0
        self._index = (radius / self._width).round().long().flatten()
        self._weight = weight.expand(radius.shape).flatten()
        self._near = self._weight * (k_x <= line).expand(radius.shape).flatten()
        self._count = int(self._index.max()) + 1
        self._members = _members(self._index, self._count) if self._index.is_cuda else None
        self._total, self._total_near = self._sums([self._weight, self._near])
        # Each number of the half spectrum's pairs is independent once, and the window mixes neighbours.
        self.counts = self._at_rings(self._total) / 2
        self.counts_near_axis = self._at_rings(self._total_near) / 2

    def mean(self, values: Tensor) -> FloatArray:
        return self.means([values])[0]

    def means(self, each: Iterable[Tensor]) -> list[FloatArray]:
        """Average several half spectra; on a GPU the program waits once."""
        sums = self._sums(values.flatten() * self._weight for values in each)
        return [self._average(total, self._total) for total in sums]

    def mean_near_axis(self, values: Tensor) -> FloatArray:
        return self._average(self._sums([values.flatten() * self._near])[0], self._total_near)

    def _average(self, total: FloatArray, weights: FloatArray) -> FloatArray:
        return self._at_rings(total / np.where(weights > 0, weights, 1.0))

    def _sums(self, each: Iterable[Tensor]) -> FloatArray:
        sums: FloatArray = torch.stack([self._sum(weights.to(torch.float64)) for weights in each]).cpu().numpy()
        return sums

    def _sum(self, weights: Tensor) -> Tensor:
        if self._members is None:
            return torch.bincount(self._index, weights=weights, minlength=self._count)
        # Always in the same order, as `bincount` does not add on a GPU.
        return torch.cat([weights, weights.new_zeros(1)])[self._members].sum(dim=1)

    def _at_rings(self, values: FloatArray) -> FloatArray:
        return np.interp(RINGS, np.arange(len(values)) * self._width, values)
