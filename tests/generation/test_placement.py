"""Turning templates and finding room: laws of rotations, and places that are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from _helpers import correlation
from scipy.stats import kstest

from faket_aug.generation.ice import Slab
from faket_aug.generation.placement import FREE, MEMBRANE, SOLID, Canvas, Room, place_templates
from faket_aug.generation.stamp import Mask, Stamp, frames_along, hull_points, uniform_rotations
from faket_aug.generation.templates import ParticleTemplate
from faket_aug.specimens.particles import ParticleTable

#: Blobs of an asymmetric particle: (x, y, z) in voxels about its centre, and heights.
CENTERS = np.array([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 3.5, 1.0], [-2.0, -3.0, 4.0]])
HEIGHTS = np.array([1.0, 0.9, 0.7, 0.8])
SPREAD = 1.4


def analytic(shape: Sequence[int], center: np.ndarray, orientation: np.ndarray) -> torch.Tensor:
    """The particle in a volume: centre (z, y, x), its blobs turned by `orientation`."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij")
    volume = np.zeros(shape)
    for place, height in zip(CENTERS @ orientation.T, HEIGHTS, strict=True):
        cx, cy, cz = place + center[::-1]
        volume += height * np.exp(-((z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2) / (2 * SPREAD**2))
    return torch.from_numpy(volume).float()


def template(
    shape: Sequence[int] = (26, 24, 28), center: Sequence[float] | None = None, threshold: float = 0.3
) -> ParticleTemplate:
    """The particle as a template in a box of three unequal sizes."""
    middle = np.array([n // 2 for n in shape]) if center is None else np.array(center)
    return ParticleTemplate(
        density=analytic(shape, middle, np.eye(3)),
        voxel_size=10.0,
        threshold=threshold,
        name="asymmetric",
        center=None if center is None else tuple(float(c) for c in center),
    )


def cube_of(stamp: Stamp, orientation: np.ndarray, fraction: Sequence[float] = (0, 0, 0)) -> torch.Tensor:
    """One turned copy."""
    return next(stamp.turned(orientation[None], np.array([fraction], dtype=np.float64)))[1]


def table(positions: np.ndarray, orientations: np.ndarray) -> ParticleTable:
    """Particles of class 1."""
    return ParticleTable(classes=np.ones(len(positions), np.int64), positions=positions, orientations=orientations)


# --- rotations --------------------------------------------------------------------------------------------------------


def test_rotations_are_uniform() -> None:
    """Angles follow (1 - cos) / π, every entry of the matrix is uniform from -1 to 1, and so after any other turn."""
    matrices = uniform_rotations(5000, np.random.default_rng(1))
    assert np.allclose(matrices @ matrices.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(matrices), 1)
    turned = matrices @ uniform_rotations(1, np.random.default_rng(2))[0]
    for some in (matrices, turned):
        angles = np.arccos(np.clip((np.trace(some, axis1=1, axis2=2) - 1) / 2, -1, 1))
        assert kstest(angles, lambda a: (a - np.sin(a)) / np.pi).pvalue > 0.01
        for row, column in np.ndindex(3, 3):
            assert kstest(some[:, row, column], lambda v: (v + 1) / 2).pvalue > 0.005


def test_frames_along_directions() -> None:
    """The third column is the direction, the matrix a rotation, the turn about the direction uniform."""
    directions = np.random.default_rng(0).normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    frames = frames_along(directions, np.random.default_rng(1))
    assert np.allclose(frames[..., 2], directions)
    assert np.allclose(np.linalg.det(frames), 1)
    assert np.allclose(frames @ frames.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    up = frames_along(np.tile([0.0, 0.0, 1.0], (2000, 1)), np.random.default_rng(2))
    turns = np.arctan2(up[:, 1, 0], up[:, 0, 0])
    assert kstest(turns, lambda t: (t + np.pi) / (2 * np.pi)).pvalue > 0.01


# --- turning ----------------------------------------------------------------------------------------------------------


def test_no_turn_is_the_template() -> None:
    """Without turn and fraction each voxel has the template's own value, and the mask is the template's."""
    made = template()
    stamp = Stamp.of(made)
    (_, cube, chosen) = next(stamp.turned(np.eye(3)[None], np.zeros((1, 3))))
    half = cube.shape[0] // 2
    z, y, x = (n // 2 for n in made.density.shape)
    reach = 9
    own = made.density[z - reach : z + reach + 1, y - reach : y + reach + 1, x - reach : x + reach + 1]
    found = cube[(slice(half - reach, half + reach + 1),) * 3]
    # Beyond the tail that is drawn there is nothing.
    near = found != 0
    assert torch.allclose(found[near], own[near], atol=1e-5)
    assert float(own[~near].max()) < 0.02
    assert len(chosen) == int(made.mask.sum()) == stamp.mask_voxels
    places = {tuple(p) for p in (stamp.offsets[:, chosen].T + np.array([z, y, x])).tolist()}
    assert places == {tuple(p) for p in made.mask.nonzero().tolist()}


@pytest.mark.parametrize(
    ("matrix", "dims"),
    [
        # A right turn by 90° about z brings x to y: the template's voxel (z, y, x) comes to (z, x, -y).
        (np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), (1, 2)),
        (np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), (0, 1)),
        (np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]), (2, 0)),
    ],
)
def test_quarter_turns_are_exact(matrix: np.ndarray, dims: tuple[int, int]) -> None:
    """A quarter turn is a permutation of voxels, in the right-handed sense on (x, y, z)."""
    stamp = Stamp.of(template())
    still, turned = cube_of(stamp, np.eye(3)), cube_of(stamp, matrix)
    assert torch.allclose(turned, torch.rot90(still, k=-1, dims=dims), atol=1e-5)
    assert not torch.allclose(turned, torch.rot90(still, k=1, dims=dims), atol=0.1)


@pytest.mark.parametrize("seed", range(6))
def test_any_turn_is_near_the_truth(seed: int) -> None:
    """A turned and shifted copy is the formula's, to 5 % of the peak; linear interpolation of voxels errs by 15 %."""
    draw = np.random.default_rng(seed)
    orientation, fraction = uniform_rotations(1, draw)[0], draw.random(3) - 0.5
    cube = cube_of(Stamp.of(template()), orientation, fraction)
    middle = np.full(3, cube.shape[0] // 2)
    truth = analytic(cube.shape, middle + fraction, orientation)
    near = cube != 0
    assert float((cube - truth)[near].abs().max()) < 0.05 * float(truth.max())
    assert correlation(cube, truth) > 0.999


def test_a_center_between_voxels() -> None:
    """A template's centre may lie off the middle and between voxels: the particle turns about it."""
    orientation = uniform_rotations(1, np.random.default_rng(3))[0]
    a = cube_of(Stamp.of(template()), orientation, (0.2, -0.3, 0.1))
    b = cube_of(Stamp.of(template((30, 26, 24), (12.4, 13.7, 11.1))), orientation, (0.2, -0.3, 0.1))
    half = min(a.shape[0], b.shape[0]) // 2
    a, b = (c[(slice(c.shape[0] // 2 - half, c.shape[0] // 2 + half + 1),) * 3] for c in (a, b))
    assert correlation(a, b) > 0.999
    assert float((a - b).abs().max()) < 0.03


def test_batches_do_not_matter() -> None:
    """Many copies are those that are turned one by one."""
    draw = np.random.default_rng(0)
    orientations, fractions = uniform_rotations(40, draw), draw.random((40, 3)) - 0.5
    stamp = Stamp.of(template())
    for i, cube, chosen in stamp.turned(orientations, fractions):
        (_, alone, own) = next(stamp.turned(orientations[i : i + 1], fractions[i : i + 1]))
        assert torch.allclose(cube, alone, atol=1e-6)
        assert len(set(own.tolist()) ^ set(chosen.tolist())) <= 1
        inside = cube[tuple(torch.from_numpy(stamp.offsets[:, chosen] + cube.shape[0] // 2))]
        assert bool((inside > stamp.threshold).all())
        assert int((cube > stamp.threshold).sum()) == len(chosen)


def test_hull_holds_the_extent() -> None:
    """The hull's points reach as far as the whole mask, to a part of a voxel, in any direction."""
    made = template()
    points = (np.argwhere(made.mask.numpy()) - np.array(made.center))[:, ::-1]
    hull = hull_points(made)
    directions = uniform_rotations(200, np.random.default_rng(0))[..., 0]
    assert np.abs((points @ directions.T).max(0) - (hull @ directions.T).max(0)).max() < 0.2
    assert len(hull) < len(points)


# --- room -------------------------------------------------------------------------------------------------------------


def ball(radius: float) -> np.ndarray:
    """Offsets `(3, n)` of a ball."""
    steps = np.arange(-int(radius), int(radius) + 1)
    z, y, x = np.meshgrid(steps, steps, steps, indexing="ij")
    return np.stack([axis[z**2 + y**2 + x**2 <= radius**2] for axis in (z, y, x)])


def anywhere(seed: int = 0):
    """A function that draws places."""
    draw = np.random.default_rng(seed)
    return lambda count, low, high, attempt: draw.integers(low, high + 1, size=(count, 3))


def test_the_one_free_place_is_found() -> None:
    """Where all but one place is taken, that is found."""
    shape = (14, 18, 22)
    mask = Mask.of(ball(3), shape)
    room = Room(shape, Slab.everywhere(shape))
    room.taken[:] = SOLID
    hole = np.array([6, 9, 14])
    room.taken.reshape(shape)[tuple(hole[:, None] + mask.offsets)] = FREE
    found = room.find(mask, anywhere())
    assert found is not None
    assert found.tolist() == hole.tolist()
    room.take(found[:, None] + mask.offsets)
    assert room.find(mask, anywhere()) is None


def test_places_are_even() -> None:
    """In empty room every centre that holds the mask is as likely as any other, and none other is drawn."""
    shape, draw = (9, 12, 15), anywhere(3)
    mask = Mask.of(ball(2), shape)
    room = Room(shape, Slab.everywhere(shape))
    found = np.array([room.find(mask, draw) for _ in range(3000)])
    assert found.min(axis=0).tolist() == [2, 2, 2]
    assert found.max(axis=0).tolist() == [6, 9, 12]
    for axis, size in enumerate((5, 8, 11)):
        counts = np.bincount(found[:, axis] - 2, minlength=size)
        assert np.abs(counts - 3000 / size).max() < 4.5 * np.sqrt(3000 / size)


def test_particles_stay_in_a_tilted_slab() -> None:
    """No voxel of a mask leaves the slab, and both faces are reached."""
    shape, draw = (40, 30, 50), anywhere(1)
    tilt = np.deg2rad(12)
    slab = Slab(normal=np.array([np.cos(tilt), 0, np.sin(tilt)]), middle=(np.array(shape) - 1) / 2, half=8.0)
    mask = Mask.of(ball(3), shape)
    room = Room(shape, slab)
    heights = []
    for _ in range(400):
        center = room.find(mask, draw)
        assert center is not None
        heights.append(slab.height((center[:, None] + mask.offsets).T))
    assert np.abs(heights).max() <= 8.0
    assert np.max(heights) > 7.5
    assert np.min(heights) < -7.5


def test_too_thick_for_the_slab() -> None:
    """Nothing is found for what the slab or the specimen does not hold."""
    shape = (20, 20, 20)
    slab = Slab(normal=np.array([1.0, 0, 0]), middle=np.full(3, 9.5), half=3.0)
    assert Room(shape, slab).find(Mask.of(ball(4), shape), anywhere()) is None
    assert Room(shape, Slab.everywhere(shape)).find(Mask.of(ball(10), shape), anywhere()) is None


def test_gap_keeps_masks_apart() -> None:
    """With a gap of 2.5 voxels no voxel of another mask comes nearer than that; without it some touch."""
    shape = (30, 30, 30)
    mask = Mask.of(ball(2), shape)
    for gap in (0.0, 2.5):
        room, draw, placed = Room(shape, Slab.everywhere(shape), gap=gap), anywhere(), []
        for _ in range(60):
            center = room.find(mask, draw)
            if center is None:
                break
            room.take(center[:, None] + mask.offsets)
            placed.append(center[:, None] + mask.offsets)
        nearest = min(
            np.linalg.norm(a[:, :, None] - b[:, None], axis=0).min() for i, a in enumerate(placed) for b in placed[:i]
        )
        assert len(placed) > 20
        assert nearest > gap
        assert nearest <= gap + 1.5


def test_free_also_on_a_membrane() -> None:
    """What stands on a membrane may lie on that membrane's voxels, on no other's, and on no particle's."""
    shape = (12, 12, 12)
    room = Room(shape, Slab.everywhere(shape))
    plane = np.array([[6, y, x] for y in range(12) for x in range(12)]).T
    room.take(plane, MEMBRANE + 4)
    here = np.array([6, 5, 5])[:, None] + ball(2)
    assert not room.is_free(here)
    assert room.is_free(here, also=MEMBRANE + 4)
    assert not room.is_free(here, also=MEMBRANE + 3)
    assert not room.is_free(np.array([6, 1, 5])[:, None] + ball(2), also=MEMBRANE + 4)
    room.take(np.array([[8], [5], [5]]))
    assert not room.is_free(here, also=MEMBRANE + 4)


# --- canvas -----------------------------------------------------------------------------------------------------------


def test_cubes_are_cut_at_the_edge() -> None:
    """What reaches out of the volume is left out, on any side; the rest adds up."""
    cube = torch.arange(27.0).view(3, 3, 3)
    canvas = Canvas((4, 5, 6))
    canvas.add_cube(np.array([0, 4, 3]), cube)
    assert torch.equal(canvas.density[0:2, 3:5, 2:5], cube[1:, :2])
    assert float(canvas.density.sum()) == float(cube[1:, :2].sum())
    canvas.add_cube(np.array([0, 4, 3]), cube)
    assert torch.equal(canvas.density[0:2, 3:5, 2:5], 2 * cube[1:, :2])


def test_labels_that_wait_are_those_of_a_cpu() -> None:
    """What a GPU is sent at once, with a class and a row for each voxel, is what a CPU writes one after the other."""
    told = [([0, 1, 5], 3, 1), ([7, 8], 4, np.array([2, 3])), ([11], 255, 70_000)]
    canvas, waiting = Canvas((2, 3, 4)), Canvas((2, 3, 4))
    for at, number, rows in told:
        voxels = np.stack(np.unravel_index(at, canvas.shape))
        canvas.add_label(voxels, number, rows)
        waiting._waiting.append((torch.tensor(at, dtype=torch.int32), number, rows))
    for _ in range(2):
        waiting.send_labels()
        assert torch.equal(waiting.labels, canvas.labels)
        assert torch.equal(waiting.instances, canvas.instances)
    assert canvas.instances.flatten().tolist()[5:12] == [1, 0, 2, 3, 0, 0, 70_000]


def test_templates_placed_again() -> None:
    """Density from a table: the sum of the formulas, also where particles overlap or reach over the edge."""
    shape, draw = (30, 44, 52), np.random.default_rng(0)
    positions = draw.random((12, 3)) * (np.array(shape) - 1)
    particles = table(positions, uniform_rotations(12, draw))
    made = place_templates(particles, {1: template()}, shape=shape)
    pairs = zip(positions, particles.orientations, strict=True)
    truth = torch.stack([analytic(shape, p, o) for p, o in pairs]).sum(0)
    assert made.dtype == torch.float32
    assert correlation(made, truth) > 0.999
    unknown = ParticleTable(classes=particles.classes + 1, positions=positions, orientations=particles.orientations)
    assert not place_templates(unknown, {1: template()}, shape=shape).any()


@pytest.mark.parametrize("interpolation", ["sharp", "linear"])
def test_autocast_does_not_reach_places(interpolation: str) -> None:
    """Within `torch.autocast` templates are turned as without."""
    particles = table(np.array([[15.0, 20.0, 25.0]]), uniform_rotations(1, np.random.default_rng(0)))
    settings = {"shape": (30, 40, 50), "interpolation": interpolation}
    expected = place_templates(particles, {1: template()}, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(place_templates(particles, {1: template()}, **settings), expected)


def test_particles_without_orientation_are_not_turned() -> None:
    """NaN means the reference orientation."""
    position = np.array([[15.0, 20.0, 25.0]])
    made = place_templates(table(position, np.full((1, 3, 3), np.nan)), {1: template()}, shape=(30, 40, 50))
    assert correlation(made, analytic((30, 40, 50), position[0], np.eye(3))) > 0.999


def test_templates_of_two_voxel_sizes() -> None:
    """Templates of different voxel sizes do not go into one specimen."""
    other = ParticleTemplate(density=template().density, voxel_size=5.0, threshold=0.3, name="fine")
    with pytest.raises(ValueError, match=r"expected `templates` of one voxel size, got 5, 10 Å"):
        place_templates(ParticleTable.empty(), {1: template(), 2: other}, shape=(30, 40, 50))
