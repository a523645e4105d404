"""Surfaces with a known signed distance: around the origin, in voxels, with points as (x, y, z)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from faket_aug._arrays import FloatArray

_NEWTON_STEPS = 6


class Surface(Protocol):
    """A surface with a known signed distance."""

    def distance(self, points: FloatArray) -> FloatArray:
        """Compute the signed distance `(...)` of points `(..., 3)`, positive outside."""

    def draw(self, count: int, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw points, evenly over the area, and their outward normals, both `(count, 3)`."""

    def reach(self, direction: FloatArray) -> float:
        """Compute how far the surface extends along a unit vector `(3,)`."""


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with half axes `(3,)` along x, y and z; equal ones make a sphere."""

    axes: FloatArray

    def distance(self, points: FloatArray) -> FloatArray:
        """Compute the signed distance: exact to rounding within a few voxels of the surface."""
        if np.ptp(self.axes) == 0:
            return np.asarray(np.sqrt((points**2).sum(-1)) - self.axes[0])
        # The nearest point q solves p = q + t q / a², where t follows from |q / a| = 1; its first guess is a sphere's.
        squares = self.axes**2
        level = np.sqrt((points**2 / squares).sum(-1))
        slope = np.sqrt((points**2 / squares**2).sum(-1))
        # Below -min(a²) a solution is not the nearest point, but one on the far side.
        floor = -squares.min() * (1 - 1e-6)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.fmax((level - 1) * (level / slope) ** 2, floor)
            for _ in range(_NEWTON_STEPS):
                parts = (self.axes * points / (t[..., None] + squares)) ** 2
                # Newton's method for 1 / |q / a| = 1, which is almost straight in t.
                total, fall = parts.sum(-1), (parts / (t[..., None] + squares)).sum(-1)
                t = np.fmax(t + total * (np.sqrt(total) - 1) / fall, floor)
        nearest = squares * points / (t[..., None] + squares)
        # Where two sides are equally near, t does not determine the smallest axis; the other two do.
        least = int(self.axes.argmin())
        others = np.delete(nearest / self.axes, least, axis=-1)
        left = self.axes[least] * np.sqrt(np.maximum(1 - (others**2).sum(-1), 0))
        undetermined = ~(np.abs(total - 1) < 1e-6)
        nearest[..., least] = np.where(undetermined, np.copysign(left, points[..., least]), nearest[..., least])
        return np.asarray(np.sign(t) * np.sqrt(((points - nearest) ** 2).sum(-1)))

    def draw(self, count: int, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw points and normals: stretched points of a sphere, kept in proportion to how much their area grew."""
        directions = np.zeros((0, 3))
        while len(directions) < count:
            drawn = generator.normal(size=(2 * count + 8, 3))
            drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
            growth = np.linalg.norm(drawn / self.axes, axis=1) * self.axes.min()
            directions = np.concatenate([directions, drawn[generator.random(len(drawn)) < growth]])
        normals = directions[:count] / self.axes
        return directions[:count] * self.axes, normals / np.linalg.norm(normals, axis=1, keepdims=True)

    def reach(self, direction: FloatArray) -> float:
        """Compute how far the surface extends along a unit vector."""
        return float(np.linalg.norm(self.axes * direction))


@dataclass(frozen=True)
class Toroid:
    """A tube of radius `tube` around a ring of radius `ring` in the (x, y) plane."""

    ring: float
    tube: float

    def distance(self, points: FloatArray) -> FloatArray:
        """Compute the signed distance, exactly."""
        across = np.hypot(points[..., 0], points[..., 1]) - self.ring
        return np.asarray(np.hypot(across, points[..., 2]) - self.tube)

    def draw(self, count: int, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw points and normals; more of them on the outer side of the tube, whose area is larger."""
        angles = np.zeros(0)
        while len(angles) < count:
            drawn = generator.uniform(0, 2 * math.pi, 2 * count + 8)
            share = (self.ring + self.tube * np.cos(drawn)) / (self.ring + self.tube)
            angles = np.concatenate([angles, drawn[generator.random(len(drawn)) < share]])
        around, angles = generator.uniform(0, 2 * math.pi, count), angles[:count]
        out = np.stack([np.cos(around), np.sin(around), np.zeros(count)], axis=1)
        normals = np.cos(angles)[:, None] * out + np.sin(angles)[:, None] * np.array([0.0, 0.0, 1.0])
        return self.ring * out + self.tube * normals, normals

    def reach(self, direction: FloatArray) -> float:
        """Compute how far the surface extends along a unit vector."""
        return float(self.ring * math.hypot(direction[0], direction[1]) + self.tube)


@dataclass(frozen=True)
class Sheet:
    """The (x, y) plane, as far as `half` from the origin; its outward normal is +z."""

    half: float

    def distance(self, points: FloatArray) -> FloatArray:
        """Compute the signed distance, exactly."""
        return np.asarray(points[..., 2])

    def draw(self, count: int, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw points of a square and normals."""
        points = np.zeros((count, 3))
        points[:, :2] = generator.uniform(-self.half, self.half, (count, 2))
        return points, np.tile([0.0, 0.0, 1.0], (count, 1))

    def reach(self, direction: FloatArray) -> float:
        """Return 0: a plane has no end, so it may lie anywhere."""
        return 0.0
