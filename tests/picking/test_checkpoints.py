"""Checkpoints notice damage, go back to the one before, and tell how patches were prepared."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from faket_aug.picking import DeepFinderNet, Preparation, TrainingSettings, fit, load_weights
from faket_aug.picking.checkpoints import (
    BEST,
    CHECKPOINT,
    PREVIOUS,
    read_checkpoint,
    read_state,
    write_checkpoint,
    write_state,
)
from tests._helpers import dataset, generator


def network() -> DeepFinderNet:
    """A small network, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DeepFinderNet(4, widths=(2, 2, 2))


def trained(folder: Path, steps: int, **settings: Any) -> nn.Module:
    """Train for some steps, with a checkpoint at each."""
    net = network()
    data = DataLoader(dataset(), batch_size=2, generator=generator())
    fit(net, data, folder, settings=TrainingSettings(steps=steps, checkpoint_every=1, validate_every=1), **settings)
    return net


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_are_noticed(tmp_path: Path, seed: int) -> None:
    """A flipped bit gives the same weights or an error that names the file, never other weights."""
    path = tmp_path / "weights.pt"
    state = {"model": {"weight": torch.arange(5000.0)}}
    write_checkpoint(tmp_path, state)
    content = bytearray((tmp_path / CHECKPOINT).read_bytes())
    place = int(torch.randint(len(content), (), generator=generator(seed)))
    content[place] ^= 1 << (seed % 8)
    path.write_bytes(content)
    try:
        found = read_state(path)
    except ValueError:
        with pytest.raises(ValueError, match=r"weights\.pt: expected a checkpoint"):
            read_state(path)
    else:
        assert torch.equal(found["model"]["weight"], state["model"]["weight"])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    """A training goes on from the checkpoint before the damaged one, says so, and ends with the same weights."""
    whole = trained(tmp_path / "whole", 6)
    trained(tmp_path / "parts", 4)
    path = tmp_path / "parts" / CHECKPOINT
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + len(largest.filename) + 200] ^= 4
    path.write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"checkpoint\.pt: expected a checkpoint, .*goes on from checkpoint\.previous\.pt"
    ):
        again = trained(tmp_path / "parts", 6)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_checkpoint_before_is_kept(tmp_path: Path) -> None:
    """There are two checkpoints, and reading takes the newer one; without it, the older one."""
    for step in range(3):
        write_checkpoint(tmp_path, {"step": step})
    assert read_checkpoint(tmp_path)["step"] == 2
    assert read_state(tmp_path / PREVIOUS)["step"] == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == [PREVIOUS, CHECKPOINT]
    (tmp_path / CHECKPOINT).unlink()
    with pytest.warns(
        UserWarning, match=r"found none at .*checkpoint\.pt; the training goes on from checkpoint\.previous"
    ):
        assert read_checkpoint(tmp_path)["step"] == 1
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    (tmp_path / PREVIOUS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"checkpoint\.pt: expected a checkpoint"):
        read_checkpoint(tmp_path)
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint, found none at .*checkpoint\.pt"):
        read_checkpoint(tmp_path)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    """NaN among the weights is refused by name."""
    net = trained(tmp_path, 1)
    state = read_state(tmp_path / CHECKPOINT)
    state["model"]["head.bias"][1] = float("nan")
    write_checkpoint(tmp_path, state)
    with pytest.raises(ValueError, match=r"expected finite weights, got NaN or infinite ones in head\.bias"):
        load_weights(net, tmp_path / CHECKPOINT)


def test_preparation_goes_with_the_weights(tmp_path: Path) -> None:
    """Patch size, normalisation and extremes are kept in both files, and reach the network that loads them."""
    net = trained(tmp_path, 3, validation=lambda _: 1.0)
    expected = net.__dict__["preparation"]
    assert expected.patch_size == (8, 8, 8)
    assert expected.normalized
    assert expected.extremes[0] < -1 < 1 < expected.extremes[1]
    for name in (CHECKPOINT, BEST):
        other = network()
        load_weights(other, tmp_path / name)
        found = other.__dict__["preparation"]
        assert isinstance(found, Preparation)
        assert found.patch_size == expected.patch_size
    load_weights(other, tmp_path / CHECKPOINT)
    assert other.__dict__["preparation"] == expected


def test_checkpoints_of_version_0_1_0(tmp_path: Path) -> None:
    """Files without a preparation are read; then it is that of published patches."""
    trained(tmp_path, 1)
    state = read_state(tmp_path / CHECKPOINT)
    del state["preparation"]
    torch.save(state | {"format": 3}, tmp_path / "older.pt")
    other = network()
    load_weights(other, tmp_path / "older.pt")
    assert "preparation" not in other.__dict__


def test_names_of_a_compiled_network(tmp_path: Path) -> None:
    """Weights of a network that `torch.compile` wrapped have the names of the network itself."""
    net = trained(tmp_path, 1)
    state = read_state(tmp_path / CHECKPOINT)
    state["model"] = {f"_orig_mod.{name}": value + 1 for name, value in state["model"].items()}
    write_checkpoint(tmp_path, state)
    before = net.state_dict()["head.bias"].clone()
    load_weights(net, tmp_path / CHECKPOINT)
    assert torch.equal(net.state_dict()["head.bias"], before + 1)


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["csv", "none"])
def test_a_full_disk(tmp_path: Path, what: str) -> None:
    """One sentence says what to do; the last whole checkpoint stays, and the training goes on from it exactly."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole, folder = trained(tmp_path / "whole", 6, log=what), tmp_path / "stopped"

    def fill(step: int, _: float) -> None:
        if step == 4:
            # What the system says of a file that grows beyond this is as of a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))

    try:
        with pytest.raises(OSError, match=r"^expected to write in .*stopped, got '.*'; free some space and") as caught:
            trained(folder, 6, log=what, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "start the training again: it goes on from its last whole checkpoint" in str(caught.value)
    assert len(read_checkpoint(folder)["losses"]) == 3
    assert not list(folder.glob(".*"))
    again = trained(folder, 6, log=what)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    if what == "csv":
        assert (folder / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before the first step."""

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("faket_aug.formats._atomic.tempfile.TemporaryFile", read_only)
    steps: list[int] = []
    message = r"^expected to write in .*, got 'Read-only file system'; set `output` to a folder that you may write in$"
    with pytest.raises(OSError, match=message):
        trained(tmp_path, 2, on_step=lambda step, _: steps.append(step))
    assert steps == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("part", "name"), [("", "_orig_mod.head.bias"), ("head", "head._orig_mod.bias")])
def test_compiled_and_plain_networks_share_weights(tmp_path: Path, part: str, name: str) -> None:
    """A compiled network, or one of which a part is compiled, takes a plain one's weights, and gives them back."""
    plain, compiled = network(), network()
    if part:
        setattr(compiled, part, torch.compile(getattr(compiled, part)))
    made = compiled if part else torch.compile(compiled)
    assert name in made.state_dict()
    with torch.no_grad():
        made.state_dict()[name].add_(1.0)
    write_state(tmp_path / "compiled.pt", {"model": made.state_dict()})
    wanted = made.state_dict()[name].clone()
    load_weights(plain, tmp_path / "compiled.pt")
    assert torch.equal(plain.state_dict()["head.bias"], wanted)
    with torch.no_grad():
        plain.state_dict()["head.bias"].add_(1.0)
    write_state(tmp_path / "plain.pt", {"model": plain.state_dict()})
    load_weights(made, tmp_path / "plain.pt")
    assert torch.equal(made.state_dict()[name], wanted + 1)
