"""Metadata of tilt-series: each format with its own equation, on a phantom of beads, and on files of real programs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faket_aug import FileFormatError, GrandModel, TiltSeries, project, reconstruct
from faket_aug.formats.angles import SIMULATION_COLUMNS, read_simulation_meta
from faket_aug.formats.aretomo import read_aln, read_aretomo_ctf
from faket_aug.formats.imod import read_defocus, read_imod, read_xf
from faket_aug.formats.mrc import write_mrc
from faket_aug.formats.relion_tilts import read_relion
from faket_aug.formats.serialem import read_serialem
from faket_aug.formats.tilt_metadata import TiltMetadata, defocus_fields, ranks
from faket_aug.formats.warp import read_tomostar, read_warp_xml
from faket_aug.geometry import turns

# --- the phantom: beads, and what a microscope that is not aligned sees of them ---------------------------------------

#: Of the aligned tilts, (y, x): two even and two odd sizes, so that both centres of an image are met.
SHAPES = [(50, 64), (51, 65)]
ANGLES = np.array([-50.0, -22.0, 0.0, 17.0, 41.0])
#: (x, y, z) in pixels from the axis; far from it, and not symmetric.
BEADS = np.array([[14.0, -9.0, 5.0], [-11.0, 12.0, -7.0], [3.0, 4.0, 9.0]])
SHIFTS = np.array([[2.5, -3.0], [0.0, 1.25], [-1.5, 0.5], [3.0, 2.0], [-2.0, -1.75]])  # (x, y), pixels
PIXEL_SIZE = 4.0


def _seen(angle_deg: float) -> np.ndarray:
    """Where an aligned tilt shows the beads: x' = x cos + z sin, y, from pixel n // 2."""
    tilt = np.deg2rad(angle_deg)
    return np.stack([BEADS[:, 0] * np.cos(tilt) + BEADS[:, 2] * np.sin(tilt), BEADS[:, 1]], axis=-1)


def _spots(shape: tuple[int, int], places: np.ndarray) -> np.ndarray:
    """An image of a round spot at each place, (x, y) in pixels from the first one."""
    y, x = np.indices(shape)
    return sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 1.6**2)) for u, v in places)


def _centre(shape: tuple[int, int], kind: str) -> np.ndarray:
    """The centre of an image, (x, y): RELION's and Warp's pixel n // 2, or the middle of IMOD and AreTomo."""
    n = np.array(shape[::-1])
    return n // 2 if kind == "pixel" else (n - 1) / 2


def _measured(folder: Path, shape: tuple[int, int], axis: float, kind: str, stretch: np.ndarray | None = None) -> Path:
    """Write the stack of a series whose beads lie at R(axis) · stretch · (x', y) + shift of the image's centre."""
    c, s = np.cos(np.deg2rad(axis)), np.sin(np.deg2rad(axis))
    matrix = np.array([[c, -s], [s, c]]) @ (np.eye(2) if stretch is None else stretch)
    images = [
        _spots(shape, _seen(angle) @ matrix.T + shift + _centre(shape, kind))
        for angle, shift in zip(ANGLES, SHIFTS, strict=True)
    ]
    # With a little noise: a border of one value counts as not measured.
    stack = np.stack(images) + np.random.default_rng(0).normal(scale=1e-4, size=(len(images), *shape))
    write_mrc(folder / "a.mrc", torch.from_numpy(stack), voxel_size=PIXEL_SIZE)
    return folder / "a.mrc"


def _xf(folder: Path, axis: float, stretch: np.ndarray | None = None) -> Path:
    """IMOD: x' = A x + d about the middle, so A undoes what `_measured` did."""
    c, s = np.cos(np.deg2rad(axis)), np.sin(np.deg2rad(axis))
    undo = np.linalg.inv(np.array([[c, -s], [s, c]]) @ (np.eye(2) if stretch is None else stretch))
    rows = [(*undo.ravel(), *(-undo @ shift)) for shift in SHIFTS]
    (folder / "a.tlt").write_text("".join(f"{angle:7.2f}\n" for angle in ANGLES))
    path = folder / "a.xf"
    path.write_text("".join("".join(f"{v:12.7f}" for v in row[:4]) + f"{row[4]:12.3f}{row[5]:12.3f}\n" for row in rows))
    return path


def _stretched(folder: Path, axis: float) -> Path:
    return _xf(folder, axis, STRETCH)


def _aln(folder: Path, axis: float) -> Path:
    """AreTomo: R(ROT) x' + (TX, TY) about the middle."""
    rows = [
        f"{i:5d} {axis:10.4f} 1.00000 {shift[0]:10.3f} {shift[1]:10.3f} 1.00 1.00 1.00 0.00 {angle:9.2f}\n"
        for i, (angle, shift) in enumerate(zip(ANGLES, SHIFTS, strict=True))
    ]
    path = folder / "a.aln"
    head = f"# AreTomo Alignment / Priims bprmMn\n# RawSize = {_shape_of(folder)[1]} {_shape_of(folder)[0]} 5\n"
    path.write_text(head + "# NumPatches = 0\n# SEC ROT GMAG TX TY SMEAN SFIT SCALE BASE TILT\n" + "".join(rows))
    return path


def _centroid(image: np.ndarray, u: float, v: float) -> tuple[float, float]:
    """The centre, (x, y), of what is bright about a place."""
    y, x = np.indices(image.shape)
    near = np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 2.0**2)) * np.clip(image - 0.02, 0, None)
    return float((near * x).sum() / near.sum()), float((near * y).sum() / near.sum())


def _shape_of(folder: Path) -> tuple[int, int]:
    header = np.frombuffer((folder / "a.mrc").read_bytes()[:12], dtype="<i4")
    return int(header[1]), int(header[0])


def _star(folder: Path, axis: float) -> Path:
    """RELION: R(ZRot) x' + shift in Å, from pixel n // 2."""
    names = ("NominalStageTiltAngle", "YTilt", "XTilt", "ZRot", "XShiftAngst", "YShiftAngst")
    head = "data_a\n\nloop_\n" + "".join(f"_rlnTomo{name} #{i}\n" for i, name in enumerate(names, start=1))
    rows = [
        f"{angle + 0.3} {angle} 0.0 {axis} {shift[0] * PIXEL_SIZE} {shift[1] * PIXEL_SIZE}\n"
        for angle, shift in zip(ANGLES, SHIFTS, strict=True)
    ]
    path = folder / "a.star"
    path.write_text(head + "".join(rows))
    return path


def _xml(folder: Path, axis: float, **changes: Any) -> Path:
    """Warp: R(a) x' + offset in Å, from pixel n // 2, at x cos − z sin; the pixel size is the unbinned one."""
    fields = {
        "Angles": -ANGLES,
        "Dose": [9, 3, 0, 6, 12],
        "UseTilt": ["True"] * 5,
        "AxisAngle": [axis] * 5,
        "AxisOffsetX": SHIFTS[:, 0] * PIXEL_SIZE,
        "AxisOffsetY": SHIFTS[:, 1] * PIXEL_SIZE,
    } | changes
    body = "".join(f"<{tag}>" + "\n".join(map(str, values)) + f"</{tag}>" for tag, values in fields.items())
    settings = {"PixelSize": 1.7, "Voltage": 300, "Cs": 2.7, "Amplitude": 0.1, "Defocus": 3.0}
    ctf = "".join(f'<Param Name="{name}" Value="{value}" />' for name, value in settings.items())
    path = folder / "a.xml"
    root = '<TiltSeries AreAnglesInverted="False">'
    path.write_text(f'\ufeff<?xml version="1.0" encoding="utf-8"?>{root}{body}<CTF>{ctf}</CTF></TiltSeries>')
    return path


