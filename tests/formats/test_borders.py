"""What files of the field really hold: other encodings, damage, what cannot be, and more than one tomogram."""

from __future__ import annotations

import bz2
import gzip
import json
import tracemalloc
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch

from faket_aug import FileFormatError, LabelledTomogram, TiltSeries
from faket_aug.formats._text import as_number, as_whole, find_name, read_text, read_xml, star_tables
from faket_aug.formats.angles import read_tilt_angles, read_tlt
from faket_aug.formats.aretomo import read_aln
from faket_aug.formats.copick import (
    read_copick_classes,
    read_copick_picks,
    read_copick_runs,
    read_copick_segmentation,
    read_copick_tomogram,
    read_copick_users,
)
from faket_aug.formats.deepfinder import read_object_list
from faket_aug.formats.imod import read_defocus, read_xf
from faket_aug.formats.mrc import read_mrc, read_mrc_shape, write_mrc
from faket_aug.formats.particles import read_particles_csv
from faket_aug.formats.polnet import read_motif_list
from faket_aug.formats.relion_tilts import read_relion
from faket_aug.formats.serialem import read_serialem
from faket_aug.formats.shrec import read_class_conversion_table, read_particle_locations
from faket_aug.formats.star import has_tomogram_names, read_particles_star
from faket_aug.formats.structures import read_structure
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.formats.warp import read_tomostar, read_warp_xml
from faket_aug.specimens import CopickSpecimens, read_specimens

needs_copick = pytest.mark.skipif(find_spec("copick") is None, reason="needs the optional package copick")

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


def _write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


# --- encodings --------------------------------------------------------------------------------------------------------

MDOC = (
    "PixelSpacing = 2\nImageSize = 12 8\n\n[T = Universität]\n\n[ZValue = 0]\nTiltAngle = 3\n\n"
    "[ZValue = 1]\nTiltAngle = 0\n"
)
STAR_3 = "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnCoordinateZ #3\n3 2 1\n"
XML = "<objlist><object class_label='1' x='3' y='2' z='1'/></objlist>"
#: A file of each kind, and what has to come of it.
TEXTS: dict[str, tuple[str, str, Callable[[Path], Any], Any]] = {
    "tlt": ("a.tlt", "-3\n0\n3\n", lambda p: read_tlt(p).tolist(), [-3, 0, 3]),
    "xf": ("a.xf", "1 0 0 1 2 3\n", lambda p: read_xf(p).shifts.tolist(), [[-3, -2]]),
    "mdoc": ("a.mdoc", MDOC, lambda p: read_serialem(p).tilt_angles.tolist(), [3, 0]),
    "tomostar": (
        "a.tomostar",
        "data_\n\nloop_\n_wrpAngleTilt #1\n-3\n-6\n",
        lambda p: read_tomostar(p).tilt_angles.tolist(),
        [3, 6],
    ),
    "relion": (
        "a.star",
        "data_\n\nloop_\n_rlnTomoYTilt #1\n3\n6\n",
        lambda p: read_relion(p).tilt_angles.tolist(),
        [3, 6],
    ),
    "star": ("a.star", STAR_3, lambda p: read_particles_star(p)["a"].positions.tolist(), [[1, 2, 3]]),
    "csv": ("a.csv", "class,x,y,z\nb,3,2,1\n", lambda p: read_particles_csv(p).positions.tolist(), [[1, 2, 3]]),
    "shrec": ("a.txt", "b 3 2 1\n", lambda p: read_particle_locations(p).positions.tolist(), [[1, 2, 3]]),
    "classes": ("c.txt", "1 b\n", read_class_conversion_table, {1: "b"}),
    "deepfinder": ("a.xml", XML, lambda p: read_object_list(p)[0].positions.tolist(), [[1, 2, 3]]),
    "warp": (
        "a.xml",
        "<TiltSeries><Angles>6\n3</Angles></TiltSeries>",
        lambda p: read_warp_xml(p).tilt_angles.tolist(),
        [-6, -3],
    ),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", TEXTS)
def test_encodings(tmp_path: Path, kind: str, encoding: str) -> None:
    """Windows' programs write marks and two bytes a letter: the content is the same."""
    name, text, read, expected = TEXTS[kind]
    assert read(_write(tmp_path / name, text, encoding)) == expected


def test_windows_page(tmp_path: Path) -> None:
    """What is no Unicode is Windows' page, in which comments have accents."""
    assert read_serialem(_write(tmp_path / "a.mdoc", MDOC, "cp1252")).tilt_angles.tolist() == [3, 0]
    assert read_text(_write(tmp_path / "a.txt", "Universität", "cp1252"), "a text") == "Universität"
    with pytest.raises(FileFormatError, match="a.star: expected a STAR file, got a file that is no text"):
        star_tables(_write(tmp_path / "a.star", "data_\n\0\0\0\0loop_"))


def test_xml_that_declares_its_encoding(tmp_path: Path) -> None:
    """The declaration counts where it fits; a wrong or unknown one does not matter."""
    for declared, written in (("windows-1251", "windows-1251"), ("utf-16", "utf-8"), ("klingon", "utf-8")):
        path = _write(tmp_path / "a.xml", f"<?xml version='1.0' encoding='{declared}'?><a b='ж'/>", written)
        assert read_xml(path, "an XML file").get("b") == "ж"


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE a [<!ENTITY b 'bbbb'><!ENTITY c '&b;&b;&b;&b;'>]><a>&c;</a>",
        "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>",
    ],
)
def test_xml_with_entities(tmp_path: Path, text: str) -> None:
    """Entities are refused, before anything is expanded."""
    for read in (read_warp_xml, read_object_list):
        with pytest.raises(FileFormatError, match="a.xml: expected .* without a document type and entities"):
            read(_write(tmp_path / "a.xml", text))


