"""Poolings and their derivatives, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from faket_aug.style import pooling
from faket_aug.style.layers import channels_are_last
from faket_aug.style.pooling import MODES, pool, pool_with_pullback


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 5, 7, 9), (1, 1, 2, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_pullback_is_autograds(mode: str, shape: tuple[int, ...]) -> None:
    """Values and derivatives are autograd's, for odd sizes and windows of equal values, too."""
    generator = torch.Generator().manual_seed(0)
    # A few values only, so that maxima are met more than once.
    images = torch.randint(0, 3, shape, generator=generator).float().contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(*shape[:2], shape[2] // 2, shape[3] // 2, generator=generator)
    images.requires_grad_()
    expected = pool(images, mode)
    expected.backward(gradient)
    assert images.grad is not None
    with torch.no_grad():
        found, pullback = pool_with_pullback(images.detach(), mode)
        torch.testing.assert_close(found, expected.detach())
        torch.testing.assert_close(pullback(gradient), images.grad.nan_to_num(0.0))


@pytest.mark.parametrize("limit", [2**15, 4])
@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 5, 7, 9), (1, 1, 2, 3), (1, 2, 4, 2)])
def test_a_gpus_pullback(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], limit: int) -> None:
    """What a GPU puts at the maxima, without adding, is what torch's kernel adds there, in wide images, too."""
    monkeypatch.setattr(pooling, "_INT16", limit)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 3, shape, generator=generator).float().contiguous(memory_format=torch.channels_last)
    expected_pooled, indices = functional.max_pool2d(images, 2, return_indices=True)
    pooled, pullback = pooling._max_on_a_gpu(images)
    assert torch.equal(pooled, expected_pooled)
    gradient = torch.randn(pooled.shape, generator=generator).contiguous(memory_format=torch.channels_last)
    expected = torch.ops.aten.max_pool2d_with_indices_backward(
        gradient, images, [2, 2], [2, 2], [0, 0], [1, 1], False, indices
    )
    found = pullback(gradient)
    assert torch.equal(found, expected)
    assert channels_are_last(found)
