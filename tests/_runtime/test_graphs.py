"""CUDA graphs give what the plain path gives; whatever goes wrong with one, the plain path takes over."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from faket_aug._runtime import graphs
from faket_aug._runtime.background import Stopped
from faket_aug._runtime.graphs import Work, forget_graphs
from faket_aug._runtime.kernels import Kernel
from faket_aug._runtime.threads import Made, is_recording, recording, use_on_current_stream
from tests._graphs import StandIn, Stream, recorded_on_the_cpu


class Owner:
    """What graphs are made for."""


OWNER = Owner()
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A CPU that has graphs. Whatever is warned of is an error."""
    with recorded_on_the_cpu(monkeypatch) as made, warnings.catch_warnings():
        warnings.simplefilter("error")
        yield made


def _weighted(images: Tensor, offset: Tensor) -> Tensor:
    """Do a little of all: new tensors, changes in place, views, several results."""
    total = torch.zeros_like(images)
    total += images * WEIGHTS
    total[:, 0].mul_(2.0)
    low, _ = total.sort(dim=1)
    return torch.where(low > 1, low, 0.0) + offset


def _work(function: Callable[..., Tensor] = _weighted, **changes: Any) -> Work:
    given: dict[str, Any] = {"key": "numbers", "reads": [WEIGHTS], "owner": OWNER, "room": 0}
    return Work(function=function, **{**given, **changes})


def _inputs(seed: int = 0, count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator), torch.randn(count, 1, generator=generator)


def test_replays_give_the_plain_results(gpu: StandIn) -> None:
    """Each content, and each number of images, gives what the function gives; it is recorded once for each number."""
    calls: list[int] = []

    def counted(images: Tensor, offset: Tensor) -> Tensor:
        calls.append(len(images))
        return _weighted(images, offset)

    work, results = _work(counted), []
    for seed, count in enumerate((4, 4, 4, 3, 4, 3)):
        given = _inputs(seed, count)
        results.append((work(*given), _weighted(*given)))
    assert all(torch.equal(found, expected) for found, expected in results), "and no replay changed an earlier result"
    assert calls == [4, 4, 3, 3], "by the plain path, and for the record"
    assert len(gpu.recorded) == 2
    assert len(set(map(id, gpu.pools))) == 1
    assert gpu.replays == 2 + 2 + 2 + 2


def test_what_is_no_number(gpu: StandIn) -> None:
    """NaN is equal to NaN."""
    images, offset = _inputs()
    images[0, 0] = torch.nan
    for _ in range(2):
        assert torch.equal(_work()(images, offset).nan_to_num(7.5), _weighted(images, offset).nan_to_num(7.5))


def test_a_stream_of_its_own_is_recorded_itself(gpu: StandIn) -> None:
    """A GPU's first stream cannot be; another one stands in."""
    work, own = _work(), Stream()
    work(*_inputs())
    with gpu.stream(own):
        work(*_inputs())
    assert gpu.first not in gpu.recorded
    assert gpu.recorded[1] is own


