"""`faket-aug pick`: particles in tomograms, by the network of a run."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from faket_aug._reading import read_setting
from faket_aug._settings import Setting, setting_of
from faket_aug.cli._commands import taking
from faket_aug.cli._pick_files import FORMATS
from faket_aug.formats.star import write_particles_star
from faket_aug.picking.finding import CONTRASTS, RATE, FindSettings, find_particles
from faket_aug.picking.inference import FLIPS
from faket_aug.picking.locating import METHODS
from faket_aug.picking.picker import load_picker
from faket_aug.picking.precision import PRECISIONS
from faket_aug.simulation.simulator import FakETSimulator

_HOW, _COUNTS, _WHERE, _WRITTEN = "How particles are found", "What counts", "The tomograms", "What is written"
_CHOICES: dict[str, tuple[Any, ...]] = {
    "method": METHODS,
    "flips": FLIPS,
    "precision": PRECISIONS,
    "contrast": CONTRASTS,
}


def _how(name: str) -> Setting:
    group = _WHERE if name == "contrast" else _HOW
    return setting_of(FindSettings, name, group=group, choices=_CHOICES.get(name, ()))


_FIND = {name: _how(name) for name in (one.name for one in fields(FindSettings)) if name != "control"}
_OTHERS: dict[str, Setting] = {
    one.name: one
    for one in (
        Setting(
            name="threshold",
            hint=float | dict[str, float] | None,
            default=None,
            help="Score from which on picks count, of all classes or by class, as `4v4r=0.4,1bxn=0.3`; by default that "
            "of the control, and half of what the training chose at least.",
            group=_COUNTS,
        ),
        Setting(
            name="rate",
            hint=float | None,
            default=None,
            help=f"Picks in noise for each pick, by which the control alone chooses thresholds; by default {RATE:g}.",
            group=_COUNTS,
        ),
        replace(
            setting_of(find_particles, "voxel_size", group=_WHERE),
            default=None,
            hint=float | None,
            help="Å, of the tomograms, in place of the headers'.",
        ),
        Setting(
            name="z_range",
            hint=tuple[int, int] | None,
            default=None,
            help="First and last section (z, from 0) in which particles are looked for.",
            group=_WHERE,
        ),
        Setting(
            name="names",
            hint=tuple[str, ...],
            default=(),
            help="Of the tomograms, as RELION knows their tilt-series; by default the tilt-series' name that "
            "`faket-aug reconstruct` left, else the file's.",
            group=_WHERE,
        ),
        replace(
            setting_of(write_particles_star, "pixel_size", group=_WRITTEN),
            name="unbinned_pixel_size",
            help="Å, of the tilt-series before binning, which RELION counts in.",
        ),
        setting_of(
            load_picker,
            "device",
            hint=str,
            default=FakETSimulator.device,
            help="Where the network computes, cpu or cuda.",
            group="The machine",
        ),
        Setting(
            name="threads",
            hint=int | None,
            default=None,
            help="Of the CPU; by default as many as it has cores. Their number changes the last bits.",
            group="The machine",
        ),
    )
}
_ALL = _FIND | _OTHERS


@taking(_ALL.values())
def pick(
    run: Annotated[Path, typer.Argument(help="The folder of a training, or its best.pt or checkpoint.pt.")],
    tomograms: Annotated[list[Path], typer.Argument(help="MRC files, or folders of simulated tomograms.")],
    output: Annotated[Path, typer.Option(help="The list of picks; pictures are in a folder of its name.")],
    format: Annotated[
        str, typer.Option(help=f"One of {', '.join(FORMATS)}.", rich_help_panel=_WRITTEN, metavar="WORD")
    ] = "star5",
    probabilities: Annotated[
        Path | None,
        typer.Option(help="Also write the probabilities, .mrc.", rich_help_panel=_WRITTEN, show_default=False),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="An MRC file of the tomogram's shape; particles are looked for where it is not 0.",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    no_control: Annotated[
        bool,
        typer.Option("--no-control", help="Do not pick in noise of the same spectrum.", rich_help_panel=_COUNTS),
    ] = False,
    **given: Any,
) -> None:
    """Pick particles in tomograms by the network of a training.

    Each run has a control: the same in noise with the tomogram's spectrum, in which there is nothing to find. The
    summary says how many picks there are, and how many in as much noise. Before it come `faket-aug train` and
    `faket-aug reconstruct`; after it RELION, Warp, or `faket-aug score`.

    As `faket-aug pick run series_1_rec.mrc --output picks.star`, after the commands that `faket-aug demo --keep trial`
    says. The same command again goes on where it was stopped; with another --threshold it takes no time.
    """
    from faket_aug.cli._console import showing_progress, showing_warnings
    from faket_aug.cli._pick_checks import PickWork
    from faket_aug.cli._picking import run as run_work

    told = {n: read_setting(_ALL[n], one, _ALL[n].option) for n, one in given.items() if one not in (None, [], ())}
    settings = FindSettings(**{n: told[n] for n in _FIND if n in told}, control=not no_control)
    work = PickWork(
        run=run,
        tomograms=tomograms,
        output=output,
        format=format,
        settings=settings,
        thresholds=told.get("threshold"),
        rate=told.get("rate"),
        names=told.get("names", ()),
        voxel_size=told.get("voxel_size"),
        mask=mask,
        z_range=told.get("z_range"),
        unbinned_pixel_size=told.get("unbinned_pixel_size"),
        probabilities=probabilities,
        device=told.get("device", _ALL["device"].default),
        threads=told.get("threads", _ALL["threads"].default),
    )
    with showing_progress("picking, %") as (console, progress), showing_warnings(console):
        for line in run_work(work, progress, lambda line: console.print(line, soft_wrap=True)):
            typer.echo(line)
