"""Misaligned tilts, radiation damage and the detector: textbook numbers, places of a bead, the simulator's chance."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import (
    ANGLES,
    MORE_WORKERS_THAN_CORES,
    SHAPE,
    VOXEL_SIZE,
    assert_same_items,
    blobs,
    dataset,
    loader,
    noise_model,
    simulator,
    specimen,
    unbatched,
)
from torch import Tensor

from faket_aug import (
    ContrastTransfer,
    Detector,
    ExposureDamage,
    FileFormatError,
    GrandModel,
    Imperfections,
    MicroscopeResponse,
    Misalignment,
    NoiseModel,
    ParticleTable,
    SimulationError,
    SimulationRecord,
    TiltMetadata,
    project,
    reconstruct,
)
from faket_aug._random import numpy_generator, torch_generator
from faket_aug.formats.relion_tilts import read_relion
from faket_aug.microscope.damage import acquisition_order
from faket_aug.microscope.misalignment import ERRORS, misalign, true_tilt_angles
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from faket_aug.specimens.tilted import TiltedSpecimen
from faket_aug.tomography.plane_map import geometry_cache
from faket_aug.tomography.projection import project as plain_project

MANY = Misalignment(shift=20.0, rotation=1.0, rotation_offset=2.0, tilt_angle=0.5, tilt_angle_offset=1.5)
ALL = Imperfections(
    misalignment=MANY, damage=ExposureDamage(per_tilt=10.0), detector=Detector(at_nyquist=0.3, noise_share=0.5)
)


def _bead(centre: tuple[float, float, float], shape: tuple[int, int, int] = (32, 64, 96)) -> GrandModel:
    """A specimen of one smooth bead at (z, y, x)."""
    return GrandModel(
        density=blobs(shape, [centre], 2.5),
        labels=torch.zeros(shape, dtype=torch.uint8),
        particles=ParticleTable.empty(),
        voxel_size=VOXEL_SIZE,
        name="bead",
    )


def _places(tilts: Tensor) -> np.ndarray:
    """Where the (dark) bead is seen in each tilt, `(tilt, 2)` x and y in pixels from the axis: the centre of mass."""
    weight = -tilts.double().numpy()
    y, x = np.mgrid[: weight.shape[1], : weight.shape[2]]
    mass = weight.sum((1, 2))
    return np.stack([(weight * axis).sum((1, 2)) / mass - axis.shape[i] // 2 for i, axis in ((1, x), (0, y))], -1)


# --- misaligned tilts -------------------------------------------------------------------------------------------------


def test_draws_have_their_deviations() -> None:
    """Errors of a tilt are independent and normal; offsets are common to a series."""
    series = np.array([MANY.drawn(41, np.random.default_rng(seed)) for seed in range(400)])  # (series, tilt, error)
    assert series.shape[2] == len(ERRORS)
    assert abs(series.mean()) < 0.1
    within = (series - series.mean(1, keepdims=True)).std((0, 1)) * np.sqrt(41 / 40)
    np.testing.assert_allclose(within, [20.0, 20.0, 1.0, 0.5], rtol=0.03)
    between = series.mean(1).std(0)
    np.testing.assert_allclose(between, [20 / 41**0.5, 20 / 41**0.5, 2.0, 1.5], rtol=0.1)
    assert np.abs(np.corrcoef(series[:, :, :2].reshape(-1, 2).T)[0, 1]) < 0.03


def test_a_deviation_of_zero_draws_nothing() -> None:
    """What is 0 stays exactly 0, and leaves the other numbers as they are."""
    some = np.array(replace(MANY, shift=0.0, rotation=0.0, rotation_offset=0.0).drawn(5, np.random.default_rng(3)))
    every = np.array(MANY.drawn(5, np.random.default_rng(3)))
    assert not some[:, :3].any()
    np.testing.assert_array_equal(some[:, 3], every[:, 3])


def test_bead_moves_as_drawn() -> None:
    """The bead is seen where the true angle, the turn in the plane and the shift put it, computed apart."""
    z, y, x = 20.0, 40.0, 60.0
    wrong = Misalignment(shift=25.0, rotation=3.0, rotation_offset=2.0, tilt_angle=2.0, tilt_angle_offset=1.0)
    made = simulator(imperfections=Imperfections(misalignment=wrong))(_bead((z, y, x)), seed=4)
    errors = np.array(made.record.misalignment)
    assert (np.abs(errors).max(0) > [5, 5, 1, 0.5]).all(), "nothing to see"
    angles, turn = np.deg2rad(np.array(ANGLES) + errors[:, 3]), np.deg2rad(errors[:, 2])
    u, v = (x - 48) * np.cos(angles) + (z - 16) * np.sin(angles), np.full(len(angles), y - 32)
    expected_x = u * np.cos(turn) - v * np.sin(turn) + errors[:, 1] / VOXEL_SIZE
    expected_y = u * np.sin(turn) + v * np.cos(turn) + errors[:, 0] / VOXEL_SIZE
    np.testing.assert_allclose(_places(made.tiltseries), np.stack([expected_x, expected_y], -1), atol=0.02)
    assert made.tilt_angles.tolist() == list(ANGLES)


def test_shift_by_whole_pixels_copies() -> None:
    """A shift by whole pixels moves the pixels, and what comes in at the edges is the nearest pixel."""
    image = torch.rand(1, 12, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = misalign(image, ((20.0, -30.0, 0.0, 5.0),), 10.0)[0]
    torch.testing.assert_close(found[2:, :-3], image[0, :-2, 3:], atol=1e-10, rtol=0)
    torch.testing.assert_close(found[0, :-3], image[0, 0, 3:], atol=1e-10, rtol=0)
    torch.testing.assert_close(found[2:, -1], image[0, :-2, -1], atol=1e-10, rtol=0)


def test_tilt_errors_alone_are_projections_at_other_angles() -> None:
    """With errors of the angle only, tilts are plain projections at the true angles; nothing is interpolated again."""
    thing = specimen(0)
    made = simulator(imperfections=Imperfections(misalignment=Misalignment(tilt_angle=1.0)))(thing, seed=0)
    true = true_tilt_angles(ANGLES, made.record.misalignment)
    assert 0.1 < np.abs(true - ANGLES).max() < 5
    assert torch.allclose(made.tiltseries, -project(thing.density, true), atol=1e-5)
    assert torch.allclose(made.tomogram, reconstruct(made.tiltseries, ANGLES, depth=SHAPE[0]), atol=1e-5)


@pytest.mark.parametrize("wrong", [Misalignment(shift=15.0), Misalignment(rotation=4.0), Misalignment(tilt_angle=4.0)])
def test_misaligned_tomograms_are_blurred(wrong: Misalignment) -> None:
    """A bead's peak is lower in a tomogram of misaligned tilts, whichever way they are."""
    thing, angles = _bead((24.0, 48.0, 76.0)), tuple(np.linspace(-60, 60, 21))
    plain = simulator(tilt_angles=angles)(thing, seed=0).tomogram
    made = simulator(tilt_angles=angles, imperfections=Imperfections(misalignment=wrong))(thing, seed=0).tomogram
    assert float(-made.min()) < 0.95 * float(-plain.min())


