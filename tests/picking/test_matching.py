"""Template matching: rotations, laws of the correlation, and particles that are found where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from faket_aug import ContrastTransfer, ParticleTemplate, TiltSeries, project, reconstruct
from faket_aug._arrays import FloatArray
from faket_aug.geometry import even_rotations
from faket_aug.picking import correlation, match_template
from tests._helpers import blobs, generator

VOXEL = 10.0
ANGLES = np.arange(-60.0, 61.0, 6.0)
#: (z, y, x) of the template's parts about its centre: no rotation but that by 0 brings it onto itself.
PARTS = ((-5, 0, 0), (0, 4, 1), (1, -3, 4), (4, 1, -2), (0, 0, 0), (3, 4, 3))


@pytest.fixture(scope="module")
def template() -> ParticleTemplate:
    density = blobs((19, 21, 23), [(9 + z, 10 + y, 11 + x) for z, y, x in PARTS])
    return ParticleTemplate(density=density, voxel_size=VOXEL, threshold=0.2, name="handed")


def planted(shape: tuple[int, int, int], positions: FloatArray, rotations: FloatArray) -> Tensor:
    """Rotated templates, computed from their parts and not by interpolation."""
    centers = []
    for position, rotation in zip(positions, rotations, strict=True):
        for z, y, x in PARTS:
            moved = rotation @ np.array([x, y, z], dtype=float)
            centers.append(position + moved[::-1])
    return blobs(shape, centers)


def test_even_rotations_cover_all_orientations() -> None:
    """Rotations are proper, deterministic, and any orientation is near one of them; twice the count is nearer."""
    found = even_rotations(500)
    assert np.allclose(found @ found.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(found), 1)
    assert np.array_equal(found, even_rotations(500))
    from scipy.spatial.transform import Rotation

    others = Rotation.random(400, random_state=1).as_matrix()

    def farthest(count: int) -> float:
        trace = np.einsum("aij,bij->ab", others, even_rotations(count)).max(axis=1)
        return float(np.degrees(np.arccos((trace - 1) / 2)).max())

    assert farthest(500) < 27
    assert farthest(4000) < 13.5
    # The mean over all orientations rotates nothing to anywhere.
    assert np.abs(found.mean(axis=0)).max() < 0.01


def test_a_planted_particle_is_found_in_its_rotation(template: ParticleTemplate) -> None:
    """Without noise or filter the score is 1, at the place and in the rotation where the particle was put."""
    rotations = even_rotations(12)
    position = np.array([20.0, 30.0, 26.0])
    tomogram = -planted((40, 56, 48), position[None], rotations[[7]])
    found = match_template(
        tomogram,
        template,
        voxel_size=VOXEL,
        tilt_angles=[-90, 90],
        rotations=rotations,
        low_pass=25.0,
        bin=1,
    )
    best = found.peaks(1, margin=0)
    assert best.scores[0] > 0.97
    assert np.abs(best.positions[0] - position).max() < 0.2
    assert np.array_equal(best.rotations[0], rotations[7])
    assert float(found.scores.max()) <= 1 + 1e-4
    # Bright particles are what dark ones are not.
    bright = match_template(
        -tomogram,
        template,
        voxel_size=VOXEL,
        tilt_angles=[-90, 90],
        rotations=rotations,
        low_pass=25.0,
        bin=1,
        dark=False,
    )
    assert torch.allclose(bright.scores, found.scores, atol=1e-4)


def test_scores_do_not_depend_on_gray_values_or_blocks(
    template: ParticleTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`a · tomogram + b` has the same scores; a tomogram matched in blocks, or under autocast, the same as at once."""
    tomogram = torch.randn((24, 70, 36), generator=generator(3))
    settings: dict[str, Any] = {
        "voxel_size": VOXEL,
        "tilt_angles": ANGLES,
        "rotations": 3,
        "low_pass": 30.0,
        "bin": 1,
        "radius": 50.0,
    }
    once = match_template(tomogram, template, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(match_template(tomogram, template, **settings).scores, once.scores)
    other = match_template(tomogram * 40 + 1000, template, **settings)
    assert torch.allclose(other.scores, once.scores, atol=1e-3)
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(correlation, "BLOCK", 24 * 36 * 20)
    blocks = match_template(tomogram, template, **settings, progress=lambda *now: steps.append(now))
    assert torch.allclose(blocks.scores, once.scores, atol=1e-4)
    assert (blocks.indices == once.indices).float().mean() > 0.999
    assert steps[-1][0] == steps[-1][1] > 3


def test_the_template_is_filtered_as_the_tomogram(template: ParticleTemplate) -> None:
    """Missing wedge and transfer function of the template raise the score of a tomogram that has them."""
    rotations = even_rotations(8)
    shape, position = (40, 48, 48), np.array([[20.0, 24.0, 24.0]])
    optics = ContrastTransfer(defocus=10.0)
    tilts = optics.apply(-project(planted(shape, position, rotations[[2]]), ANGLES), VOXEL)
    tomogram = reconstruct(tilts, ANGLES, depth=40, filter="ramp")

    def score(**settings: object) -> float:
        known: dict[str, Any] = {"tilt_angles": ANGLES, "ctf": optics} | settings
        found = match_template(
            tomogram, template, voxel_size=VOXEL, rotations=rotations[[2]], low_pass=25.0, bin=1, **known
        )
        return float(found.scores[18:23, 22:27, 22:27].max())

    whole = score()
    assert whole > 0.97
    assert whole > score(ctf=None) + 0.05
    assert whole > score(tilt_angles=[-90.0, 90.0]) + 0.05
    # Each tilt's own defocus counts by its mean.
    assert score(ctf=replace(optics, defocus=(9.0, 11.0))) == pytest.approx(whole, abs=1e-6)
    assert score(phase_flipped=True) < whole - 0.01


def test_particles_of_a_noisy_tomogram_are_found(template: ParticleTemplate) -> None:
    """Of particles in a simulated tomogram with noise and a missing wedge, binned by two, nearly all are found."""
    random = np.random.default_rng(5)
    grid = np.stack(np.meshgrid([20.0], np.arange(20.0, 110, 22), np.arange(20.0, 110, 22), indexing="ij"), -1)
    positions = grid.reshape(-1, 3) + random.uniform(-3, 3, (25, 3))
    from scipy.spatial.transform import Rotation

    rotations = Rotation.random(25, random_state=2).as_matrix()
    clean = -project(planted((40, 128, 128), positions, rotations), ANGLES)
    tilts = clean + 1.0 * clean.std() * torch.randn(clean.shape, generator=generator(4))
    tomogram = reconstruct(tilts, ANGLES, depth=40, filter="hann")
    found = match_template(tomogram, template, voxel_size=VOXEL, tilt_angles=ANGLES, rotations=100)
    assert found.bin == 2
    best = found.peaks(25, margin=10)
    near, _ = cKDTree(positions).query(best.positions)
    recall, _ = cKDTree(best.positions).query(positions)
    assert (near < 3).mean() >= 0.9
    assert (recall < 3).mean() >= 0.9
    assert np.median(near) < 1.5
    assert (np.diff(best.scores) <= 0).all()


def test_peaks_keep_their_distance_and_margin(template: ParticleTemplate) -> None:
    """No two places are nearer than `distance`, none lies within `margin` of a face, and no better one is left out."""
    found = match_template(
        torch.randn((30, 40, 50), generator=generator(1)),
        template,
        voxel_size=VOXEL,
        tilt_angles=ANGLES,
        rotations=2,
        low_pass=30.0,
        bin=1,
    )
    best = found.peaks(1000, distance=7.0, margin=5)
    pairs = cKDTree(best.positions).query_pairs(7.0 - 1.0)
    assert not pairs
    assert (best.positions >= 4.5).all()
    assert (best.positions <= np.array([25, 35, 45]) - 0.5).all()
    assert len(found.peaks(3, distance=7.0, margin=5)) == 3
    assert np.array_equal(found.peaks(3, distance=7.0, margin=5).positions, best.positions[:3])
    inner = found.scores[5:25, 5:35, 5:45]
    assert best.scores[0] == pytest.approx(float(inner.max()), abs=0.02)
    assert len(best) > 5


def test_an_empty_region_has_no_score(template: ParticleTemplate) -> None:
    """Where nothing was measured there is no particle, and nothing that is not a number."""
    tomogram = torch.randn((24, 30, 80), generator=generator(1))
    tomogram[..., 30:] = 0.0
    found = match_template(
        tomogram, template, voxel_size=VOXEL, tilt_angles=ANGLES, rotations=2, low_pass=30.0, bin=1, radius=60.0
    )
    assert torch.isfinite(found.scores).all()
    assert float(found.scores[:, :, 50:65].abs().max()) == 0.0


@pytest.mark.slow
def test_ribosomes_of_a_real_tomogram(reference: Path, reference_file: Callable[[Path, str], Path]) -> None:
    """In a part of a real tomogram of cells the best hits are those of another template matching, and not mirrored."""
    folder = "data/real/empiar10499_ts00254"
    series = TiltSeries.read(reference_file(reference, f"{folder}/00254.mrc")).aligned()
    tomogram = reconstruct(series.tilts[:, :160], series.tilt_angles, depth=128, filter="hann")
    assert series.metadata is not None
    ribosome = ParticleTemplate.from_map(
        reference_file(reference, "data/particles_10A/4v4r.mrc"), molecular_weight=2500.0
    )
    known = np.loadtxt(reference_file(reference, f"{folder}/ribosomes.txt"))[:, :3]
    known = known[known[:, 1] < 145]
    found = match_template(
        tomogram[..., :320],
        ribosome,
        voxel_size=VOXEL,
        tilt_angles=series.tilt_angles,
        ctf=ContrastTransfer.from_metadata(series.metadata),
        rotations=40,
    )
    known = known[known[:, 2] < 305]
    best = found.peaks(30)
    agree = cKDTree(known).query(best.positions)[0] < 5
    mirrored = cKDTree(known * [-1, 1, 1] + [127, 0, 0]).query(best.positions)[0] < 5
    assert agree.mean() > 0.6
    assert mirrored.mean() < 0.2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"voxel_size": 8.0}, "handed: expected voxels of 8 Å"),
        ({"low_pass": 0.0}, "low_pass"),
        ({"bin": 0}, "bin"),
        ({"radius": -1.0}, "radius"),
        ({"rotations": np.eye(3)}, r"matrices \(n, 3, 3\)"),
        ({"rotations": 0}, "rotations"),
    ],
)
def test_wrong_settings_are_told(template: ParticleTemplate, change: dict[str, Any], words: str) -> None:
    settings: dict[str, Any] = {"voxel_size": VOXEL, "tilt_angles": ANGLES, "rotations": 2} | change
    with pytest.raises(ValueError, match=words):
        match_template(torch.zeros(8, 8, 8), template, **settings)
