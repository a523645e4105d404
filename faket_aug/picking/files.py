"""Picks as files that the field's programs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from faket_aug._checks import check_choice
from faket_aug.picking.clustering import Picks

#: RELION's STAR (versions 3, 4 and 5), DeepFinder's object list, SHREC's text, a copick project.
FORMATS = ("star3", "star4", "star5", "deepfinder", "shrec", "copick")


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
    """Write picks for another program; what is there is replaced when the new file is whole.

    Parameters
    ----------
    path
        The file; for `"copick"` the project's folder.
    picks
        What `pick` found.
    format
        `"star3"`, `"star4"` or `"star5"` (RELION), `"deepfinder"` (XML), `"shrec"` (text) or `"copick"`.
    class_names
        Names of the class numbers.
    voxel_size
        Å, of the tomogram.
    shape
        `(z, y, x)` of the tomogram.
    tomogram
        Its name, where the format has one.

    Raises
    ------
    ValueError
        For another format, or if a class has no name.
    ImportError
        For `"copick"`, if it is not installed.
    """
    check_choice("format", format, FORMATS)
    particles = picks.particles(class_names)
    numbers = {name: number for number, name in class_names.items() if number > 0}
    if format.startswith("star"):
        from faket_aug.formats.star import write_particles_star

        depth, height, width = shape
        write_particles_star(
            path,
            {tomogram: particles},
            voxel_size=voxel_size,
            class_numbers=numbers,
            shape=(depth, height, width),
            version=int(format[-1]),
        )
    elif format == "deepfinder":
        from faket_aug.formats.deepfinder import write_object_list

        write_object_list(path, particles, class_numbers=numbers)
    elif format == "shrec":
        from faket_aug.formats.shrec import write_particle_locations

        write_particle_locations(path, particles)
    else:
        from faket_aug.formats.copick import write_copick

        write_copick(path, run=tomogram, particles=particles, class_numbers=numbers, voxel_size=voxel_size)
