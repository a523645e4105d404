"""What `faket-aug train` does: it reads and checks its files, and makes the training that they ask for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faket_aug._checks import FileFormatError
from faket_aug._runtime.distributed import known_ranks
from faket_aug._runtime.threads import usable_device
from faket_aug.cli._simulation import STYLE_CACHE, make_mixture
from faket_aug.cli._source import make_source
from faket_aug.cli._train_options import SETTINGS_FILE, WITHOUT, TrainingWork, told_before
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.formats._atomic import make_writable_folder
from faket_aug.formats.mrc import read_mrc
from faket_aug.microscope.file import read_microscope
from faket_aug.picking.checkpoints import CHECKPOINT, read_checkpoint
from faket_aug.picking.flavours import read_flavours
from faket_aug.picking.picker import weights_of
from faket_aug.simulation.saving import check_names
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.simulation.varied import Simulator
from faket_aug.training.classes import TaughtClasses, teach
from faket_aug.training.data import PickerData
from faket_aug.training.picture import Shown
from faket_aug.training.real import read_real
from faket_aug.training.settings import PickerTraining
from faket_aug.training.train import PickerRun

#: The digest of the microscope's file, among what the weights depend on.
_MICROSCOPE = "microscope"


def make_run(work: TrainingWork) -> PickerRun:
    """Read and check all files, and make the training that they ask for.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError, OSError
        If files are missing or wrong, or settings do not go together; before anything is computed.
    """
    options, files = work.options, work.files
    device = str(options.value("device"))
    usable_device(device)
    try:
        make_writable_folder(work.output)
    except OSError as error:
        raise OSError(
            f"expected an output folder that can be written, got {work.output} ({error.strerror or error}); set "
            "--output to another"
        ) from error
    _check_output(work.output)
    start = files.get("resume_from")
    if start is not None and weights_of(start).parent.resolve() == work.output.resolve():
        raise ValueError(f"expected --output to be another folder than --resume-from, got {work.output} for both")
    source, mixture = make_source(options), make_mixture(options)
    for own in options.simulators:
        step = None if own["noise"] is None or own["style"] else read_microscope(own["noise"]).style.get("step_size")
        if step:
            warnings.warn(
                f"{own['noise']}: the step of the style transfer, {step:g}, is left out without --style; give the "
                "tilt-series to train on restyled tilts",
                stacklevel=2,
            )
    specimens, classes = teach(source.specimens, files.get("classes", ()))
    check_names(dict(classes.names), ("shrec", "star5"), tomogram="tomogram_0000")
    flavours = work.settings.flavours
    real, watched = _real(files, classes, flavours), _watched(files, flavours)
    simulator = mixture.simulator(work.output / STYLE_CACHE)
    _tell_of_epochs(simulator, work.settings)
    plain = options.without_paths() | source.settings | mixture.settings()
    depends_on = {name: one for name, one in plain.items() if name not in (*WITHOUT, "class_table")}
    if options["noise"] is not None and not _microscope_was_not_noted(work.output):
        # Not where the microscope's file lies, but what it holds.
        depends_on[_MICROSCOPE] = plain.get("noise")
    data = PickerData(
        specimens=specimens,
        classes=classes,
        simulator=simulator,
        real=real,
        watched=watched,
    )
    return PickerRun(
        data,
        work.output,
        settings=work.settings,
        seed=options.seed,
        depends_on=depends_on,
        start=start,
        device=device,
    )


def _tell_of_epochs(simulator: Simulator, settings: PickerTraining) -> None:
    """Warn of a schedule with epochs that the training does not reach."""
    _, ranks = known_ranks() or (0, 1)
    each = settings.tomograms_per_epoch * settings.patches_per_tomogram
    reached = (settings.steps * settings.batch_size * ranks - 1) // each
    last = 0 if isinstance(simulator, FakETSimulator) else simulator.last_epoch
    if last > reached:
        warnings.warn(
            f"the schedule of the variation or of the weights goes to epoch {last}, but {settings.steps} steps end in "
            f"epoch {reached} (an epoch has {each / settings.batch_size / ranks:g} steps); name earlier epochs, set "
            "--tomograms-per-epoch or --patches-per-tomogram lower, or --steps higher",
            stacklevel=3,
        )


def _microscope_was_not_noted(folder: Path) -> bool:
    """Tell, with a warning, whether an earlier version began the run: it noted no digest of the microscope's file."""
    try:
        told = told_before(folder) if (folder / CHECKPOINT).is_file() else {}
    except FileFormatError:
        # Somebody has changed the file; the checkpoint is what counts.
        told = {}
    if told.get("microscope") is None:
        return False
    if _MICROSCOPE in read_checkpoint(folder)["settings"]:
        return False
    warnings.warn(
        f"{folder}: an earlier version began this training and did not note what the microscope's file held; it goes "
        "on with the present file; give the one that it was begun with",
        stacklevel=3,
    )
    return True


def _check_output(folder: Path) -> None:
    """Refuse a folder with other things in it; what an earlier try left is none."""
    known = {CHECKPOINT, SETTINGS_FILE}
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    if names and not names & known:
        raise FileExistsError(
            f"expected an empty folder, or one with {SETTINGS_FILE}, got {folder} with {', '.join(sorted(names)[:3])}; "
            "set --output to another"
        )


def _real(files: Mapping[str, Any], classes: TaughtClasses, flavours: Sequence[str]) -> list[LabelledTomogram]:
    tomograms, picks = files.get("real_tomograms", ()), files.get("real_picks", ())
    if len(tomograms) != len(picks):
        raise ValueError(
            f"expected picks of each real tomogram, got {len(tomograms)} --real-tomograms and {len(picks)} "
            "--real-picks; give one --real-picks after each"
        )
    return [
        read_real(tomogram, listed, classes, flavours=flavours)
        for tomogram, listed in zip(tomograms, picks, strict=True)
    ]


def _watched(files: Mapping[str, Any], flavours: Sequence[str]) -> Shown | None:
    path = files.get("watch")
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a tomogram for --watch, found none at {path}")
    tomogram, size = read_mrc(path)
    if not size > 0:
        raise FileFormatError(f"{path}: expected a voxel size in the header, got 0; write it with one")
    tomogram = tomogram.float()
    beside = read_flavours(Path(path), tomogram, flavours)
    return Shown.of(tomogram, name=Path(path).name, voxel_size=size, flavours=beside)
