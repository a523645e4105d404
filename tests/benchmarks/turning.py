"""Measure what turned templates keep of their spectrum, and the time of turning, for each interpolation.

The truth are templates of structures whose atoms are turned before they are drawn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import gemmi
import numpy as np
import torch

from faket_aug.generation.placement import place_templates
from faket_aug.generation.stamp import INTERPOLATIONS, Stamp, uniform_rotations
from faket_aug.generation.templates import ParticleTemplate
from faket_aug.specimens.particles import ParticleTable

#: Cycles per voxel.
SHELLS = np.array([0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
#: Voxels of zeros around the truth, so that no copy is cut.
MARGIN = 6
#: Copies that are turned to measure the time, and how often: the best counts.
COPIES, REPEATS = 64, 7


def spectra(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Sum over shells `(3, shell)`: power of both, and what they share."""
    a, b = np.fft.fftn(made.astype(np.float64)), np.fft.fftn(truth.astype(np.float64))
    z, y, x = (np.fft.fftfreq(n) for n in made.shape)
    radius = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    terms = (np.abs(a) ** 2, np.abs(b) ** 2, (a * np.conj(b)).real)
    return np.stack([np.histogram(radius, SHELLS, weights=term)[0] for term in terms])


def turned_structure(path: Path, orientation: np.ndarray, voxel_size: float) -> ParticleTemplate:
    """Make the template of a structure whose atoms are turned."""
    structure = gemmi.read_structure(str(path))
    for model in structure:
        for every in model.all():
            place = orientation @ np.array(every.atom.pos.tolist())
            every.atom.pos = gemmi.Position(*place)
    with tempfile.TemporaryDirectory() as folder:
        turned = Path(folder) / f"{path.stem}.pdb"
        structure.write_pdb(str(turned))
        return ParticleTemplate.from_structure(turned, voxel_size=voxel_size)


def measure(path: Path, voxel_size: float, rotations: int) -> None:
    """Print a line for each interpolation."""
    template = ParticleTemplate.from_structure(path, voxel_size=voxel_size)
    draw = np.random.default_rng(0)
    orientations = uniform_rotations(rotations, draw)
    truths = [turned_structure(path, orientation, voxel_size) for orientation in orientations]
    many = uniform_rotations(COPIES, draw), draw.random((COPIES, 3)) - 0.5
    for name in reversed(INTERPOLATIONS):
        stamp, total, worst = Stamp.of(template, interpolation=name), np.zeros((3, len(SHELLS) - 1)), 0.0
        for orientation, turned in zip(orientations, truths, strict=True):
            truth, center = np.pad(turned.density.numpy(), MARGIN), np.array(turned.center) + MARGIN
            row = ParticleTable(classes=np.ones(1, np.int64), positions=center[None], orientations=orientation[None])
            made = place_templates(row, {1: template}, shape=truth.shape, interpolation=name).numpy()
            total += spectra(made, truth)
            worst = max(worst, float(np.abs(made - truth).max() / truth.max()))
        times = []
        for _ in range(REPEATS):
            start = time.process_time()
            for _ in stamp.turned(*many):
                pass
            times.append(time.process_time() - start)
        power, shared = total[0] / total[1], total[2] / np.sqrt(total[0] * total[1])
        print(
            f"{path.stem:6s} {voxel_size:4.0f} Å {name:6s} "
            + " ".join(f"{value:5.3f}" for value in power)
            + f"   {shared[-1]:.3f}   {100 * worst:4.1f} %  {1e3 * min(times) / COPIES:6.3f} ms",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structures", type=Path, nargs="+", help="PDB or mmCIF files")
    parser.add_argument("--voxel-sizes", type=float, nargs="+", default=[10.0, 5.0], help="Å")
    parser.add_argument("--rotations", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    borders = " ".join(f"-{high:.2f}" for high in SHELLS[1:])
    print(f"power by cycles per voxel {borders}, correlation in the last shell, largest error, time of a copy")
    for path in options.structures:
        for voxel_size in options.voxel_sizes:
            measure(path, voxel_size, options.rotations)


if __name__ == "__main__":
    main()
