"""`faket-aug train`: what a run leaves, going on bit for bit, fine-tuning, and what a user can get wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
import torch
from _helpers import blobs, noise_model, specimen, write_shrec
from _helpers import outcome as program_outcome
from PIL import Image

from faket_aug.cli import main
from faket_aug.cli._commands import in_option_names, option_names
from faket_aug.cli._like import read_like
from faket_aug.cli._train_options import SETTINGS, read_work
from faket_aug.cli._training import _watched, make_run
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.star import read_particles_star
from faket_aug.microscope.flavours import low_passed
from faket_aug.picking import load_picker
from faket_aug.picking.checkpoints import BEST, CHECKPOINT, read_checkpoint, read_state, write_state
from faket_aug.picking.logs import read_log
from faket_aug.simulation.saving import is_whole, read_record_file
from faket_aug.training.train import PickerRun

Command = Callable[..., str]
#: Specimens and a network that are small; a training of two validations.
SMALL: tuple[object, ...] = (
    *("--counts", "6", "--shape", "16,24,32", "--tilt-angles", "-50:50:25", "--snr", "0.5", "--seed", "3"),
    *("--patch-size", "8", "--batch-size", "4", "--widths", "4,8,8", "--patches-per-tomogram", "8"),
    *("--tomograms-per-epoch", "2", "--precision", "float32"),
)
STEPS: tuple[object, ...] = ("--steps", "6", "--validate-every", "3", "--checkpoint-every", "2")


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the maps of two particles."""
    folder = tmp_path_factory.mktemp("templates")
    write_mrc(folder / "small.mrc", blobs((9, 9, 9), [(4, 4, 4)], 1.2), voxel_size=10.0)
    write_mrc(folder / "long.mrc", blobs((11, 9, 9), [(4, 4, 4), (7, 4, 4)], 1.2), voxel_size=10.0)
    return folder


