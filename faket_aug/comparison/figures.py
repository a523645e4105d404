"""Pictures of a comparison: scores of the arms, of their classes, confusion matrices, learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from faket_aug.comparison.result import ArmResult
from faket_aug.comparison.summary import SCORES, by_arm, class_f1, estimates, summed_confusion
from faket_aug.figures import label_color

_NAMES = {"localization_f1": "localisation F1", "macro_f1": "macro-F1"}


def score_bars(results: Sequence[ArmResult]) -> Figure:
    """Draw each arm's mean scores as bars, their 68 and 95 % intervals as thick and thin lines, each seed as a dot."""
    table = estimates(results)
    figure = Figure(figsize=(3.0 + 1.3 * len(table), 7.0), layout="constrained")
    for axes, score in zip(figure.subplots(2, 1, sharex=True), SCORES, strict=True):
        for place, scores in enumerate(table.values()):
            entry = scores[score]
            axes.bar(place, entry.mean, color=label_color(place + 1), width=0.7, alpha=0.85)
            axes.plot([place] * 2, [entry.low_95, entry.high_95], color="black", linewidth=1.0)
            axes.plot([place] * 2, [entry.low_68, entry.high_68], color="black", linewidth=3.0)
            axes.plot([place + 0.2] * len(entry.values), entry.values, "o", color="0.3", markersize=4)
            axes.text(place - 0.05, entry.mean + 0.01, f"{entry.mean:.2f}", fontsize=8, ha="right", va="bottom")
        axes.set_ylabel(_NAMES[score])
        axes.set_ylim(0, 1)
        axes.grid(axis="y", alpha=0.3)
        axes.set_xticks(range(len(table)), list(table), rotation=25, ha="right")
    return figure


def class_bars(results: Sequence[ArmResult]) -> Figure:
    """Draw the F1 of each class, an arm beside the other."""
    table = class_f1(results)
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    width = 0.85 / max(1, len(table))
    figure = Figure(figsize=(3.0 + 0.25 * len(names) * max(2, len(table)), 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (arm, row) in enumerate(table.items()):
        left = np.arange(len(names)) - 0.425 + (place + 0.5) * width
        axes.bar(left, [row.get(name, 0.0) for name in names], width=width, label=arm, color=label_color(place + 1))
    if not any(value > 0 for row in table.values() for value in row.values()):
        axes.text(0.5, 0.5, "no particle was found", transform=axes.transAxes, ha="center", fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axes.set_ylabel("F1")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=min(len(table), 5), fontsize=8, frameon=False)
    return figure


def confusion_matrices(results: Sequence[ArmResult]) -> Figure:
    """Draw each arm's confusion matrix, added up over seeds and test specimens, as shares of each class's particles."""
    grouped = by_arm(results)
    columns = min(3, len(grouped))
    rows = -(-len(grouped) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.4 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (arm, group) in zip(grid.flat, grouped.items(), strict=False):
        labels, counts = summed_confusion(group)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.set_axis_on()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (y, x), share in np.ndenumerate(shares):
            if counts[y, x]:
                axes.text(
                    x,
                    y,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if share > 0.6 else "black",
                )
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.set_title(f"{arm} (% of a row)", fontsize=9)
        axes.set_xlabel("picked as", fontsize=8)
        axes.set_ylabel("is", fontsize=8)
    return figure


def learning_curves(results: Sequence[ArmResult]) -> Figure:
    """Draw training and validation loss over the steps, a line for each seed."""
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    training, validation = figure.subplots(1, 2)
    for place, (arm, group) in enumerate(by_arm(results).items()):
        for number, result in enumerate(group):
            label = arm if number == 0 else None
            width = max(1, len(result.losses) // 40)
            mean = np.convolve(result.losses, np.full(width, 1 / width), mode="valid")
            steps = np.arange(len(mean)) + (width + 1) / 2
            training.plot(steps, mean, color=label_color(place + 1), label=label, linewidth=1.2)
            if result.validations:
                at, values = zip(*result.validations, strict=True)
                validation.plot(at, values, ".-", color=label_color(place + 1), linewidth=1.2)
    for axes, title in ((training, "training loss, running mean"), (validation, "loss on the validation tomogram")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    return figure
