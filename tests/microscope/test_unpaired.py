"""The fit without truth: it finds the microscope that made the tilts, from other specimens' clean ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import ContrastTransfer, GrandModel, MicroscopeResponse, NoiseModel, TiltSeries, project
from faket_aug.geometry import joint_angles
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS, series_spectra

ANGLES = np.arange(-60.0, 61.0, 4.0)
#: Made-up tilts have no intensities: the power of the clean tilts gives the scale.
fit_unpaired = partial(NoiseModel.fit_unpaired, scale="power")
FITTED = (RINGS > 0.02) & (RINGS < 0.48)


def _clean(seed: int, angles: np.ndarray = ANGLES, *, size: int = 128) -> Tensor:
    """Projections of shells of two sizes, dark."""
    generator = np.random.default_rng(seed)
    volume = np.zeros((40, size, size), dtype=np.float32)
    z, y, x = np.mgrid[-9:10, -9:10, -9:10]
    radius = np.sqrt(z**2 + y**2 + x**2)
    shells = [np.exp(-((radius - r) ** 2) / 0.8) for r in (3.0, 6.0)]
    for place in generator.integers((0, 0, 0), (21, size - 19, size - 19), size=(220, 3)):
        box = tuple(slice(p, p + 19) for p in place)
        volume[box] += shells[int(generator.integers(2))]
    return -project(torch.from_numpy(volume), angles)


def _microscope(defocus: float = 3.4) -> MicroscopeResponse:
    noise = 600 * (1 + np.exp(-40 * RINGS**2))
    return MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=defocus),
        envelope=Envelope(log_scale=2.5, tilt_2=-0.3, square=3.0, square_tilt=4.0, linear=0.5),
        noise=(tuple(noise), (0.0,) * len(RINGS), tuple(0.2 * noise)),
        angle_range=(-60.0, 60.0),
    )


def _measured(
    seed: int,
    angles: np.ndarray = ANGLES,
    *,
    defocus: float = 3.4,
    size: int = 128,
    microscope: MicroscopeResponse | None = None,
) -> Tensor:
    clean = _clean(seed, angles, size=size)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return 2000 + (microscope or _microscope(defocus)).apply(clean, noise, angles)


def _deviation(found: np.ndarray, expected: np.ndarray, where: np.ndarray) -> float:
    return float(np.median(np.abs(found / np.where(where, expected, 1.0) - 1)[where]))


def test_known_microscope_is_found() -> None:
    """Defocus, gain and noise of a made-up microscope, from two series, with clean tilts of another specimen."""
    targets = [_measured(1), _measured(2, defocus=3.8)]
    cleans = [_clean(3), _clean(4)]
    model = fit_unpaired(target=targets, clean=cleans, tilt_angles=[ANGLES, ANGLES], pixel_size=10.0)
    response = model.response
    assert response is not None
    np.testing.assert_allclose(response.defocus, (3.4, 3.8), atol=0.15)
    assert 0.01 < max(response.defocus_error) < 0.2
    true = _microscope(3.6)
    gain = true.gain(ANGLES)[:, FITTED]
    assert _deviation(response.gain(ANGLES)[:, FITTED], gain, np.abs(gain) > np.abs(gain).max() / 5) < 0.15
    noise = true.noise_power(ANGLES)
    assert _deviation(response.noise_power(ANGLES), noise, np.broadcast_to(FITTED, noise.shape)) < 0.10
    assert np.allclose(model.curves(ANGLES).mean, 2000, atol=5)
    assert 0 < response.gain_error < 0.1


def test_damage_that_grows_with_the_angle_is_found() -> None:
    """A dose-symmetric series: at 30° half of the damage of 60° is done, not a quarter."""
    damaged = replace(_microscope(), envelope=Envelope(log_scale=2.5, square=1.0, square_dose=9.0))
    targets = [_measured(seed, microscope=damaged) for seed in (1, 2)]
    cleans = [_clean(seed) for seed in (3, 4)]
    model = fit_unpaired(target=targets, clean=cleans, tilt_angles=[ANGLES, ANGLES], pixel_size=10.0)
    assert model.response is not None
    true = damaged.gain([-32.0, 0.0, 32.0, 56.0], RINGS[FITTED])
    ratio = model.response.gain([-32.0, 0.0, 32.0, 56.0], RINGS[FITTED]) / true
    strong = (np.abs(true) > np.abs(true).max() / 5) & (RINGS[FITTED] > 0.15)
    middle, end = (float(np.median(ratio[row][strong[row]] / np.median(ratio[1][strong[1]]))) for row in (2, 3))
    assert middle == pytest.approx(1.0, abs=0.06)
    assert end == pytest.approx(1.0, abs=0.1)


def test_series_of_other_sizes_steps_and_orders() -> None:
    """Any stack of the microscope serves; its order does not matter. Clean tilts have the angles of all."""
    shuffled = np.random.default_rng(0).permutation(len(ANGLES))
    coarse = np.arange(-48.0, 49.0, 3.0)
    targets = [_measured(1)[torch.from_numpy(shuffled)], _measured(2, coarse, size=96)]
    both = joint_angles(ANGLES, coarse)
    model = fit_unpaired(
        target=targets,
        clean=[_clean(3, both)],
        tilt_angles=[ANGLES[shuffled], coarse],
        clean_angles=[both],
        pixel_size=10.0,
    )
    assert model.response is not None
    np.testing.assert_allclose(model.response.defocus, (3.4, 3.4), atol=0.25)
    assert len(model.series[1].mean) == len(coarse)
    message = r"series 1, clean 0: expected clean tilts at the measured ones' angles, within 0.75°, got none nearer to"
    with pytest.raises(ValueError, match=message):
        fit_unpaired(
            target=targets,
            clean=[_clean(3)],
            tilt_angles=[ANGLES[shuffled], coarse],
            clean_angles=[ANGLES],
            pixel_size=10.0,
        )


def test_no_depth_is_not_the_default_depth() -> None:
    """A depth of 0 is refused; it does not stand for the depth that is assumed."""
    tilts = torch.randn(len(ANGLES), 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="expected `depth` to be more than 0, got 0"):
        fit_unpaired(target=tilts, clean=tilts, tilt_angles=ANGLES, pixel_size=10.0, depth=0)


def test_one_microscope_for_each_series() -> None:
    """Each series has its own known or searched defocus; otherwise it has to be the same microscope."""
    targets, known = [_measured(1), _measured(2, defocus=3.8)], ContrastTransfer(defocus=3.4)
    near = ContrastTransfer(defocus=4.0, spread=1.0, astigmatism=0.1, phase_shift=(0.0,) * len(ANGLES))
    model = fit_unpaired(target=targets, clean=_clean(3), tilt_angles=[ANGLES] * 2, pixel_size=10.0, ctf=[known, near])
    assert model.response is not None
    assert model.response.defocus[0] == 3.4
    assert model.response.defocus_error[0] == 0
    assert model.response.defocus[1] == pytest.approx(3.8, abs=0.2)
    assert model.response.defocus_error[1] > 0
    assert (model.response.ctf.astigmatism, model.response.ctf.phase_shift) == (0.0, 0.0)
    with pytest.raises(ValueError, match=r"expected series of one microscope, got `voltage` of \[300.0, 200.0\]"):
        fit_unpaired(
            target=targets,
            clean=_clean(3),
            tilt_angles=[ANGLES] * 2,
            pixel_size=10.0,
            ctf=[known, replace(known, voltage=200.0)],
        )
    with pytest.raises(ValueError, match="expected one `ctf`, or 2, one for each series, got 1"):
        fit_unpaired(target=targets, clean=_clean(3), tilt_angles=[ANGLES] * 2, pixel_size=10.0, ctf=[known])


def test_two_tilts_at_one_angle() -> None:
    """Series that were taken in two parts have 0° twice: the first one counts."""
    target, clean, ctf = _measured(1), _clean(3), ContrastTransfer(defocus=3.4)
    twice, angles = torch.cat([target, torch.zeros_like(target[:1])]), np.append(ANGLES, 0.0)
    with pytest.warns(
        UserWarning,
        match="series 0: target: expected one tilt an angle, got several at 0°; the first of them is used",
    ):
        found = fit_unpaired(
            target=twice, clean=clean, tilt_angles=angles, clean_angles=ANGLES, pixel_size=10.0, ctf=ctf
        )
    assert found == fit_unpaired(target=target, clean=clean, tilt_angles=ANGLES, pixel_size=10.0, ctf=ctf)


def test_defocus_at_an_end_of_the_search() -> None:
    with pytest.warns(UserWarning, match=r"series 0: the best defocus, 2.\d\d µm, lies at an end of what was searched"):
        fit_unpaired(
            target=_measured(1),
            clean=_clean(3),
            tilt_angles=ANGLES,
            pixel_size=10.0,
            ctf=ContrastTransfer(defocus=2.5, spread=0.3),
        )


def test_known_defocus_is_kept() -> None:
    ctf = ContrastTransfer(defocus=3.4)
    model = fit_unpaired(target=_measured(1), clean=_clean(3), tilt_angles=ANGLES, pixel_size=10.0, ctf=ctf)
    assert model.response is not None
    assert model.response.defocus == (3.4,)
    assert model.response.ctf.spread == 0


def test_bad_series() -> None:
    """What cannot be fitted is refused, and the message says why."""
    clean, good = _clean(3), _measured(1)
    with pytest.raises(ValueError, match="`pixel_size` in Å"):
        fit_unpaired(target=good, clean=clean, tilt_angles=ANGLES, pixel_size=0.0)
    with pytest.raises(ValueError, match="series 0: expected two tilts or more"):
        fit_unpaired(target=good[:1], clean=clean, tilt_angles=ANGLES[:1], clean_angles=ANGLES, pixel_size=10.0)
    with pytest.raises(ValueError, match="within 10°, which share a part of their spectra, got steps of 20°"):
        fit_unpaired(target=good[::5], clean=clean, tilt_angles=ANGLES[::5], clean_angles=ANGLES, pixel_size=10.0)
    noise = torch.randn(good.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"got some that share nothing; align the series first"):
        fit_unpaired(target=noise, clean=clean, tilt_angles=ANGLES, pixel_size=10.0)
    with pytest.raises(ValueError, match=r"series 0: target: expected every tilt to vary"):
        fit_unpaired(target=torch.ones_like(good), clean=clean, tilt_angles=ANGLES, pixel_size=10.0)
    with pytest.raises(ValueError, match="as many sets of angles as series, got 1 for 2 measured and 1 for 1 clean"):
        fit_unpaired(target=[good, good], clean=clean, tilt_angles=[ANGLES], pixel_size=10.0)
    with pytest.raises(ValueError, match="expected a measured series or more, and clean tilts for each, got 1 series"):
        fit_unpaired(target=good, clean=[], tilt_angles=ANGLES, pixel_size=10.0)
    with pytest.raises(ValueError, match="expected a measured series or more, and clean tilts for each, got 0 series"):
        fit_unpaired(target=[], clean=[clean], tilt_angles=[], clean_angles=[ANGLES], pixel_size=10.0)
    with pytest.raises(ValueError, match="series 0, clean 0: expected clean tilts at the measured ones' angles"):
        fit_unpaired(target=good, clean=clean[:1], tilt_angles=ANGLES, clean_angles=ANGLES[:1], pixel_size=10.0)
    with pytest.raises(ValueError, match="expected more than 40 tilt angles for polynomials of order 40, got 31"):
        fit_unpaired(target=good, clean=clean, tilt_angles=ANGLES, pixel_size=10.0, order=40)


def test_rings_beyond_the_sampling() -> None:
    """A defocus whose first zero is not in the tilts is not determined, and a warning says so."""
    target = _measured(1, defocus=1.0)
    near = ContrastTransfer(defocus=1.0, spread=0.4)
    with pytest.warns(UserWarning, match="the defocus is not determined; set `ctf` to it"):
        fit_unpaired(target=target, clean=_clean(3), tilt_angles=ANGLES, pixel_size=10.0, ctf=near)


# --- measured by another program --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(reference: Path, reference_file: Callable[[Path, str], Path]) -> list[tuple[Tensor, Tensor, float]]:
    """Clean and measured tilts of minishrec's models, by angle, and the mean defocus, µm."""
    found = []
    for number in range(6):
        folder = reference_file(reference, f"data/minishrec/model_{number}")
        series = TiltSeries.read(folder)
        defocus = np.loadtxt(folder / "simulation_meta.txt")[:, 0].mean()
        clean = -project(GrandModel.from_shrec(folder, z_range=None).density.float(), series.tilt_angles)
        found.append((clean, series.tilts, float(defocus)))
    return found


