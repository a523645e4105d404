"""Scores of picks by distance: each pick finds at most one particle of its class, the nearest pairs first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_positive
from faket_aug.formats.particles import ParticleList
from faket_aug.picking.scoring import CZII_BETA

#: Å, within which a pick finds a particle: the CZII challenge's half of a radius, for particles of 20 nm.
DISTANCE = 50.0
#: Pairs are listed up to so many times the distance, for curves.
REACH = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedPicks:
    """Picks of one class beside the particles that they find.

    Parameters
    ----------
    picks, particles
        How many there are.
    distance
        Å, within which a pick finds a particle.
    pairs
        `(n,)`, Å, ascending: distances of a pick and its particle, up to `REACH` times `distance`.
    """

    picks: int
    particles: int
    distance: float
    pairs: FloatArray

    @property
    def hits(self) -> int:
        """How many particles are found."""
        return self.hits_within(self.distance)

    @property
    def precision(self) -> float | None:
        """Share of the picks that find a particle; `None` without picks."""
        return self.hits / self.picks if self.picks else None

    @property
    def recall(self) -> float | None:
        """Share of the particles that are found; `None` without particles."""
        return self.hits / self.particles if self.particles else None

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 without picks or particles."""
        return self.f_beta(1.0)

    @property
    def mean_distance(self) -> float | None:
        """Å, of the particles that are found, from their picks; `None` if none is."""
        return float(self.pairs[: self.hits].mean()) if self.hits else None

    def hits_within(self, distance: float) -> int:
        """Return how many particles are found within another distance, Å, of at most `REACH` times one's own."""
        return int(np.searchsorted(self.pairs, distance, side="right"))

    def f_beta(self, beta: float = CZII_BETA) -> float:
        """Return F-beta, in which recall counts `beta` times as much as precision."""
        check_positive("beta", beta)
        whole = self.picks + beta**2 * self.particles
        return (1 + beta**2) * self.hits / whole if whole else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class DistanceScore:
    """The score of picks by distance.

    Parameters
    ----------
    per_class
        Of each class of the particles. A pick finds a particle of its own class only.
    places
        Of all classes as one: whether the places are right, whatever the class. The distance is the largest of all.
    """

    per_class: Mapping[str, PairedPicks] = field(default_factory=dict)
    places: PairedPicks

    @property
    def mean_f1(self) -> float:
        """Mean F1 of the classes."""
        return float(np.mean([one.f1 for one in self.per_class.values()]))

    def mean_f_beta(self, beta: float = CZII_BETA) -> float:
        """Return the mean F-beta of the classes."""
        return float(np.mean([one.f_beta(beta) for one in self.per_class.values()]))


def score_by_distance(
    picks: ParticleList,
    truth: ParticleList,
    *,
    distance: float | Mapping[str, float] = DISTANCE,
    voxel_size: float,
    classes: Sequence[str] = (),
) -> DistanceScore:
    """Score picks of a tomogram by their distances to its particles.

    Pairs of a pick and a particle of its class are made from the nearest on, and each pick and each particle is in one
    pair at most: a second pick of the same particle is a false one. Where particles are farther apart than two
    distances, the mean F-beta is that of `f_beta_score` (CZII's metric), with the distance as `reach · radius`.

    Parameters
    ----------
    picks, truth
        Picks and particles, with positions in voxels of one tomogram.
    distance
        Within which a pick finds a particle, Å: of all classes, or by class; half the particle's radius is strict.
    voxel_size
        Å.
    classes
        Which classes are scored; by default all of the truth. Others are left out.

    Raises
    ------
    ValueError
        If the truth has no particles of these classes, picks have a class that is not in the truth, or a class has no
        distance.
    """
    check_positive("voxel_size", voxel_size)
    names = _checked_classes([picks], [truth], classes)
    return _scored(picks, truth, names, _distances(distance, names), voxel_size)


