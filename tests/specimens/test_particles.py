"""The labelled record: declared once, checked once, the same for specimens and tomograms."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import ANGLES, CLASS_NAMES, simulator, specimen

from faket_aug import (
    FileFormatError,
    GrandModel,
    LabelledTomogram,
    ParticleTable,
    SimulatedTomogram,
    TiltedSpecimen,
    project,
)
from faket_aug.simulation.saving import is_whole
from faket_aug.specimens.particles import Labelled

SHARED = {entry.name for entry in fields(Labelled)}
HOLDERS = (GrandModel, TiltedSpecimen, LabelledTomogram, SimulatedTomogram)


def _holders(thing: GrandModel) -> list[Labelled]:
    """The same labels and particles in all that hold some."""
    shared: dict[str, Any] = {name: getattr(thing, name) for name in SHARED}
    made = simulator("noiseless")(thing, seed=0)
    coarse = shared | {"voxel_size": thing.label_voxel_size}
    return [
        thing,
        TiltedSpecimen(tilts=-project(thing.density, ANGLES), tilt_angles=np.array(ANGLES), **shared),
        LabelledTomogram(tomogram=made.tomogram, **coarse),
        made,
    ]


def test_the_record_is_declared_once() -> None:
    """No class that holds labels declares a shared field anew, but for the default of its name."""
    for holder in HOLDERS:
        assert issubclass(holder, Labelled)
        assert set(vars(holder)["__annotations__"]) & SHARED <= {"name"}


@pytest.mark.parametrize("bin", [1, 2])
def test_voxel_sizes(bin: int) -> None:
    """`label_voxel_size` is that of the labels in all; `voxel_size` that of the density, the tilts or the tomogram."""
    thing = specimen(0, bin=bin)
    holders = _holders(thing)
    assert [one.label_voxel_size for one in holders] == [10.0] * 4
    assert [one.voxel_size for one in holders] == [10.0 / bin, 10.0 / bin, 10.0, 10.0]
    assert [one.name for one in holders] == ["specimen 0"] * 4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": torch.zeros(16, 24, 32)}, ValueError, "specimen 0: expected uint8 labels, got torch.float32"),
        ({"labels": torch.zeros(24, 32, dtype=torch.uint8)}, ValueError, r"`labels` of shape \(z, y, x\), got \(24"),
        (
            {"labels": torch.zeros(0, 24, 32, dtype=torch.uint8)},
            ValueError,
            r"specimen 0: expected labels with voxels, got the shape \(0, 24, 32\)",
        ),
        (
            {"instances": torch.zeros(1, 24, 32, dtype=torch.int32)},
            FileFormatError,
            r"specimen 0: expected instances of the labels' shape \(16, 24, 32\), got \(1, 24, 32\)",
        ),
        (
            {"instances": torch.full((16, 24, 32), 6, dtype=torch.int32)},
            FileFormatError,
            "specimen 0: expected instances of the 5 rows of the particle table, got 6",
        ),
        ({"voxel_size": 0.0}, ValueError, "`voxel_size` to be more than 0"),
    ],
)
@pytest.mark.parametrize("which", range(len(HOLDERS)), ids=[holder.__name__ for holder in HOLDERS])
def test_the_checks_are_everyones(which: int, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    """What labels, instances and particle table have to fulfil is checked in each class that holds them."""
    good = _holders(specimen(0))[which]
    with pytest.raises(error, match=message):
        replace(good, **changes)
    # Where no table is known, instances may count anything.
    replace(good, instances=torch.full((16, 24, 32), 6, dtype=torch.int32), particles=ParticleTable.empty())


def test_class_names_and_lists() -> None:
    """Classes without a name are called after their number; a list leaves out what is no particle, if asked."""
    with pytest.warns(UserWarning, match=r"got labels of class 7 and particles of class 7 without a name; add them"):
        thing = specimen(0, classes=(1, 2, 7, 1))
    assert thing.all_class_names == {**CLASS_NAMES, 7: "class_7"}
    names = {0: "background", 1: "small"}
    with pytest.warns(UserWarning, match=r"\(1 small\), got labels of class 2, 7 and particles of class 2, 7 without"):
        named = replace(thing, class_names=names, not_particles=frozenset({2, 9}))
    assert named.all_class_names == {1: "small", 2: "class_2", 7: "class_7"}
    listed, picked = named.listed(), named.listed(picked=True)
    assert listed.names == ("small", "class_2", "class_7", "small")
    np.testing.assert_array_equal(listed.positions, thing.particles.positions)
    assert picked.names == ("small", "class_7", "small")
    np.testing.assert_array_equal(picked.positions, thing.particles.positions[[0, 2, 3]])
    none = replace(thing, class_names={}, particles=ParticleTable.empty()).listed(picked=True)
    assert (none.names, none.positions.shape, none.orientations.shape) == ((), (0, 3), (0, 3, 3))


def test_a_simulated_tomogram_has_a_name_for_messages(tmp_path: Path) -> None:
    """By default it is the specimen's; another one may be given, and saving does not ask for either."""
    made = simulator("noiseless")(specimen(0, name="mine"), seed=0)
    assert made.name == "mine"
    assert replace(made, name="other").name == "other"
    made.save(tmp_path / "t")
    assert is_whole(tmp_path / "t")


