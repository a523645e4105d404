"""Scores of picks: SHREC's evaluation with an occupancy mask, and the CZII challenge's with distances alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from faket_aug._checks import FileFormatError, check_positive
from faket_aug.formats.mrc import read_mrc
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.shrec import read_class_conversion_table, read_particle_locations
from faket_aug.picking.clustering import Picks

BACKGROUND = "background"
#: Classes that SHREC's evaluation takes out of the number of particles to be found when they are skipped. Vesicles stay
#: in it (its authors' choice, which FakET kept): scores could not be compared otherwise.
_TAKEN_OUT = ("4v94",)
#: What SHREC's challenge of 2021 skipped.
SHREC_CHALLENGE_SKIP = ("4V94", "vesicle")
CZII_BETA = 4.0
#: Share of a particle's radius within which a pick hits it.
CZII_REACH = 0.5


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well one class was told apart; recall is `None` without such particles, precision without such picks.

    Parameters
    ----------
    precision, recall, f1
        Within [0, 1].
    """

    precision: float | None
    recall: float | None
    f1: float


@dataclass(frozen=True, kw_only=True)
class ShrecScore:
    """What SHREC's evaluation says of a list of picks.

    Parameters
    ----------
    picks, particles
        Picks in all; particles to be found.
    found, missed
        Particles hit by a pick or more, and by none.
    false_positives
        Picks that hit no particle.
    double_hits
        Particles hit by more than one pick.
    outside
        Picks beyond the volume; they count at its nearest voxel.
    localization_recall, localization_precision, localization_f1
        Of the places alone, whatever the class.
    mean_distance
        Voxels from a particle's place to its first pick; NaN where none was found.
    macro_f1
        Mean of the classes' F1. As published, the background's (0) is among them as soon as a particle was missed.
    accuracy
        Share of the particles that are found with the right class.
    per_class
        For each class that occurs among particles or picks.
    confusion
        `(class, class)`, particles in rows, first picks in columns, in the order of `labels`; not found is background.
    labels
        Class names, the background first.
    """

    picks: int
    particles: int
    found: int
    missed: int
    false_positives: int
    double_hits: int
    outside: int
    localization_recall: float
    localization_precision: float
    localization_f1: float
    mean_distance: float
    macro_f1: float
    accuracy: float
    per_class: Mapping[str, ClassScore]
    confusion: npt.NDArray[np.int64]
    labels: tuple[str, ...]


def evaluate_shrec(picks: str | Path | ParticleList, folder: str | Path, skip: Collection[str] = ()) -> ShrecScore:
    """Score picks against a specimen in SHREC's layout, as SHREC 2021's evaluation does with FakET's two corrections.

    A pick hits the particle in whose mask, dilated by one voxel along each axis, it lies. Its first pick, in the order
    of the list, gives a particle's class.

    Parameters
    ----------
    picks
        SHREC's text file (`name x y z ...`), or particles in memory; names are compared without regard to case.
    folder
        The model's folder, with `particle_locations.txt`, `occupancy_mask.mrc` and, there or in the folder above,
        `class_conversion_table.txt` (without it the classes are those of the particles).
    skip
        Classes to leave out; `SHREC_CHALLENGE_SKIP` for the challenge's own table. A particle of another class that
        was taken for one of them counts as background.

    Returns
    -------
    The score; without picks or particles its rates are 0.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If a file is missing or wrong, a pick has a class that is not among those of the folder, or a voxel of the mask
        belongs to no particle of the list.

    References
    ----------
    Gubins et al., *SHREC 2021: Classification in cryo-electron tomograms*, section 5; Harar et al., Structure 33
    (2025), Methods.
    """
    folder = Path(folder)
    truth = read_particle_locations(folder / "particle_locations.txt")
    source = str(picks) if isinstance(picks, str | Path) else "picks"
    listed = picks if isinstance(picks, ParticleList) else read_particle_locations(picks)
    labels = _labels(folder, truth)
    left_out = {_known(name, labels, "`skip`").lower() for name in skip}
    actual = [_known(name, labels, str(folder / "particle_locations.txt")) for name in truth.names]
    chosen = [_known(name, labels, source) for name in listed.names]
    mask = _dilated_occupancy(folder / "occupancy_mask.mrc", len(truth))
    places, outside = _voxels(listed.positions, mask.shape)
    hit = mask[tuple(places.T)]  # (pick,)
    kept = np.array([name.lower() not in left_out for name in actual], dtype=bool)
    firsts, counts = _first_picks(hit, len(truth))
    distances = np.array([np.linalg.norm(places[firsts[row]] - truth.positions[row]) for row in _rows(firsts, kept)])
    expected = len(truth) - sum(name.lower() in left_out for name in actual if name.lower() in _TAKEN_OUT)
    pairs = [
        (actual[row], _class_of(firsts[row], chosen, left_out, labels[0])) for row in np.flatnonzero(kept).tolist()
    ]
    found = len(distances)
    recall, precision = _ratio(found, expected), _ratio(found, len(listed))
    names = tuple(name for name in labels if name.lower() not in left_out)
    confusion = _confusion(pairs, names)
    per_class = _per_class(confusion, names)
    scores = [score.f1 for score in per_class.values()]
    return ShrecScore(
        picks=len(listed),
        particles=expected,
        found=found,
        missed=int(kept.sum()) - found,
        false_positives=int((hit == 0).sum()),
        double_hits=int((counts[kept] > 1).sum()),
        outside=outside,
        localization_recall=recall,
        localization_precision=precision,
        localization_f1=_ratio(2 * recall * precision, recall + precision),
        mean_distance=float(distances.mean()) if found else float("nan"),
        macro_f1=float(np.mean(scores)) if scores else 0.0,
        accuracy=_ratio(int(np.trace(confusion)), len(pairs)),
        per_class=per_class,
        confusion=confusion,
        labels=names,
    )


