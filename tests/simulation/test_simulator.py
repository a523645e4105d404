"""The simulator: what each modality is, that records replay, and that nothing is turned the wrong way round."""

from __future__ import annotations

import inspect
import itertools
import json
import pickle
import re
import textwrap
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import (
    ANGLES,
    SHAPE,
    STYLE_LAYERS,
    blobs,
    correlation,
    narrow_vgg,
    noise_model,
    simulator,
    specimen,
    style_series,
)
from torch import Tensor

from faket_aug import (
    MODALITIES,
    ContrastTransfer,
    FakETSimulator,
    GrandModel,
    MicroscopeResponse,
    NoiseModel,
    ParticleTable,
    SimulationError,
    SimulationRecord,
    StyleBank,
    TiltSeries,
    WeightsError,
    project,
    reconstruct,
)
from faket_aug._random import torch_generator
from faket_aug.geometry import nearest_tilts
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from faket_aug.specimens.tilted import TiltedSpecimen
from faket_aug.statistics import mean_std
from faket_aug.style.style_transfer import StyleTransfer


def _all(folder: Path, thing: GrandModel | None = None) -> dict[str, Tensor]:
    """The tilts of one specimen in every modality, at one address."""
    thing = thing or specimen(0)
    return {name: simulator(name, folder)(thing, seed=5).tiltseries for name in MODALITIES}


def _correlations(tilts: Tensor, others: Tensor) -> list[float]:
    return [correlation(a, b) for a, b in zip(tilts, others, strict=True)]


# --- modalities -------------------------------------------------------------------------------------------------------


def test_noiseless_is_the_negated_projection() -> None:
    """Noiseless tilts are projections with dark particles, nothing else."""
    thing = specimen(0)
    made = simulator()(thing, seed=0)
    assert torch.equal(made.tiltseries, -project(thing.density, ANGLES))
    assert made.tiltseries.shape == (len(ANGLES), SHAPE[1], SHAPE[2])
    assert made.tilt_angles.tolist() == list(ANGLES)


def test_noisy_has_the_models_statistics(tmp_path: Path) -> None:
    """Noisy, content and baseline tilts have the mean and deviation that the noise model has at their angles."""
    tilts = _all(tmp_path)
    for name, model in (("noisy", noise_model()), ("content", noise_model()), ("baseline", noise_model().baseline())):
        curves = model.curves(ANGLES)
        mean, std = mean_std(tilts[name])
        np.testing.assert_allclose(mean, curves.mean, rtol=1e-4)
        np.testing.assert_allclose(std, curves.std, rtol=1e-4)


def test_baseline_is_the_same_at_every_tilt(tmp_path: Path) -> None:
    """Baseline's mean and deviation do not depend on the tilt; those of noisy tilts do."""
    tilts = _all(tmp_path)
    for statistic in mean_std(tilts["baseline"]):
        assert float(statistic.max() - statistic.min()) < 1e-3 * float(statistic.abs().mean())
    for statistic in mean_std(tilts["noisy"]):
        assert float(statistic.max() - statistic.min()) > 0.1 * float(statistic.abs().mean())


def test_content_is_nearer_to_noiseless(tmp_path: Path) -> None:
    """Each content tilt is nearer to the noiseless one than the noisy tilt is; both are related to it."""
    tilts = _all(tmp_path)
    content = _correlations(tilts["content"], tilts["noiseless"])
    noisy = _correlations(tilts["noisy"], tilts["noiseless"])
    assert all(c > n + 0.1 for c, n in zip(content, noisy, strict=True))
    assert min(noisy) > 0.2


def test_noisy_correlation_is_the_models(tmp_path: Path) -> None:
    """The correlation of noisy and noiseless tilts is the model's r, as it was fitted."""
    thing = specimen(0, shape=(16, 48, 64), classes=(1, 2) * 10)
    tilts = {name: simulator(name, tmp_path)(thing, seed=5).tiltseries for name in ("noisy", "noiseless")}
    found = _correlations(tilts["noisy"], tilts["noiseless"])
    np.testing.assert_allclose(found, noise_model().curves(ANGLES).correlation, atol=0.05)


def test_noisy_and_content_have_the_same_noise(tmp_path: Path) -> None:
    """What is left of noisy and content tilts without their signal is the same noise, less of it."""
    tilts = _all(tmp_path)
    for index in range(len(ANGLES)):
        clean = tilts["noiseless"][index].double().ravel()
        residues = []
        for name in ("noisy", "content"):
            values = tilts[name][index].double().ravel().numpy()
            fitted = np.polyval(np.polyfit(clean.numpy(), values, 1), clean.numpy())
            residues.append(values - fitted)
        assert np.corrcoef(*residues)[0, 1] > 0.999
        shares = [r.std() / tilts[n][index].std() for r, n in zip(residues, ("noisy", "content"), strict=True)]
        assert shares[1] < 0.7 * shares[0]


