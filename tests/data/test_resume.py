"""One drill for everything that has a state: after loading, the stream goes on as if nothing had happened."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from _helpers import (
    MORE_WORKERS_THAN_CORES,
    assert_same_item,
    dataset,
    error_of,
    loader,
    simulator,
    unbatched,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, get_worker_info

from faket_aug import FakETDataset
from faket_aug.data.progress import positions_after

pytestmark = [
    pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES),
    # torchdata 0.11 calls a function of torch that later versions call deprecated.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

Batches = list[list[int]]


def _data(tomograms: int = 3, made: Any = None, **settings_: Any) -> FakETDataset:
    return dataset(made, count=2, tomograms_per_epoch=tomograms, **({"patches_per_tomogram": 5} | settings_))


def _read(reader: Any, count: int | None = None) -> Batches:
    """The indices of the next batches of a new pass, all by default; the pass is broken off after them."""
    return [batch["index"].tolist() for batch in islice(iter(reader), count)]


def _through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


# --- in the main process ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", range(16))
def test_items_in_the_main_process(taken: int) -> None:
    """Item by item: the remainder after a resume is the uninterrupted one, bit for bit, from any place of the epoch."""
    expected = list(_data(made=simulator("noisy")))
    data = _data(made=simulator("noisy"))
    iterator = iter(data)
    for _ in range(taken):
        next(iterator)
    state = _through_json(data.state_dict())
    fresh = _data(made=simulator("noisy"))
    fresh.load_state_dict(state)
    found = list(fresh)
    assert len(found) == len(expected) - taken
    for item, other in zip(found, expected[taken:], strict=True):
        assert_same_item(item, other)


@pytest.mark.parametrize("taken", range(5))
def test_partial_last_batch_in_the_main_process(taken: int) -> None:
    """Batches of 4 of 15 items: also after the last, smaller one, whose remainder is empty."""
    _drill_in_the_main_process(taken, batch_size=4, drop_last=False)


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
@pytest.mark.parametrize(("batch_size", "drop_last"), [(5, False), (4, True)])
def test_batches_in_the_main_process(taken: int, batch_size: int, drop_last: bool) -> None:
    """Batches that divide the epoch, or leave a rest that is dropped."""
    _drill_in_the_main_process(taken, batch_size=batch_size, drop_last=drop_last)


def _drill_in_the_main_process(taken: int, **given_: Any) -> None:
    expected = _read(loader(_data(), **given_))
    data = _data()
    iterator = iter(loader(data, **given_))
    for _ in range(taken):
        next(iterator)
    state = _through_json(data.state_dict())
    fresh = _data()
    fresh.load_state_dict(state)
    assert _read(loader(fresh, **given_)) == expected[taken:]


def test_state_is_small_and_has_constant_keys() -> None:
    """The state has the same few keys at every place, and fits a line."""
    data = _data()
    keys = set(data.state_dict())
    for _ in data:
        state = data.state_dict()
        assert set(state) == keys
        assert len(json.dumps(state)) < 200


def test_state_does_not_run_ahead() -> None:
    """A state that was taken does not change when the reading goes on."""
    data = _data()
    iterator = iter(data)
    next(iterator)
    state = data.state_dict()
    before = json.dumps(state)
    next(iterator)
    assert json.dumps(state) == before


def test_state_before_the_first_pass_is_the_start() -> None:
    """Loading the state of a new dataset changes nothing."""
    fresh = _data()
    fresh.load_state_dict(_through_json(_data().state_dict()))
    assert _read(loader(fresh)) == _read(loader(_data()))


def test_loaded_state_is_the_state() -> None:
    """Until the next pass begins, the state is the one that was loaded."""
    state = _data().state_dict(batches=3, batch_size=2, num_workers=2)
    fresh = _data()
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    assert fresh.state_dict(batches=0, batch_size=2, num_workers=2) == state


@pytest.mark.parametrize("taken", [0, 1, 9])
def test_set_epoch_of_the_state_goes_on(taken: int) -> None:
    """A training loop calls `set_epoch(state["epoch"])` before the resumed pass: it goes on all the same."""
    data = _data()
    data.set_epoch(2)
    expected = [item["index"] for item in data]
    data.set_epoch(2)
    iterator = iter(data)
    for _ in range(taken):
        next(iterator)
    state = _through_json(data.state_dict())
    assert state["epoch"] == 2
    fresh = _data()
    fresh.load_state_dict(state)
    assert fresh.epoch == 2
    fresh.set_epoch(2)
    assert [item["index"] for item in fresh] == expected[taken:]


@pytest.mark.parametrize("taken", [0, 4, 15])
def test_set_epoch_of_another_epoch_begins_it(taken: int) -> None:
    """`set_epoch` with another epoch than the state's begins that epoch at its start."""
    data = _data()
    iterator = iter(data)
    for _ in range(taken):
        next(iterator)
    fresh = _data()
    fresh.load_state_dict(_through_json(data.state_dict()))
    fresh.set_epoch(1)
    data.set_epoch(1)
    assert [item["index"] for item in fresh] == [item["index"] for item in data]


