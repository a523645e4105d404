"""Comparisons of training data: settings, one arm from data to score, resume, tables and pictures."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from faket_aug import (
    ContrastTransfer,
    ExposureDamage,
    FakETSimulator,
    FileFormatError,
    GrandModel,
    Imperfections,
    NoiseModel,
    PatchAugmentation,
    TiltSeries,
    Variation,
    VariedSimulator,
    project,
)
from faket_aug.cli import app
from faket_aug.cli.compare import _keep_settings, read_kept
from faket_aug.comparison.arms import Arm
from faket_aug.comparison.critic import Criticism, critic_markdown, shares
from faket_aug.comparison.experiment import Experiment
from faket_aug.comparison.figures import class_bars
from faket_aug.comparison.measured import measured_tomogram
from faket_aug.comparison.result import ArmResult, read_result, read_results, write_result, write_results
from faket_aug.comparison.settings import SCORING_SETTINGS, Comparison
from faket_aug.comparison.summary import (
    as_csv,
    as_markdown,
    class_f1,
    confusion_csv,
    estimate,
    estimates,
    learning_csv,
    summed_confusion,
)
from faket_aug.formats.mrc import write_mrc
from faket_aug.picking.checkpoints import load_weights
from faket_aug.picking.losses import tversky_loss
from tests._helpers import ANGLES, correlation, generator, narrow_state, specimen, write_shrec

pytestmark = [
    # A DataLoader draws a seed when it is iterated.
    pytest.mark.touches_global_rng,
]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four specimens with measured tilts, an encoder, and a comparison's file."""
    root = tmp_path_factory.mktemp("comparison")
    for index in range(4):
        thing = specimen(index, shape=(16, 32, 32))
        folder = write_shrec(root / f"model_{index}", thing)
        clean = -project(thing.density, ANGLES)
        measured = clean + clean.std() * torch.randn(clean.shape, generator=generator(index)) + 50
        write_mrc(folder / "projections.mrc", measured, voxel_size=10.0)
        rows = "".join(f"0 0 {-angle}\n" for angle in ANGLES)
        (folder / "alignment_simulated.txt").write_text("# comment\n" * 6 + rows)
    torch.save(narrow_state(), root / "vgg.pth")
    (root / "small.toml").write_text(SMALL)
    return root


SMALL = """
train = ["model_0", "model_1"]
validation = "model_2"
test = ["model_3"]
seeds = [0, 1]
weights = "vgg.pth"
style_layers = [1, 6]
filter = "hann"
steps = 4
batch_size = 2
patch_size = 8
shift = 2
patches_per_tomogram = 4
validate_every = 2
validation_patches = 4
learning_rate = 0.01
widths = [4, 4, 4]
tile_size = 16
overlap = 8
picking = "components"

[arms.BENCHMARK]
source = "measured"

[arms.FAKET]
simulator = {content_layers = [3]}

[arms."FAKET + fine-tuning"]
start = "FAKET"
source = "measured"
tomograms = 1
steps = 2
"""


def _small(folders: Path, **settings: Any) -> Comparison:
    made = Comparison.from_toml(folders / "small.toml")
    return Comparison(**{**{name: getattr(made, name) for name in asdict(made)}, **settings})


def test_reads_settings(folders: Path) -> None:
    """Paths are the file's own; every arm has its table."""
    made = _small(folders)
    assert made.train == (str(folders / "model_0"), str(folders / "model_1"))
    assert made.weights == str(folders / "vgg.pth")
    assert list(made.arms) == ["BENCHMARK", "FAKET", "FAKET + fine-tuning"]
    assert made.arms["FAKET + fine-tuning"] == Arm(source="measured", start="FAKET", tomograms=1, steps=2)
    assert json.loads(json.dumps(made.to_dict()))["arms"]["FAKET"]["modality"] == "faket"


def test_published_settings() -> None:
    """The ready file holds the published training and arms."""
    made = Comparison.from_toml(EXAMPLES / "compare_shrec2021.toml")
    assert (made.patch_size, made.batch_size, made.shift, made.steps) == (56, 25, 13, 7000)
    assert (made.learning_rate, tuple(made.widths)) == (1e-4, (32, 48, 64))
    assert made.ordered_arms()[-1] == "FAKET + fine-tuning"
    assert {"BENCHMARK", "NOISELESS", "BASELINE", "NOISY", "FAKET", "FAKET_RANDOM"} < set(made.arms)


