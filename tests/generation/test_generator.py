"""Generated specimens: places, orientations and labels checked independently; counts, crowds, membranes, bad input."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import blobs, correlation
from scipy.ndimage import affine_transform, label
from scipy.stats import kstest
from test_placement import template

from faket_aug.generation.filaments import FilamentSpecies
from faket_aug.generation.generator import MAX_OCCUPANCY, GrandModelGenerator
from faket_aug.generation.ice import IceSlab
from faket_aug.generation.membranes import MembraneSpecies
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.stamp import Stamp
from faket_aug.generation.templates import ParticleTemplate
from faket_aug.specimens.grandmodel import GrandModel

SHAPE = (44, 66, 88)
VOXEL_SIZE = 10.0


def ball(radius: float, *, name: str = "ball", height: float = 4.0, voxel_size: float = VOXEL_SIZE) -> ParticleTemplate:
    """A compact particle: a ball with an edge of a voxel, radius in voxels."""
    n = 2 * int(radius + 3) + 1
    steps = np.arange(n) - n // 2
    r = np.sqrt(steps[:, None, None] ** 2 + steps[:, None] ** 2 + steps**2)
    density = height / (1 + np.exp(4 * (r - radius)))
    return ParticleTemplate(density=torch.from_numpy(density), voxel_size=voxel_size, threshold=height / 2, name=name)


def small(name: str = "small") -> ParticleTemplate:
    """Two unequal blobs."""
    density = 3 * blobs((14, 12, 16), [(7, 6, 8), (7, 6, 11.5), (5, 8, 7)], 1.3)
    return ParticleTemplate(density=density, voxel_size=VOXEL_SIZE, threshold=1.0, name=name)


def particles(count: Any = 20, **settings: Any) -> ParticleSpecies:
    """The asymmetric particle."""
    return ParticleSpecies(templates=template(), **({"count": count} | settings))


def generator(*species: ParticleSpecies, **settings: Any) -> GrandModelGenerator:
    """A small generator, of 20 asymmetric particles by default."""
    given = {"particles": species or (particles(),), "shape": SHAPE, "voxel_size": VOXEL_SIZE}
    return GrandModelGenerator(**(given | settings))


def cell(**settings: Any) -> GrandModelGenerator:
    """All kinds of things in a slab of ice."""
    given: dict[str, Any] = {
        "particles": [
            particles(30),
            ParticleSpecies(templates=[small(), small("other")], count=40, cluster_size=8, cluster_radius=150.0),
            ParticleSpecies(templates=ball(2.5, name="bound"), count=12, membrane_bound=True),
            ParticleSpecies(templates=ball(3.0, name="distractor"), count=20, label=False),
        ],
        "membranes": [
            MembraneSpecies(kind="sphere", count=2, radius=(100, 130)),
            MembraneSpecies(kind="sheet", count=1),
        ],
        "filaments": [FilamentSpecies(subunit="actin", count=2, length=700.0)],
        "fiducials": FiducialSpecies(count=3, radius=(40.0, 60.0)),
        "shape": (60, 110, 130),
        "slab": IceSlab(thickness=500.0, tilt=5.0),
    }
    return GrandModelGenerator(**(given | settings))


@pytest.fixture(scope="module")
def busy() -> GrandModel:
    """A specimen of all kinds of things."""
    return cell().generate(seed=3)


def placed_again(made: GrandModel, templates: dict[int, ParticleTemplate], rows: Any = None) -> torch.Tensor:
    """Place templates by the table with SciPy's splines: an implementation of its own."""
    volume = np.zeros(made.density.shape)
    table = made.particles
    for row in range(len(table)) if rows is None else rows:
        if int(table.classes[row]) not in templates or np.isnan(table.orientations[row]).any():
            continue
        own = templates[int(table.classes[row])]
        # Voxel v of the specimen holds the template's voxel Rᵀ (v - position) + centre; reversed: SciPy's are z, y, x.
        matrix = table.orientations[row].T[::-1, ::-1]
        offset = np.array(own.center) - matrix @ table.positions[row]
        volume += affine_transform(own.density.double().numpy(), matrix, offset, volume.shape, order=3)
    return torch.from_numpy(volume)


# --- addresses --------------------------------------------------------------------------------------------------------


