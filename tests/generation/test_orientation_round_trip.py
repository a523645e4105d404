"""Places and orientations mean the same in every format: templates put back where a file says reproduce the density.

One asymmetric phantom of three unequal sizes, with particles far off its centre, goes through every writer, and back
through every reader and through a reader that is not this package's. Templates are placed by SciPy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from scipy.ndimage import affine_transform, rotate
from scipy.spatial.transform import Rotation

from faket_aug.formats.deepfinder import read_object_list, write_object_list
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.polnet import find_polnet_tomograms, read_motif_list
from faket_aug.formats.shrec import read_particle_locations, write_particle_locations
from faket_aug.formats.star import read_particles_star, write_particles_star

SHAPE = (36, 44, 70)
VOXEL_SIZE = 7.84 / 3
CLASS_NUMBERS = {"small": 1, "large": 2, "gold": 5}
TOMOGRAM = "TS_001"


def template(kind: str) -> np.ndarray:
    """A particle of four unequal blobs, none on an axis of the box; no turn of it looks like another."""
    size = {"small": 13, "large": 18}[kind]
    stretch = size / 13
    blobs = [((0, 0, 0), 1.0), ((4, 0.5, 0), 0.8), ((-1, 3.5, 1), 0.6), ((0.5, -1.5, -3.5), 0.9)]  # (x, y, z), height
    z, y, x = np.meshgrid(*(np.arange(size) - size // 2,) * 3, indexing="ij")
    return sum(
        height * np.exp(-((x - stretch * a) ** 2 + (y - stretch * b) ** 2 + (z - stretch * c) ** 2) / (2 * 1.3**2))
        for (a, b, c), height in blobs
    )


def place(volume: np.ndarray, part: np.ndarray, position: Sequence[float], turn: np.ndarray) -> None:
    """Add a template, turned by a matrix on (x, y, z), so that its voxel `n // 2` lies at `position` (z, y, x)."""
    # SciPy looks up, for each voxel of the output, where it comes from: the inverse turn, with its axes as (z, y, x).
    inverse = turn.T[::-1, ::-1]
    reach = int(np.ceil(np.sqrt(3) * max(part.shape) / 2))
    first = np.maximum(np.floor(position).astype(int) - reach, 0)
    stop = np.minimum(np.floor(position).astype(int) + reach + 1, volume.shape)
    offset = np.array(part.shape) // 2 - inverse @ (np.asarray(position) - first)
    box = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))
    volume[box] += affine_transform(part, inverse, offset=offset, output_shape=tuple(stop - first), order=1)


def density(
    names: Sequence[str],
    positions: np.ndarray,
    turns: np.ndarray,
    templates: Mapping[str, np.ndarray] | None = None,
    shape: Sequence[int] = SHAPE,
) -> np.ndarray:
    """Place all particles of which there is a template."""
    parts = {kind: template(kind) for kind in ("small", "large")} if templates is None else templates
    volume = np.zeros(shape)
    for name, position, turn in zip(names, positions, turns, strict=True):
        if name in parts:
            place(volume, parts[name], position, turn)
    return volume


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two volumes."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.fixture(scope="module")
def truth() -> ParticleList:
    """Particles of two classes, far off the centre, one at gimbal lock, and a bead without orientation."""
    turns = Rotation.random(7, random_state=np.random.default_rng(4)).as_matrix()
    turns[1] = Rotation.from_euler("z", 70, degrees=True).as_matrix()
    turns[6] = np.nan
    positions = [(8, 9, 9), (9, 34, 60.5), (27.25, 8, 33), (26, 35, 8), (9.5, 20, 37), (27, 33, 57), (30, 12, 61)]
    names = ("small", "large", "large", "large", "small", "small", "gold")
    return ParticleList(names, np.array(positions, dtype=np.float64), turns)


@pytest.fixture(scope="module")
def phantom_density(truth: ParticleList) -> np.ndarray:
    """The density of these particles."""
    return density(truth.names, truth.positions, truth.orientations)


@dataclass(frozen=True)
class Format:
    """How a format is written and read by this package, and read by another.

    `read_elsewhere` gives names or numbers, positions (z, y, x) in voxels, matrices, and the voxel size or nothing.
    """

    write: Callable[[Path, ParticleList], Any]
    read: Callable[[Path], ParticleList]
    read_elsewhere: Callable[[Path], tuple[list[Any], np.ndarray, np.ndarray, float | None]]


def _read_shrec_elsewhere(path: Path) -> tuple[list[Any], np.ndarray, np.ndarray, None]:
    rows = [line.split() for line in path.read_text().splitlines()]
    numbers = np.array([[float(word) for word in row[1:]] for row in rows])
    known = ~np.isnan(numbers).any(axis=1)
    turns = np.full((len(rows), 3, 3), np.nan)
    turns[known] = Rotation.from_euler("ZXZ", numbers[known, 3:], degrees=True).as_matrix()
    return [row[0] for row in rows], numbers[:, 2::-1], turns, None


def _read_star_elsewhere(path: Path) -> tuple[list[Any], np.ndarray, np.ndarray, float]:
    table = starfile.read(path)
    columns = [name for name in table if name.startswith(("rlnTomoTiltSeriesPixelSize", "rlnPixelSize"))]
    size = float(table[columns[0]].iloc[0])
    turns = Rotation.from_euler("ZYZ", table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]], degrees=True)
    matrices = turns.inv().as_matrix()
    matrices[table["faketOriented"].to_numpy() == 0] = np.nan
    if "rlnCoordinateX" in table:
        places = table[["rlnCoordinateZ", "rlnCoordinateY", "rlnCoordinateX"]].to_numpy()
    else:
        names = ["rlnCenteredCoordinateZAngst", "rlnCenteredCoordinateYAngst", "rlnCenteredCoordinateXAngst"]
        places = table[names].to_numpy() / size + np.array(SHAPE) / 2
    assert set(table["rlnTomoName"]) == {TOMOGRAM}
    return table["rlnClassNumber"].tolist(), places, matrices, size


def _read_xml_elsewhere(path: Path) -> tuple[list[Any], np.ndarray, np.ndarray, None]:
    objects = ElementTree.parse(path).getroot().findall("object")
    turns = np.full((len(objects), 3, 3), np.nan)
    for i, entry in enumerate(objects):
        if entry.get("psi") is not None:
            angles = [float(entry.attrib[name]) for name in ("psi", "the", "phi")]
            turns[i] = Rotation.from_euler("ZXZ", angles, degrees=True).as_matrix()
    places = np.array([[float(entry.attrib[axis]) for axis in "zyx"] for entry in objects])
    return [int(entry.attrib["class_label"]) for entry in objects], places, turns, None


def _write_copick(folder: Path, particles: ParticleList) -> None:
    if find_spec("copick") is None:
        pytest.skip("needs the optional package copick")
    from faket_aug.formats.copick import write_copick

    write_copick(
        folder,
        run=TOMOGRAM,
        particles=particles,
        class_numbers=CLASS_NUMBERS,
        voxel_size=VOXEL_SIZE,
        tomograms={"density": torch.from_numpy(density(particles.names, particles.positions, particles.orientations))},
    )


def _read_copick(folder: Path) -> ParticleList:
    from faket_aug.formats.copick import read_copick_picks

    return read_copick_picks(folder, run=TOMOGRAM, voxel_size=VOXEL_SIZE)


def _read_copick_elsewhere(folder: Path) -> tuple[list[Any], np.ndarray, np.ndarray, float]:
    import copick

    root = copick.from_file(str(folder / "copick_config.json"))
    run = root.get_run(TOMOGRAM)
    numbers, places, turns, rows = [], [], [], []
    for picks in run.picks:
        transforms = picks.numpy()[1][:, :3, :3]
        numbers += [root.get_object(picks.pickable_object_name).label] * len(transforms)
        places += [*picks.full_positions()]
        turns += [*(transforms if picks.trust_orientation else np.full_like(transforms, np.nan))]
        rows += [*picks.instance_ids()]
    spacing = run.voxel_spacings[0]
    scale = spacing.tomograms[0].zarr()
    import zarr

    meta = zarr.open(scale, mode="r").attrs["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]
    order = np.argsort(rows)
    size = float(meta["scale"][0])
    return [numbers[i] for i in order], np.array(places)[order][:, ::-1] / size, np.array(turns)[order], size


def _star(version: int) -> Format:
    def write(path: Path, particles: ParticleList) -> None:
        write_particles_star(
            path,
            {TOMOGRAM: particles},
            voxel_size=VOXEL_SIZE,
            shape=SHAPE,
            class_numbers=CLASS_NUMBERS,
            version=version,
        )

    return Format(write, lambda path: read_particles_star(path, shape=SHAPE)[TOMOGRAM], _read_star_elsewhere)


FORMATS = {
    "shrec": Format(write_particle_locations, read_particle_locations, _read_shrec_elsewhere),
    "star3": _star(3),
    "star4": _star(4),
    "star5": _star(5),
    "deepfinder": Format(
        lambda path, particles: write_object_list(path, particles, class_numbers=CLASS_NUMBERS),
        lambda path: read_object_list(path, class_names={n: name for name, n in CLASS_NUMBERS.items()})[0],
        _read_xml_elsewhere,
    ),
    "copick": Format(_write_copick, _read_copick, _read_copick_elsewhere),
}


@pytest.mark.parametrize("name", FORMATS)
def test_read_back(tmp_path: Path, truth: ParticleList, phantom_density: np.ndarray, name: str) -> None:
    """What is read back are the same particles in the same order, and their templates make the same density."""
    FORMATS[name].write(tmp_path / "file", truth)
    found = FORMATS[name].read(tmp_path / "file")
    assert found.names == truth.names
    np.testing.assert_allclose(found.positions, truth.positions, atol=1e-4)
    np.testing.assert_allclose(found.orientations, truth.orientations, atol=1e-5)
    assert correlation(density(found.names, found.positions, found.orientations), phantom_density) > 0.999


@pytest.mark.parametrize("name", FORMATS)
def test_read_elsewhere(tmp_path: Path, truth: ParticleList, phantom_density: np.ndarray, name: str) -> None:
    """Read without this package, by the format's own conventions, places, orientations and voxel size are the same."""
    FORMATS[name].write(tmp_path / "file", truth)
    numbers, positions, turns, size = FORMATS[name].read_elsewhere(tmp_path / "file")
    wanted = list(truth.names) if name == "shrec" else [CLASS_NUMBERS[one] for one in truth.names]
    assert numbers == wanted
    np.testing.assert_allclose(positions, truth.positions, atol=1e-4)
    np.testing.assert_allclose(turns, truth.orientations, atol=1e-5)
    if size is not None:
        assert size == VOXEL_SIZE
    assert correlation(density(truth.names, positions, turns), phantom_density) > 0.999


