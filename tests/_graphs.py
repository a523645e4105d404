"""CUDA graphs without a GPU: operations on the CPU are recorded one by one, and done again on the same tensors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from faket_aug._runtime import graphs


class _Tape(TorchDispatchMode):
    """Notes each operation of a thread with its own tensors, and refuses those that wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any("Tensor" in str(one.type) for one in func._schema.returns):
            if not any(isinstance(one, Tensor) for one in args):
                return func(*args, **kwargs)  # nothing of a GPU
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({func})\nand much more")
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    def again(self) -> None:
        """Do all of it again; what is new each time takes the place of what was new before."""
        for func, args, kwargs, before in self.operations:
            aliases = [one.alias_info for one in func._schema.returns]
            if all(alias is not None and not alias.is_write for alias in aliases):
                continue  # a view of what is changed anyway
            now = func(*args, **kwargs)
            pairs = zip(*((one if isinstance(one, (tuple, list)) else (one,)) for one in (before, now)), strict=True)
            for (old, new), alias in zip(pairs, aliases, strict=True):
                if alias is None:
                    old.copy_(new)


class Stream:
    """A stream, by its number."""

    count = 0

    def __init__(self, device: Any = None) -> None:
        Stream.count += 1
        self.cuda_stream = Stream.count


class StandIn:
    """What of `torch.cuda` records and replays."""

    def __init__(self) -> None:
        self.first = Stream()
        self.recorded: list[Stream] = []
        self.pools: list[object] = []
        self.replays = 0
        #: Bytes that are free, and those that PyTorch keeps.
        self.free, self.kept = 2**40, 0
        #: What replays do to the last result, and what recording raises.
        self.spoil = self.error = None
        self._local = threading.local()

    def current_stream(self, device: Any = None) -> Stream:
        return getattr(self._local, "stream", self.first)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._local.stream = self.current_stream(), stream
        try:
            yield
        finally:
            self._local.stream = before

    def empty_cache(self) -> None:
        self.free, self.kept = self.free + self.kept, 0

    def is_current_stream_capturing(self) -> bool:
        return getattr(self._local, "tape", None) is not None

    def graph(self) -> Any:
        stand_in = self

        class Graph:
            def capture_begin(self, pool: object, capture_error_mode: str) -> None:
                assert capture_error_mode == "thread_local"
                assert stand_in.current_stream() is not stand_in.first, "a GPU's first stream cannot be recorded"
                if stand_in.error is not None:
                    raise stand_in.error
                stand_in.recorded.append(stand_in.current_stream())
                stand_in.pools.append(pool)
                self.tape = stand_in._local.tape = _Tape()
                self.tape.__enter__()

            def capture_end(self) -> None:
                stand_in._local.tape = None
                self.tape.__exit__(None, None, None)

            def replay(self) -> None:
                stand_in.replays += 1
                self.tape.again()
                if stand_in.spoil is not None:
                    result: Tensor = self.tape.operations[-1][3]
                    result.copy_(stand_in.spoil(result))

        return Graph()


@contextmanager
def recorded_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Let the CPU have graphs, and switch them on; nothing is known of it before, nor kept afterwards."""
    made = StandIn()
    monkeypatch.setenv(graphs.VARIABLE, "1")
    monkeypatch.setattr(graphs, "KINDS", ("cpu",))
    monkeypatch.setattr(graphs, "_refused", set())
    monkeypatch.setattr(graphs, "_streams", type(graphs._streams)())
    stand_ins = {
        "CUDAGraph": made.graph,
        "Stream": Stream,
        "current_stream": made.current_stream,
        "default_stream": lambda device=None: made.first,
        "device": lambda device: nullcontext(),
        "empty_cache": made.empty_cache,
        "graph_pool_handle": object,
        "is_current_stream_capturing": made.is_current_stream_capturing,
        "mem_get_info": lambda device=None: (made.free, 2**40),
        "stream": made.stream,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    yield made
