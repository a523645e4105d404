"""The file of a fitted microscope: noise and response, tilt angles, and the step of the style transfer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faket_aug._checks import FileFormatError, check_choice
from faket_aug.formats._json import read_text, unseal, write_json
from faket_aug.formats._text import checked_angles
from faket_aug.geometry import as_tilt_angles
from faket_aug.microscope.noise import NoiseModel
from faket_aug.tomography.projection import EXTENDS

#: The settings of a simulator that `MicroscopeFile.style` may hold.
STYLE_SETTINGS = ("step_size", "keep_spectrum")


@dataclass(frozen=True, kw_only=True)
class MicroscopeFile:
    """The result of `faket-aug fit`: what it found about a microscope.

    Parameters
    ----------
    noise
        The fitted noise model, with a response.
    tilt_angles
        `(tilt,)`, degrees, of the first series; empty if they are not known.
    style
        The chosen settings of the style transfer, see `STYLE_SETTINGS`; empty if none were chosen.
    extend
        What the fit took to lie beside the specimens, see `project`; None if it is not known.
    about
        The input of the fit, as JSON types.
    """

    noise: NoiseModel
    tilt_angles: tuple[float, ...] = ()
    style: Mapping[str, Any] = field(default_factory=dict)
    extend: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def style_settings(self, step_size: float | None = None) -> dict[str, Any]:
        """Return settings of the style transfer: the given step, or else the chosen settings.

        Raises
        ------
        ValueError
            If the noise has a response and no step is known. (The published step is too large for a response.)
        """
        if step_size is not None:
            return {"step_size": step_size}
        if not self.style and self.noise.response is not None:
            raise ValueError(
                "expected a step size of the style transfer for a fitted response, got none; let `faket-aug fit "
                "--weights` choose one, or set it (0 for none, 0.15 as published for white noise)"
            )
        return dict(self.style)


def read_microscope(path: str | Path) -> MicroscopeFile:
    """Read the file of a fitted microscope, or a file with the text of `NoiseModel.to_json`.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If the file does not exist, or has another content.
    """
    path, what = Path(path), "a fitted microscope or noise model"
    text = read_text(path, what=what)
    try:
        noise, data = NoiseModel.from_json(text), unseal(text, source=str(path), what=what)
        style = data.get("style", {})
        if not isinstance(style, dict) or not set(style) <= set(STYLE_SETTINGS):
            raise ValueError(f"expected `style` with settings of {', '.join(STYLE_SETTINGS)}, got {style!r}")
        if not all(isinstance(value, bool | float | int) for value in style.values()):
            raise ValueError(f"expected numbers for the settings of `style`, got {style!r}")
        angles = tuple(as_tilt_angles(data["tilt_angles"]).tolist()) if "tilt_angles" in data else ()
        extend = data.get("extend")
        if extend is not None:
            check_choice("extend", extend, EXTENDS)
    except (ValueError, TypeError) as error:
        raise FileFormatError(f"{path}: {error}") from error
    if angles:
        checked_angles(np.array(angles), path)
    return MicroscopeFile(noise=noise, tilt_angles=angles, style=style, extend=extend, about=data.get("about", {}))


def write_microscope(path: str | Path, microscope: MicroscopeFile) -> None:
    """Write the file of a microscope. An earlier file stays until the new one is complete."""
    data = unseal(microscope.noise.to_json(), source=str(path), what="a noise model")
    data |= {"tilt_angles": list(microscope.tilt_angles)} if microscope.tilt_angles else {}
    data |= {"style": dict(microscope.style)} if microscope.style else {}
    data |= {"extend": microscope.extend} if microscope.extend else {}
    write_json(path, data | {"about": dict(microscope.about)})
