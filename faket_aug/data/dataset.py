"""The datasets: labelled patches of tomograms that are simulated while a network trains, or of real ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch.utils.data import IterableDataset

from faket_aug.data.augmentation import PatchAugmentation
from faket_aug.data.drawn import Transform
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.data.patches import as_size
from faket_aug.data.sampling import PatchSampler
from faket_aug.data.source import Agreeing, LabelledSource, SimulatedSource, Source
from faket_aug.data.stream import PatchStream
from faket_aug.data.targets import PatchTargets
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.simulation.own_parts import TomogramSimulator
from faket_aug.specimens.tilted import Specimen


class PatchDataset(IterableDataset[dict[str, Any]]):
    """Labelled patches: what `FakETDataset`, `LabelledPatches` and `MixedPatches` have in common.

    An item is a dict:

    - `image`: float32, `(1, z, y, x)`; with `flavours` one channel for each, `(c, z, y, x)`;
    - `label`: int64, `(z, y, x)`, class numbers, if `"labels"` is among the `targets`;
    - `index`: int, names the item within an epoch;
    - `tomogram`: int, the tomogram that the patch is cut from;
    - `position`: int64, `(3,)`, the centre of the patch, (z, y, x) in voxels of the tomogram;
    - `particle_class`: int, the class of the particle that the patch is centred on; 0 for background;
    - `image_other`: float32, `(1, z, y, x)`, the same place in the other half, with `halves`;
    - what else the `targets` ask for, see `PatchTargets`.

    Class numbers are those of the first specimen; other specimens' classes get them by their names. Without names equal
    numbers mean the same class. Specimens whose voxel sizes differ by more than 2 % are refused.

    An item depends on `seed`, `epoch` and `index` only. Workers, ranks, order and resumption do not change it. Workers
    and ranks take whole tomograms.

    Parameters
    ----------
    source
        Makes the tomograms.
    live_tomograms, rank, world_size
        As for `FakETDataset`.
    """

    def __init__(self, source: Source, *, live_tomograms: int, rank: int | None, world_size: int | None) -> None:
        super().__init__()
        self.source = source
        self._stream = PatchStream(source, live_tomograms=live_tomograms, rank=rank, world_size=world_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._stream.begin()

    def __len__(self) -> int:
        """Return the number of items in an epoch on this rank, over all of its workers."""
        return len(self._stream)

    @property
    def class_names(self) -> dict[int, str]:
        """Names of the class numbers of the items, without the background.

        The first specimen sets the numbers, in a mixture the first simulated one. Classes that it lacks are among them
        only if the specimens tell theirs without being read.
        """
        return self.source.agreement.class_names() if isinstance(self.source, Agreeing) else {}

    @property
    def voxel_size(self) -> float:
        """Voxel size of the patches, Å; 0 if only a specimen that has to be read tells it."""
        known = self.source.agreement.known() if isinstance(self.source, Agreeing) else None
        return 0.0 if known is None else known.voxel_size

    @property
    def seed(self) -> int:
        """The seed of all random numbers."""
        return self.source.seed

    @property
    def tomograms_per_epoch(self) -> int:
        """How many tomograms an epoch has, over all ranks."""
        return self.source.tomograms_per_epoch

    @property
    def patches_per_tomogram(self) -> int:
        """How many patches are cut from each tomogram."""
        return self.source.patches_per_tomogram

    @property
    def item_device(self) -> str:
        """The device that the tensors of the items are put on."""
        return self._stream.item_device

    @property
    def live_tomograms(self) -> int:
        """How many tomograms' patches are mixed in each worker."""
        return self._stream.live_tomograms

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._stream.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass. Call it before each pass, as with a `DistributedSampler`.

        Persistent workers learn of it, too. If a state of this epoch was just loaded, the epoch goes on where the state
        was taken.
        """
        self._stream.set_epoch(epoch)

    def allow_uneven_ranks(self) -> None:
        """Say that who reads copes with ranks whose epochs differ in length: no warning comes. `picking.fit` does."""
        self._stream.uneven_ranks = True

    def read_on(self, device: torch.device | str) -> None:
        """Say where a training needs the items of this process: those without an `item_device` are put there.

        `picking.fit` says it. Workers put their items on the CPU all the same. So does this process if there is a
        `transform`, which may need them there.

        Parameters
        ----------
        device
            Where the network is.
        """
        self._stream.read_on = str(torch.device(device))

    def state_dict(
        self,
        *,
        batches: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        drop_last: bool = False,
    ) -> dict[str, Any]:
        """Return where the dataset stands: a small dict that JSON can hold.

        Without arguments the state is that of this process. This is enough for `num_workers=0`, and for the
        `StatefulDataLoader` of `torchdata`, which asks each worker. With an ordinary `DataLoader` that has workers, the
        main process cannot see how far they are. Then say how many batches you took in this pass of the loader.

        Parameters
        ----------
        batches
            Batches that were taken since this pass of the loader began.
        batch_size, num_workers, drop_last
            The loader's own settings.

        Returns
        -------
        The settings of the dataset (`format`, `seed`, `world_size`, `tomograms`, `patches`, `live`) and the position
        (`epoch`, `streams`, `first`, and `delivered`, how far each worker is). A state can be loaded only where the
        settings are the same.

        Raises
        ------
        RuntimeError
            If a loader with workers is running and `batches` is not given.
        ValueError
            If the loader's settings are missing or impossible. If the loader has `in_order=False` and several workers:
            the number of batches then does not tell how far each of them is.
        """
        if batches is None:
            return self._stream.state()
        if batch_size is None or num_workers is None:
            raise ValueError("expected `batch_size` and `num_workers` of the loader with `batches`, got None")
        return self._stream.state_after(
            batches=batches, batch_size=batch_size, num_workers=num_workers, drop_last=drop_last
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on where a state was taken.

        Use as many workers as before. You may call `set_epoch(state["epoch"])`, as before any pass.

        Raises
        ------
        ValueError
            If the state is not one of this dataset: it has other keys, or another seed, or other numbers of tomograms,
            patches or ranks.
        """
        self._stream.load(state)


