"""Files of settings that a user writes, as TOML or as JSON."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from faket_aug._checks import FileFormatError
from faket_aug.formats._json import MAX_DIGITS, parse, read_text


def load_table(path: Path, what: str, *, usual: str = "json") -> dict[str, Any]:
    """Read a file of settings, as TOML or as JSON.

    Parameters
    ----------
    path
        The file.
    what
        It is, for messages.
    usual
        `"json"` or `"toml"`, where the file's name ends with neither.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If there is none, or it holds something else; the message names it.
    """
    text = read_text(path, what=what)
    suffix = path.suffix.lower().lstrip(".")
    if (suffix if suffix in ("json", "toml") else usual) == "json":
        return parse(text, source=str(path), what=what)
    try:
        content = tomllib.loads(text)
        _check_whole_numbers(content)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: expected {what} (TOML), got other text ({error}); correct it") from error
    return content


def _check_whole_numbers(content: Any) -> None:
    """Refuse whole numbers that can mean nothing; TOML's reader takes no function for them, as JSON's does."""
    if isinstance(content, dict | list):
        for one in content.values() if isinstance(content, dict) else content:
            _check_whole_numbers(one)
    elif isinstance(content, int) and abs(content) >= 10**MAX_DIGITS:
        raise ValueError(f"a whole number of more than {MAX_DIGITS} digits")
