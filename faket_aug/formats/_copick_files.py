"""The files of a local copick project as they lie on disk: configuration, runs, picks, and volumes in OME-Zarr."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError
from faket_aug.formats._text import MAX_COORDINATE, as_number, as_whole, read_text, shortened

CONFIG_FILE = "copick_config.json"
RUNS = "ExperimentRuns"
_MULTILABEL = "-multilabel"
#: What a volume may take in memory: times the bytes on disk (chunks of zeros may be left out), and at least.
_MOST_PACKED, _LEAST_UNPACKED = 2000, 2**30


def read_json(path: Path, what: str) -> Any:
    """Read JSON, or raise a `FileFormatError` that names the file."""
    try:
        return json.loads(read_text(path, what), parse_int=_whole)
    except (ValueError, RecursionError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path}: expected {what} in JSON, got what cannot be read ({error})") from None


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else math.inf


# --- the project ------------------------------------------------------------------------------------------------------


def find_config(path: str | Path) -> Path:
    """Find the configuration of a copick project: the file itself, or the one such file of a folder."""
    path = Path(path)
    candidates = [path] if path.is_file() else [path / CONFIG_FILE, *sorted(path.glob("*.json"))]
    for candidate in candidates:
        if candidate.is_file() and _is_config(candidate, certain=candidate == path):
            return candidate
    raise FileNotFoundError(f"{path}: expected the configuration of a copick project ({CONFIG_FILE}), found none")


def _is_config(path: Path, *, certain: bool) -> bool:
    """Whether a file is a configuration; of those that just lie in a folder one that is no text is none."""
    try:
        return "pickable_objects" in read_text(path, "a copick configuration")
    except FileFormatError:
        if certain:
            raise
        return False


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration whose objects have names, and whole numbers as labels if any."""
    expected = f"{path}: expected a copick configuration with `pickable_objects`"
    config = read_json(path, "a copick configuration with `pickable_objects`")
    objects = config.get("pickable_objects") if isinstance(config, dict) else None
    if not isinstance(objects, list):
        raise FileFormatError(f"{expected}, a list, got {shortened(objects)}")
    for entry in objects:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise FileFormatError(f"{expected} that have a `name`, got {shortened(entry)}")
        label = entry.get("label")
        if label is not None and (isinstance(label, bool) or (number := as_whole(label)) is None or number < 1):
            raise FileFormatError(
                f"{expected} with whole numbers of 1 or more as `label`, got {shortened(repr(label))} for "
                f"{shortened(entry['name'])}"
            )
    return dict(config)


