"""Options of commands, made of settings: their names, types, headings and help; and messages that speak of them."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer

from faket_aug._checks import FileFormatError, SimulationError
from faket_aug._reading import expected, explained, names_files
from faket_aug._settings import Setting

C = TypeVar("C", bound=Callable[..., Any])

#: What the library calls otherwise in its messages: the settings that users know instead.
_CALLED_ELSEWHERE = {
    **{"order": "noise_order", "cache": "style_cache", "class_names": "class_table", "crowd": "fit_crowd"},
    **{"noise": "microscope", "patch_size": "patch", "ctf": "defocus"},
}
#: What begins a message of a setting that has settings of its own: those are no options, also where names are alike.
_WITHIN = re.compile(r"(?:--[\w-]+|`[\w.]+`): ")
#: The options of the command that runs, by the names that messages of the library have for them.
_options_by_name: ContextVar[Mapping[str, str] | None] = ContextVar("options_by_name", default=None)


def taking(
    settings: Iterable[Setting], *, repeated: Collection[str] = (), heading: str = "", hidden: Iterable[str] = ()
) -> Callable[[C], C]:
    """Let a command take settings as options: they come, by name, in its `**given`, and those not given as None.

    All but flags are text, which `read_setting` reads: what does not fit is told in the package's own words. Messages
    of the library that the command ends with speak of options.

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
    known = list(settings)
    options = [_option(setting, repeated, heading) for setting in known]
    old = Annotated[str | None, typer.Option(hidden=True)]
    options += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=old) for n in hidden]

    def add(command: C) -> C:
        signature = inspect.signature(command, eval_str=True)
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = [*own, *options]
        names = {p.name: _flag(p.name) for p in own if _is_option(p)} | option_names(known)

        @functools.wraps(command)
        def speaking(**values: Any) -> Any:
            with _in_option_names(names, values.get("config")):
                return command(**values)

        speaking.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        speaking.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        return speaking  # type: ignore[return-value]

    return add


def option_names(settings: Iterable[Setting]) -> dict[str, str]:
    """Return the options of settings by the names that messages of the library have for them."""
    named = {one.name: one.option for one in settings}
    return {own: named[name] for own, name in _CALLED_ELSEWHERE.items() if name in named} | named


def in_option_names(message: str, names: Mapping[str, str] | None = None, *, of_file: bool = False) -> str:
    """Say a message of the library in the names of the command line.

    What stands within another setting keeps its name: the density of `fiducials` is no `--density`.

    Parameters
    ----------
    message
        The message.
    names
        Options by the library's names; by default those of the command that runs.
    of_file
        Whether it may be of a file's content, which has such names itself: then only what is to be set is an option.
    """
    known = _options_by_name.get() or {} if names is None else names
    before = "(?<=[Ss]et )" if of_file else ""
    within = _WITHIN.search(message)
    end = len(message) if within is None else within.end()
    said = re.sub(rf"{before}`(\w+)`", lambda found: known.get(found[1], found[0]), message[:end])
    return said + message[end:]


@contextmanager
def _in_option_names(names: Mapping[str, str], config: Any) -> Iterator[None]:
    """Let errors and warnings of the body speak of options; where there is a file of settings, of the names in it."""
    token = _options_by_name.set({**(_options_by_name.get() or {}), **names})
    try:
        yield
    except (OSError, ValueError, SimulationError) as error:
        # What the system says has a number and a file beside it.
        if len(error.args) == 1 and isinstance(error.args[0], str):
            of_file = config is not None or isinstance(error, FileFormatError)
            error.args = (in_option_names(error.args[0], of_file=of_file),)
        raise
    finally:
        _options_by_name.reset(token)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_option(parameter: inspect.Parameter) -> bool:
    """Whether it is an option of the command's own; the library's `count` is of a species."""
    notes = getattr(parameter.annotation, "__metadata__", ())
    return parameter.name != "count" and any(isinstance(one, typer.models.OptionInfo) for one in notes)


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
