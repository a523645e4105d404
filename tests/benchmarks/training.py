"""Training fed by a `FakETDataset` against the same training fed by patches that lie in memory.

    python tests/benchmarks/training.py --device cuda                 # DeepFinder's size: 25 patches of 56³, bfloat16
    python tests/benchmarks/training.py                               # a CPU's size

Both loops run in turn, some rounds each, in which every live tomogram is exchanged once; the ratio is that of their
steps per second. What a tomogram costs is shared by its patches, so the ratio depends on `--patches`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from _report import Row, header, keep, median, read, seconds_of
from generation import crowd
from torch.utils.data import DataLoader

from faket_aug import FakETDataset, FakETSimulator, NoiseModel, StyleBank, TiltSeries, VGG19Features
from faket_aug.picking import DeepFinderNet, tversky_loss

Batch = Mapping[str, Any]


def make_dataset(options: argparse.Namespace) -> FakETDataset:
    """Make the dataset: FakET's simulation of one procedural specimen, again and again."""
    angles = np.linspace(-60.0, 60.0, options.tilts)
    style = TiltSeries(tilts=torch.randn(options.tilts, 64, 64), tilt_angles=angles)
    encoder = VGG19Features("random", precision=options.precision)
    simulator = FakETSimulator(
        tilt_angles=angles,
        modality=options.modality,
        noise=NoiseModel.assume(style.tilts, angles),
        style=StyleBank.build(style, encoder) if options.modality == "faket" else None,
        features=encoder if options.modality == "faket" else None,
        device=options.simulate_on or options.device,
        threads=1,
    )
    size = options.size
    return FakETDataset(
        [crowd((max(options.patch_size, size * 180 // 512), size, size)).generate(seed=0)],
        simulator,
        patch_size=options.patch_size,
        patches_per_tomogram=options.patches,
        tomograms_per_epoch=10_000,
        item_device="cpu" if options.workers else options.device,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cpu")
    add("--simulate-on", metavar="DEVICE", help="by default the training's own")
    add("--modality", default="faket")
    add("--size", type=int, help="of tilts and tomogram; 512 on a GPU, 128 on a CPU")
    add("--tilts", type=int, help="61 on a GPU, 21 on a CPU")
    add("--patch-size", type=int, help="56 on a GPU, 32 on a CPU")
    add("--batch-size", type=int, help="25 on a GPU, 4 on a CPU")
    add("--patches", type=int, help="of each tomogram; 2000 on a GPU, 80 on a CPU")
    add("--workers", type=int, default=0)
    add("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    add("--steps", type=int, help="of one round; by default those in which all live tomograms are exchanged")
    add("--repeats", type=int, default=3, help="rounds")
    options = read(parser)
    gpu = options.device.startswith("cuda")
    sizes = {
        "size": (128, 512),
        "tilts": (21, 61),
        "patch_size": (32, 56),
        "batch_size": (4, 25),
        "patches": (80, 2000),
    }
    for name, choices in sizes.items():
        setattr(options, name, getattr(options, name) or choices[gpu])
    options.steps = options.steps or 2 * options.patches // options.batch_size
    device = torch.device(options.device)
    dataset = make_dataset(options)
    classes = len(dataset.specimens[0].class_names)
    network = DeepFinderNet(classes).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bfloat16"):
            logits = network(batch["image"].to(device, non_blocking=True))
        loss = tversky_loss(logits.float(), batch["label"].to(device, non_blocking=True))
        loss.backward()
        optimizer.step()

    def round_of(batches: Iterator[Batch]) -> float:
        return seconds_of(lambda: [step(next(batches)) for _ in range(options.steps)], device)

    print(header(device))
    simulated = [seconds_of(lambda: dataset.simulator(dataset.specimens[0], seed=0), device) for _ in range(3)]
    context = "spawn" if options.workers else None
    loader = DataLoader(
        dataset, batch_size=options.batch_size, num_workers=options.workers, multiprocessing_context=context
    )
    live = iter(loader)
    kept = [{name: batch[name].to(device) for name in ("image", "label")} for batch in itertools.islice(live, 8)]
    memory = itertools.cycle(kept)
    pairs: list[tuple[float, float]] = []
    try:
        round_of(memory)
        round_of(live)
        for _ in range(options.repeats):
            pairs.append((round_of(live), round_of(memory)))
    except KeyboardInterrupt:
        print(f"cut after {len(pairs)} of {options.repeats} rounds")
    if not pairs:
        print(f"one simulation {median(simulated[1:]):.3f} s")
        keep(options, "training", device, [{"name": "simulation", "seconds": simulated[1:]}])
        return
    ratios = [in_memory / fed for fed, in_memory in pairs]
    whole = sum(in_memory for _, in_memory in pairs) / sum(fed for fed, _ in pairs)
    seconds = median(simulated[1:])
    print(
        f"one simulation {seconds:.3f} s for {options.patches} patches; steps of {options.batch_size} x "
        f"{options.patch_size}³: {options.steps / median(p[0] for p in pairs):.2f} a second from the dataset, "
        f"{options.steps / median(p[1] for p in pairs):.2f} from memory: {median(ratios):.1%} (median), "
        f"{whole:.1%} (all)"
    )
    row: Row = {"name": "training", "seconds": [fed for fed, _ in pairs], "ratios": ratios, "ratio_of_all": whole}
    keep(options, "training", device, [row, {"name": "simulation", "seconds": simulated[1:]}])
    del live


if __name__ == "__main__":
    main()
