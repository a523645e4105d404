"""Bad tilts: images of a tilt-series that went wrong, and were not taken out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from faket_aug._checks import check_count, check_fraction, check_ndim, check_positive, is_number
from faket_aug.microscope.misalignment import misalign
from faket_aug.tomography.filters import PaddedGrid

#: A tilt that is hidden keeps up to this share of its signal.
_LEFT = 0.3
#: Å, the least and the largest way of a tilt that was tracked wrongly, and of a specimen that moved.
_LOST, _MOVED = (100.0, 400.0), (40.0, 160.0)


@dataclass(frozen=True, kw_only=True)
class BadTilt:
    """What went wrong in one tilt. Its noise stays as it is.

    Parameters
    ----------
    tilt
        Its number, from 0, in the order of the simulator's `tilt_angles`.
    signal
        Share of the signal that is left, within [0, 1]: a bar of the grid or thick ice hides the rest.
    shift
        (y, x), Å: the tilt was tracked or aligned wrongly, so that all of it lies elsewhere.
    motion
        (y, x), Å: the specimen moved so far, evenly, during the exposure.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    tilt: int
    signal: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    motion: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        check_count("tilt", self.tilt, zero=True)
        check_fraction("signal", self.signal)
        # Numbers of NumPy would not fit JSON.
        object.__setattr__(self, "tilt", int(self.tilt))
        object.__setattr__(self, "signal", float(self.signal))
        for name in ("shift", "motion"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(is_number, value)):
                raise ValueError(f"expected `{name}` to be a pair of numbers (y, x) in Å, got {value!r}")
            object.__setattr__(self, name, tuple(float(one) for one in value))

    @classmethod
    def drawn(cls, tilt: int, numbers: Sequence[float]) -> Self:
        """Draw what is wrong with a tilt: it is hidden, elsewhere, or moved, each in a third of the cases.

        Parameters
        ----------
        tilt
            Its number.
        numbers
            Three in [0, 1): the kind, how much, and the direction.
        """
        kind, much, direction = numbers
        if kind < 1 / 3:
            return cls(tilt=tilt, signal=_LEFT * much)
        least, most = _LOST if kind < 2 / 3 else _MOVED
        length, angle = least + (most - least) * much, 2 * math.pi * direction
        way = (length * math.sin(angle), length * math.cos(angle))
        return cls(tilt=tilt, shift=way) if kind < 2 / 3 else cls(tilt=tilt, motion=way)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as JSON types."""
        return asdict(self) | {"shift": list(self.shift), "motion": list(self.motion)}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Make a bad tilt from the result of `to_dict`, also after a trip through JSON.

        Raises
        ------
        ValueError
            If it is something else.
        """
        if not isinstance(data, Mapping) or set(data) != {"tilt", "signal", "shift", "motion"}:
            raise ValueError(f"expected a bad tilt with tilt, signal, shift and motion, got {data!r:.200}")
        return cls(**data)


def spoil(images: Tensor, bad: Sequence[BadTilt], pixel_size: float) -> Tensor:
    """Spoil the signal of bad tilts.

    Parameters
    ----------
    images
        `(tilt, y, x)`, floating point, clean tilts.
    bad
        What is wrong with which tilts.
    pixel_size
        Å.

    Returns
    -------
    `(tilt, y, x)` in the images' dtype: the same tensor if no tilt is bad, else a copy. Beyond an edge, the nearest
    pixel is repeated.

    Raises
    ------
    ValueError
        If there is no tilt of a number, or the pixel size is not positive.
    """
    check_ndim("images", images, "tilt y x")
    if not bad:
        return images
    check_positive("pixel_size", pixel_size)
    spoilt = images.clone()
    for one in bad:
        if one.tilt >= len(images):
            raise ValueError(f"expected the number of a bad tilt to be below {len(images)}, got {one.tilt}")
        spoilt[one.tilt] = _spoilt(images[one.tilt], one, pixel_size)
    return spoilt


def _spoilt(image: Tensor, bad: BadTilt, pixel_size: float) -> Tensor:
    """Shift one image `(y, x)`, smear it along the way that the specimen moved, and fade it towards its mean."""
    image = misalign(image[None], ((*bad.shift, 0.0, 0.0),), pixel_size)[0]
    if any(bad.motion):
        y, x = (way / pixel_size for way in bad.motion)
        grid = PaddedGrid((image.shape[0], image.shape[1]), math.ceil(math.hypot(y, x)), image.device)
        # Cycles per pixel along the way; `sinc` is the transform of a line.
        along = grid.radius * (y * torch.sin(grid.direction) + x * torch.cos(grid.direction))
        image = grid.filtered(image, torch.sinc(along))
    mean = image.mean()
    return image if bad.signal == 1 else mean + bad.signal * (image - mean)
