"""Projection and its adjoint: the published values, scikit-image on the spot, and the laws of a linear map."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import skimage.transform
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from faket_aug.tomography import plane_map as sparse
from faket_aug.tomography.projection import BACKENDS, EXTENDS, MAX_WRAP_TILT_DEG, backproject, project

ANGLES = (-60.0, -23.5, 0.0, 10.0, 47.0)


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1])


# --- published values -------------------------------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize(
    ("projections", "angles"), [("projections", "angles"), ("projections_irregular", "angles_irregular")]
)
def test_golden_projections(reference: Path, reference_file, projections: str, angles: str) -> None:
    """The golden volume's projections at minus skimage's angles are the golden ones, within 1e-4 of their maximum."""
    golden = np.load(reference_file(reference, "golden/radon_fbp.npz"))
    found = project(torch.from_numpy(golden["volume"]), -golden[angles]).numpy()
    assert found.shape == golden[projections].shape
    assert np.abs(found - golden[projections]).max() <= 1e-4 * np.abs(golden[projections]).max()


@pytest.mark.parametrize(("depth", "size"), [(9, 14), (14, 9), (8, 8), (11, 7)])
@pytest.mark.parametrize("width", [None, 5, 6, 31])
def test_equals_skimage(depth: int, size: int, width: int | None) -> None:
    """`project` is `skimage.transform.radon(circle=False)` at minus its angles, at any width of the detector."""
    volume = _random(depth, 2, size, seed=depth)
    found = project(volume, ANGLES, width=width).numpy()
    columns = size if width is None else width
    for row in range(2):
        expected = skimage.transform.radon(volume[:, row].numpy(), theta=-np.array(ANGLES), circle=False).T
        # skimage pads to the diagonal; both have the axis in column n // 2. Compare the columns that both have.
        start = expected.shape[1] // 2 - columns // 2
        common = expected[:, max(start, 0) : start + columns]
        ours = found[:, row, max(-start, 0) :][:, : common.shape[1]]
        assert common.shape[1] == min(columns, expected.shape[1])
        np.testing.assert_allclose(ours, common, atol=1e-6 * np.abs(expected).max())


# --- laws -------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data(), extend=st.sampled_from(EXTENDS))
def test_backproject_is_the_adjoint(data: st.DataObject, extend: str) -> None:
    """`<project(v), p> = <v, backproject(p)>` for all sizes, angles and widths: to 1e-10 in float64."""
    size_of = st.integers(1, 9)
    depth, rows, size, width = (data.draw(size_of, label=name) for name in ("depth", "rows", "size", "width"))
    steepest = 180.0 if extend == "zero" else MAX_WRAP_TILT_DEG
    angles = data.draw(st.lists(st.floats(-steepest, steepest), min_size=1, max_size=3), label="angles")
    volume, tilts = _random(depth, rows, size, seed=1), _random(len(angles), rows, width, seed=2)
    forward = project(volume, angles, width=width, extend=extend)
    back = backproject(tilts, angles, depth=depth, width=size, extend=extend)
    # Relative to the sizes of the factors, not to the product, which may vanish.
    scale = float(forward.norm() * tilts.norm() + volume.norm() * back.norm())
    assert abs(float((forward * tilts).sum() - (volume * back).sum())) <= 1e-10 * max(scale, 1e-30)


@pytest.mark.parametrize("extend", EXTENDS)
def test_projection_is_linear(phantom: Tensor, extend: str) -> None:
    """`project(a·v + b·w) = a·project(v) + b·project(w)`, and nothing is negated or clipped."""
    other = _random(*phantom.shape, seed=3)
    combined = project(2.5 * phantom - 3 * other, ANGLES, extend=extend)
    apart = 2.5 * project(phantom, ANGLES, extend=extend) - 3 * project(other, ANGLES, extend=extend)
    torch.testing.assert_close(combined, apart, rtol=1e-10, atol=1e-10)
    assert float(project(phantom, ANGLES, extend=extend).min()) >= 0


@pytest.mark.parametrize("extend", EXTENDS)
def test_gradients(extend: str) -> None:
    """The derivatives of both maps are the maps' transposes, at first and second order."""
    volume, tilts = _random(4, 2, 5).requires_grad_(), _random(2, 2, 6).requires_grad_()
    with torch.random.fork_rng(devices=[]):  # gradcheck draws from the global generator
        assert torch.autograd.gradcheck(lambda v: project(v, [-35.0, 20.0], width=6, extend=extend), volume)
        assert torch.autograd.gradcheck(lambda p: backproject(p, [-35.0, 20.0], depth=4, width=5, extend=extend), tilts)
        assert torch.autograd.gradgradcheck(lambda v: project(v, [20.0], extend=extend) ** 2, volume)


