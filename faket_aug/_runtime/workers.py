"""Workers of a DataLoader: they end when nobody reads them any more, and find out how they are read."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from faket_aug._runtime.background import stop_all

#: How often a worker looks whether it is still wanted, and how long it may take to end by itself, in seconds.
_INTERVAL, _GRACE = 0.2, 1.2
_watching: int | None = None


def frames() -> Iterator[FrameType]:
    """Give the frames of all callers, from the inside out. In a forked process those of its parent come last."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def callers() -> Iterator[object]:
    """Give the objects whose methods are being run, from the inside out, each once."""
    before: object = None
    for frame in frames():
        one = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames[:1] else None
        if one is not None and one is not before:
            yield one
            before = one


def watch_the_reader() -> None:
    """Let this worker end within two seconds when its loader is closed, or its parent process has ended.

    A worker of PyTorch looks only between two batches, which a simulation can keep minutes apart.
    """
    global _watching
    if _watching == os.getpid() or threading.current_thread() is not threading.main_thread():
        return
    _watching = os.getpid()
    done = next((frame.f_locals["done_event"] for frame in frames() if "done_event" in frame.f_locals), None)
    threading.Thread(target=_watch, args=(done, os.getppid()), name="faket_aug_watch", daemon=True).start()


def _watch(done: Any, parent_id: int) -> None:
    parent = multiprocessing.parent_process()
    while os.getppid() == parent_id and (parent is None or parent.is_alive()):
        if done is not None and done.is_set():
            # The loader has told the worker to end, and waits for it.
            stop_all()
            return
        time.sleep(_INTERVAL)
    if done is not None:
        # The worker then does not wait until somebody has read its last batches.
        done.set()
    stop_all()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(_GRACE)
    folder = getattr(multiprocessing.current_process(), "_config", {}).get("tempdir")
    if folder is not None:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    os._exit(1)
