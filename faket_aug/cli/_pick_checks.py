"""What `faket-aug pick` checks before it begins: paths, settings, headers, memory, and whether they go together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faket_aug._checks import FileFormatError, check_fraction, check_positive, same_size
from faket_aug._runtime.memory import available_memory
from faket_aug.cli._pick_files import BY_NAME, SUFFIXES
from faket_aug.cli._series_checks import NO_SIZE
from faket_aug.formats._atomic import make_writable_folder
from faket_aug.formats._json import read_json
from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.formats.particles import check_words
from faket_aug.picking.finding import FindSettings
from faket_aug.picking.flavours import find_flavours
from faket_aug.picking.picker import Picker, kind_of
from faket_aug.picking.tomogram import check_voxel_size
from faket_aug.simulation.saving import TOMOGRAM_FILE

#: Bytes of a voxel while a tomogram is looked at, of a class's probability, and of tiles and blocks of them.
_VOXEL, _PROBABILITY, _FIXED = 16, 2, 2 * 2**30
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class PickWork:
    """What is to be picked.

    Parameters
    ----------
    run
        The folder of a training, or a file of weights.
    tomograms
        MRC files, or folders of simulated tomograms.
    output
        The list of particles; a folder of its name without suffix holds pictures and records.
    format
        One of `FORMATS`.
    settings
        How particles are found.
    thresholds
        For all classes, or by class name.
    rate
        Picks in noise for each pick, by which the control chooses thresholds.
    names
        Of the tomograms, in their order.
    voxel_size
        Å, in place of the headers'.
    mask
        An MRC file of the tomograms' shape: particles are where it is not 0.
    z_range
        First and last section.
    unbinned_pixel_size
        Å, of the tilt-series.
    probabilities
        Where the probabilities are written.
    device, threads
        Where it runs, and with how many intra-op threads; by default torch's own number.
    """

    run: Path
    tomograms: Sequence[Path]
    output: Path
    format: str
    settings: FindSettings
    thresholds: float | Mapping[str, float] | None = None
    rate: float | None = None
    names: Sequence[str] = ()
    voxel_size: float | None = None
    mask: Path | None = None
    z_range: tuple[int, int] | None = None
    unbinned_pixel_size: float | None = None
    probabilities: Path | None = None
    device: str
    threads: int | None = None

    @property
    def folder(self) -> Path:
        """Where records and pictures are."""
        name = self.output.stem if SUFFIXES[self.format] else f"{self.output.name}_picks"
        return self.output.parent / name


@dataclass(frozen=True, kw_only=True)
class Tomogram:
    """A tomogram that is to be picked: its name and file, and what the header says."""

    name: str
    path: Path
    shape: tuple[int, int, int]
    voxel_size: float
    #: By flavour, of a picker with several channels.
    channels: Mapping[str, Path] = field(default_factory=dict)


def check_output(work: PickWork) -> None:
    suffix, several = SUFFIXES[work.format], len(work.tomograms) > 1
    in_folder = several and work.format not in BY_NAME
    if work.format == "copick" or (in_folder and work.output.suffix == ""):
        if work.output.is_file():
            raise ValueError(f"expected --output to be a folder for {work.format}, got the file {work.output}")
        make_writable_folder(work.output)
    elif in_folder or work.output.suffix.lower() != suffix:
        what = (
            f"a folder, as format {work.format} names no tomograms," if in_folder else f"a name that ends in {suffix}"
        )
        raise ValueError(
            f"expected --output to be {what} for --format {work.format}, got {work.output}; set --output, or --format"
        )
    if not work.output.parent.is_dir():
        raise FileNotFoundError(f"expected a folder for the picks, found none at {work.output.parent}; set --output")
    if work.output.is_file() and not work.folder.is_dir():
        raise FileExistsError(
            f"expected a new name for the picks, found {work.output}, which another command wrote; set another --output"
        )
    if work.probabilities is not None and (several or work.probabilities.suffix.lower() != ".mrc"):
        what = f"{len(work.tomograms)} tomograms" if several else str(work.probabilities)
        raise ValueError(f"expected --probabilities as an .mrc file, for a single tomogram, got {what}")
    if work.unbinned_pixel_size is not None:
        check_positive("--unbinned-pixel-size", work.unbinned_pixel_size)
    if work.rate is not None:
        check_fraction("--rate", work.rate)
        if not work.settings.control:
            raise ValueError("expected a control for --rate, got --no-control; leave one of them away")


def read_thresholds(work: PickWork, picker: Picker) -> float | dict[int, float] | None:
    """Read the thresholds that were given, by class number."""
    if not isinstance(work.thresholds, Mapping):
        if work.thresholds is not None:
            check_fraction("--threshold", work.thresholds)
        return work.thresholds
    names = {name.lower(): number for number, name in picker.description.class_names.items()}
    unknown = [name for name in work.thresholds if name.lower() not in names]
    if unknown:
        listed = ", ".join(picker.description.class_names.values())
        raise ValueError(f"expected --threshold of classes that the run has ({listed}), got {', '.join(unknown)}")
    for name, value in work.thresholds.items():
        check_fraction(f"--threshold {name}", value)
    return {names[name.lower()]: float(value) for name, value in work.thresholds.items()}


def find_tomograms(work: PickWork, picker: Picker) -> list[Tomogram]:
    """Look at the headers of all tomograms, and find their names."""
    if work.names and len(work.names) != len(work.tomograms):
        raise ValueError(f"expected --names of {len(work.tomograms)} tomograms, got {len(work.names)}")
    found = []
    for row, given in enumerate(work.tomograms):
        path = given / TOMOGRAM_FILE if given.is_dir() else given
        if not path.is_file():
            raise FileNotFoundError(
                f"expected a tomogram, an MRC file or a folder with {TOMOGRAM_FILE}, found none at {given}"
            )
        shape = read_mrc_shape(path)
        _, header = read_mrc(path, rows=slice(0, 1))
        size = header if work.voxel_size is None else work.voxel_size
        if work.voxel_size is not None:
            check_positive("--voxel-size", work.voxel_size)
        if not size > 0:
            raise FileFormatError(f"{path}: expected a voxel size in the header, got 0; set --voxel-size in Å")
        if work.voxel_size is None and same_size(header, NO_SIZE) and picker.description.voxel_size > 2 * NO_SIZE:
            raise FileFormatError(
                f"{path}: expected voxels of about {picker.description.voxel_size:g} Å, as those of the training, got "
                "1 Å in the header, which programs write that know no size; set --voxel-size in Å"
            )
        check_voxel_size(size, picker.description.voxel_size, source=f"{path}: ")
        _warn_of_a_series(path, shape[0])
        record = _reconstruction(path)
        name = work.names[row] if work.names else _name(given, path, record)
        _check_made_alike(path, record, size, picker)
        _check_memory(path, shape, size, picker)
        channels = find_flavours(path, shape, picker.description.channels)
        found.append(Tomogram(name=name, path=path, shape=shape, voxel_size=size, channels=channels))
    check_words([one.name for one in found], "names of tomograms (--names)")
    twice = sorted({one.name for one in found if [other.name for other in found].count(one.name) > 1})
    if twice:
        raise ValueError(f"expected tomograms of different names, got {', '.join(twice)} more than once; set --names")
    return found


def _warn_of_a_series(path: Path, sections: int) -> None:
    """Warn of a stack of tilts in place of a tomogram: it has as many sections as the file beside it has angles."""
    for angles in (path.with_suffix(suffix) for suffix in (".tlt", ".rawtlt")):
        if angles.is_file() and len(angles.read_bytes().split()) == sections:
            warnings.warn(
                f"{path}: expected a tomogram, got as many sections as {angles.name} has angles: it seems to be the "
                "tilt-series; give the tomogram that `faket-aug reconstruct` makes of it",
                stacklevel=2,
            )


def _name(given: Path, path: Path, record: Mapping[str, Any]) -> str:
    """Name a tomogram as its tilt-series, where a record says which that was; else as its file or folder."""
    series = record.get("series")
    if isinstance(series, str) and series:
        return Path(series).stem
    return given.resolve().name if given.is_dir() else path.stem


def _reconstruction(path: Path) -> dict[str, Any]:
    """Read the record that `faket-aug reconstruct` leaves beside a tomogram; nothing where there is none."""
    record = path.with_suffix(".json")
    if not record.is_file():
        return {}
    try:
        content = read_json(record, what="a record")
    except FileFormatError:
        return {}
    return content if isinstance(content.get("reconstruction"), dict) else {}


def _check_made_alike(path: Path, record: Mapping[str, Any], size: float, picker: Picker) -> None:
    """Warn where a tomogram was reconstructed in another way than those of the training."""
    made, of = dict(record.get("reconstruction", {})), picker.description
    if "ctf_correction" in made:
        made["kind"] = kind_of(made.get("flavour"), made["ctf_correction"])
    other = [
        f"{what} {made[name]} in place of {wanted}"
        for name, what, wanted in (
            ("filter", "filter", of.filter),
            ("kind", "flavour", of.kind),
        )
        if name in made and made[name] != wanted
    ]
    if other:
        warnings.warn(
            f"{path}: expected a tomogram made as those of the training, got {', '.join(other)}; reconstruct it by "
            f"`faket-aug reconstruct` with --filter {of.filter} --flavours {','.join(of.channels or (of.kind,))}",
            stacklevel=2,
        )
    told = made.get("voxel_size")
    if isinstance(told, int | float) and told > 0 and not same_size(told, size):
        warnings.warn(
            f"{path}: expected voxels of {told:g} Å, as its record says, got {size:g} Å; correct --voxel-size, or the "
            "header",
            stacklevel=2,
        )


def _check_memory(path: Path, shape: Sequence[int], size: float, picker: Picker) -> None:
    voxels = float(np.prod([float(n) for n in shape]))
    classes = picker.description.classes - 1
    scale = (size / picker.description.voxel_size) ** 3
    channels = picker.description.in_channels
    each = channels * _VOXEL + _PROBABILITY * classes
    needed = channels * voxels * 4 + voxels * max(scale, 1.0 if scale > 0.9 else 0.0) * each + _FIXED
    free = available_memory()
    if needed > free:
        listed = " × ".join(map(str, shape))
        raise ValueError(
            f"{path}: expected a tomogram for which {free / _GIB:.1f} GiB of free memory suffice, got one of {listed} "
            f"voxels (z, y, x) with {classes} classes, which takes about {needed / _GIB:.1f} GiB; cut it along y into "
            "parts, or use a machine with more memory"
        )
