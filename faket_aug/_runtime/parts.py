"""Computing a stack of images in parts, which fit the cache of a CPU and take little memory of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from faket_aug._runtime.threads import run_side_by_side

#: Pixels of one part.
_CPU_PIXELS, _GPU_PIXELS = 2**19, 2**26


def slices_of(images: Tensor, threads: int = 1) -> Iterator[slice]:
    """Yield slices that part a stack `(n, ...)`: one at least, or one for each thread if there are as many images."""
    pixels = _GPU_PIXELS if images.is_cuda else _CPU_PIXELS
    count = max(1, min(pixels // max(images[:1].numel(), 1), -(-len(images) // threads)))
    return (slice(start, start + count) for start in range(0, max(len(images), 1), count))


def by_parts(function: Callable[..., Tensor], *stacks: Tensor, dtype: torch.dtype) -> Tensor:
    """Apply a function to stacks `(n, ...)`, some images at a time; return one stack of `dtype`.

    The results of the function have the shape of the images of the first stack. What it makes of one image depends on
    no other: on a CPU each thread takes the next part.
    """
    first = stacks[0]
    result = torch.empty(first.shape, dtype=dtype, device=first.device)
    threads = torch.get_num_threads() if first.device.type == "cpu" and not _needs_grad(stacks) else 1

    def apply(part: slice) -> None:
        result[part] = function(*(stack[part] for stack in stacks))

    run_side_by_side([partial(apply, part) for part in slices_of(first, threads)], threads)
    return result


def _needs_grad(stacks: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(stack.requires_grad for stack in stacks)
