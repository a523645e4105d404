"""Means, deviations and ranges: exact where they can be, and never a NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faket_aug import statistics
from faket_aug.statistics import (
    clip_images,
    constant_images,
    match_mean_std,
    mean_std,
    standardize,
    to_unit_range,
    value_range,
)


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_mean_and_population_deviation() -> None:
    """Mean and deviation are NumPy's (population, ddof 0), in float64, of each image by itself."""
    images = 1e4 + _random(2, 3, 5, 7).float()
    mean, std = mean_std(images)
    wide = images.numpy().astype(np.float64)
    assert mean.dtype == std.dtype == torch.float64
    np.testing.assert_allclose(mean.numpy(), wide.mean((-2, -1)), rtol=1e-12)
    np.testing.assert_allclose(std.numpy(), wide.std((-2, -1)), rtol=1e-9)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_standardize(dtype: torch.dtype, accuracy: float) -> None:
    """Each image gets mean 0 and deviation 1, by a positive factor; the dtype stays."""
    images = (300 + 7 * _random(4, 16, 18)).to(dtype)
    found = standardize(images)
    mean, std = mean_std(found)
    assert found.dtype == dtype
    assert float(mean.abs().max()) < accuracy
    assert float((std - 1).abs().max()) < accuracy
    assert np.corrcoef(found[0].flatten(), images[0].flatten())[0, 1] == pytest.approx(1.0)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_match_mean_std(dtype: torch.dtype, accuracy: float) -> None:
    """Each image gets the mean and deviation asked for, up to its dtype's digits."""
    images = (5 + 0.1 * _random(3, 20, 24)).to(dtype)
    wanted_mean, wanted_std = torch.tensor([2000.0, -3.0, 0.0]), torch.tensor([150.0, 0.5, 1.0])
    found = match_mean_std(images, wanted_mean, wanted_std)
    mean, std = mean_std(found)
    assert found.dtype == dtype
    torch.testing.assert_close(mean, wanted_mean.double(), rtol=accuracy, atol=accuracy)
    torch.testing.assert_close(std, wanted_std.double(), rtol=10 * accuracy, atol=0)


