"""`faket-aug train`: a picker that learns from tomograms which are simulated while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from faket_aug.cli._commands import taking
from faket_aug.cli._options import SEVERAL
from faket_aug.cli._train_options import FILES, SETTINGS, read_work, write_settings
from faket_aug.simulation.simulator import RENAMED

if TYPE_CHECKING:
    from faket_aug.picking.history import TrainingHistory
    from faket_aug.training.train import PickerRun, TrainedPicker


@taking(SETTINGS.values(), repeated=SEVERAL, hidden=RENAMED)
def train(
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of the run: weights, settings, log, validation tomograms, picture. The same command goes on "
            "where it was stopped.",
            rich_help_panel=FILES,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML or JSON file of the options below, with underscores in their names, or the `settings.toml` of a "
            "run. The command line goes before it.",
            rich_help_panel=FILES,
            show_default=False,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Train a picker on tomograms that are simulated meanwhile, from particles and the file of a microscope.

    Before it come `faket-aug fit` (the microscope) and `faket-aug reconstruct` (your own tomogram, for --watch); after
    it `faket-aug pick`. As `faket-aug train --microscope microscope.json --templates particles --classes cage --filter
    hann --shape 64,96,96 --watch series_1_rec.mrc --variation none --steps 160 --validate-every 80 --output run`, on
    the files of `faket-aug demo --keep trial`: the folder particles holds cage.mrc and look-alikes. It takes minutes;
    your own training should have the standard variation and more steps. Without a fitted microscope `--snr 0.1` takes
    its place.

    Look at run/training.png, which is renewed at each validation: the loss should fall, the scores rise, and your
    section look like the simulated one. On several GPUs: `torchrun --nproc-per-node=4 --no-python faket-aug train
    --device cuda ...`.
    """
    from rich.console import Console

    from faket_aug._checks import SimulationError
    from faket_aug._runtime.distributed import known_ranks
    from faket_aug.cli._console import showing_warnings
    from faket_aug.cli._training import make_run
    from faket_aug.picking.ranks import RankError, distributed_job

    told = {name: one for name, one in given.items() if one not in (None, [], ()) and name in SETTINGS}
    rank = (known_ranks() or (0, 1))[0]
    console = Console(stderr=True, markup=False, highlight=False, quiet=rank > 0)
    try:
        with showing_warnings(console):
            work = read_work(output, config, told)
            with distributed_job(work.options.value("device")):
                run = make_run(work)
                if rank == 0:
                    write_settings(work)
                trained = _train(run, console, shown=rank == 0)
    except (ValueError, RankError, SimulationError) as error:
        # A worker's error ends with the line that says what was wrong.
        raise ValueError((str(error) or type(error).__name__).splitlines()[-1]) from error
    if rank == 0:
        for line in _summary(run, trained):
            typer.echo(line)


def _train(run: PickerRun, console: Any, *, shown: bool) -> TrainedPicker:
    """Train with a bar: the loss, steps, time left; and a line after each validation."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from faket_aug.training.train import Report

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False)),
    )
    with Progress(*columns, console=console, disable=not shown, speed_estimate_period=120) as progress:
        first = progress.add_task("validation tomograms", total=None)
        steps: list[Any] = []

        def made(done: int, total: int) -> None:
            progress.update(first, completed=done, total=total)
            if done == total:
                progress.update(first, visible=False)
                steps.append(progress.add_task("first tomogram", total=run.settings.steps, completed=run.done))

        def step(number: int, loss: float) -> None:
            if steps:
                left = run.minutes_left()
                limit = "" if left is None else f", {left:.0f} min to the limit"
                progress.update(steps[0], completed=number, description=f"loss {loss:.3f}{limit}")

        def validated(history: TrainingHistory) -> None:
            console.print(_validation(history), soft_wrap=True)

        return run.train(Report(validation=made, step=step, validated=validated))


def _validation(history: TrainingHistory) -> str:
    """Say what a validation found, in a line."""
    number, value = history.validations[-1]
    scores = ", ".join(f"{name} {score:.2f}" for name, score in history.scores[-1][1].items())
    best = "; the best so far" if history.best == (number, value) else ""
    return f"step {number}: {scores}{best}"


def _summary(run: PickerRun, trained: TrainedPicker) -> list[str]:
    from faket_aug.training.train import PICTURE

    history, steps = trained.history, run.settings.steps
    done, best = len(history.losses), history.best
    how = f"{done} steps"
    if history.stopped_early:
        how += f", ended early: no better validation in the last {history.since_best()}"
    elif done < steps:
        how += f" of {steps}, the time is over; run the same command again to go on"
    lines = [f"trained {how}"]
    if best is not None:
        scores = dict(history.scores).get(best[0], {})
        lines.append(f"best at step {best[0]}: {', '.join(f'{name} {value:.2f}' for name, value in scores.items())}")
    return [*lines, f"written to {run.folder}; look at {run.folder / PICTURE}"]
