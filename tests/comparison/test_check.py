"""The check of a fitted microscope: profiles, contrast, the classifier, and all of it at a tiny size."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from faket_aug import (
    ContrastTransfer,
    FakETSimulator,
    GrandModel,
    MicroscopeResponse,
    NoiseModel,
    ParticleTemplate,
    TiltSeries,
)
from faket_aug.cli import app
from faket_aug.comparison.appearance import EDGES, appearance_of, mean_appearance
from faket_aug.comparison.check import MicroscopeCheck, calibrated, check_microscope
from faket_aug.comparison.check_report import as_table, differences, looks_at, report
from faket_aug.comparison.check_settings import CheckSettings
from faket_aug.comparison.discriminator import GRADIENT_RINGS, LearningCurve, gradient_spectrum, learning_curve
from faket_aug.comparison.profile import Contrast, RadialProfile, contrast, jittered, radial_profile
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from faket_aug.microscope.file import MicroscopeFile, read_microscope, write_microscope
from faket_aug.microscope.noise import ResponseNoise
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from faket_aug.picking import match_template
from tests._helpers import blobs, generator, table

ANGLES = np.arange(-60.0, 61.0, 10.0)
SHAPE = (32, 96, 96)
SMALL = CheckSettings(steps=(4, 8), seeds=2, patch=16, hits=20, rotations=1)


def balls(seed: int) -> GrandModel:
    """A specimen with a ball in each of 25 cells, with a radius of some 4 voxels."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid([16.0], *[np.arange(12.0, 92, 18)] * 2, indexing="ij"), -1).reshape(-1, 3)
    positions = (grid + random.uniform(-2, 2, grid.shape)).round(1)
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    for z, y, x in np.rint(positions).astype(int):
        labels[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3] = 1
    return GrandModel(
        density=blobs(SHAPE, positions, 2.5),
        labels=labels,
        particles=table([1] * len(positions), positions.tolist()),
        voxel_size=10.0,
        class_names={1: "ball"},
        name=f"balls {seed}",
    )


BALL = ParticleTemplate(density=blobs((17, 17, 17), [(8, 8, 8)], 2.5), voxel_size=10.0, threshold=0.3, name="ball")


def microscope(gain: float = 30.0) -> ResponseNoise:
    response = MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=math.log(gain), square=3.0),
        noise=(tuple(np.full(len(RINGS), 900.0)),),
        angle_range=(-60.0, 60.0),
        defocus=(3.0,),
        defocus_error=(0.1,),
    )
    model = NoiseModel.assume(torch.randn((2, 8, 8), generator=generator()) * 30, [-60.0, 60.0], snr=0.1, order=0)
    return ResponseNoise(order=0, series=model.series, response=response)


def simulator(gain: float = 30.0) -> FakETSimulator:
    return FakETSimulator(
        tilt_angles=ANGLES, modality="noisy", noise=microscope(gain), filter="hann", extend="zero", threads=1
    )


@pytest.fixture(scope="module")
def measured() -> TiltSeries:
    """A series of particles that are 1.5 times as dark as the simulated ones."""
    made = simulator(45.0)(balls(9), seed=3)
    return TiltSeries(tilts=made.tiltseries, tilt_angles=ANGLES, pixel_size=10.0, name="measured")


@pytest.fixture(scope="module")
def checked(measured: TiltSeries) -> MicroscopeCheck:
    told: list[tuple[int, int]] = []
    found = check_microscope(
        simulator(),
        measured,
        [balls(0), balls(1)],
        particle=BALL,
        settings=SMALL,
        seed=0,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1], "the progress ends with the work"
    return found


# Profiles -------------------------------------------------------------------------------------------------------------


