"""Templates from maps and from structures: in volts, about their centres, alike where they show the same particle."""

from __future__ import annotations

import gzip
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from faket_aug import FileFormatError
from faket_aug.formats.structures import read_structure
from faket_aug.generation.potential import form_factor
from faket_aug.generation.templates import (
    PROTEIN_POTENTIAL,
    PROTEIN_VOLUME,
    ParticleTemplate,
    read_templates,
)

PDB_IDS = ("1bxn", "1s3x", "3gl1", "3qm1", "3h84")
Find = Callable[[Path, str], Path]


def write_map(path: Path, density: Tensor, *, voxel_size: float = 4.0) -> Path:
    """Write a map with mrcfile itself; a voxel size of 0 is left as it is."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    with mrcfile.new(plain, overwrite=True) as file:
        file.set_data(density.numpy().astype(np.float32))
        file.voxel_size = voxel_size
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def write_atoms(path: Path, places: np.ndarray, element: str = "C", b_factor: float = 10.0) -> Path:
    """Write atoms at places (x, y, z) in Å, in a residue that carries no hydrogens."""
    name = "FE" if element == "FE" else "C"
    lines = [
        f"HETATM{i % 99999 + 1:5d} {name:<3s}  UNL A{i % 9999:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00{b_factor:6.2f}"
        f"          {element:>2s}"
        for i, (x, y, z) in enumerate(places)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    return path


def particle(shape: tuple[int, int, int] = (30, 34, 38)) -> Tensor:
    """A blurred particle of a long and a short block, plateau 1, far off the middle."""
    solid = np.zeros(shape)
    solid[8:20, 10:17, 14:28] = 1
    solid[16:22, 12:22, 10:18] = 1
    # No two voxels are alike, so that any number of them lies above some threshold.
    solid *= 1 + np.random.default_rng(0).uniform(-0.05, 0.05, shape)
    return torch.from_numpy(scipy.ndimage.gaussian_filter(solid, 0.8))


def volts(template: ParticleTemplate) -> float:
    """The integral of a template, V Å³."""
    return float(template.density.double().sum()) * template.voxel_size**3


def centered(density: np.ndarray, center: tuple[float, ...], size: int = 48) -> np.ndarray:
    """A density in a cube, shifted in Fourier space such that its centre lies in the middle voxel."""
    cube, whole = np.zeros((size,) * 3), np.floor(center).astype(int)
    corner = size // 2 - whole
    window = tuple(slice(a, a + n) for a, n in zip(corner, density.shape, strict=True))
    cube[window] = density
    spectrum = scipy.ndimage.fourier_shift(np.fft.fftn(cube), whole - np.array(center))
    shifted: np.ndarray = np.fft.ifftn(spectrum).real
    return shifted


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


# --- the data ---------------------------------------------------------------------------------------------------------


def test_template_knows_its_mask_radius_and_volume() -> None:
    """Of two voxels above the threshold the one far from the centre makes the radius, to its corner."""
    density = torch.zeros(5, 7, 9, dtype=torch.float64)
    density[2, 3, 4], density[4, 3, 8] = 2.0, 1.5
    template = ParticleTemplate(density=density, voxel_size=3.0, threshold=1.0, name="a")
    assert template.center == (2, 3, 4)
    assert template.density.dtype == torch.float32
    assert template.mask.nonzero().tolist() == [[2, 3, 4], [4, 3, 8]]
    assert template.volume == 2 * 27
    assert template.radius == pytest.approx(3 * np.linalg.norm([2.5, 0.5, 4.5]))
    moved = ParticleTemplate(density=density, voxel_size=3.0, threshold=1.0, name="a", center=(4, 3, 8))
    assert moved.radius == pytest.approx(3 * np.linalg.norm([2.5, 0.5, 4.5]))
    assert moved.symmetry == "C1"


def test_template_that_cannot_be() -> None:
    """Nothing above the threshold, no volume, no size, no number."""
    density = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="a: expected a density above its threshold 2 somewhere, got at most 0.9"):
        ParticleTemplate(density=density, voxel_size=1.0, threshold=2.0, name="a")
    with pytest.raises(ValueError, match=r"expected `density` of shape \(z, y, x\)"):
        ParticleTemplate(density=density[0], voxel_size=1.0, threshold=0.1, name="a")
    with pytest.raises(ValueError, match="expected `voxel_size` to be more than 0"):
        ParticleTemplate(density=density, voxel_size=0.0, threshold=0.1, name="a")
    with pytest.raises(FileFormatError, match="a: density: expected finite numbers, got 210 NaN"):
        ParticleTemplate(density=density * np.nan, voxel_size=1.0, threshold=0.1, name="a")


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mrc", "a.map", "a.mrc.gz"])
def test_map_keeps_its_grid_and_name(tmp_path: Path, name: str) -> None:
    """Without another voxel size the values are the map's, cropped, in the map's own units if told so."""
    density = particle()
    template = ParticleTemplate.from_map(write_map(tmp_path / name, density), normalize=False, recenter=False)
    assert template.name == "a"
    assert template.voxel_size == 4.0
    assert template.threshold == pytest.approx(0.5, rel=0.05)
    # The map's voxel (z, y, x) = (13, 12, 20), wherever the crop put it.
    z, y, x = (int(c) + p - n // 2 for c, p, n in zip(template.center, (13, 12, 20), density.shape, strict=True))
    assert float(template.density[z, y, x]) == pytest.approx(float(density[13, 12, 20]), rel=1e-6)
    assert (
        correlation(centered(density.numpy(), (15, 17, 19)), centered(template.density.numpy(), template.center))
        > 0.9999
    )
    assert template.density.numel() < density.numel() / 3


def test_map_is_centered_on_its_mass(tmp_path: Path) -> None:
    """The centre is the centre of mass, to a fraction of a voxel; the density is not moved for it."""
    density = particle()
    path = write_map(tmp_path / "a.mrc", density)
    mass, box = (ParticleTemplate.from_map(path, recenter=recenter) for recenter in (True, False))
    expected = scipy.ndimage.center_of_mass(density.numpy())
    shift = np.array(mass.center) - np.array(box.center)
    np.testing.assert_allclose(shift, np.array(expected) - [15, 17, 19], atol=0.01)
    assert torch.equal(mass.density, box.density)


@pytest.mark.parametrize("voxel_size", [4.0, 5.7, 8.0, 3.0])
def test_maps_of_other_units_are_brought_together(tmp_path: Path, voxel_size: float) -> None:
    """A factor, a background and a dark particle make no difference."""
    density = particle()
    plain = ParticleTemplate.from_map(write_map(tmp_path / "a.mrc", density), voxel_size=voxel_size)
    other = ParticleTemplate.from_map(write_map(tmp_path / "b.mrc", 700 - 90 * density), voxel_size=voxel_size)
    assert other.threshold == pytest.approx(plain.threshold, rel=1e-3)
    assert other.center == pytest.approx(plain.center, abs=1e-2)
    torch.testing.assert_close(other.density, plain.density, atol=2e-3, rtol=0)
    assert 2.5 < float(plain.density.max()) < 5
    assert float(plain.density[0].abs().max()) < 0.3


def test_dark_particles_are_recognised_or_told(tmp_path: Path) -> None:
    """The same map serves with either contrast; who insists on the wrong one hears of it, or gets it."""
    density = particle()
    path = write_map(tmp_path / "a.mrc", -density)
    found, told = (ParticleTemplate.from_map(path, invert=invert) for invert in (None, True))
    assert torch.equal(found.density, told.density)
    with pytest.raises(FileFormatError, match=r"a\.mrc: expected a particle above the background, .* set `invert`"):
        ParticleTemplate.from_map(path, invert=False)


@pytest.mark.parametrize("voxel_size", [4.0, 7.0])
def test_molecular_weight_sets_mask_and_scale(tmp_path: Path, voxel_size: float) -> None:
    """The mask holds 1.21 Å³ per Da, the integral 4.1 V Å³ per Da."""
    path = write_map(tmp_path / "a.mrc", particle())
    template = ParticleTemplate.from_map(path, voxel_size=voxel_size, molecular_weight=90)
    assert template.volume == pytest.approx(90e3 * PROTEIN_VOLUME, abs=voxel_size**3)
    assert volts(template) == pytest.approx(90e3 * PROTEIN_POTENTIAL, rel=1e-4)
    guessed = ParticleTemplate.from_map(path, voxel_size=voxel_size)
    assert volts(guessed) == pytest.approx(guessed.volume / PROTEIN_VOLUME * PROTEIN_POTENTIAL, rel=1e-4)


def test_resampled_map_keeps_place_and_mass(tmp_path: Path) -> None:
    """At a larger voxel size the particle is where it was, as heavy as it was, about as large, and smoother."""
    path = write_map(tmp_path / "a.mrc", particle())
    fine, coarse = (
        ParticleTemplate.from_map(path, voxel_size=size, recenter=False, normalize=False) for size in (4.0, 9.0)
    )
    assert coarse.voxel_size == 9.0
    assert volts(coarse) == pytest.approx(volts(fine), rel=0.03)
    assert coarse.volume == pytest.approx(fine.volume, rel=0.2)
    centers = [
        (np.array(scipy.ndimage.center_of_mass(t.density.clamp(min=0).numpy())) - t.center) * t.voxel_size
        for t in (fine, coarse)
    ]
    np.testing.assert_allclose(centers[0], centers[1], atol=0.5)
    assert np.abs(centers[0]).max() > 6
    smooth = ParticleTemplate.from_map(path, resolution=40.0, normalize=False)
    assert float(smooth.density.max()) < 0.9 * float(fine.density.max())


def test_noise_beside_the_particle_is_faded(tmp_path: Path) -> None:
    """A reconstruction's noise far from the particle is no part of the template."""
    noise = 0.05 * torch.randn(30, 34, 38, generator=torch.Generator().manual_seed(0))
    clean, noisy = (
        ParticleTemplate.from_map(write_map(tmp_path / f"{i}.mrc", density), normalize=False)
        for i, density in enumerate((particle(), particle() + noise))
    )
    assert noisy.density.shape == clean.density.shape
    assert float(noisy.density[0].abs().max()) < 0.1
    assert noisy.volume == pytest.approx(clean.volume, rel=0.1)


