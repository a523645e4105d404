"""One thread and two beside another busy process, against the same alone.

    python tests/benchmarks/shared_cpu.py                     # 61 tilts of 512², 512³ voxels
    python tests/benchmarks/shared_cpu.py --size 128          # in seconds

`reconstruct` and `project` run with 1 and with `--threads` intra-op threads, alone and beside a process that this
program starts, which does nothing but loop: in turn, some rounds each. Threads that share a core wait for each other at
the end of each parallel region. Where regions are many and small, two threads are slower than one. On a machine that is
busy already "alone" means without the competitor; the load tells.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from _report import Row, header, keep, median, read, seconds_of

from faket_aug import project, reconstruct


@contextmanager
def competitors(count: int) -> Iterator[None]:
    """Keep some processors busy meanwhile."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def timed(work: Callable[[], object], threads: int) -> float:
    """Return the seconds of a piece of work with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return seconds_of(work)
    finally:
        torch.set_num_threads(before)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="of tilts and of the tomogram's sides")
    parser.add_argument("--tilts", type=int, default=61)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--competitors", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--only", choices=["reconstruct", "project"], help="by default both")
    options = read(parser)
    size, angles = options.size, np.linspace(-60.0, 60.0, options.tilts)
    tilts, volume = torch.randn(options.tilts, size, size), torch.randn(size, size, size)
    works: dict[str, Callable[[], torch.Tensor]] = {
        "reconstruct": lambda: reconstruct(tilts, angles, depth=size),
        "project": lambda: project(volume, angles),
    }
    works = {name: work for name, work in works.items() if options.only in (None, name)}
    cpu = torch.device("cpu")
    print(f"{header(cpu)}; load {os.getloadavg()[0]:.1f}; {options.tilts} tilts of {size}², {size}³ voxels")
    rows: list[Row] = []
    for name, work in works.items():
        expected = work()
        counts = (1, options.threads)
        seconds: dict[tuple[str, int], list[float]] = {(w, n): [] for w in ("alone", "beside") for n in counts}
        for _ in range(options.repeats):
            for where in ("alone", "beside"):
                with competitors(options.competitors if where == "beside" else 0):
                    for count in counts:
                        seconds[where, count].append(timed(work, count))
        torch.set_num_threads(options.threads)
        assert torch.equal(work(), expected), "the number of threads does not change a bit"
        for where in ("alone", "beside"):
            one, several = (median(seconds[where, count]) for count in counts)
            print(
                f"{name:<12} {where:<7} 1 thread {one:6.3f} s, {options.threads} threads {several:6.3f} s: "
                f"{several / one:5.2f} times the time of one"
            )
            rows += [
                {"name": f"{name}, {where}, {count} threads", "seconds": seconds[where, count]} for count in counts
            ]
            ratios = [b / a for a, b in zip(seconds[where, counts[0]], seconds[where, counts[1]], strict=True)]
            rows.append({"name": f"{name}, {where}", "ratios": ratios, "seconds": seconds[where, options.threads]})
    keep(options, "shared_cpu", cpu, rows)


if __name__ == "__main__":
    main()
