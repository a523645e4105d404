"""Settings of a training."""

from __future__ import annotations

from dataclasses import dataclass

from faket_aug._checks import check_choice, check_count, check_fraction, check_positive
from faket_aug.picking.precision import PRECISIONS

#: Learning rate of the published trainings, with Adam.
LEARNING_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a network is trained.

    Parameters
    ----------
    steps
        How many steps the optimizer takes in all.
    learning_rate
        Learning rate of Adam; by default as published.
    cross_entropy
        Weight of the cross-entropy that is added to Tversky's loss; 0 as published. Small networks and short trainings
        need it: without it they may call every voxel background.
    precision
        `"float32"`, `"bfloat16"` (autocast), or `"auto"`: bfloat16 where the device has instructions for it, else
        float32. A CPU without them takes ten times as long in bfloat16.
    validate_every
        Steps from one validation to the next.
    patience
        The training ends after this many validations in a row without a new best one; by default it does not.
    checkpoint_every
        Steps from one checkpoint to the next. One is always written at the end.
    average
        Share that is kept at each step of an average of the weights over the steps (an exponential moving average):
        0.99 averages about the last hundred steps. At first less is kept, `(1 + step) / (10 + step)` at most. The
        average is validated, kept as the best and used; the training goes on with its own weights. 0: no average.
    compile
        Whether `torch.compile` compiles the network. This takes minutes at the start and changes the last bits of the
        results.

    Raises
    ------
    ValueError
        If a setting is impossible.
    """

    steps: int
    learning_rate: float = LEARNING_RATE
    cross_entropy: float = 0.0
    precision: str = "float32"
    validate_every: int = 500
    patience: int | None = None
    checkpoint_every: int = 500
    average: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_positive("learning_rate", self.learning_rate)
        check_positive("cross_entropy", self.cross_entropy, zero=True)
        check_choice("precision", self.precision, PRECISIONS)
        check_count("validate_every", self.validate_every)
        check_count("checkpoint_every", self.checkpoint_every)
        check_fraction("average", self.average)
        if self.average == 1:
            raise ValueError("expected `average` below 1, got 1: it would keep the first weights for ever")
        if self.patience is not None:
            check_count("patience", self.patience)