def same(a: GrandModel, b: GrandModel) -> bool:
    """Two specimens, bit for bit."""
    return (
        torch.equal(a.density, b.density)
        and torch.equal(a.labels, b.labels)
        and a.instances is not None
        and b.instances is not None
        and torch.equal(a.instances, b.instances)
        and np.array_equal(a.particles.positions, b.particles.positions)
        and np.array_equal(a.particles.orientations, b.particles.orientations, equal_nan=True)
        and np.array_equal(a.particles.classes, b.particles.classes)
        and a.name == b.name
    )


def test_a_specimen_is_a_function_of_its_address(busy: GrandModel) -> None:
    """The same address gives the same specimen, whatever was made before, by another or a pickled generator, too."""
    made = cell()
    assert not same(made.generate(seed=3, tomogram=1), busy)
    assert same(made.generate(seed=3), busy)
    assert same(pickle.loads(pickle.dumps(made)).generate(seed=3), busy)


def test_other_addresses_are_other_specimens() -> None:
    """Seed, epoch and tomogram each change all places; neighbouring ones do not coincide."""
    made = generator()
    addresses = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]
    found = [made.generate(seed=s, epoch=e, tomogram=t) for s, e, t in addresses]
    places = np.concatenate([one.particles.positions for one in found])
    assert len(np.unique(places[:, 0])) == len(places) == 5 * 20
    assert len({one.name for one in found}) == 5
    assert found[-1].name == "generated specimen 0 of epoch 1, seed 1"


def test_threads_are_restored_and_do_not_matter() -> None:
    """However many threads the process has, the generator's own number is used, and the process's comes back."""
    made = generator()
    expected, before = made.generate(seed=0), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert same(made.generate(seed=0), expected)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_what_stands_later_does_not_move_what_is_larger() -> None:
    """Each species has its own chance: small particles that are added leave the large ones where they are."""
    alone = generator(particles(10)).generate(seed=5)
    more = generator(particles(10), ParticleSpecies(templates=small(), count=30)).generate(seed=5)
    assert np.array_equal(more.particles.positions[:10], alone.particles.positions)
    assert len(more.particles) == 40


# --- places, orientations, labels -------------------------------------------------------------------------------------


def test_the_table_places_the_density_again() -> None:
    """Templates placed by the table, with SciPy's splines, give the density: orientation and position are right."""
    made = generator(particles(16), ParticleSpecies(templates=small(), count=16)).generate(seed=1)
    again = placed_again(made, {1: template(), 2: small()})
    assert correlation(made.density, again) > 0.99
    transposed = replace(made.particles, orientations=made.particles.orientations.transpose(0, 2, 1))
    assert correlation(made.density, placed_again(replace(made, particles=transposed), {1: template()})) < 0.9


def test_each_particle_is_where_its_row_says() -> None:
    """Row by row, within the particle's own voxels: correlation with the template placed again is 0.95 or more."""
    made = generator(particles(12)).generate(seed=2)
    assert made.instances is not None
    for row in range(len(made.particles)):
        alone = placed_again(made, {1: template()}, [row])
        near = torch.from_numpy(np.asarray(alone > 0.05))
        assert correlation(made.density[near], alone[near]) > 0.95
        voxels = (made.instances == row + 1).nonzero().double().numpy()
        assert np.linalg.norm(voxels.mean(axis=0) - made.particles.positions[row]) < 5


def test_no_particle_is_overlapped_or_cut(busy: GrandModel) -> None:
    """Each instance has all voxels of its own turned mask: nothing was written over, nothing lies outside."""
    assert busy.instances is not None
    counts = torch.bincount(busy.instances.flatten())
    stamps = {"asymmetric": Stamp.of(template()), "bound": Stamp.of(ball(2.5))}
    checked = 0
    for row, number in enumerate(busy.particles.classes):
        stamp = stamps.get(busy.class_names[int(number)])
        if stamp is None:
            continue
        position = busy.particles.positions[row]
        fraction = position - np.rint(position)
        (_, _, chosen) = next(stamp.turned(busy.particles.orientations[row : row + 1], fraction[None]))
        voxels = np.rint(position).astype(int)[:, None] + stamp.offsets[:, chosen]
        assert int(counts[row + 1]) == len(chosen)
        assert bool((busy.instances[tuple(torch.from_numpy(voxels))] == row + 1).all())
        checked += 1
    assert checked == 42