def choose_min_sizes(
    picks: Picks, folder: str | Path, *, class_names: Mapping[int, str], skip: Collection[str] = ()
) -> dict[int, int]:
    """Find, for each class, the size that picks need to have for the best F1 on a validation tomogram.

    Parameters
    ----------
    picks
        Of the validation tomogram, without any bound on their size.
    folder
        Its model's folder, as for `evaluate_shrec`.
    class_names
        Names of the picks' class numbers.
    skip
        Classes without a bound.

    Returns
    -------
    Voxels by class number, for `Picks.larger_than`; of equally good sizes the smallest. A class whose picks hit
    nothing keeps none but those larger than all of these.

    Raises
    ------
    FileNotFoundError, FileFormatError, ValueError
        As `evaluate_shrec`; or if a class of the picks has no name.
    """
    folder = Path(folder)
    truth = read_particle_locations(folder / "particle_locations.txt")
    mask = _dilated_occupancy(folder / "occupancy_mask.mrc", len(truth))
    hit = mask[tuple(_voxels(picks.positions, mask.shape)[0].T)]
    names = [name.lower() for name in picks.particles(class_names).names]
    actual = ["", *(name.lower() for name in truth.names)]
    left_out = {name.lower() for name in skip}
    best = {}
    for number, name in class_names.items():
        rows = [row for row, other in enumerate(names) if other == name.lower()]
        if rows and name.lower() not in left_out:
            right = [int(hit[row]) if actual[hit[row]] == name.lower() else 0 for row in rows]
            best[number] = _best_size([int(picks.sizes[row]) for row in rows], right, actual.count(name.lower()))
    return best


def _best_size(sizes: Sequence[int], hits: Sequence[int], particles: int) -> int:
    """The least size with the best F1, of picks with these sizes that hit these particles (0 for none)."""
    best, best_f1 = max(sizes) + 1, 0.0
    for least in sorted(set(sizes), reverse=True):
        kept = [hit for size, hit in zip(sizes, hits, strict=True) if size >= least]
        f1 = _ratio(2 * len(set(kept) - {0}), len(kept) + particles)
        if f1 >= best_f1 and f1 > 0:
            best, best_f1 = least, f1
    return best


def f_beta_score(
    picks: ParticleList | Sequence[ParticleList],
    truth: ParticleList | Sequence[ParticleList],
    *,
    radii: Mapping[str, float],
    voxel_size: float,
    weights: Mapping[str, float] | None = None,
    beta: float = CZII_BETA,
    reach: float = CZII_REACH,
) -> float:
    """Score picks by distance alone, as the CZII challenge did: no occupancy mask is needed.

    A particle is found if a pick of its class lies within `reach` of its radius; further picks of the same particle
    count as false. Hits are summed over the tomograms, F-beta is taken for each class, then the weighted mean.

    Parameters
    ----------
    picks, truth
        One list for each tomogram, in the same order; positions in voxels.
    radii
        Å, of each class to be scored; other classes are left out.
    voxel_size
        Å.
    weights
        Of each class; 1 for those not named. 0 leaves a class out.
    beta
        Recall counts `beta` times as much as precision.
    reach
        Share of the radius.

    Returns
    -------
    Within [0, 1]; a class without particles and without picks counts 0, as published.

    Raises
    ------
    ValueError
        If the lists differ in number, picks name a class of `radii` or `truth` in other letters, or a radius, a weight
        or a setting cannot be.

    References
    ----------
    Peck et al., *A real-world phantom dataset to spur innovation in cryoET data annotation*, Nature Methods (2025);
    the CZII challenge's metric.
    """
    found_in = [picks] if isinstance(picks, ParticleList) else list(picks)
    true_in = [truth] if isinstance(truth, ParticleList) else list(truth)
    if len(found_in) != len(true_in):
        raise ValueError(f"expected picks of each of {len(true_in)} tomograms, got {len(found_in)} lists")
    check_positive("voxel_size", voxel_size)
    check_positive("beta", beta)
    check_positive("reach", reach)
    shares = {name: 1.0 if weights is None else float(weights.get(name, 1.0)) for name in radii}
    for name, radius in radii.items():
        check_positive(f"radii[{name!r}]", radius)
        check_positive(f"weights[{name!r}]", shares[name], zero=True)
    known = {*radii, *(name for one in true_in for name in one.names)}
    unknown = sorted({name for one in found_in for name in one.names} - known)
    spelled = {name.lower(): name for name in known}
    for name in unknown:
        if name.lower() in spelled:
            raise ValueError(f"expected picks of {spelled[name.lower()]!r} to be called so, got {name!r}")
    if sum(shares.values()) == 0:
        raise ValueError(f"expected a class with a weight of more than 0, got {shares}; set `weights` or `radii`")
    total = 0.0
    for name, radius in radii.items():
        counts = [
            _hits(found, true, name, reach * radius / voxel_size) for found, true in zip(found_in, true_in, strict=True)
        ]
        hits, candidates, particles = (sum(column) for column in zip(*counts, strict=True))
        # (1 + β²) TP / ((1 + β²) TP + FP + β² FN)
        total += shares[name] * _ratio((1 + beta**2) * hits, candidates + beta**2 * particles)
    return total / sum(shares.values())


