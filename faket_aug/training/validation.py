"""What a training is measured by: picks in tomograms that it never sees, beside the particles that are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from faket_aug._checks import FileFormatError
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.formats.particles import ParticleList
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.picking.clustering import Picks
from faket_aug.picking.distances import score_by_distance
from faket_aug.picking.flavours import put_together, read_flavours
from faket_aug.picking.inference import class_probabilities
from faket_aug.picking.peaks import find_peaks, spheres_of
from faket_aug.picking.picker import PickerDescription
from faket_aug.picking.run import VALIDATION
from faket_aug.picking.thresholds import choose_thresholds
from faket_aug.simulation.own_parts import TomogramSimulator
from faket_aug.simulation.saving import LIST_FILES, RECORD_FILE, TOMOGRAM_FILE, is_whole, read_record_file
from faket_aug.simulation.tomogram import Companions
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.training.classes import only

#: Within the folder of a run.
FOLDER = "validation"
#: An epoch that no training comes to: its tomograms are none that are trained on.
EPOCH = 2**31 - 1
#: Sides of generated validation specimens along y and x are no longer.
LONGEST = 160
#: A pick finds a particle within so many of its radii.
REACH = 0.5


def held_out(
    specimens: GrandModelGenerator | Sequence[GrandModel], count: int
) -> tuple[GrandModelGenerator | Sequence[GrandModel], GrandModelGenerator | Sequence[GrandModel]]:
    """Part specimens into those for training and those for validation.

    A generator makes others for the validation, of the same depth and at most 160 voxels wide. Of files the last ones
    are held out, where at least twice as many are left; otherwise the validation has the same ones, simulated anew.
    """
    if isinstance(specimens, GrandModelGenerator):
        depth, height, width = specimens.shape
        return specimens, replace(specimens, shape=(depth, min(height, LONGEST), min(width, LONGEST)))
    if len(specimens) < 3 * count:
        return specimens, specimens
    return specimens[:-count], specimens[-count:]


def make_validation(
    folder: Path,
    specimens: GrandModelGenerator | Sequence[GrandModel],
    simulator: TomogramSimulator,
    *,
    count: int,
    seed: int,
    depends_on: Mapping[str, Any],
    flavours: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Simulate the validation tomograms that are missing, or were made otherwise, and write them.

    Parameters
    ----------
    folder
        Of the run; each tomogram has a folder of its own within `validation`.
    specimens, simulator
        What they are made of.
    count, seed
        How many, and the seed of all chance.
    depends_on
        What they depend on, as JSON types.
    flavours
        That the network sees: each tomogram is of the first one, and the others are beside it.
    progress
        Is told how many of how many are there.
    """
    for index in range(count):
        path = folder / FOLDER / f"tomogram_{index:04d}"
        if not (is_whole(path) and read_record_file(path / RECORD_FILE)["origin"] == {"settings": dict(depends_on)}):
            if isinstance(specimens, GrandModelGenerator):
                specimen = specimens.generate(seed=seed, epoch=EPOCH, tomogram=index)
            else:
                specimen = specimens[index % len(specimens)]
            specimen = replace(specimen, name=path.name)
            more = Companions(flavours=flavours).asked()
            made = simulator(specimen, seed=seed, epoch=EPOCH, tomogram=index, **more)
            if flavours:
                first, *others = flavours
                beside = {name: made.flavours[name] for name in others}
                made = replace(made, tomogram=made.flavours[first], flavours=beside)
            made.save(path, formats=("shrec", "star5"), origin={"settings": dict(depends_on)})
        if progress is not None:
            progress(index + 1, count)


def read_validation(
    folder: Path, count: int, class_names: Mapping[int, str], *, flavours: Sequence[str] = ()
) -> list[LabelledTomogram]:
    """Read the validation tomograms of a run, with the flavours that the network sees.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If one is missing or damaged.
    """
    paths = [folder / FOLDER / f"tomogram_{index:04d}" for index in range(count)]
    found = []
    for path in paths:
        made = LabelledTomogram.read(
            path / TOMOGRAM_FILE,
            picks=path / LIST_FILES["star5"],
            labels=path / "class_mask.mrc",
            class_names={0: "background", **class_names},
            name=path.name,
        )
        made = replace(made, flavours=read_flavours(path / TOMOGRAM_FILE, made.tomogram, flavours))
        found.append(only(made, class_names))
    return found