def test_result_may_be_changed_in_place(phantom: Tensor) -> None:
    """With gradients, too, the result is an ordinary tensor: it may be changed in place."""
    volume = phantom.clone().requires_grad_()
    project(volume, [0.0]).mul_(-2).sum().backward()
    torch.testing.assert_close(volume.grad, torch.full_like(volume, -2))


def test_untilted_view_is_the_plain_sum(phantom: Tensor) -> None:
    """At 0° the beam runs along z: the projection is the sum over z, in place."""
    torch.testing.assert_close(project(phantom, [0.0])[0], phantom.sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(project(phantom, [0.0], extend="wrap")[0], phantom.sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_its_members(dtype: torch.dtype) -> None:
    """A batch gives bit for bit what its members give alone, forwards and backwards."""
    volumes, tilts = _random(3, 7, 5, 9, dtype=dtype), _random(3, 5, 5, 9, dtype=dtype)
    together, back = project(volumes, ANGLES), backproject(tilts, ANGLES, depth=7)
    for i in range(3):
        assert torch.equal(together[i], project(volumes[i], ANGLES))
        assert torch.equal(back[i], backproject(tilts[i], ANGLES, depth=7))


def test_rows_do_not_mix() -> None:
    """Every row y is projected by itself: a stack equals its rows, also where it is cut into blocks (130 rows)."""
    volume = _random(5, 130, 6)
    found = project(volume, ANGLES)
    for row in (0, 63, 64, 129):
        alone = project(volume[:, row : row + 1], ANGLES)
        torch.testing.assert_close(found[:, row : row + 1], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 2)])
def test_leading_axes(leading: tuple[int, ...]) -> None:
    """Any number of leading axes passes through."""
    volume = _random(*leading, 6, 3, 8)
    tilts = project(volume, ANGLES, width=7)
    assert tilts.shape == (*leading, len(ANGLES), 3, 7)
    assert backproject(tilts, ANGLES, depth=6, width=8).shape == volume.shape
    flat = project(volume.reshape(-1, 6, 3, 8), ANGLES, width=7)
    assert torch.equal(flat, tilts.reshape(flat.shape))


def test_strided_input(phantom: Tensor) -> None:
    """The memory layout of the input does not matter."""
    strided = phantom.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    assert torch.equal(project(strided, ANGLES), project(phantom, ANGLES))


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.uint8, torch.float32),
        (torch.int16, torch.float32),
        (torch.int64, torch.float32),
    ],
)
def test_dtype_is_kept(dtype: torch.dtype, result: torch.dtype) -> None:
    """A floating dtype is kept, integers give float32, and the values are those of float64 to that precision."""
    volume = (4 * _random(7, 3, 9).abs()).round()
    found = project(volume.to(dtype), ANGLES)
    back = backproject(found.to(dtype), ANGLES, depth=7)
    assert found.dtype == result
    assert back.dtype == result
    expected = project(volume, ANGLES)
    assert float((found.double() - expected).abs().max()) <= torch.finfo(result).eps * float(expected.max())


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [30.0, -30.0])
def test_sign_of_the_tilt(angle: float) -> None:
    """A voxel 4 above and 6 beside the axis is seen at `x' = x cos θ + z sin θ`: 7.196 at +30°, 3.196 at -30°."""
    volume = torch.zeros(15, 3, 24, dtype=torch.float64)
    volume[7 + 4, 1, 12 + 6] = 1.0
    tilt = project(volume, [angle], width=31)[0]
    assert float(tilt[[0, 2]].abs().max()) == 0.0
    column = torch.arange(31, dtype=torch.float64) - 31 // 2
    expected = 6 * math.cos(math.radians(angle)) + 4 * math.sin(math.radians(angle))
    assert expected == pytest.approx({30.0: 7.196152, -30.0: 3.196152}[angle], abs=1e-6)
    # Bilinear interpolation of a single voxel is off by some hundredths; a broad blob is not.
    assert float((tilt[1] * column).sum() / tilt[1].sum()) == pytest.approx(expected, abs=0.1)
    z, x = torch.arange(25.0)[:, None] - 12 - 4, torch.arange(40.0)[None, :] - 20 - 6
    blob = torch.exp(-(z**2 + x**2) / (2 * 1.5**2)).double()[:, None]
    tilt, column = project(blob, [angle])[0, 0], torch.arange(40, dtype=torch.float64) - 20
    assert float((tilt * column).sum() / tilt.sum()) == pytest.approx(expected, abs=0.005)


