"""Measured tilt-series, read from what a microscope and the field's programs left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_finite, check_ndim, check_positive
from faket_aug.ctf import ContrastTransfer
from faket_aug.formats.angles import find_tilt_angles, read_simulation_meta, read_tilt_angles
from faket_aug.formats.aretomo import read_aln, read_aretomo_ctf
from faket_aug.formats.imod import read_defocus, read_imod, read_xf
from faket_aug.formats.mrc import read_mrc
from faket_aug.formats.relion_tilts import read_relion
from faket_aug.formats.serialem import read_serialem
from faket_aug.formats.tilts import TiltMetadata, ranks
from faket_aug.formats.warp import read_tomostar, read_warp_xml
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.reprojection import reproject, reproject_halves
from faket_aug.resample import transform_images
from faket_aug.statistics import clip_images

STACK_SUFFIXES = (".mrc", ".st", ".mrcs", ".ali")
#: Names of the stack in SHREC's folders, the first that is there.
SHREC_STACKS = ("projections_unbinned.mrc", "projections.mrc")
SIMULATION_META = "simulation_meta.txt"
IMOD_SUFFIXES = (".tlt", ".rawtlt", ".xf")
#: Readers of metadata by the end of the file's name; those that need more than the path are in `_read`.
READERS: dict[str, Callable[[Path], TiltMetadata]] = {
    ".xml": read_warp_xml,
    ".tomostar": read_tomostar,
    ".aln": read_aln,
    ".mdoc": read_serialem,
}
#: What a file beside a stack must hold to be the one of a tilt-series: other programs write such names, too.
SIGNS = {".xml": b"<TiltSeries", ".star": b"_rlnTomoNominalStageTiltAngle"}
WITH_ANGLES = (".xml", ".aln", ".tlt", ".rawtlt", ".star", ".tomostar", ".mdoc")
#: Files whose angles differ by more than this, in degrees, after one offset for all, speak of different tilts.
ANGLE_TOLERANCE = 1.0

Metadata = TiltMetadata | str | Path
Volume = Tensor | str | Path


@dataclass(frozen=True, kw_only=True)
class TiltSeries:
    """Tilts of one specimen, ordered by angle.

    Parameters
    ----------
    tilts
        `(tilt, y, x)`, float32, in the camera's unit.
    tilt_angles
        `(tilt,)`, degrees, right-handed about +y. Any order; tilts, angles and metadata are sorted by angle.
    pixel_size
        Å; 0 where it is not known.
    name
        For messages and records.
    metadata
        What else is known of each tilt (axis, shifts, exposure, defocus ...), in the order of the tilts given.

    Raises
    ------
    ValueError
        If angles or metadata and tilts differ in number.
    """

    tilts: Tensor
    tilt_angles: npt.NDArray[np.float64]
    pixel_size: float = 0.0
    name: str = "tilt-series"
    metadata: TiltMetadata | None = None

    def __post_init__(self) -> None:
        check_ndim("tilts", self.tilts, "tilt y x")
        check_positive("pixel_size", self.pixel_size, zero=True)
        check_finite(self.tilts, self.name)
        angles = as_tilt_angles(self.tilt_angles, count=self.tilts.shape[0])
        if self.metadata is not None and len(self.metadata) != len(angles):
            raise ValueError(f"expected `metadata` of {len(angles)} tilts, got {len(self.metadata)}")
        order = np.argsort(angles, kind="stable")
        if (order != np.arange(len(order))).any():
            object.__setattr__(self, "tilts", self.tilts[torch.from_numpy(order)])
        object.__setattr__(self, "tilt_angles", angles[order])
        object.__setattr__(self, "tilts", self.tilts.to(torch.float32))
        if self.metadata is not None:
            # The series' angles are what counts; the metadata never hold others.
            sorted_ = replace(self.metadata.take(order), tilt_angles=angles[order])
            object.__setattr__(self, "metadata", sorted_)

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        tilt_angles: str | Path | Angles | None = None,
        metadata: Metadata | Sequence[Metadata] | None = None,
        pixel_size: float | None = None,
    ) -> Self:
        """Read a tilt-series.

        Parameters
        ----------
        path
            An MRC stack (`.mrc`, `.st`, `.mrcs`, `.ali`), or a folder that holds one (SHREC's `projections.mrc`, or a
            single stack).
        tilt_angles
            Angles in degrees in the stack's order, or a file of them; they go before those of the metadata. Where they
            are given, no metadata are looked for.
        metadata
            What a program left behind: Warp's `.xml` or `.tomostar`, AreTomo's `.aln` and `_CTF.txt`, IMOD's `.tlt`,
            `.xf` (what lies beside them by the same name belongs to them) and `.defocus`, RELION's `.star`, SerialEM's
            `.mdoc`; or several of them, each of which adds what those before it do not know; or metadata already read.
            By default the files beside the stack with its name, in this order, and SHREC's
            `alignment_simulated.txt` (whose sign is turned).
        pixel_size
            Å; by default the header's, or the metadata's where the header has none and they speak of images of this
            size.

        Notes
        -----
        The tilts are read as they lie in the stack; `aligned` shifts and turns them. Sections that the metadata leave
        out (dark frames) are no tilts of the series. Of an `.ali`, which is aligned already, only angles are read.

        Raises
        ------
        FileNotFoundError
            If the stack or its angles are missing.
        FileFormatError
            If a file is damaged, or metadata and tilts differ in number; the message names both files.
        """
        stack = _find_stack(Path(path))
        tilts, header_size = read_mrc(stack, stack=True)
        found = _metadata(stack, tilt_angles, metadata)
        sections, angles = _sections(stack, found, tilts.shape[0]), found.tilt_angles
        if angles is None:
            raise FileFormatError(f"{stack}: expected tilt angles, got {found.source} without; set `tilt_angles`")
        if not np.array_equal(sections, np.arange(len(tilts))):
            tilts = tilts[torch.from_numpy(sections)]
        if pixel_size is None:
            same = found.image_size == tuple(tilts.shape[-2:])
            pixel_size = header_size or (found.pixel_size if same else 0.0)
        tilts = tilts.to(torch.float32)
        return cls(tilts=tilts, tilt_angles=angles, pixel_size=pixel_size, name=str(stack), metadata=found)

    @classmethod
    def from_tomogram(
        cls,
        tomogram: Volume | Sequence[Volume],
        tilt_angles: str | Path | Angles,
        *,
        filter: str | None = None,
        halves: str = "tilts",
        dark: bool = True,
        voxel_size: float | None = None,
    ) -> Self:
        """Project a reconstructed tomogram, or a pair of half tomograms, so that its tilts serve as style.

        What does not come back: means, and a part of the noise below `1 / (depth · Δθ)` across the axis, where
        neighbours share the rest; see `faket_aug.reprojection`. `NoiseModel.fit_unpaired` needs noise that they do not
        share: give it tilts of a pair, never those of one tomogram.

        Parameters
        ----------
        tomogram
            `(z, y, x)` with the tilt axis along y, or the path of an MRC file; or a pair (even, odd) of such.
        tilt_angles
            Degrees, or a file of them (`.tlt`): of all tilts that were reconstructed, with their signs turned where the
            tomogram's z runs the other way.
        filter, halves
            As `reproject` and `reproject_halves` (for pairs).
        dark
            Whether particles are dark in the tomogram. If not, it is negated.
        voxel_size
            Å, which becomes the pixel size; by default the header's.

        Raises
        ------
        ValueError, FileFormatError
            As `reproject` and `reproject_halves`; or if the voxel size is not known.
        """
        given = [tomogram] if isinstance(tomogram, Tensor | str | Path) else tomogram
        parts = [_volume(part, voxel_size) for part in given]
        angles = read_tilt_angles(tilt_angles) if isinstance(tilt_angles, str | Path) else as_tilt_angles(tilt_angles)
        if isinstance(tomogram, Tensor | str | Path):
            tilts = reproject(parts[0][0], angles, filter=filter)
        else:
            tilts = reproject_halves([part[0] for part in parts], angles, halves=halves, filter=filter)
        return cls(tilts=tilts if dark else -tilts, tilt_angles=angles, pixel_size=parts[0][1], name=parts[0][2])

    def aligned(self, *, shape: tuple[int, int] | None = None, fill: str = "mean") -> Self:
        """Return the series shifted and turned so that the axis of rotation is y and runs through pixel `n // 2` of x.

        Angles stay. The metadata of the result say that nothing is left to do: aligning it again returns it.

        Parameters
        ----------
        shape
            (y, x) of the aligned tilts; by default the tilts' own, with its sides exchanged where the axis lies nearer
            to the image's x than to its y.
        fill
            What stands where a turned image does not reach: `"mean"`, the mean of its tilt, or `"edge"`, its nearest
            pixel. Either way everything is finite.

        Raises
        ------
        ValueError
            If the series has no metadata, or they hold no alignment, or shifts in Å while the pixel size is not known.
        """
        metadata = self.metadata
        if metadata is None:
            raise ValueError(f"{self.name}: expected metadata with an alignment, got none; set `metadata`")
        own = (int(self.tilts.shape[-2]), int(self.tilts.shape[-1]))
        matrices, shifts = metadata.places(own, pixel_size=self.pixel_size, name=self.name)
        if shape is None:
            across = np.median(np.abs(matrices[:, 0, 1])) > np.median(np.abs(matrices[:, 1, 1]))
            shape = own[::-1] if across else own
        if shape == own and np.array_equal(matrices, np.broadcast_to(np.eye(2), matrices.shape)) and not shifts.any():
            return self
        tilts = transform_images(self.tilts, matrices, shifts, shape=shape, fill=fill)
        return replace(self, tilts=tilts, metadata=metadata.after_alignment(shape, pixel_size=self.pixel_size))

    def ctf_corrected(self, *, method: str = "phase-flip", ctf: ContrastTransfer | None = None) -> Self:
        """Return the series corrected for the contrast transfer function, as before a reconstruction.

        Parameters
        ----------
        method
            `"phase-flip"` or `"wiener"`, see `ContrastTransfer.correct`.
        ctf
            By default what the metadata say of each tilt.

        Raises
        ------
        ValueError
            If neither `ctf` nor metadata tell the defocus, or the pixel size is not known.
        """
        if ctf is None:
            if self.metadata is None:
                raise ValueError(f"{self.name}: expected metadata with a defocus, got none; set `ctf`")
            ctf = ContrastTransfer.from_metadata(self.metadata)
        return replace(self, tilts=ctf.correct(self.tilts, self.pixel_size, method=method))

    def clipped(self, quantiles: tuple[float, float]) -> Self:
        """Return the series with each tilt clipped to its own values at two quantiles (against hot pixels)."""
        return replace(self, tilts=clip_images(self.tilts, quantiles))


def _volume(source: Volume, voxel_size: float | None) -> tuple[Tensor, float, str]:
    """A tomogram, its voxel size and its name."""
    name = "tomogram" if isinstance(source, Tensor) else str(source)
    volume, size = (source, 0.0) if isinstance(source, Tensor) else read_mrc(source)
    size = size if voxel_size is None else voxel_size
    if not size > 0:
        raise ValueError(f"{name}: expected a voxel size in Å, got {size:g}; set `voxel_size`")
    return volume, size, name


def _find_stack(path: Path) -> Path:
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


# --- metadata ---------------------------------------------------------------------------------------------------------


def _metadata(
    stack: Path, tilt_angles: str | Path | Angles | None, given: Metadata | Sequence[Metadata] | None
) -> TiltMetadata:
    """Collect what is known of the tilts, from what is given or, if nothing is, from what lies beside the stack."""
    if given is None and tilt_angles is None:
        return _beside(stack)
    parts = [] if given is None else [given] if isinstance(given, TiltMetadata | str | Path) else list(given)
    found: TiltMetadata | None = None
    for part in parts:
        read = part if isinstance(part, TiltMetadata) else _read(Path(part), stack, found)
        found = read if found is None else found.filled_from(read)
    if tilt_angles is None:
        if found is None:
            raise ValueError("expected `metadata` to name a file at least, got an empty list")
        return found
    is_file = isinstance(tilt_angles, str | Path)
    values = read_tilt_angles(tilt_angles) if isinstance(tilt_angles, str | Path) else as_tilt_angles(tilt_angles)
    source = str(tilt_angles) if is_file else "`tilt_angles`"
    angles = TiltMetadata(sections=np.arange(len(values)), tilt_angles=values, source=source)
    return angles if found is None else replace(found, tilt_angles=None).filled_from(angles)


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
        return _imod(path)
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


def _imod(path: Path) -> TiltMetadata:
    """Read IMOD's files of one name; transforms alone where there are no angles."""
    beside = {suffix: path.with_suffix(suffix) for suffix in (".tlt", ".rawtlt", ".xf", ".xtilt", ".defocus")}
    there = {suffix: file for suffix, file in beside.items() if file.is_file() or file == path}
    tlt = path if path.suffix != ".xf" else there.get(".tlt") or there.get(".rawtlt")
    if tlt is None:
        return read_xf(path)
    return read_imod(tlt, xf=there.get(".xf"), xtilt=there.get(".xtilt"), defocus=there.get(".defocus"))


