"""What the demonstration does: from procedural specimens to a training network and a picture, all in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from faket_aug._random import torch_generator, torch_seed
from faket_aug._runtime.threads import intra_op_threads, usable_device
from faket_aug.data.dataset import FakETDataset
from faket_aug.demo.microscope import Microscope
from faket_aug.demo.preview import draw_preview
from faket_aug.demo.settings import RoundTrip
from faket_aug.demo.unet import SmallUNet, seeded_network
from faket_aug.figures import save_figure
from faket_aug.formats._atomic import make_writable_folder
from faket_aug.microscope.noise import NoiseModel
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.procedural import procedural_specimen
from faket_aug.style.bank import StyleBank
from faket_aug.style.transfer import CONTENT_LAYERS, STYLE_LAYERS
from faket_aug.style.vgg19 import VGG19Features, fastest_precision
from faket_aug.tilts.series import TiltSeries
from faket_aug.tomography.projection import project

PREVIEW = "preview.png"
#: The specimen seen through a tilted field of view goes on beyond it, as the microscope's does.
EXTEND = "wrap"
LEARNING_RATE = 4e-3
_MOST_THREADS = 8


@dataclass(kw_only=True)
class Stages:
    """Measures the stages, and shows how far they are."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, *, total: int = 1) -> Iterator[Callable[[], None]]:
        """Time the body; it is given a function that counts one of `total` as done."""
        task = self.progress.add_task(name, total=total)
        start = time.perf_counter()
        yield lambda: self.progress.advance(task)
        self.progress.update(task, completed=total)
        self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it: the encoder that was used, the loss of each step, patches per second, the picture's path."""

    features: VGG19Features
    style_layers: tuple[int, ...]
    losses: tuple[float, ...]
    patches_per_second: float
    preview: Path


def run(settings: RoundTrip, stages: Stages) -> Result:
    """Do the round trip and write the preview.

    Raises
    ------
    OSError
        If the output folder cannot be written.
    WeightsError
        If the weights are missing, or end before a layer that is asked for.
    """
    usable_device(settings.device)
    with stages.stage("encoder"):
        features = choose_encoder(settings.weights, settings.device)
    layers = settings.style_layers or tuple(layer for layer in STYLE_LAYERS if layer <= features.deepest)
    features.check_layers([*layers, *CONTENT_LAYERS])
    _make_writable(settings.output)
    with stages.stage("specimens", total=settings.specimens) as done:
        specimens = []
        for index in range(settings.specimens):
            specimens.append(procedural_specimen(shape=settings.shape, seed=settings.seed, index=index))
            done()
    style, paired = _measure(settings, stages)
    with stages.stage("noise model"):
        noise = _fit_noise(*paired)
    with stages.stage("style bank"):
        bank = StyleBank.build(style, features, style_layers=layers, device=settings.device)
    simulators = {name: _simulator(settings, name, noise, bank, features) for name in ("noiseless", "noisy", "faket")}
    losses, rate = _train(settings, specimens, simulators["faket"], stages)
    with stages.stage("preview", total=len(simulators)) as done:
        made = {}
        for modality, simulator in simulators.items():
            made[modality] = simulator(specimens[0], seed=settings.seed)
            done()
        path = settings.output / PREVIEW
        save_figure(draw_preview(made, style[0], losses, random=features.source == "random"), path)
    return Result(features=features, style_layers=layers, losses=losses, patches_per_second=rate, preview=path)


def _make_writable(folder: Path) -> None:
    """Make the folder and try to write in it, before anything is computed."""
    try:
        make_writable_folder(folder)
    except OSError as error:
        raise OSError(
            f"expected an output folder that can be written, got {folder} ({error.strerror or error}); set --output "
            "to another"
        ) from error


def choose_encoder(weights: str | None, device: str) -> VGG19Features:
    """Make the encoder; without a wish from torchvision's cache, else at random. Never downloads unasked."""
    precision = fastest_precision(torch.device(device))
    if weights is not None:
        features = VGG19Features(weights, precision=precision)
        features.load()
        return features
    cached = VGG19Features("torchvision", precision=precision)
    # A constructor does not download: without the cached file there are no convolutions yet.
    return cached if cached.convolutions else VGG19Features("random", precision=precision)


