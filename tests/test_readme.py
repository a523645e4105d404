"""The README stays true: its commands are the ones that CI runs, and its code runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import faket_aug
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from tests._helpers import blobs, narrow_state

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
#: As many tilts as make the code run quickly; the README's own shapes are SHREC's.
ANGLES = np.linspace(-60.0, 60.0, 5)
SIZE = 64


def code_blocks(language: str) -> list[str]:
    """The README's code in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def write_shrec(folder: Path, seed: int) -> None:
    """Write a specimen in SHREC's layout with measured tilts of it."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    place = [int(n) for n in torch.randint(20, SIZE - 20, (3,), generator=generator)]
    density = blobs((SIZE, SIZE, SIZE), [place], spread=4.0).float()
    write_mrc(folder / "grandmodel.mrc", density, voxel_size=10.0)
    write_mrc(folder / "class_mask.mrc", (density > 0.5).to(torch.uint8), voxel_size=10.0)
    (folder / "class_conversion_table.txt").write_text("0 background\n1 4V94\n")
    z, y, x = place
    (folder / "particle_locations.txt").write_text(f"4V94 {x} {y} {z} 0 0 0\n")
    clean = faket_aug.project(density, ANGLES)
    tilts = 100.0 - clean + torch.randn(clean.shape, generator=generator)
    write_mrc(folder / "projections.mrc", tilts, voxel_size=10.0)
    rows = "".join(f"0 0 {-angle} 0 1 projections.mrc\n" for angle in ANGLES)
    (folder / "alignment_simulated.txt").write_text("# comment\n" * 6 + rows)


@pytest.mark.slow
@pytest.mark.touches_global_rng
def test_round_trip_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's code runs as it stands, for one epoch, and gives the shapes that it names."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_shrec(tmp_path / f"model_{number}", seed=number)
    (tmp_path / "microscope").mkdir()
    tilts = torch.rand(len(ANGLES), SIZE, SIZE, generator=torch.Generator().manual_seed(9))
    write_mrc(tmp_path / "microscope" / "series_1.mrc", tilts, voxel_size=10.0)
    write_tlt(tmp_path / "microscope" / "series_1.tlt", ANGLES)
    widths = dict.fromkeys([0, 2], 4) | dict.fromkeys([5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28], 6)
    torch.save(narrow_state(widths=widths), tmp_path / "vgg19-dcbb9e9d.pth")
    (tmp_path / "particles").mkdir()
    write_mrc(tmp_path / "particles" / "bean.mrc", blobs((16, 16, 16), [(8, 8, 6), (8, 8, 10)], 2.0), voxel_size=10.0)
    first, second, third, microscope, fourth, fifth = code_blocks("python")
    names: dict[str, Any] = {}
    exec(compile(first.replace("range(70)", "range(1)"), "README.md", "exec"), names)
    assert names["batch"]["image"].shape[1:] == (1, 56, 56, 56)
    assert names["batch"]["image"].dtype == torch.float32
    assert names["batch"]["label"].shape[1:] == (56, 56, 56)
    assert names["batch"]["label"].dtype == torch.int64
    exec(compile(second, "README.md", "exec"), names)
    assert names["made"].tomogram.shape == names["made"].labels.shape == (SIZE, SIZE, SIZE)
    again = names["simulator"].simulate(names["specimens"][0], names["made"].record)
    assert torch.equal(again.tomogram, names["made"].tomogram)
    exec(compile(third, "README.md", "exec"), names)
    assert names["noise"].series[0].correlation[2] > 0.5
    exec(compile(microscope, "README.md", "exec"), names)
    assert len(names["real"].draw(names["specimens"][0], seed=0).misalignment) == len(ANGLES)
    exec(compile(fourth.replace("(180, 512, 512), ", "(64, 64, 64), "), "README.md", "exec"), names)
    assert names["endless"].class_names[1] == "bean"
    assert len(names["dataset"]) == 20 * 64
    exec(compile(fifth, "README.md", "exec"), names)
    assert (tmp_path / "set" / "tomogram_0" / "record.json").is_file()


def test_ci_runs_the_readme_test_command() -> None:
    """CI calls the test command of the README, letter for letter; the README has two commands, each with its set-up."""
    commands = [block.strip() for block in code_blocks("bash") if "venv" in block]
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") and "\n" not in command for command in commands)
    demo, tests = commands
    assert demo.endswith("faket-aug demo")
    assert tests.endswith("-m pytest")
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
    """The version in the code is the one of the distribution."""
    from importlib.metadata import version

    assert faket_aug.__version__ == version("faket_aug")


def test_import_is_silent() -> None:
    """Importing prints nothing and warns of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import faket_aug"], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
