"""A check of a fitted microscope without labels: what it simulates beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import same_size
from faket_aug._runtime.threads import intra_op_threads
from faket_aug.comparison.appearance import SMOOTHING, Appearance, appearance_of, mean_appearance
from faket_aug.comparison.check_settings import CheckSettings
from faket_aug.comparison.discriminator import LearningCurve, learning_curve
from faket_aug.comparison.profile import Contrast, RadialProfile, contrast, jittered, mean_profile, shell_averages
from faket_aug.generation.templates import ParticleTemplate
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.file import MicroscopeFile
from faket_aug.microscope.noise import ResponseNoise
from faket_aug.picking.matching import match_template
from faket_aug.simulation.fit_microscope import Specimens
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.simulation.tomogram import SimulatedTomogram
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.tilts.series import TiltSeries
from faket_aug.tomography.reconstruction import reconstruct

#: A hit is right if a true place of the simulated tomogram is this near, as a share of the particle's radius.
_NEAR = 0.5
#: Voxels along each side of the sections that are shown.
_SHOWN = 384
#: The parts of the whole work, in steps of the progress: a tomogram, and matching one.
_MADE, _MATCHED = 200, 1000


@dataclass(frozen=True, kw_only=True)
class ParticleCheck:
    """How dark a particle is: measured, and simulated.

    Parameters
    ----------
    name
        Of the particle.
    measured
        At the best hits of template matching in the measured tomogram.
    found
        At the best hits of the same matching in the simulated tomograms.
    true
        At the true places in these, jittered.
    precision
        Share of the simulated hits that are the particle.
    inaccuracy
        Voxels, how far these are from the true places along each axis (root of the mean square).
    contrast
        By which factor measured particles are darker than `found`.
    contrast_to_true
        The same, than `true`.
    """

    name: str
    measured: RadialProfile
    found: RadialProfile
    true: RadialProfile
    precision: float
    inaccuracy: float
    contrast: Contrast
    contrast_to_true: Contrast


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroscopeCheck:
    """What a check found.

    Parameters
    ----------
    measured, simulated
        How tilts and tomograms look.
    classifier
        How well a small classifier tells simulated patches from measured ones.
    floor
        The same for measured patches of two regions; None where the measured tomogram is too small for that.
    particle
        The profile of a particle, where one was given.
    sections
        The middle of the measured and of a simulated tomogram, `(y, x)` each: the mean of five sections, smoothed.
    pixel_size
        Å, of voxels.
    """

    measured: Appearance
    simulated: Appearance
    classifier: LearningCurve
    floor: LearningCurve | None
    particle: ParticleCheck | None
    sections: tuple[Tensor, Tensor]
    pixel_size: float


def check_microscope(
    simulator: FakETSimulator,
    series: TiltSeries,
    specimens: Specimens,
    *,
    particle: ParticleTemplate | None = None,
    settings: CheckSettings | None = None,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> MicroscopeCheck:
    """Compare what a microscope's simulator makes with what was measured. No label is needed.

    Parameters
    ----------
    simulator
        As `FakETSimulator.from_file` makes it; it simulates at the tilt angles of the series. The measured tomogram is
        reconstructed with its settings.
    series
        A measured tilt-series; it is aligned where its metadata say how.
    specimens
        Specimens of the same kind, with voxels of the tilts' pixels: a sequence, or a `GrandModelGenerator`.
    particle
        A particle that the measured tomogram holds, and also the specimens, as a class of this name. It is found by
        template matching, and its profile is compared.
    settings
        How it is done; by default `CheckSettings()`.
    seed
        Of all chance.
    progress
        Is told how much of the work is done.

    Returns
    -------
    The numbers; `check_report.report` says them in words, `check_report.as_table` as JSON types.

    Raises
    ------
    ValueError
        If pixel sizes differ, a tomogram is too small for the patches, or no specimen holds the particle.
    """
    how = settings or CheckSettings()
    measured = series.aligned() if series.metadata is not None and series.metadata.is_alignment else series
    simulator = replace(simulator, tilt_angles=measured.tilt_angles)
    pairs = 1 if measured.tilts.shape[-2] < 4 * how.patch else 2
    matched = 0 if particle is None else (1 + how.count) * _MATCHED
    work = _Work(progress, (1 + how.count) * _MADE + pairs * how.seeds * max(how.steps) + matched)
    made: list[SimulatedTomogram] = []
    looks = []
    for index in range(how.count):
        specimen = _specimen(specimens, index, seed)
        _check_specimen(specimen, measured, particle)
        one = simulator(specimen, seed=seed, tomogram=index)
        # Of what is simulated every pixel counts, at any size.
        tilts = replace(measured, tilts=one.tiltseries.cpu(), metadata=None, measured=None, name=specimen.name)
        looks.append(appearance_of(tilts, one.tomogram))
        made.append(one)
        work.add(_MADE)
    with intra_op_threads(simulator.threads):
        tomogram = _reconstructed(measured, simulator, made[0])
        own = appearance_of(measured, tomogram)
        work.add(_MADE)
        volumes = [one.tomogram.cpu() for one in made]
        half = tomogram.shape[1] // 2
        train, test = (volumes[0::2], volumes[1::2])
        own_settings = {name: getattr(how, name) for name in ("steps", "seeds", "patch")}
        learning: dict[str, Any] = own_settings | {"seed": seed, "threads": simulator.threads, "progress": work.one}
        curve = learning_curve(([tomogram[:, :half]], train), ([tomogram[:, half:]], test), **learning)
        floor = None
        if pairs > 1:
            first, second, third, fourth = (part for part in torch.tensor_split(tomogram, 4, dim=1))
            floor = learning_curve(([first], [second]), ([third], [fourth]), **learning)
        profiles = None
        if particle is not None:
            known = _Matching(simulator, particle, measured, how, work)
            profiles = known.check(tomogram, made, seed=seed)
    return MicroscopeCheck(
        measured=own,
        simulated=mean_appearance(looks),
        classifier=curve,
        floor=floor,
        particle=profiles,
        sections=_sections(tomogram, volumes[0]),
        pixel_size=made[0].voxel_size,
    )


def calibrated(microscope: MicroscopeFile, contrast: Contrast) -> MicroscopeFile:
    """Return a microscope whose particles are darker by a factor. The noise stays.

    Parameters
    ----------
    microscope
        With a fitted response.
    contrast
        Of a `ParticleCheck`.

    Raises
    ------
    ValueError
        If the microscope has no response, or the factor is no positive number.
    """
    noise = microscope.noise
    if not isinstance(noise, ResponseNoise):
        raise ValueError("expected a microscope with a fitted response, got another noise model; use `faket-aug fit`")
    if not (math.isfinite(contrast.factor) and contrast.factor > 0):
        raise ValueError(
            f"expected a positive factor of the contrast, got {contrast.factor:g}: measured and simulated profiles are "
            "not alike; look at them, and at the hits"
        )
    envelope = noise.response.envelope
    brighter = replace(envelope, log_scale=envelope.log_scale + math.log(contrast.factor))
    about = dict(microscope.about) | {"contrast": contrast.factor, "contrast_error": contrast.error}
    return replace(microscope, noise=replace(noise, response=replace(noise.response, envelope=brighter)), about=about)


class _Work:
    """How much of the work is done."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self._tell, self._total, self._done = progress, total, 0

    def add(self, steps: int) -> None:
        self._done += steps
        if self._tell is not None:
            self._tell(min(self._done, self._total), self._total)

    def one(self) -> None:
        self.add(1)


