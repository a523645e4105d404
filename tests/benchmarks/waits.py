"""Count what waits for a GPU: one labelled simulation, one training step, one generated specimen; line by line.

    PYTHONPATH=FOLDER_OF_PRETEND_CUDA python tests/benchmarks/waits.py

It needs `pretend_cuda`, a GPU that is none: tensors that say that they lie on `cuda:0`, and counts of what passes by.
The counts hold for a real GPU, seconds do not: there are none.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _report import Row, keep, read
from generation import crowd
from torch.utils.data import DataLoader

from faket_aug import ContrastTransfer, FakETDataset, FakETSimulator, NoiseModel, StyleBank, TiltSeries, VGG19Features
from faket_aug._runtime import transfers
from faket_aug.picking import DeepFinderNet, TrainingSettings, fit, segment


def counted(name: str, book: Any) -> Row:
    """Take what the book has seen, and begin it anew."""
    row: Row = {
        "name": name,
        "waits": sum(book.syncs.values()),
        "uploads": sum(book.uploads.values()),
        "uploaded_mb": book.upload_bytes / 1e6,
        "downloaded_mb": book.download_bytes / 1e6,
        "launches": book.launches,
        "unordered": sum(book.hazards.values()),
        "lines": {f"{what}, {line}": count for (what, line), count in book.syncs.most_common()},
        "unordered_lines": {f"{what}, {line}": count for (what, line), count in book.hazards.most_common()},
    }
    book.clear()
    return row


def show(row: Row) -> None:
    """Print a row, and the lines that wait."""
    print(
        f"{row['name']:44s} {row['waits']:6d} waits, {row['uploads']:5d} uploads of {row['uploaded_mb']:8.2f} MB, "
        f"{row['downloaded_mb']:8.2f} MB down, {row['launches']:7d} launches, {row['unordered']} without an order"
    )
    for line, count in row["lines"].items():
        print(f"    {count:6d} x {line}")
    for line, count in row["unordered_lines"].items():
        print(f"    {count:6d} x WITHOUT AN ORDER {line}")


def simulators(options: argparse.Namespace, device: str) -> dict[str, FakETSimulator]:
    """Make the simulators that are counted: as published, with quantiles and spectrum kept, with a CTF."""
    angles = np.linspace(-60.0, 60.0, options.tilts)
    generator = torch.Generator().manual_seed(0)
    style = TiltSeries(tilts=torch.randn(options.tilts, 64, 64, generator=generator), tilt_angles=angles)
    encoder = VGG19Features("random", precision=options.precision)
    shared: dict[str, Any] = {
        "tilt_angles": angles,
        "noise": NoiseModel.assume(style.tilts, angles),
        "style": StyleBank.build(style, encoder),
        "features": encoder,
        "device": device,
    }
    ctf = ContrastTransfer(defocus=3.0, jitter=0.1)
    return {
        "simulation": FakETSimulator(**shared),
        "simulation, quantiles, spectrum kept": FakETSimulator(**shared, quantiles=(0.01, 0.99), keep_spectrum=True),
        "simulation, CTF corrected": FakETSimulator(**shared, ctf=ctf, ctf_correction="phase-flip"),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", type=int, default=64, help="of tilts and tomogram")
    add("--tilts", type=int, default=7)
    add("--patch-size", type=int, default=16)
    add("--batch-size", type=int, default=4)
    add("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    add("--only", choices=["simulation", "training", "generation", "segment"], help="by default all")
    parser.set_defaults(repeats=1)
    options = read(parser)
    try:
        pretend = importlib.import_module("pretend_cuda")
    except ImportError:
        parser.error("expected the module pretend_cuda, found none; set PYTHONPATH to its folder")
    pretend.install()
    # It has no locked memory.
    torch.Tensor.is_pinned = lambda tensor: getattr(tensor, "locked", False)
    transfers.pinned = _locked
    book, rows = pretend.BOOK, []
    kinds = {"simulation": _simulation, "training": _training, "generation": _generation, "segment": _segment}
    for name, kind in kinds.items():
        if options.only in (None, name):
            rows += kind(options, book)
    for row in rows:
        show(row)
    keep(options, "waits", torch.device("cpu"), rows)


def _locked(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to what counts as locked memory."""
    copied = tensor.clone(memory_format=torch.contiguous_format)
    copied.locked = True
    return copied


def _second(name: str, run: Callable[[], object], book: Any) -> Row:
    """Count the second run; the first one fills caches."""
    run()
    book.clear()
    run()
    return counted(name, book)


def _simulation(options: argparse.Namespace, book: Any) -> list[Row]:
    specimen = crowd((max(options.patch_size, options.size // 2), options.size, options.size)).generate(seed=0)
    return [
        _second(name, lambda one=simulator: one(specimen, seed=0), book)
        for name, simulator in simulators(options, "cuda").items()
    ]


def _training(options: argparse.Namespace, book: Any) -> list[Row]:
    return [
        _training_step(options, book, 'training step, item_device="cpu"', {"item_device": "cpu"}),
        _training_step(options, book, "training step, default", {}),
    ]


def _training_step(options: argparse.Namespace, book: Any, name: str, where: dict[str, str]) -> Row:
    """Count the fourth step of `fit`, at which no tomogram is made."""
    specimen = crowd((max(options.patch_size, options.size // 2), options.size, options.size)).generate(seed=0)
    dataset = FakETDataset(
        [specimen],
        next(iter(simulators(options, "cuda").values())),
        patch_size=options.patch_size,
        patches_per_tomogram=8 * options.batch_size,
        live_tomograms=1,
        **where,
    )
    network = DeepFinderNet(len(dataset.specimens[0].class_names) + 1, widths=(2, 3, 4)).to("cuda")
    found: list[Row] = []

    def on_step(step: int, loss: float) -> None:
        if step == 4:
            found.append(counted(name, book))
        book.clear()

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingSettings(steps=5, precision=options.precision)
        fit(network, DataLoader(dataset, batch_size=options.batch_size), folder, settings=settings, on_step=on_step)
    return found[0]


def _generation(options: argparse.Namespace, book: Any) -> list[Row]:
    shape = (options.size // 2, options.size, options.size)
    generator = crowd(shape, device="cuda")
    row = _second("specimen", lambda: generator.generate(seed=1), book)
    particles = len(generator.generate(seed=1).particles)
    book.clear()
    return [row | {"name": f"specimen of {particles} particles"}]


def _segment(options: argparse.Namespace, book: Any) -> list[Row]:
    network = DeepFinderNet(4, widths=(2, 3, 4)).to("cuda").eval()
    volume = torch.randn(options.size // 2, options.size, options.size)
    return [
        _second(f"segment, {blend}", lambda b=blend: segment(network, volume, tile_size=32, overlap=8, blend=b), book)
        for blend in ("crop", "linear")
    ]


if __name__ == "__main__":
    main()
