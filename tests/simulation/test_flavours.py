"""Flavours of a tomogram: corrected, low-passed, deconvolved; set, drawn for each tomogram, or several at once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import (
    ANGLES,
    VOXEL_SIZE,
    assert_same_items,
    correlation,
    dataset,
    loader,
    noise_model,
    simulator,
    specimen,
)
from torch import Tensor

from faket_aug import (
    ContrastTransfer,
    FakETSimulator,
    MicroscopeResponse,
    NoiseModel,
    SimulationRecord,
    Variation,
    VariedSimulator,
)
from faket_aug.data.patches import cut, normalize
from faket_aug.data.sampling import PatchSampler
from faket_aug.microscope.flavours import FLAVOURS, Deconvolution, deconvolve, low_passed
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from faket_aug.simulation.drawn_settings import DrawnSettings
from faket_aug.specimens.procedural import procedural_specimen

CTF = ContrastTransfer(defocus=3.0)
THING = specimen(0)


def with_ctf(**settings: Any) -> FakETSimulator:
    """A simulator with a contrast transfer function."""
    return simulator("noisy", ctf=CTF, **settings)


def wave(frequency: float, axis: int) -> Tensor:
    """A wave along an axis, in cycles per voxel."""
    shape = [1, 1, 1]
    shape[axis] = 64
    return torch.cos(2 * math.pi * frequency * torch.arange(64.0)).view(shape).expand(64, 64, 64)


def gain(volume: Tensor, original: Tensor) -> float:
    """How much of the original the middle of a volume has."""
    inner = (slice(20, 44),) * 3
    return float((volume[inner] * original[inner]).sum() / (original[inner] ** 2).sum())


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("frequency", [0.0625, 0.125, 0.25])
def test_deconvolution_is_the_published_formula(frequency: float, axis: int) -> None:
    """A wave is multiplied by `ctf / (ctf² + 1 / SNR)`, along every axis."""
    settings = Deconvolution(strength=0.8, falloff=0.7, high_pass=0.05)
    fraction = 2 * frequency
    rising = 1 - math.cos(math.pi * min(1.0, fraction / 0.05))
    ratio = math.exp(-fraction * 0.7 * 100 / VOXEL_SIZE) * 10 ** (3 * 0.8) * rising
    transfer = float(CTF.curve(torch.tensor([frequency / VOXEL_SIZE]))[0])
    expected = transfer / (transfer**2 + 1 / ratio)
    original = wave(frequency, axis)
    found = gain(deconvolve(original, VOXEL_SIZE, CTF, settings), original)
    assert found == pytest.approx(expected, rel=0.03, abs=0.01)


def test_strength_of_isonet() -> None:
    """IsoNet's strength of 1 means a ratio of ten at low frequencies: a third of Warp's exponent."""
    ratio = Deconvolution(strength=1 / 3, high_pass=0.0).ratio(torch.zeros(1), VOXEL_SIZE)
    # The high-pass has a factor of two where it lets pass.
    assert float(ratio) == pytest.approx(2 * 10)
    assert float(Deconvolution(high_pass=0.0).ratio(torch.zeros(1), VOXEL_SIZE)) == pytest.approx(2 * 1000)


def test_deconvolution_at_frequency_zero() -> None:
    """The high-pass takes the mean; without it a constant is scaled by the formula, too."""
    flat = torch.full((12, 16, 20), 3.0)
    assert float(deconvolve(flat, VOXEL_SIZE, CTF).abs().max()) < 1e-5
    weight = Deconvolution(high_pass=0.0).weights(torch.zeros(1), VOXEL_SIZE, CTF)
    assert float(weight) == pytest.approx(0.07 / (0.07**2 + 1 / 2000), rel=1e-6)


def test_deconvolution_takes_the_mean_defocus() -> None:
    """A defocus for each tilt is averaged; envelopes are not divided out."""
    volume = torch.randn(16, 20, 24, generator=torch.Generator().manual_seed(0))
    each = replace(CTF, defocus=(2.0, 3.0, 4.0), b_factor=300.0, astigmatism=0.4)
    assert torch.equal(deconvolve(volume, VOXEL_SIZE, each), deconvolve(volume, VOXEL_SIZE, CTF))


def test_low_pass_halves_its_wavelength() -> None:
    """A wave of the resolution keeps half of its amplitude, a longer one more, the mean all."""
    for frequency, expected in ((0.125, 0.5), (0.0625, 0.5**0.25)):
        original = wave(frequency, 1)
        assert gain(low_passed(original, VOXEL_SIZE, 80.0), original) == pytest.approx(expected, rel=0.02)
    flat = torch.full((12, 16, 20), 3.0)
    assert torch.allclose(low_passed(flat, VOXEL_SIZE), flat)


@pytest.mark.parametrize("name", ["strength", "falloff", "high_pass"])
def test_numbers_of_a_deconvolution(name: str) -> None:
    """They are 0 or more."""
    for wrong in (-1.0, math.inf):
        with pytest.raises(ValueError, match=f"`{name}`"):
            Deconvolution(**{name: wrong})


# --- of a simulator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", ["phase-flip", "wiener"])
def test_corrected_flavours_are_the_corrections(correction: str) -> None:
    """A corrected flavour is the tomogram of `ctf_correction`, bit for bit, and the tilts stay uncorrected."""
    one, other = with_ctf(flavour=correction), with_ctf(ctf_correction=correction)
    assert torch.equal(one(THING, seed=1).tomogram, other(THING, seed=1).tomogram)
    assert torch.equal(one(THING, seed=1).tiltseries, with_ctf()(THING, seed=1).tiltseries)
    assert torch.equal(with_ctf(flavour="raw")(THING, seed=1).tomogram, with_ctf()(THING, seed=1).tomogram)


@pytest.mark.parametrize("own", [None, "wiener", "deconvolved"])
def test_several_flavours_of_one_tomogram(own: str | None) -> None:
    """Each is the tomogram that a simulator of this flavour makes, whatever the simulator's own is."""
    base = with_ctf(flavour=own, low_pass=50.0, deconvolution=Deconvolution(strength=0.5))
    made = base(THING, seed=2, flavours=FLAVOURS)
    assert torch.equal(made.tomogram, base(THING, seed=2).tomogram)
    assert made.record == base(THING, seed=2).record
    assert tuple(made.flavours) == FLAVOURS
    for name, volume in made.flavours.items():
        alone = replace(base, flavour=name)(THING, seed=2).tomogram
        assert torch.equal(volume, alone), name
    volumes = list(made.flavours.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(volumes) for b in volumes[:i])


