"""Membranes: distances against the nearest of many points, even areas, the bilayer's profile, places in the ice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.stats import kstest

from faket_aug.generation.ice import IceSlab, Slab
from faket_aug.generation.membranes import (
    HEAD_HALF_THICKNESS,
    MEMBRANE_KINDS,
    Membrane,
    MembraneSpecies,
    bilayer_profile,
    draw_membrane,
)
from faket_aug.generation.stamp import uniform_rotations
from faket_aug.generation.surfaces import Ellipsoid, Sheet, Surface, Toroid

SURFACES = {
    "sphere": Ellipsoid(np.full(3, 21.0)),
    "ellipsoid": Ellipsoid(np.array([14.0, 22.0, 31.0])),
    "flat ellipsoid": Ellipsoid(np.array([30.0, 30.0, 12.0])),
    "toroid": Toroid(24.0, 9.0),
    "sheet": Sheet(40.0),
}


def membrane(surface: Surface, seed: int = 0, center: Any = (30.0, 41.0, 50.0), thickness: float = 3.7) -> Membrane:
    """A membrane in a random orientation."""
    return Membrane(
        surface=surface,
        center=np.array(center),
        orientation=uniform_rotations(1, np.random.default_rng(seed))[0],
        thickness=thickness,
        voxel_size=10.0,
    )


# --- surfaces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SURFACES)
def test_drawn_points_lie_on_the_surface(name: str) -> None:
    """Points have distance 0, and along the normal the distance grows by as much as one goes: normals are outward."""
    surface = SURFACES[name]
    points, normals = surface.draw(500, np.random.default_rng(0))
    assert points.shape == normals.shape == (500, 3)
    assert np.abs(surface.distance(points)).max() < 1e-9
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)
    for step in (-4.0, -0.5, 0.5, 4.0):
        assert np.abs(surface.distance(points + step * normals) - step).max() < 1e-9


@pytest.mark.parametrize("name", ["sphere", "ellipsoid", "flat ellipsoid", "toroid"])
def test_distance_is_to_the_nearest_point(name: str) -> None:
    """Anywhere, also at the middle: the distance is that to the nearest of many points of the surface."""
    surface = SURFACES[name]
    points = surface.draw(150_000, np.random.default_rng(0))[0]
    places = np.concatenate([np.random.default_rng(1).uniform(-40, 40, (3000, 3)), np.zeros((1, 3)), np.eye(3)])
    # A plane of symmetry, where two sides may be as near as each other.
    places[:300, 0] = 0
    places[300:600, 2] = 0
    nearest = cKDTree(points).query(places)[0]
    found = surface.distance(places)
    assert np.abs(np.abs(found) - nearest).max() < 0.35
    assert np.abs(np.abs(found) - nearest).mean() < 0.01
    inside = np.abs(found) > 0.5
    assert ((found < 0) == _is_inside(name, places))[inside].all()


def _is_inside(name: str, places: np.ndarray) -> np.ndarray:
    surface = SURFACES[name]
    if isinstance(surface, Toroid):
        return (np.hypot(places[:, 0], places[:, 1]) - surface.ring) ** 2 + places[:, 2] ** 2 < surface.tube**2
    assert isinstance(surface, Ellipsoid)
    return ((places / surface.axes) ** 2).sum(axis=1) < 1


def test_points_of_an_ellipsoid_are_even() -> None:
    """Of a spheroid's area the part below a height is drawn as often as it is large (Archimedes for the sphere)."""
    draw = np.random.default_rng(0)
    heights = Ellipsoid(np.full(3, 5.0)).draw(4000, draw)[0][:, 2]
    assert kstest(heights, lambda h: (h + 5) / 10).pvalue > 0.01
    a, c = 10.0, 30.0
    # Area per height of a spheroid: 2π a sqrt(1 + z² (a² - c²) / c⁴ ...), integrated numerically.
    z = np.linspace(-c, c, 20001)
    area = np.sqrt(a**2 * (1 - z**2 / c**2) + (a**2 * z / c**2) ** 2)
    share = np.concatenate([[0], np.cumsum((area[1:] + area[:-1]) / 2)])
    heights = Ellipsoid(np.array([a, a, c])).draw(4000, draw)[0][:, 2]
    assert kstest(heights, lambda h: np.interp(h, z, share / share[-1])).pvalue > 0.01