def test_wrong_conventions_show(truth: ParticleList, phantom_density: np.ndarray) -> None:
    """The measure tells conventions apart: inverse turns, turns on (z, y, x) and exchanged axes fall below 0.95."""
    turned = truth.orientations
    for turns in (turned.transpose(0, 2, 1), turned[:, ::-1, ::-1], turned @ np.diag([1, -1, -1.0])):
        assert correlation(density(truth.names, truth.positions, turns), phantom_density) < 0.9
    exchanged = truth.positions[:, [1, 0, 2]].clip(0, 35)
    assert correlation(density(truth.names, exchanged, turned), phantom_density) < 0.5
    assert correlation(density(truth.names, truth.positions + 1, turned), phantom_density) < 0.95


def test_volume(tmp_path: Path, phantom_density: np.ndarray) -> None:
    """The phantom itself: axes, values and voxel size pass through MRC, read by this package and by mrcfile."""
    path = tmp_path / "density.mrc"
    write_mrc(path, torch.from_numpy(phantom_density), voxel_size=VOXEL_SIZE)
    data, voxel_size = read_mrc(path)
    assert torch.equal(data, torch.from_numpy(phantom_density).float())
    assert voxel_size == pytest.approx(VOXEL_SIZE, rel=1e-6)
    with mrcfile.open(path) as file:
        assert (file.header.nx, file.header.ny, file.header.nz) == SHAPE[::-1]
        assert np.array_equal(file.data, phantom_density.astype(np.float32))
        assert [float(size) for size in file.voxel_size.tolist()] == pytest.approx([VOXEL_SIZE] * 3, rel=1e-6)