def test_quarter_turns_exactly(phantom: Tensor) -> None:
    """At +90° a voxel at height z is seen at `x' = z`; at 180° at `x' = -x`; each exactly."""
    depth, _, size = phantom.shape
    quarter = project(phantom, [90.0], width=depth)[0]
    torch.testing.assert_close(quarter, phantom.sum(2).T, rtol=1e-9, atol=1e-9)
    half = project(phantom, [180.0])[0]
    # The axis stays in column n // 2, so for an even width the flip moves by one.
    torch.testing.assert_close(half[:, 1:], phantom.sum(0).flip(1)[:, : size - 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("size", "width"), [(8, 8), (9, 9), (8, 9), (9, 8), (9, 20)])
def test_axis_goes_through_n_half(size: int, width: int) -> None:
    """What lies on the axis, voxel `n // 2` of z and x, is seen in column `n // 2` at every tilt."""
    for depth in (6, 7):
        volume = torch.zeros(depth, 1, size, dtype=torch.float64)
        volume[depth // 2, 0, size // 2] = 1.0
        tilts = project(volume, ANGLES, width=width)
        assert tilts.argmax(dim=-1).flatten().tolist() == [width // 2] * len(ANGLES)
        back = backproject(tilts, ANGLES, depth=depth, width=size)[:, 0]
        assert divmod(int(back.argmax()), size) == (depth // 2, size // 2)


@pytest.mark.parametrize("angle", [0.0, 17.0, -45.0, 60.0, 85.0])
def test_wrap_fills_the_view(angle: float) -> None:
    """A slab of ones without end is seen as `depth / cos θ` in every column; without wrapping the edges are empty."""
    depth, size = 12, 20
    ones = torch.ones(depth, 2, size, dtype=torch.float64)
    wrapped = project(ones, [angle], width=25, extend="wrap")[0, 0]
    expected = depth / math.cos(math.radians(angle))
    assert float(wrapped.max() - wrapped.min()) <= 0.01 * expected
    assert float(wrapped.mean()) == pytest.approx(expected, rel=0.01)
    if angle != 0.0:
        zero = project(ones, [angle], extend="zero")[0, 0]
        assert float(zero[0]) < 0.75 * expected


def test_wrap_is_periodic_along_x(phantom: Tensor) -> None:
    """With wrapping, a specimen rolled along x gives at 0° the rolled view, and the view has the specimen's period."""
    size = phantom.shape[-1]
    wide = project(phantom, [33.0], width=3 * size, extend="wrap")[0]
    torch.testing.assert_close(
        project(phantom.roll(5, -1), [0.0], extend="wrap"), project(phantom, [0.0], extend="wrap").roll(5, -1)
    )
    three = project(torch.cat([phantom] * 15, dim=-1), [33.0], width=3 * size)[0]
    # Fifteen copies side by side reach beyond every ray; 15·22 // 2 and 22 // 2 differ by seven periods.
    torch.testing.assert_close(wide, three, rtol=1e-9, atol=1e-9)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_unknown_choices_list_the_known() -> None:
    """A choice that does not exist is answered with those that do."""
    with pytest.raises(ValueError, match="`extend` to be one of 'zero', 'wrap', got 'mirror'"):
        project(torch.zeros(3, 3, 3), [0.0], extend="mirror")
    with pytest.raises(ValueError, match="`backend` to be one of 'torch', 'torch_radon', got 'astra'"):
        backproject(torch.zeros(1, 3, 3), [0.0], depth=3, backend="astra")
    assert EXTENDS == ("zero", "wrap")
    assert BACKENDS == ("torch", "torch_radon")


def test_wrong_axes() -> None:
    """Too few axes name the axes that are expected and the shape that was given."""
    with pytest.raises(ValueError, match=r"`volume` of shape \(\.\.\., z, y, x\), got \(3, 3\)"):
        project(torch.zeros(3, 3), [0.0])
    with pytest.raises(ValueError, match=r"`projections` of shape \(\.\.\., tilt, y, x\), got \(3,\)"):
        backproject(torch.zeros(3), [0.0], depth=3)


@pytest.mark.parametrize("angles", [[0.0, math.nan], [math.inf], torch.tensor([math.nan])])
def test_angles_must_be_finite(angles: object) -> None:
    """NaN and infinite angles are refused."""
    with pytest.raises(ValueError, match="finite `tilt_angles` in degrees"):
        project(torch.zeros(3, 3, 3), angles)  # type: ignore[arg-type]


@pytest.mark.parametrize("angles", [[], [[0.0, 1.0]], 5.0])
def test_angles_must_be_a_list(angles: object) -> None:
    """Angles are one-dimensional, one at least."""
    with pytest.raises(ValueError, match=r"`tilt_angles` of shape \(tilt,\)"):
        project(torch.zeros(3, 3, 3), angles)  # type: ignore[arg-type]


def test_as_many_angles_as_tilts() -> None:
    """Tilts and angles must match, and the message says both numbers."""
    with pytest.raises(ValueError, match="each of 4 tilts, got 3"):
        backproject(torch.zeros(4, 3, 3), [0.0, 1.0, 2.0], depth=3)


def test_wrap_ends_at_steep_tilts() -> None:
    """Beyond 85° a repeated specimen has no end along the beam: refused, with the remedy."""
    with pytest.raises(ValueError, match='at most 85.0° .*got 86.0°; set `extend` to "zero"'):
        project(torch.zeros(3, 3, 3), [0.0, -86.0], extend="wrap")
    assert project(torch.zeros(3, 3, 3), [85.0], extend="wrap").shape == (1, 3, 3)


@pytest.mark.parametrize("number", [0, -3])
def test_sizes_must_be_positive(number: int) -> None:
    """Width and depth are positive."""
    with pytest.raises(ValueError, match="`width` to be more than 0"):
        project(torch.zeros(3, 3, 3), [0.0], width=number)
    with pytest.raises(ValueError, match="`depth` to be more than 0"):
        backproject(torch.zeros(1, 3, 3), [0.0], depth=number)


# --- torch-radon ------------------------------------------------------------------------------------------------------


class StandIn:
    """What torch-radon computes on a GPU, in SciPy: an image turns about its *middle*.

    `torch_radon` puts the axis of rotation at `(n - 1) / 2` of image and detector (its rays start at
    `ray - det_count / 2 + 1 / 2`, its texture's texels lie at halves), and sees `x cos θ - z sin θ`.
    """

    def __init__(
        self, det_count: int, angles: Tensor, det_spacing: float = 1.0, volume: tuple[int, int] = (0, 0)
    ) -> None:
        assert det_spacing == 1.0
        self.shape, self.det_count = volume, det_count
        self.angles = angles.double().numpy()
        assert np.abs(self.angles).max() <= math.pi  # radians

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == self.shape
        assert images.is_contiguous()
        return torch.stack([torch.from_numpy(self._project(image.numpy())) for image in images]).to(images.dtype)

    def backprojection(self, sinogram: Tensor) -> Tensor:
        assert sinogram.shape[1:] == (len(self.angles), self.det_count)
        return torch.stack([torch.from_numpy(self._smear(s.numpy())) for s in sinogram]).to(sinogram.dtype)

    def _project(self, image: np.ndarray) -> np.ndarray:
        """Turn the image about its middle, seen by `det_count` columns, and add up its rows."""
        height = 2 * sum(self.shape)
        rows = []
        for angle in self.angles:
            cosine, sine = math.cos(angle), math.sin(angle)
            # Row and column of the turned image to row and column of the image, both from the middle.
            matrix = np.array([[cosine, -sine], [sine, cosine]])
            middle = (np.array(self.shape) - 1) / 2
            offset = middle - matrix @ np.array([(height - 1) / 2, (self.det_count - 1) / 2])
            turned = scipy.ndimage.affine_transform(
                image, matrix, offset=offset, output_shape=(height, self.det_count), order=1
            )
            rows.append(turned.sum(0))
        return np.stack(rows)

    def _smear(self, sinogram: np.ndarray) -> np.ndarray:
        z, x = np.ogrid[: self.shape[0], : self.shape[1]]
        z, x = z - (self.shape[0] - 1) / 2, x - (self.shape[1] - 1) / 2
        columns = np.arange(self.det_count) - (self.det_count - 1) / 2
        return sum(
            np.interp(x * math.cos(angle) - z * math.sin(angle), columns, row, left=0, right=0)
            for angle, row in zip(self.angles, sinogram, strict=True)
        )


@pytest.fixture
def torch_radon(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for the package torch-radon."""
    module = types.ModuleType("torch_radon")
    module.ParallelBeam = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_radon", module)
    return module


def test_torch_radon_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch-radon its backend says where to get it, and what to set instead."""
    monkeypatch.setitem(sys.modules, "torch_radon", None)
    with pytest.raises(ImportError, match='github.com/matteo-ronchetti/torch-radon .*set `backend` to "torch"'):
        project(torch.zeros(3, 3, 3), [0.0], backend="torch_radon")
    with pytest.raises(ImportError, match="expected the package torch-radon"):
        backproject(torch.zeros(1, 3, 3), [0.0], depth=3, backend="torch_radon")


@pytest.mark.usefixtures("torch_radon")
@pytest.mark.parametrize("call", [project, lambda x, a, **k: backproject(x, a, depth=3, **k)])
def test_torch_radon_does_not_wrap(call) -> None:
    """torch-radon cannot wrap, and is not asked to."""
    with pytest.raises(ValueError, match='`extend="zero"` with `backend="torch_radon"`, got \'wrap\''):
        call(torch.zeros(1, 3, 3), [0.0], backend="torch_radon", extend="wrap")


def _grow(volume: Tensor, *, depth: int, size: int) -> Tensor:
    """Add empty planes behind and columns on the right (the axis moves, the asymmetry stays)."""
    return torch.nn.functional.pad(volume, (0, size - volume.shape[-1], 0, 0, 0, depth - volume.shape[-3]))


SIZES = [(14, 22, 22), (15, 23, 23), (15, 22, 31), (29, 22, 18), (30, 23, 40)]


@pytest.mark.usefixtures("torch_radon")
@pytest.mark.parametrize(("depth", "size", "width"), SIZES)
def test_torch_radon_agrees(phantom: Tensor, depth: int, size: int, width: int) -> None:
    """The backend torch_radon sees what ours sees, in the same place: odd and even sizes, thin and thick, any width."""
    volume = _grow(phantom, depth=depth, size=size).float()
    ours = project(volume, ANGLES, width=width)
    theirs = project(volume, ANGLES, width=width, backend="torch_radon")
    assert theirs.shape == ours.shape
    assert theirs.dtype == ours.dtype
    for tilt, other in zip(ours, theirs, strict=True):
        assert _correlation(tilt, other) > 0.998  # half a pixel beside gives less


@pytest.mark.usefixtures("torch_radon")
@pytest.mark.parametrize(("depth", "size", "width"), SIZES)
def test_torch_radon_adjoint_agrees(phantom: Tensor, depth: int, size: int, width: int) -> None:
    """Its back-projection puts everything where ours does."""
    tilts = project(_grow(phantom, depth=depth, size=size).float(), ANGLES, width=width)
    ours = backproject(tilts, ANGLES, depth=depth, width=size)
    theirs = backproject(tilts, ANGLES, depth=depth, width=size, backend="torch_radon")
    assert theirs.shape == ours.shape
    assert theirs.dtype == ours.dtype
    assert _correlation(ours, theirs) > 0.996


@pytest.mark.usefixtures("torch_radon")
def test_torch_radon_takes_batches(phantom: Tensor) -> None:
    """Slices are torch-radon's batch; leading axes come back in order, whatever the dtype."""
    volumes = torch.stack([phantom, 2 * phantom.flip(0), phantom.flip(1)])[None]  # (1, 3, z, y, x)
    found = project(volumes, ANGLES, backend="torch_radon")
    assert found.dtype == torch.float64
    assert found.shape == (1, 3, len(ANGLES), *phantom.shape[1:])
    for i in range(3):
        torch.testing.assert_close(found[0, i], project(volumes[0, i], ANGLES, backend="torch_radon"))


@pytest.mark.gpu
def test_torch_radon_for_real(phantom: Tensor) -> None:
    """The real torch-radon agrees with our backend, forwards and backwards."""
    pytest.importorskip("torch_radon", reason="torch-radon is on no package index; build it from its repository")
    volume = phantom.float().cuda()
    ours = project(volume, ANGLES)
    theirs = project(volume, ANGLES, backend="torch_radon")
    assert _correlation(ours.cpu(), theirs.cpu()) > 0.99
    depth = volume.shape[0]
    back = backproject(ours, ANGLES, depth=depth)
    assert _correlation(back.cpu(), backproject(ours, ANGLES, depth=depth, backend="torch_radon").cpu()) > 0.99


# --- what is larger than memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_volume(phantom: Tensor, stored: torch.dtype) -> None:
    """A volume in half precision is projected in float32, with gradients of its own precision."""
    half = phantom.to(stored).requires_grad_()
    found = project(half, ANGLES, dtype=torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, project(half.detach().float(), ANGLES))
    found.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == stored


class _LargestOf(TorchDispatchMode):
    """Finds the largest tensor that is made, other than views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.layout == torch.strided and not func.is_view:
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


def test_volume_is_never_copied_as_a_whole() -> None:
    """Rows of a volume in half precision are brought to the result's precision some at a time."""
    volume = torch.ones(40, 1000, 8, dtype=torch.float16)
    with _LargestOf() as largest:
        found = project(volume, [0.0], dtype=torch.float32)
    assert torch.equal(found, torch.full((1, 1000, 8), 40.0))
    assert largest.bytes <= max(64 * 40 * 8 * 4, 1000 * 8 * 4)  # 64 rows of the volume, or the result


def test_autocast_does_not_reach_projections(phantom: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within `torch.autocast` projections are those without, by either product."""
    for has_bags in (True, False):
        monkeypatch.setattr(sparse, "_HAS_BAGS", has_bags and sparse._HAS_BAGS)
        expected = project(phantom.float(), ANGLES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(project(phantom.float(), ANGLES), expected)


def test_device_of_the_result(phantom: Tensor) -> None:
    """The result's device can be named, as text or as a device."""
    for device in ("cpu", torch.device("cpu")):
        assert torch.equal(project(phantom, ANGLES, device=device), project(phantom, ANGLES))


class _Map:
    """What the cache looks at."""

    def __init__(self, device: str, nbytes: int) -> None:
        self.device, self.nbytes = torch.device(device), nbytes


def test_geometry_is_kept_as_the_device_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device keeps what was used last, the CPU up to a limit, a GPU up to a share of its memory; each the last."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=(1000, 100)[device.index])
    )
    cache = sparse.PlaneMapCache(max_bytes=50, gpu_share=0.2)
    built: list[str] = []

    def get(name: str, device: str, nbytes: int) -> None:
        cache.get(name, lambda: built.append(name) or _Map(device, nbytes))  # type: ignore[arg-type,func-returns-value]

    for name, device, nbytes in (
        *(("a", "cpu", 30), ("b", "cpu", 20), ("c", "cuda:0", 150), ("d", "cuda:0", 50), ("e", "cuda:1", 40)),
        *(("a", "cpu", 30), ("f", "cpu", 10), ("g", "cuda:0", 1), ("h", "cuda:1", 1000)),
    ):
        get(name, device, nbytes)
    # Of the CPU's "b" was used longest ago, of the first GPU's "c"; the second has a limit of 50, as the CPU.
    assert list(cache._maps) == ["d", "a", "f", "g", "h"]
    assert built == list("abcdefgh")


# --- GPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("extend", EXTENDS)
def test_cuda_equals_cpu(phantom: Tensor, extend: str) -> None:
    """The GPU's result stays on the GPU and is the CPU's to 1e-4."""
    volume = phantom.float()
    expected = project(volume, ANGLES, extend=extend)
    found = project(volume.cuda(), ANGLES, extend=extend)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(
        project(volume.half(), ANGLES, extend=extend, device="cuda", dtype=torch.float32).cpu(),
        project(volume.half().float(), ANGLES, extend=extend),
        rtol=1e-4,
        atol=1e-4 * float(expected.abs().max()),
    )
    back = backproject(expected, ANGLES, depth=14, extend=extend)
    torch.testing.assert_close(
        backproject(found, ANGLES, depth=14, extend=extend).cpu(), back, rtol=1e-4, atol=1e-4 * float(back.abs().max())
    )
