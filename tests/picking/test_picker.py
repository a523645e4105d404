"""A run's files say what its network is for, and give it back ready to use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from faket_aug._checks import FileFormatError
from faket_aug.picking import (
    DeepFinderNet,
    PickerDescription,
    TrainingSettings,
    fit,
    load_picker,
    segment,
    set_thresholds,
)
from faket_aug.picking.checkpoints import BEST, CHECKPOINT, read_state
from tests._helpers import VOXEL_SIZE, dataset, generator

DESCRIPTION = PickerDescription(
    class_names={1: "4v4r", 3: "1bxn"},
    widths=(2, 3, 4),
    voxel_size=VOXEL_SIZE,
    filter="hann",
    bin=2,
    ctf_correction="phase-flip",
    radii={1: 120.5, 3: 60.0},
    target_radius=0.6,
    distractors=("4cr2",),
)


def trained(folder: Path, steps: int = 2, **settings: Any) -> DeepFinderNet:
    """A small network that was trained for some steps, each with a validation that falls."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DeepFinderNet(4, widths=(2, 3, 4), voxel_size=VOXEL_SIZE)
    data = DataLoader(dataset(), batch_size=2, generator=generator())
    fit(
        network,
        data,
        folder,
        settings=TrainingSettings(steps=steps, checkpoint_every=1, validate_every=1),
        **{"describes": DESCRIPTION} | settings,
    )
    return network


def _falling() -> Any:
    values = iter(range(9, 0, -1))
    return lambda _: float(next(values))


def test_description_comes_back() -> None:
    """A description survives JSON, with numbers as keys."""
    assert PickerDescription.from_dict(DESCRIPTION.to_dict()) == DESCRIPTION
    assert DESCRIPTION.to_dict()["radii"] == {"1": 120.5, "3": 60.0}
    assert DESCRIPTION.classes == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": {}}, "expected `class_names` of one class or more"),
        ({"class_names": {0: "ice"}, "radii": {0: 1.0}}, "expected `class_names: class` to be a whole number of 1"),
        ({"class_names": {1: "a", 3: "a"}}, "each with its name"),
        ({"radii": {1: 3.0}}, r"expected `radii` of classes \[1, 3\], got classes \[1\]"),
        ({"radii": {1: 3.0, 3: 0.0}}, r"expected `radii\[3\]` to be more than 0"),
        ({"thresholds": {2: 0.5}}, r"expected `thresholds` of classes \[1, 3\], got classes \[2\]"),
        ({"thresholds": {1: 1.5}}, r"expected `thresholds\[1\]` to lie in \[0, 1\]"),
        ({"widths": (4, 8)}, "expected `widths` of three levels"),
        ({"voxel_size": 0.0}, "expected `voxel_size` to be more than 0"),
        ({"filter": "wrong"}, "expected `filter` to be one of 'shrec'"),
        ({"channels": ("raw", "cooked")}, "expected `channels` to be one of 'raw'"),
        ({"channels": ("raw", "raw")}, "expected each flavour once in `channels`, got raw, raw"),
        ({"bin": 0}, "expected `bin` to be a whole number of 1 or more"),
    ],
)
def test_impossible_descriptions(changes: dict[str, Any], message: str) -> None:
    """What no picker is like is refused, also in a file, whose name is told."""
    with pytest.raises(ValueError, match=message):
        replace(DESCRIPTION, **changes)
    content = DESCRIPTION.to_dict() | changes
    with pytest.raises(FileFormatError, match=r"^run/best\.pt: expected the description of a picker, got another"):
        PickerDescription.from_dict(content, source="run/best.pt")


@pytest.mark.parametrize("content", [None, [], {"class_names": {"1": "a"}}, DESCRIPTION.to_dict() | {"more": 1}])
def test_other_content(content: Any) -> None:
    """Missing and unknown entries are refused."""
    with pytest.raises(FileFormatError, match=r"^there: expected a picker with bin, class_names, "):
        PickerDescription.from_dict(content, source="there")


