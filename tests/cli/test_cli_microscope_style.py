"""`simulate --microscope`: style, weights and layers come from the file, and nothing is dropped in silence."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
from _helpers import narrow_vgg, noise_model, outcome, style_series

from faket_aug.cli._options import Options
from faket_aug.cli._sets import STOPPED_FILE
from faket_aug.cli._simulation import styled_by_microscope
from faket_aug.formats._json import write_json
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from faket_aug.microscope.file import MicroscopeFile, write_microscope


@pytest.fixture
def fitted(tmp_path: Path) -> MicroscopeFile:
    """A microscope whose step was chosen for a series that is there, with random weights and two layers."""
    series = style_series(0)
    write_mrc(tmp_path / "series.mrc", series.tilts, voxel_size=10.0)
    write_tlt(tmp_path / "series.tlt", series.tilt_angles)
    told = {"style": [str(tmp_path / "series.mrc")], "weights": "random", "style_layers": [1, 6], "shape": [8, 8, 8]}
    return MicroscopeFile(
        noise=noise_model(), tilt_angles=(-10.0, 10.0), style={"step_size": 0.05}, about={"options": told}
    )


def options(path: Path, **given: object) -> Options:
    return Options.read(None, {"noise": str(path), "fiducials": ["1"]} | given)


def test_style_weights_and_layers_come_from_the_file(tmp_path: Path, fitted: MicroscopeFile) -> None:
    """What the step was chosen with is taken; what the command line says goes before it."""
    path = tmp_path / "microscope.json"
    write_microscope(path, fitted)
    taken = styled_by_microscope(options(path))
    assert taken.modality == "faket"
    assert taken["style"] == (str(tmp_path / "series.mrc"),)
    assert (taken["weights"], tuple(taken["style_layers"])) == ("random", (1, 6))
    assert taken["shape"] is None
    own = styled_by_microscope(options(path, style=["other.mrc"], style_layers="1"))
    assert (own["style"], tuple(own["style_layers"]), own["weights"]) == (("other.mrc",), (1,), "random")


def test_nothing_is_taken_where_no_style_is_wanted(tmp_path: Path, fitted: MicroscopeFile) -> None:
    """A step of 0, another modality, or no choice of a step: the tilts are noisy, as before."""
    path = tmp_path / "microscope.json"
    write_microscope(path, fitted)
    assert styled_by_microscope(options(path, modality="noisy"))["style"] is None
    assert styled_by_microscope(options(path, step_size="0"))["style"] is None
    for style in ({"step_size": 0.0}, {}):
        write_microscope(path, replace(fitted, style=style))
        assert styled_by_microscope(options(path)).modality == "noisy"


def test_a_series_that_is_gone_is_told(tmp_path: Path, fitted: MicroscopeFile) -> None:
    """The step is left out with a word on what to set."""
    path = tmp_path / "microscope.json"
    write_microscope(path, fitted)
    (tmp_path / "series.mrc").unlink()
    with pytest.warns(UserWarning, match=r"the step of the style transfer is left out, .*series\.mrc, is not there"):
        assert styled_by_microscope(options(path)).modality == "noisy"


def test_an_older_set_comes_again_as_it_was_made(tmp_path: Path, fitted: MicroscopeFile) -> None:
    """A record that names the microscope alone had no style."""
    path = tmp_path / "microscope.json"
    write_microscope(path, fitted)
    record = tmp_path / "simulation.json"
    write_json(record, {"format": 1, "settings": {}, "options": {"noise": str(path), "fiducials": 1}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert styled_by_microscope(Options.read(record, {})).modality == "noisy"


def test_a_set_that_stopped_early_is_no_older_set(
    tmp_path: Path, fitted: MicroscopeFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without `--modality noisy` the corrected command takes the style of the file, as in a new folder."""
    path, set_ = tmp_path / "microscope.json", tmp_path / "set"
    write_microscope(path, fitted)
    narrow_vgg(tmp_path)
    # A shard without a tomogram: the settings alone are written.
    command = ["simulate", set_, "--microscope", path, "--fiducials", 1, "--shape", "16,16,16", "--shard", "2/2"]

    def modality(*more: object) -> str:
        assert outcome([*command, *more], monkeypatch, capsys)[0] == 0
        found: str = json.loads((set_ / "simulation.json").read_text())["settings"]["modality"]
        return found

    assert modality("--modality", "noisy") == "noisy"
    assert modality() == "noisy"
    (set_ / STOPPED_FILE).touch()
    assert modality("--weights", tmp_path / "narrow_vgg_0.pth") == "faket"


def test_the_option_has_one_name(tmp_path: Path) -> None:
    """In files `microscope` is read as `noise`, which older files have."""
    for key in ("microscope", "noise"):
        file = tmp_path / f"{key}.toml"
        file.write_text(f'{key} = "scope.json"\nfiducials = 1\n')
        assert Options.read(file, {})["noise"] == str(tmp_path / "scope.json")
    with pytest.raises(ValueError, match="expected either --microscope or --snr, got both"):
        options(tmp_path / "scope.json", snr="0.1")
