"""Lists of particles in any format that is read, found by what lies at a path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from faket_aug._checks import FileFormatError, check_positive
from faket_aug.formats import copick
from faket_aug.formats._text import find_name
from faket_aug.formats.deepfinder import read_object_list
from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.formats.particles import ParticleList, read_particles_csv
from faket_aug.formats.shrec import find_class_names, read_particle_locations
from faket_aug.formats.star import (
    Shape,
    has_tomogram_names,
    read_particles_star,
    read_star_voxel_size,
    star_tomogram_names,
)

LIST_SUFFIXES = (".star", ".xml", ".csv", ".tsv", ".txt")
#: The files of a folder in SHREC's layout: the list, and masks that tell in which voxels it counts.
LOCATIONS = "particle_locations.txt"
_MASKS = ("occupancy_mask.mrc", "class_mask.mrc")
#: Text files beside lists that are none.
_NO_LISTS = ("class_conversion_table", "readme", "license")
#: Bytes of a JSON file in which a copick project says that it is one.
_LOOKED_AT = 2**20


@dataclass(frozen=True, kw_only=True)
class FoundParticles:
    """The particles of one tomogram, and what their file says of it.

    Parameters
    ----------
    particles
        The particles.
    voxel_size
        Å, in which positions count; 0 where neither the file nor the user says it.
    tomogram
        The tomogram's name, where the file has one.
    source
        For messages.
    folder
        The folder in SHREC's layout that holds the list, if it is one.
    """

    particles: ParticleList
    voxel_size: float
    source: str
    tomogram: str | None = None
    folder: Path | None = None


class OtherTomogramsError(FileFormatError):
    """A list holds several tomograms and none was chosen, or others only."""


def find_particles(
    path: str | Path,
    *,
    tomogram: str | None = None,
    voxel_size: float | None = None,
    shape: Shape | None = None,
    class_names: Mapping[int, str] | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
) -> FoundParticles:
    """Read the particles of one tomogram from a list of any format.

    Parameters
    ----------
    path
        RELION's `.star`, DeepFinder's `.xml`, a plain `.csv` or `.tsv`, SHREC's `.txt`; a folder in SHREC's layout, or
        one of several such; a folder of such files, each named as its tomogram; or a copick project.
    tomogram
        Which tomogram, where there are several: its name, its index in an XML file, its folder, or its run.
    voxel_size
        Å, of the tomogram that voxels are counted in. What a file says of its own coordinates is scaled to it.
    shape
        `(z, y, x)` of the tomogram, for coordinates that count from its centre (RELION 5).
    class_names
        Names of class numbers, for files that hold only these.
    user_id, session_id
        Whose picks of a copick project, where there are several.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or the folder holds nothing that is read.
    FileFormatError
        If a file is wrong, or holds several tomograms and none was chosen, or others only.
    ValueError
        If a shape or a voxel size is needed and not given, or a voxel size is impossible.
    """
    path = Path(path)
    if voxel_size is not None:
        check_positive("voxel_size", voxel_size)
    if not path.exists():
        raise FileNotFoundError(f"expected a list of particles, found none at {path}")
    files = _list_files(path)
    if files:
        chosen = _chosen(str(path), list(files), tomogram, True)
        found = find_particles(files[chosen], voxel_size=voxel_size, shape=shape, class_names=class_names)
        return replace(found, tomogram=chosen)
    if path.suffix.lower() == ".json" or (path.is_dir() and not _shrec_folders(path)):
        return _of_copick(path, tomogram, voxel_size, user_id, session_id)
    if path.is_dir():
        return _of_folder(path, tomogram, voxel_size)
    lists: Mapping[str, ParticleList]
    size, named = voxel_size or 0.0, False
    match path.suffix.lower():
        case ".txt":
            lists = {"": read_particle_locations(path)}
        case ".csv" | ".tsv":
            lists = {"": read_particles_csv(path)}
        case ".xml":
            lists = {str(index): one for index, one in read_object_list(path, class_names=class_names).items()}
        case ".star":
            lists = read_particles_star(path, voxel_size=voxel_size, shape=shape, class_names=class_names)
            size, named = voxel_size or read_star_voxel_size(path), has_tomogram_names(path)
        case _:
            raise FileFormatError(f"{path}: expected a list of particles that ends in {', '.join(LIST_SUFFIXES)}")
    if not lists:
        return FoundParticles(particles=_none(), voxel_size=size, source=str(path))
    chosen = _chosen(str(path), list(lists), tomogram, named)
    name = chosen if named else None
    return FoundParticles(particles=lists[chosen], voxel_size=size, source=str(path), tomogram=name)


def find_tomograms(path: str | Path) -> list[str]:
    """List the tomograms that a path holds lists of: STAR files, XML files, folders of lists, and copick projects.

    Returns
    -------
    Their names, or indices in an XML file; none where the path does not tell.

    Raises
    ------
    FileFormatError
        If a file is wrong.
    """
    path = Path(path)
    if path.suffix.lower() == ".star" and path.is_file():
        return star_tomogram_names(path) if has_tomogram_names(path) else []
    if path.suffix.lower() == ".xml" and path.is_file():
        return [str(index) for index in read_object_list(path)]
    if files := _list_files(path):
        return list(files)
    if path.is_dir() and (folders := _shrec_folders(path)):
        return list(folders)
    if path.is_dir() or (path.suffix.lower() == ".json" and path.is_file()):
        try:
            return list(copick.read_copick_runs(path))
        except FileNotFoundError:
            return []
    return []


def _list_files(path: Path) -> dict[str, Path]:
    """Find the lists of a folder that is neither in SHREC's layout nor a copick project, by their names."""
    if not path.is_dir() or _shrec_folders(path) or any(map(_is_copick, path.glob("*.json"))):
        return {}
    files = [one for one in sorted(path.iterdir()) if one.is_file() and one.suffix.lower() in LIST_SUFFIXES]
    return {one.stem: one for one in files if not one.name.lower().startswith(_NO_LISTS)}