def test_fresh_angles_are_not_kept() -> None:
    """Geometries of drawn angles do not fill the cache."""
    made = simulator(imperfections=Imperfections(misalignment=Misalignment(tilt_angle=1.0)))
    made(specimen(0), seed=0)
    held = set(geometry_cache._maps)
    for seed in range(1, 4):
        made(specimen(0), seed=seed)
    assert set(geometry_cache._maps) == held
    volume = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain_project(volume, [3.3, 4.4], cache=False), plain_project(volume, [3.3, 4.4]))


# --- radiation damage -------------------------------------------------------------------------------------------------


def test_critical_exposure() -> None:
    """0.245 q^-1.665 + 2.81, by hand at 10 Å: 0.1^-1.665 is 46.238, the critical exposure 14.138 e/Å²."""
    damage = ExposureDamage(per_tilt=3.0)
    q = np.array([0.0, 0.1])
    assert damage.critical(q).tolist() == pytest.approx([np.inf, 14.138], rel=1e-4)
    assert damage.factor(q, 30.0).tolist() == pytest.approx([1.0, 0.34612], rel=1e-4)
    assert replace(damage, voltage=200.0).critical(q)[1] == pytest.approx(0.8 * 14.138, rel=1e-4)
    assert damage.factor(q, 0.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("order", "start", "expected"),
    [
        ("dose-symmetric", 0.0, [0, 3, -3, -6, 6, 9, -9, -12, 12]),
        ("dose-symmetric", -7.0, [-6, -3, -9, -12, 0, 3, 6, 9, 12]),
        ("bidirectional", 0.0, [0, 3, 6, 9, 12, -3, -6, -9, -12]),
        ("bidirectional", -6.0, [-6, -3, 0, 3, 6, 9, 12, -9, -12]),
        ("ascending", 0.0, [-12, -9, -6, -3, 0, 3, 6, 9, 12]),
    ],
)
def test_orders(order: str, start: float, expected: list[int]) -> None:
    """The orders of acquisition as published, also for tilts that are not sorted."""
    angles = np.arange(-12.0, 13.0, 3.0)
    assert angles[acquisition_order(angles, order, start=start)].tolist() == expected
    shuffled = np.random.default_rng(0).permutation(angles)
    assert shuffled[acquisition_order(shuffled, order, start=start)].tolist() == expected
    damage = ExposureDamage(per_tilt=2.0, order=order, start=start)
    seen = dict(zip(shuffled.tolist(), damage.accumulated(shuffled).tolist(), strict=True))
    assert [seen[angle] for angle in expected] == [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0, 17.0]