@pytest.mark.parametrize(
    "change",
    [
        lambda work, patch: _work(key="others"),
        lambda work, patch: _work(reads=[WEIGHTS.clone()]),
        lambda work, patch: WEIGHTS.add_(0.0) is None or work,
        lambda work, patch: patch.setattr(torch.backends.cudnn, "benchmark", True) or work,
    ],
)
def test_what_needs_another_graph(gpu: StandIn, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Other numbers, other weights, the same with other contents, and settings of the program."""
    work = _work()
    work(*_inputs())
    work(*_inputs(1))
    assert len(gpu.recorded) == 1
    other = change(work, monkeypatch)
    assert torch.equal(other(*_inputs(2)), _weighted(*_inputs(2)))
    assert len(gpu.recorded) == 2


@pytest.mark.parametrize("value", [None, "0", ""])
def test_off_by_default(gpu: StandIn, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """Without the variable nothing is recorded, nor anything else done."""
    if value is None:
        monkeypatch.delenv(graphs.VARIABLE)
    else:
        monkeypatch.setenv(graphs.VARIABLE, value)
    assert torch.equal(_work()(*_inputs()), _weighted(*_inputs()))
    assert (gpu.recorded, gpu.replays, len(graphs._streams)) == ([], 0, 0)


def _waits(images: Tensor, offset: Tensor) -> Tensor:
    return images * float(offset[0, 0])


def test_what_cannot_be_recorded(gpu: StandIn) -> None:
    """One warning says why; from then on the plain path is taken on this device, also for other work."""
    told = r"expected CUDA graphs to work on cpu, got RuntimeError \(CUDA error: operation not permitted .*\); each"
    with pytest.warns(UserWarning, match=told) as said:
        assert torch.equal(_work(_waits)(*_inputs()), _waits(*_inputs()))
    assert "much more" not in str(said[0].message)
    assert not gpu.is_current_stream_capturing()
    assert not is_recording()
    assert torch.equal(_work(_waits)(*_inputs(1)), _waits(*_inputs(1)))
    assert torch.equal(_work()(*_inputs(1)), _weighted(*_inputs(1)))
    assert len(gpu.recorded) == 1


@pytest.mark.parametrize("spoil", [lambda one: one + 1e-7, lambda one: one * torch.nan])
def test_other_results(gpu: StandIn, spoil: Any) -> None:
    """A replay that gives any other bit is not used."""
    gpu.spoil = spoil
    with pytest.warns(UserWarning, match="got other results than without; each"):
        assert torch.equal(_work()(*_inputs()), _weighted(*_inputs()))
    assert torch.equal(_work()(*_inputs()), _weighted(*_inputs()))
    assert len(gpu.recorded) == 1


def test_a_replay_that_fails_later(gpu: StandIn) -> None:
    """The plain path takes over, with the same warning."""
    work = _work()
    work(*_inputs())

    def fail(result: Tensor) -> Tensor:
        raise RuntimeError("no launch")

    gpu.spoil = fail
    with pytest.warns(UserWarning, match=r"got RuntimeError \(no launch\)"):
        assert torch.equal(work(*_inputs(1)), _weighted(*_inputs(1)))
    assert torch.equal(work(*_inputs(2)), _weighted(*_inputs(2)))


def test_errors_of_the_plain_path_are_its_own(gpu: StandIn) -> None:
    """What the function itself refuses says nothing of graphs."""
    with pytest.raises(RuntimeError, match="size"):
        _work()(torch.ones(2, 4), torch.ones(2, 1))
    _work()(*_inputs())
    assert len(gpu.recorded) == 1


def test_short_memory_is_not_remembered(gpu: StandIn) -> None:
    """The plain path is taken, silently; later a graph is recorded after all."""
    work = _work(room=2**30)
    gpu.free = 2**29
    assert torch.equal(work(*_inputs()), _weighted(*_inputs()))
    gpu.free, gpu.error = 2**31, torch.OutOfMemoryError("full")
    assert torch.equal(work(*_inputs()), _weighted(*_inputs()))
    assert gpu.recorded == []
    gpu.error = None
    assert torch.equal(work(*_inputs()), _weighted(*_inputs()))
    assert len(gpu.recorded) == 1


def test_what_pytorch_keeps_is_given_back_once(gpu: StandIn) -> None:
    """Graphs cannot use it; without enough it is not asked for again and again."""
    gpu.free, gpu.kept = 0, 2**20
    _work(room=2**21)(*_inputs())
    assert (gpu.free, len(gpu.recorded)) == (2**20, 0)
    gpu.kept = 2**20
    _work(room=2**21)(*_inputs())
    assert gpu.kept == 2**20
    _work(room=2**20)(*_inputs())
    assert len(gpu.recorded) == 1
    forget_graphs()
    _work(room=2**21)(*_inputs())
    assert (gpu.free, len(gpu.recorded)) == (2**21, 2)


def test_memory_that_is_full_while_recording(gpu: StandIn) -> None:
    """What is recorded ends; the stream computes again."""
    full = True

    def function(images: Tensor, offset: Tensor) -> Tensor:
        result = images + offset
        if is_recording() and full:
            raise torch.OutOfMemoryError("full")
        return result

    work = _work(function)
    assert torch.equal(work(*_inputs()), function(*_inputs()))
    assert not gpu.is_current_stream_capturing()
    full = False
    work(*_inputs())
    assert gpu.replays == 2


def test_an_interruption_while_recording(gpu: StandIn) -> None:
    """The end of the work says nothing of graphs, and leaves no stream that records."""
    stop = True

    def function(images: Tensor, offset: Tensor) -> Tensor:
        if is_recording() and stop:
            raise Stopped
        return images + offset

    work = _work(function)
    with pytest.raises(Stopped):
        work(*_inputs())
    assert not gpu.is_current_stream_capturing()
    assert not is_recording()
    stop = False
    work(*_inputs())
    assert gpu.replays == 2


def test_few_graphs_and_streams_are_kept(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph too many for a stream makes room for it; one stream too many takes the place of the oldest."""
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    for number in (0, 1, 1, 0, 2, 2):
        _work(key=number)(*_inputs())
    assert len(gpu.recorded) == 3
    assert [len(one._kept) for one in graphs._streams.values()] == [1]
    assert len(set(map(id, gpu.pools))) == 2, "PyTorch ends a pool with its last graph"
    streams = [Stream() for _ in range(graphs.MOST_STREAMS)]
    for stream in (streams[0], None, *streams[1:]):
        with gpu.stream(stream or gpu.first):
            _work(key=2)(*_inputs())
    assert len(gpu.recorded) == 3 + len(streams), "the first stream was used again, and has kept its own"
    assert [key[1] for key in graphs._streams] == [gpu.first.cuda_stream, streams[-1].cuda_stream]


def test_graphs_go_with_their_owner(gpu: StandIn) -> None:
    """So does the memory that they keep; also when they are told to."""
    owner = Owner()
    _work(owner=owner)(*_inputs())
    (kept,) = graphs._streams.values()
    assert len(kept._kept) == 1
    del owner
    gc.collect()
    assert (kept._kept, kept._pool) == ({}, None)
    _work()(*_inputs())
    assert len(gpu.recorded) == 2
    forget_graphs()
    assert (kept._kept, len(graphs._streams)) == ({}, 0)


def test_an_owner_that_goes_meanwhile(gpu: StandIn) -> None:
    """Graphs that run at the moment leave when they have run."""
    owner = [Owner()]

    def function(images: Tensor, offset: Tensor) -> Tensor:
        owner.clear()
        return images + offset

    work = _work(function, owner=owner[0], key="first")
    other = _work()
    other(*_inputs())
    (kept,) = graphs._streams.values()
    kept._owners.add(owner[0])
    graphs.weakref.finalize(owner[0], graphs._leave, graphs.weakref.ref(kept))
    object.__setattr__(work, "owner", OWNER)
    work(*_inputs())
    assert kept._kept == {}
    assert torch.equal(other(*_inputs(1)), _weighted(*_inputs(1)))


@pytest.mark.parametrize("own_streams", [False, True])
def test_two_threads(gpu: StandIn, own_streams: bool) -> None:
    """No replay reads what another thread has put into its buffers."""
    work, wrong = _work(), []

    def run(first: int) -> None:
        with gpu.stream(Stream() if own_streams else gpu.first):
            for seed in range(first, first + 60):
                given = _inputs(seed)
                if not torch.equal(work(*given), _weighted(*given)):
                    wrong.append(seed)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=(first,)) for first in (0, 1000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []
    assert len(gpu.recorded) == 1 + own_streams


def test_inside_and_outside_of_inference_mode(gpu: StandIn) -> None:
    """A graph that was recorded in inference mode is replayed outside, and the other way round."""
    work = _work()
    with torch.inference_mode():
        work(*_inputs())
        given = _inputs(1)
    assert torch.equal(work(*given), _weighted(*given))
    with torch.inference_mode():
        assert torch.equal(work(*_inputs(2)), _weighted(*_inputs(2)))
    assert len(gpu.recorded) == 1


# --- what is done otherwise while a graph is recorded -----------------------------------------------------------------


def test_tensors_stay_while_a_graph_reads_them() -> None:
    """What would be kept for a stream is kept for the graph; nothing is waited for that was made before."""
    made, tensor = Made(torch.device("cpu")), torch.ones(2)
    made._event = object()  # type: ignore[assignment]
    with recording() as held:
        use_on_current_stream([tensor])
        made.before(torch.device("cuda", 0))
    assert held[0] is tensor
    use_on_current_stream([tensor])
    assert len(held) == 1


def test_a_kernel_that_fails_while_a_graph_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault may be the graph's: the kernel goes on being used."""
    from faket_aug._runtime import kernels

    monkeypatch.setattr(kernels, "_refused", set())
    monkeypatch.setattr(Kernel, "_is_for", lambda self, first, *args: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: graphs.suppress())

    def launch(values: Tensor) -> Tensor:
        if is_recording():
            raise RuntimeError("capturing")
        return values * 2

    kernel: Kernel[..., Tensor] = Kernel(
        "double", launch=launch, plain=lambda values: values * 2, samples=lambda device, dtype: [(torch.ones(3),)]
    )
    kernel(torch.ones(2))
    with recording(), pytest.raises(RuntimeError, match="capturing"):
        kernel(torch.ones(2))
    assert torch.equal(kernel(torch.ones(2)), torch.full((2,), 2.0))
    assert not kernels._refused
