"""Binning of tilts that knows where the axis of rotation goes."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import torch
from torch import Tensor

from faket_aug._checks import check_choice, check_ndim, check_positive
from faket_aug.geometry import axis_index
from faket_aug.sparse import result_dtype, working_dtype

BINNINGS = ("spline", "fourier")
GRIDS = ("axis", "corners")


def bin_images(images: Tensor, factor: int, *, method: str = "spline") -> Tensor:
    """Bin images so that the axis of rotation stays in pixel `n // 2`.

    Parameters
    ----------
    images
        `(..., y, x)`.
    factor
        Whole number of pixels that become one.
    method
        `"spline"`, FakET's cubic spline, or `"fourier"`, a crop of the spectrum.

    Returns
    -------
    `(..., y // factor, x // factor)`.
    """
    check_choice("method", method, BINNINGS)
    return bin_spline(images, factor) if method == "spline" else bin_fourier(images, factor)


def bin_spline(images: Tensor, factor: int, *, grid: str = "axis") -> Tensor:
    """Read the cubic spline through the pixels at every `factor`-th place, without averaging.

    Parameters
    ----------
    images
        `(..., y, x)`.
    factor
        Whole number of pixels that become one.
    grid
        `"corners"` puts the outermost samples onto the outermost pixels, as `scipy.ndimage.zoom` and so FakET do: the
        step is then `(n - 1) / (m - 1)` and the axis moves by a fraction of a pixel. `"axis"` steps by `factor`
        exactly, from the axis.
    """
    _check(images, factor)
    check_choice("grid", grid, GRIDS)
    if factor == 1:
        return images.to(result_dtype(images.dtype))
    working = working_dtype(result_dtype(images.dtype))
    height, width = images.shape[-2:]
    rows, columns = (
        torch.from_numpy(_spline_matrix(n, factor, grid)).to(images.device, working) for n in (height, width)
    )
    binned: Tensor = rows @ images.to(working) @ columns.T
    return binned.to(result_dtype(images.dtype))


def bin_fourier(images: Tensor, factor: int) -> Tensor:
    """Keep the lowest `1 / factor` of the spectrum along both axes; the axis stays in pixel `n // 2`.

    Parameters
    ----------
    images
        `(..., y, x)`.
    factor
        Whole number of pixels that become one.
    """
    _check(images, factor)
    dtype = result_dtype(images.dtype)
    result = images.to(working_dtype(dtype))
    for dim in (-2, -1) if factor > 1 else ():
        result = _crop_spectrum(result.movedim(dim, -1), factor).movedim(-1, dim)
    return result.to(dtype)


def _check(images: Tensor, factor: int) -> None:
    check_ndim("images", images, "... y x")
    check_positive("factor", factor)
    if min(images.shape[-2:]) < 2 * factor:
        raise ValueError(
            f"expected images of at least {2 * factor} pixels a side to bin by {factor}, got {tuple(images.shape[-2:])}"
        )


def _crop_spectrum(images: Tensor, factor: int) -> Tensor:
    length = images.shape[-1]
    size = length // factor
    # The crop of pixels before the crop of the spectrum: the length has to be a multiple of the factor.
    start = min(max(axis_index(length) - factor * axis_index(size), 0), length - size * factor)
    spectrum = torch.fft.rfft(images[..., start : start + size * factor], dim=-1)[..., : size // 2 + 1]
    # Sample j is to lie at factor·(j - size // 2) + axis, not at factor·j: a shift by less than `factor` pixels.
    shift = axis_index(length) - start - factor * axis_index(size)
    if shift:
        k = torch.arange(size // 2 + 1, device=images.device, dtype=images.dtype)
        spectrum = spectrum * torch.exp(2j * math.pi * shift / (size * factor) * k)
    cropped: Tensor = torch.fft.irfft(spectrum, n=size, dim=-1) / factor
    return cropped


@lru_cache(maxsize=16)
def _spline_matrix(length: int, factor: int, grid: str) -> npt.NDArray[np.float64]:
    """The matrix `(m, n)` that reads the cubic spline through n samples at m places."""
    # Differs from FakET: the grid begins at the axis, not at the corners, so the axis stays in its pixel.
    if grid == "corners":
        size = round(length / factor)
        places = np.arange(size) * ((length - 1) / (size - 1))
    else:
        size = length // factor
        places = (np.arange(size) - axis_index(size)) * factor + float(axis_index(length))
    unit = np.eye(length)
    return np.stack(
        [scipy.ndimage.map_coordinates(sample, [places], order=3, mode="mirror") for sample in unit], axis=1
    )
