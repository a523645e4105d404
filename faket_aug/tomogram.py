"""A simulated tomogram with all that is known about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from faket_aug.specimen import ParticleTable


@dataclass(frozen=True, kw_only=True)
class SimulationRecord:
    """What makes a simulated tomogram again: the address of its chance, and the simulator's settings.

    Parameters
    ----------
    seed, epoch, tomogram
        The address.
    specimen
        Name of the specimen.
    noise_seed
        Seed of the noise's generator.
    style_series
        Which series of the style bank; -1 where no style was used.
    settings
        The simulator's settings, as JSON types.
    versions
        Versions of the packages that made it.
    """

    seed: int
    epoch: int
    tomogram: int
    specimen: str
    noise_seed: int
    style_series: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write the record as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a record from the text of `to_json`, strictly."""
        data = json.loads(text)
        wanted = {entry.name for entry in fields(cls)}
        if not isinstance(data, dict) or set(data) != wanted:
            raise ValueError(f"expected a simulation record with {sorted(wanted)}, got {text[:80]!r}")
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class SimulatedTomogram:
    """A tomogram, its labels, and the tilt-series it was reconstructed from.

    Parameters
    ----------
    tiltseries
        `(tilt, y, x)`, float32, dark particles, in the style's unit; not binned.
    tilt_angles
        `(tilt,)`, degrees.
    tomogram
        `(z, y, x)`, float32, dark particles.
    labels
        `(z, y, x)`, uint8, class numbers, 0 is background.
    instances
        `(z, y, x)`, int32, 1-based rows of `particles`, or nothing where the specimen has none.
    particles
        The particle table; positions in voxels of the tomogram.
    class_names
        Names of the class numbers.
    voxel_size
        Å, of the tomogram.
    record
        What makes it again.
    """

    tiltseries: Tensor
    tilt_angles: npt.NDArray[np.float64]
    tomogram: Tensor
    labels: Tensor
    instances: Tensor | None
    particles: ParticleTable
    class_names: Mapping[int, str]
    voxel_size: float
    record: SimulationRecord
