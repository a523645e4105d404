"""A program's default device (`torch.set_default_device`) is its network's: what is simulated stays where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import STYLE_LAYERS, dataset, narrow_vgg, simulator, specimen, specimens, style_series

from faket_aug import (
    GrandModelGenerator,
    ParticleSpecies,
    ParticleTemplate,
    StyleBank,
    TiltSeries,
    fit_microscope,
    project,
    reconstruct,
)
from faket_aug.generation.potential import coulomb_potential
from faket_aug.picking.control import randomize_phases
from faket_aug.specimens.procedural import procedural_specimen
from faket_aug.style.vgg19 import _random_weights


@pytest.fixture
def elsewhere() -> Iterator[Callable[[], None]]:
    """Set another default device: one without numbers, which any tensor that lies there by mistake would show."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


def _endless() -> GrandModelGenerator:
    density = np.zeros((9, 9, 9), dtype=np.float32)
    density[2:7, 2:7, 3:6] = 1.0
    template = ParticleTemplate(
        name="block", density=torch.from_numpy(density), voxel_size=10.0, center=(4.0, 4.0, 4.0), threshold=0.5
    )
    species = ParticleSpecies(templates=template, count=4)
    return GrandModelGenerator(particles=species, shape=(16, 40, 40), voxel_size=10.0)


def _generated(folder: Path) -> Callable[[], Any]:
    endless = _endless()

    def make() -> Any:
        made = endless.generate(seed=1)
        return {"density": made.density, "labels": made.labels}

    return make


def _random_encoder(folder: Path) -> Callable[[], Any]:
    # The module itself lies on the default device, as any module does.
    return lambda: _random_weights(0)


def _patch(folder: Path) -> Callable[[], Any]:
    made, things = simulator("faket", folder), specimens(2)

    def first() -> Any:
        item = next(iter(dataset(made, specimens=things)))
        return {name: one for name, one in item.items() if isinstance(one, torch.Tensor)}

    return first


def _bank(folder: Path) -> Callable[[], Any]:
    series, features = style_series(), narrow_vgg(folder)

    def grams() -> Any:
        of = StyleBank.build(series, features, style_layers=STYLE_LAYERS).series[0]
        return {"mean": of.mean, "std": of.std, **{str(layer): gram for layer, gram in of.grams.items()}}

    return grams


def _simulated(folder: Path) -> Callable[[], Any]:
    # A dataset simulates in another thread, which has no default device; here it is this one.
    made, thing = simulator("noisy"), specimen(5, shape=(10, 26, 22))
    return lambda: made(thing, seed=1).tomogram


def _projected(folder: Path) -> Callable[[], Any]:
    volume = specimen(6, shape=(8, 18, 20)).density
    return lambda: project(volume, np.array([-31.0, 2.0, 44.0]))


def _reconstructed(folder: Path) -> Callable[[], Any]:
    tilts = style_series(shape=(5, 14, 18)).tilts
    return lambda: reconstruct(tilts, np.linspace(-50, 50, 5), depth=7)


def _fitted(folder: Path) -> Callable[[], Any]:
    angles = np.arange(-60.0, 61.0, 10.0)
    clean = -project(procedural_specimen(shape=(16, 64, 64), seed=3).density.float(), angles)
    tilts = 2000 + 5 * clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    series = TiltSeries(tilts=tilts, tilt_angles=angles, pixel_size=10.0, name="measured")

    def gain() -> Any:
        found = fit_microscope(series, shape=(16, 64, 64), defocus=3.0, scale="power")
        assert found.noise.response is not None
        return torch.from_numpy(found.noise.response.gain(angles)), found.simulated.tilts

    return gain


def _potential(folder: Path) -> Callable[[], Any]:
    places = np.random.default_rng(0).uniform(20, 60, (40, 3))
    return lambda: coulomb_potential(places, ["C"] * 40, shape=(9, 9, 9), voxel_size=9.0)


def _control(folder: Path) -> Callable[[], Any]:
    density = specimen(0).density
    return lambda: randomize_phases(density, seed=3)


MADE = [
    *(_generated, _potential, _projected, _reconstructed, _simulated),
    *(_fitted, _random_encoder, _bank, _patch, _control),
]


@pytest.mark.parametrize("prepare", MADE)
def test_default_device(
    prepare: Callable[[Path], Callable[[], Any]], tmp_path: Path, elsewhere: Callable[[], None]
) -> None:
    """The same bits, on the CPU; what is kept from one call to the next serves once there is no default device, too."""
    make = prepare(tmp_path)
    elsewhere()
    found = make()
    torch.set_default_device(None)
    expected = make()
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
