"""Specimens that come as tilts: the simulator goes on from these, with all that it guarantees."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faket_aug import FakETSimulator, FileFormatError, SimulationError, project
from faket_aug.formats.mrc import write_mrc
from faket_aug.microscope.noise import GIVEN
from faket_aug.simulation.simulator import MODALITIES
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.tilted import TiltedSpecimen
from faket_aug.statistics import match_mean_std
from faket_aug.style.transfer import stylize
from faket_aug.tomography.reconstruction import reconstruct
from tests._helpers import (
    ANGLES,
    CLASS_NAMES,
    assert_same_items,
    dataset,
    generator,
    loader,
    noise_model,
    simulator,
    specimen,
    write_shrec,
)


def _tilted(thing: GrandModel, *, order: tuple[int, ...] | None = None, **changes: Any) -> TiltedSpecimen:
    """What another program would make of a specimen: its negated projections, in any order."""
    angles = np.array(ANGLES)[list(order or range(len(ANGLES)))]
    given = {"tilts": -project(thing.density, angles), "tilt_angles": angles, "voxel_size": thing.voxel_size}
    shared = {name: getattr(thing, name) for name in ("labels", "instances", "particles", "class_names", "name")}
    return TiltedSpecimen(**(given | shared | changes))


def _noisy(seed: int = 0, **changes: Any) -> TiltedSpecimen:
    thing = _tilted(specimen(seed))
    noise = torch.randn(thing.tilts.shape, generator=generator(50 + seed))
    return replace(thing, tilts=100 + 3 * thing.tilts + 2 * noise, noisy=True, **changes)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("order", [None, (3, 0, 4, 1, 2)])
@pytest.mark.parametrize("bin", [1, 2])
def test_clean_tilts_stand_for_projections(
    tmp_path: Path, modality: str, order: tuple[int, ...] | None, bin: int
) -> None:
    """Given the projections themselves, in any order, the result is the specimen's own, bit for bit."""
    made, thing = simulator(modality, tmp_path, pixel_size=10.0 / bin), specimen(1, bin=bin)
    tilted = _tilted(thing, order=order)
    assert (tilted.bin, tilted.label_voxel_size) == (bin, 10.0)
    expected, found = made(thing, seed=3), made(tilted, seed=3)
    assert torch.equal(found.tiltseries, expected.tiltseries)
    assert torch.equal(found.tomogram, expected.tomogram)
    assert torch.equal(found.labels, expected.labels)
    assert found.voxel_size == expected.voxel_size
    assert found.record == expected.record
    again = made.simulate(tilted, found.record)
    assert torch.equal(again.tomogram, found.tomogram)


def test_noisy_tilts_stay_as_they_are() -> None:
    """Nothing is added to tilts that have noise; the tomogram is their reconstruction."""
    thing = _noisy()
    made = FakETSimulator(tilt_angles=ANGLES, modality="noisy", noise=GIVEN)
    found = made(thing, seed=0)
    assert torch.equal(found.tiltseries, thing.tilts)
    assert found.tiltseries.data_ptr() != thing.tilts.data_ptr()
    # The simulator has a number of threads of its own.
    torch.testing.assert_close(found.tomogram, reconstruct(thing.tilts, ANGLES, depth=16, filter="shrec"))
    assert found.record.settings["noise"] == "given"
    assert torch.equal(made(thing, seed=1).tiltseries, found.tiltseries)


def test_noisy_tilts_are_content_and_start_of_the_style_transfer(tmp_path: Path) -> None:
    """The style step starts from the given tilts, and keeps their content; each seed takes its own style series."""
    thing, made = _noisy(), simulator("faket", tmp_path, noise=GIVEN)
    found = made(thing, seed=4)
    assert made.style is not None
    assert made.features is not None
    with torch.no_grad():
        style = made.style.select(ANGLES, series=found.record.style_series)
        expected = match_mean_std(
            stylize(thing.tilts, thing.tilts, style, features=made.features), style.mean, style.std
        )
    torch.testing.assert_close(found.tiltseries, expected)
    assert not torch.allclose(found.tiltseries, match_mean_std(thing.tilts, style.mean, style.std), atol=0.1)
    torch.testing.assert_close(found.tiltseries.mean(dim=(1, 2)).double(), style.mean.double())
    assert {made(thing, seed=seed).record.style_series for seed in range(8)} == {0, 1}
    again = made.simulate(thing, found.record)
    assert torch.equal(again.tomogram, found.tomogram)


@pytest.mark.parametrize(("modality", "noisy"), [("noisy", False), ("faket", True)])
def test_dataset(tmp_path: Path, modality: str, noisy: bool) -> None:
    """A dataset of them gives the same items in workers as in the main process, and other ones each epoch."""
    things = [_noisy(seed) if noisy else _tilted(specimen(seed)) for seed in range(2)]
    data = dataset(simulator(modality, tmp_path, **({"noise": GIVEN} if noisy else {})), specimens=things)
    expected = list(data)
    data.set_epoch(0)
    assert_same_items(list(loader(data, workers=2, batch_size=None)), expected)
    data.set_epoch(1)
    other = {item["index"]: item for item in data}
    assert not any(torch.equal(item["image"], other[item["index"]]["image"]) for item in expected)


