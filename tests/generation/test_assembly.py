"""Putting specimens together: clusters, membranes and what stands on them, filaments, gold, gaps, the ice's faces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import blobs, correlation
from scipy.ndimage import label
from scipy.spatial import cKDTree
from test_generator import SHAPE, VOXEL_SIZE, ball, generator, particles, placed_again

from faket_aug.generation.assembly import Assembly, Task
from faket_aug.generation.filaments import FilamentSpecies
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.ice import VACUUM_DENSITY, IceSlab, Slab
from faket_aug.generation.membranes import MembraneSpecies, draw_membrane
from faket_aug.generation.placement import place_templates
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.stamp import Stamp
from faket_aug.generation.templates import ParticleTemplate


def test_clusters_lie_together() -> None:
    """Clustered particles have many neighbours within the radius, and the clusters are several."""
    lone = generator(ParticleSpecies(templates=ball(2.0), count=40)).generate(seed=0)
    made = generator(ParticleSpecies(templates=ball(2.0), count=40, cluster_size=10, cluster_radius=100.0)).generate(
        seed=0
    )
    near = []
    for one in (lone, made):
        tree = cKDTree(one.particles.positions)
        near.append(np.mean([len(found) - 1 for found in tree.query_ball_point(tree.data, 20.0)]))
    assert near[1] >= 8
    assert near[0] < 6
    assert np.ptp(made.particles.positions, axis=0).max() > 30


def test_clusters_grow_where_there_is_no_room() -> None:
    """A cluster that is fuller than its ball spreads: all particles are placed."""
    species = ParticleSpecies(templates=ball(3.0), count=40, cluster_size=40, cluster_radius=50.0)
    assert len(generator(species).generate(seed=0).particles) == 40


def pointed() -> ParticleTemplate:
    """A particle with a long z axis and a small asymmetry."""
    density = 3 * blobs((17, 13, 13), [(6, 6, 6), (8, 6, 6), (10, 6, 7)], 1.2)
    return ParticleTemplate(density=density, voxel_size=VOXEL_SIZE, threshold=1.0, name="pointed")


def bound(side: str = "outside", offset: float | None = None, **settings: Any) -> GrandModelGenerator:
    """Particles on vesicles; they point along their z axis."""
    species = ParticleSpecies(
        templates=pointed(), count=15, membrane_bound=True, membrane_side=side, membrane_offset=offset
    )
    return generator(species, shape=(60, 80, 80), membranes=MembraneSpecies(radius=(150.0, 170.0), **settings))


@pytest.mark.parametrize(("side", "sign"), [("outside", 1), ("inside", -1)])
def test_bound_particles_stand_along_the_normal(side: str, sign: int) -> None:
    """On a sphere the template's z axis points from, or to, its centre; turns about it are random."""
    made = bound(side).generate(seed=0)
    center = made.particles.positions[made.particles.classes == 2][0]
    rows = made.particles.classes == 1
    assert rows.sum() == 15
    away = (made.particles.positions[rows] - center)[:, ::-1]
    distance = np.linalg.norm(away, axis=1)
    axes = made.particles.orientations[rows][:, :, 2]
    assert np.allclose(axes, sign * away / distance[:, None], atol=1e-6)
    assert np.ptp(distance) < 1e-6
    # A radius of 15 to 17 voxels, half a bilayer, and half of the particle.
    assert 15 + sign * 6 - 1.5 < distance[0] < 17 + sign * 6 + 1.5
    assert np.ptp(made.particles.orientations[rows][:, 2, 0]) > 0.5
    own, again = made.labels == 1, placed_again(made, {1: pointed()})
    assert correlation(made.density[own], again[own]) > 0.95


def test_bound_particles_rest_on_the_surface() -> None:
    """By default they stand on the membrane's outer face: near it, and hardly in it."""
    made = bound().generate(seed=0)
    assert made.instances is not None
    tree = cKDTree((made.labels == 2).nonzero().numpy())
    for row in np.flatnonzero(made.particles.classes == 1):
        voxels = (made.instances == int(row) + 1).nonzero().numpy()
        assert tree.query(voxels)[0].min() <= 2.0
    shells = MembraneSpecies(radius=(150.0, 170.0))
    without = generator(particles(0, name="none"), shape=(60, 80, 80), membranes=shells).generate(seed=0)
    assert int((made.labels == 2).sum()) > 0.95 * int((without.labels == 2).sum())


