"""Scored picks from probabilities, by any of the methods."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import check_choice, check_ndim
from faket_aug.picking import clustering
from faket_aug.picking.clustering import Picks, pick
from faket_aug.picking.peaks import (
    LARGE_BLOB,
    LEAST_SCORE,
    Sphere,
    find_peaks,
    in_large_blobs,
    keep_apart,
    score_places,
)

PEAKS = "peaks"
METHODS = (PEAKS, *clustering.METHODS)
#: Sections that are labelled together.
_SECTIONS = 16


def locate(
    probabilities: Tensor,
    spheres: Mapping[int, Sphere],
    *,
    method: str = PEAKS,
    least_score: float = LEAST_SCORE,
    within: Tensor | None = None,
) -> Picks:
    """Find particles in probabilities, each with a score.

    Parameters
    ----------
    probabilities
        `(class, z, y, x)` of the classes from 1 on, from `class_probabilities`.
    spheres
        What each class's particles look like, from `spheres_of`.
    method
        `"peaks"`: where a sphere of the particle's size is full and the shell around it is not (`find_peaks`).
        `"components"` and `"mean-shift"`: pieces of the voxels' most likely classes (`pick`, with the smallest radius
        as bandwidth), with the same score; a piece of more than three particles is split by its peaks.
    least_score
        Picks with less are not listed.
    within
        `(z, y, x)`, bool: where picks may lie; by default everywhere.

    Returns
    -------
    The best first.
    """
    check_ndim("probabilities", probabilities, "class z y x")
    check_choice("method", method, METHODS)
    peaks = find_peaks(probabilities, spheres, least_score=least_score, within=within)
    if method == PEAKS or not spheres:
        return peaks
    others = tuple(number for number in range(1, len(probabilities) + 1) if number not in spheres)
    found = pick(
        most_likely(probabilities),
        method=method,
        bandwidth=min(one.radius for one in spheres.values()),
        ignore=others,
    )
    volumes = np.array([spheres[int(number)].volume for number in found.classes])
    found = found.chosen(found.sizes <= LARGE_BLOB * volumes)
    scores = score_places(probabilities, spheres, found.classes, found.positions)
    split = peaks.chosen(in_large_blobs(probabilities, spheres, peaks))
    assert split.scores is not None, "peaks have scores"
    both = Picks(
        classes=np.concatenate([found.classes, split.classes]),
        positions=np.concatenate([found.positions, split.positions]),
        sizes=np.concatenate([found.sizes, split.sizes]),
        scores=np.concatenate([scores, split.scores]),
    )
    inside = np.ones(len(both), dtype=bool)
    if within is not None:
        limits = np.array(within.shape) - 1
        nearest = np.rint(both.positions).astype(np.int64).clip(0, limits)
        inside = within.cpu().numpy()[tuple(nearest.T)]
    return keep_apart(both.chosen(inside).above(least_score), spheres)


def most_likely(probabilities: Tensor) -> Tensor:
    """Return the most likely class of each voxel `(z, y, x)`, uint8; the background has what the classes leave."""
    labels = torch.zeros(probabilities.shape[1:], dtype=torch.uint8, device=probabilities.device)
    for start in range(0, len(labels), _SECTIONS):
        part = probabilities[:, start : start + _SECTIONS].float()
        best, number = part.max(dim=0)
        labels[start : start + _SECTIONS] = torch.where(best > 1 - part.sum(dim=0), number + 1, 0).to(labels)
    return labels