def test_values_of_filtered_flavours() -> None:
    """They are the raw tomogram, filtered with the drawn defocus and the tomogram's voxel size."""
    thing = specimen(0, bin=2)
    made = FakETSimulator(tilt_angles=ANGLES, modality="noisy", noise=noise_model(), ctf=replace(CTF, spread=0.5))
    found = made(thing, seed=2, flavours=("low-pass", "deconvolved"))
    drawn = replace(CTF, defocus=found.record.defocus)
    assert found.record.defocus[0] != 3.0
    assert torch.allclose(found.flavours["deconvolved"], deconvolve(found.tomogram, VOXEL_SIZE, drawn), atol=1e-5)
    assert torch.allclose(found.flavours["low-pass"], low_passed(found.tomogram, VOXEL_SIZE), atol=1e-5)


def test_deconvolution_brings_the_specimen_back() -> None:
    """With a strong defocus, the deconvolved tomogram resembles the specimen more than the raw one does."""
    thing = procedural_specimen(shape=(32, 64, 64), seed=1)
    noise = NoiseModel.assume(torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)), (-50, 0, 50), snr=2.0)
    angles = tuple(np.arange(-60.0, 61.0, 4.0))
    made = FakETSimulator(tilt_angles=angles, noise=noise, modality="noisy", ctf=replace(CTF, defocus=4.0))
    found = made(thing, seed=0, flavours=("raw", "deconvolved"))
    raw, deconvolved = (correlation(-thing.density, volume) for volume in found.flavours.values())
    assert deconvolved > raw + 0.1