STRETCH = np.array([[1.03, 0.01], [-0.02, 0.97]])
#: Writers of an alignment, the centre that they count from, and whether images are stretched, too.
FORMATS: dict[str, tuple[Callable[[Path, float], Path], str, np.ndarray | None]] = {
    "imod": (_xf, "middle", None),
    "imod, stretched": (_stretched, "middle", STRETCH),
    "aretomo": (_aln, "middle", None),
    "relion": (_star, "pixel", None),
    "warp": (_xml, "pixel", None),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [-4.3, 30.0, 85.3, -93.7])
@pytest.mark.parametrize("name", FORMATS)
def test_beads_follow_the_axis(tmp_path: Path, name: str, axis: float, shape: tuple[int, int]) -> None:
    """A series displaced by a format's equation is aligned: beads at x cos + z sin from pixel n // 2, y constant."""
    write, centre, stretch = FORMATS[name]
    swapped = abs(np.sin(np.deg2rad(axis))) > 0.7
    measured = shape[::-1] if swapped else shape
    stack = _measured(tmp_path, measured, axis, centre, stretch)
    series = TiltSeries.read(stack, metadata=write(tmp_path, axis))
    aligned = series.aligned()
    assert aligned.tilts.shape[1:] == shape
    assert aligned.tilt_angles.tolist() == ANGLES.tolist()
    assert aligned.pixel_size == PIXEL_SIZE
    for angle, tilt in zip(ANGLES, aligned.tilts.numpy(), strict=True):
        places = _seen(angle) + _centre(shape, "pixel")
        if stretch is None:
            inside = (slice(8, -8), slice(8, -8))
            # Where a turned image does not reach there is its mean, 0.015.
            assert np.abs(tilt - _spots(shape, places))[inside].max() < 0.02
        for u, v in places:
            # The spots are drawn in measured pixels: stretched back they are not round, but where they should be.
            assert _centroid(tilt, u, v) == pytest.approx((u, v), abs=0.1)
    assert aligned.aligned() is aligned


def test_aligned_series_reconstructs(tmp_path: Path) -> None:
    """The beads of an aligned series come back where they are, (z, y, x) from voxel n // 2; unaligned, they do not."""
    shape, angles = (50, 64), ANGLES
    stack = _measured(tmp_path, shape, -4.3, "pixel")
    series = TiltSeries.read(stack, metadata=_xml(tmp_path, -4.3))
    depth = 31
    for bead in BEADS:
        z, y, x = (int(c) + n // 2 for c, n in zip(bead[::-1], (depth, *shape), strict=True))
        sharp, blurred = (
            reconstruct(s.tilts, angles, depth=depth, filter="hamming")[z - 4 : z + 5, y - 4 : y + 5, x - 4 : x + 5]
            for s in (series.aligned(), series)
        )
        assert np.unravel_index(int(sharp.argmax()), sharp.shape) == (4, 4, 4)
        assert float(sharp[4, 4, 4]) > 1.5 * float(blurred[4, 4, 4])


def test_formats_agree(tmp_path: Path) -> None:
    """One alignment, written in four formats, is read as one, in pixels from n // 2."""
    _measured(tmp_path, (51, 65), 12.5, "pixel")
    found = [write(tmp_path, 12.5) for write in (_xf, _aln, _star, _xml)]
    readers = (lambda p: read_imod(tmp_path / "a.tlt", xf=p), read_aln, read_relion, read_warp_xml)
    for reader, path in zip(readers, found, strict=True):
        metadata = reader(path)
        matrices, shifts = metadata.places((51, 65), pixel_size=PIXEL_SIZE)
        np.testing.assert_allclose(matrices, turns([12.5] * 5), atol=1e-6)
        np.testing.assert_allclose(shifts, SHIFTS[:, ::-1], atol=1e-3)
        np.testing.assert_allclose(metadata.axis_angle, 12.5, atol=1e-4)
        np.testing.assert_allclose(metadata.tilt_angles, ANGLES)


# --- the record -------------------------------------------------------------------------------------------------------


def _metadata(**changes: Any) -> TiltMetadata:
    given: dict[str, Any] = {
        "sections": np.arange(3),
        "tilt_angles": np.array([-3.0, 0.0, 3.0]),
        "axis_angle": np.full(3, 10.0),
        "shifts": np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        "source": "a.file",
    }
    return TiltMetadata(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tilt_angles": np.zeros(2)}, r"a.file: expected `tilt_angles` of shape \(3,\), got \(2,\)"),
        ({"shifts": np.zeros((3, 3))}, r"expected `shifts` of shape \(3, 2\), got \(3, 3\)"),
        ({"matrices": np.zeros((3, 2, 2))}, "expected `matrices` that can be inverted"),
        ({"shifts": np.full((3, 2), np.nan)}, "expected finite `shifts`, got NaN"),
        ({"sections": [0, 1, 1]}, r"expected different `sections` from 0, got \[0, 1, 1\]"),
        ({"sections": []}, "expected different `sections` from 0"),
        ({"shift_unit": "nm"}, "`shift_unit` to be one of 'angstrom', 'pixel', got 'nm'"),
        ({"centre": "corner"}, "`centre` to be one of 'pixel', 'middle', got 'corner'"),
        ({"pixel_size": -1.0}, "`pixel_size` to be 0 or more"),
        ({"paths": ("a",)}, "expected 3 `paths`, got 1"),
    ],
)
def test_bad_metadata(changes: dict[str, Any], message: str) -> None:
    """Fields that cannot be are refused, with the source's name."""
    with pytest.raises(ValueError, match=message):
        _metadata(**changes)


def test_take() -> None:
    """Rows are taken with all that belongs to them."""
    metadata = _metadata(exposure=np.array([0.0, 3.0, 6.0]), paths=("a", "b", "c")).take([2, 0])
    assert metadata.sections.tolist() == [2, 0]
    assert metadata.tilt_angles.tolist() == [3, -3]
    assert metadata.shifts.tolist() == [[5, 6], [1, 2]]
    assert metadata.exposure.tolist() == [6, 0]
    assert metadata.paths == ("c", "a")


def test_filled_from() -> None:
    """What is unknown, NaN included, comes from the other; an alignment comes as a whole or not at all."""
    mine = _metadata(axis_angle=None, shifts=None, defocus_um=np.array([np.nan, 2.0, np.nan]))
    other = _metadata(
        tilt_angles=np.array([-2.0, 1.0, 4.0]),
        defocus_um=np.array([1.0, 1.5, 3.0]),
        pixel_size=2.0,
        voltage_kv=300.0,
        centre="middle",
    )
    filled = mine.filled_from(other)
    assert filled.tilt_angles.tolist() == [-3, 0, 3]
    assert filled.defocus_um.tolist() == [1, 2, 3]
    assert (filled.voltage_kv, filled.pixel_size, filled.centre, filled.source) == (300, 2, "middle", "a.file")
    assert filled.shifts.tolist() == other.shifts.tolist()
    # An alignment that is there stays, with its own pixel size.
    kept = _metadata().filled_from(_metadata(shifts=np.ones((3, 2)), axis_angle=np.ones(3), pixel_size=2.0))
    assert kept.shifts.tolist() == _metadata().shifts.tolist()
    assert kept.axis_angle.tolist() == [10, 10, 10]
    assert kept.pixel_size == 0