# --- numbers and names ------------------------------------------------------------------------------------------------


def test_numbers() -> None:
    """Numbers as programs write them; what Python alone takes for one, or cannot be held, is none."""
    assert [as_number(word) for word in ("1e3", " -2.5 ", 7)] == [1000, -2.5, 7]
    assert np.isnan([as_number(word) for word in ("1_000", "9" * 400, "nan", "inf", "", "1e999", None)]).all()
    assert [as_whole(word) for word in ("3", "3.0", "-2", "3.5", "1e12", "x")] == [3, 3, -2, None, None, None]


@pytest.mark.parametrize(
    ("wanted", "names", "found"),
    [
        ("TS_1", ["TS_1", "TS_10"], "TS_1"),
        ("TS_1_10.00Apx", ["TS_10", "TS_1"], "TS_1"),
        ("TS_1", ["TS_1.tomostar", "TS_2.tomostar"], "TS_1.tomostar"),
        ("rec_TS_1_bin4", ["TS_1"], "TS_1"),
        ("TS_1", ["TS_10"], None),
        ("TS_1", ["TS_1_2"], None),
        ("TS_1_rec", ["TS_1_ali", "TS_1_bin4"], None),
    ],
)
def test_names_of_tomograms(wanted: str, names: list[str], found: str | None) -> None:
    """A tomogram is found by its name, less what processing adds; never by a part of a number, nor one of two."""
    assert find_name(wanted, names) == found


# --- STAR -------------------------------------------------------------------------------------------------------------


def test_star_dialects(tmp_path: Path) -> None:
    """Pairs, comments, quotes, rows that begin like blocks or columns, and no blank lines are all read."""
    text = (
        "# version 50001\n\ndata_general\n_a 1\n_b 'two words' # why\ndata_\nloop_ \n_x #1 \n_y #2 \n"
        'data_1/m.mrc 2 # last\n_tmp/y ""\nit\'s 3\n\n_z 4\ndata_one\nloop_\n_path\ndata_1/a.mrc\ndata_2\nloop_\n_n\n'
    )
    assert star_tables(_write(tmp_path / "a.star", text)) == {
        "general": {"a": ["1"], "b": ["two words"]},
        "": {"x": ["data_1/m.mrc", "_tmp/y", "it's"], "y": ["2", "", "3"], "z": ["4"]},
        "one": {"path": ["data_1/a.mrc"]},
        "2": {"n": []},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a STAR file, which begins with `data_`, got an empty one"),
        ("data_\nloop_\n_a\n_b\n1 2\n3\n", "line 6: expected 2 values, one for each column, got 1"),
        ("data_\nloop_\n_a\n_a\n", "line 4: expected each column once, got _a again"),
        ("data_\n_a 1\n_b\n", "line 3: expected a pair `_name value`, got '_b'"),
        ("data_\nloop_\n_a\n1\n\nloop_\n_b\n", "line 6: expected one table in each block, got a second `loop_`"),
        ("data_a\n_b 1\ndata_a\n", "line 3: expected blocks of different names, got data_a again"),
        ("data_\nhello\n", "line 2: expected `data_`, `loop_` or a column `_name`, got 'hello'"),
    ],
)
def test_damaged_star(tmp_path: Path, text: str, message: str) -> None:
    """What is no table is told by file and line."""
    with pytest.raises(FileFormatError) as caught:
        star_tables(_write(tmp_path / "a.star", text))
    assert str(caught.value).startswith(str(tmp_path / "a.star"))
    assert message in str(caught.value)


