"""Targets: each lies where the particle is after every turn, and items stay a function of their address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import (
    CLASS_NAMES,
    MORE_WORKERS_THAN_CORES,
    SHAPE,
    VOXEL_SIZE,
    assert_same_items,
    blobs,
    dataset,
    labelled_tomograms,
    loader,
    specimens,
)
from scipy.spatial.transform import Rotation
from torch import Tensor

from faket_aug import (
    FakETDataset,
    GrandModel,
    LabelledPatches,
    LabelledTomogram,
    MixedPatches,
    ParticleTable,
    PatchAugmentation,
    PatchTargets,
    SimulationError,
)
from faket_aug.data.targets import TARGET_NAMES

pytestmark = pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES)

RADII = {"small": 20.0, "large": 30.0, "rare": 30.0}
SIZE = (10, 12, 14)
EVERYTHING = PatchAugmentation(
    flips="zyx", half_turns="zyx", rotation_deg=(15.0, 25.0, 35.0), scale=(0.8, 1.25), keep_missing_wedge=False
)
AUGMENTATIONS = [None, PatchAugmentation(flips="zyx", half_turns="zyx"), EVERYTHING]


def turned(thing: Any, seed: int = 0) -> Any:
    """The same specimen, with orientations."""
    orientations = Rotation.random(len(thing.particles), rng=np.random.default_rng(seed)).as_matrix()
    return replace(thing, particles=replace(thing.particles, orientations=orientations))


def faket(**settings: Any) -> FakETDataset:
    """A dataset with every target."""
    given: dict[str, Any] = {"specimens": [turned(thing, i) for i, thing in enumerate(specimens(2))]}
    given |= {"targets": TARGET_NAMES, "radii": RADII, "patch_size": SIZE, "patches_per_tomogram": 4, "seed": 3}
    made: FakETDataset = dataset(**(given | {"tomograms_per_epoch": 4, "augmentation": AUGMENTATIONS[1]} | settings))
    return made


def one_particle(
    position: Sequence[float], direction: Sequence[float] | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """The items of a tomogram with one particle of class 2 whose template's z axis points as `direction` (x, y, z)."""
    axis = np.array([0.3, -0.5, 0.81]) if direction is None else np.array(direction, dtype=float)
    rotation = Rotation.align_vectors([axis / np.linalg.norm(axis)], [[0.0, 0.0, 1.0]])[0].as_matrix()
    ahead = np.array(position) + 3.0 * rotation[::-1, 2]
    image = blobs(SHAPE, [position], 1.2) + 0.5 * blobs(SHAPE, [ahead], 1.2)
    made = LabelledTomogram(
        tomogram=image,
        clean=image,
        labels=(2 * (blobs(SHAPE, [position], 2.0) > 0.6)).to(torch.uint8),
        instances=(blobs(SHAPE, [position], 2.0) > 0.6).to(torch.int32),
        particles=ParticleTable(classes=[2], positions=[position], orientations=rotation[None]),  # type: ignore[arg-type]
        voxel_size=VOXEL_SIZE,
        class_names=CLASS_NAMES,
        name="one",
    )
    given: dict[str, Any] = {"targets": TARGET_NAMES, "radii": RADII, "patch_size": SIZE, "shift": 1, "seed": 1}
    return list(LabelledPatches([made], patches_per_tomogram=12, normalize=False, **(given | settings)))


