"""A simulator of one's own: checked when a dataset is made, and in what it returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _helpers import assert_same_items, dataset, loader, simulator

from faket_aug import FakETSimulator, SimulatedTomogram
from faket_aug.simulation.own_parts import check_simulator


@dataclass(frozen=True)
class Doubled:
    """A simulator whose tomograms are a multiple of another's."""

    inner: FakETSimulator
    factor: float = 2.0
    device = "cpu"
    threads = 1

    def __call__(self, specimen: Any, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulatedTomogram:
        made = self.inner(specimen, seed=seed, epoch=epoch, tomogram=tomogram)
        record = replace(made.record, settings={**made.record.settings, "factor": self.factor})
        return replace(made, tomogram=self.factor * made.tomogram, record=record)


class NoSeed:
    """It cannot be called as a dataset calls it."""

    device, threads = "cpu", 1

    def __call__(self, specimen: Any) -> None: ...


class Nothing(NoSeed):
    """It returns no tomogram."""

    def __call__(self, specimen: Any, **_: int) -> None: ...


def test_a_simulator_of_ones_own_is_used() -> None:
    """Its tomograms are what patches are cut from, also in workers."""
    own, given = list(dataset(Doubled(simulator()), normalize=False)), list(dataset(normalize=False))
    for item, other in zip(own, given, strict=True):
        torch.testing.assert_close(item["image"], 2 * other["image"])
    data = dataset(Doubled(simulator()), normalize=False)
    assert_same_items(loader(data, workers=2, batch_size=None), own)


@pytest.mark.parametrize(
    ("wrong", "missing"),
    [
        (lambda specimen, *, seed, epoch, tomogram: None, "`device`, a string and `threads`, a whole number"),
        (SimpleNamespace(device="cpu", threads=1), r"a call `\(specimen, \*, seed, epoch=0, tomogram=0\)`"),
        (NoSeed(), r"a call `\(specimen, \*, seed, epoch=0, tomogram=0\)`"),
        (FakETSimulator, r"a call `\(specimen"),
    ],
)
def test_what_is_missing_is_told(wrong: Any, missing: str) -> None:
    """What lacks something is refused when the dataset is made or given it, in one sentence."""
    with pytest.raises(TypeError, match=f"expected a simulator with .*{missing}.*, got .* without; see `Tomogram"):
        dataset(wrong)
    data = dataset()
    with pytest.raises(TypeError, match="expected a simulator with"):
        data.simulator = wrong


def test_the_own_simulator_passes() -> None:
    """The package's simulator has what is asked for."""
    check_simulator(simulator("noisy"))


def test_what_it_returns_is_checked() -> None:
    """Something else than a tomogram is told with the simulator's name."""
    with pytest.raises(TypeError, match="expected Nothing to return a `SimulatedTomogram`, got NoneType"):
        next(iter(dataset(Nothing())))
