"""Text files of the field: encodings, lines, columns of numbers, XML, and the tables of STAR files."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError

#: What no file of the field holds: larger numbers are damage. Coordinates and shifts (voxels, pixels or Å), tilt angles
#: and other directions (degrees), exposure (e⁻/Å²).
MAX_COORDINATE = 1e7
MAX_TILT = 180.0
MAX_DIRECTION = 720.0
MAX_EXPOSURE = 1e5

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: str | Path, what: str) -> str:
    """Read a text file in whatever encoding programs write: UTF-8, UTF-16 or UTF-32 by its mark, else Windows' cp1252.

    Parameters
    ----------
    path
        The file.
    what
        What it should be, for messages.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected {what}, found none at {path}")
    return decoded(path.read_bytes(), path, what)


def decoded(content: bytes, path: str | Path, what: str) -> str:
    """Turn a file's bytes into text, as `read_text`."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is None and content[:2].count(0) == 1 and len(content) % 2 == 0:
        # UTF-16 without a mark: letters of ASCII have a zero beside them.
        encoding = "utf-16-le" if content[1] == 0 else "utf-16-be"
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        # What remains is a page of Windows: comments with accents, numbers in ASCII.
        text = content.decode("cp1252", errors="replace")
    if "\0" in text:
        raise FileFormatError(f"{path}: expected {what}, got a file that is no text; give the right file")
    return text


def lines(path: str | Path, what: str) -> Iterator[tuple[int, str]]:
    """Read the lines of a text file that hold more than a comment, without it, with their numbers from 1."""
    for number, line in enumerate(read_text(path, what).splitlines(), start=1):
        if content := line.split("#")[0].strip():
            yield number, content


def as_number(word: object) -> float:
    """Read a finite number as programs write them; NaN where it is none."""
    text = str(word).strip()
    # Python takes 1_000 for a number, no program writes it.
    if "_" in text or len(text) > 400:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def as_whole(word: object) -> int | None:
    """Read a whole number of at most nine digits, also written as 3.0; None where it is none."""
    value = as_number(word)
    return int(value) if abs(value) < 1e9 and value == math.floor(value) else None


def numbers(line: str, where: str, expected: str, counts: Sequence[int]) -> list[float]:
    """Read a line of finite numbers, as many as one of `counts`; `where` is the file and line for the message."""
    values = [as_number(word) for word in line.split()]
    if len(values) not in counts or not np.isfinite(values).all():
        raise FileFormatError(f"{where}: expected {expected}, got {shortened(line)!r}")
    return values


def shortened(text: object, length: int = 160) -> str:
    """Cut a text for a message."""
    whole = str(text)
    return whole if len(whole) <= length else f"{whole[:length]} ..."


def angle_column(path: str | Path, column: int, what: str = "tilt angles") -> FloatArray:
    """Read a column, from 0, of angles in degrees; what else stands in a line is left alone."""
    path = Path(path)
    values = []
    for number, line in lines(path, f"a file of {what}"):
        words = line.replace(",", " ").split()
        value = as_number(words[column]) if len(words) > column else math.nan
        if math.isnan(value):
            raise FileFormatError(
                f"{path}, line {number}: expected a number in column {column + 1}, got {shortened(line)!r}"
            )
        values.append(value)
    return checked_angles(np.array(values), path, what)


def checked_angles(angles: FloatArray, path: Path, what: str = "tilt angles") -> FloatArray:
    """Raise a `FileFormatError` unless there are angles, and finite ones within ±180°."""
    if angles.size == 0:
        raise FileFormatError(f"{path}: expected {what} in degrees, got none")
    wrong = angles[~(np.abs(angles) <= MAX_TILT)]
    if len(wrong):
        raise FileFormatError(f"{path}: expected {what} within ±180°, got {wrong[0]:g}; the file is damaged or another")
    return angles


def find_name(wanted: str, names: Iterable[str]) -> str | None:
    """Find a tomogram's name among others: the same, else the only one that differs by what processing adds to names.

    `TS_1_10.00Apx` and `TS_1.tomostar` are `TS_1`; `TS_10` and `TS_1_2` are not.
    """
    names = list(names)
    if wanted in names:
        return wanted
    alike = [name for name in names if _plain_name(name) == _plain_name(wanted)]
    return alike[0] if len(alike) == 1 else None


_BEFORE = re.compile(r"^(rec|tomo|recon)[_-]")
_ADDED = re.compile(
    r"[._-](tomostar|mrc|mrcs|st|rec|full|recon\w*|tomo|vol|ali|aligned|aln|bin\d*|b\d+|sirt\w*|wbp|fbp|ctf\w*|dw|"
    r"even\w*|odd\w*|corrected|denoised\w*|cryocare|isonet\w*|deconv\w*|flipx?|flipz|rotx|\d+(\.\d+)?a(px|ng)?|\d+\.\d+)$"
)


def _plain_name(name: str) -> str:
    name = _BEFORE.sub("", name.lower())
    while (shorter := _ADDED.sub("", name)) != name:
        name = shorter
    return name


# --- XML --------------------------------------------------------------------------------------------------------------

_DECLARATION = re.compile(r"\s*<\?xml[^>]*\?>")
_DECLARED_ENCODING = re.compile(rb"<\?xml[^>]*encoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']")


def read_xml(path: str | Path, what: str) -> ElementTree.Element:
    """Read an XML file in the encoding that it is in (which is not always the one that it declares).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is no XML, damaged, or defines entities, which no program of the field does.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected {what}, found none at {path}")
    text = _declared(content := path.read_bytes()) or decoded(content, path, what)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise FileFormatError(f"{path}: expected {what} without a document type and entities, got some; remove them")
    try:
        return ElementTree.fromstring(_DECLARATION.sub("", text.lstrip("\ufeff"), count=1))
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: expected {what}, got a damaged one ({error}); write it again") from None


