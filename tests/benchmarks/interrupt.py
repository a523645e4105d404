"""Stop programs by Ctrl-C and SIGTERM at random times: do they end at once, leave nothing, and go on bit for bit?

Each program is run to its end first, to know its result and how long it takes. Then it is started again and again, and
gets a signal at a random time, from its first import to its end. Half of the Ctrl-C go to the program alone, the others
to its workers, too, as from a terminal. The same command follows, and is left to end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from faket_aug.formats.mrc import write_mrc

PROJECT = Path(__file__).resolve().parents[2]
#: A program and all its workers have to end within this time, in seconds, and are given up after the other.
SOON, PATIENCE = 2.0, 30.0
ANGLES = range(-60, 61, 15)
#: Of the encoder's convolutions: a narrow one leaves time for the rest.
WIDTHS = {0: 8, 2: 8, 5: 16, 7: 16, 10: 16}
#: By this variable of their environment a program's processes are found, also those that have lost their parent.
MARK = "FAKET_AUG_INTERRUPTED"
SHARED_MEMORY = Path("/dev/shm")
SCRIPT = "import sys; from faket_aug.cli import main; sys.argv[0] = 'faket-aug'; sys.exit(main())"

Content = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program to stop: its command, given the folder of its output, and what it makes there."""

    name: str
    command: Callable[[Path], list[str]]
    content: Callable[[Path], Content]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """What came of one signal."""

    program: str
    signal: str
    after: float
    seconds: float
    status: int
    #: Whether the status is the signal's, or 0 where all was done.
    right_status: bool
    left: list[str]
    same: bool
    errors: str


@dataclass(frozen=True)
class Started:
    """A program that runs, with a folder of its own for temporary files."""

    process: subprocess.Popen[str]
    mark: str
    temporary: Path
    errors: Path
    shared_before: set[str]

    def processes(self) -> set[int]:
        """Return its processes that are alive, orphans included."""
        return {number for number in _processes() if _is_marked(number, self.mark)}

    def left(self, output: Path) -> list[str]:
        """Name what it has left behind."""
        found = [f"process {number}" for number in self.processes()]
        found += [f"temporary {path.name}" for path in self.temporary.iterdir()]
        found += [f"part {path.relative_to(output)}" for path in output.rglob("*.part")]
        shared = shared_memory() - self.shared_before - _used_shared_memory()
        if shared:
            # Another program that has just ended may be about to remove its own.
            time.sleep(2.0)
        return found + [f"shared memory {name}" for name in shared & shared_memory()]


def shared_memory() -> set[str]:
    """Return the names of all shared memory."""
    return {path.name for path in SHARED_MEMORY.iterdir()}


def _used_shared_memory() -> set[str]:
    """Return the names of the shared memory that a process uses: other programs' shared memory, not what is left."""
    found = set()
    for number in _processes():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{number}/maps").read_text().splitlines():
                found.add(line.rpartition(f"{SHARED_MEMORY}/")[2])
            found |= {file.readlink().name for file in Path(f"/proc/{number}/fd").iterdir()}
    return found


