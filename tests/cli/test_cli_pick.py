"""`faket-aug pick`: lists that are placed right, a control, pictures, going on, and mistakes in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
import starfile
import torch
from _helpers import outcome
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from faket_aug.cli import _picking
from faket_aug.formats.found_particles import find_particles
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.picking import DeepFinderNet, finding
from faket_aug.picking.checkpoints import write_state
from faket_aug.picking.picker import PICKER, Picker, PickerDescription
from faket_aug.picking.preparation import Preparation

SIZE, RADIUS = 10.0, 4.0
SHAPE = (24, 48, 56)
PLACES = np.array([[z, y, x] for z in (12,) for y in (12, 36) for x in (12, 30, 46)], dtype=float)


class DarkBalls(nn.Module):
    """A network that finds balls that are darker than what is around; it counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.preparation = Preparation(patch_size=(24, 24, 24), voxel_size=SIZE)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        mean = functional.avg_pool3d(images.float(), 5, stride=1, padding=2)
        return torch.cat([torch.zeros_like(mean), 20 * (-mean - 1.0)], dim=1)


DESCRIPTION = PickerDescription(
    class_names={1: "ball"},
    widths=(4, 4, 4),
    voxel_size=SIZE,
    filter="hann",
    radii={1: RADIUS * SIZE},
    target_radius=1.0,
    thresholds={1: 0.4},
)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DarkBalls:
    """A run whose network needs no training."""
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "best.pt"
    path.write_bytes(b"weights")
    made = DarkBalls()
    picker = Picker(network=made, description=DESCRIPTION, path=path)  # type: ignore[arg-type]
    monkeypatch.setattr(_picking, "load_picker", lambda run, device: picker)
    return made


def tomogram(path: Path, *, seed: int = 0, sign: float = -1.0, size: float = SIZE) -> Path:
    """Noise with six balls, all of them in the upper half of z."""
    volume = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    for place in PLACES:
        volume[torch.from_numpy(np.linalg.norm(grid - place, axis=-1) <= RADIUS)] += sign * 4
    write_mrc(path, volume, voxel_size=size)
    return path


