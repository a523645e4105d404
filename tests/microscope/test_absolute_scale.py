"""The absolute scale of contrast: the same for any gray values and any number of particles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import ContrastTransfer, GrandModel, NoiseModel, TiltSeries, project
from faket_aug.generation import GrandModelGenerator, ParticleSpecies, ParticleTemplate
from faket_aug.microscope.crowd import mean_matter
from faket_aug.microscope.intensity import (
    ContrastReport,
    PhotonTransfer,
    absolute_scales,
)
from faket_aug.microscope.interaction import interaction_constant
from faket_aug.microscope.spectra import RINGS, SeriesSpectra, sorted_spectra
from faket_aug.simulation.fit_microscope import fit_microscope
from faket_aug.tomography.interpolation import without_interpolation

ANGLES = np.arange(-60.0, 61.0, 4.0)
DEFOCUS = 3.4
#: e⁻ per pixel and tilt without ice; the fraction that passes it at 0°.
ELECTRONS, TRANSMISSION = 400.0, 0.6


def _density(seed: int, count: int) -> Tensor:
    """Shells of two sizes, V."""
    generator = np.random.default_rng(seed)
    volume = np.zeros((40, 128, 128), dtype=np.float32)
    z, y, x = np.mgrid[-9:10, -9:10, -9:10]
    radius = np.sqrt(z**2 + y**2 + x**2)
    shells = [2 * np.exp(-((radius - r) ** 2) / 0.8) for r in (3.0, 6.0)]
    for place in generator.integers((0, 0, 0), (21, 109, 109), size=(count, 3)):
        box = tuple(slice(p, p + 19) for p in place)
        volume[box] += shells[int(generator.integers(2))]
    return torch.from_numpy(volume)


def _clean(seed: int, count: int = 200) -> Tensor:
    return -project(_density(seed, count), ANGLES)


def _counts(seed: int, count: int = 200) -> Tensor:
    """Tilts of some shells as a counting detector sees them: intensity, weak phase contrast, Poisson noise."""
    intensity = torch.from_numpy(ELECTRONS * TRANSMISSION ** (1 / np.cos(np.deg2rad(ANGLES))))[:, None, None]
    contrast = ContrastTransfer(defocus=DEFOCUS).apply(_clean(seed, count), 10.0) * 2 * interaction_constant(300) * 10
    generator = torch.Generator().manual_seed(seed)
    return torch.poisson((intensity * (1 + contrast)).clamp(min=0).float(), generator=generator)


def _fit(target: Tensor, clean: Tensor, **settings: Any) -> Any:
    return NoiseModel.fit_unpaired(
        target=target,
        clean=clean,
        tilt_angles=ANGLES,
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=DEFOCUS),
        **({"depth": 40} | settings),
    )


@pytest.fixture(scope="module")
def counts() -> Tensor:
    return _counts(1)


def _shared_power(clean: Tensor) -> float:
    """The power that neighbouring clean tilts share, where the shells have most of theirs."""
    spectra = sorted_spectra(clean, ANGLES, "clean")
    return float(spectra.shared[:, (RINGS >= 0.12) & (RINGS <= 0.25)].sum())


def _scale(model: Any) -> np.ndarray:
    """Gain at three tilts and two frequencies without the contrast transfer function, over the noise."""
    response = model.response
    gain = response.envelope.gain(np.array([0.0, 0.5, 1.0]), np.array([0.05, 0.15]), np.ones(2))
    noise = np.sqrt(response.noise_power((0.0, 30.0, 60.0))[:, [20]])
    result: np.ndarray = gain / noise
    return result


def test_interaction_constant() -> None:
    """Kirkland's table: rad/(V Å) at 100, 200 and 300 kV."""
    assert np.allclose([interaction_constant(v) for v in (100, 200, 300)], [9.244e-4, 7.288e-4, 6.526e-4], rtol=1e-3)


@pytest.mark.parametrize(("factor", "offset"), [(1.0, 0.0), (2.5, -300.0), (0.4, 1000.0), (-1.0, 500.0)])
def test_zero_of_gray_values(counts: Tensor, factor: float, offset: float) -> None:
    """The line of noise over intensity finds where no electron arrives, whatever the gray values are."""
    line = PhotonTransfer.of(sorted_spectra(factor * counts + offset, ANGLES, "counts"))
    assert abs(line.zero - offset) < 0.05 * abs(factor) * ELECTRONS
    assert line.known
    assert np.sign(line.slope) == np.sign(factor)