# --- the formats' own conventions -------------------------------------------------------------------------------------


def test_deepfinder_turns_volumes_so(tmp_path: Path) -> None:
    """DeepFinder's target generation turns by -phi in the plane (y, x), -the in (z, y), -psi in (y, x): so do we."""
    part = np.pad(template("small"), 6)
    turn = Rotation.random(random_state=np.random.default_rng(2)).as_matrix()
    center = np.array(part.shape) // 2
    particles = ParticleList(("small",), center[None].astype(np.float64), turn[None])
    write_object_list(tmp_path / "a.xml", particles, class_numbers=CLASS_NUMBERS)
    entry = ElementTree.parse(tmp_path / "a.xml").getroot()[0]
    phi, psi, the = (float(entry.attrib[name]) for name in ("phi", "psi", "the"))
    turned = part
    for angle, axes in ((-phi, (1, 2)), (-the, (0, 1)), (-psi, (1, 2))):
        turned = rotate(turned, angle, axes=axes, reshape=False, order=1)
    placed = np.zeros(part.shape)
    place(placed, template("small"), center, turn)
    assert correlation(turned, placed) > 0.98


@pytest.mark.touches_global_rng  # copick's imports do
def test_copick_reads_relion_so(truth: ParticleList) -> None:
    """copick's own reading of RELION's angles, centre and shifts agrees with ours."""
    pd = pytest.importorskip("pandas")
    relion = pytest.importorskip("copick.util.relion")
    formats = pytest.importorskip("copick.util.formats")
    from faket_aug.geometry import relion_angles

    oriented = truth.orientations[:6]
    names = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
    table = pd.DataFrame(relion_angles(oriented), columns=names)
    places = (truth.positions[:6] - np.array(SHAPE) / 2)[:, ::-1] * VOXEL_SIZE
    for axis, column in zip("XYZ", places.T, strict=True):
        table[f"rlnCenteredCoordinate{axis}Angst"] = column
    rotations, _ = relion.relion_rows_to_poses(table)
    np.testing.assert_allclose(rotations, oriented, atol=1e-9)
    center = tuple(n / 2 * VOXEL_SIZE for n in SHAPE[::-1])
    found = formats.relion_coordinates_to_angstrom(table, tomogram_center=center)
    np.testing.assert_allclose(found[:, ::-1] / VOXEL_SIZE, truth.positions[:6], atol=1e-9)


