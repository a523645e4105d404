"""What `faket-aug show` draws: the tilt-series, volume, labels and particles that a path holds."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from faket_aug._checks import check_same_shape
from faket_aug.figures import LOW_PASS, count_panel, label_overlay, richest_section, smooth_section, tilt_panel
from faket_aug.formats.mrc import read_mrc
from faket_aug.formats.particles import match_names
from faket_aug.formats.shrec import read_class_conversion_table, read_particle_locations
from faket_aug.simulation.saving import TOMOGRAM_FILE, UNFINISHED_FILE
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.tilts.discovery import SHREC_STACKS, STACK_SUFFIXES
from faket_aug.tilts.series import TiltSeries

#: Sections of a tomogram that are averaged where its voxel size, and so the length of its low-pass, is not known.
_SECTIONS = 3
#: Å. A volume that is no longer along any side is the map of a particle, not a tomogram.
_LARGEST_MAP = 1200.0
AXES = ("z", "y", "x")
#: Endings of files that are no tilt-series.
VOLUME_SUFFIXES = (".rec", ".map", ".ccp4")


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is known of a tomogram, a specimen or a tilt-series.

    Parameters
    ----------
    name
        Where it was read.
    series
        The tilt-series.
    volume, what
        `(z, y, x)`, and what it is: a tomogram, a specimen, a map.
    labels
        `(z, y, x)`, class numbers, of the volume's shape.
    class_names, counts
        Names of the class numbers; particles of each class, by number, where there is a list of them.
    voxel_size
        Å, of the volume; 0 where it is not known.
    files
        What was read, the volume or the tilts first.
    """

    name: str
    series: TiltSeries | None = None
    volume: Tensor | None = None
    what: str = "tomogram"
    labels: Tensor | None = None
    class_names: dict[int, str] = field(default_factory=dict)
    counts: dict[int, int] | None = None
    voxel_size: float = 0.0
    files: tuple[str, ...] = ()


def look_at(path: Path, *, index: int = 0) -> Look:
    """Read what a path holds.

    Parameters
    ----------
    path
        A folder in any of the formats read, a tilt-series, or a tomogram or map.
    index
        Which tomogram, counted from 0, where a folder holds several.

    Raises
    ------
    FileNotFoundError
        If the path holds nothing that can be drawn; the message says what was looked for.
    """
    if not path.exists():
        raise FileNotFoundError(f"expected a folder, a tilt-series or a tomogram to show, found none at {path}")
    if path.is_file():
        return _file(_chosen([path], index, path))
    own = path / TOMOGRAM_FILE
    there = [own] if own.is_file() else sorted(path.glob(f"*/{TOMOGRAM_FILE}"))
    found = [file for file in there if not (file.parent / UNFINISHED_FILE).exists()]
    if there and not found:
        raise FileNotFoundError(
            f"{path}: expected a finished tomogram, found {len(there)} unfinished; wait for the simulation that writes "
            "here, or run its command again if it was stopped"
        )
    if found:
        return _tomogram(_chosen(found, index, path).parent)
    return _specimen_or_series(path, index)


def _file(path: Path) -> Look:
    """Read a tilt-series; or a tomogram or map, where there are no tilt angles."""
    if path.suffix not in VOLUME_SUFFIXES:
        try:
            return _of_series(TiltSeries.read(path), path.name)
        except FileNotFoundError:
            if path.suffix != ".mrc":
                raise
    volume, voxel_size = read_mrc(path)
    small = 0 < max(volume.shape) * voxel_size <= _LARGEST_MAP
    what = "map" if small and path.suffix != ".rec" else "tomogram"
    return Look(name=path.name, volume=volume, what=what, voxel_size=voxel_size, files=(str(path),))


def _of_series(series: TiltSeries, name: str) -> Look:
    return Look(name=name, series=series, files=_files_of(series))


def _files_of(series: TiltSeries) -> tuple[str, ...]:
    return (series.name, *([] if series.metadata is None else [series.metadata.source]))


def _chosen(things: Any, index: int, path: Path) -> Any:
    if not 0 <= index < len(things):
        raise ValueError(f"{path}: expected --index from 0 to {len(things) - 1}, got {index}")
    return things[index]


