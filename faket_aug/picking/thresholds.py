"""From which score on picks count: by particles that are known, or by what is found in noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_fraction, check_positive
from faket_aug.formats.particles import ParticleList
from faket_aug.picking.clustering import Picks
from faket_aug.picking.control import Control

#: A pick finds a particle within so many of its radii.
REACH = 1.0


def choose_thresholds(
    picks: Picks | Sequence[Picks],
    truth: ParticleList | Sequence[ParticleList],
    *,
    class_names: Mapping[int, str],
    radii: Mapping[int, float],
    voxel_size: float,
    beta: float = 1.0,
    reach: float = REACH,
) -> dict[int, float]:
    """Find the score from which on picks of each class should count: it gives the best F-beta.

    The best pick takes the nearest particle of its class that is free, then the second, and so on. Hits are summed over
    the tomograms.

    Parameters
    ----------
    picks
        All picks with their scores, also poor ones, of a tomogram or of several.
    truth
        The particles of each tomogram, with positions in voxels.
    class_names
        Names of the class numbers.
    radii
        Å, of the particles of each class number.
    voxel_size
        Å.
    beta
        Recall counts `beta` times as much as precision.
    reach
        A pick finds a particle within so many radii.

    Returns
    -------
    Thresholds by class number, half way between the last pick that counts and the next; of equally good ones it is the
    lowest. If no pick of a class finds a particle, the threshold is above all of them. A class without particles in the
    truth has none.

    Raises
    ------
    ValueError
        If there are not as many lists of picks as of particles, or picks have no scores.
    """
    found = [picks] if isinstance(picks, Picks) else list(picks)
    true = [truth] if isinstance(truth, ParticleList) else list(truth)
    if len(found) != len(true):
        raise ValueError(f"expected particles of each of {len(found)} tomograms with picks, got {len(true)} lists")
    check_positive("voxel_size", voxel_size)
    check_positive("beta", beta)
    check_positive("reach", reach)
    thresholds = {}
    for number, name in class_names.items():
        particles = [one.positions[[own == name for own in one.names]] for one in true]
        count = sum(map(len, particles))
        if number > 0 and count:
            check_positive(f"radii[{number}]", radii[number])
            distance = reach * radii[number] / voxel_size
            pairs = [_hits(own, number, places, distance) for own, places in zip(found, particles, strict=True)]
            scores, hits = (np.concatenate(column) for column in zip(*pairs, strict=True))
            thresholds[number] = _best(scores, hits, count, beta)
    return thresholds


def thresholds_by_control(picks: Picks, control: Control, numbers: Iterable[int], *, rate: float) -> dict[int, float]:
    """Find the lowest score of each class at which noise gives at most a share of the picks.

    Parameters
    ----------
    picks
        In the tomogram, with scores.
    control
        What is found in noise.
    numbers
        The classes.
    rate
        Picks in as much noise for each pick in the tomogram, within [0, 1].

    Returns
    -------
    Thresholds by class number. Where no score will do, the threshold is above all picks.
    """
    check_fraction("rate", rate)
    found = {}
    for number in numbers:
        scores = np.sort(_scores_of(picks)[picks.classes == number])[::-1]
        expected = np.array([control.expected(number, score) for score in scores])
        # Of equal scores all count or none.
        counts = len(scores) - np.searchsorted(scores[::-1], scores, side="left")
        good = np.flatnonzero(expected <= rate * counts)
        found[number] = float(scores[good[-1]]) if len(good) else _above(scores)
    return found


def _scores_of(picks: Picks) -> FloatArray:
    if picks.scores is None:
        raise ValueError("expected picks with scores, got some without; find them by `find_peaks`")
    return picks.scores


def _hits(picks: Picks, number: int, particles: FloatArray, distance: float) -> tuple[FloatArray, FloatArray]:
    """Return the scores of a class's picks, the best first, and for each whether it finds a particle."""
    from scipy.spatial import KDTree

    own = picks.classes == number
    scores, places = _scores_of(picks)[own], picks.positions[own]
    order = np.argsort(-scores, kind="stable")
    hits = np.zeros(len(order))
    if len(particles) and len(order):
        tree, free = KDTree(particles), np.ones(len(particles), dtype=bool)
        for row, place in enumerate(places[order]):
            near = [one for one in tree.query_ball_point(place, distance) if free[one]]
            if near:
                nearest = min(near, key=lambda one: float(np.linalg.norm(particles[one] - place)))
                free[nearest] = False
                hits[row] = 1.0
    return np.asarray(scores[order], dtype=np.float64), hits


def _best(scores: FloatArray, hits: FloatArray, particles: int, beta: float) -> float:
    order = np.argsort(-scores, kind="stable")
    scores, total = scores[order], np.cumsum(hits[order])
    if not len(scores) or total[-1] == 0:
        return _above(scores)
    f_beta = (1 + beta**2) * total / (np.arange(1, len(scores) + 1) + beta**2 * particles)
    # A threshold cannot tell equal scores apart.
    last = np.append(scores[1:] < scores[:-1], True)
    f_beta = np.where(last, f_beta, -1.0)
    row = len(scores) - 1 - int(np.argmax(f_beta[::-1]))
    return float(scores[row] if row + 1 == len(scores) else (scores[row] + scores[row + 1]) / 2)


def _above(scores: FloatArray) -> float:
    """Return a number above all scores."""
    return min(math.nextafter(max(float(scores.max(initial=0.0)), 0.0), math.inf), 1.0)