@pytest.fixture(scope="module")
def fitted(models: list[tuple[Tensor, Tensor, float]]) -> NoiseModel:
    angles = np.linspace(-60.0, 60.0, 41)
    targets, cleans = [m[1] for m in models[:4]], [m[0] for m in models[4:]]
    return fit_unpaired(target=targets, clean=cleans, tilt_angles=[angles] * 4, pixel_size=10.0)


def _paired_gain(clean: Tensor, target: Tensor, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain `(tilt, ring)` and noise power by the truth: what of the target goes with its own clean tilts."""
    own, sum_, both = (series_spectra(s, angles).power for s in (clean, clean / 50 + target / 1000, target / 1000))
    gain = (sum_ - own / 2500 - both) * 50 * 1000 / (2 * own)
    return gain, both * 1e6 - gain**2 * own


def test_defocus_without_truth(models: list[tuple[Tensor, Tensor, float]], fitted: NoiseModel) -> None:
    """Within 0.15 µm of each series' mean."""
    assert fitted.response is not None
    np.testing.assert_allclose(fitted.response.defocus, [m[2] for m in models[:4]], atol=0.15)


def test_gain_and_noise_without_truth(models: list[tuple[Tensor, Tensor, float]], fitted: NoiseModel) -> None:
    """Gain within 15 % of the paired one where it is strong, noise within 10 %."""
    angles = np.linspace(-60.0, 60.0, 41)
    assert fitted.response is not None
    pairs = [_paired_gain(clean, target, angles) for clean, target, _ in models[:4]]
    gain, noise = (np.mean([pair[i] for pair in pairs], axis=0)[:, FITTED] for i in (0, 1))
    assert _deviation(fitted.response.gain(angles)[:, FITTED], gain, gain > gain.max() / 5) < 0.15
    assert _deviation(fitted.response.noise_power(angles)[:, FITTED], noise, noise > 0) < 0.10


def test_simulated_tilts_have_the_targets_spectra(
    models: list[tuple[Tensor, Tensor, float]], fitted: NoiseModel
) -> None:
    """Tilts made of one specimen have the radial power of another's measured ones within 10 %."""
    angles = np.linspace(-60.0, 60.0, 41)
    clean = models[4][0]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    made = series_spectra(fitted.sample(clean, noise, angles), angles).power
    for _, target, _ in models[:3]:
        found = made.mean(axis=0) / series_spectra(target, angles).power.mean(axis=0)
        assert np.median(np.abs(found - 1)[RINGS < 0.5]) < 0.10
