"""Fit the response of a microscope to unlabelled tilts: neighbouring tilts share signal, and no noise."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import OptimizeResult, least_squares

from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.response import ANGLE_UNIT, ORDER, Envelope, MicroscopeResponse
from faket_aug.microscope.spectra import LINE, RINGS, SeriesSpectra

FloatArray = npt.NDArray[np.float64]
#: Frequencies of the fit, cycles per pixel. Below them specimens differ; above them the spectrum has corners only.
FIT_RANGE = (0.02, 0.48)
#: Largest step between neighbouring tilts, degrees. Beyond it they share too little.
FARTHEST = 10.0
#: Standard deviations, in tilts and in rings, of the Gaussian that smooths spectra for the error estimate.
SMOOTHING = (3.0, 1.0)
#: A defocus that is closer to an end of the searched range than this fraction of the range is not determined.
_BOUND = 0.01
#: Relative error of the model: the specimens are not exactly of the same kind.
_MODEL_ERROR = 0.05
#: The shared power, summed over all frequencies, has to be so many times its error.
_SIGNIFICANT = 5.0
#: For the standard errors, the pairs of tilts are divided into so many parts, and each part is left out once.
_PARTS = 5
#: Relative tolerance of cost and parameters: at a bound, more digits would take hundreds of steps.
_TOLERANCE = 1e-6
#: Standard deviation of the amplitude contrast from the given one: it depends on the ice.
_CONTRAST_ERROR = 0.01
#: The parameters that all series share (of the envelope, and the amplitude contrast), their start values and bounds.
_COMMON = ("tilt_2", "tilt_4", "square", "square_tilt", "linear", "amplitude_contrast")
_START = (0.0, 0.0, 4.0, 2.0, 1.0)
_LEAST = (-3.0, -3.0, 0.0, 0.0, 0.0, 0.0)
_MOST = (3.0, 3.0, 60.0, 60.0, 15.0, 0.5)
_SCALES = (0.3, 0.3, 5.0, 5.0, 1.0, 0.02)


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
    order: int = ORDER,
    names: Sequence[str] = (),
) -> tuple[MicroscopeResponse, list[SeriesGain]]:
    """Fit the gain and the noise of a microscope to the spectra of its tilts.

    Near the Fourier line of the tilt axis, neighbouring tilts see the same spectrum of the specimen, but independent
    noise. So the mean product of their spectra is the signal power, without noise. Clean projections of other specimens
    of the same kind have such a product, too. The ratio of the two products is the squared gain. The gain is fitted by
    robust least squares: one envelope for all series, a scale and a defocus for each series. The noise power is the
    measured power minus the signal power.

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
        Order of the polynomials of the noise power over the tilt angle.
    names
        Names of the targets in messages.

    Returns
    -------
    The response, and the powers of each series.

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
    data = [_Pairs.of(t, own, label) for t, own, label in zip(targets, cleans, labels, strict=True)]
    fit = _Fit(data, _microscopes(ctf, len(targets)), pixel_size)
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
    for index, (target, pairs) in enumerate(zip(targets, data, strict=True)):
        own = replace(
            response,
            ctf=fit.transfer(found, index),
            envelope=fit.envelope(found, index),
        )
        signal = own.gain(target.tilt_angles) ** 2 * pairs.clean_power
        noise = target.power - signal
        angles.append(target.tilt_angles)
        noises.append(noise)
        weights = target.counts / target.counts.sum()
        gains.append(SeriesGain(signal=signal @ weights, noise=noise @ weights))
    return replace(response, noise=_smooth(np.concatenate(angles), np.concatenate(noises), order)), gains


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pairs:
    """The power that neighbouring tilts of one series share, and the same of clean projections at the same angles."""

    u: FloatArray  # (pair,)
    shared: FloatArray  # (pair, ring)
    clean: FloatArray  # (pair, ring)
    error: FloatArray  # (pair, ring)
    clean_power: FloatArray  # (tilt, ring)

    @classmethod
    def of(cls, target: SeriesSpectra, cleans: Sequence[SeriesSpectra], name: str) -> _Pairs:
        angles = target.tilt_angles
        if len(angles) < 2:
            raise ValueError(f"{name}: expected two tilts or more, since neighbours are compared, got {len(angles)}")
        near = np.diff(angles) <= FARTHEST
        if not near.any():
            raise ValueError(
                f"{name}: expected neighbouring tilts within {FARTHEST:g}°, which share a part of their spectra, got "
                f"steps of {np.diff(angles).min():g}° and more"
            )
        other = next((one.tilt_angles for one in cleans if not np.array_equal(one.tilt_angles, angles)), None)
        if other is not None:
            raise ValueError(
                f"{name}: expected clean tilts at the {len(angles)} angles of the measured ones, {angles[0]:g}° to "
                f"{angles[-1]:g}°, got {len(other)} from {other[0]:g}° to {other[-1]:g}°; project the specimens at the "
                "measured angles (`geometry.joint_angles`)"
            )
        middle = (angles[1:] + angles[:-1]) / 2
        power = np.sqrt(target.power[1:] * target.power[:-1])
        # Errors of the smoothed power: with those of each number, the large ones would count less than the small.
        level = _smoothed(np.abs(target.shared))
        error = np.sqrt((_smoothed(power) ** 2 + 2 * level**2) / np.maximum(target.shared_counts, 1.0))
        fitted = (FIT_RANGE[0] <= RINGS) & (RINGS <= LINE * 5)
        total = target.shared[near][:, fitted].sum()
        if total < _SIGNIFICANT * np.sqrt((error[near][:, fitted] ** 2).sum()):
            raise ValueError(
                f"{name}: expected neighbouring tilts that share signal, got some that share nothing; "
                "align the series first (`TiltSeries.aligned`, `align_by_neighbours`)"
            )
        return cls(
            u=middle[near] / ANGLE_UNIT,
            shared=target.shared[near],
            clean=np.mean([c.shared for c in cleans], axis=0)[near],
            error=(error + _MODEL_ERROR * level)[near],
            clean_power=np.mean([c.power for c in cleans], axis=0),
        )


