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
    existing: str = "refuse",
) -> None:
    """Write picks for another program. Nothing else is changed, also within a copick project.

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
    existing
        What happens to a file that would be overwritten: `"refuse"` (an error), `"aside"` (it is renamed, with `.1` at
        its end) or `"replace"`.

    Raises
    ------
    ValueError
        If the format is unknown, or a class has no name.
    FileExistsError
        If there is such a file already, unless `existing` says otherwise.
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
        existing=existing,
    )
