"""Time the style transfer with CUDA graphs against the same without, one after the other, and compare the bits.

    python tests/benchmarks/graphs.py --device cuda

On a CPU only the plain path runs.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from _report import Row, forget_peak, header, keep, median, peak_gib, read, seconds_of

from faket_aug import StyleBank, TiltSeries, VGG19Features, stylize
from faket_aug._runtime.graphs import VARIABLE, forget_graphs, graphs_are_wanted
from faket_aug._runtime.threads import SideStream, concrete_device


def measured(size: int, options: argparse.Namespace, device: torch.device) -> Row:
    """Transfer a style to tilts of one size in turn with graphs and without."""
    angles = np.linspace(-60.0, 60.0, options.tilts)
    encoder = VGG19Features("random", precision=options.precision)
    series = TiltSeries(tilts=torch.randn(options.tilts, 64, 64), tilt_angles=angles)
    target = StyleBank.build(series, encoder).select(angles).to(device)
    encoder = encoder.to(device)
    content, init = torch.rand(2, options.tilts, size, size, device=device)
    switches = ("0", "1") if device.type == "cuda" else ("0",)
    seconds: dict[str, list[float]] = {}
    peaks, results = {}, {}
    for number in range(options.repeats + 1):
        for switch in switches:
            os.environ[VARIABLE] = switch
            forget_peak(device)
            made: list[torch.Tensor] = []
            took = seconds_of(
                lambda made=made: made.append(stylize(content, init, target, features=encoder)),  # type: ignore[misc]
                device,
            )
            results[switch], peaks[switch] = made[0], peak_gib(device)
            # The first run plans, compiles and records.
            if number:
                seconds.setdefault(switch, []).append(took)
            elif switch == "1":
                print(f"stylize, {options.tilts} x {size}²: the first run with graphs takes {took:.3f} s")
    name = f"stylize, {options.tilts} x {size}², {options.precision}"
    said = f"{name:36s} without {1e3 * median(seconds['0']):9.2f} ms"
    row: Row = {"name": name, "seconds": seconds["0"], "peak_gib": peaks["0"]}
    if "1" in seconds:
        ratios = [a / b for a, b in zip(seconds["0"], seconds["1"], strict=True)]
        same = "the same bits" if torch.equal(results["0"], results["1"]) else "OTHER BITS"
        same = same if graphs_are_wanted(device) else "REFUSED"
        row = {"name": name, "seconds": seconds["1"], "ratios": ratios, "peak_gib": peaks["1"], "result": same}
        said += f"   with {1e3 * median(seconds['1']):9.2f} ms   {median(ratios):5.2f} x   {same}"
        said += f"   peak {peaks['0']:.2f} and {peaks['1']:.2f} GiB"
    print(said, flush=True)
    forget_graphs()
    return row


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--tilts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = read(parser)
    device = concrete_device(options.device)
    print(header(device))
    rows: list[Row] = []
    try:
        # A stream of its own, as simulations have.
        with SideStream().of([str(device)], device.index):
            rows.extend(measured(size, options, device) for size in options.sizes)
    finally:  # what was measured before an interruption, too
        keep(options, "graphs", device, rows)


if __name__ == "__main__":
    main()
