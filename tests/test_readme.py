"""The README's commands are the ones that CI runs; the package's first page and its version are as they should be."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib

import faket_aug
from tests._documents import ROOT, blocks


def test_ci_runs_the_readme_test_command() -> None:
    """CI calls the test command of the README, letter for letter; the README has two commands, each with its set-up."""
    found = [block.code.strip() for block in blocks(ROOT / "README.md") if block.language == "bash"]
    commands = [code for code in found if "venv" in code]
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") and "\n" not in command for command in commands)
    demo, tests = commands
    assert demo.endswith("faket-aug demo")
    assert "-m pytest" in tests
    assert tests in (ROOT / ".ci" / "run").read_text().splitlines()


def test_init_is_a_contents_page() -> None:
    """`__init__` holds a docstring, imports, the version and sorted exports; nothing is computed."""
    tree = ast.parse((ROOT / "faket_aug" / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    for node in tree.body[1:]:
        assert isinstance(node, ast.ImportFrom | ast.Assign), ast.unparse(node)
        if isinstance(node, ast.Assign):
            ast.literal_eval(node.value)
    constants_first = sorted(faket_aug.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert faket_aug.__all__ == constants_first
    assert all(hasattr(faket_aug, name) for name in faket_aug.__all__)


def test_version_is_the_installed_one() -> None:
    """The version in the code is the one of the distribution, which takes it from the code and from nowhere else."""
    from importlib.metadata import version

    assert faket_aug.__version__ == version("faket_aug")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in settings["project"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "faket_aug.__version__"}
    assert faket_aug.__version__ not in (ROOT / "CITATION.cff").read_text()


def test_import_is_silent() -> None:
    """Importing prints nothing and warns of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import faket_aug"], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
