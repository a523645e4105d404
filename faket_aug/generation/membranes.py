"""Membranes: closed surfaces and sheets with the profile of a lipid bilayer, drawn from their signed distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_choice
from faket_aug.generation.ice import Slab
from faket_aug.generation.ranges import Range, as_count, as_range, turned_by
from faket_aug.generation.stamp import uniform_rotations
from faket_aug.generation.surfaces import Ellipsoid, Sheet, Surface, Toroid
from faket_aug.generation.templates import ParticleTemplate

MEMBRANE_KINDS = ("sphere", "ellipsoid", "toroid", "sheet")
#: Half the thickness of a layer of head groups, Å: the label extends this far beyond their densest plane.
HEAD_HALF_THICKNESS = 5.0
#: Standard deviation of the head groups' positions along the normal, Å.
HEAD_SPREAD = 4.0
#: Edge, in voxels, of the blocks that are tested as a whole before their voxels are.
_BLOCK = 4
#: Columns that are tried for a centre: those at the sides of tilted ice may contain no ice.
_COLUMNS = 100


@dataclass(frozen=True, kw_only=True)
class MembraneSpecies:
    """Membranes of one kind.

    Vesicles lie completely within the ice where they fit. Otherwise its surfaces cut them, as in a lamella. The sides
    of the specimen may cut any membrane. No two membranes touch, but one may lie within another.

    Parameters
    ----------
    kind
        `"sphere"`, `"ellipsoid"` (three different axes), `"toroid"` or `"sheet"` (a plane through the specimen).
    count
        Number of membranes in each specimen: a number, or (lowest, highest).
    radius
        Å, to the middle of the bilayer: a number, or (lowest, highest). Each half axis of an ellipsoid is drawn from
        it. For a toroid it is the radius of the ring. For a sheet it is not used.
    tube_radius
        Radius of a toroid's tube, Å: a number, or (lowest, highest).
    thickness
        Å, from the densest plane of one layer of head groups to that of the other: a number, or (lowest, highest).
        The label extends 5 Å beyond both.
    head_density, tail_density
        Density of the head groups and of the hydrocarbon core, volts above ice.
    name
        Name of the class. Species with the same name share a class.
    label
        Whether the membranes are labelled, and have a row each in the particle table (without orientation).

    Raises
    ------
    ValueError
        For settings that are not possible.

    Notes
    -----
    Fluid phospholipid bilayers are 35 to 40 Å thick between their head groups [1]_; membranes of cells have the same
    thickness [2]_. The default densities are the scattering factors of the groups at zero angle, divided by their
    volumes [1]_. Phosphocholine and glycerol are about 4 V above ice (4.5 V) before they mix with water, methylenes
    1.8 V. The loosely packed methyls between the leaflets are about 1 V below ice. The core as a whole is 1 V above it.

    References
    ----------
    .. [1] Nagle and Tristram-Nagle, Biochim. Biophys. Acta 1469, 159 (2000), tables 4 and 6.
    .. [2] Mitra, Ubarretxena-Belandia, Taguchi, Warren and Engelman, PNAS 101, 4083 (2004).
    """

    kind: str = "sphere"
    count: int | tuple[int, int] = 1
    radius: Range = (200.0, 500.0)
    tube_radius: Range = (100.0, 150.0)
    thickness: Range = (35.0, 40.0)
    head_density: float = 3.0
    tail_density: float = 1.0
    name: str = "membrane"
    label: bool = True

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, MEMBRANE_KINDS)
        as_count("count", self.count)
        thickness = as_range("thickness", self.thickness)[1]
        least = as_range("radius", self.radius)[0]
        tube = as_range("tube_radius", self.tube_radius)
        if self.kind == "toroid":
            if tube[1] + thickness > least:
                raise ValueError(
                    f"expected a toroid's `radius` to exceed its `tube_radius` by its thickness, {thickness:g} Å, got "
                    f"{least:g} and {tube[1]:g} Å"
                )
            least = tube[0]
        if self.kind != "sheet" and least < thickness:
            raise ValueError(f"expected radii of at least the thickness, {thickness:g} Å, got {least:g} Å")

    @property
    def class_name(self) -> str:
        """The name of its class."""
        return self.name

    @property
    def largest(self) -> float:
        """Å from the middle to the farthest point; infinite for a sheet."""
        ring = as_range("radius", self.radius)[1]
        tube = as_range("tube_radius", self.tube_radius)[1] if self.kind == "toroid" else 0.0
        return math.inf if self.kind == "sheet" else ring + tube

    def templates_at(self, voxel_size: float) -> tuple[ParticleTemplate, ...]:
        """Return no templates: membranes are computed from formulas."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Membrane:
    """A membrane at its position in a specimen, in voxels.

    Parameters
    ----------
    surface
        The middle of the bilayer.
    center
        `(3,)`, (z, y, x).
    orientation
        `(3, 3)`, on column vectors (x, y, z), surface to specimen.
    thickness
        Distance between the head groups, voxels.
    voxel_size
        Å.
    head_density, tail_density
        As of its species.
    """

    surface: Surface
    center: FloatArray
    orientation: FloatArray
    thickness: float
    voxel_size: float
    head_density: float = MembraneSpecies.head_density
    tail_density: float = MembraneSpecies.tail_density

    @property
    def reach(self) -> float:
        """Voxels from the middle of the bilayer to where its density ends."""
        return max(self.half_label, self.thickness / 2 + 3 * math.hypot(HEAD_SPREAD / self.voxel_size, 0.5))

    @property
    def half_label(self) -> float:
        """Voxels from the middle of the bilayer to where its label ends."""
        return self.thickness / 2 + HEAD_HALF_THICKNESS / self.voxel_size

    def distance(self, places: FloatArray | IntArray) -> FloatArray:
        """Compute the signed distance of positions `(..., 3)` (z, y, x), voxels."""
        return self.surface.distance(turned_by((places - self.center)[..., ::-1], self.orientation))

    def density(self, distance: FloatArray) -> FloatArray:
        """Compute the density at a distance from the middle of the bilayer, voxels."""
        return bilayer_profile(
            distance * self.voxel_size,
            thickness=self.thickness * self.voxel_size,
            head_density=self.head_density,
            tail_density=self.tail_density,
            voxel_size=self.voxel_size,
        )

    def draw(self, count: int, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw points on the middle, evenly over the area: positions (z, y, x) and outward normals (x, y, z)."""
        points, normals = self.surface.draw(count, generator)
        turned = turned_by(points, self.orientation.T)
        return self.center + turned[:, ::-1], turned_by(normals, self.orientation.T)

    def shell(self, shape: tuple[int, ...], reach: float) -> tuple[IntArray, FloatArray]:
        """Find all voxels of a volume within `reach` of the middle: `(3, n)`, and their signed distances `(n,)`."""
        low, high = self._box(shape, reach)
        axes = [np.arange(a, b, _BLOCK) for a, b in zip(low, high, strict=True)]
        corners = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
        half = (_BLOCK - 1) / 2
        # The distance changes by one voxel per voxel at most: a block far away contains no voxel that is near.
        near = np.abs(self.distance(corners + half)) <= reach + half * math.sqrt(3) + 1e-6
        within = np.stack(np.meshgrid(*(np.arange(_BLOCK),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        places = (corners[near][:, None] + within).reshape(-1, 3)
        places = places[(places < high).all(axis=1)]
        distance = self.distance(places)
        kept = np.abs(distance) <= reach
        return np.ascontiguousarray(places[kept].T), distance[kept]

    def _box(self, shape: tuple[int, ...], reach: float) -> tuple[IntArray, IntArray]:
        size = np.array(shape)
        if isinstance(self.surface, Sheet):
            return np.zeros(3, np.int64), size
        # The specimen's axes (z, y, x), as directions (x, y, z), in the surface's frame.
        extent = np.array([self.surface.reach(self.orientation.T @ np.eye(3)[2 - axis]) for axis in range(3)]) + reach
        low = np.clip(np.ceil(self.center - extent), 0, size)
        high = np.clip(np.floor(self.center + extent) + 1, 0, size)
        return low.astype(np.int64), high.astype(np.int64)


def draw_membrane(
    species: MembraneSpecies,
    shape: tuple[int, ...],
    slab: Slab,
    *,
    voxel_size: float,
    generator: np.random.Generator,
) -> Membrane:
    """Draw the shape and the position of a membrane; whether it touches another one is not tested.

    Parameters
    ----------
    species
        The species of the membrane.
    shape
        `(z, y, x)` of the specimen.
    slab
        The ice.
    voxel_size
        Å.
    generator
        Generator of all random numbers.
    """
    radii = np.array(as_range("radius", species.radius)) / voxel_size
    tubes = np.array(as_range("tube_radius", species.tube_radius)) / voxel_size
    thickness = generator.uniform(*as_range("thickness", species.thickness)) / voxel_size
    orientation = uniform_rotations(1, generator)[0]
    sizes, tube = generator.uniform(radii[0], radii[1], 3), float(generator.uniform(tubes[0], tubes[1]))
    surface: Surface
    if species.kind == "sheet":
        surface = Sheet(float(np.linalg.norm(shape)))
    elif species.kind == "toroid":
        surface = Toroid(float(sizes[0]), tube)
    else:
        surface = Ellipsoid(sizes if species.kind == "ellipsoid" else np.full(3, sizes[0]))
    # A membrane lies completely in the ice if it fits; a sheet never does.
    need = surface.reach(orientation.T @ slab.normal[::-1]) + thickness / 2 + HEAD_HALF_THICKNESS / voxel_size
    return Membrane(
        surface=surface,
        center=_draw_center(0.0 if species.kind == "sheet" else need, shape, slab, generator),
        orientation=orientation,
        thickness=thickness,
        voxel_size=voxel_size,
        head_density=species.head_density,
        tail_density=species.tail_density,
    )


def _draw_center(need: float, shape: tuple[int, ...], slab: Slab, generator: np.random.Generator) -> FloatArray:
    """Draw a centre anywhere in the ice, `need` voxels from its surfaces or, in thin ice, halfway between them."""
    for _ in range(_COLUMNS):
        z, y, x = generator.random(3) * (np.array(shape) - 1)
        bottom, top = (float(end) for end in slab.column(shape, np.array([y, x])))
        if bottom <= top:
            break
    room = max(0.0, (top - bottom) / 2 - need / slab.normal[0])
    share = 2 * z / max(shape[0] - 1, 1) - 1
    return np.array([(bottom + top) / 2 + share * room, y, x])


def bilayer_profile(
    distance: FloatArray,
    *,
    thickness: float,
    head_density: float,
    tail_density: float,
    voxel_size: float,
) -> FloatArray:
    """Compute the density of a bilayer at distances from its middle.

    Parameters
    ----------
    distance
        Å.
    thickness
        Å, between the densest planes of the two layers of head groups.
    head_density, tail_density
        Density of the head groups and of the core between them.
    voxel_size
        Å; the profile is smoothed to the resolution of these voxels.

    Returns
    -------
    Density, of the shape of `distance`: two Gaussian layers of head groups, and a core with smooth edges.

    Notes
    -----
    Smoothing keeps the integral of each layer, so that membranes look alike at all voxel sizes.
    """
    from scipy.special import erf

    spread = math.hypot(HEAD_SPREAD, voxel_size / 2)
    away = np.abs(distance) - thickness / 2
    heads = head_density * HEAD_SPREAD / spread * np.exp(-0.5 * (away / spread) ** 2)
    heads += head_density * HEAD_SPREAD / spread * np.exp(-0.5 * ((away + thickness) / spread) ** 2)
    half = thickness / 2 - HEAD_HALF_THICKNESS
    core = 0.5 * (erf((distance + half) / (math.sqrt(2) * spread)) - erf((distance - half) / (math.sqrt(2) * spread)))
    return np.asarray(heads + tail_density * core)