def test_given_threshold_and_names_are_kept(tmp_path: Path) -> None:
    """What is given is not found out."""
    path = write_map(tmp_path / "a.mrc", particle())
    template = ParticleTemplate.from_map(path, threshold=0.7, name="ribosome", symmetry="D7")
    assert (template.threshold, template.name, template.symmetry) == (0.7, "ribosome", "D7")
    assert template.volume > ParticleTemplate.from_map(path).volume


@pytest.mark.parametrize("value", [0.0, 7.5, -3e4])
def test_map_without_signal(tmp_path: Path, value: float) -> None:
    """The same value everywhere shows no particle."""
    path = write_map(tmp_path / "a.mrc", torch.full((6, 7, 8), value))
    with pytest.raises(
        FileFormatError, match=rf"a\.mrc: expected a density map with a signal, got {value:g} in every"
    ) as e:
        ParticleTemplate.from_map(path)
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)


def test_a_header_in_nanometres(tmp_path: Path) -> None:
    """A map that would be smaller than three voxels is refused; the message says which unit is meant."""
    path = write_map(tmp_path / "a.mrc", particle(), voxel_size=0.4)
    with pytest.raises(FileFormatError, match=r"a\.mrc: expected a map of 30 Å or more .* got one of 15.2 Å, .* nm"):
        ParticleTemplate.from_map(path, voxel_size=10.0)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_map_in_another_unit(tmp_path: Path, factor: float) -> None:
    """Scaled to volts the unit does not matter; kept as it is, it is told."""
    volts, other = (write_map(tmp_path / f"{n}.mrc", n * particle()) for n in (3.0, 3.0 * factor))
    scaled = [ParticleTemplate.from_map(path).density for path in (volts, other)]
    torch.testing.assert_close(scaled[0], scaled[1], rtol=1e-4, atol=1e-4)
    ParticleTemplate.from_map(volts, normalize=False)
    with pytest.warns(UserWarning, match=r"times those of a protein .* in volts above ice; set `normalize`"):
        ParticleTemplate.from_map(other, normalize=False)


