"""Settings of `faket-aug train`: those of the training, of its files, and of what is simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from faket_aug._checks import FileFormatError
from faket_aug._reading import NONE, read_table
from faket_aug._settings import IsPath, Setting, settings_of
from faket_aug.cli._options import SETTINGS as SIMULATION
from faket_aug.cli._options import WRITTEN, Options, flat, from_text, of_simulator, with_setting_names, written
from faket_aug.formats._settings_file import load_table, write_toml
from faket_aug.microscope.file import read_microscope
from faket_aug.microscope.flavours import FLAVOURS
from faket_aug.picking.logs import LOGS
from faket_aug.picking.picker import weights_of
from faket_aug.picking.precision import PRECISIONS, chosen_precision
from faket_aug.simulation.plain_settings import MIXTURE, mixture_setting, variation_setting
from faket_aug.simulation.simulator import RENAMED
from faket_aug.simulation.variation import STANDARD
from faket_aug.training.settings import TARGETS, PickerTraining

SETTINGS_FILE = "settings.toml"
TRAINING, FILES, VALIDATION = "Training", "The run", "Validation and real tomograms"
#: Of generated specimens, where nothing else says how many particles they hold.
OCCUPANCY = 0.08
#: (z, y, x), voxels of generated specimens: small, so that two cores simulate many.
SHAPE = (128, 192, 192)
VOXEL_SIZE: float = SIMULATION["voxel_size"].default
_Path = Annotated[str, IsPath()]
#: Of `simulate`, and of no use here: what is written. `precision` is the training's, `noise` is called after its file.
WITHOUT = (*(n for n, one in SIMULATION.items() if one.group == WRITTEN and n != "seed"), "precision", "noise")
#: Of a run that another one begins with: these are the new one's own.
_NOT_TAKEN = (
    "steps",
    "learning_rate",
    "time_limit",
    "patience",
    "resume_from",
    "real_tomograms",
    "real_picks",
    "watch",
)
_IN_VALIDATION = ("validate_every", "validation_tomograms", "patience", "real_share")


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Files of a training, and what is learned of them.

    Parameters
    ----------
    classes
        Names of the templates that are learned, as `4v4r,1bxn`; the others are simulated as look-alikes, and are
        background. By default all of `templates`.
    real_tomograms
        Real tomograms whose particles are known; each has its picks.
    real_picks
        Picks of the real tomograms, in the same order: STAR, XML, CSV, SHREC's text.
    watch
        A real tomogram, without labels, that the picture shows, as `faket-aug reconstruct` writes it.
    resume_from
        Another run's folder, whose weights the training begins with (fine-tuning); its settings are taken, too.
    """

    classes: Sequence[str] = ()
    real_tomograms: Sequence[_Path] = ()
    real_picks: Sequence[_Path] = ()
    watch: _Path | None = None
    resume_from: _Path | None = None


def _settings() -> dict[str, Setting]:
    """Put together all that a user may say, each from the library's own parameter."""
    listed = {"precision": PRECISIONS, "targets": TARGETS, "flavours": FLAVOURS, "log": LOGS}
    own = settings_of(PickerTraining, choices=listed)
    own = {name: replace(one, group=VALIDATION if name in _IN_VALIDATION else TRAINING) for name, one in own.items()}
    files = settings_of(_Files, group=VALIDATION)
    files |= {name: replace(files[name], group=TRAINING) for name in ("classes", "resume_from")}
    microscope = replace(
        SIMULATION["noise"],
        name="microscope",
        called="",
        help="The file of a microscope that `faket-aug fit` wrote.",
        group=FILES,
    )
    simulation = {name: one for name, one in SIMULATION.items() if name not in WITHOUT}
    simulation["variation"] = replace(variation_setting(), default=STANDARD, group=simulation["variation"].group)
    common = of_simulator(simulation) | {"microscope": microscope}
    simulation[MIXTURE] = replace(mixture_setting(common), group=simulation[MIXTURE].group)
    simulation["occupancy"] = replace(
        simulation["occupancy"], help=f"{simulation['occupancy'].help} By default {OCCUPANCY:g}, without counts."
    )
    simulation["shape"] = replace(simulation["shape"], default=SHAPE)
    simulation["voxel_size"] = replace(
        simulation["voxel_size"],
        help=f"{simulation['voxel_size'].help} By default the microscope's pixel size, or {VOXEL_SIZE:g}.",
        default=None,
    )
    for name in ("templates", "distractors", "specimens"):
        simulation[name] = replace(simulation[name], group=FILES)
    first = {"microscope": microscope, **{name: simulation.pop(name) for name in ("templates", "distractors")}}
    first |= {"specimens": simulation.pop("specimens"), "classes": replace(files.pop("classes"), group=FILES)}
    return first | own | files | simulation


