"""Finding and reading the metadata files beside a tilt-series."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from faket_aug._arrays import IntArray
from faket_aug._checks import FileFormatError
from faket_aug.formats._text import read_text
from faket_aug.formats.angles import find_tilt_angles, read_simulation_meta, read_tilt_angles
from faket_aug.formats.aretomo import read_aln, read_aretomo_ctf
from faket_aug.formats.imod import read_defocus, read_imod, read_xf
from faket_aug.formats.relion_tilts import read_relion
from faket_aug.formats.serialem import read_serialem
from faket_aug.formats.tilt_metadata import TiltMetadata, ranks
from faket_aug.formats.warp import NOT_NEGATED, read_tomostar, read_warp_xml
from faket_aug.geometry import Angles, as_tilt_angles, half_turn

#: How the names of stacks end that IMOD has aligned, beside those in `.ali`.
ALIGNED_END = "_ali"
STACK_SUFFIXES = (".mrc", ".st", ".mrcs", ".ali")


#: Names of the stack in SHREC's folders; the first that exists is read.
SHREC_STACKS = ("projections_unbinned.mrc", "projections.mrc")


SIMULATION_META = "simulation_meta.txt"


IMOD_SUFFIXES = (".tlt", ".rawtlt", ".xf")


#: Readers of metadata by the end of the file's name; those that need more than the path are in `_read`.
READERS: dict[str, Callable[[Path], TiltMetadata]] = {
    ".xml": read_warp_xml,
    ".tomostar": read_tomostar,
    ".aln": partial(read_aln, whole=True),
    ".mdoc": read_serialem,
}


#: What a file beside a stack must hold to be the one of a tilt-series: other programs write such names, too.
SIGNS = {".xml": ("<TiltSeries",), ".star": ("_rlnTomoNominalStageTiltAngle", "_rlnTomoYTilt")}


WITH_ANGLES = (".xml", ".aln", ".tlt", ".rawtlt", ".star", ".tomostar", ".mdoc")


Metadata = TiltMetadata | str | Path


def find_stack(path: Path) -> Path:
    """Find the stack of a tilt-series: the file itself, or the one in a folder.

    Raises
    ------
    FileNotFoundError
        If there is none, or a folder holds several.
    """
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"expected a tilt-series, found none at {path}")
        return path
    for name in SHREC_STACKS:
        if (path / name).is_file():
            return path / name
    stacks = sorted(file for file in path.iterdir() if file.suffix in STACK_SUFFIXES)
    if len(stacks) != 1:
        found = ", ".join(file.name for file in stacks) or "none"
        raise FileNotFoundError(
            f"{path}: expected a folder with {' or '.join(SHREC_STACKS)} or a single stack "
            f"({', '.join(STACK_SUFFIXES)}), found {found}; give the stack's own path"
        )
    return stacks[0]


def find_metadata(
    stack: Path, tilt_angles: str | Path | Angles | None, given: Metadata | Sequence[Metadata] | None
) -> TiltMetadata:
    """Collect the metadata of the tilts: those that are given or, without any, those beside the stack.

    Parameters
    ----------
    stack
        The MRC file.
    tilt_angles, given
        As `tilt_angles` and `metadata` of `TiltSeries.read`.

    Raises
    ------
    FileNotFoundError, FileFormatError, ValueError
        As of `TiltSeries.read`.
    """
    if given is None and tilt_angles is None:
        found: TiltMetadata | None = _beside(stack)
    else:
        found = _given(stack, given)
    if tilt_angles is not None:
        is_file = isinstance(tilt_angles, str | Path)
        values = read_tilt_angles(tilt_angles) if isinstance(tilt_angles, str | Path) else as_tilt_angles(tilt_angles)
        source = str(tilt_angles) if is_file else "`tilt_angles`"
        angles = TiltMetadata(sections=np.arange(len(values)), tilt_angles=values, source=source)
        found = angles if found is None else found.with_sign_of(angles).with_angles(angles, by_hand=not is_file)
    if found is None:
        raise ValueError("expected `metadata` to name at least one file, got an empty list")
    if found.assumed_sign and NOT_NEGATED in found.source:
        warnings.warn(
            f"{found.source}; if they are of the opposite sign, set `metadata` to `read_warp_xml` or `read_tomostar` "
            "of the file with `negate=True`",
            stacklevel=4,
        )
    return _of_an_aligned_stack(found, stack, given is not None) if _is_aligned(stack) else found


def _given(stack: Path, given: Metadata | Sequence[Metadata] | None) -> TiltMetadata | None:
    parts = [] if given is None else [given] if isinstance(given, TiltMetadata | str | Path) else list(given)
    found: TiltMetadata | None = None
    for part in parts:
        read = part if isinstance(part, TiltMetadata) else _read(Path(part), stack, found)
        found = read if found is None else _together(found, read)
    return found


def _together(known: TiltMetadata, other: TiltMetadata) -> TiltMetadata:
    """Fill what is unknown, once an assumed sign of angles is settled by the other's."""
    known, other = known.with_sign_of(other), other.with_sign_of(known)
    return known.filled_from(other)


