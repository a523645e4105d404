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
#: A piece of another class with less than this share of its neighbour's voxels is a patch of the neighbour.
HEAL = 0.5
#: Voxels of one piece that the modes are found from.
_LARGEST_PIECE = 20_000
_MOST_STEPS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Picks:
    """Particles found in a tomogram, the largest first.

    Parameters
    ----------
    classes
        `(n,)`, class numbers.
    positions
        `(n, 3)`, (z, y, x) in voxels: the mean of the particle's voxels.
    sizes
        `(n,)`, voxels: how sure a pick is.
    """

    classes: IntArray
    positions: FloatArray
    sizes: IntArray

    def __post_init__(self) -> None:
        count = len(self.classes)
        shapes = (self.classes.shape, self.positions.shape, self.sizes.shape)
        if shapes != ((count,), (count, 3), (count,)):
            raise ValueError(f"expected picks of shapes (n,), (n, 3) and (n,), got {shapes}")

    def __len__(self) -> int:
        return len(self.classes)

    def larger_than(self, min_sizes: int | Mapping[int, int]) -> Self:
        """Return the picks of at least so many voxels; with a mapping, by class (classes not named keep all)."""
        if isinstance(min_sizes, Mapping):
            least = np.array([min_sizes.get(int(number), 0) for number in self.classes], dtype=np.int64)
        else:
            least = np.full(len(self), min_sizes)
        keep = self.sizes >= least
        return type(self)(classes=self.classes[keep], positions=self.positions[keep], sizes=self.sizes[keep])

    def particles(self, class_names: Mapping[int, str]) -> ParticleList:
        """Name the classes; what every format of particle lists is written from.

        Raises
        ------
        ValueError
            If a class has no name.
        """
        unknown = sorted({int(number) for number in self.classes} - set(class_names))
        if unknown:
            raise ValueError(f"expected names of all classes in `class_names`, got none for {unknown}")
        names = tuple(class_names[int(number)] for number in self.classes)
        return ParticleList(names, self.positions, np.full((len(self), 3, 3), np.nan))


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
        `(z, y, x)`, whole numbers, 0 is background; from `segment`.
    method
        `"components"`: voxels of one class that touch (also by edges and corners) are a particle, and with it small
        patches of other classes (see `heal`); fast, and neighbours of one class that touch become one.
        `"mean-shift"`: DeepFinder's. Voxels of all classes together flow to the modes of their density, each mode is a
        particle, and most of its voxels give its class; it parts neighbours that touch, and heals particles labelled in
        patches of several classes. Pieces that do not touch do not see each other, which makes it fast.
    bandwidth
        Of the mean shift, voxels; about the radius of the smallest particles. Particles whose centres are nearer than
        that become one; much larger ones may be parted.
    heal
        Of the components: a network labels parts of a particle as another class. A piece that touches a larger one of
        another class, and has less than this share of its voxels, is a part of that; where several do, of the one with
        the most contact. 0 leaves all pieces apart.
    min_sizes
        Voxels that a pick has at least; one number, or one for each class (`choose_min_sizes` finds them).
    ignore
        Classes that are no particles (membranes, fiducials).

    Returns
    -------
    The picks, the largest first; none for labels without particles.

    Raises
    ------
    ValueError
        For settings that cannot be.

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


#: A class number, a place (z, y, x), a number of voxels.
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
    """For each voxel of a piece of several classes, to which part of it it belongs, and that part's class."""
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
    """Which numbered parts touch, and by how many pairs of voxels."""
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
    """For each voxel of a piece, to which mode of their density it belongs."""
    from sklearn.cluster import MeanShift

    if 2 * np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).max() <= bandwidth:
        # Every voxel sees all the others: the first step ends in their mean.
        return np.zeros(len(voxels), dtype=np.int64)
    # Seeds on a grid of the bandwidth, as DeepFinder: a seed for each voxel gives the same modes, much later. Of a
    # piece without end, as a network labels it that has learned little, a part of the voxels shows where it is dense.
    part = voxels[:: math.ceil(len(voxels) / _LARGEST_PIECE)]
    shift = MeanShift(bandwidth=bandwidth, bin_seeding=True, max_iter=_MOST_STEPS).fit(part)
    return np.asarray(shift.labels_ if len(part) == len(voxels) else shift.predict(voxels), dtype=np.int64)
