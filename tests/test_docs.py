"""README and docs stay true: their code runs, their commands are those of the command line, their links resolve."""

from __future__ import annotations

import argparse
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import typer

import faket_aug
import faket_aug.picking
from faket_aug.cli import app
from faket_aug.cli._options import Options
from faket_aug.cli._train_options import read_work
from faket_aug.comparison.settings import Comparison
from tests._documents import ANGLES, PAGES, ROOT, SIZE, Block, blocks, commands, write_data

README_LINES = 160
PICTURE_BYTES = 300 * 1024
LANGUAGES = ("python", "bash", "toml", "text")
#: What makes the pages' code small enough for a test.
SMALLER = {
    # Of other content than the name says.
    "vgg19-dcbb9e9d.pth": "narrow.pth",
    "range(70)": "range(1)",
    "batch_size=32)": "batch_size=4)",
    "steps=7000": "steps=2",
    "shape=(180, 512, 512)": f"shape=({SIZE}, {SIZE}, {SIZE})",
    "patch_size=56, target": "patch_size=16, target",
    "    patch_size=56,\n    targets": "    patch_size=16,\n    targets",
}
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
BASH = [block for page in PAGES for block in blocks(page) if block.language == "bash"]


def names_of(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages read."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


# --- code -------------------------------------------------------------------------------------------------------------


def given(page: str) -> dict[str, Any]:
    """What a page takes from the first page, on patches of 16³."""
    if page not in ("docs/specimens.md", "docs/training.md", "docs/own-parts.md"):
        return {}
    specimens = faket_aug.ShrecSpecimens(["model_0", "model_1"])
    simulator = faket_aug.FakETSimulator(tilt_angles=ANGLES, modality="noiseless")
    dataset = faket_aug.FakETDataset(specimens, simulator, patch_size=16)
    return {
        "specimens": specimens,
        "simulator": simulator,
        "dataset": dataset,
        "made": simulator(specimens[0], seed=0),
    }


def check_round_trip(names: dict[str, Any]) -> None:
    """The shapes that the round trip names, and a tomogram made again from its record."""
    assert names["batch"]["image"].shape[1:] == (1, 56, 56, 56)
    assert names["batch"]["image"].dtype == torch.float32
    assert names["batch"]["label"].shape[1:] == (56, 56, 56)
    assert names["batch"]["label"].dtype == torch.int64
    assert names["made"].tomogram.shape == names["made"].labels.shape == (SIZE, SIZE, SIZE)
    again = names["simulator"].simulate(names["specimens"][0], names["made"].record)
    assert torch.equal(again.tomogram, names["made"].tomogram)


def check_first_page(names: dict[str, Any]) -> None:
    check_round_trip(names | {"batch": next(iter(names["loader"]))})
    assert all(parameter.grad is not None for parameter in names["network"].parameters())


def check_microscope(names: dict[str, Any]) -> None:
    assert names["fitted"].response.defocus[0] == pytest.approx(3.5, abs=0.5)
    assert names["noise"].curves(ANGLES).correlation[len(ANGLES) // 2] > 0.5
    assert len(names["made"].record.misalignment) == len(ANGLES)
    assert names["style"].tilts.shape == names["pair"].tilts.shape == (len(ANGLES), SIZE, SIZE)
    assert names["found"].defocus == pytest.approx(2.2, abs=0.02)
    assert names["found"].ctf.defocus == pytest.approx(names["found"].defocus)


def check_specimens(names: dict[str, Any]) -> None:
    assert names["endless"].class_names[1] == "bean"
    assert len(names["dataset"]) == 20 * 64
    assert names["adapted"].tomogram.shape == (32, SIZE, SIZE)
    assert Path("set/tomogram_0/record.json").is_file()


def check_training(names: dict[str, Any]) -> None:
    assert len(names["history"].losses) == 2
    assert names["labels"].shape == (SIZE, SIZE, SIZE)
    assert all(Path(name).is_file() for name in ("run/checkpoint.pt", "run_mine/checkpoint.pt", "picks.star"))
    assert 0.0 <= names["score"].localization_f1 <= 1.0
    assert names["mixed"].real_share(5) == 0.25
    taught, count = names["batch"], len(names["classes"])
    assert taught["heatmaps"].shape == (len(taught["image"]), count, 16, 16, 16)
    assert taught["positions"].shape[1:] == (256, 3)
    assert taught["count"].shape == taught["half_turn"].shape == (len(taught["image"]),)
    assert names["state"]["delivered"]
    assert names["tilted"]["image"].shape[1:] == (1, 48, 64)
    assert names["many"]["image"].shape == (3, 16, 16, 16)
    for key in ("image", "image_other", "clean"):
        assert names["pair"][key].shape[1:] == (1, 16, 16, 16)


def check_own_parts(names: dict[str, Any]) -> None:
    """Each part makes tomograms, and another one of its kind, with other settings, has another record."""
    specimen, clean = names["specimens"][0], names["made"].tomogram
    clipped = names["clipping"].simulator(specimen, seed=0)
    assert clipped.record.settings["simulator"]["settings"]["limit"] == 3.0
    assert float(clipped.tomogram.abs().max()) < float(clean.abs().max())
    assert next(iter(names["clipping"]))["image"].shape == (1, 56, 56, 56)
    speckled, iterative = names["speckled"], names["iterative"]
    for made, other in (
        (speckled, replace(speckled, noise=names["Multiplied"](0.9))),
        (iterative, replace(iterative, reconstruction=names["Sirt"](steps=2))),
    ):
        assert made(specimen, seed=0).tomogram.shape == clean.shape
        with pytest.raises(ValueError, match="got others for"):
            other.simulate(specimen, made.draw(specimen, seed=0))
    tilts = names["made"].tiltseries
    reprojected = faket_aug.project(iterative(specimen, seed=0).tomogram, ANGLES)
    assert float((reprojected - tilts).std()) < 0.5 * float(tilts.std())
    styled = names["styled"](specimen, seed=0)
    assert styled.record.settings["features"] == names["Wavelets"]().fingerprint
    assert float((styled.tiltseries - replace(names["styled"], step_size=0.0)(specimen, seed=0).tiltseries).std()) > 0


def check_conventions(names: dict[str, Any]) -> None:
    assert names["series"].metadata.axis_angle.tolist() == [85.3] * len(ANGLES)
    assert names["series"].metadata.exposure[0] == 0.0
    assert names["plain"].metadata.exposure is None


def check_contributing(names: dict[str, Any]) -> None:
    Path("mine.txt").write_text("-3 6\n0 0\n3 9\n")
    read = names["read_mine"]("mine.txt")
    assert read.tilt_angles.tolist() == [-3.0, 0.0, 3.0]
    assert read.exposure.tolist() == [6.0, 0.0, 9.0]
    Path("mine.txt").write_text("-3\n")
    with pytest.raises(faket_aug.FileFormatError, match=r"mine\.txt"):
        names["read_mine"]("mine.txt")


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": check_round_trip,
    "docs/getting-started.md": check_first_page,
    "docs/microscope.md": check_microscope,
    "docs/specimens.md": check_specimens,
    "docs/training.md": check_training,
    "docs/own-parts.md": check_own_parts,
    "docs/conventions.md": check_conventions,
    "docs/contributing.md": check_contributing,
}


# A thread that makes the next tomogram may be stopped between opening a file and keeping it; Python then closes it.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.touches_global_rng
@pytest.mark.parametrize("page", WITH_PYTHON, ids=names_of(WITH_PYTHON))
def test_python_runs(page: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's Python runs from top to bottom, as it stands but for its sizes, and gives what the page says."""
    monkeypatch.chdir(tmp_path)
    for entry in data.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    name = str(page.relative_to(ROOT))
    names = given(name)
    for block in blocks(page):
        if block.language == "python" and block.reason is None:
            code = block.code
            for large, small in SMALLER.items():
                code = code.replace(large, small)
            exec(compile("\n" * block.line + code, str(page), "exec"), names)
    CHECKS[name](names)


def test_code_is_made_smaller_where_it_stands() -> None:
    """What the test above replaces is on a page."""
    code = "".join(block.code for page in PAGES for block in blocks(page))
    assert [large for large in SMALLER if large not in code] == []


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    """A block names its language; one that does not run says why, in words."""
    for page in PAGES:
        for block in blocks(page):
            assert block.language in LANGUAGES, f"{block}: expected one of {LANGUAGES}, got {block.language!r}"
            assert block.reason is None or len(block.reason.split()) >= 4, f"{block}: expected a reason"


def test_reason_is_read(tmp_path: Path) -> None:
    """A comment just before a block is its reason; one farther above is not."""
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: it needs a network -->\n```bash\na\n```\n\n```bash\nb\n```\n")
    assert [(block.code, block.reason) for block in blocks(page)] == [("a\n", "it needs a network"), ("b\n", None)]


def test_toml_is_read(data: Path) -> None:
    """The settings of comparisons, of trainings and of sets on the pages are read by them."""
    found = [block for page in PAGES for block in blocks(page) if block.language == "toml"]
    assert found
    kinds = set()
    for block in found:
        path = data / "settings.toml"
        path.write_text(block.code)
        kind = "compare" if "[arms." in block.code else "train" if "train --config" in block.code else "simulate"
        kinds.add(kind)
        if kind == "train":
            assert read_work(data / "run", path, {"templates": ["particles"], "voxel_size": "10"}).options.simulators
        else:
            assert Comparison.from_toml(path).arms if kind == "compare" else Options.read(path, {}).given
    assert kinds == {"compare", "train", "simulate"}


# --- commands ---------------------------------------------------------------------------------------------------------


class Parsed(BaseException):
    """Stops a script once its command line was read."""


def extras() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def check_install(words: list[str]) -> None:
    """The extras that are asked for exist."""
    for word in words:
        for extra in re.findall(r"\[(.*?)\]", word):
            assert set(extra.split(",")) <= set(extras()), word


def check_cli(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command line takes the command's words."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    command = group.commands[words[0]]
    command.make_context(words[0], list(words[1:]))


def check_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script exists, and its own parser takes the words."""
    script, arguments = ROOT / words[0], words[1:]
    assert script.is_file(), words[0]
    text = script.read_text()
    for library in ("lightning", "monai"):
        if re.search(rf"^(import|from) {library}\b", text, re.MULTILINE) and find_spec(library) is None:
            missing = [word for word in arguments if word.startswith("--") and f'"{word}"' not in text]
            assert missing == []
            return

    def parse(parser: argparse.ArgumentParser, *_: object, **__: object) -> argparse.Namespace:
        original(parser, arguments)
        raise Parsed

    original = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(Parsed):
        runpy.run_path(str(script), run_name="__main__")


def check_sbatch(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch script exists, and what it runs takes the words."""
    script = (ROOT / words[0]).read_text()
    if '"$@"' in script:
        check_script(["examples/train_deepfinder.py", *words[1:]], monkeypatch)
        return
    line = script.splitlines()[-1].replace("$SLURM_ARRAY_TASK_ID", "3")
    for number, word in enumerate(words[1:], start=1):
        line = line.replace(f'"${number}"', word)
    assert "$" not in line
    check_cli(line.replace('"', "").split()[1:], monkeypatch)


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check one command."""
    match words:
        case (
            ["python3", "-m", "venv", ".venv"]
            | ["source", ".venv/bin/activate"]
            | [".venv/bin/python", "-m", "pytest", "-n", "2", "--dist", "worksteal"]
        ):
            pass
        case ["pip", "install", *rest] | [".venv/bin/python", "-m", "pip", "install", "-q", *rest]:
            check_install(rest)
        case ["faket-aug" | ".venv/bin/faket-aug", *rest]:
            check_cli(rest, monkeypatch)
        case ["python", *rest]:
            check_script(rest, monkeypatch)
        case ["torchrun", *rest]:
            check_script([word for word in rest if not word.startswith("--nproc")], monkeypatch)
        case ["sbatch", *rest]:
            check_sbatch(rest, monkeypatch)
        case _:
            pytest.fail(f"expected a command that this test knows, got {' '.join(words)}")


@pytest.mark.touches_global_rng  # what the examples import may draw from Python's generator
@pytest.mark.parametrize("block", BASH, ids=map(str, BASH))
def test_commands_are_those_of_the_command_line(
    block: Block, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command on a page is parsed by the program that it calls, with its options and their types."""
    if block.reason is not None:
        pytest.skip(block.reason)
    monkeypatch.chdir(tmp_path)
    for entry in data.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    # What earlier commands on a page leave behind.
    (tmp_path / "microscope.json").write_text("{}")
    for folder in (tmp_path / "set", tmp_path / "set" / "tomogram_0007"):
        folder.mkdir()
        for name in ("simulation.json", "record.json"):
            (folder / name).write_text("{}")
    count = 0
    for words in commands(block):
        with monkeypatch.context() as patch:
            check(words, patch)
        count += 1
    assert count


#: The pages' series has small images, and no defocus.
SMALL_SERIES = ["--bin", "1", "--ctf", "defocus=3.5"]
#: Commands that run on small data, by page, and what makes them small: of an option given twice the last one counts.
RUN = {
    "README.md": {
        "fit": [],
        "simulate set": ["--count", "1"],
        "simulate cells": [*("--shape", "40,128,128", "--count", "1"), *("--weights", "narrow.pth")],
        "show": [],
        "train": [
            *("--counts", "3", "--shape", "32,64,64", "--steps", "2", "--patch-size", "16", "--batch-size", "2"),
            *("--widths", "4,8,8", "--patches-per-tomogram", "4"),
        ],
        "reconstruct": SMALL_SERIES,
    },
    "docs/getting-started.md": {"fit": [], "simulate": ["--count", "1"], "show": [], "reconstruct": SMALL_SERIES},
}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_commands_run(page: str, data: Path, tmp_path: Path) -> None:
    """The commands of README's tasks and of the first page run one after the other, and write what they say."""
    for entry in data.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    done = set()
    for words in (w for block in blocks(ROOT / page) if block.language == "bash" for w in commands(block)):
        key = next((name for name in RUN[page] if " ".join(words[1:]).startswith(name)), None)
        if words[0] != "faket-aug" or key is None:
            continue
        call = [sys.executable, "-c", "from faket_aug.cli import main; main()", *words[1:], *RUN[page][key]]
        call = [SMALLER.get(word, word) for word in call]
        ran = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, f"{' '.join(words)}\n{ran.stdout}{ran.stderr}"
        done.add(key)
    assert done == set(RUN[page])
    for name in ("microscope.json", "microscope.png", "set.png", "set/simulation.json"):
        assert (tmp_path / name).is_file(), name


# --- pages ------------------------------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    """README is read in two minutes."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_picture_is_small() -> None:
    """The demo's picture does not make a clone slow."""
    assert 10_000 < (ROOT / "docs" / "assets" / "demo.jpg").stat().st_size < PICTURE_BYTES


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown names them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=names_of(list(PAGES)))
def test_links_resolve(page: Path) -> None:
    """Every relative link leads to a file, and to a heading of it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("module", [faket_aug, faket_aug.picking], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(module: Any) -> None:
    """Each name of `__all__` stands in the API pages once."""
    pages = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))
    found = re.findall(rf"^::: {re.escape(module.__name__)}\.(\w+)$", pages, flags=re.MULTILINE)
    packages = {"geometry"} if module is faket_aug else set()
    assert sorted(set(found) - packages) == sorted(module.__all__)
    assert len(found) == len(set(found))


def test_every_page_is_in_the_navigation() -> None:
    """No page of the docs is forgotten by the site."""
    settings = (ROOT / "zensical.toml").read_text()
    listed = re.findall(r'"([\w/-]+\.md)"', settings)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES[1:])
