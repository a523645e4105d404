"""Tilt angles as files hold them: `.tlt`, `.rawtlt`, `.mdoc`, SHREC's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError
from faket_aug.formats._atomic import write_text
from faket_aug.formats._text import angle_column, lines, numbers
from faket_aug.formats.serialem import read_serialem
from faket_aug.formats.tilt_metadata import TiltMetadata, defocus_fields
from faket_aug.geometry import as_tilt_angles, from_skimage_sign

SHREC_ALIGNMENT = "alignment_simulated.txt"
#: Two shifts, the angle, a turn, a magnification and a file's name.
SHREC_COLUMNS = 6
#: Columns of `simulation_meta.txt`.
SIMULATION_COLUMNS = (
    *("DefocusU_um", "DefocusV_um", "DefocusAngle_deg", "Voltage_kV", "SphericalAberration_mm", "AmplitudeContrast"),
    *("PhaseShift_deg", "PixelSpacing_A", "TiltAngle_deg", "ShiftY_px", "ShiftX_px", "Exposure_e_per_A2"),
    "AcquisitionOrder",
)


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
    return angle_column(path, 0)


def read_shrec_alignment(path: str | Path) -> FloatArray:
    """Read the angles of SHREC's `alignment_simulated.txt` (third column), **negated**: SHREC has skimage's sign.

    Returns
    -------
    `(tilt,)`, degrees.
    """
    return from_skimage_sign(angle_column(path, 2))


def read_simulation_meta(path: str | Path) -> TiltMetadata:
    """Read the `simulation_meta.txt` of a specimen in SHREC's layout: what each of its tilts was made with.

    Angles have SHREC's sign and are **negated**. A tilt is the projection moved by (ShiftY, ShiftX), and the exposure
    is that in the middle of the tilt; here it is what the specimen had seen before.

    Raises
    ------
    FileFormatError
        If a line holds other than thirteen numbers; the message names file and line.
    """
    path = Path(path)
    columns = " ".join(SIMULATION_COLUMNS)
    rows = [
        numbers(line, f"{path}, line {n}", columns, [len(SIMULATION_COLUMNS)])
        for n, line in lines(path, "SHREC's table of the simulation")
    ]
    if not rows:
        raise FileFormatError(f"{path}: expected a row `{columns}` for each tilt, got none")
    table = dict(zip(SIMULATION_COLUMNS, np.array(rows).T, strict=True))
    exposure, order = table["Exposure_e_per_A2"], table["AcquisitionOrder"]
    return TiltMetadata(
        sections=np.arange(len(rows)),
        tilt_angles=from_skimage_sign(table["TiltAngle_deg"]),
        axis_angle=np.zeros(len(rows)),
        shifts=np.stack([table["ShiftY_px"], table["ShiftX_px"]], axis=-1),
        shift_unit="pixel",
        pixel_size=float(table["PixelSpacing_A"][0]),
        # The first tilt had half of its own exposure behind it, as had every other.
        exposure=exposure - exposure[np.argmin(order)],
        order=order,
        **defocus_fields(table["DefocusU_um"], table["DefocusV_um"], table["DefocusAngle_deg"]),
        phase_shift=table["PhaseShift_deg"],
        voltage_kv=float(table["Voltage_kV"][0]),
        spherical_aberration_mm=float(table["SphericalAberration_mm"][0]),
        amplitude_contrast=float(table["AmplitudeContrast"][0]),
        source=str(path),
    )


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
    metadata = read_serialem(path)
    assert metadata.tilt_angles is not None
    angles: FloatArray = metadata.tilt_angles[np.argsort(metadata.sections, kind="stable")]
    return angles


def read_txt(path: str | Path) -> FloatArray:
    """Read tilt angles from a `.txt`: one to three columns, or SHREC's.

    Of one column, and of AreTomo's two or three (angle, order or exposure), the first holds the angles, as they are.
    SHREC's `alignment_simulated.txt`, told by its name or by its comments and six columns, is read by
    `read_shrec_alignment`, which negates.

    Returns
    -------
    `(tilt,)`, degrees, in the order of the file.

    Raises
    ------
    FileFormatError
        If the columns are neither; the message says which there are.
    """
    path = Path(path)
    widths = {len(line.replace(",", " ").split()) for _, line in lines(path, "a file of tilt angles")}
    if path.name == SHREC_ALIGNMENT or widths == {SHREC_COLUMNS}:
        return read_shrec_alignment(path)
    if widths and max(widths) <= 3:
        return angle_column(path, 0)
    raise FileFormatError(
        f"{path}: expected one column of tilt angles, AreTomo's two or three (angle, order, exposure) or SHREC's six, "
        f"got {', '.join(map(str, sorted(widths))) or 'no'} columns; write one angle a line to a .tlt"
    )


#: Readers of angle files, by the end of the file's name.
READERS: dict[str, Callable[[str | Path], FloatArray]] = {
    ".tlt": read_tlt,
    ".rawtlt": read_tlt,
    ".mdoc": read_mdoc,
    ".txt": read_txt,
}


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
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise FileFormatError(f"{path}: expected a file of angles that ends in {', '.join(READERS)}")
    return READERS[suffix](path)


def find_tilt_angles(stack: Path, *, others: Sequence[str] = ()) -> Path:
    """Find the angles that belong to a tilt stack: same stem, or SHREC's file in the same folder.

    `.tlt` (aligned) goes before `.rawtlt`, `.mdoc` and SHREC's. `others` are names that were looked for before, for the
    message.

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
    names = ", ".join([*others, *(candidate.name for candidate in candidates)])
    raise FileNotFoundError(
        f"{stack}: expected a file of tilt angles beside it, one of {names}, found none; write one, or set "
        "`tilt_angles`"
    )


def write_tlt(path: str | Path, tilt_angles: npt.ArrayLike) -> None:
    """Write tilt angles in degrees, one a line."""
    angles = as_tilt_angles(np.asarray(tilt_angles))
    write_text(path, "".join(f"{angle:.4f}\n" for angle in angles))