@pytest.mark.parametrize("value", [0.0, 1.0, -2000.1, 3e7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_images(value: float, dtype: torch.dtype) -> None:
    """A constant image counts as such, becomes zero when standardised, and the asked mean when matched."""
    images = torch.stack([torch.full((9, 11), value, dtype=dtype), value + (1 + abs(value)) * _random(9, 11).to(dtype)])
    assert constant_images(images) == [0]
    assert float(standardize(images)[0].abs().max()) == 0.0
    matched = match_mean_std(images, torch.tensor([7.0, 7.0]), torch.tensor([2.0, 2.0]))
    assert bool(torch.isfinite(matched).all())
    torch.testing.assert_close(matched[0], torch.full_like(matched[0], 7.0))


numbers = st.one_of(st.floats(-1e6, 1e6, width=32), st.just(0.0), st.just(1.0))


@settings(max_examples=40, deadline=None)
@given(values=st.lists(numbers, min_size=6, max_size=6), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_no_nan_ever(values: list[float], dtype: torch.dtype) -> None:
    """Whatever finite images come, no NaN and no infinity leaves."""
    images = torch.tensor(values, dtype=dtype).reshape(1, 2, 3)
    one = torch.ones(1)
    for found in (standardize(images), match_mean_std(images, one, one), to_unit_range(images)):
        assert bool(torch.isfinite(found).all())
    unit = to_unit_range(images)
    assert 0.0 <= float(unit.min()) <= float(unit.max()) <= 1.0


def test_unit_range_of_the_whole_stack() -> None:
    """The *whole stack's* minimum becomes 0 and its maximum 1; tilts keep their relation; constants become 0."""
    stack = 100 + 5 * _random(3, 4, 5)
    found = to_unit_range(stack)
    low, high = value_range(stack)
    assert (low, high) == (float(stack.min()), float(stack.max()))
    assert (float(found.min()), float(found.max())) == (0.0, 1.0)
    torch.testing.assert_close(found, (stack - low) / (high - low))
    assert float(to_unit_range(torch.full((2, 3, 3), 5.0)).abs().max()) == 0.0


def test_quantiles_resist_hot_pixels() -> None:
    """One hot pixel rescales a stack by its maximum, not by its quantiles; what lies outside is clamped."""
    stack = _random(4, 30, 30)
    clean = to_unit_range(stack, (0.01, 0.99))
    stack[2, 3, 4] = 1e6
    assert float(to_unit_range(stack).median()) < 1e-4
    robust = to_unit_range(stack, (0.01, 0.99))
    assert float(robust[2, 3, 4]) == 1.0
    robust[2, 3, 4] = clean[2, 3, 4]
    torch.testing.assert_close(robust, clean, rtol=0, atol=0.01)


def test_value_range_takes_the_nearest_value() -> None:
    """Quantiles are values of the stack, of nearest rank: no interpolation."""
    stack = torch.arange(101.0).flip(0).reshape(1, 101)
    assert value_range(stack, (0.1, 0.9)) == (10.0, 90.0)
    assert value_range(stack, (0.104, 0.896)) == (10.0, 90.0)
    assert value_range(stack, (0.0, 1.0)) == (0.0, 100.0)
    assert value_range(stack, (0.0, 0.5)) == (0.0, 50.0)


def test_clip_images() -> None:
    """Each image is clipped at its own quantiles; the full range changes nothing."""
    images = torch.stack([torch.arange(101.0), 1000 + torch.arange(101.0)])[:, None]
    clipped = clip_images(images, (0.1, 0.9))
    assert [float(v) for v in clipped.amin((-2, -1))] == [10.0, 1010.0]
    assert [float(v) for v in clipped.amax((-2, -1))] == [90.0, 1090.0]
    assert clip_images(images, (0.0, 1.0)) is images


@pytest.mark.parametrize("quantiles", [(0.9, 0.1), (-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (float("nan"), 1.0)])
def test_bad_quantiles(quantiles: tuple[float, float]) -> None:
    """Quantiles are an increasing pair within [0, 1]."""
    for function in (value_range, to_unit_range, clip_images):
        with pytest.raises(ValueError, match="`quantiles` to be a pair 0 <= low < high <= 1, got"):
            function(torch.arange(8.0).reshape(1, 2, 4), quantiles)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_gpus_quantiles_are_those_of_the_cpu(
    dtype: torch.dtype, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By histograms of bits the value at any rank is the one that `kthvalue` finds, also of negative and equal ones."""
    monkeypatch.setattr(statistics, "_AT_ONCE", 100)
    values = (torch.randn(703, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    values[50:90] = 0.0
    values[90:100] = -0.0
    values[1], values[2] = float("inf"), -float("inf")
    for ranks in ([1, 703], [2, 702], [300, 301], [340, 380], [8, 8]):
        assert statistics._at_ranks(values, ranks) == tuple(float(values.kthvalue(rank).values) for rank in ranks)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_a_gpus_quantiles_of_whole_numbers(dtype: torch.dtype) -> None:
    """Whole numbers are found as they are, also those beyond 2^24, which float32 does not hold."""
    values = (min(torch.iinfo(dtype).max - 40, 2**24) + torch.arange(41)).to(dtype).flip(0)
    for ranks in ([1, 41], [20, 22]):
        assert statistics._at_ranks(values, ranks) == tuple(float(values.kthvalue(rank).values) for rank in ranks)


@pytest.mark.gpu
@pytest.mark.parametrize("quantiles", [(0.0, 1.0), (0.01, 0.99), (0.5, 0.6)])
def test_ranges_on_a_gpu(quantiles: tuple[float, float]) -> None:
    """The range of a stack is the same on a GPU."""
    stack = torch.randn(3, 16, 20, generator=torch.Generator().manual_seed(0))
    assert value_range(stack.cuda(), quantiles) == value_range(stack, quantiles)
