"""How the settings of a simulator differ between tomograms: ranges and choices, from which they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_count, check_fraction, check_positive, checked_names, checked_range
from faket_aug.microscope.bad_tilts import BadTilt
from faket_aug.microscope.flavours import FLAVOURS, WITH_CTF
from faket_aug.microscope.misalignment import Misalignment
from faket_aug.microscope.noise import FittedNoise
from faket_aug.simulation.drawn_settings import DrawnSettings, optics
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.tomography.filters import FILTERS
from faket_aug.tomography.resample import RESAMPLINGS

T = TypeVar("T")
#: A number, or the lowest and the highest one.
Range = float | tuple[float, float]
#: The word for the variation that suits a simulator, see `Variation.standard`.
STANDARD = "standard"
#: Numbers that are drawn evenly in their logarithm.
_FACTORS = ("snr", "exposure", "contrast")
#: Numbers that are drawn evenly.
_EVENLY = ("defocus", "crowd", "tilt_range", "missing", "step_size", "bad_tilts")
#: Shares of the tomograms.
_SHARES = ("white", "measured_background", "ice")
#: The range of the ratio of white noise.
_SNR = (0.03, 0.1)
#: Filters of the standard variation, beside the simulator's own.
_FILTERS = ("ramp", "hamming", "hann")
#: Settings of which one is drawn, and what there is.
_CHOICES = {"filter": FILTERS, "resampling": RESAMPLINGS, "flavour": FLAVOURS}
#: µm, the largest change of the defocus in the standard variation; and the largest share of the defocus itself.
_DEFOCUS, _DEFOCUS_SHARE = 0.5, 0.5


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How the settings of a simulator differ between tomograms.

    A range is a number, or a pair (lowest, highest). What is not given does not vary.

    Parameters
    ----------
    white
        Share of the tomograms whose noise is white, with a ratio of `snr`, in place of the simulator's own noise. They
        have no response of a microscope: neither its transfer function, nor its crowd, nor uneven ice. By default all
        if `snr` is given, and none otherwise.
    snr
        Range of the signal-to-noise ratio of this white noise at 0°, drawn evenly in its logarithm; by default from
        0.03 to 0.1.
    exposure
        Range of a factor on the number of electrons, drawn evenly in its logarithm: the power of the simulator's own
        noise, relative to that of the signal, is divided by it.
    contrast
        Range of a factor on the signal under the simulator's own noise, drawn evenly in its logarithm.
    defocus
        Range of a number that is added to the defocus, µm.
    crowd
        Range of a factor on the simulator's `crowd`.
    measured_background
        Share of the tomograms with the slow background of a measured series; by default as the simulator's
        `background` says.
    tilt_range
        Degrees, range of the largest tilt angle: tilts beyond it are left out.
    tilt_step
        Every how many tilts one is used, counted from the tilt nearest to 0°; one of these numbers.
    missing
        Range of the share of tilts that are missing, at random.
    bad_tilts
        Range of the share of tilts that are bad and used all the same, see `BadTilt`: in a third of them the signal is
        hidden (less than 0.3 of it is left), a third lies elsewhere (by 100 to 400 Å), and in a third the specimen
        moved (by 40 to 160 Å).
    ice
        Share of the tomograms with the simulator's uneven `ice`, the others have even ice; by default all.
    misalignment
        The largest misalignment: its standard deviations are multiplied by a number from 0 to 1. Tomograms with a
        fitted response have none, since the response holds the measured one.
    filter, resampling
        Filters of the reconstruction, and ways to bin; one of them is drawn. The voxels keep their size: what a picker
        has learnt is of one size.
    step_size
        Range of a factor on the step of the style transfer; a step of 0 leaves tilts as they are.
    flavour
        Flavours of the tomogram, see `FakETSimulator`; one of them is drawn. Tomograms without a contrast transfer
        function, with white noise in place of a response, are raw where it would be corrected.

    Raises
    ------
    ValueError
        If a number is out of its range, or a choice is unknown.
    """

    white: float | None = None
    snr: Range | None = None
    exposure: Range = 1.0
    contrast: Range = 1.0
    defocus: Range = 0.0
    crowd: Range = 1.0
    measured_background: float | None = None
    tilt_range: Range = 90.0
    tilt_step: Sequence[int] = (1,)
    missing: Range = 0.0
    misalignment: Misalignment | None = None
    filter: Sequence[str] = ()
    resampling: Sequence[str] = ()
    step_size: Range = 1.0
    flavour: Sequence[str] = ()
    bad_tilts: Range = 0.0
    ice: float | None = None

    def __post_init__(self) -> None:
        if self.white is None:
            object.__setattr__(self, "white", 0.0 if self.snr is None else 1.0)
        if self.snr is None:
            object.__setattr__(self, "snr", _SNR)
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            value = (value,) if isinstance(value, str) else value
            # One that comes twice is drawn twice as often.
            object.__setattr__(self, name, checked_names(name, value, known, once=False))
        for name in _SHARES:
            if getattr(self, name) is not None:
                check_fraction(name, getattr(self, name))
        for name in (*_FACTORS, *_EVENLY):
            low, high = self._pair(name)
            if name != "defocus":
                check_positive(name, low, zero=name in _EVENLY)
            object.__setattr__(self, name, (low, high))
        for name in ("missing", "bad_tilts"):
            if self._pair(name)[1] > 0.5:
                raise ValueError(f"expected at most half of the tilts to be `{name}`, got {self._pair(name)[1]:g}")
        steps = self.tilt_step
        several = isinstance(steps, Sequence) and not isinstance(steps, str)
        object.__setattr__(self, "tilt_step", tuple(steps) if several else (steps,))
        if not self.tilt_step:
            raise ValueError("expected at least one `tilt_step`, got none; leave it out for all tilts")
        for step in self.tilt_step:
            check_count("tilt_step", step)
        if not isinstance(self.misalignment, Misalignment | None):
            raise ValueError(f"expected `misalignment` to be a `Misalignment` or None, got {self.misalignment!r:.200}")

    def _pair(self, name: str) -> tuple[float, float]:
        return checked_range(name, getattr(self, name))

    @classmethod
    def standard(cls, simulator: FakETSimulator) -> Self:
        """Make the variation that suits a simulator.

        - Noise that was fitted with a physical scale is the microscope's. So it stays, with contrasts from 0.8 to 1.25,
          and so does the filter of the reconstruction.
        - Of other noise less is known. A third of the tomograms has it, with contrasts from 0.7 to 1.4; two thirds have
          white noise of a ratio from 0.03 to 0.1. The filter is the simulator's, `"ramp"`, `"hamming"` or `"hann"`.
        - A crowd has 0.5 to 1.5 of its strength; half of the tomograms have a measured background, where there is one
          and the simulator has no `ice`.
        - The defocus changes by up to 0.5 µm (and by half of itself at most); up to 10 % of the tilts are missing.
        - The step of a style transfer has 0 to 1 of its size.

        What a simulator does not have does not vary.

        Parameters
        ----------
        simulator
            The simulator that it is for.
        """
        noise = simulator.noise_model
        found: dict[str, Any] = {}
        if isinstance(noise, FittedNoise) and noise.is_physical:
            found["contrast"] = (0.8, 1.25)
        else:
            if simulator.reconstruction is None:
                found["filter"] = tuple(dict.fromkeys((simulator.filter, *_FILTERS)))
            found |= {"white": 2 / 3, "contrast": (0.7, 1.4)} if isinstance(noise, FittedNoise) else {}
        if noise is None or noise.draws:
            found["missing"] = (0.0, 0.1)
        if noise is not None and noise.crowd is not None:
            found["crowd"] = (0.5, 1.5)
        if noise is not None and noise.backgrounds and simulator.ice is None:
            found["measured_background"] = 0.5
        transfer = optics(simulator)
        if transfer is not None:
            most = min(_DEFOCUS, _DEFOCUS_SHARE * float(np.min(np.abs(transfer.defocus))))
            found["defocus"] = (-most, most)
        if simulator.modality == "faket":
            found["step_size"] = (0.0, 1.0)
        return cls(**found)

    def check(self, simulator: FakETSimulator) -> None:
        """Raise a `ValueError` if a simulator lacks what varies."""
        noise = simulator.noise_model
        fitted, plain = isinstance(noise, FittedNoise), Variation()
        wrong = {
            name: "noise that was fitted or assumed (`NoiseModel`)"
            for name in ("white", "exposure", "contrast")
            if not fitted and self._pair(name) != plain._pair(name)
        }
        transfer = optics(simulator)
        if self.defocus != plain.defocus and transfer is not None:
            self._check_defocus(np.ravel(transfer.defocus))
        if self.defocus != plain.defocus and transfer is None:
            wrong["defocus"] = "a `ctf`, or noise with a `response`,"
        if set(self.flavour) & set(WITH_CTF) and transfer is None:
            wrong["flavour"] = "a `ctf`, or noise with a `response`,"
        if self.crowd != plain.crowd and (noise is None or noise.crowd is None):
            wrong["crowd"] = "noise with a crowd"
        if self.measured_background and not (noise is not None and noise.backgrounds):
            wrong["measured_background"] = "noise with `backgrounds`"
        if self.measured_background and simulator.ice is not None:
            raise ValueError(
                "expected a simulator without `ice` to vary `measured_background`, got one with it: each is what "
                "changes slowly in a tilt; leave one of them out"
            )
        if simulator.reconstruction is not None:
            wrong |= {n: "the package's own reconstruction" for n in ("filter", "resampling") if getattr(self, n)}
        if self.bad_tilts != plain.bad_tilts and not (noise is None or noise.draws):
            wrong["bad_tilts"] = "noise that is not given with the specimens"
        if self.ice is not None and simulator.ice is None:
            wrong["ice"] = "uneven `ice`"
        if self.misalignment is not None and not (noise is None or noise.draws):
            wrong["misalignment"] = "noise that is not given with the specimens"
        if self.misalignment is not None and simulator.response is not None and not self.white:
            wrong["misalignment"] = "noise without a `response`, or a share of `white` noise,"
        if self.step_size != plain.step_size and simulator.modality not in ("faket", "noiseless"):
            wrong["step_size"] = 'the modality "faket"'
        for name, wanted in wrong.items():
            raise ValueError(f"expected {wanted} of the simulator to vary `{name}`, got none; leave out `{name}`")

    def fewest_tilts(self, simulator: FakETSimulator) -> int:
        """Return how many tilts of a simulator are left in the worst case."""
        angles = np.asarray(simulator.tilt_angles)
        kept = [
            _kept(angles, largest=self._pair("tilt_range")[0], step=step, missing=most, order=range(len(angles)))
            for step, most in ((step, self._pair("missing")[1]) for step in self.tilt_step)
        ]
        return min(len(angles) if one is None else len(one) for one in kept)

    def _check_defocus(self, own: FloatArray) -> None:
        """Raise a `ValueError` if the change takes a defocus to the other side of the focus."""
        for change in self._pair("defocus"):
            if ((own + change) * own < 0).any():
                raise ValueError(
                    f"expected changes of the `defocus` that do not go through the focus, got {change:g} µm "
                    f"for {own[np.argmin(np.abs(own))]:g} µm"
                )

    def towards(self, other: Variation, share: float) -> Variation:
        """Return the variation at a share of the way to another one; what is no number or range stays until the end."""
        if share >= 1:
            return other
        changes: dict[str, Any] = {
            name: between(self._pair(name), other._pair(name), share) for name in (*_FACTORS, *_EVENLY)
        }
        for name in _SHARES:
            first, last = getattr(self, name), getattr(other, name)
            if first is not None and last is not None:
                changes[name] = between((first,), (last,), share)[0]
        return replace(self, **changes)

    def drawn(
        self,
        simulator: FakETSimulator,
        generator: np.random.Generator,
        *,
        number: int = 0,
        all_tilts: bool = False,
    ) -> DrawnSettings:
        """Draw the settings of one tomogram.

        Parameters
        ----------
        simulator
            The simulator whose settings they are.
        generator
            As many numbers are drawn whatever varies, so that a new range does not change what others give.
        number
            Of the simulator in its mixture.
        all_tilts
            Whether no tilt is left out, whatever is drawn.
        """
        at = {name: float(generator.uniform()) for name in _DRAWS}
        angles = np.asarray(simulator.tilt_angles)
        order = generator.permutation(len(angles))
        # Drawn by later versions: they leave alone what comes above.
        at |= {name: float(generator.uniform()) for name in _LATER_DRAWS}
        factors = {name: _power(self._pair(name), at[name]) for name in _FACTORS}
        evenly = {name: _line(self._pair(name), at[name]) for name in _EVENLY}
        white = isinstance(simulator.noise_model, FittedNoise) and at["white"] < (self.white or 0.0)
        own = white or simulator.noise_model is None
        background = None
        if self.measured_background is not None and not white:
            background = "measured" if at["measured_background"] < self.measured_background else "own"
        misalignment = None
        if self.misalignment is not None and (white or simulator.response is None):
            misalignment = Misalignment(**{n: v * at["misalignment"] for n, v in asdict(self.misalignment).items()})
        flavour = _choice(self.flavour, at["flavour"]) if self.flavour else None
        if white and simulator.ctf is None and flavour in WITH_CTF:
            flavour = "raw"
        tilts = _kept(
            angles,
            largest=evenly["tilt_range"],
            step=int(_choice(self.tilt_step, at["tilt_step"])),
            missing=evenly["missing"],
            order=order.tolist(),
        )
        tilts = None if all_tilts else tilts
        return DrawnSettings(
            simulator=number,
            snr=factors["snr"] if white else None,
            exposure=1.0 if own else factors["exposure"],
            contrast=1.0 if own else factors["contrast"],
            # White noise comes without the response and its crowd.
            defocus=0.0 if white and simulator.ctf is None else evenly["defocus"],
            crowd=1.0 if white else evenly["crowd"],
            background=background,
            tilts=tilts,
            misalignment=misalignment,
            filter=_choice(self.filter, at["filter"]) if self.filter else None,
            resampling=_choice(self.resampling, at["resampling"]) if self.resampling else None,
            step_size=evenly["step_size"],
            flavour=flavour,
            even_ice=self.ice is not None and at["ice"] >= self.ice,
            bad_tilts=_bad(len(angles) if tilts is None else len(tilts), evenly["bad_tilts"], generator),
        )


