"""What `faket-aug show` draws beside what a path holds: picks over a tomogram, and a measured tomogram beside it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

from faket_aug._checks import FileFormatError, check_positive
from faket_aug.cli._look import Look
from faket_aug.cli._pick_files import draw_picks
from faket_aug.cli._reconstruction import RECORD
from faket_aug.figures import LOW_PASS, richest_section, smooth_section, tilt_panel
from faket_aug.formats._json import read_json
from faket_aug.formats.found_particles import find_particles
from faket_aug.picking.clustering import Picks
from faket_aug.simulation.saving import RECORD_FILE, read_record_file


@dataclass(frozen=True, kw_only=True)
class _Tomogram:
    """A tomogram beside another."""

    name: str
    volume: Tensor
    voxel_size: float
    place: int
    filter: str | None


def draw_list(look: Look, path: Path, *, radius: float) -> Figure:
    """Draw a tomogram with circles at the particles of a list.

    Parameters
    ----------
    look
        The tomogram.
    path
        A list of particles in any format that is read.
    radius
        Å, of the circles.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError
        If there is no tomogram, or the list is wrong or of several tomograms.
    """
    check_positive("--radius", radius)
    volume, size = _volume_of(look, "--picks")
    shape = (int(volume.shape[0]), int(volume.shape[1]), int(volume.shape[2]))
    try:
        found = find_particles(path, voxel_size=size, shape=shape)
    except FileFormatError:
        # Of several tomograms it is the one of this name.
        found = find_particles(path, voxel_size=size, shape=shape, tomogram=look.name)
    particles = found.particles
    names = dict(enumerate(sorted(set(particles.names)), start=1))
    numbers = {name: number for number, name in names.items()}
    classes = np.array([numbers[name] for name in particles.names], dtype=np.int64)
    picks = Picks(classes=classes, positions=particles.positions, sizes=np.ones(len(classes), dtype=np.int64))
    outside = int(((particles.positions < -0.5) | (particles.positions > np.array(shape) - 0.5)).any(axis=1).sum())
    if outside:
        warnings.warn(
            f"{path}: {outside} of {len(particles)} particles lie outside of {look.name}; is the list of another "
            "tomogram, or in voxels of another size?",
            stacklevel=2,
        )
    figure = draw_picks(
        volume,
        picks,
        voxel_size=size,
        radii=dict.fromkeys(names, radius),
        class_names=names,
        title=f"{look.name}: {len(picks)} particles of {path.name}; circles: spheres of {radius:g} Å radius, cut here",
    )
    return figure


def draw_beside(look: Look, other: Look) -> Figure:
    """Draw a section of a simulated tomogram and one of a measured one, at one scale and low-passed alike.

    Parameters
    ----------
    look, other
        The simulated one, and the measured one.

    Raises
    ------
    ValueError
        If one of them is no tomogram.

    Warns
    -----
    UserWarning
        If they were reconstructed with different filters, as far as is known.
    """
    pair = [_tomogram(one, option) for one, option in ((look, "PATH"), (other, "--beside"))]
    filters = [one.filter for one in pair]
    if None not in filters and filters[0] != filters[1]:
        warnings.warn(
            f"{pair[0].name} was reconstructed with the filter {filters[0]}, {pair[1].name} with {filters[1]}: they "
            "look different for this reason alone; reconstruct by `faket-aug reconstruct --like`",
            stacklevel=2,
        )
    # Both show as much of the specimen, so that a nanometre is as long in both.
    height, width, depth = (min(one.volume.shape[axis] * one.voxel_size for one in pair) for axis in (1, 2, 0))
    figure = Figure(figsize=(13.0, 13.0 * (height + depth) / (2 * width) + 0.8), layout="constrained")
    figure.suptitle(f"low-passed to {LOW_PASS:g} Å, at one scale; each with its own greys", fontsize=10)
    grid: npt.NDArray[Any] = figure.subplots(2, 2, squeeze=False, gridspec_kw={"height_ratios": [height, depth]})
    for column, one in enumerate(pair):
        length = LOW_PASS / one.voxel_size
        sides = [round(extent / one.voxel_size) for extent in (depth, height, width)]
        made = "" if one.filter is None else f", filter {one.filter}"
        title = f"{one.name}, z = {one.place}, voxels of {one.voxel_size:g} Å{made}"
        section = _cropped(smooth_section(one.volume, 0, one.place, length), sides[1], sides[2])
        tilt_panel(grid[0, column], section, title=title, pixel_size=one.voxel_size)
        middle = one.volume.shape[1] // 2
        across = _cropped(smooth_section(one.volume, 1, middle, length), sides[0], sides[2])
        tilt_panel(grid[1, column], across, title=f"y = {middle}")
    return figure


def _tomogram(look: Look, option: str) -> _Tomogram:
    volume, size = _volume_of(look, option)
    labelled = look.labels is not None and bool(look.labels.any())
    place = richest_section(look.labels) if look.labels is not None and labelled else len(volume) // 2
    return _Tomogram(name=look.name, volume=volume.float(), voxel_size=size, place=place, filter=_filter(look))


def _volume_of(look: Look, option: str) -> tuple[Tensor, float]:
    if look.volume is None:
        raise ValueError(f"expected a tomogram for {option}, got the tilt-series {look.name}; reconstruct it first")
    if not look.voxel_size > 0:
        raise FileFormatError(f"{look.name}: expected a voxel size in the header, got 0; write the file with one")
    return look.volume, look.voxel_size


def _filter(look: Look) -> str | None:
    """The filter that a tomogram was reconstructed with, where its record says it."""
    path = Path(look.files[0])
    try:
        if path.with_suffix(RECORD).is_file():
            made: Any = read_json(path.with_suffix(RECORD), what="a record").get("reconstruction")
        else:
            made = read_record_file(path.with_name(RECORD_FILE))["record"]["settings"]
    except (OSError, ValueError, LookupError, TypeError):
        # Other programs leave no record, or one of their own.
        return None
    return str(made["filter"]) if isinstance(made, dict) and "filter" in made else None


def _cropped(image: Tensor, height: int, width: int) -> Tensor:
    top, left = max(0, (image.shape[0] - height) // 2), max(0, (image.shape[1] - width) // 2)
    return image[top : top + height, left : left + width]