def test_after_the_end_of_an_epoch() -> None:
    """The state after an epoch was read to its end, then `set_epoch` of the next: that epoch from its start."""
    data = _data()
    list(data)
    fresh = _data()
    fresh.load_state_dict(_through_json(data.state_dict()))
    fresh.set_epoch(1)
    data.set_epoch(1)
    assert [item["index"] for item in fresh] == [item["index"] for item in data]


def test_state_after_set_epoch_is_of_that_epoch() -> None:
    """Between `set_epoch` and the first item the state is the start of the epoch that was set."""
    data = _data()
    list(data)
    data.set_epoch(1)
    assert data.state_dict() == _data().state_dict() | {"epoch": 1}


def test_pass_after_the_resumed_one_is_whole() -> None:
    """A resume point is used once: the next epoch, or the same one again, is read from its start."""
    data = _data()
    state = _data().state_dict(batches=4, batch_size=1, num_workers=0)
    expected = [item["index"] for item in _data()]
    data.load_state_dict(state)
    assert [item["index"] for item in data] == expected[4:]
    data.set_epoch(0)
    assert [item["index"] for item in data] == expected


def test_twice_in_one_epoch_in_the_main_process() -> None:
    """Save, load, save, load: the three parts make up the epoch."""
    expected = [item["index"] for item in _data()]
    found: list[int] = []
    state = _data().state_dict()
    for count in (3, 0, 5, None):
        data = _data()
        data.load_state_dict(_through_json(state))
        found += [item["index"] for item in islice(iter(data), count)]
        state = data.state_dict()
    assert found == expected


def test_loading_into_a_dataset_in_use() -> None:
    """A state may be loaded in the middle of a pass: the next pass goes on there."""
    data = _data()
    iterator = iter(data)
    first = [next(iterator)["index"] for _ in range(6)]
    state = data.state_dict()
    rest = [item["index"] for item in iterator]
    data.load_state_dict(state)
    assert [item["index"] for item in data] == rest
    assert first + rest == [item["index"] for item in _data()]


# --- a DataLoader with workers ----------------------------------------------------------------------------------------

#: Tomograms, workers, items of a batch, drop_last: streams of unequal length, batches that do not divide them.
LOADERS = [
    pytest.param(3, 2, 4, False, id="2 workers, partial batches"),
    pytest.param(3, 2, 4, True, id="2 workers, drop_last"),
    pytest.param(3, 2, 5, False, id="2 workers, whole batches"),
    pytest.param(4, 3, 3, False, id="3 workers"),
    pytest.param(4, 3, 3, True, id="3 workers, drop_last"),
    pytest.param(2, 3, 4, False, id="a worker without a tomogram"),
    pytest.param(2, 1, 4, False, id="1 worker"),
]


