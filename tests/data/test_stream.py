"""A stream over a source: states of 0.1.0, sources of one's own, and what the datasets have in common."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
from _helpers import (
    SHAPE,
    WatchedSimulator,
    assert_same_items,
    dataset,
    error_of,
    labelled_tomograms,
    loader,
    simulator,
    specimens,
    unbatched,
)
from torch.utils.data import IterableDataset

from faket_aug import FakETDataset, LabelledPatches, LabelledTomogram, MixedPatches, PatchDataset, SimulationError
from faket_aug.data.drawn import TomogramPatches
from faket_aug.data.sampling import LiveTomogram
from faket_aug.data.source import Maker
from faket_aug.data.stream import PatchStream

PATCHES: dict[str, Any] = {"patch_size": 8, "patches_per_tomogram": 5, "shift": 2}


def _simulated(**settings: Any) -> FakETDataset:
    return dataset(tomograms_per_epoch=3, seed=4, **settings)


def _labelled(**settings: Any) -> LabelledPatches:
    return LabelledPatches(labelled_tomograms(), tomograms_per_epoch=3, seed=6, **PATCHES, **settings)


def _mixed(**settings: Any) -> MixedPatches:
    given: dict[str, Any] = {"tomograms_per_epoch": 4, "live_tomograms": 2, "seed": 8, "real_share": {0: 0.5, 2: 0.25}}
    return MixedPatches(_labelled(), _simulated(), **(given | settings))


def test_another_default_device() -> None:
    """Where a program has set another default device, the position of a stream is in the host's memory all the same."""
    expected = list(_simulated())
    with torch.device("meta"):
        data = _simulated()
        data.set_epoch(0)
        assert_same_items(list(data), expected)


# --- states of version 0.1.0 ------------------------------------------------------------------------------------------

_COMMON = {"format": 1, "world_size": 1, "patches": 5, "live": 2, "epoch": 1}
_SIMULATED = {"seed": 4, "tomograms": 3, **_COMMON}
_LABELLED = {"seed": 6, "tomograms": 3, **_COMMON}
_MIXED = {"seed": 8, "tomograms": 4, **_COMMON, "real_share": [[0, 0.5], [2, 0.25]], "source_seeds": [6, 4]}
#: After eight items in the main process.
_ALONE = {"streams": 1, "first": 0, "delivered": [8]}
#: After three batches of two items from two workers.
_TWO = {"streams": 2, "first": 1, "delivered": [2, 4]}


@pytest.mark.parametrize(
    ("make", "state", "rest"),
    [
        (
            _simulated,
            {**_SIMULATED, **_ALONE},
            {
                **{12: (7, 12, 8), 7: (12, 4, 20), 5: (12, 4, 23), 9: (9, 15, 18), 11: (4, 14, 24)},
                **{14: (4, 11, 20), 13: (5, 10, 22)},
            },
        ),
        (
            _labelled,
            {**_LABELLED, **_ALONE},
            {
                **{8: (12, 10, 15), 5: (8, 20, 6), 10: (4, 18, 25), 13: (10, 4, 23), 11: (12, 16, 4)},
                **{12: (10, 17, 16), 14: (11, 17, 19)},
            },
        ),
        (
            _mixed,
            {**_MIXED, **_ALONE},
            {
                **{14: (10, 6, 13), 6: (4, 18, 27), 12: (8, 16, 8), 5: (9, 4, 23), 17: (12, 4, 20), 16: (12, 18, 4)},
                **{11: (7, 19, 12), 10: (8, 20, 6), 19: (9, 15, 18), 15: (12, 4, 23), 13: (12, 10, 15)},
                **{18: (11, 7, 4)},
            },
        ),
    ],
)
def test_state_of_0_1_0(make: Any, state: dict[str, Any], rest: dict[int, tuple[int, int, int]]) -> None:
    """A state that 0.1.0 wrote goes on with the items that 0.1.0 gave; this version writes the same state."""
    data = make()
    data.load_state_dict(json.loads(json.dumps(state)))
    found = list(data)
    assert [(item["index"], tuple(item["position"].tolist())) for item in found] == list(rest.items())
    whole = make()
    whole.set_epoch(1)
    reader = iter(whole)
    for _ in range(8):
        next(reader)
    assert whole.state_dict() == state
    assert_same_items(found, list(reader))


