"""Whether freed memory goes back to the system: fresh pages cost a CPU as much time as what is computed in them."""

from __future__ import annotations

import ctypes

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
