"""The fit of a microscope's response to the power that neighbouring tilts share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import OptimizeResult, least_squares

from faket_aug._arrays import FloatArray
from faket_aug.microscope.crowd import CrowdField
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.response import ANGLE_UNIT, Envelope
from faket_aug.microscope.spectra import LINE, RINGS, SeriesSpectra

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
COMMON = ("tilt_2", "tilt_4", "square", "square_tilt", "linear", "linear_tilt", "square_dose", "amplitude_contrast")
START = (0.0, 0.0, 4.0, 1.0, 1.0, 0.5, 1.0)
#: Of an envelope, where the search for the defocus begins: square and linear.
_SHAPE = (START[COMMON.index("square")], START[COMMON.index("linear")])
_LEAST = (-3.0, -3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
_MOST = (3.0, 3.0, 60.0, 60.0, 15.0, 15.0, 60.0, 0.5)
_SCALES = (0.3, 0.3, 5.0, 5.0, 1.0, 1.0, 5.0, 0.02)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The power that neighbouring tilts of one series share, and the same of clean projections at the same angles."""

    u: FloatArray  # (pair,)
    shared: FloatArray  # (pair, ring)
    clean: FloatArray  # (pair, ring)
    error: FloatArray  # (pair, ring)
    clean_power: FloatArray  # (tilt, ring)
    clean_mean: FloatArray  # (tilt,)
    near: npt.NDArray[np.bool_]  # (tilt - 1,), the pairs that are used

    @classmethod
    def of(cls, target: SeriesSpectra, cleans: Sequence[SeriesSpectra], name: str) -> Pairs:
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
            clean_mean=np.mean([c.mean for c in cleans], axis=0),
            near=near,
        )


class PowerFit:
    """The fit. Its vector has the parameters that all series share, then a log scale and a defocus for each series."""

    def __init__(self, data: list[Pairs], ctfs: Sequence[ContrastTransfer], pixel_size: float) -> None:
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
        scales: FloatArray = parameters[len(COMMON) : len(COMMON) + 2 * len(self._data) : 2]
        return scales

    def defocus(self, parameters: FloatArray) -> FloatArray:
        return np.where(self.known, self._given, parameters[len(COMMON) + 1 : len(COMMON) + 2 * len(self._data) : 2])

    def envelope(self, parameters: FloatArray, series: int) -> Envelope:
        common = dict(zip(COMMON, parameters.tolist(), strict=False))
        del common["amplitude_contrast"]
        return Envelope(log_scale=float(self.log_scales(parameters)[series]), **common)

    def transfer(self, parameters: FloatArray, series: int) -> ContrastTransfer:
        contrast = float(parameters[COMMON.index("amplitude_contrast")])
        defocus = float(self.defocus(parameters)[series])
        return replace(self.ctfs[series], defocus=defocus, amplitude_contrast=contrast, spread=0.0)

    def solve(self) -> FloatArray:
        fits = []
        for offset in [0.0] if self.known.all() else self._best_starts():
            scale, places = self._trial(offset, _SHAPE)[1], self._places(offset)
            each = [number for place in places for number in (scale, place)]
            fits.append(self._fit(np.array([*START, self._contrast, *each])))
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
        contrast = parameters[COMMON.index("amplitude_contrast")] - self._contrast
        parts = [np.array([contrast / _CONTRAST_ERROR])]
        for index, pairs in enumerate(self._data):
            keep = self._kept(index, left_out)
            expected = pairs.clean[keep][:, self._rings] * self._gain(parameters, pairs.u[keep], index) ** 2
            measured = pairs.shared[keep][:, self._rings]
            parts.append(((expected - measured) / pairs.error[keep][:, self._rings]).ravel())
        return np.concatenate(parts)

    def _kept(self, series: int, left_out: int | None) -> npt.NDArray[np.bool_]:
        """Which pairs count."""
        kept: npt.NDArray[np.bool_] = np.arange(len(self._data[series].u)) % _PARTS != left_out
        return kept

    def _fit(self, start: FloatArray, left_out: int | None = None) -> OptimizeResult:
        low, high, scale = (np.array(one) for one in self._limits())
        free, full = self._free(), np.clip(start, low, high)

        def residuals(values: FloatArray) -> FloatArray:
            full[free] = values
            return self._residuals(full, left_out)

        # Not the logarithm: the shared power may be negative, above all at the zeros, which determine the defocus.
        found = least_squares(
            residuals,
            full[free],
            bounds=(low[free], high[free]),
            x_scale=scale[free],
            loss="soft_l1",
            ftol=_TOLERANCE,
            xtol=_TOLERANCE,
        )
        full[free] = found.x
        found.x = full.copy()
        return found

    def _free(self) -> npt.NDArray[np.bool_]:
        """The parameters that are fitted."""
        return np.ones(len(COMMON) + 2 * len(self._data), dtype=bool)

    def _limits(self) -> tuple[list[float], list[float], list[float]]:
        """The least and the largest values of all parameters, and the scales of their changes."""
        # A known defocus does not use its parameter; narrow bounds would only make the steps of the fit small.
        margin = np.where(self.known, 1.0, self._spread)
        low, high = (
            [number for place in self._given + side * margin for number in (side * np.inf, place)] for side in (-1, 1)
        )
        return [*_LEAST, *low], [*_MOST, *high], [*_SCALES, *[1.0, 0.3] * len(self._data)]

    # What the absolute fit does otherwise ---------------------------------------------------------------------------

    def matter_power(self, parameters: FloatArray, series: int) -> FloatArray:
        """The power of clean tilts, `(tilt, ring)`."""
        return self._data[series].clean_power

    def crowd(self, parameters: FloatArray) -> CrowdField | None:
        """What the specimens do not explain."""
        return None

    def explained(self, parameters: FloatArray) -> float | None:
        """How much of the shared power the specimens explain."""
        return None

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
        shapes = ((0.0, 0.0), _SHAPE, (15.0, 3.0))
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


def _smoothed(values: FloatArray) -> FloatArray:
    """Values `(tilt, ring)`, averaged over some tilts and the next rings."""
    result: FloatArray = ndimage.gaussian_filter(values, SMOOTHING, mode="nearest")
    return result
