"""Train a particle picker of DeepFinder's size on tomograms that are simulated while it trains.

From specimens in SHREC's layout and a few unlabelled tilt-series of your own microscope:

    python examples/train_deepfinder.py --specimens model_0 model_1 --style my_tilts.mrc --output run

Writes OUTPUT/checkpoint.pt every so many steps, and OUTPUT/preview.png at the end. The same command goes on from the
checkpoint of a stopped run; on a CPU the weights are then, bit for bit, those of a run that was never stopped.
On several GPUs, or processes, each simulates tomograms of its own (--batch-size patches a step in each):

    torchrun --nproc-per-node=2 examples/train_deepfinder.py --device cuda ...

The defaults are DeepFinder's, meant for a GPU (--device cuda). Two CPU cores make a step a second or so with
--batch-size 4 --patch-size 32 --lr 1e-3, once a tomogram is there (10 to 20 seconds for 41 tilts of 256²).
"""

from __future__ import annotations

import argparse
import atexit
import gc
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.utils.data import DataLoader

import faket_aug as fa
from faket_aug.data.patches import normalize
from faket_aug.figures import loss_panel, save_figure, slice_with_labels, tilt_panel
from faket_aug.picking import DeepFinderNet, RankError, TrainingSettings, distributed_job, fit
from faket_aug.picking.logs import LOGS
from faket_aug.style.vgg19 import fastest_precision
from faket_aug.tomography.filters import FILTERS

