"""`fit_microscope`: the fit of `faket-aug fit` as a function, from tilt-series to a file that simulates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _helpers import blobs, narrow_vgg

from faket_aug import (
    ContrastTransfer,
    FakETSimulator,
    GrandModel,
    GrandModelGenerator,
    MicroscopeResponse,
    NoiseModel,
    ParticleSpecies,
    ParticleTemplate,
    TiltMetadata,
    TiltSeries,
    fit_microscope,
    project,
)
from faket_aug._random import torch_generator, torch_seed
from faket_aug.microscope.crowd import CrowdField
from faket_aug.microscope.file import read_microscope
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from faket_aug.simulation.fit_microscope import _solid
from faket_aug.specimens.procedural import procedural_specimen
from faket_aug.tilts.optics import NOMINAL_SPREAD, known_optics
from faket_aug.tomography.interpolation import without_interpolation

ANGLES = np.arange(-60.0, 61.0, 6.0)
SHAPE = (32, 96, 96)


@pytest.fixture(scope="module")
def series() -> TiltSeries:
    """Tilts of a microscope with a defocus of 3.5 µm."""
    clean = -project(procedural_specimen(shape=SHAPE, seed=3).density.float(), ANGLES)
    response = MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.5),
        envelope=Envelope(log_scale=float(torch.log(100 / clean.std())), square=3.0),
        noise=(tuple(np.full(len(RINGS), 900.0)),),
        angle_range=(-60.0, 60.0),
    )
    grain = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    tilts = 2000 + response.apply(clean, grain, ANGLES)
    return TiltSeries(tilts=tilts, tilt_angles=ANGLES, pixel_size=10.0, name="measured")


def test_built_in_specimens(series: TiltSeries, tmp_path: Path) -> None:
    """Without specimens the package's own are taken; the file makes a simulator, and the report says what was found."""
    told: list[tuple[int, int]] = []
    fitted = fit_microscope(series, shape=SHAPE, seed=7, scale="power", progress=lambda *now: told.append(now))
    assert told == [(1, 2), (2, 2)]
    response = fitted.noise.response
    assert response is not None
    assert response.defocus[0] == pytest.approx(3.5, abs=0.4)
    assert fitted.extend == "wrap"
    assert fitted.report()[0] == f"series 0: defocus {response.defocus[0]:.2f} ± {response.defocus_error[0]:.2f} µm"
    assert fitted.report()[-2].startswith("power of simulated over measured tilts: off by ")
    assert fitted.power_difference < 0.2
    fitted.save(tmp_path / "microscope.json")
    kept = read_microscope(tmp_path / "microscope.json")
    assert kept.noise.to_json() == fitted.noise.to_json()
    assert {n: kept.about[n] for n in ("tilt_series", "aligned", "built_in", "defocus_given", "specimens")} == {
        **{"tilt_series": ["measured"], "aligned": [False], "built_in": True, "defocus_given": [False]},
        "specimens": 2,
    }
    assert "options" not in kept.about
    simulator = FakETSimulator.from_file(tmp_path / "microscope.json")
    assert simulator.extend == "wrap"
    np.testing.assert_allclose(simulator.tilt_angles, ANGLES)


def test_specimens_and_what_is_known(series: TiltSeries) -> None:
    """A sequence is projected as far as asked, ends where it ends, and is the fit that `NoiseModel` makes."""

    class Counted(Sequence[GrandModel]):
        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> GrandModel:  # type: ignore[override]
            self.read.append(index)
            return procedural_specimen(shape=SHAPE, seed=9, index=index)

    own = Counted()
    fitted = fit_microscope(
        [series], own, count=2, defocus=3.5, optics={"voltage": 200.0}, origin={"mine": 1}, scale="power"
    )
    assert own.read == [0, 1]
    assert (fitted.extend, fitted.about["options"], fitted.about["specimens"]) == ("zero", {"mine": 1}, 2)
    assert fitted.report()[0] == "series 0: defocus 3.50 µm (given)"
    dense = [procedural_specimen(shape=SHAPE, seed=9, index=i).density.float() for i in range(2)]
    # Square ones are shown twice, with their sides exchanged.
    views = [view for one in dense for view in (one, one.transpose(1, 2).contiguous())]
    clean = [-without_interpolation(project(one, ANGLES), ANGLES, depth=len(one)) for one in views]
    by_hand = NoiseModel.fit_unpaired(
        target=[series.tilts],
        clean=clean,
        tilt_angles=[ANGLES],
        clean_angles=[ANGLES] * 4,
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.5, voltage=200.0),
        scale="power",
        interpolated=False,
    )
    assert fitted.noise.to_json() == by_hand.to_json()
    # In place of all that files say.
    same = fit_microscope(series, own, count=2, ctf=ContrastTransfer(defocus=3.5, voltage=200.0), scale="power")
    assert same.noise.to_json() == by_hand.to_json()
    linear = fit_microscope(
        series, own, count=2, ctf=ContrastTransfer(defocus=3.5, voltage=200.0), noise_order=1, scale="power"
    )
    assert linear.noise.order == 1
    assert "interpolated" not in fitted.about