# --- real files -------------------------------------------------------------------------------------------------------


def _templates(folder: Path, *, cube: bool = False) -> dict[str, np.ndarray]:
    """Read maps, for PolNet brought to 0 to 1, padded to cubes and cut off below 0.1 as it does."""
    found = {}
    for path in sorted(folder.glob("*.mrc")):
        part = mrcfile.read(path).astype(np.float64)
        if cube:
            part = (part - part.min()) / np.ptp(part)
            size = max(part.shape)
            part = np.pad(part, [((size - n) // 2, size - n - (size - n) // 2) for n in part.shape])
            part[part < 0.1] = 0
        found[path.stem] = part
    return found


def test_minishrec(reference: Path) -> None:
    """The templates of `minishrec`, put back with the places and angles of `particle_locations.txt`."""
    folder = reference / "data" / "minishrec" / "model_0"
    parts = {name.upper(): part for name, part in _templates(reference / "data" / "potentials_10A").items()}
    found = read_particle_locations(folder / "particle_locations.txt")
    measured = read_mrc(folder / "grandmodel.mrc")[0].numpy()
    made = density(found.names, found.positions, found.orientations, parts, measured.shape)
    gold = read_mrc(folder / "class_mask.mrc")[0].numpy() == 15
    assert correlation(made[~gold], measured[~gold]) > 0.96
    inverse = density(found.names, found.positions, found.orientations.transpose(0, 2, 1), parts, measured.shape)
    assert correlation(inverse[~gold], measured[~gold]) < 0.6


@pytest.mark.parametrize(("version", "possible"), [("v1.0", 0.995), ("v1.1", 0.951)])
def test_polnet(reference: Path, version: str, possible: float) -> None:
    """PolNet's own templates, put back with its poses, make its density as well as its README says is possible."""
    (files,) = find_polnet_tomograms(reference / "data" / "polnet" / version)
    maps = _templates(reference / "data" / "particles_10A", cube=True)
    parts = {f"pdb_{name}": maps[name] for name in ("4cr2", "3cf3", "1bxn", "1s3x")}
    measured, voxel_size = read_mrc(files.density)
    motifs = read_motif_list(
        files.motifs,
        voxel_size=voxel_size,
        shape=measured.shape,
        density=files.listed_as,
        template_sizes={code: len(part) for code, part in parts.items()},
    )
    names, turns = motifs.particles.names, motifs.particles.orientations
    # PolNet's places are those of a template's middle, (n - 1) / 2; here its voxel n // 2 is placed.
    assert all(len(part) % 2 == 0 for part in parts.values())
    positions = motifs.particles.positions + 0.5 * turns.sum(axis=2)[:, ::-1]
    made = density(names, positions, turns, parts, measured.shape)
    numbers = [number for number, code in motifs.class_names.items() if code in parts]
    kept = np.isin(read_mrc(files.labels)[0].numpy(), [0, *numbers])
    assert correlation(made[kept], measured.numpy()[kept]) == pytest.approx(possible, abs=0.0015)
    wrong = density(names, positions, turns.transpose(0, 2, 1), parts, made.shape)
    assert correlation(wrong[kept], measured.numpy()[kept]) < 0.7