#: How errors name an argument, and what it is called here.
OPTIONS = {"`resume=False`": "--no-resume", "`output`": "--output", "`learning_rate`": "--lr"}


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keep the lines of the description, and add each default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--specimens", nargs="+", type=Path, required=True, metavar="FOLDER", help="specimens in SHREC's layout")
    add("--style", nargs="+", type=Path, required=True, metavar="PATH", help="unlabelled tilt-series, MRC or folder")
    add("--output", type=Path, required=True, metavar="FOLDER", help="for checkpoint and picture")
    add("--paired", type=Path, metavar="FOLDER", help="a specimen with measured projections: the noise is fitted to it")
    add(
        "--microscope",
        type=Path,
        metavar="JSON",
        help="of `faket-aug fit --weights`, in place of assumed noise",
    )
    add("--snr", type=float, default=0.1, help="signal power over noise power at 0°, without either")
    add("--weights", default="torchvision", help="of VGG-19: a file, torchvision or random")
    add("--style-layers", nargs="+", type=int, default=[1, 6, 11, 20, 29], metavar="N", help="ReLUs of VGG-19")
    text = "range of the tilts' values; 0 1 as published, 0.001 0.999 against hot pixels and gold beads"
    add("--quantiles", nargs=2, type=float, default=[0.0, 1.0], metavar="Q", help=text)
    add("--filter", choices=FILTERS, default="shrec", help="of the reconstruction")
    text = (
        "of VGG's and the network's convolutions; auto: bfloat16 on GPUs, and on CPUs with AVX512-BF16 or AMX, where it"
    )
    text += " takes half the time; float32, as published, on others"
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help=text)
    add("--cache", type=Path, metavar="FOLDER", help="keeps the encoded style for other runs")
    add("--patch-size", type=int, default=56, metavar="N", help="voxels, a multiple of 4")
    add("--batch-size", type=int, default=25, metavar="N", help="patches a step; 25 of 56³ take 10 GB in float32")
    add("--patches-per-tomogram", type=int, default=64, metavar="N", help="cut from each")
    add("--steps", type=int, default=10000, metavar="N", help="in all, with those before a resume")
    add("--lr", type=float, default=1e-4, help="learning rate of Adam")
    text = "weight of the cross-entropy added to the Tversky loss; 0 as published, but then the network may call all"
    text += " background for hundreds of steps, or for good at a high learning rate"
    add("--cross-entropy", type=float, default=1.0, metavar="W", help=text)
    add("--checkpoint-every", type=int, default=100, metavar="N", help="steps")
    text = "go on from the checkpoint; without either, where there is one"
    add("--resume", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    add("--log", choices=LOGS, default="none", help="of the losses, in OUTPUT")
    add("--workers", type=int, default=0, metavar="N", help="processes that simulate; 0: a thread of this one")
    add("--seed", type=int, default=0, help="of all chance")
    add("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    if args.patch_size % 4 or min(args.patch_size, args.batch_size, args.steps, args.checkpoint_every) < 1:
        parser.error("--patch-size has to be a multiple of 4; it, --batch-size, --steps, --checkpoint-every 1 or more")
    if args.paired is not None and args.microscope is not None:
        parser.error("expected --paired or --microscope, got both")
    if args.precision == "auto":
        args.precision = fastest_precision(torch.device(args.device))
    return args


def make_dataset(args: argparse.Namespace, style: list[fa.TiltSeries]) -> fa.FakETDataset:
    """Put simulator and dataset together."""
    angles, quantiles = style[0].tilt_angles, (args.quantiles[0], args.quantiles[1])
    noise = None
    if args.paired is None and args.microscope is None:
        noise = fa.NoiseModel.assume(style[0].tilts, angles, snr=args.snr, quantiles=quantiles)
    elif args.paired is not None:
        known, measured = fa.GrandModel.from_shrec(args.paired), fa.TiltSeries.read(args.paired)
        clean = -fa.project(known.density, measured.tilt_angles)  # dark particles, as in the measured tilts
        noise = fa.NoiseModel.fit(
            clean=clean, target=measured.tilts, tilt_angles=measured.tilt_angles, quantiles=quantiles
        )
    vgg = fa.VGG19Features(args.weights, precision=args.precision)
    kept = {"quantiles": quantiles, "cache": args.cache, "device": args.device}
    bank = fa.StyleBank.build(style, vgg, style_layers=args.style_layers, **kept)
    chosen = {"style": bank, "features": vgg, "quantiles": quantiles, "filter": args.filter, "device": args.device}
    if noise is None:
        simulator = fa.FakETSimulator.from_file(args.microscope, tilt_angles=angles, **chosen)
    else:
        simulator = fa.FakETSimulator(tilt_angles=angles, noise=noise, **chosen)
    patches = {"patch_size": args.patch_size, "patches_per_tomogram": args.patches_per_tomogram, "seed": args.seed}
    # At most 13, as published; in smaller patches the particles stay in sight.
    patches["shift"] = min(13, args.patch_size // 4)
    return fa.FakETDataset(fa.ShrecSpecimens(args.specimens), simulator, **patches)


def train(
    args: argparse.Namespace, dataset: fa.FakETDataset, first: fa.GrandModel, rank: int
) -> tuple[DeepFinderNet, list[float]]:
    """Train up to `--steps` steps, from the checkpoint where there is one; return the network and the losses."""
    torch.manual_seed(args.seed)  # of the network's first weights; all other chance is the dataset's
    classes = 1 + max(first.class_names, default=int(first.labels.max()))
    network = DeepFinderNet(classes, voxel_size=first.label_voxel_size).to(args.device)
    spawn: dict[str, Any] = {"multiprocessing_context": "spawn", "persistent_workers": True} if args.workers else {}
    loader = DataLoader(dataset, batch_size=args.batch_size, num_workers=args.workers, **spawn)
    settings = TrainingSettings(
        steps=args.steps,
        learning_rate=args.lr,
        cross_entropy=args.cross_entropy,
        precision=args.precision,
        checkpoint_every=args.checkpoint_every,
    )
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=rank > 0) as progress:
        task = progress.add_task("first tomogram", total=args.steps)

        def on_step(step: int, loss: float) -> None:
            progress.update(task, completed=step, description=f"loss {loss:.3f}")
            if rank == 0 and (step % args.checkpoint_every == 0 or step == args.steps):
                progress.console.print(f"step {step}: loss {loss:.3f}", soft_wrap=True)

        chosen = {"resume": getattr(args, "resume", None), "log": args.log, "on_step": on_step}
        history = fit(
            network, loader, args.output, settings=settings, depends_on=settings_of(args, dataset, classes), **chosen
        )
    return network, history.losses


def settings_of(args: argparse.Namespace, dataset: fa.FakETDataset, classes: int) -> dict[str, Any]:
    """Collect what the weights depend on besides the training's settings: a run goes on with the same only."""
    names = "patch_size", "patches_per_tomogram", "batch_size", "workers", "seed"
    specimens = [str(path.resolve()) for path in args.specimens]
    own = {name: getattr(args, name) for name in names} | {"specimens": specimens, "classes": classes}
    return own | dataset.simulator.settings()


def central(volume: torch.Tensor) -> torch.Tensor:
    """Cut the middle out of `(z, y, x)`: sides are multiples of 4, and no longer than a laptop can segment."""
    for axis, longest in enumerate((64, 256, 256)):
        side = min(volume.shape[axis], longest) // 4 * 4
        volume = volume.narrow(axis, (volume.shape[axis] - side) // 2, side)
    return volume.cpu()


def draw_preview(
    made: fa.SimulatedTomogram, real: fa.TiltSeries, predicted: torch.Tensor, losses: list[float]
) -> Figure:
    """Draw simulated above measured tilts, a tomogram with its labels and with the prediction, and the losses."""
    figure = Figure(figsize=(11, 15.5), layout="constrained")
    rows: list[Any] = [["s0", "s1", "s2"], ["m0", "m1", "m2"], ["slice", "labels", "network"], ["loss"] * 3]
    axes = figure.subplot_mosaic(rows, height_ratios=[3, 3, 3, 2])
    bin, size = made.tiltseries.shape[-1] // made.tomogram.shape[-1], made.voxel_size
    simulated = fa.TiltSeries(tilts=made.tiltseries, tilt_angles=made.tilt_angles, pixel_size=size / bin)
    for row, name, series in (("s", "simulated", simulated), ("m", "measured", real)):
        for column, angle in enumerate((min(made.tilt_angles), 0.0, max(made.tilt_angles))):
            nearest = int(abs(series.tilt_angles - angle).argmin())
            title = f"{name}, {round(series.tilt_angles[nearest])}°"
            tilt_panel(axes[f"{row}{column}"], series.tilts[nearest], title=title, pixel_size=series.pixel_size)
    # The eye sees more with this filter than with the network's.
    visible = fa.reconstruct(made.tiltseries, made.tilt_angles, depth=len(made.tomogram), bin=bin, filter="hann")
    grey, labels = central(visible), central(made.labels)
    z = len(grey) // 2
    names = {n: made.class_names.get(n, str(n)) for n in sorted({*labels[z].flatten().tolist()} - {0})}
    tilt_panel(axes["slice"], grey[z], title="simulated, central slice", pixel_size=size)
    for name, title, numbers in (("labels", "its labels", labels), ("network", "the network's prediction", predicted)):
        slice_with_labels(axes[name], grey[z], numbers[z], class_names=names, title=title, pixel_size=size)
    loss_panel(axes["loss"], losses)
    axes["loss"].autoscale(axis="y")
    return figure


def stop(number: int, _: FrameType | None) -> None:
    """End the program in order, and without Python's last garbage collection, which takes a second."""
    atexit.register(gc.freeze)
    sys.exit(128 + number)


def main() -> None:
    """Train, then draw."""
    args = arguments()
    # As batch systems end a run: files and workers are then tidied up, as after Ctrl-C.
    signal.signal(signal.SIGTERM, stop)
    fa.keep_memory()
    try:
        with distributed_job(args.device) as rank:
            first = fa.GrandModel.from_shrec(args.specimens[0])
            style = [fa.TiltSeries.read(path) for path in args.style]
            if args.patch_size > min(first.labels.shape):
                shape = tuple(first.labels.shape)
                raise ValueError(
                    f"{first.name}: expected --patch-size to fit its {shape} voxels, got {args.patch_size}"
                )
            dataset = make_dataset(args, style)
            network, losses = train(args, dataset, first, rank)
        if rank > 0:
            return
        # An address of chance that the training never uses.
        made = dataset.simulator(first, seed=args.seed, tomogram=dataset.tomograms_per_epoch)
        image = normalize(central(made.tomogram)).to(args.device)
        autocast = torch.autocast(image.device.type, torch.bfloat16, enabled=args.precision == "bfloat16")
        with torch.inference_mode(), autocast:
            predicted = network(image[None, None])[0].argmax(dim=0)
        save_figure(draw_preview(made, style[made.record.style_series], predicted, losses), args.output / "preview.png")
    except (ValueError, OSError, fa.SimulationError, RankError) as error:
        # A worker's error ends with the line that says what was wrong.
        message = str(error).splitlines()[-1]
        for name, option in OPTIONS.items():
            message = message.replace(name, option)
        sys.exit(f"train_deepfinder: error: {message}")


if __name__ == "__main__":
    main()
