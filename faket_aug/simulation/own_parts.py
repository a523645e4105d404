"""What a simulator of one's own must have, and how parts of one's own are told apart in records."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._identity import class_name, described
from faket_aug.microscope.noise import NoiseModel
from faket_aug.simulation.tomogram import Companions, SimulatedTomogram
from faket_aug.specimens.tilted import Specimen


class TomogramSimulator(Protocol):
    """What a dataset needs of a simulator; `FakETSimulator` is one.

    A simulator of your own need not derive from this class. The tomogram has to be the same, bit for bit, whenever it
    is called with the same specimen and numbers. For workers that are started by `spawn` it has to pickle. The
    `settings` of the tomogram's record have to tell it apart from simulators that make other tomograms:
    `SimulationRecord.of` and `SimulationRecord.told_by` take care of that. They tell its class and its settings, which
    are those that its method `settings()` returns, as JSON types, or else its attributes.

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


class TiltReconstruction(Protocol):
    """What a reconstruction of your own must have: a call. It need not derive from this class.

    The result has to be the same, bit for bit, whenever it is called with the same tilts. For workers that are started
    by `spawn` it has to pickle. Records tell it apart by its class and by its settings: those that its method
    `settings()` returns, as JSON types, or else its attributes. A function of a module serves, too, and is known by its
    name.
    """

    def __call__(self, tilts: Tensor, tilt_angles: FloatArray, *, depth: int, bin: int) -> Tensor:
        """Reconstruct a tomogram.

        Parameters
        ----------
        tilts
            `(tilt, y, x)`, float32, dark particles; after `ctf_correction`.
        tilt_angles
            `(tilt,)`, degrees, right-handed about +y. The axis of rotation goes through pixel `n // 2`.
        depth
            Voxels of the tomogram along z.
        bin
            Pixels of a tilt, along each axis, per voxel of the tomogram.

        Returns
        -------
        `(depth, y // bin, x // bin)`, float32, dark particles, on the tilts' device; the axis of rotation goes through
        voxel `n // 2`.
        """


def check_reconstruction(reconstruction: object) -> None:
    """Raise a `TypeError` unless an object has what `TiltReconstruction` says, and can be told apart; None is fine."""
    if reconstruction is None:
        return
    if not _takes(reconstruction, (None, None), {"depth": 1, "bin": 1}):
        raise TypeError(
            "expected a `reconstruction` with a call `(tilts, tilt_angles, *, depth, bin)`, got "
            f"{type(reconstruction).__name__} without; see `TiltReconstruction` for what it must have"
        )
    described(reconstruction)


def check_reconstructed(made: object, shape: Sequence[int], reconstruction: object) -> Tensor:
    """Return what a reconstruction of one's own has made; raise a `TypeError` or `ValueError` if it is no tomogram."""
    name = class_name(reconstruction)
    if not isinstance(made, Tensor) or not made.is_floating_point():
        found = made.dtype if isinstance(made, Tensor) else type(made).__name__
        raise TypeError(f"expected {name} to return a floating-point tensor, got {found}; see `TiltReconstruction`")
    if tuple(made.shape) != tuple(shape):
        raise ValueError(
            f"expected {name} to return a tomogram of {tuple(int(n) for n in shape)} voxels (z, y, x), the labels' "
            f"shape, got {tuple(made.shape)}"
        )
    return made


def check_noise(noise: NoiseModel | None) -> None:
    """Raise a `TypeError` unless a noise model of one's own samples as `NoiseModel.sample`, and can be told apart."""
    if noise is None or not own_class(noise):
        return
    if not _takes(noise.sample, (None, None, None), {"noise_scale": 1.0}):
        raise TypeError(
            f"expected {class_name(noise)} with a method `sample(clean, noise, tilt_angles, *, noise_scale=1.0)`, got "
            "other parameters; see `NoiseModel.sample`"
        )
    described(noise)


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
    if not _takes(simulator, (None,), {"seed": 0, "epoch": 0, "tomogram": 0} | more.asked()):
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
    """Raise a `TypeError` or `ValueError` unless a simulator of one's own has made a whole `SimulatedTomogram`."""
    if not isinstance(made, SimulatedTomogram):
        raise TypeError(
            f"expected {type(simulator).__name__} to return a `SimulatedTomogram`, got {type(made).__name__}; see "
            "`TomogramSimulator`"
        )
    if not own_class(simulator):
        return
    name, tomogram = class_name(simulator), made.tomogram
    if tuple(tomogram.shape) != tuple(made.labels.shape):
        raise ValueError(
            f"expected {name} to make a tomogram of {tuple(made.labels.shape)} voxels (z, y, x), the labels' shape, "
            f"got {tuple(tomogram.shape)}"
        )
    if not bool(torch.isfinite(tomogram).all()):
        raise ValueError(f"expected {name} to make a tomogram of finite numbers, got NaN or infinite ones")


def own_class(part: object) -> str:
    """Return the name by which records tell a part of a class of one's own apart; nothing for the package's classes."""
    within = type(part).__module__.partition(".")[0] == __name__.partition(".")[0]
    return "" if part is None or within else class_name(part)


def _takes(part: object, positional: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Tell whether an object can be called with these arguments."""
    if not callable(part) or isinstance(part, type):
        return False
    try:
        inspect.signature(part).bind(*positional, **named)
    except TypeError:
        return False
    except ValueError:
        # What is compiled may not tell.
        return True
    return True
