"""What commands check of measured tilt-series by their headers and metadata, before anything is computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from faket_aug._checks import FileFormatError, same_size
from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.tilts.discovery import SHREC_STACKS, find_metadata, find_stack

#: Å, which programs write that know no pixel size.
NO_SIZE = 1.0


def check_series(paths: Iterable[str], *, aligned: bool) -> None:
    """Look at tilt-series before they are read: refuse pixels that contradict the metadata.

    Parameters
    ----------
    paths
        Stacks, or their folders.
    aligned
        Whether nothing needs to be said of series without an alignment.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If one is missing, or its header and its metadata disagree; the message says what to do.

    Warns
    -----
    UserWarning
        If the files beside a series hold no alignment.
    """
    for path in paths:
        stack = find_stack(Path(path))
        _, header = read_mrc(stack, rows=slice(0, 1), stack=True)
        with warnings.catch_warnings():
            # They come once more when the series is read.
            warnings.simplefilter("ignore")
            found = find_metadata(stack, None, None)
        agreed_pixel_size(stack, read_mrc_shape(stack)[1:], header, found, advice="correct the header, or the metadata")
        if not (aligned or found.is_alignment or stack.name in SHREC_STACKS):
            warnings.warn(
                f"{stack}: no alignment is known of this series, from {found.source}; say --aligned if its tilts are "
                "aligned, with their axis along y, or set --tilt-axis, or put the file of its alignment beside it",
                stacklevel=2,
            )


def agreed_pixel_size(stack: Path, shape: Sequence[int], header: float, found: TiltMetadata, *, advice: str) -> float:
    """Return the pixel size, Å, of the header or, where it has none, of the metadata; 0 where neither knows.

    Raises
    ------
    FileFormatError
        If both know it, and disagree; the message ends with the advice.
    """
    theirs = found.pixel_size if found.image_size in (None, tuple(shape)) else _scaled(found, shape)
    if theirs > 0 and header > 0 and not same_size(header, theirs):
        unbinned = found.image_size is None
        # Without the images' size, theirs may be of unbinned ones; then only what no program measures is refused.
        if not unbinned or same_size(header, NO_SIZE):
            raise FileFormatError(
                f"{stack}: expected pixels of {theirs:g} Å{' or binned ones' * unbinned}, as {found.source} says, got "
                f"{header:g} Å in the header; {advice}"
            )
    return header or (theirs if found.image_size is not None else 0.0)


def _scaled(found: TiltMetadata, shape: Sequence[int]) -> float:
    """Return the pixel size of images that were binned, both axes alike; 0 where they were cut."""
    assert found.image_size is not None, "it was compared"
    ratios = [theirs / own for theirs, own in zip(found.image_size, shape, strict=True)]
    return found.pixel_size * ratios[0] if same_size(ratios[0], ratios[1]) else 0.0
