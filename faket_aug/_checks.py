"""One voice for all errors: what was expected, what was found, where, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Voxel sizes and pixel sizes that differ by this share at most are the same: programs calibrate, and round.
SIZE_TOLERANCE = 0.02


class FileFormatError(ValueError):
    """A file whose content is not what it has to be; the message names the file."""


class WeightsError(ValueError):
    """Encoder weights that are missing or belong to another network."""


class CacheError(OSError):
    """A cache folder that cannot be written."""


class SimulationError(RuntimeError):
    """A tomogram that could not be simulated; the message names its specimen."""


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise a `ValueError` that lists `choices` unless `value` is one of them."""
    options = list(choices)
    if value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"expected `{name}` to be one of {listed}, got {value!r}")


def checked_names(name: str, value: Any, choices: Iterable[Any], *, once: bool = True) -> tuple[str, ...]:
    """Return several of `choices` as a tuple, each `once`; a `ValueError` tells what else it is."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"expected `{name}` to be a tuple of names, got {value!r}; set it to a tuple")
    for one in value:
        check_choice(name, one, choices)
    if once and len(set(value)) < len(value):
        raise ValueError(f"expected each of `{name}` once, got {tuple(value)}")
    return tuple(value)


def check_count(name: str, value: int, *, zero: bool = False) -> None:
    """Raise a `ValueError` unless `value` is a whole number of 1 or more (or 0, where `zero` allows it)."""
    least = 0 if zero else 1
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"expected `{name}` to be a whole number of {least} or more, got {value!r}")


def is_number(value: Any) -> bool:
    """Tell whether an object is a finite number, and not a boolean; arrays and tensors of no axis are numbers."""
    if isinstance(value, np.ndarray | Tensor) and value.ndim == 0:
        value = value.item()
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Raise a `ValueError` unless `value` is a finite positive number (or zero, where `zero` allows it)."""
    bound = "0 or more" if zero else "more than 0"
    if not is_number(value):
        raise ValueError(f"expected `{name}` to be a finite number, {bound}, got {value!r}")
    if value < 0 or (value == 0 and not zero):
        raise ValueError(f"expected `{name}` to be {bound}, got {value!r}")


def check_flag(name: str, value: bool) -> None:
    """Raise a `ValueError` unless `value` is True or False: a text such as "no" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"expected `{name}` to be True or False, got {value!r}")


def checked_range(name: str, value: Any) -> tuple[float, float]:
    """Return one number, or a pair (lowest, highest), as a pair; a `ValueError` tells what else it is."""
    ends = value if isinstance(value, list | tuple) else (value, value)
    if len(ends) != 2 or not all(map(is_number, ends)) or ends[0] > ends[1]:
        raise ValueError(f"expected `{name}` to be one number or a pair (lowest, highest), got {value!r}")
    return float(ends[0]), float(ends[1])


def check_fraction(name: str, value: float) -> None:
    """Raise a `ValueError` unless `value` lies in [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"expected `{name}` to lie in [0, 1], got {value!r}")


def check_quantiles(name: str, quantiles: tuple[float, float]) -> None:
    """Raise a `ValueError` unless `quantiles` is an increasing pair within [0, 1]."""
    low, high = quantiles
    if not 0 <= low < high <= 1:
        raise ValueError(f"expected `{name}` to be a pair 0 <= low < high <= 1, got {quantiles!r}")


def same_size(size: float, other: float) -> bool:
    """Tell whether two voxel sizes or pixel sizes, both known, are the same within 2 %."""
    return math.isclose(size, other, rel_tol=SIZE_TOLERANCE)


def check_same_size(
    what: str, size: float, other: str, other_size: float, *, unit: str = "voxels", advice: str = "bin them alike"
) -> None:
    """Raise a `ValueError` if two voxel sizes or pixel sizes differ by more than 2 %; 0, not known, is not compared.

    Parameters
    ----------
    what, other
        Whose sizes they are: names of specimens, series or files.
    size, other_size
        Å.
    unit
        `"voxels"` or `"pixels"`.
    advice
        What to do.
    """
    if size > 0 and other_size > 0 and not same_size(size, other_size):
        raise ValueError(f"{what}: expected {unit} of {other_size:g} Å, as of {other}, got {size:g} Å; {advice}")


def check_tensor(name: str, value: Any) -> None:
    """Raise a `TypeError` that says how to make a tensor of `value`, unless it is one."""
    if isinstance(value, Tensor):
        return
    make = "torch.from_numpy" if type(value).__module__ == "numpy" else "torch.tensor"
    raise TypeError(f"expected `{name}` as a tensor, got {type(value).__name__}; give `{make}({name})`")


def check_ndim(name: str, tensor: Tensor, axes: str) -> None:
    """Raise a `ValueError` unless `tensor` has the axes named in `axes` (leading `...` allows any number).

    What is no tensor is a `TypeError`.
    """
    check_tensor(name, tensor)
    names = axes.split()
    batched = names[0] == "..."
    wanted = len(names) - batched
    if tensor.ndim < wanted or (not batched and tensor.ndim != wanted):
        raise ValueError(f"expected `{name}` of shape ({', '.join(names)}), got {tuple(tensor.shape)}")


def check_same_shape(name: str, shape: Sequence[int], other: str, other_shape: Sequence[int]) -> None:
    """Raise a `ValueError` unless both shapes are equal."""
    if tuple(shape) != tuple(other_shape):
        raise ValueError(f"expected `{name}` to have the shape of `{other}`, {tuple(other_shape)}, got {tuple(shape)}")


#: Values that `check_finite` looks at together.
_CHECKED = 2**24


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise a `FileFormatError` that counts the NaN and infinite values of `what`, if there are any."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # Some sections at a time: so is what is larger than memory.
    step = max(1, _CHECKED // tensor[0].numel())
    count = 0
    first: tuple[int, ...] = ()
    for start in range(0, len(tensor), step):
        part = tensor[start : start + step]
        # The sum is finite exactly when no value is NaN or infinite (short of overflow), and needs no mask.
        if bool(torch.isfinite(part.sum(dtype=torch.float64))):
            continue
        bad = (~torch.isfinite(part)).nonzero()
        if len(bad) and not count:
            first = (start + int(bad[0, 0]), *(int(i) for i in bad[0, 1:]))
        count += len(bad)
    if count == 0:
        return
    raise FileFormatError(
        f"{what}: expected finite numbers, got {count} NaN or infinite values, the first at index {first}; "
        "replace them before use"
    )
