"""Pairs for denoisers: two halves and the clean image of one place, turned and scaled alike, the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from _helpers import (
    MORE_WORKERS_THAN_CORES,
    assert_same_items,
    dataset,
    generator,
    labelled_tomograms,
    loader,
    simulator,
    specimens,
)
from torch import Tensor

from faket_aug import FakETDataset, LabelledPatches, MixedPatches, PatchAugmentation, SimulatedTomogram, SimulationError
from faket_aug.data.patches import cut

pytestmark = pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES)

SIZE = (8, 10, 12)
EVERYTHING = PatchAugmentation(
    flips="zyx", half_turns="zyx", rotation_deg=(15.0, 25.0, 35.0), scale=(0.8, 1.25), keep_missing_wedge=False
)


def pairs(**settings: Any) -> FakETDataset:
    """A dataset of pairs, with the clean image."""
    given: dict[str, Any] = {"halves": "exposures", "targets": ("labels", "clean"), "patch_size": SIZE, "seed": 5}
    given |= {"specimens": specimens(2), "tomograms_per_epoch": 4, "patches_per_tomogram": 4}
    return dataset(simulator("noisy"), **(given | settings))


def test_an_item_is_a_pair() -> None:
    """Halves and clean image are float volumes of the image's shape, and collate."""
    batch = next(iter(loader(pairs(), batch_size=16)))
    for key in ("image", "image_other", "clean"):
        assert batch[key].shape == (16, 1, *SIZE)
        assert batch[key].dtype == torch.float32
    assert not torch.equal(batch["image"], batch["image_other"])
    assert set(next(iter(pairs(targets=("labels",))))) == {*next(iter(dataset(count=1))), "image_other"}


@pytest.mark.parametrize("halves", ["tilts", "exposures"])
def test_values_are_those_of_the_tomogram(halves: str) -> None:
    """Each is cut at the item's position from the halves and the clean tomogram that the simulator makes."""
    data = pairs(halves=halves, half_turn=False, normalize=False)
    made: dict[int, SimulatedTomogram] = {}
    for item in data:
        number = item["tomogram"]
        if number not in made:
            patches = data.source.make(0, number)
            thing = next(one for one in data.specimens if one.name == patches.live.specimen)
            made[number] = data.simulator(thing, seed=5, tomogram=number, halves=halves, clean=True)
        whole = made[number]
        assert whole.halves is not None
        assert whole.clean is not None
        for key, volume in zip(("image", "image_other", "clean"), (*whole.halves, whole.clean), strict=True):
            assert torch.equal(item[key][0], cut(volume, item["position"].numpy(), SIZE))


@pytest.mark.parametrize("augmentation", [None, EVERYTHING])
def test_all_are_turned_and_scaled_as_the_image(augmentation: PatchAugmentation | None) -> None:
    """Where halves and clean tomogram are one volume, all three entries of an item are the same."""
    volume = torch.randn(16, 24, 32, generator=generator(1))
    real = replace(labelled_tomograms(1)[0], tomogram=volume, halves=(volume, volume), clean=volume)
    settings: dict[str, Any] = {
        "halves": "tilts",
        "targets": ("clean",),
        "patch_size": SIZE,
        "patches_per_tomogram": 12,
    }
    for item in LabelledPatches([real], augmentation=augmentation, **settings):
        assert torch.equal(item["image"], item["image_other"])
        assert torch.equal(item["image"], item["clean"])
        assert abs(float(item["image"].double().std(correction=0)) - 1) < 1e-3


def test_the_other_half_has_the_images_scale() -> None:
    """The other half is scaled by mean and deviation of the image, not by its own."""
    volume = torch.randn(16, 24, 32, generator=generator(1))
    real = replace(labelled_tomograms(1)[0], tomogram=volume, halves=(volume, 3 * volume + 5), clean=None)
    item = next(iter(LabelledPatches([real], halves="tilts", patch_size=SIZE)))
    assert float(item["image_other"].std()) == pytest.approx(3 * float(item["image"].std()), rel=1e-5)


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    """The items of epoch 0 with every turn, read in the main process."""
    return list(pairs(augmentation=EVERYTHING))


