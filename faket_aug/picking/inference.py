"""Segmenting a whole tomogram tile by tile, so that memory stays bounded: its classes, or their probabilities."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from faket_aug._checks import check_choice, check_count, check_finite, same_size
from faket_aug._runtime.transfers import sent
from faket_aug.data.patches import as_size
from faket_aug.picking.network import SIZE_MULTIPLE, DeepFinderNet
from faket_aug.picking.precision import PRECISIONS, autocast
from faket_aug.picking.preparation import LocalNormalization, Preparation
from faket_aug.picking.tiles import Span, balanced, falling_weights, inner_part, spans_of, target_part, with_next

BLENDS = ("crop", "linear")
TILE_SIZE = 128
#: Voxels that neighbouring tiles share; DeepFinder's network sees about 32 voxels to each side.
OVERLAP = 32
#: Side of the patches that networks of unknown training are taken to have seen; as published.
DEFAULT_WINDOW = 56
#: Axes (z, y, x) that a tile is flipped along: half turns about each axis, which change no handedness, and which turn
#: the tilts' missing wedge into itself.
HALF_TURNS = ((), (1, 2), (0, 1), (0, 2))
FLIPS = (1, 2, 4)


def segment(
    network: nn.Module,
    tomogram: Tensor,
    *,
    tile_size: int | Sequence[int] = TILE_SIZE,
    overlap: int = OVERLAP,
    blend: str = "crop",
    precision: str = "float32",
    device: torch.device | str | None = None,
    normalized: bool = False,
    preparation: Preparation | None = None,
    voxel_size: float | None = None,
) -> Tensor:
    """Segment a tomogram: give each voxel its class, tile by tile.

    Parameters
    ----------
    network
        Takes images `(n, channel, z, y, x)`, whose sides are multiples of 4, and gives logits `(n, class, z, y, x)`.
        It is in evaluation mode during the call.
    tomogram
        `(z, y, x)`, any floating point type, of any size. For a network that was trained on several flavours
        `(channel, z, y, x)`, the flavours of the tomogram in the order of the training.
    tile_size
        Size of a tile in voxels at most, one number or (z, y, x), multiples of 4. Voxels where tiles overlap are
        computed more than once, so large tiles are faster.
    overlap
        How many voxels neighbouring tiles share, a multiple of 8, less than a tile. If it is twice the distance that
        the network sees, the result does not depend on the tiles.
    blend
        How overlapping tiles are put together. `"crop"`: each voxel takes its class from the tile whose middle is
        nearest. Memory holds one tile beside tomogram and labels. `"linear"`: the probabilities of all tiles that hold
        the voxel are averaged, with weights that fall towards the border of a tile. Memory holds the probabilities of a
        slab as thick as a tile.
    precision
        `"float32"`, `"bfloat16"` (autocast), or `"auto"`: bfloat16 where the device is faster in it.
    device
        Where the tiles are computed; by default where the network is.
    normalized
        Whether the tomogram's values are what the network is to see. Otherwise the tomogram is prepared as the patches
        of the training were, see `preparation`. Voxels that were never measured (constant regions), and those with
        values that training never held (gold beads), then become background.
    preparation
        How the patches of the training were prepared. `fit` and `load_weights` leave it with the network; for other
        networks it is that of patches of 56³ voxels, each of mean 0 and standard deviation 1.
    voxel_size
        Voxel size of the tomogram in Å. It is compared with the one that the network was trained on, if both are known:
        `fit` learns it from the dataset and keeps it with the weights.

    Returns
    -------
    `(z, y, x)`, uint8, class numbers, on the tomogram's device.

    Raises
    ------
    ValueError
        If a setting is impossible, or the network has more than 256 classes.

    Warns
    -----
    UserWarning
        If the voxel size differs by more than 2 % from the one that the network was trained on.

    References
    ----------
    Moebel et al., Nature Methods 18 (2021), Methods: overlapping patches; only their middles are kept.
    """
    check_choice("blend", blend, BLENDS)
    check_choice("precision", precision, PRECISIONS)
    _warn_of_voxel_size(network, voxel_size)
    padded, spans = _prepared(network, tomogram, tile_size, overlap, normalized, preparation)
    place = _device(network, device)
    run = _crop if blend == "crop" else _linear
    with _evaluating(network, place), autocast(place, precision):
        labels = run(network, padded, spans, place)
    z, y, x = tomogram.shape[-3:]
    labels = labels[:z, :y, :x].contiguous()
    return labels if padded.seen is None else labels * padded.seen


def class_probabilities(
    network: nn.Module,
    tomogram: Tensor,
    *,
    tile_size: int | Sequence[int] = TILE_SIZE,
    overlap: int = OVERLAP,
    precision: str = "float32",
    device: torch.device | str | None = None,
    normalized: bool = False,
    preparation: Preparation | None = None,
    voxel_size: float | None = None,
    flips: int = 1,
    within: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Compute how likely each voxel of a tomogram belongs to each class, tile by tile.

    Parameters
    ----------
    network, tomogram, tile_size, overlap, precision, device, normalized, preparation, voxel_size
        As for `segment`. Each voxel takes its probabilities from the tile whose middle is nearest.
    flips
        The probabilities are the mean over so many half turns of the tile: 1 (as it is), 2 (also about z) or 4 (about
        each axis). The time is so many times as long.
    within
        `(z, y, x)`, bool: where probabilities are wanted. Tiles without such voxels are not computed.
    progress
        Is told how many tiles of how many are done.

    Returns
    -------
    `(class, z, y, x)`, float16, of the classes from 1 on, on the tomogram's device. It is 0 where nothing was measured,
    at gold beads, and outside of `within`.

    Raises
    ------
    ValueError
        If a setting is impossible, or the network has more than 256 classes.

    Warns
    -----
    UserWarning
        If the voxel size differs by more than 2 % from the one that the network was trained on.
    """
    check_choice("precision", precision, PRECISIONS)
    check_choice("flips", flips, FLIPS)
    _warn_of_voxel_size(network, voxel_size)
    padded, spans = _prepared(network, tomogram, tile_size, overlap, normalized, preparation)
    known = padded.seen
    if within is not None:
        if within.shape != tomogram.shape[-3:]:
            raise ValueError(f"expected `within` of shape {tuple(tomogram.shape[-3:])}, got {tuple(within.shape)}")
        known = within if known is None else known & within
    place = _device(network, device)
    with _evaluating(network, place), autocast(place, precision):
        return _probabilities(network, padded, spans, place, HALF_TURNS[:flips], known, progress)


