"""The network of DeepFinder: a three-dimensional U-Net that labels the voxels of a tomogram."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from faket_aug._checks import check_ndim, check_positive

#: Two poolings by 2: every side of the input is a multiple of this.
SIZE_MULTIPLE = 4
#: Channels at full, half and quarter size.
WIDTHS = (32, 48, 64)


class DeepFinderNet(nn.Module):
    """Label the voxels of tomograms; the network of DeepFinder.

    It pools twice, and goes up again by repeating voxels and a convolution with a kernel of 2³. A ReLU follows each
    convolution but the last. Weights are drawn as in Keras (uniform by Glorot, biases 0), from torch's global
    generator.

    Parameters
    ----------
    classes
        Number of classes, including the background.
    in_channels
        Number of channels of the images; 1 for tomograms.
    widths
        Number of channels at full, half and quarter size; by default as in DeepFinder. With half as many the network
        takes a quarter of the time.
    voxel_size
        Voxel size in Å of the tomograms that it is trained on; 0 if unknown. It is saved with the weights, so that
        `segment` can warn if a tomogram has another one.

    Raises
    ------
    ValueError
        If there are fewer than two classes, no channels, or not three widths.

    References
    ----------
    Moebel et al., *Deep learning improves macromolecule identification in 3D cellular cryo-electron tomograms*,
    Nature Methods 18 (2021), 1386-1394.
    """

    def __init__(
        self, classes: int, *, in_channels: int = 1, widths: Sequence[int] = WIDTHS, voxel_size: float = 0.0
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"expected `classes` to be 2 or more, the background among them, got {classes}")
        check_positive("in_channels", in_channels)
        if len(widths) != 3 or min(widths) < 1:
            raise ValueError(f"expected `widths` of three levels, each 1 or more, got {tuple(widths)}")
        high, middle, low = widths
        self.classes = classes
        self.in_channels = in_channels
        self.down_1 = _convolutions(in_channels, high, high)
        self.down_2 = _convolutions(high, middle, middle)
        self.bottom = _convolutions(middle, low, low, low, low)
        self.up_2 = _Upsampling(low, low)
        self.merge_2 = _convolutions(low + middle, middle, middle)
        self.up_1 = _Upsampling(middle, middle)
        self.merge_1 = _convolutions(middle + high, high, high)
        self.head = nn.Conv3d(high, classes, 1)
        check_positive("voxel_size", voxel_size, zero=True)
        self.register_buffer("_voxel_size", torch.tensor(float(voxel_size), dtype=torch.float64))
        self.apply(_reset)
        # Channels last: convolutions are 1.4 (bfloat16) to 2.7 times (float32) as fast on a CPU.
        self.to(memory_format=torch.channels_last_3d)

    @property
    def voxel_size(self) -> float:
        """The voxel size in Å of the tomograms that it was trained on; 0 if unknown."""
        size: Tensor = self.get_buffer("_voxel_size")
        return float(size)

    def forward(self, images: Tensor, inner: Sequence[slice] | None = None) -> Tensor:
        """Compute the logits of the classes, without softmax.

        Parameters
        ----------
        images
            `(n, channel, z, y, x)`, tomograms or patches of mean 0 and standard deviation 1; each side a multiple of 4.
        inner
            (z, y, x), the part whose logits are wanted; by default all. On the way up no more is computed than this
            part depends on; the rest of the images counts as it does for all.

        Returns
        -------
        `(n, class, z, y, x)`.

        Raises
        ------
        ValueError
            If the number of axes or channels is wrong, or a side is not a multiple of 4.
        """
        self._check(images)
        high = self.down_1(images)
        middle = self.down_2(functional.max_pool3d(high, 2))
        low = self.bottom(functional.max_pool3d(middle, 2))
        if inner is not None:
            return self._within(high, middle, low, inner)
        middle = self.merge_2(torch.cat([self.up_2(low), middle], dim=1))
        high = self.merge_1(torch.cat([self.up_1(middle), high], dim=1))
        logits: Tensor = self.head(high)
        return logits

    def _within(self, high: Tensor, middle: Tensor, low: Tensor, inner: Sequence[slice]) -> Tensor:
        """Go up within a part only: each level computes what the next one reads."""
        full, half = _grown(inner, high.shape[2:]), middle.shape[2:]
        read = _coarser(full, half)
        wide = _grown(read, half)
        raised = self._raised(self.up_2, low, _coarser(wide, low.shape[2:]), wide)
        middle = self.merge_2(torch.cat([raised, _cut(middle, wide)], dim=1))
        raised = self._raised(self.up_1, _cut(middle, _relative(read, wide)), None, full)
        high = self.merge_1(torch.cat([raised, _cut(high, full)], dim=1))
        logits: Tensor = self.head(_cut(high, _relative(inner, full)))
        return logits

    def _raised(self, up: nn.Module, low: Tensor, part: Sequence[slice] | None, box: Sequence[slice]) -> Tensor:
        """Go up a level from a part that holds one voxel more at the end than `box`, where there is one."""
        raised: Tensor = up(low if part is None else _cut(low, part))
        return _cut(raised, [slice(0, one.stop - one.start) for one in box])

    def _check(self, images: Tensor) -> None:
        check_ndim("images", images, "n channel z y x")
        if images.shape[1] != self.in_channels:
            raise ValueError(f"expected `images` with {self.in_channels} channel(s), got {images.shape[1]}")
        size = tuple(images.shape[2:])
        if any(side == 0 or side % SIZE_MULTIPLE for side in size):
            raise ValueError(
                f"expected `images` whose sides (z, y, x) are multiples of {SIZE_MULTIPLE}, got {size}; crop or pad "
                "them, or set `patch_size` to such a number"
            )


class _Upsampling(nn.Module):
    """Repeat every voxel twice along each axis, then convolve with a kernel of 2³."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(in_channels, out_channels, 2)

    def forward(self, images: Tensor) -> Tensor:
        larger = functional.interpolate(images, scale_factor=2, mode="nearest")
        # Keras pads an even kernel at the end of each axis.
        return functional.relu(self.convolution(functional.pad(larger, (0, 1) * 3)))


