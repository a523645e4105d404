"""Means, standard deviations and ranges of tilts; none of them makes a NaN of finite values.

`measured` is a mask: the other pixels do not count. An image without any measured pixel has a mean and a standard
deviation of 0, so that it counts as constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import check_quantiles
from faket_aug._masks import as_mask
from faket_aug._runtime.parts import by_parts, slices_of

#: A GPU's histograms are of so many bits, half of those of a number, and of so many values at once.
_BITS, _AT_ONCE = 16, 2**24
#: Others are whole numbers or fractions that float32 does not hold: they are sorted.
_HELD_BY_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16, torch.int16, torch.int8, torch.uint8)
#: Quantiles that are minimum and maximum.
FULL_RANGE = (0.0, 1.0)


def mean_std(images: Tensor, measured: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute the mean and the (population) standard deviation of each image.

    Parameters
    ----------
    images
        `(..., y, x)`.
    measured
        `(..., y, x)`, bool: the pixels that count; by default all.

    Returns
    -------
    Mean and standard deviation, each `(...)`, in float64.
    """
    flat = images.reshape(-1, *images.shape[-2:])
    mask = as_mask(measured, images)
    if mask is not None:
        each = [_of_pixels(one[own]) for one, own in zip(flat, mask.reshape(flat.shape), strict=True)]
        means, stds = (torch.stack(values).view(images.shape[:-2]) for values in zip(*each, strict=True))
        return means, stds
    parts = [torch.std_mean(flat[part].double(), dim=(-2, -1), correction=0) for part in slices_of(flat)]
    std, mean = (torch.cat(values).view(images.shape[:-2]) for values in zip(*parts, strict=True))
    return mean, std


def _of_pixels(values: Tensor) -> tuple[Tensor, Tensor]:
    if not len(values):
        return values.new_zeros((), dtype=torch.float64), values.new_zeros((), dtype=torch.float64)
    std, mean = torch.std_mean(values.double(), correction=0)
    return mean, std


def standardize(images: Tensor, measured: Tensor | None = None) -> Tensor:
    """Bring each image to mean 0 and standard deviation 1; a constant image becomes 0.

    Parameters
    ----------
    images
        `(..., y, x)`, floating point.
    measured
        `(..., y, x)`, bool: the pixels that count; by default all. The others are scaled in the same way.
    """
    mean, std = mean_std(images, measured)
    return _matched(images, (mean, std), torch.zeros_like(mean), (std > _flat(mean)).to(std.dtype))