def test_filled_by_section() -> None:
    """Rows belong to each other by their section, or, where the other counts only these tilts, by their place."""
    mine = _metadata(sections=[4, 1, 3], section_count=5)
    every = TiltMetadata(sections=np.arange(5), exposure=np.arange(5.0))
    assert mine.filled_from(every).exposure.tolist() == [4, 1, 3]
    same = TiltMetadata(sections=[0, 1, 2], exposure=np.array([0.0, 1.0, 2.0]))
    assert mine.filled_from(same).exposure.tolist() == [2, 0, 1]
    with pytest.raises(FileFormatError, match="b.file: expected as many tilts as a.file, 3, got 2"):
        mine.filled_from(TiltMetadata(sections=[0, 1], source="b.file"))
    with pytest.raises(FileFormatError, match="b.file: expected as many tilts as a.file, 3, got 5"):
        _metadata().filled_from(replace(every, source="b.file"))


def test_places_in_other_pixels() -> None:
    """Shifts in Å are right in any binning; those in pixels follow the pixel size, or the size of the images."""
    angstrom = _metadata()
    _, shifts = angstrom.places((40, 60), pixel_size=2.0)
    assert shifts.tolist() == (angstrom.shifts / 2).tolist()
    pixel = _metadata(shift_unit="pixel", pixel_size=1.0)
    assert pixel.places((40, 60), pixel_size=2.0)[1].tolist() == (angstrom.shifts / 2).tolist()
    sized = _metadata(shift_unit="pixel", image_size=(161, 241))
    np.testing.assert_allclose(sized.places((40, 60), pixel_size=0.0)[1], angstrom.shifts / 4, rtol=0.01)
    assert _metadata(shift_unit="pixel").places((40, 60), pixel_size=0.0)[1].tolist() == angstrom.shifts.tolist()
    middle = _metadata(shift_unit="pixel", centre="middle")
    assert (middle.places((40, 61), pixel_size=0.0)[1] - angstrom.shifts).tolist() == [[-0.5, 0]] * 3


def test_places_that_cannot_be_told() -> None:
    """No alignment, no pixel size for Å, images of another form: each says what to set."""
    with pytest.raises(
        ValueError, match=r"a.file: expected an alignment \(tilt axis and shifts\), got none; set `meta"
    ):
        _metadata(shifts=None).places((40, 60), pixel_size=2.0)
    with pytest.raises(
        ValueError, match="a.mrc: expected its pixel size, since a.file holds shifts in Å, got none; set"
    ):
        _metadata().places((40, 60), pixel_size=0.0, name="a.mrc")
    with pytest.raises(ValueError, match=r"a.mrc: expected images of \(40, 90\) pixels as a.file says, or binned ones"):
        _metadata(shift_unit="pixel", image_size=(40, 90)).places((40, 60), pixel_size=0.0, name="a.mrc")


def test_directions_turn_with_the_images() -> None:
    """After the alignment the direction of astigmatism is counted from the aligned image's x."""
    metadata = _metadata(astigmatism_angle=np.array([15.0, -85.0, 85.0])).after_alignment((40, 60), pixel_size=2.0)
    assert metadata.astigmatism_angle.tolist() == [5, 85, 75]
    assert metadata.axis_angle.tolist() == [0, 0, 0]
    assert not metadata.shifts.any()
    assert metadata.image_size == (40, 60)


def test_defocus_fields() -> None:
    """Two defocus values and the direction of the first, in either order, are one mean, half a difference, a turn."""
    for first, second, angle in ((3.0, 2.0, 30.0), (2.0, 3.0, -60.0), (2.0, 3.0, 120.0)):
        fields = defocus_fields([first], [second], [angle])
        assert fields["defocus_um"].tolist() == [2.5]
        assert fields["astigmatism_um"].tolist() == [0.5]
        assert fields["astigmatism_angle"].tolist() == [30]


def test_metadata_pickle() -> None:
    """Metadata can be sent to a worker."""
    again = pickle.loads(pickle.dumps(_metadata()))
    assert again.shifts.tolist() == _metadata().shifts.tolist()
    assert again.source == "a.file"


def test_ranks() -> None:
    """Numbers by size, equal ones in their order."""
    assert ranks([3.0, 1.0, 3.0, 0.0]).tolist() == [2, 1, 3, 0]


# --- IMOD -------------------------------------------------------------------------------------------------------------


def _write(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content)
    return folder / name


def test_xtilt(tmp_path: Path) -> None:
    """Turns about x are kept."""
    tlt = _write(tmp_path, "a.tlt", "-3\n0\n3\n")
    metadata = read_imod(tlt, xtilt=_write(tmp_path, "a.xtilt", "0.5\n0.5\n0.6\n"))
    assert metadata.x_tilts.tolist() == [0.5, 0.5, 0.6]
    assert metadata.tilt_angles.tolist() == [-3, 0, 3]
    assert metadata.shifts is None


DEFOCUS = {
    "1": "1 2 -6.0 -3.0 4000\n4 5 3.0 6.0 5000\n",
    "1, views from 0": "0 1 -6.0 -3.0 4000\n3 4 3.0 6.0 5000\n",
    "2": "1 2 -6.0 -3.0 4000 2\n4 5 3.0 6.0 5000\n",
}


@pytest.mark.parametrize("content", DEFOCUS.values(), ids=DEFOCUS)
def test_defocus_of_ranges(tmp_path: Path, content: str) -> None:
    """A range's value is its middle view's; between them the values are interpolated, beyond them they stay."""
    metadata = read_defocus(_write(tmp_path, "a.defocus", content), tilt_angles=[-6, -3, 0, 3, 6])
    np.testing.assert_allclose(metadata.defocus_um, [4, 4 + 1 / 3, 4 + 2 / 3, 5, 5])
    assert metadata.astigmatism_um is None


@pytest.mark.parametrize(
    ("flags", "columns", "radians"),
    [
        (1, "{d} {e} {a}", False),
        (5, "{d} {e} {a} {p}", False),
        (15, "{d} {e} {a} {p}", True),
        (37, "{d} {e} {a} {p} 0.1", False),
    ],
)
def test_defocus_of_version_3(tmp_path: Path, flags: int, columns: str, radians: bool) -> None:
    """Astigmatism, phase shift and cut-on frequency, as the flags say, in degrees or radians."""
    turn = np.pi / 180 if radians else 1.0
    rows = [(4000, 3800, 20.0, 90.0), (4100, 4300, 80.0, 85.0), (4200, 4000, 30.0, 80.0)]
    body = "".join(
        f"{i} {i} 0 0 " + columns.format(d=d, e=e, a=a * turn, p=p * turn) + "\n"
        for i, (d, e, a, p) in enumerate(rows, 1)
    )
    path = _write(tmp_path, "a.defocus", f"{flags} 0 0. 0. 0. 3\n{body}")
    metadata = read_defocus(path, tilt_angles=[-3, 0, 3])
    np.testing.assert_allclose(metadata.defocus_um, [3.9, 4.2, 4.1])
    np.testing.assert_allclose(metadata.astigmatism_um, [0.1] * 3)
    np.testing.assert_allclose(metadata.astigmatism_angle, [20, -10, 30], atol=1e-9)
    if flags & 4:
        np.testing.assert_allclose(metadata.phase_shift, [90, 85, 80])
    else:
        assert metadata.phase_shift is None


def test_defocus_with_phase_only(tmp_path: Path) -> None:
    """Flag 4: a defocus and a phase shift."""
    path = _write(tmp_path, "a.defocus", "4 0 0. 0. 0. 3\n1 1 0 0 4000 90\n2 2 3 3 4100 80\n")
    metadata = read_defocus(path, tilt_angles=[0, 3])
    assert metadata.defocus_um.tolist() == [4, 4.1]
    assert metadata.phase_shift.tolist() == [90, 80]


