"""Settings of the particles and gold beads of a specimen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from faket_aug._checks import check_choice, check_count, check_positive
from faket_aug.generation.ranges import Range, as_count, as_range
from faket_aug.generation.templates import ParticleTemplate

SIDES = ("outside", "inside")
_PER_UM3_AND_MOLAR = 6.02214076e23 * 1e-15
_FIDUCIAL_SIZES = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class ParticleSpecies:
    """Particles of one kind.

    Parameters
    ----------
    templates
        A template, or several (conformations, maps), one of which is chosen at random for each particle.
    count
        Number of particles in each specimen: a number, or (lowest, highest).
    concentration_per_um3
        Instead of `count`: particles per µm³ of ice, rounded to a whole number for each specimen.
    concentration_molar
        Instead of `count`: particles in mol per litre of ice.
    name
        Name of the class; by default that of the first template. Species with the same name share a class.
    label
        Whether the particles are labelled, and have rows in the particle table. Without labels they are distractors.
    cluster_size, cluster_radius
        Number of particles in a cluster, and the radius of the cluster in Å, where there is room.
    membrane_bound
        Whether the particles are placed on membranes, with the template's z axis along the normal.
    membrane_offset
        Distance along the normal, Å, from the middle of the bilayer to the template's centre. With 0 the particle spans
        the membrane, which is removed there. By default the lowest voxel of the mask lies on the membrane's surface.
    membrane_side
        `"outside"`: the template's z axis points out of vesicles; `"inside"`: into them.

    Raises
    ------
    ValueError
        For settings that are not possible.
    """

    templates: ParticleTemplate | Sequence[ParticleTemplate] = field(repr=False)
    count: int | tuple[int, int] | None = None
    concentration_per_um3: float | None = None
    concentration_molar: float | None = None
    name: str | None = None
    label: bool = True
    cluster_size: int = 1
    cluster_radius: float = 400.0
    membrane_bound: bool = False
    membrane_offset: float | None = None
    membrane_side: str = "outside"
    #: Voxels of a particle, the mean over templates, rotations and positions.
    mask_voxels: float = field(init=False)

    def __post_init__(self) -> None:
        templates = (self.templates,) if isinstance(self.templates, ParticleTemplate) else tuple(self.templates)
        if not templates:
            raise ValueError("expected at least one template in `templates`, got none")
        object.__setattr__(self, "templates", templates)
        volumes = [_volume(template.density.cpu().numpy(), template.threshold) for template in templates]
        object.__setattr__(self, "mask_voxels", float(np.mean(volumes)))
        given = [self.count, self.concentration_per_um3, self.concentration_molar]
        if sum(value is not None for value in given) > 1:
            raise ValueError(
                f"{self.class_name}: expected one of `count`, `concentration_per_um3` and `concentration_molar`, got "
                f"{sum(value is not None for value in given)}"
            )
        if self.count is not None:
            as_count("count", self.count)
        check_positive("concentration_per_um3", self.concentration_per_um3 or 0.0, zero=True)
        check_positive("concentration_molar", self.concentration_molar or 0.0, zero=True)
        check_count("cluster_size", self.cluster_size)
        check_positive("cluster_radius", self.cluster_radius)
        check_choice("membrane_side", self.membrane_side, SIDES)
        if self.membrane_bound and self.cluster_size > 1:
            raise ValueError(f"{self.class_name}: expected `cluster_size` 1 of membrane-bound particles")

    @property
    def class_name(self) -> str:
        """The name of its class."""
        return self.templates_at(0.0)[0].name if self.name is None else self.name

    @property
    def is_counted(self) -> bool:
        """Whether the number of particles is given."""
        return (self.count, self.concentration_per_um3, self.concentration_molar) != (None, None, None)

    def scaled(self, factor: float) -> Self:
        """Return a species with so many times as many particles, by its count or its concentration."""
        if self.count is not None:
            low, high = (round(number * factor) for number in as_count("count", self.count))
            return replace(self, count=(low, high))
        if self.concentration_molar is not None:
            return replace(self, concentration_molar=self.concentration_molar * factor)
        if self.concentration_per_um3 is not None:
            return replace(self, concentration_per_um3=self.concentration_per_um3 * factor)
        raise ValueError(f"{self.class_name}: expected a count or a concentration to scale, got none; set `count`")

    def templates_at(self, voxel_size: float) -> tuple[ParticleTemplate, ...]:
        """Return its templates; they keep their own voxel size."""
        assert isinstance(self.templates, tuple), "made so in __post_init__"
        return self.templates

    def expected(self, volume_um3: float, generator: np.random.Generator | None = None) -> float:
        """Return the number of particles in a volume of ice; without a generator, the highest of a range."""
        if self.count is not None:
            low, high = as_count("count", self.count)
            return float(high if generator is None else generator.integers(low, high + 1))
        if self.concentration_molar is not None:
            return self.concentration_molar * _PER_UM3_AND_MOLAR * volume_um3
        return 1.0 if self.concentration_per_um3 is None else self.concentration_per_um3 * volume_um3


def _volume(density: npt.NDArray[np.float32], threshold: float) -> float:
    """Measure a mask's volume, in voxels, on a grid twice as fine: the template's voxels are too coarse for it."""
    for axis in range(3):
        a, b = np.delete(density, -1, axis), np.delete(density, 0, axis)
        density = np.insert(density, np.arange(1, density.shape[axis]), (a + b) / 2, axis)
    return float((density > threshold).sum()) / 8


@dataclass(frozen=True, kw_only=True)
class FiducialSpecies:
    """Gold beads of one kind.

    Parameters
    ----------
    count
        Number of beads in each specimen: a number, or (lowest, highest).
    radius
        Å: a number, or (lowest, highest), of which five sizes are made.
    density
        Volts above ice; the mean inner potential of gold is about 25 V, that of ice 4.5 V.
    name
        Name of the class.
    label
        Whether the beads are labelled, and have rows in the particle table (without orientation).
    """

    count: int | tuple[int, int] = 5
    radius: Range = 50.0
    density: float = 20.0
    name: str = "fiducial"
    label: bool = True

    def __post_init__(self) -> None:
        as_count("count", self.count)
        as_range("radius", self.radius)
        check_positive("density", self.density)

    @property
    def class_name(self) -> str:
        """The name of its class."""
        return self.name

    def templates_at(self, voxel_size: float) -> tuple[ParticleTemplate, ...]:
        """Make templates of beads for a voxel size in Å."""
        radii = np.unique(np.linspace(*as_range("radius", self.radius), _FIDUCIAL_SIZES))
        if radii[0] < voxel_size:
            raise ValueError(
                f"{self.name}: expected `radius` of at least the voxel size, {voxel_size:g} Å, got {radii[0]:g} Å"
            )
        return tuple(_bead(self.name, float(radius), self.density, voxel_size) for radius in radii)


def _bead(name: str, radius: float, density: float, voxel_size: float) -> ParticleTemplate:
    from scipy.special import erfc

    half = math.ceil(radius / voxel_size) + 3
    steps = np.arange(-half, half + 1) * voxel_size
    depth = np.sqrt(steps[:, None, None] ** 2 + steps[:, None] ** 2 + steps**2) - radius
    values = density / 2 * erfc(depth / (math.sqrt(2) * voxel_size / 2))
    return ParticleTemplate(density=torch.from_numpy(values), voxel_size=voxel_size, threshold=density / 2, name=name)
