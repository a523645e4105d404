"""Settings that are a number, or a range (lowest, highest) from which a number is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_count, check_positive

Range = float | tuple[float, float]


_NO_PAIR = "expected `{}` to be one number or a pair (lowest, highest), got {!r}"


def as_range(name: str, value: Range, *, zero: bool = False) -> tuple[float, float]:
    """Return a number or a pair (lowest, highest) as a pair.

    Raises
    ------
    ValueError
        Unless it is an increasing pair of positive numbers (or zero, where `zero` allows it).
    """
    low, high = _as_pair(name, value)
    check_positive(name, low, zero=zero)
    if not low <= high < math.inf:
        raise ValueError(_NO_PAIR.format(name, value))
    return float(low), float(high)


def as_count(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Return a whole number or a pair (lowest, highest) of them as a pair.

    Raises
    ------
    ValueError
        Unless it is an increasing pair of whole numbers of 0 or more.
    """
    low, high = _as_pair(name, value)
    check_count(name, low, zero=True)
    check_count(name, high, zero=True)
    if low > high:
        raise ValueError(_NO_PAIR.format(name, value))
    return int(low), int(high)


def _as_pair(name: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, Sequence):
        return value, value
    if isinstance(value, str) or len(value) != 2:
        raise ValueError(_NO_PAIR.format(name, value))
    return value[0], value[1]


def turned_by(points: FloatArray | IntArray, matrix: FloatArray) -> FloatArray:
    """Multiply points `(..., 3)`, as rows, by a matrix `(3, m)`.

    The product is written out because a matrix library divides the rows among threads, and the last bits depend on
    their number.
    """
    return np.asarray(points[..., :1] * matrix[0] + points[..., 1:2] * matrix[1] + points[..., 2:] * matrix[2])
