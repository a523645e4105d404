"""Settings of `faket-aug simulate` and `fit`: which of the library's settings they take, and reading them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from faket_aug._checks import FileFormatError, check_count
from faket_aug._reading import NONE, names_files, read_setting, read_table, rename
from faket_aug._settings import IsPath, Reads, Setting, as_json, parameter_help, setting_of, settings_of
from faket_aug.cli._angles import TILT_ANGLES, parse_angles
from faket_aug.data.dataset import FakETDataset
from faket_aug.formats._json import verified
from faket_aug.formats._settings_file import load_table
from faket_aug.formats.particle_lists import PARTICLE_FORMATS
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.recipe import BEFORE, RECIPE, as_tables
from faket_aug.microscope.imperfections import Imperfections
from faket_aug.microscope.noise import NoiseModel
from faket_aug.simulation.plain_settings import (
    MIXTURE,
    TRANSFER,
    WEIGHT,
    mixture_setting,
    simulator_settings,
    variation_setting,
)
from faket_aug.simulation.saving import check_formats
from faket_aug.simulation.simulator import RENAMED, FakETSimulator
from faket_aug.simulation.tomogram import HALVES, SimulatedTomogram
from faket_aug.specimens.readers import read_specimens
from faket_aug.style.bank import StyleBank
from faket_aug.style.pooling import MODES as POOLINGS
from faket_aug.style.vgg19 import PRECISIONS, VGG19Features

#: Settings that do not go together: a simulator of a mixture that has one takes none of the others from above.
_EITHER = (("noise", "snr"), ("noise", "noise_order"))
#: Headings of the help.
FILES, GENERATED, TILTS, STYLE, MICROSCOPE, WRITTEN = (
    *("Specimens from files", "Generated specimens", "Tilts and reconstruction", "Style transfer"),
    *("The microscope", "What is written"),
)


_Angles = Annotated[Any, Reads("first:last:step in degrees, a file of angles, or a list", parse_angles)]
_Path = Annotated[str, IsPath()]


@dataclass(frozen=True, kw_only=True)
class _Files:
    """What the library takes as objects, and a user as files; and what more is written.

    Parameters
    ----------
    specimens
        Folder of specimens in any format that is read: SHREC's, PolNet's, plain, copick.
    style
        Unlabelled tilt-series of a microscope: a stack, or its folder.
    noise
        File of a microscope that `faket-aug fit` wrote, or of `NoiseModel.to_json`.
    noiseless
        Also write the tomogram without noise: the other half of a denoiser's pair.
    halves
        Also write two halves with independent noise, reconstruction_even and _odd: of every other tilt (tilts), or of
        each tilt's exposure (exposures).
    density
        Also write the specimen's density.
    """

    specimens: Sequence[_Path] = ()
    style: Sequence[_Path] = ()
    noise: _Path | None = None
    noiseless: bool = False
    halves: str | None = None
    density: bool = True


def _settings() -> dict[str, Setting]:
    """Put together all that a user may say, each from the library's own parameter."""
    own = settings_of(_Files)
    simulator = simulator_settings()
    del simulator["imperfections"]
    shared: dict[str, list[Any]] = {"device": [GrandModelGenerator, StyleBank.build], "threads": [GrandModelGenerator]}
    shared |= {"quantiles": [StyleBank.build, NoiseModel.assume], "memory_budget": [StyleBank.build]}
    for name, others in shared.items():
        owners = tuple((other.__qualname__, name) for other in others)
        simulator[name] = replace(simulator[name], owners=simulator[name].owners + owners)
    for name in ("step_size", "extend"):
        simulator[name] = replace(
            simulator[name], help=f"{simulator[name].help} The file of `microscope` may say another."
        )
    own["noise"] = replace(own["noise"], called="microscope")
    encoder = {
        "weights": setting_of(VGG19Features, "weights", hint=Annotated[str, IsPath(words=("torchvision", "random"))]),
        "precision": setting_of(VGG19Features, "precision", choices=tuple(PRECISIONS)),
        "pooling": setting_of(VGG19Features, "pooling", choices=POOLINGS),
        "weights_seed": setting_of(VGG19Features, "seed", name="weights_seed"),
        "style_layers": setting_of(StyleBank.build, "style_layers"),
        "style_cache": setting_of(
            StyleBank.build, "cache", name="style_cache", hint=_Path | None, note="By default within the set."
        ),
    }
    noise = {
        "noise": own["noise"],
        "snr": setting_of(NoiseModel.assume, "snr", note="Without `microscope`."),
        "noise_order": setting_of(
            NoiseModel.assume,
            "order",
            name="noise_order",
            help=f"{parameter_help(NoiseModel.fit)['order']} Without `microscope`.",
        ),
    }
    voxel_size = setting_of(
        GrandModelGenerator,
        "voxel_size",
        also=[(read_specimens, "voxel_size")],
        help="Å, of generated specimens; and of files whose headers hold none.",
    )
    class_table = setting_of(
        GrandModelGenerator, "class_table", also=[(read_specimens, "class_names")], note="As `1=1bxn,2=3gl1`."
    )
    angles = setting_of(
        FakETSimulator,
        "tilt_angles",
        hint=Annotated[_Angles, IsPath()],
        help="Degrees: first:last:step, or a file of angles. By default those of `microscope`, of `style`, or "
        f"`{TILT_ANGLES}`.",
    )
    style = (*TRANSFER, "step_size", "keep_spectrum", "quantiles")
    machine = ("device", "threads", "memory_budget")
    microscope = {name: simulator.pop(name) for name in ("ctf", "ctf_correction")}
    filtered = {name: simulator.pop(name) for name in ("flavour", "low_pass", "deconvolution")}
    microscope |= settings_of(Imperfections)
    modality = simulator.pop("modality")
    groups: dict[str, dict[str, Setting]] = {
        FILES: {"specimens": own["specimens"], "dark": setting_of(read_specimens, "dark")},
        GENERATED: RECIPE | {"voxel_size": voxel_size, "class_table": class_table},
        TILTS: {
            "modality": replace(modality, default=None, help="What the tilts are; faket with `style`, noisy without."),
            "style": own["style"],
            "variation": variation_setting(),
        },
        STYLE: encoder | {name: simulator.pop(name) for name in style},
        MICROSCOPE: noise | microscope,
        f"{TILTS} ": {"tilt_angles": angles} | {n: simulator.pop(n) for n in list(simulator) if n not in machine},
        f" {TILTS}": filtered | simulator,
        WRITTEN: {
            "formats": setting_of(SimulatedTomogram.save, "formats", choices=PARTICLE_FORMATS),
            "noiseless": own["noiseless"],
            "halves": replace(own["halves"], choices=HALVES),
            "density": own["density"],
            "seed": setting_of(FakETDataset, "seed"),
        },
    }
    found = {n: replace(one, group=group.strip()) for group, part in groups.items() for n, one in part.items()}
    return found | {MIXTURE: replace(mixture_setting(of_simulator(found)), group=TILTS)}


