"""Measured tilt-series: angles that belong to their tilts, sorted, whatever lay beside the stack."""

from __future__ import annotations

import gzip
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import SHREC_ALIGNMENT, mdoc

from faket_aug import FileFormatError, TiltSeries
from faket_aug.formats.mrc import write_mrc

ANGLES = [3.0, -3.0, 0.0, 6.0, -6.0]
TABLE = "".join(f"{angle}\n" for angle in ANGLES)


def _tilts(count: int = len(ANGLES)) -> torch.Tensor:
    """Tilt i holds the value i everywhere but in one pixel."""
    tilts = torch.arange(count)[:, None, None].expand(-1, 4, 6).clone().float()
    tilts[:, 1, 2] += 0.5
    return tilts


def _stack(path: Path, count: int = len(ANGLES)) -> Path:
    write_mrc(path, _tilts(count), voxel_size=2.17)
    return path


def _assert_sorted(series: TiltSeries) -> None:
    """Tilts and angles are sorted by angle, and still belong to each other."""
    assert series.tilt_angles.tolist() == sorted(ANGLES)
    assert [ANGLES[int(tilt[0, 0])] for tilt in series.tilts] == sorted(ANGLES)
    assert torch.equal(series.tilts[:, 1, 2], series.tilts[:, 0, 0] + 0.5)


# --- order ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(angles=st.lists(st.floats(-70, 70), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_any_order_is_sorted(angles: list[float], seed: int) -> None:
    """Whatever the order of acquisition, the series is ordered by angle, each tilt with its own."""
    tilts = torch.tensor(angles, dtype=torch.float64)[:, None, None].expand(-1, 2, 3).float()
    series = TiltSeries(tilts=tilts, tilt_angles=np.array(angles))
    assert series.tilt_angles.tolist() == sorted(angles)
    assert torch.equal(series.tilts[:, 0, 0], torch.tensor(sorted(angles), dtype=torch.float64).float())
    order = list(range(len(angles)))
    random.Random(seed).shuffle(order)
    other = TiltSeries(tilts=tilts[order], tilt_angles=np.array(angles)[order])
    assert torch.equal(other.tilts, series.tilts)


def test_equal_angles_keep_their_order() -> None:
    """Tilts of the same angle stay as they were taken."""
    series = TiltSeries(tilts=_tilts(4), tilt_angles=np.array([3.0, 0.0, 3.0, 0.0]))
    assert series.tilts[:, 0, 0].tolist() == [1, 3, 0, 2]


def test_input_is_left_alone() -> None:
    """Sorting makes copies: the user's tilts and angles stay."""
    tilts, angles = _tilts(), np.array(ANGLES)
    TiltSeries(tilts=tilts, tilt_angles=angles)
    assert torch.equal(tilts, _tilts())
    assert angles.tolist() == ANGLES


def test_sorted_integers_become_floats() -> None:
    """Tilts are float32 whatever the camera counted in."""
    for dtype in (torch.int8, torch.int16, torch.float64, torch.float32):
        series = TiltSeries(tilts=_tilts().to(dtype), tilt_angles=np.array(ANGLES))
        assert series.tilts.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tilt_angles": np.array([0.0, 3.0])}, "expected one tilt angle for each of 5 tilts, got 2"),
        ({"tilt_angles": np.array([[0.0] * 5])}, r"expected `tilt_angles` of shape \(tilt,\)"),
        ({"tilt_angles": np.array([0, 1, 2, 3, np.nan])}, "expected finite `tilt_angles` in degrees"),
        ({"tilts": torch.zeros(4, 6)}, r"expected `tilts` of shape \(tilt, y, x\), got \(4, 6\)"),
        ({"pixel_size": -1.0}, "expected `pixel_size` to be 0 or more, got -1.0"),
    ],
)
def test_bad_series(changes: dict[str, object], message: str) -> None:
    """A series that cannot be is refused, with what was expected and what was found."""
    with pytest.raises(ValueError, match=message):
        TiltSeries(**({"tilts": _tilts(), "tilt_angles": np.array(ANGLES)} | changes))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mrc", ".st", ".mrcs", ".ali"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tlt", TABLE),
        ("a.rawtlt", TABLE),
        ("a.mdoc", mdoc(ANGLES)),
        ("a{suffix}.mdoc", mdoc(ANGLES)),
    ],
)
def test_read(tmp_path: Path, suffix: str, name: str, content: str) -> None:
    """A stack with any of the field's files of angles beside it, in the order of acquisition, is sorted by angle."""
    stack = _stack(tmp_path / f"a{suffix}")
    (tmp_path / name.format(suffix=suffix)).write_text(content)
    series = TiltSeries.read(stack)
    _assert_sorted(series)
    assert series.pixel_size == pytest.approx(2.17)
    assert series.name == str(stack)
    _assert_sorted(TiltSeries.read(str(stack)))


