"""Find the pixels of tilts that no detector measured: borders of one value, and zeros among values far from 0.

A border is a connected region of exactly one value that touches the edge of its tilt, whether rows and columns, or the
corners that are left after another program's alignment. Chance makes such regions, too, where pixels have few different
values. So a border begins with a run along the edge that is longer than runs of this value, or of others, can be by
chance. It also has at least `LEAST` pixels. Its neighbours within `MARGIN` pixels are taken as interpolated from it.

Zeros within an image were not measured if they are few (`FEW`), and every other value of their tilt lies on the same
side of 0, and further from it than their standard deviation. So zeros among low counts, and among values around 0, are
measured.

A tilt of which less than `LEAST_LEFT` would remain is left as it is: clean projections, whose background is 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

#: Shortest run of one value along an edge that is taken as a border, pixels, and the chance of a longer one.
RUN, CHANCE = 8, 1e-6
#: Fewest pixels of a border.
LEAST = 32
#: Pixels this close to a border are left out with it.
MARGIN = 2
#: Least fraction of a tilt that has to remain.
LEAST_LEFT = 0.3
#: If more pixels than this have a border's value by chance, only what holds a square of `SOLID` pixels belongs to it.
COMMON, SOLID = 0.01, 5
#: Of what is left beside borders, zeros are at most this fraction: more of them are counts.
FEW = 0.05

Image = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def measured_pixels(tilts: Tensor) -> Tensor | None:
    """Find out which pixels of tilts `(tilt, y, x)` were measured.

    Returns
    -------
    `(tilt, y, x)`, bool, or None if all were.
    """
    found: Tensor | None = None
    for index, tilt in enumerate(tilts):
        missing = _missing(tilt.cpu().numpy())
        if missing is None or 1 - missing.mean() < LEAST_LEFT:
            continue
        if found is None:
            found = torch.ones(tilts.shape, dtype=torch.bool, device="cpu")
        found[index] = torch.from_numpy(~missing)
    return found


def _missing(image: Image) -> Mask | None:
    border = _border(image)
    zeros = _zeros(image, border)
    if border is None or zeros is None:
        return border if zeros is None else zeros
    return border | zeros


def _border(image: Image) -> Mask | None:
    """The regions of one value at the edges, with their margin."""
    runs: dict[float, int] = {}
    for line in (image[0], image[-1], image[:, 0], image[:, -1]):
        for start, stop in _runs(line):
            value = float(line[start])
            runs[value] = max(runs.get(value, 0), stop - start)
    found: Mask | None = None
    for value, longest in runs.items():
        region = _region(image, value, longest)
        if region is not None:
            found = region if found is None else found | region
    return None if found is None else ndimage.binary_dilation(found, np.ones((3, 3), bool), iterations=MARGIN)


def _runs(line: Image) -> list[tuple[int, int]]:
    """Where along a line the same value comes `RUN` times and more: (first, last + 1)."""
    ends = np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1], [True]]))
    long = np.flatnonzero(np.diff(ends) >= min(RUN, len(line)))
    return [(int(ends[one]), int(ends[one + 1])) for one in long]


def _region(image: Image, value: float, longest: int) -> Mask | None:
    """What belongs to a border of a value, of which so many pixels follow each other at most."""
    same: Mask = image == value
    if same.all():
        return None
    common, shortest = _by_chance(image, same)
    if longest < shortest:
        return None
    if common > COMMON:
        # Beyond the edge all counts as border, so that a narrow one is solid, too.
        padded = np.pad(same, SOLID, mode="edge")
        solid: Mask = ndimage.binary_opening(padded, np.ones((SOLID, SOLID), bool))
        same = solid[SOLID:-SOLID, SOLID:-SOLID] & same
    seeds = np.zeros_like(same)
    for place in ((0, slice(None)), (-1, slice(None)), (slice(None), 0), (slice(None), -1)):
        line: Any = place
        for start, stop in _runs(np.where(same[line], 1, np.arange(same[line].size) + 2)):
            if stop - start >= shortest:
                seeds[line][start:stop] = True
    region: Mask = ndimage.binary_propagation(seeds, mask=same)
    return region if region.sum() >= LEAST else None


def _by_chance(image: Image, same: Mask) -> tuple[float, float]:
    """How many pixels have this value by chance, and the length of a run which chance does not make."""
    height, width = image.shape
    middle = same[height // 4 : height - height // 4, width // 4 : width - width // 4]
    common = float(middle.mean())
    # How often another value comes twice: in a smooth image of whole numbers neighbours are alike.
    others = ~same[:, :-1]
    alike = float((image[:, 1:] == image[:, :-1])[others].mean()) if others.any() else 0.0
    likely = min(max(common, alike, 1e-9), 1 - 1e-9)
    return common, max(float(min(RUN, *image.shape)), math.log(CHANCE / image.size) / math.log(likely))


def _zeros(image: Image, border: Mask | None) -> Mask | None:
    """Zeros among values that are all far from 0, on the same side."""
    zero: Mask = image == 0
    if not zero.any():
        return None
    others, inner = image[~zero], zero if border is None else zero[~border]
    if not others.size or not inner.any() or inner.mean() > FEW or float(others.min()) < 0 < float(others.max()):
        return None
    nearest = float(np.abs(others).min())
    return zero if nearest > float(others.std(dtype=np.float64)) else None
