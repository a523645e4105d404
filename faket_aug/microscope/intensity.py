"""The absolute scale of contrast: from intensities, or from noise and exposure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from faket_aug._arrays import FloatArray
from faket_aug.microscope.interaction import interaction_constant
from faket_aug.microscope.spectra import OUTLIERS, RINGS, SeriesSpectra

#: From what the scale of the gain comes.
ScaleSource = Literal["intensity", "exposure", "power"]
SCALE_SOURCES: tuple[ScaleSource, ...] = ("intensity", "exposure", "power")
#: Detective quantum efficiency at frequency 0, assumed where the scale comes from noise and exposure.
QUANTUM_EFFICIENCY = 0.7
#: Fraction of electrons that pass the ice and the energy filter at 0°, assumed where intensities are not known: ice of
#: 200 nm, with a mean free path of 300 nm.
TRANSMISSION = 0.5
#: Frequencies, cycles per pixel: of independent noise that follows the intensity, ...
_GRAIN = (0.35, 0.7)
#: ... and of noise that has not passed the detector's transfer function yet.
_PLATEAU = (0.1, 0.2)
#: The zero of the gray values is known if its standard error is less than this fraction of the intensity.
_KNOWN = 0.1
#: Gray values have their zero at 0 if it is that within so many standard errors.
_SAME = 2.0
#: The line through noise and intensity is robust: residuals beyond so many standard deviations count less.
_ROBUST = 2.0
_ROUNDS = 30
#: Specimens that explain so many times as much as was measured, or as little, are not in volts.
_ODD = 100.0
#: Specimens of one kind differ by chance: what they explain more than all, by this fraction, means nothing.
_CHANCE = 0.2
#: How much the contrast transfer function leaves of a bead's contrast.
_WEAKENED = 0.25


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotonTransfer:
    """The line of independent noise over mean intensity, over the tilts of a series.

    Electrons are counted, so the variance of their noise is in proportion to the intensity. Where the line meets a
    variance of 0, no electron arrived.

    Parameters
    ----------
    mean, variance
        `(tilt,)`: mean gray value, and the power of the independent noise.
    zero, zero_error
        The gray value without electrons, and its standard error.
    slope
        Variance per gray value. It is negative where more electrons make lower gray values.
    scatter
        Standard deviation of the variances around the line, as a fraction of their median.
    """

    mean: FloatArray
    variance: FloatArray
    zero: float
    zero_error: float
    slope: float
    scatter: float

    @classmethod
    def of(cls, spectra: SeriesSpectra) -> PhotonTransfer:
        """Fit the line to the spectra of a series."""
        mean, variance = spectra.mean, independent_noise(spectra, _GRAIN)
        if len(mean) < 4 or np.ptp(mean) <= 1e-6 * max(float(np.abs(mean).max()), 1e-12):
            return cls(mean=mean, variance=variance, zero=0.0, zero_error=np.inf, slope=0.0, scatter=0.0)
        # In units of the series, so that the fit does not depend on scale and offset of the gray values.
        middle, width = float(mean.mean()), float(mean.std())
        x, level = (mean - middle) / width, float(np.median(variance))
        design, y = np.stack([x, np.ones_like(x)], axis=1), variance / level
        # The variance is known to the same fraction at each tilt.
        weights = 1 / y**2
        for _ in range(_ROUNDS):
            root = np.sqrt(weights)
            slope, constant = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
            rest = (y - slope * x - constant) / y
            spread = max(1.4826 * float(np.median(np.abs(rest))), 1e-12)
            weights = 1 / np.maximum(1.0, np.abs(rest) / (_ROBUST * spread)) / y**2
        covariance = np.linalg.inv((design * weights[:, None]).T @ design) * spread**2
        if abs(slope) < 1e-12:
            return cls(mean=mean, variance=variance, zero=0.0, zero_error=np.inf, slope=0.0, scatter=spread)
        gradient = np.array([constant / slope**2, -1 / slope])
        return cls(
            mean=mean,
            variance=variance,
            zero=float(middle - constant / slope * width),
            zero_error=float(np.sqrt(gradient @ covariance @ gradient)) * width,
            slope=float(slope * level / width),
            scatter=spread,
        )

    @property
    def known(self) -> bool:
        """Whether the zero of the gray values is known well enough for an absolute scale."""
        intensity = np.median(self.mean) - self.zero
        return bool(self.slope != 0 and self.zero_error < _KNOWN * abs(intensity) and intensity * self.slope > 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class AbsoluteScale:
    """The gain of each tilt where the contrast transfer function is 1, before its envelope.

    Parameters
    ----------
    source
        `"intensity"`, `"exposure"`, or `"power"` where neither is known.
    gain
        `(tilt,)`, gray values per volt and voxel, `2 σ_e · voxel size · intensity`; empty for `"power"`.
    transfer
        The line of noise over intensity.
    zero
        The gray value without electrons that `"intensity"` counts from.
    """

    source: ScaleSource
    gain: FloatArray
    transfer: PhotonTransfer
    zero: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ContrastReport:
    """How the scale of a fitted gain was found, for people.

    Parameters
    ----------
    source
        `"intensity"`, `"exposure"` or `"power"`, of each series.
    zero, zero_error
        Of each series: the gray value at which the line of noise over intensity meets 0, and its standard error; 0 and
        0 where there is no line.
    explained
        The power that the specimens share from tilt to tilt, divided by what was measured. None if the scale is the
        power's.
    thickness
        Å, how deep all matter is, of each series; empty where it was given or could not be told.
    """

    source: tuple[str, ...]
    zero: tuple[float, ...]
    zero_error: tuple[float, ...]
    explained: float | None = None
    thickness: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, scales: Sequence[AbsoluteScale], explained: float | None, *, thickness: Sequence[float] = ()
    ) -> ContrastReport:
        """Summarize the scales of some series."""
        lines = [one.transfer for one in scales]
        finite = [bool(np.isfinite(line.zero_error)) for line in lines]
        return cls(
            source=tuple(one.source for one in scales),
            zero=tuple(line.zero if own else 0.0 for line, own in zip(lines, finite, strict=True)),
            zero_error=tuple(line.zero_error if own else 0.0 for line, own in zip(lines, finite, strict=True)),
            explained=explained,
            thickness=tuple(thickness),
        )

    def lines(self) -> list[str]:
        """Say in words what was found."""
        texts = {
            "intensity": "intensities (gray value of no electrons {:.4g} ± {:.2g})",
            "exposure": "noise and exposure",
            "power": "the power of the specimens, right only if they are as dense as the measured ones",
        }
        result = [
            f"series {i}: scale of the contrast from {texts[source].format(zero, error)}"
            for i, (source, zero, error) in enumerate(zip(self.source, self.zero, self.zero_error, strict=True))
        ]
        if self.explained is None:
            return result
        if self.thickness:
            listed = ", ".join(f"{one:.0f}" for one in self.thickness)
            result.append(f"matter is {listed} Å deep, as neighbouring tilts show")
        if not 1 / _ODD < self.explained < _ODD:
            return [
                *result,
                f"the specimens explain {self.explained:.2g} times what was measured: are their densities in volts?",
            ]
        if 1 <= self.explained < 1 + _CHANCE:
            return [*result, "the specimens explain all of the power that tilts share"]
        if self.explained > 1:
            return [
                *result,
                f"the specimens explain {self.explained:.2g} times what was measured: they hold too many particles, or "
                "too heavy ones",
            ]
        return [
            *result,
            f"the specimens explain {self.explained:.0%} of the power that tilts share; the rest is the crowd, which "
            "simulations add as a random density",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        data = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        # As files were before the thickness was estimated.
        return data if self.thickness else {name: value for name, value in data.items() if name != "thickness"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ContrastReport:
        """Make a report from the result of `to_dict`.

        Raises
        ------
        ValueError
            If a value is missing, unknown or of another kind.
        """
        try:
            lists = {name: tuple(data[name]) for name in ("source", "zero", "zero_error")}
            lists["thickness"] = tuple(float(value) for value in data.get("thickness", ()))
            if not set(lists["source"]) <= set(SCALE_SOURCES):
                raise ValueError(f"expected sources of {', '.join(SCALE_SOURCES)}, got {data['source']!r}")
            return cls(**(dict(data) | lists))
        except (TypeError, KeyError) as error:
            raise ValueError(f"expected a report of the contrast, got {data!r}") from error


def absolute_scales(
    spectra: Sequence[SeriesSpectra],
    *,
    pixel_size: float,
    voltage: float,
    exposure: Sequence[FloatArray | float | None],
    source: ScaleSource | None = None,
) -> list[AbsoluteScale]:
    """Find the absolute scale of each series.

    A weak phase object changes the intensity of a tilt by `2 σ_e` times the projected potential (volt times ångström),
    times the intensity. So the scale follows from the intensity. Gray values give it if their zero is known: the zero
    of the line of independent noise over mean gray value. If it is not known, the relative noise gives the number of
    electrons: the exposure, `TRANSMISSION` and `QUANTUM_EFFICIENCY` are needed.

    Parameters
    ----------
    spectra
        Of each series.
    pixel_size
        Å; the voxels of the projections are as large.
    voltage
        kV.
    exposure
        Of each series: e⁻/Å² of each tilt `(tilt,)`, or of every tilt, or None if it is not known.
    source
        Which one to take; by default the first one that is known, in the order of `SCALE_SOURCES`.

    Raises
    ------
    ValueError
        If `source` is not known of a series; the message says why.
    """
    lines = [PhotonTransfer.of(one) for one in spectra]
    factor = 2 * interaction_constant(voltage) * pixel_size
    zeros = _zeros(lines)
    result = []
    for index, (one, line, zero, own) in enumerate(zip(spectra, lines, zeros, exposure, strict=True)):
        chosen = source or ("intensity" if zero is not None else "exposure" if own is not None else "power")
        if chosen == "power":
            gain = np.empty(0)
        elif chosen == "intensity":
            if zero is None:
                raise ValueError(
                    f"series {index}: expected gray values whose noise grows with their mean over the tilts, got ones "
                    f"whose zero is {line.zero:.4g} ± {line.zero_error:.2g}; give the exposure, or fit the power "
                    '(`scale="power"`)'
                )
            gain = factor * (one.mean - zero)
        else:
            if own is None:
                raise ValueError(
                    f"series {index}: expected the exposure of its tilts in e⁻/Å², got none; set `exposure`, or give "
                    "metadata that tell it"
                )
            gain = factor * _intensity_of_noise(one, own, pixel_size)
        # Where more electrons make lower gray values, particles are bright: the gain has the other sign there. A tilt
        # whose intensity is not positive has no scale.
        smallest = 1e-3 * float(np.median(np.abs(gain))) if len(gain) else 0.0
        result.append(
            AbsoluteScale(
                source=chosen,
                gain=np.maximum(np.abs(gain), smallest),
                transfer=line,
                zero=0.0 if zero is None else zero,
            )
        )
    return result


def clipping_limit(scale: AbsoluteScale, spectra: SeriesSpectra) -> FloatArray:
    """Compute where clean tilts are clipped, as measured ones are: `(tilt,)`, V and voxels.

    The contrast transfer function weakens large objects, which therefore are clipped later, at 1 / `_WEAKENED`.
    """
    std: FloatArray = np.sqrt(spectra.power @ spectra.counts / spectra.counts.sum())
    return OUTLIERS * std / (scale.gain * _WEAKENED)


def independent_noise(spectra: SeriesSpectra, band: tuple[float, float]) -> FloatArray:
    """Compute the noise power that a tilt does not share with its neighbours, `(tilt,)`, in a band of frequencies."""
    inside = (band[0] <= RINGS) & (band[1] >= RINGS)
    shared = spectra.shared
    if not len(shared):
        own = np.zeros_like(spectra.power)
    else:
        own = np.concatenate([shared[:1], (shared[1:] + shared[:-1]) / 2, shared[-1:]])
    weights = spectra.counts[inside] / spectra.counts[inside].sum()
    result: FloatArray = np.maximum(
        (spectra.power - own)[:, inside] @ weights, 1e-3 * spectra.power[:, inside] @ weights
    )
    return result


def _zeros(lines: Sequence[PhotonTransfer]) -> list[float | None]:
    """The zero of each series' gray values. Series that agree share it, which makes it more exact."""
    finite = [line for line in lines if np.isfinite(line.zero_error) and line.slope != 0]
    if finite:
        weights = np.array([1 / max(line.zero_error, 1e-12) ** 2 for line in finite])
        values = np.array([line.zero for line in finite])
        mean, error = float(weights @ values / weights.sum()), float(weights.sum() ** -0.5)
        if len(finite) == len(lines) and bool((np.abs(values - mean) < 3 * np.sqrt(1 / weights)).all()):
            known = error < _KNOWN * float(np.median([abs(np.median(line.mean) - mean) for line in lines]))
            rising = all((np.median(line.mean) - mean) * line.slope > 0 for line in lines)
            if known and rising:
                return [0.0 if abs(mean) <= _SAME * error else mean] * len(lines)
    return [(0.0 if abs(line.zero) <= _SAME * line.zero_error else line.zero) if line.known else None for line in lines]


def _intensity_of_noise(spectra: SeriesSpectra, exposure: FloatArray | float, pixel_size: float) -> FloatArray:
    """The intensity of each tilt, `(tilt,)`, from the relative noise of so many electrons."""
    cosine = np.cos(np.deg2rad(spectra.tilt_angles)).clip(0.1)
    electrons = np.broadcast_to(exposure, spectra.mean.shape) * pixel_size**2 * TRANSMISSION ** (1 / cosine)
    noise: FloatArray = np.sqrt(independent_noise(spectra, _PLATEAU))
    return noise * np.sqrt(electrons * QUANTUM_EFFICIENCY)
