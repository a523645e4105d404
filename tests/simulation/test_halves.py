"""Halves of a tomogram for denoisers: the same signal, independent noise, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import ANGLES, VOXEL_SIZE, blobs, correlation, empty_specimen, noise_model, simulator, specimen
from torch import Tensor

from faket_aug import (
    ContrastTransfer,
    Detector,
    FakETSimulator,
    GrandModel,
    Imperfections,
    MicroscopeResponse,
    NoiseModel,
    ParticleTable,
    SimulatedTomogram,
    TiltedSpecimen,
    Variation,
    VariedSimulator,
    reconstruct,
)
from faket_aug.formats.mrc import read_mrc
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS

SHAPE = (32, 96, 80)
TILTS = tuple(np.linspace(-57.0, 57.0, 20))
#: Rows of y that hold no particle, some pixels away from those that do.
EMPTY = slice(48, 96)


def large() -> GrandModel:
    """A specimen whose rows from 40 on are empty."""
    centers = [(10, 12, 20), (16, 22, 50), (22, 30, 30), (12, 28, 62), (20, 10, 42)]
    return GrandModel(
        density=blobs(SHAPE, centers, 2.5),
        labels=torch.zeros(SHAPE, dtype=torch.uint8),
        particles=ParticleTable.empty(),
        voxel_size=VOXEL_SIZE,
    )


def response() -> NoiseModel:
    """Noise with a spectrum and a transfer function."""
    made = MicroscopeResponse(
        pixel_size=VOXEL_SIZE,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=0.5),
        noise=(tuple(np.linspace(8.0, 1.0, len(RINGS))),),
        angle_range=(-60.0, 60.0),
    )
    return NoiseModel(series=noise_model().series, response=made)


def white(modality: str = "noisy", **settings: Any) -> FakETSimulator:
    """A simulator with white noise, whose filter leaves the rows of y alone."""
    return FakETSimulator(
        **({"tilt_angles": TILTS, "modality": modality, "noise": noise_model(), "filter": "ramp"} | settings)
    )


def slope(half: Tensor, clean: Tensor) -> float:
    """How much of the clean tomogram a half holds: the slope of a straight line through both."""
    centred = (clean - clean.mean()).double()
    return float((half.double() * centred).sum() / (centred**2).sum())


@pytest.mark.parametrize("halves", ["tilts", "exposures"])
@pytest.mark.parametrize("noise", [noise_model(), response()], ids=["white", "response"])
def test_noise_is_independent_and_the_signal_the_same(halves: str, noise: NoiseModel) -> None:
    """|r| < 0.01 where the specimen is empty; both halves and the tomogram hold the clean tomogram once."""
    made = white(noise=noise)(large(), seed=1, halves=halves, clean=True)
    assert made.halves is not None
    assert made.clean is not None
    first, second = (half[:, EMPTY] for half in made.halves)
    assert abs(correlation(first, second)) < 0.01
    assert float(first.std()) == pytest.approx(2**0.5 * float(made.tomogram[:, EMPTY].std()), rel=0.03)
    assert float(first.std()) == pytest.approx(float(second.std()), rel=0.02)
    slopes = [slope(one[:, :40], made.clean[:, :40]) for one in (made.tomogram, *made.halves)]
    assert slopes == pytest.approx([1.0] * 3, abs=0.1)
    assert torch.allclose((made.halves[0] + made.halves[1]) / 2, made.tomogram, atol=1e-3 * float(made.tomogram.std()))


@pytest.mark.parametrize("noise", [noise_model(), response()], ids=["white", "response"])
def test_half_exposures_differ_by_their_noise_alone(noise: NoiseModel) -> None:
    """Halves of the exposure have exactly one signal: their mean over many tomograms is the clean one."""
    thing, made = large(), white(noise=noise, tilt_angles=TILTS[::4])
    clean = made(thing, seed=0, clean=True).clean
    assert clean is not None
    sums = [torch.zeros(SHAPE), torch.zeros(SHAPE)]
    for seed in range(12):
        halves = made(thing, seed=seed, halves="exposures").halves
        assert halves is not None
        sums = [total + half / 12 for total, half in zip(sums, halves, strict=True)]
    errors = [float((one - clean).std()) / float((halves[0] - clean).std()) for one in sums]
    assert errors == pytest.approx([12**-0.5] * 2, rel=0.1)


def test_halves_of_the_tilts_are_reconstructed_from_every_other_tilt() -> None:
    """The first half has the first, third, ... tilt by angle, in whatever order the angles come."""
    angles = (25.0, -50.0, 0.0, 50.0, -25.0)
    made = white(tilt_angles=angles)(specimen(0), seed=3, halves="tilts")
    assert made.halves is not None
    for half, chosen in zip(made.halves, ([1, 2, 3], [4, 0]), strict=True):
        own = reconstruct(made.tiltseries[chosen], np.array(angles)[chosen], depth=16, filter="ramp")
        assert torch.allclose(half, own, atol=1e-5)


@pytest.mark.parametrize("modality", ["baseline", "noisy", "content", "faket"])
@pytest.mark.parametrize("halves", ["tilts", "exposures"])
def test_the_tomogram_itself_stays(tmp_path: Path, modality: str, halves: str) -> None:
    """With halves and a clean tomogram beside it, tilts, tomogram and record are those without, bit for bit."""
    made, thing = simulator(modality, tmp_path), specimen(0)
    plain, more = made(thing, seed=4), made(thing, seed=4, halves=halves, clean=True)
    assert torch.equal(plain.tomogram, more.tomogram)
    assert torch.equal(plain.tiltseries, more.tiltseries)
    assert plain.record == more.record
    assert plain.halves is None
    assert plain.clean is None
    again = made.simulate(thing, plain.record, halves=halves, clean=True)
    assert again.halves is not None
    assert more.halves is not None
    assert all(torch.equal(a, b) for a, b in zip(again.halves, more.halves, strict=True))
    assert not torch.equal(*more.halves)


def test_half_exposures_are_restyled_one_by_one(tmp_path: Path) -> None:
    """The noise of styled halves stays independent, and each half has the style's statistics."""
    made, empty = simulator("faket", tmp_path), empty_specimen()
    thing = replace(empty, density=0 * empty.density)
    found, rows = [], []
    for seed in range(40):
        halves = made(thing, seed=seed, halves="exposures").halves
        assert halves is not None
        found.append([half.flatten() for half in halves])
        rows.append(halves)
    first, second = (
        torch.cat([pair[i] - torch.stack([p[i] for p in found]).mean(0) for pair in found]) for i in (0, 1)
    )
    assert abs(correlation(first, second)) < 0.01
    assert float(first.std()) == pytest.approx(float(second.std()), rel=0.05)


