"""The file of a fitted microscope: its noise and response, tilt angles, and the step of the style transfer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faket_aug._checks import FileFormatError, check_choice
from faket_aug.formats._atomic import write_text
from faket_aug.geometry import as_tilt_angles
from faket_aug.microscope.noise import NoiseModel
from faket_aug.tomography.projection import EXTENDS

#: What of a simulator's settings `MicroscopeFile.style` may hold.
STYLE_SETTINGS = ("step_size", "keep_spectrum")


@dataclass(frozen=True, kw_only=True)
class MicroscopeFile:
    """What `faket-aug fit` found of a microscope.

    Parameters
    ----------
    noise
        Fitted noise, with a response.
    tilt_angles
        `(tilt,)`, degrees, of the first series; empty where not known.
    style
        Settings of the style transfer that were chosen, see `STYLE_SETTINGS`; empty where none were.
    extend
        How specimens went on beyond their sides in the fit, see `project`; None where not known.
    about
        What it was made from, as JSON types.
    """

    noise: NoiseModel
    tilt_angles: tuple[float, ...] = ()
    style: Mapping[str, Any] = field(default_factory=dict)
    extend: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def style_settings(self, step_size: float | None = None) -> dict[str, Any]:
        """Return settings of the style transfer: the given step, or the chosen ones.

        Raises
        ------
        ValueError
            If there is a response, for which the published step is too far, and no step.
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
    """Read a microscope's file, or one of `NoiseModel.to_json`.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If there is no such file, or it is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a fitted microscope or noise model, found none at {path}")
    try:
        text = path.read_text(encoding="utf-8")
        noise = NoiseModel.from_json(text)
        data = json.loads(text)
        style = data.get("style", {})
        if not isinstance(style, dict) or not set(style) <= set(STYLE_SETTINGS):
            raise ValueError(f"expected `style` with settings of {', '.join(STYLE_SETTINGS)}, got {style!r}")
        angles = tuple(as_tilt_angles(data["tilt_angles"]).tolist()) if "tilt_angles" in data else ()
        extend = data.get("extend")
        if extend is not None:
            check_choice("extend", extend, EXTENDS)
    except (ValueError, TypeError) as error:
        raise FileFormatError(f"{path}: {error}") from error
    return MicroscopeFile(noise=noise, tilt_angles=angles, style=style, extend=extend, about=data.get("about", {}))


def write_microscope(path: str | Path, microscope: MicroscopeFile) -> None:
    """Write a microscope's file; what was there stays until the new one is whole."""
    data = json.loads(microscope.noise.to_json())
    data |= {"tilt_angles": list(microscope.tilt_angles)} if microscope.tilt_angles else {}
    data |= {"style": dict(microscope.style)} if microscope.style else {}
    data |= {"extend": microscope.extend} if microscope.extend else {}
    write_text(Path(path), json.dumps(data | {"about": dict(microscope.about)}, indent=1))
