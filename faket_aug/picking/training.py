"""Training a network on patches: loss, mixed precision, validation, checkpoints, exact resume, logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from faket_aug._checks import check_choice, check_count, check_positive
from faket_aug.formats._atomic import atomic_path, make_writable_folder
from faket_aug.picking.inference import PRECISIONS
from faket_aug.picking.logs import LOGS, TrainingLog
from faket_aug.picking.losses import tversky_loss
from faket_aug.picking.ranks import Ranks

_FORMAT = 2
#: Adam's step of the published trainings.
LEARNING_RATE = 1e-4
CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"

Batch = Mapping[str, Any]
#: From the network, in evaluation mode, to a number: the lower, the better.
Validation = Callable[[nn.Module], float]


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


def fit(
    network: nn.Module,
    loader: DataLoader[Any],
    output: str | Path,
    *,
    settings: TrainingSettings,
    validation: Validation | None = None,
    depends_on: Mapping[str, Any] | None = None,
    resume: bool | None = None,
    log: str = "csv",
    device: torch.device | str | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainingHistory:
    """Train a network on batches with `image` `(n, 1, z, y, x)` and `label` `(n, z, y, x)`.

    In a job of `torch.distributed` (see `distributed_job`) every rank calls this with a loader of its own. The weights
    are rank 0's, gradients are averaged over the ranks that have a batch, and rank 0 writes.

    Parameters
    ----------
    network
        From images to logits `(n, class, z, y, x)`. It is trained in place.
    loader
        Over a `FakETDataset`, `MixedPatches`, or anything with such batches. Its dataset's `set_epoch` is called where
        there is one.
    output
        Folder of `checkpoint.pt`, `best.pt` (the weights of the best validation) and the log; made where missing.
    settings
        How.
    validation
        Called with the network every `validate_every` steps and at the end; the lower its number, the better. All
        ranks call it, and rank 0's number counts.
    depends_on
        All else that the weights depend on, as JSON types; a checkpoint is resumed with the same only.
    resume
        Go on from `checkpoint.pt`; by default where there is one.
    log
        `"csv"` (`log.csv`), `"tensorboard"` or `"none"`.
    device
        Where to train; the network's own by default.
    on_step
        Called after each step with its number, from 1, and its loss, the mean over the ranks.

    Returns
    -------
    The whole history, also of the steps before a resume. The network holds the last weights.

    Raises
    ------
    FileNotFoundError
        If `resume` is asked for and there is no checkpoint.
    ValueError
        If the checkpoint is damaged, or was made with other settings (the message names them) or by another number of
        ranks; if a loss is not finite; or in a job of several processes that have not joined.
    RankError
        If another rank's batches ended in an error, or rank 0 could not read the checkpoint.

    Notes
    -----
    Resuming is exact, bit for bit on a CPU, for a `StatefulDataLoader`, and for a dataset with this package's
    `state_dict`; with several ranks, too. Any other loader is read again from the start of its epoch to where it stood:
    exact if it gives the same batches again.

    Where the ranks' epochs differ in length, a rank that has ended goes along without a batch until all have.
    """
    check_choice("log", log, LOGS)
    folder = Path(output)
    make_writable_folder(folder)
    place = next(network.parameters()).device if device is None else torch.device(device)
    network.to(place).train()
    own = {**asdict(settings), **(depends_on or {})}
    run = _Run(network, loader, settings, own, folder / CHECKPOINT, Ranks(place))
    run.begin(resume)
    with TrainingLog(folder, kind=log if run.ranks.rank == 0 else "none", steps=len(run.history.losses)) as writer:
        for batch, active in run.batches():
            loss = run.step(batch, active, place)
            step = len(run.history.losses)
            writer.add(step, {"loss": loss})
            if validation is not None and (step % settings.validate_every == 0 or step == settings.steps):
                writer.add(step, {"validation": run.validate(validation, folder / BEST)})
            if on_step is not None:
                on_step(step, loss)
            if step % settings.checkpoint_every == 0 or run.ended:
                writer.flush()
                run.save()
            if run.ended:
                break
    return run.history


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint (`checkpoint.pt` or `best.pt`) into a network, to use or to fine-tune it.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is damaged, or holds another network's weights; another number of classes is said.
    """
    state = _read(Path(path))["model"]
    own = network.state_dict()
    heads = [(name, state[name], own[name]) for name in own if name in state and state[name].shape != own[name].shape]
    if heads and list(own)[-1] in {name for name, *_ in heads}:
        _, saved, wanted = heads[-1]
        raise ValueError(
            f"{path}: expected weights of a network with {len(wanted)} classes, got {len(saved)}; make the network "
            f"with `classes={len(saved)}`"
        )
    if heads or set(state) != set(own):
        raise ValueError(f"{path}: expected weights of a {type(network).__name__}, got another network's")
    network.load_state_dict(state)


