"""Tilt angles as a command line or a file says them."""

from __future__ import annotations

from typing import Any

import numpy as np

from faket_aug.formats._text import MAX_TILT
from faket_aug.geometry import as_tilt_angles

#: Degrees, where neither angles nor a style are given: first, last and step.
TILT_ANGLES = "-60:60:3"
#: More than any series has.
_MOST_TILTS = 10_000


def parse_angles(value: Any) -> Any:
    """Read `first:last:step` or a list into angles, degrees; a path stays as it is."""
    if not isinstance(value, str):
        return _possible([float(one) for one in value])
    if value.count(":") != 2:
        return value
    first, last, step = (float(part) for part in value.split(":"))
    if not (step > 0 and 0 <= last - first <= _MOST_TILTS * step):
        raise ValueError
    # Half a step beyond, so that rounding does not lose the last.
    return _possible(np.arange(first, last + step / 2, step))


def _possible(angles: Any) -> tuple[float, ...]:
    """Refuse angles that no stage has."""
    found = as_tilt_angles(angles)
    if np.abs(found).max() > MAX_TILT:
        raise ValueError
    return tuple(found.tolist())
