"""An encoder of one's own: what it must have, its gradient, and that style banks and records know it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import ANGLES, assert_same_items, dataset, loader, narrow_vgg, noise_model, specimen, style_series
from torch import Tensor, nn

from faket_aug import FakETSimulator, StyleBank, StyleEncoder, VGG19Features
from faket_aug.style.style_transfer import StyleTransfer
from faket_aug.style.transfer import stylize

# Layers of torch draw their first weights from the global generator.
pytestmark = pytest.mark.touches_global_rng


class Edges(StyleEncoder):
    """Three convolutions of one's own."""

    def __init__(self, seed: int = 0, power: float = 1.0) -> None:
        super().__init__()
        self.power = power
        self.steps = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, stride=2)])
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        self.requires_grad_(False)

    @property
    def layers(self) -> tuple[int, ...]:
        return (0, 1)

    def forward(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        found, images = {}, images**self.power
        for number, step in enumerate(self.steps):
            images = torch.relu(step(images))
            found[number] = images
        return {number: found[number] for number in layers}


def styled(features: StyleEncoder, **settings: Any) -> FakETSimulator:
    """A simulator with an encoder."""
    bank = StyleBank.build([style_series(0)], features, style_layers=(0, 1))
    given = {"tilt_angles": ANGLES, "noise": noise_model(), "style": bank, "features": features, "content_layers": (1,)}
    return FakETSimulator(**(given | {"style_weights": (4.0, 1.0)} | settings))


def test_the_default_gradient_is_the_hand_written_one(tmp_path: Path) -> None:
    """Autograd through VGG-19 gives the same gradient as its own pull-back."""
    own = narrow_vgg(tmp_path)
    images = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    wanted = [1, 6, 11]
    found, pullback = own.forward_and_pullback(images, wanted)
    other, by_autograd = StyleEncoder.forward_and_pullback(own, images, wanted)
    slopes = {layer: torch.sin(3 * values) for layer, values in found.items()}
    for layer in wanted:
        assert torch.allclose(found[layer], other[layer], atol=1e-6)
        assert not other[layer].requires_grad
    again = {layer: slope.clone() for layer, slope in slopes.items()}
    assert torch.allclose(pullback(slopes), by_autograd(again), atol=1e-4)


def test_a_style_is_transferred() -> None:
    """One step with an encoder of one's own brings Gram matrices nearer to the style's; the images are changed."""
    features = Edges()
    bank = StyleBank.build([style_series(0)], features, style_layers=(0, 1))
    tilts = torch.randn(6, 24, 32, generator=torch.Generator().manual_seed(3))
    style = bank.select(bank.series[0].tilt_angles)
    made = stylize(
        tilts, tilts, style, features=features, style_weights=(1, 1), content_layers=(1,), content_weight=0.0
    )
    still = stylize(
        tilts,
        tilts,
        style,
        features=features,
        style_weights=(1, 1),
        content_layers=(1,),
        content_weight=0.0,
        step_size=0.0,
    )
    errors = []
    for images in (still, made):
        own = StyleBank.build([style_series(0)], features, style_layers=(0, 1))  # the same grams, again
        assert own.key == bank.key
        grams = features(images[:, None].expand(-1, 3, -1, -1), (0, 1))
        errors.append(
            sum(
                float((torch.einsum("nchw,ndhw->ncd", g, g) / g[0, 0].numel() - style.grams[layer]).abs().sum())
                for layer, g in grams.items()
            )
        )
    assert errors[1] < 0.9 * errors[0]


def test_fingerprints_tell_encoders_apart() -> None:
    """Weights, attributes and classes change the fingerprint; a copy has the same."""

    class Other(Edges):
        pass

    prints = [one.fingerprint for one in (Edges(), Edges(1), Edges(power=2.0), Other())]
    assert len(set(prints)) == 4
    assert copy.deepcopy(Edges()).fingerprint == Edges().fingerprint == prints[0]
    assert StyleBank.build(style_series(0), Edges(1), style_layers=(0,)).key != (
        StyleBank.build(style_series(0), Edges(), style_layers=(0,)).key
    )


def test_simulators_use_it(tmp_path: Path) -> None:
    """It styles tilts, stands in the record, survives workers, and its bank is not taken for another's."""
    made = styled(Edges())
    found = made(specimen(0), seed=1)
    assert found.record.settings["features"] == Edges().fingerprint
    assert not torch.equal(found.tiltseries, styled(Edges(), step_size=0.0)(specimen(0), seed=1).tiltseries)
    other = styled(Edges(1))
    assert not torch.equal(other(specimen(0), seed=1).tiltseries, found.tiltseries)
    with pytest.raises(ValueError, match="got others for style, features"):
        other.simulate(specimen(0), found.record)
    with pytest.raises(ValueError, match="expected the `features` that `style` was built with, got others"):
        StyleTransfer(bank=StyleBank.build(style_series(0), Edges(), style_layers=(0, 1)), features=Edges(1))
    expected = list(dataset(made, count=1))
    for start in ("fork", "spawn"):
        assert_same_items(loader(dataset(made, count=1), workers=1, start=start, batch_size=None), expected)
    assert isinstance(narrow_vgg(tmp_path), StyleEncoder)
    assert narrow_vgg(tmp_path).layers == (1, 3, 6, 8, 11)


def test_what_is_no_encoder_is_refused() -> None:
    """A network that does not derive from the base, an unknown layer, and a base that lacks its methods."""
    with pytest.raises(
        TypeError, match="expected `features` to be a `VGG19Features`, or to derive from `StyleEncoder`"
    ):
        StyleBank.build(style_series(0), nn.Conv2d(3, 3, 3))  # type: ignore[arg-type]
    bank = StyleBank.build(style_series(0), Edges(), style_layers=(0, 1))
    with pytest.raises(TypeError, match="got Conv2d"):
        StyleTransfer(bank=bank, features=nn.Conv2d(3, 3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected `layer` to be one of 0, 1, got 6"):
        StyleBank.build(style_series(0), Edges(), style_layers=(6,))
    with pytest.raises(TypeError, match="abstract"):
        StyleEncoder()  # type: ignore[abstract]
    assert VGG19Features.__mro__[1] is StyleEncoder