def test_settings_of_a_laptop() -> None:
    """The other ready files can be read; the simulated arms of the second never see a label of the target."""
    assert {"BENCHMARK", "FAKET"} < set(Comparison.from_toml(EXAMPLES / "compare_small.toml").arms)
    made = Comparison.from_toml(EXAMPLES / "compare_unpaired.toml")
    assert all(arm.source == "measured" or arm.noise == "unpaired" for arm in made.arms.values())
    assert not set(made.clean) & {*made.train, *made.test}
    assert made.precision == "auto"
    assert made.generated is not None
    assert made.more("microscope") == {"optics": {"amplitude_contrast": 0.08}, "interpolated": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": []}, "at least one entry in `test`"),
        ({"test": ["model_0"], "train": ["model_0"]}, "different specimens for training, validation and test"),
        ({"arms": {"A": Arm(start="B")}}, "arm A: expected `start` to be one of A, got 'B'"),
        ({"arms": {"A": Arm(start="B"), "B": Arm(start="A")}}, "a circle of A, B"),
        ({"arms": {"A": Arm(tomograms=5)}}, "arm A: expected at most 2 `tomograms`"),
        ({"picking": "guess"}, "'components', 'mean-shift', got 'guess'"),
        ({"tile_size": 30}, "`tile_size` in multiples of 4"),
        ({"tile_size": 32, "overlap": 32}, "a smaller `overlap`"),
        ({"bandwidth": -1.0}, "`bandwidth` to be more than 0"),
        ({"widths": (4,)}, "`widths` of three levels"),
        ({"precision": "float16"}, "'auto', 'float32', 'bfloat16', got 'float16'"),
        ({"validation_patches": 0}, "`validation_patches` to be a whole number of 1 or more"),
        ({"seeds": (1, 1)}, "each of the `seeds` once"),
        ({"arms": {"a/b": Arm()}}, "names of arms that can be folders, got 'a/b'"),
    ],
)
def test_bad_settings(folders: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _small(folders, **change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train = [", "bad.toml: "),
        ("nonsense = 1", "bad.toml: expected settings to be train, .*, got nonsense"),
        ('[arms.A]\nmodalty = "noisy"', "expected settings of `arms.A` to be source, .*, got modalty"),
        ('[arms.A]\nmodality = "nosy"', "'noisy', 'content', 'faket', got 'nosy'"),
        ("", "bad.toml: expected settings with train, validation, test, got none"),
        ("train = 3", "expected `train` to be paths, got 3"),
        (
            'train = ["a", "b"]\nvalidation = "c"\ntest = ["x/../a"]',
            "different specimens for training, validation and test, got .*/a'\\] twice",
        ),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(FileFormatError, match=message):
        Comparison.from_toml(tmp_path / "bad.toml")
    with pytest.raises(FileNotFoundError, match="expected a comparison's TOML file, found none"):
        Comparison.from_toml(tmp_path / "none.toml")


def test_measured_tomogram_lies_on_its_labels(folders: Path) -> None:
    """The measured tilts' tomogram is dark where the labels are, and nowhere mirrored."""
    made = measured_tomogram(folders / "model_0", filter="hann")
    thing = specimen(0, shape=(16, 32, 32))
    assert made.tomogram.shape == thing.labels.shape
    here = correlation(-made.tomogram, thing.density)
    others = [correlation(-made.tomogram.flip(axes), thing.density) for axes in ((0,), (1,), (2,), (0, 2))]
    assert here > 0.4
    assert here > max(others) + 0.2


@pytest.mark.parametrize("z_range", [None, (3, 12)])
def test_picks_of_a_cropped_tomogram_count_from_the_whole(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, z_range: Any
) -> None:
    """With the truth for a segmentation, every particle that is kept is found, whatever was cut off."""
    made = Experiment(_small(folders, z_range=z_range), tmp_path)
    truth = measured_tomogram(folders / "model_3", filter="hann", z_range=z_range)
    monkeypatch.setattr("faket_aug.comparison.experiment.segment", lambda *_, **__: truth.labels)
    monkeypatch.setattr(made, "_measured", lambda folder: truth)
    score = made.score(made.network(0), str(folders / "model_3"), {})
    inside = len(torch.unique(specimen(3, shape=(16, 32, 32)).instances[slice(*(z_range or (None,)))])) - 1
    assert score.false_positives == 0
    assert score.found >= inside - 1 > 1


def test_axis_stays_when_sections_are_cut(folders: Path) -> None:
    """A cropped tomogram is the same sections of the whole one, at an odd first section, too."""
    whole = measured_tomogram(folders / "model_0", filter="hann", z_range=None)
    part = measured_tomogram(folders / "model_0", filter="hann", z_range=(3, 12))
    assert torch.equal(part.tomogram, whole.tomogram[3:12])
    assert torch.equal(part.labels, whole.labels[3:12])


@pytest.mark.slow
def test_scored_again_with_other_settings(folders: Path, tmp_path: Path) -> None:
    """Other settings of the scoring do not train again."""
    first = Experiment(_small(folders), tmp_path)
    before = first.run("BENCHMARK", 0)
    time = (first.folder("BENCHMARK", 0) / "checkpoint.pt").stat().st_mtime_ns
    after = Experiment(_small(folders, skip=("small",)), tmp_path).run("BENCHMARK", 0)
    assert after.losses == before.losses
    assert next(iter(after.scores.values()))["labels"] == ["background", "large", "rare"]
    assert (first.folder("BENCHMARK", 0) / "checkpoint.pt").stat().st_mtime_ns == time


def test_class_table_is_asked_for(folders: Path, tmp_path: Path) -> None:
    thing = specimen(7, shape=(16, 32, 32))
    folder = write_shrec(tmp_path / "model_7", thing, table=None, particles=False)
    write_mrc(folder / "projections.mrc", torch.rand(5, 32, 32), voxel_size=10.0)
    (folder / "alignment_simulated.txt").write_text("".join(f"0 0 {angle}\n" for angle in ANGLES))
    made = Experiment(_small(folders, validation=str(folder)), tmp_path / "out")
    with pytest.raises(FileFormatError, match="expected class_conversion_table.txt there or in the folder above"):
        made.network(0)


def test_measured_tilts_of_another_width(folders: Path, tmp_path: Path) -> None:
    folder = write_shrec(tmp_path / "model", specimen(0, shape=(16, 32, 32)))
    write_mrc(folder / "projections.mrc", torch.rand(5, 48, 48), voxel_size=10.0)
    (folder / "alignment_simulated.txt").write_text("".join(f"0 0 {angle}\n" for angle in ANGLES))
    with pytest.raises(FileFormatError, match="tilts as wide as the labels, 32, or a whole factor wider, got 48"):
        measured_tomogram(folder, filter="hann")


@pytest.mark.slow
def test_arms_from_data_to_score(folders: Path, tmp_path: Path) -> None:
    """All arms run; a broken one goes on to the same result; what is done is read; fine-tuning starts from its arm."""
    made = _small(folders)
    whole, parts = Experiment(made, tmp_path / "whole"), Experiment(made, tmp_path / "parts")
    results = [whole.run(name, 0) for name in made.ordered_arms()]
    assert [len(result.losses) for result in results] == [4, 4, 2]
    assert all(0 <= result.macro_f1 <= 1 for result in results)

    def stop(arm: str, seed: int, step: int, steps: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.run("FAKET", 0, stop)
    assert asdict(parts.run("FAKET", 0)) == asdict(results[1])
    assert asdict(read_result(whole.folder("FAKET", 0) / "result.json")) == asdict(results[1])
    assert whole.run("BENCHMARK", 0).losses == results[0].losses
    # Fine-tuning starts from the other arm's weights: its first loss is that of these, not of a fresh network.
    start = whole.network(0)
    load_weights(start, whole.folder("FAKET", 0) / "best.pt")
    batch = next(iter(DataLoader(whole.dataset(made.arms["FAKET + fine-tuning"], 0), batch_size=2)))
    assert results[2].losses[0] == pytest.approx(float(tversky_loss(start(batch["image"]), batch["label"]).detach()))
    with pytest.raises(ValueError, match="a finished arm to start from; run 'FAKET', seed 1, first"):
        whole.run("FAKET + fine-tuning", 1)
    # The seeds differ; the first weights are the seed's, whatever the arm.
    first = {name: next(whole.network(0).parameters()) for name in made.arms}
    assert all(torch.equal(first["FAKET"], other) for other in first.values())
    assert not torch.equal(first["FAKET"], next(whole.network(1).parameters()))


@pytest.mark.slow
def test_command(folders: Path, tmp_path: Path) -> None:
    """The command writes tables and pictures, resumes, and refuses to mix other settings in."""
    arguments = ["compare", str(folders / "small.toml"), "--output", str(tmp_path / "out")]
    some = [*arguments, "--arm", "BENCHMARK", "--arm", "FAKET", "--seed", "0"]
    done = CliRunner().invoke(app, some, catch_exceptions=False)
    assert done.exit_code == 0
    written = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    tables = {"table.md", "table.csv", "per_class.csv", "confusion.csv", "learning.csv", "results.json"}
    assert written == tables | {"comparison.json", "scores.png", "classes.png", "confusion.png", "learning.png"}
    assert [row["arm"] for row in csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines())] == [
        "BENCHMARK",
        "FAKET",
    ]
    before = (tmp_path / "out" / "results.json").read_bytes()
    trained = tmp_path / "out" / "FAKET" / "seed_0" / "checkpoint.pt"
    time = trained.stat().st_mtime_ns
    assert CliRunner().invoke(app, some, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    assert trained.stat().st_mtime_ns == time
    # Another call, as of another job, sums up what is there, and what an older scoring left is not among it.
    more = [*arguments, "--arm", "BENCHMARK", "--seed", "1"]
    assert CliRunner().invoke(app, more, catch_exceptions=False).exit_code == 0
    kept = [(one.arm, one.seed) for one in read_results(tmp_path / "out" / "results.json")]
    assert kept == [("BENCHMARK", 0), ("FAKET", 0), ("BENCHMARK", 1)]
    (folders / "blunt.toml").write_text(SMALL.replace("overlap = 8", "overlap = 0", 1))
    blunt = ["compare", str(folders / "blunt.toml"), *arguments[2:], "--arm", "FAKET", "--seed", "0"]
    assert CliRunner().invoke(app, blunt, catch_exceptions=False).exit_code == 0
    assert [one.arm for one in read_results(tmp_path / "out" / "results.json")] == ["FAKET"]
    (folders / "other.toml").write_text(SMALL.replace("steps = 4", "steps = 6", 1))
    other = ["compare", str(folders / "other.toml"), *arguments[2:]]
    with pytest.raises(ValueError, match="the same comparison as before, got other settings for steps"):
        CliRunner().invoke(app, other, catch_exceptions=False)
    with pytest.raises(ValueError, match="`--arm` to be one of 'BENCHMARK', .* got 'X'"):
        CliRunner().invoke(app, [*arguments, "--arm", "X"], catch_exceptions=False)


@pytest.mark.slow
def test_critic(folders: Path, tmp_path: Path) -> None:
    """The critic alone is trained; the target's row is its own score, and each simulated arm has one."""
    text = (
        SMALL.replace("seeds = [0, 1]", "seeds = [0]")
        + """
[arms.NOISELESS]
modality = "noiseless"
"""
    )
    (folders / "critic.toml").write_text(text)
    output = tmp_path / "out"
    arguments = ["compare", str(folders / "critic.toml"), "--output", str(output)]
    one = CliRunner().invoke(app, [*arguments, "--critic", "BENCHMARK", "--arm", "NOISELESS"], catch_exceptions=False)
    assert [line.split(" | ")[0] for line in one.output.splitlines() if line.startswith("| ")][1:] == [
        "| target",
        "| NOISELESS",
    ]
    done = CliRunner().invoke(app, [*arguments, "--critic", "BENCHMARK"], catch_exceptions=False)
    assert done.exit_code == 0
    rows = list(csv.DictReader((output / "critic.csv").read_text().splitlines()))
    assert [row["tomograms"] for row in rows] == ["target", "FAKET", "NOISELESS"]
    own = read_result(output / "BENCHMARK" / "seed_0" / "result.json")
    assert float(rows[0]["macro_f1"]) == pytest.approx(own.macro_f1, abs=1e-4)
    assert not (output / "FAKET").exists()
    assert [line.split(" | ")[0] for line in (output / "critic.md").read_text().splitlines()[2:]] == [
        "| target",
        "| FAKET",
        "| NOISELESS",
    ]
    kept = output / "BENCHMARK" / "seed_0" / "critic.json"
    said = json.loads(kept.read_text())
    said["criticisms"]["FAKET"]["scores"]["macro_f1"] = 0.125
    kept.write_text(json.dumps(said))
    with pytest.raises(
        FileFormatError, match=r"critic.json: expected what a critic said whose content has the checksum"
    ):
        CliRunner().invoke(app, [*arguments, "--critic", "BENCHMARK"], catch_exceptions=False)
    # As version 0.1.0 wrote it.
    kept.write_text(json.dumps(said["criticisms"]))
    again = CliRunner().invoke(app, [*arguments, "--critic", "BENCHMARK"], catch_exceptions=False)
    assert "0.125" in again.output, "what was judged is not judged again"
    kept.write_text("[]")
    with pytest.raises(FileFormatError, match=r"critic.json: expected what a critic said \(a JSON object\), got"):
        CliRunner().invoke(app, [*arguments, "--critic", "BENCHMARK"], catch_exceptions=False)
    with pytest.raises(ValueError, match="a critic that is trained on measured tomograms, got 'FAKET'"):
        CliRunner().invoke(app, [*arguments, "--critic", "FAKET"], catch_exceptions=False)


def test_critic_scores_the_tomogram_that_it_is_given(folders: Path, tmp_path: Path) -> None:
    """The measured tomogram put in the place of itself has the same score; another one is looked at instead."""
    experiment = Experiment(_small(folders), tmp_path)
    network = experiment.network(0)
    folder = str(folders / "model_3")
    measured = measured_tomogram(folder, filter="hann").tomogram
    given, own = experiment.score(network, folder, {}, measured), experiment.score(network, folder, {})
    assert (given.picks, given.found, given.macro_f1) == (own.picks, own.found, own.macro_f1)
    seen: list[torch.Tensor] = []
    network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].clone()))
    experiment.score(network, folder, {}, measured)
    experiment.score(network, folder, {}, -measured)
    # The network has seen the negative.
    first, second = seen[0], seen[len(seen) // 2]
    assert float(first.std()) > 0.5
    assert torch.allclose(first, -second, atol=1e-3)


def test_shares_of_the_target() -> None:
    """Scores are shares of the target's with the same seed, then averaged."""
    scores = [("target", 0, 0.8), ("NOISY", 0, 0.4), ("target", 1, 0.5), ("NOISY", 1, 0.5)]
    found = [Criticism(arm=arm, seed=seed, localization_f1=f1, macro_f1=f1) for arm, seed, f1 in scores]
    assert shares(found)["NOISY"]["macro_f1"].mean == pytest.approx(0.75)
    assert critic_markdown(found).splitlines()[3] == "| NOISY | 0.450 | 0.750 | 0.450 | 0.750 |"


def test_nothing_is_a_share_of_nothing() -> None:
    found = [Criticism(arm=arm, seed=0, localization_f1=0.5, macro_f1=f1) for arm, f1 in (("target", 0.0), ("A", 0.2))]
    assert np.isnan(shares(found)["A"]["macro_f1"].mean)
    assert critic_markdown(found).splitlines()[3] == "| A | 0.500 | 1.000 | 0.200 | – |"


def test_settings_of_the_simulator(folders: Path) -> None:
    """A transfer function is a table; what the simulator does not know is refused when the file is read."""
    path = folders / "ctf.toml"
    path.write_text(SMALL + "\n[arms.CTF.simulator]\nctf = { defocus = 3.3, spread = 0.5 }\n")
    arm = Comparison.from_toml(path).arms["CTF"]
    assert arm.simulator_settings() == {"ctf": ContrastTransfer(defocus=3.3, spread=0.5)}
    path.write_text(SMALL + "\n[arms.CTF.simulator]\nctf = { height = 3.3 }\n")
    with pytest.raises(
        FileFormatError,
        match=r"ctf.toml: `arms.CTF`: expected settings of `simulator.ctf` to be defocus, .*, got height",
    ):
        Comparison.from_toml(path)
    path.write_text(SMALL + "\n[arms.CTF.simulator.imperfections.damage]\nper_tilt = 3.0\n")
    given = Comparison.from_toml(path).arms["CTF"].simulator_settings()
    assert given == {"imperfections": Imperfections(damage=ExposureDamage(per_tilt=3.0))}
    path.write_text(SMALL + "\n[arms.CTF.simulator]\nnoise = 3.3\n")
    with pytest.raises(FileFormatError, match=r"expected settings of simulator to be ctf, .*, got noise"):
        Comparison.from_toml(path)
    path.write_text(SMALL + "\n[arms.CTF.simulator]\ndefocus = 3.3\n")
    with pytest.raises(FileFormatError, match=r"expected settings of simulator to be ctf, .*, got defocus"):
        Comparison.from_toml(path)


def test_variation_of_an_arm(folders: Path, tmp_path: Path) -> None:
    """An arm's simulator may have settings that are drawn for each tomogram."""
    path = folders / "varied.toml"
    path.write_text(SMALL + '\n[arms.VARIED]\nmodality = "noisy"\nsimulator.variation = "standard"\n')
    arm = Comparison.from_toml(path).arms["VARIED"]
    made = Experiment(Comparison.from_toml(path), tmp_path).simulator(arm)
    assert isinstance(made, VariedSimulator)
    assert made.variations_at(0)[0][0] == Variation.standard(made.simulators[0])
    path.write_text(SMALL + "\n[arms.VARIED.simulator.variation]\nwhite = 0.5\nsnr = [0.1, 0.2]\n")
    given = Comparison.from_toml(path).arms["VARIED"].simulator_settings()
    assert given == {"variation": Variation(white=0.5, snr=(0.1, 0.2))}
    path.write_text(SMALL + '\n[arms.VARIED.simulator]\nvariation = "wild"\n')
    with pytest.raises(FileFormatError, match="`simulator.variation` to be standard or none or settings by name"):
        Comparison.from_toml(path)


def test_mixture_of_an_arm(folders: Path, tmp_path: Path) -> None:
    """An arm's tomograms may come from several simulators, whose weights and ranges change with the epochs."""
    path = folders / "mixture.toml"
    path.write_text(
        SMALL
        + """
        [arms.MIXED]
        modality = "noisy"
        simulator.filter = "ramp"
        [arms.MIXED.simulator.variation.0]
        missing = 0.0
        [arms.MIXED.simulator.variation.4]
        missing = 0.4
        [[arms.MIXED.simulator.mixture]]
        weight = { 0 = 1, 4 = 0 }
        [[arms.MIXED.simulator.mixture]]
        modality = "noiseless"
        filter = "hann"
        variation = "none"
        """
    )
    comparison = Comparison.from_toml(path)
    made = Experiment(comparison, tmp_path).simulator(comparison.arms["MIXED"])
    assert isinstance(made, VariedSimulator)
    assert [(one.modality, one.filter) for one in made.simulators] == [("noisy", "ramp"), ("noiseless", "hann")]
    variations, weights = made.variations_at(2)
    assert weights == pytest.approx((0.25, 0.75))
    assert variations[0].missing == pytest.approx((0.2, 0.2))
    assert variations[1] == Variation()
    json.dumps(comparison.to_dict())
    for given, message in (
        ('step_size = "auto"', r"`arms.MIXED`: mixture\[0\]: expected `step_size` as a number"),
        (
            "snr = 0.1",
            r"settings of `simulator.mixture\[0\]` to be weight, variation, modality, noise, .*got snr",
        ),
        ('noise = "measured"', r"mixture\[0\]: expected `noise` to be one of 'paired', 'unpaired'"),
    ):
        text = f'[arms.MIXED]\nmodality = "noisy"\n[[arms.MIXED.simulator.mixture]]\n{given}\n'
        path.write_text(f"{SMALL}\n{text}")
        with pytest.raises(FileFormatError, match=message):
            Comparison.from_toml(path)


def test_generated_specimens(folders: Path, tmp_path: Path) -> None:
    """An arm may have a new specimen for every tomogram, with the classes' numbers and the density asked for."""
    maps = folders / "maps"
    maps.mkdir()
    for name in ("small", "Large"):
        values = torch.zeros(11, 11, 11)
        values[3:8, 3:8, 3:8] = 1.0 if name == "small" else 2.0
        write_mrc(maps / f"{name}.mrc", values, voxel_size=10.0)
    text = (
        SMALL
        + """
[arms.ENDLESS]
modality = "noiseless"
specimens = "generated"

[generated]
templates = ["maps"]
shape = [16, 48, 48]
counts = 3
normalize = false
factor = 2.5
"""
    )
    (folders / "endless.toml").write_text(text)
    experiment = Experiment(Comparison.from_toml(folders / "endless.toml"), tmp_path)
    data = experiment.dataset(experiment.comparison.arms["ENDLESS"], 0)
    items = list(data)
    assert {item["tomogram"] for item in items} == set(range(len(experiment.comparison.train)))
    made = experiment.comparison.generated
    assert made is not None
    assert made == {"templates": (str(maps),), "shape": (16, 48, 48), "counts": 3, "normalize": False, "factor": 2.5}

    def generated(**changed: Any) -> GrandModel:
        own = replace(experiment.comparison, generated=made | changed)
        return own.generator(10.0, experiment.class_names).generate(seed=0)

    specimen_ = generated()
    assert specimen_.class_names == experiment.class_names
    plain = generated(factor=1.0)
    assert torch.allclose(specimen_.density, 2.5 * plain.density, rtol=1e-3, atol=1e-3)
    assert torch.equal(specimen_.labels, plain.labels)
    assert 1.5 < float(plain.density.max()) < 3.0, "maps keep their units"
    larger = generated(threshold=0.5)
    assert int((larger.labels > 0).sum()) > 1.2 * int((specimen_.labels > 0).sum())
    (folders / "endless.toml").write_text(text.split("[generated]")[0])
    with pytest.raises(FileFormatError, match="arm ENDLESS: expected `generated`, which says what its specimens hold"):
        Comparison.from_toml(folders / "endless.toml")


def test_step_is_chosen(folders: Path, tmp_path: Path) -> None:
    """`"auto"`: held-out tilts choose, once for all seeds, and a file says which and why."""
    (folders / "auto.toml").write_text(
        SMALL + '\n[arms.AUTO]\n[arms.AUTO.simulator]\nstep_size = "auto"\ncontent_layers = [3]\n'
    )
    experiment = Experiment(Comparison.from_toml(folders / "auto.toml"), tmp_path / "out")
    arm = experiment.comparison.arms["AUTO"]
    made = experiment.simulator(arm)
    assert made.style is not None
    assert len(made.style.series) == len(experiment.style), "all of the style, once the step is chosen"
    (path,) = (tmp_path / "out" / "steps").iterdir()
    kept = json.loads(path.read_text())
    assert kept["why"][-1].startswith(f"chosen: step {made.step_size:g}")
    changed = kept | {"chosen": {"step_size": 0.07, "keep_spectrum": True}}
    path.write_text(json.dumps(changed))
    with pytest.raises(FileFormatError, match=rf"{path.name}: expected a chosen step whose content has the checksum"):
        experiment.simulator(arm)
    path.write_text(json.dumps(changed | {"checksum": None}))
    again = Experiment(experiment.comparison, tmp_path / "out").simulator(arm)
    assert (again.step_size, again.keep_spectrum) == (0.07, True), "not chosen again"
    path.write_text("[]")
    with pytest.raises(FileFormatError, match=r"expected a chosen step \(a JSON object\), got"):
        experiment.simulator(arm)
    with pytest.raises(ValueError, match='expected no `keep_spectrum` beside a step of "auto"'):
        Arm(simulator={"step_size": "auto", "keep_spectrum": True})
    with pytest.raises(ValueError, match=r'expected `step_size` as a number, or "auto" with the modality "faket"'):
        Arm(modality="noisy", simulator={"step_size": "auto"})
    with pytest.raises(ValueError, match="expected `step_size` to be a number, got 'auto'; `choose_step_size` finds"):
        FakETSimulator(tilt_angles=ANGLES, modality="noiseless", step_size="auto")  # type: ignore[arg-type]


def test_unpaired_noise_has_a_response(folders: Path, tmp_path: Path) -> None:
    """An arm may have noise that was fitted without the truth; the published one stays the default."""
    made = _small(folders)
    experiment = Experiment(made, tmp_path)
    noise = experiment.simulator(Arm(modality="noisy")).noise
    assert isinstance(noise, NoiseModel)
    assert noise.response is None
    asked: list[Any] = []

    def fit(target: Any, clean: Any, *arguments: Any, **settings: Any) -> NoiseModel:
        asked.append((len(target), len(clean), settings["pixel_size"]))
        return noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoiseModel, "fit_unpaired", fit)
        experiment.simulator(Arm(modality="noisy", noise="unpaired"))
    assert asked == [(2, 2, 10.0)], "a square specimen is shown twice"
    with pytest.raises(ValueError, match="`noise` to be one of 'paired', 'unpaired', got 'guessed'"):
        Arm(noise="guessed")


def test_the_fitted_microscope_has_settings(folders: Path, tmp_path: Path) -> None:
    """A table hands them on; without it the fit is that of before, and so is what results were made with."""
    path, arms = folders / "microscope.toml", SMALL.index("[arms.BENCHMARK]")
    unpaired = '[arms.UNPAIRED]\nmodality = "noisy"\nnoise = "unpaired"\n'

    def read(table: str) -> Experiment:
        path.write_text(SMALL[:arms] + table + unpaired + SMALL[arms:])
        return Experiment(Comparison.from_toml(path), tmp_path)

    def asked(experiment: Experiment) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def fit(series: Any, specimens: Any, **settings: Any) -> Any:
            found.append(settings)
            return SimpleNamespace(noise="fitted")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("faket_aug.comparison.experiment.fit_microscope", fit)
            assert experiment.unpaired_noise == "fitted"
        return found[0]

    plain = read("")
    assert asked(plain) == {"ctf": ContrastTransfer.within()}
    assert set(plain.made_with("UNPAIRED")) == {"arm", *SCORING_SETTINGS}
    table = "[microscope]\noptics = { amplitude_contrast = 0.08 }\ninterpolated = true\ncount = 1\n"
    told = read(table)
    assert asked(told) == {
        "ctf": ContrastTransfer.within(amplitude_contrast=0.08),
        **{"interpolated": True, "count": 1},
    }
    known = asked(read(table + "defocus = [2, 4]\nthickness = 2000\n"))
    assert (known["defocus"], known["optics"]) == ((2.0, 4.0), {"amplitude_contrast": 0.08})
    assert (known["thickness"], "ctf" in known) == (2000.0, False)
    # Results are of these settings, where the fit has a part in them.
    own = {"optics": {"amplitude_contrast": 0.08}, "interpolated": True, "count": 1}
    assert told.made_with("UNPAIRED") == plain.made_with("UNPAIRED") | {"microscope": own}
    assert told.made_with("FAKET") == plain.made_with("FAKET")
    kept = json.loads(json.dumps(plain.comparison.to_dict()))
    assert told.comparison.differences(kept) == ["microscope"]
    del kept["microscope"]
    assert plain.comparison.differences(kept) == [], "one of before goes on"
    for line, message in (
        ("seed = 3", "expected settings of microscope to be count, defocus, optics, .* interpolated, got seed"),
        ("optics = { defocus = 3.0 }", "expected settings of `?microscope.optics`? to be voltage, .* got defocus"),
        ("optics = { voltage = -1.0 }", "`microscope.optics`: expected `voltage`"),
        ("thickness = 0", "expected `microscope.thickness` to be more than 0"),
        ("noise_order = -1", "expected `microscope.noise_order` to be a whole number of 0 or more, got -1"),
        ('crowd = "occupancy"', 'expected `microscope.crowd` to be "field", got "occupancy"'),
        ("interpolated = 1", "expected `microscope.interpolated` to be true or false, got 1"),
    ):
        with pytest.raises(FileFormatError, match=f"microscope.toml: {message}"):
            read(f"[microscope]\n{line}\n")


def _result(arm: str, seed: int, f1: float, confusion: list[list[int]]) -> ArmResult:
    per_class = {"background": {"f1": 0.0}, "A": {"f1": f1}, "B": {"f1": None}}
    labels = ["background", "A", "B"]
    score = {"macro_f1": f1, "localization_f1": f1 / 2, "per_class": per_class, "labels": labels}
    return ArmResult(
        arm=arm,
        seed=seed,
        scores={"test": score | {"confusion": confusion}},
        min_sizes={},
        losses=[1.0, 0.5],
        validations=[(2, 0.7)],
        best_step=2,
        made_with={},
        versions={},
    )


def test_tables() -> None:
    """Means over seeds, intervals that hold them, classes and confusion added up."""
    results = [_result("X", seed, f1, [[0, 0, 0], [1, 2, 0], [0, 0, 0]]) for seed, f1 in enumerate((0.2, 0.4, 0.6))]
    results.append(_result("Y", 0, 0.5, [[0, 0, 0], [0, 3, 0], [0, 0, 0]]))
    table = estimates(results)
    assert table["X"]["macro_f1"].mean == pytest.approx(0.4)
    assert table["X"]["localization_f1"].values == pytest.approx((0.1, 0.2, 0.3))
    assert class_f1(results) == {"X": {"A": pytest.approx(0.4)}, "Y": {"A": 0.5}}
    assert not class_bars(results).axes[0].texts
    # Without a bar the picture says why.
    (told,) = class_bars([_result("X", 0, 0.0, [[0, 0, 0], [3, 0, 0], [0, 0, 0]])]).axes[0].texts
    assert told.get_text() == "no particle was found"
    labels, counts = summed_confusion(results[:3])
    assert labels == ["background", "A"]
    assert counts.tolist() == [[0, 0], [3, 6]]
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert [(row["arm"], row["seeds"], row["macro_f1_mean"]) for row in rows] == [
        ("X", "3", "0.4000"),
        ("Y", "1", "0.5000"),
    ]
    assert "| Y | 0.250 [0.250, 0.250] (0.250) | 0.500 [0.500, 0.500] (0.500) | 1 |" in as_markdown(results)


def test_long_tables() -> None:
    """Every pair of classes and every step has its row."""
    results = [_result("X", 3, 0.5, [[0, 0, 0], [1, 2, 0], [0, 0, 0]])]
    assert confusion_csv(results) == "arm,is,picked_as,particles\nX,A,background,1\nX,A,A,2\n"
    assert learning_csv(results) == "arm,seed,step,loss,validation\nX,3,1,1,\nX,3,2,0.5,0.7\n"
    other = replace(results[0], scores={"test": dict(results[0].scores["test"]) | {"labels": ["background", "B", "A"]}})
    with pytest.raises(ValueError, match="test specimens with one table of classes"):
        summed_confusion([*results, other])


def test_bootstrap_intervals() -> None:
    """For many values the intervals are those of the mean's normal distribution; they are the same each time."""
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    entry = estimate(values.tolist())
    error = values.std() / 20
    assert (entry.high_68 - entry.low_68) / 2 == pytest.approx(error, rel=0.1)
    assert (entry.high_95 - entry.low_95) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert entry == estimate(values.tolist())
    with pytest.raises(ValueError, match="at least one value to average"):
        estimate([])


def test_damaged_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(
        FileFormatError, match="result.json: expected an arm's result, .* remove it to run the arm again"
    ):
        read_result(tmp_path / "result.json")


def _faket_result(seed: int) -> ArmResult:
    return ArmResult(
        arm="FAKET",
        seed=seed,
        scores={"model_9": {"macro_f1": 0.5, "localization_f1": 0.75}},
        min_sizes={"1": 3},
        losses=[0.5, 0.25],
        validations=[(2, 0.25)],
        best_step=2,
        made_with={"arm": {"steps": 2}},
        versions={"torch": "2"},
    )


def test_results_notice_damage(tmp_path: Path) -> None:
    """One result and a list of them come back; a changed number is noticed; files of version 0.1.0 are read."""
    one, several = tmp_path / "result.json", tmp_path / "results.json"
    write_result(one, _faket_result(0))
    write_results(several, [_faket_result(0), _faket_result(1)])
    assert read_result(one) == _faket_result(0)
    assert read_results(several) == [_faket_result(0), _faket_result(1)]
    for path, read in ((one, read_result), (several, read_results)):
        path.write_text(path.read_text().replace("0.75", "0.95", 1))
        with pytest.raises(FileFormatError, match=rf"{path.name}: expected an arm's result whose content has the chec"):
            read(path)
    rows = [asdict(_faket_result(0)), asdict(_faket_result(1))]
    one.write_text(json.dumps(rows[0]))
    several.write_text(json.dumps(rows))
    assert (read_result(one), read_results(several)) == (_faket_result(0), [_faket_result(0), _faket_result(1)])
    several.write_text(json.dumps([rows[0], rows[0]]))
    with pytest.raises(FileFormatError, match=r"results.json: expected each arm with each seed once"):
        read_results(several)
    several.write_text("{}")
    with pytest.raises(FileFormatError, match=r"results.json: expected a list of arms' results, got '\{\}'"):
        read_results(several)


def test_kept_settings_notice_damage(folders: Path, tmp_path: Path) -> None:
    """`comparison.json` comes back, also as version 0.1.0 wrote it; damage and other files are refused."""
    path, made = tmp_path / "comparison.json", _small(folders)
    _keep_settings(made, tmp_path)
    assert read_kept(path) == json.loads(json.dumps(made.to_dict()))
    text = path.read_text()
    path.write_text(text.replace('"steps": 4', '"steps": 5'))
    with pytest.raises(FileFormatError, match=r"comparison.json: expected the settings of a comparison whose content"):
        _keep_settings(made, tmp_path)
    path.write_text(json.dumps(made.to_dict()))
    _keep_settings(made, tmp_path)
    assert path.read_text() == text
    for other in ("{}", '{"arms": 3}', json.dumps(made.to_dict() | {"checksun": "0"})):
        path.write_text(other)
        with pytest.raises(FileFormatError, match=r"comparison.json: expected the settings of a comparison, `arms`"):
            _keep_settings(made, tmp_path)


def test_style_may_be_given(folders: Path, tmp_path: Path) -> None:
    made = _small(folders, style=(str(folders / "model_2"),))
    (series,) = Experiment(made, tmp_path).style
    assert torch.equal(series.tilts, TiltSeries.read(folders / "model_2").tilts)


def test_more_settings_of_the_library(folders: Path, tmp_path: Path) -> None:
    """Tables hand on what has no setting of its own; what is unknown or ill-typed is refused with the file's name."""
    path = folders / "more.toml"
    tables = """
[training]
patience = 3
checkpoint_every = 1
[patches]
target = "sphere"
radii = { small = 20, large = 30, rare = 30 }
augmentation = { flips = "yx" }
[encoder]
pooling = "average"
[bank]
quantiles = [0.01, 0.99]
[segmentation]
blend = "linear"
[picks]
heal = 0.2
"""
    arms = SMALL.index("[arms.BENCHMARK]")
    path.write_text(SMALL[:arms] + tables + SMALL[arms:])
    made = Comparison.from_toml(path)
    assert made.more("training") == {"patience": 3, "checkpoint_every": 1}
    assert made.more("patches")["augmentation"] == PatchAugmentation(flips="yx")
    experiment = Experiment(made, tmp_path)
    data = experiment.dataset(made.arms["BENCHMARK"], 0)
    assert (data.sampler.target, data.radii) == ("sphere", {"small": 20.0, "large": 30.0, "rare": 30.0})
    simulator = experiment.simulator(made.arms["FAKET"])
    assert simulator.features is not None
    assert simulator.features.pooling == "average"
    assert simulator.range_quantiles == (0.01, 0.99)
    plain = Experiment(Comparison.from_toml(folders / "small.toml"), tmp_path).made_with("FAKET")
    assert set(experiment.made_with("FAKET")) - set(plain) == {"segmentation", "picks"}, "results of before are read"
    for table, message in (
        ("[training]\npatience = 'long'", "more.toml: expected `training.patience` to be a whole number, got 'long'"),
        ("[picks]\nhealing = 1", "more.toml: expected settings of picks to be heal, ignore, got healing"),
        ("[generated]\ncounts = 1\nshape = [1, 2]", "expected `generated.shape` to be three whole numbers z,y,x, got"),
    ):
        path.write_text(SMALL[:arms] + table + "\n" + SMALL[arms:])
        with pytest.raises(FileFormatError, match=message):
            Comparison.from_toml(path)


def test_a_comparison_of_version_0_1_goes_on(folders: Path) -> None:
    """Settings that were kept before some were known, and a recipe in old words, are the same; others are named."""
    recipe = '[generated]\ntemplates = ["maps"]\nshape = [16, 48, 48]\n{}\nfactor = 2.5\nnormalize = false\n'
    path = folders / "kept.toml"
    path.write_text(SMALL + recipe.format("counts = 3"))
    made = Comparison.from_toml(path)
    kept = json.loads(json.dumps(made.to_dict()))
    for name in ("training", "patches", "encoder", "bank", "segmentation", "picks"):
        del kept[name]
    kept["generated"] = {
        **{"templates": [str(folders / "maps")], "shape": [16, 48, 48], "count": 3, "normalize": False},
        **{"factor": 2.5, "threshold": None, "fiducials": {}},
    }
    kept["generated"] |= {"interpolation": "sharp", "packing": "dense"}
    assert made.differences(kept) == []
    assert made.to_dict()["generated"]["interpolation"] == "sharp"
    # One that tells none was made before there was a choice.
    older = {name: one for name, one in kept["generated"].items() if name != "interpolation"}
    assert made.differences(kept | {"generated": older}) == ["generated"]
    assert made.differences(kept | {"steps": 5}) == ["steps"]
    assert made.differences(kept | {"generated": kept["generated"] | {"count": 4}}) == ["generated"]
    path.write_text(SMALL + recipe.format("count = 3"))
    with pytest.warns(FutureWarning, match="`count` is called `counts` now"):
        assert Comparison.from_toml(path).generated == made.generated


def test_all_sections_can_be_asked_for(folders: Path) -> None:
    """TOML has no word for nothing; "none" is it."""
    path = folders / "sections.toml"
    path.write_text('z_range = "none"\n' + SMALL)
    assert Comparison.from_toml(path).z_range is None
    path.write_text("z_range = [3, 12]\n" + SMALL)
    assert Comparison.from_toml(path).z_range == (3, 12)
