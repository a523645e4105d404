"""Simulated tomograms that were saved are specimens again, whatever the format of their particle lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _helpers import simulator, specimen

from faket_aug import read_specimens
from faket_aug._checks import FileFormatError


@pytest.mark.parametrize("format", ["shrec", "star3", "star4", "star5", "deepfinder"])
def test_particles_of_any_list(tmp_path: Path, format: str) -> None:
    """Classes, positions and instances come back; SHREC's text and DeepFinder's list hold whole voxels."""
    given = specimen(3)
    made = simulator(modality="noiseless")(given, seed=0)
    made.save(tmp_path / "tomogram_0000", formats=(format,), specimen=given)
    found = read_specimens(tmp_path)[0]
    assert torch.equal(found.labels, given.labels)
    assert found.instances is not None
    assert given.instances is not None
    assert torch.equal(found.instances, given.instances)
    assert found.particles.classes.tolist() == given.particles.classes.tolist()
    rounded = 0.51 if format in ("shrec", "deepfinder") else 1e-3
    assert np.abs(found.particles.positions - given.particles.positions).max() < rounded


def test_lists_without_membranes(tmp_path: Path) -> None:
    """A list for another program lacks membranes, which instances count: these are then left out."""
    given = replace(specimen(3), not_particles=frozenset({2}))
    made = simulator(modality="noiseless")(given, seed=0)
    made.save(tmp_path / "tomogram_0000", formats=("star5",), specimen=given)
    found = read_specimens(tmp_path)[0]
    assert found.instances is None
    assert found.particles.classes.tolist() == [1, 1, 1]


def test_a_list_of_another_tomogram(tmp_path: Path) -> None:
    """Lists of several other tomograms are refused by name."""
    given = specimen(3)
    folder = tmp_path / "tomogram_0000"
    simulator(modality="noiseless")(given, seed=0).save(folder, formats=("star4",), specimen=given)
    text = (folder / "particles_relion4.star").read_text()
    first, second = (text.replace("tomogram_0000", name) for name in ("one", "two"))
    rows = [line for line in second.splitlines() if line.startswith("two")]
    (folder / "particles_relion4.star").write_text(first.rstrip() + "\n" + "\n".join(rows) + "\n")
    with pytest.raises(FileFormatError, match=r"particles_relion4\.star: expected particles of tomogram_0000, got"):
        read_specimens(tmp_path)[0]
