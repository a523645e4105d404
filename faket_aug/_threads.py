"""A fixed number of intra-op threads: their number changes the order of sums, and so the last bits."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Run the body with `count` intra-op threads in this thread, then restore the number."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_forked_process() -> bool:
    """Tell whether this process was made by `fork` of the process that started it."""
    process = multiprocessing.current_process()
    if multiprocessing.parent_process() is None:
        return False
    method = getattr(type(process), "_start_method", None) or multiprocessing.get_start_method(allow_none=True)
    return bool(method == "fork")
