"""What `faket-aug pick` writes: lists of particles, a record of each tomogram from which it goes on, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from faket_aug._checks import FileFormatError
from faket_aug.figures import label_color, three_sections
from faket_aug.formats._json import read_json, write_json
from faket_aug.formats.particle_lists import PARTICLE_FORMATS, write_particles
from faket_aug.formats.particles import ParticleList
from faket_aug.formats.star import Shape, write_particles_star, write_warp_star
from faket_aug.picking.clustering import Picks
from faket_aug.picking.control import Control

WARP = "warp"
FORMATS = (*PARTICLE_FORMATS, WARP)
#: How a list of each format ends; copick's is a folder.
SUFFIXES = {"shrec": ".txt", "deepfinder": ".xml", "copick": "", **dict.fromkeys(("star3", "star4", "star5"), ".star")}
SUFFIXES[WARP] = ".star"
#: Formats whose one file holds several tomograms by name.
BY_NAME = ("star3", "star4", "star5", WARP)
_RECORD = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class TomogramPicks:
    """The picks of a tomogram, as they are kept for another run of the command.

    Parameters
    ----------
    name
        Of the tomogram.
    voxel_size
        Å.
    shape
        `(z, y, x)`.
    picks, control
        As `find_particles` found them.
    large
        `(n,)`, which picks lie in large blobs.
    notes
        What was noticed.
    depends_on
        All that this depends on, as JSON types.
    """

    name: str
    voxel_size: float
    shape: Shape
    picks: Picks
    control: Control | None
    large: Any
    notes: tuple[str, ...]
    depends_on: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write the record."""
        control = None if self.control is None else {"share": self.control.share, **_table(self.control.picks)}
        content = {
            "format": _RECORD,
            "tomogram": self.name,
            "voxel_size": self.voxel_size,
            "shape": list(self.shape),
            "depends_on": dict(self.depends_on),
            "notes": list(self.notes),
            "picks": {**_table(self.picks), "large": [bool(one) for one in self.large]},
            "control": control,
        }
        write_json(path, content)

    @classmethod
    def read(cls, path: Path) -> TomogramPicks:
        """Read a record.

        Raises
        ------
        FileFormatError
            If it is something else.
        """
        content = read_json(path, what="a record of picks")
        try:
            if content["format"] != _RECORD:
                raise ValueError(f"format {content['format']}")
            depth, height, width = content["shape"]
            control = content["control"]
            return cls(
                name=str(content["tomogram"]),
                voxel_size=float(content["voxel_size"]),
                shape=(int(depth), int(height), int(width)),
                picks=_picks(content["picks"]),
                control=None if control is None else Control(picks=_picks(control), share=float(control["share"])),
                large=np.array(content["picks"]["large"], dtype=bool),
                notes=tuple(map(str, content["notes"])),
                depends_on=dict(content["depends_on"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise FileFormatError(
                f"{path}: expected a record of picks, got another ({type(error).__name__}: {error}); remove it, and "
                "the tomogram is picked anew"
            ) from error


def _table(picks: Picks) -> dict[str, Any]:
    assert picks.scores is not None, "the command's picks have scores"
    return {
        "classes": picks.classes.tolist(),
        "positions": [[round(float(n), 3) for n in place] for place in picks.positions],
        "sizes": picks.sizes.tolist(),
        "scores": [round(float(score), 6) for score in picks.scores],
    }


def _picks(table: Mapping[str, Any]) -> Picks:
    return Picks(
        classes=np.array(table["classes"], dtype=np.int64),
        positions=np.array(table["positions"], dtype=np.float64).reshape(-1, 3),
        sizes=np.array(table["sizes"], dtype=np.int64),
        scores=np.array(table["scores"], dtype=np.float64),
    )


# Lists ----------------------------------------------------------------------------------------------------------------


def write_lists(
    output: Path,
    found: Sequence[tuple[TomogramPicks, ParticleList]],
    *,
    format: str,
    class_numbers: Mapping[str, int],
    pixel_size: float | None,
) -> None:
    """Write the particles of all tomograms: one file where the format names tomograms, else one for each.

    Parameters
    ----------
    output
        The file, or copick's folder; the folder of lists where the format does not name tomograms and there are
        several.
    found
        Tomograms, and the particles of each.
    format
        One of `FORMATS`.
    class_numbers
        By name.
    pixel_size
        Å, of the tilt-series before binning, for RELION.
    """
    if format in BY_NAME:
        lists = {one.name: particles for one, particles in found}
        sizes = sorted({one.voxel_size for one, _ in found})
        if len(sizes) > 1:
            raise ValueError(
                f"expected tomograms of one voxel size for one STAR file, got {', '.join(f'{n:g}' for n in sizes)} Å; "
                "pick those of each size into a file of their own"
            )
        if format == WARP:
            write_warp_star(output, lists, voxel_size=sizes[0], class_numbers=class_numbers)
            return
        write_particles_star(
            output,
            lists,
            voxel_size=sizes[0],
            class_numbers=class_numbers,
            shape={one.name: one.shape for one, _ in found},
            version=int(format[-1]),
            pixel_size=pixel_size,
        )
        return
    several = output.suffix != SUFFIXES[format]
    for one, particles in found:
        write_particles(
            output / f"{one.name}{SUFFIXES[format]}" if several else output,
            particles,
            format=format,
            class_numbers=class_numbers,
            voxel_size=one.voxel_size,
            shape=one.shape,
            tomogram=one.name,
            existing="replace",
        )


# Pictures -------------------------------------------------------------------------------------------------------------


def draw_picks(
    volume: Tensor,
    picks: Picks,
    *,
    voxel_size: float,
    radii: Mapping[int, float],
    class_names: Mapping[int, str],
    title: str,
) -> Figure:
    """Show three low-passed sections where there are most picks, each with a circle where the section cuts it.

    Parameters
    ----------
    volume
        `(z, y, x)`.
    picks
        Those that count.
    voxel_size
        Å.
    radii
        Å, by class number.
    class_names
        Of all classes.
    title
        Above.
    """
    sizes = np.array([radii[int(number)] / voxel_size for number in picks.classes])
    at = [_fullest(picks.positions[:, axis], sizes, length) for axis, length in enumerate(volume.shape)]
    figure = three_sections(volume, voxel_size=voxel_size, title=title, at=at)
    # Sections across z, y and x, and which axes lie along the picture's x and y.
    panels = {0: (figure.axes[0], 2, 1), 1: (figure.axes[2], 2, 0), 2: (figure.axes[1], 0, 1)}
    for axis, (axes, along, up) in panels.items():
        # Circles that go beyond the section do not make it smaller.
        axes.autoscale(False)
        for number, place, size in zip(picks.classes.tolist(), picks.positions, sizes, strict=True):
            half = size**2 - (place[axis] - at[axis]) ** 2
            if half > 0:
                circle = Circle((place[along], place[up]), float(np.sqrt(half)), fill=False, linewidth=1.2)
                circle.set_edgecolor(label_color(number))
                axes.add_patch(circle)
    counts = {number: int((picks.classes == number).sum()) for number in class_names}
    handles = [Patch(color=label_color(n), label=f"{name}: {counts[n]}") for n, name in class_names.items() if n > 0]
    figure.axes[3].legend(handles=handles, loc="center", fontsize=8, frameon=False, ncols=1 + len(handles) // 9)
    return figure


def _fullest(places: Any, sizes: Any, length: int) -> int:
    """Return the section that most picks reach; the middle one of several such."""
    rows = np.arange(length)
    counts = (np.abs(rows[:, None] - places[None]) < sizes[None]).sum(axis=1) if len(places) else np.zeros(length)
    best = np.flatnonzero(counts == counts.max())
    return int(best[np.argmin(np.abs(best - length // 2))])


def draw_scores(
    found: TomogramPicks,
    *,
    thresholds: Mapping[int, float],
    class_names: Mapping[int, str],
    volumes: Mapping[int, float],
) -> Figure:
    """Draw how many picks have which score and which size, in the tomogram and in as much noise.

    Parameters
    ----------
    found
        Picks and control.
    thresholds
        By class number.
    class_names
        Of all classes.
    volumes
        Voxels of each class's labelled sphere.
    """
    names = {number: name for number, name in class_names.items() if number > 0}
    figure = Figure(figsize=(9.0, 0.6 + 2.4 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 2, squeeze=False)
    for row, (number, name) in zip(grid, names.items(), strict=True):
        _histogram(row[0], found, number, "scores")
        row[0].axvline(thresholds[number], color="0.2", linewidth=1.2, linestyle="--")
        row[0].set_title(f"{name}: scores; from {thresholds[number]:.2f} on (dashed) they count", fontsize=10)
        row[0].legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
        _histogram(row[1], found, number, "sizes", scale=volumes[number])
        row[1].set_title(f"{name}: share of its sphere that is labelled", fontsize=10)
    return figure


def _histogram(axes: Axes, found: TomogramPicks, number: int, what: str, *, scale: float = 1.0) -> None:
    """Draw counts, of all picks that are listed, over a score or a share."""
    lists = [("in the tomogram", found.picks, 1.0, label_color(number))]
    if found.control is not None:
        lists.append(("in as much noise", found.control.picks, 1 / found.control.share, "0.25"))
    own = [np.asarray(getattr(one, what), dtype=np.float64)[one.classes == number] / scale for _, one, _, _ in lists]
    edges = np.linspace(0, max(0.1, *(1.05 * float(values.max(initial=0.0)) for values in own)), 41)
    most = 1.0
    for values, (label, _, weight, color) in zip(own, lists, strict=True):
        counts, _ = np.histogram(values, edges)
        most = max(most, float(counts.max()) * weight)
        is_tomogram = label == "in the tomogram"
        style: dict[str, Any] = {"fill": True, "alpha": 0.75} if is_tomogram else {"linewidth": 1.5}
        axes.stairs(counts * weight, edges, color=color, label=f"{len(values) * weight:.0f} {label}", **style)
    # Counts go over orders of magnitude: below 1 the axis is linear.
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(0, 3 * most)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    axes.set_ylabel("picks", fontsize=9)
    axes.grid(alpha=0.3)
