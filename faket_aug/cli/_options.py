"""Settings of `faket-aug simulate`: from a JSON file and the command line, each read and checked by its own rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from faket_aug._checks import FileFormatError, check_choice, check_count
from faket_aug.generation.filaments import FILAMENT_PRESETS
from faket_aug.geometry import as_tilt_angles
from faket_aug.simulation.saving import check_formats
from faket_aug.simulation.simulator import MODALITIES
from faket_aug.style.vgg19 import PRECISIONS

#: Degrees, where neither angles nor a style are given: first, last and step.
TILT_ANGLES = "-60:60:3"
Reader = Callable[[Any], Any]


# Reading one value: from JSON, or from a command line's text ----------------------------------------------------------


def _number(value: Any) -> float:
    if isinstance(value, bool) or value is None:
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    if _number(value) != int(float(value)):
        raise ValueError
    return int(float(value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str | Path):
        raise ValueError
    return str(value)


def _texts(value: Any) -> tuple[str, ...]:
    # Not split at commas: paths may hold them.
    return tuple(_text(part) for part in (value if isinstance(value, list | tuple) else [value]))


def _list_of(read: Reader, *sizes: int) -> Reader:
    """Read a list, or text with commas between; one value is a list of one."""

    def read_all(value: Any) -> tuple[Any, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        found = tuple(read(part) for part in (parts if isinstance(parts, list | tuple) else [parts]))
        if sizes and len(found) not in sizes:
            raise ValueError
        return found

    return read_all


def _range_of(read: Reader) -> Reader:
    """Read one value, or the lowest and the highest."""

    def read_both(value: Any) -> Any:
        found = _list_of(read, 1, 2)(value)
        return found[0] if len(found) == 1 else found

    return read_both


def _by_name(read: Reader, *, alone: bool = True) -> Reader:
    """Read values by name: a mapping, or `name=value` with commas between; or, where `alone` allows it, one for all."""

    def read_all(value: Any) -> Any:
        if isinstance(value, str) and "=" in value:
            value = dict(pair.split("=") for pair in value.split(",") if pair.strip())
        if isinstance(value, Mapping):
            return {_text(name).strip(): read(one) for name, one in value.items()}
        if not alone:
            raise ValueError
        return read(value)

    return read_all


def _species(value: Any) -> Any:
    """Read how many of each kind, or (from JSON) a list of settings."""
    if isinstance(value, list | tuple):
        if not all(isinstance(one, Mapping) for one in value):
            raise ValueError
        return [dict(one) for one in value]
    return _by_name(_whole)(value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError
    return {_text(name): one for name, one in value.items()}


def parse_angles(value: Any) -> Any:
    """Read `first:last:step` or a list into angles, degrees; a path stays as it is."""
    if not isinstance(value, str):
        return tuple(as_tilt_angles(_list_of(_number)(value)).tolist())
    if value.count(":") != 2:
        return value
    first, last, step = (float(part) for part in value.split(":"))
    if step <= 0 or last < first:
        raise ValueError
    # Half a step beyond, so that rounding does not lose the last.
    return tuple(as_tilt_angles(np.arange(first, last + step / 2, step)).tolist())


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a setting is read: the function, what it expects in words, and whether it names files."""

    read: Reader
    expected: str
    is_path: bool = False


