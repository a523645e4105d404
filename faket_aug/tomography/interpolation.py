"""What interpolation takes away when a volume is projected, and how it is given back."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_ndim
from faket_aug.geometry import Angles, as_tilt_angles, axis_index

#: Of the rays, and of the samples along each, so many are averaged at most.
_SAMPLES = 48
#: Pixels. Images are continued by so many at each side; what is given back reaches less far.
_MARGIN = 8
#: At most this is given back. Above 0.4 cycles per pixel, interpolation also adds what it has folded over.
_MOST = 1.75
#: Frequencies at which the transfer is computed; between them it is linear.
_FREQUENCIES = 33


def interpolation_transfer(tilt_angles: Angles, frequencies: FloatArray, *, depth: int, width: int) -> FloatArray:
    """Compute what `project` leaves of the amplitude at frequencies across the tilt axis.

    `project` turns each slice with bilinear interpolation. A wave that runs across the axis then loses amplitude,
    `sinc²(k)` at most angles, and none at 0°, where no interpolation is needed. Along the axis nothing is lost.

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees.
    frequencies
        `(n,)`, cycles per pixel, perpendicular to the tilt axis.
    depth, width
        Voxels of the volume along z, and across the axis.

    Returns
    -------
    `(tilt, n)`, from 0.4 to 1.
    """
    k = np.asarray(frequencies, dtype=np.float64)
    rows = []
    for angle in np.deg2rad(as_tilt_angles(tilt_angles)):
        cos, sin = math.cos(angle), math.sin(angle)
        ray = _some(width) - axis_index(width)
        along = _some(math.ceil(depth / max(cos, 0.05)))
        along -= round(float(along[-1]) / 2)
        x = (ray[:, None] * cos - along * sin).ravel()
        z = (ray[:, None] * sin + along * cos).ravel()
        rows.append((_linear(x, k * cos) * _linear(z, k * sin)).real.mean(axis=0))
    return np.stack(rows)


def without_interpolation(tilts: Tensor, tilt_angles: Angles, *, depth: int) -> Tensor:
    """Give projections back what the interpolation of `project` has taken from them.

    Parameters
    ----------
    tilts
        `(tilt, y, x)`, of `project`.
    tilt_angles
        `(tilt,)`, degrees, their angles.
    depth
        Voxels of the volume along z.

    Returns
    -------
    `(tilt, y, x)`, in the dtype of `tilts`.
    """
    check_ndim("tilts", tilts, "tilt y x")
    angles = as_tilt_angles(tilt_angles, count=tilts.shape[0])
    width = int(tilts.shape[-1])
    own = torch.fft.rfftfreq(width + 2 * _MARGIN, device="cpu").numpy().astype(np.float64)
    table = _table(tuple(angles.tolist()), depth, width)
    grid = np.linspace(0, 0.5, _FREQUENCIES)
    result = torch.empty_like(tilts)
    for index, row in enumerate(table):
        lost = np.interp(own, grid, row)
        factor = torch.from_numpy(np.minimum(1 / lost, _MOST)).to(tilts.device, torch.float32)
        padded = functional.pad(tilts[index][None].to(torch.float32), (_MARGIN, _MARGIN), mode="replicate")[0]
        sharp = torch.fft.irfft(torch.fft.rfft(padded) * factor, n=width + 2 * _MARGIN)
        result[index] = sharp[:, _MARGIN : _MARGIN + width].to(tilts.dtype)
    return result


@lru_cache(maxsize=16)
def _table(angles: tuple[float, ...], depth: int, width: int) -> FloatArray:
    return interpolation_transfer(angles, np.linspace(0, 0.5, _FREQUENCIES), depth=depth, width=width)


def _some(count: int) -> FloatArray:
    """At most `_SAMPLES` of the whole numbers below a count, evenly spread but not evenly spaced."""
    if count <= _SAMPLES:
        return np.arange(count, dtype=np.float64)
    return np.floor(np.linspace(0, count - 1, _SAMPLES)).astype(np.float64)


def _linear(place: FloatArray, k: FloatArray) -> npt.NDArray[np.complex128]:
    """What linear interpolation at places `(n,)` makes of a wave, over the wave; `(n, frequency)`."""
    part = (place - np.floor(place))[:, None]
    wave = 2j * np.pi * k
    result: npt.NDArray[np.complex128] = (1 - part) * np.exp(-wave * part) + part * np.exp(wave * (1 - part))
    return result
