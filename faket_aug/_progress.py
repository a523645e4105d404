"""The order of a dataset's streams, and where each stands, shared by the main process and its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._random import numpy_generator

#: Workers (streams) that one dataset can have.
MAX_STREAMS = 1024
_EPOCH, _EXPLICIT, _STREAMS, _FIRST, _HEADER = range(5)


@dataclass(kw_only=True)
class StreamPosition:
    """How far one stream has come: `delivered` items of `epoch` in stream `stream` of `streams`."""

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
                "expected a state whose `epoch`, `first` and `delivered` are whole numbers of 0 or more, with `first` "
                f"below `streams`, got {numbers}"
            )

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Resume:
        """Take what concerns the position from a state dict."""
        return cls(
            epoch=state["epoch"],
            streams=state["streams"],
            first=state["first"],
            delivered=tuple(state["delivered"]),
        )


class SharedProgress:
    """Epoch and resume point in shared memory, so that they also reach persistent workers.

    Every slot has one writer: the main process writes the header and the resume point, worker w its own count of
    passes. No lock is needed, and nothing is left behind: the memory has no name.
    """

    def __init__(self) -> None:
        self._cell: Tensor = torch.zeros(_HEADER + 2 * MAX_STREAMS, dtype=torch.int64)
        self._cell.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return int(self._cell[_EPOCH])

    @property
    def explicit(self) -> bool:
        """Whether the epoch was set by `set_epoch`."""
        return bool(self._cell[_EXPLICIT])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; a resume point that waits for this epoch stays."""
        waiting = self.resume is not None and not self._passes.any()
        if not (waiting and epoch == self.epoch):
            self._cell[_STREAMS] = 0
            self._passes.zero_()
        self._cell[_EPOCH] = epoch
        self._cell[_EXPLICIT] = 1

    def set_resume(self, resume: Resume) -> None:
        """Let the next pass begin at a resume point."""
        self._passes.zero_()
        self._cell[_EPOCH] = resume.epoch
        self._cell[_EXPLICIT] = 0
        self._cell[_FIRST] = resume.first
        self._cell[_HEADER : _HEADER + len(resume.delivered)] = torch.tensor(resume.delivered, dtype=torch.int64)
        self._cell[_STREAMS] = resume.streams

    @property
    def resume(self) -> Resume | None:
        """The resume point, where there is one."""
        streams = int(self._cell[_STREAMS])
        if streams == 0:
            return None
        return Resume(
            epoch=self.epoch,
            streams=streams,
            first=int(self._cell[_FIRST]),
            delivered=tuple(self._cell[_HEADER : _HEADER + streams].tolist()),
        )

    @property
    def current_resume(self) -> Resume | None:
        """The resume point, as long as no stream has passed it twice."""
        return self.resume if int(self._passes.max()) <= 1 else None

    @property
    def passes_begun(self) -> int:
        """How many passes all streams began since the epoch or the resume point was set."""
        return int(self._passes.sum())

    def begin_pass(self, worker: int) -> int:
        """Count a pass of a worker; returns how many it made before in this epoch."""
        before = int(self._passes[worker])
        self._passes[worker] = before + 1
        return before

    @property
    def _passes(self) -> Tensor:
        return self._cell[_HEADER + MAX_STREAMS :]


def stream_order(tomograms: range, *, patches: int, live: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Order the patches of a stream's tomograms.

    The k-th tomogram's patches get random times in [k, k + live). Sorted by time, at most `live` tomograms are in use
    at once, they end one after the other, and the first patch needs only the first of them.

    Returns
    -------
    `(items, 2)`, rows (tomogram, patch).
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
    """Follow a DataLoader's round robin over its workers for a number of batches.

    Workers deliver whole batches of their own stream in turn; one that has nothing left is passed over.

    Parameters
    ----------
    lengths
        Items of each worker's stream.
    start
        Items of each that were delivered before.
    batches, batch_size, drop_last
        Batches delivered since, and how the loader makes them.

    Returns
    -------
    Items delivered of each worker's stream, and the worker whose turn is next.
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
