"""RELION's STAR files of particles: versions 3, 4 and 5, also as Warp, M and template matching programs write them.

Angles are RELION's rot, tilt and psi (`faket_aug.geometry.relion_matrices`). A particle may carry two orientations: its
subtomogram's (`rlnTomoSubtomogramRot`, ...) and its own within it (`rlnAngleRot`, ...); the whole is their product in
this order. Its place is the coordinate less the shift `rlnOriginXAngst` (or `rlnOriginX`, in pixels), the shift turned
by the subtomogram's orientation.

Coordinates: `rlnCoordinateX/Y/Z` of versions 3 and 4 count voxels from 0 (version 4 adds 1 to them, and its geometry
from IMOD takes 1 off again). `rlnCenteredCoordinateX/Y/ZAngst` of version 5 are Å from the tomogram's centre, which is
size / 2 in voxels counted from 0, also where the size is odd: a voxel index is coordinate / voxel_size + size / 2.
RELION's own Python picker takes size / 2 - 1 in unbinned pixels; its C++ programs, which project and extract, do not.
Coordinates of WarpTools' two-dimensional particles (`rlnTomoSubTomosAre2DStacks`, tomograms named `.tomostar`) count
voxels of `rlnImagePixelSize`, though their `rlnTomoTiltSeriesPixelSize` is another.

References
----------
RELION 4 and 5: `ParticleSet::getPosition`, `getParticleCoordDecenteredPixel`, `getMatrix3x3` and `getMatrix4x4` in
`src/jaz/tomography/particle_set.cpp`, `TomogramSet::loadTomogram` (`centre`), `apps/import_particles.cpp` there (it
reads the first table of the file); the particle set in RELION's documentation (Subtomogram averaging, Data types);
github.com/3dem/relion, issue 1137 and pull request 1353, on the centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError, check_choice, check_positive
from faket_aug.formats._atomic import write_text
from faket_aug.formats._text import StarTable, as_number, as_whole, follow, shortened, star_tables
from faket_aug.formats.particles import (
    ParticleList,
    check_words,
    check_writable,
    checked_positions,
    checked_turns,
    numbers_of,
)
from faket_aug.geometry import relion_angles, relion_matrices

Shape = tuple[int, int, int]

VERSIONS = (3, 4, 5)
#: Columns of our own, which RELION passes on: the class's name, and 0 where the three angles mean nothing.
NAME_COLUMN = "faketClassName"
ORIENTED_COLUMN = "faketOriented"
#: RELION's score of a pick.
SCORE_COLUMN = "rlnAutopickFigureOfMerit"

_PIXELS = ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ")
_CENTERED = ("rlnCenteredCoordinateXAngst", "rlnCenteredCoordinateYAngst", "rlnCenteredCoordinateZAngst")
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_SUBTOMOGRAM_ANGLES = ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")
_SHIFTS = ("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst")
_PIXEL_SHIFTS = ("rlnOriginX", "rlnOriginY", "rlnOriginZ")
_SIZES = ("rlnTomoSizeZ", "rlnTomoSizeY", "rlnTomoSizeX")
_TOMOGRAM_NAMES = ("rlnTomoName", "rlnMicrographName")
_PIXEL_SIZES = ("rlnTomoTiltSeriesPixelSize", "rlnPixelSize")
#: How the names of tomograms end that WarpTools writes.
_WARP_NAME = ".tomostar"
#: Å, of a pixel of coordinates that are in Å.
_WARP_COORDINATES = 1.0


def write_particles_star(
    path: str | Path,
    particles: Mapping[str, ParticleList],
    *,
    voxel_size: float,
    class_numbers: Mapping[str, int],
    shape: Shape | Mapping[str, Shape] | None = None,
    version: int = 5,
    pixel_size: float | None = None,
) -> None:
    """Write a STAR file of particles: one table, `data_particles`, without optics groups.

    RELION 4 imports it; RELION 5 takes it as a set of particles and adds the optics groups of the tomograms. RELION's
    own pixels are those of the tilt-series: give `pixel_size` for those of binned tomograms.

    Columns: `rlnTomoName` (for version 3 also `rlnMicrographName`), the coordinates, `rlnAngleRot`, `rlnAngleTilt`,
    `rlnAnglePsi`, `rlnClassNumber`, the voxel size in Å (`rlnPixelSize` for version 3, `rlnTomoTiltSeriesPixelSize` for
    the others), and `faketClassName`, which RELION passes on. Where a particle has no orientation its angles are 0,
    since RELION needs numbers, and a column `faketOriented` says which angles count. Scores, where all particles have
    them, are `rlnAutopickFigureOfMerit`.

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
    pixel_size
        Å, of the tilt-series before binning: what RELION counts in. By default the tomograms' voxel size. A voxel's
        index times the binning is the pixel's.

    Raises
    ------
    ValueError
        If a name is no word or has no number, a place is not finite, or the shape is needed and not given.
    """
    check_choice("version", version, VERSIONS)
    check_positive("voxel_size", voxel_size)
    counted = voxel_size if pixel_size is None else pixel_size
    check_positive("pixel_size", counted)
    check_words(particles, "names of tomograms")
    partly = not all(one.oriented.all() for one in particles.values())
    scored = _scored(particles)
    rows: list[list[str]] = []
    for name, one in particles.items():
        check_writable(one)
        numbers = numbers_of(one.names, class_numbers)
        places = one.positions
        if version == 5:
            places = (places - np.array(_shape_of(shape, name)) / 2) * voxel_size
        elif counted != voxel_size:
            places = places * (voxel_size / counted)
        rows += _rows(name, one, places, numbers, counted, partly, scored)
    names = ["rlnTomoName", *(_CENTERED if version == 5 else _PIXELS), *_ANGLES, "rlnClassNumber"]
    names += ["rlnPixelSize" if version == 3 else "rlnTomoTiltSeriesPixelSize", NAME_COLUMN]
    names += [ORIENTED_COLUMN] if partly else []
    names += [SCORE_COLUMN] if scored else []
    if version == 3:
        names, rows = ["rlnMicrographName", *names], [[row[0], *row] for row in rows]
    write_text(path, _table(names, rows))


def write_warp_star(
    path: str | Path,
    particles: Mapping[str, ParticleList],
    *,
    voxel_size: float,
    class_numbers: Mapping[str, int],
) -> None:
    """Write a STAR file for Warp and WarpTools: places in Å from the first voxel, tomograms named `NAME.tomostar`.

    `WarpTools ts_export_particles --input_star FILE --coords_angpix 1` reads it. Other columns are those of version 3
    of `write_particles_star`; a pixel size of 1 Å says what the coordinates count in.

    Parameters
    ----------
    path, particles, class_numbers
        As for `write_particles_star`.
    voxel_size
        Å, of the tomograms.
    """
    named = {name.removesuffix(_WARP_NAME) + _WARP_NAME: one for name, one in particles.items()}
    write_particles_star(
        path, named, voxel_size=voxel_size, class_numbers=class_numbers, version=3, pixel_size=_WARP_COORDINATES
    )


def _scored(particles: Mapping[str, ParticleList]) -> bool:
    return bool(particles) and all(one.scores is not None for one in particles.values())


def _rows(
    tomogram: str,
    particles: ParticleList,
    places: FloatArray,
    numbers: Sequence[int],
    pixel_size: float,
    partly: bool,
    scored: bool,
) -> list[list[str]]:
    angles = np.nan_to_num(relion_angles(particles.orientations))
    scores = [f"{score:.6f}" for score in particles.scores] if scored and particles.scores is not None else []
    return [
        [
            tomogram,
            *(f"{number:.6f}" for number in (x, y, z, *turns)),
            str(number),
            # All digits that tell it from its neighbours: a rounded size would move the particles far from the centre.
            repr(float(pixel_size)),
            name,
            *([str(int(known))] if partly else []),
            *scores[row : row + 1],
        ]
        for row, (name, number, (z, y, x), turns, known) in enumerate(
            zip(particles.names, numbers, places, angles, particles.oriented, strict=True)
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
        (`rlnTomoTiltSeriesPixelSize`, `rlnPixelSize`, or `rlnDetectorPixelSize` over `rlnMagnification`, or, alone, in
        Å, as pytom-match-pick writes it); version 5's need one where the file holds none. Given and different, versions
        3's and 4's coordinates are scaled.
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
    blocks = star_tables(path)
    files = next((block for block in blocks.values() if "rlnTomoParticlesFile" in block), None)
    if files is not None:
        particles = _named_file(path, files, "rlnTomoParticlesFile")
        if "rlnTomoTomogramsFile" in files:
            tomograms = _named_file(path, files, "rlnTomoTomogramsFile")
            voxel_size, shape = _sizes(star_tables(tomograms), tomograms, voxel_size, shape)
        if particles.resolve() == path.resolve():
            raise FileFormatError(f"{path}: expected _rlnTomoParticlesFile to name another file, got itself")
        return read_particles_star(particles, voxel_size=voxel_size, shape=shape, class_names=class_names)
    table = _particle_table(blocks, path)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(_tomogram_names(table, path)):
        rows.setdefault(name, []).append(row)
    known: dict[str, FloatArray] = {}
    return {
        name: _particle_list(_Rows(table, chosen, path, known), name, voxel_size, shape, class_names)
        for name, chosen in rows.items()
    }


def has_tomogram_names(path: str | Path) -> bool:
    """Whether a STAR file says which tomogram its particles are in (an optimisation set's particles do)."""
    tables = star_tables(path).values()
    return any(name in table for table in tables for name in (*_TOMOGRAM_NAMES, "rlnTomoParticlesFile"))


def star_tomogram_names(path: str | Path) -> list[str]:
    """List the tomograms whose particles a STAR file holds, or an optimisation set's particles do."""
    path = Path(path)
    blocks = star_tables(path)
    files = next((block for block in blocks.values() if "rlnTomoParticlesFile" in block), None)
    if files is not None:
        particles = _named_file(path, files, "rlnTomoParticlesFile")
        return [] if particles.resolve() == path.resolve() else star_tomogram_names(particles)
    return list(dict.fromkeys(_tomogram_names(_particle_table(blocks, path), path)))


def read_star_voxel_size(path: str | Path) -> float:
    """Read the voxel size, Å, that the coordinates of a STAR file of particles count in; 0 where it says none."""
    path = Path(path)
    blocks = star_tables(path)
    if any("rlnTomoParticlesFile" in block for block in blocks.values()):
        return 0.0
    table = _particle_table(blocks, path)
    return _own_pixel_size(_Rows(table, list(range(len(next(iter(table.values()))))), path, {})) or 0.0


def _named_file(path: Path, table: StarTable, column: str) -> Path:
    if not table[column] or table[column][0].lower() in ("", "none"):
        raise FileFormatError(f"{path}: expected a file named by _{column}, got none")
    return follow(path, table[column][0])


@dataclass(frozen=True)
class _Rows:
    """Some rows of a table: the particles of one tomogram."""

    table: StarTable
    chosen: list[int]
    path: Path
    #: Columns that were read as numbers, of all rows; shared by the tomograms of a file.
    known: dict[str, FloatArray]

    def __len__(self) -> int:
        return len(self.chosen)

    def __contains__(self, name: str) -> bool:
        return name in self.table

    def words(self, name: str) -> list[str]:
        return [self.table[name][row] for row in self.chosen]

    def numbers(self, names: Sequence[str]) -> FloatArray:
        """Read columns as numbers `(n, len(names))`."""
        missing = [name for name in names if name not in self.table]
        if missing:
            raise FileFormatError(
                f"{self.path}: expected the columns {', '.join(names)}, {', '.join(missing)} not found"
            )
        for name in set(names) - set(self.known):
            values = np.array([as_number(word) for word in self.table[name]], dtype=np.float64)
            if np.isnan(values).any():
                row = int(np.flatnonzero(np.isnan(values))[0])
                raise FileFormatError(
                    f"{self.path}, row {row + 1} of the table: expected a number as {name}, got "
                    f"{shortened(self.table[name][row])!r}"
                )
            self.known[name] = values
        return np.stack([self.known[name][self.chosen] for name in names], axis=-1)


def _particle_table(blocks: Mapping[str, StarTable], path: Path) -> StarTable:
    """Find the table with coordinates, and give each row the pixel size that its optics group has."""
    table = next((t for t in blocks.values() if set(_PIXELS) <= set(t) or set(_CENTERED) <= set(t)), None)
    if table is None:
        columns = ", ".join(column for block in blocks.values() for column in block) or "none"
        raise FileFormatError(
            f"{path}: expected a table with {', '.join(_PIXELS)} or {', '.join(_CENTERED)}, got the columns "
            f"{shortened(columns)}"
        )
    optics = blocks.get("optics", {})
    column = _PIXEL_SIZES[0]
    if _counts_images(blocks, table):
        # WarpTools gives the pixel size of the tilt-series here, and counts coordinates in that of the images.
        sizes = _optics_sizes(optics, "rlnImagePixelSize", table, path)
        if sizes is None:
            raise FileFormatError(
                f"{path}: expected rlnImagePixelSize for each optics group, which WarpTools' coordinates count in, got "
                "none"
            )
    else:
        sizes = None if column in table else _optics_sizes(optics, column, table, path)
    return table if sizes is None else table | {column: sizes}


def _counts_images(blocks: Mapping[str, StarTable], table: StarTable) -> bool:
    """Whether coordinates count voxels of the size of the particles' images: WarpTools' two-dimensional particles."""
    flat = any(as_whole(t["rlnTomoSubTomosAre2DStacks"][0]) == 1 for t in blocks.values() if _is_flag(t))
    names = next((table[name] for name in _TOMOGRAM_NAMES if name in table), [])
    return flat and set(_PIXELS) <= set(table) and any(name.endswith(_WARP_NAME) for name in names)


def _is_flag(table: StarTable) -> bool:
    return len(table.get("rlnTomoSubTomosAre2DStacks", [])) == 1


def _optics_sizes(optics: StarTable, column: str, table: StarTable, path: Path) -> list[str] | None:
    """Look up the pixel size of each row's optics group; None where the file does not tell it so."""
    group = "rlnOpticsGroup"
    if group not in table or not {group, column} <= set(optics):
        return None
    sizes = dict(zip(optics[group], optics[column], strict=True))
    if unknown := sorted(set(table[group]) - set(sizes)):
        raise FileFormatError(
            f"{path}: expected optics groups of data_optics ({', '.join(sizes)}), got {', '.join(unknown)}"
        )
    return [sizes[one] for one in table[group]]


def _tomogram_names(table: StarTable, path: Path) -> list[str]:
    column = next((name for name in _TOMOGRAM_NAMES if name in table), None)
    if column is None:
        return [path.stem] * len(next(iter(table.values()), []))
    return [name.removesuffix(_WARP_NAME) for name in table[column]]


def _particle_list(
    table: _Rows,
    tomogram: str,
    voxel_size: float | None,
    shape: Shape | Mapping[str, Shape] | None,
    class_names: Mapping[int, str] | None,
) -> ParticleList:
    own_size, path = _own_pixel_size(table), table.path
    size = voxel_size or own_size
    inner = _matrices(table, _SUBTOMOGRAM_ANGLES)
    turned = _matrices(table, _ANGLES)
    # (x, y, z), voxels of `size`.
    if all(name in table for name in _CENTERED):
        if size is None:
            raise ValueError(f"{path}: expected the voxel size of tomogram {tomogram}; set `voxel_size` in Å")
        places = table.numbers(_CENTERED) / size + _center(shape, path, tomogram)[::-1] / 2
    else:
        places = table.numbers(_PIXELS) * ((own_size or 1.0) / size if size and own_size else 1.0)
    places = places - _shifts(table, size, own_size, inner)
    orientations = turned if inner is None else inner if turned is None else inner @ turned
    if orientations is None:
        orientations = np.full((len(table), 3, 3), np.nan)
    if ORIENTED_COLUMN in table:
        orientations[table.numbers((ORIENTED_COLUMN,))[:, 0] == 0] = np.nan
    places = checked_positions(places[:, ::-1].copy(), path)
    return ParticleList(_class_names(table, class_names), places, orientations, _scores(table))


def _scores(table: _Rows) -> FloatArray | None:
    """Read the scores; a column that does not hold numbers alone says nothing."""
    try:
        return table.numbers((SCORE_COLUMN,))[:, 0] if SCORE_COLUMN in table else None
    except FileFormatError:
        return None


def _center(shape: Shape | Mapping[str, Shape] | None, path: Path, tomogram: str) -> FloatArray:
    found = shape.get(tomogram) if isinstance(shape, Mapping) else shape
    if found is None:
        raise ValueError(
            f"{path}: expected the shape of tomogram {tomogram}, since its coordinates count from the centre; "
            "set `shape` to (z, y, x) in voxels of `voxel_size`"
        )
    return np.array(found, dtype=np.float64)


def _shifts(table: _Rows, size: float | None, own_size: float | None, inner: FloatArray | None) -> FloatArray:
    """Read the shifts `(n, 3)`, x, y, z, in voxels of `size`, turned by the subtomogram's orientation."""
    shifts = np.zeros((len(table), 3))
    if any(name in table for name in _SHIFTS):
        values = table.numbers(_SHIFTS)
        if values.any() and size is None:
            raise ValueError(f"{table.path}: expected a voxel size for {', '.join(_SHIFTS)}; set `voxel_size` in Å")
        shifts = values / (size or 1.0)
    elif any(name in table for name in _PIXEL_SHIFTS):
        shifts = table.numbers(_PIXEL_SHIFTS) * (own_size / size if size and own_size else 1.0)
    return shifts if inner is None else np.einsum("nij,nj->ni", inner, shifts)


def _matrices(table: _Rows, names: Sequence[str]) -> FloatArray | None:
    there = [name for name in names if name in table]
    return relion_matrices(checked_turns(table.numbers(names), table.path)) if there else None


def _class_names(table: _Rows, class_names: Mapping[int, str] | None) -> tuple[str, ...]:
    if NAME_COLUMN in table:
        return tuple(table.words(NAME_COLUMN))
    if "rlnClassNumber" not in table:
        return ("particle",) * len(table)
    found = [as_whole(number) for number in table.numbers(("rlnClassNumber",))[:, 0]]
    if None in found:
        word = table.words("rlnClassNumber")[found.index(None)]
        raise FileFormatError(f"{table.path}: expected whole numbers as rlnClassNumber, got {shortened(word)}")
    numbers = [number for number in found if number is not None]
    unknown = sorted(set(numbers) - set(class_names or numbers))
    if unknown:
        listed = ", ".join(str(number) for number in class_names or ())
        raise FileFormatError(f"{table.path}: expected rlnClassNumber of the table ({listed}), got {unknown}")
    return tuple(class_names[number] if class_names else str(number) for number in numbers)


def _own_pixel_size(table: _Rows) -> float | None:
    """Find the voxel size, in Å, that the file's coordinates in voxels count in."""
    sizes = next((table.numbers((name,))[:, 0] for name in _PIXEL_SIZES if name in table), None)
    detector, magnification = "rlnDetectorPixelSize", "rlnMagnification"
    if sizes is None and detector in table:
        sizes = table.numbers((detector,))[:, 0]
        if magnification in table:
            # RELION 3: µm on the detector. Alone, as pytom-match-pick writes it, it is Å of the tomogram.
            times = table.numbers((magnification,))[:, 0]
            sizes = np.divide(1e4 * sizes, times, out=np.zeros_like(sizes), where=times > 0)
    if sizes is None or len(sizes) == 0:
        return None
    if sizes.min() <= 0 or np.ptp(sizes) > 1e-6 * sizes.max():
        raise FileFormatError(
            f"{table.path}: expected one positive pixel size for a tomogram's particles, got "
            f"{shortened(sorted(set(sizes.tolist())))}"
        )
    return float(sizes[0])


def _sizes(
    blocks: Mapping[str, StarTable],
    path: Path,
    voxel_size: float | None,
    shape: Shape | Mapping[str, Shape] | None,
) -> tuple[float | None, Shape | Mapping[str, Shape] | None]:
    """Find the tomograms' voxel size and shapes in RELION's tomogram set, where they are not given."""
    if voxel_size is not None and shape is not None:
        return voxel_size, shape
    found = next((block for block in blocks.values() if set(_SIZES) <= set(block)), None)
    if found is None:
        raise FileFormatError(f"{path}: expected a tomogram set with {', '.join(_SIZES)}; set `shape`")
    table = _Rows(found, list(range(len(found[_SIZES[0]]))), path, {})
    pixel = table.numbers(_PIXEL_SIZES[:1])[:, 0]
    if not len(pixel) or pixel.min() <= 0:
        raise FileFormatError(f"{path}: expected a positive {_PIXEL_SIZES[0]} for each tomogram, got {pixel.tolist()}")
    size = voxel_size or float(pixel[0])
    # The sizes are in pixels of the tilt-series; a shape in voxels may be fractional, which only the centre notices.
    shapes = table.numbers(_SIZES) * pixel[:, None] / size
    by_name = {name: tuple(row) for name, row in zip(_tomogram_names(found, path), shapes.tolist(), strict=True)}
    return size, shape or cast("Mapping[str, Shape]", by_name)
