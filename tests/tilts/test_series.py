"""Measured tilt-series: angles that belong to their tilts, sorted, whatever lay beside the stack."""

from __future__ import annotations

import gzip
import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faket_aug import FileFormatError, TiltSeries, reconstruct
from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.tilt_metadata import TiltMetadata
from tests._helpers import SHREC_ALIGNMENT, mdoc

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


# --- metadata ---------------------------------------------------------------------------------------------------------

SORTED = sorted(range(len(ANGLES)), key=ANGLES.__getitem__)
XF = "".join(f"1 0 0 1 {-i - 0.5} {i}\n" for i in range(len(ANGLES)))  # shifts (y, x) = (-i, i + 0.5)
ALN_HEAD = "# AreTomo Alignment / Priims bprmMn\n# RawSize = 6 4 {count}\n"
STAR_HEAD = (
    "data_a\nloop_\n_rlnTomoNominalStageTiltAngle\n_rlnTomoZRot\n_rlnTomoXShiftAngst\n_rlnTomoYShiftAngst\n"
    "_rlnMicrographPreExposure\n"
)
STAR = STAR_HEAD + "".join(f"{angle} 0 {2.17 * i} {-2.17 * i} {3 * i}\n" for i, angle in enumerate(ANGLES))


def _xml(angles: list[float], **lists: list[object]) -> str:
    fields = {"Angles": angles} | lists
    body = "".join(f"<{tag}>" + "\n".join(map(str, values)) + f"</{tag}>" for tag, values in fields.items())
    return f"<TiltSeries>{body}</TiltSeries>"


def test_metadata_beside_the_stack(tmp_path: Path) -> None:
    """What lies beside a stack is found, belongs to its tilts, and is sorted with them."""
    stack = _stack(tmp_path / "a.st")
    (tmp_path / "a.tlt").write_text(TABLE)
    (tmp_path / "a.xf").write_text(XF)
    series = TiltSeries.read(stack)
    _assert_sorted(series)
    assert series.metadata.tilt_angles.tolist() == sorted(ANGLES)
    assert series.metadata.sections.tolist() == SORTED
    assert series.metadata.shifts.tolist() == [[-i, i + 0.5] for i in SORTED]
    again = TiltSeries.read(stack, metadata=tmp_path / "a.xf")
    assert again.metadata.shifts.tolist() == series.metadata.shifts.tolist()
    _assert_sorted(again)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.star", STAR),
        ("a.aln", ALN_HEAD.format(count=5) + "".join(f"{i} 0 1 {i} {-i} 1 1 1 0 {a}\n" for i, a in enumerate(ANGLES))),
        (
            "a.xml",
            _xml(
                [-angle for angle in ANGLES],
                AxisAngle=[0] * 5,
                AxisOffsetX=[2.17 * i for i in range(5)],
                AxisOffsetY=[-2.17 * i for i in range(5)],
            ),
        ),
    ],
)
def test_each_program_beside_the_stack(tmp_path: Path, name: str, content: str) -> None:
    """RELION's, AreTomo's and Warp's alignment is found by the stack's name; given by hand it is the same."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / name).write_text(content)
    for series in (TiltSeries.read(stack), TiltSeries.read(str(stack), metadata=str(tmp_path / name))):
        _assert_sorted(series)
        _, shifts = series.metadata.places((4, 6), pixel_size=series.pixel_size)
        expected = np.array([[-i, i] for i in SORTED], dtype=float)
        np.testing.assert_allclose(shifts, expected - (0.5 if name == "a.aln" else 0), atol=1e-5)


def test_files_beside_each_other_add_up(tmp_path: Path) -> None:
    """The alignment comes from IMOD's files, exposure and microscope from the .mdoc, whose order is another."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / "a.tlt").write_text("".join(f"{angle + 2.5}\n" for angle in ANGLES))  # levelled by 2.5°
    (tmp_path / "a.xf").write_text(XF)
    text = mdoc(ANGLES[::-1], sections=[4, 3, 2, 1, 0]).replace("Magnification = 64000", "ExposureDose = 3")
    (tmp_path / "a.mrc.mdoc").write_text(text.replace("DataMode = 1", "DataMode = 1\nVoltage = 300"))
    metadata = TiltSeries.read(stack).metadata
    assert metadata.tilt_angles.tolist() == [angle + 2.5 for angle in sorted(ANGLES)]
    assert metadata.shifts.tolist() == [[-i, i + 0.5] for i in SORTED]
    assert metadata.exposure.tolist() == [3.0 * i for i in SORTED]
    assert metadata.voltage_kv == 300