class _Convolution(nn.Conv3d):
    """A convolution of 3³, right also where oneDNN is not: in bfloat16, for images of two voxels along z.

    There the gradient by its weights reads memory that is not its own (torch 2.14, oneDNN 3.12): it has other values
    each time, and NaN. It is right where the padding along z is part of the images.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2] != 2 or not torch.is_grad_enabled() or not _is_bfloat16_on_the_cpu(input):
            return super().forward(input)
        padded = functional.pad(input, (0, 0, 0, 0, 1, 1))
        return functional.conv3d(padded, self.weight, self.bias, padding=(0, 1, 1))


def _is_bfloat16_on_the_cpu(images: Tensor) -> bool:
    return images.device.type == "cpu" and (images.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))


#: Two convolutions of 3³ read so many voxels to each side.
_VIEW = 2


def _grown(box: Sequence[slice], limits: Sequence[int]) -> list[slice]:
    """Return the part that two convolutions read for a box, in whole pairs of voxels."""
    grown = []
    for one, limit in zip(box, limits, strict=True):
        start, stop = max(one.start - _VIEW, 0), min(one.stop + _VIEW, limit)
        grown.append(slice(start - start % 2, min(stop + stop % 2, limit)))
    return grown


def _coarser(box: Sequence[slice], limits: Sequence[int]) -> list[slice]:
    """Return the part of half the resolution that going up to a box reads: a voxel more at its end."""
    return [slice(one.start // 2, min(one.stop // 2 + 1, limit)) for one, limit in zip(box, limits, strict=True)]


def _relative(box: Sequence[slice], origin: Sequence[slice]) -> list[slice]:
    return [slice(one.start - of.start, one.stop - of.start) for one, of in zip(box, origin, strict=True)]


def _cut(images: Tensor, box: Sequence[slice]) -> Tensor:
    return images[(slice(None), slice(None), *box)]


def _convolutions(*channels: int) -> nn.Sequential:
    """Chain convolutions of 3³, each with its ReLU, through these numbers of channels."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [_Convolution(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
