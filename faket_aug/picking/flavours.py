"""Flavours of a tomogram for a network that sees several: where their files are, and how they are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.simulation.saving import flavour_file


def find_flavours(path: Path, shape: Sequence[int], channels: Sequence[str]) -> dict[str, Path]:
    """Find the files of the flavours that a picker sees: the first is the tomogram, others are beside it.

    Parameters
    ----------
    path
        The tomogram, of the first flavour.
    shape
        Its voxels, (z, y, x).
    channels
        The flavours, in the picker's order.

    Returns
    -------
    The files by flavour; empty where the picker sees one alone.

    Raises
    ------
    FileNotFoundError, ValueError
        If one is missing, or has another shape; the message names the file.
    """
    first, *others = channels or ("",)
    files = {name: flavour_file(path, name) for name in others}
    for name, file in files.items():
        if not file.is_file():
            raise FileNotFoundError(
                f"{path}: expected the flavour {name} of the tomogram, which the picker sees, too, beside it, found "
                f"none at {file}; write it there, as `faket-aug reconstruct` does with --like and the folder of the "
                f"training, or with --flavours {','.join((first, *others))}"
            )
        own = read_mrc_shape(file)
        if tuple(own) != tuple(shape):
            raise ValueError(f"{file}: expected {tuple(shape)} voxels (z, y, x), as {path.name} has, got {tuple(own)}")
    return {first: path} | files if files else {}


def read_flavours(path: Path, volume: Tensor, channels: Sequence[str]) -> dict[str, Tensor]:
    """Read the flavours `(z, y, x)` that a picker sees, see `find_flavours`; `volume` is the first one."""
    files = find_flavours(path, volume.shape, channels) or dict.fromkeys(channels, path)
    return {name: volume if file == path else read_mrc(file)[0].to(torch.float32) for name, file in files.items()}


def put_together(volume: Tensor, flavours: Mapping[str, Tensor]) -> Tensor:
    """Return what a network sees: `(channel, z, y, x)` of several flavours, in their order, else the volume itself."""
    return torch.stack(list(flavours.values())) if len(flavours) > 1 else volume
