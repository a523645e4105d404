"""Lists of particles as files that the field's programs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from faket_aug._checks import check_choice
from faket_aug.formats._atomic import EXISTING, make_way
from faket_aug.formats.particles import ParticleList

#: SHREC's text, RELION's STAR (versions 3, 4 and 5), DeepFinder's object list, a copick project.
PARTICLE_FORMATS = ("shrec", "star3", "star4", "star5", "deepfinder", "copick")


def write_particles(
    path: str | Path,
    particles: ParticleList,
    *,
    format: str,
    class_numbers: Mapping[str, int],
    voxel_size: float,
    shape: Sequence[int],
    tomogram: str,
    existing: str = "replace",
) -> None:
    """Write the particles of one tomogram for another program.

    Parameters
    ----------
    path
        The file; for `"copick"` the project's folder.
    particles
        The particles.
    format
        `"shrec"` (text), `"star3"`, `"star4"` or `"star5"` (RELION), `"deepfinder"` (XML) or `"copick"`.
    class_numbers
        Class numbers by name.
    voxel_size
        Å, of the tomogram.
    shape
        `(z, y, x)` of the tomogram.
    tomogram
        Its name, where the format has one.
    existing
        `"refuse"`, `"aside"` or `"replace"` what would be overwritten, see `make_way`. In a copick project that is only
        what has the same name, user and session; all else stays as it is.

    Raises
    ------
    ValueError
        For another format, or if a class has no number.
    ImportError
        For `"copick"`, if the package copick is not installed.
    """
    check_choice("format", format, PARTICLE_FORMATS)
    check_choice("existing", existing, EXISTING)
    if format != "copick":
        make_way(path, existing)
    # Each writer's libraries are imported only when it is used.
    if format == "shrec":
        from faket_aug.formats.shrec import write_particle_locations

        write_particle_locations(path, particles)
    elif format == "deepfinder":
        from faket_aug.formats.deepfinder import write_object_list

        write_object_list(path, particles, class_numbers=class_numbers)
    elif format == "copick":
        from faket_aug.formats.copick import write_copick

        write_copick(
            path,
            run=tomogram,
            particles=particles,
            class_numbers=class_numbers,
            voxel_size=voxel_size,
            existing=existing,
        )
    else:
        from faket_aug.formats.star import write_particles_star

        depth, height, width = shape
        write_particles_star(
            path,
            {tomogram: particles},
            voxel_size=voxel_size,
            shape=(depth, height, width),
            version=int(format[-1]),
            class_numbers=class_numbers,
        )
