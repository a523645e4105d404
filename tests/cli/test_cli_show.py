"""`faket-aug show`: one picture of any of the formats read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rich.progress  # noqa: F401 - it draws from Python's generator once, when it is imported
import torch
from _helpers import blobs, outcome, simulator, specimen, style_series, write_shrec
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from faket_aug import GrandModel
from faket_aug.cli._look import Look, draw_look, look_at
from faket_aug.cli._show import draw_beside, draw_list
from faket_aug.figures import count_panel, label_color, smooth_section
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import read_mrc, write_mrc


def show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of `faket-aug show`."""
    return outcome(["show", *arguments], monkeypatch, capsys)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved tomogram without its density."""
    simulator("noisy")(specimen(2), seed=0).save(tmp_path / "saved")
    return tmp_path / "saved"


def series(folder: Path) -> Path:
    """A tilt-series alone."""
    folder.mkdir()
    tilts = style_series(0)
    write_mrc(folder / "tilts.mrc", tilts.tilts, voxel_size=10.0)
    write_tlt(folder / "tilts.tlt", tilts.tilt_angles)
    return folder


# --- what is found ----------------------------------------------------------------------------------------------------


def test_a_saved_tomogram(saved: Path) -> None:
    """The tomogram with its tilts, labels, names and particles."""
    made, look = simulator("noisy")(specimen(2), seed=0), look_at(saved)
    assert (look.name, look.what, look.voxel_size) == ("saved", "tomogram", 10.0)
    assert look.volume is not None
    assert torch.equal(look.volume, made.tomogram)
    assert look.labels is not None
    assert torch.equal(look.labels, made.labels.to(look.labels.dtype))
    assert look.series is not None
    assert torch.equal(look.series.tilts, made.tiltseries)
    assert look.class_names == {1: "small", 2: "large", 3: "rare"}
    assert look.counts == {1: 3, 2: 2}


def test_a_set(tmp_path: Path) -> None:
    """Of a folder of tomograms, the one that is asked for; and a message where there is none of that number."""
    for index in range(2):
        simulator()(specimen(index), seed=0).save(tmp_path / "set" / f"tomogram_{index:04d}")
    assert [look_at(tmp_path / "set", index=index).name for index in range(2)] == ["tomogram_0000", "tomogram_0001"]
    with pytest.raises(ValueError, match="set: expected --index from 0 to 1, got 2"):
        look_at(tmp_path / "set", index=2)


def test_what_is_being_written(tmp_path: Path) -> None:
    """A tomogram that is not whole is passed over; where there is no other, the user is told."""
    for index in range(2):
        simulator()(specimen(index), seed=0).save(tmp_path / "set" / f"tomogram_{index:04d}")
    (tmp_path / "set" / "tomogram_0000" / "unfinished").write_text("")
    assert look_at(tmp_path / "set").name == "tomogram_0001"
    for path, count in ((tmp_path / "set" / "tomogram_0000", 1), (tmp_path / "set", 2)):
        (tmp_path / "set" / "tomogram_0001" / "unfinished").write_text("")
        with pytest.raises(
            FileNotFoundError, match=f"expected a finished tomogram, found {count} unfinished; wait for the simulation"
        ):
            look_at(path)


def test_a_specimen(tmp_path: Path) -> None:
    """A specimen in SHREC's layout, without tilts: its density, at the labels' voxel size."""
    thing = specimen(1, shape=(8, 12, 16), bin=2)
    look = look_at(write_shrec(tmp_path / "model", thing, density="grandmodel_unbinned.mrc"))
    assert (look.name, look.what, look.voxel_size, look.series) == ("model", "specimen", 10.0, None)
    assert look.volume is not None
    expected = thing.density.reshape(8, 2, 12, 2, 16, 2).mean(dim=(1, 3, 5))
    assert torch.allclose(look.volume, expected, atol=1e-6)
    assert look.counts == {1: 3, 2: 2}


def test_a_plain_folder(tmp_path: Path) -> None:
    """Density and labels alone: no particles are counted."""
    thing = specimen(1)
    write_mrc(tmp_path / "density.mrc", thing.density, voxel_size=10.0)
    write_mrc(tmp_path / "labels.mrc", thing.labels, voxel_size=10.0)
    look = look_at(tmp_path)
    assert (look.what, look.counts) == ("specimen", None)
    assert look.volume is not None
    assert torch.equal(look.volume, thing.density)


@pytest.mark.touches_global_rng  # copick does
def test_a_copick_project(tmp_path: Path) -> None:
    """A run of a copick project."""
    pytest.importorskip("copick")
    simulator()(specimen(2), seed=0).save(tmp_path / "one", formats=("copick",))
    look = look_at(tmp_path / "one" / "copick")
    assert (look.name, look.voxel_size, look.counts) == ("one", 10.0, {1: 3, 2: 2})


@pytest.mark.parametrize(
    ("name", "shape", "class_name"),
    [("v1.0", (56, 96, 120), "pns_4cr2"), ("v1.1", (56, 96, 120), "pns_4cr2"), ("v1.1_skipped", (36, 44, 52), "")],
)
def test_polnet(reference: Path, name: str, shape: tuple[int, ...], class_name: str) -> None:
    """PolNet's output of each version."""
    look = look_at(reference / "data" / "polnet" / name)
    assert look.volume is not None
    assert tuple(look.volume.shape) == shape
    assert look.counts
    assert not class_name or any(class_name[-4:] in found for found in look.class_names.values())
    assert {*look.counts} <= {*look.class_names}


