"""What a specimen is made of: settings of particles, gold beads and the ice that holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from faket_aug._checks import check_choice, check_count, check_positive
from faket_aug.potential import ICE_POTENTIAL
from faket_aug.templates import ParticleTemplate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Range = float | tuple[float, float]
#: Vacuum above ice, volts.
VACUUM_DENSITY = -ICE_POTENTIAL
_NO_PAIR = "expected `{}` to be one number or a pair (lowest, highest), got {!r}"
SIDES = ("outside", "inside")
_PER_UM3_AND_MOLAR = 6.02214076e23 * 1e-15
_FIDUCIAL_SIZES = 5


def as_range(name: str, value: Range, *, zero: bool = False) -> tuple[float, float]:
    """Return a number or a pair (lowest, highest) as a pair.

    Raises
    ------
    ValueError
        If it is no increasing pair of positive numbers (or zero, where `zero` allows it).
    """
    low, high = _as_pair(name, value)
    check_positive(name, low, zero=zero)
    if not low <= high < math.inf:
        raise ValueError(_NO_PAIR.format(name, value))
    return float(low), float(high)


def as_count(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Return a whole number or a pair (lowest, highest) of them as a pair.

    Raises
    ------
    ValueError
        If it is no increasing pair of whole numbers of 0 or more.
    """
    low, high = _as_pair(name, value)
    check_count(name, low, zero=True)
    check_count(name, high, zero=True)
    if low > high:
        raise ValueError(_NO_PAIR.format(name, value))
    return int(low), int(high)


def _as_pair(name: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, Sequence):
        return value, value
    if isinstance(value, str) or len(value) != 2:
        raise ValueError(_NO_PAIR.format(name, value))
    return value[0], value[1]


def turned_by(points: Floats | Ints, matrix: Floats) -> Floats:
    """Multiply points `(..., 3)`, as rows, with a matrix `(3, m)`.

    A library for matrices shares out the rows among threads, and its last bits depend on how many there are.
    """
    return np.asarray(points[..., :1] * matrix[0] + points[..., 1:2] * matrix[1] + points[..., 2:] * matrix[2])


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


@dataclass(frozen=True, kw_only=True)
class Slab:
    """The ice of one specimen, in voxels: all points p with `|normal · (p - middle)| <= half`, in order (z, y, x)."""

    normal: Floats
    middle: Floats
    half: float

    @classmethod
    def everywhere(cls, shape: Sequence[int]) -> Slab:
        """Make the slab that fills a specimen."""
        return cls(normal=np.array([1.0, 0.0, 0.0]), middle=(np.array(shape) - 1) / 2, half=shape[0] / 2)

    def height(self, points: Floats | Ints) -> Floats:
        """Compute how far points `(..., 3)` lie above the middle plane, voxels."""
        return turned_by(points - self.middle, self.normal[:, None])[..., 0]

    def heights(self, shape: Sequence[int]) -> tuple[Floats, Floats, Floats]:
        """Compute three arrays whose broadcast sum is the height of each voxel of a volume."""
        axes = [n * (np.arange(size) - m) for n, size, m in zip(self.normal, shape, self.middle, strict=True)]
        return axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]

    def z_range(self, shape: Sequence[int]) -> tuple[float, float]:
        """Find between which z the ice lies anywhere in a volume."""
        slopes = np.abs(self.normal[1:]) @ (np.array(shape[1:]) - 1) / 2
        reach = (self.half + slopes) / abs(self.normal[0])
        return self.middle[0] - reach, self.middle[0] + reach

    def column(self, shape: Sequence[int], yx: Floats) -> tuple[Floats, Floats]:
        """Find the ice's lower and upper end, z, in the columns `(..., 2)` of a volume."""
        middle = self.middle[0] - (yx - self.middle[1:]) @ self.normal[1:] / self.normal[0]
        reach = self.half / self.normal[0]
        return np.maximum(middle - reach, 0.0), np.minimum(middle + reach, shape[0] - 1.0)

    def voxels(self, shape: Sequence[int]) -> int:
        """Count the voxels of a volume whose centres lie in the ice."""
        yx = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij"), axis=-1)
        bottom, top = self.column(shape, yx.astype(np.float64))
        return int(np.maximum(np.floor(top + 1e-9) - np.ceil(bottom - 1e-9) + 1, 0).sum())


@dataclass(frozen=True, kw_only=True)
class IceSlab:
    """A slab of ice through the middle of the specimen; above and below it is vacuum, and nothing lies there.

    Parameters
    ----------
    thickness
        Å: a number, or (lowest, highest).
    tilt
        Degrees between its normal and z: a number, or (lowest, highest), less than 60.
    azimuth
        Degrees from x towards y, where the normal leans: a number, or (lowest, highest).
    vacuum_density
        Density outside, volts above ice. 0 leaves the step at the ice's faces out. `VACUUM_DENSITY` (-4.53) is what
        physics asks for; then also give the simulator `extend="wrap"`, or each tilt sees the ice end at the sides of
        the specimen, beyond which it takes all for ice.
    """

    thickness: Range
    tilt: Range = 0.0
    azimuth: Range = (0.0, 360.0)
    vacuum_density: float = 0.0

    def __post_init__(self) -> None:
        as_range("thickness", self.thickness)
        as_range("azimuth", self.azimuth, zero=True)
        if as_range("tilt", self.tilt, zero=True)[1] >= 60:
            raise ValueError(f"expected `tilt` of less than 60 degrees, got {self.tilt!r}")

    def draw(self, shape: Sequence[int], voxel_size: float, generator: np.random.Generator | None) -> Slab:
        """Draw a slab; without generator, the thinnest and steepest."""
        (thin, thick), (flat, steep) = as_range("thickness", self.thickness), as_range("tilt", self.tilt, zero=True)
        azimuth = as_range("azimuth", self.azimuth, zero=True)
        if generator is None:
            thickness, tilt, turn = thin, steep, azimuth[0]
        else:
            thickness, tilt, turn = (generator.uniform(*pair) for pair in ((thin, thick), (flat, steep), azimuth))
        t, a = math.radians(tilt), math.radians(turn)
        normal = np.array([math.cos(t), math.sin(t) * math.sin(a), math.sin(t) * math.cos(a)])
        # A voxel is in the ice if its centre is: a slab of n voxels holds n of them.
        return Slab(normal=normal, middle=(np.array(shape) - 1) / 2, half=thickness / voxel_size / 2)
