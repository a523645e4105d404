"""Filaments: curves of a given persistence length, frames that do not turn, rise and twist, sums of subunits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import blobs, correlation
from scipy.spatial.transform import Rotation

from faket_aug.generation.filaments import (
    FILAMENT_PRESETS,
    FilamentSpecies,
    actin_subunit,
    draw_filament,
    draw_poses,
    microtubule_segment,
    worm_like_chains,
)
from faket_aug.generation.ice import Slab
from faket_aug.generation.placement import place_templates
from faket_aug.generation.stamp import Stamp
from faket_aug.generation.templates import PROTEIN_POTENTIAL, ParticleTemplate
from faket_aug.specimens.particles import ParticleTable

STRAIGHT = 1e12


def bead(spread: float = 2.0) -> ParticleTemplate:
    """A subunit that is a little off the axis."""
    return ParticleTemplate(
        density=4 * blobs((17, 15, 19), [(8, 7, 9), (8, 9, 10)], spread), voxel_size=10.0, threshold=1.0, name="bead"
    )


def poses(shape: tuple[int, ...], slab: Slab | None = None, seed: int = 0, **settings: Any) -> list[Any]:
    """Filaments of beads."""
    given = {"subunit": bead(), "rise": 40.0, "twist": 30.0, "persistence_length": 5e4, "length": 1500.0} | settings
    return draw_poses(
        FilamentSpecies(**given),
        shape,
        slab or Slab.everywhere(shape),
        margin=6.0,
        voxel_size=10.0,
        generator=np.random.default_rng(seed),
    )


# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("persistence_length", [30.0, 200.0])
def test_persistence_length(persistence_length: float) -> None:
    """The direction decays as exp(-s / P), and the mean square end-to-end distance is Kratky and Porod's."""
    draw = np.random.default_rng(0)
    count, nodes, step = 4000, 121, 1.0
    directions = np.tile([0.0, 0.6, 0.8], (count, 1))
    places, frames = worm_like_chains(
        count, nodes=nodes, step=step, persistence_length=persistence_length, directions=directions, generator=draw
    )
    along = frames[..., 2]
    assert np.allclose(along[:, 0], directions)
    assert not places[:, 0].any()
    for node in (10, 40, 120):
        cosine = (along[:, 0] * along[:, node]).sum(-1).mean()
        assert cosine == pytest.approx(np.exp(-node * step / persistence_length), abs=0.035)
    length, p = (nodes - 1) * step, persistence_length
    expected = 2 * p * length * (1 - p / length * (1 - np.exp(-length / p)))
    assert (places[:, -1] ** 2).sum(-1).mean() == pytest.approx(expected, rel=0.04)


def test_frames_are_carried_along_without_turning() -> None:
    """Frames are rotations; from node to node they turn about axes across the direction only."""
    places, frames = worm_like_chains(
        50,
        nodes=80,
        step=1.0,
        persistence_length=40.0,
        directions=np.tile([1.0, 0, 0], (50, 1)),
        generator=np.random.default_rng(1),
    )
    assert np.allclose(frames @ np.swapaxes(frames, -1, -2), np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(frames), 1)
    between = np.swapaxes(frames[:, :-1], -1, -2) @ frames[:, 1:]
    turns = Rotation.from_matrix(between.reshape(-1, 3, 3)).as_rotvec()
    assert np.abs(turns[:, 2]).max() < 1e-9
    assert np.abs(turns[:, :2]).max() > 0.1
    steps = np.diff(places, axis=1)
    assert np.allclose(steps, (frames[:, 1:, :, 2] + frames[:, :-1, :, 2]) / 2)


def test_stiff_curves_are_straight() -> None:
    """With an endless persistence length the nodes lie on a line, a step apart."""
    places, _ = worm_like_chains(
        3,
        nodes=20,
        step=2.5,
        persistence_length=STRAIGHT,
        directions=np.eye(3),
        generator=np.random.default_rng(0),
    )
    assert np.allclose(places, 2.5 * np.arange(20)[None, :, None] * np.eye(3)[:, None], atol=1e-3)


