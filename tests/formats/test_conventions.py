"""The conventions of other programs, each from the program's own formula: files are made as it makes them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch

from faket_aug import FileFormatError, GrandModel, TiltSeries, reconstruct
from faket_aug.formats.angles import read_tilt_angles
from faket_aug.formats.imod import read_xf
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.formats.serialem import read_serialem
from faket_aug.formats.star import read_particles_star
from faket_aug.formats.warp import read_tomostar, read_warp_xml

#: What the microscope noted: an asymmetric series, so that a sign cannot hide, taken dose-symmetrically.
MICROSCOPE = [-40.0, -20.0, 0.0, 20.0, 40.0, 60.0]
TAKEN = [0.0, 20.0, -20.0, 40.0, -40.0, 60.0]


def _write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def _star(path: Path, block: str, columns: dict[str, list[Any]]) -> Path:
    head = f"\ndata_{block}\n\nloop_\n" + "".join(f"_{name} #{i}\n" for i, name in enumerate(columns, start=1))
    rows = "".join("\t".join(map(str, row)) + "\n" for row in zip(*columns.values(), strict=True))
    return _write(path, head + rows)


def _images(*shape: int) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).reshape(shape).sin()


# --- Warp, WarpTools and M --------------------------------------------------------------------------------------------


def _warp_import(folder: Path, *, invert: bool, names: str = "f{i}.tif", encoding: str = "utf-8") -> tuple[Path, Path]:
    """WarpTools' ts_import: sorted by the microscope's angle, the dose i x exposure by time, then (1 or -1) x angle."""
    ordered = sorted(MICROSCOPE)
    angles = [angle * (-1 if invert else 1) for angle in ordered]
    dose = [TAKEN.index(angle) * 3.0 for angle in ordered]
    movies = [names.format(i=i, angle=angle) for i, angle in enumerate(ordered)]
    columns = {"wrpMovieName": movies, "wrpAngleTilt": angles, "wrpAxisAngle": [0.0] * 6, "wrpDose": dose}
    columns |= {"wrpAverageIntensity": [10.0] * 6, "wrpMaskedFraction": [0.0] * 6}
    tomostar = _star(folder / "TS.tomostar", "", columns)
    lists = {"Angles": angles, "Dose": dose, "UseTilt": ["True"] * 6, "AxisAngle": [0.0] * 6, "MoviePath": movies}
    lists |= {"AxisOffsetX": [0.0] * 6, "AxisOffsetY": [0.0] * 6}
    body = "".join(f"<{tag}>" + "\n".join(map(str, values)) + f"</{tag}>" for tag, values in lists.items())
    text = f'<?xml version="1.0" encoding="{encoding}"?><TiltSeries AreAnglesInverted="False">{body}</TiltSeries>'
    return tomostar, _write(folder / "TS.xml", text, encoding)


def _warp_sees(x: float, z: float, angle: float) -> float:
    """Warp's Matrix3.Euler(0, angle, 0): the first row is (cos, 0, -sin)."""
    return x * np.cos(np.deg2rad(angle)) - z * np.sin(np.deg2rad(angle))