def test_faket_has_the_styles_statistics(tmp_path: Path) -> None:
    """Each tilt in the style's manner has the mean and deviation of the style tilt nearest in angle, in its unit."""
    made = simulator("faket", tmp_path)
    result = made(specimen(0), seed=5)
    style = style_series(result.record.style_series)
    index = nearest_tilts(ANGLES, style.tilt_angles)
    mean, std = mean_std(style.tilts[torch.from_numpy(index)])
    found = mean_std(result.tiltseries)
    torch.testing.assert_close(found[0], mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], std, rtol=1e-4, atol=1e-4)


def test_the_programs_precision_does_not_matter(tmp_path: Path) -> None:
    """Autocast and `set_float32_matmul_precision` of a training change no simulation, and no style bank."""
    expected = simulator("faket", tmp_path)(specimen(0), seed=5)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = simulator("faket", tmp_path)(specimen(0), seed=5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found.tiltseries, expected.tiltseries)
    assert torch.equal(found.tomogram, expected.tomogram)


def test_faket_is_near_noisy_but_not_noisy(tmp_path: Path) -> None:
    """One step of style transfer changes the noisy tilts, but not beyond recognition."""
    tilts = _all(tmp_path)
    near = _correlations(tilts["faket"], tilts["noisy"])
    assert min(near) > 0.5
    assert max(near) < 0.999


def test_every_style_series_is_used(tmp_path: Path) -> None:
    """Each tomogram draws one of the bank's series; over many all are drawn, and the record says which."""
    made = simulator("faket", tmp_path)
    drawn = {made.draw(specimen(0), seed=0, tomogram=t).style_series for t in range(20)}
    assert drawn == {0, 1}
    assert {simulator("noisy").draw(specimen(0), seed=0, tomogram=t).style_series for t in range(3)} == {-1}


def test_no_step_is_noisy_in_the_styles_unit(tmp_path: Path) -> None:
    """With a step of 0 the result is the noisy tilts in the style's mean and deviation."""
    tilts = simulator("faket", tmp_path, step_size=0.0)(specimen(0), seed=5).tiltseries
    noisy = simulator("noisy")(specimen(0), seed=5).tiltseries
    assert min(_correlations(tilts, noisy)) > 1 - 1e-5


@pytest.mark.parametrize("modality", MODALITIES)
def test_results_are_finite_and_float32(tmp_path: Path, modality: str) -> None:
    """Whatever the modality, also for a specimen of ice alone: float32, finite, of the labels' shape."""
    ice = GrandModel(
        density=torch.zeros(SHAPE),
        labels=torch.zeros(SHAPE, dtype=torch.uint8),
        particles=ParticleTable.empty(),
        voxel_size=10.0,
    )
    for thing in (specimen(0), ice):
        made = simulator(modality, tmp_path)(thing, seed=0)
        for result in (made.tiltseries, made.tomogram):
            assert result.dtype == torch.float32
            assert result.isfinite().all()
        assert made.tomogram.shape == made.labels.shape


def test_result_carries_what_is_known() -> None:
    """The result has the specimen's labels, instances, particles and names, and the voxel size of the labels."""
    thing = specimen(0, bin=2)
    made = simulator()(thing, seed=0)
    assert torch.equal(made.labels, thing.labels)
    assert thing.instances is not None
    assert made.instances is not None
    assert torch.equal(made.instances, thing.instances)
    assert made.particles is thing.particles
    assert made.class_names == thing.class_names
    assert made.voxel_size == pytest.approx(10)
    assert made.tiltseries.shape[1:] == (48, 64)
    assert made.tomogram.shape == SHAPE


# --- chance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["baseline", "noisy", "content", "faket"])
def test_same_address_same_result(tmp_path: Path, modality: str) -> None:
    """The same address gives the same tomogram bit for bit; any other part of the address another."""
    made, thing = simulator(modality, tmp_path), specimen(0)
    first = made(thing, seed=1, epoch=2, tomogram=3)
    again = simulator(modality, tmp_path)(specimen(0), seed=1, epoch=2, tomogram=3)
    assert torch.equal(first.tomogram, again.tomogram)
    assert torch.equal(first.tiltseries, again.tiltseries)
    for address in ({"seed": 2}, {"epoch": 1}, {"tomogram": 4}):
        other = made(thing, **({"seed": 1, "epoch": 2, "tomogram": 3} | address))
        assert not torch.equal(first.tiltseries, other.tiltseries)


def test_noise_is_the_same_in_every_modality(tmp_path: Path) -> None:
    """Modalities at one address differ by what they are, not by their noise."""
    records = [simulator(name, tmp_path).draw(specimen(0), seed=1) for name in MODALITIES]
    assert len({record.noise_seed for record in records}) == 1


@pytest.mark.parametrize("modality", ["noiseless", "noisy", "faket"])
def test_record_replays(tmp_path: Path, modality: str) -> None:
    """A record, through JSON and with another simulator of the same settings, makes the tomogram again, bit for bit."""
    first = simulator(modality, tmp_path)(specimen(0), seed=3, epoch=1, tomogram=2)
    record = SimulationRecord.from_json(json.loads(json.dumps(first.record.to_json())))
    again = simulator(modality, tmp_path).simulate(specimen(0), record)
    assert torch.equal(first.tomogram, again.tomogram)
    assert torch.equal(first.tiltseries, again.tiltseries)
    assert again.record == record
    assert (record.seed, record.epoch, record.tomogram, record.specimen) == (3, 1, 2, "specimen 0")
    assert set(record.versions) == {"faket_aug", "torch", "numpy", "scipy"}


