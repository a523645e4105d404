"""What an item teaches besides its image: spheres, heatmaps, distances, instances, particles, and where it comes from.

Spheres, heatmaps, distances and positions are computed in the patch as it is after all turns, from exact centres.
Nothing of them is interpolated. Volumes that the specimen brings, labels and instances, are turned voxel by voxel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_count, check_positive, checked_names
from faket_aug.data.patches import Size, sphere_labels
from faket_aug.specimens.particles import ParticleTable

#: What an item may hold besides its image.
TARGET_NAMES = (
    *("labels", "spheres", "heatmaps", "distances", "instances", "particles", "half_turn", "specimen"),
    "clean",
)
#: These need the radius of a class.
_WITH_RADII = ("spheres", "heatmaps")
#: A Gaussian ends at this many standard deviations, where it is 4e-6.
_REACH = 5.0


@dataclass(frozen=True)
class PatchTargets:
    """What an item holds besides its image, and how it is drawn.

    Parameters
    ----------
    names
        Any of these, in any order. Each adds the keys that are named here.

        - `"labels"`: `label`, int64, `(z, y, x)`, as `target` of the dataset says.
        - `"spheres"`: `spheres`, int64, `(z, y, x)`: a sphere for each particle, of `sphere_share` of its radius. Where
          spheres overlap, a voxel belongs to the nearest centre.
        - `"heatmaps"`: `heatmaps`, float32, `(class, z, y, x)`: a Gaussian of height 1 at each particle's exact centre,
          with `sigma_share` of its radius as standard deviation. Channel `n - 1` belongs to class number `n`. Of
          several particles the highest value counts. A Gaussian is 0 beyond five standard deviations.
        - `"distances"`: `distances`, float32, `(z, y, x)`: the distance to the nearest particle's exact centre, in
          voxels, at most `max_distance`. Particles centred outside the patch count, too.
        - `"instances"`: `instances`, int64, `(z, y, x)`, numbered anew in each patch, 0 is background. Number `k` up to
          `count` is row `k - 1` of `positions`. Higher numbers are what is centred outside the patch, and what is no
          particle to pick, in the order of the specimen's table.
        - `"particles"`: the particles whose centre lies in the patch. `positions`, float32, `(max_particles, 3)`,
          (z, y, x) in voxels of the patch, exact; `classes`, int64, `(max_particles,)`; `orientations`, float32,
          `(max_particles, 3, 3)`, matrices on column vectors (x, y, z), template to patch; `count`, int, how many rows
          are particles. The other rows are 0. An orientation that is not known is NaN. In a mirrored patch the
          determinant of the matrices is -1.
        - `"half_turn"`: `half_turn`, bool: whether the dataset's `half_turn` rotated the patch about the tilt axis.
          The turns and flips of `augmentation` are not counted.
        - `"specimen"`: `specimen`, str, the specimen's (or the tomogram's) name.
        - `"clean"`: `clean`, float32, `(1, z, y, x)`: the image without noise, in its unit. With `normalize` it is
          scaled by the mean and the standard deviation of the image.
    sphere_share
        Radius of `spheres`, as a share of the particle's radius.
    sigma_share
        Standard deviation of `heatmaps`, as a share of the particle's radius.
    max_distance
        Largest value of `distances`, in voxels.
    max_particles
        Rows of `positions`, `classes` and `orientations`. A patch with more particles is an error.

    Raises
    ------
    ValueError
        If a name is unknown or comes twice, or a setting is impossible.
    """

    names: tuple[str, ...] = ("labels",)
    _: KW_ONLY
    sphere_share: float = 0.6
    sigma_share: float = 0.3
    max_distance: float = 32.0
    max_particles: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names("targets", self.names, TARGET_NAMES))
        for name in ("sphere_share", "sigma_share", "max_distance"):
            check_positive(name, getattr(self, name))
        check_count("max_particles", self.max_particles)

    @classmethod
    def of(cls, targets: Sequence[str] | PatchTargets) -> PatchTargets:
        """Take names with the default settings, or the settings as they are."""
        # A single string is left for the check of the names.
        return targets if isinstance(targets, PatchTargets) else cls(cast(tuple[str, ...], targets))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def with_radii(self) -> tuple[str, ...]:
        """Those that need the radii of the classes."""
        return tuple(name for name in self.names if name in _WITH_RADII)

    @property
    def with_particles(self) -> tuple[str, ...]:
        """Those that are drawn from the particle table."""
        return tuple(name for name in self.names if name in (*_WITH_RADII, "distances", "particles"))


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The particles of a tomogram that a picker should find.

    Parameters
    ----------
    rows
        `(n,)`, their rows in the particle table, from 0.
    particles
        These rows.
    radii
        Radius of each class, in voxels.
    channels
        How many classes heatmaps have.
    """

    rows: IntArray
    particles: ParticleTable
    radii: Mapping[int, float]
    channels: int

    @classmethod
    def of(
        cls, particles: ParticleTable, not_particles: frozenset[int], radii: Mapping[int, float], channels: int
    ) -> Picked:
        """Choose the rows of a table that are particles to pick."""
        rows = np.flatnonzero(~np.isin(particles.classes, sorted(not_particles)))
        table = ParticleTable(
            classes=particles.classes[rows],
            positions=particles.positions[rows],
            orientations=particles.orientations[rows],
        )
        return cls(rows=rows, particles=table, radii=radii, channels=channels)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a patch lies in its tomogram: it is cut out, then turned, mirrored and scaled about its middle.

    Parameters
    ----------
    origin
        `(3,)`, the patch's first voxel in the tomogram before it was turned, (z, y, x).
    size
        (z, y, x).
    turn
        `(3, 3)`, orthogonal, on column vectors (x, y, z); its determinant is -1 if the patch is mirrored.
    scale
        The magnification.
    interpolated
        Whether voxels may come from outside the patch that was cut. They show nothing.
    """

    origin: npt.NDArray[np.int64]
    size: Size
    turn: FloatArray
    scale: float = 1.0
    interpolated: bool = False

    def positions(self, positions: FloatArray) -> FloatArray:
        """Find where points of the tomogram `(n, 3)` lie in the patch, both (z, y, x) in voxels."""
        # The same matrix on (z, y, x): both axes are reversed.
        matrix = self.scale * self.turn[::-1, ::-1]
        found: FloatArray = (positions - self.origin - self._middle) @ matrix.T + self._middle
        return found

    def visible(self, positions: FloatArray) -> npt.NDArray[np.bool_]:
        """Tell which points of the tomogram lie in the patch, before it was turned and after; to the nearest voxel."""
        before, after = np.rint(positions - self.origin), np.rint(self.positions(positions))
        inside = (after >= 0) & (after < np.array(self.size))
        if self.interpolated:
            inside &= (before >= 0) & (before < np.array(self.size))
        all_axes: npt.NDArray[np.bool_] = np.all(inside, axis=1)
        return all_axes

    def orientations(self, orientations: FloatArray) -> FloatArray:
        """Turn orientations `(n, 3, 3)` as the patch is turned."""
        turned: FloatArray = self.turn @ orientations
        return turned

    def shown(self) -> npt.NDArray[np.bool_] | None:
        """Tell which voxels `(z, y, x)` come from the patch that was cut; None if all do."""
        if not self.interpolated:
            return None
        back = self.turn[::-1, ::-1].T / self.scale
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in self.size), indexing="ij"), axis=-1)
        before = np.rint((grid - self._middle) @ back.T + self._middle)
        shown: npt.NDArray[np.bool_] = np.all((before >= 0) & (before < np.array(self.size)), axis=-1)
        return shown

    @property
    def _middle(self) -> FloatArray:
        return (np.array(self.size) - 1) / 2


def draw_targets(targets: PatchTargets, picked: Picked, placement: Placement) -> dict[str, Any]:
    """Draw what the particle table says of a patch: spheres, heatmaps, distances and particles.

    Parameters
    ----------
    targets
        What is asked for.
    picked
        The particles of the tomogram.
    placement
        How the patch lies in the tomogram.

    Returns
    -------
    The entries of the item, on the CPU; see `PatchTargets`.

    Raises
    ------
    ValueError
        If there are more than `max_particles` particles in the patch.
    """
    made: dict[str, Any] = {}
    if not targets.with_particles:
        return made
    positions, classes = placement.positions(picked.particles.positions), picked.particles.classes
    radii = {number: radius * placement.scale for number, radius in picked.radii.items()}
    shown = placement.shown()
    hidden = None if shown is None else torch.from_numpy(~shown)
    if "spheres" in targets:
        spheres = {number: targets.sphere_share * radius for number, radius in radii.items()}
        made["spheres"] = sphere_labels(placement.size, np.zeros(3, np.int64), classes, positions, spheres)
    if "heatmaps" in targets:
        sigmas = {number: targets.sigma_share * radius for number, radius in radii.items()}
        made["heatmaps"] = draw_heatmaps(placement.size, classes, positions, sigmas, picked.channels)
    if "distances" in targets:
        made["distances"] = _distances(placement.size, positions, targets.max_distance)
    if hidden is not None:
        for name, value in made.items():
            made[name] = value.masked_fill(hidden, targets.max_distance if name == "distances" else 0)
    if "particles" in targets:
        inside = placement.visible(picked.particles.positions)
        made |= padded_particles(
            positions[inside],
            classes[inside],
            placement.orientations(picked.particles.orientations[inside]),
            targets.max_particles,
        )
    return made


def number_instances(instances: Tensor, picked: Picked, placement: Placement) -> Tensor:
    """Number the instances of a turned patch anew; see `PatchTargets`.

    Parameters
    ----------
    instances
        `(z, y, x)`, rows of the tomogram's particle table, counted from 1.
    picked, placement
        As for `draw_targets`.

    Returns
    -------
    `(z, y, x)`, int64, on the same device.
    """
    found = torch.unique(instances).tolist()
    first = (picked.rows[placement.visible(picked.particles.positions)] + 1).tolist()
    order = [0, *first, *(row for row in found if row not in {0, *first})]
    # `searchsorted` needs the rows in order, so the new numbers are sorted along with them.
    rows = torch.tensor(sorted(order), device=instances.device)
    numbers = torch.from_numpy(np.argsort(order, kind="stable")).to(instances.device)
    return numbers[torch.searchsorted(rows, instances.to(torch.int64).contiguous())]


def _near(size: Size, position: FloatArray, reach: float) -> tuple[tuple[slice, ...], FloatArray] | None:
    """Find the box of voxels within reach of a position along each axis, and their squared distances from it."""
    low = np.maximum(np.ceil(position - reach), 0).astype(int)
    high = np.minimum(np.floor(position + reach) + 1, size).astype(int)
    if (high <= low).any():
        return None
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    z, y, x = ((axis - p) ** 2 for axis, p in zip(np.ogrid[box], position, strict=True))
    return box, z + y + x


def draw_heatmaps(
    size: Size, classes: IntArray, positions: FloatArray, sigmas: Mapping[int, float], channels: int
) -> Tensor:
    """Draw a Gaussian for each particle; see `PatchTargets`.

    Parameters
    ----------
    size
        (z, y, x) of the patch.
    classes, positions
        `(n,)` and `(n, 3)`, (z, y, x) in voxels of the patch.
    sigmas
        Standard deviation of each class, in voxels.
    channels
        How many classes there are.

    Returns
    -------
    `(class, z, y, x)`, float32.
    """
    maps = np.zeros((channels, *size), dtype=np.float32)
    for number, position in zip(classes.tolist(), positions, strict=True):
        sigma = sigmas.get(number)
        near = None if sigma is None else _near(size, position, _REACH * sigma)
        if near is None or sigma is None:
            continue
        box, squares = near
        values = np.where(squares <= (_REACH * sigma) ** 2, np.exp(-squares / (2 * sigma**2)), 0.0)
        there = maps[number - 1][box]
        np.maximum(there, values.astype(np.float32), out=there)
    return torch.from_numpy(maps)


def _distances(size: Size, positions: FloatArray, farthest: float) -> Tensor:
    squares = np.full(size, farthest**2)
    for position in positions:
        near = _near(size, position, farthest)
        if near is not None:
            np.minimum(squares[near[0]], near[1], out=squares[near[0]])
    return torch.from_numpy(np.sqrt(squares).astype(np.float32))


def padded_particles(positions: FloatArray, classes: IntArray, orientations: FloatArray, rows: int) -> dict[str, Any]:
    """Pad the particles of a patch with rows of 0, so that patches collate."""
    count = len(classes)
    if count > rows:
        raise ValueError(
            f"expected at most {rows} particles in a patch, got {count}; set `max_particles` of `PatchTargets` higher"
        )
    made: dict[str, Any] = {
        "positions": torch.zeros(rows, 3),
        "classes": torch.zeros(rows, dtype=torch.int64),
        "orientations": torch.zeros(rows, 3, 3),
    }
    for name, value in (("positions", positions), ("classes", classes), ("orientations", orientations)):
        made[name][:count] = torch.from_numpy(np.ascontiguousarray(value)).to(made[name].dtype)
    return made | {"count": count}