def test_a_spanning_particle_displaces_the_membrane() -> None:
    """With offset 0 it lies in the membrane, which makes way: within its mask there is the particle's density alone."""
    made = bound(offset=0.0).generate(seed=1)
    own = made.labels == 1
    again = placed_again(made, {1: pointed()})
    # The membrane's own density is 1 to 2.
    assert float((made.density[own] - again[own]).abs().max()) < 0.5
    assert float((made.density[own] - again[own]).abs().mean()) < 0.06
    center = made.particles.positions[made.particles.classes == 2][0]
    distance = np.linalg.norm(made.particles.positions[made.particles.classes == 1] - center, axis=1)
    assert ((distance >= 15) & (distance <= 17)).all()


def test_neighbours_take_a_membrane_once() -> None:
    """Where the edges of particles meet, no more of the membrane goes than there is: nothing is below ice."""
    crowd = ParticleSpecies(templates=ball(3.0), count=60, membrane_bound=True, membrane_offset=0.0)
    with pytest.warns(UserWarning, match="expected 60 of ball"):
        made = generator(crowd, shape=(40, 60, 64), membranes=MembraneSpecies(kind="sheet")).generate(seed=0)
    assert (made.particles.classes == 1).sum() > 20
    rest = made.density - place_templates(made.particles, {1: ball(3.0)}, shape=(40, 60, 64))
    assert float(rest.min()) > -1e-4
    assert float(rest[made.labels == 1].abs().max()) < 1e-4
    assert float(rest[made.labels == 2].mean()) > 0.5


def test_nothing_stands_where_only_a_label_reaches() -> None:
    """A vesicle whose label reaches into the specimen, while its middle does not, holds no particles: that ends."""
    species = ParticleSpecies(templates=ball(2.0), count=3, membrane_bound=True)
    vesicle = MembraneSpecies(radius=(600, 600), count=1)
    shape = (20, 48, 48)
    found = Assembly(shape, Slab.everywhere(shape), voxel_size=VOXEL_SIZE)
    task = Task(
        species=vesicle, stamps=[], number=1, count=1, generator=np.random.default_rng(_seed_of_a_touch(vesicle, shape))
    )
    found.add(task)
    assert int((found.canvas.labels == 1).sum()) > 0
    found.add(Task(species=species, stamps=[Stamp.of(ball(2.0))], number=2, count=3, generator=task.generator))
    assert found.wanted == {"membrane": 1, "ball": 3}
    assert found.placed == {"membrane": 1, "ball": 0}


def _seed_of_a_touch(species: MembraneSpecies, shape: tuple[int, int, int]) -> int:
    """Find a seed whose first membrane has a label in the specimen, but no voxel near the middle of the bilayer."""
    for seed in range(2000):
        draw = np.random.default_rng(seed)
        made = draw_membrane(species, shape, Slab.everywhere(shape), voxel_size=VOXEL_SIZE, generator=draw)
        if made.shell(shape, made.half_label)[0].size and not made.shell(shape, 1.0)[0].size:
            return seed
    raise AssertionError("expected such a vesicle among 2000")


def test_one_conformation_without_room_leaves_the_others_theirs() -> None:
    """Where the first template finds no room, the second is still placed."""
    large, little = ball(9.0, name="either"), ball(1.5, name="either")
    with pytest.warns(UserWarning, match=r"expected 100 of either, placed \d+"):
        made = generator(ParticleSpecies(templates=[large, little], count=100)).generate(seed=0)
    assert made.instances is not None
    voxels = torch.bincount(made.instances.flatten())[1:]
    assert int((voxels > 1000).sum()) >= 5
    assert int((voxels < 100).sum()) > 35


def test_bound_particles_are_even_on_cut_membranes() -> None:
    """On a sheet they are spread over all of the specimen, and stand whole within it."""
    made = generator(
        ParticleSpecies(templates=ball(2.0), count=40, membrane_bound=True),
        membranes=MembraneSpecies(kind="sheet"),
        shape=(40, 100, 120),
    ).generate(seed=2)
    places = made.particles.positions[made.particles.classes == 1]
    assert len(places) == 40
    spread = np.linalg.svd(places - places.mean(axis=0), compute_uv=False)
    assert spread[2] < 1e-3 * spread[0]
    assert np.ptp(places, axis=0).max() > 60


