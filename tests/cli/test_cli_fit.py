"""`faket-aug fit`: a file that `simulate` takes, a picture, and what a user can get wrong."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
import torch
from _helpers import blobs, narrow_state, outcome
from PIL import Image

from faket_aug import ContrastTransfer, MicroscopeResponse, NoiseModel, TiltSeries, project
from faket_aug.cli import main
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from faket_aug.microscope.file import read_microscope
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from faket_aug.simulation.saving import TOMOGRAM_FILE
from faket_aug.specimens.procedural import procedural_specimen

ANGLES = np.arange(-60.0, 61.0, 5.0)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measured tilt-series of 3.5 µm defocus, with its angles and an alignment that moves nothing beside it."""
    path = tmp_path_factory.mktemp("measured") / "tilts.mrc"
    specimen = procedural_specimen(shape=(40, 128, 128), seed=3)
    clean = -project(specimen.density.float(), ANGLES)
    scale = float(torch.log(100 / clean.std()))
    noise = np.full(len(RINGS), 900.0)
    response = MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.5),
        envelope=Envelope(log_scale=scale, square=3.0),
        noise=(tuple(noise),),
        angle_range=(-60.0, 60.0),
    )
    grain = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    write_mrc(path, 2000 + response.apply(clean, grain, ANGLES), voxel_size=10.0)
    write_tlt(path.with_suffix(".tlt"), ANGLES)
    # IMOD turns about the middle of the image, half a pixel before pixel n // 2.
    path.with_suffix(".xf").write_text("1 0 0 1 -0.5 -0.5\n" * len(ANGLES))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `faket-aug fit`; its exit code, output and errors."""

    def start(*arguments: object) -> tuple[int, str, str]:
        return outcome(["fit", *arguments], monkeypatch, capsys)

    return start


def test_fit(run: Run, series: Path, tmp_path: Path) -> None:
    """The package's own specimens are enough to find the defocus; file and picture are there, and nothing else."""
    target = tmp_path / "new" / "microscope.json"
    code, output, errors = run(target, "--style", series, "--shape", "40,128,128", "--seed", 7)
    assert code == 0, errors
    model = NoiseModel.from_json(target.read_text())
    assert model.response is not None
    assert model.response.defocus[0] == pytest.approx(3.5, abs=0.3)
    assert f"series 0: defocus {model.response.defocus[0]:.2f} ± " in output
    assert "power of simulated over measured tilts: off by " in output
    about = json.loads(target.read_text())["about"]
    assert about["tilt_series"] == [str(series)]
    assert (about["built_in"], about["aligned"], about["defocus_given"]) == (True, [True], [False])
    assert "fiducials" not in about["options"]
    assert sorted(path.name for path in target.parent.iterdir()) == ["microscope.json", "microscope.png"]
    with Image.open(target.with_suffix(".png")) as picture:
        assert np.asarray(picture).std() > 20


