"""Settings that are drawn for each tomogram: what is drawn, from which address, and that records make it again."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import (
    ANGLES,
    MORE_WORKERS_THAN_CORES,
    SHAPE,
    assert_same_items,
    dataset,
    loader,
    noise_model,
    simulator,
    specimen,
    specimens,
    style_series,
)

from faket_aug import (
    BadTilt,
    ContrastTransfer,
    ExposureDamage,
    FakETDataset,
    FakETSimulator,
    Imperfections,
    MicroscopeResponse,
    Misalignment,
    NoiseModel,
    SimulationRecord,
    TiltedSpecimen,
    UnevenIce,
    Variation,
    VariedSimulator,
    backproject,
    project,
    reconstruct,
)
from faket_aug._random import STAGES
from faket_aug.microscope.background import SlowBackground
from faket_aug.microscope.crowd import CrowdField
from faket_aug.microscope.intensity import ContrastReport
from faket_aug.microscope.noise import ResponseNoise, WhiteNoise
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from faket_aug.simulation.drawn_settings import DrawnSettings
from faket_aug.tomography.plane_map import geometry_cache

pytestmark = pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES)

THING = specimen(0)


def _response(**settings: Any) -> ResponseNoise:
    response = MicroscopeResponse(
        pixel_size=THING.voxel_size,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=0.5),
        noise=(tuple(np.full(len(RINGS), 4.0)),),
        angle_range=(-60.0, 60.0),
        defocus=(2.5, 3.5),
    )
    made = NoiseModel(series=noise_model().series, response=response)
    assert isinstance(made, ResponseNoise)
    return replace(made, **settings)


def _fitted(**settings: Any) -> FakETSimulator:
    """A simulator with a fitted response."""
    return simulator("noisy", noise=_response(), **settings)


@dataclass(frozen=True)
class Backprojected:
    """A reconstruction of one's own."""

    def __call__(self, tilts: torch.Tensor, tilt_angles: Any, *, depth: int, bin: int) -> torch.Tensor:
        return backproject(tilts, tilt_angles, depth=depth)


def _drawn(made: VariedSimulator, count: int = 40, **address: Any) -> list[DrawnSettings]:
    return [made.drawn(THING, seed=1, tomogram=number, **address) for number in range(count)]


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_nothing_varies_by_default() -> None:
    """A variation of nothing gives the simulator's own tomograms, bit for bit, tilts and all."""
    base = _fitted(ctf_correction="phase-flip")
    plain, varied = base(THING, seed=2, tomogram=1), VariedSimulator(base, Variation())(THING, seed=2, tomogram=1)
    assert torch.equal(plain.tomogram, varied.tomogram)
    assert torch.equal(plain.tiltseries, varied.tiltseries)
    assert {**plain.record.settings, "drawn": varied.record.settings["drawn"]} == varied.record.settings


def test_numbers_lie_in_their_ranges_and_fill_them() -> None:
    """Every range is kept to, and both of its thirds at the ends are reached; the same address draws the same."""
    ranges: dict[str, Any] = {"exposure": (0.5, 2.0), "contrast": (0.7, 1.4), "defocus": (-0.5, 0.5)}
    made = VariedSimulator(_fitted(), Variation(**ranges))
    found = _drawn(made)
    assert found == _drawn(made)
    assert found != _drawn(made, epoch=1)
    for name, (low, high) in ranges.items():
        values = [getattr(one, name) for one in found]
        assert low <= min(values) < low + (high - low) / 3
        assert high - (high - low) / 3 < max(values) <= high
    logarithms = np.log2([one.exposure for one in _drawn(made, 400)])
    assert logarithms.mean() == pytest.approx(0.0, abs=0.1)
    assert logarithms.std() == pytest.approx(1 / 3**0.5, abs=0.05)


def test_a_new_range_leaves_what_others_draw() -> None:
    """Each setting has its own random number."""
    few = _drawn(VariedSimulator(_fitted(), Variation(contrast=(0.7, 1.4), filter=("ramp", "hann"))))
    more = _drawn(VariedSimulator(_fitted(), Variation(contrast=(0.7, 1.4), filter=("ramp", "hann"), missing=(0, 0.5))))
    assert [(one.contrast, one.filter) for one in few] == [(one.contrast, one.filter) for one in more]
    assert {one.filter for one in few} == {"ramp", "hann"}
    assert any(one.tilts is not None for one in more)


