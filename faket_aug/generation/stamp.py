"""Templates that are prepared to be rotated many times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_choice
from faket_aug._runtime.transfers import moved, sent
from faket_aug.generation.ranges import turned_by
from faket_aug.generation.templates import ParticleTemplate

#: Å. Density is drawn up to this distance from the mask; farther out, templates of maps hold only noise.
_TAIL = 30.0
#: Voxels, the same for `"sharp"` where it is more: the end of a low-pass reaches so far.
_SHARP_TAIL = 4.0


#: Density below this fraction of the peak is not drawn; `"sharp"` draws a little more.
_NOTHING, _SHARP_NOTHING = 0.01, 0.003


#: A template is rotated by linear interpolation between samples at half voxels: linear interpolation of the voxels
#: themselves would blur it, by an amount that depends on the rotation.
_OVERSAMPLING = 2
#: How the value between those samples is found. `"sharp"`: the samples are those of the Fourier series, and what linear
#: interpolation takes away between them is added. `"linear"`: the samples are those of the cubic spline, and turned
#: copies lose 20 % of their power at 0.35 cycles per voxel, and 40 % beyond 0.4.
INTERPOLATIONS = ("sharp", "linear")
#: Voxels of zeros around a box whose Fourier series is taken, so that opposite faces are not neighbours.
_GUARD = 4


#: Samples of one batch; with more, a CPU would only have to allocate memory.
_SAMPLES_AT_ONCE = {"cpu": 2**18, "cuda": 2**25}


def uniform_rotations(count: int, generator: np.random.Generator) -> FloatArray:
    """Draw rotation matrices `(count, 3, 3)`, uniform on SO(3): four normal numbers, normalised, are a quaternion."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_quat(generator.normal(size=(count, 4))).as_matrix()).reshape(-1, 3, 3)


