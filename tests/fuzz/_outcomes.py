"""What reading a damaged file comes to: the same data, other but possible data, a clear error, or something wrong."""

from __future__ import annotations

import hashlib
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch

from faket_aug import CacheError, FileFormatError, SimulationError, WeightsError

#: Errors of this package's own; a plain `ValueError` or `OSError` must say "expected ...", as all of ours do.
OWN = (FileFormatError, CacheError, WeightsError, SimulationError)
SECONDS = 20
MAX_ANGLE, MAX_COORDINATE, MAX_EXPOSURE = 180.0, 1e7, 1e5


class Hang(Exception):
    """Reading took too long."""


@dataclass
class Counts:
    """How often what came of a reader's damaged files."""

    same: int = 0
    other: int = 0
    errors: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """All of them."""
        return self.same + self.other + self.errors + len(self.wrong)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `Hang` in the body after some seconds."""

    def stop(_number: int, _frame: object) -> None:
        raise Hang(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def digest(thing: Any) -> str:
    """Hash what was read, but for where it was read from."""
    found = hashlib.sha256()
    for value in _leaves(thing):
        if isinstance(value, torch.Tensor):
            value = (
                value.detach().cpu().float().numpy() if value.dtype == torch.bfloat16 else value.detach().cpu().numpy()
            )
        if isinstance(value, np.ndarray) and value.dtype != object:
            found.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


def _leaves(thing: Any) -> Iterator[Any]:
    if is_dataclass(thing) and not isinstance(thing, type):
        for one in fields(thing):
            if one.name not in ("source", "name"):
                yield one.name
                yield from _leaves(getattr(thing, one.name))
    elif isinstance(thing, Mapping):
        # Names have no order.
        for key in sorted(thing, key=repr):
            yield key
            yield from _leaves(thing[key])
    elif isinstance(thing, list | tuple | set | frozenset):
        for one in thing:
            yield from _leaves(one)
    else:
        yield thing


def implausible(thing: Any) -> str | None:
    """Name what cannot be in what was read; nothing where all of it can."""
    if is_dataclass(thing) and not isinstance(thing, type):
        for one in fields(thing):
            value = getattr(thing, one.name)
            bound = _bound(one.name)
            if bound is not None and value is not None:
                values = np.asarray(value, dtype=np.float64)
                finite = values[np.isfinite(values)]
                if np.isinf(values).any() or (np.abs(finite) > bound).any():
                    return f"{one.name} of {np.abs(values).max():g}"
            found = implausible(value)
            if found:
                return found
    elif isinstance(thing, Mapping):
        return next((found for one in thing.values() if (found := implausible(one))), None)
    elif isinstance(thing, list | tuple):
        return next((found for one in thing if (found := implausible(one))), None)
    return None


def _bound(name: str) -> float | None:
    if name in ("tilt_angles", "axis_angle", "astigmatism_angle", "x_tilts"):
        return 2 * MAX_ANGLE if name == "axis_angle" else MAX_ANGLE
    if name in ("positions", "shifts"):
        return MAX_COORDINATE
    if name == "exposure":
        return MAX_EXPOSURE
    return None


def judge(read: Callable[[], Any], name: str, whole: str, counts: Counts, what: str, *, checksum: bool) -> None:
    """Read a damaged file, and count what came of it.

    Parameters
    ----------
    read
        Reads it.
    name
        What an error must hold: the file's name.
    whole
        Digest of what the whole file holds.
    counts
        Where it is counted.
    what
        Which damage, for messages.
    checksum
        Whether the file tells damage from other content: nothing else than the whole data may come of it.
    """
    try:
        with warnings.catch_warnings(), within(SECONDS):
            warnings.simplefilter("ignore")
            got = read()
    except (*OWN, ValueError, OSError, ImportError) as error:
        text = str(error)
        clear = isinstance(error, OWN) or "expected" in text
        if clear and name in text and len(text) < 3000:
            counts.errors += 1
        else:
            counts.wrong.append(f"{what}: {type(error).__name__}: {text[:300]!r}")
    except Exception as error:
        counts.wrong.append(f"{what}: {type(error).__name__}: {str(error)[:300]!r}")
    else:
        bad = implausible(got)
        if bad:
            counts.wrong.append(f"{what}: accepted {bad}")
        elif digest(got) == whole:
            counts.same += 1
        elif checksum:
            counts.wrong.append(f"{what}: read as other data")
        else:
            counts.other += 1


def summary(table: Mapping[str, Counts]) -> str:
    """Write the counts as a Markdown table."""
    rows = [
        f"| {name} | {c.tried} | {c.same} | {c.other} | {c.errors} | {len(c.wrong)} |"
        for name, c in sorted(table.items())
    ]
    total: Counter[str] = Counter()
    for c in table.values():
        total.update({"tried": c.tried, "same": c.same, "other": c.other, "errors": c.errors, "wrong": len(c.wrong)})
    last = f"| all | {total['tried']} | {total['same']} | {total['other']} | {total['errors']} | {total['wrong']} |"
    return "\n".join(
        [
            "| reader | tried | same data | other, possible data | clear error | wrong |",
            "|---|---|---|---|---|---|",
            *rows,
            last,
            "",
        ]
    )
