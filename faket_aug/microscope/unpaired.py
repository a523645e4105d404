"""Fit the response of a microscope to unlabelled tilts: neighbouring tilts share signal, and no noise."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from faket_aug._arrays import FloatArray
from faket_aug.microscope.absolute_fit import AbsoluteFit, Matter
from faket_aug.microscope.crowd import CrowdField
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.intensity import AbsoluteScale
from faket_aug.microscope.power_fit import FIT_RANGE, Pairs, PowerFit
from faket_aug.microscope.response import ANGLE_UNIT, MicroscopeResponse
from faket_aug.microscope.spectra import RINGS, SeriesSpectra

#: Largest order of the noise power's polynomials by default. Exposures and ice change less smoothly than parabolas.
_FINEST = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class ResponseFit:
    """What was found.

    Parameters
    ----------
    response
        The response of the microscope.
    gains
        The powers of each series.
    crowd
        The matter that the specimens do not explain; None if they explain all of it, or the scale is not absolute.
    explained
        The power that neighbouring tilts share by the specimens, divided by what was measured. More than 1: there are
        too many particles. None if the scale is not absolute.
    """

    response: MicroscopeResponse
    gains: list[SeriesGain]
    crowd: CrowdField | None = None
    explained: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesGain:
    """The signal power and the noise power of one series.

    Parameters
    ----------
    signal, noise
        `(tilt,)`, power of a pixel, the mean over all frequencies.
    """

    signal: FloatArray
    noise: FloatArray


def fit_response(
    targets: Sequence[SeriesSpectra],
    cleans: Sequence[Sequence[SeriesSpectra]],
    *,
    pixel_size: float,
    ctf: ContrastTransfer | Sequence[ContrastTransfer] | None = None,
    order: int | None = None,
    names: Sequence[str] = (),
    scales: Sequence[AbsoluteScale] = (),
    matter: Matter | None = None,
    widths: Sequence[int] = (),
    beads: Sequence[FloatArray] = (),
) -> ResponseFit:
    """Fit the gain and the noise of a microscope to the spectra of its tilts.

    Near the Fourier line of the tilt axis, neighbouring tilts see the same spectrum of the specimen, but independent
    noise. So the mean product of their spectra is the signal power, without noise. Clean projections of other specimens
    of the same kind have such a product, too. The ratio of the two products is the squared gain. The gain is fitted by
    robust least squares: one envelope for all series, a scale and a defocus for each series. The noise power is the
    measured power minus the signal power.

    So the gain depends on how many particles the specimens hold. With absolute scales of the gain it does not: the
    scale is not fitted, and the power that the specimens do not explain is other matter, the crowd. Its spectrum is the
    sum of random media (`CrowdField`).

    Parameters
    ----------
    targets
        Spectra of the measured series, see `series_spectra`.
    cleans
        For each target: spectra of negated projections of specimens of the same kind, with the same pixel size and at
        the angles of the target, see `spectra.matching_spectra`.
    pixel_size
        Å.
    ctf
        The microscope, or one for each target. With a spread, the defocus is searched within the spread; without, the
        defocus is taken as known. The amplitude contrast is a start value. By default 300 kV, and a defocus from 0.2 to
        10 µm.
    order
        Order of the polynomials of the noise power over the tilt angle; by default a quarter of the number of tilts,
        up to 8.
    names
        Names of the targets in messages.
    scales
        The absolute scale of each target, see `absolute_scales`. By default, or where one of them is not known, the
        power gives the scale.
    matter
        The specimens' depth and density; needed with absolute scales.
    widths
        Pixels across the axis of each target; needed with absolute scales.
    beads
        `(tilt - 1, ring)` of each target: the part of the clean tilts' shared power that is beads'. It says nothing of
        how much matter there is.

    Returns
    -------
    The response, the powers of each series, and the crowd.

    Raises
    ------
    ValueError
        If the pixel size is not known; if a series has fewer than two tilts, or its tilts are too far apart, or they
        share no signal (they have to be aligned first); if there are no series or no clean tilts; or if the microscopes
        differ in more than their defocus.

    Warns
    -----
    UserWarning
        If the defocus is not determined: the first zero lies beyond the sampling, or the best defocus lies at an end of
        the searched range.
    """
    if not targets or not all(cleans) or len(cleans) != len(targets):
        raise ValueError(
            f"expected a measured series or more, and clean tilts for each, got {len(targets)} series and "
            f"{[len(one) for one in cleans]} clean ones; give both"
        )
    if not pixel_size > 0:
        raise ValueError(
            f"expected `pixel_size` in Å, which the contrast transfer function needs, got {pixel_size!r}; set it"
        )
    labels = [*names, *(f"series {i}" for i in range(len(names), len(targets)))]
    data = [Pairs.of(t, own, label) for t, own, label in zip(targets, cleans, labels, strict=True)]
    fit: PowerFit
    absolute = bool(scales) and all(one.source != "power" for one in scales)
    if absolute:
        assert matter is not None, "given with scales"
        fit = AbsoluteFit(
            *(data, _microscopes(ctf, len(targets)), pixel_size),
            targets=targets,
            scales=scales,
            widths=widths,
            matter=matter,
            specimens=min(len(own) for own in cleans),
            beads=beads,
        )
    else:
        fit = PowerFit(data, _microscopes(ctf, len(targets)), pixel_size)
    found = fit.solve()
    errors = fit.errors(found)
    shift = float(np.mean([one.phase_shift for one in fit.ctfs]))
    centre = replace(fit.transfer(found, 0), defocus=float(np.mean(fit.defocus(found))), phase_shift=shift)
    _warn_of_far_rings(centre, pixel_size, bool(fit.known.all()))
    fit.warn_of_bounds(found, labels)
    response = MicroscopeResponse(
        pixel_size=pixel_size,
        ctf=centre,
        envelope=replace(fit.envelope(found, 0), log_scale=float(np.mean(fit.log_scales(found)))),
        noise=((0.0,) * len(RINGS),),
        angle_range=(
            min(float(t.tilt_angles.min()) for t in targets),
            max(float(t.tilt_angles.max()) for t in targets),
        ),
        defocus=tuple(fit.defocus(found).tolist()),
        defocus_error=tuple(errors.tolist()),
        gain_error=fit.gain_error,
    )
    angles, noises, gains = [], [], []
    for index, target in enumerate(targets):
        own = replace(
            response,
            ctf=fit.transfer(found, index),
            envelope=fit.envelope(found, index),
        )
        signal = own.gain(target.tilt_angles) ** 2 * fit.matter_power(found, index)
        noise = target.power - signal
        angles.append(target.tilt_angles)
        noises.append(noise)
        weights = target.counts / target.counts.sum()
        gains.append(SeriesGain(signal=signal @ weights, noise=noise @ weights))
    fine = min(max(len(one) for one in angles) // 4, _FINEST) if order is None else order
    response = replace(response, noise=_smooth(np.concatenate(angles), np.concatenate(noises), fine))
    return ResponseFit(response=response, gains=gains, crowd=fit.crowd(found), explained=fit.explained(found))


def _microscopes(ctf: ContrastTransfer | Sequence[ContrastTransfer] | None, count: int) -> list[ContrastTransfer]:
    """One microscope for each series, without the parameters that the fit does not have."""
    ctf = ContrastTransfer.within() if ctf is None else ctf
    each = [ctf] * count if isinstance(ctf, ContrastTransfer) else list(ctf)
    if len(each) != count:
        raise ValueError(f"expected one `ctf`, or {count}, one for each series, got {len(each)}")
    for name in ("voltage", "spherical_aberration", "amplitude_contrast", "b_factor", "radial_gain"):
        values = [getattr(one, name) for one in each]
        if len(set(values)) > 1:
            raise ValueError(f"expected series of one microscope, got `{name}` of {values}; fit each separately")
    plain = [replace(one, astigmatism=0.0, astigmatism_angle=0.0, jitter=0.0) for one in each]
    return [replace(one, phase_shift=float(np.mean(one.phase_shift))) for one in plain]


def _smooth(angles: FloatArray, noise: FloatArray, order: int) -> tuple[tuple[float, ...], ...]:
    """Fit polynomials over the tilt angle to the noise power, smoothed over the rings."""
    smooth = ndimage.gaussian_filter1d(noise, 1.0, axis=1, mode="nearest")
    # At the lowest frequencies specimens differ too much: the noise power of the first ring of the fit is used there.
    first = int(np.searchsorted(RINGS, FIT_RANGE[0]))
    smooth[:, :first] = smooth[:, first : first + 1]
    coefficients = np.polynomial.polynomial.polyfit(angles / ANGLE_UNIT, smooth, order)
    return tuple(tuple(row) for row in coefficients.tolist())


def _warn_of_far_rings(ctf: ContrastTransfer, pixel_size: float, known: bool) -> None:
    first = 1 / np.sqrt(ctf.wavelength * abs(float(np.mean(ctf.defocus))) * 1e4)
    if not known and first > FIT_RANGE[1] / pixel_size:
        warnings.warn(
            f"the first zero of a defocus of {float(np.mean(ctf.defocus)):.2g} µm lies at {first:.3g} 1/Å, beyond the "
            f"sampling of pixels of {pixel_size:g} Å: the defocus is not determined; set `ctf` to it, or use tilts "
            "that are less binned. Tilts from a single tomogram share noise, which has the same effect (take tilts "
            "from a pair of half tomograms, see `TiltSeries.from_tomogram`)",
            stacklevel=3,
        )
