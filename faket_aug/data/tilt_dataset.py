"""The dataset of tilts: labelled two-dimensional patches of tilt-series that are simulated while a network trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from faket_aug.data.dataset import PatchDataset
from faket_aug.data.drawn import TomogramPatches, Transform
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.data.source import SimulatedSource
from faket_aug.data.targets import PatchTargets
from faket_aug.data.tilt_patches import TiltSampler
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.simulation.own_parts import TomogramSimulator
from faket_aug.simulation.tomogram import SimulatedTomogram
from faket_aug.specimens.tilted import Specimen
from faket_aug.tomography.resample import RESAMPLING

#: Rows of the particles of an item: more than in a patch of a tomogram, which shows a part of the beam's path only.
_MAX_PARTICLES = 1024


class TiltSource(SimulatedSource):
    """Tilt-series that a simulator makes of specimens; see `SimulatedSource` for the parameters."""

    sampler: TiltSampler  # type: ignore[assignment]

    def check_specimen(self, specimen: Specimen) -> None:
        """Raise a `ValueError` if patches cannot be drawn of a specimen."""
        self.sampler.check(specimen)

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
        """Get the tilts of a tomogram ready to draw patches from them."""
        assert isinstance(made, SimulatedTomogram), "a simulator has made it"
        return self._drawn_from(self.sampler.live(made, radii, channels), epoch, tomogram, threads=threads)


class TiltDataset(PatchDataset):
    """Labelled patches of tilts: two-dimensional images of specimens, with projected labels and positions.

    An item is a dict:

    - `image`: float32, `(1, y, x)`;
    - `label`: int64, `(y, x)`, if `"labels"` is among the `targets`;
    - `index`, `tomogram`: as of `FakETDataset`; `tomogram` numbers the tilt-series;
    - `tilt`, `tilt_angle`: which tilt of the series, and its angle in degrees, as a microscope would say it;
    - `position`: int64, `(2,)`, the centre of the patch, (y, x) in pixels of the tilt;
    - `particle_class`: int, the class of the particle that the patch is centred on; 0 for background;
    - with `"particles"` among the targets: `positions`, float32, `(max_particles, 3)`, (y, x, depth) in pixels, y and x
      from the patch's first pixel, the depth along the beam from the axis of rotation; `classes`, int64,
      `(max_particles,)`; `orientations`, float32, `(max_particles, 3, 3)`, matrices on column vectors (x, y, z),
      template to tilt; `count`, int, how many rows are particles;
    - with `"heatmaps"`: `heatmaps`, float32, `(class, y, x)`, as of `PatchTargets`.

    As in `FakETDataset` an item depends on `seed`, `epoch` and `index` only. Labels and positions are where the
    particles are seen, also if the simulator misaligns its tilts.

    Parameters
    ----------
    specimens, simulator
        As for `FakETDataset`.
    patch_size
        Size of a patch in pixels, one number or (y, x).
    bin
        Binning factor of the tilts: their pixels, along each axis, that become one. 1 for the pixels of the specimen.
    resampling
        How tilts are binned, see `reconstruct`.
    patches_per_tomogram
        How many patches are cut from each tilt-series, from tilts that are drawn at random.
    tomograms_per_epoch, live_tomograms
        As for `FakETDataset`.
    shift
        Largest random shift between the centre of a patch and its particle, in pixels along each axis.
    class_balanced, background_fraction
        As for `FakETDataset`.
    flips
        Axes, of `"yx"`, along which a patch may be mirrored.
    normalize
        Whether each image is brought to mean 0 and standard deviation 1.
    target
        What the labels show. `"shape"`: in each pixel the class whose labels the ray meets longest. `"sphere"`: a disc
        for each particle.
    radii
        With `"sphere"`, and with heatmaps among the `targets`: the radius of each class in Å, by class number or name.
    targets
        What an item holds besides its image: names of `"labels"`, `"heatmaps"` and `"particles"`, or a `PatchTargets`
        with these. With names alone `max_particles` is 1024: a tilt shows all that lies along the beam.
    seed, rank, world_size, item_device, transform
        As for `FakETDataset`.

    Raises
    ------
    ValueError, TypeError, SimulationError
        As for `FakETDataset`.
    """

    source: TiltSource

    def __init__(
        self,
        specimens: Sequence[Specimen] | GrandModelGenerator,
        simulator: TomogramSimulator,
        *,
        patch_size: int | Sequence[int] = 128,
        bin: int = 1,
        resampling: str = RESAMPLING,
        patches_per_tomogram: int = 64,
        tomograms_per_epoch: int | None = None,
        live_tomograms: int = 2,
        shift: int = 13,
        class_balanced: bool = False,
        background_fraction: float = 0.0,
        flips: str = "",
        normalize: bool = True,
        target: str = "shape",
        radii: Mapping[int | str, float] | None = None,
        targets: Sequence[str] | PatchTargets = ("labels", "particles"),
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        item_device: str | None = None,
        transform: Transform | None = None,
    ) -> None:
        sampler = TiltSampler(
            patch_size=_as_section(patch_size),
            bin=bin,
            resampling=resampling,
            shift=shift,
            class_balanced=class_balanced,
            background_fraction=background_fraction,
            flips=flips,
            normalize=normalize,
            target=target,
            targets=_as_targets(targets),
        )
        source = TiltSource(
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

    @property
    def simulator(self) -> TomogramSimulator:
        """The simulator that makes the tilts."""
        return self.source.simulator

    @property
    def sampler(self) -> TiltSampler:
        """How patches are drawn."""
        return self.source.sampler


def _as_targets(targets: Sequence[str] | PatchTargets) -> PatchTargets:
    """Take names with the default settings but for `max_particles`, or the settings as they are."""
    given = PatchTargets.of(targets)
    return given if isinstance(targets, PatchTargets) else replace(given, max_particles=_MAX_PARTICLES)


def _as_section(patch_size: int | Sequence[int]) -> tuple[int, int, int]:
    """Return the size of a patch of tilts as `(1, y, x)`. One number means a square."""
    sizes = np.ravel(patch_size).tolist()
    sizes = sizes * 2 if np.ndim(patch_size) == 0 else sizes
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"expected `patch_size` to be one or two positive numbers (y, x), got {patch_size!r}")
    return 1, sizes[0], sizes[1]
