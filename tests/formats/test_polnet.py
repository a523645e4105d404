"""PolNet's motif lists, versions 1.0 and 1.1: files, places, quaternions, traps of the labels, bad rows."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from faket_aug import FileFormatError
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.formats.polnet import find_polnet_tomograms, read_motif_list

SHAPE = (8, 10, 12)
HEADER = "type label code polymer x y z q1 q2 q3 q4".split()  # noqa: SIM905
OLD_HEADER = "Density Micrographs PolyData Tomo3D Type Label Code Polymer X Y Z Q1 Q2 Q3 Q4".split()  # noqa: SIM905
#: A quarter turn about z, (w, x, y, z): it takes x to y.
QUARTER = (np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5))


def _row(
    kind: str, label: int, code: str, place: Any = (10, 20, 30), turn: Any = QUARTER, polymer: int = 0
) -> list[Any]:
    return [kind, label, code, polymer, *place, *turn]


ROWS = [
    _row("membrane", 1, "sphere", (10, 20, 30), (0, 0, 1, 0)),
    _row("filament", 2, "actin", polymer=0),
    _row("filament", 2, "actin", polymer=0),
    _row("filament", 2, "actin", polymer=1),
    _row("cprotein", 3, "pdb_1bxn", (24.9, 55.1, 71.0)),
    _row("mbprotein", 4, "pdb_4pe5", (0, 0, 0), (1, 0, 0, 0)),
]


def _list(path: Path, rows: list[list[Any]], header: list[str] = HEADER, end: str = "\n") -> Path:
    path.write_text(end.join("\t".join(str(value) for value in row) for row in [header, *rows]) + end, newline="")
    return path


def _old(rows: list[list[Any]], density: str = "/data/out/tomos/tomo_den_0.mrc") -> list[list[Any]]:
    kinds = {"membrane": "Membrane", "filament": "Helix", "cprotein": "SAWLC", "mbprotein": "Mb-SAWLC"}
    return [[density, "a.mrc", "b.vtp", "c.mrc", kinds[row[0]], *row[1:]] for row in rows]


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_rows(tmp_path: Path, version: str) -> None:
    """Places are Å over the voxel size, in order (z, y, x); quaternions (w, x, y, z); membranes are no particles."""
    old = version == "1.0"
    path = _list(
        tmp_path / "a.csv", _old(ROWS) if old else ROWS, OLD_HEADER if old else HEADER, "\r\n" if old else "\n"
    )
    found = read_motif_list(path, voxel_size=10.0, shape=SHAPE)
    assert found.particles.names == ("actin", "actin", "actin", "pdb_1bxn", "pdb_4pe5")
    assert found.numbers.tolist() == [2, 2, 2, 3, 4]
    np.testing.assert_allclose(found.particles.positions[3], [7.1, 5.51, 2.49])
    np.testing.assert_allclose(found.particles.orientations[3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(found.particles.orientations[4], np.eye(3), atol=1e-12)
    # Of each filament, PolNet keeps the spin of the first monomer only.
    assert found.particles.oriented.tolist() == [True, False, True, True, True]
    names = {1: "sphere", 2: "actin", 3: "pdb_1bxn", 4: "pdb_4pe5"}
    assert found.class_names == (names | {1: "membrane"} if old else names)


def test_membranes_that_share_a_number(tmp_path: Path) -> None:
    """Version 1.0 gives all membranes number 1: one name. In 1.1 whatever shares a number is named after all."""
    rows = [_row("membrane", 1, "sphere"), _row("membrane", 1, "torus"), _row("cprotein", 1, "pdb_1bxn")]
    old = read_motif_list(_list(tmp_path / "a.csv", _old(rows[:2]), OLD_HEADER), voxel_size=10.0)
    assert old.class_names == {1: "membrane"}
    new = read_motif_list(_list(tmp_path / "a.csv", rows), voxel_size=10.0)
    assert new.class_names == {1: "sphere+torus+pdb_1bxn"}
    assert new.particles.names == ("pdb_1bxn",)


def test_one_list_for_several_tomograms(tmp_path: Path) -> None:
    """Version 1.0 lists all tomograms in one file, by the densities' paths on whatever machine made them."""
    other = _old([_row("cprotein", 1, "pdb_3cf3")], r"C:\out\tomos\tomo_den_1.mrc")
    path = _list(tmp_path / "a.csv", _old(ROWS) + other, OLD_HEADER)
    assert read_motif_list(path, voxel_size=10.0, density="tomo_den_1.mrc").particles.names == ("pdb_3cf3",)
    assert len(read_motif_list(path, voxel_size=10.0, density="tomo_den_0.mrc").particles) == 5


