"""What a user gets wrong from tilts to picks is told in a sentence, before the first second of work."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
import torch
from _helpers import blobs, outcome, simulator, specimen, style_series

from faket_aug import NoiseModel, TiltSeries, read_specimens
from faket_aug.cli._commands import in_option_names
from faket_aug.cli._series_checks import check_series, read_series
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from faket_aug.microscope.file import MicroscopeFile, write_microscope
from faket_aug.picking import PickerDescription
from faket_aug.picking.picker import kind_of
from faket_aug.simulation.saving import LIST_FILES


def _tilts(count: int) -> torch.Tensor:
    return torch.rand(count, 16, 24, generator=torch.Generator().manual_seed(count))


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run `faket-aug`; it has to end with a line that says what is wrong, which is returned."""
    code, _, errors = outcome(arguments, monkeypatch, capsys)
    assert code == 1
    (line,) = [one for one in errors.splitlines() if one.strip()]
    return line


@pytest.mark.parametrize("command", ["simulate", "train"])
def test_specimens_that_do_not_fit_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """A request for more memory than there is is refused at once, and leaves no settings behind."""
    write_mrc(tmp_path / "bean.mrc", blobs((9, 9, 9), [(4, 4, 4)], 1.2), voxel_size=10.0)
    monkeypatch.chdir(tmp_path)
    target = ["set"] if command == "simulate" else ["--output", "set"]
    given = ["--templates", "bean.mrc", "--occupancy", "0.1", "--snr", "0.1", "--shape", "8000,20000,20000"]
    line = refused(monkeypatch, capsys, command, *target, *given)
    assert "8000 × 20000 × 20000 voxels (z, y, x), which take 32782.6 GiB at least; set --shape smaller" in line
    assert not list(tmp_path.glob("set/*"))