@pytest.mark.parametrize(
    "names", ["f{i}.tif", "TS_1_{i:03d}_{angle:.1f}.eer", "..\\frames\\a_{i}_[{angle:.2f}]_EER.eer"]
)
def test_warp_sees_the_other_sign(tmp_path: Path, names: str) -> None:
    """Warp sees a point at x cos θ - z sin θ of its own angles: ours see it at the same place, x cos θ + z sin θ."""
    n, x, z = 64, -9.0, 20.0
    files = _warp_import(tmp_path, invert=True, names=names)
    across = np.arange(n) - n // 2
    tilts = [np.exp(-((across - _warp_sees(x, z, -angle)) ** 2) / 4) for angle in MICROSCOPE]
    write_mrc(tmp_path / "TS.mrc", torch.tensor(np.array(tilts))[:, None].repeat(1, 4, 1), voxel_size=10.0)
    for file, read in zip(files, (read_tomostar, read_warp_xml), strict=True):
        assert read(file).tilt_angles.tolist() == MICROSCOPE
        series = TiltSeries.read(tmp_path / "TS.mrc", metadata=file)
        assert series.metadata.exposure.tolist() == [3.0 * TAKEN.index(angle) for angle in MICROSCOPE]
        volume = reconstruct(series.tilts, series.tilt_angles, depth=n, filter="ramp")
        at_z, _, at_x = np.unravel_index(int(volume.argmax()), volume.shape)
        assert (at_z - n // 2, at_x - n // 2) == (z, x)


def test_warp_that_was_told_not_to_invert(tmp_path: Path) -> None:
    """Names of movies, or else the rising order, say that an import did not negate; an option goes before both."""
    for names, told in (("TS_1_{i:03d}_{angle:.1f}.eer", True), ("f{i}.tif", False)):
        tomostar, xml = _warp_import(tmp_path, invert=False, names=names)
        for read, file in ((read_tomostar, tomostar), (read_warp_xml, xml)):
            found = read(file)
            assert found.tilt_angles.tolist() == MICROSCOPE
            assert found.assumed_sign is not told
            assert ("angles as they are" in found.source) is not told
            assert read(file, negate=True).tilt_angles.tolist() == [-angle for angle in MICROSCOPE]
            assert not read(file, negate=True).assumed_sign


def test_warp_whose_sign_nothing_tells(tmp_path: Path) -> None:
    """Unsorted angles without names are taken to be negated, and the source says so; a file of angles settles it."""
    unsorted = [10.0, -30.0, 50.0, 0.0]
    file = _star(tmp_path / "a.tomostar", "", {"wrpAngleTilt": unsorted})
    found = read_tomostar(file)
    assert found.tilt_angles.tolist() == [-10, 30, -50, 0]
    assert not np.signbit(found.tilt_angles[3])
    assert "angles negated, as Warp's import does" in found.source
    write_mrc(tmp_path / "a.mrc", _images(4, 8, 8), voxel_size=2.0)
    (tmp_path / "a.tlt").write_text("10\n-30\n50\n0\n")
    for given in (["a.tlt", "a.tomostar"], ["a.tomostar", "a.tlt"]):
        series = TiltSeries.read(tmp_path / "a.mrc", metadata=[tmp_path / name for name in given])
        assert series.tilt_angles.tolist() == sorted(unsorted)
    rising = _star(tmp_path / "b.tomostar", "", {"wrpAngleTilt": [-30, 0, 20, 50], "wrpDose": [9, 0, 3, 6]})
    with pytest.warns(UserWarning, match="b.tomostar .angles as they are: they rise, .*negate=True"):
        TiltSeries.read(tmp_path / "a.mrc", metadata=rising)


@pytest.mark.parametrize("rule", ["running", "default"])
def test_dose_of_warp_1(tmp_path: Path, rule: str) -> None:
    """Warp 1 adds up exposures, the tilt's own included, or counts (i + 1/2) x the default; it writes UTF-16."""
    own = dict(zip(TAKEN, [3.0, 3.1, 3.3, 3.0, 3.4, 3.2] if rule == "running" else [3.0] * 6, strict=True))
    dose, before, accumulated = {}, {}, 0.0
    for i, angle in enumerate(TAKEN):
        before[angle] = accumulated
        accumulated += own[angle]
        dose[angle] = accumulated if rule == "running" else (i + 0.5) * 3.0
    ordered = sorted(MICROSCOPE)
    angles, doses = [-angle for angle in ordered], [dose[angle] for angle in ordered]
    columns = {"wrpMovieName": [f"f{a}.tif" for a in ordered], "wrpAngleTilt": angles, "wrpAxisAngle": [85.0] * 6}
    columns |= {"wrpAxisOffsetX": [1.0] * 6, "wrpAxisOffsetY": [2.0] * 6, "wrpDose": doses}
    lists = {"Angles": angles, "Dose": doses}
    body = "".join(f"<{tag}>" + "\n".join(map(str, values)) + f"</{tag}>" for tag, values in lists.items())
    xml = _write(
        tmp_path / "a.xml", f'<?xml version="1.0" encoding="utf-16"?><TiltSeries>{body}</TiltSeries>', "utf-16"
    )
    for found in (read_tomostar(_star(tmp_path / "a.tomostar", "", columns)), read_warp_xml(xml)):
        np.testing.assert_allclose(found.exposure, [before[angle] for angle in ordered], atol=1e-6)
        assert found.order.tolist() == [TAKEN.index(angle) for angle in ordered]


def test_two_dimensional_particles_of_warptools(tmp_path: Path) -> None:
    """ts_export_particles --2d writes Å / rlnImagePixelSize as coordinates; RELION's own count the tilt-series'."""
    places, pixel, output = np.array([[800.0, 300.0, 120.0], [40.0, 60.0, 20.0]]), 0.8, 4.0  # (x, y, z) in Å
    general = "data_general\n\n_rlnTomoSubTomosAre2DStacks 1\n"
    optics = (
        "\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnTomoTiltSeriesPixelSize #2\n_rlnTomoSubtomogramBinning #3\n"
        f"_rlnImagePixelSize #4\n1 {pixel} {output / pixel} {output}\n"
    )
    for name, counted in (("TS_1.tomostar", output), ("TS_1", pixel)):
        x, y, z = (places / counted).T
        columns = {"rlnTomoName": [name] * 2, "rlnCoordinateX": x, "rlnCoordinateY": y, "rlnCoordinateZ": z}
        path = _star(tmp_path / "particles.star", "particles", columns | {"rlnOpticsGroup": [1, 1]})
        path.write_text(general + optics + path.read_text())
        found = read_particles_star(path, voxel_size=10.0)["TS_1"]
        np.testing.assert_allclose(found.positions, places[:, ::-1] / 10)
    (tmp_path / "set.star").write_text(
        "data_\n\n_rlnTomoParticlesFile particles.star\n_rlnTomoTomogramsFile tomograms.star\n"
    )
    sizes = {"rlnTomoName": ["TS_1"], "rlnTomoSizeX": [1000], "rlnTomoSizeY": [900], "rlnTomoSizeZ": [300]}
    _star(tmp_path / "tomograms.star", "global", sizes | {"rlnTomoTiltSeriesPixelSize": [pixel]})
    np.testing.assert_allclose(
        read_particles_star(tmp_path / "set.star", voxel_size=10.0)["TS_1"].positions, places[:, ::-1] / 10
    )


# --- SerialEM and Tomography 5 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "axis"),
    [
        ("    Tilt axis angle = 85.3, binning = 4  spot = 8  camera = 2", 85.3),
        ("  TiltAxisAngle = -174.09  Binning = 1  SpotSize = 6", 84.09),
        ("  TiltAxisAngle = -95.25  Binning = 1  SpotSize = 7", 5.25),
        ("  TiltAxisAngle = 96.0  Binning = 1  SpotSize = 7", 174.0),
    ],
)
def test_axis_of_the_microscopes_programs(tmp_path: Path, title: str, axis: float) -> None:
    """SerialEM's title is IMOD's angle; Tomography 5's RotationAngle is, which is -TiltAxisAngle - 90."""
    sections = "".join(f"\n[ZValue = {i}]\nTiltAngle = {3 * i}\nRotationAngle = 175.3\n" for i in range(3))
    path = _write(tmp_path / "a.mdoc", f"PixelSpacing = 2\n\n[T = Microscope]\n\n[T = {title}]\n{sections}")
    np.testing.assert_allclose(read_serialem(path).axis_angle, [axis] * 3)


