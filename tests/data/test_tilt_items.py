"""Tilts as items: labels and positions lie where the particles are seen, and items are a function of their address."""

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
    jittered,
    loader,
    noise_model,
    specimens,
)
from scipy.spatial.transform import Rotation
from torch import Tensor

from faket_aug import (
    BadTilt,
    FakETSimulator,
    GrandModel,
    Imperfections,
    Misalignment,
    ParticleTable,
    PatchTargets,
    SimulationError,
    TiltDataset,
    TiltedSpecimen,
    VariedSimulator,
    project,
)
from faket_aug.microscope.misalignment import misalign
from faket_aug.tomography.resample import bin_images

pytestmark = pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES)

ANGLES = (-60.0, -33.0, 0.0, 20.0, 48.0)
RADII = {"small": 20.0, "large": 30.0, "rare": 30.0}
ASKEW = Misalignment(shift=25.0, rotation=6.0, rotation_offset=4.0, tilt_angle=5.0, tilt_angle_offset=5.0)
TARGETS = ("labels", "heatmaps", "particles")


def seen_by(**settings: Any) -> FakETSimulator:
    """A simulator of tilts without noise."""
    return FakETSimulator(**({"tilt_angles": ANGLES, "modality": "noiseless"} | settings))


def thing(
    positions: Sequence[Sequence[float]], classes: Sequence[int], *, shape: Sequence[int] = (20, 40, 48), bin: int = 1
) -> GrandModel:
    """A specimen of blobs; positions in voxels of the labels, the density `bin` times finer."""
    fine = [n * bin for n in shape]
    # A voxel of the labels is the middle of a block of voxels of the density.
    centers = [[p * bin + (bin - 1) / 2 for p in one] for one in positions]
    labels = np.zeros(shape, dtype=np.uint8)
    for number, one in zip(classes, positions, strict=True):
        labels[np.asarray(blobs(shape, [one], 2.0) > 0.5)] = number
    return GrandModel(
        density=blobs(fine, centers, 1.5 * bin),
        labels=torch.from_numpy(labels),
        particles=ParticleTable(
            classes=np.array(classes, dtype=np.int64),
            positions=np.array(positions, dtype=float).reshape(-1, 3),
            orientations=Rotation.random(len(classes), rng=np.random.default_rng(0)).as_matrix(),
        ),
        voxel_size=VOXEL_SIZE / bin,
        class_names=CLASS_NAMES,
    )


def tilts(things: Sequence[Any] | None = None, made: Any = None, **settings: Any) -> TiltDataset:
    """A small dataset of tilts."""
    given: dict[str, Any] = {"patch_size": (20, 24), "patches_per_tomogram": 8, "shift": 3, "seed": 2, "radii": RADII}
    given |= {"targets": TARGETS} | settings
    return TiltDataset(specimens(3) if things is None else things, made or seen_by(), **given)


