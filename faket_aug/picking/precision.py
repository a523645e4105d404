"""The precision that a network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from faket_aug.style.vgg19 import fastest_precision

#: bfloat16 where a device computes faster in it, else float32.
AUTO = "auto"
PRECISIONS = (AUTO, "float32", "bfloat16")


def chosen_precision(precision: str, device: str | torch.device) -> str:
    """Return what one of `PRECISIONS` means on a device: `"float32"` or `"bfloat16"`."""
    return fastest_precision(torch.device(device)) if precision == AUTO else precision


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Let a network compute in one of `PRECISIONS` on a device, for the length of a `with`.

    `"float32"` changes nothing: an autocast of the caller stays.
    """
    if chosen_precision(precision, device) == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
