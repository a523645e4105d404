"""What all tests share: the reference data, a phantom, and a guard on the state that the package must not touch."""

from __future__ import annotations

import os

# Of several processes of tests, each has its share of the cores; the programs that it starts have the same.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Only Linux tells which cores are this process's.
    _cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    _share = _cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _share)))

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER_VARIABLE = "FAKET_AUG_REFERENCE"
REQUIRE_VARIABLE = "FAKET_AUG_REQUIRE_REFERENCE"
NIGHTLY_VARIABLE = "FAKET_AUG_NIGHTLY"
#: Tests that start trainings in processes of their own.
NIGHTLY = ("test_examples_", "test_distributed")
PROJECT = Path(__file__).resolve().parents[1]


def _absent(path: Path) -> NoReturn:
    """Fail where the reference data are required, skip elsewhere; say what to set."""
    reason = f"no reference data at {path}; set {FOLDER_VARIABLE} to the folder that holds golden/ and data/"
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{reason} ({REQUIRE_VARIABLE}=1 forbids to skip)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_not_ignored() -> Iterator[None]:
    """A shell starts what runs in the background with Ctrl-C ignored, and so would be the programs of the tests."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the reference data."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or PROJECT.parent / "shared")
    if not (folder / "golden").is_dir():
        _absent(folder)
    return folder


@pytest.fixture(scope="session")
def reference_file() -> Callable[[Path, str], Path]:
    """A function `(reference, "golden/x.npz") -> path` under the same rule for single files."""

    def find(reference: Path, name: str) -> Path:
        path = reference / name
        if not path.exists():
            _absent(path)
        return path

    return find


def _is_named(config: pytest.Config) -> bool:
    """Whether the command line names files or folders of tests; its worker processes are told by the main one."""
    sent = getattr(config, "workerinput", {})
    return bool(sent.get("named", config.args_source is pytest.Config.ArgsSource.ARGS))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker process of pytest-xdist, whose arguments are always written out, what the user wrote."""
    node.workerinput["named"] = _is_named(node.config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs the reference data, before `-m` selects; leave out what runs by night, unless it is named."""
    for item in items:
        if "reference" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.reference)
        if item.path.name.startswith(NIGHTLY):
            item.add_marker(pytest.mark.nightly)
    if os.environ.get(NIGHTLY_VARIABLE) != "1" and not _is_named(config):
        kept = [item for item in items if not item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("nightly")])
        items[:] = kept


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def global_state_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """The global generators of torch, NumPy and Python, and torch's threads, are the user's: nobody touches them."""
    if request.node.get_closest_marker("touches_global_rng"):
        yield
        return
    torch_state, numpy_state, python_state = torch.get_rng_state(), _numpy_state(), random.getstate()
    threads = torch.get_num_threads()
    yield
    assert torch.equal(torch_state, torch.get_rng_state()), "torch's global generator was used"
    assert numpy_state == _numpy_state(), "NumPy's global generator was used"
    assert python_state == random.getstate(), "Python's global generator was used"
    assert threads == torch.get_num_threads(), "the number of intra-op threads was changed"


@pytest.fixture
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 convolutions of a GPU without TF32; skip where they are rounded all the same."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    fine = torch.full((1, 1, 8, 8), 1 + 2.0**-20, device="cuda")
    if bool((torch.conv2d(fine, torch.ones(1, 1, 1, 1, device="cuda")) != fine).any()):
        pytest.skip("this GPU rounds the factors of convolutions, whatever it is told")


@pytest.fixture
def tf32_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 convolutions of a GPU with factors of 11 bits, as PyTorch sets them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


def _numpy_state() -> tuple[bytes, int]:
    state = np.random.get_state(legacy=False)  # noqa: NPY002 - it is only looked at
    return state["state"]["key"].tobytes(), int(state["state"]["pos"])


@pytest.fixture
def phantom() -> Tensor:
    """An asymmetric volume (z, y, x) of three unequal sizes, float64; flipped, it correlates by 0.35 at most."""
    shape = (14, 10, 22)
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij")
    blobs = [  # (z, y, x), deviation in voxels, height
        ((4.0, 3.0, 6.0), 1.6, 1.0),
        ((10.0, 3.0, 12.0), 1.3, 0.8),
        ((5.0, 7.0, 14.0), 1.5, 0.6),
        ((8.0, 5.0, 17.0), 1.2, 0.9),
    ]
    volume = sum(
        height * np.exp(-((z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2) / (2 * spread**2))
        for (cz, cy, cx), spread, height in blobs
    )
    return torch.from_numpy(np.asarray(volume))
