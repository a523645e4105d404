"""Patches of real labelled tomograms, alone or mixed with simulated ones in one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from faket_aug._checks import (
    SimulationError,
    check_count,
    check_fraction,
)
from faket_aug._random import numpy_generator
from faket_aug._runtime.threads import intra_op_threads
from faket_aug.data.dataset import FakETDataset
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.data.patches import check_fits
from faket_aug.data.sampling import LiveTomogram
from faket_aug.data.source import specimen_of

#: Share of real tomograms, or its values at some epochs, with straight lines between.
Share = float | Mapping[int, float]


@dataclass(frozen=True)
class _NoSimulation:
    """What a dataset asks of its simulator where nothing is simulated."""

    device: str = "cpu"
    threads: int = 1


class LabelledPatches(FakETDataset):
    """Labelled patches of real tomograms: items, order, resume and sharding of a `FakETDataset`, nothing simulated.

    Parameters
    ----------
    tomograms
        `LabelledTomogram`s; a sequence may read them when they are asked for.
    settings
        As for `FakETDataset`.
    """

    def __init__(self, tomograms: Sequence[LabelledTomogram], **settings: Any) -> None:
        super().__init__(tomograms, _NoSimulation(), **settings)  # type: ignore[arg-type]

    def _make(self, epoch: int, tomogram: int) -> LiveTomogram:
        # A sequence may compute when it reads: with one thread, in the main process as in workers.
        with intra_op_threads(self.simulator.threads):
            made: Any = specimen_of(self.specimens, seed=self.seed, epoch=epoch, tomogram=tomogram)
        try:
            check_fits(self.sampler.patch_size, made.labels.shape)
            if self.sampler.target == "shape" and len(made.particles) and not bool(made.labels.any()):
                raise ValueError(
                    'expected labels for `target="shape"`, got particles and no labels; set `target="sphere"` and '
                    "`radii`, or read `labels`"
                )
            return LiveTomogram.of(made, radii=self._radii_in_voxels(made))
        except ValueError as error:
            raise SimulationError(f"{made.name}: {error}") from error


class MixedPatches(FakETDataset):
    """One stream of patches of real and of simulated tomograms, at a share that may change with the epoch.

    Whole tomograms are mixed: exactly the share of an epoch's tomograms is real, in random order, and the patches of
    `live_tomograms` of them are mixed in each worker. All that a `FakETDataset` guarantees holds.

    Parameters
    ----------
    real, fake
        The two datasets, of the same patch size and the same patches per tomogram; each keeps its own seed, sampling
        and target. Real ones are a `LabelledPatches`.
    real_share
        Share of real tomograms within [0, 1]; or by epoch, as `{0: 0.0, 10: 0.5}`, with straight lines between and the
        outermost values beyond.
    tomograms_per_epoch
        Tomograms of an epoch; by default those of both.
    live_tomograms, seed, rank, world_size, item_device
        As for `FakETDataset`. `seed` is of the mixing.

    Raises
    ------
    ValueError
        If the datasets do not go together, or the share cannot be.
    """

    def __init__(
        self,
        real: FakETDataset,
        fake: FakETDataset,
        *,
        real_share: Share = 0.5,
        tomograms_per_epoch: int | None = None,
        live_tomograms: int = 4,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        item_device: str = "cpu",
    ) -> None:
        for name in ("patch_size", "patches_per_tomogram"):
            own, other = (getattr(data.sampler, name, None) or getattr(data, name) for data in (real, fake))
            if own != other:
                raise ValueError(f"expected `real` and `fake` with the same `{name}`, got {own} and {other}")
        self.schedule = _as_schedule(real_share)
        if tomograms_per_epoch is None:
            tomograms_per_epoch = real.tomograms_per_epoch + fake.tomograms_per_epoch
        check_count("tomograms_per_epoch", tomograms_per_epoch)
        super().__init__(
            fake.specimens,
            fake.simulator,
            patch_size=fake.sampler.patch_size,
            patches_per_tomogram=fake.patches_per_tomogram,
            tomograms_per_epoch=tomograms_per_epoch,
            live_tomograms=live_tomograms,
            shift=fake.sampler.shift,
            seed=seed,
            rank=rank,
            world_size=world_size,
            item_device=item_device,
        )
        self.real, self.fake = real, fake

    def real_share(self, epoch: int) -> float:
        """The share of real tomograms in an epoch."""
        epochs, shares = zip(*sorted(self.schedule.items()), strict=True)
        return float(np.interp(epoch, epochs, shares))

    def is_real(self, epoch: int, tomogram: int) -> bool:
        """Whether a tomogram of an epoch is a real one."""
        return bool(self._drawn(epoch)[tomogram])

    def _drawn(self, epoch: int) -> npt.NDArray[np.bool_]:
        """Which tomograms of an epoch are real: as many as the share says, anywhere."""
        generator = numpy_generator(self.seed, "specimen", epoch=epoch)
        # A share between two whole numbers is met over the epochs.
        wanted = self.real_share(epoch) * self.tomograms_per_epoch
        count = int(np.floor(wanted + generator.random()))
        drawn = np.zeros(self.tomograms_per_epoch, dtype=bool)
        drawn[generator.permutation(self.tomograms_per_epoch)[:count]] = True
        return drawn

    def _source(self, epoch: int, tomogram: int) -> tuple[FakETDataset, int]:
        """The dataset that a tomogram is from, and its number there: each counts its own."""
        drawn = self._drawn(epoch)
        real = bool(drawn[tomogram])
        return (self.real if real else self.fake), int((drawn[:tomogram] == real).sum())

    def _make(self, epoch: int, tomogram: int) -> LiveTomogram:
        source, number = self._source(epoch, tomogram)
        with nullcontext() if self._cuda_index is None else torch.cuda.device(self._cuda_index):
            return source._make(epoch, number)

    def _item(self, live: LiveTomogram, epoch: int, tomogram: int, patch: int) -> dict[str, Any]:
        source, number = self._source(epoch, tomogram)
        item = source._item(live, epoch, number, patch)
        moved = {name: item[name].to(self.item_device) for name in ("image", "label")}
        own = {"index": tomogram * self.patches_per_tomogram + patch, "tomogram": tomogram}
        return item | moved | own

    def _state(self, epoch: int, streams: int, first: int, delivered: list[int]) -> dict[str, Any]:
        state = super()._state(epoch, streams, first, delivered)
        schedule = [[epoch, share] for epoch, share in sorted(self.schedule.items())]
        return state | {"real_share": schedule, "source_seeds": [self.real.seed, self.fake.seed]}


def _as_schedule(share: Share) -> dict[int, float]:
    schedule = dict(share) if isinstance(share, Mapping) else {0: float(share)}
    if not schedule:
        raise ValueError("expected `real_share` to be a share, or shares by epoch, got none")
    for epoch, value in schedule.items():
        check_count("real_share's epoch", epoch, zero=True)
        check_fraction(f"real_share at epoch {epoch}", value)
    return schedule
