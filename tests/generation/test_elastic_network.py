"""Conformers: the elastic network's modes, how far residues move, and that the address of chance decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from faket_aug import ParticleTemplate, read_templates
from faket_aug.formats.structures import AtomicStructure, read_structure
from faket_aug.generation.elastic_network import NormalModes, _softest, conformers, hessian, normal_modes
from faket_aug.generation.recipe import RECIPE, templates_of

Find = Callable[[Path, str], Path]


def globule(count: int, *, seed: int = 0) -> np.ndarray:
    """Nodes at random in a ball, about as dense as Cα atoms."""
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    side = (count * 130.0) ** (1 / 3)
    while len(found) < count:
        place = rng.uniform(-side / 2, side / 2, 3)
        if all(np.linalg.norm(place - other) > 3.5 for other in found):
            found.append(place)
    return np.array(found)


def structure(places: np.ndarray) -> AtomicStructure:
    """Residues of a Cα atom and a carbon beside it."""
    atoms = np.repeat(places, 2, axis=0)
    atoms[1::2] += (0.0, 0.0, 1.5)
    return AtomicStructure(
        name="globule",
        elements=np.array(["C"] * len(atoms)),
        positions=atoms,
        occupancies=np.ones(len(atoms)),
        b_factors=np.zeros(len(atoms)),
        traced=np.arange(len(atoms)) % 2 == 0,
    )


def test_frequencies_of_a_tetrahedron() -> None:
    """Four equal masses and six equal springs: stiffness 1 (twice), 2 (three times) and 4 (breathing), six of 0."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=float)
    values, _ = _softest(hessian(corners, 4.0), 12)
    assert values == pytest.approx([0] * 6 + [1, 1, 2, 2, 2, 4], abs=1e-9)
    modes = normal_modes(corners, cutoff=4.0)
    assert modes.stiffness == pytest.approx([1, 1, 2, 2, 2, 4])
    breathing = modes.shapes[-1] / np.linalg.norm(modes.shapes[-1], axis=1, keepdims=True)
    assert np.abs(np.einsum("na,na->n", breathing, corners / 3**0.5)) == pytest.approx(1.0)


def test_frequencies_of_a_helix() -> None:
    """The stiffness of an α helix of 30 residues as ProDy 2.6.1 computes it (`ANM`, cutoff 15 Å, γ 1)."""
    turns = np.arange(30)
    helix = np.round(np.column_stack([2.3 * np.cos(turns * 1.745), 2.3 * np.sin(turns * 1.745), 1.5 * turns]), 3)
    expected = [0.0568706, 0.057653, 0.0771708, 0.2701643, 0.2915436, 0.2958692, 0.5038406, 0.6187816]
    assert normal_modes(helix, count=8, cutoff=15.0).stiffness == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("count", [60, 400])
def test_motions_of_the_whole_cost_nothing(count: int) -> None:
    """Law: the Hessian is symmetric; shifts and turns cost nothing, and nothing else does; both solvers agree."""
    places = globule(count)
    matrix = hessian(places)
    assert abs(matrix - matrix.T).max() < 1e-12
    turns = np.stack([np.cross(axis, places - places.mean(axis=0)) for axis in np.eye(3)])
    shifts = np.broadcast_to(np.eye(3)[:, None], (3, count, 3))
    for motion in (*turns, *shifts):
        assert np.abs(matrix @ motion.ravel()).max() < 1e-9
    modes = normal_modes(places, count=12)
    assert modes.stiffness.shape == (12,)
    assert (np.diff(modes.stiffness) >= 0).all()
    assert modes.stiffness[0] > 1e-3
    dense = np.linalg.eigvalsh(matrix.toarray())
    assert dense[:6] == pytest.approx(0, abs=1e-9)
    assert modes.stiffness == pytest.approx(dense[6:18], rel=1e-6)
    flat = modes.shapes.reshape(12, -1)
    assert flat @ flat.T == pytest.approx(np.eye(12), abs=1e-8)


def test_amplitude_is_as_asked() -> None:
    """Residues move by the root mean square that is asked for, along soft modes more, and not as a whole."""
    whole = structure(globule(80))
    moved = [one.positions - whole.positions for one in conformers(whole, count=200, amplitude=2.5)]
    at_nodes = np.array(moved)[:, whole.traced]
    assert np.sqrt((at_nodes**2).sum(axis=2).mean()) == pytest.approx(2.5, rel=0.05)
    assert np.abs(at_nodes.mean(axis=1)).max() < 0.4
    modes = normal_modes(whole.positions[whole.traced])
    along = np.einsum("mna,cna->cm", modes.shapes, at_nodes)
    wanted = 1 / np.sqrt(modes.stiffness)
    assert along.std(axis=0) / wanted == pytest.approx(np.full(20, (along.std(axis=0) / wanted).mean()), rel=0.25)
    lengths = np.linalg.norm(at_nodes, axis=2)
    own = np.sqrt((lengths**2).mean(axis=1))
    assert (lengths.max(axis=1) < 3 * own).all(), "loose ends are held back"
    assert (lengths.max(axis=1) > 1.3 * own).all()
    # An atom stays beside its residue.
    beside = np.array(moved)[:, ~whole.traced] - at_nodes
    assert np.sqrt((beside**2).sum(axis=2).mean()) < 0.6


