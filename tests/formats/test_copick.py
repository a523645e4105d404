"""copick projects: what is written is read back, by copick itself too; runs are whole or not there; bad input."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from faket_aug import FileFormatError
from faket_aug.formats import _atomic
from faket_aug.formats import copick as module
from faket_aug.formats.copick import (
    find_copick_config,
    read_copick_classes,
    read_copick_picks,
    read_copick_runs,
    read_copick_segmentation,
    read_copick_tomogram,
    write_copick,
)
from faket_aug.formats.particles import ParticleList

needs_copick = pytest.mark.skipif(find_spec("copick") is None, reason="needs the optional package copick")

SHAPE = (10, 14, 19)
VOXEL_SIZE = 7.84 / 3
CLASS_NUMBERS = {"mb_4pe5": 2, "1bxn": 1, "fiducial": 7, "membrane": 4}


@pytest.fixture
def particles() -> ParticleList:
    """Particles of three classes in mixed order, one class without orientation."""
    turns = Rotation.random(4, random_state=np.random.default_rng(0)).as_matrix()
    turns[1] = np.nan
    positions = np.array([[1.0, 2, 3.5], [9, 13, 18], [0.25, 0, 0], [4, 12, 1]])
    return ParticleList(("mb_4pe5", "fiducial", "1bxn", "mb_4pe5"), positions, turns)


@pytest.fixture
def labels() -> torch.Tensor:
    """An asymmetric label volume of three unequal sizes."""
    volume = torch.zeros(SHAPE, dtype=torch.uint8)
    volume[1:4, 2:9, 3:5], volume[6, 10:12, 15:], volume[8, 0, 0] = 2, 4, 7
    return volume


def _write(folder: Path, particles: ParticleList, run: str = "TS_001", **settings: Any) -> list[Path]:
    given: dict[str, Any] = {"class_numbers": CLASS_NUMBERS, "voxel_size": VOXEL_SIZE, "segmented": ["membrane"]}
    return write_copick(folder, run=run, particles=particles, **(given | settings))


@needs_copick
def test_round_trip(tmp_path: Path, particles: ParticleList, labels: torch.Tensor) -> None:
    """Particles, labels and tomograms come back as they were, with all digits of the voxel size."""
    tomogram = torch.arange(labels.numel(), dtype=torch.float32).reshape(SHAPE)
    files = _write(tmp_path / "project", particles, labels=labels, tomograms={"faket": tomogram})
    assert files[0] == tmp_path / "project" / "copick_config.json"
    assert all(file.is_file() for file in files)
    assert sorted(files[1:]) == sorted(f for f in (tmp_path / "project/ExperimentRuns").rglob("*") if f.is_file())
    project = tmp_path / "project"
    assert read_copick_runs(project) == ["TS_001"]
    assert read_copick_classes(project) == {number: name for name, number in CLASS_NUMBERS.items()}
    found = read_copick_picks(project, run="TS_001", voxel_size=VOXEL_SIZE)
    assert found.names == particles.names
    np.testing.assert_allclose(found.positions, particles.positions, atol=1e-9)
    np.testing.assert_allclose(found.orientations, particles.orientations, atol=1e-12)
    stored, size = read_copick_segmentation(project, run="TS_001")
    assert torch.equal(stored, labels)
    assert size == VOXEL_SIZE
    stored, size = read_copick_tomogram(project, run="TS_001")
    assert torch.equal(stored, tomogram)
    assert size == VOXEL_SIZE


@needs_copick
def test_copick_sees_it(tmp_path: Path, particles: ParticleList, labels: torch.Tensor) -> None:
    """copick itself sees objects, picks in Å, transformations, instances and the segmentation."""
    _write(tmp_path, particles, labels=labels)
    import copick

    root = copick.from_file(str(tmp_path / "copick_config.json"))
    shown = {one.name: (one.label, one.is_particle) for one in root.pickable_objects}
    assert shown == {"mb-4pe5": (2, True), "1bxn": (1, True), "fiducial": (7, True), "membrane": (4, False)}
    run = root.get_run("TS_001")
    (picks,) = run.get_picks(object_name="mb-4pe5")
    places, transforms = picks.numpy()
    np.testing.assert_allclose(places, particles.positions[[0, 3], ::-1] * VOXEL_SIZE)
    np.testing.assert_allclose(transforms[:, :3, :3], particles.orientations[[0, 3]])
    assert transforms[:, :3, 3].tolist() == [[0, 0, 0]] * 2
    assert picks.instance_ids().tolist() == [1, 4]
    assert picks.trust_orientation
    (bead,) = run.get_picks(object_name="fiducial")
    assert not bead.load().trust_orientation
    (segmentation,) = run.get_segmentations(is_multilabel=True)
    assert np.array_equal(segmentation.numpy(), labels.numpy())


@needs_copick
def test_several_runs(tmp_path: Path, particles: ParticleList, labels: torch.Tensor) -> None:
    """Runs share a project; one that is written again is replaced; nothing else lies there."""
    for run in ("a", "b", "a"):
        _write(tmp_path, particles, run, labels=labels, existing="replace")
    few = ParticleList(("1bxn",), np.ones((1, 3)), np.eye(3)[None])
    _write(tmp_path, few, "b", existing="replace")
    assert read_copick_runs(tmp_path) == ["a", "b"]
    assert read_copick_picks(tmp_path, run="a", voxel_size=1.0).names == particles.names
    # Picks of other classes stay as they are.
    found = read_copick_picks(tmp_path, run="b", voxel_size=1.0).names
    assert found.count("1bxn") == 1
    assert set(found) == set(particles.names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ExperimentRuns", "copick_config.json"]


@needs_copick
def test_the_project_grows(tmp_path: Path, particles: ParticleList) -> None:
    """A later run may bring classes; one that another number or name has is refused."""
    _write(tmp_path, particles, "a")
    config = json.loads((tmp_path / "copick_config.json").read_text())
    config["description"] = "mine"
    (tmp_path / "copick_config.json").write_text(json.dumps(config))
    _write(tmp_path, particles, "b", class_numbers=CLASS_NUMBERS | {"new": 9})
    assert read_copick_classes(tmp_path)[9] == "new"
    assert json.loads((tmp_path / "copick_config.json").read_text())["description"] == "mine"
    for numbers in (CLASS_NUMBERS | {"1bxn": 3}, CLASS_NUMBERS | {"other": 1}):
        with pytest.raises(ValueError, match="expected the project's classes, .*; write to another folder"):
            _write(tmp_path, particles, "c", class_numbers=numbers)
    assert read_copick_runs(tmp_path) == ["a", "b"]


@needs_copick
def test_two_grow_it_at_once(tmp_path: Path, particles: ParticleList, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes that another process added while this one was writing its run are kept."""
    write = module._write_picks

    def meanwhile(*arguments: Any) -> None:
        write(*arguments)
        with monkeypatch.context() as patched:
            patched.setattr(module, "_write_picks", write)
            _write(tmp_path, particles, "b", class_numbers=CLASS_NUMBERS | {"theirs": 8})

    monkeypatch.setattr(module, "_write_picks", meanwhile)
    _write(tmp_path, particles, "a", class_numbers=CLASS_NUMBERS | {"mine": 9})
    found = read_copick_classes(tmp_path)
    assert (found[8], found[9]) == ("theirs", "mine")
    assert read_copick_runs(tmp_path) == ["a", "b"]


