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
from faket_aug.picking.scoring import ShrecScore

RESULT = "result.json"
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
    try:
        result = ArmResult(**json.loads(path.read_text()))
        return replace(result, validations=[(int(s), float(v)) for s, v in result.validations])
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(
            f"{path}: expected an arm's result, got {error}; remove it to run the arm again"
        ) from error


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
