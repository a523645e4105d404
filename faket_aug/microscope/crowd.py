"""The crowd: whatever else a cell holds, as a random density that all tilts see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_ndim
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.spectra import LINE, LINE_STEP, RINGS, fade

#: Å. Lengths of the random media that add to specimens: particles of a radius from 15 to 180 Å.
LENGTHS = (7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 57.0, 80.0)
#: A specimen with less matter has at most so many times the crowd.
_MOST = 2.0
#: Å. The density is made for a volume that is deeper by this, so that its upper and lower sides are independent.
_MARGIN = 200.0
#: Pixels². Projections lose power by interpolation: measured at many tilts, `exp(-2.7 k²)` within 3 % up to 0.4.
_LOSS = 2.7
#: Frequencies of the table of amplitudes.
_TABLE = 2048
#: Of the half space of frequencies along the tilt axis, so many samples are averaged for what neighbours share.
_SAMPLES = 64
#: At 90° a faded image shows nothing of a box; at least this fraction of the way counts.
_LEAST_SEEN = 0.01


@dataclass(frozen=True, kw_only=True)
class CrowdField:
    """A random density with a radial spectrum: the matter of a cell that specimens do not hold.

    Parameters
    ----------
    frequencies
        `(n,)`, 1/Å, increasing from 0.
    power
        `(n,)`, V² Å³: the spectrum at these frequencies; between them it is linear, beyond them 0. Its integral over
        all frequencies is the variance.
    mean
        Mean potential of the crowd above ice, V. Particles displace it.
    solid
        Potential of matter without any gaps above ice, V: where a specimen has this density, there is no crowd. Without
        it (0), the crowd is added everywhere.
    depth
        Å, how deep matter is; as deep as the specimen where this is deeper, or for 0.
    beyond
        `(n,)`, V² Å³: the spectrum of all matter above and below a specimen that is less deep, where there are no
        particles.
    beside
        Mean potential above ice of the specimens that the crowd was found beside, V, without what is denser than
        `solid`. A specimen with more matter has less crowd, so that all matter is as much as was measured. For 0, each
        specimen has the same crowd.

    Raises
    ------
    ValueError
        If frequencies and powers differ in number, frequencies do not increase, or a number is negative or not finite.
    """

    frequencies: tuple[float, ...]
    power: tuple[float, ...]
    mean: float = 0.0
    solid: float = 0.0
    depth: float = 0.0
    beyond: tuple[float, ...] = ()
    beside: float = 0.0

    def __post_init__(self) -> None:
        counts = {len(self.power), len(self.beyond) or len(self.power)}
        if counts != {len(self.frequencies)} or len(self.power) < 2:
            raise ValueError(
                f"expected the power of a crowd at two frequencies or more, got {len(self.power)} powers"
                f"{f' and {len(self.beyond)} beyond' if self.beyond else ''} at {len(self.frequencies)} frequencies"
            )
        for name in ("frequencies", "power", "mean", "solid", "depth", "beyond", "beside"):
            values = np.atleast_1d(np.asarray(getattr(self, name), dtype=np.float64))
            if not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(f"expected `{name}` of a crowd to be finite and 0 or more, got {values.min():g}")
        if not (np.diff(self.frequencies) > 0).all():
            raise ValueError("expected increasing `frequencies` of a crowd, got others")

    @property
    def std(self) -> float:
        """Standard deviation of the density, V."""
        q = np.asarray(self.frequencies)
        fine = np.linspace(q[0], q[-1], 20 * len(q))
        return float(np.sqrt(np.trapezoid(4 * np.pi * fine**2 * self.spectrum(fine), fine)))

    @property
    def share(self) -> float:
        """Fraction of the volume that the crowd fills, from its mean; 0 if that is not known."""
        return min(self.mean / self.solid, 1.0) if self.solid else 0.0

    def spectrum(self, frequencies: FloatArray) -> FloatArray:
        """Compute the radial spectrum.

        Parameters
        ----------
        frequencies
            1/Å, any shape.

        Returns
        -------
        V² Å³, in the shape of the frequencies.
        """
        result: FloatArray = np.interp(frequencies, self.frequencies, self.power, right=0.0)
        return result

    def sample(self, shape: Sequence[int], voxel_size: float, generator: torch.Generator) -> Tensor:
        """Draw the density.

        Parameters
        ----------
        shape
            `(z, y, x)`, voxels.
        voxel_size
            Å.
        generator
            Of the chance, on the device where the density is made.

        Returns
        -------
        `(z, y, x)`, float32, V, with a mean of 0. It is periodic along y and x.
        """
        white = self._white(shape, voxel_size, generator)
        return self._filtered(white, self.power, voxel_size)[: shape[0]].contiguous()

    def _white(self, shape: Sequence[int], voxel_size: float, generator: torch.Generator) -> Tensor:
        """Draw white noise for a volume, and for the margin below it."""
        depth = shape[0] + math.ceil(_MARGIN / voxel_size)
        return torch.randn((depth, *shape[1:]), generator=generator, device=generator.device)

    def _filtered(self, white: Tensor, power: Sequence[float], voxel_size: float) -> Tensor:
        """Give white noise `(z, y, x)` a spectrum."""
        device, depth = white.device, white.shape[0]
        sides = zip(white.shape, (torch.fft.fftfreq, torch.fft.fftfreq, torch.fft.rfftfreq), strict=True)
        z, y, x = (frequency(n, device=device).square() for n, frequency in sides)
        transform = torch.fft.rfftn(white)
        # Plane by plane: the frequencies of the whole volume would take as much memory as its transform.
        plane = y[:, None] + x
        step = self.frequencies[-1] / (_TABLE - 1)
        wanted = np.interp(np.arange(_TABLE, dtype=np.float64) * step, self.frequencies, power, right=0.0)
        amplitude = np.sqrt(wanted / voxel_size**3)
        table = torch.from_numpy(np.append(amplitude, [0.0, 0.0])).to(device, torch.float32)
        for place in range(depth):
            at = ((plane + z[place]).sqrt() / (voxel_size * step)).clamp_(max=float(_TABLE))
            low = at.long()
            transform[place] *= torch.lerp(table[low], table[low + 1], at - low)
        transform[0, 0, 0] = 0
        field: Tensor = torch.fft.irfftn(transform, s=white.shape)
        return field

    def around(
        self, density: Tensor, voxel_size: float, generator: torch.Generator, *, strength: float = 1.0
    ) -> Tensor:
        """Add the crowd to a specimen, whose particles displace it.

        Parameters
        ----------
        density
            `(z, y, x)`, V above ice.
        voxel_size
            Å.
        generator
            Of the chance, on the density's device.
        strength
            Factor on the crowd's mean and on its standard deviation.

        Returns
        -------
        `(z, y, x)`, float32. The crowd's mean is subtracted: around a particle the density is 0 in the mean. If the
        crowd is deeper than the specimen, so is the result; the specimen is in its middle.
        """
        check_ndim("density", density, "z y x")
        depth, density = density.shape[0], density.to(torch.float32)
        more = math.ceil(max(round(self.depth / voxel_size) - depth, 0) / 2)
        whole = (depth + 2 * more, *density.shape[1:])
        white = self._white(whole, voxel_size, generator)
        left = self._left_by(density)
        field = self._filtered(white, self.power, voxel_size)[more : more + depth].mul_(strength * math.sqrt(left))
        if self.solid:
            field *= (1 - density / self.solid).clamp_(0, 1)
            displaced = strength * left * self.mean * (density / self.solid).clamp(max=1)
            density = torch.where(density > 0, density - displaced, density)
        field += density
        if not more:
            return field.contiguous()
        # From the same numbers, so that nothing shows where one becomes the other.
        result = self._filtered(white, self.beyond or self.power, voxel_size)[: whole[0]].mul_(strength)
        result[more : more + depth] = field
        return result

    def _left_by(self, density: Tensor) -> float:
        """Factor on the amount of the crowd, so that a specimen and its crowd are as much as was measured."""
        if not (self.beside and self.mean and self.solid):
            return 1.0
        return min(max((self.mean + self.beside - mean_matter(density, self.solid)) / self.mean, 0.0), _MOST)

    def to_dict(self) -> dict[str, Any]:
        """Return the crowd as JSON types."""
        data = asdict(self) | {"frequencies": list(self.frequencies), "power": list(self.power)}
        data["beyond"] = list(self.beyond)
        # As files were before crowds had a depth of their own, and knew what they were found beside.
        return {name: value for name, value in data.items() if value or name not in ("depth", "beyond", "beside")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a crowd from the result of `to_dict`.

        Raises
        ------
        ValueError
            If a value is missing, unknown or no number.
        """
        try:
            lists = {name: tuple(float(value) for value in data[name]) for name in ("frequencies", "power")}
            lists["beyond"] = tuple(float(value) for value in data.get("beyond", ()))
            return cls(**(dict(data) | lists))
        except (TypeError, KeyError) as error:
            raise ValueError(
                "expected `frequencies`, `power`, `mean`, `solid`, `depth`, `beyond`, `beside` of a crowd, got "
                f"{data!r}"
            ) from error