def pick(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of `faket-aug pick`, with its lines on one line each."""
    code, out, errors = outcome(["pick", folder / "run", *arguments], monkeypatch, capsys)
    return code, out, " ".join(errors.split())


def test_picks_are_placed_right(
    network: DarkBalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list has scores, unbinned pixels and the tomogram's name; places are those of the balls."""
    output = tmp_path / "picks.star"
    path = tomogram(tmp_path / "TS_1.mrc")
    code, out, err = pick(monkeypatch, capsys, tmp_path, path, "--output", output, "--unbinned-pixel-size", 2.5)
    assert code == 0, err
    assert "TS_1: 6 picks, 0 in noise of the same spectrum (ball 6 from a score of 0." in err
    assert "thresholds by the control, 0.25 picks in noise for each, at least 0.5 times the training's)" in err
    assert f"6 picks written to {output}; look at {tmp_path / 'picks' / 'TS_1.png'}" in out
    table = starfile.read(output)
    assert set(table["rlnTomoName"]) == {"TS_1"}
    assert set(table["rlnTomoTiltSeriesPixelSize"]) == {2.5}
    assert (table["rlnAutopickFigureOfMerit"] > 0.4).all()
    assert table["rlnAutopickFigureOfMerit"].is_monotonic_decreasing
    found = find_particles(output, voxel_size=SIZE, shape=SHAPE).particles
    assert set(found.names) == {"ball"}
    near = torch.cdist(torch.from_numpy(PLACES), torch.from_numpy(found.positions)).min(dim=1).values
    assert float(near.max()) < 1.0
    for name in ("TS_1.png", "TS_1_scores.png"):
        with Image.open(tmp_path / "picks" / name) as image:
            assert min(image.size) > 300
            assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 20


def test_the_same_command_goes_on(
    network: DarkBalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Done tomograms are skipped, also after a stop between them; another threshold needs no network."""
    output = tmp_path / "picks.star"
    paths = [tomogram(tmp_path / f"TS_{n}.mrc", seed=n) for n in (1, 2)]
    options = ("--output", output, "--tile-size", 64, "--overlap", 16)
    whole = _picking.find_particles

    def stopped(*arguments: object, **settings: object) -> object:
        if (tmp_path / "picks" / "TS_1.json").is_file():
            raise KeyboardInterrupt
        return whole(*arguments, **settings)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(_picking, "find_particles", stopped)
        code, _, err = pick(monkeypatch, capsys, tmp_path, *paths, *options)
    assert code == 130
    assert "run the same command again to finish" in err
    assert set(starfile.read(output)["rlnTomoName"]) == {"TS_1"}
    calls = network.calls
    code, out, err = pick(monkeypatch, capsys, tmp_path, *paths, *options)
    assert code == 0, err
    assert "1 of 2 tomograms were picked before" in out
    assert starfile.read(output)["rlnTomoName"].value_counts().to_dict() == {"TS_1": 6, "TS_2": 6}
    assert network.calls == 2 * calls
    # Nothing is left to do; another threshold takes the scores that are there.
    code, out, err = pick(monkeypatch, capsys, tmp_path, *paths, *options, "--threshold", "ball=0.99")
    assert code == 0, err
    assert "0 picks of 2 tomograms" in out
    assert "TS_1: nothing counts; set a lower --threshold" in err
    assert network.calls == 2 * calls
    # Other settings of the search are picked anew.
    code, _, err = pick(monkeypatch, capsys, tmp_path, paths[0], *options, "--flips", 2)
    assert code == 0, err
    assert network.calls > 2 * calls


@pytest.mark.parametrize("format", ["star4", "deepfinder", "shrec", "warp"])
def test_other_formats(
    network: DarkBalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    """Each format is read back with the same places; several tomograms make a folder where it has no names."""
    paths = [tomogram(tmp_path / f"TS_{n}.mrc", seed=n) for n in (1, 2)]
    one = {"deepfinder": "p.xml", "shrec": "p.txt"}.get(format, "p.star")
    code, _, err = pick(
        monkeypatch, capsys, tmp_path, paths[0], "--output", tmp_path / one, "--format", format, "--no-control"
    )
    assert code == 0, err
    assert "noise" not in err
    found = find_particles(tmp_path / one, voxel_size=SIZE, shape=SHAPE, class_names={1: "ball"})
    near = torch.cdist(torch.from_numpy(PLACES), torch.from_numpy(found.particles.positions)).min(dim=1).values
    assert float(near.max()) < 1.0
    several = tmp_path / ("both.star" if one.endswith(".star") else "both")
    code, _, err = pick(monkeypatch, capsys, tmp_path, *paths, "--output", several, "--format", format, "--no-control")
    assert code == 0, err
    if several.suffix:
        assert len(starfile.read(several)) == 12
    else:
        assert len(find_particles(several / f"TS_2{Path(one).suffix}", class_names={1: "ball"}).particles) == 6


def test_copick(
    network: DarkBalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Picks of two tomograms become two runs of a project, where they are found again."""
    pytest.importorskip("copick")
    paths = [tomogram(tmp_path / f"TS_{n}.mrc", seed=n) for n in (1, 2)]
    project = tmp_path / "project"
    options = ("--output", project, "--format", "copick", "--no-control")
    for _ in range(2):
        code, _, err = pick(monkeypatch, capsys, tmp_path, *paths, *options)
        assert code == 0, err
    for name in ("TS_1", "TS_2"):
        found = find_particles(project, tomogram=name, voxel_size=SIZE).particles
        near = torch.cdist(torch.from_numpy(PLACES), torch.from_numpy(found.positions)).min(dim=1).values
        assert float(near.max()) < 1.0
    assert (tmp_path / "project_picks" / "TS_1.png").is_file()
    (written,) = (project / "ExperimentRuns" / "TS_1" / "Picks").glob("*.json")
    scores = [point["score"] for point in json.loads(written.read_text())["points"]]
    assert scores == sorted(scores, reverse=True)
    assert 0.4 < scores[-1] < scores[0] < 1.0


def test_several_classes(
    network: DarkBalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each class has its threshold, its number in noise, its own probabilities and its row of the histogram."""
    plain = network.forward

    def two(images: Tensor) -> Tensor:
        logits = plain(images)
        # Right of the middle the balls are of the second class.
        right = torch.arange(images.shape[-1]) > 21
        first, second = (torch.where(side, logits[:, 1:], -20.0) for side in (~right, right))
        return torch.cat([logits[:, :1], first, second], dim=1)

    monkeypatch.setattr(network, "forward", two)
    names, radii = {1: "ball", 2: "other"}, {1: RADIUS * SIZE, 2: RADIUS * SIZE}
    described = replace(DESCRIPTION, class_names=names, radii=radii, thresholds={1: 0.4, 2: 0.4})
    picker = replace(_picking.load_picker("run", "cpu"), description=described)  # type: ignore[call-arg]
    monkeypatch.setattr(_picking, "load_picker", lambda run, device: picker)
    path, output = tomogram(tmp_path / "TS_1.mrc"), tmp_path / "a.star"
    options = ("--output", output, "--threshold", "ball=0.4,other=0.35", "--probabilities", tmp_path / "p.mrc")
    code, _, err = pick(monkeypatch, capsys, tmp_path, path, *options)
    assert code == 0, err
    assert "(ball 2 from a score of 0.40, 0 in noise; other 4 from a score of 0.35, 0 in noise; thresholds given" in err
    assert starfile.read(output)["faketClassName"].value_counts().to_dict() == {"other": 4, "ball": 2}
    assert (tmp_path / "p_ball.mrc").is_file()
    assert (tmp_path / "p_other.mrc").is_file()
    calls = network.calls
    code, _, err = pick(monkeypatch, capsys, tmp_path, path, *options)
    assert (code, network.calls) == (0, calls), err
    with Image.open(tmp_path / "a" / "TS_1_scores.png") as image:
        assert image.height > 600


def test_only_a_part_of_the_tomogram_and_probabilities(
    network: DarkBalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, mask = tomogram(tmp_path / "TS_1.mrc"), torch.zeros(SHAPE, dtype=torch.int8)
    mask[:, :24] = 1
    write_mrc(tmp_path / "mask.mrc", mask, voxel_size=SIZE)
    part = ("--mask", tmp_path / "mask.mrc", "--z-range", "6,20")
    written = tmp_path / "p.mrc"
    code, _, err = pick(
        monkeypatch, capsys, tmp_path, path, "--output", tmp_path / "a.star", *part, "--probabilities", written
    )
    assert code == 0, err
    assert len(starfile.read(tmp_path / "a.star")) == 3
    volume, size = read_mrc(written)
    assert (volume.shape, size) == (SHAPE, SIZE)
    assert float(volume[12, 12, 12]) > 0.9
    assert not bool(volume[:, 24:].any())
    assert not bool(volume[:6].any())


def test_mistakes_are_one_sentence(
    network: DarkBalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each says what was expected, what was found, and which option to set; nothing is computed before."""
    path, output = tomogram(tmp_path / "TS_1.mrc"), tmp_path / "picks.star"
    (tmp_path / "more").mkdir()
    same = tomogram(tmp_path / "more" / "TS_1.mrc")
    taken = tmp_path / "mine.star"
    taken.write_text("mine")
    small = tmp_path / "small.mrc"
    write_mrc(small, torch.zeros(2, 3, 4), voxel_size=SIZE)
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "none.mrc", "--output", output), "expected a tomogram, an MRC file or a folder"),
        ((path, same, "--output", output), "different names, got TS_1 more than once; set --names"),
        ((path, "--output", tmp_path / "picks.xml"), "a name that ends in .star for --format star5"),
        ((path, "--output", output, "--format", "csv"), "expected `--format` to be one of"),
        ((path, "--output", taken), "expected a new name for the picks, found"),
        ((path, "--output", output, "--threshold", "cube=0.3"), "classes that the run has (ball), got cube"),
        ((path, "--output", output, "--threshold", "2"), "expected `--threshold` to lie in [0, 1], got 2"),
        ((path, "--output", output, "--rate", "0.1", "--no-control"), "expected a control for --rate"),
        ((path, "--output", output, "--names", "a,b"), "expected --names of 1 tomograms, got 2"),
        ((path, "--output", output, "--voxel-size", "40"), "voxels of about 10 Å"),
        ((path, "--output", output, "--voxel-size", "0"), "expected `--voxel-size` to be more than 0, got 0"),
        ((path, "--output", output, "--threads", "0"), "expected `--threads` to be a whole number of 1 or more, got 0"),
        ((path, path, "--output", output, "--probabilities", "p.mrc"), "for a single tomogram, got 2 tomograms"),
        ((path, "--output", output, "--mask", small), "expected a mask of the tomogram's (24, 48, 56) voxels"),
        ((path, "--output", output, "--z-range", "5,30"), "expected --z-range within 0,23"),
        ((path, "--output", tmp_path / "no" / "p.star"), "expected a folder for the picks, found none at"),
    ]
    for arguments, words in cases:
        code, _, err = pick(monkeypatch, capsys, tmp_path, *arguments)
        assert code == 1, arguments
        assert words in err, (arguments, err)
    assert taken.read_text() == "mine"
    assert not output.exists()


