"""Flavours of a tomogram: corrected for the contrast transfer function, low-passed, or deconvolved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from faket_aug._checks import check_ndim, check_positive
from faket_aug.microscope.ctf import CORRECTIONS, ContrastTransfer

#: Flavours of a tomogram.
FLAVOURS = ("raw", *CORRECTIONS, "low-pass", "deconvolved")
#: Those that need a contrast transfer function.
WITH_CTF = (*CORRECTIONS, "deconvolved")
#: Å, of the low-passed flavour.
LOW_PASS = 60.0
#: The largest strength of a deconvolution; its ratio is then 10^90.
_STRONGEST = 30.0
#: Voxels beyond the reach of a filter, by which a volume is padded.
_MARGIN = 16


@dataclass(frozen=True, kw_only=True)
class Deconvolution:
    """The Wiener-like deconvolution of Warp and IsoNet, whose signal-to-noise ratio is a formula.

    A frequency f, as a fraction of the Nyquist frequency, is multiplied by `ctf / (ctf² + 1 / SNR)`, with
    `SNR(f) = exp(-100 F f / p) · 10^(3 S) · (1 - cos(π min(f / h, 1)))` for voxels of p Å.

    This is the formula of Tegunov's `tom_deconv`, with its defaults for h and with the S and F that it proposes. IsoNet
    took it over. Its first versions have the same ratio; later ones have `10^S` in place of `10^(3 S)`, so that their
    `deconvstrength` of 1 is a `strength` of 1/3 here. Both programs take an amplitude contrast of 0.07, hold the value
    of the Nyquist frequency in the corners of the spectrum, where the formula goes on here, and IsoNet then gives back
    the mean and the standard deviation that the tomogram had.

    Parameters
    ----------
    strength
        S: each third of it is a factor of ten on the ratio. A third of IsoNet's `deconvstrength` (later versions).
    falloff
        F: how fast the ratio falls with the frequency.
    high_pass
        h: fraction of the Nyquist frequency, below which frequencies are weakened.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    Tegunov and Cramer, Real-time cryo-electron microscopy data preprocessing with Warp, Nature Methods 16 (2019),
    1146-1152, and https://github.com/dtegunov/tom_deconv; Liu et al., Isotropic reconstruction for electron tomography
    with deep learning, Nature Communications 13 (2022), 6482, and https://github.com/IsoNet-cryoET/IsoNet.
    """

    strength: float = 1.0
    falloff: float = 1.0
    high_pass: float = 0.02

    def __post_init__(self) -> None:
        for name in ("strength", "falloff", "high_pass"):
            check_positive(name, getattr(self, name), zero=True)
        if self.strength > _STRONGEST:
            raise ValueError(f"expected a `strength` of {_STRONGEST:g} or less, got {self.strength!r}")

    def ratio(self, frequencies: Tensor, voxel_size: float) -> Tensor:
        """Return the signal-to-noise ratio at frequencies of any shape, in 1/Å; float64."""
        f = frequencies.to(torch.float64) * 2 * voxel_size
        risen = torch.ones_like(f) if self.high_pass == 0 else (f / self.high_pass).clamp(max=1.0)
        falling = torch.exp(-100 * self.falloff * f / voxel_size) * 10 ** (3 * self.strength)
        return falling * (1 - torch.cos(math.pi * risen))

    def weights(self, frequencies: Tensor, voxel_size: float, ctf: ContrastTransfer) -> Tensor:
        """Return the factor at frequencies of any shape, in 1/Å; float64."""
        transfer, ratio = ctf.curve(frequencies), self.ratio(frequencies, voxel_size)
        # The same as `ctf / (ctf² + 1 / ratio)`, also where the ratio is 0.
        return transfer * ratio / (transfer**2 * ratio + 1)


def deconvolve(
    volume: Tensor, voxel_size: float, ctf: ContrastTransfer, settings: Deconvolution | None = None
) -> Tensor:
    """Deconvolve a tomogram for a contrast transfer function, as Warp does, and IsoNet before its training.

    Parameters
    ----------
    volume
        `(z, y, x)`, floating point, not corrected for the function.
    voxel_size
        Å.
    ctf
        Its defocus is the mean over all tilts. Astigmatism, envelope and gain are left out.
    settings
        By default those of Warp; see there for IsoNet's.

    Returns
    -------
    `(z, y, x)` in the volume's dtype; its mean is about 0.
    """
    if not isinstance(ctf, ContrastTransfer):
        raise ValueError(f"expected `ctf` to be a `ContrastTransfer`, got {ctf!r:.200}")
    check_positive("voxel_size", voxel_size)
    own = Deconvolution() if settings is None else settings
    plain = replace(
        ctf,
        defocus=float(np.mean(ctf.defocus)),
        phase_shift=float(np.mean(ctf.phase_shift)),
        astigmatism=0.0,
        astigmatism_angle=0.0,
        b_factor=0.0,
        radial_gain=(),
    )
    # The high-pass spreads a point over about half of its longest wave; most of that is near the point.
    return _filtered(
        volume, plain.reach(voxel_size), lambda radius: own.weights(radius / voxel_size, voxel_size, plain)
    )


def low_passed(volume: Tensor, voxel_size: float, resolution: float = LOW_PASS) -> Tensor:
    """Filter a tomogram `(z, y, x)` by a Gaussian, whose value is one half at the wavelength `resolution`, Å."""
    check_positive("low_pass", resolution)
    check_positive("voxel_size", voxel_size)
    reach = math.ceil(resolution / voxel_size)
    scale = resolution / voxel_size
    return _filtered(volume, reach, lambda radius: torch.exp(-math.log(2) * (scale * radius) ** 2))


def _filtered(volume: Tensor, reach: int, weights: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiply the spectrum by a function of the radius, in cycles per voxel. Edges are padded by reflection."""
    check_ndim("volume", volume, "z y x")
    margins = [min(reach + _MARGIN, n - 1) for n in volume.shape]
    padding = [margin for margin in reversed(margins) for _ in range(2)]
    padded = functional.pad(volume[None, None], padding, mode="reflect")[0, 0]
    z, y = (torch.fft.fftfreq(n, dtype=torch.float64, device=volume.device) for n in padded.shape[:2])
    x = torch.fft.rfftfreq(padded.shape[2], dtype=torch.float64, device=volume.device)
    spectrum = torch.fft.rfftn(padded)
    for index, own in enumerate(z):
        # One section at a time: float64 weights of the whole volume would take four times its memory.
        radius = torch.sqrt(own**2 + y[:, None] ** 2 + x**2)
        spectrum[index] *= weights(radius).to(volume.dtype)
    whole = torch.fft.irfftn(spectrum, s=padded.shape)
    (a, b, c), (depth, height, width) = margins, volume.shape
    inside: Tensor = whole[a : a + depth, b : b + height, c : c + width].contiguous()
    return inside
