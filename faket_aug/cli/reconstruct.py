"""`faket-aug reconstruct`: a tomogram of a measured tilt-series, made as simulated ones are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from faket_aug._reading import read_setting
from faket_aug._settings import IsPath, Setting, setting_of
from faket_aug.cli._commands import taking
from faket_aug.cli._options import SETTINGS
from faket_aug.cli._series_checks import aligned_option
from faket_aug.data.dataset import FakETDataset
from faket_aug.microscope.flavours import FLAVOURS
from faket_aug.tilts.series import TiltSeries
from faket_aug.tomography.reconstruction import reconstruct as _reconstruct

_HOW, _FILES = "How it is reconstructed (by default as --like says)", "The tilt-series"
_Path = Annotated[str, IsPath()]

_READING: dict[str, Setting] = {
    "tilt_angles": setting_of(
        TiltSeries.read, "tilt_angles", hint=_Path, group=_FILES, help="A file of angles, in the stack's order."
    ),
    "metadata": setting_of(
        TiltSeries.read,
        "metadata",
        hint=Sequence[_Path],
        group=_FILES,
        help="A file with angles, alignment, defocus (.xml, .aln, .xf, .tlt, .star, .mdoc). By default those beside "
        "the stack with its name.",
    ),
    "pixel_size": setting_of(TiltSeries.read, "pixel_size", group=_FILES),
}
_SETTINGS: dict[str, Setting] = {
    "depth": setting_of(_reconstruct, "depth", group=_HOW),
    "bin": setting_of(_reconstruct, "bin", group=_HOW),
    "filter": replace(SETTINGS["filter"], group=_HOW),
    "resampling": replace(SETTINGS["resampling"], group=_HOW),
    "ctf_correction": replace(
        SETTINGS["ctf_correction"],
        group=_HOW,
        help="Correct the aligned tilts for the contrast transfer function: its sign, or also its weakening.",
    ),
    "flavours": setting_of(
        FakETDataset,
        "flavours",
        choices=FLAVOURS,
        group=_HOW,
        help="What the tomogram is, raw, corrected, low-passed or deconvolved; more of them are written beside it, as "
        "tomogram_deconvolved.mrc, where train --watch and pick look for them. In place of --ctf-correction.",
    ),
    "low_pass": replace(SETTINGS["low_pass"], group=_HOW, default=MISSING),
    "deconvolution": replace(SETTINGS["deconvolution"], group=_HOW, default=MISSING),
    "ctf": replace(SETTINGS["ctf"], group=_HOW, help="In place of what the files say of each tilt.", default=MISSING),
}
_MACHINE: dict[str, Setting] = {"threads": SETTINGS["threads"]}
_ALL = _READING | _SETTINGS | _MACHINE


@taking(_ALL.values())
def reconstruct(
    series: Annotated[Path, typer.Argument(help="A tilt-series: a stack, or its folder.")],
    output: Annotated[Path, typer.Option(help="The tomogram, .mrc; a picture and a record stand beside it.")],
    like: Annotated[
        Path | None,
        typer.Option(
            help="The file of a microscope, or the folder of a simulated set or of a training: filter, resampling, CTF "
            "correction or flavours, and as far as known voxel size and depth, are taken from it.",
            rich_help_panel=_HOW,
            show_default=False,
        ),
    ] = None,
    aligned: Annotated[bool, aligned_option(_FILES)] = False,
    halves: Annotated[
        bool,
        typer.Option("--halves", help="Also write tomograms of every other tilt, _even and _odd, as for a denoiser."),
    ] = False,
    **given: Any,
) -> None:
    """Reconstruct a measured tilt-series, aligned by the files beside it, as simulated tomograms are reconstructed.

    A picker that learned from simulated tomograms needs measured ones of the same filter, voxel size and flavours.

    Before it comes alignment by another program (IMOD, AreTomo, Warp, RELION); after it `faket-aug fit`, and with the
    tomogram `train --watch` and `pick`. As `faket-aug reconstruct series_1.mrc --depth 64 --filter hann --output
    series_1_rec.mrc`, on the files of `faket-aug demo --keep trial`; after a training `--like run` takes the place of
    settings.
    """
    from faket_aug.cli._console import showing_progress, showing_warnings
    from faket_aug.cli._reconstruction import ReconstructionWork, run

    told = {n: read_setting(_ALL[n], one, _ALL[n].option) for n, one in given.items() if one not in (None, [], ())}
    ctf = told.pop("ctf", None)
    with showing_progress("steps") as (console, progress), showing_warnings(console):
        work = ReconstructionWork(
            series=series,
            output=output,
            like=like,
            reading={name: told[name] for name in _READING if name in told},
            settings={name: told[name] for name in _SETTINGS if name in told},
            ctf=ctf,
            aligned=aligned,
            halves=halves,
            threads=told.get("threads", _MACHINE["threads"].default),
        )
        for line in run(work, progress):
            typer.echo(line)
