"""The processes of a distributed training: equal weights, equally many steps, errors that reach everyone."""

from __future__ import annotations

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
    """Another process of the job failed; the message names its rank and ends with its error."""


@contextmanager
def distributed_job(device: torch.device | str) -> Iterator[int]:
    """Join the job that `torchrun` started, for the length of a `with`; without one, do nothing.

    Under it, `FakETDataset` gives each rank tomograms of its own, and `fit` averages the gradients over the ranks.

    Parameters
    ----------
    device
        Where this process trains. For `"cuda"` each rank of a machine makes its own GPU the current one, and the ranks
        talk through NCCL; on a CPU through gloo.

    Yields
    ------
    This process's rank; 0 where it is alone.
    """
    if known_ranks() is None or distributed.is_initialized():
        yield (known_ranks() or (0, 1))[0]
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if cuda else "gloo")
    yield distributed.get_rank()
    # After an error the process ends instead: the other ranks may never come to the end.
    distributed.destroy_process_group()


class Ranks:
    """The ranks of `torch.distributed` as a training needs them; without a job, one that is alone.

    Parameters
    ----------
    device
        Where tensors are exchanged: the training's own.

    Raises
    ------
    ValueError
        If the environment tells of several processes that have not joined.
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
        """Give each rank's batches until all ranks have ended.

        Yields
        ------
        A batch, or nothing on a rank that has none left, and how many ranks have one.

        Raises
        ------
        RankError
            If another rank's batches end in an error, which is raised there.
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
        """Average gradients and losses over the ranks that have a batch; the others have no gradients and loss 0."""
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
        """Give all ranks what rank 0 has in these tensors."""
        for tensor in tensors if self.world > 1 else ():
            distributed.broadcast(tensor.detach(), src=0)

    def tell(self, make: Callable[[], T]) -> T:
        """Let rank 0 make something, and give it to all ranks.

        Raises
        ------
        RankError
            If rank 0 fails, which raises its own error.
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
        """Collect something of each rank, in order, on all ranks."""
        if self.world == 1:
            return [own]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, own)
        return found


def _last_line(error: Exception | None) -> str:
    """What an error says in the end: a worker's begins with its traceback."""
    return "" if error is None else f"{type(error).__name__}: {error}".splitlines()[-1]
