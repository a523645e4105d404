"""Probabilities of a whole tomogram, and the shorter way up of DeepFinder's network within a part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from faket_aug.picking import DeepFinderNet
from faket_aug.picking.inference import class_probabilities, segment
from faket_aug.picking.network import SIZE_MULTIPLE
from faket_aug.picking.preparation import Preparation
from faket_aug.picking.tiles import balanced, spans_of
from tests._helpers import generator

SHAPE = (20, 44, 53)


def _net(classes: int = 3, widths: tuple[int, int, int] = (4, 6, 8)) -> DeepFinderNet:
    with torch.random.fork_rng():
        net = DeepFinderNet(classes, widths=widths)
    for index, parameter in enumerate(net.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator(index)) * (2 / parameter[0].numel()) ** 0.5
    return net


def _image(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=generator(7))


@pytest.mark.parametrize(
    "inner",
    [
        (slice(0, 24), slice(0, 32), slice(0, 40)),
        (slice(0, 8), slice(9, 23), slice(21, 40)),
        (slice(5, 6), slice(31, 32), slice(0, 1)),
        (slice(3, 21), slice(2, 30), slice(7, 39)),
    ],
)
def test_a_part_has_the_logits_of_the_whole(inner: tuple[slice, ...]) -> None:
    """Law: what is computed for a part is what the whole tile has there, at borders and within."""
    net, image = _net(), _image((1, 1, 24, 32, 40))
    with torch.no_grad():
        whole, part = net(image), net(image, inner)
    expected = whole[(slice(None), slice(None), *inner)]
    assert part.shape == expected.shape
    assert torch.allclose(part, expected, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def test_probabilities_equal_one_pass() -> None:
    """Law: with an overlap of twice the view they are the softmax of one pass, without the background."""
    net, image = _net(), _image((8, 12, 172))
    with torch.no_grad():
        expected = net(image[None, None])[0].softmax(dim=0)[1:]
    told: list[tuple[int, int]] = []
    found = class_probabilities(
        net, image, tile_size=120, overlap=64, normalized=True, progress=lambda *one: told.append(one)
    )
    assert found.dtype == torch.float16
    assert found.shape == (2, 8, 12, 172)
    assert float((found - expected).abs().max()) < 2e-3
    assert told == [(1, 2), (2, 2)]


def test_probabilities_agree_with_labels() -> None:
    """The class of `segment` is the most likely one, on a shape that has to be padded."""
    net, image = _net(), _image()
    found = class_probabilities(net, image, tile_size=24, overlap=16).float()
    labels = segment(net, image, tile_size=24, overlap=16)
    background = 1 - found.sum(dim=0, keepdim=True)
    assert (torch.cat([background, found]).argmax(dim=0) == labels).float().mean() > 0.998


def test_half_turns_are_averaged() -> None:
    """With four half turns, a half turn of the tomogram turns its probabilities; with one it does not."""
    net, image = _net(), _image((8, 16, 24))
    turned = image.flip([0, 1])
    four = class_probabilities(net, image, flips=4, normalized=True)
    assert torch.allclose(class_probabilities(net, turned, flips=4, normalized=True).flip([1, 2]), four, atol=2e-3)
    one = class_probabilities(net, image, normalized=True)
    assert not torch.allclose(class_probabilities(net, turned, normalized=True).flip([1, 2]), one, atol=2e-2)
    with torch.no_grad():
        views = [
            net(image.flip(axes)[None, None]).softmax(dim=1)[0].flip([a + 1 for a in axes]) for axes in ([], [1, 2])
        ]
    expected = (sum(views) / 2)[1:]
    assert torch.allclose(class_probabilities(net, image, flips=2, normalized=True).float(), expected, atol=2e-3)


class _Counting(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.inner(images)
        return logits


def test_only_what_is_wanted_is_computed() -> None:
    """Tiles outside the mask are left out; outside of it, and where nothing was measured, all is 0."""
    net, image = _Counting(_net()), _image((16, 16, 80))
    image[:, :, 60:] = 0.0
    within = torch.zeros(image.shape, dtype=torch.bool)
    within[2:14, :, 50:70] = True
    settings = {"tile_size": 24, "overlap": 8, "preparation": Preparation(patch_size=(8, 8, 8))}
    whole = class_probabilities(net, image, **settings)
    everywhere, net.calls = net.calls, 0
    found = class_probabilities(net, image, within=within, **settings)
    assert 0 < net.calls < everywhere
    assert torch.equal(found, whole * within)
    assert not bool(found[..., 60:].any())
    with pytest.raises(ValueError, match="no measured voxels within the mask"):
        class_probabilities(net, image, within=torch.zeros_like(within), **settings)
    with pytest.raises(ValueError, match="expected `within` of shape"):
        class_probabilities(net, image, within=within[1:], **settings)
    with pytest.raises(ValueError, match="`flips` to be one of 1, 2, 4, got 3"):
        class_probabilities(net, image, flips=3)


def test_tiles_are_balanced() -> None:
    """No more tiles than of the largest size, each as small as it can be, and all voxels are covered."""
    for length, tile, overlap in ((200, 128, 32), (512, 128, 32), (164, 120, 64), (100, 128, 32), (132, 128, 32)):
        side = balanced(length, tile, overlap)
        assert side <= tile
        assert side % SIZE_MULTIPLE == 0
        spans = spans_of(length, side, overlap)
        assert len(spans) == len(spans_of(length, tile, overlap))
        assert [n for span in spans for n in range(span.first, span.last)] == list(range(length))
    assert (balanced(200, 128, 32), balanced(512, 128, 32)) == (116, 128)
