"""The dataset: what an item is, which items an epoch has, and in which order they come."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from _helpers import (
    CLASS_NAMES,
    SHAPE,
    VOXEL_SIZE,
    WatchedSimulator,
    assert_same_item,
    assert_same_items,
    blobs,
    dataset,
    empty_specimen,
    error_of,
    indices,
    loader,
    simulator,
    specimen,
    specimens,
    table,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ChainDataset, DataLoader

from faket_aug import FakETDataset, GrandModel, MixedPatches, PatchAugmentation, SimulationError
from faket_aug._runtime.threads import SideStream
from faket_aug.data.patches import cut, normalize
from faket_aug.data.progress import stream_order
from faket_aug.data.sampling import LiveTomogram
from faket_aug.geometry import half_turn_about_tilt_axis
from faket_aug.picking.loaders import items_on

PATCH = (8, 10, 12)

# --- what an item is --------------------------------------------------------------------------------------------------


def test_item_contract() -> None:
    """An item has the documented keys, dtypes and shapes, also for a patch of three unequal sizes."""
    data = dataset(patch_size=PATCH)
    for item in data:
        assert list(item) == ["image", "label", "index", "tomogram", "position", "particle_class"]
        assert item["image"].dtype == torch.float32
        assert item["image"].shape == (1, *PATCH)
        assert item["label"].dtype == torch.int64
        assert item["label"].shape == PATCH
        assert item["position"].dtype == torch.int64
        assert item["position"].shape == (3,)
        assert all(type(item[key]) is int for key in ("index", "tomogram", "particle_class"))
        assert item["image"].is_contiguous()
        assert item["label"].is_contiguous()


def test_items_collate() -> None:
    """The default collation makes batches: image (n, 1, z, y, x), label (n, z, y, x), numbers (n,)."""
    batch = next(iter(loader(dataset(patch_size=PATCH), batch_size=4)))
    assert batch["image"].shape == (4, 1, *PATCH)
    assert batch["label"].shape == (4, *PATCH)
    assert batch["position"].shape == (4, 3)
    assert batch["index"].shape == batch["tomogram"].shape == batch["particle_class"].shape == (4,)


def test_index_names_tomogram_and_patch() -> None:
    """`index` is `tomogram · patches_per_tomogram + patch`, and an epoch has each exactly once."""
    data = dataset(patches_per_tomogram=4, tomograms_per_epoch=5)
    items = list(data)
    assert sorted(indices(items)) == list(range(20))
    assert all(item["tomogram"] == item["index"] // 4 for item in items)
    assert len(data) == 20


@pytest.mark.parametrize("modality", ["noiseless", "noisy"])
@pytest.mark.parametrize("epoch", [0, 3])
def test_image_is_cut_from_the_tomogram_at_its_position(modality: str, epoch: int) -> None:
    """Image and label are what the simulator makes at the item's address, cut at `position`."""
    made = simulator(modality)
    things = specimens(2)
    data = dataset(made, specimens=things, patch_size=PATCH, half_turn=False, normalize=False, seed=7)
    data.set_epoch(epoch)
    by_name = {thing.name: thing for thing in things}
    watched = WatchedSimulator(made)
    data.simulator = watched
    items = list(data)
    for _, tomogram, name in watched.made:
        again = made(by_name[name], seed=7, epoch=epoch, tomogram=tomogram)
        for item in items:
            if item["tomogram"] == tomogram:
                center = item["position"].numpy()
                assert torch.equal(item["image"][0], cut(again.tomogram, center, PATCH))
                assert torch.equal(item["label"], cut(again.labels, center, PATCH).long())


def test_position_is_the_middle_voxel() -> None:
    """Voxel `size // 2` of the patch is the tomogram's voxel `position`."""
    made = simulator()
    data = dataset(made, count=1, patch_size=PATCH, half_turn=False, normalize=False)
    tomogram = made(data.specimens[0], seed=0).tomogram
    for item in data:
        assert item["image"][0, 4, 5, 6] == tomogram[tuple(item["position"])]


