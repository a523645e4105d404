"""Tiles that cover a tomogram: where they lie, which part each decides, and how they fade into each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from faket_aug.picking.network import SIZE_MULTIPLE


class Span(NamedTuple):
    """A tile along one axis: its `start` and `stop`, and the part from `first` to `last` that it alone decides."""

    start: int
    stop: int
    first: int
    last: int


def spans_of(length: int, tile: int, overlap: int) -> list[Span]:
    """Cover an axis by tiles; the last one is moved back so that it ends with the axis."""
    if tile >= length:
        return [Span(0, length, 0, length)]
    step = tile - overlap
    starts = [*range(0, length - tile, step), length - tile]
    # Two neighbours share [next start, this stop); each keeps its half.
    seams = [0, *((a + tile + b) // 2 for a, b in pairwise(starts)), length]
    return [Span(s, s + tile, a, b) for s, a, b in zip(starts, seams[:-1], seams[1:], strict=True)]


def balanced(length: int, tile: int, overlap: int) -> int:
    """Return the smallest tile with which no more tiles cover an axis."""
    if tile >= length:
        return tile
    count = math.ceil((length - overlap) / (tile - overlap))
    needed = math.ceil((length + (count - 1) * overlap) / count)
    return needed + (-needed) % SIZE_MULTIPLE


def inner_part(tile: Sequence[Span]) -> list[slice]:
    """Return the part of a tile that it alone decides, within it."""
    return [slice(span.first - span.start, span.last - span.start) for span in tile]


def target_part(tile: Sequence[Span]) -> tuple[slice, ...]:
    """Return the same part, within the tomogram."""
    return tuple(slice(span.first, span.last) for span in tile)


def with_next(spans: Sequence[Span]) -> Iterator[tuple[Span, int]]:
    """Each tile, and where the next one begins (its own end for the last)."""
    starts = [span.start for span in spans[1:]] + [spans[-1].stop]
    return zip(spans, starts, strict=True)


def falling_weights(shape: Sequence[int], device: torch.device) -> Tensor:
    """Weights `(z, y, x)` that fall linearly to the borders, never to 0."""
    weights = torch.ones(tuple(shape), device=device)
    for axis, n in enumerate(shape):
        index = torch.arange(n, device=device, dtype=torch.float32)
        ramp = torch.minimum(index + 1, n - index) / n
        weights *= ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    return weights