def test_optimisation_set_that_lacks_a_file(tmp_path: Path) -> None:
    """A set without its tomograms reads what needs none; without its particles it says what it names."""
    _write(tmp_path / "p.star", STAR_3)
    set_ = _write(tmp_path / "set.star", "data_\n\n_rlnTomoParticlesFile p.star\n")
    assert read_particles_star(set_)["p"].positions.tolist() == [[1, 2, 3]]
    _write(set_, "data_\n\n_rlnTomoParticlesFile q.star\n")
    with pytest.raises(FileNotFoundError, match="set.star: expected q.star, which it names"):
        read_particles_star(set_)
    _write(set_, "data_\n\n_rlnTomoParticlesFile p.star\n_rlnTomoTomogramsFile t.star\n")
    with pytest.raises(FileNotFoundError, match="set.star: expected t.star, which it names"):
        read_particles_star(set_)
    for named, message in (
        ("None", "expected a file named by _rlnTomoParticlesFile, got none"),
        ("set.star", "itself"),
    ):
        _write(set_, f"data_\n\n_rlnTomoParticlesFile {named}\n")
        with pytest.raises(FileFormatError, match=f"set.star: .*{message}"):
            read_particles_star(set_)


# --- several tomograms in one file ------------------------------------------------------------------------------------

BLOCK = "data_{name}\n\nloop_\n_rlnTomoYTilt #1\n_rlnTomoZRot #2\n_rlnMicrographPreExposure #3\n{rows}\n"
GLOBAL = "data_global\n\nloop_\n_rlnTomoName #1\n_rlnVoltage #2\nA.tomostar 200\nB.tomostar 300\n\n"


def _blocks(path: Path) -> Path:
    a = BLOCK.format(name="A.tomostar", rows="-9 85 6\n0 85 0\n9 85 3\n")
    b = BLOCK.format(name="B.tomostar", rows="-20 80 16\n0 80 8\n20 80 12\n")
    return _write(path, GLOBAL + a + b)


def test_a_block_for_each_tomogram(tmp_path: Path) -> None:
    """Of a file with several series the one asked for is read, or the one of the stack's name, with its microscope."""
    path = _blocks(tmp_path / "tomograms.star")
    assert read_relion(path, tomogram="B").exposure.tolist() == [16, 8, 12]
    write_mrc(tmp_path / "B.mrc", torch.zeros(3, 4, 6), voxel_size=2.0)
    series = TiltSeries.read(tmp_path / "B.mrc", metadata=path)
    assert series.tilt_angles.tolist() == [-20, 0, 20]
    assert (series.metadata.voltage_kv, series.metadata.axis_angle[0]) == (300, 80)
    with pytest.raises(ValueError, match="tomograms.star: expected to be told which of A.tomostar, B.tomostar to read"):
        read_relion(path)
    with pytest.raises(ValueError, match="tomograms.star: expected `tomogram` to be one of 'A.tomostar', .*, got 'C'"):
        read_relion(path, tomogram="C")


def test_a_series_that_is_tilted_about_x(tmp_path: Path) -> None:
    """Where XTilt holds the tilts, YTilt is no tilt angle: refused."""
    text = "data_\n\nloop_\n_rlnTomoXTilt #1\n_rlnTomoYTilt #2\n40 -2\n0 -1\n-40 -2\n"
    with pytest.raises(
        FileFormatError, match="expected a series that is tilted about y .* rlnTomoXTilt from -40° to 40°"
    ):
        read_relion(_write(tmp_path / "a.star", text))


def test_picks_of_another_tomogram(tmp_path: Path) -> None:
    """A STAR file that names another tomogram only is refused, unless the name is given; additions may differ."""
    write_mrc(tmp_path / "TS_2.mrc", torch.zeros(8, 16, 16), voxel_size=10.0)
    write_mrc(tmp_path / "TS_1_10.00Apx.mrc", torch.zeros(8, 16, 16), voxel_size=10.0)
    head = "data_\n\nloop_\n_rlnTomoName #1\n_rlnCoordinateX #2\n_rlnCoordinateY #3\n_rlnCoordinateZ #4\n"
    picks = _write(tmp_path / "p.star", head + "TS_1 3 2 1\n")
    settings: dict[str, Any] = {"picks": picks, "class_names": {1: "particle"}}
    with pytest.raises(
        FileFormatError, match="p.star: expected particles of tomogram TS_2, got those of TS_1; set `name`"
    ):
        LabelledTomogram.read(tmp_path / "TS_2.mrc", **settings)
    for tomogram, name in (("TS_2.mrc", "TS_1"), ("TS_1_10.00Apx.mrc", None)):
        found = LabelledTomogram.read(tmp_path / tomogram, name=name, **settings)
        assert found.particles.positions.tolist() == [[1, 2, 3]]
    assert has_tomogram_names(picks)
    # A list that names no tomogram belongs to the one that it is given for.
    _write(picks, STAR_3)
    assert not has_tomogram_names(picks)
    assert len(LabelledTomogram.read(tmp_path / "TS_2.mrc", **settings).particles) == 1
    settings["picks"] = _write(tmp_path / "p.csv", "class,x,y,z\n")
    with pytest.warns(
        UserWarning, match="p.csv: expected particles of .*, got none: a training takes all of it for background; give"
    ):
        LabelledTomogram.read(tmp_path / "TS_2.mrc", **settings)


