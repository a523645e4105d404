"""The average of the weights over the steps: its values, where it is used, and that a resumed run keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from faket_aug.picking import DeepFinderNet, PickerDescription, TrainingSettings, fit, load_picker, load_weights
from faket_aug.picking.averaging import WeightAverage
from faket_aug.picking.checkpoints import BEST, CHECKPOINT, read_state
from tests._helpers import generator

#: No step is at its cap but the last ones.
AVERAGE = 0.4
SETTINGS: dict[str, Any] = {"steps": 7, "learning_rate": 0.01, "validate_every": 3, "checkpoint_every": 2}


def _network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 4, 1))


class _Patches(Dataset[dict[str, Tensor]]):
    """Patches in memory."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = torch.randn((1, 8, 8, 8), generator=generator(index))
        return {"image": image, "label": (image[0] > 0.5).long()}


def _loader() -> DataLoader[dict[str, Tensor]]:
    return DataLoader(_Patches(), batch_size=5, generator=generator())


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in network.state_dict().items()}


def _same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _norm(network: nn.Module) -> float:
    assert not network.training
    return float(sum(one.float().abs().sum() for one in network.state_dict().values()))


class _Watched:
    """Keep the network's own weights after each step, and those that it has at each validation."""

    def __init__(self, network: nn.Module, stop: int = 0) -> None:
        self.network, self.stop = network, stop
        self.steps: list[dict[str, Tensor]] = [_state(network)]
        self.validated: list[dict[str, Tensor]] = []

    def on_step(self, step: int, loss: float) -> None:
        self.steps.append(_state(self.network))
        if step == self.stop:
            raise KeyboardInterrupt

    def on_validation(self, network: nn.Module, history: Any) -> None:
        assert network is self.network
        self.validated.append(_state(network))

    def train(self, folder: Path, **settings: Any) -> list[float]:
        return fit(
            self.network,
            _loader(),
            folder,
            settings=TrainingSettings(**SETTINGS | settings),
            validation=_norm,
            on_step=self.on_step,
            on_validation=self.on_validation,
        ).losses


def test_values_by_hand() -> None:
    """Of the weights 1, 2 and 4 that follow on 0, with 2/11, then 3/12, then the decay kept."""
    with torch.random.fork_rng():
        network = nn.Linear(1, 1, bias=False)
    network.register_buffer("mean", torch.zeros(2))
    network.register_buffer("count", torch.tensor(0))
    with torch.no_grad():
        network.weight.fill_(0)
    average = WeightAverage(network, 0.3)
    for step, value in enumerate((1, 2, 4), start=1):
        for one in network.state_dict().values():
            one.fill_(value)
        average.update(step)
    first = 9 / 11 * 1
    second = 3 / 12 * first + 9 / 12 * 2
    # 4/13 would be more than 0.3.
    third = 0.3 * second + 0.7 * 4
    assert average.weights["weight"].item() == pytest.approx(third, rel=1e-6)
    assert average.weights["mean"].tolist() == pytest.approx([third, third], rel=1e-6)
    assert average.weights["count"].item() == 4
    with average.in_the_network():
        assert network.weight.item() == pytest.approx(third, rel=1e-6)
        assert average.trained()["weight"].item() == 4
    assert network.weight.item() == 4


def test_what_is_averaged_and_what_is_trained(tmp_path: Path) -> None:
    """Training takes the steps that it takes without an average; all that is used has the average of its weights."""
    plain, own = _Watched(_network()), _Watched(_network())
    assert own.train(tmp_path / "own", average=AVERAGE) == plain.train(tmp_path / "plain")
    assert all(_same(one, other) for one, other in zip(own.steps, plain.steps, strict=True))
    expected = [own.steps[0]]
    for step, weights in enumerate(own.steps[1:], start=1):
        kept = min(AVERAGE, (1 + step) / (10 + step))
        expected.append(
            {
                name: kept * expected[-1][name] + (1 - kept) * one if one.is_floating_point() else one
                for name, one in weights.items()
            }
        )
    for step, found in zip((3, 6, 7), own.validated, strict=True):
        for name, one in expected[step].items():
            torch.testing.assert_close(found[name], one, msg=name)
    # The network that was given, the checkpoint and the best weights.
    saved = read_state(tmp_path / "own" / CHECKPOINT)
    assert _same(_state(own.network), own.validated[-1])
    assert _same(saved["model"], own.validated[-1])
    assert _same(saved["trained_model"], plain.steps[-1])
    norms = [sum(one.float().abs().sum() for one in found.values()) for found in own.validated]
    best = _network(1)
    load_weights(best, tmp_path / "own" / BEST)
    assert _same(_state(best), own.validated[norms.index(min(norms))])
    assert "trained_model" not in read_state(tmp_path / "plain" / CHECKPOINT)


