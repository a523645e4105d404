"""Every example runs as its user would run it, on small files that the test writes; resumed runs are exact."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import NoiseModel
from faket_aug.formats.mrc import write_mrc
from faket_aug.microscope.file import MicroscopeFile, write_microscope
from faket_aug.tomography.projection import project

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_deepfinder.py"
ANGLES = np.arange(-60.0, 61.0, 15.0)
SHAPE = (16, 32, 32)
WIDTHS = {0: 4, 2: 4, 5: 8, 7: 8, 10: 8}
Run = Callable[..., subprocess.CompletedProcess[str]]


def _write_specimen(folder: Path, *, seed: int, measured: bool = False) -> None:
    """Write a specimen in SHREC's layout: two classes of blobs; with `measured`, also noisy projections of it."""
    generator = np.random.default_rng(seed)
    density, labels = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
    lines = []
    for number in range(10):
        particle_class = 1 + number % 2
        center = generator.uniform((4, 4, 4), np.array(SHAPE) - 4)
        distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.indices(SHAPE), center, strict=True)))
        radius = (2.0, 3.0)[particle_class - 1]
        density += np.exp(-((distance / radius) ** 2)).astype(np.float32)
        labels[distance < radius] = particle_class
        z, y, x = center
        lines.append(f"{('small', 'large')[particle_class - 1]} {x:.3f} {y:.3f} {z:.3f} 0 0 0")
    folder.mkdir()
    write_mrc(folder / "grandmodel.mrc", torch.from_numpy(density), voxel_size=10.0)
    write_mrc(folder / "class_mask.mrc", torch.from_numpy(labels.astype(np.int16)), voxel_size=10.0)
    (folder / "particle_locations.txt").write_text("\n".join(lines) + "\n")
    (folder / "class_conversion_table.txt").write_text("0 background\n1 small\n2 large\n")
    if measured:
        tilts = 100.0 - project(torch.from_numpy(density), ANGLES)
        tilts += torch.from_numpy(generator.normal(scale=1.5, size=tilts.shape)).float()
        write_mrc(folder / "projections.mrc", tilts, voxel_size=10.0)
        # SHREC's angles have the other sign; the third column holds them.
        rows = [f"0 0 {-angle:.1f}" for angle in ANGLES]
        (folder / "alignment_simulated.txt").write_text("# comment\n" * 6 + "\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two specimens, a measured one, a style tilt-series with angles, and weights of a narrow VGG-19."""
    folder = tmp_path_factory.mktemp("data")
    _write_specimen(folder / "model_0", seed=0)
    _write_specimen(folder / "model_1", seed=1)
    _write_specimen(folder / "measured", seed=2, measured=True)
    generator = torch.Generator().manual_seed(3)
    tilts = 50.0 + 5.0 * torch.randn(len(ANGLES), 40, 36, generator=generator)
    write_mrc(folder / "style.mrc", tilts, voxel_size=10.0)
    (folder / "style.tlt").write_text("\n".join(f"{angle:.1f}" for angle in ANGLES) + "\n")
    state, channels = dict[str, Tensor](), 3
    for index, width in WIDTHS.items():
        weight = torch.randn(width, channels, 3, 3, generator=generator) * (2 / (9 * channels)) ** 0.5
        state |= {f"features.{index}.weight": weight, f"features.{index}.bias": torch.zeros(width)}
        channels = width
    torch.save(state, folder / "narrow.pth")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the example on the small data; later arguments win, and warnings are errors."""

    def start(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        specimens, style, weights = [data / "model_0", data / "model_1"], data / "style.mrc", data / "narrow.pth"
        command = _command(specimens, style, weights, output)
        return _run([*command, *arguments], tmp_path_factory.mktemp("work"))

    return start


def _command(specimens: list[Path], style: Path, weights: Path, output: Path) -> list[str]:
    files = ["--specimens", *map(str, specimens), "--style", str(style), "--weights", str(weights)]
    small = ["--patch-size=16", "--batch-size=2", "--patches-per-tomogram=4", "--lr=1e-3", "--style-layers", "1", "6"]
    return [sys.executable, "-W", "error", str(EXAMPLE), *files, "--output", str(output), *small]


def _run(command: list[str], work: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in an empty folder; nothing may be left there, nor among the temporary files."""
    (work / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(work / "temporary"), "COLUMNS": "300"}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=900)
    assert _files(work) == []
    return done


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _checkpoint(output: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(output / "checkpoint.pt", weights_only=True)
    return checkpoint


def _finished(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr


def _refused(done: subprocess.CompletedProcess[str]) -> str:
    """Check that one line says what was wrong, and return it."""
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    message = [line for line in lines if "error: " in line]
    assert len(message) == 1, done.stderr
    assert lines[-1] == message[0]
    assert "Traceback" not in done.stderr
    return message[0]


def _same(a: Any, b: Any) -> bool:
    """Compare nested containers of tensors and numbers bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.slow
def test_writes_checkpoint_and_preview_only(run: Run, data: Path, tmp_path: Path) -> None:
    """A run ends with finite losses, a checkpoint and a picture, and writes nothing else."""
    before = _files(data)
    output = tmp_path / "deep" / "run"
    done = run(output, "--steps", "4", "--paired", str(data / "measured"), "--checkpoint-every", "2")
    _finished(done)
    names = ("checkpoint.previous.pt", "checkpoint.pt", "preview.png")
    assert _files(tmp_path) == [f"deep/run/{name}" for name in names]
    assert _files(data) == before
    checkpoint = _checkpoint(output)
    assert len(checkpoint["losses"]) == 4
    assert np.isfinite(checkpoint["losses"]).all()
    assert checkpoint["settings"]["classes"] == 3
    assert done.stdout == ""
    assert "step 2: loss" in done.stderr
    assert "step 4: loss" in done.stderr
    picture = (output / "preview.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "precision"), [(0, "auto"), pytest.param(2, "float32", marks=pytest.mark.nightly)])
def test_resumed_run_equals_uninterrupted_one(run: Run, tmp_path: Path, workers: int, precision: str) -> None:
    """Stopped within an epoch and resumed, a run gives the weights of one never stopped, bit for bit."""
    options = ["--workers", str(workers), "--precision", precision]
    # An epoch has four batches: the run stops in the first epoch and ends in the second.
    _finished(run(tmp_path / "whole", "--steps", "6", *options))
    _finished(run(tmp_path / "parts", "--steps", "3", *options))
    stopped = _checkpoint(tmp_path / "parts")
    assert stopped["epoch"] == 0
    _finished(run(tmp_path / "parts", "--steps", "6", "--resume", *options))
    whole, parts = _checkpoint(tmp_path / "whole"), _checkpoint(tmp_path / "parts")
    assert whole["epoch"] == 1
    assert whole["losses"][:3] == stopped["losses"]
    assert not _same(stopped["model"], whole["model"])
    assert whole.keys() == parts.keys()
    for key in whole:
        assert _same(whole[key], parts[key]), f"{key} differs"


@pytest.mark.nightly
@pytest.mark.slow
def test_goes_on_by_itself_and_refuses_other_settings(run: Run, tmp_path: Path) -> None:
    """Without `--resume` a run goes on where a checkpoint is; other settings are named; `--no-resume` starts anew."""
    _finished(run(tmp_path, "--steps", "2"))
    first = _checkpoint(tmp_path)
    _finished(run(tmp_path, "--steps", "3"))
    assert _checkpoint(tmp_path)["losses"][:2] == first["losses"]
    for option in ([], ["--resume"]):
        message = _refused(run(tmp_path, "--steps", "4", "--lr", "0.5", "--snr", "0.3", *option))
        assert "learning_rate (was 0.001, is 0.5), noise (was" in message
        assert "--no-resume" in message
        assert "batch_size" not in message
    assert len(_checkpoint(tmp_path)["losses"]) == 3
    _finished(run(tmp_path, "--steps", "2", "--lr", "0.5", "--no-resume"))
    assert _checkpoint(tmp_path)["settings"]["learning_rate"] == 0.5
    assert len(_checkpoint(tmp_path)["losses"]) == 2


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--specimens", "nowhere"], "nowhere: expected a specimen in SHREC's layout"),
        (["--style", "nowhere.mrc"], "expected a tilt-series, found none at nowhere.mrc"),
        (["--paired", "{data}/model_1"], "projections.mrc or a single stack"),
        (["--microscope", "nowhere.json"], "expected a fitted microscope or noise model, found none at nowhere.json"),
        (["--microscope", "a.json", "--paired", "b"], "expected --paired or --microscope, got both"),
        (["--weights", "nowhere.pth"], "nowhere.pth: there is no such file"),
        (["--style-layers", "1", "29"], "weights that reach layer 29"),
        (["--patch-size", "20"], "expected --patch-size to fit its (16, 32, 32) voxels, got 20"),
        (["--patch-size", "18"], "--patch-size has to be a multiple of 4"),
        (["--quantiles", "0.9", "0.1"], "quantiles"),
        (["--resume"], "expected a checkpoint, found none at"),
        (["--output", "{data}/style.mrc"], "style.mrc"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_get_one_line(run: Run, data: Path, tmp_path: Path, arguments: list[str], expected: str) -> None:
    """What a user can get wrong is said in one line, without a traceback; no checkpoint is left."""
    message = _refused(run(tmp_path / "run", "--steps", "1", *(text.format(data=data) for text in arguments)))
    assert expected in message
    assert _files(tmp_path) == []


@pytest.mark.nightly
def test_damaged_checkpoint_gets_one_line(run: Run, tmp_path: Path) -> None:
    """A file that is no checkpoint is named, with the remedy, and left as it is."""
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    message = _refused(run(tmp_path, "--steps", "1"))
    assert "checkpoint.pt: expected a checkpoint" in message
    assert "--no-resume" in message
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"not a checkpoint"


@pytest.mark.nightly
@pytest.mark.slow
def test_error_of_a_worker_gets_one_line(run: Run, data: Path, tmp_path: Path) -> None:
    """A specimen that only a worker reads is named, too."""
    _write_specimen(tmp_path / "flat", seed=5)
    write_mrc(tmp_path / "flat" / "class_mask.mrc", torch.zeros(8, 30, 32, dtype=torch.int16), voxel_size=10.0)
    specimens = ["--specimens", str(data / "model_0"), str(tmp_path / "flat"), "--workers", "2", "--steps", "6"]
    message = _refused(run(tmp_path / "run", *specimens))
    assert "expected labels of the density's shape" in message
    assert _files(tmp_path / "run") == []


TORCHRUN = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def _two_ranks(data: Path, output: Path, work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example as two processes, as `torchrun` starts it."""
    command = _command([data / "model_0", data / "model_1"], data / "style.mrc", data / "narrow.pth", output)
    work.mkdir()
    return _run([*TORCHRUN, *command[command.index(str(EXAMPLE)) :], *arguments], work)


@pytest.mark.nightly
@pytest.mark.slow
def test_two_ranks_resume_exactly(data: Path, tmp_path: Path) -> None:
    """Two processes train one network; stopped within an epoch and resumed, it is that of a run never stopped."""
    # An epoch has two batches a rank, one tomogram each.
    _finished(_two_ranks(data, tmp_path / "whole", tmp_path / "a", "--steps", "4"))
    done = _two_ranks(data, tmp_path / "parts", tmp_path / "b", "--steps", "1")
    _finished(done)
    assert done.stderr.count("step 1: loss") == 1
    _finished(_two_ranks(data, tmp_path / "parts", tmp_path / "c", "--steps", "4", "--resume"))
    whole, parts = _checkpoint(tmp_path / "whole"), _checkpoint(tmp_path / "parts")
    assert whole["epoch"] == 1
    assert len(whole["positions"]) == 2
    for key in whole:
        assert _same(whole[key], parts[key]), f"{key} differs"
    assert _files(tmp_path / "whole") == ["checkpoint.pt", "preview.png"]


@pytest.mark.nightly
@pytest.mark.slow
def test_failing_rank_stops_the_job_and_says_why(data: Path, tmp_path: Path) -> None:
    """A specimen that only one rank reads is named; the other rank ends, too."""
    _write_specimen(tmp_path / "flat", seed=5)
    write_mrc(tmp_path / "flat" / "class_mask.mrc", torch.zeros(8, 30, 32, dtype=torch.int16), voxel_size=10.0)
    specimens = ["--specimens", str(data / "model_0"), str(tmp_path / "flat")]
    done = _two_ranks(data, tmp_path / "run", tmp_path / "work", *specimens, "--steps", "6")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("train_deepfinder: error: ")]
    # Whichever rank comes to speak before torchrun ends them all.
    assert lines
    assert all("expected labels of the density's shape" in line for line in lines)
    assert _files(tmp_path / "run") == []


@pytest.mark.nightly
@pytest.mark.slow
def test_noise_of_a_fitted_microscope(run: Run, data: Path, tmp_path: Path) -> None:
    """Its file takes the place of assumed noise, and its step that of the published one."""
    microscope = tmp_path / "microscope.json"
    noise = NoiseModel.assume(
        torch.randn(7, 8, 8, generator=torch.Generator().manual_seed(0)), np.arange(-60.0, 61.0, 20.0), snr=0.3
    )
    write_microscope(microscope, MicroscopeFile(noise=noise, style={"step_size": 0.02}))
    _finished(run(tmp_path / "run", "--steps", "2", "--microscope", str(microscope)))
    settings = _checkpoint(tmp_path / "run")["settings"]
    assert settings["step_size"] == 0.02
    assert settings["noise"] == noise.identity()


@pytest.mark.nightly
def test_on_reference_data(reference: Path, tmp_path: Path) -> None:
    """Two steps on a specimen, a measured one and the encoder of the reference data."""
    models = reference / "data" / "minishrec"
    weights = reference / "golden" / "vgg19_conv1_1_to_conv3_4.safetensors"
    measured = models / "model_2"
    command = _command([models / "model_0"], measured, weights, tmp_path / "run")
    work = tmp_path / "work"
    work.mkdir()
    _finished(_run([*command, "--paired", str(measured), "--steps", "2"], work))
    checkpoint = _checkpoint(tmp_path / "run")
    assert np.isfinite(checkpoint["losses"]).all()
    assert checkpoint["settings"]["classes"] == 16
    assert _files(tmp_path / "run") == ["checkpoint.pt", "preview.png"]
