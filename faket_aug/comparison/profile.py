"""Radial profiles of particles in tomograms: how dark they are, in units of the tomogram's standard deviation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_count, check_ndim, check_positive
from faket_aug._random import numpy_generator

#: How many shells, and how thick each is, voxels.
SHELLS, WIDTH = 7, 3.0


@dataclass(frozen=True, kw_only=True, eq=False)
class RadialProfile:
    """The mean over particles of the averages over shells around their centres.

    Parameters
    ----------
    mean
        `(shell,)`, the innermost first, above the tomogram's mean and in units of its standard deviation: negative
        where it is dark.
    error
        `(shell,)`, standard errors of the mean; infinite for a single particle.
    width
        Voxels of a shell.
    count
        How many particles were averaged.
    """

    mean: FloatArray
    error: FloatArray
    width: float
    count: int

    @property
    def radii(self) -> FloatArray:
        """`(shell,)`, voxels, of the middle of each shell."""
        middle: FloatArray = (np.arange(len(self.mean), dtype=np.float64) + 0.5) * self.width
        return middle


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """By which factor particles are darker in measured tomograms than in simulated ones.

    Parameters
    ----------
    factor
        1 where they are equally dark; NaN where the simulated profile has no contrast.
    error
        Its standard error.
    """

    factor: float
    error: float


def jittered(positions: FloatArray, jitter: float, *, seed: int) -> FloatArray:
    """Move positions by chance, so that true ones are as inaccurate as those that were found.

    Parameters
    ----------
    positions
        `(n, 3)`, (z, y, x) in voxels.
    jitter
        Voxels, standard deviation along each axis.
    seed
        Of the random numbers.
    """
    check_positive("jitter", jitter, zero=True)
    moved: FloatArray = positions + jitter * numpy_generator(seed, "patch").standard_normal(positions.shape)
    return moved


def radial_profile(
    tomogram: Tensor, positions: FloatArray, *, shells: int = SHELLS, width: float = WIDTH
) -> RadialProfile:
    """Compute the radial profile of particles in a tomogram.

    Parameters
    ----------
    tomogram
        `(z, y, x)`, any unit.
    positions
        `(n, 3)`, (z, y, x) in voxels, of the particles' centres. Where true positions are compared with positions that
        were found, see `jittered`.
    shells, width
        How many shells, and how thick each is, voxels.

    Raises
    ------
    ValueError
        If there are no positions, or all lie outside the tomogram, or the tomogram is constant.
    """
    return mean_profile([shell_averages(tomogram, positions, shells, width)], width=width)


def shell_averages(tomogram: Tensor, positions: FloatArray, shells: int = SHELLS, width: float = WIDTH) -> FloatArray:
    """Average each shell around each position, as for `radial_profile`; `(n, shell)`, NaN where no voxel lies."""
    check_ndim("tomogram", tomogram, "z y x")
    check_count("shells", shells)
    check_positive("width", width)
    wide = tomogram.double()
    mean, std = float(wide.mean()), float(wide.std(correction=0))
    if not std > 1e-12 * abs(mean):
        raise ValueError("expected a tomogram with contrast, got one that is constant")
    volume = tomogram.detach().cpu().numpy()
    reach = math.ceil(shells * width)
    result = np.full((len(positions), shells), np.nan)
    for row, position in zip(result, positions, strict=True):
        low = np.maximum(np.rint(position).astype(int) - reach, 0)
        high = np.minimum(np.rint(position).astype(int) + reach + 1, volume.shape)
        if (high <= low).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        z, y, x = (axis - p for axis, p in zip(np.ogrid[box], position, strict=True))
        shell = (np.sqrt(z**2 + y**2 + x**2) / width).astype(np.int64).ravel()
        inside = shell < shells
        count = np.bincount(shell[inside], minlength=shells)
        total = np.bincount(shell[inside], weights=volume[box].ravel()[inside], minlength=shells)
        row[count > 0] = (total[count > 0] / count[count > 0] - mean) / std
    return result


def mean_profile(averages: list[FloatArray], *, width: float = WIDTH) -> RadialProfile:
    """Average what `shell_averages` found in one or several tomograms.

    Raises
    ------
    ValueError
        If there is no particle.
    """
    values = np.concatenate(averages)
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        raise ValueError("expected particles within the tomogram, got no position with voxels in every shell")
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.inf)
    return RadialProfile(
        mean=values.mean(axis=0), error=spread / math.sqrt(len(values)), width=width, count=len(values)
    )


def contrast(measured: RadialProfile, simulated: RadialProfile) -> Contrast:
    """Estimate by which factor measured particles are darker: least squares over the shells, errors in both.

    Parameters
    ----------
    measured, simulated
        Profiles with the same shells.
    """
    ours, theirs = simulated.mean, measured.mean
    factor = 1.0
    weight = np.ones_like(ours)
    # The weights depend on the factor, which a few rounds settle. Errors of single shells are not taken for smaller
    # than a tenth of the median: a shell of few voxels counts little anyway.
    for _ in range(10):
        variance = measured.error**2 + (factor * simulated.error) ** 2
        if not np.isfinite(variance).all() or not (variance > 0).any():
            variance = np.ones_like(ours)
        weight = 1 / np.maximum(variance, 0.01 * np.median(variance))
        power = float((weight * ours**2).sum())
        if not power > 0:
            return Contrast(factor=math.nan, error=math.nan)
        factor = float((weight * ours * theirs).sum()) / power
    scatter = float((weight * (theirs - factor * ours) ** 2).sum()) / max(len(ours) - 1, 1)
    # Where the shapes differ by more than chance, the error says so.
    return Contrast(factor=factor, error=math.sqrt(max(scatter, 1.0) / power))
