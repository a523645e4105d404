"""Training a network on patches: loss, mixed precision, validation, checkpoints, exact resume, logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from faket_aug._checks import check_choice, check_positive
from faket_aug.formats._atomic import make_writable_folder
from faket_aug.picking.checkpoints import explaining_the_disk, plain_settings
from faket_aug.picking.history import TrainingHistory
from faket_aug.picking.loaders import check_order, ending_workers, items_on
from faket_aug.picking.logs import LOGS, TrainingLog, progress_bar
from faket_aug.picking.picker import PickerDescription
from faket_aug.picking.ranks import Ranks
from faket_aug.picking.run import TrainingRun, Validation
from faket_aug.picking.settings import TrainingSettings


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
    on_validation: Callable[[nn.Module, TrainingHistory], None] | None = None,
    time_limit: float | None = None,
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
        A function from the network to a number; the lower, the better. Or to numbers by name: `"validation"`, which
        counts, and others, which are kept in the log and in the history's `scores`. It is called every `validate_every`
        steps and at the end. All ranks call it; the number of rank 0 counts.
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
    on_validation
        A function of the network, in evaluation mode, and the history so far. Rank 0 calls it after each validation.
    time_limit
        Seconds, from the call on. After the step in which they are over the training ends with a checkpoint; by default
        there is no limit.
    progress
        Whether to show a progress bar on standard error.

    Returns
    -------
    The history of all steps, also of those before a resume. The network holds the last weights, or their average where
    the settings ask for one: what `load_weights` gives of `checkpoint.pt`.

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
    workers are ended, and a checkpoint of the last step is written. (Not on several ranks, with a `StatefulDataLoader`,
    or where it would take longer: then the last checkpoint is the one to go on from.)
    If a rank's epoch is shorter than the others', the rank takes part without batches until all have ended.
    """
    check_choice("log", log, LOGS)
    check_order(loader)
    if time_limit is not None:
        check_positive("time_limit", time_limit)
    folder = Path(output)
    with explaining_the_disk(folder):
        make_writable_folder(folder)
    place = next(network.parameters()).device if device is None else torch.device(device)
    network.to(place).train()
    items_on(loader, place)
    own = plain_settings({**asdict(settings), **(depends_on or {})})
    picker = None if describes is None else describes.to_dict()
    run = TrainingRun(network, loader, settings, own, folder, Ranks(place), picker=picker)
    run.begin(resume)
    writes, done, begun = run.ranks.rank == 0, len(run.history.losses), time.monotonic()
    with (
        ending_workers(run),
        explaining_the_disk(folder),
        TrainingLog(folder, kind=log if writes else "none", steps=done) as writer,
        progress_bar(settings.steps, done=done, shown=progress and writes) as show,
        _saved_at_a_stop(run, writer),
    ):
        # A stop may have come between a step and its validation.
        if validation is not None and run.is_due(done):
            writer.add(done, run.validate(validation, on_validation)[0])
            writer.flush()
            run.save()
        for batch, active in run.batches():
            loss = run.step(batch, active, place)
            step = len(run.history.losses)
            writer.add(step, {"loss": loss})
            show(step, loss)
            better = False
            if validation is not None and run.is_due(step):
                numbers, better = run.validate(validation, on_validation)
                writer.add(step, numbers)
            if on_step is not None:
                on_step(step, loss)
            over = time_limit is not None and run.ranks.tell(lambda: time.monotonic() - begun >= time_limit)
            if step % settings.checkpoint_every == 0 or better or over or run.ended:
                writer.flush()
                run.save()
            if over or run.ended:
                break
    run.end()
    return run.history


@contextmanager
def _saved_at_a_stop(run: TrainingRun, writer: TrainingLog) -> Iterator[None]:
    """Write a checkpoint of the last step when Ctrl-C or SIGTERM ends the body."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if run.save_at_a_stop():
            # The signal may have come before it was logged.
            writer.add(len(run.history.losses), {"loss": run.history.losses[-1]})
        raise