@pytest.mark.parametrize(
    ("make", "state", "rest"),
    [
        (_simulated, {**_SIMULATED, **_TWO}, [7, 5, 0, 4, 9, 12, 11, 14, 13]),
        (_labelled, {**_LABELLED, **_TWO}, [6, 8, 13, 3, 5, 0, 11, 12, 14]),
        (_mixed, {**_MIXED, **_TWO}, [7, 17, 3, 12, 16, 19, 2, 11, 15, 6, 10, 13, 5, 18]),
    ],
)
def test_state_of_0_1_0_with_workers(make: Any, state: dict[str, Any], rest: list[int]) -> None:
    """The same for a loader with two workers."""
    data = make()
    data.set_epoch(1)
    assert data.state_dict(batches=3, batch_size=2, num_workers=2) == state
    data.load_state_dict(json.loads(json.dumps(state)))
    assert [item["index"] for item in unbatched(loader(data, workers=2, batch_size=2))] == rest


# --- what the datasets have in common ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [_simulated, _labelled, _mixed])
def test_attributes(make: Any) -> None:
    """Each dataset is an `IterableDataset`, holds a stream, and says what it was made with; copies are whole."""
    data = make()
    assert isinstance(data, IterableDataset)
    assert isinstance(data, PatchDataset)
    assert isinstance(data, FakETDataset)  # as in 0.1.0
    assert isinstance(data._stream, PatchStream)
    tomograms = 4 if make is _mixed else 3
    numbers = (data.tomograms_per_epoch, data.patches_per_tomogram, data.live_tomograms, len(data))
    assert numbers == (tomograms, 5, 2, 5 * tomograms)
    assert (data.epoch, data.item_device) == (0, "cpu")
    assert data.seed == {_simulated: 4, _labelled: 6, _mixed: 8}[make]
    assert_same_items(list(pickle.loads(pickle.dumps(data))), list(data))


def test_labelled_patches_take_the_settings_of_a_simulated_dataset() -> None:
    """The settings and their defaults are those of a `FakETDataset`; unknown ones are refused by name."""
    made = labelled_tomograms(1)
    given, plain = LabelledPatches(made, **PATCHES), LabelledPatches(made)
    assert given.tomograms is made
    assert given.sampler.patch_size == (8, 8, 8)
    assert given.radii is None
    simulated = FakETDataset(specimens(1), simulator())
    assert plain.sampler == simulated.sampler
    assert len(plain) == len(simulated) == 64
    spheres = LabelledPatches(made, target="sphere", radii={"small": 20.0}, **PATCHES)
    assert spheres.radii == {"small": 20.0}
    with pytest.raises(TypeError, match="patchsize"):
        LabelledPatches(made, patchsize=8)
    with pytest.raises(ValueError, match="expected at least one tomogram, got none"):
        LabelledPatches([])
    assert not hasattr(given, "simulator")


