"""Masks of tilts: which pixels were measured, and what a measurement does with the others."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

#: Holes that a square of this side (pixels) does not fit into are filled from their neighbours. Larger ones fade out.
HOLE = 5
#: Distances from holes are computed on grids of up to about this many pixels a side.
_GRID = 512


def as_mask(measured: Tensor | None, images: Tensor, name: str = "measured") -> Tensor | None:
    """Check a mask of images `(..., y, x)`; return None if every pixel was measured.

    Raises
    ------
    ValueError
        If it is not boolean, or of another shape than the images.
    """
    if measured is None:
        return None
    if measured.dtype != torch.bool or measured.shape != images.shape:
        raise ValueError(
            f"expected `{name}` as booleans of the images' shape, {tuple(images.shape)}, got {measured.dtype} of "
            f"{tuple(measured.shape)}; give a mask that is cut and sorted as the images, or None where all was measured"
        )
    return None if bool(measured.all()) else measured.to(images.device)


def eroded(measured: Tensor, reach: int) -> Tensor:
    """Leave out the pixels within `reach` of those that were not measured; a mask `(y, x)` or `(n, y, x)`."""
    missing = (~measured).to(torch.float32).reshape(-1, 1, *measured.shape[-2:])
    size = 2 * reach + 1
    # Along one side, then along the other: the maximum of a square is that of its lines.
    near = max_pool2d(max_pool2d(missing, (size, 1), 1, (reach, 0)), (1, size), 1, (0, reach))
    result: Tensor = near.reshape(measured.shape) == 0
    return result


def without_holes(image: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    """Fill small holes of an image `(y, x)` with the mean of measured neighbours.

    Returns
    -------
    The image, and the mask with these holes measured.
    """
    missing = ~measured
    # An opening. Beyond the edge nothing counts: a band along it is large if half the square fits into it.
    inner = -max_pool2d(-missing[None, None].to(torch.float32), HOLE, 1, HOLE // 2)
    large = max_pool2d(inner, HOLE, 1, HOLE // 2)[0, 0] > 0
    holes = missing & ~large
    if not bool(holes.any()):
        return image, measured
    middle = image[measured].mean() if bool(measured.any()) else image.new_zeros(())
    values = torch.where(measured, image - middle, 0.0)
    near, share = (avg_pool2d(one[None, None], HOLE, 1, HOLE // 2)[0, 0] for one in (values, measured.to(values.dtype)))
    filled = holes & (share > 0)
    return torch.where(filled, near / share.clamp_min(1e-6) + middle, image), measured | filled


def filled(images: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    """Fill what was not measured of images `(n, y, x)`: small holes as `without_holes`, the rest with the image's mean.

    Returns
    -------
    The images, and the masks with small holes measured.
    """
    found, masks = [], []
    for image, known in zip(images, measured, strict=True):
        whole, solid = without_holes(image, known)
        middle = image[known].mean() if bool(known.any()) else image.new_zeros(())
        found.append(torch.where(solid, whole, middle))
        masks.append(solid)
    return torch.stack(found), torch.stack(masks)


def fading(measured: Tensor, width: float) -> Tensor:
    """Make a window `(y, x)` that fades out towards what was not measured, over `width` pixels; float32."""
    if bool(measured.all()):
        return torch.ones(measured.shape, device=measured.device)
    step = max(1, min(measured.shape) // _GRID)
    missing = max_pool2d((~measured)[None, None].to(torch.float32), step, ceil_mode=True)
    distance = torch.from_numpy(ndimage.distance_transform_edt(missing[0, 0].cpu().numpy() == 0).astype(np.float32))
    distance = distance.to(measured.device) * step - 0.5
    if step > 1:
        distance = interpolate(distance[None, None], size=measured.shape, mode="bilinear", align_corners=False)[0, 0]
    faded: Tensor = torch.sin((distance / width).clamp(0.0, 1.0) * (torch.pi / 2)) ** 2
    return faded * measured
