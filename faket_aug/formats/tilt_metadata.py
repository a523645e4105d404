"""Metadata of tilt-series: what every format of the field is read into, and what the readers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import FileFormatError, check_choice, check_positive
from faket_aug.geometry import axis_index, half_turn, turns

UNITS = ("angstrom", "pixel")
CENTRES = ("pixel", "middle")
#: Fields with one row for each tilt, and the shape of a row.
PER_TILT: Mapping[str, tuple[int, ...]] = {
    "tilt_angles": (),
    "axis_angle": (),
    "shifts": (2,),
    "matrices": (2, 2),
    "exposure": (),
    "order": (),
    "defocus_um": (),
    "astigmatism_um": (),
    "astigmatism_angle": (),
    "phase_shift": (),
    "x_tilts": (),
}
#: These say where a tilt lies in its image: known together, and without gaps.
ALIGNMENT = ("axis_angle", "shifts", "matrices", "shift_unit", "centre", "pixel_size", "image_size", "x_tilts")
SCALARS = ("voltage_kv", "spherical_aberration_mm", "amplitude_contrast", "handedness", "section_count")
#: Two sides of an image may be binned by factors that differ by this much (sizes are whole numbers).
SIZE_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class TiltMetadata:
    """What is known of each tilt of a series beside its pixels; None, or NaN for single tilts, where unknown.

    **Where a tilt lies in its image.** A point of the aligned tilt, x' across and y along the axis of rotation, is
    found in the measured image, counted from its centre, at

    ``u = x' cos a − y sin a + shift_x``, ``v = x' sin a + y cos a + shift_y``,

    with ``a`` the `axis_angle`: from the image's +y to the axis, positive towards −x. `shifts` are thus where the
    axis's own point (0, 0) lies in the image. Every format's own convention is turned into this one at its border.

    Parameters
    ----------
    sections
        `(tilt,)`, the section of the stack, from 0, that each row belongs to.
    section_count
        How many sections the stack has; None for as many as there are rows. Those without a row are no tilts of the
        series (dark frames).
    tilt_angles
        `(tilt,)`, degrees, right-handed about +y.
    axis_angle
        `(tilt,)`, degrees, see above.
    shifts
        `(tilt, 2)`, **(y, x)**, in `shift_unit`, see above.
    shift_unit
        `"angstrom"` or `"pixel"`.
    matrices
        `(tilt, 2, 2)` on (x, y), in place of the rotation by `axis_angle` where the images are also magnified or
        stretched: `(u, v) = matrix @ (x', y) + shift`.
    centre
        Where an image of n pixels has its centre: `"pixel"`, at index `n // 2`, or `"middle"`, at `(n − 1) / 2`.
    pixel_size
        Å, of the images that the file speaks of (and of shifts in pixels), which may be unbinned ones; 0 if unknown.
    image_size
        (y, x), pixels of these images.
    x_tilts
        `(tilt,)`, degrees, turn of the specimen about x before the tilt; kept, not applied.
    exposure
        `(tilt,)`, e⁻/Å² that the specimen had seen *before* the tilt.
    order
        `(tilt,)`, place in the order of acquisition, from 0.
    defocus_um
        `(tilt,)`, mean defocus, µm, positive is underfocus.
    astigmatism_um
        `(tilt,)`, µm, half the difference of largest and smallest defocus: along `astigmatism_angle` the defocus is
        their mean plus this.
    astigmatism_angle
        `(tilt,)`, degrees, from +x to the direction of the largest defocus, positive towards +y.
    phase_shift
        `(tilt,)`, degrees, by a phase plate.
    voltage_kv, spherical_aberration_mm, amplitude_contrast
        Of the microscope; the last in [0, 1].
    handedness
        1 or −1, as the format says (RELION's `rlnTomoHand`). It mirrors z and changes no angle here.
    paths
        `(tilt,)`, the files of frames or images that the tilts were made of, as written.
    source
        For messages.

    Raises
    ------
    ValueError
        If fields differ in length, an alignment has gaps, or a matrix cannot be inverted.
    """

    sections: IntArray
    section_count: int | None = None
    tilt_angles: FloatArray | None = None
    axis_angle: FloatArray | None = None
    shifts: FloatArray | None = None
    shift_unit: str = "angstrom"
    matrices: FloatArray | None = None
    centre: str = "pixel"
    pixel_size: float = 0.0
    image_size: tuple[int, int] | None = None
    x_tilts: FloatArray | None = None
    exposure: FloatArray | None = None
    order: FloatArray | None = None
    defocus_um: FloatArray | None = None
    astigmatism_um: FloatArray | None = None
    astigmatism_angle: FloatArray | None = None
    phase_shift: FloatArray | None = None
    voltage_kv: float | None = None
    spherical_aberration_mm: float | None = None
    amplitude_contrast: float | None = None
    handedness: int | None = None
    paths: tuple[str, ...] | None = None
    source: str = "metadata"

    def __post_init__(self) -> None:
        check_choice("shift_unit", self.shift_unit, UNITS)
        check_choice("centre", self.centre, CENTRES)
        check_positive("pixel_size", self.pixel_size, zero=True)
        object.__setattr__(self, "sections", np.asarray(self.sections, dtype=np.int64).reshape(-1))
        if not len(self) or len(set(self.sections.tolist())) != len(self) or self.sections.min() < 0:
            raise ValueError(f"{self.source}: expected different `sections` from 0, got {self.sections.tolist()}")
        for name, tail in PER_TILT.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._rows(name, tail))
        if self.paths is not None and len(self.paths) != len(self):
            raise ValueError(f"{self.source}: expected {len(self)} `paths`, got {len(self.paths)}")
        if self.matrices is not None and (abs(np.linalg.det(self.matrices)) < 1e-6).any():
            raise ValueError(f"{self.source}: expected `matrices` that can be inverted")

    def _rows(self, name: str, tail: tuple[int, ...]) -> FloatArray:
        values = np.asarray(getattr(self, name), dtype=np.float64)
        if values.shape != (len(self), *tail):
            raise ValueError(f"{self.source}: expected `{name}` of shape {(len(self), *tail)}, got {values.shape}")
        if name in ("tilt_angles", "axis_angle", "shifts", "matrices") and not np.isfinite(values).all():
            raise ValueError(f"{self.source}: expected finite `{name}`, got NaN or infinite ones")
        return values

    def __len__(self) -> int:
        return len(self.sections)

    @property
    def is_alignment(self) -> bool:
        """Whether it is known where the tilts lie in their images."""
        return self.shifts is not None and (self.axis_angle is not None or self.matrices is not None)

    def take(self, rows: npt.ArrayLike) -> Self:
        """Return the metadata of some tilts, in the order of `rows`, `(n,)` whole numbers."""
        chosen = np.asarray(rows, dtype=np.int64)
        fields = {n: getattr(self, n)[chosen] for n in PER_TILT if getattr(self, n) is not None}
        if self.paths is not None:
            fields["paths"] = tuple(self.paths[i] for i in chosen)
        return replace(self, sections=self.sections[chosen], **fields)

    def filled_from(self, other: TiltMetadata) -> Self:
        """Return the metadata with what is unknown taken from `other`; where a tilt lies in its image, as a whole.

        Parameters
        ----------
        other
            Of the same sections, or of all that the stack has, or of as many: then they belong to each other in order.

        Raises
        ------
        FileFormatError
            If the two differ in number; the message names both files.
        """
        fields: dict[str, Any] = {}
        rest = other.take(self._rows_of(other))
        if rest.is_alignment and not self.is_alignment:
            fields |= {name: getattr(rest, name) for name in ALIGNMENT}
        elif not self.is_alignment and self.pixel_size == 0:
            fields |= {"pixel_size": rest.pixel_size, "image_size": rest.image_size}
        for name in (*PER_TILT, *SCALARS, "paths"):
            if name not in fields and (name not in ("shifts", "matrices")):
                fields[name] = _filled(getattr(self, name), getattr(rest, name))
        return replace(self, **fields)

    def _rows_of(self, other: TiltMetadata) -> IntArray:
        row_of = {int(section): row for row, section in enumerate(other.sections)}
        same = all(int(section) in row_of for section in self.sections)
        if same and len(other) in (len(self), self.section_count):
            return np.array([row_of[int(section)] for section in self.sections])
        if len(self) != len(other):
            raise FileFormatError(
                f"{other.source}: expected as many tilts as {self.source}, {len(self)}, got {len(other)}"
            )
        return np.argsort(other.sections)[ranks(self.sections)]

    def places(
        self, shape: Sequence[int], *, pixel_size: float, name: str = "the series"
    ) -> tuple[FloatArray, FloatArray]:
        """Tell where the aligned tilts lie in the pixels of a stack.

        Parameters
        ----------
        shape
            (y, x) of its images.
        pixel_size
            Å of its images; 0 if unknown, which only shifts in Å do not allow.
        name
            The stack's, for messages.

        Returns
        -------
        Matrices `(tilt, 2, 2)` on (x, y) and shifts `(tilt, 2)`, (y, x), in pixels, for
        `(u, v) = matrix @ (x', y) + shift`, both sides counted from pixel `n // 2`.

        Raises
        ------
        ValueError
            If no alignment is known, or the pixel size is needed and is not.
        """
        matrices = turns(self.axis_angle) if self.matrices is None and self.axis_angle is not None else self.matrices
        if self.shifts is None or matrices is None:
            raise ValueError(
                f"{self.source}: expected an alignment (tilt axis and shifts), got none; set `metadata` to an .xf, "
                ".aln, STAR or XML file that holds one"
            )
        # An image of even size has its middle half a pixel before pixel n // 2.
        before = np.array([(n - 1) / 2 - axis_index(n) for n in shape]) if self.centre == "middle" else np.zeros(2)
        shifts = self.shifts * self._pixels_per_unit(shape, pixel_size, name) + before
        return matrices, shifts

    def _pixels_per_unit(self, shape: Sequence[int], pixel_size: float, name: str) -> float:
        if self.shift_unit == "angstrom":
            if pixel_size <= 0:
                raise ValueError(
                    f"{name}: expected its pixel size, since {self.source} holds shifts in Å, got none; set "
                    "`pixel_size`"
                )
            return 1 / pixel_size
        if self.pixel_size > 0 and pixel_size > 0:
            return self.pixel_size / pixel_size
        if self.image_size is None:
            return 1.0
        low, high = sorted(n / size for n, size in zip(shape, self.image_size, strict=True))
        if high > low * (1 + SIZE_TOLERANCE):
            raise ValueError(
                f"{name}: expected images of {self.image_size} pixels as {self.source} says, or binned ones, got "
                f"{tuple(shape)}; set `pixel_size` of the series and of its metadata"
            )
        return (low + high) / 2

    def after_alignment(self, shape: Sequence[int], *, pixel_size: float) -> Self:
        """Return the metadata of the aligned tilts: axis along y, no shifts, directions turned with the images."""
        fields: dict[str, Any] = {}
        if self.astigmatism_angle is not None and self.axis_angle is not None:
            fields["astigmatism_angle"] = half_turn(self.astigmatism_angle - self.axis_angle)
        return replace(
            self,
            axis_angle=np.zeros(len(self)),
            shifts=np.zeros((len(self), 2)),
            shift_unit="pixel",
            matrices=None,
            centre="pixel",
            pixel_size=pixel_size,
            image_size=(int(shape[0]), int(shape[1])),
            **fields,
        )


def _filled(mine: Any, theirs: Any) -> Any:
    if mine is None or theirs is None or not isinstance(mine, np.ndarray):
        return theirs if mine is None else mine
    return np.where(np.isnan(mine), theirs, mine)


# --- what the readers share -------------------------------------------------------------------------------------------


def ranks(values: npt.ArrayLike) -> IntArray:
    """Number values by size from 0, equal ones in their order."""
    numbers: IntArray = np.argsort(np.argsort(np.asarray(values), kind="stable"), kind="stable").astype(np.int64)
    return numbers


def defocus_fields(first_um: npt.ArrayLike, second_um: npt.ArrayLike, angle_deg: npt.ArrayLike) -> dict[str, Any]:
    """Turn two defocus values, µm, and the direction of the first, degrees, into the fields of `TiltMetadata`."""
    first, second, angle = (np.asarray(v, dtype=np.float64) for v in (first_um, second_um, angle_deg))
    return {
        "defocus_um": (first + second) / 2,
        "astigmatism_um": np.abs(first - second) / 2,
        "astigmatism_angle": half_turn(np.where(first < second, angle + 90, angle)),
    }