# --- AreTomo ----------------------------------------------------------------------------------------------------------

ALN_HEAD = "# AreTomo Alignment / Priims bprmMn\n# RawSize = 40 30 {count}\n# NumPatches = 0\n"


def _rows(*pairs: tuple[int, float]) -> str:
    return "".join(f"{sec} 5.0 1.0 1.5 -2.5 1 1 1 0 {tilt}\n" for sec, tilt in pairs)


@pytest.mark.parametrize(
    ("darks", "rows", "sections"),
    [
        # Versions 1 and 2: everything from 0, among all sections.
        ("0 0 -9|4 4 3", [(1, -6), (2, -3), (3, 0)], [1, 2, 3]),
        # A stack in the order of acquisition: index by angle, section by file.
        ("0 4 -9|4 3 3", [(2, -6), (1, -3), (0, 0)], [2, 1, 0]),
        # Version 3: index from 0, section from 1.
        ("0 1 -9|4 5 3", [(2, -6), (3, -3), (4, 0)], [1, 2, 3]),
        # Version 3, early: index from 1, no section, rows counted without the dark ones.
        ("1 0 -9|5 0 3", [(1, -6), (2, -3), (3, 0)], [1, 2, 3]),
        ("", [(0, -6), (1, -3), (2, 0), (3, 3), (4, 6)], [0, 1, 2, 3, 4]),
        ("", [(1, -6), (2, -3), (3, 0), (4, 3), (5, 6)], [0, 1, 2, 3, 4]),
        # From high to low angles.
        ("0 0 9", [(1, 6), (2, 3), (3, 0), (4, -3)], [1, 2, 3, 4]),
    ],
)
def test_aln_numbering(tmp_path: Path, darks: str, rows: list[tuple[int, float]], sections: list[int]) -> None:
    """Dark frames are left out, and each row finds its section, however the version counted."""
    head = ALN_HEAD.format(count=5) + "".join(f"# DarkFrame = {dark}\n" for dark in darks.split("|") if dark)
    metadata = read_aln(_write(tmp_path, "a.aln", head + _rows(*rows)))
    assert metadata.sections.tolist() == sections
    assert metadata.section_count == 5
    assert metadata.tilt_angles.tolist() == [tilt for _, tilt in rows]
    assert metadata.shifts.tolist() == [[-2.5, 1.5]] * len(rows)
    assert metadata.image_size == (30, 40)


def test_aln_of_version_3(tmp_path: Path) -> None:
    """A greeting before the header, offsets in it, and a local alignment behind the rows are passed over."""
    head = "Hello\n" + ALN_HEAD.format(count=2) + "# AlphaOffset = 1.50\n# BetaOffset = 0.00\n# Thickness = 1200\n"
    local = "# Local Alignment\n   0   0  -558.42   -802.00   -100.07     24.43   1.0\n"
    metadata = read_aln(_write(tmp_path, "a.aln", head + _rows((1, -3), (2, 0)) + local))
    assert metadata.sections.tolist() == [0, 1]
    assert metadata.tilt_angles.tolist() == [-3, 0]


def test_aretomo_ctf(tmp_path: Path) -> None:
    """Å become µm, radians degrees; the eighth column is the handedness."""
    row = "{} 20000 18000 30 1.5707963 0.1 9.0{}\n"
    metadata = read_aretomo_ctf(
        _write(tmp_path, "a_CTF.txt", "# Columns\n" + row.format(2, " -1") + row.format(1, " -1"))
    )
    assert metadata.sections.tolist() == [1, 0]
    np.testing.assert_allclose(metadata.defocus_um, 1.9)
    np.testing.assert_allclose(metadata.astigmatism_um, 0.1)
    np.testing.assert_allclose(metadata.astigmatism_angle, 30)
    np.testing.assert_allclose(metadata.phase_shift, 90, atol=1e-5)
    assert metadata.handedness == -1
    assert read_aretomo_ctf(_write(tmp_path, "b_CTF.txt", row.format(1, ""))).handedness is None


# --- SerialEM ---------------------------------------------------------------------------------------------------------


def _mdoc(folder: Path, sections: list[dict[str, Any]], axis: str = "Tilt axis angle = -84.5, binning = 1") -> Path:
    head = f"PixelSpacing = 2.17\nImageFile = a.mrc\nImageSize = 32 24\nDataMode = 1\nVoltage = 300\n\n[T = {axis}]\n"
    body = "".join(
        f"\n[ZValue = {section.pop('ZValue', i)}]\n" + "".join(f"{key} = {value}\n" for key, value in section.items())
        for i, section in enumerate(sections)
    )
    return _write(folder, "a.mrc.mdoc", head + body)


@pytest.mark.parametrize(
    "times",
    [
        ("30-Nov-15  15:21:38", "30-Nov-15  15:22:38", "01-Dec-15  00:00:01"),
        ("2024-Nov-30  15:21:38", "2024-Nov-30  15:22:38", "2024-Dec-01  00:00:01"),
        ("30-Nov-2024  15:21:38", "30-Nov-2024  15:22:38", "01-Dec-2024  00:00:01"),
    ],
)
def test_mdoc_order_of_acquisition(tmp_path: Path, times: tuple[str, str, str]) -> None:
    """Exposure is summed by the time of acquisition, not by section; axis and sizes are the header's."""
    first, second, third = times
    path = _mdoc(
        tmp_path,
        [
            {"TiltAngle": -3.0, "ExposureDose": 3.5, "DateTime": third, "TargetDefocus": -4.0},
            {"TiltAngle": 0.01, "ExposureDose": 2.5, "DateTime": first, "TargetDefocus": -4.0},
            {"TiltAngle": 3.0, "ExposureDose": 3.0, "DateTime": second, "TargetDefocus": -4.5},
        ],
    )
    metadata = read_serialem(path)
    assert metadata.order.tolist() == [2, 0, 1]
    assert metadata.exposure.tolist() == [5.5, 0, 2.5]
    assert metadata.axis_angle.tolist() == [-84.5] * 3
    assert metadata.defocus_um.tolist() == [4, 4, 4.5]
    assert (metadata.pixel_size, metadata.image_size, metadata.voltage_kv) == (2.17, (24, 32), 300)
    assert metadata.shifts is None
    assert read_serialem(path, exposure_per_tilt=2.0).exposure.tolist() == [4, 0, 2]


def test_mdoc_without_exposure(tmp_path: Path) -> None:
    """ExposureDose 0 is an uncalibrated microscope, no exposure; PriorRecordDose goes before; no time: by section."""
    unknown = [{"TiltAngle": angle, "ExposureDose": 0} for angle in (0, 3, -3)]
    metadata = read_serialem(_mdoc(tmp_path, unknown, axis="SerialEM: no axis"))
    assert metadata.exposure is None
    assert metadata.axis_angle is None
    assert metadata.order.tolist() == [0, 1, 2]
    prior = [{"TiltAngle": a, "ExposureDose": 3, "PriorRecordDose": p} for a, p in ((-3, 6.5), (0, 0), (3, 3.25))]
    assert read_serialem(_mdoc(tmp_path, prior)).exposure.tolist() == [6.5, 0, 3.25]
    with pytest.raises(ValueError, match="`exposure_per_tilt` to be more than 0"):
        read_serialem(_mdoc(tmp_path, [{"TiltAngle": 0}]), exposure_per_tilt=0)


