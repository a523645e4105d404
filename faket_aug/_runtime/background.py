"""Making the next value in the background while the present ones are used."""

from __future__ import annotations

import atexit
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from faket_aug._runtime.signals import status_by_signal
from faket_aug._runtime.threads import wait_for_the_end

K = TypeVar("K")
V = TypeVar("V")
_THREAD_NAME = "faket_aug"
#: For how many seconds a thread that was told to stop is waited for. Ctrl-C ends a program within two seconds.
_PATIENCE = 1.0


class Stopped(SystemExit):
    """Nobody wants the value any more. `threading` is silent about a thread that ends so."""


class KeptThread:
    """A thread for one `MakeAhead` after the other: what CUDA's libraries have planned in it they need not plan anew.

    It waits between two of which all was made and taken. It ends with one that was stopped, with this object, and with
    the program. A forked process begins its own.
    """

    def __init__(self) -> None:
        self._serving: _Serving | None = None
        self._end: weakref.finalize[[], KeptThread] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[KeptThread], tuple[()]]:
        return KeptThread, ()

    def begin(self, ahead: MakeAhead[Any, Any]) -> threading.Thread | None:
        """Let the thread work, and return it; None if it has other work."""
        with self._lock:
            serving = self._serving
            if serving is None or serving.process != os.getpid() or not serving.thread.is_alive():
                serving = self._serving = _Serving()
                if self._end is not None:
                    self._end.detach()
                self._end = weakref.finalize(self, serving.dismiss)
                serving.thread.start()
            elif serving.is_busy:
                return None
            serving.work = weakref.ref(ahead)
            serving.waiting.put(ahead)
            return serving.thread


