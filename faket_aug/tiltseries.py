"""Measured tilt-series, read from what a microscope left behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_finite, check_ndim, check_positive
from faket_aug.formats.angles import find_tilt_angles, read_tilt_angles
from faket_aug.formats.mrc import read_mrc
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.statistics import clip_images

STACK_SUFFIXES = (".mrc", ".st", ".mrcs", ".ali")
#: Names of the stack in SHREC's folders, the first that is there.
SHREC_STACKS = ("projections_unbinned.mrc", "projections.mrc")


@dataclass(frozen=True, kw_only=True)
class TiltSeries:
    """Tilts of one specimen, ordered by angle.

    Parameters
    ----------
    tilts
        `(tilt, y, x)`, float32, in the camera's unit.
    tilt_angles
        `(tilt,)`, degrees, right-handed about +y. Any order; tilts and angles are sorted by angle.
    pixel_size
        Å; 0 where it is not known.
    name
        For messages and records.

    Raises
    ------
    ValueError
        If angles and tilts differ in number.
    """

    tilts: Tensor
    tilt_angles: npt.NDArray[np.float64]
    pixel_size: float = 0.0
    name: str = "tilt-series"

    def __post_init__(self) -> None:
        check_ndim("tilts", self.tilts, "tilt y x")
        check_positive("pixel_size", self.pixel_size, zero=True)
        check_finite(self.tilts, self.name)
        angles = as_tilt_angles(self.tilt_angles, count=self.tilts.shape[0])
        order = np.argsort(angles, kind="stable")
        if (order != np.arange(len(order))).any():
            object.__setattr__(self, "tilts", self.tilts[torch.from_numpy(order)])
        object.__setattr__(self, "tilt_angles", angles[order])
        object.__setattr__(self, "tilts", self.tilts.to(torch.float32))

    @classmethod
    def read(
        cls, path: str | Path, *, tilt_angles: str | Path | Angles | None = None, pixel_size: float | None = None
    ) -> Self:
        """Read a tilt-series.

        Parameters
        ----------
        path
            An MRC stack (`.mrc`, `.st`, `.mrcs`, `.ali`), or a folder that holds one (SHREC's `projections.mrc`, or a
            single stack).
        tilt_angles
            Angles in degrees in the stack's order, or a file of them; by default the `.tlt`, `.rawtlt`, `.mdoc`
            beside the stack, or SHREC's `alignment_simulated.txt` (whose sign is turned).
        pixel_size
            Å; by default the header's.

        Raises
        ------
        FileNotFoundError
            If the stack or its angles are missing.
        FileFormatError
            If the file is damaged, or angles and tilts differ in number; the message names both files.
        """
        stack = _find_stack(Path(path))
        tilts, header_size = read_mrc(stack)
        source: Path | None = None
        if tilt_angles is None or isinstance(tilt_angles, str | Path):
            source = find_tilt_angles(stack) if tilt_angles is None else Path(tilt_angles)
            angles = read_tilt_angles(source)
        else:
            angles = as_tilt_angles(tilt_angles)
        if len(angles) != tilts.shape[0]:
            raise FileFormatError(
                f"{stack}: expected one tilt angle for each of its {tilts.shape[0]} tilts, got {len(angles)} from "
                f"{source or '`tilt_angles`'}"
            )
        size = header_size if pixel_size is None else pixel_size
        return cls(tilts=tilts.to(torch.float32), tilt_angles=angles, pixel_size=size, name=str(stack))

    def clipped(self, quantiles: tuple[float, float]) -> Self:
        """Return the series with each tilt clipped to its own values at two quantiles (against hot pixels)."""
        return replace(self, tilts=clip_images(self.tilts, quantiles))


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
