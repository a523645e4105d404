"""Options, files and signatures say the same: no default of a setting is written twice."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
from typer.testing import CliRunner

import faket_aug
from faket_aug._checks import FileFormatError
from faket_aug._reading import explained, read_value, shown
from faket_aug._settings import FROM, Setting, settings_of
from faket_aug.cli import app
from faket_aug.cli._commands import taking
from faket_aug.cli._options import COMPARED, SETTINGS, Options
from faket_aug.cli.demo import _SETTINGS as DEMO
from faket_aug.cli.demo import demo
from faket_aug.cli.fit import _OPTIONS as FIT
from faket_aug.cli.fit import fit
from faket_aug.cli.simulate import simulate
from faket_aug.comparison.arms import SIMULATOR, Arm
from faket_aug.comparison.settings import TABLES, Comparison, described
from faket_aug.data.dataset import FakETDataset
from faket_aug.demo.settings import RoundTrip
from faket_aug.generation.recipe import RECIPE, _Templates
from faket_aug.picking.clustering import pick
from faket_aug.picking.inference import TILE_SIZE, segment
from faket_aug.picking.network import DeepFinderNet
from faket_aug.picking.scoring import evaluate_shrec
from faket_aug.picking.settings import TrainingSettings
from faket_aug.simulation.plain_settings import OF_FILES
from faket_aug.specimens.readers import read_specimens

PACKAGE = Path(faket_aug.__file__).parent
#: Whatever a setting is of, by the name that its `owners` have.
OWNERS: dict[str, Any] = {
    **{
        one.__qualname__: one
        for one in (
            *(faket_aug.FakETSimulator, faket_aug.Imperfections, faket_aug.ContrastTransfer, faket_aug.VGG19Features),
            *(faket_aug.StyleBank.build, faket_aug.NoiseModel.assume, faket_aug.SimulatedTomogram.save),
            *(faket_aug.GrandModelGenerator, faket_aug.ParticleSpecies, faket_aug.MembraneSpecies, faket_aug.IceSlab),
            *(faket_aug.FilamentSpecies, faket_aug.FiducialSpecies, faket_aug.read_templates, read_specimens),
            *(faket_aug.GrandModel.from_shrec, faket_aug.fit_microscope, faket_aug.choose_step_size, FakETDataset),
            *(TrainingSettings, DeepFinderNet, segment, pick, evaluate_shrec, _Templates, RoundTrip),
            faket_aug.VariedSimulator,
        )
    },
    "_Files": None,
}
#: Composed of several parameters, or narrower than the parameter: these have no default, or the parameter's means
#: something else.
COMPOSED = {
    *("modality", "membrane_bound", "particles", "membranes", "filaments", "fiducials", "slab_tilt", "voxel_size"),
    *("variation", "mixture"),
}
EVERY = {
    **{f"simulate {n}": one for n, one in SETTINGS.items()},
    **{f"fit {one.name}": one for one in FIT},
    **{f"demo {n}": one for n, one in DEMO.items()},
    **{f"arm {n}": one for n, one in SIMULATOR.items()},
    **{f"generated {n}": one for n, one in RECIPE.items()},
    **{f"{table} {n}": one for table, settings in TABLES.items() for n, one in settings.items()},
}


def _parameter(owner: str, name: str) -> Any:
    """The default that the library's own signature has, by `inspect`, not by what is under test."""
    source = OWNERS[owner]
    if dataclasses.is_dataclass(source):
        (own,) = (one for one in dataclasses.fields(source) if one.name == name)
        return own.default if own.default_factory is dataclasses.MISSING else own.default_factory()
    default = inspect.signature(source).parameters[name].default
    return dataclasses.MISSING if default is inspect.Parameter.empty else default


@pytest.mark.parametrize("name", EVERY)
def test_a_setting_is_the_librarys(name: str) -> None:
    """Each setting belongs to a parameter that exists, and its default is the one of the library's signature."""
    setting = EVERY[name]
    for owner, parameter in setting.owners:
        if OWNERS[owner] is not None:
            default = _parameter(owner, parameter)
            if (owner, parameter) == setting.owners[0] and setting.name not in COMPOSED:
                assert setting.default is default or setting.default == default
    assert setting.help, f"{name} is not explained by the library"