@pytest.mark.parametrize("kind", [np.asarray, lambda values: values.tolist()])
def test_arrays_and_lists_are_no_tensors(kind: Any) -> None:
    """The error says what to give, for each volume of each record."""
    thing = specimen(0)
    make = "torch.from_numpy" if kind is np.asarray else "torch.tensor"
    fields_of = {
        GrandModel: ("density", "labels", "instances"),
        TiltedSpecimen: ("tilts",),
        LabelledTomogram: ("tomogram",),
    }
    for one in _holders(thing)[:3]:
        for name in fields_of[type(one)]:  # type: ignore[index]
            with pytest.raises(TypeError, match=rf"expected `{name}` as a tensor, got .*; give `{make}\({name}\)`"):
                replace(one, **{name: kind(getattr(one, name).numpy())})


def test_particle_tables_of_lists_and_tensors() -> None:
    """They mean one thing only; classes that are no whole numbers mean none."""
    expected = specimen(0).particles
    for made in (
        ParticleTable(
            classes=expected.classes.tolist(),  # type: ignore[arg-type]
            positions=expected.positions.tolist(),  # type: ignore[arg-type]
            orientations=expected.orientations.tolist(),  # type: ignore[arg-type]
        ),
        ParticleTable(
            classes=torch.from_numpy(expected.classes),  # type: ignore[arg-type]
            positions=torch.from_numpy(expected.positions),  # type: ignore[arg-type]
            orientations=torch.from_numpy(expected.orientations),  # type: ignore[arg-type]
        ),
    ):
        for name in ("classes", "positions", "orientations"):
            assert getattr(made, name).dtype == getattr(expected, name).dtype
            np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))
    with pytest.raises(ValueError, match=r"expected `classes` of particles as whole numbers of 0 or more, got float64"):
        replace(expected, classes=expected.classes + 0.5)
    with pytest.raises(ValueError, match=r"whole numbers of 0 or more, got int64 from -1"):
        replace(expected, classes=expected.classes - 2)
    with pytest.raises(TypeError, match=r"specimen 0: expected `particles` as a `ParticleTable`, got list; without"):
        replace(specimen(0), particles=[])  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [(np.nan, 3.0, 4.0), (3.0, np.inf, 4.0)])
def test_positions_are_finite(row: tuple[float, float, float]) -> None:
    thing = specimen(0)
    positions = thing.particles.positions.copy()
    positions[2] = row
    for one in _holders(thing)[:3]:
        with pytest.raises(
            FileFormatError, match="expected finite positions of particles, got 1 with NaN or .* in row 3"
        ):
            replace(one, particles=replace(one.particles, positions=positions))


def test_positions_lie_near_the_specimen() -> None:
    """What lies further outside than the specimen is large is none of its particles; a cut specimen's are."""
    thing = specimen(0)
    for row, fits in (((-30.0, 3, 4), True), ((-33.0, 3, 4), False), ((3, 55.0, 4), True), ((3, 57.0, 4), False)):
        positions = thing.particles.positions.copy()
        positions[1] = row
        moved = replace(thing.particles, positions=positions)
        if fits:
            assert len(replace(thing, particles=moved).particles) == 5
            continue
        with pytest.raises(
            FileFormatError, match=r"specimen 0: expected particles .*, got 1 far outside, .* in row 2 at"
        ):
            replace(thing, particles=moved)