def _tomogram(folder: Path) -> Look:
    """Read a folder that `SimulatedTomogram.save` wrote, or one of SHREC's with its reconstruction."""
    volume, voxel_size = read_mrc(folder / TOMOGRAM_FILE)
    labels = None
    if (folder / "class_mask.mrc").is_file():
        labels, _ = read_mrc(folder / "class_mask.mrc")
        check_same_shape(f"{folder}: labels", labels.shape, "tomogram", volume.shape)
    table = next((f / "class_conversion_table.txt" for f in (folder, folder.parent) if _has_table(f)), None)
    class_names = {} if table is None else read_class_conversion_table(table)
    series, listed = _series_in(folder), folder / "particle_locations.txt"
    found = [folder / TOMOGRAM_FILE, *([folder / "class_mask.mrc"] if labels is not None else [])]
    found += [file for file in (table, listed) if file is not None and file.is_file()]
    return Look(
        name=folder.name,
        series=series,
        volume=volume,
        labels=labels,
        class_names=class_names,
        counts=_counts(listed, class_names),
        voxel_size=voxel_size,
        files=(*map(str, found), *(() if series is None else _files_of(series))),
    )


def _counts(path: Path, class_names: dict[int, str]) -> dict[int, int] | None:
    """Count the particles of each class; names that the table lacks are added to it."""
    if not path.is_file():
        return None
    found = read_particle_locations(path).names
    for name in sorted(set(found) - set(match_names(found, class_names))):
        class_names[max([0, *class_names]) + 1] = name
    numbers = match_names(found, class_names)
    return dict(Counter(numbers[name] for name in found))


def _has_table(folder: Path) -> bool:
    return (folder / "class_conversion_table.txt").is_file()


def _series_in(folder: Path) -> TiltSeries | None:
    """Read the tilt-series of a folder, if there is one with its angles."""
    if not any((folder / name).is_file() for name in SHREC_STACKS):
        return None
    try:
        return TiltSeries.read(folder)
    except FileNotFoundError:
        return None


def _specimen_or_series(path: Path, index: int) -> Look:
    from faket_aug.specimens.readers import read_specimens

    try:
        specimens = read_specimens(path)
    except FileNotFoundError as no_specimen:
        if not any(file.suffix in STACK_SUFFIXES for file in path.iterdir()):
            raise
        try:
            return _of_series(TiltSeries.read(_chosen([path], index, path)), path.name)
        except FileNotFoundError as no_series:
            raise FileNotFoundError(f"{no_specimen}; nor was there a tilt-series: {no_series}") from None
    with warnings.catch_warnings():
        # Dark or bright, it is shown as it is.
        warnings.filterwarnings("ignore", message=".*expected particles that are denser")
        return _specimen(_chosen(specimens, index, path), path)


def _specimen(specimen: GrandModel, path: Path) -> Look:
    density = specimen.density
    if specimen.bin > 1:
        density = torch.nn.functional.avg_pool3d(density[None, None], specimen.bin)[0, 0]
    return Look(
        name=Path(specimen.name).name or path.name,
        series=_series_in(Path(specimen.name)) if Path(specimen.name).is_dir() else None,
        volume=density,
        what="specimen",
        labels=specimen.labels,
        class_names={int(number): name for number, name in specimen.class_names.items()},
        counts=dict(Counter(specimen.particles.classes.tolist())) if len(specimen.particles) else None,
        voxel_size=specimen.label_voxel_size,
        files=(specimen.name,),
    )


# Drawing -------------------------------------------------------------------------------------------------------------


def draw_look(look: Look) -> Figure:
    """Draw a tilt, three orthogonal sections, the labels over them, and how many particles each class has."""
    if look.volume is None:
        assert look.series is not None, "something was found"
        return _draw_series(look.series, look.name)
    beside = look.series is not None or look.labels is not None
    widths = [4.0] * beside + [6.0] * (1 + (look.labels is not None))
    figure = Figure(figsize=(sum(widths), 7.2), layout="constrained")
    figure.suptitle(f"{look.name}: {_describe(look)}", fontsize=11)
    parts: list[SubFigure] = list(figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0])
    if beside:
        _draw_beside(parts.pop(0), look)
    places = _places(look)
    for part, labels in zip(parts, (None, look.labels), strict=False):
        _draw_sections(part, look, places, labels)
    return figure


def _draw_series(series: TiltSeries, name: str) -> Figure:
    """Draw the outermost tilts and the one nearest to 0°."""
    figure = Figure(figsize=(13.5, 5.0), layout="constrained")
    size = " × ".join(str(n) for n in series.tilts.shape[:0:-1])
    figure.suptitle(f"{name}: tilt-series, {len(series.tilt_angles)} tilts of {size} pixels", fontsize=11)
    chosen = (0, _middle(series), len(series.tilt_angles) - 1)
    for axes, tilt in zip(figure.subplots(1, 3), chosen, strict=True):
        known = None if series.measured is None else series.measured[tilt]
        title = _degrees(series.tilt_angles[tilt])
        tilt_panel(axes, series.tilts[tilt], title=title, pixel_size=series.pixel_size, measured=known)
    return figure


