"""Procedural specimens: particles of analytic shapes, for demonstrations and tests without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from scipy.special import erfc

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_positive
from faket_aug._random import numpy_generator
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.particles import ParticleTable

#: Peak density of a particle and of gold, roughly in volts of electrostatic potential above ice.
PARTICLE_DENSITY = 5.0
GOLD_DENSITY = 12.0
GOLD_RADIUS = 50.0
#: Å. The smallest shapes would be lost in larger voxels.
MAX_VOXEL_SIZE = 20.0
#: The label of a particle covers the voxels whose density exceeds this fraction of its peak.
LABEL_LEVEL = 0.4
#: Particles of each class in a specimen of this many Å³ (48 x 128 x 128 voxels of 10 Å).
REFERENCE_COUNTS = {"cage": 5, "barrel": 11, "tripod": 18, "dimer": 34, "fiducial": 3}
REFERENCE_VOLUME = 48 * 128 * 128 * 10.0**3
_GOLD_EDGE = 8.0
#: Å. Particles are drawn this far beyond the radius that keeps them apart: their weak tails may overlap.
_TAIL = 30.0
_PLACES_AT_ONCE = 256
_ROUNDS = 40


@dataclass(frozen=True, kw_only=True)
class AnalyticTemplate:
    """A particle whose density is a formula: it is computed at any point, so a rotation needs no interpolation.

    Parameters
    ----------
    density
        A function from points `(..., 3)`, (x, y, z) in Å relative to the particle's centre, to densities `(...)`. It is
        smooth on the scale of 10 Å.
    radius
        Å. There is little density farther than this from the centre; the spheres of two particles do not overlap.
    peak
        Largest density.
    oriented
        Whether a rotation changes the particle.
    """

    density: Callable[[FloatArray], FloatArray]
    radius: float
    peak: float
    oriented: bool = True


def procedural_specimen(
    *,
    shape: Sequence[int] = (48, 128, 128),
    voxel_size: float = 10.0,
    counts: Mapping[str, int] | None = None,
    seed: int = 0,
    index: int = 0,
) -> GrandModel:
    """Make a specimen of procedural particles and gold fiducials at random positions; none touches another.

    The classes are cages (hollow, about 180 Å in diameter), barrels (hollow, 150 Å long), tripods (three unequal arms
    of up to 80 Å), dimers (75 Å long) and fiducials (gold, 100 Å in diameter). All lie completely within the specimen.
    Their orientations are uniformly random.

    Parameters
    ----------
    shape
        `(z, y, x)`, voxels.
    voxel_size
        Å, at most 20.
    counts
        Particles of each class, by name. By default as many as in an ordinary tomogram, or as many as there is room
        for.
    seed, index
        The address of all random numbers; each `index` gives another specimen.

    Returns
    -------
    A specimen with labels, instances and orientations (NaN for fiducials, which look the same from all sides).

    Raises
    ------
    ValueError
        For unknown class names, voxels that are too large, or `counts` that there is no room for.

    Examples
    --------
    >>> specimen = procedural_specimen(shape=(48, 96, 96), seed=1)
    >>> specimen.class_names[1]
    'cage'
    """
    sizes = tuple(int(size) for size in shape)
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"expected `shape` to be three positive numbers (z, y, x), got {tuple(shape)}")
    check_positive("voxel_size", voxel_size)
    if voxel_size > MAX_VOXEL_SIZE:
        raise ValueError(f"expected `voxel_size` of at most {MAX_VOXEL_SIZE} Å, got {voxel_size}")
    extent = np.array(sizes) * voxel_size
    wanted = _wanted(counts, float(extent.prod()))
    generator = numpy_generator(seed, "demo", tomogram=index)
    names, positions = _place(wanted, extent, voxel_size, generator, must=counts is not None)
    particles = ParticleTable(
        classes=np.array([list(TEMPLATES).index(name) + 1 for name in names], dtype=np.int64),
        positions=positions,
        orientations=_orientations(names, generator),
    )
    density, labels, instances = _draw(particles, sizes, voxel_size)
    return GrandModel(
        density=torch.from_numpy(density),
        labels=torch.from_numpy(labels),
        instances=torch.from_numpy(instances),
        particles=particles,
        voxel_size=float(voxel_size),
        class_names={0: "background"} | dict(enumerate(TEMPLATES, start=1)),
        name=f"procedural specimen {index} of seed {seed}",
    )


def _wanted(counts: Mapping[str, int] | None, volume: float) -> list[str]:
    """List the class name of each particle to be placed, in the order of the templates."""
    if counts is None:
        counts = {name: max(1, round(n * volume / REFERENCE_VOLUME)) for name, n in REFERENCE_COUNTS.items()}
    if any(name not in TEMPLATES or number < 0 for name, number in counts.items()):
        raise ValueError(f"expected `counts` of 0 or more for {', '.join(TEMPLATES)}, got {dict(counts)}")
    return [name for name in TEMPLATES for _ in range(counts.get(name, 0))]


def _place(
    wanted: Sequence[str], extent: FloatArray, voxel_size: float, generator: np.random.Generator, *, must: bool
) -> tuple[list[str], FloatArray]:
    """Draw positions `(n, 3)` (z, y, x) in voxels, one by one, so that no two bounding spheres overlap."""
    names: list[str] = []
    places, radii = np.zeros((0, 3)), np.zeros(0)
    for name in wanted:
        radius = TEMPLATES[name].radius
        place = _free_place(radius, places, radii, extent - voxel_size, generator)
        if place is not None:
            names.append(name)
            places, radii = np.vstack([places, place]), np.append(radii, radius)
        elif must:
            raise ValueError(
                f"expected room for {len(wanted)} particles in {extent[0]:g} x {extent[1]:g} x {extent[2]:g} Å, found "
                f"none for a {name} after {len(names)}; set `counts` smaller or `shape` larger"
            )
    return names, places / voxel_size


def _free_place(
    radius: float, places: FloatArray, radii: FloatArray, reach: FloatArray, generator: np.random.Generator
) -> FloatArray | None:
    """Draw a free position (z, y, x) in Å, if there is one, between 0 and `reach`, the outermost voxels' centres."""
    room = reach - 2 * radius
    if (room < 0).any():
        return None
    for _ in range(_ROUNDS):
        drawn = radius + generator.random((_PLACES_AT_ONCE, 3)) * room
        distance = np.linalg.norm(drawn[:, None] - places[None], axis=-1)
        free = np.flatnonzero((distance > radii + radius).all(axis=1))
        if free.size:
            chosen: FloatArray = drawn[free[0]]
            return chosen
    return None


