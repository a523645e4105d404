"""Bad tilts: what goes wrong with the signal of one image, by value."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import ANGLES, simulator, specimen
from scipy import ndimage

from faket_aug import BadTilt, FakETSimulator, reconstruct
from faket_aug.microscope.bad_tilts import spoil

PIXEL = 10.0


def _blob(y: float, x: float, spread: float = 2.0) -> torch.Tensor:
    rows, columns = np.mgrid[:64, :72]
    return torch.from_numpy(np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * spread**2))).to(torch.float32)


def _moments(image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The centre of mass (y, x), and the variances along both axes."""
    values = image.numpy().astype(np.float64)
    places = np.mgrid[:64, :72].reshape(2, -1)
    centre = places @ values.ravel() / values.sum()
    return centre, ((places - centre[:, None]) ** 2) @ values.ravel() / values.sum()


def test_a_shift() -> None:
    """All of the image lies elsewhere, by so many Å along y and x; the other tilts stay."""
    images = torch.stack([_blob(30, 30)] * 3)
    found = spoil(images, [BadTilt(tilt=1, shift=(55.0, -120.0))], PIXEL)
    assert torch.allclose(found[1], _blob(35.5, 18), atol=2e-3)
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[2], images[2])
    assert torch.equal(images[1], _blob(30, 30)), "the tilts that are given stay as they are"


def test_a_motion() -> None:
    """The image is the mean over the way: its centre stays, and the variance grows by a twelfth of the way's square."""
    image = _blob(32, 36)
    found = spoil(image[None], [BadTilt(tilt=0, motion=(60.0, -90.0))], PIXEL)[0]
    way = np.array([6.0, -9.0])
    steps = (np.arange(200) + 0.5) / 200 - 0.5
    expected = np.mean([ndimage.shift(image.numpy(), step * way, order=3) for step in steps], axis=0)
    assert np.abs(found.numpy() - expected).max() < 2e-3
    centre, variances = _moments(found)
    assert centre == pytest.approx([32, 36], abs=1e-2)
    assert variances == pytest.approx(4 + way**2 / 12, rel=0.02)
    assert float(found.sum()) == pytest.approx(float(image.sum()), rel=1e-4)


def test_a_hidden_signal() -> None:
    """What is left is a share of what differs from the mean."""
    image = _blob(20, 20) + 3.0
    found = spoil(image[None], [BadTilt(tilt=0, signal=0.25)], PIXEL)[0]
    assert torch.allclose(found - image.mean(), 0.25 * (image - image.mean()), atol=1e-6)
    assert float(found.mean()) == pytest.approx(float(image.mean()), rel=1e-5)


def test_nothing_is_wrong() -> None:
    """Without bad tilts the images are the same object."""
    images = torch.stack([_blob(20, 20), _blob(30, 40)])
    assert spoil(images, (), PIXEL) is images
    assert torch.equal(spoil(images, [BadTilt(tilt=1)], PIXEL), images)


def test_noise_stays() -> None:
    """Of a simulated series only the signal is spoilt: noise that is hidden by nothing is the same, bit for bit."""
    thing = specimen(0)
    plain, hidden = (
        simulator("noiseless", bad_tilts=bad)(thing, seed=1) for bad in ((), (BadTilt(tilt=2, signal=0.0),))
    )
    assert float(hidden.tiltseries[2].std()) < 1e-5 < float(plain.tiltseries[2].std())
    noisy = [simulator("noisy", bad_tilts=bad)(thing, seed=1) for bad in ((), (BadTilt(tilt=2, shift=(30.0, 0.0)),))]
    differ = [not torch.equal(a, b) for a, b in zip(noisy[0].tiltseries, noisy[1].tiltseries, strict=True)]
    assert differ == [number == 2 for number in range(len(differ))]
    assert noisy[1].record.settings["bad_tilts"] == [BadTilt(tilt=2, shift=(30.0, 0.0)).to_dict()]
    with pytest.raises(ValueError, match="got others for bad_tilts$"):
        simulator("noisy", bad_tilts=(BadTilt(tilt=2),)).simulate(thing, noisy[1].record)


