"""Correlating a tomogram with a template in many rotations, filtered as the tomogram was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import scipy.fft
import torch
from torch import Tensor
from torch.nn import functional

from faket_aug._arrays import FloatArray
from faket_aug.generation.density import low_pass as gaussian_low_pass
from faket_aug.generation.templates import ParticleTemplate
from faket_aug.microscope.ctf import ContrastTransfer

#: Voxels of a block that is transformed at once; a block takes some 30 bytes for each.
BLOCK = 2**23
#: Where the local variance is below this fraction of the tomogram's, nothing was measured: the score is 0.
_LEAST_VARIANCE = 1e-3
#: Voxels over which the spherical mask falls to 0.
_EDGE = 1.0

Transfer = Callable[[Tensor, Tensor, Tensor], Tensor]


def template_transfer(
    angles: FloatArray,
    voxel_size: float,
    low_pass: float,
    ctf: ContrastTransfer | None,
    phase_flipped: bool,
    radius: float,
) -> Transfer:
    """Make the function of frequencies (z, y, x) in 1/Å that the template is multiplied by."""
    middle, half = math.radians((angles.max() + angles.min()) / 2), math.radians((angles.max() - angles.min()) / 2)
    known = None if ctf is None else _mean_ctf(ctf)

    def of(k_z: Tensor, k_y: Tensor, k_x: Tensor) -> Tensor:
        k2 = k_z**2 + k_y**2 + k_x**2
        passed = gaussian_low_pass(k2, voxel_size=None, resolution=low_pass)
        # A tilt θ measures the plane at the angle θ from +x towards +z. Beyond the last plane, all is gone within about
        # one step of the spectrum.
        beyond = (torch.atan2(k_z, k_x) - middle + math.pi / 2) % math.pi - math.pi / 2
        beyond = (beyond.abs() - half).clamp(min=0, max=math.pi / 2)
        distance = torch.hypot(k_z, k_x) * torch.sin(beyond)
        passed = passed * (1 - 8 * distance * radius).clamp(0, 1)
        if known is not None:
            curve = known.curve(k2.sqrt()).to(passed)
            passed = passed * (curve.abs() if phase_flipped else curve)
        return passed

    return of


def _mean_ctf(ctf: ContrastTransfer) -> ContrastTransfer:
    defocus, shift = (float(np.mean(value)) for value in (ctf.defocus, ctf.phase_shift))
    return replace(ctf, defocus=defocus, phase_shift=shift, astigmatism=0.0, astigmatism_angle=0.0)


def _frequencies(shape: Sequence[int], voxel_size: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies of a half spectrum along z, y, x, 1/Å, which broadcast."""
    z, y = (torch.fft.fftfreq(n, voxel_size, device=device) for n in shape[:2])
    return z[:, None, None], y[:, None], torch.fft.rfftfreq(shape[2], voxel_size, device=device)


def binned(tomogram: Tensor, bin: int, voxel_size: float, low_pass: float) -> Tensor:
    """Crop the spectrum of a tomogram, and low-pass it; its mean becomes 0. Voxel i lies where `i · bin` lay."""
    volume = tomogram - tomogram.mean()
    if bin > 1:
        for axis in range(3):
            other = (axis + 1) % 3
            volume = torch.cat([_cropped(part, axis, bin) for part in torch.split(volume, 64, dim=other)], dim=other)
    k_z, k_y, k_x = _frequencies(volume.shape, voxel_size * bin, volume.device)
    passed = gaussian_low_pass(k_z**2 + k_y**2 + k_x**2, voxel_size=None, resolution=low_pass)
    result: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume).mul_(passed), s=volume.shape)
    return result


