"""What every format of particle lists is read into and written from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ParticleList:
    """Particles of one tomogram, as their class names, places and orientations.

    Parameters
    ----------
    names
        `(n,)`, class names.
    positions
        `(n, 3)`, **(z, y, x)** in voxels, 0-based, a voxel's centre at its integer index. Every format's own order,
        unit and origin stay at its own border.
    orientations
        `(n, 3, 3)`, rotation matrices on column vectors (x, y, z), template to specimen; NaN without orientation.

    Raises
    ------
    ValueError
        If the shapes do not go together.
    """

    names: tuple[str, ...]
    positions: npt.NDArray[np.float64]
    orientations: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.names)
        shapes = (self.positions.shape, self.orientations.shape)
        if shapes != ((count, 3), (count, 3, 3)):
            raise ValueError(f"expected places and orientations of {count} particles, got arrays of {shapes}")

    def __len__(self) -> int:
        return len(self.names)