def test_profile_of_known_shells() -> None:
    """Shells are averaged around each position, in standard deviations from the tomogram's mean."""
    axes = np.ogrid[:30, :40, :50]
    volume = np.full((30, 40, 50), 7.0)
    for position in ((14, 12, 13), (15, 27, 36)):
        distance = np.sqrt(sum((axis - p) ** 2 for axis, p in zip(axes, position, strict=True)))
        volume[distance < 3] = 1.0
        volume[(distance >= 3) & (distance < 6)] = 9.0
    found = radial_profile(torch.from_numpy(volume), np.array([[14.0, 12, 13], [15, 27, 36]]), shells=3)
    expected = (np.array([1.0, 9.0, 7.0]) - volume.mean()) / volume.std()
    assert np.allclose(found.mean, expected)
    assert np.allclose(found.error, 0)
    assert found.count == 2
    assert found.radii.tolist() == [1.5, 4.5, 7.5]
    # The unit of the gray values does not matter, nor does their zero.
    other = radial_profile(torch.from_numpy(3 * volume + 5), np.array([[14.0, 12, 13], [15, 27, 36]]), shells=3)
    assert np.allclose(other.mean, found.mean)


def test_errors_of_profiles_are_those_of_chance() -> None:
    """In noise the profile is 0 within its errors, which are those of independent voxels."""
    volume = torch.randn((40, 200, 200), generator=generator(2))
    positions = np.random.default_rng(0).uniform(20, [21, 180, 180], (100, 3))
    found = radial_profile(volume, positions, shells=3)
    voxels = 4 / 3 * math.pi * np.diff(np.array([0, 3, 6, 9]) ** 3)
    assert np.allclose(found.error, 1 / np.sqrt(voxels * 100), rtol=0.25)
    assert (np.abs(found.mean) < 4 * found.error).all()


def test_jitter_has_its_size_and_its_seed() -> None:
    positions = np.zeros((4000, 3))
    moved = jittered(positions, 1.5, seed=1)
    assert np.allclose(moved.std(axis=0), 1.5, rtol=0.05)
    assert np.array_equal(moved, jittered(positions, 1.5, seed=1))
    assert not np.array_equal(moved, jittered(positions, 1.5, seed=2))
    assert np.array_equal(jittered(positions, 0.0, seed=1), positions)


def test_profile_without_particles_or_contrast() -> None:
    with pytest.raises(ValueError, match="got no position"):
        radial_profile(torch.randn(9, 9, 9, generator=generator()), np.array([[100.0, 100, 100]]))
    with pytest.raises(ValueError, match="constant"):
        radial_profile(torch.ones(9, 9, 9), np.array([[4.0, 4, 4]]))


def profile(mean: list[float], error: float) -> RadialProfile:
    return RadialProfile(mean=np.array(mean), error=np.full(len(mean), error), width=3.0, count=50)


def test_contrast_of_scaled_profiles() -> None:
    """The factor is that of the profiles; its error follows from theirs, and from what is not alike."""
    shape = [-0.4, -0.3, -0.1, 0.1, 0.0]
    exact = contrast(profile([1.7 * one for one in shape], 0.01), profile(shape, 0.01))
    assert exact.factor == pytest.approx(1.7, rel=1e-6)
    assert exact.error == pytest.approx(math.hypot(0.01, 0.017) / math.sqrt(0.27), rel=1e-3)
    unlike = contrast(profile([-0.7, -0.2, -0.4, 0.1, 0.0], 0.01), profile(shape, 0.01))
    assert unlike.error > 5 * exact.error
    assert math.isnan(contrast(profile(shape, 0.01), profile([0.0] * 5, 0.01)).factor)


# The classifier -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_classifier_tells_what_differs_and_not_what_does_not() -> None:
    """Smooth from rough noise is told with certainty on volumes that were not seen; rough from rough by chance."""
    rough = [torch.randn((20, 24, 28), generator=generator(number)) for number in range(6)]
    smooth = [nn.functional.avg_pool3d(one[None], 3, stride=1, padding=1)[0] for one in rough]
    settings = {"steps": (5, 40), "seeds": 2, "patch": 16, "seed": 0}
    state = torch.get_rng_state()
    apart = learning_curve((rough[:1], smooth[1:2]), (rough[2:3], smooth[3:4]), **settings)  # type: ignore[arg-type]
    alike = learning_curve((rough[:1], rough[1:2]), (rough[2:4], rough[4:6]), **settings)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)
    assert apart.areas.shape == (2, 2)
    assert apart.mean[-1] > 0.98
    assert apart.mean[-1] >= apart.mean[0]
    assert 0.35 < alike.mean[-1] < 0.65
    again = learning_curve((rough[:1], smooth[1:2]), (rough[2:3], smooth[3:4]), **settings)  # type: ignore[arg-type]
    assert np.array_equal(again.areas, apart.areas)
    assert apart.gradient.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="patch_size"):
        learning_curve((rough, rough), (rough, rough), steps=(1,), seeds=1, patch=24, seed=0)


