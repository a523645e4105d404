"""The derivative of the loss of FakET, which content and style have in common."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from faket_aug._runtime.kernels import DTYPES, Kernel
from faket_aug.style.gram import block_of, wide

#: Added to the sum of the differences.
_EPS = 1e-8


def error_slope(found: Tensor, target: Tensor, weight: float = 1.0) -> Tensor:
    """Derivative by `found` of `weight · Σd² / (Σ|d| + 1e-8)` of each tilt, with `d = found - target`.

    The loss is that of FakET: its gradient does not depend on the scale of the layer.

    Parameters
    ----------
    found, target
        Features `(n, channels, y, x)`, or Gram matrices `(n, channels, channels)`.
    weight
        Weight of the loss.

    Returns
    -------
    As `found`, in its dtype; of features the channels are last in memory.
    """
    # Channels are last in memory: so flattened, nothing is copied.
    order = (0, 2, 3, 1) if found.ndim == 4 else (0, 1, 2)
    slope = slope_of_rows(found.permute(order).flatten(1), target.permute(order).flatten(1), weight)
    unflattened = slope.view([found.shape[axis] for axis in order])
    return unflattened.permute(0, 3, 1, 2) if found.ndim == 4 else unflattened


def _plain_slope(found: Tensor, target: Tensor, weight: float) -> Tensor:
    """Compute the slope of rows `(n, elements)` block by block: intermediate results are never in memory as a whole."""
    slope = torch.empty_like(found)
    size = min(block_of(found), slope.shape[1])
    buffer = slope.new_empty(size, dtype=wide(found.dtype))
    for own, wanted, result in zip(found, target, slope, strict=True):
        blocks = list(zip(*(torch.split(values, size) for values in (own, wanted, result)), strict=True))
        sums = torch.zeros(2, device=found.device, dtype=torch.float64)
        for a, b, _ in blocks:
            difference = buffer[: len(a)].copy_(a).sub_(b)
            sums += torch.stack([torch.dot(difference, difference), difference.abs_().sum()])
        total = sums[1] + _EPS
        steep, level = (2 * weight / total).to(buffer.dtype), (weight * sums[0] / total**2).to(buffer.dtype)
        for a, b, out in blocks:
            difference = buffer[: len(a)].copy_(a).sub_(b)
            out.copy_((difference * steep).sub_(difference.sign_().mul_(level)))
    return slope


def _launch_slope(found: Tensor, target: Tensor, weight: float) -> Tensor:
    from faket_aug.style import kernels

    # Triton takes Python's numbers, not NumPy's.
    return kernels.error_slope(found, target, float(weight), _EPS)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, float]]:
    generator = torch.Generator().manual_seed(0)
    for size in (2**15, 20_001):
        found, target = torch.randn(2, 3, size, generator=generator, device="cpu")
        found[0, ::3], found[1, 7] = target[0, ::3], torch.nan
        yield found.to(device, dtype), target.to(device, dtype), 0.75


slope_of_rows = Kernel(
    "error_slope",
    launch=_launch_slope,
    plain=_plain_slope,
    samples=_samples,
    accepts=lambda found, target, _: found.is_contiguous() and target.is_contiguous() and target.dtype in DTYPES,
    # Sums are taken in another order.
    tolerance=1e-5,
)
