"""Memory that is free, and memory that is kept: fresh pages cost a CPU as much time as what is computed in them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from faket_aug._checks import check_fraction

#: Of mallopt, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
#: The largest that mallopt takes: blocks below 2 GiB are kept.
_LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Let this process keep freed memory for itself instead of giving it back to the system.

    A style transfer frees and asks for gigabytes again and again; zeroing fresh pages takes 30 % of a CPU's time in
    float32 (6.1 s a tilt of 1024² become 4.2 s) and 25 % in bfloat16. The process' memory then stays at
    its peak, which grows by up to a half. Call it before anything else; threads that already run keep their habit. The
    command line does so, and so does each worker of a `DataLoader` over a `FakETDataset`: use fewer of these where
    memory is short.

    Returns
    -------
    Whether glibc does so now: `False` where there is none. An allocator that is preloaded goes on as it does.

    References
    ----------
    `mallopt(3)`: `M_MMAP_THRESHOLD`, `M_TRIM_THRESHOLD`, and `M_ARENA_MAX`, since threads would have heaps of their
    own, too small for large blocks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Older versions refuse so large a threshold, but map nothing when told so.
    kept = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_MAX, 0)
    return all([kept, mallopt(_TRIM_THRESHOLD, _LARGEST), mallopt(_ARENA_MAX, 1)])


def free_memory_budget(device: torch.device | str = "cpu", *, share: float = 0.25) -> int:
    """Find a `memory_budget` for the style transfer by what is free now, in place of the fixed default of 1 GiB.

    Larger chunks of tilts keep a large GPU busier where tilts are small. The number of tilts in a chunk changes the
    last bits of a result; a simulator's record remembers the budget.

    Parameters
    ----------
    device
        Where the simulation runs.
    share
        Of the free memory.

    Returns
    -------
    Bytes, rounded down to a power of two, so that a little more or less makes no difference.
    """
    check_fraction("share", share)
    where = torch.device(device)
    free = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else _available_bytes()
    return int(2 ** max(0, int(share * free).bit_length() - 1))


def _available_bytes() -> int:
    """Memory of the machine that can be had without swapping."""
    path = Path("/proc/meminfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
