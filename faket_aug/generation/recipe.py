"""Recipes: what generated specimens are made from, as plain settings of a file or a command line."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from faket_aug._checks import FileFormatError, check_positive
from faket_aug._settings import IsPath, Part, Reads, Setting, setting_of, settings_of
from faket_aug.formats.structures import structure_name
from faket_aug.generation.filaments import FILAMENT_PRESETS, FilamentSpecies
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.ice import IceSlab
from faket_aug.generation.membranes import MEMBRANE_KINDS, MembraneSpecies
from faket_aug.generation.packing import PACKINGS
from faket_aug.generation.ranges import Range
from faket_aug.generation.species import SIDES, FiducialSpecies, ParticleSpecies
from faket_aug.generation.stamp import INTERPOLATIONS
from faket_aug.generation.templates import ParticleTemplate, find_templates, read_templates

S = TypeVar("S")
Count = int | tuple[int, int]
_Path = Annotated[str, IsPath()]
_Subunit = Annotated[str, IsPath(words=tuple(FILAMENT_PRESETS))]


def _part(species: Any, *, without: Sequence[str] = (), **changed: Setting) -> Any:
    """Some settings of a species by name."""
    return Annotated[dict[str, Any], Part(settings_of(species, without=without) | changed)]


_Particle: Any = _part(
    ParticleSpecies,
    without=("templates", "name", "label"),
    membrane_side=setting_of(ParticleSpecies, "membrane_side", choices=SIDES),
)
_Kind = setting_of(MembraneSpecies, "kind", choices=tuple(MEMBRANE_KINDS))
_Membrane: Any = _part(MembraneSpecies, kind=_Kind)
_Filament: Any = _part(FilamentSpecies, subunit=setting_of(FilamentSpecies, "subunit", hint=_Subunit))
_BuiltIn: Any = _part(FilamentSpecies, without=("subunit",))


@dataclass(frozen=True, kw_only=True)
class _Templates:
    """What templates are read from, and what is changed of them.

    Parameters
    ----------
    templates
        Particles: a density map, an atomic structure, or a folder of them. A class is called as its file.
    distractors
        The same, of particles that get no label.
    factor
        A factor on the templates' density.
    threshold
        Density, after `factor`, above which a voxel belongs to a particle; by default each template's own.
    """

    templates: Sequence[_Path] = ()
    distractors: Sequence[_Path] = ()
    factor: float = 1.0
    threshold: float | None = None


def _several(kind: Any, by_kind: Any, species: Any, words: str) -> Any:
    """The type of membranes and filaments: how many, by kind; settings, by kind; or a list of settings."""
    one = Mapping[str, Count | by_kind]
    return Annotated[kind | one | Sequence[species] | None, Reads(words)]


_OWN = settings_of(_Templates)
_READING = settings_of(
    read_templates,
    without=("source", "voxel_size", "recenter"),
    described_by=(ParticleTemplate.from_map, ParticleTemplate.from_structure),
)
_WHOLE = settings_of(GrandModelGenerator)
#: Settings of a recipe that the generator has under the same name.
_OF_THE_WHOLE = ("shape", "occupancy", "gap", "packing", "interpolation")
#: What settings were, by name, before records and sets told them.
BEFORE: dict[str, Any] = {"packing": "random", "interpolation": "linear"}
#: All that a recipe may say. A class that `counts` or `concentrations` do not name is left out, if they name others.
RECIPE: dict[str, Setting] = {
    **{name: _OWN[name] for name in ("templates", "distractors")},
    "counts": setting_of(
        ParticleSpecies,
        "count",
        name="counts",
        hint=Annotated[
            Count | Mapping[str, Count] | None,
            Reads("whole numbers by name, as 1bxn=50,3gl1=20, or one for all"),
        ],
        note="One for all classes, or by name, as `1bxn=50,3gl1=20` (no others).",
    ),
    "concentrations": setting_of(
        ParticleSpecies,
        "concentration_per_um3",
        name="concentrations",
        hint=Annotated[
            float | Mapping[str, float] | None,
            Reads("particles per µm³ by name, as 1bxn=500, or one number for all"),
        ],
        note="One for all classes, or by name.",
    ),
    "occupancy": _WHOLE["occupancy"],
    "particles": setting_of(
        GrandModelGenerator,
        "particles",
        hint=Mapping[str, _Particle] | None,
        help="More settings of a class of particles, by its name, as `1bxn.cluster_size=3,1bxn.cluster_radius=300`.",
        default=None,
    ),
    **_READING,
    **{name: _OWN[name] for name in ("factor", "threshold")},
    "membrane_bound": setting_of(
        ParticleSpecies,
        "membrane_bound",
        hint=Sequence[str],
        help="Classes that stand on membranes, as `1bxn,3gl1`.",
        default=(),
    ),
    "membranes": setting_of(
        GrandModelGenerator,
        "membranes",
        hint=_several(
            Count,
            _part(MembraneSpecies, without=("kind",)),
            _Membrane,
            "whole numbers by kind, as sphere=2,sheet=1, or one for spheres",
        ),
        help="Membranes by kind, as `sphere=2,sheet=1`, or with settings, as `sphere.count=2,sphere.radius=200,500`.",
        choices=(),
        default=None,
    ),
    "filaments": setting_of(
        GrandModelGenerator,
        "filaments",
        hint=_several(Count, _BuiltIn, _Filament, "whole numbers by kind, as actin=3,microtubule=1"),
        help="Filaments by kind, as `actin=3,microtubule=1`, or with settings, as `actin.length=2000,5000`. In a file "
        "also a list of settings, whose `subunit` may be a map.",
        default=None,
    ),
    "fiducials": setting_of(
        GrandModelGenerator,
        "fiducials",
        hint=Annotated[
            Count | _part(FiducialSpecies) | Sequence[_part(FiducialSpecies)] | None,  # type: ignore[misc]
            Reads("a whole number, or settings, as count=5,radius=50,100"),
        ],
        help="Gold beads: how many, or settings, as `count=5,radius=50,100`.",
        default=None,
    ),
    "slab": setting_of(
        GrandModelGenerator,
        "slab",
        hint=Annotated[
            Range | _part(IceSlab) | None,
            Reads("one number, or two with a comma between (lowest, highest), in Å, or settings, as thickness=1500"),
        ],
        note="Its thickness in Å, as `1500` or `1000,2000`, or settings, as `thickness=1500,tilt=0,10`.",
    ),
    "slab_tilt": setting_of(IceSlab, "tilt", name="slab_tilt", hint=Range | None, default=None),
    "gap": _WHOLE["gap"],
    "packing": setting_of(GrandModelGenerator, "packing", choices=PACKINGS),
    "interpolation": setting_of(GrandModelGenerator, "interpolation", choices=INTERPOLATIONS),
    "shape": setting_of(
        GrandModelGenerator,
        "shape",
        hint=Annotated[tuple[int, int, int], Reads("three whole numbers z,y,x")],
    ),
}


def templates_of(recipe: Mapping[str, Any], kind: str, voxel_size: float) -> dict[str, list[ParticleTemplate]]:
    """Read templates by name; files of one name are several maps of one class.

    Parameters
    ----------
    recipe
        Settings of `RECIPE`, by name, as `read_table` reads them.
    kind
        `"templates"` or `"distractors"`.
    voxel_size
        Å.
    """
    own = {name: recipe[name] for name in _READING if name in recipe}
    weights = own.pop("molecular_weights", None) or {}
    found: dict[str, list[ParticleTemplate]] = {}
    for path in recipe.get(kind, ()):
        # Each folder is told the weights of its own templates only.
        names = [structure_name(file) for file in find_templates(path)] if weights else []
        heavy = {name: weights[name] for name in names if name in weights}
        for template in read_templates(path, voxel_size=voxel_size, molecular_weights=heavy or None, **own):
            found.setdefault(template.name, []).append(_changed(template, recipe))
    return found


def _changed(template: ParticleTemplate, recipe: Mapping[str, Any]) -> ParticleTemplate:
    if not {"factor", "threshold"} & set(recipe):
        return template
    factor, threshold = recipe.get("factor", _Templates.factor), recipe.get("threshold")
    check_positive("factor", factor)
    if threshold is not None:
        check_positive("threshold", threshold)
    return replace(template, density=template.density * factor, threshold=threshold or template.threshold * factor)


def subunits_of(recipe: Mapping[str, Any], voxel_size: float) -> dict[str, ParticleTemplate]:
    """Read the subunits of filaments that are not built in, by path; the middle of a map is on the filament's axis.

    Parameters
    ----------
    recipe, voxel_size
        As for `templates_of`.
    """
    own = {name: recipe[name] for name in ("resolution", "assembly", "normalize") if name in recipe}
    given = [one.get("subunit") for one in as_tables("filaments", recipe.get("filaments"))]
    paths = [path for path in given if path is not None and path not in FILAMENT_PRESETS]
    return {path: read_templates(path, voxel_size=voxel_size, recenter=False, **own)[0] for path in paths}


def is_wanted(recipe: Mapping[str, Any], name: str) -> bool:
    """Tell whether a class is among those that are counted by name; all are, where no names are given."""
    by_name = recipe.get("counts", recipe.get("concentrations"))
    return not isinstance(by_name, Mapping) or name in by_name or name in (recipe.get("particles") or {})


def as_tables(kind: str, given: Any) -> list[dict[str, Any]]:
    """Take `membranes`, `filaments` or `fiducials` as a list of settings.

    Parameters
    ----------
    kind
        Which of them.
    given
        A count of the first kind, counts or settings by kind, or settings, or a list of them; None for none.

    Raises
    ------
    ValueError
        For an unknown kind.
    """
    if given is None:
        return []
    key, kinds = _KINDS[kind]
    if isinstance(given, int) or (isinstance(given, tuple) and all(isinstance(one, int) for one in given)):
        return [{"count": given} | ({key: kinds[0]} if key else {})] if given or key else []
    if not isinstance(given, Mapping):
        return [dict(one) for one in given]
    if not key:
        return [dict(given)] if given else []
    unknown = sorted(set(given) - set(kinds))
    if unknown:
        raise ValueError(f"expected `{kind}` of {', '.join(kinds)}, got {', '.join(unknown)}")
    return [{key: name} | (dict(one) if isinstance(one, Mapping) else {"count": one}) for name, one in given.items()]


#: The setting that says of which kind something is, and its built-in kinds.
_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "membranes": ("kind", tuple(MEMBRANE_KINDS)),
    "filaments": ("subunit", tuple(FILAMENT_PRESETS)),
    "fiducials": ("", ()),
}


def make_generator(
    recipe: Mapping[str, Any],
    *,
    voxel_size: float,
    subunits: Mapping[str, ParticleTemplate] | None = None,
    **settings: Any,
) -> GrandModelGenerator:
    """Make the generator of a recipe.

    Parameters
    ----------
    recipe
        Settings of `RECIPE`, by name, as `read_table` reads them.
    voxel_size
        Å.
    subunits
        From `subunits_of`; read by default.
    **settings
        More settings of `GrandModelGenerator`.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError
        If files are missing or wrong, or settings do not go together.
    """
    templates, distractors = (templates_of(recipe, kind, voxel_size) for kind in ("templates", "distractors"))
    both = sorted(set(templates) & set(distractors))
    if both:
        raise ValueError(f"expected a class either in `templates` or in `distractors`, got {', '.join(both)} in both")
    _check_names(recipe, [*templates, *distractors])
    particles = [
        _particle_species(name, of, recipe, label=name in templates)
        for name, of in [*templates.items(), *distractors.items()]
        if is_wanted(recipe, name)
    ]
    found = subunits_of(recipe, voxel_size) if subunits is None else subunits
    filaments = [
        one | {"subunit": found.get(one["subunit"], one["subunit"])} if "subunit" in one else one
        for one in as_tables("filaments", recipe.get("filaments"))
    ]
    given = {name: recipe[name] for name in _OF_THE_WHOLE if name in recipe}
    return GrandModelGenerator(
        particles=particles,
        membranes=[_made(MembraneSpecies, one, "membranes") for one in as_tables("membranes", recipe.get("membranes"))],
        filaments=[_made(FilamentSpecies, one, "filaments") for one in filaments],
        fiducials=[_made(FiducialSpecies, one, "fiducials") for one in as_tables("fiducials", recipe.get("fiducials"))],
        voxel_size=voxel_size,
        slab=_slab(recipe),
        **(given | settings),
    )


def _slab(recipe: Mapping[str, Any]) -> IceSlab | None:
    given, tilt = recipe.get("slab"), recipe.get("slab_tilt")
    if given is not None:
        own = given if isinstance(given, Mapping) else {"thickness": given}
        return _made(IceSlab, dict(own) if tilt is None else dict(own) | {"tilt": tilt}, "slab")
    if tilt is not None:
        raise ValueError("expected the thickness of the slab that is tilted, got none; set `slab`")
    return None


def _check_names(recipe: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse settings of a class that has no template."""
    for setting in ("counts", "concentrations", "particles", "membrane_bound", "molecular_weights"):
        value = recipe.get(setting)
        unknown = sorted(set(value) - set(known)) if isinstance(value, Mapping | tuple) and _has_names(value) else []
        if unknown:
            raise ValueError(
                f"expected `{setting}` of the templates {', '.join(known) or '(none)'}, got {', '.join(unknown)}"
            )


