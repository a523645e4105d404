"""Resampling against the function that was sampled, thresholds against volumes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug.generation.density import (
    center_of_mass,
    fading,
    low_pass,
    plateau_threshold,
    resample_density,
    volume_threshold,
)


def grid(shape: tuple[int, ...], voxel_size: float) -> np.ndarray:
    """The voxels' centres, `(3, z, y, x)` in Å."""
    return np.stack(np.meshgrid(*(np.arange(n) * voxel_size for n in shape), indexing="ij"))


# --- the low-pass -----------------------------------------------------------------------------------------------------


def test_low_pass_is_a_gaussian_with_an_end() -> None:
    """1 at 0, 1/e at 1 / resolution, nothing at the grid's Nyquist frequency and beyond."""
    k = torch.tensor([0.0, 1 / 20, 1 / 10, 0.11])
    assert low_pass(k**2, voxel_size=None, resolution=20).tolist() == pytest.approx(
        [1, math.exp(-1), math.exp(-4), math.exp(-4.84)]
    )
    passed = low_pass(k**2, voxel_size=5.0, resolution=0).tolist()
    assert passed == pytest.approx([1, 1, 0, 0], abs=1e-6)
    with pytest.raises(ValueError, match="expected `resolution` to be 0 or more, got -1"):
        low_pass(k**2, voxel_size=5.0, resolution=-1)


# --- resampling -------------------------------------------------------------------------------------------------------


