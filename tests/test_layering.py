"""The layout: a module imports only from the rooms below its own, and the contents page is quick and quiet."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import faket_aug

PACKAGE = Path(faket_aug.__file__).parent

#: The floors of the house, from the ground up: a module imports only from rooms below its own, and from its own room.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        *("_runtime", "_arrays", "_checks", "_deprecations", "_identity", "_masks", "_random", "_settings", "_reading"),
        *("geometry", "statistics"),
    ),
    ("formats", "tomography"),
    ("microscope",),
    ("tilts",),
    ("specimens", "style"),
    ("generation", "simulation"),
    ("data",),
    ("figures",),
    ("picking", "demo"),
    ("comparison", "training"),
    ("cli",),
)

#: On the ground: who may import whom.
ON_THE_GROUND = {
    "_runtime": {"_checks"},
    "_random": {"_checks"},
    "_reading": {"_checks", "_settings"},
    "geometry": {"_arrays"},
    "statistics": {"_checks", "_masks", "_runtime"},
}

#: Modules of more than 400 lines, each with why it is one module.
LONG_MODULES = {
    "cli._options": "the settings of `simulate` as one table, and each place that they are read from",
    "simulation.fit_microscope": "one fit, its stages and what it gives",
    "simulation.simulator": "all settings of a simulator, and the trip of a specimen",
    "formats.copick": "one format, read and written",
    "formats.star": "one format, read and written",
    "formats.structures": "two formats, what they leave out, and their download",
    "formats.tilt_metadata": "one class, and how two of its kind are matched",
    "generation.generator": "one class, its settings, their checks, and the making of a specimen",
    "generation.templates": "one class, made from maps and from atomic structures, of one file or of many",
    "microscope.noise": "the kinds of noise, and the docstrings of their three fits",
}
MAX_LINES = 400

#: What the contents page leaves out: learning and the command line.
NOT_ON_THE_CONTENTS_PAGE = ("picking", "demo", "comparison", "training", "cli", "figures")
ROOT = ""


def _room(module: str) -> str:
    return module.split(".")[0]


def _floor(module: str) -> int | None:
    return next((i for i, rooms in enumerate(FLOORS) if _room(module) in rooms), None)


def _name(path: Path) -> str:
    """Return the module's name below `faket_aug.`; the contents page is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(module: str) -> set[str]:
    """Find every import of the package in a module, inner and relative ones included, as module names."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "faket_aug"}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["faket_aug", *filter(None, package)][: len(package) + 2 - node.level]
                base = ".".join([*above, *filter(None, [node.module])])
            if base.split(".")[0] == "faket_aug":
                found |= {_resolve(base, alias.name) for alias in node.names}
    return {name.removeprefix("faket_aug").removeprefix(".") for name in found} - {module}


def _resolve(base: str, name: str) -> str:
    """Tell whether `from base import name` means a module or something within one."""
    below = f"{base}.{name}".removeprefix("faket_aug.")
    if below in MODULES:
        return f"faket_aug.{below}"
    # The version is set before anything else is imported, and means no layer.
    return "faket_aug._checks" if (base, name) == ("faket_aug", "__version__") else base


def _may_import(module: str, other: str) -> bool:
    if module == ROOT:
        return _room(other) not in NOT_ON_THE_CONTENTS_PAGE
    if other == ROOT:
        return _room(module) == "cli"
    own, theirs = _floor(module), _floor(other)
    if own is None or theirs is None:
        return False
    beside = _room(module) == _room(other) or _room(other) in ON_THE_GROUND.get(_room(module), ())
    return theirs < own or beside


@pytest.mark.parametrize("module", [name for name in MODULES if name != ROOT])
def test_every_module_has_a_floor(module: str) -> None:
    """Every room has its floor; a new one is put there on purpose."""
    assert _floor(module) is not None, f"faket_aug.{module} is on no floor of tests/test_layering.py"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    """A module imports only from its own room and from those below, wherever in the file it does."""
    wrong = sorted(other for other in _imports(module) if not _may_import(module, other))
    assert not wrong, f"faket_aug.{module} imports {wrong}"


@pytest.mark.parametrize("module", MODULES)
def test_private_names_stay_at_home(module: str) -> None:
    """A module imports no private name of another: what two modules use has a public name where it stands."""
    taken = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "faket_aug"
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert not [name for name in taken if name.removeprefix("faket_aug.") not in MODULES]


def test_long_modules_have_a_reason() -> None:
    """A module of more than 400 lines says why it is one; a reason for a module that is short goes."""
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    long = {name for name, count in lines.items() if count > MAX_LINES}
    assert long == set(LONG_MODULES), {name: lines.get(name) for name in long ^ set(LONG_MODULES)}
    assert all(LONG_MODULES.values())


def test_no_cycles() -> None:
    """No chain of imports leads back to where it began."""
    graph = {module: _imports(module) for module in MODULES if module != ROOT}
    done: set[str] = set()

    def visit(module: str, chain: tuple[str, ...]) -> None:
        assert module not in chain, " -> ".join((*chain, module))
        if module in done:
            return
        for other in sorted(graph.get(module, ())):
            visit(other, (*chain, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_the_parser_sees_all_kinds_of_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain, aliased, inner, relative and conditional imports are all found (the test of this test)."""
    path = tmp_path / "module.py"
    path.write_text(
        "import torch\nimport faket_aug.noise as n\nfrom faket_aug import style, __version__, project\n"
        "from faket_aug.formats import mrc\nfrom . import losses\nfrom .network import Net\nfrom .. import filters\n"
        "from ..formats.star import read\n"
        "def f():\n    from faket_aug.dataset import FakETDataset\n"
        "if False:\n    import faket_aug.simulator\n"
    )
    names = ("noise", "style", "formats", "formats.mrc", "formats.star", "picking", "picking.losses", "picking.network")
    for name in (*names, "filters", "dataset", "simulator", "_checks", ROOT):
        monkeypatch.setitem(MODULES, name, MODULES.get(name, path))
    monkeypatch.setitem(MODULES, "picking.module", path)
    assert _imports("picking.module") == {
        *("noise", "style", "formats.mrc", "formats.star", "picking.losses", "picking.network"),
        *("filters", "dataset", "simulator", "_checks", ROOT),
    }


