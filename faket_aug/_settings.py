"""Settings, said once: names, types, defaults and help as the fields of a dataclass or a function have them."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, replace
from typing import Any, get_type_hints

# What a type says beside itself ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IsPath:
    """For `Annotated[str, IsPath()]`: the text is a path, but for some words."""

    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reads:
    """For `Annotated[T, Reads(...)]`: what is expected, in words, and a function that reads it in place of the type."""

    expected: str
    read: Callable[[Any], Any] | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """For `Annotated[dict, Part(...)]`: some settings of a class, by name, that are not put together yet."""

    settings: Mapping[str, Setting]
    #: New names of old keys.
    renamed: Mapping[str, str] = field(default_factory=dict)
    #: Whether help names them all.
    listed: bool = True


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting: what a user may say, and whom it is for.

    Parameters
    ----------
    name
        Its key in a file; an option of the command line has hyphens in it.
    hint
        Its type.
    default
        The library's; `MISSING` where there is none.
    help
        What it means, from the docstring.
    choices
        What it may be, where that is a list.
    owners
        `(class or function, parameter)`, by name: who takes it. `FakETSimulator` and `StyleBank.build` have a device.
    group
        Under which heading it stands.
    called
        Its name on the command line, where that is another.
    """

    name: str
    hint: Any
    default: Any = MISSING
    help: str = ""
    choices: tuple[Any, ...] = ()
    owners: tuple[tuple[str, str], ...] = ()
    group: str = ""
    called: str = ""

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return f"--{(self.called or self.name).replace('_', '-')}"


#: Where a dataclass's field keeps the library's setting that it stands for.
FROM = "from_library"

# From classes and functions to settings -------------------------------------------------------------------------------


def parameter_help(source: Any) -> dict[str, str]:
    """Read what the `Parameters` section of a NumPy docstring says, by parameter; names that share a text have it all.

    Parameters
    ----------
    source
        A class or a function.
    """
    lines = (inspect.getdoc(source) or "").splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following and set(following) == {"-"}:
            inside = line == "Parameters"
        elif inside and line[:1].strip() and set(line) != {"-"}:
            names = [name.strip().lstrip("*") for name in line.split(",")]
            found.update(dict.fromkeys(names, ""))
        elif inside and line.strip():
            found.update((name, f"{found[name]} {line.strip()}".strip()) for name in names)
    return found


def settings_of(
    source: Any,
    *,
    without: Iterable[str] = (),
    described_by: Iterable[Any] = (),
    choices: Mapping[str, Iterable[Any]] | None = None,
    group: str = "",
) -> dict[str, Setting]:
    """List the settings that a dataclass, another class or a function takes.

    Parameters
    ----------
    source
        The dataclass, class or function.
    without
        Parameters that are no settings.
    described_by
        Functions whose help goes before the source's own, where they have a parameter of the name.
    choices
        What parameters may be, by name: the constants that the source checks them by.
    group
        Under which heading they stand.
    """
    own = dataclasses.fields(source) if dataclasses.is_dataclass(source) else ()
    linked: dict[str, Setting] = {one.name: one.metadata[FROM] for one in own if FROM in one.metadata}
    hints = get_type_hints(_callable(source), include_extras=True)
    helps = [parameter_help(one) for one in (*described_by, source)]
    found = {}
    for name, default in _defaults(source).items():
        if name not in without and name in hints:
            found[name] = Setting(
                name=name,
                hint=hints[name],
                default=default,
                help=next((texts[name] for texts in helps if texts.get(name)), ""),
                choices=tuple((choices or {}).get(name, ())),
                owners=((label(source), name),),
                group=group,
            )
            if name in linked:
                found[name] = replace(found[name], help=linked[name].help, owners=linked[name].owners)
    return found


def setting_of(source: Any, parameter: str, *, also: Iterable[tuple[Any, str]] = (), **changes: Any) -> Setting:
    """Make one setting of a parameter.

    Parameters
    ----------
    source, parameter
        Whose it is; type, default and help are its own.
    also
        Who else takes it: class or function, and parameter.
    **changes
        Of the setting: another `name`, a narrower `hint`, `choices`, `group`; or a `note`, which follows the help.
    """
    own = settings_of(source)[parameter]
    note = changes.pop("note", "")
    others = tuple((label(other), name) for other, name in also)
    return replace(own, **({"help": f"{own.help} {note}".strip(), "owners": own.owners + others} | changes))


def from_library(source: Any, parameter: str) -> Any:
    """Make a dataclass's field of a library's parameter: `filter: str = from_library(FakETSimulator, "filter")`.

    Its default is the parameter's, and so is its help, where `settings_of` lists it.

    Parameters
    ----------
    source, parameter
        Whose default it is.
    """
    own = setting_of(source, parameter)
    assert own.default is not MISSING, f"{label(source)} has no default of {parameter}"
    return dataclasses.field(default=own.default, metadata={FROM: own})


def as_json(value: Any) -> Any:
    """Turn a value into JSON types; an object with settings becomes a table of those that are not None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json({name: one for name, one in dataclasses.asdict(value).items() if one is not None})
    if isinstance(value, Mapping):
        return {str(name): as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    return json.loads(json.dumps(value))


def label(source: Any) -> str:
    """Name a class or a function, as `StyleBank.build`."""
    return str(source.__qualname__)


def _callable(source: Any) -> Any:
    return source.__init__ if inspect.isclass(source) and not dataclasses.is_dataclass(source) else source


def _defaults(source: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(source):
        made = {f.name: f.default_factory for f in dataclasses.fields(source) if f.init}
        given = {f.name: f.default for f in dataclasses.fields(source) if f.init}
        return {n: made[n]() if d is MISSING and made[n] is not MISSING else d for n, d in given.items()}  # type: ignore[operator]
    of = inspect.signature(source).parameters.values()
    named = [p for p in of if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: MISSING if p.default is p.empty else p.default for p in named}
