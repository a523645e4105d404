"""Saved tomograms: what is written, that our readers read it, and that a stop never leaves a half-written file."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from _helpers import ANGLES, CLASS_NAMES, SHAPE, empty_specimen, simulator, specimen
from scipy.spatial.transform import Rotation

from faket_aug import (
    FileFormatError,
    GrandModel,
    ParticleTable,
    SimulatedTomogram,
    SimulationRecord,
    TiltSeries,
)
from faket_aug.formats.copick import (
    read_copick_picks,
    read_copick_runs,
    read_copick_segmentation,
    read_copick_tomogram,
)
from faket_aug.formats.deepfinder import read_object_list
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.shrec import read_class_conversion_table, read_particle_locations
from faket_aug.formats.star import read_particles_star
from faket_aug.simulation import saving
from faket_aug.simulation.saving import RECORD_FILE, UNFINISHED_FILE, is_whole, remove_parts

TESTS = Path(__file__).resolve().parents[1]
FILES = {
    "class_conversion_table.txt",
    "class_mask.mrc",
    "occupancy_mask.mrc",
    "particle_locations.txt",
    "projections.mrc",
    "projections.rawtlt",
    "projections.tlt",
    "reconstruction.mrc",
    "record.json",
}


def oriented(thing: GrandModel) -> GrandModel:
    """The specimen with an orientation for all particles but the last."""
    matrices = Rotation.random(len(thing.particles), random_state=1).as_matrix()
    matrices[-1] = np.nan
    return replace(thing, particles=replace(thing.particles, orientations=matrices))


@pytest.fixture
def thing() -> GrandModel:
    return oriented(specimen(3, name="thing"))


@pytest.fixture
def made(thing: GrandModel) -> SimulatedTomogram:
    return simulator("noisy")(thing, seed=5)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- what is written --------------------------------------------------------------------------------------------------


def test_files_and_voxel_sizes(made: SimulatedTomogram, tmp_path: Path) -> None:
    """The files have SHREC's names, hold what the tomogram holds, and their headers the voxel size."""
    made.save(tmp_path / "deep" / "model")
    folder = tmp_path / "deep" / "model"
    assert names(folder) == FILES
    expected = {
        "projections.mrc": made.tiltseries,
        "reconstruction.mrc": made.tomogram,
        "class_mask.mrc": made.labels,
        "occupancy_mask.mrc": made.instances,
    }
    for name, tensor in expected.items():
        with mrcfile.open(folder / name) as file:  # strictly, and by another reader than ours
            assert tensor is not None
            np.testing.assert_array_equal(file.data, tensor.numpy())
            assert file.voxel_size.tolist() == (10.0, 10.0, 10.0)
    for name in ("projections.tlt", "projections.rawtlt"):
        np.testing.assert_allclose(np.loadtxt(folder / name), ANGLES)


def test_our_readers_read_it(made: SimulatedTomogram, thing: GrandModel, tmp_path: Path) -> None:
    """The folder is a tilt-series, and a specimen where its density was written, equal to what was saved."""
    made.save(tmp_path / "model", specimen=thing)
    assert names(tmp_path / "model") == FILES | {"grandmodel.mrc"}
    series = TiltSeries.read(tmp_path / "model")
    assert torch.equal(series.tilts, made.tiltseries)
    np.testing.assert_allclose(series.tilt_angles, ANGLES)
    assert series.pixel_size == 10.0
    again = GrandModel.from_shrec(tmp_path / "model")
    assert torch.equal(again.density, thing.density)
    assert torch.equal(again.labels, thing.labels)
    assert again.instances is not None
    assert torch.equal(again.instances, made.instances)
    assert again.class_names == CLASS_NAMES
    assert again.voxel_size == 10.0
    np.testing.assert_array_equal(again.particles.classes, thing.particles.classes)
    np.testing.assert_allclose(again.particles.positions, thing.particles.positions, atol=1e-4)
    np.testing.assert_allclose(again.particles.orientations, thing.particles.orientations, atol=1e-5)


