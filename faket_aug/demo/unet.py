"""A small 3-D U-Net, enough to see that labelled patches teach something."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Channels at full, half and quarter size.
WIDTHS = (8, 24, 48)


class SmallUNet(nn.Module):
    """A 3-D U-Net of three sizes, with group normalisation; about 200 000 parameters.

    Parameters
    ----------
    classes
        Classes of the output, background among them.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        full, half, quarter = WIDTHS
        self.down1 = _block(1, full)
        self.down2 = _block(full, half)
        self.bottom = _block(half, quarter)
        self.up2 = _block(quarter + half, half)
        self.up1 = _block(half + full, full)
        self.head = nn.Conv3d(full, classes, 1)
        self.pool = nn.MaxPool3d(2)
        self.grow = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits `(n, classes, z, y, x)` of images `(n, 1, z, y, x)` whose sides are multiples of 4."""
        full = self.down1(image)
        half = self.down2(self.pool(full))
        quarter = self.bottom(self.pool(half))
        half = self.up2(torch.cat([self.grow(quarter), half], dim=1))
        full = self.up1(torch.cat([self.grow(half), full], dim=1))
        logits: Tensor = self.head(full)
        return logits


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, after, 3, padding=1, bias=False),
        nn.GroupNorm(after // 4, after),
        nn.ReLU(inplace=True),
        nn.Conv3d(after, after, 3, padding=1, bias=False),
        nn.GroupNorm(after // 4, after),
        nn.ReLU(inplace=True),
    )


def seeded_network(classes: int, *, seed: int) -> SmallUNet:
    """Make a network whose start depends on `seed` only; torch's global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallUNet(classes)
