"""Real labelled patches, alone and mixed with simulated ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from faket_aug import FileFormatError, SimulationError
from faket_aug.data.dataset import LabelledPatches
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.data.mixing import MixedPatches
from tests._helpers import (
    assert_same_items,
    dataset,
    indices,
    labelled_tomograms,
    loader,
    table,
    unbatched,
)

PATCHES: dict[str, Any] = {"patch_size": 8, "patches_per_tomogram": 5, "shift": 2}
MANY = pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning")


def _mixed(**settings: Any) -> MixedPatches:
    given: dict[str, Any] = {"tomograms_per_epoch": 8, "live_tomograms": 2}
    real = LabelledPatches(labelled_tomograms(), normalize=False, **PATCHES)
    return MixedPatches(real, dataset(normalize=False), **(given | settings))


def _is_real(item: dict[str, Any]) -> bool:
    # Nothing is normalised here; the simulated tomograms are near 0.
    return float(item["image"].mean()) > 500


def test_labelled_patches_are_cut_from_the_tomogram() -> None:
    """An item's image and label are the tomogram's own voxels about its position."""
    made = labelled_tomograms()
    data = LabelledPatches(made, normalize=False, half_turn=False, **PATCHES)
    items = list(data)
    assert len(items) == len(data) == 10
    for item in items:
        number = int(item["image"].mean() > 1050)
        z, y, x = (slice(int(c) - 4, int(c) + 4) for c in item["position"])
        assert torch.equal(item["image"][0], made[number].tomogram[z, y, x])
        assert torch.equal(item["label"], made[number].labels[z, y, x].long())
    assert {int(item["image"].mean() > 1050) for item in items} == {0, 1}


def test_share_is_met() -> None:
    """Exactly the share of the tomograms is real, elsewhere in each epoch; each source's are used equally often."""
    data = _mixed(real_share=0.25)
    places = []
    for epoch in range(4):
        data.set_epoch(epoch)
        real = {item["tomogram"] for item in data if _is_real(item)}
        assert real == {t for t in range(8) if data.is_real(epoch, t)}
        assert len(real) == 2
        places.append(sorted(real))
    assert len({tuple(place) for place in places}) > 1


def test_share_between_whole_numbers_is_met_over_epochs() -> None:
    data = _mixed(real_share=0.3)
    counts = [sum(data.is_real(epoch, t) for t in range(8)) for epoch in range(200)]
    assert set(counts) == {2, 3}
    assert np.mean(counts) == pytest.approx(2.4, abs=0.12)


def test_schedule() -> None:
    data = _mixed(real_share={2: 0.0, 6: 1.0})
    assert [data.real_share(epoch) for epoch in (0, 2, 3, 5, 6, 99)] == [0.0, 0.0, 0.25, 0.75, 1.0, 1.0]
    assert not any(data.is_real(0, t) for t in range(8))
    assert all(data.is_real(7, t) for t in range(8))


@MANY
@pytest.mark.slow
@pytest.mark.parametrize(("workers", "start"), [(1, "fork"), (3, "fork"), (2, "spawn")])
def test_same_items_for_any_workers(workers: int, start: str) -> None:
    data = _mixed()
    expected = list(data)
    data.set_epoch(0)
    assert indices(expected) != sorted(indices(expected))
    assert_same_items(list(loader(data, workers=workers, start=start, batch_size=None)), expected)


def test_ranks_share_out_an_epoch() -> None:
    expected = list(_mixed())
    found = [item for rank in (0, 1) for item in _mixed(rank=rank, world_size=2)]
    assert_same_items(found, expected)


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_resume(taken: int) -> None:
    """A state taken within an epoch leads to the same items as going on."""
    expected = unbatched(loader(_mixed(), batch_size=4))
    first = _mixed()
    reader = iter(loader(first, batch_size=4))
    for _ in range(taken):
        next(reader)
    state = first.state_dict(batches=taken, batch_size=4, num_workers=0)
    again = _mixed()
    again.load_state_dict(state)
    rest = unbatched(loader(again, batch_size=4))
    assert indices(rest) == indices(expected)[4 * taken :]
    assert_same_items(rest, expected[4 * taken :])


def test_state_knows_the_mixture() -> None:
    """A state of another share, or of other sources, is refused."""
    state = json.loads(json.dumps(_mixed(real_share=0.25).state_dict()))
    _mixed(real_share=0.25).load_state_dict(state)
    with pytest.raises(ValueError, match="a dataset with real_share"):
        _mixed(real_share=0.5).load_state_dict(state)


def test_bad_input() -> None:
    good = labelled_tomograms(1)[0]
    with pytest.raises(FileFormatError, match="real 0: expected labels of the tomogram's shape"):
        LabelledTomogram(**vars(good) | {"labels": good.labels[1:]})
    outside = table([1, 2], [(3, 4, 5), (3, 4, 500)])
    with pytest.raises(FileFormatError, match=r"got 1 outside, the first in row 2 at \[3.0, 4.0, 500.0\]"):
        LabelledTomogram(**vars(good) | {"particles": outside})
    nowhere = table([1], [(float("nan"), 4, 5)])
    with pytest.raises(FileFormatError, match="real 0: expected finite positions of particles"):
        LabelledTomogram(**vars(good) | {"particles": nowhere})
    with pytest.raises(ValueError, match="real 0: expected uint8 labels, got torch.int64"):
        LabelledTomogram(**vars(good) | {"labels": good.labels.long()})
    real = LabelledPatches([good], **PATCHES)
    with pytest.raises(ValueError, match="`real` and `fake` with the same `patch_size`"):
        MixedPatches(real, dataset(patch_size=12))
    with pytest.raises(ValueError, match="the same `patches_per_tomogram`, got 5 and 7"):
        MixedPatches(real, dataset(patches_per_tomogram=7))
    with pytest.raises(ValueError, match=r"`real_share at epoch 3` to lie in \[0, 1\], got 1.5"):
        MixedPatches(real, dataset(), real_share={0: 0.0, 3: 1.5})
    with pytest.raises(SimulationError, match="real 0: expected a patch that fits the tomogram"):
        list(LabelledPatches([good], patch_size=40))
