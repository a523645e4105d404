"""The picture of a training: loss, scores, a simulated section beside the user's, and what the network sees there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

from faket_aug.figures import (
    LABEL_OPACITY,
    LOW_PASS,
    label_color,
    label_overlay,
    loss_panel,
    richest_section,
    smooth_section,
    tilt_panel,
)
from faket_aug.picking.flavours import put_together
from faket_aug.picking.history import TrainingHistory
from faket_aug.picking.inference import class_probabilities

#: Voxels along y and x that are shown, and sections that the network is given around the one that is shown.
SIDE, DEPTH = 192, 32
#: Probabilities below this are not coloured.
_LEAST = 0.05
REAL = "real F1 "
_SIMULATED = "F1 "


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The part of a tomogram that is shown: its middle section, low-passed, and what is around it.

    Parameters
    ----------
    slab
        `(z, y, x)`, sections around the one that is shown; of several flavours `(channel, z, y, x)`.
    place
        The section that is shown, in the slab.
    image
        `(y, x)`, the section, low-passed.
    title
        Above it.
    voxel_size
        Å.
    labels
        `(y, x)`, where they are known.
    """

    slab: Tensor
    place: int
    image: Tensor
    title: str
    voxel_size: float
    labels: Tensor | None = None

    @classmethod
    def of(
        cls,
        tomogram: Tensor,
        *,
        name: str,
        voxel_size: float,
        labels: Tensor | None = None,
        flavours: Mapping[str, Tensor] | None = None,
    ) -> Shown:
        """Take the middle of a tomogram `(z, y, x)`, or its richest section where it has labels.

        Of several `flavours` that the network sees the tomogram is shown, which is the first one.
        """
        depth = len(tomogram)
        labelled = labels is not None and bool(labels.any())
        section = richest_section(labels) if labels is not None and labelled else depth // 2
        low = min(max(section - DEPTH // 2, 0), max(depth - DEPTH, 0))
        slabs = {which: one[low : low + DEPTH].float() for which, one in (flavours or {}).items()}
        whole = cls(
            slab=put_together(tomogram[low : low + DEPTH].float(), slabs),
            place=section - low,
            image=smooth_section(tomogram, 0, section, LOW_PASS / voxel_size),
            title=f"{name}, z = {section}",
            voxel_size=voxel_size,
            labels=labels[section] if labels is not None and labelled else None,
        )
        return whole.cropped(SIDE, SIDE)

    def cropped(self, height: int, width: int) -> Shown:
        """Return its middle, of at most this size: two that are compared are shown at one magnification."""
        rows, columns = (
            slice((n - min(n, side)) // 2, (n + min(n, side)) // 2)
            for n, side in zip(self.image.shape, (height, width), strict=True)
        )
        return replace(
            self,
            slab=self.slab[..., rows, columns].clone(),
            image=self.image[rows, columns],
            labels=None if self.labels is None else self.labels[rows, columns],
        )

    def probabilities(self, network: nn.Module, *, precision: str, device: str) -> Tensor:
        """Compute the probabilities of the classes `(class, y, x)` in the section."""
        side = max(n + (-n) % 4 for n in self.slab.shape[-3:])
        found = class_probabilities(network, self.slab, tile_size=side, precision=precision, device=device)
        return found[:, self.place].float()


def draw_training(
    history: TrainingHistory,
    *,
    class_names: Mapping[int, str],
    simulated: Shown,
    real: Shown | None,
    seen: Tensor,
    steps: int,
) -> Figure:
    """Draw how far a training is.

    Parameters
    ----------
    history
        Losses and scores so far.
    class_names
        By class number.
    simulated
        Of a validation tomogram, with labels.
    real
        Of the user's own tomogram, where there is one.
    seen
        `(class, y, x)`, the network's probabilities in the real section, or in the simulated one.
    steps
        Of the whole training.
    """
    figure = Figure(figsize=(14.5, 9.4), layout="constrained")
    parts: npt.NDArray[Any] = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.0, 1.75])[:, 0]
    curves: npt.NDArray[Any] = parts[0].subplots(1, 2)
    loss_panel(curves[0], history.losses, title=f"training loss, {len(history.losses)} of {steps} steps")
    _score_panel(curves[1], history, class_names)
    sections: npt.NDArray[Any] = parts[1].subplots(1, 3)
    shown = simulated if real is None else real
    tilt_panel(sections[0], simulated.image, title=simulated.title, pixel_size=simulated.voxel_size)
    if simulated.labels is not None:
        _outlines(sections[0], simulated.labels)
    if real is None:
        tilt_panel(sections[1], simulated.image, title="its labels", pixel_size=simulated.voxel_size)
        if simulated.labels is not None:
            label_overlay(sections[1], simulated.labels)
    else:
        tilt_panel(sections[1], real.image, title=real.title, pixel_size=real.voxel_size)
    tilt_panel(sections[2], shown.image, title="the network's probabilities there", pixel_size=shown.voxel_size)
    _probability_overlay(sections[2], seen)
    handles = [Patch(color=label_color(number), label=name) for number, name in sorted(class_names.items())]
    parts[1].legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False)
    return figure


def _score_panel(axes: Axes, history: TrainingHistory, class_names: Mapping[int, str]) -> None:
    """Draw the F1 of each class over the steps; of real tomograms dashed."""
    for number, name in sorted(class_names.items()):
        for start, style, label in ((_SIMULATED, "-", name), (REAL, "--", f"{name}, real")):
            points = [(step, by[start + name]) for step, by in history.scores if start + name in by]
            if points:
                at, values = zip(*points, strict=True)
                axes.plot(at, values, style, color=label_color(number), marker="o", markersize=4, label=label)
    best = history.best
    if best is not None:
        axes.axvline(best[0], color="0.6", linewidth=1.0, linestyle=":", label=f"best, step {best[0]}")
    axes.set_title("validation, F1 of the picks", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylim(0, 1.05)
    axes.set_xlim(0, 1.02 * max(len(history.losses), 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False, ncols=2)


def _outlines(axes: Axes, labels: Tensor) -> None:
    """Draw a line around what is labelled, so that the image within stays seen."""
    numbers: npt.NDArray[Any] = np.asarray(labels.cpu().numpy())
    for number in np.unique(numbers[numbers > 0]):
        inside = (numbers == number).astype(np.float64)
        axes.contour(inside, levels=[0.5], colors=[label_color(int(number))], linewidths=1.0)


def _probability_overlay(axes: Axes, probabilities: Tensor) -> None:
    """Colour an image by the most likely class, the more the likelier it is."""
    values: npt.NDArray[Any] = np.asarray(probabilities.cpu().numpy(), dtype=np.float64)
    best, number = values.max(axis=0), values.argmax(axis=0) + 1
    overlay = np.zeros((*best.shape, 4))
    for one in np.unique(number):
        overlay[number == one, :3] = to_rgb(label_color(int(one)))
    overlay[..., 3] = np.where(best < _LEAST, 0.0, LABEL_OPACITY * best)
    axes.imshow(overlay, interpolation="nearest")
