"""RELION's STAR files of particles: versions, units, centres, two orientations, shifts, several tomograms, bad ones."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from faket_aug import FileFormatError
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.star import VERSIONS, read_particles_star, write_particles_star, write_warp_star

SHAPE = (30, 41, 56)
CLASS_NUMBERS = {"ribosome": 3, "1e5": 1, "gold": 7}


def _particles(count: int = 3, seed: int = 0, names: tuple[str, ...] = ("ribosome", "1e5", "gold")) -> ParticleList:
    random = np.random.default_rng(seed)
    turns = Rotation.random(count, random_state=random).as_matrix()
    return ParticleList(
        tuple(names[i % len(names)] for i in range(count)), random.uniform(0, 29, (count, 3)).round(3), turns
    )


def _write(path: Path, particles: Any = None, **settings: Any) -> Path:
    given: dict[str, Any] = {"voxel_size": 10.0, "shape": SHAPE, "class_numbers": CLASS_NUMBERS}
    write_particles_star(path, particles or {"TS_1": _particles()}, **(given | settings))
    return path


def _star(path: Path, columns: dict[str, list[Any]], *, block: str = "particles", before: str = "") -> Path:
    """Write a STAR file by hand."""
    head = "\n".join(f"_{name} #{i}" for i, name in enumerate(columns, start=1))
    rows = "\n".join(" ".join(str(value) for value in row) for row in zip(*columns.values(), strict=True))
    path.write_text(f"{before}\n# version 30001\n\ndata_{block}\n\nloop_\n{head}\n{rows}\n\n")
    return path


def _coordinates(x: float = 20, y: float = 10, z: float = 5) -> dict[str, list[Any]]:
    return {"rlnCoordinateX": [x], "rlnCoordinateY": [y], "rlnCoordinateZ": [z]}


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_columns(tmp_path: Path, version: int) -> None:
    """Each version has its own names of coordinates and pixel size; one table comes first, as RELION's import needs."""
    path = _write(tmp_path / "a.star", version=version)
    blocks = starfile.read(path, always_dict=True)
    assert list(blocks) == ["particles"]
    table = blocks["particles"]
    places = "rlnCenteredCoordinate{}Angst" if version == 5 else "rlnCoordinate{}"
    expected = [*(places.format(axis) for axis in "XYZ"), "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
    expected = ["rlnTomoName", *expected, "rlnClassNumber"]
    expected = (
        ["rlnMicrographName", *expected, "rlnPixelSize"] if version == 3 else [*expected, "rlnTomoTiltSeriesPixelSize"]
    )
    assert list(table.columns) == [*expected, "faketClassName"]
    assert table["rlnClassNumber"].tolist() == [3, 1, 7]


def test_units_and_origin(tmp_path: Path) -> None:
    """Versions 3 and 4 count voxels from 0, (x, y, z); version 5 Å from size / 2, also where the size is odd."""
    one = ParticleList(("gold",), np.array([[1.0, 2.0, 4.5]]), np.eye(3)[None])
    for version in (3, 4):
        table = starfile.read(_write(tmp_path / "a.star", {"t": one}, version=version))
        assert table.loc[0, ["rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ"]].tolist() == [4.5, 2.0, 1.0]
    table = starfile.read(_write(tmp_path / "a.star", {"t": one}, version=5, voxel_size=2.5))
    names = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]
    assert table.loc[0, names].tolist() == [(4.5 - 28) * 2.5, (2 - 20.5) * 2.5, (1 - 15) * 2.5]
    assert table.loc[0, ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].tolist() == [0, 0, 0]


def test_particles_without_orientation(tmp_path: Path) -> None:
    """Angles are numbers for RELION's sake; a column says which of them count, where not all do."""
    turns = np.stack([np.full((3, 3), np.nan), Rotation.from_euler("z", 30, degrees=True).as_matrix()])
    some = ParticleList(("gold", "ribosome"), np.ones((2, 3)), turns)
    path = _write(tmp_path / "a.star", {"t": some})
    table = starfile.read(path)
    assert table["faketOriented"].tolist() == [0, 1]
    assert np.isfinite(table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()).all()
    assert read_particles_star(path, shape=SHAPE)["t"].oriented.tolist() == [False, True]


