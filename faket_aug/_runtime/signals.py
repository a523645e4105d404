"""Ending a program in order when it is told to: by Ctrl-C, or by SIGTERM, as batch systems do before a time limit."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

#: How long the end may take after a signal, in seconds, before the process is ended all the same.
_PATIENCE = 1.6


#: What is done before the process is ended all the same.
_last_acts: list[Callable[[], object]] = []
#: The exit status of a program that a signal ends; None of others.
_status: int | None = None


def ends_by_signal(status: int) -> None:
    """Note that this program is about to end because of a signal, with this exit status: it then ends quickly."""
    global _status
    _status = status


def status_by_signal() -> int | None:
    """Return the exit status if a signal ends this program; a negative one is the signal itself."""
    interrupted = issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt)
    return -signal.SIGINT if interrupted else _status


def _end(number: int, _: FrameType | None) -> None:
    ends_by_signal(128 + number)
    raise SystemExit(128 + number)


@contextmanager
def sigterm_ends_in_order() -> Iterator[None]:
    """Let SIGTERM raise `SystemExit(143)` in the body: files are then removed, and workers ended, as after an error.

    This does nothing outside the main thread, or where somebody else handles the signal.
    """
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not mine:
        yield
        return
    try:
        signal.signal(signal.SIGTERM, _end)
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Let the body end before Ctrl-C or SIGTERM is heard: what must not be left half done, and is done soon.

    This does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    came: list[int] = []
    try:
        with ExitStack() as held_back:
            for number, handler in ours.items():
                # A signal that is heard again may interrupt: the other is restored all the same.
                held_back.callback(signal.signal, number, handler)
                signal.signal(number, lambda number, _: came.append(number))
            yield
    finally:
        # Also after an error, which then is the context of what the handler raises.
        for first in came[:1]:
            ours[signal.Signals(first)](first, None)


@contextmanager
def done_at_a_late_end(act: Callable[[], object]) -> Iterator[None]:
    """Let something short be done, by another thread, where the program ends while the body is in a long operation.

    Then no exception reaches the body, see `signals_end_soon`.
    """
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


@contextmanager
def signals_end_soon(last_words: Callable[[int], object] = lambda number: None) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end this program within two seconds, also from an operation that takes longer.

    Python tells the main thread of a signal only between two operations, and a convolution can take seconds. For the
    main thread of a program of our own.

    Parameters
    ----------
    last_words
        Is told the signal's number where the program ends before the main thread has heard of it.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before, left = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False), threading.Event()
    late = threading.Thread(target=_end_late, args=(ours, left, last_words), name="faket_aug_signals", daemon=True)
    late.start()
    try:
        with sigterm_ends_in_order():
            yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        theirs.close()


def _forget_in_child() -> None:
    # A worker that gets a signal must not end the program.
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _end_late(signals: socket.socket, left: threading.Event, last_words: Callable[[int], object]) -> None:
    with signals:
        while number := signals.recv(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                time.sleep(_PATIENCE)
                if not left.is_set():
                    for act in list(_last_acts):
                        with suppress(Exception):
                            act()
                    last_words(number[0])
                sys.stderr.flush()
                os._exit(128 + number[0])
