"""examples/lightning_module.py and examples/monai_unet.py, where the libraries are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import read_mrc, write_mrc
from tests._helpers import SHAPE, dataset, generator, narrow_state, specimen, style_series, write_shrec

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLES = PROJECT / "examples"
needs_lightning = pytest.mark.skipif(find_spec("lightning") is None, reason="needs the optional package lightning")
needs_monai = pytest.mark.skipif(find_spec("monai") is None, reason="needs the optional package monai")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(2):
        write_shrec(folder / f"model_{number}", specimen(number))
    style = style_series(0)
    write_mrc(folder / "style.mrc", style.tilts, voxel_size=10.0)
    write_tlt(folder / "style.tlt", style.tilt_angles)
    write_mrc(folder / "tomogram.mrc", torch.randn(SHAPE, generator=generator()), voxel_size=10.0)
    torch.save(narrow_state(), folder / "narrow.pth")
    return folder


def _run(command: list[str], folder: Path) -> str:
    # These libraries warn of much that is theirs.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _arguments(data: Path, example: str) -> list[str]:
    specimens = [str(data / f"model_{number}") for number in range(2)]
    files = ["--style", str(data / "style.mrc"), "--weights", str(data / "narrow.pth")]
    return [str(EXAMPLES / example), "--specimens", *specimens, *files, "--style-layers", "1", "6"]


@needs_lightning
@pytest.mark.slow
def test_lightning_example(data: Path, tmp_path: Path) -> None:
    """It trains, keeps a checkpoint, and goes on from it."""
    small = ["--patch-size=8", "--patches-per-tomogram=10", "--batch-size=2", "--accelerator=cpu", "--output=run"]
    _run([*_arguments(data, "lightning_module.py"), *small, "--epochs=1"], tmp_path)
    first = torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)
    assert (first["epoch"], first["global_step"]) == (1, 10)
    _run([*_arguments(data, "lightning_module.py"), *small, "--epochs=3", "--resume=run/last.ckpt"], tmp_path)
    last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)
    assert (last["epoch"], last["global_step"]) == (3, 30)
    assert not torch.equal(last["state_dict"]["network.head.weight"], first["state_dict"]["network.head.weight"])


_PROBE = """
import json, runpy, sys
import lightning, torch
from tests._helpers import dataset

example = runpy.run_path(sys.argv[1], run_name="example")

class Seen(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []
    def training_step(self, batch, number):
        self.seen.append([self.current_epoch, [round(float(value), 4) for value in batch["image"][:, 0, 1, 2, 3]]])
        return (self.weight * batch["image"].mean()).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def train(checkpoint=None, **limits):
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[example["SetEpoch"](), lightning.pytorch.callbacks.ModelCheckpoint("run", save_last=True)], **limits,
    )
    module = Seen()
    data = example["FakETDataModule"](dataset(count=2), batch_size=2, num_workers=1)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module.seen

if __name__ == "__main__":
    found = {"first": train(max_epochs=1), "rest": train("run/last.ckpt", max_epochs=3)}
    json.dump(found, open("found.json", "w"))
"""


@needs_lightning
@pytest.mark.slow
def test_lightning_data_module(tmp_path: Path) -> None:
    """Each epoch has items of its own, those of `set_epoch`; a resumed run goes on with the next."""
    (tmp_path / "probe.py").write_text(textwrap.dedent(_PROBE))
    _run(["probe.py", str(EXAMPLES / "lightning_module.py")], tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    data, expected = dataset(count=2), []
    for epoch in range(3):
        data.set_epoch(epoch)
        values = [round(float(item["image"][0, 1, 2, 3]), 4) for item in data]
        expected += [[epoch, values[start : start + 2]] for start in range(0, 10, 2)]
    assert found == {"first": expected[:5], "rest": expected[5:]}


@needs_monai
@pytest.mark.slow
def test_monai_example(data: Path, tmp_path: Path) -> None:
    """It trains, goes on from its checkpoint, and segments a tomogram."""
    small = ["--patch-size=8", "--batch-size=4", "--output=run", "--tomogram", str(data / "tomogram.mrc")]
    for steps in (2, 3):
        _run([*_arguments(data, "monai_unet.py"), *small, f"--steps={steps}"], tmp_path)
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert len(checkpoint["losses"]) == 3
    labels, voxel_size = read_mrc(tmp_path / "run" / "labels.mrc")
    assert labels.shape == SHAPE
    assert voxel_size == 10.0
    assert set(labels.unique().tolist()) <= {0, 1, 2, 3}
