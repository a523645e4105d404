"""Writing picks for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from faket_aug._checks import check_choice
from faket_aug.formats.particle_lists import PARTICLE_FORMATS, write_particles
from faket_aug.picking.clustering import Picks


def write_picks(
    path: str | Path,
    picks: Picks,
    *,
    format: str,
    class_names: Mapping[int, str],
    voxel_size: float,
    shape: Sequence[int],
    tomogram: str,
) -> None:
    """Write picks for another program. A file that exists is replaced once the new one is complete.

    Parameters
    ----------
    path
        The file; for `"copick"` the folder of the project.
    picks
        The picks, from `pick`.
    format
        `"star3"`, `"star4"` or `"star5"` (RELION), `"deepfinder"` (XML), `"shrec"` (text) or `"copick"`.
    class_names
        Names of the class numbers.
    voxel_size
        Voxel size of the tomogram in Å.
    shape
        Shape of the tomogram, `(z, y, x)`.
    tomogram
        Name of the tomogram, for formats that hold it.

    Raises
    ------
    ValueError
        If the format is unknown, or a class has no name.
    ImportError
        For `"copick"`, if copick is not installed.
    """
    check_choice("format", format, PARTICLE_FORMATS)
    numbers = {name: number for number, name in class_names.items() if number > 0}
    write_particles(
        path,
        picks.particles(class_names),
        format=format,
        class_numbers=numbers,
        voxel_size=voxel_size,
        shape=shape,
        tomogram=tomogram,
    )
