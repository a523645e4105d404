"""Template matching: where a tomogram looks like a known particle, by locally normalised cross-correlation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_count, check_ndim, check_positive, same_size
from faket_aug._runtime.numerics import own_precision
from faket_aug._runtime.threads import DEVICE, THREADS, intra_op_threads, usable_device
from faket_aug.generation.templates import ParticleTemplate
from faket_aug.geometry import Angles, as_tilt_angles, even_rotations
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.picking.correlation import RotatedTemplate, binned, correlated, template_transfer
from faket_aug.picking.peaks import refined

#: Å, and how many rotations are tried: a step of 20°, which turns the rim of a ribosome by a third of its radius.
LOW_PASS, ROTATIONS = 40.0, 500

Rotations = int | Sequence[Sequence[Sequence[float]]] | FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchPeaks:
    """Places that look most like the template, the best first.

    Parameters
    ----------
    positions
        `(n, 3)`, (z, y, x) in voxels of the tomogram.
    scores
        `(n,)`, locally normalised correlation, from −1 to 1.
    rotations
        `(n, 3, 3)`, matrices on column vectors `(x, y, z)` that rotate the template into the tomogram.
    """

    positions: FloatArray
    scores: FloatArray
    rotations: FloatArray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, kw_only=True, eq=False)
class TemplateMatch:
    """How well a template fits at each voxel of a binned tomogram.

    Parameters
    ----------
    scores
        `(z, y, x)`, float32: the locally normalised correlation of the best rotation.
    indices
        `(z, y, x)`, int32: which of `rotations` fits best.
    rotations
        `(n, 3, 3)`, all rotations that were tried.
    bin
        Voxels of the tomogram for each voxel of the scores: voxel i of the scores lies at voxel `i · bin`.
    radius
        Of the mask, in voxels of the tomogram.
    """

    scores: Tensor
    indices: Tensor
    rotations: FloatArray
    bin: int
    radius: float

    def peaks(self, count: int, *, distance: float | None = None, margin: float | None = None) -> MatchPeaks:
        """Find the places that fit best.

        Parameters
        ----------
        count
            How many at most.
        distance
            Two places are not nearer than this, voxels of the tomogram; by default the radius of the mask.
        margin
            Places are at least this far from the faces, voxels of the tomogram; by default the radius of the mask.

        Returns
        -------
        The best first; fewer than `count` if there are no more.
        """
        check_count("count", count)
        distance, margin = (self.radius if one is None else one for one in (distance, margin))
        check_positive("distance", distance)
        check_positive("margin", margin, zero=True)
        reach = max(1, math.floor(distance / self.bin / math.sqrt(3)))
        highest = functional.max_pool3d(self.scores[None], 2 * reach + 1, stride=1, padding=reach)[0]
        found = torch.nonzero((self.scores == highest) & (self.scores > 0)).cpu().numpy()
        limits = np.array(self.scores.shape) - 1 - margin / self.bin
        found = found[((found >= margin / self.bin) & (found <= limits)).all(axis=1)]
        values = self.scores.cpu().numpy()
        scores = values[tuple(found.T)]
        found = found[np.argsort(-scores, kind="stable")]
        chosen = found[_apart(found * float(self.bin), distance, count)]
        indices = self.indices.cpu().numpy()[tuple(chosen.T)]
        return MatchPeaks(
            positions=refined(values, chosen) * self.bin,
            scores=values[tuple(chosen.T)].astype(np.float64),
            rotations=self.rotations[indices],
        )


def match_template(
    tomogram: Tensor,
    template: ParticleTemplate,
    *,
    voxel_size: float,
    tilt_angles: Angles,
    ctf: ContrastTransfer | None = None,
    phase_flipped: bool = False,
    rotations: Rotations = ROTATIONS,
    low_pass: float = LOW_PASS,
    radius: float | None = None,
    bin: int | None = None,
    dark: bool = True,
    device: str = DEVICE,
    threads: int = THREADS,
    progress: Callable[[int, int], None] | None = None,
) -> TemplateMatch:
    """Match a template: correlate it in many rotations with each place of a tomogram.

    The rotated template is filtered as the tomogram was: by the missing wedge, the contrast transfer function and the
    low-pass. Correlations are normalised by mean and standard deviation of the tomogram within a sphere.

    Parameters
    ----------
    tomogram
        `(z, y, x)`; the tilt axis is y.
    template
        The particle, with voxels of the tomogram's size.
    voxel_size
        Å, of the tomogram.
    tilt_angles
        `(tilt,)`, degrees; what lies beyond the first and the last was not measured.
    ctf
        The contrast transfer function; where tilts differ, their mean defocus is used. By default none.
    phase_flipped
        Whether the tilts were corrected for the function's sign before the reconstruction.
    rotations
        How many, which `geometry.even_rotations` spreads; or matrices `(n, 3, 3)` on column vectors `(x, y, z)`.
    low_pass
        Å. The Gaussian low-pass of tomogram and template is 1/e at `1 / low_pass`.
    radius
        Å, of the spherical mask; by default the sphere that holds the particle in any rotation.
    bin
        The tomogram is binned by this before; by default so that a voxel is half of `low_pass`.
    dark
        Whether particles are dark in the tomogram.
    device, threads
        Where it runs, and with how many intra-op threads.
    progress
        Is told how many of the rotations (of all blocks) are done.

    Returns
    -------
    Scores and rotations of the binned tomogram; `TemplateMatch.peaks` finds the best places.

    Raises
    ------
    ValueError
        If voxel sizes differ, or a setting is not possible.

    References
    ----------
    Roseman, Ultramicroscopy 94 (2003), 225-236, for the local normalisation.
    """
    check_ndim("tomogram", tomogram, "z y x")
    check_positive("voxel_size", voxel_size)
    check_positive("low_pass", low_pass)
    if not same_size(template.voxel_size, voxel_size):
        raise ValueError(
            f"{template.name}: expected voxels of {voxel_size:g} Å, as the tomogram's, got {template.voxel_size:g} Å; "
            "read the template with this `voxel_size`"
        )
    bin = max(1, round(low_pass / 2 / voxel_size)) if bin is None else bin
    check_count("bin", bin)
    radius = template.radius if radius is None else radius
    check_positive("radius", radius)
    matrices = _matrices(rotations)
    place, tell = usable_device(device), progress or (lambda done, total: None)
    transfer = template_transfer(as_tilt_angles(tilt_angles), voxel_size, low_pass, ctf, phase_flipped, radius)
    with torch.no_grad(), own_precision(), intra_op_threads(threads):
        volume = binned(tomogram.to(place, torch.float32), bin, voxel_size, low_pass)
        turned = RotatedTemplate(template, bin, radius / voxel_size / bin, transfer, -1.0 if dark else 1.0, place)
        scores, indices = correlated(volume, turned, matrices, tell)
    return TemplateMatch(scores=scores, indices=indices, rotations=matrices, bin=bin, radius=radius / voxel_size)


def _matrices(rotations: Rotations) -> FloatArray:
    if isinstance(rotations, int):
        check_count("rotations", rotations)
        return even_rotations(rotations)
    matrices: FloatArray = np.asarray(rotations, dtype=np.float64)
    if matrices.ndim != 3 or matrices.shape[1:] != (3, 3) or not len(matrices):
        raise ValueError(f"expected `rotations` as a count or matrices (n, 3, 3), got shape {matrices.shape}")
    return matrices


# Peaks ----------------------------------------------------------------------------------------------------------------


def _apart(positions: FloatArray, distance: float, count: int) -> list[int]:
    """Take positions in their order, unless one that was taken is nearer than `distance`."""
    if not len(positions):
        return []
    tree, free, chosen = cKDTree(positions), np.ones(len(positions), dtype=bool), []
    for number, position in enumerate(positions):
        if free[number]:
            chosen.append(number)
            free[tree.query_ball_point(position, distance * (1 - 1e-9))] = False
        if len(chosen) == count:
            break
    return chosen
