"""Measured tilt-series, read from files of the microscope and of the field's programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError, check_finite, check_ndim, check_positive, check_same_size
from faket_aug._masks import as_mask, filled
from faket_aug.formats.angles import read_tilt_angles
from faket_aug.formats.mrc import read_mrc
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.statistics import clip_images
from faket_aug.tilts.borders import measured_pixels
from faket_aug.tilts.discovery import Metadata, find_metadata, find_stack, sections_of
from faket_aug.tomography.reprojection import reproject, reproject_halves
from faket_aug.tomography.resample import covered_pixels, transform_images

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
        Axis, shifts, exposure, defocus and more of each tilt, in the order of the given tilts.
    measured
        `(tilt, y, x)`, bool, in the order of the given tilts: which pixels were measured; None (also for a mask that is
        true everywhere) if all were. Nothing that is measured of the tilts counts the others: neither means, standard
        deviations and ranges nor spectra, Gram matrices and fits. Reconstructions take the tilts as they are.

    Raises
    ------
    ValueError
        If there are more or fewer angles, or metadata, than tilts; or if `measured` is not boolean, or of another shape
        than the tilts.
    """

    tilts: Tensor
    tilt_angles: FloatArray
    pixel_size: float = 0.0
    name: str = "tilt-series"
    metadata: TiltMetadata | None = None
    measured: Tensor | None = None

    def __post_init__(self) -> None:
        check_ndim("tilts", self.tilts, "tilt y x")
        check_positive("pixel_size", self.pixel_size, zero=True)
        check_finite(self.tilts, self.name)
        angles = as_tilt_angles(self.tilt_angles, count=self.tilts.shape[0])
        if self.metadata is not None and len(self.metadata) != len(angles):
            raise ValueError(f"expected `metadata` of {len(angles)} tilts, got {len(self.metadata)}")
        object.__setattr__(self, "measured", as_mask(self.measured, self.tilts, f"{self.name}: measured"))
        order = np.argsort(angles, kind="stable")
        if (order != np.arange(len(order))).any():
            object.__setattr__(self, "tilts", self.tilts[torch.from_numpy(order)])
            if self.measured is not None:
                object.__setattr__(self, "measured", self.measured[torch.from_numpy(order)])
        object.__setattr__(self, "tilt_angles", angles[order])
        object.__setattr__(self, "tilts", self.tilts.to(torch.float32))
        if self.metadata is not None:
            # The series' angles are what counts; the metadata never hold others.
            sorted_ = replace(self.metadata.take(order), tilt_angles=angles[order])
            object.__setattr__(self, "metadata", sorted_)

    def __repr__(self) -> str:
        """Say in a line what it is: name, size, angles, and what is known of it."""
        size = " × ".join(str(n) for n in self.tilts.shape[:0:-1])
        angles = f"{self.tilt_angles.min():g}° to {self.tilt_angles.max():g}°" if len(self.tilt_angles) else "no angles"
        pixels = f" of {self.pixel_size:g} Å" if self.pixel_size > 0 else ""
        source = "" if self.metadata is None else f", metadata of {self.metadata.source}"
        return f"TiltSeries({self.name}: {len(self.tilt_angles)} tilts of {size} pixels{pixels}, {angles}{source})"

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
            Angles in degrees, in the stack's order, or a file of them. They are used instead of the metadata's angles,
            and then no other metadata are searched for.
        metadata
            A file of metadata: Warp's `.xml` or `.tomostar`, AreTomo's `.aln` or `_CTF.txt`, IMOD's `.tlt` or `.xf`
            (other IMOD files of the same name are read with it) or `.defocus`, RELION's `.star`, SerialEM's `.mdoc`.
            Or several of them, where each adds what the ones before it lack; or metadata that were read before. Tilts
            of two files belong together by section where their angles agree, and by angle where they do not. By default
            the files beside the stack with its name, in this order, and SHREC's `alignment_simulated.txt` (whose sign
            is reversed).
        pixel_size
            Å; by default the header's. Where the header has none, the metadata's, if they describe images of this size.

        Notes
        -----
        The tilts are read as they are in the stack; `aligned` shifts and rotates them. Sections that the metadata leave
        out (dark frames) are left out of the series, too. Borders that a program has filled, and zeros among values far
        from 0, are not `measured`; see `faket_aug.tilts.borders` for what counts as such. An `.ali` (or
        `_ali.mrc`) is aligned already: an alignment that is known is left out. Where an `.mdoc` says that the stack was
        binned, shifts in an `.xf` count unbinned pixels.

        Warns
        -----
        UserWarning
            If a file beside the stack cannot be used, an alignment is left out, or only the order of Warp's angles
            tells their sign.

        Raises
        ------
        FileNotFoundError
            If the stack or its angles are missing.
        FileFormatError
            If a file is damaged, or the metadata describe other tilts, more or fewer than there are; the message names
            both files.
        """
        stack = find_stack(Path(path))
        tilts, header_size = read_mrc(stack, stack=True)
        found = find_metadata(stack, tilt_angles, metadata)
        sections, angles = sections_of(stack, found, tilts.shape[0]), found.tilt_angles
        if angles is None:
            raise FileFormatError(f"{stack}: expected tilt angles, got {found.source} without; set `tilt_angles`")
        if not np.array_equal(sections, np.arange(len(tilts))):
            tilts = tilts[torch.from_numpy(sections)]
        if pixel_size is None:
            same = found.image_size == tuple(tilts.shape[-2:])
            pixel_size = header_size or (found.pixel_size if same else 0.0)
        tilts = tilts.to(torch.float32)
        return cls(
            tilts=tilts,
            tilt_angles=angles,
            pixel_size=pixel_size,
            name=str(stack),
            metadata=found,
            measured=measured_pixels(tilts),
        )

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

        The projections lack the means of the measured tilts. They also lack a part of the noise at frequencies below
        `1 / (depth · Δθ)` across the axis, and neighbouring tilts share the rest of it; see
        `faket_aug.tomography.reprojection`. `NoiseModel.fit_unpaired` needs noise that neighbours do not share: give it
        the tilts of a pair of half tomograms, never those of a single tomogram.

        Parameters
        ----------
        tomogram
            `(z, y, x)` with the tilt axis along y, or the path of an MRC file; or a pair (even, odd) of such.
        tilt_angles
            Angles of all tilts that were reconstructed, degrees, or a file of them (`.tlt`). Reverse their signs where
            the tomogram's z axis points the other way.
        filter, halves
            As for `reproject` and, for pairs, `reproject_halves`.
        dark
            Whether particles are dark in the tomogram. If not, it is negated.
        voxel_size
            Å, which becomes the pixel size; by default the header's.

        Raises
        ------
        ValueError, FileFormatError
            As from `reproject` and `reproject_halves`; or if the voxel size is not known, or that of two halves differs
            by more than 2 %.
        """
        given = [tomogram] if isinstance(tomogram, Tensor | str | Path) else tomogram
        parts = [_volume(part, voxel_size) for part in given]
        for _, size, name in parts[1:]:
            check_same_size(name, size, parts[0][2], parts[0][1], advice="give the two halves of one tomogram")
        angles = read_tilt_angles(tilt_angles) if isinstance(tilt_angles, str | Path) else as_tilt_angles(tilt_angles)
        if isinstance(tomogram, Tensor | str | Path):
            tilts = reproject(parts[0][0], angles, filter=filter)
        else:
            tilts = reproject_halves([part[0] for part in parts], angles, halves=halves, filter=filter)
        return cls(tilts=tilts if dark else -tilts, tilt_angles=angles, pixel_size=parts[0][1], name=parts[0][2])

    @property
    def filled_tilts(self) -> Tensor:
        """The tilts with what was not measured filled: a step would ring where images are turned.

        Of an aligned series too much is filled: its mask leaves out all that the ringing of a step could reach.
        """
        return self.tilts if self.measured is None else filled(self.tilts, self.measured)[0]

    def aligned(self, *, shape: tuple[int, int] | None = None, fill: str = "mean") -> Self:
        """Return the series shifted and rotated so that its axis of rotation is y, through pixel `n // 2` of x.

        The angles do not change. Pixels from outside the image are not `measured`. The metadata of the result describe
        an aligned series: aligning it again returns it.

        Parameters
        ----------
        shape
            `(y, x)` of the aligned tilts. By default the shape of the tilts, with x and y exchanged where the axis lies
            nearer to the image's x than to its y.
        fill
            Values of the corners that the rotated image does not cover: `"mean"`, the mean of its tilt, or `"edge"`,
            its nearest pixel. Both are finite.

        Raises
        ------
        ValueError
            If the series has no metadata, or they hold no alignment, or their shifts are in Å and the pixel size is not
            known.
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
        tilts = transform_images(self.filled_tilts, matrices, shifts, shape=shape, fill=fill)
        measured = covered_pixels(own, matrices, shifts, shape=shape, measured=self.measured)
        after = metadata.after_alignment(shape, pixel_size=self.pixel_size)
        return replace(self, tilts=tilts, metadata=after, measured=measured)

    def ctf_corrected(self, *, method: str = "phase-flip", ctf: ContrastTransfer | None = None) -> Self:
        """Return the series corrected for the contrast transfer function, as before a reconstruction.

        Parameters
        ----------
        method
            `"phase-flip"` or `"wiener"`, see `ContrastTransfer.correct`.
        ctf
            The contrast transfer function; by default that of the metadata.

        Raises
        ------
        ValueError
            If neither `ctf` nor the metadata hold the defocus, or the pixel size is not known.
        """
        if ctf is None:
            if self.metadata is None:
                raise ValueError(f"{self.name}: expected metadata with a defocus, got none; set `ctf`")
            ctf = ContrastTransfer.from_metadata(self.metadata)
        return replace(self, tilts=ctf.correct(self.tilts, self.pixel_size, method=method))

    def clipped(self, quantiles: tuple[float, float]) -> Self:
        """Return the series with each tilt clipped to its own values at two quantiles (against hot pixels)."""
        return replace(self, tilts=clip_images(self.tilts, quantiles, self.measured))


def _volume(source: Volume, voxel_size: float | None) -> tuple[Tensor, float, str]:
    """Read a tomogram, its voxel size and its name."""
    name = "tomogram" if isinstance(source, Tensor) else str(source)
    volume, size = (source, 0.0) if isinstance(source, Tensor) else read_mrc(source)
    size = size if voxel_size is None else voxel_size
    if not size > 0:
        raise ValueError(f"{name}: expected a voxel size in Å, got {size:g}; set `voxel_size`")
    return volume, size, name
