"""What the tests of the data side share: tiny specimens, a narrow encoder, simulators, and items made comparable."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from faket_aug import (
    FakETDataset,
    FakETSimulator,
    GrandModel,
    LabelledTomogram,
    NoiseModel,
    ParticleTable,
    SimulatedTomogram,
    StyleBank,
    TiltSeries,
    VGG19Features,
)
from faket_aug.formats.mrc import write_mrc

SHAPE = (16, 24, 32)
ANGLES = (-50.0, -25.0, 0.0, 25.0, 50.0)
VOXEL_SIZE = 10.0
CLASS_NAMES = {1: "small", 2: "large", 3: "rare"}
#: torchvision's names and kernel sizes, narrow; reaches relu3_1 (index 11).
WIDTHS = {0: 4, 2: 4, 5: 8, 7: 8, 10: 8}
STYLE_LAYERS = (1, 6)

#: More workers than cores are tested on purpose: what they deliver must not depend on the machine.
MORE_WORKERS_THAN_CORES = "ignore:This DataLoader will create .* worker processes:UserWarning"


def generator(seed: int = 0) -> torch.Generator:
    """A generator of its own, so that no test touches the global one."""
    return torch.Generator().manual_seed(seed)


def correlation(a: Tensor, b: Tensor) -> float:
    """Correlation of two tensors of one shape."""
    return float(np.corrcoef(a.double().numpy().ravel(), b.double().numpy().ravel())[0, 1])


def blobs(shape: Sequence[int], centers: Iterable[Sequence[float]], spread: float = 1.5) -> Tensor:
    """A volume `(z, y, x)` of equal Gaussian blobs at `centers` (z, y, x), float32."""
    axes = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij", sparse=True)
    volume = np.zeros(shape)
    for center in centers:
        volume += np.exp(-sum((a - c) ** 2 for a, c in zip(axes, center, strict=True)) / (2 * spread**2))
    return torch.from_numpy(volume).float()


def table(classes: Sequence[int], positions: Sequence[Sequence[float]]) -> ParticleTable:
    """A particle table without orientations."""
    return ParticleTable(
        classes=np.array(classes, dtype=np.int64),
        positions=np.array(positions, dtype=np.float64).reshape(-1, 3),
        orientations=np.full((len(classes), 3, 3), np.nan),
    )


def specimen(
    seed: int = 0,
    *,
    shape: Sequence[int] = SHAPE,
    classes: Sequence[int] = (1, 2, 1, 2, 1),
    bin: int = 1,
    name: str | None = None,
) -> GrandModel:
    """A specimen with a blob and a ball of labels for each particle, at places that depend on `seed`."""
    random = np.random.default_rng(seed)
    positions = random.uniform(2, np.array(shape) - 3, (len(classes), 3)).round(1)
    labels, instances = np.zeros(shape, np.uint8), np.zeros(shape, np.int32)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    for row, (number, position) in enumerate(zip(classes, positions, strict=True), start=1):
        ball = ((grid - position) ** 2).sum(-1) <= 2.0**2
        labels[ball], instances[ball] = number, row
    return GrandModel(
        density=blobs([n * bin for n in shape], positions * bin, 1.5 * bin),
        labels=torch.from_numpy(labels),
        instances=torch.from_numpy(instances),
        particles=table(classes, positions.tolist()),
        voxel_size=VOXEL_SIZE / bin,
        class_names=CLASS_NAMES,
        name=name or f"specimen {seed}",
    )


def specimens(count: int, **settings: Any) -> list[GrandModel]:
    """Several different specimens."""
    return [specimen(seed, **settings) for seed in range(count)]


def empty_specimen(name: str = "empty") -> GrandModel:
    """A specimen of ice and a membrane, without particles."""
    return GrandModel(
        density=blobs(SHAPE, [(8, 12, 16)], 4.0),
        labels=torch.zeros(SHAPE, dtype=torch.uint8),
        particles=ParticleTable.empty(),
        voxel_size=VOXEL_SIZE,
        class_names=CLASS_NAMES,
        name=name,
    )


def narrow_state(seed: int = 0, widths: Mapping[int, int] = WIDTHS) -> dict[str, Tensor]:
    """A state dict of VGG-19 with torchvision's names and few channels."""
    draw, state, channels = generator(seed), {}, 3
    for index, width in widths.items():
        state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=draw) / (3 * channels**0.5)
        state[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=draw)
        channels = width
    return state


