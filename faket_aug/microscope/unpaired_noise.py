"""The fit of noise with a response to measured tilts of unknown specimens: from stacks to what the model holds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_choice, check_positive
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.absolute_fit import Matter
from faket_aug.microscope.background import SlowBackground
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.ice_map import ThicknessMap
from faket_aug.microscope.intensity import (
    SCALE_SOURCES,
    AbsoluteScale,
    ContrastReport,
    ScaleSource,
    absolute_scales,
    clipping_limit,
)
from faket_aug.microscope.noise_curves import SeriesNoise, check_order, series_of_gain
from faket_aug.microscope.spectra import RINGS, SeriesSpectra, matching_spectra, sorted_spectra
from faket_aug.microscope.thickness import MatterThickness, matter_thickness
from faket_aug.microscope.unpaired import ResponseFit, fit_response
from faket_aug.tomography.projection import EXTENDS

#: e⁻/Å² of each tilt, or of every tilt.
Exposure = FloatArray | Sequence[float] | float | None
#: Matter is as deep as the specimens unless it is found to be deeper by this factor.
_DEEPER = 1.2
_POWER = (
    "the scale of the contrast is not known: gray values do not tell it, and no exposure was given. It is taken from "
    "the power of the given specimens: with half as many particles as were measured, each gets 1.4 times the contrast "
    "that it should have. Set `exposure`, or give specimens as dense as the measured ones"
)


@dataclass(frozen=True, kw_only=True)
class FittedSeries:
    """What `fit_series_response` finds.

    Parameters
    ----------
    series
        Curves over the tilt angle of each measured series.
    fit
        Transfer function, noise spectrum, and matter that the specimens do not explain.
    contrast
        How the scale of the gain was found.
    backgrounds
        Slow backgrounds of the measured series.
    ice
        Maps of the ice of those series whose intensities tell it.
    """

    series: tuple[SeriesNoise, ...]
    fit: ResponseFit
    contrast: ContrastReport
    backgrounds: tuple[SlowBackground, ...]
    ice: tuple[ThicknessMap, ...] = ()


def fit_series_response(
    target: Tensor | Sequence[Tensor],
    clean: Tensor | Sequence[Tensor],
    tilt_angles: Angles | Sequence[Angles],
    clean_angles: Angles | Sequence[Angles] | None = None,
    *,
    pixel_size: float,
    ctf: ContrastTransfer | Sequence[ContrastTransfer] | None,
    order: int,
    power_order: int | None,
    scale: str | None,
    exposure: Exposure | Sequence[Exposure],
    depth: float | None,
    thickness: float | None,
    solid: float,
    interpolated: bool,
    extend: str,
    beads: Tensor | Sequence[Tensor | None],
    measured: Tensor | Sequence[Tensor | None] | None,
) -> FittedSeries:
    """Carry out `NoiseModel.fit_unpaired`, which describes the parameters, warnings and errors."""
    targets, cleans = as_list(target), as_list(clean)
    angles: Any = [tilt_angles] if isinstance(target, Tensor) else tilt_angles
    others: Any = [clean_angles] if isinstance(clean, Tensor) else clean_angles
    others = [angles[0]] * len(cleans) if clean_angles is None and len(angles) else others
    if len(targets) != len(angles) or len(cleans) != len(others):
        counts = f"{len(angles)} for {len(targets)} measured and {len(others)} for {len(cleans)} clean ones"
        raise ValueError(f"expected as many sets of angles as series, got {counts}")
    if depth is not None:
        check_positive("depth", depth)
    masks = masks_of(measured, targets)
    spectra = [
        sorted_spectra(t, a, f"series {i}: target", measured=m)
        for i, (t, a, m) in enumerate(zip(targets, angles, masks, strict=True))
    ]
    for one_order in (order, order if power_order is None else power_order):
        check_order(one_order, [one.tilt_angles for one in spectra if len(one.tilt_angles) > 1])
    if scale is not None:
        check_choice("scale", scale, SCALE_SOURCES)
    check_choice("extend", extend, EXTENDS)
    stacks: list[Tensor | None] = [beads] if isinstance(beads, Tensor) else list(beads)
    if stacks and len(stacks) != len(cleans):
        raise ValueError(f"expected `beads` of each of {len(cleans)} clean stacks, or None, got {len(stacks)}")
    first = ctf if isinstance(ctf, ContrastTransfer) else ctf[0] if ctf else ContrastTransfer.within()
    exposures: Any = [exposure] * len(targets) if isinstance(target, Tensor) or np.isscalar(exposure) else exposure
    exposures = [None] * len(targets) if exposure is None else exposures
    if len(exposures) != len(targets):
        raise ValueError(
            f"expected one `exposure`, or one for each of {len(targets)} measured series, got {len(exposures)}"
        )
    scales = absolute_scales(
        spectra,
        pixel_size=pixel_size,
        voltage=first.voltage,
        exposure=[_sorted_exposure(e, a) for e, a in zip(exposures, angles, strict=True)],
        source=cast("ScaleSource | None", scale),
    )
    if scale is None and any(one.source == "power" for one in scales):
        warnings.warn(_POWER, stacklevel=4)
    for index, one in enumerate(scales):
        if one.source == "intensity" and one.transfer.slope < 0:
            warnings.warn(
                f"series {index}: more electrons make lower gray values, so particles are bright; simulated ones "
                "will be dark. Negate the tilts",
                stacklevel=4,
            )
    absolute = all(one.source != "power" for one in scales)
    # Clean tilts without noise are clipped where the measured ones are: not at their own standard deviation.
    limits = [clipping_limit(s, t) for s, t in zip(scales, spectra, strict=True)] if absolute else None
    found = _thicknesses(targets, angles, masks) if absolute and thickness is None else []
    depth = max([one.shape[-1] / 4 for one in cleans], default=1.0) if depth is None else depth
    whole = _whole_depth(found, thickness, depth)
    reach = float(min(one.shape[-1] for one in cleans)) if extend == "zero" and cleans else None
    fit = fit_response(
        spectra,
        matching_spectra(cleans, others, spectra, limits),
        pixel_size=pixel_size,
        ctf=ctf,
        order=power_order,
        scales=scales,
        matter=Matter(depth=depth, thickness=whole, solid=solid, interpolated=interpolated, reach=reach),
        widths=[int(one.shape[-1]) for one in targets],
        beads=_shared_by_beads(stacks, others, spectra, limits) if absolute and stacks else (),
    )
    series = tuple(series_of_gain(s, gain) for s, gain in zip(spectra, fit.gains, strict=True))
    return FittedSeries(
        series=series,
        fit=fit,
        contrast=ContrastReport.of(scales, fit.explained, thickness=[one.voxels * pixel_size for one in found]),
        backgrounds=tuple(_background(t, a, m, pixel_size) for t, a, m in zip(targets, angles, masks, strict=True)),
        ice=_ice(targets, angles, masks, scales, pixel_size),
    )


def _shared_by_beads(
    beads: Sequence[Tensor | None],
    tilt_angles: Sequence[Angles],
    spectra: Sequence[SeriesSpectra],
    limits: Sequence[FloatArray] | None,
) -> list[FloatArray]:
    """The power that neighbouring clean tilts share by beads, `(tilt - 1, ring)` for each target, if there are any."""
    given = [(one, own) for one, own in zip(beads, tilt_angles, strict=True) if one is not None]
    # Beads that leave the image at some tilt have no spectrum there.
    shown = [(one, own) for one, own in given if bool((one.amax(dim=(1, 2)) > one.amin(dim=(1, 2))).all())]
    if not shown:
        return []
    found = matching_spectra([one for one, _ in shown], [own for _, own in shown], spectra, limits)
    return [np.sum([one.shared for one in own], axis=0) / len(beads) for own in found]


def as_list(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Take one stack as a list of one."""
    return [value] if isinstance(value, Tensor) else list(value)


