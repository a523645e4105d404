"""Scores of picks: the published numbers, and cases counted by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics  # noqa: F401  what it does to Python's generator when imported is its own affair
import torch

from faket_aug import FileFormatError
from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.particles import ParticleList
from faket_aug.picking.scoring import SHREC_CHALLENGE_SKIP, evaluate_shrec, f_beta_score

LOCALIZATION = {
    "predicted_particles": "picks",
    "expected_particles": "particles",
    "TP": "found",
    "FP": "false_positives",
    "FN": "missed",
    "recall": "localization_recall",
    "Precision": "localization_precision",
    "F1 score": "localization_f1",
    "avg_euclid_dist_from_real_center": "mean_distance",
    "n_particles_with_multiple_preds": "double_hits",
    "n_particles_outside_bounds": "outside",
}


@pytest.mark.parametrize(("name", "skip"), [("all", ()), ("challenge", SHREC_CHALLENGE_SKIP)])
def test_published_numbers(reference: Path, name: str, skip: tuple[str, ...]) -> None:
    """Every number that the published evaluation gives comes out, to 1e-9."""
    folder = reference / "golden" / "shrec_eval"
    expected = json.loads((folder / f"expected_{name}.json").read_text())
    score = evaluate_shrec(folder / "picks.txt", folder, skip=skip)
    for key, attribute in LOCALIZATION.items():
        assert getattr(score, attribute) == pytest.approx(expected["localization"][key], abs=1e-9), key
    assert 1 - score.localization_recall == pytest.approx(expected["localization"]["Miss rate"], abs=1e-9)
    assert score.macro_f1 == pytest.approx(expected["macro_f1"], abs=1e-9)
    assert score.accuracy == pytest.approx(expected["overall_accuracy"], abs=1e-9)
    assert set(score.per_class) == set(expected["per_class"])
    for label, numbers in expected["per_class"].items():
        for key, number in numbers.items():
            found = getattr(score.per_class[label], key)
            assert found is None if number == "None" else found == pytest.approx(number, abs=1e-9), (label, key)
    header, *rows = csv.reader(io.StringIO(expected["confusion_matrix_csv"]))
    order = [score.labels.index(label) for label in header]
    np.testing.assert_array_equal(score.confusion[np.ix_(order, order)], np.array(rows, dtype=int))


def _particles(rows: list[tuple[str, float, float, float]]) -> ParticleList:
    return ParticleList(
        tuple(row[0] for row in rows),
        np.array([row[1:] for row in rows], dtype=float).reshape(-1, 3),
        np.full((len(rows), 3, 3), np.nan),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three particles, each a voxel with its six neighbours once dilated."""
    mask = torch.zeros((6, 8, 10), dtype=torch.int16)
    mask[1, 2, 3], mask[4, 5, 6], mask[4, 1, 8] = 1, 2, 3
    write_mrc(tmp_path / "occupancy_mask.mrc", mask, voxel_size=10.0)
    (tmp_path / "particle_locations.txt").write_text("A 3 2 1 0 0 0\nB 6 5 4 0 0 0\nB 8 1 4 NaN NaN NaN\n")
    (tmp_path / "class_conversion_table.txt").write_text("0 background\n1 A\n2 B\n")
    return tmp_path


