"""Kernels of our own for GPUs, each beside the plain path of PyTorch, and used only where it was checked."""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from faket_aug._runtime.threads import is_recording

P = ParamSpec("P")
R = TypeVar("R")

#: With this variable set to 0, kernels of our own are left out.
VARIABLE = "FAKET_AUG_TRITON"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_lock = threading.RLock()
#: Devices on which a kernel did not work: there none is used.
_refused: set[torch.device] = set()


class Kernel(Generic[P, R]):
    """A kernel for GPUs beside the plain path that it replaces.

    A call runs the kernel on CUDA tensors of `DTYPES` for which no gradient is recorded, if Triton is installed and
    `FAKET_AUG_TRITON` is not 0, and the plain path elsewhere. At the first use of a dtype on a device both run on
    samples. If the kernel raises, or if its results differ, a warning says so, and no kernel is used on this device
    from then on.

    Parameters
    ----------
    name
        For the warning.
    launch
        Runs the kernel, and imports what it needs when it is called. What it changes in place it changes by its last
        launch alone, so that the plain path can take over where it raises.
    plain
        Does the same by PyTorch. The first argument of both is a tensor that tells device and dtype.
    samples
        Makes small arguments of a dtype on a device, one set after the other: with even and odd sizes, for which Triton
        compiles different code, NaN and infinities. Each call makes new ones.
    accepts
        Whether the kernel takes these arguments; by default it takes all.
    tolerance
        By how much results may differ, as a share of the largest one; by default they are the same.
    """

    def __init__(
        self,
        name: str,
        *,
        launch: Callable[P, R],
        plain: Callable[P, R],
        samples: Callable[[torch.device, torch.dtype], Iterable[tuple[Any, ...]]],
        accepts: Callable[..., bool] | None = None,
        tolerance: float = 0.0,
    ) -> None:
        self.name, self.samples = name, samples
        self.launch: Callable[..., R] = launch
        self.plain: Callable[..., R] = plain
        self._accepts, self._tolerance = accepts, tolerance
        self._checked: set[tuple[torch.device, torch.dtype]] = set()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the kernel, or the plain path where it cannot be used."""
        first = args[0]
        assert isinstance(first, Tensor), "the first argument tells the device"
        if self._is_for(first, *args) and (self._accepts is None or self._accepts(*args, **kwargs)):
            # Triton launches on the current device.
            with torch.cuda.device(first.device):
                if self._works(first.device, first.dtype):
                    try:
                        return self.launch(*args, **kwargs)
                    except torch.OutOfMemoryError:
                        raise
                    except Exception as error:
                        if is_recording():  # the fault may be the CUDA graph's
                            raise
                        _refuse(first.device, self._told(error))
        return self.plain(*args, **kwargs)

    def _is_for(self, first: Tensor, *args: object) -> bool:
        if not first.is_cuda or first.dtype not in DTYPES or first.device in _refused or not triton_is_wanted():
            return False
        return not (torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in args))

    def _works(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Compare the kernel with the plain path on samples, once."""
        if (device, dtype) in self._checked:
            return True
        with _lock, torch.no_grad():
            if device in _refused or is_recording():  # the check waits for the GPU
                return False
            wrong = self.difference(device, dtype)
            if wrong:
                _refuse(device, wrong)
                return False
            self._checked.add((device, dtype))
        return True

    def difference(self, device: torch.device, dtype: torch.dtype) -> str:
        """Say how the kernel differs from the plain path on samples; nothing where it does not."""
        for first, given in zip(self.samples(device, dtype), self.samples(device, dtype), strict=True):
            # Either may change its arguments.
            expected = self.plain(*first)
            try:
                found = self.launch(*given)
                same = all(self._agree(a, b) for a, b in zip(_tensors(found), _tensors(expected), strict=True))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                return self._told(error)
            if not same:
                return f"other results of `{self.name}` in {str(dtype).removeprefix('torch.')} than PyTorch's"
        return ""

    def _agree(self, found: Tensor, expected: Tensor) -> bool:
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return False
        if not self._tolerance:
            return bool(((found == expected) | (found.isnan() & expected.isnan())).all())
        # NaN and infinities have to be the same; what is finite may differ a little.
        finite = expected.isfinite()
        exact = torch.where(finite, 0, found), torch.where(finite, 0, expected)
        near = torch.where(finite, found, 0).double(), torch.where(finite, expected, 0).double()
        allowed = max(self._tolerance, torch.finfo(expected.dtype).eps) * near[1].abs().amax()
        same = torch.allclose(*exact, rtol=0, atol=0, equal_nan=True)
        return same and bool(((near[0] - near[1]).abs() <= allowed).all())

    def _told(self, error: Exception) -> str:
        lines = str(error).splitlines() or [""]
        return f"{type(error).__name__} in `{self.name}` ({lines[0][:200]})"


def kernels_are_used(device: torch.device) -> bool:
    """Tell whether kernels may be used on a device: they are wanted, and none has failed there."""
    return device not in _refused and triton_is_wanted()


def triton_is_wanted() -> bool:
    """Tell whether kernels may be used: Triton is installed, and was not switched off."""
    return os.environ.get(VARIABLE, "1") != "0" and _triton_is_installed()


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _refuse(device: torch.device, what: str) -> None:
    """Use no kernel on a device any more, and say why, once."""
    with _lock:
        if device in _refused:
            return
        _refused.add(device)
    warnings.warn(
        f"expected kernels of Triton to work on {device}, got {what}; PyTorch's are used, which take longer (with "
        f"{VARIABLE}=0 no others are tried)",
        stacklevel=4,
    )


def _tensors(result: object) -> list[Tensor]:
    """List the tensors of a result."""
    several = result if isinstance(result, tuple) else (result,)
    return [one for one in several if isinstance(one, Tensor)]
