"""Noise with a response, and noise that tilts have already: their laws and their files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from faket_aug import ContrastTransfer, FakETSimulator, FileFormatError, MicroscopeResponse, NoiseModel
from faket_aug.microscope.file import read_microscope
from faket_aug.microscope.noise import CONTENT_NOISE, GivenNoise, ResponseNoise
from faket_aug.microscope.noise_curves import SeriesNoise
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from tests._helpers import generator

ANGLES = (-3.0, 0.0, 3.0)
#: What version 0.1.0 wrote of the model below.
WRITTEN = (
    '{"format": 1, "order": 1, "series": [{"tilt_angles": [-3.0, 0.0, 3.0], "correlation": [0.25, 0.5, 0.25], '
    '"deviation": [0.96, 0.86, 0.96], "mean": [10.0, 11.0, 12.0], "std": [2.0, 3.0, 4.0]}], "response": {"pixel_size": '
    '10.0, "ctf": {"defocus": 3.0, "spread": 0.0, "jitter": 0.0, "astigmatism": 0.0, "astigmatism_angle": 0.0, '
    '"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.07, "phase_shift": 0.0, "b_factor": 0.0, '
    '"radial_gain": []}, "envelope": {"log_scale": 0.5, "tilt_2": 0.0, "tilt_4": 0.0, "square": 2.0, "square_tilt": '
    f'0.0, "linear": 0.0}}, "noise": [{json.dumps([4.0] * 92)}], "angle_range": [-60.0, 60.0], "defocus": [2.5, 3.5], '
    '"defocus_error": [0.1, 0.2], "gain_error": 0.03}}'
)


def _model() -> ResponseNoise:
    series = SeriesNoise(
        tilt_angles=ANGLES,
        correlation=(0.25, 0.5, 0.25),
        deviation=(0.96, 0.86, 0.96),
        mean=(10.0, 11.0, 12.0),
        std=(2.0, 3.0, 4.0),
    )
    response = MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=0.5, square=2.0),
        noise=((4.0,) * len(RINGS),),
        angle_range=(-60.0, 60.0),
        defocus=(2.5, 3.5),
        defocus_error=(0.1, 0.2),
        gain_error=0.03,
    )
    return ResponseNoise(series=(series,), order=1, response=response)


def test_tilts_pass_the_response_and_get_the_mean_of_the_curves() -> None:
    """A noisy tilt is `gain ∗ c + noise`, of mean 0, plus the fitted mean; the scale acts on the noise alone."""
    model = _model()
    clean, noise = (torch.randn(3, 48, 64, generator=generator(seed)) for seed in (1, 2))
    for scale in (1.0, CONTENT_NOISE, 0.0):
        found = model.sample(clean, noise, ANGLES, noise_scale=scale)
        expected = model.response.apply(clean, noise, ANGLES, noise_scale=scale)
        np.testing.assert_allclose(found.mean(dim=(1, 2)), [10.0, 11.0, 12.0], rtol=1e-5)
        torch.testing.assert_close(found - found.mean(dim=(1, 2), keepdim=True), expected, atol=2e-5, rtol=0)
    alone = model.sample(0 * clean, noise, ANGLES)
    np.testing.assert_allclose(alone.std(dim=(1, 2)), 2.0, rtol=0.05)  # a power of 4 at all frequencies


def test_gain_of_an_envelope() -> None:
    """The gain of a response is `exp(log_scale − square k²)` times the contrast transfer function."""
    response = _model().response
    k = np.array([0.0, 0.1, 0.3])
    transfer = response.ctf.curve(k / 10.0).numpy()
    expected = np.exp(0.5 - 2.0 * k**2) * transfer
    np.testing.assert_allclose(response.gain(ANGLES, k), np.tile(expected, (3, 1)), rtol=1e-12)
    steeper = Envelope(log_scale=0.0, tilt_2=-1.0, square_tilt=4.0, linear=0.5, linear_tilt=2.0, square_dose=3.0)
    u = np.array([0.0, 0.5, -0.5])
    side = u[:, None]
    square, linear = 3.0 * np.abs(side) + 4.0 * side**2, 0.5 + 2.0 * side**2
    expected = np.exp(-(side**2) - square * k**2 - linear * k) * transfer
    np.testing.assert_allclose(steeper.gain(u, k, transfer), expected, rtol=1e-12)


def test_variants_of_a_response() -> None:
    """BASELINE is the same at every tilt; another defocus changes the transfer function only."""
    model = _model()
    baseline = model.baseline()
    assert isinstance(baseline, ResponseNoise)
    assert np.ptp(baseline.curves([-3.0, 2.0]).mean) == pytest.approx(0.0, abs=1e-9)
    other = model.at_defocus(2.0)
    assert other.response.ctf == ContrastTransfer(defocus=2.0)
    assert other.response.envelope == model.response.envelope
    assert other.series == model.series


def test_a_response_of_version_0_1_0_is_read() -> None:
    """The text of an older version gives the same model, which records know by that text; it pickles."""
    model = NoiseModel.from_json(WRITTEN)
    assert model == _model()
    assert model.identity() == WRITTEN
    assert NoiseModel.from_json(model.to_json()) == model
    assert pickle.loads(pickle.dumps(model)) == model
    made = NoiseModel(series=model.series, order=1, response=model.response)
    assert isinstance(made, ResponseNoise)
    assert made == model


def test_given_noise_in_files(tmp_path: Path) -> None:
    """Given noise is read back from its JSON; it is no fitted microscope."""
    assert NoiseModel.from_json(GivenNoise().to_json()) == GivenNoise()
    path = tmp_path / "given.json"
    path.write_text(GivenNoise().to_json())
    with pytest.raises(
        FileFormatError, match=r"given.json: expected a fitted microscope or noise model .*, got 'given'"
    ):
        read_microscope(path)


def test_given_noise_as_an_object() -> None:
    """`GivenNoise()` is `"given"`: the same settings, and the same modalities."""
    word, model = (FakETSimulator(tilt_angles=ANGLES, modality="noisy", noise=one) for one in ("given", GivenNoise()))
    assert model.settings() == word.settings()
    assert model.settings()["noise"] == "given"
    with pytest.raises(ValueError, match="noise that tilts have already cannot be changed"):
        FakETSimulator(tilt_angles=ANGLES, modality="content", noise=GivenNoise())