def test_simulate_takes_it(
    run: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "microscope.json"
    template = tmp_path / "blob.mrc"
    write_mrc(template, blobs((11, 11, 11), [(5, 5, 5)], 1.5), voxel_size=10.0)
    generated = ["--templates", str(template), "--counts", "60", "--shape", "24,64,64"]
    code, output, errors = run(target, "--style", series, *generated, "--defocus", "3.5")
    assert code == 0, errors
    assert "series 0: defocus 3.50 µm (given)" in output
    arguments = ["simulate", str(tmp_path / "set"), *generated, "--noise", str(target), "--tilt-angles=-60:60:15"]
    monkeypatch.setattr("sys.argv", ["faket-aug", *arguments])
    with pytest.raises(SystemExit) as ending:
        main()
    assert not ending.value.code, capsys.readouterr().err
    assert (tmp_path / "set" / "tomogram_0000" / TOMOGRAM_FILE).is_file()


def _refuse(number: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_full_disk(run: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there stays, no part is left, and one line says what to do."""
    target = tmp_path / "microscope.json"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", _refuse(errno.ENOSPC))
    code, output, errors = run(target, "--style", series, "--shape", "40,128,128")
    assert (code, output) == (1, "")
    assert errors.splitlines()[-1] == (
        f"faket-aug: error: expected room for {target}, got 'No space left on device'; free some space and run the "
        "same command again to finish"
    )
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_read_only_folder(run: Run, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before anything is fitted."""

    def read_only(*_: object, **settings: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(settings["dir"]))

    monkeypatch.setattr("faket_aug.formats._atomic.tempfile.TemporaryFile", read_only)
    code, _, errors = run(tmp_path / "microscope.json", "--style", series)
    assert code == 1
    assert errors.splitlines()[-1] == (
        f"faket-aug: error: expected to be allowed to use {tmp_path}, got 'Read-only file system'; change "
        "permissions, or use another"
    )
    assert list(tmp_path.iterdir()) == []


def _with_mdoc(series: Path, folder: Path, **fields: float) -> Path:
    """The series with SerialEM's file beside it in place of bare angles."""
    folder.mkdir()
    path = folder / series.name
    path.write_bytes(series.read_bytes())
    lines = ["PixelSpacing = 10", "ImageFile = tilts.mrc", "Voltage = 200", ""]
    for index, angle in enumerate(ANGLES):
        more = [f"{name} = {value}" for name, value in fields.items()]
        lines += [f"[ZValue = {index}]", f"TiltAngle = {angle}", "RotationAngle = 85", *more, ""]
    path.with_name(path.name + ".mdoc").write_text("\n".join(lines))
    return path


def test_what_the_microscope_left_behind(run: Run, series: Path, tmp_path: Path) -> None:
    """SerialEM knows optics and the defocus it was set to, about which it is searched; but no shifts."""
    path = _with_mdoc(series, tmp_path / "a", TargetDefocus=-3)
    given = ("--style", path, "--shape", "40,128,128", "--aligned")
    code, _, errors = run(tmp_path / "a.json", *given, "--voltage", 300)
    assert code == 0, errors
    text = (tmp_path / "a.json").read_text()
    response = NoiseModel.from_json(text).response
    assert response is not None
    assert response.defocus[0] == pytest.approx(3.5, abs=0.3)
    assert response.ctf.voltage == 300
    assert json.loads(text)["about"]["aligned"] == [False]
    code, _, errors = run(tmp_path / "b.json", *given, "--defocus", "2,5")
    assert code == 0, errors
    response = NoiseModel.from_json((tmp_path / "b.json").read_text()).response
    assert response is not None
    assert response.ctf.voltage == 200


def test_built_in_specimens_have_no_detail(run: Run, series: Path, tmp_path: Path) -> None:
    fine = tmp_path / "fine.mrc"
    write_mrc(fine, torch.randn(len(ANGLES), 32, 32, generator=torch.Generator().manual_seed(0)), voxel_size=1.5)
    write_tlt(fine.with_suffix(".tlt"), ANGLES)
    code, _, errors = run(tmp_path / "a.json", "--style", fine, "--aligned")
    assert code == 1
    message = "expected pixels of 4 to 20 Å for the built-in specimens, got 1.5 Å; bin the tilts, or give specimens"
    assert message in " ".join(errors.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected tilt-series of the microscope, got none; set --style"),
        (["--style", "nowhere.mrc"], "expected a tilt-series, found none at nowhere.mrc"),
        (["--style", "SERIES", "--defocus", "a"], "expected --defocus to be one number, or two with a comma"),
        (["--style", "SERIES", "--quantiles", "0.1,0.9"], "expected --weights with --precision, --style-layers or"),
        (["--style", "SERIES", "--weights", "nowhere.pth"], "nowhere.pth: there is no such file"),
        (["--style", "SERIES", "--voxel-size", "8"], "expected no --voxel-size with the built-in specimens"),
        (["--style", "SERIES", "--count", "0"], "expected --count to be a whole number of 1 or more"),
    ],
)
def test_mistakes(run: Run, series: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = [str(series) if part == "SERIES" else part for part in arguments]
    code, _, errors = run(tmp_path / "microscope.json", "--shape", "16,64,64", *given)
    assert code == 1
    assert message in " ".join(errors.split())
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_other_pixel_sizes(run: Run, series: Path, tmp_path: Path) -> None:
    """The transfer function needs the pixel size, and series and specimens have to agree in it."""
    bare = tmp_path / "bare.mrc"
    write_mrc(bare, torch.zeros(len(ANGLES), 32, 32) + torch.arange(32.0), voxel_size=1.0)
    with mrcfile.open(bare, mode="r+") as stack:
        stack.voxel_size = 0.0
    write_tlt(bare.with_suffix(".tlt"), ANGLES)
    code, _, errors = run(tmp_path / "a.json", "--style", bare, "--aligned")
    assert (code, "bare.mrc: expected a pixel size in its header, got 0" in " ".join(errors.split())) == (1, True)
    template = tmp_path / "blob.mrc"
    write_mrc(template, blobs((11, 11, 11), [(5, 5, 5)], 1.5), voxel_size=10.0)
    code, _, errors = run(
        tmp_path / "a.json",
        "--style",
        series,
        "--templates",
        template,
        "--counts",
        9,
        "--shape",
        "16,64,64",
        "--voxel-size",
        12,
    )
    assert code == 1
    assert "expected voxels of 10 Å, as of the tilts' pixels, got 12 Å" in " ".join(errors.split())


def test_the_step_is_chosen(run: Run, series: Path, tmp_path: Path) -> None:
    """With an encoder the file also says how far the style transfer should go, and what was tried."""
    torch.save(narrow_state(), tmp_path / "vgg.pth")
    target = tmp_path / "microscope.json"
    code, output, errors = run(
        target,
        *("--style", series, "--shape", "40,128,128", "--defocus", "3.5", "--count", "1"),
        *("--weights", tmp_path / "vgg.pth", "--style-layers", "1,6"),
    )
    assert code == 0, errors
    found = read_microscope(target)
    assert set(found.style) == {"step_size", "keep_spectrum"}
    assert found.extend == "wrap"
    np.testing.assert_allclose(found.tilt_angles, ANGLES, atol=0.01)
    assert f"chosen: step {found.style['step_size']:g}" in output
    assert found.about["step"][-1] in output
    assert found.about["specimens"] == 1


def test_series_without_alignment_are_aligned(run: Run, series: Path, tmp_path: Path) -> None:
    """Given the axis, tilts that lie anywhere are brought upon each other; without it the fit refuses them."""
    tilts = TiltSeries.read(series)
    moved = torch.stack([one.roll((7 * (-1) ** i, 3 * i), dims=(0, 1)) for i, one in enumerate(tilts.tilts)])
    path = tmp_path / "moved.mrc"
    write_mrc(path, moved, voxel_size=10.0)
    write_tlt(path.with_suffix(".tlt"), ANGLES)
    given = ("--style", path, "--shape", "40,128,128", "--defocus", "3.5", "--count", "1")
    code, _, errors = run(tmp_path / "a.json", *given)
    assert (code, "expected an alignment (tilt axis and shifts)" in " ".join(errors.split())) == (1, True)
    # A user who is wrong about it is told by what neighbouring tilts share.
    code, _, errors = run(tmp_path / "a.json", *given, "--aligned")
    assert (code, "align the series first" in " ".join(errors.split())) == (1, True)
    code, _, errors = run(tmp_path / "a.json", *given, "--tilt-axis", 0)
    assert code == 0, errors
    about = read_microscope(tmp_path / "a.json").about
    assert (about["aligned"], about["tilt_axis"]) == ([True], 0.0)


def test_the_picture_is_not_the_file(run: Run, series: Path, tmp_path: Path) -> None:
    code, _, errors = run(tmp_path / "m.png", "--style", series)
    assert code == 1
    assert "expected an output that is no picture, got" in " ".join(errors.split())
