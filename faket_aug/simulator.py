"""The FakET simulator: from a specimen to a tilt-series and a tomogram. The only module that knows all stages."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import (
    SimulationError,
    check_choice,
    check_count,
    check_fraction,
    check_positive,
    check_quantiles,
)
from faket_aug._random import numpy_generator, torch_generator, torch_seed
from faket_aug._threads import intra_op_threads, usable_device
from faket_aug.ctf import CORRECTIONS, ContrastTransfer
from faket_aug.features import VGG19Features
from faket_aug.filters import FILTERS
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.imperfections import Imperfections
from faket_aug.noise import CONTENT_NOISE, NoiseModel
from faket_aug.projection import BACKENDS, EXTENDS, project
from faket_aug.reconstruction import reconstruct
from faket_aug.resample import BINNINGS
from faket_aug.response import MicroscopeResponse
from faket_aug.statistics import match_mean_std
from faket_aug.style import (
    AVERAGE_DECAY,
    CONTENT_LAYERS,
    CONTENT_WEIGHT,
    MEMORY_BUDGET,
    STEP_SIZE,
    style_weights_for,
    stylize,
)
from faket_aug.stylebank import StyleBank
from faket_aug.tilted import Specimen, TiltedSpecimen
from faket_aug.tomogram import SimulatedTomogram, SimulationRecord

MODALITIES = ("noiseless", "baseline", "noisy", "content", "faket")
#: Modalities that need a noise model.
NOISY_MODALITIES = MODALITIES[1:]
#: Voxels and pixels may differ by this share, where a noise model knows its pixel size.
VOXEL_TOLERANCE = 0.02
#: Besides torch, what a result's last bits depend on.
_PACKAGES = ("faket_aug", "numpy", "scipy")
#: For `noise`: that of the specimens' own tilts. What can be made of these.
GIVEN = "given"
GIVEN_MODALITIES = ("noisy", "faket")


@dataclass(frozen=True, kw_only=True, eq=False)
class FakETSimulator:
    """Simulate tilt-series of specimens, and reconstruct them.

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees.
    modality
        What the tilts are: `"noiseless"` (negated projections), `"baseline"` (noise that does not depend on the
        tilt), `"noisy"` (tilt-dependent noise), `"content"` (a quarter of it), `"faket"` (noisy, then one step of
        style transfer).
    noise
        The noise model; not needed for `"noiseless"`. `"given"` for specimens that come as noisy tilts
        (`TiltedSpecimen`): nothing is added, `"noisy"` leaves them as they are, and for `"faket"` they are both the
        content and what the style transfer starts from.
    ctf
        A contrast transfer function, which clean tilts pass before there is noise in them; its defocus is drawn for
        each tomogram. The specimens' voxel size must be known.
    ctf_correction
        `"phase-flip"` or `"wiener"`: tilts are corrected before they are reconstructed, see `ContrastTransfer.correct`,
        for the function of `ctf` or of the noise's `response`; the tilt-series stays as it is.
    imperfections
        Misaligned tilts, radiation damage and the detector's transfer, of clean tilts; perfect by default.
    style, features
        The style bank and the encoder that made it; needed for `"faket"` only.
    style_weights, content_layers, content_weight, step_size, iterations, average_decay
        Of the style transfer, see `stylize`.
    quantiles
        That content and noisy stacks are brought to [0, 1] by; those of the style bank by default.
    filter, binning
        Of the reconstruction, see `reconstruct`. The tomogram has the binning of the specimen's labels.
    extend, backend
        Of the projection, see `project`.
    memory_budget
        Bytes that the style transfer's activations may take.
    device
        Where it all runs; results stay there.
    threads
        Intra-op threads of the simulation. Their number changes the last bits, so it is fixed: the same in the main
        process and in every worker.

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
    quantiles: tuple[float, float] | None = None
    filter: str = "shrec"
    binning: str = "spline"
    extend: str = "zero"
    backend: str = "torch"
    memory_budget: int = MEMORY_BUDGET
    device: str = "cpu"
    threads: int = 1
    _on_device: dict[str, VGG19Features] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tilt_angles", tuple(as_tilt_angles(self.tilt_angles).tolist()))
        check_choice("modality", self.modality, MODALITIES)
        check_choice("filter", self.filter, FILTERS)
        check_choice("binning", self.binning, BINNINGS)
        check_choice("extend", self.extend, EXTENDS)
        check_choice("backend", self.backend, BACKENDS)
        check_count("iterations", self.iterations)
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
        return self.noise.response if isinstance(self.noise, NoiseModel) and self.modality in NOISY_MODALITIES else None

    @property
    def _given(self) -> str | None:
        return GIVEN if self.noise == GIVEN else None

    def __getstate__(self) -> dict[str, Any]:
        # Copies of the encoder on a device belong to the process that made them.
        return {**self.__dict__, "_on_device": {}}

    def settings(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON types: strings, numbers, lists and dicts."""
        noisy, styled = self.modality in NOISY_MODALITIES, self.modality == "faket"
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
            "filter",
            "binning",
            "extend",
            "backend",
            "memory_budget",
            "device",
            "threads",
        )
        return settings | {name: getattr(self, name) for name in names}

    def draw(self, specimen: Specimen, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulationRecord:
        """Draw all chance of a simulation from its address, without doing anything.

        Parameters
        ----------
        specimen
            The specimen to be simulated.
        seed, epoch, tomogram
            The address.
        """
        style_series = -1
        defocus: tuple[float, ...] = ()
        alignment = numpy_generator(seed, "alignment", epoch=epoch, tomogram=tomogram)
        if self.ctf is not None:
            generator = numpy_generator(seed, "ctf", epoch=epoch, tomogram=tomogram)
            defocus = tuple(np.ravel(self.ctf.drawn(len(self.tilt_angles), generator).defocus).tolist())
        if self.modality == "faket" and self.style is not None:
            generator = numpy_generator(seed, "style", epoch=epoch, tomogram=tomogram)
            style_series = int(generator.integers(len(self.style.series)))
        return SimulationRecord(
            seed=seed,
            epoch=epoch,
            tomogram=tomogram,
            specimen=specimen.name,
            noise_seed=torch_seed(seed, "noise", epoch=epoch, tomogram=tomogram),
            style_series=style_series,
            settings=self.settings(),
            versions={"torch": str(torch.__version__)} | {name: version(name) for name in _PACKAGES},
            defocus=defocus,
            misalignment=self.imperfections.drawn(len(self.tilt_angles), alignment),
        )

    def __call__(self, specimen: Specimen, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulatedTomogram:
        """Simulate a specimen.

        Parameters
        ----------
        specimen
            The specimen.
        seed, epoch, tomogram
            The address of all chance; the same address gives the same tomogram, bit for bit on a CPU.

        Raises
        ------
        SimulationError
            If anything fails; the message names the specimen and the cause.
        """
        return self.simulate(specimen, self.draw(specimen, seed=seed, epoch=epoch, tomogram=tomogram))

    def simulate(self, specimen: Specimen, record: SimulationRecord) -> SimulatedTomogram:
        """Make the tomogram of a record, or make it again.

        Parameters
        ----------
        specimen
            The specimen that the record names.
        record
            From `draw`, or from an earlier tomogram. Its settings must be this simulator's.

        Raises
        ------
        ValueError
            If the record's settings are not this simulator's (the message names those that differ), or it is of another
            specimen.
        SimulationError
            If anything fails; the message names the specimen and the cause.
        """
        settings = self.settings()
        differing = [key for key in settings if dict(record.settings).get(key) != settings[key]]
        if differing:
            raise ValueError(f"expected a record with this simulator's settings, got others for {', '.join(differing)}")
        # Names are paths as they were given; the folder may have been reached by another way.
        if Path(record.specimen).name != Path(specimen.name).name:
            raise ValueError(f"expected the specimen of the record, {record.specimen}, got {specimen.name}")
        try:
            with torch.no_grad(), intra_op_threads(self.threads):
                return self._simulate(specimen, record)
        except Exception as error:
            raise SimulationError(f"{specimen.name}: {type(error).__name__}: {error}") from error

    def _simulate(self, specimen: Specimen, record: SimulationRecord) -> SimulatedTomogram:
        device = usable_device(self.device)
        first = self._first_tilts(specimen, record, device)
        first = self.imperfections.apply(first, specimen.voxel_size, self.tilt_angles, record.misalignment)
        ctf = None if self._response is None else self._response.ctf
        if self.ctf is not None:
            ctf = replace(self.ctf, defocus=record.defocus, spread=0.0, jitter=0.0)
            first = ctf.apply(first, specimen.voxel_size)
        tilts = self._tilts(first, record)
        corrected = tilts
        if ctf is not None and self.ctf_correction is not None:
            corrected = ctf.correct(tilts, specimen.voxel_size, method=self.ctf_correction)
        labels = specimen.labels.to(device)
        tomogram = reconstruct(
            corrected,
            self.tilt_angles,
            depth=labels.shape[0],
            filter=self.filter,
            bin=specimen.bin,
            binning=self.binning,
        )
        return SimulatedTomogram(
            tiltseries=tilts,
            tilt_angles=as_tilt_angles(self.tilt_angles),
            tomogram=tomogram,
            labels=labels,
            instances=None if specimen.instances is None else specimen.instances.to(device),
            particles=specimen.particles,
            class_names=specimen.class_names,
            not_particles=specimen.not_particles,
            voxel_size=specimen.label_voxel_size,
            record=record,
        )

    def _first_tilts(self, specimen: Specimen, record: SimulationRecord, device: torch.device) -> Tensor:
        """Project a specimen, or take the tilts that it comes as."""
        if isinstance(specimen, TiltedSpecimen):
            if specimen.noisy != (self.noise == GIVEN):
                raise ValueError(
                    'expected noisy tilts for `noise="given"`, got clean ones; set `noise` to a `NoiseModel`'
                    if self.noise == GIVEN
                    else 'expected clean tilts, got noisy ones; set `noise="given"`'
                )
            self.imperfections.check_fixed_angles()
            return specimen.tilts_at(self.tilt_angles).to(device, torch.float32)
        if self.noise == GIVEN:
            raise ValueError(
                'expected a specimen with tilts for `noise="given"`, got one that is projected; set `noise` to a '
                "`NoiseModel`"
            )
        response = self._response
        if response is not None and not math.isclose(specimen.voxel_size, response.pixel_size, rel_tol=VOXEL_TOLERANCE):
            raise ValueError(
                f"expected voxels of {response.pixel_size:g} Å, the pixel size of the tilts that the noise was fitted "
                f"to, got {specimen.voxel_size:g} Å; bin the tilts or resample the specimens"
            )
        density = specimen.density.to(device, torch.float32)
        # A microscope's tilts have dark particles: here, and nowhere else, the contrast is turned.
        angles, same = self.imperfections.true_tilt_angles(self.tilt_angles, record.misalignment)
        return -project(density, angles, extend=self.extend, backend=self.backend, cache=same)

    def _tilts(self, first: Tensor, record: SimulationRecord) -> Tensor:
        if self.modality == "noiseless" or self.noise is None:
            return first
        if isinstance(self.noise, str):
            return first if self.modality == "noisy" else self._restyled(first, first, record)
        generator = torch_generator(record.noise_seed, first.device)
        noise = self.imperfections.coloured(torch.randn(first.shape, generator=generator, device=first.device))
        model = self.noise.baseline() if self.modality == "baseline" else self.noise
        if self.modality == "content":
            return model.sample(first, noise, self.tilt_angles, noise_scale=CONTENT_NOISE)
        noisy = model.sample(first, noise, self.tilt_angles)
        if self.modality != "faket":
            return noisy
        content = model.sample(first, noise, self.tilt_angles, noise_scale=CONTENT_NOISE)
        del noise
        return self._restyled(content, noisy, record)

    def _restyled(self, content: Tensor, noisy: Tensor, record: SimulationRecord) -> Tensor:
        assert self.style is not None, "checked when the simulator was made"
        style = self.style.select(self.tilt_angles, series=record.style_series).to(noisy.device)
        styled = stylize(
            content,
            noisy,
            style,
            features=self._encoder(noisy.device),
            style_weights=self.style_weights,
            content_layers=self.content_layers,
            content_weight=self.content_weight,
            step_size=self.step_size,
            iterations=self.iterations,
            average_decay=self.average_decay,
            quantiles=self.range_quantiles,
            memory_budget=self.memory_budget,
        )
        return match_mean_std(styled, style.mean, style.std)

    def _encoder(self, device: torch.device) -> VGG19Features:
        assert self.features is not None, "checked when the simulator was made"
        if device.type == "cpu":
            return self.features
        key = str(device)
        if key not in self._on_device:
            self._on_device[key] = copy.deepcopy(self.features).to(device)
        return self._on_device[key]
