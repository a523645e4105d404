"""What a check of a microscope found: in words, as JSON types, and as a picture."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from faket_aug._arrays import FloatArray
from faket_aug.comparison.appearance import EDGES, GROUPS, KEPT, Appearance
from faket_aug.comparison.check import MicroscopeCheck, ParticleCheck
from faket_aug.comparison.discriminator import LearningCurve
from faket_aug.comparison.profile import RadialProfile
from faket_aug.figures import tilt_panel
from faket_aug.microscope.spectra import RINGS

#: Cycles per pixel, between which power is averaged to be told in words.
BANDS = ((0.02, 0.06), (0.06, 0.15), (0.15, 0.3), (0.3, 0.5))
#: Neighbouring tilts share nothing that can be told from noise beyond the second band.
_SHARED_BANDS = BANDS[:2]
#: Differences of less than this factor are not told.
_SMALL = 1.05
#: A classifier at less than this above its floor does not tell them apart.
_APART = 0.1
_FREQUENCIES: FloatArray = RINGS[KEPT]
_MEASURED, _SIMULATED = "#000000", "#D55E00"


def differences(check: MicroscopeCheck) -> list[tuple[float, str]]:
    """List what differs, the largest first: the factor (more than 1), and a sentence."""
    own, theirs = check.measured, check.simulated
    found = [
        _of_factor(f"power of {group} at {low:g} to {high:g} cycles per pixel", _band(theirs.power[g], low, high), ours)
        for g, group in enumerate(GROUPS)
        for low, high in BANDS
        if (ours := _band(own.power[g], low, high)) > 0
    ]
    found += [
        _of_factor(f"power that neighbouring tilts share at {low:g} to {high:g} cycles per pixel", theirs_, ours)
        for low, high in _SHARED_BANDS
        if (ours := _band(own.shared, low, high)) > 0 and (theirs_ := _band(theirs.shared, low, high)) > 0
    ]
    texture = "coarse texture of the tomogram (after a Gaussian of 1.5 voxels)"
    found.append(_of_factor(texture, theirs.smoothed, own.smoothed))
    overlap = float(np.minimum(own.values, theirs.values).sum())
    found.append(
        (1 / max(overlap, 1e-3), f"values of the tomogram: {100 * (1 - overlap):.0f} % of the histogram do not overlap")
    )
    if check.particle is not None and check.particle.contrast.factor > 0:
        factor = 1 / check.particle.contrast.factor
        found.append(_of_factor(f"contrast of {check.particle.name}", factor, 1.0))
    return sorted((one for one in found if one[0] >= _SMALL), reverse=True)


def report(check: MicroscopeCheck) -> list[str]:
    """Say in lines what was found."""
    lines = [_of_classifier(check.classifier, check.floor)]
    if check.particle is not None:
        lines += _of_particle(check.particle)
    found = differences(check)
    if not found:
        return [*lines, "Power, shared power and values agree within 5 %."]
    lines.append("What differs most (simulated over measured):")
    return [*lines, *(f"- {sentence}" for _, sentence in found[:5])]


def _of_factor(what: str, theirs: float, ours: float) -> tuple[float, str]:
    ratio = theirs / ours
    return max(ratio, 1 / ratio), f"{what}: {ratio:.2f} times the measured"


def _band(values: FloatArray, low: float, high: float) -> float:
    return float(values[(low <= _FREQUENCIES) & (high > _FREQUENCIES)].mean())


def _of_classifier(curve: LearningCurve, floor: LearningCurve | None) -> str:
    areas = ", ".join(f"{area:.2f} after {step} steps" for area, step in zip(curve.mean, curve.steps, strict=True))
    beside, floored = 0.5, ""
    if floor is not None:
        beside = max(0.5, float(floor.mean[-1]))
        floored = f"; of two regions of the measured tomogram it tells them with {floor.mean[-1]:.2f}"
    told = f"from measured ones: area under the curve {areas} (0.5 is chance{floored})."
    if curve.mean[-1] < beside + _APART:
        return f"A small classifier hardly tells simulated patches {told}"
    low, high = looks_at(curve)
    return (
        f"A small classifier tells simulated patches {told} It looks at {low:.2f} to {high:.2f} cycles per voxel most."
    )


def looks_at(curve: LearningCurve) -> tuple[float, float]:
    """Return the frequencies, cycles per voxel, between which the middle half of the gradient's power lies."""
    cumulated = np.concatenate([[0.0], np.cumsum(curve.gradient)])
    edges = np.linspace(0, 0.5, len(cumulated))
    low, high = np.interp([0.25, 0.75], cumulated, edges)
    return float(low), float(high)


def _of_particle(one: ParticleCheck) -> list[str]:
    rest = np.abs(one.measured.mean - one.contrast.factor * one.found.mean).max()
    lines = [
        f"Contrast of {one.name}: measured particles are {one.contrast.factor:.2f} ± {one.contrast.error:.2f} times as "
        f"dark as simulated ones ({one.measured.count} and {one.found.count} hits; {one.contrast_to_true.factor:.2f} ± "
        f"{one.contrast_to_true.error:.2f} with true places). With this factor the profiles agree within {rest:.2f} "
        "standard deviations.",
        f"Of the hits in simulated tomograms {100 * one.precision:.0f} % are {one.name}, and off by "
        f"{one.inaccuracy:.1f} voxels along each axis.",
    ]
    if one.precision < 0.7:
        lines[-1] += " That is too few for a calibration."
    if one.measured.count > one.found.count:
        lines.append(
            f"The simulated tomograms hold no more than {one.found.count}: if the measured one holds fewer than "
            f"{one.measured.count}, set --hits to as many as it holds, since the others are none."
        )
    return lines