def test_halves_and_clean_have_the_first_flavour() -> None:
    """A pair of one flavour is that flavour of both halves."""
    made = with_ctf(ctf_correction="wiener")(THING, seed=3, halves="tilts", clean=True, flavours=("low-pass",))
    raw = with_ctf()(THING, seed=3, halves="tilts", clean=True)
    assert made.halves is not None
    assert raw.halves is not None
    for one, other in zip((*made.halves, made.clean), (*raw.halves, raw.clean), strict=True):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, low_passed(other, VOXEL_SIZE), atol=1e-5)


def test_settings_tell_the_flavour() -> None:
    """Without a flavour the settings are those from before there were any; each changes the record."""
    names = {"flavour", "low_pass", "deconvolution"}
    assert not names & set(with_ctf().settings())
    settings = with_ctf(flavour="low-pass", low_pass=40.0, deconvolution=Deconvolution(strength=0.5)).settings()
    assert {name: settings[name] for name in names} == {
        "flavour": "low-pass",
        "low_pass": 40.0,
        "deconvolution": {"strength": 0.5, "falloff": 1.0, "high_pass": 0.02},
    }
    assert json.loads(json.dumps(settings)) == settings
    record = with_ctf(flavour="raw").draw(THING, seed=0)
    with pytest.raises(ValueError, match="got others for flavour"):
        with_ctf(flavour="wiener").simulate(THING, record)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flavour": "sharp"}, "expected `flavour` to be one of 'raw', 'phase-flip'"),
        ({"flavour": "raw", "ctf_correction": "wiener"}, "expected `flavour` or `ctf_correction`, got both"),
        ({"flavour": "deconvolved", "ctf": None}, "for 'deconvolved' in `flavour`, got neither"),
        ({"low_pass": 0.0}, "expected `low_pass` to be"),
        ({"deconvolution": 1.0}, "expected `deconvolution` to be a `Deconvolution`"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    """A mistake is told when the simulator is made."""
    with pytest.raises(ValueError, match=message):
        simulator("noisy", **({"ctf": CTF} | settings))


@pytest.mark.parametrize(
    ("flavours", "message"),
    [
        (("raw", "sharp"), "expected `flavours` to be one of"),
        ("raw", "expected `flavours` to be a tuple of names, got 'raw'"),
        (("raw", "raw"), "expected each of `flavours` once"),
        (("raw", "wiener"), "for 'wiener' in `flavours`, got neither"),
    ],
)
def test_bad_flavours(flavours: Any, message: str) -> None:
    """A mistake is told before anything is simulated, and when a dataset is made."""
    with pytest.raises(ValueError, match=message):
        simulator("noisy")(THING, seed=0, flavours=flavours)
    with pytest.raises(ValueError, match=message):
        dataset(simulator("noisy"), flavours=flavours)


# --- drawn for each tomogram ------------------------------------------------------------------------------------------


def drawn(made: VariedSimulator, count: int = 40) -> list[DrawnSettings]:
    return [made.drawn(THING, seed=1, tomogram=number) for number in range(count)]


def response() -> NoiseModel:
    """Noise with a transfer function."""
    made = MicroscopeResponse(
        pixel_size=VOXEL_SIZE,
        ctf=CTF,
        envelope=Envelope(log_scale=0.5),
        noise=(tuple(np.full(len(RINGS), 4.0)),),
        angle_range=(-60.0, 60.0),
    )
    return NoiseModel(series=noise_model().series, response=made)


def test_flavours_are_drawn() -> None:
    """All of them come; all else that is drawn stays, the missing tilts among it; the record makes it again."""
    own: dict[str, Any] = {"missing": (0.0, 0.5), "filter": ("ramp", "hann")}
    base = with_ctf(ctf_correction="wiener")
    few, more = (VariedSimulator(base, Variation(**own, **extra)) for extra in ({}, {"flavour": FLAVOURS}))
    assert {one.flavour for one in drawn(more)} == set(FLAVOURS)
    assert [replace(one, flavour=None) for one in drawn(more)] == drawn(few)
    assert "flavour" not in drawn(few)[0].to_dict()
    for number in range(8):
        made = more(THING, seed=1, tomogram=number)
        record = SimulationRecord.from_json(made.record.to_json())
        flavour = record.settings["drawn"]["flavour"]
        assert record.settings["flavour"] == flavour
        assert torch.equal(more.simulate(THING, record).tomogram, made.tomogram)
        raw = few(THING, seed=1, tomogram=number, flavours=(flavour,))
        assert torch.equal(raw.flavours[flavour], made.tomogram)


def test_white_noise_in_place_of_a_response_is_raw() -> None:
    """Where no transfer function was applied, nothing is corrected, whether drawn, set or asked for."""
    base = simulator("noisy", noise=response(), flavour="wiener")
    for found in drawn(VariedSimulator(base, Variation(white=0.5, flavour=("deconvolved", "low-pass")))):
        assert found.flavour == "low-pass" or (found.flavour == "raw") == (found.snr is not None)
    plain = VariedSimulator(base, Variation(white=1.0))(THING, seed=0, flavours=("raw", "wiener"))
    assert plain.record.settings["flavour"] == "raw"
    assert torch.equal(plain.flavours["wiener"], plain.flavours["raw"])
    assert torch.equal(plain.flavours["wiener"], plain.tomogram)


def test_a_variation_needs_a_transfer_function() -> None:
    """Corrected flavours of a simulator without one are refused."""
    with pytest.raises(
        ValueError, match="expected a `ctf`, or noise with a `response`, of the simulator to vary `flav"
    ):
        VariedSimulator(simulator("noisy"), Variation(flavour=("raw", "wiener")))
    with pytest.raises(ValueError, match="expected `flavour` to be one of"):
        Variation(flavour="sharp")
    assert drawn(VariedSimulator(simulator("noisy"), Variation(flavour="low-pass")), 1)[0].flavour == "low-pass"


# --- channels of an item ----------------------------------------------------------------------------------------------


def channels(**settings: Any) -> Any:
    """A dataset whose images have three channels."""
    given = {"flavours": ("raw", "wiener", "deconvolved"), "patch_size": (8, 10, 12), "seed": 5}
    return dataset(with_ctf(), **(given | {"tomograms_per_epoch": 4, "patches_per_tomogram": 4} | settings))


def test_channels_are_the_flavours() -> None:
    """Each channel is its flavour at the item's position, normalized by itself; one flavour gives one channel."""
    data = channels(half_turn=False)
    for item in list(data)[:6]:
        assert item["image"].shape == (3, 8, 10, 12)
        patches = data.source.make(0, item["tomogram"])
        thing = next(one for one in data.specimens if one.name == patches.live.specimen)
        made = data.simulator(thing, seed=5, tomogram=item["tomogram"], flavours=data.sampler.flavours)
        for channel, volume in zip(item["image"], made.flavours.values(), strict=True):
            assert torch.equal(channel, normalize(cut(volume, item["position"].numpy(), (8, 10, 12))))
    alone = {item["index"]: item for item in channels(flavours=("wiener",))}
    for item in channels():
        assert torch.equal(alone[item["index"]]["image"][0], item["image"][1])
    assert_same_items(channels(flavours=("raw",)), channels(flavours=()))


@pytest.mark.parametrize(("workers", "start"), [(1, "fork"), (3, "fork"), (1, "spawn")])
@pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning")
def test_any_workers_and_ranks(workers: int, start: str) -> None:
    """The same channels, bit for bit, for any number of workers, forked and spawned, and shared out by two ranks."""
    expected = list(channels())
    assert_same_items(loader(channels(), workers=workers, start=start, batch_size=None), expected)
    shards = [list(channels(rank=rank, world_size=2)) for rank in range(2)]
    assert_same_items([*shards[0], *shards[1]], expected)


def test_pairs_have_one_flavour() -> None:
    """Halves go with one flavour; both halves have it."""
    with pytest.raises(
        ValueError, match="expected at most one of `flavours` with `halves`, got raw, wiener, deconvolved"
    ):
        channels(halves="tilts")
    item = next(iter(channels(halves="tilts", flavours=("wiener",))))
    assert item["image"].shape == item["image_other"].shape == (1, 8, 10, 12)
    assert isinstance(channels().sampler, PatchSampler)
