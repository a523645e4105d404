"""What a training asks of its loader: batches in turn, the epoch told to every dataset, workers that end with it."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, default_collate

from faket_aug._checks import same_size
from faket_aug._runtime.signals import ends_by_signal, sigterm_ends_in_order
from faket_aug.data.dataset import PatchDataset

#: For how many seconds workers may end by themselves.
_PATIENCE = 0.8


class Reads(Protocol):
    """Whatever reads a loader."""

    loader: DataLoader[Any]
    #: The loader's iterator, while there is one.
    reader: Any


def datasets_of(dataset: Any) -> list[Any]:
    """Return a dataset, or those of a `ChainDataset` or `ConcatDataset`, which cannot be told the epoch itself."""
    if not isinstance(dataset, ChainDataset | ConcatDataset):
        return [dataset]
    parts = list(dataset.datasets)
    dataset.datasets = parts  # an iterator could be read only once
    return [one for part in parts for one in datasets_of(part)]


def check_order(loader: DataLoader[Any]) -> None:
    """Refuse a loader over this package's dataset that cannot be resumed, because its batches come in any order."""
    ours = any(isinstance(dataset, PatchDataset) for dataset in datasets_of(loader.dataset))
    if ours and loader.num_workers > 1 and not getattr(loader, "in_order", True):
        raise ValueError(
            "expected a loader that takes the workers' batches in turn, got one with `in_order=False`: a training with "
            "it could not be resumed; set `in_order=True`"
        )


def items_on(loader: DataLoader[Any], place: torch.device) -> None:
    """Let the datasets of a loader put their items where the network is, unless somebody expects them on the CPU."""
    plain = getattr(loader, "collate_fn", default_collate) is default_collate
    if loader.num_workers == 0 and not getattr(loader, "pin_memory", False) and plain:
        for dataset in datasets_of(loader.dataset):
            if isinstance(dataset, PatchDataset):
                dataset.read_on(place)


def voxel_size_of(dataset: Any, network: nn.Module) -> float:
    """Return the voxel size of a loader's patches, Å; 0 if the dataset does not say it.

    Warns
    -----
    UserWarning
        If the network was made for another voxel size.
    """
    sizes = [one.voxel_size for one in datasets_of(dataset) if isinstance(one, PatchDataset)]
    size, own = next(iter(sizes), 0.0), float(getattr(network, "voxel_size", 0.0))
    if size and own and not same_size(size, own):
        warnings.warn(
            f"the network is for voxels of {own:g} Å, the patches have voxels of {size:g} Å: their particles have "
            "another size; make the network with `voxel_size` of the patches",
            stacklevel=5,
        )
    return size


@contextmanager
def ending_workers(run: Reads) -> Iterator[None]:
    """After Ctrl-C, or SIGTERM, which ends the body with `SystemExit`, end the workers of the loader."""
    with sigterm_ends_in_order():
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as end:
            if isinstance(end, SystemExit) and isinstance(end.code, int) and end.code > 128:
                ends_by_signal(end.code)  # also where the program handles SIGTERM itself
            # The traceback keeps the loader's iterator: by itself it would end its workers too late.
            _shut_down(run.reader)
            if getattr(run.loader, "_iterator", None) is not None:
                run.loader._iterator = None
            raise


def _shut_down(reader: Any) -> None:
    """Tell the workers of a loader's iterator to end, and end those that have not ended within a second."""
    shut_down = getattr(reader, "_shutdown_workers", None)
    if shut_down is None:
        return
    # PyTorch waits five seconds for each; one that is still importing hears nothing before it is done.
    late = threading.Timer(_PATIENCE, _terminate, args=(list(getattr(reader, "_workers", ())),))
    late.daemon = True
    late.start()
    # PyTorch reports the workers that are ended so as an error, and ends the others then.
    with contextlib.suppress(RuntimeError):
        shut_down()
    late.cancel()


def _terminate(workers: list[Any]) -> None:
    for worker in workers:
        # Another thread may have closed it meanwhile.
        with contextlib.suppress(ValueError, AttributeError, OSError):
            worker.terminate()
