"""Atomic structures: PDB and mmCIF files, plain or compressed by gzip, and their download."""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt

from faket_aug._checks import FileFormatError, check_positive
from faket_aug.formats._atomic import make_writable_folder, write_bytes
from faket_aug.formats._text import MAX_COORDINATE, decoded

PDB_SUFFIXES = (".pdb", ".ent")
MMCIF_SUFFIXES = (".cif", ".mmcif")
#: Files that `read_structure` reads, each also with `.gz`.
STRUCTURE_SUFFIXES = (*PDB_SUFFIXES, *MMCIF_SUFFIXES)

_COORDINATES = ("ATOM  ", "HETATM", "ANISOU", "SIGATM", "TER   ")
#: What is unpacked of a compressed file: text shrinks to a tenth, hardly to a hundredth.
_MOST_PACKED, _LEAST_UNPACKED = 100, 2**28
#: So many residues that hold less than this part of the mass of their heavy atoms are no whole model.
_FEWEST_RESIDUES, _LEAST_MASS = 20, 0.7
_HYDROGEN, _OXYGEN = 1.008, 15.999

#: Where `fetch_structure` asks; mmCIF, because large assemblies are in no PDB file.
PDB_URL = "https://files.rcsb.org/download/{}.cif.gz"
_PDB_ID = re.compile(r"[0-9][0-9a-z]{3}|pdb_[0-9a-z]{8}")

#: Hydrogens at each heavy atom of a residue within a chain, at neutral pH; atoms without a number have one.
_BACKBONE = "N CA"
_SIDE_CHAINS = {
    "ALA": "CB:3",
    "ARG": "CB:2 CG:2 CD:2 NE NH1:2 NH2:2",
    "ASN": "CB:2 ND2:2",
    "ASP": "CB:2",
    "CYS": "CB:2 SG",
    "GLN": "CB:2 CG:2 NE2:2",
    "GLU": "CB:2 CG:2",
    "GLY": "CA:2",
    "HIS": "CB:2 ND1 CD2 CE1",
    "ILE": "CB CG1:2 CG2:3 CD1:3",
    "LEU": "CB:2 CG CD1:3 CD2:3",
    "LYS": "CB:2 CG:2 CD:2 CE:2 NZ:3",
    "MET": "CB:2 CG:2 CE:3",
    "MSE": "CB:2 CG:2 CE:3",
    "PHE": "CB:2 CD1 CD2 CE1 CE2 CZ",
    "PRO": "N:0 CB:2 CG:2 CD:2",
    "SER": "CB:2 OG",
    "THR": "CB OG1 CG2:3",
    "TRP": "CB:2 CD1 NE1 CE3 CZ2 CZ3 CH2",
    "TYR": "CB:2 CD1 CD2 CE1 CE2 OH",
    "VAL": "CB CG1:3 CG2:3",
}
_RIBOSE = "C5':2 C4' C3' C1'"
_BASES = {"A": "C8 N6:2 C2", "G": "C8 N1 N2:2", "C": "N4:2 C5 C6", "U": "N3 C5 C6", "T": "N3 C7:3 C6"}
#: Hydrogens per carbon of residues that neither these tables nor gemmi's know: between sugars, haems and lipids.
_HYDROGENS_PER_CARBON = 1.3


def _counts(text: str) -> dict[str, float]:
    parts = (part.partition(":") for part in text.split())
    return {name: float(count or 1) for name, _, count in parts}


_HYDROGENS = (
    {name: _counts(f"{_BACKBONE} {side}") for name, side in _SIDE_CHAINS.items()}
    | {name: _counts(f"{_RIBOSE} C2' O2' {base}") for name, base in _BASES.items() if name != "T"}
    | {f"D{name}": _counts(f"{_RIBOSE} C2':2 {base}") for name, base in _BASES.items() if name != "U"}
)