def test_half_turn_turns_both() -> None:
    """About half of the patches are turned by 180° about y, image and label alike; all else stays."""
    plain = {item["index"]: item for item in dataset(half_turn=False, patches_per_tomogram=20)}
    turned = 0
    for item in dataset(half_turn=True, patches_per_tomogram=20):
        other = plain[item["index"]]
        assert torch.equal(item["position"], other["position"])
        if not torch.equal(item["image"], other["image"]):
            turned += 1
            assert torch.equal(item["label"], half_turn_about_tilt_axis(other["label"]))
            # The mean is summed in another order, so the last bits of the normalisation may differ.
            torch.testing.assert_close(item["image"], half_turn_about_tilt_axis(other["image"]), rtol=0, atol=1e-5)
        else:
            assert torch.equal(item["label"], other["label"])
    assert 15 <= turned <= 45


def test_normalized() -> None:
    """Images have mean 0 and deviation 1; without `normalize` they are the tomogram's own values."""
    raw = {item["index"]: item for item in dataset(normalize=False)}
    for item in dataset():
        assert abs(float(item["image"].mean())) < 1e-5
        assert float(item["image"].std(correction=0)) == pytest.approx(1, abs=1e-5)
        # The mean of a patch is summed in the order of its strides, so the last bits may differ.
        torch.testing.assert_close(item["image"], normalize(raw[item["index"]]["image"]), rtol=0, atol=1e-5)


def test_augmentation_of_an_item_is_the_same_whenever_it_is_read() -> None:
    """Augmentation is drawn from the item's address; it changes some images and moves their labels along."""
    augmentation = PatchAugmentation(flips="xyz")
    plain = {item["index"]: item for item in dataset(half_turn=False)}
    first = list(dataset(half_turn=False, augmentation=augmentation))
    assert_same_items(list(dataset(half_turn=False, augmentation=augmentation, live_tomograms=1)), first)
    changed = [item for item in first if not torch.equal(item["image"], plain[item["index"]]["image"])]
    assert changed
    for item in first:
        other = plain[item["index"]]
        # Normalised again after it: equal up to rounding.
        values, others = item["image"].flatten().sort().values, other["image"].flatten().sort().values
        torch.testing.assert_close(values, others, rtol=0, atol=1e-5)
        assert torch.equal(item["label"].flatten().sort().values, other["label"].flatten().sort().values)


# --- where patches are ------------------------------------------------------------------------------------------------


def test_patches_are_centred_on_particles() -> None:
    """Without background every patch has a particle of `particle_class` within `shift` of its centre."""
    things = specimens(1)
    for item in dataset(specimens=things, patch_size=(2, 2, 2), shift=2, patches_per_tomogram=30):
        particles = things[0].particles
        near = np.abs(particles.positions - item["position"].numpy()).max(axis=1) <= 2.5
        assert item["particle_class"] in particles.classes[near]


def test_no_shift() -> None:
    """With `shift=0` the centre is the particle's voxel, and its label is the particle's class."""
    things = [_two_far_particles()]
    for item in dataset(specimens=things, shift=0, half_turn=False, patches_per_tomogram=8):
        assert item["label"][4, 4, 4] == item["particle_class"]
        assert item["position"].tolist() in [[8, 8, 8], [8, 16, 24]]


