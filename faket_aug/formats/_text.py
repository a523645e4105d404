"""Text files of the field: lines, columns of numbers, and the tables of STAR files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError


def lines(path: str | Path, what: str) -> Iterator[tuple[int, str]]:
    """Read the lines of a text file that hold more than a comment, without it, with their numbers from 1."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected {what}, found none at {path}")
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if content := line.split("#")[0].strip():
            yield number, content


def numbers(line: str, where: str, expected: str, counts: Sequence[int]) -> list[float]:
    """Read a line of finite numbers, as many as one of `counts`; `where` is the file and line for the message."""
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = []
    if len(values) not in counts or not np.isfinite(values).all():
        raise FileFormatError(f"{where}: expected {expected}, got {line!r}")
    return values


def angle_column(path: str | Path, column: int, what: str = "tilt angles") -> FloatArray:
    """Read a column, from 0, of angles in degrees; what else stands in a line is left alone."""
    path = Path(path)
    values = []
    for number, line in lines(path, f"a file of {what}"):
        try:
            values.append(float(line.split()[column]))
        except (ValueError, IndexError):
            raise FileFormatError(
                f"{path}, line {number}: expected a number in column {column + 1}, got {line!r}"
            ) from None
    return checked_angles(np.array(values), path, what)


def checked_angles(angles: FloatArray, path: Path, what: str = "tilt angles") -> FloatArray:
    """Raise a `FileFormatError` unless there are angles, and finite ones within ±180°."""
    if angles.size == 0:
        raise FileFormatError(f"{path}: expected {what} in degrees, got none")
    if not np.isfinite(angles).all() or np.abs(angles).max() > 180:
        raise FileFormatError(f"{path}: expected {what} within ±180°, got {angles.tolist()}")
    return angles


def star_tables(path: str | Path) -> dict[str, dict[str, list[str]]]:
    """Read the tables of a STAR file, by the name of their block: a list of words for each column.

    Raises
    ------
    FileFormatError
        If it is no STAR file or damaged; the message names file and line.
    """
    import gemmi

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a STAR file, found none at {path}")
    try:
        document = gemmi.cif.read(str(path))
    except (ValueError, RuntimeError, OSError) as error:
        raise FileFormatError(f"{path}: expected a STAR file, got a damaged one ({error})") from error
    return {block.name.strip(): _star_columns(block) for block in document}


def _star_columns(block: Any) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {}
    for item in block:
        if item.loop is not None:
            table = block.find(list(item.loop.tags))
            columns |= {tag[1:]: [row.str(i) for row in table] for i, tag in enumerate(item.loop.tags)}
        elif item.pair is not None:
            columns[item.pair[0][1:]] = [item.pair[1]]
    return columns


def star_numbers(table: Mapping[str, Sequence[str]], name: str, path: Path) -> FloatArray | None:
    """Read a column of numbers of a STAR file's table; None where it has no such column."""
    if name not in table:
        return None
    try:
        return np.array([float(word) for word in table[name]])
    except ValueError:
        raise FileFormatError(f"{path}: expected numbers in column _{name}, got {list(table[name])[:3]} ...") from None