@pytest.mark.parametrize("command", [simulate, fit, demo])
def test_options_have_no_defaults(command: Callable[..., None]) -> None:
    """A setting that is not given is not passed on: the library's default stands there alone."""
    parameters = inspect.signature(command).parameters
    names = {"simulate": SETTINGS, "demo": DEMO}.get(command.__name__, {o.name: o for o in FIT})
    assert set(names) <= set(parameters)
    assert {name: parameters[name].default for name in names} == dict.fromkeys(names)


@pytest.mark.parametrize("command", ["simulate", "fit", "demo"])
def test_help_has_the_librarys_words(command: str) -> None:
    """`--help` shows each option with the docstring's words, its choices and the library's default."""
    settings = {"simulate": SETTINGS, "demo": DEMO}.get(command, {o.name: o for o in FIT})
    output = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "2000", "TERM": "dumb"}).output
    for setting in settings.values():
        (line,) = [one for one in output.splitlines() if one.lstrip("│ *").startswith(f"{setting.option} ")]
        plain = line.replace("`", "").replace("*", "")
        words = setting.help.replace("`", "").replace("*", "").rstrip(".").split("  ")[0]
        assert words[:60] in plain
        if explained(setting).endswith(f"default: {shown(setting.default)}."):
            assert f"default: {shown(setting.default)}." in plain
        assert all(str(choice) in plain for choice in setting.choices)


def test_another_default_shows() -> None:
    """Were the library's default another one, help and value would be (the test of these tests)."""

    def changed(*, gap: float = 7.25) -> None:
        """Do.

        Parameters
        ----------
        gap
            Å between particles.
        """

    settings = settings_of(changed)
    assert explained(settings["gap"]) == "Å between particles; default: 7.25."

    @taking(settings.values())
    def command(**given: Any) -> None:
        """Do it."""

    parameter = inspect.signature(command).parameters["gap"]
    assert parameter.default is None
    assert parameter.annotation.__metadata__[0].help == "Å between particles; default: 7.25."


def test_everything_of_the_library_can_be_said() -> None:
    """Each parameter of the simulator, the generator, the style bank ... has an option, or is made of files."""
    said = {owner for one in SETTINGS.values() for owner in one.owners}
    composed = {
        # Made of other options, or of files.
        "FakETSimulator": {*OF_FILES, "imperfections"} - {"tilt_angles"},
        "StyleBank.build": {"tilt_series", "features"},
        "NoiseModel.assume": {"target", "tilt_angles", "measured"},
        # The folder is the command's argument; the specimen follows from `density`, the project is the set's.
        "SimulatedTomogram.save": {"folder", "specimen", "noiseless", "copick_project", "origin"},
        "GrandModelGenerator": set(),
        "VGG19Features": set(),
        "Imperfections": set(),
        "read_specimens": {"paths"},
        # The middle of a map lies on a filament's axis, and anywhere else of a particle.
        "read_templates": {"source", "voxel_size", "recenter"},
    }
    for owner, without in composed.items():
        parameters = settings_of(OWNERS[owner])
        assert {name for name in parameters if (owner, name) not in said} == without, owner


def test_everything_of_a_species_can_be_said() -> None:
    """Each setting of a species is one of a table, by kind or by class."""
    for name, species, without in (
        ("particles", faket_aug.ParticleSpecies, {"templates", "name", "label"}),
        ("membranes", faket_aug.MembraneSpecies, {"kind"}),
        ("filaments", faket_aug.FilamentSpecies, {"subunit"}),
        ("fiducials", faket_aug.FiducialSpecies, set()),
        ("slab", faket_aug.IceSlab, set()),
    ):
        shown_settings = explained(RECIPE[name]).split("settings: ")[1].rstrip(".").split(", ")
        assert set(shown_settings) == set(settings_of(species)) - without