def test_drawing_does_nothing() -> None:
    """Drawing needs no specimen's data: it is cheap, and twice the same."""
    made, thing = simulator("noisy"), specimen(0)
    assert made.draw(thing, seed=1) == made.draw(thing, seed=1)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"filter": "hann"}, "filter"),
        ({"threads": 2}, "threads"),
        ({"tilt_angles": ANGLES[:3]}, "tilt_angles"),
        ({"modality": "content"}, "modality"),
        ({"resampling": "fourier", "extend": "wrap"}, "resampling, extend"),
        ({"quantiles": (0.01, 0.99)}, "quantiles"),
    ],
)
def test_other_settings_are_refused(changes: dict[str, object], names: str) -> None:
    """A record of other settings is refused, with the names of those that differ."""
    record = simulator("noisy").draw(specimen(0), seed=0)
    with pytest.raises(ValueError, match=f"expected a record with this simulator's settings, got others for {names}$"):
        simulator(**({"modality": "noisy"} | changes)).simulate(specimen(0), record)


def test_other_noise_and_style_are_refused(tmp_path: Path) -> None:
    """A record of another noise model, style bank or encoder is refused, too."""
    record = simulator("faket", tmp_path).draw(specimen(0), seed=0)
    with pytest.raises(ValueError, match="got others for noise$"):
        simulator("faket", tmp_path, noise=noise_model(1)).simulate(specimen(0), record)
    features = narrow_vgg(tmp_path, seed=1)
    bank = StyleBank.build(style_series(0), features, style_layers=STYLE_LAYERS)
    with pytest.raises(ValueError, match="got others for style, features$"):
        simulator("faket", tmp_path, features=features, style=bank).simulate(specimen(0), record)


def test_another_specimen_is_refused() -> None:
    """A record names its specimen; it is not replayed with another."""
    made = simulator("noisy")
    with pytest.raises(ValueError, match="expected the specimen of the record, specimen 0, got specimen 1"):
        made.simulate(specimen(1), made.draw(specimen(0), seed=0))


def test_every_setting_is_recorded() -> None:
    """Every field of the simulator is in its settings, which are JSON."""
    made = simulator("noisy")
    names = {entry.name for entry in fields(made) if entry.init}
    settings = made.settings()
    # Without a crowd, what is done with it says nothing: records of 0.1.0 do not have it.
    # What a tomogram is filtered with is told where it differs from the default; so are bad tilts.
    assert set(settings) == names - {
        "bad_tilts",
        "crowd",
        "background",
        "ice",
        "flavour",
        "low_pass",
        "deconvolution",
        "reconstruction",
    }
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("text", ["{}", "[]", '{"seed": 1}', "1"])
def test_record_is_read_strictly(text: str) -> None:
    """A text that is no record is refused."""
    with pytest.raises(ValueError, match="expected a simulation record"):
        SimulationRecord.from_json(text)


def test_record_with_an_unknown_key() -> None:
    """A record with a key too many, of a later version perhaps, is refused."""
    data = json.loads(simulator().draw(specimen(0), seed=0).to_json())
    with pytest.raises(ValueError, match="expected a simulation record with"):
        SimulationRecord.from_json(json.dumps(data | {"colour": 1, "checksum": None}))


def test_simulator_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    """After pickling a simulator has the same settings and makes the same tomogram."""
    made = simulator("faket", tmp_path)
    again = pickle.loads(pickle.dumps(made))
    assert again.settings() == made.settings()
    assert torch.equal(again(specimen(0), seed=0).tomogram, made(specimen(0), seed=0).tomogram)


def test_global_state_stays(tmp_path: Path) -> None:
    """Gradients stay as the user has them, and results carry none."""
    made = simulator("faket", tmp_path)
    assert torch.is_grad_enabled()
    result = made(specimen(0), seed=0)
    assert torch.is_grad_enabled()
    assert not result.tomogram.requires_grad
    with torch.inference_mode():
        made(specimen(0), seed=0)


@pytest.mark.parametrize("budget", [1, 2_000_000, 2**30])
def test_memory_budget_changes_bits_at_most(tmp_path: Path, budget: int) -> None:
    """Tilts do not depend on each other: in chunks of any size the result is the same within rounding."""
    expected = simulator("faket", tmp_path)(specimen(0), seed=0).tiltseries
    found = simulator("faket", tmp_path, memory_budget=budget)(specimen(0), seed=0).tiltseries
    assert min(_correlations(found, expected)) > 0.9999


# --- errors -----------------------------------------------------------------------------------------------------------


def _wrong() -> tuple[FakETSimulator, GrandModel]:
    return simulator(extend="wrap", tilt_angles=(0.0, 89.0)), specimen(0, name="model_7")


