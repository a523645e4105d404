"""Simulated tilts through uneven ice: what is drawn, records, files, and what does not go together."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import (
    ANGLES,
    VOXEL_SIZE,
    assert_same_items,
    blobs,
    dataset,
    loader,
    noise_model,
    simulator,
    specimen,
    table,
)

from faket_aug import (
    ContrastTransfer,
    FakETSimulator,
    GrandModel,
    NoiseModel,
    SimulationRecord,
    TiltSeries,
    Variation,
    VariedSimulator,
    fit_microscope,
    project,
)
from faket_aug.microscope.background import SlowBackground
from faket_aug.microscope.file import MicroscopeFile, read_microscope, write_microscope
from faket_aug.microscope.ice_map import ThicknessMap
from faket_aug.microscope.intensity import ContrastReport
from faket_aug.microscope.interaction import interaction_constant
from faket_aug.microscope.noise import ResponseNoise
from faket_aug.microscope.response import Envelope, MicroscopeResponse
from faket_aug.microscope.spectra import RINGS
from faket_aug.microscope.uneven_ice import DrawnIce, UnevenIce

THING = specimen(0)
INTENSITY = 100.0
#: Thick at high x, and at high y.
MAPS = (
    ThicknessMap.of(np.linspace(0.2, 1.4, 12)[None].repeat(6, axis=0), (240.0, 640.0)),
    ThicknessMap.of(np.linspace(0.2, 1.4, 6)[:, None].repeat(12, axis=1), (240.0, 640.0)),
)
SLOW = SlowBackground(extent=(240.0, 320.0), tilt_angles=ANGLES, waves=(((0.0, 4.0),),) * len(ANGLES))


def _noise(source: str = "intensity", **settings: Any) -> ResponseNoise:
    response = MicroscopeResponse(
        pixel_size=VOXEL_SIZE,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=float(np.log(2 * interaction_constant(300.0) * VOXEL_SIZE * INTENSITY))),
        noise=((4.0,) * len(RINGS),),
        angle_range=(-60.0, 60.0),
        defocus=(2.5, 3.5),
    )
    contrast = ContrastReport(source=(source,), zero=(-90.0,), zero_error=(0.5,))
    return ResponseNoise(
        **({"series": noise_model().series, "response": response, "contrast": contrast, "ice": MAPS} | settings)
    )


def _made(ice: Any = None, noise: NoiseModel | None = None, **settings: Any) -> FakETSimulator:
    return simulator("noisy", noise=_noise() if noise is None else noise, ice=ice, **settings)


# --- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ice", [UnevenIce(), "measured"], ids=["drawn", "measured"])
def test_each_tomogram_has_its_ice(ice: Any) -> None:
    """The same address gives the same tilts; other tomograms and epochs have other ice; the record tells it."""
    made = _made(ice)
    record = made.draw(THING, seed=0, tomogram=1)
    assert made.draw(THING, seed=0, tomogram=1) == record
    found = [made.draw(THING, seed=0, tomogram=number).ice for number in range(30)]
    # Two maps, each mirrored in four ways.
    assert len({str(one) for one in found}) >= (30 if isinstance(ice, UnevenIce) else 6)
    assert made.draw(THING, seed=0, epoch=1, tomogram=1).ice != record.ice
    tilts = made(THING, seed=0, tomogram=1).tiltseries
    assert torch.equal(tilts, made(THING, seed=0, tomogram=1).tiltseries)
    again = SimulationRecord.from_json(record.to_json())
    assert again == record
    assert torch.equal(made.simulate(THING, again).tiltseries, tilts)
    # All other chance is as without ice.
    plain = _made().draw(THING, seed=0, tomogram=1)
    assert (plain.defocus, plain.noise_seed, plain.misalignment) == (
        *(record.defocus, record.noise_seed, record.misalignment),
    )


def test_without_ice_all_is_as_before() -> None:
    """Neither records nor settings speak of it, whatever maps the microscope's file has; the tilts are the same."""
    made, plain = _made(), _made(noise=_noise(ice=()))
    assert made.settings() == plain.settings()
    record = made.draw(THING, seed=0)
    assert "ice" not in json.loads(record.to_json())
    assert "ice" not in made.settings()
    assert "ice" not in record.settings["noise"]
    assert torch.equal(made(THING, seed=0).tiltseries, plain(THING, seed=0).tiltseries)


def test_a_record_is_of_its_ice() -> None:
    """A record of other ice, or of none, is refused."""
    record = _made(UnevenIce()).draw(THING, seed=0)
    assert DrawnIce.from_dict(record.ice).depth > 0
    assert record.settings["ice"] == UnevenIce().to_dict()
    for other in (UnevenIce(depth=0.5), "measured"):
        with pytest.raises(ValueError, match="got others for .*ice"):
            _made(other).simulate(THING, record)
    with pytest.raises(ValueError, match="got others for ice$"):
        _made(UnevenIce(wedge=0.1)).simulate(THING, _made(UnevenIce(wedge=0.2)).draw(THING, seed=0))
    # One without ice has no ice to compare; its tilts would differ.
    with pytest.raises(ValueError, match="got others for ice$"):
        _made(UnevenIce()).simulate(THING, _made().draw(THING, seed=0))


