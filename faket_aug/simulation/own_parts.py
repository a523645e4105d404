"""What a simulator of one's own must have, and how parts of one's own are told apart in records."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from faket_aug.simulation.tomogram import Companions, SimulatedTomogram
from faket_aug.specimens.tilted import Specimen


class TomogramSimulator(Protocol):
    """What a dataset needs of a simulator; `FakETSimulator` is one.

    A simulator of your own need not derive from this class. The tomogram has to be the same, bit for bit, whenever it
    is called with the same specimen and numbers. For workers that are started by `spawn` it has to pickle. The
    `settings` of the tomogram's record have to tell it apart from simulators that make other tomograms.

    A dataset with `halves`, with `"clean"` among its targets, or with `flavours` also gives these arguments:
    `halves="tilts"` (or `"exposures"`), `clean=True`, `flavours=(...)`. For others a call without them is enough.
    """

    @property
    def device(self) -> str:
        """Where it computes, such as `"cpu"`."""

    @property
    def threads(self) -> int:
        """How many intra-op threads it uses. In forked workers it has to be 1."""

    def __call__(self, specimen: Specimen, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulatedTomogram:
        """Make the tomogram of a specimen. All random numbers are drawn from `(seed, epoch, tomogram)`."""


def check_simulator(simulator: object, companions: Companions | None = None) -> None:
    """Raise a `TypeError` unless an object has what `TomogramSimulator` says, and takes what it is asked for.

    Raises
    ------
    ValueError
        If a simulator of the package cannot make these companions.
    """
    more = Companions() if companions is None else companions
    missing = [
        f"`{name}`, {what}"
        for name, kind, what in (("device", str, "a string"), ("threads", int, "a whole number"))
        if not isinstance(getattr(simulator, name, None), kind)
    ]
    if not _is_called_as_said(simulator, more.asked()):
        named = "".join(f", {name}=..." for name in more.asked())
        missing.append(f"a call `(specimen, *, seed, epoch=0, tomogram=0{named})`")
    if missing:
        raise TypeError(
            f"expected a simulator with {' and '.join(missing)}, got {type(simulator).__name__} without; see "
            "`TomogramSimulator` for what a simulator must have"
        )
    check = getattr(simulator, "check_companions", None)
    if more and check is not None:
        check(more)


def check_made(made: object, simulator: object) -> None:
    """Raise a `TypeError` unless a simulator of one's own has made a `SimulatedTomogram`."""
    if not isinstance(made, SimulatedTomogram):
        raise TypeError(
            f"expected {type(simulator).__name__} to return a `SimulatedTomogram`, got {type(made).__name__}; see "
            "`TomogramSimulator`"
        )


def own_class(part: object) -> str:
    """Return the name by which records tell a part of a class of one's own apart; nothing for the package's classes."""
    kind = type(part)
    within = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    return "" if part is None or within else f"{kind.__module__}.{kind.__qualname__}"


def _is_called_as_said(simulator: object, asked: Mapping[str, Any]) -> bool:
    if not callable(simulator) or isinstance(simulator, type):
        return False
    try:
        inspect.signature(simulator).bind(None, seed=0, epoch=0, tomogram=0, **asked)
    except TypeError:
        return False
    except ValueError:
        # What is compiled may not tell.
        return True
    return True