def _cropped(volume: Tensor, axis: int, bin: int) -> Tensor:
    size = math.ceil(volume.shape[axis] / bin)
    last = volume.narrow(axis, volume.shape[axis] - 1, 1)
    missing = size * bin - volume.shape[axis]
    padded = torch.cat([volume, *[last] * missing], dim=axis)
    spectrum = torch.fft.rfft(padded, dim=axis).narrow(axis, 0, size // 2 + 1)
    cropped: Tensor = torch.fft.irfft(spectrum, n=size, dim=axis) / bin
    return cropped


# Templates ------------------------------------------------------------------------------------------------------------


class RotatedTemplate:
    """A template in any rotation: filtered, binned, masked, with mean 0 and length 1.

    Parameters
    ----------
    template, transfer
        The particle, and what its spectrum is multiplied by.
    bin
        Voxels of the template for each voxel of the result.
    radius
        Of the mask, in voxels of the result.
    sign
        −1 where particles are dark.
    """

    def __init__(
        self,
        template: ParticleTemplate,
        bin: int,
        radius: float,
        transfer: Transfer,
        sign: float,
        device: torch.device,
    ) -> None:
        #: Voxels from the centre of the result to its faces.
        self.reach = math.ceil(radius + _EDGE)
        self._density = template.density.to(device)
        assert template.center is not None, "set when it was made"
        self._center = torch.tensor(template.center, device=device).flip(0)
        # The whole particle in any rotation, sampled as finely as the template.
        own = math.ceil(template.radius / template.voxel_size) + 1
        offsets = torch.arange(-own, own + 1, device=device, dtype=torch.float32)
        z, y, x = torch.meshgrid(offsets, offsets, offsets, indexing="ij")
        self._grid = torch.stack([x, y, z], dim=-1)
        # The filters spread the density: as much room again beside it keeps it from wrapping around.
        self._size = scipy.fft.next_fast_len(2 * max(2 * self.reach, math.ceil(own / bin) + self.reach), real=True)
        frequencies = _frequencies((self._size,) * 3, template.voxel_size * bin, device)
        # From the centre at voxel `own` of fine voxels to the centre at voxel `reach` of coarse ones.
        shift = template.voxel_size * (own - bin * self.reach)
        phase = 2 * math.pi * shift * (frequencies[0] + frequencies[1] + frequencies[2])
        self._transfer = torch.polar(transfer(*frequencies) * sign, phase)
        fine = self._size * bin
        self._band = (torch.fft.fftfreq(self._size, 1 / self._size, device=device).long() % fine, fine)
        steps = torch.arange(-self.reach, self.reach + 1, device=device, dtype=torch.float32) ** 2
        distance = (steps[:, None, None] + steps[:, None] + steps).sqrt()
        #: `(z, y, x)`, weights of the mask.
        self.mask = ((radius + _EDGE / 2 - distance) / _EDGE).clamp(0, 1)

    def __call__(self, rotation: FloatArray) -> Tensor:
        """Return the template `(z, y, x)` in a rotation, times the mask."""
        matrix = torch.from_numpy(rotation).to(self._grid)
        # What is seen at v was R⁻¹ v in the template; for a row vector that is v R.
        there = self._grid @ matrix + self._center
        size = torch.tensor(self._density.shape, device=there.device).flip(0)
        seen = functional.grid_sample(
            self._density[None, None], ((2 * there + 1) / size - 1)[None], align_corners=False
        )[0, 0]
        band, fine = self._band
        # Axis by axis: each crop makes the next transform smaller.
        spectrum = torch.fft.rfft(seen, n=fine, dim=2)[..., : self._size // 2 + 1]
        for axis in (1, 0):
            spectrum = torch.fft.fft(spectrum, n=fine, dim=axis).index_select(axis, band)
        filtered = torch.fft.irfftn(spectrum * self._transfer, s=(self._size,) * 3)
        values = filtered[(slice(0, 2 * self.reach + 1),) * 3]
        weighted = (values - (values * self.mask).sum() / self.mask.sum()) * self.mask
        # Roseman's norm: the template's standard deviation within the mask.
        norm = (weighted**2 / self.mask.clamp(min=1e-6)).sum().sqrt()
        result: Tensor = weighted / norm.clamp(min=1e-30)
        return result


# Correlation ----------------------------------------------------------------------------------------------------------


def correlated(
    volume: Tensor, turned: RotatedTemplate, matrices: FloatArray, tell: Callable[[int, int], None]
) -> tuple[Tensor, Tensor]:
    """Correlate block by block along y, so that memory is bounded."""
    reach = turned.reach
    depth, height, width = volume.shape
    beside = (depth + reach) * (width + reach)
    rows = min(height, max(BLOCK // beside - 2 * reach, 2 * reach))
    starts = range(0, height, rows)
    # Along z and x the zeros before the first voxel are also those after the last one: transforms are periodic.
    padded = functional.pad(volume, (reach, 0, reach, reach, reach, 0))
    parts = []
    least = _LEAST_VARIANCE * float(volume.double().var())
    for number, start in enumerate(starts):
        end = min(start + rows, height)
        done = (number * len(matrices), len(starts) * len(matrices))
        parts.append(_block(padded[:, start : end + 2 * reach], turned, matrices, least, done, tell))
    scores, indices = (torch.cat(one, dim=1) for one in zip(*parts, strict=True))
    return scores, indices


def _block(
    block: Tensor,
    turned: RotatedTemplate,
    matrices: FloatArray,
    least: float,
    done: tuple[int, int],
    tell: Callable[[int, int], None],
) -> tuple[Tensor, Tensor]:
    """Return the best scores and which rotations give them, for a block with margins of `turned.reach` voxels."""
    shape = tuple(scipy.fft.next_fast_len(n, real=True) for n in block.shape)
    depth, rows, width = (n - margins * turned.reach for n, margins in zip(block.shape, (1, 2, 1), strict=True))

    def correlation(spectrum: Tensor, kernel: Tensor) -> Tensor:
        product = spectrum * _spectrum(kernel, shape).conj()
        # Voxel i holds the sum over a kernel whose first voxel lies there: its centre is `reach` further.
        for axis, size in ((0, depth), (1, rows)):
            product = torch.fft.ifft(product, dim=axis).narrow(axis, 0, size)
        found: Tensor = torch.fft.irfft(product, n=shape[2], dim=2)[..., :width]
        return found

    spectrum = _spectrum(block, shape)
    weight = turned.mask.sum()
    mean = correlation(spectrum, turned.mask) / weight
    square = correlation(_spectrum(block**2, shape), turned.mask) / weight
    variance = square - mean**2
    best = torch.full_like(mean, -math.inf)
    index = torch.zeros(mean.shape, dtype=torch.int32, device=mean.device)
    for number, rotation in enumerate(matrices):
        found = correlation(spectrum, turned(rotation))
        better = found > best
        best = torch.where(better, found, best)
        index[better] = number
        tell(done[0] + number + 1, done[1])
    deviation = (variance.clamp(min=least) * weight).sqrt()
    return torch.where(variance > least, best / deviation, 0.0), index


def _spectrum(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """Transform a volume that is padded by zeros; axis by axis, as most of a small one is zeros."""
    result: Tensor = torch.fft.rfft(volume, n=shape[2], dim=2)
    for axis in (1, 0):
        result = torch.fft.fft(result, n=shape[axis], dim=axis)
    return result
