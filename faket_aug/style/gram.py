"""Gram matrices of features, accumulated in float32 at least, and the derivative by the features."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from faket_aug._runtime.numerics import own_precision

#: Elements of a layer that are processed together: on a CPU the intermediate results then stay in the cache.
_CPU_BLOCK, _GPU_BLOCK = 2**17, 2**28
#: Pixels of one product on a GPU: an image then gives work to all of its multiprocessors.
_GPU_PIXELS = 4096


@own_precision()
def gram_matrix(features: Tensor, kept: Tensor | None = None) -> Tensor:
    """Compute Gram matrices `F Fᵀ / pixels`.

    Parameters
    ----------
    features
        `(n, channels, y, x)`, any floating dtype.
    kept
        `(n, y, x)`, bool: the pixels that count; by default all.

    Returns
    -------
    `(n, channels, channels)`, accumulated in float32 at least: bfloat16 would lose the small layers.
    """
    if kept is not None:
        return torch.cat([gram_matrix(_chosen(one, own)) for one, own in zip(features, kept, strict=True)])
    flat = pixels_by_channels(features)
    dtype = wide(flat.dtype)
    if flat.is_cuda and (flat.dtype == dtype or widens_products(flat.device, flat.dtype)):
        return _split_products(flat, dtype) / flat.shape[1]
    pixels = max(1, block_of(flat) // flat.shape[2])
    grams = []
    # Image by image, as batches of one are slow; some pixels at a time where they have to be widened.
    for image in flat:
        gram = flat.new_zeros(flat.shape[2], flat.shape[2], dtype=dtype)
        for some in [image] if image.dtype == dtype else torch.split(image, pixels):
            widened = some.to(dtype)
            gram = torch.addmm(gram, widened.mT, widened)
        grams.append(gram)
    return torch.stack(grams) / flat.shape[1]


def _split_products(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply `(n, pixels, channels)` with itself, some pixels at a time; always in the same order."""
    n, pixels, channels = flat.shape
    whole = pixels - pixels % _GPU_PIXELS
    total = flat.new_zeros(n, channels, channels, dtype=dtype)
    if whole:
        parts = flat[:, :whole].reshape(-1, _GPU_PIXELS, channels)  # (n · parts, pixels, channels)
        total = _products(parts, dtype).view(n, -1, channels, channels).sum(dim=1)
    return total + _products(flat[:, whole:], dtype) if whole < pixels else total


def _products(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply `(n, pixels, channels)` with itself: `(n, channels, channels)`."""
    if parts.dtype == dtype:
        return torch.bmm(parts.mT, parts)
    products: Tensor = torch.bmm(parts.mT, parts, out_dtype=dtype)
    return products


@functools.cache
def widens_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether products of a half precision come in float32, as they are accumulated: on CUDA, since torch 2.8."""
    values = torch.arange(2 * 16 * 8, device=device).remainder(13).view(2, 16, 8).to(dtype)
    try:
        found = _products(values, torch.float32)
    except torch.OutOfMemoryError:  # says nothing of the products, and would be remembered
        raise
    except (TypeError, RuntimeError):  # no such argument; no such kernel
        return False
    wide_values = values.to(torch.float32)
    return bool(torch.equal(found, torch.bmm(wide_values.mT, wide_values)))


def gram_slope(features: Tensor, slope: Tensor) -> Tensor:
    """Derivative by the features `(n, channels, y, x)`, given that by their Gram matrix (symmetric)."""
    n, channels, height, width = features.shape
    flat = pixels_by_channels(features)
    result = flat @ (slope * (2 / flat.shape[1])).to(flat.dtype)
    return result.reshape(n, height, width, channels).permute(0, 3, 1, 2)


def _chosen(features: Tensor, kept: Tensor) -> Tensor:
    """Take some pixels of the features `(channels, y, x)` of one image, `(1, channels, pixels, 1)`."""
    flat = pixels_by_channels(features[None])[0]
    some = flat if bool(kept.all()) else flat[kept.flatten()]
    return some.T[None, :, :, None]


def block_of(values: Tensor) -> int:
    """Return how many elements of a layer are processed together."""
    return _GPU_BLOCK if values.is_cuda else _CPU_BLOCK


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of sums: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def pixels_by_channels(features: Tensor) -> Tensor:
    """Reshape `(n, channels, y, x)` to `(n, y·x, channels)`; no copy where channels are last in memory."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)