@pytest.mark.parametrize(("workers", "start"), [(0, "fork"), (1, "fork"), (3, "fork"), (1, "spawn")])
def test_any_workers(expected: list[dict[str, Any]], workers: int, start: str) -> None:
    """The same pairs, bit for bit, for any number of workers, forked and spawned."""
    assert_same_items(loader(pairs(augmentation=EVERYTHING), workers=workers, start=start, batch_size=None), expected)


def test_resumed_and_two_ranks(expected: list[dict[str, Any]]) -> None:
    """A dataset that goes on in the middle gives what is left; two ranks share the items out."""
    data, again = pairs(augmentation=EVERYTHING), pairs(augmentation=EVERYTHING)
    items = iter(data)
    first = [next(items) for _ in range(5)]
    again.load_state_dict(data.state_dict())
    assert_same_items([*first, *again], expected)
    shards = [list(pairs(augmentation=EVERYTHING, rank=rank, world_size=2)) for rank in range(2)]
    assert_same_items([*shards[0], *shards[1]], expected)


def test_without_them_items_stay() -> None:
    """A clean image as target changes nothing else of an item."""
    plain = list(pairs(halves=None, targets=("labels",)))
    more = list(pairs(halves=None))
    assert_same_items([{key: item[key] for key in plain[0]} for item in more], plain)


# --- simulators of one's own, real tomograms, mistakes ----------------------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """A simulator of one's own that makes nothing else."""

    device = "cpu"
    threads = 1

    def __call__(self, specimen: Any, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulatedTomogram:
        return simulator("noisy")(specimen, seed=seed, epoch=epoch, tomogram=tomogram)


class Deaf(Plain):
    """It takes every argument, and makes nothing else."""

    def __call__(self, specimen: Any, **asked: Any) -> SimulatedTomogram:
        return simulator("noisy")(specimen, seed=asked["seed"])


def test_a_simulator_of_ones_own() -> None:
    """It needs the arguments only where they are asked for, and has to do what they say."""
    things: Any = specimens(1)
    assert len(list(FakETDataset(things, Plain(), patch_size=8, patches_per_tomogram=2))) == 2
    with pytest.raises(TypeError, match=r"a call `\(specimen, \*, seed, epoch=0, tomogram=0, halves=...\)`, got Plain"):
        FakETDataset(things, Plain(), halves="tilts")
    with pytest.raises(SimulationError, match="specimen 0: expected a tomogram with `halves`, got one without"):
        next(iter(FakETDataset(things, Deaf(), patch_size=8, halves="tilts")))


def test_what_cannot_be_is_told_when_the_dataset_is_made() -> None:
    """Unknown halves, and halves of a simulator without noise."""
    with pytest.raises(ValueError, match="expected `halves` to be one of 'tilts', 'exposures', got 'frames'"):
        pairs(halves="frames")
    with pytest.raises(ValueError, match='expected a modality with noise for `halves="exposures"`'):
        dataset(simulator("noiseless"), halves="exposures")
    data = pairs()
    with pytest.raises(ValueError, match="expected a modality with noise"):
        data.simulator = simulator("noiseless")


def test_real_tomograms_need_halves() -> None:
    """A real tomogram without halves or a clean one is refused with its name; mixtures have pairs throughout."""
    with pytest.raises(SimulationError, match="real 0: expected a tomogram with `halves`, got one without"):
        next(iter(LabelledPatches(labelled_tomograms(1), patch_size=8, halves="tilts")))
    with pytest.raises(
        SimulationError, match="real 0: expected a tomogram with `clean`.*leave 'clean' out of `targets`"
    ):
        next(iter(LabelledPatches(labelled_tomograms(1), patch_size=8, targets=("clean",))))
    real = LabelledPatches(labelled_tomograms(1), patch_size=SIZE, patches_per_tomogram=4)
    with pytest.raises(ValueError, match="expected `real` and `fake` both with `halves`, or both without"):
        MixedPatches(real, pairs(targets=("labels",)))


def test_mixed_pairs() -> None:
    """Real and simulated pairs collate."""
    volume: Tensor = labelled_tomograms(1)[0].tomogram
    real = LabelledPatches(
        [replace(labelled_tomograms(1)[0], halves=(volume, volume))],
        patch_size=SIZE,
        patches_per_tomogram=4,
        halves="tilts",
    )
    mixed = MixedPatches(real, pairs(targets=("labels",)), real_share=0.5)
    assert next(iter(loader(mixed, batch_size=20)))["image_other"].shape == (20, 1, *SIZE)
