"""What `faket-aug score` does: it reads two lists of particles, compares them, and draws and writes what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from faket_aug._checks import FileFormatError, check_positive
from faket_aug.cli._score_report import as_csv, as_table, draw_score, report, report_tomograms
from faket_aug.figures import save_figure
from faket_aug.formats._atomic import make_writable_folder, write_text
from faket_aug.formats._text import find_name, shortened
from faket_aug.formats.found_particles import (
    FoundParticles,
    find_geometry,
    find_names,
    find_particles,
    find_tomograms,
)
from faket_aug.formats.particles import ParticleList, match_names
from faket_aug.formats.star import Shape
from faket_aug.picking.distances import score_by_distance, score_tomograms
from faket_aug.picking.scoring import ShrecScore, evaluate_shrec

NUMBERS, TABLE, PICTURE = "score.json", "score.csv", "score.png"
_MASK = "occupancy_mask.mrc"


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
    both = _several(work)
    if both is not None:
        return _run_several(work, *both)
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
        write_text(work.output / TABLE, as_csv(content))
        save_figure(draw_score(found), work.output / PICTURE)
        lines.append(f"written to {work.output / NUMBERS} and {TABLE}; look at {work.output / PICTURE}")
    return lines


def _several(work: ScoreWork) -> tuple[dict[str, str | None], list[str]] | None:
    """Pair the tomograms of the truth with those of the picks, where there are several and none was chosen.

    Returns
    -------
    By the truth's names those of the picks, `None` for tomograms without picks; and the picks' names that are left.
    """
    if work.of_picks.tomogram is not None or work.of_truth.tomogram is not None:
        return None
    if not work.truth.exists() or not work.picks.exists():
        return None
    true, found = find_tomograms(work.truth), find_tomograms(work.picks)
    if len(true) < 2 or not found or work.picks_voxel_size is not None:
        return None
    pairs = {name: find_name(name, found) for name in true}
    used = set(pairs.values())
    if used == {None}:
        raise FileFormatError(
            f"{work.picks}: expected picks of tomograms that {work.truth} has ({shortened(', '.join(true))}), got "
            f"{shortened(', '.join(found))}; set --tomogram and --truth-tomogram to a pair of them, or rename them"
        )
    return pairs, [name for name in found if name not in used]


def _run_several(work: ScoreWork, pairs: Mapping[str, str | None], left: Sequence[str]) -> list[str]:
    """Score the picks of several tomograms, and all of them together."""
    lists, sizes = [], []
    for true, found in pairs.items():
        one = replace(
            work, of_picks=replace(work.of_picks, tomogram=found), of_truth=replace(work.of_truth, tomogram=true)
        )
        picks, truth = _read(one, empty=found is None)
        voxel_size = _size(truth, picks)
        scale = (picks.voxel_size or voxel_size) / voxel_size
        lists.append((replace(picks.particles, positions=picks.particles.positions * scale), truth))
        sizes.append(voxel_size)
    every = FoundParticles(
        particles=_joined([truth.particles for _, truth in lists]), voxel_size=sizes[0], source=str(work.truth)
    )
    spelled = [
        (_spelled(FoundParticles(particles=one, voxel_size=0.0, source=str(work.picks)), every, work), truth.particles)
        for one, truth in lists
    ]
    classes = tuple(_known(name, every) for name in work.classes)
    distance = work.distance
    if isinstance(distance, Mapping):
        distance = {_known(name, every): one for name, one in distance.items()}
    total, each = score_tomograms(spelled, distance=distance, voxel_sizes=sizes, classes=classes)
    by_name = dict(zip(pairs, each, strict=True))
    lines = [*report(total, None, beta=work.beta), *report_tomograms(by_name, beta=work.beta)]
    empty = [true for true, found in pairs.items() if found is None]
    if empty:
        lines.append(f"No picks of {shortened(', '.join(empty))}: all their particles count as missed.")
    if left:
        lines.append(f"Left out, since the truth has no such tomograms: picks of {shortened(', '.join(left))}.")
    if work.output is not None:
        make_writable_folder(work.output)
        content = as_table(total, None, beta=work.beta)
        tomograms = {name: as_table(one, None, beta=work.beta) for name, one in by_name.items()}
        about = {"picks": str(work.picks), "truth": str(work.truth), "classes": list(classes), "voxel_sizes": sizes}
        whole = about | content | {"tomograms": tomograms, "without_picks": empty, "left_out": list(left)}
        write_text(work.output / NUMBERS, json.dumps(whole, indent=1, allow_nan=False) + "\n")
        write_text(work.output / TABLE, as_csv(content, tomograms))
        save_figure(draw_score(total), work.output / PICTURE)
        lines.append(f"written to {work.output / NUMBERS} and {TABLE}; look at {work.output / PICTURE}")
    return lines


def _joined(lists: Sequence[ParticleList]) -> ParticleList:
    return ParticleList(
        tuple(name for one in lists for name in one.names),
        np.concatenate([one.positions for one in lists]),
        np.concatenate([one.orientations for one in lists]),
    )


def _read(work: ScoreWork, *, empty: bool = False) -> tuple[FoundParticles, FoundParticles]:
    """Read picks and truth; of a tomogram without picks only the truth is read."""
    for name in ("voxel_size", "picks_voxel_size"):
        if (given := getattr(work, name)) is not None:
            check_positive(name, given)
    header: tuple[float, Shape | None] = (0.0, None)
    sources = [(work.volume, None), (work.truth, work.of_truth.tomogram), (work.picks, work.of_picks.tomogram)]
    for path, tomogram in sources:
        if path is not None and header[1] is None and path.exists():
            header = find_geometry(path, tomogram=tomogram)
    if work.volume is not None and not work.volume.is_file():
        raise FileNotFoundError(f"expected the tomogram, an MRC file, found none at {work.volume}; set --volume")
    size = (header[0] or None) if work.voxel_size is None else work.voxel_size
    names = dict(work.class_table or {}) or find_names(work.truth) or find_names(work.picks)
    truth = _found(work.truth, work.of_truth, size, header[1], names)
    own = work.picks_voxel_size
    if empty:
        none = ParticleList((), np.zeros((0, 3)), np.zeros((0, 3, 3)))
        return FoundParticles(particles=none, voxel_size=0.0, source=str(work.picks)), truth
    picks = _found(work.picks, work.of_picks, size if own is None else own, header[1] if own is None else None, names)
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
        # There is no option for the shape.
        told, lacking, _ = str(error).partition("; set `shape`")
        advice = "; set" if lacking else ", or set"
        raise ValueError(f"{told}{advice} --volume to the tomogram, whose header says both") from error


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
