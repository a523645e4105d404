"""`faket-aug fit`: what a microscope does, from its unlabelled tilt-series."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_TARGET, _SPECIMENS = "The microscope's tilts", "Specimens of the same kind"
_OPTICS, _STEP = "Its optics, where known", "The style transfer's step"


def _option(help: str, panel: str, **settings: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=panel, show_default=False, **settings)


_Text = str | None
_Number = float | None


def fit(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(help="JSON file to write; a picture of the same name stands beside it.")],
    style: Annotated[
        list[str] | None,
        _option("Unlabelled tilt-series, a stack or its folder; repeatable. Aligned by the files beside it.", _TARGET),
    ] = None,
    tilt_axis: Annotated[
        _Number,
        _option("Degrees from the image's y: series without alignment are aligned by their neighbours.", _TARGET),
    ] = None,
    config: Annotated[
        Path | None,
        _option("JSON file of the specimens' options, as of `simulate`; the command line wins.", _SPECIMENS),
    ] = None,
    specimens: Annotated[
        list[str] | None, _option("Folder in any format read; repeatable. Their labels are not used.", _SPECIMENS)
    ] = None,
    dark: Annotated[bool | None, _option("Particles are dark in them.", _SPECIMENS)] = None,
    templates: Annotated[
        list[str] | None, _option("Or generated: a map, a structure, or a folder of them; repeatable.", _SPECIMENS)
    ] = None,
    counts: Annotated[_Text, _option("Particles of a class: 50, or 1bxn=50,3gl1=20.", _SPECIMENS)] = None,
    occupancy: Annotated[_Number, _option("Share of the ice that particles fill.", _SPECIMENS)] = None,
    membranes: Annotated[_Text, _option("sphere=2,ellipsoid=1,toroid=1,sheet=1.", _SPECIMENS)] = None,
    filaments: Annotated[_Text, _option("actin=3,microtubule=1.", _SPECIMENS)] = None,
    fiducials: Annotated[int | None, _option("Gold beads.", _SPECIMENS)] = None,
    slab: Annotated[_Text, _option("Thickness of the ice, Å: 1500 or 1000,2000.", _SPECIMENS)] = None,
    shape: Annotated[_Text, _option("Voxels: z,y,x.", _SPECIMENS)] = None,
    voxel_size: Annotated[_Number, _option("Å; the tilts' pixel size by default.", _SPECIMENS)] = None,
    extend: Annotated[_Text, _option("Beyond the specimen: zero, or wrap (itself again).", _SPECIMENS)] = None,
    count: Annotated[
        int | None, _option("Specimens that spectra are averaged over; by default all --specimens, or 2.", _SPECIMENS)
    ] = None,
    seed: Annotated[int | None, _option("Of the generated ones; 0 by default.", _SPECIMENS)] = None,
    defocus: Annotated[
        _Text, _option("µm, known: 3.5; or searched: 2,5. By default by the files, or else 0.2,10.", _OPTICS)
    ] = None,
    voltage: Annotated[_Number, _option("kV; by default the files', or 300.", _OPTICS)] = None,
    spherical_aberration: Annotated[_Number, _option("mm; by default the files', or 2.7.", _OPTICS)] = None,
    weights: Annotated[
        _Text, _option("Encoder: with it, the step of the style transfer is chosen by held-out tilts, too.", _STEP)
    ] = None,
    precision: Annotated[_Text, _option("Of the encoder: float32 (the default) or bfloat16.", _STEP)] = None,
    style_layers: Annotated[_Text, _option("ReLUs of VGG-19: 1,6,11,20,29.", _STEP)] = None,
    quantiles: Annotated[_Text, _option("Range of the style's values: 0.001,0.999 against beads.", _STEP)] = None,
    amplitude_contrast: Annotated[_Number, _option("Where its fit starts; the files', or 0.07.", _OPTICS)] = None,
) -> None:
    """Fit transfer function and noise of a microscope, without labels, and show simulated tilts beside measured ones.

    The file is what `simulate --noise` and `NoiseModel.from_json` take. Specimens need only be of the same kind as what
    the microscope saw; without any, the package's own are taken.
    """
    from faket_aug.cli._fitting import FitWork, run
    from faket_aug.cli._options import GENERATED, Options

    own = (
        "context",
        "output",
        "tilt_axis",
        "config",
        "count",
        "defocus",
        "voltage",
        "spherical_aberration",
        "amplitude_contrast",
    )
    given = {name: value for name, value in context.params.items() if name not in own and value not in (None, [], ())}
    if weights is None and (precision or style_layers or quantiles):
        raise ValueError("expected --weights with --precision, --style-layers or --quantiles, got none; set it")
    optics = {
        "voltage": voltage,
        "spherical_aberration": spherical_aberration,
        "amplitude_contrast": amplitude_contrast,
    }
    built_in = config is None and not {"specimens", *GENERATED} - {"shape"} & set(given)
    work = FitWork(
        output=output,
        # Options want specimens of some kind; the built-in ones have their own.
        options=Options.read(config, given | ({"fiducials": 0} if built_in else {})),
        built_in=built_in,
        count=count,
        defocus=defocus,
        optics={name: value for name, value in optics.items() if value is not None},
        step=weights is not None,
        tilt_axis=tilt_axis,
    )

    from faket_aug.cli._console import showing_progress, showing_warnings

    with showing_progress("clean tilts") as (console, progress), showing_warnings(console):
        for line in run(work, progress):
            typer.echo(line)
