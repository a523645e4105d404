"""Small files of every kind that the commands take, so that the path from tilts to picks runs without any data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._random import numpy_generator
from faket_aug.demo.microscope import Microscope
from faket_aug.formats._atomic import make_writable_folder, write_text
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.shrec import write_class_conversion_table, write_particle_locations
from faket_aug.formats.star import write_particles_star
from faket_aug.generation.recipe import make_generator
from faket_aug.microscope.intensity import QUANTUM_EFFICIENCY, TRANSMISSION
from faket_aug.simulation.fit_microscope import fit_microscope
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.procedural import TEMPLATES
from faket_aug.tilts.series import TiltSeries

#: Files in the folder, as the examples of the commands' help name them.
SERIES, MICROSCOPE_FILE, PARTICLES, TRUTH, COMPARISON = (
    *("series_1.mrc", "microscope.json", "particles"),
    *("truth.star", "compare.toml"),
)
#: Specimens whose contents are known, with their measured tilts.
MODELS = ("model_0", "model_1", "model_2")
VOXEL_SIZE = 10.0
#: `(z, y, x)`, voxels of the series' specimen, and of the smaller specimens.
SHAPE, MODEL_SHAPE = (48, 128, 128), (32, 64, 64)
#: Pixels by which a tilt is off at most, along y and x.
MARGIN = 4
#: Particles of the series' specimen. The first is what is looked for.
COUNTS = {"cage": 16, "barrel": 12, "tripod": 12, "dimer": 24}
MODEL_COUNTS = {"cage": 1, "barrel": 2, "tripod": 2, "dimer": 3}
#: An epoch that no training comes to.
_EPOCH = 2**31 - 2
_ANGLES: FloatArray = np.arange(-60.0, 61.0, 4.0)
_DEFOCUS_UM = 3.0
#: e⁻/Å², of the whole series.
_EXPOSURE = 240.0
#: Its camera misses as many electrons, and its ice takes as many, as a fit assumes; the ice has little grain, and the
#: camera blurs little: then the scale of the contrast follows from noise and exposure.
_MICROSCOPE = Microscope(
    tilt_angles=tuple(_ANGLES),
    defocus_um=(_DEFOCUS_UM, _DEFOCUS_UM),
    exposure=_EXPOSURE * QUANTUM_EFFICIENCY,
    mean_free_path=-SHAPE[0] * VOXEL_SIZE / math.log(TRANSMISSION),
    ice_deviation=0.005,
    mtf_width=2.0,
)
_COMPARISON = """\
# Two kinds of tomograms to train on, in a minute; scores that mean something take hundreds of steps.
# `faket-aug compare --settings` says what else may stand here.
train = ["model_0"]
validation = "model_1"
test = ["model_2"]
weights = "random"
style_layers = [1, 6]
steps = 20
batch_size = 2
patch_size = 16
shift = 4
patches_per_tomogram = 20
validate_every = 10
validation_patches = 4
widths = [4, 8, 8]
tile_size = 32
overlap = 8
learning_rate = 1e-3
cross_entropy = 1.0

[arms.BENCHMARK]
source = "measured"

[arms.NOISY]
modality = "noisy"
"""


def keep_files(folder: Path, *, seed: int, progress: Callable[[int, int], None] | None = None) -> None:
    """Write a tilt-series with the files beside it, templates, a fitted microscope, and specimens that are known.

    Parameters
    ----------
    folder
        Where they are written; made where it is missing.
    seed
        Of all chance.
    progress
        Is told how many steps of how many are done.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    tell = progress or (lambda done, total: None)
    total = 3 + len(MODELS)
    make_writable_folder(folder)
    write_templates(folder / PARTICLES)
    tell(1, total)
    series = _write_series(folder, seed)
    tell(2, total)
    for number, name in enumerate(MODELS, start=1):
        _write_model(folder, name, seed, number)
        tell(2 + number, total)
    write_text(folder / COMPARISON, _COMPARISON)
    known = [_specimen(folder, SHAPE, COUNTS, seed, len(MODELS) + 1)]
    fit_microscope([series], known, seed=seed).save(folder / MICROSCOPE_FILE)
    tell(total, total)


