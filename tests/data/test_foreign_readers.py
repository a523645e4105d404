"""What reads a dataset: what would lose or repeat items is refused, with what to do instead."""

from __future__ import annotations

import itertools
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import MORE_WORKERS_THAN_CORES, assert_same_items, dataset, generator, indices, loader, simulator
from torch.utils.data import ChainDataset, DataLoader, IterableDataset

from faket_aug import LabelledPatches, LabelledTomogram, MixedPatches, ParticleTable
from faket_aug.picking import TrainingSettings, fit

pytestmark = pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES)


def _network() -> torch.nn.Module:
    with torch.random.fork_rng():
        return torch.nn.Conv3d(1, 4, 1)


# --- batches out of order ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_out_of_order_cannot_be_resumed_by_counting(start: str) -> None:
    """With `in_order=False` a number of batches names no position: it is refused; a loader in order is not."""
    data = dataset(simulator("noisy"))
    reader = iter(loader(data, workers=2, start=start, batch_size=2, in_order=False))
    next(reader)
    with pytest.raises(ValueError, match="expected a loader that takes the workers' batches in turn.*set `in_order"):
        data.state_dict(batches=1, batch_size=2, num_workers=2)
    del reader
    data.set_epoch(1)
    reader = iter(loader(data, workers=2, start=start, batch_size=2))
    next(reader)
    assert data.state_dict(batches=1, batch_size=2, num_workers=2)["delivered"] == [0, 2]


def test_one_worker_is_always_in_order() -> None:
    """With one worker `in_order=False` changes nothing: the pass is resumed, every item comes once."""
    data, again = dataset(), dataset()
    reader = iter(loader(data, workers=1, batch_size=2, in_order=False))
    before = [i for _ in range(3) for i in next(reader)["index"].tolist()]
    again.load_state_dict(data.state_dict(batches=3, batch_size=2, num_workers=1))
    after = [i for batch in loader(again, workers=1, batch_size=2, in_order=False) for i in batch["index"].tolist()]
    assert sorted(before + after) == list(range(15))


def test_fit_refuses_batches_out_of_order(tmp_path: Path) -> None:
    """A training whose checkpoints could not be resumed does not begin."""
    network = _network()
    reader = loader(dataset(), workers=2, batch_size=2, in_order=False)
    with pytest.raises(ValueError, match="got one with `in_order=False`"):
        fit(network, reader, tmp_path / "out", settings=TrainingSettings(steps=1))
    assert not (tmp_path / "out").exists()


# --- something is set anew --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mixed", [False, True])
def test_new_simulator_and_persistent_workers(start: str, mixed: bool) -> None:
    """Persistent workers have the old simulator: their next pass is refused; a new loader has the new one."""
    fake = dataset(simulator("noiseless"))
    data: Any = MixedPatches(dataset(seed=3), fake, real_share=0.0) if mixed else fake
    kept = loader(data, workers=2, start=start, batch_size=None, persistent_workers=True)
    old = list(kept)
    fake.simulator = simulator("noisy")
    data.set_epoch(0)
    with pytest.raises(ValueError, match=r"got `simulator` set anew: a persistent worker keeps.*make a new DataLoader"):
        list(kept)
    del kept
    data.set_epoch(0)
    new = list(loader(data, workers=2, start=start, batch_size=None))
    expected: Any = dataset(simulator("noisy"))
    if mixed:
        expected = MixedPatches(dataset(seed=3), expected, real_share=0.0)
    assert_same_items(new, list(expected))
    assert indices(old) == indices(new)
    assert not any(torch.equal(a["image"], b["image"]) for a, b in zip(old, new, strict=True))


def test_new_simulator_without_persistent_workers() -> None:
    """Workers that begin anew have the new simulator, and so has the main process."""
    data = dataset(simulator("noiseless"))
    list(loader(data, workers=2, batch_size=None))
    data.simulator = simulator("noisy")
    expected = list(dataset(simulator("noisy")))
    for workers in (2, 0):
        data.set_epoch(0)
        assert_same_items(loader(data, workers=workers, batch_size=None), expected)
    again = pickle.loads(pickle.dumps(data))
    again.set_epoch(0)
    assert_same_items(loader(again, workers=2, batch_size=None, persistent_workers=True), expected)


def test_simulator_of_a_mixture_is_that_of_its_fake_part() -> None:
    """What is set on the mixture reaches its tomograms, and a warning names the place to set it."""
    fake = dataset(simulator("noiseless"))
    data = MixedPatches(dataset(seed=3), fake, real_share=0.0)
    new = simulator("noisy")
    with pytest.warns(DeprecationWarning, match=r"set `fake\.simulator`"):
        data.simulator = new  # type: ignore[attr-defined]
    assert fake.simulator is new
    expected = MixedPatches(dataset(seed=3), dataset(simulator("noisy")), real_share=0.0)
    assert_same_items(list(data), list(expected))


# --- readers that share out once more ---------------------------------------------------------------------------------


class IterableDatasetShard(IterableDataset[Any]):
    """As accelerate's and transformers': every rank reads all, in parts of so many, and keeps its own."""

    def __init__(self, data: Any) -> None:
        self.dataset = data

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.dataset), 0, None, 2)