def test_header_without_voxel_size_asks_for_one(tmp_path: Path) -> None:
    """0 Å is no size; the one given is taken in its place, and before any other."""
    path = write_map(tmp_path / "a.mrc", particle(), voxel_size=0.0)
    with pytest.raises(
        FileFormatError, match=r"a\.mrc: expected a voxel size in the header, got 0; set `map_voxel_size`"
    ):
        ParticleTemplate.from_map(path)
    given = ParticleTemplate.from_map(path, map_voxel_size=4.0)
    known = ParticleTemplate.from_map(write_map(tmp_path / "b.mrc", particle(), voxel_size=4.0))
    assert given.voxel_size == 4.0
    torch.testing.assert_close(given.density, known.density)
    wrong = write_map(tmp_path / "c.mrc", particle(), voxel_size=1.0)
    torch.testing.assert_close(ParticleTemplate.from_map(wrong, map_voxel_size=4.0).density, known.density)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"voxel_size": 0.0}, "expected `voxel_size` to be more than 0"),
        ({"map_voxel_size": -1.0}, "expected `map_voxel_size` to be more than 0"),
        ({"molecular_weight": 0.0}, "expected `molecular_weight` to be more than 0"),
        ({"molecular_weight": 1e6}, r"got none at .*; check `molecular_weight` \(kDa\) and the map's voxel size"),
        ({"resolution": -5.0}, "expected `resolution` to be 0 or more"),
        ({"threshold": 1e6}, "a: expected a density above its threshold 1e"),
    ],
)
def test_map_settings_that_cannot_be(tmp_path: Path, settings: dict[str, float], message: str) -> None:
    """A wrong number is named."""
    path = write_map(tmp_path / "a.mrc", particle())
    with pytest.raises(ValueError, match=message):
        ParticleTemplate.from_map(path, **settings)  # type: ignore[arg-type]


