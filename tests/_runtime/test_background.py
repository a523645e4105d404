"""Making ahead: in order, one at a time, errors reach the taker, and stopping never waits for long."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from faket_aug._runtime.background import MakeAhead, Stopped, stop_all


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
