"""Scored picks from probabilities: where a sphere of the particle's size is full, and what is around it is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
import torch
from torch import Tensor
from torch.nn import functional

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_fraction, check_ndim, check_positive
from faket_aug.picking.clustering import Picks

#: Peaks with less are not listed: a network may be little certain in real tomograms, and be right all the same.
LEAST_SCORE = 0.002
#: Of each class, no more than these are listed, the best ones.
MOST_PEAKS = 20_000
#: The shell around a sphere reaches to so many of its radii.
SHELL = 1.5
#: A blob of voxels that are more likely particle than not is large if it holds so many particles.
LARGE_BLOB = 3.0
#: Voxels of a block that is looked at at once; a block takes some 40 bytes for each.
BLOCK = 2**24
#: Times that a pick is moved to the centre of what is around it.
_MOVES = 2


@dataclass(frozen=True, kw_only=True)
class Sphere:
    """What a class's particles look like in probabilities.

    Parameters
    ----------
    radius
        Voxels, of the sphere that is labelled.
    distance
        Voxels; two picks are not nearer.
    """

    radius: float
    distance: float

    def __post_init__(self) -> None:
        check_positive("radius", self.radius)
        check_positive("distance", self.distance)

    @property
    def volume(self) -> float:
        """Voxels of the sphere."""
        return 4 / 3 * math.pi * self.radius**3


def spheres_of(radii: Mapping[int, float], *, target_radius: float, voxel_size: float) -> dict[int, Sphere]:
    """Make the spheres of classes.

    Parameters
    ----------
    radii
        Å, of the particles, by class number.
    target_radius
        Share of the radius that is labelled.
    voxel_size
        Å.
    """
    check_positive("voxel_size", voxel_size)
    check_positive("target_radius", target_radius)
    return {
        number: Sphere(radius=max(radius * target_radius / voxel_size, 1.0), distance=max(radius / voxel_size, 1.0))
        for number, radius in radii.items()
    }


def find_peaks(
    probabilities: Tensor,
    spheres: Mapping[int, Sphere],
    *,
    least_score: float = LEAST_SCORE,
    within: Tensor | None = None,
) -> Picks:
    """Find the places that look like a particle: local maxima of a score.

    The score of a place is the mean probability within the sphere, less that of the shell around it. So a sphere on its
    own has a score of up to 1, and a place within a thick region that is all labelled (a cell's side, a membrane) one
    near 0. Picks are kept apart by the radius, those of two classes by the mean of both.

    Parameters
    ----------
    probabilities
        `(class, z, y, x)` of the classes from 1 on, floating point, from `class_probabilities`.
    spheres
        What each class's particles look like; classes without one are left out.
    least_score
        Peaks with less are not listed, and 20,000 of each class at most.
    within
        `(z, y, x)`, bool: where picks may lie; by default everywhere.

    Returns
    -------
    The best first, at the centre of what is likely around them. Sizes are the voxels that the sphere holds, as the sum
    of their probabilities.

    Raises
    ------
    ValueError
        If there is a sphere of a class that has no probabilities.
    """
    check_ndim("probabilities", probabilities, "class z y x")
    check_fraction("least_score", least_score)
    unknown = [number for number in spheres if not 1 <= number <= len(probabilities)]
    if unknown:
        raise ValueError(f"expected spheres of the classes 1 to {len(probabilities)}, got {unknown}")
    numbers, places, sizes, scores = [], [], [], []
    for number, sphere in spheres.items():
        found = _class_peaks(probabilities[number - 1], sphere, least_score, within)
        for place, size, score in found:
            numbers.append(np.full(len(score), number))
            places.append(place)
            sizes.append(size)
            scores.append(score)
    if not numbers:
        return no_picks()
    every = Picks(
        classes=np.concatenate(numbers).astype(np.int64),
        positions=np.concatenate(places).astype(np.float64),
        sizes=np.rint(np.concatenate(sizes)).astype(np.int64),
        scores=np.concatenate(scores).astype(np.float64).clip(0.0, 1.0),
    )
    # Two maxima of one blob may have one centre.
    return keep_apart(_centered(probabilities, spheres, keep_apart(every, spheres)), spheres)


def no_picks() -> Picks:
    """Return an empty list of picks with scores."""
    none = np.zeros(0, dtype=np.int64)
    return Picks(classes=none, positions=np.zeros((0, 3)), sizes=none, scores=np.zeros(0))


def keep_apart(picks: Picks, spheres: Mapping[int, Sphere]) -> Picks:
    """Take picks from the best on, unless one that was taken is nearer than the mean of both distances."""
    from scipy.spatial import KDTree

    assert picks.scores is not None, "only picks with scores have a best one"
    order = np.lexsort((*picks.positions.T[::-1], -picks.scores))
    picks = picks.chosen(order[: MOST_PEAKS * len(spheres)])
    if not len(picks):
        return picks
    distances = np.array([spheres[int(number)].distance for number in picks.classes])
    tree, free, chosen = KDTree(picks.positions), np.ones(len(picks), dtype=bool), []
    most = float(distances.max())
    for row, place in enumerate(picks.positions):
        if free[row]:
            chosen.append(row)
            near = np.array(tree.query_ball_point(place, (distances[row] + most) / 2), dtype=np.int64)
            gaps = np.linalg.norm(picks.positions[near] - place, axis=1)
            free[near[gaps < (distances[row] + distances[near]) / 2]] = False
    return picks.chosen(np.array(chosen, dtype=np.int64))


def score_places(
    probabilities: Tensor, spheres: Mapping[int, Sphere], classes: IntArray, positions: FloatArray
) -> FloatArray:
    """Score places that another method found, as `find_peaks` scores its own.

    Parameters
    ----------
    probabilities, spheres
        As for `find_peaks`.
    classes, positions
        `(n,)` and `(n, 3)`, (z, y, x) in voxels.
    """
    weights = {number: _weights(sphere) for number, sphere in spheres.items()}
    scores = np.zeros(len(classes))
    limits = np.array(probabilities.shape[1:])
    for row, (number, place) in enumerate(zip(classes.tolist(), positions, strict=True)):
        inner, outer = weights[number]
        reach = len(inner) // 2
        low = np.rint(place).astype(np.int64) - reach
        begin, end = low.clip(0, limits), (low + len(inner)).clip(0, limits)
        if (end <= begin).any():
            continue
        box = tuple(slice(int(b), int(e)) for b, e in zip(begin, end, strict=True))
        own = tuple(slice(int(b - s), int(e - s)) for b, e, s in zip(begin, end, low, strict=True))
        values = probabilities[(number - 1, *box)].to(torch.float32)
        full, around = (float((values * one[own].to(values.device)).sum()) for one in (inner, outer))
        scores[row] = full - around
    return scores.clip(0.0, 1.0)


def _centered(probabilities: Tensor, spheres: Mapping[int, Sphere], picks: Picks) -> Picks:
    """Move each pick to the centre of mass of what is likely within the particle's radius, by half of it at most.

    Where more is labelled than the sphere, its maximum is a plateau.
    """
    positions = picks.positions.copy()
    limits = np.array(probabilities.shape[1:])
    for row, number in enumerate(picks.classes.tolist()):
        radius = spheres[number].distance
        place = positions[row]
        for _ in range(_MOVES):
            low = np.ceil(place - radius).astype(np.int64).clip(0, limits - 1)
            high = (np.floor(place + radius).astype(np.int64) + 1).clip(low + 1, limits)
            box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
            steps = [np.arange(a, b) - at for a, b, at in zip(low, high, place, strict=True)]
            near = sum(np.ix_(*(step**2 for step in steps))) <= radius**2
            weights = probabilities[(number - 1, *box)].to(torch.float32).cpu().numpy() * near
            mass = float(weights.sum())
            if mass <= 0:
                break
            shift = np.array([(weights * step).sum() for step in np.ix_(*steps)]) / mass
            place = place + shift
        if np.linalg.norm(place - positions[row]) <= radius / 2:
            positions[row] = place
    return replace(picks, positions=positions)


# Blobs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Blobs:
    """Connected pieces of voxels that are more likely one class than not.

    Parameters
    ----------
    numbers
        `(z, y, x)`, int32: which piece; 0 for none.
    sizes
        `(n + 1,)`, voxels of each.
    """

    numbers: npt.NDArray[Any]
    sizes: IntArray

    @classmethod
    def of(cls, probability: Tensor) -> Blobs:
        """Find those of a class `(z, y, x)`."""
        from scipy import ndimage

        likely = (probability > 0.5).cpu().numpy()
        numbers, count = ndimage.label(likely, structure=np.ones((3, 3, 3), dtype=int))
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)
        sizes[0] = 0
        return cls(numbers=numbers, sizes=sizes)

    def at(self, positions: FloatArray) -> IntArray:
        """Return the size of the piece at each place, 0 where there is none."""
        limits = np.array(self.numbers.shape) - 1
        nearest = np.rint(positions).astype(np.int64).clip(0, limits)
        sizes: IntArray = self.sizes[self.numbers[tuple(nearest.T)]]
        return sizes


def in_large_blobs(
    probabilities: Tensor, spheres: Mapping[int, Sphere], picks: Picks, *, large: float = LARGE_BLOB
) -> npt.NDArray[np.bool_]:
    """Tell which picks lie in a blob of more than `large` particles of their class, `(n,)`.

    Crowded particles may touch; but so does what is no particle: the side of a cell, a membrane.
    """
    found = np.zeros(len(picks), dtype=bool)
    for number in np.unique(picks.classes).tolist():
        own = picks.classes == number
        sizes = Blobs.of(probabilities[number - 1]).at(picks.positions[own])
        found[own] = sizes > large * spheres[number].volume
    return found


# Block by block -------------------------------------------------------------------------------------------------------


def _weights(sphere: Sphere) -> tuple[Tensor, Tensor]:
    """Weights `(n, n, n)` of means within the sphere and within the shell around it."""
    reach = math.ceil(SHELL * sphere.radius)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32) ** 2
    distance = (steps[:, None, None] + steps[:, None] + steps).sqrt()
    # Voxels on the border count by about their part within.
    inner = (sphere.radius + 0.5 - distance).clamp(0, 1)
    outer = (SHELL * sphere.radius + 0.5 - distance).clamp(0, 1) - inner
    return inner / inner.sum(), outer / outer.sum()


def _class_peaks(
    probability: Tensor, sphere: Sphere, least_score: float, within: Tensor | None
) -> Iterator[tuple[FloatArray, FloatArray, FloatArray]]:
    """Find the peaks of a class, block by block along y: positions, voxels within the sphere, scores."""
    depth, height, width = probability.shape
    kernels = _weights(sphere)
    reach, apart = len(kernels[0]) // 2, max(1, math.floor(sphere.distance / math.sqrt(3)))
    margin = reach + apart
    rows = max(BLOCK // ((depth + 2 * reach) * (width + 2 * reach)) - 2 * margin, margin)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        low, high = max(start - margin, 0), min(stop + margin, height)
        block = probability[:, low:high].to(torch.float32)
        if float(block.max()) <= least_score:
            continue
        full, around = _means(block, kernels)
        score = full - around
        peak = (score == _highest(score, apart)) & (score >= least_score)
        peak[:, : start - low] = False
        peak[:, stop - low :] = False
        if within is not None:
            peak &= within[:, low:high]
        found = torch.nonzero(peak).cpu().numpy()
        at = tuple(found.T)
        values = score.cpu().numpy()
        places = refined(values, found)
        places[:, 1] += low
        yield places, full.cpu().numpy()[at] * sphere.volume, values[at].astype(np.float64)


def _means(block: Tensor, kernels: Sequence[Tensor]) -> list[Tensor]:
    """Convolve a block with kernels; what lies outside is 0."""
    reach = len(kernels[0]) // 2
    shape = tuple(scipy.fft.next_fast_len(n + 2 * reach, real=True) for n in block.shape)
    spectrum = torch.fft.rfftn(block, s=shape)
    inner = tuple(slice(reach, reach + n) for n in block.shape)
    found = []
    for kernel in kernels:
        product = torch.fft.rfftn(kernel.to(block.device), s=shape).mul_(spectrum)
        found.append(torch.fft.irfftn(product, s=shape)[inner].clamp_(0, 1))
    return found


def _highest(score: Tensor, reach: int) -> Tensor:
    """Return the largest value within a cube around each voxel, one axis after the other."""
    for axis in range(3):
        window, padding = [1, 1, 1], [0, 0, 0]
        window[axis], padding[axis] = 2 * reach + 1, reach
        score = functional.max_pool3d(score[None], window, stride=1, padding=padding)[0]
    return score


def refined(values: npt.NDArray[np.float32], found: IntArray) -> FloatArray:
    """Move each maximum `(n, 3)` to that of a parabola along each axis, by half a voxel at most."""
    result = found.astype(np.float64)
    for axis, size in enumerate(values.shape):
        step = np.eye(3, dtype=np.int64)[axis]
        inner = (found[:, axis] > 0) & (found[:, axis] < size - 1)
        at = found[inner]
        low, middle, high = (values[tuple((at + move * step).T)].astype(np.float64) for move in (-1, 0, 1))
        bend = low - 2 * middle + high
        moved = np.where(bend < 0, (low - high) / (2 * np.where(bend < 0, bend, 1.0)), 0.0)
        result[inner, axis] += moved.clip(-0.5, 0.5)
    return result