def test_files_of_other_tilts_do_not(tmp_path: Path) -> None:
    """An .mdoc of other tilts, or that cannot be read, is left alone, with a warning that says why."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / "a.tlt").write_text(TABLE)
    (tmp_path / "a.mdoc").write_text(mdoc([30, 40, 50, 60, 80]).replace("Magnification = 64000", "ExposureDose = 3"))
    with pytest.warns(UserWarning, match="a.mdoc: not used beside .*a.tlt: .*got others: 30, 40, 50, 60, ..."):
        series = TiltSeries.read(stack)
    assert series.metadata.exposure is None
    (tmp_path / "a.mdoc").write_text("nothing")
    with pytest.warns(UserWarning, match="a.mdoc: not used beside .*a.tlt: .*expected an .mdoc with a TiltAngle"):
        _assert_sorted(TiltSeries.read(stack))


def test_files_of_another_order(tmp_path: Path) -> None:
    """An .mdoc in the order of acquisition and angles in the stack's order are matched by angle, however given."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / "a.tlt").write_text(TABLE)
    acquired = [0.0, 3.0, -3.0, -6.0, 6.0]
    (tmp_path / "a.mdoc").write_text(mdoc(acquired).replace("Magnification = 64000", "ExposureDose = 3"))
    expected = [3.0 * acquired.index(angle) for angle in sorted(ANGLES)]
    files = [tmp_path / "a.tlt", tmp_path / "a.mdoc"]
    for given_ in ({}, {"metadata": files}, {"metadata": files[1], "tilt_angles": files[0]}):
        series = TiltSeries.read(stack, **given_)
        _assert_sorted(series)
        assert series.metadata.exposure.tolist() == expected
    by_hand = TiltSeries.read(stack, metadata=files[1], tilt_angles=ANGLES)
    assert by_hand.metadata.exposure.tolist() == expected


def test_files_of_other_programs(tmp_path: Path) -> None:
    """An XML of a microscope and a STAR file of particles beside a stack are none of its metadata."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / "a.tlt").write_text(TABLE)
    (tmp_path / "a.xml").write_text("<MicroscopeImage></MicroscopeImage>")
    (tmp_path / "a.star").write_text("data_particles\nloop_\n_rlnAngleRot\n1\n")
    assert TiltSeries.read(stack).metadata.source.endswith("a.tlt")
    with pytest.raises(FileFormatError, match="a.xml: expected an XML of a tilt-series of Warp"):
        TiltSeries.read(stack, metadata=tmp_path / "a.xml")


def test_several_given(tmp_path: Path) -> None:
    """Several files, or metadata already read: each adds what those before do not know; angles by hand go before."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / "b.tlt").write_text(TABLE)
    (tmp_path / "b_CTF.txt").write_text("".join(f"{i + 1} {20000 + 1000 * i} {20000} 0 0 0 9\n" for i in range(5)))
    (tmp_path / "c.defocus").write_text("1 1 3 3 1000 2\n5 5 -6 -6 5000\n")
    given_ = TiltMetadata(sections=np.arange(5), voltage_kv=200.0)
    for ctf, defocus in (("b_CTF.txt", 2 + 0.05 * np.arange(5)), ("c.defocus", 1 + np.arange(5.0))):
        series = TiltSeries.read(stack, metadata=[tmp_path / "b.tlt", tmp_path / ctf, given_])
        _assert_sorted(series)
        np.testing.assert_allclose(series.metadata.defocus_um, defocus[SORTED])
        assert series.metadata.voltage_kv == 200
    by_hand = TiltSeries.read(stack, metadata=[given_, tmp_path / "b_CTF.txt"], tilt_angles=ANGLES)
    _assert_sorted(by_hand)
    assert by_hand.metadata.voltage_kv == 200
    turned = TiltSeries.read(stack, metadata=tmp_path / "b.tlt", tilt_angles=[-angle for angle in ANGLES])
    assert [-ANGLES[int(tilt[0, 0])] for tilt in turned.tilts] == sorted(-angle for angle in ANGLES)


