"""Where the specimens of `faket-aug simulate` come from: files, or a generator put together from its options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from faket_aug.cli._digests import digest_of_file, digest_of_folder
from faket_aug.cli._options import Options
from faket_aug.formats.structures import structure_name
from faket_aug.generation.filaments import FILAMENT_PRESETS, FilamentSpecies
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.ice import IceSlab
from faket_aug.generation.membranes import MEMBRANE_KINDS, MembraneSpecies
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.templates import ParticleTemplate, find_templates, read_templates
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.readers import read_specimens

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Specimens by index.

    Parameters
    ----------
    make
        From an index to a specimen.
    count
        How many different ones there are; nothing where there is no end.
    class_names
        Names of the class numbers; nothing where only a specimen tells them.
    settings
        What they depend on, as JSON types.
    """

    make: Callable[[int], GrandModel]
    count: int | None
    class_names: Mapping[int, str] | None
    settings: dict[str, Any]


def make_source(options: Options) -> Source:
    """Make the source that the options ask for.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError
        If files are missing or wrong, or settings do not go together.
    """
    if options.specimens:
        specimens = read_specimens(options.specimens, voxel_size=options.voxel_size, dark=options.dark)
        return Source(
            make=lambda index: specimens[index % len(specimens)],
            count=len(specimens),
            class_names=None,
            settings={"specimens": [digest_of_folder(Path(path)) for path in options.specimens]},
        )
    templates = {
        "templates": _read_templates(options.templates, options),
        "distractors": _read_templates(options.distractors, options),
    }
    subunits = _read_subunits(options)
    generator = make_generator(options, **templates, subunits=subunits)
    return Source(
        make=lambda index: generator.generate(seed=options.seed, tomogram=index),
        count=None,
        class_names=generator.class_names,
        settings=_content(options, subunits),
    )


def _content(options: Options, subunits: Iterable[str]) -> dict[str, Any]:
    """Return what the files hold, which may move: not what was made of them, whose last bits another machine changes.

    Voxel size and resolution, which the rest depends on, are settings of their own.
    """
    found: dict[str, Any] = {}
    for kind in ("templates", "distractors"):
        files: dict[str, list[str]] = {}
        for path in (file for source in getattr(options, kind) for file in find_templates(source)):
            files.setdefault(structure_name(path), []).append(digest_of_file(path))
        if files:
            found[kind] = {name: digests for name, digests in files.items() if _is_wanted(name, options)}
    if isinstance(options.filaments, list):
        contents = {path: digest_of_file(find_templates(path)[0]) for path in subunits}
        found["filaments"] = _replaced(options.filaments, contents)
    return found


def _read_templates(paths: Sequence[str], options: Options) -> dict[str, list[ParticleTemplate]]:
    """Read templates by name; files of one name are several maps of one class."""
    found: dict[str, list[ParticleTemplate]] = {}
    for path in paths:
        for template in read_templates(path, voxel_size=_voxel_size(options), resolution=options.resolution):
            found.setdefault(template.name, []).append(template)
    return found


def _read_subunits(options: Options) -> dict[str, ParticleTemplate]:
    """Read the subunits of filaments that are not built in, by path; the middle of a map is on the filament's axis."""
    given = [one.get("subunit") for one in options.filaments] if isinstance(options.filaments, list) else []
    paths = [str(path) for path in given if path is not None and path not in FILAMENT_PRESETS]
    settings: dict[str, Any] = {"voxel_size": _voxel_size(options), "resolution": options.resolution}
    return {path: read_templates(path, recenter=False, **settings)[0] for path in paths}


def _replaced(filaments: Any, subunits: Mapping[str, Any]) -> Any:
    """Put something in the place of the subunits' paths."""
    if not isinstance(filaments, list):
        return filaments
    return [
        one | {"subunit": subunits.get(str(one["subunit"]), one["subunit"])} if "subunit" in one else one
        for one in filaments
    ]


def _voxel_size(options: Options) -> float:
    return GrandModelGenerator.voxel_size if options.voxel_size is None else options.voxel_size


