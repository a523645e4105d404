"""Reading values of settings, as text or as the types of JSON and TOML, by the type that the library's own field has.

Whatever does not fit is refused with one sentence: what was expected, and what there was.
"""

from __future__ import annotations

import dataclasses
import re
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from faket_aug._settings import IsPath, Part, Reads, Setting, settings_of

#: Word for nothing, where a setting may be left out but its default is something.
NONE = "none"
#: Where paths count from: from a path as it was given to the one that is used.
Places = Callable[[str], str]


def as_given(path: str) -> str:
    """Leave a path as it is."""
    return path


def read_setting(setting: Setting, value: Any, called: str, places: Places = as_given) -> Any:
    """Read a value of a setting, which is one of its choices where it has any.

    Parameters
    ----------
    setting
        The setting.
    value, called, places
        As for `read_value`.

    Raises
    ------
    ValueError
        If the value does not fit; the message says what was expected.
    """
    found = read_value(setting.hint, value, called, places)
    unknown = [one for one in (found if isinstance(found, tuple) else (found,)) if one not in setting.choices]
    if setting.choices and unknown and found is not None:
        listed = ", ".join(repr(one) for one in setting.choices)
        raise ValueError(f"expected {called} to be one of {listed}, got {unknown[0]!r}")
    return found


class _UnfitError(Exception):
    """A value that is not of a type."""


def read_value(hint: Any, value: Any, called: str, places: Places = as_given) -> Any:
    """Read a value of a type: from text, or from what JSON and TOML have.

    Parameters
    ----------
    hint
        A type: numbers, words, paths, sequences, ranges, mappings by name, dataclasses, and unions of these.
    value
        Text has commas between the members of a sequence and the `name=value` pairs of a table, colons within pairs,
        and a dot between a table's name and its setting's (`damage.per_tilt=3`).
    called
        The setting's name, for messages.
    places
        Where paths count from.

    Raises
    ------
    ValueError
        If the value does not fit; the message says what was expected.
    """
    try:
        return _read(hint, value, called, places, 0)
    except _UnfitError:
        raise ValueError(f"expected {called} to be {expected(hint)}, got {value!r}") from None


