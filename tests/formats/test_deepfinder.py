"""DeepFinder's object lists: what is written is read back and means the same elsewhere; what is wrong is said."""

from __future__ import annotations

import pickle
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from faket_aug import FileFormatError
from faket_aug.formats.deepfinder import read_object_list, write_object_list
from faket_aug.formats.particles import ParticleList

CLASS_NUMBERS = {"4cr2": 2, "bead": 9}
CLASS_NAMES = {number: name for name, number in CLASS_NUMBERS.items()}


def _particles(seed: int = 0) -> ParticleList:
    random = np.random.default_rng(seed)
    turns = Rotation.random(3, random_state=random).as_matrix()
    turns[1] = np.nan
    return ParticleList(("4cr2", "bead", "4cr2"), random.uniform(0, 40, (3, 3)).round(3), turns)


def test_attributes(tmp_path: Path) -> None:
    """An object has DeepFinder's attributes: voxels from 0, angles in degrees where there is an orientation."""
    turn = Rotation.from_euler("ZXZ", [20, 30, 40], degrees=True).as_matrix()
    turns = np.stack([turn, np.full((3, 3), np.nan)])
    write_object_list(
        tmp_path / "a.xml",
        ParticleList(("4cr2", "bead"), np.array([[1.0, 2.0, 3.5], [4, 5, 6]]), turns),
        class_numbers=CLASS_NUMBERS,
        tomogram=5,
    )
    root = ElementTree.parse(tmp_path / "a.xml").getroot()
    assert root.tag == "objlist"
    one, other = root.findall("object")
    assert {name: float(value) for name, value in one.attrib.items()} == {
        **{"tomo_idx": 5, "obj_id": 1, "class_label": 2},
        **{"x": 3.5, "y": 2, "z": 1, "psi": 20, "the": 30, "phi": 40},
    }
    assert sorted(other.attrib) == ["class_label", "obj_id", "tomo_idx", "x", "y", "z"]


def test_several_tomograms(tmp_path: Path) -> None:
    """Lists of several tomograms are kept apart by their index, and come back in order."""
    lists = [_particles(1), _particles(2)]
    write_object_list(tmp_path / "a.xml", lists, class_numbers=CLASS_NUMBERS, tomogram=3)
    found = read_object_list(tmp_path / "a.xml", class_names=CLASS_NAMES)
    assert list(found) == [3, 4]
    for one, expected in zip(found.values(), lists, strict=True):
        assert one.names == expected.names
        np.testing.assert_allclose(one.positions, expected.positions, atol=1e-4)
        np.testing.assert_allclose(one.orientations, expected.orientations, atol=1e-5)


def test_written_elsewhere(tmp_path: Path) -> None:
    """As DeepFinder writes it: no index, clusters' sizes, numbers with decimals; classes name themselves."""
    path = tmp_path / "a.xml"
    path.write_text(
        '<objlist>\n <object class_label="3" x="10.000" y="20.500" z="30.000" cluster_size="71"/>\n'
        ' <object class_label="1" x="1" y="2" z="3" psi="90.000" phi="0.000" the="0.000"/>\n</objlist>\n'
    )
    (one,) = read_object_list(path).values()
    assert one.names == ("3", "1")
    assert one.positions.tolist() == [[30, 20.5, 10], [3, 2, 1]]
    assert np.isnan(one.orientations[0]).all()
    np.testing.assert_allclose(one.orientations[1] @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_no_objects(tmp_path: Path) -> None:
    """A list without objects reads as no tomogram."""
    nothing = ParticleList((), np.zeros((0, 3)), np.zeros((0, 3, 3)))
    write_object_list(tmp_path / "a.xml", nothing, class_numbers={})
    assert read_object_list(tmp_path / "a.xml") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected DeepFinder's object list, got a damaged one"),
        ("<objlist><object></objlist>", "expected DeepFinder's object list, got a damaged one"),
        ("<list/>", "expected DeepFinder's `objlist`, got `list`"),
        ('<objlist><object x="1" y="2" z="3"/></objlist>', "object 1: expected numbers class_label, got none"),
        (
            '<objlist><object class_label="2" x="1" y="2"/></objlist>',
            "object 1: expected numbers z, y, x, got y=2, x=1",
        ),
        (
            '<objlist><object class_label="2" x="1" y="2" z="here"/></objlist>',
            "object 1: expected numbers z, y, x, got z=here, y=2, x=1",
        ),
        (
            '<objlist><object class_label="2" x="1" y="2" z="3" psi="4"/></objlist>',
            "object 1: expected numbers psi, the, phi, got psi=4",
        ),
        ('<objlist><object class_label="2" x="nan" y="2" z="3"/></objlist>', "object 1: expected numbers z, y, x, got"),
        (
            '<objlist><object class_label="2" x="1" y="2" z="3"/><object class_label="4" x="1" y="2" z="3"/></objlist>',
            r"object 2: expected a class of the table \(2, 9\), got 4",
        ),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    """A list that is wrong is an error with file and object; errors pickle."""
    path = tmp_path / "bad.xml"
    path.write_text(content)
    with pytest.raises(FileFormatError, match=f"bad.xml.*{message}") as caught:
        read_object_list(path, class_names=CLASS_NAMES)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(FileNotFoundError, match=r"expected DeepFinder's object list, found none at .*none.xml"):
        read_object_list(tmp_path / "none.xml")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    """Names without a number, places that are not finite and impossible indices are refused; no file is left."""
    with pytest.raises(ValueError, match=r"expected class names of `class_numbers` \(bead\), got 4cr2"):
        write_object_list(tmp_path / "a.xml", _particles(), class_numbers={"bead": 1})
    lost = ParticleList(("bead",), np.full((1, 3), np.inf), np.zeros((1, 3, 3)))
    with pytest.raises(ValueError, match=r"expected finite places, got \[inf, inf, inf\] for particle 1"):
        write_object_list(tmp_path / "a.xml", lost, class_numbers={"bead": 1})
    with pytest.raises(ValueError, match="expected `tomogram` to be a whole number of 0 or more, got -1"):
        write_object_list(tmp_path / "a.xml", _particles(), class_numbers=CLASS_NUMBERS, tomogram=-1)
    assert list(tmp_path.iterdir()) == []
