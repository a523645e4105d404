"""Pieces of work on several threads: all are done once, errors come back, and no number of threads changes a bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import backproject, project, reconstruct
from faket_aug._runtime.threads import intra_op_threads, run_side_by_side
from faket_aug.microscope.noise import NoiseModel
from faket_aug.tomography.filters import FILTERS, filter_projections

ANGLES = np.linspace(-50, 50, 9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_pieces_are_done_once(count: int) -> None:
    """Each piece runs once; with several threads it has one intra-op thread, and this thread has its own again."""
    done: list[int] = []
    seen: set[tuple[str, int]] = set()

    def piece(number: int) -> None:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        time.sleep(0.002)
        done.append(number)

    before = threading.active_count()
    with intra_op_threads(4):
        run_side_by_side([lambda number=number: piece(number) for number in range(24)], count)  # type: ignore[misc]
        assert torch.get_num_threads() == 4
    assert sorted(done) == list(range(24))
    assert threading.active_count() == before
    assert {threads for _, threads in seen} == ({4} if count == 1 else {1})
    assert len({name for name, _ in seen}) == min(count, 2), "threads of this work share a name"


def test_an_error_ends_the_work() -> None:
    """The first error is raised, pieces after it are left, and no thread stays."""
    done: list[int] = []

    def piece(number: int) -> None:
        if number == 3:
            raise ValueError("piece 3")
        time.sleep(0.002)
        done.append(number)

    before = threading.active_count()
    with intra_op_threads(2), pytest.raises(ValueError, match="piece 3"):
        run_side_by_side([lambda number=number: piece(number) for number in range(100)], 2)  # type: ignore[misc]
    assert len(done) < 20
    assert threading.active_count() == before


def test_an_interruption_leaves_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C right after the number was set: it is what it was before."""
    before, set_to = torch.get_num_threads(), torch.set_num_threads

    def interrupted(count: int) -> None:
        set_to(count)
        if count != before:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "set_num_threads", interrupted)
    with pytest.raises(KeyboardInterrupt), intra_op_threads(before + 1):
        pass
    assert torch.get_num_threads() == before


def test_autocast_is_passed_on() -> None:
    """Threads compute in the precision of the thread that asks, as one thread does, whatever they begin with."""
    ones, others = torch.ones(4, 4), threading.Barrier(2, timeout=10)

    def made(count: int, pieces: int) -> list[torch.dtype]:
        found: list[torch.dtype] = []

        def piece() -> None:
            if count > 1:
                others.wait()
            found.append((ones @ ones).dtype)

        run_side_by_side([piece] * pieces, count)
        return found

    with torch.autocast("cpu", dtype=torch.float16):
        assert made(1, 2) == made(2, 2) == [torch.float16] * 2
        with torch.autocast("cpu", enabled=False):
            assert made(2, 2) == [torch.float32] * 2
    assert made(2, 2) == [torch.float32] * 2


def test_inference_mode_is_passed_on() -> None:
    """Threads may write into what was made in inference mode."""
    with torch.inference_mode(), intra_op_threads(2):
        result = torch.zeros(64)
        run_side_by_side([lambda i=i: result[i].fill_(i) for i in range(64)], 2)  # type: ignore[misc]
    assert torch.equal(result, torch.arange(64.0))


VOLUME = torch.randn(2, 20, 150, 24, generator=torch.Generator().manual_seed(0))
TILTS = torch.randn(9, 150, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "work",
    [
        lambda: project(VOLUME, ANGLES),
        lambda: project(VOLUME[0, :, :8], ANGLES),
        lambda: backproject(TILTS, ANGLES, depth=20),
        lambda: torch.stack([reconstruct(TILTS, ANGLES, depth=20, filter=name) for name in FILTERS]),
        lambda: torch.stack([filter_projections(TILTS, name) for name in FILTERS]),
        lambda: NoiseModel.assume(TILTS, ANGLES, snr=0.1).sample(TILTS, TILTS.flip(0), ANGLES),
    ],
)
def test_threads_do_not_change_a_bit(work: Callable[[], Tensor]) -> None:
    """Law: the same result for 1, 2 and 5 threads."""
    found = []
    for count in (1, 2, 5):
        with intra_op_threads(count):
            found.append(work())
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_gradients_pass_on_several_threads() -> None:
    """Projections of pieces on threads are differentiated like others."""
    grads = []
    for count in (1, 3):
        volume = VOLUME[0].clone().requires_grad_()
        with intra_op_threads(count):
            reconstruct(project(volume, ANGLES), ANGLES, depth=20).square().sum().backward()
        assert volume.grad is not None
        grads.append(volume.grad)
    assert torch.allclose(grads[0], grads[1], rtol=1e-5)
    assert float(grads[0].abs().max()) > 0
