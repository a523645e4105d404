"""`faket-aug simulate`: what a set holds, going on after a stop, shards, and what a user can get wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
import torch
from _helpers import blobs, narrow_vgg, noise_model, outcome, specimen, style_series, write_shrec
from PIL import Image
from typer.testing import CliRunner

from faket_aug import (
    ContrastTransfer,
    Detector,
    ExposureDamage,
    FakETSimulator,
    GrandModel,
    Imperfections,
    MicroscopeResponse,
    Misalignment,
    NoiseModel,
    SimulationRecord,
    TiltSeries,
)
from faket_aug.cli import _sets, app
from faket_aug.cli._options import COMPARED, SETTINGS
from faket_aug.cli._sets import STOPPED_FILE, Shard, open_set
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.formats.star import read_particles_star
from faket_aug.generation import recipe
from faket_aug.microscope.file import MicroscopeFile, write_microscope
from faket_aug.microscope.noise import ResponseNoise
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from faket_aug.simulation import saving
from faket_aug.simulation.saving import is_whole, read_record_file

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "slurm_simulate.sh"
SMALL = ["--shape", "16,24,32", "--tilt-angles=-50:50:25"]
Command = Callable[..., str]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the maps of two particles."""
    folder = tmp_path_factory.mktemp("templates")
    write_mrc(folder / "small.mrc", blobs((9, 9, 9), [(4, 4, 4)], 1.2), voxel_size=10.0)
    write_mrc(folder / "long.mrc", blobs((11, 9, 9), [(4, 4, 4), (7, 4, 4)], 1.2), voxel_size=10.0)
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two specimens in SHREC's layout."""
    for seed in range(2):
        write_shrec(tmp_path / "models" / f"model_{seed}", specimen(seed))
    return tmp_path / "models"


def generated(templates: Path) -> list[object]:
    """Options of a small generated set."""
    return ["--templates", templates, "--counts", "small=4,long=2", "--snr", "0.5", "--seed", "3", *SMALL]


def content(folder: Path) -> dict[str, bytes]:
    """The tomograms of a set, file by file, without what holds times and paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "tomogram_" in str(path))
    found = {str(path.relative_to(folder)): path for path in files if path.name != "record.json"}
    # The headers of MRC files hold the time of writing.
    return {name: path.read_bytes()[1024 if path.suffix == ".mrc" else 0 :] for name, path in found.items()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- what is made -----------------------------------------------------------------------------------------------------


def test_a_generated_set(command: Command, templates: Path, tmp_path: Path) -> None:
    """Particles, membranes, filaments and beads, each tomogram another, with settings and a picture beside them."""
    more = ["--membranes", "sheet=1", "--filaments", "actin=1", "--fiducials", 1, "--shape", "24,40,44"]
    output = command("simulate", tmp_path / "set", *generated(templates), *more, "--count", 2)
    assert output == f"2 tomograms written into {tmp_path}/set; look at {tmp_path}/set/preview.png\n"
    assert names(tmp_path / "set") == {"simulation.json", "preview.png", "tomogram_0000", "tomogram_0001"}
    first, second = (GrandModel.from_shrec(tmp_path / "set" / f"tomogram_{index:04d}") for index in range(2))
    assert list(first.class_names.values()) == ["long", "small", "membrane", "actin", "fiducial"]
    assert np.bincount(first.particles.classes)[[1, 2, 3, 5]].tolist() == [2, 4, 1, 1]
    assert set(torch.unique(first.labels).tolist()) == {0, 1, 2, 3, 4, 5}
    assert not torch.equal(first.labels, second.labels)
    assert first.voxel_size == 10.0
    with Image.open(tmp_path / "set" / "preview.png") as image:
        assert min(image.size) > 800


def test_distractors_and_bound_particles(command: Command, templates: Path, tmp_path: Path) -> None:
    """Distractors are in the density only; bound particles stand on membranes; concentrations are per µm³."""
    shutil.copy(templates / "long.mrc", tmp_path / "bound.mrc")
    options = ["--templates", templates / "small.mrc", "--templates", tmp_path / "bound.mrc", "--membranes", "sheet=1"]
    options += ["--distractors", templates / "long.mrc", "--membrane-bound", "bound", "--tilt-angles=-40:40:40"]
    # Of 64 x 64 x 64 voxels of 10 Å, 0.26 µm³ · 1e-3.
    options += ["--concentrations", "small=19074,bound=11444,long=7629", "--shape", "64,64,64"]
    command("simulate", tmp_path / "set", *options)
    found = GrandModel.from_shrec(tmp_path / "set" / "tomogram_0000")
    assert list(found.class_names.values()) == ["small", "bound", "membrane"]
    assert np.bincount(found.particles.classes).tolist() == [0, 5, 3, 1]
    origin = read_record_file(tmp_path / "set" / "tomogram_0000" / "record.json")["origin"]
    assert (set(origin["templates"]), set(origin["distractors"])) == ({"small", "bound"}, {"long"})
    # Two dense voxels or more of the two distractors lie outside of all labels.
    dense = found.density > 0.9 * found.density[found.labels == 1].max()
    assert int((dense & (found.labels == 0)).sum()) >= 2


def test_the_record_makes_it_again(command: Command, templates: Path, tmp_path: Path) -> None:
    """From a folder's own record and density comes the same tomogram, bit for bit; the matched clean one, too."""
    command("simulate", tmp_path / "set", *generated(templates), "--count", 2, "--noiseless")
    folder = tmp_path / "set" / "tomogram_0001"
    record = SimulationRecord.read(folder)
    assert (record.seed, record.epoch, record.tomogram) == (3, 0, 1)
    settings = {key: record.settings[key] for key in ("tilt_angles", "modality", "filter", "resampling", "extend")}
    noise = NoiseModel.from_json(record.settings["noise"])
    simulator, specimen = FakETSimulator(noise=noise, **settings), GrandModel.from_shrec(folder)
    made = simulator.simulate(specimen, record)
    assert torch.equal(made.tomogram, read_mrc(folder / "reconstruction.mrc")[0])
    assert torch.equal(made.tiltseries, TiltSeries.read(folder).tilts)
    clean = FakETSimulator(tilt_angles=settings["tilt_angles"], modality="noiseless")(specimen, seed=0)
    assert torch.equal(clean.tomogram, read_mrc(folder / "reconstruction_noiseless.mrc")[0])
    origin = read_record_file(folder / "record.json")["origin"]
    assert origin["specimen"] == "generated specimen 1 of epoch 0, seed 3"
    assert set(origin["templates"]) == {"small", "long"}
    assert origin["options"]["counts"] == {"small": 4, "long": 2}