# JSON -----------------------------------------------------------------------------------------------------------------


def as_table(check: MicroscopeCheck) -> dict[str, Any]:
    """Return all numbers as JSON types; what is not finite becomes None."""
    particle = check.particle
    table = {
        "pixel_size": check.pixel_size,
        "frequencies": _FREQUENCIES,
        "value_edges": EDGES,
        "measured": asdict(check.measured),
        "simulated": asdict(check.simulated),
        "classifier": _curve(check.classifier),
        "floor": None if check.floor is None else _curve(check.floor),
        "particle": None if particle is None else asdict(particle),
        "differences": [{"factor": factor, "what": words} for factor, words in differences(check)],
        "report": report(check),
    }
    plain: dict[str, Any] = _plain(table)
    return plain


def _curve(curve: LearningCurve) -> dict[str, Any]:
    return asdict(curve) | {"mean": curve.mean, "looks_at": looks_at(curve)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The picture ----------------------------------------------------------------------------------------------------------


def draw_check(check: MicroscopeCheck) -> Figure:
    """Draw sections, power, shared power, values, learning curves, the gradient's spectrum, and the profile."""
    figure = Figure(figsize=(16, 8.5), layout="constrained")
    axes: npt.NDArray[Any] = figure.subplots(2, 4)
    for panel, section, name in zip(axes[:, 0], check.sections, ("measured", "simulated"), strict=True):
        tilt_panel(panel, section, title=f"{name} tomogram, smoothed", pixel_size=check.pixel_size)
    _draw_power(axes[0, 1], check.measured, check.simulated)
    _draw_shared(axes[1, 1], check.measured, check.simulated)
    _draw_values(axes[0, 2], check.measured, check.simulated)
    _draw_profile(axes[1, 2], check.particle)
    _draw_learning(axes[0, 3], check)
    _draw_gradient(axes[1, 3], check)
    return figure


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)


def _draw_power(axes: Axes, own: Appearance, theirs: Appearance) -> None:
    for g, (group, color) in enumerate(zip(GROUPS, ("#0072B2", "#009E73", "#CC79A7"), strict=True)):
        axes.semilogy(_FREQUENCIES, own.power[g], color=color, label=f"{group}, measured")
        axes.semilogy(_FREQUENCIES, theirs.power[g], color=color, linestyle="--", label=f"{group}, simulated")
    _label(axes, "radial power of tilts", "cycles per pixel", "power")


def _draw_shared(axes: Axes, own: Appearance, theirs: Appearance) -> None:
    inner = _FREQUENCIES < 0.25
    for one, name, color in ((own, "measured", _MEASURED), (theirs, "simulated", _SIMULATED)):
        power = np.where(one.shared > 0, one.shared, np.nan)
        axes.semilogy(_FREQUENCIES[inner], power[inner], color=color, label=name)
    _label(axes, "power that neighbouring tilts share", "cycles per pixel", "power")


def _draw_values(axes: Axes, own: Appearance, theirs: Appearance) -> None:
    for one, name, color in ((own, "measured", _MEASURED), (theirs, "simulated", _SIMULATED)):
        axes.stairs(np.maximum(one.values, 1e-8), EDGES, color=color, label=f"tomogram, {name}")
        axes.stairs(np.maximum(one.tilt_values, 1e-8), EDGES, color=color, linestyle=":", label=f"tilts, {name}")
    axes.set_yscale("log")
    axes.set_ylim(1e-6, 0.5)
    _label(axes, "values", "standard deviations from the mean", "share of voxels or pixels")


def _draw_profile(axes: Axes, particle: ParticleCheck | None) -> None:
    if particle is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no particle given\n(--particle)", ha="center", va="center", fontsize=10, color="0.4")
        return

    def line(one: RadialProfile, name: str, color: str, style: str = "-") -> None:
        axes.errorbar(
            one.radii, one.mean, np.nan_to_num(one.error, posinf=0), color=color, linestyle=style, capsize=2, label=name
        )

    axes.axhline(0, color="0.8", linewidth=0.8)
    line(particle.measured, f"measured, {particle.measured.count} hits", _MEASURED)
    line(particle.found, f"simulated, {particle.found.count} hits", _SIMULATED)
    line(particle.true, f"simulated, {particle.true.count} true places", "#0072B2", ":")
    title = f"{particle.name}: contrast {particle.contrast.factor:.2f} ± {particle.contrast.error:.2f}"
    _label(axes, title, "voxels from the centre", "tomogram's standard deviations")


def _draw_learning(axes: Axes, check: MicroscopeCheck) -> None:
    curves = [(check.classifier, "simulated from measured", _SIMULATED)]
    if check.floor is not None:
        curves.append((check.floor, "measured from measured", _MEASURED))
    for curve, name, color in curves:
        for areas in curve.areas:
            axes.plot(curve.steps, areas, "o", color=color, markersize=3, alpha=0.5)
        axes.plot(curve.steps, curve.mean, "o-", color=color, label=name)
    axes.axhline(0.5, color="0.8", linewidth=0.8)
    axes.set_ylim(0.35, 1.02)
    axes.set_xlim(left=0)
    _label(axes, "a small classifier", "steps of training", "area under the ROC curve")


def _draw_gradient(axes: Axes, check: MicroscopeCheck) -> None:
    curve = check.classifier
    axes.plot(curve.frequencies, 100 * curve.gradient, "o-", color=_SIMULATED, markersize=3, label="of its gradient")
    axes.set_ylim(bottom=0)
    _label(axes, "what the classifier looks at", "cycles per voxel", "share of the power, %")