class _Fit:
    """The fit. Its vector has the parameters that all series share, then a log scale and a defocus for each series."""

    def __init__(self, data: list[_Pairs], ctfs: Sequence[ContrastTransfer], pixel_size: float) -> None:
        self._data, self.ctfs = data, ctfs
        self._rings = (FIT_RANGE[0] <= RINGS) & (FIT_RANGE[1] >= RINGS)
        self._k = RINGS[self._rings]
        self._q = self._k / pixel_size
        self._given = np.array([float(np.mean(ctf.defocus)) for ctf in ctfs])
        self._spread = np.array([ctf.spread for ctf in ctfs])
        #: Whether each series' defocus is given, not fitted.
        self.known = self._spread == 0
        self._contrast = ctfs[0].amplitude_contrast
        self.gain_error = 0.0

    def log_scales(self, parameters: FloatArray) -> FloatArray:
        scales: FloatArray = parameters[len(_COMMON) :: 2]
        return scales

    def defocus(self, parameters: FloatArray) -> FloatArray:
        return np.where(self.known, self._given, parameters[len(_COMMON) + 1 :: 2])

    def envelope(self, parameters: FloatArray, series: int) -> Envelope:
        common = dict(zip(_COMMON, parameters.tolist(), strict=False))
        del common["amplitude_contrast"]
        return Envelope(log_scale=float(self.log_scales(parameters)[series]), **common)

    def transfer(self, parameters: FloatArray, series: int) -> ContrastTransfer:
        contrast = float(parameters[_COMMON.index("amplitude_contrast")])
        defocus = float(self.defocus(parameters)[series])
        return replace(self.ctfs[series], defocus=defocus, amplitude_contrast=contrast, spread=0.0)

    def solve(self) -> FloatArray:
        fits = []
        for offset in [0.0] if self.known.all() else self._best_starts():
            scale, places = self._trial(offset, (_START[2], _START[4]))[1], self._places(offset)
            each = [number for place in places for number in (scale, place)]
            fits.append(self._fit(np.array([*_START, self._contrast, *each])))
        best: FloatArray = min(fits, key=lambda fit: fit.cost).x
        return best

    def warn_of_bounds(self, found: FloatArray, names: Sequence[str]) -> None:
        for name, defocus, given, spread in zip(names, self.defocus(found), self._given, self._spread, strict=True):
            if spread > 0 and abs(abs(defocus - given) - spread) < _BOUND * 2 * spread:
                warnings.warn(
                    f"{name}: the best defocus, {defocus:.2f} µm, lies at an end of what was searched, "
                    f"{given - spread:.2f} to {given + spread:.2f} µm, and is not determined; set `ctf` to another "
                    "range",
                    stacklevel=4,
                )

    def errors(self, found: FloatArray) -> FloatArray:
        """Standard errors of the defocus: each fifth of the pairs of tilts is left out once."""
        others = np.stack([self._fit(found, left_out=part).x for part in range(_PARTS)])
        factor = np.sqrt(_PARTS - 1)
        u = np.array([0.0, 0.5, 1.0])
        gains = np.log(np.maximum(np.abs([self._gain(p, u, 0) for p in others]), 1e-12))
        strong = np.abs(self._gain(found, u, 0)) > np.abs(self._gain(found, u, 0)).max() / 5
        self.gain_error = float(np.median(gains.std(axis=0)[strong]) * factor)
        errors: FloatArray = np.stack([self.defocus(p) for p in others]).std(axis=0) * factor
        return errors

    def _gain(self, parameters: FloatArray, u: FloatArray, series: int) -> FloatArray:
        transfer = self.transfer(parameters, series).curve(self._q).numpy()
        return self.envelope(parameters, series).gain(u, self._k, transfer)

    def _residuals(self, parameters: FloatArray, left_out: int | None) -> FloatArray:
        contrast = parameters[_COMMON.index("amplitude_contrast")] - self._contrast
        parts = [np.array([contrast / _CONTRAST_ERROR])]
        for index, pairs in enumerate(self._data):
            keep = np.arange(len(pairs.u)) % _PARTS != left_out
            expected = pairs.clean[keep][:, self._rings] * self._gain(parameters, pairs.u[keep], index) ** 2
            measured = pairs.shared[keep][:, self._rings]
            parts.append(((expected - measured) / pairs.error[keep][:, self._rings]).ravel())
        return np.concatenate(parts)

    def _fit(self, start: FloatArray, left_out: int | None = None) -> OptimizeResult:
        count = len(self._data)
        # A known defocus does not use its parameter; narrow bounds would only make the steps of the fit small.
        margin = np.where(self.known, 1.0, self._spread)
        low, high = (
            [number for place in self._given + side * margin for number in (side * np.inf, place)] for side in (-1, 1)
        )
        # Not the logarithm: the shared power may be negative, above all at the zeros, which determine the defocus.
        return least_squares(
            self._residuals,
            np.clip(start, [*_LEAST, *low], [*_MOST, *high]),
            bounds=([*_LEAST, *low], [*_MOST, *high]),
            x_scale=[*_SCALES, *[1.0, 0.3] * count],
            loss="soft_l1",
            ftol=_TOLERANCE,
            xtol=_TOLERANCE,
            args=(left_out,),
        )

    def _places(self, offset: float) -> FloatArray:
        """The defocus of each series: the given one plus an offset, limited to the spread of the series."""
        places: FloatArray = self._given + np.clip(offset, -self._spread, self._spread)
        return places

    def _best_starts(self) -> list[float]:
        """The best local minima of a coarse search over the defocus, as offsets from the given defocus."""
        # The phase at the highest frequency changes by a quarter of π from one to the next.
        step = 1 / (4 * self.ctfs[0].wavelength * self._q[-1] ** 2) / 1e4
        most = float(self._spread.max())
        offsets = np.linspace(-most, most, int(2 * most / step) + 2)
        shapes = ((0.0, 0.0), (_START[2], _START[4]), (15.0, 3.0))
        costs = np.array([min(self._trial(offset, shape)[0] for shape in shapes) for offset in offsets])
        lowest = np.flatnonzero(costs <= ndimage.minimum_filter1d(costs, 3))
        chosen: list[float] = offsets[lowest[np.argsort(costs[lowest])][:6]].tolist()
        return chosen

    def _trial(self, offset: float, shape: tuple[float, float]) -> tuple[float, float]:
        """Squared residuals with the best scale, and the logarithm of that scale."""
        square, linear = shape
        falling = np.exp(-2 * square * self._k**2 - 2 * linear * self._k)
        forms = [
            falling * replace(ctf, defocus=float(place)).curve(self._q).numpy() ** 2
            for ctf, place in zip(self.ctfs, self._places(offset), strict=True)
        ]
        expected = np.concatenate(
            [
                (p.clean[:, self._rings] * f / p.error[:, self._rings]).ravel()
                for p, f in zip(self._data, forms, strict=True)
            ]
        )
        measured = np.concatenate([(p.shared / p.error)[:, self._rings].ravel() for p in self._data])
        scale = max(float(expected @ measured / max(expected @ expected, 1e-300)), 1e-12)
        return float(((expected * scale - measured) ** 2).sum()), 0.5 * float(np.log(scale))


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


def _smoothed(values: FloatArray) -> FloatArray:
    """Values `(tilt, ring)`, averaged over some tilts and the next rings."""
    result: FloatArray = ndimage.gaussian_filter(values, SMOOTHING, mode="nearest")
    return result


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
            f"sampling of pixels of {pixel_size:g} Å: the defocus is not determined; give it as `ctf`, or use tilts "
            "that are less binned. Tilts from a single tomogram share noise, which has the same effect (take tilts "
            "from a pair of half tomograms, see `TiltSeries.from_tomogram`)",
            stacklevel=3,
        )
