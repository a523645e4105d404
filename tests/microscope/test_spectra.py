"""Radial spectra of tilts: as power of a pixel, without noise where neighbours are compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug.microscope import rings
from faket_aug.microscope.spectra import RINGS, match_spectrum, radial_filter, series_spectra

ANGLES = np.arange(-15.0, 16.0, 3.0)
INNER = (RINGS > 0.02) & (RINGS < 0.5)


def _noise(count: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randn(count, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(256, 256), (128, 200), (61, 64)])
def test_white_noise_has_its_variance_everywhere(shape: tuple[int, int]) -> None:
    found = series_spectra(3 * _noise(len(ANGLES), *shape) + 50, ANGLES)
    power = found.power.mean(axis=0)
    assert found.power.shape == (len(ANGLES), len(RINGS))
    assert power[INNER].mean() == pytest.approx(9.0, rel=0.02)
    assert np.abs(power[INNER] / 9 - 1).max() < 6 / np.sqrt(len(ANGLES) * found.counts[INNER].min() / 2)
    np.testing.assert_allclose(found.mean, 50, atol=0.3)


def test_neighbours_share_the_signal_only() -> None:
    """Tilts of one signal and each its own noise share the signal's power, whatever the noise."""
    shape = (256, 256)
    colour = radial_filter(np.exp(-20 * RINGS**2), shape, torch.device("cpu"))
    signal = torch.fft.irfft2(torch.fft.rfft2(_noise(1, *shape, seed=1)) * colour, s=shape)
    tilts = signal + 2 * _noise(len(ANGLES), *shape)
    found = series_spectra(tilts, ANGLES)
    alone = series_spectra(signal.expand(len(ANGLES), -1, -1), ANGLES)
    shared, expected = found.shared.mean(axis=0), alone.shared.mean(axis=0)
    error = 4 / np.sqrt(found.shared_counts[INNER] * (len(ANGLES) - 1))
    assert (np.abs(shared - expected)[INNER] < 3 * error).all()
    assert (shared[RINGS > 0.4][:10].mean()) == pytest.approx(0.0, abs=0.05)
    np.testing.assert_allclose(alone.shared[:, INNER].mean(), np.exp(-40 * RINGS[INNER] ** 2).mean(), rtol=0.15)


def test_sizes_agree() -> None:
    """The same process has the same spectrum in images of other sizes."""
    colour = np.exp(-10 * RINGS**2)
    found = []
    for shape in ((256, 256), (96, 120)):
        grain = radial_filter(colour, shape, torch.device("cpu"))
        tilts = torch.fft.irfft2(torch.fft.rfft2(_noise(len(ANGLES), *shape)) * grain, s=shape)
        found.append(series_spectra(tilts, ANGLES).power.mean(axis=0))
    assert np.median(np.abs(found[1] / found[0] - 1)[INNER]) < 0.05


def test_beads_do_not_count() -> None:
    tilts = _noise(len(ANGLES), 128, 128)
    with_bead = tilts.clone()
    with_bead[:, 60:66, 60:66] = -500.0
    plain, beaded = series_spectra(tilts, ANGLES), series_spectra(with_bead, ANGLES)
    assert np.median(np.abs(beaded.power / plain.power - 1)[:, INNER]) < 0.1
    np.testing.assert_allclose(beaded.mean, plain.mean, atol=0.05)


def test_constant_tilt_is_named() -> None:
    tilts = _noise(len(ANGLES), 32, 32)
    tilts[4] = 7.0
    with pytest.raises(
        ValueError, match=r"a.mrc: expected every tilt to vary, got constant tilt\(s\) \[4\] \(at -3°\)"
    ):
        series_spectra(tilts, ANGLES, name="a.mrc")


def test_one_tilt_has_no_neighbour() -> None:
    assert series_spectra(_noise(1, 32, 32), np.zeros(1)).shared.shape == (0, len(RINGS))


def test_match_spectrum() -> None:
    """Each image has its reference's radial power after it, in the image's own phases, and its own mean."""
    images = _noise(3, 96, 128) + torch.tensor([5.0, -2.0, 0.0])[:, None, None]
    smooth = torch.fft.rfft2(_noise(3, 96, 128, seed=7))
    k_y, k_x = torch.fft.fftfreq(96)[:, None], torch.fft.rfftfreq(128)
    references = 30 * torch.fft.irfft2(smooth * torch.exp(-20 * (k_y**2 + k_x**2)), s=(96, 128))
    made = match_spectrum(images, references)
    found, wanted = (series_spectra(one, ANGLES[:3]).power for one in (made, references))
    inner = (RINGS > 0.03) & (RINGS < 0.35)
    np.testing.assert_allclose(found.mean(axis=0)[inner], wanted.mean(axis=0)[inner], rtol=0.2)
    assert abs(np.median(found[:, inner] / wanted[:, inner]) - 1) < 0.03
    assert torch.allclose(made.mean(dim=(1, 2)), images.mean(dim=(1, 2)), atol=1e-4)
    phases = [torch.fft.rfft2(one)[:, 1:20, 1:20].angle() for one in (made, images)]
    assert float((phases[0] - phases[1]).cos().min()) > 0.999
    assert torch.equal(match_spectrum(torch.ones(1, 32, 32), _noise(1, 32, 32)), torch.ones(1, 32, 32))


def test_a_gpu_adds_in_one_order() -> None:
    """The places of each ring, which a GPU gathers and adds, are those that the rings' index names, each once."""
    index = torch.randint(0, 7, (300,), generator=torch.Generator().manual_seed(0))
    members = rings._members(index, 9)
    for ring, places in enumerate(members):
        own = places[places < len(index)]
        assert own.tolist() == (index == ring).nonzero()[:, 0].tolist()
    assert int((members < len(index)).sum()) == len(index)


@pytest.mark.gpu
def test_match_spectrum_on_a_gpu() -> None:
    """More tilts than a GPU holds at once get the spectra that the CPU gives them."""
    images, references = _noise(19, 30, 40), 3 * _noise(19, 30, 40, seed=1).cumsum(2)
    expected = match_spectrum(images, references)
    found = match_spectrum(images.cuda(), references.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