def test_standard_of_a_fitted_response() -> None:
    """Two thirds have white noise of a low ratio, and one third has the response with another contrast."""
    found = _drawn(VariedSimulator(_fitted()), 150)
    white = [one.snr for one in found if one.snr is not None]
    assert 0.55 < len(white) / len(found) < 0.78
    assert 0.03 <= min(white) < 0.04 < 0.08 < max(white) <= 0.1
    assert all(0.7 <= one.contrast <= 1.4 for one in found)
    assert {one.filter for one in found} == {"shrec", "ramp", "hamming", "hann"}
    own = [one for one in found if one.snr is None]
    assert max(abs(one.defocus) for one in own) == pytest.approx(0.5, abs=0.05)
    assert {one.defocus for one in found if one.snr is not None} == {0.0}, "white noise has no transfer function"
    assert {one.crowd for one in found} == {1.0}, "this noise has no crowd"


def test_standard_of_a_physical_response() -> None:
    """A noise that is known to be the microscope's stays, and so does the filter."""
    known = replace(_response(), contrast=ContrastReport(source=("intensity",), zero=(0.0,), zero_error=(0.1,)))
    found = _drawn(VariedSimulator(simulator("noisy", noise=known)), 60)
    assert {one.snr for one in found} == {None}
    assert {one.filter for one in found} == {None}
    contrasts = [one.contrast for one in found]
    assert 0.8 <= min(contrasts) < 0.85 < 1.15 < max(contrasts) <= 1.25
    assert max(abs(one.defocus) for one in found) == pytest.approx(0.5, abs=0.05)
    by_power = replace(known, contrast=ContrastReport(source=("power",), zero=(0.0,), zero_error=(0.1,)))
    assert Variation.standard(simulator("noisy", noise=by_power)) == Variation.standard(_fitted())


@pytest.mark.parametrize("modality", ["noiseless", "noisy", "faket"])
def test_standard_fits_every_simulator(tmp_path: Path, modality: str) -> None:
    """What a simulator does not have does not vary, and every one makes a tomogram."""
    made = VariedSimulator(simulator(modality, tmp_path), "standard")(specimen(1), seed=0)
    assert made.tomogram.shape == SHAPE
    assert torch.isfinite(made.tomogram).all()


def test_standard_leaves_a_reconstruction_of_ones_own() -> None:
    """It has no filter that could vary."""
    assert Variation.standard(simulator("noisy", reconstruction=Backprojected())).filter == ()
    assert Variation.standard(simulator("noisy")).filter != ()


def test_ratio_alone_is_for_all_tomograms() -> None:
    """Where only a ratio is given, all tomograms have white noise; where only a share is, the ratio has a default."""
    assert Variation(snr=(0.05, 0.2)) == Variation(snr=(0.05, 0.2), white=1.0)
    assert Variation(white=0.5) == Variation(white=0.5, snr=(0.03, 0.1))
    assert Variation().white == 0.0


def test_mixture_follows_its_weights() -> None:
    """Each of several simulators is drawn in proportion to its weight, with a variation of its own."""
    both = [simulator("noisy"), _fitted()]
    made = VariedSimulator(both, [Variation(), Variation(contrast=2.0)], weights=[1, 3])
    found = _drawn(made, 200)
    counts = Counter(one.simulator for one in found)
    assert 0.15 < counts[0] / 200 < 0.35
    assert {(one.simulator, one.contrast) for one in found} == {(0, 1.0), (1, 2.0)}


def test_curriculum() -> None:
    """Between two epochs of a schedule numbers change linearly, and they are constant outside."""
    easy, hard = Variation(white=1.0, snr=1.0), Variation(white=0.0, snr=(0.05, 0.2), filter=("hann",))
    base = simulator("noisy")
    made = VariedSimulator([base, base], {2: easy, 6: hard}, weights={0: (1, 0), 4: (0, 1)})
    at = {epoch: made.variations_at(epoch) for epoch in (0, 2, 3, 6, 9)}
    assert at[0] == (*at[2][:1], (1.0, 0.0))
    assert at[2][1] == (0.5, 0.5)
    assert at[3][0][0].snr == pytest.approx((0.7625, 0.8))
    assert at[3][0][0].white == pytest.approx(0.75)
    assert at[3][0][0].filter == ()
    assert at[6] == at[9] == ((hard, hard), (0.0, 1.0))


