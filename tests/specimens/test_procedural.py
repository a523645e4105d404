"""Laws of the procedural specimens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.procedural import (
    LABEL_LEVEL,
    REFERENCE_COUNTS,
    TEMPLATES,
    procedural_specimen,
)

SHAPE = (31, 50, 66)
COUNTS = {"cage": 1, "barrel": 1, "tripod": 3, "dimer": 5, "fiducial": 1}


@pytest.fixture(scope="module")
def specimen() -> GrandModel:
    return procedural_specimen(shape=SHAPE, counts=COUNTS, seed=3)


def alone(specimen: GrandModel, row: int) -> npt.NDArray[np.float64]:
    """The density of one particle by the definition of an orientation: template = R⁻¹ (specimen - position)."""
    template = list(TEMPLATES.values())[specimen.particles.classes[row] - 1]
    z, y, x = np.indices(specimen.labels.shape).reshape(3, -1) - specimen.particles.positions[row][:, None]
    columns_xyz = np.stack([x, y, z]) * specimen.label_voxel_size
    rotation = specimen.particles.orientations[row]
    turned = columns_xyz if np.isnan(rotation).any() else np.linalg.inv(rotation) @ columns_xyz
    return template.density(turned.T).reshape(specimen.labels.shape)


def test_types_and_class_names(specimen: GrandModel) -> None:
    """Labels are uint8, instances int32, density float32; classes count from 1 in the templates' order."""
    assert specimen.density.shape == SHAPE
    assert (specimen.density.dtype, specimen.labels.dtype) == (torch.float32, torch.uint8)
    assert specimen.instances is not None
    assert specimen.instances.dtype == torch.int32
    assert specimen.class_names == {0: "background", 1: "cage", 2: "barrel", 3: "tripod", 4: "dimer", 5: "fiducial"}
    drawn = {specimen.class_names[int(n)]: int((specimen.particles.classes == n).sum()) for n in range(1, 6)}
    assert drawn == COUNTS


def test_labels_agree_with_instances_and_table(specimen: GrandModel) -> None:
    """A voxel's label is the class of the row that its instance names, and every row has voxels."""
    assert specimen.instances is not None
    instances = specimen.instances.numpy()
    classes = np.concatenate([[0], specimen.particles.classes])
    np.testing.assert_array_equal(specimen.labels.numpy(), classes[instances])
    assert set(np.unique(instances)) == set(range(len(specimen.particles) + 1))


def test_density_is_that_of_the_templates_at_the_tables_poses(specimen: GrandModel) -> None:
    """The sum of all templates, each asked at its inverse pose, is the density."""
    whole = sum(alone(specimen, row) for row in range(len(specimen.particles)))
    np.testing.assert_allclose(specimen.density.numpy(), whole, atol=0.02)


def test_instances_are_the_templates_above_their_level_without_overlap(specimen: GrandModel) -> None:
    """A particle's voxels are exactly those where its own density exceeds its level: none was taken by another."""
    assert specimen.instances is not None
    for row, number in enumerate(specimen.particles.classes):
        peak = list(TEMPLATES.values())[number - 1].peak
        np.testing.assert_array_equal(specimen.instances.numpy() == row + 1, alone(specimen, row) > LABEL_LEVEL * peak)


def test_the_inverse_orientation_is_wrong(specimen: GrandModel) -> None:
    """Tripods tell a rotation from its inverse, so the tests above would see a transposed matrix."""
    for row in np.flatnonzero(specimen.particles.classes == 3):
        right = alone(specimen, int(row))
        specimen.particles.orientations[row] = specimen.particles.orientations[row].T.copy()
        wrong = alone(specimen, int(row))
        specimen.particles.orientations[row] = specimen.particles.orientations[row].T.copy()
        assert np.corrcoef(right.ravel(), wrong.ravel())[0, 1] < 0.9


def test_positions_are_the_middles_of_the_instances(specimen: GrandModel) -> None:
    """A particle's position is the mean of its voxels, to a voxel; solid particles are labelled there."""
    assert specimen.instances is not None
    for row, position in enumerate(specimen.particles.positions):
        voxels = np.argwhere(specimen.instances.numpy() == row + 1)
        assert np.linalg.norm(voxels.mean(axis=0) - position) < 1.0
        nearest = np.linalg.norm(voxels - position, axis=1).min()
        hollow = specimen.class_names[int(specimen.particles.classes[row])] in ("cage", "barrel")
        assert nearest < (9.0 if hollow else 1.0)


