"""Pictures of tilts, tomograms with labels, and training; none of them touches matplotlib's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from faket_aug._checks import check_ndim
from faket_aug.formats._atomic import atomic_path
from faket_aug.geometry import Angles, as_tilt_angles, nearest_tilts
from faket_aug.statistics import value_range
from faket_aug.tilts.series import TiltSeries

#: Every image is shown from black to white between its own values at these quantiles: one rule for all.
DISPLAY_QUANTILES = (0.02, 0.98)
#: Colours of the classes from 1 on, which the colour-blind can tell apart (Okabe and Ito, then Tol's muted ones).
LABEL_COLORS = (
    *("#56B4E9", "#F0E442", "#009E73", "#CC79A7", "#D55E00", "#E69F00", "#0072B2"),
    *("#882255", "#44AA99", "#999933", "#332288", "#DDCC77", "#AA4499", "#117733", "#88CCEE"),
)
_LINE_COLOR = "#0072B2"
LABEL_OPACITY = 0.65
_DPI = 150
#: Å, of sections that are shown: ribosomes stand out of the noise of a thick cell, and membranes are still seen.
LOW_PASS = 80.0
#: Standard deviation of the Gaussian that halves waves of length 1: sqrt(2 ln 2) / (2 π).
_HALVING = 0.1874


def tilt_panel(
    axes: Axes, image: Tensor, *, title: str, pixel_size: float = 0.0, measured: Tensor | None = None
) -> None:
    """Show a tilt, or a section, in grey with a scale bar.

    Parameters
    ----------
    axes
        Where.
    image
        `(y, x)`, any unit; shown between its own values at `DISPLAY_QUANTILES`.
    title
        Above the image.
    pixel_size
        Å; no scale bar for 0.
    measured
        `(y, x)`, bool: the pixels that count for the grey values; by default all.
    """
    known = None if measured is None else measured.cpu()
    low, high = value_range(image.detach().cpu().float(), DISPLAY_QUANTILES, known)
    axes.imshow(_array(image), cmap="gray", vmin=low, vmax=max(high, low + 1e-12), interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    if pixel_size > 0:
        _scale_bar(axes, image.shape[-1], pixel_size)


def slice_with_labels(
    axes: Axes,
    image: Tensor,
    labels: Tensor,
    *,
    class_names: Mapping[int, str],
    title: str,
    pixel_size: float = 0.0,
) -> None:
    """Show a section of a tomogram with its labels over it, and a legend below.

    Parameters
    ----------
    axes
        Where.
    image, labels
        `(y, x)`; label 0 is transparent.
    class_names
        Names of the class numbers; those above 0 are listed.
    title, pixel_size
        As for `tilt_panel`.
    """
    tilt_panel(axes, image, title=title, pixel_size=pixel_size)
    label_overlay(axes, labels)
    handles = [Patch(color=label_color(n), label=name) for n, name in sorted(class_names.items()) if n > 0]
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=min(len(handles), 5),
        fontsize=8,
        frameon=False,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=0.9,
    )


def label_overlay(axes: Axes, labels: Tensor) -> None:
    """Colour the labelled pixels of an image that is shown.

    Parameters
    ----------
    axes
        Where the image is.
    labels
        `(y, x)`, class numbers; 0 is transparent.
    """
    numbers = np.asarray(_array(labels), dtype=np.int64)
    overlay = np.zeros((*numbers.shape, 4))
    for number in np.unique(numbers[numbers > 0]):
        overlay[numbers == number] = (*to_rgb(label_color(int(number))), LABEL_OPACITY)
    axes.imshow(overlay, interpolation="nearest")


def count_panel(axes: Axes, counts: Mapping[int, float], *, class_names: Mapping[int, str], title: str) -> None:
    """Draw a bar for each class in the colour of its labels, so that it serves as their legend.

    Parameters
    ----------
    axes
        Where.
    counts
        By class number; a class without one gets a bar of no length and a dash.
    class_names
        Names of the class numbers; those above 0 are listed.
    title
        Above the bars.
    """
    names = {number: class_names.get(number, f"class {number}") for number in sorted({*class_names, *counts})}
    names.pop(0, None)
    rows = np.arange(len(names))
    lengths = [counts.get(number, 0) for number in names]
    bars = axes.barh(rows, lengths, color=[label_color(number) for number in names])
    axes.bar_label(bars, [f"{counts[n]:g}" if n in counts else "–" for n in names], fontsize=8, padding=2)
    axes.set_yticks(rows, [_short(name) for name in names.values()], fontsize=8)
    for tick, number in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_bbox({"facecolor": label_color(number), "alpha": LABEL_OPACITY, "linewidth": 0, "pad": 1.5})
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.set_xlim(0, 1.15 * max([*lengths, 1e-9]))
    axes.set_xticks([])
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def loss_panel(axes: Axes, losses: Sequence[float], *, title: str = "training loss") -> None:
    """Draw a loss over its steps, and its running mean.

    Parameters
    ----------
    axes
        Where.
    losses
        One a step.
    title
        Above the curve.
    """
    steps = np.arange(1, len(losses) + 1)
    width = max(1, len(losses) // 15)
    axes.plot(steps, losses, color="0.75", linewidth=1.0, marker="." if len(losses) < 10 else None, label="each step")
    if len(losses) >= 2 * width:
        mean = np.convolve(losses, np.full(width, 1 / width), mode="valid")
        axes.plot(
            steps[: len(mean)] + (width - 1) / 2,
            mean,
            color=_LINE_COLOR,
            linewidth=2.0,
            label=f"mean of {width} steps",
        )
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)


def simulated_beside_real(simulated: TiltSeries, real: TiltSeries, *, tilt_angles: Angles) -> Figure:
    """Show simulated and real tilts at the same angles, one above the other.

    Parameters
    ----------
    simulated, real
        Of any sizes and units; for each angle the nearest tilt of each is shown.
    tilt_angles
        `(n,)`, degrees: which tilts.
    """
    angles = as_tilt_angles(tilt_angles)
    figure = Figure(figsize=(3.0 * len(angles), 6.6), layout="constrained")
    grid: npt.NDArray[Any] = figure.subplots(2, len(angles), squeeze=False)
    for row, (name, series) in zip(grid, (("simulated", simulated), ("real", real)), strict=True):
        for axes, index in zip(row, nearest_tilts(angles, series.tilt_angles), strict=True):
            title = f"{name}, {series.tilt_angles[index]:.0f}°"
            known = None if series.measured is None else series.measured[int(index)]
            tilt_panel(axes, series.tilts[int(index)], title=title, pixel_size=series.pixel_size, measured=known)
    return figure


def three_sections(
    volume: Tensor,
    *,
    voxel_size: float,
    title: str,
    low_pass: float = LOW_PASS,
    at: Sequence[int] | None = None,
) -> Figure:
    """Show three orthogonal sections of a tomogram, low-passed so that particles stand out.

    Parameters
    ----------
    volume
        `(z, y, x)`.
    voxel_size
        Å.
    title
        Above the sections.
    low_pass
        Å. Neighbouring sections within this length are averaged, and the mean is smoothed by a Gaussian that leaves
        half of the amplitude at `1 / low_pass`.
    at
        (z, y, x), which sections; by default those through the middle.
    """
    check_ndim("volume", volume, "z y x")
    depth, height, width = volume.shape
    scale = 11.0 / (width + depth)
    size = ((width + depth) * scale, (height + depth) * scale + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10)
    ratios = {"width_ratios": [width, depth], "height_ratios": [height, depth]}
    grid: npt.NDArray[Any] = figure.subplots(2, 2, squeeze=False, gridspec_kw=ratios)
    grid[1, 1].set_axis_off()
    for axis, (name, axes) in enumerate(zip("zyx", (grid[0, 0], grid[1, 0], grid[0, 1]), strict=True)):
        place = volume.shape[axis] // 2 if at is None else at[axis]
        image = smooth_section(volume, axis, place, low_pass / voxel_size)
        note = f", low-passed to {low_pass:g} Å" if axis == 0 else ""
        tilt_panel(axes, image, title=f"{name} = {place}{note}", pixel_size=voxel_size if axis == 0 else 0.0)
    return figure


def smooth_section(volume: Tensor, axis: int, place: int, length: float) -> Tensor:
    """Average sections within a length, and smooth the mean.

    Parameters
    ----------
    volume
        `(z, y, x)`.
    axis, place
        Which axis the section is across, and where.
    length
        Voxels.

    Returns
    -------
    `(y, x)`, `(z, x)` or, across x, `(y, z)`, float32, on the CPU.
    """
    from scipy.ndimage import gaussian_filter

    reach = round((length - 1) / 2)
    slab = volume.movedim(axis, 0)[max(place - reach, 0) : place + reach + 1].float().mean(dim=0)
    # A Gaussian of this standard deviation halves waves of `length`.
    smooth = torch.from_numpy(gaussian_filter(slab.cpu().numpy(), _HALVING * length, mode="nearest"))
    # Across x there is (z, y) left; y stays vertical, as in the section beside it.
    return smooth.T if axis == 2 else smooth


def richest_section(labels: Tensor) -> int:
    """Find the section z of labels `(z, y, x)` with much to see of every class."""
    numbers = torch.unique(labels)[1:] if bool((labels > 0).any()) else [0]
    areas = torch.stack([(labels == number).flatten(1).sum(dim=1).float() for number in numbers])  # (class, z)
    shares = areas / areas.amax(dim=1, keepdim=True).clamp_min(1.0)
    # A class is there when a tenth of its best is; a section without it counts less, however full it is.
    return int((areas.sum(dim=0) * shares.clamp_max(0.1).mean(dim=0)).argmax())


def label_color(number: int) -> str:
    """Return the colour of a class from 1 on; after the last, colours come again, darker."""
    again, place = divmod(number - 1, len(LABEL_COLORS))
    red, green, blue = (part * 0.6**again for part in to_rgb(LABEL_COLORS[place]))
    return str(to_hex((red, green, blue)))


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure so that the file is either whole or not there; the suffix (`.png`, `.pdf`) gives its format."""
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure)
        figure.savefig(temporary, format=Path(path).suffix.lstrip(".") or "png", dpi=_DPI)


def _scale_bar(axes: Axes, columns: int, pixel_size: float) -> None:
    """Draw a bar of a round length, about a fifth of the image, in its lower left corner."""
    length_nm = max(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n == 1 or n * 10 <= 0.25 * columns * pixel_size)
    length, margin = length_nm * 10 / pixel_size, 0.04 * columns
    bottom = max(axes.get_ylim()) - margin
    outline = [patheffects.withStroke(linewidth=5, foreground="black")]
    axes.plot([margin, margin + length], [bottom, bottom], color="white", linewidth=3, path_effects=outline)
    outline = [patheffects.withStroke(linewidth=2, foreground="black")]
    axes.text(
        margin + length / 2,
        bottom - 0.6 * margin,
        f"{length_nm} nm",
        color="white",
        fontsize=8,
        ha="center",
        va="bottom",
        path_effects=outline,
    )


def _array(image: Tensor) -> npt.NDArray[Any]:
    return np.asarray(image.detach().cpu().numpy())
