"""What `faket-aug score` does: it reads two lists of particles, compares them, and draws and writes what came out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from faket_aug._checks import FileFormatError
from faket_aug._settings import as_json
from faket_aug.figures import label_color, save_figure
from faket_aug.formats._atomic import make_writable_folder, write_text
from faket_aug.formats._text import find_name
from faket_aug.formats.found_particles import FoundParticles, find_geometry, find_names, find_particles
from faket_aug.formats.particles import ParticleList, match_names
from faket_aug.formats.star import Shape
from faket_aug.picking.distances import REACH, DistanceScore, PairedPicks, score_by_distance
from faket_aug.picking.scoring import ShrecScore, evaluate_shrec

NUMBERS, TABLE, PICTURE = "score.json", "score.csv", "score.png"
_MASK = "occupancy_mask.mrc"
_ALL = "any class"


@dataclass(frozen=True, kw_only=True)
class Whose:
    """Which list of several at a path: of a tomogram, and of a user and a session of a copick project."""

    tomogram: str | None = None
    user_id: str | None = None
    session_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreWork:
    """What is to be scored.

    Parameters
    ----------
    picks, truth
        Lists of particles.
    of_picks, of_truth
        Which of several.
    distance, beta, classes
        As for `score_by_distance` and `f_beta`.
    voxel_size
        Å, of the tomogram; by default what files say.
    picks_voxel_size
        Å, in which the picks' positions count, where that is another.
    volume
        The tomogram, whose header says voxel size and shape.
    class_table
        Names of class numbers.
    output
        Folder to write to.
    """

    picks: Path
    truth: Path
    of_picks: Whose
    of_truth: Whose
    distance: float | Mapping[str, float]
    beta: float
    classes: tuple[str, ...] = ()
    voxel_size: float | None = None
    picks_voxel_size: float | None = None
    volume: Path | None = None
    class_table: Mapping[int, str] | None = None
    output: Path | None = None


def run(work: ScoreWork) -> list[str]:
    """Score picks, and write numbers and picture where they are wanted.

    Returns
    -------
    Lines that say what came out.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError
        If files are missing or wrong, or do not go together.
    """
    picks, truth = _read(work)
    voxel_size = _size(truth, picks)
    own_size = picks.voxel_size or voxel_size
    listed = _spelled(picks, truth, work)
    # Everything counts in the truth's voxels from here on.
    listed = replace(listed, positions=listed.positions * (own_size / voxel_size))
    classes = tuple(_known(name, truth) for name in work.classes)
    distance = work.distance
    if isinstance(distance, Mapping):
        distance = {_known(name, truth): one for name, one in distance.items()}
    found = score_by_distance(listed, truth.particles, distance=distance, voxel_size=voxel_size, classes=classes)
    by_mask = _by_mask(listed, truth, classes)
    lines = report(found, by_mask, beta=work.beta)
    if not picks.voxel_size:
        lines.append(f"Positions in {picks.source} were taken in voxels of {voxel_size:g} Å, as those of the truth.")
    if work.output is not None:
        make_writable_folder(work.output)
        content = as_table(found, by_mask, beta=work.beta)
        about = {"picks": picks.source, "truth": truth.source, "voxel_size": voxel_size, "classes": list(classes)}
        write_text(work.output / NUMBERS, json.dumps(about | content, indent=1, allow_nan=False) + "\n")
        write_text(work.output / TABLE, _csv(content))
        save_figure(draw_score(found), work.output / PICTURE)
        lines.append(f"written to {work.output / NUMBERS} and {TABLE}; look at {work.output / PICTURE}")
    return lines


def _read(work: ScoreWork) -> tuple[FoundParticles, FoundParticles]:
    header: tuple[float, Shape | None] = (0.0, None)
    sources = [(work.volume, None), (work.truth, work.of_truth.tomogram), (work.picks, work.of_picks.tomogram)]
    for path, tomogram in sources:
        if path is not None and header[1] is None and path.exists():
            header = find_geometry(path, tomogram=tomogram)
    if work.volume is not None and not work.volume.is_file():
        raise FileNotFoundError(f"expected the tomogram, an MRC file, found none at {work.volume}; set --volume")
    size = work.voxel_size or header[0] or None
    names = dict(work.class_table or {}) or find_names(work.truth) or find_names(work.picks)
    truth = _found(work.truth, work.of_truth, size, header[1], names)
    own = work.picks_voxel_size
    picks = _found(work.picks, work.of_picks, own or size, header[1] if own is None else None, names)
    both = work.of_picks.tomogram is None and picks.tomogram and truth.tomogram
    if both and find_name(str(picks.tomogram), [str(truth.tomogram)]) is None:
        # Each file holds one tomogram, and says which.
        raise FileFormatError(
            f"{picks.source}: expected picks of tomogram {truth.tomogram}, as {truth.source}, got those of "
            f"{picks.tomogram}; if both are one, set --tomogram {picks.tomogram} and --truth-tomogram {truth.tomogram}"
        )
    return picks, truth


def _found(
    path: Path, whose: Whose, voxel_size: float | None, shape: Shape | None, names: Mapping[int, str]
) -> FoundParticles:
    try:
        return find_particles(path, voxel_size=voxel_size, shape=shape, class_names=names or None, **asdict(whose))
    except FileFormatError:
        raise
    except ValueError as error:
        raise ValueError(f"{error}, or set --volume to the tomogram, whose header says both") from error


def _size(truth: FoundParticles, picks: FoundParticles) -> float:
    size = truth.voxel_size or picks.voxel_size
    if not size > 0:
        raise ValueError(
            f"expected a voxel size in {truth.source} or {picks.source}, since distances are in Å, got none; set "
            "--voxel-size, or --volume to the tomogram"
        )
    return size


def _spelled(picks: FoundParticles, truth: FoundParticles, work: ScoreWork) -> ParticleList:
    """Spell the picks' classes as the truth does."""
    wanted = dict(enumerate(dict.fromkeys(truth.particles.names)))
    numbers = match_names(picks.particles.names, wanted)
    unknown = sorted(set(picks.particles.names) - set(numbers))
    if unknown and not work.classes:
        advice = "set --classes to those that are to be scored"
        if all(name.isdigit() for name in unknown):
            advice = f"name them, as --class-table {unknown[0]}={next(iter(wanted.values()), 'name')}, or {advice}"
        raise FileFormatError(
            f"{picks.source}: expected picks of classes that {truth.source} has "
            f"({', '.join(sorted(wanted.values())) or 'none'}), got {', '.join(unknown)}; {advice}"
        )
    names = tuple(wanted[numbers[name]] if name in numbers else name for name in picks.particles.names)
    return replace(picks.particles, names=names)


def _known(name: str, truth: FoundParticles) -> str:
    there = dict(enumerate(dict.fromkeys(truth.particles.names)))
    number = match_names([name], there).get(name)
    if number is None:
        raise ValueError(
            f"expected classes that {truth.source} has ({', '.join(sorted(there.values())) or 'none'}), got {name}; "
            "set --classes and --distance to these"
        )
    return there[number]


def _by_mask(picks: ParticleList, truth: FoundParticles, classes: Sequence[str]) -> ShrecScore | None:
    """Score by the occupancy mask, where the truth has one."""
    if truth.folder is None or not (truth.folder / _MASK).is_file():
        return None
    left_out = set(truth.particles.names) - set(classes) if classes else set()
    rows = [row for row, name in enumerate(picks.names) if name in truth.particles.names and name not in left_out]
    kept = ParticleList(tuple(picks.names[row] for row in rows), picks.positions[rows], picks.orientations[rows])
    return evaluate_shrec(kept, truth.folder, skip=left_out)


# What came out --------------------------------------------------------------------------------------------------------


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


def _csv(content: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", *content["places"]])
    for name, row in [*content["per_class"].items(), (_ALL, content["places"])]:
        writer.writerow([name, *("" if value is None else value for value in row.values())])
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