# --- subunits along a curve -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILAMENT_PRESETS)
def test_rise_and_twist(name: str) -> None:
    """From subunit to subunit one goes the rise along the axis, and turns by the twist about it, right-handed."""
    preset, shape = FILAMENT_PRESETS[name], (120, 130, 140)
    drawn = draw_poses(
        FilamentSpecies(subunit=name, persistence_length=STRAIGHT, length=900.0),
        shape,
        Slab.everywhere(shape),
        margin=15.0,
        voxel_size=10.0,
        generator=np.random.default_rng(0),
    )
    assert drawn
    for places, orientations in drawn:
        steps = np.diff(places, axis=0)[:, ::-1] * 10
        assert np.allclose(steps, preset.rise * orientations[:-1, :, 2], atol=1e-3)
        between = np.swapaxes(orientations[:-1], -1, -2) @ orientations[1:]
        wanted = Rotation.from_euler("z", preset.twist, degrees=True).as_matrix()
        assert np.allclose(between, wanted, atol=1e-4)


def test_filaments_stay_in_the_ice() -> None:
    """No axis comes nearer to the ice's faces than the margin; the sides of the specimen end it."""
    shape = (40, 90, 110)
    tilt = np.deg2rad(6)
    slab = Slab(normal=np.array([np.cos(tilt), 0, np.sin(tilt)]), middle=(np.array(shape) - 1) / 2, half=14.0)
    found = [pose for seed in range(10) for pose in poses(shape, slab, seed, length=(500.0, 3000.0))]
    assert len(found) > 40
    heights = np.concatenate([slab.height(places) for places, _ in found])
    assert np.abs(heights).max() <= 14.0 - 6.0
    every = np.concatenate([places for places, _ in found])
    assert every[:, 0].min() >= 6 - 1e-9
    assert (every >= 0).all()
    assert (every <= np.array(shape) - 1).all()
    lengths = {len(places) for places, _ in found}
    assert max(lengths) > 20
    assert min(lengths) < 12


def test_no_room_between_the_faces() -> None:
    """Ice thinner than the filament holds none."""
    shape = (40, 60, 60)
    slab = Slab(normal=np.array([1.0, 0, 0]), middle=(np.array(shape) - 1) / 2, half=5.0)
    assert poses(shape, slab) == []


# --- sums -------------------------------------------------------------------------------------------------------------


def test_density_is_the_sum_of_the_subunits() -> None:
    """The filament's density is that of its subunits placed one by one; its mask is where that is above threshold."""
    shape = (60, 70, 80)
    stamp = Stamp.of(bead())
    places, orientations = poses(shape)[0]
    drawn = draw_filament(stamp, places, orientations, shape)
    assert drawn is not None
    made = torch.zeros(shape)
    made[tuple(torch.from_numpy(drawn.voxels))] = torch.from_numpy(drawn.density).float()
    rows = ParticleTable(
        classes=np.ones(len(drawn.places), np.int64), positions=drawn.places, orientations=drawn.orientations
    )
    truth = place_templates(rows, {1: bead()}, shape=shape)
    assert len(np.unique(np.ravel_multi_index(tuple(drawn.voxels), shape))) == drawn.voxels.shape[1]
    assert float((made - truth).abs().max()) < 0.3
    assert correlation(made, truth) > 0.999
    assert np.array_equal(drawn.mask, drawn.density > stamp.threshold)


