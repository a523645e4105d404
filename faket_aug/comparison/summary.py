"""Tables of a comparison: means over seeds and test specimens, with bootstrap intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from faket_aug._random import numpy_generator
from faket_aug.comparison.result import ArmResult

#: Quantiles between which the intervals lie; in per cent.
INTERVALS = {"68": (0.16, 0.84), "95": (0.025, 0.975)}
RESAMPLES = 10_000
SCORES = ("localization_f1", "macro_f1")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its intervals.

    Parameters
    ----------
    mean
        Over all values.
    low_68, high_68, low_95, high_95
        Of the mean, by bootstrap; the mean itself for a single value.
    values
        What was averaged.
    """

    mean: float
    low_68: float
    high_68: float
    low_95: float
    high_95: float
    values: tuple[float, ...]


def estimate(values: Sequence[float]) -> Estimate:
    """Average values, with bootstrap intervals of their mean (10,000 resamples, always the same).

    Parameters
    ----------
    values
        One a run.

    Raises
    ------
    ValueError
        If there are none.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
    """
    if not len(values):
        raise ValueError("expected at least one value to average, got none")
    numbers = np.asarray(values, dtype=np.float64)
    generator = numpy_generator(0, "order")
    means = numbers[generator.integers(len(numbers), size=(RESAMPLES, len(numbers)))].mean(axis=1)
    ends = {
        f"{side}_{name}": float(np.quantile(means, q))
        for name, pair in INTERVALS.items()
        for side, q in zip(("low", "high"), pair, strict=True)
    }
    return Estimate(mean=float(numbers.mean()), values=tuple(numbers.tolist()), **ends)


def by_arm(results: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    """Group results by arm, in the order in which arms first appear."""
    grouped: dict[str, list[ArmResult]] = {}
    for result in results:
        grouped.setdefault(result.arm, []).append(result)
    return grouped


def estimates(results: Sequence[ArmResult]) -> dict[str, dict[str, Estimate]]:
    """For each arm, localisation F1 and macro-F1 over its seeds (each the mean over the test specimens)."""
    return {
        arm: {score: estimate([getattr(result, score) for result in group]) for score in SCORES}
        for arm, group in by_arm(results).items()
    }


def class_f1(results: Sequence[ArmResult]) -> dict[str, dict[str, float]]:
    """For each arm, the mean F1 of each class over seeds and test specimens; classes without any are left out."""
    table: dict[str, dict[str, float]] = {}
    for arm, group in by_arm(results).items():
        collected: dict[str, list[float]] = {}
        for result in group:
            for score in result.scores.values():
                for name, entry in score["per_class"].items():
                    if entry["f1"] is not None and name != score["labels"][0]:
                        collected.setdefault(name, []).append(entry["f1"])
        table[arm] = {name: float(np.mean(values)) for name, values in collected.items()}
    return table


def summed_confusion(results: Sequence[ArmResult]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Add up the confusion matrices of one arm's results; classes that never occur are left out.

    Returns
    -------
    Labels, and `(class, class)` with particles in rows.

    Raises
    ------
    ValueError
        If the test specimens have different classes.
    """
    scores = [score for result in results for score in result.scores.values()]
    labels: list[str] = list(scores[0]["labels"])
    if any(list(score["labels"]) != labels for score in scores):
        raise ValueError("expected test specimens with one table of classes, got several; write the same one for all")
    total = np.sum([np.asarray(score["confusion"]) for score in scores], axis=0)
    there = (total.sum(axis=0) + total.sum(axis=1)) > 0
    return [name for name, kept in zip(labels, there, strict=True) if kept], total[there][:, there]


def as_csv(results: Sequence[ArmResult]) -> str:
    """Write the table of means and intervals as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = ("mean", "low_68", "high_68", "low_95", "high_95")
    writer.writerow(["arm", "seeds", *(f"{score}_{name}" for score in SCORES for name in names)])
    for arm, scores in estimates(results).items():
        numbers = [f"{getattr(scores[score], name):.4f}" for score in SCORES for name in names]
        writer.writerow([arm, len(scores[SCORES[0]].values), *numbers])
    return stream.getvalue()


def as_markdown(results: Sequence[ArmResult]) -> str:
    """Write the table of means and 68 % intervals as Markdown, with every seed's value."""
    lines = ["| trained on | localisation F1 | macro-F1 | seeds |", "|---|---|---|---|"]
    for arm, scores in estimates(results).items():
        cells = [_cell(scores[score]) for score in SCORES]
        lines.append(f"| {arm} | {cells[0]} | {cells[1]} | {len(scores[SCORES[0]].values)} |")
    return "\n".join(lines) + "\n"


def per_class_csv(results: Sequence[ArmResult]) -> str:
    """Write each class's mean F1 in each arm as CSV."""
    table: Mapping[str, Mapping[str, float]] = class_f1(results)
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["arm", *names])
    for arm, row in table.items():
        writer.writerow([arm, *(f"{row[name]:.4f}" if name in row else "" for name in names)])
    return stream.getvalue()


def confusion_csv(results: Sequence[ArmResult]) -> str:
    """Write the confusion matrices of all arms as CSV: a row for each pair of classes that occurs."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["arm", "is", "picked_as", "particles"])
    for arm, group in by_arm(results).items():
        labels, counts = summed_confusion(group)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                writer.writerow([arm, labels[row], labels[column], int(count)])
    return stream.getvalue()


def learning_csv(results: Sequence[ArmResult]) -> str:
    """Write training and validation losses of all arms and seeds as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["arm", "seed", "step", "loss", "validation"])
    for result in results:
        validations = dict(result.validations)
        for step, loss in enumerate(result.losses, start=1):
            value = f"{validations[step]:.6g}" if step in validations else ""
            writer.writerow([result.arm, result.seed, step, f"{loss:.6g}", value])
    return stream.getvalue()


def _cell(entry: Estimate) -> str:
    values = ", ".join(f"{value:.3f}" for value in entry.values)
    return f"{entry.mean:.3f} [{entry.low_68:.3f}, {entry.high_68:.3f}] ({values})"