def test_labels_instances_and_density_agree(busy: GrandModel) -> None:
    """Labels are the classes of the instances' rows; every row has voxels; particles are dense where labelled."""
    assert busy.instances is not None
    rows = busy.instances.long()
    numbers = torch.cat([torch.zeros(1, dtype=torch.long), torch.from_numpy(busy.particles.classes)])
    assert torch.equal(numbers[rows], busy.labels.long())
    assert sorted(rows.unique().tolist()) == list(range(len(busy.particles) + 1))
    assert busy.labels.dtype == torch.uint8
    assert busy.instances.dtype == torch.int32
    names = {name: number for number, name in busy.class_names.items()}
    # The steep balls beside it are surrounded by waves.
    for name, least in (("asymmetric", 0.2), ("small", 0.99), ("bound", 1.99), ("actin", 1.19), ("fiducial", 9.9)):
        assert float(busy.density[busy.labels == names[name]].min()) > least
    assert float(busy.density[busy.labels == names["membrane"]].mean()) > 0.7


def test_density_is_labelled_but_for_distractors() -> None:
    """Without distractors, whatever is denser than all thresholds together has a label."""
    made = generator(particles(25), ParticleSpecies(templates=small(), count=30)).generate(seed=0)
    assert int(((made.density > 2.0) & (made.labels == 0)).sum()) == 0
    assert int((made.labels > 0).sum()) > 1000


def test_nothing_leaves_the_slab(busy: GrandModel) -> None:
    """Labelled voxels lie within a slab as thick as was asked for; both of its faces are reached."""
    tilts = []
    for seed in range(3):
        slab = IceSlab(thickness=300.0, tilt=(2.0, 9.0))
        made = generator(particles(60), slab=slab, occupancy=0.08).generate(seed=seed)
        voxels = made.labels.nonzero().double().numpy()
        # The slab is not told: it is the one in which all heights lie.
        drawn = slab.draw(SHAPE, VOXEL_SIZE, np.random.default_rng(_own_sequence(seed, 2)))
        heights = drawn.height(voxels)
        assert np.abs(heights).max() <= 15.0
        assert np.ptp(heights) > 27
        tilts.append(np.degrees(np.arccos(drawn.normal[0])))
    assert np.ptp(tilts) > 0.5
    assert all(2 <= tilt <= 9 for tilt in tilts)


def _own_sequence(seed: int, parts: int) -> np.random.SeedSequence:
    """The stream from which the slab is drawn."""
    from faket_aug._random import seed_sequence

    return seed_sequence(seed, "generation").spawn(parts)[0]