@pytest.mark.parametrize("name", ["00254.mrc", ""])
def test_a_real_series(reference: Path, name: str) -> None:
    """A tilt-series by its stack or its folder."""
    look = look_at(reference / "data" / "real" / "empiar10499_ts00254" / name)
    assert look.volume is None
    assert look.series is not None
    assert look.series.tilts.shape == (41, 512, 512)
    titles = [axes.get_title() for axes in draw_look(look).axes]
    assert titles == ["-60°", "0°", "60°"]


# --- the picture ------------------------------------------------------------------------------------------------------


def test_sections(saved: Path) -> None:
    """Three orthogonal sections to one scale through what is richest, y down in both that show it, and the labels."""
    look = look_at(saved)
    assert look.volume is not None
    assert look.labels is not None
    figure = draw_look(look)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.images}
    assert figure.get_suptitle().endswith("32 × 24 × 16 voxels (x, y, z) of 10 Å, low-passed to 80 Å")
    first, *rest = panels
    assert first == "tilt at 0°, one of 5"
    places = {title[0]: int(title.split(" = ")[1].split(",")[0]) for title in rest}
    z, y, x = places["z"], places["y"], places["x"]
    slabs = {
        f"z = {z}": smooth_section(look.volume, 0, z, 8.0),
        f"y = {y}": smooth_section(look.volume, 1, y, 8.0),
        f"x = {x}": smooth_section(look.volume, 2, x, 8.0),
    }
    for title, slab in slabs.items():
        np.testing.assert_allclose(panels[title].images[0].get_array(), slab, rtol=1e-5, atol=1e-5)
    # The tomogram's sections, then the same with labels over them, which are coloured where there is a label.
    sections = [axes for axes in figure.axes if axes.get_title().startswith(("z", "y", "x"))]
    assert [len(axes.images) for axes in sections] == [1, 1, 1, 2, 2, 2]
    cuts = {"z": look.labels[z], "y": look.labels[:, y], "x": look.labels[:, :, x].T}
    assert sorted(axes.get_title()[0] for axes in sections[3:]) == sorted(cuts)
    for axes in sections[3:]:
        overlay = np.asarray(axes.images[1].get_array())
        np.testing.assert_array_equal(overlay[..., 3] > 0, cuts[axes.get_title()[0]].numpy() > 0)


def test_maps_keep_their_detail(tmp_path: Path) -> None:
    """The map of a particle is shown as it is; sections of a tomogram, which are mostly noise, are smoothed."""
    volume = torch.rand((16, 16, 16), generator=torch.Generator().manual_seed(0))
    for name, size in (("map.mrc", 10.0), ("tomogram.rec", 10.0), ("tomogram.mrc", 100.0)):
        write_mrc(tmp_path / name, volume, voxel_size=size)
        look = look_at(tmp_path / name)
        assert look.what == Path(name).stem
        image = draw_look(look).axes[0].images[0].get_array()
        expected = volume[8] if look.what == "map" else smooth_section(volume, 0, 8, 80.0 / size)
        np.testing.assert_allclose(np.asarray(image), expected, rtol=1e-5)
    unknown = draw_look(replace(look, voxel_size=0.0))
    np.testing.assert_allclose(np.asarray(unknown.axes[0].images[0].get_array()), volume[7:10].mean(dim=0), rtol=1e-5)
    assert unknown.get_suptitle() == "tomogram.mrc: tomogram, 16 × 16 × 16 voxels (x, y, z), mean of 3 sections"


