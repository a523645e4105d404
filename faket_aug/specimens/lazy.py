"""Sequences of specimens that are read from files when they are asked for."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
import torch
import torch.nn.functional as F

from faket_aug.formats.particles import match_names
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.shrec import _ShrecFiles

#: Where a specimen comes from: a function of paths and settings, small enough to be sent to a worker.
Source = Callable[[], GrandModel]

Item = TypeVar("Item")


class LazySpecimens(Sequence[GrandModel], Generic[Item]):
    """Specimens that are read when they are asked for; none is kept in memory.

    Parameters
    ----------
    items
        What each specimen is read from.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = tuple(items)

    @abstractmethod
    def _read(self, item: Item) -> GrandModel:
        """Read one specimen."""

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> GrandModel: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> GrandModel | Self:
        if not isinstance(index, slice):
            return self._read(self._items[index])
        part = copy.copy(self)
        part._items = self._items[index]
        return part

    def __iter__(self) -> Iterator[GrandModel]:
        # Not the default of `Sequence`, which would take an `IndexError` while reading for the end.
        return (self[index] for index in range(len(self)))


class FileSpecimens(LazySpecimens[Source]):
    """Specimens read from files by functions, each when it is asked for; none is kept in memory.

    Parameters
    ----------
    sources
        Functions that read one specimen each. They have to pickle, as a `functools.partial` of a module's function
        does.
    class_names
        Class numbers and names that all specimens are given; by default each specimen keeps its own.
    dark
        Whether particles are dark in the densities that are read. These are negated, since specimens are positive.

    Warns
    -----
    UserWarning
        While reading: if labelled voxels are darker than the others.
    """

    def __init__(
        self, sources: Sequence[Source], *, class_names: Mapping[int, str] | None = None, dark: bool = False
    ) -> None:
        super().__init__(sources)
        self._dark = dark
        self._class_names = None if class_names is None else dict(class_names)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The functions that read one specimen each."""
        return self._items

    def _read(self, item: Source) -> GrandModel:
        found = item()
        if self._dark:
            found = replace(found, density=-found.density)
        _warn_of_dark_particles(found)
        return found if self._class_names is None else renumbered(found, self._class_names)


class ShrecSpecimens(LazySpecimens[Path]):
    """Specimens in SHREC's layout, each read when it is asked for; none is kept in memory.

    Parameters
    ----------
    folders
        One folder a specimen.
    z_range, voxel_size, memory_map
        As for `GrandModel.from_shrec`.

    Raises
    ------
    FileNotFoundError
        If a folder lacks a file.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        *,
        z_range: str | tuple[int, int] | None = "auto",
        voxel_size: float | None = None,
        memory_map: bool = False,
    ) -> None:
        super().__init__([Path(folder) for folder in folders])
        self._reading: dict[str, Any] = {"z_range": z_range, "voxel_size": voxel_size, "memory_map": memory_map}
        for folder in self.folders:
            _ShrecFiles.find(folder)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folder of each specimen."""
        return self._items

    def _read(self, item: Path) -> GrandModel:
        return GrandModel.from_shrec(item, **self._reading)


def _warn_of_dark_particles(specimen: GrandModel) -> None:
    labelled = specimen.labels > 0
    fine = specimen.density if specimen.bin == 1 else F.avg_pool3d(specimen.density[None], specimen.bin)[0]
    if labelled.any() and not labelled.all() and fine[labelled].mean() < fine[~labelled].mean():
        warnings.warn(
            f"{specimen.name}: expected particles that are denser (brighter) than their surroundings, got darker "
            "labelled voxels; set `dark` where particles are dark, as in a microscope's tomograms",
            stacklevel=4,
        )


def renumbered(specimen: GrandModel, class_names: Mapping[int, str]) -> GrandModel:
    """Give a specimen the class numbers of another table, by the classes' names, whatever their case.

    Raises
    ------
    ValueError
        If a name of the specimen is not in the table.
    """
    if dict(specimen.class_names) == dict(class_names):
        return specimen
    numbers = match_names(specimen.class_names.values(), class_names)
    unknown = sorted(set(specimen.class_names.values()) - set(numbers))
    if unknown:
        raise ValueError(
            f"{specimen.name}: expected classes of the table ({', '.join(class_names.values())}), got "
            f"{', '.join(unknown)}; add them to `class_names`"
        )
    table = np.zeros(256, dtype=np.int64)
    for number, name in specimen.class_names.items():
        table[number] = numbers[name]
    return replace(
        specimen,
        labels=torch.from_numpy(table).to(torch.uint8)[specimen.labels.long()],
        particles=replace(specimen.particles, classes=table[specimen.particles.classes]),
        class_names=dict(class_names),
        not_particles=frozenset(table[[*specimen.not_particles]].tolist()),
    )
