"""`faket-aug score`: are the picks where the particles are?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from faket_aug._reading import read_setting
from faket_aug._settings import Setting, setting_of
from faket_aug.cli._commands import taking
from faket_aug.cli._options import SETTINGS
from faket_aug.formats.found_particles import find_particles
from faket_aug.picking.distances import PairedPicks, score_by_distance

_COMPARED, _WHICH, _VOXELS = "What is compared", "Which list of several", "Voxels and names"


def _which(name: str) -> Setting:
    return setting_of(find_particles, name, group=_WHICH)


def _of_truth(name: str, help: str) -> Setting:
    return replace(_which(name), name=f"truth_{name}", help=help)


_SETTINGS: dict[str, Setting] = {
    one.name: one
    for one in (
        setting_of(score_by_distance, "distance", group=_COMPARED),
        setting_of(PairedPicks.f_beta, "beta", group=_COMPARED, help="Recall counts so many times as precision in F."),
        setting_of(score_by_distance, "classes", group=_COMPARED),
        _which("tomogram"),
        _of_truth("tomogram", "Which tomogram of the truth; by default the same."),
        *(_which(name) for name in ("user_id", "session_id")),
        _of_truth("user_id", "Whose truth of a copick project, where there are several."),
        _of_truth("session_id", "The session of this truth."),
        setting_of(find_particles, "voxel_size", group=_VOXELS, note="By default what the files say."),
        setting_of(
            find_particles,
            "voxel_size",
            name="picks_voxel_size",
            group=_VOXELS,
            help="Å, in which positions of the picks count, where they were found in a tomogram of other voxels.",
        ),
        replace(SETTINGS["class_table"], group=_VOXELS, help="Names of class numbers, as `1=1bxn,2=3gl1`."),
    )
}


@taking(_SETTINGS.values())
def score(
    picks: Annotated[Path, typer.Argument(help="STAR, CSV, DeepFinder's XML, SHREC's text, a folder, or copick.")],
    truth: Annotated[Path, typer.Argument(help="The particles that are there, in any of these formats.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for score.json, score.csv and score.png, made where missing.", show_default=False),
    ] = None,
    volume: Annotated[
        Path | None,
        typer.Option(
            help="The tomogram as MRC: its header says voxel size and shape, which RELION 5's centred positions need.",
            rich_help_panel=_VOXELS,
            show_default=False,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Score picks against the particles that are there: precision, recall, F1 and F-beta, by class.

    A pick finds a particle of its class within --distance; the picture shows how much depends on it. Where the truth is
    a folder in SHREC's layout, SHREC's own evaluation is told, too. Lists of several tomograms are paired by name: a
    STAR file or a folder of lists against a set, a STAR file or a copick project gives totals and each tomogram's row.

    Before it comes `faket-aug pick`. As `faket-aug score picks.star truth.star --volume series_1_rec.mrc --classes cage
    --distance 75 --output score`, on the files of `faket-aug demo --keep trial` and of the commands before.
    """
    from faket_aug.cli._console import showing_progress, showing_warnings
    from faket_aug.cli._scores import ScoreWork, Whose, run

    told = {n: read_setting(_SETTINGS[n], one, _SETTINGS[n].option) for n, one in given.items() if one is not None}
    of = {n: told.pop(n, None) for n in ("tomogram", "user_id", "session_id")}
    of_truth = {n: told.pop(f"truth_{n}", None) for n in of}
    of_truth["tomogram"] = of_truth["tomogram"] or of["tomogram"]
    defaults = {name: _SETTINGS[name].default for name in ("distance", "beta")}
    work = ScoreWork(
        picks=picks,
        truth=truth,
        of_picks=Whose(**of),
        of_truth=Whose(**of_truth),
        volume=volume,
        output=output,
        **(defaults | told),
    )
    with showing_progress("picks") as (console, _), showing_warnings(console):
        lines = run(work)
    for line in lines:
        typer.echo(line)
