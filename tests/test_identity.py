"""Objects of a user's own are told apart by their class and all that they hold."""

from __future__ import annotations

import functools
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from faket_aug import FakETSimulator, Misalignment
from faket_aug._identity import described, digest_of

# Layers of torch draw their first weights from the global generator.
pytestmark = pytest.mark.touches_global_rng


@dataclass(frozen=True)
class Fields:
    """A dataclass."""

    factor: Any = 1.0
    kept: dict[str, Any] = field(default_factory=dict)


class Attributes:
    """Attributes, private ones among them."""

    def __init__(self, factor: Any) -> None:
        self._factor = factor


class Slots:
    """Slots."""

    __slots__ = ("factor",)

    def __init__(self, factor: Any) -> None:
        self.factor = factor


class Told(Attributes):
    """It says its settings itself."""

    def __init__(self, factor: Any, lock: Any = None) -> None:
        super().__init__(factor)
        self.lock = lock

    def settings(self) -> dict[str, Any]:
        return {"factor": self._factor}


def plain(tilts: Tensor, *, factor: float = 1.0) -> Tensor:
    """A function of a module."""
    return factor * tilts


def network(width: int = 3, weight: float = 1.0, stride: int = 1) -> nn.Module:
    """A small network."""
    made = nn.Sequential(nn.Conv2d(3, width, 3, stride=stride))
    for parameter in made.parameters():
        nn.init.constant_(parameter, weight)
    return made


VALUES: list[Any] = [
    *(1.0, 2.0, "a", None, True, (1, 2), (1, 2, 3), {"a": 1}, {"a": 2}, {1, 2}, {1, 3}, np.float64(7.0), Path("b")),
    *(torch.zeros(3), torch.zeros(1, 3), torch.ones(3), torch.zeros(3, dtype=torch.float64), np.arange(3)),
    *(Misalignment(shift=1.0), Misalignment(shift=2.0), network(), network(width=4), network(weight=2.0)),
    *(network(stride=2), Fields(1.0), Fields(2.0), torch.zeros(3, dtype=torch.bfloat16)),
    *(functools.partial(plain, factor=2.0), functools.partial(plain, factor=3.0), plain, Told(8.0), Told(9.0)),
    *(
        FakETSimulator(tilt_angles=(0.0,), modality="noiseless"),
        FakETSimulator(tilt_angles=(1.0,), modality="noiseless"),
    ),
]


@pytest.mark.parametrize("kind", [Fields, Attributes, Slots])
def test_what_differs_is_told_apart(kind: type) -> None:
    """Two objects have the same description only if they hold the same."""
    found = [json.dumps(described(kind(value)), sort_keys=True) for value in VALUES]
    assert len(set(found)) == len(VALUES)
    assert found == [json.dumps(described(kind(value)), sort_keys=True) for value in VALUES]


def test_classes_are_told_apart() -> None:
    """Equal contents of other classes differ."""
    found = [described(one)["class"] for one in (Fields(1.0), Attributes(1.0), Slots(1.0), plain, network())]
    assert len(set(found)) == len(found)
    assert described(Attributes(1.0)) == {"class": f"{__name__}.Attributes", "settings": {"_factor": 1.0}}
    assert described(plain) == {"class": f"{__name__}.plain", "settings": {}}


def test_settings_go_before_attributes() -> None:
    """What an object says of itself is enough, whatever else it holds."""
    assert described(Told(2.0, threading.Lock())) == {"class": f"{__name__}.Told", "settings": {"factor": 2.0}}
    with pytest.raises(TypeError, match=r"expected `settings\(\)` of .*Told to return JSON types"):
        described(Told(torch.zeros(1)))


@pytest.mark.parametrize("value", [threading.Lock(), (i for i in ()), json, Fields, object()])
def test_what_cannot_be_told_apart_is_refused(value: Any) -> None:
    """The error names the attribute and the remedy."""
    with pytest.raises(TypeError, match=r"got \w+ for .*Attributes\._factor; give the class a method `settings\(\)`"):
        described(Attributes(value))


def test_functions_without_a_name_are_refused() -> None:
    """A lambda or a bound method may do anything."""
    for function in (lambda tilts: tilts, Told(1.0).settings):
        with pytest.raises(TypeError, match="expected a function of a module"):
            described(function)
        with pytest.raises(TypeError, match="expected a function of a module"):
            described(Fields(function))


def test_a_digest_tells_names_shapes_and_types() -> None:
    """The same bytes under another name or in another shape have another hash."""
    zeros = torch.zeros(4)
    found = [{"a": zeros}, {"b": zeros}, {"a": zeros.view(2, 2)}, {"a": zeros.to(torch.int32)}, {}, {"a": zeros[:0]}]
    assert len({digest_of(one) for one in found}) == len(found)