@dataclass(frozen=True)
class Project:
    """A project on disk: its configuration, and the folders that hold runs, of which the first goes before."""

    path: Path
    config: Mapping[str, Any]
    roots: tuple[Path, ...]

    @classmethod
    def open(cls, path: str | Path) -> Project:
        """Open a project, given its configuration or folder.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If there is none, or its runs are not on this disk; the message says where they were looked for.
        """
        config_path = find_config(path)
        config = read_config(config_path)
        kind = config.get("config_type", "filesystem")
        if kind != "filesystem":
            raise FileFormatError(
                f"{config_path}: expected a project on disk (config_type filesystem), got {kind}; download it first"
            )
        names = [name for name in ("overlay_root", "static_root") if config.get(name)]
        roots = [root for name in names if (root := _root(config_path, name, str(config[name]))) is not None]
        if not roots and (config_path.parent / RUNS).is_dir():
            roots = [config_path.parent]
        if not roots:
            given = ", ".join(f"{name} {config[name]}" for name in names) or "no overlay_root"
            raise FileNotFoundError(
                f"{config_path}: expected the project's runs, a folder {RUNS} in its overlay_root or beside the "
                f"configuration, found none ({given}); correct overlay_root"
            )
        return cls(config_path, config, tuple(dict.fromkeys(roots)))

    def runs(self) -> list[str]:
        """List the runs, sorted."""
        folders = {folder.name for root in self.roots for folder in (root / RUNS).iterdir() if folder.is_dir()}
        return sorted(name for name in folders if not name.startswith("."))

    def folders(self, run: str) -> list[Path]:
        """Find the folders of a run; an unknown one is an error that lists the runs."""
        runs = self.runs()
        if run not in runs:
            listed = ", ".join(runs) or "none"
            raise FileFormatError(f"{self.path}: expected one of the project's runs ({listed}), got {run!r}")
        return [root / RUNS / run for root in self.roots if (root / RUNS / run).is_dir()]

    def picks(self, run: str) -> list[PickFile]:
        """List the files of picks of a run, by their names."""
        found: dict[str, PickFile] = {}
        for folder in self.folders(run):
            for path in sorted((folder / "Picks").glob("*.json")):
                if not path.name.startswith("."):
                    found.setdefault(path.name, PickFile.read(path))
        return list(found.values())

    def segmentations(self, run: str) -> list[Volume]:
        """List the multilabel segmentations of a run."""
        found: dict[str, Volume] = {}
        for folder in self.folders(run):
            for path in sorted((folder / "Segmentations").glob(f"*{_MULTILABEL}.zarr")):
                words = path.name.removesuffix(f"{_MULTILABEL}.zarr").split("_", 3)
                size = as_number(words[0])
                if len(words) != 4 or not size > 0:
                    raise FileFormatError(
                        f"{path}: expected a segmentation named <voxel size>_<user>_<session>_<name>{_MULTILABEL}"
                        f".zarr, got {path.name}; rename it"
                    )
                found.setdefault(path.name, Volume(path, size, words[3], words[1], words[2]))
        return list(found.values())

    def tomograms(self, run: str) -> list[Volume]:
        """List the tomograms of a run."""
        found: dict[str, Volume] = {}
        for folder in self.folders(run):
            for spacing in sorted(folder.glob("VoxelSpacing*")):
                size = as_number(spacing.name.removeprefix("VoxelSpacing"))
                if not size > 0:
                    raise FileFormatError(f"{spacing}: expected a folder named VoxelSpacing<Å>, got {spacing.name}")
                for path in sorted(spacing.glob("*.zarr")):
                    if not path.name.startswith(".") and "features" not in path.name:
                        found.setdefault(f"{spacing.name}/{path.name}", Volume(path, size, path.stem))
        return list(found.values())


def is_remote(root: str) -> bool:
    """Tell whether a root is on no disk of this machine; no connection is opened to look."""
    return "://" in _local(root)


def _local(root: str) -> str:
    return root.removeprefix("local://").removeprefix("file://")


def _root(config: Path, name: str, given: str) -> Path | None:
    """Find the folder of an overlay or static root; one of another machine lies where its configuration does."""
    place = _local(given)
    if is_remote(given):
        raise FileFormatError(f"{config}: expected a project on disk, got {name} {given}; download it first")
    # Absolute, or from where the program runs, as copick takes it; else beside the configuration, by its own name.
    folders = [Path(place), config.parent / place, config.parent / Path(place.rstrip("/\\").replace("\\", "/")).name]
    if name == "overlay_root":
        folders.append(config.parent)
        within = [one.parent for one in config.parent.glob(f"*/{RUNS}")]
        folders += within if len(within) == 1 else []
    try:
        return next((folder.resolve() for folder in folders if (folder / RUNS).is_dir()), None)
    except (OSError, ValueError) as error:
        # A name that is too long, for example.
        raise FileFormatError(
            f"{config}: expected a folder as {name}, got {shortened(given)} ({type(error).__name__})"
        ) from error


# --- picks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PickFile:
    """A file of picks: whose they are, of which object, and the content."""

    path: Path
    user: str
    session: str
    name: str
    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> PickFile:
        """Read a file named `<user>_<session>_<object>.json`, or, as in some downloads, `<object>.json`."""
        content = read_json(path, "copick's picks")
        if not isinstance(content, dict) or not isinstance(content.get("points") or [], list):
            raise FileFormatError(f"{path}: expected copick's picks with a list of `points`, got others")
        words = path.stem.split("_", 2)
        if len(words) < 3:
            named = content.get("pickable_object_name") or path.stem
            words = [*(str(content.get(key) or "") for key in ("user_id", "session_id")), str(named)]
        return cls(path, words[0], words[1], words[2], content)

    def rows(self) -> list[tuple[int, FloatArray, FloatArray]]:
        """Read the points as (instance, place (x, y, z) in Å, matrix `(4, 4)`)."""
        return [self._row(number, point) for number, point in enumerate(self.content.get("points") or (), start=1)]

    def _row(self, number: int, point: Any) -> tuple[int, FloatArray, FloatArray]:
        where = f"{self.path}, point {number}"
        location = point.get("location") if isinstance(point, dict) else None
        if not isinstance(location, dict):
            raise FileFormatError(f"{where}: expected a `location` with x, y and z, got {shortened(point)}")
        place = np.array([as_number(location.get(axis, "")) for axis in "xyz"])
        given = point.get("transformation_")
        matrix = np.eye(4) if given is None else _matrix(given)
        instance = as_whole(point.get("instance_id") or 0)
        # Å may be a hundred times as many as voxels.
        if matrix is None or instance is None or not (np.abs(place) <= 100 * MAX_COORDINATE).all():
            raise FileFormatError(
                f"{where}: expected numbers as location, instance_id and transformation_ (4 x 4), got "
                f"{shortened(point)}"
            )
        return instance, place, matrix


