"""The defocus of a single image: found with an honest error where there are rings, refused where there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import ContrastTransfer, DefocusEstimate, fit_defocus
from faket_aug.formats.mrc import read_mrc


def _transfer(size: int, pixel_size: float, defocus: float, astigmatism: float, angle: float, phase: float) -> Tensor:
    """The transfer function of Rohou and Grigorieff's equations 2 to 5, 300 kV, 2.7 mm, 0.07, times an envelope."""
    k = np.fft.fftfreq(size, pixel_size)
    x, y = np.meshgrid(k, k)
    squared = x**2 + y**2
    wavelength = 12.2643 / np.sqrt(300e3 + 0.978466e-6 * 300e3**2)
    along = 1e4 * (defocus + astigmatism * np.cos(2 * (np.arctan2(y, x) - np.radians(angle))))
    chi = np.pi * wavelength * squared * (along - 0.5 * wavelength**2 * squared * 2.7e7)
    whole = chi + np.radians(phase) + np.arctan(0.07 / np.sqrt(1 - 0.07**2))
    return torch.from_numpy(-np.sin(whole) * np.exp(-60 * squared / 4))


def _image(
    seed: int,
    defocus: float,
    *,
    size: int = 256,
    pixel_size: float = 3.0,
    astigmatism: float = 0.0,
    angle: float = 0.0,
    phase: float = 0.0,
    signal: float = 2.0,
) -> Tensor:
    """White noise seen through the transfer function, cut out so that nothing is periodic, and white noise."""
    generator = torch.Generator().manual_seed(seed)
    transfer = _transfer(2 * size, pixel_size, defocus, astigmatism, angle, phase)
    object_ = torch.randn(2 * size, 2 * size, generator=generator, dtype=torch.float64)
    seen = torch.fft.ifft2(torch.fft.fft2(object_) * transfer).real[:size, :size]
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return (1000 + 30 * (signal**0.5 * seen + noise)).float()


def _turned(found: DefocusEstimate) -> complex:
    """Astigmatism as a number of the plane, in which directions half a turn apart are the same."""
    return complex(found.astigmatism * np.exp(2j * np.radians(found.astigmatism_angle)))


@pytest.mark.parametrize(
    ("defocus", "astigmatism", "angle", "pixel_size"),
    [(0.8, 0.0, 0.0, 1.5), (0.8, 0.1, 70.0, 1.5), (2.2, 0.0, 0.0, 3.0), (2.2, 0.15, -35.0, 3.0), (4.5, 0.3, 20.0, 3.0)],
)
def test_known_defocus_is_found(defocus: float, astigmatism: float, angle: float, pixel_size: float) -> None:
    """Defocus and astigmatism come out within 2 % of the defocus, and within a few of their errors."""
    image = _image(1, defocus, astigmatism=astigmatism, angle=angle, pixel_size=pixel_size, signal=3.0)
    found = fit_defocus(image, pixel_size)
    assert abs(found.defocus - defocus) < 0.02 * defocus
    assert abs(found.defocus - defocus) < 4 * found.defocus_error
    assert 0.0002 * defocus < found.defocus_error < 0.01 * defocus
    true = astigmatism * np.exp(2j * np.radians(angle))
    assert abs(_turned(found) - true) < min(0.02 * defocus, 5 * found.astigmatism_error)
    assert found.score > 0.6
    assert found.resolution < 12
    assert found.ctf == ContrastTransfer(
        defocus=found.defocus, astigmatism=found.astigmatism, astigmatism_angle=found.astigmatism_angle
    )


def test_errors_are_honest() -> None:
    """Over many images, what the fits are off by has the size that their errors say."""
    found = [fit_defocus(_image(seed, 2.2, size=192), 3.0, ctf=_range(1.5, 3.0)) for seed in range(20)]
    off = np.array([one.defocus - 2.2 for one in found])
    said = np.array([one.defocus_error for one in found])
    # A χ² of 20 numbers, with errors known from nine parts each: 1 %, 99 %.
    assert 0.6 < np.sqrt(np.mean(off**2) / np.mean(said**2)) < 1.45
    assert abs(off.mean()) < 3 * np.sqrt(np.mean(said**2) / len(found))
    assert np.mean(np.abs(off) < 2 * said) > 0.75
    astigmatism = np.array([_turned(one) for one in found])
    claimed = np.sqrt(2 * np.mean([one.astigmatism_error**2 for one in found]))
    assert 0.6 < np.sqrt(np.mean(np.abs(astigmatism) ** 2)) / claimed < 1.5


