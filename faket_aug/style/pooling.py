"""Pooling of two by two pixels, and its derivative, which keeps little in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

MODES = ("max", "average", "l2")
#: The largest offset in a window is the width of the image plus 1; from this width on 16 bits are too few.
_INT16 = 2**15 - 1
#: Factors that keep features' scale when max pooling is replaced (as in published style transfer codes).
_SCALE = {"average": 2.0, "l2": 0.78}


def pool(images: Tensor, mode: str) -> Tensor:
    """Pool `(n, channels, y, x)` to `(..., y // 2, x // 2)` by `"max"`, `"average"` (x 2) or `"l2"` (x 0.78)."""
    if mode == "max":
        return functional.max_pool2d(images, 2)
    if mode == "average":
        return functional.avg_pool2d(images, 2) * _SCALE[mode]
    return functional.lp_pool2d(images, 2, 2) * _SCALE[mode]


def pool_with_pullback(images: Tensor, mode: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Pool as `pool` does, and return the function from gradients by the result to gradients by the images."""
    if mode == "max":
        return _max_with_pullback(images)
    pooled, shape, scale = pool(images, mode), images.shape, _SCALE[mode]
    if mode == "average":
        return pooled, lambda gradient: _repeat_pixels(gradient * (scale / 4), shape)

    def pullback(gradient: Tensor) -> Tensor:
        # d/dx sqrt(Σx²) = x / sqrt(Σx²), and 0 where all x are 0, as in lp_pool2d of torch.
        ratio = torch.where(pooled > 0, gradient * scale**2 / pooled, 0.0)
        return _repeat_pixels(ratio, shape) * images

    return pooled, pullback


def _max_with_pullback(images: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Keep the positions of the maxima, from the first pixel of their window, in two bytes each instead of eight."""
    pooled, indices = functional.max_pool2d(images, 2, return_indices=True)
    firsts = _first_pixels(images.shape[-1], pooled)
    offsets = indices.sub_(firsts).to(torch.int16 if images.shape[-1] < _INT16 else torch.int64)

    def pullback(gradient: Tensor) -> Tensor:
        if images.is_cuda:
            return _at_maxima(gradient, offsets, images)
        window, step, padding, dilation = [2, 2], [2, 2], [0, 0], [1, 1]
        gradients: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, images, window, step, padding, dilation, False, offsets + firsts
        )
        return gradients

    return pooled, pullback


def _at_maxima(gradient: Tensor, offsets: Tensor, images: Tensor) -> Tensor:
    """Put gradients at the maxima of their windows, without adding: PyTorch's kernel for GPUs adds, in any order."""
    result = torch.zeros_like(images)
    height, width = (2 * side for side in gradient.shape[-2:])
    for y in (0, 1):
        for x in (0, 1):
            elsewhere = offsets != y * images.shape[-1] + x
            result[..., y:height:2, x:width:2] = gradient.masked_fill(elsewhere, 0)
    return result


def _first_pixels(width: int, pooled: Tensor) -> Tensor:
    """Return the index, in an image of this width, of the first pixel of each window."""
    y, x = (torch.arange(size, device=pooled.device) for size in pooled.shape[-2:])
    return 2 * (y[:, None] * width + x)


def _repeat_pixels(images: Tensor, shape: torch.Size) -> Tensor:
    """Repeat each pixel twice along both axes. The last row or column of an odd size is 0."""
    repeated = images.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    rest = (0, shape[-1] - repeated.shape[-1], 0, shape[-2] - repeated.shape[-2])
    return functional.pad(repeated, rest)
