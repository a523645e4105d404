"""What `faket-aug reconstruct` does: it checks all that it can before it begins, then aligns, corrects and writes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_count, check_positive, checked_names, same_size
from faket_aug._runtime.memory import available_memory
from faket_aug._runtime.threads import intra_op_threads
from faket_aug.cli._like import TAKEN, read_like
from faket_aug.cli._series_checks import agreed_pixel_size, check_alignment
from faket_aug.figures import save_figure, three_sections
from faket_aug.formats._json import read_json, write_json
from faket_aug.formats.mrc import read_mrc, read_mrc_shape, write_mrc
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.microscope.ctf import CORRECTIONS, ContrastTransfer
from faket_aug.microscope.flavours import FLAVOURS, LOW_PASS, WITH_CTF, Deconvolution, deconvolve, low_passed
from faket_aug.simulation.saving import flavour_file
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.tilts.discovery import Metadata, find_metadata, find_stack
from faket_aug.tilts.series import TiltSeries
from faket_aug.tomography.reconstruction import reconstruct

SUFFIXES = (".mrc", ".rec")
PICTURE, RECORD = ".png", ".json"
#: The halves: the first, third, ... tilt by angle, and the others.
HALVES = {"_even": slice(0, None, 2), "_odd": slice(1, None, 2)}
#: Bytes of a pixel of the tilts while they are read, aligned and corrected; of a binned one; of an entry of the map;
#: of a voxel while a tomogram is filtered; and of what does not depend on sizes.
_PIXEL, _BINNED, _ENTRY, _FILTERED, _FIXED = 20, 8, 16, 16, 2**28
#: Voxels by which a tomogram is padded for a filter at most, where the filter is of a usual size.
_REACH = 64
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class ReconstructionWork:
    """What is to be reconstructed.

    Parameters
    ----------
    series
        A stack, or its folder.
    output
        The tomogram.
    like
        A microscope's file, a set's folder or `simulation.json`, or the folder of a training.
    reading
        Settings of `TiltSeries.read`.
    settings
        `depth`, `filter`, `bin`, `resampling`, and `ctf_correction` or `flavours`, as far as they are given; and
        `low_pass` and `deconvolution` of the flavours.
    ctf
        In place of what the files say.
    aligned
        Whether the tilts are aligned already.
    halves
        Whether tomograms of the even and of the odd tilts are written, too.
    threads
        Intra-op threads.
    """

    series: Path
    output: Path
    like: Path | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    ctf: ContrastTransfer | None = None
    aligned: bool = False
    halves: bool = False
    threads: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done, once all checks have passed: settings of `reconstruct`, the flavours of which the first is the
    tomogram's own, the pixel size in Å, and whether the tilts are taken as they lie.
    """

    depth: int
    bin: int
    filter: str
    resampling: str
    flavours: tuple[str, ...]
    low_pass: float
    deconvolution: Deconvolution
    pixel_size: float
    aligned: bool

    @property
    def voxel_size(self) -> float:
        """Å, of the tomogram."""
        return self.pixel_size * self.bin

    @property
    def ctf_correction(self) -> str | None:
        """The correction of the tomogram's own tilts."""
        return self.flavours[0] if self.flavours[0] in CORRECTIONS else None

    @property
    def flavour(self) -> str | None:
        """The tomogram's own flavour, where it is no correction."""
        return self.flavours[0] if self.flavours[0] not in ("raw", *CORRECTIONS) else None

    def words(self) -> str:
        """Say it in a line."""
        correction = "no CTF correction" if self.ctf_correction is None else f"CTF correction {self.ctf_correction}"
        if self.flavour is not None:
            correction = self.flavour
        bin = f", bin {self.bin} ({self.resampling})" if self.bin > 1 else ""
        return f"filter {self.filter}{bin}, {correction}"