# --- two files of one series ------------------------------------------------------------------------------------------


def _angles(*angles: float, **fields: Any) -> TiltMetadata:
    return TiltMetadata(sections=np.arange(len(angles)), tilt_angles=np.array(angles, float), **fields)


def test_tilts_are_matched_by_what_they_say() -> None:
    """By section where angles agree, also levelled by one offset; else by angle, also of more tilts; else refused."""
    mine = _angles(-6, -3, 0, 3, source="a.tlt")
    dose = np.array([9.0, 6.0, 0.0, 3.0])
    assert mine.filled_from(_angles(-4, -1, 2, 5, exposure=dose)).exposure.tolist() == dose.tolist()
    assert mine.filled_from(_angles(0, 3, -3, -6, exposure=np.arange(4.0))).exposure.tolist() == [3, 2, 0, 1]
    more = _angles(0, 3, -3, 6, -6, exposure=np.arange(5.0))
    assert mine.filled_from(more).exposure.tolist() == [4, 2, 0, 1]
    for other, message in (
        (
            _angles(0, 10, 20, 30, source="b.mdoc"),
            "b.mdoc: expected the tilts of a.tlt, whose angles are -6, .* got others: 0",
        ),
        (
            _angles(6, 3, 0, -3, source="b.mdoc"),
            "b.mdoc: expected the tilt angles of a.tlt, got those of the opposite sign",
        ),
        (_angles(-6, -3, 0, source="b.mdoc"), "b.mdoc: expected as many tilts as a.tlt, 4, got 3"),
        (_angles(-6, -3, 0, 3.4, 30, source="b.mdoc"), None),
        (_angles(-6, -3, 0, 6, 9, source="b.mdoc"), "b.mdoc: expected the tilts of a.tlt"),
    ):
        if message is None:
            assert len(mine.filled_from(other)) == 4
            continue
        with pytest.raises(FileFormatError, match=message):
            mine.filled_from(other)


def test_defocus_of_other_views(tmp_path: Path) -> None:
    """A .defocus file tells the angles of its views: those of another order are refused."""
    path = _write(tmp_path / "a.defocus", "1 1 -30 -30 3000 2\n2 2 0 0 3100\n3 3 30 30 3200\n")
    np.testing.assert_allclose(read_defocus(path, tilt_angles=[-28, 2, 32]).defocus_um, [3, 3.1, 3.2])
    with pytest.raises(FileFormatError, match="a.defocus: expected the angles of its views, got .* order of the stack"):
        read_defocus(path, tilt_angles=[0, 30, -30])


# --- what cannot be ---------------------------------------------------------------------------------------------------