def _specimen(specimens: Specimens, index: int, seed: int) -> GrandModel:
    if isinstance(specimens, Sequence):
        return specimens[index % len(specimens)]
    return specimens.generate(seed=seed, tomogram=index)


def _check_specimen(specimen: GrandModel, measured: TiltSeries, particle: ParticleTemplate | None) -> None:
    if measured.pixel_size > 0 and not same_size(specimen.voxel_size, measured.pixel_size):
        raise ValueError(
            f"{specimen.name}: expected voxels of {measured.pixel_size:g} Å, as the pixels of {measured.name}, got "
            f"{specimen.voxel_size:g} Å; set the specimens' voxel size"
        )
    if particle is not None and particle.name not in specimen.class_names.values():
        names = ", ".join(name for number, name in sorted(specimen.class_names.items()) if number > 0)
        raise ValueError(
            f"{specimen.name}: expected a class {particle.name!r}, whose profile is to be compared, got {names}; add "
            "the particle to the specimens (`--templates`), under this name"
        )


def _reconstructed(measured: TiltSeries, simulator: FakETSimulator, like: SimulatedTomogram) -> Tensor:
    """Reconstruct the measured tomogram as the simulator does."""
    if simulator.ctf_correction is not None:
        optics = _known_optics(measured) or _optics(simulator)
        measured = measured.ctf_corrected(method=simulator.ctf_correction, ctf=optics)
    bin = round(like.voxel_size / measured.pixel_size) if measured.pixel_size > 0 else 1
    return reconstruct(
        measured.tilts,
        measured.tilt_angles,
        depth=int(like.tomogram.shape[0]),
        filter=simulator.filter,
        bin=max(bin, 1),
        resampling=simulator.resampling,
    )