def _declared(content: bytes) -> str | None:
    """Decode by the encoding that an XML declares, where it is known and fits."""
    found = _DECLARED_ENCODING.match(content)
    if found is None or found[1].lower().startswith((b"utf", b"ucs", b"iso-10646")):
        # Of Unicode the bytes themselves tell which it is.
        return None
    try:
        return content.decode(found[1].decode("ascii"))
    except (LookupError, UnicodeError):
        return None


# --- STAR -------------------------------------------------------------------------------------------------------------

_TAG = re.compile(r"_[A-Za-z][\w.\-/\[\]]*$")
_WORDS = re.compile(r"\"[^\"]*\"(?=\s|$)|'[^']*'(?=\s|$)|\S+")

#: Words of programs for numbers that are none.
_NOT_FINITE = ("nan", "inf", "infinity")
StarTable = dict[str, list[str]]


def star_tables(path: str | Path) -> dict[str, StarTable]:
    """Read the tables of a STAR file, by the name of their block: a list of words for each column.

    A list of pairs without `loop_` is a table of one row. Lines count, as for the programs of the field: a row is a
    line. (Parsers of CIF, where a row may stand on several lines, take a movie in a folder `data_1` for a new block.)

    Raises
    ------
    FileFormatError
        If it is no STAR file or damaged; the message names file and line.
    """
    path = Path(path)
    tables: dict[str, StarTable] = {}
    table: StarTable | None = None
    looped: list[str] | None = None  # the columns of the loop that is being read
    rows = 0
    for number, line in enumerate(read_text(path, "a STAR file").splitlines(), start=1):
        where = f"{path}, line {number}"
        words = _star_words(line)
        if not words:
            # A blank line ends the rows of a loop.
            looped = None if rows else looped
            continue
        if len(words) == 1 and words[0].lower().startswith("data_") and not (looped and "/" in words[0]):
            table, looped, rows = _new_block(tables, words[0][5:], where), None, 0
        elif table is None:
            raise FileFormatError(
                f"{where}: expected a STAR file, which begins with `data_`, got {shortened(line.strip())!r}"
            )
        elif words[0].lower() == "loop_":
            if table:
                raise FileFormatError(f"{where}: expected one table in each block, got a second `loop_`")
            looped, rows = [], 0
        elif _TAG.fullmatch(words[0]) and not (rows and looped is not None and len(words) == len(looped)):
            _new_column(table, words, where, in_loop=looped is not None and rows == 0)
            if looped is not None and rows == 0:
                looped.append(words[0][1:])
        elif not looped:
            raise FileFormatError(
                f"{where}: expected `data_`, `loop_` or a column `_name`, got {shortened(line.strip())!r}"
            )
        else:
            _new_row(table, looped, words, where)
            rows += 1
    if not tables:
        raise FileFormatError(f"{path}: expected a STAR file, which begins with `data_`, got an empty one")
    return tables


def _star_words(line: str) -> list[str]:
    line = line.strip()
    if not line or line[0] == "#":
        return []
    if "'" not in line and '"' not in line:
        return line.split()
    return [w[1:-1] if len(w) > 1 and w[0] in "'\"" and w[-1] == w[0] else w for w in _WORDS.findall(line)]


def _new_block(tables: dict[str, StarTable], name: str, where: str) -> StarTable:
    if name in tables:
        raise FileFormatError(f"{where}: expected blocks of different names, got data_{name} again; separate the files")
    tables[name] = {}
    return tables[name]


def _new_column(table: StarTable, words: list[str], where: str, *, in_loop: bool) -> None:
    name, rest = words[0][1:], list(takewhile(lambda word: not word.startswith("#"), words[1:]))
    if name in table:
        raise FileFormatError(f"{where}: expected each column once, got _{name} again")
    if in_loop and not rest:
        table[name] = []
    elif not in_loop and len(rest) == 1:
        table[name] = rest
    else:
        raise FileFormatError(
            f"{where}: expected {'a column `_name #number`' if in_loop else 'a pair `_name value`'}, got "
            f"{shortened(' '.join(words))!r}"
        )


def _new_row(table: StarTable, looped: Sequence[str], words: list[str], where: str) -> None:
    if len(words) > len(looped) and words[len(looped)].startswith("#"):
        words = words[: len(looped)]
    if len(words) != len(looped):
        raise FileFormatError(
            f"{where}: expected {len(looped)} values, one for each column, got {len(words)}; the file is damaged"
        )
    for name, word in zip(looped, words, strict=True):
        table[name].append(word)


def star_numbers(table: Mapping[str, Sequence[str]], name: str, path: Path) -> FloatArray | None:
    """Read a column of numbers of a STAR file's table, NaN and infinity included; None where it has no such column."""
    if name not in table:
        return None
    values = np.array([as_number(word) for word in table[name]], dtype=np.float64)
    for row in np.flatnonzero(np.isnan(values)).tolist():
        word = table[name][row]
        if word.lower().lstrip("+-") not in _NOT_FINITE:
            raise FileFormatError(
                f"{path}: expected numbers in column _{name}, got {shortened(word)!r} in row {row + 1}"
            )
        values[row] = float(word)
    return values


def follow(path: Path, name: str, *folders: Path) -> Path:
    """Find a file that a STAR file names: from its own folder, one above (RELION's project), or beside it in `folders`.

    Raises
    ------
    FileNotFoundError
        If there is none; the message names both.
    """
    tried = [folder / name for folder in (path.parent, *path.resolve().parents)]
    tried += [folder / Path(name).name for folder in folders]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path}: expected {name}, which it names, in its folder or one above, found none")