def test_a_curriculum_that_begins_with_nothing() -> None:
    """The word for nothing is that of the command line."""
    made = VariedSimulator(simulator("noisy"), {0: "none", 4: Variation(missing=(0.0, 0.4))})
    assert [made.variations_at(epoch)[0][0].missing[1] for epoch in (0, 1, 4)] == pytest.approx([0.0, 0.1, 0.4])
    assert made.variations_at(0)[0] == (Variation(),)


def test_each_simulator_has_a_schedule_of_its_own() -> None:
    """Schedules within the sequence are those of all simulators, whose epochs need not be the same."""
    easy, hard = Variation(white=1.0, snr=1.0), Variation(white=0.0, snr=(0.05, 0.2), filter=("hann",))
    base = simulator("noisy")
    both = VariedSimulator([base, base], {2: (easy, hard), 6: (hard, hard)}, weights={0: (1, 0), 4: (0, 1)})
    apart = VariedSimulator([base, base], [{2: easy, 6: hard}, hard], weights=[{0: 1, 4: 0}, {0: 0, 4: 1}])
    assert all(both.variations_at(epoch) == apart.variations_at(epoch) for epoch in range(8))
    assert apart.with_settings(threads=1).variations_at(3) == both.variations_at(3)
    uneven = VariedSimulator([base, base], Variation(), weights=[3, {2: 1, 4: 5}])
    shares = [uneven.variations_at(epoch)[1] for epoch in (0, 2, 3, 4, 9)]
    assert [one[0] for one in shares] == pytest.approx([0.75, 0.75, 0.5625, 0.375, 0.375])


# --- what it does -----------------------------------------------------------------------------------------------------


def test_white_noise_of_a_ratio() -> None:
    """White noise in place of a response is `NoiseModel.assume` of this ratio."""
    series = style_series(0)
    model = NoiseModel.assume(series.tilts, series.tilt_angles, snr=0.5)
    expected = NoiseModel.assume(series.tilts, series.tilt_angles, snr=0.05)
    assert model.as_white(0.05) == expected
    base = _fitted(ctf_correction="wiener")
    made = VariedSimulator(base, Variation(white=1.0, snr=0.05, defocus=(-1, 1)))(THING, seed=3)
    plain = simulator("noisy", noise=expected)(THING, seed=3)
    assert isinstance(expected, WhiteNoise)
    assert torch.equal(made.tiltseries, plain.tiltseries)
    assert made.record.settings["drawn"]["snr"] == pytest.approx(0.05)


@pytest.mark.parametrize(("contrast", "exposure"), [(2.0, 1.0), (1.0, 4.0)])
def test_strength_of_the_signal(contrast: float, exposure: float) -> None:
    """Twice the contrast, or four times the electrons, give four times the ratio of powers, for either noise."""
    made = noise_model().strengthened(contrast=contrast, exposure=exposure)
    before, after = (np.asarray(model.series[0].correlation) ** 2 for model in (noise_model(), made))
    np.testing.assert_allclose(after / (1 - after), 4 * before / (1 - before), rtol=1e-9)
    response = _response().response
    stronger = response.strengthened(contrast=contrast, exposure=exposure)
    angles = np.array(ANGLES)
    ratio = (stronger.gain(angles) / response.gain(angles)) ** 2 * response.noise_power(angles)
    np.testing.assert_allclose(ratio, 4 * stronger.noise_power(angles), rtol=1e-9)


def test_defocus_is_shifted() -> None:
    """A response, and the defocus of each of its series, move; so does a contrast transfer function of its own."""
    made = VariedSimulator(_fitted(), Variation(defocus=0.25))
    assert {made.draw(THING, seed=0, tomogram=n).defocus for n in range(8)} == {(2.75,), (3.75,)}
    own = VariedSimulator(simulator(ctf=ContrastTransfer(defocus=3.0)), Variation(defocus=-0.5))
    assert own.draw(THING, seed=0).defocus == (2.5,) * 5


