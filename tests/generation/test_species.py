"""Settings of particles, gold and ice, and the slab that is drawn from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_generator import SHAPE, VOXEL_SIZE, ball, small
from test_placement import template

from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.ice import IceSlab, Slab
from faket_aug.generation.ranges import as_count, as_range, turned_by
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.stamp import Stamp, uniform_rotations
from faket_aug.generation.templates import ParticleTemplate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"count": 3, "concentration_per_um3": 1.0},
            r"asymmetric: expected one of `count`, `concentration_per_um3` an",
        ),
        ({"count": (5, 2)}, r"expected `count` to be one number or a pair \(lowest, highest\), got \(5, 2\)"),
        ({"concentration_molar": -1.0}, r"expected `concentration_molar` to be 0 or more, got -1.0"),
        ({"templates": []}, r"expected at least one template in `templates`, got none"),
        ({"cluster_size": 0}, r"expected `cluster_size` to be a whole number of 1 or more, got 0"),
        ({"cluster_radius": 0.0}, r"expected `cluster_radius` to be more than 0, got 0.0"),
        ({"membrane_side": "top"}, r"expected `membrane_side` to be one of 'outside', 'inside', got 'top'"),
        ({"membrane_bound": True, "cluster_size": 3}, r"asymmetric: expected `cluster_size` 1 of membrane-bound"),
    ],
)
def test_particle_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    """What cannot be is refused with what was expected."""
    with pytest.raises(ValueError, match=message):
        ParticleSpecies(**({"templates": template()} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thickness": 0.0}, r"expected `thickness` to be more than 0, got 0.0"),
        ({"thickness": 500.0, "tilt": 60.0}, r"expected `tilt` of less than 60 degrees, got 60.0"),
        ({"thickness": 500.0, "tilt": (5.0, 2.0)}, r"expected `tilt` to be one number or a pair"),
    ],
)
def test_slabs_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    """What cannot be is refused with what was expected."""
    with pytest.raises(ValueError, match=message):
        IceSlab(**settings)


def test_gold_smaller_than_a_voxel() -> None:
    """A bead that no voxel shows is refused when the generator is made."""
    with pytest.raises(ValueError, match=r"expected `radius` to be more than 0, got -5"):
        FiducialSpecies(radius=-5.0)
    with pytest.raises(ValueError, match=r"fiducial: expected `radius` of at least the voxel size, 20 Å, got 2 Å"):
        GrandModelGenerator(fiducials=FiducialSpecies(radius=2.0), shape=SHAPE, voxel_size=20.0)


@pytest.mark.parametrize("tilt", [0.0, 7.0, 25.0])
def test_voxels_of_a_slab(tilt: float) -> None:
    """Voxels of the ice are counted, columns and ranges found, as a look at all voxels finds them."""
    shape = (30, 40, 50)
    slab = IceSlab(thickness=137.0, tilt=tilt, azimuth=30.0).draw(shape, VOXEL_SIZE, None)
    z, y, x = slab.heights(shape)
    inside = np.abs(z + y + x) <= slab.half
    assert slab.voxels(shape) == inside.sum()
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    assert np.allclose(slab.height(places), z + y + x)
    bottom, top = slab.column(shape, places[0, :, :, 1:].astype(float))
    column = places[..., 0]
    assert np.array_equal((column >= bottom) & (column <= top), inside)
    first, last = slab.z_range(shape)
    assert first <= inside.any(axis=(1, 2)).argmax()
    assert last >= 29 - inside[::-1].any(axis=(1, 2)).argmax()
    everywhere = Slab.everywhere(shape)
    assert everywhere.voxels(shape) == np.prod(shape)
    assert everywhere.z_range(shape)[0] <= 0
    assert everywhere.z_range(shape)[1] >= 29


def test_normal_leans_as_azimuth_says() -> None:
    """Azimuth counts from x towards y; a slab whose normal leans to x is lower at high x."""
    for azimuth, axis in ((0.0, 2), (90.0, 1)):
        slab = IceSlab(thickness=100.0, tilt=20.0, azimuth=azimuth).draw(SHAPE, VOXEL_SIZE, None)
        assert slab.normal[axis] == pytest.approx(np.sin(np.deg2rad(20)))
        assert slab.normal[0] == pytest.approx(np.cos(np.deg2rad(20)))


@pytest.mark.parametrize("made", [ball(2.0), ball(3.0), ball(4.0), template(), small()])
def test_volume_of_a_mask(made: ParticleTemplate) -> None:
    """The volume that counts are made of is that of turned copies, not the voxels that lie in the template."""
    draw = np.random.default_rng(0)
    poses = uniform_rotations(200, draw), draw.random((200, 3)) - 0.5
    sharp, linear = (Stamp.of(made, interpolation=name) for name in ("sharp", "linear"))
    mean = np.mean([len(chosen) for _, _, chosen in sharp.turned(*poses)])
    assert sharp.volume == pytest.approx(mean, rel=0.05)
    mean = np.mean([len(chosen) for _, _, chosen in linear.turned(*poses)])
    assert ParticleSpecies(templates=made).mask_voxels == pytest.approx(mean, rel=0.05)
    both = ParticleSpecies(templates=[made, ball(5.5)]).mask_voxels
    assert both == pytest.approx((mean + 4 / 3 * np.pi * 5.5**3) / 2, rel=0.05)


def test_expected_numbers() -> None:
    """A count is itself, of a range the highest or a drawn one; concentrations go with the volume."""

    def of(**settings: Any) -> ParticleSpecies:
        return ParticleSpecies(templates=small(), **settings)

    assert of(count=5).expected(0.1) == 5
    assert of(count=(2, 4)).expected(0.1) == 4
    assert {of(count=(2, 4)).expected(0.1, np.random.default_rng(i)) for i in range(20)} == {2, 3, 4}
    assert of(concentration_per_um3=300.0).expected(0.1) == pytest.approx(30)
    assert of(concentration_molar=1e-6).expected(0.1) == pytest.approx(60.2214076)
    assert of().expected(0.1) == 1
    assert not of().is_counted
    assert of(count=0).is_counted


def test_names() -> None:
    """The class is called after the first template, or as one says."""
    assert ParticleSpecies(templates=[small(), template()]).class_name == "small"
    assert ParticleSpecies(templates=small(), name="other").class_name == "other"
    assert FiducialSpecies().class_name == "fiducial"


def test_beads_of_several_sizes() -> None:
    """Of a range of radii five templates are made, of a number one; their masks are balls."""
    made = FiducialSpecies(radius=(40.0, 60.0)).templates_at(10.0)
    assert len(made) == 5
    volumes = [int(bead.mask.sum()) for bead in made]
    assert volumes == sorted(volumes)
    assert volumes[0] == pytest.approx(4 / 3 * np.pi * 64, rel=0.1)
    assert volumes[-1] == pytest.approx(4 / 3 * np.pi * 216, rel=0.05)
    assert len(FiducialSpecies(radius=50.0).templates_at(10.0)) == 1


def test_ranges() -> None:
    """One number is a range of its own; pairs may be of any kind of sequence and number."""
    assert as_range("x", 3) == (3.0, 3.0)
    assert as_range("x", np.float32(2.5)) == (2.5, 2.5)  # type: ignore[arg-type]
    assert as_range("x", [1, 2]) == (1.0, 2.0)  # type: ignore[arg-type]
    assert as_count("x", np.int64(4)) == (4, 4)  # type: ignore[arg-type]
    for wrong in ((1.0, 2.0, 3.0), "ab", (2.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match=r"expected `x` to be one number or a pair \(lowest, highest\), got"):
            as_range("x", wrong)  # type: ignore[arg-type]


def test_points_times_a_matrix() -> None:
    """Rows times a matrix, as NumPy computes it."""
    draw = np.random.default_rng(0)
    points, matrix = draw.normal(size=(4, 5, 3)), draw.normal(size=(3, 2))
    assert np.allclose(turned_by(points, matrix), points @ matrix)
