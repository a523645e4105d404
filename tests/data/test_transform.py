"""Transforms of one's own: called for every item, by random numbers of the item's address."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _helpers import assert_same_items, dataset, error_of, jittered, labelled_tomograms, loader, specimen, unbatched

from faket_aug import LabelledPatches, MixedPatches
from faket_aug._random import torch_generator, torch_seed

PATCHES: dict[str, Any] = {"patch_size": 8, "patches_per_tomogram": 5, "shift": 2}
MANY = pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning")


def _doubled(item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    return {**item, "image": 2 * item["image"], "drawn": torch.rand((), generator=generator)}


def test_each_item_has_random_numbers_of_its_address() -> None:
    """The transform gets the finished item; its generator is that of (seed, epoch, tomogram, patch)."""
    plain, data = dataset(seed=3), dataset(seed=3, transform=jittered)
    for one in (plain, data):
        one.set_epoch(2)
    for before, after in zip(plain, data, strict=True):
        address = {"epoch": 2, "tomogram": before["tomogram"], "patch": before["index"] % 5}
        gain, offset = torch.randn(2, generator=torch_generator(torch_seed(3, "transform", **address)))
        assert torch.equal(after["gain"], gain)
        assert torch.equal(after["image"], before["image"] * gain + offset)
        assert_same_items([{k: v for k, v in after.items() if k not in ("image", "gain")}], [_without(before, "image")])


def _without(item: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != name}


@MANY
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_and_resumption_do_not_change_it(workers: int) -> None:
    expected = {item["index"]: item for item in dataset(count=5, transform=jittered)}
    data = dataset(count=5, transform=jittered)
    batches, state = [], None
    for number, batch in enumerate(loader(data, workers=workers, batch_size=3), start=1):
        batches.append(batch)
        if number == 3:
            state = data.state_dict(batches=3, batch_size=3, num_workers=workers)
    items = sorted(unbatched(batches), key=lambda item: item["index"])
    assert [item["index"] for item in items] == sorted(expected)
    for item in items:
        assert torch.equal(item["image"], expected[item["index"]]["image"])
    again = dataset(count=5, transform=jittered)
    assert state is not None
    again.load_state_dict(state)
    assert_same_items(unbatched(loader(again, workers=workers, batch_size=3)), unbatched(batches[3:]))


@pytest.mark.slow
def test_spawned_workers_get_it() -> None:
    """A function of a module is sent to a spawned worker."""
    expected = list(dataset(transform=jittered))
    found = unbatched(loader(dataset(transform=jittered), workers=1, start="spawn", batch_size=5))
    for item, other in zip(found, expected, strict=True):
        assert torch.equal(item["image"], other["image"])


def test_a_mixture_transforms_after_its_datasets() -> None:
    """Each dataset's own transform stays in the mixture; the mixture's comes last, with numbers of its own."""
    real = LabelledPatches(labelled_tomograms(), transform=jittered, **PATCHES)
    settings: dict[str, Any] = {"real_share": 0.5, "tomograms_per_epoch": 4, "seed": 8}
    plain = list(MixedPatches(real, dataset(), **settings))
    data = MixedPatches(real, dataset(), transform=_doubled, **settings)
    for before, after in zip(plain, data, strict=True):
        assert ("gain" in after) == data.is_real(0, after["tomogram"])
        assert torch.equal(after["image"], 2 * before["image"])
        address = {"epoch": 0, "tomogram": before["tomogram"], "patch": before["index"] % 5}
        generator = torch_generator(torch_seed(8, "transform", **address))
        assert torch.equal(after["drawn"], torch.rand((), generator=generator))


def test_a_transform_returns_the_item() -> None:
    error = error_of(lambda: next(iter(dataset(specimens=[specimen(0)], transform=lambda item, generator: None))))
    assert isinstance(error, TypeError)
    assert "expected `transform` to return an item, a dict, got NoneType; return `item`" in str(error)
