"""What a training did: its losses and validations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(kw_only=True)
class TrainingHistory:
    """What a training did: its losses and validations.

    Parameters
    ----------
    losses
        The loss of each step.
    validations
        Step and value of each validation; the lower the value, the better.
    scores
        Step and further numbers of each validation, by name; without those that gave none.
    stopped_early
        Whether the training ended because its validations no longer got better.
    """

    losses: list[float]
    validations: list[tuple[int, float]]
    scores: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    stopped_early: bool = False

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the best validation. Of equally good ones it is the first."""
        return min(self.validations, key=lambda entry: (entry[1], entry[0]), default=None)

    def since_best(self) -> int:
        """Count the validations since the best one."""
        best = self.best
        return 0 if best is None else sum(step > best[0] for step, _ in self.validations)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Take the history out of a checkpoint."""
        pairs = [(int(step), float(value)) for step, value in state["validations"]]
        # Checkpoints of 0.1.0 know no scores.
        scores = [(int(step), {str(n): float(v) for n, v in by.items()}) for step, by in state.get("scores", [])]
        ended = bool(state["stopped_early"])
        return cls(losses=list(state["losses"]), validations=pairs, scores=scores, stopped_early=ended)
