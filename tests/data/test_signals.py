"""Ctrl-C and SIGTERM end a program within two seconds, whatever is being simulated, and leave nothing."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from _helpers import blobs

import faket_aug_command
from faket_aug.cli import GO_ON
from faket_aug.cli._sets import STOPPED_FILE
from faket_aug.formats.mrc import write_mrc
from faket_aug.picking.loaders import _shut_down
from faket_aug.simulation.saving import is_whole

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent

#: Each tomogram after the first takes a minute.
PROGRAM = """
import sys, time, warnings
import torch
from _helpers import loader, generator
from faket_aug import LabelledPatches, LabelledTomogram, ParticleTable
from faket_aug.picking import TrainingSettings, fit

warnings.simplefilter("ignore")

class Slow:
    begun = False

    def __len__(self):
        return 4

    def __getitem__(self, number):
        if Slow.begun:
            time.sleep(0.05)
            for _ in range(1200):
                time.sleep(0.05)
        Slow.begun = True
        return LabelledTomogram(
            tomogram=torch.randn(8, 16, 16, generator=generator(number)),
            labels=torch.zeros(8, 16, 16, dtype=torch.uint8), particles=ParticleTable.empty(), voxel_size=10.0,
        )

if __name__ == "__main__":
    kind, workers, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    data = LabelledPatches(Slow(), patch_size=8, patches_per_tomogram=4, live_tomograms=1)
    reader = loader(data, workers=workers, batch_size=2)
    say = lambda *_: print("reading", flush=True)
    if kind == "loop":
        for _ in reader:
            say()
    else:
        settings = TrainingSettings(steps=100, checkpoint_every=1)
        fit(torch.nn.Conv3d(1, 2, 1), reader, folder, settings=settings, on_step=say)
"""


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name: programs make sockets below it, whose paths have 107 characters at most."""
    return tmp_path_factory.mktemp("t")


def _processes(parent: int) -> set[int]:
    """All descendants of a process."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if above == parent:
                found |= {int(entry.name)} | _processes(int(entry.name))
    return found


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("kind", "workers", "number"),
    [
        ("loop", 0, signal.SIGINT),
        ("loop", 2, signal.SIGINT),
        ("loop", 2, signal.SIGTERM),
        ("fit", 0, signal.SIGTERM),
        ("fit", 2, signal.SIGTERM),
        ("fit", 2, signal.SIGINT),
    ],
)
def test_a_signal_ends_the_program(tmp_path: Path, kind: str, workers: int, number: signal.Signals) -> None:
    """The program and its workers end at once; temporary files are gone, the training can be resumed."""
    for name in ("tmp", "out"):
        (tmp_path / name).mkdir()
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = os.environ | {
        "TMPDIR": str(tmp_path / "tmp"),
        # torch's optimisers import its compiler, which makes a folder of its own.
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiler"),
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
    }
    process = subprocess.Popen(
        [sys.executable, str(script), kind, str(workers), str(tmp_path / "out")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    time.sleep(0.5)
    others = _processes(process.pid)
    assert len(others) >= workers
    begun = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    while any(_alive(other) for other in others):
        assert time.monotonic() - begun < 8, "processes are left"
        time.sleep(0.02)
    # It is one second where nothing else runs, most of it Python's own end; a tomogram would take a minute.
    assert time.monotonic() - begun < 8, errors
    if number is signal.SIGINT:
        assert process.returncode in (1, -signal.SIGINT)
    else:
        assert process.returncode == (143 if kind == "fit" else -signal.SIGTERM)
    # multiprocessing makes folders of sockets in each worker, see test_lifetime.
    left = [path.name for path in (tmp_path / "tmp").iterdir() if not re.fullmatch(r"pymp-.*|[a-z0-9_]{8}", path.name)]
    assert left == []
    assert not list((tmp_path / "out").glob(".*"))
    assert (tmp_path / "out" / "checkpoint.pt").exists() == (kind == "fit")


#: `faket-aug` that gets a signal when it flushes a file of that name.
COMMAND = """
import hashlib, os, signal, sys
from pathlib import Path
from faket_aug.cli import app, main
from faket_aug.cli._sets import Shard, noting_a_stop

number, at = int(sys.argv[1]), sys.argv[2]
sys.argv[:] = ["faket-aug", *sys.argv[3:]]
flush = os.fsync

