"""Filtered back-projection: the published tomograms, radontea on the spot, and everything at its own place."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug.tomography.filters import FILTERS
from faket_aug.tomography.projection import project
from faket_aug.tomography.reconstruction import reconstruct
from faket_aug.tomography.resample import RESAMPLINGS

ANGLES = np.arange(-60.0, 61.0, 4.0)


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1])


# --- other programs ---------------------------------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize("name", FILTERS)
def test_golden_tomograms(reference: Path, reference_file, name: str) -> None:
    """With every filter the golden tomogram: correlation 0.997 at least, scale within 3 %, nothing flipped."""
    golden = np.load(reference_file(reference, "golden/radon_fbp.npz"))
    expected = golden[f"fbp_{name.replace('-', '_')}"].astype(np.float64)
    tilts = torch.from_numpy(golden["fbp_projections"])
    if name == "none":
        # FakET's toolbox drops each row's mean from what it does not filter; ours leaves it.
        tilts = tilts - tilts.mean(-1, keepdim=True)
    found = reconstruct(tilts, -golden["angles"], depth=29, filter=name).double().numpy()
    assert found.shape == expected.shape
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] >= 0.997
    assert abs((found * expected).sum() / (expected**2).sum() - 1) <= 0.03
    for axes in ((0,), (1,), (2,), (0, 2)):
        assert np.corrcoef(np.flip(found, axes).ravel(), expected.ravel())[0, 1] < 0.9


@pytest.mark.parametrize(
    ("name", "theirs"), [("none", None)] + [(name, name) for name in FILTERS if name not in ("none", "shrec")]
)
def test_equals_radontea(name: str, theirs: str | None) -> None:
    """A slice of odd size is radontea's, unpadded; what radontea does not filter it gives without each row's mean."""
    import radontea

    tilts = _random(len(ANGLES), 1, 23) + 1.5
    expected = radontea.backproject(
        tilts[:, 0].numpy(), np.deg2rad(ANGLES), filtering=theirs, weight_angles=False, padding=False
    )
    if name == "none":
        tilts = tilts - tilts.mean(-1, keepdim=True)
    found = reconstruct(tilts, ANGLES, depth=23, filter=name)[:, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("bin", "binning"), [(1, "spline"), (2, "spline"), (2, "fourier")])
def test_reconstruction_is_linear(name: str, bin: int, binning: str) -> None:
    """`reconstruct(a·p + b·q) = a·reconstruct(p) + b·reconstruct(q)`: a plain linear map, nothing negated."""
    p, q = _random(5, 8, 12), _random(5, 8, 12, seed=1)
    angles = [-50.0, -20.0, 0.0, 31.0, 60.0]

    def volume(tilts: Tensor) -> Tensor:
        return reconstruct(tilts, angles, depth=6, filter=name, bin=bin, resampling=binning)

    torch.testing.assert_close(volume(3 * p - 2 * q), 3 * volume(p) - 2 * volume(q), rtol=1e-9, atol=1e-9)


def test_unfiltered_untilted_view() -> None:
    """One tilt at 0°, unfiltered: every plane is π times that tilt."""
    tilt = _random(1, 4, 7)
    found = reconstruct(tilt, [0.0], depth=5, filter="none")
    torch.testing.assert_close(found, torch.pi * tilt.expand(5, -1, -1))


def test_voxels_do_not_depend_on_the_extent() -> None:
    """A thinner, narrower tomogram is the middle of a larger one, about voxel `n // 2`."""
    tilts = _random(7, 3, 16)
    angles = np.linspace(-60, 60, 7)
    large = reconstruct(tilts, angles, depth=20, width=25, filter="ramp")
    for depth, width in ((9, 16), (12, 11), (1, 1)):
        small = reconstruct(tilts, angles, depth=depth, width=width, filter="ramp")
        z, x = 10 - depth // 2, 12 - width // 2
        assert small.shape == (depth, 3, width)
        assert torch.equal(small, large[z : z + depth, :, x : x + width])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_its_members(dtype: torch.dtype) -> None:
    """Leading axes pass through; a batch gives what its members give alone."""
    tilts = _random(2, 3, 5, 6, 9, dtype=dtype)
    angles = np.linspace(-50, 50, 5)
    found = reconstruct(tilts, angles, depth=7, bin=2)
    assert found.shape == (2, 3, 7, 3, 4)
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(found[i, j], reconstruct(tilts[i, j], angles, depth=7, bin=2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int16, torch.float32),
        (torch.uint8, torch.float32),
    ],
)
@pytest.mark.parametrize("bin", [1, 2])
def test_dtype_is_kept(dtype: torch.dtype, result: torch.dtype, bin: int) -> None:
    """A floating dtype is kept; integers give float32."""
    tilts = (10 * _random(3, 6, 8)).abs().to(dtype)
    assert reconstruct(tilts, [-20.0, 0.0, 20.0], depth=4, bin=bin).dtype == result


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("bin", [1, 2])
def test_gradients(name: str, bin: int) -> None:
    """Gradients flow from the tomogram to the tilts, through filter and binning."""
    tilts = _random(2, 4, 6).requires_grad_()
    with torch.random.fork_rng(devices=[]):  # gradcheck draws from the global generator
        assert torch.autograd.gradcheck(
            lambda p: reconstruct(p, [-30.0, 25.0], depth=3, filter=name, bin=bin, resampling="fourier"), tilts
        )


# --- everything at its own place --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shrec", "ramp", "hann"])
def test_phantom_comes_back_unflipped(phantom: Tensor, name: str) -> None:
    """Projected and reconstructed, the asymmetric phantom is itself, in place: no flip, no shift does better."""
    found = reconstruct(project(phantom, ANGLES), ANGLES, depth=14, filter=name)
    assert found.shape == phantom.shape  # three unequal sizes: no transposition either
    straight = _correlation(found, phantom)
    assert straight > 0.7
    flips = [axes for n in (1, 2, 3) for axes in itertools.combinations(range(3), n)]
    assert all(_correlation(found.flip(axes), phantom) < straight - 0.3 for axes in flips)
    assert all(_correlation(found.roll(step, d), phantom) < straight for d in range(3) for step in (-1, 1))


@pytest.mark.parametrize(("bin", "binning"), [(1, "spline"), (2, "spline"), (2, "fourier"), (3, "spline")])
@pytest.mark.parametrize("sizes", [(40, 24, 60), (37, 25, 61), (36, 27, 63)])
def test_point_stays_at_its_place(sizes: tuple[int, int, int], bin: int, binning: str) -> None:
    """A blob at `n // 2 + bin·k` in (z, y, x) is brightest at `m // 2 + k`, whatever bin, binning and parity."""
    offset = (-3, 2, 5)  # in voxels of the tomogram
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 - bin * k for n, k in zip(sizes, offset, strict=True)]
    blob = [torch.exp(-(axis**2) / (2 * (1.2 * bin) ** 2)) for axis in axes]
    volume = blob[0][:, None, None] * blob[1][:, None] * blob[2]
    found = reconstruct(
        project(volume, ANGLES), ANGLES, depth=sizes[0] // bin, filter="hann", bin=bin, resampling=binning
    )
    assert found.shape == tuple(n // bin for n in sizes)
    peak = np.array(np.unravel_index(int(found.argmax()), found.shape))
    expected = np.array([n // 2 + k for n, k in zip(found.shape, offset, strict=True)])
    np.testing.assert_array_equal(peak, expected)
    # The neighbours on both sides are equally bright: the peak is in the voxel's middle.
    for dim in range(3):
        line = found.movedim(dim, 0)[(slice(None), *np.delete(peak, dim))]
        before, top, after = (float(line[peak[dim] + step]) for step in (-1, 0, 1))
        assert abs(before - after) < 0.05 * top


@pytest.mark.parametrize("binning", RESAMPLINGS)
def test_binned_tomogram_is_the_binned_volume(phantom: Tensor, binning: str) -> None:
    """A reconstruction at bin 2 looks like the phantom read at every other voxel, not like its mirror images."""
    smooth = torch.nn.functional.interpolate(phantom[None, None], scale_factor=2, mode="trilinear")[0, 0]
    # Voxel n // 2 (14, 10, 22) lands in voxel m // 2 (7, 5, 11): every other voxel from the first.
    small = smooth[::2, ::2, ::2]
    found = reconstruct(project(smooth, ANGLES), ANGLES, depth=14, bin=2, resampling=binning)
    straight = _correlation(found, small)
    assert straight > 0.7
    for axes in ((0,), (1,), (2,), (0, 2), (0, 1, 2)):
        assert _correlation(found.flip(axes), small) < straight - 0.3


# --- errors -----------------------------------------------------------------------------------------------------------


def test_unknown_filter_lists_all() -> None:
    """An unknown filter is answered with all that exist."""
    listed = ", ".join(repr(name) for name in FILTERS)
    with pytest.raises(ValueError, match=f"expected `filter` to be one of {listed}, got 'butterworth'"):
        reconstruct(torch.zeros(1, 4, 4), [0.0], depth=4, filter="butterworth")


def test_other_errors() -> None:
    """Angles that do not match the tilts, unknown binnings, sizes below 1 and wrong axes are refused by name."""
    tilts = torch.zeros(3, 4, 4)
    angles = [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="one tilt angle for each of 3 tilts, got 2; set `tilt_angles`"):
        reconstruct(tilts, [0.0, 1.0], depth=4)
    with pytest.raises(ValueError, match="`resampling` to be one of 'spline', 'fourier', got 'mean'"):
        reconstruct(tilts, angles, depth=4, resampling="mean")
    with pytest.raises(ValueError, match="`bin` to be more than 0, got 0"):
        reconstruct(tilts, angles, depth=4, bin=0)
    with pytest.raises(ValueError, match="`depth` to be more than 0, got 0"):
        reconstruct(tilts, angles, depth=0)
    with pytest.raises(ValueError, match="`width` to be more than 0, got 0"):
        reconstruct(tilts, angles, depth=4, width=0)
    with pytest.raises(ValueError, match=r"`projections` of shape \(\.\.\., tilt, y, x\), got \(4, 4\)"):
        reconstruct(tilts[0], angles, depth=4)
    with pytest.raises(ValueError, match="finite `tilt_angles`"):
        reconstruct(tilts, [0.0, float("nan"), 2.0], depth=4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("bin", [1, 2])
def test_cuda_equals_cpu(name: str, bin: int) -> None:
    """The GPU's result stays on the GPU and is the CPU's to 1e-4."""
    tilts = _random(len(ANGLES), 12, 32, dtype=torch.float32)
    expected = reconstruct(tilts, ANGLES, depth=10, filter=name, bin=bin)
    found = reconstruct(tilts.cuda(), ANGLES, depth=10, filter=name, bin=bin)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
