"""From labelled voxels to particles: mean shift as DeepFinder does it, or connected components."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_choice, check_count, check_fraction, check_ndim, check_positive
from faket_aug.formats.particles import ParticleList

METHODS = ("components", "mean-shift")
#: DeepFinder's radius of a cluster at 10 Å, voxels.
BANDWIDTH = 5.0
#: A piece with less than this share of the voxels of a neighbour of another class belongs to the neighbour.
HEAL = 0.5
#: The modes of a larger piece are found from about as many of its voxels.
_LARGEST_PIECE = 20_000
_MOST_STEPS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Picks:
    """Particles found in a tomogram: those with scores from the best on, others from the largest on.

    Parameters
    ----------
    classes
        `(n,)`, class numbers.
    positions
        `(n, 3)`, (z, y, x) in voxels: the mean position of the particle's voxels.
    sizes
        `(n,)`, number of voxels. Large picks are more certain than small ones.
    scores
        `(n,)`, within [0, 1], how certain each is; `None` where only the sizes tell.
    """

    classes: IntArray
    positions: FloatArray
    sizes: IntArray
    scores: FloatArray | None = None

    def __post_init__(self) -> None:
        count = len(self.classes)
        shapes = (self.classes.shape, self.positions.shape, self.sizes.shape)
        if shapes != ((count,), (count, 3), (count,)):
            raise ValueError(f"expected picks of shapes (n,), (n, 3) and (n,), got {shapes}")
        if self.scores is not None and self.scores.shape != (count,):
            raise ValueError(f"expected a score for each of {count} picks, got an array of {self.scores.shape}")

    def __len__(self) -> int:
        return len(self.classes)

    def larger_than(self, min_sizes: int | Mapping[int, int]) -> Self:
        """Return the picks that have at least `min_sizes` voxels.

        Parameters
        ----------
        min_sizes
            One number, or one for each class. A class that is not named keeps all of its picks.
        """
        if isinstance(min_sizes, Mapping):
            least = np.array([min_sizes.get(int(number), 0) for number in self.classes], dtype=np.int64)
        else:
            least = np.full(len(self), min_sizes)
        return self.chosen(self.sizes >= least)

    def above(self, thresholds: float | Mapping[int, float]) -> Self:
        """Return the picks whose score is `thresholds` or more.

        Parameters
        ----------
        thresholds
            One number, or one for each class. A class that is not named keeps all of its picks.

        Raises
        ------
        ValueError
            If the picks have no scores.
        """
        if self.scores is None:
            raise ValueError("expected picks with scores, got some without; find them by `find_peaks`")
        if isinstance(thresholds, Mapping):
            least = np.array([thresholds.get(int(number), 0.0) for number in self.classes], dtype=np.float64)
        else:
            least = np.full(len(self), float(thresholds))
        return self.chosen(self.scores >= least)

    def chosen(self, rows: npt.NDArray[Any]) -> Self:
        """Return some picks, by a mask or by their rows."""
        scores = None if self.scores is None else self.scores[rows]
        return type(self)(
            classes=self.classes[rows], positions=self.positions[rows], sizes=self.sizes[rows], scores=scores
        )

    def particles(self, class_names: Mapping[int, str]) -> ParticleList:
        """Return a list of particles with class names, from which all formats are written.

        Raises
        ------
        ValueError
            If a class has no name.
        """
        unknown = sorted({int(number) for number in self.classes} - set(class_names))
        if unknown:
            raise ValueError(f"expected names of all classes in `class_names`, got none for {unknown}")
        names = tuple(class_names[int(number)] for number in self.classes)
        return ParticleList(names, self.positions, np.full((len(self), 3, 3), np.nan), self.scores)


def pick(
    labels: Tensor,
    *,
    method: str = "components",
    bandwidth: float = BANDWIDTH,
    heal: float = HEAL,
    min_sizes: int | Mapping[int, int] = 1,
    ignore: tuple[int, ...] = (),
) -> Picks:
    """Find the particles in a labelled tomogram.

    Parameters
    ----------
    labels
        `(z, y, x)`, class numbers, 0 is background; from `segment`.
    method
        `"components"`: voxels of one class that touch, also by edges and corners, are one particle. Small pieces of
        other classes are joined to it, see `heal`. This is fast, but particles of one class that touch become one.
        `"mean-shift"`, as in DeepFinder: the voxels of all classes together move to the modes of their density. Each
        mode is a particle, and its most frequent class is the particle's. This separates particles that touch, and
        joins the pieces of a particle that was labelled with several classes. Voxels that are not connected are
        treated apart, which is faster.
    bandwidth
        For `"mean-shift"`: the bandwidth in voxels, about the radius of the smallest particles. Particles whose centres
        are nearer than that become one. Much larger particles may be split.
    heal
        For `"components"`: a network may label a part of a particle as another class. A piece is joined to a larger one
        of another class if they touch and it has less than this share of its voxels. If it touches several, it is
        joined to the one with the most contact. 0 joins nothing.
    min_sizes
        The smallest number of voxels of a pick; one number, or one for each class (`choose_min_sizes` finds them).
    ignore
        Class numbers that are no particles (membranes, fiducials).

    Returns
    -------
    The picks, the largest first. There are none if the labels hold no particles.

    Raises
    ------
    ValueError
        If a setting is impossible.

    References
    ----------
    Moebel et al., Nature Methods 18 (2021), Methods; Comaniciu and Meer, IEEE TPAMI 24 (2002), 603-619.
    """
    check_ndim("labels", labels, "z y x")
    check_choice("method", method, METHODS)
    check_positive("bandwidth", bandwidth)
    check_fraction("heal", heal)
    for least in min_sizes.values() if isinstance(min_sizes, Mapping) else (min_sizes,):
        check_count("min_sizes", least, zero=True)
    numbers = labels.detach().cpu().numpy()
    if ignore:
        numbers = np.where(np.isin(numbers, ignore), 0, numbers)
    found = list(_components(numbers, heal) if method == "components" else _mean_shift(numbers, bandwidth))
    order = sorted(range(len(found)), key=lambda i: (-found[i][2], found[i][1]))
    picks = Picks(
        classes=np.array([found[i][0] for i in order], dtype=np.int64),
        positions=np.array([found[i][1] for i in order], dtype=np.float64).reshape(-1, 3),
        sizes=np.array([found[i][2] for i in order], dtype=np.int64),
    )
    return picks.larger_than(min_sizes)


#: A class number, a position (z, y, x), a number of voxels.
_Found = tuple[int, tuple[float, ...], int]


def _pieces(mask: npt.NDArray[Any]) -> Iterator[IntArray]:
    """The voxels `(n, 3)` of each connected piece of a mask."""
    from scipy import ndimage

    pieces, count = ndimage.label(mask, structure=np.ones((3, 3, 3), dtype=int))
    voxels = np.argwhere(mask)
    rows = pieces[mask]
    ends = np.cumsum(np.bincount(rows, minlength=count + 1)[1:])
    yield from np.split(voxels[np.argsort(rows, kind="stable")], ends[:-1]) if count else ()


def _components(numbers: npt.NDArray[Any], heal: float) -> Iterator[_Found]:
    for voxels in _pieces(numbers > 0):
        classes = numbers[tuple(voxels.T)]
        members = np.zeros(len(voxels), dtype=np.int64)
        if (classes != classes[0]).any():
            members, classes = _healed(voxels, classes, heal)
        yield from (_one(voxels[own], classes[own]) for own in _groups(members))


def _one(voxels: IntArray, classes: npt.NDArray[Any]) -> _Found:
    return int(np.bincount(classes).argmax()), tuple(voxels.mean(axis=0).tolist()), len(voxels)


def _groups(members: IntArray) -> Iterator[IntArray]:
    """The rows of each member."""
    order = np.argsort(members, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(members[order])) + 1)


def _healed(voxels: IntArray, classes: npt.NDArray[Any], heal: float) -> tuple[IntArray, IntArray]:
    """Split a piece of several classes into parts: return the part and the class of each of its voxels."""
    from scipy import ndimage

    origin = voxels.min(axis=0)
    rows = tuple((voxels - origin).T)
    parts = np.zeros(voxels.max(axis=0) - origin + 1, dtype=np.int64)
    count, part_classes = 0, [0]
    for number in np.unique(classes).tolist():
        own = np.zeros(parts.shape, dtype=bool)
        own[rows] = classes == number
        found, more = ndimage.label(own, structure=np.ones((3, 3, 3), dtype=int))
        parts[own] = found[own] + count
        count += more
        part_classes += [number] * more
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    whole = np.arange(count + 1)
    most = np.zeros(count + 1, dtype=np.int64)
    for first, second, contact in _contacts(parts):
        small, large = sorted((first, second), key=lambda part: (sizes[part], part))
        if sizes[small] < heal * sizes[large] and contact > most[small]:
            most[small], whole[small] = contact, large
    # The largest first: what a patch belongs to may be a patch itself.
    for part in np.argsort(-sizes, kind="stable"):
        whole[part] = whole[whole[part]]
    members = whole[parts[rows]]
    return members, np.array(part_classes)[members]


def _contacts(parts: IntArray) -> list[tuple[int, int, int]]:
    """Find the pairs of parts that touch, and by how many pairs of voxels."""
    found = []
    for shift in [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]:
        here = parts[tuple(slice(max(0, s), s if s < 0 else None) for s in shift)]
        there = parts[tuple(slice(max(0, -s), -s if s > 0 else None) for s in shift)]
        touch = (here > 0) & (there > 0) & (here != there)
        found.append(np.sort(np.stack([here[touch], there[touch]], axis=1), axis=1))
    pairs, counts = np.unique(np.concatenate(found), axis=0, return_counts=True)
    return [(*pair, count) for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)]


def _mean_shift(numbers: npt.NDArray[Any], bandwidth: float) -> Iterator[_Found]:
    for voxels in _pieces(numbers > 0):
        classes = numbers[tuple(voxels.T)]
        members = _modes(voxels, bandwidth)
        # The mode itself wanders where a particle is larger than the window; the mean of its voxels does not.
        yield from (_one(voxels[own], classes[own]) for own in _groups(members))


def _modes(voxels: IntArray, bandwidth: float) -> IntArray:
    """Return the mode of the density that each voxel of a piece belongs to."""
    from sklearn.cluster import MeanShift

    if 2 * np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).max() <= bandwidth:
        # Every voxel sees all the others: the first step ends in their mean.
        return np.zeros(len(voxels), dtype=np.int64)
    # Seeds lie on a grid of the bandwidth, as in DeepFinder: a seed for each voxel gives the same modes, but is slow.
    # A network that has learned little labels huge pieces: there, a part of the voxels shows where they are dense.
    part = voxels[:: math.ceil(len(voxels) / _LARGEST_PIECE)]
    shift = MeanShift(bandwidth=bandwidth, bin_seeding=True, max_iter=_MOST_STEPS).fit(part)
    return np.asarray(shift.labels_ if len(part) == len(voxels) else shift.predict(voxels), dtype=np.int64)
