"""Binning: the published zoom, SciPy on the spot, and the axis that stays in pixel n // 2; turning: SciPy again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.special
import torch
from torch import Tensor

from faket_aug import reconstruct
from faket_aug.tomography import resample
from faket_aug.tomography.resample import (
    GRIDS,
    RESAMPLINGS,
    bin_fourier,
    bin_images,
    bin_spline,
    resample_volume,
    transform_images,
)


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_autocast_does_not_reach_binning() -> None:
    """Within `torch.autocast` images are binned as without, for a reconstruction, too."""
    images = _random(3, 24, 20, dtype=torch.float32)
    expected = [bin_images(images, 2), reconstruct(images, [-50, 0, 50], depth=6, bin=2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [bin_images(images, 2), reconstruct(images, [-50, 0, 50], depth=6, bin=2)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.reference
def test_golden_binning(reference: Path, reference_file) -> None:
    """On the grid of corners the spline gives the golden tilts, but for SciPy's last column.

    The last coordinate of `scipy.ndimage.zoom` can round to just outside the image, so that 0 is read there: along x
    it does (48 to 24 pixels), along y (6 to 3) it does not.
    """
    golden = np.load(reference_file(reference, "golden/radon_fbp.npz"))
    expected = golden["projections_binned2"]
    found = bin_spline(torch.from_numpy(golden["projections"]), 2, grid="corners").numpy()
    assert found.shape == expected.shape
    assert np.all(expected[:, :, -1] == 0)
    assert np.abs(found[:, :, -1]).max() > 0.05 * np.abs(expected).max()
    assert np.abs(found - expected)[:, :, :-1].max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("shape", [(16, 24), (17, 21), (15, 22)])
def test_corners_equal_scipy_zoom(shape: tuple[int, int], factor: int) -> None:
    """On the grid of corners the spline is `scipy.ndimage.zoom` of order 3 (mirrored, so that no edge reads 0)."""
    images = _random(2, *shape)
    expected = scipy.ndimage.zoom(images.numpy(), (1, 1 / factor, 1 / factor), order=3, mode="mirror")
    np.testing.assert_allclose(bin_spline(images, factor, grid="corners").numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_axis_grid_reads_the_pixels(factor: int) -> None:
    """On the grid of the axis the places are whole pixels, which the spline goes through: a plain stride."""
    for height, width in ((16, 24), (17, 21), (15, 22)):
        images = _random(2, height, width)
        first = [n // 2 - factor * (n // factor // 2) for n in (height, width)]
        expected = images[:, first[0] :: factor, first[1] :: factor][:, : height // factor, : width // factor]
        torch.testing.assert_close(bin_spline(images, factor), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", RESAMPLINGS)
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("length", [96, 97, 98, 99, 100, 101])
def test_axis_stays_in_n_half(method: str, factor: int, length: int) -> None:
    """A blob at index `n // 2` lands at index `m // 2`, for odd and even sizes, in y and in x."""
    width = length + 7
    y, x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in (length, width))
    blob = torch.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * (1.5 * factor) ** 2))
    binned = bin_images(blob, factor, method=method)
    assert binned.shape == (length // factor, width // factor)
    for dim, size in enumerate(binned.shape):
        profile = binned.sum(1 - dim)
        index = torch.arange(size, dtype=torch.float64)
        assert float((profile * index).sum() / profile.sum()) == pytest.approx(size // 2, abs=1e-3)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("size", [6, 8, 7, 9])
def test_fourier_is_exact_for_band_limited_waves(factor: int, size: int) -> None:
    """A wave below the new Nyquist frequency is read exactly at the new places, with its amplitude."""
    length = size * factor
    places = (torch.arange(size, dtype=torch.float64) - size // 2) * factor + length // 2
    x = torch.arange(length, dtype=torch.float64)
    for k in range((size + 1) // 2):
        wave, expected = (torch.cos(2 * math.pi * k * at / length + 0.7) for at in (x, places))
        found = bin_fourier(wave.expand(2 * factor, -1), factor)
        torch.testing.assert_close(found, expected.expand(2, -1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", RESAMPLINGS)
def test_constants_stay(method: str) -> None:
    """A constant image stays that constant, for any size and factor."""
    for n in (16, 17, 18, 19):
        for factor in (2, 3, 4):
            found = bin_images(torch.full((n, n + 1), 3.5, dtype=torch.float64), factor, method=method)
            torch.testing.assert_close(found, torch.full_like(found, 3.5), rtol=1e-9, atol=0)


def test_fourier_preserves_the_mean() -> None:
    """Cropping the spectrum keeps the zero frequency: the mean of an image stays."""
    images = _random(3, 24, 36) + 2
    for factor in (2, 3, 4):
        torch.testing.assert_close(bin_fourier(images, factor).mean((-2, -1)), images.mean((-2, -1)))


@pytest.mark.parametrize("method", RESAMPLINGS)
def test_factor_one_changes_nothing(method: str) -> None:
    """Binning by 1 is the identity."""
    images = _random(2, 5, 7)
    assert torch.equal(bin_images(images, 1, method=method), images)


@pytest.mark.parametrize("method", RESAMPLINGS)
def test_binning_is_linear_and_batched(method: str) -> None:
    """Binning is linear; a stack equals its images; leading axes pass through; gradients flow."""
    a, b = _random(2, 3, 9, 12), _random(2, 3, 9, 12, seed=1)
    found = bin_images(a, 2, method=method)
    assert found.shape == (2, 3, 4, 6)
    torch.testing.assert_close(bin_images(2 * a - b, 2, method=method), 2 * found - bin_images(b, 2, method=method))
    torch.testing.assert_close(found[1, 2], bin_images(a[1, 2], 2, method=method), rtol=0, atol=1e-14)
    with torch.random.fork_rng(devices=[]):  # gradcheck draws from the global generator
        images = _random(5, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: bin_images(x, 2, method=method), images)


@pytest.mark.parametrize("method", RESAMPLINGS)
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.uint8, torch.float32),
    ],
)
def test_dtype_is_kept(method: str, factor: int, dtype: torch.dtype, result: torch.dtype) -> None:
    """A floating dtype is kept; integers give float32."""
    assert bin_images(_random(6, 8).abs().to(dtype), factor, method=method).dtype == result


def test_errors() -> None:
    """Too small images, factors below 1, unknown methods and grids say what was expected."""
    with pytest.raises(ValueError, match=r"at least 8 pixels a side to bin by 4, got \(9, 7\)"):
        bin_images(torch.zeros(9, 7), 4)
    with pytest.raises(ValueError, match="`factor` to be more than 0, got 0"):
        bin_fourier(torch.zeros(8, 8), 0)
    with pytest.raises(ValueError, match="`method` to be one of 'spline', 'fourier', got 'mean'"):
        bin_images(torch.zeros(8, 8), 2, method="mean")
    with pytest.raises(ValueError, match="`grid` to be one of 'axis', 'corners', got 'centre'"):
        bin_spline(torch.zeros(8, 8), 2, grid="centre")
    with pytest.raises(ValueError, match=r"`images` of shape \(\.\.\., y, x\)"):
        bin_spline(torch.zeros(8), 2)
    assert GRIDS == ("axis", "corners")


# --- shifting and turning ---------------------------------------------------------------------------------------------


def _turn(angle_deg: float, magnification: float = 1.0) -> np.ndarray:
    """A matrix on (x, y)."""
    angle = math.radians(angle_deg)
    return magnification * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


MATRICES = np.stack([_turn(20), _turn(-75, 1.1), np.array([[0.9, 0.3], [-0.1, 1.2]])])
SHIFTS = np.array([[1.3, -2.2], [0.0, 3.5], [-4.25, 0.75]])


def _passed(frequency: np.ndarray) -> np.ndarray:
    """A soft edge at 0.5 cycles per pixel."""
    return scipy.special.erfc((frequency - 0.5) / 0.01) / 2


def _twice_as_fine(image: np.ndarray, on_yx: np.ndarray) -> np.ndarray:
    """Waves of the mirrored image that the turned pixels can show, with a value between each two pixels."""
    # A position y of the result is `on_yx @ y` of the image, so a wave k of the image is `on_yx.T @ k` of the result.
    k = np.stack(np.meshgrid(*(np.linspace(0, 0.5, size) for size in image.shape), indexing="ij"))
    shown = _passed(np.einsum("ij,iyx->jyx", np.abs(on_yx), k)).prod(axis=0)
    image = scipy.fft.idctn(scipy.fft.dctn(image, type=1) * shown, type=1)
    for axis, size in enumerate(image.shape):
        zeros = np.zeros((*image.shape[:axis], 2 * size - 1, *image.shape[axis + 1 :]))
        np.moveaxis(zeros, axis, 0)[::2] = np.moveaxis(image, axis, 0)
        edge = _passed(np.linspace(0, 1, 2 * size - 1)).reshape([-1 if i == axis else 1 for i in range(2)])
        # At the ends the mirrored row of zeros and pixels has a pixel once, as the transform counts it.
        image = scipy.fft.idct(2 * edge * scipy.fft.dct(zeros, type=1, axis=axis), type=1, axis=axis)
    return image


@pytest.mark.parametrize("shape", [None, (41, 44), (30, 57)])
def test_transform_equals_scipy(shape: tuple[int, int] | None) -> None:
    """Within the image the result is SciPy's mirrored cubic spline through the image on a grid twice as fine.

    It is read about pixel n // 2 of both images.
    """
    images = _random(3, 37, 50)
    found = transform_images(images, MATRICES, SHIFTS, shape=shape, fill="edge").numpy()
    size = np.array(shape or (37, 50))
    assert found.shape == (3, *size)
    for image, matrix, shift, result in zip(images.numpy(), MATRICES, SHIFTS, found, strict=True):
        on_yx = matrix[::-1, ::-1]
        offset = np.array([37 // 2, 50 // 2]) + shift - on_yx @ (size // 2)
        fine = _twice_as_fine(image, on_yx)
        expected = scipy.ndimage.affine_transform(fine, 2 * on_yx, 2 * offset, tuple(size), order=3, mode="mirror")
        places = np.einsum("ij,jyx->iyx", on_yx, np.indices(size)) + offset[:, None, None]
        inside = ((places >= 0) & (places <= np.array([36, 49])[:, None, None])).all(axis=0)
        assert inside.mean() > 0.3
        np.testing.assert_allclose(result[inside], expected[inside], atol=1e-9)


@pytest.mark.parametrize("angle", [3.0, 45.0])
def test_turned_images_keep_their_noise(angle: float) -> None:
    """Turning an image keeps its power up to 0.45 cycles per pixel in every direction, between pixels as on them."""
    noise = torch.randn(12, 256, 256, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    turned = transform_images(noise, np.stack([_turn(angle)] * 12), np.full((12, 2), 0.5))[:, 64:192, 64:192]
    window = torch.hann_window(128, dtype=torch.float64)
    power = torch.fft.fft2(turned * window[:, None] * window).abs().square().mean(dim=0) / window.square().sum() ** 2
    k = torch.fft.fftfreq(128, dtype=torch.float64)
    radius, direction = torch.hypot(k[:, None], k), torch.atan2(k.abs()[:, None], k.abs())
    for low, high in ((0.2, 0.35), (0.35, 0.45)):
        for first in range(3):
            sector = (direction >= first * math.pi / 6) & (direction < (first + 1) * math.pi / 6)
            assert float(power[(radius >= low) & (radius < high) & sector].mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", [(2, 2), (2, 5), (7, 8), (16, 33)])
def test_transform_by_nothing(size: tuple[int, int]) -> None:
    """Without a turn and a shift the images stay, for any size."""
    images = _random(2, *size)
    same = transform_images(images, np.stack([np.eye(2)] * 2), np.zeros((2, 2)))
    torch.testing.assert_close(same, images, rtol=1e-12, atol=1e-12)


def test_transform_by_whole_pixels() -> None:
    """A shift (2, -3) reads two rows below and three columns to the left; the rest is the mean or the edge."""
    image = _random(1, 9, 12)
    one, shift = np.eye(2)[None], np.array([[2.0, -3.0]])
    found = transform_images(image, one, shift)[0]
    torch.testing.assert_close(found[:7, 3:], image[0, 2:, :9], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[7:], torch.full((2, 12), float(image.mean()), dtype=torch.float64))
    torch.testing.assert_close(found[:, :3], torch.full((9, 3), float(image.mean()), dtype=torch.float64))
    edge = transform_images(image, one, shift, fill="edge")[0]
    torch.testing.assert_close(edge[7:, 3:], image[0, -1:, :9].expand(2, -1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(edge[:7, :3], image[0, 2:, :1].expand(-1, 3), rtol=1e-9, atol=1e-9)


def test_transform_turns_about_the_axis() -> None:
    """A quarter turn takes +x of the result to +y of the image, about pixel n // 2 of either size."""
    image = torch.zeros(1, 9, 14)
    image[0, 9 // 2 + 3, 14 // 2] = 1  # at +3 along y
    found = transform_images(image, _turn(90)[None], np.zeros((1, 2)), shape=(14, 9), fill="edge")[0]
    assert np.unravel_index(int(found.argmax()), (14, 9)) == (14 // 2, 9 // 2 + 3)
    assert float(found.max()) == pytest.approx(1, abs=1e-5)


def test_transform_is_linear_batched_and_differentiable() -> None:
    """A stack equals its images; sums are kept; gradients flow; chunks of rows make no difference."""
    a, b = _random(3, 8, 11), _random(3, 8, 11, seed=1)
    found = transform_images(a, MATRICES, SHIFTS)
    torch.testing.assert_close(
        transform_images(2 * a - b, MATRICES, SHIFTS), 2 * found - transform_images(b, MATRICES, SHIFTS)
    )
    torch.testing.assert_close(found[1:2], transform_images(a[1:2], MATRICES[1:2], SHIFTS[1:2]), rtol=0, atol=0)
    with torch.random.fork_rng(devices=[]):  # gradcheck draws from the global generator
        images = _random(1, 5, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: transform_images(x, MATRICES[:1], 0.1 * SHIFTS[:1]), images)


def test_transform_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows are made at a time changes nothing."""
    images = _random(3, 8, 11)
    expected = transform_images(images, MATRICES, SHIFTS)
    monkeypatch.setattr(resample, "_PLACES", 25)
    assert torch.equal(transform_images(images, MATRICES, SHIFTS), expected)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [(torch.float16, torch.float16), (torch.float32, torch.float32), (torch.int8, torch.float32)],
)
def test_transform_keeps_the_dtype(dtype: torch.dtype, result: torch.dtype) -> None:
    """A floating dtype is kept; integers give float32."""
    assert transform_images((5 * _random(3, 6, 8)).to(dtype), MATRICES, SHIFTS).dtype == result


def test_transform_errors() -> None:
    """Matrices and shifts for other images, unknown fills and single rows say what was expected."""
    images = torch.zeros(3, 6, 8)
    with pytest.raises(ValueError, match=r"shapes \(3, 2, 2\) and \(3, 2\), one for each image, got \(2, 2, 2\) and"):
        transform_images(images, MATRICES[:2], SHIFTS)
    with pytest.raises(ValueError, match="`fill` to be one of 'mean', 'edge', got 'zero'"):
        transform_images(images, MATRICES, SHIFTS, fill="zero")
    with pytest.raises(ValueError, match=r"`images` of at least 2 pixels a side, got \(1, 8\)"):
        transform_images(images[:, :1], MATRICES, SHIFTS)
    with pytest.raises(ValueError, match=r"`images` of shape \(image, y, x\)"):
        transform_images(images[0], MATRICES, SHIFTS)


@pytest.mark.parametrize("shape", [(20, 27, 24), (10, 54, 31), (20, 45, 40)])
def test_resampled_volumes_keep_their_places(shape: tuple[int, int, int]) -> None:
    """A ball's centre moves by `(i + 1/2) · old / new - 1/2`, and the mean stays."""
    own, place, width = (20, 45, 40), np.array([8.0, 30.0, 12.0]), 3.0
    grid = np.stack(np.meshgrid(*map(np.arange, own), indexing="ij"), axis=-1)
    volume = torch.from_numpy(np.exp(-((grid - place) ** 2).sum(axis=-1) / (2 * width**2)))
    found = resample_volume(volume + 1, shape)
    assert found.shape == shape
    assert found.dtype == torch.float32
    assert float(found.mean()) == pytest.approx(float(volume.mean()) + 1, rel=1e-5)
    weights = (found - 1).numpy()
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    center = (grid * weights[..., None]).sum(axis=(0, 1, 2)) / weights.sum()
    back = (center + 0.5) * np.array(own) / np.array(shape) - 0.5
    assert np.abs(back - place).max() < 0.1