def _beside(stack: Path) -> TiltMetadata:
    """Read what lies beside a stack with its name: the first tells, the others add what it does not know."""
    bare = _bare(stack)
    if bare.suffix == ".ali":
        return _already_aligned(bare)
    files = [bare.with_suffix(suffix) for suffix in (".xml", ".aln", ".tlt", ".rawtlt", ".xf", ".star", ".tomostar")]
    files += [bare.with_name(bare.name + ".mdoc"), bare.with_suffix(".mdoc")]
    files += [bare.with_name(bare.stem + end) for end in ("_CTF.txt", "_ctf.txt")]
    there = [file for file in files if file.is_file() and SIGNS.get(file.suffix, b"") in file.read_bytes()]
    imod = [file for file in there if file.suffix in IMOD_SUFFIXES]
    there = [file for file in there if file not in imod[1:]]
    if not any(file.suffix in WITH_ANGLES for file in there):
        others = [file.name for file in files[:2]]
        path = find_tilt_angles(bare, others=others)
        angles = read_tilt_angles(path)
        return TiltMetadata(sections=np.arange(len(angles)), tilt_angles=angles, source=str(path))
    return reduce(lambda known, file: _with(known, file, stack), there[1:], _read(there[0], stack))


def _with(known: TiltMetadata, file: Path, stack: Path) -> TiltMetadata:
    try:
        other = _read(file, stack, known)
        return known.filled_from(other) if _same_tilts(known, other) else known
    except FileFormatError as error:
        warnings.warn(f"{file}: not used beside {known.source}: {error}", stacklevel=5)
        return known


