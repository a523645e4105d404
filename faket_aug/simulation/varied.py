"""A simulator whose settings are drawn for each tomogram: mixtures of simulators, and how epochs change them.

A picker learns one simulator by heart. What it learns from varied ones carries over to measured tomograms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, Self, TypeVar

import numpy as np

from faket_aug._checks import check_count, is_number
from faket_aug._random import numpy_generator
from faket_aug.simulation.drawn_settings import DRAWN, DrawnSettings
from faket_aug.simulation.own_parts import TomogramSimulator, check_made, check_simulator
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.simulation.tomogram import Companions, SimulatedTomogram, SimulationRecord
from faket_aug.simulation.variation import STANDARD, Variation, between
from faket_aug.specimens.tilted import Specimen, TiltedSpecimen
from faket_aug.tomography.plane_map import geometry_cache

T = TypeVar("T")
#: How one simulator varies: the word for what suits it, the one for nothing, or ranges.
VariationOfOne = Literal["standard", "none"] | Variation
_NONE = "none"
#: The same for all epochs, or by epoch.
ScheduledVariation = VariationOfOne | Mapping[int, VariationOfOne]
ScheduledWeight = float | Mapping[int, float]


class VariedSimulator:
    """A simulator whose settings are drawn for each tomogram, from its address.

    It serves wherever a `FakETSimulator` does. The record of a tomogram tells what was drawn (`settings["drawn"]`).

    Parameters
    ----------
    simulators
        A simulator, or several: one of them is drawn for each tomogram. Those of your own (`TomogramSimulator`) may be
        among them. Nothing of theirs is varied, and a record of theirs is made again by the same call.
    variation
        How settings vary: `"standard"` (see `Variation.standard`), `"none"`, a `Variation` of all simulators, or a
        sequence with one of these for each simulator. For a curriculum give a mapping from an epoch to one of these,
        for all simulators or within the sequence. Between two of its epochs numbers change linearly; before the first
        and after the last one they are constant.
    weights
        How often each simulator is drawn, in proportion; equally by default. For a curriculum a mapping from an epoch
        to these, or a sequence with a number or a mapping from an epoch to a number for each simulator. Between two
        epochs that are named the shares change linearly.

    Raises
    ------
    ValueError
        If a simulator lacks what varies, simulators differ in `device` or `threads`, or numbers of variations, weights
        and simulators differ.
    TypeError
        If a simulator lacks what `TomogramSimulator` says.
    """

    def __init__(
        self,
        simulators: TomogramSimulator | Sequence[TomogramSimulator],
        variation: Any = STANDARD,
        *,
        weights: Sequence[ScheduledWeight] | Mapping[int, Sequence[float]] | None = None,
    ) -> None:
        self.simulators: tuple[TomogramSimulator, ...] = (
            tuple(simulators) if isinstance(simulators, Iterable) else (simulators,)
        )
        if not self.simulators:
            raise ValueError("expected at least one simulator, got none")
        for one in self.simulators:
            check_simulator(one)
            if isinstance(one, VariedSimulator):
                raise TypeError("expected simulators of a mixture that are not varied themselves, got one that is")
        for name in ("device", "threads"):
            values = sorted({str(getattr(one, name)) for one in self.simulators})
            if len(values) > 1:
                raise ValueError(f"expected simulators with the same `{name}`, got {', '.join(values)}")
        #: By epoch, one for each simulator.
        self._variations = self._schedules(variation)
        given = (1.0,) * len(self.simulators) if weights is None else weights
        self._weights = {epoch: self._shares(of) for epoch, of in _weights_by_epoch(given).items()}

    def _schedules(self, given: Any) -> tuple[dict[int, Variation], ...]:
        """Return the variation of each simulator by epoch."""
        if isinstance(given, Mapping):
            by_epoch = {epoch: self._one_each(of) for epoch, of in _by_epoch("variation", given).items()}
            return tuple({epoch: of[i] for epoch, of in by_epoch.items()} for i in range(len(self.simulators)))
        return tuple(
            {epoch: self._checked(of, number) for epoch, of in _by_epoch("variation", one).items()}
            for number, one in enumerate(self._several(given))
        )

    def _several(self, given: Any) -> tuple[Any, ...]:
        several = tuple(given) if isinstance(given, list | tuple) else (given,) * len(self.simulators)
        if len(several) != len(self.simulators):
            raise ValueError(
                f"expected one `variation` for each of {len(self.simulators)} simulators, got {len(several)}"
            )
        return several

    def _one_each(self, given: Any) -> tuple[Variation, ...]:
        return tuple(self._checked(one, number) for number, one in enumerate(self._several(given)))

    def _checked(self, given: Any, number: int) -> Variation:
        """Return the variation of a simulator; the message says of which of several it is."""
        try:
            return _checked(given, self.simulators[number])
        except ValueError as error:
            raise (ValueError(f"mixture[{number}]: {error}") if len(self.simulators) > 1 else error) from None

    def _shares(self, given: Sequence[float]) -> tuple[float, ...]:
        found = np.ravel(given).tolist()
        fits = len(found) == len(self.simulators) and all(is_number(one) and one >= 0 for one in found)
        if not fits:
            raise ValueError(
                f"expected `weights` of 0 or more for each of {len(self.simulators)} simulators, got {given!r}"
            )
        if not any(found):
            raise ValueError(f"expected `weights` of which one at least is more than 0 in every epoch, got {given!r}")
        return tuple(one / sum(found) for one in found)

    @property
    def device(self) -> str:
        """The device of all simulators."""
        return self.simulators[0].device

    @property
    def threads(self) -> int:
        """The intra-op threads of all simulators."""
        return self.simulators[0].threads

    @property
    def last_epoch(self) -> int:
        """The last epoch that is named in a schedule, after which nothing changes; 0 without any."""
        return max(*self._weights, *(epoch for schedule in self._variations for epoch in schedule))

    @property
    def draws_flavours(self) -> bool:
        """Whether the flavour of a tomogram is drawn, in any epoch."""
        return any(of.flavour for schedule in self._variations for of in schedule.values())

    def with_settings(self, **changes: Any) -> Self:
        """Return the same with other settings of its simulators, such as `modality`; what is drawn stays.

        Simulators of your own stay as they are.

        Parameters
        ----------
        **changes
            Settings of `FakETSimulator`.
        """
        changed = [replace(one, **changes) if isinstance(one, FakETSimulator) else one for one in self.simulators]
        return type(self)(changed, self._variations, weights=self._weights)

    def variations_at(self, epoch: int) -> tuple[tuple[Variation, ...], tuple[float, ...]]:
        """Return the variation of each simulator in an epoch, and how often each simulator is drawn (a share)."""
        around = [_around(schedule, epoch) for schedule in self._variations]
        variations = tuple(first.towards(second, share) for first, second, share in around)
        return variations, between(*_around(self._weights, epoch))

    def drawn(self, specimen: Specimen, *, seed: int, epoch: int = 0, tomogram: int = 0) -> DrawnSettings:
        """Draw the settings of a tomogram from its address. A specimen that comes as tilts keeps all of them."""
        generator = numpy_generator(seed, "variation", epoch=epoch, tomogram=tomogram)
        variations, weights = self.variations_at(epoch)
        number = int(np.searchsorted(np.cumsum(weights), generator.uniform() * sum(weights), side="right"))
        number = min(number, len(weights) - 1)
        simulator = self.simulators[number]
        if not isinstance(simulator, FakETSimulator):
            return DrawnSettings(simulator=number)
        given = isinstance(specimen, TiltedSpecimen)
        return variations[number].drawn(simulator, generator, number=number, all_tilts=given)

    def draw(self, specimen: Specimen, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulationRecord:
        """Draw all random parameters of a simulation from its address, see `FakETSimulator.draw`."""
        drawn = self.drawn(specimen, seed=seed, epoch=epoch, tomogram=tomogram)
        simulator = self.simulators[drawn.simulator]
        address = {"seed": seed, "epoch": epoch, "tomogram": tomogram}
        if not isinstance(simulator, FakETSimulator):
            # Only its call tells its record.
            return _made_by(simulator, specimen, drawn, address, Companions()).record
        return _told(drawn.applied(simulator).draw(specimen, **address), drawn)

    def __call__(
        self,
        specimen: Specimen,
        *,
        seed: int,
        epoch: int = 0,
        tomogram: int = 0,
        halves: str | None = None,
        clean: bool = False,
        flavours: Sequence[str] = (),
    ) -> SimulatedTomogram:
        """Simulate a specimen with settings that are drawn for it, see `FakETSimulator.__call__`."""
        address = {"seed": seed, "epoch": epoch, "tomogram": tomogram}
        drawn = self.drawn(specimen, **address)
        simulator = self.simulators[drawn.simulator]
        if isinstance(simulator, FakETSimulator):
            record = _told(drawn.applied(simulator).draw(specimen, **address), drawn)
            return self.simulate(specimen, record, halves=halves, clean=clean, flavours=flavours)
        more = Companions(halves=halves, clean=clean, flavours=flavours)
        self._check_each(more)
        return _made_by(simulator, specimen, drawn, address, more)

    def check_companions(self, more: Companions) -> None:
        """Raise a `ValueError` if one of the simulators cannot make halves, a clean tomogram, or flavours."""
        self._check_each(more)
        if more.halves == "tilts" and any(
            one.fewest_tilts(simulator) < 2
            for schedule, simulator in zip(self._variations, self.simulators, strict=True)
            if isinstance(simulator, FakETSimulator)
            for one in schedule.values()
        ):
            raise ValueError(
                'expected a `variation` that leaves two tilts or more for `halves="tilts"`, got one whose '
                '`tilt_range`, `tilt_step` or `missing` may leave one; narrow it, or set `halves` to "exposures"'
            )

    def _check_each(self, more: Companions) -> None:
        for simulator in self.simulators:
            check_simulator(simulator, more)

    def simulate(
        self,
        specimen: Specimen,
        record: SimulationRecord,
        *,
        halves: str | None = None,
        clean: bool = False,
        flavours: Sequence[str] = (),
    ) -> SimulatedTomogram:
        """Make the tomogram of a record, or make it again, see `FakETSimulator.simulate`.

        Only the simulators must be those that the record was drawn with, not variation and weights. Where white noise
        was drawn in place of a response, there is no contrast transfer function: flavours that need one are then raw.
        """
        more = Companions(halves=halves, clean=clean, flavours=flavours)
        self._check_each(more)
        drawn = DrawnSettings.from_dict(record.settings.get(DRAWN))
        if not drawn.simulator < len(self.simulators):
            raise ValueError(
                f"expected a record of one of {len(self.simulators)} simulators, got one of number {drawn.simulator}"
            )
        simulator = self.simulators[drawn.simulator]
        if not isinstance(simulator, FakETSimulator):
            address = {"seed": record.seed, "epoch": record.epoch, "tomogram": record.tomogram}
            made = _made_by(simulator, specimen, drawn, address, more)
            if made.record.settings != dict(record.settings):
                raise ValueError(f"expected a record with the settings of {type(simulator).__name__}, got others")
            return made
        simulator = drawn.applied(simulator)
        # Flavours that white noise cannot have are raw.
        simulator.check_companions(replace(more, flavours=()))
        # A choice of tilts hardly comes again: its geometry is not kept.
        with nullcontext() if drawn.tilts is None else geometry_cache.unchanged():
            return simulator.make(specimen, record, more)


#: A simulator of the package.
Simulator = FakETSimulator | VariedSimulator


def _made_by(
    simulator: TomogramSimulator,
    specimen: Specimen,
    drawn: DrawnSettings,
    address: Mapping[str, int],
    more: Companions,
) -> SimulatedTomogram:
    """Let a simulator of one's own make a tomogram."""
    made = simulator(specimen, **address, **more.asked())
    check_made(made, simulator)
    return replace(made, record=_told(made.record, drawn))


