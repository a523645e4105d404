"""Assembling a specimen: finding positions for membranes, filaments and particles, and drawing them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._runtime.transfers import moved
from faket_aug.generation.filaments import FilamentSpecies, draw_filament, draw_poses
from faket_aug.generation.ice import Slab
from faket_aug.generation.membranes import Membrane, MembraneSpecies, draw_membrane
from faket_aug.generation.packing import Crowd, Search
from faket_aug.generation.placement import MEMBRANE, Canvas, DrawPlaces, Room
from faket_aug.generation.ranges import turned_by
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.stamp import Mask, Stamp, frames_along, uniform_rotations

#: Shapes tried for one membrane, rounds of curves for one filament, and rounds of positions for bound particles.
_TRIES = 60
_FILAMENT_ROUNDS = 8
_BOUND_ROUNDS = 40
#: Points of a membrane that are tested first for voxels that are taken.
_MEMBRANE_PROBES = 2000
#: After this many particles of a template in a row have found no room, no more of it are tried.
_GIVE_UP = 12
_ORIENTATION_ROUNDS = 100
#: Where so many of the particles have found room at random, that of the others is searched.
_NEARLY = 0.9
#: Particles that are rotated at once where there is little room.
_SQUEEZED_AT_ONCE = 8
#: Volts; the density of a filled voxel of a template whose threshold is 0.
_LEAST = 1e-3
#: Where a cluster has no room for one more particle, it grows by this factor, at most this often.
_GROWTH, _LARGER_BALLS = 1.3, 6


AnySpecies = ParticleSpecies | MembraneSpecies | FilamentSpecies | FiducialSpecies


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A number of things of one species: their prepared templates, class (0 without label) and random generator."""

    species: AnySpecies
    stamps: Sequence[Stamp]
    number: int
    count: int
    generator: np.random.Generator

    @property
    def order(self) -> tuple[int, float]:
        """Sorting key: membranes, filaments, membrane-bound particles, the rest; in each the largest first."""
        if isinstance(self.species, MembraneSpecies):
            return 0, -self.species.largest
        bound = isinstance(self.species, ParticleSpecies) and self.species.membrane_bound
        stage = 1 if isinstance(self.species, FilamentSpecies) else 2 if bound else 3
        return stage, -max(stamp.mask_radius for stamp in self.stamps)


