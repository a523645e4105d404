"""The style transfer of a simulator: the style bank, the encoder that built it, and the settings of the steps."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from faket_aug._checks import check_count, check_fraction, check_positive, check_quantiles
from faket_aug._runtime.threads import Made, use_on_current_stream
from faket_aug.geometry import Angles, as_tilt_angles
from faket_aug.microscope.spectra import match_spectrum
from faket_aug.statistics import match_mean_std, mean_std
from faket_aug.style.bank import StyleBank
from faket_aug.style.encoder import StyleEncoder, check_encoder
from faket_aug.style.transfer import (
    AVERAGE_DECAY,
    CONTENT_LAYERS,
    CONTENT_WEIGHT,
    ITERATIONS,
    MEMORY_BUDGET,
    STEP_SIZE,
    StyleTargets,
    style_weights_for,
    stylize,
)

#: Bytes of targets that stay on a GPU: those of three or four series of 61 tilts.
KEPT_TARGETS = 2**29


@dataclass(frozen=True, kw_only=True, eq=False)
class StyleTransfer:
    """Transfer the style of measured tilts to simulated ones.

    Parameters
    ----------
    bank
        The style bank: Gram matrices and statistics of the measured tilts.
    features
        The encoder that built the bank.
    step_size
        Step of Adam; 0.15 as published. A step of 0 leaves tilts as they are. `choose_step_size` finds a step for a
        microscope.
    iterations
        Number of steps for each tilt; 1 as published.
    style_weights
        One weight for each layer of the bank; by default 256:64:16:4:1. They are scaled to a sum of 1.
    content_layers
        ReLUs of VGG-19 whose features the content loss keeps, by the numbers of torchvision.
    content_weight
        Weight of the content loss.
    average_decay
        Decay of the average over the start and all iterates. The result is this average.
    keep_spectrum
        Filter each tilt after the transfer, so that it has the radial power spectrum from before. The transfer makes a
        grain that measured tilts do not have. Off by default, as published.
    quantiles
        The values of the content stack and of the noisy stack at these quantiles are scaled to 0 and 1; by default the
        quantiles of the bank.
    memory_budget
        Memory for the activations, bytes. `free_memory_budget` finds how much is free.

    Raises
    ------
    ValueError
        If a number is out of its range, or `features` is not the encoder that built the bank.
    WeightsError
        If a layer is deeper than the weights of the encoder.

    References
    ----------
    Harar et al., Structure 33 (2025), STAR Methods, "Neural style transfer".
    """

    bank: StyleBank
    features: StyleEncoder
    step_size: float = STEP_SIZE
    iterations: int = ITERATIONS
    style_weights: Sequence[float] | None = None
    content_layers: Sequence[int] = CONTENT_LAYERS
    content_weight: float = CONTENT_WEIGHT
    average_decay: float = AVERAGE_DECAY
    keep_spectrum: bool = False
    quantiles: tuple[float, float] | None = None
    memory_budget: int = MEMORY_BUDGET

    def __post_init__(self) -> None:
        check_style_numbers(self)
        check_encoder(self.features)
        if self.features.fingerprint != self.bank.encoder:
            raise ValueError(
                "expected the `features` that `style` was built with, got others (weights, pooling or precision "
                "differ); build the bank again with these"
            )
        self.features.check_layers([*self.content_layers, *self.bank.style_layers])
        style_weights_for(self.bank.style_layers, self.style_weights)

    def __call__(
        self, content: Tensor, noisy: Tensor, tilt_angles: Angles, *, series: int = 0, own_statistics: bool = False
    ) -> Tensor:
        """Transfer the style to noisy tilts.

        Parameters
        ----------
        content, noisy
            `(tilt, y, x)`: the tilts whose features the content loss keeps, and the tilts from which the steps start.
        tilt_angles
            `(tilt,)`, degrees. Each tilt takes the style of the style tilt with the nearest angle.
        series
            Index of the series in the bank.
        own_statistics
            Whether each tilt keeps its own mean and standard deviation. Otherwise it takes those of the style. With
            `keep_spectrum` it always keeps its own.

        Returns
        -------
        `(tilt, y, x)`, in the unit of the style, or of the noisy tilts where they keep their own statistics.
        """
        if self.step_size == 0:
            return noisy
        style = self._targets(tilt_angles, series, noisy.device)
        styled = stylize(
            content,
            noisy,
            style,
            features=self.encoder_on(noisy.device),
            style_weights=self.style_weights,
            content_layers=self.content_layers,
            content_weight=self.content_weight,
            step_size=self.step_size,
            iterations=self.iterations,
            average_decay=self.average_decay,
            quantiles=self.bank.quantiles if self.quantiles is None else self.quantiles,
            memory_budget=self.memory_budget,
        )
        if self.keep_spectrum:
            styled = match_spectrum(styled, noisy)
        own = self.keep_spectrum or own_statistics
        return match_mean_std(styled, *(mean_std(noisy) if own else (style.mean, style.std)))

    def encoder_on(self, device: torch.device) -> StyleEncoder:
        """Return the encoder on a device. On a GPU its copy is kept."""
        if device.type == "cpu":
            return self.features
        encoder: StyleEncoder = _kept_of(self.features).get(device, (), lambda: copy.deepcopy(self.features).to(device))
        use_on_current_stream([*encoder.parameters(), *encoder.buffers()])
        return encoder

    def _targets(self, tilt_angles: Angles, series: int, device: torch.device) -> StyleTargets:
        """Select the targets of the tilts, on a device. On a GPU those of the last series are kept."""
        if device.type == "cpu":
            return self.bank.select(tilt_angles, series=series)
        key = (self.bank.key, series, *as_tilt_angles(tilt_angles).tolist())
        targets: StyleTargets = _kept_of(self.features).get(
            device, key, lambda: self.bank.select(tilt_angles, series=series).to(device)
        )
        use_on_current_stream(targets.tensors())
        return targets


class _KeptOnGpus:
    """What all style transfers with one encoder keep on GPUs, whichever stream made it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, tuple[str | float, ...]], tuple[Any, Made]] = OrderedDict()

    def get(self, device: torch.device, key: tuple[str | float, ...], make: Callable[[], Any]) -> Any:
        """Return what is kept for a device and a key, or make it. Of targets the last `KEPT_TARGETS` bytes stay."""
        place = str(device), key
        with self._lock:
            if place not in self._kept:
                made = make()
                self._kept[place] = made, Made(device)
            self._kept.move_to_end(place)
            made, event = self._kept[place]
            self._drop()
        event.before(device)
        return made

    def _drop(self) -> None:
        """Drop the targets that were not used for longest, but for the last."""
        sizes = {place: one.nbytes for place, (one, _) in self._kept.items() if isinstance(one, StyleTargets)}
        total = sum(sizes.values())
        for place, size in list(sizes.items())[:-1]:
            if total > KEPT_TARGETS:
                total -= size
                del self._kept[place]


#: By the encoder, so that simulators whose settings were drawn share it.
_kept: WeakKeyDictionary[StyleEncoder, _KeptOnGpus] = WeakKeyDictionary()


def _kept_of(features: StyleEncoder) -> _KeptOnGpus:
    return _kept.setdefault(features, _KeptOnGpus())


def check_style_numbers(settings: Any) -> None:
    """Raise a `ValueError` if a number of a `StyleTransfer`, or of a simulator, is out of its range."""
    check_count("iterations", settings.iterations)
    if isinstance(settings.step_size, str):
        raise ValueError(
            f"expected `step_size` to be a number, got {settings.step_size!r}; `choose_step_size` finds one"
        )
    check_positive("step_size", settings.step_size, zero=True)
    check_fraction("average_decay", settings.average_decay)
    check_count("memory_budget", settings.memory_budget)
    if settings.quantiles is not None:
        check_quantiles("quantiles", settings.quantiles)