@pytest.mark.parametrize("modality", ["noisy", "baseline"])
def test_a_hidden_signal_in_white_noise(modality: str) -> None:
    """White noise scales each tilt: what is hidden stays hidden all the same, and the noise is what it was."""
    thing = specimen(0)
    bad = (BadTilt(tilt=1, signal=0.0), BadTilt(tilt=2, signal=0.25), BadTilt(tilt=3, motion=(0.0, 60.0)))
    plain, spoilt = (
        simulator(modality, bad_tilts=one)(thing, seed=1, halves="exposures", clean=True) for one in ((), bad)
    )
    model = simulator(modality)._noise_of(plain.record)
    assert model is not None
    clean = simulator("noiseless")(thing, seed=1).tiltseries
    signal = model.signal(clean, ANGLES)
    noise = plain.tiltseries - signal
    found = spoilt.tiltseries - noise
    assert torch.allclose(found[0], signal[0], atol=1e-5)
    assert float(found[1].std()) < 1e-4 * float(signal[1].std())
    assert float(found[2].std()) == pytest.approx(0.25 * float(signal[2].std()), rel=1e-3)
    assert float(found[3].std()) < 0.9 * float(signal[3].std())
    assert torch.equal(spoilt.tiltseries[0], plain.tiltseries[0])
    assert spoilt.halves is not None
    assert plain.halves is not None
    for one, other in zip(spoilt.halves, plain.halves, strict=True):
        change = reconstruct(spoilt.tiltseries - plain.tiltseries, ANGLES, depth=one.shape[0])
        assert torch.allclose(one - other, change, atol=1e-3 * float(other.std()))
    assert spoilt.clean is not None
    assert not torch.equal(spoilt.clean, plain.clean)


def test_a_record_with_bad_tilts_needs_them() -> None:
    """A simulator without them refuses it: labels of its items would follow tilts that are not shifted."""
    thing = specimen(0)
    record = simulator("noisy", bad_tilts=(BadTilt(tilt=2, shift=(30.0, 0.0)),)).draw(thing, seed=0)
    with pytest.raises(ValueError, match="got others for bad_tilts$"):
        simulator("noisy").simulate(thing, record)


def test_numbers_of_numpy() -> None:
    """They become plain ones, which records can hold."""
    one = BadTilt(tilt=np.int64(2), signal=np.float32(0.5), shift=(np.float32(1), 2))  # type: ignore[arg-type]
    assert simulator("noisy", bad_tilts=(one,)).draw(specimen(0), seed=0).to_json()


def test_the_dict_and_back() -> None:
    """It goes through JSON types and pickle."""
    one = BadTilt(tilt=3, signal=0.5, shift=(1.0, 2.0), motion=(-3.0, 4.5))
    assert BadTilt.from_dict(one.to_dict()) == one
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tilt": -1}, "expected `tilt` to be a whole number of 0 or more, got -1"),
        ({"tilt": 0, "signal": 1.5}, r"expected `signal` to lie in \[0, 1\], got 1.5"),
        ({"tilt": 0, "shift": 5.0}, r"expected `shift` to be a pair of numbers \(y, x\) in Å, got 5.0"),
        ({"tilt": 0, "motion": (1.0, float("nan"))}, r"expected `motion` to be a pair of numbers"),
    ],
)
def test_impossible_ones(settings: dict[str, Any], message: str) -> None:
    """Impossible numbers are refused with what was expected."""
    with pytest.raises(ValueError, match=message):
        BadTilt(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bad_tilts": [5]}, r"expected `bad_tilts` to be a tuple of `BadTilt`, got \[5\]"),
        ({"bad_tilts": BadTilt(tilt=0)}, "expected `bad_tilts` to be a tuple of `BadTilt`, got BadTilt"),
        (
            {"bad_tilts": [BadTilt(tilt=5)]},
            r"each of `bad_tilts` to be another one of tilts 0 to 4, got \[5\]",
        ),
        ({"bad_tilts": [BadTilt(tilt=1)] * 2}, r"to be another one of tilts 0 to 4, got \[1, 1\]"),
        ({"bad_tilts": [BadTilt(tilt=1)], "noise": "given"}, 'expected no `bad_tilts` with `noise="given"`'),
        ({"ctf": {"defocus": 3.0}}, "expected `ctf` to be a `ContrastTransfer` or None, got {'defocus': 3.0}"),
        ({"imperfections": None}, "expected `imperfections` to be `Imperfections`, got None"),
    ],
)
def test_what_a_simulator_refuses(settings: dict[str, Any], message: str) -> None:
    """Parts of another kind, and tilts that do not exist, are refused when the simulator is made."""
    given: dict[str, Any] = {"tilt_angles": (-40, -20, 0, 20, 40), "modality": "noisy"}
    with pytest.raises(ValueError, match=message):
        FakETSimulator(**(given | settings))