def test_the_record_makes_it_again(made: SimulatedTomogram, thing: GrandModel, tmp_path: Path) -> None:
    """From the folder alone, with the same simulator, comes the same tomogram, bit for bit."""
    made.save(tmp_path / "thing", specimen=thing, origin={"by": "hand"})
    record = SimulationRecord.read(tmp_path / "thing")
    assert record == made.record
    assert record == SimulationRecord.read(tmp_path / "thing" / RECORD_FILE)
    again = simulator("noisy").simulate(GrandModel.from_shrec(tmp_path / "thing"), record)
    assert torch.equal(again.tomogram, made.tomogram)
    assert torch.equal(again.tiltseries, made.tiltseries)
    content = saving.read_record_file(tmp_path / "thing" / RECORD_FILE)
    assert content["origin"] == {"by": "hand"}
    assert set(content["files"]) == FILES - {"record.json"} | {"grandmodel.mrc"}


def test_matched_pair(made: SimulatedTomogram, thing: GrandModel, tmp_path: Path) -> None:
    """The noiseless tomogram is written beside the noisy one."""
    clean = simulator()(thing, seed=0).tomogram
    made.save(tmp_path / "model", noiseless=clean)
    with mrcfile.open(tmp_path / "model" / "reconstruction_noiseless.mrc") as file:
        np.testing.assert_array_equal(file.data, clean.numpy())


def test_tilts_finer_than_the_tomogram(tmp_path: Path) -> None:
    """Tilts and density have their own pixel size, and SHREC's names for unbinned files."""
    thing = specimen(1, shape=(8, 12, 16), bin=2, name="binned")
    made = simulator("noisy")(thing, seed=5)
    made.save(tmp_path / "binned", specimen=thing)
    series, again = TiltSeries.read(tmp_path / "binned"), GrandModel.from_shrec(tmp_path / "binned")
    assert (series.pixel_size, again.voxel_size, again.label_voxel_size) == (5.0, 5.0, 10.0)
    assert again.bin == 2
    assert {"projections_unbinned.mrc", "projections_unbinned.tlt", "grandmodel_unbinned.mrc"} < names(
        tmp_path / "binned"
    )
    with mrcfile.open(tmp_path / "binned" / "reconstruction.mrc") as file:
        assert float(file.voxel_size.x) == 10.0
    simulated = simulator("noisy").simulate(again, SimulationRecord.read(tmp_path / "binned"))
    assert torch.equal(simulated.tomogram, made.tomogram)


def test_without_particles_and_instances(tmp_path: Path) -> None:
    """A specimen without either is written without either; a class without a name gets one."""
    made = simulator()(replace(empty_specimen(), class_names={0: "background"}), seed=0)
    made.save(tmp_path / "empty")
    assert names(tmp_path / "empty") == FILES - {"occupancy_mask.mrc"}
    assert len(read_particle_locations(tmp_path / "empty" / "particle_locations.txt")) == 0
    named = replace(made, labels=torch.full(SHAPE, 7, dtype=torch.uint8))
    named.save(tmp_path / "empty")
    assert read_class_conversion_table(tmp_path / "empty" / "class_conversion_table.txt") == {7: "class_7"}


def test_many_instances(made: SimulatedTomogram, tmp_path: Path) -> None:
    """More instances than a 16-bit integer counts are written, and read, all the same."""
    instances = torch.arange(made.labels.numel(), dtype=torch.int32).reshape(SHAPE) * 9
    assert int(instances.max()) > 2**16
    many = replace(made, instances=instances, particles=ParticleTable.empty())
    many.save(tmp_path / "many", specimen=specimen(3), formats=())
    again = GrandModel.from_shrec(tmp_path / "many").instances
    assert again is not None
    assert torch.equal(again, instances)


# --- saving again -----------------------------------------------------------------------------------------------------


def test_saving_again_replaces_it(made: SimulatedTomogram, thing: GrandModel, tmp_path: Path) -> None:
    """What was saved before is replaced, and files that the new one does not have are gone; others stay."""
    made.save(tmp_path / "model", noiseless=made.tomogram, formats=("shrec", "deepfinder"))
    (tmp_path / "model" / "notes.txt").write_text("mine")
    other = simulator("noisy")(thing, seed=6)
    other.save(tmp_path / "model", formats=("deepfinder",))
    expected = FILES - {"particle_locations.txt"} | {"object_list.xml", "notes.txt"}
    assert names(tmp_path / "model") == expected
    assert torch.equal(TiltSeries.read(tmp_path / "model").tilts, other.tiltseries)
    assert is_whole(tmp_path / "model")


