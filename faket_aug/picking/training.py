"""Training a network on patches: loss, mixed precision, validation, checkpoints, exact resume, logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from faket_aug._checks import check_choice
from faket_aug.data.dataset import PatchDataset
from faket_aug.formats._atomic import make_writable_folder
from faket_aug.picking.checkpoints import (
    BEST,
    CHECKPOINT,
    PREVIOUS,
    explaining_the_disk,
    load_plain_weights,
    plain_settings,
    plain_weights,
    read_checkpoint,
    remove_checkpoints,
    remove_parts,
    set_preparation,
    write_checkpoint,
    write_state,
)
from faket_aug.picking.history import TrainingHistory
from faket_aug.picking.loaders import check_order, datasets_of, ending_workers, voxel_size_of
from faket_aug.picking.logs import LOGS, TrainingLog, progress_bar
from faket_aug.picking.losses import tversky_loss
from faket_aug.picking.picker import PICKER, PickerDescription
from faket_aug.picking.precision import autocast
from faket_aug.picking.preparation import Preparation
from faket_aug.picking.ranks import Ranks
from faket_aug.picking.settings import TrainingSettings

Batch = Mapping[str, Any]
#: Takes the network, in evaluation mode, and gives a number: the lower, the better.
Validation = Callable[[nn.Module], float]


def fit(
    network: nn.Module,
    loader: DataLoader[Any],
    output: str | Path,
    *,
    settings: TrainingSettings,
    validation: Validation | None = None,
    depends_on: Mapping[str, Any] | None = None,
    describes: PickerDescription | None = None,
    resume: bool | None = None,
    log: str = "csv",
    device: torch.device | str | None = None,
    on_step: Callable[[int, float], None] | None = None,
    progress: bool = False,
) -> TrainingHistory:
    """Train a network on batches with `image` `(n, 1, z, y, x)` and `label` `(n, z, y, x)`.

    In a job of `torch.distributed` (see `distributed_job`) every rank calls this with its own loader. All begin
    with rank 0's weights. Gradients are averaged over the ranks that have a batch. Rank 0 writes the files.

    Parameters
    ----------
    network
        Takes images and gives logits `(n, class, z, y, x)`. It is trained in place.
    loader
        Over a dataset of this package, or anything that gives such batches. If its dataset has `set_epoch`, this is
        called before each epoch.
    output
        Folder for `checkpoint.pt`, `best.pt` (the weights of the best validation) and the log; made if it is missing.
    settings
        How the network is trained.
    validation
        A function from the network to a number; the lower, the better. It is called every `validate_every` steps and at
        the end. All ranks call it; the number of rank 0 counts.
    depends_on
        Everything else that the weights depend on, as JSON types. A checkpoint is resumed only if this is the same.
    describes
        What the network is for; kept with its weights, so that `load_picker` gives the network ready to use.
    resume
        Whether to go on from `checkpoint.pt`; by default if there is one.
    log
        `"csv"` (`log.csv`), `"tensorboard"` or `"none"`.
    device
        Where to train; by default where the network is.
    on_step
        A function of the step's number, from 1, and its loss, the mean over the ranks. It is called after each step.
    progress
        Whether to show a progress bar on standard error.

    Returns
    -------
    The history of all steps, also of those before a resume. The network holds the last weights.

    Raises
    ------
    FileNotFoundError
        If `resume` is `True` and there is no checkpoint.
    ValueError
        If the checkpoint is damaged, or was made with other settings (the message names them) or by another number of
        ranks. If a loss is not finite. If this is one of several processes and they have not joined a job.
        If the loader has `in_order=False` and several workers over a dataset of this package.
    OSError
        If `output` cannot be written, or the disk is full; the message says how to go on.
    RankError
        If another rank failed while it made its batches, or rank 0 could not read the checkpoint.

    Notes
    -----
    A resumed training is exact, bit for bit on a CPU, with a `StatefulDataLoader` and with the datasets of this
    package, also on several ranks. Any other loader is read again from the start of its epoch up to where it stood:
    exact if it gives the same batches again. Random numbers that the network draws itself (dropout) are not kept.
    Ctrl-C ends a training within about two seconds, and so does SIGTERM, unless it is handled elsewhere: the loader's
    workers are ended, and the last checkpoint is whole.
    If a rank's epoch is shorter than the others', the rank takes part without batches until all have ended.
    """
    check_choice("log", log, LOGS)
    check_order(loader)
    folder = Path(output)
    with explaining_the_disk(folder):
        make_writable_folder(folder)
    place = next(network.parameters()).device if device is None else torch.device(device)
    network.to(place).train()
    own = plain_settings({**asdict(settings), **(depends_on or {})})
    run = _Run(network, loader, settings, own, folder, Ranks(place))
    run.picker = None if describes is None else describes.to_dict()
    run.begin(resume)
    writes, done = run.ranks.rank == 0, len(run.history.losses)
    with (
        ending_workers(run),
        explaining_the_disk(folder),
        TrainingLog(folder, kind=log if writes else "none", steps=done) as writer,
        progress_bar(settings.steps, done=done, shown=progress and writes) as show,
    ):
        for batch, active in run.batches():
            loss = run.step(batch, active, place)
            step = len(run.history.losses)
            writer.add(step, {"loss": loss})
            show(step, loss)
            better = False
            if validation is not None and (step % settings.validate_every == 0 or step == settings.steps):
                value, better = run.validate(validation)
                writer.add(step, {"validation": value})
            if on_step is not None:
                on_step(step, loss)
            if step % settings.checkpoint_every == 0 or better or run.ended:
                writer.flush()
                run.save()
            if run.ended:
                break
    return run.history


class _Run:
    """One training: what a checkpoint holds, and how a step is taken."""

    def __init__(
        self,
        network: nn.Module,
        loader: DataLoader[Any],
        settings: TrainingSettings,
        own: Mapping[str, Any],
        folder: Path,
        ranks: Ranks,
    ) -> None:
        self.network, self.loader, self.settings, self.own, self.folder = network, loader, settings, own, folder
        self.ranks = ranks
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        self.history = TrainingHistory(losses=[], validations=[])
        self.best_model: dict[str, Tensor] | None = None
        self.preparation: Preparation | None = None
        self.picker: dict[str, Any] | None = None
        #: The lowest and the highest value of the images so far, where they are.
        self.extremes: tuple[Tensor, Tensor] | None = None
        self.epoch = 0
        #: Batches taken since this pass of the loader began, and how many to read past at its beginning.
        self.taken = self.skip = 0
        #: Whether this rank has read its pass to the end.
        self.read_out = False
        self.reader: Iterator[Batch] | None = None
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
        self.ranks.spread([*self.network.parameters(), *self.network.buffers()])

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
        """Take a step, on the gradients of all ranks; without a batch, on those of the others."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=place)
        if batch is not None:
            self._look_at(batch)
            if "label" not in batch:
                listed = ", ".join(sorted(batch))
                raise ValueError(f'expected batches with `label`, got {listed}; set `targets` with "labels"')
            on_gpu = place.type == "cuda"
            loss = self._loss(*(batch[name].to(place, non_blocking=on_gpu) for name in ("image", "label")))
            loss.backward()  # type: ignore[no-untyped-call]
        value = self.ranks.average(self.network, loss, active=active)
        self.optimizer.step()
        self.ranks.spread(self.network.buffers())
        if not math.isfinite(value):
            raise ValueError(
                f"expected a finite loss, got {value} at step {len(self.history.losses) + 1}; set `learning_rate` lower"
            )
        self.history.losses.append(value)
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

    def validate(self, validation: Validation) -> tuple[float, bool]:
        """Validate; return the number, and whether it is the best so far."""
        self.network.eval()
        try:
            with torch.no_grad():
                own = float(validation(self.network))
        finally:
            self.network.train()
        value, step = self.ranks.tell(lambda: own), len(self.history.losses)
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number from `validation`, got {value} at step {step}")
        self.history.validations.append((step, value))
        better = self.history.best == (step, value)
        if better:
            self.best_model = {name: one.detach().cpu().clone() for name, one in self.network.state_dict().items()}
        patience = self.settings.patience
        self.history.stopped_early = patience is not None and self.history.since_best() >= patience
        return value, better

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        positions, preparation = self.ranks.gather(self._position()), self._prepared()
        if self.ranks.rank:
            return
        state = {
            "settings": dict(self.own),
            "epoch": self.epoch,
            "positions": positions,
            "model": plain_weights(self.network.state_dict()),
            "best_model": self.best_model,
            "preparation": None if preparation is None else preparation.to_dict(),
            PICKER: self.picker,
            "optimizer": self.optimizer.state_dict(),
            **asdict(self.history),
        }
        write_checkpoint(self.folder, state)
        self._write_best()

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
        saved = state["settings"]
        # A longer training goes on from a shorter one.
        names = sorted((set(saved) | set(self.own)) - {"steps", "checkpoint_every"})
        other = [name for name in names if saved.get(name) != self.own.get(name)]
        if other:
            listed = ", ".join(f"{n} (was {saved.get(n)!s:.60}, is {self.own.get(n)!s:.60})" for n in other)
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
        if state.get("preparation") is not None:
            self.preparation = Preparation(**state["preparation"])
            set_preparation(self.network, self.preparation)
        self.picker = self.picker or state.get(PICKER)
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
