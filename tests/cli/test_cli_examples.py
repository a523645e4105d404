"""The examples in the help of commands: they parse, stand on the files of the demo, and lead from tilts to picks."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
from _helpers import outcome
from matplotlib import pyplot
from typer.main import get_command

from faket_aug import TiltSeries
from faket_aug.cli import app
from faket_aug.cli.demo import COMMANDS
from faket_aug.demo.kept import COUNTS, MARGIN, SERIES, SHAPE, VOXEL_SIZE, keep_files
from faket_aug.formats.mrc import read_mrc
from faket_aug.formats.star import read_particles_star

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "from_tilts_to_picks.ipynb"
GROUP = get_command(app)
NAMES = sorted(GROUP.commands)  # type: ignore[attr-defined]
#: In the order in which each finds what it reads.
ORDER = ("demo", "reconstruct", "fit", "check", "simulate", "train", "pick", "score", "show", "compare")
#: What a test makes smaller.
SMALLER = {
    "fit": ["--count", "1"],
    "simulate": ["--count", "1", "--shape", "32,48,48"],
    "train": [
        *("--shape", "32,48,48", "--steps", "4", "--validate-every", "2", "--patch-size", "16", "--batch-size", "2"),
        *("--widths", "4,8,8", "--tomograms-per-epoch", "1"),
    ],
    "check": ["--steps", "2,4", "--seeds", "1", "--patch", "16"],
}


def example(name: str) -> list[str]:
    """The words of the example in a command's help."""
    text = " ".join((GROUP.commands[name].help or "").split())  # type: ignore[attr-defined]
    found = re.search(rf"As `faket-aug ({name} [^`]+)`", text)
    assert found is not None, f"the help of {name} has no example"
    return shlex.split(found[1])


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of `faket-aug`."""
    return outcome([*words], monkeypatch, capsys)


def test_every_command_is_here() -> None:
    """The order holds each command once."""
    assert sorted(ORDER) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_that_parses(name: str) -> None:
    """Every help has an example that its parser takes, and says what comes before and after."""
    words = example(name)
    GROUP.commands[name].make_context(name, words[1:])  # type: ignore[attr-defined]
    text = GROUP.commands[name].help or ""  # type: ignore[attr-defined]
    assert re.search(r"comes before it|Before\s+it\s+comes?|comes after any", text), name
    assert name in ("score", "show") or re.search(r"after\s+it", text), name
    assert "demo --keep trial" in text


def test_the_demo_says_the_examples_of_the_path() -> None:
    """The commands that the demo says are the examples of the helps."""
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        assert words == example(words[0])


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the demo."""
    folder = tmp_path_factory.mktemp("kept") / "trial"
    keep_files(folder, seed=0)
    return folder


def test_the_series_is_aligned_by_the_files_beside_it(trial: Path) -> None:
    """Angles, shifts, defocus and exposure are found, and particles lie where the truth says."""
    series = TiltSeries.read(trial / SERIES)
    found = series.metadata
    assert found is not None
    assert found.is_alignment
    assert found.shifts is not None
    assert 0 < np.abs(found.shifts).max() <= MARGIN
    assert found.defocus_um is not None
    assert np.allclose(found.defocus_um, 3.0, atol=0.1)
    assert found.exposure is not None
    (truth,) = read_particles_star(trial / "truth.star", voxel_size=VOXEL_SIZE, shape=SHAPE).values()
    assert all(0 < truth.names.count(name) <= count for name, count in COUNTS.items())
    # A particle is dark at the place where it is seen without a tilt.
    middle = series.aligned().tilts[int(np.abs(series.tilt_angles).argmin())]
    barrels = [at for name, at in zip(truth.names, truth.positions, strict=True) if name == "barrel"]
    around = [
        float(middle[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4].mean())
        for _, y, x in barrels
        if 5 < y < SHAPE[1] - 5 and 5 < x < SHAPE[2] - 5
    ]
    assert np.mean(around) < float(middle.mean()) - 1.0


def cells() -> list[dict[str, Any]]:
    """The cells of the notebook."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert isinstance(found, list)
    return found


def test_the_notebook_has_no_outputs_and_the_commands_of_the_path() -> None:
    """What git holds is the source alone; its commands are those that the demo says."""
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    text = "".join("".join(cell["source"]) for cell in code)
    joined = re.sub(r'"\n\s+"', "", text)
    assert [command for command in COMMANDS if f'"{command}"' not in joined] == []


@pytest.mark.slow
@pytest.mark.touches_global_rng  # a DataLoader draws its seed
def test_the_notebook_and_the_examples_after_it_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The notebook's cells lead from tilts to picks, then other helps' examples run; with few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pyplot, "show", pyplot.close)
    names: dict[str, Any] = {"__name__": "__main__"}

    def smaller(command: str) -> None:
        words = shlex.split(command)[1:]
        code, output, errors = run([*words, *SMALLER.get(words[0], [])], monkeypatch, capsys)
        assert code == 0, errors
        assert "written" in output, output

    for cell in cells():
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)  # as a notebook does
            names["run"] = smaller
    pictures = re.findall(r'show\("([^"]+)"\)', json.dumps(cells()).replace('\\"', '"'))
    assert len(pictures) == 6
    assert [picture for picture in pictures if not Path(picture).is_file()] == []
    tomogram, size = read_mrc("series_1_rec.mrc")
    assert (tuple(tomogram.shape), size) == ((64, 128, 128), VOXEL_SIZE)
    assert set(json.loads(Path("score/score.json").read_text())) > {"per_class"}
    for name in ("simulate", "show"):
        code, _, errors = run([*example(name), *SMALLER.get(name, [])], monkeypatch, capsys)
        assert code == 0, (name, errors)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.touches_global_rng  # a DataLoader draws its seed
@pytest.mark.parametrize("name", ["check", "compare"])
def test_the_examples_that_train_networks_run(
    trial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The check and the comparison run on the kept files alone."""
    monkeypatch.chdir(trial)
    code, _, errors = run([*example(name), *SMALLER.get(name, [])], monkeypatch, capsys)
    assert code == 0, errors


def test_keep_takes_no_settings_of_the_round_trip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would not be used is refused."""
    code, _, errors = run(["demo", "--keep", str(tmp_path / "trial"), "--steps", "3"], monkeypatch, capsys)
    assert code == 1
    assert "expected --keep without settings of the round trip, got --steps" in errors
    assert not (tmp_path / "trial").exists()
