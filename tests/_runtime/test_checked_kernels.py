"""Kernels are used where they were checked; whatever goes wrong with one, the plain path takes over."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from faket_aug._runtime import kernels
from faket_aug._runtime.background import Stopped
from faket_aug._runtime.kernels import Kernel


class Elsewhere(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cuda = property(lambda self: True)
    device = property(lambda self: torch.device("cuda", 5))


def _elsewhere(values: Tensor) -> Tensor:
    return values.as_subclass(Elsewhere)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No device was refused before, and a GPU can be made the current one."""
    monkeypatch.setattr(kernels, "_refused", set())
    monkeypatch.setattr(kernels, "_triton_is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


Launch = Callable[..., Tensor]


def _kernel(launch: Launch, *, calls: list[str] | None = None, **options: Any) -> Kernel[..., Tensor]:
    """Make a kernel whose plain path doubles, and notes that it did."""

    def plain(values: Tensor) -> Tensor:
        if calls is not None:
            calls.append("plain")
        return values * 2

    return Kernel(
        "double", launch=launch, plain=plain, samples=lambda device, dtype: [(torch.ones(3).to(dtype),)], **options
    )


ONES = _elsewhere(torch.ones(4))


def test_a_kernel_that_agrees_is_used() -> None:
    """It is compared with the plain path once for each dtype, and then used alone."""
    calls: list[str] = []

    def launch(values: Tensor) -> Tensor:
        calls.append("kernel")
        return values * 2

    kernel = _kernel(launch, calls=calls)
    assert torch.equal(kernel(ONES), ONES * 2)
    assert calls == ["plain", "kernel", "kernel"]
    kernel(ONES)
    assert calls[3:] == ["kernel"]
    kernel(_elsewhere(torch.ones(4, dtype=torch.bfloat16)))
    assert calls[4:] == ["plain", "kernel", "kernel"]


def test_other_tensors_take_the_plain_path() -> None:
    """Those of a CPU, of another dtype, with a gradient, or that the kernel does not accept."""

    def launch(values: Tensor) -> Tensor:
        raise AssertionError

    kernel = _kernel(launch)
    for values in (torch.ones(2), _elsewhere(torch.ones(2, dtype=torch.float64)), ONES.clone().requires_grad_()):
        assert torch.equal(kernel(values).detach(), torch.full((len(values),), 2.0, dtype=values.dtype))
    assert torch.equal(_kernel(launch, accepts=lambda values: False)(ONES), ONES * 2)


@pytest.mark.parametrize("how", ["off", "absent"])
def test_switched_off_without_a_word(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """With `FAKET_AUG_TRITON=0`, or without Triton, kernels are not even tried."""
    if how == "off":
        monkeypatch.setenv("FAKET_AUG_TRITON", "0")
    else:
        monkeypatch.setattr(kernels, "_triton_is_installed", lambda: False)

    def launch(values: Tensor) -> Tensor:
        raise AssertionError

    assert torch.equal(_kernel(launch)(ONES), ONES * 2)


def _fails(values: Tensor) -> Tensor:
    raise RuntimeError("no compiler\nand much more")


@pytest.mark.parametrize(
    ("launch", "told"),
    [
        (
            _fails,
            r"RuntimeError in `double` \(no compiler\); PyTorch's are used, which take longer .*FAKET_AUG_TRITON=0",
        ),
        (lambda values: values * 3, "other results of `double` in float32 than PyTorch's"),
        (lambda values: values.double() * 2, "other results of `double`"),
        (lambda values: values[:1] * 2, "other results of `double`"),
        (lambda values: values * torch.nan, "other results of `double`"),
    ],
)
def test_a_kernel_that_fails_is_left_out(launch: Launch, told: str) -> None:
    """One warning says why; from then on no kernel is used on this device."""
    kernel = _kernel(launch)
    with pytest.warns(UserWarning, match=f"expected kernels of Triton to work on cuda:5, got {told}"):
        assert torch.equal(kernel(ONES), ONES * 2)
    assert torch.equal(kernel(ONES), ONES * 2)
    assert torch.equal(_kernel(_fails)(ONES), ONES * 2)


def test_a_kernel_that_fails_later() -> None:
    """What raises at its use, after the check, is replaced by the plain path, with the same warning."""

    def launch(values: Tensor) -> Tensor:
        return values * 2 if len(values) == 3 else _fails(values)

    kernel = _kernel(launch)
    with pytest.warns(UserWarning, match="got RuntimeError in `double`"):
        assert torch.equal(kernel(ONES), ONES * 2)
    assert torch.equal(kernel(ONES), ONES * 2)


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), Stopped()])
def test_what_is_no_fault_of_a_kernel_is_raised(error: BaseException, size: int) -> None:
    """Memory that is short, and the end of the work, say nothing about the kernel: it goes on being used."""
    fail = True

    def launch(values: Tensor) -> Tensor:
        if fail and len(values) == size:
            raise error
        return values * 2

    calls: list[str] = []
    kernel = _kernel(launch, calls=calls)
    with pytest.raises(type(error)):
        kernel(ONES)
    fail = False
    kernel(ONES)
    calls.clear()
    kernel(ONES)
    assert calls == []


def test_tolerance() -> None:
    """Results may differ by a share of the largest, never in what is infinite or no number."""
    special = torch.tensor([1.0, torch.inf, torch.nan, -0.5])

    def result(change: Callable[[Tensor], Tensor]) -> str:
        kernel = Kernel(
            "same",
            launch=change,
            plain=lambda v: v,
            samples=lambda device, dtype: [(special.to(dtype),)],
            tolerance=1e-5,
        )
        return kernel.difference(torch.device("cpu"), torch.float32)

    assert result(lambda v: v) == result(lambda v: v + 5e-6) == ""
    assert result(lambda v: v + 2e-5)
    assert result(lambda v: v.nan_to_num(nan=0.0, posinf=torch.inf))
    assert result(lambda v: v.nan_to_num(nan=torch.nan))