@pytest.mark.parametrize(("tomograms", "workers", "batch_size", "drop_last"), LOADERS)
def test_loader_with_workers(tomograms: int, workers: int, batch_size: int, drop_last: bool) -> None:
    """It goes on from any place: 0, before every worker delivered, the middle, the last batch, the end."""
    given_ = {"workers": workers, "batch_size": batch_size, "drop_last": drop_last}
    telling = {"num_workers": workers, "batch_size": batch_size, "drop_last": drop_last}
    expected = _read(loader(_data(tomograms), **given_))
    data = _data(tomograms)
    for taken in range(len(expected) + 1):
        data.set_epoch(0)
        assert _read(loader(data, **given_), taken) == expected[:taken]
        state = _through_json(data.state_dict(batches=taken, **telling))
        fresh = _data(tomograms)
        fresh.load_state_dict(state)
        assert _read(loader(fresh, **given_)) == expected[taken:], f"after {taken} batches"


@pytest.mark.parametrize(("tomograms", "workers", "batch_size", "drop_last"), LOADERS[:5])
@pytest.mark.parametrize("parts", [(1, 1), (2, 1), (1, 0, 2), (0, 3, 1, 1)])
def test_twice_in_one_epoch_with_workers(
    tomograms: int, workers: int, batch_size: int, drop_last: bool, parts: tuple[int, ...]
) -> None:
    """Save, load, save, load with workers: the parts make up the epoch."""
    given_ = {"workers": workers, "batch_size": batch_size, "drop_last": drop_last}
    telling = {"num_workers": workers, "batch_size": batch_size, "drop_last": drop_last}
    found: Batches = []
    state = _data(tomograms).state_dict(batches=0, **telling)
    for count in (*parts, None):
        data = _data(tomograms)
        data.load_state_dict(_through_json(state))
        part = _read(loader(data, **given_), count)
        found += part
        state = data.state_dict(batches=len(part), **telling)
    assert found == _read(loader(_data(tomograms), **given_))


def test_items_with_workers_are_the_same() -> None:
    """A resumed item is the same bit for bit, not only in name."""
    given_ = {"workers": 2, "batch_size": 4}
    expected = unbatched(loader(_data(made=simulator("noisy")), **given_))
    fresh = _data(made=simulator("noisy"))
    fresh.load_state_dict(_data().state_dict(batches=2, batch_size=4, num_workers=2))
    found = unbatched(loader(fresh, **given_))
    assert len(found) == len(expected) - 8
    for item, other in zip(found, expected[8:], strict=True):
        assert_same_item(item, other)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_persistent_workers(start: str) -> None:
    """With persistent workers: the remainder, then whole epochs, then a state loaded while they live."""
    given_ = {"workers": 2, "batch_size": 4}
    expected = {}
    for epoch in (1, 2):
        other = _data()
        other.set_epoch(epoch)
        expected[epoch] = _read(loader(other, **given_))
    data = _data()
    state = _data().state_dict(batches=2, batch_size=4, num_workers=2) | {"epoch": 1}
    data.load_state_dict(state)
    reader = loader(data, start=start, persistent_workers=True, **given_)
    data.set_epoch(1)
    assert _read(reader) == expected[1][2:]
    data.set_epoch(2)
    assert _read(reader) == expected[2]
    data.load_state_dict(state)
    assert _read(reader, 1) == expected[1][2:3]
    assert data.state_dict(batches=1, batch_size=4, num_workers=2)["delivered"] == [4, 8]
    data.set_epoch(2)
    assert _read(reader) == expected[2]


@pytest.mark.parametrize("workers", [1, 2])
def test_after_the_end_of_an_epoch_with_workers(workers: int) -> None:
    """The state after an epoch's last batch, then `set_epoch` of the next."""
    telling = {"batch_size": 4, "num_workers": workers}
    data = _data()
    count = len(_read(loader(data, workers=workers, batch_size=4)))
    state = _through_json(data.state_dict(batches=count, **telling))
    fresh = _data()
    fresh.load_state_dict(state)
    fresh.set_epoch(1)
    data.set_epoch(1)
    assert _read(loader(fresh, workers=workers, batch_size=4)) == _read(loader(data, workers=workers, batch_size=4))


