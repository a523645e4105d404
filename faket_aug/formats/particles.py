"""What every format of particle lists is read into and written from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

    @property
    def oriented(self) -> npt.NDArray[np.bool_]:
        """`(n,)`, whether a particle's orientation is known."""
        return np.asarray(np.isfinite(self.orientations).all(axis=(1, 2)))


def check_words(names: Iterable[str], what: str) -> None:
    """Raise a `ValueError` unless each of `names` can stand as one word in a text file."""
    for name in names:
        if not name or name.split() != [name] or any(mark in name for mark in "#'\""):
            raise ValueError(f"expected {what} without spaces, quotes and #, got {name!r}; rename it")


def check_writable(particles: ParticleList) -> None:
    """Raise a `ValueError` unless all places are finite and all names are words."""
    check_words(particles.names, "class names")
    if not np.isfinite(particles.positions).all():
        row = int(np.argmin(np.isfinite(particles.positions).all(axis=1)))
        raise ValueError(f"expected finite places, got {particles.positions[row].tolist()} for particle {row + 1}")


def numbers_of(names: Iterable[str], class_numbers: Mapping[str, int]) -> list[int]:
    """Look up the class numbers of class names.

    Raises
    ------
    ValueError
        If a name has no number.
    """
    names = list(names)
    unknown = sorted(set(names) - set(class_numbers))
    if unknown:
        raise ValueError(
            f"expected class names of `class_numbers` ({', '.join(class_numbers) or 'none'}), got {', '.join(unknown)}"
        )
    return [int(class_numbers[name]) for name in names]