def test_membranes_do_not_meet() -> None:
    """Several membranes of all kinds: each has one or more pieces of its own, and no two touch each other's voxels."""
    made = GrandModelGenerator(
        membranes=[
            MembraneSpecies(kind="sheet"),
            MembraneSpecies(kind="sphere", count=3, radius=(80, 150)),
            MembraneSpecies(kind="ellipsoid", count=2, radius=(80, 150)),
            MembraneSpecies(kind="toroid", count=1, radius=(150, 160), tube_radius=(50, 60), name="ring"),
        ],
        shape=(60, 100, 120),
    ).generate(seed=0)
    assert made.class_names == {0: "background", 1: "membrane", 2: "ring"}
    assert sorted(made.particles.classes) == [1] * 6 + [2]
    assert made.instances is not None
    assert sorted(made.instances.unique().tolist()) == list(range(8))
    for row in range(1, 8):
        assert label((made.instances == row).numpy())[1] == 1


def test_filaments_hold_their_subunits() -> None:
    """A filament's labelled voxels are one piece; its rows are a rise apart, and place its density again."""
    species = FilamentSpecies(subunit="actin", count=1, length=900.0)
    made = GrandModelGenerator(filaments=species, shape=(40, 80, 100)).generate(seed=1)
    assert label((made.labels == 1).numpy(), np.ones((3, 3, 3)))[1] == 1
    steps = np.linalg.norm(np.diff(made.particles.positions, axis=0), axis=1)
    assert steps == pytest.approx(2.76, rel=1e-3)
    again = placed_again(made, {1: species.templates_at(VOXEL_SIZE)[0]})
    assert correlation(made.density, again) > 0.98


def test_gold_is_round_and_dense() -> None:
    """Beads have radii in the range, and gold's density."""
    made = GrandModelGenerator(fiducials=FiducialSpecies(count=8, radius=(30.0, 60.0)), shape=SHAPE).generate(seed=0)
    assert made.instances is not None
    radii = (torch.bincount(made.instances.flatten())[1:] / (4 / 3 * np.pi)) ** (1 / 3)
    assert len(radii) == 8
    assert float(radii.min()) > 2.8
    assert float(radii.max()) < 6.2
    assert float(radii.max() - radii.min()) > 0.5
    assert 19 < float(made.density.max()) < 20.5


def test_vacuum_around_the_ice() -> None:
    """With a density of vacuum the ice ends in a step, outside of all particles; by default it does not."""
    tilted = IceSlab(thickness=260.0, tilt=6.0, azimuth=90.0, vacuum_density=VACUUM_DENSITY)
    made, plain = (
        generator(particles(15), slab=slab).generate(seed=0) for slab in (tilted, replace(tilted, vacuum_density=0.0))
    )
    drawn = tilted.draw(SHAPE, VOXEL_SIZE, None)
    z, y, x = drawn.heights(SHAPE)
    height = torch.from_numpy(np.abs(z + y + x))
    step = made.density - plain.density
    assert float(step[height > 14].max()) == pytest.approx(VACUUM_DENSITY, abs=1e-5)
    assert float(step[height <= 13].abs().max()) < 1e-6
    assert torch.equal(made.labels, plain.labels)
    assert float(plain.density[height > 17].abs().max()) < 0.01
    # The normal leans towards y: the ice is higher at low y.
    column = step[:, :, 40]
    assert float(column[:22, -1].sum()) > float(column[:22, 0].sum())


def test_a_gap_keeps_particles_apart() -> None:
    """Voxels of two masks are farther apart than the gap."""
    made = generator(ParticleSpecies(templates=ball(2.0), count=60), gap=25.0).generate(seed=0)
    assert made.instances is not None
    voxels = made.instances.nonzero()
    rows = made.instances[tuple(voxels.T)].numpy()
    pairs = cKDTree(voxels.numpy()).query_pairs(2.5, output_type="ndarray")
    assert (rows[pairs[:, 0]] == rows[pairs[:, 1]]).all()
    assert len(pairs) > 1000


def test_long_particles_lie_down_in_thin_ice() -> None:
    """A rod longer than the ice is thick is placed in those orientations in which it fits."""
    rod = ParticleTemplate(
        density=3 * blobs((41, 9, 9), [(z, 4, 4) for z in range(8, 34, 2)], 1.4),
        voxel_size=VOXEL_SIZE,
        threshold=1.5,
        name="rod",
    )
    made = generator(
        ParticleSpecies(templates=rod, count=20), slab=IceSlab(thickness=150.0), shape=(60, 90, 90)
    ).generate(seed=0)
    assert len(made.particles) == 20
    tilts = np.abs(made.particles.orientations[:, 2, 2])
    assert tilts.max() < 0.5
    assert tilts.max() > 0.2
