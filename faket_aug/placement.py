"""Turning templates and finding room for them: what a grandmodel is put together with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faket_aug.species import Floats, Ints, Slab, turned_by
from faket_aug.specimen import ParticleTable
from faket_aug.templates import ParticleTemplate

#: Draws `count` places `(count, 3)` for a centre between `low` and `high`; `attempt` counts how often it was asked.
DrawPlaces = Callable[[int, Ints, Ints, int], Ints]

#: What a voxel of `Room.taken` may hold; membrane i has `MEMBRANE + i`.
FREE, SOLID, MEMBRANE = 0, 1, 2
#: Density this far, Å, around the mask is drawn; beyond it templates hold noise, if anything.
_TAIL = 30.0
#: Density below this share of the peak is none.
_NOTHING = 0.01
#: A template is turned by linear interpolation of its cubic spline at steps of half a voxel: linear interpolation of
#: the voxels themselves would blur it, and more so at some turns than at others.
_OVERSAMPLING = 2
#: Samples of one batch; more would only ask a CPU for fresh memory.
_SAMPLES_AT_ONCE = {"cpu": 2**18, "cuda": 2**25}
#: Places tried for one particle, in growing handfuls: most find room at once, in a crowd one in thousands does.
_HANDFULS = (8, 64, 512, *(4096,) * 16)
_FEW_PROBES, _PROBES = 4, 48


def uniform_rotations(count: int, generator: np.random.Generator) -> Floats:
    """Draw rotation matrices `(count, 3, 3)`, uniform on SO(3): four normal numbers, normalised, are a quaternion."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_quat(generator.normal(size=(count, 4))).as_matrix()).reshape(-1, 3, 3)


