"""Densities on grids of voxels: low-pass, resampling, thresholds, centre of mass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from faket_aug._checks import check_ndim, check_positive

#: The low-pass ends at the grid's Nyquist frequency, with a cosine that begins at this fraction of it.
_TAPER = 0.8
#: Voxels around a mask in which a density is kept, and as many again over which it fades to 0.
_FADING = 2
#: Voxel sizes whose relative difference is smaller are the same.
_SAME = 1e-4


def low_pass(k2: Tensor, *, voxel_size: float | None, resolution: float) -> Tensor:
    """Compute the low-pass of all densities: a Gaussian that ends softly at the grid's Nyquist frequency.

    Parameters
    ----------
    k2
        Squared spatial frequencies, 1/Å².
    voxel_size
        Å of the resulting grid: nothing passes at `1 / (2 · voxel_size)` and above. `None` leaves this end out.
    resolution
        Å; the Gaussian is 1/e at `1 / resolution`, as in ChimeraX's molmap (σ = 0.225 · resolution). 0 for none.
    """
    check_positive("resolution", resolution, zero=True)
    gaussian: Tensor = torch.exp(-k2 * resolution**2)
    if voxel_size is None:
        return gaussian
    phase = (2 * voxel_size * k2.sqrt() - _TAPER) / (1 - _TAPER)
    passed: Tensor = gaussian * (1 + torch.cos(math.pi * phase.clamp(0, 1))) / 2
    return passed


def resample_density(
    density: Tensor, *, voxel_size: float, new_voxel_size: float, resolution: float | None = None
) -> Tensor:
    """Resample a density to another voxel size: a low-pass, and the sum of its Fourier series at the new voxels.

    Parameters
    ----------
    density
        `(z, y, x)`; near 0 at the faces of its box. Outside the box it counts as 0.
    voxel_size
        Å of `density`.
    new_voxel_size
        Å of the result.
    resolution
        Å, of the low-pass. By default `2 · new_voxel_size`, the finest that the new grid holds, where its voxels are
        larger; otherwise there is no low-pass.

    Returns
    -------
    `(z', y', x')`, float32; its voxel `n' // 2` has the position of voxel `n // 2`.
    """
    check_ndim("density", density, "z y x")
    check_positive("voxel_size", voxel_size)
    check_positive("new_voxel_size", new_voxel_size)
    ratio = new_voxel_size / voxel_size
    coarser = ratio > 1 + _SAME
    if resolution is None:
        resolution = 2 * new_voxel_size if coarser else 0.0
    check_positive("resolution", resolution, zero=True)
    result = density.to(torch.float32)
    if resolution == 0 and abs(ratio - 1) <= _SAME:
        return result
    # Density that the low-pass spreads beyond one face would come back at the other.
    guard = math.ceil(2 * max(resolution / voxel_size, ratio, 2))
    lengths = [scipy.fft.next_fast_len(n + guard) for n in result.shape]
    bands = [_frequencies(n, min(1.0, 1 / ratio) / 2) for n in lengths]
    bands[2] = bands[2][bands[2] >= 0]
    # Axis by axis: each crop makes the next transform smaller.
    spectrum = torch.fft.rfft(result, n=lengths[2], dim=2)[..., : len(bands[2])]
    for axis in (1, 0):
        whole = torch.fft.fft(spectrum, n=lengths[axis], dim=axis)
        spectrum = whole.index_select(axis, bands[axis] % lengths[axis])
    if resolution > 0 or coarser:
        z, y, x = (band / (length * voxel_size) for band, length in zip(bands, lengths, strict=True))
        k2 = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
        # Where the grid becomes finer, the low-pass has no end at a Nyquist frequency.
        spectrum = spectrum * low_pass(k2, voxel_size=new_voxel_size if coarser else None, resolution=resolution)
    # The omitted frequencies along x are the complex conjugates of those that count twice.
    spectrum = spectrum * torch.where(bands[2] > 0, 2, 1)
    for axis in (0, 1, 2):
        matrix = _series(bands[axis], lengths[axis], density.shape[axis], ratio)
        spectrum = torch.tensordot(spectrum, matrix, dims=([0], [1]))  # the new axis comes last: z y x, y x z', ...
    resampled: Tensor = spectrum.real.contiguous()
    return resampled


def _frequencies(length: int, limit: float) -> Tensor:
    """List the whole numbers of waves over `length` of at most `limit` cycles per voxel, negative ones included."""
    most = min(math.floor(length * limit + 1e-9), (length - 1) // 2)
    return torch.arange(-most, most + 1, device="cpu")


def _series(band: Tensor, length: int, size: int, ratio: float) -> Tensor:
    """Make the matrix `(position, frequency)` that sums a Fourier series at every `ratio`-th voxel from `n // 2`."""
    reach = math.floor(size / 2 / ratio)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu") * ratio + size // 2
    phase = 2 * math.pi / length * places[:, None] * band.to(torch.float64)
    return (torch.polar(torch.ones_like(phase), phase) / length).to(torch.complex64)


def volume_threshold(density: Tensor, voxel_size: float, volume: float) -> float:
    """Find the threshold above which a density has a given volume.

    Parameters
    ----------
    density
        `(z, y, x)`.
    voxel_size
        Å.
    volume
        Å³; at least one voxel, and at most all but one, lie above the threshold.
    """
    values = density.reshape(-1).sort(descending=True).values
    count = min(max(round(volume / voxel_size**3), 1), values.numel() - 1)
    return (float(values[count - 1]) + float(values[count])) / 2


def plateau_threshold(density: Tensor) -> float:
    """Find half of the plateau of a density: the level at the position of an edge that was blurred.

    The plateau is the 95th percentile of the values above Otsu's threshold.
    """
    import skimage.filters

    filters: Any = skimage.filters
    values = density.numpy()
    inside = values[values > filters.threshold_otsu(values)]
    return float(np.quantile(inside, 0.95)) / 2


def fading(mask: Tensor) -> Tensor:
    """Make weights that are 1 near the mask and fall to 0, as a cosine, farther out."""
    from scipy.ndimage import distance_transform_edt

    distance = torch.from_numpy(distance_transform_edt(~mask.numpy())).to(torch.float32)
    return (1 + torch.cos(math.pi * (distance / _FADING - 1).clamp(0, 1))) / 2


def center_of_mass(density: Tensor) -> tuple[float, float, float]:
    """Compute the centre of mass (z, y, x), as a voxel index; negative values are ignored."""
    weights = density.clamp(min=0).double()
    axes = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64, device=density.device) for n in density.shape), indexing="ij"
    )
    z, y, x = (float((weights * axis).sum() / weights.sum()) for axis in axes)
    return z, y, x
