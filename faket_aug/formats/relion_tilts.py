"""RELION 5's tilt-series: one STAR file for each, and one for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError
from faket_aug.formats._text import find_name, follow, star_numbers, star_tables
from faket_aug.formats.tilt_metadata import TiltMetadata, defocus_fields, ranks

SERIES_FILE = "rlnTomoTiltSeriesStarFile"
TILT_COLUMNS = ("rlnTomoYTilt", "rlnTomoNominalStageTiltAngle")
#: Degrees by which XTilt may differ from tilt to tilt: more than that, and the specimen is tilted about x.
MAX_X_TILT_RANGE = 5.0
Table = Mapping[str, Sequence[str]]


def read_relion(path: str | Path, *, tomogram: str | None = None, series: str | Path | None = None) -> TiltMetadata:
    """Read a tilt-series of RELION 5, at any stage from import to refinement.

    A specimen is turned by XTilt about x, by YTilt about y, by ZRot about z, and shifted by (XShiftAngst, YShiftAngst):
    an aligned point (x', y) lies at `(x' cos ZRot − y sin ZRot + XShift, x' sin ZRot + y cos ZRot + YShift)`, counted
    from pixel `n // 2`, which is this package's own convention. XTilt is kept, not applied; a series that is tilted
    about x is refused. Before the alignment the nominal angles and axis of the microscope are there, and no shifts.

    Parameters
    ----------
    path
        The STAR file of one series (`rlnTomoNominalStageTiltAngle` or `rlnTomoYTilt` a row), or the one of all series:
        `tilt_series.star` or `tomograms.star` of RELION 5, which names a file for each, or a file with a block for each
        (`data_TS_1`). These also hold voltage, pixel size and handedness.
    tomogram
        Which one (`rlnTomoName`, or the block's name), where a file of all holds several.
    series
        The file of the series, where a file of all names one that is not there. By default the name is looked up from
        RELION's project folder, which is above the file, and beside the file.

    Raises
    ------
    FileFormatError
        If the file is damaged, or no tilt-series.
    FileNotFoundError
        If the file of the series is not found.
    ValueError
        If `tomogram` is none of the file's, or has to be given; the message lists them.

    References
    ----------
    RELION 5, `src/jaz/tomography/tomogram.cpp`, `setProjectionMatrix` (the convention, and the centre).
    """
    path = Path(path)
    tables = star_tables(path)
    everything = next((table for table in tables.values() if SERIES_FILE in table), None)
    if everything is None:
        name, table = _tilt_table(path, tables, tomogram)
        return _with_microscope(path, _series(path, table), tables, name)
    names = list(everything.get("rlnTomoName", []))
    if not names and len(everything[SERIES_FILE]) != 1:
        raise FileFormatError(f"{path}: expected a column _rlnTomoName, since it holds several series, got none")
    row = names.index(_choose(path, names, tomogram)) if names else 0
    own = Path(series) if series is not None else _find(path, everything[SERIES_FILE][row])
    found = _series(own, _tilt_table(own, star_tables(own), names[row] if names else None)[1])
    return replace(found, **_microscope(path, everything, row), source=str(own))


def _tilt_table(path: Path, tables: Mapping[str, Table], tomogram: str | None) -> tuple[str, Table]:
    """Find the block of the tomogram that is asked for, and its name; a lone block of any name is the one."""
    blocks = {name: table for name, table in tables.items() if set(TILT_COLUMNS) & set(table)}
    if not blocks:
        raise FileFormatError(
            f"{path}: expected a tilt-series of RELION 5 with _rlnTomoYTilt or _rlnTomoNominalStageTiltAngle, or a "
            f"table of them with _{SERIES_FILE}, got blocks {', '.join(tables) or 'none'} without"
        )
    listed = any("rlnTomoName" in table for table in tables.values())
    name = next(iter(blocks)) if len(blocks) == 1 and not listed else _choose(path, list(blocks), tomogram)
    return name, blocks[name]


def _choose(path: Path, names: list[str], wanted: str | None) -> str:
    """Find the tomogram that is asked for; the only one needs no asking."""
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None:
        raise ValueError(f"{path}: expected to be told which of {', '.join(names)} to read; set `tomogram`")
    found = find_name(wanted, names)
    if found is None:
        listed = ", ".join(repr(name) for name in names)
        raise ValueError(f"{path}: expected `tomogram` to be one of {listed}, got {wanted!r}")
    return found


def _with_microscope(path: Path, found: TiltMetadata, tables: Mapping[str, Table], name: str) -> TiltMetadata:
    """Add what the table of all series, `data_global`, says of the microscope."""
    table = next((t for t in tables.values() if name in t.get("rlnTomoName", ())), None)
    return (
        found if table is None else replace(found, **_microscope(path, table, list(table["rlnTomoName"]).index(name)))
    )


def _find(path: Path, name: str) -> Path:
    """Find a series: named from the project's folder, which is one above, or beside the file."""
    try:
        return follow(path, name, path.parent / "tilt_series", path.parent)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: expected the tilt-series {name} that it names, below one of the folders above it or beside it, "
            "found none; set `series`"
        ) from None


def _series(path: Path, table: Table) -> TiltMetadata:
    def column(*names: str) -> FloatArray | None:
        return next((v for name in names if (v := star_numbers(table, name, path)) is not None), None)

    angles = column(*TILT_COLUMNS)
    if angles is None or not len(angles):
        raise FileFormatError(f"{path}: expected a row for each tilt, got none")
    x_tilts = column("rlnTomoXTilt")
    if x_tilts is not None and np.ptp(x_tilts) > MAX_X_TILT_RANGE:
        raise FileFormatError(
            f"{path}: expected a series that is tilted about y (rlnTomoYTilt), got rlnTomoXTilt from "
            f"{x_tilts.min():g}° to {x_tilts.max():g}°; read its angles and alignment from the program that exported it"
        )
    x, y = column("rlnTomoXShiftAngst"), column("rlnTomoYShiftAngst")
    exposure = column("rlnMicrographPreExposure")
    return TiltMetadata(
        sections=np.arange(len(angles)),
        tilt_angles=angles,
        axis_angle=column("rlnTomoZRot", "rlnTomoNominalTiltAxisAngle"),
        shifts=None if x is None or y is None else np.stack([y, x], axis=-1),
        x_tilts=x_tilts,
        exposure=exposure,
        order=None if exposure is None else ranks(exposure).astype(np.float64),
        phase_shift=column("rlnPhaseShift"),
        paths=tuple(table.get("rlnMicrographMovieName", table.get("rlnMicrographName", ()))) or None,
        source=str(path),
        **_defocus(*map(column, ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnTomoNominalDefocus"))),
    )


def _defocus(
    u: FloatArray | None, v: FloatArray | None, angle: FloatArray | None, nominal: FloatArray | None
) -> dict[str, Any]:
    """Turn Å into µm; before the CTF is fitted there is the nominal value, negative for underfocus, in µm."""
    if u is not None and v is not None:
        return defocus_fields(u * 1e-4, v * 1e-4, np.zeros(len(u)) if angle is None else angle)
    return {} if nominal is None else {"defocus_um": -nominal}


def _microscope(path: Path, table: Table, row: int) -> dict[str, Any]:
    def value(name: str) -> float | None:
        column = star_numbers(table, name, path)
        return None if column is None else float(column[row])

    hand = value("rlnTomoHand")
    return {
        "voltage_kv": value("rlnVoltage"),
        "spherical_aberration_mm": value("rlnSphericalAberration"),
        "amplitude_contrast": value("rlnAmplitudeContrast"),
        "handedness": None if hand is None else int(np.sign(hand)),
        "pixel_size": max(value("rlnTomoTiltSeriesPixelSize") or value("rlnMicrographOriginalPixelSize") or 0.0, 0.0),
    }