def _same_tilts(known: TiltMetadata, other: TiltMetadata) -> bool:
    """Tell whether two files speak of the same tilts; an offset of all angles is an aligned specimen's."""
    if known.tilt_angles is None or other.tilt_angles is None:
        return True
    filled = replace(known, tilt_angles=None).filled_from(other).tilt_angles
    assert filled is not None
    difference = filled - known.tilt_angles
    return bool(np.abs(difference - np.median(difference)).max() <= ANGLE_TOLERANCE)


def _already_aligned(stack: Path) -> TiltMetadata:
    """Read the angles of an `.ali`: the transforms beside it are those that made it."""
    path = find_tilt_angles(stack)
    angles = read_tilt_angles(path)
    none = np.zeros(len(angles))
    return TiltMetadata(
        sections=np.arange(len(angles)),
        tilt_angles=angles,
        axis_angle=none,
        shifts=np.stack([none, none], axis=-1),
        shift_unit="pixel",
        source=str(path),
    )


def _bare(stack: Path) -> Path:
    return stack.with_suffix("") if stack.suffix in (".gz", ".bz2") else stack


def _sections(stack: Path, metadata: TiltMetadata, count: int) -> npt.NDArray[np.int64]:
    """Find the section of the stack that each row of the metadata belongs to."""
    if len(metadata) == count:
        return ranks(metadata.sections)
    if metadata.section_count == count and int(metadata.sections.max()) < count:
        return metadata.sections
    raise FileFormatError(
        f"{stack}: expected one tilt angle for each of its {count} tilts, got {len(metadata)} from {metadata.source}"
    )
