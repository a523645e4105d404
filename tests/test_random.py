"""Chance from addresses: distinct streams, pinned values, nothing from a global generator."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from faket_aug._random import STAGES, numpy_generator, seed_sequence, torch_generator, torch_seed

ADDRESS = {"epoch": 2, "tomogram": 3, "patch": 5}
PINNED_INTEGERS = [1717663005, 2601624863, 1550797991]
PINNED_FLOATS = [0.4150967035576897, 0.7468963251919599]
PINNED_SEEDS = (639922378781192059, 743381406026044747)
PINNED_NORMALS = [1.743612, -2.092884, 0.490276]


def test_stages_are_pinned() -> None:
    """A stage's place is part of its address: stages may be added at the end, never moved."""
    assert STAGES[:8] == ("order", "specimen", "style", "noise", "patch", "augmentation", "demo", "encoder")
    assert len(set(STAGES)) == len(STAGES)


def test_streams_are_pinned() -> None:
    """An address gives the same numbers for ever, on every machine."""
    assert numpy_generator(0, "noise").integers(0, 2**32, 3).tolist() == PINNED_INTEGERS
    assert numpy_generator(7, "patch", **ADDRESS).random(2).tolist() == PINNED_FLOATS
    assert torch_seed(0, "noise") == PINNED_SEEDS[0]
    assert torch_seed(7, "patch", **ADDRESS) == PINNED_SEEDS[1]
    drawn = torch.randn(3, generator=torch_generator(torch_seed(0, "noise"))).tolist()
    assert drawn == pytest.approx(PINNED_NORMALS, abs=1e-6)


def test_streams_are_distinct() -> None:
    """No two addresses share a stream: not neighbouring seeds and epochs, not exchanged parts, not two stages."""
    small = range(3)
    addresses = list(itertools.product(small, STAGES, small, small, small))
    seeds = {
        torch_seed(seed, stage, epoch=epoch, tomogram=tomogram, patch=patch)
        for seed, stage, epoch, tomogram, patch in addresses
    }
    assert len(seeds) == len(addresses)
    first = {
        tuple(numpy_generator(seed, stage, epoch=epoch, tomogram=tomogram, patch=patch).integers(0, 2**32, 2))
        for seed, stage, epoch, tomogram, patch in addresses[::7]
    }
    assert len(first) == len(addresses[::7])


def test_large_addresses() -> None:
    """Seeds and counters beyond 32 and 64 bits are addresses of their own."""
    seeds = [torch_seed(seed, "noise") for seed in (1, 1 + 2**32, 1 + 2**64, 2**128)]
    seeds += [torch_seed(1, "noise", patch=patch) for patch in (1, 1 + 2**32)]
    assert len(set(seeds)) == len(seeds)


def test_torch_seeds_fit() -> None:
    """A seed for torch is a Python integer of 63 bits, which every torch generator takes."""
    for i in range(50):
        number = torch_seed(i, "noise")
        assert type(number) is int
        assert 0 <= number < 2**63
        assert torch_generator(number).initial_seed() == number


def test_generators_are_fresh() -> None:
    """Each call starts the stream anew; drawing from one does not move another."""
    first, second = numpy_generator(1, "style"), numpy_generator(1, "style")
    drawn = first.random(5)
    np.testing.assert_array_equal(drawn, second.random(5))
    number = torch_seed(1, "style")
    one, two = torch_generator(number), torch_generator(number)
    assert torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=two))


@pytest.mark.parametrize("bad", [{"epoch": -1}, {"tomogram": -2}, {"patch": -1}])
def test_negative_addresses_are_refused(bad: dict[str, int]) -> None:
    """All parts of an address are 0 or more, and the message shows them."""
    for make in (seed_sequence, numpy_generator, torch_seed):
        with pytest.raises(ValueError, match="a seed and an address of 0 or more, got seed 3 and"):
            make(3, "noise", **bad)
        with pytest.raises(ValueError, match="got seed -1 and"):
            make(-1, "noise")


def test_unknown_stages_are_refused() -> None:
    """A stage that is not listed has no address."""
    with pytest.raises(ValueError):
        seed_sequence(0, "coffee")