def match_mean_std(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bring each image to a given mean and standard deviation; a constant image becomes that mean.

    Parameters
    ----------
    images
        `(..., y, x)`, floating point.
    mean, std
        `(...)`, in the unit of the result.
    """
    return _matched(images, mean_std(images), mean, std)


def _matched(images: Tensor, own: tuple[Tensor, Tensor], mean: Tensor, std: Tensor) -> Tensor:
    own_mean, own_std = own
    scale = torch.where(own_std > _flat(own_mean), std.to(own_std) / own_std.clamp_min(1e-300), 0.0)
    offset = mean.to(own_mean) - own_mean * scale
    flat, dtype = images.reshape(-1, *images.shape[-2:]), images.dtype
    if dtype == torch.float64:
        result = by_parts(_scaled, flat, _as_column(scale), _as_column(offset), dtype=dtype)
        return result.view(images.shape)
    # Subtracting first keeps float32's digits where the mean is much larger than the standard deviation.
    rounded = own_mean.to(dtype)
    shift = mean.to(own_mean) - (own_mean - rounded) * scale
    columns = (_as_column(values).to(dtype) for values in (rounded, scale, shift))
    return by_parts(_centred_and_scaled, flat, *columns, dtype=dtype).view(images.shape)


def _scaled(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    return images * scale + offset


def _centred_and_scaled(images: Tensor, mean: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    return (images - mean) * scale + offset


def _as_column(values: Tensor) -> Tensor:
    """Turn `(...)` into `(n, 1, 1)`, a number for each image."""
    return values.reshape(-1, 1, 1)


def constant_images(images: Tensor, measured: Tensor | None = None) -> list[int]:
    """List the indices of the images `(n, y, x)` that are constant, where they were `measured`."""
    mean, std = mean_std(images, measured)
    return [int(i) for i in (std <= _flat(mean)).nonzero().flatten()]


def refuse_constant(images: Tensor, tilt_angles: Iterable[float], name: str, measured: Tensor | None = None) -> None:
    """Refuse a series `(tilt, y, x)` with a tilt that is constant where it was `measured`.

    Raises
    ------
    ValueError
        If a tilt is constant; the message gives its index and angle.
    """
    constant, angles = constant_images(images, measured), list(tilt_angles)
    if constant:
        at = ", ".join(f"{angles[i]:g}°" for i in constant)
        raise ValueError(
            f"{name}: expected every tilt to vary, got constant tilt(s) {constant} (at {at}); leave them out of the "
            "series"
        )


def _flat(mean: Tensor) -> Tensor:
    """The standard deviation below which an image of this mean counts as constant: float32 rounds by as much."""
    return mean.abs() * 1e-7


def value_range(
    stack: Tensor, quantiles: tuple[float, float] = FULL_RANGE, measured: Tensor | None = None
) -> tuple[float, float]:
    """Find the values of a whole stack at two quantiles; `(0, 1)` gives minimum and maximum.

    Parameters
    ----------
    stack
        Any shape.
    quantiles
        Lower and upper quantile in [0, 1]. The nearest value is taken, without interpolation.
    measured
        bool, of the stack's shape: the pixels that count; by default all.
    """
    check_quantiles("quantiles", quantiles)
    mask = as_mask(measured, stack)
    if mask is not None:
        stack = stack[mask]
        if not stack.numel():
            return 0.0, 0.0
    if quantiles == (0.0, 1.0):
        low, high = torch.stack(torch.aminmax(stack)).tolist()
        return float(low), float(high)
    flat = stack.reshape(-1)
    ranks = [1 + round(q * (flat.numel() - 1)) for q in quantiles]
    if flat.is_cuda:
        return _at_ranks(flat, ranks)
    return float(flat.kthvalue(ranks[0]).values), float(flat.kthvalue(ranks[1]).values)


def _at_ranks(flat: Tensor, ranks: Sequence[int]) -> tuple[float, float]:
    """Find the values `(n,)` at two ranks, from 1, by two histograms: of the first and of the last bits of a number.

    On a GPU `kthvalue` gives all values to a single multiprocessor.
    """
    if flat.dtype not in _HELD_BY_FLOAT32:
        low, high = flat.sort().values[torch.tensor(ranks) - 1].tolist()
        return float(low), float(high)
    parts = torch.split(flat, _AT_ONCE)
    counts = sum(torch.bincount(_in_order(part) >> _BITS, minlength=2**_BITS) for part in parts)
    ends = torch.as_tensor(counts).cpu().cumsum(0)
    found = []
    for rank in ranks:
        first = int(torch.searchsorted(ends, rank))
        inside = torch.cat([key[key >> _BITS == first] for key in map(_in_order, parts)]) - (first << _BITS)
        left = rank - (int(ends[first - 1]) if first else 0)
        last = int(torch.searchsorted(torch.bincount(inside, minlength=2**_BITS).cpu().cumsum(0), left))
        found.append(_from_order((first << _BITS) + last))
    return found[0], found[1]


def _in_order(values: Tensor) -> Tensor:
    """Return whole numbers from 0 to 2³² - 1, int64, that are in the order of the values, which are float32 at most."""
    bits = values.to(torch.float32).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64) + 2**31


def _from_order(key: int) -> float:
    signed = key - 2**31
    return float(np.array(signed if signed >= 0 else signed ^ 0x7FFFFFFF, dtype=np.int32).view(np.float32))


def to_unit_range(stack: Tensor, quantiles: tuple[float, float] = FULL_RANGE, measured: Tensor | None = None) -> Tensor:
    """Scale a whole stack so that its values at two quantiles become 0 and 1; values outside are clamped.

    Only `measured` pixels count for the quantiles. A constant stack becomes 0.
    """
    return scale_to_unit(stack, value_range(stack, quantiles, measured))


def scale_to_unit(images: Tensor, limits: tuple[float, float]) -> Tensor:
    """Scale images so that `limits`, values of a stack at two quantiles, become 0 and 1; values outside are clamped.

    Where both limits are the same, the result is 0.
    """
    low, high = limits
    if high <= low:
        return torch.zeros_like(images)
    return ((images - low) / (high - low)).clamp_(0.0, 1.0)


def clip_images(images: Tensor, quantiles: tuple[float, float], measured: Tensor | None = None) -> Tensor:
    """Clip each image of `(n, y, x)` to its own `measured` values at two quantiles; `(0, 1)` changes nothing."""
    check_quantiles("quantiles", quantiles)
    if quantiles == (0.0, 1.0):
        return images
    mask = as_mask(measured, images)
    own = [None] * len(images) if mask is None else list(mask)
    return torch.stack(
        [image.clamp(*value_range(image, quantiles, one)) for image, one in zip(images, own, strict=True)]
    )