def read_table(
    settings: Mapping[str, Setting],
    table: Any,
    called: str,
    places: Places = as_given,
    *,
    renamed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read settings by name, strictly.

    Parameters
    ----------
    settings
        All that there are.
    table
        A mapping, or text.
    called
        The table's name, for messages; nothing at the top of a file.
    places
        Where paths count from.
    renamed
        New names of old keys, which give a `FutureWarning`.

    Raises
    ------
    ValueError
        If there are others, a value does not fit, or a setting is given by its old name and its new one.
    """
    given = dict(_as_table(table, dotted=any(_is_table(one.hint) for one in settings.values())))
    for old in [name for name in given if name in (renamed or {})]:
        given[rename(old, (renamed or {})[old], f"`{old}`", given)] = given.pop(old)
    unknown = sorted(map(str, set(given) - set(settings)))
    if unknown:
        whose = f"settings of {called}" if called else "settings"
        raise ValueError(f"expected {whose} to be {', '.join(settings)}, got {', '.join(unknown)}")
    # Nothing means the default, as if it had not been said.
    return {n: read_setting(settings[n], v, _within(called, n), places) for n, v in given.items() if v is not None}


def rename(old: str, new: str, called: str, given: Mapping[Any, Any]) -> str:
    """Warn of a setting's old name, and return the new one. Raise a `ValueError` if both names are given."""
    now = f"--{new.replace('_', '-')}" if called.startswith("--") else f"`{new}`"
    if new in given:
        raise ValueError(f"expected {now} once, got also {called}, which is its old name; leave {called} out")
    warnings.warn(f"{called} is called {now} now", FutureWarning, stacklevel=2)
    return new


def _within(called: str, name: str) -> str:
    """Name a setting of a table, or a member of a list: `ctf.spread`, --ctf spread, `membranes[0]`."""
    if called.startswith("--"):
        return f"{called} {name}"
    member = f"[{name}]" if name.isdigit() else f".{name}"
    return f"`{called.strip('`')}{member}`" if called else f"`{name}`"


def _read(hint: Any, value: Any, called: str, places: Places, depth: int) -> Any:
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(members[0], members[1:], value, called, places, depth)
    if origin in (Union, types.UnionType):
        return _one_of(members, value, called, places, depth)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else _made(hint, value, called, places)
    if hint in (int, float):
        return _number(hint, value)
    if origin is Literal:
        return value if value in members else _refuse()
    if hint in (str, Path):
        return hint(value) if isinstance(value, str | Path) else _refuse()
    if hint is bool:
        value = {"true": True, "false": False}.get(value.strip(), value) if isinstance(value, str) else value
        return value if isinstance(value, bool) else _refuse()
    if hint is type(None):
        return None if value in (None, NONE) else _refuse()
    if origin is not None and issubclass(origin, Mapping):
        key, inner = members
        table = _as_table(value, dotted=_is_table(inner))
        return {
            read_value(key, name, f"a name within {called}", places): read_value(
                inner, one, _within(called, str(name)), places
            )
            for name, one in table.items()
        }
    if origin is not None and issubclass(origin, Sequence):
        return _sequence(members, value, called, places, depth)
    return value if hint is Any or (isinstance(hint, type) and isinstance(value, hint)) else _refuse()


def _refuse() -> Any:
    raise _UnfitError


def _number(kind: type, value: Any) -> Any:
    try:
        number = _refuse() if isinstance(value, bool) or value is None else float(value)
        return number if kind is float else int(number) if number == int(number) else _refuse()
    except (ValueError, TypeError, OverflowError):
        return _refuse()


def _annotated(hint: Any, notes: Sequence[Any], value: Any, called: str, places: Places, depth: int) -> Any:
    of = {type(note): note for note in notes}
    if Part in of:
        return read_table(of[Part].settings, value, called, places, renamed=of[Part].renamed)
    if Reads in of and of[Reads].read is not None:
        try:
            found = of[Reads].read(value)
        except (ValueError, TypeError, OverflowError):
            return _refuse()
    else:
        found = _read(hint, value, called, places, depth)
    is_path = IsPath in of and isinstance(found, str) and found not in of[IsPath].words
    return places(found) if is_path else found


def _one_of(members: Sequence[Any], value: Any, called: str, places: Places, depth: int) -> Any:
    if value in (None, NONE) and type(None) in members:
        return None
    tables = [member for member in members if _is_table(member)]
    if tables and (isinstance(value, Mapping) or (isinstance(value, str) and "=" in value)):
        # Its own message says more than that nothing fits.
        return _read(_table_for(tables, value), value, called, places, depth)
    for member in (member for member in members if member not in tables or not isinstance(value, str)):
        try:
            return _read(member, value, called, places, depth)
        except _UnfitError:
            continue
    return _refuse()


def _table_for(tables: Sequence[Any], value: Any) -> Any:
    """Choose the table that is meant: one by number has whole numbers for all its names, no other has."""
    names = list(map(str, _as_table(value, dotted=True)))
    by_number = [one for one in tables if get_args(one)[:1] == (int,)]
    others = [one for one in tables if one not in by_number]
    numbered = bool(names) and all(re.fullmatch(r"-?[0-9]+(\.[0-9]*)?", name) for name in names)
    return (by_number + others if numbered else others + by_number)[0]


def _sequence(members: Sequence[Any], value: Any, called: str, places: Places, depth: int) -> Any:
    if isinstance(value, Mapping):
        return _refuse()
    # A text is one table; several come as a list.
    if isinstance(value, str) and not names_files(members[0]) and not _is_table(members[0]):
        value = [part.strip() for part in value.split(",:"[min(depth, 1)])]
    parts = list(value) if isinstance(value, list | tuple) else [value]
    fixed = len(members) if Ellipsis not in members and len(members) > 1 else None
    if fixed is not None and len(parts) != fixed:
        return _refuse()
    hints = members if fixed is not None else [members[0]] * len(parts)
    if _is_table(members[0]):
        return tuple(
            read_value(h, p, _within(called, str(i)), places) for i, (h, p) in enumerate(zip(hints, parts, strict=True))
        )
    return tuple(_read(h, part, called, places, depth + 1) for h, part in zip(hints, parts, strict=True))


def _made(kind: Any, value: Any, called: str, places: Places) -> Any:
    settings = settings_of(kind)
    given = read_table(settings, value, called, places)
    missing = [name for name, one in settings.items() if one.default is MISSING and name not in given]
    if missing:
        told = ", ".join(given) or "none"
        raise ValueError(f"expected {called or 'settings'} with {', '.join(missing)}, got {told}")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{called}: {error}" if called else str(error)) from error


def _as_table(value: Any, *, dotted: bool) -> Mapping[Any, Any]:
    """Take a mapping, or the `name=value` pairs of a text; a value goes on to the next `name=`."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str) or "=" not in value:
        return _refuse()  # type: ignore[no-any-return]
    pairs = [pair.split("=", 1) for pair in re.split(r",(?=[^,=]+=)", value)]
    if any(len(pair) < 2 for pair in pairs):
        _refuse()
    found: dict[str, Any] = {}
    for name, one in pairs:
        outer, dot, inner = name.strip().rpartition(".") if dotted else ("", "", name)
        within = found.setdefault(outer, {}) if dot else found
        if not isinstance(within, dict) or inner.strip() in within:
            _refuse()
        within[inner.strip()] = one.strip()
    return found


def _is_table(hint: Any) -> bool:
    """Whether a type, or a part of a union, has names with values."""
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return any(isinstance(note, Part) for note in members[1:]) or _is_table(members[0])
    if origin in (Union, types.UnionType):
        return any(_is_table(member) for member in members)
    return dataclasses.is_dataclass(hint) or (isinstance(origin, type) and issubclass(origin, Mapping))


def names_files(hint: Any) -> bool:
    """Tell whether a value of a type is a path, or several."""
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return any(isinstance(note, IsPath) for note in members[1:])
    if origin in (Union, types.UnionType):
        return any(names_files(member) for member in members)
    return isinstance(origin, type) and issubclass(origin, Sequence) and names_files(members[0])


# In words -------------------------------------------------------------------------------------------------------------

_WORDS: dict[Any, str] = {
    **{bool: "true or false", int: "a whole number", float: "a number", str: "a word", Path: "a path"},
    Any: "a value",
}
_MANY: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "words"}


def explained(setting: Setting) -> str:
    """Explain a setting in a line: its help, its own settings where it is a table, what it may be, and its default."""
    parts = [setting.help.rstrip(".")] if setting.help else []
    table = list(_own_settings(setting.hint))
    parts += [f"settings: {', '.join(table)}"] if table else []
    parts += [f"one of {', '.join(map(str, setting.choices))}"] if setting.choices else []
    plain = setting.default not in (MISSING, None, ()) and not dataclasses.is_dataclass(setting.default)
    parts += [f"default: {shown(setting.default)}"] if plain else []
    return "; ".join(parts) + "." * bool(parts)


def shown(value: Any) -> str:
    """Write a value as a user would on the command line."""
    if isinstance(value, list | tuple):
        return ",".join(shown(one) for one in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _own_settings(hint: Any) -> Mapping[str, Any]:
    """The settings of a type that is a table, or of the first part of it that is one."""
    origin, members = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return settings_of(hint)
    if origin is Annotated:
        part = next((note for note in members[1:] if isinstance(note, Part)), None)
        return _own_settings(members[0]) if part is None else part.settings if part.listed else {}
    found = (_own_settings(member) for member in members if member is not Ellipsis)
    return next((one for one in found if one), {}) if origin is not Literal else {}


def expected(hint: Any) -> str:
    """Say in words what a type is."""
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        told = [note.expected for note in members[1:] if isinstance(note, Reads)]
        return told[0] if told else "a path" if names_files(hint) else expected(members[0])
    if origin in (Union, types.UnionType):
        kinds = [member for member in members if member is not type(None)]
        number = next((kind for kind in kinds if kind in (int, float)), None)
        if number is not None and tuple[number, number] in kinds:  # type: ignore[valid-type]
            return f"one {_WORDS[number][2:]}, or two with a comma between (lowest, highest)"
        return " or ".join(dict.fromkeys(expected(kind) for kind in kinds))
    if origin is Literal:
        return " or ".join(map(str, members))
    if _is_table(hint):
        return "settings by name, as name=value with commas between"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if names_files(members[0]):
            return "paths"
        fixed = f"{len(members)} " if Ellipsis not in members and len(members) > 1 else ""
        return f"{fixed}{_MANY.get(members[0], 'groups a:b of values')} with commas between"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