def of_simulator(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return those settings that each simulator of a mixture may have."""
    return {
        name: one
        for name, one in settings.items()
        if one.group in (TILTS, STYLE, MICROSCOPE) and name not in ("style_cache", MIXTURE)
    }


SETTINGS: dict[str, Setting] = _settings()
#: What generated specimens are made from.
OF_GENERATED = tuple(RECIPE)
#: Told by the simulator's own settings, with its defaults.
_ELSEWHERE = ("FakETSimulator", "Imperfections", "VGG19Features")
#: What the file of a microscope says of its style transfer, beside the step, which was chosen with these.
OF_STYLE = ("weights", "weights_seed", "style_layers", "pooling", "quantiles", *TRANSFER)
#: What a set is compared by when it goes on.
COMPARED = tuple(
    name
    for name, one in SETTINGS.items()
    if not names_files(one.hint) and one.owners[0][0] not in _ELSEWHERE and name != MIXTURE
)
#: Written with their defaults, too.
WRITTEN_ALWAYS = ("dark", "weights", "precision", "formats", "noiseless", "density", "seed")
#: Where a list of settings may come as several options.
SEVERAL = ("membranes", "filaments", "fiducials", MIXTURE)


@dataclass(frozen=True)
class Options:
    """What `faket-aug simulate` or `fit` is told: those of `SETTINGS` that were given, by name.

    Parameters
    ----------
    given
        By name, as `read_setting` reads them. What is not there has the library's default.

    Raises
    ------
    ValueError
        If settings do not go together.
    """

    given: Mapping[str, Any]

    def __post_init__(self) -> None:
        generated = [name for name in OF_GENERATED if self[name] not in (None, ())]
        if bool(self["specimens"]) == bool(generated):
            both = ", ".join(SETTINGS[name].option for name in generated)
            raise ValueError(
                "expected either specimens from files (set --specimens) or what to generate them from (set "
                f"--templates, --membranes, --filaments or --fiducials), got {'both, ' * bool(both)}{both or 'none'}"
            )
        if self["dark"] and not self["specimens"]:
            raise ValueError("expected --dark of specimens from files, got it for generated ones; set --specimens")
        for one, other in (("counts", "concentrations"), *_EITHER):
            if self[one] is not None and self[other] is not None:
                raise ValueError(f"expected either {SETTINGS[one].option} or {SETTINGS[other].option}, got both")
        if self["modality"] == "faket" and not self["style"]:
            raise ValueError("expected tilt-series for the modality 'faket', got none; set --style")
        check_formats(self.value("formats"))
        check_count("seed", self.seed, zero=True)

    def __getitem__(self, name: str) -> Any:
        """Return what was given, or nothing."""
        assert name in SETTINGS, name
        return self.given.get(name)

    def value(self, name: str) -> Any:
        """Return what was given, or the library's default."""
        default = SETTINGS[name].default
        return self.given.get(name, None if default is MISSING else default)

    def of(self, owner: str) -> dict[str, Any]:
        """Return what was given for a class or a function of the library, by its own names.

        Parameters
        ----------
        owner
            As `FakETSimulator` or `StyleBank.build`.
        """
        found = {own: n for n, one in SETTINGS.items() for whose, own in one.owners if whose == owner}
        assert found, owner
        return {own: self.given[name] for own, name in found.items() if name in self.given}

    @property
    def recipe(self) -> dict[str, Any]:
        """What generated specimens are made from."""
        return {name: self.given[name] for name in OF_GENERATED if name in self.given}

    @property
    def seed(self) -> int:
        """Of all chance."""
        return int(self.value("seed"))

    @property
    def voxel_size(self) -> float:
        """Å, of generated specimens."""
        return float(self.value("voxel_size"))

    @property
    def modality(self) -> str:
        """The modality; by default `"faket"` with a style, `"noisy"` without."""
        return str(self["modality"] or ("faket" if self["style"] else "noisy"))

    @property
    def simulators(self) -> tuple[Options, ...]:
        """The options of each simulator of a mixture; these alone where there is none."""
        return tuple(self._with(own, number) for number, own in enumerate(self[MIXTURE] or ())) or (self,)

    def _with(self, own: Mapping[str, Any], number: int) -> Options:
        # One that has nothing in place of the common setting does not have the other.
        has = {name for name, one in own.items() if one is not None}
        other = {b if a in has else a for a, b in _EITHER if (a in has) != (b in has)}
        common = {name: one for name, one in self.given.items() if name not in (MIXTURE, *other)}
        try:
            return replace(self, given=common | {name: one for name, one in own.items() if name != WEIGHT})
        except ValueError as error:
            raise ValueError(f"mixture[{number}]: {error}") from error

    def without_paths(self) -> dict[str, Any]:
        """Return what does not lie in files, as JSON types and with the library's defaults."""
        return {name: as_json(self.value(name)) for name in COMPARED}

    @staticmethod
    def defaults() -> dict[str, Any]:
        """Return what `without_paths` says where nothing was given."""
        plain = {name: SETTINGS[name].default for name in COMPARED}
        return {name: as_json(one) for name, one in plain.items() if one is not MISSING}

    def to_json(self) -> dict[str, Any]:
        """Return those that were given, as JSON types, with whole paths."""
        always = (*WRITTEN_ALWAYS, *(BEFORE if self.recipe else ()))
        names = [n for n in SETTINGS if self[n] not in (None, ()) or n in always]
        return {name: written(SETTINGS[name], self.value(name)) for name in names}

    def but(self, **changes: Any) -> Options:
        """Return the options with others in their place."""
        return replace(self, given=dict(self.given) | changes)

    @classmethod
    def read(cls, config: Path | None, given: Mapping[str, Any]) -> Self:
        """Put the settings together; those of the command line go before those of a file.

        Parameters
        ----------
        config
            A JSON or TOML file, or the `simulation.json` of a set, or the `record.json` of a tomogram in one. Paths in
            it count from its folder.
        given
            By name, from the command line.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If there is no such file, or it holds unknown names or wrong values; the message names file and setting.
        ValueError
            For a wrong value on the command line.
        """
        values = {} if config is None else _from_file(config)
        values |= {name: from_text(SETTINGS[name], _said_of(name, value)) for name, value in given.items()}
        try:
            return cls(values)
        except ValueError as error:
            if config is None:
                raise
            raise FileFormatError(f"{config}{', with the command line' if given else ''}: {error}") from error


def from_text(setting: Setting, value: Any) -> Any:
    """Read a setting of the command line; some may be said several times."""
    if setting.name not in SEVERAL:
        return read_setting(setting, value, setting.option)
    found = [read_setting(setting, one, setting.option) for one in value]
    if len(found) == 1:
        return found[0]
    return tuple(table for one in found for table in (one if setting.name == MIXTURE else as_tables(setting.name, one)))


def written(setting: Setting, value: Any) -> Any:
    """Turn a setting into JSON types as a file says it, with whole paths."""
    return _said(read_setting(setting, _said(value), setting.name, lambda entry: str(Path.cwd() / entry)))


def _said(value: Any) -> Any:
    """Turn a setting into JSON types; a simulator of a mixture that has nothing in place of something says so."""
    if isinstance(value, tuple) and any(isinstance(one, dict) for one in value):
        return [{name: NONE if own is None else as_json(own) for name, own in one.items()} for one in value]
    return as_json(value)


def with_setting_names(table: Mapping[str, Any]) -> dict[str, Any]:
    """Put settings' names in place of those of options, which users know.

    Raises
    ------
    ValueError
        If a setting is given by both.
    """
    if "microscope" in table and "noise" in table:
        raise ValueError("expected one `microscope`, got also `noise`, which means the same; leave one of them out")
    return {"noise" if name == "microscope" else name: one for name, one in table.items()}


def _said_of(name: str, value: Any) -> Any:
    """Put settings' names into what the command line says of the simulators of a mixture, see `with_setting_names`."""
    if name != MIXTURE:
        return value
    return [re.sub(r"(^|,)\s*microscope\s*=", r"\1noise=", one) if isinstance(one, str) else one for one in value]


def _from_file(path: Path) -> dict[str, Any]:
    what = "a JSON or TOML file of settings"
    content = load_table(path, what)
    try:
        content = with_setting_names(content)
        if isinstance(content.get(MIXTURE), list):
            content[MIXTURE] = [with_setting_names(one) if isinstance(one, dict) else one for one in content[MIXTURE]]
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error
    kept = {"format", "settings", "options"} if "options" in content else {"format", "record", "origin", "files"}
    if "options" in content or "origin" in content:
        # What a set was made with, or one of its tomograms.
        content = verified(content, source=str(path), what=what)
        if not set(content) <= kept:
            other = ", ".join(sorted(set(content) - kept))
            raise FileFormatError(f"{path}: expected {', '.join(sorted(kept))} beside each other, got also {other}")
        origin = content.get("origin", content)
        options = origin.get("options") if isinstance(origin, dict) else None
        if not isinstance(options, dict):
            raise FileFormatError(f"{path}: expected `options`, settings by name, got {str(options)[:80]!r}")
        generated = not set(OF_GENERATED).isdisjoint(options)
        # A set says all that may change its numbers, but for what was not known when it was made.
        content = (BEFORE if generated else {}) | _style_as_made(options) | options
    try:
        return read_table(SETTINGS, flat(content), "", lambda entry: str(path.parent / entry), renamed=RENAMED)
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _style_as_made(options: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a set was made with where it does not: the file of its microscope may hold another style today."""
    if options.get("noise") is None:
        return {}
    plain = {name: SETTINGS[name].default for name in OF_STYLE}
    known = {name: as_json(one) for name, one in plain.items() if one is not None and one is not MISSING}
    return known | {"modality": "faket" if options.get("style") else "noisy"}


def flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Take the parts of a table `imperfections`, as the library has it, for settings of their own."""
    parts = content.get("imperfections")
    if not isinstance(parts, Mapping):
        return dict(content)
    twice = sorted(set(parts) & set(content))
    if twice:
        raise ValueError(f"expected {', '.join(twice)} once, got it within `imperfections`, too")
    return {name: one for name, one in content.items() if name != "imperfections"} | dict(parts)


def given_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among a command's values that were given, by their new names.

    What may be repeated, and was not given, is empty.
    """
    given = {name: one for name, one in values.items() if one not in (None, [], ())}
    for old in set(RENAMED) & set(given):
        given[rename(old, RENAMED[old], f"--{old}", given)] = given.pop(old)
    return {name: one for name, one in given.items() if name in SETTINGS}
