"""The kernels for GPUs against the plain paths on the CPU, for `test_kernels.py`, which sets TRITON_INTERPRET=1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from faket_aug._runtime.kernels import DTYPES, Kernel
from faket_aug.style import losses, pooling
from faket_aug.style.layers import add_bias_relu_, add_relu_backward_, channels_are_last, odd_images

# The interpreter computes by NumPy, which warns where infinities cancel.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

CPU, LAST = torch.device("cpu"), torch.channels_last
KERNELS: dict[str, Kernel[..., Any]] = {
    kernel.name: kernel
    for kernel in (add_bias_relu_, add_relu_backward_, pooling.max_pool, pooling.max_unpool, losses.slope_of_rows)
}
#: Odd and even sides, a pixel, no image; one channel, a few, and more than one program takes.
SHAPES = [(2, 5, 7, 9), (1, 1, 2, 3), (1, 64, 6, 5), (2, 515, 3, 2), (1, 3, 1, 1), (0, 4, 6, 6), (3, 2, 1, 8)]


def _images(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Make images with values that half precision adds without rounding, and NaN and infinities, if there is room."""
    if 0 not in shape and torch.Size(shape).numel() >= 20:
        return odd_images(CPU, dtype, shape).roll(seed, dims=1).contiguous(memory_format=LAST)
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(-8, 9, shape, generator=generator).to(dtype) / 4
    return made.contiguous(memory_format=LAST)


def _same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_agrees_on_the_samples(name: str, dtype: torch.dtype) -> None:
    """What is compared at the first use on a GPU is the same."""
    assert KERNELS[name].difference(CPU, dtype) == ""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Bias and ReLU, and the derivative of ReLU with a second gradient, are PyTorch's to the bit, and in place."""
    bias = (torch.arange(shape[1]).remainder(11) - 5).to(dtype) / 4
    for kernel, others in (
        (add_bias_relu_, (bias,)),
        (add_relu_backward_, (_images(shape, dtype, 1), _images(shape, dtype, 2))),
    ):
        images = _images(shape, dtype)
        expected = kernel.plain(images.clone(), *others)
        found = kernel.launch(images, *others)
        assert found.data_ptr() == images.data_ptr()
        _same(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pooling(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Maxima, their places, and gradients put there are PyTorch's to the bit, channels last."""
    images = _images(shape, dtype)
    if min(shape[2:]) < 2 or 0 in shape:  # PyTorch refuses these
        pooled, places = pooling.max_pool.launch(images, True)
        assert pooled.shape == places.shape == (*shape[:2], shape[2] // 2, shape[3] // 2)
    else:
        pooled, places = pooling.max_pool.launch(images, True)
        expected, expected_places = pooling._plain_max_pool(images, True)
        assert expected_places is not None
        _same(pooled, expected)
        assert torch.equal(places, expected_places)
        again, none = pooling.max_pool.launch(images, False)
        assert none is None
        _same(again, expected)
    gradient = (
        (torch.arange(pooled.numel()).view(pooled.shape).remainder(31) - 15).to(dtype).contiguous(memory_format=LAST)
    )
    found = pooling.max_unpool.launch(gradient, places, *shape[2:])
    _same(found, pooling._plain_max_unpool(gradient, places, *shape[2:]))
    assert channels_are_last(found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (2, 1023), (1, 40_000), (2, 0), (0, 7)])
def test_loss(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The slope of the loss differs by the rounding of sums in float32, and of the result; rows do not mix."""
    generator = torch.Generator().manual_seed(1)
    found, target = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    if found.numel():
        target[0, ::2] = found[0, ::2]
        # Mixed precisions, as of Gram matrices.
        target = target.float() if len(target) > 1 else target
        found[-1, 0] = torch.nan if len(found) > 1 else 1.0
    slope = losses.slope_of_rows.launch(found, target, 0.3)
    expected = losses._plain_slope(found, target, 0.3) if found.numel() else torch.empty_like(found)
    assert slope.dtype == dtype
    allowed = max(1e-5, torch.finfo(dtype).eps) * float(expected.nan_to_num(0).abs().max()) if found.numel() else 0
    torch.testing.assert_close(slope, expected, rtol=0, atol=allowed, equal_nan=True)
