"""Settings of the demonstration."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from faket_aug._checks import check_positive
from faket_aug._settings import from_library
from faket_aug.data.dataset import FakETDataset
from faket_aug.simulation.simulator import FakETSimulator


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """Settings of the demonstration.

    Parameters
    ----------
    output
        Folder of `preview.png`, made where it is missing.
    steps
        Training steps.
    seed
        Of all chance.
    weights
        Encoder weights: a `.pth` or `.safetensors` file, `"torchvision"` (downloaded where they are missing) or
        `"random"`. By default torchvision's if they are in its cache, else `"random"`.
    style_layers
        ReLUs of VGG-19 in torchvision's numbering; by default the published ones that the weights reach.
    device
        Where simulation and training run: `"cpu"`, `"cuda"` or `"cuda:1"`.
    shape
        `(z, y, x)`, voxels of each specimen.
    specimens
        Specimens to train on.
    style_series
        Tilt-series that serve as style.
    tilt_step, max_tilt
        Degrees, from tilt to tilt and of the largest one.
    patch_size, batch_size, patches_per_tomogram
        Of the training.
    """

    output: Path = Path("demo")
    steps: int = 150
    seed: int = from_library(FakETDataset, "seed")
    weights: str | None = None
    style_layers: tuple[int, ...] | None = None
    device: str = from_library(FakETSimulator, "device")
    shape: tuple[int, int, int] = (48, 128, 128)
    specimens: int = 4
    style_series: int = 2
    tilt_step: float = 4.0
    max_tilt: float = 60.0
    patch_size: int = 32
    batch_size: int = 4
    patches_per_tomogram: int = 100

    def __post_init__(self) -> None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(f'expected `device` to be "cpu", "cuda" or "cuda:1", got {self.device!r}')
        for name in ("steps", "specimens", "style_series", "tilt_step", "patch_size", "batch_size"):
            check_positive(name, getattr(self, name))
        check_positive("seed", self.seed, zero=True)

    @property
    def tilt_angles(self) -> tuple[float, ...]:
        """Degrees, evenly from the largest tilt to the other side."""
        count = round(self.max_tilt / self.tilt_step)
        return tuple(self.tilt_step * tilt for tilt in range(-count, count + 1))

    @property
    def tomograms(self) -> int:
        """How many tomograms the training steps need."""
        return math.ceil(self.steps * self.batch_size / self.patches_per_tomogram)
