"""`faket-aug reconstruct`: a measured series as simulated ones are reconstructed, and what is refused before."""

from __future__ import annotations

import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
import torch
from _helpers import blobs, outcome
from PIL import Image

from faket_aug import ContrastTransfer, Deconvolution, NoiseModel, TiltSeries, project, reconstruct
from faket_aug.cli import _like, _reconstruction
from faket_aug.cli._like import read_like
from faket_aug.figures import LOW_PASS, smooth_section, three_sections
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.microscope.file import MicroscopeFile, write_microscope
from faket_aug.microscope.flavours import deconvolve, low_passed
from faket_aug.picking.flavours import find_flavours
from faket_aug.picking.picker import PickerDescription

ANGLES = np.linspace(-60.0, 60.0, 13)
SIDE, DEPTH, SIZE = 48, 16, 5.0
#: (z, y, x); not in the middle, so that a mirrored tomogram would be noticed.
PLACE = (5, 30, 16)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of `faket-aug reconstruct`."""
    return outcome(["reconstruct", *arguments], monkeypatch, capsys)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A stack of a dark ball, each tilt shifted along x by its number of pixels, with IMOD's files beside it."""
    clean = -project(blobs((DEPTH, SIDE, SIDE), [PLACE], 2.0), ANGLES)
    shifts = np.arange(13) - 6
    tilts = torch.stack([tilt.roll(int(shift), dims=-1) for tilt, shift in zip(clean, shifts, strict=True)])
    write_mrc(tmp_path / "TS_1.mrc", tilts, voxel_size=SIZE)
    write_tlt(tmp_path / "TS_1.tlt", ANGLES)
    # IMOD turns about the middle of the image, half a pixel before the axis of `project`.
    rows = [f"1 0 0 1 {-shift - 0.5} -0.5" for shift in shifts]
    (tmp_path / "TS_1.xf").write_text("\n".join(rows) + "\n")
    return tmp_path / "TS_1.mrc"


def darkest(volume: torch.Tensor) -> tuple[int, ...]:
    """The place (z, y, x) of the lowest value."""
    return tuple(int(i) for i in np.unravel_index(int(volume.argmin()), volume.shape))


