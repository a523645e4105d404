"""The benchmarks' tables can be compared: what changed by more than the spread is found, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from faket_aug.formats.mrc import write_mrc

FOLDER = Path(__file__).parent / "benchmarks"


def _table(path: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    table = {"benchmark": "stages", "settings": {"size": "64"}, "machine": {"threads": 2}, "rows": rows} | changes
    path.write_text(json.dumps(table))
    return path


def _compare(old: Path, new: Path) -> tuple[int, str]:
    command = [sys.executable, str(FOLDER / "compare.py"), str(old), str(new)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def _row(name: str, *seconds: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "seconds": list(seconds), **more}


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        (_row("a", 1.0, 1.02), _row("a", 1.01, 1.03), 0, "1 rows: nothing changed"),
        (_row("a", 1.0, 1.02), _row("a", 1.5, 1.52), 1, "x 1.50 (spread 0.05): worse"),
        (_row("a", 1.0, 1.02), _row("a", 0.5, 0.52), 0, "x 0.50 (spread 0.05): better"),
        (_row("a", 1.0, 2.0), _row("a", 1.9, 1.9), 0, "nothing changed"),  # within the spread
        (_row("a", 1.0), _row("a", 1.3), 0, "nothing changed"),  # one run's spread is not known
        (_row("a", 1e-5, 1e-5), _row("a", 5e-4, 5e-4), 0, "nothing changed"),  # too short
        # Seconds follow the machine; ratios are what was measured beside something else.
        (_row("a", 1, 1, ratios=[4, 4]), _row("a", 2, 2, ratios=[4, 4]), 0, "nothing changed"),
        (_row("a", 1, 1, ratios=[4, 4]), _row("a", 1, 1, ratios=[2, 2]), 1, "x 0.50 (spread 0.05): worse"),
        (_row("a", 1.0, 1.0, peak_gib=1.0), _row("a", 1.0, 1.0, peak_gib=1.5), 1, "a, peak memory"),
        (_row("a", 1.0, 1.0), _row("a", 1.0, 1.0, peak_gib=1.5), 0, "nothing changed"),
        (_row("b", 1.0, 1.0), _row("a", 1.0, 1.0), 0, "is not in the new table"),
    ],
)
def test_changes(tmp_path: Path, old: dict[str, Any], new: dict[str, Any], code: int, said: str) -> None:
    found = _compare(_table(tmp_path / "old.json", [old]), _table(tmp_path / "new.json", [new]))
    assert found[0] == code, found[1]
    assert said in found[1]


def test_tables_that_cannot_be_compared(tmp_path: Path) -> None:
    """Other settings are refused; another machine is said."""
    rows = [_row("a", 1.0, 1.0)]
    old = _table(tmp_path / "old.json", rows)
    code, said = _compare(old, _table(tmp_path / "new.json", rows, settings={"size": "128"}))
    assert code == 2
    assert "expected tables of the same settings, got {'size': '64'} and {'size': '128'}" in said
    code, said = _compare(old, _table(tmp_path / "new.json", rows, machine={"threads": 4}))
    assert code == 0
    assert "other machines" in said


@pytest.mark.parametrize("path", sorted(FOLDER.glob("results/*.json")), ids=lambda path: path.stem)
def test_kept_tables(path: Path) -> None:
    """Tables that are kept are whole, and the same as themselves."""
    table = json.loads(path.read_text())
    assert {"benchmark", "settings", "machine", "rows"} == set(table)
    assert (FOLDER / f"{table['benchmark']}.py").is_file()
    assert all(row["name"] and row["seconds"] for row in table["rows"])
    assert len({row["name"] for row in table["rows"]}) == len(table["rows"])
    assert _compare(path, path)[0] == 0


@pytest.mark.nightly
def test_benchmarks_of_templates_run(tmp_path: Path) -> None:
    """Those that take maps or structures do, too, and tell what they are for."""
    steps = torch.arange(-4.0, 5.0) ** 2
    ball = 4.0 * ((steps[:, None, None] + steps[:, None] + steps) < 10)
    for name in ("1s3x", "3qm1", "3gl1", "3h84", "2cg9", "3d2f", "1u6g", "3cf3", "1bxn", "1qvr", "4cr2", "5mrc"):
        write_mrc(tmp_path / f"{name}.mrc", ball, voxel_size=10.0)
    atoms = (
        f"ATOM  {n:5d}  CA  ALA A{n:4d}    {n:8.3f}{n % 7:8.3f}{n % 5:8.3f}  1.00  0.00           C" for n in range(40)
    )
    structure = tmp_path / "chain.pdb"
    structure.write_text("\n".join((*atoms, "END")))
    for command, said in (
        (
            ("crowd.py", str(tmp_path), "--shape", "30", "40", "50", "--occupancy", "0.1", "--threads", "1"),
            " filled by ",
        ),
        (("turning.py", str(structure), "--voxel-sizes", "5", "--rotations", "1"), "chain     5 Å sharp"),
    ):
        done = subprocess.run(
            [sys.executable, str(FOLDER / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


@pytest.mark.nightly
@pytest.mark.parametrize(
    "command",
    [
        ("stages.py", "--size", "64", "--style-size", "64", "--repeats", "1", "--slices", "1", "--tilts", "3"),
        ("scaling.py", "--sizes", "64", "--tilts", "2", "--tilts-size", "64", "--repeats", "1"),
        ("profile_simulation.py", "--size", "128", "--depth", "60", "--tilts", "3", "--repeats", "0"),
        ("subvolume.py", "--size", "64", "--depth", "60", "--repeats", "1"),
        ("training.py", "--modality", "noisy", "--repeats", "1", "--steps", "1", "--patches", "40"),
        ("memory.py", "--size", "64", "--depth", "20", "--tilts", "3"),
        ("denoiser.py", "--steps", "1", "--size", "64"),
        ("kernels.py", "--device", "cpu", "--size", "64", "--repeats", "1"),
        ("graphs.py", "--device", "cpu", "--sizes", "32", "--tilts", "2", "--repeats", "1"),
    ],
    ids=lambda command: command[0],
)
def test_benchmarks_run(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Each benchmark runs at a size that is of no use, and writes its table."""
    table = tmp_path / "new.json"
    writes = () if command[0] == "memory.py" else ("--json", str(table))
    done = subprocess.run(
        [sys.executable, str(FOLDER / command[0]), *command[1:], *writes],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if writes:
        assert json.loads(table.read_text())["rows"]
