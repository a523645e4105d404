"""The FakET simulator: from a specimen to a tilt-series and a tomogram. The only module that knows all stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import SimulationError, check_choice, check_count
from faket_aug._deprecations import renamed_settings
from faket_aug._random import numpy_generator, torch_generator, torch_seed
from faket_aug._runtime.threads import intra_op_threads, usable_device
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.ctf import CORRECTIONS, ContrastTransfer
from faket_aug.microscope.file import read_microscope
from faket_aug.microscope.imperfections import Imperfections
from faket_aug.microscope.noise import CONTENT_NOISE, GIVEN, GivenNoise, NoiseModel
from faket_aug.microscope.response import MicroscopeResponse
from faket_aug.simulation.tomogram import SimulatedTomogram, SimulationRecord
from faket_aug.specimens.tilted import Specimen, TiltedSpecimen
from faket_aug.style.bank import StyleBank
from faket_aug.style.style_transfer import ITERATIONS, StyleTransfer, check_style_numbers
from faket_aug.style.transfer import AVERAGE_DECAY, CONTENT_LAYERS, CONTENT_WEIGHT, MEMORY_BUDGET, STEP_SIZE
from faket_aug.style.vgg19 import VGG19Features
from faket_aug.tomography.filters import FILTERS
from faket_aug.tomography.projection import BACKENDS, EXTENDS, project
from faket_aug.tomography.reconstruction import reconstruct
from faket_aug.tomography.resample import RESAMPLINGS

MODALITIES = ("noiseless", "baseline", "noisy", "content", "faket")
#: Modalities that need a noise model.
NOISY_MODALITIES = MODALITIES[1:]
#: Modalities of specimens that come with their noise.
GIVEN_MODALITIES = ("noisy", "faket")
#: Factor on the noise, where it is not 1.
NOISE_SCALES = {"noiseless": 0.0, "content": CONTENT_NOISE}
#: Voxels and pixels may differ by this share, where a noise model knows its pixel size.
VOXEL_TOLERANCE = 0.02
#: Besides torch, what a result's last bits depend on.
_PACKAGES = ("faket_aug", "numpy", "scipy")
#: Settings of 0.1.0's records by other names now.
_RENAMED = {"binning": "resampling"}
#: Settings of the style transfer, which the simulator takes apart and a `StyleTransfer` holds together.
_STYLE_SETTINGS = tuple(entry.name for entry in fields(StyleTransfer) if entry.init and entry.name != "bank")


@renamed_settings(binning="resampling")
@dataclass(frozen=True, kw_only=True, eq=False)
class FakETSimulator:
    """Simulate tilt-series of specimens, and reconstruct them.

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees.
    modality
        What the tilts are: `"noiseless"` (negated projections, which passed `ctf` or the noise's `response`, if there
        is one), `"baseline"` (noise that does not depend on the tilt), `"noisy"` (tilt-dependent noise), `"content"` (a
        quarter of it), `"faket"` (noisy, then one step of style transfer).
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
    style
        The style bank, needed for `"faket"` only; or a `StyleTransfer`, which brings its features and settings along.
    features
        The encoder that made the style bank.
    step_size, iterations, style_weights, content_layers, content_weight, average_decay, keep_spectrum, quantiles, \
