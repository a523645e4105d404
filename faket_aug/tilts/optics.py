"""What is known of a microscope before it is fitted: what the files beside its tilt-series say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from faket_aug._checks import check_same_size
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.tilts.series import TiltSeries

#: µm, how far the defocus may be from what the microscope was set to.
NOMINAL_SPREAD = 1.5
#: Settings of the contrast transfer function, and what metadata call them.
OPTICS = {
    "voltage": "voltage_kv",
    "spherical_aberration": "spherical_aberration_mm",
    "amplitude_contrast": "amplitude_contrast",
}


def common_pixel_size(series: Sequence[TiltSeries]) -> float:
    """Return the pixel size of tilt-series, Å.

    Raises
    ------
    ValueError
        If one is not known, or differs by more than 2 %.
    """
    for one in series:
        if not one.pixel_size > 0:
            raise ValueError(f"{one.name}: expected a pixel size in its header, got 0; write it there")
        check_same_size(one.name, one.pixel_size, series[0].name, series[0].pixel_size, unit="pixels")
    return series[0].pixel_size


def known_optics(
    series: Sequence[TiltSeries],
    defocus: float | tuple[float, float] | None = None,
    given: Mapping[str, Any] | None = None,
) -> list[ContrastTransfer]:
    """Tell the microscope of each tilt-series, as far as it is given or its files say it.

    Parameters
    ----------
    series
        Of one microscope.
    defocus
        µm, of all series: a number that is known, or (lowest, highest) to be searched.
    given
        Settings of `ContrastTransfer` that go before those of the files.

    Returns
    -------
    One for each series; its defocus is to be searched within its spread.

    Raises
    ------
    ValueError
        If files name different microscopes.
    """
    given = given or {}
    optics = _of_files(series, without=given) | dict(given)
    if defocus is not None:
        low, high = (defocus, defocus) if isinstance(defocus, int | float) else (min(defocus), max(defocus))
        return [ContrastTransfer.within(low, high, **optics)] * len(series)
    return [_searched(one, optics) for one in series]


def _of_files(series: Sequence[TiltSeries], *, without: Mapping[str, Any]) -> dict[str, Any]:
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
                f"expected series of one microscope, got `{own}` of {names}; fit each apart, or set `{own}`"
            )
        found.update((own, value) for value in values)
    return found


def _searched(series: TiltSeries, optics: Mapping[str, Any]) -> ContrastTransfer:
    """A series' defocus: fitted tilt by tilt by another program, or meant by the microscope, or not known."""
    metadata = series.metadata
    if metadata is None or metadata.defocus_um is None or not np.isfinite(metadata.defocus_um).any():
        return ContrastTransfer.within(**optics)
    values = metadata.defocus_um[np.isfinite(metadata.defocus_um)]
    # The same number for all tilts is what the microscope was set to.
    spread = NOMINAL_SPREAD if np.ptp(values) == 0 else 0.0
    return ContrastTransfer(defocus=float(np.mean(values)), spread=spread, **optics)