def test_error_names_the_specimen_and_the_cause() -> None:
    """Whatever fails is a SimulationError with the specimen's name and the cause."""
    made, thing = _wrong()
    with pytest.raises(SimulationError, match="^model_7: ValueError: expected tilts of at most 85.0°") as caught:
        made(thing, seed=0)
    assert isinstance(caught.value.__cause__, ValueError)


def test_error_crosses_processes() -> None:
    """A SimulationError is the same after pickling."""
    made, thing = _wrong()
    with pytest.raises(SimulationError) as caught:
        made(thing, seed=0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is SimulationError
    assert str(again) == str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "fakety"}, "expected `modality` to be one of 'noiseless', 'baseline', 'noisy', 'content'"),
        ({"filter": "ramlak"}, "expected `filter` to be one of 'shrec', 'ramp', 'shepp-logan', 'cosine', 'hamming'"),
        ({"resampling": "mean"}, "expected `resampling` to be one of 'spline', 'fourier', got 'mean'"),
        ({"extend": "mirror"}, "expected `extend` to be one of 'zero', 'wrap', got 'mirror'"),
        ({"backend": "numpy"}, "expected `backend` to be one of 'torch', 'torch_radon', got 'numpy'"),
        ({"modality": "noisy"}, "expected `noise` for the modality 'noisy', got None; fit a `NoiseModel`"),
        ({"tilt_angles": []}, "expected `tilt_angles` of shape (tilt,) with at least one tilt"),
        ({"tilt_angles": [0.0, float("nan")]}, "expected finite `tilt_angles` in degrees"),
        ({"iterations": 0}, "expected `iterations` to be a whole number of 1 or more, got 0"),
        ({"step_size": -1.0}, "expected `step_size` to be 0 or more, got -1.0"),
        ({"average_decay": 1.5}, "expected `average_decay` to lie in [0, 1], got 1.5"),
        ({"threads": 0}, "expected `threads` to be a whole number of 1 or more, got 0"),
        ({"memory_budget": 0}, "expected `memory_budget` to be a whole number of 1 or more, got 0"),
        ({"quantiles": (0.9, 0.1)}, "expected `quantiles` to be a pair 0 <= low < high <= 1"),
    ],
)
def test_bad_settings(changes: dict[str, object], message: str) -> None:
    """Settings that cannot be are refused when the simulator is made, with the choices or the bounds."""
    with pytest.raises(ValueError) as caught:
        FakETSimulator(**({"tilt_angles": ANGLES, "modality": "noiseless"} | changes))
    assert message in str(caught.value)


def test_faket_needs_style_and_features(tmp_path: Path) -> None:
    """Without style bank or encoder, or with an encoder that the bank was not built with, there is no transfer."""
    good = simulator("faket", tmp_path)
    for missing in ("style", "features"):
        with pytest.raises(ValueError, match='expected `style` and `features` for the modality "faket", got None'):
            replace(good, **{missing: None})
    with pytest.raises(ValueError, match="expected the `features` that `style` was built with, got others"):
        replace(good, features=narrow_vgg(tmp_path, seed=1))
    with pytest.raises(WeightsError, match="that reach layer 20, got .*narrow_vgg_0.pth that ends at layer 11"):
        replace(good, content_layers=(20,))
    with pytest.raises(ValueError, match="expected one of `style_weights` for each of 2 `style_layers`, got 3"):
        replace(good, style_weights=(1, 2, 3))


# --- style series of all kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "series",
    [
        style_series(0, shape=(1, 24, 32), angles=[4.0]),
        style_series(0, shape=(3, 24, 32), angles=[10.0, -10.0, 0.0]),
        style_series(0, shape=(7, 40, 18)),
        style_series(0, shape=(41, 9, 9)),
    ],
    ids=["one tilt", "unordered", "other size", "many small tilts"],
)
def test_any_style_series(tmp_path: Path, series: TiltSeries) -> None:
    """A style may have fewer or more tilts, in any order, of any size and angles."""
    features = narrow_vgg(tmp_path)
    bank = StyleBank.build(series, features, style_layers=STYLE_LAYERS)
    made = simulator("faket", tmp_path, style=bank, features=features)(specimen(0), seed=0)
    index = torch.from_numpy(nearest_tilts(ANGLES, series.tilt_angles))
    mean, std = mean_std(series.tilts[index])
    found = mean_std(made.tiltseries)
    torch.testing.assert_close(found[0], mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], std, rtol=1e-4, atol=1e-4)