memory_budget
        Settings of the style transfer, see `StyleTransfer`.
    filter
        Of the reconstruction, see `reconstruct`.
    resampling
        How tilts are binned for the reconstruction, see `reconstruct`. The tomogram has the binning of the specimen's
        labels.
    extend, backend
        Of the projection, see `project`.
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
    style: StyleBank | StyleTransfer | None = None
    features: VGG19Features | None = None
    style_weights: Sequence[float] | None = None
    content_layers: Sequence[int] = CONTENT_LAYERS
    content_weight: float = CONTENT_WEIGHT
    step_size: float = STEP_SIZE
    iterations: int = ITERATIONS
    average_decay: float = AVERAGE_DECAY
    keep_spectrum: bool = False
    quantiles: tuple[float, float] | None = None
    filter: str = "shrec"
    resampling: str = "spline"
    extend: str = "zero"
    backend: str = "torch"
    memory_budget: int = MEMORY_BUDGET
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "tilt_angles", tuple(as_tilt_angles(self.tilt_angles).tolist()))
        if isinstance(self.style, StyleTransfer):
            self._take_apart(self.style)
        self._check_choices()
        self._check_noise()
        self.imperfections.check_tilts(self.tilt_angles)
        if self.modality == "faket" and self.style_transfer is None:
            raise ValueError(
                'expected `style` and `features` for the modality "faket", got None; build a '
                "`StyleBank` with `VGG19Features`"
            )

    def _take_apart(self, style: StyleTransfer) -> None:
        for name in _STYLE_SETTINGS:
            object.__setattr__(self, name, getattr(style, name))
        object.__setattr__(self, "style", style.bank)

    def _check_choices(self) -> None:
        check_choice("modality", self.modality, MODALITIES)
        check_choice("filter", self.filter, FILTERS)
        check_choice("resampling", self.resampling, RESAMPLINGS)
        check_choice("extend", self.extend, EXTENDS)
        check_choice("backend", self.backend, BACKENDS)
        check_count("threads", self.threads)
        check_style_numbers(self)

    def _check_noise(self) -> None:
        if not isinstance(self.noise, NoiseModel | str | None):
            raise ValueError(f"expected `noise` to be a `NoiseModel`, got {self.noise!r}")
        if isinstance(self.noise, str):
            check_choice("noise", self.noise, [GIVEN])
            if self.modality not in GIVEN_MODALITIES:
                raise ValueError(
                    f'expected the modality to be one of {", ".join(GIVEN_MODALITIES)} with `noise="given"`, got '
                    f"{self.modality!r}: noise that tilts have already cannot be changed"
                )
        for name in ("ctf", "imperfections"):
            if getattr(self, name) and (self._is_given or self.response is not None):
                raise ValueError(
                    f"expected no `{name}` with noise that has passed the microscope already, got one; leave it out"
                )
        if self.ctf is not None:
            self.ctf.drawn(len(self.tilt_angles), np.random.default_rng(0))
        if self.ctf_correction is not None:
            check_choice("ctf_correction", self.ctf_correction, CORRECTIONS)
            if self.ctf is None and self.response is None:
                raise ValueError("expected `ctf`, or noise with a `response`, for `ctf_correction`, got neither")
        if self.modality in NOISY_MODALITIES and self.noise is None:
            raise ValueError(f"expected `noise` for the modality {self.modality!r}, got None; fit a `NoiseModel`")

    @classmethod
    def from_file(cls, path: str | Path, **settings: Any) -> Self:
        """Make a simulator of what `faket-aug fit` wrote: noise, tilt angles, `extend` and, with a style, the step.

        Parameters
        ----------
        path
            The JSON file; or one of `NoiseModel.to_json`, which knows no tilt angles.
        **settings
            Go before what the file says. With `style` and `features` the modality is `"faket"`, else `"noisy"`.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If there is no such file, or it is something else; the message names it.
        ValueError
            If nobody tells the tilt angles, or the step for a style (0.15 is too far for tilts that are right already);
            or a setting cannot be.
        """
        fitted = read_microscope(path)
        known: dict[str, Any] = {"noise": fitted.noise, "modality": "noisy"}
        known |= {"tilt_angles": fitted.tilt_angles} if fitted.tilt_angles else {}
        known |= {"extend": fitted.extend} if fitted.extend else {}
        if settings.get("style") is not None and settings.get("modality", "faket") == "faket":
            known |= {"modality": "faket"} | fitted.style_settings(settings.get("step_size"))
        if "tilt_angles" not in known | settings:
            raise ValueError(f"{path}: expected `tilt_angles`, which this file does not tell, got none; set them")
        return cls(**(known | settings))

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
        generator = numpy_generator(seed, "ctf", epoch=epoch, tomogram=tomogram)
        alignment = numpy_generator(seed, "alignment", epoch=epoch, tomogram=tomogram)
        if self.ctf is not None:
            defocus = tuple(np.ravel(self.ctf.drawn(len(self.tilt_angles), generator).defocus).tolist())
        elif self.response is not None:
            defocus = tuple(np.ravel(self.response.drawn(generator).ctf.defocus).tolist())
        if self.modality == "faket" and self.style_transfer is not None:
            generator = numpy_generator(seed, "style", epoch=epoch, tomogram=tomogram)
            style_series = int(generator.integers(len(self.style_transfer.bank.series)))
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
        recorded = {_RENAMED.get(key, key): value for key, value in record.settings.items()}
        differing = [key for key in settings if recorded.get(key) != settings[key]]
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

    # The trip of a specimen ------------------------------------------------------------------------------------------

    def _simulate(self, specimen: Specimen, record: SimulationRecord) -> SimulatedTomogram:
        """Project, distort, add noise, restyle, reconstruct; each stage lets go of what the one before it made."""
        tilts = self._project(specimen, record)
        tilts = self._distort(tilts, specimen, record)
        content, tilts = self._add_noise(tilts, record)
        tilts = self._restyle(content, tilts, record)
        tomogram = self._reconstruct(tilts, specimen, record)
        return self._labelled(specimen, tilts, tomogram, record)

    def _project(self, specimen: Specimen, record: SimulationRecord) -> Tensor:
        """Project a specimen, or take the tilts that it comes as: `(tilt, y, x)`, dark particles."""
        device = usable_device(self.device)
        self._check_specimen(specimen)
        if isinstance(specimen, TiltedSpecimen):
            return specimen.tilts_at(self.tilt_angles).to(device, torch.float32)
        angles, same = self.imperfections.true_tilt_angles(self.tilt_angles, record.misalignment)
        projected = project(
            specimen.density,
            angles,
            extend=self.extend,
            backend=self.backend,
            cache=same,
            device=device,
            dtype=torch.float32,
        )
        # A microscope's tilts have dark particles: here, and nowhere else, the contrast is turned.
        return projected.neg_()

    def _distort(self, tilts: Tensor, specimen: Specimen, record: SimulationRecord) -> Tensor:
        """Misalign clean tilts, damage them, and let them pass `ctf`; a response's function comes with the noise."""
        tilts = self.imperfections.apply(tilts, specimen.voxel_size, self.tilt_angles, record.misalignment)
        return tilts if self.ctf is None else self._ctf_of(record).apply(tilts, specimen.voxel_size)

    def _add_noise(self, clean: Tensor, record: SimulationRecord) -> tuple[Tensor, Tensor]:
        """Make the content and the noisy tilts from clean ones, with the same noise; they differ for `"faket"` only."""
        model = self._noise_of(record)
        if model is None:
            return clean, clean
        scale, noise = NOISE_SCALES.get(self.modality, 1.0), self._random_numbers(clean, model, record)
        noisy = model.sample(clean, noise, self.tilt_angles, noise_scale=scale)
        if self.modality != "faket":
            return noisy, noisy
        return model.sample(clean, noise, self.tilt_angles, noise_scale=CONTENT_NOISE), noisy

    def _restyle(self, content: Tensor, noisy: Tensor, record: SimulationRecord) -> Tensor:
        """Transfer the style to noisy tilts, for `"faket"` only."""
        return noisy if self.modality != "faket" else self.restyle(content, noisy, series=record.style_series)

    def _reconstruct(self, tilts: Tensor, specimen: Specimen, record: SimulationRecord) -> Tensor:
        """Reconstruct the tomogram `(z, y, x)` from tilts that are corrected first, if they are to be."""
        if self.ctf_correction is not None:
            pixel_size = specimen.voxel_size if self.response is None else self.response.pixel_size
            tilts = self._ctf_of(record).correct(tilts, pixel_size, method=self.ctf_correction)
        return reconstruct(
            tilts,
            self.tilt_angles,
            depth=specimen.labels.shape[0],
            filter=self.filter,
            bin=specimen.bin,
            resampling=self.resampling,
        )

    def _labelled(
        self, specimen: Specimen, tilts: Tensor, tomogram: Tensor, record: SimulationRecord
    ) -> SimulatedTomogram:
        """Put tilts, tomogram and the specimen's labels together."""
        device = tomogram.device
        return SimulatedTomogram(
            tiltseries=tilts,
            tilt_angles=as_tilt_angles(self.tilt_angles),
            tomogram=tomogram,
            labels=specimen.labels.to(device),
            instances=None if specimen.instances is None else specimen.instances.to(device),
            particles=specimen.particles,
            class_names=specimen.class_names,
            not_particles=specimen.not_particles,
            voxel_size=specimen.label_voxel_size,
            record=record,
        )

    # What the stages need --------------------------------------------------------------------------------------------

    def _check_specimen(self, specimen: Specimen) -> None:
        response = self.response
        if response is not None and not math.isclose(specimen.voxel_size, response.pixel_size, rel_tol=VOXEL_TOLERANCE):
            raise ValueError(
                f"expected voxels of {response.pixel_size:g} Å, the pixel size of the tilts that the noise was fitted "
                f"to, got {specimen.voxel_size:g} Å; bin the tilts or resample the specimens"
            )
        if isinstance(specimen, TiltedSpecimen):
            if specimen.noisy != self._is_given:
                raise ValueError(
                    'expected noisy tilts for `noise="given"`, got clean ones; set `noise` to a `NoiseModel`'
                    if self._is_given
                    else 'expected clean tilts, got noisy ones; set `noise="given"`'
                )
            self.imperfections.check_fixed_angles()
        elif self._is_given:
            raise ValueError(
                'expected a specimen with tilts for `noise="given"`, got one that is projected; set `noise` to a '
                "`NoiseModel`"
            )

    def _ctf_of(self, record: SimulationRecord) -> ContrastTransfer:
        """The contrast transfer function of a tomogram, with the defocus that was drawn."""
        if self.ctf is not None:
            return replace(self.ctf, defocus=record.defocus, spread=0.0, jitter=0.0)
        model = self._noise_of(record)
        assert model is not None, "checked when the simulator was made"
        assert model.response is not None, "checked when the simulator was made"
        return model.response.ctf

    def _noise_of(self, record: SimulationRecord) -> NoiseModel | None:
        """The noise of a tomogram, with the defocus that was drawn; clean tilts pass a response, too."""
        model = self.noise_model
        if model is None or (self.modality == "noiseless" and model.response is None):
            return None
        if model.response is not None and record.defocus:
            model = model.at_defocus(record.defocus[0])
        return model.baseline() if self.modality == "baseline" else model

    def _random_numbers(self, clean: Tensor, model: NoiseModel, record: SimulationRecord) -> Tensor:
        if self.modality == "noiseless" or not model.draws:
            return torch.zeros_like(clean)
        generator = torch_generator(record.noise_seed, clean.device)
        return self.imperfections.coloured(torch.randn(clean.shape, generator=generator, device=clean.device))

    def restyle(self, content: Tensor, noisy: Tensor, *, series: int) -> Tensor:
        """Transfer the style to noisy tilts; a step of 0 leaves them as they are.

        Parameters
        ----------
        content, noisy
            `(tilt, y, x)`, at the simulator's angles.
        series
            Of the style bank.

        Returns
        -------
        `(tilt, y, x)`. Each tilt has the style's mean and standard deviation, or, with a fitted response or
        `keep_spectrum`, the noisy tilt's own.
        """
        assert self.style_transfer is not None, "checked when the simulator was made"
        own = self.response is not None
        return self.style_transfer(content, noisy, self.tilt_angles, series=series, own_statistics=own)

    @cached_property
    def style_transfer(self) -> StyleTransfer | None:
        """The style transfer of the settings; nothing without a style bank and its features."""
        if not isinstance(self.style, StyleBank) or self.features is None:
            return None
        return StyleTransfer(bank=self.style, **{name: getattr(self, name) for name in _STYLE_SETTINGS})

    @property
    def noise_model(self) -> NoiseModel | None:
        """The noise model; a `GivenNoise` for `noise="given"`."""
        return GivenNoise() if isinstance(self.noise, str) else self.noise

    @property
    def response(self) -> MicroscopeResponse | None:
        """The microscope's response that clean tilts pass, where the noise model has one."""
        return None if self.noise_model is None else self.noise_model.response

    @property
    def range_quantiles(self) -> tuple[float, float]:
        """The quantiles in use: the simulator's own, else the style bank's, else minimum and maximum."""
        if self.quantiles is not None:
            return self.quantiles
        return self.style.quantiles if isinstance(self.style, StyleBank) else (0.0, 1.0)

    @property
    def _is_given(self) -> bool:
        return isinstance(self.noise_model, GivenNoise)

    def settings(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON types: strings, numbers, lists and dicts."""
        uses_noise, styled = self.modality in NOISY_MODALITIES or self.response is not None, self.modality == "faket"
        noise = self.noise_model if uses_noise else None
        style = self.style_transfer if styled else None
        plain = (
            *("content_weight", "step_size", "iterations", "average_decay", "keep_spectrum", "filter", "resampling"),
            *("extend", "backend", "memory_budget", "device", "threads"),
        )
        return {
            "tilt_angles": list(self.tilt_angles),
            "modality": self.modality,
            "noise": GIVEN if self._is_given else noise.to_json() if noise is not None else None,
            "ctf": self.ctf.to_dict() if self.ctf else None,
            "ctf_correction": self.ctf_correction,
            "imperfections": self.imperfections.to_dict() or None,
            "style": style.bank.key if style else None,
            "features": style.features.fingerprint if style else None,
            "style_weights": None if self.style_weights is None else [float(w) for w in self.style_weights],
            "content_layers": [int(layer) for layer in self.content_layers],
            "quantiles": [float(q) for q in self.range_quantiles],
        } | {name: getattr(self, name) for name in plain}
