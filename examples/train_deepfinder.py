"""Train a particle picker of DeepFinder's size on tomograms that are simulated while it trains.

From specimens in SHREC's layout and a few unlabelled tilt-series of your own microscope:

    python examples/train_deepfinder.py --specimens model_0 model_1 --style my_tilts.mrc --output run

Writes OUTPUT/checkpoint.pt every so many steps, and OUTPUT/preview.png at the end. The same command goes on from the
checkpoint of a stopped run; on a CPU the weights are then, bit for bit, those of a run that was never stopped.
The defaults are DeepFinder's, meant for a GPU (--device cuda). Two CPU cores make a step a second or so with
--batch-size 4 --patch-size 32 --lr 1e-3, once a tomogram is there (10 to 20 seconds for 41 tilts of 256²).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import faket_aug as fa
from faket_aug.cli._figures import loss_panel, save_figure, slice_with_labels, tilt_panel
from faket_aug.features import cpu_has_bfloat16
from faket_aug.filters import FILTERS
from faket_aug.patches import normalize
from faket_aug.picking import DeepFinderNet, tversky_loss


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
    add("--snr", type=float, default=0.1, help="signal power over noise power at 0°, without --paired")
    add("--weights", default="torchvision", help="of VGG-19: a file, torchvision or random")
    add("--style-layers", nargs="+", type=int, default=[1, 6, 11, 20, 29], metavar="N", help="ReLUs of VGG-19")
    text = "range of the tilts' values; 0 1 as published, 0.001 0.999 against hot pixels and gold beads"
    add("--quantiles", nargs=2, type=float, default=[0.0, 1.0], metavar="Q", help=text)
    add("--filter", choices=FILTERS, default="shrec", help="of the reconstruction")
    text = (
        "of VGG's and the network's convolutions; auto: bfloat16 on CPUs with AVX512-BF16 or AMX, where it takes half"
    )
    text += " the time; float32, as published, on others and on GPUs"
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
    add("--workers", type=int, default=0, metavar="N", help="processes that simulate; 0: a thread of this one")
    add("--seed", type=int, default=0, help="of all chance")
    add("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    if args.patch_size % 4 or min(args.patch_size, args.batch_size, args.steps, args.checkpoint_every) < 1:
        parser.error("--patch-size has to be a multiple of 4; it, --batch-size, --steps, --checkpoint-every 1 or more")
    if args.precision == "auto":
        args.precision = "bfloat16" if args.device == "cpu" and cpu_has_bfloat16() else "float32"
    return args


def make_dataset(args: argparse.Namespace, style: list[fa.TiltSeries]) -> fa.FakETDataset:
    """Put simulator and dataset together."""
    angles, quantiles = style[0].tilt_angles, (args.quantiles[0], args.quantiles[1])
    if args.paired is None:
        noise = fa.NoiseModel.assume(style[0].tilts, angles, snr=args.snr, quantiles=quantiles)
    else:
        known, measured = fa.GrandModel.from_shrec(args.paired), fa.TiltSeries.read(args.paired)
        clean = -fa.project(known.density, measured.tilt_angles)  # dark particles, as in the measured tilts
        noise = fa.NoiseModel.fit(clean, measured.tilts, measured.tilt_angles, quantiles=quantiles)
    vgg = fa.VGG19Features(args.weights, precision=args.precision)
    bank = fa.StyleBank.build(style, vgg, style_layers=args.style_layers, quantiles=quantiles, cache=args.cache)
    chosen = {"quantiles": quantiles, "filter": args.filter, "device": args.device}
    simulator = fa.FakETSimulator(tilt_angles=angles, noise=noise, style=bank, features=vgg, **chosen)
    patches = {"patch_size": args.patch_size, "patches_per_tomogram": args.patches_per_tomogram, "seed": args.seed}
    # At most 13, as published; in smaller patches the particles stay in sight.
    patches["shift"] = min(13, args.patch_size // 4)
    return fa.FakETDataset(fa.ShrecSpecimens(args.specimens), simulator, **patches)


def train(args: argparse.Namespace, dataset: fa.FakETDataset, classes: int) -> tuple[DeepFinderNet, list[float]]:
    """Train up to `--steps` steps, from the checkpoint where there is one; return the network and the losses."""
    torch.manual_seed(args.seed)  # of the network's first weights; all other chance is the dataset's
    network = DeepFinderNet(classes).to(args.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr)
    losses, epoch = list[float](), 0
    path, settings = args.output / "checkpoint.pt", settings_of(args, dataset, classes)
    if getattr(args, "resume", path.exists()):
        state = load_checkpoint(path, settings)
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        dataset.load_state_dict(state["dataset"])
        losses, epoch = state["losses"], state["epoch"]
    loading: dict[str, Any] = {"batch_size": args.batch_size, "num_workers": args.workers}
    spawn: dict[str, Any] = {"multiprocessing_context": "spawn", "persistent_workers": True} if args.workers else {}
    loader = DataLoader(dataset, **loading, **spawn)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("first tomogram", total=args.steps, completed=len(losses))
        while len(losses) < args.steps:
            dataset.set_epoch(epoch)
            for batches, batch in enumerate(loader, start=1):
                labels = batch["label"].to(args.device)
                logits = predict(network, batch["image"].to(args.device), args.precision).float()
                loss = tversky_loss(logits, labels) + args.cross_entropy * cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                step = len(losses)
                progress.update(task, completed=step, description=f"loss {losses[-1]:.3f}")
                if step % args.checkpoint_every == 0 or step == args.steps:
                    state = {"settings": settings, "epoch": epoch, "losses": losses, "model": network.state_dict()}
                    position = dataset.state_dict(batches=batches, **loading)
                    save_checkpoint(path, state | {"optimizer": optimizer.state_dict(), "dataset": position})
                    progress.console.print(f"step {step}: loss {losses[-1]:.3f}, saved to {path}", soft_wrap=True)
                if step == args.steps:
                    break
            else:
                epoch += 1
    return network, losses


def predict(network: DeepFinderNet, images: torch.Tensor, precision: str) -> torch.Tensor:
    """Compute the logits in the precision asked for."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits: torch.Tensor = network(images)
    return logits


