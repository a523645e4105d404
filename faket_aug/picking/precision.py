"""The precision that a network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from faket_aug.style.vgg19 import fastest_precision as fastest_precision

PRECISIONS = ("float32", "bfloat16")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Let a network compute in a precision of `PRECISIONS` on a device, for the length of a `with`.

    `"float32"` changes nothing: an autocast of the caller stays.
    """
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=torch.bfloat16)
