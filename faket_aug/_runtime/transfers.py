"""Copies between the host and a GPU: those that nobody waits for, and several at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

#: Bytes that are locked in host memory for one copy. PyTorch keeps such blocks, in powers of two, for the next copies.
_PIECE = 2**26
#: Bytes between the starts of two tensors that travel together: GPUs read whole blocks of memory.
_ALIGNED = 16


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device. From the host to a GPU the program does not wait for the copy.

    Where the system locks no more memory, it waits.
    """
    place = torch.device(device)
    if tensor.device.type != "cpu" or place.type != "cuda":
        return tensor.to(place)
    if tensor.ndim == 0 or _bytes(tensor) <= _PIECE:
        return pinned(tensor).to(place, non_blocking=True)
    result = torch.empty(tensor.shape, dtype=tensor.dtype, device=place)
    step = max(1, _PIECE // _bytes(tensor[0]))
    for start in range(0, len(tensor), step):
        result[start : start + step].copy_(pinned(tensor[start : start + step]), non_blocking=True)
    return result


def pinned(tensor: Tensor) -> Tensor:
    """Copy a tensor to memory of the host that is locked, from which a GPU reads by itself."""
    if tensor.is_pinned():
        return tensor
    try:
        # Not `pin_memory`, which would lock all of the memory that a part of a volume is spread over.
        buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    except RuntimeError:
        return tensor
    return buffer.copy_(tensor)


def moved(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Put tensors on a device, those from one other device by one copy, which is what a program waits for.

    Parameters
    ----------
    tensors
        On any devices.
    device
        Where they are wanted; a GPU with its index.

    Returns
    -------
    The same tensors on the device, in the same order. Those that travelled together are parts of one block of memory.
    """
    place = torch.device(device)
    away: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.device != place:
            away.setdefault(tensor.device, []).append(name)
    found = dict(tensors)
    for names in away.values():
        if len(names) == 1:
            found[names[0]] = sent(tensors[names[0]], place)
        else:
            found |= _together({name: tensors[name] for name in names}, place)
    return found


def _together(tensors: Mapping[str, Tensor], place: torch.device) -> dict[str, Tensor]:
    own = next(iter(tensors.values())).device
    starts, end = {}, 0
    for name, tensor in tensors.items():
        starts[name], end = end, end + math.ceil(_bytes(tensor) / _ALIGNED) * _ALIGNED
    block = torch.empty(end, dtype=torch.uint8, device=own)
    for name, tensor in tensors.items():
        _part(block, starts[name], tensor).copy_(tensor)
    block = sent(block, place)
    return {name: _part(block, starts[name], tensor) for name, tensor in tensors.items()}


def _part(block: Tensor, start: int, like: Tensor) -> Tensor:
    """Return the part of a block of bytes that holds a tensor of this shape and dtype."""
    return block[start : start + _bytes(like)].view(like.dtype).view(like.shape)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
