"""Pooling of two by two pixels, and its derivative, which keeps little in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from faket_aug._runtime.kernels import Kernel
from faket_aug.style.layers import SAMPLE_SHAPES, channels_are_last, odd_images

MODES = ("max", "average", "l2")
#: Factors that keep features' scale when max pooling is replaced (as in published style transfer codes).
_SCALE = {"average": 2.0, "l2": 0.78}
#: The largest offset in a window is the width of the image plus 1; from this width on 16 bits are too few.
_INT16 = 2**15 - 1
#: Kernels count windows in 32 bits.
_MOST_PIXELS = 2**31


def pool(images: Tensor, mode: str) -> Tensor:
    """Pool `(n, channels, y, x)` to `(..., y // 2, x // 2)` by `"max"`, `"average"` (x 2) or `"l2"` (x 0.78)."""
    if mode == "max":
        return max_pool(images, False)[0] if images.is_cuda else functional.max_pool2d(images, 2)
    if mode == "average":
        return functional.avg_pool2d(images, 2) * _SCALE[mode]
    return functional.lp_pool2d(images, 2, 2) * _SCALE[mode]


def pool_with_pullback(images: Tensor, mode: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Pool as `pool` does, and return the function from gradients by the result to gradients by the images."""
    if mode == "max":
        return _max_on_a_gpu(images) if images.is_cuda else _max_with_pullback(images)
    pooled, shape, scale = pool(images, mode), images.shape, _SCALE[mode]
    if mode == "average":
        return pooled, lambda gradient: _repeat_pixels(gradient * (scale / 4), shape)

    def pullback(gradient: Tensor) -> Tensor:
        # d/dx sqrt(Σx²) = x / sqrt(Σx²), and 0 where all x are 0, as in lp_pool2d of torch.
        ratio = torch.where(pooled > 0, gradient * scale**2 / pooled, 0.0)
        return _repeat_pixels(ratio, shape) * images

    return pooled, pullback


def _max_with_pullback(images: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Find the places of the maxima when they are needed: the images are kept, and places take four times as much."""

    def pullback(gradient: Tensor) -> Tensor:
        _, indices = functional.max_pool2d(images, 2, return_indices=True)
        window, step, padding, dilation = [2, 2], [2, 2], [0, 0], [1, 1]
        gradients: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, images, window, step, padding, dilation, False, indices
        )
        return gradients

    return functional.max_pool2d(images, 2), pullback


def _max_on_a_gpu(images: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Keep the places of the maxima in one byte each, and add nothing: PyTorch's kernel for GPUs adds, in any order."""
    pooled, places = max_pool(images, True)
    assert places is not None, "they were asked for"
    height, width = images.shape[-2:]
    return pooled, lambda gradient: max_unpool(gradient, places, height, width)


def _plain_max_pool(images: Tensor, keep_places: bool) -> tuple[Tensor, Tensor | None]:
    """Pool, and find which pixel of its window each maximum is: 0 to 3, by rows."""
    if not keep_places:
        return functional.max_pool2d(images, 2), None
    pooled, indices = functional.max_pool2d(images, 2, return_indices=True)
    width = images.shape[-1]
    y, x = (torch.arange(size, device=pooled.device) for size in pooled.shape[-2:])
    # From the first pixel of their window: 0, 1, width or width + 1.
    offsets = indices.sub_(2 * (y[:, None] * width + x)).to(torch.int16 if width < _INT16 else torch.int32)
    return pooled, offsets.sub_((offsets >= width).to(offsets.dtype).mul_(width - 2)).to(torch.uint8)


def _plain_max_unpool(gradient: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """Put gradients at the maxima of their windows, in images of a size; all else is 0."""
    shape, last = (*gradient.shape[:2], height, width), torch.channels_last
    result = torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=last).zero_()
    whole = result[..., : height - height % 2, : width - width % 2]
    for place in range(4):
        whole[..., place // 2 :: 2, place % 2 :: 2] = gradient.masked_fill(places != place, 0)
    return result


def _launch_max_pool(images: Tensor, keep_places: bool) -> tuple[Tensor, Tensor | None]:
    from faket_aug.style import kernels

    return kernels.max_pool(images, keep_places)


def _launch_max_unpool(gradient: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    from faket_aug.style import kernels

    return kernels.max_unpool(gradient, places, height, width)


def _pool_samples(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, bool]]:
    for shape in SAMPLE_SHAPES:
        yield odd_images(device, dtype, shape), True
    yield odd_images(device, dtype, SAMPLE_SHAPES[0]), False


def _unpool_samples(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, int, int]]:
    for n, channels, height, width in SAMPLE_SHAPES:
        gradient = odd_images(device, dtype, (n, channels, height // 2, width // 2))
        places = torch.arange(gradient.numel(), device=device).remainder(4).to(torch.uint8).view(gradient.shape)
        yield gradient, places.contiguous(memory_format=torch.channels_last), height, width


max_pool = Kernel(
    "max_pool",
    launch=_launch_max_pool,
    plain=_plain_max_pool,
    samples=_pool_samples,
    accepts=lambda images, _: channels_are_last(images) and _count_in_32_bits(images),
)
max_unpool = Kernel(
    "max_unpool",
    launch=_launch_max_unpool,
    plain=_plain_max_unpool,
    samples=_unpool_samples,
    accepts=lambda gradient, places, *_: channels_are_last(gradient, places) and _count_in_32_bits(gradient, 4),
)


def _count_in_32_bits(images: Tensor, times: int = 1) -> bool:
    return times * images.numel() // max(images.shape[1], 1) < _MOST_PIXELS


def _repeat_pixels(images: Tensor, shape: torch.Size) -> Tensor:
    """Repeat each pixel twice along both axes. The last row or column of an odd size is 0."""
    repeated = images.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    rest = (0, shape[-1] - repeated.shape[-1], 0, shape[-2] - repeated.shape[-2])
    return functional.pad(repeated, rest)
