"""The noise of a microscope: the published fit, its closed form, and what may not break it."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug.microscope.noise import CONTENT_NOISE, GivenNoise, NoiseModel, WhiteNoise
from faket_aug.microscope.noise_curves import CURVES
from faket_aug.statistics import mean_std, standardize

ANGLES = np.linspace(-60.0, 60.0, 7)
IRREGULAR = np.array([-57.3, -41.0, -20.2, 0.0, 2.9, 37.7, 66.0])


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _pairs(
    correlation: np.ndarray, mean: np.ndarray, std: np.ndarray, *, seed: int = 0, side: int = 24
) -> tuple[Tensor, Tensor]:
    """Make clean tilts, and measured ones of exactly this correlation, mean and deviation."""
    clean = standardize(_random(len(correlation), side, side + 3, seed=seed))
    noise = standardize(_random(len(correlation), side, side + 3, seed=seed + 100))
    noise = standardize(noise - (noise * clean).mean((-2, -1), keepdim=True) * clean)
    r, m, s = (torch.from_numpy(np.asarray(v, dtype=np.float64))[:, None, None] for v in (correlation, mean, std))
    return 0.3 * clean - 5, m + s * (r * clean + (1 - r**2).sqrt() * noise)


def _model(angles: np.ndarray = ANGLES, *, seed: int = 0, order: int = 2) -> NoiseModel:
    x = angles / 60
    pairs = _pairs(0.4 - 0.1 * x**2 + 0.02 * x, 2000 - 300 * x**2, 160 - 20 * x**2 + x, seed=seed)
    return NoiseModel.fit(clean=pairs[0], target=pairs[1], tilt_angles=angles, order=order)


# --- published values -------------------------------------------------------------------------------------------------


@pytest.fixture
def golden(reference: Path, reference_file) -> dict[str, np.ndarray]:
    return dict(np.load(reference_file(reference, "golden/tiltseries_nst.npz")))


@pytest.fixture
def golden_fit(golden: dict[str, np.ndarray]) -> NoiseModel:
    clean, target = (torch.from_numpy(golden[name]).double() for name in ("clean", "target"))
    return NoiseModel.fit(clean=clean, target=target, tilt_angles=-golden["angles"])


@pytest.mark.reference
def test_golden_fit(golden: dict[str, np.ndarray], golden_fit: NoiseModel) -> None:
    """The closed form finds the published r and σ (by bisection there) to 1e-4, and the same means and deviations."""
    (series,) = golden_fit.series
    np.testing.assert_allclose(series.correlation, golden["r"], atol=1e-4)
    np.testing.assert_allclose(series.deviation, golden["sigma"], atol=1e-4)
    np.testing.assert_allclose(series.mean, golden["target_mean"], rtol=1e-4)
    np.testing.assert_allclose(series.std, golden["target_std"], rtol=1e-4)


@pytest.mark.reference
@pytest.mark.parametrize("order", [0, 2])
def test_golden_curves(golden: dict[str, np.ndarray], golden_fit: NoiseModel, order: int) -> None:
    """The curves over the angle are the published polynomials over the index, of order 0 (BASELINE) and 2."""
    curves = (golden_fit if order else golden_fit.baseline()).curves(-golden["angles"])
    np.testing.assert_allclose(curves.correlation, golden[f"r_order{order}"], atol=1e-4)
    np.testing.assert_allclose(curves.deviation, golden[f"sigma_order{order}"], atol=1e-4)
    np.testing.assert_allclose(curves.mean, golden[f"target_mean_order{order}"], rtol=1e-4)
    np.testing.assert_allclose(curves.std, golden[f"target_std_order{order}"], rtol=1e-4)


@pytest.mark.reference
@pytest.mark.parametrize(("name", "scale"), [("init", 1.0), ("content", CONTENT_NOISE)])
def test_golden_tilts(golden: dict[str, np.ndarray], golden_fit: NoiseModel, name: str, scale: float) -> None:
    """From the golden noise come the golden noisy and content tilts, to a hundredth of a count."""
    clean, noise = torch.from_numpy(golden["clean"]), torch.from_numpy(golden["noise"])
    found = golden_fit.sample(clean, noise, -golden["angles"], noise_scale=scale)
    assert float((found - torch.from_numpy(golden[name])).abs().max()) <= 1e-2


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_closed_form_recovers_the_correlation() -> None:
    """Tilts made as `r·c + sqrt(1 - r²)·ε` give back r, σ, mean and deviation, whatever the units of both."""
    r = np.array([0.0, 0.05, 0.2, 0.5, 0.9, 0.999, 1.0])
    mean, std = np.linspace(-100, 3000, 7), np.linspace(1, 200, 7)
    clean, target = _pairs(r, mean, std)
    (series,) = NoiseModel.fit(clean=clean, target=target, tilt_angles=ANGLES).series
    np.testing.assert_allclose(series.correlation, r, atol=1e-9)
    np.testing.assert_allclose(series.deviation, np.sqrt(1 - r**2), atol=1e-5)
    np.testing.assert_allclose(series.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(series.std, std, rtol=1e-9)
    assert series.tilt_angles == tuple(ANGLES)


def test_opposite_contrast_is_no_signal() -> None:
    """A negative correlation is clamped to 0: nothing of that clean tilt is seen, all is noise."""
    clean, target = _pairs(np.full(7, 0.5), np.zeros(7), np.ones(7))
    clean[2] = -clean[2]
    (series,) = NoiseModel.fit(clean=clean, target=target, tilt_angles=ANGLES).series
    assert series.correlation[2] == 0.0
    assert series.deviation[2] == 1.0
    assert min(series.correlation[:2] + series.correlation[3:]) > 0.4


def test_opposite_contrast_of_all_tilts_is_a_mistake() -> None:
    """Where no tilt correlates, the minus before the projections was forgotten, or the angles' sign is wrong."""
    clean, target = _pairs(np.full(7, 0.5), np.zeros(7), np.ones(7))
    with pytest.raises(ValueError, match="series 0: expected clean tilts that correlate .* negate the projections"):
        NoiseModel.fit(clean=-clean, target=target, tilt_angles=ANGLES)