def test_noise_with_the_detectors_spectrum() -> None:
    """Both halves have the coloured noise of the detector, independent of each other."""
    blurred = Imperfections(detector=Detector(at_nyquist=0.2, noise_share=1.0))
    made = white(imperfections=blurred)(large(), seed=2, halves="exposures")
    assert made.halves is not None
    first, second = (half[:, EMPTY] for half in made.halves)
    assert abs(correlation(first, second)) < 0.015
    neighbours = correlation(first[:, 1:], first[:, :-1])
    assert neighbours > 0.2


def test_clean_has_the_correction_and_filter_of_the_tomogram() -> None:
    """The clean tomogram is corrected and filtered as the noisy one is, and in its unit."""
    made = white(ctf=ContrastTransfer(defocus=2.0), ctf_correction="phase-flip", noise=noise_model())
    clean = made(large(), seed=0, clean=True).clean
    strong = replace(made, noise=noise_model().strengthened(exposure=1e6))(large(), seed=0, clean=True)  # type: ignore[attr-defined]
    assert clean is not None
    assert correlation(clean, strong.tomogram) > 0.99
    assert strong.clean is not None
    assert slope(strong.tomogram, strong.clean) == pytest.approx(1.0, abs=0.01)


def test_noiseless_is_clean_already() -> None:
    """Of tilts without noise the clean tomogram is the tomogram."""
    made = simulator("noiseless")(specimen(1), seed=0, clean=True, halves="tilts")
    assert made.clean is not None
    assert torch.equal(made.clean, made.tomogram)


