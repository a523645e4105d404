"""How a network is trained, and what a training did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from faket_aug._checks import check_choice, check_count, check_positive
from faket_aug.picking.inference import PRECISIONS

#: Adam's step of the published trainings.
LEARNING_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a network is trained.

    Parameters
    ----------
    steps
        Steps of the optimizer in all.
    learning_rate
        Adam's; as published.
    cross_entropy
        Weight of the cross-entropy that is added to Tversky's loss; 0 as published. It gets small networks and short
        trainings off the all-background solution.
    precision
        `"float32"`, or `"bfloat16"` (autocast; pays where the hardware has it).
    validate_every
        Steps from one validation to the next.
    patience
        Validations in a row without a new best after which the training ends; never by default.
    checkpoint_every
        Steps from one checkpoint to the next; there is one at the end in any case.
    compile
        Whether `torch.compile` compiles the network; minutes at the start, and other last bits.

    Raises
    ------
    ValueError
        For settings that cannot be.
    """

    steps: int
    learning_rate: float = LEARNING_RATE
    cross_entropy: float = 0.0
    precision: str = "float32"
    validate_every: int = 500
    patience: int | None = None
    checkpoint_every: int = 500
    compile: bool = False

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_positive("learning_rate", self.learning_rate)
        check_positive("cross_entropy", self.cross_entropy, zero=True)
        check_choice("precision", self.precision, PRECISIONS)
        check_count("validate_every", self.validate_every)
        check_count("checkpoint_every", self.checkpoint_every)
        if self.patience is not None:
            check_count("patience", self.patience)


@dataclass(kw_only=True)
class TrainingHistory:
    """What a training did.

    Parameters
    ----------
    losses
        One a step.
    validations
        Step and value of each validation.
    stopped_early
        Whether it ended because validations no longer got better.
    """

    losses: list[float]
    validations: list[tuple[int, float]]
    stopped_early: bool = False

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the best validation; the first of equals."""
        return min(self.validations, key=lambda entry: (entry[1], entry[0]), default=None)

    def since_best(self) -> int:
        """Validations since the best one."""
        best = self.best
        return 0 if best is None else sum(step > best[0] for step, _ in self.validations)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Take the history out of a checkpoint."""
        pairs = [(int(step), float(value)) for step, value in state["validations"]]
        return cls(losses=list(state["losses"]), validations=pairs, stopped_early=bool(state["stopped_early"]))
