"""examples/pretrain_finetune.py, as its user runs it."""

from __future__ import annotations

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from faket_aug import reconstruct
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from faket_aug.tomography.projection import project
from tests._helpers import ANGLES, CLASS_NAMES, generator, narrow_state, specimen, style_series, write_shrec

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pretrain_finetune.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specimen to simulate, real tomograms with picks and labels, a style series, weights of a narrow VGG-19."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(4):
        thing = specimen(number)
        write_shrec(folder / f"model_{number}", thing)
        tilts = -project(thing.density, ANGLES)
        tilts += 0.5 * torch.randn(tilts.shape, generator=generator(number))
        tomogram = reconstruct(tilts, ANGLES, depth=thing.labels.shape[0])
        write_mrc(folder / f"tomo_{number}.mrc", tomogram, voxel_size=10.0)
    style = style_series(0)
    write_mrc(folder / "style.mrc", style.tilts, voxel_size=10.0)
    write_tlt(folder / "style.tlt", style.tilt_angles)
    torch.save(narrow_state(), folder / "narrow.pth")
    return folder


def _arguments(data: Path, output: Path) -> list[str]:
    files = {
        "--specimens": [data / "model_0"],
        "--real": [data / "tomo_1.mrc", data / "tomo_2.mrc"],
        "--picks": [data / f"model_{number}" / "particle_locations.txt" for number in (1, 2)],
        "--style": [data / "style.mrc"],
        "--weights": [data / "narrow.pth"],
        "--output": [output],
    }
    small = ["--patch-size=8", "--batch-size=2", "--patches-per-tomogram=4", "--widths", "4", "4", "4", "--lr=1e-3"]
    small += ["--style-layers", "1", "6", "--pretrain-steps=3", "--finetune-steps=2", "--radius=40"]
    return [*small, *(text for option, paths in files.items() for text in (option, *map(str, paths)))]


def _run(data: Path, output: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLE), *_arguments(data, output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_trains_and_scores(data: Path, tmp_path: Path) -> None:
    """All networks are trained and scored; the same command again finds all done and scores the same."""
    test = ["--test", str(data / "tomo_3.mrc"), "--test-picks", str(data / "model_3" / "particle_locations.txt")]
    options = ["--from-scratch", "--real-share", "0.5", "1", *test]
    printed = _run(data, tmp_path, *options)
    names = ["pretrained", "finetuned", "scratch, 2 steps", "scratch, 5 steps"]
    assert [line.split(":")[0] for line in printed.splitlines()] == names
    rows = list(csv.reader((tmp_path / "scores.csv").read_text().splitlines()))
    assert rows[0] == ["network", "mean", "large", "small"]
    assert [row[0] for row in rows[1:]] == names
    assert all(0 <= float(value) <= 1 for row in rows[1:] for value in row[1:])
    folders = ("pretrained", "finetuned", "scratch_2", "scratch_5")
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in folders]
    assert [len(state["losses"]) for state in states] == [3, 2, 2, 5]
    assert states[2]["losses"] == states[3]["losses"][:2]
    assert states[0]["losses"][0] != states[1]["losses"][0] != states[2]["losses"][0]
    before = {path: path.read_bytes() for path in tmp_path.glob("*/checkpoint.pt")}
    assert _run(data, tmp_path, *options) == printed
    assert {path: path.read_bytes() for path in tmp_path.glob("*/checkpoint.pt")} == before


@pytest.mark.slow
def test_labels_are_targets(data: Path, tmp_path: Path) -> None:
    """With labels of every voxel no spheres are drawn, which gives other losses."""
    labels = [str(data / f"model_{number}" / "class_mask.mrc") for number in (1, 2)]
    _run(data, tmp_path / "labels", "--labels", *labels)
    _run(data, tmp_path / "spheres")
    found = [
        torch.load(tmp_path / name / "finetuned" / "checkpoint.pt", weights_only=True) for name in ("labels", "spheres")
    ]
    assert found[0]["losses"] != found[1]["losses"]
    assert not (tmp_path / "labels" / "scores.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--specimens", "nowhere"], "nowhere"),
        (["--real", "nowhere.mrc", "b.mrc"], "expected an MRC file, found none at nowhere.mrc"),
        (
            ["--picks", "{data}/strangers.txt"],
            "strangers.txt: expected class names of class_conversion_table.txt (small, ",
        ),
        (["--picks", "{data}/outside.txt"], "1 outside, the first in row 1 at [4.0, 5.0, 900.0]"),
        (["--labels", "{data}/tomo_0.mrc", "b.mrc"], "tomo_0.mrc: expected whole class numbers"),
    ],
)
def test_mistakes_get_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    (data / "strangers.txt").write_text("stranger 4 5 6\n")
    (data / "outside.txt").write_text(f"{CLASS_NAMES[1]} 900 5 4\n")
    given = [text.format(data=data) for text in arguments]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *_arguments(data, tmp_path), *given])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    message = str(caught.value.code)
    assert expected in message
    assert message.startswith("pretrain_finetune: error: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--labels", "one.mrc"], "expected --labels for each of 2 --real, got 1"),
        (["--test", "one.mrc"], "expected --test and --test-picks together"),
    ],
)
def test_bad_command_lines(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *_arguments(data, tmp_path), *arguments])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert expected in capsys.readouterr().err
