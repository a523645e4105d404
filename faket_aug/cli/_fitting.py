"""What `faket-aug fit` does: it calls `fit_microscope`, and draws and writes what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from faket_aug._checks import check_count
from faket_aug.cli._options import Options
from faket_aug.cli._series_checks import check_series, read_series
from faket_aug.cli._source import make_source
from faket_aug.figures import save_figure, tilt_panel
from faket_aug.formats._atomic import make_writable_folder
from faket_aug.geometry import nearest_tilts
from faket_aug.microscope.spectra import RINGS
from faket_aug.simulation.fit_microscope import FittedMicroscope, fit_microscope, mean_power
from faket_aug.simulation.plain_settings import TRANSFER
from faket_aug.style.vgg19 import VGG19Features
from faket_aug.tilts.optics import common_pixel_size
from faket_aug.tilts.series import TiltSeries

#: Pixels. Of tilts, so many are shown along each side at most.
_SHOWN = 384

#: The ending of the picture.
PICTURE = ".png"


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
    fitting
        Settings of `fit_microscope`.
    search
        Settings of `choose_step_size`.
    step
        Whether the step of the style transfer is to be chosen.
    aligned
        Whether the tilts are aligned already.
    """

    output: Path
    options: Options
    built_in: bool
    fitting: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    step: bool = False
    aligned: bool = False


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
    options = work.options
    if "count" in work.fitting:
        check_count("count", work.fitting["count"])
    if work.output.suffix == PICTURE:
        raise ValueError(f"expected an output that is no picture, got {work.output}; name it microscope.json")
    if not options["style"]:
        raise ValueError("expected tilt-series of the microscope, got none; set --style")
    check_series(options["style"], aligned=work.aligned, tilt_axis=work.fitting.get("tilt_axis"))
    series = [read_series(path, aligned=work.aligned) for path in options["style"]]
    options = _sized(options, common_pixel_size(series), built_in=work.built_in)
    specimens = None if work.built_in else make_source(options).specimens
    features = VGG19Features(**options.of("VGG19Features")) if work.step else None
    make_writable_folder(work.output.parent)
    own = {name: options[name] for name in ("extend", "shape") if options[name] is not None}
    given = {n: v for n, v in options.to_json().items() if not (work.built_in and n == "fiducials")}
    fitted = fit_microscope(
        series, specimens, seed=options.seed, origin=given, progress=progress, **(own | dict(work.fitting))
    )
    # The choice of a step may take longer than the fit, which then is there already.
    fitted.save(work.output)
    if features is not None:
        bank = {name: one for name, one in options.of("StyleBank.build").items() if name != "device"}
        fitted = fitted.with_step(features, bank=bank, search=work.search, **_of_transfer(options))
        fitted.save(work.output)
    picture = work.output.with_suffix(PICTURE)
    save_figure(draw_fit(fitted), picture)
    return [*fitted.report(), f"written to {work.output}; look at {picture}"]


def _sized(options: Options, pixel_size: float, *, built_in: bool) -> Options:
    """Give generated specimens the tilts' pixel size, where none is said."""
    if not options["specimens"] and options["voxel_size"] is None:
        options = options.but(voxel_size=pixel_size)
    if built_in and options["voxel_size"] != pixel_size:
        raise ValueError("expected no --voxel-size with the built-in specimens, which have the tilts' pixels, got one")
    return options


def _of_transfer(options: Options) -> dict[str, Any]:
    """Return the settings of the style transfer that are not chosen here."""
    return {name: options[name] for name in TRANSFER if options[name] is not None}


def draw_fit(fitted: FittedMicroscope) -> Figure:
    """Draw measured and simulated tilts at three angles, their spectra and histograms, and the fitted curves.

    Parameters
    ----------
    fitted
        The fitted microscope.
    """
    model, measured, made = fitted.noise, fitted.series[0], fitted.simulated
    figure = Figure(figsize=(13, 11), layout="constrained")
    parts: npt.NDArray[Any] = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.0, 1.1])
    top, bottom = parts[:, 0]
    axes: npt.NDArray[Any] = top.subplots(2, 3)
    low, high = float(measured.tilt_angles[0]), float(measured.tilt_angles[-1])
    # Parts of one size, so that both have the same magnification.
    sides = [min(*pair, _SHOWN) for pair in zip(measured.tilts.shape[1:], made.tilts.shape[1:], strict=True)]
    for column, angle in enumerate((low, 0.0, high)):
        for row, (series, name) in enumerate(((measured, "measured"), (made, "simulated"))):
            place = int(nearest_tilts([angle], series.tilt_angles)[0])
            title = f"{name}, {round(float(series.tilt_angles[place]))}°"
            known = None if series.measured is None else _middle(series.measured[place], sides)
            image = _middle(series.tilts[place], sides)
            tilt_panel(axes[row, column], image, title=title, pixel_size=series.pixel_size, measured=known)
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


def _middle(image: Tensor, sides: Sequence[int]) -> Tensor:
    """The middle of a large image, where single pixels can be seen."""
    height, width = sides
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _draw_spectra(axes: Axes, measured: TiltSeries, made: TiltSeries) -> None:
    for series, name in ((measured, "measured"), (made, "simulated")):
        axes.semilogy(RINGS[1:], mean_power(series)[1:], label=name)
    axes.set_title("mean power", fontsize=10)
    axes.set_xlabel("cycles per pixel", fontsize=9)
    axes.set_xlim(0, 0.5)
    axes.legend(fontsize=8, frameon=False)


def _measured_values(series: TiltSeries) -> Tensor:
    """The measured pixels of the middle tilt."""
    place = len(series.tilts) // 2
    return series.tilts[place].flatten() if series.measured is None else series.tilts[place][series.measured[place]]


def _draw_histogram(axes: Axes, measured: TiltSeries, made: TiltSeries) -> None:
    middle = _measured_values(measured).double()
    low, high = (float(middle.quantile(q)) for q in (0.0005, 0.9995))
    edges = np.linspace(low, high, 80).tolist()
    for series, name in ((measured, "measured"), (made, "simulated")):
        axes.hist(_measured_values(series).numpy(), bins=edges, density=True, histtype="step", label=name)
    axes.set_title("values at the middle tilt", fontsize=10)
    axes.set_yticks([])
    axes.legend(fontsize=8, frameon=False)
