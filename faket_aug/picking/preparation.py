"""What a network sees: tomograms prepared for inference as patches were for training.

Training brings each patch to mean 0 and standard deviation 1. A voxel of a whole tomogram gets the same number if it is
compared with the mean and the standard deviation of a window of the patch's size around it. Two kinds of voxels belong
to no window, and the network does not see them: those that were never measured (zeros around a tomogram, filled
corners), and those with values that training never held (gold beads, hot voxels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import check_count, check_positive
from faket_aug._runtime.numerics import own_precision
from faket_aug.data.patches import as_size

#: Windows are computed this part of their size apart; between them their numbers are interpolated.
_STEPS = 4
#: Standard deviations from the median beyond which values are clipped before they count: gold.
OUTLIERS = 5.0
#: Standard deviations beyond which values are none of a specimen's, where nobody knows what training held.
EXTREMES = (-10.0, 10.0)
#: A value may lie this much further out than any that training held.
_MARGIN = 1.25
#: Voxels around such values that are left out with them.
_AROUND = 2
#: A normal distribution's standard deviation over its median absolute deviation.
_PER_MAD = 1.4826
#: Windows with a smaller share of measured voxels take the rest from the whole tomogram.
_LEAST_SHARE = 0.1
#: Values that medians are taken of.
_SAMPLED = 2**20
#: Sections that are looked at together.
_SECTIONS = 32


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the patches of a training were prepared; kept with the weights.

    Parameters
    ----------
    patch_size
        (z, y, x), voxels.
    normalized
        Whether each patch was brought to mean 0 and standard deviation 1.
    extremes
        The lowest and the highest value that the network saw.
    voxel_size
        Å; 0 if it is not known.
    """

    patch_size: tuple[int, int, int]
    normalized: bool = True
    extremes: tuple[float, float] = EXTREMES
    voxel_size: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", as_size(self.patch_size))
        for side in self.patch_size:
            check_count("patch_size", side)
        check_positive("voxel_size", self.voxel_size, zero=True)
        low, high = (float(value) for value in self.extremes)
        if not low <= high:
            raise ValueError(f"expected `extremes` as (lowest, highest), got {self.extremes!r}")
        object.__setattr__(self, "extremes", (low, high))

    @classmethod
    def of(cls, batch: Mapping[str, Any], *, voxel_size: float = 0.0) -> Self:
        """Tell from a training's batch, whose `image` is `(n, channel, z, y, x)`; `voxel_size` in Å, 0 if not known."""
        images: Tensor = batch["image"].detach().double()
        std, mean = torch.std_mean(images.flatten(2), dim=2, correction=0)
        normal = ((mean.abs() < 0.01) & ((std - 1).abs() < 0.01)) | (std == 0)
        z, y, x = (int(n) for n in images.shape[-3:])
        extremes = (float(images.min()), float(images.max()))
        return cls(patch_size=(z, y, x), normalized=bool(normal.all()), extremes=extremes, voxel_size=float(voxel_size))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "patch_size": list(self.patch_size),
            "normalized": self.normalized,
            "extremes": list(self.extremes),
            "voxel_size": self.voxel_size,
        }