def _half_the_threads() -> int:
    """Share the cores between the simulation and the training beside it."""
    return min(max(1, torch.get_num_threads() // 2), _MOST_THREADS)


def _measure(settings: RoundTrip, stages: Stages) -> tuple[list[TiltSeries], tuple[GrandModel, TiltSeries]]:
    """Record the style's tilt-series, unlabelled, and one of a specimen whose truth is known; none is trained on."""
    microscope = Microscope(tilt_angles=settings.tilt_angles)
    with stages.stage("microscope", total=settings.style_series + 1) as done:
        recorded = []
        for index in range(settings.specimens, settings.specimens + settings.style_series + 1):
            specimen = procedural_specimen(shape=settings.shape, seed=settings.seed, index=index)
            recorded.append((specimen, microscope.record(specimen, seed=settings.seed, index=index)))
            done()
    return [series for _, series in recorded[:-1]], recorded[-1]


def _fit_noise(specimen: GrandModel, measured: TiltSeries) -> NoiseModel:
    clean = -project(specimen.density, measured.tilt_angles, extend=EXTEND)
    return NoiseModel.fit(
        clean=clean, target=measured.tilts, tilt_angles=measured.tilt_angles, measured=measured.measured
    )


def _simulator(
    settings: RoundTrip, modality: str, noise: NoiseModel, bank: StyleBank, features: VGG19Features
) -> FakETSimulator:
    return FakETSimulator(
        tilt_angles=settings.tilt_angles,
        modality=modality,
        noise=noise,
        style=bank,
        features=features,
        extend=EXTEND,
        device=settings.device,
        threads=_half_the_threads(),
    )


def _train(
    settings: RoundTrip, specimens: list[GrandModel], simulator: FakETSimulator, stages: Stages
) -> tuple[tuple[float, ...], float]:
    """Stream patches through the network; return the loss of each step, and patches per second."""
    dataset = FakETDataset(
        specimens,
        simulator,
        patch_size=settings.patch_size,
        patches_per_tomogram=settings.patches_per_tomogram,
        tomograms_per_epoch=settings.tomograms,
        shift=settings.patch_size // 4,
        class_balanced=True,
        seed=settings.seed,
        item_device=settings.device,
    )
    generator = torch_generator(torch_seed(settings.seed, "demo", epoch=2))
    loader = DataLoader(dataset, batch_size=settings.batch_size, generator=generator)
    weights = class_weights(specimens).to(settings.device)
    network = seeded_network(len(weights), seed=torch_seed(settings.seed, "demo", epoch=3))
    # Channels last is the faster order of a CPU's convolutions.
    network = network.to(settings.device).to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    losses: list[float] = []
    start = time.perf_counter()
    with stages.stage("training", total=settings.steps) as done, intra_op_threads(_half_the_threads()):
        for _, batch in zip(range(settings.steps), loader, strict=False):
            losses.append(_step(network, optimizer, batch["image"], batch["label"], weights))
            done()
    return tuple(losses), len(losses) * settings.batch_size / (time.perf_counter() - start)


def _step(network: SmallUNet, optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor, weights: Tensor) -> float:
    optimizer.zero_grad()
    loss = functional.cross_entropy(network(image), label, weight=weights)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def class_weights(specimens: list[GrandModel]) -> Tensor:
    """Weigh the classes by one over the root of their share, so that small particles count; `(class,)`, mean 1."""
    counts = sum(torch.bincount(s.labels.flatten().long(), minlength=len(s.class_names)) for s in specimens)
    assert isinstance(counts, Tensor), "there is at least one specimen"
    weights = counts.clamp_min(1).double().rsqrt()
    return (weights / weights.mean()).float()


def ends(losses: tuple[float, ...]) -> tuple[float, float]:
    """Return the mean of the first and of the last tenth of the losses."""
    tenth = max(1, len(losses) // 10)
    return float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