def test_voxels_belong_to_the_nearest_subunit() -> None:
    """Each labelled voxel belongs to the subunit that has most there: no farther than half a rise along the axis."""
    shape = (60, 70, 80)
    places, orientations = next(p for p in poses(shape, persistence_length=STRAIGHT) if len(p[0]) > 8)
    drawn = draw_filament(Stamp.of(bead()), places, orientations, shape)
    assert drawn is not None
    owners, voxels = drawn.owners[drawn.mask], drawn.voxels[:, drawn.mask].T
    assert set(owners) == set(range(len(drawn.places)))
    along = ((voxels - drawn.places[owners])[:, ::-1] * drawn.orientations[owners, :, 2]).sum(axis=1)
    inner = (owners > 0) & (owners < len(drawn.places) - 1)
    assert np.abs(along[inner]).max() < 2 + 1.5


def test_subunits_cut_by_the_edge_are_left_out() -> None:
    """A subunit whose mask leaves the specimen is not drawn; without any whole one there is no filament."""
    stamp, shape = Stamp.of(bead()), (30, 30, 30)
    places = np.array([[15.0, 15, 1], [15, 15, 5], [15, 15, 9]])
    turned = np.tile(Rotation.from_euler("y", 90, degrees=True).as_matrix(), (3, 1, 1))
    drawn = draw_filament(stamp, places, turned, shape)
    assert drawn is not None
    assert drawn.places.tolist() == places[1:].tolist()
    assert draw_filament(stamp, places[:1], turned[:1], shape) is None


@pytest.mark.parametrize("height", [0.01, 1.0, 1000.0])
def test_subunits_of_any_height_are_drawn_alike(height: float) -> None:
    """What is drawn of a subunit does not depend on the unit of its density."""
    shape = (60, 70, 80)
    places, orientations = poses(shape)[0]
    own = bead()
    scaled = replace(own, density=own.density * height, threshold=own.threshold * height)
    expected, found = (draw_filament(Stamp.of(one), places, orientations, shape) for one in (own, scaled))
    assert expected is not None
    assert found is not None
    assert abs(found.voxels.shape[1] - expected.voxels.shape[1]) <= 2
    assert found.places.tolist() == expected.places.tolist()
    assert found.density.sum() == pytest.approx(height * expected.density.sum(), rel=1e-4)


def test_subunits_beside_the_specimen_are_none() -> None:
    """A subunit that has no voxel in the specimen is left out, as is a filament of such subunits alone."""
    stamp, shape = Stamp.of(bead()), (30, 30, 30)
    assert draw_filament(stamp, np.array([[15.0, 15, 90]]), np.eye(3)[None], shape) is None
    flat = replace(stamp, threshold=1e6)
    assert draw_filament(flat, np.array([[15.0, 15, 90]]), np.eye(3)[None], shape) is None
    assert draw_filament(flat, np.array([[15.0, 15, 15]]), np.eye(3)[None], shape) is None


# --- built-in subunits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voxel_size", [5.0, 10.0, 13.0])
def test_masses_of_the_built_in_subunits(voxel_size: float) -> None:
    """The integral of the density is that of the protein's mass: 41.6 kDa of actin, 26 tubulins of 50 kDa."""
    for made, dalton in ((actin_subunit(voxel_size), 41_600), (microtubule_segment(voxel_size), 26 * 50_000)):
        integral = float(made.density.double().sum()) * voxel_size**3
        assert integral == pytest.approx(PROTEIN_POTENTIAL * dalton, rel=0.02)
        assert made.voxel_size == voxel_size


