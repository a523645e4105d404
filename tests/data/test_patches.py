"""Patches: within the volume, cut where they say, made comparable, and spheres as geometry has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faket_aug.data.patches import as_size, clamp_center, cut, normalize, sphere_labels

Sizes = st.tuples(*[st.integers(1, 12)] * 3)


def test_as_size() -> None:
    """One number is a cube, three are (z, y, x), of whatever integer type."""
    assert as_size(5) == (5, 5, 5)
    assert as_size((1, 2, 3)) == (1, 2, 3)
    assert as_size([np.int64(4), np.int32(5), 6]) == (4, 5, 6)
    assert as_size(np.array([4, 5, 6])) == (4, 5, 6)


@pytest.mark.parametrize("wrong", [0, -3, (1, 2), (1, 2, 3, 4), (0, 1, 2), ()])
def test_bad_size(wrong: object) -> None:
    """A size is one or three positive numbers."""
    with pytest.raises(ValueError, match="expected `patch_size` to be one or three positive numbers"):
        as_size(wrong)


def test_size_that_is_no_whole_number() -> None:
    """A size that is no whole number is refused, not rounded in silence."""
    with pytest.raises((TypeError, ValueError), match="patch_size"):
        as_size((4.5, 4, 4))


@settings(max_examples=200, deadline=None)
@given(size=Sizes, extra=st.tuples(*[st.integers(0, 9)] * 3), center=st.tuples(*[st.floats(-30, 40)] * 3))
def test_clamped_patches_lie_within(
    size: tuple[int, int, int], extra: tuple[int, int, int], center: tuple[float, float, float]
) -> None:
    """A clamped centre gives a patch within the volume, moved no further than needed."""
    shape = tuple(s + e for s, e in zip(size, extra, strict=True))
    clamped = clamp_center(center, size, shape)
    volume = torch.arange(int(np.prod(shape))).reshape(shape)
    patch = cut(volume, clamped, size)
    assert tuple(patch.shape) == size
    assert patch[tuple(s // 2 for s in size)] == volume[tuple(clamped)]
    for c, wanted, s, n in zip(clamped, np.rint(center), size, shape, strict=True):
        allowed = range(s // 2, n - s + s // 2 + 1)
        assert c in allowed
        assert abs(c - wanted) == min(abs(a - wanted) for a in allowed)


@pytest.mark.parametrize("size", [(5, 4, 4), (4, 5, 4), (4, 4, 5), (9, 9, 9)])
def test_patch_larger_than_the_volume(size: tuple[int, int, int]) -> None:
    """A patch that is larger along any axis is an error with both sizes."""
    with pytest.raises(ValueError, match=r"expected a patch that fits the tomogram of \(4, 4, 4\) voxels") as caught:
        clamp_center((0, 0, 0), size, (4, 4, 4))
    assert str(size) in str(caught.value)


def test_cut_is_a_view() -> None:
    """Cutting copies nothing."""
    volume = torch.zeros(5, 6, 7)
    cut(volume, np.array([2, 3, 3]), (2, 2, 2)).fill_(1)
    assert volume.sum() == 8
    assert volume[1:3, 2:4, 2:4].all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(1e-3, 1e4), offset=st.floats(-1e3, 1e3))
def test_normalize(seed: int, scale: float, offset: float) -> None:
    """Mean 0 and population deviation 1, whatever the unit."""
    patch = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = normalize(patch * scale + offset)
    assert abs(float(found.mean())) < 1e-6
    assert float(found.std(correction=0)) == pytest.approx(1)
    torch.testing.assert_close(found, normalize(patch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e7, 1e-30, 0.1])
def test_normalize_of_a_constant(value: float) -> None:
    """A constant patch becomes 0, not NaN and not amplified rounding."""
    assert torch.equal(normalize(torch.full((7, 7, 7), value)), torch.zeros(7, 7, 7))


# --- spheres ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    origin=st.tuples(*[st.integers(-3, 6)] * 3),
    places=st.lists(st.tuples(*[st.floats(-4, 14)] * 3), max_size=5),
    data=st.data(),
)
def test_spheres_by_brute_force(
    shape: tuple[int, int, int],
    origin: tuple[int, int, int],
    places: list[tuple[float, float, float]],
    data: st.DataObject,
) -> None:
    """A voxel has the class of the nearest particle of those whose radius reaches it; of equals, the first's."""
    classes = np.array(data.draw(st.lists(st.integers(1, 3), min_size=len(places), max_size=len(places))), np.int64)
    radii = {1: 2.0, 2: 3.5}
    positions = np.array(places, dtype=np.float64).reshape(-1, 3)
    found = sphere_labels(shape, np.array(origin), classes, positions, radii)
    assert found.dtype == torch.int64
    expected = np.zeros(shape, np.int64)
    for voxel in np.ndindex(*shape):
        best = np.inf
        for number, position in zip(classes, positions - np.array(origin), strict=True):
            distance = float(((np.array(voxel) - position) ** 2).sum())
            if distance <= radii.get(int(number), -1.0) ** 2 and number in radii and distance < best:
                best, expected[voxel] = distance, number
    assert np.array_equal(found.numpy(), expected)


def test_sphere_at_a_voxel() -> None:
    """A radius smaller than a voxel marks the centre's own voxel."""
    found = sphere_labels((3, 3, 3), np.zeros(3, np.int64), np.array([2]), np.array([[1.0, 1.0, 1.0]]), {2: 0.5})
    assert found.nonzero().tolist() == [[1, 1, 1]]
    assert found[1, 1, 1] == 2


def test_sphere_volume() -> None:
    """The sphere of radius r has the volume of one."""
    found = sphere_labels((40, 40, 40), np.zeros(3, np.int64), np.array([1]), np.array([[20.0, 20.0, 20.0]]), {1: 15.0})
    assert int((found > 0).sum()) == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.01)
