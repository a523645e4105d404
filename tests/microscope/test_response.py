"""A microscope's response: noise of the spectrum asked for, signal with the gain asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import ContrastTransfer, MicroscopeResponse, NoiseModel
from faket_aug.microscope.noise_curves import SeriesNoise
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS, series_spectra

ANGLES = np.arange(-60.0, 61.0, 3.0)
INNER = (RINGS > 0.02) & (RINGS < 0.5)


def _response() -> MicroscopeResponse:
    shape = 4 + 6 * np.exp(-30 * (RINGS - 0.2) ** 2)
    return MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.3),
        envelope=Envelope(log_scale=1.0, tilt_2=-0.3, square=3.0, square_tilt=2.0, linear=0.5),
        noise=(tuple(shape), (0.0,) * len(RINGS), tuple(-0.3 * shape)),
        angle_range=(-60.0, 60.0),
    )


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_noise_has_its_spectrum() -> None:
    """The radial spectrum of many draws is the model's within 3 %, and the variance is kept."""
    response = _response()
    draws = 8
    power = np.zeros((len(ANGLES), len(RINGS)))
    variance = 0.0
    for seed in range(draws):
        made = response.apply(torch.zeros(len(ANGLES), 192, 192), _random(len(ANGLES), 192, 192, seed=seed), ANGLES)
        found = series_spectra(made, ANGLES)
        power += found.power / draws
        variance += float(made.double().var(dim=(1, 2), correction=0).mean()) / draws
    expected = response.noise_power(ANGLES)
    np.testing.assert_allclose(power.mean(axis=0)[INNER], expected.mean(axis=0)[INNER], rtol=0.03)
    np.testing.assert_allclose(power[:, INNER].mean(axis=1), expected[:, INNER].mean(axis=1), rtol=0.03)
    total = (expected * found.counts).sum(axis=1) / found.counts.sum()
    assert variance == pytest.approx(total.mean(), rel=0.01)


def test_signal_has_its_gain() -> None:
    response = _response()
    clean = _random(len(ANGLES), 128, 128)
    made = response.apply(clean, torch.zeros_like(clean), ANGLES)
    gain = np.sqrt(series_spectra(made, ANGLES).power / series_spectra(clean, ANGLES).power)
    strong = np.abs(response.gain(ANGLES)) > 0.1
    assert np.median(np.abs(gain / np.abs(response.gain(ANGLES)) - 1)[strong]) < 0.03
    content = response.apply(clean, _random(len(ANGLES), 128, 128, seed=1), ANGLES, noise_scale=0.25)
    noisy = response.apply(clean, _random(len(ANGLES), 128, 128, seed=1), ANGLES)
    assert torch.allclose(content - made, (noisy - made) / 4, atol=1e-4)


def _contrast(amplitude: float) -> MicroscopeResponse:
    response = _response()
    return replace(response, ctf=replace(response.ctf, amplitude_contrast=amplitude))


def test_phase_contrast_stays_linear() -> None:
    """Matter that absorbs nothing has the contrast of the transfer function, as dark as bright."""
    response, clean = _contrast(0.0), 2 * _random(5, 128, 128)
    angles = ANGLES[18:23]
    linear = response.apply(clean, torch.zeros_like(clean), angles)
    counted = response.apply(clean, torch.zeros_like(clean), angles, by_intensity=True)
    assert torch.allclose(linear, counted, atol=1e-3)
    assert linear.min() < -0.05 * response.intensity(angles).min()


def test_slow_matter_absorbs_by_the_exponential_law() -> None:
    """Twice the matter passes the square of what the matter passes; no intensity is below 0."""
    response, shape = _contrast(0.1), (1, 192, 192)
    intensity = float(response.intensity(np.zeros(1))[0])
    step = torch.zeros(shape)
    step[:, :, 64:128] = -60.0
    passed = []
    for factor in (1, 2, 200):
        made = response.apply(factor * step, torch.zeros(shape), np.zeros(1), by_intensity=True)[0]
        # The mean of the tilt is left out; beside the matter all electrons pass.
        local = (made + intensity) / (made[:, 5:15].mean() + intensity)
        assert local.min() > -1e-3
        passed.append(float(local[:, 94:98].mean()))
    assert passed[1] == pytest.approx(passed[0] ** 2, rel=0.01)
    assert passed[0] < 0.95
    assert passed[2] < 0.01


def test_noise_follows_the_local_intensity() -> None:
    """Where half of the electrons pass, the noise has half of the variance."""
    response, shape = _contrast(0.1), (1, 192, 192)
    step = torch.zeros(shape)
    step[:, :, 64:128] = -400.0
    quiet = response.apply(step, torch.zeros(shape), np.zeros(1), by_intensity=True)
    noisy = response.apply(step, _random(*shape), np.zeros(1), by_intensity=True)
    grain = (noisy - quiet)[0]
    bright, dark = grain[:, 4:40].var(), grain[:, 80:112].var()
    intensity = float(response.intensity(np.zeros(1))[0])
    passing = (quiet[0, :, 80:112].mean() + intensity) / (quiet[0, :, 4:40].mean() + intensity)
    assert passing < 0.8
    assert float(dark / bright) == pytest.approx(float(passing), rel=0.1)