def mean_matter(density: Tensor, solid: float) -> float:
    """Compute the mean potential of a density `(z, y, x)` above ice, V, without what is denser than solid matter."""
    return float(density.clamp(0, solid).mean(dtype=torch.float64))


def medium(frequencies: FloatArray, length: float) -> FloatArray:
    """Compute the spectrum of a random medium of a length s (Å) and a variance of 1, in Å³.

    It is correlated over a distance r by `exp(-(r / 2 s)²)`, as particles of one size with a radius of `2.2 s` are at
    resolutions that do not show their shape (Guinier's law).
    """
    result: FloatArray = (4 * np.pi) ** 1.5 * length**3 * np.exp(-((2 * np.pi * length * frequencies) ** 2))
    return result


def interpolation_loss(frequencies: FloatArray) -> FloatArray:
    """Compute what a projection leaves of the power at frequencies in cycles per pixel: it interpolates linearly."""
    result: FloatArray = np.exp(-_LOSS * np.asarray(frequencies) ** 2)
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class CrowdTilts:
    """The power of the projections of random media of variance 1 (V²), as `SeriesSpectra` of clean tilts.

    Parameters
    ----------
    power
        `(medium, tilt, ring)`, V² (voxels of the projections count as 1).
    shared
        `(medium, tilt - 1, ring)`.
    """

    power: FloatArray
    shared: FloatArray

    @classmethod
    def of(
        cls,
        tilt_angles: Angles,
        *,
        pixel_size: float,
        depth: float | FloatArray,
        width: int,
        reach: float | None = None,
    ) -> CrowdTilts:
        """Compute the powers.

        Parameters
        ----------
        tilt_angles
            `(tilt,)`, degrees, increasing.
        pixel_size
            Å, of pixels and voxels.
        depth
            Voxels, how deep the crowd is, or `(ring,)`, at each frequency.
        width
            Pixels of the image across the axis.
        reach
            Voxels: how wide the crowd is across the axis. At high tilts such an image shows its sides. By default it
            goes on beyond the image.
        """
        angles = as_tilt_angles(tilt_angles)
        media = np.stack([medium(RINGS / pixel_size, length) for length in LENGTHS]) / pixel_size**3
        deep = np.broadcast_to(np.asarray(depth, dtype=np.float64), RINGS.shape)
        path = deep * path_factors(angles, float(deep.max()), width, reach)[:, None]
        step = float(np.median(np.diff(angles))) if len(angles) > 1 else LINE_STEP
        line = LINE * min(1.0, LINE_STEP / step)
        common = np.array([_overlap(*pair, deep, width, line) for pair in pairwise(angles)]).reshape(-1, len(RINGS))
        between = np.sqrt(path[1:] * path[:-1])
        return cls(power=media[:, None] * path, shared=media[:, None] * (between * common))