def outcome(
    arguments: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit status, output and errors of `faket-aug train`."""
    return program_outcome(["train", *arguments], monkeypatch, capsys)


@pytest.fixture
def subcommand() -> tuple[str, ...]:
    return ("train",)


@pytest.fixture(scope="module")
def whole(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    arguments = ["train", "--templates", templates, *SMALL, *STEPS, "--output", folder]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["faket-aug", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return folder


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes as long as the rest of a small run: it is drawn where one is looked at."""
    draw = PickerRun._draw

    def where_watched(run: PickerRun, *given: Any) -> None:
        if run.data.watched is not None:
            draw(run, *given)

    monkeypatch.setattr(PickerRun, "_draw", where_watched)


def weights(folder: Path, name: str = CHECKPOINT) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_state(folder / name)["model"]
    return found


def check_same(folder: Path, other: Path) -> None:
    """Two runs have the same weights, history and log."""
    for name in (CHECKPOINT, BEST):
        mine, theirs = weights(folder, name), weights(other, name)
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    for key in ("losses", "validations", "scores", "picker"):
        assert read_checkpoint(folder)[key] == read_checkpoint(other)[key], key
    assert (folder / "log.csv").read_bytes() == (other / "log.csv").read_bytes()


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_a_run(whole: Path) -> None:
    """Weights, log, picture, settings and validation tomograms are there, and say what they should."""
    names = {entry.name for entry in whole.iterdir()}
    assert names == {
        *("best.pt", "checkpoint.pt", "checkpoint.previous.pt", "log.csv", "settings.toml", "training.png"),
        "validation",
    }
    history = read_checkpoint(whole)
    assert len(history["losses"]) == 6
    assert [step for step, _ in history["validations"]] == [3, 6]
    scores = dict(history["scores"])
    assert set(scores[3]) == {"F1 long", "F1 small"}
    assert dict(history["validations"])[6] == pytest.approx(1 - (scores[6]["F1 long"] + scores[6]["F1 small"]) / 2)
    assert read_log(whole / "log.csv")[6]["F1 small"] == pytest.approx(scores[6]["F1 small"])
    with Image.open(whole / "training.png") as picture:
        assert picture.width > 2000
        assert len(picture.convert("L").getcolors() or []) > 50


def test_its_network(whole: Path) -> None:
    """`load_picker` gives the network with all that a tomogram is checked against."""
    picker = load_picker(whole)
    made = picker.description
    assert made.class_names == {1: "long", 2: "small"}
    assert made.widths == (4, 8, 8)
    assert (made.voxel_size, made.filter, made.bin, made.ctf_correction) == (10.0, "shrec", 1, None)
    assert made.target_radius == 0.6
    assert made.distractors == ()
    # Two blobs have about twice the volume of one.
    assert 10 < made.radii[2] < made.radii[1] < 1.4 * made.radii[2] < 60
    assert set(made.thresholds) == {1, 2}
    assert picker.network.__dict__["preparation"].patch_size == (8, 8, 8)


def test_its_validation_tomogram(whole: Path) -> None:
    """A tomogram as `simulate` writes it, with particles of both classes, which the training never saw."""
    folder = whole / "validation" / "tomogram_0000"
    assert is_whole(folder)
    volume, size = read_mrc(folder / "reconstruction.mrc")
    assert tuple(volume.shape) == (16, 24, 32)
    assert size == 10.0
    listed = read_particles_star(folder / "particles_relion5.star", voxel_size=10.0, shape=(16, 24, 32))
    assert sorted(set(listed["tomogram_0000"].names)) == ["long", "small"]
    assert len(listed["tomogram_0000"]) == 12


def test_a_tomogram_like_its_own(whole: Path) -> None:
    """`reconstruct --like` takes filter, flavours, voxel size and depth from a run."""
    expected = {"filter": "shrec", "flavours": ("raw",), "depth": 16, "voxel_size": 10.0}
    assert read_like(whole) == read_like(whole / BEST) == expected


def test_its_settings_are_read(whole: Path, command: Command, templates: Path, tmp_path: Path) -> None:
    """The file that a run writes makes the same run again, also from elsewhere; the command line goes before it."""
    content = tomllib.loads((whole / "settings.toml").read_text())
    assert content["templates"] == [str(templates)]
    assert content["widths"] == [4, 8, 8]
    command("--config", whole / "settings.toml", "--output", tmp_path / "again")
    check_same(tmp_path / "again", whole)
    command("--config", whole / "settings.toml", "--output", tmp_path / "other", "--steps", 1, "--seed", 4)
    assert len(read_checkpoint(tmp_path / "other")["losses"]) == 1


CURRICULUM = """
variation = { 0 = "standard", 2 = { missing = [0.0, 0.5], filter = "ramp" } }

[[mixture]]
snr = 0.5

[[mixture]]
weight = { 0 = 0, 1 = 1 }
modality = "noiseless"
variation = "none"
"""


def test_a_curriculum_of_a_mixture(command: Command, templates: Path, tmp_path: Path) -> None:
    """Simulators and ranges change with the epochs; the run's file says them again, and records tell what was drawn."""
    (tmp_path / "own.toml").write_text(CURRICULUM)
    snr = SMALL.index("--snr")
    own = ["--templates", templates, *SMALL[:snr], *SMALL[snr + 2 :], *STEPS]
    command(*own, "--config", tmp_path / "own.toml", "--output", tmp_path / "run")
    content = tomllib.loads((tmp_path / "run" / "settings.toml").read_text())
    assert content["mixture"][1]["variation"] == "none"
    assert content["mixture"][1]["weight"] == {"0": 0.0, "1": 1.0}
    assert content["variation"]["0"] == "standard"
    assert content["variation"]["2"]["missing"] == [0.0, 0.5]
    command("--config", tmp_path / "run" / "settings.toml", "--output", tmp_path / "again")
    check_same(tmp_path / "run", tmp_path / "again")
    record = read_record_file(tmp_path / "run" / "validation" / "tomogram_0000" / "record.json")["record"]
    assert record["settings"]["drawn"]["simulator"] in (0, 1)
    told = read_checkpoint(tmp_path / "run")["settings"]["mixture"]
    assert [one["modality"] for one in told] == ["noisy", "noiseless"]
    plain = ["--config", tmp_path / "run" / "settings.toml", "--mixture", "snr=0.5", "--output", tmp_path / "plain"]
    command(*plain)
    assert read_checkpoint(tmp_path / "plain")["losses"] != read_checkpoint(tmp_path / "run")["losses"]


def test_nothing_in_place_of_a_default_is_kept(command: Command, templates: Path, tmp_path: Path) -> None:
    """`--variation none` stands in the file, and means the same there."""
    own = ["--templates", templates, *SMALL, "--steps", 1]
    command(*own, "--variation", "none", "--output", tmp_path / "run")
    content = tomllib.loads((tmp_path / "run" / "settings.toml").read_text())
    assert content["variation"] == "none"
    assert "patience" not in content
    command("--config", tmp_path / "run" / "settings.toml", "--output", tmp_path / "again")
    losses = [read_checkpoint(tmp_path / name)["losses"] for name in ("run", "again")]
    assert losses[0] == losses[1]
    command(*own, "--output", tmp_path / "varied")
    assert read_checkpoint(tmp_path / "varied")["losses"] != losses[0]


def test_the_same_command_goes_on(whole: Path, command: Command, templates: Path, tmp_path: Path) -> None:
    """A training that ended after fewer steps goes on, bit for bit; once done, it is left as it is."""
    run = tmp_path / "run"
    own = ["--templates", templates, *SMALL, *STEPS]
    command(*own, "--output", run, "--steps", 4)
    assert len(read_checkpoint(run)["losses"]) == 4
    kept = (run / "validation" / "tomogram_0000" / "reconstruction.mrc").stat().st_mtime_ns
    said = command(*own, "--output", run)
    # Its validation after step 4 was the last one of the shorter training.
    assert [step for step, _ in read_checkpoint(run)["validations"]] == [3, 4, 6]
    assert read_checkpoint(run)["losses"] == read_checkpoint(whole)["losses"]
    assert all(torch.equal(weights(run)[name], value) for name, value in weights(whole).items())
    assert (run / "validation" / "tomogram_0000" / "reconstruction.mrc").stat().st_mtime_ns == kept
    assert said.splitlines()[0] == "trained 6 steps"
    before = weights(run)
    assert command(*own, "--output", run) == said
    assert all(torch.equal(weights(run)[name], value) for name, value in before.items())


def test_a_run_of_before_goes_on_without_an_average(
    whole: Path, command: Command, refused: Command, templates: Path, tmp_path: Path
) -> None:
    """By default weights are averaged; a run that was begun before there was an average is gone on with as it was."""
    state = read_state(whole / CHECKPOINT)
    assert state["settings"]["average"] == 0.99
    assert not all(torch.equal(state["model"][name], one) for name, one in state["trained_model"].items())
    shutil.copytree(whole, tmp_path / "run")
    del state["settings"]["average"]
    write_state(tmp_path / "run" / CHECKPOINT, state | {"model": state.pop("trained_model")})
    own = ["--templates", templates, *SMALL, *STEPS, "--output", tmp_path / "run"]
    for _ in range(2):
        command(*own, "--steps", 7)
    after = read_checkpoint(tmp_path / "run")
    assert len(after["losses"]) == 7
    assert after["settings"]["average"] == 0
    assert "trained_model" not in after
    assert "got other average (was 0.0, is 0.5)" in refused(*own, "--average", 0.5)


def test_chosen_classes(command: Command, templates: Path, tmp_path: Path) -> None:
    """What is not among the classes is simulated and is background; the same as a distractor."""
    own = [*SMALL, "--steps", 1]
    command("--templates", templates, "--classes", "SMALL", *own, "--output", tmp_path / "run")
    made = load_picker(tmp_path / "run").description
    assert made.class_names == {1: "small"}
    assert made.distractors == ("long",)
    labels, _ = read_mrc(tmp_path / "run" / "validation" / "tomogram_0000" / "class_mask.mrc")
    assert labels.unique().tolist() == [0, 1]
    files = ["--templates", templates / "small.mrc", "--distractors", templates / "long.mrc"]
    command(*files, *own, "--output", tmp_path / "other")
    assert load_picker(tmp_path / "other").description.class_names == {1: "small"}
    assert load_picker(tmp_path / "other").description.distractors == ("long",)


def test_membranes_and_beads_are_background(command: Command, templates: Path, tmp_path: Path) -> None:
    """Particles alone are learned by default."""
    more = ["--membranes", "sphere.count=1,sphere.radius=60", "--fiducials", "count=1,radius=20"]
    command("--templates", templates, *SMALL, *more, "--counts", 2, "--steps", 1, "--output", tmp_path / "run")
    assert load_picker(tmp_path / "run").description.class_names == {1: "long", 2: "small"}


def test_specimens_of_files(command: Command, tmp_path: Path) -> None:
    """Specimens are read; the last ones are held out for the validation; radii come from their labels."""
    for seed in range(3):
        write_shrec(tmp_path / "models" / f"model_{seed}", specimen(seed))
    own = ["--specimens", tmp_path / "models", *SMALL[2:], "--classes", "large", "--steps", "2"]
    command(*own[:2], *[one for one in own[2:] if one not in ("--shape", "16,24,32")], "--output", tmp_path / "run")
    made = load_picker(tmp_path / "run").description
    assert made.class_names == {1: "large"}
    assert made.distractors == ("small", "rare")
    # Balls of 33 voxels of 10 Å, less where they overlap.
    assert made.radii[1] == pytest.approx(10 * (33 * 3 / (4 * np.pi)) ** (1 / 3), rel=0.15)
    listed = read_particles_star(
        tmp_path / "run" / "validation" / "tomogram_0000" / "particles_relion5.star",
        voxel_size=10.0,
        shape=(16, 24, 32),
    )
    expected = specimen(2).particles.positions[specimen(2).particles.classes == 2]
    assert np.allclose(listed["tomogram_0000"].positions, expected, atol=0.01)


def test_a_simulated_set_is_read(
    command: Command,
    templates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What `simulate` wrote serves as specimens, also without SHREC's list."""
    options = ["--templates", templates, "--counts", "3", "--shape", "16,24,32", "--tilt-angles=-50:50:25"]
    arguments = ["simulate", tmp_path / "set", *options, "--snr", "1", "--formats", "star5"]
    monkeypatch.setattr(sys, "argv", ["faket-aug", *map(str, arguments)])
    with pytest.raises(SystemExit):
        main()
    capsys.readouterr()
    own = [one for one in SMALL[2:] if one not in ("--shape", "16,24,32")]
    command("--specimens", tmp_path / "set", *own, "--steps", "1", "--output", tmp_path / "run")
    assert load_picker(tmp_path / "run").description.class_names == {1: "long", 2: "small"}


# --- real tomograms ---------------------------------------------------------------------------------------------------


@pytest.fixture
def real(whole: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A labelled tomogram, and its picks as a plain table."""
    folder = whole / "validation" / "tomogram_0000"
    volume, _ = read_mrc(folder / "reconstruction.mrc")
    write_mrc(tmp_path / "real.mrc", volume, voxel_size=10.1)
    listed = read_particles_star(folder / "particles_relion5.star", voxel_size=10.0, shape=(16, 24, 32))
    own = listed["tomogram_0000"]
    rows = [f"{name},{x},{y},{z}" for name, (z, y, x) in zip(own.names, own.positions, strict=True)]
    (tmp_path / "picks.csv").write_text("\n".join(["class,x,y,z", *rows, "other,3,3,3"]) + "\n")
    return tmp_path / "real.mrc", tmp_path / "picks.csv"


def test_real_tomograms_are_mixed_in(
    command: Command, real: tuple[Path, Path], templates: Path, tmp_path: Path, whole: Path
) -> None:
    """With a share they are trained on and scored; without one they are scored alone, and their score counts."""
    own = ["--templates", templates, *SMALL, *STEPS, "--real-tomograms", real[0], "--real-picks", real[1]]
    command(*own, "--output", tmp_path / "mixed")
    mixed = read_checkpoint(tmp_path / "mixed")
    assert set(dict(mixed["scores"])[6]) == {"F1 long", "F1 small", "real F1 long", "real F1 small"}
    assert mixed["losses"] != read_checkpoint(whole)["losses"]
    command(*own, "--output", tmp_path / "watched", "--real-share", 0)
    watched = read_checkpoint(tmp_path / "watched")
    assert watched["losses"] == read_checkpoint(whole)["losses"]
    found = dict(watched["scores"])[3]
    number = 1 - (found["real F1 long"] + found["real F1 small"]) / 2
    assert dict(watched["validations"])[3] == pytest.approx(number)


def test_flavours_as_channels(
    command: Command,
    refused: Command,
    templates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The network sees several flavours of all tomograms, and so does `pick`; the first one is the tomogram."""
    own = ["--templates", templates, *SMALL, "--flavours", "low-pass,raw", "--low-pass", 40, "--steps", 1]
    command(*own, "--output", tmp_path / "run")
    picker = load_picker(tmp_path / "run")
    assert picker.description.channels == ("low-pass", "raw")
    assert picker.description.kind == "low-pass"
    assert picker.network.in_channels == 2
    folder = tmp_path / "run" / "validation" / "tomogram_0000"
    assert is_whole(folder)
    first, raw = (read_mrc(folder / f"reconstruction{name}.mrc")[0] for name in ("", "_raw"))
    assert torch.allclose(first, low_passed(raw, 10.0, 40.0), atol=1e-5)
    assert read_record_file(folder / "record.json")["record"]["settings"]["flavour"] == "low-pass"
    # The validation tomogram as a real one, which has the same score.
    listed = read_particles_star(folder / "particles_relion5.star", voxel_size=10.0, shape=(16, 24, 32))
    rows = [f"{name},{x},{y},{z}" for name, (z, y, x) in zip(*_named(listed["tomogram_0000"]), strict=True)]
    (tmp_path / "picks.csv").write_text("\n".join(["class,x,y,z", *rows]) + "\n")
    shutil.copy(folder / "reconstruction.mrc", tmp_path / "real.mrc")
    real = ["--real-tomograms", tmp_path / "real.mrc", "--real-picks", tmp_path / "picks.csv"]
    beside = tmp_path / "real_raw.mrc"
    line = refused(*own, *real, "--output", tmp_path / "other")
    assert f"the flavour raw of the tomogram, which the picker sees, too, beside it, found none at {beside}" in line
    shutil.copy(folder / "reconstruction_raw.mrc", beside)
    command(*own, *real, "--real-share", 0, "--output", tmp_path / "mixed")
    ((_, scores),) = read_checkpoint(tmp_path / "mixed")["scores"]
    assert scores["real F1 long"] == pytest.approx(scores["F1 long"])
    assert tomllib.loads((tmp_path / "mixed" / "settings.toml").read_text())["flavours"] == ["low-pass", "raw"]
    watched = _watched({"watch": tmp_path / "real.mrc"}, ("low-pass", "raw"))
    assert watched is not None
    assert torch.equal(watched.slab, torch.stack([first, raw]))
    assert watched.probabilities(picker.network, precision="float32", device="cpu").shape == (2, 24, 32)
    other = tuple("raw" if one == "low-pass,raw" else one for one in own)
    assert "got other flavours (was ['low-pass', 'raw'], is ['raw'])" in refused(*other, "--output", tmp_path / "run")
    arguments = ["pick", tmp_path / "run", folder, "--output", tmp_path / "found.star", "--no-control"]
    monkeypatch.setattr(sys, "argv", ["faket-aug", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    depends_on = json.loads((tmp_path / "found" / "tomogram_0000.json").read_text())["depends_on"]
    assert depends_on["channels"]["raw"][0] == str(folder / "reconstruction_raw.mrc")
    assert "expected a tomogram made as those" not in capsys.readouterr().err


def test_a_corrected_flavour_first(templates: Path, tmp_path: Path) -> None:
    """`reconstruct --like` corrects a measured tomogram as the first flavour says."""
    given = {"shape": "16,24,32", "patch_size": "8", "counts": "6", "snr": "0.5", "ctf": "defocus=3"}
    for more in ({"flavours": "wiener,raw"}, {"flavour": "wiener"}, {"ctf_correction": "wiener"}):
        work = read_work(tmp_path / "run", None, {"templates": [str(templates)], **given, **more})
        made = make_run(work).description
        assert (made.kind, made.ctf_correction) == ("wiener", "wiener")


def _named(particles: ParticleList) -> tuple[Sequence[str], Any]:
    return particles.names, particles.positions


def test_a_watched_tomogram(command: Command, templates: Path, tmp_path: Path, whole: Path) -> None:
    """The picture shows it, and nothing else changes."""
    write_mrc(tmp_path / "mine.mrc", torch.randn(20, 30, 40, generator=torch.Generator().manual_seed(1)), voxel_size=10)
    own = ["--templates", templates, *SMALL, *STEPS, "--watch", tmp_path / "mine.mrc"]
    command(*own, "--output", tmp_path / "run")
    check_same(tmp_path / "run", whole)
    with Image.open(tmp_path / "run" / "training.png") as mine, Image.open(whole / "training.png") as other:
        assert np.asarray(mine).tobytes() != np.asarray(other).tobytes()


def test_fine_tuning(command: Command, real: tuple[Path, Path], tmp_path: Path, whole: Path) -> None:
    """A run begins with another's weights and settings, and a lower learning rate; it goes on by itself."""
    own = ["--resume-from", whole, "--real-tomograms", real[0], "--real-picks", real[1], "--output", tmp_path / "tuned"]
    command(*own, "--steps", 1, "--validate-every", 1)
    tuned = read_checkpoint(tmp_path / "tuned")
    assert tuned["settings"]["learning_rate"] == 1e-4
    assert tuned["settings"]["widths"] == [4, 8, 8]
    best, after = weights(whole, BEST), weights(tmp_path / "tuned")
    moved = max(float((after[name] - value).abs().max()) for name, value in best.items())
    # Adam's first step moves each weight by the learning rate.
    assert 0 < moved < 1.1e-4
    command(*own, "--steps", 2, "--validate-every", 1)
    assert len(read_checkpoint(tmp_path / "tuned")["losses"]) == 2


# --- stops ------------------------------------------------------------------------------------------------------------


def test_a_time_limit(command: Command, templates: Path, tmp_path: Path, whole: Path) -> None:
    """The time is over after a step or so; the same command goes on to the end."""
    own = ["--templates", templates, *SMALL, *STEPS, "--output", tmp_path / "run", "--time-limit", 1e-9]
    said = command(*own)
    assert "of 6, the time is over; run the same command again to go on" in said
    for _ in range(6):
        said = command(*own)
    assert said.splitlines()[0] == "trained 6 steps"
    check_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal(templates: Path, tmp_path: Path, number: signal.Signals, status: int) -> None:
    """A checkpoint of the last step, one line, the exit status; the same command goes on."""
    code = (
        "import os\nfrom faket_aug.cli import main\nfrom faket_aug.picking import run\nstep = run.TrainingRun.step\n"
        "def stopped(self, *given):\n    value = step(self, *given)\n    if len(self.history.losses) == 5:\n"
        f"        os.kill(os.getpid(), {int(number)})\n    return value\nrun.TrainingRun.step = stopped\nmain()\n"
    )
    own = [
        "train",
        "--templates",
        str(templates),
        *map(str, SMALL),
        *map(str, STEPS),
        "--output",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *own],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    said = f"faket-aug: stopped by {number.name}; run the same command again to finish"
    assert done.stderr.strip().splitlines()[-1] == said
    assert len(read_checkpoint(tmp_path / "run")["losses"]) == 5


@pytest.mark.slow
def test_two_processes(templates: Path, tmp_path: Path) -> None:
    """`torchrun` trains on two ranks: one of them writes and speaks, and the same command goes on."""
    own = ["train", "--templates", templates, *SMALL, *STEPS, "--output", tmp_path / "run"]
    call = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    call += [sys.executable, "-c", "from faket_aug.cli import main; main()", *map(str, own)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    for steps in ("4", "6"):
        done = subprocess.run(
            [*call, "--steps", steps], env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"trained {steps} steps") == 1
    checkpoint = read_checkpoint(tmp_path / "run")
    assert len(checkpoint["losses"]) == 6
    assert len(checkpoint["positions"]) == 2
    assert set(load_picker(tmp_path / "run").description.thresholds) == {1, 2}


# --- what a user can get wrong ----------------------------------------------------------------------------------------


def test_other_settings_are_refused(refused: Command, templates: Path, whole: Path) -> None:
    """A training goes on with its own settings only; the message names what differs, and nothing is changed."""
    before = (whole / "settings.toml").read_bytes()
    line = refused("--templates", templates, *SMALL, *STEPS, "--output", whole, "--batch-size", 2)
    assert (
        f"{whole}: expected the settings that this training was begun with, got other batch_size (was 4, is 2)" in line
    )
    assert "set --output to another folder" in line
    assert (whole / "settings.toml").read_bytes() == before


def test_another_microscope_is_refused(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """A training does not go on with a microscope's file of another content, at the same path."""
    path, own = tmp_path / "microscope.json", [one for one in SMALL if one not in ("--snr", "0.5")]
    own = ["--templates", templates, *own, "--microscope", path, "--output", tmp_path / "run", "--steps"]
    path.write_text(noise_model(0).to_json())
    command(*own, 1)
    path.write_text(noise_model(1).to_json())
    assert "expected the settings that this training was begun with, got other microscope" in refused(*own, 2)
    path.write_text(noise_model(0).to_json())
    command(*own, 2)


def test_a_run_without_a_note_of_its_microscope_goes_on(
    refused: Command,
    templates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What an earlier version began goes on, with a warning; what it began without a microscope gets none."""
    path, run = tmp_path / "microscope.json", tmp_path / "run"
    path.write_text(noise_model(0).to_json())
    own = [one for one in SMALL if one not in ("--snr", "0.5")]
    own = ["--templates", templates, *own, "--microscope", path, "--output", run]
    assert outcome([*own, "--steps", 1], monkeypatch, capsys)[0] == 0
    saved = read_state(run / CHECKPOINT)
    assert saved["settings"].pop("microscope")
    write_state(run / CHECKPOINT, {name: one for name, one in saved.items() if name != "format"})
    code, _, errors = outcome([*own, "--steps", 2], monkeypatch, capsys)
    assert code == 0, errors
    assert "did not note what the microscope's file held; it goes on with the present file" in " ".join(errors.split())
    assert "microscope" not in read_state(run / CHECKPOINT)["settings"]
    text = (run / "settings.toml").read_text()
    (run / "settings.toml").write_text(re.sub("(?m)^microscope = .*$", "", text))
    assert "got other microscope (was None" in refused(*own, "--steps", 3)


def test_a_failed_try_leaves_nothing_that_refuses(command: Command, templates: Path, tmp_path: Path) -> None:
    """A training that was stopped before its first checkpoint is begun anew with other settings and tomograms."""
    own = ["--templates", templates, *SMALL, "--steps", 1, "--output", tmp_path / "run"]
    command(*own)
    (tmp_path / "run" / CHECKPOINT).unlink()
    (tmp_path / "run" / BEST).unlink()
    path = tmp_path / "run" / "validation" / "tomogram_0000" / "record.json"
    before = read_record_file(path)["origin"]["settings"]
    command(*own, "--snr", 5)
    after = read_record_file(path)["origin"]["settings"]
    assert {name for name in before if before[name] != after[name]} == {"snr"}
    assert read_checkpoint(tmp_path / "run")["losses"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--templates", "gone"], "gone"),
        ([], "expected particles to learn, got none; set --templates, or --specimens of files"),
        (
            ["--templates", "TEMPLATES", "--specimens", "mine"],
            "expected either specimens from files (set --specimens) or",
        ),
        (["--templates", "TEMPLATES", "--classes", "tall"], "expected --classes among long, small, got tall"),
        (["--templates", "TEMPLATES", "--patch-size", "10"], "expected --patch-size to be a multiple of 4, got 10"),
        (
            ["--templates", "TEMPLATES", "--patch-size", "32"],
            "expected --patch-size of at most the specimens' 16 voxels",
        ),
        (["--templates", "TEMPLATES", "--steps", "0"], "expected --steps to be a whole number of 1 or more, got 0"),
        (["--templates", "TEMPLATES", "--average", "1"], "expected --average below 1, got 1"),
        (
            ["--templates", "TEMPLATES", "--flavours", "raw,wiener"],
            "expected --ctf, or noise with a `response`, for 'wiener' in --flavours, got neither",
        ),
        (["--templates", "TEMPLATES", "--flavours", "raw,raw"], "expected each of --flavours once, got"),
        (["--templates", "TEMPLATES", "--flavours", "raw,sharp"], "expected --flavours to be"),
        (
            ["--templates", "TEMPLATES", "--flavours", "raw", "--flavour", "low-pass"],
            "expected no other flavour beside --flavours, which say what the network sees, got 'low-pass'; leave "
            "--flavour and --ctf-correction out",
        ),
        (
            ["--templates", "TEMPLATES", "--flavours", "raw,low-pass", "--variation", "flavour=raw,low-pass"],
            "expected a --variation that draws no flavours beside --flavours, which say what the network sees",
        ),
        (["--templates", "TEMPLATES", "--steps", "many"], "expected --steps to be a whole number, got 'many'"),
        (["--templates", "TEMPLATES", "--widths", "4,8"], "expected --widths of three levels"),
        (["--templates", "TEMPLATES", "--precision", "float16"], "expected --precision to be one of 'auto', 'float32'"),
        (["--templates", "TEMPLATES", "--target-radius", "0"], "expected --target-radius to be more than 0, got 0"),
        (["--templates", "TEMPLATES", "--time-limit", "0"], "expected --time-limit to be more than 0, got 0"),
        (
            ["--templates", "TEMPLATES", "--watch", "gone.mrc"],
            "expected a tomogram for --watch, found none at gone.mrc",
        ),
        (["--templates", "TEMPLATES", "--watch", "fine.mrc"], "fine.mrc, z = 8: expected voxels of 10 Å"),
        (["--templates", "TEMPLATES", "--real-tomograms", "fine.mrc"], "got 1 --real-tomograms and 0 --real-picks"),
        (["--templates", "TEMPLATES", "--resume-from", "gone"], "gone: expected the folder of a training"),
        (["--templates", "TEMPLATES", "--microscope", "gone.json"], "gone.json"),
        (
            ["--templates", "TEMPLATES", "--output", "mine"],
            "expected an empty folder, or one with settings.toml, got mine",
        ),
        (["--config", "wrong.toml"], "wrong.toml: expected settings to be"),
        (["--config", "gone.toml"], "expected a TOML or JSON file of settings, found none at gone.toml"),
    ],
)
def test_mistakes(
    refused: Command, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    """Each has one clear sentence in the options' names, before anything is computed or written."""
    monkeypatch.chdir(tmp_path)
    write_mrc(Path("fine.mrc"), blobs((16, 16, 16), [(8, 8, 8)]), voxel_size=5.0)
    Path("mine").mkdir()
    Path("mine", "thesis.txt").write_text("mine")
    Path("wrong.toml").write_text("stepz = 3\n")
    given = [str(templates) if one == "TEMPLATES" else one for one in options]
    output = [] if "--output" in given else ["--output", "run"]
    assert message in refused(*SMALL, *output, *given)
    left = Path(given[given.index("--output") + 1]) if "--output" in given else Path("run")
    found = [entry.name for entry in left.iterdir()] if left.is_dir() else []
    assert found == ([] if output else ["thesis.txt"])


def test_real_picks_of_other_classes(
    refused: Command, templates: Path, real: tuple[Path, Path], tmp_path: Path
) -> None:
    """Picks of none of the classes are told with theirs."""
    real[1].write_text("class,x,y,z\nribosome,3,3,3\n")
    own = ["--templates", templates, *SMALL, "--real-tomograms", real[0], "--real-picks", real[1]]
    line = refused(*own, "--output", tmp_path / "run")
    assert "picks.csv: expected picks of long, small, got those of ribosome; name them so, or set --classes" in line


def test_epochs_that_are_not_reached(templates: Path, tmp_path: Path) -> None:
    """A schedule that goes on after the last step is told with the epoch of that step."""
    said = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {"--variation": "0=none,3.contrast=0.5,2"}
    own = {str(name).removeprefix("--").replace("-", "_"): str(value) for name, value in said.items()}
    own |= {"templates": [str(templates)]}
    with pytest.warns(UserWarning, match=r"goes to epoch 3, but 12 steps end in epoch 2 \(an epoch has 4 steps\)"):
        make_run(read_work(tmp_path / "run", None, own | {"steps": "12"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_run(read_work(tmp_path / "other", None, own | {"steps": "13"}))


def test_another_runs_classes(refused: Command, templates: Path, tmp_path: Path, whole: Path) -> None:
    """Fine-tuning keeps the classes; a run does not begin with itself."""
    own = ["--resume-from", whole, "--output", tmp_path / "run"]
    line = refused(*own, "--classes", "small")
    assert "expected a picker with the --classes small, got long, small" in line
    assert "to be another folder than --resume-from" in refused("--resume-from", whole, "--output", whole)


def test_option_names() -> None:
    """Messages of the library speak of options; words that are none stay."""
    names = option_names(SETTINGS.values())
    assert in_option_names("set `patch_size` or `kind`", names) == "set --patch-size or `kind`"
    assert in_option_names("expected `noise`, `order` lower", names) == "expected --microscope, --noise-order lower"
    assert {"microscope", "templates", "classes", "steps", "watch", "resume_from"} <= set(SETTINGS)
    assert not {"noise", "formats", "density", "halves"} & set(SETTINGS)
    assert "seed" in SETTINGS
    assert json.dumps(sorted(SETTINGS))
