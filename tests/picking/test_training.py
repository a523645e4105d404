"""The training loop: what it computes, logs and keeps, and that a resumed run ends with the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from faket_aug._checks import FileFormatError
from faket_aug.picking import DeepFinderNet, TrainingSettings, fit, load_weights, segment, tversky_loss
from faket_aug.picking.checkpoints import read_checkpoint
from faket_aug.picking.logs import read_log
from tests._helpers import dataset, generator, loader

# torchdata calls what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
SETTINGS: dict[str, Any] = {"steps": 8, "learning_rate": 0.01, "validate_every": 3, "checkpoint_every": 3}


def _network(classes: int = 4, *, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, classes, 1))


def _weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def _loader(**settings: Any) -> Any:
    return loader(dataset(), batch_size=5, **settings)


class _Listed(Dataset[dict[str, Tensor]]):
    """Patches in memory, without any state."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = torch.randn((1, 8, 8, 8), generator=generator(index))
        return {"image": image, "label": (image[0] > 0.5).long()}


def test_takes_adam_steps_on_tversky_loss(tmp_path: Path) -> None:
    """The weights are those of the same steps written out."""
    network, expected = _network(), _network()
    history = fit(network, _loader(), tmp_path, settings=TrainingSettings(**SETTINGS | {"steps": 3}))
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.01)
    losses = []
    for batch in _loader():
        loss = tversky_loss(expected(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert history.losses == losses
    assert torch.equal(_weights(network), _weights(expected))


def test_learns(tmp_path: Path) -> None:
    """The loss falls on patches whose labels are a threshold of the image."""
    listed = DataLoader(_Listed(), batch_size=6, generator=generator())
    settings = TrainingSettings(steps=60, learning_rate=0.02, cross_entropy=1.0)
    history = fit(_network(2), listed, tmp_path, settings=settings)
    assert history.losses[-1] < 0.35 * history.losses[0]


@pytest.mark.parametrize("kind", ["dataset", "workers", "stateful", "listed"])
@pytest.mark.parametrize("stop", [3, 6])
def test_resume_is_exact(tmp_path: Path, kind: str, stop: int) -> None:
    """A run of 8 steps, and one that was broken off and gone on with, end with the same weights and losses."""
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    made = {
        "dataset": _loader,
        "workers": lambda: _loader(workers=2),
        "stateful": lambda: _loader(cls=torchdata.StatefulDataLoader),
        "listed": lambda: DataLoader(_Listed(), batch_size=2, generator=generator()),
    }[kind]
    whole, parts = _network(), _network()
    settings = TrainingSettings(**SETTINGS)
    expected = fit(whole, made(), tmp_path / "whole", settings=settings, validation=_norm)
    with pytest.raises(KeyboardInterrupt):
        fit(parts, made(), tmp_path / "parts", settings=settings, validation=_norm, on_step=_break_at(stop + 1))
    again = _network(seed=1)
    found = fit(again, made(), tmp_path / "parts", settings=settings, validation=_norm)
    assert found.losses == expected.losses
    assert found.validations == expected.validations
    assert [step for step, _ in found.validations] == [3, 6, 8]
    assert torch.equal(_weights(again), _weights(whole))
    assert (tmp_path / "parts" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()


def _norm(network: nn.Module) -> float:
    assert not network.training
    return float(_weights(network).norm())


def _break_at(step: int) -> Any:
    def stop(number: int, loss: float) -> None:
        if number == step:
            raise KeyboardInterrupt

    return stop


def test_goes_on_to_more_steps(tmp_path: Path) -> None:
    """A finished training goes on when more steps are asked for, and is left alone when not."""
    whole, parts = _network(), _network()
    fit(whole, _loader(), tmp_path / "whole", settings=TrainingSettings(**SETTINGS))
    for steps in (4, 4, 8):
        fit(parts, _loader(), tmp_path / "parts", settings=TrainingSettings(**SETTINGS | {"steps": steps}))
    assert torch.equal(_weights(parts), _weights(whole))


def test_keeps_the_best_and_stops_early(tmp_path: Path) -> None:
    """`best.pt` holds the weights of the best validation; after `patience` worse ones the training ends."""
    values = iter([5.0, 3.0, 4.0, 3.5, 1.0])
    kept: list[Tensor] = []

    def validation(network: nn.Module) -> float:
        kept.append(_weights(network).clone())
        return next(values)

    settings = TrainingSettings(steps=20, validate_every=2, patience=2, learning_rate=0.01)
    history = fit(_network(), _loader(), tmp_path, settings=settings, validation=validation)
    assert history.stopped_early
    assert len(history.losses) == 8
    assert history.best == (4, 3.0)
    best = _network(seed=1)
    load_weights(best, tmp_path / "best.pt")
    assert torch.equal(_weights(best), kept[1])
    assert fit(_network(), _loader(), tmp_path, settings=settings, validation=validation).losses == history.losses


def test_best_weights_belong_to_the_checkpoint(tmp_path: Path) -> None:
    """`best.pt` of a lost stretch is replaced by the checkpoint's own; a training that begins anew removes both."""
    settings = TrainingSettings(**SETTINGS | {"steps": 4, "validate_every": 2})
    fit(_network(), _loader(), tmp_path, settings=settings, validation=_norm)
    kept = _network(seed=1)
    load_weights(kept, tmp_path / "best.pt")
    (tmp_path / "best.pt").write_bytes(b"of a later step that was lost")
    fit(_network(), _loader(), tmp_path, settings=settings, validation=_norm)
    again = _network(seed=1)
    load_weights(again, tmp_path / "best.pt")
    assert torch.equal(_weights(kept), _weights(again))
    with pytest.raises(KeyboardInterrupt):
        fit(_network(), _loader(), tmp_path, settings=settings, resume=False, on_step=_break_at(1))
    assert not (tmp_path / "best.pt").exists()
    assert len(read_checkpoint(tmp_path)["losses"]) == 1


def test_validation_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a finite number from `validation`, got nan at step 3"):
        fit(_network(), _loader(), tmp_path, settings=TrainingSettings(**SETTINGS), validation=lambda _: float("nan"))


def test_batches_without_labels(tmp_path: Path) -> None:
    """Items whose targets lack the labels are told, with what to do."""
    data = dataset(targets=("particles",), patch_size=16)
    with pytest.raises(
        ValueError, match='expected batches with `label`, got .*positions.*; set `targets` with "labels"'
    ):
        fit(_network(), loader(data, batch_size=4), tmp_path, settings=TrainingSettings(steps=1))


def test_loader_that_runs_dry(tmp_path: Path) -> None:
    """A loader without batches is an error, at the start and later, not an endless loop."""
    empty = loader(dataset(), batch_size=100, drop_last=True)
    with pytest.raises(ValueError, match="expected batches to train on, got a loader without any"):
        fit(_network(), empty, tmp_path, settings=TrainingSettings(steps=2))


def test_settings_that_no_file_can_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected `depends_on` of JSON types"):
        fit(_network(), _loader(), tmp_path, settings=TrainingSettings(steps=1), depends_on={"folder": tmp_path})


def test_voxel_size_stays_the_networks_own(tmp_path: Path) -> None:
    """Fine-tuning at another voxel size warns, and keeps the new one."""
    with torch.random.fork_rng():
        coarse, fine = (DeepFinderNet(4, widths=(2, 2, 2), voxel_size=size) for size in (10.0, 13.5))
    fit(coarse, _loader(), tmp_path, settings=TrainingSettings(steps=1))
    with pytest.warns(UserWarning, match="trained on the network.s voxels of 13.5 Å, got 10 Å"):
        load_weights(fine, tmp_path / "checkpoint.pt")
    assert fine.voxel_size == 13.5


def test_the_datasets_voxel_size_is_kept(tmp_path: Path) -> None:
    """A network that knows no voxel size is told that of its training, with the weights; one for another is warned."""
    fit(_network(), _loader(), tmp_path, settings=TrainingSettings(steps=1))
    loaded, image = _network(seed=1), torch.randn((8, 8, 8), generator=generator())
    load_weights(loaded, tmp_path / "checkpoint.pt")
    segment(loaded, image, tile_size=8, overlap=0, voxel_size=10.1)
    with pytest.warns(UserWarning, match="trained on voxels of 10 Å, the tomogram has voxels of 13.5 Å"):
        segment(loaded, image, tile_size=8, overlap=0, voxel_size=13.5)
    with torch.random.fork_rng():
        fine = DeepFinderNet(4, widths=(2, 2, 2), voxel_size=13.5)
    with pytest.warns(UserWarning, match="the network is for voxels of 13.5 Å, the patches have voxels of 10 Å"):
        fit(fine, _loader(), tmp_path / "other", settings=TrainingSettings(steps=1))
    # What is no dataset of this package says no voxel size: nothing is compared.
    fit(_network(), loader(_Listed(), batch_size=2), tmp_path / "plain", settings=TrainingSettings(steps=1))
    unknown = _network(seed=1)
    load_weights(unknown, tmp_path / "plain" / "checkpoint.pt")
    segment(unknown, image, tile_size=8, overlap=0, voxel_size=13.5)


@pytest.mark.parametrize(
    "text", ["step\n1\n", "step,loss,validation\n1,x,\n", "step,loss,validation\n1,2\n", "", "1\0"]
)
def test_log_that_is_none(tmp_path: Path, text: str) -> None:
    """Another file in the place of the log is told with its name; a missing one is empty."""
    path = tmp_path / "log.csv"
    assert read_log(path) == {}
    path.write_text(text)
    with pytest.raises(
        FileFormatError, match=r"log.csv: expected the log of a training with the columns step,loss,val"
    ):
        read_log(path)
    path.write_bytes(b"\xff")
    with pytest.raises(FileFormatError, match=r"log.csv: expected the log of a training as text in UTF-8"):
        read_log(path)


def test_log(tmp_path: Path) -> None:
    """The log holds every loss and validation."""
    history = fit(_network(), _loader(), tmp_path, settings=TrainingSettings(**SETTINGS), validation=_norm)
    log = read_log(tmp_path / "log.csv")
    assert [log[step]["loss"] for step in range(1, 9)] == pytest.approx(history.losses, rel=1e-8)
    assert {step: row["validation"] for step, row in log.items() if "validation" in row} == pytest.approx(
        dict(history.validations)
    )


@pytest.mark.touches_global_rng  # rich draws a bar's identity from Python's generator
def test_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar on standard error, when it is asked for; otherwise nothing is printed."""
    fit(_network(), _loader(), tmp_path, settings=TrainingSettings(steps=1))
    assert capsys.readouterr() == ("", "")
    fit(_network(), _loader(), tmp_path, settings=TrainingSettings(steps=2), progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2/2" in printed.err


def test_tensorboard_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "faket_aug\[tensorboard\]", or set `log="csv"`'):
        fit(_network(), _loader(), tmp_path, settings=TrainingSettings(steps=1), log="tensorboard")


def test_tensorboard(tmp_path: Path) -> None:
    """Losses and validations are events of TensorBoard's."""
    pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = fit(
        _network(), _loader(), tmp_path, settings=TrainingSettings(**SETTINGS), validation=_norm, log="tensorboard"
    )
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(history.losses)
    assert [event.step for event in events.Scalars("validation")] == [3, 6, 8]


def test_no_log(tmp_path: Path) -> None:
    fit(_network(), _loader(), tmp_path, settings=TrainingSettings(**SETTINGS), log="none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_bfloat16(tmp_path: Path) -> None:
    """Mixed precision keeps the weights in float32 and comes close to float32's losses."""
    network = _network()
    low = fit(network, _loader(), tmp_path / "low", settings=TrainingSettings(**SETTINGS, precision="bfloat16"))
    full = fit(_network(), _loader(), tmp_path / "full", settings=TrainingSettings(**SETTINGS))
    assert _weights(network).dtype == torch.float32
    assert low.losses == pytest.approx(full.losses, rel=0.02)
    assert low.losses != full.losses


def test_the_precision_that_is_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that leaves it open goes on where the next processor is another one, also from a given precision."""

    def trained(steps: int, precision: str, folder: str, *, fast: bool) -> list[float]:
        monkeypatch.setattr("faket_aug.style.vgg19.cpu_has_bfloat16", lambda: fast)
        settings = TrainingSettings(**SETTINGS | {"steps": steps}, precision=precision)
        return fit(_network(), _loader(), tmp_path / folder, settings=settings).losses

    full, low = trained(4, "float32", "full", fast=True), trained(4, "bfloat16", "low", fast=False)
    assert trained(4, "auto", "slow", fast=False) == full
    assert trained(4, "auto", "fast", fast=True) == low != full
    assert trained(6, "auto", "slow", fast=True)[:4] == full
    assert trained(6, "auto", "low", fast=True)[:4] == low
    with pytest.raises(ValueError, match=r"precision \(was auto, is float32\)"):
        trained(6, "float32", "fast", fast=False)


def test_other_settings_are_named(tmp_path: Path) -> None:
    fit(_network(), _loader(), tmp_path, settings=TrainingSettings(**SETTINGS), depends_on={"specimens": ["a"]})
    other = TrainingSettings(**SETTINGS | {"learning_rate": 0.5})
    with pytest.raises(ValueError, match=r"learning_rate \(was 0.01, is 0.5\), specimens \(was \['a'\], is \['b'\]\)"):
        fit(_network(), _loader(), tmp_path, settings=other, depends_on={"specimens": ["b"]})
    history = fit(_network(), _loader(), tmp_path, settings=other, resume=False)
    assert len(history.losses) == 8


def test_bad_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a checkpoint, found none at"):
        fit(_network(), _loader(), tmp_path, settings=TrainingSettings(**SETTINGS), resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"checkpoint.pt: expected a checkpoint, got another or a damaged file"):
        fit(_network(), _loader(), tmp_path, settings=TrainingSettings(**SETTINGS))


def test_other_classes_are_named(tmp_path: Path) -> None:
    """A checkpoint of another number of classes is refused with both numbers, another network's with its type."""
    with torch.random.fork_rng():
        fit(DeepFinderNet(4), _loader(), tmp_path, settings=TrainingSettings(steps=1))
        seven = DeepFinderNet(7)
    with pytest.raises(
        ValueError, match="weights of a network with 7 classes, got 4; make the network with `classes=4`"
    ):
        load_weights(seven, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="weights of a network with 7 classes, got 4"):
        fit(seven, _loader(), tmp_path, settings=TrainingSettings(steps=1))
    with pytest.raises(ValueError, match="expected weights of a Sequential of these widths, got another network's"):
        load_weights(_network(), tmp_path / "checkpoint.pt")


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`steps` to be a whole number of 1 or more"):
        TrainingSettings(steps=0)
    with pytest.raises(ValueError, match="'float32', 'bfloat16', got 'float16'"):
        TrainingSettings(steps=1, precision="float16")
    with pytest.raises(ValueError, match="'csv', 'tensorboard', 'none', got 'wandb'"):
        fit(_network(), _loader(), tmp_path, settings=TrainingSettings(steps=1), log="wandb")


def test_losses_that_are_not_finite(tmp_path: Path) -> None:
    network = _network()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="a finite loss, got nan at step 1; set `learning_rate` lower"):
        fit(network, _loader(), tmp_path, settings=TrainingSettings(steps=2))
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.nightly
def test_killed_run_ends_the_same(tmp_path: Path) -> None:
    """A run that is killed with SIGKILL and started again ends with the weights of an uninterrupted one."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys, torch
            from pathlib import Path
            from torch.utils.data import DataLoader
            from faket_aug.picking import TrainingSettings, fit
            from tests._helpers import dataset
            from tests.picking.test_training import _network

            if __name__ == "__main__":
                torch.set_num_threads(1)
                output, kill_at = Path(sys.argv[1]), int(sys.argv[2])
                def on_step(step, loss):
                    if step == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                network = _network()
                data = DataLoader(dataset(), batch_size=2, num_workers=1)
                fit(network, data, output, settings=TrainingSettings(steps=12, checkpoint_every=2), on_step=on_step)
                torch.save(network.state_dict(), output / "final.pt")
            """
        )
    )
    project = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": project, "PYTHONDONTWRITEBYTECODE": "1"}

    def run(output: str, kill_at: int) -> int:
        command = [sys.executable, str(script), str(tmp_path / output), str(kill_at)]
        return subprocess.run(command, env=environment, check=False, timeout=120).returncode

    assert run("whole", 0) == 0
    assert [run("parts", kill_at) for kill_at in (3, 8, 0)] == [-9, -9, 0]
    whole, parts = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
