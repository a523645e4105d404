"""Projection of volumes into tilt-series, and its adjoint, the back-projection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import check_choice, check_ndim, check_positive
from faket_aug._runtime.threads import concrete_device
from faket_aug.geometry import Angles, as_tilt_angles, axis_index
from faket_aug.tomography.plane_map import (
    PlaneMap,
    Rows,
    csr_rows,
    geometry_cache,
    result_dtype,
    working_dtype,
)

EXTENDS = ("zero", "wrap")
BACKENDS = ("torch", "torch_radon")
#: Those that are used by default.
EXTEND, BACKEND = "zero", "torch"
#: The largest tilt angle with `extend="wrap"`, degrees: at 90° the beam would never leave a repeated specimen.
MAX_WRAP_TILT_DEG = 85.0


def project(
    volume: Tensor,
    tilt_angles: Angles,
    *,
    width: int | None = None,
    extend: str = EXTEND,
    backend: str = BACKEND,
    cache: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Project a volume at each tilt angle: rotate it with bilinear interpolation, and sum it along the beam.

    For the detector column x' and the step z' along the beam (integers, counted from the axis of rotation) the slice is
    interpolated at `(x' cos θ - z' sin θ, x' sin θ + z' cos θ)` and summed over z'. This is
    `skimage.transform.radon(circle=False)` at `-θ`. The map is linear and differentiable; `backproject` is its exact
    adjoint.

    Parameters
    ----------
    volume
        `(..., z, y, x)`, any number of leading axes.
    tilt_angles
        `(tilt,)`, degrees, right-handed about +y.
    width
        Columns of the detector; by default as many as the volume has along x.
    extend
        What lies beside the volume along x: nothing (`"zero"`), or copies of the volume (`"wrap"`), so that tilted
        views have no empty sides.
    backend
        `"torch"`, or `"torch_radon"` if that package is installed (on CUDA only, with `extend="zero"` only, and with
        another interpolation).
    cache
        Whether the geometry is kept for the next call. Set it to False for angles that are used once.
    device, dtype
        Device and dtype of the result; by default those of the volume (float32 for integers). The volume is copied
        there some rows of y at a time, so a volume in half precision, in host memory or on disk is never copied as a
        whole.

    Returns
    -------
    `(..., tilt, y, x')`.

    Raises
    ------
    ValueError
        For an unknown choice, an angle that is not finite, or a tilt beyond 85° with `extend="wrap"`.
    ImportError
        If `backend="torch_radon"`, and that package is not installed.
    """
    check_ndim("volume", volume, "... z y x")
    angles = as_tilt_angles(tilt_angles)
    depth, size = volume.shape[-3], volume.shape[-1]
    width = _checked(size if width is None else width, "width", extend, backend, angles)
    dtype = result_dtype(volume.dtype) if dtype is None else dtype
    where = volume.device if device is None else concrete_device(device)
    if backend == "torch_radon":
        _radon_extend(extend)
        return _radon_forward(volume.to(where, torch.float32), angles, width).to(dtype)
    plane_map = _ray_map(angles, depth, size, width, extend, where, working_dtype(dtype), cache=cache)
    return plane_map(volume).to(dtype)


def backproject(
    projections: Tensor,
    tilt_angles: Angles,
    *,
    depth: int,
    width: int | None = None,
    extend: str = EXTEND,
    backend: str = BACKEND,
) -> Tensor:
    """Back-project tilts along the beam: the exact adjoint (transpose) of `project`.

    Parameters
    ----------
    projections
        `(..., tilt, y, x')`, any number of leading axes.
    tilt_angles
        `(tilt,)`, degrees, right-handed about +y.
    depth
        Voxels of the volume along z.
    width
        Voxels of the volume along x; by default as many as the projections have columns.
    extend, backend
        As for `project`.

    Returns
    -------
    `(..., z, y, x)` on the projections' device, in their dtype (float32 for integers).

    Raises
    ------
    ValueError, ImportError
        As for `project`.
    """
    check_ndim("projections", projections, "... tilt y x")
    angles = as_tilt_angles(tilt_angles, count=projections.shape[-3])
    check_positive("depth", depth)
    columns = projections.shape[-1]
    size = _checked(columns if width is None else width, "width", extend, backend, angles)
    dtype = result_dtype(projections.dtype)
    if backend == "torch_radon":
        _radon_extend(extend)
        return _radon_adjoint(projections.to(torch.float32), angles, depth, size).to(dtype)
    plane_map = _ray_map(angles, depth, size, columns, extend, projections.device, working_dtype(dtype))
    return plane_map(projections, adjoint=True).to(dtype)


def _checked(width: int, name: str, extend: str, backend: str, angles: npt.NDArray[np.float64]) -> int:
    check_positive(name, width)
    check_choice("extend", extend, EXTENDS)
    check_choice("backend", backend, BACKENDS)
    steepest = float(np.abs(angles).max())
    if extend == "wrap" and steepest > MAX_WRAP_TILT_DEG:
        raise ValueError(
            f'expected tilts of at most {MAX_WRAP_TILT_DEG}° with `extend="wrap"`, got {steepest}°; '
            'set `extend` to "zero"'
        )
    return width