def test_intensities_that_do_not_tell(counts: Tensor) -> None:
    """Tilts that were scaled one by one have lost their intensities."""
    same = (counts - counts.mean(dim=(1, 2), keepdim=True)) / counts.std(dim=(1, 2), keepdim=True)
    line = PhotonTransfer.of(sorted_spectra(same, ANGLES, "scaled"))
    assert not line.known
    with pytest.warns(UserWarning, match="the scale of the contrast is not known"):
        model = _fit(same, _clean(2))
    assert model.contrast.source == ("power",)
    assert model.crowd is None
    assert _fit(same, _clean(2), exposure=3.0).contrast.source == ("exposure",)
    with pytest.raises(ValueError, match="expected gray values whose noise grows with their mean"):
        _fit(same, _clean(2), scale="intensity")
    with pytest.raises(ValueError, match=r"expected the exposure of its tilts in e⁻/Å², got none"):
        _fit(counts, _clean(2), scale="exposure")
    with pytest.raises(ValueError, match="expected `scale` to be one of 'intensity', 'exposure', 'power'"):
        _fit(counts, _clean(2), scale="voltage")
    with pytest.raises(ValueError, match="expected a positive exposure"):
        _fit(counts, _clean(2), exposure=[3.0])
    with pytest.raises(ValueError, match=r"expected `exposure` to be more than 0, got -3\.0"):
        _fit(counts, _clean(2), exposure=-3.0)
    with pytest.raises(ValueError, match="expected one `exposure`, or one for each of 1 measured series, got 2"):
        NoiseModel.fit_unpaired(
            target=[counts],
            clean=_clean(2),
            tilt_angles=[ANGLES],
            clean_angles=ANGLES,
            pixel_size=10.0,
            exposure=[3.0, 3.0],
        )


def test_the_scale_is_physical(counts: Tensor) -> None:
    """The gain is 2 σ_e times voxel size times intensity at each tilt."""
    (scale,) = absolute_scales([sorted_spectra(counts, ANGLES, "c")], pixel_size=10.0, voltage=300.0, exposure=[None])
    expected = 2 * 0.0006526 * 10 * ELECTRONS * TRANSMISSION ** (1 / np.cos(np.deg2rad(ANGLES)))
    assert scale.source == "intensity"
    np.testing.assert_allclose(scale.gain, expected, rtol=0.05)


@pytest.mark.parametrize(("count", "mass"), [(200, 0.0), (50, 3.0), (600, 0.0)])
def test_contrast_does_not_depend_on_the_number_of_particles(counts: Tensor, count: int, mass: float) -> None:
    """With a quarter or three times as many particles the gain is the same; what is missing is the crowd."""
    model = _fit(counts, _clean(2, count))
    gain = model.response.envelope.gain(np.array([0.0, 0.8]), np.array([0.05, 0.15]), np.ones(2))
    angles = ANGLES[[15, 27]]
    expected = 2 * 0.0006526 * 10 * ELECTRONS * TRANSMISSION ** (1 / np.cos(np.deg2rad(angles)))
    assert np.abs(gain / expected[:, None] - 1).max() < 0.15
    given = float(_density(2, count).mean())
    assert (0.0 if model.crowd is None else model.crowd.mean) == pytest.approx(
        mass * given, abs=0.35 * max(mass, 1) * given
    )
    # Not just `count / 200`: how many of the shells are large, and how they lie, is chance.
    theirs, given_power = (_shared_power(clean) for clean in (_clean(1), _clean(2, count)))
    assert model.contrast.explained == pytest.approx(given_power / theirs, rel=0.2)


def test_defocus_does_not_depend_on_the_number_of_particles() -> None:
    """One series has three times the matter of the other: that is not their defocus, which would be off by 0.8 µm."""
    model = NoiseModel.fit_unpaired(
        target=[_counts(1, 100), _counts(3, 300)],
        clean=_clean(2),
        tilt_angles=[ANGLES, ANGLES],
        clean_angles=ANGLES,
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.6, spread=1.0),
        depth=40,
    )
    assert model.response is not None
    np.testing.assert_allclose(model.response.defocus, DEFOCUS, atol=0.2)


def test_contrast_does_not_depend_on_gray_values(counts: Tensor) -> None:
    """Gray values a x + b, with and without the exposure: the same contrast over the noise within 10 %."""
    clean = _clean(2, 50)
    plain = _scale(_fit(counts, clean))
    for factor, offset in ((3.0, 0.0), (1.0, 400.0), (0.05, -7.0), (10.0, 3000.0)):
        for known in ({}, {"exposure": 4.0}):
            np.testing.assert_allclose(_scale(_fit(factor * counts + offset, clean, **known)), plain, rtol=0.10)


