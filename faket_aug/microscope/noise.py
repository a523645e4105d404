"""Noise models: they make noisy tilts from clean ones.

`WhiteNoise` is the published model: white noise, whose strength is a smooth curve over the tilt angle. `ResponseNoise`
has a transfer function and a noise spectrum for each tilt. `GivenNoise` is for tilts that have their noise already.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import InitVar, asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_same_shape
from faket_aug._deprecations import by_keyword
from faket_aug._runtime.parts import by_parts
from faket_aug._runtime.transfers import sent
from faket_aug.formats._json import seal, unseal
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.background import SlowBackground
from faket_aug.microscope.crowd import CrowdField
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.ice_map import ThicknessMap, maps_of
from faket_aug.microscope.intensity import ContrastReport
from faket_aug.microscope.noise_curves import (
    NoiseCurves,
    SeriesNoise,
    assumed_series,
    check_order,
    fit_series,
    mean_curves,
    reassumed_series,
    series_from_json,
    strengthened_series,
)
from faket_aug.microscope.response import ORDER, MicroscopeResponse
from faket_aug.microscope.uneven_ice import DrawnIce, ice_from_dict
from faket_aug.microscope.unpaired_noise import Exposure, as_list, fit_series_response, masks_of
from faket_aug.statistics import FULL_RANGE, match_mean_std, mean_std, standardize

#: Factor on the noise of the content image: a quarter, as in FakET.
CONTENT_NOISE = 0.25
#: The `noise` of a simulator whose specimens are tilts that have their noise already.
GIVEN = "given"
_FORMAT = 1


class NoiseModel(ABC):
    """The base of all noise models, which make noisy tilts from clean ones.

    There are three ways to a model: `fit` takes clean and measured tilts of the same specimens, `fit_unpaired` takes
    measured tilts of unknown specimens, and `assume` takes a signal-to-noise ratio. `from_json` reads a model.
    `NoiseModel(series=..., order=...)` makes a `WhiteNoise`; with a `response` it makes a `ResponseNoise`.

    For a noise model of your own, derive from this class and define `sample` and `to_json`. The other methods have
    defaults: there is no BASELINE variant, no response, and nothing depends on the defocus. `FakETSimulator` takes the
    model as its `noise`.

    References
    ----------
    Harar et al., Structure 33 (2025), STAR Methods, "Noise".
    """

    #: Whether `sample` uses the random numbers `noise`. If not, the simulator draws none.
    draws: ClassVar[bool] = True
    #: The response of the microscope, which `sample` applies to clean tilts; None for white noise.
    response: MicroscopeResponse | None = None
    #: Matter that a simulator adds to specimens.
    crowd: CrowdField | None = None
    #: How the scale of a fitted gain was found.
    contrast: ContrastReport | None = None
    #: Slow backgrounds of measured series.
    backgrounds: tuple[SlowBackground, ...] = ()
    #: Maps of the ice of measured series.
    ice: tuple[ThicknessMap, ...] = ()
    #: Whether clean tilts keep the loss of `project`'s interpolation.
    interpolated: bool = True

    def __new__(cls, *_: Any, **settings: Any) -> Self:
        if cls is NoiseModel:
            kind: Any = WhiteNoise if settings.get("response") is None else ResponseNoise
            return cast(Self, object.__new__(kind))
        return object.__new__(cls)

    if TYPE_CHECKING:

        def __init__(
            self, *, series: Sequence[SeriesNoise], order: int = ORDER, response: MicroscopeResponse | None = None
        ) -> None: ...

    @abstractmethod
    def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0) -> Tensor:
        """Make noisy tilts from clean ones.

        Parameters
        ----------
        clean
            `(tilt, y, x)`, negated projections (dark particles), in any unit.
        noise
            `(tilt, y, x)`, random numbers ε with a standard normal distribution.
        tilt_angles
            `(tilt,)`, degrees.
        noise_scale
            Factor on the noise. The content image has the *same* noise, with the factor `CONTENT_NOISE`.

        Returns
        -------
        `(tilt, y, x)` in the unit of the measured tilts.
        """

    @property
    def is_physical(self) -> bool:
        """Whether the scale of the contrast was found without the power of specimens, see `fit_unpaired`."""
        return isinstance(self.contrast, ContrastReport) and "power" not in self.contrast.source

    def identity(self) -> str:
        """Return the text by which records know the model; by default that of `to_json`."""
        return self.to_json()

    @abstractmethod
    def to_json(self) -> str:
        """Write the model as JSON text. Two models with the same text must make the same tilts."""

    def signal(self, clean: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0) -> Tensor:
        """Return what is left of noisy tilts without their noise, in the same unit; by default `sample` without noise.

        Parameters
        ----------
        clean, tilt_angles
            As for `sample`.
        noise_scale
            Factor on the noise of the noisy tilts, where it changes their unit.
        """
        return self.sample(clean, clean.new_zeros(()).expand_as(clean), tilt_angles, noise_scale=0.0)

    def half_exposures(
        self, clean: Tensor, noise: Tensor, other: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Make two noisy tilts of each clean one, each of half the exposure, with independent noise.

        The noise of a half is √2 times as strong. `(noise + other) / √2` and `(noise - other) / √2` are independent.
        The mean of both halves has the noise of `sample(clean, noise, ...)`.

        Parameters
        ----------
        clean, noise, tilt_angles, noise_scale
            As for `sample`.
        other
            `(tilt, y, x)`, more random numbers, independent of `noise`.

        Returns
        -------
        Two stacks `(tilt, y, x)`, in the unit of `sample`.
        """
        root = 2**0.5
        first, second = (
            self.sample(clean, (noise + sign * other) / root, tilt_angles, noise_scale=root * noise_scale)
            for sign in (1, -1)
        )
        return first, second

    def baseline(self) -> NoiseModel:
        """Return the BASELINE variant, whose noise is the same for every tilt.

        Raises
        ------
        ValueError
            If the model does not have this variant.
        """
        raise ValueError(
            f'expected a `NoiseModel` for the modality "baseline", got {type(self).__name__}, which has no noise that '
            'is the same for every tilt; set `modality` to "noisy" or "faket"'
        )

    def at_defocus(self, defocus: float) -> NoiseModel:
        """Return the model with another defocus, µm; the model itself if it has no response."""
        return self

    @classmethod
    @by_keyword("clean", "target", "tilt_angles")
    def fit(
        cls,
        *,
        clean: Tensor | Sequence[Tensor],
        target: Tensor | Sequence[Tensor],
        tilt_angles: Angles | Sequence[Angles],
        order: int = ORDER,
        quantiles: tuple[float, float] = FULL_RANGE,
        measured: Tensor | Sequence[Tensor | None] | None = None,
    ) -> WhiteNoise:
        """Fit white noise to pairs of clean and measured tilts of the same specimens.

        Both tilts are scaled to a mean of 0 and a standard deviation of 1. Then `r = mean(clean · target)`, limited to
        [0, 1], and `σ = sqrt(1 - r²)`. (FakET finds the same r by bisection.)

        Parameters
        ----------
        clean
            `(tilt, y, x)`, *negated* projections (dark particles), or a list of stacks, one for each series.
        target
            `(tilt, y, x)`, the measured tilts, or a list of stacks of the same shapes.
        tilt_angles
            `(tilt,)`, degrees, or a list of angles, one for each series.
        order
            Order of the polynomials over the tilt angle.
        quantiles
            Each measured tilt is first clipped to its values at these quantiles; `(0, 1)` leaves it as it is. Set
            `(0.001, 0.999)` against hot pixels and gold beads.
        measured
            `(tilt, y, x)`, bool: which pixels of the target count, as `TiltSeries.measured`; or a list, one (or None)
            for each series. By default all count.

        Raises
        ------
        ValueError
            If shapes differ, a tilt is constant (the message names it), or no measured tilt correlates with its clean
            one.
        """
        cleans, targets = as_list(clean), as_list(target)
        angles = [tilt_angles] if isinstance(clean, Tensor) else list(tilt_angles)
        if not len(cleans) == len(targets) == len(angles):
            raise ValueError(
                "expected as many clean series as measured ones and as many sets of angles, got "
                f"{len(cleans)}, {len(targets)} and {len(angles)}"
            )
        fits = [
            fit_series(c, t, a, quantiles, f"series {i}", m)  # type: ignore[arg-type]
            for i, (c, t, a, m) in enumerate(zip(cleans, targets, angles, masks_of(measured, targets), strict=True))
        ]
        return WhiteNoise(series=tuple(fits), order=order)

    @classmethod
    def assume(
        cls,
        target: Tensor,
        tilt_angles: Angles,
        *,
        snr: float = 0.1,
        order: int = ORDER,
        quantiles: tuple[float, float] = FULL_RANGE,
        measured: Tensor | None = None,
    ) -> WhiteNoise:
        """Make white noise for measured tilts, with an assumed signal-to-noise ratio.

        The means and standard deviations are those of the measured tilts, whose specimens need not be known. This is
        not part of the published method. In a slab of ice, the path of the electrons grows as `1 / cos θ`, and so does
        the background. So the ratio falls as `snr · cos θ`.

        Parameters
        ----------
        target
            `(tilt, y, x)`, measured tilts of any specimen.
        tilt_angles
            `(tilt,)`, degrees.
        snr
            Signal power divided by noise power, at 0°.
        order, quantiles
            As for `fit`.
        measured
            `(tilt, y, x)`, bool: which pixels count, as `TiltSeries.measured`; by default all.

        Raises
        ------
        ValueError
            If `snr` is not positive, angles and tilts differ in number, or a tilt is constant.
        """
        series = assumed_series(target, tilt_angles, snr=snr, quantiles=quantiles, measured=measured)
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
        order: int = ORDER,
        power_order: int | None = None,
        scale: str | None = None,
        exposure: Exposure | Sequence[Exposure] = None,
        depth: float | None = None,
        thickness: float | None = None,
        solid: float = 0.0,
        interpolated: bool = True,
        extend: str = "wrap",
        beads: Tensor | Sequence[Tensor | None] = (),
        measured: Tensor | Sequence[Tensor | None] | None = None,
    ) -> ResponseNoise:
        """Fit transfer function, noise spectrum and means to measured tilts of unknown specimens.

        `unpaired.fit_response` says how. It is not part of the published method.

        Parameters
        ----------
        target
            `(tilt, y, x)`, measured and aligned tilts (the tilt axis is y), or a list of stacks, of any sizes and tilt
            steps.
        clean
            `(tilt, y, x)`, *negated* projections of other specimens of the same kind, or a list of stacks. They need
            the pixel size of the targets (which is not checked) and all angles of the targets; more angles are allowed.
        tilt_angles
            `(tilt,)`, degrees, angles of the targets, or a list of angles.
        clean_angles
            `(tilt,)`, degrees, angles of the clean projections, or a list of angles; by default those of the (first)
            target. For series with different angles see `geometry.joint_angles`.
        pixel_size
            Å.
        ctf
            The microscope, or one for each target, see `unpaired.fit_response`.
        order
            Order of the polynomials of the tilts' means over the tilt angle.
        power_order
            Order of the polynomials of the noise power; by default a quarter of the number of tilts, up to 8.
        scale
            Where the scale of the contrast comes from. `"intensity"`: gray values, whose zero is found from their
            noise. `"exposure"`: noise and exposure. `"power"`: the power of the clean projections; then particles are
            too dark if there are fewer of them than in the measured specimens. By default the first one that is known.
        exposure
            e⁻/Å² of each tilt `(tilt,)`, or of every tilt, or None if it is not known; or a list, one for each target.
        depth
            Voxels, how deep the specimens of the clean projections are. By default a quarter of their width. The
            variance of the crowd, other matter that the specimens do not explain, is in inverse proportion to it.
        thickness
            Voxels, how deep all matter of the measured specimens is, if it is deeper than `depth`. By default what the
            tilts show (`thickness.matter_thickness`), the mean of the series that tell.
        solid
            Potential of matter without gaps above ice, V, which lets particles displace the crowd; 0 if not known.
        interpolated
            Whether the clean tilts are as `project` makes them. If they were given back what interpolation takes
            (`tomography.interpolation`), simulated tilts get it back, too.
        extend
            What lies beside the specimens of the clean projections and of the simulated tilts, see `project`. With
            `"zero"` the crowd ends where they end, and tilts at high angles show less of it.
        beads
            `(tilt, y, x)` for each stack of `clean`: its beads alone, or None if it has none. They have much power and
            little mass, so the crowd's mass is found without them.
        measured
            Which pixels of the targets count, as for `fit`.

        Warns
        -----
        UserWarning
            If the scale comes from the power, without being asked for.

        Raises
        ------
        ValueError
            As for `unpaired.fit_response`, `intensity.absolute_scales` and `spectra.matching_spectra`; or if the
            numbers of stacks and angles differ, a tilt is constant, or `depth` is impossible.
        """
        found = fit_series_response(
            target,
            clean,
            tilt_angles,
            clean_angles,
            pixel_size=pixel_size,
            ctf=ctf,
            order=order,
            power_order=power_order,
            scale=scale,
            exposure=exposure,
            depth=depth,
            thickness=thickness,
            solid=solid,
            interpolated=interpolated,
            extend=extend,
            beads=beads,
            measured=measured,
        )
        return ResponseNoise(
            series=found.series,
            order=order,
            response=found.fit.response,
            crowd=found.fit.crowd,
            contrast=found.contrast,
            backgrounds=found.backgrounds,
            ice=found.ice,
            interpolated=interpolated,
        )

    @classmethod
    def from_json(cls, text: str) -> NoiseModel:
        """Read a model from the text of `to_json`, or of a file that `faket-aug fit` wrote.

        Raises
        ------
        ValueError
            If the text is not a noise model. The message says what is missing or unknown.
        """
        if text.strip() == json.dumps(GIVEN):
            return GivenNoise()
        data = unseal(text, source="noise model", what="a noise model")
        wanted = {"format", "order", "series"}
        more = {"response", "crowd", "contrast", "backgrounds", "background", "ice", "through", "interpolated"}
        more |= {"tilt_angles", "style", "extend", "about"}
        if data.get("format") != _FORMAT or set(data) - more != wanted:
            raise ValueError(f"expected a noise model of format {_FORMAT}, got {text[:80]!r}")
        series = tuple(series_from_json(data["series"]))
        if "response" not in data:
            return WhiteNoise(series=series, order=data["order"])
        crowd, contrast = data.get("crowd"), data.get("contrast")
        return ResponseNoise(
            series=series,
            order=data["order"],
            response=MicroscopeResponse.from_dict(data["response"]),
            crowd=None if crowd is None else CrowdField.from_dict(crowd),
            contrast=None if contrast is None else ContrastReport.from_dict(contrast),
            backgrounds=_backgrounds(data.get("backgrounds", [])),
            background=data.get("background"),
            ice=maps_of(data.get("ice", [])),
            through=None if data.get("through") is None else ice_from_dict(data["through"]),
            interpolated=bool(data.get("interpolated", True)),
        )


