"""A training that is stopped, by a signal or a time limit, leaves a checkpoint of its last step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from faket_aug._runtime import signals
from faket_aug._runtime.signals import signals_held_back
from faket_aug.picking import TrainingHistory, TrainingSettings, fit
from faket_aug.picking.checkpoints import read_checkpoint
from faket_aug.picking.logs import read_log
from tests._helpers import dataset, generator

SETTINGS: dict[str, Any] = {"steps": 7, "learning_rate": 0.01, "validate_every": 3, "checkpoint_every": 100}


class Network(nn.Module):
    """A small network, always the same, which may do something when it computes."""

    def __init__(self, at: Callable[[int], None] = lambda call: None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv3d(1, 4, 3, padding=1)
        self.calls, self.at = 0, at

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits."""
        self.calls += 1
        self.at(self.calls)
        return self.layer(images)


def scores(network: nn.Module) -> dict[str, float]:
    """Numbers that depend on the weights."""
    weight = float(network.layer.weight.double().norm())
    return {"validation": weight, "a, b": 2 * weight}


def train(folder: Path, network: Network | None = None, **settings: Any) -> tuple[Network, TrainingHistory]:
    """Train for seven steps, in epochs of three batches."""
    network = network or Network()
    data = DataLoader(dataset(), batch_size=5, generator=generator())
    given = {"settings": TrainingSettings(**SETTINGS), "validation": scores} | settings
    return network, fit(network, data, folder, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Network, TrainingHistory]:
    """A training that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return (folder, *train(folder))


def check_same(folder: Path, whole: tuple[Path, Network, TrainingHistory]) -> None:
    """The training goes on from where it stands, and ends as if it was never stopped."""
    network, history = train(folder)
    assert history == whole[2]
    assert torch.equal(network.layer.weight, whole[1].layer.weight)
    assert (folder / "log.csv").read_bytes() == (whole[0] / "log.csv").read_bytes()


def test_numbers_of_a_validation_are_kept(whole: tuple[Path, Network, TrainingHistory]) -> None:
    """Numbers beside the one that counts are in the history and in the log, under their own names."""
    folder, _, history = whole
    assert [step for step, _ in history.validations] == [step for step, _ in history.scores] == [3, 6, 7]
    assert all(
        more == {"a, b": 2 * value} for (_, value), (_, more) in zip(history.validations, history.scores, strict=True)
    )
    assert read_log(folder / "log.csv")[6]["a, b"] == pytest.approx(history.scores[1][1]["a, b"])
    assert (folder / "log.csv").read_text().splitlines()[0] == 'step,loss,validation,"a, b"'


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_signal_in_a_step(
    tmp_path: Path,
    whole: tuple[Path, Network, TrainingHistory],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    call: int,
) -> None:
    """The step is done to its end, and a checkpoint of it is written; the same training goes on bit for bit."""
    # The program that runs the tests does not end.
    monkeypatch.setattr(signals, "_status", None)
    network = Network(lambda n: os.kill(os.getpid(), number) if n == call else None)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as stop:
        train(tmp_path, network)
    assert isinstance(stop.value, KeyboardInterrupt) == (number is signal.SIGINT)
    assert number is signal.SIGINT or stop.value.code == 143
    assert len(read_checkpoint(tmp_path)["losses"]) == call
    check_same(tmp_path, whole)


class Stopping(DataLoader[Any]):
    """A loader that is interrupted while it reads a batch; batches are counted over all epochs."""

    read = 0

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            Stopping.read += 1
            if Stopping.read == 5:
                raise KeyboardInterrupt
            yield batch


def test_a_signal_while_a_batch_is_read(tmp_path: Path, whole: tuple[Path, Network, TrainingHistory]) -> None:
    """What was read and not trained on is read again."""
    Stopping.read = 0
    with pytest.raises(KeyboardInterrupt):
        fit(
            Network(),
            Stopping(dataset(), batch_size=5, generator=generator()),
            tmp_path,
            settings=TrainingSettings(**SETTINGS),
            validation=scores,
        )
    assert len(read_checkpoint(tmp_path)["losses"]) == 4
    check_same(tmp_path, whole)


@pytest.mark.parametrize("number", [1, 3])
def test_a_signal_in_a_validation(tmp_path: Path, whole: tuple[Path, Network, TrainingHistory], number: int) -> None:
    """A validation that did not end is done again, also the one after the last step."""
    count = 0

    def interrupted(network: nn.Module) -> dict[str, float]:
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        return scores(network)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, validation=interrupted)
    assert len(read_checkpoint(tmp_path)["losses"]) == {1: 3, 3: 7}[number]
    check_same(tmp_path, whole)


class AtOnce(DataLoader[Any]):
    """A loader that is interrupted before its first batch."""

    def __iter__(self) -> Any:
        raise KeyboardInterrupt


def test_nothing_is_written_before_the_first_step(tmp_path: Path) -> None:
    """Without a step there is nothing to keep."""
    with pytest.raises(KeyboardInterrupt):
        fit(Network(), AtOnce(dataset(), batch_size=5), tmp_path, settings=TrainingSettings(**SETTINGS))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_time_limit(tmp_path: Path, whole: tuple[Path, Network, TrainingHistory]) -> None:
    """The training ends after the step in which the time is over; again and again it comes to its end."""
    ends = []
    for _ in range(3):
        _, history = train(tmp_path, Network(lambda n: time.sleep(0.25)), time_limit=0.6)
        ends.append(len(history.losses))
        assert len(read_checkpoint(tmp_path)["losses"]) == ends[-1]
    assert ends[0] < ends[1] < ends[2] or ends[-1] == 7
    assert ends[0] < 5
    check_same(tmp_path, whole)


def test_a_time_limit_is_positive(tmp_path: Path) -> None:
    """No time is no limit that can be met."""
    with pytest.raises(ValueError, match="expected `time_limit` to be more than 0, got 0"):
        train(tmp_path, time_limit=0)


def test_told_of_each_validation(tmp_path: Path) -> None:
    """`on_validation` gets the network in evaluation mode and the history, this validation included."""
    seen: list[tuple[bool, int, int]] = []

    def told(network: nn.Module, history: TrainingHistory) -> None:
        seen.append((network.training, len(history.losses), len(history.validations)))

    train(tmp_path, on_validation=told)
    assert seen == [(False, 3, 1), (False, 6, 2), (False, 7, 3)]


def test_validations_without_the_number_that_counts(tmp_path: Path) -> None:
    """Numbers by name need the one that counts."""
    with pytest.raises(ValueError, match="expected numbers with `validation` from `validation`, got f1"):
        train(tmp_path, validation=lambda _: {"f1": 1.0})


def _interrupted_twice(done: list[bool]) -> None:
    with signals_held_back():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done.append(True)


def test_signals_are_held_back() -> None:
    """A signal is heard after the body, once; the handlers are those of before."""
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        _interrupted_twice(done)
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is before
