"""Memory that is kept: freed blocks come back without page faults, also in threads, and where glibc is not there."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Any

import pytest
from _helpers import dataset, loader, simulator

from faket_aug import free_memory_budget, keep_memory
from faket_aug._runtime import memory as _memory

_FAULTS = """
import resource, sys, threading
import faket_aug, torch
if sys.argv[1] == "keep":
    assert faket_aug.keep_memory() is True
found = []
def work():
    image, weight = torch.ones(1, 16, 1024, 1024), torch.ones(16, 16, 3, 3)  # 64 MiB
    for _ in range(4):
        start, made = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, image
        for _ in range(3):
            made = torch.relu(torch.conv2d(made, weight, padding=1))
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(found[-1])
"""


def _faults(choice: str) -> int:
    command = [sys.executable, "-c", _FAULTS, choice]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env={"PATH": ""})
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="memory is not glibc's")
def test_kept_memory_is_used_again() -> None:
    """A thread that frees large blocks and asks for them again meets no fresh pages; without, many."""
    kept, given_back = _faults("keep"), _faults("give back")
    assert given_back > 20 * (kept + 1), (kept, given_back)


def test_workers_keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker keeps its memory; the main process only when it is told to."""
    calls = []
    monkeypatch.setattr("faket_aug.data.stream.keep_memory", lambda: calls.append("kept"))
    list(dataset())
    assert calls == []

    def fail() -> None:
        raise RuntimeError("kept")

    monkeypatch.setattr("faket_aug.data.stream.keep_memory", fail)
    with pytest.raises(RuntimeError, match="kept"):
        list(loader(dataset(), workers=1))


def test_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no mallopt nothing happens, and that is said."""
    monkeypatch.setattr(_memory.ctypes, "CDLL", lambda name: object())
    assert keep_memory() is False


@pytest.mark.parametrize(("results", "expected"), [((1, 1, 1), True), ((1, 0, 1), False), ((0, 1, 1, 1), True)])
def test_what_glibc_refuses(monkeypatch: pytest.MonkeyPatch, results: tuple[int, ...], expected: bool) -> None:
    """The answer is whether all settings were taken."""
    given = iter(results)

    class Library:
        def mallopt(self, name: int, value: int) -> Any:
            return next(given)

    monkeypatch.setattr(_memory.ctypes, "CDLL", lambda name: Library())
    assert keep_memory() is expected


@pytest.mark.parametrize(("free", "share", "expected"), [(2**33, 0.25, 2**31), (2**33 - 1, 0.25, 2**30), (3, 0.0, 1)])
def test_budget_by_what_is_free(monkeypatch: pytest.MonkeyPatch, free: int, share: float, expected: int) -> None:
    """The budget is a share of what is free, rounded down to a power of two."""
    monkeypatch.setattr(_memory, "_available_bytes", lambda: free)
    assert free_memory_budget("cpu", share=share) == expected
    with pytest.raises(ValueError, match="share"):
        free_memory_budget(share=2.0)


@pytest.mark.parametrize("known", [True, False])
def test_free_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """What is free is more than nothing and less than all, on systems without /proc, too; and a simulator takes it."""
    if not known:
        monkeypatch.setattr(_memory.Path, "exists", lambda path: False)
    budget = free_memory_budget()
    assert 2**20 <= budget < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert simulator(memory_budget=budget).settings()["memory_budget"] == budget
