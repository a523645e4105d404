"""Tilts that are not quite where they are thought to be: what is left after a series was aligned."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from faket_aug._checks import check_ndim, check_positive
from faket_aug.geometry import Angles, as_tilt_angles, turns
from faket_aug.tomography.resample import transform_images

#: What is wrong with a tilt: its shifts along y and x, Å, its turn in its plane, degrees, and by how much its angle is
#: more than the nominal one, degrees.
ERRORS = ("shift_y", "shift_x", "rotation", "tilt_angle")
TiltErrors = tuple[tuple[float, ...], ...]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Misalignment:
    """How far tilts are from where the reconstruction takes them to be.

    Standard deviations of normal distributions. The specimen is projected at the true angles, and the images are turned
    and shifted; the tomogram is reconstructed as if nothing had happened.

    Parameters
    ----------
    shift
        Å, along y and along x, of each tilt.
    rotation
        Degrees, of each tilt in its plane, about the pixel `n // 2`.
    rotation_offset
        Degrees, of all tilts of a series together: an axis of rotation that is not quite y.
    tilt_angle
        Degrees, of each tilt's angle.
    tilt_angle_offset
        Degrees, of all angles of a series together.

    Raises
    ------
    ValueError
        If a deviation is negative or not finite.
    """

    shift: float = 0.0
    rotation: float = 0.0
    rotation_offset: float = 0.0
    tilt_angle: float = 0.0
    tilt_angle_offset: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = float(getattr(self, entry.name))
            if not 0 <= value < math.inf:
                raise ValueError(f"expected a finite `{entry.name}` of 0 or more, got {value}")
            object.__setattr__(self, entry.name, value)

    @property
    def tilts_differ(self) -> bool:
        """Whether tilts are at other angles than the nominal ones."""
        return self.tilt_angle > 0 or self.tilt_angle_offset > 0

    def drawn(self, count: int, generator: np.random.Generator) -> TiltErrors:
        """Draw what is wrong with each of `count` tilts, `(tilt, 4)`: the numbers that `ERRORS` names.

        A deviation of 0 changes nothing of the others' numbers.
        """
        each, common = generator.standard_normal((count, 4)), generator.standard_normal(2)
        rotation = each[:, 2] * self.rotation + common[0] * self.rotation_offset
        tilt = each[:, 3] * self.tilt_angle + common[1] * self.tilt_angle_offset
        rows = np.column_stack([each[:, :2] * self.shift, rotation, tilt])
        return tuple(tuple(row) for row in rows.tolist())


def true_tilt_angles(tilt_angles: Angles, errors: TiltErrors) -> FloatArray:
    """Return the angles that tilts were taken at, `(tilt,)`, degrees, of the nominal ones."""
    angles = as_tilt_angles(tilt_angles)
    return angles + _rows(errors, len(angles))[:, 3]


def misalign(images: Tensor, errors: TiltErrors, pixel_size: float) -> Tensor:
    """Turn and shift tilts, by cubic splines; what comes in at an edge is as the pixel nearest to it.

    What was at (x, y) from pixel `n // 2` comes to lie at `R (x, y) + shift`, with R from +x towards +y.

    Parameters
    ----------
    images
        `(tilt, y, x)`, floating point.
    errors
        `(tilt, 4)`, from `Misalignment.drawn`; the error of the tilt's angle, which is the projection's, is left alone.
    pixel_size
        Å.

    Returns
    -------
    `(tilt, y, x)` in the images' dtype; the images themselves where no tilt is shifted or turned.

    Raises
    ------
    ValueError
        If there are not as many errors as tilts, or the pixel size is not positive.
    """
    check_ndim("images", images, "tilt y x")
    rows = _rows(errors, len(images))
    if not rows[:, :3].any():
        return images
    check_positive("pixel_size", pixel_size)
    # The transform asks where a pixel comes from: the inverse of where it goes to.
    back = turns(-rows[:, 2])
    shifts_xy = rows[:, 1::-1] / pixel_size
    sources = -np.einsum("tij,tj->ti", back, shifts_xy)
    return transform_images(images, back, sources[:, ::-1], fill="edge")


def _rows(errors: Any, count: int) -> FloatArray:
    rows = np.asarray(errors, dtype=np.float64)
    if rows.shape != (count, len(ERRORS)):
        raise ValueError(f"expected errors of shape {(count, len(ERRORS))}, {', '.join(ERRORS)}, got {rows.shape}")
    return rows