def test_saving_again_after_a_stop(made: SimulatedTomogram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the replacing of a tomogram was stopped, its old files are still known as such, also after two stops."""
    folder = tmp_path / "model"
    made.save(folder, noiseless=made.tomogram, formats=("shrec", "deepfinder"))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(saving, "write_mrc", stop)
            with pytest.raises(KeyboardInterrupt):
                made.save(folder)
        assert UNFINISHED_FILE in names(folder)
        assert not is_whole(folder)
    (folder / "notes.txt").write_text("mine")
    made.save(folder)
    assert names(folder) == FILES | {"notes.txt"}


def test_somebodys_own_files_are_left_alone(made: SimulatedTomogram, tmp_path: Path) -> None:
    """A folder with other files, as a SHREC model, is refused and stays as it is."""
    (tmp_path / "model_0").mkdir()
    (tmp_path / "model_0" / "projections.mrc").write_text("measured")
    with pytest.raises(FileExistsError, match=r"model_0, got: it holds other files, projections\.mrc; choose another"):
        made.save(tmp_path / "model_0")
    assert names(tmp_path / "model_0") == {"projections.mrc"}
    assert (tmp_path / "model_0" / "projections.mrc").read_text() == "measured"


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ("shrec", "csv")}, "expected `formats` to be one of 'shrec', 'star3', .*, got 'csv'"),
        ({"formats": "shrec"}, r"expected `formats` to be several names, as \('shrec',\), got 'shrec'"),
        ({"formats": ("shrec", "shrec")}, "expected each of `formats` once, got shrec, shrec"),
        ({"noiseless": torch.zeros(2, 3, 4)}, r"expected `noiseless` to have the shape of `tomogram`, \(16, 24, 32\)"),
        ({"specimen": specimen(0, shape=(8, 8, 8))}, r"expected `specimen.labels` to have the shape of `labels`"),
    ],
)
def test_wrong_settings(made: SimulatedTomogram, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    """Settings that cannot be are refused before anything is written."""
    with pytest.raises(ValueError, match=message):
        made.save(tmp_path / "model", **settings)
    assert names(tmp_path) == set()


def test_names_that_a_format_cannot_hold(made: SimulatedTomogram, tmp_path: Path) -> None:
    """Names that cannot be written are refused before anything is, and what was there stays whole."""
    made.save(tmp_path / "model")
    for wrong, message in (
        ("small one", "expected class names without spaces, .*, got 'small one'"),
        ("4194", "expected class names that are not numbers themselves, got '4194'"),
        ("LARGE", "expected each class name once, in whatever case, got LARGE, large"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(made, class_names={1: wrong, 2: "large"}).save(tmp_path / "model")
        assert is_whole(tmp_path / "model")
    with pytest.raises(ValueError, match="expected names of tomograms .* without spaces, .* got 'a model'"):
        made.save(tmp_path / "a model", formats=("star5",))
    assert names(tmp_path) == {"model"}


def test_a_folder_that_cannot_be_written(made: SimulatedTomogram, tmp_path: Path) -> None:
    """The message names the folder and says to choose another."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="expected to write a tomogram into .*file/model, got: .*; choose another folder"):
        made.save(tmp_path / "file" / "model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "record.json: expected the record of a saved tomogram \\(JSON\\), got other text"),
        ("[]", "record.json: expected the record of a saved tomogram"),
        (
            "{}",
            "files, format, origin, record.*got format None with nothing; simulate it again",
        ),
        (
            '{"format": 1, "record": {"seed": 1}, "origin": {}, "files": {}}',
            "record.json: expected a simulation record with",
        ),
        (
            '{"format": 1, "record": 3, "origin": {}, "files": {}}',
            "record.json: expected a simulation record with .* got 3",
        ),
    ],
)
def test_damaged_records(made: SimulatedTomogram, tmp_path: Path, content: str, message: str) -> None:
    """A record that is none is told with its file's name."""
    made.save(tmp_path / "model")
    (tmp_path / "model" / RECORD_FILE).write_text(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        SimulationRecord.read(tmp_path / "model")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(FileNotFoundError, match="expected the record of a saved tomogram, found none at"):
        SimulationRecord.read(tmp_path)


# --- stops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", ["projections.mrc", "class_mask.mrc", "projections.tlt", "record.json"])
def test_a_full_disk(made: SimulatedTomogram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str) -> None:
    """A disk that is full at any file: the message says so, no part is left, and the next try makes all whole."""

    def failing(write: Callable[..., None]) -> Callable[..., None]:
        def writer(path: Path, *arguments: Any, **settings: Any) -> None:
            if Path(path).name == fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, *arguments, **settings)

        return writer

    with monkeypatch.context() as patched:
        for name in ("write_mrc", "write_tlt", "write_json"):
            patched.setattr(saving, name, failing(getattr(saving, name)))
        with pytest.raises(OSError, match="got: No space left on device; make room and do the same again") as caught:
            made.save(tmp_path / "model")
    assert caught.value.errno == errno.ENOSPC
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert not is_whole(tmp_path / "model")
    assert fails_at not in names(tmp_path / "model")
    assert not list((tmp_path / "model").glob(".*"))
    made.save(tmp_path / "model")
    assert names(tmp_path / "model") == FILES
    assert is_whole(tmp_path / "model")


