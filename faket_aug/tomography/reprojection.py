"""Reprojection: the tilts of a tomogram that was reconstructed, with the effects of the reconstruction undone.

A tomogram of depth D is a sum of filtered tilts, each back-projected along its beam. Its projection along the beam of
one tilt contains this tilt, multiplied by the filter. It also contains a part of each other tilt: at the frequency K
perpendicular to the tilt axis, the fraction `sinc(D K (tan θ - tan θ'))`. So there are two regions. Above the Crowther
frequency, about `1 / (D Δθ)` for tilt steps of Δθ in radians, the projection is the filtered tilt alone, so the ramp of
the filter stays in it. Below this frequency, neighbouring tilts are added to it. There the ramp makes the sum equal to
the signal again, but every tilt also contains the noise of its neighbours.

If the filter is known, the map from tilts to tomogram is known, too: it is `reconstruct`. `reproject` inverts this map
by least squares. This corrects for the filter, the overlap of tilts, the interpolation and the sides of the tomogram.
The signal is recovered at all frequencies, since all tilts of a specimen within the depth agree with each other. The
noise is recovered above the Crowther frequency only. Below it, a tomogram has fewer numbers than its tilts had. There
the fraction `D K Δθ` of the noise power is recovered (the noise that a slab of depth D could have made), and
neighbouring tilts share it. Two tomograms, each from one half of the data, share no noise. If tilts are taken from the
two in turn, neighbouring tilts have independent noise.

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

#: How the data are divided between two half tomograms: every second tilt, or half of the frames of every tilt.
HALVES = ("tilts", "frames")
#: Steps of conjugate gradients. The signal is complete after 20 steps for a depth of 64 voxels, after 40 for 160.
ITERATIONS = 40
#: A ray is not used if its path in the tomogram is shorter than this fraction of the longest path of its tilt.
_SEEN = 0.5
#: Rows of y that are back-projected at a time, so that memory holds no second tomogram.
_ROWS = 32


def reproject(
    tomogram: Tensor, tilt_angles: Angles, *, filter: str | None = None, iterations: int = ITERATIONS
) -> Tensor:
    """Project a tomogram at the tilt angles of its reconstruction, and undo the effects of the reconstruction.

    With a `filter`, the result is the least-squares solution of `reconstruct(tilts) = tomogram`. Conjugate gradients
    find it, starting from 0: nothing is added that the tomogram does not contain. The mean of each tilt is 0, since a
    tomogram does not have it. Some rays leave the tomogram through its sides (half of them at 60°). Their columns are
    filled with the reflection of the other columns.

    Parameters
    ----------
    tomogram
        `(z, y, x)`; its mean is subtracted first.
    tilt_angles
        `(tilt,)`, degrees, right-handed about +y: the angles of the tilts that were reconstructed.
    filter
        The filter of the reconstruction, by the names of `reconstruct`. None if it is not known, or for an algebraic
        reconstruction (SIRT, SART), whose projections are the tilts already: then the projections stay as they are.
    iterations
        Steps of conjugate gradients. More steps recover more of the frequencies where the filter is weakest.

    Returns
    -------
    `(tilt, y, x)`, float32, in the unit of the tilts that were reconstructed (sums of voxels for None).

    Raises
    ------
    ValueError
        For an unknown filter, a tomogram that does not have three axes, or a constant tomogram.
    """
    check_ndim("tomogram", tomogram, "z y x")
    check_count("iterations", iterations)
    if filter is not None:
        check_choice("filter", filter, FILTERS)
    angles = as_tilt_angles(tilt_angles)
    volume = tomogram.to(torch.float32)
    volume = volume - volume.mean(dtype=torch.float64).to(torch.float32)
    if float(volume.abs().max()) <= 1e-6 * float(tomogram.abs().max()):
        raise ValueError(
            "expected a tomogram that varies, got the same value in every voxel; look at the file that it was read from"
        )
    seen = _seen(volume, angles)
    if filter is None:
        tilts = project(volume, angles) / seen.clamp(min=_SEEN)[:, None]
    else:
        tilts = _solve(volume, angles, filter, iterations)
    return torch.stack([_reflected(tilt, row >= _SEEN) for tilt, row in zip(tilts, seen, strict=True)])


def reproject_halves(
    pair: Sequence[Tensor], tilt_angles: Angles, *, halves: str = "tilts", filter: str | None = None
) -> Tensor:
    """Project two half tomograms, so that neighbouring tilts share no noise.

    Parameters
    ----------
    pair
        Two tomograms `(z, y, x)`, each reconstructed from one half of the data.
    tilt_angles
        `(tilt,)`, degrees, of both halves together.
    halves
        `"tilts"`: the first tomogram was reconstructed from the first, third, ... of these tilts, the second from the
        others. `"frames"`: both tomograms were reconstructed from all tilts, but each from half of the frames (`_EVN`
        and `_ODD` of AreTomo). Then tilts are taken from the two in turn, in the order of the angles. Their noise is
        that of half the exposure.
    filter
        As for `reproject`.

    Returns
    -------
    `(tilt, y, x)`, in the order of the angles.

    Raises
    ------
    ValueError
        If there are not two tomograms of one shape, or as for `reproject`.
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
    """The tilts whose reconstruction is closest to the volume: conjugate gradients on the normal equations."""
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
    """Path of each ray in the volume, divided by the longest path of its tilt; `(tilt, x)`."""
    lengths = project(volume.new_ones((volume.shape[0], 1, volume.shape[-1])), angles)[:, 0]
    return lengths / lengths.amax(dim=1, keepdim=True)


def _reflected(tilt: Tensor, seen: Tensor) -> Tensor:
    """Fill the columns of a tilt `(y, x)` that are not seen with the reflection of those that are."""
    inside = torch.nonzero(seen)[:, 0]
    first, count = int(inside[0]), len(inside)
    place = (torch.arange(len(seen), device=tilt.device) - first) % (2 * count)
    return tilt[:, first + torch.minimum(place, 2 * count - 1 - place)]
