"""What `faket-aug pick` does: it checks all that it can before it begins, and writes each tomogram when it is done."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_choice, check_fraction, check_positive, same_size
from faket_aug._runtime.memory import available_memory
from faket_aug._runtime.threads import intra_op_threads
from faket_aug.cli._digests import digest_of_file
from faket_aug.cli._pick_files import (
    BY_NAME,
    FORMATS,
    SUFFIXES,
    TomogramPicks,
    draw_picks,
    draw_scores,
    write_lists,
)
from faket_aug.figures import save_figure
from faket_aug.formats._atomic import make_writable_folder
from faket_aug.formats._json import read_json
from faket_aug.formats.mrc import read_mrc, read_mrc_shape, write_mrc
from faket_aug.formats.particles import ParticleList, check_words
from faket_aug.picking.clustering import Picks
from faket_aug.picking.control import compare_with_control
from faket_aug.picking.finding import (
    FindSettings,
    FoundPicks,
    check_voxel_size,
    chosen_thresholds,
    find_particles,
    spheres_of_picker,
)
from faket_aug.picking.picker import Picker, load_picker
from faket_aug.simulation.saving import TOMOGRAM_FILE

#: Files beside each tomogram's record: sections with picks, and the histogram of scores and sizes.
PICTURE, SCORES, RECORD = ".png", "_scores.png", ".json"
#: Where so many of the picks are as many as in noise, it is said.
HIGH_RATE = 0.3
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
        Where it runs.
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
    threads: int

    @property
    def folder(self) -> Path:
        """Where records and pictures are."""
        name = self.output.stem if SUFFIXES[self.format] else f"{self.output.name}_picks"
        return self.output.parent / name


@dataclass(frozen=True, kw_only=True)
class _Tomogram:
    """A tomogram that is to be picked: its name and file, and what the header says."""

    name: str
    path: Path
    shape: tuple[int, int, int]
    voxel_size: float


def run(work: PickWork, progress: Callable[[int, int], None], say: Callable[[str], None]) -> list[str]:
    """Pick in all tomograms that are not done, and write the list after each.

    Parameters
    ----------
    work
        What is to be done.
    progress
        Is told how many hundredths of how many are done.
    say
        Is told a line about each tomogram when it is done.

    Returns
    -------
    Lines about all of them.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError
        If files are missing or wrong, or do not go together; before anything is computed.
    """
    check_choice("--format", work.format, FORMATS)
    _check_output(work)
    picker = load_picker(work.run, device=work.device)
    given = _thresholds(work, picker)
    tomograms = _tomograms(work, picker)
    make_writable_folder(work.folder)
    weights = digest_of_file(picker.path)
    done: list[tuple[TomogramPicks, ParticleList]] = []
    total = 100 * len(tomograms)
    skipped = 0
    with torch.no_grad(), intra_op_threads(work.threads):
        for number, one in enumerate(tomograms):
            depends_on = _depends_on(work, one, weights)
            record = _kept(work, one, depends_on)
            volume = None
            if record is None:
                part = _part_of(progress, 100 * number, total)
                volume, record = _picked(work, picker, one, depends_on, part)
            else:
                skipped += 1
            thresholds, origin = _counting(work, picker, record, given)
            counted = record.picks.above(thresholds)
            if volume is not None or not _pictures_show(work, one, thresholds):
                _draw(work, picker, one, record, volume, thresholds)
            done.append((record, counted.particles(picker.description.class_names)))
            _write(work, picker, done)
            for line in _words(record, picker, thresholds, origin, counted):
                say(line)
            progress(100 * (number + 1), total)
    return _summary(work, done, skipped)


def _part_of(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[float], None]:
    """Return a function of the share of a tomogram that is done."""
    return lambda share: progress(before + int(99 * share), total)


def _write(work: PickWork, picker: Picker, done: Sequence[tuple[TomogramPicks, ParticleList]]) -> None:
    numbers = {name: number for number, name in picker.description.class_names.items()}
    write_lists(work.output, done, format=work.format, class_numbers=numbers, pixel_size=work.unbinned_pixel_size)


# Checks, before anything is computed ----------------------------------------------------------------------------------


def _check_output(work: PickWork) -> None:
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


def _thresholds(work: PickWork, picker: Picker) -> float | dict[int, float] | None:
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


def _tomograms(work: PickWork, picker: Picker) -> list[_Tomogram]:
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
        size = work.voxel_size or header
        if not size > 0:
            raise FileFormatError(f"{path}: expected a voxel size in the header, got 0; set --voxel-size in Å")
        check_voxel_size(size, picker.description.voxel_size, source=f"{path}: ")
        record = _reconstruction(path)
        name = work.names[row] if work.names else _name(given, path, record)
        _check_made_alike(path, record, size, picker)
        _check_memory(path, shape, size, picker)
        found.append(_Tomogram(name=name, path=path, shape=shape, voxel_size=size))
    check_words([one.name for one in found], "names of tomograms (--names)")
    twice = sorted({one.name for one in found if [other.name for other in found].count(one.name) > 1})
    if twice:
        raise ValueError(f"expected tomograms of different names, got {', '.join(twice)} more than once; set --names")
    return found


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
    made, of = record.get("reconstruction", {}), picker.description
    other = [
        f"{what} {made[name]} in place of {wanted}"
        for name, what, wanted in (
            ("filter", "filter", of.filter),
            ("ctf_correction", "CTF correction", of.ctf_correction),
        )
        if name in made and made[name] != wanted
    ]
    if other:
        warnings.warn(
            f"{path}: expected a tomogram made as those of the training, got {', '.join(other)}; reconstruct it by "
            f"`faket-aug reconstruct` with --filter {of.filter} --ctf-correction {of.ctf_correction or 'none'}",
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
    needed = voxels * 4 + voxels * max(scale, 1.0 if scale > 0.9 else 0.0) * (_VOXEL + _PROBABILITY * classes) + _FIXED
    free = available_memory()
    if needed > free:
        listed = " × ".join(map(str, shape))
        raise ValueError(
            f"{path}: expected a tomogram for which {free / _GIB:.1f} GiB of free memory suffice, got one of {listed} "
            f"voxels (z, y, x) with {classes} classes, which takes about {needed / _GIB:.1f} GiB; cut it along y into "
            "parts, or use a machine with more memory"
        )


# One tomogram ---------------------------------------------------------------------------------------------------------


def _depends_on(work: PickWork, one: _Tomogram, weights: str) -> dict[str, Any]:
    """Return all that the picks of a tomogram depend on, but for thresholds."""
    stat = one.path.stat()
    return {
        "weights": weights,
        "tomogram": [str(one.path.resolve()), stat.st_size, stat.st_mtime_ns],
        "voxel_size": one.voxel_size,
        "settings": asdict(work.settings),
        "mask": None if work.mask is None else digest_of_file(work.mask),
        "z_range": None if work.z_range is None else list(work.z_range),
    }


def _kept(work: PickWork, one: _Tomogram, depends_on: Mapping[str, Any]) -> TomogramPicks | None:
    """Read the picks of an earlier run of the same command."""
    path = work.folder / f"{one.name}{RECORD}"
    if not path.is_file() or (work.probabilities is not None and not work.probabilities.is_file()):
        return None
    record = TomogramPicks.read(path)
    return record if record.depends_on == depends_on and record.name == one.name else None


def _picked(
    work: PickWork, picker: Picker, one: _Tomogram, depends_on: Mapping[str, Any], tell: Callable[[float], None]
) -> tuple[Tensor, TomogramPicks]:
    volume, _ = read_mrc(one.path)
    volume = volume.to(torch.float32)
    try:
        found = find_particles(
            picker,
            volume,
            voxel_size=one.voxel_size,
            settings=work.settings,
            within=_within(work, one),
            progress=tell,
        )
    except ValueError as error:
        raise ValueError(f"{one.path}: {error}") from error
    if work.probabilities is not None:
        _write_probabilities(work.probabilities, found, picker)
    record = TomogramPicks(
        name=one.name,
        voxel_size=one.voxel_size,
        shape=one.shape,
        picks=found.picks,
        control=found.control,
        large=found.in_large_blobs,
        notes=found.notes,
        depends_on=depends_on,
    )
    record.write(work.folder / f"{one.name}{RECORD}")
    return volume, record


def _within(work: PickWork, one: _Tomogram) -> Tensor | None:
    """Read the mask, and cut it to the sections that are wanted."""
    within = None
    if work.mask is not None:
        mask, _ = read_mrc(work.mask)
        if tuple(mask.shape) != one.shape:
            raise ValueError(
                f"{work.mask}: expected a mask of the tomogram's {one.shape} voxels (z, y, x), got "
                f"{tuple(mask.shape)}; set another --mask"
            )
        within = mask != 0
    if work.z_range is not None:
        first, last = work.z_range
        if not 0 <= first <= last < one.shape[0]:
            raise ValueError(f"expected --z-range within 0,{one.shape[0] - 1} of {one.path}, got {first},{last}")
        within = torch.ones(one.shape, dtype=torch.bool) if within is None else within
        within[:first] = False
        within[last + 1 :] = False
    return within


def _write_probabilities(path: Path, found: FoundPicks, picker: Picker) -> None:
    """Write the probabilities of the class, or of each class to a file that has its name."""
    for number, name in picker.description.class_names.items():
        one = path if len(picker.description.class_names) == 1 else path.with_stem(f"{path.stem}_{name}")
        write_mrc(one, found.probabilities[number - 1], voxel_size=found.voxel_size)


def _counting(
    work: PickWork, picker: Picker, record: TomogramPicks, given: float | dict[int, float] | None
) -> tuple[dict[int, float], str]:
    found = FoundPicks(
        picks=record.picks,
        control=record.control,
        in_large_blobs=record.large,
        notes=record.notes,
        probabilities=torch.zeros(0),
        voxel_size=record.voxel_size,
    )
    return chosen_thresholds(found, picker, given=given, rate=work.rate)


# What is shown and said -----------------------------------------------------------------------------------------------


def _pictures_show(work: PickWork, one: _Tomogram, thresholds: Mapping[int, float]) -> bool:
    """Whether the pictures are there and show these thresholds."""
    files = [work.folder / f"{one.name}{end}" for end in (PICTURE, SCORES)]
    kept = work.folder / f".{one.name}.thresholds"
    return all(file.is_file() for file in files) and kept.is_file() and kept.read_text() == _key(thresholds)


def _key(thresholds: Mapping[int, float]) -> str:
    return " ".join(f"{number}={value!r}" for number, value in sorted(thresholds.items()))


def _draw(
    work: PickWork,
    picker: Picker,
    one: _Tomogram,
    record: TomogramPicks,
    volume: Tensor | None,
    thresholds: Mapping[int, float],
) -> None:
    of = picker.description
    shown = read_mrc(one.path)[0].to(torch.float32) if volume is None else volume
    counted = record.picks.above(thresholds)
    picture = draw_picks(
        -shown if work.settings.contrast == "bright" else shown,
        counted,
        voxel_size=one.voxel_size,
        radii=of.radii,
        class_names=of.class_names,
        title=f"{one.name}: {len(counted)} picks",
    )
    save_figure(picture, work.folder / f"{one.name}{PICTURE}")
    volumes = {number: sphere.volume for number, sphere in spheres_of_picker(picker).items()}
    scores = draw_scores(record, thresholds=thresholds, class_names=of.class_names, volumes=volumes)
    save_figure(scores, work.folder / f"{one.name}{SCORES}")
    (work.folder / f".{one.name}.thresholds").write_text(_key(thresholds))


def _words(
    record: TomogramPicks, picker: Picker, thresholds: Mapping[int, float], origin: str, counted: Picks
) -> list[str]:
    """Say what was found in a tomogram, beside what there is in noise."""
    names = picker.description.class_names
    parts, high = [], False
    noise = 0.0
    if record.control is not None:
        counts = compare_with_control(record.picks, record.control, thresholds)
        noise = sum(count.noise for count in counts.values())
        high = any((count.rate or 0.0) > HIGH_RATE for count in counts.values())
    for number, name in names.items():
        of_noise = ""
        if record.control is not None and len(names) > 1:
            of_noise = f", {counts[number].noise:.0f} in noise"
        parts.append(
            f"{name} {int((counted.classes == number).sum())} from a score of {thresholds[number]:.2f}{of_noise}"
        )
    in_noise = f", {noise:.0f} in noise of the same spectrum" if record.control is not None else ""
    lines = [f"{record.name}: {len(counted)} picks{in_noise} ({'; '.join(parts)}; thresholds {origin})"]
    lines += [f"{record.name}: {note}" for note in record.notes]
    assert record.picks.scores is not None, "the command's picks have scores"
    least = np.array([thresholds[int(number)] for number in record.picks.classes])
    large = int((record.large & (record.picks.scores >= least)).sum())
    if large:
        lines.append(
            f"{record.name}: {large} of them lie in blobs of more than three particles, which were split; look at them "
            "in the picture, they may be no particles"
        )
    if high:
        lines.append(
            f"{record.name}: many picks are as good as those in noise; set a higher --threshold, or --rate 0.1, and "
            "look at the histogram"
        )
    if not len(counted):
        lines.append(f"{record.name}: nothing counts; set a lower --threshold, and look at the histogram of the scores")
    return lines


def _summary(work: PickWork, done: Sequence[tuple[TomogramPicks, ParticleList]], skipped: int) -> list[str]:
    lines = []
    if skipped:
        lines.append(f"{skipped} of {len(done)} tomograms were picked before, with the same settings")
    count = sum(len(particles) for _, particles in done)
    of = f" of {len(done)} tomograms" if len(done) > 1 else ""
    picture = work.folder / (f"{done[0][0].name}{PICTURE}" if len(done) == 1 else f"*{PICTURE}")
    lines.append(f"{count} picks{of} written to {work.output}; look at {picture} and *{SCORES} beside it")
    return lines