def _read(path: Path, stack: Path, known: TiltMetadata | None = None) -> TiltMetadata:
    """Read a file of metadata, chosen by the end of its name."""
    if path.name.lower().endswith("_ctf.txt"):
        return read_aretomo_ctf(path)
    if path.name == SIMULATION_META:
        return read_simulation_meta(path)
    if path.suffix == ".defocus":
        if known is None or known.tilt_angles is None:
            raise ValueError(
                f"{path}: expected tilt angles before it; set `metadata` to [a file with angles, this one]"
            )
        return read_defocus(path, tilt_angles=known.tilt_angles)
    if path.suffix == ".star":
        return _relion(path, stack)
    if path.suffix in IMOD_SUFFIXES:
        return _imod(path, aligned=_is_aligned(stack))
    if path.suffix in READERS:
        return READERS[path.suffix](path)
    raise FileFormatError(
        f"{path}: expected metadata of tilts, a file that ends in {', '.join((*READERS, *IMOD_SUFFIXES))}, .star, "
        f".defocus or _CTF.txt, or {SIMULATION_META}"
    )


def _relion(path: Path, stack: Path) -> TiltMetadata:
    try:
        return read_relion(path)
    except FileFormatError:
        raise
    except ValueError:
        # A table of several series: the one of the stack's name.
        return read_relion(path, tomogram=_bare(stack).stem)


def _imod(path: Path, *, aligned: bool = False) -> TiltMetadata:
    """Read IMOD's files of one name; transforms alone where there are no angles, and none for an aligned stack."""
    suffixes = (".tlt", ".rawtlt", ".xtilt", ".defocus", *(() if aligned and path.suffix != ".xf" else (".xf",)))
    beside = {suffix: path.with_suffix(suffix) for suffix in suffixes}
    there = {suffix: file for suffix, file in beside.items() if file.is_file() or file == path}
    tlt = path if path.suffix != ".xf" else there.get(".tlt") or there.get(".rawtlt")
    if tlt is None:
        return read_xf(path)
    return read_imod(tlt, xf=there.get(".xf"), xtilt=there.get(".xtilt"), defocus=there.get(".defocus"))


def _beside(stack: Path) -> TiltMetadata:
    """Read the files beside a stack with its name: the first goes before, the others add what it lacks."""
    bare = _bare(stack)
    if _is_aligned(stack) and bare.suffix != ".ali":
        # IMOD's newer names: TS_ali.mrc is made of TS.mrc with TS.tlt.
        bare = bare.with_name(bare.stem[: -len(ALIGNED_END)] + bare.suffix)
    files = [bare.with_suffix(suffix) for suffix in (".xml", ".aln", ".tlt", ".rawtlt", ".xf", ".star", ".tomostar")]
    files += [bare.with_name(bare.name + ".mdoc"), bare.with_suffix(".mdoc")]
    files += [bare.with_name(bare.stem + end) for end in ("_CTF.txt", "_ctf.txt")]
    there = [file for file in files if file.is_file() and _is_of_tilts(file)]
    imod = [file for file in there if file.suffix in IMOD_SUFFIXES]
    there = [file for file in there if file not in imod[1:]]
    if not any(file.suffix in WITH_ANGLES for file in there):
        others = [file.name for file in files[:2]]
        path = find_tilt_angles(bare, others=others)
        angles = read_tilt_angles(path)
        return TiltMetadata(sections=np.arange(len(angles)), tilt_angles=angles, source=str(path))
    return reduce(lambda known, file: _with(known, file, stack), there[1:], _read(there[0], stack))


def _is_of_tilts(file: Path) -> bool:
    signs = SIGNS.get(file.suffix)
    if signs is None:
        return True
    text = read_text(file, "metadata of tilts")
    return any(sign in text for sign in signs)


def _with(known: TiltMetadata, file: Path, stack: Path) -> TiltMetadata:
    try:
        return _together(known, _read(file, stack, known))
    except FileFormatError as error:
        warnings.warn(f"{file}: not used beside {known.source}: {error}", stacklevel=6)
        return known


def _is_aligned(stack: Path) -> bool:
    bare = _bare(stack)
    return bare.suffix == ".ali" or bare.stem.endswith(ALIGNED_END)


def _of_an_aligned_stack(found: TiltMetadata, stack: Path, given: bool) -> TiltMetadata:
    """Take the alignment away: the transforms that are known are those that made the stack."""
    if given and found.is_alignment and (found.matrices is not None or found.shifts is None or found.shifts.any()):
        warnings.warn(
            f"{stack}: is aligned already (IMOD's name), so the alignment of {found.source} is left out; rename the "
            "stack if it is not",
            stacklevel=4,
        )
    none = np.zeros(len(found))
    fields: dict[str, Any] = {}
    if found.astigmatism_angle is not None and found.axis_angle is not None:
        fields["astigmatism_angle"] = half_turn(found.astigmatism_angle - found.axis_angle)
    return replace(
        found,
        axis_angle=none,
        shifts=np.stack([none, none], axis=-1),
        shift_unit="pixel",
        centre="pixel",
        matrices=None,
        pixel_size=0.0,
        image_size=None,
        x_tilts=None,
        **fields,
    )


def _bare(stack: Path) -> Path:
    return stack.with_suffix("") if stack.suffix in (".gz", ".bz2") else stack


def sections_of(stack: Path, metadata: TiltMetadata, count: int) -> IntArray:
    """Find the section of a stack of `count` tilts that each row of the metadata belongs to: `(row,)`.

    Raises
    ------
    FileFormatError
        If the metadata describe more tilts, or fewer; the message names both files.
    """
    if len(metadata) == count:
        return ranks(metadata.sections)
    if metadata.section_count == count and int(metadata.sections.max()) < count:
        return metadata.sections
    raise FileFormatError(
        f"{stack}: expected one tilt angle for each of its {count} tilts, got {len(metadata)} from {metadata.source}"
    )