def _prepared(
    network: nn.Module,
    tomogram: Tensor,
    tile_size: int | Sequence[int],
    overlap: int,
    normalized: bool,
    preparation: Preparation | None,
) -> tuple[_Image, list[list[Span]]]:
    """Check a tomogram, prepare it as the training's patches were, and lay tiles over it."""
    _check_channels(network, tomogram)
    check_finite(tomogram, "tomogram")
    size = as_size(tile_size)
    check_tiles(size, overlap, tomogram.shape[-3:])
    padded = _Image.of(tomogram.to(torch.float32), None if normalized else _preparation(network, preparation))
    return padded, [
        spans_of(n, balanced(n, side, overlap), overlap) for n, side in zip(padded.shape, size, strict=True)
    ]


def _check_channels(network: nn.Module, tomogram: Tensor) -> None:
    """Raise a `ValueError` unless a tomogram has the channels that a network was trained on, where it says them."""
    wanted = getattr(network, "in_channels", None)
    own = tomogram.shape[0] if tomogram.ndim == 4 else 1
    if tomogram.ndim not in (3, 4) or (isinstance(wanted, int) and own != wanted):
        axes = "(z, y, x)" if wanted in (None, 1) else f"(channel, z, y, x) with {wanted} channels"
        way = "" if wanted in (None, 1) else "; give the flavours of the training, stacked in its order"
        raise ValueError(f"expected `tomogram` {axes}, got shape {tuple(tomogram.shape)}{way}")


def _device(network: nn.Module, device: torch.device | str | None) -> torch.device:
    own = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return own if device is None else torch.device(device)