def test_points_of_a_toroid_are_even() -> None:
    """Pappus: the outer half of a toroid has 1/2 + tube / (π ring) of its area."""
    points = Toroid(20.0, 8.0).draw(20_000, np.random.default_rng(0))[0]
    outer = (np.hypot(points[:, 0], points[:, 1]) > 20).mean()
    assert outer == pytest.approx(0.5 + 8 / (20 * np.pi), abs=0.012)
    assert kstest(np.arctan2(points[:, 1], points[:, 0]), lambda t: (t + np.pi) / (2 * np.pi)).pvalue > 0.01


@pytest.mark.parametrize("name", ["sphere", "ellipsoid", "flat ellipsoid", "toroid"])
def test_reach_is_the_extent(name: str) -> None:
    """The farthest of many points along a direction is as far as the formula says."""
    surface = SURFACES[name]
    points = surface.draw(200_000, np.random.default_rng(0))[0]
    for direction in uniform_rotations(20, np.random.default_rng(1))[..., 0]:
        farthest = (points @ direction).max()
        assert farthest <= surface.reach(direction) + 1e-9
        assert farthest == pytest.approx(surface.reach(direction), abs=0.1)


# --- in a specimen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("center", [(30.0, 41.0, 50.0), (3.2, 90.7, 44.1)])
def test_shell_holds_every_voxel_near_the_surface(name: str, center: tuple[float, float, float]) -> None:
    """The voxels that are found are those that a look at all voxels finds, with the same distances."""
    shape = (60, 82, 100)
    made = membrane(SURFACES[name], center=center)
    voxels, distance = made.shell(shape, 4.5)
    everywhere = made.distance(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1))
    near = np.abs(everywhere) <= 4.5
    found = np.zeros(shape, bool)
    found[tuple(voxels)] = True
    assert near.any()
    assert np.array_equal(found, near)
    assert len(voxels.T) == near.sum()
    assert np.allclose(distance, everywhere[tuple(voxels)])


def test_places_and_normals_in_the_specimen() -> None:
    """Places (z, y, x) lie on the membrane where it is, normals (x, y, z) point outward there."""
    made = membrane(SURFACES["ellipsoid"])
    places, normals = made.draw(200, np.random.default_rng(2))
    assert np.abs(made.distance(places)).max() < 1e-9
    assert np.allclose(made.distance(places + 3 * normals[:, ::-1]), 3)
    assert np.linalg.norm(places - made.center, axis=1).max() > 25


@pytest.mark.parametrize("kind", MEMBRANE_KINDS)
def test_drawn_sizes(kind: str) -> None:
    """Sizes lie in the ranges given in Å, whatever the voxels; the label reaches 5 Å beyond the heads."""
    species = MembraneSpecies(kind=kind, radius=(300, 400), tube_radius=(80, 90), thickness=(36, 38))
    shape = (60, 120, 120)
    seen = set()
    for seed in range(20):
        made = draw_membrane(
            species, shape, Slab.everywhere(shape), voxel_size=8.0, generator=np.random.default_rng(seed)
        )
        assert 36 <= made.thickness * 8 <= 38
        assert made.half_label == pytest.approx(made.thickness / 2 + HEAD_HALF_THICKNESS / 8)
        surface = made.surface
        if isinstance(surface, Ellipsoid):
            assert ((surface.axes * 8 >= 300) & (surface.axes * 8 <= 400)).all()
            assert (np.ptp(surface.axes) == 0) == (kind == "sphere")
            seen.add(surface.axes[0])
        elif isinstance(surface, Toroid):
            assert 300 <= surface.ring * 8 <= 400
            assert 80 <= surface.tube * 8 <= 90
            seen.add(surface.ring)
        else:
            seen.add(made.orientation[0, 0])
    assert len(seen) == 20