SETTINGS: dict[str, Setting] = _settings()
_OWN = tuple(one.name for one in fields(PickerTraining))


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    """What `faket-aug train` is told.

    Parameters
    ----------
    output
        Folder of the run.
    options
        What is simulated.
    settings
        How it is trained.
    files
        `classes`, `real_tomograms`, `real_picks`, `watch` and `resume_from`, as far as they are given.
    given
        All that was said, by name, for `settings.toml`.
    """

    output: Path
    options: Options
    settings: PickerTraining
    files: Mapping[str, Any]
    given: Mapping[str, Any]


def read_work(output: Path, config: Path | None, given: Mapping[str, Any]) -> TrainingWork:
    """Put the settings together: those of the run that is begun with, of a file, and of the command line.

    Parameters
    ----------
    output
        Folder of the run.
    config
        A TOML or JSON file, or the `settings.toml` of a run. Paths in it count from its folder.
    given
        By name, from the command line.

    Raises
    ------
    FileNotFoundError, FileFormatError, ValueError
        If there is no such file, or a setting is unknown or does not fit.
    """
    told = {name: from_text(SETTINGS[name], value) for name, value in given.items()}
    values = {} if config is None else _from_file(config)
    start = told.get("resume_from", values.get("resume_from"))
    if start is not None:
        values = _of_run(Path(start)) | values
    values |= told
    own = {name: values[name] for name in _OWN if name in values}
    files = {one.name: values[one.name] for one in fields(_Files) if values.get(one.name) not in (None, ())}
    simulated = {name: one for name, one in values.items() if name in SIMULATION and name not in _OWN}
    if values.get("microscope") is not None:
        simulated["noise"] = values["microscope"]
    if simulated.get(MIXTURE):
        simulated[MIXTURE] = tuple(map(with_setting_names, simulated[MIXTURE]))
    if not simulated.get("templates") and not simulated.get("specimens"):
        raise ValueError("expected particles to learn, got none; set --templates, or --specimens of files")
    try:
        settings = PickerTraining(**own)
        options = Options(_with_defaults(simulated, settings))
        return TrainingWork(output=output, options=options, settings=settings, files=files, given=values)
    except FileFormatError:
        raise
    except ValueError as error:
        where = "" if config is None else f"{config}{', with the command line' if given else ''}: "
        raise ValueError(f"{where}{error}") from error


def _from_file(path: Path) -> dict[str, Any]:
    content = load_table(path, "a TOML or JSON file of settings", usual="toml")
    try:
        return read_table(SETTINGS, flat(content), "", lambda entry: str(path.parent / entry), renamed=RENAMED)
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _of_run(run: Path) -> dict[str, Any]:
    """Read the settings of a run that another one begins with, but for those that are the new one's own."""
    return {name: one for name, one in told_before(weights_of(run).parent).items() if name not in _NOT_TAKEN}


def told_before(folder: Path) -> dict[str, Any]:
    """Read all that was said when the run of a folder was begun, or gone on with; nothing where there is none."""
    return _from_file(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).is_file() else {}


def _with_defaults(simulated: Mapping[str, Any], settings: PickerTraining) -> dict[str, Any]:
    """Give what is simulated the defaults of a training."""
    found: dict[str, Any] = {"variation": STANDARD} | dict(simulated)
    device = str(found.get("device", SIMULATION["device"].default))
    precision = chosen_precision(settings.precision, device)
    # Of the encoder: on a GPU float32, as published.
    found["precision"] = precision if torch.device(device).type == "cpu" else "float32"
    if found.get("templates"):
        found = {"shape": SHAPE} | found
        counted = [name for name in ("counts", "concentrations", "occupancy") if found.get(name) is not None]
        if not counted:
            found["occupancy"] = OCCUPANCY
        files = [found.get("noise"), *(own.get("noise") for own in found.get(MIXTURE, ()))]
        microscope = next((file for file in files if file is not None), None)
        if "voxel_size" not in found and microscope is not None:
            response = read_microscope(microscope).noise.response
            if response is not None and response.pixel_size > 0:
                found["voxel_size"] = float(response.pixel_size)
    return found


def write_settings(work: TrainingWork) -> None:
    """Write all that was said into the run's folder: `--config` reads it."""
    content = {}
    for name, setting in SETTINGS.items():
        value = work.given.get(name)
        if value not in (None, ()):
            content[name] = written(setting, value)
        elif name in work.given and value is None and setting.default is not None:
            # Nothing was asked for in place of something.
            content[name] = NONE
    write_toml(work.output / SETTINGS_FILE, content, head="faket-aug train --config settings.toml --output run")
