"""The processes of a distributed training: they share weights, steps and errors."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from faket_aug._runtime.distributed import known_ranks

T = TypeVar("T")
_ENDED, _HAS_BATCH, _FAILED = range(3)


class RankError(RuntimeError):
    """Another process of the job failed. The message names its rank and ends with its error."""


@contextmanager
def distributed_job(device: torch.device | str) -> Iterator[int]:
    """Join the job that `torchrun` started, inside a `with`. Without such a job, do nothing.

    Inside it, `FakETDataset` gives each rank its own tomograms, and `fit` averages the gradients over the ranks.

    Parameters
    ----------
    device
        Where this process trains. With `"cuda"`, each rank of a machine takes its own GPU as the current one, and the
        ranks communicate through NCCL. On a CPU they communicate through gloo.

    Yields
    ------
    The rank of this process; 0 if it is alone.
    """
    if known_ranks() is None or distributed.is_initialized():
        yield (known_ranks() or (0, 1))[0]
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # An optimizer imports this module, whose functions keep the group of that moment as a default: its threads would
    # outlive `destroy_process_group`, and meet an interpreter that has ended, which aborts the process now and then.
    importlib.import_module("torch.distributed.nn.functional")
    distributed.init_process_group("nccl" if cuda else "gloo")
    yield distributed.get_rank()
    # After an error the process ends instead: the other ranks may never come to the end.
    distributed.destroy_process_group()


class Ranks:
    """The ranks of `torch.distributed`, as a training needs them. Without a job there is one rank.

    Parameters
    ----------
    device
        Where the ranks exchange tensors: where they train.

    Raises
    ------
    ValueError
        If the environment names several processes and this one has not joined them.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world = known_ranks() or (0, 1)
        self._device = device
        if self.world > 1 and not (distributed.is_available() and distributed.is_initialized()):
            raise ValueError(
                f"expected the {self.world} processes of a distributed job to have joined, got one that has not; train "
                "within `with distributed_job(device):`"
            )

    def in_step(self, batches: Iterable[T]) -> Iterator[tuple[T | None, int]]:
        """Yield the batches of this rank until all ranks have ended.

        Yields
        ------
        A batch, or `None` if this rank has none left, and the number of ranks that have one.

        Raises
        ------
        RankError
            If another rank fails while it makes its batches. That rank raises the error itself.
        """
        reader: Iterator[T] | None = None
        state = _HAS_BATCH
        while True:
            batch, error = None, None
            try:
                reader = iter(batches) if reader is None else reader
                batch = next(reader) if state == _HAS_BATCH else None
            except StopIteration:
                state = _ENDED
            except Exception as failure:
                state, error = _FAILED, failure
            states = self._states(state)
            if _FAILED in states:
                # torchrun ends all processes as soon as one has ended, maybe before the one that failed could say why.
                failed = states.index(_FAILED)
                cause = self.gather(_last_line(error))[failed]
                raise error or RankError(f"rank {failed} failed while it made its batches: {cause}")
            if _HAS_BATCH not in states:
                return
            yield batch, states.count(_HAS_BATCH)

    def _states(self, own: int) -> list[int]:
        if self.world == 1:
            return [own]
        states = torch.zeros(self.world, dtype=torch.int64, device=self._device)
        states[self.rank] = own
        distributed.all_reduce(states)
        return [int(state) for state in states.tolist()]

    def average(self, network: nn.Module, loss: Tensor, *, active: int) -> float:
        """Average gradients and losses over the ranks that have a batch. The others have loss 0."""
        if self.world == 1:
            return loss.item()
        # Not `DistributedDataParallel`: it lays out its buckets anew after its first step, which changes the order of
        # sums over three ranks or more, so that a resumed run would differ in the last bits.
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        flat = torch.cat([*(part.flatten() for part in parts), loss.detach().reshape(1).to(parts[0])])
        distributed.all_reduce(flat)
        flat /= active
        for weight, part in zip(weights, torch.split(flat[:-1], [weight.numel() for weight in weights]), strict=True):
            weight.grad = part.view_as(weight)
        return float(flat[-1])

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Copy these tensors from rank 0 to all ranks."""
        for tensor in tensors if self.world > 1 else ():
            distributed.broadcast(tensor.detach(), src=0)

    def tell(self, make: Callable[[], T]) -> T:
        """Call a function on rank 0, and return its result on all ranks.

        Raises
        ------
        RankError
            If rank 0 fails. Rank 0 raises the error itself.
        """
        if self.world == 1:
            return make()
        told: list[Any] = [None, ""]
        error: Exception | None = None
        if self.rank == 0:
            try:
                told = [make(), ""]
            except Exception as failure:
                told, error = [None, _last_line(failure)], failure
        distributed.broadcast_object_list(told, src=0)
        if told[1]:
            raise error or RankError(f"rank 0 failed: {told[1]}")
        made: T = told[0]
        return made

    def gather(self, own: T) -> list[T]:
        """Collect a value from each rank, in order, on all ranks."""
        if self.world == 1:
            return [own]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, own)
        return found


def _last_line(error: Exception | None) -> str:
    """Return the last line of an error: in one from a worker, a traceback comes first."""
    return "" if error is None else f"{type(error).__name__}: {error}".splitlines()[-1]
