"""Time a crowded specimen class by class, and tell how much of it is filled and whether orientations are uniform."""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kstest

from faket_aug.generation.assembly import Assembly, Task
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.species import ParticleSpecies
from faket_aug.generation.templates import ParticleTemplate

#: The classes of SHREC 2021.
SHREC = ("1s3x", "3qm1", "3gl1", "3h84", "2cg9", "3d2f", "1u6g", "3cf3", "1bxn", "1qvr", "4cr2", "5mrc")


def told(assembly: Assembly, task: Task, add: Any) -> None:
    """Add a class, and print how many of it were placed in which time."""
    began, start = time.process_time(), time.perf_counter()
    add(assembly, task)
    name = task.species.class_name
    print(
        f"{name}: {assembly.placed[name]} of {assembly.wanted[name]}, {time.perf_counter() - start:.1f} s "
        f"({time.process_time() - began:.1f} s of a processor)",
        flush=True,
    )


def main() -> None:
    """Print a line for each class, and one for the specimen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("templates", type=Path, help="a folder with density maps of the classes of SHREC 2021 at 10 Å")
    parser.add_argument("--occupancy", type=float, default=0.4)
    parser.add_argument("--shape", type=int, nargs=3, default=(250, 500, 500))
    parser.add_argument("--packing", default="dense")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--section", type=Path, help="a picture of the middle section, by class and density")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    templates = [ParticleTemplate.from_map(options.templates / f"{name}.mrc", voxel_size=10.0) for name in SHREC]
    generator = GrandModelGenerator(
        particles=[ParticleSpecies(templates=template) for template in templates],
        shape=options.shape,
        occupancy=options.occupancy,
        packing=options.packing,
        threads=options.threads,
    )
    add = Assembly.add
    Assembly.add = lambda assembly, task: told(assembly, task, add)  # type: ignore[method-assign]
    began, start = time.process_time(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = generator.generate(seed=0)
    print(
        f"{float((made.labels > 0).double().mean()):.4f} filled by {len(made.particles)} particles in "
        f"{time.perf_counter() - start:.0f} s ({time.process_time() - began:.0f} s of a processor)"
    )
    for number, name in made.class_names.items():
        entries = made.particles.orientations[made.particles.classes == number].reshape(-1, 9)
        if len(entries):
            values = [float(kstest(entry, lambda v: (v + 1) / 2).pvalue) for entry in entries.T]
            print(f"{name}: rotations are uniform with p from {min(values):.3f}, {np.mean(values):.2f} on average")
    if options.section:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(16, 8), layout="constrained")
        axes[0].imshow(made.density[len(made.density) // 2], cmap="gray_r")
        axes[1].imshow(made.labels[len(made.labels) // 2], cmap="nipy_spectral", interpolation="nearest")
        figure.savefig(options.section)


if __name__ == "__main__":
    main()
