"""What a picker learns: its classes, their sizes, specimens and real tomograms labelled with these alone."""

from __future__ import annotations

import math
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from faket_aug import FiducialSpecies, GrandModelGenerator, MembraneSpecies, ParticleSpecies, ParticleTemplate
from faket_aug._checks import FileFormatError
from faket_aug.formats.mrc import write_mrc
from faket_aug.training.classes import TaughtClasses, only, teach
from faket_aug.training.real import read_real
from faket_aug.training.validation import EPOCH, LONGEST, held_out
from tests._helpers import blobs, specimen, specimens


def template(name: str, spread: float) -> ParticleTemplate:
    """A Gaussian blob."""
    density = blobs((15, 15, 15), [(7, 7, 7)], spread)
    return ParticleTemplate(density=density, voxel_size=10.0, threshold=0.5, name=name)


def generator() -> GrandModelGenerator:
    """Two particles, a vesicle and a bead; all have labels."""
    return GrandModelGenerator(
        particles=[
            ParticleSpecies(templates=template("large", 2.5), count=3),
            ParticleSpecies(templates=template("small", 1.5), count=4),
        ],
        membranes=MembraneSpecies(kind="sphere", count=1, radius=80.0),
        fiducials=FiducialSpecies(count=1, radius=20.0),
        shape=(40, 44, 48),
        voxel_size=10.0,
    )


def half_width(spread: float) -> float:
    """Å, of the sphere in which a blob is above one half."""
    return 10 * spread * math.sqrt(2 * math.log(2))


def test_particles_of_a_generator() -> None:
    """Particles are learned, in their order; membranes and beads are not labelled; sizes are those of the masks."""
    taught, classes = teach(generator())
    assert classes.names == {1: "large", 2: "small"}
    assert classes.numbers == {"large": 1, "small": 2}
    assert classes.radii[1] == pytest.approx(half_width(2.5), rel=0.03)
    assert classes.radii[2] == pytest.approx(half_width(1.5), rel=0.07)
    assert classes.others == ()
    assert isinstance(taught, GrandModelGenerator)
    made = taught.generate(seed=0)
    assert made.labels.unique().tolist() == [0, 1, 2]
    assert sorted(made.particles.classes.tolist()) == [1] * 3 + [2] * 4
    # Membrane and bead are there all the same.
    whole = generator().generate(seed=0)
    assert torch.equal(made.density, whole.density)
    assert set(whole.labels.unique().tolist()) == {0, 1, 2, 3, 4}


def test_one_class_of_a_generator() -> None:
    """What is not wanted is a look-alike: it is there, without labels; upper and lower case do not matter."""
    taught, classes = teach(generator(), ["SMALL"])
    assert classes == TaughtClasses(names={1: "small"}, radii=classes.radii, others=("large",))
    assert isinstance(taught, GrandModelGenerator)
    made = taught.generate(seed=0)
    assert torch.equal(made.density, generator().generate(seed=0).density)
    assert torch.equal(made.labels > 0, generator().generate(seed=0).labels == 2)


def test_specimens_of_files() -> None:
    """The classes that there are get numbers from 1 on, in labels and list; radii are those of their labels."""
    given = specimens(3)
    taught, classes = teach(given)
    # The table names a third class, of which there is no particle.
    assert classes.names == {1: "small", 2: "large"}
    assert classes.others == ("rare",)
    _, classes = teach(given, ["large"])
    assert classes.names == {1: "large"}
    assert classes.others == ("small", "rare")
    taught, _ = teach(given, ["large"])
    made = taught[1]
    assert torch.equal(made.labels, (given[1].labels == 2).to(torch.uint8))
    assert np.array_equal(made.particles.positions, given[1].particles.positions[given[1].particles.classes == 2])
    assert set(made.particles.classes.tolist()) == {1}
    voxels = int((given[0].labels == 2).sum()) / 2
    assert classes.radii[1] == pytest.approx(10 * (3 * voxels / (4 * math.pi)) ** (1 / 3))
    assert [one.name for one in taught[1:]] == ["specimen 1", "specimen 2"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["tall"], "expected `classes` among small, large, rare, got tall"),
        (["rare"], "specimen 0: expected labelled particles of rare with their list, .* got none in 2 specimens"),
    ],
)
def test_classes_that_there_are_not(wanted: list[str], message: str) -> None:
    """Unknown classes are told with those that are known; so are classes without a particle."""
    with pytest.raises(ValueError, match=message):
        teach(specimens(2), wanted)
    with pytest.raises(ValueError, match="expected `classes` among large, small, got tall"):
        teach(generator(), ["tall"])


