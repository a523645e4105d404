"""What a picker is trained on: patches of simulated tomograms, and of real ones where there are any."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from faket_aug.data.dataset import FakETDataset, LabelledPatches, PatchDataset
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.data.mixing import MixedPatches
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.microscope.flavours import FLAVOURS
from faket_aug.picking.picker import kind_of
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
        "flavours": tuple(settings.flavours),
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
    """Return the simulator whose settings are varied; of a mixture the first one of the package's."""
    several = _plain(simulator)
    if not several:
        raise TypeError("expected a `FakETSimulator` among the simulators of a training, got none")
    return several[0]


def _plain(simulator: Simulator) -> list[FakETSimulator]:
    several = (simulator,) if isinstance(simulator, FakETSimulator) else simulator.simulators
    return [one for one in several if isinstance(one, FakETSimulator)]


def with_flavour(simulator: Simulator, flavour: str) -> Simulator:
    """Let the tomograms of a simulator have a flavour, the first of those that a network sees.

    Raises
    ------
    ValueError
        If the simulator's own is another one, or drawn.
    """
    if not isinstance(simulator, FakETSimulator) and simulator.draws_flavours:
        raise ValueError(
            "expected a `variation` that draws no flavours beside `flavours`, which say what the network sees, got one "
            "that does; leave them out there"
        )
    for kind in (kind_of(one.flavour, one.ctf_correction) for one in _plain(simulator)):
        if kind not in (FLAVOURS[0], flavour):
            raise ValueError(
                f"expected no other flavour beside `flavours`, which say what the network sees, got {kind!r}; leave "
                "`flavour` and `ctf_correction` out, and name it in `flavours`"
            )
    if flavour == FLAVOURS[0]:
        return simulator
    own: dict[str, Any] = {"flavour": flavour, "ctf_correction": None}
    return replace(simulator, **own) if isinstance(simulator, FakETSimulator) else simulator.with_settings(**own)


def digest_of(tomogram: LabelledTomogram) -> str:
    """Hash a real tomogram with its particles."""
    digest = hashlib.sha256(tomogram.tomogram.contiguous().numpy().tobytes())
    digest.update(tomogram.particles.classes.tobytes() + tomogram.particles.positions.tobytes())
    for name, one in tomogram.flavours.items():
        digest.update(name.encode() + one.contiguous().numpy().tobytes())
    return digest.hexdigest()
