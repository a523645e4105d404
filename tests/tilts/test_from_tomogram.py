"""Tilts out of tomograms: they are those that the tomogram was made of, as far as it holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import GrandModel, NoiseModel, TiltSeries, project, reconstruct
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from faket_aug.tomography.filters import FILTERS
from faket_aug.tomography.reprojection import reproject, reproject_halves
from tests._helpers import blobs

STEP = 4.0
ANGLES = np.arange(-40.0, 41.0, STEP)
DEPTH, HEIGHT, WIDTH = 96, 20, 128
#: Cycles per pixel at 0°: above, no two tilts share anything.
CROWTHER = 1 / (DEPTH * np.tan(np.deg2rad(STEP)))
#: Columns that are seen whole at every tilt, nearly.
MIDDLE = slice(32, 97)


def _noise(seed: int, count: int = len(ANGLES)) -> Tensor:
    return torch.randn(count, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def _specimen() -> Tensor:
    """Blobs anywhere within the depth, asymmetric."""
    places = np.random.default_rng(5).integers((10, 3, 10), (DEPTH - 10, HEIGHT - 3, WIDTH - 10), size=(60, 3))
    return blobs((DEPTH, HEIGHT, WIDTH), places.tolist(), spread=1.5).float()


def _correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def _power(tilts: Tensor) -> Tensor:
    """Power over the frequency across the axis, `(x // 2 + 1,)`."""
    window = torch.hann_window(tilts.shape[-1])
    return (torch.fft.rfft(tilts * window, dim=-1).abs() ** 2).mean(dim=(0, 1))


@pytest.fixture(scope="module")
def noise_tilts() -> Tensor:
    return _noise(0)


@pytest.fixture(scope="module")
def returned(noise_tilts: Tensor) -> Tensor:
    return reproject(reconstruct(noise_tilts, ANGLES, depth=DEPTH, filter="ramp"), ANGLES, filter="ramp")


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_returns_above_crowthers_frequency(noise_tilts: Tensor, returned: Tensor) -> None:
    """The power of white noise, pixel by pixel the same noise: within 3 %, correlating by more than 0.97."""
    frequency = torch.fft.rfftfreq(WIDTH)
    high = (frequency > 1.3 * CROWTHER) & (frequency < 0.48)
    low_tilts = slice(6, 15)  # -16° to 16°: nothing of them is reflection
    ratio = _power(returned[low_tilts])[high].sum() / _power(noise_tilts[low_tilts])[high].sum()
    assert float(ratio) == pytest.approx(1.0, abs=0.03)
    filtered = [torch.fft.irfft(torch.fft.rfft(t[low_tilts]) * high, n=WIDTH) for t in (noise_tilts, returned)]
    assert _correlation(*filtered) > 0.97
    for tilt in range(len(ANGLES)):
        assert _correlation(noise_tilts[tilt][:, MIDDLE], returned[tilt][:, MIDDLE]) > 0.9


def test_noise_below_crowthers_frequency_is_a_known_share(noise_tilts: Tensor, returned: Tensor) -> None:
    """A slab has `depth · K · Δθ` numbers for each tilt, no more: that share of white noise's power comes back."""
    frequency = torch.fft.rfftfreq(WIDTH)
    ratio = _power(returned[8:13]) / _power(noise_tilts[8:13])
    for share in (0.3, 0.5, 0.7):
        near = (frequency - share * CROWTHER).abs() < 0.15 * CROWTHER
        assert float(ratio[near].mean()) == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize("filter", FILTERS)
def test_every_filter_is_undone(filter: str, noise_tilts: Tensor) -> None:
    """White noise comes back white where the filter lets it through, whatever its name."""
    found = reproject(reconstruct(noise_tilts, ANGLES, depth=DEPTH, filter=filter), ANGLES, filter=filter)
    spectra = [torch.fft.rfft2(t[8:13]).abs().pow(2).mean(dim=0) for t in (found, noise_tilts)]
    k_y, k_x = torch.fft.fftfreq(HEIGHT)[:, None], torch.fft.rfftfreq(WIDTH)
    whole = (k_x > 1.3 * CROWTHER) & (k_x < 0.4) & (torch.hypot(k_x, k_y) < 0.45)
    assert float(spectra[0][whole].sum() / spectra[1][whole].sum()) == pytest.approx(1.0, abs=0.04)


# --- signal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filter", ["ramp", "shrec", "hann"])
def test_signal_returns_at_all_frequencies(filter: str) -> None:
    """The tilts of a specimen within the depth come back, the low frequencies too; only means do not."""
    tilts = project(_specimen(), ANGLES)
    found = reproject(reconstruct(tilts, ANGLES, depth=DEPTH, filter=filter), ANGLES, filter=filter)
    # Without its mean along x a row keeps all that a filter lets through.
    expected = tilts - tilts.mean(dim=-1, keepdim=True)
    for tilt in range(len(ANGLES)):
        assert _correlation(found[tilt][:, MIDDLE], expected[tilt][:, MIDDLE]) > 0.95
    ratio = _power(found[8:13]) / _power(expected[8:13])
    frequency = torch.fft.rfftfreq(WIDTH)
    for low, high in ((0.02, 0.05), (0.05, 0.1), (0.1, 0.2)):
        assert float(ratio[(frequency > low) & (frequency < high)].mean()) == pytest.approx(1.0, abs=0.08)