def _processes() -> Iterable[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _is_marked(number: int, mark: str) -> bool:
    try:
        dead = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not dead and f"{MARK}={mark}".encode() in Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is somebody else's
        return False


# --- programs ---------------------------------------------------------------------------------------------------------


def programs(data: Path) -> list[Program]:
    """Write small inputs, and return the programs that read them."""
    style, weights, maps, models = data / "style.mrc", data / "narrow.pth", data / "templates", data / "models"
    generator = np.random.default_rng(0)
    write_mrc(style, torch.from_numpy(generator.normal(50, 5, (len(ANGLES), 64, 64))).float(), voxel_size=10.0)
    style.with_suffix(".tlt").write_text("".join(f"{angle:.1f}\n" for angle in ANGLES))
    torch.save(_narrow_weights(), weights)
    maps.mkdir()
    for name, radius in (("small", 2.0), ("large", 3.0)):
        distance = np.sqrt(sum((axis - 4.0) ** 2 for axis in np.indices((9, 9, 9))))
        write_mrc(maps / f"{name}.mrc", torch.from_numpy(np.exp(-((distance / radius) ** 2))).float(), voxel_size=10.0)
    small = ["--templates", str(maps), "--counts", "small=4,large=2", "--shape", "16,48,64", "--snr", "0.5"]
    subprocess.run(
        [*_faket_aug("simulate"), str(models), "--modality", "noiseless", *small[:-2], "--count", "2"],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        check=True,
        capture_output=True,
    )
    encoder = ["--weights", str(weights), "--style-layers"]

    def demo(output: Path) -> list[str]:
        return [*_faket_aug("demo"), "--output", str(output), "--steps", "2", *encoder, "1,6"]

    def simulate(output: Path) -> list[str]:
        return [*_faket_aug("simulate"), str(output), *small, "--style", str(style), "--count", "8", *encoder, "1,6"]

    def train(output: Path, workers: int) -> list[str]:
        files = ["--specimens", *(str(models / f"tomogram_000{number}") for number in range(2)), "--style", str(style)]
        size = ["--patch-size=16", "--batch-size=2", "--patches-per-tomogram=4", "--steps=12", "--checkpoint-every=2"]
        script = str(PROJECT / "examples" / "train_deepfinder.py")
        more = ["--workers", str(workers), "--output", str(output)]
        return [sys.executable, script, *files, *encoder, "1", "6", *size, *more]

    return [
        Program(name="faket-aug demo", command=demo, content=_files),
        Program(name="train_deepfinder, 0 workers", command=lambda o: train(o, 0), content=_training),
        Program(name="train_deepfinder, 2 workers", command=lambda o: train(o, 2), content=_training),
        Program(name="faket-aug simulate", command=simulate, content=_files),
    ]


def _faket_aug(command: str) -> list[str]:
    return [sys.executable, "-c", SCRIPT, command]


def _narrow_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state, channels = dict[str, torch.Tensor](), 3
    for index, width in WIDTHS.items():
        weight = torch.randn(width, channels, 3, 3, generator=generator) * (2 / (9 * channels)) ** 0.5
        state |= {f"features.{index}.weight": weight, f"features.{index}.bias": torch.zeros(width)}
        channels = width
    return state


def _files(folder: Path) -> Content:
    return {str(path.relative_to(folder)): _file(path) for path in folder.rglob("*") if path.is_file()}


def _file(path: Path) -> Any:
    """Read a file, without the time of an MRC file, and without the random order in a safetensors header."""
    stored = path.read_bytes()
    if path.suffix == ".mrc":
        return stored[:224] + stored[1024:]
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return file.metadata(), {name: file.get_tensor(name) for name in sorted(file.keys())}
    return stored


def _training(folder: Path) -> Content:
    """The last checkpoint and the picture; a checkpoint's file is not the same byte for byte, its content is."""
    found = {path.name: path.read_bytes() for path in folder.glob("preview.png")}
    path = folder / "checkpoint.pt"
    return found | (torch.load(path, weights_only=True) if path.exists() else {})


def equal(one: Any, other: Any) -> bool:
    """Compare contents, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[n], other[n]) for n in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


# --- stops ------------------------------------------------------------------------------------------------------------


def start(program: Program, output: Path, work: Path) -> Started:
    """Start a program, as from a terminal, in a folder of its own."""
    temporary = work / "temporary"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    environment = os.environ | {
        MARK: mark,
        "TMPDIR": str(temporary),
        # Caches of other libraries, which they keep.
        "TORCHINDUCTOR_CACHE_DIR": str(work / "compiler"),
        "MPLCONFIGDIR": str(work / "matplotlib"),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "2",
    }
    errors, before = work / "errors.txt", shared_memory()
    with errors.open("w") as file:
        process = subprocess.Popen(
            program.command(output),
            env=environment,
            cwd=work,
            stdout=subprocess.DEVNULL,
            stderr=file,
            text=True,
            start_new_session=True,
            # A shell starts what runs in the background with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    return Started(process, mark, temporary, errors, before)


def run_to_the_end(program: Program, output: Path, work: Path) -> float:
    """Run a program that has to end well; return the seconds."""
    begun = time.monotonic()
    started = start(program, output, work)
    if started.process.wait() != 0:
        sys.exit(f"{program.name}: expected status 0, got {started.process.returncode}: {started.errors.read_text()}")
    return time.monotonic() - begun


def stop(
    program: Program, number: signal.Signals, *, after: float, all_of_it: bool, whole: Content, work: Path
) -> Stop:
    """Start a program, send it a signal `after` seconds, and look at what is left; then run it to its end."""
    output = work / "output"
    shutil.rmtree(output, ignore_errors=True)
    started = start(program, output, work)
    time.sleep(after)
    begun = time.monotonic()
    if started.process.poll() is None:
        os.killpg(started.process.pid, number) if all_of_it else started.process.send_signal(number)
    while started.process.poll() is None or started.processes():
        if time.monotonic() - begun > PATIENCE:
            break
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    status, left, errors = started.process.returncode, started.left(output), started.errors.read_text()
    for process in started.processes():
        os.kill(process, signal.SIGKILL)
    made = program.content(output)
    done = equal(made, whole)
    # Where nothing was written yet, the same command is another whole run.
    if made:
        run_to_the_end(program, output, work)
    return Stop(
        program=program.name,
        signal=number.name,
        after=after,
        seconds=seconds,
        status=status,
        right_status=status in (128 + number, -number) or (status == 0 and done),
        left=left,
        same=not made or equal(program.content(output), whole),
        errors=errors,
    )


def main() -> None:
    """Stop each program so many times by each signal, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="of each signal to each program")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    parser.add_argument("--only", default="", help="programs whose name has this word")
    parser.add_argument("--from", dest="first", type=float, default=0.0, help="share of the run before which none is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all of it, a line a stop")
    options = parser.parse_args()
    stops: list[Stop] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for program in programs(data):
            if options.only in program.name:
                for one in _stops(program, options, Path(folder) / program.name.replace(" ", "_")):
                    stops.append(one)
                    if options.json is not None:
                        with options.json.open("a") as file:
                            file.write(json.dumps(asdict(one)) + "\n")
    _print(stops)
    sys.exit(any(one.left or not (one.same and one.right_status and one.seconds < SOON) for one in stops))


