"""What `faket-aug score` says and draws."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from faket_aug._settings import as_json
from faket_aug.figures import label_color
from faket_aug.picking.distances import REACH, DistanceScore, PairedPicks
from faket_aug.picking.scoring import ShrecScore

_ALL, _TOTAL = "any class", "all"


def as_table(found: DistanceScore, by_mask: ShrecScore | None, *, beta: float) -> dict[str, Any]:
    """Return the numbers as JSON types."""
    content: dict[str, Any] = {
        "beta": beta,
        "mean_f1": found.mean_f1,
        "mean_f_beta": found.mean_f_beta(beta),
        "places": _row(found.places, beta),
        "per_class": {name: _row(one, beta) for name, one in found.per_class.items()},
    }
    if by_mask is not None:
        known = {name: value for name, value in vars(by_mask).items() if name != "confusion"}
        known |= {"mean_distance": by_mask.mean_distance if by_mask.found else None}
        known |= {"labels": list(by_mask.labels), "confusion": by_mask.confusion.tolist()}
        content["shrec"] = as_json(known | {"per_class": {n: asdict(one) for n, one in by_mask.per_class.items()}})
    return content


def _row(one: PairedPicks, beta: float) -> dict[str, float | int | None]:
    return {
        **{"distance": one.distance, "particles": one.particles, "picks": one.picks, "hits": one.hits},
        **{"precision": one.precision, "recall": one.recall, "f1": one.f1, "f_beta": one.f_beta(beta)},
        "mean_distance": one.mean_distance,
    }


def as_csv(content: Mapping[str, Any], tomograms: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Write a table of the classes, and of those of each tomogram where there are several."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    several = tomograms is not None
    writer.writerow([*["tomogram"] * several, "class", *content["places"]])
    for tomogram, one in [(_TOTAL, content), *(tomograms or {}).items()]:
        for name, row in [*one["per_class"].items(), (_ALL, one["places"])]:
            writer.writerow([*[tomogram] * several, name, *("" if value is None else value for value in row.values())])
    return text.getvalue()


def report(found: DistanceScore, by_mask: ShrecScore | None, *, beta: float) -> list[str]:
    """Say what came out: a table, means, and SHREC's own score where there is a mask."""
    head = ("class", "within", "particles", "picks", "hits", "precision", "recall", "F1", f"F{beta:g}")
    rows = [_words(name, one, beta) for name, one in [*found.per_class.items(), (_ALL, found.places)]]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *_right(row[1:], widths[1:])]) for row in [head, *rows]]
    lines.append(f"Mean of the classes: F1 {found.mean_f1:.3f}, F{beta:g} {found.mean_f_beta(beta):.3f}.")
    if by_mask is not None:
        lines.append(
            f"By the occupancy mask (SHREC's evaluation): F1 of places {by_mask.localization_f1:.3f}, mean F1 of "
            f"classes {by_mask.macro_f1:.3f}; hit more than once: {by_mask.double_hits}."
        )
    return lines


def report_tomograms(found: Mapping[str, DistanceScore], *, beta: float) -> list[str]:
    """Say how good the places of each tomogram's picks are, and the mean of its classes."""
    head = ("tomogram", "particles", "picks", "hits", "precision", "recall", "F1", "mean F1", f"mean F{beta:g}")
    rows = []
    for name, one in found.items():
        places = one.places
        shares = ("–" if share is None else f"{share:.3f}" for share in (places.precision, places.recall))
        counts = (str(places.particles), str(places.picks), str(places.hits))
        means = (f"{places.f1:.3f}", f"{one.mean_f1:.3f}", f"{one.mean_f_beta(beta):.3f}")
        rows.append((name, *counts, *shares, *means))
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return ["", *("  ".join([row[0].ljust(widths[0]), *_right(row[1:], widths[1:])]) for row in [head, *rows])]


def _right(words: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [word.rjust(width) for word, width in zip(words, widths, strict=True)]


def _words(name: str, one: PairedPicks, beta: float) -> tuple[str, ...]:
    shares = [None if share is None else f"{share:.3f}" for share in (one.precision, one.recall)]
    counts = (f"{one.distance:g} Å", str(one.particles), str(one.picks), str(one.hits))
    return (name, *counts, *(share or "–" for share in shares), f"{one.f1:.3f}", f"{one.f_beta(beta):.3f}")


def draw_score(found: DistanceScore) -> Figure:
    """Draw the F1 of each class, and precision and recall of all classes over the distance.

    Parameters
    ----------
    found
        The score.
    """
    count = len(found.per_class)
    figure = Figure(figsize=(10, max(3.6, 0.32 * count + 1.6)), layout="constrained")
    bars, curves = figure.subplots(1, 2)
    names, rows = list(found.per_class), np.arange(count)
    scores = [one.f1 for one in found.per_class.values()]
    drawn = bars.barh(rows, scores, color=[label_color(number) for number in range(1, count + 1)])
    bars.bar_label(drawn, [f"{score:.2f}" for score in scores], fontsize=8, padding=2)
    bars.set_yticks(rows, names, fontsize=8)
    bars.set_ylim(count - 0.5, -0.5)
    bars.set_xlim(0, 1.1)
    bars.set_title(f"F1 of each class, mean {found.mean_f1:.2f}", fontsize=10)
    bars.spines[["top", "right"]].set_visible(False)
    _draw_curves(curves, found)
    return figure


def _draw_curves(axes: Axes, found: DistanceScore) -> None:
    """Draw precision and recall, hits of all classes together, over the distance that a hit may have."""
    parts = list(found.per_class.values())
    shares = np.linspace(0, REACH, 101)
    hits = np.array([sum(one.hits_within(share * one.distance) for one in parts) for share in shares])
    distances = {one.distance for one in parts}
    unit = distances.pop() if len(distances) == 1 else 1.0
    picks, particles = sum(one.picks for one in parts), sum(one.particles for one in parts)
    for name, whole, style in (("precision", picks, "-"), ("recall", particles, "--")):
        axes.plot(shares * unit, hits / max(whole, 1), style, linewidth=2.0, label=name)
    axes.axvline(unit, color="0.6", linewidth=1.0)
    axes.text(unit, 1.02, " the distance used", fontsize=8, color="0.4", va="bottom")
    axes.set_xlim(0, REACH * unit)
    axes.set_ylim(0, 1.1)
    axes.set_xlabel("distance, Å" if unit != 1.0 else "share of each class's distance")
    axes.set_title("precision and recall, by how near a pick must be", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
