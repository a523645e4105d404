"""Patches of real and of simulated tomograms, mixed in one stream."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from faket_aug._checks import check_count, check_fraction
from faket_aug._random import numpy_generator
from faket_aug.data.agreement import Agreement, Members
from faket_aug.data.dataset import FakETDataset, PatchDataset
from faket_aug.data.drawn import TomogramPatches, Transform
from faket_aug.data.patches import Size
from faket_aug.data.source import Agreeing, Maker, SampledSource, Source

#: The share of real tomograms: one number, or numbers at some epochs with straight lines between them.
Share = float | Mapping[int, float]
_OF_FAKE = ("radii", "sampler", "simulator", "specimens")


class MixedSource(Agreeing):
    """Tomograms of two sources, mixed. The first simulated one sets class numbers and voxel size of both.

    Parameters
    ----------
    real, fake
        The two sources. They have the same patch size and as many patches per tomogram.
    schedule
        The share of real tomograms at some epochs.
    tomograms_per_epoch
        How many tomograms an epoch has, of both together.
    seed
        The seed of the mixing. Each source keeps its own.
    item_device
        The device that the patches of both are put on; where they are read, if it is None.
    transform
        What is done to each item, after the transform of its own source.
    """

    def __init__(
        self,
        real: Source,
        fake: Source,
        *,
        schedule: Mapping[int, float],
        tomograms_per_epoch: int,
        seed: int,
        item_device: str | None,
        transform: Transform | None = None,
    ) -> None:
        for name in ("patch_size", "patches_per_tomogram"):
            own, other = (getattr(source, name) for source in (real, fake))
            if own != other:
                raise ValueError(f"expected `real` and `fake` with the same `{name}`, got {own} and {other}")
        # A source of one's own has targets of its own.
        told = [source.targets for source in (real, fake) if isinstance(source, SampledSource)]
        sampled = [source.sampler for source in (real, fake) if isinstance(source, SampledSource)]
        if len({sampler.halves is not None for sampler in sampled}) > 1:
            raise ValueError("expected `real` and `fake` both with `halves`, or both without, got one of each")
        flavours = [sampler.companions.flavours for sampler in sampled]
        if len(set(flavours)) > 1:
            raise ValueError(
                f"expected `real` and `fake` with the same `flavours`, got {flavours[0]} and {flavours[1]}"
            )
        if len({(frozenset(one.names), one.max_particles) for one in told}) > 1:
            raise ValueError(
                f"expected `real` and `fake` with the same `targets` and `max_particles`, got {told[0]} and {told[1]}"
            )
        check_count("tomograms_per_epoch", tomograms_per_epoch)
        check_count("seed", seed, zero=True)
        self.real, self.fake, self.schedule = real, fake, schedule
        self.tomograms_per_epoch, self.seed, self.item_device = int(tomograms_per_epoch), int(seed), item_device
        self.transform = transform

    @property
    def patch_size(self) -> Size:
        """The size of a patch, (z, y, x) in voxels."""
        return self.fake.patch_size

    @property
    def patches_per_tomogram(self) -> int:
        """How many patches each tomogram gives."""
        return self.fake.patches_per_tomogram

    def makers(self) -> list[tuple[str, Maker]]:
        """List what computes for either source."""
        return [*self.fake.makers(), *self.real.makers()]

    def members(self) -> list[Members]:
        """List the members of both sources, those of `fake` first."""
        return [member for one in (self.fake, self.real) if isinstance(one, Agreeing) for member in one.members()]

    def make(self, epoch: int, tomogram: int, agreement: Agreement | None = None) -> TomogramPatches:
        """Make a tomogram of the source that it is drawn from. Each source counts its own tomograms."""
        drawn = self.drawn(epoch)
        source = self.real if drawn[tomogram] else self.fake
        number = int((drawn[:tomogram] == drawn[tomogram]).sum())
        # A source of one's own answers for its classes itself.
        shared = {"agreement": agreement or self.agreement} if isinstance(source, Agreeing) else {}
        patches = source.make(epoch, number, **shared)
        return patches.transformed_by(self.transform, seed=self.seed, epoch=epoch, tomogram=tomogram)

    def fingerprint(self) -> dict[str, Any]:
        """Return the shares and the seeds of both sources."""
        schedule = [[epoch, share] for epoch, share in sorted(self.schedule.items())]
        return {"real_share": schedule, "source_seeds": [self.real.seed, self.fake.seed]}

    def changed(self) -> str:
        """Return what was set anew of either source since this worker got its copy."""
        return self.fake.changed() or self.real.changed()

    def real_share(self, epoch: int) -> float:
        """Return the share of real tomograms in an epoch."""
        epochs, shares = zip(*sorted(self.schedule.items()), strict=True)
        return float(np.interp(epoch, epochs, shares))

    def drawn(self, epoch: int) -> npt.NDArray[np.bool_]:
        """Draw which tomograms of an epoch are real: `(tomogram,)`. Their number is what the share says."""
        generator = numpy_generator(self.seed, "specimen", epoch=epoch)
        # A share between two whole numbers is met over the epochs.
        wanted = self.real_share(epoch) * self.tomograms_per_epoch
        count = int(np.floor(wanted + generator.random()))
        drawn = np.zeros(self.tomograms_per_epoch, dtype=bool)
        drawn[generator.permutation(self.tomograms_per_epoch)[:count]] = True
        return drawn


@FakETDataset.register  # a subclass in 0.1.0: `isinstance` goes on saying so
class MixedPatches(PatchDataset):
    """Patches of real and of simulated tomograms in one stream. Their share may change with the epoch.

    Whole tomograms are mixed, in random order. The share is exact: it tells how many of an epoch's tomograms are real.
    See `PatchDataset` for what an item is, and what it depends on.

    Parameters
    ----------
    real, fake
        The two datasets, usually a `LabelledPatches` and a `FakETDataset`. They have the same `patch_size` and
        `patches_per_tomogram`. Each keeps its own seed, sampling and target. Classes of real tomograms get the numbers
        of the simulated ones, by name; voxel sizes have to agree within 2 %.
    real_share
        Share of real tomograms, within [0, 1]. Or shares at some epochs, as `{0: 0.0, 10: 0.5}`: between these epochs
        the share changes along a straight line, before the first and after the last it stays.
    tomograms_per_epoch
        How many tomograms an epoch has; by default those of both datasets together.
    live_tomograms, rank, world_size, item_device
        As for `FakETDataset`.
    seed
        The seed of the mixing.
    transform
        As for `FakETDataset`, for the items of both; the datasets' own transforms are applied before.

    Raises
    ------
    ValueError
        If the datasets do not go together, or a setting is impossible.
    """

    source: MixedSource

    def __init__(
        self,
        real: PatchDataset,
        fake: PatchDataset,
        *,
        real_share: Share = 0.5,
        tomograms_per_epoch: int | None = None,
        live_tomograms: int = 4,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        item_device: str | None = None,
        transform: Transform | None = None,
    ) -> None:
        if tomograms_per_epoch is None:
            tomograms_per_epoch = real.tomograms_per_epoch + fake.tomograms_per_epoch
        source = MixedSource(
            real.source,
            fake.source,
            schedule=_as_schedule(real_share),
            tomograms_per_epoch=tomograms_per_epoch,
            seed=seed,
            item_device=item_device,
            transform=transform,
        )
        super().__init__(source, live_tomograms=live_tomograms, rank=rank, world_size=world_size)
        self._real, self._fake = real, fake

    @property
    def real(self) -> PatchDataset:
        """The dataset of real tomograms."""
        return self._real

    @property
    def fake(self) -> PatchDataset:
        """The dataset of simulated tomograms."""
        return self._fake

    @property
    def schedule(self) -> Mapping[int, float]:
        """The share of real tomograms at some epochs."""
        return self.source.schedule

    def real_share(self, epoch: int) -> float:
        """Return the share of real tomograms in an epoch."""
        return self.source.real_share(epoch)

    def is_real(self, epoch: int, tomogram: int) -> bool:
        """Tell whether a tomogram of an epoch is a real one."""
        return bool(self.source.drawn(epoch)[tomogram])

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # A mixture of 0.1.0 had attributes of the simulated dataset.
            if name not in _OF_FAKE:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warnings.warn(f"`MixedPatches.{name}` is deprecated; use `fake.{name}`", DeprecationWarning, stacklevel=2)
            return getattr(self.fake, name)

        def __setattr__(self, name: str, value: Any) -> None:
            # An attribute of the mixture alone would change no tomogram.
            if name not in _OF_FAKE:
                return super().__setattr__(name, value)
            warnings.warn(f"`MixedPatches.{name}` is deprecated; set `fake.{name}`", DeprecationWarning, stacklevel=2)
            return setattr(self.fake, name, value)


def _as_schedule(share: Share) -> dict[int, float]:
    schedule = dict(share) if isinstance(share, Mapping) else {0: float(share)}
    if not schedule:
        raise ValueError("expected `real_share` to be a share, or shares by epoch, got none")
    for epoch, value in schedule.items():
        check_count("real_share's epoch", epoch, zero=True)
        check_fraction(f"real_share at epoch {epoch}", value)
    return schedule
