"""Patches reconstructed one by one from filtered tilts, against cutting them out of the whole tomogram.

    python tests/benchmarks/subvolume.py

Prints the number of patches of a tomogram from which on the whole tomogram is cheaper.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _report import header, keep, median, read, seconds_of
from torch import Tensor
from torch.nn import functional

from faket_aug.data.patches import cut
from faket_aug.tomography.filters import filter_projections
from faket_aug.tomography.reconstruction import voxel_map


def reconstruct_box(tilts: Tensor, angles: np.ndarray, start: np.ndarray, size: int, shape: tuple[int, ...]) -> Tensor:
    """Back-project filtered tilts into the box of `size`³ voxels that begins at `start` (z, y, x) of a tomogram."""
    count, _, width = tilts.shape
    radians = torch.from_numpy(np.deg2rad(angles))
    z, x = (torch.arange(size) + int(start[axis]) - shape[axis] // 2 for axis in (0, 2))
    place = x[None, :, None] * radians.cos() + z[:, None, None] * radians.sin() + width // 2  # (z, x, tilt)
    low = place.floor().clamp(0, width - 2)
    seen = (place >= 0) & (place <= width - 1)
    weight = torch.stack([1 - (place - low), place - low], -1) * seen[..., None]
    index = (low.long() + torch.arange(count) * width)[..., None] + torch.arange(2)
    columns = tilts[:, start[1] : start[1] + size].permute(0, 2, 1).reshape(-1, size)
    box = functional.embedding_bag(
        index.view(size**2, -1), columns, mode="sum", per_sample_weights=weight.view(size**2, -1).to(tilts.dtype)
    )
    return box.view(size, size, size).permute(0, 2, 1).contiguous()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--depth", type=int, default=180)
    parser.add_argument("--tilts", type=int, default=61)
    parser.add_argument("--patch-size", type=int, default=56)
    parser.add_argument("--repeats", type=int, default=7)
    options = read(parser)
    angles, patch = np.linspace(-60.0, 60.0, options.tilts), options.patch_size
    shape = (options.depth, options.size, options.size)
    tilts = filter_projections(torch.randn(options.tilts, options.size, options.size))
    whole = voxel_map(angles, options.depth, options.size, options.size, tilts.device, tilts.dtype)
    random = np.random.default_rng(0)
    starts = [random.integers(0, np.array(shape) - patch + 1) for _ in range(16)]
    tomogram = whole(tilts)
    for start in starts:
        expected = cut(tomogram, start + patch // 2, (patch,) * 3)
        found = reconstruct_box(tilts, angles, start, patch, shape)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def one_by_one() -> None:
        for start in starts:
            reconstruct_box(tilts, angles, start, patch, shape)

    def at_once() -> None:
        made = whole(tilts)
        for start in starts:
            cut(made, start + patch // 2, (patch,) * 3).contiguous()

    pairs = [(seconds_of(one_by_one) / len(starts), seconds_of(at_once)) for _ in range(options.repeats)]
    one, every = (median(pair[i] for pair in pairs) for i in range(2))
    print(f"{header(torch.device('cpu'))}; {options.tilts} tilts of {options.size}², depth {options.depth}")
    print(f"one patch of {patch}³ {one * 1e3:.1f} ms, the whole tomogram {every * 1e3:.0f} ms, as {every / one:.0f}")
    rows = [{"name": name, "seconds": [p[i] for p in pairs]} for i, name in enumerate(("one patch", "whole tomogram"))]
    keep(options, "subvolume", torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
