"""AreTomo's files of a tilt-series: the alignment `.aln` and the CTF text, of versions 1 to 3."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import FileFormatError
from faket_aug.formats._text import as_whole, lines, numbers, read_text
from faket_aug.formats.tilt_metadata import TiltMetadata, defocus_fields

GLOBAL_COLUMNS = "SEC ROT GMAG TX TY SMEAN SFIT SCALE BASE TILT"
CTF_COLUMNS = "number, two defocus values in Å, azimuth, phase shift, score, resolution and perhaps dfHand"


def read_aln(path: str | Path, *, whole: bool = False) -> TiltMetadata:
    """Read an AreTomo alignment, `.aln`.

    An aligned pixel (x', y) is read at `(x' cos ROT − y sin ROT + TX, x' sin ROT + y cos ROT + TY)` of the measured
    image, all counted from the middle and in pixels of the unbinned images that AreTomo was given (`RawSize`). Dark
    frames are no rows, and left out of `sections`. TILT is taken as it is (AreTomo has added its AlphaOffset). The
    local alignment of patches, where there is one, is not applied.

    AreTomo's versions number sections in different ways: from 0 or from 1, among all sections or among those that are
    not dark. The numbering is taken in which rows and dark frames do not collide and, where there is one, in which the
    angles, dark frames' included, are in order.

    Parameters
    ----------
    path
        The file.
    whole
        Refuse a file with fewer rows and dark frames than sections also where a local alignment follows them (without
        one, such a file was cut, and is always refused).

    Raises
    ------
    FileFormatError
        If a line holds other than ten numbers, RawSize or rows are missing, angles are beyond 180°, or no numbering of
        sections fits the dark frames.

    References
    ----------
    AreTomo2 (github.com/czimaginginstitute/AreTomo2, BSD-3), `Correct/GCorrPatchShift.cu` (the equation),
    `ImodUtil/CSaveXF.cpp` (the same as an `.xf`), `MrcUtil/CSaveAlnFile.cpp`; AreTomo3, `MrcUtil/CSaveAlignFile.cpp`.
    """
    path = Path(path)
    size, darks, rows, local = _aln_parts(path)
    if size is None or not rows:
        raise FileFormatError(f"{path}: expected an AreTomo alignment with `# RawSize` and rows `{GLOBAL_COLUMNS}`")
    if len(rows) + len(darks) < size[2] and (whole or not local):
        raise FileFormatError(
            f"{path}: expected a row or a DarkFrame for each of the {size[2]} sections of RawSize, got {len(rows)} "
            f"rows and {len(darks)} dark frames; the file is cut, or of another stack"
        )
    table = np.array(rows)
    return TiltMetadata(
        sections=_sections(path, table[:, 0], table[:, 9], darks, size[2]),
        section_count=size[2],
        tilt_angles=table[:, 9],
        axis_angle=table[:, 1],
        shifts=table[:, [4, 3]],
        shift_unit="pixel",
        centre="middle",
        image_size=(size[1], size[0]),
        source=str(path),
    )


def _aln_parts(path: Path) -> tuple[tuple[int, int, int] | None, list[list[float]], list[list[float]], bool]:
    """Read RawSize (x, y, section), the dark frames, the rows, and whether a local alignment follows."""
    size: tuple[int, int, int] | None = None
    darks: list[list[float]] = []
    rows: list[list[float]] = []
    # In this format the lines of the header are what other formats call comments.
    for number, line in enumerate(read_text(path, "an AreTomo alignment").splitlines(), start=1):
        where = f"{path}, line {number}"
        key, _, value = line.lstrip("# ").partition("=")
        if line.startswith("#") and key.startswith("RawSize"):
            x, y, z = (as_whole(word) for word in numbers(value, where, "RawSize = x y sections", [3]))
            if not x or not y or not z or min(x, y, z) < 1:
                raise FileFormatError(f"{where}: expected RawSize = x y sections, got {value.strip()!r}")
            size = (x, y, z)
        elif line.startswith("#") and key.startswith("DarkFrame"):
            darks.append(_with_whole(numbers(value, where, "DarkFrame = index section angle", [3]), 2, where))
        elif line.startswith("#") and key.startswith("Local Alignment"):
            return size, darks, rows, True
        elif line.strip() and not line.startswith("#") and not (number == 1 and not line.split()[0].isdigit()):
            rows.append(_with_whole(numbers(line, where, GLOBAL_COLUMNS, [10]), 1, where))
    return size, darks, rows, False


def _with_whole(row: list[float], count: int, where: str) -> list[float]:
    """Raise a `FileFormatError` unless the first numbers of a row are whole ones."""
    if any(as_whole(value) is None for value in row[:count]):
        raise FileFormatError(f"{where}: expected whole numbers of sections, got {row[:count]}")
    return row


def _sections(path: Path, given: FloatArray, tilts: FloatArray, darks: list[list[float]], count: int) -> IntArray:
    """Find the numbering in which rows and dark frames fit into one stack."""
    fitting = []
    angles = np.concatenate([tilts, [row[2] for row in darks]])
    for sections, dark in _numberings(given.astype(np.int64), np.array(darks).reshape(-1, 3), count):
        everything = np.concatenate([sections, dark])
        if everything.min() < 0 or everything.max() >= count or len(set(everything.tolist())) != len(everything):
            continue
        steps = np.diff(angles[np.argsort(everything)])
        if (steps > 0).all() or (steps < 0).all():
            return sections
        fitting.append(sections)
    if not fitting:
        raise FileFormatError(
            f"{path}: expected sections that fit {count} sections of which {len(darks)} are dark, got "
            f"{given.astype(int).tolist()} and dark frames {[int(row[0]) for row in darks]}"
        )
    # In none are the angles in order, so the stack was not sorted: the numbering of versions 1 and 2 goes first.
    return fitting[0]


def _numberings(given: IntArray, darks: FloatArray, count: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Give the sections of rows and of dark frames in all numberings that AreTomo's versions have used."""
    index, section = darks[:, 0].astype(np.int64), darks[:, 1].astype(np.int64)
    for first in (0, 1):
        yield given - first, section - first
    for first, dark_first in product((0, 1), (0, 1)):
        yield given - first, index - dark_first
    for first, dark_first in product((0, 1), (0, 1)):
        kept = np.setdiff1d(np.arange(count), index - dark_first)
        # A count of the kept ones begins with the first of them.
        if given.min() == first and given.max() - first < len(kept):
            yield kept[given - first], index - dark_first


def read_aretomo_ctf(path: str | Path) -> TiltMetadata:
    """Read the CTF of an AreTomo series (`_CTF.txt`, `_ctf.txt`): 7 columns, or 8 with the handedness.

    Returns
    -------
    Metadata without angles: defocus (Å in the file), astigmatism, phase shift (radians in the file), handedness.

    Raises
    ------
    FileFormatError
        If a line has another number of columns, or there is none; the message names file and line.

    References
    ----------
    AreTomo2 and 3, `FindCtf/CSaveCtfResults.cpp`; the columns are CTFFIND 4's.
    """
    path = Path(path)
    rows = [numbers(line, f"{path}, line {n}", CTF_COLUMNS, [7, 8]) for n, line in lines(path, "an AreTomo CTF file")]
    if not rows:
        raise FileFormatError(
            f"{path}: expected a line `{CTF_COLUMNS}` for each tilt, got none; run AreTomo's CTF fit again"
        )
    if len({len(row) for row in rows}) != 1:
        raise FileFormatError(
            f"{path}: expected 7 columns in each line, or 8 in each, got lines of both; the file was joined from two "
            "versions of AreTomo or is damaged, so write it again"
        )
    table = np.array([_with_whole(row, 1, f"{path}") for row in rows])
    hands = set(table[:, 7].astype(int).tolist()) if table.shape[1] == 8 else set()
    return TiltMetadata(
        sections=table[:, 0].astype(np.int64) - 1,
        **defocus_fields(table[:, 1] * 1e-4, table[:, 2] * 1e-4, table[:, 3]),
        phase_shift=np.rad2deg(table[:, 4]),
        handedness=hands.pop() if len(hands) == 1 else None,
        source=str(path),
    )