def test_dark_frames(tmp_path: Path) -> None:
    """Sections that the alignment leaves out are no tilts of the series, be the stack whole or without them."""
    rows = "".join(f"{section} 0 1 {section} 0 1 1 1 0 {angle}\n" for section, angle in ((1, -3), (3, 3), (4, 6)))
    darks = "# DarkFrame = 0 0 -6\n# DarkFrame = 2 2 0\n"
    (tmp_path / "a.aln").write_text(ALN_HEAD.format(count=5) + darks + rows)
    for count, sections in ((5, [1, 3, 4]), (3, [0, 1, 2])):
        series = TiltSeries.read(_stack(tmp_path / "a.mrc", count))
        assert series.tilts[:, 0, 0].tolist() == sections
        assert series.tilt_angles.tolist() == [-3, 3, 6]
        assert series.metadata.shifts[:, 1].tolist() == [1, 3, 4]
    with pytest.raises(
        FileFormatError, match="a.mrc: expected one tilt angle for each of its 4 tilts, got 3 from .*aln"
    ):
        TiltSeries.read(_stack(tmp_path / "a.mrc", 4))


def test_unused_tilts_of_warp(tmp_path: Path) -> None:
    """Tilts that Warp does not use are left out."""
    (tmp_path / "a.xml").write_text(
        _xml([-angle for angle in ANGLES], UseTilt=["True", "False", "True", "True", "True"])
    )
    series = TiltSeries.read(_stack(tmp_path / "a.mrc"))
    assert series.tilt_angles.tolist() == [-6, 0, 3, 6]
    assert series.tilts[:, 0, 0].tolist() == [4, 2, 0, 3]


def test_alignment_of_another_length(tmp_path: Path) -> None:
    """Angles and alignment of different numbers: an error that names both, not a warning."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / "a.tlt").write_text(TABLE)
    (tmp_path / "a.xf").write_text("1 0 0 1 0 0\n" * 4)
    with pytest.raises(FileFormatError, match="a.xf: expected a line for each of the 5 tilts of .*a.tlt, got 4"):
        TiltSeries.read(stack)
    (tmp_path / "a.tlt").unlink()
    with pytest.raises(FileFormatError, match="`tilt_angles`: expected as many tilts as .*a.xf, 4, got 5"):
        TiltSeries.read(stack, metadata=tmp_path / "a.xf", tilt_angles=ANGLES)


def test_metadata_without_angles(tmp_path: Path) -> None:
    """Transforms alone do not tell the angles."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / "b.xf").write_text(XF)
    with pytest.raises(FileFormatError, match="a.mrc: expected tilt angles, got .*b.xf without; set `tilt_angles`"):
        TiltSeries.read(stack, metadata=tmp_path / "b.xf")
    _assert_sorted(TiltSeries.read(stack, metadata=tmp_path / "b.xf", tilt_angles=ANGLES))
    (tmp_path / "c.defocus").write_text("1 1 0 0 4000 2\n")
    with pytest.raises(ValueError, match="c.defocus: expected tilt angles before it; set `metadata` to"):
        TiltSeries.read(stack, metadata=tmp_path / "c.defocus")


def test_unknown_metadata(tmp_path: Path) -> None:
    """A file of unknown kind, and an empty list, say what would do."""
    stack = _stack(tmp_path / "a.mrc")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(FileFormatError, match=r"a.json: expected metadata of tilts, a file that ends in .xml, .*.star"):
        TiltSeries.read(stack, metadata=tmp_path / "a.json")
    with pytest.raises(ValueError, match="expected `metadata` to name at least one file, got an empty list"):
        TiltSeries.read(stack, metadata=[])


def test_table_of_several_series(tmp_path: Path) -> None:
    """From RELION's table of all series the one of the stack's name is read."""
    stack = _stack(tmp_path / "TS_3.mrc")
    (tmp_path / "TS_3.star").write_text(STAR)
    head = "data_global\nloop_\n_rlnTomoName\n_rlnTomoTiltSeriesStarFile\n_rlnVoltage\n"
    table = tmp_path / "tomograms.star"
    table.write_text(head + "TS_1 job/TS_1.star 300\nTS_3 job/TS_3.star 200\n")
    series = TiltSeries.read(stack, metadata=table)
    assert series.metadata.voltage_kv == 200
    _assert_sorted(series)
    with pytest.raises(ValueError, match="`tomogram` to be one of 'TS_1', 'TS_3', got 'other'"):
        TiltSeries.read(_stack(tmp_path / "other.mrc"), metadata=table)