def test_counted_by_hand(folder: Path) -> None:
    """One particle hit twice (the first pick counts), one hit with the wrong class, one missed, one pick outside."""
    picks = _particles([("a", 1, 2, 4), ("b", 1, 2, 3), ("A", 4, 5, 6), ("b", 0, 0, 99)])
    score = evaluate_shrec(picks, folder)
    assert (score.picks, score.particles, score.found, score.missed) == (4, 3, 2, 1)
    assert (score.false_positives, score.double_hits, score.outside) == (1, 1, 1)
    assert score.localization_recall == pytest.approx(2 / 3)
    assert score.localization_precision == pytest.approx(1 / 2)
    assert score.mean_distance == pytest.approx(0.5)
    assert score.confusion.tolist() == [[0, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert score.per_class["A"].f1 == pytest.approx(2 / 3)
    assert score.per_class["B"].precision is None
    assert score.macro_f1 == pytest.approx((0 + 2 / 3 + 0) / 3)
    assert score.accuracy == pytest.approx(1 / 3)


def test_empty_picks_score_zero(folder: Path) -> None:
    """Nothing picked is a score of zero, not an error."""
    score = evaluate_shrec(_particles([]), folder)
    assert (score.localization_f1, score.macro_f1, score.missed) == (0.0, 0.0, 3)
    assert np.isnan(score.mean_distance)


def test_skipped_class_is_background(folder: Path) -> None:
    """A particle taken for a skipped class is background; skipped particles are neither found nor missed."""
    score = evaluate_shrec(_particles([("A", 4, 5, 6), ("A", 1, 2, 3)]), folder, skip=("a",))
    assert score.labels == ("background", "B")
    assert (score.found, score.missed, score.particles) == (1, 1, 3)
    assert score.confusion.tolist() == [[0, 0], [2, 0]]


def test_all_classes_skipped(folder: Path) -> None:
    """Without a particle that counts there is nothing to compare: no class has a score."""
    score = evaluate_shrec(_particles([("A", 1, 2, 3)]), folder, skip=("A", "B"))
    assert (score.confusion.tolist(), dict(score.per_class)) == ([[0]], {})
    assert (score.macro_f1, score.accuracy, score.false_positives) == (0.0, 0.0, 0)


def test_rates_of_a_class_that_only_picks_have(folder: Path) -> None:
    """A class of picks only has no recall; a class of particles only has no precision."""
    (folder / "particle_locations.txt").write_text("A 3 2 1\nA 6 5 4\nA 8 1 4\n")
    score = evaluate_shrec(_particles([("B", 1, 2, 3), ("B", 4, 5, 6), ("B", 4, 1, 8)]), folder)
    only_picks, only_particles = score.per_class["B"], score.per_class["A"]
    assert (only_picks.precision, only_picks.recall, only_picks.f1) == (0.0, None, 0.0)
    assert (only_particles.precision, only_particles.recall, only_particles.f1) == (None, 0.0, 0.0)
    assert set(score.per_class) == {"A", "B"}


def test_unknown_class_is_named(folder: Path) -> None:
    with pytest.raises(FileFormatError, match="expected classes among A, B, got 'C'"):
        evaluate_shrec(_particles([("C", 1, 2, 3)]), folder)
    with pytest.raises(FileFormatError, match="`skip`: expected classes among A, B, got 'vesicle'"):
        evaluate_shrec(_particles([]), folder, skip=("vesicle",))


def test_mask_beyond_the_list(folder: Path) -> None:
    (folder / "particle_locations.txt").write_text("A 3 2 1\n")
    with pytest.raises(FileFormatError, match="occupancy_mask.mrc: expected rows 0 to 1 .* got 0 to 3"):
        evaluate_shrec(_particles([]), folder)


def test_f_beta_by_hand() -> None:
    """Hits within half a radius; a second pick of a particle is false; classes weighted; summed over tomograms."""
    truth = [_particles([("A", 0, 0, 0), ("A", 0, 0, 20), ("B", 5, 5, 5)]), _particles([("A", 9, 9, 9)])]
    picks = [_particles([("A", 0, 0, 4), ("A", 0, 3, 0), ("A", 0, 0, 15.9)]), _particles([("B", 1, 1, 1)])]
    # A: radius 80 Å at 10 Å is 4 voxels of reach: 1 of 3 found (20 - 15.9 > 4), 3 picks. B: none of 1 found, 1 pick.
    score = f_beta_score(picks, truth, radii={"A": 80.0, "B": 80.0}, voxel_size=10.0, weights={"B": 3.0})
    a = 17 * 1 / (17 * 1 + 2 + 16 * 2)
    assert score == pytest.approx((1 * a + 3 * 0) / 4)
    perfect = f_beta_score(truth, truth, radii={"A": 80.0, "B": 80.0}, voxel_size=10.0)
    assert perfect == pytest.approx(1.0)


def test_f_beta_bad_input() -> None:
    one = _particles([("A", 0, 0, 0)])
    with pytest.raises(ValueError, match="picks of each of 1 tomograms, got 2 lists"):
        f_beta_score([one, one], [one], radii={"A": 10.0}, voxel_size=10.0)
    with pytest.raises(ValueError, match=r"`radii\['A'\]` to be more than 0, got 0"):
        f_beta_score(one, one, radii={"A": 0.0}, voxel_size=10.0)
    other = _particles([("a", 0, 0, 0)])
    with pytest.raises(ValueError, match="picks of the class 'A', got 'a'; spell it the same"):
        f_beta_score(other, one, radii={"A": 10.0}, voxel_size=10.0)
    with pytest.raises(ValueError, match="a class with a weight of more than 0"):
        f_beta_score(one, one, radii={"A": 10.0}, voxel_size=10.0, weights={"A": 0.0})
