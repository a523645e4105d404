"""Computing a stack of images in parts, which fit the cache of a CPU and take little memory of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

#: Pixels of one part.
_CPU_PIXELS, _GPU_PIXELS = 2**19, 2**26


def slices_of(images: Tensor) -> Iterator[slice]:
    """Yield slices that part a stack `(n, ...)`. There is at least one."""
    pixels = _GPU_PIXELS if images.is_cuda else _CPU_PIXELS
    count = max(1, pixels // max(images[:1].numel(), 1))
    return (slice(start, start + count) for start in range(0, max(len(images), 1), count))


def by_parts(function: Callable[..., Tensor], *stacks: Tensor, dtype: torch.dtype) -> Tensor:
    """Apply a function to stacks `(n, ...)`, some images at a time; return one stack of `dtype`.

    The results of the function have the shape of the images of the first stack.
    """
    result = torch.empty(stacks[0].shape, dtype=dtype, device=stacks[0].device)
    for part in slices_of(stacks[0]):
        result[part] = function(*(stack[part] for stack in stacks))
    return result