def test_orientations_are_uniform() -> None:
    """Over specimens: angles follow (1 - cos) / π, all entries are uniform from -1 to 1."""
    made = generator(particles(70), ParticleSpecies(templates=small(), count=70))
    matrices = np.concatenate([made.generate(seed=0, tomogram=i).particles.orientations for i in range(6)])
    assert len(matrices) == 840
    angles = np.arccos(np.clip((np.trace(matrices, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert kstest(angles, lambda a: (a - np.sin(a)) / np.pi).pvalue > 0.01
    for row, column in np.ndindex(3, 3):
        assert kstest(matrices[:, row, column], lambda v: (v + 1) / 2).pvalue > 0.005


def test_places_are_between_voxels_and_even() -> None:
    """Positions lie anywhere within voxels, and fill the specimen evenly but for the edge that the particle needs."""
    made = generator(ParticleSpecies(templates=ball(2.0), count=60))
    places = np.concatenate([made.generate(seed=1, tomogram=i).particles.positions for i in range(8)])
    fractions = places - np.rint(places)
    assert kstest(fractions.ravel(), lambda f: f + 0.5).pvalue > 0.01
    for axis, size in enumerate(SHAPE):
        assert kstest(places[:, axis], lambda p, n=size: np.clip((p - 1.5) / (n - 4), 0, 1)).pvalue > 0.01


# --- how many ---------------------------------------------------------------------------------------------------------


def test_counts_and_ranges() -> None:
    """A count is kept exactly; of a range each number comes."""
    made = generator(particles(7), ParticleSpecies(templates=small(), count=(2, 4)))
    numbers = [np.bincount(made.generate(seed=0, tomogram=i).particles.classes, minlength=3) for i in range(25)]
    assert {int(n[1]) for n in numbers} == {7}
    assert {int(n[2]) for n in numbers} == {2, 3, 4}


def test_concentrations_are_met() -> None:
    """Particles per µm³ of ice, or mol/l, come out within 2 %."""
    slab = IceSlab(thickness=350.0, tilt=3.0)
    ice = slab.draw(SHAPE, VOXEL_SIZE, None).voxels(SHAPE) * 1e-9
    per_um3, molar = 60 / ice, 90 / ice / 6.02214076e8
    made = generator(
        particles(None, concentration_per_um3=per_um3),
        ParticleSpecies(templates=small(), concentration_molar=molar),
        slab=slab,
    ).generate(seed=0)
    found = np.bincount(made.particles.classes)
    assert found[1] / ice == pytest.approx(per_um3, rel=0.02)
    assert found[2] / ice / 6.02214076e8 == pytest.approx(molar, rel=0.02)


def test_less_than_one_is_one_now_and_then() -> None:
    """A concentration of a third of a particle gives one in a third of the specimens."""
    volume = np.prod(SHAPE) * 1e-9
    made = generator(particles(2), ParticleSpecies(templates=small(), concentration_per_um3=1 / 3 / volume))
    counts = [int((made.generate(seed=0, tomogram=i).particles.classes == 2).sum()) for i in range(60)]
    assert set(counts) == {0, 1}
    assert 10 <= sum(counts) <= 30


@pytest.mark.parametrize("expected", [1.45, 2.5, 3.5])
def test_concentrations_are_met_in_the_mean(expected: float) -> None:
    """A concentration that gives no whole number is rounded up as often as its fraction says."""
    shape, count = (16, 40, 40), 300
    per_um3 = expected / (np.prod(shape) * 1e-9)
    made = generator(ParticleSpecies(templates=ball(1.5), concentration_per_um3=float(per_um3)), shape=shape)
    found = [len(made.generate(seed=0, tomogram=i).particles) for i in range(count)]
    assert set(found) == {int(expected), int(expected) + 1}
    # The deviation of the mean is at most 0.03.
    assert np.mean(found) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("radii", [(4.0,), (6.0, 3.0)])
def test_a_crowd_of_thirty_per_cent(radii: tuple[float, ...]) -> None:
    """Compact particles fill 30 % of the ice, counted on the labels; no warning, no overlap."""
    species = [ParticleSpecies(templates=ball(r, name=f"ball {r}"), count=round((6 / r) ** 3)) for r in radii]
    made = generator(*species, shape=(60, 72, 84), occupancy=0.30).generate(seed=0)
    filled = float((made.labels > 0).double().mean())
    assert filled == pytest.approx(0.30, abs=0.006)
    assert made.instances is not None
    counts = torch.bincount(made.instances.flatten())[1:].double()
    for number, radius in enumerate(radii, start=1):
        own = counts[torch.from_numpy(made.particles.classes == number)]
        assert float((own / (4 / 3 * np.pi * radius**3)).sub(1).abs().max()) < 0.15


def test_occupancy_keeps_the_ratio() -> None:
    """Counts say in which ratio the ice is filled; what is bound to membranes keeps its own count."""
    made = generator(
        ParticleSpecies(templates=ball(3.0, name="a"), count=2),
        ParticleSpecies(templates=ball(2.0, name="b"), count=6),
        ParticleSpecies(templates=ball(2.0, name="c"), count=5, membrane_bound=True),
        membranes=MembraneSpecies(kind="sheet"),
        occupancy=0.1,
    ).generate(seed=0)
    found = np.bincount(made.particles.classes)
    assert found[2] / found[1] == pytest.approx(3, rel=0.02)
    assert found[3] == 5
    filled = float(((made.labels == 1) | (made.labels == 2)).double().mean())
    assert filled == pytest.approx(0.1, rel=0.05)


def test_a_shortfall_is_a_warning() -> None:
    """What finds no room is counted in a warning, with its class; the rest is there."""
    made = generator(ParticleSpecies(templates=ball(6.0), count=90), shape=(50, 50, 60))
    pattern = r"generated specimen 0 of epoch 0, seed 0: expected 90 of ball, placed \d+; ask for less"
    with pytest.warns(UserWarning, match=pattern) as caught:
        found = made.generate(seed=0)
    assert f"placed {len(found.particles)};" in str(caught[0].message)
    assert 40 < len(found.particles) < 88


# --- species ----------------------------------------------------------------------------------------------------------


def test_classes_are_numbered_in_the_order_given() -> None:
    """Particles, membranes, filaments, fiducials; one name is one class; distractors have no number."""
    made = cell()
    assert made.class_names == {
        **{0: "background", 1: "asymmetric", 2: "small", 3: "bound"},
        **{4: "membrane", 5: "actin", 6: "fiducial"},
    }
    assert made.generate(seed=0).class_names == made.class_names
    shared = generator(particles(3, name="x"), ParticleSpecies(templates=small(), count=4, name="x"))
    assert shared.class_names == {0: "background", 1: "x"}
    assert shared.generate(seed=0).particles.classes.tolist() == [1] * 7


def test_classes_are_numbered_by_a_table() -> None:
    """A table of other specimens gives the numbers; names may differ in case; all of it stays in `class_names`."""
    table = {0: "background", 3: "SMALL", 5: "unused", 9: "Large"}
    species = [
        ParticleSpecies(templates=small(), count=4, name="large"),
        ParticleSpecies(templates=small(), count=3, name="small"),
    ]
    made = generator(*species, class_table=table).generate(seed=0)
    plain = generator(*species).generate(seed=0)
    assert made.class_names == table
    np.testing.assert_array_equal(made.particles.classes, np.array([0, 9, 3])[plain.particles.classes])
    assert torch.equal(made.labels.long(), torch.tensor([0, 9, 3])[plain.labels.long()])
    assert made.not_particles == frozenset()
    with pytest.raises(
        ValueError, match=r"expected species of the class table \(background, other\), got large, small;"
    ):
        generator(*species, class_table={0: "background", 1: "other"})
    for wrong in ({0: "large", 1: "small"}, {-1: "large", 1: "small"}, {300: "large", 1: "small"}, {"1": "large"}):
        with pytest.raises(ValueError, match="expected a `class_table` with whole numbers from 0"):
            generator(*species, class_table=wrong)


def test_rows_without_orientation(busy: GrandModel) -> None:
    """Membranes and beads have a row without orientation; particles and subunits of filaments have one."""
    names = {name: number for number, name in busy.class_names.items()}
    nan = np.isnan(busy.particles.orientations).all(axis=(1, 2))
    for name in ("membrane", "fiducial"):
        assert nan[busy.particles.classes == names[name]].all()
        assert (busy.particles.classes == names[name]).sum() == 3
    others = ~np.isin(busy.particles.classes, [names["membrane"], names["fiducial"]])
    assert not nan[others].any()
    assert (busy.particles.classes == names["actin"]).sum() > 10


def test_membranes_are_no_particles(busy: GrandModel) -> None:
    """Classes of membranes alone are told apart from those of particles; a name that both have is one of particles."""
    assert {busy.class_names[number] for number in busy.not_particles} == {"membrane"}
    assert generator().generate(seed=0).not_particles == frozenset()
    shells = [MembraneSpecies(kind="sheet", name="shared"), MembraneSpecies(kind="sheet", count=0, name="shell")]
    made = generator(particles(2, name="shared"), membranes=[*shells, MembraneSpecies(count=0, label=False)])
    assert made.generate(seed=0).not_particles == {2}
    assert made.class_names[2] == "shell"


def test_distractors_have_density_and_room_but_no_label() -> None:
    """Distractors are there, nothing lies over them, and neither labels nor rows know of them."""
    made = generator(particles(25), ParticleSpecies(templates=ball(3.0, height=50.0), count=12, label=False)).generate(
        seed=0
    )
    assert len(made.particles) == 25
    dense = made.density > 25
    assert label(dense.numpy())[1] == 12
    assert not made.labels[dense].any()
    assert made.instances is not None
    assert int(made.instances.max()) == 25


def test_conformations_are_chosen_at_random() -> None:
    """Of several templates each is used about as often, under one class."""
    made = generator(ParticleSpecies(templates=[ball(2.0), ball(3.0)], count=80)).generate(seed=0)
    assert made.instances is not None
    counts = torch.bincount(made.instances.flatten())[1:]
    assert set(made.particles.classes) == {1}
    assert 25 <= int((counts > 70).sum()) <= 55
    assert int(((counts > 25) & (counts < 45)).sum()) == 80 - int((counts > 70).sum())


def test_positions_hold_the_template_center() -> None:
    """A template whose centre is off its middle has its centre where the row says."""
    off = template((30, 26, 24), (12.4, 13.7, 11.1))
    made = generator(ParticleSpecies(templates=off, count=10)).generate(seed=0)
    assert correlation(made.density, placed_again(made, {1: off})) > 0.98


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"particles": ()},
            r"expected something to place, one of particles, membranes, filaments, fiducials, got none",
        ),
        ({"shape": (10, 20)}, r"expected `shape` to be three positive numbers \(z, y, x\), got \(10, 20\)"),
        ({"voxel_size": 0.0}, r"expected `voxel_size` to be more than 0, got 0.0"),
        ({"gap": -1.0}, r"expected `gap` to be 0 or more, got -1.0"),
        ({"threads": 0}, r"expected `threads` to be a whole number of 1 or more, got 0"),
        ({"occupancy": 0.9}, r"expected `occupancy` of more than 0 and at most 0.64, got 0.9"),
        ({"occupancy": 0.0}, r"expected `occupancy` of more than 0 and at most 0.64, got 0.0"),
        (
            {"voxel_size": 8.0},
            r"asymmetric: expected a template of the specimen's voxel size, 8 Å, got 10 Å; make it again with "
            r"`voxel_size=8`",
        ),
        (
            {"particles": ParticleSpecies(templates=template())},
            r"asymmetric: expected `count`, `concentration_per_um3` or `concentration_molar`, got none",
        ),
        (
            {"particles": particles(membrane_bound=True)},
            r"asymmetric: expected `membranes` for membrane-bound particles, got none",
        ),
        (
            {"particles": particles(membrane_bound=True), "membranes": MembraneSpecies(count=0)},
            r"asymmetric: expected `membranes` for membrane-bound particles, got none",
        ),
        (
            {"slab": IceSlab(thickness=(40.0, 400.0))},
            r"asymmetric: expected a particle that fits into 40 Å, the smallest extent of the ice, got one of \d+ Å "
            r"where it is narrowest; set `shape` or the `slab`'s thickness larger",
        ),
        ({"shape": (44, 66, 3)}, r"asymmetric: expected a particle that fits into 30 Å, the smallest extent"),
        (
            {"particles": [ParticleSpecies(templates=small(str(i)), count=0) for i in range(256)]},
            r"expected at most 255 classes, got 256; give species one `name`, or `label=False`",
        ),
    ],
)
def test_generators_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    """What cannot be is refused before any work, with what was expected."""
    with pytest.raises(ValueError, match=message):
        generator(**settings)