def frames_along(directions: Floats, generator: np.random.Generator) -> Floats:
    """Make rotation matrices `(n, 3, 3)` whose third columns are unit vectors `(n, 3)`, turned about them at random."""
    across = np.cross(directions, uniform_rotations(len(directions), generator)[..., 0])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    return np.stack([across, np.cross(directions, across), directions], axis=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stamp:
    """A template made ready to be turned many times; see `turn`.

    Parameters
    ----------
    density
        `(1, 1, z, y, x)`, sampled at half voxels.
    center
        `(3,)`, (x, y, z) in samples of `density`, the point about which it turns.
    offsets
        `(3, p)`, (z, y, x): the voxels of a ball that holds the template however it is turned, about the voxel
        nearest to its centre.
    threshold
        As the template's.
    hull
        `(m, 3)`, (x, y, z) in voxels: the points of the template's mask that reach farthest, from its centre.
    mask_voxels
        How many voxels the template's mask has.
    """

    density: Tensor
    center: tuple[float, float, float]
    offsets: Ints
    threshold: float
    hull: Floats
    mask_voxels: int
    _ball: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # (p, 3), (x, y, z)
        ball = torch.from_numpy(np.ascontiguousarray(self.offsets[::-1].T)).to(self.density.device, torch.float32)
        object.__setattr__(self, "_ball", ball)

    @classmethod
    def of(cls, template: ParticleTemplate, *, device: torch.device | str = "cpu") -> Stamp:
        """Prepare a template: cut away what is empty, and refine its grid."""
        from scipy.ndimage import zoom

        density, center = template.density.cpu().numpy(), np.array(template.center)
        hull = hull_points(template)
        dense = np.argwhere(np.abs(density) > _NOTHING * float(density.max())) - center
        reach = min(_radius(dense), _radius(hull) + _TAIL / template.voxel_size)
        # A voxel more on each side lets the spline, and the particle's fraction of a voxel, end in nothing.
        low = np.floor(center - reach).astype(int) - 1
        high = np.ceil(center + reach).astype(int) + 2
        outside = [(max(-a, 0), max(b - n, 0)) for a, b, n in zip(low, high, density.shape, strict=True)]
        padded = np.pad(density, outside)[tuple(slice(max(a, 0), None) for a in low)]
        box = padded[tuple(slice(0, n) for n in high - low)]
        # Corners are aligned: sample i is at voxel i / 2.
        sizes = [_OVERSAMPLING * (n - 1) + 1 for n in box.shape]
        fine = zoom(box.astype(np.float64), [m / n for m, n in zip(sizes, box.shape, strict=True)], order=3)
        assert list(fine.shape) == sizes
        z, y, x = _OVERSAMPLING * (center - low)
        return cls(
            density=torch.from_numpy(fine.astype(np.float32))[None, None].to(device),
            center=(float(x), float(y), float(z)),
            offsets=_ball_offsets(reach + 1),
            threshold=template.threshold,
            hull=hull,
            mask_voxels=int(template.mask.sum()),
        )

    @property
    def mask_radius(self) -> float:
        """Voxels from the centre to the farthest voxel of the mask."""
        return _radius(self.hull)

    def turn(self, orientations: Floats, fractions: Floats) -> Tensor:
        """Compute the density of turned copies at the voxels of `offsets`.

        Parameters
        ----------
        orientations
            `(n, 3, 3)`, rotation matrices on column vectors (x, y, z), template to specimen.
        fractions
            `(n, 3)`, (z, y, x): where the centres lie within their voxels, from -1/2 to 1/2.

        Returns
        -------
        `(n, p)`, float32, on the stamp's device.
        """
        # Voxel o of the specimen holds the template at Rᵀ (o - fraction); as rows, (o - fraction) R.
        sizes = np.array(self.density.shape[:1:-1])
        # `grid_sample` counts from -1 at the first sample to 1 at the last.
        scale = 2 * _OVERSAMPLING / (sizes - 1)
        shift = (
            2 * np.array(self.center) / (sizes - 1)
            - 1
            - scale * np.einsum("ni,nij->nj", fractions[:, ::-1], orientations)
        )
        device = self.density.device
        matrix = torch.from_numpy(orientations * scale).to(device, torch.float32)
        grid = torch.matmul(self._ball, matrix) + torch.from_numpy(shift).to(device, torch.float32)[:, None]
        density = self.density.expand(len(grid), -1, -1, -1, -1)
        return F.grid_sample(density, grid[:, None, None], align_corners=True)[:, 0, 0, 0]

    def turned(self, orientations: Floats, fractions: Floats) -> Iterator[tuple[int, Tensor, Ints]]:
        """Turn many copies in batches.

        Yields
        ------
        For each its number, its density as a cube `(d, d, d)` about the centre's voxel, and which of `offsets` are its
        mask's, in host memory.
        """
        size = max(1, _SAMPLES_AT_ONCE.get(self.density.device.type, 2**18) // self.offsets.shape[1])
        side = 2 * int(self.offsets.max()) + 1
        into = torch.from_numpy(_steps(self.offsets + side // 2, (side,) * 3)).to(self.density.device)
        for start in range(0, len(orientations), size):
            values = self.turn(orientations[start : start + size], fractions[start : start + size])
            masks = (values > self.threshold).cpu().numpy()
            cubes = values.new_zeros(len(values), side**3)
            cubes[:, into] = values
            for i, cube in enumerate(cubes.view(-1, side, side, side)):
                yield start + i, cube, np.flatnonzero(masks[i])


def hull_points(template: ParticleTemplate) -> Floats:
    """Find the points `(m, 3)` (x, y, z) of a template's mask that lie farthest in many directions, in voxels."""
    points = (np.argwhere(template.mask.cpu().numpy()) - np.array(template.center))[:, ::-1]
    parts = np.array_split(uniform_directions(), 20)
    farthest = np.concatenate([turned_by(points, part.T).argmax(axis=0) for part in parts])
    return np.ascontiguousarray(points[np.unique(farthest)])


def uniform_directions() -> Floats:
    """Make 1000 unit vectors `(1000, 3)` that cover the sphere evenly, on a spiral from pole to pole."""
    height = 1 - 2 * (np.arange(1000) + 0.5) / 1000
    turn = math.pi * (3 - math.sqrt(5)) * np.arange(1000)
    level = np.sqrt(1 - height**2)
    return np.stack([level * np.cos(turn), level * np.sin(turn), height], axis=1)


def _radius(points: Floats) -> float:
    return float(np.sqrt((points**2).sum(axis=1).max()))


def _ball_offsets(radius: float) -> Ints:
    steps = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    z, y, x = np.meshgrid(steps, steps, steps, indexing="ij")
    return np.stack([axis[z**2 + y**2 + x**2 <= radius**2] for axis in (z, y, x)])


def _steps(places: Ints, shape: Sequence[int]) -> Ints:
    """Turn voxels `(3, ...)` into steps in the memory of a volume."""
    return np.asarray((places[0] * shape[1] + places[1]) * shape[2] + places[2])


@dataclass(frozen=True, eq=False)
class Mask:
    """A thing's voxels about a centre: `offsets` `(3, n)` (z, y, x), and the same as `steps` `(n,)` in memory."""

    offsets: Ints
    steps: Ints

    @classmethod
    def of(cls, offsets: Ints, shape: Sequence[int]) -> Mask:
        """Make the mask for volumes of a shape."""
        return cls(offsets, _steps(offsets, shape))

    def only(self, chosen: Ints) -> Mask:
        """Keep the chosen voxels."""
        return Mask(self.offsets.take(chosen, axis=1), self.steps[chosen])


class Room:
    """Which voxels of a specimen are taken, in host memory.

    Parameters
    ----------
    shape
        `(z, y, x)`.
    slab
        Where particles may be.
    gap
        No two masks have voxels as near as this many voxels, or nearer.
    """

    def __init__(self, shape: Sequence[int], slab: Slab, *, gap: float = 0.0) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.slab = slab
        self.taken = np.zeros(math.prod(shape), np.int16)
        self._around = _ball_offsets(gap).T if gap >= 1 else np.zeros((0, 3), np.int64)
        bottom, top = slab.z_range(self.shape)
        self._z_range = math.floor(bottom), math.ceil(top)

    def find(self, mask: Mask, draw: DrawPlaces) -> Ints | None:
        """Find a free centre `(3,)` for a mask among many that are drawn; nothing where none of them is free."""
        low, high = -mask.offsets.min(axis=1), np.array(self.shape) - 1 - mask.offsets.max(axis=1)
        low[0], high[0] = max(low[0], self._z_range[0]), min(high[0], self._z_range[1])
        heights = turned_by(mask.offsets.T, self.slab.normal[:, None])
        floor, ceiling = -self.slab.half - heights.min(), self.slab.half - heights.max()
        if (low > high).any() or floor > ceiling:
            return None
        for attempt, count in enumerate(_HANDFULS):
            centers = draw(count, low, high, attempt)
            height = self.slab.height(centers)
            centers = centers[(height >= floor) & (height <= ceiling)]
            found = self._first_free(_steps(centers.T, self.shape), mask.steps)
            if found is not None:
                return np.array(np.unravel_index(found, self.shape))
        return None

    def _first_free(self, bases: Ints, steps: Ints) -> int | None:
        """Find the first of several centres about which nothing is taken: look at a few voxels, at more, at all."""
        for probes in (_FEW_PROBES, _PROBES):
            probed = steps[:: max(1, len(steps) // probes)]
            bases = bases[~self.taken[bases[:, None] + probed].any(axis=1)]
        return next((int(base) for base in bases if not self.taken[base + steps].any()), None)

    def is_free(self, voxels: Ints, *, also: int = FREE) -> bool:
        """Tell whether voxels `(3, n)` all lie within specimen and slab, and are free or hold `also`."""
        if voxels.min() < 0 or (voxels.max(axis=1) >= self.shape).any():
            return False
        if (np.abs(self.slab.height(voxels.T)) > self.slab.half).any():
            return False
        taken = self.taken[_steps(voxels, self.shape)]
        return bool(((taken == FREE) | (taken == also)).all())

    def take(self, voxels: Ints, code: int = SOLID) -> None:
        """Mark voxels `(3, n)`, and those in the gap around them."""
        self.taken[_steps(voxels, self.shape)] = code
        last = np.array(self.shape)[:, None] - 1
        for step in self._around:
            # A voxel outside is brought to the edge, which lies in the gap, too.
            near = _steps(np.clip(voxels + step[:, None], 0, last), self.shape)
            self.taken[near] = np.where(self.taken[near] == FREE, code, self.taken[near])


class Canvas:
    """The volumes of a specimen while it is put together, on a device, and its particle table.

    Parameters
    ----------
    shape
        `(z, y, x)`.
    device
        Where the volumes are.
    """

    def __init__(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        self.shape = tuple(int(n) for n in shape)
        self.density = _zeros(self.shape, torch.float32, device)
        self.labels = _zeros(self.shape, torch.uint8, device)
        self.instances = _zeros(self.shape, torch.int32, device)
        self._rows: list[tuple[int, Floats, Floats]] = []
        #: What is left of the membranes' density, a part of `density`.
        self._membranes: Tensor | None = None

    def add_row(self, number: int, position: Floats, orientation: Floats | None = None) -> int:
        """Add a row to the particle table, and return its 1-based number."""
        self._rows.append((number, position, np.full((3, 3), np.nan) if orientation is None else orientation))
        return len(self._rows)

    def add_cube(self, center: Ints, cube: Tensor) -> None:
        """Add a cube of density `(d, d, d)`, d odd, about a voxel; what reaches out of the volume is left out."""
        into, of = self._overlap(center, cube.shape[0])
        self.density[into] += cube[of]

    def _overlap(self, center: Ints, side: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Find where the volume and a cube about a voxel meet, in the one and in the other."""
        first = center - side // 2
        low, high = np.maximum(first, 0), np.minimum(first + side, self.shape)
        into = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        of = tuple(slice(a, b) for a, b in zip((low - first).tolist(), (high - first).tolist(), strict=True))
        return into, of

    def add_voxels(self, voxels: Ints, values: Floats) -> None:
        """Add density `(n,)` at voxels `(3, n)` of the volume, none twice."""
        at = torch.from_numpy(_steps(voxels, self.shape)).to(self.density.device)
        self.density.view(-1)[at] += torch.from_numpy(values).to(self.density)

    def add_membrane(self, voxels: Ints, values: Floats) -> None:
        """Add a membrane's density, see `add_voxels`, of which `take_membrane` may take some away again."""
        self.add_voxels(voxels, values)
        if self._membranes is None:
            self._membranes = _zeros(self.shape, torch.float32, self.density.device)
        at = torch.from_numpy(_steps(voxels, self.shape)).to(self.density.device)
        self._membranes.view(-1)[at] += torch.from_numpy(values).to(self._membranes)

    def take_membrane(self, center: Ints, share: Tensor) -> None:
        """Take shares, a cube `(d, d, d)` about a voxel, of what is left of the membranes' density there."""
        if self._membranes is None:
            return
        into, of = self._overlap(center, share.shape[0])
        gone = self._membranes[into] * share[of]
        self._membranes[into] -= gone
        self.density[into] -= gone

    def add_label(self, voxels: Ints, number: int, rows: int | Ints) -> None:
        """Give voxels `(3, n)` of the volume a class and a row, or each its own."""
        at = torch.from_numpy(_steps(voxels, self.shape)).to(self.labels.device)
        self.labels.view(-1)[at] = number
        if isinstance(rows, int):
            self.instances.view(-1)[at] = rows
        else:
            self.instances.view(-1)[at] = torch.from_numpy(rows).to(self.instances)

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


def place_templates(
    particles: ParticleTable,
    templates: Mapping[int, ParticleTemplate],
    *,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw the density of particles whose places and orientations are known.

    Parameters
    ----------
    particles
        The particles; positions are where the templates' centres come to lie.
    templates
        The template of each class, all of the specimen's voxel size. Particles of other classes are left out; those
        without orientation are not turned.
    shape
        `(z, y, x)` of the result. Particles may reach out of it.
    device
        Where it is made.

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
        stamp, positions = Stamp.of(template, device=device), particles.positions[rows]
        orientations = np.where(np.isnan(particles.orientations[rows]), np.eye(3), particles.orientations[rows])
        centers = np.rint(positions).astype(np.int64)
        for i, cube, _ in stamp.turned(orientations, positions - centers):
            canvas.add_cube(centers[i], cube)
    return canvas.density
