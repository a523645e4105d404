"""What was not measured does not count: fitted numbers are as without a border, whatever brought it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import NoiseModel, StyleBank, TiltSeries, VGG19Features, fit_defocus
from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.geometry import turns
from faket_aug.microscope.spectra import RINGS, series_spectra
from faket_aug.statistics import mean_std, standardize, value_range
from faket_aug.style.gram import gram_matrix
from faket_aug.style.transfer import _features_kept, gray_to_rgb, style_grams
from faket_aug.tomography.resample import transform_images
from tests._helpers import narrow_vgg
from tests.microscope.test_defocus import _image
from tests.microscope.test_unpaired import _microscope

ANGLES = np.arange(-48.0, 49.0, 3.0)
WHOLE, SIDE, BAND = 320, 224, 150
FITTED = (RINGS > 0.02) & (RINGS < 0.48)
LAYERS = (1, 6, 11)
QUANTILES = (0.001, 0.999)
KINDS = ("zeros", "constant", "mean-filled wedge", "aligned, 0.3 rad", "aligned, 90°")


def _textures(seed: int) -> Tensor:
    """A stationary texture that changes from tilt to tilt: as projections, but the same everywhere but for chance."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.hypot(torch.fft.fftfreq(WHOLE)[:, None], torch.fft.rfftfreq(WHOLE))
    smooth = torch.exp(-((k / 0.25) ** 2))
    tilts: list[Tensor] = []
    for _ in ANGLES:
        new = torch.fft.irfft2(torch.fft.rfft2(torch.randn(WHOLE, WHOLE, generator=generator)) * smooth)
        tilts.append(0.9 * tilts[-1] + 0.19**0.5 * new if tilts else new)
    return 8 * torch.stack(tilts)


