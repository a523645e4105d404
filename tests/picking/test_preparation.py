"""A tomogram is prepared as patches were: whatever lies around it, and whatever gold lies in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from faket_aug.data.patches import normalize
from faket_aug.picking.preparation import LocalNormalization, Preparation, measured_voxels
from tests._helpers import generator

SHAPE, WINDOW = (30, 44, 52), (16, 16, 16)


def tomogram(seed: int = 0) -> Tensor:
    """Noise about 100 that is stronger and brighter towards one side."""
    x = torch.linspace(0, 1, SHAPE[2])
    return 100 + 20 * x + (1 + 2 * x) * torch.randn(SHAPE, generator=generator(seed))


def prepared(volume: Tensor, **settings: tuple[float, float]) -> Tensor:
    """All of a tomogram in one tile."""
    return LocalNormalization(volume, WINDOW, **settings).tile([slice(0, n) for n in volume.shape])


def test_as_patches() -> None:
    """In the middle of a patch a voxel gets what the patch's own normalisation gives it."""
    volume = tomogram()
    whole = prepared(volume)
    for z, y, x in ((15, 22, 26), (8, 8, 8), (22, 36, 44), (10, 30, 40)):
        patch = normalize(volume[z - 8 : z + 8, y - 8 : y + 8, x - 8 : x + 8])
        assert abs(float(whole[z, y, x] - patch[8, 8, 8])) < 0.12


def test_autocast_does_not_reach_the_preparation() -> None:
    """A tile that is made where a network runs under autocast is the one that is made elsewhere."""
    local, box = LocalNormalization(tomogram(), WINDOW), [slice(0, n) for n in SHAPE]
    expected = local.tile(box)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(local.tile(box), expected)


def test_corners_are_as_in_the_outermost_patch() -> None:
    """At the border windows are moved inwards, as patches are."""
    volume = tomogram()
    corner = normalize(volume[:16, :16, :16])
    assert float((prepared(volume)[:8, :8, :8] - corner[:8, :8, :8]).abs().max()) < 0.02


def test_tiles_make_no_difference() -> None:
    """A tile holds what the whole holds there."""
    local = LocalNormalization(tomogram(), WINDOW)
    whole = local.tile([slice(0, n) for n in SHAPE])
    box = (slice(3, 20), slice(10, 44), slice(0, 31))
    assert torch.allclose(local.tile(box), whole[box], atol=1e-5)


@pytest.mark.parametrize("fill", [0.0, 112.0, -1e4])
def test_what_was_not_measured_counts_nowhere(fill: float) -> None:
    """A tomogram within a larger constant volume is prepared as without it, and the rest is 0."""
    volume = tomogram()
    larger = torch.full([n + 40 for n in SHAPE], fill)
    inner = tuple(slice(20, 20 + n) for n in SHAPE)
    larger[inner] = volume
    got = prepared(larger)
    assert torch.allclose(got[inner], prepared(volume), atol=1e-4)
    got[inner] = 0
    assert not bool(got.any())


def test_gold_changes_little() -> None:
    """Beads are left out of what the network sees; a window without them keeps its numbers, one with them nearly."""
    volume, clean = tomogram(), prepared(tomogram())
    volume[10:14, 10:14, 10:14] = -900.0
    volume[20, 30, 40] = 5000.0
    got = prepared(volume, extremes=(-5.0, 5.0))
    assert not bool(got[10:14, 10:14, 10:14].any())
    left_out = got == 0
    assert int(left_out.sum()) < 4**3 + 6 * 2 * 4**2 + 200
    away = (got - clean).abs()[~left_out]
    assert float(away.max()) < 0.25
    assert float(away.mean()) < 0.02


def test_beads_stay_where_training_had_them() -> None:
    """Values that training held are seen."""
    volume = tomogram()
    volume[10:13, 10:13, 10:13] = 60.0
    assert float(prepared(volume, extremes=(-60.0, 8.0))[11, 11, 11]) < -12


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_measured_voxels(dtype: torch.dtype) -> None:
    """Noise is measured, also in whole numbers; constant regions are not, to their last voxel."""
    volume = (tomogram() * 0.5).to(dtype).float()
    assert bool(measured_voxels(volume).all())
    volume[:, :7] = 3.0
    volume[20:, 30:, 40:] = 0.0
    found = measured_voxels(volume)
    assert not bool(found[:, :7].any())
    assert not bool(found[22:, 32:, 42:].any())
    assert float(found[:20, 9:, :].float().mean()) == 1.0


def test_constant() -> None:
    """A constant tomogram is refused."""
    with pytest.raises(ValueError, match="expected a tomogram that varies"):
        LocalNormalization(torch.full(SHAPE, 2.0), WINDOW)


def test_preparation_of_a_batch() -> None:
    """Patch size, normalisation and extremes are read off a batch."""
    images = torch.stack([normalize(torch.randn(1, 8, 12, 16, generator=generator(i)) * 5 + 3) for i in range(3)])
    found = Preparation.of({"image": images})
    assert found.patch_size == (8, 12, 16)
    assert found.normalized
    assert found.extremes == (float(images.min()), float(images.max()))
    assert not Preparation.of({"image": images * 2}).normalized
    assert Preparation(**found.to_dict()) == found
    with pytest.raises(ValueError, match="expected `extremes`"):
        Preparation(patch_size=(8, 8, 8), extremes=(1.0, 0.0))
