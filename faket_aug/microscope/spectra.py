"""Radial spectra of tilts: the power of each tilt, and the part of it that neighbouring tilts share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import check_ndim, check_same_shape
from faket_aug._masks import as_mask, fading, without_holes
from faket_aug._runtime.transfers import sent
from faket_aug.geometry import Angles, as_tilt_angles, nearest_tilts
from faket_aug.microscope.rings import RING_WIDTH, RingMeans, ring_radius
from faket_aug.microscope.rings import RINGS as RINGS
from faket_aug.statistics import refuse_constant

FloatArray = npt.NDArray[np.float64]
#: Images fade out at each edge over this fraction of their side, before the Fourier transform.
FADE = 0.125
#: Pixels are clipped at this many standard deviations from the mean of their tilt: gold, hot pixels.
OUTLIERS = 5.0
#: Two tilts are compared where both were measured; less than this fraction of a whole image counts as this much.
LEAST_SHARED = 1e-3
#: Neighbouring tilts share their signal below this frequency perpendicular to the tilt axis, cycles per pixel, ...
LINE = 0.06
#: ... for tilt steps up to this, degrees. For larger steps the limit is smaller in proportion.
LINE_STEP = 3.0
#: Images whose spectra a GPU holds at once.
_GPU_IMAGES = 16
#: A clean tilt may differ from the angle of a measured one by this fraction of the tilt step, or of two `LINE_STEP`
#: for larger steps.
NEAR = 0.25


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesSpectra:
    """Radial spectra of one tilt-series. White noise with a standard deviation of 1 has a power of 1 everywhere.

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees.
    power
        `(tilt, ring)`, at the frequencies `RINGS`.
    shared
        `(tilt - 1, ring)`: real part of the product of the spectra of neighbouring tilts, near the Fourier line of the
        tilt axis. It is signal power without noise, and may be negative by chance.
    counts, shared_counts
        `(ring,)`: how many independent numbers are averaged in `power` and in `shared`; fewer in proportion where a
        part of the pixels was not measured.
    mean
        `(tilt,)`, mean of the measured pixels, with outliers clipped.
    """

    tilt_angles: FloatArray
    power: FloatArray
    shared: FloatArray
    counts: FloatArray
    shared_counts: FloatArray
    mean: FloatArray


def series_spectra(
    images: Tensor,
    tilt_angles: FloatArray,
    *,
    name: str = "series",
    limits: FloatArray | None = None,
    measured: Tensor | None = None,
) -> SeriesSpectra:
    """Compute the radial spectra of a tilt-series.

    Parameters
    ----------
    images
        `(tilt, y, x)`; the tilt axis is y.
    tilt_angles
        `(tilt,)`, degrees, increasing.
    name
        Name of the series in messages.
    limits
        `(tilt,)`: pixels are not clipped nearer than this to the slow changes of their tilt. They are at `OUTLIERS`
        standard deviations.
    measured
        `(tilt, y, x)`, bool: the pixels that count; by default all. Images fade out towards the others.

    Raises
    ------
    ValueError
        If a tilt is constant; the message names it.
    """
    check_ndim("images", images, "tilt y x")
    mask = as_mask(measured, images)
    refuse_constant(images, tilt_angles, name, mask)
    step = float(np.median(np.diff(tilt_angles))) if len(tilt_angles) > 1 else LINE_STEP
    rings = RingMeans((images.shape[-2], images.shape[-1]), LINE * min(1.0, LINE_STEP / step), images.device)
    power, shared, means, covered, both = [], [], [], [], []
    before: _Faded | None = None
    for index, image in enumerate(images):
        faded = _Faded.of(image, None if mask is None else mask[index], 0.0 if limits is None else float(limits[index]))
        power.append(rings.mean(faded.spectrum.abs() ** 2))
        covered.append(faded.covered(faded))
        if before is not None:
            product = rings.mean_near_axis((before.spectrum.conj() * faded.spectrum).real)
            shared.append(product / before.overlap(faded))
            both.append(before.covered(faded))
        before = faded
        means.append(faded.mean)
    return SeriesSpectra(
        tilt_angles=tilt_angles,
        power=np.stack(power),
        shared=np.stack(shared) if shared else np.empty((0, len(RINGS))),
        counts=rings.counts * float(np.mean(covered)),
        shared_counts=rings.counts_near_axis * (float(np.mean(both)) if both else 1.0),
        mean=np.array(means),
    )


def sorted_spectra(images: Tensor, tilt_angles: Angles, name: str, *, measured: Tensor | None = None) -> SeriesSpectra:
    """Compute the spectra of tilts in any order. The result is sorted by angle.

    Raises
    ------
    ValueError
        If a tilt is constant.

    Warns
    -----
    UserWarning
        If several tilts have the same angle; the first one is used.
    """
    check_ndim(name, images, "tilt y x")
    angles = as_tilt_angles(tilt_angles, count=images.shape[0])
    order = np.argsort(angles, kind="stable")
    angles = angles[order]
    kept = np.concatenate([[True], np.diff(angles) > 0])
    if not kept.all():
        warnings.warn(
            f"{name}: expected one tilt an angle, got several at {angles[~kept][0]:g}°; the first of them is used. "
            "Leave out the others if they are worse, or correct the tilt angles",
            stacklevel=4,
        )
    chosen = torch.from_numpy(order[kept])
    mask = as_mask(measured, images)
    return series_spectra(images[chosen], angles[kept], name=name, measured=None if mask is None else mask[chosen])


def matching_spectra(
    cleans: Sequence[Tensor],
    clean_angles: Sequence[Angles],
    measured: Sequence[SeriesSpectra],
    limits: Sequence[FloatArray | None] | None = None,
) -> list[list[SeriesSpectra]]:
    """Compute the spectra of clean tilts at the angles of each measured series.

    The power that neighbouring tilts share depends on the step between them. So clean and measured tilts must have the
    same angles.

    Parameters
    ----------
    cleans, clean_angles
        Stacks of clean tilts `(tilt, y, x)` in any order, with their angles `(tilt,)` in degrees.
    measured
        Spectra of the measured series.
    limits
        For each measured series, see `series_spectra`.

    Returns
    -------
    One list for each measured series, with one entry for each stack of clean tilts.

    Raises
    ------
    ValueError
        If a stack has no clean tilt near the angle of a measured one, or a clean tilt is constant.
    """
    known: dict[tuple[int, bytes, bytes, bytes], SeriesSpectra] = {}
    result = []
    for index, series in enumerate(measured):
        row, limit = [], None if limits is None else limits[index]
        for number, (images, own) in enumerate(zip(cleans, clean_angles, strict=True)):
            check_ndim(f"clean {number}", images, "tilt y x")
            angles = as_tilt_angles(own, count=images.shape[0])
            chosen = _nearest(series.tilt_angles, angles, f"series {index}, clean {number}")
            key = (number, chosen.tobytes(), series.tilt_angles.tobytes(), b"" if limit is None else limit.tobytes())
            if key not in known:
                tilts = images[torch.from_numpy(chosen)]
                known[key] = series_spectra(tilts, series.tilt_angles, name=f"clean {number}", limits=limit)
            row.append(known[key])
        result.append(row)
    return result


def _nearest(wanted: FloatArray, angles: FloatArray, name: str) -> npt.NDArray[np.int64]:
    chosen = nearest_tilts(wanted, angles)
    step = float(np.median(np.diff(wanted))) if len(wanted) > 1 else LINE_STEP
    tolerance = NEAR * min(step, 2 * LINE_STEP)
    off = np.abs(angles[chosen] - wanted)
    if off.max() > tolerance:
        raise ValueError(
            f"{name}: expected clean tilts at the measured ones' angles, within {tolerance:.2g}°, got none nearer to "
            f"{wanted[off.argmax()]:g}° than {angles[chosen[off.argmax()]]:g}°; project the specimens at these angles, "
            "too (`geometry.joint_angles`)"
        )
    return chosen


def radial_filter(values: FloatArray, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Interpolate values of the rings `(ring,)` on the half spectrum of an image; `(y, x // 2 + 1)`, float32."""
    place = ring_radius(shape, device) / RING_WIDTH
    low = place.long().clamp(max=len(values) - 2)
    table = sent(torch.from_numpy(values), device).to(torch.float32)
    return torch.lerp(table[low], table[low + 1], (place - low).to(torch.float32))


