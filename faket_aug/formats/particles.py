"""What every format of particle lists is read into and written from, and plain tables of particles."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from faket_aug._checks import FileFormatError
from faket_aug.formats._text import MAX_COORDINATE, MAX_DIRECTION, as_number, read_text, shortened
from faket_aug.geometry import relion_matrices

#: Columns of a plain table of particles: what each needs, and what a row may have besides.
CSV_COLUMNS = ("class", "x", "y", "z")
CSV_ANGLES = ("rot", "tilt", "psi")


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
    scores
        `(n,)`, how certain each particle is, the higher the more; `None` where nothing is said.

    Raises
    ------
    ValueError
        If the shapes do not go together.
    """

    names: tuple[str, ...]
    positions: npt.NDArray[np.float64]
    orientations: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        count = len(self.names)
        shapes = (self.positions.shape, self.orientations.shape)
        if shapes != ((count, 3), (count, 3, 3)):
            raise ValueError(f"expected places and orientations of {count} particles, got arrays of {shapes}")
        if self.scores is not None and self.scores.shape != (count,):
            raise ValueError(f"expected scores of {count} particles, got an array of {self.scores.shape}")

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


def match_names(names: Iterable[str], class_names: Mapping[int, str]) -> dict[str, int]:
    """Find the class numbers of names: of the same name, else of the only one that differs in case.

    Returns
    -------
    Class numbers by name; names without one are left out.
    """
    exact = {name: number for number, name in class_names.items()}
    folded: dict[str, list[int]] = {}
    for number, name in class_names.items():
        folded.setdefault(name.lower(), []).append(number)
    found = {}
    for name in names:
        alike = [exact[name]] if name in exact else folded.get(name.lower(), [])
        if len(alike) == 1:
            found[name] = alike[0]
    return found


def checked_positions(positions: npt.NDArray[np.float64], where: str | Path) -> npt.NDArray[np.float64]:
    """Raise a `FileFormatError` unless positions `(n, 3)`, (z, y, x) in voxels, are ones that can be."""
    beyond = np.flatnonzero(~(np.abs(positions) <= MAX_COORDINATE).all(axis=1))
    if len(beyond):
        row = int(beyond[0])
        raise FileFormatError(
            f"{where}: expected positions within ±{MAX_COORDINATE:g}, got {positions[row].tolist()} (z, y, x) for "
            f"particle {row + 1}; the file is damaged, or its unit another"
        )
    return positions


def checked_turns(angles: npt.NDArray[np.float64], where: str | Path) -> npt.NDArray[np.float64]:
    """Raise a `FileFormatError` unless Euler angles `(n, 3)`, degrees, are ones that can be; NaN stands for none."""
    beyond = np.flatnonzero((np.abs(angles) > MAX_DIRECTION).any(axis=1))
    if len(beyond):
        row = int(beyond[0])
        raise FileFormatError(
            f"{where}: expected Euler angles within ±{MAX_DIRECTION:g}°, got {angles[row].tolist()} for particle "
            f"{row + 1}; the file is damaged"
        )
    return angles


def read_particles_csv(path: str | Path) -> ParticleList:
    """Read a plain table of particles, separated by commas, semicolons or tabs.

    The first line names the columns, in any order and case: `class` (a name or number), `x`, `y`, `z` (voxels, 0-based)
    and, where orientations are known, RELION's `rot`, `tilt`, `psi` in degrees, empty for particles without.

    Raises
    ------
    FileFormatError
        If a column is missing or unknown, or a row holds what is no number; the message names file and line.
    """
    path = Path(path)
    lines = read_text(path, "a table of particles").splitlines()
    separator = next((mark for mark in "\t;," if lines and mark in lines[0]), ",")
    table = csv.reader(lines, delimiter=separator)
    header = [name.strip().lower() for name in next(table, [])]
    if set(header) not in (set(CSV_COLUMNS), {*CSV_COLUMNS, *CSV_ANGLES}) or len(set(header)) != len(header):
        raise FileFormatError(
            f"{path}: expected the columns {', '.join(CSV_COLUMNS)} and, for orientations, {', '.join(CSV_ANGLES)}, "
            f"got {shortened(', '.join(header)) or 'none'}"
        )
    names, numbers = [], []
    try:
        for words in table:
            if any(words):
                names.append(words[header.index("class")].strip() if len(words) == len(header) else "")
                numbers.append(_csv_row(words, header, f"{path}, line {table.line_num}", separator))
    except csv.Error as error:
        raise FileFormatError(f"{path}, line {table.line_num}: expected a row of a table, got {error}") from None
    values = np.array(numbers, dtype=np.float64).reshape(-1, 6)
    places, turns = checked_positions(values[:, :3].copy(), path), checked_turns(values[:, 3:], path)
    return ParticleList(tuple(names), places, relion_matrices(turns))


def _csv_row(words: list[str], header: list[str], where: str, separator: str) -> list[float]:
    """Read a row's position (z, y, x) and its three angles, NaN where there are none."""
    row = dict(zip(header, words, strict=False))
    place = [as_number(row.get(name, "")) for name in ("z", "y", "x")]
    given = [row.get(name, "").strip() for name in CSV_ANGLES]
    turn = [as_number(word) for word in given]
    # Angles are all there, or none of them is.
    whole = not any(given) or not np.isnan(turn).any() or {word.lower() for word in given} == {"nan"}
    if len(words) != len(header) or np.isnan(place).any() or not whole:
        raise FileFormatError(f"{where}: expected {', '.join(header)}, got {shortened(separator.join(words))!r}")
    return [*place, *turn]