@pytest.mark.parametrize("stop", [2, 5])
def test_resume_is_exact(tmp_path: Path, stop: int) -> None:
    """A run that was broken off has the same weights, average and validations in the end, bit for bit."""
    whole = _Watched(_network())
    whole.train(tmp_path / "whole", average=AVERAGE)
    with pytest.raises(KeyboardInterrupt):
        _Watched(_network(), stop).train(tmp_path / "parts", average=AVERAGE)
    parts = _Watched(_network(1))
    parts.train(tmp_path / "parts", average=AVERAGE)
    assert _same(_state(parts.network), _state(whole.network))
    mine, theirs = (read_state(tmp_path / name / CHECKPOINT) for name in ("parts", "whole"))
    for name in ("model", "trained_model", "best_model"):
        assert _same(mine[name], theirs[name]), name
    assert mine["validations"] == theirs["validations"]
    # A finished training that is called again leaves the average in the network, too.
    again = _Watched(_network(2))
    again.train(tmp_path / "parts", average=AVERAGE)
    assert _same(_state(again.network), _state(whole.network))


def test_a_stop_within_a_validation(tmp_path: Path) -> None:
    """Ctrl-C while the network holds the average: the training goes on with its own weights."""
    whole = _Watched(_network())
    whole.train(tmp_path / "whole", average=AVERAGE)
    parts = _Watched(_network())
    parts.on_validation = _interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        parts.train(tmp_path / "parts", average=AVERAGE)
    assert _same(_state(parts.network), whole.steps[3])
    parts = _Watched(_network(1))
    parts.train(tmp_path / "parts", average=AVERAGE)
    assert _same(_state(parts.network), _state(whole.network))


def _interrupt(network: nn.Module, history: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_of_before(tmp_path: Path) -> None:
    """A checkpoint without the setting is that of a training without an average: it is gone on with as such only."""
    plain = _Watched(_network())
    plain.train(tmp_path)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del state["settings"]["average"]
    torch.save(state, tmp_path / CHECKPOINT)
    again = _Watched(_network(1))
    again.train(tmp_path)
    assert _same(_state(again.network), _state(plain.network))
    with pytest.raises(ValueError, match=r"other average \(was 0.0, is 0.4\)"):
        again.train(tmp_path, average=AVERAGE)


def test_the_picker_of_a_run(tmp_path: Path) -> None:
    """`load_picker` gives the average, also of a run that was never validated."""
    with torch.random.fork_rng():
        network = DeepFinderNet(4, widths=(2, 2, 2))
    describes = PickerDescription(
        class_names={1: "a", 2: "b", 3: "c"}, widths=(2, 2, 2), voxel_size=10, filter="ramp", radii={1: 9, 2: 9, 3: 9}
    )
    settings = TrainingSettings(steps=3, learning_rate=0.01, average=0.9)
    fit(network, _loader(), tmp_path, settings=settings, describes=describes)
    found, saved = load_picker(tmp_path).network.state_dict(), read_state(tmp_path / CHECKPOINT)
    for name, one in network.state_dict().items():
        if name != "_voxel_size":
            assert torch.equal(found[name], one)
    assert not torch.equal(found["head.weight"], saved["trained_model"]["head.weight"])


@pytest.mark.parametrize("average", [-0.1, 1.0, 1.5])
def test_averages_that_are_none(average: float) -> None:
    with pytest.raises(ValueError, match="expected `average`"):
        TrainingSettings(steps=1, average=average)