@dataclass(frozen=True, kw_only=True, eq=False)
class AtomicStructure:
    """Atoms of a molecule.

    Parameters
    ----------
    name
        The file's stem.
    elements
        `(n,)`, symbols.
    positions
        `(n, 3)`, **(z, y, x)** in Å, in the file's frame.
    occupancies
        `(n,)`. Hydrogens that the file leaves out are atoms at the place of the heavy atom that carries them, with
        their number as occupancy.
    b_factors
        `(n,)`, Å².
    traced
        `(n,)`, bool: the Cα atoms of amino acids and the P atoms of nucleotides, which trace the chains.
    """

    name: str
    elements: npt.NDArray[np.str_]
    positions: npt.NDArray[np.float64]
    occupancies: npt.NDArray[np.float64]
    b_factors: npt.NDArray[np.float64]
    traced: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def heavy(self) -> npt.NDArray[np.bool_]:
        """`(n,)`, bool: the atoms that are no hydrogens."""
        heavy: npt.NDArray[np.bool_] = ~np.isin(self.elements, ("H", "D"))
        return heavy

    def check_heavy(self, source: str | None = None) -> None:
        """Raise a `FileFormatError` that names `source`, or the structure, if it holds hydrogens alone."""
        if not self.heavy.any():
            raise FileFormatError(
                f"{source or self.name}: expected atoms other than hydrogens, got {len(self)} hydrogens alone; give "
                "the whole molecule, or name the atoms' elements"
            )

    @property
    def masses(self) -> npt.NDArray[np.float64]:
        """`(n,)`, Da, times the occupancies."""
        import gemmi

        kinds, which = np.unique(self.elements, return_inverse=True)
        weights = np.array([float(gemmi.Element(str(kind)).weight) for kind in kinds])
        masses: npt.NDArray[np.float64] = weights[which] * self.occupancies
        return masses

    @property
    def center_of_mass(self) -> npt.NDArray[np.float64]:
        """(z, y, x) in Å."""
        center: npt.NDArray[np.float64] = np.average(self.positions, axis=0, weights=self.masses)
        return center


def read_structure(
    path: str | Path, *, assembly: str | int | None = None, waters: bool = False, hydrogens: bool = True
) -> AtomicStructure:
    """Read the atoms of a PDB or mmCIF file.

    Of several models the first is read. PDB files before 1996, which have no elements, are read by the atoms' names.
    Alternate locations are all read, with their occupancies. Where a file gives
    no occupancy to any atom, all are 1.

    Parameters
    ----------
    path
        `.pdb`, `.ent`, `.cif` or `.mmcif`, or one of them with `.gz`.
    assembly
        Name of a biological assembly that the file describes, mostly `"1"`; by default the atoms as they are listed
        (a crystal's asymmetric unit may be more or less than the molecule).
    waters
        Keep water molecules. They are left out by default: ice is everywhere, and structures list some of it only.
    hydrogens
        Add the hydrogens that the file leaves out (they hold a sixth of a protein's scattering), by the known numbers
        for amino acids and nucleotides, by those of gemmi's table of components for others, and 1.3 per carbon for
        what is in neither. Those that are listed stay where they are, and are not added again.

    Raises
    ------
    FileFormatError
        If the file cannot be read, is truncated, or holds no atoms.
    FileNotFoundError
        If there is no such file.
    ValueError
        If there is no such assembly; the message lists those there are.

    Warns
    -----
    UserWarning
        If atoms are of unknown element, or residues hold far less than they should (a trace of Cα atoms).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a PDB or mmCIF file, found none at {path}")
    structure = _parse(path)
    model = _model(path, structure, assembly)
    _warn_of_missing_atoms(path, model)
    atoms = [atom for residue in _residues(model, waters) for atom in _atoms(residue, hydrogens)]
    known = [atom for atom in atoms if atom[0] != "X"]
    if len(known) < len(atoms):
        warnings.warn(
            f"{path}: {len(atoms) - len(known)} atoms of unknown element are left out; name their elements",
            stacklevel=2,
        )
    if not known:
        raise FileFormatError(f"{path}: expected atoms{'' if waters else ' other than water'}, found none")
    elements, positions, occupancies, b_factors, traced = zip(*known, strict=True)
    return AtomicStructure(
        name=structure_name(path),
        elements=np.array(elements),
        positions=_near(path, _finite(path, np.array(positions))),
        occupancies=_finite(path, np.array(occupancies)),
        b_factors=_finite(path, np.array(b_factors)),
        traced=np.array(traced),
    )


def structure_name(path: str | Path) -> str:
    """Give a file's name without its suffix, `.gz` included."""
    name = Path(path).name
    name = name.removesuffix(".gz")
    return Path(name).stem