def _known_optics(measured: TiltSeries) -> ContrastTransfer | None:
    """What the files of the series say about each tilt, if they do."""
    metadata = measured.metadata
    if metadata is None or metadata.defocus_um is None or not np.isfinite(metadata.defocus_um).any():
        return None
    return ContrastTransfer.from_metadata(metadata)


def _optics(simulator: FakETSimulator) -> ContrastTransfer | None:
    return simulator.ctf if simulator.response is None else simulator.response.ctf


def _sections(measured: Tensor, simulated: Tensor) -> tuple[Tensor, Tensor]:
    """Cut the middle, of one size, out of two tomograms: the mean of five sections, smoothed to be seen."""
    height, width = (min(*pair, _SHOWN) for pair in zip(measured.shape[1:], simulated.shape[1:], strict=True))
    found = []
    for tomogram in (measured, simulated):
        first = max(tomogram.shape[0] // 2 - 2, 0)
        section = tomogram[first : first + 5].detach().cpu().float().mean(dim=0)
        top, left = (section.shape[0] - height) // 2, (section.shape[1] - width) // 2
        smooth = gaussian_filter(section.numpy(), SMOOTHING)
        found.append(torch.from_numpy(smooth[top : top + height, left : left + width]))
    return found[0], found[1]


class _Matching:
    """Finds a particle in measured and simulated tomograms in the same way."""

    def __init__(
        self,
        simulator: FakETSimulator,
        particle: ParticleTemplate,
        measured: TiltSeries,
        how: CheckSettings,
        work: _Work,
    ) -> None:
        self._simulator, self._particle = simulator, particle
        self._angles, self._how, self._work = measured.tilt_angles, how, work
        self._measured_optics = _known_optics(measured) or _optics(simulator)

    def check(self, tomogram: Tensor, made: Sequence[SimulatedTomogram], *, seed: int) -> ParticleCheck:
        """Average profiles at hits in the measured and in simulated tomograms, and at the true places in these."""
        size = made[0].voxel_size
        radius, hits = self._particle.radius / size, self._how.hits
        measured = shell_averages(tomogram, self._hits(tomogram, size, self._measured_optics, hits, radius))
        found, true, away = [], [], []
        for one in made:
            volume = one.tomogram.cpu()
            there = self._places(one, radius)
            optics = _optics(self._simulator)
            if optics is not None and one.record.defocus:
                optics = replace(optics, defocus=one.record.defocus, spread=0.0, jitter=0.0)
            count = min(max(1, hits // len(made)), max(len(there), 1))
            places = self._hits(volume, size, optics, count, radius)
            found.append(shell_averages(volume, places))
            true.append(shell_averages(volume, jittered(there, self._how.jitter, seed=seed)))
            if len(there) and len(places):
                away.append(cKDTree(there).query(places)[0])
        distances = np.concatenate(away) if away else np.array([math.inf])
        right = distances < _NEAR * radius
        own, theirs, exact = mean_profile([measured]), mean_profile(found), mean_profile(true)
        return ParticleCheck(
            name=self._particle.name,
            measured=own,
            found=theirs,
            true=exact,
            precision=float(right.mean()),
            inaccuracy=float(np.sqrt((distances[right] ** 2).mean() / 3)) if right.any() else math.nan,
            contrast=contrast(own, theirs),
            contrast_to_true=contrast(own, exact),
        )

    def _places(self, one: SimulatedTomogram, margin: float) -> FloatArray:
        """True places of the particle that are as far from the faces as hits have to be."""
        numbers = [number for number, name in one.class_names.items() if name == self._particle.name]
        own = one.particles.positions[np.isin(one.particles.classes, numbers)]
        inside = (own >= margin) & (own <= np.array(one.tomogram.shape) - 1 - margin)
        places: FloatArray = own[inside.all(axis=1)]
        return places

    def _hits(
        self, tomogram: Tensor, voxel_size: float, optics: ContrastTransfer | None, count: int, radius: float
    ) -> FloatArray:
        before = 0

        def tell(done: int, total: int) -> None:
            nonlocal before
            now = _MATCHED * done // total
            self._work.add(now - before)
            before = now

        match = match_template(
            tomogram,
            self._particle,
            voxel_size=voxel_size,
            tilt_angles=self._angles,
            ctf=optics,
            phase_flipped=self._simulator.ctf_correction is not None,
            rotations=self._how.rotations,
            low_pass=self._how.low_pass,
            threads=self._simulator.threads,
            progress=tell,
        )
        return match.peaks(count, distance=radius, margin=radius).positions