def blobs(shape: tuple[int, ...], voxel_size: float, resolution: float = 0.0) -> Tensor:
    """Gaussian blobs in Å about voxel `n // 2`, of deviation 8 Å or more, as a low-pass leaves them."""
    places = grid(shape, voxel_size) - np.array([n // 2 * voxel_size for n in shape])[:, None, None, None]
    total = np.zeros(shape)
    for center, deviation, height in (((9, -14, 21), 8.0, 1.0), ((-12, 6, -17), 10.0, 0.7), ((3, 15, -2), 9.0, -0.4)):
        width = math.sqrt(deviation**2 + resolution**2 / (2 * math.pi**2))
        r2 = ((places - np.array(center)[:, None, None, None]) ** 2).sum(axis=0)
        total += height * (deviation / width) ** 3 * np.exp(-r2 / (2 * width**2))
    return torch.from_numpy(total)


@pytest.mark.parametrize("shape", [(30, 33, 38), (31, 34, 37)])
@pytest.mark.parametrize("new_voxel_size", [4.0, 3.0, 2.1])
def test_resampled_density_is_the_same_function(shape: tuple[int, ...], new_voxel_size: float) -> None:
    """What a grid holds is found again on any other, about the same centre."""
    found = resample_density(blobs(shape, 4.0), voxel_size=4.0, new_voxel_size=new_voxel_size)
    expected = blobs(tuple(found.shape), new_voxel_size)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("ratio", [1.7, 2.0, 2.5])
def test_coarser_density_is_low_passed(ratio: float) -> None:
    """Larger voxels come with a Gaussian, by default of twice their size; the integral stays."""
    density, shape, new = blobs((44, 47, 50), 4.0), (44, 47, 50), 4.0 * ratio
    # At this resolution the Gaussian is done where the grid ends.
    found = resample_density(density, voxel_size=4.0, new_voxel_size=new, resolution=5 * new)
    np.testing.assert_allclose(found, blobs(tuple(found.shape), new, resolution=5 * new), atol=2e-3)
    assert [n * ratio for n in found.shape] == pytest.approx(list(shape), abs=ratio)
    default = resample_density(density, voxel_size=4.0, new_voxel_size=new)
    assert torch.equal(default, resample_density(density, voxel_size=4.0, new_voxel_size=new, resolution=2 * new))
    assert float(default.sum()) * ratio**3 == pytest.approx(float(density.sum()), rel=0.01)
    np.testing.assert_allclose(default, blobs(tuple(default.shape), new, resolution=2 * new), atol=0.05)


def test_resolution_widens() -> None:
    """A resolution is a Gaussian at the same voxel size, too."""
    found = resample_density(blobs((40, 42, 45), 4.0), voxel_size=4.0, new_voxel_size=4.0, resolution=30.0)
    np.testing.assert_allclose(found, blobs((41, 43, 45), 4.0, resolution=30.0), atol=2e-3)


def test_nothing_is_folded_back() -> None:
    """A wave that the coarse grid cannot hold is gone, and does not come back as another."""
    z = torch.arange(60.0)[:, None, None]
    envelope = blobs((60, 50, 54), 4.0).abs()
    wave = envelope * torch.cos(2 * math.pi * 0.4 * z)
    found = resample_density(wave, voxel_size=4.0, new_voxel_size=8.0)
    assert float(found.abs().max()) < 0.01 * float(wave.abs().max())
    assert float(wave[::2, ::2, ::2].abs().max()) > 0.5, "the wave was there"


def test_same_grid_changes_nothing(phantom: Tensor) -> None:
    """At its own voxel size, a header's rounding aside, a density stays bit for bit."""
    found = resample_density(phantom, voxel_size=2.5, new_voxel_size=2.50001)
    assert torch.equal(found, phantom.float())


@pytest.mark.parametrize(
    "wrong", [{"voxel_size": 0.0, "new_voxel_size": 1.0}, {"voxel_size": 1.0, "new_voxel_size": -1.0}]
)
def test_resampling_needs_sizes(phantom: Tensor, wrong: dict[str, float]) -> None:
    """No grid has voxels of no size."""
    with pytest.raises(ValueError, match="voxel_size` to be more than 0"):
        resample_density(phantom, **wrong)


# --- thresholds, weights, centres -------------------------------------------------------------------------------------


def ball(radius: float, blur: float, shape: tuple[int, ...] = (40, 44, 42)) -> Tensor:
    """A ball of plateau 3, with an edge that is blurred."""
    places = grid(shape, 1.0) - np.array([n // 2 for n in shape])[:, None, None, None]
    distance = np.sqrt((places**2).sum(axis=0))
    return torch.from_numpy(3 / (1 + np.exp((distance - radius) / blur)))


@pytest.mark.parametrize("volume", [1.0, 8.0, 800.0, 1e9])
def test_volume_threshold_encloses_the_volume(volume: float) -> None:
    """As many voxels lie above it as the volume asks for; one at least, and never all."""
    density = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 10, 11)))
    threshold = volume_threshold(density, 2.0, volume)
    assert int((density > threshold).sum()) == min(max(round(volume / 8), 1), 989)


@pytest.mark.parametrize("blur", [0.3, 1.0])
def test_plateau_threshold_is_half_of_the_plateau(blur: float) -> None:
    """A blurred edge was where the density has fallen to half."""
    density = ball(10.0, blur)
    threshold = plateau_threshold(density)
    assert threshold == pytest.approx(1.5, rel=0.05)
    assert int((density > threshold).sum()) == pytest.approx(4 / 3 * math.pi * 10**3, rel=0.05)


def test_fading_keeps_the_mask_and_ends() -> None:
    """Within two voxels of the mask everything stays, beyond four nothing."""
    mask = torch.zeros(13, 15, 17, dtype=torch.bool)
    mask[6, 7, 8] = True
    weights = fading(mask)
    along = weights[6, 7, 8:].tolist()
    assert along[:4] == pytest.approx([1, 1, 1, 0.5], abs=1e-6)
    assert along[4:] == pytest.approx([0] * 5, abs=1e-6)
    assert float(weights[6, 3, 8]) == pytest.approx(0, abs=1e-6)


def test_center_of_mass(phantom: Tensor) -> None:
    """(z, y, x); what is negative does not pull."""
    weights = phantom.numpy()
    expected = (np.indices(weights.shape) * weights).sum(axis=(1, 2, 3)) / weights.sum()
    assert center_of_mass(phantom) == pytest.approx(tuple(expected))
    pulled = phantom.clone()
    pulled[0, 0, 0] -= 100
    assert center_of_mass(pulled) == pytest.approx(tuple(expected), abs=1e-3)
