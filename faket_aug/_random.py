"""Random numbers from an address `(seed, stage, epoch, tomogram, patch)`, never from a global generator."""

from __future__ import annotations

import numpy as np
import torch

from faket_aug._checks import check_choice

#: Streams that must not coincide; the position in this tuple is part of the address, so only append.
STAGES = (
    "order",
    "specimen",
    "style",
    "noise",
    "patch",
    "augmentation",
    "demo",
    "encoder",
    "generation",
    "ctf",
    "alignment",
    "crowd",
    "transform",
    "background",
    "variation",
    "halves",
    "control",
    "conformer",
    "ice",
)


def seed_sequence(
    seed: int, stage: str, *, epoch: int = 0, tomogram: int = 0, patch: int = 0
) -> np.random.SeedSequence:
    """Mix an address into a seed sequence (all parts are integers of 0 or more)."""
    check_choice("stage", stage, STAGES)
    address = (STAGES.index(stage), epoch, tomogram, patch)
    if seed < 0 or min(address) < 0:
        raise ValueError(f"expected a seed and an address of 0 or more, got seed {seed} and {address}")
    return np.random.SeedSequence(entropy=seed, spawn_key=address)


def numpy_generator(seed: int, stage: str, *, epoch: int = 0, tomogram: int = 0, patch: int = 0) -> np.random.Generator:
    """Make the NumPy generator of an address."""
    return np.random.default_rng(seed_sequence(seed, stage, epoch=epoch, tomogram=tomogram, patch=patch))


def torch_seed(seed: int, stage: str, *, epoch: int = 0, tomogram: int = 0, patch: int = 0) -> int:
    """Draw the 63-bit seed of an address, for `torch_generator`."""
    sequence = seed_sequence(seed, stage, epoch=epoch, tomogram=tomogram, patch=patch)
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def torch_generator(number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a torch generator on `device` from a seed made by `torch_seed`."""
    return torch.Generator(device=device).manual_seed(number)