# --- IMOD -------------------------------------------------------------------------------------------------------------


def _imod_bytes(path: Path, values: np.ndarray, *, stamp: bool, signed: bool) -> Path:
    """IMOD's mrc_head_write: of signed bytes 128 is taken, from values and the header's range; stamp and flag."""
    stored = (values.astype(np.int16) - 128).astype(np.int8) if signed else values.astype(np.uint8).view(np.int8)
    write_mrc(path, torch.from_numpy(stored), voxel_size=10.0)
    content = bytearray(path.read_bytes())
    offset = 128 if signed else 0
    content[76:88] = struct.pack("<3f", values.min() - offset, values.max() - offset, values.mean() - offset)
    content[152:160] = struct.pack("<ii", 1146047817 if stamp else 0, int(signed and stamp))
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(("stamp", "signed"), [(True, False), (True, True), (False, False)])
def test_bytes_of_imod(tmp_path: Path, stamp: bool, signed: bool) -> None:
    """Bytes are 0 to 255 for IMOD, stored signed or not as stamp and flag say; else a maximum above 127 tells."""
    values = np.random.default_rng(0).integers(0, 256, (3, 8, 12))
    path = _imod_bytes(tmp_path / "a.st", values, stamp=stamp, signed=signed)
    assert np.array_equal(read_mrc(path)[0].numpy(), values)
    assert np.array_equal(read_mrc(path, rows=slice(1, 2))[0].numpy(), values[1:2])


def test_bytes_of_other_programs(tmp_path: Path) -> None:
    """The format's own bytes are signed; what mrcfile writes into a file of IMOD's, too, though the stamp stays."""
    values = np.arange(-60, 60, dtype=np.int8).reshape(2, 6, 10)
    write_mrc(tmp_path / "a.mrc", torch.from_numpy(values), voxel_size=10.0)
    assert np.array_equal(read_mrc(tmp_path / "a.mrc")[0].numpy(), values)
    path = _imod_bytes(tmp_path / "b.mrc", np.full((2, 6, 10), 7), stamp=True, signed=False)
    with mrcfile.open(path, mode="r+") as file:
        file.set_data(values)
    assert np.array_equal(read_mrc(path)[0].numpy(), values)


def test_labels_of_imod(tmp_path: Path) -> None:
    """A mask that IMOD saved as signed bytes is one of 0 and 1."""
    mask = np.zeros((4, 6, 8), np.int64)
    mask[1:3, 2:4, 2:5] = 1
    _imod_bytes(tmp_path / "labels.mrc", mask, stamp=True, signed=True)
    write_mrc(tmp_path / "density.mrc", torch.from_numpy(mask).float(), voxel_size=10.0)
    made = GrandModel.from_files(tmp_path / "density.mrc", tmp_path / "labels.mrc", class_names={1: "a"})
    assert np.array_equal(made.labels.numpy(), mask)