@pytest.mark.parametrize("bin", [2, 4])
def test_specimens_with_coarser_labels(bin: int) -> None:
    """Labels may be binned: how dense matter is follows from them as well, but for voxels at the edges of particles."""
    whole = procedural_specimen(shape=SHAPE, seed=9)
    coarser = [one[::bin, ::bin, ::bin].contiguous() for one in (whole.labels, whole.instances)]
    # Positions count voxels of the labels.
    fewer = replace(whole.particles, positions=whole.particles.positions / bin)
    coarse = replace(whole, labels=coarser[0], instances=coarser[1], particles=fewer)
    assert coarse.bin == bin
    assert _solid(coarse) == pytest.approx(_solid(whole), rel=0.05 * bin)


def test_many_labelled_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    """More labelled voxels than `torch.quantile` takes: some of them tell as much."""
    specimen = procedural_specimen(shape=SHAPE, seed=9)
    expected = _solid(specimen)
    monkeypatch.setattr("faket_aug.simulation.fit_microscope._MOST_NUMBERS", 1000)
    assert _solid(specimen) == pytest.approx(expected, rel=0.05)


def test_measured_tilts_that_are_interpolated(series: TiltSeries, tmp_path: Path) -> None:
    """Projections are compared as they are, simulations are not sharpened across the axis, and the file says so."""
    own = [procedural_specimen(shape=SHAPE, seed=9)]
    optics = ContrastTransfer(defocus=3.5)
    fitted = fit_microscope(series, own, ctf=optics, scale="power", interpolated=True)
    plain = project(own[0].density.float(), ANGLES)
    assert torch.equal(fitted.clean, -plain)
    by_hand = NoiseModel.fit_unpaired(
        target=series.tilts,
        clean=[-plain, -project(own[0].density.float().transpose(1, 2).contiguous(), ANGLES)],
        tilt_angles=ANGLES,
        pixel_size=10.0,
        ctf=optics,
        depth=SHAPE[0],
        scale="power",
    )
    assert fitted.noise.to_json() == by_hand.to_json()
    assert fitted.about["interpolated"] is True
    fitted.save(tmp_path / "interpolated.json")
    kept = read_microscope(tmp_path / "interpolated.json")
    assert kept.noise.interpolated
    assert kept.about["interpolated"] is True
    # What is shown beside measured tilts is no sharper than what the file simulates.
    crowd = CrowdField(frequencies=(0.0, 0.05), power=(100.0, 0.0), mean=0.1)
    shown = replace(fitted, noise=replace(fitted.noise, crowd=crowd))._crowded_clean
    around = crowd.around(own[0].density, 10.0, torch_generator(torch_seed(fitted.seed, "crowd")))
    assert torch.equal(shown, -project(around, ANGLES))


def test_a_generator_and_the_step(series: TiltSeries, tmp_path: Path) -> None:
    """Endless specimens are made from the seed; with an encoder the step is chosen, and the file says it."""
    template = ParticleTemplate(density=blobs((11, 11, 11), [(5, 5, 5)], 1.5), voxel_size=10.0, threshold=0.5, name="a")
    generator = GrandModelGenerator(
        particles=[ParticleSpecies(templates=template, count=40)], shape=SHAPE, voxel_size=10.0
    )
    features = narrow_vgg(tmp_path)
    fitted = fit_microscope(
        series, generator, count=1, defocus=3.5, scale="power", features=features, bank={"style_layers": (1, 6)}, seed=5
    )
    assert torch.equal(fitted.specimen.labels, generator.generate(seed=5).labels)
    assert fitted.extend == "wrap"
    assert fitted.step is not None
    assert fitted.microscope.style == {
        "step_size": fitted.step.step_size,
        "keep_spectrum": fitted.step.keep_spectrum,
    }
    assert fitted.microscope.about["step"] == fitted.step.report()
    again = replace(fitted, step=None).with_step(
        features, bank={"style_layers": (1, 6)}, search={"steps": (0.05,), "tilts": 3}, iterations=2
    )
    assert again.step is not None
    assert sorted({trial.step_size for trial in again.step.trials}) == [0.0, 0.05]
    again.save(tmp_path / "m.json")
    assert set(json.loads((tmp_path / "m.json").read_text())["style"]) == {"step_size", "keep_spectrum"}


