"""Pretrain a particle picker on simulated tomograms, then fine-tune it on a few real labelled ones.

    python examples/pretrain_finetune.py --specimens model_0 model_1 --style my_tilts.mrc \
        --real tomo_1.mrc tomo_2.mrc --picks picks_1.star picks_2.star --radius 80 \
        --test tomo_3.mrc --test-picks picks_3.star --from-scratch --output run

Real tomograms come with picks (.star, .xml, .csv, SHREC's .txt, or a copick project), whose classes are named as the
specimens' are, and with --labels where every voxel's class is known; without, spheres of --radius are the targets.
While it is fine-tuned the network sees real and simulated patches; the share of the real ones may rise (--real-share).

With --test the picks of each network are scored on another tomogram: F1 of each class at the best of all bounds on a
pick's size (the same bound for all classes), and its mean. --from-scratch trains a fresh network on the real
tomograms alone: as many steps as the fine-tuning had, then as many as both trainings together.
Writes a checkpoint for each in OUTPUT, and OUTPUT/scores.csv; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import faket_aug as fa
from faket_aug.formats.particles import ParticleList
from faket_aug.picking import (
    DeepFinderNet,
    RankError,
    TrainingSettings,
    distributed_job,
    f_beta_score,
    fit,
    pick,
    segment,
)
from faket_aug.style.vgg19 import fastest_precision

#: What the weights of a training depend on besides its own settings.
NETWORK = ("widths", "patch_size", "batch_size", "patches_per_tomogram", "seed", "device")
SIMULATION = ("specimens", "style", "microscope", "snr", "weights", "style_layers", "step_size", "filter")
REAL = ("real", "picks", "labels", "names", "radius")
BOTH = ("pretrain_steps", "lr", "real_share")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--specimens", nargs="+", type=Path, required=True, metavar="FOLDER", help="any that `read_specimens` reads")
    add("--style", nargs="+", type=Path, required=True, metavar="PATH", help="unlabelled tilt-series, MRC or folder")
    add(
        "--microscope",
        type=Path,
        metavar="JSON",
        help="of `faket-aug fit --weights`, in place of assumed noise",
    )
    add("--snr", type=float, default=0.1, help="signal power over noise power at 0°, without it")
    add("--weights", default="torchvision", help="of VGG-19: a file, torchvision or random")
    add("--style-layers", nargs="+", type=int, default=[1, 6, 11, 20, 29], metavar="N", help="ReLUs of VGG-19")
    add("--step-size", type=float, help="of the style transfer; by default that of --microscope, or 0.15")
    add("--filter", default="shrec", help="of the simulated tomograms' reconstruction: the real ones' is best")
    add("--real", nargs="+", required=True, metavar="TOMOGRAM", help="real labelled tomograms, MRC")
    add("--picks", nargs="+", required=True, metavar="LIST", help="one for each tomogram, or one for all")
    add("--labels", nargs="+", metavar="MRC", help="one for each tomogram")
    add("--names", nargs="+", help="of the tomograms in the lists; by default the files'")
    add("--radius", type=float, default=80.0, metavar="A", help="of the particles; a pick within half of it is right")
    add("--real-share", nargs="+", type=float, default=[1.0], metavar="S", help="at the start and at the end")
    add("--test", metavar="TOMOGRAM", help="another real tomogram, to score picks on")
    add("--test-picks", metavar="LIST", help="its picks")
    add("--test-name", help="of the tomogram in its list")
    add("--from-scratch", action="store_true", help="train a fresh network on the real tomograms, too")
    add("--output", type=Path, required=True, metavar="FOLDER", help="for checkpoints, logs and scores")
    add("--pretrain-steps", type=int, default=10000, metavar="N")
    add("--finetune-steps", type=int, default=2000, metavar="N")
    add("--lr", type=float, default=1e-4, help="learning rate of Adam")
    add("--finetune-lr", type=float, help="of the fine-tuning; by default the same")
    add("--widths", nargs=3, type=int, default=[32, 48, 64], metavar="N", help="of the network")
    add("--patch-size", type=int, default=56, metavar="N", help="voxels, a multiple of 4")
    add("--batch-size", type=int, default=25, metavar="N", help="patches a step")
    add("--patches-per-tomogram", type=int, default=64, metavar="N", help="cut from each")
    text = "of VGG's and the network's layers; auto: bfloat16 where the device is faster in it"
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help=text)
    add("--seed", type=int, default=0, help="of all chance")
    add("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    args.picks = args.picks * len(args.real) if len(args.picks) == 1 else args.picks
    for option, given in (("--picks", args.picks), ("--labels", args.labels), ("--names", args.names)):
        if given and len(given) != len(args.real):
            parser.error(f"expected {option} for each of {len(args.real)} --real, got {len(given)}")
    if args.precision == "auto":
        args.precision = fastest_precision(torch.device(args.device))
    if bool(args.test) != bool(args.test_picks) or len(args.real_share) > 2:
        parser.error("expected --test and --test-picks together, and one or two numbers of --real-share")
    return args


def simulated_patches(args: argparse.Namespace) -> fa.FakETDataset:
    """Simulate tomograms of the specimens in the style of the microscope."""
    style = [fa.TiltSeries.read(path) for path in args.style]
    features = fa.VGG19Features(args.weights, precision=args.precision)
    angles = style[0].tilt_angles
    settings = {"tilt_angles": angles, "features": features, "filter": args.filter, "device": args.device}
    settings["style"] = fa.StyleBank.build(style, features, style_layers=args.style_layers, device=args.device)
    if args.step_size is not None:
        settings["step_size"] = args.step_size
    if args.microscope is not None:
        simulator = fa.FakETSimulator.from_file(args.microscope, **settings)
    else:
        noise = fa.NoiseModel.assume(style[0].tilts, angles, snr=args.snr)
        simulator = fa.FakETSimulator(noise=noise, **settings)
    return fa.FakETDataset(fa.read_specimens(args.specimens), simulator, **patch_settings(args))


def real_patches(args: argparse.Namespace, class_names: Mapping[int, str]) -> fa.LabelledPatches:
    """Read the real tomograms, with the specimens' class numbers."""
    nothing = [None] * len(args.real)
    rows = zip(args.real, args.picks, args.labels or nothing, args.names or nothing, strict=True)
    tomograms = [
        fa.LabelledTomogram.read(path, picks=picks, labels=labels, name=name, class_names=class_names)
        for path, picks, labels, name in rows
    ]
    spheres = {} if args.labels else {"target": "sphere", "radii": dict.fromkeys(class_names.values(), args.radius)}
    return fa.LabelledPatches(tomograms, **patch_settings(args), **spheres)


