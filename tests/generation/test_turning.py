"""The detail of turned templates: their spectrum is that of atoms that are turned before they are drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.placement import place_templates
from faket_aug.generation.potential import coulomb_potential
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.stamp import Stamp, uniform_rotations
from faket_aug.generation.templates import ParticleTemplate
from faket_aug.specimens.particles import ParticleTable

VOXEL_SIZE, HALF = 10.0, 17
#: Cycles per voxel, the borders of the shells.
SHELLS = np.array([0.2, 0.3, 0.35, 0.4, 0.45])


def atoms(count: int = 600) -> tuple[np.ndarray, list[str]]:
    """Atoms `(n, 3)` (x, y, z), Å, of a particle without symmetry: three unequal balls."""
    draw = np.random.default_rng(5)
    places = draw.normal(size=(count, 3))
    places *= (draw.random(count) ** (1 / 3) / np.linalg.norm(places, axis=1))[:, None]
    balls = np.array([[0.0, 0.0, 0.0], [38.0, 10.0, -5.0], [-12.0, 35.0, 20.0]])
    radii = np.array([32.0, 22.0, 18.0])
    which = np.arange(count) % 3
    return balls[which] + radii[which][:, None] * places, [("C", "N", "O")[i % 3] for i in range(count)]


def drawn(places: np.ndarray, elements: list[str], middle: np.ndarray) -> torch.Tensor:
    """The potential of atoms about a position (z, y, x), in voxels."""
    return coulomb_potential(
        (places[:, ::-1] + middle * VOXEL_SIZE), elements, shape=(2 * HALF + 1,) * 3, voxel_size=VOXEL_SIZE
    )


@pytest.fixture(scope="module")
def particle() -> ParticleTemplate:
    """The template of the atoms."""
    density = drawn(*atoms(), np.full(3, float(HALF)))
    return ParticleTemplate(density=density, voxel_size=VOXEL_SIZE, threshold=float(density.max()) / 3, name="atoms")


def shells(volume: torch.Tensor) -> np.ndarray:
    """The power of each shell."""
    power = np.abs(np.fft.fftn(volume.double().numpy())) ** 2
    z, y, x = (np.fft.fftfreq(n) for n in volume.shape)
    distance = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    return np.histogram(distance, SHELLS, weights=power)[0]


def powers(particle: ParticleTemplate, interpolation: str, orientations: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The power of turned templates over that of turned atoms, by shells."""
    found, truth = np.zeros(len(SHELLS) - 1), np.zeros(len(SHELLS) - 1)
    for orientation, place in zip(orientations, places, strict=True):
        table = ParticleTable(classes=np.ones(1, np.int64), positions=place[None], orientations=orientation[None])
        shape = (2 * HALF + 1,) * 3
        found += shells(place_templates(table, {1: particle}, shape=shape, interpolation=interpolation))
        own, elements = atoms()
        truth += shells(drawn(own @ orientation.T, elements, place))
    return found / truth


def test_turned_templates_keep_their_power(particle: ParticleTemplate) -> None:
    """Within 5 % up to 0.45 cycles per voxel at any orientation; linear interpolation of the spline loses a third."""
    draw = np.random.default_rng(1)
    poses = uniform_rotations(6, draw), HALF + draw.random((6, 3)) - 0.5
    assert powers(particle, "sharp", *poses) == pytest.approx(np.ones(4), abs=0.05)
    blurred = powers(particle, "linear", *poses)
    assert blurred[0] < 0.95
    assert blurred[-1] < 0.7


def test_unturned_templates_keep_their_power(particle: ParticleTemplate) -> None:
    """Samples are not sharpened to make up for what is lost between them: without rotation nothing is changed."""
    pose = np.eye(3)[None], np.full((1, 3), float(HALF))
    assert powers(particle, "sharp", *pose) == pytest.approx(np.ones(4), abs=0.05)


def test_sharp_copies_are_nearer_to_turned_atoms(particle: ParticleTemplate) -> None:
    """The largest error falls from 6 % of the peak to 2 %; the mask's volume is that of the turned masks."""
    draw = np.random.default_rng(2)
    errors, volumes = {}, {}
    for interpolation in ("sharp", "linear"):
        stamp = Stamp.of(particle, interpolation=interpolation)
        orientations, fractions = uniform_rotations(8, draw), draw.random((8, 3)) - 0.5
        worst, counts = 0.0, []
        for i, cube, chosen in stamp.turned(orientations, fractions):
            own, elements = atoms()
            half = cube.shape[0] // 2
            truth = drawn(own @ orientations[i].T, elements, HALF + fractions[i])
            truth = truth[(slice(HALF - half, HALF + half + 1),) * 3]
            worst = max(worst, float((cube - truth)[cube != 0].abs().max()) / float(truth.max()))
            counts.append(len(chosen))
        errors[interpolation], volumes[interpolation] = worst, np.mean(counts) / stamp.volume
    assert errors["sharp"] < 0.025
    assert errors["linear"] > 0.045
    assert volumes["sharp"] == pytest.approx(1, abs=0.02)


def test_interpolation_by_name(particle: ParticleTemplate) -> None:
    """The old interpolation is there by name; beads have it always; others are refused."""
    settings: dict[str, Any] = {"particles": ParticleSpecies(templates=particle, count=2), "shape": (40, 40, 40)}
    sharp, linear = (GrandModelGenerator(**settings, interpolation=name) for name in ("sharp", "linear"))
    assert [len(made._stamps()[0][0].density[0]) for made in (sharp, linear)] == [2, 1]
    assert not torch.equal(sharp.generate(seed=1).density, linear.generate(seed=1).density)
    gold = GrandModelGenerator(fiducials=FiducialSpecies(count=2), shape=(40, 40, 40))
    assert torch.equal(gold.generate(seed=1).density, linear_gold().generate(seed=1).density)
    with pytest.raises(ValueError, match=r"expected `interpolation` to be one of 'sharp', 'linear', got 'cubic'"):
        GrandModelGenerator(**settings, interpolation="cubic")


def linear_gold() -> GrandModelGenerator:
    """Beads alone, with the old interpolation."""
    return GrandModelGenerator(fiducials=FiducialSpecies(count=2), shape=(40, 40, 40), interpolation="linear")
