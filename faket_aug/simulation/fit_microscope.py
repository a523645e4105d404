"""Fit a microscope to its unlabelled tilt-series: transfer function, noise, and the step of the style transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_choice, check_count, check_positive, check_same_size
from faket_aug._random import torch_generator, torch_seed
from faket_aug._runtime.numerics import own_precision
from faket_aug.geometry import joint_angles, nearest_tilts
from faket_aug.microscope.crowd import mean_matter
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.file import MicroscopeFile, write_microscope
from faket_aug.microscope.ice_map import ThicknessMap
from faket_aug.microscope.noise import NoiseModel
from faket_aug.microscope.spectra import RINGS, series_spectra
from faket_aug.simulation.step_size import StepChoice, choose_step_by_series
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.procedural import MAX_VOXEL_SIZE, procedural_specimen
from faket_aug.style.encoder import StyleEncoder
from faket_aug.tilts.alignment import align_by_neighbours
from faket_aug.tilts.optics import common_pixel_size, known_optics
from faket_aug.tilts.series import TiltSeries
from faket_aug.tomography.interpolation import without_interpolation
from faket_aug.tomography.projection import project

#: (z, y, x) of the built-in specimens, voxels.
BUILT_IN_SHAPE = (64, 256, 256)
#: How many specimens are generated.
COUNT = 2
#: What is so many times as dense as matter without gaps is gold.
_HEAVY = 1.5
#: What `torch.quantile` takes at most.
_MOST_NUMBERS = 2**24
#: What becomes of matter that specimens do not explain.
CROWDS = ("field", "occupancy")
#: Settings of `ContrastTransfer`, beside the defocus, that may be known before the fit.
KNOWN_OPTICS = ("voltage", "spherical_aberration", "amplitude_contrast", "phase_shift", "b_factor", "radial_gain")
#: How often the number of particles is changed until the specimens explain what was measured, and how exactly.
_ROUNDS, _EXPLAINED = 4, 0.05
#: Å, pixels that the built-in specimens serve for: finer ones would show that they have no detail.
BUILT_IN_SIZES = (4.0, MAX_VOXEL_SIZE)


class EndlessSpecimens(Protocol):
    """What makes specimens, as a `GrandModelGenerator`."""

    def generate(self, *, seed: int, epoch: int = 0, tomogram: int = 0) -> GrandModel:
        """Make the specimen of an address."""
        ...


Specimens = Sequence[GrandModel] | EndlessSpecimens


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedMicroscope:
    """What was found of a microscope, and from what.

    Parameters
    ----------
    noise
        The fitted noise, with a response.
    series
        The measured tilt-series, aligned where that was possible.
    optics
        The microscope of each series, as far as it was known before the fit.
    specimen
        The first of the specimens whose projections were compared.
    clean
        `(tilt, y, x)`, its negated projections.
    clean_angles
        `(tilt,)`, degrees, of these.
    extend
        How specimens went on beyond their sides, see `project`.
    seed
        Of all chance.
    about
        What it was made from, as JSON types.
    step
        The chosen step of the style transfer; None where none was chosen.
    """

    noise: NoiseModel
    series: tuple[TiltSeries, ...]
    optics: tuple[ContrastTransfer, ...]
    specimen: GrandModel
    clean: Tensor
    clean_angles: FloatArray
    extend: str
    seed: int
    about: Mapping[str, Any]
    step: StepChoice | None = None

    def with_step(
        self,
        features: StyleEncoder,
        *,
        bank: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> FittedMicroscope:
        """Choose the step of the style transfer by tilts that are held out.

        Parameters
        ----------
        features
            The encoder.
        bank
            Settings of `StyleBank.build`.
        search
            Settings of `choose_step_size`: `steps` and `tilts`.
        **settings
            More settings of `FakETSimulator`.

        Returns
        -------
        The same microscope with `step`.
        """
        first = self.series[0]
        own = {"tilt_angles": first.tilt_angles, "noise": self.noise, "extend": self.extend}
        choice = choose_step_by_series(
            self.series,
            [self.specimen],
            features,
            bank=bank,
            search={"seed": self.seed} | dict(search or {}),
            **(own | settings),
        )
        return replace(self, step=choice)

    @property
    def microscope(self) -> MicroscopeFile:
        """What its file holds."""
        chosen: dict[str, Any] = {}
        about = dict(self.about)
        if self.step is not None:
            chosen = {"step_size": self.step.step_size, "keep_spectrum": self.step.keep_spectrum}
            about["step"] = self.step.report()
        angles = tuple(self.series[0].tilt_angles.tolist())
        return MicroscopeFile(noise=self.noise, tilt_angles=angles, style=chosen, extend=self.extend, about=about)

    def save(self, path: str | Path) -> None:
        """Write the file that `FakETSimulator.from_file` and `faket-aug simulate --microscope` take.

        Parameters
        ----------
        path
            Of the JSON file. What was there stays until the new one is whole.
        """
        write_microscope(path, self.microscope)

    @cached_property
    @own_precision()
    def simulated(self) -> TiltSeries:
        """Tilts of the first specimen at the angles of the first series, as the fitted microscope sees them."""
        first = self.series[0]
        own = self._crowded_clean[torch.from_numpy(nearest_tilts(first.tilt_angles, self.clean_angles))]
        noise = torch.randn(own.shape, generator=torch_generator(torch_seed(self.seed, "noise")))
        tilts = self.noise.sample(own, noise, first.tilt_angles)
        return replace(first, tilts=tilts, name="simulated", metadata=None, measured=None)

    @cached_property
    def _crowded_clean(self) -> Tensor:
        """The clean tilts of the first specimen in its crowd, `(tilt, y, x)`."""
        if self.noise.crowd is None:
            return self.clean
        generator = torch_generator(torch_seed(self.seed, "crowd"))
        density = self.noise.crowd.around(self.specimen.density, self.specimen.voxel_size, generator)
        return -_clean(density, self.clean_angles, self.extend, self.noise.interpolated)

    @property
    def power_difference(self) -> float:
        """By how much the power of simulated tilts differs from that of measured ones: the median over frequencies."""
        own, theirs = (mean_power(one) for one in (self.simulated, self.series[0]))
        inner = (RINGS > 0) & (RINGS < 0.5)
        return float(np.median(np.abs(own / theirs - 1)[inner]))

    def report(self) -> list[str]:
        """Say in lines what was found: defocus of each series, the step, and how good the fit is."""
        response = self.noise.response
        assert response is not None, "it was fitted"
        lines = []
        for i, (defocus, error) in enumerate(zip(response.defocus, response.defocus_error, strict=True)):
            known = self.optics[i].spread == 0
            lines.append(f"series {i}: defocus {defocus:.2f} {'µm (given)' if known else f'± {error:.2f} µm'}")
        return [
            *lines,
            *([] if self.step is None else self.step.report()),
            f"gain within {response.gain_error:.1%} (standard error, median over frequencies and tilts)",
            f"power of simulated over measured tilts: off by {self.power_difference:.1%} (median over frequencies)",
            *([] if self.noise.contrast is None else self.noise.contrast.lines()),
            *(self._ice_line(index, one) for index, one in enumerate(self.noise.ice)),
        ]

    def _ice_line(self, index: int, ice: ThicknessMap) -> str:
        """Say how thick the ice of a map is over the image of the first series."""
        size = [n * self.series[0].pixel_size for n in self.series[0].tilts.shape[1:]]
        depth = ice.within(size)
        # Intensities of some series do not tell the ice: then maps are fewer than series.
        name = f"series {index}: ice" if len(self.noise.ice) == len(self.series) else f"ice map {index}:"
        return f"{name} t/Λ {depth.mean():.2f}, between {depth.min():.2g} and {depth.max():.2g} over the image"


@own_precision()
def fit_microscope(
    series: TiltSeries | Sequence[TiltSeries],
    specimens: Specimens | None = None,
    *,
    count: int | None = None,
    defocus: float | tuple[float, float] | None = None,
    optics: Mapping[str, Any] | None = None,
    ctf: ContrastTransfer | Sequence[ContrastTransfer] | None = None,
    noise_order: int | None = None,
    scale: str | None = None,
    exposure: float | None = None,
    crowd: str = "field",
    thickness: float | None = None,
    tilt_axis: float | None = None,
    interpolated: bool = False,
    extend: str | None = None,
    shape: Sequence[int] = BUILT_IN_SHAPE,
    features: StyleEncoder | None = None,
    bank: Mapping[str, Any] | None = None,
    seed: int = 0,
    origin: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FittedMicroscope:
    """Fit transfer function and noise of a microscope to its unlabelled tilt-series.

    Measured tilts are compared with clean projections of specimens of the same kind; no truth is needed. A series that
    is not aligned is aligned by its metadata, or by its neighbours where `tilt_axis` is given. With `features` the step
    of the style transfer is chosen, too. Not part of the published method.

    Parameters
    ----------
    series
        Unlabelled tilt-series of one microscope, with one pixel size.
    specimens
        Specimens with voxels as large as the tilts' pixels: a sequence, or a `GrandModelGenerator`. By default the
        package's own, see `procedural_specimen`.
    count
        How many specimens are projected; by default all of a sequence, or 2 that are generated.
    defocus
        µm, of all series: a number that is known, or (lowest, highest) to be searched. By default what each series'
        files say, or else 0.2 to 10 µm.
    optics
        Settings of `ContrastTransfer` that go before those of the files: `voltage`, `spherical_aberration`,
        `amplitude_contrast`, `phase_shift`, `b_factor`, `radial_gain`.
    ctf
        In place of `defocus`, `optics` and what files say: the microscope, or one for each series, see
        `NoiseModel.fit_unpaired`.
    noise_order
        Order of the noise's polynomials over the tilt angle; by default that of `NoiseModel.fit_unpaired`.
    scale
        Where the scale of the contrast comes from: `"intensity"`, `"exposure"` or `"power"`, see
        `NoiseModel.fit_unpaired`. By default the first one that is known.
    exposure
        e⁻/Å² of every tilt; by default what files say.
    crowd
        What becomes of matter that was measured, and that the specimens do not explain. `"field"`: it is a random
        density, which simulations add. `"occupancy"`: more particles (or fewer) are generated until they explain it;
        for a `GrandModelGenerator` only. How many is in the report.
    thickness
        Å, how deep the matter of the measured specimens is, for the crowd, where it is deeper than the specimens. By
        default what neighbouring tilts show.
    tilt_axis
        Degrees from the image's +y to the tilt axis, positive towards −x.
    interpolated
        Whether the measured tilts are projections by interpolation themselves, as those of simulated benchmarks are.
        Real tilts are not.
    extend
        What lies beside a specimen, see `project`. By default specimens that are generated are repeated (`"wrap"`), as
        ice goes on; those of a sequence end where they end (`"zero"`).
    shape
        `(z, y, x)`, voxels of the package's own specimens.
    features
        The encoder; with it, the step of the style transfer is chosen, see `choose_step_size`.
    bank
        Settings of `StyleBank.build` for that choice.
    seed
        Of all chance.
    origin
        What the specimens were made from, as JSON types; kept in the file.
    progress
        Is told how many of the specimens are projected.

    Returns
    -------
    The fitted microscope; `save` writes its file.

    Raises
    ------
    ValueError
        If pixel sizes, voxel sizes or microscopes differ, a pixel size is not known, or the series are not aligned.

    Examples
    --------
    >>> fitted = fit_microscope(TiltSeries.read("tilts.mrc"), specimens, defocus=(2.0, 5.0))
    >>> fitted.save("microscope.json")
    >>> simulator = FakETSimulator.from_file("microscope.json")
    """
    if count is not None:
        check_count("count", count)
    given = [series] if isinstance(series, TiltSeries) else list(series)
    if not given:
        raise ValueError("expected at least one tilt-series of the microscope, got none")
    measured = tuple(as_aligned(one, tilt_axis) for one in given)
    pixel_size = common_pixel_size(measured)
    built_in = specimens is None
    if specimens is None:
        _check_built_in(measured[0].name, pixel_size)
        specimens = _BuiltIn(shape=shape, voxel_size=pixel_size)
    extend = extend or ("zero" if isinstance(specimens, Sequence) else "wrap")
    known = known_optics(measured, defocus, optics or {}) if ctf is None else _one_each(ctf, len(measured))
    angles = joint_angles(*(one.tilt_angles for one in measured))
    tell = progress or (lambda done, total: None)
    check_choice("crowd", crowd, CROWDS)
    for name, value in (("thickness", thickness), ("exposure", exposure)):
        if value is not None:
            check_positive(name, value)
    if crowd == "occupancy" and not hasattr(specimens, "scaled"):
        raise ValueError(
            'expected specimens of a `GrandModelGenerator` for `crowd` "occupancy", which makes more of their '
            f'particles, got {"the built-in ones" if built_in else type(specimens).__name__}; set `crowd` to "field"'
        )
    order = {} if noise_order is None else {"order": noise_order, "power_order": noise_order}
    factor, noise = 1.0, None
    for _ in range(_ROUNDS if crowd == "occupancy" else 1):
        own: Any = specimens if factor == 1 else specimens.scaled(factor)  # type: ignore[union-attr]
        shown = _projected(own, count, pixel_size, angles, extend, interpolated, seed, tell)
        noise = NoiseModel.fit_unpaired(
            target=[one.tilts for one in measured],
            clean=shown.clean,
            tilt_angles=[one.tilt_angles for one in measured],
            clean_angles=[angles] * len(shown.clean),
            pixel_size=pixel_size,
            ctf=known,
            measured=[one.measured for one in measured],
            scale=scale,
            exposure=[_exposures(one) if exposure is None else exposure for one in measured],
            depth=shown.first.density.shape[0],
            thickness=None if thickness is None else thickness / pixel_size,
            solid=_solid(shown.first),
            interpolated=interpolated,
            extend=extend,
            beads=shown.beads,
            **order,
        )
        explained = None if noise.contrast is None else noise.contrast.explained
        if explained is None or abs(explained - 1) < _EXPLAINED:
            break
        factor /= explained
    assert noise is not None, "there is one round at least"
    if noise.crowd is not None:
        noise = replace(noise, crowd=replace(noise.crowd, beside=shown.matter))
    about = {
        "tilt_series": [one.name for one in measured],
        "aligned": [one.metadata is not None and one.metadata.is_alignment for one in measured],
        "tilt_axis": tilt_axis,
        "built_in": built_in,
        **({} if origin is None else {"options": dict(origin)}),
        "defocus_given": [one.spread == 0 for one in known],
        "specimens": shown.count,
        **({"occupancy_factor": factor} if crowd == "occupancy" else {}),
        **({"interpolated": True} if interpolated else {}),
        "faket_aug": version("faket_aug"),
    }
    fitted = FittedMicroscope(
        noise=noise,
        series=measured,
        optics=tuple(known),
        specimen=shown.first,
        clean=shown.clean[0],
        clean_angles=angles,
        extend=extend,
        seed=seed,
        about=about,
    )
    return fitted if features is None else fitted.with_step(features, bank=bank)


@dataclass(frozen=True, kw_only=True)
class _BuiltIn:
    """The package's own specimens."""

    shape: Sequence[int]
    voxel_size: float

    def generate(self, *, seed: int, epoch: int = 0, tomogram: int = 0) -> GrandModel:
        return procedural_specimen(shape=self.shape, voxel_size=self.voxel_size, seed=seed, index=tomogram)