def test_rows_of_other_tomograms_only(tmp_path: Path) -> None:
    """A list that does not tell whose its rows are, or only lists others, is no list of this tomogram."""
    path = _list(tmp_path / "a.csv", _old(ROWS), OLD_HEADER)
    with pytest.raises(FileFormatError, match="a.csv: expected rows of tomo_den_2.mrc .*, got tomo_den_0.mrc"):
        read_motif_list(path, voxel_size=10.0, density="tomo_den_2.mrc")
    path = _list(tmp_path / "b.csv", ROWS, HEADER)
    with pytest.raises(FileFormatError, match="b.csv: expected rows of tomo_den_0.mrc .*, got no column `Density`"):
        read_motif_list(path, voxel_size=10.0, density="tomo_den_0.mrc")
    path = _list(tmp_path / "c.csv", [], OLD_HEADER)
    assert len(read_motif_list(path, voxel_size=10.0, density="tomo_den_0.mrc").particles) == 0


def test_where_the_density_is(tmp_path: Path) -> None:
    """Given the templates' sizes, a place is the density's: rounded, and half a voxel lower for even sizes."""
    rows = [_row("cprotein", 1, "even", (24.9, 55.1, 71.0)), _row("cprotein", 2, "odd", (24.9, 55.1, 71.0))]
    path = _list(tmp_path / "a.csv", [*rows, _row("cprotein", 3, "unknown", (24.9, 55.1, 71.0))])
    found = read_motif_list(path, voxel_size=10.0, template_sizes={"even": 40, "odd": 37})
    np.testing.assert_allclose(found.particles.positions, [[6.5, 5.5, 1.5], [7, 6, 2], [7.1, 5.51, 2.49]])


def test_random_quaternions(tmp_path: Path) -> None:
    """Quaternions are SciPy's with the scalar first, active, on (x, y, z)."""
    turns = Rotation.random(5, random_state=np.random.default_rng(3))
    x, y, z, w = turns.as_quat().T
    rows = [_row("cprotein", 1, "a", turn=turn) for turn in np.stack([w, x, y, z], axis=1)]
    found = read_motif_list(_list(tmp_path / "a.csv", rows), voxel_size=10.0)
    np.testing.assert_allclose(found.particles.orientations, turns.as_matrix(), atol=1e-12)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (_row("protein", 1, "a"), "line 2: expected a type of membrane, filament, .*sawlc.*, got 'protein'"),
        (_row("cprotein", 1, "a", ("x", 1, 2)), "line 2: expected numbers, got cprotein, 1, a, 0, x, 1, 2"),
        (["cprotein", 1, "a", 0, 1, 2], "line 2: expected numbers, got cprotein, 1, a, 0, 1, 2"),
        (_row("cprotein", 1, "a", (np.nan, 1, 2)), "line 2: expected numbers, got"),
        (_row("cprotein", 1, "a", turn=(0, 0, 0, 0)), "line 2: expected a place and a rotation, got"),
        (
            _row("cprotein", 1, "a", (10, 20, 95)),
            r"line 2: expected a place within the volume of \(120.0, 100.0, 80.0\) Å .*, got \(10.0, 20.0, 95.0\); is",
        ),
        (
            _row("membrane", 1, "a", (-30, 20, 5)),
            r"line 2: expected a place within the volume of \(120.0, 100.0, 80.0\)",
        ),
    ],
)
def test_bad_rows(tmp_path: Path, row: list[Any], message: str) -> None:
    """A row that cannot be, or lies outside the volume, is an error with file and line; errors pickle."""
    path = _list(tmp_path / "bad.csv", [row])
    with pytest.raises(FileFormatError, match=f"bad.csv, {message}") as caught:
        read_motif_list(path, voxel_size=10.0, shape=SHAPE)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([*HEADER[:-1], "quaternion"], "q4 not found among type, label, .*, quaternion"),
        (["a,b,c"], "type, label, .* not found among a,b,c"),
        ([], "not found among none"),
    ],
)
def test_unknown_columns(tmp_path: Path, header: list[str], message: str) -> None:
    """Columns that are missing are named, with those that are there."""
    with pytest.raises(FileFormatError, match=f"bad.csv: expected PolNet's columns type, label, .*{message}"):
        read_motif_list(_list(tmp_path / "bad.csv", ROWS, header), voxel_size=10.0)


