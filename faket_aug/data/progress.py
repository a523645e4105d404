"""The order of a dataset's streams, one for each worker, and the position of each, which all processes share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from faket_aug._random import numpy_generator
from faket_aug._runtime.threads import DEVICE

#: The most workers, and so streams, that one dataset can have.
MAX_STREAMS = 1024
_EPOCH, _EXPLICIT, _GENERATION, _STREAMS, _FIRST, _OUT_OF_ORDER, _HEADER = range(7)


@dataclass(kw_only=True)
class StreamPosition:
    """How far one stream is: it has delivered so many items of an epoch. It is number `stream` of `streams`."""

    epoch: int
    stream: int
    streams: int
    delivered: int


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Where a pass begins: worker w takes stream `(first + w) % streams` and skips `delivered[w]` items."""

    epoch: int
    streams: int
    first: int
    delivered: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.epoch, self.streams, self.first, *self.delivered)
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or not self.first < self.streams <= MAX_STREAMS:
            raise ValueError(
                "expected a state whose `epoch`, `first` and `delivered` are whole numbers of 0 or more, and whose "
                f"`first` is less than `streams`, got {numbers}"
            )

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Resume:
        """Take the position out of a state dict."""
        return cls(
            epoch=state["epoch"],
            streams=state["streams"],
            first=state["first"],
            delivered=tuple(state["delivered"]),
        )


@dataclass(frozen=True, kw_only=True)
class NextPass:
    """The next pass of a loader: its epoch, and where it begins.

    `generation` counts how often an epoch or a resume point was set, so that each stream uses a resume point once.
    `explicit` tells whether `set_epoch` set the epoch.
    """

    epoch: int = 0
    explicit: bool = False
    generation: int = 0
    resume: Resume | None = None


class SharedProgress:
    """The next pass, for this process and its workers.

    The first pass of a worker is the one that was set when its process began. The worker got a copy of it, by fork or
    by pickle; what is set later is for the next pass. Persistent workers read later passes from shared memory. Each
    slot of this memory has one writer: the main process writes what it sets, and each worker writes what it has used.
    Only how the loader reads is written by all, who write the same. So no lock is needed. The memory has no name, so
    nothing is left behind.
    """

    def __init__(self) -> None:
        self._next = NextPass()
        self._process = os.getpid()
        self._cell: Tensor = torch.zeros(_HEADER + 3 * MAX_STREAMS, dtype=torch.int64, device=DEVICE)
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share()

    def _share(self) -> None:
        if not self._cell.is_shared():  # type: ignore[no-untyped-call]
            self._cell.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def next(self) -> NextPass:
        """The next pass."""
        return self._next

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. A resume point that waits for this epoch stays."""
        waiting = self._next.resume is not None and self.passes_begun == 0 and epoch == self._next.epoch
        self._set(epoch, explicit=True, resume=self._next.resume if waiting else None)

    def set_resume(self, resume: Resume) -> None:
        """Let the next pass begin at a resume point."""
        self._set(resume.epoch, explicit=False, resume=resume)

    def _set(self, epoch: int, *, explicit: bool, resume: Resume | None) -> None:
        if self._process != os.getpid():
            # A rank has a copy of the dataset: what it sets is not for the workers of other ranks.
            self._process, self._cell = os.getpid(), self._cell.clone()
            self._share()
        generation = self._next.generation + 1
        self._next = NextPass(epoch=epoch, explicit=explicit, generation=generation, resume=resume)
        delivered = () if resume is None else resume.delivered
        self._passes.zero_()
        self._cell[_HEADER : _HEADER + len(delivered)] = torch.tensor(delivered, dtype=torch.int64, device=DEVICE)
        self._cell[_FIRST] = 0 if resume is None else resume.first
        self._cell[_STREAMS] = len(delivered)
        self._cell[_EXPLICIT] = explicit
        self._cell[_EPOCH] = epoch
        self._cell[_GENERATION] = generation

    def _read(self) -> NextPass:
        streams, epoch = int(self._cell[_STREAMS]), int(self._cell[_EPOCH])
        resume = None
        if streams:
            delivered = tuple(self._cell[_HEADER : _HEADER + streams].tolist())
            resume = Resume(epoch=epoch, streams=streams, first=int(self._cell[_FIRST]), delivered=delivered)
        return NextPass(
            epoch=epoch,
            explicit=bool(self._cell[_EXPLICIT]),
            generation=int(self._cell[_GENERATION]),
            resume=resume,
        )

    @property
    def out_of_order(self) -> bool:
        """Whether the last loader with workers took their batches as they came, not in turn."""
        return bool(self._cell[_OUT_OF_ORDER])

    @out_of_order.setter
    def out_of_order(self, out_of_order: bool) -> None:
        self._cell[_OUT_OF_ORDER] = out_of_order

    @property
    def current_resume(self) -> Resume | None:
        """The resume point, until a stream begins a second pass after it."""
        return self._next.resume if int(self._passes.max()) <= 1 else None

    @property
    def passes_begun(self) -> int:
        """How many passes all streams have begun since the epoch or the resume point was set."""
        return int(self._passes.sum())

    def begin_pass(self, slot: int) -> tuple[NextPass, bool]:
        """Begin a pass of a worker, or of the main process, which uses the slot of worker 0.

        Returns
        -------
        The pass, and whether the worker has begun the same pass before.
        """
        new_process = self._process != os.getpid()
        is_main = get_worker_info() is None
        begun = self._next if new_process or is_main else self._read()
        self._process, self._next = os.getpid(), begun
        again = int(self._used[slot]) == begun.generation + 1
        self._used[slot] = begun.generation + 1
        self._passes[slot] += 1
        return begun, again

    @property
    def _passes(self) -> Tensor:
        """How many passes each worker has begun since something was set."""
        return self._cell[_HEADER + MAX_STREAMS : _HEADER + 2 * MAX_STREAMS]

    @property
    def _used(self) -> Tensor:
        """The generation, plus one, of the last pass that each worker began."""
        return self._cell[_HEADER + 2 * MAX_STREAMS :]


class Changes:
    """How often something was changed in the main process, as its workers can see: each has a copy of its own."""

    def __init__(self) -> None:
        self._process, self._own = os.getpid(), 0
        self._cell: Tensor = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        self._cell.share_memory_()  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Changes:
        # A copy is changed by itself.
        return Changes()

    def __getstate__(self) -> dict[str, Any]:
        self._leave_other_ranks()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cell.share_memory_()  # type: ignore[no-untyped-call]

    def add(self) -> None:
        """Count a change of this process's copy."""
        self._leave_other_ranks()
        self._cell += 1
        self._own = int(self._cell)

    @property
    def missed(self) -> bool:
        """Whether something was changed since this worker got its copy."""
        return int(self._cell) != self._own

    def _leave_other_ranks(self) -> None:
        if self._process != os.getpid():
            self._process, self._cell = os.getpid(), self._cell.clone()
            self._cell.share_memory_()  # type: ignore[no-untyped-call]