class FakETDataset(PatchDataset):
    """Labelled patches of tomograms that are simulated while a network trains on them.

    See `PatchDataset` for what an item is, and what it depends on.

    Parameters
    ----------
    specimens
        A sequence of specimens: `GrandModel`s or `TiltedSpecimen`s. `read_specimens` gives a sequence that reads each
        one when it is needed. Or a `GrandModelGenerator`, which makes a new specimen for each tomogram of each epoch.
    simulator
        Makes the tomograms: a `FakETSimulator`, a `VariedSimulator`, or one of your own (`TomogramSimulator`).
    patch_size
        Size of a patch in voxels, one number or (z, y, x).
    patches_per_tomogram
        How many patches are cut from each tomogram.
    tomograms_per_epoch
        How many tomograms an epoch has; by default one for each specimen of a sequence. The specimens are used in
        random order, each equally often.
    live_tomograms
        How many tomograms' patches are mixed in each worker. One more tomogram is made ahead.
    shift
        Largest random shift between the centre of a patch and its particle, in voxels along each axis.
    class_balanced
        Whether each class of particles in a tomogram is chosen equally often. By default each particle is.
    background_fraction
        Share of the patches that are cut at random positions, within [0, 1]. A specimen without a particle table gives
        such patches only.
    half_turn
        Whether half of the patches are rotated by 180° about the tilt axis, as published.
    augmentation
        More augmentation; none by default.
    normalize
        Whether each image is brought to mean 0 and standard deviation 1.
    target
        What the labels show. `"shape"`: the labels of the specimen. `"sphere"`: a sphere for each particle.
    radii
        With `"sphere"`, and with spheres or heatmaps among the `targets`: the radius of each class in Å, by class
        number or name. Other classes are not drawn.
    targets
        What an item holds besides its image: names, such as `("labels", "heatmaps", "particles")`, or a `PatchTargets`,
        which describes them and has their settings. By default the labels alone.
    halves
        Make pairs for a denoiser: `image` and `image_other` show the same place in two halves of the tomogram, with the
        same signal and independent noise. `"tilts"`: halves of every other tilt. `"exposures"`: each tilt drawn twice,
        with the noise of half the exposure. With `normalize` both have the scale of `image`. None for no pairs.
    flavours
        Flavours of the tomogram, which become the channels of `image`, in this order: `"raw"`, `"phase-flip"`,
        `"wiener"`, `"low-pass"`, `"deconvolved"`, see `FakETSimulator`. Each channel is normalized by itself. Without
        any the image has the simulator's own flavour. Halves and clean images have the first of them.
    seed
        The seed of all random numbers.
    rank, world_size
        This process of a distributed job; both, or neither. By default they are those of `torch.distributed`, or of the
        environment that `torchrun` makes.
    item_device
        The device that the tensors of the items are put on. By default that of the training (`picking.fit`, or
        `read_on`), if the loader has no workers and there is no `transform`; else the CPU.
    transform
        A function of your own, `transform(item, generator)`, which returns the item. It is called last. The
        `torch.Generator` is seeded by the address of the item: draw all random numbers from it. To start workers by
        `spawn`, it has to be a function of a module, or an object that pickles.

    Raises
    ------
    ValueError
        If a setting is impossible. The message says what was expected.
    TypeError
        If the simulator lacks what `TomogramSimulator` says.
    SimulationError
        While iterating, if a tomogram cannot be made. The message names the specimen and the cause.
    """

    source: SimulatedSource

    def __init__(
        self,
        specimens: Sequence[Specimen] | GrandModelGenerator,
        simulator: TomogramSimulator,
        *,
        patch_size: int | Sequence[int] = 56,
        patches_per_tomogram: int = 64,
        tomograms_per_epoch: int | None = None,
        live_tomograms: int = 2,
        shift: int = 13,
        class_balanced: bool = False,
        background_fraction: float = 0.0,
        half_turn: bool = True,
        augmentation: PatchAugmentation | None = None,
        normalize: bool = True,
        target: str = "shape",
        radii: Mapping[int | str, float] | None = None,
        targets: Sequence[str] | PatchTargets = ("labels",),
        halves: str | None = None,
        flavours: Sequence[str] = (),
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        item_device: str | None = None,
        transform: Transform | None = None,
    ) -> None:
        sampler = PatchSampler(
            patch_size=as_size(patch_size),
            shift=shift,
            class_balanced=class_balanced,
            background_fraction=background_fraction,
            half_turn=half_turn,
            augmentation=augmentation,
            normalize=normalize,
            target=target,
            targets=PatchTargets.of(targets),
            halves=halves,
            flavours=flavours,
        )
        source = SimulatedSource(
            specimens,
            simulator,
            tomograms_per_epoch=tomograms_per_epoch,
            sampler=sampler,
            patches_per_tomogram=patches_per_tomogram,
            radii=radii,
            seed=seed,
            item_device=item_device,
            transform=transform,
        )
        super().__init__(source, live_tomograms=live_tomograms, rank=rank, world_size=world_size)

    @property
    def specimens(self) -> Sequence[Specimen] | GrandModelGenerator:
        """The specimens, or what generates them."""
        return self.source.specimens

    @specimens.setter
    def specimens(self, specimens: Sequence[Specimen] | GrandModelGenerator) -> None:
        self.source.specimens = specimens

    @property
    def simulator(self) -> TomogramSimulator:
        """The simulator that makes the tomograms."""
        return self.source.simulator

    @simulator.setter
    def simulator(self, simulator: TomogramSimulator) -> None:
        # Persistent workers keep their copy; they refuse to begin another pass with it.
        self.source.simulator = simulator

    @property
    def sampler(self) -> PatchSampler:
        """How patches are drawn."""
        return self.source.sampler

    @property
    def radii(self) -> Mapping[int | str, float] | None:
        """The radius of each class in Å, for spheres as targets."""
        return self.source.radii