def test_hot_pixel_with_quantiles(tmp_path: Path) -> None:
    """A hot pixel of 1e6 in the style does no harm where quantiles are used; the simulator takes over the bank's."""
    features, series = narrow_vgg(tmp_path), style_series(0)
    hot = series.tilts.clone()
    hot[2, 5, 7] = 1e6
    quantiles = (0.001, 0.999)
    tilts = {}
    for name, values in (("clean", series.tilts), ("hot", hot)):
        bank = StyleBank.build(
            TiltSeries(tilts=values, tilt_angles=series.tilt_angles),
            features,
            style_layers=STYLE_LAYERS,
            quantiles=quantiles,
        )
        noise = NoiseModel.assume(values, series.tilt_angles, quantiles=quantiles)
        made = simulator("faket", tmp_path, style=bank, features=features, noise=noise)
        assert made.range_quantiles == quantiles
        tilts[name] = made(specimen(0), seed=0).tiltseries
    assert tilts["hot"].isfinite().all()
    assert tilts["hot"].max() < 200
    assert min(_correlations(tilts["hot"], tilts["clean"])) > 0.95


# --- the right way round ----------------------------------------------------------------------------------------------

TILTS = np.arange(-60.0, 61.0, 3.0)


def _specimen_of(phantom: Tensor, bin: int) -> GrandModel:
    """The asymmetric phantom of conftest as a specimen, at `bin` times the resolution of its labels."""
    density = phantom.float()
    if bin > 1:
        # The sample of the coarse voxel j lies on the fine voxel `bin · j`: the axis of rotation stays where it is.
        grid = torch.nn.functional.interpolate(
            density[None, None], size=[bin * (n - 1) + 1 for n in density.shape], mode="trilinear", align_corners=True
        )[0, 0]
        density = torch.nn.functional.pad(grid, (0, bin - 1) * 3)
    return GrandModel(
        density=density,
        labels=(phantom > 0.3).to(torch.uint8),
        particles=ParticleTable.empty(),
        voxel_size=10.0,
    )


def _turned(volume: Tensor) -> dict[tuple[int, ...], Tensor]:
    """A volume under all flips."""
    axes = [tuple(a for a, f in enumerate(flips) if f) for flips in itertools.product((0, 1), repeat=3)]
    return {flipped: torch.flip(volume, flipped) for flipped in axes}


@pytest.mark.parametrize("binning", ["spline", "fourier"])
@pytest.mark.parametrize("bin", [1, 2])
@pytest.mark.parametrize("filter", ["hann", "shrec"])
def test_orientation(phantom: Tensor, filter: str, bin: int, binning: str) -> None:
    """The tomogram of an asymmetric phantom of three unequal sizes is its negative, unflipped and unmoved."""
    made = FakETSimulator(tilt_angles=TILTS, modality="noiseless", filter=filter, resampling=binning)
    tomogram = made(_specimen_of(phantom, bin), seed=0).tomogram
    assert tomogram.shape == phantom.shape
    dark = {axes: correlation(tomogram, -volume) for axes, volume in _turned(phantom).items()}
    assert max(dark, key=lambda axes: dark[axes]) == ()
    assert dark[()] > 0.6
    assert dark[()] > max(value for axes, value in dark.items() if axes) + 0.3
    moved = {
        shift: correlation(tomogram, -torch.roll(phantom, shift, (0, 1, 2)))
        for shift in itertools.product((-1, 0, 1), repeat=3)
    }
    assert max(moved, key=lambda shift: moved[shift]) == (0, 0, 0)


def test_labels_lie_on_dark_voxels(phantom: Tensor) -> None:
    """Where the labels say particle, the tomogram is dark."""
    made = FakETSimulator(tilt_angles=TILTS, modality="noiseless", filter="hann")(_specimen_of(phantom, 1), seed=0)
    inside = made.labels > 0
    assert made.tomogram[inside].mean() < made.tomogram[~inside].mean() - made.tomogram.std()
    assert correlation(made.tomogram, -inside.float()) > 0.5


@pytest.mark.parametrize("modality", MODALITIES)
def test_dark_particles(tmp_path: Path, modality: str) -> None:
    """Particles are dark in every modality, as a microscope shows them."""
    thing = GrandModel(
        density=blobs((16, 32, 48), [(8, 8, 10), (6, 24, 30), (10, 16, 38)], 2.5),
        labels=torch.zeros((16, 32, 48), dtype=torch.uint8),
        particles=ParticleTable.empty(),
        voxel_size=10.0,
    )
    style = style_series(0)
    settings = {"filter": "hann", "tilt_angles": np.arange(-50.0, 51.0, 5.0)}
    if modality != "noiseless":
        settings["noise"] = NoiseModel.assume(style.tilts, style.tilt_angles, snr=3.0)
    made = simulator(modality, tmp_path, **settings)(thing, seed=0)
    least = {"noiseless": 0.6, "content": 0.5}.get(modality, 0.25)
    assert correlation(made.tomogram, -thing.density) > least


def test_tomogram_is_the_reconstruction_of_its_tilts() -> None:
    """The result's tomogram is `reconstruct` of its own tilts: the record needs nothing else."""
    made = simulator("noisy", filter="ramp")(specimen(0, bin=2), seed=0)
    expected = reconstruct(made.tiltseries, made.tilt_angles, depth=SHAPE[0], filter="ramp", bin=2)
    torch.testing.assert_close(made.tomogram, expected, rtol=1e-4, atol=1e-4)


# --- the reference data -----------------------------------------------------------------------------------------------