def stream_order(tomograms: range, *, patches: int, live: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Order the patches of a stream's tomograms.

    Each patch of the k-th tomogram gets a random time in [k, k + live), and the patches are sorted by time. So at most
    `live` tomograms are in use at once, they end one after the other, and the first patch needs only the first of them.

    Returns
    -------
    `(item, 2)`, tomogram and patch of each item.
    """
    if len(tomograms) == 0:
        return np.zeros((0, 2), dtype=np.int64)
    times = [
        k + live * numpy_generator(seed, "order", epoch=epoch, tomogram=t).random(patches)
        for k, t in enumerate(tomograms)
    ]
    rows = np.stack([np.repeat(tomograms, patches), np.tile(np.arange(patches), len(tomograms))], axis=1)
    ordered: npt.NDArray[np.int64] = rows[np.argsort(np.concatenate(times), kind="stable")].astype(np.int64)
    return ordered


def positions_after(
    lengths: list[int], *, start: tuple[int, ...], batches: int, batch_size: int, drop_last: bool
) -> tuple[list[int], int]:
    """Find how far each worker is after a number of batches.

    The workers of a `DataLoader` deliver whole batches of their own streams in turn. A worker that has no items left
    is passed over.

    Parameters
    ----------
    lengths
        Number of items in the stream of each worker.
    start
        Number of items that each worker had delivered before.
    batches
        Number of batches that were delivered since.
    batch_size, drop_last
        The settings of the loader.

    Returns
    -------
    Number of items that each worker has delivered, and the worker whose turn is next.
    """
    delivered, turn, workers = list(start), 0, len(lengths)
    for _ in range(batches):
        for _ in range(workers):
            left = lengths[turn] - delivered[turn]
            if left >= batch_size or (left > 0 and not drop_last):
                break
            delivered[turn] = lengths[turn]
            turn = (turn + 1) % workers
        else:
            break
        delivered[turn] = min(delivered[turn] + batch_size, lengths[turn])
        turn = (turn + 1) % workers
    return delivered, turn
