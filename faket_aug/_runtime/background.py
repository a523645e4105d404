"""Making the next value in the background while the present ones are used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
_THREAD_NAME = "faket_aug"


class MakeAhead(Generic[K, V]):
    """Make one value ahead, in order, in a background thread.

    Parameters
    ----------
    make
        Makes the value of a key. `take` raises its errors.
    keys
        The keys, in the order in which their values will be taken.
    """

    def __init__(self, make: Callable[[K], V], keys: Iterable[K]) -> None:
        self._make = make
        self._keys = iter(keys)
        # The executor joins its thread when the interpreter ends, even if nobody closes this object.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=_THREAD_NAME)
        self._ahead: Future[V] | None = None
        self._start_next()

    def take(self) -> V:
        """Return the next value, and begin to make the one after it. Wait for the value if it is not ready."""
        assert self._ahead is not None, "as many values as keys are taken"
        value = self._ahead.result()
        self._start_next()
        return value

    def close(self) -> None:
        """Drop the values that were not taken, and wait for the thread."""
        # A forgotten pass may be garbage-collected in the thread itself, which cannot wait for itself.
        inside = threading.current_thread().name.startswith(_THREAD_NAME)
        self._executor.shutdown(wait=not inside, cancel_futures=True)
        self._ahead = None

    def _start_next(self) -> None:
        self._ahead = None
        for key in self._keys:
            self._ahead = self._executor.submit(self._make, key)
            return
