"""Peaks: particles where they are, one for each, and thick regions that are no particles."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.cluster  # noqa: F401  what it does to Python's generator when imported is its own affair
import torch
from torch import Tensor

from faket_aug.picking import peaks
from faket_aug.picking.locating import locate, most_likely
from faket_aug.picking.peaks import Sphere, find_peaks, in_large_blobs, score_places, spheres_of

SHAPE = (30, 64, 70)
PLACES = np.array([[14.0, 20.0, 20.0], [15.0, 20.0, 32.0], [12.0, 50.0, 40.0]])


def _balls(places: np.ndarray, radius: float, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    near = np.min([np.linalg.norm(grid - place, axis=-1) for place in places], axis=0)
    return torch.from_numpy((near <= radius).astype(np.float32))


def test_touching_balls_are_told_apart() -> None:
    """Each ball has one pick at its centre, with a score near 1 where it is alone, and its volume as size."""
    found = find_peaks(_balls(PLACES, 6.0)[None].half(), {1: Sphere(radius=6.0, distance=6.0)}, least_score=0.3)
    assert len(found) == 3
    for place in PLACES:
        assert np.linalg.norm(found.positions - place, axis=1).min() < 0.6
    assert found.scores is not None
    # The third ball is alone.
    assert np.linalg.norm(found.positions[0] - PLACES[2]) < 0.6
    assert found.scores[0] > 0.9
    assert (found.scores > 0.7).all()
    assert found.sizes[0] == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.1)


def test_thick_regions_are_no_particles() -> None:
    """Half of the volume labelled, and a sheet: nothing there scores like a particle."""
    volume = _balls(PLACES[2:], 5.0)
    volume[:, :, 55:] = 1.0
    volume[25:29] = 1.0
    found = find_peaks(volume[None], {1: Sphere(radius=5.0, distance=5.0)})
    assert found.scores is not None
    assert np.linalg.norm(found.positions[0] - PLACES[2]) < 0.6
    assert (found.scores[1:] < 0.55).all()
    assert in_large_blobs(volume[None], {1: Sphere(radius=5.0, distance=5.0)}, found)[1:].all()
    assert not in_large_blobs(volume[None], {1: Sphere(radius=5.0, distance=5.0)}, found)[0]


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    probability = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))[None] * _balls(PLACES, 7.0)
    spheres = {1: Sphere(radius=4.0, distance=4.0)}
    whole = find_peaks(probability, spheres)
    monkeypatch.setattr(peaks, "BLOCK", 30 * 70 * 4)
    parts = find_peaks(probability, spheres)
    assert len(whole) == len(parts) > 3
    assert np.allclose(whole.positions, parts.positions, atol=1e-2)
    assert np.allclose(whole.scores, parts.scores, atol=1e-4)


def test_classes_do_not_overlap() -> None:
    """Where two classes are likely, the better one is picked; elsewhere each has its own."""
    first, second = _balls(PLACES, 6.0), 0.6 * _balls(PLACES[:1] + 1, 6.0)
    found = find_peaks(torch.stack([first, second]), {n: Sphere(radius=6.0, distance=6.0) for n in (1, 2)})
    assert found.above(0.5).classes.tolist() == [1, 1, 1]


def test_picks_lie_within_a_mask() -> None:
    within = torch.zeros(SHAPE, dtype=torch.bool)
    within[:, 40:] = True
    found = find_peaks(_balls(PLACES, 6.0)[None], {1: Sphere(radius=6.0, distance=6.0)}, within=within)
    assert len(found.above(0.5)) == 1
    assert (found.positions[:, 1] > 39).all()


def test_places_of_another_method_get_the_same_scores() -> None:
    probability = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))[None] * _balls(PLACES, 7.0)
    spheres = {1: Sphere(radius=5.0, distance=5.0)}
    found = find_peaks(probability, spheres)
    scores = score_places(probability, spheres, found.classes, found.positions)
    assert np.abs(scores - found.scores)[found.positions[:, 0] > 5].max() < 0.1
    outside = score_places(probability, spheres, np.array([1]), np.array([[-50.0, 0.0, 0.0]]))
    assert outside.tolist() == [0.0]


def test_nothing_there() -> None:
    assert len(find_peaks(torch.zeros((2, *SHAPE)), {1: Sphere(radius=5.0, distance=5.0)})) == 0
    with pytest.raises(ValueError, match="spheres of the classes 1 to 2, got \\[3\\]"):
        find_peaks(torch.zeros((2, *SHAPE)), {3: Sphere(radius=5.0, distance=5.0)})


def test_spheres_follow_from_templates() -> None:
    found = spheres_of({1: 125.0, 2: 5.0}, target_radius=0.6, voxel_size=10.0)
    assert (found[1].radius, found[1].distance) == (7.5, 12.5)
    assert (found[2].radius, found[2].distance) == (1.0, 1.0)


@pytest.mark.parametrize("method", ["components", "mean-shift"])
def test_other_methods_split_what_is_too_large(method: str) -> None:
    """A blob of millions of voxels is no pick in the first row: pieces beyond three particles are split by peaks."""
    volume = _balls(PLACES[2:], 6.0)
    volume[:, :, 55:] = 1.0
    spheres = {1: Sphere(radius=6.0, distance=6.0)}
    found = locate(volume[None], spheres, method=method)
    assert np.linalg.norm(found.positions[0] - PLACES[2]) < 0.6
    assert found.scores is not None
    assert found.scores[0] > 0.9
    assert found.sizes.max() < 3 * spheres[1].volume
    assert len(locate(volume[None], spheres, method=method, within=torch.zeros(SHAPE, dtype=torch.bool))) == 0


def test_most_likely_class() -> None:
    """The background takes a voxel where it has more than each class."""
    probabilities = torch.tensor([[0.4, 0.1, 0.45], [0.3, 0.1, 0.5]]).reshape(2, 1, 1, 3)
    assert most_likely(probabilities).flatten().tolist() == [1, 0, 2]
