"""Potentials of atoms against their closed form."""

from __future__ import annotations

import math

import gemmi
import numpy as np
import pytest
import scipy.constants
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faket_aug.generation.potential import (
    ICE_POTENTIAL,
    VOLTS_PER_FORM_FACTOR,
    coulomb_potential,
    displaced_volumes,
    form_factor,
)

SHAPE = (22, 28, 25)
VOXEL_SIZE = 3.0


def grid(shape: tuple[int, ...], voxel_size: float) -> np.ndarray:
    """The voxels' centres, `(3, z, y, x)` in Å."""
    return np.stack(np.meshgrid(*(np.arange(n) * voxel_size for n in shape), indexing="ij"))


def atoms(count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Atoms between the voxels, well within the box, of several elements."""
    draw = np.random.default_rng(seed)
    low, high = 9 * VOXEL_SIZE, (np.array(SHAPE) - 10) * VOXEL_SIZE
    return draw.uniform(low, high, (count, 3)), draw.choice(["C", "N", "O", "H", "S", "P"], count).tolist()


def closed_form(
    positions: np.ndarray,
    elements: list[str],
    weights: np.ndarray,
    b_factors: np.ndarray,
    resolution: float,
    solvent: bool,
) -> np.ndarray:
    """The sum of all Gaussians in real space, each widened by its B factor and by the low-pass."""
    places, total = grid(SHAPE, VOXEL_SIZE), np.zeros(SHAPE)
    for position, element, weight, b_factor in zip(positions, elements, weights, b_factors, strict=True):
        r2 = ((places - position[:, None, None, None]) ** 2).sum(axis=0)
        for a, b in zip(*form_factor(element, solvent=solvent), strict=True):
            width = b + b_factor + 4 * resolution**2
            total += weight * a * (4 * math.pi / width) ** 1.5 * np.exp(-4 * math.pi**2 * r2 / width)
    return total


# --- constants --------------------------------------------------------------------------------------------------------


def test_volts_per_form_factor_follow_from_constants_of_nature() -> None:
    """h² / (2π m e), from m² V to Å² V."""
    c = scipy.constants
    expected = c.h**2 / (2 * math.pi * c.m_e * c.e) * 1e20
    assert pytest.approx(expected, rel=1e-5) == VOLTS_PER_FORM_FACTOR


def test_ice_is_water_by_the_same_tables() -> None:
    """Isolated atoms at 0.93 g/cm³ add up to the potential that is subtracted for displaced ice."""
    molecule = sum(count * form_factor(element, solvent=False)[0].sum() for element, count in {"O": 1, "H": 2}.items())
    per_volume = 0.93 / 18.015 * scipy.constants.N_A * 1e-24
    assert molecule * per_volume == pytest.approx(ICE_POTENTIAL, abs=0.02)


@pytest.mark.parametrize(("element", "factor"), [("H", 0.529), ("C", 2.509), ("N", 2.211), ("O", 1.983), ("S", 5.161)])
def test_form_factors_are_those_of_the_tables(element: str, factor: float) -> None:
    """f(0) of the International Tables, table 4.3.2.2, in Å."""
    amplitudes, widths = form_factor(element, solvent=False)
    assert amplitudes.sum() / VOLTS_PER_FORM_FACTOR == pytest.approx(factor, abs=0.005)
    assert (widths > 0).all()


def test_solvent_takes_away_the_displaced_volume() -> None:
    """At k = 0 the form factor loses the ice potential times the atom's volume; far out it loses nothing."""
    for element in ("C", "H", "ZN"):
        vacuum, b_vacuum = form_factor(element, solvent=False)
        solvated, b_solvated = form_factor(element)
        volume = displaced_volumes([element])[0]
        assert vacuum.sum() - solvated.sum() == pytest.approx(ICE_POTENTIAL * volume)
        k2 = 1.5**2
        lost = (vacuum * np.exp(-b_vacuum * k2 / 4)).sum() - (solvated * np.exp(-b_solvated * k2 / 4)).sum()
        assert lost == pytest.approx(ICE_POTENTIAL * volume * math.exp(-math.pi * k2 * volume ** (2 / 3)))


def test_displaced_volumes() -> None:
    """The published ones, and van der Waals spheres for the others."""
    found = displaced_volumes(["C", "H", "ZN", "C"])
    np.testing.assert_allclose(found, [16.44, 5.15, 4 / 3 * math.pi * gemmi.Element("Zn").vdw_r ** 3, 16.44])


@pytest.mark.parametrize("element", ["X", "Es"])
def test_elements_without_scattering_factors(element: str) -> None:
    """An unknown element is no oxygen."""
    with pytest.raises(ValueError, match=f"expected an element with electron scattering factors, got '{element}'"):
        coulomb_potential(np.full((1, 3), 30.0), [element], shape=SHAPE, voxel_size=VOXEL_SIZE)


# --- the potential of atoms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solvent", [True, False])
def test_potential_is_the_sum_of_gaussians(solvent: bool) -> None:
    """Atoms anywhere between voxels, of any occupancy and B factor, give what the closed form gives."""
    positions, elements = atoms(40)
    draw = np.random.default_rng(1)
    weights, b_factors = draw.uniform(0.2, 2, 40), draw.uniform(0, 120, 40)
    # Wide enough that the low-pass is done where it ends.
    found = coulomb_potential(
        positions,
        elements,
        shape=SHAPE,
        voxel_size=VOXEL_SIZE,
        resolution=7 * VOXEL_SIZE,
        occupancies=weights,
        b_factors=b_factors,
        solvent=solvent,
    )
    expected = closed_form(positions, elements, weights, b_factors, 7 * VOXEL_SIZE, solvent)
    assert found.dtype == torch.float32
    assert found.shape == SHAPE
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max())


