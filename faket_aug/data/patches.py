"""Cutting patches from volumes, normalizing them, and drawing spheres as labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Size = tuple[int, int, int]


def as_size(patch_size: int | Sequence[int]) -> Size:
    """Return a patch size as `(z, y, x)`. One number means a cube.

    Raises
    ------
    ValueError
        If it is not one or three positive numbers.
    """
    sizes = np.ravel(patch_size).tolist()
    sizes = sizes * 3 if np.ndim(patch_size) == 0 else sizes
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"expected `patch_size` to be one or three positive numbers (z, y, x), got {patch_size!r}")
    return sizes[0], sizes[1], sizes[2]


def check_fits(size: Size, shape: Sequence[int]) -> None:
    """Raise a `ValueError` unless a patch of `size` fits a volume of `shape`, both (z, y, x)."""
    if any(patch > volume for patch, volume in zip(size, shape, strict=True)):
        raise ValueError(
            f"expected a patch that fits the tomogram of {tuple(int(n) for n in shape)} voxels (z, y, x), got "
            f"{tuple(size)}; set `patch_size` smaller"
        )


def clamp_center(center: npt.ArrayLike, size: Size, shape: Sequence[int]) -> npt.NDArray[np.int64]:
    """Move a patch's centre, as little as needed, so that the patch lies within the volume.

    Parameters
    ----------
    center
        `(3,)`, (z, y, x) in voxels. It is rounded first.
    size
        The size of the patch. Its centre is voxel `size // 2`.
    shape
        The volume's shape (z, y, x).

    Raises
    ------
    ValueError
        If the patch is larger than the volume.
    """
    check_fits(size, shape)
    sizes, extent = np.array(size), np.array(shape)
    low = sizes // 2
    clamped: npt.NDArray[np.int64] = np.clip(np.rint(center).astype(np.int64), low, extent - sizes + low)
    return clamped


def cut(volume: Tensor, center: npt.NDArray[np.int64], size: Size) -> Tensor:
    """Cut a patch out of `(z, y, x)`, with its voxel `size // 2` at `center`. It is a view, not a copy."""
    z, y, x = (slice(int(c) - s // 2, int(c) - s // 2 + s) for c, s in zip(center, size, strict=True))
    return volume[z, y, x]


def normalize(patch: Tensor) -> Tensor:
    """Bring a patch to mean 0 and standard deviation 1. A constant patch becomes 0."""
    wide = patch.double()
    mean, std = wide.mean(), wide.std(correction=0)
    # Rounding in float32 leaves this much of a constant patch. Nothing here waits for a GPU.
    return torch.where(std <= 1e-7 * mean.abs(), 0.0, (wide - mean) / std).to(patch.dtype)


def normalize_as(patch: Tensor, like: Tensor) -> Tensor:
    """Scale a patch by the mean and the standard deviation of another one; if that one is constant, it becomes 0."""
    wide = like.double()
    mean, std = wide.mean(), wide.std(correction=0)
    return torch.where(std <= 1e-7 * mean.abs(), 0.0, (patch.double() - mean) / std).to(patch.dtype)


def sphere_labels(
    shape: Size,
    origin: npt.NDArray[np.int64],
    classes: npt.NDArray[np.int64],
    positions: npt.NDArray[np.float64],
    radii: Mapping[int, float],
) -> Tensor:
    """Draw a sphere for each particle. Where spheres overlap, a voxel belongs to the nearest centre.

    Parameters
    ----------
    shape
        Shape of the patch, (z, y, x).
    origin
        Position of the patch's first voxel in the volume, (z, y, x) in voxels.
    classes
        `(n,)`, class of each particle.
    positions
        `(n, 3)`, (z, y, x) in voxels of the volume.
    radii
        Radius of each class in voxels. Classes that are not named are not drawn.

    Returns
    -------
    The labels, of shape `shape`, int64.
    """
    labels = np.zeros(shape, dtype=np.int64)
    nearest = np.full(shape, np.inf)
    for number, position in zip(classes, positions - origin, strict=True):
        radius = radii.get(int(number))
        if radius is None:
            continue
        low = np.maximum(np.ceil(position - radius), 0).astype(int)
        high = np.minimum(np.floor(position + radius) + 1, shape).astype(int)
        if (high <= low).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = np.ogrid[box]
        distance = sum((axis - p) ** 2 for axis, p in zip(axes, position, strict=True))
        inside = (distance <= radius**2) & (distance < nearest[box])
        labels[box][inside] = number
        nearest[box][inside] = distance[inside]
    return torch.from_numpy(labels)
