"""`--ice`: uneven ice on the command line, drawn or measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
from _helpers import ANGLES, noise_model

from faket_aug import ContrastTransfer, MicroscopeResponse, SimulationRecord
from faket_aug.cli import _train_options
from faket_aug.cli._options import SETTINGS, Options
from faket_aug.cli._simulation import make_mixture
from faket_aug.comparison.arms import SIMULATOR
from faket_aug.microscope.file import MicroscopeFile, write_microscope
from faket_aug.microscope.ice_map import ThicknessMap
from faket_aug.microscope.intensity import ContrastReport
from faket_aug.microscope.interaction import interaction_constant
from faket_aug.microscope.noise import ResponseNoise
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from faket_aug.microscope.uneven_ice import UnevenIce

Command = Callable[..., str]


@pytest.fixture
def subcommand() -> tuple[str, ...]:
    return ("simulate",)


@pytest.fixture
def microscope(tmp_path: Path) -> Path:
    """The file of a microscope whose fit found a map of the ice."""
    return _written(tmp_path / "microscope.json", "intensity")


def _written(path: Path, source: str) -> Path:
    response = MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=float(np.log(2000 * interaction_constant(300.0)))),
        noise=((4.0,) * len(RINGS),),
        angle_range=(-60.0, 60.0),
    )
    noise = ResponseNoise(
        series=noise_model().series,
        response=response,
        contrast=ContrastReport(source=(source,), zero=(0.0,), zero_error=(0.5,)),
        ice=(ThicknessMap(extent=(240.0, 640.0), depth=((0.5, 0.9), (0.7, 1.1))),),
    )
    write_microscope(path, MicroscopeFile(noise=noise, tilt_angles=ANGLES))
    return path


def _arguments(tmp_path: Path, microscope: Path, ice: str) -> list[Any]:
    own = ["--fiducials", "1", "--shape", "16,24,32", "--microscope", microscope]
    return [tmp_path / "set", *own, "--ice", ice]


def test_drawn_ice(command: Command, refused: Command, tmp_path: Path, microscope: Path) -> None:
    """Ranges are read, and stand in the set; each tomogram has its own ice; a set goes on with the same only."""
    arguments = _arguments(tmp_path, microscope, "wedge=0.2,edge=0.1,0.3")
    command(*arguments, "--count", 2)
    kept = json.loads((tmp_path / "set" / "simulation.json").read_text())
    assert kept["options"]["ice"]["wedge"] == [0.2, 0.2]
    records = [SimulationRecord.read(one.parent) for one in sorted((tmp_path / "set").glob("*/record.json"))]
    assert [record.ice["wedge"] for record in records] == [0.2, 0.2]
    assert records[0].ice["edge"] != records[1].ice["edge"]
    assert records[0].settings["ice"] == UnevenIce(wedge=0.2, edge=(0.1, 0.3)).to_dict()
    command(*arguments, "--count", 3)
    assert "ice" in refused(*_arguments(tmp_path, microscope, "wedge=0.3"), "--count", 4)


def test_measured_ice(command: Command, tmp_path: Path, microscope: Path) -> None:
    """The map of the file is taken; in a mixture each simulator may have its own."""
    command(*_arguments(tmp_path, microscope, "measured"))
    (path,) = (tmp_path / "set").glob("*/record.json")
    assert SimulationRecord.read(path.parent).ice["series"] == 0
    given = {"fiducials": ["1"], "noise": str(microscope), "shape": "16,24,32"}
    mixture = Options.read(None, given | {"mixture": ["ice=measured", "ice.wedge=0.2", "weight=1"]})
    assert [parts.unstyled.ice for parts in make_mixture(mixture).parts] == ["measured", UnevenIce(wedge=0.2), None]


@pytest.mark.parametrize(
    ("ice", "message"),
    [
        ("thick", "expected --ice to be settings by name, as name=value with commas between or measured, got 'thick'"),
        ("depth=deep", "expected --ice depth to be one number, or two with a comma between"),
        ("slope=1", "expected settings of --ice to be depth, wedge, edge, edge_width, waves, got slope"),
        ("wedge=3", "--ice: expected `wedge` to be at most 2"),
    ],
    ids=["word", "depth", "slope", "wedge"],
)
def test_what_is_no_ice(refused: Command, tmp_path: Path, microscope: Path, ice: str, message: str) -> None:
    """What does not fit is refused in one line."""
    assert message in refused(*_arguments(tmp_path, microscope, ice))


def test_ice_needs_intensities(refused: Command, tmp_path: Path) -> None:
    """A microscope whose scale is of the power has none; nor does ice go with a measured background."""
    path = _written(tmp_path / "power.json", "power")
    assert "expected noise with a response of an absolute scale for --ice" in refused(
        *_arguments(tmp_path, path, "wedge=0.2")
    )


def test_every_command_that_simulates_has_it() -> None:
    """Where a background can be set, so can the ice."""
    assert {"background", "ice"} <= set(SETTINGS)
    assert {"background", "ice"} <= set(_train_options.SETTINGS)
    assert {"background", "ice"} <= set(SIMULATOR)