# --- importing --------------------------------------------------------------------------------------------------------

_PROBE = """
import json, sys
events = []
network = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")
sys.addaudithook(lambda event, args: events.append(event) if event in network else None)
import threading, torch
state, threads = torch.get_rng_state(), torch.get_num_threads()
import faket_aug
found = json.dumps(
    {
        "modules": sorted(sys.modules),
        "network": events,
        "gpu": torch.cuda.is_initialized(),
        "threads": threading.active_count(),
        "untouched": torch.equal(state, torch.get_rng_state()) and threads == torch.get_num_threads(),
        "all": {name: hasattr(faket_aug, name) for name in getattr(faket_aug, "__all__", [])},
    }
)
with open(sys.argv[1], "w") as file:
    file.write(found)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a fresh Python knows after `import faket_aug`."""
    folder = tmp_path_factory.mktemp("import")
    command = [sys.executable, "-W", "error", "-c", _PROBE, "found.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {**json.loads((folder / "found.json").read_text()), "output": done.stdout + done.stderr}


def test_import_is_silent(imported: dict[str, object]) -> None:
    """`import faket_aug` prints nothing, warns of nothing, asks no network, touches no GPU and starts no thread."""
    assert imported["output"] == ""
    assert imported["network"] == []
    assert imported["gpu"] is False
    assert imported["threads"] == 1
    assert imported["untouched"] is True


@pytest.mark.parametrize(
    "name",
    [
        *("torchvision", "matplotlib", "kornia", "sklearn", "copick", "skimage", "gemmi", "torch_ctf"),
        *("faket_aug.picking", "faket_aug.cli", "faket_aug.style.kernels", "triton"),
    ],
)
def test_import_leaves_out(imported: dict[str, object], name: str) -> None:
    """`import faket_aug` does not import what is slow, optional, or another purpose's."""
    modules = imported["modules"]
    assert isinstance(modules, list)
    assert not [module for module in modules if module == name or module.startswith(f"{name}.")]


def test_contents_page_keeps_its_word(imported: dict[str, object]) -> None:
    """Every name of `__all__` exists, once; the page computes nothing."""
    names = list(getattr(faket_aug, "__all__", []))
    assert imported["all"] == dict.fromkeys(names, True)
    assert len(set(names)) == len(names)
    body = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    for node in body:
        assert isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign), ast.dump(node)
        if isinstance(node, ast.Assign):
            ast.literal_eval(node.value)
