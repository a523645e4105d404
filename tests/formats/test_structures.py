"""Atomic structures: what is in a file, what it leaves out, and what to do without network."""

from __future__ import annotations

import gzip
import io
import pickle
from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import gemmi
import numpy as np
import pytest

from faket_aug import FileFormatError
from faket_aug.formats import structures
from faket_aug.formats.structures import AtomicStructure, fetch_structure, read_structure, structure_name

#: Element, atom, residue, number, (x, y, z) in Å, occupancy, B factor.
GLYCINE = [
    ("N", "N", "GLY", 1, (1.0, 20.0, 300.0), 1.0, 10.0),
    ("C", "CA", "GLY", 1, (2.0, 21.0, 301.0), 1.0, 20.0),
    ("C", "C", "GLY", 1, (3.0, 22.0, 302.0), 0.5, 30.0),
    ("O", "O", "GLY", 1, (4.0, 23.0, 303.0), 0.5, 40.0),
]
WATER = [("O", "O", "HOH", 9, (50.0, 51.0, 52.0), 1.0, 50.0)]


def pdb_line(serial: int, atom: tuple[Any, ...], altloc: str = " ") -> str:
    """A line by the columns of the PDB's format."""
    element, name, residue, number, (x, y, z), occupancy, b_factor = atom
    kind = "HETATM" if residue == "HOH" else "ATOM  "
    numbers = f"{x:8.3f}{y:8.3f}{z:8.3f}" + ("" if occupancy is None else f"{occupancy:6.2f}{b_factor:6.2f}")
    return f"{kind}{serial:5d}  {name:<3s}{altloc}{residue:>3s} A{number:4d}    {numbers:<36s}          {element:>2s}"


def write_pdb(path: Path, atoms: list[tuple[Any, ...]], *, before: str = "") -> Path:
    """Write a PDB file; gzipped where its name says so."""
    text = before + "\n".join(pdb_line(i + 1, atom) for i, atom in enumerate(atoms)) + "\nEND\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_mmcif(path: Path, source: Path) -> Path:
    """Write an mmCIF file of a PDB file's atoms."""
    structure = gemmi.read_structure(str(source))
    structure.setup_entities()
    text = structure.make_mmcif_document().as_string()
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def heavy(structure: AtomicStructure) -> np.ndarray:
    """Which atoms are no hydrogens."""
    return structure.elements != "H"


def hydrogens(structure: AtomicStructure) -> float:
    """How many hydrogens there are."""
    return float(structure.occupancies[~heavy(structure)].sum())


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pdb", "a.ent", "a.PDB", "a.pdb.gz", "a.cif", "a.mmcif", "a.cif.gz"])
def test_atoms_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    """Coordinates come as (z, y, x) in Å with their elements, occupancies and B factors, from every kind of file."""
    if "cif" in name:
        write_mmcif(tmp_path / name, write_pdb(tmp_path / "source.pdb", GLYCINE))
    else:
        write_pdb(tmp_path / name, GLYCINE)
    found = read_structure(tmp_path / name, hydrogens=False)
    assert found.name == "a"
    assert len(found) == 4
    assert found.elements.tolist() == ["N", "C", "C", "O"]
    np.testing.assert_allclose(found.positions, [[300 + i, 20 + i, 1 + i] for i in range(4)])
    np.testing.assert_allclose(found.occupancies, [1, 1, 0.5, 0.5])
    np.testing.assert_allclose(found.b_factors, [10, 20, 30, 40])


def test_masses_and_their_center(tmp_path: Path) -> None:
    """The centre of mass is the mean over atomic weights times occupancies."""
    found = read_structure(write_pdb(tmp_path / "a.pdb", GLYCINE), hydrogens=False)
    masses = np.array([14.007, 12.011, 12.011 / 2, 15.999 / 2])
    np.testing.assert_allclose(found.masses, masses, rtol=1e-4)
    along = (masses * np.arange(4)).sum() / masses.sum()
    np.testing.assert_allclose(found.center_of_mass, [300 + along, 20 + along, 1 + along], atol=1e-3)