def test_no_workers_and_one_worker_are_the_same_stream() -> None:
    """A state taken in the main process goes on in one worker, and back."""
    expected = _read(loader(_data()))
    data = _data()
    _read(loader(data), 4)
    with_worker = _data()
    with_worker.load_state_dict(_through_json(data.state_dict()))
    assert _read(loader(with_worker, workers=1), 3) == expected[4:7]
    alone = _data()
    alone.load_state_dict(_through_json(with_worker.state_dict(batches=3, batch_size=1, num_workers=1)))
    assert _read(loader(alone)) == expected[7:]


def test_ranks_resume() -> None:
    """Each rank goes on where it stopped; together they make up the epoch."""
    found: list[int] = []
    for rank in range(2):
        ranked = {"tomograms": 5, "rank": rank, "world_size": 2}
        data = _data(**ranked)
        first = _read(loader(data, workers=2, batch_size=4), 2)
        fresh = _data(**ranked)
        fresh.load_state_dict(_through_json(data.state_dict(batches=2, batch_size=4, num_workers=2)))
        found += [i for batch in first + _read(loader(fresh, workers=2, batch_size=4)) for i in batch]
    assert sorted(found) == list(range(25))


def test_state_needs_to_be_told_about_workers() -> None:
    """What workers delivered is not known in the main process; asked without it, the error says how to tell."""
    data = _data()
    _read(loader(data, workers=2), 1)
    with pytest.raises(RuntimeError, match="how far a DataLoader with workers has come.*batches=.*num_workers="):
        data.state_dict()


def test_state_needs_to_be_told_about_workers_after_a_pass_without() -> None:
    """The same when the dataset was read in the main process before."""
    data = _data()
    list(data)
    data.set_epoch(1)
    _read(loader(data, workers=2), 1)
    with pytest.raises(RuntimeError, match="how far a DataLoader with workers has come"):
        data.state_dict()


# --- following the round robin ----------------------------------------------------------------------------------------


class _Counted(IterableDataset[tuple[int, int]]):
    """Worker w delivers `(stream, item)` of stream `(first + w) % streams`, beginning at `delivered[w]`."""

    def __init__(self, lengths: list[int], delivered: list[int]) -> None:
        self.lengths, self.delivered = lengths, delivered

    def __iter__(self) -> Iterator[tuple[int, int]]:
        info = get_worker_info()
        assert info is not None
        for item in range(self.delivered[info.id], self.lengths[info.id]):
            yield info.id, item


def _counted(lengths: list[int], delivered: list[int], batch_size: int, drop_last: bool) -> list[list[tuple[int, int]]]:
    data = _Counted(lengths, delivered)
    reader = loader(data, workers=len(lengths), batch_size=batch_size, drop_last=drop_last, collate_fn=list)
    return list(reader)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    batch_size=st.integers(1, 3),
    drop_last=st.booleans(),
    data=st.data(),
)
def test_positions_follow_a_real_loader(
    lengths: list[int], batch_size: int, drop_last: bool, data: st.DataObject
) -> None:
    """`positions_after` says where a real DataLoader stands: a loader begun there delivers exactly the remainder."""
    expected = _counted(lengths, [0] * len(lengths), batch_size, drop_last)
    taken = data.draw(st.integers(0, len(expected)))
    delivered, turn = positions_after(
        lengths, start=(0,) * len(lengths), batches=taken, batch_size=batch_size, drop_last=drop_last
    )
    workers = [(turn + w) % len(lengths) for w in range(len(lengths))]
    rest = _counted([lengths[w] for w in workers], [delivered[w] for w in workers], batch_size, drop_last)
    assert [[(workers[w], item) for w, item in batch] for batch in rest] == expected[taken:]


