"""Where the tomograms of a stream come from: simulated from specimens, or read with their labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from faket_aug._checks import SimulationError, check_count
from faket_aug._random import numpy_generator
from faket_aug._runtime.threads import DEVICE, intra_op_threads
from faket_aug.data.agreement import Agreement, Members
from faket_aug.data.drawn import Live, TomogramPatches, Transform
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.data.patches import Size, check_fits
from faket_aug.data.progress import Changes
from faket_aug.data.sampling import LiveTomogram, PatchSampler, check_radii, radii_of_classes
from faket_aug.data.targets import PatchTargets
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.simulation.own_parts import TomogramSimulator, check_made, check_simulator
from faket_aug.simulation.tomogram import SimulatedTomogram
from faket_aug.specimens.particles import Labelled
from faket_aug.specimens.tilted import Specimen

T = TypeVar("T")


class Maker(Protocol):
    """What computes for a source: a simulator or a generator."""

    @property
    def device(self) -> str:
        """Where it computes."""

    @property
    def threads(self) -> int:
        """How many intra-op threads it uses."""


class Source(Protocol):
    """Where the tomograms of a stream come from.

    The tomogram of an address `(seed, epoch, tomogram)` is always the same one, whoever asks for it.
    """

    @property
    def seed(self) -> int:
        """The seed of all random numbers."""

    @property
    def patch_size(self) -> Size:
        """The size of a patch, (z, y, x) in voxels."""

    @property
    def tomograms_per_epoch(self) -> int:
        """How many tomograms an epoch has."""

    @property
    def patches_per_tomogram(self) -> int:
        """How many patches each tomogram gives."""

    @property
    def item_device(self) -> str | None:
        """The device that the patches are put on; where they are read, if it is None."""

    def makers(self) -> Sequence[tuple[str, Maker]]:
        """List what computes on a device with threads, each with its name for messages."""

    def make(self, epoch: int, tomogram: int) -> TomogramPatches:
        """Make a tomogram of an epoch, ready to draw its patches.

        Raises
        ------
        SimulationError
            If it cannot be made. The message names the specimen.
        """

    def fingerprint(self) -> dict[str, Any]:
        """Return what a saved state must agree with beyond the properties above, as JSON types."""

    def changed(self) -> str:
        """Return what the main process has set anew since this worker got its copy; usually nothing."""


class Agreeing(ABC):
    """A source whose tomograms agree in class numbers and voxel size, also with those that they are mixed with."""

    _agreement: Agreement | None = None

    @abstractmethod
    def members(self) -> list[Members]:
        """List where the tomograms come from. The first of the first sets the standard."""

    @abstractmethod
    def make(self, epoch: int, tomogram: int, agreement: Agreement | None = None) -> TomogramPatches:
        """Make a tomogram of an epoch, as it is in a stream of its own or, with `agreement`, in a larger one."""

    @property
    def agreement(self) -> Agreement:
        """What the tomograms have in common."""
        members = self.members()
        if self._agreement is None or not self._agreement.is_of(members):
            self._agreement = Agreement(members)
        return self._agreement


class SampledSource(Agreeing):
    """What simulated and real tomograms share: one sampler draws the patches of all of them."""

    def __init__(
        self,
        *,
        sampler: PatchSampler,
        tomograms_per_epoch: int,
        patches_per_tomogram: int,
        radii: Mapping[int | str, float] | None,
        seed: int,
        item_device: str | None,
        transform: Transform | None = None,
    ) -> None:
        check_count("tomograms_per_epoch", tomograms_per_epoch)
        check_count("patches_per_tomogram", patches_per_tomogram)
        check_count("seed", seed, zero=True)
        check_radii(radii, sampler.target, sampler.targets)
        if transform is not None and not callable(transform):
            raise ValueError(f"expected `transform` to be a function `(item, generator)` or None, got {transform!r}")
        self.sampler = sampler
        self.radii = None if radii is None else dict(radii)
        # Whole numbers of NumPy would not fit JSON.
        self.tomograms_per_epoch = int(tomograms_per_epoch)
        self.patches_per_tomogram = int(patches_per_tomogram)
        self.seed = int(seed)
        self.item_device = item_device
        self.transform = transform

    @property
    def patch_size(self) -> Size:
        """The size of a patch, (z, y, x) in voxels."""
        return self.sampler.patch_size

    @property
    def targets(self) -> PatchTargets:
        """What an item holds besides its image."""
        return self.sampler.targets

    def fingerprint(self) -> dict[str, Any]:
        """Return nothing: the numbers that every source has say enough."""
        return {}

    def changed(self) -> str:
        """Return nothing: nothing can be set anew."""
        return ""

    def _radii_in_voxels(
        self, specimen: Specimen | LabelledTomogram, class_names: Mapping[int, str], agreement: Agreement
    ) -> dict[int, float]:
        if not self.radii:
            return {}
        return radii_of_classes(self.radii, class_names, agreement.class_names(), specimen.label_voxel_size)

    def _channels(self, agreement: Agreement) -> int:
        """Count the classes of heatmaps: as many as the largest class number of the stream.

        Raises
        ------
        ValueError
            If there are radii of other classes.
        """
        if "heatmaps" not in self.targets:
            return 0
        names = agreement.class_names()
        numbers = [key for key in self.radii or {} if not isinstance(key, str)]
        channels = max(names or numbers or [1])
        if max([0, *numbers]) > channels:
            raise ValueError(
                f"expected `radii` for classes among {', '.join(f'{n} {name}' for n, name in names.items())}, got "
                f"{max(numbers)}"
            )
        return channels

    def patches(
        self,
        made: SimulatedTomogram | LabelledTomogram,
        radii: Mapping[int, float],
        channels: int,
        epoch: int,
        tomogram: int,
        *,
        threads: int,
    ) -> TomogramPatches:
        """Get a tomogram ready to draw patches from it."""
        live = LiveTomogram.of(
            made,
            radii=radii,
            instances="instances" in self.targets,
            channels=channels,
            companions=self.sampler.companions,
        )
        return self._drawn_from(live, epoch, tomogram, threads=threads)

    def _drawn_from(self, live: Live, epoch: int, tomogram: int, *, threads: int) -> TomogramPatches:
        patches = TomogramPatches(
            live=live,
            sampler=self.sampler,
            seed=self.seed,
            epoch=epoch,
            tomogram=tomogram,
            device=self.item_device or DEVICE,
            threads=threads,
        )
        return patches.transformed_by(self.transform, seed=self.seed, epoch=epoch, tomogram=tomogram)


class SimulatedSource(SampledSource):
    """Tomograms that a simulator makes of specimens.

    Parameters
    ----------
    specimens
        A sequence of specimens, or a generator, which makes a new one for each tomogram.
    simulator
        Makes the tomograms.
    tomograms_per_epoch
        By default one for each specimen of a sequence.
    settings
        How patches are drawn, see `FakETDataset`.
    """

    def __init__(
        self,
        specimens: Sequence[Specimen] | GrandModelGenerator,
        simulator: TomogramSimulator,
        *,
        tomograms_per_epoch: int | None,
        **settings: Any,
    ) -> None:
        if not isinstance(specimens, GrandModelGenerator):
            tomograms_per_epoch = _count("specimen", specimens, tomograms_per_epoch)
        elif tomograms_per_epoch is None:
            raise ValueError("expected `tomograms_per_epoch` with a generator, which has no end of its own, got None")
        super().__init__(tomograms_per_epoch=tomograms_per_epoch, **settings)
        check_simulator(simulator, self.sampler.companions)
        self._changes = {"simulator": Changes(), "specimens": Changes()}
        self._specimens, self._simulator = specimens, simulator

    @property
    def specimens(self) -> Sequence[Specimen] | GrandModelGenerator:
        """The specimens, or what generates them."""
        return self._specimens

    @specimens.setter
    def specimens(self, specimens: Sequence[Specimen] | GrandModelGenerator) -> None:
        self._specimens = specimens
        self._changes["specimens"].add()

    @property
    def simulator(self) -> TomogramSimulator:
        """The simulator that makes the tomograms."""
        return self._simulator

    @simulator.setter
    def simulator(self, simulator: TomogramSimulator) -> None:
        check_simulator(simulator, self.sampler.companions)
        self._simulator = simulator
        self._changes["simulator"].add()

    def changed(self) -> str:
        """Return which of `simulator` and `specimens` were set anew since this worker got its copy."""
        return " and ".join(f"`{name}`" for name, changes in self._changes.items() if changes.missed)

    def makers(self) -> list[tuple[str, Maker]]:
        """List the simulator and, if there is one, the generator."""
        generators = [("generator", self.specimens)] if isinstance(self.specimens, GrandModelGenerator) else []
        return [("simulator", self.simulator), *generators]

    def members(self) -> list[Members]:
        """List the specimens."""
        return [self.specimens]

    def make(self, epoch: int, tomogram: int, agreement: Agreement | None = None) -> TomogramPatches:
        """Simulate a tomogram."""
        agreement = agreement or self.agreement
        specimen = self._specimen(epoch, tomogram, agreement)
        with _naming(specimen):
            self.check_specimen(specimen)
            numbering = agreement.numbering(specimen)
            names = specimen.class_names if numbering is None else numbering[1]
            radii = self._radii_in_voxels(specimen, names, agreement)
            channels = self._channels(agreement)
        asked = self.sampler.companions.asked()
        made = self.simulator(specimen, seed=self.seed, epoch=epoch, tomogram=tomogram, **asked)
        check_made(made, self.simulator)
        with _naming(specimen):
            if self.sampler.companions:
                self.sampler.check_companions(made)
        made = made if numbering is None else numbering.of(made)
        with _naming(specimen):
            return self.patches(made, radii, channels, epoch, tomogram, threads=self.simulator.threads)

    def check_specimen(self, specimen: Specimen) -> None:
        """Raise a `ValueError` if patches cannot be drawn of a specimen."""
        check_fits(self.patch_size, specimen.labels.shape)
        self.sampler.check(specimen)

    def _specimen(self, epoch: int, tomogram: int, agreement: Agreement) -> Specimen:
        if not isinstance(self.specimens, GrandModelGenerator):
            number, specimen = _one_of("specimen", self.specimens, self.seed, epoch, tomogram)
            agreement.learn(self.specimens, number, specimen)
            return specimen
        try:
            return self.specimens.generate(seed=self.seed, epoch=epoch, tomogram=tomogram)
        except Exception as error:
            which = f"generated specimen {tomogram} of epoch {epoch}"
            raise SimulationError(f"{which}: {type(error).__name__}: {error}") from error


class LabelledSource(SampledSource):
    """Real tomograms with labels: nothing is simulated.

    Parameters
    ----------
    tomograms
        A sequence of labelled tomograms.
    tomograms_per_epoch
        By default as many as there are.
    settings
        How patches are drawn, see `FakETDataset`.
    """

    def __init__(
        self, tomograms: Sequence[LabelledTomogram], *, tomograms_per_epoch: int | None, **settings: Any
    ) -> None:
        super().__init__(tomograms_per_epoch=_count("tomogram", tomograms, tomograms_per_epoch), **settings)
        self.tomograms = tomograms

    def makers(self) -> list[tuple[str, Maker]]:
        """List nothing."""
        return []

    def members(self) -> list[Members]:
        """List the tomograms."""
        return [self.tomograms]

    def make(self, epoch: int, tomogram: int, agreement: Agreement | None = None) -> TomogramPatches:
        """Read a tomogram."""
        agreement = agreement or self.agreement
        # A sequence may compute when it reads: with one thread, in the main process as in workers.
        with intra_op_threads(1):
            number, made = _one_of("tomogram", self.tomograms, self.seed, epoch, tomogram)
        agreement.learn(self.tomograms, number, made)
        with _naming(made):
            check_fits(self.patch_size, made.labels.shape)
            self.sampler.check(made)
            self.sampler.check_companions(made)
            shapes = self.sampler.target == "shape" and "labels" in self.targets
            if shapes and len(made.particles) and not bool(made.labels.any()):
                raise ValueError(
                    'expected labels for `target="shape"`, got particles and no labels; set `target="sphere"` and '
                    "`radii`, or read `labels`"
                )
            numbering = agreement.numbering(made)
            made = made if numbering is None else numbering.of(made)
            radii = self._radii_in_voxels(made, made.class_names, agreement)
            return self.patches(made, radii, self._channels(agreement), epoch, tomogram, threads=1)


def _count(what: str, things: Sequence[object], wanted: int | None) -> int:
    if isinstance(things, str) or not (hasattr(things, "__len__") and hasattr(things, "__getitem__")):
        raise TypeError(f"expected a sequence of {what}s, got {type(things).__name__}; put a single one into a list")
    if len(things) == 0:
        raise ValueError(f"expected at least one {what}, got none")
    for one in things if isinstance(things, list | tuple) else ():
        if not isinstance(one, Labelled):
            raise TypeError(f"expected a sequence of {what}s, got {one!r:.80} in it")
    return len(things) if wanted is None else wanted


@contextmanager
def _naming(labelled: Labelled) -> Iterator[None]:
    """Say of which specimen or tomogram an error is."""
    try:
        yield
    except (OSError, ValueError) as error:
        # Where it is compared with another, the error names both.
        name = "" if str(error).startswith(labelled.name) else f"{labelled.name}: "
        raise SimulationError(f"{name}{error}") from error


def _one_of(what: str, things: Sequence[T], seed: int, epoch: int, tomogram: int) -> tuple[int, T]:
    """Return the one that a tomogram is made of, and its number. The order is drawn anew each time all were used."""
    turn, place = divmod(tomogram, len(things))
    number = int(numpy_generator(seed, "specimen", epoch=epoch, tomogram=turn).permutation(len(things))[place])
    try:
        return number, things[number]
    except Exception as error:
        raise SimulationError(f"{what} {number}: {type(error).__name__}: {error}") from error