def test_bars(saved: Path) -> None:
    """A bar for each class that is there, in its colour, with how many particles it has."""
    axes = draw_look(look_at(saved)).axes[1]
    assert axes.get_title() == "particles, 5 in all"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "large"]
    assert [bar.get_width() for bar in axes.patches] == [3, 2]
    assert [text.get_text() for text in axes.texts] == ["3", "2"]


def test_bars_of_other_classes() -> None:
    """A class without a number of particles gets a dash; one without a name its number."""
    axes = Figure().subplots()
    count_panel(axes, {1: 4, 7: 1}, class_names={0: "background", 1: "small", 2: "membrane"}, title="t")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "membrane", "class 7"]
    assert [text.get_text() for text in axes.texts] == ["4", "–", "1"]
    assert [bar.get_facecolor()[:3] for bar in axes.patches] == [
        tuple(int(label_color(n)[i : i + 2], 16) / 255 for i in (1, 3, 5)) for n in (1, 2, 7)
    ]


def test_without_a_list_of_particles(saved: Path) -> None:
    """Without a list of particles the bars are the labelled share of the volume."""
    (saved / "particle_locations.txt").unlink()
    look = look_at(saved)
    assert look.counts is None
    axes = draw_look(look).axes[1]
    assert axes.get_title() == "no list of particles; labelled voxels, %"
    assert look.labels is not None
    shares = [100 * float((look.labels == number).float().mean()) for number in (1, 2)]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], shares, atol=0.01)