def settings_of(args: argparse.Namespace, dataset: fa.FakETDataset, classes: int) -> dict[str, Any]:
    """Collect all that the weights depend on: a run goes on with the same only."""
    names = "patch_size", "patches_per_tomogram", "batch_size", "workers", "lr", "cross_entropy", "precision", "seed"
    specimens = [str(path.resolve()) for path in args.specimens]
    own = {name: getattr(args, name) for name in names} | {"specimens": specimens, "classes": classes}
    return own | dataset.simulator.settings()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint that is either whole or not there."""
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        torch.save(state, stream)
        os.fsync(stream.fileno())
    part.replace(path)


def load_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint that was made with the same settings."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint, found none at {path}; leave out --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["settings"]
    except Exception as error:
        raise ValueError(f"{path}: expected a checkpoint, got another or a damaged file; use --no-resume") from error
    pairs = {name: (saved.get(name), value) for name, value in settings.items() if saved.get(name) != value}
    if pairs:
        listed = ", ".join(f"{name} (was {was!s:.40}, is {value!s:.40})" for name, (was, value) in pairs.items())
        raise ValueError(f"{path}: expected its own settings, got other {listed}; change --output, or use --no-resume")
    return state


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


def main() -> None:
    """Train, then draw."""
    args = arguments()
    try:
        first, style = fa.GrandModel.from_shrec(args.specimens[0]), [fa.TiltSeries.read(path) for path in args.style]
        if args.patch_size > min(first.labels.shape):
            shape = tuple(first.labels.shape)
            raise ValueError(f"{first.name}: expected --patch-size to fit its {shape} voxels, got {args.patch_size}")
        args.output.mkdir(parents=True, exist_ok=True)
        dataset = make_dataset(args, style)
        network, losses = train(args, dataset, 1 + max(first.class_names, default=int(first.labels.max())))
        # An address of chance that the training never uses.
        made = dataset.simulator(first, seed=args.seed, tomogram=dataset.tomograms_per_epoch)
        image = normalize(central(made.tomogram)).to(args.device)
        with torch.inference_mode():
            predicted = predict(network, image[None, None], args.precision)[0].argmax(dim=0)
        save_figure(draw_preview(made, style[made.record.style_series], predicted, losses), args.output / "preview.png")
    except (ValueError, OSError, fa.SimulationError) as error:
        # A worker's error ends with the line that says what was wrong.
        sys.exit(f"train_deepfinder: error: {str(error).splitlines()[-1]}")


if __name__ == "__main__":
    main()
