"""Templates of particles: a density on a grid, and the voxels that belong to the particle."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import FileFormatError, check_finite, check_ndim, check_positive
from faket_aug.formats.mrc import read_mrc
from faket_aug.formats.structures import STRUCTURE_SUFFIXES, AtomicStructure, read_structure, structure_name
from faket_aug.generation.density import (
    center_of_mass,
    fading,
    plateau_threshold,
    resample_density,
    volume_threshold,
)
from faket_aug.generation.elastic_network import AMPLITUDE, MODES
from faket_aug.generation.elastic_network import conformers as drawn_conformers
from faket_aug.generation.potential import coulomb_potential, displaced_volumes

#: Å³ of a protein per Da: a partial specific volume of 0.73 cm³/g (Harpaz, Gerstein and Chothia, Structure 2, 1994;
#: Erickson, Biol. Proced. Online 11, 2009).
PROTEIN_VOLUME = 1.21
#: V Å³ per Da, the integral of a protein's potential above ice, to which maps are scaled. It is that of atomic models:
#: `from_structure` gives 4.07 to 4.11 for 1BXN, 1S3X, 3GL1 and 3H84.
PROTEIN_POTENTIAL = 4.1
#: Å; a map as coarse as this is an envelope: its volume at half of the plateau tells the mass. Sharpened by 100 Å² and
#: high-passed at 60 Å, models of 14 to 258 kDa are told to 0.7 to 1.0 of theirs.
ENVELOPE_RESOLUTION = 15.0
#: A mask whose envelope is larger by this factor covers atoms and not the particle.
_PATCHY = 1.3
#: So few voxels above half of the maximum are no density that was ever imaged, whose finest detail covers some seven.
_FEWEST_VOXELS = 2
#: Voxels across a map at least; and a factor that no particle's densities differ by from a protein's in volts: gold has
#: some 7 times as much, electron densities a thirtieth.
_FEWEST_ACROSS, _OTHER_UNIT = 3, 10.0
#: Å between parts of a structure: a small part (of the atoms) farther from the rest is astray.
_FARTHEST, _SMALL_PART = 50.0, 0.01
#: Voxels of a template that are computed in any case, and for each atom: a hollow capsid has some ten at 5 Å.
_LEAST_BOX, _LARGEST_BOX = 2**25, 1000
MAP_SUFFIXES = (".mrc", ".map", ".ccp4")


@dataclass(frozen=True, kw_only=True, eq=False)
class ParticleTemplate:
    """A particle in its reference orientation.

    Parameters
    ----------
    density
        `(z, y, x)`, floating point; electrostatic potential above ice in volts, near 0 at the faces of the box.
    voxel_size
        Å.
    threshold
        A voxel belongs to the particle if its density is above this.
    name
        Name of the class, where no other is given.
    symmetry
        Point group in Schoenflies' or RELION's notation (`"C1"`, `"D7"`, `"O"`); for information only.
    center
        (z, y, x), the voxel index that a particle's position refers to; by default `n // 2` along each axis, as in
        RELION.

    Raises
    ------
    ValueError
        If no voxel lies above the threshold, or a setting is not possible.
    """

    density: Tensor
    voxel_size: float
    threshold: float
    name: str
    symmetry: str = "C1"
    center: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        check_ndim("density", self.density, "z y x")
        check_positive("voxel_size", self.voxel_size)
        check_finite(self.density, f"{self.name}: density")
        object.__setattr__(self, "density", self.density.to(torch.float32))
        if self.center is None:
            object.__setattr__(self, "center", tuple(float(n // 2) for n in self.density.shape))
        if not bool(self.mask.any()):
            raise ValueError(
                f"{self.name}: expected a density above its threshold {self.threshold:g} somewhere, got at most "
                f"{float(self.density.max()):g}; set `threshold` lower"
            )

    @property
    def mask(self) -> Tensor:
        """`(z, y, x)`, bool: the voxels that belong to the particle."""
        return self.density > self.threshold

    @property
    def radius(self) -> float:
        """Å from the centre to the farthest corner of the mask: this sphere holds the particle in any orientation."""
        inside = np.argwhere(self.mask.cpu().numpy())
        offsets = np.abs(inside - np.array(self.center)) + 0.5
        return float(np.linalg.norm(offsets, axis=1).max()) * self.voxel_size

    @property
    def volume(self) -> float:
        """Volume of the mask, Å³."""
        return float(self.mask.sum()) * self.voxel_size**3

    @classmethod
    def from_map(
        cls,
        path: str | Path,
        *,
        voxel_size: float | None = None,
        map_voxel_size: float | None = None,
        resolution: float | None = None,
        threshold: float | None = None,
        molecular_weight: float | None = None,
        normalize: bool = True,
        invert: bool | None = None,
        recenter: bool = True,
        symmetry: str = "C1",
        name: str | None = None,
    ) -> ParticleTemplate:
        """Make a template from a density map.

        The background (the median over the faces of the box) is subtracted. The density is low-passed, resampled and
        scaled to volts. Some voxels outside the mask it fades to 0, and empty margins are cropped.

        Parameters
        ----------
        path
            MRC file (`.mrc`, `.map`, `.ccp4`, or with `.gz`).
        voxel_size
            Å of the template; the map's own by default.
        map_voxel_size
            Å of the map; the header's by default.
        resolution
            Å, of a further low-pass; see `density.low_pass`. By default `2 · voxel_size` where the template's voxels
            are larger than the map's (against aliasing), and none otherwise.
        threshold
            Threshold of the mask, in the template's units. By default, with `molecular_weight`, the mask has the volume
            of this mass of protein (1.21 Å³ per Da). Otherwise the threshold is half of the plateau (the 95th
            percentile of the values above Otsu's threshold), which is the contour of a blurred edge.
        molecular_weight
            kDa.
        normalize
            Scale to volts, so that templates of maps and of atomic structures can be mixed: the integral becomes
            4.1 V Å³ per Da, as that of atomic models. Without `molecular_weight` the mass is estimated from the volume
            at the default threshold, to about 30 %; where that covers single atoms only, as in sharpened maps, from the
            volume of the map low-passed to 15 Å. `False` keeps the map's units.
        invert
            Whether the particle is dark in the map. `None` decides by the skewness about the background.
        recenter
            Use the centre of mass of the density as the template's centre; otherwise voxel `n // 2` of the map.
        symmetry
            For information only.
        name
            By default the file's name without its suffix.

        Raises
        ------
        FileFormatError
            If the file cannot be read, its header holds no voxel size and none is given, or it holds no signal; or if
            all of it is smaller than three voxels of the template.

        Warns
        -----
        UserWarning
            If the map's units, which are kept, are not volts.
        """
        density, file_voxel_size = read_mrc(path)
        file_voxel_size = _map_voxel_size(path, file_voxel_size, map_voxel_size)
        voxel_size = file_voxel_size if voxel_size is None else voxel_size
        check_positive("voxel_size", voxel_size)
        if molecular_weight is not None:
            check_positive("molecular_weight", molecular_weight)
        density = _signal(path, density, invert)
        _check_hot_voxels(path, density)
        _check_across(path, density, file_voxel_size, voxel_size)
        density = resample_density(
            density, voxel_size=file_voxel_size, new_voxel_size=voxel_size, resolution=resolution
        )
        level = _level(path, density, voxel_size, molecular_weight)
        density = density * fading(density > level)
        fine = max(2 * voxel_size, resolution or 0.0) < ENVELOPE_RESOLUTION
        mass = 1e3 * molecular_weight if molecular_weight else _estimated_mass(density, level, voxel_size, fine)
        factor = PROTEIN_POTENTIAL * mass / (float(density.sum()) * voxel_size**3)
        if normalize:
            density, level = density * factor, level * factor
        elif not 1 / _OTHER_UNIT < factor < _OTHER_UNIT:
            warnings.warn(
                f"{path}: its densities are {1 / factor:.2g} times those of a protein of its size in volts above ice; "
                "set `normalize` if they have another unit",
                stacklevel=2,
            )
        z, y, x = (float(n // 2) for n in density.shape)
        density, center = _cropped(density, center_of_mass(density) if recenter else (z, y, x))
        return cls(
            density=density,
            voxel_size=voxel_size,
            threshold=level if threshold is None else threshold,
            name=name or structure_name(path),
            symmetry=symmetry,
            center=center,
        )

    @classmethod
    def from_structure(
        cls,
        path: str | Path | AtomicStructure,
        *,
        voxel_size: float,
        resolution: float | None = None,
        solvent: bool = True,
        assembly: str | int | None = None,
        waters: bool = False,
        hydrogens: bool = True,
        b_factors: bool = True,
        threshold: float | None = None,
        recenter: bool = True,
        symmetry: str = "C1",
        name: str | None = None,
    ) -> ParticleTemplate:
        """Make a template from an atomic structure: its electrostatic potential above ice, in volts.

        Parameters
        ----------
        path
            PDB or mmCIF file, also with `.gz`; `fetch_structure` downloads one. Or a structure that was read already
            (`read_structure`): `assembly`, `waters` and `hydrogens` are then as it was read.
        voxel_size
            Å.
        resolution
            Å, see `density.low_pass`; by default `2 · voxel_size`, the finest that the grid holds.
        solvent
            Subtract the ice that the atoms displace. Without it the potential is that in vacuum, about twice as high.
        assembly
            Name of a biological assembly in the file, usually `"1"`; by default the atoms as they are listed.
        waters
            Keep the water molecules of the file.
        hydrogens
            Add the hydrogens that the file lacks; see `formats.structures.read_structure`.
        b_factors
            Blur atoms by their B factors. Set it to `False` for predicted models, which hold a confidence there.
        threshold
            Threshold of the mask, V. By default the mask has the volume of water that the atoms displace (1.24 Å³ per
            Da for proteins, 0.9 for RNA).
        recenter
            Use the molecule's centre of mass as the template's centre. Otherwise it is the origin of the file's
            coordinates, for structures with a meaningful origin (a filament's axis, a membrane at z = 0).
        symmetry
            For information only.
        name
            By default the file's name without its suffix.

        Raises
        ------
        FileFormatError
            If the file cannot be read, or holds no atoms, or hydrogens alone.

        References
        ----------
        See `potential.form_factor`.
        """
        check_positive("voxel_size", voxel_size)
        if isinstance(path, AtomicStructure):
            atoms, source = path, path.name
        else:
            atoms, source = read_structure(path, assembly=assembly, waters=waters, hydrogens=hydrogens), str(path)
        _check_atoms(source, atoms, voxel_size)
        origin = atoms.center_of_mass if recenter else np.zeros(3)
        # The centre lies at a voxel's centre, and the box has room around the atoms for the low-pass.
        margin = math.ceil(1.5 * max(resolution or 0.0, 2 * voxel_size) / voxel_size)
        low, high = _box((atoms.positions - origin) / voxel_size, margin, symmetric=recenter)
        density = coulomb_potential(
            atoms.positions - origin - low * voxel_size,
            atoms.elements.tolist(),
            shape=[int(n) for n in high - low + 1],
            voxel_size=voxel_size,
            resolution=resolution,
            occupancies=atoms.occupancies,
            b_factors=atoms.b_factors if b_factors else None,
            solvent=solvent,
        )
        if threshold is None:
            volume = float(displaced_volumes(atoms.elements.tolist()) @ atoms.occupancies)
            threshold = volume_threshold(density, voxel_size, volume)
        z, y, x = (float(-n) for n in low)
        return cls(
            density=density,
            voxel_size=voxel_size,
            threshold=threshold,
            name=name or atoms.name,
            symmetry=symmetry,
            center=(z, y, x),
        )

    @classmethod
    def from_conformers(
        cls,
        path: str | Path,
        *,
        voxel_size: float,
        count: int,
        amplitude: float = AMPLITUDE,
        modes: int = MODES,
        seed: int = 0,
        **settings: Any,
    ) -> list[ParticleTemplate]:
        """Make templates from conformers of an atomic structure, for `ParticleSpecies(templates=...)`.

        Parameters
        ----------
        path, voxel_size
            As for `from_structure`.
        count
            How many conformers.
        amplitude
            Å, how far residues move: the root mean square over all of them and over many conformers.
        modes
            How many of the softest normal modes take part, see `generation.elastic_network.conformers`.
        seed
            Of chance.
        **settings
            Settings of `from_structure`.

        Raises
        ------
        FileFormatError, ValueError
            As of `from_structure`; or if a number is impossible, or the structure has no normal modes.
        """
        check_positive("voxel_size", voxel_size)
        reading = {name: settings.pop(name) for name in ("assembly", "waters", "hydrogens") if name in settings}
        atoms = read_structure(path, **reading)
        moved = drawn_conformers(atoms, count=count, amplitude=amplitude, modes=modes, seed=seed)
        return [cls.from_structure(one, voxel_size=voxel_size, **settings) for one in moved]


def read_templates(
    source: str | Path | Iterable[str | Path],
    *,
    voxel_size: float,
    resolution: float | None = None,
    molecular_weights: Mapping[str, float] | None = None,
    assembly: str | int | None = None,
    normalize: bool = True,
    recenter: bool = True,
    conformers: int | None = None,
    conformer_amplitude: float | None = None,
) -> list[ParticleTemplate]:
    """Read all templates of a folder, sorted by name, or those of a list of files, in its order.

    Parameters
    ----------
    source
        A folder with density maps (`.mrc`, `.map`, `.ccp4`) and atomic structures (`.pdb`, `.ent`, `.cif`, `.mmcif`),
        each also with `.gz`; other files in it are ignored. Or the paths of the files. The templates are called after
        the files, without suffix.
    voxel_size
        Å of all templates.
    resolution
        Å of all templates; see `ParticleTemplate.from_map` and `.from_structure`.
    molecular_weights
        kDa of the maps, by name; by default estimated from their volume.
    assembly
        Biological assembly of the structures.
    normalize, recenter
        See `ParticleTemplate.from_map`; structures are always in volts.
    conformers
        How many conformers each structure gives, see `ParticleTemplate.from_conformers`; by default it is rigid. Maps
        are.
    conformer_amplitude
        Å, how far residues of a conformer move, a root mean square; 2 by default.

    Raises
    ------
    FileFormatError
        If a file cannot be read; the message names it.
    FileNotFoundError
        If the folder or a file does not exist, or the folder holds no templates.
    ValueError
        If two files give the same name, or a molecular weight belongs to no template.
    """
    paths = find_templates(source)
    names = [structure_name(path) for path in paths]
    for i, name in enumerate(names):
        if name in names[:i]:
            twin = paths[names.index(name)]
            raise ValueError(f"expected one file for each name, got {twin} and {paths[i]}; rename or remove one")
    weights = dict(molecular_weights or {})
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise ValueError(f"expected `molecular_weights` of {', '.join(names)}, got one of {', '.join(unknown)}")
    if conformer_amplitude is not None and conformers is None:
        raise ValueError("expected `conformers`, how many there are, with `conformer_amplitude`, got none; set it")
    settings: dict[str, Any] = {"voxel_size": voxel_size, "resolution": resolution, "recenter": recenter}
    amplitude = AMPLITUDE if conformer_amplitude is None else conformer_amplitude
    several: dict[str, Any] = {"count": conformers, "amplitude": amplitude}
    found: list[ParticleTemplate] = []
    for path, name in zip(paths, names, strict=True):
        if _suffix(path) in MAP_SUFFIXES:
            made = ParticleTemplate.from_map(path, molecular_weight=weights.get(name), normalize=normalize, **settings)
            found.append(made)
        elif conformers is None:
            found.append(ParticleTemplate.from_structure(path, assembly=assembly, **settings))
        else:
            found += ParticleTemplate.from_conformers(path, assembly=assembly, **several, **settings)
    return found


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def find_templates(source: str | Path | Iterable[str | Path]) -> list[Path]:
    """List the files that `read_templates` reads, in its order; raise its errors for those that are missing."""
    suffixes = (*MAP_SUFFIXES, *STRUCTURE_SUFFIXES)
    if not isinstance(source, str | Path):
        paths = [Path(path) for path in source]
    elif Path(source).is_dir():
        # A stem in lower and upper case is one class's name in two spellings; plain order of text is kept all the same.
        paths = sorted(path for path in Path(source).iterdir() if path.is_file() and not path.name.startswith("."))
        paths = [path for path in paths if _suffix(path) in suffixes]
    else:
        paths = [Path(source)]
    if not paths:
        raise FileNotFoundError(
            f"expected density maps or atomic structures ({', '.join(suffixes)}), found none in {source}"
        )
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"expected a density map or an atomic structure, found none at {path}")
        if _suffix(path) not in suffixes:
            raise FileFormatError(
                f"{path}: expected a file named {', '.join(suffixes)} (or with .gz), got {path.name!r}"
            )
    return paths


def _map_voxel_size(path: str | Path, found: float, given: float | None) -> float:
    if given is not None:
        check_positive("map_voxel_size", given)
        return given
    if found <= 0:
        raise FileFormatError(f"{path}: expected a voxel size in the header, got {found:g}; set `map_voxel_size`")
    return found


def _check_across(path: str | Path, density: Tensor, file_voxel_size: float, voxel_size: float) -> None:
    """Refuse a map of which nothing would be seen, as where a header holds nm."""
    extent = max(density.shape) * file_voxel_size
    if extent < _FEWEST_ACROSS * voxel_size:
        raise FileFormatError(
            f"{path}: expected a map of {_FEWEST_ACROSS * voxel_size:g} Å or more for voxels of {voxel_size:g} Å, got "
            f"one of {extent:g} Å, as voxels of {file_voxel_size:g} Å in its header say; correct the header if they "
            "are nm, or choose smaller voxels"
        )


def _signal(path: str | Path, density: Tensor, invert: bool | None) -> Tensor:
    """Subtract the background, and make the particle positive."""
    density = density.to(torch.float32)
    low, high = float(density.min()), float(density.max())
    if high - low <= 1e-6 * max(abs(high), abs(low)):
        raise FileFormatError(f"{path}: expected a density map with a signal, got {high:g} in every voxel")
    shell = torch.ones_like(density, dtype=torch.bool)
    shell[1:-1, 1:-1, 1:-1] = False
    density = density - density[shell].median()
    if invert is None:
        scaled = density / max(float(density.max()), -float(density.min()))
        invert = float((scaled**3).sum(dtype=torch.float64)) < 0
    return -density if invert else density


def _level(path: str | Path, density: Tensor, voxel_size: float, molecular_weight: float | None) -> float:
    """Find the threshold of a map, in its own units."""
    if molecular_weight is None:
        level = plateau_threshold(density)
        advice = "set `invert` the other way, or give another map"
    else:
        level = volume_threshold(density, voxel_size, 1e3 * molecular_weight * PROTEIN_VOLUME)
        advice = "check `molecular_weight` (kDa) and the map's voxel size"
    # A particle this large would extend into the background, or there is no particle.
    if level <= 0.01 * max(float(density.max()), 0) or float(density.sum()) <= 0:
        raise FileFormatError(f"{path}: expected a particle above the background, got none at {level:g}; {advice}")
    return level


def _check_hot_voxels(path: str | Path, density: Tensor) -> None:
    """Raise a `FileFormatError` where a voxel or two stand out of all others, as no density does."""
    high = density > float(density.max()) / 2
    count = int(high.sum())
    # Of a dark particle that is taken to be bright another error tells.
    if count <= _FEWEST_VOXELS and float(density.max()) > -float(density.min()):
        raise FileFormatError(
            f"{path}: expected a density that is smooth, got {count} voxel{'s' * (count > 1)} above half of the "
            f"maximum {float(density.max()):g}, the first at {high.nonzero()[0].tolist()} (z, y, x); remove hot voxels"
        )


def _estimated_mass(density: Tensor, level: float, voxel_size: float, fine: bool) -> float:
    """Estimate the mass in Da from the volume of the mask, or of the envelope where the mask is a part of it only."""

    def mass(density: Tensor, level: float) -> float:
        return float((density > level).sum()) * voxel_size**3 / PROTEIN_VOLUME

    of_mask = mass(density, level)
    if not fine:
        return of_mask
    smooth = resample_density(density, voxel_size=voxel_size, new_voxel_size=voxel_size, resolution=ENVELOPE_RESOLUTION)
    of_envelope = mass(smooth, plateau_threshold(smooth))
    return of_envelope if of_envelope > _PATCHY * of_mask else of_mask


def _check_atoms(path: str, atoms: AtomicStructure, voxel_size: float) -> None:
    """Raise a `FileFormatError` for hydrogens alone, for a few atoms far from the others, or an absurdly large box."""
    atoms.check_heavy(path)
    positions = atoms.positions
    # Cells of half the distance: those that touch belong together.
    cells, member = np.unique(np.floor(positions / (_FARTHEST / 2)).astype(np.int64), axis=0, return_inverse=True)
    pairs = cKDTree(cells).query_pairs(2.0, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(cells), len(cells)))
    part = connected_components(links, directed=False)[1][member.reshape(-1)]
    sizes = np.bincount(part)
    stray = np.flatnonzero(sizes[part] < _SMALL_PART * len(positions))
    if len(stray):
        distance = np.linalg.norm(positions[stray[0]] - np.median(positions, axis=0))
        raise FileFormatError(
            f"{path}: expected atoms near each other, got {len(stray)} astray, the first at "
            f"{positions[stray[0], ::-1].round(3).tolist()} (x, y, z), {distance:.0f} Å from the middle of the others; "
            "remove them"
        )
    extent = np.ptp(positions, axis=0)
    voxels = math.prod(extent / voxel_size + 1)
    if voxels > max(_LEAST_BOX, _LARGEST_BOX * len(positions)):
        raise FileFormatError(
            f"{path}: expected a structure that fills its box, got {len(positions)} atoms over "
            f"{' x '.join(f'{side:.0f}' for side in extent[::-1])} Å (x, y, z), {voxels:.3g} voxels of "
            f"{voxel_size:g} Å; set `voxel_size` larger, or give a part of it"
        )


def _cropped(density: Tensor, center: tuple[float, float, float]) -> tuple[Tensor, tuple[float, float, float]]:
    """Crop margins of 0; the centre keeps its position in the particle."""
    inside = density.nonzero()
    low, high = inside.amin(dim=0).tolist(), inside.amax(dim=0).tolist()
    z, y, x = (slice(a, b + 1) for a, b in zip(low, high, strict=True))
    return density[z, y, x].clone(), (center[0] - low[0], center[1] - low[1], center[2] - low[2])


def _box(places: FloatArray, margin: int, *, symmetric: bool) -> tuple[IntArray, IntArray]:
    """Find the first and the last voxel along each axis of a box around positions (z, y, x)."""
    low = np.floor(places.min(axis=0)).astype(np.int64) - margin
    high = np.ceil(places.max(axis=0)).astype(np.int64) + margin
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    return low, high