def masks_of(measured: Tensor | Sequence[Tensor | None] | None, targets: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the mask of each measured series, None where all counts.

    Raises
    ------
    ValueError
        If there are more masks than series, or fewer.
    """
    given = [None] * len(targets) if measured is None else measured
    masks: list[Tensor | None] = [given] if isinstance(given, Tensor) else list(given)
    if len(masks) != len(targets):
        raise ValueError(
            f"expected one mask, or None, in `measured` for each of {len(targets)} measured series, got {len(masks)}"
        )
    return masks


def _sorted_exposure(exposure: Exposure, tilt_angles: Angles) -> FloatArray | float | None:
    """Sort the exposures by angle, as spectra are; of tilts at the same angle the first is used."""
    if exposure is None:
        return None
    if np.ndim(exposure) == 0:
        check_positive("exposure", float(cast("float", exposure)))
        return float(cast("float", exposure))
    values, angles = np.asarray(exposure, dtype=np.float64), as_tilt_angles(tilt_angles)
    if values.shape != angles.shape or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(
            f"expected a positive exposure in e⁻/Å² for each of {len(angles)} tilts, got {values.tolist()}; set one "
            "for each tilt"
        )
    result: FloatArray = values[np.unique(angles, return_index=True)[1]]
    return result


def _thicknesses(
    targets: Sequence[Tensor], tilt_angles: Sequence[Angles], masks: Sequence[Tensor | None]
) -> list[MatterThickness]:
    """How deep the matter is of the series that tell."""
    each = [matter_thickness(t, a, measured=m) for t, a, m in zip(targets, tilt_angles, masks, strict=True)]
    return [one for one in each if one is not None]


def _whole_depth(found: Sequence[MatterThickness], given: float | None, depth: float) -> FloatArray | None:
    """How deep all matter is, `(ring,)`, pixels; None if it is as deep as the specimens."""
    if given is not None:
        return np.full(len(RINGS), given)
    if not found or np.mean([one.voxels for one in found]) < _DEEPER * depth:
        return None
    mean: FloatArray = np.mean([one.at(RINGS) for one in found], axis=0)
    return mean


def _background(tilts: Tensor, tilt_angles: Angles, measured: Tensor | None, pixel_size: float) -> SlowBackground:
    """Take the background of a series, sorted as its spectra are; of tilts at the same angle the first is used."""
    angles, chosen = np.unique(as_tilt_angles(tilt_angles), return_index=True)
    order = torch.from_numpy(chosen)
    mask = None if measured is None else measured[order]
    return SlowBackground.of(tilts[order], angles, pixel_size, measured=mask)


def _ice(
    targets: Sequence[Tensor],
    tilt_angles: Sequence[Angles],
    masks: Sequence[Tensor | None],
    scales: Sequence[AbsoluteScale],
    pixel_size: float,
) -> tuple[ThicknessMap, ...]:
    """Fit the map of the ice of each series whose gray values have a known zero."""
    each = [
        ThicknessMap.fit(tilts, angles, pixel_size, zero=scale.zero, measured=mask)
        for tilts, angles, mask, scale in zip(targets, tilt_angles, masks, scales, strict=True)
        if scale.source == "intensity"
    ]
    return tuple(one for one in each if one is not None)