@pytest.mark.parametrize("angles", [ANGLES, IRREGULAR, IRREGULAR[[3, 2, 4, 1, 5, 0, 6]]])
def test_curves_of_the_angle(angles: np.ndarray) -> None:
    """Quantities that are quadratic in the angle come back exactly, at any angle, also from unsorted, uneven tilts."""
    x = angles / 60
    pairs = _pairs(0.4 - 0.1 * x**2 + 0.02 * x, 2000 - 300 * x**2, 160 - 20 * x**2 + x)
    asked = np.array([-33.0, 0.0, 12.5])
    curves = NoiseModel.fit(clean=pairs[0], target=pairs[1], tilt_angles=angles).curves(asked)
    x = asked / 60
    np.testing.assert_allclose(curves.correlation, 0.4 - 0.1 * x**2 + 0.02 * x, rtol=1e-9)
    np.testing.assert_allclose(curves.mean, 2000 - 300 * x**2, rtol=1e-9)
    np.testing.assert_allclose(curves.std, 160 - 20 * x**2 + x, rtol=1e-9)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_angle_is_index_for_even_steps(order: int) -> None:
    """For even steps the polynomial of the angle is FakET's polynomial of the tilt's index."""
    rng = np.random.default_rng(0)
    clean, target = _pairs(rng.uniform(0.2, 0.6, 7), rng.uniform(1000, 2000, 7), rng.uniform(100, 200, 7))
    model = NoiseModel.fit(clean=clean, target=target, tilt_angles=ANGLES, order=order)
    for name in CURVES:
        values = getattr(model.series[0], name)
        by_index = np.polyval(np.polyfit(np.arange(7), values, order), np.arange(7))
        np.testing.assert_allclose(getattr(model.curves(ANGLES), name), by_index, rtol=1e-9)


def test_series_are_averaged_as_polynomials() -> None:
    """Two series give the mean of their polynomials, each over its own angles."""
    first, second = _model(), _model(IRREGULAR + 5, seed=3)
    pooled = NoiseModel(series=(*first.series, *second.series))
    x = np.array([-50.0, 1.0, 44.0])
    for name in CURVES:
        mean = (getattr(first.curves(x), name) + getattr(second.curves(x), name)) / 2
        np.testing.assert_allclose(getattr(pooled.curves(x), name), mean, rtol=1e-9)


