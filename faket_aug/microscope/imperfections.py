"""Imperfections of a simulated microscope: misaligned tilts, radiation damage, and the transfer of the detector."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import check_ndim, check_positive
from faket_aug.geometry import Angles
from faket_aug.microscope.damage import ExposureDamage
from faket_aug.microscope.detector import Detector
from faket_aug.microscope.misalignment import Misalignment, TiltErrors, misalign, true_tilt_angles
from faket_aug.tomography.filters import PaddedGrid

_KINDS = {"misalignment": Misalignment, "damage": ExposureDamage, "detector": Detector}
#: Distances over which damage (Å) and detector (pixels) spread a point.
_DAMAGE_REACH, _DETECTOR_REACH = 100.0, 16


@dataclass(frozen=True, kw_only=True)
class Imperfections:
    """Imperfections of a simulated microscope. What is not given is perfect.

    Parameters
    ----------
    misalignment
        Errors of the alignment, drawn for each tomogram.
    damage
        Signal that the specimen has lost at each tilt by the exposure before it.
    detector
        Modulation transfer function of the detector, which also gives the spectrum of the noise.

    Notes
    -----
    White noise scales the signal of each tilt to the correlation of its curves. So, with white noise, damage and
    detector change the spectrum of the signal, but not its total power.
    """

    misalignment: Misalignment | None = None
    damage: ExposureDamage | None = None
    detector: Detector | None = None

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"expected `{name}` to be of the kind {kind.__name__}, got {value!r}")

    def __bool__(self) -> bool:
        """Whether anything is imperfect."""
        return any(getattr(self, name) is not None for name in _KINDS)

    def check_tilts(self, tilt_angles: Angles) -> None:
        """Raise a `ValueError` if the damage has exposures for another number of tilts."""
        if self.damage is not None:
            self.damage.accumulated(tilt_angles)

    def check_fixed_angles(self) -> None:
        """Raise a `ValueError` if the tilt angles have errors; a specimen that comes as tilts cannot have them."""
        if self.misalignment is not None and self.misalignment.tilts_differ:
            raise ValueError(
                "expected a misalignment without errors of the tilt angle, got some: this specimen is projected "
                "already, at fixed angles; set `tilt_angle` and `tilt_angle_offset` of the misalignment to 0"
            )

    def drawn(self, count: int, generator: np.random.Generator) -> TiltErrors:
        """Draw the errors of `count` tilts, see `Misalignment.drawn`; empty without a misalignment."""
        return () if self.misalignment is None else self.misalignment.drawn(count, generator)

    def true_tilt_angles(self, tilt_angles: Angles, errors: TiltErrors) -> tuple[Angles, bool]:
        """Return the angles at which the specimen is projected, and whether they are the nominal ones."""
        if self.misalignment is None or not self.misalignment.tilts_differ:
            return tilt_angles, True
        return true_tilt_angles(tilt_angles, errors), False

    def apply(self, images: Tensor, pixel_size: float, tilt_angles: Angles, errors: TiltErrors) -> Tensor:
        """Rotate and shift clean tilts, then apply radiation damage and the transfer of the detector.

        A contrast transfer function commutes with these steps: it may be applied before or after them.

        Parameters
        ----------
        images
            `(tilt, y, x)`, floating point, clean projections at the true tilt angles.
        pixel_size
            Å.
        tilt_angles
            `(tilt,)`, degrees, the nominal angles.
        errors
            The errors of the tilts, from `drawn`.

        Returns
        -------
        `(tilt, y, x)` in the images' dtype.

        Raises
        ------
        ValueError
            If the pixel size is not positive, or the number of exposures or of errors is not that of the tilts.
        """
        check_ndim("images", images, "tilt y x")
        if not self:
            return images
        check_positive("pixel_size", pixel_size)
        if self.misalignment is not None:
            images = misalign(images, errors, pixel_size)
        if self.damage is None and self.detector is None:
            return images
        return self._weakened(images, pixel_size, tilt_angles)

    def _weakened(self, images: Tensor, pixel_size: float, tilt_angles: Angles) -> Tensor:
        reach = max(math.ceil(_DAMAGE_REACH / pixel_size) if self.damage else 0, _DETECTOR_REACH)
        grid = PaddedGrid((images.shape[-2], images.shape[-1]), reach, images.device)
        transfer = self.detector.curve(grid.radius) if self.detector else torch.ones_like(grid.radius)
        rate = self.damage.rate(grid.radius / pixel_size) if self.damage else torch.zeros_like(grid.radius)
        exposures = self.damage.accumulated(tilt_angles) if self.damage else np.zeros(len(images))
        filtered = [
            grid.filtered(image, transfer * torch.exp(-float(exposure) * rate))
            for image, exposure in zip(images, exposures, strict=True)
        ]
        return torch.stack(filtered)

    def coloured(self, noise: Tensor) -> Tensor:
        """Give white noise `(..., y, x)` the spectrum of the detector's noise, see `Detector.coloured`."""
        return noise if self.detector is None else self.detector.coloured(noise)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters of the imperfections that are given, as JSON types."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {name: own for name, own in data.items() if own is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make the imperfections from the result of `to_dict`, also after a trip through JSON.

        Raises
        ------
        ValueError
            If a parameter is unknown or missing.
        """
        if not isinstance(data, Mapping) or set(data) - set(_KINDS):
            raise ValueError(f"expected imperfections with {', '.join(_KINDS)}, got {data!r}")
        try:
            return cls(**{name: _KINDS[name](**own) for name, own in data.items()})
        except TypeError as error:
            raise ValueError(f"expected the parameters of imperfections, got {data!r}") from error
