"""PolNet's motif lists: what was placed where in a synthetic tomogram, versions 1.0 and 1.1.

A motif list is a table separated by tabs, a row for each thing placed. Places `X`, `Y`, `Z` are voxel indices times the
voxel size, in Å. `Q1` to `Q4` are a unit quaternion **(w, x, y, z)** that turns the template into the specimen, on
(x, y, z). What else was measured on real output:

- A membrane's rows are the vertices of its surface, with the surface's normal in `Q1` to `Q3`: no particles.
- PolNet rounds a place to whole voxels when it adds a template's density; a cube of even size then lies half a voxel
  lower: the density's centre is `round(X / voxel_size) - 0.5` for even sizes, `round(X / voxel_size)` for odd ones.
- Of a filament only the first row of each polymer holds the whole rotation; the others keep the axis and drop the spin.
- `labels_table.csv` counts the files that were asked for, the volume those that were placed: `Label` and `Code` of the
  motif list say what the volume's numbers mean. In version 1.0 all membranes share number 1.

References
----------
github.com/anmartinezs/polnet (Apache-2.0), tag v1.0.0 and version 1.1.2.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from faket_aug._checks import FileFormatError, check_positive
from faket_aug.formats._text import as_number, as_whole, read_text, shortened
from faket_aug.formats.particles import ParticleList, checked_positions
from faket_aug.geometry import quaternion_matrices

_COLUMNS = ("type", "label", "code", "polymer", "x", "y", "z", "q1", "q2", "q3", "q4")
_DENSITY = "density"
MEMBRANE = "membrane"
#: Version 1.0's words for version 1.1's types.
_TYPES = {"helix": "filament", "sawlc": "cprotein", "mb-sawlc": "mbprotein"}
TYPES = (MEMBRANE, "filament", "cprotein", "mbprotein")


@dataclass(frozen=True, kw_only=True)
class PolnetTomogram:
    """The files of one tomogram in PolNet's output.

    Parameters
    ----------
    density, labels
        MRC files `(z, y, x)`.
    motifs
        The motif list.
    listed_as
        What the list's column of densities calls this tomogram's, where it holds several (version 1.0).
    """

    density: Path
    labels: Path
    motifs: Path
    listed_as: str | None = None


@dataclass(frozen=True, kw_only=True)
class MotifList:
    """What PolNet placed in one tomogram.

    Parameters
    ----------
    particles
        Filaments' monomers and proteins, without membranes, named by their code.
    numbers
        `(n,)`, the particles' numbers in the label volume.
    class_names
        Codes of all numbers, membranes too; several that share a number are joined by `+`. Of version 1.0, whose
        membranes share a number, they are called `membrane`.
    """

    particles: ParticleList
    numbers: npt.NDArray[np.int64]
    class_names: Mapping[int, str]


@dataclass(frozen=True)
class _Row:
    line: int
    type: str
    label: int
    code: str
    polymer: str
    place: tuple[float, float, float]
    turn: tuple[float, float, float, float]
    density: str


def find_polnet_tomograms(folder: str | Path) -> list[PolnetTomogram]:
    """Find the tomograms in PolNet's output (of version 1.1 also one in its own folder), in the order of their numbers.

    Version 1.0: `tomos_motif_list.csv` and `tomos/tomo_den_0.mrc`, `tomos/tomo_lbls_0.mrc`, ... Version 1.1:
    `Tomo001/tomo_001_den.mrc`, `tomo_001_lbl.mrc`, `tomo_001_motif_list.csv`, ...

    Returns
    -------
    None where the folder is no such output.

    Raises
    ------
    FileNotFoundError
        If a tomogram lacks its labels or its list.
    """
    folder = Path(folder)
    found = [
        PolnetTomogram(
            density=density,
            labels=density.with_name(density.name.replace("_den.", "_lbl.")),
            motifs=density.with_name(density.name.replace("_den.mrc", "_motif_list.csv")),
        )
        for density in [*folder.glob("tomo_*_den.mrc"), *folder.glob("Tomo*/tomo_*_den.mrc")]
    ]
    found += [
        PolnetTomogram(
            density=density,
            labels=density.with_name(density.name.replace("_den_", "_lbls_")),
            motifs=folder / "tomos_motif_list.csv",
            listed_as=density.name,
        )
        for density in folder.glob("tomos/tomo_den_*.mrc")
    ]
    for one in found:
        for path in (one.labels, one.motifs):
            if not path.is_file():
                raise FileNotFoundError(f"{one.density}: expected {path} with it, found none")
    return sorted(found, key=lambda one: (one.density.parent, [int(n) for n in re.findall(r"\d+", one.density.stem)]))


def read_motif_list(
    path: str | Path,
    *,
    voxel_size: float,
    shape: Sequence[int] | None = None,
    density: str | None = None,
    template_sizes: Mapping[str, int] | None = None,
) -> MotifList:
    """Read the motif list of one tomogram.

    Parameters
    ----------
    path
        The file.
    voxel_size
        Å.
    shape
        `(z, y, x)` of the volume; given, a row outside it is an error.
    density
        Name of the tomogram's density file, where the list holds several tomograms (version 1.0).
    template_sizes
        Edges of the templates' cubes in voxels, by code. Where given, a particle's place is the centre of the density
        that PolNet added; else it is what the list says, which lies beside it by up to half a voxel along each axis (up
        to a whole one for even sizes).

    Raises
    ------
    FileFormatError
        If a column is missing, no row is of `density`, a type is unknown, a row holds what is no number or lies outside
        the volume; the message names file and line.
    """
    check_positive("voxel_size", voxel_size)
    path = Path(path)
    every = _read_rows(path)
    rows = [row for row in every if density is None or row.density == density]
    if every and not rows:
        listed = ", ".join(dict.fromkeys(row.density for row in every if row.density)) or "no column `Density`"
        raise FileFormatError(f"{path}: expected rows of {density} in the column `Density`, got {listed}")
    codes: dict[int, dict[str, None]] = {}
    for row in rows:
        codes.setdefault(row.label, {})[MEMBRANE if row.density and row.type == MEMBRANE else row.code] = None
        _check_inside(row, path, voxel_size, shape)
    kept = [row for row in rows if row.type != MEMBRANE]
    places = np.array([row.place[::-1] for row in kept]).reshape(-1, 3) / voxel_size
    for i, row in enumerate(kept):
        size = (template_sizes or {}).get(row.code)
        if size is not None:
            places[i] = np.rint(places[i]) - (0.5 if size % 2 == 0 else 0.0)
    return MotifList(
        particles=ParticleList(tuple(row.code for row in kept), places, _orientations(kept)),
        numbers=np.array([row.label for row in kept], dtype=np.int64),
        class_names={number: "+".join(names) for number, names in sorted(codes.items())},
    )


def _orientations(rows: Sequence[_Row]) -> npt.NDArray[np.float64]:
    matrices = quaternion_matrices(np.array([row.turn for row in rows]).reshape(-1, 4))
    begun = set()
    for i, row in enumerate(rows):
        polymer = (row.type, row.code, row.polymer)
        if row.type == "filament" and polymer in begun:
            matrices[i] = np.nan
        begun.add(polymer)
    return matrices


def _read_rows(path: Path) -> list[_Row]:
    table = csv.reader(read_text(path, "PolNet's motif list").splitlines(), delimiter="\t")
    try:
        header = [name.strip().lower() for name in next(table, [])]
        missing = [name for name in _COLUMNS if name not in header]
        if missing:
            raise FileFormatError(
                f"{path}: expected PolNet's columns {', '.join(_COLUMNS)}, {', '.join(missing)} not found among "
                f"{shortened(', '.join(header)) or 'none'}"
            )
        return [_row(dict(zip(header, row, strict=False)), path, table.line_num) for row in table if any(row)]
    except csv.Error as error:
        raise FileFormatError(f"{path}, line {table.line_num}: expected a row of a table, got {error}") from None


def _row(values: Mapping[str, str], path: Path, line: int) -> _Row:
    where = f"{path}, line {line}"
    kind = values.get("type", "").strip().lower()
    kind = _TYPES.get(kind, kind)
    if kind not in TYPES:
        raise FileFormatError(f"{where}: expected a type of {', '.join((*TYPES, *_TYPES))}, got {values.get('type')!r}")
    x, y, z, q1, q2, q3, q4 = (as_number(values.get(name, "")) for name in ("x", "y", "z", "q1", "q2", "q3", "q4"))
    label = as_whole(values.get("label", ""))
    if label is None or np.isnan([x, y, z, q1, q2, q3, q4]).any() or any(name not in values for name in _COLUMNS):
        raise FileFormatError(f"{where}: expected numbers, got {shortened(', '.join(map(str, values.values())))}")
    checked_positions(np.array([[z, y, x]]), where)
    if kind != MEMBRANE and (q1, q2, q3, q4) == (0, 0, 0, 0):
        raise FileFormatError(f"{where}: expected a place and a rotation, got {x, y, z} and {q1, q2, q3, q4}")
    # Paths of another machine, whose separators may be others, too.
    density = re.split(r"[/\\]", values.get(_DENSITY, ""))[-1]
    return _Row(line, kind, label, values["code"], values["polymer"], (x, y, z), (q1, q2, q3, q4), density)


def _check_inside(row: _Row, path: Path, voxel_size: float, shape: Sequence[int] | None) -> None:
    """Raise where a place lies outside the volume; surfaces and rounding may reach one voxel beyond its corners."""
    if shape is None:
        return
    sizes = tuple(shape)[::-1]
    if not all(-1 <= place / voxel_size <= size for place, size in zip(row.place, sizes, strict=True)):
        raise FileFormatError(
            f"{path}, line {row.line}: expected a place within the volume of {tuple(n * voxel_size for n in sizes)} Å "
            f"(x, y, z), got {row.place}; is the voxel size {voxel_size:g} Å right?"
        )


def common_classes(tables: Sequence[Mapping[int, str]]) -> dict[int, str]:
    """Unite tables of class names; number them anew where a number or a name means two things."""
    pairs = dict.fromkeys(pair for table in tables for pair in sorted(table.items()))
    numbers, names = ({pair[i] for pair in pairs} for i in (0, 1))
    if len(numbers) == len(names) == len(pairs):
        return dict(sorted(pairs))
    return dict(enumerate(dict.fromkeys(name for _, name in pairs), start=1))