def _orientations(names: Sequence[str], generator: np.random.Generator) -> FloatArray:
    """Draw uniform rotations `(n, 3, 3)`: four normal numbers, normalised, are a uniform quaternion."""
    if not names:
        return np.zeros((0, 3, 3))
    matrices: FloatArray = Rotation.from_quat(generator.normal(size=(len(names), 4))).as_matrix()
    matrices[[not TEMPLATES[name].oriented for name in names]] = np.nan
    return matrices


def _draw(particles: ParticleTable, shape: tuple[int, ...], voxel_size: float) -> tuple[Any, Any, Any]:
    density = np.zeros(shape, dtype=np.float32)
    labels, instances = np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=np.int32)
    templates = list(TEMPLATES.values())
    rows = zip(particles.classes, particles.positions, particles.orientations, strict=True)
    for row, (number, position, orientation) in enumerate(rows, start=1):
        template = templates[number - 1]
        reach = (template.radius + _TAIL) / voxel_size
        low = np.maximum(np.ceil(position - reach), 0).astype(int)
        high = np.minimum(np.floor(position + reach) + 1, shape).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        zyx = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), axis=-1)
        offset_xyz = (zyx - position)[..., ::-1] * voxel_size
        values = template.density(into_template(offset_xyz, orientation))
        density[box] += values.astype(np.float32)
        inside = values > LABEL_LEVEL * template.peak
        labels[box][inside] = number
        instances[box][inside] = row
    return density, labels, instances


