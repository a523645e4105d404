"""Sparse linear maps in a plane, the same for every row of a stack: one geometry serves all rows and batches."""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional

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


class PlaneMap:
    """A linear map between planes, `(p, q) -> (p', q')`, to be applied to every row y of `(..., p, y, q)`.

    Parameters
    ----------
    matrices
        In SciPy's CSR form, `(q', p·q)` for each of p', one after the other: they are never all there in SciPy's
        double precision.
    planes_in, planes_out
        `(p, q)` and `(p', q')`.
    device, dtype
        Where and in which precision the products run.
    """

    def __init__(
        self,
        matrices: Iterable[Any],
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
        self._forward = _joined(matrices, device, dtype)
        self._adjoint: list[Tensor] | None = None
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that the map holds."""
        held = sum(part.values().numel() * (part.values().element_size() + 4) for part in self._forward)
        return held if self._adjoint is None else 2 * held

    def parts(self, *, adjoint: bool) -> list[Tensor]:
        """Return the CSR matrices of some planes each, of the map or of its adjoint (made when first asked for)."""
        if not adjoint:
            return self._forward
        with self._lock:
            if self._adjoint is None:
                whole = scipy.sparse.vstack([_to_scipy(part) for part in self._forward], format="csr").T.tocsr()
                rows = self.planes_in[1]
                planes = (whole[first : first + rows] for first in range(0, whole.shape[0], rows))
                self._adjoint = _joined(planes, self.device, self.dtype)
            return self._adjoint

    def __call__(self, stack: Tensor, *, adjoint: bool = False) -> Tensor:
        """Apply the map to `(..., p, y, q)`, giving `(..., p', y, q')`; its adjoint the other way round.

        The stack may lie elsewhere, and in another precision, than the map and the result: it is brought there some
        rows at a time.
        """
        result: Tensor = _Apply.apply(stack, self, adjoint)
        return result


class _Apply(torch.autograd.Function):
    """The product and, as its derivative, the product with the transpose: linear, so differentiable at any order."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, plane_map: PlaneMap, adjoint: bool) -> Tensor:
        ctx.plane_map, ctx.adjoint, ctx.like = plane_map, adjoint, (stack.device, stack.dtype)
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
    multiply = _sum_bags if on_cpu and dtype == torch.float32 and _HAS_BAGS else torch.mm
    for source, target in zip(flat, out, strict=True):
        for start in range(0, rows, step):
            block = source[:, start : start + step].to(device).permute(0, 2, 1)  # (p, q, y)
            columns = torch.empty(block.shape, device=device, dtype=dtype).copy_(block).flatten(0, 1)
            first = 0
            for part in parts:
                product = multiply(part, columns).view(-1, q_out, columns.shape[1])
                target[first : first + len(product), start : start + step] = product.permute(0, 2, 1)
                first += len(product)
    return result


def _sum_bags(matrix: Tensor, columns: Tensor) -> Tensor:
    """Multiply as weighted sums of embeddings, whose compiled kernels are two to three times as fast as `torch.mm`."""
    ends, index, weight = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    return functional.embedding_bag(
        index, columns, ends, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _joined(matrices: Iterable[Any], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Put CSR matrices of a plane each together, as many as one product takes, and bring them to torch."""
    most_rows = _CPU_ELEMENTS // _CPU_COLUMNS if device.type == "cpu" else _GPU_ELEMENTS
    parts: list[Tensor] = []
    waiting: list[Any] = []
    for matrix in matrices:
        full = sum(m.shape[0] for m in waiting) + matrix.shape[0] > most_rows
        if waiting and (full or sum(m.nnz for m in waiting) + matrix.nnz > _WEIGHTS):
            parts.append(_to_torch(waiting, device, dtype))
            waiting = []
        waiting.append(matrix)
    return [*parts, _to_torch(waiting, device, dtype)]


def _to_torch(matrices: Sequence[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    matrix = scipy.sparse.vstack(matrices, format="csr")
    with warnings.catch_warnings():
        # torch calls its CSR layout a beta, once in a process; the product used here is tested in this package.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int32)),
            torch.from_numpy(matrix.indices.astype(np.int32)),
            torch.from_numpy(matrix.data).to(dtype),
            size=matrix.shape,
            check_invariants=False,
        ).to(device)


def _to_scipy(matrix: Tensor) -> Any:
    entries = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    return scipy.sparse.csr_matrix(tuple(values.cpu().numpy() for values in entries), shape=tuple(matrix.shape))


class PlaneMapCache:
    """The least recently used maps go first when all of them hold more than `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._maps: OrderedDict[Hashable, PlaneMap] = OrderedDict()
        self._lock = threading.Lock()
        # A fork while another thread holds the lock would leave it locked in the child for ever.
        os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    def get(self, key: Hashable, build: Callable[[], PlaneMap]) -> PlaneMap:
        """Return the map of `key`, made by `build` where it is not held."""
        with self._lock:
            if key in self._maps:
                self._maps.move_to_end(key)
                return self._maps[key]
        made = build()
        with self._lock:
            self._maps[key] = made
            while len(self._maps) > 1 and sum(m.nbytes for m in self._maps.values()) > self._max_bytes:
                self._maps.popitem(last=False)
        return made

    def clear(self) -> None:
        """Forget all maps."""
        with self._lock:
            self._maps.clear()


#: All geometries of this process.
geometry_cache = PlaneMapCache(max_bytes=2**31)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which a linear map runs for an input of `dtype`."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of a linear map's result: the input's, float32 for integers."""
    return dtype if dtype.is_floating_point else torch.float32
