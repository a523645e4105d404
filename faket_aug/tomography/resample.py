"""Binning, shifts and rotations of tilts, which keep the axis of rotation in its pixel; volumes of other voxels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.ndimage
import torch
from torch import Tensor

from faket_aug._checks import check_choice, check_ndim, check_positive
from faket_aug._masks import eroded
from faket_aug._runtime.numerics import own_precision
from faket_aug.geometry import axis_index
from faket_aug.tomography.plane_map import result_dtype, working_dtype

RESAMPLINGS = ("spline", "fourier")
#: The method that is used by default.
RESAMPLING = "spline"
GRIDS = ("axis", "corners")
FILLS = ("mean", "edge")
#: Positions of an image that are interpolated at a time (about 200 bytes each).
_PLACES = 2**20
#: Splines run through points that lie this many times closer than pixels: a cubic spline through the pixels themselves
#: weakens what is shorter than three of them, most along the diagonals of pixels and between them.
_FINER = 2
#: Width of the soft edge at 0.5 cycles per pixel: at 0.48, all but 0.002 of the amplitude is passed.
_EDGE = 0.01
#: An interpolated image carries what a pixel holds this far, pixels; beyond, less than a twentieth is left of it.
_REACH = 10
#: Positions may lie this far beyond the outermost pixels, by rounding.
_ROUNDING = 1e-6
#: Sections of a volume that are resampled at a time.
_SECTIONS = 32


def bin_images(images: Tensor, factor: int, *, method: str = RESAMPLING) -> Tensor:
    """Bin images so that the axis of rotation stays in pixel `n // 2`.

    Parameters
    ----------
    images
        `(..., y, x)`.
    factor
        Whole number of pixels, along each axis, that become one.
    method
        `"spline"`, the cubic spline of FakET, or `"fourier"`, a crop of the spectrum.

    Returns
    -------
    `(..., y // factor, x // factor)`.
    """
    check_choice("method", method, RESAMPLINGS)
    return bin_spline(images, factor) if method == "spline" else bin_fourier(images, factor)


@own_precision()
def bin_spline(images: Tensor, factor: int, *, grid: str = "axis") -> Tensor:
    """Take the cubic spline through the pixels at every `factor`-th position, without averaging.

    Parameters
    ----------
    images
        `(..., y, x)`.
    factor
        Whole number of pixels, along each axis, that become one.
    grid
        `"corners"`: the outermost samples lie on the outermost pixels, as in `scipy.ndimage.zoom` and in FakET. The
        step is then `(n - 1) / (m - 1)`, and the axis moves by a fraction of a pixel. `"axis"`: the step is exactly
        `factor`, counted from the axis.
    """
    _check(images, factor)
    check_choice("grid", grid, GRIDS)
    dtype = result_dtype(images.dtype)
    if factor == 1:
        return images.to(dtype)
    matrices = (torch.from_numpy(_spline_matrix(n, factor, grid)) for n in images.shape[-2:])
    rows, columns = (one.to(images.device, working_dtype(dtype)) for one in matrices)
    binned: Tensor = rows @ images.to(rows.dtype) @ columns.T
    return binned.to(dtype)


def bin_fourier(images: Tensor, factor: int) -> Tensor:
    """Keep the lowest `1 / factor` of the spectrum along both axes. The axis of rotation stays in pixel `n // 2`.

    Parameters
    ----------
    images
        `(..., y, x)`.
    factor
        Whole number of pixels, along each axis, that become one.
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
    """The matrix `(m, n)` that evaluates the cubic spline through n samples at m positions."""
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