def test_no_particles() -> None:
    """A generator of membranes teaches nothing."""
    empty = GrandModelGenerator(membranes=MembraneSpecies(count=1, radius=80.0), shape=(40, 40, 40))
    with pytest.raises(ValueError, match="expected particles that a picker can learn, got none; set `templates`"):
        teach(empty)


def test_only_keeps_what_is_wanted() -> None:
    """Labels of other classes become background, their rows go, and nothing is a membrane any more."""
    made = only(specimen(0), {1: "large"})
    assert made.class_names == {0: "background", 1: "large"}
    assert made.instances is None
    assert made.not_particles == frozenset()
    assert len(made.particles) == 2


def test_held_out() -> None:
    """A generator makes narrower ones for validation; of files the last are held out where enough are left."""
    wide = generator()
    for_training, for_validation = held_out(wide, 1)
    assert for_training is wide
    assert isinstance(for_validation, GrandModelGenerator)
    assert for_validation.shape == (40, 44, 48)
    assert max(for_validation.shape) <= LONGEST
    listed = specimens(4)
    assert [len(part) for part in held_out(listed, 1)] == [3, 1]  # type: ignore[arg-type]
    assert held_out(listed, 2) == (listed, listed)
    assert EPOCH > 10**9


# --- real tomograms ---------------------------------------------------------------------------------------------------

CLASSES = TaughtClasses(names={1: "large", 2: "small"}, radii={1: 30.0, 2: 20.0})


def write_real(folder: Path, rows: str) -> tuple[Path, Path]:
    """Write a tomogram and its picks."""
    write_mrc(folder / "real.mrc", blobs((8, 10, 12), [(4, 5, 6)]), voxel_size=10.0)
    (folder / "picks.csv").write_text(f"class,x,y,z\n{rows}")
    return folder / "real.mrc", folder / "picks.csv"


def test_real_picks(tmp_path: Path) -> None:
    """Picks get the picker's numbers; those of other classes are left out with a word."""
    files = write_real(tmp_path, "small,6,5,4\nLARGE,1,2,3\nghost,2,2,2\n")
    with pytest.warns(UserWarning, match=r"picks\.csv: picks of ghost are left out, which are not learned"):
        made = read_real(*files, CLASSES)
    assert made.particles.classes.tolist() == [2, 1]
    assert made.particles.positions.tolist() == [[4.0, 5.0, 6.0], [3.0, 2.0, 1.0]]
    assert made.voxel_size == 10.0
    assert not bool(made.labels.any())


def test_picks_without_names(tmp_path: Path) -> None:
    """A single class is what nameless picks are of; of two classes nobody can tell."""
    files = write_real(tmp_path, "1,6,5,4\n1,1,2,3\n")
    one = TaughtClasses(names={1: "large"}, radii={1: 30.0})
    assert read_real(*files, one).particles.classes.tolist() == [1, 1]
    with pytest.raises(FileFormatError, match=r"picks\.csv: expected picks of large, small, got those of 1; name them"):
        read_real(*files, CLASSES)


def test_picks_of_other_tomograms(tmp_path: Path) -> None:
    """A list of tomograms that are all named otherwise is told with both names, and with what to do."""
    tomogram, _ = write_real(tmp_path, "")
    classes = TaughtClasses(names={1: "large"}, radii={1: 30.0})
    rows = "".join(f"{name} 6 5 4\n" for name in ("TS_1", "TS_2"))
    columns = "".join(f"_rln{name}\n" for name in ("TomoName", "CoordinateX", "CoordinateY", "CoordinateZ"))
    picks = tmp_path / "picks.star"
    picks.write_text(f"data_\n\nloop_\n{columns}{rows}")
    with pytest.raises(
        FileFormatError, match=r"picks of real, as the file .*real\.mrc is named, got those of TS_1, TS_2"
    ):
        read_real(tomogram, picks, classes)
    assert len(read_real(tomogram.rename(tmp_path / "TS_2.mrc"), picks, classes).particles.classes) == 1


def test_real_files_that_are_wrong(tmp_path: Path) -> None:
    """Missing files, picks outside, and headers without a voxel size are told by name."""
    files = write_real(tmp_path, "small,60,5,4\n")
    with pytest.raises(FileFormatError, match="expected particles within"):
        read_real(*files, CLASSES)
    with pytest.raises(FileNotFoundError, match="expected a real tomogram, found none at gone"):
        read_real("gone", files[1], CLASSES)
    with pytest.raises(FileNotFoundError, match="expected a list of particles, found none at gone"):
        read_real(files[0], "gone", CLASSES)
    files = write_real(tmp_path, "small,6,5,4\n")
    with mrcfile.open(files[0], mode="r+") as file:
        file.voxel_size = 0.0
    with pytest.raises(FileFormatError, match="expected a voxel size in the header, got 0"):
        read_real(*files, CLASSES)