@pytest.mark.parametrize(
    ("made", "thing", "message"),
    [
        (
            {"noise": GIVEN},
            specimen(0),
            'a specimen with tilts for `noise="given"`, got one that is projected',
        ),
        (
            {"noise": GIVEN},
            _tilted(specimen(0)),
            'noisy tilts for `noise="given"`, got clean ones; set `noise`',
        ),
        ({"noise": noise_model()}, _noisy(), 'expected clean tilts, got noisy ones; set `noise="given"`'),
        ({"modality": "noiseless"}, _noisy(), 'expected clean tilts, got noisy ones; set `noise="given"`'),
        (
            {"noise": GIVEN, "tilt_angles": (-40.0, 0.0, 40.0)},
            _noisy(),
            "expected tilts at the simulator's angles, 3 from -40° to 40°, got 5 from -50° to 50°; set `tilt_angles`",
        ),
    ],
)
def test_what_does_not_go_together(made: dict[str, Any], thing: Any, message: str) -> None:
    """Clean and noisy tilts are not mixed up, and angles have to be the simulator's; the specimen is named."""
    with pytest.raises(SimulationError) as caught:
        FakETSimulator(**({"tilt_angles": ANGLES, "modality": "noisy"} | made))(thing, seed=0)
    assert str(caught.value).startswith("specimen 0: ValueError: ")
    assert message in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("modality", ["noiseless", "baseline", "content"])
def test_modalities_that_given_noise_excludes(modality: str) -> None:
    with pytest.raises(ValueError, match='expected the modality to be one of noisy, faket with `noise="given"`, got'):
        FakETSimulator(tilt_angles=ANGLES, modality=modality, noise=GIVEN)
    with pytest.raises(ValueError, match="expected `noise` to be one of 'given', got 'their own'"):
        FakETSimulator(tilt_angles=ANGLES, modality="noisy", noise="their own")  # type: ignore[arg-type]


def test_bad_specimens() -> None:
    good = _tilted(specimen(0))
    with pytest.raises(
        FileFormatError, match=r"specimen 0: expected tilts as high and wide as the labels of \(16, 24, 32"
    ):
        replace(good, tilts=good.tilts[:, :12])
    with pytest.raises(FileFormatError, match=r"by one whole factor, got \(5, 24, 64\) \(tilt, y, x\)"):
        replace(good, tilts=torch.zeros(5, 24, 64))
    with pytest.raises(FileFormatError, match="specimen 0: expected instances of the labels' shape"):
        replace(good, instances=torch.zeros(3, 24, 32, dtype=torch.int32))
    with pytest.raises(FileFormatError, match="specimen 0: tilts: expected finite numbers, got 768 NaN"):
        replace(good, tilts=good.tilts.index_fill(0, torch.tensor(2), torch.nan))
    with pytest.raises(ValueError, match="specimen 0: expected floating-point tilts, got torch.int32"):
        replace(good, tilts=good.tilts.int())
    with pytest.raises(ValueError, match="specimen 0: expected uint8 labels, got torch.int32"):
        replace(good, labels=good.labels.int())
    with pytest.raises(FileFormatError, match="specimen 0: expected instances of the 5 rows .*, got 6"):
        replace(good, instances=torch.full_like(good.labels, 6, dtype=torch.int32))
    with pytest.raises(ValueError, match="tilt_angles"):
        replace(good, tilt_angles=good.tilt_angles[1:])
    with pytest.raises(ValueError, match="`voxel_size` to be more than 0, got 0"):
        replace(good, voxel_size=0.0)


@pytest.mark.parametrize("bin", [1, 2])
@pytest.mark.parametrize("dark", [True, False])
def test_read(tmp_path: Path, bin: int, dark: bool) -> None:
    """Tilts, angles, labels and picks are read from files; bright particles are turned dark."""
    thing = specimen(2, bin=bin)
    folder = write_shrec(tmp_path / "model", thing)
    expected = _tilted(thing)
    stack = tmp_path / "theirs.mrc"
    write_mrc(stack, expected.tilts if dark else -expected.tilts, voxel_size=thing.voxel_size)
    (tmp_path / "theirs.tlt").write_text("\n".join(str(angle) for angle in ANGLES))
    found = TiltedSpecimen.read(
        stack, labels=folder / "class_mask.mrc", picks=folder / "particle_locations.txt", dark=dark, noisy=True
    )
    torch.testing.assert_close(found.tilts, expected.tilts)
    assert torch.equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.particles.positions, expected.particles.positions, atol=1e-3)
    assert found.class_names == CLASS_NAMES
    assert (found.bin, found.voxel_size, found.noisy, found.name) == (bin, 10 / bin, True, str(stack))
    assert found.tilt_angles.tolist() == list(ANGLES)
    without = TiltedSpecimen.read(stack, labels=folder / "class_mask.mrc", voxel_size=5.0)
    assert (len(without.particles), without.voxel_size) == (0, 5.0)


def test_read_asks_for_a_pixel_size(tmp_path: Path) -> None:
    import mrcfile

    folder = write_shrec(tmp_path / "model", specimen(0))
    with mrcfile.new(tmp_path / "theirs.mrc") as file:
        file.set_data(np.zeros((5, 24, 32), np.float32))
    with pytest.raises(
        FileFormatError, match="theirs.mrc: expected a pixel size in the header, got 0; set `voxel_size`"
    ):
        TiltedSpecimen.read(tmp_path / "theirs.mrc", labels=folder / "class_mask.mrc", tilt_angles=ANGLES)
