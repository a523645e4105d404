"""Train with Lightning: a LightningDataModule over a FakETDataset, and the network as a LightningModule.

    pip install "faket_aug[lightning]"
    python examples/lightning_module.py --specimens model_0 model_1 --style my_tilts.mrc --output run --devices 2

Each device simulates tomograms of its own. There is a checkpoint at the end of each epoch, and `--resume
run/last.ckpt` goes on with the next one; to go on within an epoch use `faket_aug.picking.fit`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader

import faket_aug as fa
from faket_aug.picking import DeepFinderNet, tversky_loss


class FakETDataModule(lightning.LightningDataModule):
    """Patches of simulated tomograms; give the trainer `SetEpoch()`, too."""

    def __init__(self, dataset: fa.FakETDataset, *, batch_size: int = 25, num_workers: int = 0) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return the loader of this device's share."""
        assert self.trainer is not None
        # The first pass begins before any hook for epochs, and after a resume before `current_epoch` is right.
        self.dataset.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        workers = {"multiprocessing_context": "spawn", "persistent_workers": True} if self.num_workers else {}
        return DataLoader(self.dataset, batch_size=self.batch_size, num_workers=self.num_workers, **workers)


class SetEpoch(lightning.Callback):
    """Bring new noise and new patches in each epoch: Lightning tells samplers the epoch, but not datasets."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Set the epoch of a pass that is to begin."""
        if trainer.datamodule.dataset.epoch != trainer.current_epoch:
            trainer.datamodule.dataset.set_epoch(trainer.current_epoch)


class Picker(lightning.LightningModule):
    """DeepFinder's network with its loss."""

    def __init__(self, classes: int, *, learning_rate: float = 1e-4) -> None:
        super().__init__()
        self.network, self.learning_rate = DeepFinderNet(classes), learning_rate

    def training_step(self, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        """Compute the loss of a batch."""
        loss = tversky_loss(self.network(batch["image"]), batch["label"])
        self.log("loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Take Adam, as published."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--specimens", nargs="+", type=Path, required=True, metavar="FOLDER", help="any that `read_specimens` reads")
    add("--style", type=Path, required=True, metavar="PATH", help="an unlabelled tilt-series")
    add("--weights", default="torchvision", help="of VGG-19: a file, torchvision or random")
    add("--style-layers", nargs="+", type=int, default=[1, 6, 11, 20, 29], metavar="N", help="ReLUs of VGG-19")
    add("--output", type=Path, required=True, metavar="FOLDER", help="for checkpoints")
    add("--epochs", type=int, default=70, metavar="N")
    add("--patch-size", type=int, default=56, metavar="N", help="voxels, a multiple of 4")
    add("--patches-per-tomogram", type=int, default=64, metavar="N")
    add("--batch-size", type=int, default=16, metavar="N", help="on each device")
    add("--workers", type=int, default=0, metavar="N", help="processes that simulate, for each device")
    add("--devices", type=int, default=1, metavar="N")
    add("--accelerator", default="auto", help="cpu, gpu or auto")
    add("--resume", type=Path, metavar="FILE", help="a checkpoint")
    args = parser.parse_args()
    specimens, style = fa.read_specimens(args.specimens), fa.TiltSeries.read(args.style)
    features = fa.VGG19Features(args.weights)
    simulator = fa.FakETSimulator(
        tilt_angles=style.tilt_angles,
        noise=fa.NoiseModel.assume(style.tilts, style.tilt_angles, snr=0.1),
        style=fa.StyleBank.build(style, features, style_layers=args.style_layers),
        features=features,
    )
    patches = {"patch_size": args.patch_size, "patches_per_tomogram": args.patches_per_tomogram}
    dataset = fa.FakETDataset(specimens, simulator, shift=args.patch_size // 4, **patches)
    lightning.seed_everything(0)
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(args.output, save_last=True, save_top_k=0)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        accelerator=args.accelerator,
        devices=args.devices,
        callbacks=[SetEpoch(), checkpoints],
        logger=False,
    )
    data = FakETDataModule(dataset, batch_size=args.batch_size, num_workers=args.workers)
    trainer.fit(Picker(1 + max(specimens[0].class_names)), datamodule=data, ckpt_path=args.resume)


if __name__ == "__main__":
    main()