def test_packed_bytes_of_imod(tmp_path: Path) -> None:
    """IMOD's bytes of two values each are refused."""
    path = _imod_bytes(tmp_path / "a.mrc", np.full((2, 6, 10), 7), stamp=True, signed=False)
    content = bytearray(path.read_bytes())
    content[156:160] = struct.pack("<i", 16)
    path.write_bytes(bytes(content))
    with pytest.raises(FileFormatError, match="a.mrc: expected bytes, got IMOD's packed ones"):
        read_mrc(path)


XF = "0.0 1.0 -1.0 0.0 3.0 -2.0\n" * 3


@pytest.mark.parametrize("name", ["a.ali", "a_ali.mrc"])
def test_aligned_stacks_of_imod(tmp_path: Path, name: str) -> None:
    """newstack has applied the .xf to an .ali: what is given beside angles is left out, with a warning."""
    write_mrc(tmp_path / name, _images(3, 8, 12), voxel_size=2.0)
    (tmp_path / "a.tlt").write_text("-30\n0\n30\n")
    (tmp_path / "a.xf").write_text(XF)
    for settings in ({}, {"metadata": tmp_path / "a.tlt"}):
        series = TiltSeries.read(tmp_path / name, **settings)
        assert series.tilt_angles.tolist() == [-30, 0, 30]
        assert not series.metadata.shifts.any()
        assert series.aligned() is series
    with pytest.warns(UserWarning, match=f"{name}: is aligned already .*a.xf is left out"):
        assert not TiltSeries.read(tmp_path / name, metadata=tmp_path / "a.xf").metadata.shifts.any()


@pytest.mark.parametrize("order", [("a.tlt", "a.mrc.mdoc"), ("a.mrc.mdoc", "a.tlt"), None])
def test_transforms_of_the_unbinned_stack(tmp_path: Path, order: tuple[str, str] | None) -> None:
    """newstack -bin 4 divides the shifts of an .xf by four: they count pixels of the stack that the .mdoc describes."""
    write_mrc(tmp_path / "a.mrc", _images(3, 64, 48), voxel_size=40.0)
    (tmp_path / "a.tlt").write_text("-30\n0\n30\n")
    (tmp_path / "a.xf").write_text("1 0 0 1 40 20\n" * 3)
    sections = "".join(f"\n[ZValue = {i}]\nTiltAngle = {a}\n" for i, a in enumerate((-30, 0, 30)))
    (tmp_path / "a.mrc.mdoc").write_text(f"PixelSpacing = 10.3\nImageSize = 192 256\n{sections}")
    files = None if order is None else [tmp_path / name for name in order]
    series = TiltSeries.read(tmp_path / "a.mrc", metadata=files)
    _, shifts = series.metadata.places((64, 48), pixel_size=series.pixel_size)
    # The middle of an even image lies half a pixel before pixel n // 2.
    np.testing.assert_allclose(shifts, [[-5.5, -10.5]] * 3)
    assert read_xf(tmp_path / "a.xf").places((64, 48), pixel_size=40.0)[1][0].tolist() == [-20.5, -40.5]


# --- AreTomo, pytom-match-pick ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_angle_files_of_aretomo(tmp_path: Path, columns: int) -> None:
    """-AngFile: the angle, and perhaps its order and the exposure; the angle is IMOD's, and not negated."""
    rows = [(angle, TAKEN.index(angle) + 1, 3.0 * TAKEN.index(angle)) for angle in MICROSCOPE]
    path = _write(tmp_path / "TS_TLT.txt", "".join(" ".join(map(str, row[:columns])) + "\n" for row in rows))
    assert read_tilt_angles(path).tolist() == MICROSCOPE


def test_picks_of_pytom_match_pick(tmp_path: Path) -> None:
    """pytom-match-pick tells the voxel size as rlnDetectorPixelSize in Å; RELION 3 means µm over a magnification."""
    columns = {"rlnCoordinateX": [30], "rlnCoordinateY": [20], "rlnCoordinateZ": [10], "rlnLCCmax": [0.4]}
    columns |= {"rlnDetectorPixelSize": [20.0], "rlnMicrographName": ["TS_1.tomostar"]}
    path = _star(tmp_path / "a.star", "", columns)
    assert read_particles_star(path, voxel_size=10.0)["TS_1"].positions.tolist() == [[20, 40, 60]]
    relion = columns | {"rlnDetectorPixelSize": [5.0], "rlnMagnification": [2500.0]}
    path = _star(tmp_path / "b.star", "", relion)
    assert read_particles_star(path, voxel_size=10.0)["TS_1"].positions.tolist() == [[20, 40, 60]]