def test_crowd_and_background() -> None:
    """The crowd's factor goes onto the simulator's; a share of the tomograms has a measured background."""
    crowd = CrowdField(frequencies=(0.0, 0.02), power=(500.0, 0.0))
    slow = SlowBackground(extent=(240.0, 320.0), tilt_angles=ANGLES, waves=(((0.0, 40.0),),) * len(ANGLES))
    base = simulator("noisy", noise=_response(crowd=crowd, backgrounds=(slow,)), crowd=0.5)
    half = VariedSimulator(base, Variation(crowd=0.4))(THING, seed=0)
    assert torch.equal(half.tomogram, replace(base, crowd=0.2)(THING, seed=0).tomogram)
    made = VariedSimulator(base, Variation(measured_background=0.5))
    drawn = [made(THING, seed=0, tomogram=number) for number in range(8)]
    assert {one.record.settings["drawn"]["background"] for one in drawn} == {"own", "measured"}
    for number, one in enumerate(drawn):
        plain = replace(base, background=one.record.settings["drawn"]["background"])
        assert torch.equal(one.tiltseries, plain(THING, seed=0, tomogram=number).tiltseries)
    standard = Variation.standard(base)
    assert (standard.crowd, standard.measured_background) == ((0.5, 1.5), 0.5)
    white = VariedSimulator(replace(base, background="measured"), Variation(snr=0.1))(THING, seed=0)
    assert "background" not in white.record.settings, "white noise has its own"


def test_tilts_are_left_out() -> None:
    """The tomogram is that of the tilts that are left; a tilt keeps its defocus and its exposure."""
    angles = (-60.0, 40.0, -20.0, 0.0, 20.0, -40.0, 60.0)
    base = FakETSimulator(
        tilt_angles=angles,
        modality="noiseless",
        ctf=ContrastTransfer(defocus=tuple(3.0 + 0.1 * i for i in range(7))),
        imperfections=Imperfections(damage=ExposureDamage(per_tilt=3.0)),
    )
    made = VariedSimulator(base, Variation(tilt_range=45.0, tilt_step=2))(THING, seed=0)
    assert tuple(made.tilt_angles) == (40.0, 0.0, -40.0)
    whole = base(THING, seed=0)
    assert torch.allclose(made.tiltseries, whole.tiltseries[[1, 3, 5]], atol=1e-5)
    assert torch.allclose(made.tomogram, reconstruct(made.tiltseries, made.tilt_angles, depth=SHAPE[0]), atol=1e-5)


def test_missing_tilts() -> None:
    """A share of the tilts is missing, others for each tomogram; geometries that do not come again are not kept."""
    base = simulator(tilt_angles=np.linspace(-57, 57, 20))
    made = VariedSimulator(base, Variation(missing=0.25))
    before = dict(geometry_cache._maps)
    found = {tuple(made(THING, seed=0, tomogram=number).tilt_angles) for number in range(3)}
    assert len(found) == 3
    assert {len(angles) for angles in found} == {15}
    assert all(angles == tuple(sorted(angles)) for angles in found)
    assert set(geometry_cache._maps) == set(before)


def test_specimen_that_comes_as_tilts_keeps_them() -> None:
    """Tilts that another program has simulated cannot be left out."""
    tilted = TiltedSpecimen(
        tilts=-project(THING.density, ANGLES),
        tilt_angles=np.array(ANGLES),
        voxel_size=THING.voxel_size,
        labels=THING.labels,
        particles=THING.particles,
        class_names=THING.class_names,
    )
    made = VariedSimulator(simulator("noisy"), Variation(missing=0.5))
    assert tuple(made(tilted, seed=0).tilt_angles) == ANGLES
    assert len(made(THING, seed=0).tilt_angles) == 3


def test_misalignment_only_without_a_response() -> None:
    """A response holds the measured misalignment already: tomograms with white noise have a drawn one."""
    made = VariedSimulator(_fitted(), Variation(white=0.5, misalignment=Misalignment(shift=10.0)))
    records = [made.draw(THING, seed=0, tomogram=number) for number in range(12)]
    assert {bool(one.misalignment) for one in records} == {True, False}
    for record in records:
        drawn = record.settings["drawn"]
        assert (drawn["misalignment"] is None) == (drawn["snr"] is None)
        assert drawn["misalignment"] is None or 0 < drawn["misalignment"]["shift"] < 10
    made(THING, seed=0, tomogram=next(record.tomogram for record in records if record.misalignment))


