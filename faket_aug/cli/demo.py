"""`faket-aug demo`: the whole round trip without any data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from faket_aug.demo.round_trip import Result

WEIGHTS_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
RANDOM_NOTE = (
    "Note: random weights are the weaker variant of the method (FAKET_RANDOM). For the published one add "
    f"--weights torchvision (downloads 550 MB once), or --weights vgg19-dcbb9e9d.pth, a file fetched from {WEIGHTS_URL}"
)


def demo(
    output: Annotated[Path, typer.Option(help="Folder of preview.png, made where it is missing.")] = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 150,
    seed: Annotated[int, typer.Option(min=0, help="Of all chance.")] = 0,
    weights: Annotated[
        str | None,
        typer.Option(
            help='Encoder weights: a .pth or .safetensors file, "torchvision" (downloaded if need be) or "random"; '
            'by default torchvision\'s if they are in its cache, else "random".',
            show_default=False,
        ),
    ] = None,
    style_layers: Annotated[
        str | None,
        typer.Option(
            metavar="1,6,11,...",
            help="ReLUs of VGG-19 in torchvision's numbering; by default the published ones that the weights reach.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help='"cpu" or "cuda".')] = "cpu",
) -> None:
    """Show the whole round trip on procedural specimens, without any data or network.

    Builds small specimens and records them with a microscope of its own, whose unlabelled tilt-series are the style;
    fits the noise, builds the style bank, trains a small network on patches that are simulated meanwhile, and writes
    preview.png.
    """
    layers = None if style_layers is None else _parse_layers(style_layers)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f'expected --device to be "cpu", "cuda" or "cuda:1", got {device!r}')

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from faket_aug.demo.round_trip import RoundTrip, Stages, run

    settings = RoundTrip(output=output, steps=steps, seed=seed, weights=weights, style_layers=layers, device=device)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(markup=False, highlight=False)
    with Progress(*columns, console=console) as progress:
        stages = Stages(progress=progress)
        result = run(settings, stages)
    _show(console, result, stages.seconds)


def _parse_layers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise ValueError(f"expected --style-layers to be numbers with commas between, as 1,6,11, got {text!r}")
    return tuple(sorted({int(part) for part in text.split(",")}))


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
