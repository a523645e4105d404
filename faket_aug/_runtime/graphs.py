"""CUDA graphs: what a GPU was told once is told again at once, without the Python code that told it."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from faket_aug._runtime.threads import recording

#: With this variable set to 1, graphs are used. They have not run on a GPU yet, so they are left out by default.
VARIABLE = "FAKET_AUG_CUDA_GRAPHS"
#: Kinds of devices that have graphs.
KINDS = ("cuda",)
#: Graphs that one stream keeps, at most, and streams of one device that keep graphs.
MOST_GRAPHS, MOST_STREAMS = 8, 2
#: Whether PyTorch writes to new memory where results have to be the same each time.
_FILL = "fill_uninitialized_memory"

_lock = threading.Lock()
#: Devices on which a graph did not work: there none is used.
_refused: set[torch.device] = set()


def graphs_are_wanted(device: torch.device) -> bool:
    """Tell whether graphs may be used on a device: they were switched on, and none has failed there."""
    return device.type in KINDS and os.environ.get(VARIABLE, "0") == "1" and device not in _refused


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """Work on a GPU that can be recorded in a CUDA graph, and replayed with other inputs.

    At the first use of inputs of their shapes on a stream, the plain path computes the result, the work is recorded,
    replayed, and compared. If recording raises, or if a bit of the result differs, a warning says so, and no graph is
    used on this device from then on. Where memory is short, the plain path is taken for this time.

    Parameters
    ----------
    function
        Makes one tensor of the inputs. It does not wait for the GPU, and reads nothing that changes between two calls
        but the inputs.
    key
        All else that decides what the function does: its numbers, and which kernels are used.
    reads
        Tensors that the function reads beside its inputs. They stay with the graph; other tensors, or other contents,
        need another graph.
    owner
        What the graphs are made for: they go with it.
    room
        Bytes that the function takes beside its inputs, at most.
    """

    function: Callable[..., Tensor]
    key: Hashable
    reads: Sequence[Tensor]
    owner: object
    room: int

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Compute the result of inputs on one device, by a replay if there is one."""
        device = inputs[0].device
        if not graphs_are_wanted(device):
            return self.function(*inputs)
        # Outside of inference mode, where nobody could write to buffers that were made within.
        with torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
            return _of_stream(device).run(self, inputs)

    def key_of(self, inputs: Sequence[Tensor]) -> Hashable:
        """Return what a graph has to have in common with these inputs."""
        layouts = tuple((one.shape, one.stride(), one.dtype) for one in inputs)
        read = tuple((one.data_ptr(), one.shape, 0 if one.is_inference() else one._version) for one in self.reads)
        return self.key, layouts, read, _switches()


