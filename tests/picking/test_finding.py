"""Finding particles in a tomogram: voxel sizes, contrast, the control, and which picks count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from faket_aug.picking import finding
from faket_aug.picking.finding import FindSettings, FoundPicks, chosen_thresholds, find_particles
from faket_aug.picking.picker import Picker, PickerDescription
from faket_aug.picking.preparation import Preparation
from faket_aug.picking.tomogram import grainy_voxels, skewness
from faket_aug.tomography.resample import resample_volume
from tests._helpers import generator

SIZE, RADIUS = 10.0, 4.0
SHAPE = (40, 72, 80)
PLACES = np.array([[z, y, x] for z in (10, 28) for y in (14, 36, 58) for x in (14, 40, 66)], dtype=float)


class DarkBalls(nn.Module):
    """A network that finds balls that are darker than what is around: a mean over 7³, without any training."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.preparation = Preparation(patch_size=(32, 32, 32), voxel_size=SIZE)

    def forward(self, images: Tensor) -> Tensor:
        mean = functional.avg_pool3d(images.float(), 5, stride=1, padding=2)
        return torch.cat([torch.zeros_like(mean), 20 * (-mean - 1.0)], dim=1)


def picker(**changes: object) -> Picker:
    """A picker of one class."""
    settings = {"class_names": {1: "ball"}, "widths": (4, 4, 4), "voxel_size": SIZE, "filter": "hann"}
    settings |= {"radii": {1: RADIUS * SIZE}, "target_radius": 1.0}
    description = PickerDescription(**(settings | changes))  # type: ignore[arg-type]
    return Picker(network=DarkBalls(), description=description, path=Path("best.pt"))  # type: ignore[arg-type]


def balls(sign: float = -1.0) -> Tensor:
    """Noise with balls of 4 voxels' radius."""
    volume = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    for place in PLACES:
        volume[torch.from_numpy(np.linalg.norm(grid - place, axis=-1) <= RADIUS)] += sign * 4
    return volume


QUICK = FindSettings(precision="float32", tile_size=64, overlap=16)


def _near(found: FoundPicks, threshold: float = 0.3) -> Tensor:
    """Distances of the true places to the nearest pick that counts."""
    picks = found.picks.above(threshold)
    return torch.cdist(torch.from_numpy(PLACES), torch.from_numpy(picks.positions)).min(dim=1).values


def test_particles_and_none_in_noise() -> None:
    """All balls are found where they are, with no others that score as well; in noise there is none."""
    told: list[float] = []
    found = find_particles(picker(), balls(), voxel_size=SIZE, settings=QUICK, progress=told.append)
    assert float(_near(found).max()) < 1.0
    assert len(found.picks.above(0.3)) == len(PLACES)
    assert found.control is not None
    assert found.control.share == pytest.approx(1.0)
    assert found.control.expected(1, 0.3) <= 2
    assert not found.in_large_blobs[: len(PLACES)].any()
    assert told == sorted(told)
    assert told[-1] == 1.0
    thresholds, words = chosen_thresholds(found, picker())
    assert len(found.picks.above(thresholds)) == len(PLACES)
    assert words == "by the control, 0.25 picks in noise for each"


class SecondChannel(DarkBalls):
    """Finds balls in the second of two channels."""

    in_channels = 2

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, 1:])