def _told(record: SimulationRecord, drawn: DrawnSettings) -> SimulationRecord:
    """Write into a record what was drawn; a simulator of one's own may have drawn settings of one within it."""
    settings = dict(record.settings)
    inner = {f"inner_{DRAWN}": settings[DRAWN]} if DRAWN in settings else {}
    return replace(record, settings=settings | inner | {DRAWN: drawn.to_dict()})


def _checked(given: Any, simulator: TomogramSimulator) -> Variation:
    if given is None or given == _NONE:
        given = Variation()
    if given != STANDARD and not isinstance(given, Variation):
        raise ValueError(f'expected `variation` to be "{STANDARD}" or a `Variation`, or "{_NONE}", got {given!r}')
    if not isinstance(simulator, FakETSimulator):
        if given not in (STANDARD, Variation()):
            raise ValueError(
                f"expected no ranges for {type(simulator).__name__}, a simulator of your own, got {given!r:.200}; set "
                f'its `variation` to "{STANDARD}" or "{_NONE}", with which nothing of it varies'
            )
        return Variation()
    made: Variation = Variation.standard(simulator) if given == STANDARD else given
    made.check(simulator)
    return made


def _weights_by_epoch(given: Any) -> dict[int, Any]:
    """Return the weights of all simulators by epoch, also where each has a schedule of its own."""
    if not isinstance(given, list | tuple) or not any(isinstance(one, Mapping) for one in given):
        return _by_epoch("weights", given)
    schedules = [_by_epoch("weights", one) for one in given]
    epochs = sorted(set().union(*schedules))
    return {epoch: [_number_at(schedule, epoch) for schedule in schedules] for epoch in epochs}


