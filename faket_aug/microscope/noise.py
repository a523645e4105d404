"""What a microscope makes of clean tilts: how much of a measured tilt is signal, as smooth curves over its angle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import check_ndim, check_positive, check_same_shape
from faket_aug._runtime.parts import by_parts
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.response import MicroscopeResponse
from faket_aug.microscope.spectra import SeriesSpectra, matching_spectra, sorted_spectra
from faket_aug.microscope.unpaired import SeriesGain, fit_response
from faket_aug.statistics import clip_images, match_mean_std, mean_std, refuse_constant, standardize

#: The content image keeps this share of the noise's deviation (FakET's quarter).
CONTENT_NOISE = 0.25
_FORMAT = 1
Floats = tuple[float, ...]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SeriesNoise:
    """What one tilt-series says about the noise, tilt by tilt.

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees.
    correlation
        `(tilt,)`, correlation r of clean and measured tilt, in [0, 1].
    deviation
        `(tilt,)`, deviation of the noise in a tilt of deviation 1, `sqrt(1 - r²)`.
    mean, std
        `(tilt,)`, mean and population deviation of the measured tilt, in its unit.
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


CURVES = ("correlation", "deviation", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class NoiseCurves:
    """Noise at given tilts: correlation, deviation, mean and std, each `(tilt,)` in float64."""

    correlation: FloatArray
    deviation: FloatArray
    mean: FloatArray
    std: FloatArray


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """Tilt-dependent Gaussian noise, fitted to a microscope's tilt-series.

    Each curve is a polynomial of the tilt angle for every series; the series are then averaged. With a `response`
    (`fit_unpaired`), the signal passes the microscope's transfer function, and the noise has its spectrum; without, as
    published, the signal stays as it is and the noise is white.

    Parameters
    ----------
    series
        One entry for each tilt-series of the fit.
    order
        Order of the polynomials; 2 as published, 0 is BASELINE.
    response
        Transfer function and noise spectrum; of the curves, only the mean is used beside it.

    Notes
    -----
    Differs from FakET: the polynomials' abscissa is the tilt's angle, not its index; the same for even steps.

    References
    ----------
    Harar et al., Structure 33 (2025), STAR Methods, "Noise".
    """

    series: tuple[SeriesNoise, ...]
    order: int = 2
    response: MicroscopeResponse | None = None

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError("expected at least one fitted series, got none; make the model with `NoiseModel.fit`")
        _check_order(self.order, [series.tilt_angles for series in self.series])

    @classmethod
    def fit(
        cls,
        clean: Tensor | Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        tilt_angles: Angles | Sequence[Angles],
        *,
        order: int = 2,
        quantiles: tuple[float, float] = (0.0, 1.0),
    ) -> Self:
        """Fit the noise to pairs of clean and measured tilts of the same specimens, in closed form.

        With both tilts at mean 0 and deviation 1, `r = mean(clean · target)` clamped to [0, 1] and
        `σ = sqrt(1 - r²)`. (FakET finds the same r by bisection.)

        Parameters
        ----------
        clean
            `(tilt, y, x)`, *negated* projections (dark particles), or a list of such stacks, one a series.
        target
            Measured tilts of the same shapes.
        tilt_angles
            `(tilt,)`, degrees, or a list of such.
        order
            Order of the polynomials over the tilt angle.
        quantiles
            Each measured tilt is first clipped to its values at these quantiles; `(0, 1)` leaves it as it is. Set
            `(0.001, 0.999)` against hot pixels and beads.

        Raises
        ------
        ValueError
            If shapes differ, a tilt is constant (the message says which), or no tilt correlates with its clean one.
        """
        cleans, targets = _as_list(clean), _as_list(target)
        angles = [tilt_angles] if isinstance(clean, Tensor) else list(tilt_angles)
        if not len(cleans) == len(targets) == len(angles):
            raise ValueError(
                "expected as many clean series as measured ones and as many sets of angles, got "
                f"{len(cleans)}, {len(targets)} and {len(angles)}"
            )
        fits = [
            _fit_series(c, t, a, quantiles, f"series {i}")  # type: ignore[arg-type]
            for i, (c, t, a) in enumerate(zip(cleans, targets, angles, strict=True))
        ]
        return cls(series=tuple(fits), order=order)

    @classmethod
    def assume(
        cls,
        target: Tensor,
        tilt_angles: Angles,
        *,
        snr: float = 0.1,
        order: int = 2,
        quantiles: tuple[float, float] = (0.0, 1.0),
    ) -> Self:
        """Take means and deviations from measured tilts, and an assumed signal-to-noise ratio.

        For a microscope of whose specimens no truth is known; not part of the published method. The electrons' path
        through a slab, and with it the background, grows as `1 / cos θ`, so the ratio falls as `snr · cos θ`.

        Parameters
        ----------
        target
            `(tilt, y, x)`, measured tilts of any specimen.
        tilt_angles
            `(tilt,)`, degrees.
        snr
            Signal power over noise power at 0°.
        order, quantiles
            As for `fit`.

        Raises
        ------
        ValueError
            If `snr` is not positive, angles and tilts differ in number, or a tilt is constant.
        """
        check_ndim("target", target, "tilt y x")
        check_positive("snr", snr)
        angles = as_tilt_angles(tilt_angles, count=target.shape[0])
        ratio = snr * np.cos(np.deg2rad(angles)).clip(0.01)
        mean, std = _target_statistics(target, angles, quantiles, "target")
        series = SeriesNoise(
            tilt_angles=_floats(angles),
            correlation=_floats(np.sqrt(ratio / (1 + ratio))),
            deviation=_floats(np.sqrt(1 / (1 + ratio))),
            mean=_floats(mean),
            std=_floats(std),
        )
        return cls(series=(series,), order=order)

    @classmethod
    def fit_unpaired(
        cls,
        target: Tensor | Sequence[Tensor],
        clean: Tensor | Sequence[Tensor],
        tilt_angles: Angles | Sequence[Angles],
        clean_angles: Angles | Sequence[Angles] | None = None,
        *,
        pixel_size: float,
        ctf: ContrastTransfer | Sequence[ContrastTransfer] | None = None,
        order: int = 2,
    ) -> Self:
        """Fit transfer function, noise spectrum and means to tilts of which no truth is known, as `fit_response` does.

        Not part of the published method.

        Parameters
        ----------
        target
            `(tilt, y, x)`, measured tilts, aligned (the axis is y), or a list of such stacks, of any sizes and steps.
        clean
            `(tilt, y, x)`, *negated* projections of any specimens of the same kind and pixel size (which nothing here
            tells), at the targets' angles or more, or a list of such.
        tilt_angles
            `(tilt,)`, degrees, of the targets, or a list of such.
        clean_angles
            The same of the clean projections; by default those of the (first) target. For series with different angles
            see `geometry.joint_angles`.
        pixel_size
            Å.
        ctf, order
            The microscope, or one for each target, and the order of polynomials over the tilt angle, see
            `unpaired.fit_response`.

        Raises
        ------
        ValueError
            As `unpaired.fit_response` and `spectra.matching_spectra`; or if numbers of stacks or angles do not go
            together, or a tilt is constant.
        """
        targets, cleans = _as_list(target), _as_list(clean)
        angles: Any = [tilt_angles] if isinstance(target, Tensor) else tilt_angles
        others: Any = [clean_angles] if isinstance(clean, Tensor) else clean_angles
        others = [angles[0]] * len(cleans) if clean_angles is None and len(angles) else others
        if len(targets) != len(angles) or len(cleans) != len(others):
            counts = f"{len(angles)} for {len(targets)} measured and {len(others)} for {len(cleans)} clean ones"
            raise ValueError(f"expected as many sets of angles as series, got {counts}")
        measured = [
            sorted_spectra(t, a, f"series {i}: target") for i, (t, a) in enumerate(zip(targets, angles, strict=True))
        ]
        _check_order(order, [one.tilt_angles for one in measured if len(one.tilt_angles) > 1])
        known = matching_spectra(cleans, others, measured)
        response, gains = fit_response(measured, known, pixel_size=pixel_size, ctf=ctf, order=order)
        series = tuple(_series_noise(s, gain) for s, gain in zip(measured, gains, strict=True))
        return cls(series=series, order=order, response=response)

    def baseline(self) -> NoiseModel:
        """Return the BASELINE variant: the same for every tilt (polynomials of order 0)."""
        return replace(self, order=0, response=None if self.response is None else self.response.averaged())

    def curves(self, tilt_angles: Angles) -> NoiseCurves:
        """Evaluate the noise at tilt angles `(tilt,)` in degrees.

        Correlations and deviations are kept within [0, 1], and `std` above a hundredth of its smallest measured value,
        where the polynomials are asked beyond the angles they were fitted to.
        """
        angles = as_tilt_angles(tilt_angles)
        values = {name: np.mean([self._polynomial(s, name, angles) for s in self.series], axis=0) for name in CURVES}
        values["correlation"] = values["correlation"].clip(0.0, 1.0)
        values["deviation"] = values["deviation"].clip(0.0, 1.0)
        values["std"] = values["std"].clip(min=0.01 * min(min(s.std) for s in self.series))
        return NoiseCurves(**values)

    def _polynomial(self, series: SeriesNoise, name: str, angles: FloatArray) -> FloatArray:
        polynomial = np.polynomial.Polynomial.fit(series.tilt_angles, getattr(series, name), deg=self.order)
        result: FloatArray = polynomial(angles)
        return result

    def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0) -> Tensor:
        """Make noisy tilts from clean ones: `r · c + σ · noise_scale · ε`, then the curves' mean and deviation.

        With a `response`: `gain ∗ c + noise_scale · coloured noise`, then the curves' mean.

        Parameters
        ----------
        clean
            `(tilt, y, x)`, negated projections in any unit. A constant tilt holds no signal and gives pure noise.
        noise
            `(tilt, y, x)`, standard normal numbers ε.
        tilt_angles
            `(tilt,)`, degrees.
        noise_scale
            Factor on the noise; `CONTENT_NOISE` makes the content image from the *same* noise.

        Returns
        -------
        `(tilt, y, x)` in the unit of the measured tilts.
        """
        check_same_shape("noise", noise.shape, "clean", clean.shape)
        curves = self.curves(as_tilt_angles(tilt_angles, count=clean.shape[0]))
        if self.response is not None:
            measured = self.response.apply(clean, noise, tilt_angles, noise_scale=noise_scale)
            return measured + _column(curves.mean, clean)
        r = _column(curves.correlation, clean)
        sigma = _column(curves.deviation, clean)
        noisy = by_parts(_mixed, standardize(clean), noise, r, noise_scale * sigma, dtype=clean.dtype)
        return match_mean_std(
            noisy, torch.from_numpy(curves.mean).to(clean.device), torch.from_numpy(curves.std).to(clean.device)
        )

    def to_json(self) -> str:
        """Write the model as JSON text."""
        data = {"format": _FORMAT, "order": self.order, "series": [asdict(s) for s in self.series]}
        return json.dumps(data | ({} if self.response is None else {"response": self.response.to_dict()}))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a model from the text of `to_json`, or of a file that `faket-aug fit` wrote.

        Raises
        ------
        ValueError
            If the text is not such a model; the message says what is missing or unknown.
        """
        data = json.loads(text)
        wanted, more = {"format", "order", "series"}, {"response", "tilt_angles", "style", "extend", "about"}
        if not isinstance(data, dict) or data.get("format") != _FORMAT or set(data) - more != wanted:
            raise ValueError(f"expected a noise model of format {_FORMAT}, got {text[:80]!r}")
        response = MicroscopeResponse.from_dict(data["response"]) if "response" in data else None
        return cls(series=tuple(_series_from_json(data["series"])), order=data["order"], response=response)


def _mixed(clean: Tensor, noise: Tensor, clean_share: Tensor, noise_share: Tensor) -> Tensor:
    return clean * clean_share + noise * noise_share


def _check_order(order: int, tilt_angles: Sequence[Floats | FloatArray]) -> None:
    if not isinstance(order, int) or order < 0:
        raise ValueError(f"expected `order` to be a whole number of 0 or more, got {order!r}")
    fewest = min((len(set(angles)) for angles in tilt_angles), default=order + 1)
    if fewest <= order:
        raise ValueError(
            f"expected more than {order} tilt angles for polynomials of order {order}, got {fewest}; set `order` lower"
        )


def _series_noise(spectra: SeriesSpectra, gain: SeriesGain) -> SeriesNoise:
    share = (gain.signal / (gain.signal + gain.noise)).clip(0.0, 1.0)
    return SeriesNoise(
        tilt_angles=_floats(spectra.tilt_angles),
        correlation=_floats(np.sqrt(share)),
        deviation=_floats(np.sqrt(1 - share)),
        mean=_floats(spectra.mean),
        std=_floats(np.sqrt(gain.signal + gain.noise)),
    )


def _series_from_json(entries: Any) -> list[SeriesNoise]:
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
    return [SeriesNoise(**{name: _floats(values) for name, values in entry.items()}) for entry in entries]


def _fit_series(
    clean: Tensor, target: Tensor, tilt_angles: Angles, quantiles: tuple[float, float], name: str
) -> SeriesNoise:
    check_ndim("clean", clean, "tilt y x")
    check_same_shape("target", target.shape, "clean", clean.shape)
    angles = as_tilt_angles(tilt_angles, count=clean.shape[0])
    mean, std = _target_statistics(target, angles, quantiles, f"{name}: target")
    refuse_constant(clean, angles, f"{name}: clean")
    measured = clip_images(target, quantiles).to(torch.float64)
    product = standardize(clean.to(torch.float64)) * standardize(measured)
    # Differs from FakET: in closed form, not by bisection.
    found = product.mean(dim=(-2, -1))
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


def _target_statistics(
    target: Tensor, angles: FloatArray, quantiles: tuple[float, float], name: str
) -> tuple[FloatArray, FloatArray]:
    clipped = clip_images(target, quantiles)
    refuse_constant(clipped, angles, name)
    mean, std = mean_std(clipped)
    return mean.cpu().numpy(), std.cpu().numpy()


def _column(values: FloatArray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)[:, None, None]


def _floats(values: Any) -> Floats:
    return tuple(float(value) for value in values)


def _as_list(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)