def test_inverted_gray_values(counts: Tensor) -> None:
    """Where more electrons make lower gray values, the user is told."""
    with pytest.warns(UserWarning, match="series 0: more electrons make lower gray values"):
        model = _fit(1000 - counts, _clean(2))
    np.testing.assert_allclose(_scale(model), _scale(_fit(counts, _clean(2))), rtol=0.10)


def test_exposure_in_any_order(counts: Tensor) -> None:
    """Exposures belong to the tilts that they were given with; one number is for all."""
    clean, order = _clean(2), torch.randperm(len(ANGLES), generator=torch.Generator().manual_seed(0))
    exposure = np.linspace(2.0, 5.0, len(ANGLES))
    sorted_ = _fit(counts, clean, exposure=exposure, scale="exposure")
    settings = {"tilt_angles": ANGLES[order.numpy()], "exposure": exposure[order.numpy()], "scale": "exposure"}
    shuffled = NoiseModel.fit_unpaired(
        target=counts[order],
        clean=clean,
        clean_angles=ANGLES,
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=DEFOCUS),
        depth=40,
        **settings,
    )
    assert shuffled.response == sorted_.response
    # Four times the exposure: twice the signal over the noise.
    four = _scale(_fit(counts, clean, exposure=4.0, scale="exposure")) / _scale(
        _fit(counts, clean, exposure=1.0, scale="exposure")
    )
    np.testing.assert_allclose(four, 2.0, rtol=0.1)


def test_report() -> None:
    """What was found, in words, and as JSON."""
    report = ContrastReport(source=("intensity",), zero=(-90.0,), zero_error=(1.0,), explained=0.5)
    assert report.lines()[0] == (
        "series 0: scale of the contrast from intensities (gray value of no electrons -90 ± 1)"
    )
    assert report.lines()[1].startswith("the specimens explain 50% of the power")
    assert replace(report, explained=1.1).lines()[1] == "the specimens explain all of the power that tilts share"
    assert "hold too many particles" in replace(report, explained=2.0).lines()[1]
    for odd in (0.003, 300.0):
        assert "are their densities in volts?" in replace(report, explained=odd).lines()[1]
    assert ContrastReport.from_dict(report.to_dict()) == report
    for wrong in ({}, {"source": ["magic"], "zero": [0], "zero_error": [0]}, {"source": 1}):
        with pytest.raises(ValueError, match="expected"):
            ContrastReport.from_dict(wrong)


# --- measured by another program --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_specimens_of_the_reference(reference: Path, reference_file: Callable[[Path, str], Path]) -> None:
    """The measured tilts of minishrec, compared with a quarter, all and a part of the true matter: within 10 %."""
    folders = [reference_file(reference, f"data/minishrec/model_{i}") for i in range(2)]
    series = [TiltSeries.read(folder) for folder in folders]
    truth = [GrandModel.from_shrec(folder, z_range=None) for folder in folders]
    quarter = [_every(one, 4) for one in truth]
    small = [_without(one, (1, 2)) for one in truth]
    gains = []
    for specimens in (truth, quarter, small):
        model = NoiseModel.fit_unpaired(
            target=[one.tilts for one in series],
            clean=[-project(one.density.float(), series[0].tilt_angles) for one in specimens],
            tilt_angles=[one.tilt_angles for one in series],
            pixel_size=10.0,
            depth=64,
        )
        assert set(model.contrast.source) == {"intensity"}
        gains.append(model.response.envelope.gain(np.array([0.0, 0.5, 1.0]), np.array([0.08, 0.16]), np.ones(2)))
    for gain in gains[1:]:
        assert np.abs(gain / gains[0] - 1).max() < 0.10


def _every(specimen: GrandModel, step: int) -> GrandModel:
    """Keep every so manieth particle of a specimen."""
    assert specimen.instances is not None
    kept = (specimen.instances > 0) & (specimen.instances % step == 0)
    return replace(specimen, density=specimen.density * kept)


def _without(specimen: GrandModel, classes: tuple[int, ...]) -> GrandModel:
    """Leave out the particles of some classes."""
    kept = (specimen.labels > 0) & ~torch.isin(specimen.labels, torch.tensor(classes).to(specimen.labels))
    return replace(specimen, density=specimen.density * kept)


def test_spectra_are_those_of_the_signal(counts: Tensor) -> None:
    """Clean tilts of few particles keep their power: they are not clipped at their own standard deviation."""
    few = _clean(5, 3)
    plain: SeriesSpectra = sorted_spectra(few, ANGLES, "few")
    from faket_aug.microscope.spectra import matching_spectra

    measured = [sorted_spectra(counts, ANGLES, "counts")]
    wide = np.full(len(ANGLES), 1e9)
    whole = matching_spectra([few], [ANGLES], measured, [wide])[0][0]
    inner = (RINGS > 0.05) & (RINGS < 0.3)
    assert np.median(whole.power[:, inner] / plain.power[:, inner]) > 1.5


