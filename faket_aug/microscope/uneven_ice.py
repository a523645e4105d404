"""Ice of uneven thickness: the ranges from which it is drawn for each tomogram, and what was drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from scipy.special import erf
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_count, check_positive, checked_range
from faket_aug.geometry import Angles
from faket_aug.microscope.background import SHORTEST, slow_waves
from faket_aug.microscope.ice_map import ThicknessMap, places

#: The deepest ice, t/Λ: of 1.5 µm, through which no tilt shows anything.
_DEEPEST = 5.0
#: A number, or the lowest and the highest one.
Range = float | tuple[float, float]
#: Å. Points of a map are at most so far apart, ...
_STEP = SHORTEST / 4
#: ... so many of them lie across an edge, ...
_ACROSS = 4
#: ... and there are at most so many along each side.
_MOST = 200
#: Across the tilt axis a map is larger than the image at 0° by this factor: a tilt of 60° sees so much.
_REACH = 2.0
#: Å. Waves are drawn over a plane of at least this size, so that a small image sees a part of one.
_PLANE = 4 * SHORTEST


@dataclass(frozen=True, kw_only=True)
class DrawnIce:
    """What was drawn of the ice of one tomogram; the map is made of it for images of any size.

    Parameters
    ----------
    depth
        Mean t/Λ over the image at 0°.
    wedge, edge, waves
        Shares of the mean, see `UnevenIce`.
    edge_width
        Å.
    wedge_direction, edge_direction
        Degrees from +x, positive towards +y: where the ice is thicker.
    edge_place
        Where the edge crosses the image along its direction, from -0.5 to 0.5 of the image's length.
    seed
        Of the waves.
    """

    depth: float
    wedge: float
    wedge_direction: float
    edge: float
    edge_direction: float
    edge_place: float
    edge_width: float
    waves: float
    seed: int

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"expected a finite number for `{entry.name}` of drawn ice, got {value!r}")
        check_positive("edge_width", self.edge_width)
        check_count("seed", self.seed, zero=True)

    def map(self, extent: Sequence[float]) -> ThicknessMap:
        """Make the map for images of an extent `(y, x)` in Å at 0°."""
        plane = (float(extent[0]), _REACH * float(extent[1]))
        step = min(_STEP, self.edge_width / _ACROSS) if self.edge else _STEP
        # An odd number of cells, so that there is one in the middle.
        count = [min(2 * math.ceil(length / step / 2) + 1, _MOST + 1) for length in plane]
        y, x = (places(length, n) for length, n in zip(plane, count, strict=True))
        relative = 1 + self.wedge * _along(y, x, self.wedge_direction, extent)
        place = (_along(y, x, self.edge_direction, extent) - self.edge_place) * _length(self.edge_direction, extent)
        # From 2 % to 98 % of the step over the width of the edge.
        relative += self.edge / 2 * erf(2.9 * place / self.edge_width)
        relative += self._waves(plane, count)
        inside = np.ix_(*(np.abs(p) <= e / 2 for p, e in zip((y, x), extent, strict=True)))
        relative = (relative - relative[inside].mean() + 1).clip(0)
        return ThicknessMap.of(relative * (self.depth / relative[inside].mean()), plane)

    def _waves(self, plane: Sequence[float], count: Sequence[int]) -> FloatArray:
        """Slow random waves at the points of a map, `(y, x)`."""
        if not self.waves:
            return np.zeros(tuple(count))
        sides = [max(length, _PLANE) for length in plane]
        slow = slow_waves(sides)
        # Of all waves of one length the power is in proportion to it: ice changes more over longer distances.
        strength = slow.lengths**1.5 / np.sqrt((slow.lengths**3).sum() / 4)
        # Of a wave with cosines along both sides the mean square is a quarter, along one side a half.
        strength = strength / np.sqrt(np.where(slow.counts == 0, 2.0, 1.0).prod(axis=1))
        amplitudes = self.waves * strength * np.random.default_rng(self.seed).standard_normal(len(strength))
        at = [places(length, n) + side / 2 for length, n, side in zip(plane, count, sides, strict=True)]
        waves: FloatArray = np.zeros(tuple(count))
        for amplitude, (i, j) in zip(amplitudes, slow.counts, strict=True):
            along = [np.cos(np.pi * n * p / side) for n, p, side in zip((i, j), at, sides, strict=True)]
            waves += amplitude * along[0][:, None] * along[1]
        return waves

    def transmission(self, shape: Sequence[int], pixel_size: float, tilt_angles: Angles) -> Tensor:
        """Compute what passes the ice, see `ThicknessMap.transmission`."""
        return self.map([n * pixel_size for n in shape]).transmission(shape, pixel_size, tilt_angles)

    def to_dict(self) -> dict[str, Any]:
        """Return what was drawn as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make drawn ice from the result of `to_dict`.

        Raises
        ------
        ValueError
            If a value is missing, unknown or of another kind.
        """
        try:
            return cls(**data)
        except TypeError as error:
            wanted = ", ".join(f"`{entry.name}`" for entry in fields(cls))
            raise ValueError(f"expected {wanted} of drawn ice, got {str(data)[:80]}") from error


@dataclass(frozen=True, kw_only=True)
class UnevenIce:
    """Ice whose thickness varies over the image: from what its maps are drawn, one for each tomogram.

    A range is a number, or a pair (lowest, highest). The defaults look like the ice around cells on a grid.

    Parameters
    ----------
    depth
        Range of the mean thickness at 0°, over the mean free path of the electrons (t/Λ): 0.7 is ice of 200 nm with a
        mean free path of 300 nm.
    wedge
        Range of the change of the thickness from one side of the image to the other, in a random direction, as a share
        of the mean.
    edge
        Range of a step of the thickness, as at the edge of a cell, at a random place and in a random direction, as a
        share of the mean.
    edge_width
        Range of the distance over which the step falls, Å.
    waves
        Range of the standard deviation of slow random waves, as a share of the mean. None is shorter than 100 nm.

    Raises
    ------
    ValueError
        If a number is out of its range. A wedge and an edge are at most 2, where the ice ends at one side of the image.
    """

    depth: Range = (0.4, 1.0)
    wedge: Range = (0.0, 0.3)
    edge: Range = (0.0, 0.4)
    edge_width: Range = (1000.0, 3000.0)
    waves: Range = (0.0, 0.1)

    def __post_init__(self) -> None:
        for entry in fields(self):
            low, high = self._pair(entry.name)
            check_positive(entry.name, low, zero=entry.name not in ("depth", "edge_width"))
            if entry.name == "depth" and high > _DEEPEST:
                raise ValueError(
                    f"expected `depth` of at most {_DEEPEST:g}, got {high:g}; it is the thickness over the mean free "
                    "path of the electrons, some 300 nm, not a length"
                )
            if entry.name in ("wedge", "edge", "waves") and high > 2:
                raise ValueError(f"expected `{entry.name}` to be at most 2, a share of the mean, got {high:g}")
            object.__setattr__(self, entry.name, (low, high))

    def _pair(self, name: str) -> tuple[float, float]:
        return checked_range(name, getattr(self, name))

    def drawn(self, generator: np.random.Generator) -> DrawnIce:
        """Draw the ice of one tomogram. As many numbers are drawn whatever the ranges are."""
        at = generator.uniform(size=len(fields(self)))
        values = {
            entry.name: low + float(share) * (high - low)
            for entry, share in zip(fields(self), at, strict=True)
            for low, high in [self._pair(entry.name)]
        }
        wedge_direction, edge_direction = (float(value) for value in generator.uniform(0, 360, size=2))
        return DrawnIce(
            **values,
            wedge_direction=wedge_direction,
            edge_direction=edge_direction,
            edge_place=float(generator.uniform(-0.5, 0.5)),
            seed=int(generator.integers(2**32)),
        )

    def draw(self, extent: Sequence[float], generator: np.random.Generator) -> ThicknessMap:
        """Draw the map of one tomogram.

        Parameters
        ----------
        extent
            `(y, x)`, Å, of the image at 0°. The map is twice as wide, for high tilts.
        generator
            Of the chance.
        """
        return self.drawn(generator).map(extent)

    def to_dict(self) -> dict[str, Any]:
        """Return the ranges as JSON types."""
        return {entry.name: list(self._pair(entry.name)) for entry in fields(self)}


def ice_from_dict(data: Mapping[str, Any]) -> ThicknessMap | DrawnIce:
    """Make a map, or drawn ice, from the result of its `to_dict`.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"expected a map of ice, got {data!r:.80}")
    return DrawnIce.from_dict(data) if "seed" in data else ThicknessMap.from_dict(data)


def _length(direction: float, extent: Sequence[float]) -> float:
    """How long an image `(y, x)` is in a direction, from corner to corner, Å."""
    angle = math.radians(direction)
    return abs(math.sin(angle)) * extent[0] + abs(math.cos(angle)) * extent[1]


def _along(y: FloatArray, x: FloatArray, direction: float, extent: Sequence[float]) -> FloatArray:
    """How far points `(y, x)` lie in a direction, from -0.5 to 0.5 within the image."""
    angle = math.radians(direction)
    distance: FloatArray = math.sin(angle) * y[:, None] + math.cos(angle) * x
    return distance / _length(direction, extent)