def _round_robin(lengths: list[int], start: list[int], batch_size: int, drop_last: bool) -> list[tuple[int, int]]:
    """The same in so many words: `(worker, items)` of every batch to come."""
    left = [list(range(s, n))[::-1] for s, n in zip(start, lengths, strict=True)]
    found, silent, worker = [], 0, 0
    while silent < len(lengths):
        size = min(batch_size, len(left[worker]))
        silent = 0 if size and (size == batch_size or not drop_last) else silent + 1
        if not silent:
            found.append((worker, size))
            del left[worker][-size:]
        worker = (worker + 1) % len(lengths)
    return found


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    batch_size=st.integers(1, 4),
    drop_last=st.booleans(),
    parts=st.lists(st.integers(0, 4), max_size=4),
)
def test_positions_add_up(lengths: list[int], batch_size: int, drop_last: bool, parts: list[int]) -> None:
    """Followed in parts, each begun where the last one ended, a loader's batches are those of one pass."""
    expected = _round_robin(lengths, [0] * len(lengths), batch_size, drop_last)
    workers, start = list(range(len(lengths))), [0] * len(lengths)
    for part in parts:
        sizes = [lengths[w] for w in workers]
        delivered, turn = positions_after(
            sizes, start=tuple(start), batches=part, batch_size=batch_size, drop_last=drop_last
        )
        workers, start = workers[turn:] + workers[:turn], delivered[turn:] + delivered[:turn]
        rest = _round_robin([lengths[w] for w in workers], start, batch_size, drop_last)
        taken = len(expected) - len(rest)
        assert [(workers[w], size) for w, size in rest] == expected[taken:]
    assert len(expected) - sum(parts) <= len(_round_robin([lengths[w] for w in workers], start, batch_size, drop_last))


# --- torchdata's StatefulDataLoader -----------------------------------------------------------------------------------


@pytest.fixture
def stateful() -> Any:
    """The class, where torchdata is installed."""
    return pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader


#: Tomograms, workers, items of a batch, drop_last, persistent workers, and after how many batches the state is taken.
STATEFUL_LOADERS = [
    pytest.param(3, 0, 4, False, False, range(5), id="0"),
    pytest.param(3, 0, 5, False, False, range(4), id="0 whole batches"),
    pytest.param(3, 0, 4, True, False, range(4), id="0 drop_last"),
    pytest.param(3, 2, 4, False, False, range(4), id="2"),
    pytest.param(3, 2, 4, False, True, range(4), id="2 persistent"),
    pytest.param(3, 2, 4, False, False, range(4, 6), id="2 ended"),
    pytest.param(3, 2, 4, False, True, range(4, 6), id="2 persistent ended"),
    pytest.param(3, 2, 5, False, False, range(4), id="2 whole batches"),
    pytest.param(3, 2, 2, False, True, range(6), id="2 small batches persistent"),
    pytest.param(3, 2, 2, False, False, range(6, 9), id="2 small batches ended"),
    pytest.param(5, 2, 4, True, False, range(6), id="2 drop_last"),
]


