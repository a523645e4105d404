"""`faket-aug score`: precision, recall and F by class and distance, of picks in any format."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
import torch
from _helpers import outcome
from PIL import Image

from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.particle_lists import PARTICLE_FORMATS, write_particles
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.star import write_particles_star
from faket_aug.picking.distances import score_by_distance
from faket_aug.picking.scoring import f_beta_score

SHAPE, SIZE = (40, 60, 80), 10.0
NUMBERS = {"small": 1, "large": 2}


def listed(places: Mapping[str, Sequence[Sequence[float]]]) -> ParticleList:
    """A list of particles without orientations."""
    names = tuple(name for name, rows in places.items() for _ in rows)
    positions = np.array([row for rows in places.values() for row in rows], dtype=float).reshape(-1, 3)
    return ParticleList(names, positions, np.full((len(names), 3, 3), np.nan))


TRUTH = listed({"small": [(10, 10, 10), (10, 30, 10), (10, 50, 10)], "large": [(20, 20, 60), (20, 40, 60)]})
#: Of small two are found (at 20 and 40 Å), one pick is a second one, one is far away; of large one is found.
PICKS = listed({"small": [(10, 10, 12), (10, 34, 10), (10, 10, 7), (30, 5, 70)], "large": [(20, 20, 60)]})


def score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of `faket-aug score`."""
    return outcome(["score", *arguments], monkeypatch, capsys)


def write(path: Path, particles: ParticleList, format: str, *, size: float = SIZE, tomogram: str = "TS_1") -> Path:
    """Write a list in one of the formats."""
    write_particles(
        path,
        particles,
        format=format,
        class_numbers=NUMBERS,
        voxel_size=size,
        shape=tuple(round(n * SIZE / size) for n in SHAPE),
        tomogram=tomogram,
    )
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """A folder in SHREC's layout with masks of cubes."""
    folder = tmp_path / "TS_1"
    folder.mkdir()
    write(folder / "particle_locations.txt", TRUTH, "shrec")
    (folder / "class_conversion_table.txt").write_text("0 background\n1 small\n2 large\n")
    occupancy = torch.zeros(SHAPE, dtype=torch.int16)
    for row, (z, y, x) in enumerate(TRUTH.positions.astype(int).tolist(), start=1):
        occupancy[z - 3 : z + 4, y - 3 : y + 4, x - 3 : x + 4] = row
    write_mrc(folder / "occupancy_mask.mrc", occupancy, voxel_size=SIZE)
    return folder


# --- the score itself -------------------------------------------------------------------------------------------------


def test_pairs_are_one_to_one() -> None:
    """The nearest pick finds the particle, a second one is false; hits grow with the distance."""
    found = score_by_distance(PICKS, TRUTH, distance=50, voxel_size=SIZE)
    small, large = found.per_class["small"], found.per_class["large"]
    assert (small.picks, small.particles, small.hits) == (4, 3, 2)
    assert (small.precision, small.recall) == (0.5, 2 / 3)
    assert small.f1 == pytest.approx(4 / 7)
    assert small.mean_distance == pytest.approx(30.0)
    assert [small.hits_within(one) for one in (0, 19, 20, 39, 40, 100)] == [0, 0, 1, 1, 2, 2]
    assert (large.precision, large.recall) == (1.0, 0.5)
    assert large.f1 == pytest.approx(2 / 3)
    assert found.places.hits == 3
    # F-beta of the CZII challenge, with its own words.
    radii = {"small": 100.0, "large": 100.0}
    assert found.mean_f_beta(4) == pytest.approx(f_beta_score(PICKS, TRUTH, radii=radii, voxel_size=SIZE))


def test_a_pick_between_two_particles_finds_one() -> None:
    """Where two particles are near one pick, precision is not above 1."""
    two = listed({"small": [(0, 0, 0), (0, 0, 4)]})
    found = score_by_distance(listed({"small": [(0, 0, 2)]}), two, distance=50, voxel_size=SIZE)
    assert (found.per_class["small"].hits, found.places.hits) == (1, 1)


def test_no_picks() -> None:
    """Without picks there is no precision, and F is 0."""
    none = score_by_distance(listed({}), TRUTH, voxel_size=SIZE).per_class["small"]
    assert (none.precision, none.recall, none.f1, none.mean_distance) == (None, 0.0, 0.0, None)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", PARTICLE_FORMATS)
