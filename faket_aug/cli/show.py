"""`faket-aug show`: one picture of what a path holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: Å, of circles around particles.
RADIUS = 100.0


def show(
    path: Annotated[
        Path, typer.Argument(help="A folder in any of the formats read, a tilt-series, or a tomogram or map.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The picture, .png or .pdf; by default here, called after the path and the list.", show_default=False
        ),
    ] = None,
    picks: Annotated[
        Path | None,
        typer.Option(
            help="Of a tomogram: draw circles at the particles of this list (STAR, CSV, XML, SHREC's text, copick).",
            show_default=False,
        ),
    ] = None,
    radius: Annotated[float, typer.Option(help="Å, of the circles.")] = RADIUS,
    beside: Annotated[
        Path | None,
        typer.Option(
            help="Of simulated tomograms: show the first beside this measured one, at one scale and low-passed alike.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[int, typer.Option(min=0, help="Which tomogram, where the folder holds several.")] = 0,
) -> None:
    """Draw one picture: a tilt, three orthogonal sections, the labels over them, particles of each class.

    The path is a folder that `faket-aug simulate` wrote (or one tomogram of it), a specimen in SHREC's layout, PolNet's
    output, a plain folder of a density and its labels, a copick project, a tilt-series, or a tomogram or map alone. An
    MRC file without tilt angles beside it is taken for a tomogram. Which files were read is said, too.

    It comes after any other command. As `faket-aug show series_1_rec.mrc --picks truth.star`, after the commands that
    `faket-aug demo --keep trial` says; or, after the example of `simulate`, `faket-aug show set --beside
    series_1_rec.mrc`.
    """
    name = path.stem if path.is_file() else path.resolve().name
    # Not the name of the picture that stands beside a tomogram.
    name += f"_{picks.stem}" if picks is not None else "_beside" if beside is not None else ""
    target = Path(f"{name}.png") if output is None else output
    if target.suffix.lower() not in (".png", ".pdf"):
        raise ValueError(f"expected --output to end in .png or .pdf, got {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"expected a folder for the picture, found none at {target.parent}; set --output")

    if picks is not None and beside is not None:
        raise ValueError("expected either --picks or --beside, got both; make two pictures")

    from rich.console import Console

    from faket_aug.cli._console import showing_warnings
    from faket_aug.cli._look import draw_look, look_at
    from faket_aug.cli._show import draw_beside, draw_list
    from faket_aug.figures import save_figure

    console = Console(stderr=True, markup=False, highlight=False)
    with showing_warnings(console):
        look = look_at(path, index=index)
        files = list(look.files)
        if picks is not None:
            figure = draw_list(look, picks, radius=radius)
            files.append(str(picks))
        elif beside is not None:
            other = look_at(beside)
            figure = draw_beside(look, other)
            files += other.files
        else:
            figure = draw_look(look)
    save_figure(figure, target)
    for file in dict.fromkeys(files):
        console.print(f"read {file}", soft_wrap=True)
    typer.echo(str(target))
