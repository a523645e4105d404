"""Sparse linear maps in a plane, the same for every row of a stack: one geometry serves all rows and batches."""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional

#: Rows of y that one product takes on a CPU: a weight is read once for all of them, and they fill some registers.
_CPU_COLUMNS = 64
#: Elements of a product on a CPU before it is turned into its place: they stay in the second-level cache, too.
_CPU_ELEMENTS = 2**18
#: Whether this torch has the compiled kernels for sums of embeddings (x86).
_HAS_BAGS = "fbgemm" in torch.backends.quantized.supported_engines
#: Elements of a block that one product takes on a GPU (1 GiB of float32).
_GPU_ELEMENTS = 2**28


class PlaneMap:
    """A linear map between planes, `(p, q) -> (p', q')`, to be applied to every row y of `(..., p, y, q)`.

    Parameters
    ----------
    matrix
        `(p'·q', p·q)` in SciPy's CSR form.
    planes_in, planes_out
        `(p, q)` and `(p', q')`.
    device, dtype
        Where and in which precision the products run.
    """

    def __init__(
        self,
        matrix: Any,
        planes_in: tuple[int, int],
        planes_out: tuple[int, int],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.planes_in = planes_in
        self.planes_out = planes_out
        self._forward = _to_torch(matrix, device, dtype)
        self._adjoint: Tensor | None = None
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that the map holds."""
        held = self._forward.values().numel() * (self._forward.values().element_size() + 4)
        return held if self._adjoint is None else 2 * held

    def matrix(self, *, adjoint: bool) -> Tensor:
        """Return the CSR matrix of the map or of its adjoint (made when first asked for)."""
        if not adjoint:
            return self._forward
        with self._lock:
            if self._adjoint is None:
                forward = self._forward
                csr = scipy.sparse.csr_matrix(
                    (
                        forward.values().cpu().numpy(),
                        forward.col_indices().cpu().numpy(),
                        forward.crow_indices().cpu().numpy(),
                    ),
                    shape=tuple(forward.shape),
                )
                self._adjoint = _to_torch(csr.T.tocsr(), forward.device, forward.dtype)
            return self._adjoint

    def __call__(self, stack: Tensor, *, adjoint: bool = False) -> Tensor:
        """Apply the map to `(..., p, y, q)`, giving `(..., p', y, q')`; its adjoint the other way round."""
        result: Tensor = _Apply.apply(stack, self, adjoint)
        return result


class _Apply(torch.autograd.Function):
    """The product and, as its derivative, the product with the transpose: linear, so differentiable at any order."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, plane_map: PlaneMap, adjoint: bool) -> Tensor:
        ctx.plane_map, ctx.adjoint = plane_map, adjoint
        return _product(stack, plane_map, adjoint)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Apply.apply(grads[0], ctx.plane_map, not ctx.adjoint), None, None


def _product(stack: Tensor, plane_map: PlaneMap, adjoint: bool) -> Tensor:
    """Multiply block by block over y, so that no transposed copy of the whole stack is made."""
    matrix = plane_map.matrix(adjoint=adjoint)
    p_out, q_out = plane_map.planes_in if adjoint else plane_map.planes_out
    rows, batch = stack.shape[-2], stack.shape[:-3]
    flat = stack.reshape(-1, *stack.shape[-3:])  # (batch, p, y, q)
    # Written through a view: autograd lets the result itself be changed in place, but not a view made in here.
    result = stack.new_empty((*batch, p_out, rows, q_out))
    out = result.view(-1, p_out, rows, q_out)
    on_cpu = stack.device.type == "cpu"
    step = _CPU_COLUMNS if on_cpu else max(1, _GPU_ELEMENTS // max(matrix.shape))
    planes = max(1, _CPU_ELEMENTS // (min(step, rows) * q_out)) if on_cpu else p_out
    parts = [(first, _rows_of(matrix, first * q_out, (first + planes) * q_out)) for first in range(0, p_out, planes)]
    multiply = _sum_bags if on_cpu and stack.dtype == torch.float32 and _HAS_BAGS else torch.mm
    for source, target in zip(flat, out, strict=True):
        for start in range(0, rows, step):
            block = source[:, start : start + step]  # (p, y, q)
            columns = block.permute(0, 2, 1).reshape(matrix.shape[1], -1).contiguous()
            for first, part in parts:
                product = multiply(part, columns).view(-1, q_out, columns.shape[1])
                target[first : first + planes, start : start + step] = product.permute(0, 2, 1)
    return result


def _sum_bags(matrix: Tensor, columns: Tensor) -> Tensor:
    """Multiply as weighted sums of embeddings, whose compiled kernels are two to three times as fast as `torch.mm`."""
    ends, index, weight = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    return functional.embedding_bag(
        index, columns, ends, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _rows_of(matrix: Tensor, first: int, last: int) -> Tensor:
    """Some rows of a CSR matrix, without a copy of its weights."""
    if first == 0 and last >= matrix.shape[0]:
        return matrix
    ends = matrix.crow_indices()[first : last + 1]
    own = slice(int(ends[0]), int(ends[-1]))
    return torch.sparse_csr_tensor(
        ends - ends[0],
        matrix.col_indices()[own],
        matrix.values()[own],
        size=(len(ends) - 1, matrix.shape[1]),
        check_invariants=False,
    )


def _to_torch(matrix: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    if matrix.nnz >= 2**31:
        raise ValueError(
            f"expected a geometry of fewer than 2**31 weights, got {matrix.nnz}; project or reconstruct fewer tilts, "
            "or a thinner volume, at a time"
        )
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