@needs_copick
def test_moved_project(tmp_path: Path, particles: ParticleList) -> None:
    """A project that was moved is read where its configuration lies."""
    _write(tmp_path / "here", particles)
    (tmp_path / "here").rename(tmp_path / "there")
    assert read_copick_picks(tmp_path / "there", run="TS_001", voxel_size=1.0).names == particles.names
    config = find_copick_config(tmp_path / "there")
    assert read_copick_runs(config) == ["TS_001"]


@needs_copick
def test_failure_midway_leaves_the_old_run(
    tmp_path: Path, particles: ParticleList, labels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When writing fails, the run that was there is whole, and nothing half-made is left."""
    _write(tmp_path, particles, labels=labels)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        _write(tmp_path, particles, labels=labels * 0, existing="replace")
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@needs_copick
def test_written_elsewhere(tmp_path: Path, particles: ParticleList) -> None:
    """Picks of others: shifts in the transformation count, and their order without instances is object by object."""
    _write(tmp_path, particles)
    path = tmp_path / "ExperimentRuns" / "TS_001" / "Picks" / "faket-aug_0_mb-4pe5.json"
    picks = json.loads(path.read_text())
    for point in picks["points"]:
        point["instance_id"] = 0
        point["transformation_"][0][3] = 5.0
    path.write_text(json.dumps(picks))
    found = read_copick_picks(tmp_path, run="TS_001", voxel_size=VOXEL_SIZE)
    assert found.names == ("1bxn", "fiducial", "mb_4pe5", "mb_4pe5")
    np.testing.assert_allclose(found.positions[2], particles.positions[0] + [0, 0, 5 / VOXEL_SIZE])


@needs_copick
def test_several_sets_of_picks(tmp_path: Path, particles: ParticleList) -> None:
    """Where two users picked the same object, it has to be said whose are meant."""
    _write(tmp_path, particles)
    folder = tmp_path / "ExperimentRuns" / "TS_001" / "Picks"
    picks = json.loads((folder / "faket-aug_0_1bxn.json").read_text())
    (folder / "ann_1_1bxn.json").write_text(json.dumps(picks | {"user_id": "ann", "session_id": "1", "points": []}))
    with pytest.raises(FileFormatError, match="expected one set of picks of 1bxn, got .*; set `user_id`"):
        read_copick_picks(tmp_path, run="TS_001", voxel_size=1.0)
    assert len(read_copick_picks(tmp_path, run="TS_001", voxel_size=1.0, user_id="faket-aug")) == 4
    assert len(read_copick_picks(tmp_path, run="TS_001", voxel_size=1.0, session_id="1")) == 0


@needs_copick
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "nanometer"}, "expected places of 1bxn in angstrom, got nanometer"),
        ({"matrix": np.diag([2.0, 2, 2, 1])}, "expected rotations for 1bxn, got"),
        ({"matrix": np.diag([1.0, 1, -1, 1])}, "expected rotations for 1bxn, got"),
    ],
)
def test_bad_picks(tmp_path: Path, particles: ParticleList, changes: dict[str, Any], message: str) -> None:
    """Other units and matrices that are no rotations are errors; errors pickle."""
    _write(tmp_path, particles)
    path = tmp_path / "ExperimentRuns" / "TS_001" / "Picks" / "faket-aug_0_1bxn.json"
    picks = json.loads(path.read_text())
    if "matrix" in changes:
        picks["points"][0]["transformation_"] = changes.pop("matrix").tolist()
    path.write_text(json.dumps(picks | changes))
    with pytest.raises(FileFormatError, match=rf"faket-aug_0_1bxn.json.*: {message}") as caught:
        read_copick_picks(tmp_path, run="TS_001", voxel_size=1.0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@needs_copick
def test_what_there_is_not(tmp_path: Path, particles: ParticleList, labels: torch.Tensor) -> None:
    """A run, segmentation or tomogram that is not there, or there twice, is an error that says what is."""
    _write(tmp_path, particles, tomograms={"raw": labels, "denoised": labels})
    with pytest.raises(FileFormatError, match=r"expected one of the project's runs \(TS_001\), got 'TS_2'"):
        read_copick_picks(tmp_path, run="TS_2", voxel_size=1.0)
    with pytest.raises(FileFormatError, match="expected one multilabel segmentation, got none; set `name`"):
        read_copick_segmentation(tmp_path, run="TS_001")
    with pytest.raises(FileFormatError, match=r"expected one tomogram, got .*raw at 2.613 Å.*; set `tomogram_type`"):
        read_copick_tomogram(tmp_path, run="TS_001")
    assert read_copick_tomogram(tmp_path, run="TS_001", tomogram_type="raw", voxel_size=VOXEL_SIZE)[1] == VOXEL_SIZE
    with pytest.raises(FileFormatError, match="expected one tomogram, got"):
        read_copick_tomogram(tmp_path, run="TS_001", tomogram_type="raw", voxel_size=5.0)


@needs_copick
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"voxel_size": 0.0}, "expected `voxel_size` to be more than 0, got 0"),
        ({"run": "a b"}, "expected names of runs without spaces, quotes and #, got 'a b'"),
        ({"class_numbers": {"1bxn": 1}}, r"expected class names of `class_numbers` \(1bxn\), got fiducial, mb_4pe5"),
        (
            {"class_numbers": CLASS_NUMBERS | {"mb-4pe5": 8}},
            "expected class names that differ once copick turns _",
        ),
        ({"labels": torch.full(SHAPE, 3, dtype=torch.uint8)}, r"expected labels of `class_numbers` \(.*\), got \[3\]"),
        ({"labels": torch.zeros(3, 4, dtype=torch.uint8)}, r"expected `labels` of shape \(z, y, x\), got \(3, 4\)"),
        ({"tomograms": {"raw": torch.zeros(3, 4)}}, r"expected `raw` of shape \(z, y, x\), got \(3, 4\)"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, particles: ParticleList, changes: dict[str, Any], message: str) -> None:
    """What cannot be written is refused before anything is."""
    with pytest.raises(ValueError, match=message):
        _write(tmp_path, particles, **changes)
    assert list(tmp_path.iterdir()) == []


@needs_copick
def test_some_without_orientation(tmp_path: Path, particles: ParticleList) -> None:
    """copick marks whole files as oriented or not: a class of which only some particles are is refused."""
    turns = particles.orientations.copy()
    turns[0] = np.nan
    some = ParticleList(particles.names, particles.positions, turns)
    with pytest.raises(ValueError, match="expected an orientation for all or for none of the 2 particles of mb_4pe5"):
        _write(tmp_path, some)
    assert list(tmp_path.iterdir()) == []


def test_no_project(tmp_path: Path) -> None:
    """A folder or a file that is no project is said to be none."""
    (tmp_path / "other.json").write_text("{}")
    for path in (tmp_path, tmp_path / "other.json", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"expected the configuration of a copick project \(copick_config"):
            find_copick_config(path)
    for text in ('{"pickable_objects": [', '{"pickable_objects": [{"label": 1}]}', '{"pickable_objects": 3}'):
        (tmp_path / "copick_config.json").write_text(text)
        with pytest.raises(FileFormatError, match="copick_config.json: expected a copick configuration with `pickable"):
            read_copick_classes(tmp_path)


def test_real_configuration(reference: Path) -> None:
    """A configuration of a project on the data portal: its classes are read, its runs are not on this disk."""
    path = reference / "data" / "real" / "metadata" / "copick" / "config_local_static_dataportal.json"
    assert read_copick_classes(path) == {1: "ribosome", 2: "atpase", 3: "membrane"}
    with pytest.raises(FileFormatError, match="expected a project on disk .*, got cryoet_data_portal; download"):
        read_copick_runs(path)


def test_without_copick(tmp_path: Path) -> None:
    """Without copick all else imports; asked for, the error says what to install."""
    code = f"""
import sys
sys.modules["copick"] = None
import numpy as np
from faket_aug.formats.copick import write_copick
from faket_aug.formats.particles import ParticleList
one = ParticleList(("a",), np.zeros((1, 3)), np.eye(3)[None])
try:
    write_copick({str(tmp_path / "x")!r}, run="a", particles=one, class_numbers={{"a": 1}}, voxel_size=1.0)
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert 'install it: pip install "faket_aug[copick]"' in done.stdout
    assert not (tmp_path / "x").exists()


# --- other people's data ----------------------------------------------------------------------------------------------


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _someones_project(folder: Path) -> dict[str, bytes]:
    """A project with a tomogram, a segmentation, and picks of another user, and its files."""
    copick = pytest.importorskip("copick")
    from copick.models import CopickLocation, CopickPoint

    colour = [255, 0, 0, 255]
    config = {
        "name": "mine",
        "version": "1.0",
        "config_type": "filesystem",
        "user_id": "someone",
        "session_id": "1",
        "pickable_objects": [
            {"name": "ribosome", "is_particle": True, "label": 1, "color": colour, "radius": 120.0},
        ],
        "overlay_root": f"local://{folder}",
        "overlay_fs_args": {"auto_mkdir": True},
    }
    folder.mkdir()
    (folder / "copick_config.json").write_text(json.dumps(config))
    run = copick.from_file(str(folder / "copick_config.json")).new_run("TS_1")
    run.new_voxel_spacing(10.0).new_tomogram("wbp").from_numpy(np.zeros((8, 16, 16), np.float32), levels=1)
    labels = run.new_segmentation(10.0, "painted", "1", is_multilabel=True, user_id="someone")
    labels.from_numpy(np.zeros((8, 16, 16), np.uint8))
    picks = run.new_picks("ribosome", session_id="1", user_id="someone")
    picks.points = [CopickPoint(location=CopickLocation(x=10, y=20, z=30))]
    picks.store()
    return _content(folder)


def _picked(folder: Path, **settings: Any) -> None:
    particles = ParticleList(("ribosome",), np.array([[1.0, 2.0, 3.0]]), np.full((1, 3, 3), np.nan))
    write_copick(folder, run="TS_1", particles=particles, class_numbers={"ribosome": 1}, voxel_size=10.0, **settings)


def test_everything_else_in_a_run_stays(tmp_path: Path) -> None:
    """Picks are added to somebody's run: each other file is the same, byte for byte."""
    before = _someones_project(tmp_path / "project")
    _picked(tmp_path / "project")
    after = _content(tmp_path / "project")
    assert {name: after.get(name) for name in before} == before
    assert set(after) - set(before) == {"ExperimentRuns/TS_1/Picks/faket-aug_0_ribosome.json"}


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    """Picks of the same name, user and session are refused, moved aside, or replaced, as asked."""
    before = _someones_project(tmp_path / "project")
    _picked(tmp_path / "project")
    first = _content(tmp_path / "project")
    with pytest.raises(FileExistsError, match=r"faket-aug_0_ribosome\.json, which this call did not write; choose"):
        _picked(tmp_path / "project")
    assert _content(tmp_path / "project") == first
    _picked(tmp_path / "project", existing="aside")
    aside = _content(tmp_path / "project")
    name = "ExperimentRuns/TS_1/Picks/faket-aug_0_ribosome.json"
    assert aside[f"{name}.1"] == first[name]
    _picked(tmp_path / "project", existing="replace")
    assert set(_content(tmp_path / "project")) == {*before, name, f"{name}.1"}


@pytest.mark.parametrize("run", ["..", ".", "a/b", "../x", "../../x", "/tmp/x", "a\0b"])
def test_runs_have_plain_names(tmp_path: Path, run: str) -> None:
    """A name that leads out of the project is refused before anything is written."""
    pytest.importorskip("copick")
    particles = ParticleList(("a",), np.zeros((1, 3)), np.full((1, 3, 3), np.nan))
    with pytest.raises(ValueError, match="expected the plain name of a run"):
        write_copick(tmp_path / "p", run=run, particles=particles, class_numbers={"a": 1}, voxel_size=10.0)
    assert not (tmp_path / "p").exists()


@needs_copick
@pytest.mark.parametrize(
    "changes",
    [
        {"pickable_objects": [{"name": "1bxn", "label": 1}]},
        {"overlay_root": "local:///nowhere", "overlay_fs_args": 3},
        {"static_root": "s3://bucket/project"},
        {"version": None, "name": 3},
        {"pickable_objects": [{"name": "not_copick's", "label": 9, "is_particle": True}]},
    ],
)
def test_a_run_is_added_to_what_others_wrote(
    tmp_path: Path, particles: ParticleList, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that copick itself would not take does no harm; nobody is asked over a network."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    _write(tmp_path, particles)
    path = tmp_path / "copick_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    _write(tmp_path, particles, run="TS_002")
    written = sorted(one.name for one in (tmp_path / "ExperimentRuns" / "TS_002" / "Picks").iterdir())
    assert written == ["faket-aug_0_1bxn.json", "faket-aug_0_fiducial.json", "faket-aug_0_mb-4pe5.json"]
    kept = json.loads(path.read_text())
    assert {name: kept[name] for name in changes if name != "pickable_objects"} == {
        name: value for name, value in changes.items() if name != "pickable_objects"
    }


@needs_copick
def test_remote_projects_are_refused(tmp_path: Path, particles: ParticleList, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project whose runs lie elsewhere is neither read nor added to, and no connection is opened."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    _write(tmp_path, particles)
    path = tmp_path / "copick_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"overlay_root": "http://127.0.0.1:9/x"}))
    for use in (lambda: read_copick_runs(tmp_path), lambda: _write(tmp_path, particles, run="TS_002")):
        with pytest.raises(FileFormatError, match=r"copick_config.json: expected a project on disk, got overlay_root"):
            use()
    assert not (tmp_path / "ExperimentRuns" / "TS_002").exists()


@needs_copick
def test_configurations_that_cannot_be(tmp_path: Path, particles: ParticleList) -> None:
    """A label of two objects, and a root that is no name, are refused with the file's name; encodings are told."""
    _write(tmp_path, particles)
    path = tmp_path / "copick_config.json"
    whole = json.loads(path.read_text())
    objects = [{"name": "1bxn", "label": 1}, {"name": "other", "label": 1}]
    path.write_text(json.dumps(whole | {"pickable_objects": objects}))
    with pytest.raises(FileFormatError, match=r"copick_config.json: expected each label once, got 1 of 1bxn and other"):
        read_copick_classes(path)
    path.write_text(json.dumps(whole | {"overlay_root": "x" * 5000}))
    with pytest.raises(FileFormatError, match=r"copick_config.json: expected a folder as overlay_root, got x"):
        read_copick_runs(path)
    path.write_bytes(json.dumps(whole | {"name": "Fähre"}, ensure_ascii=False).encode("latin-1"))
    assert read_copick_runs(path) == ["TS_001"]
    _write(tmp_path, particles, run="TS_002")
    assert read_copick_runs(path) == ["TS_001", "TS_002"]
