"""The precision that a network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from faket_aug.style.vgg19 import cpu_has_bfloat16

PRECISIONS = ("float32", "bfloat16")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Let a network compute in a precision of `PRECISIONS` on a device, for the length of a `with`.

    `"float32"` changes nothing: an autocast of the caller stays.
    """
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=torch.bfloat16)


def fastest_precision(device: torch.device) -> str:
    """Return `"bfloat16"` where a device computes faster in it, else `"float32"`."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Without such instructions a CPU is slower in bfloat16.
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"
