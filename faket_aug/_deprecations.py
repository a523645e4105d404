"""Names and ways of calling that went on working after they changed, with a warning that says what to write."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


def by_keyword(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a method that takes arguments by keyword still take them by position, in this order, with a warning.

    Parameters
    ----------
    *names
        The arguments, in the order in which they were taken.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(owner: Any, *values: Any, **settings: Any) -> R:
            if values:
                called = ", ".join(f"{name}=..." for name in names[: len(values)])
                warnings.warn(
                    f"`{function.__name__}` takes its arguments by keyword: write `{function.__name__}({called})`",
                    DeprecationWarning,
                    stacklevel=2,
                )
                if len(values) > len(names):
                    raise TypeError(f"{function.__name__}() takes {len(names)} positional arguments, got {len(values)}")
            taken = dict(zip(names, values, strict=False))
            twice = sorted(set(taken) & set(settings))
            if twice:
                raise TypeError(f"{function.__name__}() got multiple values for argument {twice[0]!r}")
            return function(owner, **taken, **settings)

        return call  # type: ignore[return-value]

    return decorate


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function still take arguments by their old names, with a warning.

    Parameters
    ----------
    **names
        The new name of each old one.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*values: P.args, **settings: P.kwargs) -> R:
            for old in [name for name in names if name in settings]:
                _warn_renamed(old, names[old])
                settings[names[old]] = settings.pop(old)
            return function(*values, **settings)

        return call

    return decorate


def renamed_settings(**names: str) -> Callable[[C], C]:
    """Let a class of settings still be made with, and asked for, its settings by their old names, with a warning.

    Parameters
    ----------
    **names
        The new name of each old one.
    """

    def decorate(kind: C) -> C:
        setattr(kind, "__init__", renamed(**names)(getattr(kind, "__init__")))  # noqa: B009, B010 - mypy
        for old, new in names.items():
            setattr(kind, old, property(functools.partial(_old, old=old, new=new)))
        return kind

    return decorate


def _old(owner: Any, *, old: str, new: str) -> Any:
    _warn_renamed(old, new, stacklevel=3)
    return getattr(owner, new)


def _warn_renamed(old: str, new: str, stacklevel: int = 4) -> None:
    warnings.warn(f"`{old}` is called `{new}` now", DeprecationWarning, stacklevel=stacklevel)
