"""What `faket-aug fit` does: clean tilts of specimens, the fit, its file and its picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
from faket_aug.cli._figures import save_figure, tilt_panel
from faket_aug.cli._options import Options
from faket_aug.cli._source import Source, make_source
from faket_aug.ctf import ContrastTransfer
from faket_aug.formats._atomic import write_text
from faket_aug.geometry import nearest_tilts
from faket_aug.noise import NoiseModel
from faket_aug.procedural import procedural_specimen
from faket_aug.projection import project
from faket_aug.specimen import GrandModel
from faket_aug.spectra import RINGS, series_spectra
from faket_aug.tiltseries import TiltSeries

#: (z, y, x) of the built-in specimens, voxels.
BUILT_IN_SHAPE = (64, 256, 256)
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
        Specimens that are projected.
    defocus
        µm, as text: one number, or the lowest and the highest; nothing where it is to be found.
    optics
        Settings of the contrast transfer function that go before those of the files.
    """

    output: Path
    options: Options
    built_in: bool
    count: int
    defocus: str | None
    optics: Mapping[str, float]


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
    check_count("count", work.count)
    if not work.options.style:
        raise ValueError("expected tilt-series of the microscope, got none; set --style")
    series = [_read(path) for path in work.options.style]
    pixel_size = _pixel_size(series)
    options = work.options
    if not options.specimens and options.voxel_size is None:
        options = replace(options, voxel_size=pixel_size)
    source = _built_in(options, pixel_size) if work.built_in else make_source(options)
    # A slab of ice goes on beyond what is generated; specimens of files end where they end.
    extend = options.extend or ("zero" if options.specimens else "wrap")
    clean = []
    for index in range(work.count):
        specimen = source.make(index)
        if abs(specimen.voxel_size / pixel_size - 1) > _TOLERANCE:
            raise ValueError(
                f"{specimen.name}: expected voxels of {pixel_size:g} Å, as the tilts' pixels, got "
                f"{specimen.voxel_size:g} Å; set --voxel-size"
            )
        clean.append(-project(specimen.density.to(torch.float32), series[0].tilt_angles, extend=extend))
        progress(index + 1, work.count)
    model = NoiseModel.fit_unpaired(
        [one.tilts for one in series],
        clean,
        [one.tilt_angles for one in series],
        [series[0].tilt_angles] * len(clean),
        pixel_size=pixel_size,
        ctf=_optics(work, series),
    )
    picture = work.output.with_suffix(".png")
    work.output.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "tilt_series": [one.name for one in series],
        "aligned": [one.metadata is not None for one in series],
        "options": options.to_json(),
        "specimens": work.count,
        "faket_aug": version("faket_aug"),
    }
    write_text(work.output, json.dumps(json.loads(model.to_json()) | {"about": about}, indent=1))
    noise = torch.randn(clean[0].shape, generator=torch_generator(torch_seed(options.seed, "noise")))
    made = replace(
        series[0], tilts=model.sample(clean[0], noise, series[0].tilt_angles), name="simulated", metadata=None
    )
    save_figure(draw_fit(model, series[0], made), picture)
    return _report(model, series[0], made, work.output, picture)


def _built_in(options: Options, pixel_size: float) -> Source:
    def make(index: int) -> GrandModel:
        shape = options.shape or BUILT_IN_SHAPE
        return procedural_specimen(shape=shape, voxel_size=pixel_size, seed=options.seed, index=index)

    return Source(make=make, count=None, class_names=None, settings={})


def _read(path: str) -> TiltSeries:
    """Read a series, aligned where the files beside it say how."""
    series = TiltSeries.read(path)
    known = series.metadata is not None and series.metadata.axis_angle is not None
    return series.aligned() if known else replace(series, metadata=None)


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


def _optics(work: FitWork, series: list[TiltSeries]) -> ContrastTransfer | None:
    """The microscope, as far as options or files tell it."""
    optics: dict[str, Any] = dict(work.optics)
    if work.defocus is not None:
        numbers = _numbers(work.defocus)
        return ContrastTransfer(defocus=float(np.mean(numbers)), spread=float(np.ptp(numbers)) / 2, **optics)
    known = [one.metadata for one in series if one.metadata is not None and one.metadata.defocus_um is not None]
    if len(known) == len(series):
        each = [ContrastTransfer.from_metadata(metadata, **optics) for metadata in known]
        return replace(each[0], defocus=float(np.mean([np.mean(one.defocus) for one in each])), astigmatism=0.0)
    return ContrastTransfer(defocus=5.1, spread=4.9, **optics) if optics else None


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ValueError(f"expected --defocus to be one number, or two with a comma between, in µm, got {text!r}")
    return numbers


def _report(model: NoiseModel, measured: TiltSeries, made: TiltSeries, output: Path, picture: Path) -> list[str]:
    response = model.response
    assert response is not None, "it was fitted"
    errors = [f"± {error:.2f} µm" if error > 0 else "µm (given)" for error in response.defocus_error]
    lines = [f"series {i}: defocus {d:.2f} {e}" for i, (d, e) in enumerate(zip(response.defocus, errors, strict=True))]
    own, theirs = (_mean_power(one) for one in (made, measured))
    inner = (RINGS > 0) & (RINGS < 0.5)
    difference = float(np.median(np.abs(own / theirs - 1)[inner]))
    return [
        *lines,
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
