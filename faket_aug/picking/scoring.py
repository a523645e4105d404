"""Scores of picks: by an occupancy mask, as in the SHREC challenge, or by distances, as in the CZII challenge."""

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
#: If these classes are skipped, SHREC's evaluation does not count them among the particles to be found. Vesicles that
#: are skipped still count. Its authors chose so and FakET kept it; other counts could not be compared.
_TAKEN_OUT = ("4v94",)
#: Classes that the SHREC challenge of 2021 skipped.
SHREC_CHALLENGE_SKIP = ("4V94", "vesicle")
CZII_BETA = 4.0
#: Share of a particle's radius within which a pick hits it.
CZII_REACH = 0.5


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Precision, recall and F1 of one class.

    Parameters
    ----------
    precision
        Within [0, 1]; `None` if no pick has this class.
    recall
        Within [0, 1]; `None` if no particle has this class.
    f1
        Within [0, 1].
    """

    precision: float | None
    recall: float | None
    f1: float


@dataclass(frozen=True, kw_only=True)
class ShrecScore:
    """The score of a list of picks by SHREC's evaluation.

    Parameters
    ----------
    picks
        Number of picks.
    particles
        Number of particles to be found.
    found, missed
        Number of particles that at least one pick hits, and that no pick hits.
    false_positives
        Number of picks that hit no particle.
    double_hits
        Number of particles that more than one pick hits.
    outside
        Number of picks outside the volume. They are moved to the nearest voxel.
    localization_recall, localization_precision, localization_f1
        Of the positions alone, whatever the class.
    mean_distance
        Mean distance between a particle and its first pick, in voxels; NaN if no particle was found.
    macro_f1
        Mean F1 of the classes. As published, the background counts as a class with F1 0 if a particle was missed.
    accuracy
        Share of the particles that are found with the right class.
    per_class
        The score of each class that occurs among particles or picks.
    confusion
        `(class, class)`: the class of the particle in rows, of its first pick in columns, in the order of `labels`. A
        particle that is not found counts as background.
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
    """Score picks against a specimen in SHREC's layout, by the evaluation of SHREC 2021 with FakET's two corrections.

    The occupancy mask is dilated by one voxel along each axis. A pick hits the particle in whose mask it lies. If
    several picks hit a particle, the first one in the list gives its class.

    Parameters
    ----------
    picks
        SHREC's text file (`name x y z ...`), or particles in memory. Upper and lower case do not matter in names.
    folder
        The folder of the model. It holds `particle_locations.txt` and `occupancy_mask.mrc`. It, or the folder above,
        may hold `class_conversion_table.txt`; without this file the classes are those of the particles.
    skip
        Classes to leave out. `SHREC_CHALLENGE_SKIP` gives the table of the challenge. If a particle of another class
        was picked as one of these, it counts as background.

    Returns
    -------
    The score. Without picks or particles its rates are 0.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If a file is missing or wrong, the folder does not know the class of a pick, or a voxel of the mask belongs to
        no particle of the list.

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
    confusion, per_class = _confusion(pairs, names)
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
    """Find the smallest size that picks of each class should have: it gives the best F1 on a validation tomogram.

    Parameters
    ----------
    picks
        All picks in the validation tomogram, whatever their size.
    folder
        The folder of its model, as for `evaluate_shrec`.
    class_names
        Names of the class numbers of the picks.
    skip
        Classes for which no size is wanted.

    Returns
    -------
    The smallest size in voxels, by class number, for `Picks.larger_than`. Of equally good sizes it is the smallest. If
    no pick of a class hits a particle, the size is larger than all of them.

    Raises
    ------
    FileNotFoundError, FileFormatError, ValueError
        As `evaluate_shrec`, or if a class of the picks has no name.
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
    """Return the smallest size with the best F1. Each pick has a size and the particle that it hits, 0 for none."""
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
    """Score picks by their distances to the particles, as in the CZII challenge. No occupancy mask is needed.

    A particle is found if a pick of its class is near: the distance is at most `reach` times its radius. More picks
    near the same particle count as false. Hits are summed over the tomograms. Then F-beta is computed for each class,
    and the weighted mean is taken.

    Parameters
    ----------
    picks, truth
        One list for each tomogram, in the same order, with positions in voxels.
    radii
        Radius of each class that is scored, in Å. Other classes are left out.
    voxel_size
        Voxel size in Å.
    weights
        Weight of each class; 1 for a class that is not named. A weight of 0 leaves a class out.
    beta
        Recall counts `beta` times as much as precision.
    reach
        Share of the radius within which a pick finds a particle.

    Returns
    -------
    The score, within [0, 1]. A class without particles and without picks counts 0, as published.

    Raises
    ------
    ValueError
        If there are not as many lists of picks as of particles, a class of the picks is spelled in another case than in
        `radii` or `truth`, or a radius, a weight or a setting is impossible.

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
            raise ValueError(f"expected picks of the class {spelled[name.lower()]!r}, got {name!r}; spell it the same")
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
    """Round positions to voxels and move those outside to the border; also count these."""
    nearest = np.rint(positions).astype(np.int64)
    inside = np.clip(nearest, 0, np.array(shape) - 1)
    return inside, int((inside != nearest).any(axis=1).sum())


def _first_picks(hit: npt.NDArray[np.int64], particles: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the first pick that hits each particle, -1 for none, and count the picks that do."""
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


def _confusion(
    pairs: Sequence[tuple[str, str]], names: Sequence[str]
) -> tuple[npt.NDArray[np.int64], dict[str, ClassScore]]:
    """Compare the true class of each particle with the one that was found."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if not pairs:
        # scikit-learn refuses empty lists.
        return np.zeros((len(names), len(names)), dtype=np.int64), {}
    actual, found = zip(*pairs, strict=True)
    rates = precision_recall_fscore_support(actual, found, labels=names, zero_division=np.nan)
    scores = {
        name: ClassScore(precision=_known_rate(precision), recall=_known_rate(recall), f1=float(f1))
        for name, precision, recall, f1 in zip(names, *rates[:3], strict=True)
        if not np.isnan(f1)
    }
    return np.asarray(confusion_matrix(actual, found, labels=names), dtype=np.int64), scores


def _known_rate(rate: float) -> float | None:
    return None if np.isnan(rate) else float(rate)


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
