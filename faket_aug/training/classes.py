"""Which classes a picker learns, how large their particles are, and specimens that are labelled with these alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from faket_aug.formats.particles import match_names
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.species import ParticleSpecies
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.lazy import Description, LazySpecimens
from faket_aug.specimens.particles import Labelled, ParticleTable

AnyLabelled = TypeVar("AnyLabelled", bound=Labelled)
#: Specimens from files that are read until each class was seen.
_READ = 4


@dataclass(frozen=True, kw_only=True)
class TaughtClasses:
    """The classes that a picker learns.

    Parameters
    ----------
    names
        By class number, from 1 on.
    radii
        Å, of each class: of the sphere that has the volume of a particle's mask.
    others
        Names of particles in the specimens that belong to the background.
    """

    names: Mapping[int, str]
    radii: Mapping[int, float]
    others: tuple[str, ...] = ()

    @property
    def numbers(self) -> dict[str, int]:
        """Class numbers by name."""
        return {name: number for number, name in self.names.items()}


def teach(
    specimens: GrandModelGenerator | Sequence[GrandModel], wanted: Sequence[str] = ()
) -> tuple[GrandModelGenerator | Sequence[GrandModel], TaughtClasses]:
    """Choose what a picker learns of specimens: all else that they hold becomes background.

    Parameters
    ----------
    specimens
        A generator, or specimens of files.
    wanted
        Names of the classes; by default all labelled particles.

    Returns
    -------
    Specimens whose class numbers are 1, 2, ... in the specimens' order, and the classes.

    Raises
    ------
    ValueError
        If there are no such classes, or specimens from files do not tell how large a particle is.
    """
    if isinstance(specimens, GrandModelGenerator):
        return _of_generator(specimens, wanted)
    return _of_files(specimens, wanted)


def _of_generator(generator: GrandModelGenerator, wanted: Sequence[str]) -> tuple[GrandModelGenerator, TaughtClasses]:
    particles: list[ParticleSpecies] = list(_as_tuple(generator.particles))
    chosen = _chosen([one.class_name for one in particles], [one.class_name for one in particles if one.label], wanted)
    changes: dict[str, Any] = {
        kind: tuple(replace(one, label=False) for one in _as_tuple(getattr(generator, kind)))
        for kind in ("membranes", "filaments", "fiducials")
    }
    changes["particles"] = tuple(replace(one, label=one.class_name in chosen) for one in particles)
    taught = replace(generator, class_table=None, **changes)
    names = {number: name for number, name in taught.class_names.items() if number > 0}
    volumes: dict[str, list[float]] = {}
    for one in particles:
        volumes.setdefault(one.class_name, []).append(one.mask_voxels * generator.voxel_size**3)
    radii = {number: _radius(float(np.mean(volumes[name]))) for number, name in names.items()}
    others = tuple(dict.fromkeys(one.class_name for one in particles if one.class_name not in chosen))
    return taught, TaughtClasses(names=names, radii=radii, others=others)


def _as_tuple(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, Sequence) else (given,)


def _of_files(specimens: Sequence[GrandModel], wanted: Sequence[str]) -> tuple[Sequence[GrandModel], TaughtClasses]:
    first = specimens[0]
    known = [name for number, name in first.all_class_names.items() if number not in first.not_particles]
    chosen = _chosen(known, known, wanted)
    sizes: dict[str, float] = {}
    read = min(len(specimens), _READ)
    for index in range(read):
        trial = dict(enumerate(chosen, start=1))
        found = _radii(only(first if index == 0 else specimens[index], trial))
        sizes |= {trial[number]: radius for number, radius in found.items() if trial[number] not in sizes}
        if len(sizes) == len(chosen):
            break
    missing = [name for name in chosen if name not in sizes]
    if missing and (wanted or not sizes):
        raise ValueError(
            f"{first.name}: expected labelled particles of {', '.join(missing)} with their list, to know how large "
            f"they are, got none in {read} specimens; set `classes` to those that there are"
        )
    # A table of classes may name more than there are.
    chosen = [name for name in chosen if name in sizes]
    names = dict(enumerate(chosen, start=1))
    taught = TaughtSpecimens(specimens, names)
    radii = {number: sizes[name] for number, name in names.items()}
    others = tuple(name for name in known if name not in chosen)
    return taught, TaughtClasses(names=names, radii=radii, others=others)


def _chosen(known: Sequence[str], labelled: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Choose class names, in the order in which they are known; upper and lower case do not matter."""
    if not known:
        raise ValueError("expected particles that a picker can learn, got none; set `templates` or `specimens`")
    if not wanted:
        return list(dict.fromkeys(labelled))
    numbers = dict(enumerate(dict.fromkeys(known), start=1))
    found = match_names(wanted, numbers)
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise ValueError(f"expected `classes` among {', '.join(numbers.values())}, got {', '.join(unknown)}")
    return [name for number, name in numbers.items() if number in found.values()]


def _radius(volume: float) -> float:
    """Return the radius of a sphere of this volume."""
    return math.cbrt(3 * volume / (4 * math.pi))


def _radii(specimen: GrandModel) -> dict[int, float]:
    """Measure the classes of a specimen, Å, by its labels; those without a particle are left out."""
    voxels = np.bincount(specimen.labels.flatten().cpu().numpy(), minlength=256) * specimen.label_voxel_size**3
    counts = np.bincount(specimen.particles.classes, minlength=256)
    return {
        int(number): _radius(float(voxels[number] / counts[number]))
        for number in np.flatnonzero((voxels > 0) & (counts > 0))
        if number > 0
    }


class TaughtSpecimens(LazySpecimens[int]):
    """Specimens whose labels are those of chosen classes; each is read when it is asked for.

    Parameters
    ----------
    specimens
        The specimens.
    class_names
        The chosen classes, by their new numbers.
    """

    def __init__(self, specimens: Sequence[GrandModel], class_names: Mapping[int, str]) -> None:
        super().__init__(range(len(specimens)))
        self._specimens, self._class_names = specimens, dict(class_names)

    def _read(self, item: int) -> GrandModel:
        return only(self._specimens[item], self._class_names)

    def _describe(self, item: int) -> Description | None:
        if not isinstance(self._specimens, LazySpecimens):
            return None
        found = self._specimens.describe(item)
        return None if found is None else replace(found, class_names=self._class_names)


def only(labelled: AnyLabelled, class_names: Mapping[int, str]) -> AnyLabelled:
    """Keep the labels and particles of some classes, with these numbers; all else becomes background.

    Parameters
    ----------
    labelled
        A specimen or a tomogram.
    class_names
        The classes, by their new numbers.
    """
    own = labelled.all_class_names
    numbers = match_names(own.values(), class_names)
    table = np.zeros(256, dtype=np.int64)
    for number, name in own.items():
        table[number] = 0 if number in labelled.not_particles else numbers.get(name, 0)
    changed = replace(labelled, instances=None).with_numbers(table, {0: "background", **class_names})
    rows = np.flatnonzero(changed.particles.classes > 0)
    kept = ParticleTable(
        classes=changed.particles.classes[rows],
        positions=changed.particles.positions[rows],
        orientations=changed.particles.orientations[rows],
    )
    return replace(changed, particles=kept, not_particles=frozenset())