def test_a_varied_simulator_makes_them_too() -> None:
    """Halves and clean tomogram have the drawn settings, such as the tilts that are left."""
    varied = VariedSimulator(white(), Variation(missing=(0.2, 0.5), filter=("ramp", "hann")))
    plain, more = varied(large(), seed=5), varied(large(), seed=5, halves="tilts", clean=True)
    assert torch.equal(plain.tomogram, more.tomogram)
    assert len(more.record.settings["drawn"]["tilts"]) < 17
    assert more.halves is not None
    share = np.array([len(more.tilt_angles[i::2]) for i in (0, 1)]) / len(more.tilt_angles)
    both = share[0] * more.halves[0] + share[1] * more.halves[1]
    assert torch.allclose(both, more.tomogram, atol=1e-3 * float(more.tomogram.std()))


def test_a_noise_model_of_ones_own_has_halves() -> None:
    """A model that only defines `sample` gets halves and a signal from it."""

    class Doubled(NoiseModel):
        def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Any, *, noise_scale: float = 1.0) -> Tensor:
            return clean + 2 * noise_scale * noise

        def to_json(self) -> str:
            return '{"noise": "doubled"}'

    made = white(noise=Doubled())(large(), seed=0, halves="exposures", clean=True)
    assert made.halves is not None
    assert made.clean is not None
    noiseless = white("noiseless", noise=None)(large(), seed=0)
    assert torch.equal(made.clean, noiseless.tomogram)
    difference = (made.halves[0] - made.halves[1])[:, EMPTY]
    assert float(difference.std()) == pytest.approx(2 * float((made.tomogram - made.clean)[:, EMPTY].std()), rel=0.03)


def test_halves_are_written(tmp_path: Path) -> None:
    """They lie beside the tomogram, with its voxel size; a set of files without them replaces one that had them."""
    made = white()(specimen(0), seed=0, halves="tilts", clean=True)
    made.save(tmp_path / "a")
    assert made.halves is not None
    for name, half in zip(("even", "odd"), made.halves, strict=True):
        volume, size = read_mrc(tmp_path / "a" / f"reconstruction_{name}.mrc")
        assert torch.equal(volume, half)
        assert size == VOXEL_SIZE
    assert torch.equal(read_mrc(tmp_path / "a" / "reconstruction_noiseless.mrc")[0], made.clean)
    white()(specimen(0), seed=0).save(tmp_path / "a")
    assert not list((tmp_path / "a").glob("*_odd.mrc"))


@pytest.mark.parametrize(
    ("settings", "asked", "message"),
    [
        ({}, {"halves": "frames"}, "expected `halves` to be one of 'tilts', 'exposures', got 'frames'"),
        ({"modality": "noiseless"}, {"halves": "exposures"}, "expected a modality with noise for"),
        ({"tilt_angles": (0.0,), "noise": None, "modality": "noiseless"}, {"halves": "tilts"}, "expected two tilts or"),
        ({"noise": "given"}, {"halves": "exposures"}, "expected simulated noise for halves of the exposure, got"),
        ({"noise": "given"}, {"clean": True}, "expected simulated noise for a clean tomogram, got"),
    ],
)
def test_what_cannot_be(settings: dict[str, Any], asked: dict[str, Any], message: str) -> None:
    """It is told before anything is simulated."""
    with pytest.raises(ValueError, match=message):
        white(**settings)(specimen(0), seed=0, **asked)


def test_given_noise_has_halves_of_the_tilts() -> None:
    """Tilts that have their noise already can still be divided."""
    tilts = torch.randn(len(ANGLES), 24, 32, generator=torch.Generator().manual_seed(0))
    given = TiltedSpecimen(
        tilts=tilts,
        tilt_angles=np.array(ANGLES),
        noisy=True,
        labels=torch.zeros(16, 24, 32, dtype=torch.uint8),
        particles=ParticleTable.empty(),
        voxel_size=VOXEL_SIZE,
    )
    made = white(tilt_angles=ANGLES, noise="given")(given, seed=0, halves="tilts")
    assert made.halves is not None
    own = reconstruct(tilts[1::2], ANGLES[1::2], depth=16, filter="ramp")
    assert torch.allclose(made.halves[1], own, atol=1e-5)


def test_halves_have_the_tomograms_shape() -> None:
    """What has another shape is refused."""
    made: SimulatedTomogram = white()(specimen(0), seed=0)
    with pytest.raises(ValueError, match="expected two `halves` of a tomogram, got 1"):
        replace(made, halves=(made.tomogram,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clean"):
        replace(made, clean=made.tomogram[1:])