def and_signal(descriptor):
    name = os.readlink(f"/proc/self/fd/{descriptor}")
    if at in name:
        os.kill(os.getpid(), number)
    flush(descriptor)

os.fsync = and_signal

@app.command()
def long(folder: Path):
    with noting_a_stop(folder, Shard()):
        print("busy", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # one operation of minutes

main()
"""


def _start(number: signal.Signals, at: str, *arguments: str, temporary: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(int(number)), at, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.nightly
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_simulate_is_stopped_at_its_last_tomogram(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """The status and one line tell of the signal, no part is left, and the same command makes what is missing."""
    (tmp_path / "temporary").mkdir()
    options = ["--templates", str(tmp_path / "blob.mrc"), "--counts", "3", "--shape", "16,24,32", "--count", "2"]
    arguments = ["simulate", str(tmp_path / "set"), *options, "--tilt-angles=-50:50:25", "--modality", "noiseless"]
    write_mrc(tmp_path / "blob.mrc", blobs((9, 9, 9), [(4, 4, 4)], 1.5), voxel_size=10.0)
    stopped = _start(number, "tomogram_0001/.record.json", *arguments, temporary=tmp_path / "temporary")
    output, errors = stopped.communicate(timeout=100)
    assert stopped.returncode == status, errors
    assert output == ""
    assert [line for line in errors.splitlines() if line.startswith("faket-aug")] == [
        f"faket-aug: stopped by {number.name}; run the same command again to finish"
    ]
    assert "Traceback" not in errors
    assert [is_whole(tmp_path / "set" / f"tomogram_000{index}") for index in range(2)] == [True, False]
    assert not list((tmp_path / "set").rglob("*.part"))
    again = _start(number, "nowhere", *arguments, temporary=tmp_path / "temporary")
    output, errors = again.communicate(timeout=100)
    assert again.returncode == 0, errors
    assert output.startswith(f"1 tomogram written into {tmp_path}/set, 1 were there")
    assert is_whole(tmp_path / "set" / "tomogram_0001")
    assert list((tmp_path / "temporary").iterdir()) == []


#: The program, whose import of PyTorch takes a minute in which an exception of any kind goes unheard.
IMPORTING = """
import sys
import time

class Slow:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            print("importing", flush=True)
            for _ in range(600):
                try:
                    time.sleep(0.1)
                except BaseException:
                    continue

sys.meta_path.insert(0, Slow)
import faket_aug_command
sys.argv = ["faket-aug", "--help"]
faket_aug_command.main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_ends_while_it_imports(number: signal.Signals, status: int) -> None:
    """One line and the status tell of a signal also before the package is there; the same line as later."""
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTING],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (status, f"faket-aug: stopped by {number.name}; {GO_ON}\n")


def test_the_program_is_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is imported, the command line runs, and signals are its own."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(sys, "argv", ["faket-aug", "--version"])
    with pytest.raises(SystemExit) as stop:
        faket_aug_command.main()
    assert (stop.value.code or 0, capsys.readouterr().out) == (0, f"faket-aug {version('faket_aug')}\n")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"faket-aug": "faket_aug_command:main"}


def test_a_command_ends_from_a_long_operation(tmp_path: Path) -> None:
    """The main thread hears of a signal after its operation; the program does not wait for that.

    That the set was stopped before it had a tomogram is noted all the same.
    """
    process = _start(signal.SIGTERM, "nowhere", "long", str(tmp_path), temporary=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < 8
    assert process.returncode == 143
    assert errors == "faket-aug: stopped by SIGTERM; run the same command again to finish\n"
    assert (tmp_path / STOPPED_FILE).is_file()


def test_workers_that_hear_nothing_are_ended() -> None:
    """PyTorch waits five seconds for a worker that is still importing, and then ends it; a training does not wait."""
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,))

    class Reader:
        _workers = [worker]  # noqa: RUF012 - as PyTorch's iterator

        def _shutdown_workers(self) -> None:
            worker.join(50)
            raise RuntimeError("DataLoader worker is killed by signal")

    worker.start()
    begun = time.monotonic()
    _shut_down(Reader())
    assert time.monotonic() - begun < 20
    assert worker.exitcode == -signal.SIGTERM
