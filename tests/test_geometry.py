"""The conventions: signs, the axis of rotation, orientations; values, not only shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from faket_aug.geometry import (
    as_tilt_angles,
    axis_index,
    from_skimage_sign,
    half_turn_about_tilt_axis,
    joint_angles,
    nearest_tilts,
    quaternion_matrices,
    relion_angles,
    relion_matrices,
    zxz_angles,
    zxz_matrices,
    zyz_angles,
    zyz_matrices,
)
from faket_aug.tomography.projection import project
from faket_aug.tomography.reconstruction import reconstruct


@pytest.mark.parametrize(("size", "index"), [(1, 0), (2, 1), (3, 1), (8, 4), (9, 4)])
def test_axis_index(size: int, index: int) -> None:
    """The axis goes through voxel `n // 2`, where an FFT has its centre."""
    assert axis_index(size) == index
    assert int(np.argmin(np.abs(np.fft.fftshift(np.fft.fftfreq(size))))) == index


# --- tilt angles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "angles",
    [
        [-3.0, 0.0, 3.0],
        (-3, 0, 3),
        range(-3, 4, 3),
        np.array([-3, 0, 3], dtype=np.int16),
        np.array([-3, 0, 3], dtype=np.float32),
        torch.tensor([-3.0, 0.0, 3.0]),
        torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True),
    ],
)
def test_angles_of_any_kind(angles: object) -> None:
    """Lists, tuples, arrays and tensors become an array of float64, degrees unchanged."""
    found = as_tilt_angles(angles)  # type: ignore[arg-type]
    assert found.dtype == np.float64
    assert found.tolist() == [-3.0, 0.0, 3.0]


def test_bad_angles() -> None:
    """Angles are one-dimensional, finite, one at least, and as many as tilts."""
    with pytest.raises(ValueError, match=r"`tilt_angles` of shape \(tilt,\) with at least one tilt, got shape \(0,\)"):
        as_tilt_angles([])
    with pytest.raises(ValueError, match=r"got shape \(1, 2\)"):
        as_tilt_angles([[1.0, 2.0]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"finite `tilt_angles` in degrees, got \[0.0, nan\]"):
        as_tilt_angles([0.0, math.nan])
    with pytest.raises(ValueError, match="one tilt angle for each of 5 tilts, got 2; set `tilt_angles`"):
        as_tilt_angles([0.0, 1.0], count=5)


def test_skimage_sign() -> None:
    """skimage's θ is our -θ, there and back, without a negative zero."""
    found = from_skimage_sign([-60.0, 0.0, 12.5])
    assert found.tolist() == [60.0, 0.0, -12.5]
    assert not np.signbit(found[1])
    assert from_skimage_sign(found).tolist() == [-60.0, 0.0, 12.5]


def test_nearest_tilts() -> None:
    """Each tilt finds the nearest in angle, in any order of the others; of equals the first."""
    assert nearest_tilts([-60, -1, 1.4, 70], [3.0, 0.0, -57.0, 60.0, -63.0]).tolist() == [2, 1, 1, 3]
    assert nearest_tilts([1.0], [0.0, 2.0]).tolist() == [0]
    assert nearest_tilts([1.0], [2.0, 0.0]).tolist() == [0]
    assert nearest_tilts([5.0, -5.0], [0.0]).dtype == np.int64


@settings(max_examples=30, deadline=None)
@given(
    tilts=st.lists(st.floats(-90, 90), min_size=1, max_size=6),
    others=st.lists(st.floats(-90, 90), min_size=1, max_size=6),
)
def test_no_other_tilt_is_nearer(tilts: list[float], others: list[float]) -> None:
    """Whatever the angles, none of the others is nearer than the one found."""
    for angle, found in zip(tilts, nearest_tilts(tilts, others), strict=True):
        assert abs(others[found] - angle) == min(abs(other - angle) for other in others)


