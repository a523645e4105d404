"""A small denoiser, trained by Noise2Noise on pairs from the stream: what it gains on a specimen that it has not seen.

    python tests/benchmarks/denoiser.py                      # pairs of half exposures; --halves tilts for the others

Prints correlations with the clean tomogram: of one half, of the tomogram, of its best Gaussian blur, and of the
denoised tomogram (the mean of both denoised halves). `--supervised` trains on the clean image instead.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _report import header, keep, read, seconds_of
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from faket_aug import FakETDataset, FakETSimulator, NoiseModel
from faket_aug.demo.unet import seeded_network
from faket_aug.simulation.tomogram import HALVES
from faket_aug.specimens.procedural import procedural_specimen


def correlation(one: Tensor, other: Tensor) -> float:
    """Return Pearson's correlation of two volumes."""
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1])


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--halves", choices=HALVES, default="exposures")
    parser.add_argument("--supervised", action="store_true", help="train on the clean image")
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    options = read(parser)
    options.repeats = 1
    angles, shape = np.linspace(-60.0, 60.0, 41), (48, options.size, options.size)
    measured = torch.randn(len(angles), 64, 64, generator=torch.Generator().manual_seed(0))
    noise = NoiseModel.assume(measured, angles, snr=options.snr)
    simulator = FakETSimulator(tilt_angles=angles, modality="noisy", noise=noise)
    dataset = FakETDataset(
        [procedural_specimen(shape=shape, seed=seed) for seed in range(4)],
        simulator,
        patch_size=32,
        patches_per_tomogram=100,
        tomograms_per_epoch=-(-options.steps * 4 // 100),
        background_fraction=0.5,
        halves=options.halves,
        targets=("clean",),
        seed=options.seed,
    )
    network = seeded_network(1, seed=options.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    target = "clean" if options.supervised else "image_other"

    def train() -> None:
        for step, batch in zip(range(options.steps), DataLoader(dataset, batch_size=4), strict=False):
            loss = functional.mse_loss(network(batch["image"]), batch[target])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * (1 - step / options.steps)

    seconds = seconds_of(train)
    made = simulator(procedural_specimen(shape=shape, seed=99), seed=99, halves=options.halves, clean=True)
    with torch.no_grad():
        halves = [(half - half.mean()) / half.std() for half in made.halves]
        denoised = sum(network(half[None, None])[0, 0] for half in halves)
    blurs = [torch.from_numpy(gaussian_filter(made.tomogram.numpy(), sigma)) for sigma in np.arange(0.5, 4, 0.25)]
    found = {
        "one half": correlation(made.halves[0], made.clean),
        "tomogram": correlation(made.tomogram, made.clean),
        "best blur": max(correlation(blur, made.clean) for blur in blurs),
        "denoised": correlation(denoised, made.clean),
        "halves with each other": correlation(*made.halves),
        "noise of the halves": correlation(*(half - made.clean for half in made.halves)),
    }
    print(f"{header(torch.device('cpu'))}; {options.steps} steps in {seconds:.0f} s, trained on `{target}`")
    print("\n".join(f"{name:24} {value:8.4f}" for name, value in found.items()))
    rows = [{"name": name, "seconds": [seconds], "correlation": value} for name, value in found.items()]
    keep(options, "denoiser", torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
