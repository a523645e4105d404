"""Templates of particles: a density on a grid, and which voxels of it belong to the particle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import check_finite, check_ndim, check_positive


@dataclass(frozen=True, kw_only=True, eq=False)
class ParticleTemplate:
    """A particle in its reference orientation.

    Parameters
    ----------
    density
        `(z, y, x)`, floating point; electrostatic potential above ice in volts, near 0 at the borders.
    voxel_size
        Å.
    threshold
        A voxel belongs to the particle where its density is above this.
    name
        The class's name, where no other is given.
    symmetry
        Point group in Schoenflies or RELION's notation (`"C1"`, `"D7"`, `"O"`); for the record.
    center
        (z, y, x), the voxel index that a particle's position means; `n // 2` along each axis by default, as RELION's
        and an FFT's.

    Raises
    ------
    ValueError
        If nothing lies above the threshold, or a setting cannot be.
    """

    density: Tensor
    voxel_size: float
    threshold: float
    name: str
    symmetry: str = "C1"
    center: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        check_ndim("density", self.density, "z y x")
        check_positive("voxel_size", self.voxel_size)
        check_finite(self.density, f"{self.name}: density")
        object.__setattr__(self, "density", self.density.to(torch.float32))
        if self.center is None:
            object.__setattr__(self, "center", tuple(float(n // 2) for n in self.density.shape))
        if not bool(self.mask.any()):
            raise ValueError(
                f"{self.name}: expected a density above its threshold {self.threshold:g} somewhere, got at most "
                f"{float(self.density.max()):g}; set `threshold` lower"
            )

    @property
    def mask(self) -> Tensor:
        """`(z, y, x)`, bool: the voxels that belong to the particle."""
        return self.density > self.threshold

    @property
    def radius(self) -> float:
        """Å from the centre to the farthest corner of the mask; this sphere holds the particle however it is turned."""
        inside = np.argwhere(self.mask.cpu().numpy())
        offsets = np.abs(inside - np.array(self.center)) + 0.5
        return float(np.linalg.norm(offsets, axis=1).max()) * self.voxel_size

    @property
    def volume(self) -> float:
        """Å³ of the mask."""
        return float(self.mask.sum()) * self.voxel_size**3
