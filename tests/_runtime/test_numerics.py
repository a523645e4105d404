"""The precision of a program's network does not reach what is simulated, and is the program's own afterwards."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest
import torch

from faket_aug._runtime import numerics, threads
from faket_aug._runtime.numerics import _backends, own_precision


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    for backend in _backends():
        backend.fp32_precision = "none"


def _products() -> list[str]:
    return [torch.get_float32_matmul_precision(), *(one.fp32_precision for one in _backends())]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_exact_within(precision: str) -> None:
    """Products are those of the highest precision, also when bodies overlap; then the program's setting is back."""
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    exact = a @ a
    torch.set_float32_matmul_precision(precision)
    with own_precision():
        with own_precision():
            assert torch.equal(a @ a, exact)
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.equal(a @ a, exact)
    assert torch.get_float32_matmul_precision() == precision


def test_settings_of_one_backend() -> None:
    """Where a program has set one backend alone, by the settings of torch 2.9, they are left as they were."""
    backend = getattr(torch.backends.mkldnn, "matmul", None)
    if backend is None or not hasattr(backend, "fp32_precision"):
        pytest.skip("this torch has one setting for all backends")
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    exact = a @ a
    backend.fp32_precision = "bf16"
    with own_precision():
        assert backend.fp32_precision == "ieee"
        assert torch.equal(a @ a, exact)
    assert backend.fp32_precision == "bf16"


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_backends_have_their_own_settings_again(precision: str) -> None:
    """A backend without a setting of its own has none afterwards; exact products are left alone altogether."""
    if precision == "high":
        torch.backends.cuda.matmul.allow_tf32 = True
    before = _products()
    assert before[0] == precision
    assert "none" in before[1:] or not _backends()
    with own_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        if precision == "highest":
            assert _products() == before
    assert _products() == before


def test_settings_of_all_backends() -> None:
    """Where a program has set all backends by the settings of torch 2.9, none has one of its own afterwards."""
    if not _backends():
        pytest.skip("this torch has one setting for all backends")
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    with own_precision():
        assert [one.fp32_precision for one in _backends()] == ["ieee"] * len(_backends())
    assert [one.fp32_precision for one in _backends()] == ["tf32"] * len(_backends())
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    assert [one.fp32_precision for one in _backends()] == ["none"] * len(_backends())


def test_what_the_program_sets_meanwhile_stays() -> None:
    """A setting made while the body runs is the program's afterwards; later ones are exact all the same."""
    torch.set_float32_matmul_precision("high")
    with own_precision():
        torch.set_float32_matmul_precision("medium")
    assert torch.get_float32_matmul_precision() == "medium"
    with own_precision():
        torch.set_float32_matmul_precision("high")
        with own_precision():
            assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"


def test_an_interruption_at_any_moment_leaves_the_programs_precision() -> None:
    """Ctrl-C, or the end of a background thread, may come after any call: before, within and after the body."""
    torch.set_float32_matmul_precision("medium")
    before = _products()
    for moment in range(1000):
        left = moment

        def interrupt(frame: FrameType, event: str, _: object) -> None:
            nonlocal left
            within = frame.f_code.co_filename in (numerics.__file__, torch.backends.__file__)
            if within and event in ("call", "c_return"):
                left -= 1
                if left < 0:
                    sys.setprofile(None)
                    raise KeyboardInterrupt

        came, profiling = False, sys.getprofile()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            try:
                sys.setprofile(interrupt)
                with own_precision():
                    pass
            except KeyboardInterrupt:
                came = True
            finally:
                sys.setprofile(profiling)
            assert torch.is_autocast_enabled("cpu"), moment
        assert _products() == before, moment
        if not came:
            assert moment > 40
            return
    raise AssertionError("expected an end")


def test_threads_overlap() -> None:
    """The setting is given back by the last thread that needs it, whoever came first."""
    torch.set_float32_matmul_precision("medium")
    within, left, found = threading.Event(), threading.Event(), []

    def other() -> None:
        with own_precision():
            within.set()
            left.wait(10)
            found.append(torch.get_float32_matmul_precision())

    thread = threading.Thread(target=other)
    with own_precision():
        thread.start()
        assert within.wait(10)
    left.set()
    thread.join()
    assert found == ["highest"]
    assert torch.get_float32_matmul_precision() == "medium"


def test_autocast_is_off_within() -> None:
    """Products keep the precision of their tensors under autocast, and autocast goes on afterwards, also on errors."""
    a = torch.ones(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with own_precision():
            assert (a @ a).dtype == torch.float32
        with pytest.raises(KeyError), own_precision():
            raise KeyError("on purpose")
        assert (a @ a).dtype == torch.bfloat16


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_has_the_programs_precision() -> None:
    """Who asked for exact products runs in the parent: a process that is forked meanwhile has what the program set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with own_precision():
            child = os.fork()
            if child == 0:
                os._exit(0 if torch.get_float32_matmul_precision() == "medium" else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_a_stream_made_is_waited_for_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU another stream waits for the event that was recorded after the making; on a CPU nothing happens."""
    done: list[tuple[str, object]] = []

    class Event:
        def record(self, stream: object) -> None:
            done.append(("recorded on", stream.name))  # type: ignore[attr-defined]

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_event(self, event: object) -> None:
            assert isinstance(event, Event)
            done.append(("waited for on", self.name))

    streams = iter(["first", "second"])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(next(streams)))
    threads.Made(torch.device("cpu")).before(torch.device("cpu"))
    assert done == []
    threads.Made(torch.device("cuda", 0)).before(torch.device("cuda", 0))
    assert done == [("recorded on", "first"), ("waited for on", "second")]
