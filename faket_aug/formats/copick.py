"""copick projects on a local disk: picks, segmentations and tomograms, by way of the optional package `copick`.

A pick's `location` is in Å from the centre of the tomogram's first voxel (index times voxel size), (x, y, z); its
`transformation_` is a 4 x 4 matrix from the object to the tomogram whose rotation acts on column vectors (x, y, z) and
whose translation, in Å, adds to the location. `trust_orientation` says whether a file's rotations mean anything.
Segmentations and tomograms are OME-Zarr, (z, y, x), in Å.

References
----------
copick 1.31, `copick.models`: `CopickPoint`, `CopickPicks.full_positions`, `CopickPicksFile`, and `copick.util.relion`,
which takes the centre of a tomogram to be size / 2 voxels.
"""

from __future__ import annotations

import colorsys
import json
import random
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_ndim, check_positive
from faket_aug.formats._atomic import locked, move_folder, write_text
from faket_aug.formats.particles import ParticleList, check_words, check_writable, numbers_of

FloatArray = npt.NDArray[np.float64]

CONFIG_FILE = "copick_config.json"
SEGMENTATION = "labels"
USER_ID = "faket-aug"
SESSION_ID = "0"  # copick's for tools
_RUNS = "ExperimentRuns"
#: Where a class's own name is kept: copick's names may hold no underscore.
_METADATA = "faket_aug"


def write_copick(
    folder: str | Path,
    *,
    run: str,
    particles: ParticleList,
    class_numbers: Mapping[str, int],
    voxel_size: float,
    labels: Tensor | None = None,
    tomograms: Mapping[str, Tensor] | None = None,
    segmented: Collection[str] = (),
) -> list[Path]:
    """Write one run of a local copick project, and the project's configuration where it is new or grows.

    The run is made beside its place and moved there when it is whole; one of the same name is replaced. Several runs,
    also from several processes, may share the project, as long as they share the class numbers.

    Parameters
    ----------
    folder
        The project's folder; it is made where it is missing.
    run
        The tomogram's name.
    particles
        Its particles; the 1-based row of each becomes its `instance_id`.
    class_numbers
        Class numbers by name, 1 or more; they become the labels of the project's objects.
    voxel_size
        Å, of the labels and tomograms, in which the particles' places count. copick rounds it to 0.001 in names of
        folders; positions and OME-Zarr keep all of it.
    labels
        `(z, y, x)`, class numbers, 0 is background; written as a multilabel segmentation named `labels`.
    tomograms
        `(z, y, x)`, by copick's type of tomogram (`"faket"`).
    segmented
        Names of classes that are no particles (membranes): copick shows them as segmentations, and their rows, if they
        have any, are no picks.

    Returns
    -------
    The files, the configuration first.

    Raises
    ------
    ImportError
        If copick is not installed.
    ValueError
        If a name has no number or becomes another's, a label has no name, only some particles of a class have an
        orientation, or the project's classes are others.
    """
    _copick()
    check_positive("voxel_size", voxel_size)
    check_words([run], "names of runs")
    check_writable(particles)
    numbers_of(particles.names, class_numbers)
    volumes = dict(tomograms or {})
    for name, volume in (volumes | ({} if labels is None else {SEGMENTATION: labels})).items():
        check_ndim(name, volume, "z y x")
    found = [] if labels is None else torch.unique(labels.detach().cpu()).tolist()
    if unknown := sorted(set(found) - {0, *class_numbers.values()}):
        raise ValueError(f"expected labels of `class_numbers` ({dict(class_numbers)}), got {unknown}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    objects = _objects(class_numbers, segmented)
    config = _config(folder, objects)
    part = Path(tempfile.mkdtemp(dir=folder, prefix=f".{run}.", suffix=".part"))
    try:
        made = _copick().from_string(json.dumps(config | {"overlay_root": f"local://{part.resolve()}"})).new_run(run)
        _write_picks(made, particles, voxel_size, set(particles.names) - set(segmented))
        for name, volume in volumes.items():
            tomogram = made.new_voxel_spacing(voxel_size, exist_ok=True).new_tomogram(name)
            tomogram.from_numpy(volume.detach().cpu().float().numpy(), levels=1)
        if labels is not None:
            made.new_segmentation(voxel_size, SEGMENTATION, SESSION_ID, is_multilabel=True, user_id=USER_ID).from_numpy(
                labels.detach().cpu().numpy()
            )
        move_folder(part / _RUNS / run, folder / _RUNS / run, aside=part / "old")
    finally:
        shutil.rmtree(part, ignore_errors=True)
    path = folder / CONFIG_FILE
    # Other processes may have added classes since: nobody's are lost.
    with locked(path):
        text = json.dumps(_config(folder, objects), indent=2) + "\n"
        if not path.is_file() or path.read_text() != text:
            write_text(path, text)
    return [path, *sorted(file for file in (folder / _RUNS / run).rglob("*") if file.is_file())]


def _copick() -> Any:
    # What copick imports draws from Python's generator, which is the user's.
    state = random.getstate()
    try:
        import copick
    except ImportError as error:
        raise ImportError(
            'expected the optional package copick for copick projects; install it: pip install "faket_aug[copick]"'
        ) from error
    finally:
        random.setstate(state)
    return copick


def _word(name: str) -> str:
    """Turn a class name into one that copick takes."""
    from copick.util.escape import sanitize_name

    return str(sanitize_name(name, suppress_warnings=True))


def check_copick_names(names: Collection[str]) -> None:
    """Raise a `ValueError` unless class names still differ once copick has made them its own."""
    _copick()
    if len({_word(name) for name in names}) < len(names):
        raise ValueError(f"expected class names that differ once copick turns _ into -, got {', '.join(names)}")


def _objects(class_numbers: Mapping[str, int], segmented: Collection[str]) -> list[dict[str, Any]]:
    check_copick_names(class_numbers)
    objects = []
    for name, number in class_numbers.items():
        # Colours far apart for neighbouring numbers: steps of the golden ratio around the wheel.
        colour = [round(255 * part) for part in colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 0.75, 0.95)]
        shown = {"is_particle": name not in segmented, "color": [*colour, 255], "radius": 100.0}
        objects.append({"name": _word(name), "label": int(number), **shown, "metadata": {_METADATA: {"name": name}}})
    return objects