def test_fit_of_a_list() -> None:
    """Fitting a list of series is fitting each, in order; the series may differ in size and number of tilts."""
    one = _pairs(np.full(7, 0.3), np.zeros(7), np.ones(7))
    two = _pairs(np.full(5, 0.6), np.ones(5), np.ones(5), seed=1, side=17)
    both = NoiseModel.fit(clean=[one[0], two[0]], target=[one[1], two[1]], tilt_angles=[ANGLES, ANGLES[1:-1]])
    assert (
        both.series
        == NoiseModel.fit(clean=one[0], target=one[1], tilt_angles=ANGLES).series
        + NoiseModel.fit(clean=two[0], target=two[1], tilt_angles=ANGLES[1:-1]).series
    )


def test_baseline_is_the_same_at_every_tilt() -> None:
    """BASELINE has the mean of each quantity at every angle; the fitted values stay."""
    model = _model()
    baseline = model.baseline()
    assert baseline.series == model.series
    for name in CURVES:
        curve = getattr(baseline.curves([-90.0, -60.0, 3.0, 60.0]), name)
        np.testing.assert_allclose(curve, np.full(4, np.mean(getattr(model.series[0], name))), rtol=1e-12)


def test_extrapolation_stays_within_bounds() -> None:
    """Asked far beyond the fitted angles, r and σ stay in [0, 1], deviations positive, and nothing is NaN."""
    x = ANGLES / 60
    clean, target = _pairs(0.9 - 0.89 * x**2, 2000 + 0 * x, 160 - 159 * x**2)
    curves = NoiseModel.fit(clean=clean, target=target, tilt_angles=ANGLES).curves(np.linspace(-180, 180, 37))
    for name in ("correlation", "deviation"):
        assert getattr(curves, name).min() >= 0.0
        assert getattr(curves, name).max() <= 1.0
    assert curves.correlation.min() == 0.0  # the polynomial itself falls below
    assert curves.std.min() == pytest.approx(0.01 * 1.0)
    assert np.isfinite(curves.mean).all()


def test_hot_pixel() -> None:
    """With quantiles one pixel of 1e6 changes r, mean and deviation by little; without, it drowns them."""
    clean, target = _pairs(np.full(7, 0.4), np.full(7, 2000.0), np.full(7, 150.0), side=64)
    before = NoiseModel.fit(clean=clean, target=target, tilt_angles=ANGLES, quantiles=(0.001, 0.999)).series[0]
    np.testing.assert_allclose(before.correlation, 0.4, atol=0.01)
    target[3, 5, 5] = 1e6
    after = NoiseModel.fit(clean=clean, target=target, tilt_angles=ANGLES, quantiles=(0.001, 0.999)).series[0]
    assert after.correlation[3] == pytest.approx(before.correlation[3], abs=0.01)
    assert after.mean[3] == pytest.approx(before.mean[3], rel=1e-3)
    assert after.std[3] == pytest.approx(before.std[3], rel=0.02)
    assert NoiseModel.fit(clean=clean, target=target, tilt_angles=ANGLES).series[0].std[3] > 10 * before.std[3]


def test_assume() -> None:
    """Without a truth: `r² / σ² = snr · cos θ` at each tilt, `r² + σ² = 1`, means and deviations as measured."""
    target = 1000 + 30 * _random(7, 20, 22)
    series = NoiseModel.assume(target, ANGLES, snr=0.2).series[0]
    r, sigma = np.array(series.correlation), np.array(series.deviation)
    np.testing.assert_allclose(r**2 / sigma**2, 0.2 * np.cos(np.deg2rad(ANGLES)), rtol=1e-9)
    np.testing.assert_allclose(r**2 + sigma**2, 1.0, rtol=1e-9)
    mean, std = mean_std(target)
    np.testing.assert_allclose(series.mean, mean)
    np.testing.assert_allclose(series.std, std)
    hot = target.clone()
    hot[0, 0, 0] = 1e6
    robust = NoiseModel.assume(hot, ANGLES, quantiles=(0.01, 0.99)).series[0]
    assert robust.std[0] == pytest.approx(series.std[0], rel=0.1)
    with pytest.raises(ValueError, match="`snr` to be more than 0, got 0"):
        NoiseModel.assume(target, ANGLES, snr=0.0)


# --- the sample -------------------------------------------------------------------------------------------------------


