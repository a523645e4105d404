"""`faket-aug simulate`: a set of labelled tomograms on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from faket_aug.cli._commands import taking
from faket_aug.cli._options import SETTINGS, SEVERAL, Options, given_options
from faket_aug.simulation.simulator import RENAMED

if TYPE_CHECKING:
    from faket_aug.cli._simulation import Done

_SET = "The set"
#: The seed is told with the set, not with what is written.
_OTHERS = [setting for name, setting in SETTINGS.items() if name != "seed"]


@taking(_OTHERS, repeated=SEVERAL, hidden=RENAMED)
@taking([SETTINGS["seed"]], heading=_SET)
def simulate(
    folder: Annotated[Path, typer.Argument(help="Folder of the set, made where it is missing.")],
    count: Annotated[
        int | None,
        typer.Option(
            help="Tomograms in all; by default one for each specimen from a file, or one.",
            min=1,
            rich_help_panel=_SET,
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Make part I of N only; see the example.", rich_help_panel=_SET)
    ] = "1/1",
    config: Annotated[
        Path | None,
        typer.Option(
            help="JSON or TOML file of the options below, with underscores in their names, or the `simulation.json` of "
            "a set. The command line goes before it.",
            rich_help_panel=_SET,
            show_default=False,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Write labelled tomograms: tilt-series, tomogram, labels, particles, and the record that makes each again.

    Before it comes `faket-aug fit`; after it `faket-aug show`, or another program. As `faket-aug simulate set
    --microscope microscope.json --templates particles --occupancy 0.04 --shape 64,96,96 --count 2`, on the files of
    `faket-aug demo --keep trial`.

    Specimens are read from files (--specimens) or generated (--templates, --membranes, --filaments, --fiducials). The
    same command goes on after a stop: what is whole stays. On a cluster each job of an array takes a part, as
    `--shard $SLURM_ARRAY_TASK_ID/10` with `#SBATCH --array=1-10`. From its record alone comes tomogram 7 again:
    `faket-aug simulate again --config set/tomogram_0007/record.json --count 8 --shard 8/8`.
    """
    from faket_aug.cli._console import showing_progress, showing_warnings
    from faket_aug.cli._sets import Shard
    from faket_aug.cli._simulation import Work, run

    with showing_progress("tomograms") as (console, progress), showing_warnings(console):
        options = Options.read(config, given_options(given))
        done = run(Work(folder=folder, options=options, count=count, shard=Shard.parse(shard)), progress)
    typer.echo(_summary(folder, done))


def _summary(folder: Path, done: Done) -> str:
    there = f", {done.of - done.made} were there" if done.made < done.of else ""
    picture = f"; look at {done.preview}" if done.preview is not None else ""
    tomograms = "tomogram" if done.made == 1 else "tomograms"
    return f"{done.made} {tomograms} written into {folder}{there}{picture}"