def test_particles_are_whole_and_apart() -> None:
    """Bounding spheres do not meet, and lie within the specimen."""
    specimen = procedural_specimen(seed=1)
    names = [specimen.class_names[int(number)] for number in specimen.particles.classes]
    assert {name: names.count(name) for name in TEMPLATES} == REFERENCE_COUNTS
    radii = np.array([TEMPLATES[name].radius for name in names]) / specimen.voxel_size
    positions = specimen.particles.positions
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (distance > radii[:, None] + radii[None]).all()
    assert (positions - radii[:, None] >= 0).all()
    assert (positions + radii[:, None] <= np.array(specimen.labels.shape) - 1).all()


def test_orientations_are_rotations_and_none_for_gold() -> None:
    """Matrices are orthonormal with determinant 1, their mean is near 0 (uniform), and gold has NaN."""
    specimen = procedural_specimen(shape=(40, 100, 100), counts={"dimer": 90, "fiducial": 2}, seed=5)
    gold = specimen.particles.classes == 5
    assert np.isnan(specimen.particles.orientations[gold]).all()
    turns = specimen.particles.orientations[~gold]
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1.0)
    assert np.abs(turns.mean(axis=0)).max() < 0.2


def test_the_address_determines_the_specimen() -> None:
    """The same seed and index give the same specimen; another of either gives another."""
    small = {"shape": (26, 34, 36), "counts": {"tripod": 1, "dimer": 2}}
    first, again = (procedural_specimen(**small, seed=2, index=1) for _ in range(2))
    assert torch.equal(first.density, again.density)
    assert torch.equal(first.labels, again.labels)
    for seed, index in ((2, 2), (3, 1)):
        assert not torch.equal(first.density, procedural_specimen(**small, seed=seed, index=index).density)


def test_voxel_size_scales_what_is_seen() -> None:
    """At half the voxel size a dimer has eight times the voxels, and the same density."""
    coarse, fine = (procedural_specimen(shape=(20, 20, 20), voxel_size=s, counts={"dimer": 1}) for s in (10.0, 5.0))
    assert int((fine.labels > 0).sum()) == pytest.approx(8 * int((coarse.labels > 0).sum()), rel=0.2)
    assert float(fine.density.max()) == pytest.approx(float(coarse.density.max()), rel=0.1)


def test_peaks_are_as_said() -> None:
    """No template exceeds its peak by more than a few per cent, and all come close to it."""
    points = np.random.default_rng(0).normal(scale=40.0, size=(30000, 3))
    for template in TEMPLATES.values():
        assert float(template.density(points).max()) == pytest.approx(template.peak, rel=0.05)


def test_a_specimen_without_particles() -> None:
    """No counts, no particles: all zero, an empty table."""
    empty = procedural_specimen(shape=(8, 9, 10), counts={})
    assert len(empty.particles) == 0
    assert float(empty.density.abs().max()) == 0.0
    assert int(empty.labels.max()) == 0


def test_by_default_what_finds_no_room_is_left_out() -> None:
    """A specimen too thin for cages holds the other classes, under the same numbers."""
    specimen = procedural_specimen(shape=(17, 60, 60))
    assert set(specimen.particles.classes.tolist()) == {4, 5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": (8, 8)}, "three positive numbers"),
        ({"voxel_size": 0.0}, "expected `voxel_size` to be more than 0"),
        ({"voxel_size": 30.0}, "at most 20.0 Å, got 30.0"),
        ({"counts": {"ribosome": 1}}, "for cage, barrel, tripod, dimer, fiducial, got"),
        ({"counts": {"dimer": -1}}, "expected `counts` of 0 or more"),
        ({"shape": (20, 20, 20), "counts": {"cage": 1}}, "found none for a cage after 0; set `counts` smaller"),
        ({"shape": (24, 24, 24), "counts": {"dimer": 50}}, "expected room for 50 particles"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    """The message says what was expected and found."""
    with pytest.raises(ValueError, match=message):
        procedural_specimen(**settings)