def test_error_of_a_tomogram_names_it() -> None:
    """A tomogram that cannot be read is named by its number in the sequence."""

    class Damaged(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            raise OSError("the disk is gone")

    error = error_of(lambda: list(LabelledPatches(Damaged(labelled_tomograms(1)), **PATCHES)))
    assert isinstance(error, SimulationError)
    assert str(error) == "tomogram 0: OSError: the disk is gone"


def test_old_attributes_warn() -> None:
    """Attributes of 0.1.0 that meant another dataset's still work, and name what replaces them."""
    mixed, labelled = _mixed(), _labelled()
    for name in ("radii", "sampler", "simulator", "specimens"):
        with pytest.warns(DeprecationWarning, match=f"use `fake.{name}`"):
            assert getattr(mixed, name) is getattr(mixed.fake, name)
    with pytest.warns(DeprecationWarning, match="use `tomograms`"):
        assert labelled.specimens is labelled.tomograms
    with pytest.raises(AttributeError, match="nothing"):
        mixed.nothing  # noqa: B018


def test_mixtures_can_be_mixed() -> None:
    """A mixture is a source as any other: three kinds of tomograms in one stream."""
    data = MixedPatches(_labelled(), _mixed(), real_share=0.5, seed=1, live_tomograms=2)
    assert len(data) == 35
    items = list(data)
    assert sorted(item["index"] for item in items) == list(range(35))
    data.set_epoch(0)
    assert_same_items(list(loader(data, workers=2, batch_size=None)), items)


def test_a_changed_simulator_is_used() -> None:
    """The simulator and the specimens of a dataset can be replaced, within a mixture, too."""
    data = _mixed()
    watched = WatchedSimulator(simulator())
    data.fake.simulator = watched
    list(data)
    assert len(watched.made) == sum(not data.is_real(0, tomogram) for tomogram in range(4))


def test_parts_of_a_mixture_cannot_be_replaced() -> None:
    """A mixture refuses another dataset in the place of one of its own, rather than to go on with the old one."""
    data = _mixed()
    for name in ("real", "fake"):
        with pytest.raises(AttributeError, match="no setter"):
            setattr(data, name, _labelled())


def test_warning_of_an_epoch_read_again_names_the_line_that_reads() -> None:
    """The warning is about the loop over the dataset, not about a line of the package."""
    data = _simulated()
    list(data)
    with pytest.warns(UserWarning, match="epoch 0 is read again") as caught:
        iter(data)
    assert [warning.filename for warning in caught] == [__file__]


# --- a source of one's own --------------------------------------------------------------------------------------------


class _Threaded:
    device, threads = "cpu", 2


class _OwnSource:
    """Tomograms whose voxels are the number of the epoch and of the tomogram."""

    seed, patch_size, tomograms_per_epoch, patches_per_tomogram, item_device = 0, (4, 4, 4), 3, 2, "cpu"

    def __init__(self, *makers: tuple[str, Maker]) -> None:
        self._makers = makers

    def makers(self) -> tuple[tuple[str, Maker], ...]:
        return self._makers

    def make(self, epoch: int, tomogram: int) -> TomogramPatches:
        thing = specimens(1)[0]
        made = LabelledTomogram(
            tomogram=torch.full(SHAPE, 100.0 * epoch + tomogram),
            labels=thing.labels,
            particles=thing.particles,
            voxel_size=10.0,
        )
        sampler = dataset(patch_size=4, normalize=False).sampler
        live = LiveTomogram.of(made, radii={})
        return TomogramPatches(
            live=live, sampler=sampler, seed=0, epoch=epoch, tomogram=tomogram, device="cpu", threads=1
        )

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "own"}


def test_a_source_of_ones_own() -> None:
    """Whatever keeps the protocol can be streamed: in any number of workers, from any epoch, with its own state."""
    data = PatchDataset(_OwnSource(), live_tomograms=2, rank=None, world_size=None)
    data.set_epoch(2)
    items = list(data)
    assert len(items) == len(data) == 6
    assert all(bool((item["image"] == 200 + item["tomogram"]).all()) for item in items)
    data.set_epoch(2)
    assert_same_items(list(loader(data, workers=2, batch_size=None)), items)
    state = data.state_dict(batches=0, batch_size=1, num_workers=0)
    assert state["kind"] == "own"
    with pytest.raises(ValueError, match="a dataset with kind own, got another"):
        data.load_state_dict(state | {"kind": "another"})


def test_threads_of_any_maker_do_not_survive_a_fork() -> None:
    """What computes with several threads is refused in a forked worker by its name, within a mixture, too."""
    own = PatchDataset(_OwnSource(("reader", _Threaded())), live_tomograms=1, rank=None, world_size=None)
    other = PatchDataset(_OwnSource(), live_tomograms=1, rank=None, world_size=None)
    for data in (own, MixedPatches(own, other), MixedPatches(other, own)):
        error = error_of(lambda data=data: list(loader(data, workers=1, batch_size=None)))  # type: ignore[misc]
        assert "expected `threads=1` in a forked worker, got 2" in str(error)
        assert "or the reader `threads=1`" in str(error)
    assert len(list(own)) == 6
