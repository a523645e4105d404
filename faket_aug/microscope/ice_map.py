"""A map of the ice's thickness over the specimen, and what of the electrons passes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_ndim, check_positive
from faket_aug.geometry import Angles, as_tilt_angles, axis_index
from faket_aug.microscope.ice_fit import LEAST_COSINE, fitted_depths


@dataclass(frozen=True, kw_only=True)
class ThicknessMap:
    """The optical depth of the ice over the specimen's plane: thickness over the mean free path of the electrons.

    Parameters
    ----------
    extent
        `(y, x)`, Å, of the map. Its middle is the middle of the specimen, where the tilt axis passes.
    depth
        `(y, x)`, t/Λ at normal incidence, 0 or more, on an even grid: each number is that in the middle of its cell.

    Raises
    ------
    ValueError
        If the rows differ in length, or a number is negative or not finite.
    """

    extent: tuple[float, float]
    depth: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for length in self.extent:
            check_positive("extent", length)
        try:
            depth = np.asarray(self.depth, dtype=np.float64)
        except ValueError as error:
            raise ValueError("expected as many depths in each row of a map of ice, got others") from error
        if depth.ndim != 2 or not depth.size or not np.isfinite(depth).all() or (depth < 0).any():
            raise ValueError(
                "expected finite depths (y, x) of 0 or more for a map of ice, got the shape "
                f"{depth.shape}{f', from {depth.min():g} to {depth.max():g}' if depth.size else ''}"
            )

    @classmethod
    def of(cls, depth: FloatArray, extent: Sequence[float]) -> Self:
        """Make a map of an array `(y, x)` and its extent `(y, x)` in Å; depths are rounded to five digits."""
        rows = tuple(tuple(float(f"{value:.5g}") for value in row) for row in depth)
        return cls(extent=(float(extent[0]), float(extent[1])), depth=rows)

    @classmethod
    def fit(
        cls,
        tilts: Tensor,
        tilt_angles: Angles,
        pixel_size: float,
        *,
        zero: float = 0.0,
        measured: Tensor | None = None,
    ) -> Self | None:
        """Fit the map to measured tilts: one map for all of them, whose intensities fall by Beer's law.

        What changes within tilts gives the map without its mean, in slow cosines. None is shorter than 100 nm, or than
        a fifth of the image where this is more. The exposure of each tilt is free there. The mean follows from the mean
        intensities over `1 / cos θ`, where the exposure is taken to be the same for all tilts.

        Parameters
        ----------
        tilts
            `(tilt, y, x)`, aligned.
        tilt_angles
            `(tilt,)`, degrees.
        pixel_size
            Å.
        zero
            The gray value without electrons.
        measured
            `(tilt, y, x)`, bool, the pixels that count; by default all.

        Returns
        -------
        The map, wider than the image where high tilts see more. None if the intensities do not tell: fewer than four
        tilts, none beyond 35°, or intensities that do not fall with the angle.
        """
        check_ndim("tilts", tilts, "tilt y x")
        check_positive("pixel_size", pixel_size)
        angles = as_tilt_angles(tilt_angles, count=len(tilts))
        found = fitted_depths(tilts, angles, pixel_size, zero=zero, measured=measured)
        return None if found is None else cls.of(*found)

    def transmission(self, shape: Sequence[int], pixel_size: float, tilt_angles: Angles) -> Tensor:
        """Compute the fraction of the electrons that pass the ice, `exp(−t / (Λ cos θ))`.

        The projection is parallel, and the tilt axis is y: a pixel at x beside the axis sees the plane at `x / cos θ`.

        Parameters
        ----------
        shape
            `(y, x)`, pixels of a tilt.
        pixel_size
            Å.
        tilt_angles
            `(tilt,)`, degrees.

        Returns
        -------
        `(tilt, y, x)`, float32, from 0 to 1. Between the points of the map it is smooth; beyond the map, the ice is as
        thick as at its edge.
        """
        height, width = shape
        cosine: FloatArray = np.cos(np.deg2rad(as_tilt_angles(tilt_angles))).clip(LEAST_COSINE)
        depth = np.asarray(self.depth)
        y: FloatArray = (np.arange(height, dtype=np.float64) - (height - 1) / 2) * pixel_size
        x: FloatArray = (np.arange(width, dtype=np.float64) - axis_index(width)) * pixel_size
        rows = _interpolation(y, self.extent[0], depth.shape[0]) @ depth
        result = torch.empty((len(cosine), height, width), dtype=torch.float32, device="cpu")
        for tilt, own in enumerate(cosine.tolist()):
            seen = rows @ _interpolation(x / own, self.extent[1], depth.shape[1]).T
            # The interpolation may swing a little below 0 beside an edge.
            result[tilt] = torch.from_numpy(np.exp(-seen.clip(0) / own))
        return result

    def within(self, extent: Sequence[float]) -> FloatArray:
        """Return the depths of those cells whose middle lies within an extent `(y, x)`, Å, about the middle; any."""
        depth = np.asarray(self.depth)
        kept = [
            np.abs(places(whole, count)) <= max(length, whole / count) / 2 * (1 + 1e-9)
            for whole, count, length in zip(self.extent, depth.shape, extent, strict=True)
        ]
        result: FloatArray = depth[np.ix_(*kept)]
        return result

    def mirrored(self, *, y: bool = False, x: bool = False) -> ThicknessMap:
        """Return the map mirrored along y, along x, or both."""
        rows = self.depth[::-1] if y else self.depth
        return replace(self, depth=tuple(row[::-1] if x else row for row in rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the map as JSON types."""
        return {"extent": list(self.extent), "depth": [list(row) for row in self.depth]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a map from the result of `to_dict`.

        Raises
        ------
        ValueError
            If a value is missing, unknown or of another kind.
        """
        try:
            height, width = (float(value) for value in data["extent"])
            rows = tuple(tuple(float(value) for value in row) for row in data["depth"])
            return cls(**(dict(data) | {"extent": (height, width), "depth": rows}))
        except (TypeError, KeyError) as error:
            raise ValueError(f"expected `extent`, `depth` of a map of ice, got {str(data)[:80]}") from error


def maps_of(entries: Any) -> tuple[ThicknessMap, ...]:
    """Read the maps of a file.

    Raises
    ------
    ValueError
        If they are no list of maps.
    """
    if not isinstance(entries, list):
        raise ValueError(f"expected a list of maps of ice, got {entries!r:.80}")
    return tuple(ThicknessMap.from_dict(entry) for entry in entries)


def places(extent: float, count: int) -> FloatArray:
    """Middles of the cells of a side, Å from its middle."""
    middles: FloatArray = (np.arange(count, dtype=np.float64) + 0.5) * (extent / count) - extent / 2
    return middles


def _interpolation(at: FloatArray, extent: float, count: int) -> FloatArray:
    """Weights `(place, cell)` of a cubic spline through the cells of a side; beyond the outer ones it is constant."""
    if count == 1:
        return np.ones((len(at), 1))
    middles = places(extent, count)
    spline = make_interp_spline(middles, np.eye(count), k=3 if count > 3 else 1)
    weights: FloatArray = spline(at.clip(middles[0], middles[-1]))
    return weights