# --- structures -------------------------------------------------------------------------------------------------------


def test_atoms_lie_where_the_file_says(tmp_path: Path) -> None:
    """x, y and z of the file are the last, middle and first axis, and keep their direction."""
    path = write_atoms(tmp_path / "a.pdb", np.array([[0.0, 0, 0], [0, 0, 40], [0, 24, 0], [64, 0, 0]]))
    template = ParticleTemplate.from_structure(path, voxel_size=4.0, solvent=False, recenter=False, threshold=0.01)
    peaks = scipy.ndimage.maximum_filter(template.density.numpy(), 5) == template.density.numpy()
    found = np.argwhere(peaks & template.mask.numpy() & (template.density.numpy() > 0.1)) - np.array(template.center)
    assert sorted(map(tuple, found.astype(int).tolist())) == [(0, 0, 0), (0, 0, 16), (0, 6, 0), (10, 0, 0)]


def test_structure_is_centered_on_its_mass(tmp_path: Path) -> None:
    """By default the centre of mass lies in the middle voxel, wherever the file has it; else the file's origin does."""
    places = np.random.default_rng(0).uniform(-1, 1, (300, 3)) * [30, 20, 10] + [500, -300, 7.3]
    path = write_atoms(tmp_path / "a.pdb", places)
    template = ParticleTemplate.from_structure(path, voxel_size=5.0)
    assert template.center == tuple(n // 2 for n in template.density.shape)
    mass = np.array(scipy.ndimage.center_of_mass(template.density.double().numpy()))
    np.testing.assert_allclose(mass, template.center, atol=0.02)
    there = ParticleTemplate.from_structure(path, voxel_size=5.0, recenter=False)
    mass = np.array(scipy.ndimage.center_of_mass(there.density.double().numpy()))
    np.testing.assert_allclose((mass - there.center) * 5.0, places.mean(axis=0)[::-1], atol=0.1)
    assert float(template.density[0].abs().max()) < 0.03 * float(template.density.max())


def test_structure_is_in_volts(tmp_path: Path) -> None:
    """The integral is that of the atoms' form factors, above ice or in vacuum; the mask is as large as the atoms."""
    places = np.random.default_rng(0).uniform(-15, 15, (500, 3))
    path = write_atoms(tmp_path / "a.pdb", places)
    for solvent in (True, False):
        template = ParticleTemplate.from_structure(path, voxel_size=5.0, solvent=solvent, hydrogens=False)
        assert volts(template) == pytest.approx(500 * form_factor("C", solvent=solvent)[0].sum(), rel=2e-3)
        assert template.volume == pytest.approx(500 * 16.44, abs=125)
    vacuum = ParticleTemplate.from_structure(path, voxel_size=5.0, solvent=False)
    assert volts(vacuum) > 1.5 * volts(ParticleTemplate.from_structure(path, voxel_size=5.0))


def test_hydrogens_alone_are_refused(tmp_path: Path) -> None:
    """A file of hydrogens, or one whose elements were lost, is no molecule: neither for a template nor conformers."""
    places = np.array([(3.0 * i, 2.0 * (i % 3), 0.0) for i in range(12)])
    path = write_atoms(tmp_path / "lost.pdb", places, element="H")
    message = r"lost(\.pdb)?: expected atoms other than hydrogens, got 12 hydrogens alone; give the whole molecule"
    with pytest.raises(FileFormatError, match=message):
        ParticleTemplate.from_structure(path, voxel_size=4.0)
    with pytest.raises(FileFormatError, match=message):
        ParticleTemplate.from_conformers(path, voxel_size=4.0, count=1)


def test_hydrogens_b_factors_and_resolution_are_taken(tmp_path: Path) -> None:
    """Each setting does what it says."""
    places = np.random.default_rng(0).uniform(-8, 8, (60, 3))
    path = write_atoms(tmp_path / "a.pdb", places, b_factor=300.0)
    blurred = ParticleTemplate.from_structure(path, voxel_size=2.0)
    sharp = ParticleTemplate.from_structure(path, voxel_size=2.0, b_factors=False)
    low = ParticleTemplate.from_structure(path, voxel_size=2.0, resolution=20.0)
    bare = ParticleTemplate.from_structure(path, voxel_size=2.0, hydrogens=False)
    assert float(sharp.density.max()) > 1.5 * float(blurred.density.max()) > 2 * float(low.density.max())
    assert volts(sharp) == pytest.approx(volts(blurred), rel=0.01)
    hydrogen = 60 * 1.3 * form_factor("H")[0].sum()
    assert volts(blurred) - volts(bare) == pytest.approx(hydrogen, rel=0.05)


def test_structure_settings(tmp_path: Path) -> None:
    """Names, thresholds and assemblies are handed on; a wrong one is named."""
    path = write_atoms(tmp_path / "a.pdb", np.zeros((1, 3)), element="FE")
    template = ParticleTemplate.from_structure(path, voxel_size=3.0, threshold=0.1, name="iron", symmetry="O")
    assert (template.threshold, template.name, template.symmetry) == (0.1, "iron", "O")
    assert ParticleTemplate.from_structure(path, voxel_size=3.0).name == "a"
    with pytest.raises(ValueError, match=r"a\.pdb: expected `assembly` to be one of"):
        ParticleTemplate.from_structure(path, voxel_size=3.0, assembly="1")
    with pytest.raises(ValueError, match="expected `voxel_size` to be more than 0"):
        ParticleTemplate.from_structure(path, voxel_size=0.0)
    with pytest.raises(ValueError, match="expected `resolution` to be 0 or more"):
        ParticleTemplate.from_structure(path, voxel_size=3.0, resolution=-1.0)
    (tmp_path / "b.pdb").write_text("HEADER    NOTHING\nEND\n")
    with pytest.raises(FileFormatError, match=r"b\.pdb: expected atoms, found none"):
        ParticleTemplate.from_structure(tmp_path / "b.pdb", voxel_size=3.0)


# --- against published maps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pdb_id", PDB_IDS)
def test_structures_look_like_the_published_maps(reference: Path, reference_file: Find, pdb_id: str) -> None:
    """The template made of the atoms correlates with the map that another program made, about their centres of mass."""
    path = reference_file(reference, f"data/particles_10A/{pdb_id}.mrc")
    template = ParticleTemplate.from_structure(reference / "data" / "pdb" / f"{pdb_id}.pdb", voxel_size=10.0)
    theirs = mrcfile.read(path).astype(float)
    ours = centered(template.density.numpy(), template.center, 64)
    assert correlation(ours, centered(theirs, scipy.ndimage.center_of_mass(theirs), 64)) > 0.98
    mapped = ParticleTemplate.from_map(path)
    assert correlation(ours, centered(mapped.density.numpy(), mapped.center, 64)) > 0.98
    flipped = ours[::-1, :, :]
    assert correlation(flipped, centered(theirs, scipy.ndimage.center_of_mass(theirs), 64)) < 0.95


@pytest.mark.parametrize("pdb_id", PDB_IDS)
def test_maps_and_structures_can_be_mixed(reference: Path, pdb_id: str) -> None:
    """Arbitrary units of a map come within 5 % of the atoms' volts with its mass, within 30 % without."""
    data = reference / "data"
    mass = float(read_structure(data / "pdb" / f"{pdb_id}.pdb").masses.sum())
    atoms = volts(ParticleTemplate.from_structure(data / "pdb" / f"{pdb_id}.pdb", voxel_size=10.0))
    path = data / "particles_10A" / f"{pdb_id}.mrc"
    known = ParticleTemplate.from_map(path, molecular_weight=mass / 1e3)
    assert volts(known) == pytest.approx(atoms, rel=0.05)
    for folder in ("particles_10A", "potentials_10A"):
        guessed = ParticleTemplate.from_map(data / folder / f"{pdb_id}.mrc")
        assert volts(guessed) == pytest.approx(atoms, rel=0.3)


def test_mass_scales_with_the_number_of_atoms(reference: Path) -> None:
    """Across proteins of 2,000 to 18,000 atoms the integral per atom is the same."""
    per_atom = []
    for pdb_id in ("3qm1", "1s3x", "3gl1", "1bxn"):
        path = reference / "data" / "pdb" / f"{pdb_id}.pdb"
        atoms = len(read_structure(path, hydrogens=False))
        per_atom.append(volts(ParticleTemplate.from_structure(path, voxel_size=10.0)) / atoms)
    np.testing.assert_allclose(per_atom, np.mean(per_atom), rtol=0.05)
    assert np.mean(per_atom) == pytest.approx(58, abs=3)  # 14.2 Da per heavy atom with its hydrogens, 4.1 V Å³ per Da


@pytest.mark.slow
def test_large_assemblies_take_seconds(tmp_path: Path) -> None:
    """A hundred thousand atoms are read and summed within seconds of a processor's time."""
    draw = np.random.default_rng(0)
    model, chain = gemmi.Model(1), gemmi.Chain("A")
    names = ["N", "CA", "C", "O", "CB", "CG", "CD1", "CD2"]
    for i, center in enumerate(draw.uniform(-90, 90, (12_500, 3))):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "LEU", gemmi.SeqId(i + 1, " ")
        for name, place in zip(names, center + draw.normal(0, 2, (8, 3)), strict=True):
            atom = gemmi.Atom()
            atom.name, atom.element, atom.pos = name, gemmi.Element(name[0]), gemmi.Position(*place)
            atom.occ, atom.b_iso = 1.0, float(draw.uniform(20, 120))
            residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    structure = gemmi.Structure()
    structure.add_model(model)
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(tmp_path / "large.cif"))
    start = time.process_time()
    template = ParticleTemplate.from_structure(tmp_path / "large.cif", voxel_size=10.0)
    assert time.process_time() - start < 30
    # A leucine within a chain is C6 H11 N O.
    expected = 12_500 * sum(n * form_factor(e)[0].sum() for e, n in {"C": 6, "H": 11, "N": 1, "O": 1}.items())
    assert volts(template) == pytest.approx(expected, rel=0.01)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_folder_of_templates(tmp_path: Path) -> None:
    """Maps and structures come in the order of their names, at one voxel size; other files are passed over."""
    write_map(tmp_path / "b.mrc", particle())
    write_map(tmp_path / "d.map.gz", particle())
    write_atoms(tmp_path / "c.pdb", np.zeros((5, 3)))
    write_atoms(tmp_path / "a.ent", np.zeros((5, 3)))
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / ".hidden.mrc").write_text("of an operating system")
    (tmp_path / "more.mrc").mkdir()
    found = read_templates(tmp_path, voxel_size=7.0, molecular_weights={"b": 77.0})
    assert [template.name for template in found] == ["a", "b", "c", "d"]
    assert {template.voxel_size for template in found} == {7.0}
    assert volts(found[1]) == pytest.approx(77e3 * PROTEIN_POTENTIAL, rel=1e-4)
    listed = read_templates([tmp_path / "d.map.gz", str(tmp_path / "a.ent")], voxel_size=7.0, resolution=30.0)
    assert [template.name for template in listed] == ["d", "a"]
    assert float(listed[1].density.max()) < float(found[0].density.max())
    assert [template.name for template in read_templates(tmp_path / "c.pdb", voxel_size=7.0)] == ["c"]


