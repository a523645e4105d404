"""Real tomograms with their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_finite, check_ndim
from faket_aug.formats.copick import read_copick_tomogram
from faket_aug.formats.mrc import read_mrc
from faket_aug.specimens.labelling import (
    choose_name,
    choose_voxel_size,
    is_copick,
    read_class_names,
    read_labels,
    with_picks,
)
from faket_aug.specimens.particles import Labelled, ParticleTable, check_companions


@dataclass(frozen=True, kw_only=True)
class LabelledTomogram(Labelled):
    """A measured tomogram, or one of another program, with its labels.

    Parameters
    ----------
    tomogram
        `(z, y, x)`, floating point, **dark** particles, as the simulated ones.
    labels
        As of `Labelled`, of the tomogram's shape. All 0 where only positions are known: then use `target="sphere"`.
    particles
        The particle table; all positions lie within the tomogram.
    halves
        Two tomograms `(z, y, x)` with the same signal and independent noise, for a dataset with `halves`.
    clean
        `(z, y, x)`, the tomogram without noise, for `"clean"` among the targets.
    flavours
        The tomogram in other flavours `(z, y, x)`, by their names, for a dataset with `flavours`.
    instances, voxel_size, class_names, not_particles, name
        As of `Labelled`.

    Raises
    ------
    ValueError, FileFormatError
        If shapes do not fit together, a value is not finite, or a particle lies outside.
    """

    tomogram: Tensor
    halves: tuple[Tensor, Tensor] | None = None
    clean: Tensor | None = None
    flavours: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "tomogram"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ndim("tomogram", self.tomogram, "z y x")
        check_companions(self.halves, self.clean, self.flavours, self.tomogram)
        more = () if self.clean is None else (self.clean,)
        for one in (self.tomogram, *(self.halves or ()), *more, *self.flavours.values()):
            check_finite(one, self.name)
        if self.labels.shape != self.tomogram.shape:
            raise FileFormatError(
                f"{self.name}: expected labels of the tomogram's shape {tuple(self.tomogram.shape)}, got "
                f"{tuple(self.labels.shape)}"
            )
        self._check_finite_positions()
        nearest = np.rint(self.particles.positions)
        outside = ((nearest < 0) | (nearest >= np.array(self.tomogram.shape))).any(axis=1)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise FileFormatError(
                f"{self.name}: expected particles within {tuple(self.tomogram.shape)} voxels (z, y, x), got "
                f"{int(outside.sum())} outside, the first in row {row + 1} at "
                f"{np.round(self.particles.positions[row], 1).tolist()}; look at voxel size, order and origin"
            )
        self._check_contents()

    @classmethod
    def read(
        cls,
        tomogram: str | Path,
        *,
        picks: str | Path | None = None,
        labels: str | Path | None = None,
        class_names: Mapping[int, str] | None = None,
        voxel_size: float | None = None,
        dark: bool = True,
        name: str | None = None,
        tomogram_type: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> Self:
        """Read a tomogram with picks, labels, or both.

        Parameters
        ----------
        tomogram
            An MRC file, or a copick project (its folder or configuration file). The picks of the project are then used
            by default.
        picks
            RELION's `.star`, DeepFinder's `.xml`, a `.csv`, SHREC's `.txt`, or a copick project.
        labels
            An MRC file of the tomogram's shape, or a copick project. Without labels all voxels are 0; then use
            `target="sphere"`.
        class_names
            Names of the class numbers. If these tomograms are mixed with simulated ones, give the names of the
            simulated ones. By default they are those of the copick project, or of a `class_conversion_table.txt`
            beside the labels or picks or in the folder above. If there are none, numbers are the names.
        voxel_size
            Voxel size in Å; by default from the file's header. It also chooses among the tomograms of a copick project.
        dark
            Whether particles are dark in the tomogram. If not, the tomogram is negated.
        name
            If the picks are of several tomograms: the name of this one in a STAR file, its index in an XML file, or the
            run of a copick project. By default it is the file's name, or the only run.
        tomogram_type, user_id, session_id
            If a copick project has several: which tomogram, and whose picks and segmentation.

        Raises
        ------
        ValueError
            If there are neither picks nor labels.
        FileNotFoundError, FileFormatError
            If a file is missing or wrong, a class has no name, a particle lies outside, or the shapes do not match. The
            message names the file.
        """
        if is_copick(tomogram) and picks is None and labels is None:
            picks = tomogram
        if picks is None and labels is None:
            raise ValueError(f"{tomogram}: expected its picks, labels or both, got none; set `picks` or `labels`")
        files, whose = (picks, labels), {"user_id": user_id, "session_id": session_id}
        names = read_class_names(files) if class_names is None else dict(class_names)
        name = choose_name((tomogram, *files), name, Path(tomogram).stem)
        if is_copick(tomogram):
            volume, size = read_copick_tomogram(tomogram, run=name, tomogram_type=tomogram_type, voxel_size=voxel_size)
        else:
            volume, header = read_mrc(tomogram)
            size = choose_voxel_size(voxel_size, header, Path(tomogram))
        numbers = torch.zeros(volume.shape, dtype=torch.uint8, device="cpu")
        if labels is not None:
            numbers = read_labels(labels, name=name, class_names=names, voxel_size=size, **whose)
        made = cls(
            tomogram=volume.float() if dark else -volume.float(),
            labels=numbers,
            particles=ParticleTable.empty(),
            voxel_size=size,
            class_names=names,
            # Of what could be wrong, the picks are the likeliest.
            name=str(tomogram) if picks is None or is_copick(picks) else f"{tomogram} with {picks}",
        )
        return with_picks(made, picks, name=name, **whose)