def middle(image: Tensor) -> list[float]:
    """The centre of mass (y, x)."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in image.shape), indexing="ij")
    return [float((axis * image).sum() / image.sum()) for axis in axes]


# --- by value ---------------------------------------------------------------------------------------------------------


def test_what_lay_outside_of_a_shifted_tilt_is_not_seen() -> None:
    """Also where copies of the specimen lie beside it: where the image was shifted away, nothing is labelled."""
    one = thing([(10.0, 20.0, 4.0), (10.0, 20.0, 44.0)], [1, 2])
    bad = (BadTilt(tilt=2, shift=(0.0, 120.0)),)
    for item in tilts([one], seen_by(extend="wrap", bad_tilts=bad), patch_size=(40, 48), normalize=False):
        if item["tilt"] == 2:
            assert not item["label"][:, :12].any()
            assert all(x > 11.5 for _, x, _ in item["positions"][: item["count"]].tolist())
            break
    else:
        raise AssertionError("no item of the shifted tilt")


def test_particles_of_a_tilt_that_was_tracked_wrongly() -> None:
    """What is seen of a specimen is elsewhere in such a tilt, and the labels follow; what moved keeps its middle."""
    one = thing([(13.3, 17.6, 29.2)], [2])
    bad = (BadTilt(tilt=1, shift=(40.0, -30.0)), BadTilt(tilt=2, motion=(30.0, 30.0)))
    positions = []
    for made in (seen_by(), seen_by(bad_tilts=bad, imperfections=Imperfections(misalignment=ASKEW))):
        found = {}
        for item in tilts([one], made, patch_size=(40, 48), normalize=False, patches_per_tomogram=24):
            image = -item["image"][0]
            y, x, _ = item["positions"][0].tolist()
            assert middle((image - image.median()).clamp(min=0)) == pytest.approx([y, x], abs=0.2)
            assert middle((item["label"] == 2).double()) == pytest.approx([y, x], abs=0.9)
            found[item["tilt"]] = (y, x)
        positions.append(found)
    assert abs(positions[1][1][0] - positions[0][1][0]) > 2.0


@pytest.mark.parametrize("flips", ["", "yx"])
@pytest.mark.parametrize("bin", [1, 2])
@pytest.mark.parametrize("item_bin", [1, 2])
@pytest.mark.parametrize("misalignment", [None, ASKEW])
def test_particles_are_where_they_are_seen(
    misalignment: Misalignment | None, bin: int, item_bin: int, flips: str
) -> None:
    """The image's blob, the heatmap's maximum and the label are at the given position, at any pixel size."""
    one = thing([(13.3, 17.6, 29.2)], [2], bin=bin)
    made = seen_by(imperfections=Imperfections(misalignment=misalignment))
    size = (40 * bin // item_bin, 48 * bin // item_bin)
    data = tilts([one], made, patch_size=size, bin=item_bin, normalize=False, flips=flips, patches_per_tomogram=12)
    # Of rotated tilts labels are rounded twice.
    depths, rounded = {}, 0.6 if misalignment is None else 0.9
    for item in data:
        if not item["count"]:
            continue
        y, x, depth = item["positions"][0].tolist()
        image = -item["image"][0]
        # A turned image rings a little, below what is around the blob as above.
        assert middle((image - image.median()).clamp(min=0)) == pytest.approx([y, x], abs=0.15)
        heat = item["heatmaps"][1]
        peak = [int(i) for i in np.unravel_index(int(heat.argmax()), heat.shape)]
        assert np.abs(np.array(peak) - [y, x]).max() <= 0.5 + 1e-4
        assert middle((item["label"] == 2).double()) == pytest.approx([y, x], abs=rounded * max(1, bin / item_bin))
        assert item["classes"][0] == 2
        depths[item["tilt"]] = depth * item_bin / bin
    assert len(depths) > 2
    if misalignment is None:
        for tilt, depth in depths.items():
            theta = np.deg2rad(ANGLES[tilt])
            block = (bin - 1) / (2 * bin)
            z, x = 13.3 + block - 10, 29.2 + block - 24
            assert depth == pytest.approx(z * np.cos(theta) - x * np.sin(theta), abs=1e-4)


@pytest.mark.parametrize("flips", ["", "y", "yx"])
@pytest.mark.parametrize("misalignment", [None, Misalignment(rotation=8.0, tilt_angle=3.0)])
def test_orientations_turn_with_the_specimen(misalignment: Misalignment | None, flips: str) -> None:
    """A mark at the end of a particle's axis is seen where position and orientation say, depth included."""
    arm = np.array([2.0, 3.0, 5.0])
    first = thing([(10.0, 20.0, 24.0)], [1])
    rotation = first.particles.orientations[0]
    second = first.particles.positions[0] + (rotation @ arm)[::-1]
    both = ParticleTable(
        classes=np.array([1, 2]),
        positions=np.stack([first.particles.positions[0], second]),
        orientations=np.stack([rotation, rotation]),
    )
    made = seen_by(imperfections=Imperfections(misalignment=misalignment))
    for item in tilts([replace(first, particles=both)], made, patch_size=(40, 48), flips=flips):
        assert item["count"] == 2
        seen = (item["orientations"][0].double() @ torch.from_numpy(arm)).tolist()
        assert (item["positions"][1] - item["positions"][0])[[1, 0, 2]].tolist() == pytest.approx(seen, abs=1e-4)
        determinant = float(torch.det(item["orientations"][0]))
        assert (
            determinant == pytest.approx(1.0, abs=1e-4) if not flips else abs(determinant) == pytest.approx(1, abs=1e-4)
        )


@pytest.mark.parametrize("extend", ["zero", "wrap"])
@pytest.mark.parametrize("misalignment", [None, ASKEW])
def test_labels_are_projected(misalignment: Misalignment | None, extend: str) -> None:
    """The labels cover what the projection of the labelled voxels covers, copies of the specimen included."""
    centers = [(10, 12, 20), (8, 28, 38), (12, 30, 10)]
    labels = (blobs((20, 40, 48), centers, 5.0) > 0.5).to(torch.uint8)
    one = replace(thing(centers, [1, 1, 1]), labels=labels)
    made = seen_by(extend=extend, imperfections=Imperfections(misalignment=misalignment))
    record = made.draw(one, seed=2)
    angles, _ = made.imperfections.true_tilt_angles(ANGLES, record.misalignment)
    clean = project((one.labels == 1).float(), angles, extend=extend)
    expected = clean if misalignment is None else misalign(clean, record.misalignment, VOXEL_SIZE)
    particles = []
    for item in tilts([one], made, patch_size=(40, 48), patches_per_tomogram=10, shift=0):
        inside, met = expected[item["tilt"]] > 0.5, item["label"] == 1
        union = int((inside | met).sum())
        assert int((inside & met).sum()) > 0.85 * union
        particles.append(item["count"])
    assert max(particles) > 3 if extend == "wrap" else max(particles) == 3