def test_folders_that_hold_no_templates(tmp_path: Path) -> None:
    """An empty folder, a missing file, a file of another kind, two of one name, a weight for none."""
    with pytest.raises(
        FileNotFoundError, match=r"expected density maps or atomic structures \(\.mrc, .*\), found none in"
    ):
        read_templates(tmp_path, voxel_size=10.0)
    with pytest.raises(FileNotFoundError, match="expected density maps or atomic structures"):
        read_templates([], voxel_size=10.0)
    with pytest.raises(
        FileNotFoundError, match=r"expected a density map or an atomic structure, found none at .*nowhere"
    ):
        read_templates(tmp_path / "nowhere", voxel_size=10.0)
    (tmp_path / "a.txt").write_text("no template")
    with pytest.raises(FileFormatError, match=r"a\.txt: expected a file named \.mrc, \.map"):
        read_templates([tmp_path / "a.txt"], voxel_size=10.0)
    write_map(tmp_path / "a.mrc", particle())
    with pytest.raises(ValueError, match="expected `molecular_weights` of a, got one of b"):
        read_templates(tmp_path, voxel_size=10.0, molecular_weights={"b": 10.0})
    write_atoms(tmp_path / "a.pdb", np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"expected one file for each name, got .*a\.mrc and .*a\.pdb"):
        read_templates(tmp_path, voxel_size=10.0)
    (tmp_path / "a.pdb").write_text("END\n")
    (tmp_path / "a.mrc").unlink()
    with pytest.raises(FileFormatError, match=r"a\.pdb: expected atoms, found none"):
        read_templates(tmp_path, voxel_size=10.0)


