"""An item is a function of seed, epoch and index: not of workers, start methods, ranks, order or what ran before."""

from __future__ import annotations

import multiprocessing
import os
import random
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import (
    MORE_WORKERS_THAN_CORES,
    assert_same_items,
    dataset,
    indices,
    loader,
    simulator,
    specimens,
)

from faket_aug import FakETDataset, PatchAugmentation

pytestmark = pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES)

Items = list[dict[str, Any]]


def _faket(folder: Path, **settings: Any) -> FakETDataset:
    """The whole chain: noise, style transfer by the narrow encoder, reconstruction, augmentation."""
    given: dict[str, Any] = {"tomograms_per_epoch": 5, "patches_per_tomogram": 4, "seed": 11, "patch_size": (8, 10, 12)}
    augmentation = PatchAugmentation(flips="x", scale=(0.9, 1.1))
    made = simulator("faket", folder)
    return dataset(made, specimens=specimens(2), augmentation=augmentation, **(given | settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the narrow encoder's file lies."""
    return tmp_path_factory.mktemp("encoder")


@pytest.fixture(scope="module")
def expected(folder: Path) -> Items:
    """The items of epoch 0, read in the main process."""
    return list(_faket(folder))


def test_expected_items_are_all_different(expected: Items) -> None:
    """No two items of an epoch are the same: otherwise the tests below could not fail."""
    assert len(expected) == 20
    for i, item in enumerate(expected):
        assert not any(torch.equal(item["image"], other["image"]) for other in expected[i + 1 :])


def test_two_runs_are_equal(folder: Path, expected: Items) -> None:
    """Two datasets with one seed give the same items in the same order."""
    again = list(_faket(folder))
    assert indices(again) == indices(expected)
    assert_same_items(again, expected)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_any_number_of_forked_workers(folder: Path, expected: Items, workers: int) -> None:
    """The same items, bit for bit, for any number of workers, and an epoch of the same length."""
    assert_same_items(loader(_faket(folder), workers=workers, batch_size=None), expected)


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("start", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_other_start_methods(folder: Path, expected: Items, start: str, workers: int) -> None:
    """The same items from workers that are spawned: all that a worker needs is pickled."""
    assert_same_items(loader(_faket(folder), workers=workers, start=start, batch_size=None), expected)


def test_more_workers_than_tomograms(folder: Path, expected: Items) -> None:
    """Workers without a tomogram deliver nothing, and nothing is missing."""
    data = _faket(folder, tomograms_per_epoch=2)
    alone = [item for item in expected if item["tomogram"] < 2]
    assert_same_items(loader(data, workers=3, batch_size=None), alone)


def test_threads_of_the_process_do_not_matter(folder: Path, expected: Items) -> None:
    """Items do not depend on the number of intra-op threads that the process has, and leave it as it was."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_same_items(list(_faket(folder)), expected)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.touches_global_rng
def test_global_generators_do_not_matter(folder: Path, expected: Items) -> None:
    """Items do not depend on the global generators, and leave them as they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - the user's
    try:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 - the user's
        random.seed(5)
        following = torch.rand(1), np.random.random(), random.random()  # noqa: NPY002 - the user's
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 - the user's
        random.seed(5)
        assert_same_items(list(_faket(folder)), expected)
        assert following == (torch.rand(1), np.random.random(), random.random())  # noqa: NPY002 - the user's
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - the user's
        random.setstate(states[2])


def test_other_seeds_differ(folder: Path, expected: Items) -> None:
    """Another seed gives other noise, other places and another order."""
    by_index = {item["index"]: item for item in expected}
    other = list(_faket(folder, seed=12))
    assert indices(other) != indices(expected)
    assert sorted(indices(other)) == sorted(indices(expected))
    assert not any(torch.equal(item["image"], by_index[item["index"]]["image"]) for item in other)


def test_neighbouring_seeds_and_epochs_do_not_coincide(folder: Path) -> None:
    """Seed s in epoch e + 1 is not seed s + 1 in epoch e: neither noise nor order nor places."""
    first, second = _faket(folder, seed=3), _faket(folder, seed=4)
    first.set_epoch(1)
    items, others = list(first), list(second)
    assert indices(items) != indices(others)
    by_index = {item["index"]: item for item in others}
    assert not any(torch.equal(item["image"], by_index[item["index"]]["image"]) for item in items)


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_differ(folder: Path, expected: Items, workers: int) -> None:
    """Another epoch has other items under the same indices; going back gives the first again."""
    data = _faket(folder)
    by_index = {item["index"]: item for item in expected}
    data.set_epoch(1)
    items = list(loader(data, workers=workers, batch_size=None))
    assert sorted(indices(items)) == sorted(by_index)
    assert not any(torch.equal(item["image"], by_index[item["index"]]["image"]) for item in items)
    data.set_epoch(0)
    assert_same_items(loader(data, workers=workers, batch_size=None), expected)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_persistent_workers_see_the_epoch(start: str) -> None:
    """`set_epoch` in the main process reaches workers that live on."""
    data = dataset(simulator("noisy"), count=3)
    reader = loader(data, workers=2, start=start, batch_size=None, persistent_workers=True)
    for epoch in (0, 2, 1, 2):
        data.set_epoch(epoch)
        fresh = dataset(simulator("noisy"), count=3)
        fresh.set_epoch(epoch)
        assert_same_items(reader, list(fresh))


def test_persistent_workers_after_a_broken_epoch() -> None:
    """After an epoch that was broken off the next one is whole, from its start."""
    data = dataset(simulator("noisy"), count=3)
    reader = loader(data, workers=2, batch_size=None, persistent_workers=True)
    for epoch in (0, 1, 2):
        data.set_epoch(epoch)
        for place, _ in enumerate(reader):
            if place == epoch:
                break
    data.set_epoch(5)
    fresh = dataset(simulator("noisy"), count=3)
    fresh.set_epoch(5)
    assert_same_items(reader, list(fresh))


# --- forgotten set_epoch ----------------------------------------------------------------------------------------------


def test_an_epoch_read_again_warns() -> None:
    """Without `set_epoch` a second pass gives the same items, and says so."""
    data = dataset()
    first = list(data)
    with pytest.warns(UserWarning, match="epoch 0 is read again.*call `set_epoch` before each epoch"):
        second = list(data)
    assert_same_items(second, first)


def test_an_epoch_read_again_on_purpose_does_not_warn() -> None:
    """With `set_epoch` before each pass there is no warning, even for the same epoch."""
    data = dataset()
    for _ in range(2):
        data.set_epoch(0)
        list(data)


def _warnings_to_file(worker: int) -> None:
    """Send the warnings of a worker to a file that the test reads."""
    path = Path(os.environ["FAKET_AUG_TEST_WARNINGS"])

    def show(message: Any, *_: Any, **__: Any) -> None:
        with path.open("a") as file:
            file.write(f"{worker} {message}\n")

    warnings.resetwarnings()
    warnings.simplefilter("always")
    warnings.showwarning = show


@pytest.mark.parametrize("persistent", [True, False])
def test_an_epoch_read_again_warns_in_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, persistent: bool
) -> None:
    """Workers warn, too, whether they live on or are made anew."""
    seen = tmp_path / "warnings"
    monkeypatch.setenv("FAKET_AUG_TEST_WARNINGS", str(seen))
    reader = loader(
        dataset(), workers=2, batch_size=None, persistent_workers=persistent, worker_init_fn=_warnings_to_file
    )
    list(reader)
    assert not seen.exists()
    list(reader)
    assert seen.read_text().count("epoch 0 is read again") == 2


# --- ranks ------------------------------------------------------------------------------------------------------------


def _rank_process(rank: int, folder: Path, queue: Any) -> None:
    """One rank of two: join the group, read an epoch alone and with two workers, write the items down."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        data = _faket(folder)
        lengths = [len(data)]
        for name, workers, start in (("alone", 0, "fork"), ("fork", 2, "fork"), ("spawn", 1, "spawn")):
            data.set_epoch(0)
            items = list(loader(data, workers=workers, start=start, batch_size=None))
            torch.save(items, folder / f"{name}_{rank}.pt")
            lengths.append(len(items))
        queue.put((rank, lengths))
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks(folder: Path, expected: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of a gloo group share out the single rank's items without overlap, also with two workers each."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    ranks = [context.Process(target=_rank_process, args=(rank, folder, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    lengths = dict(queue.get() for _ in ranks)
    assert {rank: set(found) for rank, found in lengths.items()} == {0: {12}, 1: {8}}
    for name in ("alone", "fork", "spawn"):
        shards = [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in range(2)]
        assert not set(indices(shards[0])) & set(indices(shards[1]))
        assert_same_items(chain.from_iterable(shards), expected)


def test_ranks_by_argument(folder: Path, expected: Items) -> None:
    """The same without a process group, ranks given by hand, for two and for three ranks, with workers."""
    for world in (2, 3):
        shards = [
            list(loader(_faket(folder, rank=rank, world_size=world), workers=2, batch_size=None))
            for rank in range(world)
        ]
        assert_same_items(chain.from_iterable(shards), expected)


def _given_rank(rank: int, data: FakETDataset, barrier: Any, queue: Any) -> None:
    """One of two ranks that were started with the same dataset object, with persistent workers, out of step."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    reader = loader(data, workers=2, batch_size=None, persistent_workers=True)
    found = []
    for epoch in (rank, 5 - rank, 2):
        data.set_epoch(epoch)
        barrier.wait(60)
        found.append((epoch, [(item["index"], float(item["image"].sum())) for item in reader]))
        barrier.wait(60)
    queue.put((rank, found))


def test_ranks_that_were_given_one_dataset() -> None:
    """Ranks that were started with one dataset do not see each other's `set_epoch`."""
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.SimpleQueue()
    data = dataset(simulator("noisy"), count=2, tomograms_per_epoch=5)
    data.allow_uneven_ranks()
    ranks = [context.Process(target=_given_rank, args=(rank, data, barrier, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    results = dict(queue.get() for _ in ranks)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    for rank, found in results.items():
        for epoch, items in found:
            fresh = dataset(simulator("noisy"), count=2, tomograms_per_epoch=5, rank=rank, world_size=2)
            fresh.set_epoch(epoch)
            assert sorted(items) == sorted((item["index"], float(item["image"].sum())) for item in fresh)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_set_epoch_during_a_pass_is_for_the_next(start: str) -> None:
    """`set_epoch` right after a pass began, before its workers are there, does not change that pass."""
    data, fresh = dataset(count=2), dataset(count=2)
    iterator = iter(loader(data, workers=2, start=start, batch_size=None))
    data.set_epoch(1)
    assert_same_items(iterator, list(fresh))
    fresh.set_epoch(1)
    assert_same_items(list(data), list(fresh))
