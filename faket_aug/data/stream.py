"""A stream of patches over a source of tomograms: their order, each rank's and worker's share, where it stands."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from faket_aug._checks import check_count
from faket_aug._runtime.background import KeptThread, MakeAhead, Stopped
from faket_aug._runtime.distributed import current_gpu, known_ranks
from faket_aug._runtime.memory import keep_memory
from faket_aug._runtime.threads import DEVICE, SideStream, in_forked_process, usable_device
from faket_aug._runtime.workers import watch_the_reader
from faket_aug.data.drawn import TomogramPatches
from faket_aug.data.progress import (
    MAX_STREAMS,
    Resume,
    SharedProgress,
    StreamPosition,
    positions_after,
    stream_order,
)
from faket_aug.data.readers import check_readers, in_a_chain, reads_in_order, warn_of_uneven_ranks
from faket_aug.data.source import Source

_FORMAT = 1
#: These keys of a state say where a stream stands. All other values must be the stream's own.
_POSITION_KEYS = {"epoch", "streams", "first", "delivered"}


class PatchStream:
    """The items of a source, epoch after epoch, for this process.

    Ranks and workers take whole tomograms, so that none is made twice. An item depends on its address only: neither
    ranks, workers, order nor resumption change it.

    Parameters
    ----------
    source
        Makes the tomograms.
    live_tomograms
        How many tomograms' patches are mixed; one more is made ahead.
    rank, world_size
        This process of a distributed job; both, or neither. By default they are those of `torch.distributed`, or of
        `torchrun`'s environment.
    """

    def __init__(self, source: Source, *, live_tomograms: int, rank: int | None, world_size: int | None) -> None:
        check_count("live_tomograms", live_tomograms)
        if (rank is None) != (world_size is None):
            raise ValueError(f"expected `rank` and `world_size` together, got {rank!r} and {world_size!r}")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"expected `rank` within 0 to `world_size` - 1, got {rank} of {world_size}")
        self.source = source
        self.live_tomograms = int(live_tomograms)
        self._ranks = None if rank is None or world_size is None else (rank, world_size)
        self._progress = SharedProgress()
        self._local: Resume | None = None
        self._position: StreamPosition | None = None
        self._own_passes = 0
        self._cuda_index: int | None = None
        self._side_stream = SideStream()
        self._kept_thread = KeptThread()
        #: Where whoever reads in this process needs the items.
        self.read_on = DEVICE
        #: Whether whoever reads copes with ranks whose epochs differ in length.
        self.uneven_ranks = False
        #: The process that began a pass last.
        self._process: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker is told what it cannot know: ranks, and which GPU is this rank's.
        gpu = current_gpu()
        check_readers(ranks=self._rank_and_world()[1], workers=0)
        self._note_order()
        told = {"_ranks": self._ranks or known_ranks(), "_cuda_index": self._cuda_index if gpu is None else gpu}
        return {**self.__dict__, **told, "_position": None, "_process": None, "read_on": DEVICE}

    @property
    def item_device(self) -> str:
        """Where items are put: in a worker, from where they travel through the main memory, on the CPU by default."""
        return self.source.item_device or (self.read_on if get_worker_info() is None else DEVICE)

    def _place(self, patches: TomogramPatches) -> torch.device:
        """Return where the items of a tomogram are put."""
        # A transform that was not told of a GPU may need them on the CPU.
        follows = self.source.item_device is None and patches.transforms
        device = torch.device(DEVICE if follows else self.item_device)
        if device.type == "cuda" and device.index is None:
            return torch.device("cuda", self._cuda_index)
        return device

    def __len__(self) -> int:
        """Items of an epoch on this rank, over all of its workers."""
        return self._length(0, 1)

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._progress.next.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        check_count("epoch", epoch, zero=True)
        self._progress.set_epoch(epoch)
        self._position, self._own_passes = None, 0

    # Order -----------------------------------------------------------------------------------------------------------

    def begin(self) -> Iterator[dict[str, Any]]:
        """Begin a pass of this worker, at a resume point or at the start of the epoch.

        Raises
        ------
        ValueError
            If the source cannot work in this process, or the number of workers is not the resume point's.
        """
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if info is not None:
            keep_memory()
            watch_the_reader()
        if workers > MAX_STREAMS:
            raise ValueError(f"expected at most {MAX_STREAMS} workers, got {workers}")
        world = self._rank_and_world()[1]
        check_readers(ranks=world, workers=workers)
        if known_ranks() is not None and world > 1 and worker == 0 and not self.uneven_ranks:
            warn_of_uneven_ranks(tomograms=self.source.tomograms_per_epoch, ranks=world)
            self.uneven_ranks = True
        if info is not None:
            self._note_order()
        self._check_makers()
        position = self._begin_pass(worker, workers)
        self._position, self._own_passes = position, self._progress.passes_begun
        changed = self.source.changed() if info is not None and self._process == os.getpid() else ""
        self._process = os.getpid()
        return self._items(position, changed)

    def _note_order(self) -> None:
        in_order = reads_in_order()
        if in_order is not None:
            self._progress.out_of_order = not in_order

    def _check_makers(self) -> None:
        self._choose_gpu(usable_device(self.item_device))
        for name, maker in self.source.makers():
            self._choose_gpu(usable_device(maker.device))
            if in_forked_process() and maker.threads > 1:
                raise ValueError(
                    f"expected `threads=1` in a forked worker, got {maker.threads}: OpenMP's threads do not survive a "
                    f'fork; give the DataLoader `multiprocessing_context="spawn"`, or the {name} `threads=1`'
                )

    def _choose_gpu(self, device: torch.device) -> None:
        """Choose what a plain `"cuda"` means: which GPU is current belongs to a thread, and others simulate."""
        if device.type == "cuda" and device.index is None and self._cuda_index is None:
            self._cuda_index = torch.cuda.current_device()

    def _begin_pass(self, worker: int, workers: int) -> StreamPosition:
        local, self._local = self._local, None
        slot = (self._rank_and_world()[0] * workers + worker) % MAX_STREAMS
        begun, again = self._progress.begin_pass(slot)
        if local is not None and (not begun.explicit or local.epoch == begun.epoch):
            resume, place = local, 0
        elif begun.resume is not None and not again:
            resume, place = begun.resume, worker
        else:
            if again and not begun.explicit:
                of_all = " of each dataset of the `ChainDataset`, which has none," if in_a_chain() else ""
                warnings.warn(
                    f"epoch {begun.epoch} is read again: the same items come again; call `set_epoch`{of_all} before "
                    "each epoch",
                    stacklevel=4,
                )
            return StreamPosition(epoch=begun.epoch, stream=worker, streams=workers, delivered=0)
        if resume.streams != workers:
            raise ValueError(
                f"expected to resume with as many workers as the state was saved with, {resume.streams} (0 counts as "
                f"1), got {workers}; set `num_workers` to it"
            )
        stream = (resume.first + place) % workers
        return StreamPosition(epoch=resume.epoch, stream=stream, streams=workers, delivered=resume.delivered[place])

    def _rank_and_world(self) -> tuple[int, int]:
        return self._ranks or known_ranks() or (0, 1)

    def _tomograms(self, stream: int, streams: int) -> range:
        """The tomograms of one stream of this rank; ranks and streams share them out without overlap."""
        rank, world = self._rank_and_world()
        return range(rank + world * stream, self.source.tomograms_per_epoch, world * streams)

    def _length(self, stream: int, streams: int) -> int:
        return len(self._tomograms(stream, streams)) * self.source.patches_per_tomogram

    def _items(self, position: StreamPosition, changed: str) -> Iterator[dict[str, Any]]:
        if changed:
            # Before a persistent worker reads, its errors do not reach the main process.
            raise ValueError(
                f"expected the dataset that this worker began with, got {changed} set anew: a persistent worker keeps "
                "its copy; make a new DataLoader after each change, or set `persistent_workers=False`"
            )
        order = stream_order(
            self._tomograms(position.stream, position.streams),
            patches=self.source.patches_per_tomogram,
            live=self.live_tomograms,
            seed=self.source.seed,
            epoch=position.epoch,
        )[position.delivered :]
        left = Counter(order[:, 0].tolist())
        # A Counter keeps the order of first appearance: the order in which the tomograms are needed.
        # On a CPU nothing is planned, and a pass's thread has ended before workers are forked.
        on_gpu = any(torch.device(maker.device).type == "cuda" for _, maker in self.source.makers())
        ahead = MakeAhead(
            lambda tomogram: self._make(position.epoch, tomogram),
            list(left),
            thread=self._kept_thread if on_gpu else None,
        )
        live: dict[int, TomogramPatches] = {}
        try:
            for tomogram, patch in order.tolist():
                if tomogram not in live:
                    live[tomogram] = ahead.take()
                item = self._item(live[tomogram], tomogram, patch)
                for transform in live[tomogram].transforms:
                    item = transform(item, patch)
                left[tomogram] -= 1
                if left[tomogram] == 0:
                    del live[tomogram]
                position.delivered += 1
                yield item
        except Stopped:
            # This worker's loader was closed: nobody reads on.
            return
        finally:
            ahead.close()

    def _make(self, epoch: int, tomogram: int) -> TomogramPatches:
        # What trains on the GPU goes on while the next tomogram is made there.
        with self._side_stream.of([maker.device for _, maker in self.source.makers()], self._cuda_index):
            made = self.source.make(epoch, tomogram)
            first = made.live.tensors()[0]
            if first.is_cuda:
                # The reader uses another stream.
                torch.cuda.current_stream(first.device).synchronize()
        return made

    def _item(self, patches: TomogramPatches, tomogram: int, patch: int) -> dict[str, Any]:
        # A mixture puts the patches of all of its sources on one device.
        place = self._place(patches)
        drawn = patches.draw(patch, place)
        return {
            "image": drawn.image.to(place),
            **({} if drawn.label is None else {"label": drawn.label.to(place)}),
            "index": tomogram * self.source.patches_per_tomogram + patch,
            "tomogram": tomogram,
            "position": torch.from_numpy(drawn.position),
            "particle_class": drawn.particle_class,
            **{key: value.to(place) if isinstance(value, Tensor) else value for key, value in drawn.targets.items()},
        }

    # State -----------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return where the stream of this process stands.

        Raises
        ------
        RuntimeError
            In the main process, if workers have begun passes since: it does not see how far they are.
        """
        position, info = self._position, get_worker_info()
        if info is None and self._progress.passes_begun > self._own_passes:
            raise RuntimeError(
                "expected to be told how far a DataLoader with workers has come; call "
                "`state_dict(batches=..., batch_size=..., num_workers=...)`"
            )
        if position is not None:
            return self._state(position.epoch, position.streams, position.stream, [position.delivered])
        waiting = self._local or self._progress.next.resume
        if waiting is not None:
            return self._state(waiting.epoch, waiting.streams, waiting.first, list(waiting.delivered))
        stream, streams = (0, 1) if info is None else (info.id, info.num_workers)
        return self._state(self.epoch, streams, stream, [0])

    def state_after(self, *, batches: int, batch_size: int, num_workers: int, drop_last: bool) -> dict[str, Any]:
        """Return where the streams of a loader's workers stand after a number of batches of its pass."""
        check_count("batches", batches, zero=True)
        check_count("batch_size", batch_size)
        check_count("num_workers", num_workers, zero=True)
        workers = max(num_workers, 1)
        if workers > 1 and self._progress.out_of_order:
            raise ValueError(
                "expected a loader that takes the workers' batches in turn, got one with `in_order=False`: the number "
                "of batches does not tell how far each worker is; set `in_order=True`, or `num_workers=1`"
            )
        resume = self._progress.current_resume
        first, start = (0, (0,) * workers) if resume is None else (resume.first, resume.delivered)
        if len(start) != workers:
            raise ValueError(f"expected `num_workers` of the state that was loaded, {len(start)}, got {workers}")
        streams = [(first + worker) % workers for worker in range(workers)]
        lengths = [self._length(stream, workers) for stream in streams]
        delivered, turn = positions_after(
            lengths, start=start, batches=batches, batch_size=batch_size, drop_last=drop_last
        )
        return self._state(self.epoch, workers, streams[turn], delivered[turn:] + delivered[:turn])

    def _state(self, epoch: int, streams: int, first: int, delivered: list[int]) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "seed": self.source.seed,
            "world_size": self._rank_and_world()[1],
            "tomograms": self.source.tomograms_per_epoch,
            "patches": self.source.patches_per_tomogram,
            "live": self.live_tomograms,
            "epoch": epoch,
            "streams": streams,
            "first": first,
            "delivered": delivered,
            **self.source.fingerprint(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on where a state was taken.

        Raises
        ------
        ValueError
            If the state is not one of this stream, or of one worker alone.
        """
        own = self._state(0, 1, 0, [0])
        if set(state) != set(own):
            raise ValueError(f"expected a state with {sorted(own)}, got {sorted(state)}")
        for key in sorted(own.keys() - _POSITION_KEYS):
            if state[key] != own[key]:
                raise ValueError(f"expected a state of a dataset with {key} {own[key]}, got {state[key]}")
        resume = Resume.from_state(state)
        for place, delivered in enumerate(resume.delivered):
            length = self._length((resume.first + place) % resume.streams, resume.streams)
            if delivered > length:
                raise ValueError(f"expected a state with at most {length} items delivered of a stream, got {delivered}")
        self._position, self._own_passes = None, 0
        if get_worker_info() is not None:
            self._local = resume
            return
        if len(resume.delivered) != resume.streams:
            raise ValueError(
                f"expected a state of all {resume.streams} streams, got one of stream {resume.first} alone; take it "
                "with `state_dict(batches=..., batch_size=..., num_workers=...)`"
            )
        ended = sum(resume.delivered) >= len(self)
        if ended and self._progress.next.explicit and resume.epoch < self.epoch:
            # StatefulDataLoader loads a state when its pass begins, which is after `set_epoch` chose the next epoch.
            return
        self._progress.set_resume(resume)
