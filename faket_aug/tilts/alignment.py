"""Coarse alignment of a tilt-series without metadata, by cross-correlation of neighbouring tilts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import check_fraction
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.geometry import turns
from faket_aug.microscope.spectra import faded_spectrum
from faket_aug.tilts.series import TiltSeries
from faket_aug.tomography.resample import covered_pixels, transform_images

#: Frequencies that are compared, cycles per pixel: lower ones are thickness and beam, higher ones are noise.
BAND = (0.01, 0.15)
#: Largest shift between neighbours, as a fraction of the image's side.
FARTHEST_SHIFT = 0.25


def align_by_neighbours(
    series: TiltSeries, *, axis_angle: float = 0.0, band: tuple[float, float] = BAND, farthest: float = FARTHEST_SHIFT
) -> TiltMetadata:
    """Find the shifts of tilts by cross-correlation of neighbours, from the lowest tilt outwards.

    Of two neighbours, the one at the higher tilt is stretched across the axis by the ratio of the cosines before they
    are compared, as in IMOD's tiltxcorr. Only measured pixels count; corners that the rotation leaves empty do not.
    Errors add up from tilt to tilt, so the shifts are right to some pixels only. That is enough for
    `NoiseModel.fit_unpaired`, but not for a good reconstruction.

    Parameters
    ----------
    series
        The series as it was measured, not aligned.
    axis_angle
        Degrees, from the image's +y to the tilt axis, positive towards −x; see `TiltMetadata`.
    band
        Lowest and highest frequency that are compared, cycles per pixel.
    farthest
        Largest shift between neighbours, as a fraction of the image's side.

    Returns
    -------
    Metadata with shifts in pixels; all but the alignment is taken from the series' own metadata. Set them
    (`replace(series, metadata=...)`), and `TiltSeries.aligned` applies them.

    Raises
    ------
    ValueError
        If there is only one tilt, or a parameter is out of its range.
    """
    count = len(series.tilts)
    if count < 2:
        raise ValueError(f"{series.name}: expected two tilts or more, since neighbours are compared, got {count}")
    check_fraction("farthest", farthest)
    if not 0 <= band[0] < band[1] <= 0.5:
        raise ValueError(f"expected a `band` of two increasing frequencies up to 0.5, got {band}")
    turn = turns(np.full(count, axis_angle))
    # In the frame of the axis: x is across it, y along it.
    upright = transform_images(series.filled_tilts, turn, np.zeros((count, 2)))
    own = (int(series.tilts.shape[-2]), int(series.tilts.shape[-1]))
    covered = covered_pixels(own, turn, np.zeros((count, 2)), measured=series.measured)
    cosines = np.cos(np.deg2rad(series.tilt_angles))
    first = int(np.abs(series.tilt_angles).argmin())
    shifts = np.zeros((count, 2))
    for places in (range(first + 1, count), range(first - 1, -1, -1)):
        for place in places:
            inner = place - 1 if place > first else place + 1
            stretch = max(cosines[inner], 0.01) / max(cosines[place], 0.01)
            reference, image = (
                _seen(upright[at], None if covered is None else covered[at], factor)
                for at, factor in ((inner, 1.0), (place, stretch))
            )
            y, x = _displacement(reference, image, own, band, farthest)
            shifts[place] = shifts[inner, 0] + y, (shifts[inner, 1] + x) / stretch
    in_image = np.einsum("nij,nj->ni", turn, shifts[:, ::-1])[:, ::-1]
    found = TiltMetadata(
        sections=np.arange(count) if series.metadata is None else series.metadata.sections,
        tilt_angles=series.tilt_angles,
        axis_angle=np.full(count, axis_angle),
        shifts=in_image,
        shift_unit="pixel",
        pixel_size=series.pixel_size,
        image_size=own,
        source=f"neighbours of {series.name}",
    )
    return found if series.metadata is None else replace(found.filled_from(series.metadata), source=found.source)


def _seen(image: Tensor, measured: Tensor | None, stretch: float) -> Tensor:
    """Return the spectrum of an image that is stretched by a factor across the axis; 1 leaves it as it is."""
    if stretch == 1:
        return faded_spectrum(image, measured)
    wide = ([[[1 / stretch, 0.0], [0.0, 1.0]]], [[0.0, 0.0]])
    if measured is not None:
        covered = covered_pixels((image.shape[0], image.shape[1]), *wide, measured=measured[None])
        measured = None if covered is None else covered[0]
    return faded_spectrum(transform_images(image[None], *wide)[0], measured)


def _displacement(
    reference: Tensor, image: Tensor, shape: tuple[int, int], band: tuple[float, float], farthest: float
) -> tuple[float, float]:
    """Find the shift (y, x) of an image against the reference by their spectra, in pixels, with fractions."""
    height, width = shape
    product = reference.conj() * image
    k_y = torch.fft.fftfreq(height, device=image.device)[:, None]
    radius = torch.hypot(k_y, torch.fft.rfftfreq(width, device=image.device))
    low, high = band
    # Smooth ends: no ringing about the peak. The root keeps strong frequencies from being all that counts.
    weight = torch.exp(-((radius / high) ** 4)) * (1 - torch.exp(-((radius / max(low, 1e-6)) ** 4)))
    correlation = torch.fft.irfft2(product / product.abs().sqrt().clamp_min(1e-20) * weight, s=(height, width))
    reach_y, reach_x = (max(1, int(side * farthest)) for side in (height, width))
    window = (
        torch.roll(correlation, (reach_y, reach_x), dims=(0, 1))[: 2 * reach_y + 1, : 2 * reach_x + 1].cpu().numpy()
    )
    y, x = np.unravel_index(int(window.argmax()), window.shape)
    return (
        float(y) - reach_y + _between(window[:, x], int(y)),
        float(x) - reach_x + _between(window[y], int(x)),
    )


def _between(values: npt.NDArray[np.float32], place: int) -> float:
    """Find the maximum of the parabola through three values, relative to the middle one."""
    if not 0 < place < len(values) - 1:
        return 0.0
    before, at, after = (float(value) for value in values[place - 1 : place + 2])
    bend = before - 2 * at + after
    return 0.0 if bend >= 0 else 0.5 * (before - after) / bend
