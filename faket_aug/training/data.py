"""What a picker is trained on: patches of simulated tomograms, and of real ones where there are any."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from faket_aug.data.dataset import FakETDataset, LabelledPatches, PatchDataset
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.data.mixing import MixedPatches
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.simulation.varied import Simulator
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.training.classes import TaughtClasses
from faket_aug.training.picture import Shown
from faket_aug.training.settings import PickerTraining


@dataclass(frozen=True, kw_only=True)
class PickerData:
    """What a picker is trained on.

    Parameters
    ----------
    specimens
        From `teach`: a generator, or specimens of files.
    classes
        From `teach`.
    simulator
        Makes the tomograms.
    real
        Labelled real tomograms, with the classes' numbers.
    watched
        A real tomogram that the picture shows; labels are not needed.
    """

    specimens: GrandModelGenerator | Sequence[GrandModel]
    classes: TaughtClasses
    simulator: Simulator
    real: Sequence[LabelledTomogram] = ()
    watched: Shown | None = None


def picker_dataset(
    data: PickerData,
    specimens: GrandModelGenerator | Sequence[GrandModel],
    settings: PickerTraining,
    *,
    seed: int,
    device: str,
) -> PatchDataset:
    """Make the dataset of a training.

    Parameters
    ----------
    data, settings
        Of the training.
    specimens
        Those that are trained on; others may be held out.
    seed
        Of all chance.
    device
        Where the network is trained.
    """
    names, share = data.classes.names, settings.target_radius
    masks, mixed = settings.targets == "masks", bool(data.real) and settings.real_share > 0
    # Real tomograms have positions alone; beside masks they get spheres of the masks' volume.
    real_radii = {name: data.classes.radii[number] * (1.0 if masks else share) for number, name in names.items()}
    patches: dict[str, Any] = {
        "patch_size": settings.patch_size,
        "patches_per_tomogram": settings.patches_per_tomogram,
        "shift": settings.patch_size // 4,
        "class_balanced": settings.class_balanced,
        "background_fraction": settings.background_share,
        "seed": seed,
        # What workers send goes through the main memory.
        "item_device": "cpu" if settings.workers else device,
    }
    target: dict[str, Any] = {"target": "shape"} if masks else {"target": "sphere", "radii": real_radii}
    epoch: dict[str, Any] = {"tomograms_per_epoch": settings.tomograms_per_epoch}
    fake = FakETDataset(specimens, data.simulator, **epoch, **patches, **target)
    if not mixed:
        return fake
    real = LabelledPatches(data.real, target="sphere", radii=real_radii, **patches)
    where: dict[str, Any] = {"seed": seed, "item_device": patches["item_device"]}
    return MixedPatches(real, fake, real_share=settings.real_share, **epoch, **where)


def plain_simulator(simulator: Simulator) -> FakETSimulator:
    """Return the simulator whose settings are varied."""
    return simulator if isinstance(simulator, FakETSimulator) else simulator.simulators[0]


def digest_of(tomogram: LabelledTomogram) -> str:
    """Hash a real tomogram with its particles."""
    digest = hashlib.sha256(tomogram.tomogram.contiguous().numpy().tobytes())
    digest.update(tomogram.particles.classes.tobytes() + tomogram.particles.positions.tobytes())
    return digest.hexdigest()
