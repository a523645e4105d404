"""Finding room for particles in a specimen, and drawing them into its volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._runtime.numerics import own_precision
from faket_aug._runtime.transfers import moved
from faket_aug.generation.ice import Slab
from faket_aug.generation.ranges import turned_by
from faket_aug.generation.stamp import Mask, Stamp, ball_offsets, flat_indices
from faket_aug.generation.templates import ParticleTemplate
from faket_aug.specimens.particles import ParticleTable

#: Draws `count` positions `(count, 3)` for a centre between `low` and `high`; `attempt` counts the calls before.
DrawPlaces = Callable[[int, IntArray, IntArray, int], IntArray]

#: Values of `Room.taken`; membrane i has `MEMBRANE + i`.
FREE, SOLID, MEMBRANE = 0, 1, 2
#: Positions tried for one particle, in growing numbers: most are free at first, in a crowd one in thousands.
_HANDFULS = (8, 64, 512, *(4096,) * 16)
#: Voxels of a mask that are tested for all positions, for those that are left, and once more.
_PROBES = (4, 48, 400)


class Room:
    """The voxels of a specimen that are taken, in host memory.

    Parameters
    ----------
    shape
        `(z, y, x)`.
    slab
        The ice, which holds all particles.
    gap
        Voxels. The distance between voxels of two masks, from centre to centre, is larger than this.
    """

    def __init__(self, shape: Sequence[int], slab: Slab, *, gap: float = 0.0) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.slab = slab
        self.taken = np.zeros(math.prod(shape), np.int16)
        self.gap = gap
        self._around = ball_offsets(gap).T if gap >= 1 else np.zeros((0, 3), np.int64)
        bottom, top = slab.z_range(self.shape)
        self._z_range = math.floor(bottom), math.ceil(top)

    def find(self, mask: Mask, draw: DrawPlaces) -> IntArray | None:
        """Find a free centre `(3,)` for a mask among many that are drawn; None if none of them is free."""
        low, high = self.limits(mask)
        floor, ceiling = self.heights(mask)
        if (low > high).any() or floor > ceiling:
            return None
        for attempt, count in enumerate(_HANDFULS):
            centers = draw(count, low, high, attempt)
            height = self.slab.height(centers)
            centers = centers[(height >= floor) & (height <= ceiling)]
            found = self.first_free(flat_indices(centers.T, self.shape), mask.steps)
            if found is not None:
                return np.array(np.unravel_index(found, self.shape))
        return None

    def limits(self, mask: Mask) -> tuple[IntArray, IntArray]:
        """Find the lowest and the highest centre, both `(3,)`, of a mask that lies within the specimen."""
        low, high = -mask.offsets.min(axis=1), np.array(self.shape) - 1 - mask.offsets.max(axis=1)
        low[0], high[0] = max(low[0], self._z_range[0]), min(high[0], self._z_range[1])
        return low, high

    def heights(self, mask: Mask) -> tuple[float, float]:
        """Find the lowest and the highest height above the ice's middle of the centre of a mask within the ice."""
        heights = turned_by(mask.offsets.T, self.slab.normal[:, None])
        return -self.slab.half - float(heights.min()), self.slab.half - float(heights.max())

    def first_free(self, bases: IntArray, steps: IntArray) -> int | None:
        """Find the first of several centres around which no voxel is taken: test a few voxels, then more, then all."""
        for probes in _PROBES:
            probed = steps[:: max(1, len(steps) // probes)]
            bases = bases[~self.taken[bases[:, None] + probed].any(axis=1)]
        return next((int(base) for base in bases if not self.taken[base + steps].any()), None)

    def is_free(self, voxels: IntArray, *, also: int = FREE) -> bool:
        """Tell whether voxels `(3, n)` all lie within specimen and slab, and are free or hold `also`."""
        if voxels.min() < 0 or (voxels.max(axis=1) >= self.shape).any():
            return False
        if (np.abs(self.slab.height(voxels.T)) > self.slab.half).any():
            return False
        taken = self.taken[flat_indices(voxels, self.shape)]
        return bool(((taken == FREE) | (taken == also)).all())

    def take(self, voxels: IntArray, code: int = SOLID) -> None:
        """Mark voxels `(3, n)`, and those in the gap around them, as taken."""
        self.taken[flat_indices(voxels, self.shape)] = code
        last = np.array(self.shape)[:, None] - 1
        for step in self._around:
            # A voxel outside is moved to the edge, which lies in the gap, too.
            near = flat_indices(np.clip(voxels + step[:, None], 0, last), self.shape)
            self.taken[near] = np.where(self.taken[near] == FREE, code, self.taken[near])


class Canvas:
    """The volumes of a specimen, on a device, and its particle table, while things are added.

    Parameters
    ----------
    shape
        `(z, y, x)`.
    device
        Device of the volumes.
    """

    def __init__(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        self.shape = tuple(int(n) for n in shape)
        self.density = _zeros(self.shape, torch.float32, device)
        self.labels = _zeros(self.shape, torch.uint8, device)
        self.instances = _zeros(self.shape, torch.int32, device)
        self._rows: list[tuple[int, FloatArray, FloatArray]] = []
        #: Labels on their way to a GPU: flat indices, class, and row or rows.
        self._waiting: list[tuple[Tensor, int, int | IntArray]] = []
        #: What is left of the membranes' density, a part of `density`.
        self._membranes: Tensor | None = None

    def add_row(self, number: int, position: FloatArray, orientation: FloatArray | None = None) -> int:
        """Add a row to the particle table, and return its 1-based number."""
        self._rows.append((number, position, np.full((3, 3), np.nan) if orientation is None else orientation))
        return len(self._rows)

    def add_cube(self, center: IntArray, cube: Tensor) -> None:
        """Add a cube of density `(d, d, d)`, d odd, around a voxel; parts outside the volume are left out."""
        into, of = self._overlap(center, cube.shape[0])
        self.density[into] += cube[of]

    def _overlap(self, center: IntArray, side: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Find the overlap of the volume and a cube around a voxel, as slices of the one and of the other."""
        first = center - side // 2
        low, high = np.maximum(first, 0), np.minimum(first + side, self.shape)
        into = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        of = tuple(slice(a, b) for a, b in zip((low - first).tolist(), (high - first).tolist(), strict=True))
        return into, of

    def add_voxels(self, voxels: IntArray, values: FloatArray) -> None:
        """Add density `(n,)` at voxels `(3, n)` of the volume, none twice."""
        self._add_voxels(voxels, values)

    def add_membrane(self, voxels: IntArray, values: FloatArray) -> None:
        """Add a membrane's density, see `add_voxels`; `take_membrane` may remove a part of it again."""
        at, own = self._add_voxels(voxels, values)
        if self._membranes is None:
            self._membranes = _zeros(self.shape, torch.float32, self.density.device)
        self._membranes.view(-1)[at] += own

    def _add_voxels(self, voxels: IntArray, values: FloatArray) -> tuple[Tensor, Tensor]:
        """Add density, and return where and what, on the device."""
        given = {"at": self._flat(voxels), "own": torch.from_numpy(values).to(self.density.dtype)}
        at, own = moved(given, self.density.device).values()
        at = at.long()
        self.density.view(-1)[at] += own
        return at, own

    def _flat(self, voxels: IntArray) -> Tensor:
        """Convert voxels `(3, n)` to flat indices, in host memory; for a GPU in 32 bits, if these suffice."""
        flat = torch.from_numpy(flat_indices(voxels, self.shape))
        short = self.density.is_cuda and self.density.numel() <= 2**31
        return flat.to(torch.int32) if short else flat

    def take_membrane(self, center: IntArray, share: Tensor) -> None:
        """Remove fractions, a cube `(d, d, d)` around a voxel, of the remaining density of the membranes there."""
        if self._membranes is None:
            return
        into, of = self._overlap(center, share.shape[0])
        gone = self._membranes[into] * share[of]
        self._membranes[into] -= gone
        self.density[into] -= gone

    def add_label(self, voxels: IntArray, number: int, rows: int | IntArray) -> None:
        """Give voxels `(3, n)` of the volume a class and a row, or each its own. On a GPU, `send_labels` does so."""
        if self.labels.is_cuda:
            self._waiting.append((self._flat(voxels), number, rows))
            return
        at = self._flat(voxels)
        self.labels.view(-1)[at] = number
        self.instances.view(-1)[at] = rows if isinstance(rows, int) else torch.from_numpy(rows).to(torch.int32)

    def send_labels(self) -> None:
        """Write the labels that wait for a GPU, by one copy: none of their voxels may be labelled twice."""
        if not self._waiting:
            return
        counts = torch.tensor([len(at) for at, _, _ in self._waiting])
        numbers = torch.tensor([number for _, number, _ in self._waiting], dtype=torch.uint8)
        rows = [torch.as_tensor(rows, dtype=torch.int32).expand(len(at)) for at, _, rows in self._waiting]
        given = {
            "at": torch.cat([at for at, _, _ in self._waiting]),
            "numbers": numbers.repeat_interleave(counts),
            "rows": torch.cat(rows),
        }
        self._waiting.clear()
        at, own, instances = moved(given, self.labels.device).values()
        at = at.long()
        self.labels.view(-1)[at] = own
        self.instances.view(-1)[at] = instances

    def table(self) -> ParticleTable:
        """Make the particle table."""
        if not self._rows:
            return ParticleTable.empty()
        classes, positions, orientations = zip(*self._rows, strict=True)
        return ParticleTable(
            classes=np.array(classes, dtype=np.int64),
            positions=np.array(positions, dtype=np.float64),
            orientations=np.array(orientations, dtype=np.float64),
        )


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Make zeros; on the CPU as NumPy does, which takes memory only where something is written."""
    if torch.device(device).type != "cpu":
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(shape, torch.empty(0, dtype=dtype).numpy().dtype))


@own_precision()
def place_templates(
    particles: ParticleTable,
    templates: Mapping[int, ParticleTemplate],
    *,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    interpolation: str = "sharp",
) -> Tensor:
    """Draw the density of particles with known positions and orientations.

    Parameters
    ----------
    particles
        The particles; the templates' centres are placed at their positions.
    templates
        The template of each class, all of the specimen's voxel size. Particles of other classes are left out. Particles
        without orientation are not rotated.
    shape
        `(z, y, x)` of the result. Particles may extend beyond it.
    device
        Device on which the density is made.
    interpolation
        `"sharp"` or `"linear"`, see `GrandModelGenerator`.

    Returns
    -------
    `(z, y, x)`, float32.

    Raises
    ------
    ValueError
        If the templates differ in voxel size.
    """
    sizes = {template.voxel_size for template in templates.values()}
    if len(sizes) > 1:
        raise ValueError(f"expected `templates` of one voxel size, got {', '.join(f'{s:g}' for s in sorted(sizes))} Å")
    canvas = Canvas(shape, device=device)
    for number, template in templates.items():
        rows = np.flatnonzero(particles.classes == number)
        stamp = Stamp.of(template, device=device, interpolation=interpolation)
        positions = particles.positions[rows]
        orientations = np.where(np.isnan(particles.orientations[rows]), np.eye(3), particles.orientations[rows])
        centers = np.rint(positions).astype(np.int64)
        for i, cube, _ in stamp.turned(orientations, positions - centers):
            canvas.add_cube(centers[i], cube)
    return canvas.density
