"""Stacks that are worked on some images at a time: the parts make the whole, whatever their size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from faket_aug._runtime import parts as _parts
from faket_aug._runtime.parts import by_parts, slices_of
from faket_aug.microscope.noise import NoiseModel
from faket_aug.statistics import match_mean_std, mean_std
from faket_aug.tomography.filters import FILTERS, filter_projections

ANGLES = (-40.0, -10.0, 10.0, 20.0, 50.0)


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(("images", "pixels", "count"), [(5, 16, 5), (5, 32, 3), (5, 1000, 1), (5, 1, 5), (0, 16, 1)])
def test_slices(monkeypatch: pytest.MonkeyPatch, images: int, pixels: int, count: int) -> None:
    """The parts cover all images once, in order; no images are one part."""
    monkeypatch.setattr(_parts, "_CPU_PIXELS", pixels)
    found = list(slices_of(torch.zeros(images, 4, 4)))
    assert len(found) == count
    assert [i for part in found for i in range(images)[part]] == list(range(images))


def test_parts_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function sees the same images of all stacks, and gradients pass."""
    monkeypatch.setattr(_parts, "_CPU_PIXELS", 2 * 12)
    a, b = _random(5, 3, 4).requires_grad_(), _random(5, 1, 1)
    found = by_parts(torch.mul, a, b, dtype=torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), a * b)
    found.sum().backward()
    torch.testing.assert_close(a.grad, b.expand_as(a))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_size_of_parts_does_not_matter(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Filters, statistics and noise are the same for stacks in one part and in many, with leading axes, too."""
    images, noise = _random(2, 5, 12, 10, dtype=dtype), _random(5, 12, 10, dtype=dtype)
    model = NoiseModel.assume(images[1], ANGLES)

    def made() -> list[Tensor]:
        mean, std = mean_std(images)
        matched = match_mean_std(images, mean.flip(1), std * 2)
        filtered = [filter_projections(images, name) for name in FILTERS]
        return [mean, std, matched, *filtered, model.sample(images[0], noise, ANGLES)]

    whole = made()
    monkeypatch.setattr(_parts, "_CPU_PIXELS", 1)
    for one, parts in zip(whole, made(), strict=True):
        torch.testing.assert_close(parts, one, rtol=1e-5, atol=1e-6)
    assert [tuple(values.shape) for values in whole[:3]] == [(2, 5), (2, 5), (2, 5, 12, 10)]