def path_factors(angles: FloatArray, depth: float, width: int, reach: float | None) -> FloatArray:
    """Compute how long the way of the beam through a slab is, over its depth, in the mean over an image; `(tilt,)`.

    Parameters
    ----------
    angles
        `(tilt,)`, degrees.
    depth
        Voxels.
    width
        Pixels of the image across the axis.
    reach
        Voxels: how wide the slab is across the axis; the image is as wide as it. None if it goes on beyond the image.
    """
    factors: FloatArray = 1 / np.cos(np.deg2rad(angles)).clip(0.05)
    if reach is None:
        return factors
    window = fade(width, torch.device("cpu")).numpy().astype(np.float64) ** 2
    place = (np.arange(width) - (width - 1) / 2) * (reach / width)
    height = np.linspace(-0.5, 0.5, _SAMPLES) * depth
    for tilt, theta in enumerate(np.deg2rad(angles)):
        inside = np.abs(place[:, None] - height * np.sin(theta)) <= reach / 2 * abs(np.cos(theta))
        factors[tilt] *= max(float(window @ inside.mean(axis=1) / window.sum()), _LEAST_SEEN)
    return factors


def _overlap(before: float, after: float, depth: FloatArray, width: int, line: float) -> FloatArray:
    """How much the projections of a slab share at two angles, near the Fourier line of the axis; `(ring,)`."""
    across = np.linspace(0, 1, _SAMPLES) * np.minimum(line, np.maximum(RINGS, 1e-9))[:, None]
    one, other = np.deg2rad((before, after))
    middle = (one + other) / 2
    # A point that lies higher moves across the axis from one tilt to the next, ...
    rise = np.sinc(across * (other - one) * depth[:, None] / np.cos(middle))
    # ... and one that lies farther from the axis, too, since tilts are foreshortened.
    window = fade(width, torch.device("cpu")).numpy().astype(np.float64) ** 2
    place = np.arange(width) - (width - 1) / 2
    stretch = across * (np.cos(other) - np.cos(one)) / np.cos(middle)
    side = np.cos(2 * np.pi * stretch[..., None] * place) @ window / window.sum()
    # Points of a ring are not evenly distant from the axis: near its end they are denser.
    weight = 1 / np.sqrt(np.maximum(1 - (across / np.maximum(RINGS, 1e-9)[:, None]) ** 2, 1e-2))
    shared: FloatArray = (rise * side * weight).sum(axis=1) / weight.sum(axis=1)
    return shared