def _is_copick(path: Path) -> bool:
    """Whether a JSON file is the configuration of a copick project."""
    return b'"pickable_objects"' in path.read_bytes()[:_LOOKED_AT]


def find_geometry(path: str | Path, *, tomogram: str | None = None) -> tuple[float, Shape | None]:
    """Find voxel size (Å, 0 if not known) and shape `(z, y, x)` of the tomogram that an MRC file or a folder is of."""
    path = Path(path)
    if path.is_file():
        is_volume = path.suffix.lower() not in (*LIST_SUFFIXES, ".json")
        return _geometry(path) if is_volume else (0.0, None)
    folders = _shrec_folders(path)
    if not folders:
        return 0.0, None
    return _folder_geometry(_chosen_folder(path, folders, tomogram))


def find_names(path: str | Path) -> dict[int, str]:
    """Find the names of class numbers that belong to a list: a copick project's, or of a table in its folder."""
    path = Path(path)
    if path.suffix.lower() == ".json" or (path.is_dir() and not _shrec_folders(path)):
        try:
            return copick.read_copick_classes(path)
        except FileNotFoundError:
            # What reads the list says what is missing.
            return {}
    return find_class_names(path if path.is_dir() else path.parent)


def _none() -> ParticleList:
    import numpy as np

    return ParticleList((), np.zeros((0, 3)), np.zeros((0, 3, 3)))


def _chosen(where: str, names: Sequence[str], tomogram: str | None, named: bool) -> str:
    """Choose a tomogram of a list; the only one is taken, unless it is named and another was asked for."""
    found = None if tomogram is None else find_name(tomogram, names)
    if found is not None:
        return found
    if len(names) > 1 or (named and tomogram is not None):
        wanted = "one tomogram" if tomogram is None else f"tomogram {tomogram}"
        raise OtherTomogramsError(
            f"{where}: expected {wanted}, got {', '.join(names)}; set `tomogram` to the one meant"
        )
    return names[0]


def _shrec_folders(path: Path) -> dict[str, Path]:
    """Find folders with a list in SHREC's layout: the folder itself, or those within it."""
    if (path / LOCATIONS).is_file():
        return {path.resolve().name: path}
    return {file.parent.name: file.parent for file in sorted(path.glob(f"*/{LOCATIONS}"))}


def _chosen_folder(path: Path, folders: Mapping[str, Path], tomogram: str | None) -> Path:
    return folders[_chosen(str(path), list(folders), tomogram, False)]


def _of_folder(path: Path, tomogram: str | None, voxel_size: float | None) -> FoundParticles:
    folder = _chosen_folder(path, _shrec_folders(path), tomogram)
    return FoundParticles(
        particles=read_particle_locations(folder / LOCATIONS),
        voxel_size=voxel_size or _folder_geometry(folder)[0],
        source=str(folder),
        folder=folder,
    )


def _folder_geometry(folder: Path) -> tuple[float, Shape | None]:
    mask = next((folder / name for name in _MASKS if (folder / name).is_file()), None)
    return (0.0, None) if mask is None else _geometry(mask)


def _geometry(path: Path) -> tuple[float, Shape]:
    _, size = read_mrc(path, rows=slice(0, 1))
    return size, read_mrc_shape(path)


def _of_copick(
    path: Path, tomogram: str | None, voxel_size: float | None, user_id: str | None, session_id: str | None
) -> FoundParticles:
    try:
        runs = copick.read_copick_runs(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: expected {LOCATIONS} or a copick project, found neither") from error
    run = _chosen(str(path), runs, tomogram, True) if runs else None
    if run is None:
        raise FileFormatError(f"{path}: expected a run with picks, got a copick project without any")
    # Positions are in Å there: without a voxel size, they stay so.
    size = voxel_size or 1.0
    found = copick.read_copick_picks(path, run=run, voxel_size=size, user_id=user_id, session_id=session_id)
    return FoundParticles(particles=found, voxel_size=size, source=str(path), tomogram=run)
