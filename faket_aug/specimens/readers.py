"""Finding specimens in the folders of several programs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from faket_aug._checks import FileFormatError, check_positive
from faket_aug.formats import copick
from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.formats.polnet import PolnetTomogram, common_classes, find_polnet_tomograms, read_motif_list
from faket_aug.formats.shrec import read_class_conversion_table
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.labelling import (
    PARTICLE_LISTS,
    as_labels,
    choose_voxel_size,
    particle_table,
    read_particles,
)
from faket_aug.specimens.lazy import (
    DescribedSource,
    Description,
    FileSpecimens,
    Source,
    describe_files,
    describe_shrec,
)
from faket_aug.specimens.particles import ParticleTable

Paths = str | Path | Sequence[str | Path]

_CLASS_TABLE = "class_conversion_table.txt"
_MRC = (".mrc", ".map", ".rec", ".mrc.gz", ".mrc.bz2")


class PolnetSpecimens(FileSpecimens):
    """Specimens in PolNet's output, versions 1.0 and 1.1, read when they are asked for.

    PolNet numbers the classes of each tomogram on its own, so that one number may mean different classes in two
    tomograms of a folder. Then all classes are numbered anew, in the order of their first appearance.

    Parameters
    ----------
    folders
        PolNet's output folders, or one of them.
    voxel_size
        Å; by default the header's.
    template_sizes
        As for `faket_aug.formats.polnet.read_motif_list`.

    Raises
    ------
    FileNotFoundError
        If a folder is not an output of PolNet, or a tomogram lacks its labels or its motif list.
    """

    def __init__(
        self, folders: Paths, *, voxel_size: float | None = None, template_sizes: Mapping[str, int] | None = None
    ) -> None:
        tomograms = []
        for folder in _as_paths(folders):
            found = find_polnet_tomograms(folder)
            if not found:
                names = "Tomo001/tomo_001_den.mrc or tomos/tomo_den_0.mrc"
                raise FileNotFoundError(f"{folder}: expected PolNet's output with {names}, found none")
            tomograms += found
        lists = [read_motif_list(one.motifs, voxel_size=1.0, density=one.listed_as) for one in tomograms]
        super().__init__(
            [
                DescribedSource(
                    partial(_read_polnet, one, voxel_size, template_sizes),
                    partial(_describe_polnet, one, listed.class_names, voxel_size),
                )
                for one, listed in zip(tomograms, lists, strict=True)
            ],
            class_names=common_classes([one.class_names for one in lists]),
        )


def _read_polnet(
    files: PolnetTomogram, voxel_size: float | None, template_sizes: Mapping[str, int] | None
) -> GrandModel:
    shape, (_, header) = read_mrc_shape(files.density), read_mrc(files.density, rows=slice(0, 1))
    size = choose_voxel_size(voxel_size, header, files.density)
    motifs = read_motif_list(
        files.motifs, voxel_size=size, shape=shape, density=files.listed_as, template_sizes=template_sizes
    )
    found = motifs.particles
    particles = ParticleTable(classes=motifs.numbers, positions=found.positions, orientations=found.orientations)
    made = GrandModel.from_files(files.density, files.labels, class_names=motifs.class_names, voxel_size=size)
    return replace(made, particles=particles)


def _describe_polnet(files: PolnetTomogram, class_names: Mapping[int, str], voxel_size: float | None) -> Description:
    name = str(files.density)
    return describe_files(files.density, files.labels, class_names, name=name, voxel_size=voxel_size)


class FolderSpecimens(FileSpecimens):
    """Specimens in plain folders, read when they are asked for.

    A specimen consists of `density.mrc` (particles are positive) and `labels.mrc`. It may have `instances.mrc`, a list
    of particles (`particles.star`, DeepFinder's `particles.xml`, `particles.csv` or SHREC's `particles.txt`), and class
    names (`class_conversion_table.txt`, there or in the folder above). In a folder of several specimens their names
    have a prefix: `a_density.mrc`, `a_labels.mrc`, `a_particles.star`. MRC files may also end in `.map`, `.rec`,
    `.mrc.gz` or `.mrc.bz2`.

    Parameters
    ----------
    folders
        The folders, or one of them.
    voxel_size
        Å, of the density; by default the header's.

    Raises
    ------
    FileNotFoundError
        If a folder has no density, or a density no labels.
    """

    def __init__(self, folders: Paths, *, voxel_size: float | None = None) -> None:
        sources = []
        for folder in _as_paths(folders):
            found = _plain_sources(folder, voxel_size)
            if not found:
                raise FileNotFoundError(f"{folder}: expected a specimen with density.mrc and labels.mrc, found none")
            sources += found
        super().__init__(sources)


def _plain_sources(folder: Path, voxel_size: float | None) -> list[Source]:
    sources: list[Source] = []
    table = _file(folder, _CLASS_TABLE, ("",)) or _file(folder.resolve().parent, _CLASS_TABLE, ("",))
    for suffix in _MRC:
        for density in sorted(folder.glob(f"*density{suffix}")):
            prefix = density.name.removesuffix(f"density{suffix}")
            labels = _file(folder, f"{prefix}labels", _MRC)
            if labels is None:
                raise FileNotFoundError(f"{density}: expected {prefix}labels{suffix} beside it, found none")
            instances, particles = (
                _file(folder, f"{prefix}instances", _MRC),
                _file(folder, f"{prefix}particles", PARTICLE_LISTS),
            )
            tomogram = prefix.rstrip("_-.") or folder.resolve().name
            read = partial(_read_plain, density, labels, instances, particles, table, tomogram, voxel_size)
            sources.append(DescribedSource(read, partial(_describe_plain, density, labels, table, voxel_size)))
    return sources


def _file(folder: Path, stem: str, suffixes: Sequence[str]) -> Path | None:
    return next((folder / (stem + suffix) for suffix in suffixes if (folder / (stem + suffix)).is_file()), None)


def _read_plain(
    density: Path,
    labels: Path,
    instances: Path | None,
    particles: Path | None,
    table: Path | None,
    tomogram: str,
    voxel_size: float | None,
) -> GrandModel:
    names = {} if table is None else read_class_conversion_table(table)
    made = GrandModel.from_files(density, labels, instances=instances, class_names=names, voxel_size=voxel_size)
    # A list that lies with its specimen is the specimen's, whatever it calls the tomogram.
    return made if particles is None else replace(made, particles=read_particles(particles, made, tomogram=tomogram))


def _describe_plain(density: Path, labels: Path, table: Path | None, voxel_size: float | None) -> Description:
    names = {} if table is None else read_class_conversion_table(table)
    return describe_files(density, labels, names, name=str(density), voxel_size=voxel_size)


class CopickSpecimens(FileSpecimens):
    """Specimens in a local copick project, read when they are asked for (needs the optional package copick).

    The labels of a run are its multilabel segmentation, and its particles are the picks. Its density is a tomogram of
    the segmentation's voxel size, or of a voxel size that is smaller by a whole factor.

    Parameters
    ----------
    project
        The configuration, or the folder that holds it.
    runs
        Which runs; all by default.
    tomogram_type, segmentation, user_id, session_id, voxel_size
        Which tomogram, segmentation and picks, where a run has several. The voxel size, in Å, is the segmentation's.
    dark
        Whether particles are dark in the tomogram, as in a microscope's; see `FileSpecimens`.

    Raises
    ------
    ImportError
        If copick is not installed.
    FileNotFoundError, FileFormatError
        If the project or a run does not exist.
    """

    def __init__(
        self,
        project: str | Path,
        *,
        runs: Sequence[str] | None = None,
        tomogram_type: str | None = None,
        segmentation: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
        voxel_size: float | None = None,
        dark: bool = False,
    ) -> None:
        config = copick.find_copick_config(project)
        there = copick.read_copick_runs(config)
        unknown = sorted(set(runs or ()) - set(there))
        if unknown:
            raise FileFormatError(f"{config}: expected runs of {', '.join(there) or 'none'}, got {', '.join(unknown)}")
        chosen = there if runs is None else runs
        if not chosen:
            raise FileFormatError(f"{config}: expected runs, got none; the project is empty")
        whose = {"user_id": user_id, "session_id": session_id}
        sources = [
            DescribedSource(
                partial(_read_copick, config, run, tomogram_type, segmentation, whose, voxel_size),
                partial(_describe_copick, config, run, voxel_size),
            )
            for run in chosen
        ]
        super().__init__(sources, dark=dark)


def _describe_copick(config: Path, run: str, voxel_size: float | None) -> Description:
    # Without it, the segmentation that will be read tells the voxel size.
    names = copick.read_copick_classes(config)
    return Description(name=f"{config.parent}/{run}", voxel_size=voxel_size or 0.0, class_names=names)


def _read_copick(
    config: Path,
    run: str,
    tomogram_type: str | None,
    segmentation: str | None,
    whose: Mapping[str, str | None],
    voxel_size: float | None,
) -> GrandModel:
    class_names, where = copick.read_copick_classes(config), Path(f"{config}, run {run}")
    stored, size = copick.read_copick_segmentation(config, run=run, name=segmentation, voxel_size=voxel_size, **whose)
    try:
        tomogram, density_size = copick.read_copick_tomogram(
            config, run=run, tomogram_type=tomogram_type, voxel_size=size
        )
    except FileFormatError:
        # None of that voxel size: a finer one will do.
        tomogram, density_size = copick.read_copick_tomogram(config, run=run, tomogram_type=tomogram_type)
    particles = ParticleTable.empty()
    if copick.read_copick_users(config, run=run):
        picks = copick.read_copick_picks(config, run=run, voxel_size=size, **whose)
        particles = particle_table(picks, class_names, where)
    if not bool((stored != 0).any()) and not len(particles):
        warnings.warn(f"{where}: expected labels or picks, got none; it is all background", stacklevel=2)
    return GrandModel(
        density=tomogram.float(),
        labels=as_labels(stored, where, class_names),
        particles=particles,
        voxel_size=density_size,
        class_names=class_names,
        name=f"{config.parent}/{run}",
    )


def _shrec_sources(folder: Path, voxel_size: float | None) -> list[Source]:
    there = (folder / "class_mask.mrc").is_file() and any(folder.glob("grandmodel*.mrc"))
    if not there and not any(folder.glob("hitbox_*.mrc")):
        return []
    read = partial(GrandModel.from_shrec, folder, voxel_size=voxel_size)
    return [DescribedSource(read, partial(describe_shrec, folder, voxel_size=voxel_size))]


def _polnet_sources(folder: Path, voxel_size: float | None) -> list[Source]:
    if not folder.is_dir() or not find_polnet_tomograms(folder):
        return []
    found = PolnetSpecimens(folder, voxel_size=voxel_size)
    return [
        DescribedSource(partial(found.__getitem__, index), partial(found.describe, index))
        for index in range(len(found))
    ]


def _copick_sources(folder: Path, voxel_size: float | None) -> Sequence[Source]:
    try:
        config = copick.find_copick_config(folder)
    except FileNotFoundError:
        return []
    return CopickSpecimens(config, voxel_size=voxel_size).sources


#: The layouts in the order in which they are tried: how a folder is recognised, and what finds its specimens.
_LAYOUTS: tuple[tuple[str, Callable[[Path, float | None], Sequence[Source]]], ...] = (
    ("SHREC's grandmodel.mrc with class_mask.mrc, or grandmodel_0.mrc with hitbox_0.mrc", _shrec_sources),
    ("PolNet's Tomo001/tomo_001_den.mrc or tomos/tomo_den_0.mrc", _polnet_sources),
    ("a copick configuration with ExperimentRuns", _copick_sources),
    ("density.mrc with labels.mrc", _plain_sources),
)


def read_specimens(
    paths: Paths,
    *,
    voxel_size: float | None = None,
    class_names: Mapping[int, str] | None = None,
    dark: bool = False,
) -> FileSpecimens:
    """Find the specimens in one or several folders of any known layout; each is read when it is asked for.

    Folders of SHREC, PolNet and copick, and plain folders (see `FolderSpecimens`) are recognised by their files. A path
    may also be a folder that contains several of them.

    Parameters
    ----------
    paths
        A folder, a copick configuration, or several.
    voxel_size
        Å, of the densities (of copick: of the segmentation); by default what the files say.
    class_names
        Class numbers and names for all specimens; needed where folders number their classes differently.
    dark
        Whether particles are dark in all of them, as in copick projects of a microscope; see `FileSpecimens`.

    Raises
    ------
    FileNotFoundError
        If there are no specimens; the message lists the layouts that were looked for.
    """
    if voxel_size is not None:
        check_positive("voxel_size", voxel_size)
    sources = [source for path in _as_paths(paths) for source in _sources(path, voxel_size)]
    return FileSpecimens(sources, class_names=class_names, dark=dark)


def _sources(path: Path, voxel_size: float | None) -> list[Source]:
    if not path.exists():
        raise FileNotFoundError(f"expected a folder of specimens, found none at {path}")
    within = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
    for folders in ([path], within):
        layouts = [next(filter(None, (find(one, voxel_size) for _, find in _LAYOUTS)), []) for one in folders]
        if any(layouts):
            return [source for found in layouts for source in found]
    looked = "; ".join(name for name, _ in _LAYOUTS)
    raise FileNotFoundError(f"{path}: expected specimens, there or in folders within, found none of: {looked}")


def _as_paths(paths: Paths) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