def _degrees(angle: float) -> str:
    return f"{round(float(angle), 1) + 0.0:g}°"


def _middle(series: TiltSeries) -> int:
    return int(np.argmin(np.abs(series.tilt_angles)))


def _describe(look: Look) -> str:
    assert look.volume is not None
    size = " × ".join(str(n) for n in reversed(look.volume.shape))
    size += " voxels (x, y, z)" + (f" of {look.voxel_size:g} Å" if look.voxel_size > 0 else "")
    if look.what != "tomogram":
        return f"{look.what}, {size}"
    how = f"low-passed to {LOW_PASS:g} Å" if look.voxel_size > 0 else f"mean of {_SECTIONS} sections"
    return f"{look.what}, {size}, {how}"


def _draw_beside(figure: SubFigure, look: Look) -> None:
    rows = (look.series is not None) + (look.labels is not None)
    panels: list[Axes] = list(figure.subplots(rows, 1, squeeze=False)[:, 0])
    if look.series is not None:
        middle = _middle(look.series)
        title = f"tilt at {_degrees(look.series.tilt_angles[middle])}, one of {len(look.series.tilt_angles)}"
        tilt_panel(panels.pop(0), look.series.tilts[middle], title=title, pixel_size=look.series.pixel_size)
    if look.labels is not None:
        counts: dict[int, float] = dict(look.counts or {})
        title = f"particles, {sum(counts.values()):g} in all"
        if look.counts is None:
            counts, title = _shares(look.labels), "no list of particles; labelled voxels, %"
        there = {*counts, *torch.unique(look.labels).tolist()}
        names = {number: name for number, name in look.class_names.items() if number in there}
        count_panel(panels.pop(0), counts, class_names=names, title=title)


def _shares(labels: Tensor) -> dict[int, float]:
    """Return the share of each class in the volume, in %."""
    numbers, voxels = torch.unique(labels, return_counts=True)
    found = zip(numbers.tolist(), voxels.tolist(), strict=True)
    return {int(number): round(100 * count / labels.numel(), 2) for number, count in found if number > 0}


def _places(look: Look) -> tuple[int, int, int]:
    """Choose the sections: those with much to see of every class; the middle ones where there are no labels."""
    assert look.volume is not None
    if look.labels is None:
        z, y, x = (n // 2 for n in look.volume.shape)
    else:
        z, y, x = (richest_section(look.labels.movedim(axis, 0)) for axis in range(3))
    return z, y, x


def _draw_sections(figure: SubFigure, look: Look, places: tuple[int, int, int], labels: Tensor | None) -> None:
    """Draw the section (y, x) with (z, x) below it and (y, z) to its right, to one scale."""
    assert look.volume is not None
    depth, height, width = look.volume.shape
    ratios = {"width_ratios": [width, depth], "height_ratios": [height, depth]}
    grid: npt.NDArray[Any] = figure.subplots(2, 2, squeeze=False, gridspec_kw=ratios)
    grid[1, 1].set_axis_off()
    for axis, axes in enumerate((grid[0, 0], grid[1, 0], grid[0, 1])):
        title = f"{AXES[axis]} = {places[axis]}" + (", with labels" if labels is not None and axis == 0 else "")
        image = _image(look, axis, places[axis])
        tilt_panel(axes, image, title=title, pixel_size=look.voxel_size if axis == 0 else 0.0)
        if labels is not None:
            label_overlay(axes, _section(labels, axis, places[axis], 1))


def _image(look: Look, axis: int, place: int) -> Tensor:
    """Cut a section; of a tomogram a smoothed one, since single ones are little more than noise."""
    assert look.volume is not None
    if look.what == "tomogram" and look.voxel_size > 0:
        return smooth_section(look.volume, axis, place, LOW_PASS / look.voxel_size)
    return _section(look.volume, axis, place, _SECTIONS if look.what == "tomogram" else 1)


def _section(volume: Tensor, axis: int, place: int, slab: int) -> Tensor:
    """Cut a section and its neighbours, `slab` in all, out of a volume and average them."""
    first = max(place - slab // 2, 0)
    section = volume.movedim(axis, 0)[first : place + slab // 2 + 1].float().mean(dim=0)
    # Across x there is (z, y) left; y stays vertical, as in the section beside it.
    return section.T if axis == 2 else section