@pytest.mark.parametrize(("tomograms", "workers", "batch_size", "drop_last", "persistent", "places"), STATEFUL_LOADERS)
def test_stateful_loader(
    stateful: Any, tomograms: int, workers: int, batch_size: int, drop_last: bool, persistent: bool, places: range
) -> None:
    """A fresh StatefulDataLoader that loads the state of another goes on in the same order, from any place."""
    given_ = {"workers": workers, "cls": stateful, "batch_size": batch_size, "drop_last": drop_last}
    given_ |= {"persistent_workers": persistent}
    expected = _read(loader(_data(tomograms), **given_))
    assert len(expected) >= places[-1]
    for taken in places:
        reader = loader(_data(tomograms), **given_)
        iterator = iter(reader)
        for _ in range(taken):
            next(iterator)
        state = _through_json(reader.state_dict())
        fresh = loader(_data(tomograms), **given_)
        fresh.load_state_dict(state)
        found = _read(fresh)
        # A failure would keep them alive while others fork, see `error_of`.
        del iterator, reader, fresh
        assert found == expected[taken:], f"after {taken} batches"


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_loader_before_its_first_pass(stateful: Any, workers: int) -> None:
    """The state of a loader that was not yet read, from a state before that: the epoch from its start."""
    given_ = {"workers": workers, "cls": stateful, "batch_size": 4}
    reader = loader(_data(), **given_)
    state = _through_json(reader.state_dict())
    fresh = loader(_data(), **given_)
    fresh.load_state_dict(state)
    assert _read(fresh) == _read(reader) == _read(loader(_data(), **given_))


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_loader_twice_in_one_epoch(stateful: Any, workers: int) -> None:
    """Save, load, save, load through StatefulDataLoader."""
    given_ = {"workers": workers, "cls": stateful, "batch_size": 4}
    expected = _read(loader(_data(), **given_))
    found: Batches = []
    state = loader(_data(), **given_).state_dict()
    for count in (1, 1, 1):
        reader = loader(_data(), **given_)
        reader.load_state_dict(_through_json(state))
        iterator = iter(reader)
        found += [next(iterator)["index"].tolist() for _ in range(count)]
        state = reader.state_dict()
    assert found == expected[:3]


@pytest.mark.parametrize("every", [2, 3])
def test_stateful_loader_with_fewer_snapshots(stateful: Any, every: int) -> None:
    """Where torchdata takes a snapshot only every few steps, and fast-forwards from it."""
    given_ = {"workers": 2, "cls": stateful, "batch_size": 2, "snapshot_every_n_steps": every}
    expected = _read(loader(_data(), **given_))
    for taken in (1, 2, 3, 4, 5):
        reader = loader(_data(), **given_)
        iterator = iter(reader)
        for _ in range(taken):
            next(iterator)
        fresh = loader(_data(), **given_)
        fresh.load_state_dict(_through_json(reader.state_dict()))
        assert _read(fresh) == expected[taken:]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_stateful_loader_over_epochs(stateful: Any, workers: int, persistent: bool) -> None:
    """Interrupted in the middle of epoch 1, a training loop with `set_epoch` goes on to the end of epoch 2."""
    given_ = {"workers": workers, "cls": stateful, "batch_size": 4, "persistent_workers": persistent}
    data = _data()
    reader = loader(data, **given_)
    expected, state = [], None
    for epoch in range(3):
        data.set_epoch(epoch)
        for place, batch in enumerate(reader):
            expected.append(batch["index"].tolist())
            if (epoch, place) == (1, 1):
                state, seen = _through_json(reader.state_dict()), len(expected)
    assert state is not None
    data = _data()
    reader = loader(data, **given_)
    reader.load_state_dict(state)
    found = []
    for epoch in (1, 2):
        data.set_epoch(epoch)
        found += [batch["index"].tolist() for batch in reader]
    assert found == expected[seen:]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_loader_after_the_end_of_an_epoch(stateful: Any, workers: int, drop_last: bool) -> None:
    """The state after an epoch's end, then `set_epoch` of the next: that epoch from its start."""
    given_ = {"workers": workers, "cls": stateful, "batch_size": 4, "drop_last": drop_last}
    data = _data()
    reader = loader(data, **given_)
    _read(reader)
    state = _through_json(reader.state_dict())
    data.set_epoch(1)
    expected = _read(reader)
    fresh = _data()
    resumed = loader(fresh, **given_)
    resumed.load_state_dict(state)
    fresh.set_epoch(1)
    assert _read(resumed) == expected


