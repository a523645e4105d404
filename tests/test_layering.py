"""The package's layout: a module imports only from the rows above its own, and the contents page is quick and quiet."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import faket_aug

PACKAGE = Path(faket_aug.__file__).parent

#: Things that read, make and write themselves.
THINGS = (
    *("assembly", "filaments", "generation", "membranes", "placement", "procedural", "saving", "species", "specimen"),
    *(
        "alignment",
        "labelling",
        "microscope",
        "specimens",
        "stylebank",
        "templates",
        "tilted",
        "tiltseries",
        "tomogram",
    ),
)

#: Stages of a simulation, and what belongs to them: tensors only.
STAGES = (
    *("ctf", "features", "noise", "potential", "projection", "reconstruction", "response", "style", "unpaired"),
    *("damage", "detector", "imperfections", "misalignment", "reprojection", "thonrings"),
)

#: The rows of the design's layout (section 2), from the ground up; a module that is in none of them fails the test.
ROWS = (
    ("_background", "_checks", "_distributed", "_memory", "_parts", "_progress", "_random", "_threads"),
    (
        "geometry",
        "sparse",
        "statistics",
        "augmentation",
        "filters",
        "patches",
        "pooling",
        "resample",
        "ringpower",
        "spectra",
    ),
    ("formats", "formats.*"),
    STAGES,
    THINGS,
    # The simulator is the only module that knows stages and things; sampling cuts patches from things.
    ("sampling", "simulator", "simulator_settings"),
    ("dataset", "mixing", "stepsize"),
    ("picking", "picking.*"),
    ("cli", "cli.*"),
)

#: Within a row: who may import whom. Cycles are never allowed.
BESIDE = (
    (("_random", "_memory"), ("_checks",)),
    (("_progress",), ("_random",)),
    (("statistics", "augmentation", "filters", "patches", "resample"), ("geometry", "sparse")),
    (("filters", "patches", "resample", "spectra"), ("statistics",)),
    (("spectra",), ("geometry",)),
    (("formats", "formats.*"), ("formats.mrc", "formats._atomic", "formats.particles", "formats.tilts")),
    (("noise", "response", "thonrings", "unpaired"), ("ctf",)),
    (("noise", "unpaired"), ("response",)),
    (("noise",), ("unpaired",)),
    (("imperfections",), ("damage", "detector", "misalignment")),
    (("reprojection",), ("projection", "reconstruction")),
    (THINGS,) * 2,
    (("simulator",), ("simulator_settings",)),
    (("picking", "picking.*"),) * 2,
    (("mixing",), ("dataset",)),
    (("cli", "cli.*"),) * 2,
)

#: What the contents page leaves out: learning and the command line.
NOT_ON_THE_CONTENTS_PAGE = ("picking", "picking.*", "cli", "cli.*")
ROOT = ""


def _matches(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def _row(module: str) -> int | None:
    return next((i for i, row in enumerate(ROWS) if _matches(module, row)), None)


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
        return not _matches(other, NOT_ON_THE_CONTENTS_PAGE)
    if other == ROOT:
        return _matches(module, ("cli", "cli.*"))
    own, theirs = _row(module), _row(other)
    if own is None or theirs is None or theirs > own:
        return False
    return theirs < own or any(_matches(module, who) and _matches(other, whom) for who, whom in BESIDE)


@pytest.mark.parametrize("module", [name for name in MODULES if name != ROOT])
def test_every_module_has_a_row(module: str) -> None:
    """Every module has its row in the layout; a new one is put there on purpose."""
    assert _row(module) is not None, f"faket_aug.{module} is in no row of tests/test_layering.py"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_upwards(module: str) -> None:
    """A module imports only from the rows above its own, wherever in the file it does."""
    wrong = sorted(other for other in _imports(module) if not _may_import(module, other))
    assert not wrong, f"faket_aug.{module} imports {wrong}"


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


@pytest.mark.parametrize("name", ["torchvision", "matplotlib", "kornia", "faket_aug.picking", "faket_aug.cli"])
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
