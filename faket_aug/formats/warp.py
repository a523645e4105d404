"""Warp's files of a tilt-series: its XML and its `.tomostar`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError
from faket_aug.formats._text import as_number, as_whole, read_xml, shortened, star_numbers, star_tables
from faket_aug.formats.tilt_metadata import TiltMetadata, ranks
from faket_aug.geometry import half_turn

ROOT_TAG = "TiltSeries"
#: What a source says of angles whose order alone tells that the import did not negate them.
NOT_NEGATED = "angles as they are: they rise, and Warp's import sorts before it negates"
#: Degrees that the angle in a movie's name may lie beside the tilt's (rounded, refined), and that all may be moved by.
_NAME_TOLERANCE, _NAME_OFFSET = 1.5, 15.0
#: Share of a tilt's exposure that a dose may lie beside the place that it is looked for at.
_DOSE_TOLERANCE = 0.1


def read_warp_xml(path: str | Path, *, negate: bool | None = None) -> TiltMetadata:
    """Read a tilt-series of Warp, WarpTools or M from its XML.

    With image coordinates in Å from pixel `n // 2`, an aligned point (x', y) lies at
    `(x' cos a − y sin a + AxisOffsetX, x' sin a + y cos a + AxisOffsetY)`, `a` the AxisAngle: this package's own
    convention. Tilts that Warp does not use (`UseTilt`) are left out of `sections`. `AreAnglesInverted` gives the
    handedness. Level angles, movement within images and warps of the volume are not applied.

    **Sign of the angles.** Warp sees a point (x, z) at `x cos θ − z sin θ`, and its import negates the microscope's
    angles unless it is told not to: the angles are negated here, or taken as they are, such that they are the
    microscope's. What tells is the tilt's angle in the movies' names; else the order of the tilts, which Warp's import
    sorts by the microscope's angle (rising angles were not negated); else they are taken to be negated.

    The pixel size is the one of the unbinned frames. The exposure is what the specimen had seen before the tilt:
    WarpTools' dose is that; Warp 1 (files in UTF-16) gives it after the tilt, or in its middle.

    Parameters
    ----------
    path
        The file.
    negate
        Whether to negate the file's angles; found out by default.

    Raises
    ------
    FileFormatError
        If it is no XML, or not one of a tilt-series, or the numbers of its values differ.

    References
    ----------
    Warp (github.com/warpem/warp), `TiltSeries.cs`: projection of a position, and the import of IMOD's `.xf`;
    `ImportTiltseries.cs` (sign, order and dose). Warp 1.0.9 (github.com/cramerlab/warp),
    `DialogTomoImportImod.xaml.cs`.
    """
    path = Path(path)
    root = read_xml(path, "an XML of Warp")
    if root.tag != ROOT_TAG:
        raise FileFormatError(
            f"{path}: expected an XML of a tilt-series of Warp, <{ROOT_TAG}>, got <{shortened(root.tag)}>"
        )
    angles = _values(path, root, "Angles", None)
    if angles is None:
        raise FileFormatError(f"{path}: expected a tilt-series of Warp with <Angles>, got <{root.tag}> without")
    count = len(angles)
    x, y = _values(path, root, "AxisOffsetX", count), _values(path, root, "AxisOffsetY", count)
    movies = _paths(path, root, count)
    settings = {p.get("Name", ""): p.get("Value", "") for p in root.findall("./CTF/Param")}
    metadata = TiltMetadata(
        sections=np.arange(count),
        section_count=count,
        axis_angle=_values(path, root, "AxisAngle", count),
        shifts=None if x is None or y is None else np.stack([y, x], axis=-1),
        paths=movies,
        handedness=1 if root.get("AreAnglesInverted", "False") == "True" else -1,
        voltage_kv=_number(path, settings, "Voltage"),
        spherical_aberration_mm=_number(path, settings, "Cs"),
        amplitude_contrast=_number(path, settings, "Amplitude"),
        pixel_size=max(_number(path, settings, "PixelSize") or 0.0, 0.0),
        **_signed(path, angles, movies, negate),
        **_exposure(_values(path, root, "Dose", count), warp_1=_is_utf_16(path)),
        **_defocus(path, root, settings, count),
    )
    return metadata.take(np.flatnonzero(_used(path, root, count)))


def read_tomostar(path: str | Path, *, negate: bool | None = None) -> TiltMetadata:
    """Read a `.tomostar` of Warp: angles, tilt axis, exposure before the tilt, and the files of frames.

    Sign of the angles and exposure are as in `read_warp_xml`; a `.tomostar` of Warp 1 is told by its offsets of the
    axis (`wrpAxisOffsetX`), which WarpTools' has not.

    Parameters
    ----------
    path
        The file.
    negate
        Whether to negate the file's angles; found out by default.

    Raises
    ------
    FileFormatError
        If it is damaged, or has no column `wrpAngleTilt`.
    """
    path = Path(path)
    tables = star_tables(path)
    table = next((t for t in tables.values() if "wrpAngleTilt" in t), None)
    angles = None if table is None else star_numbers(table, "wrpAngleTilt", path)
    if table is None or angles is None or not len(angles):
        raise FileFormatError(f"{path}: expected a .tomostar of Warp with a row _wrpAngleTilt for each tilt, got none")
    x, y = (star_numbers(table, f"wrpAxisOffset{axis}", path) for axis in "XY")
    movies = tuple(table["wrpMovieName"]) if "wrpMovieName" in table else None
    return TiltMetadata(
        sections=np.arange(len(angles)),
        axis_angle=star_numbers(table, "wrpAxisAngle", path),
        shifts=None if x is None or y is None else np.stack([y, x], axis=-1),
        paths=movies,
        **_signed(path, angles, movies, negate),
        **_exposure(star_numbers(table, "wrpDose", path), warp_1=x is not None and "wrpAverageIntensity" not in table),
    )


# --- the sign of the angles -------------------------------------------------------------------------------------------


def _signed(path: Path, angles: FloatArray, movies: Sequence[str] | None, negate: bool | None) -> dict[str, Any]:
    """Give the microscope's angles, and say what their sign was taken from."""
    steps, assumed, reason = np.diff(angles), False, ""
    if negate is None:
        named = _named_sign(angles, movies or ())
        if named is not None:
            negate = named < 0
        elif len(steps) and (steps >= 0).all():
            negate, assumed, reason = False, True, NOT_NEGATED
        else:
            falling = len(steps) > 0 and (steps <= 0).all()
            negate, assumed, reason = True, True, "" if falling else "angles negated, as Warp's import does"
    return {
        # 0 and not -0.
        "tilt_angles": -angles + 0.0 if negate else angles,
        "assumed_sign": assumed,
        "source": f"{path} ({reason})" if reason else str(path),
    }


_EXTENSIONS = re.compile(r"(\.(eer|tiff?|mrcs?|gz|bz2|xml|dm4))+$", re.IGNORECASE)


def _named_sign(angles: FloatArray, movies: Sequence[str]) -> int | None:
    """Find by the angles in the movies' names (`TS_1_031_-45.00_EER.eer`) whether the file's angles have their sign."""
    rows = [
        [as_number(word) for word in re.split(r"[_\[\]\s]+", _EXTENSIONS.sub("", re.split(r"[/\\]", movie)[-1]))]
        for movie in movies
    ]
    if not rows or len({len(row) for row in rows}) != 1 or np.ptp(angles) < 2 * _NAME_TOLERANCE:
        return None
    signs = set()
    for column in np.array(rows).T:
        for sign in (1, -1):
            difference = column - sign * angles
            offset = np.median(difference)
            if abs(offset) <= _NAME_OFFSET and np.abs(difference - offset).max() <= _NAME_TOLERANCE:
                signs.add(sign)
    return signs.pop() if len(signs) == 1 else None


# --- exposure ---------------------------------------------------------------------------------------------------------


def _exposure(dose: FloatArray | None, *, warp_1: bool) -> dict[str, Any]:
    """Give the exposure before each tilt, and the order of acquisition.

    Warp 1 adds up exposures including the tilt's own, or, where it was given one for all, counts (i + 1/2) times it.
    WarpTools counts i times it.
    """
    if dose is None:
        return {}
    in_order = np.sort(dose)
    steps = np.diff(in_order)
    each = float(np.median(steps)) if len(steps) else 0.0
    own = np.zeros(len(dose))
    if each > 0 and abs(in_order[0] - each / 2) <= _DOSE_TOLERANCE * each:
        own = np.full(len(dose), each / 2)
    elif each > 0 and warp_1 and in_order[0] > each / 2:
        # Where tilts were left out their exposures are in the next one's step.
        own = np.concatenate([[each], np.where(steps > 1.5 * each, each, steps)])[ranks(dose)]
        own = np.minimum(own, dose)
    return {"exposure": dose - own, "order": ranks(dose).astype(np.float64)}


def _is_utf_16(path: Path) -> bool:
    """Warp 1 wrote its XML in UTF-16, WarpTools writes UTF-8."""
    with path.open("rb") as stream:
        begin = stream.read(4)
    return begin[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in begin


# --- values of the XML ------------------------------------------------------------------------------------------------


def _words(path: Path, root: ElementTree.Element, tag: str, count: int | None) -> list[str] | None:
    """Read the lines of an element, as many as tilts; None where it is missing or empty."""
    element = root.find(tag)
    words = [] if element is None or element.text is None else element.text.split("\n")
    words = [word.strip() for word in words if word.strip()]
    if words and count is not None and len(words) != count:
        raise FileFormatError(f"{path}: expected {count} values in <{tag}>, as many as in <Angles>, got {len(words)}")
    return words or None


def _values(path: Path, root: ElementTree.Element, tag: str, count: int | None) -> FloatArray | None:
    words = _words(path, root, tag, count)
    if words is None:
        return None
    values = np.array([as_number(word) for word in words])
    if np.isnan(values).any():
        wrong = words[int(np.flatnonzero(np.isnan(values))[0])]
        raise FileFormatError(f"{path}: expected numbers in <{tag}>, got {shortened(wrong)!r}")
    return values


def _used(path: Path, root: ElementTree.Element, count: int) -> list[bool]:
    words = _words(path, root, "UseTilt", count)
    used = [True] * count if words is None else [word == "True" for word in words]
    if not any(used):
        raise FileFormatError(f"{path}: expected a tilt to use, got <UseTilt> False for all {count}")
    return used


def _paths(path: Path, root: ElementTree.Element, count: int) -> tuple[str, ...] | None:
    words = _words(path, root, "MoviePath", count)
    return None if words is None else tuple(words)


def _number(path: Path, settings: dict[str, str], name: str) -> float | None:
    if not settings.get(name):
        return None
    value = as_number(settings[name])
    if np.isnan(value):
        raise FileFormatError(f"{path}: expected a number for {name} in <CTF>, got {shortened(settings[name])!r}")
    return value


def _defocus(path: Path, root: ElementTree.Element, settings: dict[str, str], count: int) -> dict[str, Any]:
    """Read defocus in µm, the difference of largest and smallest, its direction, and the phase shift in π."""

    def grid(tag: str, name: str) -> FloatArray | None:
        values = _grid(path, root, tag, count)
        constant = _number(path, settings, name)
        return values if values is not None or constant is None else np.full(count, constant)

    defocus, angle = grid("GridCTF", "Defocus"), grid("GridCTFDefocusAngle", "DefocusAngle")
    delta, phase = grid("GridCTFDefocusDelta", "DefocusDelta"), grid("GridCTFPhase", "PhaseShift")
    fields: dict[str, Any] = {"defocus_um": defocus}
    if delta is not None and angle is not None:
        # Warp writes U = Defocus + Delta / 2 along the angle; a negative one turns the direction by 90°.
        fields["astigmatism_um"] = np.abs(delta) / 2
        fields["astigmatism_angle"] = half_turn(np.where(delta < 0, angle + 90, angle))
    if phase is not None:
        fields["phase_shift"] = phase * 180
    return fields


def _grid(path: Path, root: ElementTree.Element, tag: str, count: int) -> FloatArray | None:
    """Read a grid over the tilts (its z): the mean over each image, read between its nodes."""
    element = root.find(tag)
    if element is None or not len(element):
        return None
    where = f"{path}: expected nodes with Z and Value in <{tag}>"
    layers: dict[int, list[float]] = {}
    for node in element.findall("Node"):
        z, value = as_whole(node.get("Z", "")), as_number(node.get("Value", ""))
        if z is None or np.isnan(value):
            raise FileFormatError(f"{where}, got {shortened(dict(node.attrib))}")
        layers.setdefault(z, []).append(value)
    depth = as_whole(element.get("Depth", "1")) or 0
    if sorted(layers) != list(range(len(layers))) or depth != len(layers):
        raise FileFormatError(f"{where} for each of {depth} layers, got {len(layers)}; the file is damaged")
    means = [np.mean(layers[z]) for z in range(depth)]
    values: FloatArray = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, depth), means)
    return values
