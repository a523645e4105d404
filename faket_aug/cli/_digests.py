"""Digests of files and tilt-series: what a set of tomograms was made from, wherever it lies now."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faket_aug.cli._sets import SETTINGS_FILE
from faket_aug.tilts.series import TiltSeries

#: Bytes of a large file that are looked at: in pieces, from its beginning to its end. MRC headers hold the mean and the
#: standard deviation of all voxels.
_PIECE, _PIECES = 4096, 16
#: Of the files that specimens are read from; within a copick project's runs all files are.
_SUFFIXES = (".mrc", ".map", ".rec", ".gz", ".bz2", ".star", ".xml", ".csv", ".tsv", ".txt", ".json")
_RUNS = "ExperimentRuns"
#: Folders within a folder that specimens are looked for in: PolNet's `out/Tomo001`.
_DEPTH = 2


def digest_of_file(path: Path) -> str:
    """Hash a whole file, whatever its name."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_series(series: TiltSeries) -> str:
    """Hash angles, tilts and which pixels count, wherever they were read from."""
    digest = hashlib.sha256(np.ascontiguousarray(series.tilt_angles).tobytes())
    digest.update(series.tilts.contiguous().numpy().tobytes())
    if series.measured is not None:
        digest.update(np.packbits(series.measured.numpy()).tobytes())
    return digest.hexdigest()


def digest_of_folder(path: Path) -> str:
    """Hash the files of specimens in a folder: their names, sizes and pieces of their content, not where they lie.

    Of a file (a copick configuration) those of its folder are meant, too. Sets of tomograms in the folder are left out:
    one may be growing there.
    """
    root = path if path.is_dir() else path.parent
    digest = hashlib.sha256()
    for file in sorted(_files(root, root)):
        name, size = file.relative_to(root).as_posix(), file.stat().st_size
        digest.update(f"{name}|{size}|".encode())
        with file.open("rb") as stream:
            for piece in range(_PIECES):
                stream.seek(max(size - _PIECE, 0) * piece // (_PIECES - 1))
                digest.update(stream.read(_PIECE))
    return digest.hexdigest()


def _files(folder: Path, root: Path) -> Iterator[Path]:
    depth = len(folder.relative_to(root).parts)
    in_runs = _RUNS in folder.relative_to(root).parts
    for entry in os.scandir(folder):
        path = Path(entry.path)
        if entry.is_dir():
            inner = in_runs or entry.name == _RUNS
            is_set = (path / SETTINGS_FILE).is_file()
            if inner or (depth < _DEPTH and not entry.name.startswith(".") and not is_set):
                yield from _files(path, root)
        elif in_runs or (not entry.name.startswith(".") and entry.name.lower().endswith(_SUFFIXES)):
            yield path
