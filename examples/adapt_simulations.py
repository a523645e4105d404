"""Adapt tilt-series that another program simulated to your own microscope, while a particle picker trains on them.

From clean tilts with labels, and a few unlabelled tilt-series of the microscope; noise and style are new in each epoch:

    python examples/adapt_simulations.py --tilts sim_1.mrc sim_2.mrc --labels labels_1.mrc labels_2.mrc \
        --picks picks_1.star picks_2.star --style my_tilts.mrc --output run

With --noisy the tilts have noise already: none is added, and the style is transferred to them as they are. Angles are
read from what lies beside the stacks (.tlt, .rawtlt, .mdoc). Writes OUTPUT/checkpoint.pt, log.csv and preview.png; the
same command goes on from the checkpoint. `--steps 0` draws the picture only: look at it first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

import faket_aug as fa
from faket_aug.figures import save_figure, tilt_panel
from faket_aug.picking import DeepFinderNet, RankError, TrainingSettings, distributed_job, fit
from faket_aug.specimens.tilted import TiltedSpecimen


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tilts", nargs="+", type=Path, required=True, metavar="STACK", help="simulated elsewhere, of equal angles")
    add("--labels", nargs="+", type=Path, required=True, metavar="MRC", help="(z, y, x), one for each stack")
    add("--picks", nargs="+", type=Path, metavar="LIST", help=".star, .xml, .csv or .txt, one for each stack")
    add("--noisy", action="store_true", help="the tilts have noise already")
    add("--bright", action="store_true", help="particles are bright in the tilts")
    add("--style", nargs="+", type=Path, required=True, metavar="PATH", help="unlabelled tilt-series, MRC or folder")
    add("--snr", type=float, default=0.1, help="of clean tilts: signal power over noise power at 0°")
    add("--weights", default="torchvision", help="of VGG-19: a file, torchvision or random")
    add("--style-layers", nargs="+", type=int, default=[1, 6, 11, 20, 29], metavar="N", help="ReLUs of VGG-19")
    add("--output", type=Path, required=True, metavar="FOLDER", help="for checkpoint, log and picture")
    add("--steps", type=int, default=10000, metavar="N", help="of the training; 0: only the picture")
    add("--patch-size", type=int, default=56, metavar="N", help="voxels, a multiple of 4")
    add("--batch-size", type=int, default=25, metavar="N", help="patches a step")
    add("--lr", type=float, default=1e-4, help="learning rate of Adam")
    add("--seed", type=int, default=0, help="of all chance")
    add("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    for name, given in (("--labels", args.labels), ("--picks", args.picks)):
        if given and len(given) != len(args.tilts):
            parser.error(f"expected {name} for each of {len(args.tilts)} --tilts, got {len(given)}")
    return args


def read_specimens(args: argparse.Namespace) -> list[TiltedSpecimen]:
    """Read each stack with its labels and picks."""
    rows = zip(args.tilts, args.labels, args.picks or [None] * len(args.tilts), strict=True)
    how = {"noisy": args.noisy, "dark": not args.bright}
    return [TiltedSpecimen.read(tilts, labels=labels, picks=picks, **how) for tilts, labels, picks in rows]


def make_simulator(args: argparse.Namespace, angles: list[float], style: list[fa.TiltSeries]) -> fa.FakETSimulator:
    """Put noise and style together; what is projected elsewhere takes the place of our projections."""
    features = fa.VGG19Features(args.weights)
    bank = fa.StyleBank.build(style, features, style_layers=args.style_layers, device=args.device)
    noise = "given" if args.noisy else fa.NoiseModel.assume(style[0].tilts, style[0].tilt_angles, snr=args.snr)
    return fa.FakETSimulator(tilt_angles=angles, noise=noise, style=bank, features=features, device=args.device)


def train(args: argparse.Namespace, dataset: fa.FakETDataset, thing: TiltedSpecimen) -> None:
    """Train up to `--steps` steps, from the checkpoint where there is one."""
    torch.manual_seed(args.seed)  # of the network's first weights; all other chance is the dataset's
    network = DeepFinderNet(
        1 + max(thing.class_names, default=int(thing.labels.max())), voxel_size=thing.label_voxel_size
    )
    files = {name: [str(path) for path in getattr(args, name) or ()] for name in ("tilts", "labels", "picks")}
    own = {"patch_size": args.patch_size, "batch_size": args.batch_size, "seed": args.seed, "bright": args.bright}
    fit(
        network,
        DataLoader(dataset, batch_size=args.batch_size),
        args.output,
        settings=TrainingSettings(steps=args.steps, learning_rate=args.lr, cross_entropy=1.0),
        depends_on=own | files | dataset.simulator.settings(),
        device=args.device,
        progress=True,
    )


def draw_preview(given: TiltedSpecimen, made: fa.SimulatedTomogram, real: fa.TiltSeries) -> Figure:
    """Draw what was given above what became of it, above what the microscope measured."""
    figure = Figure(figsize=(11, 11.5), layout="constrained")
    axes = figure.subplots(3, 3)
    series = {
        "given": fa.TiltSeries(tilts=given.tilts, tilt_angles=given.tilt_angles, pixel_size=given.voxel_size),
        "adapted": fa.TiltSeries(tilts=made.tiltseries, tilt_angles=made.tilt_angles, pixel_size=given.voxel_size),
        "measured": real,
    }
    for row, (name, one) in zip(axes, series.items(), strict=True):
        for panel, angle in zip(row, (min(made.tilt_angles), 0.0, max(made.tilt_angles)), strict=True):
            nearest = int(abs(one.tilt_angles - angle).argmin())
            title = f"{name}, {round(one.tilt_angles[nearest])}°"
            tilt_panel(panel, one.tilts[nearest], title=title, pixel_size=one.pixel_size)
    return figure


def main() -> None:
    """Draw, then train."""
    args = arguments()
    fa.keep_memory()
    try:
        with distributed_job(args.device) as rank:
            specimens, style = read_specimens(args), [fa.TiltSeries.read(path) for path in args.style]
            simulator = make_simulator(args, specimens[0].tilt_angles.tolist(), style)
            dataset = fa.FakETDataset(
                specimens, simulator, patch_size=args.patch_size, shift=min(13, args.patch_size // 4), seed=args.seed
            )
            if rank == 0:
                args.output.mkdir(parents=True, exist_ok=True)
                made = simulator(specimens[0], seed=args.seed, tomogram=dataset.tomograms_per_epoch)
                figure = draw_preview(specimens[0], made, style[made.record.style_series])
                save_figure(figure, args.output / "preview.png")
            if args.steps:
                train(args, dataset, specimens[0])
    except (ValueError, OSError, fa.SimulationError, RankError) as error:
        sys.exit(f"adapt_simulations: error: {str(error).splitlines()[-1]}")


if __name__ == "__main__":
    main()