def test_waters_are_left_out_unless_wanted(tmp_path: Path) -> None:
    """Ice is everywhere; the water that a crystal shows is not the molecule's."""
    path = write_pdb(tmp_path / "a.pdb", GLYCINE + WATER)
    assert read_structure(path, hydrogens=False).elements.tolist() == ["N", "C", "C", "O"]
    kept = read_structure(path, hydrogens=False, waters=True)
    assert kept.elements.tolist() == ["N", "C", "C", "O", "O"]
    np.testing.assert_allclose(kept.positions[-1], [52, 51, 50])


def test_first_model_alone_is_read(tmp_path: Path) -> None:
    """The models of one molecule are no molecules beside each other."""
    lines = [pdb_line(i + 1, atom) for i, atom in enumerate(GLYCINE)]
    text = "\n".join(["MODEL        1", *lines, "ENDMDL", "MODEL        2", *lines[:2], "ENDMDL", "END", ""])
    (tmp_path / "a.pdb").write_text(text)
    assert len(read_structure(tmp_path / "a.pdb", hydrogens=False)) == 4


def test_alternate_locations_share_an_occupancy(tmp_path: Path) -> None:
    """Both places of an atom are kept, each with its part, and their hydrogens with them."""
    serine = [
        ("N", "N", "SER", 1, (0.0, 0.0, 0.0), 1.0, 10.0),
        ("C", "CB", "SER", 1, (1.0, 0.0, 0.0), 0.7, 10.0),
        ("C", "CB", "SER", 1, (2.0, 0.0, 0.0), 0.3, 10.0),
    ]
    lines = [pdb_line(i + 1, atom, altloc) for i, (atom, altloc) in enumerate(zip(serine, " AB", strict=True))]
    (tmp_path / "a.pdb").write_text("\n".join([*lines, "END", ""]))
    found = read_structure(tmp_path / "a.pdb")
    np.testing.assert_allclose(found.occupancies[heavy(found)], [1, 0.7, 0.3])
    assert hydrogens(found) == pytest.approx(1 + 2)
    np.testing.assert_allclose(found.occupancies[~heavy(found)], [1, 1.4, 0.6])


def test_blank_occupancies_are_one(tmp_path: Path) -> None:
    """A model without the column is there all the same, with its hydrogens."""
    atoms = [(*atom[:5], None, None) for atom in GLYCINE]
    found = read_structure(write_pdb(tmp_path / "a.pdb", atoms))
    assert found.occupancies[heavy(found)].tolist() == [1, 1, 1, 1]
    assert hydrogens(found) == 3


def test_unknown_elements_are_named_and_left_out(tmp_path: Path) -> None:
    """An atom without an element scatters nobody knows how much."""
    path = write_pdb(tmp_path / "a.pdb", [*GLYCINE, ("X", "QX", "GLY", 1, (9.0, 9.0, 9.0), 1.0, 1.0)])
    with pytest.warns(UserWarning, match=r"a\.pdb: 1 atoms of unknown element"):
        assert len(read_structure(path, hydrogens=False)) == 4


# --- hydrogens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residue", sorted(structures._HYDROGENS))
def test_hydrogens_of_residues_are_those_of_their_formula(residue: str) -> None:
    """The table agrees with gemmi's formulas of free components, less the bond's water and the acid protons."""
    nucleotide = len(residue) <= 2
    acid = {"ASP": 1, "GLU": 1, "HIS": 1}.get(residue, 0)
    lost = 3 if nucleotide else 2 + acid
    assert sum(structures._HYDROGENS[residue].values()) == gemmi.find_tabulated_residue(residue).hydrogen_count - lost


