"""The `.mdoc` of SerialEM and Tomography 5: what the microscope noted of every tilt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import FileFormatError, check_positive
from faket_aug.formats._text import as_number, as_whole, read_text, shortened
from faket_aug.formats.tilt_metadata import TiltMetadata, ranks

_SECTION = re.compile(r"\[\s*(\w+)\s*=\s*(.*?)\s*\]")
_PAIR = re.compile(r"(\w+)\s*=\s*(.*)")
#: SerialEM's title, and Tomography 5's, whose angle is another.
_AXIS = re.compile(r"tilt\s+axis\s+angle\s*=\s*([-+]?[0-9.]+)", re.IGNORECASE)
_AXIS_OF_TOMOGRAPHY = re.compile(r"TiltAxisAngle\s*=\s*([-+]?[0-9.]+)")
_TIME = re.compile(r"(\d{1,4})-([A-Za-z]{3}|\d{1,2})-(\d{1,4})\s+(\d+):(\d+):(\d+)")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
#: Sections of other files of the same form, and what they are of.
_OTHER_SECTIONS = {"FrameSet": "of the frames of one movie", "MontSection": "of a montage"}


@dataclass(frozen=True)
class _Mdoc:
    """An `.mdoc` as it stands: what holds for all, the titles, and the sections in the file's order."""

    path: Path
    header: dict[str, str]
    titles: str
    sections: list[dict[str, str]]
    numbers: list[int]

    def numbers_of(self, name: str) -> FloatArray | None:
        """Read a number of every section; None where one has none, or what is not a number (NaN, empty)."""
        values = np.array([as_number(section.get(name, self.header.get(name, ""))) for section in self.sections])
        return None if np.isnan(values).any() else values

    def first(self, name: str) -> float | None:
        """Read a number that holds for all sections."""
        value = as_number(self.sections[0].get(name, self.header.get(name, "")))
        return None if np.isnan(value) else value


def read_serialem(path: str | Path, *, exposure_per_tilt: float | None = None) -> TiltMetadata:
    """Read an `.mdoc` of SerialEM (or of Tomography 5, which writes the same form).

    The tilt axis is the microscope's nominal one, and there are no shifts. SerialEM's title `Tilt axis angle` is IMOD's
    angle: from the image's vertical to the axis, positive counter-clockwise. Tomography 5's `TiltAxisAngle` is another
    angle: IMOD's is `-TiltAxisAngle - 90`, which is also its `RotationAngle`. (SerialEM's `RotationAngle` differs from
    its axis by 90°, and is not used.) `TargetDefocus`, negative for underfocus, gives the nominal defocus.

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
        If the file holds no sections with a tilt angle, is one of frames or of a montage, or is damaged.

    References
    ----------
    SerialEM help, "File Formats"; IMOD guide to `tiltalign` (rotation angle).
    """
    mdoc = _read(Path(path))
    angles = np.array([as_number(section.get("TiltAngle", "")) for section in mdoc.sections])
    if np.isnan(angles).any():
        without = mdoc.numbers[int(np.flatnonzero(np.isnan(angles))[0])]
        raise FileFormatError(
            f"{path}: expected an .mdoc with a TiltAngle for every section, got none for [ZValue = {without}]"
        )
    order = _order(mdoc)
    paths = tuple(section.get("SubFramePath", "") for section in mdoc.sections)
    return TiltMetadata(
        sections=np.array(mdoc.numbers, dtype=np.int64),
        tilt_angles=angles,
        axis_angle=_axis(mdoc, len(order)),
        exposure=_exposure(mdoc, order, exposure_per_tilt),
        order=order.astype(np.float64),
        defocus_um=_defocus(mdoc),
        voltage_kv=mdoc.first("Voltage"),
        pixel_size=max(mdoc.first("PixelSpacing") or 0.0, 0.0),
        image_size=_image_size(mdoc),
        paths=paths if all(paths) else None,
        source=str(path),
    )


