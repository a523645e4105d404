"""Weighting of projections in Fourier space, before back-projection."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from faket_aug._checks import check_choice, check_ndim
from faket_aug._runtime.parts import by_parts
from faket_aug._runtime.threads import intra_op_threads
from faket_aug.tomography.plane_map import result_dtype, working_dtype

#: Windows on the ramp `|f|`, with `f` in cycles per pixel.
_WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "ramp": torch.ones_like,
    "shepp-logan": torch.sinc,
    "cosine": lambda f: torch.cos(math.pi * f),
    "hamming": lambda f: 0.54 + 0.46 * torch.cos(2 * math.pi * f),
    "hann": lambda f: (1 + torch.cos(2 * math.pi * f)) / 2,
}
FILTERS = ("shrec", *_WINDOWS, "none")
#: The filter that is used by default.
FILTER = "shrec"


def filter_projections(projections: Tensor, filter: str = FILTER) -> Tensor:
    """Weight each projection in Fourier space. The projection is taken as periodic: it is not padded.

    Parameters
    ----------
    projections
        `(..., y, x)`.
    filter
        `"ramp"`, `"shepp-logan"`, `"cosine"`, `"hamming"` and `"hann"` act along x; `"shrec"` acts along y and x;
        `"none"` returns the projections as they are.

    Returns
    -------
    `(..., y, x)` in the projections' dtype (float32 for integers).

    Raises
    ------
    ValueError
        For an unknown filter; the message lists the known ones.
    """
    check_ndim("projections", projections, "... y x")
    check_choice("filter", filter, FILTERS)
    dtype = result_dtype(projections.dtype)
    if filter == "none":
        return projections.to(dtype)
    # The weights are many small sums: threads would wait for each other longer than they compute.
    with intra_op_threads(1):
        apply = _shrec_filter(projections) if filter == "shrec" else _filter_along_x(projections, filter)
    working = working_dtype(dtype)
    flat = projections.reshape(-1, *projections.shape[-2:])
    return by_parts(lambda part: apply(part.to(working)), flat, dtype=dtype).view(projections.shape)


def fourier_weights(filter: str, length: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the weights of a one-dimensional filter at `torch.fft.rfftfreq(length)`, in float64."""
    check_choice("filter", filter, _WINDOWS)
    frequency = torch.fft.rfftfreq(length, dtype=torch.float64, device=device)
    weights: Tensor = frequency * _WINDOWS[filter](frequency)
    return weights


def shrec_weights(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return SHREC's two-dimensional filter.

    A ramp along x that is constant above 0.61 of the Nyquist frequency. It is multiplied by a broad Gaussian over
    (y, x) plus a constant, is 0 outside the circle through the Nyquist frequency, and has a maximum of 1.

    Parameters
    ----------
    height, width
        Pixels of the projections along y and along x.
    device
        Where the filter is needed.

    Returns
    -------
    `(y, x)` in float64, with frequency 0 at index 0.

    References
    ----------
    The SHREC 2021 reconstruction filter as FakET uses it (Harar et al., Structure 33, 2025).
    """
    side = max(height, width)
    k_y = torch.fft.fftfreq(height, dtype=torch.float64, device=device)[:, None] * side
    k_x = torch.fft.fftfreq(width, dtype=torch.float64, device=device)[None, :] * side
    # For odd sizes FakET's program moves the whole filter by one frequency; that is kept, too.
    odd_y, odd_x = height % 2, width % 2
    ramp = ((k_x + odd_x).abs() / max(int(0.61 * (side // 2)), 1)).clamp_max(1.0)
    spread_x, spread_y = max(int(0.34 * side), 1), max(int(0.20 * side), 1)
    # FakET's grid is off by one frequency; the published results were made with it, so it is kept.
    gauss = torch.exp(-((k_x + 1) ** 2) / (2 * spread_x**2) - (k_y + 1) ** 2 / (2 * spread_y**2))
    # Differs from FakET: for images that are not square its crop loses the low frequencies; here they stay.
    circle = ((k_x + odd_x) ** 2 + (k_y + odd_y) ** 2) < (side // 2 + 1) ** 2
    weights: Tensor = ramp * (gauss + 0.33) * circle
    return weights / weights.max()


def _shrec_filter(images: Tensor) -> Callable[[Tensor], Tensor]:
    height, width = images.shape[-2:]
    weights = shrec_weights(height, width, images.device).to(working_dtype(result_dtype(images.dtype)))
    # The weights are not symmetric (the off-by-one), so the result of the complex transform has a small imaginary
    # part that is dropped: the same as with the weights' mean over k and -k, which the real transform can use.
    mirrored = torch.roll(weights.flip(0, 1), shifts=(1, 1), dims=(0, 1))
    even = ((weights + mirrored) / 2)[:, : width // 2 + 1]
    # FakET's toolbox drops each row's mean from what it is told not to filter (for even sizes the ramp does already).
    even[:, 0] = 0.0

    def apply(part: Tensor) -> Tensor:
        weighted: Tensor = torch.fft.irfft2(torch.fft.rfft2(part) * even, s=(height, width))
        return weighted

    return apply


def _filter_along_x(images: Tensor, filter: str) -> Callable[[Tensor], Tensor]:
    width = images.shape[-1]
    weights = fourier_weights(filter, width, images.device).to(working_dtype(result_dtype(images.dtype)))

    def apply(part: Tensor) -> Tensor:
        # Periodic, without padding, as FakET: a constant tilt becomes zero, and edges meet their opposites.
        filtered: Tensor = torch.fft.irfft(torch.fft.rfft(part, dim=-1) * weights, n=width, dim=-1)
        return filtered

    return apply


class PaddedGrid:
    """The half spectrum of images that are padded by reflection, so that a filter does not wrap around their edges.

    Parameters
    ----------
    shape
        (y, x), size of the images.
    reach
        Distance, in pixels, over which the filter spreads a point. The padding is wider, but at most half of the image.
    device
        Device of the images.
    """

    def __init__(self, shape: tuple[int, int], reach: int, device: torch.device) -> None:
        self._margin = min(reach + 16, min(shape) // 2)
        self._images = shape
        #: (y, x), size of the padded images.
        self.shape = (shape[0] + 2 * self._margin, shape[1] + 2 * self._margin)
        k_y = torch.fft.fftfreq(self.shape[0], dtype=torch.float64, device=device)[:, None]
        k_x = torch.fft.rfftfreq(self.shape[1], dtype=torch.float64, device=device)
        #: `(y, x // 2 + 1)`, cycles per pixel.
        self.radius = torch.hypot(k_y, k_x)
        #: `(y, x // 2 + 1)`, radians from +x towards +y.
        self.direction = torch.atan2(k_y, k_x)

    def filtered(self, image: Tensor, transfer: Tensor) -> Tensor:
        """Multiply the spectrum of an image `(y, x)` by a real function `(y, x // 2 + 1)` of this grid."""
        padded = functional.pad(image[None], (self._margin,) * 4, mode="reflect")[0]
        result = torch.fft.irfft2(torch.fft.rfft2(padded) * transfer.to(image.dtype), s=self.shape)
        height, width = self._images
        inside: Tensor = result[self._margin : self._margin + height, self._margin : self._margin + width]
        return inside
