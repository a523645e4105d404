"""The trip of a specimen: how long its tilts stay in memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from faket_aug import FakETSimulator
from faket_aug.simulation import simulator as module
from tests._helpers import simulator, specimen


def test_tilts_are_not_kept_longer_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean tilts are gone when the style is transferred; content and noisy tilts are gone when it reconstructs."""
    kept: dict[str, weakref.ref[Tensor]] = {}
    gone: dict[str, list[str]] = {}
    add_noise, restyle, reconstruct = FakETSimulator._add_noise, FakETSimulator._restyle, module.reconstruct

    def watched_noise(self: FakETSimulator, clean: Tensor, specimen: Any, record: Any) -> tuple[Tensor, Tensor]:
        content, noisy = add_noise(self, clean, specimen, record)
        kept.update(clean=weakref.ref(clean), content=weakref.ref(content), noisy=weakref.ref(noisy))
        return content, noisy

    def watched_restyle(self: FakETSimulator, content: Tensor, noisy: Tensor, record: Any) -> Tensor:
        gone["restyle"] = [name for name, tilts in kept.items() if tilts() is None]
        return restyle(self, content, noisy, record)

    def watched_reconstruct(*values: Any, **settings: Any) -> Tensor:
        gone["reconstruct"] = [name for name, tilts in kept.items() if tilts() is None]
        return reconstruct(*values, **settings)

    monkeypatch.setattr(FakETSimulator, "_add_noise", watched_noise)
    monkeypatch.setattr(FakETSimulator, "_restyle", watched_restyle)
    monkeypatch.setattr(module, "reconstruct", watched_reconstruct)
    simulator("faket", tmp_path)(specimen(0), seed=1)
    assert gone == {"restyle": ["clean"], "reconstruct": ["clean", "content", "noisy"]}
