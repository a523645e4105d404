"""The command line, and the demonstration's microscope, network and pictures."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from _helpers import outcome
from matplotlib.figure import Figure
from PIL import Image
from rich.progress import Progress
from safetensors.torch import save_file
from typer.testing import CliRunner

import faket_aug
from faket_aug import GrandModel, TiltSeries, project
from faket_aug.cli import app
from faket_aug.demo import settings
from faket_aug.demo.microscope import Microscope
from faket_aug.demo.round_trip import Stages, choose_encoder, class_weights, ends, run
from faket_aug.demo.settings import RoundTrip
from faket_aug.demo.unet import seeded_network
from faket_aug.figures import (
    loss_panel,
    richest_section,
    save_figure,
    simulated_beside_real,
    slice_with_labels,
    tilt_panel,
)
from faket_aug.specimens.procedural import procedural_specimen
from faket_aug.style import weight_files

TINY = {
    "shape": (32, 64, 64),
    "specimens": 2,
    "style_series": 1,
    "tilt_step": 15.0,
    "patch_size": 24,
    "batch_size": 2,
    "patches_per_tomogram": 20,
}


@pytest.fixture(scope="module")
def specimen() -> GrandModel:
    return procedural_specimen(shape=(31, 44, 63), counts={"tripod": 3, "dimer": 4, "fiducial": 1}, seed=1)


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def narrow_vgg(path: Path, *, layers: int = 5) -> Path:
    """Weights of a narrow VGG-19 up to layer 11 (for five convolutions)."""
    generator = torch.Generator().manual_seed(0)
    state, channels = {}, 3
    for index, width in zip((0, 2, 5, 7, 10)[:layers], (4, 4, 8, 8, 8), strict=False):
        state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) / channels**0.5
        state[f"features.{index}.bias"] = torch.zeros(width)
        channels = width
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


class TestCommandLine:
    def test_help_lists_the_commands(self) -> None:
        """`--help` names `demo`, and `demo --help` its options."""
        assert "demo" in CliRunner().invoke(app, ["--help"]).output
        output = CliRunner().invoke(app, ["demo", "--help"], env={"COLUMNS": "200"}).output
        for option in ("--output", "--steps", "--seed", "--weights", "--style-layers", "--device"):
            assert option in output

    def test_version(self) -> None:
        """`--version` says the package's version."""
        assert CliRunner().invoke(app, ["--version"]).output == f"faket-aug {faket_aug.__version__}\n"

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--steps", "many"], 1, "expected --steps to be a whole number, got 'many'"),
            (["--steps", "0"], 1, "expected --steps to be more than 0"),
            (["--seed", "-1"], 1, "expected --seed to be 0 or more"),
            (["--nonsense"], 2, "--nonsense"),
            (["--device", "abacus"], 1, "expected --device to be"),
            (["--style-layers", "one"], 1, "expected --style-layers to be whole numbers"),
            (["--weights", "random", "--style-layers", "7"], 1, "expected `layer` to be one of 1, 3, 6"),
            (["--weights", "missing.pth"], 1, "there is no such file"),
            (["--weights", "narrow.safetensors", "--style-layers", "1,20"], 1, "that ends at layer 11"),
            (["--weights", "narrow.safetensors", "--output", "file/demo"], 1, "expected an output folder that can be"),
        ],
    )
    def test_mistakes_are_told_without_a_traceback(
        self,
        arguments: list[str],
        code: int,
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """What a user can cause gives a message and code 1 (one line) or 2 (usage), and writes nothing."""
        monkeypatch.chdir(tmp_path)
        narrow_vgg(tmp_path / "narrow.safetensors")
        (tmp_path / "file").write_text("")
        before = sorted(tmp_path.rglob("*"))
        found, _, errors = outcome(["demo", *arguments], monkeypatch, capsys)
        assert found == code
        assert message in errors
        assert "Traceback" not in errors
        if code == 1:
            assert len(errors.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_cuda_where_there_is_none(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The message says to use the CPU."""
        code, _, errors = outcome(["demo", "--device", "cuda"], monkeypatch, capsys)
        assert code == 1
        assert 'set --device to "cpu"' in errors

    def test_a_tiny_demo_through_the_command_line(
        self, no_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The summary says the stages, the rate, the loss and the weights; only the output is written."""
        work = tmp_path / "work"
        work.mkdir()
        monkeypatch.chdir(work)
        weights = narrow_vgg(tmp_path / "narrow.safetensors")
        monkeypatch.setattr(settings, "RoundTrip", functools.partial(RoundTrip, **TINY))
        code, output, errors = outcome(
            ["demo", "--steps", "2", "--output", "out/here", "--weights", str(weights)], monkeypatch, capsys
        )
        assert (code, errors) == (0, "")
        for words in (
            "style bank",
            "training",
            "a second, simulated and trained on",
            "at the end",
            f"{weights} (VGG-19",
        ):
            assert words in output
        assert "style layers 1, 6, 11)" in output
        assert "FAKET_RANDOM" not in output
        assert [str(path.relative_to(work)) for path in sorted(work.rglob("*"))] == [
            "out",
            "out/here",
            "out/here/preview.png",
        ]


class TestEncoder:
    def test_random_without_cached_weights(self, no_cache: Path) -> None:
        """Nothing in torchvision's cache: random weights, and no download."""
        assert choose_encoder(None, "cpu").source == "random"
        assert not no_cache.exists()

    def test_torchvision_where_it_is_cached(self, no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What lies in torchvision's cache is used."""
        # Other weights than the name says.
        monkeypatch.setattr(weight_files, "check_hash", lambda path: None)
        narrow_vgg(no_cache / "vgg19-dcbb9e9d.pth")
        features = choose_encoder(None, "cpu")
        assert features.source == "torchvision"
        assert features.deepest == 11

    def test_a_file_is_read_at_once(self, tmp_path: Path) -> None:
        """A path is used as it is."""
        assert choose_encoder(str(narrow_vgg(tmp_path / "mine.pth")), "cpu").deepest == 11


class TestMicroscope:
    ANGLES = (-50.0, -30.0, 0.0, 20.0, 45.0)

    def test_sign_of_the_tilt(self, specimen: GrandModel) -> None:
        """A noiseless tilt at +30° looks like `project` at +30°, not at -30°."""
        seen = Microscope(tilt_angles=[30.0]).phases(specimen)[0].ravel()
        right, wrong = project(specimen.density, [30.0, -30.0], extend="wrap").numpy().reshape(2, -1)
        assert np.corrcoef(seen, right)[0, 1] > 0.99
        assert np.corrcoef(seen, wrong)[0, 1] < 0.7

    def test_phases_are_the_projected_potential(self, specimen: GrandModel) -> None:
        """At every tilt the phase is the line integral times the interaction constant, 6.53e-4 rad/(V Å) at 300 kV."""
        seen = Microscope(tilt_angles=self.ANGLES).phases(specimen)
        expected = project(specimen.density, self.ANGLES, extend="wrap").numpy() * 10.0 * 6.526e-4
        for phase, reference in zip(seen, expected, strict=True):
            assert np.corrcoef(phase.ravel(), reference.ravel())[0, 1] > 0.995
            assert np.std(phase) == pytest.approx(np.std(reference), rel=0.03)

    def test_underfocus_makes_dense_matter_dark(self) -> None:
        """In the image of a blob the middle is darker than the surroundings, at either end of the defocus range."""
        y, x = np.mgrid[-32:32, -32:32]
        blob = 0.2 * np.exp(-(y**2 + x**2) / (2 * 3.0**2))
        for defocus in (2.0, 3.5):
            image = Microscope(tilt_angles=[0.0]).intensity(blob, defocus, 10.0)
            assert image[32, 32] < 0.97
            assert image.mean() == pytest.approx(1.0, abs=0.02)

    def test_dose_and_thickness(self, specimen: GrandModel) -> None:
        """Counts are those of the split exposure, after the path through the ice; shot noise is there."""
        microscope = Microscope(tilt_angles=self.ANGLES)
        series = microscope.record(specimen, seed=0, index=0)
        path = 310.0 / np.cos(np.deg2rad(self.ANGLES))
        expected = 0.8 * 120.0 / 5 * 10.0**2 * np.exp(-path / 3000.0)
        np.testing.assert_allclose(series.tilts.mean(dim=(1, 2)), expected, rtol=0.03)
        assert (series.tilts.std(dim=(1, 2)).numpy() > 0.5 * 0.8 * np.sqrt(expected / 0.8)).all()

    def test_the_recorded_tilts_hold_the_specimen(self, specimen: GrandModel) -> None:
        """Tilts correlate with negated projections, so that noise can be fitted to them."""
        series = Microscope(tilt_angles=self.ANGLES).record(specimen, seed=0, index=0)
        clean = -project(specimen.density, self.ANGLES, extend="wrap")
        for tilt, reference in zip(series.tilts, clean, strict=True):
            assert np.corrcoef(tilt.numpy().ravel(), reference.numpy().ravel())[0, 1] > 0.3

    def test_the_address_determines_the_series(self, specimen: GrandModel) -> None:
        """The same seed and index give the same counts; another of either gives others."""
        microscope = Microscope(tilt_angles=[0.0, 10.0])
        first = microscope.record(specimen, seed=1, index=2).tilts
        assert torch.equal(first, microscope.record(specimen, seed=1, index=2).tilts)
        assert not torch.equal(first, microscope.record(specimen, seed=1, index=3).tilts)
        assert not torch.equal(first, microscope.record(specimen, seed=2, index=2).tilts)


class TestNetwork:
    def test_shape_size_and_seed(self) -> None:
        """Logits have the image's sides; there are 100 to 200 thousand parameters; the seed determines them."""
        network, again, other = (seeded_network(6, seed=seed) for seed in (0, 0, 1))
        assert network(torch.zeros(2, 1, 8, 12, 16)).shape == (2, 6, 8, 12, 16)
        assert 100_000 < sum(p.numel() for p in network.parameters()) < 200_000
        pairs = list(zip(network.parameters(), again.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in pairs)
        assert not torch.equal(network.head.weight, other.head.weight)

    def test_class_weights_favour_rare_classes(self, specimen: GrandModel) -> None:
        """A class with fewer voxels weighs more; the mean is 1."""
        weights = class_weights([specimen, specimen])
        assert weights.shape == (6,)
        assert float(weights.mean()) == pytest.approx(1.0)
        assert weights[4] > weights[3] > weights[0]

    def test_ends_of_a_loss(self) -> None:
        """The mean of the first and of the last tenth; of one step, that step."""
        assert ends(tuple(float(n) for n in range(20))) == (0.5, 18.5)
        assert ends((2.0,)) == (2.0, 2.0)


class TestFigures:
    def test_tilt_panel(self) -> None:
        """The grey range is between the quantiles, the bar is of a round length, a constant image is no error."""
        axes = Figure().subplots()
        image = torch.arange(10000.0).reshape(100, 100)
        tilt_panel(axes, image, title="a tilt", pixel_size=10.0)
        low, high = axes.images[0].get_clim()
        assert (low, high) == (200.0, 9799.0)
        assert [text.get_text() for text in axes.texts] == ["20 nm"]
        tilt_panel(Figure().subplots(), torch.zeros(5, 5), title="nothing")

    def test_labels_are_transparent_where_0(self) -> None:
        """Only labelled voxels are coloured, and the legend names the classes."""
        axes = Figure().subplots()
        labels = torch.zeros(4, 6, dtype=torch.uint8)
        labels[1, 2], labels[3, 5] = 1, 2
        names = {0: "background", 1: "cage", 2: "barrel"}
        slice_with_labels(axes, torch.rand(4, 6, generator=torch.Generator()), labels, class_names=names, title="t")
        overlay = axes.images[1].get_array()
        np.testing.assert_array_equal(overlay[..., 3] > 0, labels.numpy() > 0)
        assert not np.array_equal(overlay[1, 2], overlay[3, 5])
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cage", "barrel"]

    @pytest.mark.parametrize("steps", [1, 2, 40])
    def test_loss_panel(self, steps: int) -> None:
        """Any number of steps can be drawn, in order."""
        axes = Figure().subplots()
        loss_panel(axes, [1.0 / (n + 1) for n in range(steps)])
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), np.arange(1, steps + 1))

    def test_richest_section(self) -> None:
        """The section that shows all classes wins over fuller ones; without labels there is still one."""
        labels = torch.zeros(3, 10, 10, dtype=torch.uint8)
        labels[0], labels[1, :5], labels[1, 5:], labels[2, :5] = 1, 1, 2, 2
        assert richest_section(labels) == 1
        assert richest_section(torch.zeros_like(labels)) in range(3)

    @pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF")])
    def test_save_figure_writes_the_file_alone(self, name: str, start: bytes, tmp_path: Path) -> None:
        """The suffix gives the format, and no temporary file stays."""
        save_figure(Figure(figsize=(1, 1)), tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_bytes().startswith(start)

    def test_simulated_beside_real(self, tmp_path: Path) -> None:
        """For each angle the nearest tilt of each series, whatever their sizes and steps."""
        generator = torch.Generator().manual_seed(0)
        simulated = TiltSeries(tilts=torch.randn(3, 20, 24, generator=generator), tilt_angles=np.array([-40.0, 0, 40]))
        real = TiltSeries(
            tilts=torch.randn(5, 30, 30, generator=generator), tilt_angles=np.arange(-60.0, 61, 30), pixel_size=8.0
        )
        figure = simulated_beside_real(simulated, real, tilt_angles=[0.0, 45.0])
        titles = [axes.get_title() for axes in figure.axes]
        assert titles == ["simulated, 0°", "simulated, 40°", "real, 0°", "real, 30°"]
        save_figure(figure, tmp_path / "beside.png")


@pytest.mark.nightly
@pytest.mark.slow
def test_a_small_demo_learns_and_comes_again(no_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is finite and falls, the picture is whole, nothing else is written, and the seed determines it all."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    settings = RoundTrip(output=Path("demo"), steps=40, seed=1, **TINY)
    with Progress(disable=True) as progress:
        stages = Stages(progress=progress)
        result = run(settings, stages)
    assert result.features.source == "random"
    assert result.style_layers == (1, 6, 11, 20, 29)
    assert len(result.losses) == 40
    assert np.isfinite(result.losses).all()
    assert np.mean(result.losses[-8:]) < 0.8 * np.mean(result.losses[:8])
    assert result.patches_per_second > 0
    assert list(stages.seconds) == [
        "encoder",
        "specimens",
        "microscope",
        "noise model",
        "style bank",
        "training",
        "preview",
    ]
    with Image.open("demo/preview.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 1000
    assert [str(path.relative_to(work)) for path in sorted(work.rglob("*"))] == ["demo", "demo/preview.png"]
    with Progress(disable=True) as progress:
        again = run(dataclasses.replace(settings, steps=3), Stages(progress=progress))
    assert again.losses == result.losses[:3]