def _config(folder: Path, objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the project's configuration, or add to the one that is there what it lacks."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {
            "name": folder.resolve().name,
            "version": str(_copick().__version__),
            "config_type": "filesystem",
            "user_id": USER_ID,
            "pickable_objects": objects,
            "overlay_root": f"local://{folder.resolve()}",
            "overlay_fs_args": {"auto_mkdir": True},
        }
    config = _read_config(path)
    known = {entry["name"]: entry.get("label") for entry in config["pickable_objects"]}
    for entry in objects:
        name, label = entry["name"], entry["label"]
        if known.get(name, label) != label or (label in known.values() and name not in known):
            raise ValueError(
                f"{path}: expected the project's classes, {known}, got {name} as {label}; write to another folder"
            )
    config["pickable_objects"] += [entry for entry in objects if entry["name"] not in known]
    return config


def _write_picks(run: Any, particles: ParticleList, voxel_size: float, picked: Collection[str]) -> None:
    from copick.models import CopickLocation, CopickPoint

    places = [CopickLocation(x=x, y=y, z=z) for z, y, x in (particles.positions * voxel_size).tolist()]
    transforms = np.tile(np.eye(4), (len(particles), 1, 1))
    transforms[particles.oriented, :3, :3] = particles.orientations[particles.oriented]
    for name in dict.fromkeys(name for name in particles.names if name in picked):
        rows = [row for row, other in enumerate(particles.names) if other == name]
        oriented = particles.oriented[rows]
        if oriented.any() != oriented.all():
            raise ValueError(
                f"expected an orientation for all or for none of the {len(rows)} particles of {name}, got "
                f"{int(oriented.sum())}; copick marks whole files as oriented or not"
            )
        picks = run.new_picks(_word(name), session_id=SESSION_ID, user_id=USER_ID)
        picks.meta.trust_orientation = bool(oriented.all())
        picks.meta.voxel_spacing = voxel_size
        picks.points = [
            CopickPoint(location=places[row], transformation_=transforms[row].tolist(), instance_id=row + 1)
            for row in rows
        ]
        picks.store()


