"""The conventions of the package, in one place: axes, signs, the axis of rotation, orientations.

Volumes are `(..., z, y, x)` and tilt-series `(..., tilt, y, x)`; the tilt axis is y and runs through voxel `n // 2`
of z and of x. A tilt by `θ` rotates the specimen right-handedly about +y: a point `(x, z)` relative to the axis is
seen at `x' = x cos θ + z sin θ`. `skimage.transform.radon` has the opposite sign: our `θ` is its `-θ`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray

Angles = Sequence[float] | npt.NDArray[Any] | Tensor


def as_tilt_angles(tilt_angles: Angles, *, count: int | None = None) -> FloatArray:
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
        If the angles are not one-dimensional, not finite, or not `count` in number, or if there are none.
    """
    values = tilt_angles.detach().cpu().numpy() if isinstance(tilt_angles, Tensor) else np.asarray(tilt_angles)
    try:
        angles: FloatArray = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"expected `tilt_angles` to be numbers, in degrees, got {tilt_angles!r:.200}") from None
    if angles.ndim != 1 or angles.size == 0:
        raise ValueError(f"expected `tilt_angles` of shape (tilt,) with at least one tilt, got shape {angles.shape}")
    if not np.isfinite(angles).all():
        raise ValueError(f"expected finite `tilt_angles` in degrees, got {angles.tolist()}")
    if count is not None and angles.size != count:
        raise ValueError(f"expected one tilt angle for each of {count} tilts, got {angles.size}; set `tilt_angles`")
    return angles


def axis_index(size: int) -> int:
    """Return the index of the voxel that the axis of rotation goes through, of `size` voxels."""
    return size // 2


def from_skimage_sign(tilt_angles: Angles) -> FloatArray:
    """Convert angles with skimage's (and SHREC's) sign to this package's, or back: `θ` becomes `-θ`."""
    # 0 - θ rather than -θ: no negative zero.
    return 0.0 - as_tilt_angles(tilt_angles)


def nearest_tilts(tilt_angles: Angles, others: Angles) -> IntArray:
    """Find the index of the nearest of `others` for each tilt angle; of two equally near, the first.

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees.
    others
        `(m,)`, degrees, in any order.
    """
    distance = np.abs(as_tilt_angles(tilt_angles)[:, None] - as_tilt_angles(others)[None, :])
    nearest: IntArray = np.argmin(distance, axis=1).astype(np.int64)
    return nearest


def joint_angles(*tilt_angles: Angles, tolerance: float | None = None) -> FloatArray:
    """Collect the angles of several series.

    Parameters
    ----------
    *tilt_angles
        `(tilt,)` each, degrees.
    tolerance
        Degrees; angles that differ by no more than this count as one. By default a quarter of the smallest median
        step between tilts, at most a quarter of a degree.

    Returns
    -------
    `(n,)`, degrees, increasing. Each given angle differs from one of them by no more than `tolerance`.
    """
    series = [as_tilt_angles(one) for one in tilt_angles]
    if tolerance is None:
        steps = [float(np.median(np.diff(np.sort(angles)))) for angles in series if len(angles) > 1]
        tolerance = min([1.0, *steps]) / 4
    chosen: list[float] = []
    for angle in np.unique(np.concatenate(series)).tolist():
        if not chosen or angle - chosen[-1] > tolerance:
            chosen.append(angle)
    return np.array(chosen)


def zxz_matrices(angles_deg: npt.ArrayLike) -> FloatArray:
    """Convert intrinsic ZXZ angles to rotation matrices `Rz(Z1) · Rx(X) · Rz(Z2)`.

    Parameters
    ----------
    angles_deg
        `(n, 3)`: Z1, X, Z2 in degrees, as in SHREC's `particle_locations.txt`. A row with NaN has no orientation.

    Returns
    -------
    `(n, 3, 3)`. The matrices act on column vectors `(x, y, z)` and rotate the reference into the specimen. They are NaN
    where the row holds NaN.
    """
    return _euler_matrices(angles_deg, "ZXZ")


