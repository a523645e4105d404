"""Options of commands, made of settings: their names, types, headings and help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer

from faket_aug._reading import expected, explained, names_files
from faket_aug._settings import Setting

C = TypeVar("C", bound=Callable[..., Any])


def taking(
    settings: Iterable[Setting], *, repeated: Collection[str] = (), heading: str = "", hidden: Iterable[str] = ()
) -> Callable[[C], C]:
    """Let a command take settings as options: they come, by name, in its `**given`, and those not given as None.

    All but flags are text, which `read_setting` reads: what does not fit is told in the package's own words.

    Parameters
    ----------
    settings
        The settings, in order.
    repeated
        Names of those that may be given several times, beside lists of paths.
    heading
        For all of them, in place of the settings' groups.
    hidden
        Old names of settings, which still work.
    """
    options = [_option(setting, repeated, heading) for setting in settings]
    old = Annotated[str | None, typer.Option(hidden=True)]
    options += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=old) for n in hidden]

    def add(command: C) -> C:
        signature = inspect.signature(command, eval_str=True)
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = [*own, *options]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        return command

    return add


def _option(setting: Setting, repeated: Collection[str], heading: str) -> inspect.Parameter:
    several = setting.name in repeated or (names_files(setting.hint) and _is_list(setting.hint))
    kind: Any = bool | None if setting.hint is bool else list[str] | None if several else str | None
    note = " Repeat it for more." if several else ""
    option = typer.Option(
        *([setting.option] if setting.called else []),
        help=explained(setting) + note,
        rich_help_panel=heading or setting.group or None,
        show_default=False,
        metavar=None if setting.hint is bool else metavar(setting.hint),
    )
    annotation = Annotated[kind, option]
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _is_list(hint: Any) -> bool:
    return get_origin(hint) is not Annotated and len(get_args(hint)) == 1


def metavar(hint: Any) -> str:
    """Say in a word what an option takes."""
    words = expected(hint)
    if "name=value" in words or "by name" in words or "by kind" in words or "settings" in words:
        return "VALUE|NAME=VALUE,..." if " or " in words or "or one" in words else "NAME=VALUE,..."
    if names_files(hint):
        return "PATH"
    for start, short in (("one ", "VALUE|LOW,HIGH"), ("a number or", "VALUE,..."), ("a whole", "WHOLE NUMBER")):
        if words.startswith(start):
            return short
    return {"a number": "NUMBER", "a word": "WORD"}.get(words, "VALUE,..." if "comma" in words else "VALUE")
