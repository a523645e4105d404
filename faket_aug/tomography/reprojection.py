"""Tilts out of a reconstructed tomogram: what a reconstruction did to them, and what of it can be undone.

A tomogram of depth D is a sum of filtered tilts, each smeared along its beam. Projected along the beam of one of them,
it returns this tilt times its filter, and of each other tilt what their planes share: at the specimen's frequency K
across the axis a share of `sinc(D K (tan θ - tan θ'))`. So there are two regions. Above Crowther's frequency, about
`1 / (D Δθ)` for steps of Δθ in radians, a tilt returns alone and filtered: the ramp stays in it. Below, neighbours
return with it. The ramp makes their sum the signal again, but there every tilt has its neighbours' noise.

Where the filter is known, so is the map from tilts to tomogram: it is `reconstruct`. `reproject` inverts it by least
squares, which undoes filter, overlap, interpolation and sides at once. Signal comes back at all frequencies, since the
tilts of a specimen within the depth do not contradict each other; noise comes back above Crowther's frequency. Below, a
tomogram holds fewer numbers than its tilts had: of their noise that part comes back which a slab of depth D could have
made, a share of `D K Δθ` of its power, and neighbouring tilts have it in common. Tomograms of one half of the data each
share no noise: tilts taken from one and the other in turn have neighbours with independent noise.

References
----------
Crowther, DeRosier, Klug, Proc. R. Soc. Lond. A 317 (1970) 319; Hestenes, Stiefel, J. Res. Natl. Bur. Stand. 49 (1952)
409.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import check_choice, check_count, check_ndim, check_same_shape
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.tomography.filters import FILTERS, filter_projections
from faket_aug.tomography.projection import project
from faket_aug.tomography.reconstruction import voxel_map

#: How two tomograms share their data: tilt by tilt in turn, or half of the frames of every tilt.
HALVES = ("tilts", "frames")
#: Steps of conjugate gradients: signal is whole after 20 in a depth of 64 voxels, after 40 in 160.
ITERATIONS = 40
#: Rays that cross the tomogram for less than this share of their tilt's longest are taken as not seen.
_SEEN = 0.5
#: Rows of y that are smeared at a time, so that memory holds no second tomogram.
_ROWS = 32


def reproject(
    tomogram: Tensor, tilt_angles: Angles, *, filter: str | None = None, iterations: int = ITERATIONS
) -> Tensor:
    """Project a tomogram at the tilts that it was reconstructed from, and undo what the reconstruction did to them.

    With a `filter`, the result is the least-squares solution of `reconstruct(tilts) = tomogram`, by conjugate gradients
    that begin with nothing: what the tomogram does not hold is not made up. The tilts have no means, as tomograms have
    none. Columns whose rays leave the tomogram by its sides (half of them at 60°) are the reflection of the others.

    Parameters
    ----------
    tomogram
        `(z, y, x)`; its mean is subtracted first.
    tilt_angles
        `(tilt,)`, degrees, right-handed about +y: those of the tilts that it was reconstructed from.
    filter
        That of the reconstruction, as `reconstruct` names it. None where it is not known, or for an algebraic
        reconstruction (SIRT, SART), whose projections are the tilts already: the projections are left as they are.
    iterations
        Steps of the solution. Where the filter is weakest, more give more.

    Returns
    -------
    `(tilt, y, x)`, float32, in the unit of the reconstructed tilts (with None: summed voxels).

    Raises
    ------
    ValueError
        For an unknown filter, a tomogram of other than three axes, or a constant one.
    """
    check_ndim("tomogram", tomogram, "z y x")
    check_count("iterations", iterations)
    if filter is not None:
        check_choice("filter", filter, FILTERS)
    angles = as_tilt_angles(tilt_angles)
    volume = tomogram.to(torch.float32)
    volume = volume - volume.mean(dtype=torch.float64).to(torch.float32)
    if float(volume.abs().max()) <= 1e-6 * float(tomogram.abs().max()):
        raise ValueError("expected a tomogram that varies, got a constant one")
    seen = _seen(volume, angles)
    if filter is None:
        tilts = project(volume, angles) / seen.clamp(min=_SEEN)[:, None]
    else:
        tilts = _solve(volume, angles, filter, iterations)
    return torch.stack([_reflected(tilt, row >= _SEEN) for tilt, row in zip(tilts, seen, strict=True)])


def reproject_halves(
    pair: Sequence[Tensor], tilt_angles: Angles, *, halves: str = "tilts", filter: str | None = None
) -> Tensor:
    """Project two tomograms of one half of the data each, so that neighbouring tilts share no noise.

    Parameters
    ----------
    pair
        Two tomograms `(z, y, x)`.
    tilt_angles
        `(tilt,)`, degrees, of both halves together.
    halves
        `"tilts"`: one was reconstructed from the first, third ... of these tilts, the other from the rest. `"frames"`:
        both were from all tilts, each from half of their frames (AreTomo's `_EVN` and `_ODD`); tilts are taken from one
        and the other in turn, by angle, and their noise is that of half the exposure.
    filter
        As for `reproject`.

    Returns
    -------
    `(tilt, y, x)`, in the order of the angles.

    Raises
    ------
    ValueError
        If they are not two of one shape, or as for `reproject`.
    """
    if len(pair) != 2:
        raise ValueError(f"expected a pair of half tomograms, got {len(pair)}")
    check_choice("halves", halves, HALVES)
    check_same_shape("odd", pair[1].shape, "even", pair[0].shape)
    angles = as_tilt_angles(tilt_angles)
    if len(angles) < 2:
        raise ValueError(f"expected two tilts or more in a pair of half tomograms, got {len(angles)}")
    result = torch.empty(len(angles), *pair[0].shape[1:], device=pair[0].device)
    for half, volume in enumerate(pair):
        if halves == "tilts":
            result[half::2] = reproject(volume, angles[half::2], filter=filter)
        else:
            own = torch.from_numpy(np.argsort(angles, kind="stable")[half::2]).to(volume.device)
            result[own] = reproject(volume, angles, filter=filter)[own]
    return result


def _solve(volume: Tensor, angles: npt.NDArray[np.float64], filter: str, iterations: int) -> Tensor:
    """Tilts whose reconstruction comes nearest to the volume: conjugate gradients on the normal equations."""
    depth, width = volume.shape[0], volume.shape[-1]
    back = voxel_map(angles, depth, width, width, volume.device, volume.dtype)
    scale = math.pi / len(angles)

    def normal(tilts: Tensor) -> Tensor:
        filtered = filter_projections(tilts, filter)
        blocks = (filtered[:, first : first + _ROWS] for first in range(0, filtered.shape[1], _ROWS))
        smeared = [back(back(rows), adjoint=True) for rows in blocks]
        return filter_projections(torch.cat(smeared, dim=1), filter) * scale**2

    # The filters' weights are real and even, so they are their own adjoints.
    rest = filter_projections(back(volume, adjoint=True), filter) * scale
    found, step, power = torch.zeros_like(rest), rest, _square(rest)
    least = power * 1e-12
    for _ in range(iterations):
        if power <= least:
            break
        image = normal(step)
        length = power / float((step * image).sum(dtype=torch.float64))
        found += length * step
        rest = rest - length * image
        power, before = _square(rest), power
        step = rest + (power / before) * step
    return found


def _square(values: Tensor) -> float:
    return float((values**2).sum(dtype=torch.float64))


def _seen(volume: Tensor, angles: npt.NDArray[np.float64]) -> Tensor:
    """Length of each ray within the volume, as a share of the longest of its tilt; `(tilt, x)`."""
    lengths = project(volume.new_ones((volume.shape[0], 1, volume.shape[-1])), angles)[:, 0]
    return lengths / lengths.amax(dim=1, keepdim=True)


def _reflected(tilt: Tensor, seen: Tensor) -> Tensor:
    """Fill the columns of a tilt `(y, x)` that are not seen with the reflection of those that are."""
    inside = torch.nonzero(seen)[:, 0]
    first, count = int(inside[0]), len(inside)
    place = (torch.arange(len(seen), device=tilt.device) - first) % (2 * count)
    return tilt[:, first + torch.minimum(place, 2 * count - 1 - place)]