@pytest.mark.parametrize("phase_shift", [0.0, 90.0])
def test_even_matter_changes_nothing(phase_shift: float) -> None:
    """The intensity is what has passed all matter: its mean does not count once more, also with a phase plate."""
    response = _contrast(0.07)
    response = replace(response, ctf=replace(response.ctf, phase_shift=phase_shift))
    clean, angles = 5 * _random(3, 128, 128), np.zeros(3)
    alone, covered = (
        response.apply(clean - even, _random(3, 128, 128, seed=1), angles, by_intensity=True) for even in (0.0, 120.0)
    )
    assert torch.allclose(alone, covered, atol=1e-2)


def test_another_contrast_leaves_the_intensity() -> None:
    """Matter with twice the contrast passes the square; the file says so, and old files have no such entry."""
    response, shape = _contrast(0.1), (1, 192, 192)
    step = torch.zeros(shape)
    step[:, :, 64:128] = -60.0
    strong = response.strengthened(contrast=2.0)
    assert strong.intensity(np.zeros(1)) == pytest.approx(response.intensity(np.zeros(1)))
    found = strong.apply(step, torch.zeros(shape), np.zeros(1), by_intensity=True)
    assert torch.allclose(
        found, response.apply(2 * step, torch.zeros(shape), np.zeros(1), by_intensity=True), atol=1e-3
    )
    assert MicroscopeResponse.from_dict(json.loads(json.dumps(strong.to_dict()))) == strong
    assert "contrast" not in response.to_dict()


def test_tilts_have_mean_0_and_extreme_angles_the_last_one() -> None:
    response = _response()
    made = response.apply(_random(2, 64, 64) + 5, _random(2, 64, 64, seed=1), np.array([0.0, 10.0]))
    assert made.mean(dim=(1, 2)).abs().max() < 1e-5
    assert np.array_equal(response.gain(np.array([75.0])), response.gain(np.array([60.0])))
    assert (response.noise_power(np.array([0.0, 60.0])) > 0).all()


def test_averaged_is_the_same_at_every_tilt() -> None:
    flat = _response().averaged()
    assert np.ptp(flat.gain(ANGLES), axis=0).max() == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(flat.noise_power(ANGLES).mean(0), _response().noise_power(ANGLES).mean(0), rtol=0.03)


def test_json() -> None:
    response = replace(_response(), defocus=(3.2, 3.4), defocus_error=(0.1, 0.2), gain_error=0.02)
    assert MicroscopeResponse.from_dict(json.loads(json.dumps(response.to_dict()))) == response
    with pytest.raises(ValueError, match="expected a microscope's response with"):
        MicroscopeResponse.from_dict({"pixel_size": 1.0})
    with pytest.raises(ValueError, match="expected an envelope, got"):
        MicroscopeResponse.from_dict(response.to_dict() | {"envelope": {"height": 1}})
    with pytest.raises(ValueError, match="expected a finite number for `square` of an envelope, got 'high'"):
        MicroscopeResponse.from_dict(response.to_dict() | {"envelope": {"log_scale": 1.0, "square": "high"}})
    with pytest.raises(ValueError, match="expected the numbers of a microscope's response, got others"):
        MicroscopeResponse.from_dict(response.to_dict() | {"noise": None})
    with pytest.raises(
        ValueError, match=r"expected `angle_range` of two increasing angles in degrees, got \(60, -60\)"
    ):
        MicroscopeResponse.from_dict(response.to_dict() | {"angle_range": [60, -60]})
    with pytest.raises(ValueError, match="expected a `ctf` of all tilts, got numbers"):
        replace(response, ctf=ContrastTransfer(defocus=(3.0, 3.1)))
    with pytest.raises(ValueError, match=f"expected `noise` of {len(RINGS)} finite numbers"):
        replace(response, noise=((1.0,),))


def test_noise_model_with_a_response() -> None:
    """Its tilts are the response's, at the curves' mean; as JSON it stays itself."""
    curve = tuple(np.full(len(ANGLES), 0.5))
    series = SeriesNoise(
        tilt_angles=tuple(ANGLES), correlation=curve, deviation=curve, mean=tuple(2000 + ANGLES**2 / 60), std=curve
    )
    model = NoiseModel(series=(series,), response=_response())
    clean, noise = _random(len(ANGLES), 32, 32), _random(len(ANGLES), 32, 32, seed=1)
    made = model.sample(clean, noise, ANGLES)
    assert torch.allclose(made.mean(dim=(1, 2)), torch.tensor(series.mean, dtype=torch.float32), rtol=1e-5)
    centred = made - made.mean(dim=(1, 2), keepdim=True)
    assert torch.allclose(centred, _response().apply(clean, noise, ANGLES), atol=1e-3)
    assert NoiseModel.from_json(model.to_json()) == model
    flat = model.baseline().sample(clean[:1].expand_as(clean), noise[:1].expand_as(clean), ANGLES)
    assert float(flat.std(dim=0).max()) < 1e-3