def test_pixels_that_the_metadata_deny(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fit` refuses a header's 1 Å that SerialEM's file contradicts."""
    write_mrc(tmp_path / "series.mrc", _tilts(3), voxel_size=1.0)
    (tmp_path / "series.mrc.mdoc").write_text(
        "PixelSpacing = 10\nImageSize = 24 16\n" + "".join(f"\n[ZValue = {z}]\nTiltAngle = {3 * z}\n" for z in range(3))
    )
    line = refused(monkeypatch, capsys, "fit", tmp_path / "scope.json", "--style", tmp_path / "series.mrc")
    assert "expected pixels of 10 Å, as" in line
    assert "got 1 Å in the header; correct the header, or the metadata" in line


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        (("fit", "scope.json", "--style", "series.mrc"), "put one there, or set --tilt-axis in degrees"),
        (
            ("check", "scope.json", "--output", "out", "--style", "series.mrc"),
            "put one there, or set --tilt-axis in degrees",
        ),
        (("reconstruct", "series.mrc", "--output", "r.mrc", "--depth", "8"), "set --metadata to one"),
    ],
    ids=lambda one: one[0] if isinstance(one, tuple) else "",
)
def test_a_series_without_an_alignment_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    advice: str,
) -> None:
    """All commands that need aligned tilts say the same sentence, each with its own options, and write nothing."""
    monkeypatch.chdir(tmp_path)
    write_mrc(tmp_path / "series.mrc", _tilts(2), voxel_size=10.0)
    write_tlt(tmp_path / "series.tlt", [0.0, 3.0])
    noise = NoiseModel.assume(
        torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0)), [0.0, 3.0], snr=0.1, order=0
    )
    write_microscope(tmp_path / "scope.json", MicroscopeFile(noise=noise))
    before = sorted(tmp_path.iterdir())
    assert refused(monkeypatch, capsys, *command) == (
        "faket-aug: error: series.mrc: expected an alignment (tilt axis and shifts) in the files beside it, .xf, .aln, "
        f".star or .xml, got series.tlt without; {advice}, or --aligned if the tilts are aligned already, with their "
        "axis along y"
    )
    assert sorted(tmp_path.iterdir()) == before
    if "--style" in command:
        line = refused(monkeypatch, capsys, *command, "--aligned", "--tilt-axis", "85")
        assert "expected either --aligned or --tilt-axis" in line


def test_what_counts_as_aligned(tmp_path: Path) -> None:
    """Said to be aligned, with a file beside it, with an axis given, in IMOD's name or SHREC's, a series passes."""
    write_mrc(tmp_path / "series.mrc", _tilts(2), voxel_size=10.0)
    write_tlt(tmp_path / "series.tlt", [0.0, 3.0])
    path = str(tmp_path / "series.mrc")
    with pytest.raises(ValueError, match="expected an alignment"):
        check_series([path], aligned=False, tilt_axis=None)
    check_series([path], aligned=True, tilt_axis=None)
    check_series([path], aligned=False, tilt_axis=85.0)
    for name in ("series_ali.mrc", "projections.mrc"):
        write_mrc(tmp_path / name, _tilts(2), voxel_size=10.0)
        write_tlt((tmp_path / name).with_suffix(".tlt"), [0.0, 3.0])
        check_series([str(tmp_path / name)], aligned=False, tilt_axis=None)
    (tmp_path / "series.xf").write_text("1 0 0 1 2 3\n1 0 0 1 0 0\n")
    check_series([path], aligned=False, tilt_axis=None)
    moved = read_series(path, aligned=False).aligned().tilts
    assert not torch.equal(moved, _tilts(2))
    # Of tilts that are aligned the file's shifts are left out, and the user is told.
    with pytest.warns(UserWarning, match=r"the alignment of .*series.tlt.* is left out, since --aligned says"):
        check_series([path], aligned=True, tilt_axis=None)
    assert torch.equal(read_series(path, aligned=True).aligned().tilts, _tilts(2))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--step-size", "-1"], "expected --step-size to be 0 or more, got -1.0"),
        (["--noise-order", "99"], "got 41; set --noise-order lower"),
        (["--occupancy", "3"], "expected --occupancy of more than 0 and at most 0.64"),
        (["--ctf-correction", "wiener"], "expected --ctf, or noise with a `response`, for --ctf-correction"),
        (["--class-table", "0=x"], "name them so, add them to --class-table,"),
        (["--membranes", "sphere=-3"], "--membranes: expected `count` to be a whole number of 0 or more, got -3"),
        (["--slab", "tilt=9"], "expected --slab with thickness, got tilt"),
        # Options of the same names are others.
        (["--fiducials", "density=-5"], "--fiducials: expected `density` to be more than 0, got -5.0"),
        (["--damage", "per_tilt=3,order=wild"], "--damage: expected `order` to be one of"),
        (["--detector", "at_nyquist=0.5,shape=-1"], "--detector: expected `shape` to be more than 0, got -1.0"),
        (["--device", "tpu"], """expected --device to be "cpu", "cuda" or "cuda:1", got 'tpu'"""),
        (["--device", "meta"], """expected --device to be "cpu", "cuda" or "cuda:1", got 'meta'"""),
        (["--style", "bare.mrc"], "alignment_simulated.txt, found none; write one"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)
def test_messages_speak_of_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    """What the library says of its parameters, a command says of its options; nothing is written."""
    monkeypatch.chdir(tmp_path)
    write_mrc(tmp_path / "bean.mrc", blobs((9, 9, 9), [(4, 4, 4)], 1.2), voxel_size=10.0)
    write_mrc(tmp_path / "bare.mrc", _tilts(2), voxel_size=10.0)
    made = ["--templates", "bean.mrc", "--occupancy", "0.1", "--snr", "0.1", "--shape", "16,32,32"]
    line = refused(monkeypatch, capsys, "simulate", "set", *made, *given)
    assert said in line
    assert not line.endswith("`tilt_angles`")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--thickness", "-1"], "expected --thickness to be more than 0, got -1.0"),
        (["--exposure", "-1"], "expected --exposure to be more than 0, got -1.0"),
        (["--b-factor", "-1"], "expected --b-factor to be 0 or more, got -1.0"),
        (
            ["--fit-crowd", "occupancy"],
            'for --fit-crowd "occupancy", which makes more of their particles, got the built-in ones; set --fit-crowd',
        ),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)
def test_messages_of_a_fit_speak_of_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mrc(tmp_path / "series.mrc", torch.cat([_tilts(2)] * 2)[:3] + _tilts(3), voxel_size=10.0)
    write_tlt(tmp_path / "series.tlt", [-3.0, 0.0, 3.0])
    fitted = ["fit", "scope.json", "--style", "series.mrc", "--aligned", "--shape", "16,32,32"]
    assert said in refused(monkeypatch, capsys, *fitted, *given)


def test_names_in_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of settings has underscores in its names; of other files only the advice speaks of options."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.toml").write_text('templates = ["bean.mrc"]\nstep_size = "far"\n')
    line = refused(monkeypatch, capsys, "simulate", "set", "--config", "set.toml")
    assert "set.toml: expected `step_size` to be a number" in line
    names = {"order": "--noise-order"}
    assert in_option_names("m.json: expected `order`, set `order`", names, of_file=True) == (
        "m.json: expected `order`, set --noise-order"
    )
    assert in_option_names("It is off. Set `order`", names, of_file=True) == "It is off. Set --noise-order"


def test_warnings_of_a_fit_speak_of_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the library takes as a transfer function, `fit` takes as a defocus."""
    monkeypatch.chdir(tmp_path)
    write_mrc(tmp_path / "series.mrc", _tilts(2), voxel_size=10.0)
    write_tlt(tmp_path / "series.tlt", [0.0, 3.0])

    def warned(*_: object, **__: object) -> None:
        warnings.warn("the best defocus lies at an end; set `ctf` to another range", stacklevel=2)
        raise ValueError("seen")

    monkeypatch.setattr("faket_aug.cli._fitting.fit_microscope", warned)
    code, _, errors = outcome(["fit", "m.json", "--style", "series.mrc", "--aligned"], monkeypatch, capsys)
    assert (code, "set --defocus to another range" in " ".join(errors.split())) == (1, True)


def test_angles_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`reconstruct` names its own option."""
    write_mrc(tmp_path / "series.mrc", _tilts(2), voxel_size=10.0)
    line = refused(monkeypatch, capsys, "reconstruct", tmp_path / "series.mrc", "--output", tmp_path / "r.mrc")
    assert line.endswith("found none; write one, or set --tilt-angles")


def test_a_list_of_no_particles_is_read(tmp_path: Path) -> None:
    """A set of star5 whose tomogram holds no particle is a specimen without particles."""
    made = simulator("noisy")(specimen(2), seed=0)
    made.save(tmp_path / "tomogram_0000", formats=("star5",), specimen=specimen(2))
    listed = tmp_path / "tomogram_0000" / LIST_FILES["star5"]
    assert len(read_specimens(tmp_path)[0].particles) == len(specimen(2).particles) > 0
    head = [line for line in listed.read_text().splitlines() if "tomogram" not in line and "specimen" not in line]
    rows = [line for line in head if line.startswith(("_", "data", "loop")) or not line.strip()]
    listed.write_text("\n".join(rows) + "\n\n")
    assert len(read_specimens(tmp_path)[0].particles) == 0


def test_a_series_is_printed_in_a_line() -> None:
    """Its size, pixels and angles, and no pixel's value."""
    series = style_series(0)
    assert "\n" not in repr(series)
    angles = f"{series.tilt_angles.min():g}° to {series.tilt_angles.max():g}°"
    size = f"{len(series.tilts)} tilts of {series.tilts.shape[2]} × {series.tilts.shape[1]} pixels"
    assert f"{series.name}: {size} of {series.pixel_size:g} Å, {angles}" in repr(series)
    assert isinstance(series, TiltSeries)


def test_what_a_picker_was_trained_on() -> None:
    """The flavour, or the CTF correction alone, says what a picker knows; files without it are read."""
    own = {"class_names": {1: "a"}, "widths": (4, 8, 8), "voxel_size": 10.0, "filter": "hann", "radii": {1: 50.0}}
    description = PickerDescription(**own, flavour="low-pass")  # type: ignore[arg-type]
    assert PickerDescription.from_dict(description.to_dict()).kind == "low-pass"
    old = {name: one for name, one in description.to_dict().items() if name != "flavour"}
    assert PickerDescription.from_dict(old).kind == "raw"
    assert (kind_of(None, "wiener"), kind_of("raw", None), kind_of(None, None)) == ("wiener", "raw", "raw")
    with pytest.raises(ValueError, match="flavour"):
        PickerDescription(**own, flavour="sweet")  # type: ignore[arg-type]
