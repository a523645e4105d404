"""Weighting in Fourier space: the published filter, the named ones' formulas, and what they do to constants."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug.tomography.filters import FILTERS, filter_projections, fourier_weights, shrec_weights

NAMED = ("ramp", "shepp-logan", "cosine", "hamming", "hann")


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.reference
@pytest.mark.parametrize("size", [48, 64, 128])
def test_golden_shrec_filter(reference: Path, reference_file, size: int) -> None:
    """SHREC's filter is the golden one to 1e-6, zero frequency first."""
    golden = np.load(reference_file(reference, "golden/radon_fbp.npz"))[f"shrec_filter_{size}x{size}"]
    np.testing.assert_allclose(shrec_weights(size, size).numpy(), golden, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "at_quarter", "at_half"),
    [
        ("ramp", 0.25, 0.5),
        ("shepp-logan", 0.25 * math.sin(math.pi / 4) / (math.pi / 4), 0.5 * 2 / math.pi),
        ("cosine", 0.25 * math.sqrt(0.5), 0.0),
        ("hamming", 0.25 * 0.54, 0.5 * 0.08),
        ("hann", 0.25 * 0.5, 0.0),
    ],
)
def test_named_weights(name: str, at_quarter: float, at_half: float) -> None:
    """Each window has its textbook value at zero, half Nyquist and Nyquist (cycles per pixel)."""
    weights = fourier_weights(name, 64)
    assert weights.shape == (33,)
    assert weights.dtype == torch.float64
    found = (float(weights[0]), float(weights[16]), float(weights[32]))
    assert found == pytest.approx((0.0, at_quarter, at_half), abs=1e-12)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("width", [24, 25])
def test_a_wave_is_scaled_by_its_weight(name: str, width: int) -> None:
    """A wave of k cycles a row comes out as itself times the weight at `k / width`: no shift, no padding."""
    column = torch.arange(width, dtype=torch.float64)
    for k in (1, 5, 11):
        wave = torch.cos(2 * math.pi * k * column / width + 0.4).expand(1, 3, -1)
        expected = wave * float(fourier_weights(name, width)[k])
        torch.testing.assert_close(filter_projections(wave, name), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in FILTERS if name != "none"])
@pytest.mark.parametrize("shape", [(12, 16), (11, 17), (16, 9)])
def test_constant_rows_vanish(name: str, shape: tuple[int, int]) -> None:
    """A row without change along x becomes zero under every filter but `none`, whatever the other rows are."""
    rows = _random(2, shape[0], 1).expand(-1, -1, shape[1]) + 100
    assert float(filter_projections(rows, name).abs().max()) < 1e-12 * 100


@pytest.mark.parametrize("name", FILTERS)
def test_rows_keep_no_mean(name: str) -> None:
    """Every filter but `none` leaves each row with mean 0; `none` changes nothing at all."""
    tilts = _random(3, 10, 14) + 5
    found = filter_projections(tilts, name)
    if name == "none":
        assert torch.equal(found, tilts)
    else:
        assert float(found.mean(-1).abs().max()) < 1e-12


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20), (20, 12), (6, 48)])
def test_shrec_by_the_formula(height: int, width: int) -> None:
    """The two-dimensional filter is the design's formula, times the complex transform, real part, less row means."""
    n = max(height, width)
    k_y, k_x = np.fft.fftfreq(height)[:, None] * n, np.fft.fftfreq(width)[None, :] * n
    spread_x, spread_y = int(0.34 * n), int(0.20 * n)
    gauss = np.exp(-((k_x + 1) ** 2) / (2 * spread_x**2) - (k_y + 1) ** 2 / (2 * spread_y**2))
    weights = np.minimum(np.abs(k_x) / int(0.61 * (n // 2)), 1) * (gauss + 0.33) * (k_x**2 + k_y**2 < (n // 2 + 1) ** 2)
    weights /= weights.max()
    np.testing.assert_allclose(shrec_weights(height, width).numpy(), weights, atol=1e-12)
    tilts = _random(2, height, width)
    expected = np.fft.ifft2(np.fft.fft2(tilts.numpy()) * weights).real
    expected -= expected.mean(-1, keepdims=True)
    np.testing.assert_allclose(filter_projections(tilts, "shrec").numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 3), (5, 64), (64, 5), (31, 33), (1, 8)])
def test_shrec_weights_are_weights(height: int, width: int) -> None:
    """For any size SHREC's weights are finite, within [0, 1], with maximum 1."""
    weights = shrec_weights(height, width)
    assert weights.shape == (height, width)
    assert bool(torch.isfinite(weights).all())
    assert float(weights.min()) >= 0
    assert float(weights.max()) == 1.0


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_linear_and_batched(name: str) -> None:
    """Filtering is linear; a stack equals its tilts; leading axes pass through."""
    a, b = _random(2, 3, 9, 12), _random(2, 3, 9, 12, seed=1)
    together = filter_projections(2 * a - 3 * b, name)
    torch.testing.assert_close(together, 2 * filter_projections(a, name) - 3 * filter_projections(b, name))
    torch.testing.assert_close(filter_projections(a, name)[1, 2], filter_projections(a[1, 2], name), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int16, torch.float32),
    ],
)
def test_dtype_is_kept(name: str, dtype: torch.dtype, result: torch.dtype) -> None:
    """A floating dtype is kept; integers give float32."""
    assert filter_projections((10 * _random(2, 6, 10)).to(dtype), name).dtype == result


@pytest.mark.parametrize("name", FILTERS)
def test_gradients(name: str) -> None:
    """Gradients flow through every filter."""
    tilts = _random(1, 4, 6).requires_grad_()
    with torch.random.fork_rng(devices=[]):  # gradcheck draws from the global generator
        assert torch.autograd.gradcheck(lambda p: filter_projections(p, name), tilts)


def test_input_is_left_alone() -> None:
    """The projections given are not changed."""
    tilts = _random(2, 6, 8)
    before = tilts.clone()
    for name in FILTERS:
        filter_projections(tilts, name)
    assert torch.equal(tilts, before)


def test_unknown_filter_lists_all() -> None:
    """An unknown filter is answered with all that exist."""
    listed = ", ".join(repr(name) for name in FILTERS)
    with pytest.raises(ValueError, match=f"expected `filter` to be one of {listed}, got 'wiener'"):
        filter_projections(torch.zeros(1, 4, 4), "wiener")
    assert FILTERS == ("shrec", "ramp", "shepp-logan", "cosine", "hamming", "hann", "none")
    with pytest.raises(ValueError, match=r"`projections` of shape \(\.\.\., y, x\), got \(4,\)"):
        filter_projections(torch.zeros(4))
