"""Noise models: what a microscope makes of clean tilts.

`WhiteNoise` is the published one: how much of a measured tilt is signal, as smooth curves over its angle.
`ResponseNoise` has a transfer function and a noise spectrum for each tilt. `GivenNoise` is for tilts that have their
noise already.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import InitVar, asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_same_shape
from faket_aug._deprecations import by_keyword
from faket_aug._runtime.parts import by_parts
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.noise_curves import (
    NoiseCurves,
    SeriesNoise,
    assumed_series,
    check_order,
    fit_series,
    mean_curves,
    series_from_json,
    series_of_gain,
)
from faket_aug.microscope.response import MicroscopeResponse
from faket_aug.microscope.spectra import matching_spectra, sorted_spectra
from faket_aug.microscope.unpaired import fit_response
from faket_aug.statistics import match_mean_std, standardize

#: The content image keeps this share of the noise's deviation (FakET's quarter).
CONTENT_NOISE = 0.25
#: For a simulator's `noise`: that of the specimens' own tilts.
GIVEN = "given"
_FORMAT = 1


class NoiseModel(ABC):
    """Make noisy tilts from clean ones.

    Fit one with `fit`, `fit_unpaired` or `assume`, or read one with `from_json`. `NoiseModel(series=..., order=...)`
    makes a `WhiteNoise`; with a `response` it makes a `ResponseNoise`. A model of your own derives from this class and
    defines `sample` and `to_json`.

    References
    ----------
    Harar et al., Structure 33 (2025), STAR Methods, "Noise".
    """

    #: Whether `sample` uses the random numbers that it is given.
    draws: ClassVar[bool] = True
    #: The transfer function and noise spectrum, where there are any: clean tilts pass them in `sample`.
    response: MicroscopeResponse | None = None

    def __new__(cls, *_: Any, **settings: Any) -> Self:
        if cls is NoiseModel:
            kind: Any = WhiteNoise if settings.get("response") is None else ResponseNoise
            return cast(Self, object.__new__(kind))
        return object.__new__(cls)

    if TYPE_CHECKING:

        def __init__(
            self, *, series: Sequence[SeriesNoise], order: int = 2, response: MicroscopeResponse | None = None
        ) -> None: ...

    @abstractmethod
    def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0) -> Tensor:
        """Make noisy tilts from clean ones.

        Parameters
        ----------
        clean
            `(tilt, y, x)`, negated projections (dark particles), in any unit.
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

    @abstractmethod
    def to_json(self) -> str:
        """Write the model as JSON text; two models with the same text make the same tilts."""

    def baseline(self) -> NoiseModel:
        """Return the BASELINE variant, which is the same for every tilt.

        Raises
        ------
        ValueError
            If the model has none.
        """
        raise ValueError(f"expected noise with a BASELINE variant, got {type(self).__name__}; set another `modality`")

    def at_defocus(self, defocus: float) -> NoiseModel:
        """Return the model with another defocus, µm, of its response; itself where it has none."""
        return self

    @classmethod
    @by_keyword("clean", "target", "tilt_angles")
    def fit(
        cls,
        *,
        clean: Tensor | Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        tilt_angles: Angles | Sequence[Angles],
        order: int = 2,
        quantiles: tuple[float, float] = (0.0, 1.0),
    ) -> WhiteNoise:
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
            fit_series(c, t, a, quantiles, f"series {i}")  # type: ignore[arg-type]
            for i, (c, t, a) in enumerate(zip(cleans, targets, angles, strict=True))
        ]
        return WhiteNoise(series=tuple(fits), order=order)

    @classmethod
    def assume(
        cls,
        target: Tensor,
        tilt_angles: Angles,
        *,
        snr: float = 0.1,
        order: int = 2,
        quantiles: tuple[float, float] = (0.0, 1.0),
    ) -> WhiteNoise:
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
        series = assumed_series(target, tilt_angles, snr=snr, quantiles=quantiles)
        return WhiteNoise(series=(series,), order=order)

    @classmethod
    @by_keyword("target", "clean", "tilt_angles", "clean_angles")
    def fit_unpaired(
        cls,
        *,
        target: Tensor | Sequence[Tensor],
        clean: Tensor | Sequence[Tensor],
        tilt_angles: Angles | Sequence[Angles],
        clean_angles: Angles | Sequence[Angles] | None = None,
        pixel_size: float,
        ctf: ContrastTransfer | Sequence[ContrastTransfer] | None = None,
        order: int = 2,
    ) -> ResponseNoise:
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
        check_order(order, [one.tilt_angles for one in measured if len(one.tilt_angles) > 1])
        known = matching_spectra(cleans, others, measured)
        response, gains = fit_response(measured, known, pixel_size=pixel_size, ctf=ctf, order=order)
        series = tuple(series_of_gain(s, gain) for s, gain in zip(measured, gains, strict=True))
        return ResponseNoise(series=series, order=order, response=response)

    @classmethod
    def from_json(cls, text: str) -> NoiseModel:
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
        series = tuple(series_from_json(data["series"]))
        if "response" not in data:
            return WhiteNoise(series=series, order=data["order"])
        return ResponseNoise(
            series=series, order=data["order"], response=MicroscopeResponse.from_dict(data["response"])
        )