def narrow_vgg(folder: Path, seed: int = 0, **settings: Any) -> VGG19Features:
    """An encoder with few channels, from a file as a user would give it."""
    path = folder / f"narrow_vgg_{seed}.pth"
    if not path.exists():
        torch.save(narrow_state(seed), path)
    return VGG19Features(path, **settings)


def style_series(
    seed: int = 0,
    *,
    shape: Sequence[int] = (6, 24, 32),
    angles: Sequence[float] | None = None,
    pixel_size: float = VOXEL_SIZE,
) -> TiltSeries:
    """A measured tilt-series: smooth structure, noise, and a mean and deviation that change with the tilt."""
    tilt_angles = np.linspace(-55, 55, shape[0]) if angles is None else np.asarray(angles)
    noise = torch.randn(*shape, generator=generator(100 + seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2) * 4
    scale = torch.from_numpy(2 + np.cos(np.deg2rad(tilt_angles))).float()[:, None, None]
    return TiltSeries(
        tilts=(noise + smooth) * scale + 20 * scale,
        tilt_angles=tilt_angles,
        pixel_size=pixel_size,
        name=f"style {seed}",
    )


def noise_model(seed: int = 0) -> NoiseModel:
    """A noise model of which every curve depends on the tilt."""
    style = style_series(seed)
    return NoiseModel.assume(style.tilts, style.tilt_angles, snr=0.5)


def simulator(modality: str = "noiseless", folder: Path | None = None, **settings: Any) -> FakETSimulator:
    """A simulator of a modality; `"faket"` needs a folder for the encoder's file, and the specimens' pixel size."""
    pixel_size = settings.pop("pixel_size", VOXEL_SIZE)
    given: dict[str, Any] = {"tilt_angles": ANGLES, "modality": modality}
    if modality != "noiseless":
        given["noise"] = noise_model()
    if modality == "faket":
        assert folder is not None
        features = narrow_vgg(folder)
        styles = [style_series(seed, pixel_size=pixel_size) for seed in (0, 1)]
        bank = StyleBank.build(styles, features, style_layers=STYLE_LAYERS)
        given |= {"features": features, "style": bank}
    return FakETSimulator(**(given | settings))


def dataset(made: FakETSimulator | None = None, *, count: int = 3, **settings: Any) -> FakETDataset:
    """A small dataset; by default of three specimens, noiseless, five patches of each."""
    given: dict[str, Any] = {"patch_size": 8, "patches_per_tomogram": 5, "shift": 2}
    things = settings.pop("specimens", None) or specimens(count)
    return FakETDataset(things, made or simulator(), **(given | settings))


def jittered(item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """A transform of one's own: a random gain and offset of the image, drawn from the item's generator."""
    gain, offset = torch.randn(2, generator=generator)
    return {**item, "image": item["image"] * gain + offset, "gain": gain}


def loader(data: Any, *, workers: int = 0, start: str = "fork", cls: Any = DataLoader, **settings: Any) -> Any:
    """A DataLoader that draws the seed of its workers from a generator of its own, not from the global one."""
    if workers:
        settings["multiprocessing_context"] = start
    return cls(data, num_workers=workers, generator=generator(), **settings)


def error_of(read: Callable[[], object]) -> Exception:
    """The error that reading raises, without its traceback.

    The traceback of an error in a DataLoader holds its iterator. If the next loader forks before that is collected,
    torch waits for some seconds for workers that are not its own.
    """
    try:
        read()
    except Exception as error:
        return error.with_traceback(None)
    raise AssertionError("expected an error, got none")


def unbatched(batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items of collated batches, in order, as a dataset gives them."""
    items = []
    for batch in batches:
        for i in range(len(batch["index"])):
            item = {key: value[i] for key, value in batch.items()}
            items.append({k: v.item() if v.ndim == 0 else v for k, v in item.items()})
    return items


def indices(items: Iterable[Mapping[str, Any]]) -> list[int]:
    """Which items came, in order."""
    return [int(item["index"]) for item in items]


def assert_same_items(found: Iterable[Mapping[str, Any]], expected: Iterable[Mapping[str, Any]]) -> None:
    """The same items bit for bit, matched by index, whatever their order; none twice."""
    found, expected = list(found), list(expected)
    assert sorted(indices(found)) == sorted(indices(expected))
    by_index = {item["index"]: item for item in expected}
    assert len(by_index) == len(expected), "an item came twice"
    for item in found:
        assert_same_item(item, by_index[item["index"]])


def assert_same_item(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """One item, bit for bit."""
    assert set(found) == set(expected)
    for key, value in expected.items():
        if isinstance(value, Tensor):
            assert found[key].dtype == value.dtype, key
            assert torch.equal(found[key], value), f"{key} of item {expected['index']} differs"
        else:
            assert found[key] == value, key


def write_shrec(
    folder: Path, thing: GrandModel, *, density: str = "grandmodel.mrc", table: str | None = "here", **left_out: bool
) -> Path:
    """Write a specimen in SHREC's layout: the class table `"here"`, `"above"` or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_mrc(folder / density, thing.density, voxel_size=thing.voxel_size)
    write_mrc(folder / "class_mask.mrc", thing.labels, voxel_size=thing.label_voxel_size)
    if thing.instances is not None and left_out.get("instances", True):
        write_mrc(folder / "occupancy_mask.mrc", thing.instances, voxel_size=thing.label_voxel_size)
    if left_out.get("particles", True):
        rows = zip(thing.particles.classes, thing.particles.positions, strict=True)
        lines = [f"{thing.class_names[int(c)]} {x} {y} {z} NaN NaN NaN" for c, (z, y, x) in rows]
        (folder / "particle_locations.txt").write_text("\n".join(lines) + "\n")
    if table:
        names = "".join(f"{number} {name}\n" for number, name in thing.class_names.items())
        where = folder if table == "here" else folder.parent
        (where / "class_conversion_table.txt").write_text("0 background\n" + names)
    return folder


class WatchedSimulator:
    """A simulator that keeps a list of what it made, and waits before a tomogram where it is told to."""

    def __init__(self, inner: FakETSimulator | None = None) -> None:
        self.inner = inner or simulator()
        self.device, self.threads = self.inner.device, self.inner.threads
        self.made: list[tuple[int, int, str]] = []
        self.gates: dict[int, threading.Event] = {}

    def __call__(self, specimen: GrandModel, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulatedTomogram:
        self.made.append((epoch, tomogram, specimen.name))
        if len(self.made) in self.gates:
            assert self.gates[len(self.made)].wait(20), "nobody opened the gate"
        return self.inner(specimen, seed=seed, epoch=epoch, tomogram=tomogram)


#: SHREC's `alignment_simulated.txt`, three tilts.
SHREC_ALIGNMENT = """# AlignmentTransX (px)
# AlignmentTransY (px)
# TiltAngle (degrees)
# InPlaneRotation (degrees)
# Magnification
# FileName
     0.000      0.000    -60.000      0.000      1.000 projections_00.mrc
     0.300      0.100      0.000      0.000      1.000 projections_01.mrc
     0.000      0.000     57.000      0.000      1.000 projections_02.mrc
"""


def mdoc(angles: list[float], sections: list[int] | None = None) -> str:
    """A SerialEM .mdoc of a tilt-series, shortened."""
    head = "PixelSpacing = 2.17\nImageFile = a.mrc\nImageSize = 32 24\nDataMode = 1\n\n[T = SerialEM: tests]\n"
    numbers = range(len(angles)) if sections is None else sections
    return head + "".join(
        f"\n[ZValue = {number}]\nTiltAngle = {angle}\nStagePosition = 1 2\nMagnification = 64000\n"
        for number, angle in zip(numbers, angles, strict=True)
    )


def labelled_tomograms(count: int = 2) -> list[LabelledTomogram]:
    """Labelled tomograms of noise, as somebody else measured them."""
    return [
        LabelledTomogram(
            tomogram=1000 + 100 * seed + torch.randn(SHAPE, generator=generator(seed)),
            labels=thing.labels,
            particles=thing.particles,
            voxel_size=thing.voxel_size,
            class_names=thing.class_names,
            name=f"real {seed}",
        )
        for seed, thing in enumerate(specimens(count))
    ]


def outcome(
    arguments: Iterable[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit status, output and errors of `faket-aug` with these arguments, in this process."""
    from faket_aug.cli import main

    monkeypatch.setattr(sys, "argv", ["faket-aug", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err
