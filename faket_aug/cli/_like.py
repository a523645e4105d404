"""How tomograms were reconstructed in a simulation: what `faket-aug reconstruct --like` takes from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faket_aug._reading import read_setting
from faket_aug.cli._options import SETTINGS, Options
from faket_aug.cli._sets import SETTINGS_FILE
from faket_aug.cli._train_options import SETTINGS_FILE as TRAINING_SETTINGS
from faket_aug.formats._json import read_json
from faket_aug.formats._settings_file import load_table
from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.microscope.file import read_microscope
from faket_aug.picking.checkpoints import BEST, CHECKPOINT
from faket_aug.picking.picker import describe_run
from faket_aug.simulation.saving import RECORD_FILE, TOMOGRAM_FILE
from faket_aug.training.validation import FOLDER as VALIDATION_FOLDER

#: What is taken beside flavours, depth and voxel size.
TAKEN = ("filter", "resampling", "ctf_correction")


def read_like(path: Path) -> dict[str, Any]:
    """Find how tomograms were reconstructed in a simulation: filter, resampling, flavours, depth and voxel size.

    Parameters
    ----------
    path
        The file of a microscope, a set's folder or its `simulation.json`, a tomogram's folder or `record.json`, or the
        folder of a training or its `best.pt` or `checkpoint.pt`.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If it is none of these.
    """
    folder = path if path.is_dir() else path.parent
    if path.name in (BEST, CHECKPOINT) or any((path / name).is_file() for name in (BEST, CHECKPOINT)):
        made = describe_run(path)
        own = {"filter": made.filter, "flavours": made.channels or (made.kind,)} | _filters_of(folder)
        return own | _of_tomogram(folder / VALIDATION_FOLDER) | {"voxel_size": made.voxel_size}
    if path.is_dir():
        names = (SETTINGS_FILE, RECORD_FILE)
        file = next((path / name for name in names if (path / name).is_file()), None)
        if file is None:
            raise FileNotFoundError(
                f"{path}: expected a simulated set with {' or '.join(names)}, found none; set --like"
            )
        path = file
    content = read_json(path, what="a microscope, or what a set was simulated with")
    if "options" in content or "origin" in content:
        options = Options.read(path, {})
        found = {name: options.value(name) for name in TAKEN}
        if options.value("flavour") is not None:
            found |= {"flavours": (options.value("flavour"),)}
            found |= {name: options.value(name) for name in ("low_pass", "deconvolution")}
        return found | _of_tomogram(folder)
    microscope = read_microscope(path)
    told = microscope.about.get("options")
    taken = {n: told[n] for n in TAKEN if n in told} if isinstance(told, Mapping) else {}
    shape = told.get("shape") if isinstance(told, Mapping) else None
    response = microscope.noise.response
    return (
        taken
        | ({} if not shape else {"depth": int(shape[0])})
        | ({} if response is None or not response.pixel_size > 0 else {"voxel_size": float(response.pixel_size)})
    )


def _filters_of(run: Path) -> dict[str, Any]:
    """Read how the flavours of a training were filtered, where its settings say so."""
    file = run / TRAINING_SETTINGS
    told = load_table(file, what="the settings of a training") if file.is_file() else {}
    names = ("low_pass", "deconvolution")
    return {name: read_setting(SETTINGS[name], told[name], f"{file}: {name}") for name in names if name in told}


def _of_tomogram(folder: Path) -> dict[str, Any]:
    """Read depth and voxel size of the first tomogram of a set, if there is one."""
    there = [folder / TOMOGRAM_FILE, *sorted(folder.glob(f"*/{TOMOGRAM_FILE}"))]
    file = next((one for one in there if one.is_file()), None)
    if file is None:
        return {}
    _, size = read_mrc(file, rows=slice(0, 1))
    return {"depth": read_mrc_shape(file)[0]} | ({"voxel_size": size} if size > 0 else {})
