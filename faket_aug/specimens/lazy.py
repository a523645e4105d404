"""Sequences of specimens that are read from files when they are asked for."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
import torch.nn.functional as F

from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.formats.particles import match_names
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.labelling import choose_voxel_size
from faket_aug.specimens.particles import Labelled
from faket_aug.specimens.shrec import ShrecFiles

#: Where a specimen comes from: a function of paths and settings, small enough to be sent to a worker.
Source = Callable[[], GrandModel]

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a specimen's small files tell of it, before its volumes are read.

    Parameters
    ----------
    name
        As of the specimen.
    voxel_size
        Å, of the labels; 0 if only the volumes tell it.
    class_names
        Names of the class numbers.
    """

    name: str
    voxel_size: float
    class_names: Mapping[int, str]

    @classmethod
    def of(cls, specimen: Labelled) -> Self:
        """Describe a specimen that is there."""
        names = specimen.class_names
        return cls(name=specimen.name, voxel_size=specimen.label_voxel_size, class_names=names)


@dataclass(frozen=True)
class DescribedSource:
    """A source that tells of a specimen without reading its volumes.

    Parameters
    ----------
    read
        Reads the specimen.
    describe
        Describes it, as it is read; None where only reading tells.
    """

    read: Source
    describe: Callable[[], Description | None]

    def __call__(self) -> GrandModel:
        """Read the specimen."""
        return self.read()


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

    def describe(self, index: int) -> Description | None:
        """Tell name, voxel size and class names of a specimen from small files alone; None if they do not tell them."""
        return self._describe(self._items[index])

    def _describe(self, item: Item) -> Description | None:
        return None

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

    def _describe(self, item: Source) -> Description | None:
        told = item.describe() if isinstance(item, DescribedSource) else None
        if told is None or self._class_names is None:
            return told
        return replace(told, class_names=self._class_names)


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
            ShrecFiles.find(folder)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folder of each specimen."""
        return self._items

    def _read(self, item: Path) -> GrandModel:
        return GrandModel.from_shrec(item, **self._reading)

    def _describe(self, item: Path) -> Description | None:
        return describe_shrec(item, voxel_size=self._reading["voxel_size"])


def describe_files(
    density: Path, labels: Path, class_names: Mapping[int, str], *, name: str, voxel_size: float | None
) -> Description:
    """Describe a specimen by the headers of its volumes."""
    shape, label_shape = read_mrc_shape(density), read_mrc_shape(labels)
    _, header = read_mrc(density, rows=slice(0, 1))
    size = choose_voxel_size(voxel_size, header, density)
    return Description(name=name, voxel_size=size * (shape[-1] // label_shape[-1]), class_names=class_names)


def describe_shrec(folder: str | Path, *, voxel_size: float | None = None) -> Description:
    """Describe a specimen in SHREC's layout."""
    files = ShrecFiles.find(Path(folder))
    return describe_files(files.density, files.labels, files.class_names, name=str(folder), voxel_size=voxel_size)


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
    return specimen.with_numbers(table, class_names)
