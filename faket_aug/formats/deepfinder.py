"""DeepFinder's object lists: particles as XML, `(z, y, x)` in voxels and the Euler angles psi, the and phi."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from faket_aug._checks import FileFormatError, check_count
from faket_aug.formats._atomic import write_bytes
from faket_aug.formats._text import as_number, as_whole, read_xml, shortened
from faket_aug.formats.particles import ParticleList, check_writable, checked_positions, checked_turns, numbers_of
from faket_aug.geometry import zxz_angles, zxz_matrices

_ANGLES = ("psi", "the", "phi")


def write_object_list(
    path: str | Path,
    particles: ParticleList | Sequence[ParticleList],
    *,
    class_numbers: Mapping[str, int],
    tomogram: int = 0,
) -> None:
    """Write DeepFinder's object list.

    Each `object` has `tomo_idx`, `obj_id` (the 1-based row of its list, as in an instance volume), `class_label`, `x`,
    `y` and `z` (voxels, 0-based, as DeepFinder's own clustering writes them) and, where the orientation is known,
    `psi`, `phi` and `the` in degrees: the template is turned by `Rz(psi) · Rx(the) · Rz(phi)` on columns (x, y, z),
    which is what DeepFinder's target generation does. That generation rounds down to whole voxels and then adds 1, so
    its targets lie up to a voxel beside the positions; nothing else in DeepFinder does so, and nothing here.

    Parameters
    ----------
    path
        The file.
    particles
        The particles of one tomogram, or of several.
    class_numbers
        Class numbers by name.
    tomogram
        `tomo_idx` of the first (or only) list; further ones count on.

    Raises
    ------
    ValueError
        If a name has no number or a place is not finite.

    References
    ----------
    DeepFinder (Moebel et al., Nature Methods 18, 2021): `deepfinder/utils/objl.py` (the attributes), `rotate_array` in
    `deepfinder/utils/common.py` and `TargetBuilder` in `deepfinder/training.py` (the angles; the rotation was found by
    turning a volume as they do), and `Cluster` in `deepfinder/inference.py` (voxel indices from 0).
    """
    check_count("tomogram", tomogram, zero=True)
    lists = [particles] if isinstance(particles, ParticleList) else list(particles)
    root = ElementTree.Element("objlist")
    for index, one in enumerate(lists, start=tomogram):
        _add_objects(root, one, numbers_of(one.names, class_numbers), index)
    ElementTree.indent(root)
    write_bytes(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _add_objects(root: ElementTree.Element, particles: ParticleList, numbers: Sequence[int], tomogram: int) -> None:
    check_writable(particles)
    rows = zip(numbers, particles.positions, zxz_angles(particles.orientations), strict=True)
    for row, (number, (z, y, x), angles) in enumerate(rows, start=1):
        values = {"tomo_idx": str(tomogram), "obj_id": str(row), "class_label": str(number)}
        values |= {"x": f"{x:.4f}", "y": f"{y:.4f}", "z": f"{z:.4f}"}
        if np.isfinite(angles).all():
            values |= {name: f"{angle:.4f}" for name, angle in zip(_ANGLES, angles, strict=True)}
        ElementTree.SubElement(root, "object", values)


def read_object_list(path: str | Path, *, class_names: Mapping[int, str] | None = None) -> dict[int, ParticleList]:
    """Read DeepFinder's object list.

    Parameters
    ----------
    path
        The file. Attributes besides those of `write_object_list` are passed over.
    class_names
        Names of the class numbers; the numbers themselves by default.

    Returns
    -------
    The particles of each `tomo_idx` (0 where an object has none), in the order of the file.

    Raises
    ------
    FileFormatError
        If it is not such a file, an object lacks its class or place, or has a class that is not among `class_names`;
        the message names file and object.
    """
    path = Path(path)
    root = read_xml(path, "DeepFinder's object list")
    if root.tag != "objlist":
        raise FileFormatError(f"{path}: expected DeepFinder's `objlist`, got `{shortened(root.tag)}`")
    tomograms: dict[int, list[tuple[str, list[float], list[float]]]] = {}
    for row, element in enumerate(root.iter("object"), start=1):
        where = f"{path}, object {row}"
        tomograms.setdefault(_whole(element, "tomo_idx", where, missing=0.0), []).append(
            (
                _class_name(_whole(element, "class_label", where), class_names, where),
                _numbers(element, ("z", "y", "x"), where),
                _numbers(element, _ANGLES, where, missing=np.nan),
            )
        )
    return {index: _particle_list(rows, path) for index, rows in tomograms.items()}


def _particle_list(rows: Sequence[tuple[str, list[float], list[float]]], path: Path) -> ParticleList:
    names, places, angles = zip(*rows, strict=True)
    turns = zxz_matrices(checked_turns(np.array(angles), path))
    return ParticleList(tuple(names), checked_positions(np.array(places), path), turns)


def _whole(element: ElementTree.Element, name: str, where: str, *, missing: float | None = None) -> int:
    value = _numbers(element, (name,), where, missing=missing)[0]
    number = as_whole(value)
    if number is None:
        raise FileFormatError(f"{where}: expected a whole number as {name}, got {value:g}")
    return number


def _class_name(number: int, class_names: Mapping[int, str] | None, where: str) -> str:
    if class_names is None:
        return str(number)
    if number not in class_names:
        known = ", ".join(str(known) for known in class_names) or "none"
        raise FileFormatError(f"{where}: expected a class of the table ({known}), got {number}")
    return class_names[number]


def _numbers(
    element: ElementTree.Element, names: Sequence[str], where: str, *, missing: float | None = None
) -> list[float]:
    """Read attributes as numbers; where all of them may be missing, `missing` stands for each."""
    texts = [element.get(name) for name in names]
    if missing is not None and all(text in (None, "None") for text in texts):
        return [missing] * len(names)
    values = [as_number(text) for text in texts if text is not None]
    if len(values) < len(names) or np.isnan(values).any():
        found = ", ".join(
            f"{name}={shortened(text)}" for name, text in zip(names, texts, strict=True) if text is not None
        )
        raise FileFormatError(f"{where}: expected numbers {', '.join(names)}, got {found or 'none'}")
    return values
