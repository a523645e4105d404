"""Tomograms from tilt-series: filtered back-projection."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import check_choice, check_ndim, check_positive
from faket_aug._deprecations import renamed
from faket_aug.geometry import Angles, as_tilt_angles, axis_index
from faket_aug.tomography.filters import FILTER, FILTERS, filter_projections
from faket_aug.tomography.plane_map import PlaneMap, Rows, geometry_cache, result_dtype, working_dtype
from faket_aug.tomography.resample import RESAMPLING, RESAMPLINGS, bin_images


@renamed(binning="resampling")
def reconstruct(
    projections: Tensor,
    tilt_angles: Angles,
    *,
    depth: int,
    width: int | None = None,
    filter: str = FILTER,
    bin: int = 1,
    resampling: str = RESAMPLING,
) -> Tensor:
    """Reconstruct a tomogram by filtered back-projection.

    Each tilt is binned and weighted in Fourier space. Each voxel is the sum over all tilts of their values at
    `x cos θ + z sin θ`, by linear interpolation, times `π / tilts`. The map is linear: the contrast is not negated, and
    nothing is flipped.

    Parameters
    ----------
    projections
        `(..., tilt, y, x)`, any number of leading axes.
    tilt_angles
        `(tilt,)`, degrees, right-handed about +y.
    depth
        Voxels of the tomogram along z, after binning.
    width
        Voxels of the tomogram along x, after binning; by default the width of the binned tilts.
    filter
        `"shrec"` (that of FakET, in two dimensions), `"ramp"`, `"shepp-logan"`, `"cosine"`, `"hamming"`, `"hann"` or
        `"none"`.
    bin
        Binning factor: pixels of a tilt, along y and along x, that become one voxel.
    resampling
        How tilts are binned: by `"spline"`, the cubic spline of FakET, or by `"fourier"`, a crop of the spectrum. Both
        keep the axis of rotation in voxel `n // 2`.

    Returns
    -------
    `(..., z, y, x)` on the projections' device, in their dtype (float32 for integers).

    Raises
    ------
    ValueError
        For an unknown choice, or if the number of angles is not that of the tilts.

    References
    ----------
    Kak and Slaney, Principles of Computerized Tomographic Imaging, chapter 3.
    """
    check_ndim("projections", projections, "... tilt y x")
    angles = as_tilt_angles(tilt_angles, count=projections.shape[-3])
    check_positive("depth", depth)
    check_positive("bin", bin)
    check_choice("filter", filter, FILTERS)
    check_choice("resampling", resampling, RESAMPLINGS)
    dtype = result_dtype(projections.dtype)
    tilts = projections.to(working_dtype(dtype))
    if bin > 1:
        tilts = bin_images(tilts, bin, method=resampling)
    # The scale goes to the tilts, which are many times smaller than the tomogram.
    filtered, scale = filter_projections(tilts, filter), math.pi / len(angles)
    tilts = filtered * scale if filter == "none" else filtered.mul_(scale)
    size = tilts.shape[-1] if width is None else width
    check_positive("width", size)
    plane_map = voxel_map(angles, depth, size, tilts.shape[-1], tilts.device, tilts.dtype)
    # Differs from FakET: nothing is flipped along z, since projection and reconstruction have the same sign.
    return plane_map(tilts).to(dtype)


def voxel_map(
    angles: npt.NDArray[np.float64], depth: int, size: int, width: int, device: torch.device, dtype: torch.dtype
) -> PlaneMap:
    """Return the map from filtered tilts `(tilt, x')` to voxels `(z, x)`: the back-projection, without its scale."""

    def build() -> PlaneMap:
        slabs = (_voxel_weights(angles, z, size, width) for z in range(-axis_index(depth), depth - axis_index(depth)))
        return PlaneMap(slabs, (len(angles), width), (depth, size), device=device, dtype=dtype)

    key = ("voxels", tuple(angles.tolist()), depth, size, width, str(device), dtype)
    return geometry_cache.get(key, build)


def _voxel_weights(angles: npt.NDArray[np.float64], z: int, size: int, width: int) -> Rows:
    """Weights `(x, tilt·x')` of one row of voxels: linear interpolation in each tilt, nothing beyond its edges."""
    x = np.arange(size) - axis_index(size)
    tilt_rad = np.deg2rad(angles)
    place = x[:, None] * np.cos(tilt_rad) + z * np.sin(tilt_rad) + axis_index(width)  # (x, tilt)
    low = np.floor(place).astype(np.int64)
    column = low[..., None] + np.array([0, 1])  # (x, tilt, 2)
    weight = np.stack([1 - (place - low), place - low], axis=-1)
    seen = (place >= 0) & (place <= width - 1)
    inside = seen[..., None] & (weight > 0)
    index = column + (np.arange(len(angles)) * width)[None, :, None]
    ends = np.concatenate([[0], np.cumsum(inside.sum(axis=(1, 2)))])
    columns, weights = torch.from_numpy(index[inside]), torch.from_numpy(weight[inside])
    return Rows(ends=torch.from_numpy(ends), columns=columns, weights=weights)