def test_sample_by_the_formula() -> None:
    """A noisy tilt is `r·c + s·σ·ε` of the standardised clean tilt, brought to the curves' mean and deviation."""
    model = _model()
    clean, noise = _random(3, 12, 15, seed=5) * 4 - 9, _random(3, 12, 15, seed=6)
    angles = [-42.0, 3.0, 60.0]
    curves = model.curves(angles)
    for scale in (1.0, CONTENT_NOISE, 0.0):
        found = model.sample(clean, noise, angles, noise_scale=scale).numpy()
        for i in range(3):
            c = (clean[i].numpy() - clean[i].numpy().mean()) / clean[i].numpy().std()
            tilt = curves.correlation[i] * c + scale * curves.deviation[i] * noise[i].numpy()
            tilt = (tilt - tilt.mean()) / tilt.std() * curves.std[i] + curves.mean[i]
            np.testing.assert_allclose(found[i], tilt, rtol=1e-9)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_sample_has_exactly_the_mean_and_deviation(dtype: torch.dtype, accuracy: float) -> None:
    """Each tilt's own mean and deviation are those of the curves; the dtype stays."""
    model = _model()
    found = model.sample(_random(7, 32, 40, seed=1).to(dtype), _random(7, 32, 40, seed=2).to(dtype), ANGLES)
    mean, std = mean_std(found)
    curves = model.curves(ANGLES)
    assert found.dtype == dtype
    np.testing.assert_allclose(mean.numpy(), curves.mean, rtol=accuracy)
    np.testing.assert_allclose(std.numpy(), curves.std, rtol=10 * accuracy)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
def test_empty_specimen_gives_pure_noise(value: float) -> None:
    """A clean tilt without contrast gives noise alone: no NaN, the curves' mean and deviation, nothing else."""
    model = _model()
    noise = _random(7, 20, 20, seed=2)
    found = model.sample(torch.full_like(noise, value), noise, ANGLES)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(standardize(found), standardize(noise))
    np.testing.assert_allclose(mean_std(found)[1].numpy(), model.curves(ANGLES).std, rtol=1e-9)


def test_sample_draws_nothing() -> None:
    """Noise is given, never drawn: the same noise gives the same tilts, and the inputs are left alone."""
    clean, noise = _random(7, 8, 8), _random(7, 8, 8, seed=1)
    before = clean.clone(), noise.clone()
    assert torch.equal(_model().sample(clean, noise, ANGLES), _model().sample(clean, noise, ANGLES))
    assert torch.equal(clean, before[0])
    assert torch.equal(noise, before[1])


# --- files ------------------------------------------------------------------------------------------------------------


def test_json_round_trip() -> None:
    """A model read back from its JSON is equal, to the last bit, whatever its order; and it pickles."""
    pooled = NoiseModel(series=_model().series + _model(IRREGULAR).series, order=1)
    for model in (_model(), _model().baseline(), pooled):
        assert NoiseModel.from_json(model.to_json()) == model
        assert pickle.loads(pickle.dumps(model)) == model
        json.loads(model.to_json())


def _changed(**changes: object) -> str:
    data = json.loads(_model().identity())
    data.update(changes)
    return json.dumps({key: value for key, value in data.items() if value is not None})


def _changed_series(**changes: object) -> str:
    series = json.loads(_model().to_json())["series"][0]
    series.update(changes)
    return _changed(series=[{key: value for key, value in series.items() if value is not None}])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "{}",
        _changed(format=99),
        _changed(order=None),
        _changed(extra=1),
        _changed(series=[]),
        _changed_series(std=None),
        _changed_series(extra=[1.0]),
        pytest.param(_changed(order=1.5), id="order 1.5"),
        pytest.param(_changed(order="2"), id="order as text"),
        pytest.param(_changed(order=-1), id="order -1"),
        pytest.param(_changed(series=[3]), id="series of numbers"),
        pytest.param(_changed(series=3), id="series is a number"),
        pytest.param(_changed_series(mean=[1.0]), id="unequal lengths"),
        pytest.param(_changed_series(mean=[float("nan")] * 7), id="NaN"),
        pytest.param(_changed_series(std=["a"] * 7), id="text for numbers"),
    ],
)
def test_json_is_read_strictly(text: str) -> None:
    """Whatever is not a model written by `to_json` is a `ValueError`, never another error and never half a model."""
    with pytest.raises(ValueError):
        NoiseModel.from_json(text)