def read_copick_runs(path: str | Path) -> list[str]:
    """List the runs (tomograms) of a local copick project, given its configuration or its folder; sorted."""
    return sorted(run.name for run in _project(path).runs)


def read_copick_classes(path: str | Path) -> dict[int, str]:
    """Read class numbers and names of a copick project's objects; of its own projects, the original names."""
    objects = _read_config(find_copick_config(path))["pickable_objects"]
    return {int(entry["label"]): _class_name(entry) for entry in objects if entry.get("label") is not None}


def read_copick_picks(
    path: str | Path, *, run: str, voxel_size: float, user_id: str | None = None, session_id: str | None = None
) -> ParticleList:
    """Read the picks of one run of a local copick project.

    Parameters
    ----------
    path
        The configuration, or the folder that holds one.
    run
        The run's name.
    voxel_size
        Å, of the tomogram in whose voxels places are wanted.
    user_id, session_id
        Whose picks; needed where an object has several sets.

    Returns
    -------
    The particles in the order of their `instance_id`, where each has one of its own, else object by object. Those of
    files without `trust_orientation` have no orientation.

    Raises
    ------
    FileFormatError
        If there is no such run, an object has several sets of picks, a unit is not Å or a matrix is no rotation.
    """
    check_positive("voxel_size", voxel_size)
    where = f"{path}, run {run}"
    sets: dict[str, list[Any]] = {}
    for picks in _run(path, run).picks:
        if user_id in (None, picks.user_id) and session_id in (None, picks.session_id):
            sets.setdefault(picks.pickable_object_name, []).append(picks)
    for name, several in sets.items():
        if len(several) > 1:
            found = ", ".join(f"{one.user_id}/{one.session_id}" for one in several)
            raise FileFormatError(
                f"{where}: expected one set of picks of {name}, got {found}; set `user_id` and `session_id`"
            )
    names = {e["name"]: _class_name(e) for e in _read_config(find_copick_config(path))["pickable_objects"]}
    rows = [row for name in sorted(sets) for row in _pick_rows(sets[name][0], where, names.get(name, name))]
    ids = [row[0] for row in rows]
    if len(set(ids)) == len(ids) and 0 not in ids:
        rows.sort(key=lambda row: row[0])
    return ParticleList(
        tuple(row[1] for row in rows),
        np.array([row[2] for row in rows]).reshape(-1, 3)[:, ::-1] / voxel_size,
        np.array([row[3] for row in rows]).reshape(-1, 3, 3),
    )


def _pick_rows(picks: Any, where: str, name: str) -> list[tuple[int, str, FloatArray, FloatArray]]:
    """Read a set of picks as (instance, class name, place (x, y, z) in Å, rotation)."""
    meta = picks.load()
    if meta.unit != "angstrom":
        raise FileFormatError(f"{where}: expected places of {name} in angstrom, got {meta.unit}")
    rows = []
    for point in meta.points or ():
        transform = np.array(point.transformation_ if point.transformation_ is not None else np.eye(4))
        rotation = transform[:3, :3] if meta.trust_orientation else np.full((3, 3), np.nan)
        turned_back = rotation @ rotation.T * np.sign(np.linalg.det(transform[:3, :3]))
        if meta.trust_orientation and not np.allclose(turned_back, np.eye(3), atol=1e-3):
            raise FileFormatError(f"{where}: expected rotations for {name}, got {rotation.tolist()}")
        place = np.array([point.location.x, point.location.y, point.location.z]) + transform[:3, 3]
        rows.append((int(point.instance_id or 0), name, place, rotation))
    return rows


def read_copick_segmentation(
    path: str | Path,
    *,
    run: str,
    name: str | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
    voxel_size: float | None = None,
) -> tuple[Tensor, float]:
    """Read a multilabel segmentation of one run of a local copick project.

    The arguments choose one where there are several; `path` is the configuration or its folder, `voxel_size` in Å.

    Returns
    -------
    The labels `(z, y, x)`, as stored, and their voxel size in Å.

    Raises
    ------
    FileFormatError
        If there is none, or more than one.
    """
    wanted = {"name": name, "user_id": user_id, "session_id": session_id}
    found = {
        f"{one.name} of {one.user_id}/{one.session_id} at {one.voxel_size} Å": (one, one.voxel_size)
        for one in _run(path, run).segmentations
        if one.is_multilabel and all(value in (None, getattr(one, key)) for key, value in wanted.items())
    }
    return _only(found, voxel_size, f"{path}, run {run}: expected one multilabel segmentation", [*wanted, "voxel_size"])