def test_tilts_pass_through_the_drawn_map() -> None:
    """Tilts differ from even ones by what the map takes; mirrored maps darken the other side."""
    made = _made("measured", _noise(ice=MAPS[:1]))
    sides = {}
    for number in range(12):
        record = made.draw(THING, seed=0, tomogram=number)
        tilts = made.simulate(THING, record).tiltseries[2]
        assert record.ice["series"] == 0
        sides[record.ice["mirrored"][1]] = float(tilts[:, -8:].mean() - tilts[:, :8].mean())
    assert sides[False] < -10
    assert sides[True] > 10


def test_means_stay() -> None:
    """The mean of each tilt is that of the noise model."""
    noise = _noise()
    tilts = _made(UnevenIce(wedge=1.0), noise)(THING, seed=0).tiltseries
    assert np.allclose(tilts.mean(dim=(1, 2)).numpy(), noise.curves(ANGLES).mean, rtol=1e-4)


def test_clean_tomograms_and_halves_share_it() -> None:
    """Ice is part of the signal: of the clean tomogram, and of both halves."""
    made = _made(UnevenIce(depth=1.0, wedge=1.0))
    one = made(THING, seed=0, halves="exposures", clean=True)
    assert one.halves is not None
    assert torch.allclose((one.halves[0] + one.halves[1]) / 2, one.tomogram, atol=0.02 * float(one.tomogram.std()))
    plain = _made()(THING, seed=0, clean=True)
    assert one.clean is not None
    assert plain.clean is not None
    assert not torch.allclose(one.clean, plain.clean, atol=0.1 * float(plain.clean.std()))


@pytest.mark.parametrize("ice", [UnevenIce(edge=0.3), "measured"], ids=["drawn", "measured"])
def test_workers(ice: Any) -> None:
    """It pickles, and items are the same for 0 and for 2 workers."""
    made = _made(ice)
    assert pickle.loads(pickle.dumps(made)).settings() == made.settings()
    expected = list(dataset(made, count=2))
    assert_same_items(loader(dataset(made, count=2), workers=2, batch_size=None), expected)


def test_variations() -> None:
    """White noise has no ice, since it tells no intensity; own noise keeps it; a measured background excludes it."""
    base = _made(UnevenIce(), _noise(backgrounds=(SLOW,)))
    assert Variation.standard(base).measured_background is None
    made = VariedSimulator(base, Variation(white=0.5, contrast=(0.8, 1.2)))
    records = [made.draw(THING, seed=0, tomogram=number) for number in range(12)]
    white = [one.settings["drawn"]["snr"] is not None for one in records]
    assert set(white) == {True, False}
    for record, plain in zip(records, white, strict=True):
        assert bool(record.ice) != plain
        assert ("ice" in record.settings) != plain
    assert torch.isfinite(made.simulate(THING, records[white.index(False)]).tomogram).all()
    with pytest.raises(ValueError, match="expected a simulator without `ice` to vary `measured_background`"):
        VariedSimulator(base, Variation(measured_background=0.5))


# --- files ------------------------------------------------------------------------------------------------------------


def test_noise_with_maps_comes_back(tmp_path: Path) -> None:
    """Maps are an optional entry of the file; a file without them is as before, and is read."""
    path = tmp_path / "microscope.json"
    for noise in (
        _noise(),
        _noise(ice=()),
        _noise().with_ice(MAPS[0]),
        _noise().with_ice(UnevenIce().drawn(np.random.default_rng(0))),
    ):
        assert NoiseModel.from_json(noise.to_json()) == noise
        write_microscope(path, MicroscopeFile(noise=noise, tilt_angles=ANGLES))
        assert read_microscope(path).noise == noise
    old = json.loads(_noise(ice=()).to_json())
    assert not {"ice", "through"} & set(old)
    content = json.loads(_noise().to_json()) | {"checksum": None}
    for wrong in (1, [1], [{}], [content["ice"][0] | {"more": 1}]):
        with pytest.raises(ValueError, match="ice"):
            NoiseModel.from_json(json.dumps(content | {"ice": wrong}))
    with pytest.raises(ValueError, match="expected a map of ice, got 3"):
        NoiseModel.from_json(json.dumps(content | {"through": 3}))
    write_microscope(path, MicroscopeFile(noise=_noise(), tilt_angles=ANGLES))
    made = FakETSimulator.from_file(path, ice="measured")
    assert made.draw(THING, seed=0).ice == _made("measured").draw(THING, seed=0).ice
    # The record's noise makes the tomogram again.
    record = made.draw(THING, seed=0)
    noise = NoiseModel.from_json(record.settings["noise"])
    again = replace(made, noise=noise).simulate(THING, record)
    assert torch.equal(again.tiltseries, made(THING, seed=0).tiltseries)


