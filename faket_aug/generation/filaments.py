"""Filaments: templates repeated with rise and twist along smooth random curves; actin and microtubules built in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_choice, check_positive
from faket_aug.generation.ice import Slab
from faket_aug.generation.ranges import Range, as_count, as_range
from faket_aug.generation.stamp import Stamp, frames_along
from faket_aug.generation.templates import PROTEIN_POTENTIAL, ParticleTemplate

#: Volts above ice; a voxel of a built-in subunit belongs to it where its density is higher.
SUBUNIT_THRESHOLD = 1.2
#: Standard deviation, Å, of the Gaussian blob of a domain of this many daltons; others are scaled by their volume.
_BLOB_SPREAD, _BLOB_MASS = 9.5, 16_000.0
#: Density below this fraction of the peak is not drawn.
_NOTHING = 0.005
_CURVES_AT_ONCE = 16


# Built-in subunits ---------------------------------------------------------------------------------------------------


def actin_subunit(voxel_size: float) -> ParticleTemplate:
    """Make a subunit of F-actin at low resolution: a blob for each of its four subdomains, around the filament's axis.

    Subdomains 1 and 2 lie far from the axis, 3 and 4 near it; 2 and 4 point along +z, to the pointed end.

    Parameters
    ----------
    voxel_size
        Å.

    References
    ----------
    Holmes, Popp, Gebhard and Kabsch, Nature 347, 44 (1990); Oda et al., Nature 457, 441 (2009).
    """
    # Daltons, then radius (Å), azimuth (degrees) and height (Å) of each subdomain.
    domains = ((16_000, 30, 0, -12), (4_100, 30, -10, 20), (11_600, 12, 55, -14), (9_900, 13, 50, 16))
    return _blob_template("actin", [(mass, *_cylinder(r, a, z)) for mass, r, a, z in domains], voxel_size)


def microtubule_segment(voxel_size: float) -> ParticleTemplate:
    """Make 82 Å of a microtubule at low resolution: a ring of 13 protofilaments, a blob for each tubulin.

    Each protofilament is higher than its neighbour by 3/13 of a monomer, so that segments stacked without twist
    continue the left-handed three-start helix. The plus end points along +z.

    Parameters
    ----------
    voxel_size
        Å.

    References
    ----------
    Nogales, Whittaker, Milligan and Downing, Cell 96, 79 (1999).
    """
    monomer, count, starts = 41.0, 13, 3
    rises = [starts * monomer * k / count for k in range(count)]
    middle = (rises[-1] + monomer) / 2
    return _blob_template(
        "microtubule",
        [
            (50_000, *_cylinder(112, -360 * k / count, rise + layer * monomer - middle))
            for k, rise in enumerate(rises)
            for layer in range(2)
        ],
        voxel_size,
    )


def _cylinder(radius: float, azimuth: float, height: float) -> tuple[float, float, float]:
    """Convert a radius, an azimuth in degrees and a height to (x, y, z)."""
    return radius * math.cos(math.radians(azimuth)), radius * math.sin(math.radians(azimuth)), height


def _blob_template(
    name: str, blobs: Sequence[tuple[float, float, float, float]], voxel_size: float
) -> ParticleTemplate:
    """Make a template of Gaussian blobs, each a mass in dalton and a position (x, y, z) in Å."""
    check_positive("voxel_size", voxel_size)
    half = math.ceil((max(math.hypot(*place) for _, *place in blobs) + 4 * _BLOB_SPREAD) / voxel_size)
    steps = np.arange(-half, half + 1) * voxel_size
    density = np.zeros((len(steps),) * 3)
    for mass, *place in blobs:
        # Smoothed to the resolution of the voxels; the integral does not change.
        spread = math.hypot(_BLOB_SPREAD * (mass / _BLOB_MASS) ** (1 / 3), voxel_size / 2)
        x, y, z = (np.exp(-0.5 * ((steps - center) / spread) ** 2) for center in place)
        peak = PROTEIN_POTENTIAL * mass / (math.sqrt(2 * math.pi) * spread) ** 3
        density += peak * z[:, None, None] * y[:, None] * x
    return ParticleTemplate(
        density=torch.from_numpy(density), voxel_size=voxel_size, threshold=SUBUNIT_THRESHOLD, name=name
    )


@dataclass(frozen=True, kw_only=True)
class FilamentPreset:
    """A built-in filament: its subunit by voxel size, rise (Å), twist (degrees) and persistence length (Å)."""

    subunit: Callable[[float], ParticleTemplate]
    rise: float
    twist: float
    persistence_length: float


#: Persistence lengths: Gittes, Mickey, Nettleton and Howard, J. Cell Biol. 120, 923 (1993).
FILAMENT_PRESETS: Mapping[str, FilamentPreset] = {
    "actin": FilamentPreset(subunit=actin_subunit, rise=27.6, twist=-166.6, persistence_length=1.77e5),
    "microtubule": FilamentPreset(subunit=microtubule_segment, rise=82.0, twist=0.0, persistence_length=5.2e7),
}


@dataclass(frozen=True, kw_only=True)
class FilamentSpecies:
    """Filaments of one kind.

    A filament lies within the ice, and ends at the sides of the specimen with its last complete subunit. Each subunit
    has a row in the particle table; its position lies on the filament's axis if the template's centre does.

    Parameters
    ----------
    subunit
        A template whose z axis is the filament's axis and whose centre lies on it, or a built-in one: `"actin"` or
        `"microtubule"`.
    count
        Number of filaments in each specimen: a number, or (lowest, highest).
    length
        Length of the whole curve, Å: a number, or (lowest, highest). The parts outside the specimen are not drawn.
    persistence_length
        Å. Over this length the correlation of the direction decays to 1/e. By default that of the built-in filament.
    rise
        Å from subunit to subunit; by default that of the built-in filament.
    twist
        Degrees from subunit to subunit, right-handed about the direction of growth; by default that of the built-in
        filament.
    name
        Name of the class; by default that of the template. Species with the same name share a class.
    label
        Whether the filaments are labelled, and their subunits have rows in the particle table.

    Raises
    ------
    ValueError
        For settings that are not possible, or a template without `rise`, `twist` and `persistence_length`.
    """

    subunit: ParticleTemplate | str
    count: int | tuple[int, int] = 1
    length: Range = (2000.0, 10000.0)
    persistence_length: float | None = None
    rise: float | None = None
    twist: float | None = None
    name: str | None = None
    label: bool = True

    def __post_init__(self) -> None:
        as_count("count", self.count)
        as_range("length", self.length)
        if isinstance(self.subunit, str):
            check_choice("subunit", self.subunit, FILAMENT_PRESETS)
        else:
            needed = {name: getattr(self, name) for name in ("persistence_length", "rise", "twist")}
            missing = [f"`{name}`" for name, value in needed.items() if value is None]
            if missing:
                raise ValueError(f"{self.subunit.name}: expected {', '.join(missing)} with a template, got None")
        check_positive("persistence_length", self.form.persistence_length)
        check_positive("rise", self.form.rise)

    @property
    def form(self) -> FilamentPreset:
        """Subunit, rise, twist and persistence length, with the defaults filled in."""
        subunit = self.subunit
        known = FILAMENT_PRESETS[subunit] if isinstance(subunit, str) else None
        given = {name: getattr(self, name) for name in ("persistence_length", "rise", "twist")}
        values = {name: getattr(known, name) if value is None else value for name, value in given.items()}
        if isinstance(subunit, ParticleTemplate):
            return FilamentPreset(subunit=lambda _: subunit, **values)
        assert known is not None
        return FilamentPreset(subunit=known.subunit, **values)

    def templates_at(self, voxel_size: float) -> tuple[ParticleTemplate, ...]:
        """Return the template of the subunit; a built-in one is made for a voxel size in Å."""
        return (self.form.subunit(voxel_size),)

    @property
    def class_name(self) -> str:
        """The name of its class."""
        own = self.subunit if isinstance(self.subunit, str) else self.subunit.name
        return own if self.name is None else self.name


# Curves --------------------------------------------------------------------------------------------------------------


def worm_like_chains(
    count: int,
    *,
    nodes: int,
    step: float,
    persistence_length: float,
    directions: FloatArray,
    generator: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """Draw smooth random curves.

    Parameters
    ----------
    count, nodes
        Number of curves, and of nodes in each.
    step, persistence_length
        Distance between nodes, and the length over which the correlation of the direction decays to 1/e, in one unit.
    directions
        `(count, 3)`, unit vectors (x, y, z): the direction of each at its start.
    generator
        Generator of all random numbers.

    Returns
    -------
    Nodes `(count, nodes, 3)` (x, y, z), the first at the origin, and frames `(count, nodes, 3, 3)`: rotation matrices
    whose third column is the direction. From node to node they do not rotate about it (parallel transport).
    """
    from scipy.spatial.transform import Rotation

    # Kratky and Porod's chain: in both directions across, the variance of the angle is step / persistence length.
    bends = np.zeros((count, nodes - 1, 3))
    bends[..., :2] = generator.normal(scale=math.sqrt(step / persistence_length), size=(count, nodes - 1, 2))
    # Parallel transport: all rotations are about axes across the direction.
    turns = Rotation.from_rotvec(bends.reshape(-1, 3)).as_matrix().reshape(count, nodes - 1, 3, 3)
    frames = np.empty((count, nodes, 3, 3))
    frames[:, 0] = frames_along(directions, generator)
    for node in range(1, nodes):
        frames[:, node] = frames[:, node - 1] @ turns[:, node - 1]
    along = frames[..., 2]
    places = np.zeros((count, nodes, 3))
    places[:, 1:] = np.cumsum(step * (along[:, 1:] + along[:, :-1]) / 2, axis=1)
    return places, frames


def draw_poses(
    species: FilamentSpecies,
    shape: tuple[int, ...],
    slab: Slab,
    *,
    margin: float,
    voxel_size: float,
    generator: np.random.Generator,
) -> list[tuple[FloatArray, FloatArray]]:
    """Draw filaments through random positions, and keep those that stay in the ice (few, if any).

    Parameters
    ----------
    species
        The species of the filaments.
    shape
        `(z, y, x)` of the specimen.
    slab
        The ice.
    margin
        Smallest distance between a filament's axis and the surfaces of the ice, voxels.
    voxel_size
        Å.
    generator
        Generator of all random numbers.

    Returns
    -------
    For each filament the positions `(n, 3)` (z, y, x) of its subunits, voxels, and their orientations `(n, 3, 3)`.
    Subunits outside the specimen are left out.
    """
    form, size = species.form, np.array(shape)
    rise = form.rise / voxel_size
    low, high = as_range("length", species.length)
    nodes = max(1, round(generator.uniform(low, high) / form.rise))
    half = min(slab.half, (shape[0] - 1) / 2) - margin
    if half < 0:
        return []
    # The part of a filament within the specimen may rise no more than the ice is thick.
    steepest = min(1.0, 2 * half / min(nodes * rise, math.hypot(*shape)))
    nodes_xyz, frames = worm_like_chains(
        _CURVES_AT_ONCE,
        nodes=nodes,
        step=rise,
        persistence_length=form.persistence_length / voxel_size,
        directions=_directions(slab, steepest, generator),
        generator=generator,
    )
    # Each curve is shifted so that one of its nodes lies at a random position in the ice, and rotated about its axis.
    node, through = generator.integers(nodes, size=_CURVES_AT_ONCE), generator.random((_CURVES_AT_ONCE, 3))
    bottom, top = slab.column(shape, through[:, 1:] * (size[1:] - 1))
    through[:, 0] = bottom + margin + through[:, 0] * np.maximum(top - bottom - 2 * margin, 0)
    through[:, 1:] *= size[1:] - 1
    places = nodes_xyz[..., ::-1] - nodes_xyz[np.arange(_CURVES_AT_ONCE), node][:, None, ::-1] + through[:, None]
    spins = np.deg2rad(form.twist * np.arange(nodes) + generator.uniform(0, 360, (_CURVES_AT_ONCE, 1)))
    turned = frames @ _about_z(spins)
    beside = np.asarray(((places < 0) | (places > size - 1))[..., 1:].any(axis=-1))
    iced = (np.abs(slab.height(places)) <= slab.half - margin) & (np.abs(places[..., 0] - (shape[0] - 1) / 2) <= half)
    kept = np.flatnonzero((iced | beside).all(axis=1) & ~beside.all(axis=1))
    return [(places[i][~beside[i]], turned[i][~beside[i]]) for i in kept]


def _directions(slab: Slab, steepest: float, generator: np.random.Generator) -> FloatArray:
    """Draw directions `(n, 3)` (x, y, z), uniform among those that rise from the ice's plane by `steepest` at most."""
    rise = generator.uniform(-steepest, steepest, _CURVES_AT_ONCE)
    level = frames_along(np.tile(slab.normal[::-1], (_CURVES_AT_ONCE, 1)), generator)[..., 0]
    return np.sqrt(1 - rise**2)[:, None] * level + rise[:, None] * slab.normal[::-1]