@settings(max_examples=20, deadline=None)
@given(
    version=st.sampled_from(VERSIONS),
    voxel_size=st.floats(0.5, 20),
    count=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, version: int, voxel_size: float, count: int, seed: int
) -> None:
    """Whatever the version and the voxel size, particles of several tomograms come back as they were."""
    path = tmp_path_factory.mktemp("star") / "a.star"
    lists = {"001": _particles(count, seed), "TS_2": _particles(2, seed + 1)}
    _write(path, lists, version=version, voxel_size=voxel_size)
    found = read_particles_star(path, shape=SHAPE)
    assert list(found) == ["001", "TS_2"]
    for name, one in lists.items():
        assert found[name].names == one.names
        np.testing.assert_allclose(found[name].positions, one.positions, atol=5e-6)
        np.testing.assert_allclose(found[name].orientations, one.orientations, atol=1e-7)


def test_shapes_by_tomogram(tmp_path: Path) -> None:
    """Tomograms of different shapes in one file have a centre each."""
    lists = {"a": _particles(2), "b": _particles(3)}
    shapes = {"a": (10, 20, 30), "b": (11, 13, 17)}
    path = _write(tmp_path / "p.star", lists, shape=shapes)
    found = read_particles_star(path, shape=shapes)
    for name, one in lists.items():
        np.testing.assert_allclose(found[name].positions, one.positions, atol=1e-6)


def test_no_particles(tmp_path: Path) -> None:
    """A tomogram without particles writes a table without rows, and reads as none."""
    nothing = ParticleList((), np.zeros((0, 3)), np.zeros((0, 3, 3)))
    assert read_particles_star(_write(tmp_path / "p.star", {"a": nothing}), shape=SHAPE) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "expected `version` to be one of 3, 4, 5, got 2"),
        ({"voxel_size": 0.0}, "expected `voxel_size` to be more than 0, got 0"),
        ({"shape": None}, "expected the shape .* of tomogram TS_1 for version 5.*set `shape`"),
        ({"shape": {"other": SHAPE}}, "expected the shape .* of tomogram TS_1"),
        ({"class_numbers": {"gold": 1}}, r"expected class names of `class_numbers` \(gold\), got 1e5, ribosome"),
        (
            {"particles": {"my tomogram": _particles()}},
            "expected names of tomograms without spaces.* got 'my tomogram'",
        ),
        (
            {"particles": {"t": ParticleList(("a b",), np.zeros((1, 3)), np.zeros((1, 3, 3)))}},
            "expected class names without spaces, quotes and #, got 'a b'; rename it",
        ),
        (
            {"particles": {"t": ParticleList(("gold",), np.full((1, 3), np.nan), np.zeros((1, 3, 3)))}},
            r"expected finite places, got \[nan, nan, nan\] for particle 1",
        ),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """What cannot be written is refused, and no file is left."""
    with pytest.raises(ValueError, match=message):
        _write(tmp_path / "a.star", **changes)
    assert list(tmp_path.iterdir()) == []


# --- reading what others write ----------------------------------------------------------------------------------------


