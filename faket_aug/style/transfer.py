"""Neural style transfer of tilts in one step, batched, with Gram matrices that were computed before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from faket_aug._checks import check_fraction, check_ndim, check_positive, check_same_shape
from faket_aug._masks import as_mask, eroded, filled
from faket_aug._runtime.graphs import Work, graphs_are_wanted
from faket_aug._runtime.kernels import kernels_are_used
from faket_aug._runtime.numerics import own_precision
from faket_aug._runtime.transfers import sent
from faket_aug.statistics import FULL_RANGE, scale_to_unit, value_range
from faket_aug.style.encoder import StyleEncoder
from faket_aug.style.gram import gram_matrix, gram_slope, wide
from faket_aug.style.losses import error_slope

STYLE_LAYERS = (1, 6, 11, 20, 29)
STYLE_WEIGHTS = (256.0, 64.0, 16.0, 4.0, 1.0)
CONTENT_LAYERS = (8,)
CONTENT_WEIGHT = 1.0
STEP_SIZE = 0.15
ITERATIONS = 1
AVERAGE_DECAY = 0.99
#: Bytes that the activations of one chunk of tilts may take.
MEMORY_BUDGET = 2**30
#: A feature counts if more than `MOST` of its own pixels are further than `REACH` of them from what was not measured.
REACH, MOST = 2, 0.5
_BETAS = (0.9, 0.999)
_EPS = 1e-8
#: Bytes per pixel and channel-of-the-first-layer of one tilt's forward and backward pass, measured, with room.
_BYTES_PER_PIXEL = 4 * 64 * 8


class Encoder(Protocol):
    """The interface of an encoder for the style transfer; `VGG19Features` is one."""

    def __call__(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Compute features `(n, channels, y', x')` of images `(n, 3, y, x)` in [0, 1] at `layers`."""
        ...

    def forward_and_pullback(
        self, images: Tensor, layers: Iterable[int]
    ) -> tuple[dict[int, Tensor], Callable[[Mapping[int, Tensor]], Tensor]]:
        """Compute the same, and the function from gradients by the features to the gradient by the images.

        The function asks for the gradient of each layer once, the deepest layer first, and may overwrite it. It can be
        called once.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class StyleTargets:
    """The targets of the style transfer, with one entry for each content tilt.

    Parameters
    ----------
    grams
        Gram matrices, `(tilt, channels, channels)`, for each style layer.
    mean, std
        `(tilt,)`, mean and standard deviation of the style tilts, in their own unit.
    """

    grams: Mapping[int, Tensor]
    mean: Tensor
    std: Tensor

    def to(self, device: torch.device | str) -> StyleTargets:
        """Copy the targets to a device."""
        grams = {layer: sent(gram, device) for layer, gram in self.grams.items()}
        return StyleTargets(grams=grams, mean=sent(self.mean, device), std=sent(self.std, device))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all of them."""
        return *self.grams.values(), self.mean, self.std

    @property
    def nbytes(self) -> int:
        """Memory that they take, bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


def style_weights_for(layers: Sequence[int], weights: Sequence[float] | None) -> tuple[float, ...]:
    """Return one weight for each style layer. Their sum is 1.

    Parameters
    ----------
    layers
        Style layers, from shallow to deep.
    weights
        One weight for each layer; by default 256:64:16:4:1, from the first layer on.
    """
    chosen = STYLE_WEIGHTS[: len(layers)] if weights is None else tuple(weights)
    if len(chosen) != len(layers) or not chosen:
        raise ValueError(f"expected one of `style_weights` for each of {len(layers)} `style_layers`, got {len(chosen)}")
    total = sum(chosen)
    check_positive("the sum of `style_weights`", total)
    return tuple(weight / total for weight in chosen)


def _features_kept(measured: Tensor, size: tuple[int, int]) -> Tensor:
    """Which features of a layer of this size, `(n, y, x)`, see measured pixels `(n, y, x)` almost alone."""
    step = measured.shape[-1] // size[-1]
    # A feature sees some pixels of the layer before on each side; those further away count little.
    share = adaptive_avg_pool2d(eroded(measured, REACH * step).to(torch.float32), size)
    kept = share > MOST
    # Where all features see a border, those count that see it least.
    least = adaptive_avg_pool2d(measured.to(torch.float32), size)
    best = least >= least.amax(dim=(-2, -1), keepdim=True)
    return torch.where(kept.any(-1).any(-1)[:, None, None], kept, best)


def gray_to_rgb(tilts: Tensor) -> Tensor:
    """Repeat tilts `(n, y, x)` as three equal channels `(n, 3, y, x)`."""
    return tilts[:, None].expand(-1, 3, -1, -1)


def chunks_of_tilts(count: int, pixels: int, memory_budget: int) -> list[slice]:
    """Divide `count` tilts into chunks (of at least one tilt) whose activations fit `memory_budget` bytes."""
    check_positive("memory_budget", memory_budget)
    size = max(1, memory_budget // (pixels * _BYTES_PER_PIXEL))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@torch.no_grad()
@own_precision()
def style_grams(
    tilts: Tensor,
    features: Encoder,
    *,
    layers: Sequence[int] = STYLE_LAYERS,
    memory_budget: int = MEMORY_BUDGET,
    measured: Tensor | None = None,
) -> dict[int, Tensor]:
    """Compute the Gram matrices of style tilts.

    Parameters
    ----------
    tilts
        `(tilt, y, x)`, in [0, 1].
    features
        The encoder.
    layers
        The style layers.
    memory_budget
        Memory for the activations of one chunk of tilts, bytes.
    measured
        `(tilt, y, x)`, bool: the pixels that count; by default all. Features that see many others are left out. Small
        holes are filled from their neighbours, and larger regions with the mean of their tilt.

    Returns
    -------
    Gram matrices, `(tilt, channels, channels)`, for each layer.
    """
    check_ndim("tilts", tilts, "tilt y x")
    mask = as_mask(measured, tilts)
    if mask is not None:
        tilts, mask = filled(tilts, mask)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for chunk in chunks_of_tilts(tilts.shape[0], tilts[0].numel(), memory_budget):
        for layer, found in features(gray_to_rgb(tilts[chunk]), layers).items():
            size = (int(found.shape[-2]), int(found.shape[-1]))
            parts[layer].append(gram_matrix(found, None if mask is None else _features_kept(mask[chunk], size)))
    return {layer: torch.cat(grams) for layer, grams in parts.items()}


@torch.no_grad()
@own_precision()
def stylize(
    content: Tensor,
    init: Tensor,
    style: StyleTargets,
    *,
    features: Encoder,
    style_weights: Sequence[float] | None = None,
    content_layers: Sequence[int] = CONTENT_LAYERS,
    content_weight: float = CONTENT_WEIGHT,
    step_size: float = STEP_SIZE,
    iterations: int = ITERATIONS,
    average_decay: float = AVERAGE_DECAY,
    quantiles: tuple[float, float] = FULL_RANGE,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Move noisy tilts one step of Adam towards a style, keeping their content.

    Parameters
    ----------
    content
        `(tilt, y, x)`, tilts with little noise, in any unit.
    init
        `(tilt, y, x)`, noisy tilts, from which the transfer starts.
    style
        The targets, one for each tilt. Their layers are the style layers.
    features
        The encoder, on the device of the tilts.
    style_weights
        One weight for each style layer, from shallow to deep; by default 256:64:16:4:1. They are scaled to a sum of 1.
    content_layers, content_weight
        Layers of the content loss, which keeps their features, and the weight of this loss.
    step_size
        Step of Adam, where the values of the tilts are scaled to [0, 1].
    iterations
        Number of steps of Adam.
    average_decay
        Decay of the bias-corrected average over the start and all iterates. The result is this average.
    quantiles
        The values of the whole stack at these quantiles are scaled to 0 and 1, for `content` and for `init`; by default
        minimum and maximum.
    memory_budget
        Memory for the activations of one chunk of tilts, bytes. The tilts do not depend on each other.

    Returns
    -------
    `(tilt, y, x)`, in [0, 1], the mean over the three channels. `match_mean_std` with `style.mean` and `style.std`
    scales it to the unit of the style.

    References
    ----------
    Harar et al., Structure 33 (2025); Gatys et al., CVPR 2016; Kingma and Ba, arXiv 1412.6980, algorithm 1.
    """
    check_ndim("content", content, "tilt y x")
    check_same_shape("init", init.shape, "content", content.shape)
    check_positive("step_size", step_size, zero=True)
    check_positive("iterations", iterations)
    check_fraction("average_decay", average_decay)
    check_same_shape("style.mean", style.mean.shape, "the tilts of content", content.shape[:1])
    weights = style_weights_for(tuple(style.grams), style_weights)
    init_range, content_range = value_range(init, quantiles), value_range(content, quantiles)
    result = torch.empty_like(init, dtype=wide(init.dtype))

    def styled(kept: Tensor, start: Tensor, *own: Tensor) -> Tensor:
        targets = features(gray_to_rgb(kept), content_layers) if content_weight else {}
        grams = dict(zip(style.grams, own, strict=True))

        def gradient(images: Tensor) -> Tensor:
            return _gradient(images, features, targets, content_weight, grams, weights)

        images = gray_to_rgb(start).contiguous()
        return _descend(images, gradient, step_size, iterations, average_decay).mean(dim=1)

    numbers = (tuple(style.grams), weights, tuple(content_layers), content_weight, step_size, iterations, average_decay)
    chunks = chunks_of_tilts(init.shape[0], init[0].numel(), memory_budget)
    work = _recorded(styled, features, init[chunks[0]], numbers)
    for chunk in chunks:
        kept, start = scale_to_unit(content[chunk], content_range), scale_to_unit(init[chunk], init_range)
        result[chunk] = work(kept, start, *(gram[chunk] for gram in style.grams.values()))
    return result