def test_json_errors_say_what_is_wrong() -> None:
    """The message names the format, or the keys that are missing or unknown."""
    with pytest.raises(ValueError, match="expected a noise model of format 1, got"):
        NoiseModel.from_json(_changed(format=2))
    with pytest.raises(ValueError, match=r"each series to hold \['correlation', 'deviation', 'mean', 'std', "):
        NoiseModel.from_json(_changed_series(mean=None))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["clean", "target"])
def test_constant_tilt_is_named(which: str) -> None:
    """A constant tilt is an error that says in which series it is, which tilt, and at which angle."""
    clean, target = _pairs(np.full(7, 0.4), np.full(7, 2000.0), np.full(7, 150.0))
    (clean if which == "clean" else target)[5] = 4.0
    with pytest.raises(ValueError, match=rf"series 1: {which}: .*constant tilt\(s\) \[5\] \(at 40°\); leave them out"):
        NoiseModel.fit(clean=[clean[:5], clean], target=[target[:5], target], tilt_angles=[ANGLES[:5], ANGLES])


def test_constant_tilt_without_truth_is_named() -> None:
    """`assume` names a constant tilt and its angle as well."""
    target = _random(7, 8, 8)
    target[2] = 1.0
    with pytest.raises(ValueError, match=r"constant tilt\(s\) \[2\] \(at -20°\)"):
        NoiseModel.assume(target, ANGLES)


def test_shapes_must_match() -> None:
    """Clean and measured tilts, noise and angles must belong together."""
    clean, target = _random(7, 8, 8), _random(7, 8, 9)
    with pytest.raises(ValueError, match=r"`target` to have the shape of `clean`, \(7, 8, 8\), got \(7, 8, 9\)"):
        NoiseModel.fit(clean=clean, target=target, tilt_angles=ANGLES)
    with pytest.raises(ValueError, match="each of 7 tilts, got 6"):
        NoiseModel.fit(clean=clean, target=clean, tilt_angles=ANGLES[1:])
    with pytest.raises(ValueError, match="as many clean series as measured ones .* got 1, 2 and 1"):
        NoiseModel.fit(clean=[clean], target=[clean, clean], tilt_angles=[ANGLES])
    with pytest.raises(ValueError, match=r"`clean` of shape \(tilt, y, x\), got \(8, 8\)"):
        NoiseModel.fit(clean=clean[0], target=clean[0], tilt_angles=ANGLES)
    with pytest.raises(ValueError, match="`noise` to have the shape of `clean`"):
        _model().sample(clean, target, ANGLES)
    with pytest.raises(ValueError, match="each of 7 tilts, got 2"):
        _model().sample(clean, clean, [0.0, 1.0])


def test_assume_wants_a_stack() -> None:
    """`assume` refuses what is not (tilt, y, x), by name."""
    with pytest.raises(ValueError, match=r"`target` of shape \(tilt, y, x\), got \(7, 8\)"):
        NoiseModel.assume(_random(7, 8), ANGLES)


def test_orders() -> None:
    """An order needs more angles than it says; equal angles count once; negative orders and no series are refused."""
    series = _model().series[0]
    few = dataclasses.replace(series, tilt_angles=(0.0, 0.0, 10.0, 10.0, 0.0, 10.0, 10.0))
    with pytest.raises(ValueError, match="more than 2 tilt angles .* of order 2, got 2; set `order` lower"):
        NoiseModel(series=(few,))
    assert NoiseModel(series=(few,), order=1).curves([5.0]).mean.shape == (1,)
    with pytest.raises(ValueError, match="`order` to be a whole number of 0 or more, got -1"):
        NoiseModel(series=(series,), order=-1)
    with pytest.raises(ValueError, match="at least one fitted series, got none"):
        NoiseModel(series=())


# --- kinds of noise, and ways of calling -----------------------------------------------------------------------------