def _range(low: float, high: float, **settings: float) -> ContrastTransfer:
    return ContrastTransfer(defocus=(low + high) / 2, spread=(high - low) / 2, **settings)


def test_images_of_one_defocus_are_averaged() -> None:
    """Several images tell what one of them does not."""
    images = torch.stack([_image(seed, 2.2, signal=0.15) for seed in range(8)])
    with pytest.raises(ValueError, match="expected rings"):
        fit_defocus(images[0], 3.0)
    found = fit_defocus(images, 3.0)
    assert abs(found.defocus - 2.2) < 0.044
    assert found.significance > 7


def test_phase_plate_and_microscope_are_taken_from_the_ctf() -> None:
    """A phase plate moves the rings; the fit knows it, and hands it on."""
    image = _image(3, 1.5, phase=90.0)
    found = fit_defocus(image, 3.0, ctf=_range(0.5, 3.0, phase_shift=90.0))
    assert abs(found.defocus - 1.5) < 0.03
    assert found.ctf.phase_shift == 90.0


def test_scale_mean_and_whole_numbers_do_not_matter() -> None:
    """The camera's unit is no matter, nor are a few hot pixels and a beam that is not even."""
    image = _image(4, 2.2, size=320)
    before = fit_defocus(image, 3.0)
    hot = image.clone()
    hot[::64, 5] = 1e6
    slope = torch.linspace(0.8, 1.2, 320)[:, None]
    assert fit_defocus((40 * image).to(torch.int32), 3.0).defocus == pytest.approx(before.defocus, abs=0.002)
    assert fit_defocus(hot * slope, 3.0).defocus == pytest.approx(before.defocus, abs=0.03)


def test_profile_is_that_of_the_rings() -> None:
    """The averaged rings have their maxima and zeros where the function has them."""
    found = fit_defocus(_image(5, 2.2, astigmatism=0.2, size=384), 3.0)
    wave = found.ctf.curve(found.frequencies).numpy() ** 2 - 0.5
    seen = found.frequencies < 1 / found.resolution
    assert np.corrcoef(found.rings[seen], wave[seen])[0, 1] > 0.85
    assert np.corrcoef(found.fit[seen], wave[seen])[0, 1] > 0.9


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_noise_is_refused() -> None:
    """White noise, and noise with a smooth spectrum of its own, have no rings."""
    noise = torch.randn(4, 192, 192, generator=torch.Generator().manual_seed(0))
    k = torch.hypot(torch.fft.fftfreq(192)[:, None], torch.fft.rfftfreq(192)).clamp_min(1 / 192)
    pink = torch.fft.irfft2(torch.fft.rfft2(noise) / k, s=(192, 192))
    for image in (*noise, *pink):
        with pytest.raises(ValueError, match="expected rings of a defocus from 0.2 µm to 10 µm, got a power"):
            fit_defocus(image, 1.5)


def test_first_ring_beyond_the_sampling_is_refused() -> None:
    """1.5 µm has its first zero at 17 Å, which pixels of 10 Å do not show."""
    image = _image(6, 1.5, pixel_size=10.0, signal=10.0)
    with pytest.raises(ValueError, match=r"first zero .* got none for a defocus from 0.5 to 2 µm; take"):
        fit_defocus(image, 10.0, ctf=_range(0.5, 2.0))
    with pytest.raises(ValueError, match=r"2.65 µm, below which the first zero lies beyond 22.\d Å, to 10 µm"):
        fit_defocus(image, 10.0)
    assert abs(fit_defocus(_image(6, 4.5, pixel_size=10.0), 10.0).defocus - 4.5) < 0.09