def test_is_whole(made: SimulatedTomogram, tmp_path: Path) -> None:
    """A folder is whole when its record and all files of it are there in full length."""
    folder = tmp_path / "model"
    assert not is_whole(folder)
    made.save(folder)
    assert is_whole(folder)
    content = (folder / "class_mask.mrc").read_bytes()
    (folder / "class_mask.mrc").write_bytes(content[:-1])
    assert not is_whole(folder)
    (folder / "class_mask.mrc").unlink()
    assert not is_whole(folder)
    (folder / "class_mask.mrc").write_bytes(content)
    assert is_whole(folder)
    (folder / RECORD_FILE).unlink()
    assert not is_whole(folder)


def test_remove_parts(tmp_path: Path) -> None:
    """Files and folders under temporary names go, others stay, and so do those that are too young."""
    (tmp_path / ".a.mrc.x1.part").write_text("half")
    (tmp_path / ".copick.x2.part").mkdir()
    (tmp_path / ".copick.x2.part" / "chunk").write_text("half")
    for name in ("a.mrc", "b.part", ".hidden"):
        (tmp_path / name).write_text("whole")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".c.part").write_text("half")
    remove_parts(tmp_path, older_than=60)
    assert ".a.mrc.x1.part" in names(tmp_path)
    remove_parts(tmp_path)
    assert names(tmp_path) == {"a.mrc", "b.part", ".hidden", "below"}
    assert names(tmp_path / "below") == {".c.part"}


_SAVER = """
    import os, sys, time
    from _helpers import simulator, specimen

    def half_way(file, flush=os.fsync):
        "Cut what was written of a large file in two, as if it were half-written, and wait to be killed."
        size = os.fstat(file).st_size
        if sys.argv[2] == "stop" and size > 10_000:
            os.ftruncate(file, size // 2)
            print("half-way", flush=True)
            time.sleep(60)
        flush(file)

    os.fsync = half_way
    simulator("noisy")(specimen(3, name="thing"), seed=5).save(sys.argv[1])
"""


