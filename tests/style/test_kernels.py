"""The kernels for GPUs against the plain paths: interpreted on the CPU, compiled without a GPU, and on a real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from _interpreted_kernels import KERNELS

from faket_aug._runtime.kernels import DTYPES, VARIABLE
from faket_aug.style.losses import slope_of_rows
from faket_aug.style.transfer import StyleTargets, style_grams, stylize
from faket_aug.style.vgg19 import VGG19Features

pytest.importorskip("triton")

INTERPRETED = Path(__file__).parent / "_interpreted_kernels.py"


@pytest.mark.slow
def test_kernels_interpreted_on_the_cpu() -> None:
    """With Triton's interpreter, which is chosen at its import, all kernels give what the plain paths give."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        environment.pop(name, None)
    folder = Path(__file__).parents[2]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b\d\d+ passed in", done.stdout)


# --- compiled ---------------------------------------------------------------------------------------------------------

_COMPILE = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class NoGpu:
    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)

compiled = []

def compile_only(self, grid):
    def launch(*args, **settings):
        compiled.append(self.run(*args, grid=grid, warmup=True, **settings).asm["cubin"])
    return launch

driver.set_active(NoGpu())
JITFunction.__getitem__ = compile_only
from _interpreted_kernels import CPU, KERNELS
for kernel in KERNELS.values():
    for name in sys.argv[2:]:
        for given in kernel.samples(CPU, getattr(torch, name)):
            kernel.launch(*given)
print(len(compiled), min(map(len, compiled)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtypes"),
    [pytest.param(80, ["float16"], marks=pytest.mark.nightly), (90, ["float32", "bfloat16"])],
)
def test_kernels_compile_without_a_gpu(tmp_path: Path, capability: int, dtypes: list[str]) -> None:
    """Triton compiles each kernel to machine code for an A100 and an H100."""
    pytest.importorskip("triton.backends.nvidia")
    command = [sys.executable, "-c", _COMPILE, str(capability), *dtypes]
    paths = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    count, least = map(int, done.stdout.split())
    # Two samples each, three of the pooling; the loss has three.
    assert count == 15 * len(dtypes)
    assert least > 0


def test_a_weight_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton refuses numbers of NumPy in single precision, and would not be used any more."""
    from faket_aug.style import kernels

    given: list[object] = []
    monkeypatch.setattr(kernels, "error_slope", lambda *args: given.append(args[2]))
    slope_of_rows.launch(torch.ones(1, 2), torch.ones(1, 2), np.float32(0.5))
    assert [type(weight) for weight in given] == [float]


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def _needs_triton_on_a_gpu() -> None:
    from triton.runtime import driver

    try:
        driver.active.get_current_device()
    except Exception as error:
        pytest.skip(f"needs a GPU that Triton finds: {error}")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    """On a real GPU they compile, and give the plain paths' results, the same each time, bit for bit."""
    _needs_triton_on_a_gpu()
    kernel, device = KERNELS[name], torch.device("cuda", torch.cuda.current_device())
    assert kernel.difference(device, dtype) == ""
    for twins in zip(kernel.samples(device, dtype), kernel.samples(device, dtype), strict=True):
        first, second = (kernel.launch(*given) for given in twins)
        for a, b in zip(*((one if isinstance(one, tuple) else (one,)) for one in (first, second)), strict=True):
            assert a is b is None or torch.equal(a.nan_to_num(nan=7.5), b.nan_to_num(nan=7.5))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_transfer_with_kernels(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transfer, of full width and odd size, is the same with kernels and without, and nothing is warned of."""
    _needs_triton_on_a_gpu()
    generator = torch.Generator().manual_seed(0)
    content, init, style = (torch.rand(3, 70, 97, generator=generator).cuda() for _ in range(3))
    encoder = VGG19Features("random", precision=precision).cuda()
    found = {}
    for switch in ("0", "1"):
        monkeypatch.setenv(VARIABLE, switch)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            targets = StyleTargets(grams=style_grams(style, encoder), mean=style.mean((1, 2)), std=style.std((1, 2)))
            found[switch] = (stylize(content, init, targets, features=encoder) - init).cpu().flatten()
    correlation = torch.corrcoef(torch.stack([found["0"], found["1"]]))[0, 1]
    assert float(correlation) > 0.995