# --- orientations -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-360, 360)] * 3), min_size=1, max_size=5))
def test_zxz_is_scipys(angles: list[tuple[float, float, float]]) -> None:
    """The matrices are those of SciPy's intrinsic `"ZXZ"`, and rotations."""
    found = zxz_matrices(angles)
    np.testing.assert_allclose(found, Rotation.from_euler("ZXZ", angles, degrees=True).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(found @ found.transpose(0, 2, 1), np.broadcast_to(np.eye(3), found.shape), atol=1e-12)


def test_zxz_by_hand() -> None:
    """Matrices act on columns (x, y, z): a quarter turn about z takes x to y; order is `Rz(Z1) · Rx(X) · Rz(Z2)`."""
    quarter_z, quarter_x, both = zxz_matrices([[90.0, 0, 0], [0, 90, 0], [90, 90, 0]])
    np.testing.assert_allclose(quarter_z @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(quarter_x @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(both, quarter_z @ quarter_x, atol=1e-12)


def test_zxz_shapes() -> None:
    """None, one and many; a row with NaN (no orientation) is NaN in all its matrix and leaves the others alone."""
    assert zxz_matrices(np.zeros((0, 3))).shape == (0, 3, 3)
    assert zxz_matrices([1.0, 2.0, 3.0]).shape == (1, 3, 3)
    found = zxz_matrices([[math.nan, 1.0, 2.0], [10.0, 20.0, 30.0]])
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], Rotation.from_euler("ZXZ", [10, 20, 30], degrees=True).as_matrix(), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-360, 360)] * 3), min_size=1, max_size=5))
def test_zyz_is_scipys(angles: list[tuple[float, float, float]]) -> None:
    """The matrices are those of SciPy's intrinsic `"ZYZ"`; RELION's are their inverses."""
    expected = Rotation.from_euler("ZYZ", angles, degrees=True)
    np.testing.assert_allclose(zyz_matrices(angles), expected.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(relion_matrices(angles), expected.inv().as_matrix(), atol=1e-12)


def _by_hand(angles_deg: np.ndarray, middle: int) -> np.ndarray:
    """`Rz · R_middle · Rz`, each written out as sines and cosines."""

    def about(axis: int, angle: np.ndarray) -> np.ndarray:
        first, second = (axis + 1) % 3, (axis + 2) % 3
        matrices = np.zeros((len(angle), 3, 3))
        matrices[:, axis, axis] = 1
        matrices[:, first, first] = matrices[:, second, second] = np.cos(angle)
        matrices[:, second, first], matrices[:, first, second] = np.sin(angle), -np.sin(angle)
        return matrices

    a, b, c = np.deg2rad(angles_deg).T
    return about(2, a) @ about(middle, b) @ about(2, c)


def _many_angles() -> np.ndarray:
    """Thousands of angles: any, multiples of 45°, and middle ones at and near 0 and 180°."""
    random = np.random.default_rng(7)
    angles = random.uniform(-360, 360, (6000, 3))
    angles[:1000] = 45 * random.integers(-8, 9, (1000, 3))
    angles[1000:1500, 1], angles[1500:2000, 1] = 0, 180
    near = np.rad2deg(10 ** random.uniform(-17, -3, 2000))
    angles[2000:3000, 1], angles[3000:4000, 1] = near[:1000], 180 - near[1000:]
    return angles


def test_matrices_are_the_formulas() -> None:
    """Euler matrices and quaternions are the textbook's formulas to rounding, at degenerate angles, too."""
    angles = _many_angles()
    for found, expected in (
        (zxz_matrices(angles), _by_hand(angles, 0)),
        (zyz_matrices(angles), _by_hand(angles, 1)),
        (relion_matrices(angles), _by_hand(angles, 1).transpose(0, 2, 1)),
    ):
        difference = np.abs(found - expected).max(axis=(1, 2))
        assert difference.max() < 1e-15
        assert np.median(difference) < 4e-16
    w, x, y, z = values = np.random.default_rng(8).normal(size=(4, 5000))
    w, x, y, z = values / np.linalg.norm(values, axis=0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    difference = np.abs(quaternion_matrices(values.T) - np.moveaxis(np.array(rows), -1, 0)).max(axis=(1, 2))
    assert difference.max() < 2e-15
    assert np.median(difference) < 4e-16


def test_many_angles_give_their_matrices_back() -> None:
    """No orientation is lost near the lock, where SciPy's own angles lose 1e-7; at it the first angle is 0."""
    angles = _many_angles()
    for to_matrices, to_angles in ((zxz_matrices, zxz_angles), (zyz_matrices, zyz_angles)):
        found = to_angles(to_matrices(angles))
        np.testing.assert_allclose(to_matrices(found), to_matrices(angles), rtol=0, atol=2e-12)
        assert not found[1000:2000, 0].any()


#: Tilts where the first and the last angle turn about the same axis, or nearly so.
LOCKS = st.sampled_from([0.0, 1e-14, 1e-12, 1e-9, 1e-6, 90.0, 180 - 1e-6, 180 - 1e-9, 180 - 1e-12, 180.0, 200.0, -30.0])


@settings(max_examples=100, deadline=None)
@given(first=st.floats(-360, 360), middle=st.floats(-360, 360) | LOCKS, last=st.floats(-360, 360))
def test_angles_give_their_matrix_back(first: float, middle: float, last: float) -> None:
    """Angles found in a matrix make the same matrix, also where they are not unique; the middle one is 0 to 180."""
    for to_matrices, to_angles in (
        (zxz_matrices, zxz_angles),
        (zyz_matrices, zyz_angles),
        (relion_matrices, relion_angles),
    ):
        matrix = to_matrices([[first, middle, last]])
        found = to_angles(matrix)
        np.testing.assert_allclose(to_matrices(found), matrix, atol=2e-12)
        assert 0 <= found[0, 1] <= 180
        assert np.abs(found).max() <= 180


def test_angles_are_found() -> None:
    """Away from the lock the angles themselves come back; at it the first is 0 and nothing is a negative zero."""
    angles = np.array([[30.0, 50.0, -70.0], [-170.0, 179.0, 10.0], [0.0, 1.0, 180.0]])
    for to_matrices, to_angles in ((zxz_matrices, zxz_angles), (zyz_matrices, zyz_angles)):
        np.testing.assert_allclose(to_angles(to_matrices(angles)), angles, atol=1e-9)
        np.testing.assert_allclose(to_angles(to_matrices([[20.0, 0.0, 35.0]])), [[0, 0, 55]], atol=1e-9)
        np.testing.assert_allclose(to_angles(to_matrices([[20.0, 180.0, 35.0]])), [[0, 180, 15]], atol=1e-9)
        nothing = to_angles(np.eye(3))
        assert nothing.tolist() == [[0, 0, 0]]
        assert not np.signbit(nothing).any()
    np.testing.assert_allclose(relion_angles(relion_matrices(angles)), angles, atol=1e-9)


def test_relion_by_hand() -> None:
    """RELION's published matrix: tilt 90 takes the reference's z to -x, rot 90 its x to -y, psi 90 alone the same."""
    tilt, rot, psi = relion_matrices([[0.0, 90, 0], [90, 0, 0], [0, 0, 90]])
    np.testing.assert_allclose(tilt @ [0, 0, 1], [-1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(rot @ [1, 0, 0], [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(psi, rot, atol=1e-12)
    # The entries of Heymann, Chagoyen and Belnap (2005) that tell the order: r13 and r31.
    rot_deg, tilt_deg, psi_deg = np.deg2rad([20.0, 35.0, 50.0])
    (matrix,) = relion_matrices([[20.0, 35.0, 50.0]])
    assert matrix[0, 2] == pytest.approx(-np.cos(psi_deg) * np.sin(tilt_deg))
    assert matrix[2, 0] == pytest.approx(np.sin(tilt_deg) * np.cos(rot_deg))


def test_angles_shapes() -> None:
    """None, one and many; NaN in a matrix gives NaN in its row only."""
    for to_angles in (zxz_angles, zyz_angles, relion_angles):
        assert to_angles(np.zeros((0, 3, 3))).shape == (0, 3)
        found = to_angles(np.stack([np.full((3, 3), np.nan), np.eye(3)]))
        assert np.isnan(found[0]).all()
        assert found[1].tolist() == [0, 0, 0]


def test_quaternions_are_scipys() -> None:
    """Scalar first, of any length: SciPy's rotations with the scalar put last."""
    turns = Rotation.random(20, random_state=np.random.default_rng(1))
    x, y, z, w = turns.as_quat().T
    np.testing.assert_allclose(quaternion_matrices(np.stack([w, x, y, z], 1)), turns.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(quaternion_matrices(-2.5 * np.stack([w, x, y, z], 1)), turns.as_matrix(), atol=1e-12)
    # A quarter turn about z takes x to y.
    (quarter,) = quaternion_matrices([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])
    np.testing.assert_allclose(quarter @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_quaternions_that_are_none() -> None:
    """NaN and zeros give NaN in their row only."""
    found = quaternion_matrices([[0, 0, 0, 0], [np.nan, 0, 0, 1], [np.inf, 0, 0, 1], [1, 0, 0, 0]])
    assert np.isnan(found[:3]).all()
    np.testing.assert_array_equal(found[3], np.eye(3))
    assert quaternion_matrices(np.zeros((0, 4))).shape == (0, 3, 3)


# --- the half turn ----------------------------------------------------------------------------------------------------


def test_half_turn() -> None:
    """Half a turn about y runs z and x backwards and leaves y; twice it is nothing; leading axes pass through."""
    volume = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    found = half_turn_about_tilt_axis(volume)
    for z, y, x in np.ndindex(2, 3, 4):
        assert found[z, y, x] == volume[1 - z, y, 3 - x]
    assert torch.equal(half_turn_about_tilt_axis(found), volume)
    assert torch.equal(half_turn_about_tilt_axis(torch.stack([volume, found])), torch.stack([found, volume]))


def test_half_turn_is_what_180_degrees_do(phantom: Tensor) -> None:
    """Turned by half a turn (odd sizes: about the axis itself) the specimen is seen as if tilted 180° more."""
    volume = phantom[:13, :, :21]
    angles = np.array([-40.0, 0.0, 25.0])
    seen = project(half_turn_about_tilt_axis(volume), angles)
    torch.testing.assert_close(seen, project(volume, angles + 180), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(seen, project(volume, angles).flip(-1), rtol=1e-9, atol=1e-9)
    back = reconstruct(project(volume, angles), angles, depth=13, filter="ramp")
    turned = reconstruct(seen, angles, depth=13, filter="ramp")
    torch.testing.assert_close(turned, half_turn_about_tilt_axis(back), rtol=1e-9, atol=1e-9)


def test_joint_angles() -> None:
    """Each angle of each series is near one of them, and none is there twice."""
    series = [np.arange(-60.0, 61.0, 3.0), np.arange(-48.05, 48.0, 2.0)[::-1]]
    found = joint_angles(*series)
    assert np.diff(found).min() > 0.25
    assert max(float(np.abs(found - angle).min()) for angles in series for angle in angles) <= 0.25
    np.testing.assert_array_equal(joint_angles([3.0, 0.0], [0.1]), [0.0, 3.0])
    np.testing.assert_array_equal(joint_angles([0.0, 0.2, 0.4]), [0.0, 0.2, 0.4])
