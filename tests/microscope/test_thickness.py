"""How deep matter is, from tilts alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import project
from faket_aug.microscope.crowd import CrowdField, medium
from faket_aug.microscope.thickness import matter_thickness

ANGLES = np.arange(-36.0, 37.0, 3.0)


def _tilts(depth: int, *, noise: float = 1.0, inclination: float = 0.0) -> Tensor:
    """Projections of a slab of random matter, with as much noise as signal."""
    q = np.arange(400) / 6000
    crowd = CrowdField(frequencies=tuple(q.tolist()), power=tuple(medium(q, 8.0).tolist()))
    generator = torch.Generator().manual_seed(0)
    field = crowd.sample((depth, 128, 256), 10.0, generator)
    tilts = project(field, ANGLES + inclination, extend="wrap")
    return tilts + noise * tilts.std() * torch.randn(tilts.shape, generator=generator)


@pytest.mark.parametrize("depth", [40, 90, 160])
def test_depth_of_a_slab(depth: int) -> None:
    """The depth of an even slab is found within 10 %, also if the slab is not level."""
    found = matter_thickness(_tilts(depth), ANGLES)
    assert found is not None
    assert found.voxels == pytest.approx(depth, rel=0.1)
    assert abs(found.inclination) <= 4.0
    assert found.error < 0.1 * depth


def test_an_inclined_slab() -> None:
    """A slab that is turned about the tilt axis seems to be as deep as it is, and tells how it lies."""
    found = matter_thickness(_tilts(90, inclination=8.0), ANGLES)
    assert found is not None
    assert found.voxels == pytest.approx(90, rel=0.12)
    assert found.inclination == pytest.approx(8.0, abs=2.1)


def test_tilts_in_any_order() -> None:
    """The order of the tilts does not matter."""
    tilts, order = _tilts(40), torch.arange(len(ANGLES) - 1, -1, -1)
    assert matter_thickness(tilts[order], ANGLES[::-1].copy()) == matter_thickness(tilts, ANGLES)


def test_borders_do_not_count() -> None:
    """Pixels that were not measured change the depth by a few percent at most."""
    tilts = _tilts(90)
    measured = torch.ones(tilts.shape, dtype=torch.bool)
    measured[:, :, :30] = False
    found, whole = matter_thickness(tilts * measured, ANGLES, measured=measured), matter_thickness(tilts, ANGLES)
    assert found is not None
    assert whole is not None
    assert found.voxels == pytest.approx(whole.voxels, rel=0.1)


def test_tilts_that_do_not_tell() -> None:
    """Noise, and a few tilts, have no depth."""
    noise = torch.randn(25, 64, 64, generator=torch.Generator().manual_seed(0))
    assert matter_thickness(noise, ANGLES) is None
    assert matter_thickness(_tilts(40)[:3], ANGLES[:3]) is None