POLNET = "Density\tMicrographs\tPolyData\tTomo3D\tType\tLabel\tCode\tPolymer\tX\tY\tZ\tQ1\tQ2\tQ3\tQ4\n"
IMPOSSIBLE: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "tlt": ("a.tlt", "0\n1567301525373690323140608.00\n", read_tlt),
    "txt": ("a.txt", "0 1\n200 2\n", read_tilt_angles),
    "aln": ("a.aln", "# RawSize = 12 8 2\n0 1 1 0 0 1 1 1 0 1e24\n1 1 1 0 0 1 1 1 0 1e24\n", read_aln),
    "aln, shift": ("a.aln", "# RawSize = 12 8 1\n0 1 1 1e30 0 1 1 1 0 0\n", read_aln),
    "aln, RawSize": ("a.aln", "# RawSize = 12 8 1e12\n0 1 1 0 0 1 1 1 0 0\n", read_aln),
    "aln, many": ("a.aln", "# RawSize = 12 8 900000000\n0 1 1 0 0 1 1 1 0 0\n", read_aln),
    "aln, section": ("a.aln", "# RawSize = 12 8 1\n1e30 1 1 0 0 1 1 1 0 0\n", read_aln),
    "aln, cut": ("a.aln", "# RawSize = 12 8 3\n0 1 1 0 0 1 1 1 0 -3\n1 1 1 0 0 1 1 1 0 0\n", read_aln),
    "mdoc": ("a.mdoc", "[ZValue = 0]\nTiltAngle = 999\n", read_serialem),
    "mdoc, exposure": ("a.mdoc", "[ZValue = 0]\nTiltAngle = 9\nPriorRecordDose = 1e9\n", read_serialem),
    "mdoc, section": ("a.mdoc", f"[ZValue = {'9' * 400}]\nTiltAngle = 9\n", read_serialem),
    "mdoc, again": ("a.mdoc", "[ZValue = 0]\nTiltAngle = 9\n[ZValue = 0]\nTiltAngle = 8\n", read_serialem),
    "mdoc, size": ("a.mdoc", "ImageSize = 3\n[ZValue = 0]\nTiltAngle = 9\n", read_serialem),
    "mdoc, frames": ("a.mdoc", "[FrameSet = 0]\nTiltAngle = 9\n", read_serialem),
    "mdoc, montage": ("a.mdoc", "[ZValue = 0]\nTiltAngle = 9\n[MontSection = 0]\nTiltAngle = 9\n", read_serialem),
    "xf": ("a.xf", "1 0 0 1 1e30 0\n", read_xf),
    "xml": ("a.xml", "<TiltSeries><Angles>1e24</Angles></TiltSeries>", read_warp_xml),
    "xml, dose": ("a.xml", "<TiltSeries><Angles>1\n2</Angles><Dose>0\n1e9</Dose></TiltSeries>", read_warp_xml),
    "xml, depth": (
        "a.xml",
        "<TiltSeries><Angles>1</Angles><GridCTF Depth='2000000000'><Node Z='0' Value='1'/></GridCTF></TiltSeries>",
        read_warp_xml,
    ),
    "relion": ("a.star", "data_\n\nloop_\n_rlnTomoYTilt #1\n1e24\n", read_relion),
    "star": ("a.star", STAR_3.replace("3 2 1", "1e9 2 1"), read_particles_star),
    "star, digits": ("a.star", STAR_3.replace("3 2 1", f"{'9' * 400} 2 1"), read_particles_star),
    "star, angle": (
        "a.star",
        STAR_3.replace("3 2 1", "_rlnAngleRot\n_rlnAngleTilt\n_rlnAnglePsi\n3 2 1 1e24 0 0"),
        read_particles_star,
    ),
    "csv": ("a.csv", "class,x,y,z\na,1e9,2,3\n", read_particles_csv),
    "csv, angle": ("a.csv", "class,x,y,z,rot,tilt,psi\na,1,2,3,1e24,0,0\n", read_particles_csv),
    "csv, columns": ("a.csv", "class,x,y,z,x\na,1,2,3,1\n", read_particles_csv),
    "shrec": ("a.txt", "a 1e9 2 3\n", read_particle_locations),
    "shrec, angle": ("a.txt", "a 1 2 3 1e24 0 0\n", read_particle_locations),
    "classes": ("a.txt", f"{'9' * 400} a\n", read_class_conversion_table),
    "deepfinder": ("a.xml", XML.replace("'3'", "'1e9'"), read_object_list),
    "deepfinder, class": ("a.xml", XML.replace("'1' x", "'1e300' x"), read_object_list),
    "polnet": (
        "a.csv",
        POLNET + "d\tm\tp\tt\tcprotein\t1\ta\t0\t1e30\t1\t1\t1\t0\t0\t0\n",
        lambda p: read_motif_list(p, voxel_size=10.0),
    ),
    "pdb": (
        "a.cif",
        "data_a\nloop_\n_atom_site.type_symbol\n"
        + "".join(f"_atom_site.Cartn_{axis}\n" for axis in "xyz")
        + "C 1e20 0 0\n",
        read_structure,
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be(tmp_path: Path, case: str) -> None:
    """Angles beyond 180°, places beyond 10⁷, exposures beyond 10⁵ and the like are damage, told with the name."""
    name, text, read = IMPOSSIBLE[case]
    path = _write(tmp_path / name, text)
    with pytest.raises(FileFormatError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "expected" in message
    assert len(message) < len(str(path)) + 500


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_zeros_behind_a_volume(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Of what a small header has behind it no more is unpacked than it says."""
    write_mrc(tmp_path / "a.mrc", torch.ones(2, 3, 4), voxel_size=10.0)
    path = tmp_path / "b.mrc.gz"
    path.write_bytes(pack((tmp_path / "a.mrc").read_bytes() + bytes(2**26)))
    tracemalloc.start()
    with pytest.warns(UserWarning, match="b.mrc.gz: longer than its header says"):
        data, _ = read_mrc(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert data.tolist() == torch.ones(2, 3, 4).tolist()


@pytest.mark.parametrize("shape", [(2**20, 2**20, 1), (2**31 - 1, 2**31 - 1, 2**31 - 1), (40_000, 40_000, 100)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("map_id", [b"MAP ", b"\0\0\0\0"])
def test_headers_of_absurd_sizes(tmp_path: Path, shape: tuple[int, int, int], packed: bool, map_id: bytes) -> None:
    """A header that asks for more than the file can hold is refused before memory is asked for."""
    write_mrc(tmp_path / "a.mrc", torch.ones(2, 3, 4), voxel_size=10.0)
    content = bytearray((tmp_path / "a.mrc").read_bytes())
    content[:12] = np.array(shape, "<i4").tobytes()
    content[208:212] = map_id
    path = tmp_path / "b.mrc"
    path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))
    tracemalloc.start()
    with pytest.raises(FileFormatError, match="b.mrc: expected"):
        read_mrc(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(("offset", "value"), [(0, 0), (4, -1), (8, 0), (92, -5), (92, 2**31 - 1), (12, 101), (12, -7)])
def test_headers_that_cannot_be(tmp_path: Path, offset: int, value: int) -> None:
    """Sides of 0, negative sides and extended headers, unknown modes: an error with the file's name."""
    write_mrc(tmp_path / "a.mrc", torch.ones(2, 3, 4), voxel_size=10.0)
    content = bytearray((tmp_path / "a.mrc").read_bytes())
    content[offset : offset + 4] = np.array(value, "<i4").tobytes()
    (tmp_path / "a.mrc").write_bytes(bytes(content))
    for stack in (False, True):
        with pytest.raises(FileFormatError, match="a.mrc: expected"):
            read_mrc(tmp_path / "a.mrc", stack=stack)


def test_structure_of_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A structure is not unpacked to what no text shrinks from."""
    monkeypatch.setattr("faket_aug.formats.structures._LEAST_UNPACKED", 2**16)
    (tmp_path / "a.pdb.gz").write_bytes(gzip.compress(bytes(2**20)))
    with pytest.raises(FileFormatError, match="a.pdb.gz: expected at most .* unpack it first"):
        read_structure(tmp_path / "a.pdb.gz")


def test_stack_of_one_tilt(tmp_path: Path) -> None:
    """One image is a file of two axes, and a stack of one tilt; it is no volume."""
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(np.arange(12, dtype=np.float32).reshape(3, 4))
        file.voxel_size = 2.0
    (tmp_path / "a.tlt").write_text("0\n")
    assert TiltSeries.read(tmp_path / "a.mrc").tilts.tolist() == [np.arange(12.0).reshape(3, 4).tolist()]
    assert read_mrc(tmp_path / "a.mrc", stack=True, rows=slice(0, 1))[0].shape == (1, 3, 4)
    assert read_mrc_shape(tmp_path / "a.mrc") == (1, 3, 4)
    with pytest.raises(FileFormatError, match="expected an MRC file of three axes"):
        read_mrc(tmp_path / "a.mrc")


# --- structures -------------------------------------------------------------------------------------------------------

ATOM = "ATOM  {serial:5d}  {name:<3s} ALA A{residue:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00"


def test_structure_before_1996(tmp_path: Path) -> None:
    """Columns 73 to 80 held the entry's name and the line's number: elements are told by the atoms' names."""
    names = ["N", "CA", "C", "O", "CB"]
    lines = [ATOM.format(serial=i, name=n, residue=1, x=i, y=0, z=0) for i, n in enumerate(names, start=1)]
    text = "".join(f"{line:<72s}1ABC{number:4d}\n" for number, line in enumerate(lines, start=88))
    found = read_structure(_write(tmp_path / "a.pdb", text + "END\n"), hydrogens=False)
    assert found.elements.tolist() == ["N", "C", "C", "O", "C"]
    assert found.positions[:, 2].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("atoms", "warns"), [(["CA"], True), (["N", "CA"], True), (["N", "CA", "C", "O", "CB"], False)]
)
def test_traces(tmp_path: Path, atoms: list[str], warns: bool, recwarn: pytest.WarningsRecorder) -> None:
    """A model of Cα atoms holds a sixth of its residues' mass: told, with the share."""
    rows = [(i, name, i + j / 5) for i in range(30) for j, name in enumerate(atoms)]
    text = "".join(
        f"{ATOM.format(serial=n, name=name, residue=i + 1, x=3 * x, y=0, z=0)}          {name[0]:>2s}\n"
        for n, (i, name, x) in enumerate(rows, start=1)
    )
    read_structure(_write(tmp_path / "a.pdb", text + "END\n"))
    messages = [str(one.message) for one in recwarn]
    assert bool(messages) is warns
    assert all("a.pdb: expected all heavy atoms of its 30 residues, got" in message for message in messages)


# --- copick -----------------------------------------------------------------------------------------------------------

OBJECTS = [{"name": "ribosome", "is_particle": True, "label": 1, "color": [0, 92, 49, 128], "radius": 150}]
IDENTITY = np.eye(4).tolist()
TURN = [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def _project(folder: Path, root: Path | None = None, **config: Any) -> Path:
    """A project as a person makes it: one run with a tomogram, labels, and picks of Alice."""
    import zarr

    root = root or folder
    given = {"name": "p", "config_type": "filesystem", "pickable_objects": OBJECTS, "overlay_root": f"local://{root}"}
    _write(folder / "copick_config.json", json.dumps(given | config))
    run = root / "ExperimentRuns" / "TS_1"
    labels = np.zeros((4, 6, 8), np.uint16)
    labels[1, 2, 3] = 1
    for path, values in (
        (run / "VoxelSpacing10.000" / "wbp.zarr", np.ones((4, 6, 8), np.float32)),
        (run / "Segmentations" / "10.000_alice_0_labels-multilabel.zarr", labels),
    ):
        group = zarr.open_group(str(path), mode="w")
        group.create_dataset("0", data=values)
        steps = [{"type": "scale", "scale": [10.0] * 3}]
        group.attrs["multiscales"] = [{"datasets": [{"path": "0", "coordinateTransformations": steps}]}]
    _picks(run / "Picks" / "alice_0_ribosome.json", [IDENTITY, TURN])
    return folder


def _picks(path: Path, matrices: list[Any], **content: Any) -> Path:
    points = [
        {"location": {"x": 10.0 * i, "y": 20.0, "z": 10.0}, "transformation_": matrix, "instance_id": 0}
        for i, matrix in enumerate(matrices)
    ]
    given = {"pickable_object_name": "ribosome", "user_id": "alice", "session_id": "0", "unit": "angstrom"}
    return _write(path, json.dumps(given | {"points": points} | content))


@needs_copick
def test_identity_is_no_orientation(tmp_path: Path) -> None:
    """copick writes the identity where nobody turned anything: no orientation; a rotation is one."""
    found = read_copick_picks(_project(tmp_path), run="TS_1", voxel_size=10.0)
    assert found.positions.tolist() == [[1, 2, 0], [1, 2, 1]]
    assert found.oriented.tolist() == [False, True]
    assert found.orientations[1].tolist() == [[0, -1, 0], [1, 0, 0], [0, 0, 1]]


@needs_copick
def test_unsigned_labels(tmp_path: Path) -> None:
    """Segmentations of 16 bits without a sign are labels."""
    labels, size = read_copick_segmentation(_project(tmp_path), run="TS_1")
    assert (labels.sum(), labels.dtype, size) == (1, torch.int32, 10.0)
    specimen = CopickSpecimens(tmp_path)[0]
    assert specimen.labels.unique().tolist() == [0, 1]
    assert len(specimen.particles) == 2


@needs_copick
@pytest.mark.parametrize("whose", [{"user_id": "bob"}, {"session_id": "7"}, {"user_id": "alice", "session_id": "7"}])
def test_users_that_are_not_there(tmp_path: Path, whose: dict[str, str]) -> None:
    """Picks of a user or session that does not exist are an error that lists those that do."""
    _project(tmp_path)
    with pytest.raises(FileFormatError, match=r"run TS_1: expected picks of `.*, got those of .*alice/0"):
        read_copick_picks(tmp_path, run="TS_1", voxel_size=10.0, **whose)
    assert read_copick_users(tmp_path, run="TS_1") == [("alice", "0")]
    with pytest.raises(FileFormatError, match="expected one multilabel segmentation, got none"):
        CopickSpecimens(tmp_path, **whose)[0]
    with pytest.raises(FileFormatError, match="expected picks of `"):
        LabelledTomogram.read(tmp_path, **whose)


@needs_copick
def test_picks_named_by_object_alone(tmp_path: Path) -> None:
    """The CZII challenge's picks are named after the object; who picked stands in the file."""
    _project(tmp_path)
    folder = tmp_path / "ExperimentRuns" / "TS_1" / "Picks"
    (folder / "alice_0_ribosome.json").rename(folder / "ribosome.json")
    assert read_copick_users(tmp_path, run="TS_1") == [("alice", "0")]
    assert len(read_copick_picks(tmp_path, run="TS_1", voxel_size=10.0, user_id="alice")) == 2


@needs_copick
def test_roots_of_another_machine(tmp_path: Path) -> None:
    """Overlay and static root are found beside the configuration; a project without runs says where it looked."""
    _project(tmp_path, tmp_path / "overlay", overlay_root="local:///kaggle/input/overlay")
    assert read_copick_runs(tmp_path) == ["TS_1"]
    assert len(read_specimens(tmp_path)) == 1
    _project(tmp_path / "b", tmp_path / "b" / "static", overlay_root="/gone/overlay", static_root="/gone/static/")
    assert len(read_copick_picks(tmp_path / "b", run="TS_1", voxel_size=10.0)) == 2
    _write(tmp_path / "c" / "copick_config.json", json.dumps({"pickable_objects": OBJECTS, "overlay_root": "/gone/x"}))
    with pytest.raises(
        FileNotFoundError, match=r"expected the project's runs, .*overlay_root /gone/x.*correct overlay"
    ):
        read_specimens(tmp_path / "c")
    for root in ("http://127.0.0.1:9/x", "s3://bucket/x"):
        config = {"pickable_objects": OBJECTS, "overlay_root": root}
        _write(tmp_path / "d" / "copick_config.json", json.dumps(config))
        with pytest.raises(FileFormatError, match="expected a project on disk, got overlay_root .*download it first"):
            read_copick_runs(tmp_path / "d")


@needs_copick
def test_ome_zarr_as_others_write_it(tmp_path: Path) -> None:
    """Without scales the voxel size is the folder's; format 3, other axes, absurd shapes and damage name the file."""
    _project(tmp_path)
    path = tmp_path / "ExperimentRuns" / "TS_1" / "VoxelSpacing10.000" / "wbp.zarr"
    for attributes in ({}, {"multiscales": []}, {"multiscales": [{"datasets": [{"path": "0"}]}]}):
        (path / ".zattrs").write_text(json.dumps(attributes))
        assert read_copick_tomogram(tmp_path, run="TS_1")[1] == 10.0
    array = json.loads((path / "0" / ".zarray").read_text())
    for changes, message in (
        ({"shape": [10**6, 10**6, 10**6]}, "expected a volume that its .* bytes can hold"),
        ({"shape": [6, 8], "chunks": [6, 8]}, r"expected a volume of three axes \(z, y, x\), got shape \(6, 8\)"),
        ({"compressor": {"id": "klingon"}}, "expected a volume in OME-Zarr, got one that cannot be read"),
        ({"dtype": "<c8"}, "expected"),
    ):
        (path / "0" / ".zarray").write_text(json.dumps(array | changes))
        with pytest.raises(FileFormatError, match=f"wbp.zarr: {message}"):
            read_copick_tomogram(tmp_path, run="TS_1")
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(FileFormatError, match=r"wbp.zarr: expected OME-Zarr"):
        read_copick_tomogram(tmp_path, run="TS_1")


@needs_copick
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"points": [{"location": {"x": 1e30, "y": 0, "z": 0}}]}, "point 1: expected numbers as location"),
        ({"points": [{"location": {"x": 1, "y": 0}}]}, "point 1: expected numbers as location"),
        ({"points": [7]}, "point 1: expected a `location`"),
        ({"points": [{"location": {"x": 1, "y": 0, "z": 0}, "transformation_": [[1]]}]}, "point 1: expected numbers"),
        ({"points": 3}, "expected copick's picks with a list of `points`"),
        ("[" * 100_000, "expected copick's picks in JSON, got what cannot be read"),
        ("{", "expected copick's picks in JSON, got what cannot be read"),
    ],
)
def test_damaged_picks(tmp_path: Path, content: Any, message: str) -> None:
    """What is no file of picks is told with its name."""
    _project(tmp_path)
    path = tmp_path / "ExperimentRuns" / "TS_1" / "Picks" / "alice_0_ribosome.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(FileFormatError, match=f"alice_0_ribosome.json[:,] {message}"):
        read_copick_picks(tmp_path, run="TS_1", voxel_size=10.0)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([{"name": "a", "label": "one"}], "expected .* whole numbers of 1 or more as `label`, got 'one' for a"),
        ([{"name": "a", "label": 0}], "whole numbers of 1 or more as `label`, got 0 for a"),
        ([{"label": 1}], "that have a `name`"),
        ([7], "that have a `name`"),
        (7, "a list, got 7"),
    ],
)
def test_damaged_configurations(tmp_path: Path, objects: Any, message: str) -> None:
    """What is no configuration is told with its name; encodings do not matter."""
    path = _write(tmp_path / "copick_config.json", json.dumps({"pickable_objects": objects}))
    with pytest.raises(FileFormatError, match=f"copick_config.json: .*{message}"):
        read_copick_classes(path)
    _write(path, json.dumps({"pickable_objects": OBJECTS}), "utf-16")
    assert read_copick_classes(tmp_path) == {1: "ribosome"}


@needs_copick
def test_volumes_that_are_misnamed(tmp_path: Path) -> None:
    """Folders that are named otherwise than copick names them say how it does."""
    run = _project(tmp_path) / "ExperimentRuns" / "TS_1"
    (run / "VoxelSpacing10.000").rename(run / "VoxelSpacingTen")
    (run / "Segmentations" / "10.000_alice_0_labels-multilabel.zarr").rename(
        run / "Segmentations" / "a-multilabel.zarr"
    )
    with pytest.raises(FileFormatError, match="VoxelSpacingTen: expected a folder named VoxelSpacing<Å>"):
        read_copick_tomogram(tmp_path, run="TS_1")
    with pytest.raises(FileFormatError, match="a-multilabel.zarr: expected a segmentation named <voxel size>_<user>_"):
        read_copick_segmentation(tmp_path, run="TS_1")