def score_tomograms(
    lists: Sequence[tuple[ParticleList, ParticleList]],
    *,
    distance: float | Mapping[str, float] = DISTANCE,
    voxel_sizes: Sequence[float],
    classes: Sequence[str] = (),
) -> tuple[DistanceScore, list[DistanceScore]]:
    """Score the picks of several tomograms, as `score_by_distance` does those of one.

    Parameters
    ----------
    lists
        Picks and particles of each tomogram, with positions in its voxels. A class may be missing in some.
    distance, classes
        As for `score_by_distance`.
    voxel_sizes
        Å, of each tomogram.

    Returns
    -------
    The score of all together, whose hits, picks and particles are sums, and the score of each.

    Raises
    ------
    ValueError
        As `score_by_distance`, of the particles of all tomograms.
    """
    names = _checked_classes([one for one, _ in lists], [one for _, one in lists], classes)
    distances = _distances(distance, names)
    each = [
        _scored(picks, truth, names, distances, size) for (picks, truth), size in zip(lists, voxel_sizes, strict=True)
    ]
    total = DistanceScore(
        per_class={name: _summed([one.per_class[name] for one in each]) for name in names},
        places=_summed([one.places for one in each]),
    )
    return total, each


def _summed(parts: Sequence[PairedPicks]) -> PairedPicks:
    return PairedPicks(
        picks=sum(one.picks for one in parts),
        particles=sum(one.particles for one in parts),
        distance=parts[0].distance,
        pairs=np.sort(np.concatenate([one.pairs for one in parts])),
    )


def _checked_classes(
    picks: Sequence[ParticleList], truth: Sequence[ParticleList], classes: Sequence[str]
) -> tuple[str, ...]:
    """Return the classes that are scored: of all tomograms together."""
    true = tuple(dict.fromkeys(name for one in truth for name in one.names))
    names = tuple(classes) or true
    if missing := [name for name in names if name not in true]:
        there = ", ".join(sorted(true)) or "no particles"
        raise ValueError(f"expected `classes` that the truth has ({there}), got {', '.join(missing)}; leave them out")
    if not names:
        raise ValueError("expected particles in the truth, got none; give another list")
    unknown = sorted({name for one in picks for name in one.names} - set(true))
    if unknown and not classes:
        raise ValueError(
            f"expected picks of classes that the truth has ({', '.join(sorted(true))}), got "
            f"{', '.join(unknown)}; rename them, or set `classes` to those that are to be scored"
        )
    return names


def _scored(
    picks: ParticleList,
    truth: ParticleList,
    names: Sequence[str],
    distances: Mapping[str, float],
    voxel_size: float,
) -> DistanceScore:
    check_positive("voxel_size", voxel_size)
    found, true = (_by_class(one, names, voxel_size) for one in (picks, truth))
    per_class = {name: _paired(found[name], true[name], distances[name]) for name in names}
    together = [np.concatenate([one[name] for name in names]) for one in (found, true)]
    return DistanceScore(per_class=per_class, places=_paired(together[0], together[1], max(distances.values())))


def _distances(distance: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    found = dict(distance) if isinstance(distance, Mapping) else dict.fromkeys(names, distance)
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"expected `distance` of each class, got none of {', '.join(missing)}; add it")
    for name in names:
        check_positive(f"distance[{name!r}]", found[name])
    return {name: float(found[name]) for name in names}


def _by_class(listed: ParticleList, names: Sequence[str], voxel_size: float) -> dict[str, FloatArray]:
    """Return positions `(n, 3)`, Å, of each class."""
    own = np.array(listed.names, dtype=object)
    return {name: listed.positions[own == name].reshape(-1, 3) * voxel_size for name in names}


def _paired(picks: FloatArray, particles: FloatArray, distance: float) -> PairedPicks:
    from scipy.spatial import KDTree

    pairs: list[float] = []
    if len(picks) and len(particles):
        near = KDTree(picks).sparse_distance_matrix(KDTree(particles), REACH * distance, output_type="ndarray")
        taken: tuple[set[int], set[int]] = (set(), set())
        # Cut off at a smaller distance, the pairs are those of that distance: the nearest come first.
        for row in near[np.lexsort((near["j"], near["i"], near["v"]))]:
            pick, particle = int(row["i"]), int(row["j"])
            if pick not in taken[0] and particle not in taken[1]:
                taken[0].add(pick)
                taken[1].add(particle)
                pairs.append(float(row["v"]))
    return PairedPicks(picks=len(picks), particles=len(particles), distance=distance, pairs=np.array(pairs))