def _ways(volume: Tensor) -> dict[tuple[tuple[int, ...], bool], Tensor]:
    """A volume under all flips and the transposition of y and x."""
    turned = _turned(volume)
    return {(axes, t): v.transpose(1, 2) if t else v for axes, v in turned.items() for t in (False, True)}


@pytest.fixture(scope="module")
def model_0(reference: Path) -> Path:
    """The first specimen of `minishrec`."""
    return reference / "data" / "minishrec" / "model_0"


def _assert_the_right_way_round(tomogram: Tensor, density: Tensor, least: float) -> None:
    found = {way: correlation(tomogram, -volume) for way, volume in _ways(density).items()}
    assert max(found, key=lambda way: found[way]) == ((), False)
    assert found[((), False)] > least
    assert max(value for way, value in found.items() if way != ((), False)) < 0.5 * least


@pytest.mark.reference
def test_simulated_tomogram_of_minishrec(model_0: Path) -> None:
    """The simulated tomogram of a real-sized specimen lies on its density under no flip or transposition but none."""
    thing = GrandModel.from_shrec(model_0)
    made = FakETSimulator(tilt_angles=TILTS, modality="noiseless", filter="hann")(thing, seed=0)
    _assert_the_right_way_round(made.tomogram, thing.density, 0.6)


@pytest.mark.reference
def test_measured_tomogram_of_minishrec(model_0: Path) -> None:
    """The reconstruction of what another program measured of the specimen does so, too: the signs are the field's."""
    thing, series = GrandModel.from_shrec(model_0), TiltSeries.read(model_0)
    tomogram = reconstruct(series.tilts, series.tilt_angles, depth=64, filter="hann")
    _assert_the_right_way_round(tomogram, thing.density, 0.25)


@pytest.mark.reference
def test_measured_tilts_are_the_negated_projections(model_0: Path) -> None:
    """Each measured tilt correlates with the negated projection at its own angle, more than with its mirror image."""
    thing, series = GrandModel.from_shrec(model_0), TiltSeries.read(model_0)
    clean = -project(thing.density, series.tilt_angles)
    own, mirrored = _correlations(series.tilts, clean), _correlations(series.tilts, clean.flip(0))
    assert min(own) > 0.1
    # At 0° both are the same tilt; beyond some degrees the difference is plain.
    steep = np.abs(series.tilt_angles) > 6
    assert (np.array(own) > np.array(mirrored) + 0.05)[steep].all()


# --- the microscope ---------------------------------------------------------------------------------------------------


def test_ctf_changes_clean_tilts() -> None:
    """Clean tilts pass the function, whose defocus is drawn from the address of chance and kept in the record."""
    ctf = ContrastTransfer(defocus=3.0, spread=0.5, jitter=0.02)
    thing = specimen(0)
    made = simulator(ctf=ctf)(thing, seed=0)
    drawn = replace(ctf, defocus=made.record.defocus, spread=0.0, jitter=0.0)
    plain = simulator()(thing, seed=0).tiltseries
    assert len(made.record.defocus) == len(ANGLES)
    assert torch.equal(made.tiltseries, drawn.apply(plain, thing.voxel_size))
    assert not torch.allclose(made.tiltseries, plain, atol=1e-2)
    other = simulator(ctf=ctf)(thing, seed=0, epoch=1).record.defocus
    assert 2.4 < min(*other, *made.record.defocus) < max(*other, *made.record.defocus) < 3.6
    assert other != made.record.defocus
    again = simulator(ctf=ctf).simulate(thing, SimulationRecord.from_json(made.record.to_json()))
    assert torch.equal(again.tiltseries, made.tiltseries)


def test_ctf_goes_with_clean_tilts_only() -> None:
    with pytest.raises(ValueError, match='expected no `ctf` with `noise="given"`, which holds the microscope'):
        simulator("noisy", noise="given", ctf=ContrastTransfer(defocus=3.0))
    with pytest.raises(ValueError, match=rf"expected `defocus` of {len(ANGLES)} tilts, got 2 numbers"):
        simulator(ctf=ContrastTransfer(defocus=(3.0, 2.0)))
    with pytest.raises(ValueError, match=rf"expected `phase_shift` of {len(ANGLES)} tilts, got 2 numbers"):
        simulator(ctf=ContrastTransfer(defocus=3.0, phase_shift=(0.0, 90.0)))


def test_tilts_are_corrected_before_the_reconstruction() -> None:
    ctf = ContrastTransfer(defocus=3.0)
    thing = specimen(0)
    made, plain = (simulator(ctf=ctf, ctf_correction=how)(thing, seed=0) for how in ("phase-flip", None))
    assert torch.equal(made.tiltseries, plain.tiltseries)
    expected = reconstruct(ctf.correct(plain.tiltseries, thing.voxel_size), ANGLES, depth=SHAPE[0])
    assert torch.allclose(made.tomogram, expected, atol=1e-5)
    assert not torch.allclose(made.tomogram, plain.tomogram, atol=1e-3)
    with pytest.raises(ValueError, match="expected `ctf`, or noise with a `response`, for `ctf_correction`"):
        simulator(ctf_correction="phase-flip")


