"""The conventions of the package, in one place: axes, signs, the axis of rotation, orientations.

Volumes are `(..., z, y, x)` and tilt-series `(..., tilt, y, x)`; the tilt axis is y and runs through voxel `n // 2`
of z and of x. A tilt by `θ` turns the specimen right-handedly about +y: a point `(x, z)` relative to the axis is seen
at `x' = x cos θ + z sin θ`. `skimage.transform.radon` has the other sign, so these angles are its at `-θ`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Angles = Sequence[float] | npt.NDArray[Any] | Tensor


def as_tilt_angles(tilt_angles: Angles, *, count: int | None = None) -> npt.NDArray[np.float64]:
    """Check tilt angles and return them as an array.

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees.
    count
        The number of tilts that there must be.

    Raises
    ------
    ValueError
        If they are not one-dimensional, not finite, none, or not `count`.
    """
    values = tilt_angles.detach().cpu().numpy() if isinstance(tilt_angles, Tensor) else np.asarray(tilt_angles)
    angles: npt.NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if angles.ndim != 1 or angles.size == 0:
        raise ValueError(f"expected `tilt_angles` of shape (tilt,) with at least one tilt, got shape {angles.shape}")
    if not np.isfinite(angles).all():
        raise ValueError(f"expected finite `tilt_angles` in degrees, got {angles.tolist()}")
    if count is not None and angles.size != count:
        raise ValueError(f"expected one tilt angle for each of {count} tilts, got {angles.size}; set `tilt_angles`")
    return angles


def axis_index(size: int) -> int:
    """Return the voxel index that the axis of rotation goes through, along an axis of `size` voxels."""
    return size // 2


def from_skimage_sign(tilt_angles: Angles) -> npt.NDArray[np.float64]:
    """Turn angles with skimage's (and SHREC's) sign into this package's, or back: `θ` becomes `-θ`."""
    # 0 - θ rather than -θ: no negative zero.
    return 0.0 - as_tilt_angles(tilt_angles)


def nearest_tilts(tilt_angles: Angles, others: Angles) -> npt.NDArray[np.int64]:
    """Find, for each tilt angle, the index of the nearest of `others` (the first of equals).

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees.
    others
        `(m,)`, degrees, in any order.
    """
    distance = np.abs(as_tilt_angles(tilt_angles)[:, None] - as_tilt_angles(others)[None, :])
    nearest: npt.NDArray[np.int64] = np.argmin(distance, axis=1).astype(np.int64)
    return nearest


def zxz_matrices(angles_deg: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Turn intrinsic ZXZ angles into rotation matrices `Rz(Z1) · Rx(X) · Rz(Z2)`.

    Parameters
    ----------
    angles_deg
        `(n, 3)`: Z1, X, Z2 in degrees, as SHREC's `particle_locations.txt`. A row with NaN has no orientation.

    Returns
    -------
    `(n, 3, 3)`, acting on column vectors `(x, y, z)` and turning the reference into the specimen; NaN where the row
    holds NaN.
    """
    z1, x, z2 = np.deg2rad(np.asarray(angles_deg, dtype=np.float64).reshape(-1, 3)).T
    return _turns(z1, axis=2) @ _turns(x, axis=0) @ _turns(z2, axis=2)


def _turns(angles_rad: npt.NDArray[np.float64], *, axis: int) -> npt.NDArray[np.float64]:
    """Make right-handed rotation matrices `(n, 3, 3)` about a coordinate axis of `(x, y, z)`."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrices = np.zeros((len(angles_rad), 3, 3))
    matrices[:, axis, axis] = 1.0
    matrices[:, first, first] = matrices[:, second, second] = np.cos(angles_rad)
    matrices[:, second, first] = np.sin(angles_rad)
    matrices[:, first, second] = -matrices[:, second, first]
    return matrices


def half_turn_about_tilt_axis(volume: Tensor) -> Tensor:
    """Turn a volume `(..., z, y, x)` by 180° about y: z and x run backwards."""
    return torch.flip(volume, dims=(-3, -1))
