"""copick projects on a local disk: picks, segmentations and tomograms (needs the optional package `copick`).

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
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError, check_choice, check_ndim, check_positive
from faket_aug.formats._atomic import EXISTING, flush_folder, locked, make_way, move_into_place, write_text
from faket_aug.formats._copick_files import (
    CONFIG_FILE,
    RUNS,
    PickFile,
    Project,
    Volume,
    find_config,
    is_remote,
    read_config,
)
from faket_aug.formats._text import shortened
from faket_aug.formats.particles import ParticleList, check_words, check_writable, checked_positions, numbers_of

SEGMENTATION = "labels"
USER_ID = "faket-aug"
SESSION_ID = "0"  # copick's for tools
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
    existing: str = "refuse",
) -> list[Path]:
    """Write into one run of a local copick project, and the project's configuration where it is new or grows.

    What is written is made beside its place and moved there when it is complete. All else in the run, picks of other
    users and sessions, segmentations and tomograms, stays as it is. Several runs, also from several processes, may
    share the project, as long as they share the class numbers.

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

    existing
        What happens to picks or volumes of the same name, user and session: `"refuse"`, `"aside"` or `"replace"` them.

    Returns
    -------
    The files, the configuration first.

    Raises
    ------
    FileExistsError
        If something would be overwritten, unless `existing` says otherwise.
    ImportError
        If copick is not installed.
    ValueError
        If a name has no number or becomes another's, a label has no name, only some particles of a class have an
        orientation, or the project's classes are others.
    """
    _copick()
    check_positive("voxel_size", voxel_size)
    check_choice("existing", existing, EXISTING)
    check_words([run], "names of runs")
    if Path(run).name != run or run in (".", "..") or "\0" in run:
        raise ValueError(f"expected the plain name of a run, got {run!r}; leave out folders")
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
    # Refuses what cannot be added to, before anything is written.
    _config(folder, objects)
    part = folder / f".{run}.{secrets.token_hex(6)}.part"
    try:
        part.mkdir()
        made = _copick().from_string(json.dumps(_new_config(part, objects))).new_run(run)
        _write_picks(made, particles, voxel_size, set(particles.names) - set(segmented))
        for name, volume in volumes.items():
            tomogram = made.new_voxel_spacing(voxel_size, exist_ok=True).new_tomogram(name)
            tomogram.from_numpy(volume.detach().cpu().float().numpy(), levels=1)
        if labels is not None:
            made.new_segmentation(voxel_size, SEGMENTATION, SESSION_ID, is_multilabel=True, user_id=USER_ID).from_numpy(
                labels.detach().cpu().numpy()
            )
        written = _move_units(part / RUNS / run, folder / RUNS / run, existing, aside=part / "old")
    finally:
        shutil.rmtree(part, ignore_errors=True)
    path = folder / CONFIG_FILE
    # Other processes may have added classes since: nobody's are lost.
    with locked(path):
        config = _config(folder, objects)
        # A configuration that lacks nothing stays as it is, to the letter.
        if not path.is_file() or len(config["pickable_objects"]) > _count_objects(path):
            write_text(path, json.dumps(config, indent=2) + "\n")
    return [path, *sorted(written)]


def _count_objects(path: Path) -> int:
    return len(read_config(path)["pickable_objects"])


def _move_units(made: Path, run: Path, existing: str, *, aside: Path) -> list[Path]:
    """Move what was written for a run to its place, each file of picks and each volume as one thing.

    All else in the run stays as it is.

    Returns
    -------
    The files that were written.
    """
    volumes = sorted(one for one in made.rglob("*.zarr") if one.is_dir())
    files = sorted(one for one in made.rglob("*") if one.is_file() and not any(v in one.parents for v in volumes))
    units = [(unit, run / unit.relative_to(made)) for unit in (*files, *volumes)]
    # copick marks a run by a hidden file, the same in each.
    units = [(unit, final) for unit, final in units if not (final.name.startswith(".") and final.exists())]
    flush_folder(made)
    if existing == "refuse":
        for _, final in units:
            make_way(final, existing)
    written: list[Path] = []
    for unit, final in units:
        if existing == "aside":
            make_way(final, existing)
        move_into_place(unit, final, aside=aside / unit.relative_to(made))
        written += [final] if final.is_file() else [file for file in final.rglob("*") if file.is_file()]
    return written


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
        return _new_config(folder, objects)
    config = read_config(path)
    root = config.get("overlay_root")
    if isinstance(root, str) and is_remote(root):
        raise FileFormatError(f"{path}: expected a project on disk, got overlay_root {shortened(root)}; download it")
    known = {entry["name"]: entry.get("label") for entry in config["pickable_objects"]}
    for entry in objects:
        name, label = entry["name"], entry["label"]
        if known.get(name, label) != label or (label in known.values() and name not in known):
            raise ValueError(
                f"{path}: expected the project's classes, {known}, got {name} as {label}; write to another folder"
            )
    config["pickable_objects"] += [entry for entry in objects if entry["name"] not in known]
    return config


def _new_config(folder: Path, objects: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": folder.resolve().name,
        "version": str(_copick().__version__),
        "config_type": "filesystem",
        "user_id": USER_ID,
        "pickable_objects": objects,
        "overlay_root": f"local://{folder.resolve()}",
        "overlay_fs_args": {"auto_mkdir": True},
    }


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
            CopickPoint(
                location=places[row],
                transformation_=transforms[row].tolist(),
                instance_id=row + 1,
                # copick's own score of points without one.
                score=1.0 if particles.scores is None else float(particles.scores[row]),
            )
            for row in rows
        ]
        picks.store()


def read_copick_runs(path: str | Path) -> list[str]:
    """List the runs (tomograms) of a local copick project, given its configuration or its folder; sorted."""
    return Project.open(path).runs()


def read_copick_classes(path: str | Path) -> dict[int, str]:
    """Read class numbers and names of a copick project's objects; of its own projects, the original names."""
    config = find_copick_config(path)
    found: dict[int, str] = {}
    for entry in read_config(config)["pickable_objects"]:
        if entry.get("label") is not None:
            number, name = int(entry["label"]), _class_name(entry)
            if found.setdefault(number, name) != name:
                raise FileFormatError(f"{config}: expected each label once, got {number} of {found[number]} and {name}")
    return found