# --- what cannot be a particle ----------------------------------------------------------------------------------------


def test_hot_voxel_is_no_particle(tmp_path: Path) -> None:
    """A voxel or two that stand out of all others are named, at whatever voxel size the template is wanted."""
    density = particle() / 100
    density[3, 4, 5] = 1000.0
    path = write_map(tmp_path / "a.mrc", density)
    for voxel_size in (None, 12.0):
        with pytest.raises(
            FileFormatError, match=r"a.mrc: expected a density that is smooth, .*1 voxel .* \[3, 4, 5\]"
        ):
            ParticleTemplate.from_map(path, voxel_size=voxel_size)


def _sharpened(density: torch.Tensor, voxel_size: float, b_factor: float, high_pass: float) -> torch.Tensor:
    """As programs of refinement do: exp(B k² / 4), and nothing below 1 / high_pass."""
    k = [torch.fft.fftfreq(n, voxel_size) for n in density.shape]
    k2 = k[0][:, None, None] ** 2 + k[1][:, None] ** 2 + k[2] ** 2
    weight = torch.exp(b_factor * k2 / 4) * (1 - torch.exp(-k2 * high_pass**2))
    return torch.fft.ifftn(torch.fft.fftn(density) * weight).real.float()


@pytest.mark.parametrize(("b_factor", "high_pass"), [(0.0, 1000.0), (100.0, 1000.0), (100.0, 60.0)])
def test_mass_of_sharpened_maps(reference: Path, tmp_path: Path, b_factor: float, high_pass: float) -> None:
    """A map that is high at its atoms only has the mass of its envelope, to 30 %."""
    path = reference / "data" / "pdb" / "1s3x.pdb"
    mass = float(read_structure(path).masses.sum())
    fine = ParticleTemplate.from_structure(path, voxel_size=2.0, resolution=4.0).density
    density = _sharpened(torch.nn.functional.pad(fine, (12,) * 6), 2.0, b_factor, high_pass)
    template = ParticleTemplate.from_map(write_map(tmp_path / "a.mrc", density, voxel_size=2.0))
    assert volts(template) / PROTEIN_POTENTIAL == pytest.approx(mass, rel=0.3)


