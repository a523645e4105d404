"""Kernels of the style transfer for GPUs, in Triton. Only what launches them imports this module.

Images have their channels last in memory: the kernels see them as `(pixels, channels)`. Each element of a result is
written by one program, and sums are taken in one order: the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Elements that one program takes, and the most channels of them: of all layers the same, so that little is compiled.
_TILE, _MOST_CHANNELS = 4096, 64
#: Elements of a tilt of which one program computes the sums, and elements that it takes at once.
_PART, _BLOCK = 2**14, 1024


def _tile(channels: int) -> tuple[int, int]:
    """Return how many pixels and channels one program takes: powers of two."""
    across = min(triton.next_power_of_2(channels), _MOST_CHANNELS)
    return max(1, _TILE // across), across


# Bias and ReLU --------------------------------------------------------------------------------------------------------


@triton.jit
def _own_tile(channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    # Neighbouring programs take the channels of the same pixels.
    across, number = tl.cdiv(channels, CHANNELS), tl.program_id(0)
    return number // across * ROWS + tl.arange(0, ROWS), number % across * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit(do_not_specialize=["rows"])
def _add_bias_relu(values, bias, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    row, channel = _own_tile(channels, ROWS, CHANNELS)
    row = row.to(tl.int64)
    at = values + row[:, None] * channels + channel[None, :]
    kept = (row < rows)[:, None] & (channel < channels)[None, :]
    value = tl.load(at, mask=kept, other=0.0)
    own = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    # Rounded between the two, as PyTorch does; NaN stays.
    found = (value.to(tl.float32) + own[None, :]).to(value.dtype).to(tl.float32)
    tl.store(at, tl.where(found <= 0.0, 0.0, found).to(value.dtype), mask=kept)


def add_bias_relu_(values: Tensor, bias: Tensor) -> Tensor:
    """Add `bias`, `(channels,)`, to `(n, channels, y, x)`, and set what is negative to 0; in place."""
    channels = values.shape[1]
    rows, (down, across) = values.numel() // max(channels, 1), _tile(channels)
    if rows:
        grid = (triton.cdiv(rows, down) * triton.cdiv(channels, across),)
        _add_bias_relu[grid](values, bias, rows, channels, ROWS=down, CHANNELS=across)
    return values


@triton.jit
def _add_relu_backward(gradient, own, activation, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = at < count
    first = tl.load(gradient + at, mask=kept, other=0.0)
    second = tl.load(own + at, mask=kept, other=0.0).to(tl.float32)
    passed = tl.load(activation + at, mask=kept, other=0.0).to(tl.float32)
    total = (first.to(tl.float32) + second).to(first.dtype)
    tl.store(gradient + at, tl.where(passed <= 0.0, 0.0, total.to(tl.float32)).to(first.dtype), mask=kept)


def add_relu_backward_(gradient: Tensor, own: Tensor, activation: Tensor) -> Tensor:
    """Add `own` to a gradient `(n, channels, y, x)`, and set it to 0 where ReLU let nothing through; in place."""
    count = gradient.numel()
    if count:
        _add_relu_backward[(triton.cdiv(count, _TILE),)](gradient, own, activation, count, BLOCK=_TILE)
    return gradient


# Pooling --------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["windows", "height", "width"])
def _max_pool(
    images,
    pooled,
    places,
    windows,
    height,
    width,
    channels,
    KEEP_PLACES: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    window, channel = _own_tile(channels, PIXELS, CHANNELS)
    kept = (window < windows)[:, None] & (channel < channels)[None, :]
    rows, columns = height // 2, width // 2
    x, y, image = window % columns, window // columns % rows, window // (columns * rows)
    first = ((image * height + 2 * y).to(tl.int64) * width + 2 * x) * channels
    at = images + first[:, None] + channel[None, :]
    value = tl.load(at, mask=kept, other=0.0)
    best = value.to(tl.float32)
    place = tl.zeros([PIXELS, CHANNELS], dtype=tl.int32)
    for number in tl.static_range(1, 4):
        step = (number // 2 * width + number % 2) * channels
        other = tl.load(at + step, mask=kept, other=0.0).to(tl.float32)
        # The first of equal values; the last NaN, as in PyTorch.
        later = (other > best) | (other != other)
        best = tl.where(later, other, best)
        place = tl.where(later, number, place)
    into = window.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(pooled + into, best.to(value.dtype), mask=kept)
    if KEEP_PLACES:
        tl.store(places + into, place.to(tl.uint8), mask=kept)


def max_pool(images: Tensor, keep_places: bool = True) -> tuple[Tensor, Tensor | None]:
    """Take the maxima of two by two pixels of `(n, channels, y, x)`, and their places, 0 to 3, as uint8."""
    n, channels, height, width = images.shape
    shape, last = (n, channels, height // 2, width // 2), torch.channels_last
    pooled = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=last)
    places = torch.empty(shape, dtype=torch.uint8, device=images.device, memory_format=last) if keep_places else None
    windows, (down, across) = n * (height // 2) * (width // 2), _tile(channels)
    if pooled.numel():
        grid = (triton.cdiv(windows, down) * triton.cdiv(channels, across),)
        _max_pool[grid](
            images,
            pooled,
            pooled if places is None else places,
            windows,
            height,
            width,
            channels,
            KEEP_PLACES=keep_places,
            PIXELS=down,
            CHANNELS=across,
        )
    return pooled, places


@triton.jit(do_not_specialize=["windows", "height", "width"])
def _max_unpool(
    gradient, places, result, windows, height, width, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):
    # Windows that an odd size cuts off are written, too: with 0.
    window, channel = _own_tile(channels, PIXELS, CHANNELS)
    kept = (window < windows)[:, None] & (channel < channels)[None, :]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    x, y, image = window % columns, window // columns % rows, window // (columns * rows)
    below, right = (2 * y + 1 < height)[:, None], (2 * x + 1 < width)[:, None]
    pixel = (image * (height // 2) + y).to(tl.int64) * (width // 2) + x
    pooled = pixel[:, None] * channels + channel[None, :]
    value = tl.load(gradient + pooled, mask=kept & below & right, other=0.0)
    place = tl.load(places + pooled, mask=kept & below & right, other=0).to(tl.int32)
    first = ((image * height + 2 * y).to(tl.int64) * width + 2 * x) * channels
    at = result + first[:, None] + channel[None, :]
    own, nothing = value.to(tl.float32), tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    tl.store(at, tl.where(place == 0, own, nothing).to(value.dtype), mask=kept)
    tl.store(at + channels, tl.where(place == 1, own, nothing).to(value.dtype), mask=kept & right)
    at += width * channels
    tl.store(at, tl.where(place == 2, own, nothing).to(value.dtype), mask=kept & below)
    tl.store(at + channels, tl.where(place == 3, own, nothing).to(value.dtype), mask=kept & below & right)


def max_unpool(gradient: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """Put gradients `(n, channels, y // 2, x // 2)` at the places of the maxima; all else is 0."""
    n, channels = gradient.shape[:2]
    result = torch.empty(
        (n, channels, height, width), dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last
    )
    windows, (down, across) = n * ((height + 1) // 2) * ((width + 1) // 2), _tile(channels)
    if result.numel():
        grid = (triton.cdiv(windows, down) * triton.cdiv(channels, across),)
        _max_unpool[grid](gradient, places, result, windows, height, width, channels, PIXELS=down, CHANNELS=across)
    return result


# Loss -----------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["parts"])
def _error_sums(found, target, sums, size, parts, PART: tl.constexpr, BLOCK: tl.constexpr):
    part, tilt = tl.program_id(0), tl.program_id(1)
    start = tilt.to(tl.int64) * size
    squares, sizes = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    for step in range(0, PART, BLOCK):
        at = part.to(tl.int64) * PART + step + tl.arange(0, BLOCK)
        kept = at < size
        own = tl.load(found + start + at, mask=kept, other=0.0).to(tl.float32)
        difference = own - tl.load(target + start + at, mask=kept, other=0.0).to(tl.float32)
        squares += difference * difference
        sizes += tl.abs(difference)
    into = sums + (tilt * parts + part) * 2
    tl.store(into, tl.sum(squares, axis=0))
    tl.store(into + 1, tl.sum(sizes, axis=0))


@triton.jit(do_not_specialize=["parts"])
def _error_scales(sums, scales, parts, weight, EPS: tl.constexpr, BLOCK: tl.constexpr):
    tilt = tl.program_id(0)
    squares, sizes = tl.zeros([BLOCK], dtype=tl.float64), tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        kept = part < parts
        at = sums + (tilt * parts + part) * 2
        squares += tl.load(at, mask=kept, other=0.0).to(tl.float64)
        sizes += tl.load(at + 1, mask=kept, other=0.0).to(tl.float64)
    square, total = tl.sum(squares, axis=0), tl.sum(sizes, axis=0) + EPS
    tl.store(scales + 2 * tilt, (2 * weight / total).to(tl.float32))
    tl.store(scales + 2 * tilt + 1, (weight * square / (total * total)).to(tl.float32))


@triton.jit
def _error_slope(found, target, scales, slope, size, BLOCK: tl.constexpr):
    tilt = tl.program_id(1)
    start = tilt.to(tl.int64) * size
    steep, level = tl.load(scales + 2 * tilt), tl.load(scales + 2 * tilt + 1)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = at < size
    own = tl.load(found + start + at, mask=kept, other=0.0)
    difference = own.to(tl.float32) - tl.load(target + start + at, mask=kept, other=0.0).to(tl.float32)
    sign = tl.where(difference > 0.0, 1.0, tl.where(difference < 0.0, -1.0, 0.0))
    tl.store(slope + start + at, (difference * steep - sign * level).to(own.dtype), mask=kept)


def error_slope(found: Tensor, target: Tensor, weight: float, eps: float) -> Tensor:
    """Derivative by `found`, `(n, elements)`, of `weight · Σd² / (Σ|d| + eps)` of each row, `d = found - target`."""
    n, size = found.shape
    slope = torch.empty_like(found)
    if slope.numel():
        parts = triton.cdiv(size, _PART)
        sums = torch.empty(n, parts, 2, dtype=torch.float32, device=found.device)
        scales = torch.empty(n, 2, dtype=torch.float32, device=found.device)
        _error_sums[(parts, n)](found, target, sums, size, parts, PART=_PART, BLOCK=_BLOCK)
        _error_scales[(n,)](sums, scales, parts, weight, EPS=eps, BLOCK=_BLOCK)
        _error_slope[(triton.cdiv(size, _TILE), n)](found, target, scales, slope, size, BLOCK=_TILE)
    return slope