#: The order of the numbers that are drawn; only append.
_DRAWS = (
    *("white", "snr", "exposure", "contrast", "defocus", "crowd", "measured_background", "tilt_range", "tilt_step"),
    *("missing", "misalignment", "filter", "resampling", "step_size"),
)
#: The same, after the order of the tilts.
_LATER_DRAWS = ("flavour", "bad_tilts", "ice")


def between(first: Sequence[float], second: Sequence[float], share: float) -> Any:
    """Return numbers at a share of the way from some to others; equal ones stay as they are, bit for bit."""
    return tuple(one if one == other else one + share * (other - one) for one, other in zip(first, second, strict=True))


def _power(ends: tuple[float, float], at: float) -> float:
    low, high = ends
    return low if low == high else low * (high / low) ** at


def _line(ends: tuple[float, float], at: float) -> float:
    low, high = ends
    return low if low == high else low + at * (high - low)


def _choice(values: Sequence[T], at: float) -> T:
    return values[min(int(at * len(values)), len(values) - 1)]


def _kept(
    angles: FloatArray, *, largest: float, step: int, missing: float, order: Sequence[int]
) -> tuple[int, ...] | None:
    """Choose tilts by their angle, and leave some out in a random order; None if all are kept."""
    ranks = np.argsort(np.argsort(angles, kind="stable"), kind="stable")
    middle = int(np.argmin(np.abs(angles)))
    chosen = (np.abs(angles) <= largest) & ((ranks - ranks[middle]) % step == 0)
    chosen[middle] = True
    several = [tilt for tilt in order if chosen[tilt]]
    lost = set(several[: round(missing * len(several))])
    kept = tuple(tilt for tilt in range(len(angles)) if chosen[tilt] and tilt not in lost)
    return None if len(kept) == len(angles) else kept


def _bad(count: int, share: float, generator: np.random.Generator) -> tuple[BadTilt, ...]:
    """Draw which tilts of those that are used are bad, and what is wrong with each."""
    order, numbers = generator.permutation(count), generator.uniform(size=(count, 3))
    chosen = sorted(order[: round(share * count)].tolist())
    return tuple(BadTilt.drawn(tilt, numbers[tilt].tolist()) for tilt in chosen)