def test_missing_list(tmp_path: Path) -> None:
    """A list that is not there is named; a voxel size of 0 asks for one."""
    with pytest.raises(FileNotFoundError, match="expected PolNet's motif list, found none at .*none.csv"):
        read_motif_list(tmp_path / "none.csv", voxel_size=10.0)
    with pytest.raises(ValueError, match="expected `voxel_size` to be more than 0, got 0"):
        read_motif_list(_list(tmp_path / "a.csv", ROWS), voxel_size=0.0)


# --- folders ----------------------------------------------------------------------------------------------------------


def _volume(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mrc(path, torch.zeros(SHAPE), voxel_size=10.0)


def test_find_tomograms(tmp_path: Path) -> None:
    """Both versions' files are found, in the order of their numbers; other folders hold none."""
    for number in (2, 10, 1):
        stem = tmp_path / "new" / f"Tomo{number:03d}" / f"tomo_{number:03d}"
        for kind in ("den", "lbl"):
            _volume(stem.with_name(f"{stem.name}_{kind}.mrc"))
        _list(stem.with_name(f"{stem.name}_motif_list.csv"), ROWS)
        for kind in ("den", "lbls"):
            _volume(tmp_path / "old" / "tomos" / f"tomo_{kind}_{number}.mrc")
    _list(tmp_path / "old" / "tomos_motif_list.csv", _old(ROWS), OLD_HEADER)
    new = find_polnet_tomograms(tmp_path / "new")
    assert [one.density.name for one in new] == ["tomo_001_den.mrc", "tomo_002_den.mrc", "tomo_010_den.mrc"]
    assert new[1].labels.name == "tomo_002_lbl.mrc"
    assert new[1].motifs.name == "tomo_002_motif_list.csv"
    assert find_polnet_tomograms(tmp_path / "new" / "Tomo002") == new[1:2]
    old = find_polnet_tomograms(tmp_path / "old")
    assert [one.density.name for one in old] == ["tomo_den_1.mrc", "tomo_den_2.mrc", "tomo_den_10.mrc"]
    assert {one.motifs.name for one in old} == {"tomos_motif_list.csv"}
    assert [one.listed_as for one in old] == [one.density.name for one in old]
    assert find_polnet_tomograms(tmp_path) == []
    new[0].labels.unlink()
    with pytest.raises(FileNotFoundError, match="tomo_001_den.mrc: expected .*tomo_001_lbl.mrc with it, found none"):
        find_polnet_tomograms(tmp_path / "new")


# --- real output ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "counts", "filaments"),
    [
        ("v1.0", {"actin": 116, "pdb_4cr2": 3, "pdb_3cf3": 10, "pdb_1bxn": 7, "pdb_1s3x": 12, "pdb_mb_4pe5": 3}, 7),
        ("v1.1", {"actin": 35, "pdb_4cr2": 4, "pdb_3cf3": 10, "pdb_1bxn": 7, "pdb_1s3x": 12, "pdb_mb_4pe5": 6}, 2),
    ],
)
def test_real_output(reference: Path, version: str, counts: dict[str, int], filaments: int) -> None:
    """Real output: every protein's place has its label, its code that number, and all rows lie inside."""
    (files,) = find_polnet_tomograms(reference / "data" / "polnet" / version)
    labels, voxel_size = read_mrc(files.labels)
    found = read_motif_list(files.motifs, voxel_size=voxel_size, shape=labels.shape, density=files.listed_as)
    names = np.array(found.particles.names)
    assert {name: int((names == name).sum()) for name in counts} == counts
    assert len(names) == sum(counts.values())
    at = tuple(np.rint(found.particles.positions).astype(int).T)
    proteins = names != "actin"
    assert np.array_equal(labels[at].numpy()[proteins], found.numbers[proteins])
    assert sorted(found.class_names) == [1, 2, 3, 4, 5, 6, 7]
    assert set(np.unique(labels)) <= {0, *found.class_names}
    assert found.particles.oriented[proteins].all()
    assert found.particles.oriented[~proteins].sum() == filaments
    assert found.class_names[1] == ("membrane" if version == "v1.0" else "sphere")


def test_labels_count_what_was_placed(reference: Path) -> None:
    """`labels_table.csv` is no guide: the lists of two tomograms of one folder give number 1 to two codes."""
    one, other = find_polnet_tomograms(reference / "data" / "polnet" / "v1.1_skipped")
    assert read_motif_list(one.motifs, voxel_size=10.0).class_names == {1: "pdb_5mrc", 2: "pdb_1s3x"}
    assert read_motif_list(other.motifs, voxel_size=10.0).class_names == {1: "pdb_3cf3", 2: "pdb_1s3x"}