def read_copick_tomogram(
    path: str | Path, *, run: str, tomogram_type: str | None = None, voxel_size: float | None = None
) -> tuple[Tensor, float]:
    """Read a tomogram of one run of a local copick project.

    The arguments choose one where there are several; `path` is the configuration or its folder, `voxel_size` in Å.

    Returns
    -------
    The tomogram `(z, y, x)`, as stored, and its voxel size in Å; an error as in `read_copick_segmentation`.
    """
    found = {
        f"{one.tomo_type} at {spacing.voxel_size} Å": (one, spacing.voxel_size)
        for spacing in _run(path, run).voxel_spacings
        for one in spacing.tomograms
        if tomogram_type in (None, one.tomo_type)
    }
    return _only(found, voxel_size, f"{path}, run {run}: expected one tomogram", ["tomogram_type", "voxel_size"])


def _only(
    found: Mapping[str, tuple[Any, float]], voxel_size: float | None, expected: str, settings: list[str]
) -> tuple[Tensor, float]:
    """Read the only volume of those found that has the voxel size, and the exact size from its OME-Zarr."""
    import zarr

    # copick's own voxel sizes are rounded to 0.001 Å.
    chosen = {key: one for key, one in found.items() if voxel_size is None or abs(one[1] - voxel_size) < 1e-3}
    if len(chosen) != 1:
        listed = ", ".join(chosen or found) or "none"
        raise FileFormatError(f"{expected}, got {listed}; set {', '.join(f'`{name}`' for name in settings)}")
    ((volume, rounded),) = chosen.values()
    level = zarr.open(volume.zarr(), mode="r").attrs["multiscales"][0]["datasets"][0]
    exact = next((step["scale"][-1] for step in level["coordinateTransformations"] if step["type"] == "scale"), rounded)
    return torch.from_numpy(volume.numpy()), float(exact) if abs(exact - rounded) < 1e-3 else float(rounded)


def find_copick_config(path: str | Path) -> Path:
    """Find the configuration of a copick project: the file itself, or the one such file of a folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    path = Path(path)
    candidates = [path] if path.is_file() else [path / CONFIG_FILE, *sorted(path.glob("*.json"))]
    for candidate in candidates:
        if candidate.is_file() and "pickable_objects" in candidate.read_text(errors="replace"):
            return candidate
    raise FileNotFoundError(f"{path}: expected the configuration of a copick project ({CONFIG_FILE}), found none")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
        [entry["name"] for entry in config["pickable_objects"]]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise FileFormatError(f"{path}: expected a copick configuration with `pickable_objects` ({error})") from None
    return dict(config)


def _class_name(entry: Mapping[str, Any]) -> str:
    ours = (entry.get("metadata") or {}).get(_METADATA)
    return str(ours["name"] if isinstance(ours, Mapping) and "name" in ours else entry["name"])


def _project(path: str | Path) -> Any:
    config_path = find_copick_config(path)
    config = _read_config(config_path)
    if config.get("config_type", "filesystem") != "filesystem":
        raise FileFormatError(
            f"{config_path}: expected a project on disk (config_type filesystem), got {config['config_type']}; "
            "download it first"
        )
    # The configuration names its folder absolutely; one that was moved lies where its configuration does.
    root = Path(str(config.get("overlay_root", "")).removeprefix("local://"))
    if not (root / _RUNS).is_dir() and (config_path.parent / _RUNS).is_dir():
        config["overlay_root"] = f"local://{config_path.parent.resolve()}"
    return _copick().from_string(json.dumps({"config_type": "filesystem"} | config))


def _run(path: str | Path, name: str) -> Any:
    project = _project(path)
    found = project.get_run(name)
    if found is None:
        runs = ", ".join(run.name for run in project.runs) or "none"
        raise FileFormatError(f"{path}: expected one of the project's runs ({runs}), got {name!r}")
    return found