def test_gradient_spectrum_of_a_known_filter() -> None:
    """A network that sums what passes a wave's frequency is told to look there."""

    class Wave(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            wave = torch.cos(2 * math.pi * 0.25 * torch.arange(16.0))
            return (batch[:, 0] * wave).sum(dim=(1, 2, 3))[:, None] ** 2

    found = gradient_spectrum(Wave(), torch.randn((4, 1, 16, 16, 16), generator=generator()))
    assert found.sum() == pytest.approx(1)
    assert int(found.argmax()) == GRADIENT_RINGS // 2
    curve = LearningCurve(steps=(1,), areas=np.ones((1, 1)), frequencies=np.zeros(16), gradient=found)
    low, high = looks_at(curve)
    assert 0.25 <= low < high <= 0.282


# Appearance -----------------------------------------------------------------------------------------------------------


def test_appearance_of_noise() -> None:
    """White noise has power 1, shares nothing, and has the values of a normal distribution."""
    tilts = torch.randn((13, 64, 64), generator=generator(1)) + 5
    series = TiltSeries(tilts=tilts, tilt_angles=ANGLES, pixel_size=10.0)
    found = appearance_of(series, torch.randn((24, 64, 64), generator=generator(2)) * 3)
    assert np.allclose(found.power.mean(axis=1), 1, atol=0.1)
    assert abs(found.shared.mean()) < 0.1
    assert found.values.sum() == pytest.approx(1)
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    assert (found.values * middle**2).sum() == pytest.approx(1, abs=0.03)
    assert np.allclose(found.moments, 0, atol=0.1)
    # A Gaussian of 1.5 voxels leaves (4 π 1.5²)^(-3/4) of white noise.
    assert found.smoothed == pytest.approx((4 * math.pi * 1.5**2) ** -0.75, rel=0.1)
    assert mean_appearance([found, found]).smoothed == found.smoothed


# All of it ------------------------------------------------------------------------------------------------------------


def test_contrast_of_measured_particles(checked: MicroscopeCheck) -> None:
    """Particles that are 1.5 times as dark are found, and found to be so, within the tomogram's own scale."""
    particle = checked.particle
    assert particle is not None
    assert particle.precision > 0.85
    assert 0 < particle.inaccuracy < 1.5
    # The profile's unit is the tomogram's standard deviation, which the darker particles raise, too.
    assert 1.2 < particle.contrast.factor < 1.65
    assert particle.contrast.factor == pytest.approx(particle.contrast_to_true.factor, rel=0.25)
    assert particle.measured.mean[0] < -0.3
    assert checked.floor is not None
    assert checked.classifier.areas.shape == checked.floor.areas.shape == (2, 2)


def test_the_report_says_what_differs(checked: MicroscopeCheck) -> None:
    """What neighbouring tilts share is 1 / 1.5² of the measured, and JSON holds all."""
    found = differences(checked)
    assert [factor for factor, _ in found] == sorted((factor for factor, _ in found), reverse=True)
    shared = next(words for _, words in found if words.startswith("power that neighbouring tilts share at 0.02"))
    ratio = float(shared.split(": ")[1].split(" times")[0])
    assert ratio == pytest.approx(1 / 1.5**2, rel=0.3)
    lines = report(checked)
    assert lines[0].startswith("A small classifier")
    assert any(line.startswith("Contrast of ball: measured particles are 1.") for line in lines)
    assert "What differs most (simulated over measured):" in lines
    data = json.loads(json.dumps(as_table(checked), allow_nan=False))
    assert len(data["measured"]["power"]) == 3
    assert len(data["measured"]["power"][0]) == len(data["frequencies"])
    assert data["particle"]["contrast"]["factor"] == checked.particle.contrast.factor  # type: ignore[union-attr]
    assert data["report"] == lines


def test_hits_that_the_measured_tomogram_cannot_hold(checked: MicroscopeCheck) -> None:
    """Where more hits are averaged than simulated tomograms hold, wrong ones may make the contrast small."""
    particle = checked.particle
    assert particle is not None
    count = particle.found.count
    for more, told in ((0, False), (5, True)):
        other = replace(particle, measured=replace(particle.measured, count=count + more))
        lines = report(replace(checked, particle=other))
        assert any(f"hold no more than {count}: if" in line and "set --hits to" in line for line in lines) == told


def test_calibrated_microscope(tmp_path: Path) -> None:
    """The gain is multiplied by the factor at all tilts, the noise stays, and the file says so."""
    given = MicroscopeFile(noise=microscope(), tilt_angles=tuple(ANGLES), extend="zero", about={"kept": 1})
    write_microscope(tmp_path / "dark.json", calibrated(given, Contrast(factor=1.5, error=0.1)))
    found = read_microscope(tmp_path / "dark.json")
    before, after = given.noise.response, found.noise.response
    assert before is not None
    assert after is not None
    assert np.allclose(after.gain(ANGLES), 1.5 * before.gain(ANGLES))
    assert after.noise == before.noise
    assert found.about == {"kept": 1, "contrast": 1.5, "contrast_error": 0.1}
    for factor in (math.nan, 0.0, -1.0):
        with pytest.raises(ValueError, match="positive factor"):
            calibrated(given, Contrast(factor=factor, error=0.1))
    white = NoiseModel.assume(torch.randn((2, 8, 8), generator=generator()), [-60.0, 60.0], snr=0.1, order=0)
    with pytest.raises(ValueError, match="fitted response"):
        calibrated(MicroscopeFile(noise=white), Contrast(factor=1.5, error=0.1))


def test_series_with_a_border(measured: TiltSeries, checked: MicroscopeCheck) -> None:
    """A series of another size, of which not all was measured, is checked; of simulated tilts every pixel counts."""
    known = torch.ones(measured.tilts.shape, dtype=torch.bool)[:, :-8]
    known[:, :6] = False
    cut = replace(measured, tilts=measured.tilts[:, :-8], measured=known)
    found = check_microscope(simulator(), cut, [balls(0), balls(1)], settings=SMALL, seed=0)
    np.testing.assert_array_equal(found.simulated.power, checked.simulated.power)
    assert not np.array_equal(found.measured.power, checked.measured.power)


def test_what_does_not_go_together_is_told(measured: TiltSeries) -> None:
    with pytest.raises(ValueError, match="expected a class 'cube'"):
        check_microscope(simulator(), measured, [balls(0)], particle=replace(BALL, name="cube"), settings=SMALL, seed=0)
    with pytest.raises(ValueError, match="expected voxels of 8 Å"):
        check_microscope(simulator(), replace(measured, pixel_size=8.0), [balls(0)], settings=SMALL, seed=0)
    with pytest.raises(ValueError, match="2 simulated tomograms or more"):
        CheckSettings(count=1)
    with pytest.raises(ValueError, match="steps"):
        CheckSettings(steps=())
    defaults = inspect.signature(match_template).parameters
    assert (defaults["rotations"].default, defaults["low_pass"].default) == (
        CheckSettings().rotations,
        CheckSettings().low_pass,
    )


def test_the_command_aligns_as_the_fit_did(
    measured: TiltSeries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the axis given, tilts without an alignment are brought upon each other before anything is compared."""
    shifts = [3 * (-1) ** number for number in range(len(ANGLES))]
    moved = torch.stack([tilt.roll(by, dims=0) for tilt, by in zip(measured.tilts, shifts, strict=True)])
    write_mrc(tmp_path / "tilts.mrc", moved, voxel_size=10.0)
    write_tlt(tmp_path / "tilts.tlt", ANGLES)
    write_microscope(tmp_path / "mic.json", MicroscopeFile(noise=microscope(), tilt_angles=tuple(ANGLES)))
    compared: list[TiltSeries] = []

    def seen(_: object, series: TiltSeries, *__: object, **___: object) -> None:
        compared.append(series)
        raise ValueError("seen")

    monkeypatch.setattr("faket_aug.cli._checking.check_microscope", seen)
    base = ["check", str(tmp_path / "mic.json"), "--style", str(tmp_path / "tilts.mrc")]
    for way in (["--tilt-axis", "0"], ["--aligned"]):
        with pytest.raises(ValueError, match="seen"):
            CliRunner().invoke(app, [*base, *way, "--output", str(tmp_path / "out")], catch_exceptions=False)
    by_neighbours, as_they_lie = (one.metadata for one in compared)
    assert by_neighbours is not None
    assert by_neighbours.is_alignment
    steps = [float((a - b).square().mean()) for one in compared for a, b in zip(one.tilts[1:], one.tilts, strict=False)]
    count = len(ANGLES) - 1
    assert sum(steps[:count]) < 0.9 * sum(steps[count:])
    assert as_they_lie is not None
    assert not as_they_lie.is_alignment


# The command ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command(measured: TiltSeries, tmp_path: Path) -> None:
    """The command writes numbers, a picture and, asked for, a calibrated microscope."""
    write_mrc(tmp_path / "tilts.mrc", measured.tilts, voxel_size=10.0)
    write_tlt(tmp_path / "tilts.tlt", ANGLES)
    write_mrc(tmp_path / "ball.mrc", BALL.density, voxel_size=10.0)
    write_microscope(tmp_path / "mic.json", MicroscopeFile(noise=microscope(), tilt_angles=tuple(ANGLES)))
    small = ["--steps", "2", "--seeds", "1", "--patch", "16", "--rotations", "1", "--hits", "10"]
    made = ["--templates", tmp_path / "ball.mrc", "--counts", "12", "--shape", "32,96,96", "--no-normalize"]
    arguments = ["check", tmp_path / "mic.json", "--style", tmp_path / "tilts.mrc", "--aligned", *made, *small]
    target = tmp_path / "out"
    more = ["--output", target, "--particle", tmp_path / "ball.mrc", "--calibrate", tmp_path / "dark.json"]
    done = CliRunner().invoke(app, [str(one) for one in [*arguments, *more]], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    data = json.loads((target / "check.json").read_text())
    factor = data["particle"]["contrast"]["factor"]
    assert f"Contrast of ball: measured particles are {factor:.2f}" in done.output
    assert "A small classifier" in done.output
    assert sorted(path.name for path in target.iterdir()) == ["check.json", "check.png"]
    with Image.open(target / "check.png") as picture:
        assert picture.size[0] > 1500
        assert np.asarray(picture.convert("L")).std() > 20
    after = read_microscope(tmp_path / "dark.json").noise.response
    assert after is not None
    assert after.envelope.log_scale == pytest.approx(math.log(30 * factor))


@pytest.mark.slow
def test_command_without_specimens_takes_the_built_in_ones(measured: TiltSeries, tmp_path: Path) -> None:
    write_mrc(tmp_path / "tilts.mrc", measured.tilts, voxel_size=10.0)
    write_tlt(tmp_path / "tilts.tlt", ANGLES)
    write_microscope(tmp_path / "mic.json", MicroscopeFile(noise=microscope(), tilt_angles=tuple(ANGLES)))
    small = ["--steps", "2", "--seeds", "1", "--patch", "16", "--shape", "32,96,96", "--output", str(tmp_path / "out")]
    base = ["check", str(tmp_path / "mic.json"), "--aligned", "--style", str(tmp_path / "tilts.mrc")]
    done = CliRunner().invoke(app, [*base, *small], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "check.json").read_text())["particle"] is None
    with pytest.raises(ValueError, match="set --style"):
        CliRunner().invoke(app, [*base[:3], *small], catch_exceptions=False)
    with pytest.raises(ValueError, match="--particle with --calibrate"):
        CliRunner().invoke(app, [*base, *small, "--calibrate", "x.json"], catch_exceptions=False)
