"""What a command shows while it works: a bar, and warnings in a line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from faket_aug.cli._commands import in_option_names


@contextmanager
def showing_progress(name: str) -> Iterator[tuple[Console, Callable[[int, int], None]]]:
    """Show a progress bar. The body gets its console, and a function of the numbers done and to be done."""
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()),
    )
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(*columns, console=console) as progress:
        # Errors in the settings come before there is anything to show.
        task = progress.add_task(name, total=None, visible=False)
        yield console, lambda done, total: progress.update(task, completed=done, total=total, visible=True)


@contextmanager
def showing_warnings(console: Console) -> Iterator[None]:
    """Print warnings as one line each, above the bar, without the place in the code that they come from."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, UserWarning | FutureWarning):
            told = in_option_names(" ".join(str(message).split()), of_file=True)
            console.print(f"faket-aug: warning: {told}", soft_wrap=True)

    with warnings.catch_warnings():
        for kind in (UserWarning, FutureWarning):
            warnings.simplefilter("always", kind)
        warnings.showwarning = show
        yield