def _two_far_particles(classes: tuple[int, int] = (1, 2), name: str = "two") -> GrandModel:
    places = [(8.0, 8.0, 8.0), (8.0, 16.0, 24.0)]
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    for number, (z, y, x) in zip(classes, places, strict=True):
        labels[int(z) - 1 : int(z) + 2, int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = number
    return GrandModel(
        density=blobs(SHAPE, places),
        labels=labels,
        particles=table(classes, places),
        voxel_size=VOXEL_SIZE,
        class_names=CLASS_NAMES,
        name=name,
    )


def test_class_balanced() -> None:
    """Class-balanced patches are spread evenly over the classes, others over the particles."""
    things = [specimen(0, classes=(1,) * 9 + (2,))]
    plain = Counter(item["particle_class"] for item in dataset(specimens=things, patches_per_tomogram=200))
    balanced = Counter(
        item["particle_class"] for item in dataset(specimens=things, patches_per_tomogram=200, class_balanced=True)
    )
    assert set(plain) == set(balanced) == {1, 2}
    assert plain[2] < 45
    assert 70 < balanced[2] < 130


def test_background_fraction() -> None:
    """With `background_fraction=1` no patch is centred on a particle, with 0 every one, with 0.5 about half."""
    count = 200

    def share(fraction: float) -> float:
        items = dataset(count=1, background_fraction=fraction, patches_per_tomogram=count)
        return sum(item["particle_class"] == 0 for item in items) / count

    assert share(1.0) == 1
    assert share(0.0) == 0
    assert 0.35 < share(0.5) < 0.65


def test_background_patches_are_everywhere() -> None:
    """Random places reach both ends of every axis, and patches lie within the tomogram."""
    positions = np.array(
        [i["position"].numpy() for i in dataset(count=1, background_fraction=1.0, patches_per_tomogram=200)]
    )
    low, high = np.array([4, 4, 4]), np.array(SHAPE) - 4
    assert (positions.min(axis=0) == low).all()
    assert (positions.max(axis=0) == high).all()


def test_specimen_without_particles() -> None:
    """A specimen without particles gives background patches, for both targets."""
    for settings_ in ({}, {"target": "sphere", "radii": {"small": 30.0}}):
        items = list(dataset(specimens=[empty_specimen()], class_balanced=True, **settings_))
        assert len(items) == 5
        assert all(item["particle_class"] == 0 and not item["label"].any() for item in items)


def test_class_missing_from_one_specimen() -> None:
    """A class that one specimen lacks is no error; the other's patches have it."""
    things = [specimen(0, classes=(1, 1)), specimen(1, classes=(1, 2))]
    for settings_ in ({}, {"target": "sphere", "radii": {"small": 30.0, "large": 40.0}}):
        items = list(dataset(specimens=things, patches_per_tomogram=20, class_balanced=True, **settings_))
        assert {item["particle_class"] for item in items} == {1, 2}


def test_particles_at_the_edge_are_clamped() -> None:
    """Centres are moved so that patches lie within the volume; no particle is dropped for being near the edge."""
    corners = [(0.0, 0.0, 0.0), (15.0, 23.0, 31.0), (0.0, 23.0, 0.0)]
    thing = GrandModel(
        density=blobs(SHAPE, corners),
        labels=torch.ones(SHAPE, dtype=torch.uint8),
        particles=table((1, 2, 3), corners),
        voxel_size=VOXEL_SIZE,
        class_names=CLASS_NAMES,
    )
    data = dataset(specimens=[thing], patch_size=PATCH, shift=0, patches_per_tomogram=40)
    found = {(item["particle_class"], tuple(item["position"].tolist())) for item in data}
    assert found == {(1, (4, 5, 6)), (2, (12, 19, 26)), (3, (4, 19, 6))}


def test_patch_as_large_as_the_tomogram() -> None:
    """A patch of the tomogram's own size is the whole tomogram."""
    made = simulator()
    data = dataset(made, count=1, patch_size=SHAPE, half_turn=False, normalize=False)
    for item in data:
        assert torch.equal(item["image"][0], made(data.specimens[0], seed=0).tomogram)


def test_particles_outside_are_left_out() -> None:
    """A particle whose centre lies outside the tomogram is no centre of a patch."""
    thing = specimen(0, classes=(1, 1))
    outside = table((1, 1, 2), [*thing.particles.positions.tolist(), [8.0, -1.0, 40.0]])
    data = dataset(specimens=[_with_particles(thing, outside)], patches_per_tomogram=40, class_balanced=True)
    assert {item["particle_class"] for item in data} == {1}


def _with_particles(thing: GrandModel, particles: object) -> GrandModel:
    from dataclasses import replace

    return replace(thing, particles=particles)


# --- spheres ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radii", [{1: 30.0, 2: 45.0}, {"small": 30.0, "large": 45.0}, {1: 30.0, "large": 45.0}])
def test_sphere_targets(radii: dict[int | str, float]) -> None:
    """A sphere target holds every voxel within the class's radius in Å of a particle, whichever way it is named."""
    thing = _two_far_particles()
    data = dataset(specimens=[thing], patch_size=SHAPE, half_turn=False, target="sphere", radii=radii, count=1)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    expected = np.zeros(SHAPE, dtype=np.int64)
    for number, position, radius in zip((1, 2), thing.particles.positions, (3.0, 4.5), strict=True):
        expected[((grid - position) ** 2).sum(-1) <= radius**2] = number
    for item in data:
        assert torch.equal(item["label"], torch.from_numpy(expected))


def test_sphere_targets_leave_out_classes_without_radius() -> None:
    """Classes that are not named are not drawn; their particles still are centres of patches."""
    data = dataset(specimens=[_two_far_particles()], target="sphere", radii={2: 30.0}, patches_per_tomogram=20, shift=0)
    items = list(data)
    assert {item["particle_class"] for item in items} == {1, 2}
    for item in items:
        assert bool((item["label"] == 2).any()) == (item["particle_class"] == 2)
        assert not (item["label"] == 1).any()


def test_sphere_radii_follow_the_voxel_size() -> None:
    """Radii are in Å: with labels binned by two the same radius spans half as many voxels."""
    thing = specimen(3, bin=2, classes=(1,))
    assert thing.bin == 2
    whole = {"patch_size": SHAPE, "half_turn": False, "patches_per_tomogram": 1}
    (item,) = dataset(specimens=[thing], target="sphere", radii={1: 30.0}, **whole)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    expected = ((grid - thing.particles.positions[0]) ** 2).sum(-1) <= 3.0**2
    assert np.array_equal(item["label"].numpy().astype(bool), expected)


# --- which specimens, which order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1])
def test_specimens_are_used_equally_often(epoch: int) -> None:
    """Over two rounds every specimen is used twice, and once in each round."""
    watched = WatchedSimulator()
    data = dataset(watched, count=3, tomograms_per_epoch=6, patches_per_tomogram=2)
    data.set_epoch(epoch)
    list(data)
    used = {tomogram: name for _, tomogram, name in watched.made}
    assert sorted(used) == list(range(6))
    for first in (0, 3):
        assert sorted(used[first + t] for t in range(3)) == ["specimen 0", "specimen 1", "specimen 2"]


def test_specimens_come_in_another_order_each_epoch() -> None:
    """The order of the specimens is shuffled anew for every epoch."""
    orders = set()
    for epoch in range(6):
        watched = WatchedSimulator()
        data = dataset(watched, count=4, patches_per_tomogram=1)
        data.set_epoch(epoch)
        list(data)
        orders.add(tuple(name for _, _, name in sorted(watched.made)))
    assert len(orders) > 1


@settings(max_examples=50, deadline=None)
@given(
    live=st.integers(1, 5),
    tomograms=st.integers(1, 8),
    patches=st.integers(1, 20),
    streams=st.integers(1, 3),
    epoch=st.integers(0, 3),
)
def test_at_most_live_tomograms_are_in_use_at_once(
    live: int, tomograms: int, patches: int, streams: int, epoch: int
) -> None:
    """Every item of a stream comes once, and between a tomogram's first and last patch at most `live` are in use."""
    seen: list[tuple[int, int]] = []
    for stream in range(streams):
        mine = range(stream, tomograms, streams)
        rows = stream_order(mine, patches=patches, live=live, seed=3, epoch=epoch).tolist()
        seen += [tuple(row) for row in rows]
        place = {t: [i for i, (tomogram, _) in enumerate(rows) if tomogram == t] for t, _ in rows}
        for i in range(len(rows)):
            assert sum(places[0] <= i <= places[-1] for places in place.values()) <= live
    assert sorted(seen) == [(t, p) for t in range(tomograms) for p in range(patches)]


def test_tomograms_are_mixed() -> None:
    """With several live tomograms neighbouring patches come from different ones."""
    order = [item["tomogram"] for item in dataset(count=6, live_tomograms=3, patches_per_tomogram=12)]
    changes = sum(a != b for a, b in pairwise(order))
    assert changes > 20
    alone = [item["tomogram"] for item in dataset(count=6, live_tomograms=1, patches_per_tomogram=12)]
    assert alone == sorted(alone)


def test_first_patch_needs_one_tomogram() -> None:
    """The first item is there when one tomogram is made, though more are going to be live."""
    watched = WatchedSimulator()
    watched.gates[2] = threading.Event()
    data = dataset(watched, count=4, live_tomograms=3)
    items = iter(data)
    try:
        assert next(items)["index"] >= 0
    finally:
        watched.gates[2].set()
    assert len(list(items)) == len(data) - 1


def test_queue_is_bounded() -> None:
    """While a patch is read, no more than the live tomograms and one ahead have been begun."""
    watched = WatchedSimulator()
    data = dataset(watched, count=8, live_tomograms=2, patches_per_tomogram=6)
    begun: set[int] = set()
    for item in data:
        begun.add(item["tomogram"])
        assert len(watched.made) <= len(begun) + 1


@pytest.mark.parametrize("live", [1, 2, 5])
def test_live_tomograms_do_not_change_items(live: int) -> None:
    """The number of live tomograms changes the order, never the items."""
    assert_same_items(list(dataset(simulator("noisy"), live_tomograms=live)), list(dataset(simulator("noisy"))))


def test_nothing_is_simulated_twice() -> None:
    """Every tomogram of an epoch is simulated once."""
    watched = WatchedSimulator()
    list(dataset(watched, count=3, tomograms_per_epoch=7, live_tomograms=3))
    assert Counter(tomogram for _, tomogram, _ in watched.made) == dict.fromkeys(range(7), 1)


def test_nothing_is_simulated_before_an_item_is_asked_for() -> None:
    """Making the dataset and its iterator simulates nothing."""
    watched = WatchedSimulator()
    iterator = iter(dataset(watched))
    assert watched.made == []
    del iterator


# --- length -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "tomograms"), [(1, 5), (2, 5), (3, 5), (4, 3)])
def test_len_is_what_comes(world: int, tomograms: int) -> None:
    """`len` of a rank is the number of its items; ranks share out all items without overlap."""
    shards = [
        dataset(rank=rank, world_size=world, tomograms_per_epoch=tomograms, patches_per_tomogram=3)
        for rank in range(world)
    ]
    items = [indices(shard) for shard in shards]
    assert [len(found) for found in items] == [len(shard) for shard in shards]
    assert sorted(chain.from_iterable(items)) == list(range(tomograms * 3))


def test_rank_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process group the rank is what torchrun puts into the environment."""
    expected = dataset(rank=1, world_size=2, tomograms_per_epoch=4)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_same_items(list(dataset(tomograms_per_epoch=4)), list(expected))
    assert len(dataset()) == 5
    assert len(dataset(tomograms_per_epoch=4)) == len(expected) == 10


def test_default_is_one_tomogram_a_specimen() -> None:
    """An epoch has a tomogram for each specimen unless told otherwise."""
    assert len(dataset(count=3, patches_per_tomogram=5)) == 15


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"target": "box"}, "expected `target` to be one of 'shape', 'sphere', got 'box'"),
        ({"target": "sphere"}, 'expected `radii` with `target="sphere"`'),
        ({"radii": {1: 30.0}}, 'expected `radii` with `target="sphere"`, or with spheres'),
        ({"rank": 0}, "expected `rank` and `world_size` together, got 0 and None"),
        ({"world_size": 2}, "expected `rank` and `world_size` together, got None and 2"),
        ({"seed": -1}, "expected `seed` to be a whole number of 0 or more, got -1"),
        ({"patches_per_tomogram": 0}, "expected `patches_per_tomogram` to be a whole number of 1 or more, got 0"),
        ({"tomograms_per_epoch": 0}, "expected `tomograms_per_epoch` to be a whole number of 1 or more, got 0"),
        ({"live_tomograms": 0}, "expected `live_tomograms` to be a whole number of 1 or more, got 0"),
        ({"live_tomograms": 1.5}, "expected `live_tomograms` to be a whole number of 1 or more, got 1.5"),
        ({"shift": -1}, "expected `shift` to be a whole number of 0 or more, got -1"),
        ({"background_fraction": 1.5}, "expected `background_fraction` to lie in [0, 1], got 1.5"),
        ({"patch_size": 0}, "expected `patch_size` to be one or three positive numbers (z, y, x), got 0"),
        ({"patch_size": (8, 8)}, "expected `patch_size` to be one or three positive numbers (z, y, x), got (8, 8)"),
    ],
)
def test_bad_settings(settings_: dict[str, object], message: str) -> None:
    """Settings that cannot be are refused at once, with what was expected and what was found."""
    with pytest.raises(ValueError) as caught:
        dataset(**settings_)
    assert message in str(caught.value)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_rank_within_world(rank: int, world: int) -> None:
    """A rank that is none of the world's is refused: its items would be lost, or come twice."""
    with pytest.raises(ValueError, match="rank"):
        dataset(rank=rank, world_size=world)


@pytest.mark.parametrize("radii", [{1: -30.0}, {1: 0.0}, {1: float("nan")}, {"small": -1.0}, {0: 30.0}])
def test_bad_radii(radii: dict[int | str, float]) -> None:
    """A radius that is none, or one of the background, is refused when the dataset is made."""
    with pytest.raises(ValueError, match="radi"):
        dataset(target="sphere", radii=radii)


def test_no_specimens() -> None:
    """A dataset without specimens is refused."""
    with pytest.raises(ValueError, match="expected at least one specimen, got none"):
        FakETDataset([], simulator())


def test_negative_epoch() -> None:
    """There is no epoch before the first."""
    with pytest.raises(ValueError, match="expected `epoch` to be a whole number of 0 or more, got -1"):
        dataset().set_epoch(-1)


def test_patch_larger_than_the_tomogram() -> None:
    """A patch that does not fit is an error with the specimen's name and both sizes."""
    with pytest.raises(SimulationError, match=r"thin: expected a patch that fits the tomogram of \(16, 24, 32\)") as e:
        list(dataset(specimens=[specimen(0, name="thin")], patch_size=17))
    assert "(17, 17, 17)" in str(e.value)
    assert "`patch_size`" in str(e.value)


def test_unknown_class_in_radii() -> None:
    """A radius of a class that the specimen does not name is an error that lists the names."""
    data = dataset(specimens=[specimen(0, name="mine")], target="sphere", radii={"ribosome": 100.0})
    with pytest.raises(SimulationError, match="mine: expected `radii` for classes among 1 small, 2 large, 3 rare") as e:
        list(data)
    assert "'ribosome'" in str(e.value)


def test_radii_of_a_class_that_one_specimen_lacks() -> None:
    """Numbers are those of all specimens; a number that none has is an error."""
    few = replace(specimen(0), class_names={number: CLASS_NAMES[number] for number in (1, 2)})
    many = specimen(1, classes=(1, 2, 3, 3, 3))
    radii = {1: 20.0, 2: 30.0, 3: 40.0}
    data = dataset(specimens=[few, many], target="sphere", radii=radii)
    assert max(int(item["label"].max()) for item in data) == 3
    with pytest.raises(SimulationError, match="expected `radii` for classes among .*, got 9"):
        list(dataset(specimens=[few, many], target="sphere", radii=radii | {9: 10.0}))


class _Damaged(list):  # type: ignore[type-arg]
    """Specimens of which one cannot be read."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if index == 1:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_a_specimen_reaches_the_reader(workers: int) -> None:
    """A specimen that cannot be read is a SimulationError that names it and the cause, through workers, too."""
    data = dataset(specimens=_Damaged(specimens(3)))
    error = error_of(lambda: list(loader(data, workers=workers, batch_size=None)))
    assert isinstance(error, SimulationError)
    assert "specimen 1: OSError: the disk is gone" in str(error)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_the_maker_reaches_the_reader(workers: int) -> None:
    """A simulation that fails is a SimulationError with the specimen's name, through workers, too."""
    made = simulator(extend="wrap", tilt_angles=(0.0, 89.0))
    data = dataset(made, specimens=[specimen(0, name="mine")])
    error = error_of(lambda: list(loader(data, workers=workers, batch_size=None)))
    assert isinstance(error, SimulationError)
    assert "mine: ValueError: expected tilts of at most 85.0°" in str(error)


def test_after_an_error_a_new_pass_works() -> None:
    """An error in one pass leaves the dataset usable: the next pass gives the right items."""
    things = _Damaged(specimens(3))
    data = dataset(specimens=things)
    with pytest.raises(SimulationError):
        list(data)
    data.specimens = specimens(3)
    data.set_epoch(0)
    assert_same_items(list(data), list(dataset()))


# --- odds and ends ----------------------------------------------------------------------------------------------------


def test_items_do_not_keep_the_tomogram_alive() -> None:
    """Tensors of an item own their memory: keeping one does not keep its tomogram."""
    for item in dataset(count=1, normalize=False, half_turn=False):
        for key in ("image", "label"):
            assert item[key].untyped_storage().nbytes() == item[key].numel() * item[key].element_size()


def test_items_can_be_changed() -> None:
    """Changing an item in place changes no other item."""
    expected = list(dataset())
    found = []
    for item in dataset():
        found.append({key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in item.items()})
        item["image"].zero_()
        item["label"].fill_(9)
    for a, b in zip(found, expected, strict=True):
        assert_same_item(a, b)


def test_dataset_leaves_specimens_alone() -> None:
    """Reading changes nothing in the specimens."""
    things = specimens(2)
    before = [(t.density.clone(), t.labels.clone(), t.particles.positions.copy()) for t in things]
    list(dataset(simulator("noisy"), specimens=things, augmentation=PatchAugmentation(flips="xyz")))
    for thing, (density, labels, positions) in zip(things, before, strict=True):
        assert torch.equal(thing.density, density)
        assert torch.equal(thing.labels, labels)
        assert np.array_equal(thing.particles.positions, positions)


def test_another_process_has_a_stream_of_its_own() -> None:
    """A CUDA stream cannot be sent to a worker: what arrives there has none yet."""
    side = SideStream()
    side._stream = object()
    assert pickle.loads(pickle.dumps(side))._stream is None
    assert copy.deepcopy(side)._stream is None


def test_items_follow_the_training() -> None:
    """Without an `item_device` items are put where the training is, but not by workers, and not before a transform."""
    data = dataset(simulator("noiseless"))
    assert data.item_device == "cpu"
    data.read_on("cuda:1")
    assert data.item_device == "cuda:1"
    assert pickle.loads(pickle.dumps(data)).item_device == "cpu"
    mixed = MixedPatches(data, data)
    mixed.read_on(torch.device("cuda", 1))
    assert mixed.item_device == "cuda:1"
    named = dataset(simulator("noiseless"), item_device="cpu")
    named.read_on("cuda:1")
    assert named.item_device == "cpu"

    own = dataset(simulator("noiseless"), transform=lambda item, generator: item)
    own.read_on("cuda")  # there may be no GPU
    assert own._stream._place(own.source.make(0, 0)) == torch.device("cpu")


def test_a_training_tells_where_it_reads() -> None:
    """`fit` lets items follow its network where it reads them itself, and nobody expects them on the CPU."""
    data = dataset(simulator("noiseless"))
    told = [
        (DataLoader(data, batch_size=2), True),
        (DataLoader(data, batch_size=2, num_workers=1), False),
        (DataLoader(data, batch_size=2, pin_memory=True), False),
        (DataLoader(data, batch_size=2, collate_fn=lambda items: items), False),
        (DataLoader(ChainDataset([data, data]), batch_size=2), True),
    ]
    for reader, follows in told:
        data.read_on("cpu")
        items_on(reader, torch.device("cuda", 1))
        assert data.item_device == ("cuda:1" if follows else "cpu")


def test_a_worker_knows_the_gpu_of_its_rank() -> None:
    """A plain "cuda" means the GPU that was current in the process that began the worker, also where items are put."""
    data = dataset(simulator("noiseless"), item_device="cuda")
    data._stream._cuda_index = 1
    sent = pickle.loads(pickle.dumps(data))
    assert sent._stream._place(sent.source.make(0, 0)) == torch.device("cuda", 1)


# --- GPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_the_second_gpu() -> None:
    """Items of a rank with the second GPU lie there, whichever GPU is current where they are read."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    data = dataset(simulator("noiseless"), item_device="cuda")
    mixed = MixedPatches(data, dataset(simulator("noiseless")), item_device="cuda", live_tomograms=1)
    for one in (data, mixed):
        torch.cuda.set_device(1)
        try:
            sent = pickle.loads(pickle.dumps(one))
        finally:
            torch.cuda.set_device(0)
        for item in sent:
            assert item["image"].device == item["label"].device == torch.device("cuda", 1)


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["shape", "sphere"])
def test_a_training_on_a_gpu_gets_its_items_there(target: str) -> None:
    """By default items lie where `fit` trains; they are the items that the CPU's reader gets."""
    radii = {"radii": {1: 30.0, 2: 30.0}} if target == "sphere" else {}
    data = dataset(simulator("noiseless", device="cuda"), target=target, **radii)
    expected = list(data)
    data.set_epoch(0)
    items_on(DataLoader(data, batch_size=2), torch.device("cuda", 0))
    for a, b in zip(data, expected, strict=True):
        assert a["image"].is_cuda
        assert a["label"].is_cuda
        assert not b["image"].is_cuda
        assert torch.equal(a["image"].cpu(), b["image"])
        assert torch.equal(a["label"].cpu(), b["label"])
        assert a["label"].dtype == torch.int64


@pytest.mark.gpu
@pytest.mark.parametrize("item_device", ["cpu", "cuda"])
@pytest.mark.parametrize("augmentation", [None, PatchAugmentation(flips="xyz"), PatchAugmentation(scale=(0.9, 1.1))])
def test_cuda_gives_the_same_items(item_device: str, augmentation: PatchAugmentation | None) -> None:
    """Tomograms made on a GPU, on a stream of their own, give the CPU's patches, wherever these are put."""
    expected = list(dataset(simulator("noiseless"), augmentation=augmentation))
    found = list(dataset(simulator("noiseless", device="cuda"), augmentation=augmentation, item_device=item_device))
    for a, b in zip(found, expected, strict=True):
        assert a["image"].device.type == a["label"].device.type == item_device
        torch.testing.assert_close(a["image"].cpu(), b["image"], atol=1e-3, rtol=1e-3)
        assert torch.equal(a["label"].cpu(), b["label"])
        assert a["index"] == b["index"]


@pytest.mark.gpu
def test_passes_on_a_gpu_share_a_thread() -> None:
    """One thread makes the tomograms of all passes; it ends with a pass that is broken off, and with the dataset."""

    def threads() -> list[int | None]:
        return [one.native_id for one in threading.enumerate() if one.name == "faket_aug_ahead"]

    before = threads()
    data = dataset(simulator("noiseless", device="cuda"))
    kept = []
    for epoch in range(3):
        data.set_epoch(epoch)
        assert len(list(data)) == len(data)
        kept.append([one for one in threads() if one not in before])
    assert len(kept[0]) == 1
    assert kept == kept[:1] * 3
    broken = iter(data)
    next(broken)
    del broken
    assert threads() == before
    data.set_epoch(0)
    list(data)
    assert len(threads()) == len(before) + 1
    del data
    gc.collect()
    assert threads() == before


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_cuda_waits_for_nothing() -> None:
    """Cutting patches of a tomogram on the GPU does not wait for what is computed there."""
    data = dataset(simulator("noiseless", device="cuda"))
    live = LiveTomogram.of(data.simulator(specimen(0), seed=0), radii={})
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for patch in range(4):
            sample = data.sampler.sample(live, seed=0, epoch=0, tomogram=0, patch=patch, device="cuda")
            assert sample.image.is_cuda
    finally:
        torch.cuda.set_sync_debug_mode("default")
