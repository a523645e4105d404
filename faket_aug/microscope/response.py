"""The response of a microscope: a gain for each frequency and tilt, and noise with a spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import check_ndim, check_positive, check_same_shape
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.background import SlowPart
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.interaction import interaction_constant
from faket_aug.microscope.spectra import RINGS, radial_filter
from faket_aug.tomography.filters import PaddedGrid

FloatArray = npt.NDArray[np.float64]
#: Unit of the tilt angle in all curves, degrees: u = θ / 60°.
ANGLE_UNIT = 60.0
#: Order of the polynomials over the tilt angle, as published.
ORDER = 2
#: Of an envelope, what files of version 0.1.0 do not have.
_LATER = ("linear_tilt", "square_dose")
#: Noise power is at least this fraction of its median over the frequencies of a tilt.
_LEAST_NOISE = 0.01


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """How the gain falls with the frequency k (cycles per pixel) and with the tilt angle, `u = θ / 60°`.

    `exp(log_scale + tilt_2 u² + tilt_4 u⁴ − a k² − b k)`, with `a = square + square_dose |u| + square_tilt u²` and
    `b = linear + linear_tilt u²`.

    Parameters
    ----------
    log_scale
        Logarithm of the gain where the contrast transfer function is 1. The unit of the gain is that of the measured
        tilts divided by that of the projections.
    tilt_2, tilt_4
        Change with the tilt angle: thicker ice, less exposure.
    square, square_tilt
        Pixels², 0 or more: partial coherence, motion, misaligned tilts, radiation damage.
    linear
        Pixels, 0 or more: the transfer of the detector.
    linear_tilt
        Pixels, 0 or more: tilts whose misalignment differs within the image, or from tilt to tilt.
    square_dose
        Pixels², 0 or more: radiation damage of a series that is recorded from low tilts to high ones. The exposure
        before a tilt then grows with |u|, and so does the damage, see `ExposureDamage`.
    """

    log_scale: float
    tilt_2: float = 0.0
    tilt_4: float = 0.0
    square: float = 0.0
    square_tilt: float = 0.0
    linear: float = 0.0
    linear_tilt: float = 0.0
    square_dose: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int | float) or not np.isfinite(value):
                raise ValueError(f"expected a finite number for `{name}` of an envelope, got {value!r}")

    def scale(self, u: FloatArray) -> FloatArray:
        """Return the factor of each tilt at frequency 0, `(tilt,)`."""
        result: FloatArray = np.exp(self.log_scale + self.tilt_2 * u**2 + self.tilt_4 * u**4)
        return result

    def falloff(self, u: FloatArray) -> FloatArray:
        """Return the coefficient of k² of each tilt, `(tilt,)`, pixels²."""
        return self.square + self.square_dose * np.abs(u) + self.square_tilt * u**2

    def slope(self, u: FloatArray) -> FloatArray:
        """Return the coefficient of k of each tilt, `(tilt,)`, pixels."""
        return self.linear + self.linear_tilt * u**2

    def gain(self, u: FloatArray, frequencies: FloatArray, transfer: FloatArray) -> FloatArray:
        """Return the gain `(tilt, n)`: the envelope times a contrast transfer function.

        Parameters
        ----------
        u
            `(tilt,)`, tilt angles divided by 60°.
        frequencies
            `(n,)`, cycles per pixel.
        transfer
            `(n,)`, the contrast transfer function at these frequencies.
        """
        falling = np.exp(-self.falloff(u)[:, None] * frequencies**2 - self.slope(u)[:, None] * frequencies)
        result: FloatArray = self.scale(u)[:, None] * falling * transfer
        return result

    def to_dict(self) -> dict[str, float]:
        """Return the envelope as JSON types; without what files of version 0.1.0 do not have, where it is 0."""
        return {name: value for name, value in asdict(self).items() if value or name not in _LATER}


@dataclass(frozen=True, kw_only=True)
class MicroscopeResponse:
    """The response of a microscope: a linear transfer function and a noise spectrum for each tilt.

    `tilt = gain ∗ clean + noise`. Gain and noise power are functions of frequency and tilt angle. With an absolute
    scale, matter absorbs, and the noise follows the intensity: see `apply`.

    Parameters
    ----------
    pixel_size
        Å.
    ctf
        The contrast transfer function, with the mean defocus of all series. `drawn` takes the defocus of one series.
    envelope
        The other factor of the gain.
    noise
        `(order + 1, ring)`. The noise power of a pixel at the frequencies `spectra.RINGS` is a polynomial of
        `u = θ / 60°`. These are its coefficients, the constant one first.
    angle_range
        Degrees. A tilt beyond this range is treated as a tilt at its nearest end.
    defocus, defocus_error
        `(series,)`, µm: the defocus of each series of the fit, and its standard error.
    gain_error
        Relative standard error of the gain, median over frequencies and tilts; 0 if it is not known.
    contrast
        A factor that the gain has in addition to what the intensity makes, see `strengthened`.

    Raises
    ------
    ValueError
        If the noise does not have one number for each ring, `ctf` has one number for each tilt, or a number is out of
        its range.
    """

    pixel_size: float
    ctf: ContrastTransfer
    envelope: Envelope
    noise: tuple[tuple[float, ...], ...]
    angle_range: tuple[float, float]
    defocus: tuple[float, ...] = ()
    defocus_error: tuple[float, ...] = ()
    gain_error: float = 0.0
    contrast: float = 1.0

    def __post_init__(self) -> None:
        check_positive("pixel_size", self.pixel_size)
        check_positive("contrast", self.contrast)
        if not self.noise or any(len(row) != len(RINGS) or not np.isfinite(row).all() for row in self.noise):
            raise ValueError(f"expected `noise` of {len(RINGS)} finite numbers for each power of the angle")
        if any(isinstance(getattr(self.ctf, name), tuple) for name in ("defocus", "phase_shift")):
            raise ValueError("expected a `ctf` of all tilts, got numbers for each tilt; give their means")
        low, high = self.angle_range
        if not -90 <= low <= high <= 90:
            raise ValueError(f"expected `angle_range` of two increasing angles in degrees, got {self.angle_range!r}")

    def gain(self, tilt_angles: Angles, frequencies: FloatArray = RINGS) -> FloatArray:
        """Evaluate the gain.

        Parameters
        ----------
        tilt_angles
            `(tilt,)`, degrees.
        frequencies
            `(n,)`, cycles per pixel.

        Returns
        -------
        `(tilt, n)`, in the unit of the measured tilts divided by that of the projections.
        """
        u = self._u(tilt_angles)
        k = np.asarray(frequencies, dtype=np.float64)
        return self.envelope.gain(u, k, self.ctf.curve(k / self.pixel_size).numpy())

    def noise_power(self, tilt_angles: Angles) -> FloatArray:
        """Evaluate the noise power of a pixel at the frequencies `spectra.RINGS`; `(tilt, ring)`."""
        u = self._u(tilt_angles)
        power: FloatArray = np.polynomial.polynomial.polyval(u, np.asarray(self.noise)).T
        return np.maximum(power, _LEAST_NOISE * np.median(power, axis=1, keepdims=True).clip(1e-300))

    def apply(
        self,
        clean: Tensor,
        noise: Tensor,
        tilt_angles: Angles,
        *,
        noise_scale: float = 1.0,
        by_intensity: bool = False,
        transmission: Tensor | None = None,
    ) -> Tensor:
        """Make noisy tilts from clean ones. Their mean is 0.

        Parameters
        ----------
        clean
            `(tilt, y, x)`, negated projections, in the unit of the projections of the fit.
        noise
            `(tilt, y, x)`, standard normal numbers.
        tilt_angles
            `(tilt,)`, degrees.
        noise_scale
            Factor on the noise.
        by_intensity
            Whether the scale of the gain is absolute, so that it tells the intensity. Then matter absorbs by the
            exponential law: the amplitude contrast of the transfer function is the logarithm of what passes, and the
            phase contrast is relative to that. No intensity is negative, and the variance of the noise follows the
            local intensity.
        transmission
            `(tilt, y, x)`, more than 0: what uneven ice lets pass, see `ThicknessMap.transmission`. Only its changes
            within a tilt count, since the scale of the gain is that of the mean intensity. The signal follows the local
            intensity, and so does the variance of the noise. What changes slowly in a tilt (over more than 100 nm) is
            then the intensity itself, in place of the slow part of signal and noise: the noise spectrum of the lowest
            frequencies holds such changes of the measured tilts.

        Returns
        -------
        `(tilt, y, x)`, each with a mean of 0, in the dtype of `clean`.

        Raises
        ------
        ValueError
            If shapes differ, or if there is a `transmission` without `by_intensity`.
        """
        check_ndim("clean", clean, "tilt y x")
        check_same_shape("noise", noise.shape, "clean", clean.shape)
        if transmission is not None:
            check_same_shape("transmission", transmission.shape, "clean", clean.shape)
            if not by_intensity:
                raise ValueError(
                    "expected a gain of an absolute scale for `transmission`, got one whose intensity is not known; "
                    "fit the response to tilts whose gray values or exposure tell it, and set `by_intensity`"
                )
        angles = as_tilt_angles(tilt_angles, count=clean.shape[0])
        shape = (int(clean.shape[-2]), int(clean.shape[-1]))
        grid = PaddedGrid(shape, self.ctf.reach(self.pixel_size), clean.device)
        self.ctf.check_sampling(self.pixel_size, min(grid.shape))
        transfer = self.ctf.curve(grid.radius / self.pixel_size)
        absorbing = self.ctf.amplitude_part(grid.radius / self.pixel_size) if by_intensity else None
        u = self._u(angles)
        scale, falloff, slope = self.envelope.scale(u), self.envelope.falloff(u), self.envelope.slope(u)
        power = self.noise_power(angles)
        intensity = self.intensity(angles)
        slow = None if transmission is None else SlowPart.of(shape, self.pixel_size, clean.device)
        result = torch.empty_like(clean)
        for tilt in range(clean.shape[0]):
            falling = torch.exp(-float(falloff[tilt]) * grid.radius**2 - float(slope[tilt]) * grid.radius)
            signal = grid.filtered(clean[tilt], transfer * falling * float(scale[tilt]))
            colour = radial_filter(np.sqrt(power[tilt]) * noise_scale, shape, clean.device).to(clean.dtype)
            grain = torch.fft.irfft2(torch.fft.rfft2(noise[tilt]) * colour, s=shape)
            if absorbing is not None:
                absorbed = grid.filtered(clean[tilt], absorbing * falling * float(scale[tilt]))
                signal, grain = _counted(signal, absorbed, grain, float(intensity[tilt]))
            if transmission is not None and slow is not None:
                total = _through_ice(signal, grain, transmission[tilt], float(intensity[tilt]), slow)
            else:
                total = signal + grain
            result[tilt] = total - total.mean()
        return result

    def intensity(self, tilt_angles: Angles) -> FloatArray:
        """Return the mean intensity of tilts `(tilt,)`, in the measured ones' unit; only an absolute scale tells it."""
        factor = 2 * interaction_constant(self.ctf.voltage) * self.pixel_size * self.contrast
        result: FloatArray = self.envelope.scale(self._u(tilt_angles)) / factor
        return result

    def drawn(self, generator: np.random.Generator) -> Self:
        """Return the response with the defocus of one series of the fit, or itself if none is known."""
        return self.at_defocus(float(generator.choice(self.defocus))) if self.defocus else self

    def at_defocus(self, defocus: float) -> Self:
        """Return the response with another defocus, µm."""
        return replace(self, ctf=replace(self.ctf, defocus=defocus))

    def shifted(self, defocus: float) -> Self:
        """Return the response with the defocus of all series changed by a number, µm."""
        moved = replace(self, defocus=tuple(one + defocus for one in self.defocus))
        return moved.at_defocus(float(np.mean(self.ctf.defocus)) + defocus)

    def strengthened(self, *, contrast: float = 1.0, exposure: float = 1.0) -> Self:
        """Return the response with a factor on its gain, and with its noise power divided by another one.

        The intensity stays, so darker particles absorb more, and uneven ice is as uneven.
        """
        envelope = replace(self.envelope, log_scale=self.envelope.log_scale + math.log(contrast))
        noise = tuple(tuple(value / exposure for value in row) for row in self.noise)
        return replace(self, envelope=envelope, noise=noise, contrast=self.contrast * contrast)

    def averaged(self) -> Self:
        """Return a response that is the same for every tilt: the mean over the range of angles."""
        angles = np.linspace(*self.angle_range, 41)
        u = self._u(angles)
        envelope = Envelope(
            log_scale=float(np.log(self.envelope.scale(u)).mean()),
            square=float(self.envelope.falloff(u).mean()),
            linear=float(self.envelope.slope(u).mean()),
        )
        return replace(self, envelope=envelope, noise=(tuple(self.noise_power(angles).mean(axis=0).tolist()),))

    def _u(self, tilt_angles: Angles) -> FloatArray:
        return as_tilt_angles(tilt_angles).clip(*self.angle_range) / ANGLE_UNIT

    def to_dict(self) -> dict[str, Any]:
        """Return the response as JSON types."""
        data = asdict(self) | {"ctf": self.ctf.to_dict(), "envelope": self.envelope.to_dict()}
        # As files were before there was a contrast of its own.
        return {name: value for name, value in data.items() if name != "contrast" or value != 1.0}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a response from the result of `to_dict`, also after a trip through JSON.

        Raises
        ------
        ValueError
            If a value is missing or unknown.
        """
        wanted = {entry.name for entry in fields(cls)}
        if not isinstance(data, Mapping) or set(data) | {"contrast"} != wanted:
            found = sorted(data) if isinstance(data, Mapping) else data
            raise ValueError(f"expected a microscope's response with {sorted(wanted)}, got {found!r}")
        try:
            envelope = Envelope(**data["envelope"])
        except TypeError as error:
            raise ValueError(f"expected an envelope, got {data['envelope']!r}") from error
        try:
            lists = {name: tuple(data[name]) for name in ("angle_range", "defocus", "defocus_error")}
            noise = tuple(tuple(row) for row in data["noise"])
            known = {"envelope": envelope, "ctf": ContrastTransfer.from_dict(data["ctf"]), "noise": noise}
            return cls(**(dict(data) | lists | known))
        except TypeError as error:
            raise ValueError(f"expected the numbers of a microscope's response, got others: {error}") from error


def _counted(signal: Tensor, absorbed: Tensor, noise: Tensor, intensity: float) -> tuple[Tensor, Tensor]:
    """Let matter absorb exponentially, and the noise follow the local intensity, as counted electrons have it."""
    phase = signal - absorbed
    # The intensity is that of the whole tilt, behind all of its matter.
    passing = torch.exp((absorbed - absorbed.mean()) / intensity)
    # Phase contrast only moves electrons that have passed; it stays linear.
    local = passing * (1 + (phase - phase.mean()) / intensity).clamp(min=0)
    local = local / local.mean()
    return (local - 1) * intensity, noise * local.sqrt()


def _through_ice(signal: Tensor, noise: Tensor, transmission: Tensor, intensity: float, slow: SlowPart) -> Tensor:
    """Let signal and noise `(y, x)` of a tilt follow the local intensity, which becomes what changes slowly."""
    relative = transmission.to(signal)
    relative = relative / relative.mean().clamp(min=1e-30)
    total = signal * relative + noise * relative.sqrt()
    return total - slow(total.to(torch.float32)).to(total) + intensity * (relative - 1)
