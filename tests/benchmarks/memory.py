"""Simulate one 61 x 512 x 512 tilt-series with its tomogram on the CPU; print seconds and peak memory."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _report import peak_gib, seconds_of

from faket_aug import FakETSimulator, GrandModel, NoiseModel, ParticleTable, StyleBank, TiltSeries, VGG19Features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--depth", type=int, default=180)
    parser.add_argument("--tilts", type=int, default=61)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    angles = np.linspace(-60.0, 60.0, options.tilts)
    cpu = torch.device("cpu")
    start = peak_gib(cpu)
    generator = torch.Generator().manual_seed(0)
    density = torch.randn(options.depth, options.size, options.size, generator=generator)
    specimen = GrandModel(
        density=density,
        labels=torch.zeros(density.shape, dtype=torch.uint8),
        particles=ParticleTable.empty(),
        voxel_size=10.0,
    )
    # The style's own size does not matter to the simulation; a small one leaves the peak to what is measured.
    style = TiltSeries(tilts=torch.randn(options.tilts, 64, 64, generator=generator), tilt_angles=angles)
    features = VGG19Features("random", precision=options.precision)
    simulator = FakETSimulator(
        tilt_angles=angles,
        noise=NoiseModel.assume(style.tilts, angles),
        style=StyleBank.build(style, features),
        features=features,
        threads=options.threads,
    )
    seconds = seconds_of(lambda: simulator(specimen, seed=0))
    print(
        f"{options.tilts} x {options.size}² from {options.depth} slices, VGG-19 to relu5_1 in {options.precision}, "
        f"{options.threads} threads: {seconds:.1f} s, peak {peak_gib(cpu):.2f} GiB (of which {start:.2f} GiB before)"
    )


if __name__ == "__main__":
    main()
