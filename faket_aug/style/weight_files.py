"""Files of encoder weights: read without running code of theirs, and refused where they are damaged."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from faket_aug._checks import WeightsError

#: PyTorch's way to name files of weights: the first digits of the SHA-256 of the content. A date is none.
_HASH_IN_NAME = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8})\.pth?$")


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read a `.safetensors` file, or one of PyTorch's.

    Raises
    ------
    WeightsError
        If it is missing or damaged, holds something else, or its name ends with the hash of another content.
    """
    if not path.is_file():
        raise WeightsError(
            f'expected `weights` to be "torchvision", "random" or a .pth or .safetensors file, got {path}: '
            "there is no such file"
        )
    check_hash(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            _check_parts(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        told = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else type(error).__name__
        raise WeightsError(
            f"{path}: expected a file of tensors, got one that cannot be read ({told}); get it again"
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: expected a state dict, got {type(state).__name__}")
    return state


def check_hash(path: Path) -> None:
    """Refuse a file whose name tells another content: a download that broke off, damage, or other weights.

    Raises
    ------
    WeightsError
        If the first digits of its SHA-256 are not those in its name, as in `vgg19-dcbb9e9d.pth`.
    """
    told = _HASH_IN_NAME.search(path.name)
    if told is None:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(told[1]):
        raise WeightsError(
            f"{path}: expected content whose SHA-256 begins with {told[1]}, as its name says, got "
            f"{found[: len(told[1])]}; the file is damaged: download it again, or rename it if it holds other weights"
        )


def _check_parts(path: Path) -> None:
    """Compare the parts of PyTorch's archive with the checksums that it holds; PyTorch itself does not."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} has another checksum")