def test_lopsided_and_single_tilts() -> None:
    """Series with one side longer, or of one tilt, are taken whole."""
    assert acquisition_order([0.0, 3.0, 6.0, 9.0, -3.0]).tolist() == [0, 1, 4, 2, 3]
    assert acquisition_order([50.0]).tolist() == [0]


def test_exposures_of_a_file() -> None:
    """A file says what the specimen had seen before each tilt; half of the tilt's own exposure comes on top."""
    metadata = TiltMetadata(sections=np.arange(3), exposure=np.array([4.0, 0.0, 8.0]), voltage_kv=200.0)
    damage = ExposureDamage.from_metadata(metadata)
    assert (damage.per_tilt, damage.voltage) == (4.0, 200.0)
    assert damage.accumulated([-3.0, 0.0, 3.0]).tolist() == [6.0, 2.0, 10.0]
    assert ExposureDamage.from_metadata(metadata, per_tilt=0.0).accumulated([0.0, 1.0, 2.0]).tolist() == [4.0, 0.0, 8.0]
    for exposure in (None, np.array([0.0, np.nan, 3.0])):
        with pytest.raises(ValueError, match="expected an exposure of each tilt"):
            ExposureDamage.from_metadata(replace(metadata, exposure=exposure))


def test_order_of_a_real_series(reference: Path, reference_file) -> None:
    """EMPIAR-10164, taken by Hagen's own scheme, has the order and the exposures that are assumed."""
    star = reference_file(reference, "data/real/metadata/relion5/1_import_TS_01.star")
    metadata = read_relion(star)
    metadata = metadata.take(np.argsort(metadata.tilt_angles))
    assert acquisition_order(metadata.tilt_angles).tolist() == np.argsort(metadata.exposure).tolist()
    found = ExposureDamage.from_metadata(metadata).accumulated(metadata.tilt_angles)
    assert found.tolist() == ExposureDamage(per_tilt=3.0).accumulated(metadata.tilt_angles).tolist()


def _wave(period: int, size: int = 128) -> Tensor:
    """A wave along x, of a whole number of periods."""
    wave = torch.cos(2 * np.pi / period * torch.arange(size, dtype=torch.float64))
    return wave.expand(1, size, size) + 5.0


def test_tilts_lose_what_they_have_seen() -> None:
    """A wave of 100 Å in a tilt after 50 e/Å² keeps the amplitude of the formula; the mean stays."""
    damage = ExposureDamage(per_tilt=4.0, before=(48.0,))
    found = Imperfections(damage=damage).apply(_wave(8), 12.5, [0.0], ())[0, 40:88, 40:88]
    left = np.exp(-50.0 / (2 * (0.245 * 0.01**-1.665 + 2.81)))
    assert float(found.max() - found.min()) / 2 == pytest.approx(left, abs=2e-3)
    assert float(found.mean()) == pytest.approx(5.0, abs=1e-3)
    assert 0.93 < left < 0.96


# --- the detector -----------------------------------------------------------------------------------------------------