ATOM = "ATOM  {serial:5d}  CB  ALA A{serial:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C\n"


def _cloud(path: Path, places: list[tuple[float, float, float]]) -> Path:
    rows = [ATOM.format(serial=i % 9999 + 1, x=x, y=y, z=z) for i, (x, y, z) in enumerate(places)]
    path.write_text("".join(rows) + "END\n")
    return path


@pytest.mark.filterwarnings("ignore:.*expected all heavy atoms")
def test_stray_atoms(tmp_path: Path) -> None:
    """One atom at 9999 Å is named before memory is asked for; two molecules apart are no error."""
    near = [(4.0 * (i % 10), 4.0 * (i // 10 % 10), 4.0 * (i // 100)) for i in range(300)]
    for place in ((9999.0, 9999.0, 9999.0), (120.0, 0.0, 0.0)):
        path = _cloud(tmp_path / "a.pdb", [*near, place])
        with pytest.raises(FileFormatError, match=rf"a.pdb: expected atoms near each other, .*astray, .*{place[0]}"):
            ParticleTemplate.from_structure(path, voxel_size=10.0)
    apart = [(x + 150, y, z) for x, y, z in near]
    template = ParticleTemplate.from_structure(_cloud(tmp_path / "b.pdb", near + apart), voxel_size=10.0)
    assert template.radius > 90


@pytest.mark.filterwarnings("ignore:.*expected all heavy atoms")
def test_structures_that_fill_no_box(tmp_path: Path) -> None:
    """Parts that are far from each other are refused with the extent, where the box would be empty."""
    one = [(4.0 * (i % 5), 4.0 * (i // 5 % 5), 4.0 * (i // 25)) for i in range(75)]
    far = [(x + 6000, y + 6000, z + 6000) for x, y, z in one]
    with pytest.raises(FileFormatError, match="expected a structure that fills its box, got .* 6016 x 6016 x 6008 Å"):
        ParticleTemplate.from_structure(_cloud(tmp_path / "a.pdb", one + far), voxel_size=5.0)