def test_stateful_loader_never_asks_in_vain(stateful: Any) -> None:
    """torchdata asks workers, or the process that reads itself, for states: never where the answer is an error."""
    data = _data()
    _read(loader(data, workers=2), 1)
    assert isinstance(error_of(data.state_dict), RuntimeError)
    for workers in (0, 2):
        reader = loader(data, workers=workers, cls=stateful, batch_size=4)
        data.set_epoch(0)
        before = reader.state_dict()
        iterator = iter(reader)
        next(iterator)
        after = reader.state_dict()
        for state in (before, after, before):
            reader.load_state_dict(state)
            assert reader.state_dict()
            next(iter(reader))


@pytest.mark.slow
def test_stateful_loader_with_spawned_workers(stateful: Any) -> None:
    """The same with workers that are spawned."""
    given_ = {"workers": 2, "cls": stateful, "batch_size": 4, "start": "spawn"}
    reader = loader(_data(), **given_)
    iterator = iter(reader)
    expected = [next(iterator)["index"].tolist()]
    state = _through_json(reader.state_dict())
    expected += [batch["index"].tolist() for batch in iterator]
    fresh = loader(_data(), **given_)
    fresh.load_state_dict(state)
    assert _read(fresh) == expected[1:]


# --- strict reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["format", "seed", "world_size", "tomograms", "epoch", "streams", "delivered"])
def test_missing_key(key: str) -> None:
    """A state without one of its keys is refused, with the keys that there must be."""
    state = _data().state_dict()
    del state[key]
    with pytest.raises(ValueError, match=rf"expected a state with \[.*'{key}'.*\], got \["):
        _data().load_state_dict(state)


def test_unknown_key() -> None:
    """A state with a key that is not known, from a later version perhaps, is refused."""
    with pytest.raises(ValueError, match="expected a state with .*, got .*'colour'"):
        _data().load_state_dict(_data().state_dict() | {"colour": 1})


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"seed": 1}, "expected a state of a dataset with seed 0, got 1"),
        ({"tomograms": 4}, "expected a state of a dataset with tomograms 3, got 4"),
        ({"patches_per_tomogram": 6}, "expected a state of a dataset with patches 5, got 6"),
        ({"rank": 0, "world_size": 2}, "expected a state of a dataset with world_size 1, got 2"),
    ],
)
def test_state_of_another_dataset(settings_: dict[str, Any], message: str) -> None:
    """A state of a dataset with other items, or another order, is refused; the message says what differs."""
    with pytest.raises(ValueError, match=message):
        _data().load_state_dict(_data(**settings_).state_dict())


def test_state_of_another_order() -> None:
    """`live_tomograms` changes the order, so a count of items means others with another value: it is refused."""
    data = _data(live_tomograms=1)
    list(islice(iter(data), 7))
    with pytest.raises(ValueError, match="live"):
        _data(live_tomograms=3).load_state_dict(data.state_dict())


def test_state_of_another_format() -> None:
    """A state of another version of the format is refused."""
    with pytest.raises(ValueError, match="expected a state of a dataset with format 1, got 2"):
        _data().load_state_dict(_data().state_dict() | {"format": 2})


@pytest.mark.parametrize(
    ("saved", "used"),
    # A DataLoader of which several workers fail at once may wait for them for some seconds.
    [(2, 0), (2, 1), (3, 1), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(2, 3, marks=pytest.mark.slow)],
)
def test_other_number_of_workers(saved: int, used: int) -> None:
    """A state goes on with as many workers as it was taken with; the error says how many."""
    data = _data()
    data.load_state_dict(_data().state_dict(batches=1, batch_size=2, num_workers=saved))
    error = error_of(lambda: _read(loader(data, workers=used)))
    assert isinstance(error, ValueError)
    assert f"as many workers as the state was saved with, {saved} " in str(error)
    assert f"got {max(used, 1)}; set `num_workers` to it" in str(error)


def test_other_number_of_workers_when_the_state_is_taken() -> None:
    """After a resume the number of workers that `state_dict` is told must be the state's."""
    data = _data()
    data.load_state_dict(_data().state_dict(batches=1, batch_size=2, num_workers=2))
    with pytest.raises(ValueError, match="expected `num_workers` of the state that was loaded, 2, got 3"):
        data.state_dict(batches=1, batch_size=2, num_workers=3)


