"""A tomogram before a picker sees it: its voxel size, where it was measured, and the sign of its contrast."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from faket_aug._arrays import FloatArray
from faket_aug._checks import same_size
from faket_aug.picking.preparation import box_of
from faket_aug.tomography.resample import resample_volume

#: A tomogram's voxels may be so many times as large as the training's: what is finer is lost in it. Smaller ones are
#: binned.
MOST_ENLARGED, MOST_BINNED = 1.5, 16.0
#: Voxels of a cube whose noise is looked at, and the share of the usual noise that it has to have.
_CUBE, _GRAIN = 8, 0.4
#: Å, of blocks whose means show the contrast of what is dense.
_BLOCK = 40.0


def check_voxel_size(voxel_size: float, wanted: float, *, source: str = "") -> None:
    """Raise a `ValueError` unless a tomogram can be resampled to the training's voxel size, Å.

    Parameters
    ----------
    voxel_size, wanted
        Å, of the tomogram and of the training.
    source
        Goes before the message.
    """
    ratio = voxel_size / wanted
    if not 1 / MOST_BINNED <= ratio <= MOST_ENLARGED:
        way = "reconstruct it with a smaller `bin`" if ratio > 1 else "bin it"
        raise ValueError(
            f"{source}expected a tomogram with voxels of about {wanted:g} Å, on which the picker was trained, got "
            f"{voxel_size:g} Å; {way}, correct the voxel size, or train on such voxels"
        )


def resampled(
    tomogram: Tensor, within: Tensor | None, voxel_size: float, wanted: float
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Bring a tomogram to the training's voxel size, if it has another one."""
    if within is not None and within.shape != tomogram.shape:
        raise ValueError(f"expected `within` of shape {tuple(tomogram.shape)}, got {tuple(within.shape)}")
    if same_size(voxel_size, wanted):
        return tomogram.to(torch.float32), within, []
    check_voxel_size(voxel_size, wanted)
    ratio = voxel_size / wanted
    shape = [max(round(n * ratio), 4) for n in tomogram.shape]
    note = f"resampled from voxels of {voxel_size:g} Å to the training's {wanted:g} Å"
    if ratio > 1:
        note += "; what its larger voxels do not show, the picker misses"
        warnings.warn(f"the tomogram was {note}; reconstruct it with a smaller `bin`", stacklevel=3)
    region = within
    if within is not None:
        # The nearest voxel of the mask.
        rows = [((np.arange(n) + 0.5) * m / n).astype(np.int64) for n, m in zip(shape, within.shape, strict=True)]
        region = within[np.ix_(*rows)]
    return resample_volume(tomogram, shape), region, [note]


def positions_before(positions: FloatArray, shape: Sequence[int], own: Sequence[int]) -> FloatArray:
    """Turn positions in a resampled volume into those in the tomogram's own voxels."""
    if tuple(shape) == tuple(own):
        return positions
    back: FloatArray = (positions + 0.5) * (np.array(own) / np.array(shape)) - 0.5
    return back


def bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """Find the smallest box that holds all voxels of a mask.

    Raises
    ------
    ValueError
        If there are none.
    """
    if not bool(mask.any()):
        raise ValueError("expected measured voxels within the mask, got none; set another mask or range of sections")
    return box_of(mask)


def grainy_voxels(volume: Tensor) -> Tensor:
    """Tell which voxels have noise as the tomogram has it: differences of neighbours are 0.4 of the usual ones or more.

    Corners that an aligned series did not cover are filled smoothly: nothing is to be found in them and at their edge.

    Parameters
    ----------
    volume
        `(z, y, x)`.

    Returns
    -------
    `(z, y, x)`, bool, in cubes of 8 voxels a side, without those beside smooth ones.
    """
    steps = torch.zeros_like(volume, dtype=torch.float32)
    steps[..., 1:] = (volume[..., 1:] - volume[..., :-1]).square_()
    if volume.shape[-1] > 1:
        steps[..., 0] = steps[..., 1]
    sides = [min(_CUBE, n) for n in volume.shape]
    power = functional.avg_pool3d(steps[None], sides, ceil_mode=True, count_include_pad=False)[0]
    usual = power[power > 0].median() if bool((power > 0).any()) else power.new_zeros(())
    smooth = functional.max_pool3d((power <= _GRAIN**2 * usual).float()[None], 3, stride=1, padding=1)[0]
    grainy = smooth == 0
    for axis, (side, length) in enumerate(zip(sides, volume.shape, strict=True)):
        grainy = grainy.repeat_interleave(side, dim=axis).narrow(axis, 0, length)
    return grainy


def skewness(volume: Tensor, voxel_size: float) -> float:
    """Return the skewness of a tomogram's means over blocks of 40 Å: below 0 where what is dense is dark."""
    side = max(1, round(_BLOCK / voxel_size))
    side = min(side, *volume.shape)
    means = functional.avg_pool3d(volume[None].to(torch.float32), side)[0].flatten().double()
    deviation = means - means.mean()
    variance = deviation.square().mean()
    return float(deviation.pow(3).mean() / variance.pow(1.5)) if float(variance) > 0 else 0.0
