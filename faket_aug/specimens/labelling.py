"""Labels and particles of tomograms and tilt-series that another program made, or a person picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from faket_aug._checks import FileFormatError
from faket_aug.formats import copick
from faket_aug.formats.deepfinder import read_object_list
from faket_aug.formats.mrc import read_mrc
from faket_aug.formats.particles import ParticleList, read_particles_csv
from faket_aug.formats.shrec import find_class_names, read_particle_locations
from faket_aug.formats.star import read_particles_star
from faket_aug.specimens.particles import Labelled, ParticleTable, as_labels, particle_table

#: Endings of lists of particles.
PARTICLE_LISTS = (".star", ".xml", ".csv", ".tsv", ".txt")


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What a list of particles is read for.

    Parameters
    ----------
    labels
        `(z, y, x)`, uint8, class numbers, 0 is background.
    label_voxel_size
        Å.
    class_names
        Names of the class numbers.
    """

    labels: Tensor
    label_voxel_size: float
    class_names: Mapping[int, str]


def is_copick(path: str | Path) -> bool:
    """Whether a path is a copick project, its folder or its configuration, and no list or volume."""
    return Path(path).suffix == ".json" or Path(path).is_dir()


def read_class_names(paths: Sequence[str | Path | None]) -> dict[int, str]:
    """Read the names of the classes of labels and picks: a copick project's, or those of a table beside the files.

    The table is SHREC's `class_conversion_table.txt`, in a file's folder or the one above. Nothing is found without it.
    """
    sources = [Path(path) for path in paths if path is not None]
    tables = (
        copick.read_copick_classes(path) if is_copick(path) else find_class_names(path.parent) for path in sources
    )
    return next((names for names in tables if names), {})


def choose_name(paths: Sequence[str | Path | None], name: str | None, default: str) -> str:
    """Return which tomogram of a list, or run of a copick project, is meant: the one asked for, or the only one.

    Raises
    ------
    FileFormatError
        If a project has several runs and none is chosen.
    """
    projects = [path for path in paths if path is not None and is_copick(path)]
    if name is not None or not projects:
        return default if name is None else name
    runs = copick.read_copick_runs(projects[0])
    if len(runs) != 1:
        raise FileFormatError(f"{projects[0]}: expected one run, got {', '.join(runs) or 'none'}; set `name` to one")
    return runs[0]


def read_labels(
    path: str | Path,
    *,
    name: str,
    class_names: Mapping[int, str],
    voxel_size: float | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
) -> Tensor:
    """Read labels `(z, y, x)`, uint8.

    Parameters
    ----------
    path
        An MRC file, or a copick project with a multilabel segmentation.
    name
        The project's run.
    class_names
        Names that all labels need to have, if there are any.
    voxel_size, user_id, session_id
        Which segmentation, where a run has several; Å.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If the file is missing or wrong, or holds a class without a name.
    """
    if is_copick(path):
        whose = {"user_id": user_id, "session_id": session_id}
        stored, _ = copick.read_copick_segmentation(path, run=name, voxel_size=voxel_size, **whose)
    else:
        stored, _ = read_mrc(path)
    return as_labels(stored, Path(path), class_names)


def read_picks(
    path: str | Path,
    labelling: Labelling,
    *,
    name: str,
    user_id: str | None = None,
    session_id: str | None = None,
) -> ParticleTable:
    """Read particles.

    Parameters
    ----------
    path
        What `read_particles` reads (STAR, DeepFinder's XML, CSV, SHREC's text), or a copick project.
    labelling
        The volume that they are in.
    name
        Which tomogram's, where a list holds several; the run of a copick project.
    user_id, session_id
        Whose picks of a copick project, where there are several.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If the file is missing or wrong, or a class has no name.
    """
    if not is_copick(path):
        return read_particles(path, labelling, tomogram=name)
    size, names = labelling.label_voxel_size, labelling.class_names
    listed = copick.read_copick_picks(path, run=name, voxel_size=size, user_id=user_id, session_id=session_id)
    return particle_table(listed, names, Path(path))


def read_particles(path: str | Path, specimen: Labelled, *, tomogram: str | None = None) -> ParticleTable:
    """Read the particles of a specimen from a list of its own.

    Parameters
    ----------
    path
        RELION's `.star`, DeepFinder's `.xml`, a plain `.csv` or `.tsv`, or SHREC's `.txt`; places count voxels of the
        specimen's labels, or Å where RELION's do.
    specimen
        The specimen without them; its table of class names tells the numbers.
    tomogram
        Which tomogram's, where the list holds several: the name in a STAR file, the index in an XML file.

    Raises
    ------
    FileFormatError
        If the file is wrong, a class is not in the table, or the list holds several tomograms and none is chosen.
    """
    path, names = Path(path), specimen.class_names or None
    lists: Mapping[str, ParticleList]
    match path.suffix.lower():
        case ".txt":
            lists = {"": read_particle_locations(path)}
        case ".csv" | ".tsv":
            lists = {"": read_particles_csv(path)}
        case ".xml":
            lists = {str(index): one for index, one in read_object_list(path, class_names=names).items()}
        case ".star":
            depth, height, width = specimen.labels.shape
            size, shape = specimen.label_voxel_size, (depth, height, width)
            lists = read_particles_star(path, voxel_size=size, shape=shape, class_names=names)
        case _:
            raise FileFormatError(f"{path}: expected a list of particles that ends in {', '.join(PARTICLE_LISTS)}")
    if len(lists) > 1 and tomogram not in lists:
        raise FileFormatError(f"{path}: expected particles of tomogram {tomogram}, got those of {', '.join(lists)}")
    if not lists:
        return ParticleTable.empty()
    chosen = lists[tomogram] if tomogram in lists else next(iter(lists.values()))
    return particle_table(chosen, specimen.class_names, path)