_NUMBER, _WHOLE = Rule(read=_number, expected="a number"), Rule(read=_whole, expected="a whole number")
_WORD, _FLAG = Rule(read=_text, expected="a word"), Rule(read=_flag, expected="true or false")
_PATHS = Rule(read=_texts, expected="paths", is_path=True)
_PATH = Rule(read=_text, expected="a path", is_path=True)
_RANGE = Rule(read=_range_of(_number), expected="one number, or two with a comma between (lowest, highest)")
_NAMES = Rule(read=_list_of(_text), expected="names with commas between")
RULES: dict[str, Rule] = {
    "specimens": _PATHS,
    "dark": _FLAG,
    "templates": _PATHS,
    "distractors": _PATHS,
    "counts": Rule(read=_by_name(_whole), expected="whole numbers by name, as 1bxn=50,3gl1=20, or one for all"),
    "concentrations": Rule(
        read=_by_name(_number), expected="particles per µm³ by name, as 1bxn=500, or one number for all"
    ),
    "occupancy": _NUMBER,
    "particles": Rule(read=_by_name(_mapping, alone=False), expected="settings by name, in a file"),
    "resolution": _NUMBER,
    "membrane_bound": _NAMES,
    "membranes": Rule(read=_species, expected="whole numbers by kind, as sphere=2,sheet=1, or one for spheres"),
    "filaments": Rule(read=_species, expected="whole numbers by kind, as actin=3,microtubule=1"),
    "fiducials": _WHOLE,
    "slab": _RANGE,
    "slab_tilt": _RANGE,
    "gap": _NUMBER,
    "shape": Rule(read=_list_of(_whole, 3), expected="three whole numbers z,y,x"),
    "voxel_size": _NUMBER,
    "modality": _WORD,
    "style": _PATHS,
    "weights": Rule(read=_text, expected='a path, "torchvision" or "random"', is_path=True),
    "precision": _WORD,
    "style_layers": Rule(read=_list_of(_whole), expected="whole numbers with commas between"),
    "style_cache": _PATH,
    "step_size": _NUMBER,
    "noise": _PATH,
    "snr": _NUMBER,
    "quantiles": Rule(read=_list_of(_number, 2), expected="two numbers low,high"),
    "tilt_angles": Rule(
        read=parse_angles, expected="first:last:step in degrees, a file of angles, or a list", is_path=True
    ),
    "filter": _WORD,
    "resampling": _WORD,
    "extend": _WORD,
    "device": _WORD,
    "threads": _WHOLE,
    "formats": _NAMES,
    "noiseless": _FLAG,
    "density": _FLAG,
    "seed": _WHOLE,
}
#: What generated specimens are made from.
GENERATED = (
    *("templates", "distractors", "counts", "concentrations", "occupancy", "particles", "resolution"),
    *("membrane_bound", "membranes", "filaments", "fiducials", "slab", "slab_tilt", "gap", "shape"),
)
#: Told by the simulator's own settings, with its defaults.
ELSEWHERE = ("modality", "step_size", "filter", "resampling", "extend", "device", "threads", "quantiles", "precision")
#: Words that stand in the place of a path.
NO_PATHS = ("torchvision", "random")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `faket-aug simulate` is told; nothing (None) means the library's default.

    The names are those of the command line's options, with underscores, and those of the keys in a JSON file. `RULES`
    says what each may be.

    Raises
    ------
    ValueError
        If settings do not go together.
    """

    specimens: tuple[str, ...] = ()
    dark: bool = False

    templates: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    counts: int | dict[str, int] | None = None
    concentrations: float | dict[str, float] | None = None
    occupancy: float | None = None
    particles: dict[str, dict[str, Any]] | None = None
    resolution: float | None = None
    membrane_bound: tuple[str, ...] = ()
    membranes: int | dict[str, int] | list[dict[str, Any]] | None = None
    filaments: int | dict[str, int] | list[dict[str, Any]] | None = None
    fiducials: int | None = None
    slab: float | tuple[float, float] | None = None
    slab_tilt: float | tuple[float, float] | None = None
    gap: float | None = None
    shape: tuple[int, int, int] | None = None
    voxel_size: float | None = None

    modality: str | None = None
    style: tuple[str, ...] = ()
    weights: str = "torchvision"
    precision: str = "float32"
    style_layers: tuple[int, ...] | None = None
    style_cache: str | None = None
    step_size: float | None = None
    noise: str | None = None
    snr: float | None = None
    quantiles: tuple[float, float] | None = None
    tilt_angles: str | tuple[float, ...] | None = None
    filter: str | None = None
    resampling: str | None = None
    extend: str | None = None
    device: str | None = None
    threads: int | None = None

    formats: tuple[str, ...] = ("shrec",)
    noiseless: bool = False
    density: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        generated = [name for name in GENERATED if getattr(self, name) not in (None, ())]
        if bool(self.specimens) == bool(generated):
            both = ", ".join(f"--{name.replace('_', '-')}" for name in generated)
            raise ValueError(
                "expected either specimens from files (set --specimens) or what to generate them from (set "
                f"--templates, --membranes, --filaments or --fiducials), got {'both, ' * bool(both)}{both or 'none'}"
            )
        if self.dark and not self.specimens:
            raise ValueError("expected --dark of specimens from files, got it for generated ones; set --specimens")
        if self.counts is not None and self.concentrations is not None:
            raise ValueError("expected either --counts or --concentrations, got both")
        if self.modality is not None:
            check_choice("modality", self.modality, MODALITIES)
        if self.modality == "faket" and not self.style:
            raise ValueError("expected tilt-series for the modality 'faket', got none; set --style")
        if self.noise is not None and self.snr is not None:
            raise ValueError("expected either --noise or --snr, got both")
        check_choice("precision", self.precision, PRECISIONS)
        check_formats(self.formats)
        check_count("seed", self.seed, zero=True)

    @property
    def chosen_modality(self) -> str:
        """The modality; by default `"faket"` with a style, `"noisy"` without."""
        return self.modality or ("faket" if self.style else "noisy")

    def without_paths(self) -> dict[str, Any]:
        """Return what does not lie in files, as JSON types: the same wherever the files are."""
        names = [name for name, rule in RULES.items() if not rule.is_path and name not in ELSEWHERE]
        return dict(json.loads(json.dumps({name: getattr(self, name) for name in names})))

    def to_json(self) -> dict[str, Any]:
        """Return those that were given, as JSON types, with whole paths."""
        given = {name: getattr(self, name) for name in RULES if getattr(self, name) not in (None, ())}
        whole = {name: _under(Path.cwd(), value) for name, value in given.items() if RULES[name].is_path}
        if self.filaments is not None:
            whole["filaments"] = _subunits_under(Path.cwd(), self.filaments)
        return dict(json.loads(json.dumps(given | whole)))

    @classmethod
    def read(cls, config: Path | None, given: Mapping[str, Any]) -> Self:
        """Put the settings together; those of the command line win over those of a file.

        Parameters
        ----------
        config
            A JSON file, or the `simulation.json` of a set, or the `record.json` of a tomogram in one. Paths in it count
            from its folder.
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
        for name, value in given.items():
            values[name] = _read_value(name, value, f"--{name.replace('_', '-')}", Path())
        return cls(**values)


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"expected a JSON file of settings, found none at {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{path}: expected JSON, got {error}") from error
    # What a set was made with, or one of its tomograms.
    origin = content.get("origin", content) if isinstance(content, dict) else {}
    content = origin.get("options", content) if isinstance(origin, dict) else content
    if not isinstance(content, dict):
        raise FileFormatError(f"{path}: expected settings by name, got {str(content)[:80]!r}")
    unknown = sorted(set(content) - set(RULES))
    if unknown:
        raise FileFormatError(f"{path}: expected settings of {', '.join(RULES)}, got {', '.join(unknown)}")
    try:
        return {
            name: _read_value(name, value, f"`{name}`", path.parent)
            for name, value in content.items()
            if value is not None
        }
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _read_value(name: str, value: Any, called: str, folder: Path) -> Any:
    rule = RULES[name]
    try:
        found = rule.read(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"expected {called} to be {rule.expected}, got {value!r}") from None
    if name == "filaments":
        return _subunits_under(folder, found)
    return _under(folder, found) if rule.is_path else found


def _subunits_under(folder: Path, filaments: Any) -> Any:
    """Let the subunits of filaments count from a folder where they are files."""

    def path_of(subunit: str) -> str:
        return subunit if subunit in FILAMENT_PRESETS else str(folder / subunit)

    if not isinstance(filaments, list):
        return filaments
    return [one | {"subunit": path_of(str(one["subunit"]))} if "subunit" in one else one for one in filaments]


def _under(folder: Path, found: Any) -> Any:
    """Let paths count from a folder."""
    if isinstance(found, tuple):
        return tuple(_under(folder, one) for one in found)
    return str(folder / found) if isinstance(found, str) and found not in NO_PATHS else found
