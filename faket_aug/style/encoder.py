"""The base of encoders, which turn images into the features that a style is made of."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from faket_aug._checks import check_choice
from faket_aug._identity import described


class StyleEncoder(nn.Module, ABC):
    """The base of all encoders, of `VGG19Features` and of your own.

    For an encoder of your own derive from this class, and define `layers` and `forward`. The gradient is that of
    autograd. The `fingerprint` is a hash of the class, the weights and all attributes, so an encoder must not change
    after its first use. The default layers of `StyleBank.build` (`style_layers`) and of a simulator (`content_layers`)
    are those of VGG-19: set them to layers of yours.
    """

    @property
    @abstractmethod
    def layers(self) -> tuple[int, ...]:
        """The numbers of its layers, from shallow to deep."""

    @abstractmethod
    def forward(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Compute the features at `layers`.

        Parameters
        ----------
        images
            `(n, 3, y, x)`, values in [0, 1], float32.
        layers
            Numbers of layers.

        Returns
        -------
        Features `(n, channels, y', x')` of each layer, floating point. Those of one image do not depend on others.
        """

    @property
    def fingerprint(self) -> str:
        """Hash of the class, the weights and all settings; style banks and records know the encoder by it."""
        if "_own_fingerprint" not in self.__dict__:
            text = json.dumps(described(self), sort_keys=True)
            self._own_fingerprint = hashlib.sha256(text.encode()).hexdigest()
        return self._own_fingerprint

    @property
    def can_be_recorded(self) -> bool:
        """Whether a CUDA graph can replay it: nothing but images, layers, parameters and buffers decides what it does.

        It does not wait for the GPU either. Nothing is known of an encoder of your own, so by default it is not.
        """
        return False

    def check_layers(self, layers: Iterable[int]) -> None:
        """Raise a `ValueError` unless the encoder has all of these layers."""
        for layer in layers:
            check_choice("layer", layer, self.layers)

    def check_size(self, height: int, width: int, layers: Iterable[int]) -> None:
        """Raise a `ValueError` if images of this size are too small for these layers; by default none is."""

    def forward_and_pullback(
        self, images: Tensor, layers: Iterable[int]
    ) -> tuple[dict[int, Tensor], Callable[[Mapping[int, Tensor]], Tensor]]:
        """Compute features, and the function from gradients by the features to the gradient by the images.

        By default autograd computes it. After a fork of a process that has trained on a GPU, autograd does not work:
        use workers that are started by `spawn`.

        Parameters
        ----------
        images, layers
            As for `forward`.

        Returns
        -------
        The features, and a function, which can be called once. It takes gradients by some or all of the features, and
        returns the gradient by the images, `(n, 3, y, x)` in float32.
        """
        with torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            found = self(leaf, layers)

        def pullback(gradients: Mapping[int, Tensor]) -> Tensor:
            given = {layer: gradients[layer] for layer in sorted(found, reverse=True) if layer in gradients}
            outputs = [found[layer] for layer in given]
            own = [gradient.to(found[layer].dtype) for layer, gradient in given.items()]
            (gradient,) = torch.autograd.grad(outputs, leaf, own, allow_unused=True)
            return torch.zeros_like(leaf) if gradient is None else gradient.float()

        return {layer: one.detach() for layer, one in found.items()}, pullback


def check_encoder(features: object) -> None:
    """Raise a `TypeError` unless an object is an encoder whose style can be told apart."""
    if not isinstance(features, StyleEncoder):
        raise TypeError(
            f"expected `features` to be a `VGG19Features`, or to derive from `StyleEncoder`, got "
            f"{type(features).__name__}"
        )


def device_of(features: StyleEncoder) -> torch.device:
    """Return where an encoder computes."""
    held = [*features.buffers(), *features.parameters()]
    return held[0].device if held else torch.device("cpu")
