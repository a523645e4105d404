"""Time specimens: 200 x 512 x 512 voxels of 10 Å with 1,500 particles, alone and in a crowded cell."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from faket_aug.generation.filaments import FilamentSpecies
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.ice import IceSlab
from faket_aug.generation.membranes import MembraneSpecies
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.templates import ParticleTemplate

SHAPE, VOXEL_SIZE, PARTICLES = (200, 512, 512), 10.0, 1500
#: Radii, Å, of the globules that stand for particles: from a chaperone to a ribosome.
RADII = (40, 50, 60, 70, 80, 90, 100, 120, 150, 180)


def globule(radius: float, seed: int) -> ParticleTemplate:
    """Make a lumpy template that fills most of a sphere."""
    half = int(radius / VOXEL_SIZE) + 4
    steps = np.arange(-half, half + 1) * VOXEL_SIZE
    density = np.zeros((len(steps),) * 3)
    random = np.random.default_rng(seed)
    for _ in range(30):
        center = random.normal(size=3)
        center *= 0.7 * radius * random.random() ** (1 / 3) / np.linalg.norm(center)
        z, y, x = (np.exp(-0.5 * ((steps - c) / (0.3 * radius)) ** 2) for c in center)
        density += z[:, None, None] * y[:, None] * x
    density *= 4 / density.max()
    return ParticleTemplate(
        density=torch.from_numpy(density), voxel_size=VOXEL_SIZE, threshold=1.5, name=f"globule {radius:g}"
    )


def crowd(shape: tuple[int, int, int], *, device: str = "cpu", threads: int = 1) -> GrandModelGenerator:
    """Make a generator of specimens of any shape, as crowded as `SHAPE` with `PARTICLES` globules."""
    count = max(1, round(PARTICLES * math.prod(shape) / math.prod(SHAPE) / len(RADII)))
    particles = [ParticleSpecies(templates=globule(radius, seed), count=count) for seed, radius in enumerate(RADII)]
    return GrandModelGenerator(particles=particles, shape=shape, voxel_size=VOXEL_SIZE, device=device, threads=threads)


def report(name: str, make: Callable[[int], object], repeats: int, device: str) -> None:
    """Time the first specimen of a process, and then others."""
    times, busy = [], []
    for index in range(repeats + 1):
        start, began = time.perf_counter(), time.process_time()
        made = make(index)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        busy.append(time.process_time() - began)
    rest = times[1:]
    print(
        f"{name:44s} median {statistics.median(rest):5.2f} s, best {min(rest):5.2f} s (of a processor: median "
        f"{statistics.median(busy[1:]):5.2f} s), first {times[0]:5.2f} s; {len(made.particles)} rows",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=Path, help="a folder of density maps, instead of globules")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.templates:
        maps = sorted(options.templates.glob("*.mrc"))
        templates = [ParticleTemplate.from_map(path, voxel_size=VOXEL_SIZE) for path in maps]
    else:
        templates = [globule(radius, seed) for seed, radius in enumerate(RADII)]
    mean = statistics.mean(int(template.mask.sum()) for template in templates)
    print(
        f"{len(templates)} templates, {mean:.0f} voxels each in the mean; {options.device}, {options.threads} threads"
    )
    counts = [PARTICLES // len(templates) + (i < PARTICLES % len(templates)) for i in range(len(templates))]
    particles = [ParticleSpecies(templates=t, count=n) for t, n in zip(templates, counts, strict=True)]
    given = {"shape": SHAPE, "voxel_size": VOXEL_SIZE, "device": options.device, "threads": options.threads}
    largest = max(templates, key=lambda template: template.radius)
    cell = {
        "membranes": [MembraneSpecies(kind="sphere", count=4, radius=(250, 600)), MembraneSpecies(kind="sheet")],
        "filaments": [FilamentSpecies(subunit="actin", count=6), FilamentSpecies(subunit="microtubule", count=2)],
        "fiducials": FiducialSpecies(count=5),
        "slab": IceSlab(thickness=1800, tilt=(0, 5)),
    }
    generators = {
        f"{PARTICLES} particles of all kinds": GrandModelGenerator(particles=particles, **given),
        f"{PARTICLES} of the largest": GrandModelGenerator(
            particles=ParticleSpecies(templates=largest, count=PARTICLES), **given
        ),
        f"{PARTICLES}, membranes, filaments, gold, slab": GrandModelGenerator(particles=particles, **cell, **given),
        "the same, filled to 20 %": GrandModelGenerator(particles=particles, occupancy=0.2, **cell, **given),
    }
    for name, generator in generators.items():
        report(name, lambda index, it=generator: it.generate(seed=0, tomogram=index), options.repeats, options.device)


if __name__ == "__main__":
    main()
