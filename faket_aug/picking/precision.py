"""The precision that a network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from faket_aug.style.vgg19 import fastest_precision

PRECISIONS = ("float32", "bfloat16")
#: Where a precision is chosen: bfloat16 where the device computes faster in it.
AUTO = "auto"
PRECISION_CHOICES = (AUTO, *PRECISIONS)


def chosen_precision(choice: str, device: str | torch.device) -> str:
    """Return the precision that a choice of `PRECISION_CHOICES` means on a device."""
    return fastest_precision(torch.device(device)) if choice == AUTO else choice


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Let a network compute in a precision of `PRECISIONS` on a device, for the length of a `with`.

    `"float32"` changes nothing: an autocast of the caller stays.
    """
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=torch.bfloat16)
