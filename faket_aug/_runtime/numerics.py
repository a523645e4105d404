"""What a program sets for its network (precision of products, default device): simulations do not depend on it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

#: Of all backends, and of one. A backend that has no setting of its own is exact, too, unless all have another.
_EXACT, _EXACT_BACKEND = "highest", ("ieee", "none")


class _ExactProducts:
    """Exact products of float32 matrices while anybody asks for them. PyTorch has one setting for all threads.

    An interruption can come between any two lines: who asks is noted before anything changes, and may give back what
    was not asked for yet, or twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking: set[object] = set()
        #: What the program had set; None while nothing was changed.
        self._before: _Products | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        # A fork while another thread holds the lock would leave it locked in the child for ever. Whoever asked runs in
        # the parent.
        self._lock, self._asking = threading.Lock(), set()
        self._restore()

    def ask(self, who: object) -> None:
        with self._lock:
            self._asking.add(who)
            present = _Products()
            if not present.exact:
                self._before = present
                present.make_exact()

    def give_back(self, who: object) -> None:
        with self._lock:
            self._asking.discard(who)
            if not self._asking:
                self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            self._before.restore()
            self._before = None


class _Products:
    """The precision of products that the program has now."""

    def __init__(self) -> None:
        #: Of all backends; None where a program has set one of them alone.
        self.overall = _overall()
        self.backends = [str(one.fp32_precision) for one in _backends()]
        #: Whether the precision of all backends is restored, and what each has then; None before.
        self._restored: tuple[bool, list[str]] | None = None

    @property
    def exact(self) -> bool:
        return self.overall in (_EXACT, None) and all(one in _EXACT_BACKEND for one in self.backends)

    def make_exact(self) -> None:
        if self.overall is not None:
            torch.set_float32_matmul_precision(_EXACT)
        for backend in _backends():
            if backend.fp32_precision not in _EXACT_BACKEND:
                backend.fp32_precision = _EXACT_BACKEND[0]

    def restore(self) -> None:
        """Set what `make_exact` changed to what it was; what the program has set meanwhile stays.

        After an interruption, a second call does the rest.
        """
        if self._restored is None:
            present = [str(one.fp32_precision) for one in _backends()]
            changed = [self.overall is not None or own not in _EXACT_BACKEND for own in self.backends]
            before = [
                own if change and now == _EXACT_BACKEND[0] else now
                for change, now, own in zip(changed, present, self.backends, strict=True)
            ]
            self._restored = self.overall is not None and _overall() == _EXACT, before
        all_of_them, before = self._restored
        if all_of_them:
            # This sets each backend, too.
            torch.set_float32_matmul_precision(str(self.overall))
        for backend, own in zip(_backends(), before, strict=True):
            # A backend without a setting of its own shows that of all: with the same it had none.
            backend.fp32_precision = "none"
            if backend.fp32_precision != own:
                backend.fp32_precision = own


def _overall() -> str | None:
    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        return None


def _backends() -> list[Any]:
    """Return what holds the precision of products since torch 2.9: it can be set for each backend, too."""
    found = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    return [one for one in found if one is not None and hasattr(one, "fp32_precision")]


_exact_products = _ExactProducts()


@contextmanager
def own_device() -> Iterator[None]:
    """Run the body with the CPU as the default device, whatever the program has set for its network."""
    # A default device is a mode of torch. A mode costs time at every operation: there is none of ours without one. To
    # ask for the default device itself would start CUDA, which a forked worker cannot.
    with torch.device("cpu") if torch._C._len_torch_function_stack() else nullcontext():
        yield


@contextmanager
def own_precision() -> Iterator[None]:
    """Run the body in the precision of its own tensors, whatever the program has set for its network.

    Autocast is off in this thread, and products of float32 matrices are exact (`set_float32_matmul_precision`). The
    second setting is that of the whole process: products of other threads are exact meanwhile, too. What the program
    sets meanwhile stays afterwards. Convolutions keep the settings of `torch.backends.cudnn`. A tensor for which no
    device is said lies on the CPU (`torch.set_default_device`, which is not to be called meanwhile).
    """
    autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    who = object()

    def end() -> None:
        _exact_products.give_back(who)
        for kind in autocast:
            torch.set_autocast_enabled(kind, True)

    try:
        try:
            for kind in autocast:
                torch.set_autocast_enabled(kind, False)
            _exact_products.ask(who)
            with own_device():
                yield
        finally:
            end()
    except BaseException:
        # An interruption may have come within the end; a second end changes nothing.
        end()
        raise