def _read(path: Path) -> _Mdoc:
    """Read header, titles and sections; lines that are neither a pair nor a section say nothing."""
    header: dict[str, str] = {}
    titles: list[str] = []
    sections: list[dict[str, str]] = []
    found: list[int] = []
    for number, line in enumerate(read_text(path, "an .mdoc file").splitlines(), start=1):
        if section := _SECTION.fullmatch(line.strip()):
            kind, value = section.groups()
            if kind in _OTHER_SECTIONS:
                raise FileFormatError(
                    f"{path}, line {number}: expected an .mdoc of a tilt-series, with sections [ZValue = ...] only, "
                    f"got one {_OTHER_SECTIONS[kind]} ([{kind} = {value}]); give the .mdoc of the tilt-series"
                )
            if kind == "ZValue":
                found.append(_section_number(path, number, value, found))
                sections.append({})
            else:
                titles.append(value)
        elif pair := _PAIR.fullmatch(line.strip()):
            (sections[-1] if sections else header)[pair[1]] = pair[2].strip()
    if not sections:
        raise FileFormatError(
            f"{path}: expected an .mdoc with a TiltAngle for every section [ZValue = ...], got no section; give the "
            ".mdoc of a tilt-series"
        )
    return _Mdoc(path, header, " ".join([*titles, header.get("T", "")]), sections, found)


def _section_number(path: Path, line: int, text: str, before: list[int]) -> int:
    value = as_whole(text)
    if value is None or value < 0 or value in before:
        again = " again" if value in before else ""
        raise FileFormatError(
            f"{path}, line {line}: expected a section of its own, from 0, got [ZValue = {shortened(text)}]{again}"
        )
    return value


def _image_size(mdoc: _Mdoc) -> tuple[int, int] | None:
    text = mdoc.sections[0].get("ImageSize", mdoc.header.get("ImageSize"))
    if text is None:
        return None
    sizes = [as_whole(word) or 0 for word in text.split()]
    if len(sizes) != 2 or min(sizes) < 1:
        raise FileFormatError(f"{mdoc.path}: expected ImageSize = x y, got {shortened(text)!r}")
    return sizes[1], sizes[0]


def _axis(mdoc: _Mdoc, count: int) -> FloatArray | None:
    if found := _AXIS.search(mdoc.titles):
        value = as_number(found[1])
    elif found := _AXIS_OF_TOMOGRAPHY.search(mdoc.titles):
        value = -as_number(found[1]) - 90
        value = (value + 180) % 360 - 180
    else:
        return None
    return None if np.isnan(value) else np.full(count, value)


def _defocus(mdoc: _Mdoc) -> FloatArray | None:
    target = mdoc.numbers_of("TargetDefocus")
    return None if target is None else -target


def _order(mdoc: _Mdoc) -> IntArray:
    """Number the tilts by the time they were taken; without times, by section."""
    times = np.array([_seconds(section.get("DateTime", "")) for section in mdoc.sections])
    if np.isnan(times).any():
        return ranks(mdoc.numbers)
    # Tilts of the same second follow in the order of sections.
    return ranks(np.lexsort((np.array(mdoc.numbers), times)).argsort())


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
    except (ValueError, OverflowError):
        return np.nan
    # No zone is known: the difference is that of the clock on the wall.
    return (moment - datetime(2000, 1, 1)).total_seconds()


def _exposure(mdoc: _Mdoc, order: IntArray, given: float | None) -> FloatArray | None:
    if given is not None:
        check_positive("exposure_per_tilt", given)
        return order.astype(np.float64) * given
    prior, each = mdoc.numbers_of("PriorRecordDose"), mdoc.numbers_of("ExposureDose")
    if prior is not None and prior.max() > 0:
        return prior
    if each is None or each.max() <= 0:
        return None
    in_time = np.argsort(order)
    exposure = np.empty(len(order))
    exposure[in_time] = np.cumsum(each[in_time]) - each[in_time]
    return exposure