def test_parametric_detector() -> None:
    """The value at Nyquist is met there, and so are those in between; binned pixels see the detector's beginning."""
    k = np.array([0.0, 0.25, 0.5])
    assert Detector(at_nyquist=0.16).curve(k).tolist() == pytest.approx([1.0, 0.16**0.25, 0.16])
    assert Detector(at_nyquist=0.16, shape=1.0).curve(k).tolist() == pytest.approx([1.0, 0.4, 0.16])
    assert Detector(at_nyquist=0.16, shape=1.0, binning=2.0).curve(k).tolist() == pytest.approx(
        [1.0, 0.632, 0.4], abs=1e-3
    )


def test_table_is_interpolated() -> None:
    detector = Detector(table=((0.1, 0.9), (0.3, 0.5)))
    assert detector.curve(np.array([[0.0, 0.1], [0.15, 0.6]])).tolist() == [[0.9, 0.9], [pytest.approx(0.8), 0.5]]


def test_detector_weakens_a_wave() -> None:
    """A wave of four pixels keeps half its amplitude, and the mean stays."""
    detector = Imperfections(detector=Detector(table=((0.0, 1.0), (0.25, 0.5), (0.5, 0.5))))
    found = detector.apply(_wave(4), 10.0, [0.0], ())[0, 40:88, 40:88]
    assert float(found.max() - found.min()) / 2 == pytest.approx(0.5, abs=3e-3)
    assert float(found.mean()) == pytest.approx(5.0, abs=1e-3)


def test_noise_of_a_detector() -> None:
    """The share of the noise that passes the function has its square as spectrum; the deviation stays."""
    noise = torch.randn(40, 64, 65, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    detector = Detector(table=((0.0, 1.0), (0.2, 1.0), (0.2001, 0.5), (0.5, 0.5)), noise_share=0.8)
    found = detector.coloured(noise)
    power = (torch.fft.fft2(found).abs() ** 2).mean(0).numpy() / noise[0].numel()
    radius = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(65))
    ratio = power[radius > 0.21].mean() / power[radius < 0.19].mean()
    assert ratio == pytest.approx(0.8 * 0.25 + 0.2, rel=0.02)
    assert float(found.std()) == pytest.approx(1.0, rel=0.01)
    assert replace(detector, noise_share=0.0).coloured(noise) is noise


def _star(path: Path, rows: str, columns: tuple[str, str] = ("rlnResolutionInversePixel", "rlnMtfValue")) -> Path:
    path.write_text(f"\ndata_mtf\n\nloop_\n_{columns[0]} #1\n_{columns[1]} #2\n{rows}\n")
    return path


def test_star_file(tmp_path: Path) -> None:
    """A table as RELION reads it."""
    path = _star(tmp_path / "mtf.star", "0 1\n0.25 0.75\n0.5 0.25")
    detector = Detector.read(path, binning=2)
    assert detector == Detector(table=((0.0, 1.0), (0.25, 0.75), (0.5, 0.25)), binning=2)
    assert float(detector.curve(np.array(0.25))) == pytest.approx(0.875)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0 1\n0.25 much", "expected numbers in column _rlnMtfValue"),
        ("0 1", "expected at least two finite frequencies"),
        ("0 1\n0 0.5", "expected at least two finite frequencies of 0 or more, increasing"),
        ("0 1\n0.5 0", "each with a transfer of more than 0"),
        ("0 1\n0.5 nan", "expected at least two finite frequencies"),
    ],
)
def test_damaged_star_files(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=rf"mtf\.star.*{message}"):
        Detector.read(_star(tmp_path / "mtf.star", rows))


def test_other_star_files(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="got the columns rlnCoordinateX, rlnMtfValue"):
        Detector.read(_star(tmp_path / "mtf.star", "0 1\n0.5 0.3", ("rlnCoordinateX", "rlnMtfValue")))
    with pytest.raises(FileNotFoundError, match="expected a STAR file, found none"):
        Detector.read(tmp_path / "none.star")


# --- the simulator ----------------------------------------------------------------------------------------------------


def test_perfect_by_default() -> None:
    """Without imperfections tilts are plain projections, and no number of chance is spent."""
    thing = specimen(0)
    for made in (simulator(), simulator(imperfections=Imperfections())):
        result = made(thing, seed=0)
        assert torch.allclose(result.tiltseries, -project(thing.density, ANGLES), atol=1e-5)
        assert result.record.misalignment == ()
        assert made.settings()["imperfections"] is None