def _labels(folder: Path, truth: ParticleList) -> tuple[str, ...]:
    for path in (folder / "class_conversion_table.txt", folder.parent / "class_conversion_table.txt"):
        if path.is_file():
            return (BACKGROUND, *read_class_conversion_table(path).values())
    return (BACKGROUND, *dict.fromkeys(truth.names))


def _known(name: str, labels: Sequence[str], source: str) -> str:
    """Return the folder's own spelling of a class."""
    spelled = {label.lower(): label for label in labels[1:]}
    if name.lower() not in spelled:
        raise FileFormatError(f"{source}: expected classes among {', '.join(labels[1:])}, got {name!r}")
    return spelled[name.lower()]


def _dilated_occupancy(path: Path, particles: int) -> npt.NDArray[np.int64]:
    from skimage.morphology import dilation

    occupancy, _ = read_mrc(path)
    mask: npt.NDArray[np.int64] = dilation(occupancy.numpy()).astype(np.int64)
    if mask.size and not 0 <= int(mask.min()) <= int(mask.max()) <= particles:
        raise FileFormatError(
            f"{path}: expected rows 0 to {particles} of particle_locations.txt, got {mask.min()} to {mask.max()}"
        )
    return mask


def _voxels(positions: npt.NDArray[np.float64], shape: Sequence[int]) -> tuple[npt.NDArray[np.int64], int]:
    """Round places to voxels and move those outside to the border; also say how many were."""
    nearest = np.rint(positions).astype(np.int64)
    inside = np.clip(nearest, 0, np.array(shape) - 1)
    return inside, int((inside != nearest).any(axis=1).sum())


def _first_picks(hit: npt.NDArray[np.int64], particles: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each particle the first pick that hits it, -1 for none, and how many do."""
    firsts = np.full(particles, -1, dtype=np.int64)
    rows, first = np.unique(hit, return_index=True)
    firsts[rows[rows > 0] - 1] = first[rows > 0]
    return firsts, np.bincount(hit, minlength=particles + 1)[1:].astype(np.int64)


def _rows(firsts: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_]) -> list[int]:
    rows: list[int] = np.flatnonzero(kept & (firsts >= 0)).tolist()
    return rows


def _class_of(pick: int, chosen: Sequence[str], left_out: Collection[str], background: str) -> str:
    if pick < 0 or chosen[pick].lower() in left_out:
        return background
    return chosen[pick]


def _confusion(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> npt.NDArray[np.int64]:
    place = {name: index for index, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    for actual, predicted in pairs:
        matrix[place[actual], place[predicted]] += 1
    return matrix


def _per_class(confusion: npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, ClassScore]:
    scores = {}
    for index, name in enumerate(names):
        hits = int(confusion[index, index])
        particles, picks = int(confusion[index].sum()), int(confusion[:, index].sum())
        if particles or picks:
            scores[name] = ClassScore(
                precision=hits / picks if picks else None,
                recall=hits / particles if particles else None,
                f1=2 * hits / (particles + picks),
            )
    return scores


def _hits(picks: ParticleList, truth: ParticleList, name: str, reach: float) -> tuple[int, int, int]:
    """Count particles of a class that are found, its picks, and its particles."""
    from scipy.spatial import KDTree

    candidates = picks.positions[[other == name for other in picks.names]]
    particles = truth.positions[[other == name for other in truth.names]]
    if not len(candidates) or not len(particles):
        return 0, len(candidates), len(particles)
    distances, _ = KDTree(candidates).query(particles)
    return int((distances <= reach).sum()), len(candidates), len(particles)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