def _ray_map(
    angles: npt.NDArray[np.float64],
    depth: int,
    size: int,
    width: int,
    extend: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    cache: bool = True,
) -> PlaneMap:
    def build() -> PlaneMap:
        tilts = (_ray_weights(math.radians(a), depth, size, width, extend, device) for a in angles)
        return PlaneMap(tilts, (depth, size), (len(angles), width), device=device, dtype=dtype)

    if not cache:
        return build()
    key = ("rays", tuple(angles.tolist()), depth, size, width, extend, str(device), dtype)
    return geometry_cache.get(key, build)


def _ray_weights(tilt_rad: float, depth: int, size: int, width: int, extend: str, device: torch.device) -> Rows:
    """Weights `(x', z·x)` of one tilt, for one slice: bilinear interpolation, summed over the beam's steps."""
    cosine, sine = math.cos(tilt_rad), math.sin(tilt_rad)
    reach = _beam_reach(cosine, sine, depth, size, width, extend)
    column = torch.arange(width, device=device, dtype=torch.float64)[:, None] - axis_index(width)
    step = torch.arange(-reach, reach + 1, device=device, dtype=torch.float64)
    x = column * cosine - step * sine + axis_index(size)
    z = column * sine + step * cosine + axis_index(depth)
    seen = (z > -1) & (z < depth)
    if extend == "zero":
        seen &= (x > -1) & (x < size)
    row, x, z = seen.nonzero()[:, 0], x[seen], z[seen]
    x_low, z_low = x.floor(), z.floor()
    x_weight, z_weight = x - x_low, z - z_low
    rows, voxels, weights = [], [], []
    for iz, weight_z in ((z_low.long(), 1 - z_weight), (z_low.long() + 1, z_weight)):
        for ix, weight_x in ((x_low.long(), 1 - x_weight), (x_low.long() + 1, x_weight)):
            column_x = ix.remainder(size) if extend == "wrap" else ix
            weight = weight_z * weight_x
            inside = (iz >= 0) & (iz < depth) & (column_x >= 0) & (column_x < size) & (weight > 0)
            rows.append(row[inside])
            voxels.append((iz * size + column_x)[inside])
            weights.append(weight[inside])
    # The same voxel is met at several steps.
    return csr_rows(torch.cat(rows), torch.cat(voxels), torch.cat(weights), width)


def _beam_reach(cosine: float, sine: float, depth: int, size: int, width: int, extend: str) -> int:
    """Steps of the beam, to either side of the axis, that can meet the volume."""
    if extend == "zero":
        return math.ceil(math.hypot(depth, size)) // 2 + 2
    return math.ceil((depth / 2 + 1 + (width / 2 + 1) * abs(sine)) / cosine) + 1


def _radon_extend(extend: str) -> None:
    if extend != "zero":
        raise ValueError(f'expected `extend="zero"` with `backend="torch_radon"`, got {extend!r}')


def _radon_operator(angles: npt.NDArray[np.float64], depth: int, size: int, width: int) -> Any:
    try:
        from torch_radon import ParallelBeam
    except ImportError as error:
        raise ImportError(
            'expected the package torch-radon, version 2, for `backend="torch_radon"`, found none; build it from '
            'https://github.com/matteo-ronchetti/torch-radon against your torch, or set `backend` to "torch"'
        ) from error
    # It sees a point of an image, whose rows run downwards, at x cos θ - z sin θ: the sign of skimage.
    radians = torch.from_numpy(np.deg2rad(0.0 - angles)).float()
    return ParallelBeam(width, radians, volume=(depth, size))


def _radon_forward(volume: Tensor, angles: npt.NDArray[np.float64], width: int) -> Tensor:
    slices = volume.movedim(-2, -3).reshape(-1, volume.shape[-3], volume.shape[-1])
    odd = _pad_to_odd(slices, (-2, -1))
    operator = _radon_operator(angles, odd.shape[-2], odd.shape[-1], _odd(width))
    sinogram = operator.forward(odd)  # (batch, tilt, x')
    return _from_slices(sinogram[..., :width], volume.shape[:-3], volume.shape[-2])


def _radon_adjoint(projections: Tensor, angles: npt.NDArray[np.float64], depth: int, width: int) -> Tensor:
    slices = projections.movedim(-2, -3).reshape(-1, projections.shape[-3], projections.shape[-1])
    odd = _pad_to_odd(slices, (-1,))
    operator = _radon_operator(angles, _odd(depth), _odd(width), odd.shape[-1])
    volume = operator.backprojection(odd)  # (batch, z, x)
    return _from_slices(volume[:, :depth, :width], projections.shape[:-3], projections.shape[-2])


def _odd(length: int) -> int:
    """Next odd length: torch-radon turns about `(n - 1) / 2`, which is this package's `n // 2` for odd n only."""
    return length + 1 - length % 2


def _pad_to_odd(slices: Tensor, dims: Sequence[int]) -> Tensor:
    """Add an empty row or column behind, where a length is even; the axis stays in its voxel."""
    padding = [0, 0, 0, 0]
    for dim in dims:
        padding[-2 * dim - 1] = _odd(slices.shape[dim]) - slices.shape[dim]
    return torch.nn.functional.pad(slices, padding).contiguous()


def _from_slices(slices: Tensor, batch: Sequence[int], rows: int) -> Tensor:
    """Undo the slicing: `(batch·y, p, q)` to `(..., p, y, q)`."""
    return slices.reshape(*batch, rows, *slices.shape[-2:]).movedim(-3, -2)