def test_mdoc_sections(tmp_path: Path) -> None:
    """A section's number is the tilt's place in the stack, wherever it stands in the file."""
    sections = [{"ZValue": number, "TiltAngle": angle} for number, angle in ((1, 3), (2, -3), (0, 0))]
    path = _mdoc(tmp_path, sections)
    metadata = read_serialem(path)
    assert metadata.sections.tolist() == [1, 2, 0]
    assert metadata.order.tolist() == [1, 2, 0]


# --- RELION and Warp --------------------------------------------------------------------------------------------------


def _relion_project(folder: Path) -> Path:
    """A project as RELION leaves it: a table of two series in a job, which names their files from the project."""
    job = folder / "AlignTiltSeries" / "job005"
    (job / "tilt_series").mkdir(parents=True)
    for number in (1, 3):
        content = (
            "data_TS\nloop_\n_rlnTomoNominalStageTiltAngle\n_rlnTomoNominalTiltAxisAngle\n_rlnMicrographPreExposure\n"
            "_rlnTomoNominalDefocus\n_rlnMicrographMovieName\n0.0 85.0 0.0 -4.0 'a b.mrc'\n"
            f"{number} 85.0 3.0 -4.0 c.mrc\n"
        )
        (job / "tilt_series" / f"TS_{number}.star").write_text(content)
    rows = "".join(f"TS_{n} AlignTiltSeries/job005/tilt_series/TS_{n}.star 300 2.7 0.1 -1 0.675 1.35\n" for n in (1, 3))
    head = (
        "data_global\nloop_\n_rlnTomoName\n_rlnTomoTiltSeriesStarFile\n_rlnVoltage\n_rlnSphericalAberration\n"
        "_rlnAmplitudeContrast\n_rlnTomoHand\n_rlnMicrographOriginalPixelSize\n_rlnTomoTiltSeriesPixelSize\n"
    )
    return _write(job, "tilt_series.star", head + rows)


def test_relion_project(tmp_path: Path) -> None:
    """A table of all series leads to the one asked for, and tells what holds for all."""
    path = _relion_project(tmp_path)
    metadata = read_relion(path, tomogram="TS_3")
    assert metadata.tilt_angles.tolist() == [0, 3]
    assert metadata.axis_angle.tolist() == [85, 85]
    assert metadata.exposure.tolist() == [0, 3]
    assert metadata.order.tolist() == [0, 1]
    assert metadata.defocus_um.tolist() == [4, 4]
    assert metadata.paths == ("a b.mrc", "c.mrc")
    assert metadata.shifts is None
    assert (metadata.voltage_kv, metadata.spherical_aberration_mm, metadata.amplitude_contrast) == (300, 2.7, 0.1)
    assert (metadata.handedness, metadata.pixel_size) == (-1, 1.35)
    other = read_relion(path, tomogram="TS_3", series=path.parent / "tilt_series" / "TS_1.star")
    assert other.tilt_angles.tolist() == [0, 1]


def test_relion_project_that_cannot_be_told(tmp_path: Path) -> None:
    """Which of several, a name that is none, a file that is gone."""
    path = _relion_project(tmp_path)
    with pytest.raises(
        ValueError, match="tilt_series.star: expected to be told which of TS_1, TS_3 to read; set `tomo"
    ):
        read_relion(path)
    with pytest.raises(ValueError, match="`tomogram` to be one of 'TS_1', 'TS_3', got 'TS_2'"):
        read_relion(path, tomogram="TS_2")
    (path.parent / "tilt_series" / "TS_1.star").unlink()
    with pytest.raises(FileNotFoundError, match="expected the tilt-series AlignTiltSeries.*TS_1.star .*set `series`"):
        read_relion(path, tomogram="TS_1")


def test_warp_xml(tmp_path: Path) -> None:
    """Exposure, order, the microscope; a defocus for all where there is no grid; tilts not used are left out."""
    metadata = read_warp_xml(_xml(tmp_path, 12.0, UseTilt=["True", "False", "True", "True", "True"]))
    assert metadata.sections.tolist() == [0, 2, 3, 4]
    assert metadata.section_count == 5
    assert metadata.exposure.tolist() == [9, 0, 6, 12]
    assert metadata.order.tolist() == [3, 0, 2, 4]
    assert metadata.defocus_um.tolist() == [3.0] * 4
    assert (metadata.voltage_kv, metadata.pixel_size, metadata.handedness) == (300, 1.7, -1)


def _grid(tag: str, values: list[list[float]]) -> str:
    """A grid of Warp: values of each layer along z."""
    nodes = "".join(
        f'<Node X="{x}" Y="0" Z="{z}" Value="{value}" />' for z, row in enumerate(values) for x, value in enumerate(row)
    )
    return f'<{tag} Width="{len(values[0])}" Height="1" Depth="{len(values)}">{nodes}</{tag}>'


def test_warp_grids(tmp_path: Path) -> None:
    """A grid over the tilts gives each its own defocus: the mean over its image; delta is the whole difference."""
    path = _xml(tmp_path, 0.0)
    grids = (
        _grid("GridCTF", [[1, 3], [2, 4], [3, 5], [4, 6], [5, 7]])
        + _grid("GridCTFDefocusDelta", [[0.2], [-0.4]])
        + _grid("GridCTFDefocusAngle", [[30.0]])
        + _grid("GridCTFPhase", [[0.5]])
    )
    path.write_text(path.read_text(encoding="utf-8-sig").replace("</TiltSeries>", grids + "</TiltSeries>"))
    metadata = read_warp_xml(path)
    assert metadata.defocus_um.tolist() == [2, 3, 4, 5, 6]
    np.testing.assert_allclose(metadata.astigmatism_um, [0.1, 0.025, 0.05, 0.125, 0.2])
    np.testing.assert_allclose(metadata.astigmatism_angle, [30, 30, -60, -60, -60])
    assert metadata.phase_shift.tolist() == [90] * 5


def test_tomostar(tmp_path: Path) -> None:
    """Warp's import has negated the angles, as the names of the movies say."""
    head = "\ndata_\n\nloop_\n_wrpMovieName #1\n_wrpAngleTilt #2\n_wrpAxisAngle #3\n_wrpDose #4\n"
    metadata = read_tomostar(_write(tmp_path, "a.tomostar", head + "m_-3.eer 3.01 83.94 3.5\nm_0.eer 0.01 83.94 0\n"))
    assert metadata.tilt_angles.tolist() == [-3.01, -0.01]
    assert metadata.axis_angle.tolist() == [83.94, 83.94]
    assert metadata.exposure.tolist() == [3.5, 0]
    assert metadata.order.tolist() == [1, 0]
    assert metadata.paths == ("m_-3.eer", "m_0.eer")


def test_simulation_meta(tmp_path: Path) -> None:
    """Angles are negated; the exposure is the one before the tilt; shifts are in pixels."""
    rows = "3.0 2.8 20 300 2.7 0.08 0 10 -60 0.5 -0.25 4.5 1\n3.0 2.8 20 300 2.7 0.08 0 10 0 -0.5 0.75 1.5 0\n"
    path = _write(tmp_path, "simulation_meta.txt", "# " + " ".join(SIMULATION_COLUMNS) + "\n" + rows)
    metadata = read_simulation_meta(path)
    assert metadata.tilt_angles.tolist() == [60, 0]
    assert metadata.exposure.tolist() == [3, 0]
    assert metadata.shifts.tolist() == [[0.5, -0.25], [-0.5, 0.75]]
    assert metadata.order.tolist() == [1, 0]
    np.testing.assert_allclose(metadata.defocus_um, 2.9)
    assert (metadata.voltage_kv, metadata.amplitude_contrast, metadata.pixel_size) == (300, 0.08, 10)


