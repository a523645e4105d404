"""Patches of real labelled tomograms, alone or mixed with simulated ones in one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import (
    FileFormatError,
    SimulationError,
    check_count,
    check_finite,
    check_fraction,
    check_ndim,
    check_positive,
)
from faket_aug._random import numpy_generator
from faket_aug._threads import intra_op_threads
from faket_aug.dataset import FakETDataset
from faket_aug.formats.copick import read_copick_tomogram
from faket_aug.formats.mrc import read_mrc
from faket_aug.generation import specimen_of
from faket_aug.labelling import Labelling, choose_name, is_copick, read_class_names, read_labels, read_picks
from faket_aug.patches import check_fits
from faket_aug.sampling import LiveTomogram
from faket_aug.specimen import ParticleTable, choose_voxel_size

#: Share of real tomograms, or its values at some epochs, with straight lines between.
Share = float | Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class LabelledTomogram:
    """A tomogram of a microscope (or of another program) with its labels.

    Parameters
    ----------
    tomogram
        `(z, y, x)`, floating point, **dark** particles, as the simulated ones.
    labels
        `(z, y, x)`, uint8, class numbers, 0 is background. All 0 where only places are known: then use
        `target="sphere"`.
    particles
        The particle table.
    voxel_size
        Å.
    class_names
        Names of the class numbers.
    name
        For messages.

    Raises
    ------
    ValueError, FileFormatError
        If shapes do not go together, a value is not finite, or a particle lies outside.
    """

    tomogram: Tensor
    labels: Tensor
    particles: ParticleTable
    voxel_size: float
    class_names: Mapping[int, str] = field(default_factory=dict)
    name: str = "tomogram"

    def __post_init__(self) -> None:
        check_ndim("tomogram", self.tomogram, "z y x")
        check_positive("voxel_size", self.voxel_size)
        check_finite(self.tomogram, self.name)
        if self.labels.shape != self.tomogram.shape:
            raise FileFormatError(
                f"{self.name}: expected labels of the tomogram's shape {tuple(self.tomogram.shape)}, got "
                f"{tuple(self.labels.shape)}"
            )
        if self.labels.dtype != torch.uint8:
            raise ValueError(f"{self.name}: expected uint8 labels, got {self.labels.dtype}")
        if not np.isfinite(self.particles.positions).all():
            raise FileFormatError(f"{self.name}: expected finite places of particles, got NaN or infinite ones")
        nearest = np.rint(self.particles.positions)
        outside = ((nearest < 0) | (nearest >= np.array(self.tomogram.shape))).any(axis=1)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise FileFormatError(
                f"{self.name}: expected particles within {tuple(self.tomogram.shape)} voxels (z, y, x), got "
                f"{int(outside.sum())} outside, the first in row {row + 1} at "
                f"{np.round(self.particles.positions[row], 1).tolist()}; look at voxel size, order and origin"
            )

    @property
    def label_voxel_size(self) -> float:
        """Å, of the labels: the tomogram's own."""
        return self.voxel_size

    @classmethod
    def read(
        cls,
        tomogram: str | Path,
        *,
        picks: str | Path | None = None,
        labels: str | Path | None = None,
        class_names: Mapping[int, str] | None = None,
        voxel_size: float | None = None,
        dark: bool = True,
        name: str | None = None,
        tomogram_type: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> Self:
        """Read a tomogram with picks, labels, or both.

        Parameters
        ----------
        tomogram
            An MRC file, or a copick project (its folder or configuration), whose picks are then the default.
        picks
            RELION's `.star`, DeepFinder's `.xml`, a `.csv`, SHREC's `.txt`, or a copick project.
        labels
            An MRC file of the tomogram's shape, or a copick project. Without, all are 0: use `target="sphere"`.
        class_names
            Names of the class numbers: those of the simulated tomograms that these are mixed with. By default the
            copick project's, or those of a `class_conversion_table.txt` beside labels or picks, or in the folder above.
            Without any, classes are named by numbers.
        voxel_size
            Å; by default the header's. It also chooses among a copick project's tomograms.
        dark
            Whether particles are dark in the tomogram. If not, it is negated.
        name
            Which tomogram, where a list holds several (its name in a STAR file, its index in an XML file), or the run
            of a copick project; by default the file's name, or the only run.
        tomogram_type, user_id, session_id
            Which tomogram, and whose picks and segmentation, where a copick project has several.

        Raises
        ------
        ValueError
            If there are neither picks nor labels.
        FileNotFoundError, FileFormatError
            If a file is missing or wrong, a class has no name, a particle lies outside, or shapes do not go together;
            the message names the file.
        """
        if is_copick(tomogram) and picks is None and labels is None:
            picks = tomogram
        if picks is None and labels is None:
            raise ValueError(f"{tomogram}: expected its picks, labels or both, got none; set `picks` or `labels`")
        files, whose = (picks, labels), {"user_id": user_id, "session_id": session_id}
        names = read_class_names(files) if class_names is None else dict(class_names)
        name = choose_name((tomogram, *files), name, Path(tomogram).stem)
        if is_copick(tomogram):
            volume, size = read_copick_tomogram(tomogram, run=name, tomogram_type=tomogram_type, voxel_size=voxel_size)
        else:
            volume, header = read_mrc(tomogram)
            size = choose_voxel_size(voxel_size, header, Path(tomogram))
        numbers = torch.zeros(volume.shape, dtype=torch.uint8)
        if labels is not None:
            numbers = read_labels(labels, name=name, class_names=names, voxel_size=size, **whose)
        particles = ParticleTable.empty()
        if picks is not None:
            known = Labelling(labels=numbers, label_voxel_size=size, class_names=names)
            particles = read_picks(picks, known, name=name, **whose)
        return cls(
            tomogram=volume.float() if dark else -volume.float(),
            labels=numbers,
            particles=particles,
            voxel_size=size,
            class_names=names,
            # Of what could be wrong, the picks are the likeliest.
            name=str(tomogram) if picks is None or is_copick(picks) else f"{tomogram} with {picks}",
        )


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