def _stops(program: Program, options: argparse.Namespace, work: Path) -> Iterable[Stop]:
    work.mkdir()
    for name in ("first", "whole"):  # the first one fills the caches of other libraries
        duration = run_to_the_end(program, work / name, work)
    whole = program.content(work / "whole")
    if not equal(program.content(work / "first"), whole):
        sys.exit(f"{program.name}: expected the same result of the same command, got another")
    chance = random.Random(f"{options.seed}, {program.name}")
    for time_number in range(options.times):
        for number in (signal.SIGINT, signal.SIGTERM):
            after = duration * chance.uniform(options.first, 1.0)
            all_of_it = number is signal.SIGINT and time_number % 2 == 1
            yield stop(program, number, after=after, all_of_it=all_of_it, whole=whole, work=work)


def _print(stops: list[Stop]) -> None:
    print(f"{'program':<28} {'signal':<8} tried  within 2 s  slowest, s  left behind  right status  same result")
    for program, number in dict.fromkeys((one.program, one.signal) for one in stops):
        mine = [one for one in stops if (one.program, one.signal) == (program, number)]
        soon, slowest = sum(one.seconds < SOON for one in mine), max(one.seconds for one in mine)
        left, right, same = (sum(map(bool, (getattr(o, n) for o in mine))) for n in ("left", "right_status", "same"))
        print(f"{program:<28} {number:<8} {len(mine):>5} {soon:>12} {slowest:>11.2f} {left:>12} {right:>13} {same:>12}")


if __name__ == "__main__":
    main()