def test_two_orientations_and_shifts(tmp_path: Path) -> None:
    """The whole orientation is the subtomogram's times the particle's; the shift, in Å, is turned by the former."""
    columns = {
        "rlnTomoName": ["t"],
        **_coordinates(),
        "rlnTomoTiltSeriesPixelSize": [2.0],
        **{"rlnTomoSubtomogramRot": [0], "rlnTomoSubtomogramTilt": [90], "rlnTomoSubtomogramPsi": [0]},
        **{"rlnAngleRot": [90], "rlnAngleTilt": [0], "rlnAnglePsi": [0]},
        **{"rlnOriginXAngst": [0], "rlnOriginYAngst": [0], "rlnOriginZAngst": [6]},
    }
    found = read_particles_star(_star(tmp_path / "a.star", columns))["t"]
    # The particle's own quarter turn takes x to -y; the subtomogram's takes z to -x and leaves y.
    np.testing.assert_allclose(found.orientations[0] @ [1, 0, 0], [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(found.orientations[0] @ [0, 0, 1], [-1, 0, 0], atol=1e-12)
    # 6 Å along the subtomogram's z, which is -x, are taken off: x grows by 3 voxels of 2 Å.
    np.testing.assert_allclose(found.positions, [[5, 10, 23]], atol=1e-12)
    only = {name: value for name, value in columns.items() if not name.startswith("rlnAngle")}
    inner = read_particles_star(_star(tmp_path / "a.star", only))["t"]
    np.testing.assert_allclose(inner.orientations[0] @ [1, 0, 0], [0, 0, 1], atol=1e-12)


def test_pixel_shifts_of_relion_3(tmp_path: Path) -> None:
    """RELION 3.0: shifts in pixels, the pixel size by detector and magnification, Warp's names of tilt-series."""
    columns = {
        "rlnMicrographName": ["TS_01.tomostar"],
        **_coordinates(),
        **{"rlnOriginX": [1.5], "rlnOriginY": [0.0], "rlnOriginZ": [-1]},
        **{"rlnDetectorPixelSize": [5.0], "rlnMagnification": [10000.0]},
    }
    path = _star(tmp_path / "a.star", columns, block="")
    found = read_particles_star(path)["TS_01"]
    assert found.positions.tolist() == [[6, 10, 18.5]]
    assert found.names == ("particle",)
    assert np.isnan(found.orientations).all()
    # 5 µm / 10000 are 5 Å: in voxels of 10 Å the particle lies at half the index.
    assert read_particles_star(path, voxel_size=10.0)["TS_01"].positions.tolist() == [[3, 5, 9.25]]


def test_voxel_size_scales_pixels(tmp_path: Path) -> None:
    """Voxels of another size are reached by the ratio; without a size in the file coordinates are taken as they are."""
    path = _write(tmp_path / "a.star", version=4, voxel_size=4.0)
    own = read_particles_star(path)["TS_1"].positions
    np.testing.assert_allclose(read_particles_star(path, voxel_size=10.0)["TS_1"].positions, own * 0.4)
    bare = _star(tmp_path / "b.star", {"rlnTomoName": ["t"], **_coordinates()})
    assert read_particles_star(bare, voxel_size=10.0)["t"].positions.tolist() == [[5, 10, 20]]


def test_pixel_size_of_the_optics_group(tmp_path: Path) -> None:
    """Where the particles hold no pixel size, their optics group does."""
    optics = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnTomoTiltSeriesPixelSize #2\n1 3.0\n2 2.0\n"
    columns = {
        "rlnTomoName": ["a", "b"],
        **{f"rlnCoordinate{axis}": [8, 8] for axis in "XYZ"},
        "rlnOpticsGroup": [2, 1],
    }
    path = _star(tmp_path / "a.star", columns, before=optics)
    found = read_particles_star(path, voxel_size=4.0)
    assert found["a"].positions.tolist() == [[4, 4, 4]]
    assert found["b"].positions.tolist() == [[6, 6, 6]]


def test_names_that_look_like_numbers(tmp_path: Path) -> None:
    """Names of tomograms and classes stay what they are; a file without them is named by its stem."""
    columns = {"rlnTomoName": ["007", "007"], **{f"rlnCoordinate{axis}": [1, 2] for axis in "XYZ"}}
    found = read_particles_star(_star(tmp_path / "a.star", columns | {"faketClassName": ["1e5", "nan1"]}))
    assert list(found) == ["007"]
    assert found["007"].names == ("1e5", "nan1")
    assert list(read_particles_star(_star(tmp_path / "stem.star", _coordinates()))) == ["stem"]


def test_class_numbers(tmp_path: Path) -> None:
    """Class numbers name themselves, or are looked up; one outside the table is an error."""
    path = _star(tmp_path / "a.star", {**_coordinates(), "rlnClassNumber": [4]})
    assert read_particles_star(path)["a"].names == ("4",)
    assert read_particles_star(path, class_names={4: "gold"})["a"].names == ("gold",)
    with pytest.raises(FileFormatError, match=r"a.star: expected rlnClassNumber of the table \(1, 2\), got \[4\]"):
        read_particles_star(path, class_names={1: "x", 2: "y"})


# --- real files -------------------------------------------------------------------------------------------------------


def test_relion_5(reference: Path) -> None:
    """A real extraction of RELION 5: centred Å of 1.35 Å pixels in a tomogram of 2000 x 4000 x 4000."""
    path = reference / "data" / "real" / "metadata" / "relion5" / "5_extract_particles_head60.star"
    found = read_particles_star(path, shape=(2000, 4000, 4000))
    assert list(found) == ["TS_01"]
    one = found["TS_01"]
    assert len(one) == len(path.read_text().split("data_particles")[1].split("#26")[1].split("TS_01/")) // 2
    np.testing.assert_allclose(
        one.positions[0], [1135.301351 / 1.35 + 1000, -950.69325 / 1.35 + 2000, 1776.506664 / 1.35 + 2000]
    )
    inner = Rotation.from_euler("ZYZ", [167.689240, 98.103985, -164.55358], degrees=True).inv()
    own = Rotation.from_euler("ZYZ", [-1.00085, 97.383685, 6.558202], degrees=True).inv()
    np.testing.assert_allclose(one.orientations[0], (inner * own).as_matrix(), atol=1e-9)
    assert one.names[0] == "5"
    # In voxels of 10 Å, whose tomogram is 270 x 540 x 540 of them.
    coarse = read_particles_star(path, voxel_size=10.0, shape=(270, 540, 540))["TS_01"]
    np.testing.assert_allclose(coarse.positions, one.positions * 0.135, atol=1e-6)
    with pytest.raises(ValueError, match="expected the shape of tomogram TS_01, since .*; set `shape`"):
        read_particles_star(path)


def test_optimisation_set(reference: Path, tmp_path: Path) -> None:
    """An optimisation set leads to particles and tomograms, named from the project's folder, and to their sizes."""
    folder = reference / "data" / "real" / "metadata" / "relion5"
    for name, job in (
        ("5_extract_optimisation_set.star", "Extract/job020/optimisation_set.star"),
        ("5_extract_particles_head60.star", "Extract/job020/particles.star"),
        ("4_ctfrefine_tomograms.star", "Denoise/job008/tomograms.star"),
    ):
        (tmp_path / job).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, tmp_path / job)
    found = read_particles_star(tmp_path / "Extract" / "job020" / "optimisation_set.star")["TS_01"]
    expected = read_particles_star(folder / "5_extract_particles_head60.star", shape=(2000, 4000, 4000))["TS_01"]
    np.testing.assert_allclose(found.positions, expected.positions)
    coarse = read_particles_star(tmp_path / "Extract" / "job020" / "optimisation_set.star", voxel_size=13.5)["TS_01"]
    np.testing.assert_allclose(coarse.positions, expected.positions / 10)
    (tmp_path / "Denoise" / "job008" / "tomograms.star").unlink()
    with pytest.raises(FileNotFoundError, match=r"set.star: expected Denoise/job008/tomograms.star, which it names"):
        read_particles_star(tmp_path / "Extract" / "job020" / "optimisation_set.star")


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rlnMyX": [1], "rlnMyY": [2]}, "expected a table with rlnCoordinateX, .* got the columns rlnMyX, rlnMyY"),
        (
            {"rlnCoordinateX": [1], "rlnCoordinateY": [2]},
            "expected a table with rlnCoordinateX, .* got the columns rlnCo",
        ),
        (
            {**_coordinates(), "rlnAngleRot": [1]},
            "expected the columns rlnAngleRot, .*, rlnAngleTilt, rlnAnglePsi not found",
        ),
        (
            {**_coordinates(), "rlnClassNumber": ["x"]},
            "row 1 of the table: expected a number as rlnClassNumber, got 'x'",
        ),
        ({**_coordinates(), "rlnCoordinateX": ["nan"]}, "row 1 of the table: expected a number as rlnCoordinateX, got"),
        (
            {**_coordinates(), "rlnPixelSize": [0]},
            r"expected one positive pixel size for a tomogram's particles, got \[0",
        ),
        (
            {name: value * 2 for name, value in _coordinates().items()} | {"rlnPixelSize": [1, 2]},
            r"expected one positive pixel size for a tomogram's particles, got \[1.0, 2.0\]",
        ),
    ],
)
def test_bad_files(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    """A file that is wrong is an error with its name, the row and what was found; errors pickle."""
    path = _star(tmp_path / "bad.star", columns)
    with pytest.raises(FileFormatError, match=f"bad.star.*{message}") as caught:
        read_particles_star(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("content", ["", "just text\n", "data_particles\n\nloop_\n_a #1\n1 2 3\n1\n", "\x00\x01"])
def test_no_star_file(tmp_path: Path, content: str) -> None:
    """What is no STAR file of particles is an error with the file's name."""
    path = tmp_path / "bad.star"
    path.write_text(content)
    with pytest.raises(FileFormatError, match="bad.star(, line [15])?: expected (a STAR file|1 values, one for)"):
        read_particles_star(path)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(FileNotFoundError, match=r"expected a STAR file, found none at .*none.star"):
        read_particles_star(tmp_path / "none.star")


def test_centred_coordinates_ask(tmp_path: Path) -> None:
    """Centred coordinates ask for what the file does not hold: a voxel size, a shape."""
    columns = {f"rlnCenteredCoordinate{axis}Angst": [10.0] for axis in "XYZ"}
    path = _star(tmp_path / "a.star", columns)
    with pytest.raises(ValueError, match=r"a.star: expected the voxel size of tomogram a; set `voxel_size` in Å"):
        read_particles_star(path, shape=SHAPE)
    with pytest.raises(ValueError, match=r"a.star: expected the shape of tomogram a, .*set `shape` to \(z, y, x\)"):
        read_particles_star(path, voxel_size=5.0)
    with pytest.raises(ValueError, match="expected `voxel_size` to be more than 0, got 0"):
        read_particles_star(path, voxel_size=0.0, shape=SHAPE)
    assert read_particles_star(path, voxel_size=5.0, shape=(10, 20, 31))["a"].positions.tolist() == [[7, 12, 17.5]]


def test_shifts_ask_for_a_voxel_size(tmp_path: Path) -> None:
    """Shifts in Å need a voxel size, unless they are 0."""
    shifts = {f"rlnOrigin{axis}Angst": [0.0] for axis in "XYZ"}
    path = _star(tmp_path / "a.star", _coordinates() | shifts)
    assert read_particles_star(path)["a"].positions.tolist() == [[5, 10, 20]]
    _star(path, _coordinates() | shifts | {"rlnOriginXAngst": [4.0]})
    with pytest.raises(ValueError, match="expected a voxel size for rlnOriginXAngst, .*; set `voxel_size` in Å"):
        read_particles_star(path)
    assert read_particles_star(path, voxel_size=2.0)["a"].positions.tolist() == [[5, 10, 18]]


def _scored_list() -> ParticleList:
    positions = np.array([[10.0, 20.0, 30.0], [1.5, 2.5, 3.5]])
    return ParticleList(("a", "b"), positions, np.full((2, 3, 3), np.nan), np.array([0.75, 0.5]))


@pytest.mark.parametrize("version", [3, 4, 5])
def test_scores_and_the_pixels_of_the_tilt_series(tmp_path: Path, version: int) -> None:
    """RELION gets a figure of merit and unbinned pixels; what is read in the tomogram's voxels is what was written."""
    path = tmp_path / "picks.star"
    write_particles_star(
        path,
        {"TS_1": _scored_list()},
        voxel_size=10.0,
        shape=(40, 60, 80),
        version=version,
        class_numbers={"a": 1, "b": 2},
        pixel_size=2.5,
    )
    table = starfile.read(path)
    assert table["rlnAutopickFigureOfMerit"].tolist() == [0.75, 0.5]
    if version == 5:
        assert table["rlnCenteredCoordinateXAngst"].tolist() == [(30 - 40) * 10.0, (3.5 - 40) * 10.0]
    else:
        assert table["rlnCoordinateX"].tolist() == [120.0, 14.0]
    assert table["rlnPixelSize" if version == 3 else "rlnTomoTiltSeriesPixelSize"].tolist() == [2.5, 2.5]
    read = read_particles_star(path, voxel_size=10.0, shape=(40, 60, 80))["TS_1"]
    assert np.allclose(read.positions, _scored_list().positions)
    assert read.scores is not None
    assert read.scores.tolist() == [0.75, 0.5]


def test_warp_counts_in_angstrom(tmp_path: Path) -> None:
    """Coordinates are Å, the tomogram's name is Warp's, and both are read back."""
    path = tmp_path / "picks.star"
    write_warp_star(path, {"TS_1": _scored_list()}, voxel_size=10.0, class_numbers={"a": 1, "b": 2})
    table = starfile.read(path)
    assert table["rlnMicrographName"].tolist() == ["TS_1.tomostar"] * 2
    assert table["rlnCoordinateZ"].tolist() == [100.0, 15.0]
    read = read_particles_star(path, voxel_size=10.0)["TS_1"]
    assert np.allclose(read.positions, _scored_list().positions)


def test_scores_go_with_their_particles() -> None:
    with pytest.raises(ValueError, match="expected scores of 1 particles"):
        ParticleList(("a",), np.zeros((1, 3)), np.zeros((1, 3, 3)), np.zeros(2))
