"""What `faket-aug pick` does: it checks all that it can before it begins, and writes each tomogram when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import check_choice, check_count
from faket_aug._runtime.threads import intra_op_threads
from faket_aug.cli._digests import digest_of_file
from faket_aug.cli._pick_checks import PickWork, Tomogram, check_output, find_tomograms, read_thresholds
from faket_aug.cli._pick_files import (
    FORMATS,
    TomogramPicks,
    draw_picks,
    draw_scores,
    write_lists,
)
from faket_aug.figures import save_figure
from faket_aug.formats._atomic import make_writable_folder
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.formats.particles import ParticleList
from faket_aug.picking.clustering import Picks
from faket_aug.picking.control import compare_with_control
from faket_aug.picking.finding import (
    FoundPicks,
    chosen_thresholds,
    find_particles,
    spheres_of_picker,
)
from faket_aug.picking.picker import Picker, load_picker

#: Files beside each tomogram's record: sections with picks, and the histogram of scores and sizes.
PICTURE, SCORES, RECORD = ".png", "_scores.png", ".json"
#: Where so many of the picks are as many as in noise, it is said.
HIGH_RATE = 0.3


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
    check_output(work)
    threads = torch.get_num_threads() if work.threads is None else work.threads
    check_count("--threads", threads)
    picker = load_picker(work.run, device=work.device)
    given = read_thresholds(work, picker)
    tomograms = find_tomograms(work, picker)
    make_writable_folder(work.folder)
    weights = digest_of_file(picker.path)
    done: list[tuple[TomogramPicks, ParticleList]] = []
    total = 100 * len(tomograms)
    skipped = 0
    with torch.no_grad(), intra_op_threads(threads):
        for number, one in enumerate(tomograms):
            depends_on = _depends_on(work, one, weights)
            record = _kept(work, picker, one, depends_on)
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


# One tomogram ---------------------------------------------------------------------------------------------------------


def _depends_on(work: PickWork, one: Tomogram, weights: str) -> dict[str, Any]:
    """Return all that the picks of a tomogram depend on, but for thresholds."""
    others = {name: _state(path) for name, path in one.channels.items() if path != one.path}
    return {
        "weights": weights,
        "tomogram": _state(one.path),
        **({"channels": others} if others else {}),
        "voxel_size": one.voxel_size,
        "settings": asdict(work.settings),
        "mask": None if work.mask is None else digest_of_file(work.mask),
        "z_range": None if work.z_range is None else list(work.z_range),
    }


def _state(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _kept(work: PickWork, picker: Picker, one: Tomogram, depends_on: Mapping[str, Any]) -> TomogramPicks | None:
    """Read the picks of an earlier run of the same command."""
    path = work.folder / f"{one.name}{RECORD}"
    if not path.is_file() or not all(file.is_file() for file in _probability_files(work, picker).values()):
        return None
    record = TomogramPicks.read(path)
    return record if record.depends_on == depends_on and record.name == one.name else None


def _picked(
    work: PickWork, picker: Picker, one: Tomogram, depends_on: Mapping[str, Any], tell: Callable[[float], None]
) -> tuple[Tensor, TomogramPicks]:
    volume, _ = read_mrc(one.path)
    volume = volume.to(torch.float32)
    try:
        found = find_particles(
            picker,
            {name: read_mrc(path)[0].to(torch.float32) for name, path in one.channels.items()} or volume,
            voxel_size=one.voxel_size,
            settings=work.settings,
            within=_within(work, one),
            progress=tell,
        )
    except ValueError as error:
        raise ValueError(f"{one.path}: {error}") from error
    for number, file in _probability_files(work, picker).items():
        write_mrc(file, found.probabilities[number - 1], voxel_size=found.voxel_size)
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


def _within(work: PickWork, one: Tomogram) -> Tensor | None:
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


def _probability_files(work: PickWork, picker: Picker) -> dict[int, Path]:
    """Name the file of the class's probabilities, or those of the classes, which have their names; none if unwanted."""
    path, names = work.probabilities, picker.description.class_names
    if path is None:
        return {}
    return {n: path if len(names) == 1 else path.with_stem(f"{path.stem}_{name}") for n, name in names.items()}


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


def _pictures_show(work: PickWork, one: Tomogram, thresholds: Mapping[int, float]) -> bool:
    """Whether the pictures are there and show these thresholds."""
    files = [work.folder / f"{one.name}{end}" for end in (PICTURE, SCORES)]
    kept = work.folder / f".{one.name}.thresholds"
    return all(file.is_file() for file in files) and kept.is_file() and kept.read_text() == _key(thresholds)


def _key(thresholds: Mapping[int, float]) -> str:
    return " ".join(f"{number}={value!r}" for number, value in sorted(thresholds.items()))


def _draw(
    work: PickWork,
    picker: Picker,
    one: Tomogram,
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
        title=f"{one.name}: {len(counted)} picks; circles: spheres of the particles' radius, cut here",
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
        lines.append(
            f"{record.name}: nothing counts; set a lower --threshold, and look at the histogram of the scores: "
            "particles that are clearer or fainter than in the training have low ones"
        )
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
