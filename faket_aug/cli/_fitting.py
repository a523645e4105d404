"""What `faket-aug fit` does: clean tilts of specimens, the fit, its file and its picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from faket_aug._checks import check_count
from faket_aug._random import torch_generator, torch_seed
from faket_aug.cli._options import Options
from faket_aug.cli._source import Source, make_source
from faket_aug.figures import save_figure, tilt_panel
from faket_aug.formats._atomic import make_writable_folder
from faket_aug.geometry import joint_angles, nearest_tilts
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.file import MicroscopeFile, write_microscope
from faket_aug.microscope.noise import NoiseModel
from faket_aug.microscope.spectra import RINGS, series_spectra
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.simulation.step_size import StepChoice, choose_step_size, split_series
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.procedural import MAX_VOXEL_SIZE, procedural_specimen
from faket_aug.style.bank import StyleBank
from faket_aug.style.vgg19 import VGG19Features
from faket_aug.tilts.alignment import align_by_neighbours
from faket_aug.tilts.series import TiltSeries
from faket_aug.tomography.projection import project

#: (z, y, x) of the built-in specimens, voxels.
BUILT_IN_SHAPE = (64, 256, 256)
#: Specimens that are generated, and the ending of the picture.
COUNT, PICTURE = 2, ".png"
#: Å, pixels that they serve for: finer ones would show that they have no detail.
BUILT_IN_SIZES = (4.0, MAX_VOXEL_SIZE)
#: µm, how far the microscope's setting may be off.
NOMINAL_SPREAD = 1.5
#: Settings of the contrast transfer function, and what metadata call them.
OPTICS = {
    "voltage": "voltage_kv",
    "spherical_aberration": "spherical_aberration_mm",
    "amplitude_contrast": "amplitude_contrast",
}
#: Voxels and pixels may differ by this share.
_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class FitWork:
    """What is to be fitted.

    Parameters
    ----------
    output
        The file to write.
    options
        The tilt-series (`style`), and the specimens.
    built_in
        Whether the specimens are the package's own instead.
    count
        Specimens that are projected; None for all of given folders, or 2.
    defocus
        µm, as text: one number, or the lowest and the highest; nothing where it is to be found.
    optics
        Settings of the contrast transfer function that go before those of the files.
    step
        Whether the step of the style transfer is to be chosen.
    tilt_axis
        Degrees; series without alignment are aligned by their neighbours about it.
    """

    output: Path
    options: Options
    built_in: bool
    count: int | None
    defocus: str | None
    optics: Mapping[str, float]
    step: bool = False
    tilt_axis: float | None = None


def run(work: FitWork, progress: Callable[[int, int], None]) -> list[str]:
    """Fit, write the file and its picture.

    Parameters
    ----------
    work
        What is to be done.
    progress
        Is told how many of the clean tilt-series are there.

    Returns
    -------
    Lines that say what came out.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError
        If files are missing or wrong, or do not go together.
    """
    if work.count is not None:
        check_count("count", work.count)
    if work.output.suffix == PICTURE:
        raise ValueError(f"expected an output that is no picture, got {work.output}; name it microscope.json")
    if not work.options.style:
        raise ValueError("expected tilt-series of the microscope, got none; set --style")
    series = [_read(path, work.tilt_axis) for path in work.options.style]
    pixel_size = _pixel_size(series)
    options = work.options
    if work.built_in and not BUILT_IN_SIZES[0] <= pixel_size <= BUILT_IN_SIZES[1]:
        low, high = BUILT_IN_SIZES
        raise ValueError(
            f"{series[0].name}: expected pixels of {low:g} to {high:g} Å for the built-in specimens, got "
            f"{pixel_size:g} Å; bin the tilts, or give specimens of your own (--specimens, --templates)"
        )
    if not options.specimens and options.voxel_size is None:
        options = replace(options, voxel_size=pixel_size)
    if work.built_in and options.voxel_size != pixel_size:
        raise ValueError("expected no --voxel-size with the built-in specimens, which have the tilts' pixels, got one")
    source = _built_in(options, pixel_size) if work.built_in else make_source(options)
    count = min(work.count or source.count or COUNT, source.count or 10**9)
    features = VGG19Features(options.weights, precision=options.precision) if work.step else None
    make_writable_folder(work.output.parent)
    # A slab of ice goes on beyond what is generated; specimens of files end where they end.
    extend = options.extend or ("zero" if options.specimens else "wrap")
    optics = _optics(work, series)
    angles = joint_angles(*(one.tilt_angles for one in series))
    clean: list[Tensor] = []
    specimens: list[GrandModel] = []
    for index in range(count):
        specimen = source.make(index)
        if abs(specimen.voxel_size / pixel_size - 1) > _TOLERANCE:
            raise ValueError(
                f"{specimen.name}: expected voxels of {pixel_size:g} Å, as the tilts' pixels, got "
                f"{specimen.voxel_size:g} Å; set --voxel-size"
            )
        clean.append(-project(specimen.density.to(torch.float32), angles, extend=extend))
        # One is enough for the choice of a step.
        specimens = specimens or [specimen]
        progress(index + 1, count)
    model = NoiseModel.fit_unpaired(
        target=[one.tilts for one in series],
        clean=clean,
        tilt_angles=[one.tilt_angles for one in series],
        clean_angles=[angles] * len(clean),
        pixel_size=pixel_size,
        ctf=optics,
    )
    picture = work.output.with_suffix(PICTURE)
    about = {
        "tilt_series": [one.name for one in series],
        "aligned": [one.metadata is not None and one.metadata.is_alignment for one in series],
        "tilt_axis": work.tilt_axis,
        "built_in": work.built_in,
        "options": {n: v for n, v in options.to_json().items() if not (work.built_in and n == "fiducials")},
        "defocus_given": [one.spread == 0 for one in optics],
        "specimens": count,
        "faket_aug": version("faket_aug"),
    }
    own_angles = tuple(series[0].tilt_angles.tolist())
    found = MicroscopeFile(noise=model, tilt_angles=own_angles, extend=extend, about=about)
    # The choice of a step may take longer than the fit, which then is there already.
    write_microscope(work.output, found)
    choice = None if features is None else _choose_step(options, features, series, model, specimens, extend)
    if choice is not None:
        style = {"step_size": choice.step_size, "keep_spectrum": choice.keep_spectrum}
        write_microscope(work.output, replace(found, style=style, about=about | {"step": choice.report()}))
    own = clean[0][torch.from_numpy(nearest_tilts(series[0].tilt_angles, angles))]
    noise = torch.randn(own.shape, generator=torch_generator(torch_seed(options.seed, "noise")))
    made = replace(series[0], tilts=model.sample(own, noise, series[0].tilt_angles), name="simulated", metadata=None)
    save_figure(draw_fit(model, series[0], made), picture)
    steps = [] if choice is None else choice.report()
    return [*_defocus_lines(model, optics), *steps, *_report(model, series[0], made, work.output, picture)]


def _choose_step(
    options: Options,
    features: VGG19Features,
    series: list[TiltSeries],
    model: NoiseModel,
    specimens: Sequence[GrandModel],
    extend: str,
) -> StepChoice:
    style, held_out = split_series(series)
    settings: dict[str, Any] = {} if options.style_layers is None else {"style_layers": options.style_layers}
    bank = StyleBank.build(style, features, quantiles=options.quantiles or (0.0, 1.0), **settings)
    simulator = FakETSimulator(
        tilt_angles=series[0].tilt_angles, noise=model, style=bank, features=features, extend=extend
    )
    return choose_step_size(simulator, specimens, held_out, seed=options.seed)


def _built_in(options: Options, pixel_size: float) -> Source:
    def make(index: int) -> GrandModel:
        shape = options.shape or BUILT_IN_SHAPE
        return procedural_specimen(shape=shape, voxel_size=pixel_size, seed=options.seed, index=index)

    return Source(make=make, count=None, class_names=None, settings={})


def _read(path: str, tilt_axis: float | None) -> TiltSeries:
    """Read a series, aligned where the files beside it say how, or else by its neighbours if the axis is known."""
    series = TiltSeries.read(path)
    if series.metadata is not None and series.metadata.is_alignment:
        return series.aligned()
    if tilt_axis is None:
        return series
    return replace(series, metadata=align_by_neighbours(series, axis_angle=tilt_axis)).aligned()


def _pixel_size(series: list[TiltSeries]) -> float:
    for one in series:
        if not one.pixel_size > 0:
            raise ValueError(f"{one.name}: expected a pixel size in its header, got 0; write it there")
        if abs(one.pixel_size / series[0].pixel_size - 1) > _TOLERANCE:
            raise ValueError(
                f"{one.name}: expected pixels of {series[0].pixel_size:g} Å, as of {series[0].name}, got "
                f"{one.pixel_size:g} Å; bin them alike"
            )
    return series[0].pixel_size


def _optics(work: FitWork, series: list[TiltSeries]) -> list[ContrastTransfer]:
    """The microscope of each series, as far as options or files tell it."""
    optics = _settings(series, without=work.optics) | dict(work.optics)
    if work.defocus is not None:
        numbers = _numbers(work.defocus)
        return [ContrastTransfer.within(min(numbers), max(numbers), **optics)] * len(series)
    return [_searched(one, optics) for one in series]


def _settings(series: list[TiltSeries], *, without: Iterable[str]) -> dict[str, Any]:
    """Voltage, aberration and amplitude contrast of the files, as far as they know them."""
    found: dict[str, Any] = {}
    for own, theirs in OPTICS.items():
        if own in without:
            continue
        values = {getattr(one.metadata, theirs): one.name for one in series if one.metadata is not None}
        values.pop(None, None)
        if len(values) > 1:
            names = ", ".join(f"{value:g} ({name})" for value, name in values.items())
            raise ValueError(
                f"expected series of one microscope, got `{own}` of {names}; fit each apart, or set "
                f"--{own.replace('_', '-')}"
            )
        found.update((own, value) for value in values)
    return found


def _searched(series: TiltSeries, optics: dict[str, Any]) -> ContrastTransfer:
    """A series' defocus: fitted tilt by tilt by another program, or meant by the microscope, or not known."""
    metadata = series.metadata
    if metadata is None or metadata.defocus_um is None or not np.isfinite(metadata.defocus_um).any():
        return ContrastTransfer.within(**optics)
    values = metadata.defocus_um[np.isfinite(metadata.defocus_um)]
    # The same number for all tilts is what the microscope was set to.
    spread = NOMINAL_SPREAD if np.ptp(values) == 0 else 0.0
    return ContrastTransfer(defocus=float(np.mean(values)), spread=spread, **optics)


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ValueError(f"expected --defocus to be one number, or two with a comma between, in µm, got {text!r}")
    return numbers


