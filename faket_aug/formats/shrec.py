"""SHREC's text files: particle locations and class names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from faket_aug._checks import FileFormatError, check_choice
from faket_aug.formats._atomic import write_text
from faket_aug.formats._text import as_number, as_whole, lines, shortened
from faket_aug.formats.particles import ParticleList, check_words, check_writable, checked_positions, checked_turns
from faket_aug.geometry import zxz_angles, zxz_matrices

#: What the six numbers of a row mean, by the year of the data set. SHREC 2020 has 2021's rows.
LAYOUTS = {"2021": "name x y z Z1 X Z2", "2019": "name z y x r1 r2 r3"}

#: The class numbers of SHREC 2019, whose folders hold no table of them; from the challenge's evaluation script.
_SHREC_2019 = ("1bxn", "1qvr", "1s3x", "1u6g", "2cg9", "3cf3", "3d2f", "3gl1", "3h84", "3qm1", "4b4t", "4d8q")
SHREC_2019_CLASSES = dict(enumerate(_SHREC_2019, start=1))


def read_particle_locations(path: str | Path, *, layout: str = "2021") -> ParticleList:
    """Read SHREC's `particle_locations.txt`.

    Parameters
    ----------
    path
        The file.
    layout
        `"2021"`, also for SHREC 2020: `name x y z Z1 X Z2`, degrees, intrinsic ZXZ. `NaN NaN NaN` stands for no
        orientation (fiducials, vesicles); angles left out read the same. `"2019"`: `name z y x r1 r2 r3`, where the
        order of the coordinates is the only thing told by the challenge's own scripts: what the three angles, rounded
        to whole degrees, turn about is not known, so particles of 2019 are read without orientation. The rows alone
        do not tell the two apart; `GrandModel.from_shrec` sees it by the other files of the folder.

    Raises
    ------
    FileFormatError
        If a row has another number of columns or no numbers; the message names file and line.

    References
    ----------
    SHREC 2019's example and evaluation scripts read `pdb_id, Z, Y, X, rot_1, rot_2, rot_3`, z counted within the 200
    sections of the ground truth.
    """
    check_choice("layout", layout, LAYOUTS)
    path = Path(path)
    names, rows = [], []
    for number, line in lines(path, "SHREC's particle locations"):
        words = line.split()
        values = [as_number(word) for word in words[1:]]
        # A NaN in the place of an angle stands for none.
        known = [v for v, word in zip(values, words[1:], strict=True) if word.lower() != "nan"]
        if len(values) not in (3, 6) or np.isnan(known).any():
            raise FileFormatError(f"{path}, line {number}: expected `{LAYOUTS[layout]}`, got {shortened(line)!r}")
        names.append(words[0])
        rows.append(values if len(values) == 6 else [*values, np.nan, np.nan, np.nan])
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    infinite = np.flatnonzero(~np.isfinite(table[:, :3]).all(axis=1))
    if len(infinite):
        raise FileFormatError(
            f"{path}: expected numbers as position, got {table[infinite[0], :3].tolist()} for particle "
            f"{infinite[0] + 1} of {len(table)}; remove it or correct it"
        )
    checked_turns(table[:, 3:], path)
    if layout == "2019":
        places = checked_positions(table[:, :3].copy(), path)
        return ParticleList(tuple(names), places, np.full((len(names), 3, 3), np.nan))
    return ParticleList(tuple(names), checked_positions(table[:, 2::-1].copy(), path), zxz_matrices(table[:, 3:]))


def write_particle_locations(path: str | Path, particles: ParticleList) -> None:
    """Write SHREC 2021's `particle_locations.txt`: `name x y z Z1 X Z2`, degrees, intrinsic ZXZ, or `NaN NaN NaN`.

    Whole coordinates are written as whole numbers, as SHREC's are (many scripts read them so), others with four
    decimals.

    Raises
    ------
    ValueError
        If a name is not one word or a place not finite.
    """
    check_writable(particles)
    angles = zxz_angles(particles.orientations)
    rows = zip(particles.names, particles.positions, angles, strict=True)
    content = [
        " ".join([name, *(_short(number) for number in (x, y, z)), *(_angle(angle) for angle in turns)])
        for name, (z, y, x), turns in rows
    ]
    write_text(path, "".join(line + "\n" for line in content))


def _short(number: float) -> str:
    return f"{number:.0f}" if number == round(number) else f"{number:.4f}"


def _angle(angle: float) -> str:
    return f"{angle:.4f}" if np.isfinite(angle) else "NaN"


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
    classes: dict[int, str] = {}
    for number, line in lines(path, "SHREC's class conversion table"):
        words = line.replace(":", " ").replace(",", " ").split()
        if not words:
            continue
        if len(words) == 2 and words[1].isdigit() and (not words[0].isdigit() or words[0] in classes.values()):
            words = words[::-1]
        if len(words) != 2 or not words[0].isdigit() or as_whole(words[0]) is None:
            raise FileFormatError(f"{path}, line {number}: expected `number name`, got {shortened(line)!r}")
        if int(words[0]) in classes:
            raise FileFormatError(f"{path}, line {number}: expected each class once, got {words[0]} again")
        classes[int(words[0])] = words[1]
    return {number: name for number, name in classes.items() if number != 0}


def write_class_conversion_table(path: str | Path, class_names: Mapping[int, str]) -> None:
    """Write SHREC's `class_conversion_table.txt`: the background as 0, then a number and a name a line.

    Parameters
    ----------
    path
        The file.
    class_names
        Names of the class numbers, which are 1 or more.

    Raises
    ------
    ValueError
        See `check_class_names`.
    """
    check_class_names(class_names)
    rows = {0: "background"} | dict(sorted(class_names.items()))
    write_text(path, "".join(f"{number} {name}\n" for number, name in rows.items()))


def check_class_names(class_names: Mapping[int, str]) -> None:
    """Check that a table of class names can be written and read back.

    Raises
    ------
    ValueError
        If a number is below 1, or a name comes twice (in whatever case), is not one word, or is itself a number.
    """
    check_words(class_names.values(), "class names")
    for number, name in class_names.items():
        if number < 1:
            raise ValueError(f"expected class numbers of 1 or more, got {number} for {name}")
        if name.isdigit():
            raise ValueError(f"expected class names that are not numbers themselves, got {name!r}; rename it")
    if len({name.lower() for name in class_names.values()}) < len(class_names):
        raise ValueError(f"expected each class name once, in whatever case, got {', '.join(class_names.values())}")


def find_class_names(folder: Path) -> dict[int, str]:
    """Read the table of class names in a folder, or in the one above; none where there is no table."""
    for path in (folder / "class_conversion_table.txt", folder.parent / "class_conversion_table.txt"):
        if path.is_file():
            return read_class_conversion_table(path)
    return {}
