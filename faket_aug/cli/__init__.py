"""The command line `faket-aug`: one module a command."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from faket_aug._checks import SimulationError
from faket_aug._runtime.memory import keep_memory
from faket_aug._runtime.signals import ends_by_signal, signals_end_soon
from faket_aug.cli.check import check
from faket_aug.cli.compare import compare
from faket_aug.cli.demo import demo
from faket_aug.cli.fit import fit
from faket_aug.cli.pick import pick
from faket_aug.cli.reconstruct import reconstruct
from faket_aug.cli.score import score
from faket_aug.cli.show import show
from faket_aug.cli.simulate import simulate
from faket_aug.cli.train import train
from faket_aug.formats._atomic import DISK_FULL, NOT_ALLOWED

app = typer.Typer(
    name="faket-aug",
    help="Labelled cryo-electron tomograms, simulated while a particle picker trains on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
#: Old spellings of options, which still work.
OLD_OPTIONS = {"noise": "microscope"}
for command in (demo, reconstruct, fit, check, simulate, show, train, pick, score, compare):
    app.command(context_settings={"token_normalize_func": lambda name: OLD_OPTIONS.get(name, name)})(command)

#: What a user can cause: it is said in one line, without a traceback.
USER_ERRORS = (OSError, ValueError, ImportError, SimulationError)
#: What to do after a signal: sets and comparisons go on from what is complete, other commands begin anew.
GO_ON = "run the same command again to finish"


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"faket-aug {version('faket_aug')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Labelled cryo-electron tomograms, simulated while a particle picker trains on them."""


def main() -> None:
    """Run the command line; errors that a user can cause become one line, and exit code 1.

    Ctrl-C and SIGTERM end it within two seconds, with one line and exit code 130 or 143.
    """
    try:
        keep_memory()
        with signals_end_soon(_say_stopped):
            app()
    except USER_ERRORS as error:
        typer.echo(f"faket-aug: error: {' '.join(_sentence(error).split()) or type(error).__name__}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        _say_stopped(signal.SIGINT)
        sys.exit(128 + signal.SIGINT)
    except SystemExit as end:
        if end.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            _say_stopped(end.code - 128)
        raise


def _say_stopped(number: int) -> None:
    ends_by_signal(128 + number)
    typer.echo(f"faket-aug: stopped by {signal.Signals(number).name}; {GO_ON}", err=True)


def _sentence(error: Exception) -> str:
    """Say what is wrong; where the system alone has spoken, also what to do."""
    if isinstance(error, OSError) and error.strerror is not None:
        if error.strerror.startswith("expected "):
            return error.strerror
        where = "all files" if error.filename is None else str(error.filename)
        if error.errno in DISK_FULL:
            return f"expected room for {where}, got {error.strerror!r}; free some space and {GO_ON}"
        if error.errno in NOT_ALLOWED:
            return f"expected to be allowed to use {where}, got {error.strerror!r}; change permissions, or use another"
    return str(error)
