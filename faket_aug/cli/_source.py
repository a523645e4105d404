"""Where the specimens of `faket-aug simulate` and `fit` come from: files, or a generator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faket_aug._runtime.memory import available_memory
from faket_aug._settings import as_json
from faket_aug.cli._digests import digest_of_file, digest_of_folder
from faket_aug.cli._options import Options
from faket_aug.formats.structures import structure_name
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.recipe import as_tables, is_wanted, make_generator, subunits_of
from faket_aug.generation.templates import find_templates
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.readers import read_specimens

#: Bytes of a generated voxel at least: its density, label and instance, and what is taken around it.
_VOXEL = 11
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Source:
    """Specimens by index.

    Parameters
    ----------
    specimens
        Those of files, or what makes new ones without end.
    seed
        Of those that are generated.
    settings
        What they depend on, as JSON types.
    """

    specimens: Sequence[GrandModel] | GrandModelGenerator
    seed: int
    settings: dict[str, Any]

    @property
    def count(self) -> int | None:
        """How many different ones there are; None where there is no end."""
        return None if isinstance(self.specimens, GrandModelGenerator) else len(self.specimens)

    @property
    def class_names(self) -> Mapping[int, str]:
        """Names of the class numbers."""
        own = self.specimens
        return own.class_names if isinstance(own, GrandModelGenerator) else own[0].class_names

    def make(self, index: int) -> GrandModel:
        """Make or read a specimen; after the last one of files the first comes again."""
        if isinstance(self.specimens, GrandModelGenerator):
            return self.specimens.generate(seed=self.seed, tomogram=index)
        return self.specimens[index % len(self.specimens)]


def make_source(options: Options) -> Source:
    """Make the source that the options ask for.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError
        If files are missing or wrong, or settings do not go together.
    """
    if options["specimens"]:
        specimens = read_specimens(options["specimens"], **options.of("read_specimens"))
        digests = [digest_of_folder(Path(path)) for path in options["specimens"]]
        return Source(specimens=specimens, seed=options.seed, settings={"specimens": digests})
    recipe = options.recipe
    if recipe.get("shape") is not None:
        _check_memory(recipe["shape"])
    subunits = subunits_of(recipe, options.voxel_size)
    # What the recipe says goes through it; here are the settings that others have, too.
    own = {name: one for name, one in options.of("GrandModelGenerator").items() if name not in recipe}
    generator = make_generator(recipe, subunits=subunits, **(own | {"voxel_size": options.voxel_size}))
    return Source(specimens=generator, seed=options.seed, settings=_content(recipe, subunits))


def _check_memory(shape: Sequence[int]) -> None:
    """Refuse specimens that do not fit into the memory, before anything is made of them."""
    needed, free = _VOXEL * math.prod(shape), available_memory()
    if needed > free:
        raise ValueError(
            f"expected specimens for which {free / _GIB:.1f} GiB of free memory suffice, got a `shape` of "
            f"{' × '.join(map(str, shape))} voxels (z, y, x), which take {needed / _GIB:.1f} GiB at least; set --shape "
            "smaller, or --voxel-size larger"
        )


def _content(recipe: Mapping[str, Any], subunits: Iterable[str]) -> dict[str, Any]:
    """Return what the files hold, which may move: not what was made of them, whose last bits another machine changes.

    Voxel size and resolution, which the rest depends on, are settings of their own.
    """
    found: dict[str, Any] = {}
    for kind in ("templates", "distractors"):
        files: dict[str, list[str]] = {}
        for path in (file for source in recipe.get(kind, ()) for file in find_templates(source)):
            files.setdefault(structure_name(path), []).append(digest_of_file(path))
        if files:
            found[kind] = {name: digests for name, digests in files.items() if is_wanted(recipe, name)}
    filaments = recipe.get("filaments")
    if isinstance(filaments, tuple):
        contents = {path: digest_of_file(find_templates(path)[0]) for path in subunits}
        tables = as_tables("filaments", filaments)
        digested = [
            one | {"subunit": contents.get(one["subunit"], one["subunit"])} if "subunit" in one else one
            for one in tables
        ]
        found["filaments"] = as_json(digested)
    return found
