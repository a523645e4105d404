"""Drawing labelled patches from tilts: where a specimen's labels and particles are seen in each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_choice, check_count, check_flag, check_fraction
from faket_aug._random import numpy_generator
from faket_aug._runtime.threads import concrete_device
from faket_aug._runtime.transfers import moved
from faket_aug.data.drawn import Patch
from faket_aug.data.patches import Size, check_fits, clamp_center, cut, normalize, sphere_labels
from faket_aug.data.sampling import TARGETS, check_labels
from faket_aug.data.targets import PatchTargets, Picked, draw_heatmaps, padded_particles
from faket_aug.geometry import axis_index, turns
from faket_aug.microscope.bad_tilts import BadTilt
from faket_aug.simulation.tomogram import Companions, SimulatedTomogram
from faket_aug.specimens.particles import Labelled
from faket_aug.tomography.resample import RESAMPLINGS, bin_images

#: What an item of a tilt may hold besides its image.
TILT_TARGETS = ("labels", "heatmaps", "particles")


@dataclass(frozen=True, kw_only=True)
class SeenParticles:
    """The particles that are seen in one tilt.

    Parameters
    ----------
    rows
        `(n,)`, their rows in the table of particles to pick. With copies of the specimen beside it a row comes again.
    positions
        `(n, 3)`, (y, x, depth) in pixels. The depth is counted along the beam from the axis of rotation.
    turn
        `(3, 3)`, the rotation of the specimen, on column vectors (x, y, z).
    """

    rows: IntArray
    positions: FloatArray
    turn: FloatArray


@dataclass(frozen=True, kw_only=True)
class LiveTilts:
    """The tilts that patches are cut from, and the specimen that they show.

    Parameters
    ----------
    tilts
        `(tilt, y, x)`, binned.
    tilt_angles
        `(tilt,)`, degrees, as the microscope says them.
    labels
        `(z, y, x)`, with y last in memory.
    picked
        The particles to pick; positions and radii in voxels of the labels.
    errors
        `(tilt, 4)`, what the alignment does not know: shifts along y and x in voxels of the labels (those of bad tilts,
        too), the rotation in the plane and the error of the tilt angle in degrees.
    lost
        `(tilt, 2)`, the shifts of bad tilts among these: what lay outside of the image before is not seen.
    scale
        Voxels of the labels in a pixel of the tilts.
    axis
        `(3,)`, where the axis of rotation lies in the labels, (z, y, x). It goes through voxel `n // 2` of the density,
        and a voxel of coarser labels is the middle of a block of voxels of the density.
    wrapped
        Whether copies of the specimen lie beside it along x.
    specimen
        Its name.
    """

    tilts: Tensor
    tilt_angles: FloatArray
    labels: Tensor
    picked: Picked
    errors: FloatArray
    lost: FloatArray
    scale: float
    axis: FloatArray
    wrapped: bool
    specimen: str

    @classmethod
    def of(cls, made: SimulatedTomogram, picked: Picked, *, bin: int, resampling: str) -> Self:
        """Keep what patches need of the tilts of a tomogram, binned by a factor."""
        errors = np.asarray(made.record.misalignment, dtype=np.float64).reshape(-1, 4)
        errors = errors.copy() if len(errors) else np.zeros((len(made.tilt_angles), 4))
        lost = np.zeros((len(made.tilt_angles), 2))
        for bad in map(BadTilt.from_dict, made.record.settings.get("bad_tilts", ())):
            lost[bad.tilt] = bad.shift
        errors[:, :2] += lost
        errors[:, :2] /= made.voxel_size
        return cls(
            tilts=bin_images(made.tiltseries, bin, method=resampling),
            tilt_angles=made.tilt_angles,
            # A ray meets whole rows of y: so they are read from one place.
            labels=made.labels.permute(0, 2, 1).contiguous().permute(0, 2, 1),
            picked=picked,
            errors=errors,
            lost=lost / made.voxel_size,
            scale=bin / made.bin,
            axis=np.array([(axis_index(made.bin * n) - (made.bin - 1) / 2) / made.bin for n in made.labels.shape]),
            wrapped=made.record.settings.get("extend") == "wrap",
            specimen=made.name,
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what patches are cut from."""
        return self.tilts, self.labels

    def seen(self, tilt: int) -> SeenParticles:
        """Find the particles whose centre lies in a tilt."""
        particles = self.picked.particles
        cosine, sine = self._direction(tilt)
        about_axis = particles.positions - self.axis
        shifts, rows = self._copies(cosine, sine), np.arange(len(particles))
        rows = np.tile(rows, len(shifts))
        z, y, x = np.tile(about_axis, (len(shifts), 1)).T
        x = x + np.repeat(shifts, len(particles))
        shift_y, shift_x, rotation, _ = self.errors[tilt]
        plane = turns(np.array([rotation]))[0]
        moved = plane @ np.stack([x * cosine + z * sine, y]) + np.array([[shift_x], [shift_y]])
        depth = z * cosine - x * sine
        height, width = self.tilts.shape[-2:]
        found = np.stack(
            [moved[1] / self.scale + axis_index(height), moved[0] / self.scale + axis_index(width), depth / self.scale],
            axis=-1,
        )
        nearest = np.rint([found[:, :2], found[:, :2] - self.lost[tilt] / self.scale])
        inside = ((nearest >= 0) & (nearest < np.array([height, width]))).all(axis=(0, 2))
        turn = np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
        in_plane = np.eye(3)
        in_plane[:2, :2] = plane
        return SeenParticles(rows=rows[inside], positions=found[inside], turn=in_plane @ turn)

    def labels_at(self, tilt: int, origin: IntArray, size: tuple[int, int]) -> Tensor:
        """Project labels into a patch of a tilt: in each pixel the class that the ray meets longest.

        Parameters
        ----------
        tilt
            Which tilt.
        origin
            `(2,)`, the first pixel of the patch, (y, x).
        size
            (y, x).

        Returns
        -------
        `(y, x)`, int64; 0 where a ray meets no label. Of classes that are met equally long, the lowest number.
        """
        found = self._labels_at(tilt, origin, size)
        if self.lost[tilt].any():
            starts = np.array(origin) - self.lost[tilt] / self.scale
            for dim, (start, n, whole) in enumerate(zip(starts, size, self.tilts.shape[-2:], strict=True)):
                outside = np.abs(start + np.arange(n) - (whole - 1) / 2) > whole / 2
                found[(slice(None),) * dim + (torch.from_numpy(outside).to(found.device),)] = 0
        return found

    def _labels_at(self, tilt: int, origin: IntArray, size: tuple[int, int]) -> Tensor:
        """Project labels, also of what lay outside of the image before it was shifted."""
        shift_y, shift_x, rotation, _ = self.errors[tilt]
        y, x = (
            (start + np.arange(n) - axis_index(whole)) * self.scale
            for start, n, whole in zip(origin, size, self.tilts.shape[-2:], strict=True)
        )
        y, x = y - shift_y, x - shift_x
        if rotation == 0:
            return self._along_rays(tilt, y, x)
        (xx, xy), (yx, yy) = turns(np.array([-rotation]))[0].tolist()
        before_x, before_y = xx * x + xy * y[:, None], yx * x + yy * y[:, None]
        # On a grid that is not rotated, around the rotated patch; from there the nearest pixel is taken.
        grids = [np.arange(np.floor(p.min() / self.scale), p.max() / self.scale + 1) for p in (before_y, before_x)]
        around = self._along_rays(tilt, *(grid * self.scale for grid in grids))
        places = [np.rint(p / self.scale - grid[0]) for p, grid in zip((before_y, before_x), grids, strict=True)]
        row, column = (torch.from_numpy(p.astype(np.int64)).to(around.device) for p in places)
        return around[row, column]

    def _along_rays(self, tilt: int, y: FloatArray, x: FloatArray) -> Tensor:
        """Find the class of the rays at (y, x), in voxels of the labels about the axis: `(y, x)`, int64."""
        depth, height, width = (int(n) for n in self.labels.shape)
        rows = np.rint(y + self.axis[1]).astype(np.int64)
        inside = (rows >= 0) & (rows < height)
        classes = torch.zeros(len(y), len(x), dtype=torch.int64, device=self.labels.device)
        column, index = self._voxels_on_rays(tilt, x)
        if not inside.any() or not len(index):
            return classes
        low, high = int(rows[inside].min()), int(rows[inside].max()) + 1
        # Rows of voxels that no ray meets, and background, which is most of a specimen, are left out.
        lines = self.labels.permute(0, 2, 1).view(depth * width, height)[:, low:high]
        met = lines[torch.from_numpy(index).to(lines.device)]  # (voxel, y)
        place, line = met.nonzero(as_tuple=True)
        ray = torch.from_numpy(column).to(lines.device)[place] * (high - low) + line
        count = int(met.max()) + 1
        length = torch.bincount(ray * count + met[place, line], minlength=len(x) * (high - low) * count)
        # The longest path, and of equal ones the lowest class.
        numbers = torch.arange(count, device=length.device)
        best = (length.view(len(x), high - low, count) * count + (count - 1 - numbers)).amax(dim=-1)
        seen = torch.where(best < count, 0, count - 1 - best % count)
        known = torch.from_numpy(np.flatnonzero(inside)).to(classes.device)
        classes[known] = seen.T[torch.from_numpy(rows[inside] - low).to(seen.device)]
        return classes

    def _voxels_on_rays(self, tilt: int, x: FloatArray) -> tuple[IntArray, IntArray]:
        """List the voxels of a section across the tilt axis that rays at x meet: which ray, and `z · width + x`."""
        depth, _, width = (int(n) for n in self.labels.shape)
        cosine, sine = self._direction(tilt)
        reach = math.ceil((depth / 2 + float(np.abs(x).max()) * abs(sine)) / max(cosine, 1e-3)) + 1
        if not self.wrapped:
            reach = min(reach, math.ceil(math.hypot(depth, width) / 2) + 1)
        step = np.arange(-reach, reach + 1)
        z = np.rint(x[:, None] * sine + step * cosine + self.axis[0]).astype(np.int64)  # (x, step)
        column = np.rint(x[:, None] * cosine - step * sine + self.axis[2]).astype(np.int64)
        column = column % width if self.wrapped else column
        ray, place = np.nonzero((z >= 0) & (z < depth) & (column >= 0) & (column < width))
        return ray, (z * width + column)[ray, place]

    def _direction(self, tilt: int) -> tuple[float, float]:
        """Return cosine and sine of the angle at which the specimen was projected."""
        angle = math.radians(float(self.tilt_angles[tilt]) + float(self.errors[tilt, 3]))
        return math.cos(angle), math.sin(angle)

    def _copies(self, cosine: float, sine: float) -> FloatArray:
        """Return how far the copies of the specimen that a tilt may see lie along x, in voxels of the labels."""
        depth, _, width = self.labels.shape
        if not self.wrapped:
            return np.zeros(1)
        seen = (self.tilts.shape[-1] * self.scale + depth * abs(sine)) / 2 + float(np.abs(self.errors[:, :2]).max())
        count = math.ceil(seen / (cosine * width)) + 1
        copies: FloatArray = np.arange(-count, count + 1.0) * width
        return copies