def test_shrec_angles_are_negated(tmp_path: Path) -> None:
    """SHREC's angles have the other sign: the tilt that its file calls -60° is the one at +60°."""
    _stack(tmp_path / "projections.mrc", 3)
    (tmp_path / "alignment_simulated.txt").write_text(SHREC_ALIGNMENT)
    series = TiltSeries.read(tmp_path)
    assert series.tilt_angles.tolist() == [-57.0, 0.0, 60.0]
    assert series.tilts[:, 0, 0].tolist() == [2, 1, 0]


def test_angles_by_hand(tmp_path: Path) -> None:
    """Angles that are given go before those beside the stack, be they numbers or a file."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / "a.tlt").write_text("0\n" * 5)
    (tmp_path / "other.rawtlt").write_text(TABLE)
    for given_ in (ANGLES, tuple(ANGLES), np.array(ANGLES), torch.tensor(ANGLES), tmp_path / "other.rawtlt"):
        _assert_sorted(TiltSeries.read(stack, tilt_angles=given_))
    _assert_sorted(TiltSeries.read(stack, tilt_angles=str(tmp_path / "other.rawtlt")))


def test_pixel_size_by_hand(tmp_path: Path) -> None:
    """The pixel size that is given goes before the header's."""
    stack = _stack(tmp_path / "a.mrc")
    assert TiltSeries.read(stack, tilt_angles=ANGLES, pixel_size=10.0).pixel_size == 10.0


@pytest.mark.parametrize("name", ["projections.mrc", "projections_unbinned.mrc", "anything.st"])
def test_folder(tmp_path: Path, name: str) -> None:
    """A folder with SHREC's stack, or with a single one, is read by its name."""
    _stack(tmp_path / name)
    (tmp_path / name).with_suffix(".tlt").write_text(TABLE)
    (tmp_path / "readme.txt").write_text("nothing")
    series = TiltSeries.read(tmp_path)
    _assert_sorted(series)
    assert series.name == str(tmp_path / name)


def test_unbinned_goes_first(tmp_path: Path) -> None:
    """Where SHREC's unbinned stack is there, it is read."""
    _stack(tmp_path / "projections.mrc", 3)
    _stack(tmp_path / "projections_unbinned.mrc", 3)
    (tmp_path / "alignment_simulated.txt").write_text(SHREC_ALIGNMENT)
    assert TiltSeries.read(tmp_path).name.endswith("projections_unbinned.mrc")


def test_model_folder_of_shrec(tmp_path: Path) -> None:
    """Volumes beside SHREC's stack do not matter."""
    _stack(tmp_path / "projections.mrc", 3)
    write_mrc(tmp_path / "grandmodel.mrc", torch.zeros(2, 2, 2), voxel_size=1.0)
    (tmp_path / "alignment_simulated.txt").write_text(SHREC_ALIGNMENT)
    assert TiltSeries.read(tmp_path).tilts.shape[0] == 3


@pytest.mark.parametrize("names", [(), ("a.mrc", "b.st")])
def test_folder_without_a_single_stack(tmp_path: Path, names: tuple[str, ...]) -> None:
    """A folder with no stack, or with several, is an error that lists what was found."""
    for name in names:
        _stack(tmp_path / name)
    found = ", ".join(names) or "none"
    with pytest.raises(FileNotFoundError, match=f"expected a folder with .* or a single stack .*found {found}"):
        TiltSeries.read(tmp_path)