def middle(volume: Tensor) -> list[float]:
    """The centre of mass (z, y, x)."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in volume.shape), indexing="ij")
    return [float((axis * volume).sum() / volume.sum()) for axis in axes]


# --- the default ------------------------------------------------------------------------------------------------------


def test_labels_are_the_default() -> None:
    """Without `targets` an item is what it was; more targets leave image, label and place as they are."""
    plain, every = list(faket(targets=("labels",), radii=None)), list(faket())
    keys = {"image", "label", "index", "tomogram", "position", "particle_class"}
    assert set(plain[0]) == keys == set(dataset(count=1).__iter__().__next__())
    assert_same_items([{key: item[key] for key in keys} for item in every], plain)


def test_no_labels() -> None:
    """What is not asked for is not there; picks alone are enough for what is drawn from them."""
    tomogram = labelled_tomograms(1)[0]
    bare = replace(tomogram, labels=torch.zeros_like(tomogram.labels))
    item = next(iter(LabelledPatches([bare], patch_size=8, targets=("particles", "half_turn"))))
    assert "label" not in item
    assert {"positions", "classes", "orientations", "count", "half_turn"} < set(item)


# --- by value ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_all_targets_lie_where_the_particle_is_seen(augmentation: PatchAugmentation | None) -> None:
    """The image's blob, the heatmap's maximum, the least distance, sphere and instance are at the given position."""
    halves = set()
    for item in one_particle((8.3, 11.6, 15.2), augmentation=augmentation):
        halves.add(item["half_turn"])
        assert item["count"] == 1
        assert item["classes"][:2].tolist() == [2, 0]
        assert not item["positions"][1:].any()
        z, y, x = position = item["positions"][0]
        nearest = tuple(int(v) for v in position.round())
        grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in SIZE), indexing="ij")
        distance = ((grid[0] - z) ** 2 + (grid[1] - y) ** 2 + (grid[2] - x) ** 2).sqrt()
        peak = np.unravel_index(int(item["image"].argmax()), SIZE)
        assert np.abs(np.array(peak) - position.numpy()).max() < 1.0
        heat = item["heatmaps"]
        assert heat.shape == (3, *SIZE)
        assert not heat[[0, 2]].any()
        assert np.unravel_index(int(heat[1].argmax()), SIZE) == nearest
        if augmentation is not EVERYTHING:
            torch.testing.assert_close(heat[1].double(), torch.exp(-(distance**2) / (2 * 0.9**2)), rtol=0, atol=4e-6)
            torch.testing.assert_close(item["distances"].double(), distance.clamp(max=32.0), rtol=0, atol=1e-5)
            assert torch.equal(item["spheres"] == 2, distance <= 0.6 * 3.0)
            assert torch.equal(item["instances"] == 1, item["label"] == 2)
        assert item["distances"][nearest] == item["distances"].min()
        assert item["spheres"][nearest] == 2
        assert item["instances"][nearest] == 1
        assert item["label"][nearest] == 2
        assert item["specimen"] == "one"
    assert halves == {True, False}


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_orientations_turn_with_the_image(augmentation: PatchAugmentation | None) -> None:
    """The second, fainter blob lies in the direction of the template's z axis, as the item's orientation says it."""
    determinants = set()
    # Image and direction are turned about the middle: no blob comes near the border.
    for item in one_particle((8.0, 12.0, 16.0), shift=0, augmentation=augmentation, patch_size=16):
        rotation = item["orientations"][0].double()
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
        determinants.add(round(float(torch.linalg.det(rotation))))
        position = item["positions"][0].double().numpy()
        ahead = rotation[:, 2].flip(0).numpy()
        # The second blob is half as bright and 3 voxels away: it moves the centre of mass by 1 voxel, to a third.
        moved = np.array(middle(item["image"][0])) - position
        along = float(moved @ ahead)
        assert along == pytest.approx(1.0, abs=0.01) if augmentation is not EVERYTHING else 0.75 < along < 1.35
        np.testing.assert_allclose(moved, along * ahead, rtol=0, atol=0.02)
    assert determinants == ({1} if augmentation is None else {1, -1})


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_targets_grow_with_the_patch(scale: float) -> None:
    """In a magnified patch the sphere is larger by the same factor, and distances are voxels of the patch."""
    augmentation = PatchAugmentation(scale=(scale, scale))
    items = one_particle((8.0, 12.0, 16.0), shift=0, augmentation=augmentation, radii={"large": 60.0}, patch_size=16)
    for item in items:
        volume = float((item["spheres"] == 2).sum())
        assert volume == pytest.approx(4 / 3 * np.pi * (0.6 * 6.0 * scale) ** 3, rel=0.08)
        position = item["positions"][0]
        corner = float(position.norm())
        if scale > 1:
            assert float(item["distances"][0, 0, 0]) == pytest.approx(corner, abs=1e-4)
        else:
            # Voxels from outside the patch show nothing.
            assert float(item["distances"][0, 0, 0]) == 32.0
            assert not item["heatmaps"][:, 0].any()


def test_instances_go_with_positions() -> None:
    """Instance k is row k - 1 of `positions`; what is centred outside the patch has higher numbers."""
    by_name = {thing.name: thing for thing in specimens(2)}
    outside = 0
    for item in faket(augmentation=None, half_turn=False):
        thing, count = by_name[item["specimen"]], item["count"]
        origin = item["position"].numpy() - np.array(SIZE) // 2
        inside = ((np.rint(thing.particles.positions - origin) >= 0).all(1)) & (
            np.rint(thing.particles.positions - origin) < SIZE
        ).all(1)
        rows = [*np.flatnonzero(inside) + 1]
        assert count == len(rows)
        np.testing.assert_allclose(
            item["positions"][:count], thing.particles.positions[inside] - origin, rtol=0, atol=1e-5
        )
        box = tuple(slice(int(a), int(a) + n) for a, n in zip(origin, SIZE, strict=True))
        assert thing.instances is not None
        cut = thing.instances[box]
        rest = sorted(set(cut.unique().tolist()) - {0, *(int(row) for row in rows)})
        outside += len(rest)
        for number, row in enumerate([*rows, *rest], start=1):
            assert torch.equal(item["instances"] == number, cut == row)
        assert torch.equal(item["instances"] > 0, cut > 0)
    assert outside > 0


def test_membranes_are_no_particles() -> None:
    """Classes that a picker should not learn are in no target that is drawn from the particle table."""
    thing = turned(specimens(1)[0])
    item = next(
        iter(faket(specimens=[replace(thing, not_particles=frozenset({1}))], patch_size=SHAPE, half_turn=False))
    )
    assert item["count"] == 2
    assert set(item["classes"].tolist()) == {0, 2}
    assert not item["heatmaps"][0].any()
    assert set(item["spheres"].unique().tolist()) == {0, 2}
    assert {1, 2} <= set(item["label"].unique().tolist())


def test_settings_of_targets() -> None:
    """Shares, the largest distance and the number of rows are what `PatchTargets` says."""
    settings = PatchTargets(TARGET_NAMES, sphere_share=1.0, sigma_share=0.5, max_distance=4.0, max_particles=7)
    item = one_particle((8.0, 12.0, 16.0), shift=0, targets=settings, patch_size=15, half_turn=False)[0]
    assert item["positions"].tolist()[0] == [7.0, 7.0, 7.0]
    assert item["positions"].shape == (7, 3)
    assert item["orientations"].shape == (7, 3, 3)
    assert item["spheres"][7, 7, 10] == 2
    assert item["spheres"][7, 7, 11] == 0
    assert float(item["heatmaps"][1, 7, 7, 10]) == pytest.approx(np.exp(-9 / (2 * 1.5**2)))
    assert float(item["distances"].max()) == 4.0


def test_unknown_orientations_are_nan() -> None:
    """A particle without orientation keeps NaN; the padding is 0."""
    item = next(iter(dataset(count=1, targets=("particles",), patch_size=SHAPE)))
    assert item["count"] == 5
    assert item["orientations"][:5].isnan().all()
    assert not item["orientations"][5:].any()


# --- collated, and the same everywhere --------------------------------------------------------------------------------


def test_default_collate() -> None:
    """Every target collates by torch's own collate, also of patches with different numbers of particles."""
    batch: Mapping[str, Any] = next(iter(loader(faket(), batch_size=16)))
    shapes = {key: tuple(value.shape) for key, value in batch.items() if isinstance(value, Tensor)}
    assert shapes["heatmaps"] == (16, 3, *SIZE)
    assert shapes["spheres"] == shapes["distances"] == shapes["instances"] == shapes["label"] == (16, *SIZE)
    assert shapes["positions"] == (16, 256, 3)
    assert shapes["classes"] == (16, 256)
    assert shapes["orientations"] == (16, 256, 3, 3)
    assert shapes["count"] == shapes["half_turn"] == (16,)
    assert batch["half_turn"].dtype == torch.bool
    assert len(set(batch["count"].tolist())) > 1
    assert set(batch["specimen"]) == {"specimen 0", "specimen 1"}
    kinds = {key: batch[key].dtype for key in ("spheres", "instances", "classes", "heatmaps", "distances", "positions")}
    assert list(kinds.values()) == [torch.int64] * 3 + [torch.float32] * 3


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    """The items of epoch 0 with every target and every turn, read in the main process."""
    return list(faket(augmentation=EVERYTHING))