@pytest.mark.parametrize(
    "look",
    [
        Look(name="density alone", volume=blobs((8, 10, 12), [(4, 5, 6)])),
        Look(name="constant", volume=torch.zeros(1, 5, 9), labels=torch.zeros(1, 5, 9, dtype=torch.uint8)),
        Look(name="one tilt", series=replace(style_series(0), tilts=torch.zeros(1, 4, 4), tilt_angles=np.zeros(1))),
    ],
    ids=lambda look: look.name,
)
def test_poor_things(look: Look) -> None:
    """Little, or nothing to see, is no error."""
    assert draw_look(look).axes


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture is called after the folder, lies here, and nothing else is written; or where it is asked for."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, output, told = show(monkeypatch, capsys, saved)
    assert (code, output) == (0, "saved.png\n")
    assert told.splitlines()[:2] == [f"read {saved / 'reconstruction.mrc'}", f"read {saved / 'class_mask.mrc'}"]
    stack = series(tmp_path / "series") / "tilts.mrc"
    code, output, told = show(monkeypatch, capsys, stack, "--output", "x.pdf")
    assert (code, output) == (0, "x.pdf\n")
    assert told.splitlines() == [f"read {stack}", f"read {stack.with_suffix('.tlt')}"]
    assert sorted(path.name for path in Path().iterdir()) == ["saved.png", "x.pdf"]
    with Image.open("saved.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 800
    assert Path("x.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "expected a folder, a tilt-series or a tomogram to show, found none at nowhere"),
        (["empty"], "empty: expected specimens, there or in folders within, found none of: SHREC's"),
        (["text.txt"], "text.txt: expected"),
        (["untold"], "untold/tilts.mrc: expected a file of tilt angles beside it"),
        (["saved", "--output", "picture.jpg"], "expected --output to end in .png or .pdf, got picture.jpg"),
        (["saved", "--output", "no/where.png"], "expected a folder for the picture, found none at no; set --output"),
        (["saved", "--index", "1"], "saved: expected --index from 0 to 0, got 1"),
        (["unequal"], r"unequal: labels` to have the shape of `tomogram`, (16, 24, 32), got (8, 12, 16)"),
    ],
)
def test_mistakes(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """What cannot be shown is told in one line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no picture")
    (series(tmp_path / "untold") / "tilts.tlt").unlink()
    shutil.copytree(saved, tmp_path / "unequal")
    write_mrc(tmp_path / "unequal" / "class_mask.mrc", torch.zeros(8, 12, 16, dtype=torch.uint8), voxel_size=20.0)
    code, output, errors = show(monkeypatch, capsys, *arguments)
    assert (code, output) == (1, "")
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.rglob("*.png"))


# --- a tomogram alone, picks over it, and beside another -----------------------------------------------------------


def test_a_tomogram_alone(saved: Path, tmp_path: Path) -> None:
    """An MRC file without angles beside it, or one that is never a tilt-series, is a volume with its voxel size."""
    shutil.copy(saved / "reconstruction.mrc", tmp_path / "tomogram.mrc")
    shutil.copy(saved / "reconstruction.mrc", tmp_path / "tomogram.rec")
    write_tlt(tmp_path / "tomogram.tlt", np.arange(16.0))
    look = look_at(tmp_path / "tomogram.rec")
    assert look.volume is not None
    assert (look.name, look.what, look.voxel_size, tuple(look.volume.shape)) == (
        *("tomogram.rec", "tomogram", 10.0),
        (16, 24, 32),
    )
    assert look_at(tmp_path / "tomogram.mrc").series is not None
    (tmp_path / "tomogram.tlt").unlink()
    assert look_at(tmp_path / "tomogram.mrc").volume is not None
    (tmp_path / "tomogram.mrc").rename(tmp_path / "stack.st")
    with pytest.raises(FileNotFoundError, match="expected a file of tilt angles beside it"):
        look_at(tmp_path / "stack.st")


def test_picks_over_a_tomogram(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each particle of the list has a circle where a section cuts it; a list of another tomogram is noticed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text("class,x,y,z\nround,16,12,8\nround,4,4,8\nlong,30,20,3\n")
    look = look_at(saved / "reconstruction.mrc")
    figure = draw_list(look, tmp_path / "list.csv", radius=30.0)
    circles = [patch for patch in figure.axes[0].patches if isinstance(patch, Circle)]
    assert sorted(circle.center for circle in circles) == [(4, 4), (16, 12)]
    assert {circle.radius for circle in circles} == {3.0}
    # What goes beyond a section is cut, so that sections keep one scale.
    large = draw_list(look, tmp_path / "list.csv", radius=100.0)
    spans = [(*axes.get_xlim(), *axes.get_ylim()) for axes in large.axes[:3]]
    assert spans == [(-0.5, 31.5, 23.5, -0.5), (-0.5, 15.5, 23.5, -0.5), (-0.5, 31.5, 15.5, -0.5)]
    labels = [text.get_text() for text in figure.axes[3].get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["long: 1", "round: 2"]
    (tmp_path / "far.csv").write_text("class,x,y,z\nround,160,12,8\n")
    code, output, errors = show(monkeypatch, capsys, saved / "reconstruction.mrc", "--picks", "far.csv")
    assert (code, output) == (0, "reconstruction_far.png\n")
    assert "1 of 1 particles lie outside of reconstruction.mrc" in errors
    assert "read far.csv" in errors
    code, _, errors = show(monkeypatch, capsys, saved, "--picks", "far.csv", "--beside", saved)
    assert (code, errors) == (1, "faket-aug: error: expected either --picks or --beside, got both; make two pictures\n")


def test_a_set_beside_a_measured_tomogram(saved: Path, tmp_path: Path) -> None:
    """Both show the same length, whatever their voxels; different filters are noticed, a tilt-series is refused."""
    look = look_at(saved)
    coarse, _ = read_mrc(saved / "reconstruction.mrc")
    write_mrc(tmp_path / "real.mrc", coarse[:8, :12, :12], voxel_size=20.0)
    figure = draw_beside(look, look_at(tmp_path / "real.mrc"))
    shapes = [axes.images[0].get_array().shape for axes in figure.axes]  # type: ignore[union-attr]
    # 16 × 24 × 24 voxels of 10 Å, and 8 × 12 × 12 of 20 Å.
    assert shapes == [(24, 24), (12, 12), (16, 24), (8, 12)]
    assert [axes.get_title().split(", z")[0] for axes in figure.axes[:2]] == ["saved", "real.mrc"]
    (tmp_path / "real.json").write_text('{"reconstruction": {"filter": "ramp"}, "tilt_angles": []}')
    with pytest.warns(UserWarning, match=r"saved was reconstructed with the filter \w+, real.mrc with ramp"):
        draw_beside(look, look_at(tmp_path / "real.mrc"))
    with pytest.raises(ValueError, match="expected a tomogram for --beside, got the tilt-series"):
        draw_beside(look, look_at(series(tmp_path / "series")))


def test_shrec(reference: Path) -> None:
    """A SHREC model with its projections."""
    look = look_at(reference / "data" / "minishrec" / "model_0")
    assert (look.name, look.what) == ("model_0", "specimen")
    assert look.series is not None
    assert look.series.tilts.shape[0] == 41
    assert look.counts is not None
    assert sum(look.counts.values()) == 164
    assert isinstance(GrandModel.from_shrec(reference / "data" / "minishrec" / "model_0"), GrandModel)
