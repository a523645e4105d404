"""SHREC's text files: particle locations and class names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from faket_aug._checks import FileFormatError
from faket_aug.formats.particles import ParticleList
from faket_aug.geometry import zxz_matrices


def read_particle_locations(path: str | Path) -> ParticleList:
    """Read SHREC 2020's and 2021's `particle_locations.txt`: `name x y z Z1 X Z2`, degrees, intrinsic ZXZ.

    `NaN NaN NaN` stands for no orientation (fiducials, vesicles); angles left out read the same.

    Raises
    ------
    FileFormatError
        If a row has another number of columns or no numbers; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected SHREC's particle locations, found none at {path}")
    names, rows = [], []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            values = []
        if len(values) not in (3, 6):
            raise FileFormatError(f"{path}, line {number}: expected `name x y z Z1 X Z2`, got {line.strip()!r}")
        names.append(words[0])
        rows.append(values if len(values) == 6 else [*values, np.nan, np.nan, np.nan])
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    if not np.isfinite(table[:, :3]).all():
        raise FileFormatError(f"{path}: expected finite positions, got NaN or infinite ones")
    return ParticleList(tuple(names), table[:, 2::-1].copy(), zxz_matrices(table[:, 3:]))


def read_class_conversion_table(path: str | Path) -> dict[int, str]:
    """Read SHREC's `class_conversion_table.txt`: a number and a name a line, in either order; 0 is the background.

    Returns
    -------
    Class numbers and names, without the background.

    Raises
    ------
    FileFormatError
        If a line is no such pair, or a number comes twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected SHREC's class conversion table, found none at {path}")
    classes: dict[int, str] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        words = line.split("#")[0].replace(":", " ").replace(",", " ").split()
        if not words:
            continue
        if len(words) == 2 and words[1].isdigit() and (not words[0].isdigit() or words[0] in classes.values()):
            words = words[::-1]
        if len(words) != 2 or not words[0].isdigit():
            raise FileFormatError(f"{path}, line {number}: expected `number name`, got {line.strip()!r}")
        if int(words[0]) in classes:
            raise FileFormatError(f"{path}, line {number}: expected each class once, got {words[0]} again")
        classes[int(words[0])] = words[1]
    return {number: name for number, name in classes.items() if number != 0}