def test_bad_tilts_are_drawn_and_used() -> None:
    """A share of the tilts that are used has its signal hidden, elsewhere or smeared; the others stay, bit for bit."""
    base = simulator("noiseless", tilt_angles=np.linspace(-57, 57, 20))
    made = VariedSimulator(base, Variation(bad_tilts=(0.1, 0.3), missing=0.2))
    found = _drawn(made, 60)
    assert all(one.tilts is not None and len(one.tilts) == 16 for one in found)
    assert {len(one.bad_tilts) for one in found} == {2, 3, 4, 5}
    bad = [one for drawn in found for one in drawn.bad_tilts]
    kinds = Counter((one.signal < 1, any(one.shift), any(one.motion)) for one in bad)
    assert set(kinds) == {(True, False, False), (False, True, False), (False, False, True)}
    assert min(kinds.values()) > len(bad) / 5
    assert {one.tilt for one in bad} == set(range(16))
    whole = VariedSimulator(base, Variation(missing=0.2))(THING, seed=1)
    spoilt = made(THING, seed=1)
    wrong = {one["tilt"] for one in spoilt.record.settings["bad_tilts"]}
    differ = {n for n in range(16) if not torch.equal(whole.tiltseries[n], spoilt.tiltseries[n])}
    assert differ == wrong != set()
    assert not torch.equal(whole.tomogram, spoilt.tomogram), "the reconstruction uses them"


def test_bad_tilts_leave_what_others_draw() -> None:
    """What versions before drew stays: the records of a set can be made again."""
    plain, more = (
        _drawn(VariedSimulator(_fitted(), Variation(contrast=(0.5, 2), missing=(0, 0.5), **settings)))
        for settings in ({}, {"bad_tilts": 0.2})
    )
    assert [replace(one, bad_tilts=()) for one in more] == plain
    assert "bad_tilts" not in plain[0].to_dict()
    assert DrawnSettings.from_dict(json.loads(json.dumps(more[0].to_dict()))) == more[0]


def test_a_simulators_own_bad_tilts_are_followed() -> None:
    """Where tilts are left out, those that are bad keep what is wrong with them."""
    own = (BadTilt(tilt=1, signal=0.0), BadTilt(tilt=3, shift=(20.0, 0.0)))
    base = simulator("noiseless", bad_tilts=own)
    kept = DrawnSettings(tilts=(2, 3, 4)).applied(base)
    assert kept.bad_tilts == (BadTilt(tilt=1, shift=(20.0, 0.0)),)
    assert torch.equal(kept(THING, seed=0).tiltseries, base(THING, seed=0).tiltseries[[2, 3, 4]])


def test_share_with_uneven_ice() -> None:
    """A share of the tomograms has the simulator's ice, the others have none."""
    known = replace(_response(), contrast=ContrastReport(source=("intensity",), zero=(0.0,), zero_error=(0.1,)))
    base = simulator("noisy", noise=known, ice=UnevenIce())
    made = VariedSimulator(base, Variation(ice=0.25))
    found = _drawn(made, 100)
    assert 0.15 < sum(not one.even_ice for one in found) / 100 < 0.35
    number = next(n for n, one in enumerate(found) if one.even_ice)
    even, uneven = made(THING, seed=1, tomogram=number), base(THING, seed=1, tomogram=number)
    assert uneven.record.ice
    assert not even.record.ice
    plain = simulator("noisy", noise=known)(THING, seed=1, tomogram=number)
    assert torch.equal(even.tomogram, plain.tomogram)
    assert not torch.equal(even.tomogram, uneven.tomogram)


# --- records, addresses -----------------------------------------------------------------------------------------------


def _many(folder: Path) -> VariedSimulator:
    """All that can vary, of a mixture of style transfer and of a response."""
    styled = simulator("faket", folder)
    return VariedSimulator(
        [styled, _fitted()],
        [
            Variation(
                **{"white": 0.5, "step_size": (0, 1), "missing": (0, 0.4), "misalignment": Misalignment(shift=8.0)},
                **{"filter": ("ramp", "hann"), "resampling": ("spline", "fourier"), "contrast": (0.5, 2)},
            ),
            "standard",
        ],
    )