def _check_built_in(name: str, pixel_size: float) -> None:
    low, high = BUILT_IN_SIZES
    if not low <= pixel_size <= high:
        raise ValueError(
            f"{name}: expected pixels of {low:g} to {high:g} Å for the built-in specimens, got {pixel_size:g} Å; bin "
            "the tilts, or give specimens of your own"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Projected:
    """The first specimen; clean tilts of each, and those of their beads alone; their mean potential, V, and number."""

    first: GrandModel
    clean: list[Tensor]
    beads: list[Tensor | None]
    matter: float
    count: int


def _projected(
    specimens: Specimens,
    count: int | None,
    pixel_size: float,
    angles: FloatArray,
    extend: str,
    interpolated: bool,
    seed: int,
    progress: Callable[[int, int], None],
) -> _Projected:
    """Project specimens one after the other; only the first one is kept.

    A tilt-series shows most of what lies along its axis. A square specimen is projected a second time with its sides
    exchanged, as another one of its kind.
    """
    of = len(specimens) if isinstance(specimens, Sequence) else None
    total = min(count or of or COUNT, of or 10**9)
    first: GrandModel | None = None
    solid = 0.0
    clean: list[Tensor] = []
    beads: list[Tensor | None] = []
    matter = []
    for index in range(total):
        specimen = (
            specimens[index] if isinstance(specimens, Sequence) else specimens.generate(seed=seed, tomogram=index)
        )
        advice = "set the specimens' voxel size"
        check_same_size(specimen.name, specimen.voxel_size, "the tilts' pixels", pixel_size, advice=advice)
        if first is None:
            first, solid = specimen, _solid(specimen)
        density = specimen.density.to(torch.float32)
        turned = density.shape[1] == density.shape[2]
        for one in (density, density.transpose(1, 2).contiguous())[: 1 + turned]:
            heavy = torch.where(one > _HEAVY * solid, one, 0.0)
            clean.append(-_clean(one, angles, extend, interpolated))
            beads.append(-_clean(heavy, angles, extend, interpolated) if solid and bool(heavy.any()) else None)
        matter.append(mean_matter(specimen.density, solid))
        progress(index + 1, total)
    assert first is not None, "there is one at least"
    return _Projected(first=first, clean=clean, beads=beads, matter=float(np.mean(matter)), count=total)


def _clean(density: Tensor, angles: FloatArray, extend: str, interpolated: bool) -> Tensor:
    """Project a density; without what interpolation takes, unless measured tilts are interpolated, too."""
    projected = project(density, angles, extend=extend)
    return projected if interpolated else without_interpolation(projected, angles, depth=density.shape[0])


def as_aligned(series: TiltSeries, tilt_axis: float | None) -> TiltSeries:
    """Align a series as the files beside it say, or else by its neighbours if the axis is known."""
    if series.metadata is not None and series.metadata.is_alignment:
        return series.aligned()
    if tilt_axis is None:
        return series
    return replace(series, metadata=align_by_neighbours(series, axis_angle=tilt_axis)).aligned()


def _exposures(series: TiltSeries) -> FloatArray | None:
    """The exposure of each tilt, e⁻/Å², from the exposures before the tilts; None if they are not known."""
    if series.metadata is None or series.metadata.exposure is None:
        return None
    before = np.asarray(series.metadata.exposure, dtype=np.float64)
    order = np.sort(before)
    steps = np.diff(order)
    steps = steps[steps > 0]
    # Every tilt of a series has the same exposure, as a rule; the last one has no successor that would tell.
    return np.full(len(before), float(np.median(steps))) if len(steps) else None


def _solid(specimen: GrandModel) -> float:
    """The potential of matter without gaps, V: of the densest tenth of the voxels of labelled particles."""
    labelled = specimen.labels > 0
    for axis in range(3 if specimen.bin > 1 else 0):
        # A coarse voxel lies about its first fine one, see `bin_spline`.
        labelled = labelled.repeat_interleave(specimen.bin, dim=axis).roll(-(specimen.bin // 2), dims=axis)
    inside = specimen.density[labelled].to(torch.float32)
    # `quantile` takes no more numbers than `_MOST_NUMBERS`.
    some = inside[:: 1 + len(inside) // _MOST_NUMBERS]
    return max(float(some.quantile(0.9)), 0.0) if len(some) else 0.0


def _one_each(ctf: ContrastTransfer | Sequence[ContrastTransfer], count: int) -> list[ContrastTransfer]:
    return [ctf] * count if isinstance(ctf, ContrastTransfer) else list(ctf)


def mean_power(series: TiltSeries) -> FloatArray:
    """Compute the radial power of a series, `(ring,)`, the mean over its tilts."""
    spectra = series_spectra(series.tilts, series.tilt_angles, name=series.name, measured=series.measured)
    power: FloatArray = spectra.power.mean(axis=0)
    return power