@cache
def _tilts() -> tuple[Tensor, Tensor]:
    """Clean and measured tilts that are larger than what is compared."""
    clean = _textures(1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    return clean, 2000 + _microscope().apply(clean, noise, ANGLES)


@cache
def _other() -> Tensor:
    return _textures(3)


@cache
def _features() -> VGG19Features:
    with tempfile.TemporaryDirectory() as folder:
        features = narrow_vgg(Path(folder))
        features.load()
        return features


def _cut(images: Tensor, height: int = SIDE, width: int = SIDE) -> Tensor:
    """The middle, whose pixel `n // 2` is that of the whole."""
    top, left = WHOLE // 2 - height // 2, WHOLE // 2 - width // 2
    return images[:, top : top + height, left : left + width].clone()


def _turned(measured: Tensor, degrees: float, size: tuple[int, int]) -> TiltSeries:
    """The series as a microscope with a turned axis measures it, cut to a size."""
    count = len(ANGLES)
    back = np.transpose(turns(np.full(count, degrees)), (0, 2, 1))
    tilts = transform_images(measured, back, np.zeros((count, 2)))
    metadata = TiltMetadata(
        sections=np.arange(count),
        tilt_angles=ANGLES,
        axis_angle=np.full(count, degrees),
        shifts=np.zeros((count, 2)),
        shift_unit="pixel",
        pixel_size=10.0,
        image_size=size,
        source="test",
    )
    return TiltSeries(tilts=_cut(tilts, *size), tilt_angles=ANGLES, pixel_size=10.0, metadata=metadata)


@cache
def _pair(kind: str) -> tuple[TiltSeries, TiltSeries]:
    """A series without a border, and the same with one of this kind."""
    measured = _tilts()[1]
    if kind.startswith("aligned"):
        degrees, size = {"aligned, 0.3 rad": (17.19, (SIDE, SIDE)), "aligned, 90°": (90.0, (SIDE, BAND))}[kind]
        uncut = _turned(measured, degrees, (WHOLE, WHOLE)).aligned(shape=(SIDE, SIDE))
        return replace(uncut, measured=None), _turned(measured, degrees, size).aligned(shape=(SIDE, SIDE))
    tilts = _cut(measured)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    bordered = tilts.clone()
    for index, image in enumerate(bordered):
        if kind == "mean-filled wedge":
            image[(y < 0.25 * x - 5) | (x > SIDE - 6)] = image.mean()
        else:
            image[(y < 10 + index // 3) | (x > SIDE - 9)] = 0.0 if kind == "zeros" else 4000.0
    return TiltSeries(tilts=tilts, tilt_angles=ANGLES, pixel_size=10.0), _read_again(bordered)


def _read_again(tilts: Tensor) -> TiltSeries:
    """Write and read a stack, which finds its borders."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.mrc"
        write_mrc(path, tilts, voxel_size=10.0)
        return TiltSeries.read(path, tilt_angles=ANGLES)


def _errors(found: TiltSeries, expected: TiltSeries) -> dict[str, float]:
    """How much each measured number of a series differs from that of another, as a fraction."""
    clean = _cut(_tilts()[0])
    (mean, std), (mean_0, std_0) = (mean_std(one.tilts, one.measured) for one in (found, expected))
    errors = {"mean / std": float(((mean - mean_0) / std_0).abs().max()), "std": float((std / std_0 - 1).abs().max())}
    limits, limits_0 = (np.array(value_range(one.tilts, QUANTILES, one.measured)) for one in (found, expected))
    errors["range"] = float(np.abs(limits - limits_0).max() / np.ptp(limits_0))
    own, other = (series_spectra(one.tilts, ANGLES, measured=one.measured) for one in (found, expected))
    errors["power"] = float(np.median(np.abs(own.power.mean(0) / other.power.mean(0) - 1)[FITTED]))
    near = (RINGS > 0.02) & (RINGS < 0.2)
    errors["shared power"] = abs(float(own.shared[:, near].sum() / other.shared[:, near].sum()) - 1)
    errors["mean of spectra / std"] = float(np.abs((own.mean - other.mean) / std_0.numpy()).max())
    fits = [
        NoiseModel.fit(clean=clean, target=one.tilts, tilt_angles=ANGLES, measured=one.measured).curves(ANGLES)
        for one in (found, expected)
    ]
    for name in ("correlation", "deviation", "std"):
        a, b = (getattr(fit, name) for fit in fits)
        errors[f"fit: {name}"] = float(np.abs(a / b - 1).max())
    assumed = [NoiseModel.assume(one.tilts, ANGLES, measured=one.measured).curves(ANGLES) for one in (found, expected)]
    errors["assume: std"] = float(np.abs(assumed[0].std / assumed[1].std - 1).max())
    banks = [
        StyleBank.build(one, _features(), style_layers=LAYERS, quantiles=QUANTILES).series[0]
        for one in (found, expected)
    ]
    errors["bank: std"] = float((banks[0].std / banks[1].std - 1).abs().max())
    # Of the same scale: a range is that of the rarest pixels, and differs by chance.
    units = [(0.5 + standardize(one.tilts, one.measured) / 8).clamp(0, 1) for one in (found, expected)]
    # Of the same features of the whole tilts: those at an image's own edges see zeros there, and are to be as many.
    grams = style_grams(units[0], _features(), layers=LAYERS, measured=found.measured)
    known = found.tilts.new_ones(found.tilts.shape) > 0 if found.measured is None else found.measured
    for layer, features in _features()(gray_to_rgb(units[1]), LAYERS).items():
        kept = _features_kept(known, (int(features.shape[-2]), int(features.shape[-1])))
        a, b = grams[layer].mean(0), gram_matrix(features, kept).mean(0)
        errors[f"Gram {layer}"] = float((a - b).norm() / b.norm())
    return errors


def _response_errors(found: TiltSeries, expected: TiltSeries) -> dict[str, float]:
    models = [
        NoiseModel.fit_unpaired(
            target=one.tilts, clean=_other(), tilt_angles=ANGLES, pixel_size=10.0, measured=one.measured, scale="power"
        )
        for one in (found, expected)
    ]
    own, other = (model.response for model in models)
    assert own is not None
    assert other is not None
    gain, gain_0 = (one.gain(ANGLES)[:, FITTED] for one in (own, other))
    strong = np.abs(gain_0) > np.abs(gain_0).max() / 5
    noise, noise_0 = (one.noise_power(ANGLES)[:, FITTED] for one in (own, other))
    return {
        "gain": abs(float(np.median(np.abs(gain / gain_0)[strong])) - 1),
        "noise power": float(np.median(np.abs(noise / noise_0 - 1))),
        "defocus": abs(own.defocus[0] / other.defocus[0] - 1),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_as_without_a_border(kind: str) -> None:
    """All is within 2 %: means, deviations, ranges, spectra, noise, Gram matrices, the response."""
    whole, bordered = _pair(kind)
    assert bordered.measured is not None
    errors = _errors(bordered, whole) | _response_errors(bordered, whole)
    assert max(errors.values()) < 0.02, errors
    (_, before), (_, std) = mean_std(bordered.tilts), mean_std(whole.tilts)
    assert float((before / std - 1).abs().max()) > 0.05


def test_what_was_not_measured_may_be_anything() -> None:
    """No number depends on the values of pixels that were not measured."""
    known = torch.ones(4, 64, 64, dtype=torch.bool)
    known[:, :9] = False
    known[1:3, 30:50, 50:] = False
    generator = torch.Generator().manual_seed(0)
    tilts, clean = torch.randn(2, 4, 64, 64, generator=generator) + torch.linspace(0, 2, 64)
    angles = [-3.0, 0.0, 3.0, 6.0]
    other = torch.where(known, tilts, 1e4)
    for numbers in (
        lambda one: NoiseModel.fit(clean=clean, target=one, tilt_angles=angles, measured=known, order=0).to_json(),
        lambda one: NoiseModel.assume(one, angles, measured=known, quantiles=(0.01, 0.9)).to_json(),
        lambda one: series_spectra(one, np.array(angles), measured=known).shared.tobytes(),
        lambda one: style_grams(one, _features(), layers=(1, 6), measured=known)[6].tolist(),
    ):
        assert numbers(tilts) == numbers(other)  # type: ignore[no-untyped-call]
    spectra = series_spectra(tilts, np.array(angles), measured=known)
    assert spectra.counts[5] < 0.9 * series_spectra(tilts, np.array(angles)).counts[5]


def test_a_mask_that_is_true_everywhere_changes_no_bit() -> None:
    """All measured is the same as no mask."""
    tilts = torch.randn(3, 48, 40, generator=torch.Generator().manual_seed(0))
    angles, known = np.array([-3.0, 0.0, 3.0]), torch.ones(3, 48, 40, dtype=torch.bool)
    spectra = [series_spectra(tilts, angles, measured=mask) for mask in (None, known)]
    for name in ("power", "shared", "counts", "shared_counts", "mean"):
        assert np.array_equal(*(getattr(one, name) for one in spectra))
    models = [NoiseModel.assume(tilts, angles, measured=mask) for mask in (None, known)]
    assert models[0].to_json() == models[1].to_json()
    banks = [
        StyleBank.build(TiltSeries(tilts=tilts, tilt_angles=angles, measured=mask), _features(), style_layers=(1, 6))
        for mask in (None, known)
    ]
    assert banks[0].key == banks[1].key
    known = known.clone()
    known[0, :8] = False
    some = TiltSeries(tilts=tilts, tilt_angles=angles, measured=known)
    assert StyleBank.build(some, _features(), style_layers=(1, 6)).key != banks[0].key


def test_masks_for_each_series() -> None:
    """A list of masks is as long as the list of targets."""
    tilts, angles = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)), [-3.0, 0.0, 3.0]
    known = torch.ones(3, 16, 16, dtype=torch.bool)
    known[:, 0] = False
    model = NoiseModel.fit(
        clean=[tilts, tilts], target=[tilts, tilts], tilt_angles=[angles, angles], measured=[None, known], order=0
    )
    assert model.series[0].mean[0] == pytest.approx(float(tilts[0].mean()), abs=1e-6)
    assert model.series[1].mean[0] == pytest.approx(float(tilts[0, 1:].mean()), abs=1e-6)
    with pytest.raises(ValueError, match="expected one mask, or None, in `measured` for each of 2 measured series"):
        NoiseModel.fit(
            clean=[tilts, tilts], target=[tilts, tilts], tilt_angles=[angles, angles], measured=[known], order=0
        )
    with pytest.raises(ValueError, match="as booleans of the images' shape"):
        NoiseModel.assume(tilts, angles, measured=known[:, 1:], order=0)
    with pytest.raises(ValueError, match="expected every tilt to vary"):
        NoiseModel.assume(tilts, angles, measured=torch.zeros_like(known), order=0)


@pytest.mark.parametrize("fill", [0.0, 1000.0])
def test_defocus_is_as_without_a_border(fill: float) -> None:
    """The rings of an image with a slanted border and a hole, in one tile and in many."""
    image = _image(1, 2.2, signal=3.0)
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    known = ~((y < 24) | (x + 0.2 * y > 250))
    known[100:103, 90:92] = False
    bordered = torch.where(known, image, fill)
    for tile in (512, 128):
        found = fit_defocus(bordered, 3.0, measured=known, tile=tile)
        assert abs(found.defocus / 2.2 - 1) < 0.02
        assert found.astigmatism < 0.05
    lonely = torch.zeros_like(known)
    lonely[::40, ::40] = True
    with pytest.raises(ValueError, match="with measured pixels, got none"):
        fit_defocus(image, 3.0, measured=lonely)