# --- as many particles as there are -----------------------------------------------------------------------------------


def _generator(occupancy: float | None = None, **settings: Any) -> GrandModelGenerator:
    z, y, x = np.mgrid[-9:10, -9:10, -9:10]
    radius = np.sqrt(z**2 + y**2 + x**2)
    shell = torch.from_numpy((2 * np.exp(-((radius - 5.0) ** 2) / 0.8)).astype(np.float32))
    template = ParticleTemplate(density=shell, voxel_size=10.0, threshold=0.5, name="shell")
    species = ParticleSpecies(templates=template, **settings)
    return GrandModelGenerator(particles=[species], shape=(40, 128, 128), voxel_size=10.0, occupancy=occupancy)


def test_scaled_generators() -> None:
    """Twice as many particles: by counts, ranges, concentrations or the occupancy."""
    for settings, expected in (
        ({"count": 20}, (40, 40)),
        ({"count": (10, 20)}, (20, 40)),
    ):
        (species,) = _generator(**settings).scaled(2.0).particles  # type: ignore[misc]
        assert species.count == expected
    for name in ("concentration_per_um3", "concentration_molar"):
        (species,) = _generator(**{name: 1e-6}).scaled(3.0).particles  # type: ignore[misc]
        assert getattr(species, name) == pytest.approx(3e-6)
    crowded = _generator(occupancy=0.02)
    assert crowded.scaled(3.0).occupancy == pytest.approx(0.06)
    with pytest.raises(ValueError, match="shell: expected a count or a concentration to scale"):
        crowded.particles[0].scaled(2.0)  # type: ignore[index]
    with pytest.raises(ValueError, match="factor"):
        crowded.scaled(0.0)


@pytest.mark.slow
def test_particles_fill_up(counts: Tensor) -> None:
    """With `crowd="occupancy"` particles are generated until they explain what was measured."""
    truth = _generator(count=60).generate(seed=5)
    intensity = torch.from_numpy(ELECTRONS * TRANSMISSION ** (1 / np.cos(np.deg2rad(ANGLES))))[:, None, None]
    # A microscope does not interpolate.
    clean = -without_interpolation(project(truth.density, ANGLES, extend="wrap"), ANGLES, depth=len(truth.density))
    contrast = ContrastTransfer(defocus=DEFOCUS).apply(clean, 10.0) * 2 * interaction_constant(300) * 10
    tilts = torch.poisson((intensity * (1 + contrast)).clamp(min=0).float(), generator=torch.Generator().manual_seed(0))
    series = TiltSeries(tilts=tilts, tilt_angles=ANGLES, pixel_size=10.0)
    fitted = fit_microscope(series, _generator(count=20), count=1, defocus=DEFOCUS, crowd="occupancy")
    assert fitted.about["occupancy_factor"] == pytest.approx(3.0, rel=0.25)
    assert fitted.noise.contrast is not None
    assert fitted.noise.contrast.explained == pytest.approx(1.0, abs=0.15)
    few = _generator(count=20).generate(seed=5)
    crowd = fit_microscope(series, [few, truth], defocus=DEFOCUS, thickness=400.0).noise.crowd
    assert crowd is not None
    solid = float(few.density[few.labels > 0].quantile(0.9))
    # Beside the mean of both.
    assert crowd.beside == pytest.approx(np.mean([mean_matter(one.density, solid) for one in (few, truth)]), rel=0.02)
    with pytest.raises(ValueError, match="expected specimens of a `GrandModelGenerator`"):
        fit_microscope(series, [truth], defocus=DEFOCUS, crowd="occupancy")
    with pytest.raises(ValueError, match="expected `crowd` to be one of"):
        fit_microscope(series, [truth], defocus=DEFOCUS, crowd="none")


def test_beads_belong_to_stacks(counts: Tensor) -> None:
    """There is one entry for each clean stack; beads that no tilt shows have no power."""
    clean = _clean(1)
    with pytest.raises(ValueError, match="expected `beads` of each of 1 clean stacks, or None, got 2"):
        _fit(counts, clean, beads=[clean, None])
    plain = _fit(counts, clean).crowd
    assert _fit(counts, clean, beads=[None]).crowd == plain
    assert _fit(counts, clean, beads=torch.zeros_like(clean)).crowd == plain