def test_record_makes_the_tomogram_again(tmp_path: Path) -> None:
    """A record, through JSON and with another object of the same simulators, makes the tomogram again, bit for bit."""
    made, other = _many(tmp_path), VariedSimulator(_many(tmp_path).simulators)
    for number in range(6):
        first = made(THING, seed=5, epoch=1, tomogram=number)
        record = SimulationRecord.from_json(json.loads(json.dumps(first.record.to_json())))
        again = other.simulate(THING, record)
        assert torch.equal(first.tomogram, again.tomogram)
        assert torch.equal(first.tiltseries, again.tiltseries)
        assert again.record == record
        assert record == first.record


def test_saved_tomogram_is_made_again(tmp_path: Path) -> None:
    """The record on disk makes it again, too."""
    made = _many(tmp_path)
    first = made(THING, seed=1, tomogram=3)
    first.save(tmp_path / "set")
    assert torch.equal(made.simulate(THING, SimulationRecord.read(tmp_path / "set")).tomogram, first.tomogram)


def test_other_records_are_refused() -> None:
    """A record of a plain simulator, or of another one, is refused with what differs."""
    made = VariedSimulator(_fitted(), Variation(contrast=2.0))
    with pytest.raises(ValueError, match="expected a record of a varied simulator"):
        made.simulate(THING, _fitted().draw(THING, seed=0))
    with pytest.raises(ValueError, match="got others for filter$"):
        made.simulate(THING, VariedSimulator(_fitted(filter="hann"), Variation(contrast=2.0)).draw(THING, seed=0))
    record = made.draw(THING, seed=0)
    drawn = dict(record.settings["drawn"]) | {"simulator": 1}
    with pytest.raises(ValueError, match="expected a record of one of 1 simulators, got one of number 1"):
        made.simulate(THING, replace(record, settings=dict(record.settings) | {"drawn": drawn}))


def _data(folder: Path, **settings: Any) -> FakETDataset:
    given: dict[str, Any] = {"tomograms_per_epoch": 4, "patches_per_tomogram": 3, "seed": 11, "live_tomograms": 1}
    return dataset(_many(folder), specimens=specimens(2), **(given | settings))  # type: ignore[arg-type]


@pytest.mark.slow
def test_items_depend_on_their_address_only(tmp_path: Path) -> None:
    """The same items for any number of workers, forked or spawned, for two ranks, and resumed."""
    expected = list(_data(tmp_path))
    assert not any(torch.equal(expected[0]["image"], other["image"]) for other in expected[1:])
    for workers, start in ((1, "fork"), (3, "fork"), (2, "spawn")):
        assert_same_items(loader(_data(tmp_path), workers=workers, start=start, batch_size=None), expected)
    ranks = [list(_data(tmp_path, rank=rank, world_size=2)) for rank in range(2)]
    assert_same_items([*ranks[0], *ranks[1]], expected)
    first, second = _data(tmp_path), _data(tmp_path)
    begun = iter(first)
    taken = [next(begun) for _ in range(5)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert_same_items([*taken, *second], expected)


def test_can_be_sent_to_a_worker() -> None:
    """It pickles, and the copy draws the same."""
    made = VariedSimulator(_fitted())
    assert _drawn(pickle.loads(pickle.dumps(made)), 3) == _drawn(made, 3)
    assert (made.device, made.threads) == ("cpu", 1)


def test_noiseless_half_has_the_same_settings() -> None:
    """With another modality what is drawn stays: a noiseless partner has the same tilts."""
    made = VariedSimulator(_fitted(tilt_angles=np.linspace(-57, 57, 20)), Variation(missing=(0.1, 0.5), contrast=2.0))
    clean = made.with_settings(modality="noiseless")
    assert clean.drawn(THING, seed=1) == made.drawn(THING, seed=1)
    pair = [one(THING, seed=1) for one in (made, clean)]
    assert tuple(pair[0].tilt_angles) == tuple(pair[1].tilt_angles)
    assert pair[1].record.settings["modality"] == "noiseless"


def test_stage_is_the_last() -> None:
    """The stage was appended: what other stages draw stays."""
    assert STAGES.index("variation") == STAGES.index("background") + 1


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"white": 1.5}, r"expected `white` to lie in \[0, 1\], got 1.5"),
        ({"snr": 0.0}, "expected `snr` to be more than 0, got 0.0"),
        ({"contrast": (2.0, 1.0)}, "expected `contrast` to be one number or"),
        ({"crowd": (0.0, math.inf)}, "expected `crowd` to be one number or"),
        ({"exposure": (1, 2, 3)}, "expected `exposure` to be one number or"),
        (
            {"contrast": ("a", "b")},
            r"expected `contrast` to be one number or a pair .*, got \('a', 'b'\)",
        ),
        ({"contrast": True}, "expected `contrast` to be one number or"),
        ({"missing": 0.6}, "expected at most half of the tilts to be `missing`, got 0.6"),
        ({"filter": "box"}, "expected `filter` to be one of 'shrec'"),
        ({"tilt_step": 0}, "expected `tilt_step` to be a whole number of 1 or more, got 0"),
        ({"tilt_step": ()}, "expected at least one `tilt_step`"),
        ({"tilt_step": None}, "expected `tilt_step` to be a whole number of 1 or more, got None"),
        ({"bad_tilts": (0, 0.7)}, "expected at most half of the tilts to be `bad_tilts`, got 0.7"),
        ({"white": "a"}, r"expected `white` to lie in \[0, 1\], got 'a'"),
        ({"ice": (0.5, 0.6)}, r"expected `ice` to lie in \[0, 1\], got \(0.5, 0.6\)"),
        ({"filter": None}, "expected `filter` to be a tuple of names, got None"),
        ({"misalignment": 5.0}, "expected `misalignment` to be a `Misalignment` or None, got 5.0"),
    ],
)
def test_bad_ranges(settings: dict[str, Any], message: str) -> None:
    """Impossible ranges and choices are refused with what was expected."""
    with pytest.raises(ValueError, match=message):
        Variation(**settings)


