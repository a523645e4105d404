"""Settings that are a number, or a range (lowest, highest) from which a number is drawn."""

from __future__ import annotations

import numpy as np

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_count, check_positive, checked_range

Range = float | tuple[float, float]


def as_range(name: str, value: Range, *, zero: bool = False) -> tuple[float, float]:
    """Return a number or a pair (lowest, highest) as a pair.

    Raises
    ------
    ValueError
        Unless it is an increasing pair of positive numbers (or zero, where `zero` allows it).
    """
    low, high = checked_range(name, value)
    check_positive(name, low, zero=zero)
    return low, high


def as_count(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Return a whole number or a pair (lowest, highest) of them as a pair.

    Raises
    ------
    ValueError
        Unless it is an increasing pair of whole numbers of 0 or more.
    """
    low, high = checked_range(name, value)
    for end in value if isinstance(value, list | tuple) else (value,):
        check_count(name, end, zero=True)
    return int(low), int(high)


def turned_by(points: FloatArray | IntArray, matrix: FloatArray) -> FloatArray:
    """Multiply points `(..., 3)`, as rows, by a matrix `(3, m)`.

    The product is written out because a matrix library divides the rows among threads, and the last bits depend on
    their number.
    """
    return np.asarray(points[..., :1] * matrix[0] + points[..., 1:2] * matrix[1] + points[..., 2:] * matrix[2])