def test_end_of_the_range_is_warned_of() -> None:
    """A defocus out of the range is not passed off as one at its end."""
    with pytest.warns(UserWarning, match=r"2.1 µm, lies at an end of what was searched, 1.5 to 2.1 µm"):
        fit_defocus(_image(7, 2.2), 3.0, ctf=_range(1.5, 2.1))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((128, 128), 7.0), "expected `images` that vary"),
        (torch.zeros(3, 40, 200), "64 pixels or more"),
        (torch.zeros(128), r"shape \(y, x\) or \(image, y, x\)"),
        (torch.zeros(128, 128).index_fill(0, torch.tensor(3), float("nan")), "images: expected finite"),
    ],
)
def test_bad_images_are_refused(images: Tensor, message: str) -> None:
    """Constant, small, flat and broken images are named."""
    with pytest.raises(ValueError, match=message):
        fit_defocus(images, 1.0)


def test_few_rings_are_refused() -> None:
    """A spectrum of a dozen numbers along its radius holds no rings."""
    with pytest.raises(ValueError, match="12 rings or more from 30 to 10 Å, got 11 in tiles of 168 pixels of 1 Å"):
        fit_defocus(_image(1, 2.2, size=168), 1.0, resolution_range=(30.0, 10.0))


@pytest.mark.parametrize("pixel_size", [0.0, -1.0, float("nan")])
def test_pixel_size_is_needed(pixel_size: float) -> None:
    """Without a pixel size rings mean nothing."""
    with pytest.raises(ValueError, match="expected `pixel_size` in Å"):
        fit_defocus(_image(1, 2.2), pixel_size)


def test_range_is_needed() -> None:
    """A known defocus is not searched, and those of tilts are not one."""
    with pytest.raises(ValueError, match="with a spread"):
        fit_defocus(_image(1, 2.2), 3.0, ctf=ContrastTransfer(defocus=2.2))
    with pytest.raises(ValueError, match="one defocus and one phase shift"):
        fit_defocus(_image(1, 2.2), 3.0, ctf=ContrastTransfer(defocus=(2.2, 2.3), spread=1.0))


# --- real images ------------------------------------------------------------------------------------------------------


def _micrograph(folder: Path, name: str) -> tuple[Tensor, float]:
    values = mrcfile.read(folder / f"{name}.mrc").astype(np.float32)
    return torch.from_numpy(values), json.loads((folder / f"{name}.json").read_text())["pixel_size_A"]


def test_real_micrograph(reference: Path, reference_file: Callable[[Path, str], Path]) -> None:
    """A micrograph has the defocus that its zeros lie at; its parts agree with the whole within their errors."""
    folder = reference_file(reference, "data/real/epu_micrographs")
    image, pixel_size = _micrograph(folder, "falcon_epu2.9_crop896")
    found = fit_defocus(image, pixel_size)
    # Set was 2.2 µm; by eye the first zeros lie at 0.0435 and 0.0610 1/Å: 2.63 and 2.70 µm.
    assert abs(found.defocus - 2.70) < 0.06
    assert 0.005 < found.defocus_error < 0.04
    assert found.astigmatism < 4 * found.astigmatism_error
    assert found.score > 0.7
    for part in (image[:, :640], image[:, 256:], image[:640], image[256:]):
        apart = fit_defocus(part, pixel_size)
        assert abs(apart.defocus - found.defocus) < 2 * apart.defocus_error


def test_faint_rings_are_refused(reference: Path, reference_file: Callable[[Path, str], Path]) -> None:
    """A part of a micrograph whose rings cannot be told from noise is refused, not guessed."""
    image, pixel_size = _micrograph(reference_file(reference, "data/real/epu_micrographs"), "k2_epu1.2_crop896")
    with pytest.raises(ValueError, match="expected rings"):
        fit_defocus(image, pixel_size)


def test_binned_tilts_are_refused(reference: Path, reference_file: Callable[[Path, str], Path]) -> None:
    """At 10 Å the rings of 1.9 µm lie beyond the sampling."""
    tilts, _ = read_mrc(reference_file(reference, "data/real/empiar10499_ts00254/00254.mrc"), stack=True)
    with pytest.raises(ValueError, match="below which the first zero lies beyond"):
        fit_defocus(tilts[18:23], 10.0)
