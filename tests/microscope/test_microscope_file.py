"""The file of a fitted microscope: what a simulator takes from it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from faket_aug import ContrastTransfer, FakETSimulator, FileFormatError, MicroscopeResponse, NoiseModel, StyleBank
from faket_aug.microscope.file import MicroscopeFile, read_microscope, write_microscope
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from tests._helpers import ANGLES, STYLE_LAYERS, narrow_vgg, noise_model, specimen, style_series


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    path = tmp_path / "microscope.json"
    style = {"step_size": 0.02, "keep_spectrum": True}
    made = MicroscopeFile(noise=noise_model(), tilt_angles=ANGLES, style=style, extend="wrap", about={"specimens": 2})
    write_microscope(path, made)
    assert read_microscope(path) == made
    return path


def test_from_file(fitted: Path, tmp_path: Path) -> None:
    """Noise and angles come from the file, with a style also the step; what is given goes before it."""
    plain = FakETSimulator.from_file(fitted)
    assert (plain.modality, plain.noise, plain.tilt_angles) == ("noisy", noise_model(), ANGLES)
    assert FakETSimulator.from_file(fitted, extend="zero").extend == "zero"
    expected = FakETSimulator(tilt_angles=ANGLES, modality="noisy", noise=noise_model(), extend="wrap")
    assert torch.equal(plain(specimen(0), seed=0).tomogram, expected(specimen(0), seed=0).tomogram)
    features = narrow_vgg(tmp_path)
    bank = StyleBank.build(style_series(0), features, style_layers=STYLE_LAYERS)
    styled = FakETSimulator.from_file(fitted, style=bank, features=features)
    assert (styled.modality, styled.step_size, styled.keep_spectrum) == ("faket", 0.02, True)
    own = FakETSimulator.from_file(fitted, style=bank, features=features, step_size=0.15, tilt_angles=ANGLES[:3])
    assert (own.step_size, own.tilt_angles) == (0.15, ANGLES[:3])


def test_a_response_needs_a_step_of_its_own(fitted: Path, tmp_path: Path) -> None:
    """The published step is for white noise; after a fitted response somebody has to say how far to go."""
    response = MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=0.0),
        noise=(tuple(np.full(len(RINGS), 4.0)),),
        angle_range=(-60.0, 60.0),
    )
    write_microscope(
        fitted, MicroscopeFile(noise=NoiseModel(series=noise_model().series, response=response), tilt_angles=ANGLES)
    )
    features = narrow_vgg(tmp_path)
    bank = StyleBank.build(style_series(0), features, style_layers=STYLE_LAYERS)
    with pytest.raises(ValueError, match="expected a step size of the style transfer for a fitted response, got none"):
        FakETSimulator.from_file(fitted, style=bank, features=features)
    assert FakETSimulator.from_file(fitted, style=bank, features=features, step_size=0.0).step_size == 0.0
    assert FakETSimulator.from_file(fitted).modality == "noisy"
    assert FakETSimulator.from_file(fitted, modality="noisy", style=bank, features=features).modality == "noisy"


def test_a_bare_noise_model(tmp_path: Path) -> None:
    path = tmp_path / "noise.json"
    path.write_text(noise_model().to_json())
    assert FakETSimulator.from_file(path, tilt_angles=ANGLES).noise == noise_model()
    with pytest.raises(ValueError, match=r"noise.json: expected `tilt_angles`, which this file does not tell"):
        FakETSimulator.from_file(path)


def test_files_that_are_none(fitted: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a fitted microscope or noise model, found none at"):
        read_microscope(tmp_path / "nowhere.json")
    data = json.loads(fitted.read_text())
    for wrong in (
        {"style": {"steps": 1}},
        {"style": 3},
        {"tilt_angles": "all"},
        {"tilt_angles": [-60, 1e24]},
        {"extend": "far"},
        {"series": None},
        {"series": [data["series"][0] | {"tilt_angles": [200.0, *data["series"][0]["tilt_angles"][1:]]}]},
        {"series": [data["series"][0] | {"correlation": [5.0, *data["series"][0]["correlation"][1:]]}]},
        {"series": [data["series"][0] | {"std": [-1.0, *data["series"][0]["std"][1:]]}]},
        {"other": 1},
    ):
        fitted.write_text(json.dumps(data | wrong | {"checksum": None}))
        with pytest.raises(FileFormatError, match=r"microscope.json: "):
            read_microscope(fitted)
    fitted.write_text("{")
    with pytest.raises(FileFormatError, match=r"microscope.json: "):
        read_microscope(fitted)
