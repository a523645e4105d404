"""One training: the steps that it takes, what a checkpoint holds, and how it goes on from one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from faket_aug._runtime.signals import signals_held_back
from faket_aug._runtime.transfers import sent
from faket_aug.data.dataset import PatchDataset
from faket_aug.picking.averaging import WeightAverage
from faket_aug.picking.checkpoints import (
    BEST,
    CHECKPOINT,
    PREVIOUS,
    TRAINED,
    load_plain_weights,
    other_settings,
    plain_weights,
    read_checkpoint,
    remove_checkpoints,
    remove_parts,
    set_preparation,
    write_checkpoint,
    write_state,
)
from faket_aug.picking.history import TrainingHistory
from faket_aug.picking.loaders import datasets_of, voxel_size_of
from faket_aug.picking.losses import tversky_loss
from faket_aug.picking.picker import PICKER
from faket_aug.picking.precision import autocast
from faket_aug.picking.preparation import Preparation
from faket_aug.picking.ranks import Ranks
from faket_aug.picking.settings import TrainingSettings

Batch = Mapping[str, Any]
#: Takes the network, in evaluation mode, and gives a number: the lower, the better. Or numbers by name, `"validation"`
#: among them, of which the others are only kept.
Validation = Callable[[nn.Module], float | Mapping[str, float]]
VALIDATION = "validation"


class TrainingRun:
    """One training: what a checkpoint holds, and how a step is taken."""

    def __init__(
        self,
        network: nn.Module,
        loader: DataLoader[Any],
        settings: TrainingSettings,
        own: Mapping[str, Any],
        folder: Path,
        ranks: Ranks,
        *,
        picker: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.loader, self.settings, self.own, self.folder = network, loader, settings, own, folder
        self.ranks = ranks
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        self.history = TrainingHistory(losses=[], validations=[])
        self.best_model: dict[str, Tensor] | None = None
        #: Of the weights over the steps, where it is asked for: it is validated, and written for use.
        self.average: WeightAverage | None = None
        self.preparation: Preparation | None = None
        self.picker = picker
        #: The lowest and the highest value of the images so far, where they are.
        self.extremes: tuple[Tensor, Tensor] | None = None
        self.epoch = 0
        #: Batches taken since this pass of the loader began, and how many to read past at its beginning.
        self.taken = self.skip = 0
        #: Whether this rank has read its pass to the end.
        self.read_out = False
        self.reader: Iterator[Batch] | None = None
        #: The epoch and the position after the last step, where a checkpoint can be written at any moment.
        self._stood: tuple[int, dict[str, Any]] | None = None
        self._saved = 0
        self.forward: Callable[[Tensor], Tensor] = torch.compile(network) if settings.compile else network

    @property
    def ended(self) -> bool:
        return self.history.stopped_early or len(self.history.losses) >= self.settings.steps

    def begin(self, resume: bool | None) -> None:
        """Load the checkpoint, by default where there is one; rank 0 reads it for all."""
        wanted = (self.folder / CHECKPOINT).exists() or (self.folder / PREVIOUS).exists() if resume is None else resume
        state = self.ranks.tell(lambda: read_checkpoint(self.folder) if wanted else None)
        if self.ranks.rank == 0:
            remove_parts(self.folder)
        if state is not None:
            self.load(state)
        elif self.ranks.rank == 0:
            # What an earlier training left does not belong to this one.
            remove_checkpoints(self.folder)
        self._saved = len(self.history.losses)
        self.ranks.spread([*self.network.parameters(), *self.network.buffers()])
        if self.settings.average and self.average is None:
            self.average = WeightAverage(self.network, self.settings.average)

    def batches(self) -> Iterator[tuple[Batch | None, int]]:
        """Batches epoch after epoch, from where the run stands, and how many ranks have one."""
        resumed = bool(self.history.losses)
        while not self.ended:
            for dataset in datasets_of(self.loader.dataset):
                if hasattr(dataset, "set_epoch"):
                    dataset.set_epoch(self.epoch)
                if isinstance(dataset, PatchDataset):
                    dataset.allow_uneven_ranks()
            empty = True
            for batch, active in self.ranks.in_step(self._pass()):
                empty = False
                yield batch, active
            # Only a resumed epoch may have had nothing left.
            if empty and not resumed:
                raise ValueError("expected batches to train on, got a loader without any")
            resumed = False
            self.epoch, self.skip, self.read_out = self.epoch + 1, 0, False

    def _pass(self) -> Iterator[Batch]:
        """This rank's batches of one epoch."""
        self.taken = 0
        if self.read_out:
            return
        self.reader = iter(self.loader)
        for number, batch in enumerate(self.reader):
            if number >= self.skip:
                self.taken = number + 1
                yield batch
        self.read_out, self.reader = True, None

    def step(self, batch: Batch | None, active: int, place: torch.device) -> float:
        """Take a step, on the gradients of all ranks; without a batch, on those of the others.

        A signal that comes meanwhile is heard after the step, so that there is no half of one.
        """
        with signals_held_back():
            value = self._step(batch, active, place)
            # A `StatefulDataLoader` knows where it stands only while nothing is read.
            known = self.ranks.world == 1 and not hasattr(self.loader, "state_dict")
            self._stood = (self.epoch, self._position()) if known else None
        return value

    def _step(self, batch: Batch | None, active: int, place: torch.device) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=place)
        if batch is not None:
            self._look_at(batch)
            if "label" not in batch:
                listed = ", ".join(sorted(batch))
                raise ValueError(f'expected batches with `label`, got {listed}; set `targets` with "labels"')
            loss = self._loss(*(sent(batch[name], place) for name in ("image", "label")))
            loss.backward()  # type: ignore[no-untyped-call]
        value = self.ranks.average(self.network, loss, active=active)
        self.optimizer.step()
        self.ranks.spread(self.network.buffers())
        if not math.isfinite(value):
            raise ValueError(
                f"expected a finite loss, got {value} at step {len(self.history.losses) + 1}; set `learning_rate` lower"
            )
        self.history.losses.append(value)
        if self.average is not None:
            self.average.update(len(self.history.losses))
        return value

    def _look_at(self, batch: Batch) -> None:
        """Keep in mind how the patches are prepared, and how far their values reach; only the first look waits."""
        images: Tensor = batch["image"]
        if self.preparation is None:
            self.preparation = Preparation.of(batch, voxel_size=voxel_size_of(self.loader.dataset, self.network))
            set_preparation(self.network, self.preparation)
        low, high = torch.aminmax(images.detach())
        if self.extremes is not None:
            low, high = torch.minimum(low, self.extremes[0]), torch.maximum(high, self.extremes[1])
        self.extremes = low, high

    def _prepared(self) -> Preparation | None:
        """How the patches were prepared, with the extremes so far."""
        if self.preparation is None or self.extremes is None:
            return self.preparation
        low, high = (float(value) for value in self.extremes)
        before = self.preparation.extremes
        self.preparation = replace(self.preparation, extremes=(min(low, before[0]), max(high, before[1])))
        set_preparation(self.network, self.preparation)
        return self.preparation

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with autocast(images.device, self.settings.precision):
            logits = self.forward(images).float()
        loss = tversky_loss(logits, labels)
        if self.settings.cross_entropy:
            loss = loss + self.settings.cross_entropy * functional.cross_entropy(logits, labels)
        return loss

    def is_due(self, step: int) -> bool:
        """Tell whether a step is validated, and was not yet."""
        due = step and (step % self.settings.validate_every == 0 or step == self.settings.steps)
        return bool(due) and step not in (done for done, _ in self.history.validations[-1:])

    def validate(
        self, validation: Validation, told: Callable[[nn.Module, TrainingHistory], None] | None = None
    ) -> tuple[dict[str, float], bool]:
        """Validate; return the numbers, and whether this is the best so far.

        The network holds the average of its weights meanwhile, where there is one.
        """
        self.network.eval()
        try:
            with torch.no_grad(), nullcontext() if self.average is None else self.average.in_the_network():
                numbers = self._numbers(validation)
                better = self._note(numbers)
                if told is not None and self.ranks.rank == 0:
                    told(self.network, self.history)
        finally:
            self.network.train()
        return numbers, better

    def _numbers(self, validation: Validation) -> dict[str, float]:
        given = validation(self.network)
        own = dict(given) if isinstance(given, Mapping) else {VALIDATION: given}
        if VALIDATION not in own:
            raise ValueError(f"expected numbers with `{VALIDATION}` from `validation`, got {', '.join(own) or 'none'}")
        numbers = self.ranks.tell(lambda: {name: float(value) for name, value in own.items()})
        if not math.isfinite(numbers[VALIDATION]):
            raise ValueError(
                f"expected a finite number from `validation`, got {numbers[VALIDATION]} at step "
                f"{len(self.history.losses)}"
            )
        return numbers

    def _note(self, numbers: Mapping[str, float]) -> bool:
        """Keep a validation in the history, and the weights if they are the best so far."""
        value, step = numbers[VALIDATION], len(self.history.losses)
        self.history.validations.append((step, value))
        more = {name: number for name, number in numbers.items() if name != VALIDATION}
        if more:
            self.history.scores.append((step, more))
        better = self.history.best == (step, value)
        if better:
            self.best_model = {name: one.detach().cpu().clone() for name, one in self.network.state_dict().items()}
        patience = self.settings.patience
        self.history.stopped_early = patience is not None and self.history.since_best() >= patience
        return better

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint; all ranks call this."""
        self._save(self.epoch, self.ranks.gather(self._position()))

    def save_at_a_stop(self) -> bool:
        """Write a checkpoint of the last step, wherever it was that a signal came; tell whether one was written."""
        if self._stood is None or len(self.history.losses) <= self._saved:
            return False
        epoch, position = self._stood
        self._save(epoch, [position])
        return True

    def _save(self, epoch: int, positions: list[dict[str, Any]]) -> None:
        preparation = self._prepared()
        if self.ranks.rank:
            return
        state = {
            "settings": dict(self.own),
            "epoch": epoch,
            "positions": positions,
            **self._weights(),
            "best_model": self.best_model,
            "preparation": None if preparation is None else preparation.to_dict(),
            PICKER: self.picker,
            "optimizer": self.optimizer.state_dict(),
            **asdict(self.history),
        }
        write_checkpoint(self.folder, state)
        self._write_best()
        self._saved = len(self.history.losses)

    def _weights(self) -> dict[str, Any]:
        """The weights to use, and beside an average those that are trained."""
        if self.average is None:
            return {"model": plain_weights(self.network.state_dict())}
        return {"model": plain_weights(self.average.weights), TRAINED: plain_weights(self.average.trained())}

    def end(self) -> None:
        """Leave the weights to use in the network."""
        if self.average is not None:
            self.average.stay_in_the_network()

    def _write_best(self) -> None:
        """Write the best weights for use; the checkpoint holds them, too, so that both always belong together."""
        if self.best_model is not None and self.ranks.rank == 0:
            preparation = self._prepared()
            state = {
                "settings": dict(self.own),
                "model": plain_weights(self.best_model),
                "preparation": None if preparation is None else preparation.to_dict(),
                PICKER: self.picker,
                "step": (self.history.best or (0, 0.0))[0],
            }
            write_state(self.folder / BEST, state)

    def load(self, state: Mapping[str, Any]) -> None:
        listed = other_settings(state["settings"], self.own)
        if listed:
            raise ValueError(
                f"{self.folder / CHECKPOINT}: expected a checkpoint of the same settings, got other {listed}; set "
                "`output` to another folder, or `resume=False`"
            )
        ranks = len(state["positions"])
        if ranks != self.ranks.world:
            raise ValueError(
                f"{self.folder / CHECKPOINT}: expected a checkpoint of a run of {self.ranks.world} processes, got one "
                f"of {ranks}; start as many (`torchrun --nproc-per-node`)"
            )
        load_plain_weights(self.network, state["model"], self.folder / CHECKPOINT)
        if self.settings.average:
            self.average = WeightAverage(self.network, self.settings.average)
            load_plain_weights(self.network, state[TRAINED], self.folder / CHECKPOINT)
        if state.get("preparation") is not None:
            self.preparation = Preparation(**state["preparation"])
            set_preparation(self.network, self.preparation)
        self.picker = _with_thresholds(self.picker, state.get(PICKER))
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = TrainingHistory.from_state(state)
        self.best_model = state["best_model"]
        self._write_best()
        self.epoch = state["epoch"]
        self._go_to(state["positions"][self.ranks.rank])

    def _position(self) -> dict[str, Any]:
        """Where this rank's loader stands: at the end, at its own state, its dataset's, or a number of batches."""
        if self.read_out:
            return {"ended": True}
        loader, dataset = self.loader, self.loader.dataset
        if hasattr(loader, "state_dict"):
            return {"loader": loader.state_dict()}
        if isinstance(dataset, PatchDataset) and loader.batch_size is not None:
            told: dict[str, Any] = {
                "batch_size": loader.batch_size,
                "num_workers": loader.num_workers,
                "drop_last": loader.drop_last,
            }
            return {"dataset": dataset.state_dict(batches=self.taken, **told)}
        return {"batches": self.taken}

    def _go_to(self, position: Mapping[str, Any]) -> None:
        ((kind, state),) = position.items()
        if kind == "ended":
            self.read_out = True
        elif kind == "loader":
            self.loader.load_state_dict(state)  # type: ignore[attr-defined]
        elif kind == "dataset":
            self.loader.dataset.load_state_dict(state)  # type: ignore[attr-defined]
        else:
            self.skip = state


def _with_thresholds(picker: Mapping[str, Any] | None, saved: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Take the description that was saved where there is no other, or only its thresholds are to come."""
    if picker is None or saved is None:
        return picker or saved
    return saved if dict(picker) | {"thresholds": saved.get("thresholds")} == dict(saved) else picker