def test_state_of_one_stream_is_not_the_loaders() -> None:
    """The state of one worker, as torchdata collects them, is not that of the whole loader."""
    state = _data().state_dict(batches=1, batch_size=2, num_workers=2) | {"delivered": [2]}
    with pytest.raises(ValueError, match="expected a state of all 2 streams, got one of stream 1 alone; take it with"):
        _data().load_state_dict(state)


@pytest.mark.parametrize(
    "damage",
    [
        {"delivered": [-1]},
        {"delivered": [16]},
        {"delivered": ["many"]},
        {"epoch": -1},
        {"first": 1},
        {"streams": 0, "delivered": []},
    ],
)
def test_impossible_numbers(damage: dict[str, Any]) -> None:
    """Numbers that no pass can have reached are refused, with the key's name."""
    with pytest.raises(ValueError, match=next(iter(damage))):
        _data().load_state_dict(_data().state_dict() | damage)


@pytest.mark.parametrize("wrong", [{"batches": -1}, {"batch_size": 0}, {"num_workers": -1}, {"batches": 1.5}])
def test_impossible_batches(wrong: dict[str, Any]) -> None:
    """A number of batches, a batch size or a number of workers that cannot be is refused."""
    with pytest.raises(ValueError, match=f"expected `{next(iter(wrong))}` to be a whole number"):
        _data().state_dict(**({"batches": 1, "batch_size": 4, "num_workers": 2} | wrong))


@pytest.mark.parametrize("missing", ["batch_size", "num_workers"])
def test_batches_without_the_loaders_settings(missing: str) -> None:
    """A number of batches means nothing without their size and the number of workers."""
    telling = {"batches": 1, "batch_size": 4, "num_workers": 2}
    del telling[missing]
    with pytest.raises(ValueError, match="expected `batch_size` and `num_workers` of the loader with `batches`"):
        _data().state_dict(**telling)


def test_dataset_can_be_sent_to_another_process() -> None:
    """What a spawned worker gets is enough to go on: settings, ranks, epoch; but no position of this process."""
    data = _data()
    next(iter(data))
    settings_ = data._stream.__getstate__()
    assert settings_["_ranks"] is None  # not known here: a rank that is started with a copy finds its own
    assert settings_["_position"] is None
    assert torch.is_tensor(settings_["_progress"]._cell)
    assert settings_["_progress"]._cell.is_shared()


def test_copy_finds_its_own_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset copied before the ranks are known takes its rank where it is used: no two ranks read the same."""
    copied = copy.deepcopy(_data())
    monkeypatch.setenv("RANK", "1")
    assert copied._stream._rank_and_world() == (0, 1)  # half an environment is none
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert copied._stream._rank_and_world() == (1, 2)
    assert copied._stream.__getstate__()["_ranks"] == (1, 2)


def test_copy_reaches_its_persistent_workers() -> None:
    """`set_epoch` of a deep copy reaches the persistent workers of its loader."""
    data = copy.deepcopy(_data())
    reader = loader(data, workers=1, persistent_workers=True, batch_size=4)
    first = _read(reader)
    data.set_epoch(1)
    assert _read(reader) != first


def test_epoch_set_during_a_pass_is_for_the_next_one() -> None:
    """A slow worker takes the epoch that was set when its loader's pass began, not one that is set meanwhile."""
    given_ = {"workers": 2, "batch_size": 4}
    expected = _read(loader(_data(), **given_))
    data = _data()
    iterator = iter(loader(data, worker_init_fn=_slow_start, **given_))
    found = [next(iterator)["index"].tolist()]
    data.set_epoch(1)
    found += [batch["index"].tolist() for batch in iterator]
    assert found == expected


def _slow_start(worker: int) -> None:
    time.sleep(worker * 1.0)