def resample_volume(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring a volume to another number of voxels along each axis, by a cosine transform that is cut or padded.

    The faces of the volume stay where they are: voxel i of the result lies at `(i + 1/2) · old / new - 1/2` of the
    volume, and what fewer voxels cannot show is left out.

    Parameters
    ----------
    volume
        `(z, y, x)`.
    shape
        (z, y, x), of the result.

    Returns
    -------
    float32, on the CPU.
    """
    check_ndim("volume", volume, "z y x")
    values = volume.detach().cpu().to(torch.float32).numpy()
    for axis, size in enumerate(shape):
        check_positive("shape", size)
        length = values.shape[axis]
        if size == length:
            continue
        # Some sections of another axis at a time: the transform needs several times their memory.
        other = (axis + 1) % 3
        parts = np.array_split(values, max(1, values.shape[other] // _SECTIONS), axis=other)
        values = np.concatenate([_resampled(part, axis, int(size)) for part in parts], axis=other)
    return torch.from_numpy(values)


def _resampled(part: npt.NDArray[np.float32], axis: int, size: int) -> npt.NDArray[np.float32]:
    length = part.shape[axis]
    waves = np.moveaxis(scipy.fft.dct(part, axis=axis, norm="ortho"), axis, -1)
    kept = np.zeros((*waves.shape[:-1], size), dtype=np.float32)
    kept[..., : min(size, length)] = waves[..., :size]
    kept *= math.sqrt(size / length)
    found: npt.NDArray[np.float32] = scipy.fft.idct(np.moveaxis(kept, -1, axis), axis=axis, norm="ortho")
    return found


def transform_images(
    images: Tensor,
    matrices: npt.ArrayLike,
    shifts: npt.ArrayLike,
    *,
    shape: Sequence[int] | None = None,
    fill: str = "mean",
) -> Tensor:
    """Shift, rotate and stretch images, by cubic splines on a grid twice as fine.

    Pixel (x, y) of the result has the value of the image at `matrix @ (x, y) + shift`. Both are counted from pixel
    `n // 2`, which lies on the axis of rotation. The map is linear in the images, and differentiable.

    Parameters
    ----------
    images
        `(image, y, x)`.
    matrices
        `(image, 2, 2)`, acting on column vectors (x, y).
    shifts
        `(image, 2)`, **(y, x)**, in pixels of the images.
    shape
        (y, x), size of the results; by default that of the images.
    fill
        The value beyond the outermost pixels of an image: its mean (`"mean"`), or the nearest pixel (`"edge"`).

    Returns
    -------
    `(image, y, x)` on the images' device, in their dtype (float32 for integers).

    Raises
    ------
    ValueError
        If the numbers of images, matrices and shifts differ, or an image has fewer than two pixels along a side.

    References
    ----------
    Unser, Splines: a perfect fit for signal and image processing, IEEE Signal Processing Magazine 16 (6), 1999.
    """
    check_ndim("images", images, "image y x")
    check_choice("fill", fill, FILLS)
    matrix, shift = (np.asarray(values, dtype=np.float64) for values in (matrices, shifts))
    count = len(images)
    if matrix.shape != (count, 2, 2) or shift.shape != (count, 2):
        raise ValueError(
            f"expected `matrices` and `shifts` of shapes {(count, 2, 2)} and {(count, 2)}, one for each image, got "
            f"{matrix.shape} and {shift.shape}"
        )
    if min(images.shape[1:]) < 2:
        raise ValueError(f"expected `images` of at least 2 pixels a side, got {tuple(images.shape[1:])}")
    dtype = result_dtype(images.dtype)
    height, width = images.shape[1:] if shape is None else shape
    size = (int(height), int(width))
    turned = [
        _transform(*each, size, fill) for each in zip(images.to(working_dtype(dtype)), matrix, shift, strict=True)
    ]
    return torch.stack(turned).to(dtype)


def _transform(
    image: Tensor,
    matrix: npt.NDArray[np.float64],
    shift: npt.NDArray[np.float64],
    size: tuple[int, int],
    fill: str,
) -> Tensor:
    """Interpolate one image, some rows of the result at a time: a position needs much more memory than its value."""
    weights, mean = _spline_coefficients(_without_folds(image, matrix)), image.mean()
    height, width = image.shape
    parts = []
    for v, u in _positions((height, width), matrix, shift, size, image.device):
        read = _read_spline(weights, _FINER * v.clamp(0, height - 1), _FINER * u.clamp(0, width - 1))
        if fill == "mean":
            # A pixel reaches half a pixel beyond its centre.
            covered = (v >= -0.5) & (v <= height - 0.5) & (u >= -0.5) & (u <= width - 0.5)
            read = torch.where(covered, read, mean)
        parts.append(read)
    return torch.cat(parts)


def _positions(
    own: tuple[int, int],
    matrix: npt.NDArray[np.float64],
    shift: npt.NDArray[np.float64],
    size: tuple[int, int],
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Where in an image of size `own` the pixels of the result lie, (v, u) for y and x, some rows at a time."""
    y, x = (torch.arange(n, device=device, dtype=torch.float64) - axis_index(n) for n in size)
    (xx, xy), (yx, yy) = matrix.tolist()
    step = max(1, _PLACES // len(x))
    for start in range(0, len(y), step):
        rows = y[start : start + step]
        v = yx * x[None, :] + yy * rows[:, None] + float(shift[0]) + axis_index(own[0])  # (y, x)
        u = xx * x[None, :] + xy * rows[:, None] + float(shift[1]) + axis_index(own[1])
        yield v, u


def covered_pixels(
    own: tuple[int, int],
    matrices: npt.ArrayLike,
    shifts: npt.ArrayLike,
    *,
    shape: Sequence[int] | None = None,
    measured: Tensor | None = None,
) -> Tensor | None:
    """Tell which pixels of `transform_images` show what was measured.

    A pixel does so if it lies within the outermost pixels of the image, and further from what was not measured than the
    interpolation reaches.

    Parameters
    ----------
    own
        `(y, x)`, size of the images.
    matrices, shifts, shape
        As for `transform_images`.
    measured
        `(image, y, x)`, bool: which pixels of the images were measured; by default all.

    Returns
    -------
    `(image, y, x)`, bool, or None if all do.
    """
    matrix, shift = (np.asarray(values, dtype=np.float64) for values in (matrices, shifts))
    height, width = own
    size = (height, width) if shape is None else (int(shape[0]), int(shape[1]))
    device = torch.device("cpu") if measured is None else measured.device
    masks = []
    for index in range(len(matrix)):
        known = None if measured is None or bool(measured[index].all()) else eroded(measured[index], _REACH)
        rows = []
        for v, u in _positions((height, width), matrix[index], shift[index], size, device):
            within = (v >= -_ROUNDING) & (v <= height - 1 + _ROUNDING)
            within &= (u >= -_ROUNDING) & (u <= width - 1 + _ROUNDING)
            if known is not None:
                y, x = (place.round().long().clamp(0, side - 1) for place, side in ((v, height), (u, width)))
                within &= known[y, x]
            rows.append(within)
        masks.append(torch.cat(rows))
    covered = torch.stack(masks)
    return None if bool(covered.all()) else covered


def _mirrored(image: Tensor, dim: int) -> Tensor:
    """Continue an image to a period that is mirrored at its outermost pixels."""
    n = image.shape[dim]
    return torch.cat([image, image.narrow(dim, 1, n - 2).flip(dim)], dim) if n > 2 else image


def _without_folds(image: Tensor, matrix: npt.NDArray[np.float64]) -> Tensor:
    """Leave out waves that the turned pixels cannot show: they would come back as waves of other frequencies.

    A mirrored image has each wave in two directions; it is left out if one of them cannot be shown.
    """
    mirrored = _mirrored(_mirrored(image, 0), 1)
    height, width = mirrored.shape
    k_y = torch.fft.fftfreq(height, device=image.device, dtype=torch.float64).abs()[:, None]
    k_x = torch.fft.rfftfreq(width, device=image.device, dtype=torch.float64)
    (xx, xy), (yx, yy) = np.abs(matrix).tolist()
    across, along = xx * k_x + yx * k_y, xy * k_x + yy * k_y
    if float(torch.maximum(across, along).max()) <= 0.5 + _ROUNDING:
        return image
    shown = (_passed(across) * _passed(along)).to(image)
    kept: Tensor = torch.fft.irfft2(torch.fft.rfft2(mirrored) * shown, s=(height, width))
    return kept[: image.shape[0], : image.shape[1]]


def _passed(frequencies: Tensor) -> Tensor:
    """Pass frequencies up to 0.5 cycles per pixel, with a soft edge: a hard one would ring far into the image."""
    passed: Tensor = torch.special.erfc((frequencies - 0.5) / _EDGE) / 2
    return passed


def _spline_coefficients(image: Tensor) -> Tensor:
    """Turn pixels into weights of cubic B-splines on a grid `_FINER` times as fine, mirrored at the outermost pixels.

    In Fourier space: the repeated spectrum of pixels and zeros between them is cut, then divided. The grid's place
    `_FINER * i` is pixel i.
    """
    for dim in (0, 1):
        n, mirrored = image.shape[dim], _mirrored(image, dim)
        spectrum = torch.fft.rfft(mirrored, dim=dim).movedim(dim, -1)
        # Of an even period: beyond the highest frequency come the negative ones, from the end.
        repeated = torch.cat([spectrum, spectrum[..., :-1].flip(-1).conj()], dim=-1)
        period = _FINER * mirrored.shape[dim]
        k = torch.arange(repeated.shape[-1], device=image.device, dtype=image.dtype)
        # The spectrum of the B-spline's samples 1/6, 4/6, 1/6.
        weight = _FINER * _passed(_FINER * k / period) * 3 / (2 + torch.cos(2 * math.pi / period * k))
        image = torch.fft.irfft((repeated * weight).movedim(-1, dim), n=period, dim=dim)
        image = image.narrow(dim, 0, _FINER * (n - 1) + 1)
    return image


def _read_spline(weights: Tensor, v: Tensor, u: Tensor) -> Tensor:
    """Sum the four by four B-splines around each position."""
    rows, columns = _taps(v, weights.shape[0], weights.dtype), _taps(u, weights.shape[1], weights.dtype)
    flat, width = weights.reshape(-1), weights.shape[1]
    read = torch.zeros(v.shape, device=weights.device, dtype=weights.dtype)
    for row, row_weight in rows:
        line = sum(column_weight * flat[row * width + column] for column, column_weight in columns)
        read = read + row_weight * line
    return read


def _taps(place: Tensor, size: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Return the pixels on both sides of each position, mirrored at the ends, and the values of the B-splines there."""
    low = place.floor()
    t = (place - low).to(dtype)
    values = ((1 - t) ** 3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6, t**3 / 6)
    period = 2 * (size - 1)
    index = [(low.long() + k).remainder(period) for k in (-1, 0, 1, 2)]
    return [(torch.minimum(i, period - i), value) for i, value in zip(index, values, strict=True)]
