"""The slow background of measured tilts: ice of uneven thickness, the edge of a cell, an uneven beam."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import dctn
from torch import Tensor

from faket_aug._checks import check_ndim, check_positive
from faket_aug.geometry import Angles, as_tilt_angles, nearest_tilts

#: Å. What changes over longer distances is background; the largest particles are far smaller.
SHORTEST = 1000.0


@dataclass(frozen=True, kw_only=True)
class SlowBackground:
    """The slow changes of the gray values of the tilts of one series, without their means.

    Parameters
    ----------
    extent
        `(y, x)`, Å, of the measured images.
    tilt_angles
        `(tilt,)`, degrees.
    waves
        `(tilt, y, x)`: amplitudes, in gray values, of products of cosines with 0, 1, 2 ... half periods along each
        side. The first is 0, since the mean is not part of it.

    Raises
    ------
    ValueError
        If the shapes do not fit together, or a number is not finite.
    """

    extent: tuple[float, float]
    tilt_angles: tuple[float, ...]
    waves: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        for length in self.extent:
            check_positive("extent", length)
        try:
            waves = np.asarray(self.waves, dtype=np.float64)
        except ValueError as error:
            raise ValueError("expected as many waves of a background in each tilt, got others") from error
        if waves.ndim != 3 or len(waves) != len(self.tilt_angles) or not np.isfinite(waves).all():
            raise ValueError(
                f"expected finite waves (tilt, y, x) of {len(self.tilt_angles)} tilts for a background, got the shape "
                f"{waves.shape}"
            )

    @classmethod
    def of(
        cls, tilts: Tensor, tilt_angles: Angles, pixel_size: float, *, measured: Tensor | None = None
    ) -> SlowBackground:
        """Take the background of measured tilts.

        Parameters
        ----------
        tilts
            `(tilt, y, x)`, aligned.
        tilt_angles
            `(tilt,)`, degrees.
        pixel_size
            Å.
        measured
            `(tilt, y, x)`, bool, the pixels that count; by default all.
        """
        check_ndim("tilts", tilts, "tilt y x")
        shape = (int(tilts.shape[-2]), int(tilts.shape[-1]))
        counts = _counts(shape, pixel_size)
        waves = []
        for place, image in enumerate(tilts.to(torch.float64).cpu().numpy()):
            if measured is not None:
                kept = measured[place].cpu().numpy()
                image = np.where(kept, image, image[kept].mean() if kept.any() else 0.0)
            own = dctn(image - image.mean(), norm="forward")[: counts[0], : counts[1]]
            # Both halves of a cosine's spectrum.
            own[1:] *= 2
            own[:, 1:] *= 2
            own[0, 0] = 0
            waves.append(tuple(tuple(float(f"{value:.6g}") for value in row) for row in own))
        angles = tuple(as_tilt_angles(tilt_angles, count=len(tilts)).tolist())
        return cls(extent=(shape[0] * pixel_size, shape[1] * pixel_size), tilt_angles=angles, waves=tuple(waves))

    def put_into(self, tilts: Tensor, tilt_angles: Angles, pixel_size: float) -> Tensor:
        """Give tilts this background in place of their own; their means stay.

        Parameters
        ----------
        tilts
            `(tilt, y, x)`, floating point. A smaller image than the measured one gets its middle.
        tilt_angles
            `(tilt,)`, degrees. A tilt gets the background of the nearest angle.
        pixel_size
            Å.

        Returns
        -------
        `(tilt, y, x)` in the tilts' dtype.
        """
        chosen = nearest_tilts(as_tilt_angles(tilt_angles, count=len(tilts)), np.asarray(self.tilt_angles))
        waves = torch.from_numpy(np.asarray(self.waves)[chosen]).to(tilts.device, torch.float32)
        shape = (int(tilts.shape[-2]), int(tilts.shape[-1]))
        new = [_cosines(n, n * pixel_size, e, w) for n, e, w in zip(shape, self.extent, waves.shape[1:], strict=True)]
        own = SlowPart.of(shape, pixel_size, tilts.device)
        result = torch.empty_like(tilts)
        for place, image in enumerate(tilts):
            values = image.to(torch.float32)
            back = new[0].to(values.device) @ waves[place] @ new[1].to(values.device).T
            result[place] = (values - own(values) + back - back.mean()).to(tilts.dtype)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the background as JSON types."""
        lists = {"extent": list(self.extent), "tilt_angles": list(self.tilt_angles)}
        return asdict(self) | lists | {"waves": [[list(row) for row in tilt] for tilt in self.waves]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a background from the result of `to_dict`.

        Raises
        ------
        ValueError
            If a value is missing, unknown or of another kind.
        """
        try:
            height, width = (float(value) for value in data["extent"])
            lists = {
                "extent": (height, width),
                "tilt_angles": tuple(float(value) for value in data["tilt_angles"]),
                "waves": tuple(tuple(tuple(float(v) for v in row) for row in tilt) for tilt in data["waves"]),
            }
            return cls(**(dict(data) | lists))
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"expected `extent`, `tilt_angles`, `waves` of a background, got {str(data)[:80]}"
            ) from error


@dataclass(frozen=True, eq=False)
class SlowPart:
    """What changes over more than `SHORTEST` in images of one size: a projection onto slow cosines.

    Parameters
    ----------
    y, x
        `(pixel, wave)`, orthonormal.
    """

    y: Tensor
    x: Tensor

    @classmethod
    def of(cls, shape: tuple[int, int], pixel_size: float, device: torch.device) -> Self:
        """Make it for images of a shape `(y, x)`, with pixels in Å."""
        sides = [
            _cosines(n, n * pixel_size, n * pixel_size, w)
            for n, w in zip(shape, _counts(shape, pixel_size), strict=True)
        ]
        return cls(*(torch.linalg.qr(side.to(device))[0] for side in sides))

    def __call__(self, image: Tensor) -> Tensor:
        """Return the slow part of an image `(y, x)`, float32, without its mean."""
        slow: Tensor = self.y @ (self.y.T @ (image - image.mean()) @ self.x) @ self.x.T
        return slow


@dataclass(frozen=True, eq=False)
class SlowWaves:
    """Products of cosines over a plane, none shorter than `SHORTEST`, but for the constant one.

    Parameters
    ----------
    counts
        `(wave, 2)`: half periods along y and x.
    lengths
        `(wave,)`, Å: the length of each wave.
    """

    counts: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.float64]


def slow_waves(extent: Sequence[float], shortest: float = SHORTEST) -> SlowWaves:
    """List the slow waves over a plane of an extent `(y, x)`, Å, or those of another least length."""
    sides = [np.arange(math.floor(2 * length / shortest) + 1, dtype=np.float64) for length in extent]
    counts = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)[1:]
    lengths = 2 / np.hypot(*(counts / np.asarray(extent)).T)
    slow = lengths >= shortest
    return SlowWaves(counts[slow], lengths[slow])


def _counts(shape: Sequence[int], pixel_size: float) -> tuple[int, int]:
    """How many cosines there are along y and x: their periods are at least `SHORTEST`."""
    y, x = (math.floor(2 * n * pixel_size / SHORTEST) + 1 for n in shape)
    return y, x


def _cosines(count: int, length: float, extent: float, waves: int) -> Tensor:
    """Cosines with 0, 1 ... half periods over `extent`, at the pixels of a side in its middle; `(pixel, wave)`."""
    place = (np.arange(count) + 0.5) * (length / count) + (extent - length) / 2
    table = np.cos(np.pi * np.arange(waves) * place[:, None] / extent)
    return torch.from_numpy(table).to(torch.float32)
