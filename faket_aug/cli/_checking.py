"""What `faket-aug check` does: it calls `check_microscope`, and draws and writes what came out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faket_aug.cli._options import Options
from faket_aug.cli._series_checks import check_series, read_series
from faket_aug.cli._simulation import STYLE_CACHE, make_parts
from faket_aug.cli._source import make_source
from faket_aug.comparison.check import calibrated, check_microscope
from faket_aug.comparison.check_report import as_table, draw_check, report
from faket_aug.comparison.check_settings import CheckSettings
from faket_aug.figures import save_figure
from faket_aug.formats._atomic import make_writable_folder, write_text
from faket_aug.generation.templates import read_templates
from faket_aug.microscope.file import read_microscope, write_microscope
from faket_aug.simulation.fit_microscope import BUILT_IN_SHAPE, as_aligned
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.procedural import procedural_specimen
from faket_aug.tilts.optics import common_pixel_size

NUMBERS, PICTURE = "check.json", "check.png"


@dataclass(frozen=True, kw_only=True)
class CheckWork:
    """What is to be checked.

    Parameters
    ----------
    microscope
        The file of the microscope.
    output
        Folder to write to.
    options
        The tilt-series (`style`), the specimens, and settings of the simulator.
    built_in
        Whether the specimens are the package's own instead.
    particle
        A template.
    calibrate
        The file of a microscope to be written, with the contrast of the particle.
    settings
        How it is done.
    aligned
        Whether the tilts are aligned already.
    tilt_axis
        Degrees, by which tilts without an alignment are aligned.
    """

    microscope: Path
    output: Path
    options: Options
    built_in: bool
    settings: CheckSettings
    particle: Path | None = None
    calibrate: Path | None = None
    aligned: bool = False
    tilt_axis: float | None = None


def run(work: CheckWork, progress: Callable[[int, int], None]) -> list[str]:
    """Check, and write numbers and picture.

    Parameters
    ----------
    work
        What is to be done.
    progress
        Is told how much of it is done.

    Returns
    -------
    Lines that say what came out.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError
        If files are missing or wrong, or do not go together.
    """
    options = work.options
    if not options["style"]:
        raise ValueError("expected a measured tilt-series to compare with, got none; set --style")
    if work.calibrate is not None and work.particle is None:
        raise ValueError("expected --particle with --calibrate, which takes its contrast, got none; set it")
    microscope = read_microscope(work.microscope)
    first = options["style"][0]
    check_series([first], aligned=work.aligned, tilt_axis=work.tilt_axis)
    series = as_aligned(read_series(first, aligned=work.aligned), work.tilt_axis)
    pixel_size = common_pixel_size([series])
    if not options["specimens"] and options["voxel_size"] is None:
        options = options.but(voxel_size=pixel_size)
    if not options["specimens"] and options["shape"] is None:
        options = options.but(shape=BUILT_IN_SHAPE)
    # Without an encoder there is no style transfer; the series is there to be compared.
    modality = options["modality"] or ("noisy" if options["weights"] is None else "faket")
    options = options.but(noise=str(work.microscope), modality=modality)
    specimens = _BuiltIn(options) if work.built_in else make_source(options).specimens
    particle = None
    if work.particle is not None:
        particle = read_templates([work.particle], voxel_size=options["voxel_size"] or pixel_size)[0]
    make_writable_folder(work.output)
    simulator = make_parts(options).plain(options, work.output / STYLE_CACHE)
    found = check_microscope(
        simulator,
        series,
        specimens,
        particle=particle,
        settings=work.settings,
        seed=options.seed,
        progress=progress,
    )
    write_text(work.output / NUMBERS, json.dumps(as_table(found), indent=1, allow_nan=False) + "\n")
    save_figure(draw_check(found), work.output / PICTURE)
    lines = [*report(found), f"written to {work.output / NUMBERS}; look at {work.output / PICTURE}"]
    if work.calibrate is not None:
        assert found.particle is not None, "a particle was given"
        make_writable_folder(work.calibrate.parent)
        write_microscope(work.calibrate, calibrated(microscope, found.particle.contrast))
        lines.append(f"A microscope with {found.particle.contrast.factor:.2f} times the contrast: {work.calibrate}")
    elif found.particle is not None:
        lines.append("This contrast is not applied; --calibrate FILE writes a microscope's file with it.")
    return lines


@dataclass(frozen=True)
class _BuiltIn:
    """The package's own specimens."""

    options: Options

    def generate(self, *, seed: int, epoch: int = 0, tomogram: int = 0) -> GrandModel:
        own = self.options
        return procedural_specimen(shape=own["shape"], voxel_size=own["voxel_size"], seed=seed, index=tomogram)
