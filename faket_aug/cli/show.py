"""`faket-aug show`: one picture of what a path holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    path: Annotated[Path, typer.Argument(help="A folder in any of the formats read, or a tilt-series.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The picture, .png or .pdf; by default the path's name with .png, here.", show_default=False),
    ] = None,
    index: Annotated[int, typer.Option(min=0, help="Which tomogram, where the folder holds several.")] = 0,
) -> None:
    """Draw one picture: a tilt, three orthogonal sections, the labels over them, particles of each class.

    The path is a folder that `faket-aug simulate` wrote (or one tomogram of it), a specimen in SHREC's layout, PolNet's
    output, a plain folder of a density and its labels, a copick project, or a tilt-series alone.
    """
    name = path.stem if path.is_file() else path.resolve().name
    target = Path(f"{name}.png") if output is None else output
    if target.suffix.lower() not in (".png", ".pdf"):
        raise ValueError(f"expected --output to end in .png or .pdf, got {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"expected a folder for the picture, found none at {target.parent}; set --output")

    from faket_aug.cli._look import draw_look, look_at
    from faket_aug.figures import save_figure

    save_figure(draw_look(look_at(path, index=index)), target)
    typer.echo(str(target))
