"""Settings of a training."""

from __future__ import annotations

from dataclasses import dataclass

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