class _Serving:
    """What a kept thread and its owner both know."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.waiting: SimpleQueue[MakeAhead[Any, Any] | None] = SimpleQueue()
        self.work: weakref.ref[MakeAhead[Any, Any]] | None = None
        self.thread = _new_thread(self._serve)

    def _serve(self) -> None:
        while (ahead := self.waiting.get()) is not None and ahead.run():
            # Nothing of what is done may be held while this thread waits.
            del ahead

    @property
    def is_busy(self) -> bool:
        ahead = None if self.work is None else self.work()
        return ahead is not None and not ahead.is_finished

    def dismiss(self) -> None:
        """End the thread; wait for it if it has no work."""
        self.waiting.put(None)
        if self.process == os.getpid() and not self.is_busy and self.thread is not threading.current_thread():
            self.thread.join(_PATIENCE)
            wait_for_the_end(self.thread)


def _new_thread(target: Callable[[], object]) -> threading.Thread:
    # A thread that is no daemon would be waited for when the program ends, for as long as a simulation takes.
    return threading.Thread(target=target, name=f"{_THREAD_NAME}_ahead", daemon=True)


class MakeAhead(Generic[K, V]):
    """Make one value ahead, in order, in a background thread.

    Parameters
    ----------
    make
        Makes the value of a key. `take` raises its errors.
    keys
        The keys, in the order in which their values will be taken.
    thread
        The thread; by default a new one, which has ended when this is closed.
    """

    def __init__(self, make: Callable[[K], V], keys: Iterable[K], *, thread: KeptThread | None = None) -> None:
        self._make = make
        self._keys = list(keys)
        #: Values with their errors, and permissions to make one more.
        self._made: SimpleQueue[tuple[V | None, BaseException | None]] = SimpleQueue()
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        # Of this thread, too, a signal or the garbage collection may stop it at any line.
        self._lock = threading.RLock()
        self._making = False
        self._taken, self._done = 0, threading.Event()
        #: Whether all was made and taken, and a kept thread has no more to do with this.
        self.is_finished = False
        self._process = os.getpid()
        self._stop_before: float | None = None
        self._thread, self._is_kept = _new_thread(self.run), thread is not None and bool(self._keys)
        if not self._keys:
            return
        _running.add(self)
        kept = None if thread is None else thread.begin(self)
        if kept is None:
            self._is_kept = False
            self._thread.start()
        else:
            self._thread = kept

    def take(self) -> V:
        """Return the next value, and begin to make the one after it. Wait for the value if it is not ready.

        Raises
        ------
        Stopped
            If `stop` was called meanwhile.
        """
        value, error = self._made.get()
        if error is not None:
            try:
                raise error
            finally:
                # Otherwise the error and this frame would keep each other, and all that they hold.
                del error
        self._wanted.put(True)
        self._taken += 1
        return value  # type: ignore[return-value]

    def stop(self) -> None:
        """Stop the work at the next line of Python that it comes to, and whoever waits for its value.

        In a forked process this does nothing: the thread runs in the process that began it, and here its number may be
        that of another thread.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            if self.is_finished:
                return
            if self._stop_before is None:
                self._stop_before = time.monotonic() + _PATIENCE
                self._wanted.put(False)
                self._made.put((None, Stopped()))
            if self._making and self._thread is not threading.current_thread():
                _raise_in(self._thread, Stopped)

    def close(self) -> None:
        """Drop the values that were not taken, and stop the thread; wait for it for a second at most.

        It ends at the latest with the operation that it is in, whose result is dropped. A kept thread that has made
        all values goes on waiting for the next work.
        """
        # A forgotten pass may be garbage-collected in the thread itself, which cannot wait for itself.
        elsewhere = self._thread is not threading.current_thread()
        if self._is_kept and elsewhere and self._taken == len(self._keys) and self._process == os.getpid():
            # It only has to see that there is nothing left to make.
            self._done.wait(_PATIENCE)
        self.stop()
        if elsewhere:
            self.wait()

    def wait(self) -> bool:
        """Wait until the thread has ended, for no longer than a second since `stop`; tell whether it has."""
        if self._process != os.getpid() or self.is_finished:
            return True
        assert self._stop_before is not None, "it was told to stop"
        while self._thread.is_alive() and time.monotonic() < self._stop_before:
            self._thread.join(_PATIENCE / 3)
            # Where nobody hears it, as in a destructor, the exception is lost.
            self.stop()
        if self._thread.is_alive():
            return False
        wait_for_the_end(self._thread)
        return True

    def run(self) -> bool:
        """Make all values, in the thread; tell whether the thread may be kept."""
        try:
            for key in self._keys:
                self._made.put(self._one(key))
                if not self._wanted.get():
                    return False
            return self._finish()
        except Stopped:
            return False
        finally:
            _running.discard(self)
            self._done.set()

    def _finish(self) -> bool:
        with self._lock:
            # From now on nobody raises anything in this thread.
            self.is_finished = self._is_kept and self._stop_before is None
            return self.is_finished

    def _one(self, key: K) -> tuple[V | None, BaseException | None]:
        with self._lock:
            if self._stop_before is not None:
                raise Stopped
            self._making = True
        try:
            return self._make(key), None
        except Stopped:
            raise
        except BaseException as error:  # whatever it is, who takes the value is told
            return None, error
        finally:
            with self._lock:
                self._making = False


def _raise_in(thread: threading.Thread, kind: type[BaseException]) -> None:
    """Raise an exception in another thread, as soon as it runs Python again."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(kind))


_running: weakref.WeakSet[MakeAhead[Any, Any]] = weakref.WeakSet()


def stop_all() -> bool:
    """Stop whatever is made in the background of this process; tell whether all of it has ended within a second."""
    running = list(_running)
    for one in running:
        one.stop()
    ended = [one.wait() for one in running]
    return all(ended)


def _end_of_the_program() -> None:
    """Stop all work; where an operation takes too long, end this process without waiting for it.

    A thread must not meet an interpreter that has ended: below Python 3.14 C++ code then aborts the process.
    """
    ended, worker, status = stop_all(), multiprocessing.parent_process() is not None, status_by_signal()
    if worker or status is not None:
        # Python's last garbage collection visits all objects of torch, which takes a second where others compute, too.
        gc.freeze()
    if worker and not (ended and _all_is_sent()):
        _leave(0)
    if ended:
        return
    if status is not None:
        _leave(status)
    for one in list(_running):
        one._thread.join()


def _all_is_sent() -> bool:
    """Tell whether no queue of this process is sending a value.

    A worker of a loader that is closed early does not wait for it: the thread copies tensors in C++ code.
    """
    return not any(one.name.startswith("QueueFeederThread") for one in threading.enumerate())


def _leave(status: int) -> None:
    """End this process at once, but for what was registered for its end; a negative status is a signal."""
    atexit.unregister(_end_of_the_program)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(abs(status))


atexit.register(_end_of_the_program)