def run(work: ReconstructionWork, progress: Callable[[int, int], None]) -> list[str]:
    """Reconstruct, and write tomogram, record and picture.

    Parameters
    ----------
    work
        What is to be done.
    progress
        Is told how many steps of how many are done.

    Returns
    -------
    Lines that say what came out.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError
        If files are missing or wrong, or do not go together, or memory does not suffice; before anything is computed.
    """
    plan = make_plan(work)
    parts = {"": slice(None)} | (HALVES if work.halves else {})
    steps = 1 + len(parts) + len(plan.flavours)
    with torch.no_grad(), intra_op_threads(work.threads):
        series = _prepared(work, plan)
        progress(1, steps)
        done = 1
        for name, rows in parts.items():
            for flavour, volume in _volumes(series, plan, work.ctf, rows, plan.flavours[:1] if name else plan.flavours):
                own = flavour == plan.flavours[0]
                path = work.output.with_stem(work.output.stem + name)
                write_mrc(path if own else flavour_file(path, flavour), volume, voxel_size=plan.voxel_size)
                if own and not name:
                    size = " × ".join(str(n) for n in reversed(volume.shape))
                    title = f"{work.output.name}: {size} voxels (x, y, z) of {plan.voxel_size:g} Å; {plan.words()}"
                    save_figure(three_sections(volume, voxel_size=plan.voxel_size, title=title), _picture(work))
                del volume
                done += 1
                progress(done, steps)
    write_json(work.output.with_suffix(RECORD), _record(work, plan, series))
    progress(steps, steps)
    halves = [str(work.output.with_stem(work.output.stem + name)) for name in parts if name]
    _warn_of_old_flavours(work.output, plan)
    lines = [f"{len(series.tilts)} tilts, {size} voxels (x, y, z) of {plan.voxel_size:g} Å; {plan.words()}"]
    lines += [f"halves of every other tilt: {' and '.join(halves)}"] if halves else []
    beside = [str(flavour_file(work.output, flavour)) for flavour in plan.flavours[1:]]
    lines += [f"other flavours: {' and '.join(beside)}"] if beside else []
    return [*lines, f"written to {work.output}; look at {_picture(work)}"]


def _warn_of_old_flavours(output: Path, plan: Plan) -> None:
    """Say which flavours beside the tomogram are those of an earlier one: a picker would take them for this one's."""
    others = [flavour_file(output, name) for name in FLAVOURS if name not in plan.flavours]
    for old in (other for other in others if other.is_file()):
        warnings.warn(
            f"{old} is a flavour of an earlier reconstruction; remove it, or name its flavour in --flavours",
            stacklevel=2,
        )


def _picture(work: ReconstructionWork) -> Path:
    return work.output.with_suffix(PICTURE)


def _record(work: ReconstructionWork, plan: Plan, series: TiltSeries) -> dict[str, Any]:
    """Say how the tomogram was made: a picker needs one made as those that it learned from."""
    settings = {name: getattr(plan, name) for name in ("depth", "bin", *TAKEN, "flavour")}
    if "low-pass" in plan.flavours:
        settings["low_pass"] = plan.low_pass
    if "deconvolved" in plan.flavours:
        settings["deconvolution"] = asdict(plan.deconvolution)
    settings |= {"flavours": list(plan.flavours)} if len(plan.flavours) > 1 else {}
    angles = [round(float(angle), 4) for angle in series.tilt_angles]
    return {
        "reconstruction": settings | {"voxel_size": plan.voxel_size},
        "series": series.name,
        "metadata": None if series.metadata is None else series.metadata.source,
        "aligned_before": plan.aligned,
        "tilt_angles": angles,
    }


def _prepared(work: ReconstructionWork, plan: Plan) -> TiltSeries:
    """Read, align and correct the series; each stack of tilts is let go when the next one is there.

    It is corrected where no other flavour needs the tilts without a correction.
    """
    series = TiltSeries.read(work.series, **{**work.reading, "pixel_size": plan.pixel_size})
    if not plan.aligned:
        series = series.aligned()
    # Which pixels were measured does not matter any more.
    series = replace(series, measured=None)
    if plan.ctf_correction is not None and len(plan.flavours) == 1:
        series = series.ctf_corrected(method=plan.ctf_correction, ctf=work.ctf)
    return series


