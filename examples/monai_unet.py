"""Train MONAI's U-Net on simulated tomograms, and segment a whole tomogram with MONAI's sliding window.

    pip install "faket_aug[monai]"
    python examples/monai_unet.py --specimens model_0 model_1 --style my_tilts.mrc --tomogram tomo.mrc --output run

`fit` trains any network from (n, 1, z, y, x) to logits (n, class, z, y, x), under `torchrun`, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from torch.utils.data import DataLoader

import faket_aug as fa
from faket_aug.data.patches import normalize
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.picking import TrainingSettings, distributed_job, fit


def main() -> None:
    """Train, then segment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--specimens", nargs="+", type=Path, required=True, metavar="FOLDER", help="any that `read_specimens` reads")
    add("--style", type=Path, required=True, metavar="PATH", help="an unlabelled tilt-series")
    add("--weights", default="torchvision", help="of VGG-19: a file, torchvision or random")
    add("--style-layers", nargs="+", type=int, default=[1, 6, 11, 20, 29], metavar="N", help="ReLUs of VGG-19")
    add("--tomogram", type=Path, metavar="MRC", help="to be segmented after the training, into OUTPUT/labels.mrc")
    add("--output", type=Path, required=True, metavar="FOLDER", help="for checkpoint, log and labels")
    add("--steps", type=int, default=10000, metavar="N")
    add("--patch-size", type=int, default=56, metavar="N", help="voxels, a multiple of 8")
    add("--batch-size", type=int, default=16, metavar="N")
    add("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    with distributed_job(args.device) as rank:
        specimens, style = fa.read_specimens(args.specimens), fa.TiltSeries.read(args.style)
        features = fa.VGG19Features(args.weights)
        simulator = fa.FakETSimulator(
            tilt_angles=style.tilt_angles,
            noise=fa.NoiseModel.assume(style.tilts, style.tilt_angles, snr=0.1),
            style=fa.StyleBank.build(style, features, style_layers=args.style_layers, device=args.device),
            features=features,
            device=args.device,
        )
        dataset = fa.FakETDataset(specimens, simulator, patch_size=args.patch_size, shift=args.patch_size // 4)
        torch.manual_seed(0)  # of the network's first weights
        network = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1 + max(specimens[0].class_names),
            channels=(24, 48, 96, 192),
            strides=(2, 2, 2),
            num_res_units=2,
            norm="batch",
        )
        loader = DataLoader(dataset, batch_size=args.batch_size)
        settings = TrainingSettings(steps=args.steps, learning_rate=1e-3, cross_entropy=1.0)
        own = {"depends_on": simulator.settings(), "device": args.device}
        fit(network, loader, args.output, settings=settings, progress=True, **own)
    if args.tomogram and rank == 0:
        tomogram, voxel_size = read_mrc(args.tomogram)
        image, window = normalize(tomogram.float())[None, None], (2 * args.patch_size,) * 3
        with torch.inference_mode():
            network.eval()
            logits = sliding_window_inference(image, window, 1, network, sw_device=args.device, device="cpu")
        write_mrc(args.output / "labels.mrc", logits.argmax(dim=1)[0].to(torch.uint8), voxel_size=voxel_size or 1.0)


if __name__ == "__main__":
    main()