@dataclass(frozen=True, kw_only=True)
class FittedNoise(NoiseModel):
    """What `WhiteNoise` and `ResponseNoise` share: curves over the tilt angle, fitted to measured series.

    Each curve is a polynomial of the tilt angle for every series; the series are then averaged.

    Parameters
    ----------
    series
        One entry for each tilt-series of the fit.
    order
        Order of the polynomials; 2 as published, 0 is BASELINE.

    Notes
    -----
    Differs from FakET: the polynomials' abscissa is the tilt's angle, not its index; the same for even steps.
    """

    series: tuple[SeriesNoise, ...]
    order: int = 2

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError("expected at least one fitted series, got none; make the model with `NoiseModel.fit`")
        check_order(self.order, [series.tilt_angles for series in self.series])

    def curves(self, tilt_angles: Angles) -> NoiseCurves:
        """Evaluate the noise at tilt angles `(tilt,)` in degrees.

        Correlations and deviations are kept within [0, 1], and `std` above a hundredth of its smallest measured value,
        where the polynomials are asked beyond the angles they were fitted to.
        """
        return mean_curves(self.series, tilt_angles, self.order)

    def to_json(self) -> str:
        """Write the model as JSON text."""
        data = {"format": _FORMAT, "order": self.order, "series": [asdict(s) for s in self.series]}
        return json.dumps(data | ({} if self.response is None else {"response": self.response.to_dict()}))


@dataclass(frozen=True, kw_only=True)
class WhiteNoise(FittedNoise):
    """Tilt-dependent white Gaussian noise, as published: `r · c + σ · ε` of tilts of standard deviation 1.

    Then each tilt is brought to the mean and the standard deviation of the measured ones.

    Parameters
    ----------
    series, order
        As of `FittedNoise`.
    """

    response: InitVar[None] = None

    def __post_init__(self, response: None) -> None:
        super().__post_init__()
        if response is not None:
            raise ValueError(
                "expected no `response` of white noise, got one; make the model with `NoiseModel(series=..., "
                "response=...)`"
            )

    def baseline(self) -> WhiteNoise:
        """Return the BASELINE variant: the same for every tilt (polynomials of order 0)."""
        return replace(self, order=0)

    def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0) -> Tensor:
        """Make noisy tilts, see `NoiseModel.sample`. A constant tilt holds no signal and gives pure noise."""
        check_same_shape("noise", noise.shape, "clean", clean.shape)
        curves = self.curves(as_tilt_angles(tilt_angles, count=clean.shape[0]))
        r = _column(curves.correlation, clean)
        sigma = _column(curves.deviation, clean)
        noisy = by_parts(_mixed, standardize(clean), noise, r, noise_scale * sigma, dtype=clean.dtype)
        return match_mean_std(
            noisy, torch.from_numpy(curves.mean).to(clean.device), torch.from_numpy(curves.std).to(clean.device)
        )


@dataclass(frozen=True, kw_only=True)
class ResponseNoise(FittedNoise):
    """A transfer function and a noise spectrum for each tilt: `gain ∗ c + coloured noise`, then the measured means.

    Not part of the published method.

    Parameters
    ----------
    series, order
        As of `FittedNoise`; of the curves, only the mean is used.
    response
        Transfer function and noise spectrum.
    """

    response: MicroscopeResponse = field()  # without a default, which the base has

    def baseline(self) -> ResponseNoise:
        """Return the BASELINE variant: the same for every tilt."""
        return replace(self, order=0, response=self.response.averaged())

    def at_defocus(self, defocus: float) -> ResponseNoise:
        """Return the model with another defocus, µm."""
        return replace(self, response=self.response.at_defocus(defocus))

    def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0) -> Tensor:
        """Make noisy tilts, see `NoiseModel.sample`; clean ones are in the unit of those of the fit."""
        check_same_shape("noise", noise.shape, "clean", clean.shape)
        curves = self.curves(as_tilt_angles(tilt_angles, count=clean.shape[0]))
        measured = self.response.apply(clean, noise, tilt_angles, noise_scale=noise_scale)
        return measured + _column(curves.mean, clean)


@dataclass(frozen=True, kw_only=True)
class GivenNoise(NoiseModel):
    """For tilts that have their noise already (`TiltedSpecimen`): nothing is added."""

    draws: ClassVar[bool] = False

    def __init__(self) -> None:
        pass

    def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0) -> Tensor:
        """Return the tilts as they are."""
        return clean

    def to_json(self) -> str:
        """Write the model as JSON text."""
        return json.dumps(GIVEN)


def _mixed(clean: Tensor, noise: Tensor, clean_share: Tensor, noise_share: Tensor) -> Tensor:
    return clean * clean_share + noise * noise_share


def _column(values: FloatArray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)[:, None, None]


def _as_list(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)
