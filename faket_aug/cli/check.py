"""`faket-aug check`: is what a fitted microscope simulates like what it measured?"""

from __future__ import annotations

from dataclasses import MISSING, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from faket_aug._reading import read_setting
from faket_aug._settings import Setting, setting_of, settings_of
from faket_aug.cli._commands import taking
from faket_aug.cli._options import OF_GENERATED, SETTINGS, SEVERAL, Options, given_options
from faket_aug.cli._series_checks import aligned_option
from faket_aug.comparison.check_settings import CheckSettings
from faket_aug.simulation.fit_microscope import BUILT_IN_SHAPE, fit_microscope
from faket_aug.simulation.plain_settings import TRANSFER

_TARGET, _SPECIMENS = "The microscope's tilts", "Specimens of the same kind"
_MADE, _STEP = "How tomograms are made", "Style transfer (with `weights`)"
_SHAPE = ",".join(str(n) for n in BUILT_IN_SHAPE)


def _taken(name: str, group: str, **changes: Any) -> Setting:
    return replace(SETTINGS[name], group=group, **changes)


_TILT_AXIS = setting_of(
    fit_microscope, "tilt_axis", group=_TARGET, note="Series without alignment are aligned, as by `fit`."
)
_CHECK: dict[str, Setting] = settings_of(CheckSettings, group="What is compared")
_OPTIONS = [
    _taken("style", _TARGET, help="A measured tilt-series: a stack, or its folder. The first one is compared."),
    _TILT_AXIS,
    *(_taken(name, _SPECIMENS) for name in ("specimens", "dark", *OF_GENERATED, "class_table")),
    _taken("voxel_size", _SPECIMENS, help="Å; by default the tilts' pixel size.", default=MISSING),
    *(_taken(name, _MADE) for name in ("filter", "resampling", "ctf_correction", "device", "threads", "seed")),
    replace(setting_of(fit_microscope, "extend", group=_MADE), choices=SETTINGS["extend"].choices),
    *(_taken(name, _STEP) for name in ("weights", "precision", "pooling", "weights_seed", "style_layers")),
    *(_taken(name, _STEP) for name in ("quantiles", *TRANSFER, "step_size", "keep_spectrum", "memory_budget")),
    *_CHECK.values(),
]
_OPTIONS = [
    replace(one, help=f"{one.help} Here by default {_SHAPE}.", default=MISSING) if one.name == "shape" else one
    for one in _OPTIONS
]


@taking(_OPTIONS, repeated=SEVERAL)
def check(
    microscope: Annotated[Path, typer.Argument(help="The file that `fit` wrote.")],
    output: Annotated[Path, typer.Option(help="Folder for check.json and check.png, made where it is missing.")],
    particle: Annotated[
        Path | None,
        typer.Option(
            help="A particle that both the measured tomogram and the specimens hold (a density map or an atomic "
            "structure): it is found by template matching, and how dark it is is compared.",
            rich_help_panel="What is compared",
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="With --particle: also write a microscope's file whose particles are as dark as the measured ones.",
            rich_help_panel="What is compared",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="JSON or TOML file of the specimens' options, as of `simulate`. The command line goes before it.",
            rich_help_panel=_SPECIMENS,
            show_default=False,
        ),
    ] = None,
    aligned: Annotated[bool, aligned_option(_TARGET)] = False,
    **given: Any,
) -> None:
    """Compare simulated tilts and tomograms with measured ones, without labels, and say what differs most.

    Compared are the power of tilts, what neighbouring tilts share, values, and how well a small classifier tells
    simulated patches from measured ones. Give the specimens of the fit; without any, the package's own are taken.

    Before it comes `faket-aug fit`; after it another fit, with what differs changed, or `simulate` and `train`. As
    `faket-aug check microscope.json --style series_1.mrc --templates particles --occupancy 0.04 --shape 48,128,128
    --output check`, on the files of `faket-aug demo --keep trial`.
    """
    from faket_aug.cli._checking import CheckWork, run
    from faket_aug.cli._console import showing_progress, showing_warnings

    axis = given.pop(_TILT_AXIS.name)
    options = given_options({name: one for name, one in given.items() if name not in _CHECK})
    built_in = config is None and not {"specimens", *OF_GENERATED} - {"shape"} & set(options)
    checked = {n: read_setting(one, given[n], one.option) for n, one in _CHECK.items() if given[n] is not None}
    with showing_progress("compared") as (console, progress), showing_warnings(console):
        work = CheckWork(
            microscope=microscope,
            output=output,
            # Options want specimens of some kind; the built-in ones have their own.
            options=Options.read(config, options | ({"fiducials": ["0"]} if built_in else {})),
            built_in=built_in,
            particle=particle,
            calibrate=calibrate,
            settings=CheckSettings(**checked),
            aligned=aligned,
            tilt_axis=None if axis is None else read_setting(_TILT_AXIS, axis, _TILT_AXIS.option),
        )
        for line in run(work, progress):
            typer.echo(line)