# --- the comparison's file --------------------------------------------------------------------------------------------

_TOP = {**settings_of(Comparison), **settings_of(Arm)}
LINKED = {
    f"{kind.__name__}.{one.name}": (one, kind)
    for kind in (Comparison, Arm, RoundTrip)
    for one in dataclasses.fields(kind)
    if FROM in one.metadata
}


@pytest.mark.parametrize("name", LINKED)
def test_the_files_settings_are_the_librarys(name: str) -> None:
    """A field that stands for a parameter has its default, as an object, its help, and a type that takes it."""
    own, kind = LINKED[name]
    setting: Setting = settings_of(kind)[own.name]
    ((owner, parameter),) = setting.owners
    default = _parameter(owner, parameter)
    assert own.default is default or own.default == default
    assert setting.help == settings_of(OWNERS[owner])[parameter].help != ""
    assert read_value(setting.hint, default, "`x`") == (tuple(default) if isinstance(default, list) else default)


def test_the_files_settings_are_described() -> None:
    """`compare --settings` lists every key of the file with type and default."""
    output = CliRunner().invoke(app, ["compare", "--settings"]).output
    assert [line for line in output.splitlines() if line.startswith("[")] == [
        f"[{table}]" for table in described() if table
    ]
    help_ = settings_of(segment)["tile_size"].help.replace("`", "").rstrip(".")
    assert f"tile_size (a whole number): {help_}; default: {TILE_SIZE}." in output
    assert "[arms.NAME.simulator]" in output
    assert set(TABLES) < set(described())


# --- no second literal ------------------------------------------------------------------------------------------------

#: Rooms and modules that take settings from below.
UPPER = ("cli", "comparison", "demo", "generation/recipe.py", "simulation/plain_settings.py")
#: Defaults that are others than the library's on purpose.
OWN_DEFAULTS = {
    ("comparison/settings.py", "class_balanced"): "published trainings are balanced",
    ("comparison/settings.py", "patches_per_tomogram"): "published: 250",
    ("demo/settings.py", "patches_per_tomogram"): "small enough for a minute",
    ("demo/microscope.py", "amplitude_contrast"): "a microscope that shares nothing with the library's",
    ("cli/_look.py", "voxel_size"): "0 where it is not known",
    ("demo/settings.py", "patch_size"): "small enough for a minute",
    ("demo/settings.py", "shape"): "small enough for a minute",
    ("comparison/settings.py", "noise"): "how it is fitted, not a model",
    ("comparison/settings.py", "specimens"): "which ones, not folders",
    ("comparison/summary.py", "seed"): "of the bootstrap",
    ("generation/recipe.py", "factor"): "declared there",
    ("cli/_options.py", "noiseless"): "declared there",
    ("cli/_options.py", "density"): "declared there",
    ("demo/settings.py", "steps"): "declared there",
    ("demo/settings.py", "output"): "declared there",
    ("comparison/settings.py", "steps"): "published: 70 epochs of 100 steps",
    ("comparison/check_settings.py", "steps"): "of a small classifier",
    ("comparison/check_settings.py", "low_pass"): "of the template matching",
}


def _library() -> dict[str, list[Any]]:
    """All defaults of the library's parameters that settings stand for, by the settings' names."""
    found: dict[str, list[Any]] = {}
    for setting in (*EVERY.values(), *_TOP.values()):
        for owner, parameter in setting.owners:
            if OWNERS.get(owner) is not None:
                default = _parameter(owner, parameter)
                if default not in (None, (), dataclasses.MISSING):
                    found.setdefault(setting.name, []).append(default)
                    found.setdefault(parameter, []).append(default)
    return found


