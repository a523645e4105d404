"""`faket-aug demo`: the whole round trip without any data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from faket_aug._reading import read_setting
from faket_aug._settings import settings_of
from faket_aug.cli._commands import taking
from faket_aug.demo import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from faket_aug.demo.round_trip import Result

WEIGHTS_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
RANDOM_NOTE = (
    "Note: random weights are the weaker variant of the method (FAKET_RANDOM). For the published one add "
    f"--weights torchvision (downloads 550 MB once), or --weights vgg19-dcbb9e9d.pth, a file fetched from {WEIGHTS_URL}"
)
#: The others are sizes, which the demonstration keeps.
_NAMES = ("output", "steps", "seed", "weights", "style_layers", "device")
_SETTINGS = {name: setting for name, setting in settings_of(settings.RoundTrip).items() if name in _NAMES}
#: From tilts to picks, on the files that `--keep` leaves; five minutes on two cores.
COMMANDS = (
    "faket-aug reconstruct series_1.mrc --depth 64 --filter hann --output series_1_rec.mrc",
    "faket-aug fit microscope.json --style series_1.mrc --templates particles --occupancy 0.04 --shape 48,128,128",
    "faket-aug train --microscope microscope.json --templates particles --classes cage --filter hann "
    "--shape 64,96,96 --watch series_1_rec.mrc --variation none --steps 160 --validate-every 80 --output run",
    "faket-aug pick run series_1_rec.mrc --output picks.star",
    "faket-aug score picks.star truth.star --volume series_1_rec.mrc --classes cage --distance 75 --output score",
)


@taking(_SETTINGS.values())
def demo(
    keep: Annotated[
        Path | None,
        typer.Option(
            help="In place of the round trip, write small files into this folder, on which all commands can be tried.",
            show_default=False,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Show the whole round trip on procedural specimens, without any data or network.

    Builds small specimens and records them with a microscope of its own, whose unlabelled tilt-series are the style;
    fits the noise, builds the style bank, trains a small network on patches that are simulated meanwhile, and writes
    preview.png.

    With --keep it leaves files instead, and says the commands from a tilt-series to picks on them: series_1.mrc with
    angles, alignment, defocus and exposure beside it, maps of its particles and the places where they truly are, a
    fitted microscope, and three specimens with their measured tilts. The examples in the help of commands run there.

    Nothing comes before it; after it `faket-aug reconstruct`. As `faket-aug demo --keep trial`.
    """
    told = {n: read_setting(_SETTINGS[n], one, _SETTINGS[n].option) for n, one in given.items() if one is not None}
    if "style_layers" in told:
        told["style_layers"] = tuple(sorted(set(told["style_layers"])))
    if keep is not None:
        _keep(keep, told)
        return
    wanted = settings.RoundTrip(**told)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from faket_aug.demo.round_trip import Stages, run

    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(markup=False, highlight=False)
    with Progress(*columns, console=console) as progress:
        stages = Stages(progress=progress)
        result = run(wanted, stages)
    _show(console, result, stages.seconds)


def _keep(folder: Path, told: Mapping[str, Any]) -> None:
    """Write the files, and say what to do with them."""
    from faket_aug.cli._console import showing_progress
    from faket_aug.demo.kept import keep_files

    others = [_SETTINGS[name].option for name in told if name != "seed"]
    if others:
        raise ValueError(
            f"expected --keep without settings of the round trip, got {', '.join(others)}; leave them away"
        )
    with showing_progress("files") as (_, progress):
        keep_files(folder, seed=told.get("seed", _SETTINGS["seed"].default), progress=progress)
    typer.echo(
        "\n".join([f"written into {folder}; from tilts to picks, in five minutes:", "", f"cd {folder}", *COMMANDS])
    )


def _show(console: Console, result: Result, seconds: Mapping[str, float]) -> None:
    from faket_aug.demo.round_trip import ends

    first, last = ends(result.losses)
    encoder = result.features
    layers = ", ".join(str(layer) for layer in result.style_layers)
    rows = {name: f"{spent:.1f} s" for name, spent in seconds.items()} | {
        "together": f"{sum(seconds.values()):.1f} s",
        "patches": f"{result.patches_per_second:.1f} a second, simulated and trained on",
        "loss": f"{first:.2f} at the start, {last:.2f} at the end",
        "weights": f"{encoder.source} (VGG-19 in {encoder.precision}, style layers {layers})",
        "picture": str(result.preview),
    }
    for name, value in rows.items():
        # A path that is broken into lines could not be copied.
        console.print(f"{name:<12} {value}", soft_wrap=True)
    if encoder.source == "random":
        console.print(RANDOM_NOTE, soft_wrap=True)
