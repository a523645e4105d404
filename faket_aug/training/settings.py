"""Settings of a picker's training, beside those of what is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from faket_aug._checks import check_choice, check_count, check_fraction, check_positive
from faket_aug.picking.logs import LOGS
from faket_aug.picking.network import SIZE_MULTIPLE
from faket_aug.picking.precision import AUTO, PRECISIONS
from faket_aug.simulation.tomogram import Companions

TARGETS = ("spheres", "masks")
#: Learning rate of a training that begins with another run's weights, where none is given.
FINE_TUNING_RATE = 1e-4
#: Of `average`, where none is given.
AVERAGE = 0.99


@dataclass(frozen=True, kw_only=True)
class PickerTraining:
    """How a picker is trained. The defaults suit two CPU cores and voxels of about 10 Å.

    Parameters
    ----------
    steps
        Steps of the training in all, with those before a stop.
    batch_size
        Patches of a step.
    patch_size
        Side of a patch in voxels, a multiple of 4; twice the width of the largest particle is ample.
    learning_rate
        Learning rate of Adam; 0.001, or 0.0001 where the training begins with the weights of another run.
    cross_entropy
        Weight of the cross-entropy that is added to Tversky's loss. Without it a short training may call every voxel
        background.
    precision
        What the network computes in: bfloat16 where the device is faster so (auto), or one of the others.
    widths
        Channels of the network at full, half and quarter size; DeepFinder has 32,48,64.
    targets
        What the network learns to label: spheres at the particles, or their masks.
    target_radius
        Radius of the spheres, as a share of the particle's: of the sphere of its mask's volume.
    patches_per_tomogram
        Patches that are cut from each simulated tomogram.
    tomograms_per_epoch
        Simulated tomograms of an epoch.
    background_share
        Share of the patches that are cut anywhere, within [0, 1]; the others are near a particle.
    class_balanced
        Whether patches are cut near each class equally often.
    flavours
        Flavours of the tomogram that are the network's channels, in this order, as `raw,low-pass`. Beside real
        tomograms, which are of the first one, are the others, as `tomogram_low-pass.mrc`. By default one channel.
    validate_every
        Steps from one validation to the next.
    validation_tomograms
        How many simulated tomograms the validation has; they are made once.
    patience
        End after so many validations in a row without a new best one; by default never.
    average
        Share that is kept at each step of the average of the weights over the steps, which is validated and used; 0:
        no average. By default 0.99, about the last hundred steps; a run that is gone on with keeps its own.
    checkpoint_every
        Steps from one checkpoint to the next. A stop by Ctrl-C writes one, too.
    time_limit
        Minutes, after which the training ends with a checkpoint; the same command goes on. By default none.
    real_share
        Share of real tomograms among those that are trained on, where there are labelled ones; with 0 they are only
        validated on.
    workers
        Processes that simulate; 0: a thread of this one.
    log
        How losses and scores are logged.

    Raises
    ------
    ValueError
        If a setting is impossible.
    """

    steps: int = 4000
    batch_size: int = 8
    patch_size: int = 32
    learning_rate: float | None = None
    cross_entropy: float = 1.0
    precision: str = AUTO
    widths: Sequence[int] = (16, 24, 32)
    targets: str = "spheres"
    target_radius: float = 0.6
    patches_per_tomogram: int = 64
    tomograms_per_epoch: int = 48
    background_share: float = 0.2
    class_balanced: bool = True
    flavours: Sequence[str] = ()
    validate_every: int = 250
    validation_tomograms: int = 1
    patience: int | None = None
    average: float | None = None
    checkpoint_every: int = 250
    time_limit: float | None = None
    real_share: float = 0.5
    workers: int = 0
    log: str = "csv"

    def __post_init__(self) -> None:
        counted = ("steps", "batch_size", "patch_size", "patches_per_tomogram", "tomograms_per_epoch")
        for name in (*counted, "validate_every", "validation_tomograms", "checkpoint_every"):
            check_count(name, getattr(self, name))
        if self.patch_size % SIZE_MULTIPLE:
            raise ValueError(f"expected `patch_size` to be a multiple of {SIZE_MULTIPLE}, got {self.patch_size}")
        check_count("workers", self.workers, zero=True)
        if self.patience is not None:
            check_count("patience", self.patience)
        for name in ("learning_rate", "time_limit"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        check_positive("cross_entropy", self.cross_entropy, zero=True)
        check_positive("target_radius", self.target_radius)
        check_fraction("background_share", self.background_share)
        check_fraction("real_share", self.real_share)
        check_choice("precision", self.precision, PRECISIONS)
        Companions(flavours=self.flavours)
        check_choice("targets", self.targets, TARGETS)
        check_choice("log", self.log, LOGS)
        if len(self.widths) != 3 or min(self.widths) < 1:
            raise ValueError(f"expected `widths` of three levels, each 1 or more, got {tuple(self.widths)}")
