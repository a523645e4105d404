"""Which pixels of a series count as measured: what reading finds, and what happens to them on the way."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import TiltSeries
from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.simulation.step_size import _at, split_series
from faket_aug.tilts.alignment import align_by_neighbours
from faket_aug.tilts.borders import MARGIN, measured_pixels
from faket_aug.tomography.resample import covered_pixels, transform_images

HEIGHT, WIDTH = 120, 160
Y, X = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
LEFT, WEDGE = X < 12, Y > 110 + 0.05 * X
TRIANGLE = X + Y < 30


def _noise(seed: int = 0) -> Tensor:
    return torch.randn(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def _counts(mean: float) -> Tensor:
    return torch.poisson(torch.full((1, HEIGHT, WIDTH), mean), generator=torch.Generator().manual_seed(0))


def _smooth(images: Tensor, factor: float) -> Tensor:
    """Whole numbers of which neighbours are alike."""
    k = torch.hypot(torch.fft.fftfreq(HEIGHT)[:, None], torch.fft.rfftfreq(WIDTH))
    low = torch.fft.irfft2(torch.fft.rfft2(images) * torch.exp(-((k / 0.03) ** 2)), s=(HEIGHT, WIDTH))
    return (low / low.std() * factor).round()


# --- what reading finds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "region", [LEFT, WEDGE, TRIANGLE, Y < 1, LEFT | WEDGE], ids=["band", "wedge", "corner", "row", "two"]
)
@pytest.mark.parametrize("kind", ["zeros", "mean", "whole numbers", "counts", "around 0"])
def test_borders_are_found(region: Tensor, kind: str) -> None:
    """Regions of one value at the edges are found to the pixel, with their margin, in floats and in counts."""
    images = {
        "zeros": 1000 + 30 * _noise(),
        "mean": 1000 + 30 * _noise(),
        "whole numbers": (100 + 5 * _noise()).round(),
        "counts": _counts(3.0),
        "around 0": _noise(),
    }[kind]
    value = float(images.mean()) if kind == "mean" else 0.0
    found = measured_pixels(torch.where(region, value, images))
    assert found is not None
    assert not bool((found[0] & region).any()) or int((found[0] & region).sum()) < 12  # the tip of a wedge of counts
    near = torch.nn.functional.max_pool2d(region[None, None].float(), 2 * MARGIN + 1, 1, MARGIN)[0, 0] > 0
    assert int((~found[0] & ~near).sum()) <= (12 if kind == "counts" else 0)


@pytest.mark.parametrize(
    "images",
    [
        *[_counts(mean) for mean in (0.02, 0.1, 0.3, 0.5, 1.0, 3.0, 12.0)],
        *[_smooth(_noise(seed), factor) for seed in range(3) for factor in (1.0, 3.0)],
        *[100 + _smooth(_noise(seed), 2.0) for seed in range(3)],
        _noise().round(),
        _noise() * (_noise(1) > 0),
        torch.zeros(1, HEIGHT, WIDTH),
        torch.full((1, HEIGHT, WIDTH), 7.0),
        (_noise() * ((X - 80) ** 2 + (Y - 60) ** 2 < 400)),
    ],
)
def test_what_was_measured_is_not_masked(images: Tensor) -> None:
    """Counts with zeros, smooth whole numbers, values around 0, constant tilts and clean projections stay whole."""
    assert measured_pixels(images) is None


def test_zeros_among_values_far_from_zero() -> None:
    """Dead pixels are zeros of tilts whose other values are far from 0, on one side."""
    images = torch.cat([1000 + 30 * _noise(), _noise(), 1000 + 30 * _noise(2), -500 + 30 * _noise(3)])
    images[0, 50, 60:63] = images[1, 50, 60] = images[3, 7, 7] = 0.0
    found = measured_pixels(images)
    assert found is not None
    assert found.dtype == torch.bool
    assert (~found).sum(dim=(1, 2)).tolist() == [3, 0, 0, 1]
    assert not bool(found[0, 50, 60:63].any())


def test_reading_marks_borders(tmp_path: Path) -> None:
    """A series without a border has no mask; with one it has, in the order of its angles."""
    tilts = 1000 + 30 * torch.cat([_noise(seed) for seed in range(3)])
    write_mrc(tmp_path / "whole.mrc", tilts, voxel_size=5.0)
    assert TiltSeries.read(tmp_path / "whole.mrc", tilt_angles=[3.0, -3.0, 0.0]).measured is None
    tilts[0, :, :20] = 0.0
    write_mrc(tmp_path / "cut.mrc", tilts, voxel_size=5.0)
    series = TiltSeries.read(tmp_path / "cut.mrc", tilt_angles=[3.0, -3.0, 0.0])
    assert series.measured is not None
    assert (~series.measured).sum(dim=(1, 2)).tolist() == [0, 0, HEIGHT * (20 + MARGIN)]


@pytest.mark.reference
def test_real_series(reference: Path) -> None:
    """Whole as the microscope wrote it; aligned, 4 to 7 % of its pixels are from outside."""
    path = reference / "data/real/empiar10499_ts00254/00254.mrc"
    series = TiltSeries.read(path)
    assert series.measured is None
    assert series.metadata is not None
    some = np.arange(0, 41, 10)
    few = replace(
        series, tilts=series.tilts[some], tilt_angles=series.tilt_angles[some], metadata=series.metadata.take(some)
    )
    measured = few.aligned().measured
    assert measured is not None
    outside = 1 - measured.double().mean(dim=(1, 2))
    assert 0.03 < float(outside.min()) < float(outside.max()) < 0.09


# --- on the way -------------------------------------------------------------------------------------------------------


def _series(**changes: object) -> TiltSeries:
    known = torch.ones(3, HEIGHT, WIDTH, dtype=torch.bool)
    for index in range(3):
        known[index, : 5 * (index + 1)] = False
    tilts = torch.cat([_noise(seed) for seed in range(3)])
    settings: dict[str, object] = {"tilts": tilts, "tilt_angles": np.array([3.0, -3.0, 0.0]), "measured": known}
    return TiltSeries(**(settings | changes))  # type: ignore[arg-type]


def _missing(series: TiltSeries) -> list[int]:
    assert series.measured is not None
    return ((~series.measured).sum(dim=(1, 2)) // WIDTH).tolist()


def test_masks_go_with_their_tilts() -> None:
    """Sorted, replaced, clipped, corrected, pickled and divided, each tilt keeps its mask."""
    series = _series()
    assert _missing(series) == [10, 15, 5]
    for other in (
        replace(series, name="other"),
        series.clipped((0.01, 0.99)),
        pickle.loads(pickle.dumps(series)),
        replace(series, pixel_size=5.0).ctf_corrected(ctf=ContrastTransfer(defocus=3.0)),
    ):
        assert _missing(other) == [10, 15, 5]
    style, held_out = split_series([series])
    assert [_missing(style[0]), _missing(held_out[0])] == [[10, 5], [15]]
    assert _missing(_at(series, np.array([2.0, -2.0]))) == [10, 5]  # sorted by angle again


def test_clipping_takes_measured_values() -> None:
    """Each tilt is clipped to the quantiles of its measured pixels."""
    series = _series()
    assert series.measured is not None
    tilts = torch.where(series.measured, series.tilts, 1e6)
    clipped = replace(series, tilts=tilts).clipped((0.01, 0.99)).tilts
    assert float(clipped.max()) < 3


def test_bad_masks() -> None:
    """A mask has the tilts' shape and is boolean; one that is true everywhere is none."""
    with pytest.raises(ValueError, match=r"tilt-series: measured` as booleans of the images' shape, \(3, 120, 160\)"):
        _series(measured=torch.ones(3, HEIGHT, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="got torch.uint8"):
        _series(measured=torch.ones(3, HEIGHT, WIDTH, dtype=torch.uint8))
    assert _series(measured=torch.ones(3, HEIGHT, WIDTH, dtype=torch.bool)).measured is None


def test_old_pickles_have_no_mask() -> None:
    """A series that was pickled before there were masks is read as measured everywhere."""
    series = _series(measured=None)
    del series.__dict__["measured"]
    assert pickle.loads(pickle.dumps(series)).measured is None


def test_covered_pixels() -> None:
    """Shifted by whole pixels, all that is left was measured; turned by 90°, what the short side reaches."""
    eye = np.eye(2)[None]
    assert covered_pixels((20, 30), eye, [[0.0, 0.0]]) is None
    shifted = covered_pixels((20, 30), eye, [[3.0, -4.0]])
    assert shifted is not None
    assert bool(shifted[0, :17, 4:].all())
    assert int(shifted.sum()) == 17 * 26
    turned = covered_pixels((30, 20), [[[0.0, -1.0], [1.0, 0.0]]], [[0.0, 0.0]], shape=(30, 30))
    assert turned is not None
    assert int(turned.sum()) == 30 * 20 or int(turned.sum()) == 29 * 20
    # No more than the fraction of an image whose interpolation sees what was not measured.
    known = torch.ones(1, 20, 30, dtype=torch.bool)
    known[0, :, :6] = False
    both = covered_pixels((20, 30), eye, [[0.0, 2.0]], measured=known)
    assert both is not None
    assert [int(n) for n in (~both[0]).sum(dim=1).unique()] == [4 + 10 + 2]


def test_measured_pixels_do_not_see_others() -> None:
    """An aligned pixel that counts has the value of an image that goes on beyond the border."""
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(1, 80, 90, generator=generator, dtype=torch.float64)
    known = torch.ones(1, 80, 90, dtype=torch.bool)
    known[0, :, :15] = False
    angle = 0.3
    matrix = [[[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]]
    seen, cut = (transform_images(one, matrix, [[1.3, -2.6]]) for one in (whole, torch.where(known, whole, 0.0)))
    covered = covered_pixels((80, 90), matrix, [[1.3, -2.6]], measured=known)
    assert covered is not None
    assert 0.5 < float(covered.double().mean()) < 0.9
    # Of white noise, which has all of the frequencies near the edge.
    assert float((seen - cut)[covered].square().mean().sqrt()) < 0.02
    assert float((seen - cut)[covered].abs().max()) < 0.15
    assert float((seen - cut)[~covered].abs().max()) > 1


def test_aligning_marks_what_comes_from_outside() -> None:
    """The mask of an aligned series: the corners, and the transformed border of before."""
    metadata = TiltMetadata(
        sections=np.arange(3),
        tilt_angles=np.array([-3.0, 0.0, 3.0]),
        axis_angle=np.full(3, 90.0),
        shifts=np.zeros((3, 2)),
        shift_unit="pixel",
        pixel_size=10.0,
        image_size=(HEIGHT, WIDTH),
        source="test",
    )
    tilts = torch.cat([_noise(seed) for seed in range(3)])
    series = TiltSeries(tilts=tilts, tilt_angles=metadata.tilt_angles, pixel_size=10.0, metadata=metadata)
    turned = series.aligned()
    assert turned.tilts.shape[1:] == (WIDTH, HEIGHT)
    assert turned.measured is None or float(turned.measured.double().mean()) > 0.98
    kept = series.aligned(shape=(HEIGHT, WIDTH)).measured
    assert kept is not None
    assert abs(float(kept.double().mean()) - HEIGHT / WIDTH) < 0.02
    known = torch.ones(3, HEIGHT, WIDTH, dtype=torch.bool)
    known[:, :, :40] = False  # a quarter
    both = replace(series, measured=known).aligned().measured
    assert both is not None
    # A quarter, and ten columns more, which what was not measured reaches.
    assert 0.68 < float(both.double().mean()) < 0.70
    assert turned.aligned() is turned


def test_values_of_what_was_not_measured_do_not_matter() -> None:
    """Shifts, and aligned tilts, are the same whatever a program has written into a border."""
    generator = torch.Generator().manual_seed(0)
    angles = np.array([-3.0, 0.0, 3.0])
    tilts = torch.randn(3, 64, 80, generator=generator).cumsum(dim=1).cumsum(dim=2)
    known = torch.ones(tilts.shape, dtype=torch.bool)
    known[:, :10] = False
    plain, loud = (
        TiltSeries(tilts=torch.where(known, tilts, value), tilt_angles=angles, pixel_size=10.0, measured=known)
        for value in (0.0, 1e6)
    )
    found, same = (align_by_neighbours(one, axis_angle=20.0).shifts for one in (plain, loud))
    assert found is not None
    assert np.array_equal(found, same)
    aligned, also = (replace(one, metadata=align_by_neighbours(plain)).aligned() for one in (plain, loud))
    assert torch.equal(aligned.tilts, also.tilts)


def test_neighbours_are_compared_where_they_were_measured() -> None:
    """A fixed border, which is the same in all tilts, does not hold them in their places."""
    generator = np.random.default_rng(0)
    wide = torch.from_numpy(generator.normal(size=(1, 200, 200)).astype(np.float32))
    k = torch.hypot(torch.fft.fftfreq(200)[:, None], torch.fft.rfftfreq(200))
    wide = torch.fft.irfft2(torch.fft.rfft2(wide) * torch.exp(-((k / 0.1) ** 2)))
    places = [(0, 0), (4, -6), (-5, 8), (7, 3), (-3, -7)]
    tilts = torch.cat([wide[:, 40 + y : 160 + y, 40 + x : 160 + x] for y, x in places])
    tilts = tilts + 0.05 * torch.from_numpy(generator.normal(size=tilts.shape).astype(np.float32))
    known = torch.ones(tilts.shape, dtype=torch.bool)
    known[:, :30] = known[:, :, 90:] = False
    tilts = torch.where(known, tilts, 20.0)
    series = TiltSeries(tilts=tilts, tilt_angles=np.array([0.0, 0.1, 0.2, 0.3, 0.4]), measured=known)
    expected = -np.array(places, dtype=float)
    for given, right in ((series, True), (replace(series, measured=None), False)):
        shifts = align_by_neighbours(given).shifts
        assert shifts is not None
        assert (np.abs(shifts - expected).max() < 0.5) == right