def _response(thing: GrandModel, *, scale: float, power: float, defocus: tuple[float, ...] = ()) -> MicroscopeResponse:
    """White noise of a power, and a signal with nothing but a defocus of 3 µm and a scale (its logarithm)."""
    return MicroscopeResponse(
        pixel_size=thing.voxel_size,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=scale),
        noise=(tuple(np.full(len(RINGS), power)),),
        angle_range=(-60.0, 60.0),
        defocus=defocus,
    )


def test_noise_with_a_response(tmp_path: Path) -> None:
    """A fitted response takes the place of white noise; specimens must have its pixel size."""
    thing = specimen(0)
    model = noise_model()
    response = _response(thing, scale=0.0, power=4.0)
    fitted = NoiseModel(series=model.series, response=response)
    made = simulator("noisy", tmp_path, noise=fitted)(thing, seed=0)
    mean, std = mean_std(made.tiltseries)
    np.testing.assert_allclose(mean, model.curves(ANGLES).mean, rtol=1e-4)
    assert 1.8 < float(std.mean()) < 20
    assert not torch.equal(simulator("noisy", tmp_path, noise=fitted)(thing, seed=1).tiltseries, made.tiltseries)
    other = NoiseModel(series=model.series, response=replace(response, pixel_size=2 * thing.voxel_size))
    with pytest.raises(
        SimulationError, match="expected voxels of 20 Å, as of the tilts that the noise was fitted to, got 10 Å"
    ):
        simulator("noisy", tmp_path, noise=other)(thing, seed=0)
    tilts = -project(thing.density, ANGLES)
    tilted = TiltedSpecimen(
        tilts=tilts,
        tilt_angles=np.array(ANGLES),
        voxel_size=thing.voxel_size,
        labels=thing.labels,
        particles=thing.particles,
        class_names=thing.class_names,
    )
    with pytest.raises(SimulationError, match="expected voxels of 20 Å, as of the tilts that the noise"):
        simulator("noisy", tmp_path, noise=other)(tilted, seed=0)
    corrected = simulator("noisy", tmp_path, noise=fitted, ctf_correction="phase-flip")(thing, seed=0)
    assert not torch.allclose(corrected.tomogram, made.tomogram, atol=1e-3)
    with pytest.raises(ValueError, match="expected no `ctf` with noise that was fitted with a response"):
        simulator("noisy", tmp_path, noise=fitted, ctf=ContrastTransfer(defocus=3.0))


def test_noiseless_tilts_are_the_other_half_of_noisy_ones(tmp_path: Path) -> None:
    """With a response both pass the same microscope: their difference is noise, without the specimen."""
    thing = specimen(0)
    response = _response(thing, scale=2.0, power=4.0, defocus=(2.0, 3.0, 4.0))
    noisy = simulator("noisy", tmp_path, noise=NoiseModel(series=noise_model().series, response=response))
    clean = replace(noisy, modality="noiseless")
    for number in range(3):
        pair = [one(thing, seed=0, tomogram=number) for one in (noisy, clean)]
        assert pair[0].record.defocus == pair[1].record.defocus
        rest = pair[0].tiltseries - pair[1].tiltseries
        grain = response.at_defocus(pair[0].record.defocus[0]).apply(
            torch.zeros_like(rest),
            torch.randn(rest.shape, generator=torch_generator(pair[0].record.noise_seed)),
            ANGLES,
        )
        assert torch.allclose(rest, grain, atol=1e-3 * float(pair[0].tiltseries.abs().max()))
        assert (
            correlation(pair[1].tiltseries[2], response.apply(-project(thing.density, ANGLES), 0 * rest, ANGLES)[2])
            > 0.8
        )


def test_each_tomogram_has_the_defocus_of_one_series(tmp_path: Path) -> None:
    """A response that was fitted to several series stands for all of them: the record says for which."""
    thing = specimen(0)
    response = _response(thing, scale=0.0, power=1e-6, defocus=(2.5, 3.5))
    make = simulator("noisy", tmp_path, noise=NoiseModel(series=noise_model().series, response=response))
    records = [make.draw(thing, seed=0, tomogram=number) for number in range(12)]
    assert {record.defocus for record in records} == {(2.5,), (3.5,)}
    made = make.simulate(thing, next(record for record in records if record.defocus == (3.5,)))
    expected = response.at_defocus(3.5).apply(
        -project(thing.density, ANGLES), torch.zeros(()).expand(5, *SHAPE[1:]), ANGLES
    )
    centred = made.tiltseries - made.tiltseries.mean(dim=(1, 2), keepdim=True)
    assert torch.allclose(centred, expected, atol=0.05 * float(expected.std()))
    other = response.at_defocus(2.5).apply(
        -project(thing.density, ANGLES), torch.zeros(()).expand(5, *SHAPE[1:]), ANGLES
    )
    assert not torch.allclose(centred, other, atol=0.05 * float(expected.std()))


# --- the trip, and ways of saying the same ----------------------------------------------------------------------------