def test_the_longest_path_decides() -> None:
    """Where labels lie above each other, the class that the ray meets longest is seen; of equal ones the lowest."""
    one = thing([], [], shape=(12, 16, 20))
    labels = torch.zeros(12, 16, 20, dtype=torch.uint8)
    labels[0:3, :, :] = 3
    labels[4:6, :, :10] = 1
    labels[4:8, 8:, :] = 2
    labels[9:12, :4, :4] = 1
    made = seen_by(tilt_angles=(0.0,))
    item = next(iter(tilts([replace(one, labels=labels)], made, patch_size=(16, 20), targets=("labels",), radii=None)))
    expected = torch.full((16, 20), 3)
    expected[8:] = 2
    expected[:4, :4] = 1
    assert torch.equal(item["label"], expected)
    assert item["particle_class"] == 0


def test_images_are_the_tilts() -> None:
    """The image is cut from the simulator's tilts, binned, at the given place."""
    made = FakETSimulator(tilt_angles=ANGLES, noise=noise_model(), modality="noisy")
    data = tilts(None, made, normalize=False, bin=2, patch_size=(8, 10), targets=("labels",), radii=None)
    for item in data:
        patches = data.source.make(0, item["tomogram"])
        own = next(one for one in data.specimens if one.name == patches.live.specimen)  # type: ignore[attr-defined]
        binned = bin_images(made(own, seed=2, tomogram=item["tomogram"]).tiltseries, 2)
        y, x = (item["position"] - torch.tensor([4, 5])).tolist()
        assert torch.allclose(item["image"][0], binned[item["tilt"], y : y + 8, x : x + 10], atol=1e-5)
        assert item["tilt_angle"] == ANGLES[item["tilt"]]
    normalized = next(iter(tilts()))["image"]
    assert float(normalized.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(normalized.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_discs() -> None:
    """With `target="sphere"` each particle is a disc of its radius, in pixels of the tilt."""
    one = thing([(10, 20, 24)], [2], bin=2)
    for item in tilts([one], patch_size=(80, 96), target="sphere", targets=("labels", "particles")):
        y, x, _ = item["positions"][0].tolist()
        rows, columns = np.ogrid[:80, :96]
        disc = (rows - y) ** 2 + (columns - x) ** 2 <= 6.0**2
        assert torch.equal(item["label"] == 2, torch.from_numpy(disc))


def test_patches_are_placed_on_particles() -> None:
    """Patches lie around seen particles, or anywhere; classes come in turn if they are balanced."""
    one = thing([(10, 8, 8), (10, 30, 12), (10, 10, 38), (10, 32, 40)], [1, 1, 1, 2])
    settings: dict[str, Any] = {"patch_size": 8, "shift": 1, "patches_per_tomogram": 60, "targets": ("particles",)}
    classes = []
    for item in tilts([one], radii=None, **settings):
        classes.append(item["particle_class"])
        assert item["count"] == 0 or (item["positions"][0, :2] - 4).abs().max() < 8
    assert 0.5 < np.mean(np.array(classes) == 1) < 0.95
    balanced = [item["particle_class"] for item in tilts([one], radii=None, class_balanced=True, **settings)]
    assert 0.3 < np.mean(np.array(balanced) == 1) < 0.7
    nowhere = [item["particle_class"] for item in tilts([one], radii=None, background_fraction=1.0, **settings)]
    assert set(nowhere) == {0}


def test_specimens_that_come_as_tilts() -> None:
    """The tilts of another program are items with the labels of their specimen."""
    one = thing([(10, 20, 30)], [1])
    given = TiltedSpecimen(
        tilts=-project(one.density, ANGLES),
        tilt_angles=np.array(ANGLES),
        labels=one.labels,
        particles=one.particles,
        voxel_size=VOXEL_SIZE,
        class_names=CLASS_NAMES,
    )
    assert_same_items(tilts([given], patch_size=16), tilts([one], patch_size=16))


# --- the same everywhere ----------------------------------------------------------------------------------------------


def full(**settings: Any) -> TiltDataset:
    """A dataset with noise, drawn settings, misalignment, every target and flips."""
    noisy = FakETSimulator(
        tilt_angles=ANGLES, noise=noise_model(), modality="noisy", imperfections=Imperfections(misalignment=ASKEW)
    )
    given: dict[str, Any] = {"tomograms_per_epoch": 4, "patches_per_tomogram": 4, "flips": "yx", "transform": jittered}
    things = [replace(one, particles=replace(one.particles, orientations=turned(one))) for one in specimens(2)]
    return tilts(things, VariedSimulator(noisy), **(given | settings))


def turned(one: GrandModel) -> Any:
    """Orientations for a specimen that has none."""
    return Rotation.random(len(one.particles), rng=np.random.default_rng(0)).as_matrix()


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    """The items of epoch 0, read in the main process."""
    return list(full())


def test_items_differ_and_collate(expected: list[dict[str, Any]]) -> None:
    """No two items are the same, and all collate by torch's own collate."""
    assert len(expected) == 16
    for i, item in enumerate(expected):
        assert not any(torch.equal(item["image"], other["image"]) for other in expected[i + 1 :])
    batch: Mapping[str, Any] = next(iter(loader(full(), batch_size=16)))
    shapes = {key: tuple(value.shape) for key, value in batch.items() if isinstance(value, Tensor)}
    assert shapes["image"] == (16, 1, 20, 24)
    assert shapes["label"] == (16, 20, 24)
    assert shapes["heatmaps"] == (16, 3, 20, 24)
    assert shapes["positions"] == (16, 1024, 3)
    assert shapes["orientations"] == (16, 1024, 3, 3)
    assert shapes["position"] == (16, 2)
    assert shapes["tilt"] == shapes["tilt_angle"] == shapes["count"] == (16,)
    assert len(set(batch["tilt"].tolist())) > 2
    assert batch["label"].dtype == batch["classes"].dtype == torch.int64


@pytest.mark.parametrize(("workers", "start"), [(0, "fork"), (1, "fork"), (3, "fork"), (1, "spawn")])
def test_any_workers(expected: list[dict[str, Any]], workers: int, start: str) -> None:
    """The same items, bit for bit, for any number of workers, forked and spawned."""
    assert_same_items(loader(full(), workers=workers, start=start, batch_size=None), expected)


@pytest.mark.slow
def test_three_spawned_workers(expected: list[dict[str, Any]]) -> None:
    """The same from three workers that are spawned."""
    assert_same_items(loader(full(), workers=3, start="spawn", batch_size=None), expected)


@pytest.mark.parametrize("taken", [0, 5, 15])
def test_resumed(expected: list[dict[str, Any]], taken: int) -> None:
    """A dataset that goes on in the middle gives the items that are left."""
    data, again = full(), full()
    items = iter(data)
    first = [next(items) for _ in range(taken)]
    again.load_state_dict(data.state_dict())
    assert_same_items([*first, *again], expected)


def test_two_ranks_share_out_the_items(expected: list[dict[str, Any]]) -> None:
    """Two ranks give the single rank's items, none twice, with workers."""
    shards = [list(loader(full(rank=rank, world_size=2), workers=2, batch_size=None)) for rank in range(2)]
    assert_same_items([*shards[0], *shards[1]], expected)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": (8, 8, 8)}, r"expected `patch_size` to be one or two positive numbers \(y, x\)"),
        ({"targets": ("labels", "distances")}, "expected `targets` to be one of 'labels', 'heatmaps', 'particles'"),
        ({"targets": PatchTargets(("clean",)), "radii": None}, "expected `targets` to be one of 'labels', 'heatmaps'"),
        ({"flips": "z"}, "expected `flips` to hold axes of 'yx', got 'z'"),
        ({"bin": 0}, "expected `bin`"),
        ({"resampling": "mean"}, "expected `resampling` to be one of"),
        ({"radii": None}, "expected `radii`, in Å, with `targets` heatmaps"),
        ({"background_fraction": 2.0}, "expected `background_fraction`"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    """A mistake is told when the dataset is made."""
    with pytest.raises(ValueError, match=message):
        tilts(**settings)


def test_specimens_that_do_not_fit() -> None:
    """A patch that is larger than the tilts, or a missing particle table, are told with the specimen's name."""
    with pytest.raises(SimulationError, match="specimen 0: expected a patch that fits the tomogram"):
        next(iter(tilts(specimens(1), patch_size=(16, 64))))
    bare = replace(specimens(1)[0], particles=ParticleTable.empty(), instances=None)
    with pytest.raises(
        SimulationError, match="specimen 0: expected a particle table for `targets` heatmaps, particles"
    ):
        next(iter(tilts([bare])))
    assert SHAPE[1:] == (24, 32)
