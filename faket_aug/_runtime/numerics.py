"""The precision of products, which a program sets for its network: what is simulated does not depend on it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

#: Of all backends, and of one.
_EXACT, _EXACT_BACKEND = "highest", "ieee"


class _ExactProducts:
    """Exact products of float32 matrices while anybody asks for them. PyTorch has one setting for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking = 0
        self._before: str | list[str] = _EXACT
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        # A fork while another thread holds the lock would leave it locked in the child for ever. Whoever asked runs in
        # the parent.
        if self._asking:
            _set_products(self._before)
        self._lock, self._asking = threading.Lock(), 0

    def ask(self) -> None:
        with self._lock:
            self._asking += 1
            if self._asking == 1:
                self._before = _products()
                _set_products(_EXACT if isinstance(self._before, str) else [_EXACT_BACKEND] * len(self._before))

    def give_back(self) -> None:
        with self._lock:
            self._asking -= 1
            if self._asking == 0:
                _set_products(self._before)


def _products() -> str | list[str]:
    """Return the precision of products, or that of each backend where a program has set one of them alone."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return [one.fp32_precision for one in _backends()]


def _set_products(precision: str | list[str]) -> None:
    if isinstance(precision, str):
        torch.set_float32_matmul_precision(precision)
        return
    for backend, own in zip(_backends(), precision, strict=True):
        backend.fp32_precision = own


def _backends() -> list[Any]:
    """Return what holds the precision of products since torch 2.9: it can be set for each backend, too."""
    found = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    return [one for one in found if one is not None and hasattr(one, "fp32_precision")]


_exact_products = _ExactProducts()


@contextmanager
def own_precision() -> Iterator[None]:
    """Run the body in the precision of its own tensors, whatever the program has set for its network.

    Autocast is off in this thread, and products of float32 matrices are exact (`set_float32_matmul_precision`). The
    second setting is that of the whole process: products of other threads are exact meanwhile, too. Convolutions keep
    the settings of `torch.backends.cudnn`.
    """
    asked = False
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            _exact_products.ask()
            asked = True
            yield
        finally:
            if asked:
                _exact_products.give_back()