def _defocus_lines(model: NoiseModel, optics: list[ContrastTransfer]) -> list[str]:
    assert model.response is not None, "it was fitted"
    found = zip(model.response.defocus, model.response.defocus_error, optics, strict=True)
    errors = [(f"{d:.2f}", "µm (given)" if ctf.spread == 0 else f"± {e:.2f} µm") for d, e, ctf in found]
    return [f"series {i}: defocus {defocus} {error}" for i, (defocus, error) in enumerate(errors)]


def _report(model: NoiseModel, measured: TiltSeries, made: TiltSeries, output: Path, picture: Path) -> list[str]:
    response = model.response
    assert response is not None, "it was fitted"
    own, theirs = (_mean_power(one) for one in (made, measured))
    inner = (RINGS > 0) & (RINGS < 0.5)
    difference = float(np.median(np.abs(own / theirs - 1)[inner]))
    return [
        f"gain within {response.gain_error:.1%} (standard error, median over frequencies and tilts)",
        f"power of simulated over measured tilts: off by {difference:.1%} (median over frequencies)",
        f"written to {output}; look at {picture}",
    ]


def _mean_power(series: TiltSeries) -> Any:
    return series_spectra(series.tilts, series.tilt_angles, name=series.name).power.mean(axis=0)


def draw_fit(model: NoiseModel, measured: TiltSeries, made: TiltSeries) -> Figure:
    """Draw measured and simulated tilts at three angles, their spectra and histograms, and the fitted curves.

    Parameters
    ----------
    model
        The fitted one.
    measured, made
        Tilts of the microscope and simulated ones.
    """
    figure = Figure(figsize=(13, 11), layout="constrained")
    parts: npt.NDArray[Any] = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.0, 1.1])
    top, bottom = parts[:, 0]
    axes: npt.NDArray[Any] = top.subplots(2, 3)
    low, high = float(measured.tilt_angles[0]), float(measured.tilt_angles[-1])
    for column, angle in enumerate((low, 0.0, high)):
        for row, (series, name) in enumerate(((measured, "measured"), (made, "simulated"))):
            place = int(nearest_tilts([angle], series.tilt_angles)[0])
            title = f"{name}, {round(float(series.tilt_angles[place]))}°"
            tilt_panel(axes[row, column], _middle(series.tilts[place]), title=title, pixel_size=series.pixel_size)
    curves: npt.NDArray[Any] = bottom.subplots(1, 4)
    spectra, histogram, gains, noise = curves
    _draw_spectra(spectra, measured, made)
    _draw_histogram(histogram, measured, made)
    assert model.response is not None, "it was fitted"
    angles = np.array([0.0, 30.0, 60.0]).clip(low, high)
    for angle, gain, power in zip(angles, model.response.gain(angles), model.response.noise_power(angles), strict=True):
        gains.plot(RINGS, gain, label=f"{angle:.0f}°")
        noise.semilogy(RINGS[1:], power[1:], label=f"{angle:.0f}°")
    gains.axhline(0, color="0.7", linewidth=0.8)
    gains.set_title(f"gain, defocus {np.mean(model.response.defocus):.2f} µm", fontsize=10)
    noise.set_title("noise power", fontsize=10)
    for one in (gains, noise):
        one.legend(fontsize=8, frameon=False)
        one.set_xlabel("cycles per pixel", fontsize=9)
        one.set_xlim(0, 0.5)
    return figure