def test_a_saved_tomogram_is_made_again(tmp_path: Path) -> None:
    """The record on disk holds what was drawn."""
    made = _made("measured")
    one = made(THING, seed=0, tomogram=2)
    one.save(tmp_path / "tomogram", formats=("shrec",))
    record = SimulationRecord.read(tmp_path / "tomogram")
    assert record.ice == one.record.ice
    assert torch.equal(made.simulate(THING, record).tomogram, one.tomogram)


# --- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "settings", "message"),
    [
        (_noise(), {"ice": 0.3}, 'expected `ice` to be an `UnevenIce`, "measured" or None, got 0.3'),
        (_noise(), {"ice": "thick"}, "expected `ice` to be an `UnevenIce`"),
        (
            _noise(backgrounds=(SLOW,)),
            {"ice": UnevenIce(), "background": "measured"},
            'expected `ice` or `background="measured"`, got both: .* leave one of them out',
        ),
        (
            noise_model(),
            {"ice": UnevenIce()},
            "expected noise with a response of an absolute scale for `ice`, .* fit it",
        ),
        (_noise("power"), {"ice": UnevenIce()}, "expected noise with a response of an absolute scale for `ice`"),
        (_noise(contrast=None), {"ice": "measured"}, "expected noise with a response of an absolute scale for `ice`"),
        (
            _noise(ice=()),
            {"ice": "measured"},
            'expected noise with a map of the ice for `ice="measured"`, .* `UnevenIce`',
        ),
    ],
    ids=["number", "word", "background", "white", "power", "no_contrast", "no_map"],
)
def test_what_ice_needs(noise: NoiseModel, settings: dict[str, Any], message: str) -> None:
    """It is told when the simulator is made, with what to do."""
    with pytest.raises(ValueError, match=message):
        simulator("noisy", noise=noise, **settings)


def test_noise_of_noise_and_exposure_serves() -> None:
    """A scale from noise and exposure tells intensities, too; drawn ice then needs no measured map."""
    assert _made(UnevenIce(), _noise("exposure", ice=())).draw(THING, seed=0).ice


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_a_fit_finds_the_ice() -> None:
    """Counts of a specimen in a wedge of ice: the fit keeps its map and says it; without intensities there is none."""
    angles = np.arange(-60.0, 61.0, 4.0)
    random = np.random.default_rng(0)
    shape = (24, 160, 160)

    def things(seed: int) -> GrandModel:
        places = np.random.default_rng(seed).uniform((6, 6, 6), (18, 154, 154), (150, 3))
        return GrandModel(
            density=4 * blobs(shape, places, 2.5),
            labels=torch.zeros(shape, dtype=torch.uint8),
            particles=table([], []),
            voxel_size=VOXEL_SIZE,
            class_names={1: "small"},
            name=f"things {seed}",
        )

    put = DrawnIce(
        **{"depth": 0.7, "wedge": 0.4, "wedge_direction": 30.0, "edge": 0.0, "edge_direction": 0.0, "edge_place": 0.0},
        **{"edge_width": 1000.0, "waves": 0.0, "seed": 0},
    ).map((1600.0, 1600.0))
    contrast = ContrastTransfer(defocus=3.0).apply(-project(things(0).density, angles, extend="wrap"), VOXEL_SIZE)
    seen = 500 * put.transmission((160, 160), VOXEL_SIZE, angles)
    counts = seen * (1 + contrast * 2 * interaction_constant(300) * VOXEL_SIZE).clamp(min=0)
    counts = torch.from_numpy(random.poisson(counts.numpy())).float()
    series = TiltSeries(tilts=2 * counts - 300, tilt_angles=angles, pixel_size=VOXEL_SIZE, name="measured")
    fitted = fit_microscope(series, [things(1)], defocus=3.0, interpolated=True)
    assert fitted.noise.contrast is not None
    assert fitted.noise.contrast.source == ("intensity",)
    (found,) = fitted.noise.ice
    depths = [-np.log(one.transmission((160, 160), VOXEL_SIZE, (0.0,)).double().numpy()) for one in (put, found)]
    assert depths[1].mean() == pytest.approx(0.7, rel=0.1)
    assert np.abs((depths[1] - depths[1].mean()) - (depths[0] - depths[0].mean())).max() < 0.04
    line = fitted.report()[-1]
    depth = found.within((1600.0, 1600.0))
    assert (
        line == f"series 0: ice t/Λ {depth.mean():.2f}, between {depth.min():.2g} and {depth.max():.2g} over the image"
    )
    made = FakETSimulator(tilt_angles=angles, modality="noisy", noise=fitted.noise, ice="measured")
    assert made.draw(things(1), seed=0).ice["series"] == 0
    assert fit_microscope(series, [things(1)], defocus=3.0, interpolated=True, scale="power").noise.ice == ()