def test_a_picker_of_flavours() -> None:
    """Flavours come by name or in the training's order; each is resampled; the sign is tried in all of them."""
    two = replace(picker(channels=("raw", "low-pass")), network=SecondChannel())  # type: ignore[arg-type]
    noise = torch.randn(SHAPE, generator=generator(5))
    named = find_particles(two, {"low-pass": balls(), "raw": noise}, voxel_size=SIZE, settings=QUICK)
    assert float(_near(named).max()) < 1.0
    assert len(named.picks.above(0.3)) == len(PLACES)
    assert named.control is not None
    assert named.control.expected(1, 0.3) <= 2
    stacked = find_particles(two, torch.stack([noise, balls()]), voxel_size=SIZE, settings=QUICK)
    assert np.array_equal(named.picks.positions, stacked.picks.positions)
    shape = tuple(2 * n for n in SHAPE)
    larger = torch.stack([resample_volume(one, shape) for one in (noise, balls())])
    larger += 0.1 * torch.randn(2, *shape, generator=generator(6))
    near = find_particles(two, larger, voxel_size=SIZE / 2, settings=replace(QUICK, control=False))
    places = torch.from_numpy(2 * PLACES + 0.5)
    assert float(torch.cdist(places, torch.from_numpy(near.picks.above(0.3).positions)).min(dim=1).values.max()) < 2.0
    bright = FindSettings(precision="float32", tile_size=64, overlap=16, contrast="bright", control=False)
    assert (
        float(_near(find_particles(two, torch.stack([noise, balls(1.0)]), voxel_size=SIZE, settings=bright)).max()) < 1
    )
    for given, message in (
        (noise, "by flavour, or .* with the flavours raw, low-pass, on which the picker was trained, got shape"),
        ({"raw": noise, "wiener": noise}, "the flavours raw, low-pass, .* got raw, wiener; add low-pass"),
        ({"raw": noise, "low-pass": noise[:8]}, r"flavours of one shape, got \(8, 72, 80\), \(40, 72, 80\)"),
    ):
        with pytest.raises(ValueError, match=message):
            find_particles(two, given, voxel_size=SIZE)
    with pytest.raises(ValueError, match=r"expected one tomogram \(z, y, x\), .*, got raw; give the one"):
        find_particles(picker(), {"raw": noise}, voxel_size=SIZE)


@pytest.mark.parametrize("channels", [(), ("raw",)])
def test_several_tomograms_for_a_picker_of_one(monkeypatch: pytest.MonkeyPatch, channels: tuple[str, ...]) -> None:
    """A stack of volumes is refused before anything is computed, not in the network."""
    monkeypatch.setattr(finding, "resampled", None)
    message = r"expected `tomogram` \(z, y, x\), as the picker was trained on one, got shape \(2, 40, 72, 80\);"
    with pytest.raises(ValueError, match=message):
        find_particles(picker(channels=channels), torch.zeros(2, *SHAPE), voxel_size=SIZE)


def test_thresholds_by_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given ones go first; the control's are half of the training's at least, unless a rate is asked for."""
    found = find_particles(picker(), balls(), voxel_size=SIZE, settings=QUICK)
    alone = chosen_thresholds(found, picker())[0][1]
    trained = picker(thresholds={1: 0.98})
    words = "by the control, 0.25 picks in noise for each, at least 0.5 times the training's"
    assert chosen_thresholds(found, trained) == ({1: alone}, words)
    with monkeypatch.context() as patch:
        patch.setattr(finding, "LEAST_SHARE", 1.0)
        assert alone < 0.9
        assert chosen_thresholds(found, trained)[0] == {1: 0.98}
    assert chosen_thresholds(found, picker(thresholds={1: 0.01}))[0] == {1: alone}
    assert chosen_thresholds(found, trained, given=0.2) == ({1: 0.2}, "given")
    assert chosen_thresholds(found, trained, given={1: 0.3}) == ({1: 0.3}, "given")
    assert chosen_thresholds(found, trained, rate=0.0)[1] == "by the control, 0 picks in noise for each"
    assert chosen_thresholds(found, trained, rate=0.25)[0] == {1: alone}
    bare = find_particles(picker(), balls(), voxel_size=SIZE, settings=FindSettings(control=False))
    assert bare.control is None
    assert chosen_thresholds(bare, picker()) == ({1: 0.3}, "the default")
    assert chosen_thresholds(bare, trained) == ({1: 0.98}, "chosen by the training")
    with pytest.raises(ValueError, match="expected a control for thresholds by its rate"):
        chosen_thresholds(bare, picker(), rate=0.1)


def test_bright_particles_are_noticed() -> None:
    """A tomogram of the other sign is refused with what to do; told so, the same is found."""
    with pytest.raises(ValueError, match="seem to be bright: in its middle 0 are found as it is, 18 with its sign"):
        find_particles(picker(), balls(1.0), voxel_size=SIZE, settings=QUICK)
    bright = FindSettings(precision="float32", tile_size=64, overlap=16, contrast="bright")
    assert float(_near(find_particles(picker(), balls(1.0), voxel_size=SIZE, settings=bright)).max()) < 1.0
    assert skewness(balls(), SIZE) < -0.5 < 0.5 < skewness(balls(1.0), SIZE)


@pytest.mark.parametrize("size", [5.0, 12.5])
def test_other_voxel_sizes_are_resampled(size: float) -> None:
    """Picks lie at their places in the tomogram's own voxels, and it is said; larger voxels give a warning."""
    shape = [round(n * SIZE / size) for n in SHAPE]
    other = resample_volume(balls(), shape)
    within = torch.ones(shape, dtype=torch.bool)
    if size > SIZE:
        with pytest.warns(UserWarning, match="reconstruct it with a smaller `bin`"):
            found = find_particles(picker(), other, voxel_size=size, settings=QUICK, within=within)
    else:
        found = find_particles(picker(), other, voxel_size=size, settings=QUICK, within=within)
    assert "resampled from voxels" in found.notes[0]
    wanted = (PLACES + 0.5) * np.array(shape) / np.array(SHAPE) - 0.5
    near = torch.cdist(torch.from_numpy(wanted), torch.from_numpy(found.picks.above(0.3).positions)).min(dim=1).values
    assert float(near.max()) < 1.5 * SIZE / size