def test_what_does_not_fit_the_training_is_said(
    network: DarkBalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another filter gives a warning; a tomogram of another sign is refused; the series names the tomogram."""
    path = tomogram(tmp_path / "rec.mrc")
    record = {"reconstruction": {"filter": "ramp", "ctf_correction": None, "voxel_size": SIZE}, "series": "TS_7"}
    path.with_suffix(".json").write_text(json.dumps(record))
    monkeypatch.setattr(finding, "_LEAST", 5)
    code, _, err = pick(monkeypatch, capsys, tmp_path, path, "--output", tmp_path / "a.star")
    assert code == 0, err
    assert "made as those of the training, got filter ramp in place of hann" in err
    assert set(starfile.read(tmp_path / "a.star")["rlnTomoName"]) == {"TS_7"}
    bright = tomogram(tmp_path / "bright.mrc", sign=1.0)
    code, _, err = pick(monkeypatch, capsys, tmp_path, bright, "--output", tmp_path / "b.star")
    assert code == 1
    assert "expected dark particles, as in training, got a tomogram in which they seem to be bright" in err
    code, _, err = pick(monkeypatch, capsys, tmp_path, bright, "--output", tmp_path / "b.star", "--contrast", "bright")
    assert code == 0, err
    assert len(starfile.read(tmp_path / "b.star")) == 6


def test_weights_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's own file of weights is enough; without one the message says how to get it."""
    (tmp_path / "run").mkdir()
    path = tomogram(tmp_path / "TS_1.mrc")
    code, _, err = pick(monkeypatch, capsys, tmp_path, path, "--output", tmp_path / "a.star")
    assert code == 1
    assert "train with `faket-aug train`" in err
    with torch.random.fork_rng():
        network = DeepFinderNet(2, widths=DESCRIPTION.widths, voxel_size=SIZE)
    state = {"model": network.state_dict(), PICKER: DESCRIPTION.to_dict()}
    write_state(tmp_path / "run" / "best.pt", state)
    code, _, err = pick(monkeypatch, capsys, tmp_path, path, "--output", tmp_path / "a.star", "--method", "components")
    assert code == 0, err
    assert "in noise of the same spectrum" in err
    assert (tmp_path / "picks").exists() is False
    assert (tmp_path / "a" / "TS_1.json").is_file()


def test_a_tilt_series_is_noticed(
    network: DarkBalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stack with as many sections as there are angles beside it is no tomogram; other counts say nothing."""
    path, angles = tomogram(tmp_path / "TS_1.mrc"), np.linspace(-60, 60, SHAPE[0])
    for count, told in ((SHAPE[0], True), (SHAPE[0] - 1, False)):
        np.savetxt(tmp_path / "TS_1.tlt", angles[:count])
        code, _, err = pick(monkeypatch, capsys, tmp_path, path, "--output", tmp_path / "picks.star")
        assert code == 0, err
        assert ("it seems to be the tilt-series" in err) == told


def test_flavours_lie_beside_a_tomogram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picker of flavours reads the others beside the tomogram; one that is missing, or has changed, is noticed."""

    class SecondChannel(DarkBalls):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images[:, 1:])

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pt").write_bytes(b"weights")
    made = SecondChannel()
    own = replace(DESCRIPTION, channels=("raw", "low-pass"))
    picker = Picker(network=made, description=own, path=tmp_path / "run" / "best.pt")  # type: ignore[arg-type]
    monkeypatch.setattr(_picking, "load_picker", lambda run, device: picker)
    write_mrc(tmp_path / "a.mrc", torch.randn(SHAPE, generator=torch.Generator().manual_seed(4)), voxel_size=SIZE)
    output = tmp_path / "picks.star"
    code, _, err = pick(monkeypatch, capsys, tmp_path, tmp_path / "a.mrc", "--output", output)
    assert code == 1
    assert f"beside it, found none at {tmp_path / 'a_low-pass.mrc'}; write it there" in err
    tomogram(tmp_path / "a_low-pass.mrc")
    code, out, err = pick(monkeypatch, capsys, tmp_path, tmp_path / "a.mrc", "--output", output)
    assert code == 0, err
    assert "6 picks written" in out
    before = made.calls
    assert "were picked before" in pick(monkeypatch, capsys, tmp_path, tmp_path / "a.mrc", "--output", output)[1]
    assert made.calls == before
    tomogram(tmp_path / "a_low-pass.mrc", seed=2)
    pick(monkeypatch, capsys, tmp_path, tmp_path / "a.mrc", "--output", output)
    assert made.calls > before
