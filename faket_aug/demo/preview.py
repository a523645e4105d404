"""The demonstration's picture."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from matplotlib.figure import Figure, SubFigure

from faket_aug.figures import loss_panel, richest_section, slice_with_labels, tilt_panel
from faket_aug.simulation.tomogram import SimulatedTomogram
from faket_aug.tilts.series import TiltSeries


def draw_preview(
    made: dict[str, SimulatedTomogram], style: TiltSeries, losses: tuple[float, ...], *, random: bool
) -> Figure:
    """Draw a tilt in all its forms beside the style's, a section with its labels, and the loss.

    Parameters
    ----------
    made
        Tomograms of the same specimen and noise, by modality.
    style
        A tilt-series with the same angles.
    losses
        One a step.
    random
        Whether the encoder's weights are random; the picture says so.
    """
    figure = Figure(figsize=(14.0, 8.2), layout="constrained")
    # Subfigures, so that the curve's labels do not push the tilts apart.
    parts: npt.NDArray[Any] = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.0, 1.1])
    _draw_tilts(parts[0, 0], made, style, note=" (random weights)" if random else "")
    _draw_training(parts[1, 0], made["faket"], losses)
    return figure


def _draw_tilts(figure: SubFigure, made: dict[str, SimulatedTomogram], style: TiltSeries, *, note: str) -> None:
    middle = style.tilts.shape[0] // 2
    angle = f"{style.tilt_angles[middle]:.0f}°"
    titles = [f"{name}, {angle}{note if name == 'faket' else ''}" for name in made]
    titles.append(f"style, {angle} (microscope, another specimen)")
    tilts = [tomogram.tiltseries[middle] for tomogram in made.values()] + [style.tilts[middle]]
    row: npt.NDArray[Any] = figure.subplots(1, len(tilts), squeeze=False)[0]
    for axes, tilt, title in zip(row, tilts, titles, strict=True):
        tilt_panel(axes, tilt, title=title, pixel_size=style.pixel_size)


def _draw_training(figure: SubFigure, made: SimulatedTomogram, losses: tuple[float, ...]) -> None:
    z, size = richest_section(made.labels), made.voxel_size
    # A slab of three sections, as one looks at tomograms: a single one is noisier.
    section = made.tomogram[max(z - 1, 0) : z + 2].mean(dim=0)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.0, 1.0, 1.75])
    tilt_panel(
        left, section, title=f"tomogram of the faket tilts, {size * 3 / 10:g} nm slab at z = {z}", pixel_size=size
    )
    slice_with_labels(
        middle,
        section,
        made.labels[z],
        class_names=made.class_names,
        title="the same with its labels",
        pixel_size=size,
    )
    loss_panel(right, losses, title="training a 3-D U-Net on patches that are simulated meanwhile")