@pytest.mark.parametrize("settings", [{"concentration_per_um3": 1e7}, {"concentration_molar": 0.01}, {"count": 2000}])
def test_a_concentration_that_cannot_fit(settings: dict[str, Any]) -> None:
    """More than the ice can hold is refused before any work: which class, and how full it would be."""
    with pytest.raises(
        ValueError,
        match=r"expected particles that fill at most 64% of the ice .*, got \d+%, most of it asymmetric \(\d+%",
    ):
        generator(particles(**({"count": None} | settings)))
    assert MAX_OCCUPANCY == 0.64


def test_species_of_one_name_fill_the_ice_together() -> None:
    """Two species of one class, each of which would fit, are refused where both do not."""
    one = ParticleSpecies(templates=ball(3.0), count=900)
    share = 900 * one.mask_voxels / np.prod(SHAPE)
    assert 0.35 < share < MAX_OCCUPANCY
    assert len(generator(one).class_names) == 2
    with pytest.raises(ValueError, match=rf"of the ice .*, got {2 * share:.0%}, most of it ball \({2 * share:.0%}\)"):
        generator(one, replace(one))


def test_a_device_that_is_not_there() -> None:
    """CUDA without a GPU is refused with the remedy."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"expected a CUDA device for `device` 'cuda', found none; set `device` to"):
        generator(device="cuda").generate(seed=0)


@pytest.mark.gpu
def test_cuda_makes_the_same_specimen() -> None:
    """On a GPU the same things lie at the same places; densities differ by rounding."""
    a, b = (cell(device=device).generate(seed=0) for device in ("cpu", "cuda"))
    assert b.density.is_cuda
    assert np.allclose(a.particles.positions, b.particles.positions)
    assert correlation(a.density, b.density.cpu()) > 0.9999
    assert float((a.labels != b.labels.cpu()).double().mean()) < 1e-4
    assert float((a.instances != b.instances.cpu()).double().mean()) < 1e-4


@pytest.mark.gpu
def test_each_gpu_has_its_own_templates() -> None:
    """A plain "cuda" is the GPU that is current when a specimen is made, not that of the first one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    made, before = generator(device="cuda"), torch.cuda.current_device()
    found = []
    try:
        for index in (0, 1):
            torch.cuda.set_device(index)
            found.append(made.generate(seed=0).density)
    finally:
        torch.cuda.set_device(before)
    assert [density.device.index for density in found] == [0, 1]
    assert torch.equal(found[0].cpu(), found[1].cpu())


def test_generating_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, and where all is placed nothing is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator().generate(seed=0)
    assert capsys.readouterr().out == ""
