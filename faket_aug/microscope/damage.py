"""Radiation damage: how much signal of each frequency a specimen has lost when a tilt is recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._arrays import as_float64
from faket_aug._checks import check_choice
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.ctf import VOLTAGE

#: Orders in which the tilts of a series are recorded.
ORDERS = ("dose-symmetric", "bidirectional", "ascending")
#: The usual order, and the tilt that it begins with, degrees.
ORDER, START = ORDERS[0], 0.0
#: The critical exposure at these voltages (kV), divided by that at 300 kV.
VOLTAGES = {300.0: 1.0, 200.0: 0.8}
#: a, b and c of the critical exposure `a q^b + c` at 300 kV, in e⁻/Å² with q in 1/Å.
CRITICAL = (0.245, -1.665, 2.81)
#: Tilts that a dose-symmetric series records on one side before it changes to the other.
_GROUP = 2
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ExposureDamage:
    """How much of a specimen's signal is left after the exposure that it has received.

    The amplitude at the frequency q falls as `exp(−N / (2 N_c(q)))`, with the critical exposure
    `N_c(q) = 0.245 q^−1.665 + 2.81` e⁻/Å² at 300 kV. N is the exposure before the tilt plus half of the exposure of the
    tilt itself, which is the mean over the tilt to second order. Nothing is lost at frequency 0.

    Parameters
    ----------
    per_tilt
        e⁻/Å², exposure of each tilt.
    order
        The order in which tilts are recorded, see `acquisition_order`.
    start
        Degrees; the tilt nearest to it is the first one.
    before
        `(tilt,)`, e⁻/Å², exposure that the specimen had received before each tilt, in the order of the tilt angles, as
        `TiltMetadata.exposure`. If it is given, `order` and `start` are not used.
    voltage
        kV, 300 or 200.

    Raises
    ------
    ValueError
        If an exposure is negative or not finite, or the order or the voltage is unknown.

    References
    ----------
    Grant and Grigorieff, Measuring the optimal exposure for single particle cryo-EM using a 2.6 Å reconstruction of
    rotavirus VP6, eLife 4 (2015) e06980, equation 3; the factor 0.8 at 200 kV is that of their program Summovie.
    """

    per_tilt: float
    order: str = ORDER
    start: float = START
    before: tuple[float, ...] | None = None
    voltage: float = VOLTAGE

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        check_choice("voltage", self.voltage, VOLTAGES)
        given = () if self.before is None else tuple(float(one) for one in self.before)
        for name, values in (("per_tilt", (float(self.per_tilt),)), ("before", given)):
            if not all(0 <= value < math.inf for value in values):
                raise ValueError(f"expected finite exposures of 0 or more for `{name}`, got {getattr(self, name)!r}")
        if not math.isfinite(self.start):
            raise ValueError(f"expected `start` in degrees, got {self.start!r}")
        if self.before is not None:
            object.__setattr__(self, "before", given)

    @classmethod
    def from_metadata(cls, metadata: TiltMetadata, **settings: Any) -> Self:
        """Take the exposures, and the voltage where it is known, from the values that a program wrote for each tilt.

        Parameters
        ----------
        metadata
            The metadata of a series, see `TiltSeries.metadata`.
        **settings
            Parameters that replace those of the metadata. By default `per_tilt` is the median step of the exposures.

        Raises
        ------
        ValueError
            If the metadata lack the exposure of a tilt.
        """
        exposure = metadata.exposure
        if exposure is None or not np.isfinite(exposure).all():
            raise ValueError(f"{metadata.source}: expected an exposure of each tilt, got none for some; set `before`")
        steps = np.diff(np.sort(exposure))
        known: dict[str, Any] = {
            "before": tuple(exposure.tolist()),
            "per_tilt": float(np.median(steps)) if steps.size else 0.0,
        }
        if metadata.voltage_kv is not None:
            known["voltage"] = metadata.voltage_kv
        return cls(**(known | settings))

    def accumulated(self, tilt_angles: Angles) -> FloatArray:
        """Return the exposure N of each tilt, `(tilt,)`, e⁻/Å².

        Parameters
        ----------
        tilt_angles
            `(tilt,)`, degrees.

        Raises
        ------
        ValueError
            If `before` does not have one number for each tilt.
        """
        angles = as_tilt_angles(tilt_angles)
        if self.before is None:
            result = np.empty(len(angles))
            result[acquisition_order(angles, self.order, start=self.start)] = np.arange(len(angles)) + 0.5
            return result * self.per_tilt
        if len(self.before) != len(angles):
            raise ValueError(f"expected `before` of {len(angles)} tilts, got {len(self.before)} numbers")
        return np.asarray(self.before) + self.per_tilt / 2

    def critical(self, frequencies: Tensor | FloatArray) -> Tensor:
        """Compute the critical exposure, e⁻/Å², at frequencies in 1/Å of any shape; infinite at 0."""
        q = as_float64(frequencies)
        factor, power, constant = CRITICAL
        result: Tensor = (factor * q**power + constant) * VOLTAGES[self.voltage]
        return result

    def factor(self, frequencies: Tensor | FloatArray, exposure: float) -> Tensor:
        """Compute the share of the amplitude that is left.

        Parameters
        ----------
        frequencies
            1/Å, any shape.
        exposure
            N, e⁻/Å².

        Returns
        -------
        The share in the shape of the frequencies, float64; 1 at frequency 0.
        """
        return torch.exp(-exposure * self.rate(frequencies))

    def rate(self, frequencies: Tensor | FloatArray) -> Tensor:
        """Compute how much the logarithm of the amplitude falls with each e⁻/Å², `1 / (2 N_c)`; 0 at frequency 0."""
        return 0.5 / self.critical(frequencies)


def acquisition_order(tilt_angles: Angles, order: str = ORDER, *, start: float = START) -> IntArray:
    """Return the order in which the tilts of a series are recorded.

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees, in any order.
    order
        `"dose-symmetric"`: from the start to both sides, two tilts at a time: 0, +3, −3, −6, +6, +9, −9, −12, ...
        `"bidirectional"`: from the start up to the highest angle, then from below the start down to the lowest angle.
        `"ascending"`: from the lowest angle to the highest.
    start
        Degrees; the tilt nearest to it is the first one. `"ascending"` does not use it.

    Returns
    -------
    `(tilt,)`, the index of the tilt that is recorded first, second, ...

    References
    ----------
    Hagen, Wan and Briggs, Implementation of a cryo-electron tomography tilt-scheme optimized for high resolution
    subtomogram averaging, J. Struct. Biol. 197 (2017), 191-198.
    """
    check_choice("order", order, ORDERS)
    angles = as_tilt_angles(tilt_angles)
    rising = np.argsort(angles, kind="stable").astype(np.int64)
    if order == "ascending":
        return rising
    first = int(np.argmin(np.abs(angles[rising] - start)))
    up, down = rising[first:], rising[:first][::-1]
    if order == "bidirectional":
        return np.concatenate([up, down])
    # A side that has come to its end is left out.
    turns = [side[i : i + _GROUP] for i in range(0, len(rising), _GROUP) for side in (up, down)]
    return np.concatenate(turns)
