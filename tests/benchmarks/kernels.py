"""Time what layers and losses of the style transfer do beside convolutions: kernels for GPUs against the plain paths.

    python tests/benchmarks/kernels.py --device cuda

On a CPU only the plain paths run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _report import Row, header, keep, median, read, seconds_of
from torch import Tensor

from faket_aug._runtime.kernels import Kernel
from faket_aug.style import losses, pooling
from faket_aug.style.layers import add_bias_relu_, add_relu_backward_

#: Runs that are timed together, as one is too short.
TOGETHER = 10
#: Bytes that a kernel reads and writes, as a multiple of those of its first argument.
PASSES = {"add_bias_relu": 2.0, "add_relu_backward": 4.0, "max_pool": 1.25, "max_unpool": 5.0, "error_slope": 5.0}


def arguments(kernel: Kernel[..., Any], channels: int, size: int, device: torch.device, dtype: torch.dtype) -> tuple:
    """Make what a kernel takes at a layer of so many channels and pixels a side."""
    half = size // 2

    def images(side: int) -> Tensor:
        made = torch.randn(1, channels, side, side, device=device, dtype=torch.float32).to(dtype)
        return made.contiguous(memory_format=torch.channels_last)

    if kernel is add_bias_relu_:
        return images(size), torch.zeros(channels, device=device, dtype=dtype)
    if kernel is add_relu_backward_:
        return images(size), images(size), images(size)
    if kernel is pooling.max_pool:
        return images(size), True
    if kernel is pooling.max_unpool:
        places = torch.randint(0, 4, (1, channels, half, half), device=device, dtype=torch.uint8)
        return images(half), places.contiguous(memory_format=torch.channels_last), size, size
    return images(size).flatten(1), images(size).flatten(1), 1.0


def timed(run: Callable[..., Any], given: tuple, options: argparse.Namespace, device: torch.device) -> list[float]:
    """Time a run, after one that warms up."""

    def several() -> None:
        for _ in range(TOGETHER):
            run(*given)

    run(*given)
    return [seconds_of(several, device) / TOGETHER for _ in range(options.repeats)]


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=1024, help="of the tilts")
    parser.add_argument("--repeats", type=int, default=5)
    options = read(parser)
    device = torch.device(options.device)
    print(header(device))
    rows: list[Row] = []
    kernels = (add_bias_relu_, add_relu_backward_, pooling.max_pool, pooling.max_unpool, losses.slope_of_rows)
    for dtype in (torch.bfloat16, torch.float32):
        for kernel in kernels:
            for channels, size in ((64, options.size), (256, options.size // 4)):
                given = arguments(kernel, channels, size, device, dtype)
                name = f"{kernel.name}, {channels} x {size}², {str(dtype).removeprefix('torch.')}"
                plain = timed(kernel.plain, given, options, device)
                row: Row = {"name": name, "seconds": plain}
                said = f"{name:42s} plain {1e3 * median(plain):8.3f} ms"
                if device.type == "cuda":
                    own = timed(kernel, given, options, device)
                    ratios = [a / b for a, b in zip(plain, own, strict=True)]
                    rate = PASSES[kernel.name] * given[0].numel() * given[0].element_size() / median(own) / 1e9
                    row = {"name": name, "seconds": own, "ratios": ratios}
                    said += f"   kernel {1e3 * median(own):8.3f} ms   {median(ratios):6.2f} x   {rate:6.0f} GB/s"
                print(said, flush=True)
                rows.append(row)
    keep(options, "kernels", device, rows)


if __name__ == "__main__":
    main()