def match_spectrum(images: Tensor, references: Tensor) -> Tensor:
    """Filter images so that each has the radial power spectrum of its reference. The mean of each image stays.

    Parameters
    ----------
    images, references
        `(n, y, x)`, floating point, of the same shape. Their units may differ.
    """
    check_same_shape("references", references.shape, "images", images.shape)
    shape = (int(images.shape[-2]), int(images.shape[-1]))
    rings = RingMeans(shape, LINE, images.device)
    result = torch.empty_like(images)
    # On a GPU the program waits for the means over rings: of some images at once.
    step = _GPU_IMAGES if images.is_cuda else 1
    for start in range(0, len(images), step):
        some = images[start : start + step]
        own = [_centred_spectrum(image) for image in some]
        wanted = (_centred_spectrum(image) for image in references[start : start + step])
        power = rings.means(one.abs() ** 2 for one in chain(own, wanted))
        for place, (image, spectrum) in enumerate(zip(some, own, strict=True)):
            factor = np.sqrt(power[len(own) + place] / np.where(power[place] > 0, power[place], np.inf))
            filtered = torch.fft.irfft2(spectrum * radial_filter(factor, shape, images.device), s=shape)
            result[start + place] = filtered.to(images.dtype) + image.mean()
    return result


def _centred_spectrum(image: Tensor) -> Tensor:
    spectrum: Tensor = torch.fft.rfft2((image - image.mean()).to(torch.float32))
    return spectrum