def write_templates(folder: Path) -> None:
    """Write the maps of the particles, MRC, in volts above ice."""
    folder.mkdir(exist_ok=True)
    for name in COUNTS:
        template = TEMPLATES[name]
        side = 2 * int(np.ceil((template.radius + 10.0) / VOXEL_SIZE)) + 1
        zyx = np.stack(np.meshgrid(*3 * (np.arange(side) - side // 2,), indexing="ij"), axis=-1)
        density = template.density(zyx[..., ::-1].astype(np.float64) * VOXEL_SIZE)
        write_mrc(folder / f"{name}.mrc", torch.from_numpy(density.astype(np.float32)), voxel_size=VOXEL_SIZE)


def _write_series(folder: Path, seed: int) -> TiltSeries:
    """Write a tilt-series whose tilts are off, with IMOD's files that say by how much, and where its particles are."""
    stem = folder / Path(SERIES).stem
    depth, height, width = SHAPE
    wide = (depth, height + 2 * MARGIN, width + 2 * MARGIN)
    specimen = _specimen(folder, wide, COUNTS, seed, 0)
    recorded = _MICROSCOPE.record(specimen, seed=seed, index=0)
    generator = numpy_generator(seed, "demo", epoch=4)
    off = generator.integers(-MARGIN, MARGIN + 1, size=(len(_ANGLES), 2))
    tilts = torch.stack([_window(tilt, shift) for tilt, shift in zip(recorded.tilts, off, strict=True)])
    write_mrc(folder / SERIES, tilts, voxel_size=VOXEL_SIZE)
    write_tlt(stem.with_suffix(".tlt"), _ANGLES)
    # What lies lower by `off` is moved up by it.
    rows = [f"{1:12.7f}{0:12.7f}{0:12.7f}{1:12.7f}{dx:12.3f}{dy:12.3f}" for dy, dx in off]
    write_text(stem.with_suffix(".xf"), "\n".join(rows) + "\n")
    # As a program that fits each tilt finds it.
    defocus = np.round(1000 * (_DEFOCUS_UM + generator.normal(scale=0.02, size=len(_ANGLES)))).astype(int)
    pairs = zip(_ANGLES, defocus, strict=True)
    views = [f"{view} {view} {a:.2f} {a:.2f} {nm}" for view, (a, nm) in enumerate(pairs, start=1)]
    write_text(stem.with_suffix(".defocus"), "\n".join([f"{views[0]} 2", *views[1:]]) + "\n")
    dose = _EXPOSURE / len(_ANGLES)
    entries = [
        f"[ZValue = {z}]\nTiltAngle = {angle:.2f}\nExposureDose = {dose:.4f}\n" for z, angle in enumerate(_ANGLES)
    ]
    write_text(folder / f"{SERIES}.mdoc", "\n".join([f"Voltage = {_MICROSCOPE.voltage_kv:g}\n", *entries]))
    # Centred coordinates hold for a tomogram of any depth.
    particles = specimen.listed()
    places = particles.positions - np.array([0, MARGIN, MARGIN])
    within = np.flatnonzero(((places > -0.5) & (places < np.array(SHAPE) - 0.5)).all(axis=1))
    inner = ParticleList(tuple(particles.names[row] for row in within), places[within], particles.orientations[within])
    write_particles_star(
        folder / TRUTH,
        {stem.name: inner},
        voxel_size=VOXEL_SIZE,
        class_numbers={name: number for number, name in enumerate(COUNTS, start=1)},
        shape=SHAPE,
    )
    return TiltSeries.read(folder / SERIES)


def _window(tilt: torch.Tensor, off: IntArray) -> torch.Tensor:
    """Cut a tilt `(y, x)` out of a larger one, so that all in it lies lower by `off` (y, x)."""
    top, left = (MARGIN + int(one) for one in off)
    height, width = (n - 2 * MARGIN for n in tilt.shape)
    return tilt[top : top + height, left : left + width]


def _write_model(folder: Path, name: str, seed: int, number: int) -> None:
    """Write a specimen in SHREC's layout, with measured tilts."""
    specimen = _specimen(folder, MODEL_SHAPE, MODEL_COUNTS, seed, number)
    series = _MICROSCOPE.record(specimen, seed=seed, index=number)
    model = folder / name
    model.mkdir(exist_ok=True)
    write_mrc(model / "grandmodel.mrc", specimen.density, voxel_size=VOXEL_SIZE)
    write_mrc(model / "class_mask.mrc", specimen.labels.to(torch.int16), voxel_size=VOXEL_SIZE)
    assert specimen.instances is not None, "generated specimens have them"
    write_mrc(model / "occupancy_mask.mrc", specimen.instances.to(torch.int16), voxel_size=VOXEL_SIZE)
    write_particle_locations(model / "particle_locations.txt", specimen.listed())
    names = {number: name for number, name in specimen.class_names.items() if number}
    write_class_conversion_table(model / "class_conversion_table.txt", names)
    write_mrc(model / "projections.mrc", series.tilts, voxel_size=VOXEL_SIZE)
    # SHREC's angles have the other sign; the third column holds them.
    rows = [f"0.0 0.0 {-angle:.1f}" for angle in _ANGLES]
    write_text(model / "alignment_simulated.txt", "# shift_x shift_y tilt\n" * 6 + "\n".join(rows) + "\n")


def _specimen(
    folder: Path, shape: tuple[int, int, int], counts: Mapping[str, int], seed: int, number: int
) -> GrandModel:
    """Make a specimen of the templates, as dense as the commands read them."""
    recipe = {"templates": (str(folder / PARTICLES),), "counts": dict(counts), "shape": shape}
    return make_generator(recipe, voxel_size=VOXEL_SIZE).generate(seed=seed, epoch=_EPOCH, tomogram=number)