def _middle(image: Tensor) -> Tensor:
    """The middle of a large image, where single pixels can be seen."""
    height, width = (min(side, 384) for side in image.shape)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _draw_spectra(axes: Axes, measured: TiltSeries, made: TiltSeries) -> None:
    for series, name in ((measured, "measured"), (made, "simulated")):
        axes.semilogy(RINGS[1:], _mean_power(series)[1:], label=name)
    axes.set_title("mean power", fontsize=10)
    axes.set_xlabel("cycles per pixel", fontsize=9)
    axes.set_xlim(0, 0.5)
    axes.legend(fontsize=8, frameon=False)


def _draw_histogram(axes: Axes, measured: TiltSeries, made: TiltSeries) -> None:
    middle = measured.tilts[len(measured.tilts) // 2].double()
    low, high = (float(middle.quantile(q)) for q in (0.0005, 0.9995))
    edges = np.linspace(low, high, 80).tolist()
    for series, name in ((measured, "measured"), (made, "simulated")):
        values = series.tilts[len(series.tilts) // 2].flatten().numpy()
        axes.hist(values, bins=edges, density=True, histtype="step", label=name)
    axes.set_title("values at the middle tilt", fontsize=10)
    axes.set_yticks([])
    axes.legend(fontsize=8, frameon=False)