def test_aligned_by_the_files(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ball is where it was, the header has size and origin, the values are the library's; halves add up."""
    output = tmp_path / "tomogram.mrc"
    options = ("--output", output, "--depth", DEPTH, "--filter", "hann", "--halves")
    code, out, err = run(monkeypatch, capsys, series, *options)
    assert code == 0, err
    volume, size = read_mrc(output)
    assert size == SIZE
    assert darkest(volume) == PLACE
    measured = TiltSeries.read(series).aligned()
    assert torch.equal(volume, reconstruct(measured.tilts, measured.tilt_angles, depth=DEPTH, filter="hann"))
    with mrcfile.open(output) as file:
        assert [float(file.header.origin[axis]) for axis in "xyz"] == [0.0, 0.0, 0.0]
    even, odd = (read_mrc(tmp_path / f"tomogram_{name}.mrc")[0] for name in ("even", "odd"))
    # A half is the mean over its tilts.
    assert torch.allclose((7 * even + 6 * odd) / 13, volume, atol=1e-5)
    record = json.loads((tmp_path / "tomogram.json").read_text())
    assert record["reconstruction"]["filter"] == "hann"
    assert record["reconstruction"]["voxel_size"] == SIZE
    with Image.open(tmp_path / "tomogram.png") as picture:
        assert picture.width > 1000
    assert "13 tilts, 48 × 48 × 16 voxels (x, y, z) of 5 Å; filter hann, no CTF correction" in out
    assert "tomogram_even.mrc and" in out


def test_binning_and_correction(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tilts are corrected after the alignment, at their own pixel size, and then binned."""
    output = tmp_path / "tomogram.rec"
    more = ("--bin", 2, "--resampling", "fourier", "--ctf-correction", "phase-flip", "--ctf", "defocus=2")
    code, _, err = run(monkeypatch, capsys, series, "--output", output, "--depth", 8, *more)
    assert code == 0, err
    measured = TiltSeries.read(series).aligned().ctf_corrected(ctf=ContrastTransfer(defocus=2.0))
    wanted = reconstruct(measured.tilts, measured.tilt_angles, depth=8, bin=2, resampling="fourier")
    volume, size = read_mrc(output)
    assert size == 2 * SIZE
    assert torch.equal(volume, wanted)


def test_flavours(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is the tomogram, others stand beside it; each is the library's."""
    output, told = (
        tmp_path / "tomogram.mrc",
        ("--ctf", "defocus=2", "--low-pass", 40, "--deconvolution", "strength=0.5"),
    )
    options = ("--output", output, "--depth", DEPTH, *told)
    code, out, err = run(
        monkeypatch, capsys, series, *options, "--flavours", "wiener,raw,low-pass,deconvolved", "--halves"
    )
    assert code == 0, err
    measured, ctf = TiltSeries.read(series).aligned(), ContrastTransfer(defocus=2.0)
    raw = reconstruct(measured.tilts, measured.tilt_angles, depth=DEPTH)
    corrected = measured.ctf_corrected(method="wiener", ctf=ctf)
    wanted = {
        "": reconstruct(corrected.tilts, measured.tilt_angles, depth=DEPTH),
        "_raw": raw,
        "_low-pass": low_passed(raw, SIZE, 40.0),
        "_deconvolved": deconvolve(raw, SIZE, ctf, Deconvolution(strength=0.5)),
        "_even": reconstruct(corrected.tilts[::2], measured.tilt_angles[::2], depth=DEPTH),
    }
    for name, volume in wanted.items():
        assert torch.equal(read_mrc(tmp_path / f"tomogram{name}.mrc")[0], volume), name
    assert not (tmp_path / "tomogram_even_raw.mrc").exists()
    record = json.loads((tmp_path / "tomogram.json").read_text())["reconstruction"]
    assert (record["ctf_correction"], record["flavour"]) == ("wiener", None)
    assert f"other flavours: {tmp_path / 'tomogram_raw.mrc'} and " in out
    code, _, err = run(monkeypatch, capsys, series, *options, "--flavours", "deconvolved")
    assert code == 0, err
    assert torch.equal(read_mrc(output)[0], wanted["_deconvolved"])
    record = json.loads((tmp_path / "tomogram.json").read_text())["reconstruction"]
    assert (record["ctf_correction"], record["flavour"]) == (None, "deconvolved")


def test_flavours_like_a_training(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--like` a training of several flavours makes them all, where `pick` finds them."""
    description = PickerDescription(
        class_names={1: "ball"}, widths=(2, 2, 2), voxel_size=SIZE, filter="ramp", radii={1: 10.0},
        channels=("raw", "low-pass"),
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pt").write_bytes(b"weights")
    (tmp_path / "run" / "settings.toml").write_text("low_pass = 40\n[deconvolution]\nstrength = 0.5\n")
    monkeypatch.setattr(_like, "describe_run", lambda run: description)
    assert read_like(tmp_path / "run")["deconvolution"] == Deconvolution(strength=0.5)
    output = tmp_path / "tomogram.mrc"
    options = ("--output", output, "--depth", DEPTH, "--like", tmp_path / "run")
    code, _, err = run(monkeypatch, capsys, series, *options)
    assert code == 0, err
    assert list(find_flavours(output, (DEPTH, SIDE, SIDE), ("raw", "low-pass"))) == ["raw", "low-pass"]
    volume = read_mrc(output)[0]
    assert torch.equal(read_mrc(tmp_path / "tomogram_low-pass.mrc")[0], low_passed(volume, SIZE, 40.0))
    record = json.loads((tmp_path / "tomogram.json").read_text())["reconstruction"]
    assert (record["flavours"], record["low_pass"]) == (["raw", "low-pass"], 40.0)
    code, _, err = run(monkeypatch, capsys, series, *options, "--ctf-correction", "none")
    assert "tomogram_low-pass.mrc is a flavour of an earlier reconstruction; remove it" in " ".join(err.split())
    (tmp_path / "tomogram_low-pass.mrc").unlink()
    code, _, err = run(monkeypatch, capsys, series, *options, "--ctf-correction", "none")
    assert (code, (tmp_path / "tomogram_low-pass.mrc").exists()) == (0, False), "what is given goes before it"


@pytest.mark.parametrize(("stem", "options"), [("_raw", ("--flavours", "low-pass,raw")), ("_even", ("--halves",))])
def test_the_series_is_not_overwritten(
    series: Path,
    stem: str,
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is written beside the tomogram may have the series' own name: then nothing is written."""
    for suffix in (".tlt", ".xf", ".mrc"):
        (tmp_path / f"TS_1{suffix}").rename(tmp_path / f"TS{stem}{suffix}")
    own = tmp_path / f"TS{stem}.mrc"
    before = own.read_bytes()
    said = refused(monkeypatch, capsys, own, "--output", tmp_path / "TS.mrc", "--depth", DEPTH, *options)
    assert f"expected another file than the tilt-series for what is written beside the tomogram, got {own}" in said
    assert own.read_bytes() == before
    assert not (tmp_path / "TS.mrc").exists()


def microscope(path: Path) -> Path:
    """The file of a microscope that was fitted with options of a reconstruction."""
    noise = NoiseModel.assume(torch.randn(13, 8, 8, generator=torch.Generator().manual_seed(0)), ANGLES, snr=0.1)
    about = {"options": {"filter": "cosine", "resampling": "fourier", "shape": [12, 64, 64]}}
    write_microscope(path, MicroscopeFile(noise=noise, about=about))
    return path


def test_like_a_simulation(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Filter, resampling, correction, depth and voxel size are those of the set; what is given goes before them."""
    folder = tmp_path / "set"
    (folder / "tomogram_0000").mkdir(parents=True)
    options = {"specimens": ["model_0"], "filter": "hamming", "resampling": "fourier"}
    (folder / "simulation.json").write_text(json.dumps({"format": 1, "settings": {}, "options": options}))
    write_mrc(folder / "tomogram_0000" / "reconstruction.mrc", torch.zeros(10, 24, 24), voxel_size=10.0)
    like = {"filter": "hamming", "resampling": "fourier", "ctf_correction": None, "depth": 10, "voxel_size": 10.0}
    assert read_like(folder) == read_like(folder / "simulation.json") == like
    output = tmp_path / "tomogram.mrc"
    code, _, err = run(monkeypatch, capsys, series, "--output", output, "--like", folder, "--filter", "ramp")
    assert code == 0, err
    measured = TiltSeries.read(series).aligned()
    wanted = reconstruct(measured.tilts, measured.tilt_angles, depth=10, bin=2, resampling="fourier", filter="ramp")
    volume, size = read_mrc(output)
    assert (size, torch.equal(volume, wanted)) == (10.0, True)
    write_mrc(folder / "tomogram_0000" / "reconstruction.mrc", torch.zeros(10, 24, 24), voxel_size=12.0)
    code, _, err = run(monkeypatch, capsys, series, "--output", output, "--like", folder)
    assert (code, "expected pixels of which a whole number makes the 12 Å of" in err) == (1, True)


def test_like_a_microscope(tmp_path: Path) -> None:
    """A microscope's file says what its fit was told; a folder without a set is refused."""
    found = read_like(microscope(tmp_path / "microscope.json"))
    assert found == {"filter": "cosine", "resampling": "fourier", "depth": 12}
    with pytest.raises(FileNotFoundError, match=r"expected a simulated set with simulation.json or record.json"):
        read_like(tmp_path)


def test_the_picture_is_low_passed() -> None:
    """Waves of the length keep half of their amplitude, long ones nearly all, and noise goes."""
    x = torch.arange(256.0)
    for period, kept in ((8, 0.5), (64, 0.99)):
        volume = torch.cos(2 * torch.pi * x / period).expand(24, 32, 256)
        section = smooth_section(volume, 0, 12, 8.0)
        assert section.shape == (32, 256)
        assert float(section[:, 64:192].max()) == pytest.approx(kept, abs=0.01)
    noise = torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float(smooth_section(noise, 2, 32, 8.0).std()) < 0.1


def test_sections_of_the_picture() -> None:
    """The middle sections, to one scale; y is vertical in the section across x."""
    volume = torch.zeros(20, 40, 60)
    volume[10, 5:, :] = 1
    figure = three_sections(volume, voxel_size=80.0, title="a tomogram")
    assert figure.axes[0].get_title() == f"z = 10, low-passed to {LOW_PASS:g} Å"
    titles = {axes.get_title().split(",")[0]: axes for axes in figure.axes}
    assert set(titles) == {"z = 10", "y = 20", "x = 30", ""}
    shapes = {name: titles[name].images[0].get_array() for name in ("z = 10", "y = 20", "x = 30")}
    assert {name: None if one is None else one.shape for name, one in shapes.items()} == {
        **{"z = 10": (40, 60), "y = 20": (20, 60), "x = 30": (40, 20)}
    }


# --- what is refused before anything is computed ----------------------------------------------------------------------


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], series: Path, *options: object) -> str:
    """The one line that refuses; nothing is written, and the tilts are not read."""
    output = series.parent / "out.mrc"
    with monkeypatch.context() as patch:
        patch.setattr(TiltSeries, "read", lambda *_, **__: pytest.fail("the tilts were read"))
        arguments = options if "--output" in options else ("--output", output, *options)
        code, _, err = run(patch, capsys, series, *arguments)
    assert code == 1
    assert not output.exists()
    lines = [line for line in err.splitlines() if "error" in line]
    assert len(lines) == 1
    return lines[0]


def test_no_alignment(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A series that is not aligned is refused, unless the user says that it is."""
    (tmp_path / "TS_1.xf").unlink()
    said = refused(monkeypatch, capsys, series, "--depth", DEPTH)
    assert "TS_1.mrc: expected an alignment (tilt axis and shifts) in the files beside it" in said
    assert "or --aligned if the tilts are aligned already" in said
    output = tmp_path / "tomogram.mrc"
    code, _, err = run(monkeypatch, capsys, series, "--output", output, "--depth", DEPTH, "--aligned")
    assert code == 0, err
    read = TiltSeries.read(series)
    assert torch.equal(read_mrc(output)[0], reconstruct(read.tilts, read.tilt_angles, depth=DEPTH))


def test_alignment_left_out(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--aligned` of a series with an alignment warns that this one is left out."""
    code, _, err = run(monkeypatch, capsys, series, "--output", tmp_path / "t.mrc", "--depth", 8, "--aligned")
    assert (code, "is left out, since --aligned says" in err) == (0, True)


def test_no_angles(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without angles nothing is done."""
    for suffix in (".tlt", ".xf"):
        (tmp_path / f"TS_1{suffix}").unlink()
    assert "angles" in refused(monkeypatch, capsys, series, "--depth", DEPTH)


def test_wrong_pixel_size(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A header's 1.0 Å that the metadata deny is refused, and so is no pixel size; `--pixel-size` says it."""
    write_mrc(series, read_mrc(series)[0], voxel_size=1.0)
    mdoc = "PixelSpacing = 5.0\nImageFile = TS_1.mrc\nImageSize = 48 48\n\n"
    blocks = [
        f"[ZValue = {number}]\nTiltAngle = {angle}\nPixelSpacing = 5.0\nRotationAngle = 90\n\n"
        for number, angle in enumerate(ANGLES)
    ]
    (tmp_path / "TS_1.mrc.mdoc").write_text(mdoc + "".join(blocks))
    said = refused(monkeypatch, capsys, series, "--depth", DEPTH)
    assert "expected pixels of 5 Å" in said
    assert "got 1 Å in the header; set --pixel-size" in said
    output = tmp_path / "tomogram.mrc"
    code, _, err = run(monkeypatch, capsys, series, "--output", output, "--depth", DEPTH, "--pixel-size", 5)
    assert code == 0, err
    assert read_mrc(output)[1] == 5.0
    (tmp_path / "TS_1.mrc.mdoc").unlink()
    with mrcfile.open(series, mode="r+") as file:
        file.voxel_size = 0.0
    assert "expected a pixel size in the header, got 0; set --pixel-size" in refused(
        monkeypatch, capsys, series, "--depth", DEPTH
    )


def test_too_little_memory(series: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What does not fit the memory is refused at once, with its size."""
    monkeypatch.setattr(_reconstruction, "available_memory", lambda: 2**30)
    said = refused(monkeypatch, capsys, series, "--depth", 200000)
    assert "1.0 GiB of free memory" in said
    assert "200000 × 48 × 48 voxels (z, y, x) from 13 tilts" in said
    assert "set a larger --bin, or a smaller --depth" in said


def test_other_mistakes(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No depth, no defocus, an output that is the input, a picture or nowhere: one sentence each."""
    assert "set --depth in voxels" in refused(monkeypatch, capsys, series)
    correction = ("--depth", DEPTH, "--ctf-correction", "wiener")
    assert "set --ctf defocus=" in refused(monkeypatch, capsys, series, *correction)
    flavoured = ("--depth", DEPTH, "--flavours", "raw,deconvolved")
    assert "for --flavours deconvolved, got none; set --ctf defocus=" in refused(
        monkeypatch, capsys, series, *flavoured
    )
    both = (*correction, "--flavours", "raw")
    assert "expected --flavours or --ctf-correction, got both" in refused(monkeypatch, capsys, series, *both)
    for flavours, message in (("raw,raw", "expected each of `--flavours` once"), ("sharp", "to be one of 'raw'")):
        assert message in refused(monkeypatch, capsys, series, "--depth", DEPTH, "--flavours", flavours)
    microscope(tmp_path / "microscope.json")
    for output, message in (
        (tmp_path / "microscope.mrc", "expected no other file than a tomogram's record at"),
        (series, "the tilt-series itself"),
        (tmp_path / "out.png", "expected --output to end in .mrc or .rec"),
        (tmp_path / "none" / "out.mrc", "expected a folder for the tomogram, found none"),
    ):
        assert message in refused(monkeypatch, capsys, series, "--output", output, "--depth", DEPTH)