def test_too_different_voxels_are_refused() -> None:
    with pytest.raises(ValueError, match="voxels of about 10 Å, .* got 20 Å; reconstruct it with a smaller `bin`"):
        find_particles(picker(), balls(), voxel_size=20.0)
    with pytest.raises(ValueError, match="expected `within` of shape"):
        find_particles(picker(), balls(), voxel_size=10.0, within=torch.ones(3, 3, 3, dtype=torch.bool))


def test_only_within_the_mask() -> None:
    """Picks lie within the mask, and the control is scaled to its voxels."""
    within = torch.zeros(SHAPE, dtype=torch.bool)
    within[:, :24] = True
    found = find_particles(picker(), balls(), voxel_size=SIZE, settings=QUICK, within=within)
    assert len(found.picks.above(0.3)) == 6
    assert (found.picks.positions[:, 1] < 24).all()
    assert found.control is not None
    assert found.control.share == pytest.approx(1.0)
    with pytest.raises(ValueError, match="expected measured voxels within the mask, got none"):
        find_particles(picker(), balls(), voxel_size=SIZE, settings=QUICK, within=torch.zeros_like(within))


@pytest.mark.parametrize(
    ("name", "value"), [("method", "best"), ("flips", 3), ("precision", "half"), ("contrast", "x")]
)
def test_bad_settings_of_finding(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"expected `{name}` to be one of"):
        FindSettings(**{name: value})  # type: ignore[arg-type]


def test_what_was_filled_in_is_not_looked_at() -> None:
    """A smooth corner, which looks like anything once it is scaled, has no picks and does not count for the control."""
    volume = balls()
    z, y, x = (torch.arange(n, dtype=torch.float32) for n in SHAPE)
    smooth = 0.3 * torch.sin(z[:, None, None] / 5) * torch.sin(y[:, None] / 4) * torch.sin(x / 5)
    volume[:, :24] = smooth[:, :24]
    grainy = grainy_voxels(volume)
    assert grainy.shape == SHAPE
    assert not bool(grainy[:, :32].any())
    assert bool(grainy[:, 32:].all())
    found = find_particles(picker(), volume, voxel_size=SIZE, settings=QUICK)
    assert (found.picks.positions[:, 1] > 31).all()
    assert len(found.picks.above(0.3)) == 12
    assert not bool(grainy_voxels(torch.zeros(9, 9, 9)).any())