@dataclass(kw_only=True)
class Validation:
    """Scores a network by its picks.

    Parameters
    ----------
    tomograms
        Simulated ones, of which the number counts unless `real_counts`.
    real
        Real ones, labelled.
    description
        What the network is for.
    precision, device
        Where and in what the network computes.
    real_counts
        Whether the number is that of the real ones: where they are not trained on.
    """

    tomograms: Sequence[LabelledTomogram]
    real: Sequence[LabelledTomogram]
    description: PickerDescription
    precision: str
    device: str
    real_counts: bool = False
    #: Of the last validation, of simulated and of real tomograms, by class number.
    thresholds: dict[int, float] = field(default_factory=dict)

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return 1 - F1, the mean over the classes, as the number that counts, and the F1 of each class."""
        simulated = self._score(network, self.tomograms)
        real = self._score(network, self.real) if self.real else {}
        counts = real if self.real_counts and real else simulated
        numbers = {VALIDATION: 1 - float(np.mean(list(counts.values())))}
        numbers |= {f"F1 {name}": value for name, value in simulated.items()}
        return numbers | {f"real F1 {name}": value for name, value in real.items()}

    def picks(self, network: nn.Module, tomogram: LabelledTomogram) -> Picks:
        """Find the picks of a tomogram, also poor ones, with their scores."""
        made = self.description
        probabilities = class_probabilities(
            network,
            put_together(tomogram.tomogram, tomogram.flavours),
            tile_size=_tile(tomogram),
            precision=self.precision,
            device=self.device,
        )
        spheres = spheres_of(made.radii, target_radius=made.target_radius, voxel_size=tomogram.voxel_size)
        return find_peaks(probabilities, spheres)

    def choose_thresholds(self, network: nn.Module) -> dict[int, float]:
        """Choose the score from which on picks count, by the tomograms whose number counts."""
        tomograms = self.real if self.real_counts and self.real else self.tomograms
        picks = [self.picks(network, tomogram) for tomogram in tomograms]
        return self._thresholds(picks, [tomogram.listed() for tomogram in tomograms])

    def _thresholds(self, picks: Sequence[Picks], truth: Sequence[ParticleList]) -> dict[int, float]:
        made = self.description
        return choose_thresholds(
            picks,
            truth,
            class_names=made.class_names,
            radii=made.radii,
            voxel_size=made.voxel_size,
            reach=REACH,
        )

    def _score(self, network: nn.Module, tomograms: Sequence[LabelledTomogram]) -> dict[str, float]:
        """Return the F1 of each class that there is, at the threshold that is best for it."""
        picks = [self.picks(network, tomogram) for tomogram in tomograms]
        truth = [tomogram.listed() for tomogram in tomograms]
        thresholds = self._thresholds(picks, truth)
        found = {}
        for number, name in self.description.class_names.items():
            if number in thresholds:
                hits, listed, there = self._counts(number, name, thresholds[number], picks, truth)
                found[name] = 2 * hits / (listed + there) if listed + there else 0.0
        if not found:
            raise FileFormatError(
                f"expected particles of {', '.join(self.description.class_names.values())} in the validation's "
                f"tomograms ({', '.join(one.name for one in tomograms)}), got none; ask for more particles, or for a "
                "larger `shape`"
            )
        return found

    def _counts(
        self, number: int, name: str, threshold: float, picks: Sequence[Picks], truth: Sequence[ParticleList]
    ) -> tuple[int, int, int]:
        """Count hits, picks and particles of a class over all tomograms."""
        hits = listed = there = 0
        distance = REACH * self.description.radii[number]
        for own, particles in zip(picks, truth, strict=True):
            assert own.scores is not None, "peaks have scores"
            chosen = own.chosen((own.classes == number) & (own.scores >= threshold))
            listed += len(chosen)
            if name not in particles.names:
                continue
            score = score_by_distance(
                chosen.particles(dict(self.description.class_names)),
                particles,
                distance=distance,
                voxel_size=self.description.voxel_size,
                classes=(name,),
            ).per_class[name]
            hits, there = hits + score.hits, there + score.particles
        return hits, listed, there


def _tile(tomogram: LabelledTomogram) -> int:
    """Return a side of tiles, as large as a validation tomogram of generated specimens: one tile is the fastest."""
    return min(LONGEST, max(n + (-n) % 4 for n in tomogram.tomogram.shape))