@dataclass(frozen=True, kw_only=True)
class TiltSampler:
    """How patches of tilts are drawn; see `TiltDataset` for what each setting means.

    The size of a patch is (1, y, x): a tilt is one section.
    """

    patch_size: Size
    bin: int
    resampling: str
    shift: int
    class_balanced: bool
    background_fraction: float
    flips: str
    normalize: bool
    target: str
    targets: PatchTargets
    companions = Companions()

    def __post_init__(self) -> None:
        check_count("bin", self.bin)
        check_choice("resampling", self.resampling, RESAMPLINGS)
        check_count("shift", self.shift, zero=True)
        check_fraction("background_fraction", self.background_fraction)
        check_choice("target", self.target, TARGETS)
        for name in self.targets.names:
            check_choice("targets", name, TILT_TARGETS)
        for name in ("class_balanced", "normalize"):
            check_flag(name, getattr(self, name))
        if not isinstance(self.flips, str) or set(self.flips) - set("yx"):
            raise ValueError(f"expected `flips` to hold axes of 'yx', got {self.flips!r}")

    def check(self, labelled: Labelled) -> None:
        """Refuse, or warn of, settings that ask for a particle table that a specimen does not have."""
        check_labels(labelled, self.targets, self.target, class_balanced=self.class_balanced)

    def live(self, made: SimulatedTomogram, radii: Any, channels: int) -> LiveTilts:
        """Keep what patches need of a tomogram's tilts.

        Raises
        ------
        ValueError
            If a patch does not fit a tilt.
        """
        picked = Picked.of(made.particles, made.not_particles, radii, channels)
        live = LiveTilts.of(made, picked, bin=self.bin, resampling=self.resampling)
        check_fits(self.patch_size, (1, *live.tilts.shape[-2:]))
        return live

    def sample(
        self,
        live: LiveTilts,
        *,
        seed: int,
        epoch: int,
        tomogram: int,
        patch: int,
        device: torch.device | str = "cpu",
    ) -> Patch:
        """Draw the patch of an address, and put it on a device."""
        generator = numpy_generator(seed, "patch", epoch=epoch, tomogram=tomogram, patch=patch)
        tilt = int(generator.integers(len(live.tilts)))
        seen = live.seen(tilt)
        center, particle_class = self._choose_center(live, seen, generator)
        coins = generator.random(2) < 0.5
        axes = tuple(dim for dim, axis in enumerate("yx") if axis in self.flips and coins[dim])
        origin, size = center - np.array(self.patch_size[1:]) // 2, (self.patch_size[1], self.patch_size[2])
        image = cut(live.tilts[tilt : tilt + 1], np.array([0, *center]), self.patch_size).to(torch.float32)
        positions, seen_rows, turn = _in_patch(seen, origin, size, axes)
        label = self._label(live, tilt, origin, size, axes, positions, seen_rows)
        image = torch.flip(image, [axis + 1 for axis in axes]) if axes else image
        image = normalize(image) if self.normalize else image
        targets = self._more_targets(live, positions, seen_rows, turn, size)
        tensors = {key: one for key, one in targets.items() if isinstance(one, Tensor)}
        tensors["image"] = image.clone(memory_format=torch.contiguous_format)
        tensors |= {} if label is None else {"label": label.contiguous()}
        tensors = moved(tensors, concrete_device(device))
        return Patch(
            image=tensors.pop("image"),
            label=tensors.pop("label", None),
            position=center,
            particle_class=particle_class,
            targets=targets | tensors | {"tilt": tilt, "tilt_angle": float(live.tilt_angles[tilt])},
        )

    def _label(
        self,
        live: LiveTilts,
        tilt: int,
        origin: IntArray,
        size: tuple[int, int],
        axes: tuple[int, ...],
        positions: FloatArray,
        rows: IntArray,
    ) -> Tensor | None:
        if "labels" not in self.targets:
            return None
        if self.target == "shape":
            return torch.flip(live.labels_at(tilt, origin, size), axes)
        # A sphere is seen as a disc.
        radii = {number: radius / live.scale for number, radius in live.picked.radii.items()}
        return sphere_labels(
            (1, *size), np.zeros(3, np.int64), live.picked.particles.classes[rows], _flat(positions), radii
        )[0]

    def _more_targets(
        self, live: LiveTilts, positions: FloatArray, rows: IntArray, turn: FloatArray, size: tuple[int, int]
    ) -> dict[str, Any]:
        made: dict[str, Any] = {}
        table = live.picked.particles
        if "heatmaps" in self.targets:
            share = self.targets.sigma_share / live.scale
            sigmas = {number: share * radius for number, radius in live.picked.radii.items()}
            channels = live.picked.channels
            maps = draw_heatmaps((1, *size), table.classes[rows], _flat(positions), sigmas, channels)
            made["heatmaps"] = maps[:, 0]
        if "particles" in self.targets:
            nearest = np.rint(positions[:, :2])
            inside = ((nearest >= 0) & (nearest < np.array(size))).all(axis=1)
            chosen = rows[inside]
            made |= padded_particles(
                positions[inside], table.classes[chosen], turn @ table.orientations[chosen], self.targets.max_particles
            )
        return made

    def _choose_center(
        self, live: LiveTilts, seen: SeenParticles, generator: np.random.Generator
    ) -> tuple[IntArray, int]:
        size, shape = self.patch_size, (1, *live.tilts.shape[-2:])
        background = generator.random() < self.background_fraction
        place, offset = generator.random(2), generator.integers(-self.shift, self.shift + 1, 2)
        if background or len(seen.rows) == 0:
            anywhere = np.array(size[1:]) // 2 + np.floor(place * (np.array(shape[1:]) - size[1:] + 1))
            return clamp_center([0, *anywhere], size, shape)[1:], 0
        classes, candidates = live.picked.particles.classes[seen.rows], np.arange(len(seen.rows))
        if self.class_balanced:
            candidates = candidates[classes == generator.choice(np.unique(classes))]
        chosen = generator.choice(candidates)
        wanted = seen.positions[chosen, :2] + offset
        return clamp_center([0, *wanted], size, shape)[1:], int(classes[chosen])


def _flat(positions: FloatArray) -> FloatArray:
    """Return positions (y, x, depth) as (0, y, x): of the one section that a tilt is."""
    return np.column_stack([np.zeros(len(positions)), positions[:, :2]])


def _in_patch(
    seen: SeenParticles, origin: IntArray, size: tuple[int, int], axes: tuple[int, ...]
) -> tuple[FloatArray, IntArray, FloatArray]:
    """Move positions (y, x, depth) into a patch that is mirrored along some axes; also their rows, and the turn."""
    positions = seen.positions - np.array([*origin, 0.0])
    mirror = np.eye(3)
    for axis in axes:
        positions[:, axis] = size[axis] - 1 - positions[:, axis]
        # Directions are (x, y, z).
        mirror[1 - axis, 1 - axis] = -1.0
    return positions, seen.rows, mirror @ seen.turn
