"""The command line `faket-aug`: one module a command."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from faket_aug._checks import SimulationError
from faket_aug._runtime.memory import keep_memory
from faket_aug._runtime.signals import signals_end_soon
from faket_aug.cli.check import check
from faket_aug.cli.compare import compare
from faket_aug.cli.demo import demo
from faket_aug.cli.fit import fit
from faket_aug.cli.show import show
from faket_aug.cli.simulate import simulate

app = typer.Typer(
    name="faket-aug",
    help="Labelled cryo-electron tomograms, simulated while a particle picker trains on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (demo, simulate, fit, check, show, compare):
    app.command()(command)

#: What a user can cause: it is said in one line, without a traceback.
USER_ERRORS = (OSError, ValueError, ImportError, SimulationError)


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

    Ctrl-C and SIGTERM end it within two seconds.
    """
    keep_memory()
    try:
        with signals_end_soon():
            app()
    except USER_ERRORS as error:
        typer.echo(f"faket-aug: error: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        sys.exit(1)
