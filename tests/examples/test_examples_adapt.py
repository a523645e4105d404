"""examples/adapt_simulations.py, as its user runs it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from faket_aug import project
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from tests._helpers import ANGLES, narrow_state, specimen, style_series, write_shrec

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "adapt_simulations.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stacks that were simulated elsewhere with labels and picks, a style series and weights of a narrow VGG-19."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(2):
        thing = specimen(number)
        write_shrec(folder / f"model_{number}", thing)
        write_mrc(folder / f"sim_{number}.mrc", -project(thing.density, ANGLES), voxel_size=10.0)
        write_tlt(folder / f"sim_{number}.tlt", np.array(ANGLES))
    style = style_series(0)
    write_mrc(folder / "style.mrc", style.tilts, voxel_size=10.0)
    write_tlt(folder / "style.tlt", style.tilt_angles)
    torch.save(narrow_state(), folder / "narrow.pth")
    return folder


def _arguments(data: Path, output: Path) -> list[str]:
    models = [data / f"model_{number}" for number in range(2)]
    files = {
        "--tilts": [data / f"sim_{number}.mrc" for number in range(2)],
        "--labels": [model / "class_mask.mrc" for model in models],
        "--picks": [model / "particle_locations.txt" for model in models],
        "--style": [data / "style.mrc"],
        "--weights": [data / "narrow.pth"],
        "--output": [output],
    }
    small = ["--patch-size=8", "--batch-size=2", "--style-layers", "1", "6", "--lr=1e-3"]
    return [*small, *(text for option, paths in files.items() for text in (option, *map(str, paths)))]


def _run(data: Path, output: Path, *arguments: str) -> None:
    """Run the example as its user does."""
    command = [sys.executable, "-W", "error", str(EXAMPLE), *_arguments(data, output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_picture_only(data: Path, tmp_path: Path) -> None:
    """Without steps there is a picture, and nothing else."""
    _run(data, tmp_path, "--steps", "0")
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]
    assert (tmp_path / "preview.png").stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [False, True])
def test_trains_and_goes_on(data: Path, tmp_path: Path, noisy: bool) -> None:
    """Trained on clean or on noisy tilts, a stopped run goes on to the weights of one never stopped."""
    how = ["--noisy"] if noisy else []
    for folder, steps in (("whole", "3"), ("parts", "1"), ("parts", "3")):
        _run(data, tmp_path / folder, "--steps", steps, *how)
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    assert len(whole["losses"]) == 3
    assert whole["losses"] == parts["losses"]
    assert all(torch.equal(parts["model"][name], value) for name, value in whole["model"].items())
    assert (whole["settings"]["noise"] == "given") == noisy
    # Whether there is a checkpoint before the last one depends on the number of steps.
    names = {path.name for path in (tmp_path / "whole").iterdir()} - {"checkpoint.previous.pt"}
    assert sorted(names) == ["checkpoint.pt", "log.csv", "preview.png"]


@pytest.mark.touches_global_rng
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tilts", "nowhere.mrc", "b.mrc"], "expected a tilt-series, found none at nowhere.mrc"),
        (["--picks", "nowhere.txt", "b.txt"], "nowhere.txt"),
        (["--patch-size", "20"], "expected a patch that fits the tomogram of (16, 24, 32) voxels"),
        (["--labels", "{data}/style.mrc", "{data}/style.mrc"], "expected whole class numbers from 0 to 255"),
    ],
)
def test_mistakes_get_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    given = [text.format(data=data) for text in arguments]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *_arguments(data, tmp_path), "--steps", "1", *given])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    message = str(caught.value.code)
    assert expected in message
    assert message.startswith("adapt_simulations: error: ")
    assert "\n" not in message


def test_numbers_of_files_have_to_agree(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *_arguments(data, tmp_path), "--labels", "one.mrc"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "expected --labels for each of 2 --tilts, got 1" in capsys.readouterr().err
