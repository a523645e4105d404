"""Patches of one tomogram, drawn by number, and what is done to them before they become items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._random import torch_generator, torch_seed
from faket_aug._runtime.numerics import own_precision
from faket_aug._runtime.threads import intra_op_threads, use_on_current_stream

#: A user's own change of an item: a function of the item and of the generator of its random numbers.
Transform = Callable[[dict[str, Any], torch.Generator], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A patch: its image (float32) `(channel, z, y, x)`, its label (int64) `(z, y, x)`, its centre and the class there.

    Without `"labels"` among the targets the label is None. `targets` holds the entries of all others.
    """

    image: Tensor
    label: Tensor | None
    position: npt.NDArray[np.int64]
    particle_class: int
    targets: Mapping[str, Any] = field(default_factory=dict)


class Live(Protocol):
    """What patches are cut from."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all volumes, or tilts; the first tells the device."""


class Sampler(Protocol):
    """How patches are drawn of what is live."""

    def sample(
        self, live: Any, *, seed: int, epoch: int, tomogram: int, patch: int, device: torch.device | str = "cpu"
    ) -> Patch:
        """Draw the patch of an address, and put it on a device."""


@dataclass(frozen=True, kw_only=True)
class ItemTransform:
    """A transform of items, with the address of its random numbers; the number of the patch completes it."""

    transform: Transform
    seed: int
    epoch: int
    tomogram: int
    threads: int

    def __call__(self, item: dict[str, Any], patch: int) -> dict[str, Any]:
        """Transform the item of a patch.

        Raises
        ------
        TypeError
            If the transform returns no item.
        """
        address = {"epoch": self.epoch, "tomogram": self.tomogram, "patch": patch}
        generator = torch_generator(torch_seed(self.seed, "transform", **address))
        with torch.no_grad(), intra_op_threads(self.threads):
            made = self.transform(item, generator)
        if not isinstance(made, dict):
            raise TypeError(f"expected `transform` to return an item, a dict, got {type(made).__name__}; return `item`")
        return made


@dataclass(frozen=True, kw_only=True)
class TomogramPatches:
    """The patches of one tomogram, drawn by number.

    Parameters
    ----------
    live
        The tomogram, or its tilts.
    sampler
        Draws the patches.
    seed, epoch, tomogram
        The address of the random numbers; the number of the patch completes it.
    device
        The device that the patches are put on, unless it is named when they are drawn.
    threads
        Intra-op threads that draw them. Their number changes the last bits.
    transforms
        What is done to the items, in this order.
    """

    live: Live
    sampler: Sampler
    seed: int
    epoch: int
    tomogram: int
    device: str
    threads: int
    transforms: tuple[ItemTransform, ...] = ()

    def transformed_by(self, transform: Transform | None, *, seed: int, epoch: int, tomogram: int) -> Self:
        """Return the patches with one more transform of their items, by random numbers of this address."""
        if transform is None:
            return self
        more = ItemTransform(transform=transform, seed=seed, epoch=epoch, tomogram=tomogram, threads=self.threads)
        return replace(self, transforms=(*self.transforms, more))

    def draw(self, patch: int, device: torch.device | str | None = None) -> Patch:
        """Draw the patch of this number, and put it on a device."""
        with torch.no_grad(), own_precision(), intra_op_threads(self.threads):
            use_on_current_stream(self.live.tensors())
            address = {"seed": self.seed, "epoch": self.epoch, "tomogram": self.tomogram, "patch": patch}
            return self.sampler.sample(self.live, **address, device=self.device if device is None else device)
