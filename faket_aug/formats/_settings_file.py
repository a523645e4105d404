"""Files of settings that a user writes, as TOML or as JSON."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faket_aug._checks import FileFormatError
from faket_aug.formats._atomic import write_text
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


def write_toml(path: str | Path, content: Mapping[str, Any], *, head: str = "") -> None:
    """Write settings as TOML, a line for each; what is None is left out.

    Parameters
    ----------
    path
        The file; an earlier one stays until the new one is complete.
    content
        JSON types by name.
    head
        A comment in the first line.
    """
    lines = [f"# {head}"] if head else []
    lines += [f"{_key(name)} = {_toml(value)}" for name, value in content.items() if value is not None]
    write_text(path, "\n".join(lines) + "\n")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{_key(str(name))} = {_toml(one)}" for name, one in value.items() if one is not None)
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        # TOML wants digits on both sides of the point, and has words of its own for what is not finite.
        return repr(value) if "e" not in repr(value) or "." in repr(value) else repr(value).replace("e", ".0e")
    # Strings, whole numbers and truth values are written alike; DEL alone is not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