def test_every_format(
    format: str, truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Picks of every format give the same table against the folder; voxel size, shape and names are the folder's."""
    if format == "copick":
        pytest.importorskip("copick")
    suffix = {"shrec": ".txt", "deepfinder": ".xml", "copick": ""}.get(format, ".star")
    picks = write(tmp_path / f"picks{suffix}", PICKS, format)
    code, out, err = score(monkeypatch, capsys, picks, truth)
    assert code == 0, err
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["small"] == ["50", "Å", "3", "4", "2", "0.500", "0.667", "0.571", "0.654"]
    assert rows["large"] == ["50", "Å", "2", "1", "1", "1.000", "0.500", "0.667", "0.515"]
    assert "By the occupancy mask (SHREC's evaluation): F1 of places 0.600" in out


def test_what_is_written(
    truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers, table and picture; distances by class, F2."""
    picks = tmp_path / "picks.csv"
    rows = [f"{n.upper()},{x},{y},{z}" for n, (z, y, x) in zip(PICKS.names, PICKS.positions.tolist(), strict=True)]
    picks.write_text("\n".join(["class,x,y,z", *rows]))
    options = ("--distance", "small=30,LARGE=10", "--beta", "2", "--output", tmp_path / "out")
    code, out, err = score(monkeypatch, capsys, picks, truth, *options)
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "score.json").read_text())
    assert found["per_class"]["small"]["hits"] == 1
    assert found["per_class"]["small"]["f_beta"] == pytest.approx(5 / (4 + 4 * 3))
    assert (found["beta"], found["voxel_size"]) == (2.0, 10.0)
    assert found["shrec"]["particles"] == 5
    table = list(csv.DictReader((tmp_path / "out" / "score.csv").read_text().splitlines()))
    assert [row["class"] for row in table] == ["small", "large", "any class"]
    assert float(table[1]["recall"]) == 0.5
    with Image.open(tmp_path / "out" / "score.png") as picture:
        assert picture.width > 1000
    assert f"Positions in {picks} were taken in voxels of 10 Å" not in out


def test_voxel_sizes(
    truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Picks of a tomogram with other voxels are scaled: by what a STAR file says, or by the user."""
    fine = ParticleList(PICKS.names, PICKS.positions * 2, PICKS.orientations)
    star = write(tmp_path / "fine.star", fine, "star4", size=SIZE / 2)
    text = write(tmp_path / "fine.txt", fine, "shrec")
    _, out, _ = score(monkeypatch, capsys, star, truth)
    assert out.splitlines()[1].split()[5] == "2"
    _, out, _ = score(monkeypatch, capsys, text, truth, "--picks-voxel-size", 5)
    assert out.splitlines()[1].split()[5] == "2"
    _, out, _ = score(monkeypatch, capsys, text, truth)
    assert out.splitlines()[1].split()[5] == "0"
    for option in ("--voxel-size", "--picks-voxel-size"):
        code, _, err = score(monkeypatch, capsys, text, truth, option, 0)
        assert code == 1, option
        assert f"expected {option} to be more than 0, got 0" in err


def test_no_voxel_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no file says the voxel size, the user is asked, also for the shape that RELION 5's positions need."""
    one, other = (write(tmp_path / f"{name}.txt", PICKS, "shrec") for name in ("one", "other"))
    code, _, err = score(monkeypatch, capsys, one, other)
    assert code == 1
    assert "expected a voxel size in" in err
    assert "set --voxel-size, or --volume to the tomogram" in err
    code, out, _ = score(monkeypatch, capsys, one, other, "--voxel-size", 10)
    assert (code, out.splitlines()[1].split()[-1]) == (0, "1.000")
    five = write(tmp_path / "five.star", PICKS, "star5")
    code, _, err = score(monkeypatch, capsys, five, other, "--voxel-size", 10)
    assert code == 1
    assert err.strip().endswith("count from the centre; set --volume to the tomogram, whose header says both")
    write_mrc(tmp_path / "tomogram.mrc", torch.zeros(SHAPE), voxel_size=SIZE)
    code, out, _ = score(monkeypatch, capsys, five, other, "--volume", tmp_path / "tomogram.mrc")
    assert (code, out.splitlines()[1].split()[-1]) == (0, "1.000")


def test_classes_that_the_truth_lacks(
    truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both lists' classes are told; `--classes` leaves others out."""
    other = ParticleList(tuple("beam" if n == "large" else n for n in PICKS.names), PICKS.positions, PICKS.orientations)
    picks = write(tmp_path / "picks.txt", other, "shrec")
    code, _, err = score(monkeypatch, capsys, picks, truth)
    assert code == 1
    assert f"{picks}: expected picks of classes that {truth} has (large, small), got beam; set --classes" in err
    code, out, err = score(monkeypatch, capsys, picks, truth, "--classes", "Small")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["small", "any"]
    code, _, err = score(monkeypatch, capsys, picks, truth, "--classes", "beam")
    assert code == 1
    assert "expected classes that" in err


def test_another_tomogram(
    truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Picks of another tomogram are not taken without a word."""
    from faket_aug.formats.star import write_particles_star

    both = tmp_path / "both.star"
    two = {"TS_1": PICKS, "TS_2": TRUTH}
    write_particles_star(both, two, voxel_size=SIZE, shape=SHAPE, version=4, class_numbers=NUMBERS)
    code, _, err = score(monkeypatch, capsys, both, truth)
    assert code == 1
    assert "both.star: expected one tomogram, got TS_1, TS_2; set --tomogram" in err
    code, out, _ = score(monkeypatch, capsys, both, truth, "--tomogram", "TS_2")
    assert (code, out.splitlines()[1].split()[-1]) == (0, "1.000")
    first = write(tmp_path / "first.star", PICKS, "star4", tomogram="TS_1")
    third = write(tmp_path / "third.star", PICKS, "star4", tomogram="TS_3")
    code, _, err = score(monkeypatch, capsys, first, third)
    assert code == 1
    assert "expected picks of tomogram TS_3" in err
    assert "set --tomogram TS_1 and --truth-tomogram TS_3" in err
    code, _, _ = score(monkeypatch, capsys, first, third, "--tomogram", "TS_1", "--truth-tomogram", "TS_3")
    assert code == 0


def test_nothing_there(
    truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path without a list says what was looked for."""
    (tmp_path / "empty").mkdir()
    for pair in ((tmp_path / "empty", truth), (truth, tmp_path / "empty")):
        code, _, err = score(monkeypatch, capsys, *pair)
        assert (code, "expected particle_locations.txt or a copick project, found neither" in err) == (1, True)
    code, _, err = score(monkeypatch, capsys, tmp_path / "none.star", truth)
    assert (code, "expected a list of particles, found none at" in err) == (1, True)


# --- several tomograms ------------------------------------------------------------------------------------------------


@pytest.fixture
def truths(truth: Path, tmp_path: Path) -> Path:
    """A set of two tomograms, the second without large particles."""
    folder = tmp_path / "set"
    folder.mkdir()
    truth.rename(folder / "TS_1")
    other = folder / "TS_2"
    other.mkdir()
    write(other / "particle_locations.txt", listed({"small": [(5, 5, 5), (5, 30, 5)]}), "shrec")
    write_mrc(other / "occupancy_mask.mrc", torch.zeros(SHAPE, dtype=torch.int16), voxel_size=SIZE)
    return folder


def _star(path: Path, lists: Mapping[str, ParticleList]) -> Path:
    write_particles_star(path, lists, voxel_size=SIZE, shape=SHAPE, class_numbers=NUMBERS)
    return path


SECOND = listed({"small": [(5, 5, 6)], "large": [(30, 30, 30)]})


def test_totals_and_each_tomogram(
    truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hits, picks and particles are sums; a row for each tomogram; picks of tomograms without truth are left out."""
    picks = _star(tmp_path / "picks.star", {"TS_1": PICKS, "TS_2_10.00Apx": SECOND, "TS_9": SECOND})
    code, out, err = score(monkeypatch, capsys, picks, truths, "--output", tmp_path / "out")
    assert code == 0, err
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    # Of small 2 of 3 and 1 of 2 are found, of large 1 of 2 and, in the second, none is there.
    assert rows["small"][:5] == ["50", "Å", "5", "5", "3"]
    assert rows["large"][:5] == ["50", "Å", "2", "2", "1"]
    assert rows["TS_1"][:3] == ["5", "5", "3"]
    assert rows["TS_2"][:5] == ["2", "2", "1", "0.500", "0.500"]
    assert "Left out, since the truth has no such tomograms: picks of TS_9." in out
    content = json.loads((tmp_path / "out" / "score.json").read_text())
    assert content["per_class"]["small"]["hits"] == 3
    assert content["tomograms"]["TS_2"]["per_class"]["large"]["picks"] == 1
    with (tmp_path / "out" / "score.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["hits"] for row in table if row["class"] == "small"] == ["3", "2", "1"]
    # The same of a folder of lists.
    folder = tmp_path / "lists"
    folder.mkdir()
    write(folder / "TS_1.txt", PICKS, "shrec")
    write(folder / "TS_2.txt", SECOND, "shrec")
    again = score(monkeypatch, capsys, folder, truths)[1]
    assert again.splitlines()[:4] == out.splitlines()[:4]


def test_tomograms_without_picks_count(
    truths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a list has nothing of a tomogram, its particles are missed; no pair at all is an error."""
    picks = _star(tmp_path / "picks.star", {"TS_1": PICKS})
    code, out, err = score(monkeypatch, capsys, picks, truths)
    assert code == 0, err
    assert "No picks of TS_2: all their particles count as missed." in out
    assert "small" in out
    code, _, err = score(monkeypatch, capsys, _star(tmp_path / "other.star", {"X": PICKS, "Y": PICKS}), truths)
    assert code == 1
    assert "expected picks of tomograms that" in err
    assert "got X, Y; set --tomogram" in err
    code, out, err = score(monkeypatch, capsys, picks, truths, "--tomogram", "TS_1")
    assert code == 0, err
    assert "By the occupancy mask" in out