def _matrix(given: Any) -> FloatArray | None:
    try:
        values = np.array([[as_number(value) for value in row] for row in given])
    except (TypeError, ValueError):
        return None
    return values if values.shape == (4, 4) and np.isfinite(values).all() else None


# --- volumes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Volume:
    """A volume in OME-Zarr: where it is, its voxel size in Å, rounded by copick, and whose it is."""

    path: Path
    voxel_size: float
    name: str
    user: str = ""
    session: str = ""

    def read(self) -> tuple[npt.NDArray[Any], float]:
        """Read the finest level `(z, y, x)`, and the exact voxel size where the file holds one."""
        import zarr

        if (self.path / "zarr.json").exists() and int(zarr.__version__.split(".")[0]) < 3:
            raise FileFormatError(
                f"{self.path}: expected OME-Zarr 0.4 (zarr format 2), got OME-Zarr 0.5 (zarr format 3), which the "
                f"installed zarr {zarr.__version__} cannot read; install zarr 3, or convert the file"
            )
        try:
            array, scale = self._level(zarr.open(str(self.path), mode="r"))
            self._check(array)
            values = np.asarray(array[...])
        except FileFormatError:
            raise
        except Exception as error:
            # zarr, its codecs and the disk have many errors, few of which name the file.
            raise FileFormatError(
                f"{self.path}: expected a volume in OME-Zarr, got one that cannot be read ({type(error).__name__}: "
                f"{shortened(error)})"
            ) from error
        near = scale is not None and abs(scale - self.voxel_size) < 1e-3
        size = scale if near and scale is not None else self.voxel_size
        return _for_torch(values, self.path), float(size)

    def _level(self, opened: Any) -> tuple[Any, float | None]:
        """Find the array of the finest level and its voxel size, which may both not be told."""
        if hasattr(opened, "dtype"):
            return opened, None
        attributes = dict(opened.attrs)
        scales = attributes.get("multiscales") or dict(attributes.get("ome") or {}).get("multiscales") or [{}]
        level = (scales[0].get("datasets") or [{}])[0]
        steps = level.get("coordinateTransformations") or []
        scale = next((as_number(step["scale"][-1]) for step in steps if step.get("type") == "scale"), math.nan)
        return opened[level.get("path", "0")], None if math.isnan(scale) else scale

    def _check(self, array: Any) -> None:
        size = math.prod(array.shape) * array.dtype.itemsize
        stored = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        if size > max(_LEAST_UNPACKED, _MOST_PACKED * stored):
            raise FileFormatError(
                f"{self.path}: expected a volume that its {stored} bytes can hold, got a shape of {array.shape}; the "
                "file is damaged"
            )
        if len(array.shape) < 3 or math.prod(array.shape) == 0 or set(array.shape[:-3]) - {1}:
            raise FileFormatError(f"{self.path}: expected a volume of three axes (z, y, x), got shape {array.shape}")


def _for_torch(values: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """Turn what torch cannot compute with (unsigned integers, other byte orders) into what it can."""
    values = values.reshape(values.shape[-3:])
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and size > 1:
        return values.astype(np.int32 if size == 2 else np.int64)
    if kind == "b":
        return values.astype(np.uint8)
    if kind not in "uif":
        raise FileFormatError(f"{path}: expected numbers, got {values.dtype}")
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
