"""Settings of a simulator as a file or a command line says them: all but what is made of files (noise, style)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from faket_aug._settings import Setting, parameter_help, setting_of, settings_of
from faket_aug.microscope.ctf import CORRECTIONS
from faket_aug.microscope.flavours import FLAVOURS
from faket_aug.simulation.simulator import MODALITIES, FakETSimulator
from faket_aug.simulation.variation import Variation
from faket_aug.simulation.varied import VariedSimulator
from faket_aug.style.style_transfer import StyleTransfer
from faket_aug.tomography.filters import FILTERS
from faket_aug.tomography.projection import BACKENDS, EXTENDS, project
from faket_aug.tomography.reconstruction import reconstruct
from faket_aug.tomography.resample import RESAMPLINGS

#: What is made of files, or depends on them.
OF_FILES = ("tilt_angles", "noise", "style", "features", "reconstruction")
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


def variation_setting() -> Setting:
    """Return the setting of a simulator whose settings are drawn for each tomogram; by default they are not."""
    return setting_of(
        VariedSimulator,
        "variation",
        hint=Literal["standard"] | Variation | None,
        default=None,
        help="Draw settings for each tomogram: standard (two thirds with white noise, the rest with other contrasts; "
        "other defocus, filters and missing tilts), or ranges of your own.",
    )