def _stack(name: str, count: int, half: int) -> np.ndarray:
    """A straight filament along z through the middle of a cube, 5 Å a voxel."""
    preset = FILAMENT_PRESETS[name]
    heights = (np.arange(count) - count // 2) * preset.rise / 5
    spins = Rotation.from_euler("z", preset.twist * np.arange(count)[:, None], degrees=True).as_matrix()
    middle = np.full((count, 3), float(half))
    middle[:, 0] += heights
    rows = ParticleTable(classes=np.ones(count, np.int64), positions=middle, orientations=spins)
    return place_templates(rows, {1: preset.subunit(5.0)}, shape=(2 * half + 1,) * 3).double().numpy()


def test_microtubule_is_a_left_handed_three_start_tube() -> None:
    """Hollow, 250 Å wide; a turn by 1/13 with 3/13 of a monomer's rise changes nothing, the other way it does."""
    from scipy.ndimage import affine_transform

    half = 40
    tube = _stack("microtubule", 7, half)
    section = tube[half - 8 : half + 9].mean(axis=0)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    radius = np.hypot(y, x)
    rings = np.array([section[(radius >= r - 0.5) & (radius < r + 0.5)].mean() for r in range(half)])
    assert rings.argmax() * 5 == pytest.approx(112, abs=8)
    assert rings[:10].max() < 0.05 * rings.max()
    assert rings[30:].max() < 0.1 * rings.max()

    def screw(angle: float, rise: float) -> float:
        turn = Rotation.from_euler("z", angle, degrees=True).as_matrix()[::-1, ::-1]
        middle = np.full(3, float(half))
        shift = middle - turn.T @ (middle + np.array([rise / 5, 0, 0]))
        moved = affine_transform(tube, turn.T, offset=shift, order=3)
        part = slice(half - 8, half + 9)
        return float(np.corrcoef(moved[part].ravel(), tube[part].ravel())[0, 1])

    assert screw(-360 / 13, 3 * 41 / 13) > 0.98
    assert screw(360 / 13, 3 * 41 / 13) < screw(-360 / 13, 3 * 41 / 13) - 0.02


def test_actin_is_a_thin_two_stranded_filament() -> None:
    """F-actin is about 80 Å wide and crosses over every 36 nm: its widest direction turns by 180° in 13 subunits."""
    half = 60
    filament = _stack("actin", 21, half)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    wide = np.hypot(y, x)[filament[half - 30 : half + 31].max(axis=0) > 1.2].max() * 2 * 5
    assert 70 < wide < 110

    def direction(z: int) -> float:
        section = filament[z - 2 : z + 3].mean(axis=0)
        moments = np.array([[(section * a * b).sum() for b in (x, y)] for a in (x, y)])
        vector = np.linalg.eigh(moments)[1][:, -1]
        return float(np.degrees(np.arctan2(vector[1], vector[0])))

    # Two subunits are one of each strand: over 55 Å the pair turns by 2 · -166.6° + 360° = 26.8°.
    turns = [(direction(half + 11) - direction(half)) % 180, (direction(half) - direction(half - 11)) % 180]
    assert np.mean(turns) == pytest.approx(26.8, abs=8)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_names_and_defaults() -> None:
    """A built-in filament needs nothing but its name; what is given replaces what is built in."""
    actin = FilamentSpecies(subunit="actin", rise=30.0)
    assert (actin.class_name, actin.form.rise, actin.form.twist) == ("actin", 30.0, -166.6)
    own = FilamentSpecies(subunit=bead(), rise=40.0, twist=0.0, persistence_length=1e4)
    assert own.class_name == "bead"
    assert own.form.subunit(99.0) is own.subunit
    assert FilamentSpecies(subunit="actin", name="F-actin").class_name == "F-actin"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subunit": "keratin"}, r"expected `subunit` to be one of 'actin', 'microtubule', got 'keratin'"),
        ({"subunit": bead()}, r"bead: expected `persistence_length`, `rise`, `twist` with a template, got None"),
        ({"subunit": bead(), "rise": 5.0, "twist": 1.0}, r"bead: expected `persistence_length` with a template"),
        ({"subunit": "actin", "rise": 0.0}, r"expected `rise` to be more than 0, got 0.0"),
        ({"subunit": "actin", "persistence_length": -1.0}, r"expected `persistence_length` to be more than 0, got -1"),
        ({"subunit": "actin", "length": (0.0, 10.0)}, r"expected `length` to be more than 0, got 0.0"),
        ({"subunit": "actin", "count": 1.5}, r"expected `count` to be a whole number of 0 or more, got 1.5"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    """What cannot be is refused with what was expected."""
    with pytest.raises(ValueError, match=message):
        FilamentSpecies(**settings)
