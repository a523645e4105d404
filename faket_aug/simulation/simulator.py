"""The FakET simulator: from a specimen to a tilt-series and a tomogram. It calls all stages in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import IntArray
from faket_aug._checks import SimulationError, check_choice, check_count, check_positive, check_same_size
from faket_aug._deprecations import renamed_settings
from faket_aug._identity import described
from faket_aug._random import numpy_generator, torch_generator, torch_seed
from faket_aug._runtime.numerics import own_precision
from faket_aug._runtime.threads import DEVICE, THREADS, intra_op_threads, usable_device
from faket_aug._runtime.transfers import sent
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.bad_tilts import BadTilt, spoil
from faket_aug.microscope.ctf import CORRECTIONS, ContrastTransfer
from faket_aug.microscope.file import read_microscope
from faket_aug.microscope.flavours import FLAVOURS, LOW_PASS, WITH_CTF, Deconvolution, deconvolve, low_passed
from faket_aug.microscope.ice_map import ThicknessMap
from faket_aug.microscope.imperfections import Imperfections
from faket_aug.microscope.noise import CONTENT_NOISE, GIVEN, GivenNoise, NoiseModel, ResponseNoise
from faket_aug.microscope.response import MicroscopeResponse
from faket_aug.microscope.uneven_ice import DrawnIce, UnevenIce
from faket_aug.simulation.own_parts import (
    TiltReconstruction,
    check_noise,
    check_reconstructed,
    check_reconstruction,
    own_class,
)
from faket_aug.simulation.tomogram import Companions, SimulatedTomogram, SimulationRecord, package_versions
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.tilted import Specimen, TiltedSpecimen
from faket_aug.statistics import FULL_RANGE
from faket_aug.style.bank import StyleBank
from faket_aug.style.encoder import StyleEncoder
from faket_aug.style.style_transfer import StyleTransfer, check_style_numbers
from faket_aug.style.transfer import (
    AVERAGE_DECAY,
    CONTENT_LAYERS,
    CONTENT_WEIGHT,
    ITERATIONS,
    MEMORY_BUDGET,
    STEP_SIZE,
)
from faket_aug.tomography.filters import FILTER, FILTERS
from faket_aug.tomography.interpolation import without_interpolation
from faket_aug.tomography.projection import BACKEND, BACKENDS, EXTEND, EXTENDS, project
from faket_aug.tomography.reconstruction import reconstruct
from faket_aug.tomography.resample import RESAMPLING, RESAMPLINGS

MODALITIES = ("noiseless", "baseline", "noisy", "content", "faket")
#: Modalities that need a noise model.
NOISY_MODALITIES = MODALITIES[1:]
#: Modalities of specimens that are tilts with their noise.
GIVEN_MODALITIES = ("noisy", "faket")
#: Slow changes of tilts: those that the specimen makes, or those of a measured series.
BACKGROUNDS = ("own", "measured")
#: The `ice` of the measured series.
MEASURED = "measured"
#: Factor on the noise, where it is not 1.
NOISE_SCALES = {"noiseless": 0.0, "content": CONTENT_NOISE}
#: What else to do where the style has other pixels.
_STYLE_PIXELS = "or set the `pixel_size` of the style's tilt-series if its file says it wrongly"
#: Settings that records tell only where they are not the default.
_SOMETIMES = ("flavour", "low_pass", "deconvolution", "bad_tilts", "background", "ice", "reconstruction")
#: New names of settings in the records, files and calls of 0.1.0.
RENAMED = {"binning": "resampling"}
#: Settings of the style transfer: the simulator has each of them, too.
_STYLE_SETTINGS = tuple(entry.name for entry in fields(StyleTransfer) if entry.init and entry.name != "bank")


@renamed_settings(**RENAMED)
@dataclass(frozen=True, kw_only=True, eq=False)
class FakETSimulator:
    """Simulate tilt-series of specimens, and reconstruct them.

    Parameters
    ----------
    tilt_angles
        `(tilt,)`, degrees.
    modality
        The kind of tilts. `"noiseless"`: negated projections, after `ctf` or the `response` of the noise, if there is
        one. `"baseline"`: with noise that does not depend on the tilt. `"noisy"`: with noise that depends on the tilt.
        `"content"`: with a quarter of this noise. `"faket"`: noisy tilts after one step of style transfer.
    noise
        The noise model, see `NoiseModel`; `"noiseless"` does not need one. Set `"given"` for specimens that are noisy
        tilts already (`TiltedSpecimen`). Then no noise is added: `"noisy"` leaves the tilts as they are, and `"faket"`
        takes them as the content and as the start of the style transfer.
    ctf
        The contrast transfer function that is applied to clean tilts, before noise is added. Its defocus is drawn for
        each tomogram. The voxel size of the specimens must be known.
    ctf_correction
        `"phase-flip"` or `"wiener"`: tilts are corrected for `ctf`, or for the `response` of the noise, before the
        reconstruction, see `ContrastTransfer.correct`. The tilt-series itself is not corrected.
    flavour
        How the tomogram is processed, in place of `ctf_correction`. `"raw"`: not at all. `"phase-flip"`, `"wiener"`: as
        by `ctf_correction`. `"low-pass"`: filtered to `low_pass`. `"deconvolved"`: as IsoNet does it, see
        `Deconvolution`. By default `ctf_correction` says it.
    low_pass
        Å, where the flavour `"low-pass"` keeps half of the amplitude.
    deconvolution
        Settings of the flavour `"deconvolved"`.
    imperfections
        Misalignment, radiation damage and the transfer of the detector, applied to clean tilts; none by default.
    bad_tilts
        Tilts of which the signal is hidden, elsewhere, or smeared, and that the reconstruction uses all the same, see
        `BadTilt`; none by default.
    crowd
        Factor on the density of the crowd that a fitted noise model may have (`CrowdField`): matter of the measured
        specimens that those of the fit did not hold. 0 for none.
    background
        `"measured"`: tilts get the slow background (over more than 100 nm) of a measured series of the fit, drawn for
        each tomogram, in place of their own. `"own"`: they keep their own.
    ice
        Ice of uneven thickness, for a fitted noise model whose scale is absolute: particles, noise and what changes
        slowly in a tilt follow the local intensity. An `UnevenIce`: a map of the thickness is drawn for each tomogram.
        `"measured"`: the map of a series of the fit is drawn, mirrored at random. None for even ice.
    style
        The style bank, which only `"faket"` needs. Or a `StyleTransfer`, which has its own features and settings.
    features
        The encoder that built the style bank: a `VGG19Features`, or one of your own (`StyleEncoder`).
    step_size, iterations, style_weights, content_layers, content_weight, average_decay, keep_spectrum, quantiles, \