def _switches() -> Hashable:
    """Return the settings of a program that decide what PyTorch does on a GPU."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    convolutions = getattr(cudnn, "conv", None)  # since torch 2.9
    return (
        *(cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        cudnn.allow_tf32 if convolutions is None else convolutions.fp32_precision,
        *(matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction),
        *(torch.are_deterministic_algorithms_enabled(), getattr(torch.utils.deterministic, _FILL, None)),
    )


class _Graph:
    """A graph with the buffers that it reads and writes."""

    def __init__(self, graph: torch.cuda.CUDAGraph, buffers: list[Tensor], result: Tensor, held: list[Tensor]) -> None:
        self._graph, self._buffers, self._result = graph, buffers, result
        #: What it reads elsewhere.
        self.held = held

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        for buffer, given in zip(self._buffers, inputs, strict=True):
            buffer.copy_(given)
        self._graph.replay()
        # The next replay writes to the same memory.
        return self._result.clone()


class _OfStream:
    """The graphs that one stream replays. They share memory, as one runs after the other.

    They leave together: where PyTorch ends one graph, it may take away memory for products of matrices that the others
    of its stream use (pytorch/pytorch#193402).
    """

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._device, self._stream = device, stream
        #: One replay at a time, and none while something is recorded.
        self._lock = threading.Lock()
        self._kept: dict[Hashable, _Graph] = {}
        self._owners: weakref.WeakSet[Any] = weakref.WeakSet()
        self._leaving = self._gave_back = False
        self._pool: Any = None
        # A GPU's first stream cannot be recorded.
        first = stream == torch.cuda.default_stream(device)
        self._recorded: torch.cuda.Stream = torch.cuda.Stream(device) if first else stream  # type: ignore[no-untyped-call]

    def run(self, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        key = work.key_of(inputs)
        with self._lock:
            try:
                graph = self._kept.get(key)
                return self._first(key, work, inputs) if graph is None else graph.replay(inputs)
            except torch.OutOfMemoryError:
                raise
            except _Failed as failed:
                self._leaving = True
                _refuse(self._device, failed.why)
                return failed.result
            except RuntimeError as error:
                if key not in self._kept:  # the plain path's own
                    raise
                self._leaving = True
                _refuse(self._device, _told(error))
                return work.function(*inputs)
            finally:
                if self._leaving:
                    self._drop()

    def leave(self) -> None:
        """Drop all graphs, now, or at the end of what runs at the moment."""
        self._leaving = True
        # This may be called at any line, by the collection of garbage, too: also where this thread has the lock.
        if self._lock.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._lock.release()

    def _first(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        """Compute by the plain path, and record a graph that does the same."""
        buffers = [torch.empty_like(one) for one in inputs]
        for buffer, given in zip(buffers, inputs, strict=True):
            buffer.copy_(given)
        # What is made at a first use (checks of kernels, plans of cuDNN, weights turned round) is made here.
        expected = work.function(*buffers)
        if not self._has(work.room):
            return expected
        if len(self._kept) >= MOST_GRAPHS:
            self._drop()
        try:
            graph = self._record(work, buffers)
            # Each replay but the first finds the memory as a replay left it.
            same = [_same(graph.replay(inputs), expected) for _ in range(2)]
        except torch.OutOfMemoryError:  # says nothing of graphs
            self._leaving = True
            return expected
        except Exception as error:
            raise _Failed(_told(error), expected) from error
        if not all(same):
            raise _Failed("other results than without", expected)
        self._kept[key] = graph
        if work.owner not in self._owners:
            self._owners.add(work.owner)
            weakref.finalize(work.owner, _leave, weakref.ref(self)).atexit = False
        return expected

    def _has(self, room: int) -> bool:
        """Tell whether so many bytes are free. Graphs cannot use what PyTorch keeps: once, it gives that back."""
        if torch.cuda.mem_get_info(self._device)[0] >= room:
            return True
        if self._gave_back:
            return False
        self._gave_back = True
        torch.cuda.empty_cache()
        return bool(torch.cuda.mem_get_info(self._device)[0] >= room)

    def _record(self, work: Work, buffers: list[Tensor]) -> _Graph:
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # `torch.cuda.graph` would wait for the GPU, and give all free memory back. Other threads go on.
        with torch.cuda.stream(self._recorded), recording() as held:
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                result = work.function(*buffers)
                graph.capture_end()
            except BaseException:
                # An interruption may come anywhere: a stream that goes on recording would compute nothing any more.
                if torch.cuda.is_current_stream_capturing():
                    with suppress(Exception):
                        graph.capture_end()
                raise
        return _Graph(graph, buffers, result, [*work.reads, *held])

    def _drop(self) -> None:
        for graph in self._kept.values():
            for tensor in graph.held:
                # A replay may not have ended yet.
                if tensor.is_cuda:
                    tensor.record_stream(self._stream)
        self._kept.clear()
        # PyTorch ends a pool with its last graph.
        self._pool, self._leaving = None, False


class _Failed(Exception):
    """A graph that does not work, with the result of the plain path."""

    def __init__(self, why: str, result: Tensor) -> None:
        super().__init__(why)
        self.why, self.result = why, result


_streams: OrderedDict[tuple[torch.device, int], _OfStream] = OrderedDict()


def _of_stream(device: torch.device) -> _OfStream:
    """Return the graphs of the stream that this thread uses; those of the stream not used for longest leave."""
    stream = torch.cuda.current_stream(device)
    key = device, stream.cuda_stream
    with _lock:
        if key not in _streams:
            _streams[key] = _OfStream(device, stream)
        found = _streams[key]
        _streams.move_to_end(key)
        own = [one for one in _streams if one[0] == device]
        left = [_streams.pop(one) for one in own[:-MOST_STREAMS]]
    for one in left:
        one.leave()
    return found


def _leave(graphs: weakref.ref[_OfStream]) -> None:
    if (found := graphs()) is not None:
        found.leave()


def forget_graphs() -> None:
    """Drop all graphs, and with them the memory that they keep. They are recorded again when they are used."""
    with _lock:
        left = list(_streams.values())
        _streams.clear()
    for one in left:
        one.leave()


def _refuse(device: torch.device, what: str) -> None:
    """Use no graph on a device any more, and say why, once."""
    with _lock:
        if device in _refused:
            return
        _refused.add(device)
        left = [graphs for (own, _), graphs in _streams.items() if own == device]
    for one in left:
        one.leave()
    warnings.warn(
        f"expected CUDA graphs to work on {device}, got {what}; each operation is told to the GPU by itself, which "
        f"takes longer (without {VARIABLE}=1 graphs are not tried)",
        stacklevel=4,
    )


def _told(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__} ({lines[0][:200]})"


def _same(found: Tensor, expected: Tensor) -> bool:
    """Compare two results, in which NaN is equal to NaN."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return bool(((found == expected) | (found.isnan() & expected.isnan())).all())
