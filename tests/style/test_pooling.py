"""Poolings and their derivatives, against torch's own."""

from __future__ import annotations

import pytest
import torch

from faket_aug.style import pooling
from faket_aug.style.pooling import MODES, pool, pool_with_pullback


@pytest.mark.parametrize("limit", [2**15, 4])
@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 5, 7, 9), (1, 1, 2, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_pullback_is_autograds(monkeypatch: pytest.MonkeyPatch, mode: str, shape: tuple[int, ...], limit: int) -> None:
    """Values and derivatives are autograd's, for odd sizes, windows of equal values and wide images, too."""
    monkeypatch.setattr(pooling, "_INT16", limit)
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
