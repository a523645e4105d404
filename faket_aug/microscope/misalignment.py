"""Misalignment: the errors that are left after a tilt-series was aligned."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from faket_aug._checks import check_ndim, check_positive, is_number
from faket_aug.geometry import Angles, as_tilt_angles, turns
from faket_aug.tomography.resample import transform_images

#: The errors of a tilt: its shifts along y and x in Å, its rotation in its plane in degrees, and its true tilt angle
#: minus its nominal one in degrees.
ERRORS = ("shift_y", "shift_x", "rotation", "tilt_angle")
TiltErrors = tuple[tuple[float, ...], ...]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Misalignment:
    """The errors of the alignment that a reconstruction does not know of.

    Each parameter is the standard deviation of a normal distribution. The specimen is projected at the true tilt
    angles, and the images are rotated and shifted. The tomogram is reconstructed with the nominal angles, as if the
    tilts were aligned.

    Parameters
    ----------
    shift
        Å. Shift of each tilt along y and along x.
    rotation
        Degrees. Rotation of each tilt in its plane, about the pixel `n // 2`.
    rotation_offset
        Degrees. Rotation that all tilts of a series share: the tilt axis is not exactly y.
    tilt_angle
        Degrees. Error of each tilt angle.
    tilt_angle_offset
        Degrees. Error that all tilt angles of a series share.

    Raises
    ------
    ValueError
        If a standard deviation is negative or not finite.
    """

    shift: float = 0.0
    rotation: float = 0.0
    rotation_offset: float = 0.0
    tilt_angle: float = 0.0
    tilt_angle_offset: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not is_number(value) or value < 0:
                raise ValueError(f"expected a finite `{entry.name}` of 0 or more, got {value!r}")
            object.__setattr__(self, entry.name, float(value))

    @property
    def tilts_differ(self) -> bool:
        """Whether the true tilt angles differ from the nominal ones."""
        return self.tilt_angle > 0 or self.tilt_angle_offset > 0

    def drawn(self, count: int, generator: np.random.Generator) -> TiltErrors:
        """Draw the errors of `count` tilts, `(tilt, 4)`: the numbers that `ERRORS` names.

        With a standard deviation of 0, the other numbers are drawn as before.
        """
        each, common = generator.standard_normal((count, 4)), generator.standard_normal(2)
        rotation = each[:, 2] * self.rotation + common[0] * self.rotation_offset
        tilt = each[:, 3] * self.tilt_angle + common[1] * self.tilt_angle_offset
        rows = np.column_stack([each[:, :2] * self.shift, rotation, tilt])
        return tuple(tuple(row) for row in rows.tolist())


def true_tilt_angles(tilt_angles: Angles, errors: TiltErrors) -> FloatArray:
    """Return the true tilt angles, `(tilt,)`, degrees, for the nominal ones."""
    angles = as_tilt_angles(tilt_angles)
    return angles + _rows(errors, len(angles))[:, 3]


def misalign(images: Tensor, errors: TiltErrors, pixel_size: float) -> Tensor:
    """Rotate and shift tilts, by cubic splines. Beyond an edge, the nearest pixel is repeated.

    The position (x, y), counted from pixel `n // 2`, moves to `R (x, y) + shift`. R rotates from +x towards +y.

    Parameters
    ----------
    images
        `(tilt, y, x)`, floating point.
    errors
        `(tilt, 4)`, from `Misalignment.drawn`. The error of the tilt angle is not used: the projection has it.
    pixel_size
        Å.

    Returns
    -------
    `(tilt, y, x)` in the images' dtype; the images themselves if no tilt is shifted or rotated.

    Raises
    ------
    ValueError
        If the number of errors is not that of the tilts, or the pixel size is not positive.
    """
    check_ndim("images", images, "tilt y x")
    rows = _rows(errors, len(images))
    if not rows[:, :3].any():
        return images
    check_positive("pixel_size", pixel_size)
    # The transform reads each pixel of the result at its position in the image: the inverse of the movement.
    back = turns(-rows[:, 2])
    shifts_xy = rows[:, 1::-1] / pixel_size
    sources = -np.einsum("tij,tj->ti", back, shifts_xy)
    return transform_images(images, back, sources[:, ::-1], fill="edge")


def _rows(errors: Any, count: int) -> FloatArray:
    rows = np.asarray(errors, dtype=np.float64)
    if rows.shape != (count, len(ERRORS)):
        raise ValueError(f"expected errors of shape {(count, len(ERRORS))}, {', '.join(ERRORS)}, got {rows.shape}")
    return rows
