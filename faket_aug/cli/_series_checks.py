"""What commands check of measured tilt-series by their headers and metadata, before anything is computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from faket_aug._checks import FileFormatError, same_size
from faket_aug.formats.mrc import read_mrc, read_mrc_shape
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.tilts.discovery import SHREC_STACKS, find_metadata, find_stack
from faket_aug.tilts.series import TiltSeries

#: Å, which programs write that know no pixel size.
NO_SIZE = 1.0


def aligned_option(heading: str) -> Any:
    """Return the option by which a user says that tilts are aligned, under a heading of the help."""
    told = "The tilts are aligned already, their axis along y; an alignment in the files beside them is left out."
    return typer.Option("--aligned", help=told, rich_help_panel=heading)


def check_series(paths: Iterable[str], *, aligned: bool, tilt_axis: float | None) -> None:
    """Look at tilt-series before they are read: refuse pixels that the metadata deny, and tilts that are not aligned.

    Parameters
    ----------
    paths
        Stacks, or their folders.
    aligned
        Whether the user says that the tilts are aligned.
    tilt_axis
        Degrees, where the user gives it: series without an alignment will be aligned by it.

    Raises
    ------
    FileNotFoundError, FileFormatError, ValueError
        If one is missing, or its header and its metadata disagree, or no alignment of it is known, or both are given;
        the message says what to do.
    """
    if aligned and tilt_axis is not None:
        raise ValueError(
            "expected either --aligned or --tilt-axis, by which tilts are aligned, got both; leave one away"
        )
    for path in paths:
        stack = find_stack(Path(path))
        _, header = read_mrc(stack, rows=slice(0, 1), stack=True)
        with _angles_beside_it(), warnings.catch_warnings():
            # They come once more when the series is read.
            warnings.simplefilter("ignore")
            found = find_metadata(stack, None, None)
        agreed_pixel_size(stack, read_mrc_shape(stack)[1:], header, found, advice="correct the header, or the metadata")
        if tilt_axis is None:
            check_alignment(stack, found, aligned=aligned, advice="put one there, or set --tilt-axis in degrees")


def check_alignment(stack: Path, found: TiltMetadata, *, aligned: bool, advice: str) -> bool:
    """Refuse a series of which no alignment is known.

    Parameters
    ----------
    stack
        The series.
    found
        Its metadata.
    aligned
        Whether the user says that the tilts are aligned.
    advice
        What to do with a file that holds the alignment.

    Returns
    -------
    Whether the tilts are taken as they lie.

    Raises
    ------
    ValueError
        If the metadata hold none and the user does not say so; the message says what to do.

    Warns
    -----
    UserWarning
        If there is one, which is left out.
    """
    # What SHREC simulated is aligned, and has no file that says so.
    if not found.is_alignment and (aligned or stack.name in SHREC_STACKS):
        return True
    if not found.is_alignment:
        raise ValueError(
            f"{stack}: expected an alignment (tilt axis and shifts) in the files beside it, .xf, .aln, .star or .xml, "
            f"got {found.source} without; {advice}, or --aligned if the tilts are aligned already, with their axis "
            "along y"
        )
    shifted = found.shifts is not None and bool(found.shifts.any())
    turned = found.axis_angle is not None and bool(found.axis_angle.any())
    if aligned and (shifted or turned or found.matrices is not None):
        warnings.warn(
            f"{stack}: the alignment of {found.source} is left out, since --aligned says that the tilts are aligned; "
            "leave --aligned away if they are not",
            stacklevel=3,
        )
    return aligned


@contextmanager
def _angles_beside_it() -> Iterator[None]:
    """Let the message of missing angles leave out a setting that commands do not have for measured series."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace(", or set `tilt_angles`", "")) from error


def read_series(path: str, *, aligned: bool = False) -> TiltSeries:
    """Read a series; of one that is aligned already, the alignment that its files hold is left out."""
    with _angles_beside_it():
        series = TiltSeries.read(path)
    metadata = series.metadata
    if not aligned or metadata is None or not metadata.is_alignment:
        return series
    height, width = series.tilts.shape[-2:]
    return replace(series, metadata=metadata.after_alignment((height, width), pixel_size=series.pixel_size))


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
