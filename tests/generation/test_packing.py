"""Room in a crowd: holes that random places would hardly hit, and specimens as dense as cells."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.ice import IceSlab, Slab
from faket_aug.generation.packing import Crowd, Search
from faket_aug.generation.placement import FREE, SOLID, Room
from faket_aug.generation.species import ParticleSpecies
from faket_aug.generation.stamp import Mask
from faket_aug.generation.templates import ParticleTemplate

Find = Callable[[Path, str], Path]
#: Three unequal sizes, one of them odd.
SHAPE = (40, 61, 82)


def rod(length: float, width: float, name: str) -> ParticleTemplate:
    """A rod along x with round ends; half lengths in voxels."""
    n = 2 * int(length + 4) + 1
    steps = np.arange(n) - n // 2
    along = np.maximum(np.abs(steps) - (length - width), 0)
    r = np.sqrt(steps[:, None, None] ** 2 + steps[:, None] ** 2 + along**2)
    density = 4 / (1 + np.exp(2 * (r - width)))
    return ParticleTemplate(density=torch.from_numpy(density), voxel_size=10.0, threshold=2.0, name=name)


def crowded(packing: str, occupancy: float, **settings: Any) -> GrandModelGenerator:
    """Balls and rods in equal numbers."""
    species = [ParticleSpecies(templates=rod(*size)) for size in ((7.0, 7.0, "ball"), (9.0, 3.5, "rod"))]
    given: dict[str, Any] = {"particles": species, "shape": (60, 72, 84), "occupancy": occupancy, "packing": packing}
    return GrandModelGenerator(**(given | settings))


def filled(generator: GrandModelGenerator) -> tuple[float, int]:
    """The share of the voxels that are labelled, and the particles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = generator.generate(seed=2)
    return float((made.labels > 0).double().mean()), len(made.particles)


@pytest.mark.parametrize("center", [(17, 30, 41), (12, 21, 60), (25, 44, 33)])
def test_the_one_hole_is_found(center: tuple[int, int, int]) -> None:
    """A hole of a particle's shape in a full specimen is found, wherever its centre lies in a cell."""
    offsets = np.argwhere(rod(9.0, 3.5, "rod").mask.numpy()).T - 13
    mask, room = Mask.of(offsets, SHAPE), Room(SHAPE, Slab.everywhere(SHAPE))
    room.taken[:] = SOLID
    hole = np.ravel_multi_index(tuple(np.array(center)[:, None] + offsets), SHAPE)
    room.taken[hole] = FREE
    crowd = Crowd(room)
    search = Search(crowd, 10.0, np.random.default_rng(0))
    found = search.find(mask)
    assert found is not None
    assert found.tolist() == list(center)
    # What is taken is told, and then no room is left; blocks without room are given up.
    room.take(found[:, None] + offsets)
    crowd.update(found[:, None] + offsets, 0)
    assert [search.find(mask) for _ in range(8)] == [None] * 8
    assert search.is_over


def test_places_lie_in_the_ice() -> None:
    """In a tilted slab each place that is found holds the whole mask."""
    slab = IceSlab(thickness=240.0, tilt=20.0).draw(SHAPE, 10.0, np.random.default_rng(1))
    room = Room(SHAPE, slab)
    crowd, offsets = Crowd(room), np.argwhere(rod(5.0, 5.0, "ball").mask.numpy()).T - 9
    search, mask = Search(crowd, 6.0, np.random.default_rng(2)), Mask.of(offsets, SHAPE)
    count = 0
    while (found := search.find(mask)) is not None:
        voxels = found[:, None] + offsets
        assert room.is_free(voxels)
        room.take(voxels)
        crowd.update(voxels, 0)
        count += 1
    assert count > 30


def test_a_denser_crowd() -> None:
    """More particles are placed where random places fall short; no voxel belongs to two."""
    (random, few), (dense, many) = (filled(crowded(packing, 0.42)) for packing in ("random", "dense"))
    assert random < 0.32
    assert dense > 0.39
    assert many > 1.15 * few
    made = crowded("dense", 0.38).generate(seed=3)
    assert made.instances is not None
    # Each voxel belongs to one particle: where masks overlapped, the first would have lost some.
    sizes = torch.bincount(made.instances.flatten().long())[1:].numpy()
    for number in (1, 2):
        own = sizes[made.particles.classes == number]
        assert own.min() > 0.9 * np.median(own)
    assert float((made.labels > 0).double().mean()) == pytest.approx(0.38, abs=0.01)


@pytest.mark.nightly
def test_the_classes_of_shrec_as_dense_as_in_a_cell(reference: Path, reference_file: Find) -> None:
    """The twelve classes of SHREC 2021 in equal numbers fill 40 % of a specimen."""
    folder = reference_file(reference, "data/particles_10A")
    names = ("1s3x", "3qm1", "3gl1", "3h84", "2cg9", "3d2f", "1u6g", "3cf3", "1bxn", "1qvr", "4cr2", "5mrc")
    templates = [ParticleTemplate.from_map(folder / f"{name}.mrc", voxel_size=10.0) for name in names]
    made = GrandModelGenerator(
        particles=[ParticleSpecies(templates=one) for one in templates], shape=(100, 240, 240), occupancy=0.4
    ).generate(seed=0)
    assert float((made.labels > 0).double().mean()) > 0.39
    counts = np.bincount(made.particles.classes)[1:]
    assert counts.min() >= counts.max() - 1, "in equal numbers"


def test_where_there_is_room_nothing_changes() -> None:
    """As long as random places are found, specimens are bit for bit those without search."""
    random, dense = (crowded(packing, 0.15).generate(seed=1) for packing in ("random", "dense"))
    assert torch.equal(random.density, dense.density)
    assert torch.equal(random.labels, dense.labels)


def test_a_crowd_is_a_function_of_its_address() -> None:
    """The same address is the same crowd, for any number of threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        small = {"shape": (44, 50, 56), "occupancy": 0.4}
        one, two = (crowded("dense", **small, threads=threads).generate(seed=4) for threads in (1, 2))
    assert torch.equal(one.labels, two.labels)
    assert np.array_equal(one.particles.positions, two.particles.positions)


@pytest.mark.slow
def test_orientations_in_a_crowd() -> None:
    """The axes of the rods that found room in a crowd are uniform, but for what their fitting costs."""
    axes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for tomogram in range(3):
            made = crowded("dense", 0.40).generate(seed=5, tomogram=tomogram)
            axes.append(made.particles.orientations[made.particles.classes == 2][:, :, 0])
    heights = np.abs(np.concatenate(axes))
    assert len(heights) > 180
    for axis in range(3):
        assert kstest(heights[:, axis], "uniform").pvalue > 0.01


def test_packings_by_name() -> None:
    """Others are refused."""
    with pytest.raises(ValueError, match=r"expected `packing` to be one of 'dense', 'random', got 'tight'"):
        crowded("tight", 0.3)
