"""The dataset: labelled patches of tomograms that are simulated while a network trains."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from faket_aug._checks import SimulationError, check_count
from faket_aug._runtime.background import MakeAhead
from faket_aug._runtime.distributed import current_gpu, known_ranks
from faket_aug._runtime.memory import keep_memory
from faket_aug._runtime.threads import (
    SideStream,
    in_forked_process,
    intra_op_threads,
    usable_device,
    use_on_current_stream,
)
from faket_aug.data.augmentation import PatchAugmentation
from faket_aug.data.patches import as_size, check_fits
from faket_aug.data.progress import (
    MAX_STREAMS,
    Resume,
    SharedProgress,
    StreamPosition,
    positions_after,
    stream_order,
)
from faket_aug.data.sampling import LiveTomogram, PatchSampler, check_radii
from faket_aug.data.source import specimen_of, tomograms_of_epoch
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.specimens.tilted import Specimen

_FORMAT = 1
#: What of a state says where a dataset stands; all else must be the dataset's own.
_POSITION_KEYS = {"epoch", "streams", "first", "delivered"}


class FakETDataset(IterableDataset[dict[str, Any]]):
    """Labelled patches of tomograms that are simulated while they are read.

    An item is a dict of `image` (float32 `(1, z, y, x)`), `label` (int64 `(z, y, x)`), `index` (int, names the item
    within an epoch), `tomogram` (int), `position` (int64 `(3,)`, the patch's centre, (z, y, x) in voxels of the
    tomogram) and `particle_class` (int, of the particle it is centred on; 0 for background).

    An item depends on `seed`, `epoch` and `index` only: not on workers, ranks, order or resumption. Workers and ranks
    take whole tomograms.

    Parameters
    ----------
    specimens
        A sequence of specimens (`ShrecSpecimens` reads them when needed; `TiltedSpecimen`s come as tilts), or a
        `GrandModelGenerator`, which makes a new one for every tomogram of every epoch.
    simulator
        Makes the tomograms.
    patch_size
        Voxels, one number or (z, y, x).
    patches_per_tomogram
        Patches cut from each tomogram.
    tomograms_per_epoch
        Tomograms of an epoch; one for each specimen of a sequence by default. Those are used in random order, each
        equally often.
    live_tomograms
        Tomograms whose patches are mixed, in each worker; one more is made ahead.
    shift
        Largest random shift of a patch's centre from its particle, voxels along each axis.
    class_balanced
        Choose the class first, evenly among those in the tomogram, then the particle.
    background_fraction
        Share of patches at random places. A specimen without a particle table gives such patches only.
    half_turn
        Turn half of the patches by 180° about the tilt axis, as published.
    augmentation
        More augmentation.
    normalize
        Bring each image to mean 0 and deviation 1.
    target
        `"shape"`: the specimen's labels; `"sphere"`: a sphere for each particle.
    radii
        For `"sphere"`: radius in Å of each class, by number or name; other classes are not drawn.
    seed
        Of all chance.
    rank, world_size
        Of a distributed job; by default those of `torch.distributed`, or of the environment that `torchrun` makes.
    item_device
        Where the items' tensors are put.

    Raises
    ------
    ValueError
        For settings that cannot be, with what was expected.
    SimulationError
        While iterating: if a tomogram cannot be made; the message names the specimen and the cause.
    """

    def __init__(
        self,
        specimens: Sequence[Specimen] | GrandModelGenerator,
        simulator: FakETSimulator,
        *,
        patch_size: int | Sequence[int] = 56,
        patches_per_tomogram: int = 64,
        tomograms_per_epoch: int | None = None,
        live_tomograms: int = 2,
        shift: int = 13,
        class_balanced: bool = False,
        background_fraction: float = 0.0,
        half_turn: bool = True,
        augmentation: PatchAugmentation | None = None,
        normalize: bool = True,
        target: str = "shape",
        radii: Mapping[int | str, float] | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        item_device: str = "cpu",
    ) -> None:
        super().__init__()
        tomograms = tomograms_of_epoch(specimens, tomograms_per_epoch)
        check_count("patches_per_tomogram", patches_per_tomogram)
        check_count("live_tomograms", live_tomograms)
        check_count("seed", seed, zero=True)
        check_radii(radii, target)
        if (rank is None) != (world_size is None):
            raise ValueError(f"expected `rank` and `world_size` together, got {rank!r} and {world_size!r}")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"expected `rank` within 0 to `world_size` - 1, got {rank} of {world_size}")
        self.specimens = specimens
        self.simulator = simulator
        self.sampler = PatchSampler(
            patch_size=as_size(patch_size),
            shift=shift,
            class_balanced=class_balanced,
            background_fraction=background_fraction,
            half_turn=half_turn,
            augmentation=augmentation,
            normalize=normalize,
            target=target,
        )
        # Whole numbers of NumPy would not fit JSON.
        self.patches_per_tomogram = int(patches_per_tomogram)
        self.tomograms_per_epoch = tomograms
        self.live_tomograms = int(live_tomograms)
        self.radii = None if radii is None else dict(radii)
        self.seed = int(seed)
        self.item_device = item_device
        self._ranks = None if rank is None or world_size is None else (rank, world_size)
        self._progress = SharedProgress()
        self._local: Resume | None = None
        self._position: StreamPosition | None = None
        self._own_passes = 0
        self._cuda_index: int | None = None
        self._side_stream = SideStream()

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker is told what it cannot know: ranks, and which GPU is this rank's.
        gpu = current_gpu()
        told = {"_ranks": self._ranks or known_ranks(), "_cuda_index": self._cuda_index if gpu is None else gpu}
        return {**self.__dict__, **told, "_position": None}

    def __len__(self) -> int:
        """Items of an epoch on this rank, over all of its workers."""
        rank, world = self._rank_and_world()
        return len(range(rank, self.tomograms_per_epoch, world)) * self.patches_per_tomogram

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._progress.next.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, before each pass, as with a `DistributedSampler`.

        It also reaches persistent workers. The epoch of a state that was just loaded goes on where it stopped.
        """
        check_count("epoch", epoch, zero=True)
        self._progress.set_epoch(epoch)
        self._position, self._own_passes = None, 0

    # Order -----------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if info is not None:
            keep_memory()
        if workers > MAX_STREAMS:
            raise ValueError(f"expected at most {MAX_STREAMS} workers, got {workers}")
        usable_device(self.item_device)
        for maker, name in self._makers():
            device = usable_device(maker.device)
            if device.type == "cuda" and device.index is None:
                # Which GPU is current belongs to a thread; the thread that simulates is another one.
                self._cuda_index = torch.cuda.current_device() if self._cuda_index is None else self._cuda_index
            if in_forked_process() and maker.threads > 1:
                raise ValueError(
                    f"expected `threads=1` in a forked worker, got {maker.threads}: OpenMP's threads do not survive a "
                    f'fork; give the DataLoader `multiprocessing_context="spawn"`, or the {name} `threads=1`'
                )
        position = self._begin_pass(worker, workers)
        self._position, self._own_passes = position, self._progress.passes_begun
        return self._items(position)

    def _makers(self) -> list[tuple[FakETSimulator | GrandModelGenerator, str]]:
        """Return what computes on a device with threads, and how it is called."""
        generators = [(self.specimens, "generator")] if isinstance(self.specimens, GrandModelGenerator) else []
        return [(self.simulator, "simulator"), *generators]

    def _begin_pass(self, worker: int, workers: int) -> StreamPosition:
        """Find where this worker's pass begins: at a resume point, or at the start of the epoch."""
        local, self._local = self._local, None
        slot = (self._rank_and_world()[0] * workers + worker) % MAX_STREAMS
        begun, again = self._progress.begin_pass(slot)
        if local is not None and (not begun.explicit or local.epoch == begun.epoch):
            resume, place = local, 0
        elif begun.resume is not None and not again:
            resume, place = begun.resume, worker
        else:
            if again and not begun.explicit:
                warnings.warn(
                    f"epoch {begun.epoch} is read again: the same items come again; call `set_epoch` before each epoch",
                    stacklevel=3,
                )
            return StreamPosition(epoch=begun.epoch, stream=worker, streams=workers, delivered=0)
        if resume.streams != workers:
            raise ValueError(
                f"expected to resume with as many workers as the state was saved with, {resume.streams} (0 counts as "
                f"1), got {workers}; set `num_workers` to it"
            )
        stream = (resume.first + place) % workers
        return StreamPosition(epoch=resume.epoch, stream=stream, streams=workers, delivered=resume.delivered[place])

    def _tomograms(self, stream: int, streams: int) -> range:
        """The tomograms of one stream of this rank; ranks and streams share them out without overlap."""
        rank, world = self._rank_and_world()
        return range(rank + world * stream, self.tomograms_per_epoch, world * streams)

    def _stream_length(self, stream: int, streams: int) -> int:
        return len(self._tomograms(stream, streams)) * self.patches_per_tomogram

    def _items(self, position: StreamPosition) -> Iterator[dict[str, Any]]:
        order = stream_order(
            self._tomograms(position.stream, position.streams),
            patches=self.patches_per_tomogram,
            live=self.live_tomograms,
            seed=self.seed,
            epoch=position.epoch,
        )[position.delivered :]
        left = Counter(order[:, 0].tolist())
        # A Counter keeps the order of first appearance: the order in which the tomograms are needed.
        ahead = MakeAhead(lambda tomogram: self._make(position.epoch, tomogram), list(left))
        live: dict[int, LiveTomogram] = {}
        try:
            for tomogram, patch in order.tolist():
                if tomogram not in live:
                    live[tomogram] = ahead.take()
                item = self._item(live[tomogram], position.epoch, tomogram, patch)
                left[tomogram] -= 1
                if left[tomogram] == 0:
                    del live[tomogram]
                position.delivered += 1
                yield item
        finally:
            ahead.close()

    # Content ---------------------------------------------------------------------------------------------------------

    def _make(self, epoch: int, tomogram: int) -> LiveTomogram:
        # What trains on the GPU goes on while the next tomogram is made there.
        with self._side_stream.of([maker.device for maker, _ in self._makers()], self._cuda_index):
            specimen = specimen_of(self.specimens, seed=self.seed, epoch=epoch, tomogram=tomogram)
            try:
                check_fits(self.sampler.patch_size, specimen.labels.shape)
                radii = self._radii_in_voxels(specimen)
            except ValueError as error:
                raise SimulationError(f"{specimen.name}: {error}") from error
            made = self.simulator(specimen, seed=self.seed, epoch=epoch, tomogram=tomogram)
            if made.tomogram.is_cuda:
                # The reader uses another stream.
                torch.cuda.current_stream(made.tomogram.device).synchronize()
        return LiveTomogram.of(made, radii=radii)

    def _radii_in_voxels(self, specimen: Specimen) -> dict[int, float]:
        numbers = {name: number for number, name in specimen.class_names.items()}
        radii = {}
        for key, radius in (self.radii or {}).items():
            number = numbers.get(key) if isinstance(key, str) else key
            if number is None:
                raise ValueError(f"expected `radii` for classes among {', '.join(numbers)}, got {key!r}")
            radii[number] = radius / specimen.label_voxel_size
        return radii

    def _item(self, live: LiveTomogram, epoch: int, tomogram: int, patch: int) -> dict[str, Any]:
        with torch.no_grad(), intra_op_threads(self.simulator.threads):
            use_on_current_stream((live.tomogram, live.labels))
            address = {"seed": self.seed, "epoch": epoch, "tomogram": tomogram, "patch": patch}
            sample = self.sampler.sample(live, **address, device=self.item_device)
        return {
            "image": sample.image[None],
            "label": sample.label,
            "index": tomogram * self.patches_per_tomogram + patch,
            "tomogram": tomogram,
            "position": torch.from_numpy(sample.position),
            "particle_class": sample.particle_class,
        }

    # State -----------------------------------------------------------------------------------------------------------

    def state_dict(
        self,
        *,
        batches: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        drop_last: bool = False,
    ) -> dict[str, Any]:
        """Return where the dataset stands, small and JSON-serialisable.

        Without arguments: where *this process's* stream stands, which is all for `num_workers=0`, and what
        `torchdata`'s `StatefulDataLoader` asks each worker for. With a `DataLoader` that has workers, the main process
        does not see what they delivered: tell it how many batches of the epoch you took since the loader's pass began.

        Parameters
        ----------
        batches
            Batches taken in this pass of the loader.
        batch_size, num_workers, drop_last
            The loader's.

        Returns
        -------
        `format`, `seed`, `world_size`, `tomograms`, `patches`, `live` (which must be this dataset's to load it),
        `epoch`, `streams`, `first` and `delivered` (how far each worker's stream is).

        Raises
        ------
        RuntimeError
            If a loader with workers is running and `batches` is not given.
        ValueError
            If the loader's settings are missing or cannot be.
        """
        if batches is not None:
            if batch_size is None or num_workers is None:
                raise ValueError("expected `batch_size` and `num_workers` of the loader with `batches`, got None")
            check_count("batches", batches, zero=True)
            check_count("batch_size", batch_size)
            check_count("num_workers", num_workers, zero=True)
            return self._state_of_loader(batches, batch_size, max(num_workers, 1), drop_last)
        position = self._position
        if get_worker_info() is None and self._progress.passes_begun > self._own_passes:
            raise RuntimeError(
                "expected to be told how far a DataLoader with workers has come; call "
                "`state_dict(batches=..., batch_size=..., num_workers=...)`"
            )
        if position is not None:
            return self._state(position.epoch, position.streams, position.stream, [position.delivered])
        waiting = self._local or self._progress.next.resume
        if waiting is not None:
            return self._state(waiting.epoch, waiting.streams, waiting.first, list(waiting.delivered))
        info = get_worker_info()
        stream, streams = (0, 1) if info is None else (info.id, info.num_workers)
        return self._state(self.epoch, streams, stream, [0])

    def _state_of_loader(self, batches: int, batch_size: int, workers: int, drop_last: bool) -> dict[str, Any]:
        resume = self._progress.current_resume
        first, start = (0, (0,) * workers) if resume is None else (resume.first, resume.delivered)
        if len(start) != workers:
            raise ValueError(f"expected `num_workers` of the state that was loaded, {len(start)}, got {workers}")
        streams = [(first + worker) % workers for worker in range(workers)]
        lengths = [self._stream_length(stream, workers) for stream in streams]
        delivered, turn = positions_after(
            lengths, start=start, batches=batches, batch_size=batch_size, drop_last=drop_last
        )
        return self._state(self.epoch, workers, streams[turn], delivered[turn:] + delivered[:turn])

    def _state(self, epoch: int, streams: int, first: int, delivered: list[int]) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "seed": self.seed,
            "world_size": self._rank_and_world()[1],
            "tomograms": self.tomograms_per_epoch,
            "patches": self.patches_per_tomogram,
            "live": self.live_tomograms,
            "epoch": epoch,
            "streams": streams,
            "first": first,
            "delivered": delivered,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, in the next pass.

        Use as many workers as then, and call `set_epoch(state["epoch"])` as before any pass.

        Raises
        ------
        ValueError
            If the state is not one of this dataset: other keys, another seed, another number of tomograms, patches or
            ranks.
        """
        own = self._state(0, 1, 0, [0])
        if set(state) != set(own):
            raise ValueError(f"expected a state with {sorted(own)}, got {sorted(state)}")
        for key in sorted(own.keys() - _POSITION_KEYS):
            if state[key] != own[key]:
                raise ValueError(f"expected a state of a dataset with {key} {own[key]}, got {state[key]}")
        resume = Resume.from_state(state)
        for place, delivered in enumerate(resume.delivered):
            length = self._stream_length((resume.first + place) % resume.streams, resume.streams)
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

    def _rank_and_world(self) -> tuple[int, int]:
        return self._ranks or known_ranks() or (0, 1)