def test_other_chance_stays() -> None:
    """With imperfections that change nothing, noise and defocus are the same as without."""
    thing, ctf = specimen(0), ContrastTransfer(defocus=3.0, jitter=0.1)
    none = Imperfections(misalignment=Misalignment(), detector=Detector(at_nyquist=1.0))
    made, plain = (simulator("noisy", ctf=ctf, **more)(thing, seed=3) for more in ({"imperfections": none}, {}))
    assert made.record.defocus == plain.record.defocus
    torch.testing.assert_close(made.tiltseries, plain.tiltseries, atol=1e-4, rtol=1e-4)


def test_made_again_from_the_record() -> None:
    """The address decides all errors; a record makes the tomogram again, bit for bit, also after JSON and pickling."""
    thing, made = specimen(0), simulator("noisy", imperfections=ALL, ctf=ContrastTransfer(defocus=3.0))
    first = made(thing, seed=7, epoch=1, tomogram=2)
    record = SimulationRecord.from_json(first.record.to_json())
    again = pickle.loads(pickle.dumps(made)).simulate(thing, record)
    assert record == first.record
    assert record.misalignment == MANY.drawn(5, numpy_generator(7, "alignment", epoch=1, tomogram=2))
    assert torch.equal(again.tomogram, first.tomogram)
    assert torch.equal(again.tiltseries, first.tiltseries)
    others = [made.draw(thing, seed=7, epoch=e, tomogram=t).misalignment for e, t in ((1, 2), (1, 3), (2, 2))]
    assert others[0] == first.record.misalignment
    assert len(set(others)) == 3


@pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES)
def test_same_in_workers() -> None:
    """Patches of imperfect tomograms are the same for any number of workers."""
    here, there = (dataset(simulator("noisy", imperfections=ALL), count=2) for _ in range(2))
    assert_same_items(unbatched(loader(there, workers=2, batch_size=3)), list(here))


def test_settings_are_compared() -> None:
    """A record of other imperfections is refused; the settings make them again."""
    thing, made = specimen(0), simulator(imperfections=ALL)
    settings = json.loads(json.dumps(made.settings()))["imperfections"]
    assert Imperfections.from_dict(settings) == ALL
    less = simulator(imperfections=replace(ALL, damage=None))
    with pytest.raises(ValueError, match="settings, got others for imperfections"):
        less.simulate(thing, made.draw(thing, seed=0))


def test_all_together_in_their_order() -> None:
    """Clean tilts at the true angles are moved, weakened, and pass the lens."""
    thing, ctf = specimen(0), ContrastTransfer(defocus=3.0)
    made = simulator(imperfections=ALL, ctf=ctf)(thing, seed=1)
    errors = made.record.misalignment
    tilts = misalign(-project(thing.density, true_tilt_angles(ANGLES, errors)), errors, thing.voxel_size)
    tilts = replace(ALL, misalignment=None).apply(tilts, thing.voxel_size, ANGLES, ())
    assert torch.allclose(made.tiltseries, ctf.apply(tilts, thing.voxel_size), atol=1e-5)


