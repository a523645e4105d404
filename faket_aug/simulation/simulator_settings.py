"""What a simulator is told: all settings, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from faket_aug._checks import check_choice, check_count, check_fraction, check_positive, check_quantiles
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.ctf import CORRECTIONS, ContrastTransfer
from faket_aug.microscope.imperfections import Imperfections
from faket_aug.microscope.noise import NoiseModel
from faket_aug.microscope.response import MicroscopeResponse
from faket_aug.style.bank import StyleBank
from faket_aug.style.transfer import (
    AVERAGE_DECAY,
    CONTENT_LAYERS,
    CONTENT_WEIGHT,
    MEMORY_BUDGET,
    STEP_SIZE,
    style_weights_for,
)
from faket_aug.style.vgg19 import VGG19Features
from faket_aug.tomography.filters import FILTERS
from faket_aug.tomography.projection import BACKENDS, EXTENDS
from faket_aug.tomography.resample import BINNINGS

MODALITIES = ("noiseless", "baseline", "noisy", "content", "faket")
#: Modalities that need a noise model.
NOISY_MODALITIES = MODALITIES[1:]
#: For `noise`: that of the specimens' own tilts. What can be made of these.
GIVEN = "given"
GIVEN_MODALITIES = ("noisy", "faket")


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatorSettings:
    """The settings of a `FakETSimulator`, which says what they are.

    Raises
    ------
    ValueError
        For unknown choices, or a modality whose noise, style or features are missing.
    """

    tilt_angles: Angles
    modality: str = "faket"
    noise: NoiseModel | Literal["given"] | None = None
    ctf: ContrastTransfer | None = None
    ctf_correction: str | None = None
    imperfections: Imperfections = field(default_factory=Imperfections)
    style: StyleBank | None = None
    features: VGG19Features | None = None
    style_weights: Sequence[float] | None = None
    content_layers: Sequence[int] = CONTENT_LAYERS
    content_weight: float = CONTENT_WEIGHT
    step_size: float = STEP_SIZE
    iterations: int = 1
    average_decay: float = AVERAGE_DECAY
    keep_spectrum: bool = False
    quantiles: tuple[float, float] | None = None
    filter: str = "shrec"
    binning: str = "spline"
    extend: str = "zero"
    backend: str = "torch"
    memory_budget: int = MEMORY_BUDGET
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "tilt_angles", tuple(as_tilt_angles(self.tilt_angles).tolist()))
        check_choice("modality", self.modality, MODALITIES)
        check_choice("filter", self.filter, FILTERS)
        check_choice("binning", self.binning, BINNINGS)
        check_choice("extend", self.extend, EXTENDS)
        check_choice("backend", self.backend, BACKENDS)
        check_count("iterations", self.iterations)
        if isinstance(self.step_size, str):
            raise ValueError(
                f"expected `step_size` to be a number, got {self.step_size!r}; `choose_step_size` finds one"
            )
        check_positive("step_size", self.step_size, zero=True)
        check_fraction("average_decay", self.average_decay)
        check_count("memory_budget", self.memory_budget)
        check_count("threads", self.threads)
        check_quantiles("quantiles", self.range_quantiles)
        if isinstance(self.noise, str):
            check_choice("noise", self.noise, [GIVEN])
            if self.modality not in GIVEN_MODALITIES:
                raise ValueError(
                    f'expected the modality to be one of {", ".join(GIVEN_MODALITIES)} with `noise="given"`, got '
                    f"{self.modality!r}: noise that tilts have already cannot be changed"
                )
        for name in ("ctf", "imperfections"):
            if getattr(self, name) and (self.noise == GIVEN or self._response is not None):
                raise ValueError(
                    f"expected no `{name}` with noise that has passed the microscope already, got one; leave it out"
                )
        self.imperfections.check_tilts(self.tilt_angles)
        if self.ctf is not None:
            self.ctf.drawn(len(self.tilt_angles), np.random.default_rng(0))
        if self.ctf_correction is not None:
            check_choice("ctf_correction", self.ctf_correction, CORRECTIONS)
            if self.ctf is None and self._response is None:
                raise ValueError("expected `ctf`, or noise with a `response`, for `ctf_correction`, got neither")
        if self.modality in NOISY_MODALITIES and self.noise is None:
            raise ValueError(f"expected `noise` for the modality {self.modality!r}, got None; fit a `NoiseModel`")
        if self.modality == "faket":
            if self.style is None or self.features is None:
                raise ValueError(
                    'expected `style` and `features` for the modality "faket", got None; build a '
                    "`StyleBank` with `VGG19Features`"
                )
            if self.features.fingerprint != self.style.encoder:
                raise ValueError(
                    "expected the `features` that `style` was built with, got others (weights, pooling or precision "
                    "differ); build the bank again with these"
                )
            self.features.check_layers([*self.content_layers, *self.style.style_layers])
            style_weights_for(self.style.style_layers, self.style_weights)

    @property
    def range_quantiles(self) -> tuple[float, float]:
        """The quantiles in use: the simulator's own, else the style bank's, else minimum and maximum."""
        if self.quantiles is not None:
            return self.quantiles
        return (0.0, 1.0) if self.style is None else self.style.quantiles

    @property
    def _response(self) -> MicroscopeResponse | None:
        return self.noise.response if isinstance(self.noise, NoiseModel) else None

    @property
    def _given(self) -> str | None:
        return GIVEN if self.noise == GIVEN else None

    def settings(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON types: strings, numbers, lists and dicts."""
        noisy, styled = self.modality in NOISY_MODALITIES or self._response is not None, self.modality == "faket"
        settings: dict[str, Any] = {
            "tilt_angles": list(self.tilt_angles),
            "modality": self.modality,
            "noise": self.noise.to_json() if noisy and isinstance(self.noise, NoiseModel) else self._given,
            "ctf": self.ctf.to_dict() if self.ctf else None,
            "ctf_correction": self.ctf_correction,
            "imperfections": self.imperfections.to_dict() or None,
            "style": self.style.key if styled and self.style else None,
            "features": self.features.fingerprint if styled and self.features else None,
            "style_weights": None if self.style_weights is None else [float(w) for w in self.style_weights],
            "content_layers": [int(layer) for layer in self.content_layers],
            "quantiles": [float(q) for q in self.range_quantiles],
        }
        names = (
            "content_weight",
            "step_size",
            "iterations",
            "average_decay",
            "keep_spectrum",
            "filter",
            "binning",
            "extend",
            "backend",
            "memory_budget",
            "device",
            "threads",
        )
        return settings | {name: getattr(self, name) for name in names}