def _literals(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """Names with a literal as their default: of fields, parameters, `.get(name, literal)` and `getattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
                    yield from _literal(line.target.id, line.value)
        elif isinstance(node, ast.FunctionDef | ast.Lambda):
            arguments = node.args
            positional = [*arguments.posonlyargs, *arguments.args]
            last = positional[len(positional) - len(arguments.defaults) :]
            pairs = [*zip(last, arguments.defaults, strict=True)]
            pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
            for argument, default in pairs:
                yield from _literal(argument.arg, default)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            place = {"get": 0, "pop": 0, "getattr": 1}.get(called)
            if place is not None and len(node.args) == place + 2 and isinstance(node.args[place], ast.Constant):
                yield from _literal(str(node.args[place].value), node.args[place + 1])
        elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            # `options["gap"] or 0.5`
            first, last_ = node.values[0], node.values[-1]
            if isinstance(first, ast.Subscript) and isinstance(first.slice, ast.Constant):
                yield from _literal(str(first.slice.value), last_)


def _literal(name: str, value: ast.expr) -> Iterator[tuple[str, Any]]:
    try:
        found = ast.literal_eval(value)
    except ValueError:
        return
    if found is not None and found != ():
        yield name, found


def _modules() -> dict[str, Path]:
    paths = [path for room in UPPER for path in ([PACKAGE / room] if ".py" in room else (PACKAGE / room).glob("*.py"))]
    return {str(path.relative_to(PACKAGE)): path for path in paths}


def test_no_default_is_written_twice() -> None:
    """No module above the library has a literal of its own for a setting of the library."""
    library = _library()
    twice = [
        f"{module}: {name} = {value!r}"
        for module, path in _modules().items()
        for name, value in _literals(ast.parse(path.read_text(encoding="utf-8")))
        if name in library and (module, name) not in OWN_DEFAULTS
    ]
    assert not twice
    assert len(library) > 40


def test_own_defaults_are_others() -> None:
    """What is excused is not the library's default over again."""
    library = _library()
    declared = ("noise", "specimens", "factor", "noiseless", "density", "seed", "output", "steps", "amplitude_contrast")
    for module, path in _modules().items():
        for name, value in _literals(ast.parse(path.read_text(encoding="utf-8"))):
            if (module, name) in OWN_DEFAULTS and name not in declared:
                assert value not in library.get(name, []), f"{module}: {name}"


@pytest.mark.parametrize(
    "text",
    [
        "class A:\n    filter: str = 'shrec'",
        "def f(*, threads: int = 1): ...",
        "def f(step_size=0.15): ...",
        "x = given.get('gap', 0.0)",
        "x = getattr(made, 'iterations', 1)",
        "x = options['precision'] or 'float32'",
    ],
)
def test_a_second_literal_is_found(text: str) -> None:
    """Each way of writing a default again is seen (the test of the test)."""
    ((name, value),) = _literals(ast.parse(text))
    assert value in _library()[name]


# --- options ----------------------------------------------------------------------------------------------------------


def test_file_and_command_line_read_the_same(tmp_path: Path) -> None:
    """JSON, TOML and the command line give the same settings; the library's objects are made of them."""
    toml = """
fiducials = 2
shape = [16, 24, 32]
tilt_angles = [-30, 0, 30]
iterations = 3
content_layers = [3, 8]
ctf_correction = "phase-flip"
ctf = {defocus = 3, spread = 1}
[imperfections]
misalignment = {shift = 5, rotation = 0.2}
damage = {per_tilt = 3}
detector = {at_nyquist = 0.4}
"""
    (tmp_path / "a.toml").write_text(toml)
    from_toml = Options.read(tmp_path / "a.toml", {})
    flags = {
        **{"fiducials": ["2"], "shape": "16,24,32", "tilt_angles": "-30:30:30", "iterations": "3"},
        **{"content_layers": "3,8", "ctf_correction": "phase-flip", "ctf": "defocus=3.0,spread=1.0"},
        **{"misalignment": "shift=5,rotation=0.2", "damage": "per_tilt=3", "detector": "at_nyquist=0.4"},
    }
    given = Options.read(None, flags)
    assert dict(given.given) == dict(from_toml.given)
    assert given.of("FakETSimulator")["ctf"] == faket_aug.ContrastTransfer(defocus=3.0, spread=1.0)
    assert given.of("Imperfections")["damage"] == faket_aug.ExposureDamage(per_tilt=3.0)
    (tmp_path / "again.json").write_text(json.dumps(given.to_json()))
    always = ("dark", "weights", "precision", "formats", "noiseless", "density", "seed", "packing", "interpolation")
    assert dict(Options.read(tmp_path / "again.json", {}).given) == dict(given.given) | {
        name: given.value(name) for name in always
    }


def test_a_table_is_refused_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("fiducials = 1\nctf = {defocus = 3, spred = 1}\n")
    with pytest.raises(ValueError, match=r"a.toml: expected settings of `ctf` to be defocus, .*, got spred"):
        Options.read(tmp_path / "a.toml", {})
    (tmp_path / "a.toml").write_text("fiducials = 1\ndamage.per_tilt = 1\nimperfections.damage.per_tilt = 2\n")
    with pytest.raises(ValueError, match="expected damage once, got it within `imperfections`, too"):
        Options.read(tmp_path / "a.toml", {})


def test_no_microscope_keeps_the_common_white_noise(tmp_path: Path) -> None:
    """A simulator of a mixture that has no microscope has the common strength of noise; one with it does not."""
    common, microscope = "fiducials = 1\nsnr = 0.3\nnoise_order = 1\n", "microscope = 'fitted.json'"
    (tmp_path / "a.toml").write_text(f"{common}[[mixture]]\nmicroscope = 'none'\n[[mixture]]\n{microscope}\n")
    white, fitted = Options.read(tmp_path / "a.toml", {}).simulators
    assert (white["noise"], white["snr"], white["noise_order"]) == (None, 0.3, 1)
    assert (fitted["noise"], fitted["snr"], fitted["noise_order"]) == (str(tmp_path / "fitted.json"), None, None)
    (tmp_path / "b.toml").write_text(f"fiducials = 1\n{microscope}\n[[mixture]]\nsnr = 0.2\n")
    (only,) = Options.read(tmp_path / "b.toml", {}).simulators
    assert (only["noise"], only["snr"]) == (None, 0.2)


def test_what_a_set_is_compared_by_has_the_librarys_defaults() -> None:
    """A setting that is said to be its default is the same as one that is not said."""
    plain = Options({"fiducials": 1})
    said = Options({"fiducials": 1, "gap": 0.0, "shape": (200, 512, 512), "snr": 0.1})
    assert plain.without_paths() == said.without_paths()
    assert set(plain.without_paths()) == set(COMPARED)
    told: Mapping[str, Any] = plain.without_paths()
    assert told["shape"] == list(faket_aug.GrandModelGenerator.shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fiducials = 1\nseed = -1\n", "expected `seed` to be a whole number of 0 or more, got -1"),
        ("seed = 1\n", "expected either specimens from files"),
        ('fiducials = 1\nformats = ["shrec", "shrec"]\n', "expected each of `formats` once"),
        ('fiducials = 1\ntilt_angles = "-60:60:1e-9"\n', "expected `tilt_angles` to be first:last:step"),
        ("fiducials = 1\ntilt_angles = [0.0, 1e24]\n", "expected `tilt_angles` to be first:last:step"),
        ("fiducials = 1\nnoise = 'a'\nmicroscope = 'b'\n", "expected one `microscope`, got also `noise`, which"),
        ("fiducials = 1\n[[mixture]]\nnoise = 'a'\nmicroscope = 'b'\n", "expected one `microscope`, got also `noise`,"),
        ("fiducials = 1\nbinning = 'block'\nresampling = 'block'\n", "expected `resampling` once, got also `binning`,"),
    ],
)
def test_what_cannot_be_is_refused_with_the_files_name(tmp_path: Path, text: str, message: str) -> None:
    """Also settings that are wrong only together, and angles that no stage has."""
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=f"settings.toml: {message}"):
        Options.read(path, {})
    if "formats" in text:
        with pytest.raises(FileFormatError, match=f"settings.toml, with the command line: {message}"):
            Options.read(path, {"seed": "1"})