def zxz_angles(matrices: npt.ArrayLike) -> FloatArray:
    """Convert rotation matrices to intrinsic ZXZ angles, the inverse of `zxz_matrices`.

    Parameters
    ----------
    matrices
        `(n, 3, 3)`, acting on column vectors `(x, y, z)`; NaN without orientation.

    Returns
    -------
    `(n, 3)`: Z1, X, Z2 in degrees; X from 0 to 180, the others from -180 to 180; NaN where the matrix holds NaN. Where
    X is 0 or 180, only the sum or the difference of the others is determined, and Z1 is 0.
    """
    return _euler_angles(matrices, axis=0)


def zyz_matrices(angles_deg: npt.ArrayLike) -> FloatArray:
    """Convert intrinsic ZYZ angles `(n, 3)`, in degrees, to rotation matrices `Rz(Z1) · Ry(Y) · Rz(Z2)`, `(n, 3, 3)`.

    NaN gives NaN, as in `zxz_matrices`.
    """
    return _euler_matrices(angles_deg, "ZYZ")


def zyz_angles(matrices: npt.ArrayLike) -> FloatArray:
    """Convert rotation matrices `(n, 3, 3)` to intrinsic ZYZ angles `(n, 3)` in degrees, the inverse of `zyz_matrices`.

    Y lies from 0 to 180; where it is 0 or 180, Z1 is 0.
    """
    return _euler_angles(matrices, axis=1)


def relion_matrices(angles_deg: npt.ArrayLike) -> FloatArray:
    """Convert RELION's rot, tilt and psi to rotation matrices that rotate the reference into the specimen.

    RELION's angles are intrinsic ZYZ angles of the *coordinate system*: they rotate the specimen into the reference.
    The matrix here, on column vectors `(x, y, z)`, is the transpose, `Rz(-psi) · Ry(-tilt) · Rz(-rot)`.

    Parameters
    ----------
    angles_deg
        `(n, 3)`: rot, tilt, psi in degrees.

    Returns
    -------
    `(n, 3, 3)`, template to specimen; NaN where the row holds NaN.

    References
    ----------
    Heymann, Chagoyen, Belnap, J. Struct. Biol. 151 (2005) 196; RELION's `Euler::anglesToMatrix3` and
    `ParticleSet::getMatrix4x4`, which "maps coordinates from particle space to tomogram space".
    """
    return zyz_matrices(angles_deg).transpose(0, 2, 1)


def relion_angles(matrices: npt.ArrayLike) -> FloatArray:
    """Convert rotation matrices `(n, 3, 3)`, template to specimen, to RELION's rot, tilt and psi `(n, 3)` in degrees.

    Tilt lies from 0 to 180; where it is 0 or 180, rot is 0.
    """
    return zyz_angles(np.asarray(matrices, dtype=np.float64).reshape(-1, 3, 3).transpose(0, 2, 1))


def quaternion_matrices(quaternions: npt.ArrayLike) -> FloatArray:
    """Convert quaternions **(w, x, y, z)** to rotation matrices on column vectors `(x, y, z)`.

    Parameters
    ----------
    quaternions
        `(n, 4)`, scalar first, of any length but 0; they are scaled to length 1.

    Returns
    -------
    `(n, 3, 3)`; NaN where the row holds NaN or only zeros.
    """
    from scipy.spatial.transform import Rotation

    values = np.asarray(quaternions, dtype=np.float64).reshape(-1, 4)
    length = np.linalg.norm(values, axis=1)
    # SciPy refuses zeros.
    known = np.isfinite(length) & (length > 0)
    matrices = np.full((len(values), 3, 3), np.nan)
    # SciPy's scalar comes last.
    matrices[known] = Rotation.from_quat(values[known][:, [1, 2, 3, 0]]).as_matrix()
    return matrices