def test_missing_hydrogens_ride_on_their_atoms(tmp_path: Path) -> None:
    """They lie at the heavy atom that carries them, with its occupancy and B factor."""
    found = read_structure(write_pdb(tmp_path / "a.pdb", GLYCINE))
    assert found.elements.tolist() == ["N", "C", "C", "O", "H", "H"]
    np.testing.assert_allclose(found.positions[4:], found.positions[:2])
    np.testing.assert_allclose(found.occupancies[4:], [1, 2])
    np.testing.assert_allclose(found.b_factors[4:], [10, 20])


@pytest.mark.parametrize("listed", [0, 1, 2, 3, 4])
def test_listed_hydrogens_are_not_added_again(tmp_path: Path, listed: int) -> None:
    """A file with some of its hydrogens (the polar ones, say) is filled up to the number there has to be."""
    own = [("H", f"H{i}", "GLY", 1, (7.0, 8.0, 9.0 + i), 1.0, 5.0) for i in range(listed)]
    found = read_structure(write_pdb(tmp_path / "a.pdb", GLYCINE + own))
    assert hydrogens(found) == pytest.approx(max(3, listed))
    assert (found.positions[~heavy(found)][:, 1] == 8).sum() == listed


def test_hydrogens_of_a_whole_protein(reference: Path) -> None:
    """Proteins hold nearly as many hydrogens as heavy atoms, 7 % of their mass."""
    found = read_structure(reference / "data" / "pdb" / "1bxn.pdb")
    assert hydrogens(found) / heavy(found).sum() == pytest.approx(1.0, abs=0.03)
    assert found.masses[~heavy(found)].sum() / found.masses.sum() == pytest.approx(0.07, abs=0.003)


def test_hydrogens_of_other_components(tmp_path: Path) -> None:
    """Known components get their formula's, unknown ones 1.3 per carbon, and an ion none."""
    glycerol = [("C", f"C{i}", "GOL", 1, (float(i), 0.0, 0.0), 1.0, 10.0) for i in range(3)]
    assert hydrogens(read_structure(write_pdb(tmp_path / "a.pdb", glycerol))) == pytest.approx(8)
    lipid = [("C", f"C{i}", "Q9Q", 1, (float(i), 0.0, 0.0), 1.0, 10.0) for i in range(10)]
    assert hydrogens(read_structure(write_pdb(tmp_path / "b.pdb", lipid))) == pytest.approx(13)
    zinc = [("ZN", "ZN", " ZN", 1, (0.0, 0.0, 0.0), 1.0, 10.0)]
    assert hydrogens(read_structure(write_pdb(tmp_path / "c.pdb", zinc))) == 0


# --- assemblies -------------------------------------------------------------------------------------------------------

_REMARK_350 = (
    "REMARK 350 BIOMOLECULE: 1\n"
    "REMARK 350 APPLY THE FOLLOWING TO CHAINS: A\n"
    "REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000\n"
    "REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000\n"
    "REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000\n"
    "REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000       10.00000\n"
    "REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000        0.00000\n"
    "REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000        5.00000\n"
)


@pytest.mark.parametrize("assembly", ["1", 1])
@pytest.mark.parametrize("name", ["a.pdb", "a.cif"])
def test_assembly_holds_all_copies(tmp_path: Path, name: str, assembly: str | int) -> None:
    """The molecule that lives is made of the atoms listed, turned and shifted; by default they come as listed."""
    path = write_pdb(tmp_path / "a.pdb", GLYCINE, before=_REMARK_350)
    path = path if name == "a.pdb" else write_mmcif(tmp_path / name, path)
    assert len(read_structure(path, hydrogens=False)) == 4
    whole = read_structure(path, assembly=assembly, hydrogens=False)
    assert len(whole) == 8
    copy = whole.positions[4:]
    np.testing.assert_allclose(copy, [[305 + i, -20 - i, 9 - i] for i in range(4)], atol=1e-3)


