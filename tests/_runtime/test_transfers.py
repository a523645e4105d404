"""Copies between devices: several tensors travel as one, and arrive as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from faket_aug._runtime import transfers
from faket_aug._runtime.transfers import moved, sent


def _several() -> dict[str, Tensor]:
    """Tensors of odd sizes, of many dtypes, one turned round and one without axes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "label": torch.randint(0, 9, (3, 5, 7), generator=generator).to(torch.uint8),
        "image": torch.randn(1, 3, 5, 7, generator=generator).flip(3),
        "instances": torch.randint(0, 2**40, (5, 3), generator=generator).T,
        "half": torch.randn(3, generator=generator).half(),
        "seen": torch.tensor([True, False, True]),
        "number": torch.tensor(2.5, dtype=torch.float64),
        "nothing": torch.zeros(0, 3),
    }


def test_tensors_that_travel_together_arrive_as_they_were() -> None:
    """Values, dtypes and shapes stay; none shares bytes with another."""
    tensors = _several()
    found = transfers._together(tensors, torch.device("cpu"))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    found["label"].fill_(1)
    assert torch.equal(found["image"], tensors["image"])
    assert torch.equal(found["number"], tensors["number"])


def test_what_is_there_already_is_not_copied() -> None:
    """Tensors that lie on the device are handed back themselves."""
    tensors = _several()
    found = moved(tensors, "cpu")
    assert all(found[name] is tensor for name, tensor in tensors.items())
    assert sent(tensors["image"], "cpu") is tensors["image"]


@pytest.mark.gpu
def test_one_copy_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a GPU several tensors come by one copy; those that are on the host already stay."""
    copies: list[torch.device] = []

    def counted(tensor: Tensor, device: torch.device) -> Tensor:
        copies.append(tensor.device)
        return sent(tensor, device)

    monkeypatch.setattr(transfers, "sent", counted)
    tensors = _several()
    mixed = {name: tensor if name in ("half", "seen") else tensor.cuda() for name, tensor in tensors.items()}
    for place in ("cpu", "cuda:0"):
        copies.clear()
        found = moved(mixed, place)
        assert len(copies) == 1
        assert list(found) == list(tensors)
        for name, tensor in tensors.items():
            assert found[name].device == torch.device(place)
            assert torch.equal(found[name].cpu(), tensor), name


@pytest.mark.gpu
def test_large_tensors_are_sent_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is larger than a piece arrives whole, also a part of a volume that is spread over it."""
    monkeypatch.setattr(transfers, "_PIECE", 100)
    volume = torch.arange(7 * 6 * 5, dtype=torch.float32).view(7, 6, 5)
    for part in (volume, volume[:, 2:5], volume.permute(2, 0, 1), volume[0, 0, 0]):
        assert torch.equal(sent(part, "cuda").cpu(), part)