def _number_at(schedule: Mapping[int, float], epoch: int) -> float:
    first, second, share = _around(schedule, epoch)
    if not (is_number(first) and is_number(second)):
        raise ValueError(f"expected `weights` of 0 or more by epoch, got {dict(schedule)!r}")
    return float(between((first,), (second,), share)[0])


def mixture_of(
    simulators: Sequence[FakETSimulator],
    variations: Sequence[ScheduledVariation | None],
    weights: Sequence[ScheduledWeight],
) -> Simulator:
    """Make one simulator of several; the only one itself, if nothing varies.

    Parameters
    ----------
    simulators
        One or more.
    variations, weights
        Of each, see `VariedSimulator`; None where nothing varies.
    """
    if len(simulators) == 1 and variations[0] is None:
        return simulators[0]
    given = [Variation() if one is None else one for one in variations]
    return VariedSimulator(simulators, given, weights=weights)


def _by_epoch(name: str, given: Any) -> dict[int, Any]:
    if not isinstance(given, Mapping):
        return {0: given}
    if not given:
        raise ValueError(f"expected `{name}` of at least one epoch, got none")
    for epoch in given:
        check_count(f"{name}: epoch", epoch, zero=True)
    return dict(sorted(given.items()))


def _around(schedule: Mapping[int, T], epoch: int) -> tuple[T, T, float]:
    """Return the entries of a schedule before and after an epoch, and where between them the epoch lies, in [0, 1]."""
    before = max((one for one in schedule if one <= epoch), default=min(schedule))
    after = min((one for one in schedule if one > epoch), default=before)
    share = 0.0 if after == before or epoch < before else (epoch - before) / (after - before)
    return schedule[before], schedule[after], share
