"""Warp's files of a tilt-series: its XML and its `.tomostar`."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError
from faket_aug.formats._text import star_numbers, star_tables
from faket_aug.formats.tilt_metadata import TiltMetadata, ranks
from faket_aug.geometry import half_turn

ROOT_TAG = "TiltSeries"


def read_warp_xml(path: str | Path) -> TiltMetadata:
    """Read a tilt-series of Warp, WarpTools or M from its XML.

    With image coordinates in Å from pixel `n // 2`, an aligned point (x', y) lies at
    `(x' cos a − y sin a + AxisOffsetX, x' sin a + y cos a + AxisOffsetY)`, `a` the AxisAngle: this package's own
    convention. Tilts that Warp does not use (`UseTilt`) are left out of `sections`. Angles are taken as they are;
    `AreAnglesInverted` gives the handedness. Level angles, movement within images and warps of the volume are not
    applied.

    The pixel size is the one of the unbinned frames, the dose what the specimen had seen before the tilt.

    Raises
    ------
    FileFormatError
        If it is no XML, or not one of a tilt-series, or the numbers of its values differ.

    References
    ----------
    Warp (github.com/warpem/warp), `TiltSeries.cs`: projection of a position, and the import of IMOD's `.xf`.
    """
    path = Path(path)
    root = _root(path)
    angles = _values(path, root, "Angles", None)
    if angles is None:
        raise FileFormatError(f"{path}: expected a tilt-series of Warp with <Angles>, got <{root.tag}> without")
    count = len(angles)
    x, y = _values(path, root, "AxisOffsetX", count), _values(path, root, "AxisOffsetY", count)
    exposure = _values(path, root, "Dose", count)
    settings = {p.get("Name", ""): p.get("Value", "") for p in root.findall("./CTF/Param")}
    metadata = TiltMetadata(
        sections=np.arange(count),
        section_count=count,
        tilt_angles=angles,
        axis_angle=_values(path, root, "AxisAngle", count),
        shifts=None if x is None or y is None else np.stack([y, x], axis=-1),
        exposure=exposure,
        order=None if exposure is None else ranks(exposure).astype(np.float64),
        paths=_paths(path, root, count),
        handedness=1 if root.get("AreAnglesInverted", "False") == "True" else -1,
        voltage_kv=_number(path, settings, "Voltage"),
        spherical_aberration_mm=_number(path, settings, "Cs"),
        amplitude_contrast=_number(path, settings, "Amplitude"),
        pixel_size=_number(path, settings, "PixelSize") or 0.0,
        source=str(path),
        **_defocus(path, root, settings, count),
    )
    return metadata.take(np.flatnonzero(_used(path, root, count)))


def _root(path: Path) -> ElementTree.Element:
    if not path.is_file():
        raise FileNotFoundError(f"expected an XML of Warp, found none at {path}")
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise FileFormatError(f"{path}: expected an XML of Warp, got a damaged one ({error})") from error
    if root.tag != ROOT_TAG:
        raise FileFormatError(f"{path}: expected an XML of a tilt-series of Warp, <{ROOT_TAG}>, got <{root.tag}>")
    return root


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
    try:
        return None if words is None else np.array([float(word) for word in words])
    except ValueError:
        raise FileFormatError(f"{path}: expected numbers in <{tag}>, got {words}") from None


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
    try:
        return float(settings[name]) if settings.get(name) else None
    except ValueError:
        raise FileFormatError(f"{path}: expected a number for {name} in <CTF>, got {settings[name]!r}") from None


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
    try:
        nodes = [(int(node.attrib["Z"]), float(node.attrib["Value"])) for node in element.findall("Node")]
        depth = int(element.get("Depth", "1"))
        layers = np.array([np.mean([value for z, value in nodes if z == layer]) for layer in range(depth)])
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{path}: expected nodes with Z and Value in <{tag}>, got {error!r}") from error
    if not np.isfinite(layers).all():
        raise FileFormatError(f"{path}: expected a node for each of {depth} layers of <{tag}>, got some without")
    values: FloatArray = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, depth), layers)
    return values


def read_tomostar(path: str | Path) -> TiltMetadata:
    """Read a `.tomostar` of Warp: angles, tilt axis, dose before the tilt, and the files of frames.

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
    exposure = star_numbers(table, "wrpDose", path)
    return TiltMetadata(
        sections=np.arange(len(angles)),
        tilt_angles=angles,
        axis_angle=star_numbers(table, "wrpAxisAngle", path),
        shifts=None if x is None or y is None else np.stack([y, x], axis=-1),
        exposure=exposure,
        order=None if exposure is None else ranks(exposure).astype(np.float64),
        paths=tuple(table["wrpMovieName"]) if "wrpMovieName" in table else None,
        source=str(path),
    )