# --- bad input --------------------------------------------------------------------------------------------------------

ROW = "1 0 0 1 0 0\n"
BAD: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "xf, five numbers": (
        "a.xf",
        ROW + "1 0 0 1 0\n",
        read_xf,
        "a.xf, line 2: expected A11 A12 A21 A22 DX DY, got '1 0 0",
    ),
    "xf, words": ("a.xf", "one\n", read_xf, "a.xf, line 1: expected A11 .*got 'one'"),
    "xf, NaN": ("a.xf", "1 0 0 1 nan 0\n", read_xf, "a.xf, line 1: expected A11"),
    "xf, singular": (
        *("a.xf", ROW + "0 0 0 0 1 1\n", read_xf),
        "a.xf, line 2: expected a transform that can be inverted, got '0 0 0 0 1 1'",
    ),
    "xf, empty": ("a.xf", "\n", read_xf, "a.xf: expected a transform for each section, got none"),
    "defocus, empty": (
        *("a.defocus", "", lambda p: read_defocus(p, tilt_angles=[0])),
        "a.defocus: expected lines `first view, last view, first angle, last angle, defocus`, got none; fit",
    ),
    "defocus, flags alone": (
        *("a.defocus", "1 0 0. 0. 0. 3\n", lambda p: read_defocus(p, tilt_angles=[0])),
        "a.defocus: expected lines `first view, last view, first angle, last angle, defocus`, got none; fit",
    ),
    "defocus, columns": (
        *("a.defocus", "1 0 0. 0. 0. 3\n1 1 0 0 4000\n", lambda p: read_defocus(p, tilt_angles=[0])),
        "a.defocus, line 2: expected first and last view, .* got '1 1 0 0 4000'",
    ),
    "defocus, version": (
        *("a.defocus", "1 1 0 0 4000 9\n", lambda p: read_defocus(p, tilt_angles=[0])),
        "a.defocus, line 1: expected a file of version 1 to 3, got version 9",
    ),
    "defocus, views": (
        *("a.defocus", "1 1 0 0 4000 2\n7 7 3 3 4000\n", lambda p: read_defocus(p, tilt_angles=[0, 3])),
        "a.defocus: expected views from 1 to 2, as many as tilt angles, got 1 to 7",
    ),
    "aln, no rows": (
        "a.aln",
        ALN_HEAD.format(count=3),
        read_aln,
        "a.aln: expected an AreTomo alignment with `# RawSize`",
    ),
    "aln, no size": ("a.aln", _rows((0, 0)), read_aln, "a.aln: expected an AreTomo alignment with `# RawSize`"),
    "aln, columns": (
        *("a.aln", ALN_HEAD.format(count=3) + "0 5.0 1.0\n", read_aln),
        "a.aln, line 4: expected SEC ROT GMAG .* got '0 5.0 1.0'",
    ),
    "aln, dark frames": (
        *("a.aln", ALN_HEAD.format(count=2) + "# DarkFrame = 0 0 -3\n" + _rows((0, -3), (1, 0)), read_aln),
        r"a.aln: expected sections that fit 2 sections of which 1 are dark, got \[0, 1\] and dark frames \[0\]",
    ),
    "aln, a dark frame of words": (
        *("a.aln", ALN_HEAD.format(count=2) + "# DarkFrame = none\n", read_aln),
        "a.aln, line 4: expected DarkFrame = index section angle, got ' none'",
    ),
    "ctf, columns": (
        *("a_CTF.txt", "1 20000 18000 30\n", read_aretomo_ctf),
        "a_CTF.txt, line 1: expected number, two defocus values .* got '1 20000 18000 30'",
    ),
    "ctf, mixed": (
        *("a_CTF.txt", "1 2 3 4 5 6 7\n2 2 3 4 5 6 7 8\n", read_aretomo_ctf),
        "a_CTF.txt: expected 7 columns in each line, or 8 in each, got lines of both; the file was joined",
    ),
    "ctf, empty": ("a_CTF.txt", "# none\n", read_aretomo_ctf, "a_CTF.txt: expected a line `number, two defocus values"),
    "mdoc, no sections": ("a.mdoc", "PixelSpacing = 1\n", read_serialem, "a.mdoc: expected an .mdoc with a TiltAngle"),
    "mdoc, not one": ("a.mdoc", "\0\1", read_serialem, "a.mdoc: expected an .mdoc with a TiltAngle for every section"),
    "mdoc, a section without": (
        *("a.mdoc", "[ZValue = 0]\nTiltAngle = 0\n\n[ZValue = 1]\nMagnification = 2\n", read_serialem),
        "a.mdoc: expected an .mdoc with a TiltAngle for every section",
    ),
    "star, a short row": (
        *("a.star", "data_\nloop_\n_rlnTomoYTilt #1\n_rlnTomoZRot #2\n1 2\n3\n", read_relion),
        "a.star, line 6: expected 2 values, one for each column, got 1; the file is damaged",
    ),
    "star, not one": (
        "a.star",
        "hello\n",
        read_relion,
        "a.star, line 1: expected a STAR file, which begins with `data_`, got 'hello'",
    ),
    "star, of particles": (
        *("a.star", "data_particles\nloop_\n_rlnAngleRot #1\n3\n", read_relion),
        "a.star: expected a tilt-series of RELION 5 with _rlnTomoYTilt .* got blocks particles without",
    ),
    "star, words": (
        *("a.star", "data_\nloop_\n_rlnTomoYTilt #1\nten\n", read_relion),
        "a.star: expected numbers in column _rlnTomoYTilt, got 'ten' in row 1",
    ),
    "star, no tilts": (
        *("a.star", "data_\nloop_\n_rlnTomoYTilt #1\n", read_relion),
        "a.star: expected a row for each tilt, got none",
    ),
    "tomostar, other columns": (
        *("a.tomostar", "data_\nloop_\n_wrpDose #1\n3\n", read_tomostar),
        "a.tomostar: expected a .tomostar of Warp with a row _wrpAngleTilt for each tilt, got none",
    ),
    "xml, cut": (
        *("a.xml", "<TiltSeries><Angles>1\n2</Ang", read_warp_xml),
        "a.xml: expected an XML of Warp, got a damaged one",
    ),
    "xml, other root": (
        *("a.xml", "<MicroscopeImage></MicroscopeImage>", read_warp_xml),
        "a.xml: expected an XML of a tilt-series of Warp, <TiltSeries>, got <MicroscopeImage>",
    ),
    "xml, no angles": (
        *("a.xml", "<TiltSeries></TiltSeries>", read_warp_xml),
        "a.xml: expected a tilt-series of Warp with <Angles>, got <TiltSeries> without",
    ),
    "xml, fewer shifts": (
        *("a.xml", "<TiltSeries><Angles>1\n2</Angles><AxisOffsetX>3</AxisOffsetX></TiltSeries>", read_warp_xml),
        "a.xml: expected 2 values in <AxisOffsetX>, as many as in <Angles>, got 1",
    ),
    "xml, words": (
        *("a.xml", "<TiltSeries><Angles>one</Angles></TiltSeries>", read_warp_xml),
        "a.xml: expected numbers in <Angles>, got 'one'",
    ),
    "xml, a setting": (
        *("a.xml", '<TiltSeries><Angles>1</Angles><CTF><Param Name="Cs" Value="x"/></CTF></TiltSeries>', read_warp_xml),
        "a.xml: expected a number for Cs in <CTF>, got 'x'",
    ),
    "xml, a grid": (
        *(
            "a.xml",
            "<TiltSeries><Angles>1</Angles><GridCTF><Node X='0' Value='1'/></GridCTF></TiltSeries>",
            read_warp_xml,
        ),
        "a.xml: expected nodes with Z and Value in <GridCTF>",
    ),
    "xml, nothing used": (
        *("a.xml", "<TiltSeries><Angles>1</Angles><UseTilt>False</UseTilt></TiltSeries>", read_warp_xml),
        "a.xml: expected a tilt to use, got <UseTilt> False for all 1",
    ),
    "simulation, columns": (
        *("simulation_meta.txt", "1 2 3\n", read_simulation_meta),
        "simulation_meta.txt, line 1: expected DefocusU_um .* got '1 2 3'",
    ),
    "simulation, empty": ("simulation_meta.txt", "# none\n", read_simulation_meta, "expected a row `DefocusU_um"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered")
def test_bad_files(tmp_path: Path, case: str) -> None:
    """A damaged file is a FileFormatError that names it, the line where there is one, what was expected and found."""
    name, content, read, message = BAD[case]
    with pytest.raises(FileFormatError, match=message):
        read(_write(tmp_path, name, content))


@pytest.mark.parametrize(
    "read",
    [
        *(read_xf, read_imod, read_aln, read_aretomo_ctf, read_serialem, read_relion, read_warp_xml, read_tomostar),
        *(read_simulation_meta, lambda path: read_defocus(path, tilt_angles=[0])),
    ],
)
def test_missing_files(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """A file that is not there is a FileNotFoundError with its path."""
    with pytest.raises(FileNotFoundError, match="expected .* found none at .*gone"):
        read(tmp_path / "gone")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"xf": ROW * 2}, "a.xf: expected a line for each of the 3 tilts of .*a.tlt, got 2"),
        ({"xtilt": "0\n"}, "a.xtilt: expected a line for each of the 3 tilts of .*a.tlt, got 1"),
        ({"xtilt": "0\nzero\n0\n"}, "a.xtilt, line 2: expected a number in column 1, got 'zero'"),
    ],
)
def test_imod_files_of_different_lengths(tmp_path: Path, files: dict[str, str], message: str) -> None:
    """Angles and alignment of different numbers: the error names both files."""
    tlt = _write(tmp_path, "a.tlt", "-3\n0\n3\n")
    given = {name: _write(tmp_path, f"a.{name}", content) for name, content in files.items()}
    with pytest.raises(FileFormatError, match=message):
        read_imod(tlt, **given)