class _Run:
    """One training: what a checkpoint holds, and how a step is taken."""

    def __init__(
        self,
        network: nn.Module,
        loader: DataLoader[Any],
        settings: TrainingSettings,
        own: Mapping[str, Any],
        path: Path,
        ranks: Ranks,
    ) -> None:
        self.network, self.loader, self.settings, self.own, self.path = network, loader, settings, own, path
        self.ranks = ranks
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        self.history = TrainingHistory(losses=[], validations=[])
        self.epoch = 0
        #: Batches taken since this pass of the loader began, and how many to read past at its beginning.
        self.taken = self.skip = 0
        #: Whether this rank has read its pass to the end.
        self.read_out = False
        self.forward: Callable[[Tensor], Tensor] = torch.compile(network) if settings.compile else network

    @property
    def ended(self) -> bool:
        return self.history.stopped_early or len(self.history.losses) >= self.settings.steps

    def begin(self, resume: bool | None) -> None:
        """Load the checkpoint, by default where there is one; rank 0 reads it for all."""
        wanted = self.path.exists() if resume is None else resume
        state = self.ranks.tell(lambda: _read(self.path) if wanted else None)
        if state is not None:
            self.load(state)
        self.ranks.spread([*self.network.parameters(), *self.network.buffers()])

    def batches(self) -> Iterator[tuple[Batch | None, int]]:
        """Batches epoch after epoch, from where the run stands, and how many ranks have one."""
        while not self.ended:
            if hasattr(self.loader.dataset, "set_epoch"):
                self.loader.dataset.set_epoch(self.epoch)
            empty = True
            for batch, active in self.ranks.in_step(self._pass()):
                empty = False
                yield batch, active
            # A resumed epoch may have had nothing left.
            if empty and not self.history.losses:
                raise ValueError("expected batches to train on, got a loader without any")
            self.epoch, self.skip, self.read_out = self.epoch + 1, 0, False

    def _pass(self) -> Iterator[Batch]:
        """This rank's batches of one epoch."""
        self.taken = 0
        if self.read_out:
            return
        for number, batch in enumerate(self.loader):
            if number >= self.skip:
                self.taken = number + 1
                yield batch
        self.read_out = True

    def step(self, batch: Batch | None, active: int, place: torch.device) -> float:
        """Take a step, on the gradients of all ranks; without a batch, on those of the others."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=place)
        if batch is not None:
            loss = self._loss(batch["image"].to(place), batch["label"].to(place))
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

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with _autocast(images.device, self.settings.precision):
            logits = self.forward(images).float()
        loss = tversky_loss(logits, labels)
        if self.settings.cross_entropy:
            loss = loss + self.settings.cross_entropy * functional.cross_entropy(logits, labels)
        return loss

    def validate(self, validation: Validation, best_path: Path) -> float:
        self.network.eval()
        try:
            with torch.no_grad():
                own = float(validation(self.network))
        finally:
            self.network.train()
        value, step = self.ranks.tell(lambda: own), len(self.history.losses)
        self.history.validations.append((step, value))
        if self.history.best == (step, value) and self.ranks.rank == 0:
            _write(best_path, {"format": _FORMAT, "settings": dict(self.own), "model": self.network.state_dict()})
        patience = self.settings.patience
        self.history.stopped_early = patience is not None and self.history.since_best() >= patience
        return value

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        positions = self.ranks.gather(self._position())
        if self.ranks.rank:
            return
        state = {
            "format": _FORMAT,
            "settings": dict(self.own),
            "epoch": self.epoch,
            "positions": positions,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **asdict(self.history),
        }
        _write(self.path, state)

    def load(self, state: Mapping[str, Any]) -> None:
        saved = state["settings"]
        # A longer training goes on from a shorter one.
        names = sorted((set(saved) | set(self.own)) - {"steps", "checkpoint_every"})
        other = [name for name in names if saved.get(name) != self.own.get(name)]
        if other:
            listed = ", ".join(f"{n} (was {saved.get(n)!s:.60}, is {self.own.get(n)!s:.60})" for n in other)
            raise ValueError(
                f"{self.path}: expected its own settings, got other {listed}; set `output` to another folder, or "
                "`resume=False`"
            )
        ranks = len(state["positions"])
        if ranks != self.ranks.world:
            raise ValueError(
                f"{self.path}: expected a checkpoint of a run of {self.ranks.world} processes, got one of {ranks}; "
                "start as many (`torchrun --nproc-per-node`)"
            )
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = TrainingHistory.from_state(state)
        self.epoch = state["epoch"]
        self._go_to(state["positions"][self.ranks.rank])

    def _position(self) -> dict[str, Any]:
        """Where this rank's loader stands: at the end, at its own state, its dataset's, or a number of batches."""
        if self.read_out:
            return {"ended": True}
        loader, dataset = self.loader, self.loader.dataset
        if hasattr(loader, "state_dict"):
            return {"loader": loader.state_dict()}
        if hasattr(dataset, "state_dict"):
            told = {"batch_size": loader.batch_size, "num_workers": loader.num_workers, "drop_last": loader.drop_last}
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


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=torch.bfloat16)


def _write(path: Path, state: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint, found none at {path}; set `resume=False` to begin anew")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = state["format"] == _FORMAT
    except Exception as error:
        raise ValueError(
            f"{path}: expected a checkpoint, got another or a damaged file ({type(error).__name__}); remove it, or set "
            "`resume=False`"
        ) from error
    if not known:
        raise ValueError(f"{path}: expected a checkpoint of format {_FORMAT}, got {state['format']!r}")
    return state
