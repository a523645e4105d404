"""The noise of each tilt of a measured series, and smooth curves of it over the tilt angle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_ndim, check_positive, check_same_shape
from faket_aug._masks import as_mask
from faket_aug.formats._text import MAX_TILT
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.spectra import SeriesSpectra
from faket_aug.microscope.unpaired import SeriesGain
from faket_aug.statistics import clip_images, mean_std, refuse_constant, standardize

Floats = tuple[float, ...]
_ROUNDING = 1e-6
CURVES = ("correlation", "deviation", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class SeriesNoise:
    """The signal and the noise of each tilt of one series.

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees.
    correlation
        `(tilt,)`, correlation r of the clean and the measured tilt, in [0, 1].
    deviation
        `(tilt,)`, standard deviation of the noise in a tilt with a standard deviation of 1, `sqrt(1 - r²)`.
    mean, std
        `(tilt,)`, mean and (population) standard deviation of the measured tilt, in its unit.
    """

    tilt_angles: Floats
    correlation: Floats
    deviation: Floats
    mean: Floats
    std: Floats

    def __post_init__(self) -> None:
        for name in ("tilt_angles", *CURVES):
            values = getattr(self, name)
            if len(values) != len(self.tilt_angles) or not np.isfinite(values).all():
                raise ValueError(
                    f"expected {len(self.tilt_angles)} finite numbers for `{name}`, one for each tilt, got {values}"
                )
        for name, most in (("correlation", 1.0), ("deviation", 1.0), ("std", np.inf)):
            values = np.asarray(getattr(self, name))
            # Rounding may lead a little beyond.
            if values.min() < -_ROUNDING or values.max() > most + _ROUNDING:
                raise ValueError(
                    f"expected `{name}` from 0 to {most:g}, got {values.min():g} to {values.max():g}; fit the noise "
                    "again"
                )


@dataclass(frozen=True, kw_only=True)
class NoiseCurves:
    """The noise at some tilt angles, as in `SeriesNoise`: each curve is `(tilt,)`, float64."""

    correlation: FloatArray
    deviation: FloatArray
    mean: FloatArray
    std: FloatArray


def mean_curves(series: Sequence[SeriesNoise], tilt_angles: Angles, order: int) -> NoiseCurves:
    """Fit polynomials of the tilt angle to each series, and average the series at tilt angles `(tilt,)` in degrees.

    Beyond the fitted angles, a polynomial may take any value. So `correlation` and `deviation` are limited to [0, 1],
    and `std` to at least a hundredth of its smallest measured value.
    """
    angles = as_tilt_angles(tilt_angles)
    values = {name: np.mean([_polynomial(s, name, angles, order) for s in series], axis=0) for name in CURVES}
    values["correlation"] = values["correlation"].clip(0.0, 1.0)
    values["deviation"] = values["deviation"].clip(0.0, 1.0)
    values["std"] = values["std"].clip(min=0.01 * min(min(s.std) for s in series))
    return NoiseCurves(**values)


def _polynomial(series: SeriesNoise, name: str, angles: FloatArray, order: int) -> FloatArray:
    polynomial = np.polynomial.Polynomial.fit(series.tilt_angles, getattr(series, name), deg=order)
    result: FloatArray = polynomial(angles)
    return result


def check_order(order: int, tilt_angles: Sequence[Floats | FloatArray]) -> None:
    """Raise a `ValueError` unless each series has enough tilts for polynomials of this order."""
    if not isinstance(order, int) or order < 0:
        raise ValueError(f"expected `order` to be a whole number of 0 or more, got {order!r}")
    fewest = min((len(set(angles)) for angles in tilt_angles), default=order + 1)
    if fewest <= order:
        raise ValueError(
            f"expected more than {order} tilt angles for polynomials of order {order}, got {fewest}; set `order` lower"
        )


def fit_series(
    clean: Tensor,
    target: Tensor,
    tilt_angles: Angles,
    quantiles: tuple[float, float],
    name: str,
    measured: Tensor | None = None,
) -> SeriesNoise:
    """Fit the noise to clean and measured tilts of one series: `r = mean(c t)`, `σ = sqrt(1 − r²)`.

    Only the pixels of the target that were `measured` (`(tilt, y, x)`, bool) count.
    """
    check_ndim("clean", clean, "tilt y x")
    check_same_shape("target", target.shape, "clean", clean.shape)
    angles = as_tilt_angles(tilt_angles, count=clean.shape[0])
    mask = as_mask(measured, target, f"{name}: measured")
    mean, std = _target_statistics(target, angles, quantiles, f"{name}: target", mask)
    refuse_constant(clean, angles, f"{name}: clean", mask)
    clipped = clip_images(target, quantiles, mask).to(torch.float64)
    product = standardize(clean.to(torch.float64), mask) * standardize(clipped, mask)
    # Differs from FakET: in closed form, not by bisection.
    found = product.mean(dim=(-2, -1)) if mask is None else mean_std(product, mask)[0]
    if bool((found <= 0).all()):
        raise ValueError(
            f"{name}: expected clean tilts that correlate with the measured ones, got none that does; negate the "
            "projections (dark particles), or check the sign of `tilt_angles`"
        )
    r = found.clamp(0.0, 1.0).cpu().numpy()
    return SeriesNoise(
        tilt_angles=_floats(angles),
        correlation=_floats(r),
        deviation=_floats(np.sqrt(1 - r**2)),
        mean=_floats(mean),
        std=_floats(std),
    )


def assumed_series(
    target: Tensor,
    tilt_angles: Angles,
    *,
    snr: float,
    quantiles: tuple[float, float],
    measured: Tensor | None = None,
) -> SeriesNoise:
    """Take means and standard deviations from measured tilts, and assume a signal-to-noise ratio, `snr · cos θ`."""
    check_ndim("target", target, "tilt y x")
    check_positive("snr", snr)
    angles = as_tilt_angles(tilt_angles, count=target.shape[0])
    mean, std = _target_statistics(target, angles, quantiles, "target", as_mask(measured, target))
    return _assumed(angles, mean, std, snr)


def reassumed_series(series: SeriesNoise, snr: float) -> SeriesNoise:
    """Keep means and standard deviations of a series, and assume a signal-to-noise ratio, `snr · cos θ`."""
    check_positive("snr", snr)
    return _assumed(np.asarray(series.tilt_angles), np.asarray(series.mean), np.asarray(series.std), snr)


def _assumed(angles: FloatArray, mean: FloatArray, std: FloatArray, snr: float) -> SeriesNoise:
    ratio = snr * np.cos(np.deg2rad(angles)).clip(0.01)
    return SeriesNoise(
        tilt_angles=_floats(angles),
        correlation=_floats(np.sqrt(ratio / (1 + ratio))),
        deviation=_floats(np.sqrt(1 / (1 + ratio))),
        mean=_floats(mean),
        std=_floats(std),
    )


def strengthened_series(series: SeriesNoise, factor: float) -> SeriesNoise:
    """Multiply the ratio of signal power and noise power of each tilt; means and standard deviations stay."""
    if factor == 1:
        return series
    signal = factor * np.asarray(series.correlation) ** 2
    total = (signal + np.asarray(series.deviation) ** 2).clip(min=np.finfo(np.float64).tiny)
    share = signal / total
    return replace(series, correlation=_floats(np.sqrt(share)), deviation=_floats(np.sqrt(1 - share)))


def series_of_gain(spectra: SeriesSpectra, gain: SeriesGain) -> SeriesNoise:
    """Convert the signal power and the noise power of a series into its correlation and standard deviations."""
    share = (gain.signal / (gain.signal + gain.noise)).clip(0.0, 1.0)
    return SeriesNoise(
        tilt_angles=_floats(spectra.tilt_angles),
        correlation=_floats(np.sqrt(share)),
        deviation=_floats(np.sqrt(1 - share)),
        mean=_floats(spectra.mean),
        std=_floats(np.sqrt(gain.signal + gain.noise)),
    )


def series_from_json(entries: Any) -> list[SeriesNoise]:
    """Read fitted series from JSON; raise a `ValueError` for anything else."""
    wanted = {"tilt_angles", *CURVES}
    if not isinstance(entries, list):
        raise ValueError(f"expected a list of series, got {entries!r}")
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != wanted:
            found = sorted(entry) if isinstance(entry, dict) else entry
            raise ValueError(f"expected each series to hold {sorted(wanted)}, got {found!r}")
        for name, values in entry.items():
            if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
                raise ValueError(f"expected a list of numbers for `{name}`, got {values!r}")
        wrong = [angle for angle in entry["tilt_angles"] if not abs(angle) <= MAX_TILT]
        if wrong:
            raise ValueError(f"expected tilt angles within ±{MAX_TILT:g}°, got {wrong[0]:g}; fit the noise again")
    return [SeriesNoise(**{name: _floats(values) for name, values in entry.items()}) for entry in entries]


def _target_statistics(
    target: Tensor, angles: FloatArray, quantiles: tuple[float, float], name: str, measured: Tensor | None
) -> tuple[FloatArray, FloatArray]:
    clipped = clip_images(target, quantiles, measured)
    refuse_constant(clipped, angles, name, measured)
    mean, std = mean_std(clipped, measured)
    return mean.cpu().numpy(), std.cpu().numpy()


def _floats(values: Any) -> Floats:
    return tuple(float(value) for value in values)
