"""The average of a network's weights over the steps of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from faket_aug._runtime.signals import signals_held_back


class WeightAverage:
    """An exponential moving average of the weights of a network that is trained.

    It begins with the weights as they are. After step `s` it keeps `min(decay, (1 + s) / (10 + s))` of itself, and
    takes the rest from the weights: the first ones are soon forgotten. Buffers of floating point (means and variances
    of a batch normalisation) are averaged as weights are; other buffers are copied.

    Parameters
    ----------
    network
        Whose weights are averaged, on their device.
    decay
        Share of the average that is kept at each step, within [0, 1].
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        self._average = _copies(network)
        #: The network's own weights, while it holds the average.
        self._aside: dict[str, Tensor] | None = None

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The average, by the names of the network's weights and buffers."""
        return self._average

    def trained(self) -> Mapping[str, Tensor]:
        """Return the weights that the training goes on with."""
        return self._network.state_dict() if self._aside is None else self._aside

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after a step, counted from 1."""
        own = self._network.state_dict()
        moving = [name for name, one in own.items() if one.is_floating_point()]
        kept = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self._average[name] for name in moving], [own[name] for name in moving], 1 - kept)
        for name in own.keys() - set(moving):
            self._average[name].copy_(own[name])

    @contextmanager
    def in_the_network(self) -> Iterator[None]:
        """Let the network hold the average, and its own weights again afterwards, bit for bit."""
        own = _copies(self._network)
        try:
            with signals_held_back():
                self._aside = own
                self._network.load_state_dict(self._average)
            yield
        finally:
            with signals_held_back():
                self._network.load_state_dict(own)
                self._aside = None

    def stay_in_the_network(self) -> None:
        """Let the network hold the average from now on: the training has ended."""
        self._network.load_state_dict(self._average)


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in network.state_dict().items()}