def test_assemblies_are_listed_where_the_name_is_wrong(tmp_path: Path) -> None:
    """Whoever asks for what is not there hears what is."""
    path = write_pdb(tmp_path / "a.pdb", GLYCINE, before=_REMARK_350)
    with pytest.raises(ValueError, match=r"a\.pdb: expected `assembly` to be one of .*\('1'\), got '7'"):
        read_structure(path, assembly="7")
    with pytest.raises(ValueError, match=r"in the file \(none\), got 1"):
        read_structure(write_pdb(tmp_path / "b.pdb", GLYCINE), assembly=1)


def test_assembly_of_chains_that_are_not_named(tmp_path: Path) -> None:
    """An mmCIF file without the chains' labels (from a program that makes models) cannot be put together."""
    source = gemmi.read_structure(str(write_pdb(tmp_path / "a.pdb", GLYCINE, before=_REMARK_350)))
    (tmp_path / "a.cif").write_text(source.make_mmcif_document().as_string())
    with pytest.raises(FileFormatError, match=r"a\.cif: expected chains for assembly '1', got none .*leave out"):
        read_structure(tmp_path / "a.cif", assembly=1)


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pdb", "a.cif", "a.pdb.gz"])
@pytest.mark.parametrize("text", ["", "HEADER    NOTHING\nEND\n", "data_x\n_cell.length_a 3\n"])
def test_file_without_atoms(tmp_path: Path, name: str, text: str) -> None:
    """No atoms, no template; the message names the file."""
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    with pytest.raises(FileFormatError, match=rf"{name}: expected (atoms, found none|a PDB or mmCIF file)"):
        read_structure(tmp_path / name)


def test_file_of_water(tmp_path: Path) -> None:
    """Water alone is no molecule unless it is asked for."""
    path = write_pdb(tmp_path / "a.pdb", WATER)
    with pytest.raises(FileFormatError, match=r"a\.pdb: expected atoms other than water, found none"):
        read_structure(path)
    assert len(read_structure(path, waters=True, hydrogens=False)) == 1


