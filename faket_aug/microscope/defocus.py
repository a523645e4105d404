"""The defocus of an image, fitted to the Thon rings of its power spectrum."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.optimize import OptimizeResult, least_squares
from torch import Tensor

from faket_aug._arrays import as_float64
from faket_aug._checks import check_count, check_finite
from faket_aug._masks import as_mask
from faket_aug._runtime.numerics import own_device
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.ring_power import RESOLUTION_RANGE, RingPower
from faket_aug.statistics import constant_images

FloatArray = npt.NDArray[np.float64]
#: Side of the tiles, pixels.
TILE = 512
#: The smallest side of an image, pixels.
LEAST_SIDE = 64
#: A fit has to stand out from noise by this many standard deviations, and by this factor from the next best fit.
SIGNIFICANCE, MARGIN = 7.0, 1.25
#: Two fits are the same if their defocus differs by less than this fraction. A defocus lies at an end of the range if
#: it is closer to it than this, µm.
SAME, AT_THE_END = 0.05, 0.01
#: For the standard errors, the directions are divided into so many parts, and each part is left out once.
_PARTS = 9
#: Start values: envelopes in Å², astigmatism in µm, the number of its directions, and how many defoci are refined.
_FALLOFFS, _ASTIGMATISMS, _DIRECTIONS, _STARTS = (0.0, 50.0, 200.0), (0.05, 0.15, 0.4), 6, 4
#: Upper bounds of astigmatism (µm) and envelope (Å²), and their scales in the fit.
_MOST, _SCALES = (2.0, 500.0), (0.05, 50.0)
#: The fit ends when the relative change is below this.
TOLERANCE = 1e-6
#: The errors are corrected by this factor: at low frequencies neighbouring directions share numbers.
_SHARED = 1.1
#: Neighbouring numbers of a windowed spectrum are correlated: so many count as one.
_ALIKE = 2.0
#: The rings fit up to the frequency where their correlation with the fit, over about two rings, falls below this.
_FITTING = 0.5


@dataclass(frozen=True, kw_only=True)
class DefocusEstimate:
    """The defocus of an image, and how well the Thon rings determine it.

    Parameters
    ----------
    defocus, defocus_error
        µm, positive is underfocus. The mean over all directions, and its standard error. The error is estimated from
        the differences between directions; it does not contain errors of pixel size, voltage or spherical aberration.
    astigmatism, astigmatism_error
        µm, half the difference between the largest and the smallest defocus. It is never negative, so noise alone gives
        a small astigmatism.
    astigmatism_angle
        Degrees, from +x to the direction of the largest defocus, positive towards +y.
    score
        Correlation of `rings` and `fit`.
    significance
        How much better the fit is than a smooth background, in standard deviations of the noise.
    resolution
        Å. The rings fit up to this resolution.
    ctf
        The contrast transfer function, ready to use. Its envelope is that of the function that was given.
    frequencies, rings, fit
        `(ring,)`: frequencies in 1/Å; power relative to its smooth background, averaged along the rings; and the fit.

    References
    ----------
    Rohou and Grigorieff, J. Struct. Biol. 192 (2015), 216-221.
    """

    defocus: float
    defocus_error: float
    astigmatism: float
    astigmatism_error: float
    astigmatism_angle: float
    score: float
    significance: float
    resolution: float
    ctf: ContrastTransfer
    frequencies: FloatArray = field(repr=False, compare=False)
    rings: FloatArray = field(repr=False, compare=False)
    fit: FloatArray = field(repr=False, compare=False)


def fit_defocus(
    images: Tensor,
    pixel_size: float,
    *,
    ctf: ContrastTransfer | None = None,
    tile: int = TILE,
    resolution_range: tuple[float, float] = RESOLUTION_RANGE,
    measured: Tensor | None = None,
) -> DefocusEstimate:
    """Fit the defocus of a micrograph, or of several images with one defocus, to the Thon rings of its power spectrum.

    The power spectra of overlapping tiles are averaged. A smooth background (a spline over the logarithm of the
    frequency) is removed from the spectrum and from the squared transfer function. Then the two are compared: first
    along the radius for every defocus of the range, then in all directions, with astigmatism and an envelope.

    Parameters
    ----------
    images
        `(y, x)` or `(image, y, x)`.
    pixel_size
        Å.
    ctf
        The microscope. Its defocus and spread give the range that is searched; astigmatism and envelope are fitted. By
        default 300 kV, and a defocus from 0.2 to 10 µm.
    tile
        Side of the tiles, pixels; a smaller image is one tile.
    resolution_range
        Å, lowest and highest resolution of the rings that are compared. Pixels larger than 5 Å change the first, and
        pixels larger than 1.8 Å the second.
    measured
        bool, of the images' shape: the pixels that count, as `TiltSeries.measured`; by default all.

    Raises
    ------
    ValueError
        If the pixel size is not known; if images are too small, constant or not finite; if the first zero lies beyond
        the sampling for every defocus of the range; or if no Thon rings are found, or only doubtful ones.

    Warns
    -----
    UserWarning
        If the defocus lies at an end of the range.
    """
    check_count("tile", tile)
    ctf = _microscope(ctf)
    mask = as_mask(measured, images)
    images, mask = _checked(images, pixel_size, mask)
    rings = RingPower.of(images, pixel_size, min(tile, *images.shape[-2:]) // 2 * 2, resolution_range, mask)
    search, fit = _Fit(rings.mean(), ctf), _Fit(rings, ctf)
    found, others = fit.best(search.starts())
    _check(fit, search.trials(), found, others)
    errors = fit.errors(found)
    defocus, along_x, along_y = (float(value) for value in found[:3])
    astigmatism = math.hypot(along_x, along_y)
    angle = math.degrees(math.atan2(along_y, along_x)) / 2
    profile, fitted = fit.profiles(found)
    return DefocusEstimate(
        defocus=defocus,
        defocus_error=float(errors[0]),
        astigmatism=astigmatism,
        astigmatism_error=float(np.sqrt(np.mean(errors[1:3] ** 2))),
        astigmatism_angle=angle,
        score=fit.score(found),
        significance=fit.significance(found),
        resolution=1 / float(rings.q[fit.last_fitting(found)]),
        ctf=replace(ctf, defocus=defocus, spread=0.0, jitter=0.0, astigmatism=astigmatism, astigmatism_angle=angle),
        frequencies=rings.q,
        rings=profile,
        fit=fitted,
    )


def _checked(images: Tensor, pixel_size: float, measured: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if not pixel_size > 0:
        raise ValueError(f"expected `pixel_size` in Å, which the fit of the defocus needs, got {pixel_size!r}; set it")
    if images.ndim not in (2, 3) or 0 in images.shape:
        raise ValueError(f"expected `images` of shape (y, x) or (image, y, x), got {tuple(images.shape)}")
    if min(images.shape[-2:]) < LEAST_SIDE:
        raise ValueError(f"expected `images` of {LEAST_SIDE} pixels or more a side, got {tuple(images.shape)}")
    images = images.reshape(-1, *images.shape[-2:])
    measured = None if measured is None else measured.reshape(images.shape)
    check_finite(images, "images")
    constant = constant_images(images, measured)
    if constant:
        raise ValueError(f"expected `images` that vary, got constant ones: {constant}; leave them out")
    return images, measured


def _microscope(ctf: ContrastTransfer | None) -> ContrastTransfer:
    ctf = ContrastTransfer.within() if ctf is None else ctf
    if isinstance(ctf.defocus, tuple) or isinstance(ctf.phase_shift, tuple):
        raise ValueError("expected `ctf` with one defocus and one phase shift, got one for each tilt; set one number")
    if ctf.spread == 0:
        raise ValueError("expected `ctf` with a spread, half of the defocus range to search, got 0; set it")
    return ctf


class _Fit:
    """The fit. Its parameters: mean defocus and two components of astigmatism, µm; the envelope, Å²; and a scale."""

    def __init__(self, rings: RingPower, ctf: ContrastTransfer) -> None:
        self.rings = rings
        self.low, self.high = float(ctf.defocus) - ctf.spread, float(ctf.defocus) + ctf.spread  # type: ignore[arg-type]
        # The phase is a straight line over the defocus.
        self._phase = _phase(ctf, rings.q, 0.0)
        self._per_um = _phase(ctf, rings.q, 1.0) - self._phase
        # Rings at a frequency are as fine as what comes from so many pixels away.
        self._lag = np.gradient(self._phase, rings.q) / (np.pi * rings.pixel_size)
        self._lag_per_um = np.gradient(self._per_um, rings.q) / (np.pi * rings.pixel_size)
        window = np.sin(np.pi * np.arange(rings.tile) / rings.tile) ** 2
        self._overlap = np.correlate(window, window, "full")[rings.tile - 1 :] / (window @ window)

    def trials(self) -> FloatArray:
        """Defoci of a coarse search whose first zero lies within the rings."""
        # From one to the next the phase of a ring's power changes by a quarter of π at the finest.
        step = np.pi / 8 / np.abs(self._per_um).max()
        trials = np.linspace(self.low, self.high, math.ceil((self.high - self.low) / step) + 1)
        within: FloatArray = trials[np.abs(self._phase[-1] + trials * self._per_um[-1]) > np.pi]
        return within

    def starts(self) -> list[FloatArray]:
        """The best local maxima over the defocus, of rings without astigmatism."""
        trials = self.trials()
        if not len(trials):
            raise ValueError(
                f"expected a first zero of the transfer function below {self.rings.q[-1]:.3g} 1/Å, what is compared in "
                f"pixels of {self.rings.pixel_size:g} Å, got none for a defocus from {self.low:g} "
                f"to {self.high:g} µm; take images that are less binned"
            )
        waves = self._waves(trials[:, None])
        gains = np.stack([self._gain(waves * self._envelope(falloff)) for falloff in _FALLOFFS])
        best = gains.max(axis=0)
        peaks = np.flatnonzero(best >= ndimage.maximum_filter1d(best, 3))
        chosen = peaks[np.argsort(-best[peaks])][:_STARTS]
        return [np.array([trials[i], 0.0, 0.0, _FALLOFFS[int(gains[:, i].argmax())]]) for i in chosen]

    def best(self, starts: list[FloatArray]) -> tuple[FloatArray, list[FloatArray]]:
        """The best fit, and those of other defoci."""
        fits = [self._solve(self._with_astigmatism(start)) for start in starts]
        found, *others = (fit.x for fit in sorted(fits, key=lambda fit: float(fit.cost)))
        return found, [x for x in others if abs(x[0] - found[0]) > SAME * abs(found[0])]

    def errors(self, found: FloatArray) -> FloatArray:
        """Standard errors of the parameters: each part of the directions is left out once."""
        parts = np.arange(len(self.rings.angles)) % _PARTS
        others = np.stack([self._solve(found[:4], parts != part).x for part in range(_PARTS)])
        errors: FloatArray = others.std(axis=0) * (_SHARED * np.sqrt(_PARTS - 1))
        return errors

    def significance(self, found: FloatArray) -> float:
        left = self.rings.values - found[4] * self._model(found)
        total, rest = (self.rings.values**2).sum(), (left**2).sum()
        return float(np.sqrt(max(total - rest, 0.0) / rest * np.count_nonzero(self.rings.counts) / _ALIKE))

    def profiles(self, found: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The power without its smooth part, and the fit to it, averaged along the rings: `(ring,)` each."""
        stretch = np.sqrt(np.clip(self._defocus(found) / found[0], 0.25, 4.0))  # (sector,)
        weight = self._along(self.rings.counts, stretch)
        power = self._along(self.rings.values * self.rings.root, stretch) / weight
        return power, found[4] * self._along(self._model(found) * self.rings.root, stretch) / weight

    def _along(self, values: FloatArray, stretch: FloatArray) -> FloatArray:
        q = self.rings.q
        # A ring lies nearer to the middle where the defocus is larger.
        rows = [np.interp(q / by, q, row) for row, by in zip(values, stretch, strict=True)]
        along: FloatArray = np.sum(rows, axis=0)
        return along

    def score(self, found: FloatArray) -> float:
        power, fit = self.profiles(found)
        weight = self.rings.counts.sum(axis=0)
        return float(_correlation(power, fit, weight))

    def last_fitting(self, found: FloatArray) -> int:
        """The ring up to which, from the first zero, power and fit correlate."""
        power, fit = self.profiles(found)
        phase = np.abs(self._phase + found[0] * self._per_um) / np.pi
        near = np.exp(-((phase - phase[:, None]) ** 2) / 2)
        correlation = _correlation(power, fit, near * self.rings.counts.sum(axis=0))
        first = int(np.argmax(phase > 1))
        poor = np.flatnonzero(correlation[first:] < _FITTING)
        return first + (int(poor[0]) - 1 if len(poor) else len(correlation) - first - 1)

    def _solve(self, start: FloatArray, keep: npt.NDArray[np.bool_] | slice = slice(None)) -> OptimizeResult:
        model, values = self._model(start)[keep], self.rings.values[keep]
        scale = float(np.clip((model * values).sum() / max((model**2).sum(), 1e-300), 1e-6, 1.0))
        (astigmatism, falloff), (step, slope) = _MOST, _SCALES
        low, high = [self.low, -astigmatism, -astigmatism, 0.0], [self.high, astigmatism, astigmatism, falloff]
        return least_squares(
            lambda parameters: (parameters[4] * self._model(parameters)[keep] - values).ravel(),
            [*np.clip(start, low, high), scale],
            # Power is not negative, so that rings are no stronger than what they lie on.
            bounds=([*low, 0.0], [*high, 1.0]),
            x_scale=[step, step, step, slope, scale],
            xtol=TOLERANCE,
            ftol=TOLERANCE,
        )

    def _with_astigmatism(self, start: FloatArray) -> FloatArray:
        turns = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
        shifts = [(0.0, a * np.cos(t), a * np.sin(t), 0.0) for a, t in product((0.0, *_ASTIGMATISMS), turns)]
        trials = [start + np.array(shift) for shift in shifts]
        best: FloatArray = max(trials, key=lambda trial: float(self._gain(self._model(trial, weighted=False))))
        return best

    def _gain(self, waves: FloatArray) -> FloatArray:
        """How much of the variation of the power `waves` `(..., sector, ring)` explain, with its sign."""
        model = self.rings.rest(waves)
        size = np.sqrt((model**2).sum(axis=(-2, -1)))
        gain: FloatArray = (model * self.rings.values).sum(axis=(-2, -1)) / np.maximum(size, 1e-300)
        return gain

    def _defocus(self, parameters: FloatArray) -> FloatArray:
        turned = 2 * self.rings.angles
        defocus: FloatArray = parameters[0] + parameters[1] * np.cos(turned) + parameters[2] * np.sin(turned)
        return defocus

    def _model(self, parameters: FloatArray, *, weighted: bool = True) -> FloatArray:
        waves = self._waves(self._defocus(parameters)) * self._envelope(parameters[3])
        return self.rings.rest(waves) if weighted else waves

    def _envelope(self, falloff: float) -> FloatArray:
        """Of the power, 1 at the first ring."""
        envelope: FloatArray = np.exp(-falloff * (self.rings.q**2 - self.rings.q[0] ** 2))
        return envelope

    def _waves(self, defocus: FloatArray) -> FloatArray:
        """The part of the squared transfer function that oscillates, as tiles show it: `(..., sector, ring)`."""
        phase = self._phase + defocus[..., None] * self._per_um
        lag = np.abs(self._lag + defocus[..., None] * self._lag_per_um)
        seen = np.sinc(lag / self.rings.tile)
        for part in (np.cos(self.rings.angles), np.sin(self.rings.angles)):
            seen = seen * np.interp(lag * np.abs(part)[:, None], np.arange(self.rings.tile), self._overlap, right=0.0)
        waves: FloatArray = -np.cos(2 * phase) * seen
        return waves


