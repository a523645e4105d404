"""Making ahead: in order, one at a time, errors reach the taker, and stopping never waits for long."""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from faket_aug._runtime.background import KeptThread, MakeAhead, Stopped, stop_all


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("faket_aug_ahead")]


def test_one_value_is_made_ahead_in_order() -> None:
    """The next value is made once the one before it was taken, not sooner."""
    made: list[int] = []

    def make(key: int) -> int:
        made.append(key)
        return key * key

    ahead = MakeAhead(make, [3, 1, 2])
    taken = [ahead.take()]
    time.sleep(0.1)
    assert made == [3, 1]
    taken += [ahead.take(), ahead.take()]
    ahead.close()
    assert taken == [9, 1, 4]
    assert _threads() == []


def test_errors_reach_the_taker() -> None:
    """An error comes where its value would have come, the values before it first."""
    ahead = MakeAhead(lambda key: 1 // key, [1, 0])
    assert ahead.take() == 1
    with pytest.raises(ZeroDivisionError):
        ahead.take()
    ahead.close()
    assert _threads() == []


def test_closing_stops_python_at_once() -> None:
    """Work that would take a minute ends within the second, and tidies up."""
    begun, tidied = threading.Event(), []

    def make(key: int) -> int:
        begun.set()
        try:
            for _ in range(3000):
                time.sleep(0.02)
        finally:
            tidied.append(key)
        return key

    ahead = MakeAhead(make, [7])
    assert begun.wait(5)
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 0.9
    assert tidied == [7]
    assert _threads() == []


def test_closing_does_not_wait_for_a_long_operation() -> None:
    """An operation outside Python is waited for for a second; its result is dropped, and the thread then ends."""
    begun, gate = threading.Event(), threading.Event()

    def make(key: int) -> int:
        begun.set()
        gate.wait()
        return key

    ahead = MakeAhead(make, [0, 1])
    assert begun.wait(5)
    start = time.monotonic()
    ahead.close()
    assert 0.5 < time.monotonic() - start < 1.6
    gate.set()
    ahead._thread.join(5)
    assert _threads() == []


def test_who_waits_is_told() -> None:
    """Stopping from another thread ends the wait for a value."""
    gate = threading.Event()
    ahead = MakeAhead(lambda key: gate.wait(), [0])
    threading.Timer(0.1, ahead.stop).start()
    with pytest.raises(Stopped):
        ahead.take()
    gate.set()
    ahead.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_leaves_the_thread_alone() -> None:
    """The thread's number may be that of a thread of the forked process: stopping there raises nothing in it."""
    gate, begun = threading.Event(), threading.Event()

    def make(key: int) -> int:
        begun.set()
        gate.wait()
        return key

    ahead = MakeAhead(make, [7])
    assert begun.wait(5)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            # As if the system had given this thread the number of the one that was not taken along.
            ahead._thread._ident = threading.get_ident()  # type: ignore[attr-defined]
            ended = stop_all()
            ahead.close()
            os._exit(0 if ended else 2)
        except BaseException:  # the test must not go on in two processes
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.set()
    assert ahead.take() == 7
    ahead.close()


@pytest.fixture
def slow_end() -> Iterator[tuple[ctypes.CDLL, ctypes.c_uint]]:
    """A key of thread-local memory whose destructor sleeps: it runs after Python's part of a thread has ended."""
    library, key = ctypes.CDLL(None), ctypes.c_uint()
    assert library.pthread_key_create(ctypes.byref(key), ctypes.cast(library.usleep, ctypes.c_void_p)) == 0
    yield library, key
    library.pthread_key_delete(key)


@pytest.mark.skipif(sys.platform != "linux", reason="the system's list of threads is Linux's")
def test_the_thread_has_ended_for_the_system_too(slow_end: tuple[ctypes.CDLL, ctypes.c_uint]) -> None:
    """After `close` the operating system knows no such thread: what it held while it ended is free before a fork."""
    library, key = slow_end

    def make(microseconds: int) -> int:
        assert library.pthread_setspecific(key, ctypes.c_void_p(microseconds)) == 0
        return threading.get_native_id()

    ahead = MakeAhead(make, [200_000])
    thread = ahead.take()
    assert Path(f"/proc/self/task/{thread}").exists()
    ahead.close()
    assert not Path(f"/proc/self/task/{thread}").exists()


def _numbers_of_threads(kept: KeptThread, keys: list[int]) -> list[int]:
    """Make the number of the thread for each key."""
    ahead = MakeAhead(lambda _: threading.get_native_id(), keys, thread=kept)
    found = [ahead.take() for _ in keys]
    ahead.close()
    return found


def test_a_kept_thread_works_for_one_pass_after_the_other() -> None:
    """Passes that run to their end share a thread; it ends, for the system too, with whoever keeps it."""
    kept = KeptThread()
    first, second = _numbers_of_threads(kept, [1, 2, 3]), _numbers_of_threads(kept, [4])
    assert set(first) == set(second)
    assert len(_threads()) == 1
    del kept
    assert _threads() == []
    assert not Path(f"/proc/self/task/{first[0]}").exists()


def test_a_kept_thread_ends_with_a_pass_that_is_stopped() -> None:
    """A pass that is broken off leaves no thread, kept or not; the next one begins another."""
    kept = KeptThread()
    MakeAhead(lambda key: key, [], thread=kept).close()
    assert _threads() == []
    ahead = MakeAhead(lambda key: key, [1, 2, 3], thread=kept)
    assert ahead.take() == 1
    ahead.close()
    assert _threads() == []
    assert _numbers_of_threads(kept, [1])
    begun = threading.Event()

    def make(key: int) -> int:
        begun.set()
        for _ in range(3000):
            time.sleep(0.02)
        return key

    ahead = MakeAhead(make, [7], thread=kept)
    assert begun.wait(5)
    ahead.close()
    assert _threads() == []
    assert _numbers_of_threads(kept, [1, 2])


def test_passes_at_once_have_their_own_threads() -> None:
    """A second pass while the first one runs does not wait for it."""
    kept = KeptThread()
    first = MakeAhead(lambda _: threading.get_native_id(), [1, 2], thread=kept)
    second = MakeAhead(lambda _: threading.get_native_id(), [1, 2], thread=kept)
    numbers = [[ahead.take() for _ in range(2)] for ahead in (first, second)]
    assert len({*numbers[0], *numbers[1]}) == 2
    for ahead in (second, first):
        ahead.close()
    assert len(_threads()) == 1
    assert _numbers_of_threads(kept, [1]) == numbers[0][:1]


def test_a_kept_thread_holds_nothing_while_it_waits() -> None:
    """What made the values of a pass that has ended is free."""
    kept = KeptThread()

    class Maker:
        def __call__(self, key: int) -> int:
            return key

    maker = Maker()
    seen = weakref.ref(maker)
    ahead = MakeAhead(maker, [1], thread=kept)
    assert ahead.take() == 1
    ahead.close()
    del maker, ahead
    deadline = time.monotonic() + 5
    while seen() is not None and time.monotonic() < deadline:
        time.sleep(1e-3)
        gc.collect()
    assert seen() is None
    assert len(_threads()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_kept_thread_of_the_parent_is_no_thread_of_a_forked_process() -> None:
    """A forked process, and a copy, begin their own thread; that of the parent goes on."""
    kept = KeptThread()
    own = _numbers_of_threads(kept, [1])
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            found = _numbers_of_threads(kept, [1])
            del kept
            os._exit(0 if found != own and not _threads() else 2)
        except BaseException:  # the test must not go on in two processes
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _numbers_of_threads(pickle.loads(pickle.dumps(kept)), [1]) != own
    assert _numbers_of_threads(kept, [1]) == own


def _send_and_end(queue: Any) -> None:
    """As a worker of a loader that is closed early: a value is on its way when the process ends."""
    # Threads that are still at work are looked after by this module.
    assert "faket_aug._runtime.background" in sys.modules
    queue.cancel_join_thread()
    queue.put(torch.zeros(100_000_000))
    deadline = time.monotonic() + 10
    while not any(one.name.startswith("QueueFeeder") for one in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(1e-3)
    time.sleep(0.05)


@pytest.mark.slow
def test_a_spawned_worker_that_is_sending_is_not_aborted() -> None:
    """The thread of a queue that still copies a tensor does not abort the process when the interpreter ends."""
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_send_and_end, args=(queue,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