# --- files of real programs -------------------------------------------------------------------------------------------


@pytest.fixture
def real(reference: Path) -> Path:
    """The folder of real measurements."""
    return reference / "data" / "real"


def test_real_warp_xml(real: Path) -> None:
    """EMPIAR-10499, series 00254: 41 tilts by 3°, 120 e⁻/Å², axis −4.3°, 300 kV."""
    metadata = read_warp_xml(real / "empiar10499_ts00254" / "00254.xml")
    assert len(metadata) == metadata.section_count == 41
    np.testing.assert_allclose(metadata.tilt_angles, np.arange(-60, 61, 3), atol=0.03)
    np.testing.assert_allclose(metadata.axis_angle, -4.3, atol=1e-5)
    assert metadata.shifts[0].tolist() == [-19.614283, 262.72888]
    assert metadata.exposure[[0, 20, 40]].tolist() == [117, 0, 120]
    assert metadata.order[20] == 0
    assert sorted(metadata.order.tolist()) == list(range(41))
    assert metadata.defocus_um[[0, 20, 40]].tolist() == [1.5701942, 1.9049848, 1.7434809]
    np.testing.assert_allclose(metadata.astigmatism_um, 0.015311956 / 2)
    np.testing.assert_allclose(metadata.astigmatism_angle, 69)
    assert not metadata.phase_shift.any()
    assert (metadata.voltage_kv, metadata.spherical_aberration_mm, metadata.amplitude_contrast) == (300, 2.7, 0.1)
    assert (metadata.pixel_size, metadata.handedness) == (1.7005, 1)
    assert metadata.paths[20] == "../2/TS_01_002_-0.0.tif"


def test_real_xf_and_xml_agree(real: Path) -> None:
    """The series by .tlt and .xf: the same angles and axis as the XML's, and shifts within a pixel up to ±30°.

    At higher tilts they differ, by up to 61 Å: the XML's were refined after its import of the .xf, and about another
    point of the specimen, since the difference goes smoothly with the angle.
    """
    folder = real / "empiar10499_ts00254"
    xml, imod = read_warp_xml(folder / "00254.xml"), read_imod(folder / "00254.tlt", xf=folder / "00254.xf")
    np.testing.assert_allclose(imod.tilt_angles, xml.tilt_angles, atol=0)
    np.testing.assert_allclose(imod.axis_angle, xml.axis_angle, atol=3e-5)
    (turn, shifts), (other_turn, others) = (m.places((512, 512), pixel_size=10.0) for m in (xml, imod))
    np.testing.assert_allclose(turn, other_turn, atol=5e-7)
    difference = shifts - others
    low = np.abs(xml.tilt_angles) < 31
    assert np.abs(difference[low]).max() < 1.4
    assert np.median(np.abs(difference[low])) < 0.6
    assert np.abs(difference).max() < 6.5
    for axis in (0, 1):
        assert np.corrcoef(shifts[low, axis], others[low, axis])[0, 1] > 0.85
    # A shift with the wrong sign, or with its axes exchanged, is far off.
    assert np.median(np.abs(shifts + others)[low, 1]) > 10
    assert np.median(np.abs(shifts - others[:, ::-1])[low]) > 5


@pytest.mark.parametrize("name", ["empiar10164_TS_01.mrc.mdoc", "teamtomo_tilt_series.mdoc"])
def test_real_mdoc(real: Path, name: str) -> None:
    """EMPIAR-10164, TS_01: 41 tilts, dose-symmetric, axis 85.3°, 5.4 Å; either end of lines."""
    metadata = read_serialem(real / "metadata" / "serialem" / name, exposure_per_tilt=3.0)
    assert len(metadata) == 41
    assert metadata.tilt_angles[:4].tolist() == [0.000999877, 3.00113, -2.99863, -5.99876]
    np.testing.assert_allclose(metadata.axis_angle, 85.3)
    assert metadata.order.tolist() == list(range(41))
    assert metadata.exposure[[0, 1, 40]].tolist() == [0, 3, 120]
    assert metadata.defocus_um.tolist() == [4.0] * 41
    assert (metadata.pixel_size, metadata.image_size) == (5.4, (958, 924))
    assert metadata.paths[1].endswith("TS_01_001_3.0.mrc")
    assert read_serialem(real / "metadata" / "serialem" / name).exposure is None


def test_real_aln(real: Path) -> None:
    """AreTomo 1.3 with 41 tilts, and AreTomo 3 with dark frames and a local alignment."""
    plain = read_aln(real / "metadata" / "aretomo" / "aretomo1.3_nolocal.aln")
    assert plain.sections.tolist() == list(range(41))
    assert plain.tilt_angles[[0, 40]].tolist() == [-51.98, 68.0]
    np.testing.assert_allclose(plain.axis_angle, -93.6692)
    assert plain.shifts[[0, 17]].tolist() == [[720.866, 157.142], [0, 0]]
    assert (plain.image_size, plain.shift_unit, plain.centre) == ((4092, 5760), "pixel", "middle")
    dark = read_aln(real / "metadata" / "aretomo" / "aretomo3_dark_local.aln")
    assert dark.tilt_angles.tolist() == [-61.5, -60, -58.5, -57]
    # Its dark frames are the first two of 90 sections, −66° and −64.5°, and two near the end.
    assert dark.sections.tolist() == [2, 3, 4, 5]
    assert dark.section_count == 90
    assert dark.shifts[0].tolist() == [-2.677, 24.786]