def test_ranges_of_numpy_numbers() -> None:
    assert Variation(contrast=np.float32(0.5), missing=(np.int64(0), np.float64(0.25))) == Variation(
        contrast=0.5, missing=(0.0, 0.25)
    )


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("noiseless", {"contrast": (0.5, 2)}),
        ("noiseless", {"white": 0.5}),
        ("noisy", {"defocus": 0.5}),
        ("noisy", {"crowd": (0, 1)}),
        ("noisy", {"measured_background": 0.5}),
        ("noisy", {"step_size": 0.5}),
        ("fitted", {"misalignment": Misalignment(shift=1.0)}),
        ("noisy", {"ice": 0.5}),
        ("own", {"filter": ("ramp", "hann")}),
        ("own", {"resampling": "spline"}),
        ("given", {"bad_tilts": 0.1}),
    ],
)
def test_what_a_simulator_lacks_cannot_vary(base: str, settings: dict[str, Any]) -> None:
    """A range of something that the simulator does not have would silently do nothing."""
    with pytest.raises(ValueError, match=f"to vary `{next(iter(settings))}`, got none; leave out"):
        VariedSimulator(
            {
                "fitted": _fitted,
                "own": lambda: simulator("noisy", reconstruction=Backprojected()),
                "given": lambda: simulator("noisy", noise="given"),
            }.get(base, lambda: simulator(base))(),
            Variation(**settings),
        )


def test_defocus_stays_on_its_side() -> None:
    """A change that takes the defocus through the focus is refused; tilts of their own are looked at one by one."""
    for change in (-5.0, (-4.0, 0.5)):
        with pytest.raises(ValueError, match="that do not go through the focus, got -. µm for 3 µm"):
            VariedSimulator(_fitted(), Variation(defocus=change))
    VariedSimulator(simulator("noisy", ctf=ContrastTransfer(defocus=0.0)), Variation(defocus=(0.0, 1.0)))
    VariedSimulator(_fitted(), Variation(defocus=(-2.9, 5.0)))


def test_choices_by_weight_and_ranges_of_steps() -> None:
    """A choice that comes twice is drawn twice as often; steps are any sequence."""
    found = _drawn(VariedSimulator(simulator("noisy"), Variation(filter=("hann", "hann", "ramp"))), 200)
    assert 0.55 < sum(one.filter == "hann" for one in found) / 200 < 0.78
    assert Variation(tilt_step=range(1, 4)).tilt_step == (1, 2, 3)  # type: ignore[arg-type]


