"""A small classifier that tells measured from simulated patches: how soon it does, and by which frequencies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_count
from faket_aug._random import numpy_generator, torch_seed
from faket_aug._runtime.numerics import own_device
from faket_aug._runtime.threads import THREADS, intra_op_threads
from faket_aug.data.patches import as_size, check_fits, cut, normalize

#: Patches of each kind in a step, and in a test.
BATCH, TESTED = 8, 256
LEARNING_RATE = 2e-3
#: Rings of the spectrum of the gradient, up to 0.5 cycles per voxel.
GRADIENT_RINGS = 16
#: Test patches whose gradients are averaged.
_GRADIENTS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class LearningCurve:
    """How well a classifier tells two kinds of patches apart, on patches of regions that it has not seen.

    Parameters
    ----------
    steps
        Steps of training after which it was tested.
    areas
        `(seed, step)`, area under the ROC curve: 0.5 by chance, 1 where it is never wrong.
    frequencies
        `(ring,)`, cycles per voxel, of `gradient`.
    gradient
        `(ring,)`, the share of each ring in the power of the gradient of the classifier's answer by its input, after
        the last step; means over patches and seeds.
    """

    steps: tuple[int, ...]
    areas: FloatArray
    frequencies: FloatArray
    gradient: FloatArray

    @property
    def mean(self) -> FloatArray:
        """`(step,)`, the mean over the seeds."""
        mean: FloatArray = self.areas.mean(axis=0)
        return mean


class PatchClassifier(nn.Sequential):
    """Four convolutions that halve the resolution, and the mean over the patch: 47,000 weights."""

    def __init__(self) -> None:
        def block(before: int, after: int, size: int) -> list[nn.Module]:
            return [nn.Conv3d(before, after, size, stride=2, padding=size // 2), nn.GroupNorm(1, after), nn.ReLU()]

        parts = [*block(1, 8, 5), *block(8, 16, 3), *block(16, 32, 3), *block(32, 32, 3)]
        super().__init__(*parts, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 1))


@own_device()
def learning_curve(
    train: tuple[Sequence[Tensor], Sequence[Tensor]],
    test: tuple[Sequence[Tensor], Sequence[Tensor]],
    *,
    steps: Sequence[int],
    seeds: int,
    patch: int,
    seed: int,
    threads: int = THREADS,
    progress: Callable[[], None] | None = None,
) -> LearningCurve:
    """Train a small classifier to tell two kinds of volumes apart, and test it on others.

    Patches are normalised as in training of a picker (`data.patches.normalize`).

    Parameters
    ----------
    train, test
        Volumes `(z, y, x)` of the first and of the second kind; patches are drawn from all places of all of them.
    steps
        It is tested after each of these numbers of steps, in increasing order.
    seeds
        How many times this is done, with other weights and patches.
    patch
        Voxels along each side of a patch.
    seed
        Of all random numbers.
    threads
        Intra-op threads.
    progress
        Is called after each step.

    Raises
    ------
    ValueError
        If a patch does not fit a volume.
    """
    check_count("seeds", seeds)
    for number in steps:
        check_count("steps", number)
    for volume in (*train[0], *train[1], *test[0], *test[1]):
        check_fits(as_size(patch), volume.shape)
    with intra_op_threads(threads):
        found = [_trained(train, test, tuple(sorted(set(steps))), patch, seed, n, progress) for n in range(seeds)]
    areas, spectra = zip(*found, strict=True)
    frequencies = (np.arange(GRADIENT_RINGS) + 0.5) * 0.5 / GRADIENT_RINGS
    return LearningCurve(
        steps=tuple(sorted(set(steps))),
        areas=np.array(areas),
        frequencies=frequencies,
        gradient=np.mean(spectra, axis=0),
    )


def _trained(
    train: tuple[Sequence[Tensor], Sequence[Tensor]],
    test: tuple[Sequence[Tensor], Sequence[Tensor]],
    steps: Sequence[int],
    patch: int,
    seed: int,
    number: int,
    progress: Callable[[], None] | None,
) -> tuple[list[float], FloatArray]:
    """Train one classifier; return its areas after `steps`, and the spectrum of its gradient after the last."""
    network = _initialised(torch_seed(seed, "encoder", epoch=number))
    draw = numpy_generator(seed, "patch", epoch=number, tomogram=1)
    tested = torch.cat([patches(kind, TESTED, patch, draw) for kind in test])
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    labels = torch.cat([torch.ones(BATCH), torch.zeros(BATCH)])
    areas = []
    for step in range(1, steps[-1] + 1):
        batch = torch.cat([patches(kind, BATCH, patch, draw) for kind in train])
        loss = nn.functional.binary_cross_entropy_with_logits(network(batch)[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in steps:
            areas.append(_area(network, tested))
        if progress is not None:
            progress()
    few = _GRADIENTS // 2
    return areas, gradient_spectrum(network, torch.cat([tested[:few], tested[-few:]]))


def patches(volumes: Sequence[Tensor], count: int, patch: int, generator: np.random.Generator) -> Tensor:
    """Draw normalised patches at random places of volumes, `(count, 1, z, y, x)`."""
    size = as_size(patch)
    found = []
    for _ in range(count):
        volume = volumes[int(generator.integers(len(volumes)))]
        corner = [int(generator.integers(n - patch + 1)) for n in volume.shape]
        found.append(normalize(cut(volume, np.array(corner) + patch // 2, size)))
    return torch.stack(found)[:, None]


def gradient_spectrum(network: nn.Module, batch: Tensor) -> FloatArray:
    """Tell by which frequencies a classifier judges: the radial power of the gradient by its input, its sum being 1.

    Parameters
    ----------
    network
        Takes patches `(n, 1, z, y, x)` and gives `(n, 1)`.
    batch
        The patches.
    """
    given = batch.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(given).sum(), given)
    power = torch.fft.fftn(gradient[:, 0], dim=(1, 2, 3)).abs().square().mean(dim=0).double().numpy()
    frequency = np.fft.fftfreq(batch.shape[-1])
    radius = np.sqrt(frequency[:, None, None] ** 2 + frequency[:, None] ** 2 + frequency**2)
    ring = (radius * 2 * GRADIENT_RINGS).astype(np.int64).ravel()
    inside = ring < GRADIENT_RINGS
    total = np.bincount(ring[inside], weights=power.ravel()[inside], minlength=GRADIENT_RINGS)
    shares: FloatArray = total / max(float(total.sum()), 1e-300)
    return shares


def _initialised(seed: int) -> PatchClassifier:
    """Draw all weights from a seed; torch's own generator is then as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchClassifier()


def _area(network: nn.Module, tested: Tensor) -> float:
    """The share of pairs of both kinds in which the first kind has the higher answer: the area under the ROC curve."""
    with torch.no_grad():
        answers = torch.cat([network(part)[:, 0] for part in torch.split(tested, 32)]).numpy()
    half = len(answers) // 2
    below = float(rankdata(answers)[:half].sum()) - half * (half + 1) / 2
    return below / half**2
