"""Sparse linear maps in the (z, x) plane. One map serves all rows y of a stack, and all batches."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from faket_aug._runtime.threads import Made, run_side_by_side, use_on_current_stream
from faket_aug._runtime.transfers import sent

#: Rows of y that one product takes on a CPU: a weight is read once for all of them, and they fill some registers.
_CPU_COLUMNS = 64
#: Elements of a product on a CPU before it is turned into its place: they stay in the second-level cache.
_CPU_ELEMENTS = 2**18
#: Weights of one product: their numbers fit 32 bits, and a GPU gets them in few parts.
_WEIGHTS = 2**27
#: Whether this torch has the compiled kernels for sums of embeddings (x86).
_HAS_BAGS = "fbgemm" in torch.backends.quantized.supported_engines
#: Elements of a block that one product takes on a GPU (1 GiB of float32).
_GPU_ELEMENTS = 2**28
#: Elements of a block on a CPU, up to which two threads may have a block each (256 MiB of float32).
_SHARED_ELEMENTS = 2**26
#: Pieces of the work for each thread on a CPU, at least: where one thread is slowed down, others take more of them.
_PIECES = 4


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a sparse matrix in CSR form: the ends of the rows, `(rows + 1,)`, and column and weight of each entry."""

    ends: Tensor
    columns: Tensor
    weights: Tensor

    @property
    def entries(self) -> int:
        """Number of entries."""
        return len(self.weights)

    def to(self, device: torch.device, dtype: torch.dtype) -> Rows:
        """Copy the rows to a device, with columns in 32 bits and weights of `dtype`."""
        ends, columns = (values.to(device, torch.int32) for values in (self.ends, self.columns))
        return Rows(ends=ends, columns=columns, weights=self.weights.to(device, dtype))


