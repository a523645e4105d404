"""`faket-aug fit`: what a microscope does, from its unlabelled tilt-series."""

from __future__ import annotations

from dataclasses import MISSING, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from faket_aug._reading import read_setting
from faket_aug._settings import Setting, parameter_help, setting_of
from faket_aug.cli._commands import taking
from faket_aug.cli._options import OF_GENERATED, SETTINGS, SEVERAL, Options, given_options
from faket_aug.cli._series_checks import aligned_option
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.intensity import SCALE_SOURCES
from faket_aug.simulation.fit_microscope import CROWDS, KNOWN_OPTICS, fit_microscope
from faket_aug.simulation.plain_settings import TRANSFER
from faket_aug.simulation.step_size import choose_step_size
from faket_aug.style.bank import StyleBank

_TARGET, _SPECIMENS = "The microscope's tilts", "Specimens of the same kind"
_OPTICS, _STEP = "Its optics, where known", "The style transfer's step"
#: What is not given is taken from the files of the tilt-series, if they say it.
_KNOWN = "By default what the files say."
_NOTES = {"voltage": _KNOWN, "spherical_aberration": _KNOWN, "amplitude_contrast": f"Where its fit starts. {_KNOWN}"}
_Pair = float | tuple[float, float]

#: Settings of `fit_microscope`, of its `optics` and of `choose_step_size`.
_FITTING: dict[str, Setting] = {
    "tilt_axis": setting_of(fit_microscope, "tilt_axis", group=_TARGET, note="Series without alignment are aligned."),
    "noise_order": setting_of(fit_microscope, "noise_order", group=_TARGET),
    "scale": replace(setting_of(fit_microscope, "scale", group=_TARGET), choices=SCALE_SOURCES),
    "exposure": setting_of(fit_microscope, "exposure", group=_TARGET),
    "interpolated": setting_of(fit_microscope, "interpolated", group=_TARGET),
    "count": setting_of(fit_microscope, "count", group=_SPECIMENS),
    "fit_crowd": replace(setting_of(fit_microscope, "crowd", name="fit_crowd", group=_SPECIMENS), choices=CROWDS),
    "thickness": setting_of(fit_microscope, "thickness", group=_SPECIMENS),
    "defocus": setting_of(fit_microscope, "defocus", group=_OPTICS),
}
_OWN_OPTICS: dict[str, Setting] = {
    name: setting_of(ContrastTransfer, name, group=_OPTICS, note=_NOTES.get(name, "")) for name in KNOWN_OPTICS
}
_SEARCH: dict[str, Setting] = {
    "steps": setting_of(choose_step_size, "steps", group=_STEP),
    "compared_tilts": setting_of(choose_step_size, "tilts", name="compared_tilts", group=_STEP),
}


def _taken(name: str, group: str, note: str = "") -> Setting:
    return replace(SETTINGS[name], group=group, help=f"{SETTINGS[name].help} {note}".strip())


_OPTIONS = [
    _taken("style", _TARGET),
    *(_taken(name, _SPECIMENS) for name in ("specimens", "dark", *OF_GENERATED, "class_table", "device", "threads")),
    replace(_taken("voxel_size", _SPECIMENS), help="Å; by default the tilts' pixel size.", default=MISSING),
    replace(setting_of(fit_microscope, "extend", group=_SPECIMENS), choices=SETTINGS["extend"].choices),
    _taken("seed", _SPECIMENS),
    _taken("weights", _STEP, "With it, the step is chosen."),
    *(_taken(name, _STEP) for name in ("precision", "pooling", "weights_seed", "style_layers")),
    replace(_taken("style_cache", _STEP), help=parameter_help(StyleBank.build)["cache"]),
    *(_taken(name, _STEP) for name in ("quantiles", *TRANSFER, "memory_budget")),
    *_FITTING.values(),
    *_OWN_OPTICS.values(),
    *_SEARCH.values(),
]


@taking(_OPTIONS, repeated=SEVERAL)
def fit(
    output: Annotated[Path, typer.Argument(help="JSON file to write; a picture of the same name stands beside it.")],
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
    """Fit transfer function and noise of a microscope, without labels, and show simulated tilts beside measured ones.

    The file is what `--microscope` of other commands and `FakETSimulator.from_file` take. Specimens need only be of the
    same kind as what the microscope saw; without any, the package's own are taken.

    Before it comes alignment by another program; after it `faket-aug check`, `simulate` and `train`. As `faket-aug fit
    microscope.json --style series_1.mrc --templates particles --occupancy 0.04 --shape 48,128,128`, on the files of
    `faket-aug demo --keep trial`.
    """
    from faket_aug.cli._console import showing_progress, showing_warnings
    from faket_aug.cli._fitting import FitWork, run

    options = given_options({name: one for name, one in given.items() if name not in _FITTING})
    steps = {name: given[name] for name in ("precision", "style_layers", "quantiles", *_SEARCH)}
    if given["weights"] is None and any(steps.values()):
        raise ValueError("expected --weights with --precision, --style-layers or --quantiles, got none; set it")
    built_in = config is None and not {"specimens", *OF_GENERATED} - {"shape"} & set(options)
    fitting, optics, search = (_read(part, given) for part in (_FITTING, _OWN_OPTICS, _SEARCH))
    with showing_progress("clean tilts") as (console, progress), showing_warnings(console):
        work = FitWork(
            output=output,
            # Options want specimens of some kind; the built-in ones have their own.
            options=Options.read(config, options | ({"fiducials": ["0"]} if built_in else {})),
            built_in=built_in,
            fitting=fitting | ({"optics": optics} if optics else {}),
            search=search,
            step=given["weights"] is not None,
            aligned=aligned,
        )
        for line in run(work, progress):
            typer.echo(line)


def _read(settings: dict[str, Setting], given: dict[str, Any]) -> dict[str, Any]:
    """Read what was given, by the parameters' own names."""
    there = {name: one for name, one in settings.items() if given[name] is not None}
    return {one.owners[0][1]: read_setting(one, given[name], one.option) for name, one in there.items()}
