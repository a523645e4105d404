"""Devices, streams and intra-op threads. The number of threads changes the last bits of results, so it is fixed."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

#: Where work runs, and with how many intra-op threads, unless it is told.
DEVICE, THREADS = "cpu", 1
#: Linux: a folder for each thread of this process.
_TASKS = Path("/proc/self/task")
#: For how many seconds the system may take to end a thread that Python has ended.
_LINGERING = 1.0


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Run the body with `count` intra-op threads, then restore the number that was set before."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def run_side_by_side(pieces: Iterable[Callable[[], object]], count: int) -> None:
    """Run pieces of work on `count` threads, each of which takes the next piece when it is done with one.

    The threads of one parallel region wait for each other at its end. On a processor that other programs use, too, that
    is a few milliseconds each time: many small regions on two threads are then slower than one thread. Here no thread
    waits before all work is done, and pieces have no intra-op threads of their own.

    Parameters
    ----------
    pieces
        Functions whose order does not matter. The first error ends the work, and is raised.
    count
        Threads, this one among them. With 1 the pieces keep the intra-op threads that there are.
    """
    waiting = iter(list(pieces))
    if count <= 1:
        for piece in waiting:
            piece()
        return
    errors: list[BaseException] = []
    # What a new thread does not have from this one.
    inference, autocast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    half = torch.get_autocast_dtype("cpu")

    def work() -> None:
        # A new thread takes over the number of intra-op threads when it is asked for, not before.
        torch.get_num_threads()
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", half, enabled=autocast):
            try:
                for piece in waiting:
                    if errors:
                        return
                    piece()
            except BaseException as error:
                errors.append(error)

    with intra_op_threads(1):
        others = [threading.Thread(target=work, name="faket_aug") for _ in range(count - 1)]
        for other in others:
            other.start()
        work()
        for other in others:
            _joined(other, errors)
    if errors:
        raise errors[0]


def _joined(thread: threading.Thread, errors: list[BaseException]) -> None:
    """Wait for a thread; Ctrl-C meanwhile is one more error, for which it ends after its present piece."""
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as error:
            errors.append(error)
    wait_for_the_end(thread)


def wait_for_the_end(thread: threading.Thread) -> None:
    """Wait until the operating system has ended a thread that Python has joined already.

    After Python's part of a thread has ended, the thread gives back the buffers of MKL, and holds a lock of MKL
    meanwhile. A worker that is forked at this moment has a copy of the lock that no thread releases: its first Fourier
    transform never ends.
    """
    latest = time.monotonic() + _LINGERING
    while (_TASKS / str(thread.native_id)).exists() and time.monotonic() < latest:
        time.sleep(1e-4)


def in_forked_process() -> bool:
    """Tell whether this process was started by `fork`."""
    process = multiprocessing.current_process()
    if multiprocessing.parent_process() is None:
        return False
    method = getattr(type(process), "_start_method", None) or multiprocessing.get_start_method(allow_none=True)
    return bool(method == "fork")


def usable_device(name: str) -> torch.device:
    """Return a device if it can be used here.

    Raises
    ------
    ValueError
        If there is no such device here, or CUDA is asked for in a forked process.
    """
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            # Others are known to every PyTorch, and are there with some.
            torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'expected `device` to be "cpu", "cuda" or "cuda:1", got {name!r}') from error
    if device.type == "cuda":
        if in_forked_process():
            raise ValueError(
                f"expected a simulation on the CPU in a forked worker, got `device` {name!r}: CUDA does not survive a "
                'fork; give the DataLoader `multiprocessing_context="spawn"`, or `num_workers=0`'
            )
        if not torch.cuda.is_available():
            raise ValueError(f'expected a CUDA device for `device` {name!r}, found none; set `device` to "cpu"')
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            raise ValueError(
                f'expected one of {count} CUDA devices for `device`, the first of which is "cuda:0", got {name!r}'
            )
    return device


class SideStream:
    """A stream on a GPU for work beside the main work of this GPU. On a CPU it does nothing.

    Everything that is made uses this one stream, because memory is reused only on the stream that it was used on. A
    copy in another process has its own stream.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def __reduce__(self) -> tuple[type[SideStream], tuple[()]]:
        return SideStream, ()

    @contextmanager
    def of(self, names: Sequence[str], index: int | None) -> Iterator[None]:
        """Run the body on a stream of the first GPU among `names`. `index` tells which GPU a plain `"cuda"` means."""
        device = next((device for device in map(torch.device, names) if device.type == "cuda"), None)
        if device is None:
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(torch.device("cuda", index) if device.index is None else device)  # type: ignore[no-untyped-call]
        # The body may read what was made on the stream before it. `stream` also makes its device the current one.
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield


class Made:
    """The moment at which the current stream of a GPU will have made something. On a CPU it is over."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def before(self, device: torch.device) -> None:
        """Let what the current stream of a device does from now on come after it; the program itself does not wait.

        What is recorded in a CUDA graph does not wait: the same work, done before it was recorded, did.
        """
        if self._event is not None and not is_recording():
            torch.cuda.current_stream(device).wait_event(self._event)


def concrete_device(name: str | torch.device) -> torch.device:
    """Return a device as a tensor names it: a plain `"cuda"` becomes the current GPU, with its index."""
    return torch.empty(0, device=name).device


def use_on_current_stream(tensors: Iterable[torch.Tensor]) -> None:
    """Keep the memory of GPU tensors that another stream made, until the work of the current stream on them is done.

    What is recorded in a CUDA graph may be done at any time later: the graph keeps them.
    """
    if _recording.held is not None:
        _recording.held.extend(tensors)
        return
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


class _Recording(threading.local):
    """What a thread records in a CUDA graph, if it does."""

    #: Tensors that it reads, and that have to stay; None while nothing is recorded.
    held: list[torch.Tensor] | None = None


_recording = _Recording()


@contextmanager
def recording() -> Iterator[list[torch.Tensor]]:
    """Record a CUDA graph in this thread; the list comes to hold the tensors that `use_on_current_stream` gets."""
    held: list[torch.Tensor] = []
    try:
        _recording.held = held
        yield held
    finally:
        _recording.held = None


def is_recording() -> bool:
    """Tell whether this thread records a CUDA graph."""
    return _recording.held is not None