def make_generator(
    options: Options,
    *,
    templates: Mapping[str, Sequence[ParticleTemplate]],
    distractors: Mapping[str, Sequence[ParticleTemplate]],
    subunits: Mapping[str, ParticleTemplate],
) -> GrandModelGenerator:
    """Put the generator together.

    Parameters
    ----------
    options
        What is asked for.
    templates, distractors
        Templates of each class, by its name; those of distractors get no label.
    subunits
        Of the filaments that are not built in, by path.
    """
    both = sorted(set(templates) & set(distractors))
    if both:
        raise ValueError(f"expected a class either in --templates or in --distractors, got {', '.join(both)} in both")
    _check_names(options, [*templates, *distractors])
    particles = [
        _particle_species(name, of, options, label=name in templates)
        for name, of in [*templates.items(), *distractors.items()]
        if _is_wanted(name, options)
    ]
    given: dict[str, Any] = {
        "shape": options.shape,
        "occupancy": options.occupancy,
        "gap": options.gap,
        "slab": _slab(options),
        "device": options.device,
        "threads": options.threads,
    }
    filaments = _replaced(options.filaments, subunits)
    if options.fiducials:
        given["fiducials"] = FiducialSpecies(count=options.fiducials)
    return GrandModelGenerator(
        particles=particles,
        membranes=_several(MembraneSpecies, options.membranes, "kind", MEMBRANE_KINDS, "membranes"),
        filaments=_several(FilamentSpecies, filaments, "subunit", FILAMENT_PRESETS, "filaments"),
        voxel_size=_voxel_size(options),
        **{name: value for name, value in given.items() if value is not None},
    )


def _slab(options: Options) -> IceSlab | None:
    if options.slab is not None:
        given = {"thickness": options.slab, "tilt": options.slab_tilt}
        return _with_settings(IceSlab, {name: value for name, value in given.items() if value is not None}, "slab")
    if options.slab_tilt is not None:
        raise ValueError("expected the thickness of the slab that is tilted, got none; set --slab")
    return None


def _check_names(options: Options, known: Sequence[str]) -> None:
    """Refuse settings of a class that has no template."""
    for setting in ("counts", "concentrations", "particles", "membrane_bound"):
        value = getattr(options, setting)
        unknown = sorted(set(value) - set(known)) if isinstance(value, Mapping | tuple) else []
        if unknown:
            option = f"--{setting.replace('_', '-')}"
            raise ValueError(
                f"expected {option} of the templates {', '.join(known) or '(none)'}, got {', '.join(unknown)}"
            )


def _is_wanted(name: str, options: Options) -> bool:
    """Tell whether a class is among those that are counted by name; all are, where no names are given."""
    by_name = options.counts if options.counts is not None else options.concentrations
    return not isinstance(by_name, Mapping) or name in by_name or name in (options.particles or {})


def _particle_species(
    name: str, templates: Sequence[ParticleTemplate], options: Options, *, label: bool
) -> ParticleSpecies:
    own = (options.particles or {}).get(name, {})
    settings: dict[str, Any] = {"membrane_bound": name in options.membrane_bound}
    if not {"count", "concentration_per_um3", "concentration_molar"} & set(own):
        settings["count"] = _of(options.counts, name)
        settings["concentration_per_um3"] = _of(options.concentrations, name)
    return _with_settings(
        ParticleSpecies, settings | own, f"particles.{name}", templates=tuple(templates), name=name, label=label
    )


def _of(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else value


def _several(species: type[S], given: Any, key: str, known: Iterable[str], called: str) -> list[S]:
    """Make the species of `{kind: count}`, of a count of the first kind, or of a list of settings."""
    kinds = list(known)
    if given is None:
        return []
    if isinstance(given, int):
        given = {kinds[0]: given}
    if isinstance(given, list):
        return [_with_settings(species, one, f"{called}[{i}]") for i, one in enumerate(given)]
    unknown = sorted(set(given) - set(kinds))
    if unknown:
        raise ValueError(f"expected --{called} of {', '.join(kinds)}, got {', '.join(unknown)}")
    return [_with_settings(species, {key: kind, "count": count}, called) for kind, count in given.items()]


def _with_settings(species: type[S], settings: Mapping[str, Any], called: str, **fixed: Any) -> S:
    """Make a species from settings by name; lists of a file are pairs."""
    allowed = [entry.name for entry in fields(species) if entry.init and entry.name not in fixed]  # type: ignore[arg-type]
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ValueError(f"expected settings of {called} to be {', '.join(allowed)}, got {', '.join(unknown)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    try:
        return species(**values, **fixed)
    except TypeError as error:
        raise ValueError(f"expected settings of {called} as the library takes them, got an error: {error}") from error
