"""Who reads a dataset: loaders and wrappers that a dataset which shares itself out must know of."""

from __future__ import annotations

import warnings

from torch.utils.data import ChainDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from faket_aug._runtime.workers import callers

#: Wrappers of accelerate and transformers. The first keeps each rank's part of a dataset that is read whole on every
#: rank; the second hands out what rank 0 reads.
_SHARES_OUT_BY_RANK = ("IterableDatasetShard", "DataLoaderDispatcher")


def reads_in_order() -> bool | None:
    """Tell whether the loader that is starting workers takes their batches in turn; `None` if no loader is seen."""
    found = (one for one in callers() if isinstance(one, _MultiProcessingDataLoaderIter))
    return next((bool(getattr(one, "_in_order", True)) for one in found), None)


def check_readers(*, ranks: int, workers: int) -> None:
    """Refuse to be read by what drops items, because it shares them out a second time.

    Parameters
    ----------
    ranks, workers
        Among how many this dataset shares out its tomograms.

    Raises
    ------
    ValueError
        If the reader shares out items among ranks or workers. The message says what to do.
    """
    for one in callers():
        name, module = type(one).__name__, type(one).__module__
        if ranks > 1 and name in _SHARES_OUT_BY_RANK:
            raise ValueError(
                f"expected a loader that leaves the ranks to the dataset, got {module}.{name}: the dataset gives each "
                f"of the {ranks} ranks its own tomograms already, and of these most would be dropped; do not give the "
                "loader to `accelerator.prepare` (network and optimiser only), or give the dataset `rank=0, "
                "world_size=1`, and every rank simulates all tomograms"
            )
        if workers > 1 and name == "IterableDataset" and module.partition(".")[0] == "monai":
            raise ValueError(
                f"expected a reader that leaves the workers to the dataset, got {module}.{name}: the dataset gives "
                f"each of the {workers} workers its own tomograms already, and of these most would be dropped; apply "
                "the transform in the loader's `collate_fn` or to its batches, or set `num_workers` to 0 or 1"
            )


def in_a_chain() -> bool:
    """Tell whether a `ChainDataset` reads."""
    return any(isinstance(one, ChainDataset) for one in callers())


def warn_of_uneven_ranks(*, tomograms: int, ranks: int) -> None:
    """Say that the ranks' epochs differ in length, before a rank waits for ever for one that has ended."""
    if tomograms % ranks == 0:
        return
    below, above = tomograms // ranks * ranks, (tomograms // ranks + 1) * ranks
    choice = f"{below} or {above}" if below else f"{above}"
    warnings.warn(
        f"{tomograms} tomograms an epoch on {ranks} ranks: the ranks' epochs differ in length, so a loop with "
        f"`DistributedDataParallel` hangs at the end of the shorter; set `tomograms_per_epoch` to {choice}, run the "
        "loop within DDP's `join()`, or train with `faket_aug.picking.fit`",
        stacklevel=4,
    )
