"""What outlives a pass: nothing. No thread, process, file or shared-memory name, and no memory."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _helpers import (
    MORE_WORKERS_THAN_CORES,
    WatchedSimulator,
    assert_same_items,
    dataset,
    error_of,
    indices,
    loader,
    simulator,
    specimens,
)

pytestmark = [
    pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc"),
]

TESTS = Path(__file__).resolve().parents[1]


def _children(pid: int | str = "self") -> set[int]:
    """Processes whose parent is `pid`, those included that ended but were not waited for."""
    parent = os.getpid() if pid == "self" else int(pid)
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found.add(int(entry.name))
    return found


def _shared_memory() -> set[str]:
    """Names in /dev/shm that no living process but this one has mapped: others' programs run on this machine, too."""
    names = {path.name for path in Path("/dev/shm").iterdir()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                maps = (entry / "maps").read_text()
            except OSError:
                continue
            names -= {name for name in names if name in maps}
    return names


def _assert_no_names_but(before: set[str]) -> None:
    """No name is left in /dev/shm; one that another program is just making or removing is gone in a moment."""
    deadline = time.monotonic() + 10
    while left := _shared_memory() - before:
        assert time.monotonic() < deadline, f"shared memory left: {left}"
        time.sleep(0.1)


def _threads() -> set[str]:
    return {f"{thread.name} {thread.ident}" for thread in threading.enumerate()}


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def _nothing_is_left(killed: Sequence[int] = ()) -> Iterator[None]:
    """Compare threads, processes, shared memory and open files before and after, once garbage is collected.

    A process that is killed between making its shared memory and taking away its name leaves the name.
    """
    gc.collect()
    before = _threads(), _children(), _shared_memory()
    files = _open_files()
    yield
    gc.collect()
    deadline = time.monotonic() + 10
    while (left := [now - then for now, then in zip(_state(), before, strict=True)]) != [set()] * 3:
        names = tuple(f"torch_{pid}_" for pid in killed)
        if left[:2] == [set()] * 2 and all(str(name).startswith(names) for name in left[2]):
            break
        assert time.monotonic() < deadline, f"threads, processes, shared memory left: {left}"
        time.sleep(0.05)
    assert _open_files() <= files + 2, "open files are left"


def _state() -> tuple[set[str], set[int], set[str]]:
    return _threads(), _children(), _shared_memory()


WORKERS = [
    pytest.param({"workers": 0}, id="0"),
    pytest.param({"workers": 2}, id="2"),
    pytest.param({"workers": 2, "persistent_workers": True}, id="2 persistent"),
]


@pytest.mark.parametrize("given", WORKERS)
def test_after_a_whole_epoch(given: dict[str, Any]) -> None:
    """After a whole epoch nothing is left, be the dataset alive or not."""
    data = dataset(simulator("noisy"))
    list(loader(dataset(), workers=1, batch_size=None))  # what multiprocessing itself starts once and keeps
    with _nothing_is_left():
        reader = loader(data, batch_size=None, **given)
        assert len(list(reader)) == len(data)
        del reader


@pytest.mark.parametrize("taken", [0, 1, 6])
@pytest.mark.parametrize("given", WORKERS)
def test_after_a_broken_epoch(given: dict[str, Any], taken: int) -> None:
    """After an epoch that was broken off, nothing is left when its iterator is gone."""
    data = dataset(simulator("noisy"))
    list(loader(dataset(), workers=1, batch_size=None))
    with _nothing_is_left():
        reader = loader(data, batch_size=None, **given)
        iterator = iter(reader)
        for _ in range(taken):
            next(iterator)
        del iterator, reader


@pytest.mark.parametrize("given", WORKERS)
def test_after_an_error_in_the_loop(given: dict[str, Any]) -> None:
    """After an error in the body of the loop nothing is left when it was handled."""

    def train() -> None:
        for place, _ in enumerate(loader(data, batch_size=None, **given)):
            if place == 3:
                raise KeyError("loss")

    data = dataset(simulator("noisy"))
    list(loader(dataset(), workers=1, batch_size=None))
    with _nothing_is_left():
        with pytest.raises(KeyError):
            train()
        gc.collect()


def test_threads_end_with_their_pass() -> None:
    """In the main process the maker's thread lives as long as the pass, not longer, and there is one."""
    before = _threads()
    data = dataset(simulator("noisy"))
    iterator = iter(data)
    assert _threads() == before
    next(iterator)
    assert len(_threads() - before) == 1
    assert all(name.startswith("faket_aug") for name in _threads() - before)
    list(iterator)
    assert _threads() == before


def test_a_slow_maker_is_waited_for() -> None:
    """Closing a pass while a tomogram is being made waits for it: no thread goes on computing unseen."""
    watched = WatchedSimulator(simulator("noisy"))
    watched.gates[2] = threading.Event()
    iterator = iter(dataset(watched))
    next(iterator)
    while len(watched.made) < 2:
        time.sleep(0.01)
    threading.Timer(0.3, watched.gates[2].set).start()
    begun = time.monotonic()
    iterator.close()
    assert time.monotonic() - begun > 0.1
    assert not [name for name in _threads() if name.startswith("faket_aug")]


class _CollectingSimulator(WatchedSimulator):
    """A simulator in whose second call garbage is collected, as may happen in any thread."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        made = super().__call__(*arguments, **settings)
        if len(self.made) == 2:
            gc.collect()
        return made


def test_a_pass_collected_in_its_makers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten pass may be collected in the thread that makes its tomograms: it ends in silence."""
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    simulator_ = _CollectingSimulator()
    simulator_.gates[2] = threading.Event()
    ring: dict[str, Any] = {"pass": iter(dataset(simulator_))}
    ring["ring"] = ring
    next(ring["pass"])
    del ring
    simulator_.gates[2].set()
    deadline = time.monotonic() + 10
    while any(name.startswith("faket_aug") for name in _threads()):
        assert time.monotonic() < deadline, "the maker's thread is left"
        time.sleep(0.05)
    assert [str(complaint.exc_value) for complaint in complaints] == []


# --- workers that die -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_worker(victim: int) -> None:
    """A worker that is killed is reported as a RuntimeError that names it; a new pass right after is right."""
    data = dataset(simulator("noisy"), tomograms_per_epoch=12)
    expected = list(data)
    data.set_epoch(0)
    killed: list[int] = []
    with _nothing_is_left(killed):
        pid, message = _read_until_killed(data, victim)
        killed.append(pid)
        assert str(pid) in message
        assert "killed by signal: Killed" in message or "exited unexpectedly" in message
        data.set_epoch(0)
        assert_same_items(loader(data, workers=2, batch_size=None), expected)


def _read_until_killed(data: Any, victim: int) -> tuple[int, str]:
    before = set(multiprocessing.active_children())
    iterator = iter(loader(data, workers=2, batch_size=None))
    next(iterator)
    workers = sorted(p.pid for p in set(multiprocessing.active_children()) - before)

    def go_on() -> None:
        os.kill(workers[victim], signal.SIGKILL)
        # torch is told by a signal; before that, it may find a closed socket and report it instead.
        time.sleep(0.5)
        list(iterator)

    error = error_of(go_on)
    assert isinstance(error, RuntimeError)
    return workers[victim], str(error)


# --- programs of their own --------------------------------------------------------------------------------------------


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name: programs make sockets below it, whose paths have 107 characters at most."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a Python program with a folder of its own for temporary files, `tmp_path / "tmp"`."""
    (tmp_path / "tmp").mkdir()

    def start(text: str, *arguments: object) -> subprocess.Popen[str]:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(text))
        environment = os.environ | {
            "TMPDIR": str(tmp_path / "tmp"),
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-W", MORE_WORKERS_THAN_CORES.partition(".*")[0], str(script), *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A background job ignores Ctrl-C, and what it starts inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


def _descendants(pid: int) -> set[int]:
    children = _children(pid)
    return children.union(*(_descendants(child) for child in children))


def _left_in(folder: Path, *, sockets: bool = False) -> list[str]:
    """What lies in a folder; `sockets` leaves out those through which workers hand over tensors.

    multiprocessing makes them in each worker, in a thread of its own, and leaves them when the worker ends meanwhile:
    a DataLoader over any dataset that is dropped after its first item does so, now and then. It looks for a folder to
    make them in by writing a file whose name is eight letters.
    """
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return [name for name in left if not (sockets and re.fullmatch(r"pymp-.*|[a-z0-9_]{8}", name))]


def _wait_for_the_end_of(pids: set[int]) -> None:
    deadline = time.monotonic() + 10
    while alive := {pid for pid in pids if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, f"processes {alive} are left"
        time.sleep(0.05)


ENDLESS = """
    import itertools, sys
    from _helpers import dataset, loader, simulator

    if __name__ == "__main__":
        workers = int(sys.argv[1])
        data = dataset(simulator("noisy"), tomograms_per_epoch=10_000)
        for place, item in enumerate(loader(data, workers=workers, batch_size=None)):
            if place == 3:
                print("reading", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c(program: Any, tmp_path: Path, workers: int, whole_group: bool) -> None:
    """Ctrl-C ends a program that reads, with KeyboardInterrupt, within 20 s; nothing is left."""
    shared = _shared_memory()
    process = program(ENDLESS, workers)
    assert process.stdout.readline() == "reading\n", process.stderr.read()
    workers_ = _descendants(process.pid)
    assert len(workers_) >= workers
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode in (1, -signal.SIGINT)
    assert "KeyboardInterrupt" in errors
    _wait_for_the_end_of(workers_)
    _assert_no_names_but(shared)
    assert _left_in(tmp_path / "tmp", sockets=True) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending",
    ["del iterator", "pass", "sys.exit(0)", "next(iter(loader(data, workers=2)))"],
    ids=["deleted", "left open", "sys.exit", "another pass"],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_program_that_ends_in_the_middle(program: Any, tmp_path: Path, workers: int, ending: str) -> None:
    """A program that ends in the middle of an epoch ends at once, without complaint, and leaves nothing."""
    shared = _shared_memory()
    process = program(
        f"""
        import sys
        from _helpers import dataset, loader, simulator

        if __name__ == "__main__":
            data = dataset(simulator("noisy"), tomograms_per_epoch=50)
            iterator = iter(loader(data, workers={workers}, batch_size=None))
            for _ in range(3):
                next(iterator)
            data.set_epoch(1)
            print("reading", flush=True)
            {ending}
        """
    )
    assert process.stdout.readline() == "reading\n", process.stderr.read()
    children = _descendants(process.pid)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert errors == ""
    _wait_for_the_end_of(children)
    _assert_no_names_but(shared)
    assert _left_in(tmp_path / "tmp", sockets=True) == []


@pytest.mark.slow
def test_killed_program(program: Any) -> None:
    """When the program itself is killed its workers notice and end; no shared-memory name is left."""
    shared = _shared_memory()
    process = program(ENDLESS, 2)
    assert process.stdout.readline() == "reading\n", process.stderr.read()
    workers = _descendants(process.pid)
    process.kill()
    process.communicate(timeout=20)
    deadline = time.monotonic() + 30  # a worker looks after its parent every five seconds
    while alive := {pid for pid in workers if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, f"workers {alive} are left"
        time.sleep(0.1)
    _assert_no_names_but(shared)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_temporary_files(program: Any, tmp_path: Path, start: str) -> None:
    """Whole and broken epochs, with and without workers, leave no temporary file and no name in /dev/shm."""
    shared = _shared_memory()
    process = program(
        """
        import sys
        from pathlib import Path
        from _helpers import dataset, loader, simulator

        if __name__ == "__main__":
            encoder = Path(sys.argv[2])
            encoder.mkdir()
            data = dataset(simulator("faket", encoder))
            for epoch, workers in enumerate((0, 2)):
                reader = loader(data, workers=workers, start=sys.argv[1], batch_size=None)
                data.set_epoch(epoch)
                print(len(list(reader)), flush=True)
                next(iter(reader))
        """,
        start,
        tmp_path / "encoder",
    )
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "15\n15\n"), errors
    assert _left_in(tmp_path / "tmp", sockets=True) == []
    _assert_no_names_but(shared)


@pytest.mark.slow
def test_training_writes_nothing(program: Any, tmp_path: Path) -> None:
    """No file is opened for writing while specimens are read and simulated, but in the style cache's own folder."""
    process = program(
        """
        import os, sys, tempfile
        from pathlib import Path

        import kornia.augmentation, torchvision  # what they do when imported is their own affair
        from _helpers import ANGLES, STYLE_LAYERS, dataset, loader, narrow_vgg, noise_model, style_series
        from faket_aug import FakETSimulator, PatchAugmentation, StyleBank

        def watch(event, arguments):
            written = None
            if event == "open":
                path, mode, flags = arguments
                if (mode and set(mode) & set("wax+")) or (not mode and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                    written = path
            elif event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.truncate"):
                written = arguments[0]
            if written is not None:
                os.write(1, f"{event} {written}\\n".encode())

        if __name__ == "__main__":
            folder = Path(sys.argv[1])
            features = narrow_vgg(folder)
            tempfile.gettempdir()  # tries to write once in a process, when multiprocessing first asks for it
            sys.addaudithook(watch)
            style = StyleBank.build(style_series(), features, style_layers=STYLE_LAYERS, cache=folder / "cache")
            made = FakETSimulator(tilt_angles=ANGLES, noise=noise_model(), style=style, features=features)
            os.write(1, b"training\\n")
            augmentation = PatchAugmentation(flips="xyz", scale=(0.9, 1.1))
            data = dataset(made, augmentation=augmentation)
            for epoch, workers in enumerate((0, 2)):
                data.set_epoch(epoch)
                assert len(list(loader(data, workers=workers, batch_size=None))) == 15
            data.state_dict(batches=1, batch_size=1, num_workers=2)
        """,
        tmp_path,
    )
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    building, _, training = output.partition("training\n")
    assert "cache" in building, "the hook sees nothing"
    assert all(str(tmp_path / "cache") in line for line in building.splitlines()), building
    # Workers hand tensors over through a socket in a folder of multiprocessing's own, which it removes.
    own = [line for line in training.splitlines() if "/pymp-" not in line and not line.endswith(" /dev/null")]
    assert own == []


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_flat(program: Any, tmp_path: Path, workers: int, record_property: Any, capsys: Any) -> None:
    """Epochs add nothing to the resident memory: less than 1 MB each after the first."""
    process = program(
        """
        import ctypes, gc, multiprocessing, os, sys
        from pathlib import Path
        from _helpers import dataset, loader, simulator, specimens

        def resident(pid):
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

        def tidy():
            gc.collect()
            try:
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            except (OSError, AttributeError):
                pass

        class Tidying(list):
            "Specimens that tidy up, in the process that reads them, when they are asked for."

            def __getitem__(self, index):
                tidy()
                return super().__getitem__(index)

        if __name__ == "__main__":
            workers, things = int(sys.argv[1]), Tidying(specimens(4, shape=(32, 48, 64)))
            # A tomogram is 0.4 MB: if each of an epoch stayed, the memory would grow by 3 MB an epoch.
            data = dataset(
                simulator("faket", Path(sys.argv[2])), specimens=things, tomograms_per_epoch=8, patch_size=24
            )
            reader = loader(data, workers=workers, batch_size=4, persistent_workers=workers > 0)
            for epoch in range(9):
                data.set_epoch(epoch)
                for batch in reader:
                    pass
                del batch
                tidy()
                processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
                print(sum(map(resident, processes)), flush=True)
        """,
        workers,
        tmp_path,
    )
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    sizes = [float(line) for line in output.split()]
    slope = float(np.polyfit(np.arange(len(sizes) - 1), sizes[1:], 1)[0])
    record_property("mb_per_epoch", slope)
    with capsys.disabled():
        print(f"\n{workers} workers: {slope:+.3f} MB an epoch, {[round(size, 1) for size in sizes]} MB")
    assert slope < 1.0


def test_epochs_in_one_process_keep_their_items() -> None:
    """Many passes of one dataset, whole and broken, give what a fresh one gives."""
    data = dataset(simulator("noisy"), specimens=specimens(2))
    for epoch in range(4):
        data.set_epoch(epoch)
        next(iter(loader(data, workers=epoch % 2, batch_size=None)))
        data.set_epoch(epoch)
        fresh = dataset(simulator("noisy"), specimens=specimens(2))
        fresh.set_epoch(epoch)
        expected = list(fresh)
        found = list(loader(data, workers=epoch % 2, batch_size=None))
        assert indices(found) == indices(expected)
        assert_same_items(found, expected)