memory_budget
        Settings of the style transfer, see `StyleTransfer`.
    reconstruction
        A reconstruction of your own in place of `reconstruct`, see `TiltReconstruction`. `filter` and `resampling` do
        not matter then.
    filter
        Filter of the reconstruction, see `reconstruct`.
    resampling
        How tilts are binned for the reconstruction, see `reconstruct`. The tomogram has the voxels of the labels of the
        specimen.
    extend, backend
        Settings of the projection, see `project`.
    device
        Device of all stages. Results stay there, but for instances, which stay where the specimen has them.
    threads
        Intra-op threads of the simulation. Their number changes the last bits of a result. So it is the same in the
        main process and in every worker.

    Raises
    ------
    ValueError
        For an unknown choice, or if the modality needs a noise model, a style or features that are not given.
    """

    tilt_angles: Angles
    modality: str = "faket"
    noise: NoiseModel | Literal["given"] | None = None
    ctf: ContrastTransfer | None = None
    ctf_correction: str | None = None
    flavour: str | None = None
    low_pass: float = LOW_PASS
    deconvolution: Deconvolution = field(default_factory=Deconvolution)
    imperfections: Imperfections = field(default_factory=Imperfections)
    bad_tilts: Sequence[BadTilt] = ()
    crowd: float = 1.0
    background: str = "own"
    ice: UnevenIce | Literal["measured"] | None = None
    style: StyleBank | StyleTransfer | None = None
    features: StyleEncoder | None = None
    style_weights: Sequence[float] | None = None
    content_layers: Sequence[int] = CONTENT_LAYERS
    content_weight: float = CONTENT_WEIGHT
    step_size: float = STEP_SIZE
    iterations: int = ITERATIONS
    average_decay: float = AVERAGE_DECAY
    keep_spectrum: bool = False
    quantiles: tuple[float, float] | None = None
    filter: str = FILTER
    resampling: str = RESAMPLING
    extend: str = EXTEND
    backend: str = BACKEND
    memory_budget: int = MEMORY_BUDGET
    reconstruction: TiltReconstruction | None = None
    device: str = DEVICE
    threads: int = THREADS

    def __post_init__(self) -> None:
        object.__setattr__(self, "tilt_angles", tuple(as_tilt_angles(self.tilt_angles).tolist()))
        if isinstance(self.style, StyleTransfer):
            self._take_apart(self.style)
        self._check_kinds()
        self._check_choices()
        self._check_noise()
        self.imperfections.check_tilts(self.tilt_angles)
        if self.modality == "faket" and self.style_transfer is None:
            raise ValueError(
                'expected `style` and `features` for the modality "faket", got None; build a '
                "`StyleBank` with `VGG19Features`"
            )

    def _take_apart(self, style: StyleTransfer) -> None:
        defaults = {entry.name: entry.default for entry in fields(type(self))}
        for name in _STYLE_SETTINGS:
            if getattr(self, name) not in (defaults[name], getattr(style, name)):
                raise ValueError(
                    f"expected `{name}` of the `StyleTransfer` only, got another one for the simulator; set it once"
                )
            object.__setattr__(self, name, getattr(style, name))
        object.__setattr__(self, "style", style.bank)

    def _check_kinds(self) -> None:
        """Raise a `ValueError` if a part is of another kind than it has to be."""
        if not isinstance(self.ctf, ContrastTransfer | None):
            raise ValueError(f"expected `ctf` to be a `ContrastTransfer` or None, got {self.ctf!r:.200}")
        if not isinstance(self.imperfections, Imperfections):
            raise ValueError(f"expected `imperfections` to be `Imperfections`, got {self.imperfections!r:.200}")
        if not isinstance(self.bad_tilts, list | tuple) or not all(isinstance(one, BadTilt) for one in self.bad_tilts):
            raise ValueError(f"expected `bad_tilts` to be a tuple of `BadTilt`, got {self.bad_tilts!r:.200}")
        object.__setattr__(self, "bad_tilts", tuple(self.bad_tilts))
        count = len(tuple(self.tilt_angles))
        numbers = [one.tilt for one in self.bad_tilts]
        if len(set(numbers)) < len(numbers) or any(number >= count for number in numbers):
            raise ValueError(f"expected each of `bad_tilts` to be another one of tilts 0 to {count - 1}, got {numbers}")

    def _check_choices(self) -> None:
        check_choice("modality", self.modality, MODALITIES)
        check_choice("filter", self.filter, FILTERS)
        check_choice("resampling", self.resampling, RESAMPLINGS)
        check_choice("extend", self.extend, EXTENDS)
        check_choice("backend", self.backend, BACKENDS)
        check_count("threads", self.threads)
        check_positive("crowd", self.crowd, zero=True)
        check_choice("background", self.background, BACKGROUNDS)
        if self.background == "measured" and not (self.noise_model and self.noise_model.backgrounds):
            raise ValueError(
                'expected noise with `backgrounds` for the background "measured", got noise without; fit it with '
                "`NoiseModel.fit_unpaired` or `faket-aug fit`"
            )
        if self.ice is not None:
            self._check_ice()
        check_style_numbers(self)
        check_reconstruction(self.reconstruction)

    def _check_ice(self) -> None:
        """Raise a `ValueError` if tilts cannot have this ice."""
        if not isinstance(self.ice, UnevenIce) and self.ice != MEASURED:
            raise ValueError(f'expected `ice` to be an `UnevenIce`, "{MEASURED}" or None, got {self.ice!r}')
        if self.background == MEASURED:
            raise ValueError(
                f'expected `ice` or `background="{MEASURED}"`, got both: each is what changes slowly in a tilt; leave '
                "one of them out"
            )
        model = self.noise_model
        if not isinstance(model, ResponseNoise) or not model.is_physical:
            raise ValueError(
                "expected noise with a response of an absolute scale for `ice`, got noise that tells no intensities; "
                "fit it with `NoiseModel.fit_unpaired` or `faket-aug fit` to tilts whose gray values or exposure are "
                "known"
            )
        if self.ice == MEASURED and not model.ice:
            raise ValueError(
                f'expected noise with a map of the ice for `ice="{MEASURED}"`, got noise without; fit it again to '
                "tilts whose gray values tell intensities, or set `ice` to an `UnevenIce`"
            )

    def _check_noise(self) -> None:
        if not isinstance(self.noise, NoiseModel | str | None):
            raise ValueError(f"expected `noise` to be a `NoiseModel`, got {self.noise!r}")
        check_noise(self.noise_model)
        if isinstance(self.noise, str):
            check_choice("noise", self.noise, [GIVEN])
        if self._is_given and self.modality not in GIVEN_MODALITIES:
            raise ValueError(
                f'expected the modality to be one of {", ".join(GIVEN_MODALITIES)} with `noise="given"`, got '
                f"{self.modality!r}: noise that tilts have already cannot be changed"
            )
        for name in ("ctf", "imperfections"):
            if getattr(self, name) and (self._is_given or self.response is not None):
                source = '`noise="given"`' if self._is_given else "noise that was fitted with a response"
                raise ValueError(
                    f"expected no `{name}` with {source}, which holds the microscope's effects already, got one; leave "
                    f"out `{name}`, or set `noise` to white noise (`NoiseModel.assume`)"
                )
        if self._is_given and self.bad_tilts:
            raise ValueError(
                'expected no `bad_tilts` with `noise="given"`, got some: signal and noise cannot be told apart there; '
                "leave out `bad_tilts`"
            )
        if self.ctf is not None:
            self.ctf.drawn(len(self.tilt_angles), np.random.default_rng(0))
        if self.ctf_correction is not None:
            check_choice("ctf_correction", self.ctf_correction, CORRECTIONS)
            if self.ctf is None and self.response is None:
                raise ValueError("expected `ctf`, or noise with a `response`, for `ctf_correction`, got neither")
        if self.flavour is not None:
            check_choice("flavour", self.flavour, FLAVOURS)
            self._check_flavours((self.flavour,), "flavour")
            if self.ctf_correction is not None:
                raise ValueError(
                    f"expected `flavour` or `ctf_correction`, got both, {self.flavour!r} and {self.ctf_correction!r}"
                )
        check_positive("low_pass", self.low_pass)
        if not isinstance(self.deconvolution, Deconvolution):
            raise ValueError(f"expected `deconvolution` to be a `Deconvolution`, got {self.deconvolution!r}")
        if self.modality in NOISY_MODALITIES and self.noise is None:
            raise ValueError(f"expected `noise` for the modality {self.modality!r}, got None; fit a `NoiseModel`")

    @classmethod
    def from_file(cls, path: str | Path, **settings: Any) -> Self:
        """Make a simulator from the file of `faket-aug fit`: noise, tilt angles, `extend` and the step for a style.

        Parameters
        ----------
        path
            The JSON file, or a file with the text of `NoiseModel.to_json`, which has no tilt angles.
        **settings
            Settings that replace those of the file. With `style` the modality is `"faket"`, otherwise `"noisy"`.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If the file does not exist, or has another content. The message names the file.
        ValueError
            If the tilt angles are not known; if the step for a style is not known (the published step, 0.15, is too
            large for a fitted response); or if a setting is wrong.
        """
        fitted = read_microscope(path)
        known: dict[str, Any] = {"noise": fitted.noise, "modality": "noisy"}
        known |= {"tilt_angles": fitted.tilt_angles} if fitted.tilt_angles else {}
        known |= {"extend": fitted.extend} if fitted.extend else {}
        style = settings.get("style")
        if style is not None and settings.get("modality", "faket") == "faket":
            # A `StyleTransfer` has a step of its own.
            step = {} if isinstance(style, StyleTransfer) else fitted.style_settings(settings.get("step_size"))
            known |= {"modality": "faket"} | step
        if "tilt_angles" not in known | settings:
            raise ValueError(f"{path}: expected `tilt_angles`, which this file does not tell, got none; set them")
        return cls(**(known | settings))

    def draw(self, specimen: Specimen, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulationRecord:
        """Draw all random parameters of a simulation from its address. Nothing is simulated yet.

        Parameters
        ----------
        specimen
            The specimen that will be simulated.
        seed, epoch, tomogram
            The address of all random numbers.
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
            versions=package_versions(),
            defocus=defocus,
            misalignment=self.imperfections.drawn(len(self.tilt_angles), alignment),
            ice=self._drawn_ice(numpy_generator(seed, "ice", epoch=epoch, tomogram=tomogram)),
        )

    def _drawn_ice(self, generator: np.random.Generator) -> dict[str, Any]:
        """Draw the ice of a tomogram, as its record tells it; nothing for even ice."""
        if self.ice is None:
            return {}
        if isinstance(self.ice, UnevenIce):
            return self.ice.drawn(generator).to_dict()
        assert isinstance(self.noise_model, ResponseNoise), "checked when the simulator was made"
        series = int(generator.integers(len(self.noise_model.ice)))
        return {"series": series, "mirrored": [bool(one) for one in generator.integers(2, size=2)]}

    def __call__(
        self,
        specimen: Specimen,
        *,
        seed: int,
        epoch: int = 0,
        tomogram: int = 0,
        halves: str | None = None,
        clean: bool = False,
        flavours: Sequence[str] = (),
    ) -> SimulatedTomogram:
        """Simulate a specimen.

        Parameters
        ----------
        specimen
            The specimen.
        seed, epoch, tomogram
            The address of all random numbers. The same address gives the same tomogram, bit for bit on a CPU.
        halves, clean, flavours
            What else is made, see `simulate`.

        Raises
        ------
        ValueError
            As for `simulate`.
        SimulationError
            If anything fails. The message names the specimen and the cause.
        """
        record = self.draw(specimen, seed=seed, epoch=epoch, tomogram=tomogram)
        return self.simulate(specimen, record, halves=halves, clean=clean, flavours=flavours)

    def simulate(
        self,
        specimen: Specimen,
        record: SimulationRecord,
        *,
        halves: str | None = None,
        clean: bool = False,
        flavours: Sequence[str] = (),
    ) -> SimulatedTomogram:
        """Make the tomogram of a record, or make it again.

        Parameters
        ----------
        specimen
            The specimen that the record names.
        record
            The record, from `draw` or from an earlier tomogram. Its settings must be those of this simulator.
        halves
            Also make two halves of the tomogram, with the same signal and independent noise, as a denoiser needs them.
            `"tilts"`: from every other tilt in the order of the angles, the first of them in the first half.
            `"exposures"`: from all tilts, each drawn twice with the noise of half the exposure. The tomogram itself
            does not change.
        clean
            Also make the tomogram without noise, in the same unit: of the same tilts without their noise (and, for
            `"faket"`, before the style transfer), with the same correction and filter.
        flavours
            Also make the tomogram in each of these flavours, see `flavour` of the simulator. Halves and the clean
            tomogram then have the first of them.

        Raises
        ------
        ValueError
            If the settings of the record differ from those of this simulator (the message names them), or the record is
            of another specimen; or if a half, a clean tomogram or a flavour cannot be made.
        SimulationError
            If anything fails. The message names the specimen and the cause.
        """
        more = Companions(halves=halves, clean=clean, flavours=flavours)
        self.check_companions(more)
        return self.make(specimen, record, more)

    def make(self, specimen: Specimen, record: SimulationRecord, more: Companions) -> SimulatedTomogram:
        """Make the tomogram of a record, with checked companions, see `simulate`."""
        settings = self.settings()
        recorded = {RENAMED.get(key, key): value for key, value in record.settings.items()}
        # Records of 0.1.0 do not name the class of a noise model of one's own, nor its settings.
        for name in ("noise_class", "noise_settings"):
            recorded.setdefault(name, settings.get(name))
        differing = [key for key in settings if recorded.get(key) != settings[key]]
        # What stands in a record only where it is not the default.
        differing += [key for key in _SOMETIMES if key in recorded and key not in settings]
        if bool(record.ice) and self.ice is None and "ice" not in differing:
            differing.append("ice")
        if differing:
            raise ValueError(f"expected a record with this simulator's settings, got others for {', '.join(differing)}")
        # Names are paths as they were given; the folder may have been reached by another way.
        if Path(record.specimen).name != Path(specimen.name).name:
            raise ValueError(f"expected the specimen of the record, {record.specimen}, got {specimen.name}")
        try:
            with torch.no_grad(), own_precision(), intra_op_threads(self.threads):
                return self._simulate(specimen, record, more)
        except Exception as error:
            raise SimulationError(f"{specimen.name}: {type(error).__name__}: {error}") from error

    # The trip of a specimen ------------------------------------------------------------------------------------------

    def _simulate(self, specimen: Specimen, record: SimulationRecord, more: Companions) -> SimulatedTomogram:
        """Project, distort, add noise, restyle, reconstruct. No stack of tilts is kept longer than it is needed."""
        tilts = self._project(specimen, record)
        tilts = self._distort(tilts, specimen, record)
        clean = tilts if more else None
        content, tilts = self._add_noise(tilts, specimen, record)
        tilts = self._restyle(content, tilts, record)
        del content
        tomogram = self._reconstruct(tilts, specimen, record)
        made = self._labelled(specimen, tilts, tomogram, record)
        return made if clean is None else self._accompanied(made, clean, specimen, more)

    def _project(self, specimen: Specimen, record: SimulationRecord) -> Tensor:
        """Project a specimen `(z, y, x)` to clean tilts `(tilt, y, x)` with dark particles, or take its own tilts."""
        device = usable_device(self.device)
        self._check_specimen(specimen)
        if isinstance(specimen, TiltedSpecimen):
            return sent(specimen.tilts_at(self.tilt_angles), device).to(torch.float32)
        angles, same = self.imperfections.true_tilt_angles(self.tilt_angles, record.misalignment)
        density = self._crowded(specimen, record, device)
        projected = project(
            density,
            angles,
            extend=self.extend,
            backend=self.backend,
            cache=same,
            device=device,
            dtype=torch.float32,
        )
        if self.noise_model is not None and not self.noise_model.interpolated:
            projected = without_interpolation(projected, angles, depth=density.shape[0])
        # Tilts of a microscope have dark particles. The contrast is negated here, and nowhere else.
        return projected.neg_()

    def _crowded(self, specimen: GrandModel, record: SimulationRecord, device: torch.device) -> Tensor:
        """Add the crowd of the noise model to a specimen: the same in all tilts, and without labels."""
        crowd = None if self.noise_model is None else self.noise_model.crowd
        if crowd is None or self.crowd == 0:
            return specimen.density
        generator = torch_generator(
            torch_seed(record.seed, "crowd", epoch=record.epoch, tomogram=record.tomogram), device
        )
        return crowd.around(sent(specimen.density, device), specimen.voxel_size, generator, strength=self.crowd)

    def _distort(self, tilts: Tensor, specimen: Specimen, record: SimulationRecord) -> Tensor:
        """Apply imperfections and `ctf` to clean tilts `(tilt, y, x)`. A `response` is applied with the noise."""
        tilts = self.imperfections.apply(tilts, specimen.voxel_size, self.tilt_angles, record.misalignment)
        return tilts if self.ctf is None else self._ctf_of(record).apply(tilts, specimen.voxel_size)

    def _add_noise(self, clean: Tensor, specimen: Specimen, record: SimulationRecord) -> tuple[Tensor, Tensor]:
        """Make content and noisy tilts, `(tilt, y, x)` each, from clean ones. The content has less noise."""
        model = self._noise_of(record)
        if model is None:
            spoilt = spoil(clean, self.bad_tilts, specimen.voxel_size)
            return spoilt, spoilt
        scale, noise = NOISE_SCALES.get(self.modality, 1.0), self._random_numbers(clean, model, record.noise_seed)

        def sampled(noise_scale: float) -> Tensor:
            made = model.sample(clean, noise, self.tilt_angles, noise_scale=noise_scale)
            return self._spoilt(made, clean, model, noise_scale, specimen)

        noisy = sampled(scale)
        return (noisy if self.modality != "faket" else sampled(CONTENT_NOISE)), noisy

    def _spoilt(
        self, noisy: Tensor, clean: Tensor, model: NoiseModel, noise_scale: float, specimen: Specimen
    ) -> Tensor:
        """Spoil the signal of bad tilts, and leave their noise: some noise models scale what they are given."""
        if not self.bad_tilts:
            return noisy
        signal = model.signal(clean, self.tilt_angles, noise_scale=noise_scale)
        changed, rows = spoil(signal, self.bad_tilts, specimen.voxel_size), [bad.tilt for bad in self.bad_tilts]
        noisy = noisy.clone()
        noisy[rows] += changed[rows] - signal[rows]
        return noisy

    def _restyle(self, content: Tensor, noisy: Tensor, record: SimulationRecord) -> Tensor:
        """Transfer the style to noisy tilts `(tilt, y, x)` for `"faket"`; other modalities keep the noisy tilts."""
        return noisy if self.modality != "faket" else self.restyle(content, noisy, series=record.style_series)

    def _reconstruct(
        self,
        tilts: Tensor,
        specimen: Specimen,
        record: SimulationRecord,
        *,
        some: IntArray | None = None,
        flavour: str | None = None,
    ) -> Tensor:
        """Reconstruct the tomogram `(z, y, x)` from (`some`) tilts `(tilt, y, x)`; by default of its own flavour."""
        flavour = self._own_flavour if flavour is None else flavour
        volume = self._back_projected(tilts, specimen, record, flavour, some)
        return self._filtered(volume, specimen, record, flavour)

    def _back_projected(
        self, tilts: Tensor, specimen: Specimen, record: SimulationRecord, flavour: str, some: IntArray | None
    ) -> Tensor:
        """Reconstruct tilts, corrected as a flavour wants it."""
        if flavour in CORRECTIONS:
            pixel_size = specimen.voxel_size if self.response is None else self.response.pixel_size
            tilts = self._ctf_of(record).correct(tilts, pixel_size, method=flavour)
        angles = as_tilt_angles(self.tilt_angles)
        if some is not None:
            tilts, angles = tilts[torch.from_numpy(some).to(tilts.device)], angles[some]
        if self.reconstruction is not None:
            made = self.reconstruction(tilts, angles, depth=specimen.labels.shape[0], bin=specimen.bin)
            return check_reconstructed(made, specimen.labels.shape, self.reconstruction)
        return reconstruct(
            tilts,
            angles,
            depth=specimen.labels.shape[0],
            filter=self.filter,
            bin=specimen.bin,
            resampling=self.resampling,
        )

    def _labelled(
        self, specimen: Specimen, tilts: Tensor, tomogram: Tensor, record: SimulationRecord
    ) -> SimulatedTomogram:
        """Put tilts, tomogram and the labels of the specimen together."""
        device = tomogram.device
        return SimulatedTomogram(
            tiltseries=tilts,
            tilt_angles=as_tilt_angles(self.tilt_angles),
            tomogram=tomogram,
            labels=sent(specimen.labels, device),
            # Few ask for instances, which are four times as large: they stay where they are.
            instances=specimen.instances,
            particles=specimen.particles,
            class_names=specimen.class_names,
            not_particles=specimen.not_particles,
            voxel_size=specimen.label_voxel_size,
            record=record,
        )

    def _filtered(self, volume: Tensor, specimen: Specimen, record: SimulationRecord, flavour: str) -> Tensor:
        """Filter a tomogram `(z, y, x)` of raw tilts, as a flavour wants it."""
        if flavour == "low-pass":
            return low_passed(volume, specimen.label_voxel_size, self.low_pass)
        if flavour == "deconvolved":
            return deconvolve(volume, specimen.label_voxel_size, self._ctf_of(record), self.deconvolution)
        return volume

    @property
    def _own_flavour(self) -> str:
        return self.flavour or self.ctf_correction or "raw"

    # What is made beside the tomogram --------------------------------------------------------------------------------

    def check_companions(self, more: Companions) -> None:
        """Raise a `ValueError` if a simulator cannot make halves, a clean tomogram or flavours; see `simulate`."""
        halves, clean = more.halves, more.clean
        self._check_flavours(more.flavours, "flavours")
        if self._is_given and (clean or halves == "exposures"):
            raise ValueError(
                f"expected simulated noise for {'a clean tomogram' if clean else 'halves of the exposure'}, got "
                '`noise="given"`: noise that tilts have already cannot be taken out of them; give clean tilts, or take '
                'halves of the "tilts"'
            )
        if halves == "exposures" and self.modality == "noiseless":
            raise ValueError('expected a modality with noise for `halves="exposures"`, got "noiseless"; set `modality`')
        if halves == "tilts" and len(tuple(self.tilt_angles)) < 2:
            raise ValueError('expected two tilts or more for `halves="tilts"`, got one; set `halves` to "exposures"')

    def _accompanied(
        self, made: SimulatedTomogram, clean: Tensor, specimen: Specimen, more: Companions
    ) -> SimulatedTomogram:
        """Add halves and the clean tomogram to a tomogram of clean tilts `(tilt, y, x)`."""
        found: dict[str, Any] = {}
        flavour = self._usable(more.flavours[0]) if more.flavours else None
        if more.clean:
            signal = self._signal(clean, specimen, made.record)
            found["clean"] = self._reconstruct(signal, specimen, made.record, flavour=flavour)
        if more.flavours:
            found["flavours"] = self._in_flavours(made, specimen, more.flavours)
        if more.halves == "tilts":
            order = np.argsort(as_tilt_angles(self.tilt_angles), kind="stable")
            parts = (order[0::2], order[1::2])
            found["halves"] = tuple(
                self._reconstruct(made.tiltseries, specimen, made.record, some=part, flavour=flavour) for part in parts
            )
        elif more.halves is not None:
            tilts = self._half_exposures(clean, specimen, made.record)
            found["halves"] = tuple(self._reconstruct(half, specimen, made.record, flavour=flavour) for half in tilts)
        return replace(made, **found)

    def _in_flavours(self, made: SimulatedTomogram, specimen: Specimen, flavours: Sequence[str]) -> dict[str, Tensor]:
        """Make the tomogram in several flavours; each correction of the tilts is reconstructed once."""
        own, found = self._own_flavour, {}
        kept = {own: made.tomogram} if own in ("raw", *CORRECTIONS) else {}
        for name in flavours:
            flavour = self._usable(name)
            tilts = flavour if flavour in CORRECTIONS else "raw"
            if tilts not in kept:
                kept[tilts] = self._back_projected(made.tiltseries, specimen, made.record, tilts, None)
            found[name] = self._filtered(kept[tilts], specimen, made.record, flavour)
        return found

    def _usable(self, flavour: str) -> str:
        """Return the raw flavour where nothing can be corrected: settings that were drawn may have no CTF."""
        return "raw" if flavour in WITH_CTF and self.ctf is None and self.response is None else flavour

    def _check_flavours(self, flavours: Sequence[str], name: str) -> None:
        """Raise a `ValueError` if there is no contrast transfer function for one of the flavours."""
        lacking = [flavour for flavour in flavours if self._usable(flavour) != flavour]
        if lacking:
            raise ValueError(
                f"expected `ctf`, or noise with a `response`, for {lacking[0]!r} in `{name}`, got neither; set "
                '`ctf`, or take "raw" or "low-pass"'
            )

    def _signal(self, clean: Tensor, specimen: Specimen, record: SimulationRecord) -> Tensor:
        """Return noisy tilts without their noise, `(tilt, y, x)`, from clean ones."""
        model = self._noise_of(record)
        scale = NOISE_SCALES.get(self.modality, 1.0)
        signal = clean if model is None else model.signal(clean, self.tilt_angles, noise_scale=scale)
        return spoil(signal, self.bad_tilts, specimen.voxel_size)

    def _half_exposures(self, clean: Tensor, specimen: Specimen, record: SimulationRecord) -> Iterator[Tensor]:
        """Make the noisy tilts of both halves of the exposure; each half is restyled by itself."""
        model = self._noise_of(record)
        assert model is not None, "checked with the companions"
        seeds = (record.noise_seed, torch_seed(record.seed, "halves", epoch=record.epoch, tomogram=record.tomogram))
        noise, other = (self._random_numbers(clean, model, seed) for seed in seeds)
        scale = NOISE_SCALES.get(self.modality, 1.0)

        def made(noise_scale: float) -> list[Tensor]:
            both = model.half_exposures(clean, noise, other, self.tilt_angles, noise_scale=noise_scale)
            return [self._spoilt(half, clean, model, noise_scale, specimen) for half in both]

        halves = made(scale)
        contents = made(CONTENT_NOISE) if self.modality == "faket" else halves
        return (self._restyle(content, half, record) for content, half in zip(contents, halves, strict=True))

    # What the stages need --------------------------------------------------------------------------------------------

    def _check_specimen(self, specimen: Specimen) -> None:
        size, advice = specimen.voxel_size, "bin the tilts or resample the specimens"
        if self.response is not None:
            fitted = "the tilts that the noise was fitted to"
            check_same_size("the specimen", size, fitted, self.response.pixel_size, advice=advice)
        if self.modality == "faket" and self.style_transfer is not None:
            for series in self.style_transfer.bank.series:
                style = f"the style {series.name}"
                check_same_size("the specimen", size, style, series.pixel_size, advice=f"{advice}, {_STYLE_PIXELS}")
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
        """Return the contrast transfer function of a tomogram, with the drawn defocus."""
        if self.ctf is not None:
            return replace(self.ctf, defocus=record.defocus, spread=0.0, jitter=0.0)
        model = self._noise_of(record)
        assert model is not None, "checked when the simulator was made"
        assert model.response is not None, "checked when the simulator was made"
        return model.response.ctf

    def _noise_of(self, record: SimulationRecord) -> NoiseModel | None:
        """Return the noise model of a tomogram, with the drawn defocus. A response also applies to noiseless tilts."""
        model = self.noise_model
        if model is None or (self.modality == "noiseless" and model.response is None):
            return None
        if model.response is not None and record.defocus:
            model = model.at_defocus(record.defocus[0])
        if self.background == "measured" and isinstance(model, ResponseNoise):
            generator = numpy_generator(record.seed, "background", epoch=record.epoch, tomogram=record.tomogram)
            model = model.with_background(int(generator.integers(len(model.backgrounds))))
        if record.ice and isinstance(model, ResponseNoise):
            model = model.with_ice(self._ice_of(record, model))
        return model.baseline() if self.modality == "baseline" else model

    def _ice_of(self, record: SimulationRecord, model: ResponseNoise) -> ThicknessMap | DrawnIce:
        """Return the ice of a tomogram."""
        if self.ice != MEASURED:
            return DrawnIce.from_dict(record.ice)
        y, x = record.ice["mirrored"]
        measured: ThicknessMap = model.ice[int(record.ice["series"])]
        return measured.mirrored(y=bool(y), x=bool(x))

    def _random_numbers(self, clean: Tensor, model: NoiseModel, seed: int) -> Tensor:
        if self.modality == "noiseless" or not model.draws:
            return clean.new_zeros(()).expand_as(clean)  # takes no memory
        generator = torch_generator(seed, clean.device)
        return self.imperfections.coloured(torch.randn(clean.shape, generator=generator, device=clean.device))

    def restyle(self, content: Tensor, noisy: Tensor, *, series: int) -> Tensor:
        """Transfer the style to noisy tilts. A step of 0 leaves them as they are.

        Parameters
        ----------
        content, noisy
            `(tilt, y, x)`, at the tilt angles of the simulator.
        series
            Index of the series in the style bank.

        Returns
        -------
        `(tilt, y, x)`. Each tilt has the mean and the standard deviation of the style. With a fitted response or with
        `keep_spectrum`, it keeps those of the noisy tilt.
        """
        assert self.style_transfer is not None, "checked when the simulator was made"
        own = self.response is not None
        return self.style_transfer(content, noisy, self.tilt_angles, series=series, own_statistics=own)

    @cached_property
    def style_transfer(self) -> StyleTransfer | None:
        """The style transfer of these settings; None without a style bank and its features."""
        if not isinstance(self.style, StyleBank) or self.features is None:
            return None
        return StyleTransfer(bank=self.style, **{name: getattr(self, name) for name in _STYLE_SETTINGS})

    @property
    def noise_model(self) -> NoiseModel | None:
        """The noise model; a `GivenNoise` for `noise="given"`."""
        return GivenNoise() if isinstance(self.noise, str) else self.noise

    @property
    def response(self) -> MicroscopeResponse | None:
        """The response of the noise model; None if it has none."""
        return None if self.noise_model is None else self.noise_model.response

    @property
    def range_quantiles(self) -> tuple[float, float]:
        """The quantiles in use: those of the simulator, or of the style bank, or minimum and maximum."""
        if self.quantiles is not None:
            return self.quantiles
        return self.style.quantiles if isinstance(self.style, StyleBank) else FULL_RANGE

    @property
    def _is_given(self) -> bool:
        return isinstance(self.noise_model, GivenNoise)

    def settings(self) -> dict[str, Any]:
        """Return all settings that the result depends on, as JSON types: strings, numbers, lists and dicts."""
        uses_noise, styled = self.modality in NOISY_MODALITIES or self.response is not None, self.modality == "faket"
        noise = self.noise_model if uses_noise else None
        if self.background == "measured" and isinstance(noise, ResponseNoise):
            noise = noise.with_background(0)
        if self.ice == MEASURED and isinstance(noise, ResponseNoise):
            noise = noise.with_ice(noise.ice[0])
        style = self.style_transfer if styled else None
        plain = (
            *("content_weight", "step_size", "iterations", "average_decay", "keep_spectrum", "filter", "resampling"),
            *("extend", "backend", "memory_budget", "device", "threads"),
        )
        # Without a crowd the settings are those of version 0.1.0, so that its records fit.
        crowded = self.noise_model is not None and self.noise_model.crowd is not None
        return (
            ({"crowd": self.crowd} if crowded else {})
            | ({} if self.flavour is None else {"flavour": self.flavour})
            | ({} if self.low_pass == LOW_PASS else {"low_pass": float(self.low_pass)})
            | ({} if self.deconvolution == Deconvolution() else {"deconvolution": asdict(self.deconvolution)})
            | ({"bad_tilts": [one.to_dict() for one in self.bad_tilts]} if self.bad_tilts else {})
            | ({"background": self.background} if self.background != "own" else {})
            | ({"ice": self.ice.to_dict() if isinstance(self.ice, UnevenIce) else self.ice} if self.ice else {})
            | ({"noise_class": own_class(noise)} if own_class(noise) else {})
            # The text of `to_json` is the user's own: whether it tells all is not known.
            | ({"noise_settings": described(noise)["settings"]} if own_class(noise) else {})
            | ({} if self.reconstruction is None else {"reconstruction": described(self.reconstruction)})
            | {
                "tilt_angles": list(self.tilt_angles),
                "modality": self.modality,
                "noise": GIVEN if self._is_given else noise.identity() if noise is not None else None,
                "ctf": self.ctf.to_dict() if self.ctf else None,
                "ctf_correction": self.ctf_correction,
                "imperfections": self.imperfections.to_dict() or None,
                "style": style.bank.key if style else None,
                "features": style.features.fingerprint if style else None,
                "style_weights": None if self.style_weights is None else [float(w) for w in self.style_weights],
                "content_layers": [int(layer) for layer in self.content_layers],
                "quantiles": [float(q) for q in self.range_quantiles],
            }
            | {name: getattr(self, name) for name in plain}
        )
