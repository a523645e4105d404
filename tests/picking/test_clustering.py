"""From labelled voxels to particles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import sklearn.cluster  # noqa: F401  what it does to Python's generator when imported is its own affair
import torch
from torch import Tensor

from faket_aug.formats.copick import read_copick_picks
from faket_aug.formats.deepfinder import read_object_list
from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.shrec import read_particle_locations
from faket_aug.formats.star import read_particles_star
from faket_aug.picking import Picks, choose_min_sizes, pick, write_picks

SHAPE = (40, 70, 90)
#: Class, place (z, y, x), radius.
BALLS = (
    *((1, (10, 12, 15), 4), (1, (28, 50, 70), 4), (2, (11, 40, 30), 6), (2, (30, 20, 60), 6)),
    *((3, (20, 60, 12), 3), (3, (8, 8, 80), 3)),
)


def _balls(balls: tuple[tuple[int, tuple[float, ...], float], ...] = BALLS) -> Tensor:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    grid = np.indices(SHAPE).transpose(1, 2, 3, 0)
    for number, center, radius in balls:
        labels[np.linalg.norm(grid - np.array(center), axis=-1) <= radius] = number
    return torch.from_numpy(labels)


@pytest.mark.parametrize("method", ["components", "mean-shift"])
def test_separate_balls(method: str) -> None:
    """All of well separated balls are found, with the right class, within a voxel, and with their size."""
    labels = _balls()
    picks = pick(labels, method=method, bandwidth=5)
    assert len(picks) == len(BALLS)
    assert picks.sizes.tolist() == sorted(picks.sizes.tolist(), reverse=True)
    for number, center, radius in BALLS:
        distance = np.linalg.norm(picks.positions - np.array(center), axis=1)
        nearest = int(distance.argmin())
        assert distance[nearest] < 1.0
        assert picks.classes[nearest] == number
        assert picks.sizes[nearest] == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.2)


def test_mean_shift_parts_neighbours() -> None:
    """Two balls of one class that touch are two particles to mean shift, one to the components."""
    labels = _balls(((1, (20, 30, 30), 5), (1, (20, 30, 39), 5)))
    assert len(pick(labels)) == 1
    picks = pick(labels, method="mean-shift", bandwidth=5)
    assert sorted(np.rint(picks.positions[:, 2]).tolist()) == [30.0, 39.0]


def test_mean_shift_ends_on_a_bad_segmentation() -> None:
    """A solid block, as a network labels it that has learned nothing, is many picks soon, not a run without end."""
    picks = pick(torch.ones((40, 48, 52), dtype=torch.uint8), method="mean-shift", bandwidth=8)
    assert picks.sizes.sum() == 40 * 48 * 52
    assert len(picks) > 10


def test_mean_shift_takes_the_majority() -> None:
    """A particle labelled in patches of two classes is one particle of the larger share."""
    labels = _balls(((1, (20, 30, 30), 5),))
    labels[:, :, 32:][labels[:, :, 32:] == 1] = 2
    picks = pick(labels, method="mean-shift", bandwidth=10)
    assert picks.classes.tolist() == [1]
    assert len(pick(labels, heal=0.0)) == 2


def test_components_heal_patches_of_another_class() -> None:
    """A small patch belongs to the particle that it touches most; what is large, or touches nothing, stays apart."""
    labels = _balls(((1, (20, 30, 30), 5),))
    size = int((labels == 1).sum())
    labels[:, :, 33:][labels[:, :, 33:] == 1] = 2
    labels[:, :, 35:][labels[:, :, 35:] == 2] = 3  # a patch of a patch
    labels[5, 5, 5] = 3
    picks = pick(labels)
    assert picks.classes.tolist() == [1, 3]
    assert picks.sizes.tolist() == [size, 1]
    assert picks.positions[0] == pytest.approx((20, 30, 30))
    patches = int((labels == 2).sum()) / int((labels == 1).sum())
    assert pick(labels, heal=patches).classes.tolist()[:2] == [1, 2]


def test_a_patch_goes_where_it_touches_most() -> None:
    labels = torch.zeros((12, 12, 30), dtype=torch.uint8)
    labels[:, :, :10], labels[:, :, 12:] = 1, 2
    labels[:, :, 10:12] = 3
    labels[:6, :, 12] = 0
    assert pick(labels).sizes.tolist() == [12 * 12 * 18 - 6 * 12, 12 * 12 * 12]


@pytest.mark.parametrize("method", ["components", "mean-shift"])
def test_nothing_there(method: str) -> None:
    picks = pick(torch.zeros(SHAPE, dtype=torch.uint8), method=method)
    assert len(picks) == 0
    assert picks.positions.shape == (0, 3)
    assert len(picks.particles({})) == 0


def test_sizes_and_classes_left_out() -> None:
    labels = _balls()
    assert set(pick(labels, ignore=(2,)).classes.tolist()) == {1, 3}
    assert set(pick(labels, min_sizes=200).classes.tolist()) == {1, 2}
    assert sorted(pick(labels, min_sizes={2: 10**6}).classes.tolist()) == [1, 1, 3, 3]


def test_names() -> None:
    picks = pick(_balls(), min_sizes=500)
    assert picks.particles({2: "large"}).names == ("large", "large")
    with pytest.raises(ValueError, match=r"names of all classes in `class_names`, got none for \[2\]"):
        picks.particles({1: "small"})


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="'components', 'mean-shift', got 'k-means'"):
        pick(_balls(), method="k-means")
    with pytest.raises(ValueError, match="`bandwidth` to be more than 0"):
        pick(_balls(), bandwidth=0)
    with pytest.raises(ValueError, match="`min_sizes` to be a whole number"):
        pick(_balls(), min_sizes=-1)


def test_chosen_sizes(tmp_path: Path) -> None:
    """The size that parts true from false picks of each class; a class that hits nothing is kept out."""
    mask = torch.zeros((4, 9, 30), dtype=torch.int16)
    rows = []
    for index, x in enumerate((3, 9, 15, 21), start=1):
        mask[2, 4, x] = index
        rows.append(f"{'A' if index < 4 else 'B'} {x} 4 2 0 0 0")
    write_mrc(tmp_path / "occupancy_mask.mrc", mask, voxel_size=10.0)
    (tmp_path / "particle_locations.txt").write_text("\n".join(rows) + "\n")
    picks = Picks(
        classes=np.array([1, 1, 1, 1, 1, 2]),
        positions=np.array([[2, 4, 3], [2, 4, 9], [2, 4, 15], [0, 0, 0], [0, 8, 29], [0, 0, 5]], dtype=float),
        sizes=np.array([50, 40, 30, 20, 10, 60]),
    )
    assert choose_min_sizes(picks, tmp_path, class_names={1: "A", 2: "B"}) == {1: 30, 2: 61}
    assert choose_min_sizes(picks, tmp_path, class_names={1: "A", 2: "B"}, skip=("b",)) == {1: 30}


@pytest.mark.parametrize("format", ["star3", "star4", "star5", "deepfinder", "shrec", "copick"])
def test_files(tmp_path: Path, format: str) -> None:
    """Picks written for another program read back with their names and places; also none at all."""
    labels = _balls()
    names = {1: "small", 2: "large", 3: "rare"}
    for number, picks in enumerate((pick(labels), pick(torch.zeros_like(labels)))):
        path = tmp_path / f"picks_{number}"
        write_picks(path, picks, format=format, class_names=names, voxel_size=13.5, shape=SHAPE, tomogram="t")
        found = _READERS[format](path, names)
        expected = picks.particles(names)
        order, wanted = (sorted(range(len(one)), key=lambda i: one.positions[i].tolist()) for one in (found, expected))
        assert [found.names[i] for i in order] == [expected.names[i] for i in wanted]
        np.testing.assert_allclose(found.positions[order], expected.positions[wanted], atol=2e-3)


def _star(path: Path, names: Mapping[int, str]) -> ParticleList:
    lists = read_particles_star(path, voxel_size=13.5, shape=SHAPE)
    return lists.get("t", _NONE)


_NONE = ParticleList((), np.zeros((0, 3)), np.zeros((0, 3, 3)))
_READERS: dict[str, Callable[[Path, Mapping[int, str]], ParticleList]] = {
    "star3": _star,
    "star4": _star,
    "star5": _star,
    "deepfinder": lambda path, names: read_object_list(path, class_names=names).get(0, _NONE),
    "shrec": lambda path, names: read_particle_locations(path),
    "copick": lambda path, names: read_copick_picks(path, run="t", voxel_size=13.5),
}


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'star3', .*'copick', got 'pdf'"):
        write_picks(
            tmp_path / "x", pick(_balls()), format="pdf", class_names={}, voxel_size=1.0, shape=SHAPE, tomogram="t"
        )