def _about_z(angles: FloatArray) -> FloatArray:
    """Make rotation matrices `(..., 3, 3)` about z from angles `(...)` in radians."""
    zero, one = np.zeros_like(angles), np.ones_like(angles)
    rows = [[np.cos(angles), -np.sin(angles), zero], [np.sin(angles), np.cos(angles), zero], [zero, zero, one]]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


# Density -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DrawnFilament:
    """A filament as voxels.

    Parameters
    ----------
    voxels, density
        `(3, n)` (z, y, x) and `(n,)`: where there is density, each voxel once.
    mask, owners
        `(n,)`: which voxels are labelled, and the subunit (counted from 0) that has most of its density there.
    places, orientations
        `(m, 3)` and `(m, 3, 3)` of the subunits, all of which own voxels.
    """

    voxels: IntArray
    density: FloatArray
    mask: npt.NDArray[np.bool_]
    owners: IntArray
    places: FloatArray
    orientations: FloatArray


def draw_filament(
    stamp: Stamp, places: FloatArray, orientations: FloatArray, shape: tuple[int, ...]
) -> DrawnFilament | None:
    """Add up the subunits of a filament that lie completely within the specimen; None if there is none."""
    centers = np.rint(places).astype(np.int64)
    pieces, whole = [], []
    least = _NOTHING * float(stamp.density[:, 0].max())
    for start in range(0, len(places), _CURVES_AT_ONCE):
        part = slice(start, start + _CURVES_AT_ONCE)
        for center, values in zip(
            centers[part], stamp.turn(orientations[part], places[part] - centers[part]).cpu().numpy(), strict=True
        ):
            dense = np.flatnonzero(np.abs(values) > least)
            voxels, values = center[:, None] + stamp.offsets[:, dense], values[dense]
            inside = ((voxels >= 0) & (voxels < np.array(shape)[:, None])).all(axis=0)
            whole.append(bool(inside.any() and inside[values > stamp.threshold].all()))
            if whole[-1]:
                pieces.append((voxels[:, inside], values[inside]))
    if not pieces:
        return None
    drawn = _sum_of(pieces, places[whole], orientations[whole], stamp.threshold, shape)
    return drawn if drawn.mask.any() else None


def _sum_of(
    pieces: Sequence[tuple[IntArray, FloatArray]],
    places: FloatArray,
    orientations: FloatArray,
    threshold: float,
    shape: tuple[int, ...],
) -> DrawnFilament:
    """Add up pieces (voxels and density), and find the piece with the highest density in each voxel."""
    voxels, values = (np.concatenate(parts, axis=-1) for parts in zip(*pieces, strict=True))
    owners = np.repeat(np.arange(len(pieces)), [len(density) for _, density in pieces])
    steps = np.ravel_multi_index(tuple(voxels), shape)
    order = np.lexsort((values, steps))
    # Each run of equal voxels ends with the piece with the highest density there.
    last = np.flatnonzero(np.diff(steps[order], append=-1))
    first = np.concatenate([[0], last[:-1] + 1])
    density = np.add.reduceat(values[order].astype(np.float64), first)
    mask, most = density > threshold, owners[order][last]
    owning, numbers = np.unique(most[mask], return_inverse=True)
    most[mask] = numbers
    return DrawnFilament(
        voxels=voxels[:, order[last]],
        density=density,
        mask=mask,
        owners=most,
        places=places[owning],
        orientations=orientations[owning],
    )
