"""What the tomograms of one stream have in common: one numbering of their classes, and one voxel size.

The first specimen sets both; in a mixture the first of the simulated ones does. The others are given its class numbers,
by the names of their classes. What a tomogram becomes depends on all specimens of the stream, and not on those that
this process has read already: workers, ranks and resumption do not change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from faket_aug._arrays import IntArray
from faket_aug._checks import SimulationError, check_same_size
from faket_aug._runtime.threads import intra_op_threads
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.specimens.lazy import Description, LazySpecimens
from faket_aug.specimens.particles import Labelled

#: Where the tomograms of a stream come from: specimens, tomograms, or what generates them.
Members = Sequence[Labelled] | GrandModelGenerator

AnyLabelled = TypeVar("AnyLabelled", bound=Labelled)
_MAX_CLASSES = 255
_ADVICE = "bin or resample them alike, or set `voxel_size` if a file says it wrongly"


class Numbering(NamedTuple):
    """How a tomogram's classes are numbered in its stream.

    Parameters
    ----------
    numbers
        `(256,)`, the number in the stream of each number of its own.
    class_names
        Names of the numbers in the stream.
    """

    numbers: IntArray
    class_names: Mapping[int, str]

    def of(self, made: AnyLabelled) -> AnyLabelled:
        """Give a tomogram these numbers, in its labels, its particle table and its class names."""
        return made.with_numbers(self.numbers, self.class_names)


class Agreement:
    """The numbering of classes and the voxel size of a stream.

    Nothing is read before it is needed. Then the small files of the specimens tell both, where they can. Otherwise the
    first specimen is read.

    Parameters
    ----------
    members
        Where the tomograms come from; the first of the first sets the standard.
    """

    def __init__(self, members: Sequence[Members]) -> None:
        self.members = tuple(members)
        self._first: Description | None = None
        self._table: dict[int, str] | None = None

    def is_of(self, members: Sequence[Members]) -> bool:
        """Tell whether these are the members still."""
        return len(members) == len(self.members) and all(a is b for a, b in zip(members, self.members, strict=True))

    @property
    def first(self) -> Description:
        """What the first specimen says, which sets the standard."""
        if self._first is None:
            try:
                self._first = self.known() or self._read_first()
            except Exception as error:
                raise SimulationError(f"specimen 0: {type(error).__name__}: {error}") from error
        return self._first

    def _read_first(self) -> Description:
        members = self.members[0]
        assert not isinstance(members, GrandModelGenerator), "it says what it makes"
        with intra_op_threads(1):
            return Description.of(members[0])

    def learn(self, members: Members, number: int, specimen: Labelled) -> None:
        """Take note of a specimen that was just read: if it is the first, it need not be read again."""
        if self._first is None and members is self.members[0] and number == 0:
            self._first = Description.of(specimen)

    def known(self) -> Description | None:
        """Return what the first specimen says if no volume has to be read for it; otherwise None."""
        if self._first is None and self.members:
            told = _told(self.members[0], 0)
            self._first = told if told is not None and told.voxel_size > 0 else None
        return self._first

    def class_names(self) -> dict[int, str]:
        """Return the names of the class numbers of the stream, without the background.

        They are those of all specimens, where these can be told without reading them; otherwise the first one's.
        """
        return self._all_names() or _named(self.first.class_names)

    def numbering(self, labelled: Labelled) -> Numbering | None:
        """Find the numbers that the classes of a specimen have in the stream.

        Parameters
        ----------
        labelled
            The specimen, or the tomogram.

        Returns
        -------
        The numbers in the stream; None if none changes.

        Raises
        ------
        ValueError
            If the voxel size differs by more than 2 % from the first one's, or the numbers of the classes cannot be
            told; the message names both specimens.
        """
        first, size = self.first, labelled.label_voxel_size
        check_same_size(labelled.name, size, first.name, first.voxel_size, advice=_ADVICE)
        own, table = _named(labelled.class_names), _named(first.class_names)
        if all(table.get(number) == name for number, name in own.items()):
            return None
        found = _matched(own, table)
        if len(found) < len(own):
            table = self._united(labelled, sorted(own[n] for n in own.keys() - found.keys()))
            found = _matched(own, table)
        changed = {number: new for number, new in found.items() if new != number}
        if not changed:
            return None
        numbers = np.arange(_MAX_CLASSES + 1)
        numbers[list(changed)] = list(changed.values())
        self._check_nameless(labelled, own, set(found.values()))
        return Numbering(numbers=numbers, class_names=table)

    def _all_names(self) -> dict[int, str] | None:
        """Unite the tables of all specimens; None if they cannot be told without reading the volumes."""
        if self._table is None:
            tables = []
            for members in self.members:
                for number in range(_count(members)):
                    told = _told(members, number)
                    if told is None:
                        return None
                    tables.append(_named(told.class_names))
            self._table = united(tables)
        return self._table

    def _united(self, labelled: Labelled, missing: Sequence[str]) -> dict[int, str]:
        names = self._all_names()
        if names is None:
            listed = ", ".join(_named(self.first.class_names).values()) or "none"
            raise ValueError(
                f"{labelled.name}: expected classes of the first specimen, {self.first.name} ({listed}), got "
                f"{', '.join(missing)}: their numbers would depend on what is read first; give all of them one table, "
                "as `class_names`"
            )
        return names

    def _check_nameless(self, labelled: Labelled, own: Mapping[int, str], taken: set[int]) -> None:
        """Refuse classes without a name whose number is given to another class."""
        counts = torch.bincount(labelled.labels.flatten(), minlength=_MAX_CLASSES + 1).cpu().numpy()
        present = set(np.flatnonzero(counts).tolist()) | set(labelled.particles.classes.tolist())
        mixed = sorted((present - {0, *own}) & taken)
        if mixed:
            raise ValueError(
                f"{labelled.name}: expected names of all of its classes, since {self.first.name} numbers them "
                f"differently, got none for {mixed}; add them to its `class_names`"
            )


def united(tables: Sequence[Mapping[int, str]]) -> dict[int, str]:
    """Unite tables of class names: by name, whatever its case; the first table decides.

    A name that the tables before lack keeps its number if no other class has it, and gets the next free one otherwise.

    Raises
    ------
    ValueError
        If there are more than 255 classes.
    """
    names: dict[int, str] = {}
    waiting: list[str] = []
    for table in tables:
        matched = _matched(table, names)
        for number in sorted(table.keys() - matched.keys()):
            if number in names:
                waiting.append(table[number])
            else:
                names[number] = table[number]
    for name in waiting:
        if _matched({1: name}, names):
            continue
        free = next((number for number in range(1, _MAX_CLASSES + 1) if number not in names), None)
        if free is None:
            raise ValueError(f"expected at most {_MAX_CLASSES} classes in one stream, got one more, {name}")
        names[free] = name
    return names


def _matched(own: Mapping[int, str], table: Mapping[int, str]) -> dict[int, int]:
    """Find the numbers of a table for one's own: of the same number and name, else of the same name."""
    exact: dict[str, int] = {}
    folded: dict[str, list[int]] = {}
    for number, name in table.items():
        exact.setdefault(name, number)
        folded.setdefault(name.lower(), []).append(number)
    found = {number: number for number, name in own.items() if table.get(number) == name}
    found |= {n: exact[name] for n, name in own.items() if n not in found and name in exact}
    for number, name in own.items():
        alike = [] if number in found else [n for n in folded.get(name.lower(), []) if n not in found.values()]
        if len(alike) == 1:
            found[number] = alike[0]
    return found


def _named(class_names: Mapping[int, str]) -> dict[int, str]:
    return {int(number): name for number, name in class_names.items() if number}


def _count(members: Members) -> int:
    return 1 if isinstance(members, GrandModelGenerator) else len(members)


def _told(members: Members, number: int) -> Description | None:
    """Return what is known of a specimen without reading its volumes."""
    if isinstance(members, GrandModelGenerator):
        return Description(
            name="the generator's specimens", voxel_size=members.voxel_size, class_names=members.class_names
        )
    if isinstance(members, list | tuple):
        return Description.of(members[number])
    return members.describe(number) if isinstance(members, LazySpecimens) else None
