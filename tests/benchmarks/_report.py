"""What all benchmarks share: timing, the machine's description, and tables that are kept as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from faket_aug import keep_memory

#: What a row of a table has: `name`, `seconds` (each run's), and whatever else is known of it.
Row = dict[str, Any]


def read(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, with what all benchmarks can be told."""
    parser.add_argument("--keep-memory", action="store_true", help="call `faket_aug.keep_memory` first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the table")
    options = parser.parse_args()
    if options.keep_memory and not keep_memory():
        parser.error("expected glibc's memory for --keep-memory, found another")
    return options


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device | None = None) -> float:
    """Time one run, to its end on the device."""
    where = device or torch.device("cpu")
    settle(where)
    start = time.perf_counter()
    run()
    settle(where)
    return time.perf_counter() - start


def forget_peak(device: torch.device) -> None:
    """Begin to look for a peak of memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib(device: torch.device) -> float:
    """Peak of allocated GPU memory, or of this process' resident memory, in GiB, since `forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise OSError("expected VmHWM in /proc/self/status, found none")


def machine(device: torch.device) -> dict[str, Any]:
    """Describe what figures depend on."""
    described = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0"),
    }
    if device.type == "cuda":
        described |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return described


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            family = [other for other in cpuinfo.read_text().splitlines() if other.startswith("cpu family")][:1]
            return " ".join([line.split(":")[1].strip(), *family]).replace("\t", "")
    return platform.processor() or platform.machine()


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Measure the machine: TFLOP/s of the better of a large matrix product and convolution, GB/s of a copy."""
    size, pixels = (8192, 512) if device.type == "cuda" else (2048, 128)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    channels_last = {"dtype": dtype, "memory_format": torch.channels_last}
    image = torch.randn(1, 512, pixels, pixels, device=device).to(**channels_last)
    kernel = torch.randn(512, 512, 3, 3, device=device).to(**channels_last)
    source = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    work = {
        2 * size**3: lambda: torch.mm(a, b),
        2 * 9 * 512**2 * pixels**2: lambda: functional.conv2d(image, kernel, padding=1),
        2 * source.numel() * 4: lambda: target.copy_(source),
    }
    rates = []
    for amount, run in work.items():
        seconds_of(run, device)
        rates.append(amount / min(seconds_of(run, device) for _ in range(5)))
    return max(rates[:2]) / 1e12, rates[2] / 1e9


#: Options that are no settings: they change how often and where to, not what.
_BESIDE = ("json", "repeats", "one")


def keep(options: argparse.Namespace, benchmark: str, device: torch.device, rows: list[Row]) -> None:
    """Write a table as JSON, where a file is named."""
    if options.json is not None:
        settings = {name: str(value) for name, value in vars(options).items() if name not in _BESIDE}
        if "mapped" in settings:
            settings["mapped"] = str(options.mapped is not None)
        settings["cold"] = str(options.repeats == 0)
        table = {"benchmark": benchmark, "settings": settings, "machine": machine(device), "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(table, indent=1) + "\n")


def header(device: torch.device) -> str:
    """Say in a line where figures come from."""
    return ", ".join(f"{name} {value}" for name, value in machine(device).items())


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))