def frames_along(directions: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Make rotation matrices `(n, 3, 3)` with unit vectors `(n, 3)` as third columns, at random angles about them."""
    across = np.cross(directions, uniform_rotations(len(directions), generator)[..., 0])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    return np.stack([across, np.cross(directions, across), directions], axis=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stamp:
    """A template that is prepared to be rotated many times; see `turn`.

    Parameters
    ----------
    density
        `(1, c, z, y, x)`, sampled at half voxels. Of two channels the second is the correction of `"sharp"`.
    center
        `(3,)`, (x, y, z) in samples of `density`, the point about which it is rotated.
    offsets
        `(3, p)`, (z, y, x): the voxels of a ball that holds the template in any orientation, relative to the voxel
        nearest to its centre.
    threshold
        As of the template.
    hull
        `(m, 3)`, (x, y, z) in voxels: the outermost points of the template's mask, relative to its centre.
    mask_voxels
        Number of voxels of the template's mask.
    volume
        Voxels of the mask of a rotated copy, the mean over rotations and positions.
    """

    density: Tensor
    center: tuple[float, float, float]
    offsets: IntArray
    threshold: float
    hull: FloatArray
    mask_voxels: int
    volume: float
    _ball: Tensor = field(init=False, repr=False)
    #: Half of the sizes `(x, y, z)` of `density`, in samples.
    _halves: Tensor = field(init=False, repr=False)
    #: Where the `offsets` lie in a cube that holds them all.
    _into: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        device = self.density.device
        # (p, 3), (x, y, z)
        ball = torch.from_numpy(np.ascontiguousarray(self.offsets[::-1].T)).to(device, torch.float32)
        halves = torch.from_numpy((np.array(self.density.shape[:1:-1]) - 1) / 2).to(torch.float32)
        into = flat_indices(self.offsets + self._side // 2, (self._side,) * 3)
        for name, made in (("_ball", ball), ("_halves", halves), ("_into", torch.from_numpy(into))):
            object.__setattr__(self, name, sent(made, device))

    @property
    def _side(self) -> int:
        """Voxels along a cube that holds all offsets."""
        return 2 * int(self.offsets.max()) + 1

    @classmethod
    def of(
        cls, template: ParticleTemplate, *, device: torch.device | str = "cpu", interpolation: str = "sharp"
    ) -> Stamp:
        """Prepare a template: crop its empty margins, and refine its grid.

        Parameters
        ----------
        template
            The template.
        device
            Device on which it is rotated.
        interpolation
            `"sharp"`, or `"linear"` as before.
        """
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        density, center = template.density.cpu().numpy(), np.array(template.center)
        hull = hull_points(template)
        sharp, reach = interpolation == "sharp", _reach(density, center, hull, _NOTHING, _TAIL / template.voxel_size)
        if sharp:
            reach = max(reach, _reach(density, center, hull, _SHARP_NOTHING, _SHARP_TAIL))
        # A voxel more on each side lets the spline end at 0, also where a particle is shifted by a part of a voxel.
        low = np.floor(center - reach).astype(int) - 1
        high = np.ceil(center + reach).astype(int) + 2
        outside = [(max(-a, 0), max(b - n, 0)) for a, b, n in zip(low, high, density.shape, strict=True)]
        padded = np.pad(density, outside)[tuple(slice(max(a, 0), None) for a in low)]
        box = padded[tuple(slice(0, n) for n in high - low)]
        fine = _sharp_samples(box) if sharp else _spline_samples(box)
        z, y, x = _OVERSAMPLING * (center - low)
        return cls(
            density=fine.to(device),
            center=(float(x), float(y), float(z)),
            offsets=ball_offsets(reach + 1),
            threshold=template.threshold,
            hull=hull,
            mask_voxels=int(template.mask.sum()),
            volume=float((fine[:, 0] > template.threshold).sum()) / _OVERSAMPLING**3,
        )

    @property
    def mask_radius(self) -> float:
        """Voxels from the centre to the farthest voxel of the mask."""
        return _radius(self.hull)

    def turn(self, orientations: FloatArray, fractions: FloatArray) -> Tensor:
        """Compute the density of rotated copies at the voxels of `offsets`.

        Parameters
        ----------
        orientations
            `(n, 3, 3)`, rotation matrices on column vectors (x, y, z), template to specimen.
        fractions
            `(n, 3)`, (z, y, x): positions of the centres within their voxels, from -1/2 to 1/2.

        Returns
        -------
        `(n, p)`, float32, on the stamp's device.
        """
        # Voxel o of the specimen holds the template at Rᵀ (o - fraction); as rows, (o - fraction) R.
        linear = self.density.shape[1] == 1
        sizes = np.array(self.density.shape[:1:-1])
        # `grid_sample` counts from -1 at the first sample to 1 at the last.
        scale = 2 * _OVERSAMPLING / (sizes - 1)
        shift = (
            2 * np.array(self.center) / (sizes - 1)
            - 1
            - scale * np.einsum("ni,nij->nj", fractions[:, ::-1], orientations)
        )
        device = self.density.device
        poses = {"matrix": orientations * scale, "shift": shift}
        matrix, to_middle = moved({n: torch.from_numpy(v).to(torch.float32) for n, v in poses.items()}, device).values()
        density = self.density.expand(len(orientations), -1, -1, -1, -1)
        if linear:
            grid = torch.matmul(self._ball, matrix) + to_middle[:, None]
            return F.grid_sample(density, grid[:, None, None], align_corners=True)[:, 0, 0, 0]
        # (n, xyz, p)
        places = torch.baddbmm(to_middle[..., None], matrix.mT, self._ball.T.expand(len(orientations), -1, -1))
        values = F.grid_sample(density, places.mT[:, None, None], align_corners=True)[:, :, 0, 0]
        # Position between two samples, f: what is missing there goes with f (1 - f).
        between = places.add_(1).mul_(self._halves[:, None]).frac_()
        between.addcmul_(between, between, value=-1)
        return torch.addcmul(values[:, 0], values[:, 1], between.sum(dim=1))

    def turned(self, orientations: FloatArray, fractions: FloatArray) -> Iterator[tuple[int, Tensor, IntArray]]:
        """Rotate many copies in batches.

        Yields
        ------
        For each copy its number, its density as a cube `(d, d, d)` around the centre's voxel, and the indices of the
        `offsets` that belong to its mask, in host memory.
        """
        size = max(1, _SAMPLES_AT_ONCE.get(self.density.device.type, 2**18) // self.offsets.shape[1])
        side = self._side
        for start in range(0, len(orientations), size):
            values = self.turn(orientations[start : start + size], fractions[start : start + size])
            masks = (values > self.threshold).cpu().numpy()
            cubes = values.new_zeros(len(values), side**3)
            cubes[:, self._into] = values
            for i, cube in enumerate(cubes.view(-1, side, side, side)):
                yield start + i, cube, np.flatnonzero(masks[i])


def _spline_samples(box: FloatArray) -> Tensor:
    """Sample the cubic spline of a box at half voxels: `(1, 1, z, y, x)`; corners are aligned, sample i is at i / 2."""
    from scipy.ndimage import zoom

    sizes = [_OVERSAMPLING * (n - 1) + 1 for n in box.shape]
    fine = zoom(box.astype(np.float64), [m / n for m, n in zip(sizes, box.shape, strict=True)], order=3)
    assert list(fine.shape) == sizes
    return torch.from_numpy(fine.astype(np.float32))[None, None]


def _sharp_samples(box: FloatArray) -> Tensor:
    """Sample the Fourier series of a box at half voxels, and the correction of linear interpolation between them.

    Linear interpolation multiplies a wave by sinc² in the mean, along each axis. The correction restores the wave where
    it is added with the weight Σ f (1 - f) of the positions f between two samples, whose mean is 1/2; at the samples
    the weight is 0, and the values are exact.

    Returns
    -------
    `(1, 2, z, y, x)`, the channels beside each other in memory; corners are aligned, sample i is at i / 2.
    """
    # Odd sizes have no wave at the Nyquist frequency, which would be its own negative.
    sizes = [n + _GUARD + (n + _GUARD + 1) % 2 for n in box.shape]
    spectrum = torch.fft.fftn(torch.from_numpy(np.ascontiguousarray(box, dtype=np.float64)), s=sizes)
    z, y, x = (torch.sinc(torch.fft.fftfreq(n, dtype=torch.float64) / _OVERSAMPLING) ** 2 for n in sizes)
    missing = 2 * (1 / (z[:, None, None] * y[:, None] * x) - 1)
    fine = [_refined(part)[tuple(slice(2 * n - 1) for n in box.shape)] for part in (spectrum, spectrum * missing)]
    return torch.stack(fine, dim=-1).float().permute(3, 0, 1, 2)[None]


def _refined(spectrum: Tensor) -> Tensor:
    """Sum a Fourier series `(z, y, x)` of odd sizes at half voxels."""
    # The frequency 0 comes from the middle n // 2 to the middle n of twice the size.
    pads = [pad for n in reversed(spectrum.shape) for pad in (n - n // 2, n // 2)]
    fine: Tensor = torch.fft.ifftn(torch.fft.ifftshift(F.pad(torch.fft.fftshift(spectrum), pads))).real
    return _OVERSAMPLING**3 * fine


def hull_points(template: ParticleTemplate) -> FloatArray:
    """Find the points `(m, 3)` (x, y, z) of a template's mask that lie farthest in many directions, in voxels."""
    points = (np.argwhere(template.mask.cpu().numpy()) - np.array(template.center))[:, ::-1]
    parts = np.array_split(uniform_directions(), 20)
    farthest = np.concatenate([turned_by(points, part.T).argmax(axis=0) for part in parts])
    return np.ascontiguousarray(points[np.unique(farthest)])


def uniform_directions() -> FloatArray:
    """Make 1000 unit vectors `(1000, 3)` that cover the sphere evenly, on a spiral from pole to pole."""
    height = 1 - 2 * (np.arange(1000) + 0.5) / 1000
    turn = math.pi * (3 - math.sqrt(5)) * np.arange(1000)
    level = np.sqrt(1 - height**2)
    return np.stack([level * np.cos(turn), level * np.sin(turn), height], axis=1)


def _reach(density: FloatArray, center: FloatArray, hull: FloatArray, nothing: float, tail: float) -> float:
    """Find up to which distance from the centre density is drawn: where it is not nothing, up to a tail of the mask."""
    dense = np.argwhere(np.abs(density) > nothing * float(density.max())) - center
    return min(_radius(dense), _radius(hull) + tail)


def _radius(points: FloatArray) -> float:
    return float(np.sqrt((points**2).sum(axis=1).max()))


def ball_offsets(radius: float) -> IntArray:
    """List the voxels within a radius around one, `(3, n)` (z, y, x)."""
    steps = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    z, y, x = np.meshgrid(steps, steps, steps, indexing="ij")
    return np.stack([axis[z**2 + y**2 + x**2 <= radius**2] for axis in (z, y, x)])


def flat_indices(places: IntArray, shape: Sequence[int]) -> IntArray:
    """Convert voxels `(3, ...)` to flat indices of a volume."""
    return np.asarray((places[0] * shape[1] + places[1]) * shape[2] + places[2])


@dataclass(frozen=True, eq=False)
class Mask:
    """Voxels relative to a centre: `offsets` `(3, n)` (z, y, x), and the same as flat indices, `steps` `(n,)`."""

    offsets: IntArray
    steps: IntArray

    @classmethod
    def of(cls, offsets: IntArray, shape: Sequence[int]) -> Mask:
        """Make the mask for volumes of a shape."""
        return cls(offsets, flat_indices(offsets, shape))

    def only(self, chosen: IntArray) -> Mask:
        """Keep the chosen voxels."""
        return Mask(self.offsets.take(chosen, axis=1), self.steps[chosen])
