"""IMOD's files of a tilt-series: `.tlt`, `.rawtlt`, `.xf`, `.xtilt`, `.defocus`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError
from faket_aug.formats._text import MAX_COORDINATE, angle_column, lines, numbers
from faket_aug.formats.tilt_metadata import TiltMetadata, defocus_fields
from faket_aug.geometry import half_turn, turns

#: A matrix this near to a rotation is one: the files have seven digits.
ROTATION_TOLERANCE = 1e-5
#: Degrees by which the angles in a `.defocus` file may differ from those of its views, unevenly.
FARTHEST_ANGLE = 10.0
#: What the flags of a `.defocus` file of version 3 mean.
HAS_ASTIGMATISM, ANGLES_IN_RADIANS, HAS_PHASE, PHASES_IN_RADIANS, HAS_CUT_ON = 1, 2, 4, 8, 32


def read_imod(
    tlt: str | Path,
    *,
    xf: str | Path | None = None,
    xtilt: str | Path | None = None,
    defocus: str | Path | None = None,
) -> TiltMetadata:
    """Read what IMOD left behind of one tilt-series.

    Parameters
    ----------
    tlt
        Angles, one a line, in degrees: `.tlt` (aligned) or `.rawtlt`.
    xf
        Transforms, see `read_xf`.
    xtilt
        Turns about x, one a line, in degrees; kept as `x_tilts`.
    defocus
        See `read_defocus`.

    Raises
    ------
    FileFormatError
        If a file is damaged, or they differ in the number of tilts; the message names both files.
    """
    angles = angle_column(tlt, 0)
    metadata = TiltMetadata(sections=np.arange(len(angles)), tilt_angles=angles, source=str(tlt))
    if xf is not None:
        metadata = metadata.filled_from(_as_many(read_xf(xf), metadata))
        metadata = replace(metadata, source=f"{tlt} and {xf}")
    if xtilt is not None:
        turns_about_x = angle_column(xtilt, 0, "turns about x")
        other = TiltMetadata(sections=np.arange(len(turns_about_x)), x_tilts=turns_about_x, source=str(xtilt))
        metadata = replace(metadata, x_tilts=_as_many(other, metadata).x_tilts)
    return metadata if defocus is None else metadata.filled_from(read_defocus(defocus, tilt_angles=angles))


def _as_many(other: TiltMetadata, angles: TiltMetadata) -> TiltMetadata:
    if len(other) != len(angles):
        raise FileFormatError(
            f"{other.source}: expected a line for each of the {len(angles)} tilts of {angles.source}, got {len(other)}"
        )
    return other


def read_xf(path: str | Path) -> TiltMetadata:
    """Read the transforms of an `.xf` file: `A11 A12 A21 A22 DX DY` a line, one line a section.

    They take the measured image to the aligned one, `x' = A11 (x − xc) + A12 (y − yc) + DX + xc` and
    `y' = A21 (x − xc) + A22 (y − yc) + DY + yc`, with the middle of the image (xc, yc) and shifts in its pixels. Here
    they are turned round: the aligned point (x', y) lies at `A⁻¹ ((x', y) − D)` of the measured image.

    Returns
    -------
    Metadata without angles; with `axis_angle`, `shifts` in pixels of the stack that the file belongs to, and `matrices`
    where they are more than rotations.

    Raises
    ------
    FileFormatError
        If a line holds other than six numbers, or a transform that cannot be inverted; the message names file and line.

    References
    ----------
    IMOD 5.0.2, man pages of `xf2rotmagstr` (the equation) and `newstack`.
    """
    path = Path(path)
    rows = []
    for number, line in lines(path, "a file of transforms"):
        row = numbers(line, f"{path}, line {number}", "A11 A12 A21 A22 DX DY", [6])
        if np.abs(row).max() > MAX_COORDINATE:
            raise FileFormatError(
                f"{path}, line {number}: expected shifts in pixels, got {line!r}; the file is damaged"
            )
        if abs(row[0] * row[3] - row[1] * row[2]) < 1e-6:
            raise FileFormatError(f"{path}, line {number}: expected a transform that can be inverted, got {line!r}")
        rows.append(row)
    if not rows:
        raise FileFormatError(f"{path}: expected a transform for each section, got none")
    table = np.array(rows)
    matrices = np.linalg.inv(table[:, :4].reshape(-1, 2, 2))
    shifts = -np.einsum("tij,tj->ti", matrices, table[:, 4:])  # (tilt, (x, y))
    # The axis is what the aligned image's +y came from.
    axis_angle = np.rad2deg(np.arctan2(-matrices[:, 0, 1], matrices[:, 1, 1]))
    rotations = np.abs(matrices - turns(axis_angle)).max() < ROTATION_TOLERANCE
    return TiltMetadata(
        sections=np.arange(len(rows)),
        axis_angle=axis_angle,
        shifts=shifts[:, ::-1].copy(),
        shift_unit="pixel",
        matrices=None if rotations else matrices,
        centre="middle",
        source=str(path),
    )


def read_defocus(path: str | Path, *, tilt_angles: npt.ArrayLike) -> TiltMetadata:
    """Read a `.defocus` file of ctfplotter, versions 1 to 3.

    A line holds the first and last view (from 1), the first and last angle, and the defocus in nm; in version 3, as the
    flags in its first line say, a second defocus, the direction of the first, a phase shift, and a cut-on frequency
    (which is not kept). A line is the value of the view in the middle of its range; between these views the values are
    interpolated, beyond the outermost they stay.

    Parameters
    ----------
    path
        The file.
    tilt_angles
        `(tilt,)`, degrees, in the stack's order. Early files (version 1) number views from 0: these angles tell.

    Raises
    ------
    FileFormatError
        If it is damaged, of another version, or speaks of views that there are not.

    References
    ----------
    IMOD, man page of `ctfphaseflip` (flags), and how that program reads the file: its direction of astigmatism is that
    of CTFFIND (Rohou and Grigorieff, J. Struct. Biol. 192, 2015) for the first of the two defocus values.
    """
    path = Path(path)
    angles = np.asarray(tilt_angles, dtype=np.float64)
    content = list(lines(path, "a file of defocus values"))
    flags, rows, version = _defocus_rows(path, content)
    views = (rows[:, 0] + rows[:, 1]) / 2 - 1
    views += _views_from_zero(rows, angles) if version < 2 else 0
    middle = np.floor(views)
    if middle.min() < 0 or middle.max() >= len(angles):
        raise FileFormatError(
            f"{path}: expected views from 1 to {len(angles)}, as many as tilt angles, got {rows[:, 0].min():.0f} to "
            f"{rows[:, 1].max():.0f}"
        )
    _check_angles(path, rows, views, angles)
    order = np.argsort(middle, kind="stable")
    fields: dict[str, Any] = {
        name: _between(middle[order], values[order], name, len(angles))
        for name, values in _columns(rows, flags).items()
    }
    return TiltMetadata(sections=np.arange(len(angles)), source=str(path), **fields)


_NO_DEFOCUS = (
    "expected lines `first view, last view, first angle, last angle, defocus`, got none; fit the defocus again "
    "(ctfplotter), or leave out the file"
)


def _defocus_rows(path: Path, content: list[tuple[int, str]]) -> tuple[int, FloatArray, int]:
    """Read the flags, the rows without the version number, and the version."""
    if not content:
        raise FileFormatError(f"{path}: {_NO_DEFOCUS}")
    form, (number, line) = "first and last view, first and last angle, and defocus", content[0]
    first = numbers(line, f"{path}, line {number}", form, [5, 6])
    version = int(first[5]) if len(first) == 6 else 1
    if version not in (0, 1, 2, 3):
        raise FileFormatError(f"{path}, line {number}: expected a file of version 1 to 3, got version {version}")
    flags = int(first[0]) if version == 3 else 0
    extra = 2 * bool(flags & HAS_ASTIGMATISM) + bool(flags & HAS_PHASE) + bool(flags & HAS_CUT_ON)
    rows = [] if version == 3 else [first[:5]]
    rows += [numbers(line, f"{path}, line {n}", form, [5 + extra]) for n, line in content[1:]]
    if not rows:
        raise FileFormatError(f"{path}: {_NO_DEFOCUS}")
    return flags, np.array(rows), version


def _views_from_zero(rows: FloatArray, angles: FloatArray) -> int:
    """Tell by how much to raise the views of an early file: by 1 if that brings them to their angles."""

    def miss(raised: int) -> float:
        places = (rows[:, :2] - 1 + raised).T.astype(np.int64)  # (end, row)
        if places.min() < 0 or places.max() >= len(angles):
            return np.inf
        ends = angles[places]
        low, high = rows[:, 2:4].min(axis=1), rows[:, 2:4].max(axis=1)
        return float((np.clip(low - ends, 0, None) + np.clip(ends - high, 0, None)).sum())

    return int(miss(1) < miss(0))


def _check_angles(path: Path, rows: FloatArray, views: FloatArray, angles: FloatArray) -> None:
    """Raise a `FileFormatError` where the angles of a row are not those of its views, but for one offset for all."""
    half = (rows[:, 1] - rows[:, 0]) / 2
    first, last = (np.clip(views + side * half, 0, len(angles) - 1).astype(np.int64) for side in (-1, 1))
    difference = rows[:, 2:4].mean(axis=1) - (angles[first] + angles[last]) / 2
    worst = int(np.abs(difference - np.median(difference)).argmax())
    if np.ptp(difference) > FARTHEST_ANGLE:
        raise FileFormatError(
            f"{path}: expected the angles of its views, got {rows[worst, 2]:g}° to {rows[worst, 3]:g}° for views "
            f"{rows[worst, 0]:.0f} to {rows[worst, 1]:.0f}, which are tilted by {angles[first[worst]]:g}° to "
            f"{angles[last[worst]]:g}°; give the tilt angles in the order of the stack that it was made for"
        )


def _columns(rows: FloatArray, flags: int) -> dict[str, FloatArray]:
    columns = {"defocus_um": rows[:, 4] / 1000}
    if flags & HAS_ASTIGMATISM:
        angle = np.rad2deg(rows[:, 6]) if flags & ANGLES_IN_RADIANS else rows[:, 6]
        columns = defocus_fields(rows[:, 4] / 1000, rows[:, 5] / 1000, angle)
    if flags & HAS_PHASE:
        phase = np.abs(rows[:, 7 if flags & HAS_ASTIGMATISM else 5])
        columns["phase_shift"] = np.rad2deg(phase) if flags & PHASES_IN_RADIANS else phase
    return columns


def _between(views: FloatArray, values: FloatArray, name: str, count: int) -> FloatArray:
    everywhere = np.arange(count)
    if name == "astigmatism_angle":
        # Directions have a period of 180°: twice the angle is interpolated as a point on the circle.
        twice = np.deg2rad(2 * values)
        cos, sin = (np.interp(everywhere, views, part) for part in (np.cos(twice), np.sin(twice)))
        return half_turn(np.rad2deg(np.arctan2(sin, cos)) / 2)
    between: FloatArray = np.interp(everywhere, views, values)
    return between