def test_tensors_are_taken_by_keyword() -> None:
    """The order of clean and measured tilts differs between the two fits, so a swap must not go unnoticed."""
    clean, target = _pairs_of_noise()
    expected = NoiseModel.fit(clean=clean, target=target, tilt_angles=ANGLES)
    with pytest.warns(DeprecationWarning, match=r"write `fit\(clean=..., target=..., tilt_angles=...\)`"):
        assert NoiseModel.fit(clean, target, ANGLES) == expected
    with pytest.warns(DeprecationWarning, match=r"write `fit\(clean=...\)`"):
        assert NoiseModel.fit(clean, target=target, tilt_angles=ANGLES) == expected
    with (
        pytest.warns(DeprecationWarning, match=r"write `fit_unpaired\(target=..., clean=..., tilt_angles=...\)`"),
        pytest.raises(ValueError, match="expected `pixel_size`"),
    ):
        NoiseModel.fit_unpaired(target, clean, ANGLES, pixel_size=0.0, scale="power")
    with (
        pytest.warns(DeprecationWarning, match="by keyword"),
        pytest.raises(TypeError, match="multiple values for argument 'clean'"),
    ):
        NoiseModel.fit(clean, clean=clean, target=target, tilt_angles=ANGLES)
    with (
        pytest.warns(DeprecationWarning, match="by keyword"),
        pytest.raises(TypeError, match="takes 3 positional arguments, got 4"),
    ):
        NoiseModel.fit(clean, target, ANGLES, 2)


def _pairs_of_noise() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    clean = torch.randn(len(ANGLES), 12, 16, generator=draw)
    return clean, clean + torch.randn(clean.shape, generator=draw)


def test_kinds_of_noise() -> None:
    """`NoiseModel(...)` makes white noise or noise with a response; both keep what they were made of."""
    clean, target = _pairs_of_noise()
    white = NoiseModel.fit(clean=clean, target=target, tilt_angles=ANGLES)
    assert isinstance(white, WhiteNoise)
    assert isinstance(NoiseModel(series=white.series), WhiteNoise)
    assert white.response is None
    assert white.at_defocus(3.0) is white
    assert pickle.loads(pickle.dumps(white)) == white
    with pytest.raises(ValueError, match="expected no `response` of white noise"):
        dataclasses.replace(white, response=3)
    with pytest.raises(TypeError, match="abstract"):
        _Incomplete()


class _Incomplete(NoiseModel):
    """Has no `sample`."""


def test_given_noise_adds_nothing() -> None:
    """Tilts that have their noise stay as they are, whatever the scale."""
    tilts = _pairs_of_noise()[0]
    model = GivenNoise()
    assert model.sample(tilts, torch.ones_like(tilts), ANGLES, noise_scale=0.25) is tilts
    assert model == GivenNoise()
    assert not model.draws
    assert model.to_json() == '"given"'


def test_a_file_of_version_0_1_0_is_read() -> None:
    """The text of an older version gives the same model, and is written as it was."""
    text = (
        '{"format": 1, "order": 0, "series": [{"tilt_angles": [-3.0, 0.0, 3.0], "correlation": [0.25, 0.5, 0.25], '
        '"deviation": [0.96, 0.86, 0.96], "mean": [10.0, 11.0, 12.0], "std": [2.0, 3.0, 4.0]}]}'
    )
    model = NoiseModel.from_json(text)
    assert isinstance(model, WhiteNoise)
    assert model.curves([0.0]).mean.tolist() == pytest.approx([11.0])
    assert model.curves([0.0]).std.tolist() == pytest.approx([3.0])
    assert json.loads(model.to_json())["series"] == json.loads(text)["series"]


def test_flipped_bits_of_a_model_are_noticed() -> None:
    """A damaged text is an error, or gives the same model; a text of 0.1.0, without a checksum, is read."""
    model = _model()
    content = model.to_json().encode()
    chance = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(content)
        data[int(chance.integers(len(data)))] ^= 1 << int(chance.integers(8))
        try:
            found = NoiseModel.from_json(data.decode(errors="replace"))
        except ValueError:
            continue
        assert found == model
    assert NoiseModel.from_json(model.identity()) == model


@pytest.mark.parametrize(("name", "value"), [("correlation", 5.0), ("deviation", -0.5), ("std", -1.0)])
def test_impossible_numbers(name: str, value: float) -> None:
    """A correlation of 5 or a negative standard deviation is refused."""
    with pytest.raises(ValueError, match=f"expected `{name}` from 0 to"):
        NoiseModel.from_json(_changed_series(**{name: [value] * 7}))