def setting_of(args: argparse.Namespace, name: str) -> str:
    """What a training depends on: of the microscope's file its content."""
    if name == "microscope" and args.microscope is not None:
        return str(args.microscope.read_text())
    return str(getattr(args, name))


def patch_settings(args: argparse.Namespace) -> dict[str, int]:
    """What real and simulated patches have in common."""
    shift = min(13, args.patch_size // 4)
    return {
        "patch_size": args.patch_size,
        "patches_per_tomogram": args.patches_per_tomogram,
        "shift": shift,
        "seed": args.seed,
    }


def mixed_patches(args: argparse.Namespace, real: fa.LabelledPatches, fake: fa.FakETDataset) -> fa.MixedPatches:
    """Mix real patches with simulated ones, at a share that goes from its first to its last value."""
    if min(args.real_share) == 1:
        return real
    epoch = (real.tomograms_per_epoch + fake.tomograms_per_epoch) * args.patches_per_tomogram
    last = max(math.ceil(args.finetune_steps * args.batch_size / epoch) - 1, 1)
    share = {0: args.real_share[0], last: args.real_share[-1]}
    return fa.MixedPatches(real, fake, real_share=share, seed=args.seed)


def train(args: argparse.Namespace, network: nn.Module, dataset: fa.PatchDataset, name: str, **how: float) -> nn.Module:
    """Train a copy of a network on a dataset, from its checkpoint where there is one."""
    network = copy.deepcopy(network)
    depends_on = NETWORK + {"pretrained": SIMULATION, "scratch": REAL}.get(name, (*SIMULATION, *REAL, *BOTH))
    fit(
        network,
        DataLoader(dataset, batch_size=args.batch_size),
        args.output / (f"scratch_{how['steps']}" if name == "scratch" else name),
        settings=TrainingSettings(**how, cross_entropy=1.0, precision=args.precision),
        depends_on={key: setting_of(args, key) for key in depends_on},
        device=args.device,
        progress=True,
    )
    return network


def score(args: argparse.Namespace, network: nn.Module, test: fa.LabelledTomogram) -> dict[str, float]:
    """Score the picks of a network by class, at the bound on their size that is best for the mean."""
    labels = segment(network, test.tomogram, precision=args.precision, voxel_size=test.voxel_size)
    # A class that the tomogram has no particle of cannot be scored.
    found = pick(labels, ignore=tuple(set(test.class_names) - set(test.particles.classes.tolist())))
    truth = ParticleList(
        tuple(test.class_names[int(number)] for number in test.particles.classes),
        test.particles.positions,
        test.particles.orientations,
    )
    names = sorted(set(truth.names))
    tables = []
    for least in np.unique([1, *np.quantile(found.sizes, np.linspace(0, 1, 33)).astype(int)] if len(found) else [1]):
        kept = found.larger_than(int(least)).particles(test.class_names)
        chosen = {"voxel_size": test.voxel_size, "beta": 1.0}
        tables.append({name: f_beta_score(kept, truth, radii={name: args.radius}, **chosen) for name in names})
    best = max(tables, key=lambda table: sum(table.values()))
    return {"mean": float(np.mean(list(best.values()))), **best}


def main() -> None:
    """Pretrain, fine-tune, train from scratch, score."""
    args = arguments()
    fa.keep_memory()
    try:
        with distributed_job(args.device) as rank:
            fake = simulated_patches(args)
            first = fake.specimens[0]
            real = real_patches(args, first.class_names)
            torch.manual_seed(args.seed)  # of the networks' first weights; all other chance is the datasets'
            fresh = DeepFinderNet(1 + max(first.class_names), widths=args.widths, voxel_size=first.label_voxel_size)
            few, many, lr = args.finetune_steps, args.pretrain_steps, args.lr
            slower = lr if args.finetune_lr is None else args.finetune_lr
            pretrained = train(args, fresh, fake, "pretrained", steps=many, learning_rate=lr)
            mixed = mixed_patches(args, real, fake)
            finetuned = train(args, pretrained, mixed, "finetuned", steps=few, learning_rate=slower)
            networks = {"pretrained": pretrained, "finetuned": finetuned}
            for steps in (few, many + few) if args.from_scratch else ():
                networks[f"scratch, {steps} steps"] = train(args, fresh, real, "scratch", steps=steps, learning_rate=lr)
        if rank == 0 and args.test:
            names = {"name": args.test_name, "class_names": first.class_names}
            test = fa.LabelledTomogram.read(args.test, picks=args.test_picks, **names)
            write_scores(args.output / "scores.csv", {name: score(args, one, test) for name, one in networks.items()})
    except (ValueError, OSError, fa.SimulationError, RankError) as error:
        sys.exit(f"pretrain_finetune: error: {str(error).splitlines()[-1]}")


def write_scores(path: Path, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Write a row for each network, and print the means."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["network", *next(iter(scores.values()))])
        writer.writerows([name, *(f"{value:.3f}" for value in row.values())] for name, row in scores.items())
    print("\n".join(f"{name}: mean F1 {row['mean']:.3f}" for name, row in scores.items()))


if __name__ == "__main__":
    main()