def test_peaks_lie_where_the_geometry_puts_them() -> None:
    """A point at (x, z) from the axis is seen at x cos θ + z sin θ, dark; a bright tomogram is negated."""
    x, z, row = 20, 15, 7
    specimen = blobs((DEPTH, HEIGHT, WIDTH), [[DEPTH // 2 + z, row, WIDTH // 2 + x]], spread=1.0).float()
    tomogram = reconstruct(-project(specimen, ANGLES), ANGLES, depth=DEPTH, filter="ramp")
    dark = TiltSeries.from_tomogram(tomogram, ANGLES, filter="ramp", voxel_size=10.0)
    bright = TiltSeries.from_tomogram(-tomogram, ANGLES, filter="ramp", voxel_size=10.0, dark=False)
    projected = TiltSeries.from_tomogram(tomogram, ANGLES, voxel_size=10.0)
    for series in (dark, bright, projected):
        for angle, tilt in zip(series.tilt_angles, series.tilts, strict=True):
            place = divmod(int(tilt.argmin()), WIDTH)
            seen = WIDTH // 2 + x * np.cos(np.deg2rad(angle)) + z * np.sin(np.deg2rad(angle))
            assert place[0] == row
            assert place[1] == pytest.approx(seen, abs=1.0)
    torch.testing.assert_close(dark.tilts, bright.tilts)


def test_unknown_filter_is_left_as_it_is(noise_tilts: Tensor) -> None:
    """Without a filter the tilts are the plain projections of the tomogram without its mean."""
    tomogram = reconstruct(noise_tilts, ANGLES, depth=DEPTH, filter="ramp") + 7
    expected = project(tomogram - tomogram.mean(), ANGLES)
    torch.testing.assert_close(reproject(tomogram, ANGLES)[10], expected[10], rtol=0, atol=1e-3)
    whole = slice(60, 69)
    # The length of a ray is only known as well as it is sampled.
    torch.testing.assert_close(reproject(tomogram, ANGLES)[..., whole], expected[..., whole], rtol=0.01, atol=0.02)


def test_sides_are_reflections() -> None:
    """At 60° half of the columns see the tomogram's sides; they hold the reflection of the others, not nothing."""
    angles = np.array([-60.0, 0.0, 60.0])
    tilts = _noise(1, 3)
    for filter in (None, "ramp"):
        found = reproject(reconstruct(tilts, angles, depth=24, filter="ramp"), angles, filter=filter)
        first = next(x for x in range(WIDTH) if torch.equal(found[0][:, x - 1], found[0][:, x]))
        assert 28 <= first <= 34
        torch.testing.assert_close(found[0][:, :first], found[0][:, first : 2 * first].flip(-1))
        assert bool((found.std(dim=(1,)) > 0.1 * found[1].std()).all())


# --- halves -----------------------------------------------------------------------------------------------------------


def _shared(tilts: Tensor) -> float:
    """What neighbours share of their power near the Fourier line of the axis."""
    transform = torch.fft.rfft2(tilts[..., MIDDLE])[..., 1:6]
    power = (transform.abs() ** 2).mean()
    return float((transform[1:].conj() * transform[:-1]).real.mean() / power)


def test_halves_share_no_noise(noise_tilts: Tensor, returned: Tensor) -> None:
    """Neighbours out of one tomogram share most of their noise near the axis, those out of two halves none."""
    halves = [reconstruct(noise_tilts[i::2], ANGLES[i::2], depth=DEPTH, filter="ramp") for i in (0, 1)]
    found = reproject_halves(halves, ANGLES, filter="ramp")
    assert abs(_shared(noise_tilts)) < 0.1
    assert _shared(returned) > 0.5
    assert abs(_shared(found)) < 0.1
    for tilt in range(len(ANGLES)):
        assert _correlation(noise_tilts[tilt][:, MIDDLE], found[tilt][:, MIDDLE]) > 0.9


def test_halves_by_frames() -> None:
    """Each half has all tilts: they come from one and the other in turn, by angle, whatever the order given."""
    own = [_noise(2), _noise(3)]
    order = np.random.default_rng(0).permutation(len(ANGLES))
    given = [reconstruct(half, ANGLES, depth=DEPTH, filter="ramp") for half in own]
    series = TiltSeries.from_tomogram(given, ANGLES[order], filter="ramp", halves="frames", voxel_size=10.0)
    assert series.tilt_angles.tolist() == ANGLES.tolist()
    for tilt, image in enumerate(series.tilts):
        assert _correlation(own[tilt % 2][tilt][:, MIDDLE], image[:, MIDDLE]) > 0.9
        assert abs(_correlation(own[1 - tilt % 2][tilt][:, MIDDLE], image[:, MIDDLE])) < 0.2
    assert abs(_shared(series.tilts)) < 0.1


# --- series -----------------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    """The voxel size is the header's, the name the path, the angles a file's in any order."""
    tomogram = reconstruct(_noise(4, 5), ANGLES[:5], depth=16, filter="ramp")
    write_mrc(tmp_path / "a.mrc", tomogram, voxel_size=7.5)
    write_tlt(tmp_path / "a.tlt", ANGLES[:5])
    series = TiltSeries.from_tomogram(tmp_path / "a.mrc", tmp_path / "a.tlt", filter="ramp")
    assert series.pixel_size == pytest.approx(7.5)
    assert series.name == str(tmp_path / "a.mrc")
    assert series.tilts.shape == (5, HEIGHT, WIDTH)
    backwards = TiltSeries.from_tomogram(str(tmp_path / "a.mrc"), ANGLES[4::-1], filter="ramp", voxel_size=8.0)
    assert backwards.pixel_size == 8.0
    assert backwards.tilt_angles.tolist() == ANGLES[:5].tolist()
    torch.testing.assert_close(backwards.tilts, series.tilts, rtol=1e-3, atol=1e-3)


def test_bad_tomograms(tmp_path: Path) -> None:
    """What cannot be projected is refused, and the message says what to set."""
    good = _noise(5, 8)
    write_mrc(tmp_path / "none.mrc", good, voxel_size=10.0)
    with mrcfile.open(tmp_path / "none.mrc", mode="r+") as file:
        file.voxel_size = 0.0
    with pytest.raises(ValueError, match=r"none.mrc: expected a voxel size in Å, got 0; set `voxel_size`"):
        TiltSeries.from_tomogram(tmp_path / "none.mrc", ANGLES)
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match=r"tomogram: expected a voxel size in Å, got .*; set `voxel_size`"):
            TiltSeries.from_tomogram(good, ANGLES, voxel_size=wrong)
    with pytest.raises(ValueError, match=r"tomogram: expected a voxel size in Å, got 0; set `voxel_size`"):
        TiltSeries.from_tomogram(good, ANGLES)
    with pytest.raises(ValueError, match="expected `filter` to be one of 'shrec', 'ramp'.*got 'rampe'"):
        TiltSeries.from_tomogram(good, ANGLES, filter="rampe", voxel_size=10.0)
    with pytest.raises(ValueError, match=r"expected `tomogram` of shape \(z, y, x\), got \(20, 128\)"):
        TiltSeries.from_tomogram(good[0], ANGLES, voxel_size=10.0)
    for constant in (torch.zeros(8, 8, 8), torch.full((8, 8, 8), 3.3)):
        with pytest.raises(
            ValueError, match="expected a tomogram that varies, got the same value in every voxel; look at the file"
        ):
            TiltSeries.from_tomogram(constant, ANGLES, voxel_size=10.0)
    with pytest.raises(ValueError, match="expected a pair of half tomograms, got 3"):
        TiltSeries.from_tomogram((good, good, good), ANGLES, voxel_size=10.0)
    with pytest.raises(ValueError, match="expected `odd` to have the shape of `even`"):
        TiltSeries.from_tomogram((good, good[1:]), ANGLES, voxel_size=10.0)
    with pytest.raises(ValueError, match="expected `halves` to be one of 'tilts', 'frames', got 'views'"):
        TiltSeries.from_tomogram((good, good), ANGLES, voxel_size=10.0, halves="views")
    with pytest.raises(ValueError, match="expected two tilts or more in a pair of half tomograms, got 1"):
        TiltSeries.from_tomogram((good, good), [0.0], voxel_size=10.0)


# --- measured by another program --------------------------------------------------------------------------------------


def test_fit_of_halves(reference: Path, reference_file: Callable[[Path, str], Path]) -> None:
    """Halves serve `fit_unpaired` as their tilts do: defocus within 0.1 µm, gain and noise within 15 %."""
    folders = [reference_file(reference, f"data/minishrec/model_{i}") for i in (0, 4)]
    measured = TiltSeries.read(folders[0])
    angles = measured.tilt_angles
    clean = -project(GrandModel.from_shrec(folders[1], z_range=None).density.float(), angles)
    halves = [reconstruct(measured.tilts[i::2], angles[i::2], depth=64) for i in (0, 1)]
    made = TiltSeries.from_tomogram(halves, angles, filter="shrec", voxel_size=10.0)
    true, found = (
        NoiseModel.fit_unpaired(
            target=series.tilts, clean=clean, tilt_angles=angles, pixel_size=10.0, scale="power"
        ).response
        for series in (measured, made)
    )
    assert true is not None
    assert found is not None
    np.testing.assert_allclose(found.defocus, true.defocus, atol=0.1)
    rings = slice(3, 62)
    gain, own = (r.gain(angles)[:, rings] for r in (true, found))
    strong = np.abs(gain) > np.abs(gain).max() / 5
    assert np.median(np.abs(own / gain - 1)[strong]) < 0.15
    assert np.median(np.abs(found.noise_power(angles) / true.noise_power(angles) - 1)[:, rings]) < 0.15
