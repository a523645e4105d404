"""Types of NumPy arrays that annotations share, and numbers as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def as_float64(values: Any) -> Tensor:
    """Return numbers as a float64 tensor: a tensor stays on its device, others lie on the CPU."""
    place = values.device if isinstance(values, Tensor) else "cpu"
    return torch.as_tensor(values, dtype=torch.float64, device=place)
