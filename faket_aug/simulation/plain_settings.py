"""Settings of a simulator as a file or a command line says them: all but what is made of files (noise, style)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from faket_aug._settings import Part, Reads, Setting, parameter_help, setting_of, settings_of
from faket_aug.microscope.ctf import CORRECTIONS
from faket_aug.microscope.flavours import FLAVOURS
from faket_aug.simulation.simulator import MODALITIES, FakETSimulator
from faket_aug.simulation.varied import ScheduledVariation, ScheduledWeight, VariedSimulator
from faket_aug.style.style_transfer import StyleTransfer
from faket_aug.tomography.filters import FILTERS
from faket_aug.tomography.projection import BACKENDS, EXTENDS, project
from faket_aug.tomography.reconstruction import reconstruct
from faket_aug.tomography.resample import RESAMPLINGS

#: What is made of files, or depends on them.
OF_FILES = ("tilt_angles", "bad_tilts", "noise", "style", "features", "reconstruction")
#: Settings of the style transfer but its step.
TRANSFER = ("style_weights", "content_layers", "content_weight", "iterations", "average_decay")
_CHOICES = {
    **{"modality": MODALITIES, "ctf_correction": CORRECTIONS, "filter": FILTERS, "resampling": RESAMPLINGS},
    "flavour": FLAVOURS,
    **{"extend": EXTENDS, "backend": BACKENDS},
}


def simulator_settings() -> dict[str, Setting]:
    """List the settings of `FakETSimulator`, with the help of the functions that carry them out."""
    described = (reconstruct, project, StyleTransfer)
    found = settings_of(FakETSimulator, without=OF_FILES, described_by=described, choices=_CHOICES)
    # The same word means another thing there.
    return found | {"device": replace(found["device"], help=parameter_help(FakETSimulator)["device"])}


#: The setting of several simulators, and what each has beside settings of its own.
MIXTURE, VARIATION, WEIGHT = "mixture", "variation", "weight"
#: What a tomogram's voxel size and the machine depend on: the same for all simulators of a mixture.
SAME_FOR_ALL = ("device", "threads", "memory_budget")


def variation_setting() -> Setting:
    """Return the setting of a simulator whose settings are drawn for each tomogram; by default they are not."""
    return setting_of(
        VariedSimulator,
        "variation",
        hint=ScheduledVariation | None,
        default=None,
        help="Draw settings for each tomogram: standard (contrast, defocus and missing tilts; without a physical scale "
        "of the noise also filters, and white noise for two thirds), or ranges of your own. Or one of these by epoch, "
        "as `0=standard,20.missing=0,0.3`, for a curriculum.",
    )


def member_settings(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """List what a simulator of a mixture may have: its weight, its variation, and settings in place of the common ones.

    Parameters
    ----------
    settings
        Those that all simulators may have.
    """
    weight = setting_of(
        VariedSimulator,
        "weights",
        name=WEIGHT,
        hint=ScheduledWeight,
        default=1.0,
        help="How often this simulator is drawn, in proportion; by epoch for a curriculum.",
    )
    own = {name: one for name, one in settings.items() if name not in SAME_FOR_ALL}
    return {WEIGHT: weight, VARIATION: variation_setting()} | own


def mixture_setting(settings: Mapping[str, Setting]) -> Setting:
    """Return the setting of a mixture of simulators, one of which is drawn for each tomogram.

    Parameters
    ----------
    settings
        As for `member_settings`.
    """
    member: Any = Annotated[dict[str, Any], Part(member_settings(settings), listed=False)]
    return setting_of(
        VariedSimulator,
        "simulators",
        name=MIXTURE,
        hint=Annotated[Sequence[member], Reads("settings of each simulator, as weight=2,snr=0.1")],
        default=(),
        help="Simulators, one of which is drawn for each tomogram: each with its `weight`, its `variation`, and "
        "settings in place of the common ones, as `weight=2,snr=0.1`.",
    )


def schedules_of(settings: Mapping[str, Any]) -> list[str]:
    """Name what changes with the epoch: `variation`, `mixture[0].weight`."""
    found = [VARIATION] if isinstance(settings.get(VARIATION), Mapping) else []
    for number, own in enumerate(settings.get(MIXTURE) or ()):
        found += [f"{MIXTURE}[{number}].{n}" for n in (WEIGHT, VARIATION) if isinstance(own.get(n), Mapping)]
    return found