@contextmanager
def _evaluating(network: nn.Module, place: torch.device) -> Iterator[None]:
    """Evaluate a network on a device, and leave it as it was."""
    training, own = network.training, _device(network, None)
    network.eval().to(place)
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training).to(own)


def check_tiles(size: Sequence[int], overlap: int, shape: Sequence[int] = (2**31,) * 3) -> None:
    """Raise a `ValueError` unless tiles of `size` with this overlap can cover a tomogram of `shape`."""
    check_count("overlap", overlap, zero=True)
    tiled = [side for side, n in zip(size, shape, strict=True) if side < n]
    if (
        any(side % SIZE_MULTIPLE for side in size)
        or overlap % (2 * SIZE_MULTIPLE)
        or overlap >= min(tiled, default=2**31)
    ):
        raise ValueError(
            f"expected `tile_size` in multiples of {SIZE_MULTIPLE} and a smaller `overlap` in multiples of "
            f"{2 * SIZE_MULTIPLE}, got {tuple(size)} and {overlap}"
        )


def _warn_of_voxel_size(network: nn.Module, voxel_size: float | None) -> None:
    prepared = getattr(network, "preparation", None)
    of_patches = prepared.voxel_size if isinstance(prepared, Preparation) else 0.0
    trained = float(getattr(network, "voxel_size", 0.0)) or of_patches
    if voxel_size and trained and not same_size(voxel_size, trained):
        warnings.warn(
            f"the network was trained on voxels of {trained:g} Å, the tomogram has voxels of {voxel_size:g} Å: its "
            "particles have another size; bin or resample the tomogram",
            stacklevel=3,
        )


def _preparation(network: nn.Module, given: Preparation | None) -> Preparation:
    found = getattr(network, "preparation", None) if given is None else given
    return found if isinstance(found, Preparation) else Preparation(patch_size=(DEFAULT_WINDOW,) * 3)


class _Image:
    """A tomogram as the network sees it, tile by tile, its border repeated up to the next multiple of 4."""

    def __init__(self, channels: Sequence[Tensor], local: Sequence[LocalNormalization]) -> None:
        self.channels, self.local = channels, local
        #: (z, y, x), of the tomogram, and with its border.
        self.inside = tuple(channels[0].shape)
        self.shape = tuple(n + (-n) % SIZE_MULTIPLE for n in self.inside)
        self.device = channels[0].device
        #: `(z, y, x)`, the voxels that were measured in all channels; None where the tomogram is taken as it is.
        self.seen: Tensor | None = None
        for one in local:
            self.seen = one.seen if self.seen is None else self.seen & one.seen

    @classmethod
    def of(cls, tomogram: Tensor, preparation: Preparation | None) -> _Image:
        """Prepare each channel of a tomogram as a training's patches were, or leave them as they are."""
        channels = list(tomogram) if tomogram.ndim == 4 else [tomogram]
        if preparation is None or not preparation.normalized:
            return cls(channels, [])
        made = preparation
        return cls(channels, [LocalNormalization(one, made.patch_size, extremes=made.extremes) for one in channels])

    def tile(self, spans: Sequence[Span]) -> Tensor:
        """Return a tile `(channel, z, y, x)`."""
        pairs = list(zip(spans, self.inside, strict=True))
        box = tuple(slice(span.start, min(span.stop, n)) for span, n in pairs)
        parts = [one.tile(box) for one in self.local] or [one[box] for one in self.channels]
        values = parts[0][None] if len(parts) == 1 else torch.stack(parts)
        extra = [span.stop - part.stop for span, part in zip(spans, box, strict=True)]
        if not any(extra):
            return values
        return functional.pad(values[None], (0, extra[2], 0, extra[1], 0, extra[0]), mode="replicate")[0]


