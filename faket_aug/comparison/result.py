"""The result of one arm of a comparison with one seed, and its file."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from faket_aug._checks import FileFormatError
from faket_aug.formats._atomic import write_text
from faket_aug.formats._json import CHECKSUM, parse_any, read_json, read_text, sealed, verified, write_json
from faket_aug.picking.scoring import ShrecScore

RESULT = "result.json"
_WHAT = "an arm's result"
_PACKAGES = ("faket_aug", "torch", "torchvision", "numpy", "scipy", "scikit-image", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """The result of one arm with one seed.

    Parameters
    ----------
    arm, seed
        Which.
    scores
        By test folder; see `ShrecScore` (its confusion matrix as lists).
    min_sizes
        Sizes of picks chosen on the validation specimen, by class number.
    losses, validations
        Of the training.
    best_step
        The step whose weights were used.
    made_with
        The arm's settings, and those of the scoring.
    versions
        Of what made it.
    """

    arm: str
    seed: int
    scores: Mapping[str, Mapping[str, Any]]
    min_sizes: Mapping[str, int]
    losses: Sequence[float]
    validations: Sequence[tuple[int, float]]
    best_step: int
    made_with: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def macro_f1(self) -> float:
        """Mean over the test specimens."""
        return float(np.mean([score["macro_f1"] for score in self.scores.values()]))

    @property
    def localization_f1(self) -> float:
        """Mean over the test specimens."""
        return float(np.mean([score["localization_f1"] for score in self.scores.values()]))


def read_result(path: Path) -> ArmResult:
    """Read the result of an arm.

    Raises
    ------
    FileFormatError
        If the file is damaged.
    """
    return _result(read_json(path, what=_WHAT), path)


def write_result(path: Path, result: ArmResult) -> None:
    """Write the result of an arm, with a checksum."""
    write_json(path, asdict(result))


def read_results(path: str | Path) -> list[ArmResult]:
    """Read `results.json`: the results of several arms and seeds.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If there is none, or the file is damaged.
    """
    path, what = Path(path), "a list of arms' results"
    rows = parse_any(read_text(path, what=what), source=str(path), what=what)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise FileFormatError(f"{path}: expected {what}, got {str(rows)[:80]!r}")
    sealed_rows = [row for row in rows if CHECKSUM in row]
    results = [_result(verified(row, source=str(path), what=_WHAT), path) for row in rows]
    if len(sealed_rows) not in (0, len(rows)) or len({(one.arm, one.seed) for one in results}) < len(rows):
        raise FileFormatError(
            f"{path}: expected each arm with each seed once, and a `{CHECKSUM}` of each, got others: the file is "
            "damaged; run `faket-aug compare` again"
        )
    return results


def write_results(path: Path, results: Sequence[ArmResult]) -> None:
    """Write the results of several arms and seeds as a list, each with a checksum."""
    write_text(path, json.dumps([sealed(asdict(result)) for result in results], indent=1))


def _result(content: Mapping[str, Any], path: Path) -> ArmResult:
    try:
        result = ArmResult(**content)
        return replace(result, validations=[(int(s), float(v)) for s, v in result.validations])
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise FileFormatError(f"{path}: expected {_WHAT}, got {error}; remove it to run the arm again") from error


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    return {
        **{name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def score_as_json(score: ShrecScore) -> dict[str, Any]:
    """Turn a score into JSON types."""
    data = asdict(score) | {"confusion": score.confusion.tolist(), "labels": list(score.labels)}
    # JSON knows no NaN.
    return data | {"mean_distance": None if math.isnan(score.mean_distance) else score.mean_distance}