@FakETDataset.register  # a subclass in 0.1.0: `isinstance` goes on saying so
class LabelledPatches(PatchDataset):
    """Labelled patches of real tomograms; nothing is simulated.

    See `PatchDataset` for what an item is, and what it depends on.

    Parameters
    ----------
    tomograms
        A sequence of `LabelledTomogram`s. It may read each one when it is needed.
    **settings
        All settings of `FakETDataset`, from `patch_size` to `transform`, with the same defaults.

    Raises
    ------
    ValueError
        If a setting is impossible. The message says what was expected.
    SimulationError
        While iterating, if a tomogram cannot be read. The message names the tomogram and the cause.
    """

    source: LabelledSource

    def __init__(self, tomograms: Sequence[LabelledTomogram], **settings: Any) -> None:
        given = {**(FakETDataset.__init__.__kwdefaults__ or {}), **settings}
        given["patch_size"], given["targets"] = as_size(given["patch_size"]), PatchTargets.of(given["targets"])
        sampler = PatchSampler(**{field.name: given.pop(field.name) for field in fields(PatchSampler)})
        stream = {name: given.pop(name) for name in ("live_tomograms", "rank", "world_size")}
        super().__init__(LabelledSource(tomograms, sampler=sampler, **given), **stream)

    @property
    def tomograms(self) -> Sequence[LabelledTomogram]:
        """The tomograms."""
        return self.source.tomograms

    @property
    def specimens(self) -> Sequence[LabelledTomogram]:
        """Deprecated: use `tomograms`."""
        warnings.warn("`LabelledPatches.specimens` is deprecated; use `tomograms`", DeprecationWarning, stacklevel=2)
        return self.tomograms

    @property
    def sampler(self) -> PatchSampler:
        """How patches are drawn."""
        return self.source.sampler

    @property
    def radii(self) -> Mapping[int | str, float] | None:
        """The radius of each class in Å, for spheres as targets."""
        return self.source.radii
