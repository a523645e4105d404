"""Folders of simulated tomograms; whenever the writing stops, no file is left half-written under its final name."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_choice
from faket_aug.formats._atomic import DISK_FULL, make_writable_folder, remove_parts, write_text
from faket_aug.formats._json import read_json, write_json
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.particle_lists import PARTICLE_FORMATS, write_particles
from faket_aug.specimens.particles import Labelled

#: The file that completes a folder: it is written last, and lists the others.
RECORD_FILE = "record.json"
#: A file that marks a folder while it is written, so that it is not taken for a folder with the user's own files.
UNFINISHED_FILE = "unfinished"
_UNFINISHED = "This folder is being written, or its writing was stopped. Files of what was here before:"
TOMOGRAM_FILE = "reconstruction.mrc"
NOISELESS_FILE = "reconstruction_noiseless.mrc"
#: The two halves: every other tilt or frame, named as `faket-aug reconstruct --halves` does.
HALF_FILES = ("reconstruction_even.mrc", "reconstruction_odd.mrc")
#: Names of the lists of particles, by format. A copick project is a folder of its own.
LIST_FILES = {
    "shrec": "particle_locations.txt",
    "star3": "particles_relion3.star",
    "star4": "particles_relion4.star",
    "star5": "particles_relion5.star",
    "deepfinder": "object_list.xml",
}
_FORMAT = 1
_RECORD_KEYS = {"format", "record", "origin", "files"}
#: The largest number that an MRC file of integers holds; float32 holds whole numbers a thousand times as large.
_MAX_MRC_INTEGER = 32767


def flavour_file(tomogram: Path, flavour: str) -> Path:
    """Return where another flavour of a tomogram's file is: beside it."""
    return tomogram.with_stem(f"{tomogram.stem}_{flavour}")


@dataclass(frozen=True, kw_only=True)
class SavedTomogram:
    """A tomogram with its labels and particles, and the names that they are written under.

    Parameters
    ----------
    labelled
        Labels and particles of the tomogram.
    tomogram
        `(z, y, x)`.
    name, modality
        Of the tomogram.
    copick_project
        The copick project that the tomogram is added to.
    """

    labelled: Labelled
    tomogram: Tensor
    name: str
    modality: str
    copick_project: Path

    @property
    def class_numbers(self) -> dict[str, int]:
        """Class numbers by name."""
        return {name: number for number, name in self.labelled.all_class_names.items()}