def test_a_loose_end_does_not_throw_the_rest_about() -> None:
    """Held back, one end leaves its motion to the others, but these move no more than three times as far for it."""
    shape = np.random.default_rng(0).normal(0, 1e-3, (1, 100, 3))
    shape[0, 0] = (1.0, 0.0, 0.0)
    shape /= np.linalg.norm(shape)
    modes = NormalModes(stiffness=np.array([1.0]), shapes=shape)
    for draw in range(5):
        moved = modes.drawn(2.0, np.random.default_rng(draw))
        free = np.random.default_rng(draw).standard_normal((100, 3)) * shape[0]
        free = 20.0 * free.sum() * shape[0]
        lengths, before = (np.linalg.norm(one, axis=1) for one in (moved, free))
        size = float(np.sqrt((before**2).mean()))
        assert lengths[0] < 3 * size
        assert (lengths[1:] <= 3 * before[1:] + 1e-9).all()
        assert lengths[1:].max() < 0.2 * size


def test_large_structures_have_fewer_nodes() -> None:
    """Of more than 2000 residues every second one is a node; all move as far as asked, neighbours alike."""
    axis = np.arange(13) * 5.0
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    whole = structure(lattice + np.random.default_rng(0).normal(0, 0.5, lattice.shape))
    moved = next(conformers(whole, count=1, amplitude=2.0, seed=1)).positions - whole.positions
    residues = moved[whole.traced]
    size = np.sqrt((residues**2).sum(axis=1).mean())
    assert 0.8 < size < 3.2, "one draw of 2 Å"
    first, second = cKDTree(whole.positions[whole.traced]).query_pairs(6.5, output_type="ndarray").T
    apart = np.sqrt(((residues[first] - residues[second]) ** 2).sum(axis=1).mean())
    assert apart < 0.45 * size


def test_the_address_decides() -> None:
    """Conformer n is the same whatever is drawn beside it; signs of modes, and bases of equal ones, do not matter."""
    whole = structure(globule(60))
    few, many = list(conformers(whole, count=2, seed=3)), list(conformers(whole, count=4, seed=3))
    assert all(np.array_equal(one.positions, other.positions) for one, other in zip(few, many, strict=False))
    assert not np.allclose(few[0].positions, few[1].positions, atol=0.1)
    assert not np.allclose(few[0].positions, next(conformers(whole, count=1, seed=4)).positions, atol=0.1)
    shapes = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 3)))[0].T.reshape(3, 4, 3)
    modes = NormalModes(stiffness=np.array([1.0, 1.0, 2.0]), shapes=shapes)
    turned = modes.shapes.copy()
    turned[0], turned[1] = (modes.shapes[0] + modes.shapes[1]) / 2**0.5, (modes.shapes[0] - modes.shapes[1]) / 2**0.5
    drawn = modes.drawn(1.0, np.random.default_rng(0))
    assert replace(modes, shapes=-turned).drawn(1.0, np.random.default_rng(0)) == pytest.approx(drawn)


def test_loose_parts_are_joined() -> None:
    """Parts that the springs do not reach are joined by longer ones; what is astray has no modes."""
    places = globule(40)
    apart = np.concatenate([places, places + np.array([0.0, 0.0, 45.0])])
    assert normal_modes(apart, count=5).stiffness[0] > 1e-6
    with pytest.raises(ValueError, match="expected residues that hold together, got parts farther than 72 Å apart"):
        normal_modes(np.concatenate([places, places + 900.0]))
    with pytest.raises(ValueError, match="globule: expected four nodes or more for normal modes, got 2"):
        next(conformers(structure(places[:1]), count=1))


def test_conformers_of_a_protein(reference: Path, reference_file: Find) -> None:
    """Templates of conformers differ as far as their amplitude says, and are those of a recipe, too."""
    path = reference_file(reference, "data/pdb/1s3x.pdb")
    atoms = read_structure(path)
    assert atoms.traced.sum() > 350
    made = ParticleTemplate.from_conformers(path, voxel_size=8.0, count=2, amplitude=3.0)
    rigid = ParticleTemplate.from_structure(path, voxel_size=8.0)
    assert [one.name for one in made] == ["1s3x", "1s3x"]
    for one in made:
        assert float(one.density.sum()) == pytest.approx(float(rigid.density.sum()), rel=1e-3)
        assert one.volume == pytest.approx(rigid.volume, rel=0.05)
    same = read_templates([path], voxel_size=8.0, conformers=2, conformer_amplitude=3.0)
    assert all((one.density == other.density).all() for one, other in zip(made, same, strict=True))
    recipe = {"templates": (str(path),), "conformers": 3}
    assert len(templates_of(recipe, "templates", 8.0)["1s3x"]) == 3
    assert RECIPE["conformers"].default is None
    still = read_templates([path], voxel_size=8.0, conformers=1, conformer_amplitude=0.0)[0]
    assert still.density.shape == rigid.density.shape
    assert float((still.density - rigid.density).abs().max()) < 1e-4
    with pytest.raises(ValueError, match="expected `conformers`, how many there are, with `conformer_amplitude`"):
        read_templates([path], voxel_size=8.0, conformer_amplitude=3.0)
