"""The FakET simulator: from a specimen to a tilt-series and a tomogram. The only module that knows all stages."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from faket_aug._checks import SimulationError
from faket_aug._random import numpy_generator, torch_generator, torch_seed
from faket_aug._runtime.threads import intra_op_threads, usable_device
from faket_aug.geometry import as_tilt_angles
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.file import read_microscope
from faket_aug.microscope.noise import CONTENT_NOISE, NoiseModel
from faket_aug.microscope.spectra import match_spectrum
from faket_aug.simulation.simulator_settings import GIVEN, SimulatorSettings
from faket_aug.simulation.tomogram import SimulatedTomogram, SimulationRecord
from faket_aug.specimens.tilted import Specimen, TiltedSpecimen
from faket_aug.statistics import match_mean_std, mean_std
from faket_aug.style.transfer import stylize
from faket_aug.style.vgg19 import VGG19Features
from faket_aug.tomography.projection import project
from faket_aug.tomography.reconstruction import reconstruct

#: Voxels and pixels may differ by this share, where a noise model knows its pixel size.
VOXEL_TOLERANCE = 0.02
#: Besides torch, what a result's last bits depend on.
_PACKAGES = ("faket_aug", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True, eq=False)
class FakETSimulator(SimulatorSettings):
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
    style, features
        The style bank and the encoder that made it; needed for `"faket"` only.
    style_weights, content_layers, content_weight, step_size, iterations, average_decay
        Of the style transfer, see `stylize`; `stepsize.choose_step_size` finds a step for a microscope.
    keep_spectrum
        After the style transfer each tilt is filtered so that its radial power is what it was before (the microscope's,
        with a fitted `response`): the transfer makes a grain that real tilts lack. Off, as published.
    quantiles
        That content and noisy stacks are brought to [0, 1] by; those of the style bank by default.
    filter, binning
        Of the reconstruction, see `reconstruct`. The tomogram has the binning of the specimen's labels.
    extend, backend
        Of the projection, see `project`.
    memory_budget
        Bytes that the style transfer's activations may take; `free_memory_budget` finds what is free.
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

    _on_device: dict[str, VGG19Features] = field(default_factory=dict, init=False, repr=False)

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

    def __getstate__(self) -> dict[str, Any]:
        # Copies of the encoder on a device belong to the process that made them.
        return {**self.__dict__, "_on_device": {}}

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
        elif self._response is not None:
            defocus = tuple(np.ravel(self._response.drawn(generator).ctf.defocus).tolist())
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
        noise = self._noise_of(record)
        response = noise.response if isinstance(noise, NoiseModel) else None
        ctf = None if response is None else response.ctf
        if self.ctf is not None:
            ctf = replace(self.ctf, defocus=record.defocus, spread=0.0, jitter=0.0)
        # Not kept here: `_tilts` lets go of the clean tilts as soon as it can.
        tilts = self._tilts(self._clean_tilts(specimen, record, device, ctf), noise, record)
        corrected = tilts
        if ctf is not None and self.ctf_correction is not None:
            pixel_size = specimen.voxel_size if response is None else response.pixel_size
            corrected = ctf.correct(tilts, pixel_size, method=self.ctf_correction)
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

    def _clean_tilts(
        self, specimen: Specimen, record: SimulationRecord, device: torch.device, ctf: ContrastTransfer | None
    ) -> Tensor:
        """Make the tilts before there is noise in them; a response's transfer function comes with the noise."""
        first, pixel_size = self._first_tilts(specimen, record, device), specimen.voxel_size
        first = self.imperfections.apply(first, pixel_size, self.tilt_angles, record.misalignment)
        return first if ctf is None or self.ctf is None else ctf.apply(first, pixel_size)

    def _first_tilts(self, specimen: Specimen, record: SimulationRecord, device: torch.device) -> Tensor:
        """Project a specimen, or take the tilts that it comes as."""
        response = self._response
        if response is not None and not math.isclose(specimen.voxel_size, response.pixel_size, rel_tol=VOXEL_TOLERANCE):
            raise ValueError(
                f"expected voxels of {response.pixel_size:g} Å, the pixel size of the tilts that the noise was fitted "
                f"to, got {specimen.voxel_size:g} Å; bin the tilts or resample the specimens"
            )
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

    def _noise_of(self, record: SimulationRecord) -> NoiseModel | str | None:
        """The noise of a tomogram: a response has the defocus that was drawn."""
        if self._response is None or not isinstance(self.noise, NoiseModel):
            return None if self.modality == "noiseless" else self.noise
        drawn = [self._response.at_defocus(defocus) for defocus in record.defocus]
        return replace(self.noise, response=drawn[0] if drawn else self._response)

    def _tilts(self, first: Tensor, given: NoiseModel | str | None, record: SimulationRecord) -> Tensor:
        if given is None:
            return first
        if self.modality == "noiseless" and isinstance(given, NoiseModel):
            return given.sample(first, torch.zeros_like(first), self.tilt_angles, noise_scale=0.0)
        if isinstance(given, str):
            return first if self.modality == "noisy" else self.restyle(first, first, series=record.style_series)
        generator = torch_generator(record.noise_seed, first.device)
        noise = self.imperfections.coloured(torch.randn(first.shape, generator=generator, device=first.device))
        model = given.baseline() if self.modality == "baseline" else given
        if self.modality == "content":
            return model.sample(first, noise, self.tilt_angles, noise_scale=CONTENT_NOISE)
        noisy = model.sample(first, noise, self.tilt_angles)
        if self.modality != "faket":
            return noisy
        content = model.sample(first, noise, self.tilt_angles, noise_scale=CONTENT_NOISE)
        del first, noise
        return self.restyle(content, noisy, series=record.style_series)

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
        `(tilt, y, x)`; each tilt has the style's mean and deviation, or, with a fitted response or `keep_spectrum`, the
        noisy tilt's own.
        """
        if self.step_size == 0:
            return noisy
        assert self.style is not None, "checked when the simulator was made"
        style = self.style.select(self.tilt_angles, series=series).to(noisy.device)
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
        if self.keep_spectrum:
            styled = match_spectrum(styled, noisy)
        own = self.keep_spectrum or self._response is not None
        return match_mean_std(styled, *(mean_std(noisy) if own else (style.mean, style.std)))

    def _encoder(self, device: torch.device) -> VGG19Features:
        assert self.features is not None, "checked when the simulator was made"
        if device.type == "cpu":
            return self.features
        key = str(device)
        if key not in self._on_device:
            self._on_device[key] = copy.deepcopy(self.features).to(device)
        return self._on_device[key]