class PlaneMap:
    """A linear map between planes, `(p, q) -> (p', q')`. It is applied to every row y of a stack `(..., p, y, q)`.

    Parameters
    ----------
    planes
        The rows of the matrix, for one p' after the other. So the whole matrix is never in memory in double precision.
    planes_in, planes_out
        `(p, q)` and `(p', q')`.
    device, dtype
        Device and precision of the products.
    """

    def __init__(
        self,
        planes: Iterable[Rows],
        planes_in: tuple[int, int],
        planes_out: tuple[int, int],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.planes_in = planes_in
        self.planes_out = planes_out
        self.device = device
        self.dtype = dtype
        self._forward = _joined(planes, planes_in, device, dtype)
        self._made = self._made_adjoint = Made(device)
        self._adjoint: list[Tensor] | None = None
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory that the map takes, bytes."""
        held = sum(part.values().numel() * (part.values().element_size() + 4) for part in self._forward)
        return held if self._adjoint is None else 2 * held

    def parts(self, *, adjoint: bool) -> list[Tensor]:
        """Return the CSR matrices of the map, or of its adjoint, which is made at the first call.

        The current stream of a GPU may be another one than that which made them: it works with them afterwards.
        """
        self._made.before(self.device)
        if not adjoint:
            return self._forward
        with self._lock:
            if self._adjoint is None:
                self._adjoint = _joined(self._transposed(), self.planes_out, self.device, self.dtype)
                self._made_adjoint = Made(self.device)
        self._made_adjoint.before(self.device)
        return self._adjoint

    def _transposed(self) -> Iterator[Rows]:
        starts = np.cumsum([0, *(part.shape[0] for part in self._forward)]).tolist()
        rows = torch.cat(
            [_row_of_each(part.crow_indices()) + start for part, start in zip(self._forward, starts, strict=False)]
        )
        columns, weights = (
            torch.cat([getattr(p, name)() for p in self._forward]) for name in ("col_indices", "values")
        )
        planes, plane = self.planes_in
        whole = csr_rows(columns, rows, weights, planes * plane)
        for first in range(0, planes * plane, plane):
            ends = whole.ends[first : first + plane + 1]
            own = slice(int(ends[0]), int(ends[-1]))
            yield Rows(ends=ends - ends[0], columns=whole.columns[own], weights=whole.weights[own])

    def __call__(self, stack: Tensor, *, adjoint: bool = False) -> Tensor:
        """Apply the map to a stack `(..., p, y, q)`. The result is `(..., p', y, q')`; for the adjoint, the reverse.

        The stack may have another device and another precision than the map. It is copied to the device of the map some
        rows at a time.
        """
        result: Tensor = _Apply.apply(stack, self, adjoint)
        return result


class _Apply(torch.autograd.Function):
    """The product and, as its derivative, the product with the transpose: linear, so differentiable at any order."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, plane_map: PlaneMap, adjoint: bool) -> Tensor:
        ctx.plane_map, ctx.adjoint, ctx.like = plane_map, adjoint, (stack.device, stack.dtype)
        # Half precision is not enough for a sum along the beam.
        with torch.autocast(plane_map.device.type, enabled=False):
            return _product(stack, plane_map, adjoint)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Apply.apply(grads[0], ctx.plane_map, not ctx.adjoint).to(*ctx.like), None, None


def _product(stack: Tensor, plane_map: PlaneMap, adjoint: bool) -> Tensor:
    """Multiply block by block over y, so that no transposed copy of the whole stack is made."""
    device, dtype = plane_map.device, plane_map.dtype
    p_out, q_out = plane_map.planes_in if adjoint else plane_map.planes_out
    rows, batch = stack.shape[-2], stack.shape[:-3]
    flat = stack.reshape(-1, *stack.shape[-3:])  # (batch, p, y, q)
    # Written through a view: autograd lets the result itself be changed in place, but not a view made in here.
    result = torch.empty((*batch, p_out, rows, q_out), device=device, dtype=dtype)
    out = result.view(-1, p_out, rows, q_out)
    on_cpu = device.type == "cpu"
    largest = max(p_out * q_out, stack.shape[-3] * stack.shape[-1])
    step = _CPU_COLUMNS if on_cpu else max(1, _GPU_ELEMENTS // largest)
    parts = plane_map.parts(adjoint=adjoint)
    if not on_cpu:  # the cache may drop the map meanwhile
        use_on_current_stream(v for part in parts for v in (part.crow_indices(), part.col_indices(), part.values()))
    bags = on_cpu and dtype == torch.float32 and _HAS_BAGS
    blocks = [
        _Block(source[:, start : start + step], target[:, start : start + step])
        for source, target in zip(flat, out, strict=True)
        for start in range(0, rows, step)
    ]
    # A sum is the same on any number of threads: pieces of a block's rows go to them as they come.
    small = bags and stack.shape[-3] * stack.shape[-1] * step <= _SHARED_ELEMENTS
    threads = torch.get_num_threads() if small else 1
    several = 1 if threads == 1 else min(-(-_PIECES * threads // max(len(blocks), 1)), len(parts))
    pieces = [
        partial(block.multiply, parts, range(piece, len(parts), several), plane_map, _sum_bags if bags else torch.mm)
        for block in blocks
        for piece in range(several)
    ]
    for block in blocks:
        block.left = several
    run_side_by_side(pieces, min(threads, len(pieces)))
    return result


@dataclass(eq=False)
class _Block:
    """Rows of y that one product takes: `(p, y, q)` before, and where `(p', y, q')` goes."""

    source: Tensor
    target: Tensor
    #: Pieces of the product that are not done.
    left: int = 1
    columns: Tensor | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def multiply(
        self,
        parts: Sequence[Tensor],
        which: Sequence[int],
        plane_map: PlaneMap,
        multiply: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Multiply by some parts of the matrix."""
        with self.lock:
            if self.columns is None:
                block = sent(self.source, plane_map.device).permute(0, 2, 1)  # (p, q, y)
                made = torch.empty(block.shape, device=plane_map.device, dtype=plane_map.dtype)
                self.columns = made.copy_(block).flatten(0, 1)
            columns = self.columns
        q_out, rows = self.target.shape[-1], np.cumsum([0, *(part.shape[0] for part in parts)])
        for number in which:
            first = int(rows[number]) // q_out
            product = multiply(parts[number], columns).view(-1, q_out, columns.shape[1])
            self.target[first : first + len(product)] = product.permute(0, 2, 1)
        with self.lock:
            self.left -= 1
            if not self.left:
                self.columns = None


def _sum_bags(matrix: Tensor, columns: Tensor) -> Tensor:
    """Multiply as weighted sums of embeddings, whose compiled kernels are two to three times as fast as `torch.mm`."""
    ends, index, weight = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    return functional.embedding_bag(
        index, columns, ends, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def csr_rows(rows: Tensor, columns: Tensor, weights: Tensor, count: int) -> Rows:
    """Sort the entries of a matrix of `count` rows by row and column, and sum entries of the same element."""
    width = int(columns.max()) + 1 if len(columns) else 1
    place, order = (rows.long() * width + columns).sort(stable=True)
    unique, inverse = torch.unique_consecutive(place, return_inverse=True)
    summed = weights.new_zeros(len(unique))
    if weights.is_cuda:  # there `index_add_` adds in any order
        summed.index_put_((inverse,), weights[order], accumulate=True)
    else:
        summed.index_add_(0, inverse, weights[order])
    row = unique.div(width, rounding_mode="floor")
    ends = functional.pad(torch.bincount(row, minlength=count).cumsum(0), (1, 0))
    return Rows(ends=ends, columns=unique - row * width, weights=summed)


def _joined(
    planes: Iterable[Rows], planes_in: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Put the rows of some planes together, as many as one product takes, as CSR matrices on a device."""
    most_rows = _CPU_ELEMENTS // _CPU_COLUMNS if device.type == "cpu" else _GPU_ELEMENTS
    parts: list[Tensor] = []
    waiting: list[Rows] = []
    for rows in planes:
        sizes = [(len(some.ends) - 1, some.entries) for some in (*waiting, rows)]
        if waiting and (sum(n for n, _ in sizes) > most_rows or sum(n for _, n in sizes) > _WEIGHTS):
            parts.append(_to_matrix(waiting, planes_in))
            waiting = []
        waiting.append(rows.to(device, dtype))
    return [*parts, _to_matrix(waiting, planes_in)]


def _to_matrix(some: Sequence[Rows], planes_in: tuple[int, int]) -> Tensor:
    starts = np.cumsum([0, *(rows.entries for rows in some)]).tolist()
    ends = torch.cat([some[0].ends[:1], *(rows.ends[1:] + start for rows, start in zip(some, starts, strict=False))])
    with warnings.catch_warnings():
        # torch calls its CSR layout a beta, once in a process; the product used here is tested in this package.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            ends,
            torch.cat([rows.columns for rows in some]),
            torch.cat([rows.weights for rows in some]),
            size=(len(ends) - 1, math.prod(planes_in)),
            check_invariants=False,
            device=ends.device,
        )


def _row_of_each(ends: Tensor) -> Tensor:
    """Give the row of each entry of a CSR matrix."""
    return torch.repeat_interleave(torch.arange(len(ends) - 1, device=ends.device), ends.diff())


#: Whether this thread's new maps are kept.
_KEEPING: ContextVar[bool] = ContextVar("keeping", default=True)


class PlaneMapCache:
    """Maps that are kept. If those of a device take too much, the least recently used one is removed first.

    Parameters
    ----------
    max_bytes
        On the CPU, which workers share, and on a GPU where its share is less.
    gpu_share
        Of the memory of a GPU.
    """

    def __init__(self, max_bytes: int, gpu_share: float) -> None:
        self._max_bytes, self._gpu_share = max_bytes, gpu_share
        self._maps: OrderedDict[Hashable, PlaneMap] = OrderedDict()
        self._lock = threading.Lock()
        # A fork while another thread holds the lock would leave it locked in the child for ever.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    def get(self, key: Hashable, build: Callable[[], PlaneMap]) -> PlaneMap:
        """Return the map of `key`. If it is not kept, `build` makes it."""
        with self._lock:
            if key in self._maps:
                self._maps.move_to_end(key)
                return self._maps[key]
        made = build()
        if not _KEEPING.get():
            return made
        with self._lock:
            self._maps[key] = made
            self._maps.move_to_end(key)
            sizes = {own: kept.nbytes for own, kept in self._maps.items() if kept.device == made.device}
            total, limit = sum(sizes.values()), self._limit(made.device)
            for own, size in list(sizes.items())[:-1]:
                if total > limit:
                    total -= size
                    del self._maps[own]
        return made

    def _limit(self, device: torch.device) -> int:
        if device.type != "cuda":
            return self._max_bytes
        return max(self._max_bytes, int(self._gpu_share * torch.cuda.get_device_properties(device).total_memory))

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep no new maps of this thread: for geometries that do not come again."""
        token = _KEEPING.set(False)
        try:
            yield
        finally:
            _KEEPING.reset(token)

    def clear(self) -> None:
        """Remove all maps."""
        with self._lock:
            self._maps.clear()


#: All geometries of this process. Of 61 tilts of 3500² they take 4 GB.
geometry_cache = PlaneMapCache(max_bytes=2**31, gpu_share=0.2)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which a linear map runs for an input of `dtype`."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of a linear map's result: the input's, float32 for integers."""
    return dtype if dtype.is_floating_point else torch.float32
