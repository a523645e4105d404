"""What a specimen is made of: settings of particles, gold beads and the ice that holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

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
        What they look like: a template, or several (conformations, maps), one of which is chosen for each at random.
    count
        How many in each specimen: a number, or (lowest, highest).
    concentration_per_um3
        Instead of `count`: particles per µm³ of ice, rounded to a whole number for each specimen.
    concentration_molar
        Instead of `count`: mol/l of ice.
    name
        The class's name; by default the first template's. Species of one name share a class.
    label
        Whether they are labelled, and have rows in the particle table. Without it they are distractors.
    cluster_size, cluster_radius
        Particles that lie together, and the radius in Å within which they do where there is room.
    membrane_bound
        Whether they stand on membranes, the template's z axis along the normal.
    membrane_offset
        Å along the normal, from the middle of the bilayer to the template's centre (0: it spans the membrane, which
        makes way). By default they stand on the membrane's surface with the lowest voxel of their mask.
    membrane_side
        `"outside"`: z points out of vesicles; `"inside"`: into them.

    Raises
    ------
    ValueError
        For settings that cannot be.
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
    #: Voxels of a particle, the mean over templates, turns and places.
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
        """Whether it is said how many there are."""
        return (self.count, self.concentration_per_um3, self.concentration_molar) != (None, None, None)

    def templates_at(self, voxel_size: float) -> tuple[ParticleTemplate, ...]:
        """Return its templates, which have the voxel size that they have."""
        assert isinstance(self.templates, tuple), "made so in __post_init__"
        return self.templates

    def expected(self, volume_um3: float, generator: np.random.Generator | None = None) -> float:
        """Tell how many are asked for in a volume of ice; of a range, one is drawn, or the highest."""
        if self.count is not None:
            low, high = as_count("count", self.count)
            return float(high if generator is None else generator.integers(low, high + 1))
        if self.concentration_molar is not None:
            return self.concentration_molar * _PER_UM3_AND_MOLAR * volume_um3
        return 1.0 if self.concentration_per_um3 is None else self.concentration_per_um3 * volume_um3


def _volume(density: npt.NDArray[np.float32], threshold: float) -> float:
    """Measure a mask's volume, voxels, on a grid twice as fine: voxels of the template alone may miss it by far."""
    for axis in range(3):
        a, b = np.delete(density, -1, axis), np.delete(density, 0, axis)
        density = np.insert(density, np.arange(1, density.shape[axis]), (a + b) / 2, axis)
    return float((density > threshold).sum()) / 8


@dataclass(frozen=True, kw_only=True)
class FiducialSpecies:
    """Gold beads.

    Parameters
    ----------
    count
        How many in each specimen: a number, or (lowest, highest).
    radius
        Å: a number, or (lowest, highest), from which five sizes are made.
    density
        Volts above ice; the mean inner potential of gold is about 25 V, that of ice 4.5 V.
    name
        The class's name.
    label
        Whether they are labelled, and have rows in the particle table (without orientation).
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
