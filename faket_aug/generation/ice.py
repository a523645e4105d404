"""The ice that holds a specimen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from faket_aug._arrays import FloatArray, IntArray
from faket_aug.generation.potential import ICE_POTENTIAL
from faket_aug.generation.ranges import Range, as_range, turned_by

#: Vacuum above ice, volts.
VACUUM_DENSITY = -ICE_POTENTIAL


@dataclass(frozen=True, kw_only=True)
class Slab:
    """The ice of one specimen, in voxels: all points p (z, y, x) with `|normal · (p - middle)| <= half`."""

    normal: FloatArray
    middle: FloatArray
    half: float

    @classmethod
    def everywhere(cls, shape: Sequence[int]) -> Slab:
        """Make the slab that fills a specimen."""
        return cls(normal=np.array([1.0, 0.0, 0.0]), middle=(np.array(shape) - 1) / 2, half=shape[0] / 2)

    def height(self, points: FloatArray | IntArray) -> FloatArray:
        """Compute the height of points `(..., 3)` above the middle plane, voxels."""
        return turned_by(points - self.middle, self.normal[:, None])[..., 0]

    def heights(self, shape: Sequence[int]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Compute three arrays whose broadcast sum is the height of each voxel of a volume."""
        axes = [n * (np.arange(size) - m) for n, size, m in zip(self.normal, shape, self.middle, strict=True)]
        return axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]

    def z_range(self, shape: Sequence[int]) -> tuple[float, float]:
        """Find the lowest and the highest z of the ice in a volume."""
        slopes = np.abs(self.normal[1:]) @ (np.array(shape[1:]) - 1) / 2
        reach = (self.half + slopes) / abs(self.normal[0])
        return self.middle[0] - reach, self.middle[0] + reach

    def column(self, shape: Sequence[int], yx: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Find the lowest and the highest z of the ice in columns `(..., 2)` (y, x) of a volume."""
        middle = self.middle[0] - (yx - self.middle[1:]) @ self.normal[1:] / self.normal[0]
        reach = self.half / self.normal[0]
        return np.maximum(middle - reach, 0.0), np.minimum(middle + reach, shape[0] - 1.0)

    def voxels(self, shape: Sequence[int]) -> int:
        """Count the voxels of a volume whose centres lie in the ice."""
        yx = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij"), axis=-1)
        bottom, top = self.column(shape, yx.astype(np.float64))
        return int(np.maximum(np.floor(top + 1e-9) - np.ceil(bottom - 1e-9) + 1, 0).sum())


@dataclass(frozen=True, kw_only=True)
class IceSlab:
    """A slab of ice through the middle of the specimen. Above and below it is vacuum without any particles.

    Parameters
    ----------
    thickness
        Å: a number, or (lowest, highest).
    tilt
        Degrees between the normal of the slab and z: a number, or (lowest, highest), less than 60.
    azimuth
        Direction in which the normal is tilted, degrees from x towards y: a number, or (lowest, highest).
    vacuum_density
        Density of the vacuum, volts above ice. With 0 there is no step in density at the surfaces of the ice.
        `VACUUM_DENSITY` (-4.53) is the physical value. Then also set `extend="wrap"` of the simulator: otherwise
        everything beyond the sides of the specimen counts as ice, and the sides are seen in the tilts.
    """

    thickness: Range
    tilt: Range = 0.0
    azimuth: Range = (0.0, 360.0)
    vacuum_density: float = 0.0

    def __post_init__(self) -> None:
        as_range("thickness", self.thickness)
        as_range("azimuth", self.azimuth, zero=True)
        if as_range("tilt", self.tilt, zero=True)[1] >= 60:
            raise ValueError(f"expected `tilt` of less than 60 degrees, got {self.tilt!r}")

    def draw(self, shape: Sequence[int], voxel_size: float, generator: np.random.Generator | None) -> Slab:
        """Draw a slab; without a generator, take the thinnest and steepest one."""
        (thin, thick), (flat, steep) = as_range("thickness", self.thickness), as_range("tilt", self.tilt, zero=True)
        azimuth = as_range("azimuth", self.azimuth, zero=True)
        if generator is None:
            thickness, tilt, turn = thin, steep, azimuth[0]
        else:
            thickness, tilt, turn = (generator.uniform(*pair) for pair in ((thin, thick), (flat, steep), azimuth))
        t, a = math.radians(tilt), math.radians(turn)
        normal = np.array([math.cos(t), math.sin(t) * math.sin(a), math.sin(t) * math.cos(a)])
        # A voxel is in the ice if its centre is: a slab of n voxels holds n voxels.
        return Slab(normal=normal, middle=(np.array(shape) - 1) / 2, half=thickness / voxel_size / 2)