@dataclass(frozen=True, kw_only=True)
class FittedNoise(NoiseModel):
    """The base of `WhiteNoise` and `ResponseNoise`: curves over the tilt angle, fitted to measured series.

    For each series, every curve is a polynomial of the tilt angle. The polynomials of all series are averaged.

    Parameters
    ----------
    series
        One entry for each tilt-series of the fit.
    order
        Order of the polynomials; 2 as published, 0 for BASELINE.

    Notes
    -----
    Differs from FakET: the polynomials depend on the tilt angle, not on the index of the tilt. For even tilt steps this
    is the same.
    """

    series: tuple[SeriesNoise, ...]
    order: int = ORDER

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError("expected at least one fitted series, got none; make the model with `NoiseModel.fit`")
        check_order(self.order, [series.tilt_angles for series in self.series])

    def curves(self, tilt_angles: Angles) -> NoiseCurves:
        """Evaluate the noise at tilt angles `(tilt,)` in degrees.

        Beyond the fitted angles, `correlation` and `deviation` are limited to [0, 1], and `std` to at least a hundredth
        of its smallest measured value.
        """
        return mean_curves(self.series, tilt_angles, self.order)

    @abstractmethod
    def strengthened(self, *, contrast: float = 1.0, exposure: float = 1.0) -> Self:
        """Return the model with a stronger signal, or with less noise.

        Parameters
        ----------
        contrast
            Factor on the signal.
        exposure
            Factor on the number of electrons: the noise power, relative to the signal's, is divided by it.
        """

    def as_white(self, snr: float) -> WhiteNoise:
        """Return white noise of another signal-to-noise ratio, with the means and standard deviations of this model.

        Parameters
        ----------
        snr
            Signal power divided by noise power, at 0°; it falls as `snr · cos θ`, as for `assume`.
        """
        return WhiteNoise(series=tuple(reassumed_series(series, snr) for series in self.series), order=self.order)

    def to_json(self) -> str:
        """Write the model as JSON text."""
        return seal(self._content(), indent=None)

    def identity(self) -> str:
        """Return the text of version 0.1.0, without a checksum, so that records of that version fit."""
        return json.dumps(self._content())

    def _content(self) -> dict[str, Any]:
        data = {"format": _FORMAT, "order": self.order, "series": [asdict(s) for s in self.series]}
        parts = {"response": self.response, "crowd": self.crowd, "contrast": self.contrast}
        return data | {name: part.to_dict() for name, part in parts.items() if part is not None}


