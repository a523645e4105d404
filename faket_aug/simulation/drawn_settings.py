"""The settings that were drawn for one tomogram, and the simulator that has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np

from faket_aug._checks import check_count, check_flag, check_positive, is_number
from faket_aug.microscope.bad_tilts import BadTilt
from faket_aug.microscope.ctf import PER_TILT, ContrastTransfer
from faket_aug.microscope.flavours import WITH_CTF
from faket_aug.microscope.misalignment import Misalignment
from faket_aug.microscope.noise import ResponseNoise
from faket_aug.simulation.simulator import FakETSimulator

#: Key of a record's settings: what was drawn.
DRAWN = "drawn"
#: What records tell only where it is not the default.
_LATER = ("flavour", "even_ice", "bad_tilts")


@dataclass(frozen=True, kw_only=True)
class DrawnSettings:
    """What was drawn for one tomogram; see `Variation` for what each means.

    Parameters
    ----------
    simulator
        Number of the simulator in its mixture.
    snr
        Of white noise; None for the simulator's own noise.
    exposure, contrast, defocus, crowd, step_size
        Factors, and the change of the defocus in µm.
    background, filter, resampling, flavour
        None for the simulator's own.
    tilts
        Which of the simulator's tilts are used; None for all.
    misalignment
        None for the simulator's own.
    even_ice
        Whether the simulator's uneven ice is left out.
    bad_tilts
        Beside the simulator's own. They are numbered as the tilts that are used.

    Raises
    ------
    ValueError
        If a setting is of another kind than what can be drawn.
    """

    simulator: int = 0
    snr: float | None = None
    exposure: float = 1.0
    contrast: float = 1.0
    defocus: float = 0.0
    crowd: float = 1.0
    background: str | None = None
    tilts: tuple[int, ...] | None = None
    misalignment: Misalignment | None = None
    filter: str | None = None
    resampling: str | None = None
    step_size: float = 1.0
    flavour: str | None = None
    even_ice: bool = False
    bad_tilts: tuple[BadTilt, ...] = ()

    def __post_init__(self) -> None:
        check_count("simulator", self.simulator, zero=True)
        for name in ("exposure", "contrast", "snr"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name in ("crowd", "step_size"):
            check_positive(name, getattr(self, name), zero=True)
        if not is_number(self.defocus):
            raise ValueError(f"expected `defocus` to be a finite number, got {self.defocus!r}")
        for tilt in () if self.tilts is None else self.tilts:
            check_count("tilts", tilt, zero=True)
        check_flag("even_ice", self.even_ice)

    def applied(self, simulator: FakETSimulator) -> FakETSimulator:
        """Return a simulator with these settings.

        Raises
        ------
        ValueError
            If the simulator cannot have them.
        """
        changes: dict[str, Any] = {"crowd": simulator.crowd * self.crowd}
        changes |= {"step_size": simulator.step_size * self.step_size}
        for name in ("background", "filter", "resampling"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        if self.flavour is not None:
            changes |= {"flavour": self.flavour, "ctf_correction": None}
        noise: Any = simulator.noise_model
        if self.snr is not None:
            # Without the response there is nothing to correct, no measured background, and no intensity.
            corrected: dict[str, Any] = {} if simulator.ctf is not None else {"ctf_correction": None}
            if self.flavour is None and simulator.ctf is None and simulator.flavour in WITH_CTF:
                corrected |= {"flavour": "raw"}
            changes |= {"noise": noise.as_white(self.snr), "background": "own", "ice": None} | corrected
        elif (self.contrast, self.exposure) != (1.0, 1.0):
            changes["noise"] = noise.strengthened(contrast=self.contrast, exposure=self.exposure)
        if self.defocus and simulator.ctf is not None:
            changes["ctf"] = _shifted(simulator.ctf, self.defocus)
        elif self.defocus and self.snr is None and isinstance(noise, ResponseNoise):
            changes["noise"] = changes.get("noise", noise).shifted(self.defocus)
        if self.even_ice:
            changes["ice"] = None
        if self.misalignment is not None:
            changes["imperfections"] = replace(simulator.imperfections, misalignment=self.misalignment)
        made = replace(simulator, **changes)
        if self.tilts is not None:
            made = _at_tilts(made, list(self.tilts))
        if not self.bad_tilts:
            return made
        drawn = {bad.tilt for bad in self.bad_tilts}
        own = tuple(bad for bad in made.bad_tilts if bad.tilt not in drawn)
        return replace(made, bad_tilts=(*own, *self.bad_tilts))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        found = asdict(self) | {"tilts": None if self.tilts is None else list(self.tilts)}
        found |= {"bad_tilts": [bad.to_dict() for bad in self.bad_tilts]}
        # Records without these are those from before they were drawn.
        return {name: value for name, value in found.items() if name not in _LATER or value}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Make the settings from the result of `to_dict`, also after a trip through JSON.

        Raises
        ------
        ValueError
            If it is something else.
        """
        wanted = {entry.name for entry in fields(cls)}
        if not isinstance(data, Mapping) or {*data, *_LATER} != wanted:
            found = sorted(data) if isinstance(data, Mapping) else data
            raise ValueError(
                f"expected a record of a varied simulator, with {sorted(wanted)} in its `{DRAWN}`, got {found!r:.200}; "
                "give it to the `FakETSimulator` that made it"
            )
        tilts, errors = data["tilts"], data["misalignment"]
        try:
            return cls(
                **{
                    **data,
                    "tilts": None if tilts is None else tuple(tilts),
                    "misalignment": None if errors is None else Misalignment(**errors),
                    "bad_tilts": tuple(BadTilt.from_dict(bad) for bad in data.get("bad_tilts", ())),
                }
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"expected what a varied simulator has drawn in `{DRAWN}`: {error}") from error