def test_real_aretomo_ctf(real: Path) -> None:
    """Seven columns, and eight with the handedness."""
    seven = read_aretomo_ctf(real / "metadata" / "aretomo" / "aretomo3_CTF_7col.txt")
    np.testing.assert_allclose(seven.defocus_um, [2.521039, 2.42602, 2.005885])
    assert seven.handedness is None
    eight = read_aretomo_ctf(real / "metadata" / "aretomo" / "aretomo3_CTF_8col_dfhand_head12.txt")
    assert len(eight) == 12
    np.testing.assert_allclose(eight.defocus_um[0], 2.1229045)
    np.testing.assert_allclose(eight.astigmatism_um[0], 0.0488265)
    assert eight.astigmatism_angle[[0, 7]].tolist() == [52, -28]
    assert eight.handedness == -1


def test_real_relion(real: Path) -> None:
    """RELION 5 from import to refinement: EMPIAR-10164, TS_01."""
    folder = real / "metadata" / "relion5"
    imported = read_relion(folder / "1_import_TS_01.star")
    assert len(imported) == 41
    assert imported.tilt_angles[:3].tolist() == [0.001, 3.00113, -2.99863]
    assert imported.axis_angle.tolist() == [85.0] * 41
    assert imported.exposure[:3].tolist() == [0, 3, 6]
    assert imported.defocus_um.tolist() == [4.0] * 41
    assert not imported.is_alignment
    fitted = read_relion(folder / "2_ctffind_TS_01.star")
    np.testing.assert_allclose(fitted.defocus_um[0], (38855.828125 + 38750.828125) / 2e4)
    np.testing.assert_allclose(fitted.astigmatism_um[0], 0.00525)
    assert fitted.astigmatism_angle[0] == 35.154533
    aligned = read_relion(folder / "3_aligned_TS_01.star")
    assert len(aligned) == 40
    assert aligned.is_alignment
    assert aligned.tilt_angles[0] == -57
    assert aligned.axis_angle[0] == 85.032958
    assert aligned.shifts[0].tolist() == [108.499417, 34.845611]
    assert aligned.order[0] == 38
    refined = read_relion(folder / "4_ctfrefine_TS_01.star")
    # U is smaller than V here: the direction is that of V.
    np.testing.assert_allclose(refined.astigmatism_um[0], (39616.004993 - 39242.406055) / 2e4)
    np.testing.assert_allclose(refined.astigmatism_angle[0], 107.005741 - 90)


@pytest.mark.parametrize(
    ("table", "series", "pixel_size"),
    [
        ("1_import_tilt_series.star", "1_import_TS_01.star", 0.675),
        ("2_ctffind_tilt_series.star", "2_ctffind_TS_01.star", 1.35),
        ("3_aligned_tilt_series.star", "3_aligned_TS_01.star", 1.35),
        ("4_ctfrefine_tomograms.star", "4_ctfrefine_TS_01.star", 1.35),
    ],
)
def test_real_relion_tables(real: Path, table: str, series: str, pixel_size: float) -> None:
    """The tables of all series name voltage, pixel size and handedness."""
    folder = real / "metadata" / "relion5"
    metadata = read_relion(folder / table, tomogram="TS_01", series=folder / series)
    assert (metadata.voltage_kv, metadata.spherical_aberration_mm, metadata.amplitude_contrast) == (300, 2.7, 0.1)
    assert (metadata.pixel_size, metadata.handedness) == (pixel_size, -1)
    assert metadata.source.endswith(series)


def test_real_relion_that_are_no_series(real: Path) -> None:
    """Particles and the set of an optimisation are no tilt-series."""
    folder = real / "metadata" / "relion5"
    for name in ("5_extract_optimisation_set.star", "5_extract_particles_head60.star"):
        with pytest.raises(FileFormatError, match=f"{name}: expected a tilt-series of RELION 5"):
            read_relion(folder / name)


def test_real_serialem_and_relion_agree(real: Path) -> None:
    """The .mdoc and RELION's import of the same series: the same angles, exposures and defocus."""
    mdoc = read_serialem(real / "metadata" / "serialem" / "empiar10164_TS_01.mrc.mdoc", exposure_per_tilt=3.0)
    star = read_relion(real / "metadata" / "relion5" / "1_import_TS_01.star")
    np.testing.assert_allclose(mdoc.tilt_angles, star.tilt_angles, atol=1e-3)
    assert mdoc.exposure.tolist() == star.exposure.tolist()
    assert mdoc.defocus_um.tolist() == star.defocus_um.tolist()


def test_real_tomostar(real: Path) -> None:
    """Warp's .tomostar: 21 tilts, dose-symmetric; the movies' names hold the microscope's angles, from −45° on."""
    metadata = read_tomostar(real / "metadata" / "warp" / "24jul16a_Position_16_3.tomostar")
    assert metadata.tilt_angles[[0, 15, 20]].tolist() == [-45.01, -0.01, 14.99]
    np.testing.assert_allclose(metadata.axis_angle, 83.94)
    assert metadata.exposure[[0, 15]].tolist() == [116.1, 0]
    assert metadata.order[[0, 15, 16]].tolist() == [20, 0, 1]


def test_simulated_series_has_the_shifts_it_says(reference: Path) -> None:
    """`simulation_meta.txt` tells where the tilts of a simulated microscope lie: aligned, they fit the projections."""
    folder = reference / "data" / "minishrec" / "model_0"
    series = TiltSeries.read(folder, metadata=folder / "simulation_meta.txt")
    plain = TiltSeries.read(folder)
    assert torch.equal(series.tilts, plain.tilts)
    np.testing.assert_allclose(series.tilt_angles, plain.tilt_angles)
    assert sorted(series.metadata.order.tolist()) == list(range(41))
    assert series.metadata.exposure.min() == 0
    assert series.metadata.exposure.max() == pytest.approx(120 - 120 / 41, abs=1e-3)

    clean = -project(GrandModel.from_shrec(folder, z_range=None).density.float(), series.tilt_angles)
    k = torch.fft.fftfreq(256)
    low = torch.exp(-(k[:, None] ** 2 + k[None, :] ** 2) / 0.12**2)
    steps = torch.arange(-20, 21) * 0.1
    waves = torch.exp(2j * torch.pi * steps[:, None] * k[None, :])  # (step, k)

    def displacement(of: TiltSeries) -> float:
        """How far the tilts lie from the projections along y, in pixels, root of the mean square."""
        centred = of.tilts - of.tilts.mean((1, 2), keepdim=True)
        cross = torch.fft.fft2(centred) * torch.fft.fft2(clean).conj() * low
        # Along x a tilt is in place to a fraction of a pixel: what correlates there is enough.
        peaks = (waves @ cross.sum(2)[..., None]).real.squeeze(-1).argmax(1)
        return float(steps[peaks].square().mean().sqrt())

    reversed_ = replace(series, metadata=replace(series.metadata, shifts=-series.metadata.shifts))
    assert displacement(series.aligned()) < 0.5 * displacement(series)
    assert displacement(reversed_.aligned()) > 1.5 * displacement(series)