def _has_names(value: Iterable[Any]) -> bool:
    return all(isinstance(name, str) for name in value)


def _particle_species(
    name: str, templates: Sequence[ParticleTemplate], recipe: Mapping[str, Any], *, label: bool
) -> ParticleSpecies:
    own = (recipe.get("particles") or {}).get(name, {})
    settings: dict[str, Any] = {"membrane_bound": name in recipe.get("membrane_bound", ())}
    if not {"count", "concentration_per_um3", "concentration_molar"} & set(own):
        settings["count"] = _of(recipe.get("counts"), name)
        settings["concentration_per_um3"] = _of(recipe.get("concentrations"), name)
    fixed = {"templates": tuple(templates), "name": name, "label": label}
    return _made(ParticleSpecies, settings | dict(own) | fixed, f"particles.{name}")


def _of(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else value


def _made(species: type[S], settings: Mapping[str, Any], called: str) -> S:
    """Make a species; what it lacks is told by name, and what is wrong with which setting it is of."""
    needed = [name for name, one in inspect.signature(species).parameters.items() if one.default is one.empty]
    missing = [name for name in needed if name not in settings]
    if missing:
        raise ValueError(f"expected `{called}` with {', '.join(missing)}, got {', '.join(settings) or 'none'}")
    try:
        return species(**settings)
    except FileFormatError:
        raise
    except ValueError as error:
        raise ValueError(f"`{called}`: {error}") from error