@dataclass(frozen=True, kw_only=True)
class WhiteNoise(FittedNoise):
    """White Gaussian noise that depends on the tilt, as published.

    Clean tilts c are scaled to a mean of 0 and a standard deviation of 1. The noisy tilt is `r · c + σ · ε`. Then it is
    scaled to the mean and the standard deviation of the measured tilts.

    Parameters
    ----------
    series
        One entry for each tilt-series of the fit.
    order
        Order of the polynomials over the tilt angle; 2 as published, 0 for BASELINE.
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

    def strengthened(self, *, contrast: float = 1.0, exposure: float = 1.0) -> WhiteNoise:
        """Return the model with another ratio of signal and noise; the tilts' standard deviations stay."""
        return replace(self, series=tuple(strengthened_series(s, contrast**2 * exposure) for s in self.series))

    def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0) -> Tensor:
        """Make noisy tilts, see `NoiseModel.sample`. A constant tilt has no signal: the result is noise alone."""
        noisy, curves = self._standardized(clean, noise, tilt_angles, noise_scale)
        return match_mean_std(noisy, *(sent(torch.from_numpy(one), clean.device) for one in (curves.mean, curves.std)))

    def _standardized(
        self, clean: Tensor, noise: Tensor, tilt_angles: Angles, noise_scale: float
    ) -> tuple[Tensor, NoiseCurves]:
        """Mix signal and noise, of tilts with a standard deviation of 1; the curves say what they become."""
        check_same_shape("noise", noise.shape, "clean", clean.shape)
        curves = self.curves(as_tilt_angles(tilt_angles, count=clean.shape[0]))
        r = _column(curves.correlation, clean)
        sigma = _column(curves.deviation, clean)
        return by_parts(_mixed, standardize(clean), noise, r, noise_scale * sigma, dtype=clean.dtype), curves

    def signal(self, clean: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0) -> Tensor:
        """Return the signal of noisy tilts, see `NoiseModel.signal`."""
        curves = self.curves(as_tilt_angles(tilt_angles, count=clean.shape[0]))
        total = np.hypot(curves.correlation, noise_scale * curves.deviation).clip(min=np.finfo(np.float64).tiny)
        std = torch.from_numpy(curves.std * curves.correlation / total)
        return match_mean_std(clean, sent(torch.from_numpy(curves.mean), clean.device), sent(std, clean.device))

    def half_exposures(
        self, clean: Tensor, noise: Tensor, other: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Make two halves of each tilt, see `NoiseModel.half_exposures`. Their mean is `sample(clean, noise, ...)`."""
        check_same_shape("other", other.shape, "clean", clean.shape)
        noisy, curves = self._standardized(clean, noise, tilt_angles, noise_scale)
        own = mean_std(noisy)[1]
        wanted = torch.from_numpy(noise_scale * curves.deviation * curves.std).to(own)
        scale = torch.where(own > 0, wanted / own.clamp_min(1e-300), 0.0)
        difference = by_parts(torch.mul, other, scale[:, None, None].to(other), dtype=clean.dtype)
        both = self.sample(clean, noise, tilt_angles, noise_scale=noise_scale)
        # Scaling each half to the standard deviation of a whole tilt would make its signal weaker.
        return both + difference, both - difference


@dataclass(frozen=True, kw_only=True)
class ResponseNoise(FittedNoise):
    """Noise with a spectrum, and a transfer function for the signal; both depend on the tilt.

    The noisy tilt is `gain ∗ c + coloured noise`, plus the mean of the measured tilts. This is not part of the
    published method.

    Parameters
    ----------
    series
        One entry for each tilt-series of the fit. Of its curves, only `mean` is used.
    order
        Order of the polynomials over the tilt angle.
    response
        The transfer function (gain) and the noise spectrum.
    crowd
        Matter that the specimens of the fit did not explain. `FakETSimulator` adds it to specimens.
    contrast
        How the scale of the gain was found.
    backgrounds
        Slow backgrounds of the measured series.
    background
        Which of them noisy tilts get in place of their own; None for none. `FakETSimulator` draws it for each tomogram
        if its `background` is `"measured"`.
    ice
        Maps of the ice of those measured series whose intensities tell it.
    through
        The ice that noisy tilts pass through; None for ice of even thickness. `FakETSimulator` draws it for each
        tomogram if it has `ice`.
    interpolated
        Whether clean tilts are as `project` makes them; if not, they are given back what its interpolation takes.
    """

    response: MicroscopeResponse = field()  # without a default, which the base has
    crowd: CrowdField | None = None
    contrast: ContrastReport | None = None
    backgrounds: tuple[SlowBackground, ...] = ()
    background: int | None = None
    ice: tuple[ThicknessMap, ...] = ()
    through: ThicknessMap | DrawnIce | None = None
    interpolated: bool = True

    def baseline(self) -> ResponseNoise:
        """Return the BASELINE variant: the same for every tilt."""
        return replace(self, order=0, response=self.response.averaged())

    def at_defocus(self, defocus: float) -> ResponseNoise:
        """Return the model with another defocus, µm."""
        return replace(self, response=self.response.at_defocus(defocus))

    def strengthened(self, *, contrast: float = 1.0, exposure: float = 1.0) -> ResponseNoise:
        """Return the model with another scale of the gain, or another noise power."""
        return replace(self, response=self.response.strengthened(contrast=contrast, exposure=exposure))

    def shifted(self, defocus: float) -> ResponseNoise:
        """Return the model with the defocus of all series changed by a number, µm."""
        return replace(self, response=self.response.shifted(defocus))

    def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Angles, *, noise_scale: float = 1.0) -> Tensor:
        """Make noisy tilts, see `NoiseModel.sample`. Clean tilts must have the unit of the clean tilts of the fit."""
        check_same_shape("noise", noise.shape, "clean", clean.shape)
        curves = self.curves(as_tilt_angles(tilt_angles, count=clean.shape[0]))
        shape, pixel_size = (int(clean.shape[-2]), int(clean.shape[-1])), self.response.pixel_size
        through = None if self.through is None else self.through.transmission(shape, pixel_size, tilt_angles)
        measured = self.response.apply(
            clean,
            noise,
            tilt_angles,
            noise_scale=noise_scale,
            by_intensity=self.is_physical,
            transmission=None if through is None else sent(through, clean.device),
        )
        measured = measured + _column(curves.mean, clean)
        if self.background is None:
            return measured
        return self.backgrounds[self.background].put_into(measured, tilt_angles, self.response.pixel_size)

    def with_ice(self, ice: ThicknessMap | DrawnIce) -> ResponseNoise:
        """Return the model whose tilts pass through this ice."""
        return replace(self, through=ice)

    def with_background(self, index: int) -> ResponseNoise:
        """Return the model whose tilts have a measured background."""
        return replace(self, background=index % len(self.backgrounds)) if self.backgrounds else self

    def identity(self) -> str:
        """Return the text of the model, without maps and backgrounds where tilts get none: records stay small."""
        told = self if self.background is not None else replace(self, backgrounds=())
        told = told if self.through is not None else replace(told, ice=())
        return json.dumps(told._content())

    def _content(self) -> dict[str, Any]:
        own = {"backgrounds": [one.to_dict() for one in self.backgrounds]} if self.backgrounds else {}
        more: dict[str, Any] = {} if self.background is None else {"background": self.background}
        more |= {"ice": [one.to_dict() for one in self.ice]} if self.ice else {}
        more |= {} if self.through is None else {"through": self.through.to_dict()}
        return super()._content() | own | more | ({} if self.interpolated else {"interpolated": False})


@dataclass(frozen=True, kw_only=True)
class GivenNoise(NoiseModel):
    """For tilts that have their noise already (`TiltedSpecimen`): no noise is added."""

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
    return sent(torch.from_numpy(values), like.device).to(like.dtype)[:, None, None]


def _backgrounds(entries: Any) -> tuple[SlowBackground, ...]:
    if not isinstance(entries, list):
        raise ValueError(f"expected a list of backgrounds, got {entries!r}")
    return tuple(SlowBackground.from_dict(entry) for entry in entries)