@pytest.mark.parametrize(("workers", "start"), [(0, "fork"), (1, "fork"), (3, "fork"), (1, "spawn")])
def test_any_workers(expected: list[dict[str, Any]], workers: int, start: str) -> None:
    """The same items, bit for bit, for any number of workers, forked and spawned."""
    data = faket(augmentation=EVERYTHING)
    assert_same_items(loader(data, workers=workers, start=start, batch_size=None), expected)


@pytest.mark.slow
def test_three_spawned_workers(expected: list[dict[str, Any]]) -> None:
    """The same from three workers that are spawned."""
    assert_same_items(loader(faket(augmentation=EVERYTHING), workers=3, start="spawn", batch_size=None), expected)


def test_resumed(expected: list[dict[str, Any]]) -> None:
    """A dataset that goes on in the middle gives the items that are left."""
    data = faket(augmentation=EVERYTHING)
    items = iter(data)
    first = [next(items) for _ in range(5)]
    again = faket(augmentation=EVERYTHING)
    again.load_state_dict(data.state_dict())
    assert_same_items([*first, *again], expected)


def test_two_ranks_share_out_the_items(expected: list[dict[str, Any]]) -> None:
    """Two ranks give the single rank's items, none twice."""
    shards = [list(faket(augmentation=EVERYTHING, rank=rank, world_size=2)) for rank in range(2)]
    assert_same_items([*shards[0], *shards[1]], expected)