def _logits(
    network: nn.Module,
    padded: _Image,
    spans: Sequence[Span],
    device: torch.device,
    inner: Sequence[slice] | None = None,
    flipped: Sequence[int] = (),
) -> Tensor:
    """Return logits `(class, z, y, x)` of a tile, or of its `inner` part; the network sees it flipped along axes."""
    image = sent(padded.tile(spans)[None], device)
    if flipped:
        image = image.flip([axis + 2 for axis in flipped])
    if inner is None:
        logits: Tensor = network(image)[0]
    else:
        sides = image.shape[2:]
        part = [
            slice(n - one.stop, n - one.start) if axis in flipped else one
            for axis, (one, n) in enumerate(zip(inner, sides, strict=True))
        ]
        # A network of another kind, or one with a way of its own, computes all.
        known = type(network).forward is DeepFinderNet.forward
        logits = network(image, part)[0] if known else network(image)[(0, slice(None), *part)]
    if logits.shape[0] > 256:
        raise ValueError(f"expected a network of at most 256 classes, got {logits.shape[0]}")
    return logits.flip([axis + 1 for axis in flipped]) if flipped else logits


def _crop(network: nn.Module, padded: _Image, spans: Sequence[list[Span]], device: torch.device) -> Tensor:
    # Where the network is: the program then waits once, for all labels.
    labels = torch.zeros(padded.shape, dtype=torch.uint8, device=device)
    for tile in product(*spans):
        logits = _logits(network, padded, tile, device, inner_part(tile))
        labels[target_part(tile)] = logits.argmax(dim=0).to(labels)
    return labels.to(padded.device)


def _probabilities(
    network: nn.Module,
    padded: _Image,
    spans: Sequence[list[Span]],
    device: torch.device,
    turns: Sequence[Sequence[int]],
    known: Tensor | None,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    shape = padded.inside
    found: Tensor | None = None
    tiles = list(product(*spans))
    for number, tile in enumerate(tiles):
        target = tuple(slice(part.start, min(part.stop, n)) for part, n in zip(target_part(tile), shape, strict=True))
        wanted = None if known is None else known[target]
        if wanted is None or bool(wanted.any()):
            inner = inner_part(tile)
            # `Tensor.softmax` is float32's in any case; the mean of bfloat16 numbers would be a coarse one.
            parts = (_logits(network, padded, tile, device, inner, axes).float().softmax(dim=0) for axes in turns)
            mean = sum(parts, torch.zeros((), device=device)) / len(turns)
            if found is None:
                found = torch.zeros((len(mean) - 1, *shape), dtype=torch.float16, device=padded.device)
            box = tuple(slice(0, part.stop - part.start) for part in target)
            values = mean[(slice(1, None), *box)].to(found.device, found.dtype)
            found[(slice(None), *target)] = values if wanted is None else values * wanted
        if progress is not None:
            progress(number + 1, len(tiles))
    if found is None:
        raise ValueError(
            "expected voxels to look at, got none: the tomogram has no measured voxels within the mask; set `within` "
            "to another part"
        )
    return found


def _linear(network: nn.Module, padded: _Image, spans: Sequence[list[Span]], device: torch.device) -> Tensor:
    """Sum up weighted probabilities over a slab, along z; what no later tile sees is decided and dropped."""
    labels = torch.zeros(padded.shape, dtype=torch.uint8, device=device)
    slab: Tensor | None = None
    for span, done in with_next(spans[0]):
        for across in product(*spans[1:]):
            tile = (span, *across)
            probability = _logits(network, padded, tile, device).float().softmax(dim=0)
            weighted = probability * falling_weights(probability.shape[1:], device)
            if slab is None:
                shape = (len(weighted), span.stop - span.start, *padded.shape[1:])
                slab = torch.zeros(shape, device=_roomy(device, padded.device, shape))
            weighted = weighted.to(slab.device)
            slab[:, :, across[0].start : across[0].stop, across[1].start : across[1].stop] += weighted
        assert slab is not None, "there is at least one tile"
        # The weights need no division: their sum is the same for all classes of a voxel.
        labels[span.start : done] = slab[:, : done - span.start].argmax(dim=0).to(labels)
        slab = functional.pad(slab[:, done - span.start :], (0, 0, 0, 0, 0, done - span.start))
    return labels.to(padded.device)


def _roomy(wanted: torch.device, other: torch.device, shape: Sequence[int]) -> torch.device:
    """Return the wanted device if a slab of float32, twice, takes less than half of its free memory; else another."""
    if wanted.type != "cuda":
        return wanted
    return wanted if 16 * math.prod(shape) < torch.cuda.mem_get_info(wanted)[0] else other