def test_the_record_alone_makes_it_again(command: Command, templates: Path, tmp_path: Path) -> None:
    """One tomogram of a generated set, and no other, from nothing but its record and the templates' files."""
    command("simulate", tmp_path / "set", *generated(templates), "--count", 3, "--membranes", "sheet=1")
    record = tmp_path / "set" / "tomogram_0001" / "record.json"
    versions = SimulationRecord.read(record).versions
    assert set(versions) == {"faket_aug", "torch", "numpy", "scipy"}
    assert versions["numpy"] == np.__version__
    shutil.copy(record, tmp_path / "record.json")
    before = content(tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    command("simulate", tmp_path / "again", "--config", tmp_path / "record.json", "--count", 2, "--shard", "2/2")
    assert content(tmp_path / "again") == {name: of for name, of in before.items() if name.startswith("tomogram_0001")}


def test_sets_of_the_old_interpolation(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """A set and a record that name no interpolation were made by the linear one, and are gone on with by it."""
    options = [*generated(templates), "--count", 1]
    command("simulate", tmp_path / "set", *options, "--interpolation", "linear")
    before = content(tmp_path / "set")
    command("simulate", tmp_path / "sharp", *options)
    assert content(tmp_path / "sharp") != before
    for path in (tmp_path / "set" / "simulation.json", tmp_path / "set" / "tomogram_0000" / "record.json"):
        told = json.loads(path.read_text())
        assert told.get("origin", told)["options"].pop("interpolation") == "linear"
        if "settings" in told:
            assert told["settings"].pop("interpolation") == "linear"
        path.write_text(json.dumps(told | {"checksum": None}))
    message = refused("simulate", tmp_path / "set", *options, "--interpolation", "sharp")
    assert 'others for interpolation ("sharp" instead of "linear")' in message
    assert "1 were there" in command("simulate", tmp_path / "set", *options)
    for name in ("simulation.json", "tomogram_0000/record.json"):
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        command("simulate", tmp_path / "again", "--config", tmp_path / "set" / name, "--count", 1)
        assert content(tmp_path / "again") == before


def test_variation(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """Settings are drawn for each tomogram and stand in its record, which makes it again; the file says them, too."""
    options = [*generated(templates), "--tilt-angles=-60:60:8", "--count", 2, "--noiseless"]
    command("simulate", tmp_path / "set", *options, "--variation", "missing=0.1,0.5,white=1,snr=0.2,1")
    records = [SimulationRecord.read(tmp_path / "set" / f"tomogram_000{index}") for index in range(2)]
    first, second = (record.settings["drawn"] for record in records)
    assert first["snr"] != second["snr"]
    assert {0.2 <= drawn["snr"] <= 1 for drawn in (first, second)} == {True}
    assert len(records[0].settings["tilt_angles"]) == len(first["tilts"]) < 16
    before = content(tmp_path / "set")
    again = ["--config", tmp_path / "set" / "tomogram_0001" / "record.json", "--count", 2, "--shard", "2/2"]
    command("simulate", tmp_path / "again", *again)
    assert content(tmp_path / "again") == {name: of for name, of in before.items() if name.startswith("tomogram_0001")}
    (tmp_path / "set.toml").write_text("[variation]\nmissing = [0.1, 0.5]\nwhite = 1\nsnr = [0.2, 1]\n")
    assert "2 were there" in command("simulate", tmp_path / "set", *options, "--config", tmp_path / "set.toml")
    message = refused("simulate", tmp_path / "set", *options, "--variation", "standard")
    assert "got others for variation;" in message
    message = refused("simulate", tmp_path / "other", *options, "--variation", "wild")
    assert "expected --variation to be standard or none or settings by name" in message
    message = refused("simulate", tmp_path / "other", *options, "--variation", "defocus=0.5")
    assert "expected a --ctf, or noise with a `response`, of the simulator to vary `defocus`" in message


MIXTURE = """
filter = "hann"

[[mixture]]
weight = 3
snr = 0.2
variation = { missing = 0.25 }

[[mixture]]
modality = "noiseless"
filter = "ramp"
"""


def test_the_microscope_of_a_mixture(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """Each simulator's is said by the name that the option has, as in a file."""
    options = [*generated(templates), "--count", 1, "--mixture", "snr=0.2", "--mixture"]
    command("simulate", tmp_path / "set", *options, "weight=2,microscope=none")
    made = json.loads((tmp_path / "set" / "simulation.json").read_text())["options"]["mixture"]
    assert [one.get("weight") for one in made] == [None, 2]
    message = refused("simulate", tmp_path / "other", *options, "microscope=gone.json")
    assert "found none at gone.json" in message


def test_mixture(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """One of several simulators makes each tomogram; the record tells which, and makes the tomogram again."""
    options = [*generated(templates), "--tilt-angles=-60:60:8", "--count", 5]
    (tmp_path / "set.toml").write_text(MIXTURE)
    command("simulate", tmp_path / "set", *options, "--config", tmp_path / "set.toml")
    records = [SimulationRecord.read(tmp_path / "set" / f"tomogram_000{index}") for index in range(5)]
    numbers = [record.settings["drawn"]["simulator"] for record in records]
    assert set(numbers) == {0, 1}
    for number, record in zip(numbers, records, strict=True):
        told = record.settings
        assert (told["filter"], told["modality"]) == (("hann", "noisy"), ("ramp", "noiseless"))[number]
        assert len(told["tilt_angles"]) == (12, 16)[number]
    before, which = content(tmp_path / "set"), numbers.index(0)
    again = ["--config", tmp_path / "set" / f"tomogram_000{which}" / "record.json"]
    command("simulate", tmp_path / "again", *again, "--count", which + 1, "--shard", f"{which + 1}/{which + 1}")
    wanted = {name: of for name, of in before.items() if name.startswith(f"tomogram_000{which}")}
    assert content(tmp_path / "again") == wanted
    said = ["--filter", "hann", "--mixture", "weight=3,snr=0.2,variation.missing=0.25"]
    said += ["--mixture", "modality=noiseless,filter=ramp"]
    assert "5 were there" in command("simulate", tmp_path / "set", *options, *said)
    assert "5 were there" in command(
        "simulate", tmp_path / "set", "--config", tmp_path / "set" / "simulation.json", "--count", 5
    )
    assert "got others for mixture;" in refused("simulate", tmp_path / "set", *options, *said[:-2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[[mixture]]\nsnrr = 1", "expected settings of `mixture[0]` to be weight, variation, modality, "),
        ("[[mixture]]\n[[mixture]]\nweight = -1", "expected `weights` of 0 or more for each of 2 simulators"),
        ("[[mixture]]\n[[mixture]]\nmodality = 'faket'", "mixture[1]: expected tilt-series for the modality 'faket'"),
        ("[[mixture]]\nctf_correction = 'wiener'", "mixture[0]: expected `ctf`, or noise with a `response`, for"),
        ("[[mixture]]\nvariation = { snrr = 1 }", "expected settings of `mixture[0].variation` to be white, snr, "),
        (
            "[[mixture]]\n[[mixture]]\nvariation = { defocus = [-1, 1] }",
            "mixture[1]: expected a `ctf`, or noise with a `response`, of the simulator to vary `defocus`, got none",
        ),
        ("[mixture]\nsnr = 1", "expected `mixture` to be settings of each simulator, as weight=2,snr=0.1, got "),
        ("[variation.0]\nsnr = 1", "expected the same variation for all tomograms of a set, got one by epoch"),
        ("[[mixture]]\nweight = { 0 = 1 }", "expected the same mixture[0].weight for all tomograms of a set"),
        ("[variation.first]\nsnr = 1", "expected settings of `variation` to be white, snr, "),
    ],
)
def test_bad_mixtures(refused: Command, templates: Path, tmp_path: Path, given: str, message: str) -> None:
    """What cannot be is said with the name of the simulator and of the setting."""
    (tmp_path / "set.toml").write_text(given)
    assert message in refused("simulate", tmp_path / "set", *generated(templates), "--config", tmp_path / "set.toml")


@pytest.mark.parametrize("halves", ["tilts", "exposures"])
def test_halves(command: Command, refused: Command, templates: Path, tmp_path: Path, halves: str) -> None:
    """Two more tomograms beside each, whose mean it is; the set says which halves, and nothing else changes."""
    command("simulate", tmp_path / "plain", *generated(templates))
    command("simulate", tmp_path / "set", *generated(templates), "--halves", halves)
    plain, more = content(tmp_path / "plain"), content(tmp_path / "set")
    added = {f"tomogram_0000/reconstruction_{name}.mrc" for name in ("even", "odd")}
    assert set(more) - set(plain) == added
    assert {name: of for name, of in more.items() if name not in added} == plain
    first = tmp_path / "set" / "tomogram_0000"
    whole, even, odd = (read_mrc(first / f"reconstruction{name}.mrc")[0] for name in ("", "_even", "_odd"))
    share = 3 / 5 if halves == "tilts" else 1 / 2
    assert torch.allclose(share * even + (1 - share) * odd, whole, atol=1e-4 * float(whole.std()))
    told = json.loads((tmp_path / "set" / "simulation.json").read_text())
    assert told["options"]["halves"] == told["settings"]["halves"] == halves
    assert added <= {f"tomogram_0000/{name}" for name in read_record_file(first / "record.json")["files"]}
    message = refused("simulate", tmp_path / "set", *generated(templates))
    assert "got others for halves" in message
    message = refused("simulate", tmp_path / "other", *generated(templates), "--halves", "frames")
    assert "tilts, exposures" in message.replace("'", "")
    noiseless = ["--modality", "noiseless", "--halves", "exposures"]
    options = [option for option in generated(templates) if option not in ("--snr", "0.5")]
    message = refused("simulate", tmp_path / "other", *options, *noiseless)
    assert 'expected a modality with noise for `halves="exposures"`' in message
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("name", "told"), [("4194", "not numbers themselves, got '4194'"), ("a b", "got 'a b'")])
def test_names_are_checked_first(refused: Command, templates: Path, tmp_path: Path, name: str, told: str) -> None:
    """A name that cannot be written is refused before anything is simulated or written."""
    shutil.copy(templates / "small.mrc", tmp_path / f"{name}.mrc")
    message = refused("simulate", tmp_path / "set", "--templates", tmp_path / f"{name}.mrc", "--counts", 2, *SMALL)
    assert told in message
    assert not (tmp_path / "set").exists()


def test_specimens_from_files(command: Command, models: Path, tmp_path: Path) -> None:
    """One tomogram for each specimen by default; more take them again, with other noise."""
    options = ["--specimens", models, "--snr", 1, "--tilt-angles=-50:50:25"]
    command("simulate", tmp_path / "set", *options)
    assert names(tmp_path / "set") == {"simulation.json", "preview.png", "tomogram_0000", "tomogram_0001"}
    output = command("simulate", tmp_path / "set", *options, "--count", 3)
    assert output.startswith(f"1 tomogram written into {tmp_path}/set, 2 were there; look at")
    found = [GrandModel.from_shrec(tmp_path / "set" / f"tomogram_{index:04d}") for index in range(3)]
    for index, one in enumerate(found):
        assert torch.equal(one.labels, specimen(index % 2).labels)
    tilts = [TiltSeries.read(tmp_path / "set" / f"tomogram_{index:04d}").tilts for index in (0, 2)]
    assert not torch.equal(*tilts)
    origin = read_record_file(tmp_path / "set" / "tomogram_0002" / "record.json")["origin"]
    assert origin["specimen"] == str(models / "model_0")


def test_dark_specimens(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dark specimens are read with `--dark`; without, the user is told."""
    thing = specimen(0)
    write_shrec(tmp_path / "dark" / "model_0", replace(thing, density=-thing.density))
    options = ["--specimens", tmp_path / "dark", "--modality", "noiseless", "--tilt-angles=-50:50:25"]
    command("simulate", tmp_path / "set", *options, "--dark")
    assert torch.equal(GrandModel.from_shrec(tmp_path / "set" / "tomogram_0000").density, thing.density)
    code, _, errors = outcome(["simulate", tmp_path / "wrong", *options], monkeypatch, capsys)
    assert code == 0
    assert "faket-aug: warning: " in errors
    assert "expected particles that are denser" in errors


def test_style_of_a_microscope(command: Command, refused: Command, models: Path, tmp_path: Path) -> None:
    """With tilt-series as style: the faket modality, the style's angles, and a cache that later runs read."""
    series = style_series(0)
    write_mrc(tmp_path / "style.mrc", series.tilts, voxel_size=10.0)
    write_tlt(tmp_path / "style.tlt", series.tilt_angles)
    narrow_vgg(tmp_path)
    options = ["--specimens", models, "--style", tmp_path / "style.mrc", "--style-layers", "1,6"]
    options += ["--weights", tmp_path / "narrow_vgg_0.pth"]
    command("simulate", tmp_path / "set", *options, "--count", 1)
    record = SimulationRecord.read(tmp_path / "set" / "tomogram_0000")
    assert (record.settings["modality"], record.style_series) == ("faket", 0)
    np.testing.assert_allclose(record.settings["tilt_angles"], series.tilt_angles, atol=1e-3)
    (cached,) = (tmp_path / "set" / ".style_cache").iterdir()
    before = cached.stat().st_mtime_ns
    command("simulate", tmp_path / "set", *options, "--count", 2)
    assert cached.stat().st_mtime_ns == before
    write_mrc(tmp_path / "style.mrc", series.tilts + 1, voxel_size=10.0)
    assert "got others for noise, style;" in refused("simulate", tmp_path / "set", *options, "--count", 3)


def test_formats(command: Command, models: Path, tmp_path: Path) -> None:
    """Particles in the formats asked for; a copick project is the set's; without density there is none."""
    pytest.importorskip("copick")
    options = ["--specimens", models, "--modality", "noiseless", "--tilt-angles=-50:50:25", "--no-density"]
    command("simulate", tmp_path / "set", *options, "--formats", "star5,deepfinder,copick")
    found = names(tmp_path / "set" / "tomogram_0001")
    assert {"particles_relion5.star", "object_list.xml"} < found
    assert not {"grandmodel.mrc", "particle_locations.txt"} & found
    stars = read_particles_star(
        tmp_path / "set" / "tomogram_0001" / "particles_relion5.star", voxel_size=10.0, shape=(16, 24, 32)
    )
    np.testing.assert_allclose(stars["tomogram_0001"].positions, specimen(1).particles.positions, atol=1e-3)
    assert names(tmp_path / "set" / "projects" / "copick" / "ExperimentRuns") == {"tomogram_0000", "tomogram_0001"}


test_formats = pytest.mark.touches_global_rng(test_formats)  # copick does


# --- going on, and parts ----------------------------------------------------------------------------------------------


def test_resume(command: Command, templates: Path, tmp_path: Path) -> None:
    """What is missing or damaged is made again, bit for bit; what is whole is not touched."""
    options = [*generated(templates), "--count", 4]
    command("simulate", tmp_path / "set", *options)
    before = content(tmp_path / "set")
    folders = [tmp_path / "set" / f"tomogram_{index:04d}" for index in range(4)]
    times = {path: path.stat().st_mtime_ns for index in (0, 2) for path in folders[index].iterdir()}
    shutil.rmtree(folders[1])
    (folders[3] / "record.json").unlink()
    (folders[3] / "unfinished").write_text("")
    (folders[3] / ".projections.mrc.x.part").write_text("half")
    (tmp_path / "set" / "preview.png").unlink()
    output = command("simulate", tmp_path / "set", *options)
    assert output.startswith(f"2 tomograms written into {tmp_path}/set, 2 were there; look at")
    assert content(tmp_path / "set") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (tmp_path / "set" / "preview.png").is_file()
    assert not list((tmp_path / "set").rglob("*.part"))
    assert command("simulate", tmp_path / "set", *options).startswith("0 tomograms written")


def test_shards(command: Command, templates: Path, tmp_path: Path) -> None:
    """All shards together are the set of one run, bit for bit, and each tomogram is one shard's."""
    options = [*generated(templates), "--count", 5]
    command("simulate", tmp_path / "one", *options)
    made = []
    for number in (3, 1, 2):
        before = set(content(tmp_path / "three")) if (tmp_path / "three").exists() else set()
        command("simulate", tmp_path / "three", *options, "--shard", f"{number}/3")
        made.append({Path(name).parts[0] for name in set(content(tmp_path / "three")) - before})
    assert [sorted(one) for one in made] == [
        ["tomogram_0002"],
        ["tomogram_0000", "tomogram_0003"],
        ["tomogram_0001", "tomogram_0004"],
    ]
    assert content(tmp_path / "three") == content(tmp_path / "one")
    assert names(tmp_path / "three") == names(tmp_path / "one")


@pytest.mark.parametrize(("count", "of"), [(0, 1), (1, 3), (7, 3), (10, 10), (11, 4)])
def test_shards_are_a_partition(count: int, of: int) -> None:
    """Each tomogram is in one shard, whatever their numbers."""
    found = [index for number in range(1, of + 1) for index in Shard(number=number, of=of).indices(count)]
    assert sorted(found) == list(range(count))


_PROGRAM = """
    import os, sys, time
    from faket_aug.cli import main

    def half_way(file, flush=os.fsync, files=[]):
        "Cut what was written of the third tilt-series in two, as if it were half-written, and wait to be killed."
        name = os.readlink(f"/proc/self/fd/{file}")
        files.append(name)
        if ".projections.mrc." in name and sum(".projections.mrc." in one for one in files) == 3:
            os.ftruncate(file, os.fstat(file).st_size // 2)
            print("half-way", flush=True)
            time.sleep(60)
        flush(file)

    os.fsync = half_way
    main()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_kill_in_the_middle(command: Command, templates: Path, tmp_path: Path) -> None:
    """After kill -9 in the middle of a file no half-written file has its final name; a second run completes the set."""
    options = [*generated(templates), "--count", 4]
    command("simulate", tmp_path / "whole", *options)
    arguments = [sys.executable, "-c", textwrap.dedent(_PROGRAM), "simulate", tmp_path / "set", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([str(argument) for argument in arguments], **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half-way\n"
        process.kill()
    folders = [tmp_path / "set" / f"tomogram_{index:04d}" for index in range(3)]
    assert [is_whole(folder) for folder in folders] == [True, True, False]
    assert list(folders[2].glob(".projections.mrc.*.part"))
    assert "projections.mrc" not in names(folders[2])
    times = {path: path.stat().st_mtime_ns for folder in folders[:2] for path in folder.iterdir()}
    output = command("simulate", tmp_path / "set", *options)
    assert output.startswith(f"2 tomograms written into {tmp_path}/set, 2 were there")
    assert content(tmp_path / "set") == content(tmp_path / "whole")
    assert names(tmp_path / "set") == names(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not list((tmp_path / "set").rglob("*.part"))


def test_a_full_disk(
    command: Command, refused: Command, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told in a line that says what to do; when there is room, the same command completes the set."""
    options = [*generated(templates), "--count", 3]
    write, written = saving.write_mrc, []

    def failing(path: Path, *arguments: Any, **settings: Any) -> None:
        written.append(path)
        if len(written) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, *arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(saving, "write_mrc", failing)
        message = refused("simulate", tmp_path / "set", *options)
    assert "set/tomogram_0001, got: No space left on device; make room and do the same again" in message
    assert not list((tmp_path / "set").rglob("*.part"))
    assert [is_whole(tmp_path / "set" / f"tomogram_{index:04d}") for index in range(3)] == [True, False, False]
    assert command("simulate", tmp_path / "set", *options).startswith("2 tomograms written")
    assert all(is_whole(tmp_path / "set" / f"tomogram_{index:04d}") for index in range(3))


def test_a_corrected_command_after_a_full_disk(
    command: Command, refused: Command, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing became whole, other settings take the place of those, and no file of theirs is left."""
    options = [*generated(templates), "--count", 1]
    write, written = saving.write_mrc, []

    def failing(path: Path, *arguments: Any, **settings: Any) -> None:
        written.append(path)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, *arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(saving, "write_mrc", failing)
        refused("simulate", tmp_path / "set", *options)
    assert {path.name for path in (tmp_path / "set").iterdir()} >= {"simulation.json", STOPPED_FILE, "tomogram_0000"}
    assert command("simulate", tmp_path / "set", *options, "--no-density", "--seed", 4).startswith("1 tomogram written")
    command("simulate", tmp_path / "fresh", *options, "--no-density", "--seed", 4)
    assert content(tmp_path / "set") == content(tmp_path / "fresh")
    assert names(tmp_path / "set") == names(tmp_path / "fresh")
    # Once there is a tomogram, its settings count; a stop changes nothing about it.
    (tmp_path / "set" / STOPPED_FILE).touch()
    assert "seed (5 instead of 4)" in refused("simulate", tmp_path / "set", *options, "--seed", 5)


def test_a_copick_project_after_a_stop(
    command: Command, refused: Command, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that were written before a disk was full go with their tomograms, also those of other classes."""

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    options = [*SMALL, "--snr", 0.5, "--count", 1, "--formats", "shrec,copick", "--templates"]
    with monkeypatch.context() as patched:
        patched.setattr(saving, "write_mrc", failing)
        refused("simulate", tmp_path / "set", *options, templates, "--counts", "long=2")
    project = Path("projects") / "copick"
    assert names(tmp_path / "set" / project / "ExperimentRuns") == {"tomogram_0000"}
    for folder in ("set", "fresh"):
        command("simulate", tmp_path / folder, *options, templates, "--counts", "small=4")
    found, fresh = (content(tmp_path / folder) for folder in ("set", "fresh"))
    assert found.keys() == fresh.keys()
    configs = [json.loads((tmp_path / one / project / "copick_config.json").read_text()) for one in ("set", "fresh")]
    assert [one["name"] for one in configs[0]["pickable_objects"]] == ["small"]
    assert configs[0]["pickable_objects"] == configs[1]["pickable_objects"]


def test_shards_correct_a_set_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another shard has put the new settings in place meanwhile, this one goes on with them."""
    open_set(tmp_path, {"seed": 3}, {})
    (tmp_path / STOPPED_FILE).touch()

    def other_shard(folder: Path) -> bool:
        monkeypatch.undo()
        open_set(folder, {"seed": 4}, {})
        return _sets.stopped_early(folder)

    monkeypatch.setattr(_sets, "stopped_early", other_shard)
    open_set(tmp_path, {"seed": 4}, {})
    with pytest.raises(ValueError, match=r"seed \(3 instead of 4\)"):
        open_set(tmp_path, {"seed": 3}, {})


def test_a_shard_that_stops_notes_nothing(
    refused: Command, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may be at work on their first tomograms: with other settings they would be mixed."""

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    options = [*generated(templates), "--count", 2, "--shard", "1/2"]
    with monkeypatch.context() as patched:
        patched.setattr(saving, "write_mrc", failing)
        refused("simulate", tmp_path / "set", *options)
    message = refused("simulate", tmp_path / "set", *options, "--seed", 4)
    assert "seed (4 instead of 3)" in message
    assert "or remove this one, where no tomogram is whole" in message


def test_a_stop_that_was_not_noted(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """A set that another shard may be beginning is not taken; the message says what may be done."""
    options = generated(templates)
    command("simulate", tmp_path / "set", *options, "--count", 1, "--shard", "2/2")
    message = refused("simulate", tmp_path / "set", *options, "--seed", 4)
    assert "choose another folder, or remove this one, where no tomogram is whole" in message
    (tmp_path / "set" / STOPPED_FILE).touch()
    assert command("simulate", tmp_path / "set", *options, "--count", 1).startswith("1 tomogram written")
    assert not (tmp_path / "set" / STOPPED_FILE).exists()


def test_voxels_of_another_microscope(refused: Command, templates: Path, tmp_path: Path) -> None:
    """Voxels that the microscope's file does not have are refused before a set is begun."""
    path = tmp_path / "scope.json"
    response = MicroscopeResponse(
        pixel_size=7.0,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=3.0, square=3.0),
        noise=(tuple(np.full(len(RINGS), 900.0)),),
        angle_range=(-60.0, 60.0),
        defocus=(3.0,),
        defocus_error=(0.1,),
    )
    model = ResponseNoise(order=2, series=noise_model().series, response=response)
    write_microscope(path, MicroscopeFile(noise=model))
    made = ["--templates", templates, "--counts", "small=4", *SMALL]
    message = refused("simulate", tmp_path / "set", *made, "--microscope", path)
    assert f"generated specimens: expected voxels of 7 Å, as of {path}, got 10 Å; set --voxel-size 7" in message
    assert not (tmp_path / "set").exists()


def test_abandoned_parts(command: Command, templates: Path, tmp_path: Path) -> None:
    """Parts of the set's own files go when they are old; a young one may be another shard's."""
    options = [*generated(templates), "--count", 1, "--shard", "2/2"]
    command("simulate", tmp_path / "set", *options)
    old, young = tmp_path / "set" / ".simulation.json.a.part", tmp_path / "set" / ".simulation.json.b.part"
    for part in (old, young):
        part.write_text("{")
    os.utime(old, (time.time() - 3600,) * 2)
    command("simulate", tmp_path / "set", *options)
    assert names(tmp_path / "set") == {"simulation.json", young.name}


# --- settings ---------------------------------------------------------------------------------------------------------


def test_other_settings_in_the_same_folder(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """Another run with other settings is refused, and says what differs; nothing is touched."""
    command("simulate", tmp_path / "set", *generated(templates))
    before = content(tmp_path / "set")
    for more, told in (
        (["--seed", 4], "got others for seed (4 instead of 3);"),
        (["--formats", "star5"], 'got others for formats (["star5"] instead of ["shrec"]);'),
        (["--filter", "ramp", "--extend", "wrap"], 'for extend ("wrap" instead of "zero"), filter ("ramp" instead of'),
        (["--counts", "small=4"], "got others for counts ("),
        (["--membranes", "1"], "got others for membranes (1 instead of null);"),
    ):
        message = refused("simulate", tmp_path / "set", *generated(templates), "--count", 2, *more)
        assert f"expected the settings that {tmp_path}/set/simulation.json was made with, " in message
        assert told in message
    assert content(tmp_path / "set") == before


def test_templates_are_compared_by_content(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """Templates that moved are the same; one that changed is not."""
    command("simulate", tmp_path / "set", *generated(templates))
    moved = tmp_path / "moved"
    shutil.copytree(templates, moved)
    assert command("simulate", tmp_path / "set", *generated(moved)).startswith("0 tomograms written")
    write_mrc(moved / "small.mrc", blobs((9, 9, 9), [(4, 4, 4)], 1.4), voxel_size=10.0)
    assert "got others for templates;" in refused("simulate", tmp_path / "set", *generated(moved))


def test_resume_under_other_threads(
    command: Command, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the number of CPU threads nor the last bits of what was computed from the files are settings."""
    used: list[int] = []

    def inexact(make: Any) -> Any:
        def made(*arguments: Any, **settings: Any) -> Any:
            used.append(torch.get_num_threads())
            return make(*arguments, **settings)

        return made

    def last_bits(template: Any) -> Any:
        return replace(template, density=template.density * (1 + 2e-7))

    options = [*generated(templates), "--resolution", 25, "--threads", 1]
    options += ["--style", _style(tmp_path), "--modality", "noisy"]
    read, assume = recipe.read_templates, NoiseModel.assume
    monkeypatch.setattr(recipe, "read_templates", inexact(read))
    monkeypatch.setattr(NoiseModel, "assume", inexact(assume))
    command("simulate", tmp_path / "set", *options)
    before, threads = content(tmp_path / "set"), torch.get_num_threads()
    monkeypatch.setattr(recipe, "read_templates", inexact(lambda *a, **k: [last_bits(one) for one in read(*a, **k)]))
    torch.set_num_threads(3)
    try:
        message = command("simulate", tmp_path / "set", *options, "--count", 2)
    finally:
        torch.set_num_threads(threads)
    assert message.startswith("1 tomogram written")
    assert set(used) == {1}
    after = content(tmp_path / "set")
    assert {name: after[name] for name in before} == before


def _style(folder: Path) -> Path:
    series = style_series(0)
    write_mrc(folder / "style.mrc", series.tilts, voxel_size=10.0)
    write_tlt(folder / "style.tlt", series.tilt_angles)
    return folder / "style.mrc"


def test_specimens_are_compared_by_content(command: Command, refused: Command, models: Path, tmp_path: Path) -> None:
    """Specimens that moved are the same, also where the set lies among them; others, or changed ones, are not."""
    options = ["--modality", "noiseless", "--tilt-angles=-50:50:25"]
    command("simulate", models / "set", "--specimens", models, *options, "--count", 1)
    moved = tmp_path / "moved"
    models.rename(moved)
    made = command("simulate", moved / "set", "--specimens", moved, *options, "--count", 2)
    assert made.startswith("1 tomogram written")
    write_shrec(moved / "model_1", specimen(7))
    assert "got others for specimens;" in refused("simulate", moved / "set", "--specimens", moved, *options)
    write_shrec(moved / "model_1", specimen(1))
    write_shrec(moved / "model_2", specimen(2))
    assert "got others for specimens;" in refused("simulate", moved / "set", "--specimens", moved, *options)


def test_settings_of_a_file(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """A file's settings are those of the command line, which wins; paths in it count from its folder."""
    shutil.copytree(templates, tmp_path / "maps")
    settings: dict[str, Any] = {
        "templates": ["maps"],
        "counts": {"small": 4, "long": 2},
        "particles": {"small": {"count": [3, 3], "cluster_size": 3, "cluster_radius": 60}},
        "membranes": [{"kind": "sheet", "thickness": [35, 40], "name": "bilayer"}],
        "filaments": [{"subunit": "maps/small.mrc", "rise": 40, "twist": 30, "persistence_length": 1e5, "name": "rod"}],
        "tilt_angles": "-50:50:25",
        "shape": [24, 32, 40],
        "snr": 0.5,
        "seed": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    command("simulate", tmp_path / "set", "--config", tmp_path / "config.json", "--seed", 2)
    found = GrandModel.from_shrec(tmp_path / "set" / "tomogram_0000")
    assert list(found.class_names.values()) == ["long", "small", "bilayer", "rod"]
    assert np.bincount(found.particles.classes)[[1, 2]].tolist() == [2, 3]
    assert SimulationRecord.read(tmp_path / "set" / "tomogram_0000").seed == 2
    # The settings of a set are such a file, too, and so is the record of a tomogram.
    for name in ("simulation.json", "tomogram_0000/record.json"):
        again = tmp_path / Path(name).stem
        command("simulate", again, "--config", tmp_path / "set" / name)
        assert content(again) == content(tmp_path / "set")
    write_mrc(tmp_path / "maps" / "rod.mrc", blobs((9, 9, 9), [(4, 4, 4)], 1.4), voxel_size=10.0)
    settings["filaments"][0]["subunit"] = "maps/rod.mrc"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    message = refused("simulate", tmp_path / "set", "--config", tmp_path / "config.json", "--seed", 2)
    assert "got others for filaments;" in message


def test_every_option_is_a_setting_of_a_file() -> None:
    """The command line and the file have the same names, and each is explained."""
    output = CliRunner().invoke(app, ["simulate", "--help"], env={"COLUMNS": "300"}).output
    for setting in SETTINGS.values():
        assert f"{setting.option} " in output


def test_a_shortfall_is_told_in_a_line(
    templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the library warns of is one line, and no error."""
    options = ["--templates", templates, "--counts", "small=1", "--membranes", "sphere=9", *SMALL]
    code, _, errors = outcome(["simulate", tmp_path / "set", *options], monkeypatch, capsys)
    assert code == 0
    (line,) = [line for line in errors.splitlines() if "warning" in line]
    assert line.startswith(
        "faket-aug: warning: generated specimen 0 of epoch 0, seed 0: expected 9 of membrane, placed"
    )


@pytest.mark.slow
def test_the_cluster_example(templates: Path, tmp_path: Path) -> None:
    """The example's jobs make the set."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "faket-aug"
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -c "from faket_aug.cli import main; main()" "$@"\n')
    program.chmod(0o755)
    settings = {"templates": [str(templates)], "counts": 2, "shape": [16, 24, 32], "tilt_angles": [-40, 0, 40]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for job in (1, 2):
        subprocess.run(
            ["bash", EXAMPLE, "set", "config.json", "2"],
            env=environment | {"SLURM_ARRAY_TASK_ID": str(job)},
            cwd=tmp_path,
            capture_output=True,
            check=True,
            timeout=60,
        )
    assert {"tomogram_0000", "tomogram_0001", "preview.png"} < names(tmp_path / "set")


# --- what a user can get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either specimens from files (set --specimens) or what to generate them from (set --templates,"),
        (["--specimens", "models", "--counts", "3"], "got both, --counts"),
        (["--fiducials", "1", "--dark"], "expected --dark of specimens from files, got it for generated ones"),
        (["--templates", "maps"], "expected `count`, `concentration_per_um3` or `concentration_molar`, got none"),
        (["--templates", "maps", "--counts", "3", "--concentrations", "3"], "expected either --counts or --concentr"),
        (["--templates", "maps", "--counts", "many"], "expected --counts to be whole numbers by name"),
        (["--templates", "maps", "--counts", "small=1.5"], "expected --counts small to be one whole number, or two"),
        (["--templates", "maps", "--counts", "tiny=3"], "expected --counts of the templates long, small, got tiny"),
        (["--templates", "maps", "--counts", "3", "--membrane-bound", "huge"], "expected --membrane-bound of the temp"),
        (["--templates", "maps", "--counts", "3", "--membrane-bound", "long"], "expected --membranes for membrane-bou"),
        (["--templates", "maps", "--counts", "3", "--distractors", "maps"], "either in --templates or in --distractor"),
        (["--templates", "maps", "--concentrations", "1e9"], "expected particles that fill at most 64% of the ice"),
        (["--templates", "nowhere", "--counts", "3"], "expected a density map or an atomic structure, found none at"),
        (["--templates", "config.json", "--counts", "3"], "expected a file named .mrc, .map"),
        (["--membranes", "cube=1"], "expected --membranes of sphere, ellipsoid, toroid, sheet, got cube"),
        (["--filaments", "rope=1"], "expected --filaments of actin, microtubule, got rope"),
        (["--fiducials", "1", "--slab-tilt", "5"], "expected the thickness of the slab that is tilted, got none"),
        (["--fiducials", "1", "--slab", "1,2,3"], "expected --slab to be one number, or two with a comma between"),
        (["--fiducials", "1", "--shape", "16,24"], "expected --shape to be three whole numbers z,y,x, got '16,24'"),
        (["--fiducials", "1", "--formats", "csv"], "expected --formats to be one of 'shrec', 'star3'"),
        (["--fiducials", "1", "--modality", "blurred"], "expected --modality to be one of 'noiseless', 'baseline'"),
        (["--fiducials", "1", "--modality", "faket"], "expected tilt-series for the modality 'faket', got none; set"),
        (["--fiducials", "1", "--snr", "-1"], "expected --snr to be more than 0, got -1.0"),
        (["--fiducials", "1", "--snr", "1", "--noise", "n.json"], "expected either --microscope or --snr, got both"),
        (
            ["--fiducials", "1", "--noise", "n.json"],
            "expected a fitted microscope or noise model, found none",
        ),
        (["--fiducials", "1", "--noise", "config.json"], "config.json: expected a noise model of format 1"),
        (["--fiducials", "1", "--tilt-angles", "60:-60:3"], "expected --tilt-angles to be first:last:step"),
        (["--fiducials", "1", "--tilt-angles", "a.tlt"], "expected a file of tilt angles, found none at a.tlt"),
        (["--fiducials", "1", "--filter", "sharp"], "expected --filter to be one of"),
        (["--fiducials", "1", "--style", "s.mrc"], "expected a tilt-series, found none at s.mrc"),
        (["--fiducials", "1", "--shard", "3"], "expected --shard to be i/n, as 3/10, got '3'"),
        (["--fiducials", "1", "--shard", "0/3"], "expected --shard i/n with i from 1 to n, got 0/3"),
        (["--fiducials", "1", "--shard", "4/3"], "expected --shard i/n with i from 1 to n, got 4/3"),
        (["--specimens", "nowhere"], "expected a folder of specimens, found none at nowhere"),
        (["--specimens", "maps"], "maps: expected specimens, there or in folders within, found none of: SHREC's"),
        (["--config", "nowhere.json"], "expected a JSON or TOML file of settings, found none at nowhere.json"),
        (["--config", "broken.json"], "broken.json: expected a JSON or TOML file of settings (JSON), got other text"),
        (["--config", "list.json"], "list.json: expected a JSON or TOML file of settings (a JSON object), got '[1]'"),
        (["--config", "config.json"], "config.json: expected settings to be specimens, dark, templates"),
        (["--config", "wrong.json"], "wrong.json: expected `snr` to be a number, got 'high'"),
        (["--config", "species.json"], "expected settings of `membranes[0]` to be kind, count, "),
        (["--config", "particle.json"], "expected settings of `particles.small` to be count, "),
    ],
)
def test_mistakes(
    refused: Command, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, message: str
) -> None:
    """What a user can cause gives one line with the remedy, before anything is written."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(templates, tmp_path / "maps")
    write_shrec(tmp_path / "models" / "model_0", specimen(0))
    for name, text in {
        "broken.json": "{",
        "list.json": "[1]",
        "config.json": '{"fiducial": 3}',
        "wrong.json": '{"fiducials": 1, "snr": "high"}',
        "species.json": '{"membranes": [{"shape": "sphere"}]}',
        "particle.json": '{"templates": "maps", "counts": 1, "particles": {"small": {"label": false}}}',
    }.items():
        (tmp_path / name).write_text(text)
    assert message in refused("simulate", "set", *arguments)
    assert not (tmp_path / "set").exists()


def test_folders_that_cannot_be_used(refused: Command, tmp_path: Path) -> None:
    """A file in the place of the folder, a folder with other things, and settings that are none."""
    (tmp_path / "file").write_text("")
    options = ["--fiducials", 1, *SMALL]
    assert "expected an output folder that can be written, got" in refused("simulate", tmp_path / "file", *options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    message = refused("simulate", tmp_path / "mine", *options)
    assert "expected an empty folder, or one with simulation.json, got" in message
    assert "with notes.txt; choose another" in message
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "simulation.json").write_text("{}")
    message = refused("simulate", tmp_path / "set", *options)
    assert "simulation.json: expected the settings of a set of tomograms (format 1), got " in message
    (tmp_path / "set" / "simulation.json").write_text("{")
    message = refused("simulate", tmp_path / "set", *options)
    assert "simulation.json: expected the settings of a set of tomograms (JSON), got other text" in message


def test_damaged_settings_of_a_set(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """A changed `simulation.json` is noticed by the set, and as a file of settings; without a checksum it is read."""
    options = ["--fiducials", 1, *SMALL]
    command("simulate", tmp_path / "set", *options)
    path = tmp_path / "set" / "simulation.json"
    text = path.read_text()
    path.write_text(text.replace('"fiducials": 1', '"fiducials": 2'))
    for words in (["set", *options], ["other", "--config", path]):
        message = refused("simulate", tmp_path / words[0], *words[1:])
        assert "simulation.json: expected" in message
        assert "whose content has the checksum in the file, got other content: the file is damaged" in message
    assert not (tmp_path / "other").exists()
    content = json.loads(text)
    del content["checksum"]
    path.write_text(json.dumps(content))
    assert command("simulate", tmp_path / "set", *options).startswith("0 tomograms written")
    path.write_text(json.dumps(content | {"checksun": "0"}))
    assert "got also checksun" in refused("simulate", tmp_path / "other", "--config", path)
    assert "(format 1), got" in refused("simulate", tmp_path / "set", *options)


# --- all that the library can do --------------------------------------------------------------------------------------


def test_the_whole_microscope_from_the_command_line(command: Command, templates: Path, tmp_path: Path) -> None:
    """Transfer function, correction and imperfections are those of the library, and the tomogram is the same."""
    more = ["--ctf", "defocus=3.0,spread=1.0,voltage=200", "--ctf-correction", "phase-flip", "--keep-spectrum"]
    more += ["--misalignment", "shift=5,rotation=0.2", "--damage", "per_tilt=3,order=ascending"]
    more += ["--detector", "at_nyquist=0.4,noise_share=0.5", "--iterations", 2, "--memory-budget", "1e6"]
    command("simulate", tmp_path / "set", *generated(templates), *more)
    folder = tmp_path / "set" / "tomogram_0000"
    record, specimen_ = SimulationRecord.read(folder), GrandModel.from_shrec(folder)
    simulator = FakETSimulator(
        tilt_angles=record.settings["tilt_angles"],
        modality="noisy",
        noise=NoiseModel.from_json(record.settings["noise"]),
        ctf=ContrastTransfer(defocus=3.0, spread=1.0, voltage=200.0),
        ctf_correction="phase-flip",
        keep_spectrum=True,
        iterations=2,
        memory_budget=1_000_000,
        imperfections=Imperfections(
            misalignment=Misalignment(shift=5.0, rotation=0.2),
            damage=ExposureDamage(per_tilt=3.0, order="ascending"),
            detector=Detector(at_nyquist=0.4, noise_share=0.5),
        ),
    )
    assert simulator.settings() == record.settings
    assert torch.equal(simulator.simulate(specimen_, record).tomogram, read_mrc(folder / "reconstruction.mrc")[0])
    # The record's own options make it again.
    command("simulate", tmp_path / "again", "--config", folder / "record.json")
    assert content(tmp_path / "again") == content(tmp_path / "set")


def test_a_toml_file(command: Command, refused: Command, templates: Path, tmp_path: Path) -> None:
    """The same settings in TOML make the same set as the command line; paths count from the file."""
    shutil.copytree(templates, tmp_path / "maps")
    (tmp_path / "set.toml").write_text(
        """
templates = ["maps"]
counts = { small = [2, 2], long = 1 }
shape = [24, 32, 40]
tilt_angles = "-50:50:25"
snr = 0.5
seed = 4
fiducials = { count = 1, radius = [20, 30] }
slab = { thickness = [200, 220], tilt = 3 }
[particles.small]
cluster_size = 2
[membranes.sheet]
count = 1
thickness = [35, 40]
[ctf]
defocus = 4
"""
    )
    command("simulate", tmp_path / "set", "--config", tmp_path / "set.toml")
    flags = ["--templates", templates, "--counts", "small=2,2,long=1", "--shape", "24,32,40", "--seed", 4, "--snr", 0.5]
    flags += ["--fiducials", "count=1,radius=20,30", "--slab", "thickness=200,220,tilt=3", "--ctf", "defocus=4"]
    flags += ["--particles", "small.cluster_size=2", "--membranes", "sheet.count=1,sheet.thickness=35,40"]
    command("simulate", tmp_path / "flags", *flags, "--tilt-angles=-50:50:25")
    assert content(tmp_path / "flags") == content(tmp_path / "set")
    (tmp_path / "set.toml").write_text("fiducials = 1\nctf = { defocus = 4, spred = 1 }")
    message = refused("simulate", tmp_path / "other", "--config", tmp_path / "set.toml")
    assert "set.toml: expected settings of `ctf` to be defocus, spread," in message
    assert message.endswith("got spred")


def test_species_of_one_kind_may_be_repeated(command: Command, tmp_path: Path) -> None:
    """An option that is given twice adds a species."""
    small, large = "sphere.count=1,sphere.radius=80,80,sphere.name=small", "sphere.radius=120,120,sphere.name=large"
    options = ["--membranes", small, "--membranes", large, "--shape", "48,64,64", "--tilt-angles=-40:40:40"]
    command("simulate", tmp_path / "set", *options)
    found = GrandModel.from_shrec(tmp_path / "set" / "tomogram_0000")
    assert list(found.class_names.values()) == ["small", "large"]
    volumes = np.bincount(found.labels.flatten().numpy(), minlength=3)
    assert volumes[2] > 1.5 * volumes[1] > 0


def test_a_set_of_version_0_1_goes_on(
    command: Command, refused: Command, templates: Path, models: Path, tmp_path: Path
) -> None:
    """A set whose settings were written without the library's defaults, and without later settings, goes on."""
    known = (
        *("dark", "counts", "concentrations", "occupancy", "particles", "resolution", "membrane_bound", "membranes"),
        *("filaments", "fiducials", "slab", "slab_tilt", "gap", "shape", "voxel_size", "style_layers", "snr"),
        *("formats", "noiseless", "density", "seed"),
    )
    written = {"dark": False, "membrane_bound": [], "formats": ["shrec"], "noiseless": False, "density": True}
    for name, options in {
        "generated": generated(templates),
        "files": ["--specimens", models, "--tilt-angles=-50:50:25"],
    }.items():
        command("simulate", tmp_path / name, *options, "--count", 1)
        file = tmp_path / name / "simulation.json"
        kept = json.loads(file.read_text())
        del kept["checksum"]
        given = kept["options"]
        for setting in set(kept["settings"]) & set(COMPARED):
            old = given.get(setting, written.get(setting))
            kept["settings"][setting] = old
            if setting not in known:
                del kept["settings"][setting]
        kept["settings"]["binning"] = kept["settings"].pop("resampling")
        file.write_text(json.dumps(kept))
        assert command("simulate", tmp_path / name, *options, "--count", 2).startswith("1 tomogram written")
        other = refused("simulate", tmp_path / name, *options, "--snr", 0.25)
        assert "snr (0.25 instead of " in other


def test_old_names_go_on(
    command: Command,
    templates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The option and the key of version 0.1 still work, and a line says what they are called now."""
    command("simulate", tmp_path / "set", *generated(templates), "--resampling", "fourier")
    code, _, errors = outcome(
        ["simulate", tmp_path / "option", *generated(templates), "--binning", "fourier"], monkeypatch, capsys
    )
    assert (code, "faket-aug: warning: --binning is called --resampling now" in errors) == (0, True)
    kept = json.loads((tmp_path / "set" / "simulation.json").read_text())
    del kept["checksum"]
    kept["options"]["binning"] = kept["options"].pop("resampling")
    (tmp_path / "old.json").write_text(json.dumps(kept))
    code, _, errors = outcome(["simulate", tmp_path / "file", "--config", tmp_path / "old.json"], monkeypatch, capsys)
    assert (code, "faket-aug: warning: `binning` is called `resampling` now" in errors) == (0, True)
    for name in ("option", "file"):
        assert SimulationRecord.read(tmp_path / name / "tomogram_0000").settings["resampling"] == "fourier"
        assert content(tmp_path / name) == content(tmp_path / "set")