def test_truncated_file(tmp_path: Path) -> None:
    """Half a compressed file, and an mmCIF cut within its table, are not read as far as they go."""
    whole = write_pdb(tmp_path / "a.pdb.gz", GLYCINE * 50).read_bytes()
    (tmp_path / "a.pdb.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match=r"a\.pdb\.gz: expected a whole file compressed by gzip"):
        read_structure(tmp_path / "a.pdb.gz")
    (tmp_path / "b.pdb.gz").write_bytes(b"no gzip")
    with pytest.raises(FileFormatError, match=r"b\.pdb\.gz: expected a whole file compressed by gzip"):
        read_structure(tmp_path / "b.pdb.gz")
    path = write_mmcif(tmp_path / "c.cif", write_pdb(tmp_path / "c.pdb", GLYCINE))
    text = path.read_text()
    path.write_text(text[: text.index("GLY", text.index("ATOM")) + 3])
    with pytest.raises(FileFormatError, match=r"c\.cif: expected a PDB or mmCIF file, got one that cannot be read"):
        read_structure(path)


def test_other_bad_files(tmp_path: Path) -> None:
    """A wrong name, no file, no number."""
    (tmp_path / "a.xyz").write_text("1\n\nC 0 0 0\n")
    with pytest.raises(FileFormatError, match=r"expected a file named \.pdb, \.ent, \.cif, \.mmcif .* got 'a\.xyz'"):
        read_structure(tmp_path / "a.xyz")
    with pytest.raises(FileNotFoundError, match=r"expected a PDB or mmCIF file, found none at .*b\.pdb"):
        read_structure(tmp_path / "b.pdb")
    path = write_mmcif(tmp_path / "c.cif", write_pdb(tmp_path / "c.pdb", GLYCINE))
    path.write_text(path.read_text().replace(" 21 ", " nan "))
    with pytest.raises(FileFormatError, match=r"c\.cif: expected finite coordinates"):
        read_structure(path)


@pytest.mark.parametrize(
    ("path", "name"), [("a/1bxn.pdb", "1bxn"), ("1bxn.cif.gz", "1bxn"), ("emd_1.5A.map.gz", "emd_1.5A"), ("x", "x")]
)
def test_names_are_stems(path: str, name: str) -> None:
    """A class is named as its file, without what says how the file is stored."""
    assert structure_name(path) == name


# --- download ---------------------------------------------------------------------------------------------------------


class Network:
    """A stand-in for the network, that counts its calls."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer, self.urls = answer, []

    def __call__(self, url: str, *, timeout: float) -> io.BytesIO:
        self.urls.append((url, timeout))
        if isinstance(self.answer, Exception):
            raise self.answer
        return io.BytesIO(self.answer)


def _network(monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception) -> Network:
    network = Network(answer)
    monkeypatch.setattr(structures, "urlopen", network)
    return network


@pytest.fixture
def entry(tmp_path: Path) -> bytes:
    """What the server answers."""
    return write_mmcif(tmp_path / "x.cif.gz", write_pdb(tmp_path / "x.pdb", GLYCINE)).read_bytes()


@pytest.mark.parametrize(("given", "name"), [("1BXN", "1bxn"), (" 4v94", "4v94"), ("pdb_00001bxn", "pdb_00001bxn")])
def test_fetched_structure_is_written_once(
    tmp_path: Path, entry: bytes, monkeypatch: pytest.MonkeyPatch, given: str, name: str
) -> None:
    """The first call downloads into the folder, which it makes; the second finds the file there."""
    network = _network(monkeypatch, entry)
    for _ in range(2):
        path = fetch_structure(given, tmp_path / "pdb", timeout=7)
        assert path == tmp_path / "pdb" / f"{name}.cif.gz"
    assert network.urls == [(f"https://files.rcsb.org/download/{name}.cif.gz", 7)]
    assert len(read_structure(path, hydrogens=False)) == 4
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "error",
    [URLError("no route to host"), TimeoutError("timed out"), IncompleteRead(b"half"), ConnectionResetError("x")],
)
def test_without_network_the_local_way_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whoever sits behind a wall hears what to do instead; nothing is left in the folder."""
    _network(monkeypatch, error)
    with pytest.raises(ConnectionError, match=r"1bxn: .*ParticleTemplate\.from_structure\(path\)") as caught:
        fetch_structure("1bxn", tmp_path)
    assert str(tmp_path / "1bxn.cif.gz") in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_entries_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown entry is the caller's error, a server's trouble is the network's."""
    _network(monkeypatch, HTTPError("url", 404, "Not Found", Message(), None))
    with pytest.raises(ValueError, match="expected `pdb_id` to be an entry of the Protein Data Bank, got '9zzz'"):
        fetch_structure("9zzz", tmp_path)
    _network(monkeypatch, HTTPError("url", 503, "Service Unavailable", Message(), None))
    with pytest.raises(ConnectionError, match=r"got none \(503 Service Unavailable\)"):
        fetch_structure("1bxn", tmp_path)


@pytest.mark.parametrize(
    "answer", [b"<html>log in</html>", gzip.compress(b"<html>"), b"half"], ids=["page", "packed page", "half"]
)
def test_answers_that_are_no_structure_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: bytes, answer: bytes
) -> None:
    """A portal's page, or half a file, does not take the entry's name."""
    _network(monkeypatch, entry[: len(entry) // 2] if answer == b"half" else answer)
    with pytest.raises(FileFormatError, match=r"files\.rcsb\.org/download/1bxn\.cif\.gz: expected"):
        fetch_structure("1bxn", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("pdb_id", ["", "rubisco", "../1bxn", "1bx", "1bxn.pdb", "abcd", "pdb_1bxn"])
def test_what_is_no_identifier_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pdb_id: str) -> None:
    """An identifier becomes part of an address and of a file's name."""
    network = _network(monkeypatch, b"")
    with pytest.raises(ValueError, match=r"expected `pdb_id` such as '1bxn' or 'pdb_00001bxn', got"):
        fetch_structure(pdb_id, tmp_path)
    assert network.urls == []
