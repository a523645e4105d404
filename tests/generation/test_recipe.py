"""Recipes: plain settings make the generator that the library's objects make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import blobs

from faket_aug import (
    FiducialSpecies,
    FilamentSpecies,
    GrandModel,
    GrandModelGenerator,
    IceSlab,
    MembraneSpecies,
    ParticleSpecies,
    read_templates,
)
from faket_aug._reading import read_table
from faket_aug.formats.mrc import write_mrc
from faket_aug.generation.recipe import RECIPE, as_tables, make_generator, templates_of

SHAPE = (40, 64, 64)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    write_mrc(folder / "small.mrc", blobs((9, 9, 9), [(4, 4, 4)], 1.2), voxel_size=10.0)
    write_mrc(folder / "long.mrc", blobs((11, 9, 9), [(4, 4, 4), (7, 4, 4)], 1.2), voxel_size=10.0)
    return folder


def made(recipe: dict[str, Any], **settings: Any) -> GrandModel:
    read = read_table(RECIPE, recipe, "")
    return make_generator(read, voxel_size=10.0, **settings).generate(seed=2)


def test_a_recipe_is_the_generator(maps: Path) -> None:
    """As text and as a table, each species is the one that the library's class makes, bit for bit."""
    small, long = (read_templates([maps / f"{name}.mrc"], voxel_size=10.0)[0] for name in ("small", "long"))
    by_hand = GrandModelGenerator(
        particles=[
            ParticleSpecies(templates=long, count=2, name="long"),
            ParticleSpecies(templates=small, count=(2, 3), name="small", cluster_size=2, cluster_radius=60.0),
        ],
        membranes=MembraneSpecies(kind="sheet", count=1, thickness=(35.0, 40.0)),
        filaments=FilamentSpecies(subunit="actin", count=1, length=(300.0, 400.0)),
        fiducials=FiducialSpecies(count=1, radius=(20.0, 30.0)),
        slab=IceSlab(thickness=(300.0, 350.0), tilt=2.0, vacuum_density=-1.0),
        shape=SHAPE,
        voxel_size=10.0,
        gap=10.0,
    ).generate(seed=2)
    as_text = made(
        {
            **{"templates": [str(maps)], "counts": "long=2,small=2,3", "shape": "40,64,64", "gap": "10"},
            "particles": "small.cluster_size=2,small.cluster_radius=60",
            "membranes": "sheet.count=1,sheet.thickness=35,40",
            "filaments": "actin.count=1,actin.length=300,400",
            "fiducials": "count=1,radius=20,30",
            "slab": "thickness=300,350,tilt=2,vacuum_density=-1",
        }
    )
    as_table = made(
        {
            **{"templates": str(maps), "counts": {"long": 2}, "shape": list(SHAPE), "gap": 10},
            "particles": {"small": {"count": [2, 3], "cluster_size": 2, "cluster_radius": 60}},
            "membranes": [{"kind": "sheet", "thickness": [35, 40]}],
            "filaments": {"actin": {"length": [300, 400]}},
            "fiducials": [{"count": 1, "radius": [20, 30]}],
            "slab": {"thickness": [300, 350], "vacuum_density": -1},
            "slab_tilt": 2,
        }
    )
    for other in (as_text, as_table):
        assert other.class_names == by_hand.class_names
        assert torch.equal(other.labels, by_hand.labels)
        assert torch.equal(other.density, by_hand.density)


def test_templates_may_be_scaled(maps: Path) -> None:
    """The factor is on density and threshold; a threshold goes before it."""
    plain = templates_of({"templates": [str(maps)]}, "templates", 10.0)["small"][0]
    scaled = templates_of({"templates": [str(maps)], "factor": 2.0}, "templates", 10.0)["small"][0]
    assert torch.equal(scaled.density, 2.0 * plain.density)
    assert scaled.threshold == 2.0 * plain.threshold
    own = templates_of({"templates": [str(maps)], "threshold": 0.25}, "templates", 10.0)["small"][0]
    assert (own.threshold, torch.equal(own.density, plain.density)) == (0.25, True)
    with pytest.raises(ValueError, match="expected `factor` to be more than 0"):
        templates_of({"templates": [str(maps)], "factor": -1.0}, "templates", 10.0)


def test_weights_of_maps(maps: Path) -> None:
    """Molecular weights are of the templates by name, whichever folder they are in."""
    files = [str(maps / "small.mrc"), str(maps / "long.mrc")]
    heavy = templates_of({"templates": files, "molecular_weights": {"long": 100.0}}, "templates", 10.0)
    heavier = templates_of({"templates": files, "molecular_weights": {"long": 200.0}}, "templates", 10.0)
    assert torch.equal(heavy["small"][0].density, heavier["small"][0].density)
    assert float(heavier["long"][0].density.sum() / heavy["long"][0].density.sum()) == pytest.approx(2.0, rel=0.05)
    with pytest.raises(ValueError, match="expected `molecular_weights` of the templates small, long, got tiny"):
        made({"templates": files, "counts": 1, "molecular_weights": "tiny=3"})


def test_subunits_of_a_file(maps: Path) -> None:
    """A filament's subunit may be a map; a table knows the rest."""
    table = {"subunit": str(maps / "small.mrc"), "rise": 40, "twist": 30, "persistence_length": 1e5, "name": "rod"}
    found = made({"filaments": [table], "shape": list(SHAPE)})
    assert found.class_names == {0: "background", 1: "rod"}


@pytest.mark.parametrize(
    ("kind", "given", "tables"),
    [
        ("membranes", 2, [{"kind": "sphere", "count": 2}]),
        ("membranes", {"sheet": (1, 2)}, [{"kind": "sheet", "count": (1, 2)}]),
        ("filaments", {"actin": {"name": "f"}}, [{"subunit": "actin", "name": "f"}]),
        ("fiducials", (1, 3), [{"count": (1, 3)}]),
        ("fiducials", 0, []),
        ("fiducials", {}, []),
        ("fiducials", {"radius": 30.0}, [{"radius": 30.0}]),
        ("fiducials", None, []),
    ],
)
def test_tables_of_species(kind: str, given: Any, tables: Any) -> None:
    assert as_tables(kind, given) == tables


def test_a_species_is_told_what_it_lacks(maps: Path) -> None:
    with pytest.raises(ValueError, match="expected `slab` with thickness, got "):
        made({"fiducials": 1, "slab": {"tilt": 3}})
    with pytest.raises(ValueError, match="expected settings of `particles.small` to be count, .*, got label"):
        made({"templates": str(maps), "counts": 1, "particles": {"small": {"label": False}}})
    with pytest.raises(ValueError, match="expected `membranes.sheet.head_density` to be a number, got 'x'"):
        made({"membranes": {"sheet": {"head_density": "x"}}})
