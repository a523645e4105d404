"""Tilt angles as files hold them: `.tlt`, `.rawtlt`, `.mdoc`, SHREC's `alignment_simulated.txt`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from faket_aug._checks import FileFormatError
from faket_aug.formats._atomic import write_text
from faket_aug.geometry import as_tilt_angles, from_skimage_sign

FloatArray = npt.NDArray[np.float64]


def read_tlt(path: str | Path) -> FloatArray:
    """Read tilt angles, one a line, in degrees (IMOD's `.tlt` and `.rawtlt`), with the sign they have.

    Returns
    -------
    `(tilt,)`, in the order of the file, which is the stack's.

    Raises
    ------
    FileFormatError
        If a line does not begin with a number; the message names file and line.
    """
    return _column(Path(path), 0)


def read_shrec_alignment(path: str | Path) -> FloatArray:
    """Read the angles of SHREC's `alignment_simulated.txt` (third column), **negated**: SHREC has skimage's sign.

    Returns
    -------
    `(tilt,)`, degrees.
    """
    return from_skimage_sign(_column(Path(path), 2))


def read_mdoc(path: str | Path) -> FloatArray:
    """Read the tilt angles of a SerialEM `.mdoc`, ordered by section (`ZValue`).

    Returns
    -------
    `(tilt,)`, degrees.

    Raises
    ------
    FileFormatError
        If the file holds no sections with a tilt angle.
    """
    import mdocfile

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected an .mdoc file, found none at {path}")
    try:
        table = mdocfile.read(path)
        if "ZValue" in table.columns:
            table = table.sort_values("ZValue", kind="stable")
        angles = table["TiltAngle"].to_numpy(dtype=np.float64)
    except Exception as error:
        raise FileFormatError(
            f"{path}: expected an .mdoc with a TiltAngle for every section, got {type(error).__name__}: {error}"
        ) from error
    return _checked(angles, path)


#: Readers of angle files, by the end of the file's name.
READERS: dict[str, Callable[[str | Path], FloatArray]] = {
    ".tlt": read_tlt,
    ".rawtlt": read_tlt,
    ".mdoc": read_mdoc,
    ".txt": read_shrec_alignment,
}
SHREC_ALIGNMENT = "alignment_simulated.txt"


def read_tilt_angles(path: str | Path) -> FloatArray:
    """Read tilt angles from any of the files above, chosen by the end of its name.

    Returns
    -------
    `(tilt,)`, degrees, right-handed about +y, in the order of the file.

    Raises
    ------
    FileFormatError
        If the name ends in none of `.tlt`, `.rawtlt`, `.mdoc`, `.txt`, or the content is wrong.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise FileFormatError(f"{path}: expected a file of angles that ends in {', '.join(READERS)}")
    return READERS[path.suffix](path)


def find_tilt_angles(stack: Path) -> Path:
    """Find the angles that belong to a tilt stack: same stem, or SHREC's file in the same folder.

    `.tlt` (aligned) goes before `.rawtlt`, `.mdoc` and SHREC's.

    Raises
    ------
    FileNotFoundError
        If there are none; the message lists the names looked for.
    """
    stack = stack.with_suffix("") if stack.suffix in (".gz", ".bz2") else stack
    candidates = [
        stack.with_suffix(".tlt"),
        stack.with_suffix(".rawtlt"),
        stack.with_name(stack.name + ".mdoc"),
        stack.with_suffix(".mdoc"),
        stack.with_name(SHREC_ALIGNMENT),
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = ", ".join(candidate.name for candidate in candidates)
    raise FileNotFoundError(
        f"{stack}: expected a file of tilt angles beside it, one of {names}, found none; set `tilt_angles`"
    )


def write_tlt(path: str | Path, tilt_angles: npt.ArrayLike) -> None:
    """Write tilt angles in degrees, one a line."""
    angles = as_tilt_angles(np.asarray(tilt_angles))
    write_text(path, "".join(f"{angle:.4f}\n" for angle in angles))


def _column(path: Path, column: int) -> FloatArray:
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of tilt angles, found none at {path}")
    values = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            values.append(float(words[column]))
        except (ValueError, IndexError):
            raise FileFormatError(
                f"{path}, line {number}: expected a number in column {column + 1}, got {line.strip()!r}"
            ) from None
    return _checked(np.array(values), path)


def _checked(angles: FloatArray, path: Path) -> FloatArray:
    if angles.size == 0:
        raise FileFormatError(f"{path}: expected tilt angles in degrees, got none")
    if not np.isfinite(angles).all() or np.abs(angles).max() > 180:
        raise FileFormatError(f"{path}: expected tilt angles within ±180°, got {angles.tolist()}")
    return angles