@dataclass(frozen=True, kw_only=True)
class TomogramFolder:
    """A folder that is being written: each file is complete or does not exist, and the record is written last.

    Parameters
    ----------
    path
        The folder.
    """

    path: Path
    _written: list[str] = field(default_factory=list)
    _before: Sequence[str] = ()
    #: Whether a tomogram was written into the folder before.
    _again: bool = False

    def volume(self, name: str, data: Tensor, *, voxel_size: float) -> None:
        """Write an MRC file: `(z, y, x)` or `(tilt, y, x)`, voxel size in Å."""
        if not data.is_floating_point() and data.numel() and int(data.max()) > _MAX_MRC_INTEGER:
            data = data.float()
        write_mrc(self.path / name, data, voxel_size=voxel_size)
        self._written.append(name)

    def angles(self, stem: str, tilt_angles: npt.ArrayLike) -> None:
        """Write `.tlt` and `.rawtlt`; a simulated series is aligned, so both hold the same angles in degrees."""
        for suffix in (".tlt", ".rawtlt"):
            write_tlt(self.path / (stem + suffix), tilt_angles)
            self._written.append(stem + suffix)

    def class_names(self, names: Mapping[int, str]) -> None:
        """Write the table of class numbers and names."""
        from faket_aug.formats.shrec import write_class_conversion_table

        write_class_conversion_table(self.path / "class_conversion_table.txt", names)
        self._written.append("class_conversion_table.txt")

    def particles(self, saved: SavedTomogram, formats: Sequence[str]) -> None:
        """Write the particles in each of `formats`."""
        for name in formats:
            if name == "copick":
                self._written.extend(_write_copick(self.path, saved, again=self._again))
                continue
            write_particles(
                self.path / LIST_FILES[name],
                # Instances count all rows of SHREC's list; the other lists hold what is to be picked.
                saved.labelled.listed(picked=name != "shrec"),
                format=name,
                class_numbers=saved.class_numbers,
                voxel_size=saved.labelled.label_voxel_size,
                shape=saved.tomogram.shape,
                tomogram=saved.name,
            )
            self._written.append(LIST_FILES[name])

    def finish(self, record: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
        """Write the record, with the sizes of all files in bytes; with it the folder is complete."""
        content = {
            "format": _FORMAT,
            "record": dict(record),
            "origin": dict(origin),
            "files": {name: (self.path / name).stat().st_size for name in sorted(self._written)},
        }
        for name in set(self._before) - set(self._written):
            _remove(self.path / name, up_to=self.path)
        write_json(self.path / RECORD_FILE, content)
        (self.path / UNFINISHED_FILE).unlink(missing_ok=True)


def _remove(file: Path, *, up_to: Path) -> None:
    """Remove a file, and the folders above it that are empty then."""
    file.unlink(missing_ok=True)
    for above in file.parents:
        if above == up_to or (above.is_dir() and any(above.iterdir())):
            return
        if above.is_dir():
            above.rmdir()


@contextmanager
def rewritten_folder(folder: str | Path) -> Iterator[TomogramFolder]:
    """Prepare a folder for a tomogram: a new one, an empty one, or one that holds a saved tomogram.

    An existing record is removed first, so that a folder whose files are being replaced does not count as complete.

    Raises
    ------
    FileExistsError
        If the folder holds other files.
    OSError
        If the folder cannot be written, or the disk is full; the message names the folder and what to do.
    """
    path = Path(folder)
    try:
        make_writable_folder(path)
        again = (path / UNFINISHED_FILE).is_file() or (path / RECORD_FILE).is_file()
        before = _written_before(path)
        # After a stop, the next writer has to know which files are old.
        write_text(path / UNFINISHED_FILE, "\n".join([_UNFINISHED, *before, ""]))
        (path / RECORD_FILE).unlink(missing_ok=True)
        remove_parts(path)
        yield TomogramFolder(path=path, _before=before, _again=again)
    except OSError as error:
        raise _explained(error, path) from error


def _written_before(folder: Path) -> list[str]:
    """List the files of the tomogram that a folder holds; refuse a folder with other files."""
    left = folder / UNFINISHED_FILE
    before = left.read_text(encoding="utf-8", errors="replace").splitlines()[1:] if left.is_file() else []
    if (folder / RECORD_FILE).is_file():
        files = read_record_file(folder / RECORD_FILE)["files"]
        changed = [
            name for name, size in files.items() if _is_inside(folder, name) and _is_changed(folder / name, size)
        ]
        if changed:
            raise FileExistsError(errno.EEXIST, f"{changed[0]} was changed since it was written there")
        before += files
    if before:
        return [name for name in dict.fromkeys(before) if _is_inside(folder, name)]
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if found and UNFINISHED_FILE not in found:
        raise FileExistsError(
            errno.EEXIST, f"it holds other files, {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        )
    return []


def _is_changed(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size != size


def _is_inside(folder: Path, name: str) -> bool:
    """Tell whether a name leads to something within a folder: not through `..`, and not through a link."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        return False
    return (folder / name).parent.resolve() == folder.resolve() / Path(name).parent


def _explained(error: OSError, folder: Path) -> OSError:
    if error.errno in DISK_FULL:
        advice = "make room and do the same again: complete files stay, and no half-written file was left"
    else:
        advice = "choose another folder"
    reason = error.strerror or str(error)
    return type(error)(error.errno, f"expected to write a tomogram into {folder}, got: {reason}; {advice}")


def is_whole(folder: str | Path) -> bool:
    """Tell whether a folder holds a complete tomogram: its record and all files that the record lists."""
    folder = Path(folder)
    try:
        files = read_record_file(folder / RECORD_FILE)["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, FileFormatError):
        return False


def read_record_file(path: str | Path) -> dict[str, Any]:
    """Read the record file of a saved tomogram: `record`, `origin`, and `files` with their sizes.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If there is no record, or the file is something else.
    """
    content = read_json(path, what="the record of a saved tomogram")
    files = content.get("files")
    sizes = isinstance(files, dict) and all(isinstance(size, int) for size in files.values())
    if set(content) != _RECORD_KEYS or content["format"] != _FORMAT or not sizes:
        raise FileFormatError(
            f"{path}: expected the record of a saved tomogram (format {_FORMAT} with "
            f"{', '.join(sorted(_RECORD_KEYS))}), "
            f"got format {content.get('format')!r} with {', '.join(sorted(content)) or 'nothing'}; simulate it again"
        )
    return content


def check_formats(formats: Sequence[str]) -> None:
    """Raise a `ValueError` unless each of `formats` is a format of particles, named once.

    Raises
    ------
    ImportError
        If a format needs a package that is not installed.
    """
    if isinstance(formats, str):
        raise ValueError(f"expected `formats` to be several names, as ({formats!r},), got {formats!r}")
    for name in formats:
        check_choice("formats", name, PARTICLE_FORMATS)
    if len(set(formats)) != len(formats):
        raise ValueError(f"expected each of `formats` once, got {', '.join(formats)}")
    if "copick" in formats and find_spec("copick") is None:
        raise ImportError(
            'expected the optional package copick for the format "copick", found none; install it: pip install '
            '"faket_aug[copick]"'
        )


def check_names(class_names: Mapping[int, str], formats: Sequence[str], *, tomogram: str) -> None:
    """Raise a `ValueError` unless all files of a tomogram can hold its name and the names of its classes."""
    from faket_aug.formats.particles import check_words
    from faket_aug.formats.shrec import check_class_names

    check_class_names(class_names)
    if set(formats) & {"star3", "star4", "star5", "copick"}:
        check_words([tomogram], "names of tomograms (the folder's)")
    if "copick" in formats:
        from faket_aug.formats.copick import check_copick_names

        check_copick_names(class_names.values())


def _write_copick(folder: Path, saved: SavedTomogram, *, again: bool) -> list[str]:
    from faket_aug.formats.copick import write_copick

    labelled, project, names = saved.labelled, saved.copick_project, saved.labelled.all_class_names
    if project.is_dir():
        remove_parts(project, pattern=f".{saved.name}.*.part")
    listed, in_labels = labelled.listed(), torch.unique(labelled.labels).tolist()
    files = write_copick(
        project,
        run=saved.name,
        particles=listed,
        class_numbers=saved.class_numbers,
        voxel_size=labelled.label_voxel_size,
        labels=labelled.labels,
        tomograms={saved.modality: saved.tomogram},
        # Classes that are labelled, but are no particles.
        segmented=sorted(
            {names[number] for number in in_labels if number > 0} - set(listed.names)
            | {names[number] for number in labelled.not_particles if number in names}
        ),
        # Only what this folder's tomogram left there before is replaced.
        existing="replace" if again else "refuse",
    )
    # Where the configuration is shared with other tomograms, it grows with them.
    own = project.parent == folder
    return [os.path.relpath(file, folder) for file in files if own or file.parent != project]
