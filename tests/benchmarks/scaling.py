"""How cost and memory grow: seconds and peak memory over sizes and over numbers of tilts.

    python tests/benchmarks/scaling.py                       # CPU, 256 to 2048
    python tests/benchmarks/scaling.py --device cuda --precision bfloat16

Linear cost is a constant figure per pixel. Each figure is measured in a process of its own, whose memory nothing else
has used.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from _report import Row, forget_peak, header, keep, median, peak_gib, read, seconds_of

from faket_aug import StyleBank, TiltSeries, VGG19Features, project, reconstruct, stylize


def measure(stage: str, size: int, tilts: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time one stage, and find by how much it raises the peak of memory above its input."""
    device = torch.device(options.device)
    angles = np.linspace(-60.0, 60.0, tilts)
    depth = max(1, size * 180 // 512)
    if stage == "stylize":
        encoder = VGG19Features("random", precision=options.precision)
        series = TiltSeries(tilts=torch.randn(tilts, 64, 64), tilt_angles=angles)
        target = StyleBank.build(series, encoder).select(angles).to(device)
        encoder = encoder.to(device)
        content, init = torch.rand(2, tilts, size, size, device=device)

        def run() -> torch.Tensor:
            return stylize(content, init, target, features=encoder)
    elif stage == "project":
        volume = torch.rand(depth, size, size, device=device)

        def run() -> torch.Tensor:
            return project(volume, angles)
    else:
        stack = torch.rand(tilts, size, size, device=device)

        def run() -> torch.Tensor:
            return reconstruct(stack, angles, depth=depth)

    with torch.no_grad():
        forget_peak(device)
        before = peak_gib(device)
        times = [seconds_of(run, device) for _ in range(options.repeats + 1)]
        return {"seconds": times[1:] or times, "peak_gib": peak_gib(device) - before}


def measured(stage: str, size: int, tilts: int, options: argparse.Namespace) -> Row:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", stage, str(size), str(tilts), "--repeats", str(options.repeats)]
    command += ["--device", options.device, "--precision", options.precision]
    command += ["--keep-memory"] if options.keep_memory else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"]
        raise RuntimeError(f"{stage} at {size}², {tilts} tilts: {said[-1]}")
    row: Row = {"name": f"{stage}, {tilts} x {size}²", **json.loads(done.stdout)}
    seconds = median(row["seconds"])
    cost = seconds / (tilts * size**2) * 1e9
    # A voxel of the volume is met by every tilt, so cost grows with the volume, not with the tilts' pixels.
    cost /= 1 if stage == "stylize" else size * 180 // 512
    unit = "pixel" if stage == "stylize" else "voxel and tilt"
    print(f"{row['name']:28s} {seconds:9.3f} s {cost:10.3f} ns a {unit:14s} + {row['peak_gib']:6.2f} GiB", flush=True)
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048])
    add("--tilts", type=int, nargs="+", default=[2, 4, 8, 16], help="at --tilts-size")
    add("--tilts-size", type=int, default=512)
    add("--device", default="cpu")
    add("--precision", default="float32", choices=["float32", "bfloat16"])
    add("--repeats", type=int, default=2)
    add("--one", nargs=3, metavar=("STAGE", "SIZE", "TILTS"), help="measure this, and print JSON")
    options = read(parser)
    if options.one:
        stage, size, tilts = options.one
        print(json.dumps(measure(stage, int(size), int(tilts), options)))
        return
    device = torch.device(options.device)
    print(f"{header(device)}; {options.precision}")
    wanted = [(stage, size, 4) for stage in ("stylize", "project") for size in options.sizes]
    wanted += [("reconstruct", size, 16) for size in options.sizes]
    wanted += [(stage, options.tilts_size, tilts) for stage in ("stylize", "project") for tilts in options.tilts]
    rows: list[Row] = []
    try:
        rows.extend(measured(*each, options) for each in dict.fromkeys(wanted))
    finally:  # what was measured before an interruption, too
        keep(options, "scaling", device, rows)


if __name__ == "__main__":
    main()