class Assembly:
    """A specimen while it is assembled.

    Parameters
    ----------
    shape
        `(z, y, x)`.
    slab
        The ice.
    voxel_size
        Å.
    gap
        Voxels; see `Room`.
    device
        Device of the volumes.
    packing
        One of `PACKINGS`.
    close
        Classes whose particles are placed near each other from the start.
    """

    def __init__(
        self,
        shape: Sequence[int],
        slab: Slab,
        *,
        voxel_size: float,
        gap: float = 0.0,
        device: str = "cpu",
        packing: str = "dense",
        close: frozenset[str] = frozenset(),
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.slab, self.voxel_size, self.packing, self.close = slab, voxel_size, packing, close
        self.room = Room(self.shape, slab, gap=gap)
        self.canvas = Canvas(self.shape, device=device)
        self.membranes: list[Membrane] = []
        self._membrane_voxels: list[int] = []
        #: Numbers of each class that were asked for, and that were placed.
        self.wanted: Counter[str] = Counter()
        self.placed: Counter[str] = Counter()

    def add(self, task: Task) -> None:
        """Add the things of a task, as far as there is room."""
        species = task.species
        if isinstance(species, MembraneSpecies):
            placed = sum(any(self._try_membrane(task, species) for _ in range(_TRIES)) for _ in range(task.count))
        elif isinstance(species, FilamentSpecies):
            placed = sum(
                any(self._try_filaments(task, species) for _ in range(_FILAMENT_ROUNDS)) for _ in range(task.count)
            )
        elif isinstance(species, ParticleSpecies) and species.membrane_bound:
            placed = self._bind(task, species)
        else:
            placed = self._scatter(task, species)
        # Things of one task have no voxel in common; those of the next may lie within the membranes of this one.
        self.canvas.send_labels()
        self.wanted[species.class_name] += task.count
        self.placed[species.class_name] += placed

    # Membranes -------------------------------------------------------------------------------------------------------

    def _try_membrane(self, task: Task, species: MembraneSpecies) -> bool:
        """Draw a membrane, and place it if it touches no other."""
        membrane = draw_membrane(species, self.shape, self.slab, voxel_size=self.voxel_size, generator=task.generator)
        points = np.rint(membrane.draw(_MEMBRANE_PROBES, task.generator)[0]).astype(np.int64)
        points = points[((points >= 0) & (points < self.shape)).all(axis=1)]
        if self.room.taken.reshape(self.shape)[tuple(points.T)].any():
            return False
        voxels, distance = membrane.shell(self.shape, membrane.reach)
        iced = np.abs(self.slab.height(voxels.T)) <= self.slab.half
        voxels, distance = voxels[:, iced], distance[iced]
        mask = voxels[:, np.abs(distance) <= membrane.half_label]
        if mask.shape[1] == 0 or not self.room.is_free(mask):
            return False
        self.room.take(mask, MEMBRANE + len(self.membranes))
        self.canvas.add_membrane(voxels, membrane.density(distance))
        if task.number:
            self.canvas.add_label(mask, task.number, self.canvas.add_row(task.number, membrane.center))
        self.membranes.append(membrane)
        self._membrane_voxels.append(mask.shape[1])
        return True

    # Filaments -------------------------------------------------------------------------------------------------------

    def _try_filaments(self, task: Task, species: FilamentSpecies) -> bool:
        """Draw several curves, and place a filament along the first that has room."""
        number, stamp = task.number, task.stamps[0]
        margin = stamp.mask_radius + 1
        for places, orientations in draw_poses(
            species, self.shape, self.slab, margin=margin, voxel_size=self.voxel_size, generator=task.generator
        ):
            if self._meets_something(places, margin):
                continue
            drawn = draw_filament(stamp, places, orientations, self.shape)
            if drawn is None or not self.room.is_free(drawn.voxels[:, drawn.mask]):
                continue
            self.room.take(drawn.voxels[:, drawn.mask])
            self.canvas.add_voxels(drawn.voxels, drawn.density)
            if number:
                rows = [
                    self.canvas.add_row(number, *pose) for pose in zip(drawn.places, drawn.orientations, strict=True)
                ]
                self.canvas.add_label(drawn.voxels[:, drawn.mask], number, np.array(rows)[drawn.owners[drawn.mask]])
            return True
        return False

    def _meets_something(self, places: FloatArray, radius: float) -> bool:
        """Test positions, and six points around each, for voxels that are taken: quick, but it may miss some."""
        around = radius / 2 * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
        points = np.rint(places[:, None] + around).astype(np.int64).reshape(-1, 3)
        points = points[((points >= 0) & (points < self.shape)).all(axis=1)]
        return bool(self.room.taken.reshape(self.shape)[tuple(points.T)].any())

    # Particles -------------------------------------------------------------------------------------------------------

    def _scatter(self, task: Task, species: ParticleSpecies | FiducialSpecies) -> int:
        """Place particles anywhere, or in clusters."""
        generator = task.generator
        which = generator.integers(len(task.stamps), size=task.count)
        fractions = generator.random((task.count, 3)) - 0.5
        placed = 0
        draw_for = self._draw_places(task, species)
        for number, stamp in enumerate(task.stamps):
            # Where one conformation finds no room, a smaller one may.
            failed, before = 0, placed
            if species.class_name in self.close:
                placed += self._squeeze(task, stamp, int((which == number).sum()))
                continue
            of = np.flatnonzero(which == number)
            orientations = self._orientations(task, stamp, len(of))
            voxels = Mask.of(stamp.offsets, self.shape)
            for i, cube, chosen in stamp.turned(orientations, fractions[of]):
                mask = voxels.only(chosen)
                center = self.room.find(mask, draw_for(int(of[i]))) if chosen.size else None
                failed = failed + 1 if center is None else 0
                if failed == _GIVE_UP:
                    break
                if center is not None:
                    self._add(task, center, fractions[of[i]], orientations[i], center[:, None] + mask.offsets, cube)
                    placed += 1
            # Where much is lacking, all of it will be placed anew, closer.
            enough = self.close or placed - before >= _NEARLY * len(of)
            if self.packing == "dense" and enough and placed - before < len(of):
                placed += self._squeeze(task, stamp, len(of) - (placed - before))
        return placed

    def _squeeze(self, task: Task, stamp: Stamp, count: int) -> int:
        """Place particles that have found no room at random where correlation tells that there is some."""
        crowd, voxels = Crowd(self.room), Mask.of(stamp.offsets, self.shape)
        search = Search(crowd, stamp.mask_radius, task.generator, near=bool(self.close))
        placed = 0
        while placed < count and not search.is_over:
            orientations = self._orientations(task, stamp, _SQUEEZED_AT_ONCE)
            fractions = task.generator.random((_SQUEEZED_AT_ONCE, 3)) - 0.5
            for i, cube, chosen in stamp.turned(orientations, fractions):
                mask = voxels.only(chosen)
                center = search.find(mask) if chosen.size else None
                if center is not None:
                    taken = center[:, None] + mask.offsets
                    self._add(task, center, fractions[i], orientations[i], taken, cube)
                    crowd.update(taken, math.ceil(self.room.gap))
                    placed += 1
                if placed == count or search.is_over:
                    break
        return placed

    def _draw_places(self, task: Task, species: ParticleSpecies | FiducialSpecies) -> Callable[[int], DrawPlaces]:
        """Return a function that draws positions for particle i: anywhere, or around the centre of its cluster."""
        if not isinstance(species, ParticleSpecies) or species.cluster_size == 1:
            return lambda _: _anywhere(task.generator)
        shares = task.generator.random((-(-task.count // species.cluster_size), 3))
        yx = shares[:, 1:] * (np.array(self.shape[1:]) - 1)
        bottom, top = self.slab.column(self.shape, yx)
        middles = np.column_stack([bottom + shares[:, 0] * (top - bottom), yx])
        radius = species.cluster_radius / self.voxel_size
        return lambda i: _near(middles[i // species.cluster_size], radius, task.generator)

    def _orientations(self, task: Task, stamp: Stamp, count: int) -> FloatArray:
        """Draw orientations, uniform among those in which the particle fits into the ice."""
        if isinstance(task.species, FiducialSpecies):
            return np.tile(np.eye(3), (count, 1, 1))
        room = min(2 * self.slab.half, *(n - 1 for n in self.shape))
        if 2 * stamp.mask_radius + 2 <= room:
            return uniform_rotations(count, task.generator)
        kept = np.zeros((0, 3, 3))
        for _ in range(_ORIENTATION_ROUNDS):
            drawn = uniform_rotations(count, task.generator)
            turned = np.einsum("nij,mj->nmi", drawn, stamp.hull)
            across = np.ptp(turned_by(turned, self.slab.normal[::-1, None])[..., 0], axis=1) <= 2 * self.slab.half
            sides = (np.ptp(turned, axis=1) <= np.array(self.shape[::-1]) - 1).all(axis=1)
            kept = np.concatenate([kept, drawn[across & sides]])
            if len(kept) >= count:
                return kept[:count]
        return np.concatenate([kept, drawn])[:count]

    def _bind(self, task: Task, species: ParticleSpecies) -> int:
        """Place particles on membranes, evenly over their area."""
        voxels = [Mask.of(stamp.offsets, self.shape) for stamp in task.stamps]
        placed = 0
        for _ in range(_BOUND_ROUNDS if self.membranes else 0):
            # Some find no room, so a few more are drawn than are missing.
            for number, part in self._stands(task, species, 2 * (task.count - placed) + 4).items():
                stamp, (codes, places, orientations) = task.stamps[number], part
                centers = np.rint(places).astype(np.int64)
                for i, cube, chosen in stamp.turned(orientations, places - centers):
                    mask = centers[i][:, None] + voxels[number].offsets.take(chosen, axis=1)
                    if placed == task.count or not chosen.size or not self.room.is_free(mask, also=codes[i]):
                        continue
                    # A soft edge, which ends where the particle's density is half of its threshold.
                    filled = (2 * cube / max(stamp.threshold, _LEAST) - 1).clamp(0, 1)
                    self.canvas.take_membrane(centers[i], filled)
                    self._add(task, centers[i], places[i] - centers[i], orientations[i], mask, cube)
                    placed += 1
            if placed == task.count:
                break
        return placed

    def _stands(
        self, task: Task, species: ParticleSpecies, count: int
    ) -> dict[int, tuple[list[int], FloatArray, FloatArray]]:
        """Draw positions on membranes: for each template the codes of the membranes, positions and orientations."""
        generator = task.generator
        weights = np.array(self._membrane_voxels) / sum(self._membrane_voxels)
        found: list[tuple[int, FloatArray, FloatArray]] = []
        for number, drawn in enumerate(generator.multinomial(count, weights)):
            membrane, points, normals = self.membranes[number], np.zeros((0, 3)), np.zeros((0, 3))
            for _ in range(_BOUND_ROUNDS):
                if len(points) >= drawn:
                    break
                more, outward = membrane.draw(4 * int(drawn) + 16, generator)
                inside = ((more >= 0) & (more <= np.array(self.shape) - 1)).all(axis=1)
                inside &= np.abs(self.slab.height(more)) <= self.slab.half
                points, normals = np.concatenate([points, more[inside]]), np.concatenate([normals, outward[inside]])
            found += [(number, *pair) for pair in zip(points[:drawn], normals[:drawn], strict=True)]
        order = generator.permutation(len(found))
        which = generator.integers(len(task.stamps), size=len(found))
        stands = {}
        for number, stamp in enumerate(task.stamps):
            chosen = [found[i] for i in order[which == number]]
            if chosen:
                stands[number] = self._standing(species, stamp, chosen, generator)
        return stands

    def _standing(
        self,
        species: ParticleSpecies,
        stamp: Stamp,
        chosen: Sequence[tuple[int, FloatArray, FloatArray]],
        generator: np.random.Generator,
    ) -> tuple[list[int], FloatArray, FloatArray]:
        up = 1.0 if species.membrane_side == "outside" else -1.0
        normals = up * np.array([normal for _, _, normal in chosen])
        if species.membrane_offset is None:
            half = np.array([self.membranes[number].half_label for number, _, _ in chosen])
            offsets = half + 0.5 - stamp.hull[:, 2].min()
        else:
            offsets = np.full(len(chosen), species.membrane_offset / self.voxel_size)
        places = np.array([point for _, point, _ in chosen]) + offsets[:, None] * normals[:, ::-1]
        return [MEMBRANE + number for number, _, _ in chosen], places, frames_along(normals, generator)

    def _add(
        self,
        task: Task,
        center: IntArray,
        fraction: FloatArray,
        orientation: FloatArray,
        mask: IntArray,
        cube: Tensor,
    ) -> None:
        self.room.take(mask)
        self.canvas.add_cube(center, cube)
        if task.number:
            row = self.canvas.add_row(
                task.number, center + fraction, None if isinstance(task.species, FiducialSpecies) else orientation
            )
            self.canvas.add_label(mask, task.number, row)

    # Ice -------------------------------------------------------------------------------------------------------------

    def add_vacuum(self, density: float) -> None:
        """Add a density outside of the ice, with edges of one voxel."""
        volume = self.canvas.density
        heights = {
            axis: torch.from_numpy(part) for axis, part in zip("zyx", self.slab.heights(self.shape), strict=True)
        }
        z, y, x = (part.to(volume.dtype) for part in moved(heights, volume.device).values())
        across = (y + x)[0]
        for plane, height in zip(volume, z.flatten(), strict=True):
            plane += density * ((across + height).abs() - self.slab.half).clamp(0, 1)


def _anywhere(generator: np.random.Generator) -> DrawPlaces:
    def draw(count: int, low: IntArray, high: IntArray, _: int) -> IntArray:
        return generator.integers(low, high + 1, size=(count, 3))

    return draw


def _near(middle: FloatArray, radius: float, generator: np.random.Generator) -> DrawPlaces:
    """Draw in a ball, in a larger one where there is no room, and finally anywhere."""

    def draw(count: int, low: IntArray, high: IntArray, attempt: int) -> IntArray:
        if attempt > _LARGER_BALLS:
            return generator.integers(low, high + 1, size=(count, 3))
        steps = generator.normal(size=(count, 3))
        steps *= (generator.random(count) ** (1 / 3) / np.linalg.norm(steps, axis=1))[:, None]
        places = np.rint(middle + radius * _GROWTH**attempt * steps).astype(np.int64)
        return places[((places >= low) & (places <= high)).all(axis=1)]

    return draw