class DataLoaderDispatcher(DataLoader[Any]):
    """As accelerate's: rank 0 reads and hands out."""

    def __iter__(self) -> Any:
        yield from super().__iter__()


@pytest.mark.parametrize("workers", [0, 2])
def test_accelerate_is_refused(workers: int) -> None:
    """A dataset that gives each rank its own tomograms is not shared out among the ranks again."""
    one = {"rank": 1, "world_size": 2}
    message = r"IterableDatasetShard: the dataset gives each of the 2 ranks.*do not give the loader to `accelerator"
    with pytest.raises(ValueError, match=message):
        list(loader(IterableDatasetShard(dataset(**one)), workers=workers, batch_size=None))
    with pytest.raises(ValueError, match=r"DataLoaderDispatcher: the dataset gives each of the 2 ranks"):
        list(loader(dataset(**one), workers=workers, batch_size=None, cls=DataLoaderDispatcher))
    # A dataset that gives all of its tomograms may be.
    whole = {"rank": 0, "world_size": 1}
    assert len(list(loader(IterableDatasetShard(dataset(**whole)), batch_size=None))) == 8
    assert len(list(loader(dataset(**whole), workers=workers, batch_size=None, cls=DataLoaderDispatcher))) == 15


@pytest.mark.slow
def test_accelerate_is_refused_before_workers_are_spawned() -> None:
    """A spawned worker does not see who reads: the main process refuses when it starts it."""
    with pytest.raises(ValueError, match=r"DataLoaderDispatcher: the dataset gives each of the 2 ranks"):
        list(loader(dataset(rank=1, world_size=2), workers=1, start="spawn", batch_size=None, cls=DataLoaderDispatcher))


def _monai_dataset() -> Any:
    class Monai(IterableDataset[Any]):
        """As monai.data.IterableDataset: each worker keeps every n-th item that it reads."""

        def __init__(self, data: Any) -> None:
            self.data = data

        def __iter__(self) -> Iterator[Any]:
            info = torch.utils.data.get_worker_info()
            yield from itertools.islice(iter(self.data), info.id if info else 0, None, info.num_workers if info else 1)

    Monai.__name__, Monai.__module__ = "IterableDataset", "monai.data.iterable_dataset"
    return Monai


def test_monai_is_refused_with_several_workers() -> None:
    """MONAI's IterableDataset shares out by worker once more; with one worker, or none, nothing is lost."""
    wrapped = _monai_dataset()
    for workers in (0, 1):
        assert sorted(indices(loader(wrapped(dataset()), workers=workers, batch_size=None))) == list(range(15))
    with pytest.raises(ValueError, match=r"monai\.data.*the dataset gives each of the 2 workers.*`collate_fn`"):
        list(loader(wrapped(dataset()), workers=2, batch_size=None))


# --- chains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_chain_cannot_be_told_the_epoch(workers: int) -> None:
    """A chain that is read again says that each of its datasets has to be told the epoch."""
    parts = [dataset(), dataset(seed=1)]
    reader = loader(ChainDataset(parts), workers=workers, batch_size=None)
    assert len(list(reader)) == 30
    for part in parts:
        part.set_epoch(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(reader)) == 30
    again = loader(ChainDataset([dataset(), dataset(seed=1)]), batch_size=None)
    list(again)
    with pytest.warns(UserWarning, match="call `set_epoch` of each dataset of the `ChainDataset`, which has none"):
        list(again)


def test_fit_tells_the_parts_of_a_chain_the_epoch(tmp_path: Path) -> None:
    """A training over a chain sees new items in each epoch."""
    parts, seen = [dataset(), dataset(seed=1)], []

    def collate(items: Any) -> Any:
        batch = torch.utils.data.default_collate(items)
        seen.append(batch["image"])
        return batch

    reader = loader(ChainDataset(parts), batch_size=15, collate_fn=collate)
    fit(_network(), reader, tmp_path, settings=TrainingSettings(steps=4), log="none")
    assert [part.epoch for part in parts] == [1, 1]
    assert len(seen) == 4
    assert not torch.equal(seen[0], seen[2])


# --- ranks whose epochs differ ----------------------------------------------------------------------------------------


def test_uneven_ranks_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a job of several ranks a dataset says that the epochs differ in length, once, before they do."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    data = dataset(count=3)
    with pytest.warns(UserWarning, match=r"3 tomograms an epoch on 2 ranks.*hangs.*`tomograms_per_epoch` to 2 or 4"):
        next(iter(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.set_epoch(1)
        next(iter(data))
        next(iter(dataset(count=4)))
        allowed = dataset(count=3)
        allowed.allow_uneven_ranks()
        next(iter(allowed))
    with pytest.warns(UserWarning, match=r"1 tomograms an epoch on 2 ranks.*`tomograms_per_epoch` to 2,"):
        next(iter(dataset(count=1)))


def test_ranks_by_hand_are_not_warned_of() -> None:
    """Whoever names rank and world without a job reads the parts one after the other."""
    one = LabelledTomogram(
        tomogram=torch.rand(16, 16, 16, generator=generator()),
        labels=torch.zeros(16, 16, 16, dtype=torch.uint8),
        particles=ParticleTable.empty(),
        voxel_size=10.0,
    )
    data = LabelledPatches([one] * 3, patch_size=8, patches_per_tomogram=2, rank=0, world_size=2)
    assert len(list(data)) == 4
