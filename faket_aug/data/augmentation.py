"""Flips, rotations and scalings of patches, the same for image and label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_ndim

Range = tuple[float, float]
_AXES = ("z", "y", "x")


@dataclass(frozen=True, kw_only=True)
class AugmentationParameters:
    """The parameters of one patch: flips and half turns along (z, y, x), rotation in degrees about (x, y, z), scale."""

    flips: tuple[bool, bool, bool]
    half_turns: tuple[bool, bool, bool]
    rotation_deg: tuple[float, float, float]
    scale: float


@dataclass(frozen=True, kw_only=True)
class PatchAugmentation:
    """Random flips, half turns, rotations and scalings of patches.

    The missing wedge lies around the beam axis (z), in the plane perpendicular to the tilt axis (y). Flips, and
    rotations by 180° about the axes, do not change it if the tilt range is symmetric. All other rotations rotate it.
    They are refused unless `keep_missing_wedge` is `False`.

    Parameters
    ----------
    flips
        Axes, of `"zyx"`, along which a patch may be mirrored. A mirrored particle has the other handedness.
    half_turns
        Axes, of `"zyx"`, about which a patch may be rotated by 180°.
    rotation_deg
        Largest rotation about (x, y, z), in degrees. Rotations are drawn uniformly between plus and minus this.
    scale
        Smallest and largest magnification, drawn uniformly.
    keep_missing_wedge
        Whether rotations that would rotate the missing wedge are refused.

    Raises
    ------
    ValueError
        If a rotation is given with `keep_missing_wedge`, an axis is unknown, or a scale is 0.
    """

    flips: str = ""
    half_turns: str = ""
    rotation_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: Range = (1.0, 1.0)
    keep_missing_wedge: bool = True

    def __post_init__(self) -> None:
        for name in ("flips", "half_turns"):
            unknown = set(getattr(self, name)) - set(_AXES)
            if unknown:
                raise ValueError(f"expected `{name}` to hold axes of 'zyx', got {getattr(self, name)!r}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"expected `scale` to be a pair 0 < low <= high, got {self.scale!r}")
        if self.keep_missing_wedge and any(self.rotation_deg):
            raise ValueError(
                f"expected no rotation with `keep_missing_wedge`, got `rotation_deg` {self.rotation_deg}: it would "
                "rotate the missing wedge; set `keep_missing_wedge` to False, or use `half_turns`"
            )

    @property
    def interpolates(self) -> bool:
        """Whether voxel values are interpolated. Flips and half turns only move them."""
        return any(self.rotation_deg) or self.scale != (1.0, 1.0)

    def draw(self, generator: np.random.Generator) -> AugmentationParameters:
        """Draw the parameters of one patch. The settings do not change how many numbers are drawn."""
        coins, turns = generator.random(6) < 0.5, generator.uniform(-1.0, 1.0, 3)
        low, high = self.scale
        return AugmentationParameters(
            flips=_choose(self.flips, coins[:3]),
            half_turns=_choose(self.half_turns, coins[3:]),
            rotation_deg=tuple(float(t * r) for t, r in zip(turns, self.rotation_deg, strict=True)),  # type: ignore[arg-type]
            scale=float(low + (high - low) * generator.random()),
        )

    def apply(self, image: Tensor, label: Tensor, parameters: AugmentationParameters) -> tuple[Tensor, Tensor]:
        """Apply drawn parameters to an image (linear interpolation) and its label (nearest voxel).

        Parameters
        ----------
        image
            `(z, y, x)`, floating point.
        label
            `(z, y, x)`, integers.
        parameters
            From `draw`.

        Returns
        -------
        Image and label of the same shapes and dtypes.
        """
        return self.apply_to_image(image, parameters), self.apply_to_labels(label, parameters)

    def apply_to_image(self, image: Tensor, parameters: AugmentationParameters) -> Tensor:
        """Apply drawn parameters to an image `(z, y, x)`, floating point (linear interpolation)."""
        check_ndim("image", image, "z y x")
        axes = _axes_to_flip(parameters)
        image = torch.flip(image, axes) if axes else image
        return _warp(image, parameters, "bilinear") if _interpolates(parameters) else image

    def apply_to_labels(self, label: Tensor, parameters: AugmentationParameters) -> Tensor:
        """Apply drawn parameters to whole numbers `(z, y, x)` less than 2²⁴: labels, or instances (nearest voxel)."""
        check_ndim("label", label, "z y x")
        axes = _axes_to_flip(parameters)
        label = torch.flip(label, axes) if axes else label
        if not _interpolates(parameters):
            return label
        return _warp(label.to(torch.float32), parameters, "nearest").round().to(label.dtype)


def turn_of(parameters: AugmentationParameters) -> FloatArray:
    """Return what flips, half turns and rotation do to directions: `(3, 3)`, on column vectors (x, y, z).

    The determinant is -1 if the patch is mirrored. The scale is not in it.
    """
    flipped = _axes_to_flip(parameters)
    mirror = np.diag([-1.0 if axis in flipped else 1.0 for axis in (2, 1, 0)])
    # Imported here: only targets need it. kornia takes the three angles as one rotation vector, and negates it.
    from scipy.spatial.transform import Rotation

    rotation: FloatArray = Rotation.from_rotvec(-np.deg2rad(parameters.rotation_deg)).as_matrix()
    return rotation @ mirror


def _interpolates(parameters: AugmentationParameters) -> bool:
    return parameters.scale != 1.0 or any(parameters.rotation_deg)


def _choose(axes: str, coins: npt.NDArray[np.bool_]) -> tuple[bool, bool, bool]:
    z, y, x = (axis in axes and bool(coin) for axis, coin in zip(_AXES, coins, strict=True))
    return z, y, x


def _axes_to_flip(parameters: AugmentationParameters) -> tuple[int, ...]:
    """List the axes to flip: a half turn about one axis flips the two others, and two flips of one axis cancel."""
    flipped = list(parameters.flips)
    for axis, turned in enumerate(parameters.half_turns):
        if turned:
            for other in {0, 1, 2} - {axis}:
                flipped[other] = not flipped[other]
    return tuple(axis for axis, flip in enumerate(flipped) if flip)


def _warp(volume: Tensor, parameters: AugmentationParameters, resample: str) -> Tensor:
    """Rotate and scale about the centre of the patch with kornia, which draws nothing itself."""
    # kornia is imported here: it takes seconds, and most patches need flips only.
    from kornia.augmentation import RandomAffine3D

    affine: Any = RandomAffine3D(degrees=0.0, resample=resample, align_corners=True, p=1.0)
    middle = torch.tensor([[(n - 1) / 2 for n in reversed(volume.shape)]])  # (1, 3), (x, y, z)
    zero = torch.zeros(1)
    given = {
        "translations": torch.zeros(1, 3),
        "center": middle,
        "scale": torch.full((1, 3), parameters.scale),
        "angles": torch.tensor([parameters.rotation_deg], dtype=torch.float32),
        **dict.fromkeys(("sxy", "sxz", "syx", "syz", "szx", "szy"), zero),
        "forward_input_shape": torch.tensor([1, 1, *volume.shape]),
        "batch_prob": torch.ones(1),
    }
    warped: Tensor = affine(volume[None, None], params=given)
    return warped[0, 0]
