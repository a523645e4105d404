"""What bilinear interpolation takes from projections, and gets back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import project
from faket_aug.tomography.interpolation import interpolation_transfer, without_interpolation

ANGLES = np.array([-60.0, -30.0, -3.0, 0.0, 10.0, 45.0])


def _tilts(seeds: int = 3) -> Tensor:
    """Projections of random volumes without the highest frequencies, `(volume, tilt, y, x)`."""
    made = []
    for seed in range(seeds):
        volume = torch.randn(48, 96, 192, generator=torch.Generator().manual_seed(seed))
        sides = [torch.fft.fftfreq(n) for n in volume.shape[:2]] + [torch.fft.rfftfreq(volume.shape[2])]
        radius = sides[0][:, None, None] ** 2 + sides[1][:, None] ** 2 + sides[2] ** 2
        smooth = torch.fft.irfftn(torch.fft.rfftn(volume) * torch.exp(-8 * radius), s=volume.shape)
        made.append(project(smooth, ANGLES, extend="wrap"))
    return torch.stack(made)


def _across_over_along(tilts: Tensor, low: float, high: float) -> Tensor:
    """The power of a band across the tilt axis over that along it, `(tilt,)`."""
    power = torch.fft.rfft2(tilts - tilts.mean(dim=(-2, -1), keepdim=True)).abs().square().mean(dim=0)
    y, x = torch.fft.fftfreq(tilts.shape[-2]).abs(), torch.fft.rfftfreq(tilts.shape[-1])
    across = power[:, y < 0.08][:, :, (x >= low) & (x < high)].mean(dim=(1, 2))
    along = power[:, (y >= low) & (y < high)][:, :, x < 0.08].mean(dim=(1, 2))
    return across / along


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.2), (0.2, 0.3), (0.3, 0.4)])
def test_power_across_the_axis(low: float, high: float) -> None:
    """Interpolated projections lose power across the axis, but for 0 degrees; it comes back."""
    plain = _tilts()
    sharp = torch.stack([without_interpolation(one, ANGLES, depth=48) for one in plain])
    lost = float(np.sinc((low + high) / 2) ** 4)
    before, after = _across_over_along(plain, low, high), _across_over_along(sharp, low, high)
    turned = torch.from_numpy(ANGLES != 0)
    assert float(before[turned].mean()) == pytest.approx(lost, abs=0.12)
    assert float(after[turned].mean()) == pytest.approx(1, abs=0.15)
    assert float(after[~turned]) == pytest.approx(float(before[~turned]), rel=1e-4)


def test_transfer() -> None:
    """Nothing is lost at 0 degrees, and at frequency 0; elsewhere it is the transfer of linear interpolation."""
    k = np.array([0.0, 0.2, 0.4])
    found = interpolation_transfer(ANGLES, k, depth=64, width=256)
    np.testing.assert_allclose(found[:, 0], 1, atol=1e-12)
    np.testing.assert_allclose(found[3], 1, atol=1e-12)
    np.testing.assert_allclose(found[[0, 1, 2, 4, 5]], np.tile(np.sinc(k) ** 2, (5, 1)), atol=0.05)
    nearly = interpolation_transfer([0.3], k, depth=64, width=256)[0]
    assert found[1, 2] < nearly[2] < 1


def test_means_and_dtypes_stay() -> None:
    """The mean of a constant image stays as it is; the dtype is that of the tilts."""
    flat = torch.full((6, 8, 40), 3.0, dtype=torch.float64)
    sharp = without_interpolation(flat, ANGLES, depth=20)
    assert sharp.dtype == torch.float64
    assert torch.allclose(sharp, flat, atol=1e-5)
    with pytest.raises(ValueError, match="`tilts` of shape"):
        without_interpolation(flat[0], ANGLES, depth=20)