def test_pixel_size_of_the_metadata(tmp_path: Path) -> None:
    """A header without pixel size takes the .mdoc's if that speaks of images of this size; never an unbinned one."""
    for size, expected in (("6 4", 2.5), ("12 8", 0.0)):
        write_mrc(tmp_path / "a.mrc", _tilts(), voxel_size=1.0)
        header = bytearray((tmp_path / "a.mrc").read_bytes())
        header[40:52] = bytes(12)
        (tmp_path / "a.mrc").write_bytes(bytes(header))
        text = mdoc(ANGLES).replace("32 24", size).replace("2.17", "2.5")
        (tmp_path / "a.mrc.mdoc").write_text(text)
        assert TiltSeries.read(tmp_path / "a.mrc").pixel_size == expected
        assert TiltSeries.read(tmp_path / "a.mrc", pixel_size=4.0).pixel_size == 4


def test_already_aligned_stack(tmp_path: Path) -> None:
    """An .ali was made with the transforms beside it: they are not applied again."""
    (tmp_path / "a.tlt").write_text(TABLE)
    (tmp_path / "a.xf").write_text("0 1 -1 0 1 1\n" * 5)
    series = TiltSeries.read(_stack(tmp_path / "a.ali"))
    assert not series.metadata.shifts.any()
    assert series.aligned() is series


# --- alignment --------------------------------------------------------------------------------------------------------


def _random_series(**changes: object) -> TiltSeries:
    tilts = torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(0))
    metadata = TiltMetadata(
        sections=np.arange(3),
        axis_angle=np.zeros(3),
        shifts=np.array([[0.0, 0.0], [2.0, -1.0], [0.5, 0.0]]),
        shift_unit="pixel",
        astigmatism_angle=np.zeros(3),
        **changes,
    )
    return TiltSeries(
        tilts=tilts, tilt_angles=np.array([-3.0, 0.0, 3.0]), pixel_size=2.0, name="mine", metadata=metadata
    )


def test_aligned() -> None:
    """A tilt is moved by its shift, y before x; what it does not reach is its mean, or its edge; angles stay."""
    series = _random_series()
    aligned = series.aligned()
    assert aligned.tilt_angles.tolist() == series.tilt_angles.tolist()
    assert (aligned.pixel_size, aligned.name) == (2, "mine")
    torch.testing.assert_close(aligned.tilts[0], series.tilts[0])
    torch.testing.assert_close(aligned.tilts[1, :7, 1:], series.tilts[1, 2:, :11])
    torch.testing.assert_close(aligned.tilts[1, 7:], series.tilts[1].mean().expand(2, 12))
    edge = series.aligned(fill="edge").tilts
    torch.testing.assert_close(edge[1, 7:, 1:], series.tilts[1, 8, :11].expand(2, 11))
    assert bool(torch.isfinite(edge).all())
    with pytest.raises(ValueError, match="`fill` to be one of 'mean', 'edge', got 'zero'"):
        series.aligned(fill="zero")


def test_aligned_twice() -> None:
    """A second alignment changes nothing, and the metadata say so."""
    aligned = _random_series().aligned()
    assert aligned.aligned() is aligned
    assert not aligned.metadata.shifts.any()
    assert aligned.metadata.image_size == (9, 12)
    assert aligned.metadata.pixel_size == 2


@pytest.mark.parametrize("axis", [80.0, -100.0])
def test_axis_along_x_exchanges_the_sides(axis: float) -> None:
    """Where the axis lies nearer to x, the aligned tilts have the other form, unless told otherwise."""
    series = _random_series()
    turned = TiltSeries(
        tilts=series.tilts,
        tilt_angles=series.tilt_angles,
        pixel_size=2.0,
        metadata=replace(series.metadata, axis_angle=np.full(3, axis)),
    )
    assert turned.aligned().tilts.shape == (3, 12, 9)
    assert turned.aligned(shape=(9, 12)).tilts.shape == (3, 9, 12)
    assert turned.aligned().aligned(shape=(5, 6)).tilts.shape == (3, 5, 6)
    np.testing.assert_allclose(turned.aligned().metadata.astigmatism_angle, (-axis + 90) % 180 - 90)