def even_rotations(count: int) -> FloatArray:
    """Spread rotations evenly over all orientations. The same count gives the same rotations.

    Parameters
    ----------
    count
        How many, 1 or more. An orientation is `119° / count^(1/3)` from the nearest of them on average: 15° for 500.

    Returns
    -------
    `(count, 3, 3)`, rotation matrices on column vectors `(x, y, z)`.

    References
    ----------
    Alexa, Super-Fibonacci Spirals: Fast, Low-Discrepancy Sampling of SO(3), CVPR 2022, algorithm 1.
    """
    # The paper's constants: the square root of 2, and a root of ψ⁴ = ψ + 4.
    phi, psi = np.sqrt(2.0), 1.533751168755204288118041
    s = np.arange(count, dtype=np.float64) + 0.5
    inner, outer = np.sqrt(s / count), np.sqrt(1 - s / count)
    alpha, beta = 2 * np.pi * s / phi, 2 * np.pi * s / psi
    return quaternion_matrices(
        np.stack([outer * np.cos(beta), inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta)], axis=1)
    )


def _euler_matrices(angles_deg: npt.ArrayLike, axes: str) -> FloatArray:
    """Make rotation matrices `(n, 3, 3)` of intrinsic angles `(n, 3)` about `axes`; NaN gives NaN in its row only."""
    # Imported here: only orientations need it.
    from scipy.spatial.transform import Rotation

    angles = np.asarray(angles_deg, dtype=np.float64).reshape(-1, len(axes))
    known = np.isfinite(angles).all(axis=1)
    matrices = np.full((len(angles), 3, 3), np.nan)
    matrices[known] = Rotation.from_euler(axes, angles[known], degrees=True).as_matrix()
    return matrices


def _euler_angles(matrices: npt.ArrayLike, *, axis: int) -> FloatArray:
    """Find a, b, c in degrees with `R = Rz(a) · R_axis(b) · Rz(c)`, `axis` being x (0) or y (1).

    SciPy's `as_euler` is not used here. It takes all angles b below 1e-7 for 0, which loses as much of the orientation,
    it warns there, and it sets c to 0, not a.
    """
    values = np.asarray(matrices, dtype=np.float64).reshape(-1, 3, 3)
    # The last column says where z goes: up to the sign, (sin a, -cos a) · sin b for x and (cos a, sin a) · sin b for y.
    along, across = (0.0 - values[:, 1, 2], values[:, 0, 2]) if axis == 0 else (values[:, 0, 2], values[:, 1, 2])
    # Where z stays or is reversed, a could be anything. c is measured after a is undone, so nothing is lost there.
    lock = np.hypot(along, across) < 1e-12
    a = np.where(lock, 0.0, np.arctan2(across, along))
    rest = _euler_matrices(np.rad2deg(-a)[:, None], "Z") @ values
    if axis == 0:
        b, c = np.arctan2(-rest[:, 1, 2], rest[:, 2, 2]), np.arctan2(-rest[:, 0, 1], rest[:, 0, 0])
    else:
        b, c = np.arctan2(rest[:, 0, 2], rest[:, 2, 2]), np.arctan2(rest[:, 1, 0], rest[:, 1, 1])
    b = np.where(lock, np.where(values[:, 2, 2] > 0, 0.0, np.pi), b)
    # 0 + x rather than x: no negative zero.
    angles: FloatArray = 0.0 + np.rad2deg(np.stack([a, b, c], axis=1))
    angles[np.isnan(values).any(axis=(1, 2))] = np.nan
    return angles


def half_turn_about_tilt_axis(volume: Tensor) -> Tensor:
    """Rotate a volume `(..., z, y, x)` by 180° about y: z and x are reversed."""
    return torch.flip(volume, dims=(-3, -1))


def turns(angles_deg: npt.ArrayLike) -> FloatArray:
    """Make rotation matrices `(tilt, 2, 2)` on (x, y), which rotate +x towards +y."""
    angle = np.deg2rad(np.asarray(angles_deg, dtype=np.float64))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def half_turn(angles_deg: npt.ArrayLike) -> FloatArray:
    """Bring the angles of lines into [−90°, 90°): a line has no direction, so 180° more means the same."""
    wrapped: FloatArray = (np.asarray(angles_deg, dtype=np.float64) + 90) % 180 - 90
    return wrapped
