"""The style transfer by CUDA graphs is that without, bit for bit."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from faket_aug._runtime import graphs
from faket_aug._runtime.graphs import forget_graphs
from faket_aug._runtime.threads import SideStream
from faket_aug.statistics import mean_std
from faket_aug.style.encoder import StyleEncoder
from faket_aug.style.transfer import _BYTES_PER_PIXEL, StyleTargets, style_grams, stylize
from faket_aug.style.vgg19 import VGG19Features
from tests._graphs import StandIn, recorded_on_the_cpu
from tests._helpers import STYLE_LAYERS, generator, narrow_vgg

SIZE = (16, 24)
#: Two tilts at once.
BUDGET = 2 * SIZE[0] * SIZE[1] * _BYTES_PER_PIXEL


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A CPU that has graphs. Whatever is warned of is an error."""
    with recorded_on_the_cpu(monkeypatch) as made, warnings.catch_warnings():
        warnings.simplefilter("error")
        yield made


def _tilts(seed: int, count: int = 5, size: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Content, noisy tilts, and tilts with the style."""
    content = torch.rand(count, *size, generator=generator(seed))
    noisy, style = (torch.rand(count, *size, generator=generator(seed + offset)) for offset in (100, 200))
    return content, noisy, style


def _targets(style: Tensor, features: StyleEncoder, **given: Any) -> StyleTargets:
    mean, std = mean_std(style)
    return StyleTargets(grams=style_grams(style, features, **given), mean=mean, std=std)


def _both(features: StyleEncoder, seed: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Tensor, Tensor]:
    """Transfer a style with graphs and without."""
    content, noisy, style = _tilts(seed)
    targets = _targets(style, features, layers=STYLE_LAYERS)
    given: dict[str, Any] = {"features": features, "memory_budget": BUDGET, **settings}
    found = stylize(content, noisy, targets, **given)
    with monkeypatch.context() as patch:
        patch.delenv(graphs.VARIABLE)
        return found, stylize(content, noisy, targets, **given)


@pytest.mark.parametrize("pooling", ["max", "average", "l2"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_change_no_bit(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pooling: str, precision: str
) -> None:
    """Several series, each with a smaller last chunk: what is recorded once for each size serves all of them."""
    features = narrow_vgg(tmp_path, pooling=pooling, precision=precision)
    for seed in range(3):
        found, expected = _both(features, seed, monkeypatch, iterations=2)
        assert torch.equal(found, expected)
    assert len(gpu.recorded) == 2
    # Each record is replayed twice for the comparison. A series has three chunks.
    assert gpu.replays == 2 * 2 + 3 * 3 - 2


@pytest.mark.parametrize(
    "settings",
    [
        {"step_size": 0.05},
        {"iterations": 2},
        {"average_decay": 0.9},
        {"style_weights": (1.0, 2.0)},
        {"content_weight": 0.5},
        {"content_weight": 0.0},
        {"content_layers": (6,)},
    ],
)
def test_other_numbers(gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    """Every number of the transfer belongs to what is recorded."""
    features = narrow_vgg(tmp_path)
    _both(features, 0, monkeypatch)
    found, expected = _both(features, 0, monkeypatch, **settings)
    assert torch.equal(found, expected)
    assert len(gpu.recorded) == 4


def test_other_weights(gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of another encoder, and of one whose weights were changed in place, as they are turned round anew."""
    features = narrow_vgg(tmp_path)
    _both(features, 0, monkeypatch)
    found, expected = _both(narrow_vgg(tmp_path, seed=1), 0, monkeypatch)
    assert torch.equal(found, expected)
    assert len(gpu.recorded) == 4
    features.convolutions["weight_2"].mul_(1.5)
    found, expected = _both(features, 0, monkeypatch)
    assert torch.equal(found, expected)
    assert len(gpu.recorded) == 6


def test_other_targets_need_no_other_graph(gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gram matrices are inputs; other layers of them are not."""
    features = narrow_vgg(tmp_path)
    _both(features, 0, monkeypatch)
    content, noisy, style = _tilts(1)
    stylize(content, noisy, _targets(style, features, layers=STYLE_LAYERS), features=features, memory_budget=BUDGET)
    assert len(gpu.recorded) == 2
    stylize(content, noisy, _targets(style, features, layers=(1, 11)), features=features, memory_budget=BUDGET)
    assert len(gpu.recorded) == 4


class OfTheirOwn(VGG19Features):
    """An encoder of which nothing is known."""


def test_only_encoders_that_are_known(gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of a user's own may do what no graph can, or what would be another thing each time."""
    assert narrow_vgg(tmp_path).can_be_recorded
    features = OfTheirOwn(tmp_path / "narrow_vgg_0.pth")
    found, expected = _both(features, 0, monkeypatch)
    assert torch.equal(found, expected)
    assert gpu.recorded == []


def test_a_graph_that_fails(gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning says so, once, and the result is that without."""
    features = narrow_vgg(tmp_path)
    gpu.error = RuntimeError("no stream to record")
    with pytest.warns(UserWarning, match=r"expected CUDA graphs to work on cpu, got RuntimeError \(no stream to"):
        found, expected = _both(features, 0, monkeypatch)
    assert torch.equal(found, expected)
    gpu.error = None
    found, expected = _both(features, 1, monkeypatch)
    assert torch.equal(found, expected)
    assert gpu.recorded == []


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def _needs_graphs() -> None:
    try:
        torch.cuda.CUDAGraph()
    except RuntimeError as error:
        pytest.skip(f"needs a GPU that PyTorch itself finds: {str(error).splitlines()[0]}")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pooling", ["max", "average", "l2"])
def test_graphs_on_a_gpu(precision: str, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real GPU, at full width and odd sizes, they change no bit, and nothing is warned of."""
    _needs_graphs()
    size = (70, 97)
    features = VGG19Features("random", precision=precision, pooling=pooling).cuda()
    budget = 2 * size[0] * size[1] * _BYTES_PER_PIXEL
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            content, noisy, style = (tilts.cuda() for tilts in _tilts(seed, size=size))
            targets = _targets(style, features)
            found = {}
            for switch in ("0", "1", "1"):
                monkeypatch.setenv(graphs.VARIABLE, switch)
                made = stylize(content, noisy, targets, features=features, memory_budget=budget, iterations=2)
                assert torch.equal(found.setdefault(switch, made), made)
            assert torch.equal(found["0"], found["1"])
    assert [len(one._kept) for one in graphs._streams.values()] == [2]
    forget_graphs()


@pytest.mark.gpu
def test_graphs_beside_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are recorded and replayed on a stream of their own while another thread uses the GPU."""
    _needs_graphs()
    monkeypatch.setenv(graphs.VARIABLE, "0")
    features = VGG19Features("random", precision="bfloat16").cuda()
    series = [[tilts.cuda() for tilts in _tilts(seed, size=(64, 96))] for seed in range(4)]
    given = [(content, noisy, _targets(style, features)) for content, noisy, style in series]
    budget = 2 * 64 * 96 * _BYTES_PER_PIXEL
    expected = [stylize(*one, features=features, memory_budget=budget) for one in given]
    monkeypatch.setenv(graphs.VARIABLE, "1")
    found: list[Tensor] = []
    faults: list[BaseException] = []

    def simulate() -> None:
        try:
            with SideStream().of(["cuda"], torch.cuda.current_device()):
                found.extend(stylize(*one, features=features, memory_budget=budget) for one in given * 3)
                torch.cuda.current_stream().synchronize()
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=simulate)
    weights, target = torch.randn(512, 512, device="cuda", requires_grad=True), torch.randn(512, 512, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread.start()
        steps = 0
        while thread.is_alive() or steps < 20:
            # New memory of another size at each step, and a wait for a number, as in a training.
            loss = ((target @ weights)[: 100 + steps % 400].cos() ** 2).mean()
            loss.backward()
            assert float(loss) <= 1.0
            steps += 1
        thread.join()
    assert faults == []
    assert all(torch.equal(one, other) for one, other in zip(found, expected * 3, strict=True))
    forget_graphs()