@pytest.mark.parametrize("kind", ["sphere", "ellipsoid", "toroid"])
def test_vesicles_lie_whole_between_the_faces(kind: str) -> None:
    """What fits into the ice is not cut by its faces, tilted or not; what does not fit lies at its middle."""
    shape = (70, 90, 110)
    tilt = np.deg2rad(8)
    slab = Slab(normal=np.array([np.cos(tilt), np.sin(tilt), 0]), middle=(np.array(shape) - 1) / 2, half=25.0)
    species = MembraneSpecies(kind=kind, radius=(100, 160), tube_radius=(45, 50), thickness=37)
    highest = []
    for seed in range(40):
        made = draw_membrane(species, shape, slab, voxel_size=10.0, generator=np.random.default_rng(seed))
        points = made.draw(2000, np.random.default_rng(0))[0]
        heights = np.abs(slab.height(points)) + made.half_label
        # The sides of the specimen cut the ice where it is tilted: the middle of a column is not its own.
        if made.center[0] - 25 > 0 and made.center[0] + 25 < shape[0] - 1:
            assert heights.max() <= slab.half + 0.01
        highest.append(heights.max())
    assert max(highest) > slab.half - 2
    large = draw_membrane(
        MembraneSpecies(kind="sphere", radius=400), shape, slab, voxel_size=10.0, generator=np.random.default_rng(0)
    )
    assert abs(float(slab.height(large.center))) < 2


@pytest.mark.parametrize("kind", MEMBRANE_KINDS)
def test_centers_lie_where_there_is_ice(kind: str) -> None:
    """In a thin slab at a steep tilt, which leaves the specimen above and below, centres still lie within both."""
    shape = (60, 256, 256)
    slab = IceSlab(thickness=500.0, tilt=40.0, azimuth=30.0).draw(shape, 10.0, None)
    for seed in range(100):
        made = draw_membrane(
            MembraneSpecies(kind=kind), shape, slab, voxel_size=10.0, generator=np.random.default_rng(seed)
        )
        assert 0 <= made.center[0] <= shape[0] - 1
        assert abs(float(slab.height(made.center))) <= slab.half + 1e-9


# --- profile ----------------------------------------------------------------------------------------------------------


def test_profile_has_two_layers_of_heads() -> None:
    """Two peaks as far apart as the thickness says, a core between them that is less dense, nothing outside."""
    s = np.linspace(-60, 60, 2401)
    profile = bilayer_profile(s, thickness=38.0, head_density=3.0, tail_density=1.0, voxel_size=4.0)
    assert np.allclose(profile, profile[::-1])
    assert abs(s[profile.argmax()]) == pytest.approx(19, abs=0.5)
    middle = profile[np.abs(s) < 0.1].mean()
    assert middle == pytest.approx(1.0, abs=0.02)
    assert 2.4 < profile.max() < 3.1
    assert profile[np.abs(s) > 42].max() < 0.01


def test_profile_keeps_its_density_at_any_voxel_size() -> None:
    """The integral across the membrane is the same for fine and for coarse voxels; coarse ones blur the layers."""
    s = np.linspace(-150, 150, 6001)
    profiles = [
        bilayer_profile(s, thickness=37.0, head_density=3.0, tail_density=1.0, voxel_size=v) for v in (1.0, 5.0, 14.0)
    ]
    integrals = [float(p.sum() * (s[1] - s[0])) for p in profiles]
    assert np.ptp(integrals) < 1e-6 * integrals[0]
    assert profiles[0].max() > profiles[1].max() > profiles[2].max()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cube"}, r"expected `kind` to be one of 'sphere', 'ellipsoid', 'toroid', 'sheet', got 'cube'"),
        ({"count": -1}, r"expected `count` to be a whole number of 0 or more, got -1"),
        ({"count": (3, 1)}, r"expected `count` to be one number or a pair \(lowest, highest\), got \(3, 1\)"),
        ({"radius": (500.0, 200.0)}, r"expected `radius` to be one number or a pair \(lowest, highest\), got"),
        ({"radius": 0.0}, r"expected `radius` to be more than 0, got 0.0"),
        ({"radius": 20.0}, r"expected radii of at least the thickness, 40 Å, got 20 Å"),
        ({"kind": "toroid", "radius": 150.0}, r"expected a toroid's `radius` to exceed its `tube_radius` by its thick"),
        ({"kind": "toroid", "tube_radius": 30.0}, r"expected radii of at least the thickness, 40 Å, got 30 Å"),
        ({"thickness": -1.0}, r"expected `thickness` to be more than 0, got -1.0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    """What cannot be is refused with what was expected."""
    with pytest.raises(ValueError, match=message):
        MembraneSpecies(**settings)