def test_a_run_gives_its_network(tmp_path: Path) -> None:
    """The network of a run labels voxels as the one that was trained, and knows how its patches were prepared."""
    network = trained(tmp_path, validation=_falling())
    picker = load_picker(tmp_path)
    assert picker.path == tmp_path / BEST
    assert picker.description == DESCRIPTION
    assert not picker.network.training
    assert picker.network.voxel_size == VOXEL_SIZE
    assert picker.network.__dict__["preparation"] == network.__dict__["preparation"]
    volume = torch.randn(8, 12, 16, generator=generator(3))
    assert torch.equal(segment(picker.network, volume), segment(network, volume))


def test_a_network_of_flavours(tmp_path: Path) -> None:
    """A run that was trained on flavours gives a network of as many channels, which says which they are."""
    own = replace(DESCRIPTION, channels=("raw", "low-pass"))
    assert PickerDescription.from_dict(own.to_dict()) == own
    assert "channels" not in DESCRIPTION.to_dict(), "descriptions of one channel are as they were"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DeepFinderNet(4, in_channels=2, widths=(2, 3, 4), voxel_size=VOXEL_SIZE)
    data = DataLoader(dataset(flavours=("raw", "low-pass")), batch_size=2, generator=generator())
    fit(network, data, tmp_path, settings=TrainingSettings(steps=1), describes=own)
    picker = load_picker(tmp_path)
    assert picker.description.channels == ("raw", "low-pass")
    assert picker.network.in_channels == 2
    assert picker.network.__dict__["preparation"].normalized
    volume = torch.randn(2, 8, 12, 16, generator=generator(3))
    assert torch.equal(segment(picker.network, volume), segment(network, volume))


def test_the_best_weights_are_taken(tmp_path: Path) -> None:
    """`best.pt` goes before `checkpoint.pt`; each can be named itself."""
    trained(tmp_path, validation=lambda _: 1.0)
    best, last = load_picker(tmp_path), load_picker(tmp_path / CHECKPOINT)
    assert read_state(tmp_path / BEST)["step"] == 1
    assert not torch.equal(best.network.down_1[0].weight, last.network.down_1[0].weight)
    (tmp_path / BEST).unlink()
    assert load_picker(tmp_path).path == tmp_path / CHECKPOINT


def test_loading_draws_nothing(tmp_path: Path) -> None:
    """The global generator stays as it is."""
    trained(tmp_path, validation=None)
    before = torch.get_rng_state()
    load_picker(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_thresholds_are_written_into_both_files(tmp_path: Path) -> None:
    """Thresholds come to the description of both files; weights and training stay."""
    trained(tmp_path, validation=_falling())
    before = read_state(tmp_path / CHECKPOINT)
    assert set_thresholds(tmp_path, {3: 0.25}).thresholds == {3: 0.25}
    for name in (BEST, CHECKPOINT):
        assert load_picker(tmp_path / name).description == replace(DESCRIPTION, thresholds={3: 0.25})
    after = read_state(tmp_path / CHECKPOINT)
    assert after["losses"] == before["losses"]
    assert all(torch.equal(after["model"][name], one) for name, one in before["model"].items())
    with pytest.raises(ValueError, match="expected `thresholds` of classes"):
        set_thresholds(tmp_path, {2: 0.25})


def test_a_resumed_training_keeps_the_description(tmp_path: Path) -> None:
    """A training that goes on without a description keeps the one of its checkpoint."""
    trained(tmp_path, validation=None)
    trained(tmp_path, 3, validation=None, describes=None)
    assert load_picker(tmp_path).description == DESCRIPTION


def test_runs_without_a_picker(tmp_path: Path) -> None:
    """What is no run, or does not say what it is for, is told by name."""
    with pytest.raises(FileNotFoundError, match=r"gone: expected the folder of a training .* found nothing there"):
        load_picker(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"best\.pt or checkpoint\.pt, .* found neither in it"):
        load_picker(tmp_path)
    trained(tmp_path, validation=None, describes=None)
    with pytest.raises(FileFormatError, match=r"checkpoint\.pt: expected weights that say what their network is for"):
        load_picker(tmp_path)
    other = tmp_path / "notes.pt"
    other.write_text("nothing")
    with pytest.raises(ValueError, match=r"notes\.pt: expected a checkpoint"):
        load_picker(other)