def _check(fit: _Fit, trials: FloatArray, found: FloatArray, others: list[FloatArray]) -> None:
    significance = fit.significance(found)
    if significance < SIGNIFICANCE:
        unseen = f", below which the first zero lies beyond {1 / fit.rings.q[-1]:.3g} Å," if trials[0] > fit.low else ""
        raise ValueError(
            f"expected rings of a defocus from {trials[0]:.3g} µm{unseen} to {trials[-1]:.3g} µm, got a power spectrum "
            f"without: {found[0]:.3g} µm fits best, but stands out by {significance:.2g} standard deviations, not by "
            f"{SIGNIFICANCE:g}; give the defocus, or take more images with the same defocus, or less binned ones"
        )
    for other in others:
        if fit.significance(other) * MARGIN > significance:
            raise ValueError(
                f"expected rings of one defocus, got some that {found[0]:.3g} and {other[0]:.3g} µm fit equally well; "
                "set `ctf` to a narrower range"
            )
    if min(found[0] - trials[0], trials[-1] - found[0]) < AT_THE_END:
        warnings.warn(
            f"the defocus found, {found[0]:.3g} µm, lies at an end of what was searched, {trials[0]:.3g} to "
            f"{trials[-1]:.3g} µm; set `ctf` to another range, or take less binned images",
            stacklevel=3,
        )


@own_device()
def _phase(ctf: ContrastTransfer, q: FloatArray, defocus: float) -> FloatArray:
    from torch_ctf import calculate_total_phase_shift

    voltage, aberration, shift, contrast = (
        as_float64(value) for value in (ctf.voltage, ctf.spherical_aberration, ctf.phase_shift, ctf.amplitude_contrast)
    )
    phase: FloatArray = calculate_total_phase_shift(
        defocus_um=torch.full((len(q),), defocus, dtype=torch.float64),
        voltage_kv=voltage,
        spherical_aberration_mm=aberration,
        phase_shift_degrees=shift,
        amplitude_contrast_fraction=contrast,
        fftfreq_grid_angstrom_squared=torch.from_numpy(q**2),
    ).numpy()
    return phase


def _correlation(a: FloatArray, b: FloatArray, weight: FloatArray) -> FloatArray:
    """Of two curves `(ring,)` without mean, with weights `(..., ring)`."""
    size = np.sqrt((weight * a**2).sum(axis=-1) * (weight * b**2).sum(axis=-1))
    correlation: FloatArray = (weight * a * b).sum(axis=-1) / np.maximum(size, 1e-300)
    return correlation