def test_aligned_without_an_alignment() -> None:
    """No metadata, no alignment in them, no pixel size: each error says what to set."""
    bare = TiltSeries(tilts=_tilts(), tilt_angles=np.array(ANGLES), name="mine")
    with pytest.raises(ValueError, match="mine: expected metadata with an alignment, got none; set `metadata`"):
        bare.aligned()
    angles_only = TiltMetadata(sections=np.arange(5), source="a.mdoc", axis_angle=np.zeros(5))
    with pytest.raises(
        ValueError, match=r"a.mdoc: expected an alignment \(tilt axis and shifts\), got none; set `meta"
    ):
        replace(bare, metadata=angles_only).aligned()
    in_angstrom = replace(angles_only, shifts=np.ones((5, 2)))
    with pytest.raises(
        ValueError, match="mine: expected its pixel size, since a.mdoc holds shifts in Å, got none; set"
    ):
        replace(bare, metadata=in_angstrom).aligned()


def test_metadata_of_other_tilts() -> None:
    """Metadata of another number of tilts are refused."""
    with pytest.raises(ValueError, match="expected `metadata` of 5 tilts, got 3"):
        TiltSeries(tilts=_tilts(), tilt_angles=np.array(ANGLES), metadata=TiltMetadata(sections=[0, 1, 2]))


def test_metadata_stay_with_the_tilts() -> None:
    """Clipping and pickling keep the metadata; the series' angles are the metadata's."""
    series = _random_series()
    assert series.metadata.tilt_angles.tolist() == [-3, 0, 3]
    for other in (series.clipped((0.1, 0.9)), pickle.loads(pickle.dumps(series))):
        assert other.metadata.shifts.tolist() == series.metadata.shifts.tolist()


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


@pytest.mark.slow
def test_real_series_is_aligned(reference: Path) -> None:
    """Aligned by Warp's XML the gold beads are sharp: several times deeper than unaligned, or with a wrong sign.

    What the tomogram shows was looked at: cell outlines, ribosome-like grains, round beads; unaligned, beads are arcs.
    """
    series = TiltSeries.read(reference / "data" / "real" / "empiar10499_ts00254")
    assert series.pixel_size == 10
    assert series.metadata.source.endswith("00254.xml")
    assert series.metadata.exposure.max() == 120

    def depth_of_beads(of: TiltSeries) -> float:
        tilts = of.tilts[:, 250:315]
        tilts = (tilts - tilts.mean((1, 2), keepdim=True)) / tilts.std((1, 2), keepdim=True)
        tomogram = reconstruct(tilts, of.tilt_angles, depth=240, filter="hamming")
        return -float(tomogram[:, 4:-4, 60:-60].min() / tomogram.std())

    sharp = depth_of_beads(series.aligned())
    assert sharp > 12
    assert sharp > 1.8 * depth_of_beads(series)
    reversed_ = replace(series.metadata, shifts=-series.metadata.shifts)
    assert sharp > 1.8 * depth_of_beads(replace(series, metadata=reversed_).aligned())


def test_real_series_by_imod(reference: Path) -> None:
    """The same series by its .tlt and .xf: the same angles, and an alignment that is near."""
    folder = reference / "data" / "real" / "empiar10499_ts00254"
    xml, imod = TiltSeries.read(folder), TiltSeries.read(folder / "00254.mrc", metadata=folder / "00254.xf")
    assert imod.tilt_angles.tolist() == xml.tilt_angles.tolist()
    assert torch.equal(imod.tilts, xml.tilts)
    (turn, shifts), (other_turn, others) = (s.metadata.places((512, 512), pixel_size=10.0) for s in (xml, imod))
    np.testing.assert_allclose(turn, other_turn, atol=5e-7)
    assert np.abs(shifts - others)[np.abs(xml.tilt_angles) < 31].max() < 1.4


def test_minishrec_series(reference: Path) -> None:
    """SHREC's folder: 41 tilts from -60° to 60°, the first of the file last."""
    folder = reference / "data" / "minishrec" / "model_0"
    series = TiltSeries.read(folder)
    assert series.tilts.shape == (41, 256, 256)
    np.testing.assert_allclose(series.tilt_angles, np.arange(-60, 61, 3))
    plain = TiltSeries.read(folder, tilt_angles=np.arange(-60, 61, 3))
    assert torch.equal(series.tilts, plain.tilts.flip(0))
