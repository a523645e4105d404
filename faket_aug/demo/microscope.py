"""A small microscope for demonstrations, independent of the simulator: it stands for the one whose style is wanted.

Nothing of `faket_aug.project`, `NoiseModel` or `stylize` is used here, so what they make can be held against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from faket_aug._arrays import FloatArray
from faket_aug._random import numpy_generator
from faket_aug.geometry import as_tilt_angles, axis_index
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.tilts.series import TiltSeries

Complexes = npt.NDArray[np.complex128]


@dataclass(frozen=True, kw_only=True)
class Microscope:
    """A transmission electron microscope and its camera.

    Parameters
    ----------
    tilt_angles
        Degrees, right-handed about +y.
    defocus_um
        Range of the defocus, µm, positive is underfocus; each tilt draws its own about the series' mean.
    voltage_kv, cs_mm
        Acceleration voltage and spherical aberration.
    amplitude_contrast
        Share of the contrast that is absorption.
    exposure
        e⁻/Å² of the whole series, split evenly over the tilts.
    mean_free_path
        Å of ice that scatter all but 1/e of the electrons out of the image.
    ice_deviation
        Deviation of the phase shift by the ice's own grain, rad at 0°; new in each tilt, as ice moves in the beam.
    mtf_width
        Frequency, cycles per pixel, at which the detector's transfer has fallen to a half (Lorentzian).
    gain
        Camera counts per electron.
    """

    tilt_angles: Sequence[float]
    defocus_um: tuple[float, float] = (2.0, 3.5)
    voltage_kv: float = 300.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.07
    exposure: float = 120.0
    mean_free_path: float = 3000.0
    ice_deviation: float = 0.03
    mtf_width: float = 0.4
    gain: float = 0.8

    def record(self, specimen: GrandModel, *, seed: int, index: int) -> TiltSeries:
        """Take a tilt-series of a specimen; each `index` has its own defocus, grain and shot noise."""
        generator = numpy_generator(seed, "demo", epoch=1, tomogram=index)
        angles = as_tilt_angles(self.tilt_angles)
        mean_defocus = generator.uniform(*self.defocus_um)
        phases = self.phases(specimen)
        tilts = np.empty(phases.shape)
        for tilt, angle in enumerate(angles):
            defocus = np.clip(mean_defocus + generator.normal(scale=0.08), *self.defocus_um)
            path = 1 / math.cos(math.radians(angle))
            grain = generator.normal(scale=self.ice_deviation * math.sqrt(path), size=phases[tilt].shape)
            intensity = self.intensity(phases[tilt] + grain, float(defocus), specimen.voxel_size)
            dose = self.exposure / len(angles) * specimen.voxel_size**2
            thickness = specimen.density.shape[0] * specimen.voxel_size * path
            electrons = generator.poisson(dose * math.exp(-thickness / self.mean_free_path) * intensity)
            tilts[tilt] = self.gain * self._detect(electrons)
        return TiltSeries(
            tilts=torch.from_numpy(tilts).to(torch.float32),
            tilt_angles=angles,
            pixel_size=specimen.voxel_size,
            name=f"microscope's series {index}",
        )

    def phases(self, specimen: GrandModel) -> FloatArray:
        """Compute the phase shift `(tilt, y, x)`, rad, that the specimen's potential gives the wave at each tilt.

        The field of view goes on beyond the specimen with the specimen again (periodic along x). Each section z is
        seen at `x' = x cos θ + z sin θ`: shifted and compressed, which is exact on its Fourier series along x.
        """
        volume = specimen.density.numpy().astype(np.float64)
        depth, _, size = volume.shape
        sections = np.fft.rfft(volume, axis=-1) / size  # (z, y, k)
        k = np.arange(sections.shape[-1])
        z = np.arange(depth) - axis_index(depth)
        column = np.arange(size) - axis_index(size)
        # Each k > 0 of a real function stands for itself and for -k.
        twice = np.where((k == 0) | (2 * k == size), 1.0, 2.0)
        images = []
        for angle in np.deg2rad(as_tilt_angles(self.tilt_angles)):
            seen = twice * (k <= size / 2 * math.cos(angle))  # finer waves than the detector's pixels are lost
            shift = np.exp(-2j * math.pi * np.outer(z, k) * math.tan(angle) / size)  # (z, k)
            wave = np.exp(2j * math.pi * np.outer(k, column / math.cos(angle) + axis_index(size)) / size)  # (k, x')
            summed: Complexes = np.einsum("zyk,zk->yk", sections, shift * seen)
            images.append((summed @ wave).real / math.cos(angle))
        return np.stack(images) * specimen.voxel_size * self._interaction()

    def intensity(self, phase: FloatArray, defocus_um: float, pixel_size: float) -> FloatArray:
        """Compute the image `(y, x)`, about 1, of a wave with this phase shift `(y, x)` after the objective lens.

        The wave's phase runs forward in dense matter; underfocus turns the scattered part so that it is taken away.
        """
        q = self.amplitude_contrast / math.sqrt(1 - self.amplitude_contrast**2)
        wave = np.exp((1j - q) * (phase - phase.mean()))
        spread = np.fft.ifft2(np.fft.fft2(wave) * np.exp(1j * self._aberration(phase.shape, defocus_um, pixel_size)))
        return np.asarray(np.abs(spread) ** 2)

    def _aberration(self, shape: tuple[int, ...], defocus_um: float, pixel_size: float) -> FloatArray:
        """Phase `χ(k) = π λ k² Δf - π/2 Cs λ³ k⁴`, with Δf positive for underfocus, of each frequency (y, x)."""
        ky, kx = (np.fft.fftfreq(n, d=pixel_size) for n in shape)
        square = ky[:, None] ** 2 + kx[None] ** 2
        wavelength = self._wavelength()
        return np.asarray(
            math.pi * wavelength * square * defocus_um * 1e4
            - math.pi / 2 * self.cs_mm * 1e7 * wavelength**3 * square**2
        )

    def _wavelength(self) -> float:
        """Relativistic wavelength of the electrons, Å."""
        volts = self.voltage_kv * 1e3
        return 12.2643 / math.sqrt(volts * (1 + 0.978466e-6 * volts))

    def _interaction(self) -> float:
        """Phase shift per potential and path, rad/(V Å): `2π m e λ / h²`, relativistic."""
        volts, rest = self.voltage_kv * 1e3, 510_998.95
        return 2 * math.pi / (self._wavelength() * volts) * (rest + volts) / (2 * rest + volts)

    def _detect(self, electrons: npt.NDArray[np.int64]) -> FloatArray:
        fy, fx = (np.fft.fftfreq(n) for n in electrons.shape)
        transfer = 1 / (1 + (fy[:, None] ** 2 + fx[None] ** 2) / self.mtf_width**2)
        return np.asarray(np.fft.ifft2(np.fft.fft2(electrons) * transfer).real)