def test_a_specimens_trip_is_read_in_one_function() -> None:
    """Project, distort, add noise, restyle, reconstruct, and what goes with it: in this order, in at most 12 lines."""
    lines = textwrap.dedent(inspect.getsource(FakETSimulator._simulate)).splitlines()
    assert len(lines) <= 12
    stages = [re.search(r"self\._(\w+)\(", line) for line in lines[2:]]
    names = [found[1] for found in stages if found]
    assert names == ["project", "distort", "add_noise", "restyle", "reconstruct", "labelled", "accompanied"]


def test_style_transfer_in_one_object(tmp_path: Path) -> None:
    """A `StyleTransfer` brings its bank, features and settings along; taken apart it is the same simulator."""
    apart = simulator("faket", tmp_path, step_size=0.05, keep_spectrum=True, iterations=2)
    assert isinstance(apart.style, StyleBank)
    assert apart.features is not None
    whole = StyleTransfer(bank=apart.style, features=apart.features, step_size=0.05, keep_spectrum=True, iterations=2)
    together = FakETSimulator(tilt_angles=ANGLES, noise=apart.noise, style=whole)
    assert together.settings() == apart.settings()
    made = [one(specimen(1), seed=2).tiltseries for one in (apart, together)]
    assert torch.equal(*made)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "expected `iterations`"),
        ({"step_size": -0.1}, "expected `step_size` to be 0 or more"),
        ({"step_size": "auto"}, "expected `step_size` to be a number"),
        ({"average_decay": 2.0}, "expected `average_decay`"),
        ({"quantiles": (0.5, 0.5)}, "expected `quantiles`"),
        ({"memory_budget": 0}, "expected `memory_budget`"),
        ({"style_weights": (1.0,)}, "expected one of `style_weights` for each"),
        ({"content_layers": (29,)}, "29"),
    ],
)
def test_style_transfer_errors(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    """A style transfer checks its numbers, and that its layers are there."""
    features = narrow_vgg(tmp_path)
    bank = StyleBank.build(style_series(0), features, style_layers=STYLE_LAYERS)
    with pytest.raises(ValueError, match=message):
        StyleTransfer(bank=bank, features=features, **settings)


def test_binning_is_called_resampling() -> None:
    """The old name of a setting still works, with a warning that says the new one."""
    with pytest.warns(DeprecationWarning, match="`binning` is called `resampling` now"):
        made = FakETSimulator(tilt_angles=TILTS, modality="noiseless", binning="fourier")
    assert made.resampling == "fourier"
    with pytest.warns(DeprecationWarning, match="`binning` is called `resampling` now"):
        assert made.binning == "fourier"


def test_a_record_of_an_older_version_is_made_again() -> None:
    """Version 0.1.0 called a setting `binning` in its records."""
    thing, made = specimen(0, bin=2), FakETSimulator(tilt_angles=TILTS, modality="noiseless", resampling="fourier")
    record = made.draw(thing, seed=3)
    older = {("binning" if name == "resampling" else name): value for name, value in record.settings.items()}
    assert torch.equal(made.simulate(thing, replace(record, settings=older)).tomogram, made(thing, seed=3).tomogram)
    with pytest.raises(ValueError, match="got others for resampling"):
        made.simulate(thing, replace(record, settings=older | {"binning": "spline"}))


def test_noise_of_ones_own() -> None:
    """A noise model derives from `NoiseModel`, makes tilts of its own, and stands in the record; others are refused."""

    class Doubled(NoiseModel):
        def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Any, *, noise_scale: float = 1.0) -> Tensor:
            return clean + 2 * noise_scale * noise

        def to_json(self) -> str:
            return '{"noise": "doubled"}'

    made = FakETSimulator(tilt_angles=ANGLES, modality="noisy", noise=Doubled())
    clean = FakETSimulator(tilt_angles=ANGLES, modality="noiseless")
    found = made(specimen(0), seed=1)
    assert abs(float((found.tiltseries - clean(specimen(0), seed=1).tiltseries).std()) - 2) < 0.1
    assert found.record.settings["noise"] == '{"noise": "doubled"}'
    assert found.record.settings["noise_class"].endswith("test_noise_of_ones_own.<locals>.Doubled")
    assert "noise_class" not in clean.settings()

    class Other(Doubled):
        pass

    # The text is the same, the class is not; a record of 0.1.0 names none.
    with pytest.raises(ValueError, match="got others for noise_class"):
        replace(made, noise=Other()).simulate(specimen(0), found.record)
    older = {key: value for key, value in found.record.settings.items() if key != "noise_class"}
    again = made.simulate(specimen(0), replace(found.record, settings=older))
    assert torch.equal(again.tomogram, found.tomogram)
    with pytest.raises(SimulationError, match='for the modality "baseline", got Doubled, which has no noise'):
        replace(made, modality="baseline")(specimen(0), seed=1)
    with pytest.raises(ValueError, match="expected `noise` to be a `NoiseModel`, got 3.0"):
        FakETSimulator(tilt_angles=ANGLES, modality="noisy", noise=3.0)