def test_missing_stack(tmp_path: Path) -> None:
    """A stack that is not there is a FileNotFoundError with its path."""
    with pytest.raises(FileNotFoundError, match="expected a tilt-series, found none at .*none.mrc"):
        TiltSeries.read(tmp_path / "none.mrc")


def test_missing_angles(tmp_path: Path) -> None:
    """A stack without angles is an error that lists the names looked for, and the argument."""
    with pytest.raises(FileNotFoundError, match="a.st: expected a file of tilt angles beside it.*set `tilt_angles`"):
        TiltSeries.read(_stack(tmp_path / "a.st"))


def test_other_number_of_angles(tmp_path: Path) -> None:
    """As many angles as tilts: the error names both files, or the argument."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / "a.tlt").write_text("0\n3\n")
    message = "a.mrc: expected one tilt angle for each of its 5 tilts, got 2 from .*a.tlt"
    with pytest.raises(FileFormatError, match=message):
        TiltSeries.read(stack)
    with pytest.raises(FileFormatError, match="got 3 from `tilt_angles`"):
        TiltSeries.read(stack, tilt_angles=[0, 1, 2])


def test_compressed_stack(tmp_path: Path) -> None:
    """A compressed stack is read with angles by hand."""
    stack = _stack(tmp_path / "a.mrc")
    packed = tmp_path / "b.mrc.gz"
    packed.write_bytes(gzip.compress(stack.read_bytes()))
    _assert_sorted(TiltSeries.read(packed, tilt_angles=ANGLES))


# --- clipping ---------------------------------------------------------------------------------------------------------


def test_clipped() -> None:
    """Clipping brings each tilt's hot pixels to its own quantile; the whole range changes nothing."""
    tilts = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    tilts[1, 5, 5] = 1e6
    series = TiltSeries(tilts=tilts, tilt_angles=np.array([0.0, 1.0, 2.0]), pixel_size=2.0, name="mine")
    clipped = series.clipped((0.01, 0.99))
    assert clipped.tilts.max() <= 1
    assert clipped.tilts[1, 5, 5] == clipped.tilts[1].max()
    assert (clipped.name, clipped.pixel_size) == ("mine", 2.0)
    assert series.tilts.max() == 1e6
    assert torch.equal(series.clipped((0.0, 1.0)).tilts, series.tilts)
    for wrong in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(ValueError, match="expected `quantiles` to be a pair 0 <= low < high <= 1"):
            series.clipped(wrong)


def test_series_can_be_sent_to_a_worker() -> None:
    """A series is the same after pickling."""
    series = TiltSeries(tilts=_tilts(), tilt_angles=np.array(ANGLES), name="mine")
    again = pickle.loads(pickle.dumps(series))
    assert torch.equal(again.tilts, series.tilts)
    assert again.tilt_angles.tolist() == series.tilt_angles.tolist()


# --- the reference data -----------------------------------------------------------------------------------------------


def test_real_series(reference: Path) -> None:
    """A real tilt-series of cells (EMPIAR-10499): 41 tilts in int8, with the angles of its .tlt."""
    folder = reference / "data" / "real" / "empiar10499_ts00254"
    series = TiltSeries.read(folder)
    assert series.tilts.shape[0] == len(series.tilt_angles) == 41
    assert series.tilts.dtype == torch.float32
    assert torch.equal(series.tilts, series.tilts.round())
    assert series.tilts.abs().max() <= 128
    written = np.loadtxt(folder / "00254.tlt", ndmin=2)[:, 0]
    assert series.tilt_angles.tolist() == sorted(written.tolist())
    assert series.pixel_size > 1


def test_minishrec_series(reference: Path) -> None:
    """SHREC's folder: 41 tilts from -60° to 60°, the first of the file last."""
    folder = reference / "data" / "minishrec" / "model_0"
    series = TiltSeries.read(folder)
    assert series.tilts.shape == (41, 256, 256)
    np.testing.assert_allclose(series.tilt_angles, np.arange(-60, 61, 3))
    plain = TiltSeries.read(folder, tilt_angles=np.arange(-60, 61, 3))
    assert torch.equal(series.tilts, plain.tilts.flip(0))
