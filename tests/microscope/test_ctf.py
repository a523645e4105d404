"""The contrast transfer function: the textbook's, the right way round, and not around the image's edges."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import ContrastTransfer, TiltMetadata, TiltSeries

#: λ of 300 kV, Å.
WAVELENGTH = 0.0196875
PIXEL = 4.0


def _textbook(q: np.ndarray, defocus: float, contrast: float = 0.07, aberration: float = 2.7) -> np.ndarray:
    chi = np.pi * WAVELENGTH * defocus * 1e4 * q**2 - np.pi / 2 * aberration * 1e7 * WAVELENGTH**3 * q**4
    return np.sin(chi + np.arcsin(contrast))


def _spectrum(ctf: ContrastTransfer, size: int = 512, pixel: float = PIXEL) -> Tensor:
    """What is left of a single bright pixel, in Fourier space."""
    image = torch.zeros(1, size, size, dtype=torch.float64)
    image[0, size // 2, size // 2] = 1.0
    return torch.fft.fft2(torch.fft.ifftshift(ctf.apply(image, pixel)[0])).real


def test_textbook() -> None:
    """The function is `sin(χ + asin a)` at each radius; at 0 it is the amplitude contrast."""
    q = np.linspace(0, 0.12, 200)
    np.testing.assert_allclose(ContrastTransfer(defocus=2.3).curve(q), _textbook(q, 2.3), atol=2e-3)
    contrast = ContrastTransfer(defocus=2.3, amplitude_contrast=0.1)
    assert contrast.wavelength == pytest.approx(WAVELENGTH, rel=1e-5)
    assert float(contrast.curve(np.zeros(1))[0]) == pytest.approx(0.1)
    assert ContrastTransfer(defocus=1.0, voltage=200.0).wavelength == pytest.approx(0.025079, rel=1e-4)


def test_images_are_multiplied_by_it() -> None:
    found = _spectrum(ContrastTransfer(defocus=1.2))
    expected = _textbook(np.abs(np.fft.fftfreq(512, PIXEL)), 1.2)
    np.testing.assert_allclose(found[0], expected, atol=0.02)
    np.testing.assert_allclose(found[:, 0], expected, atol=0.02)


def test_dark_stays_dark() -> None:
    """Underfocus makes a dark particle darker than its surroundings."""
    y, x = np.mgrid[:128, :128] - 64
    particle = -torch.from_numpy(np.exp(-(x**2 + y**2) / (2 * 5.0**2)))[None]
    seen = ContrastTransfer(defocus=3.0).apply(particle, PIXEL)[0]
    assert float(seen[64, 64]) < float(seen.median()) - 0.1


def test_astigmatism() -> None:
    """Along its angle the defocus is larger by it, across it smaller."""
    found = _spectrum(ContrastTransfer(defocus=1.2, astigmatism=0.2, astigmatism_angle=90.0))
    q = np.abs(np.fft.fftfreq(512, PIXEL))
    np.testing.assert_allclose(found[:, 0], _textbook(q, 1.4), atol=0.03)  # along y
    np.testing.assert_allclose(found[0], _textbook(q, 1.0), atol=0.03)
    both = _spectrum(ContrastTransfer(defocus=1.2, astigmatism=0.2, astigmatism_angle=45.0))
    diagonal = np.arange(1, 100)
    q = np.hypot(*np.stack([diagonal, diagonal])) / (512 * PIXEL)
    np.testing.assert_allclose(both[diagonal, diagonal], _textbook(q, 1.4), atol=0.03)  # from +x to +y
    np.testing.assert_allclose(both[-diagonal, diagonal], _textbook(q, 1.0), atol=0.03)


def test_nothing_wraps() -> None:
    """What lies at one edge does not appear at the other."""
    image = torch.zeros(1, 96, 96)
    image[0, :, :3] = 1.0
    seen = ContrastTransfer(defocus=1.0).apply(image, PIXEL)[0]
    assert seen[:, :20].abs().max() > 0.1
    assert seen[:, -20:].abs().max() < 2e-3


def test_envelope_gain_and_phase_plate() -> None:
    q = np.linspace(0, 0.1, 50)
    plain = ContrastTransfer(defocus=2.0).curve(q).numpy()
    falling = ContrastTransfer(defocus=2.0, b_factor=400.0).curve(q)
    np.testing.assert_allclose(falling, plain * np.exp(-100 * q**2), atol=1e-12)
    gained = ContrastTransfer(defocus=2.0, radial_gain=((0.0, 1.0), (0.05, 3.0))).curve(q)
    np.testing.assert_allclose(gained, plain * np.interp(q, [0.0, 0.05], [1.0, 3.0]), atol=1e-12)
    plate = ContrastTransfer(defocus=0.5, amplitude_contrast=0.0, phase_shift=90.0)
    assert float(plate.curve(np.zeros(1))[0]) == pytest.approx(1.0)


def test_phase_flip() -> None:
    """Where the function is negative the sign is turned, so that all of the spectrum is positive."""
    image = torch.zeros(1, 512, 512, dtype=torch.float64)
    image[0, 256, 256] = 1.0
    ctf = ContrastTransfer(defocus=1.2)
    corrected = ctf.correct(ctf.apply(image, PIXEL), PIXEL)[0]
    spectrum = torch.fft.fft2(torch.fft.ifftshift(corrected)).real
    expected = np.abs(_textbook(np.abs(np.fft.fftfreq(512, PIXEL)), 1.2))
    np.testing.assert_allclose(spectrum[0], expected, atol=0.05)


def test_wiener() -> None:
    """The filter is `ctf / (ctf² + 1 / snr)`; with much signal the image comes back, but for the zeros."""
    y, x = np.mgrid[:128, :128] - 64
    particle = -torch.from_numpy(np.exp(-(x**2 + y**2) / (2 * 3.0**2)))[None]
    ctf = ContrastTransfer(defocus=0.5)
    back = ctf.correct(ctf.apply(particle, PIXEL), PIXEL, method="wiener", snr=1e4)
    assert float((back - particle).norm() / particle.norm()) < 0.05
    with pytest.raises(ValueError, match="`method` to be one of 'phase-flip', 'wiener', got 'magic'"):
        ctf.correct(particle, PIXEL, method="magic")


def test_series_is_corrected_by_its_metadata() -> None:
    tilts = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    metadata = TiltMetadata(sections=np.arange(2), defocus_um=np.array([1.0, 2.0]))
    series = TiltSeries(tilts=tilts, tilt_angles=np.array([0.0, 3.0]), pixel_size=PIXEL, metadata=metadata)
    expected = ContrastTransfer(defocus=(1.0, 2.0)).correct(tilts, PIXEL)
    assert torch.equal(series.ctf_corrected().tilts, expected)
    with pytest.raises(ValueError, match=r"b\.mrc: expected metadata with a defocus, got none; set `ctf`"):
        TiltSeries(tilts=tilts, tilt_angles=np.array([0.0, 3.0]), name="b.mrc").ctf_corrected()


def test_draw() -> None:
    """A series is off by up to the spread, each tilt by the jitter besides; the same generator draws the same."""
    ctf = ContrastTransfer(defocus=3.0, spread=1.0, jitter=0.02)
    drawn = [np.array(ctf.drawn(41, np.random.default_rng(seed)).defocus) for seed in range(200)]
    means = np.array([d.mean() for d in drawn])
    assert 1.9 < means.min() < 2.2
    assert 3.8 < means.max() < 4.1
    assert np.mean([d.std() for d in drawn]) == pytest.approx(0.02, rel=0.05)
    assert ctf.drawn(41, np.random.default_rng(3)) == ctf.drawn(41, np.random.default_rng(3))
    again = ctf.drawn(41, np.random.default_rng(3))
    assert again.drawn(41, np.random.default_rng(4)) == again


def test_one_defocus_for_each_tilt() -> None:
    image = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    both = ContrastTransfer(defocus=(1.0, 2.0)).apply(image, PIXEL)
    first = ContrastTransfer(defocus=1.0).apply(image, PIXEL)
    inner = (slice(24, 40), slice(24, 40))  # the padding is that of the larger defocus
    assert torch.allclose(both[0][inner], first[0][inner], atol=0.02)
    assert not torch.allclose(both[1][inner], first[1][inner], atol=0.2)
    with pytest.raises(ValueError, match="expected `defocus` of 2 tilts, got 3 numbers"):
        ContrastTransfer(defocus=(1.0, 2.0, 3.0)).apply(image, PIXEL)


def test_metadata() -> None:
    """What a program left behind is taken; a tilt of unknown defocus gets the median."""
    metadata = TiltMetadata(
        sections=np.arange(3),
        defocus_um=np.array([2.0, np.nan, 3.0]),
        astigmatism_um=np.array([0.1, 0.1, 0.2]),
        voltage_kv=200.0,
        source="a.xml",
    )
    ctf = ContrastTransfer.from_metadata(metadata, amplitude_contrast=0.1)
    assert ctf.defocus == (2.0, 2.5, 3.0)
    assert ctf.astigmatism == (0.1, 0.1, 0.2)
    assert (ctf.voltage, ctf.amplitude_contrast, ctf.spherical_aberration) == (200.0, 0.1, 2.7)
    with pytest.raises(ValueError, match=r"b\.mdoc: expected a defocus of each tilt, got none"):
        ContrastTransfer.from_metadata(TiltMetadata(sections=np.arange(3), source="b.mdoc"))


def test_json() -> None:
    ctf = ContrastTransfer(defocus=(1.0, 2.0), radial_gain=((0.0, 1.0), (0.1, 2.0)), b_factor=3.0)
    assert ContrastTransfer.from_dict(json.loads(json.dumps(ctf.to_dict()))) == ctf
    with pytest.raises(ValueError, match="expected the parameters of a contrast transfer function"):
        ContrastTransfer.from_dict({"defocus": 1.0, "focus": 2.0})


def test_bad_parameters() -> None:
    image = torch.zeros(1, 32, 32)
    with pytest.raises(ValueError, match="expected `pixel_size` in Å, which the contrast transfer function needs"):
        ContrastTransfer(defocus=1.0).apply(image, 0.0)
    with pytest.raises(ValueError, match="finite numbers for `defocus`"):
        ContrastTransfer(defocus=(1.0, float("nan")))
    with pytest.raises(ValueError, match="finite numbers for `defocus`"):
        ContrastTransfer(defocus=())
    with pytest.raises(ValueError, match="`radial_gain` with increasing frequencies"):
        ContrastTransfer(defocus=1.0, radial_gain=((0.1, 1.0), (0.1, 2.0)))


def test_rings_finer_than_the_image() -> None:
    """A warning names the frequency beyond which the image cannot carry the rings."""
    with pytest.warns(
        UserWarning, match=r"a defocus of 20 µm makes rings that are too fine for \d+ pixels of 1 Å beyond"
    ):
        ContrastTransfer(defocus=20.0).apply(torch.zeros(1, 64, 64), 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["phase-flip", "wiener"])
def test_cuda_equals_cpu(method: str) -> None:
    """On the GPU tilts are filtered and corrected as on the CPU, with all parameters that a tilt can have."""
    ctf = ContrastTransfer(
        defocus=(2.0, 3.0),
        astigmatism=0.3,
        astigmatism_angle=20.0,
        phase_shift=10.0,
        radial_gain=((0.0, 1.0), (0.1, 0.5)),
    )
    images = torch.randn(2, 64, 72, generator=torch.Generator().manual_seed(0))
    expected, found = (ctf.apply(one, 10.0) for one in (images, images.cuda()))
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    back = ctf.correct(found, 10.0, method=method)
    torch.testing.assert_close(back.cpu(), ctf.correct(expected, 10.0, method=method), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_cuda_waits_for_nothing() -> None:
    """A contrast transfer function needs nothing from the host, however many tilts there are."""
    ctf, images = ContrastTransfer(defocus=(2.0, 3.0), phase_shift=10.0), torch.zeros(2, 64, 72).cuda()
    ctf.apply(images, 10.0)
    try:
        torch.cuda.set_sync_debug_mode("error")
        ctf.correct(ctf.apply(images, 10.0), 10.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_defocus_in_other_units_is_refused() -> None:
    """30,000 is one in Å."""
    with pytest.raises(ValueError, match="expected `defocus` in µm, of 100 at most, got 30000.0; it seems to be in nm"):
        ContrastTransfer(defocus=30000.0)