def test_bad_tilts_of_a_specimen_that_comes_as_tilts() -> None:
    """It keeps all its tilts, and so the share is one of all."""
    angles = np.linspace(-57, 57, 20)
    given = TiltedSpecimen(
        tilts=-project(THING.density, angles),
        tilt_angles=angles,
        voxel_size=THING.voxel_size,
        labels=THING.labels,
        particles=THING.particles,
        class_names=THING.class_names,
    )
    made = VariedSimulator(simulator("noisy", tilt_angles=angles), Variation(bad_tilts=0.5, tilt_step=4))
    found = [made.drawn(given, seed=1, tomogram=number) for number in range(30)]
    assert {len(one.bad_tilts) for one in found} == {10}
    assert {bad.tilt for one in found for bad in one.bad_tilts} == set(range(20))
    assert {one.tilts for one in found} == {None}


def test_halves_of_a_record_with_all_tilts() -> None:
    """Whether a record can be made again does not depend on what else the variation may draw."""
    made = VariedSimulator(simulator("noisy"), Variation(tilt_range=(0, 60)))
    record = next(
        one
        for one in (made.draw(THING, seed=0, tomogram=number) for number in range(50))
        if len(one.settings["tilt_angles"]) > 2
    )
    assert made.simulate(THING, record, halves="tilts").halves is not None


def test_halves_of_tilts_need_two() -> None:
    """A variation that may leave one tilt is refused with halves of every other tilt, before anything is made."""
    made = VariedSimulator(simulator("noisy"), Variation(tilt_range=(0, 60)))
    with pytest.raises(ValueError, match="expected a `variation` that leaves two tilts or more for `halves"):
        dataset(made, halves="tilts")  # type: ignore[arg-type]
    dataset(made, halves="exposures")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrast": "a"}, "expected `contrast` to be a finite number"),
        ({"defocus": "x"}, "expected `defocus` to be a finite number"),
        ({"simulator": -1}, "expected `simulator` to be a whole number of 0 or more"),
        ({"tilts": "ab"}, "expected `tilts` to be a whole number"),
        ({"tilts": [99]}, "expected `tilts` among"),
        ({"misalignment": 5}, "must be a mapping"),
        ({"bad_tilts": [{"tilt": 0}]}, "expected a bad tilt with tilt, signal, shift and motion"),
    ],
)
def test_what_no_simulator_has_drawn(changes: dict[str, Any], message: str) -> None:
    """A record that was changed by hand is refused with what was expected."""
    made = VariedSimulator(_fitted(), Variation(contrast=2.0))
    record = made.draw(THING, seed=0)
    drawn = dict(record.settings["drawn"]) | changes
    with pytest.raises(ValueError, match=message):
        made.simulate(THING, replace(record, settings=dict(record.settings) | {"drawn": drawn}))


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda: VariedSimulator([]), "expected at least one simulator, got none"),
        (lambda: VariedSimulator(simulator(), "wild"), 'expected `variation` to be "standard" or a `Variation`'),
        (lambda: VariedSimulator(simulator(), [Variation()] * 2), "one `variation` for each of 1 simulators, got 2"),
        (
            lambda: VariedSimulator(simulator(), weights=[0.0]),
            "`weights` of which one at least is more than 0",
        ),
        (lambda: VariedSimulator(simulator(), weights="ab"), "expected `weights` of 0 or more for each of 1"),
        (lambda: VariedSimulator(simulator(), weights=[math.nan]), "expected `weights` of 0 or more for each of 1"),
        (lambda: VariedSimulator(simulator(), weights=[{0: "a"}]), "expected `weights` of 0 or more by epoch"),
        (lambda: VariedSimulator(simulator(), {}), "expected `variation` of at least one epoch, got none"),
        (lambda: VariedSimulator(simulator(), [{}]), "expected `variation` of at least one epoch, got none"),
        (
            lambda: VariedSimulator(simulator(), weights=[{-1: 2.0}]),
            "weights: epoch` to be a whole number of 0 or",
        ),
        (lambda: VariedSimulator([simulator(), simulator(threads=2)]), "simulators with the same `threads`, got 1, 2"),
    ],
)
def test_bad_mixtures(give: Any, message: str) -> None:
    """Impossible mixtures are refused with what was expected."""
    with pytest.raises(ValueError, match=message):
        give()