def _parse(path: Path) -> Any:
    import gemmi

    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in STRUCTURE_SUFFIXES:
        listed = ", ".join(STRUCTURE_SUFFIXES)
        raise FileFormatError(f"{path}: expected a file named {listed} (or with .gz), got {path.name!r}")
    try:
        content = _unpacked(path) if path.name.endswith(".gz") else path.read_bytes()
        text = decoded(content, path, "a PDB or mmCIF file")
        if suffix in PDB_SUFFIXES:
            # Columns are counted in bytes; authors' names may be longer in these than in letters.
            return gemmi.read_pdb_string(_modern(text.encode("ascii", "replace").decode()))
        return gemmi.make_structure_from_block(gemmi.cif.read_string(text)[0])
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileFormatError(
            f"{path}: expected a whole file compressed by gzip, got a damaged one ({error})"
        ) from error
    except FileFormatError:
        raise
    except (ValueError, RuntimeError, IndexError, OSError) as error:
        raise FileFormatError(f"{path}: expected a PDB or mmCIF file, got one that cannot be read ({error})") from error


def _unpacked(path: Path) -> bytes:
    """Unpack a file; not by gemmi, which takes what it can of a damaged one, and no more than text can shrink to."""
    most = max(_LEAST_UNPACKED, _MOST_PACKED * path.stat().st_size)
    with gzip.open(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise FileFormatError(
            f"{path}: expected at most {most >> 20} MiB from {path.stat().st_size} compressed bytes, got more; unpack "
            "it first if that is right"
        )
    return content


def _modern(text: str) -> str:
    """Cut the entry's name and the line's number, which PDB files before 1996 have where others have the element."""
    atoms = [line.rstrip() for line in text.splitlines() if line.startswith(("ATOM  ", "HETATM"))]
    ends = [(line[72:76], line[76:].strip()) for line in atoms if len(line) > 76]
    old = bool(ends) and len(ends) == len(atoms) and all(number.isdigit() for _, number in ends)
    if not old or len({name for name, _ in ends}) != 1 or not ends[0][0].strip():
        return text
    return "\n".join(line[:72].rstrip() if line.startswith(_COORDINATES) else line for line in text.splitlines())


def _warn_of_missing_atoms(path: Path, model: Any) -> None:
    """Warn where residues hold far less than they should: traces of Cα, of backbones or of phosphates."""
    import gemmi

    count, listed, whole = 0, 0.0, 0.0
    for residue in _residues(model, waters=False):
        known = gemmi.find_tabulated_residue(residue.name)
        if not (known.found() and (known.is_amino_acid() or known.is_nucleic_acid())):
            continue
        count += 1
        # Heavy atoms, without the oxygen that a residue loses in its chain.
        whole += known.weight - known.hydrogen_count * _HYDROGEN - _OXYGEN
        listed += sum(atom.element.weight * atom.occ for atom in residue if not atom.is_hydrogen())
    if count >= _FEWEST_RESIDUES and listed < _LEAST_MASS * whole:
        warnings.warn(
            f"{path}: expected all heavy atoms of its {count} residues, got {listed / whole:.0%} of their mass (a "
            "trace of Cα or backbone atoms?); a density of it is too weak by as much, so give a model of all atoms",
            stacklevel=3,
        )


def _model(path: Path, structure: Any, assembly: str | int | None) -> Any:
    import gemmi

    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise FileFormatError(f"{path}: expected atoms, found none")
    if not any(entry.atom.occ for entry in structure[0].all()):
        # Programs that make models leave the column blank.
        for entry in structure[0].all():
            entry.atom.occ = 1.0
    if assembly is None:
        return structure[0]
    found = {entry.name: entry for entry in structure.assemblies}
    if str(assembly) not in found:
        listed = ", ".join(repr(name) for name in found) or "none"
        raise ValueError(f"{path}: expected `assembly` to be one of those in the file ({listed}), got {assembly!r}")
    try:
        return gemmi.make_assembly(found[str(assembly)], structure[0], gemmi.HowToNameCopiedChain.Dup)
    except RuntimeError as error:
        raise FileFormatError(
            f"{path}: expected chains for assembly {str(assembly)!r}, got none ({error}); leave out `assembly`"
        ) from error


def _residues(model: Any, waters: bool) -> Iterator[Any]:
    return (residue for chain in model for residue in chain if waters or not residue.is_water())


#: Element, (z, y, x) in Å, occupancy, B factor, whether it traces a chain.
_Atom = tuple[str, tuple[float, float, float], float, float, bool]
#: Names and elements of the atoms that trace chains: a calcium ion is called CA, too.
_TRACES = (("CA", "C"), ("P", "P"))


def _atoms(residue: Any, hydrogens: bool) -> Iterator[_Atom]:
    """Yield the atoms of a residue and then the hydrogens that it lacks, at the atoms that carry them."""
    atoms = [(atom.name, _atom(atom)) for atom in residue]
    yield from (atom for _, atom in atoms)
    heavy = [(name, atom) for name, atom in atoms if atom[0] not in ("H", "D")]
    if not hydrogens or not heavy:
        return
    wanted = _wanted_hydrogens(residue.name, heavy)
    needed = sum(count * atom[2] for count, (_, atom) in zip(wanted, heavy, strict=True))
    listed = sum(atom[2] for _, atom in atoms if atom[0] in ("H", "D"))
    missing = max(0.0, 1 - listed / needed) if needed > 0 else 0.0
    for count, (_, (_, position, occupancy, b_factor, _)) in zip(wanted, heavy, strict=True):
        if count * missing > 0:
            yield "H", position, occupancy * count * missing, b_factor, False


def _atom(atom: Any) -> _Atom:
    x, y, z = atom.pos.tolist()
    element = atom.element.name
    return element, (z, y, x), float(atom.occ), float(atom.b_iso), (atom.name, element) in _TRACES


def _wanted_hydrogens(residue: str, heavy: list[tuple[str, _Atom]]) -> list[float]:
    """Count the hydrogens at each heavy atom of a whole residue."""
    table = _HYDROGENS.get(residue)
    if table is not None:
        return [table.get(name, 0.0) for name, _ in heavy]
    import gemmi

    component = gemmi.find_tabulated_residue(residue)
    carbons = [float(atom[0] == "C") for _, atom in heavy]
    each = component.hydrogen_count / max(sum(carbons), 1) if component.found() else _HYDROGENS_PER_CARBON
    return [each * carbon for carbon in carbons]


def _finite(path: Path, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise FileFormatError(
            f"{path}: expected finite coordinates, occupancies and B factors, got NaN or infinite ones"
        )
    return values


def _near(path: Path, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    beyond = np.flatnonzero((np.abs(positions) > MAX_COORDINATE).any(axis=1))
    if len(beyond):
        raise FileFormatError(
            f"{path}: expected coordinates in Å, got {positions[beyond[0], ::-1].tolist()} (x, y, z) for atom "
            f"{beyond[0] + 1}; the file is damaged"
        )
    return positions


def fetch_structure(pdb_id: str, folder: str | Path, *, timeout: float = 30.0) -> Path:
    """Download an entry of the Protein Data Bank, unless the folder holds it already.

    Parameters
    ----------
    pdb_id
        Such as `"1bxn"` or `"pdb_00001bxn"`, in any case.
    folder
        Where `<pdb_id>.cif.gz` is written, whole or not at all; made where it is missing.
    timeout
        Seconds to wait for an answer.

    Returns
    -------
    The file's path, for `ParticleTemplate.from_structure`.

    Raises
    ------
    ConnectionError
        Without network, or where the server does not answer; the message says how to go on with a local file.
    FileFormatError
        If what came is no structure; nothing is kept then.
    ValueError
        If `pdb_id` is no identifier, or there is no such entry.
    """
    name = str(pdb_id).strip().lower()
    if not _PDB_ID.fullmatch(name):
        raise ValueError(f"expected `pdb_id` such as '1bxn' or 'pdb_00001bxn', got {pdb_id!r}")
    check_positive("timeout", timeout)
    path = Path(folder) / f"{name}.cif.gz"
    if path.is_file():
        return path
    make_writable_folder(path.parent)
    content = _download(name, path, timeout)
    _check_whole(content, PDB_URL.format(name))
    write_bytes(path, content)
    return path


def _download(name: str, path: Path, timeout: float) -> bytes:
    url = PDB_URL.format(name)
    try:
        with urlopen(url, timeout=timeout) as answer:
            content: bytes = answer.read()
            return content
    except HTTPError as error:
        if error.code == 404:
            raise ValueError(
                f"expected `pdb_id` to be an entry of the Protein Data Bank, got {name!r}; {url} has none"
            ) from None
        reason: object = f"{error.code} {error.reason}"
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
    raise ConnectionError(
        f"{name}: expected an answer from {url}, got none ({reason}); download it elsewhere to {path}, or give any PDB "
        "or mmCIF file to `ParticleTemplate.from_structure(path)`"
    )


def _check_whole(content: bytes, url: str) -> None:
    try:
        text = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileFormatError(f"{url}: expected a file compressed by gzip, got something else ({error})") from error
    if b"_atom_site." not in text:
        raise FileFormatError(f"{url}: expected an mmCIF file with atoms, got none")
