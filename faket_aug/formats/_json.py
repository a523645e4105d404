"""JSON files of this package: each carries a checksum of its content, so that damage is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faket_aug._checks import FileFormatError
from faket_aug.formats._atomic import write_text

CHECKSUM = "checksum"
#: Digits of a whole number that can mean anything; JSON itself knows no limit.
MAX_DIGITS = 40


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add a checksum to content of JSON types, none of which is called `checksum`."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(content)))
    return plain | {CHECKSUM: _checksum(plain)}


def seal(content: Mapping[str, Any], *, indent: int | None = 1) -> str:
    """Write JSON text with a checksum of its content.

    Parameters
    ----------
    content
        JSON types by name; none is called `checksum`.
    indent
        Spaces of one level; None for a single line.
    """
    return json.dumps(sealed(content), indent=indent)


def unseal(text: str, *, source: str, what: str, since: int | None = None) -> dict[str, Any]:
    """Read the text of `seal`, or JSON text of a version that knew no checksums.

    Parameters
    ----------
    text
        JSON.
    source
        For messages: the file.
    what
        For messages: what the text should be, with its article.
    since
        The `format` from which on there must be a checksum. A file that was changed by hand may have `null` in its
        place.

    Returns
    -------
    The content, without the checksum.

    Raises
    ------
    FileFormatError
        If it is no JSON object, or its checksum is missing or is not that of its content.
    """
    return verified(parse(text, source=source, what=what), source=source, what=what, since=since)


def verified(content: Mapping[str, Any], *, source: str, what: str, since: int | None = None) -> dict[str, Any]:
    """Return the content of `seal`, already parsed, without its checksum; see `unseal`.

    Raises
    ------
    FileFormatError
        If its checksum is missing or is not that of its content.
    """
    content = dict(content)
    format_ = content.get("format")
    if CHECKSUM not in content:
        if since is not None and isinstance(format_, int) and format_ >= since:
            raise FileFormatError(
                f"{source}: expected {what} with a `{CHECKSUM}`, got none: the file is damaged; make it again, or set "
                f'"{CHECKSUM}": null if it was changed on purpose'
            )
        return content
    found = content.pop(CHECKSUM)
    if found is not None and found != _checksum(content):
        raise FileFormatError(
            f"{source}: expected {what} whose content has the checksum in the file, got other content: the file is "
            f'damaged; make it again, or set "{CHECKSUM}": null if it was changed on purpose'
        )
    return content


def parse(text: str, *, source: str, what: str) -> dict[str, Any]:
    """Read JSON text that holds an object.

    Raises
    ------
    FileFormatError
        If it is anything else; the message says where it is from.
    """
    content = parse_any(text, source=source, what=what)
    if not isinstance(content, dict):
        raise FileFormatError(f"{source}: expected {what} (a JSON object), got {str(content)[:80]!r}")
    return content


def parse_any(text: str, *, source: str, what: str) -> Any:
    """Read JSON text.

    Raises
    ------
    FileFormatError
        If it is other text; the message says where it is from.
    """
    try:
        return json.loads(text.removeprefix("\ufeff"), parse_int=_whole_number)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{source}: expected {what} (JSON), got other text ({error}); correct it, or make it again"
        ) from error


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with a checksum, so that it is either whole or not there."""
    write_text(path, seal(content) + "\n")


def read_json(path: str | Path, *, what: str, since: int | None = None) -> dict[str, Any]:
    """Read a JSON file of this package, see `unseal`.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If there is none, it is no JSON, or it is damaged; the message names it.
    """
    return unseal(read_text(path, what=what), source=str(path), what=what, since=since)


def read_text(path: str | Path, *, what: str) -> str:
    """Read a text file in UTF-8.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If there is none, or it is in another encoding; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected {what}, found none at {path}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: expected {what} as text in UTF-8, got other bytes ({error.reason})") from error


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