def test_noise_is_the_detectors() -> None:
    """White noise takes the detector's spectrum before the noise model weights it."""
    detector = Detector(at_nyquist=0.2, noise_share=0.9)
    made = simulator("noisy", imperfections=Imperfections(detector=detector))(specimen(0), seed=1)
    clean = simulator(imperfections=Imperfections(detector=detector))(specimen(0), seed=1).tiltseries
    white = torch.randn(clean.shape, generator=torch_generator(made.record.noise_seed))
    expected = noise_model().sample(clean, detector.coloured(white), ANGLES)
    assert torch.allclose(made.tiltseries, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(made.tiltseries, noise_model().sample(clean, white, ANGLES), atol=0.1)


def test_specimens_that_come_as_tilts() -> None:
    """Such tilts can be shifted and turned, but not be at other angles."""
    thing = specimen(0)
    tilted = TiltedSpecimen(
        tilts=-project(thing.density, ANGLES),
        tilt_angles=np.array(ANGLES),
        labels=thing.labels,
        particles=thing.particles,
        voxel_size=thing.voxel_size,
        name=thing.name,
    )
    flat = replace(ALL, misalignment=Misalignment(shift=10.0, rotation=1.0))
    made = simulator(imperfections=flat)
    assert torch.equal(made(tilted, seed=0).tiltseries, made(thing, seed=0).tiltseries)
    with pytest.raises(
        SimulationError,
        match="expected a misalignment without errors of the tilt angle, got some: this specimen is projected",
    ):
        simulator(imperfections=ALL)(tilted, seed=0)


def test_not_twice() -> None:
    """Noise that has passed a microscope has its imperfections in it."""
    response = MicroscopeResponse(
        pixel_size=VOXEL_SIZE,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=0.0),
        noise=(tuple(np.full(len(RINGS), 4.0)),),
        angle_range=(-60.0, 60.0),
    )
    for noise in ("given", NoiseModel(series=noise_model().series, response=response)):
        for one in (ALL, Imperfections(misalignment=MANY), Imperfections(detector=Detector(at_nyquist=0.5))):
            with pytest.raises(
                ValueError, match="expected no `imperfections` with .*, which holds the microscope's effects already"
            ):
                simulator("noisy", noise=noise, imperfections=one)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Misalignment(shift=-1.0), "expected a finite `shift` of 0 or more, got -1.0"),
        (lambda: Misalignment(tilt_angle_offset=np.nan), "expected a finite `tilt_angle_offset` of 0 or more, got nan"),
        (lambda: Misalignment(rotation=np.inf), "expected a finite `rotation` of 0 or more, got inf"),
        (lambda: misalign(torch.zeros(2, 8, 8), ((0.0,) * 4,), 1.0), r"expected errors of shape \(2, 4\)"),
        (lambda: misalign(torch.zeros(1, 8, 8), ((1.0,) * 4,), 0.0), "expected `pixel_size` to be more than 0"),
        (lambda: ExposureDamage(per_tilt=-3.0), "expected finite exposures of 0 or more for `per_tilt`, got -3.0"),
        (lambda: ExposureDamage(per_tilt=np.nan), "expected finite exposures of 0 or more for `per_tilt`, got nan"),
        (lambda: ExposureDamage(per_tilt=3.0, before=(0.0, -1.0)), "of 0 or more for `before`"),
        (lambda: ExposureDamage(per_tilt=3.0, order="random"), "expected `order` to be one of 'dose-symmetric', "),
        (lambda: ExposureDamage(per_tilt=3.0, start=np.inf), "expected `start` in degrees, got inf"),
        (
            lambda: ExposureDamage(per_tilt=3.0, voltage=120.0),
            "expected `voltage` to be one of 300.0, 200.0, got 120.0",
        ),
        (lambda: Detector(), "expected `at_nyquist` or `table`, and not both"),
        (lambda: Detector(at_nyquist=0.5, table=((0.0, 1.0), (0.5, 0.5))), "expected `at_nyquist` or `table`, and not"),
        (lambda: Detector(at_nyquist=0.0), r"expected `at_nyquist` in \(0, 1\], got 0.0"),
        (lambda: Detector(at_nyquist=np.nan), r"expected `at_nyquist` in \(0, 1\], got nan"),
        (lambda: Detector(at_nyquist=0.5, binning=0.0), "expected `binning` to be more than 0"),
        (lambda: Detector(at_nyquist=0.5, shape=np.inf), "expected `shape` to be a finite number, more than 0, got"),
        (lambda: Detector(at_nyquist=0.5, noise_share=1.1), r"expected `noise_share` to lie in \[0, 1\]"),
        (lambda: Detector(table=((0.0, 1.0), (0.5, -0.1))), "each with a transfer of more than 0, got"),
        (lambda: Imperfections(damage=MANY), "expected `damage` to be of the kind ExposureDamage, got Misalignment"),  # type: ignore[arg-type]
        (lambda: Imperfections.from_dict({"lens": {}}), "expected imperfections with misalignment, damage, detector"),
        (lambda: Imperfections.from_dict({"damage": {"dose": 3}}), "expected the parameters of imperfections"),
        (
            lambda: simulator(imperfections=Imperfections(damage=ExposureDamage(per_tilt=3.0, before=(0.0, 3.0)))),
            f"expected `before` of {len(ANGLES)} tilts, got 2 numbers",
        ),
    ],
)
def test_bad_parameters(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    """On a GPU the same imperfections give the same tilts, up to rounding."""
    settings = {"imperfections": replace(ALL, detector=Detector(at_nyquist=0.3)), "ctf": ContrastTransfer(defocus=3.0)}
    on_cpu, on_gpu = (simulator(device=device, **settings)(specimen(0), seed=1) for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_gpu.tiltseries.cpu(), on_cpu.tiltseries, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(on_gpu.tomogram.cpu(), on_cpu.tomogram, atol=1e-4, rtol=1e-3)