def _recorded(
    styled: Callable[..., Tensor], features: Encoder, tilts: Tensor, numbers: tuple[object, ...]
) -> Callable[..., Tensor]:
    """Let CUDA graphs do the work on chunks of tilts, if they are wanted on this device, and know the encoder."""
    device = tilts.device
    if not (graphs_are_wanted(device) and isinstance(features, StyleEncoder) and features.can_be_recorded):
        return styled
    # The fingerprint loads the weights.
    key = (features.fingerprint, numbers, kernels_are_used(device))
    reads = [one.detach() for one in (*features.parameters(), *features.buffers())]
    return Work(function=styled, key=key, reads=reads, owner=features, room=tilts.numel() * _BYTES_PER_PIXEL)


def _gradient(
    images: Tensor,
    features: Encoder,
    content: Mapping[int, Tensor],
    content_weight: float,
    grams: Mapping[int, Tensor],
    style_weights: Sequence[float],
) -> Tensor:
    """Differentiate the loss by the images; tilts add up, so each gets the gradient of its own loss."""
    found, pullback = features.forward_and_pullback(images, [*content, *grams])
    return pullback(_Slopes(found, content, content_weight, grams, style_weights))


class _Slopes(Mapping[int, Tensor]):
    """The derivatives of the loss by the features. Each is as large as its layer, so it is made when it is needed."""

    def __init__(
        self,
        found: dict[int, Tensor],
        content: Mapping[int, Tensor],
        content_weight: float,
        grams: Mapping[int, Tensor],
        style_weights: Sequence[float],
    ) -> None:
        self._found, self._layers = found, sorted(found, reverse=True)
        self._content, self._content_weight = content, content_weight
        self._grams, self._style_weights = grams, dict(zip(grams, style_weights, strict=True))

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self._layers:
            raise KeyError(layer)
        if layer not in self._found:
            raise RuntimeError(f"expected the gradient by layer {layer} to be asked for once, got another time")
        found = self._found.pop(layer)  # nobody else needs it any more
        slope: Tensor | None = None
        if layer in self._grams:
            by_gram = error_slope(gram_matrix(found), self._grams[layer])
            slope = gram_slope(found, by_gram.mul_(self._style_weights[layer]))
        if layer in self._content:
            content = error_slope(found, self._content[layer], self._content_weight)
            slope = content if slope is None else slope.add_(content)
        assert slope is not None, "features are found at the layers of the loss only"
        return slope

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def _descend(
    images: Tensor, gradient: Callable[[Tensor], Tensor], step_size: float, iterations: int, decay: float
) -> Tensor:
    """Adam from a fresh state, clamped to [0, 1], averaged over start and iterates with bias correction."""
    beta1, beta2 = _BETAS
    first, second = torch.zeros_like(images), torch.zeros_like(images)
    average, weight, current = images.clone(), 1.0, images
    for step in range(1, iterations + 1):
        slope = gradient(current)
        first = beta1 * first + (1 - beta1) * slope
        second = beta2 * second + (1 - beta2) * slope.square()
        scale = (second / (1 - beta2**step)).sqrt_().add_(_EPS)
        current = (current - step_size * (first / (1 - beta1**step)) / scale).clamp_(0.0, 1.0)
        # (decay·(sum so far) + current) / (decay·(weights so far) + 1): the bias-corrected exponential average.
        average = decay * average + current
        weight = decay * weight + 1.0
    return average / weight
