"""Which rank of a distributed job this process is."""

from __future__ import annotations

import os

import torch


def known_ranks() -> tuple[int, int] | None:
    """Return rank and world size, from `torch.distributed` or torchrun's environment; `None` if they are not known."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return None


def current_gpu() -> int | None:
    """Return the index of this thread's current GPU; `None` before CUDA is used."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