def _metadata(**known: object) -> TiltMetadata:
    return TiltMetadata(tilt_angles=ANGLES, sections=np.arange(len(ANGLES)), source="a file", **known)  # type: ignore[arg-type]


def test_what_the_files_say(series: TiltSeries) -> None:
    """Optics and defocus come from metadata, what is given goes before them, and microscopes may not differ."""
    known = replace(series, metadata=_metadata(voltage_kv=200.0, defocus_um=np.full(len(ANGLES), 3.0)))
    (nominal,) = known_optics([known])
    assert nominal == ContrastTransfer(defocus=3.0, spread=NOMINAL_SPREAD, voltage=200.0)
    fitted = replace(series, metadata=_metadata(defocus_um=np.linspace(3.0, 4.0, len(ANGLES))))
    assert known_optics([fitted])[0] == ContrastTransfer(defocus=3.5, spread=0.0)
    assert known_optics([series])[0] == ContrastTransfer.within()
    assert known_optics([known], (2.0, 5.0), {"voltage": 300.0})[0] == ContrastTransfer.within(2.0, 5.0, voltage=300.0)
    other = replace(series, name="other", metadata=_metadata(voltage_kv=300.0))
    with pytest.raises(ValueError, match=r"got `voltage` of 200 \(measured\), 300 \(other\); fit each apart, or set"):
        known_optics([known, other])
    assert known_optics([known, other], given={"voltage": 120.0})[1].voltage == 120.0


@pytest.mark.parametrize(
    ("pixel_sizes", "voxel_size", "message"),
    [
        ((0.0,), 10.0, "measured: expected a pixel size in its header, got 0"),
        ((10.0, 12.0), 10.0, "expected pixels of 10 Å, as of measured, got 12 Å; bin them alike"),
        ((10.0,), 12.0, "expected voxels of 10 Å, as of the tilts' pixels, got 12 Å"),
        ((1.5,), None, "expected pixels of 4 to 20 Å for the built-in specimens, got 1.5 Å"),
        ((), 10.0, "expected at least one tilt-series of the microscope, got none"),
    ],
)
def test_sizes_have_to_agree(
    series: TiltSeries, pixel_sizes: tuple[float, ...], voxel_size: float | None, message: str
) -> None:
    given = [replace(series, pixel_size=size) for size in pixel_sizes]
    own = None if voxel_size is None else [procedural_specimen(shape=SHAPE, voxel_size=voxel_size)]
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        fit_microscope(given, own)


def test_series_are_aligned_about_the_axis(series: TiltSeries) -> None:
    """Given the axis, tilts that lie anywhere are brought upon each other by their neighbours."""
    moved = torch.stack([one.roll((7 * (-1) ** i, 3 * i), dims=(0, 1)) for i, one in enumerate(series.tilts)])
    fitted = fit_microscope(
        replace(series, tilts=moved), shape=SHAPE, defocus=3.5, count=1, tilt_axis=0.0, scale="power"
    )
    assert (fitted.about["aligned"], fitted.about["tilt_axis"]) == ([True], 0.0)
    assert fitted.series[0].metadata is not None


def test_what_was_not_measured_does_not_count(series: TiltSeries) -> None:
    """The fit leaves out what the series' mask leaves out, whatever lies there; so does the power of its report."""
    known = torch.ones(series.tilts.shape, dtype=torch.bool)
    known[:, :10] = False
    specimens = [procedural_specimen(shape=SHAPE, seed=4)]
    bordered = replace(series, tilts=torch.where(known, series.tilts, 5000.0), measured=known)
    fitted, plain = (fit_microscope(one, specimens, defocus=3.5, scale="power") for one in (bordered, series))
    assert fitted.simulated.measured is None
    assert fitted.power_difference < plain.power_difference + 0.1
    own, other = (one.noise.response for one in (fitted, plain))
    assert own is not None
    assert other is not None
    inner = (RINGS > 0.05) & (RINGS < 0.45)
    ratio = own.noise_power(ANGLES)[:, inner] / other.noise_power(ANGLES)[:, inner]
    assert np.median(ratio) == pytest.approx(1, abs=0.03)
