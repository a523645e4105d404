"""Endless specimens: grandmodels of particles, membranes, filaments and gold beads, each a function of its address."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch

from faket_aug._checks import check_choice, check_count, check_positive
from faket_aug._random import seed_sequence
from faket_aug._runtime.numerics import own_precision
from faket_aug._runtime.threads import Made, concrete_device, intra_op_threads
from faket_aug.formats.particles import match_names
from faket_aug.generation.assembly import AnySpecies, Assembly, Task
from faket_aug.generation.filaments import FilamentSpecies
from faket_aug.generation.ice import IceSlab, Slab
from faket_aug.generation.membranes import MembraneSpecies
from faket_aug.generation.packing import PACKINGS
from faket_aug.generation.ranges import as_count
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.stamp import INTERPOLATIONS, Stamp, hull_points, uniform_directions
from faket_aug.generation.templates import ParticleTemplate
from faket_aug.specimens.grandmodel import GrandModel

#: Random packings of equal spheres fill no more: Scott and Kilgour, J. Phys. D 2, 863 (1969).
MAX_OCCUPANCY = 0.64
#: Equal spheres at random places, none of which is moved, fill no more: Feder, J. Theor. Biol. 87, 237 (1980).
RANDOM_OCCUPANCY = 0.38
#: A warning is given if a smaller fraction of what was asked for is placed.
_ENOUGH = 0.98
#: Classes that fill this share of all particles' volume are placed close to each other where one found no room.
_MUCH = 0.15
_MAX_CLASSES = 255
#: Voxel sizes whose relative difference is smaller are the same.
_SAME_VOXEL_SIZE = 1e-3
#: Radians: the largest angle of a direction to the nearest of 1000. A width changes by the diameter times it at most.
_DIRECTION_STEP = 0.08
_KINDS = ("particles", "membranes", "filaments", "fiducials")


@dataclass(frozen=True, kw_only=True, eq=False)
class GrandModelGenerator:
    """An endless source of labelled specimens; `FakETDataset` takes it in place of a list of specimens.

    Each specimen is a function of its address `(seed, epoch, tomogram)` and the settings, bit for bit on one CPU.
    Particles have uniformly random orientations. They lie completely within the specimen and its ice, and do not
    overlap: no voxel belongs to two masks. Density below the templates' thresholds adds up where particles are close.

    Classes are numbered from 1 in the given order (particles, membranes, filaments, fiducials), or as in `class_table`.
    Species with the same name share a number; distractors (`label=False`) have none. The particle table has a row for
    each labelled particle, bead and subunit of a filament, and one for each membrane (at its centre, without
    orientation). Classes of membranes only are the specimens' `not_particles`.

    Parameters
    ----------
    particles, membranes, filaments, fiducials
        The contents of a specimen: one species of each kind, or several.
    shape
        `(z, y, x)`, voxels.
    voxel_size
        Å; the templates must have the same.
    slab
        The slab of ice; by default the ice fills the specimen.
    occupancy
        Fraction of the ice that the particles' masks fill, up to about 0.4. Counts and concentrations of `particles`
        then only give their ratios (1 each, where neither is given). Those of membrane-bound particles stay absolute.
    gap
        Å. The distance between voxels of two masks, from centre to centre, is larger than this. By default masks may
        touch.
    packing
        What is done where random places fall short. `"dense"`: classes that fill much of the ice are placed close to
        each other, where correlation finds room (above an `occupancy` of 0.38 at once). `"random"`: particles without
        room are left out, as in earlier versions.
    interpolation
        How rotated templates are sampled. `"sharp"` keeps their power within 5 % up to 0.45 cycles per voxel.
        `"linear"` makes the specimens of earlier versions, whose particles lose up to 40 % of it there.
    class_table
        Names of the class numbers, as in other specimens (0 is background). All labelled species must be in it.
    device
        Device on which the volumes are made.
    threads
        Intra-op threads; their number may change the last bits.

    Raises
    ------
    ValueError
        For settings that are not possible: voxel sizes that differ, particles that are wider than the ice or fill more
        than it holds, more than 255 classes or one that `class_table` lacks, membrane-bound particles without
        membranes.

    Warns
    -----
    UserWarning
        While generating: if there was room for fewer than 98 % of what was asked for; the message says for how many.

    Examples
    --------
    >>> generator = GrandModelGenerator(
    ...     particles=[ParticleSpecies(templates=ribosome, concentration_per_um3=2000)],
    ...     membranes=[MembraneSpecies(kind="sphere", count=(1, 3))],
    ...     filaments=[FilamentSpecies(subunit="actin", count=4)],
    ...     shape=(200, 512, 512),
    ...     voxel_size=10.0,
    ... )
    >>> specimen = generator.generate(seed=0, tomogram=7)
    """

    particles: ParticleSpecies | Sequence[ParticleSpecies] = ()
    membranes: MembraneSpecies | Sequence[MembraneSpecies] = ()
    filaments: FilamentSpecies | Sequence[FilamentSpecies] = ()
    fiducials: FiducialSpecies | Sequence[FiducialSpecies] = ()
    shape: Sequence[int] = (200, 512, 512)
    voxel_size: float = 10.0
    slab: IceSlab | None = None
    occupancy: float | None = None
    gap: float = 0.0
    packing: str = "dense"
    interpolation: str = "sharp"
    class_table: Mapping[int, str] | None = None
    device: str = "cpu"
    threads: int = 1
    #: Names of the class numbers, 0 is the background.
    class_names: Mapping[int, str] = field(init=False)
    _species: tuple[AnySpecies, ...] = field(init=False, repr=False)
    #: By the device, a GPU with its index.
    _stamps_on: dict[str, tuple[list[list[Stamp]], Made]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in _KINDS:
            given = getattr(self, name)
            object.__setattr__(self, name, tuple(given) if isinstance(given, Sequence) else (given,))
        object.__setattr__(self, "_species", tuple(one for name in _KINDS for one in getattr(self, name)))
        sizes = tuple(int(size) for size in self.shape)
        if len(sizes) != 3 or min(sizes) < 1:
            raise ValueError(f"expected `shape` to be three positive numbers (z, y, x), got {tuple(self.shape)}")
        object.__setattr__(self, "shape", sizes)
        check_positive("voxel_size", self.voxel_size)
        check_positive("gap", self.gap, zero=True)
        check_count("threads", self.threads)
        check_choice("packing", self.packing, PACKINGS)
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        if self.occupancy is not None and not 0 < self.occupancy <= MAX_OCCUPANCY:
            raise ValueError(f"expected `occupancy` of more than 0 and at most {MAX_OCCUPANCY}, got {self.occupancy!r}")
        if not self._species:
            raise ValueError(f"expected something to place, one of {', '.join(_KINDS)}, got none")
        object.__setattr__(self, "class_names", self._named_classes())
        for species in self._species:
            self._check_species(species)
        self._check_room()

    def __getstate__(self) -> dict[str, Any]:
        # Templates on a device belong to the process that prepared them.
        return {**self.__dict__, "_stamps_on": {}}

    # Checks ----------------------------------------------------------------------------------------------------------

    def _named_classes(self) -> dict[int, str]:
        names = dict.fromkeys(species.class_name for species in self._species if species.label)
        if len(names) > _MAX_CLASSES:
            raise ValueError(
                f"expected at most {_MAX_CLASSES} classes, got {len(names)}; give species one `name`, or `label=False`"
            )
        if self.class_table is None:
            return {0: "background"} | dict(enumerate(names, start=1))
        wrong = [
            number for number in self.class_table if not isinstance(number, int) or not 0 <= number <= _MAX_CLASSES
        ]
        found = match_names(names, self.class_table)
        if wrong or 0 in found.values():
            raise ValueError(
                f"expected a `class_table` with whole numbers from 0 (background) to {_MAX_CLASSES}, got "
                f"{dict(self.class_table)!r}"
            )
        unknown = sorted(set(names) - set(found))
        if unknown:
            raise ValueError(
                f"expected species of the class table ({', '.join(self.class_table.values())}), got "
                f"{', '.join(unknown)}; name them so, add them to `class_table`, or set `label=False`"
            )
        return dict(self.class_table)

    @property
    def _numbers(self) -> dict[str, int]:
        """Class numbers of the labelled species, by their names."""
        return match_names({one.class_name for one in self._species if one.label}, self.class_names)

    @property
    def _not_particles(self) -> frozenset[int]:
        """Numbers of the classes that hold membranes alone."""
        numbers = self._numbers
        others = {one.class_name for one in self._species if one.label and not isinstance(one, MembraneSpecies)}
        return frozenset(numbers.values()) - {numbers[name] for name in others}

    def _check_species(self, species: AnySpecies) -> None:
        slab = self._slab(None)
        room = min(2 * slab.half, *self._size)
        for template in species.templates_at(self.voxel_size):
            if not math.isclose(template.voxel_size, self.voxel_size, rel_tol=_SAME_VOXEL_SIZE):
                raise ValueError(
                    f"{species.class_name}: expected a template of the specimen's voxel size, {self.voxel_size:g} Å, "
                    f"got {template.voxel_size:g} Å; make it again with `voxel_size={self.voxel_size:g}`"
                )
            narrowest, at_least = _narrowest(template)
            if at_least > room:
                raise ValueError(
                    f"{species.class_name}: expected a particle that fits into {room * self.voxel_size:.0f} Å, the "
                    f"smallest extent of the ice, got one of {narrowest * self.voxel_size:.0f} Å where it is narrowest;"
                    " set `shape` or the `slab`'s thickness larger"
                )
        if not isinstance(species, ParticleSpecies):
            return
        if (self.occupancy is None or species.membrane_bound) and not species.is_counted:
            raise ValueError(
                f"{species.class_name}: expected `count`, `concentration_per_um3` or `concentration_molar`, got none; "
                "set one of them, or the generator's `occupancy`"
            )
        membranes = [one for one in self._species if isinstance(one, MembraneSpecies)]
        if species.membrane_bound and not any(as_count("count", one.count)[1] for one in membranes):
            raise ValueError(f"{species.class_name}: expected `membranes` for membrane-bound particles, got none")

    def _check_room(self) -> None:
        """Refuse more particles than the thinnest ice that may be drawn can hold."""
        voxels = self._slab(None).voxels(self._size)
        shares: dict[str, float] = {}
        for species, count in self._particle_counts(voxels).values():
            name = species.class_name
            shares[name] = shares.get(name, 0.0) + count * species.mask_voxels / voxels
        if sum(shares.values()) > MAX_OCCUPANCY:
            most = max(shares, key=lambda name: shares[name])
            raise ValueError(
                f"expected particles that fill at most {MAX_OCCUPANCY:.0%} of the ice (random close packing), got "
                f"{sum(shares.values()):.0%}, most of it {most} ({shares[most]:.0%}); set its count or concentration "
                "lower, or `shape` or the `slab`'s thickness larger"
            )

    # Chance ----------------------------------------------------------------------------------------------------------

    @property
    def _size(self) -> tuple[int, int, int]:
        z, y, x = self.shape
        return z, y, x

    def _slab(self, generator: np.random.Generator | None) -> Slab:
        """Draw the ice; without a generator, take the thinnest."""
        if self.slab is None:
            return Slab.everywhere(self._size)
        return self.slab.draw(self._size, self.voxel_size, generator)

    def _particle_counts(
        self, ice_voxels: int, streams: Sequence[np.random.Generator] | None = None
    ) -> dict[int, tuple[ParticleSpecies, float]]:
        """Find the numbers of particles by index of their species; of ranges one is drawn, or the highest."""
        volume_um3 = ice_voxels * (self.voxel_size * 1e-4) ** 3
        expected = {
            i: (species, species.expected(volume_um3, None if streams is None else streams[i]))
            for i, species in enumerate(self._species)
            if isinstance(species, ParticleSpecies)
        }
        if self.occupancy is None:
            return expected
        # The area of the membranes is fixed, so the number of particles on them does not change.
        free = {i: pair for i, pair in expected.items() if not pair[0].membrane_bound}
        filled = sum(count * self._mask_voxels(i, placing=streams is not None) for i, (_, count) in free.items())
        factor = self.occupancy * ice_voxels / filled if filled else 0.0
        return expected | {i: (species, factor * count) for i, (species, count) in free.items()}

    def _mask_voxels(self, index: int, *, placing: bool) -> float:
        """Return the voxels of a particle of a species; where none is placed, near enough without its stamps."""
        species = self._species[index]
        assert isinstance(species, ParticleSpecies)
        if self.interpolation == "linear" or not placing:
            return species.mask_voxels
        return float(np.mean([stamp.volume for stamp in self._stamps()[index]]))

    # Making ----------------------------------------------------------------------------------------------------------

    def scaled(self, factor: float) -> Self:
        """Return a generator of so many times as many particles; membranes, filaments and beads stay as they are.

        Parameters
        ----------
        factor
            On `occupancy`, or else on the counts and concentrations of `particles`.
        """
        check_positive("factor", factor)
        if self.occupancy is not None:
            return replace(self, occupancy=self.occupancy * factor)
        given = (self.particles,) if isinstance(self.particles, ParticleSpecies) else self.particles
        return replace(self, particles=tuple(species.scaled(factor) for species in given))

    def generate(self, *, seed: int, epoch: int = 0, tomogram: int = 0) -> GrandModel:
        """Make the specimen of an address.

        Parameters
        ----------
        seed, epoch, tomogram
            The address of all random numbers.

        Returns
        -------
        A specimen with labels, instances and particle table, on `device`.

        Raises
        ------
        ValueError
            If `device` does not exist.
        """
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f'expected a CUDA device for `device` {self.device!r}, found none; set `device` to "cpu"')
        with torch.no_grad(), own_precision(), intra_op_threads(self.threads):
            return self._generate(seed, epoch, tomogram)

    def _generate(self, seed: int, epoch: int, tomogram: int) -> GrandModel:
        hopeless = self.packing == "dense" and (self.occupancy or 0.0) > RANDOM_OCCUPANCY
        assembly = self._assembled(seed, epoch, tomogram, self._large() if hopeless else frozenset())
        if self.packing == "dense" and not hopeless and (close := self._close_classes(assembly)):
            # What lacks room gets it where the large particles leave no gaps between them.
            assembly = self._assembled(seed, epoch, tomogram, close)
        if self.slab is not None and self.slab.vacuum_density:
            assembly.add_vacuum(self.slab.vacuum_density)
        name = f"generated specimen {tomogram} of epoch {epoch}, seed {seed}"
        _warn_of_shortfall(name, assembly)
        return GrandModel(
            density=assembly.canvas.density,
            labels=assembly.canvas.labels,
            instances=assembly.canvas.instances,
            particles=assembly.canvas.table(),
            voxel_size=float(self.voxel_size),
            class_names=self.class_names,
            not_particles=self._not_particles,
            name=name,
        )

    def _assembled(self, seed: int, epoch: int, tomogram: int, close: frozenset[str]) -> Assembly:
        """Assemble the specimen of an address; the particles of some classes are placed close to each other."""
        sequences = seed_sequence(seed, "generation", epoch=epoch, tomogram=tomogram).spawn(1 + len(self._species))
        own, *streams = (np.random.default_rng(sequence) for sequence in sequences)
        slab = self._slab(own)
        assembly = Assembly(
            self._size,
            slab,
            voxel_size=self.voxel_size,
            gap=self.gap / self.voxel_size,
            device=self.device,
            packing=self.packing,
            close=close,
        )
        counts = self._particle_counts(slab.voxels(self._size), streams)
        numbers = self._numbers
        tasks = [
            Task(
                species=species,
                stamps=stamps,
                number=numbers[species.class_name] if species.label else 0,
                count=_whole(counts[i][1] if i in counts else _drawn(species, stream), stream),
                generator=stream,
            )
            for i, (species, stamps, stream) in enumerate(zip(self._species, self._stamps(), streams, strict=True))
        ]
        # Large things, and those bound to certain positions, come first, as long as there is room.
        for task in sorted(tasks, key=lambda task: task.order):
            assembly.add(task)
            if self.packing == "dense" and not close and self._close_classes(assembly):
                # The rest will be assembled anew.
                break
        return assembly

    def _close_classes(self, assembly: Assembly) -> frozenset[str]:
        """Name the classes that have to be placed close; none, as long as all found room.

        They are the class that found none, those that were placed before it, the larger ones, and all that take much
        of the room.
        """
        free = [one for one in self._species if isinstance(one, ParticleSpecies) and not one.membrane_bound]
        names = {one.class_name for one in free}
        placed = [name for name in assembly.wanted if name in names]
        short = [i for i, name in enumerate(placed) if assembly.placed[name] < _ENOUGH * assembly.wanted[name]]
        if not short:
            return frozenset()
        return frozenset(placed[: short[0] + 1]) | self._large()

    def _large(self) -> frozenset[str]:
        """Name the classes that take much of the room."""
        counts = self._particle_counts(self._slab(None).voxels(self._size)).values()
        free = [(species, count * species.mask_voxels) for species, count in counts if not species.membrane_bound]
        volumes: dict[str, float] = {}
        for species, volume in free:
            volumes[species.class_name] = volumes.get(species.class_name, 0.0) + volume
        return frozenset(name for name, volume in volumes.items() if volume >= _MUCH * sum(volumes.values()))

    def _stamps(self) -> list[list[Stamp]]:
        """Prepare the templates of all species, once for each process and device."""
        # A plain "cuda" is the GPU that is current now.
        device = concrete_device(self.device)
        if str(device) not in self._stamps_on:
            made = [
                [
                    Stamp.of(template, device=device, interpolation=self._interpolation(species))
                    for template in species.templates_at(self.voxel_size)
                ]
                for species in self._species
            ]
            self._stamps_on[str(device)] = made, Made(device)
        stamps, moment = self._stamps_on[str(device)]
        # They may have been made on another stream.
        moment.before(device)
        return stamps

    def _interpolation(self, species: AnySpecies) -> str:
        # The edge of a bead is steeper than a Fourier series of its voxels can be: waves would surround it.
        return "linear" if isinstance(species, FiducialSpecies) else self.interpolation


def _drawn(species: AnySpecies, generator: np.random.Generator) -> float:
    """Draw the number of a species that has a `count`."""
    assert species.count is not None, "only particles may be asked for otherwise"
    low, high = as_count("count", species.count)
    return float(generator.integers(low, high + 1))


def _whole(expected: float, generator: np.random.Generator) -> int:
    """Round up or down, up with the probability of the fraction, so that the mean is the expected number."""
    whole, fraction = int(expected), expected % 1
    return whole + int(fraction > 0 and generator.random() < fraction)


def _narrowest(template: ParticleTemplate) -> tuple[float, float]:
    """Measure the smallest width of a mask, voxels, and a lower bound of its width in any direction."""
    hull = hull_points(template)
    widths = np.ptp(hull @ uniform_directions().T, axis=0)
    narrowest = float(widths.min())
    return narrowest, narrowest - _DIRECTION_STEP * float(widths.max())


def _warn_of_shortfall(name: str, assembly: Assembly) -> None:
    short = [
        f"{wanted} of {kind}, placed {assembly.placed[kind]}"
        for kind, wanted in assembly.wanted.items()
        if assembly.placed[kind] < _ENOUGH * wanted
    ]
    if short:
        warnings.warn(
            f"{name}: expected {'; '.join(short)}; ask for less, or set `shape` or the `slab`'s thickness larger",
            stacklevel=4,
        )
