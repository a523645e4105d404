"""RELION's STAR files of particles: versions 3, 4 and 5, also as Warp, M and template matching programs write them.

Angles are RELION's rot, tilt and psi (`faket_aug.geometry.relion_matrices`). A particle may carry two orientations: its
subtomogram's (`rlnTomoSubtomogramRot`, ...) and its own within it (`rlnAngleRot`, ...); the whole is their product in
this order. Its place is the coordinate less the shift `rlnOriginXAngst` (or `rlnOriginX`, in pixels), the shift turned
by the subtomogram's orientation.

Coordinates: `rlnCoordinateX/Y/Z` of versions 3 and 4 count voxels from 0 (version 4 adds 1 to them, and its geometry
from IMOD takes 1 off again). `rlnCenteredCoordinateX/Y/ZAngst` of version 5 are Å from the tomogram's centre, which is
size / 2 in voxels counted from 0, also where the size is odd: a voxel index is coordinate / voxel_size + size / 2.
RELION's own Python picker takes size / 2 - 1 in unbinned pixels; its C++ programs, which project and extract, do not.

References
----------
RELION 4 and 5: `ParticleSet::getPosition`, `getParticleCoordDecenteredPixel`, `getMatrix3x3` and `getMatrix4x4` in
`src/jaz/tomography/particle_set.cpp`, `TomogramSet::loadTomogram` (`centre`), `apps/import_particles.cpp` there (it
reads the first table of the file); the particle set in RELION's documentation (Subtomogram averaging, Data types);
github.com/3dem/relion, issue 1137 and pull request 1353, on the centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from faket_aug._checks import FileFormatError, check_choice, check_positive
from faket_aug.formats._atomic import write_text
from faket_aug.formats.particles import ParticleList, check_words, check_writable, numbers_of
from faket_aug.geometry import relion_angles, relion_matrices

if TYPE_CHECKING:
    import pandas as pd

FloatArray = npt.NDArray[np.float64]
Shape = tuple[int, int, int]

VERSIONS = (3, 4, 5)
#: Columns of our own, which RELION passes on: the class's name, and 0 where the three angles mean nothing.
NAME_COLUMN = "faketClassName"
ORIENTED_COLUMN = "faketOriented"

_PIXELS = ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ")
_CENTERED = ("rlnCenteredCoordinateXAngst", "rlnCenteredCoordinateYAngst", "rlnCenteredCoordinateZAngst")
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_SUBTOMOGRAM_ANGLES = ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")
_SHIFTS = ("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst")
_PIXEL_SHIFTS = ("rlnOriginX", "rlnOriginY", "rlnOriginZ")
_SIZES = ("rlnTomoSizeZ", "rlnTomoSizeY", "rlnTomoSizeX")
_TOMOGRAM_NAMES = ("rlnTomoName", "rlnMicrographName")
_PIXEL_SIZES = ("rlnTomoTiltSeriesPixelSize", "rlnPixelSize")
#: What looks like a number, but is a name.
_TEXT = [*_TOMOGRAM_NAMES, NAME_COLUMN, "rlnTomoParticlesFile", "rlnTomoTomogramsFile", "rlnOpticsGroup"]


def write_particles_star(
    path: str | Path,
    particles: Mapping[str, ParticleList],
    *,
    voxel_size: float,
    class_numbers: Mapping[str, int],
    shape: Shape | Mapping[str, Shape] | None = None,
    version: int = 5,
) -> None:
    """Write a STAR file of particles: one table, `data_particles`, without optics groups.

    RELION 4 imports it; RELION 5 takes it as a set of particles and adds the optics groups of the tomograms. RELION's
    own pixels are those of the tilt-series: scale coordinates of binned tomograms, or use version 5, which counts Å.

    Columns: `rlnTomoName` (for version 3 also `rlnMicrographName`), the coordinates, `rlnAngleRot`, `rlnAngleTilt`,
    `rlnAnglePsi`, `rlnClassNumber`, the voxel size in Å (`rlnPixelSize` for version 3, `rlnTomoTiltSeriesPixelSize` for
    the others), and `faketClassName`, which RELION passes on. Where a particle has no orientation its angles are 0,
    since RELION needs numbers, and a column `faketOriented` says which angles count.

    Parameters
    ----------
    path
        The file.
    particles
        The particles of each tomogram, by its name.
    voxel_size
        Å, of the tomograms.
    class_numbers
        Class numbers by name.
    shape
        `(z, y, x)` of the tomograms, in voxels, or of each by its name; for version 5, which counts from the centre.
    version
        3 or 4 (voxels from 0) or 5 (Å from the centre).

    Raises
    ------
    ValueError
        If a name is no word or has no number, a place is not finite, or the shape is needed and not given.
    """
    check_choice("version", version, VERSIONS)
    check_positive("voxel_size", voxel_size)
    check_words(particles, "names of tomograms")
    partly = not all(one.oriented.all() for one in particles.values())
    rows: list[list[str]] = []
    for name, one in particles.items():
        check_writable(one)
        size = _shape_of(shape, name) if version == 5 else None
        rows += _rows(name, one, numbers_of(one.names, class_numbers), voxel_size, size, partly)
    names = ["rlnTomoName", *(_CENTERED if version == 5 else _PIXELS), *_ANGLES, "rlnClassNumber"]
    names += ["rlnPixelSize" if version == 3 else "rlnTomoTiltSeriesPixelSize", NAME_COLUMN]
    names += [ORIENTED_COLUMN] if partly else []
    if version == 3:
        names, rows = ["rlnMicrographName", *names], [[row[0], *row] for row in rows]
    write_text(path, _table(names, rows))


def _rows(
    tomogram: str,
    particles: ParticleList,
    numbers: Sequence[int],
    voxel_size: float,
    shape: Shape | None,
    partly: bool,
) -> list[list[str]]:
    places = particles.positions if shape is None else (particles.positions - np.array(shape) / 2) * voxel_size
    angles = np.nan_to_num(relion_angles(particles.orientations))
    return [
        [
            tomogram,
            *(f"{number:.6f}" for number in (x, y, z, *turns)),
            str(number),
            # All digits that tell it from its neighbours: a rounded size would move the particles far from the centre.
            repr(float(voxel_size)),
            name,
            *([str(int(known))] if partly else []),
        ]
        for name, number, (z, y, x), turns, known in zip(
            particles.names, numbers, places, angles, particles.oriented, strict=True
        )
    ]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = ["", "data_particles", "", "loop_", *(f"_{name} #{i}" for i, name in enumerate(names, start=1))]
    return "\n".join([*head, *("\t".join(row) for row in rows), "", ""])


def _shape_of(shape: Shape | Mapping[str, Shape] | None, tomogram: str) -> Shape:
    found = shape.get(tomogram) if isinstance(shape, Mapping) else shape
    if found is None:
        raise ValueError(
            f"expected the shape (z, y, x) of tomogram {tomogram} for version 5, whose coordinates count from its "
            "centre, got none; set `shape`"
        )
    return found


def read_particles_star(
    path: str | Path,
    *,
    voxel_size: float | None = None,
    shape: Shape | Mapping[str, Shape] | None = None,
    class_names: Mapping[int, str] | None = None,
) -> dict[str, ParticleList]:
    """Read a STAR file of particles, or RELION's optimisation set, whose particles and tomograms are then followed.

    Parameters
    ----------
    path
        The file.
    voxel_size
        Å, of the tomograms whose voxels are wanted. By default that which the file's coordinates count in
        (`rlnTomoTiltSeriesPixelSize`, `rlnPixelSize`, or `rlnDetectorPixelSize` over `rlnMagnification`); version 5's
        need one where the file holds none. Given and different, versions 3's and 4's coordinates are scaled.
    shape
        `(z, y, x)` of the tomograms in voxels of `voxel_size`, or of each by its name; for version 5's centred
        coordinates.
    class_names
        Names of `rlnClassNumber`, where the file has none of its own (`faketClassName`); the numbers by default.

    Returns
    -------
    The particles of each tomogram by its name (`rlnTomoName`, else `rlnMicrographName` without `.tomostar`, else the
    file's stem), in the order of the file.

    Raises
    ------
    FileFormatError
        If it is no STAR file of particles, lacks coordinates or some of the angles, or holds what is not a number.
    ValueError
        If a shape or a voxel size is needed and not given; the message asks for it.
    """
    path = Path(path)
    if voxel_size is not None:
        check_positive("voxel_size", voxel_size)
    blocks = _read_blocks(path)
    files = next((block for block in blocks.values() if "rlnTomoParticlesFile" in block), None)
    if files is not None:
        particles = _follow(path, _only(files["rlnTomoParticlesFile"]))
        tomograms = _read_blocks(_follow(path, _only(files["rlnTomoTomogramsFile"])))
        voxel_size, shape = _sizes(tomograms, path, voxel_size, shape)
        return read_particles_star(particles, voxel_size=voxel_size, shape=shape, class_names=class_names)
    table = _particle_table(blocks, path)
    found: dict[str, ParticleList] = {}
    # As an array: a list of one name would be taken for that of a column.
    for name, part in table.groupby(np.array(_tomogram_names(table, path), dtype=object), sort=False):
        found[str(name)] = _particle_list(part, path, str(name), voxel_size, shape, class_names)
    return found


def _read_blocks(path: Path) -> dict[str, Any]:
    """Read all blocks: tables as data frames, lists of single values as dictionaries."""
    import starfile

    if not path.is_file():
        raise FileNotFoundError(f"expected a STAR file, found none at {path}")
    try:
        blocks = starfile.read(path, always_dict=True, parse_as_string=_TEXT)
    except Exception as error:
        raise FileFormatError(
            f"{path}: expected a STAR file, got one that cannot be read ({type(error).__name__}: {error})"
        ) from error
    return {name: block for name, block in blocks.items() if block is not None}


def _particle_table(blocks: Mapping[str, Any], path: Path) -> pd.DataFrame:
    """Find the table with coordinates, and give each row the pixel size of its optics group."""
    tables = {name: block for name, block in blocks.items() if hasattr(block, "columns")}
    table = next((t for t in tables.values() if set(_PIXELS) <= set(t) or set(_CENTERED) <= set(t)), None)
    if table is None:
        columns = ", ".join(column for block in blocks.values() for column in block) or "none"
        raise FileFormatError(
            f"{path}: expected a table with {', '.join(_PIXELS)} or {', '.join(_CENTERED)}, got the columns {columns}"
        )
    optics = tables.get("optics")
    wanted = ["rlnOpticsGroup", "rlnTomoTiltSeriesPixelSize"]
    if optics is None or not set(wanted) <= set(optics) or wanted[0] not in table or wanted[1] in table:
        return cast("pd.DataFrame", table)
    sizes = dict(zip(optics[wanted[0]], optics[wanted[1]], strict=True))
    return cast("pd.DataFrame", table.assign(rlnTomoTiltSeriesPixelSize=[sizes.get(g) for g in table[wanted[0]]]))


def _tomogram_names(table: pd.DataFrame, path: Path) -> list[str]:
    column = next((name for name in _TOMOGRAM_NAMES if name in table), None)
    if column is None:
        return [path.stem] * len(table)
    return [str(name).removesuffix(".tomostar") for name in table[column]]


def _particle_list(
    table: pd.DataFrame,
    path: Path,
    tomogram: str,
    voxel_size: float | None,
    shape: Shape | Mapping[str, Shape] | None,
    class_names: Mapping[int, str] | None,
) -> ParticleList:
    own_size = _own_pixel_size(table, path)
    size = voxel_size or own_size
    inner = _matrices(table, _SUBTOMOGRAM_ANGLES, path)
    turned = _matrices(table, _ANGLES, path)
    # (x, y, z), voxels of `size`.
    if set(_CENTERED) <= set(table):
        if size is None:
            raise ValueError(f"{path}: expected the voxel size of tomogram {tomogram}; set `voxel_size` in Å")
        places = _columns(table, _CENTERED, path) / size + _center(shape, path, tomogram)[::-1] / 2
    else:
        places = _columns(table, _PIXELS, path) * ((own_size or 1.0) / size if size and own_size else 1.0)
    places = places - _shifts(table, path, size, own_size, inner)
    orientations = turned if inner is None else inner if turned is None else inner @ turned
    if orientations is None:
        orientations = np.full((len(table), 3, 3), np.nan)
    if ORIENTED_COLUMN in table:
        orientations[_columns(table, (ORIENTED_COLUMN,), path)[:, 0] == 0] = np.nan
    return ParticleList(_class_names(table, path, class_names), places[:, ::-1].copy(), orientations)


def _center(shape: Shape | Mapping[str, Shape] | None, path: Path, tomogram: str) -> FloatArray:
    found = shape.get(tomogram) if isinstance(shape, Mapping) else shape
    if found is None:
        raise ValueError(
            f"{path}: expected the shape of tomogram {tomogram}, since its coordinates count from the centre; "
            "set `shape` to (z, y, x) in voxels of `voxel_size`"
        )
    return np.array(found, dtype=np.float64)


def _shifts(
    table: pd.DataFrame, path: Path, size: float | None, own_size: float | None, inner: FloatArray | None
) -> FloatArray:
    """Read the shifts `(n, 3)`, x, y, z, in voxels of `size`, turned by the subtomogram's orientation."""
    shifts = np.zeros((len(table), 3))
    if set(_SHIFTS) & set(table):
        values = _columns(table, _SHIFTS, path)
        if values.any() and size is None:
            raise ValueError(f"{path}: expected a voxel size for {', '.join(_SHIFTS)}; set `voxel_size` in Å")
        shifts = values / (size or 1.0)
    elif set(_PIXEL_SHIFTS) & set(table):
        shifts = _columns(table, _PIXEL_SHIFTS, path) * (own_size / size if size and own_size else 1.0)
    return shifts if inner is None else np.einsum("nij,nj->ni", inner, shifts)


def _matrices(table: pd.DataFrame, names: Sequence[str], path: Path) -> FloatArray | None:
    there = [name for name in names if name in table]
    return relion_matrices(_columns(table, names, path)) if there else None


def _class_names(table: pd.DataFrame, path: Path, class_names: Mapping[int, str] | None) -> tuple[str, ...]:
    if NAME_COLUMN in table:
        return tuple(str(name) for name in table[NAME_COLUMN])
    if "rlnClassNumber" not in table:
        return ("particle",) * len(table)
    numbers = [int(number) for number in _columns(table, ("rlnClassNumber",), path)[:, 0]]
    unknown = sorted(set(numbers) - set(class_names or numbers))
    if unknown:
        listed = ", ".join(str(number) for number in class_names or ())
        raise FileFormatError(f"{path}: expected rlnClassNumber of the table ({listed}), got {unknown}")
    return tuple(class_names[number] if class_names else str(number) for number in numbers)


def _own_pixel_size(table: pd.DataFrame, path: Path) -> float | None:
    """Find the voxel size, in Å, that the file's coordinates in voxels count in."""
    sizes = next((_columns(table, (name,), path)[:, 0] for name in _PIXEL_SIZES if name in table), None)
    detector = ("rlnDetectorPixelSize", "rlnMagnification")
    if sizes is None and set(detector) <= set(table):
        # RELION 3: µm on the detector.
        sizes = 1e4 * _columns(table, detector[:1], path)[:, 0] / _columns(table, detector[1:], path)[:, 0]
    if sizes is None or len(sizes) == 0:
        return None
    if sizes.min() <= 0 or np.ptp(sizes) > 1e-6 * sizes.max():
        raise FileFormatError(
            f"{path}: expected one positive pixel size for a tomogram's particles, got {sorted(set(sizes.tolist()))}"
        )
    return float(sizes[0])


def _columns(table: pd.DataFrame, names: Sequence[str], path: Path) -> FloatArray:
    """Read columns as numbers `(n, len(names))`."""
    missing = [name for name in names if name not in table]
    if missing:
        raise FileFormatError(f"{path}: expected the columns {', '.join(names)}, {', '.join(missing)} not found")
    values = np.empty((len(table), len(names)))
    for i, name in enumerate(names):
        for j, value in enumerate(table[name].tolist()):
            try:
                values[j, i] = float(value)
            except (TypeError, ValueError):
                values[j, i] = np.nan
            if not np.isfinite(values[j, i]):
                row = int(table.index[j]) + 1
                raise FileFormatError(f"{path}, row {row} of the table: expected a number as {name}, got {value!r}")
    return values


def _sizes(
    blocks: Mapping[str, Any],
    path: Path,
    voxel_size: float | None,
    shape: Shape | Mapping[str, Shape] | None,
) -> tuple[float, Shape | Mapping[str, Shape]]:
    """Find the tomograms' voxel size and shapes in RELION's tomogram set, where they are not given."""
    table = next((b for b in blocks.values() if hasattr(b, "columns") and set(_SIZES) <= set(b)), None)
    if table is None:
        raise FileFormatError(f"{path}: expected its tomogram set to hold {', '.join(_SIZES)}; set `shape`")
    pixel = _columns(table, _PIXEL_SIZES[:1], path)[:, 0]
    size = voxel_size or float(pixel[0])
    # The sizes are in pixels of the tilt-series; a shape in voxels may be fractional, which only the centre notices.
    shapes = _columns(table, _SIZES, path) * pixel[:, None] / size
    found = {name: tuple(row) for name, row in zip(_tomogram_names(table, path), shapes.tolist(), strict=True)}
    return size, shape or cast("Mapping[str, Shape]", found)


def _only(value: Any) -> str:
    return str(value if isinstance(value, str) else next(iter(value)))


def _follow(path: Path, name: str) -> Path:
    """Find a file that RELION names relative to its project's folder, which is the STAR file's or one above."""
    for folder in (path.parent, *path.resolve().parents):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{path}: expected {name}, which it names, in its folder or one above, found none")
