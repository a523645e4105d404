"""Where work runs: on a device that can be used, with a fixed number of threads, which changes the last bits."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

#: Where work runs, and with how many intra-op threads, unless it is told.
DEVICE, THREADS = "cpu", 1


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Run the body with `count` intra-op threads in this thread, then restore the number."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_forked_process() -> bool:
    """Tell whether this process was made by `fork` of the process that started it."""
    process = multiprocessing.current_process()
    if multiprocessing.parent_process() is None:
        return False
    method = getattr(type(process), "_start_method", None) or multiprocessing.get_start_method(allow_none=True)
    return bool(method == "fork")


def usable_device(name: str) -> torch.device:
    """Return a device, or say why it cannot be used.

    Raises
    ------
    ValueError
        If CUDA is asked for in a forked process, or where there is none.
    """
    device = torch.device(name)
    if device.type == "cuda":
        if in_forked_process():
            raise ValueError(
                f"expected a simulation on the CPU in a forked worker, got `device` {name!r}: CUDA does not survive a "
                'fork; give the DataLoader `multiprocessing_context="spawn"`, or `num_workers=0`'
            )
        if not torch.cuda.is_available():
            raise ValueError(f'expected a CUDA device for `device` {name!r}, found none; set `device` to "cpu"')
    return device


class SideStream:
    """A stream of its own on a GPU, for work beside what the GPU is used for; nothing on a CPU.

    There is one for all that is made: memory that was used on a stream is reused on that stream only. A copy in another
    process has one of its own.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def __reduce__(self) -> tuple[type[SideStream], tuple[()]]:
        return SideStream, ()

    @contextmanager
    def of(self, names: Sequence[str], index: int | None) -> Iterator[None]:
        """Run the body on the stream of the first GPU that is named; `index` is the one that a plain `"cuda"` means."""
        device = next((device for device in map(torch.device, names) if device.type == "cuda"), None)
        if device is None:
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(torch.device("cuda", index) if device.index is None else device)  # type: ignore[no-untyped-call]
        # What it reads may have been made on the stream that is left; and it makes its device the current one.
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield


def concrete_device(name: str | torch.device) -> torch.device:
    """Return a device as tensors have it: a plain `"cuda"` is the current GPU, with its index."""
    return torch.empty(0, device=name).device


def use_on_current_stream(tensors: Iterable[torch.Tensor]) -> None:
    """Keep the memory of what lies on a GPU, and another stream made, until what is launched on this one is done."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