def into_template(offset_xyz: FloatArray, orientation: FloatArray) -> FloatArray:
    """Rotate offsets from a particle's centre `(..., 3)` (x, y, z) from the specimen back into the template's frame.

    Parameters
    ----------
    offset_xyz
        `(..., 3)`.
    orientation
        `(3, 3)`, template to specimen; NaN stands for no rotation.
    """
    if np.isnan(orientation).any():
        return offset_xyz
    # The inverse of a rotation is its transpose; rows times R is the transpose times columns.
    return np.asarray(offset_xyz @ orientation)


# Shapes --------------------------------------------------------------------------------------------------------------


def _blobs(centers: FloatArray, *, spread: float) -> AnalyticTemplate:
    """Make a template of equal Gaussian blobs at `(n, 3)` (x, y, z), with standard deviation `spread`, both in Å."""

    def raw(points: FloatArray) -> FloatArray:
        total = np.zeros(points.shape[:-1])
        for center in centers:
            total += np.exp(-((points - center) ** 2).sum(axis=-1) / (2 * spread**2))
        return total

    # The peak lies near the centre of a blob, or between blobs that overlap.
    middles = (centers[:, None] + centers[None]).reshape(-1, 3) / 2
    highest = float(raw(middles).max())

    def density(points: FloatArray) -> FloatArray:
        return raw(points) * (PARTICLE_DENSITY / highest)

    radius = float(np.linalg.norm(centers, axis=1).max()) + 2 * spread
    return AnalyticTemplate(density=density, radius=radius, peak=PARTICLE_DENSITY)


def _cage() -> AnalyticTemplate:
    """A hollow sphere of 72 blobs on a spiral from pole to pole (an even cover, without symmetry)."""
    count, radius = 72, 76.0
    height = 1 - 2 * (np.arange(count) + 0.5) / count
    turn = math.pi * (3 - math.sqrt(5)) * np.arange(count)
    across = np.sqrt(1 - height**2)
    unit = np.stack([across * np.cos(turn), across * np.sin(turn), height], axis=-1)
    return _blobs(radius * unit, spread=10.0)


def _barrel() -> AnalyticTemplate:
    """Four rings of seven blobs about the template's z axis."""
    turn = 2 * math.pi * np.arange(7) / 7
    rings = [
        np.stack([45 * np.cos(turn + twist), 45 * np.sin(turn + twist), np.full(7, z)], axis=-1)
        for z, twist in ((-57.0, 0.2), (-19.0, 0.0), (19.0, 0.0), (57.0, -0.2))
    ]
    return _blobs(np.concatenate(rings), spread=13.0)


def _tripod() -> AnalyticTemplate:
    """Three arms of different length, one bent out of the plane: no rotation maps the particle onto itself."""
    arms = ((0.0, 3, 0.0), (2.0, 3, 0.5), (4.3, 2, -0.2))
    centers = [np.zeros(3)]
    for azimuth, length, rise in arms:
        direction = np.array([math.cos(azimuth), math.sin(azimuth), rise])
        centers += [22.0 * step * direction for step in range(1, length + 1)]
    points = np.array(centers)
    return _blobs(points - points.mean(axis=0), spread=12.0)


def _dimer() -> AnalyticTemplate:
    return _blobs(np.array([[-19.0, 0.0, 0.0], [19.0, 4.0, 0.0]]), spread=14.0)


def _fiducial() -> AnalyticTemplate:
    def density(points: FloatArray) -> FloatArray:
        depth = np.linalg.norm(points, axis=-1) - GOLD_RADIUS
        return np.asarray(GOLD_DENSITY * 0.5 * erfc(depth / (math.sqrt(2) * _GOLD_EDGE)))

    return AnalyticTemplate(density=density, radius=GOLD_RADIUS + 2 * _GOLD_EDGE, peak=GOLD_DENSITY, oriented=False)


#: Particle classes by name, the largest first, so that they find room. The class number is the position, from 1.
TEMPLATES: Mapping[str, AnalyticTemplate] = {
    "cage": _cage(),
    "barrel": _barrel(),
    "tripod": _tripod(),
    "dimer": _dimer(),
    "fiducial": _fiducial(),
}