class LocalNormalization:
    """Bring each voxel to mean 0 and standard deviation 1 of a window around it, tile by tile.

    Near the border of the tomogram windows are moved inwards, as patches are.

    Parameters
    ----------
    tomogram
        `(z, y, x)`, float32.
    window
        (z, y, x), voxels; smaller where the tomogram is.
    extremes
        The lowest and the highest value that the network saw in training.

    Raises
    ------
    ValueError
        If the tomogram is constant.
    """

    def __init__(self, tomogram: Tensor, window: Sequence[int], *, extremes: tuple[float, float] = EXTREMES) -> None:
        self.tomogram = tomogram
        self._extremes = (_MARGIN * min(extremes[0], 0.0), _MARGIN * max(extremes[1], 0.0))
        measured = measured_voxels(tomogram)
        #: The smallest box that holds all measured voxels: windows are moved into it.
        self._box = _bounding_box(measured)
        self._size = tuple(min(side, part.stop - part.start) for side, part in zip(window, self._box, strict=True))
        self._center, self._scale = self._median_and_scale(measured)
        #: `(z, y, x)`, which voxels count.
        self.seen = measured
        self._mean, self._std = self._statistics()
        outliers = self._outliers()
        if outliers is not None:
            self.seen = measured & ~outliers
            self._mean, self._std = self._statistics()

    def tile(self, box: Sequence[slice]) -> Tensor:
        """Return a part of the tomogram as the network sees it; what was not measured, or is too far out, is 0."""
        return self._normalized(box).masked_fill_(~self.seen[tuple(box)], 0.0)

    def _normalized(self, box: Sequence[slice]) -> Tensor:
        return (self.tomogram[tuple(box)] - self._center - self._at(self._mean, box)) / self._at(self._std, box)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the windows, on a coarse grid."""
        weight = self.seen[self._box].to(self.tomogram.dtype)
        limit = OUTLIERS * self._scale
        values = (self.tomogram[self._box] - self._center).clamp_(-limit, limit).mul_(weight)
        total = float(weight.sum(dtype=torch.float64))
        overall = float(values.sum(dtype=torch.float64)) / total
        count, first = self._windows(weight), self._windows(values)
        values.square_()
        overall_square = float(values.sum(dtype=torch.float64)) / total
        second = self._windows(values)
        # Where a window holds little that counts, what it lacks is taken from the whole tomogram.
        lacking = (_LEAST_SHARE - count).clamp(min=0.0)
        mean = (first + lacking * overall) / (count + lacking)
        square = (second + lacking * overall_square) / (count + lacking)
        return mean, (square - mean.square()).clamp(min=1e-6 * self._scale**2).sqrt()

    def _outliers(self) -> Tensor | None:
        """Find the voxels with values that training never held, and those around them; nothing where there are none."""
        low, high = self._extremes
        found = torch.zeros_like(self.seen)
        for start in range(0, len(found), _SECTIONS):
            box = [slice(start, min(start + _SECTIONS, len(found))), *(slice(0, n) for n in found.shape[1:])]
            values = self._normalized(box)
            found[box[0]] = ((values < low) | (values > high)) & self.seen[box[0]]
        return _grown(found, _AROUND) if bool(found.any()) else None

    def _median_and_scale(self, measured: Tensor) -> tuple[float, float]:
        step = max(1, self.tomogram.numel() // _SAMPLED)
        values = self.tomogram.flatten()[::step][measured.flatten()[::step]]
        values = values if len(values) else self.tomogram[measured]
        center = values.median()
        scale = float((values - center).abs().median()) * _PER_MAD
        return float(center), scale or float(values.std(correction=0)) or 1.0

    def _windows(self, values: Tensor) -> Tensor:
        """Means over the windows on a coarse grid, one axis after the other."""
        for axis, side in enumerate(self._size):
            starts = torch.tensor(self._starts(axis), device=values.device)
            sums = torch.cumsum(values, dim=axis, dtype=torch.float64 if axis else torch.float32)
            sums = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums], dim=axis)
            values = (sums.index_select(axis, starts + side) - sums.index_select(axis, starts)) / side
        return values.to(torch.float32)

    def _starts(self, axis: int) -> list[int]:
        last = self._box[axis].stop - self._box[axis].start - self._size[axis]
        return [*range(0, last, max(1, self._size[axis] // _STEPS)), last]

    @own_precision()  # a network that looks at a tile may run under autocast
    def _at(self, grid: Tensor, box: Sequence[slice]) -> Tensor:
        """Interpolate the windows' numbers at the voxels of a box."""
        for axis, part in enumerate(box):
            centers = self._box[axis].start + np.array(self._starts(axis)) + (self._size[axis] - 1) / 2
            voxels = np.arange(part.start, part.stop)
            weights = np.stack([np.interp(voxels, centers, unit) for unit in np.eye(len(centers))], axis=1)
            matrix = torch.from_numpy(weights).to(grid)
            grid = torch.tensordot(matrix, grid.movedim(axis, 0), dims=1).movedim(0, axis)
        return grid


def measured_voxels(tomogram: Tensor) -> Tensor:
    """Tell which voxels were measured: those that are no part of a region of exactly one value.

    Parameters
    ----------
    tomogram
        `(z, y, x)`.

    Returns
    -------
    `(z, y, x)`, bool. A region is five voxels wide at least, or reaches the tomogram's border: noise, also of whole
    numbers, has none.
    """
    flat: Tensor | None = None
    for axis in range(tomogram.ndim - 1, -1, -1):
        length = tomogram.shape[axis]
        same = tomogram.narrow(axis, 1, length - 1) == tomogram.narrow(axis, 0, length - 1)
        if not bool(same.any()):
            # The common case, found by a single look.
            return torch.ones(tomogram.shape, dtype=torch.bool, device=tomogram.device)
        flat = _both(same, axis) if flat is None else flat & _both(same, axis)
    assert flat is not None, "a tomogram has three axes"
    core = ~_grown(~flat, 1)
    return ~_grown(core, 2) if bool(core.any()) else torch.ones_like(flat)


def _bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """Find the smallest box that holds all voxels of a mask."""
    if not bool(mask.any()):
        raise ValueError(
            "expected a tomogram that varies, got the same value in every voxel; look at the file that it was read from"
        )
    return box_of(mask)


def box_of(mask: Tensor) -> tuple[slice, ...]:
    """Find the smallest box that holds all voxels of a mask, of which there is one at least."""
    box = []
    for axis in range(mask.ndim):
        places = mask.movedim(axis, 0).flatten(1).any(dim=1).nonzero()[:, 0]
        box.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(box)


def _both(same: Tensor, axis: int) -> Tensor:
    """Tell which voxels equal both neighbours along an axis; those outside the volume count as equal."""
    edge = torch.ones_like(same.narrow(axis, 0, 1))
    return torch.cat([edge, same], dim=axis) & torch.cat([same, edge], dim=axis)


def _grown(mask: Tensor, steps: int) -> Tensor:
    """Add the six neighbours of all voxels of a mask, some times."""
    if not bool(mask.any()):
        return mask
    for _ in range(steps):
        grown = mask.clone()
        for axis, length in enumerate(mask.shape):
            grown.narrow(axis, 1, length - 1).logical_or_(mask.narrow(axis, 0, length - 1))
            grown.narrow(axis, 0, length - 1).logical_or_(mask.narrow(axis, 1, length - 1))
        mask = grown
    return mask