def test_potential_agrees_with_gemmi() -> None:
    """gemmi's own density of electrons' scattering, times h² / (2π m e), is the same potential."""
    edge, resolution = 48.0, 8.0
    model = gemmi.Model(1)
    chain, residue = gemmi.Chain("A"), gemmi.Residue()
    positions, elements = np.array([[20.3, 25.1, 22.7], [26.2, 21.5, 27.9], [23.4, 23.8, 19.6]]), ["C", "O", "S"]
    for (z, y, x), element in zip(positions, elements, strict=True):
        atom = gemmi.Atom()
        atom.element, atom.pos, atom.occ, atom.b_iso = (
            gemmi.Element(element),
            gemmi.Position(x, y, z),
            1.0,
            4 * resolution**2,
        )
        residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    calculator = gemmi.DensityCalculatorE()
    calculator.d_min, calculator.rate, calculator.cutoff = 3.0, 1.5, 1e-7
    calculator.grid.set_unit_cell(gemmi.UnitCell(edge, edge, edge, 90, 90, 90))
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.put_model_density_on_grid(model)
    theirs = VOLTS_PER_FORM_FACTOR * np.array(calculator.grid.array).transpose(2, 1, 0)
    voxel_size = edge / theirs.shape[0]
    ours = coulomb_potential(
        positions, elements, shape=theirs.shape, voxel_size=voxel_size, resolution=resolution, solvent=False
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-3 * theirs.max())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 5.0, 12.0]), st.sampled_from([2.5, 4.0]))
def test_integral_is_that_of_the_form_factors(seed: int, resolution: float | None, voxel_size: float) -> None:
    """No low-pass, grid or B factor changes the sum over voxels times their volume, given room around the atoms."""
    positions, elements = atoms(12, seed)
    shape = [math.ceil(axis.max() / voxel_size) + 12 for axis in positions.T]
    found = coulomb_potential(
        positions, elements, shape=shape, voxel_size=voxel_size, resolution=resolution, b_factors=np.full(12, 30.0)
    )
    expected = sum(form_factor(element)[0].sum() for element in elements)
    size = sum(np.abs(form_factor(element)[0]).sum() for element in elements)
    # Detail finer than two voxels is folded back, some of it onto the sum.
    folded = voxel_size > 3 and resolution != 12.0
    assert float(found.sum()) * voxel_size**3 == pytest.approx(expected, abs=(1e-2 if folded else 3e-3) * size)


def test_coordinates_point_where_they_say() -> None:
    """An atom at the centre of voxel (3, 9, 17) has its maximum there."""
    found = coulomb_potential(np.array([[6.0, 18.0, 34.0]]), ["C"], shape=(9, 14, 23), voxel_size=2.0)
    assert np.unravel_index(int(found.argmax()), found.shape) == (3, 9, 17)


def test_b_factors_blur() -> None:
    """An atom of B factor B has the transform exp(-B k² / 4), however many others there are beside it."""
    position, shape = np.array([[20.0, 22.0, 24.0]]), (21, 23, 25)
    others = np.concatenate([position, np.full((60, 3), 20.0)])
    b_factors = np.concatenate([[37.0], np.geomspace(1, 900, 60)])
    weights = np.concatenate([[1.0], np.full(60, 1e-6)])
    alone = coulomb_potential(position, ["C"], shape=shape, voxel_size=2.0, b_factors=b_factors[:1])
    among = coulomb_potential(others, ["C"] * 61, shape=shape, voxel_size=2.0, b_factors=b_factors, occupancies=weights)
    sharp = coulomb_potential(position, ["C"], shape=shape, voxel_size=2.0)
    assert float(alone.max()) < 0.8 * float(sharp.max())
    np.testing.assert_allclose(among, alone, atol=0.01 * float(alone.max()))


def test_atoms_that_do_not_go_together() -> None:
    """Arrays of different lengths, no atoms at all, and NaN."""
    positions, elements = atoms(3)
    given: dict[str, object] = {"shape": SHAPE, "voxel_size": VOXEL_SIZE}
    with pytest.raises(ValueError, match="expected positions, occupancies and B factors of one or more atoms"):
        coulomb_potential(positions, elements[:2], **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of one or more atoms"):
        coulomb_potential(positions[:0], [], **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected finite positions, occupancies"):
        coulomb_potential(positions * np.nan, elements, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected `voxel_size` to be more than 0"):
        coulomb_potential(positions, elements, shape=SHAPE, voxel_size=0)
