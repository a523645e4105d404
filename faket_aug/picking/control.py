"""A control of picks: the same picker on noise with the tomogram's spectrum, in which there is nothing to find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_ndim, check_positive
from faket_aug._random import torch_generator, torch_seed
from faket_aug.picking.clustering import Picks
from faket_aug.statistics import value_range

#: (z, y, x), voxels of the tomogram that the control is made of: its time is bounded, however large a tomogram is.
CONTROL_SIZE = (128, 256, 256)
#: Values beyond these quantiles (gold beads, hot voxels) are clipped before: a few voxels would be all of the spectrum.
CLIPPED = (0.0005, 0.9995)


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """What a picker finds in noise.

    Parameters
    ----------
    picks
        In the noise, with scores.
    share
        Voxels of the noise for each voxel of the tomogram that was searched.
    """

    picks: Picks
    share: float

    def __post_init__(self) -> None:
        check_positive("share", self.share)
        if self.picks.scores is None:
            raise ValueError("expected picks with scores for a control, got some without")

    def expected(self, number: int, threshold: float) -> float:
        """Return how many picks of a class, from a score on, so much noise as the tomogram would give."""
        return int((_scores(self.picks, number) >= threshold).sum()) / self.share


@dataclass(frozen=True, kw_only=True)
class ControlCount:
    """Picks of a class beside those in noise.

    Parameters
    ----------
    picks
        In the tomogram.
    noise
        In as much noise.
    threshold
        The score from which on both are counted.
    """

    picks: int
    noise: float
    threshold: float

    @property
    def rate(self) -> float | None:
        """Picks in noise for each pick in the tomogram, 1 at most; `None` without picks."""
        return min(self.noise / self.picks, 1.0) if self.picks else None


def randomize_phases(volume: Tensor, *, seed: int = 0) -> Tensor:
    """Make noise of a volume's spectrum: each Fourier coefficient keeps its amplitude and gets another phase.

    The phases are those of white noise, so that the result is real; the mean is kept. About six times the volume's
    memory is needed. Of several flavours of a tomogram each coefficient is turned by the same angle in all: what one
    flavour has in common with another, it keeps.

    Parameters
    ----------
    volume
        `(z, y, x)`, or `(channel, z, y, x)`, floating point.
    seed
        Of the phases.

    Returns
    -------
    The volume's shape, float32, on its device.
    """
    if volume.ndim == 4:
        return torch.stack(_turned_alike(volume, seed))
    check_ndim("volume", volume, "z y x")
    phases = _phases(volume, seed)
    spectrum = torch.fft.rfftn(volume.to(torch.float32))
    mean = spectrum[0, 0, 0].clone()
    phases *= spectrum.abs()
    phases[0, 0, 0] = mean
    noise: Tensor = torch.fft.irfftn(phases, s=volume.shape)
    return noise


def _phases(volume: Tensor, seed: int) -> Tensor:
    """The phases of white noise of the volume's shape."""
    generator = torch_generator(torch_seed(seed, "control"))
    # Drawn on the CPU: the same on every device.
    noise = torch.randn(volume.shape, generator=generator, device="cpu")
    phases: Tensor = torch.fft.rfftn(noise.to(volume.device))
    phases /= phases.abs().clamp_(min=torch.finfo(torch.float32).tiny)
    return phases


def _turned_alike(channels: Tensor, seed: int) -> list[Tensor]:
    """Give the first channel the phases of white noise, and turn the others by the same angles."""
    found: list[Tensor] = []
    turns: Tensor | None = None
    for channel in channels:
        if turns is None:
            first, tiny = torch.fft.rfftn(channel.to(torch.float32)), torch.finfo(torch.float32).tiny
            # What the first channel does not have has no angle there; the others have it.
            first.masked_fill_(first.abs() < tiny, 1.0)
            first /= first.abs()
            turns = _phases(channel, seed) * first.conj()
            found.append(randomize_phases(channel, seed=seed))
            continue
        spectrum = torch.fft.rfftn(channel.to(torch.float32))
        mean = spectrum[0, 0, 0].clone()
        spectrum *= turns
        spectrum[0, 0, 0] = mean
        found.append(torch.fft.irfftn(spectrum, s=channel.shape))
    return found


def control_volume(tomogram: Tensor, box: Sequence[slice], *, seed: int = 0) -> Tensor:
    """Make noise of the spectrum of a part of a tomogram, whose most extreme values are clipped before.

    Parameters
    ----------
    tomogram
        `(z, y, x)`, or `(channel, z, y, x)`.
    box
        The part (z, y, x).
    seed
        Of the phases.
    """
    z, y, x = box
    part = tomogram[..., z, y, x].to(torch.float32)
    if part.ndim == 3:
        return randomize_phases(part.clamp(*value_range(part, CLIPPED)), seed=seed)
    return randomize_phases(torch.stack([one.clamp(*value_range(one, CLIPPED)) for one in part]), seed=seed)


def control_box(region: Sequence[slice], size: Sequence[int] = CONTROL_SIZE) -> tuple[slice, ...]:
    """Choose the middle of a region, of `size` (z, y, x) voxels at most."""
    box = []
    for part, most in zip(region, size, strict=True):
        length = min(part.stop - part.start, most)
        start = part.start + (part.stop - part.start - length) // 2
        box.append(slice(start, start + length))
    return tuple(box)


def compare_with_control(picks: Picks, control: Control, thresholds: Mapping[int, float]) -> dict[int, ControlCount]:
    """Count the picks of each class of `thresholds` in the tomogram and in noise."""
    return {
        number: ControlCount(
            picks=int((_scores(picks, number) >= least).sum()),
            noise=control.expected(number, least),
            threshold=least,
        )
        for number, least in thresholds.items()
    }


def _scores(picks: Picks, number: int) -> FloatArray:
    """Return the scores of a class."""
    if picks.scores is None:
        raise ValueError("expected picks with scores, got some without; find them by `find_peaks`")
    scores: FloatArray = np.asarray(picks.scores[picks.classes == number], dtype=np.float64)
    return scores