# --- mixtures and mistakes --------------------------------------------------------------------------------------------


def real(**settings: Any) -> LabelledPatches:
    """Real tomograms whose classes are numbered otherwise."""
    swapped = [
        turned(thing).with_numbers(np.r_[0, 2, 1, 3:256], {1: "large", 2: "small"}) for thing in labelled_tomograms(2)
    ]
    given = {"patch_size": SIZE, "patches_per_tomogram": 4, "targets": ("heatmaps", "particles"), "radii": RADII}
    return LabelledPatches(swapped, **(given | {"radii": {"small": 20.0, "large": 30.0}} | settings))


def test_a_mixture_has_the_simulated_classes() -> None:
    """Channels and classes of real patches are those of the simulated ones, and all collate."""
    mixed = MixedPatches(real(), faket(targets=("heatmaps", "particles")), real_share=0.5)
    batch: Mapping[str, Any] = next(iter(loader(mixed, batch_size=24)))
    assert batch["heatmaps"].shape == (24, 3, *SIZE)
    for heat, classes, count in zip(batch["heatmaps"], batch["classes"], batch["count"], strict=True):
        for number in set(classes[:count].tolist()):
            assert float(heat[number - 1].max()) > 0.3


def test_mixtures_need_the_same_targets() -> None:
    """Items that could not be collated are refused when the mixture is made."""
    with pytest.raises(ValueError, match="expected `real` and `fake` with the same `targets` and `max_particles`"):
        MixedPatches(real(), faket())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("labels", "circles")}, "expected `targets` to be one of 'labels', 'spheres'"),
        ({"targets": "labels"}, "expected `targets` to be a tuple of names, got 'labels'"),
        ({"targets": ("labels", "labels")}, "expected each of `targets` once"),
        ({"radii": None}, "expected `radii`, in Å, with `targets` spheres, heatmaps, got None"),
        ({"targets": ("labels", "particles")}, 'expected `radii` with `target="sphere"`, or with spheres'),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    """A mistake is told when the dataset is made."""
    with pytest.raises(ValueError, match=message):
        faket(**settings)


@pytest.mark.parametrize("name", ["sphere_share", "sigma_share", "max_distance", "max_particles"])
def test_bad_numbers(name: str) -> None:
    """Settings of targets are more than 0."""
    with pytest.raises(ValueError, match=f"expected `{name}` to be"):
        PatchTargets(("labels",), **{name: 0})


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"instances": None}, {}, "expected instances for `targets` with instances, got none"),
        (
            {"instances": None, "particles": ParticleTable.empty()},
            {"targets": ("distances",), "radii": None},
            "expected a particle table for `targets` distances, got labels without one",
        ),
        ({}, {"radii": {1: 20.0, 9: 30.0}}, "expected `radii` for classes among 1 small, 2 large, 3 rare, got 9"),
    ],
)
def test_specimens_that_lack_something(changes: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    """What a specimen lacks is told with its name and what to do."""
    thing: GrandModel = replace(turned(specimens(1)[0]), **changes)
    with pytest.raises(SimulationError, match=f"specimen 0: {message}"):
        next(iter(faket(specimens=[thing], **settings)))


def test_too_many_particles() -> None:
    """More particles than rows are an error, not left out in silence."""
    data = faket(
        specimens=[turned(specimens(1)[0])],
        patch_size=SHAPE,
        targets=PatchTargets(("particles",), max_particles=4),
        radii=None,
    )
    with pytest.raises(ValueError, match="expected at most 4 particles in a patch, got 5; set `max_particles`"):
        next(iter(data))
