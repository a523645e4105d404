"""The contrast transfer function of a microscope, with the defocus of each tilt."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._arrays import as_float64
from faket_aug._checks import check_choice, check_fraction, check_ndim, check_positive
from faket_aug._runtime.numerics import own_device
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.tomography.filters import PaddedGrid

#: Those of a usual microscope (kV, mm, fraction), for what a file does not tell.
VOLTAGE, SPHERICAL_ABERRATION, AMPLITUDE_CONTRAST = 300.0, 2.7, 0.07
#: µm. The range that is searched where nothing is known of the defocus.
DEFOCUS_RANGE = (0.2, 10.0)
#: Ways to correct tilts, and the signal-to-noise ratio of the second one.
CORRECTIONS, SNR = ("phase-flip", "wiener"), 10.0
#: µm, beyond which a defocus is taken for one in other units.
_LARGEST = 100.0
#: What may differ between tilts.
PER_TILT = ("defocus", "astigmatism", "astigmatism_angle", "phase_shift")
PerTilt = float | tuple[float, ...]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ContrastTransfer:
    """The contrast transfer function of every tilt of a series, or the distribution that it is drawn from.

    The specimen is a weak phase object: each tilt is multiplied in Fourier space by `sin(χ)` and by the envelope, with
    `χ = π λ Δz q² − π/2 C_s λ³ q⁴ + φ + asin(a)`. With underfocus the function is positive at low frequencies, so dark
    particles stay dark.

    Parameters
    ----------
    defocus
        µm, positive is underfocus; one number, or one for each tilt.
    spread
        µm. For each series one number is drawn uniformly from `[-spread, spread]` and added to the defocus. A range of
        2 to 4 µm is a defocus of 3 with a spread of 1.
    jitter
        µm, standard deviation of the defocus between the tilts of a series (normal distribution).
    astigmatism
        µm, half the difference between the largest and the smallest defocus; one number, or one for each tilt.
    astigmatism_angle
        Degrees, from +x to the direction of the largest defocus, positive towards +y.
    voltage
        kV, the acceleration voltage.
    spherical_aberration
        C_s, mm.
    amplitude_contrast
        a, a fraction in [0, 1].
    phase_shift
        φ of a phase plate, degrees; one number, or one for each tilt.
    b_factor
        B of the envelope `exp(−B q² / 4)`, Å².
    radial_gain
        Pairs of a frequency in 1/Å and a factor, in increasing order of frequency. The factor is interpolated between
        the pairs, and constant beyond them.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or a number is not finite.

    References
    ----------
    Rohou and Grigorieff, J. Struct. Biol. 192 (2015), 216-221; the phase is computed by `torch-ctf`.
    """

    defocus: PerTilt
    spread: float = 0.0
    jitter: float = 0.0
    astigmatism: PerTilt = 0.0
    astigmatism_angle: PerTilt = 0.0
    voltage: float = VOLTAGE
    spherical_aberration: float = SPHERICAL_ABERRATION
    amplitude_contrast: float = AMPLITUDE_CONTRAST
    phase_shift: PerTilt = 0.0
    b_factor: float = 0.0
    radial_gain: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name in PER_TILT:
            value = getattr(self, name)
            number = np.ndim(value) == 0
            given = float(value) if number else tuple(float(one) for one in value)
            if not np.isfinite(given).all() or given == ():
                raise ValueError(f"expected finite numbers for `{name}`, got {value!r}")
            object.__setattr__(self, name, given)
        if np.max(np.abs(self.defocus)) > _LARGEST:
            raise ValueError(
                f"expected `defocus` in µm, of {_LARGEST:g} at most, got {self.defocus!r:.200}; it seems to be in nm "
                "or Å"
            )
        check_positive("spread", self.spread, zero=True)
        check_positive("jitter", self.jitter, zero=True)
        check_positive("voltage", self.voltage)
        check_positive("spherical_aberration", self.spherical_aberration, zero=True)
        check_fraction("amplitude_contrast", self.amplitude_contrast)
        check_positive("b_factor", self.b_factor, zero=True)
        gain = tuple((float(frequency), float(factor)) for frequency, factor in self.radial_gain)
        if any(low >= high for (low, _), (high, _) in pairwise(gain)):
            raise ValueError(f"expected `radial_gain` with increasing frequencies, got {self.radial_gain!r}")
        object.__setattr__(self, "radial_gain", gain)

    @classmethod
    def within(cls, low: float = DEFOCUS_RANGE[0], high: float = DEFOCUS_RANGE[1], **settings: Any) -> Self:
        """Make a function whose defocus lies between `low` and `high`, µm; `settings` are the other parameters."""
        return cls(defocus=(low + high) / 2, spread=(high - low) / 2, **settings)

    @classmethod
    def from_metadata(cls, metadata: TiltMetadata, **settings: Any) -> Self:
        """Take the values that a program wrote for each tilt. A tilt without a defocus gets the median of its series.

        Parameters
        ----------
        metadata
            The metadata of a series, see `TiltSeries.metadata`.
        **settings
            Parameters that replace those of the metadata.

        Raises
        ------
        ValueError
            If the metadata hold no defocus.
        """
        if metadata.defocus_um is None or not np.isfinite(metadata.defocus_um).any():
            raise ValueError(f"{metadata.source}: expected a defocus of each tilt, got none; set `defocus`")
        known: dict[str, Any] = {"defocus": _filled(metadata.defocus_um)}
        for own, theirs in (("astigmatism", "astigmatism_um"), ("astigmatism_angle",) * 2, ("phase_shift",) * 2):
            values = getattr(metadata, theirs)
            if values is not None and np.isfinite(values).any():
                known[own] = _filled(values)
        for own, theirs in (
            ("voltage", "voltage_kv"),
            ("spherical_aberration", "spherical_aberration_mm"),
            ("amplitude_contrast", "amplitude_contrast"),
        ):
            if getattr(metadata, theirs) is not None:
                known[own] = getattr(metadata, theirs)
        return cls(**(known | settings))

    @property
    def wavelength(self) -> float:
        """Wavelength λ of the electrons, Å."""
        from torch_ctf import calculate_relativistic_electron_wavelength

        with own_device():
            return float(calculate_relativistic_electron_wavelength(self.voltage * 1e3)) * 1e10

    def drawn(self, count: int, generator: np.random.Generator) -> Self:
        """Draw the defocus of each of `count` tilts; the result has a spread and a jitter of 0.

        Raises
        ------
        ValueError
            If a parameter has one number for each tilt, and the series has another number of tilts.
        """
        defocus, *_ = [self._per_tilt(name, count) for name in PER_TILT]
        defocus = defocus + generator.uniform(-1, 1) * self.spread + generator.standard_normal(count) * self.jitter
        return replace(self, defocus=tuple(defocus.tolist()), spread=0.0, jitter=0.0)

    def amplitude_part(self, frequencies: Tensor | FloatArray, tilt: int = 0) -> Tensor:
        """Compute the part of `curve` that is amplitude contrast, `a cos(χ)`; the rest is phase contrast, `sin(χ)`.

        Parameters
        ----------
        frequencies, tilt
            As for `curve`.

        Returns
        -------
        The part in the shape of the frequencies, float64.
        """
        phase = replace(self, amplitude_contrast=0.0).curve(frequencies, tilt)
        return self.curve(frequencies, tilt) - math.sqrt(1 - self.amplitude_contrast**2) * phase

    def curve(self, frequencies: Tensor | FloatArray, tilt: int = 0) -> Tensor:
        """Compute the function along a radius. Astigmatism is left out.

        Parameters
        ----------
        frequencies
            1/Å, any shape.
        tilt
            Index of the tilt, where a parameter has one number for each tilt.

        Returns
        -------
        The function in the shape of the frequencies, float64.
        """
        q = as_float64(frequencies)
        defocus, shift = (
            value[tilt] if isinstance(value, tuple) else value for value in (self.defocus, self.phase_shift)
        )
        gain = self._gain(q) if self.radial_gain else None
        return self._transfer(q, torch.full_like(q, defocus), shift, gain)

    def apply(self, images: Tensor, pixel_size: float) -> Tensor:
        """Multiply tilts by the function in Fourier space. Tilts are padded by reflection, so nothing wraps around.

        Parameters
        ----------
        images
            `(tilt, y, x)`, floating point.
        pixel_size
            Å.

        Returns
        -------
        `(tilt, y, x)` in the images' dtype.

        Raises
        ------
        ValueError
            If the pixel size is not known, or a parameter has a number for each tilt of another number of tilts.

        Warns
        -----
        UserWarning
            If the function oscillates faster than the sampling of the images in Fourier space; the warning names the
            frequency.
        """
        return self._filtered(images, pixel_size, lambda transfer: transfer)

    def correct(self, images: Tensor, pixel_size: float, *, method: str = "phase-flip", snr: float = SNR) -> Tensor:
        """Correct tilts for the function, before they are reconstructed.

        Parameters
        ----------
        images
            `(tilt, y, x)`, floating point.
        pixel_size
            Å.
        method
            `"phase-flip"`: the sign is changed where the function is negative. `"wiener"`: the spectrum is multiplied
            by `ctf / (ctf² + 1 / snr)`, which also strengthens the frequencies that the function weakens, above all
            the low ones.
        snr
            Signal power over noise power where the function is 1, for `"wiener"`.

        Returns
        -------
        `(tilt, y, x)` in the images' dtype.

        Raises
        ------
        ValueError, UserWarning
            As for `apply`; or for an unknown method.
        """
        check_choice("method", method, CORRECTIONS)
        check_positive("snr", snr)
        if method == "phase-flip":
            return self._filtered(images, pixel_size, lambda transfer: torch.where(transfer < 0, -1.0, 1.0))
        return self._filtered(images, pixel_size, lambda transfer: transfer / (transfer**2 + 1 / snr))

    def _filtered(self, images: Tensor, pixel_size: float, filter: Callable[[Tensor], Tensor]) -> Tensor:
        check_ndim("images", images, "tilt y x")
        if not pixel_size > 0:
            raise ValueError(
                f"expected `pixel_size` in Å, which the contrast transfer function needs, got {pixel_size!r}; set it, "
                "or the voxel size of the specimen's file"
            )
        count = images.shape[0]
        defocus, astigmatism, angle, shift = (self._per_tilt(name, count) for name in PER_TILT)
        grid = PaddedGrid((images.shape[-2], images.shape[-1]), self.reach(pixel_size), images.device)
        self.check_sampling(pixel_size, min(grid.shape))
        q = grid.radius / pixel_size
        gain = self._gain(q) if self.radial_gain else None
        result = torch.empty_like(images)
        for tilt in range(count):
            turned = 2 * (grid.direction - math.radians(float(angle[tilt])))
            along = float(defocus[tilt]) + float(astigmatism[tilt]) * torch.cos(turned)
            result[tilt] = grid.filtered(images[tilt], filter(self._transfer(q, along, float(shift[tilt]), gain)))
        return result

    def reach(self, pixel_size: float) -> int:
        """Return the distance, in pixels, over which the function spreads a point at the Nyquist frequency."""
        return math.ceil(self.wavelength * self._largest * 1e4 / (2 * pixel_size**2))

    def check_sampling(self, pixel_size: float, length: int) -> None:
        """Warn if the Thon rings are finer than the sampling of images of `length` pixels; name the frequency."""
        limit = length * pixel_size / (2 * self.wavelength * self._largest * 1e4) if self._largest else math.inf
        if limit < 0.5 / pixel_size:
            warnings.warn(
                f"a defocus of {self._largest:g} µm makes rings that are too fine for {length} pixels of "
                f"{pixel_size:g} Å beyond {limit:.3g} 1/Å ({1 / limit:.3g} Å); take larger images, or bin them",
                stacklevel=3,
            )

    @property
    def _largest(self) -> float:
        return float(np.abs(self.defocus).max())

    @own_device()
    def _transfer(self, q: Tensor, defocus: Tensor, phase_shift: float, gain: Tensor | None) -> Tensor:
        from torch_ctf import calculate_total_phase_shift

        numbers = (self.voltage, self.spherical_aberration, phase_shift, self.amplitude_contrast)
        # They stay on the host: as single numbers they need no copy to a GPU.
        voltage, aberration, shift, contrast = (torch.as_tensor(n, dtype=q.dtype) for n in numbers)
        phase = calculate_total_phase_shift(
            defocus_um=defocus,
            voltage_kv=voltage,
            spherical_aberration_mm=aberration,
            phase_shift_degrees=shift,
            amplitude_contrast_fraction=contrast,
            fftfreq_grid_angstrom_squared=q**2,
        )
        result: Tensor = -torch.sin(phase) * torch.exp(-self.b_factor * q**2 / 4)
        return result if gain is None else result * gain

    def _gain(self, q: Tensor) -> Tensor:
        frequencies, factors = zip(*self.radial_gain, strict=True)
        return torch.from_numpy(np.interp(q.cpu().numpy(), frequencies, factors)).to(q)

    def _per_tilt(self, name: str, count: int) -> FloatArray:
        value = getattr(self, name)
        if isinstance(value, tuple) and len(value) != count:
            raise ValueError(f"expected `{name}` of {count} tilts, got {len(value)} numbers")
        return np.broadcast_to(np.asarray(value, dtype=np.float64), (count,))

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as JSON types."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the function from the result of `to_dict`, also after a trip through JSON.

        Raises
        ------
        ValueError
            If a parameter is unknown, or the defocus is missing.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"expected the parameters of a contrast transfer function, got {data!r}") from error


def _filled(values: FloatArray) -> tuple[float, ...]:
    return tuple(np.where(np.isfinite(values), values, np.nanmedian(values)).tolist())
