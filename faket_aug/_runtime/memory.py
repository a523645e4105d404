"""Keeping memory that was freed, because a CPU loses time with new pages; and finding how much is free."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from faket_aug._checks import check_fraction

#: Parameters of mallopt, from malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
#: The largest value that mallopt takes: blocks below 2 GiB are kept.
_LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, instead of giving it back to the system.

    A style transfer frees gigabytes and asks for them again, many times. The system must zero new pages each time. On a
    CPU this takes 30 % of the time in float32 (6.1 s for a tilt of 1024² become 4.2 s) and 25 % in bfloat16. With this
    call the memory of the process stays at its peak, and the peak grows by up to a half.

    Call it before anything else: threads that run already are not changed. The command line calls it, and so does each
    worker of a `DataLoader` over a dataset of this package. Use fewer workers if memory is short.

    Returns
    -------
    Whether glibc keeps memory now; `False` if there is no glibc. An allocator that was preloaded is not changed.

    References
    ----------
    `mallopt(3)`: `M_MMAP_THRESHOLD`, `M_TRIM_THRESHOLD`, and `M_ARENA_MAX`. Without the last, each thread would have
    its own heap, too small for large blocks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Older versions refuse so large a threshold, but they can be told to map no block.
    kept = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_MAX, 0)
    return all([kept, mallopt(_TRIM_THRESHOLD, _LARGEST), mallopt(_ARENA_MAX, 1)])


def free_memory_budget(device: torch.device | str = "cpu", *, share: float = 0.25) -> int:
    """Find a `memory_budget` for the style transfer from the memory that is free now. The default is 1 GiB.

    If tilts are small, a larger budget keeps a large GPU busier, because more tilts are computed together. The number
    of tilts in such a chunk changes the last bits of a result. The record of a simulation holds the budget.

    Parameters
    ----------
    device
        Where the simulation runs.
    share
        Share of the free memory to use, within [0, 1].

    Returns
    -------
    The budget in bytes. It is rounded down to a power of two, so that small changes of the free memory do not matter.
    """
    check_fraction("share", share)
    where = torch.device(device)
    free = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else _available_bytes()
    return int(2 ** max(0, int(share * free).bit_length() - 1))


def _available_bytes() -> int:
    """Return the memory of the machine that can be used without swapping."""
    path = Path("/proc/meminfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_memory() -> int:
    """Return the bytes of the machine's memory that can be used now without swapping."""
    return _available_bytes()