def saver(folder: Path, how: str, before: str = "") -> subprocess.Popen[str]:
    """A program that saves a tomogram."""
    program = textwrap.dedent(before) + textwrap.dedent(_SAVER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", program, str(folder), how], env=environment, **pipes)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_in_the_middle_of_a_file(made: SimulatedTomogram, tmp_path: Path) -> None:
    """After kill -9 while a file is written, no file with its final name is half-written; saving again is enough."""
    folder = tmp_path / "model"
    with saver(folder, "stop") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half-way\n"
        process.kill()
    (part,) = folder.glob(".*.part")
    assert part.name.startswith(".projections.mrc.")
    assert "projections.mrc" not in names(folder)
    assert UNFINISHED_FILE in names(folder)
    assert not is_whole(folder)
    assert len(read_particle_locations(folder / "particle_locations.txt")) == 5
    made.save(folder)
    assert names(folder) == FILES
    assert torch.equal(TiltSeries.read(folder).tilts, made.tiltseries)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit on the size of files")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A write that the system refuses in the middle of a file: the message says what to do, no part stays."""
    limit = """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    """
    folder = tmp_path / "model"
    with saver(folder, "go on", limit) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "model, got: File too large; make room and do the same again" in errors
    assert not list(folder.glob(".*"))
    assert not list(folder.glob("*.mrc"))
    assert not is_whole(folder)


def test_classes_without_labels(tmp_path: Path) -> None:
    """A table of particles whose classes have no labels is written with their names."""
    thing = replace(
        empty_specimen(),
        particles=ParticleTable(
            classes=np.array([2]), positions=np.array([[1.0, 2.0, 3.0]]), orientations=np.full((1, 3, 3), np.nan)
        ),
    )
    simulator()(thing, seed=0).save(tmp_path / "one")
    found = read_particle_locations(tmp_path / "one" / "particle_locations.txt")
    assert found.names == ("large",)
    np.testing.assert_allclose(found.positions, [[1.0, 2.0, 3.0]])


# --- particles in each format -----------------------------------------------------------------------------------------


@pytest.fixture
def all_oriented() -> GrandModel:
    """A specimen of three unequal sizes whose particles all have an orientation."""
    thing = specimen(4, name="thing")
    matrices = Rotation.random(len(thing.particles), random_state=2).as_matrix()
    return replace(thing, particles=replace(thing.particles, orientations=matrices))


def assert_particles(found: ParticleList, thing: GrandModel) -> None:
    """The particles of the specimen, in order."""
    assert found.names == tuple(CLASS_NAMES[int(number)] for number in thing.particles.classes)
    np.testing.assert_allclose(found.positions, thing.particles.positions, atol=1e-3)
    np.testing.assert_allclose(found.orientations, thing.particles.orientations, atol=1e-4)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_star(all_oriented: GrandModel, tmp_path: Path, version: int) -> None:
    """RELION's particles come back, for each of its versions, under the folder's name."""
    simulator()(all_oriented, seed=0).save(tmp_path / "model", formats=(f"star{version}",))
    path = tmp_path / "model" / f"particles_relion{version}.star"
    found = read_particles_star(path, voxel_size=10.0, shape=SHAPE)
    assert list(found) == ["model"]
    assert_particles(found["model"], all_oriented)


def test_deepfinder(all_oriented: GrandModel, tmp_path: Path) -> None:
    """DeepFinder's object list comes back."""
    simulator()(all_oriented, seed=0).save(tmp_path / "model", formats=("deepfinder",))
    found = read_object_list(tmp_path / "model" / "object_list.xml", class_names=CLASS_NAMES)
    assert_particles(found[0], all_oriented)


@pytest.mark.touches_global_rng  # copick does
def test_what_is_no_particle(tmp_path: Path) -> None:
    """Membranes stand in SHREC's list, which instances count by, and in no list of particles to be picked."""
    pytest.importorskip("copick")
    thing = specimen(4, name="thing")
    matrices = Rotation.random(len(thing.particles), random_state=2).as_matrix()
    matrices[thing.particles.classes == 2] = np.nan
    table = replace(thing.particles, orientations=matrices)
    thing = replace(thing, particles=table, not_particles=frozenset({2}))
    made, folder = simulator()(thing, seed=0), tmp_path / "model"
    made.save(folder, formats=("shrec", "star5", "deepfinder", "copick"))
    listed = read_particle_locations(folder / "particle_locations.txt")
    assert listed.names == ("small", "large", "small", "large", "small")
    assert np.isnan(listed.orientations[[1, 3]]).all()
    stars = read_particles_star(folder / "particles_relion5.star", voxel_size=10.0, shape=SHAPE)["model"]
    picks = read_copick_picks(folder / "copick", run="model", voxel_size=10.0)
    for found in (stars, picks, read_object_list(folder / "object_list.xml", class_names=CLASS_NAMES)[0]):
        assert found.names == ("small",) * 3
        np.testing.assert_allclose(found.positions, table.positions[::2], atol=1e-3)
    config = json.loads((folder / "copick" / "copick_config.json").read_text())
    assert {one["name"]: one["is_particle"] for one in config["pickable_objects"]}["large"] is False
    assert 2 in torch.unique(read_copick_segmentation(folder / "copick", run="model")[0])
    assert list((folder / "copick" / "ExperimentRuns" / "model" / "Picks").glob("*large*")) == []


@pytest.mark.touches_global_rng  # copick does
def test_copick(all_oriented: GrandModel, tmp_path: Path) -> None:
    """Tomograms share a copick project; one whose run was lost is not whole, and saving it again mends it."""
    pytest.importorskip("copick")
    made, project = simulator()(all_oriented, seed=0), tmp_path / "copick"
    for name in ("one", "two"):
        made.save(tmp_path / name, formats=("copick", "shrec"), copick_project=project)
    assert read_copick_runs(project) == ["one", "two"]
    assert_particles(read_copick_picks(project, run="two", voxel_size=10.0), all_oriented)
    labels, voxel_size = read_copick_segmentation(project, run="two")
    assert voxel_size == 10.0
    assert torch.equal(labels, made.labels)
    tomogram, _ = read_copick_tomogram(project, run="two", tomogram_type="noiseless")
    assert torch.equal(tomogram, made.tomogram)
    shutil.rmtree(project / "ExperimentRuns" / "one")
    (project / ".one.x.part").mkdir()
    (project / ".two.x.part").mkdir()
    assert (is_whole(tmp_path / "one"), is_whole(tmp_path / "two")) == (False, True)
    made.save(tmp_path / "one", formats=("copick", "shrec"), copick_project=project)
    assert is_whole(tmp_path / "one")
    assert [path.name for path in project.glob(".*")] == [".two.x.part"]


def test_without_copick(made: SimulatedTomogram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where copick is not installed the message says how, before anything is written."""
    monkeypatch.setattr(saving, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'found none; install it: pip install "faket_aug\[copick\]"'):
        made.save(tmp_path / "model", formats=("shrec", "copick"))
    assert names(tmp_path) == set()


@pytest.mark.touches_global_rng
def test_a_copick_project_of_its_own(all_oriented: GrandModel, tmp_path: Path) -> None:
    """Without a project that is shared, it lies within the folder, and saving without it takes its files away."""
    pytest.importorskip("copick")
    made = simulator()(all_oriented, seed=0)
    made.save(tmp_path / "one", formats=("copick",))
    assert_particles(read_copick_picks(tmp_path / "one" / "copick", run="one", voxel_size=10.0), all_oriented)
    made.save(tmp_path / "one")
    assert is_whole(tmp_path / "one")
    assert names(tmp_path / "one") == FILES


# --- what is not ours -------------------------------------------------------------------------------------------------


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    """A record that lists a file behind a link does not make saving delete it."""
    precious, folder = tmp_path / "precious", tmp_path / "made" / "t"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    made = simulator()(specimen(), seed=0)
    made.save(folder)
    (folder / "link").symlink_to(precious)
    record = json.loads((folder / "record.json").read_text())
    record["files"]["link/thesis.txt"] = 13
    record["checksum"] = None
    (folder / "record.json").write_text(json.dumps(record))
    made.save(folder)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_files_that_were_changed_are_not_replaced(tmp_path: Path) -> None:
    """What somebody has worked on since is theirs."""
    made = simulator()(specimen(), seed=0)
    made.save(tmp_path / "t")
    table = tmp_path / "t" / "particle_locations.txt"
    table.write_text(table.read_text() + "small 1 2 3 0 0 0\n")
    with pytest.raises(FileExistsError, match="particle_locations.txt was changed since it was written there; choose"):
        made.save(tmp_path / "t")
    assert table.read_text().endswith("small 1 2 3 0 0 0\n")


def test_flipped_bits_of_a_record_are_noticed(tmp_path: Path) -> None:
    """A damaged record is an error that names the file, or reads the same."""
    made = simulator()(specimen(), seed=0)
    made.save(tmp_path / "t")
    path = tmp_path / "t" / "record.json"
    whole, content = SimulationRecord.read(path), path.read_bytes()
    chance = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(content)
        data[int(chance.integers(len(data)))] ^= 1 << int(chance.integers(8))
        path.write_bytes(data)
        try:
            assert SimulationRecord.read(path) == whole
        except FileFormatError as error:
            assert "record.json" in str(error)  # noqa: PT017 - either is right
