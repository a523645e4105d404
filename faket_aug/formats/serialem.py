"""SerialEM's `.mdoc`: what the microscope noted of every tilt."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import FileFormatError, check_positive
from faket_aug.formats.tilt_metadata import TiltMetadata, ranks

_AXIS = re.compile(r"tilt\s*axis\s*angle\s*=\s*([-+]?[0-9.]+)", re.IGNORECASE)
_TIME = re.compile(r"(\d{1,4})-([A-Za-z]{3}|\d{1,2})-(\d{1,4})\s+(\d+):(\d+):(\d+)")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def read_serialem(path: str | Path, *, exposure_per_tilt: float | None = None) -> TiltMetadata:
    """Read an `.mdoc` of SerialEM (or of Tomography 5, which writes the same form).

    The tilt axis is the header's `Tilt axis angle`, IMOD's angle from the image's vertical to the axis, positive
    counter-clockwise; it is the microscope's nominal one, and there are no shifts. `TargetDefocus`, negative for
    underfocus, gives the nominal defocus.

    Parameters
    ----------
    path
        The file. Its sections (`ZValue`) may come in any order.
    exposure_per_tilt
        e⁻/Å², where the file holds none (`ExposureDose = 0`: the microscope was not calibrated). Otherwise
        `PriorRecordDose`, or the sum of `ExposureDose` over the tilts taken before, by `DateTime`.

    Raises
    ------
    FileFormatError
        If the file holds no sections with a tilt angle, or is damaged.

    References
    ----------
    SerialEM help, "File Formats"; IMOD guide to `tiltalign` (rotation angle).
    """
    path = Path(path)
    table = _table(path)
    order = _order(table)
    return TiltMetadata(
        sections=np.array(table["ZValue"], dtype=np.int64) if "ZValue" in table else np.arange(len(order)),
        tilt_angles=_numbers(table, "TiltAngle"),
        axis_angle=_axis(table, len(order)),
        exposure=_exposure(table, order, exposure_per_tilt),
        order=order.astype(np.float64),
        defocus_um=_defocus(table),
        voltage_kv=_first(table, "Voltage"),
        pixel_size=_first(table, "PixelSpacing") or 0.0,
        image_size=_image_size(table),
        paths=tuple(str(p) for p in table["SubFramePath"]) if _complete(table, "SubFramePath") else None,
        source=str(path),
    )


def _table(path: Path) -> dict[str, list[Any]]:
    import mdocfile

    if not path.is_file():
        raise FileNotFoundError(f"expected an .mdoc file, found none at {path}")
    try:
        table = mdocfile.read(path)
        table["TiltAngle"].to_numpy(dtype=np.float64)
    except Exception as error:
        raise FileFormatError(
            f"{path}: expected an .mdoc with a TiltAngle for every section, got {type(error).__name__}: {error}"
        ) from error
    columns = {str(name): table[name].tolist() for name in table.columns}
    if not columns["TiltAngle"] or not np.isfinite(columns["TiltAngle"]).all():
        raise FileFormatError(f"{path}: expected an .mdoc with a TiltAngle for every section, got none for some")
    return columns


def _complete(table: dict[str, list[Any]], name: str) -> bool:
    return name in table and all(value is not None and value == value for value in table[name])


def _numbers(table: dict[str, list[Any]], name: str) -> FloatArray | None:
    return np.array(table[name], dtype=np.float64) if _complete(table, name) else None


def _first(table: dict[str, list[Any]], name: str) -> float | None:
    return float(table[name][0]) if _complete(table, name) else None


def _image_size(table: dict[str, list[Any]]) -> tuple[int, int] | None:
    if not _complete(table, "ImageSize"):
        return None
    x, y = table["ImageSize"][0]
    return int(y), int(x)


def _axis(table: dict[str, list[Any]], count: int) -> FloatArray | None:
    titles = " ".join(str(title) for title in table["titles"][0]) if "titles" in table else ""
    found = _AXIS.search(titles)
    return None if found is None else np.full(count, float(found[1]))


def _defocus(table: dict[str, list[Any]]) -> FloatArray | None:
    target = _numbers(table, "TargetDefocus")
    return None if target is None else -target


def _order(table: dict[str, list[Any]]) -> IntArray:
    """Number the tilts by the time they were taken; without times, by section."""
    sections = table.get("ZValue", list(range(len(table["TiltAngle"]))))
    times = np.array([_seconds(str(text)) for text in table.get("DateTime", [])])
    if not len(times) or np.isnan(times).any():
        return ranks(sections)
    # Tilts of the same second follow in the order of sections.
    return ranks(np.lexsort((sections, times)).argsort())


def _seconds(text: str) -> float:
    """Read a time as SerialEM writes it, in seconds from some beginning; NaN where it is none."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        return np.nan
    first, month, last = found[1], found[2].lower(), found[3]
    # `30-Nov-15`, `30-Nov-2015` and `2015-Nov-30` are all met.
    year, day = (int(first), int(last)) if len(first) == 4 else (int(last), int(first))
    number = int(month) if month.isdigit() else _MONTHS.index(month) + 1 if month in _MONTHS else 0
    try:
        moment = datetime(year % 100 + 2000, number, day, int(found[4]), int(found[5]), int(found[6]))
    except ValueError:
        return np.nan
    # No zone is known: the difference is that of the clock on the wall.
    return (moment - datetime(2000, 1, 1)).total_seconds()


def _exposure(table: dict[str, list[Any]], order: IntArray, given: float | None) -> FloatArray | None:
    if given is not None:
        check_positive("exposure_per_tilt", given)
        return order.astype(np.float64) * given
    prior, each = _numbers(table, "PriorRecordDose"), _numbers(table, "ExposureDose")
    if prior is not None and prior.max() > 0:
        return prior
    if each is None or each.max() <= 0:
        return None
    in_time = np.argsort(order)
    exposure = np.empty(len(order))
    exposure[in_time] = np.cumsum(each[in_time]) - each[in_time]
    return exposure
