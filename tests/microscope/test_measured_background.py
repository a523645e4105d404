"""The slow background of measured tilts, taken over as it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from _helpers import noise_model, simulator, specimen
from torch import Tensor

from faket_aug import ContrastTransfer, NoiseModel
from faket_aug.microscope.background import SlowBackground
from faket_aug.microscope.noise import ResponseNoise
from faket_aug.microscope.response import Envelope, MicroscopeResponse
from faket_aug.microscope.spectra import RINGS

ANGLES = (-40.0, -20.0, 0.0, 20.0, 40.0)


def _slow(shape: tuple[int, int] = (200, 240), count: int = 5) -> Tensor:
    """A wedge and a wave over 2400 Å, stronger at higher tilts."""
    y, x = (torch.arange(n, dtype=torch.float32) + 0.5 for n in shape)
    wave = 3 * torch.cos(torch.pi * 2 * x / shape[1]) + 2 * torch.cos(torch.pi * y / shape[0])[:, None]
    return torch.stack([100 + wave * (1 + i) for i in range(count)])


def _grain(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_found() -> None:
    """Waves over more than 100 nm are found, without noise; the mean is not part of them."""
    slow = _slow()
    background = SlowBackground.of(slow + _grain(slow.shape), ANGLES, 10.0)
    assert background.extent == (2000.0, 2400.0)
    waves = np.array(background.waves)
    assert waves.shape == (5, 5, 5)
    for tilt in range(5):
        assert waves[tilt, 0, 2] == pytest.approx(3 * (1 + tilt), abs=0.03)
        assert waves[tilt, 1, 0] == pytest.approx(2 * (1 + tilt), abs=0.03)
    others = np.abs(waves)
    others[:, 0, 2] = others[:, 1, 0] = 0
    assert others.max() < 0.05


def test_pixels_that_do_not_count() -> None:
    """A bright band that no detector saw leaves no wave."""
    slow = _slow()
    measured = torch.ones_like(slow, dtype=torch.bool)
    measured[:, :, :6] = False
    marred = torch.where(measured, slow, 1e4)
    marred_waves = np.array(SlowBackground.of(marred, ANGLES, 10.0, measured=measured).waves)
    waves = np.array(SlowBackground.of(slow, ANGLES, 10.0).waves)
    assert np.abs(marred_waves - waves).max() < 1.0


def test_it_replaces_the_tilts_own() -> None:
    """Tilts get it in place of their own slow changes; means and all that is finer stay."""
    background = SlowBackground.of(_slow(), ANGLES, 10.0)
    y = torch.linspace(-1, 1, 200)[:, None]
    grain = _grain((5, 200, 240))
    # What is slow of the grain is replaced, too.
    fine = SlowBackground(extent=(2000.0, 2400.0), tilt_angles=ANGLES, waves=(((0.0,),),) * 5).put_into(
        grain, ANGLES, 10.0
    )
    got = background.put_into(50 + 7 * y + grain, ANGLES, 10.0)
    assert torch.allclose(got.mean(dim=(1, 2)), (50 + 7 * y + grain).mean(dim=(1, 2)), atol=1e-3)
    expected = _slow() - 100 + fine
    assert (
        float((got - got.mean(dim=(1, 2), keepdim=True) - expected + expected.mean(dim=(1, 2), keepdim=True)).std())
        < 0.25
    )
    # At other angles the nearest tilt's.
    assert torch.equal(background.put_into(grain[:1], [33.0], 10.0), background.put_into(grain[:1], [40.0], 10.0))


def test_a_smaller_image_gets_the_middle() -> None:
    """Coordinates are in Å about the middle of the image, whatever the pixel size."""
    background = SlowBackground.of(_slow(), ANGLES, 10.0)
    whole = background.put_into(torch.zeros(5, 200, 240), ANGLES, 10.0)
    middle = background.put_into(torch.zeros(5, 100, 120), ANGLES, 10.0)
    part = whole[:, 50:150, 60:180]
    assert torch.allclose(middle, part - part.mean(dim=(1, 2), keepdim=True), atol=1e-3)
    coarse = background.put_into(torch.zeros(5, 100, 120), ANGLES, 20.0)
    assert torch.allclose(coarse, torch.nn.functional.avg_pool2d(whole, 2), atol=0.05)


def _noise() -> ResponseNoise:
    response = MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=0.0),
        noise=((1.0,) * len(RINGS),),
        angle_range=(-60.0, 60.0),
    )
    backgrounds = tuple(SlowBackground.of(sign * _slow(), ANGLES, 10.0) for sign in (1, -1))
    return ResponseNoise(series=noise_model().series, response=response, backgrounds=backgrounds)


def test_json() -> None:
    """Noise with backgrounds comes back from its text; wrong ones are refused."""
    noise = _noise()
    assert NoiseModel.from_json(noise.to_json()) == noise
    content = json.loads(noise.to_json()) | {"checksum": None}
    for wrong in (
        1,
        [1],
        [{}],
        [content["backgrounds"][0] | {"waves": [[1], [2]]}],
        [content["backgrounds"][0] | {"more": 1}],
    ):
        with pytest.raises(ValueError, match="background"):
            NoiseModel.from_json(json.dumps(content | {"backgrounds": wrong}))


def test_simulator_draws_it() -> None:
    """Each tomogram gets one of the series' backgrounds, from its address; by default tilts keep their own."""
    made, own = (simulator("noisy", noise=_noise(), background=name) for name in ("measured", "own"))
    thing = specimen(0)
    signs = set()
    for number in range(8):
        tilts = made(thing, seed=0, tomogram=number).tiltseries
        assert torch.equal(tilts, made(thing, seed=0, tomogram=number).tiltseries)
        plain = own(thing, seed=0, tomogram=number).tiltseries
        assert not torch.equal(tilts, plain)
        half = tilts.shape[-1] // 2
        signs.add(bool((tilts - plain)[-1, :, half - 2 : half + 2].mean() > (tilts - plain)[-1].mean()))
    assert signs == {True, False}
    assert made.settings()["background"] == "measured"
    # A record holds backgrounds only where tilts get one, and makes the tomogram again.
    assert "backgrounds" not in own.settings()["noise"]
    record = made.draw(thing, seed=0, tomogram=3)
    noise = NoiseModel.from_json(record.settings["noise"])
    again = simulator("noisy", noise=noise, background="measured").simulate(thing, record)
    assert torch.equal(again.tiltseries, made(thing, seed=0, tomogram=3).tiltseries)
    with pytest.raises(ValueError, match="expected noise with `backgrounds`"):
        simulator("noisy", background="measured")
    with pytest.raises(ValueError, match="expected `background` to be one of"):
        simulator("noisy", background="mine")