def optics(simulator: FakETSimulator) -> ContrastTransfer | None:
    """Return the contrast transfer function of a simulator, or of the response of its noise."""
    if simulator.ctf is not None or simulator.response is None:
        return simulator.ctf
    return simulator.response.ctf


def _shifted(ctf: ContrastTransfer, defocus: float) -> ContrastTransfer:
    given = ctf.defocus
    moved = tuple(one + defocus for one in given) if isinstance(given, tuple) else given + defocus
    return replace(ctf, defocus=moved)


def _at_tilts(simulator: FakETSimulator, tilts: list[int]) -> FakETSimulator:
    """Return the simulator with some of its tilts; what it says of each tilt stays that tilt's."""
    angles = np.asarray(simulator.tilt_angles)
    if any(tilt >= len(angles) for tilt in tilts):
        raise ValueError(f"expected `tilts` among {len(angles)}, got {tilts}")
    changes: dict[str, Any] = {"tilt_angles": tuple(angles[tilts].tolist())}
    numbers = {tilt: number for number, tilt in enumerate(tilts)}
    bad = [replace(one, tilt=numbers[one.tilt]) for one in simulator.bad_tilts if one.tilt in numbers]
    changes["bad_tilts"] = tuple(bad)
    if simulator.ctf is not None:
        own = {name: getattr(simulator.ctf, name) for name in PER_TILT}
        some: dict[str, Any] = {n: tuple(all_[i] for i in tilts) for n, all_ in own.items() if isinstance(all_, tuple)}
        changes["ctf"] = replace(simulator.ctf, **some)
    damage = simulator.imperfections.damage
    if damage is not None:
        # A tilt that is left out was exposed all the same.
        before = damage.accumulated(angles)[tilts] - damage.per_tilt / 2
        damage = replace(damage, before=tuple(before.clip(min=0).tolist()))
        changes["imperfections"] = replace(simulator.imperfections, damage=damage)
    return replace(simulator, **changes)