def faded_spectrum(image: Tensor, measured: Tensor | None = None) -> Tensor:
    """Fourier transform an image `(y, x)` after its background and outliers are removed; `(y, x // 2 + 1)`.

    Where it was not `measured` (`(y, x)`, bool), it is 0.
    """
    return _Faded.of(image, None if measured is None else as_mask(measured, image)).spectrum


@dataclass(frozen=True, kw_only=True, eq=False)
class _Faded:
    """The spectrum of an image without background and outliers, faded out at its edges; its mean; its window."""

    spectrum: Tensor
    mean: float
    whole: Tensor  # the window of an image of which all was measured
    window: Tensor | None = None  # its own, if another

    @classmethod
    def of(cls, image: Tensor, measured: Tensor | None, limit: float = 0.0) -> _Faded:
        values = image.to(torch.float32)
        known = None if measured is None or bool(measured.all()) else measured
        solid = known
        if known is not None:
            values, solid = without_holes(values, known)
        slow = torch.zeros_like(values)
        for _ in range(3):
            # The standard deviation gets smaller each time, until the outliers no longer count.
            slow = _slow_changes(values, solid)
            spread = (_only(values - slow, known).std() * OUTLIERS).clamp(min=limit)
            values = torch.minimum(torch.maximum(values, slow - spread), slow + spread)
        whole = fade(image.shape[0], image.device)[:, None] * fade(image.shape[1], image.device)
        mean = float(_only(values, known).mean(dtype=torch.float64))
        if solid is None:
            spectrum = torch.fft.rfft2((values - slow) * whole) / (whole**2).sum().sqrt()
            return cls(spectrum=spectrum, mean=mean, whole=whole)
        window = whole * fading(solid, FADE * min(image.shape))
        size = (window**2).sum().sqrt().clamp_min(1e-12)
        return cls(spectrum=torch.fft.rfft2((values - slow) * window) / size, mean=mean, whole=whole, window=window)

    def covered(self, other: _Faded) -> float:
        """The fraction of the image that both windows cover."""
        if self.window is None and other.window is None:
            return 1.0
        return float((self._own * other._own).sum() / (self.whole**2).sum())

    def overlap(self, other: _Faded) -> float:
        """The product of both windows, relative to what their spectra were divided by."""
        if self.window is None and other.window is None:
            return 1.0
        both = max(self.covered(other), LEAST_SHARED)
        return both / math.sqrt(max(self.covered(self) * other.covered(other), LEAST_SHARED**2))

    @property
    def _own(self) -> Tensor:
        return self.whole if self.window is None else self.window


def _only(values: Tensor, measured: Tensor | None) -> Tensor:
    return values if measured is None else values[measured]


def _slow_changes(values: Tensor, measured: Tensor | None = None) -> Tensor:
    """Fit a polynomial of order 2 in x and in y: ice that is thicker on one side, an uneven beam."""
    y, x = (_legendre(length, values.device) for length in values.shape)
    if measured is not None:
        return _slow_where(values, measured, y, x)
    # Orthonormal along each side, so that the coefficients are products.
    slow: Tensor = y @ (y.T @ values.to(torch.float64) @ x) @ x.T
    return slow.to(values)


def _slow_where(values: Tensor, measured: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Fit the same polynomial to measured pixels only: least squares with nine coefficients."""
    weight = measured.to(torch.float64)
    level = _only(values, measured).mean(dtype=torch.float64)  # so that a fit of few pixels stays near it
    pairs_y, pairs_x = ((one[:, :, None] * one[:, None, :]).flatten(1) for one in (y, x))
    # (i, k, j, l), sums of y_i y_k x_j x_l, become a matrix of (i, j) by (k, l).
    normal = (pairs_y.T @ weight @ pairs_x).view(3, 3, 3, 3).permute(0, 2, 1, 3).reshape(9, 9)
    right = (y.T @ (weight * (values - level)) @ x).reshape(9)
    coefficients = torch.linalg.pinv(normal, rcond=1e-6, hermitian=True) @ right
    slow: Tensor = y @ coefficients.view(3, 3) @ x.T + level
    return slow.to(values)


def _legendre(length: int, device: torch.device) -> Tensor:
    """Orthonormal polynomials of order 0 to 2 on a side, `(length, 3)`."""
    place = torch.linspace(-1, 1, length, dtype=torch.float64, device=device)
    basis: Tensor = torch.linalg.qr(torch.stack([place**power for power in range(3)], dim=1)).Q
    return basis


def fade(length: int, device: torch.device) -> Tensor:
    """Return the window by which an image of this side fades out before its Fourier transform, `(length,)`."""
    place = (torch.arange(length, device=device) + 0.5) / length
    edge = torch.minimum(place, 1 - place) / FADE
    return torch.sin(edge.clamp(max=1.0) * (torch.pi / 2)) ** 2