def read_copick_users(path: str | Path, *, run: str) -> list[tuple[str, str]]:
    """List whose picks there are in a run of a local copick project: (user, session), sorted."""
    return sorted({(one.user, one.session) for one in Project.open(path).picks(run)})


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
    files without `trust_orientation` have no orientation, and neither have those that have copick's default, the
    identity (files of this package excepted, which says when it knows none).

    Raises
    ------
    FileFormatError
        If there is no such run, user or session, an object has several sets of picks, a unit is not Å, a matrix is no
        rotation, or a file is damaged.
    """
    check_positive("voxel_size", voxel_size)
    project = Project.open(path)
    where = f"{project.path}, run {run}"
    every = project.picks(run)
    sets: dict[str, list[PickFile]] = {}
    for picks in every:
        if user_id in (None, picks.user) and session_id in (None, picks.session):
            sets.setdefault(picks.name, []).append(picks)
    if not sets and (user_id is not None or session_id is not None):
        whose = {"user_id": user_id, "session_id": session_id}
        wanted = " and ".join(f"`{key}` {value!r}" for key, value in whose.items() if value is not None)
        listed = ", ".join(sorted({f"{one.user}/{one.session}" for one in every})) or "none"
        raise FileFormatError(f"{where}: expected picks of {wanted}, got those of (user/session) {listed}")
    for name, several in sets.items():
        if len(several) > 1:
            found = ", ".join(f"{one.user}/{one.session}" for one in several)
            raise FileFormatError(
                f"{where}: expected one set of picks of {name}, got {found}; set `user_id` and `session_id`"
            )
    names = {entry["name"]: _class_name(entry) for entry in project.config["pickable_objects"]}
    rows = [row for name in sorted(sets) for row in _pick_rows(sets[name][0], names.get(name, name), voxel_size)]
    ids = [row[0] for row in rows]
    if len(set(ids)) == len(ids) and 0 not in ids:
        rows.sort(key=lambda row: row[0])
    return ParticleList(
        tuple(row[1] for row in rows),
        np.array([row[2] for row in rows]).reshape(-1, 3),
        np.array([row[3] for row in rows]).reshape(-1, 3, 3),
    )


def _pick_rows(picks: PickFile, name: str, voxel_size: float) -> list[tuple[int, str, FloatArray, FloatArray]]:
    """Read a set of picks as (instance, class name, place (z, y, x) in voxels, rotation)."""
    unit, trusted = picks.content.get("unit", "angstrom"), picks.content.get("trust_orientation", True)
    if unit != "angstrom":
        raise FileFormatError(f"{picks.path}: expected places of {name} in angstrom, got {shortened(unit)}")
    rows = []
    for number, (instance, location, transform) in enumerate(picks.rows(), start=1):
        rotation = transform[:3, :3]
        # What nobody turned has copick's default, which is no measurement.
        known = bool(trusted) and (picks.user == USER_ID or not np.array_equal(rotation, np.eye(3)))
        turned_back = rotation @ rotation.T * np.sign(np.linalg.det(rotation))
        if known and not np.allclose(turned_back, np.eye(3), atol=1e-3):
            raise FileFormatError(
                f"{picks.path}, point {number}: expected rotations for {name}, got {rotation.tolist()}"
            )
        place = checked_positions((location + transform[:3, 3])[None, ::-1] / voxel_size, picks.path)[0]
        rows.append((instance, name, place, rotation if known else np.full((3, 3), np.nan)))
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
    project = Project.open(path)
    wanted = {"name": name, "user": user_id, "session": session_id}
    found = {
        f"{one.name} of {one.user}/{one.session} at {one.voxel_size:g} Å": one
        for one in project.segmentations(run)
        if all(value in (None, getattr(one, key)) for key, value in wanted.items())
    }
    expected = f"{project.path}, run {run}: expected one multilabel segmentation"
    return _only(found, voxel_size, expected, ["name", "user_id", "session_id", "voxel_size"])


def read_copick_tomogram(
    path: str | Path, *, run: str, tomogram_type: str | None = None, voxel_size: float | None = None
) -> tuple[Tensor, float]:
    """Read a tomogram of one run of a local copick project.

    The arguments choose one where there are several; `path` is the configuration or its folder, `voxel_size` in Å.

    Returns
    -------
    The tomogram `(z, y, x)`, as stored, and its voxel size in Å; an error as in `read_copick_segmentation`.
    """
    project = Project.open(path)
    found = {
        f"{one.name} at {one.voxel_size:g} Å": one
        for one in project.tomograms(run)
        if tomogram_type in (None, one.name)
    }
    expected = f"{project.path}, run {run}: expected one tomogram"
    return _only(found, voxel_size, expected, ["tomogram_type", "voxel_size"])


def _only(
    found: Mapping[str, Volume], voxel_size: float | None, expected: str, settings: list[str]
) -> tuple[Tensor, float]:
    """Read the only volume of those found that has the voxel size, and the exact size from its OME-Zarr."""
    # copick's own voxel sizes are rounded to 0.001 Å.
    chosen = {key: one for key, one in found.items() if voxel_size is None or abs(one.voxel_size - voxel_size) < 1e-3}
    if len(chosen) != 1:
        listed = ", ".join(chosen or found) or "none"
        raise FileFormatError(f"{expected}, got {listed}; set {', '.join(f'`{name}`' for name in settings)}")
    (volume,) = chosen.values()
    _copick()
    values, size = volume.read()
    return torch.from_numpy(values), size


def find_copick_config(path: str | Path) -> Path:
    """Find the configuration of a copick project: the file itself, or the one such file of a folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    return find_config(path)


def _class_name(entry: Mapping[str, Any]) -> str:
    ours = (entry.get("metadata") or {}).get(_METADATA)
    return str(ours["name"] if isinstance(ours, Mapping) and "name" in ours else entry["name"])