def _volumes(
    series: TiltSeries, plan: Plan, ctf: ContrastTransfer | None, rows: slice, flavours: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """Reconstruct some tilts in several flavours; those of tilts without a correction are made of one tomogram."""

    def made(tilts: TiltSeries) -> Tensor:
        return reconstruct(
            tilts.tilts[rows],
            tilts.tilt_angles[rows],
            depth=plan.depth,
            filter=plan.filter,
            bin=plan.bin,
            resampling=plan.resampling,
        )

    raw = None
    for flavour in flavours:
        if flavour in CORRECTIONS:
            done = len(plan.flavours) == 1
            yield flavour, made(series if done else series.ctf_corrected(method=flavour, ctf=ctf))
            continue
        raw = made(series) if raw is None else raw
        if flavour == "low-pass":
            yield flavour, low_passed(raw, plan.voxel_size, plan.low_pass)
        elif flavour == "deconvolved":
            known = ContrastTransfer.from_metadata(_metadata(series)) if ctf is None else ctf
            yield flavour, deconvolve(raw, plan.voxel_size, known, plan.deconvolution)
        else:
            yield flavour, raw


def _metadata(series: TiltSeries) -> TiltMetadata:
    assert series.metadata is not None, "checked with the plan"
    return series.metadata


# Checks, before anything is computed ----------------------------------------------------------------------------------


def make_plan(work: ReconstructionWork) -> Plan:
    """Check all that can be checked from headers and metadata, and put the settings together.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError
        If something is missing or does not go together; the message says which option to set.
    """
    check_count("threads", work.threads)
    output = work.output
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"expected --output to end in {' or '.join(SUFFIXES)}, got {output}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"expected a folder for the tomogram, found none at {output.parent}; set --output")
    _check_record(output.with_suffix(RECORD))
    stack = find_stack(work.series)
    if output.exists() and output.samefile(stack):
        raise ValueError(f"expected --output beside the tilt-series, got the tilt-series itself, {output}; rename it")
    for name in HALVES if work.halves else ():
        _check_other(output.with_stem(output.stem + name), stack)
    shape = read_mrc_shape(stack)
    _, header = read_mrc(stack, rows=slice(0, 1), stack=True)
    with warnings.catch_warnings():
        # They come once more when the series is read.
        warnings.simplefilter("ignore")
        found = find_metadata(stack, work.reading.get("tilt_angles"), _files(work.reading.get("metadata")))
    if found.tilt_angles is None:
        raise FileFormatError(f"{stack}: expected tilt angles, got {found.source} without; set --tilt-angles")
    aligned = check_alignment(stack, found, aligned=work.aligned, advice="set --metadata to one")
    pixel_size = _pixel_size(work, stack, shape[1:], header, found)
    plan = _put_together(work, pixel_size, aligned=aligned)
    for flavour in plan.flavours[1:]:
        _check_other(flavour_file(output, flavour), stack)
    with_ctf = [flavour for flavour in plan.flavours if flavour in WITH_CTF]
    if not with_ctf and work.ctf is not None:
        warnings.warn("--ctf is not used without a correction; set --ctf-correction phase-flip or wiener", stacklevel=2)
    if with_ctf and work.ctf is None:
        known = found.defocus_um is not None and bool(np.isfinite(found.defocus_um).any())
        if not known:
            option = "--ctf-correction" if "ctf_correction" in work.settings else "--flavours"
            raise ValueError(
                f"{found.source}: expected the defocus of each tilt for {option} {with_ctf[0]}, got "
                f"none; set --ctf defocus=..., --metadata to a file that holds it, or {option} "
                f"{'raw' if option == '--flavours' else 'none'}"
            )
    if work.halves and len(found) < 2 * len(HALVES):
        raise ValueError(f"{stack}: expected four tilts or more for --halves, got {len(found)}; leave it out")
    _check_memory(stack, (len(found), *shape[1:]), plan)
    return plan


def _check_other(path: Path, stack: Path) -> None:
    """Refuse to write beside the tomogram over the tilt-series."""
    if path.exists() and path.samefile(stack):
        raise ValueError(
            f"expected another file than the tilt-series for what is written beside the tomogram, got {path}; set "
            "another --output"
        )


def _check_record(path: Path) -> None:
    """Refuse to overwrite a file beside the tomogram that is not the record of one, as a `microscope.json`."""
    if path.is_file() and not {"reconstruction", "tilt_angles"} <= set(read_json(path, what="a record")):
        raise ValueError(f"expected no other file than a tomogram's record at {path}, got one; set another --output")


def _files(given: Any) -> Sequence[Metadata] | None:
    return list(given) if given else None


def _pixel_size(
    work: ReconstructionWork, stack: Path, shape: Sequence[int], header: float, found: TiltMetadata
) -> float:
    """Choose the pixel size, Å: the given one, the header's, or the metadata's; those of both have to agree."""
    given = work.reading.get("pixel_size")
    if given is not None:
        return float(given)
    size = agreed_pixel_size(stack, shape, header, found, advice="set --pixel-size")
    if not size > 0:
        raise FileFormatError(f"{stack}: expected a pixel size in the header, got 0; set --pixel-size in Å")
    return size


def _put_together(work: ReconstructionWork, pixel_size: float, *, aligned: bool) -> Plan:
    defaults: dict[str, Any] = {name: getattr(FakETSimulator, name) for name in TAKEN}
    defaults |= {"low_pass": LOW_PASS, "deconvolution": Deconvolution()}
    like = {} if work.like is None else read_like(work.like)
    given = dict(work.settings)
    if "flavours" in given and given.get("ctf_correction") is not None:
        raise ValueError("expected --flavours or --ctf-correction, got both; name the correction among --flavours")
    if "ctf_correction" in given:
        like.pop("flavours", None)
    wanted = like.pop("voxel_size", None)
    known: dict[str, Any] = defaults | like | given
    correction = known.pop("ctf_correction")
    known["flavours"] = checked_names("--flavours", known.get("flavours") or (correction or "raw",), FLAVOURS)
    check_positive("--low-pass", known["low_pass"])
    if known.get("depth") is None:
        raise ValueError(
            "expected a depth of the tomogram, got none; set --depth in voxels (twice the specimen's thickness is "
            "ample), or --like to a simulated set"
        )
    if "bin" not in given:
        known["bin"] = 1 if wanted is None else _binning(pixel_size, wanted, work)
    elif wanted is not None and not same_size(known["bin"] * pixel_size, wanted):
        warnings.warn(
            f"the tomogram has voxels of {known['bin'] * pixel_size:g} Å, those of {work.like} have {wanted:g} Å; "
            "leave --bin away for the same",
            stacklevel=2,
        )
    check_count("depth", known["depth"])
    check_count("bin", known["bin"])
    return Plan(pixel_size=pixel_size, aligned=aligned, **known)


def _binning(pixel_size: float, wanted: float, work: ReconstructionWork) -> int:
    bin = max(1, round(wanted / pixel_size))
    if not same_size(bin * pixel_size, wanted):
        raise ValueError(
            f"{work.series}: expected pixels of which a whole number makes the {wanted:g} Å of {work.like}, got "
            f"{pixel_size:g} Å; resample the series, correct it by --pixel-size, or choose another by --bin"
        )
    return bin


def _check_memory(stack: Path, tilts: tuple[int, int, int], plan: Plan) -> None:
    count, height, width = tilts
    pixels, columns = count * height * width, width // plan.bin
    voxels = plan.depth * (height // plan.bin) * columns
    needed = _PIXEL * pixels + _BINNED * pixels // plan.bin**2 + 4 * voxels + _ENTRY * plan.depth * columns * count
    needed += _FIXED
    if len(plan.flavours) > 1:
        needed += 4 * pixels + 4 * voxels
    if set(plan.flavours) & {"low-pass", "deconvolved"}:
        sides = (plan.depth, height // plan.bin, columns)
        needed += _FILTERED * math.prod(n + 2 * min(_REACH, n) for n in sides)
    free = available_memory()
    if needed > free:
        raise ValueError(
            f"{stack}: expected a tomogram for which {free / _GIB:.1f} GiB of free memory suffice, got one of "
            f"{plan.depth} × {height // plan.bin} × {columns} voxels (z, y, x) from {count} tilts, which takes about "
            f"{needed / _GIB:.1f} GiB; set a larger --bin, or a smaller --depth"
        )
