"""The modulation transfer function of a detector: how much of each frequency it records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._arrays import as_float64
from faket_aug._checks import FileFormatError, check_fraction, check_positive
from faket_aug.formats._text import star_numbers, star_tables

#: Columns of RELION's files: cycles per pixel of the detector, and the transfer there.
FREQUENCY_COLUMN, VALUE_COLUMN = "rlnResolutionInversePixel", "rlnMtfValue"
NYQUIST = 0.5
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Detector:
    """The modulation transfer function (MTF) of a detector, and the share of the noise that has passed it.

    The spectrum of the clean signal is multiplied by the function. By default the noise stays white, as the noise model
    has it. This is nearly right for a counting detector, where each electron is recorded in one pixel. An integrating
    detector blurs the noise of the electrons together with the signal: then `noise_share` of the noise power has the
    spectrum `mtf²`, and the rest is white. The standard deviation of the noise does not change. The ratio of signal
    power to noise power falls with the frequency as `mtf² / (noise_share · mtf² + 1 − noise_share)`, which is the shape
    of the detective quantum efficiency (DQE).

    Parameters
    ----------
    at_nyquist
        The function at the Nyquist frequency (half a cycle per pixel), in (0, 1]. At the frequency k, in cycles per
        pixel, the function is `at_nyquist^((2 k)^shape)`.
    shape
        1 is an exponential, with the long tails of a scintillator. 2 is a Gaussian, which is close to an ideal pixel
        (0.64 at Nyquist).
    table
        Instead of `at_nyquist`: pairs of a frequency, in cycles per pixel, and the function there, in increasing order
        of frequency. The function is interpolated between the pairs, and constant beyond them.
    binning
        The binning factor of the tilts: how many pixels of the detector, along each axis, are one pixel of a tilt. The
        function is that of the detector's own pixels.
    noise_share
        Share of the noise power that has passed the detector with the signal, in [0, 1].

    Raises
    ------
    ValueError
        If both `at_nyquist` and `table` are given, or neither, or a number is out of its range.

    References
    ----------
    McMullan, Chen, Henderson and Faruqi, Detective quantum efficiency of electron area detectors in electron
    microscopy, Ultramicroscopy 109 (2009), 1126-1143; Vulović et al., Image formation modeling in cryo-electron
    microscopy, J. Struct. Biol. 183 (2013), 19-32.
    """

    at_nyquist: float | None = None
    shape: float = 2.0
    table: tuple[tuple[float, float], ...] = ()
    binning: float = 1.0
    noise_share: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", tuple((float(k), float(value)) for k, value in self.table))
        if (self.at_nyquist is None) == (not self.table):
            raise ValueError("expected `at_nyquist` or `table`, and not both; a file is read by `Detector.read`")
        if self.at_nyquist is not None and not 0 < self.at_nyquist <= 1:
            raise ValueError(f"expected `at_nyquist` in (0, 1], got {self.at_nyquist!r}")
        for name in ("shape", "binning"):
            check_positive(name, getattr(self, name))
        check_fraction("noise_share", self.noise_share)
        if self.table:
            _check_table(self.table)

    @classmethod
    def read(cls, path: str | Path, **settings: Any) -> Self:
        """Read the MTF from a STAR file in the format of RELION: `_rlnResolutionInversePixel` and `_rlnMtfValue`.

        Parameters
        ----------
        path
            The STAR file.
        **settings
            `binning` and `noise_share`.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If the file does not exist, lacks the columns, or its numbers are not a transfer function.
        """
        path = Path(path)
        tables = star_tables(path)
        table = next((t for t in tables.values() if {FREQUENCY_COLUMN, VALUE_COLUMN} <= set(t)), None)
        if table is None:
            found = ", ".join(column for columns in tables.values() for column in columns) or "none"
            raise FileFormatError(
                f"{path}: expected a table with {FREQUENCY_COLUMN} and {VALUE_COLUMN}, got the columns {found}"
            )
        frequencies, values = (star_numbers(table, name, path) for name in (FREQUENCY_COLUMN, VALUE_COLUMN))
        assert frequencies is not None
        assert values is not None
        pairs = tuple(zip(frequencies.tolist(), values.tolist(), strict=True))
        try:
            _check_table(pairs)
        except ValueError as error:
            raise FileFormatError(f"{path}: {error}") from error
        return cls(table=pairs, **settings)

    def curve(self, frequencies: Tensor | FloatArray) -> Tensor:
        """Compute the function at frequencies of any shape, in cycles per pixel of the tilts; float64."""
        k = as_float64(frequencies) / self.binning
        if self.at_nyquist is not None:
            return torch.exp(math.log(self.at_nyquist) * (k / NYQUIST) ** self.shape)
        known, values = zip(*self.table, strict=True)
        return torch.from_numpy(np.asarray(np.interp(k.cpu().numpy(), known, values))).to(k.device)

    def coloured(self, noise: Tensor) -> Tensor:
        """Give white noise `(..., y, x)` the spectrum of this detector's noise; its standard deviation stays."""
        if self.noise_share == 0:
            return noise
        height, width = (int(n) for n in noise.shape[-2:])
        k_y, k_x = (torch.fft.fftfreq(n, dtype=torch.float64, device=noise.device) for n in (height, width))
        power = self.noise_share * self.curve(torch.hypot(k_y[:, None], k_x)) ** 2 + 1 - self.noise_share
        colour = (power / power.mean()).sqrt()[:, : width // 2 + 1].to(noise.dtype)
        # Periodic, without padding: noise has no edges.
        result: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) * colour, s=(height, width))
        return result


def _check_table(table: tuple[tuple[float, float], ...]) -> None:
    frequencies, values = zip(*table, strict=True) if table else ((), ())
    rising = all(low < high for low, high in pairwise(frequencies))
    if len(table) < 2 or not rising or not np.isfinite(table).all() or min(frequencies) < 0 or min(values) <= 0:
        raise ValueError(
            "expected at least two finite frequencies of 0 or more, increasing, each with a transfer of more than 0, "
            f"got {list(table[:4])}{' ...' if len(table) > 4 else ''}"
        )
