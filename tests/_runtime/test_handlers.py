"""Signals are heard as before once the body has ended, also where one comes at the worst moment."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from faket_aug._runtime.signals import signals_held_back, sigterm_ends_in_order


class _Heard(Exception):
    """What the program's own handler raises."""


def _hear(number: int, _: object) -> None:
    raise _Heard(number)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("begins", [True, False])
def test_an_interruption_leaves_no_signal_held_back(monkeypatch: pytest.MonkeyPatch, begins: bool) -> None:
    """Ctrl-C while handlers are set, or while they are restored: both signals are heard again."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _hear)
    set_to, calls = signal.signal, 0

    def interrupted(number: int, handler: object) -> object:
        nonlocal calls
        calls += 1
        before = set_to(number, handler)  # type: ignore[arg-type]
        if calls == (1 if begins else 3):
            raise KeyboardInterrupt
        return before

    monkeypatch.setattr(signal, "signal", interrupted)
    with pytest.raises(KeyboardInterrupt), signals_held_back():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [_hear, _hear]


def test_an_interruption_leaves_the_end_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C right after the handler of SIGTERM was set: the system ends the program again."""
    set_to = signal.signal

    def interrupted(number: int, handler: object) -> None:
        set_to(number, handler)  # type: ignore[arg-type]
        if handler is not signal.SIG_DFL:
            raise KeyboardInterrupt

    set_to(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setattr(signal, "signal", interrupted)
    with pytest.raises(KeyboardInterrupt), sigterm_ends_in_order():
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
