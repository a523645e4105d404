"""Metadata of tilt-series: what every format of the field is read into, and what the readers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import FileFormatError, check_choice, check_positive
from faket_aug.formats._text import MAX_COORDINATE, MAX_DIRECTION, MAX_EXPOSURE, MAX_TILT
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
#: The largest values that a field can have, and their unit; larger ones are damage.
LIMITS: Mapping[str, tuple[float, str]] = {
    "tilt_angles": (MAX_TILT, "°"),
    "x_tilts": (MAX_TILT, "°"),
    "axis_angle": (MAX_DIRECTION, "°"),
    "astigmatism_angle": (MAX_DIRECTION, "°"),
    "phase_shift": (MAX_DIRECTION, "°"),
    "shifts": (MAX_COORDINATE, ""),
    "matrices": (MAX_COORDINATE, ""),
    "exposure": (MAX_EXPOSURE, " e⁻/Å²"),
    "order": (MAX_COORDINATE, ""),
    "defocus_um": (1000.0, " µm"),
    "astigmatism_um": (1000.0, " µm"),
}
#: Angles of two files that differ by at most this, in degrees, after one offset for all, are those of the same tilts.
ANGLE_TOLERANCE = 1.0
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
        For messages; it also says what was assumed in reading.
    assumed_sign
        Whether the sign of the tilt angles is an assumption: nothing in the file tells it (Warp's files).

    Raises
    ------
    ValueError
        If fields differ in length, an alignment has gaps, a matrix cannot be inverted, or a value is beyond what can be
        (tilt angles beyond 180°, exposure beyond 10⁵ e⁻/Å², shifts beyond 10⁷).
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
    assumed_sign: bool = False

    def __post_init__(self) -> None:
        check_choice("shift_unit", self.shift_unit, UNITS)
        check_choice("centre", self.centre, CENTRES)
        check_positive("pixel_size", self.pixel_size, zero=True)
        object.__setattr__(self, "sections", np.asarray(self.sections, dtype=np.int64).reshape(-1))
        if not len(self) or len(set(self.sections.tolist())) != len(self) or self.sections.min() < 0:
            raise FileFormatError(f"{self.source}: expected different `sections` from 0, got {self.sections.tolist()}")
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
            raise FileFormatError(f"{self.source}: expected finite `{name}`, got NaN or infinite ones")
        limit, unit = LIMITS[name]
        beyond = values[np.isinf(values) | (np.abs(values) > limit)]
        if len(beyond):
            raise FileFormatError(
                f"{self.source}: expected `{name}` within ±{limit:g}{unit}, got {beyond[0]:g}; the file is damaged or "
                "another"
            )
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

    def with_sign_of(self, other: TiltMetadata) -> Self:
        """Return the metadata with the sign of angles that `other` has, where one's own is an assumption."""
        mine, theirs = self.tilt_angles, other.tilt_angles
        if not self.assumed_sign or other.assumed_sign or mine is None or theirs is None:
            return self
        rows = self._rows_by_section(other)
        by_section = [rows is not None and _agree(sign * mine, theirs[rows]) for sign in (1, -1)]
        by_angle = [_rows_by_angle(sign * mine, theirs) is not None for sign in (1, -1)]
        for as_is, turned in (by_section, by_angle):
            plain = self.source.split(" (angles")[0]
            if turned and not as_is:
                source = f"{plain} (sign of its angles as in {other.source})"
                return replace(self, tilt_angles=-mine + 0.0, assumed_sign=False, source=source)
            if as_is and not turned:
                return replace(self, assumed_sign=False, source=plain)
        return self

    def with_angles(self, angles: TiltMetadata, *, by_hand: bool = False) -> TiltMetadata:
        """Return the metadata with other angles, in the stack's order, which go before one's own.

        Tilts belong together as in `filled_from`. Angles that are given `by_hand`, and are one's own with the other
        sign, belong to the same sections.

        Raises
        ------
        FileFormatError
            If the two differ in number, or their angles are those of different tilts; the message names both.
        """
        if self.section_count == len(angles) > len(self):
            angles = replace(angles.take(self.sections), section_count=len(angles))
        rows = self._rows_by_section(angles)
        mine, theirs = self.tilt_angles, angles.tilt_angles
        if mine is None or theirs is None:
            return replace(self, tilt_angles=None).filled_from(angles)
        signs = (1, -1) if by_hand else (1,)
        if rows is not None and any(_agree(sign * mine, theirs[rows]) for sign in signs):
            return replace(self, tilt_angles=None).filled_from(angles)
        return angles.filled_from(self)

    def filled_from(self, other: TiltMetadata) -> Self:
        """Return the metadata with what is unknown taken from `other`; where a tilt lies in its image, as a whole.

        Tilts of the two belong together by section, where their angles agree with that (up to one offset for all: a
        specimen was levelled), and else by angle. Where one of them has no angles, sections count.

        Parameters
        ----------
        other
            Of the same tilts, or of more.

        Raises
        ------
        FileFormatError
            If the two differ in number, or their angles are those of different tilts; the message names both files.
        """
        fields: dict[str, Any] = {}
        rest = other.take(self._rows_of(other))
        if rest.is_alignment and not self.is_alignment:
            fields |= {name: getattr(rest, name) for name in ALIGNMENT} | rest._pixels_from(self)
        else:
            fields |= self._pixels_from(rest)
        for name in (*PER_TILT, *SCALARS, "paths"):
            if name not in fields and (name not in ("shifts", "matrices")):
                fields[name] = _filled(getattr(self, name), getattr(rest, name))
        return replace(self, **fields)

    def _pixels_from(self, other: TiltMetadata) -> dict[str, Any]:
        """Take images and pixels from `other`, which this alignment, if it is one, then counts in."""
        known = self.pixel_size > 0 or (self.is_alignment and (self.shift_unit == "angstrom" or self.image_size))
        if known or not (other.pixel_size > 0 or other.image_size):
            return {}
        fields: dict[str, Any] = {"pixel_size": other.pixel_size, "image_size": other.image_size}
        if self.is_alignment and other.image_size is not None:
            height, width = other.image_size
            fields["source"] = f"{self.source} (shifts in pixels of {width} x {height}, from {other.source})"
        return fields

    def _rows_of(self, other: TiltMetadata) -> IntArray:
        """Find the row of `other` that belongs to each of these tilts."""
        by_section = self._rows_by_section(other)
        mine, theirs = self.tilt_angles, other.tilt_angles
        if mine is None or theirs is None:
            if by_section is None:
                raise FileFormatError(
                    f"{other.source}: expected as many tilts as {self.source}, {len(self)}, got {len(other)}"
                )
            return by_section
        if by_section is not None and _agree(mine, theirs[by_section]):
            return by_section
        by_angle = _rows_by_angle(mine, theirs)
        if by_angle is not None and np.abs(mine - theirs[by_angle]).max() <= ANGLE_TOLERANCE:
            return by_angle
        # Before an offset is looked for, which could be that of an uneven series and its mirror image.
        if by_section is not None and _agree(mine, -theirs[by_section]):
            raise FileFormatError(
                f"{other.source}: expected the tilt angles of {self.source}, got those of the opposite sign; leave one "
                "out"
            )
        if by_angle is not None:
            return by_angle
        if len(self) > len(other):
            raise FileFormatError(
                f"{other.source}: expected as many tilts as {self.source}, {len(self)}, got {len(other)}"
            )
        raise FileFormatError(
            f"{other.source}: expected the tilts of {self.source}, whose angles are {_listed(mine)}, got others: "
            f"{_listed(theirs)}"
        )

    def _rows_by_section(self, other: TiltMetadata) -> IntArray | None:
        row_of = {int(section): row for row, section in enumerate(other.sections)}
        same = all(int(section) in row_of for section in self.sections)
        if same and len(other) in (len(self), self.section_count):
            return np.array([row_of[int(section)] for section in self.sections])
        if len(self) != len(other):
            return None
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
        low, high = 0.0, np.inf
        if self.image_size is not None:
            # Sizes of images tell a binning better than sizes of pixels, which one program calibrates and another not.
            low, high = sorted(n / size for n, size in zip(shape, self.image_size, strict=True))
            if high <= low * (1 + SIZE_TOLERANCE):
                return (low + high) / 2
        if self.pixel_size > 0 and pixel_size > 0:
            return self.pixel_size / pixel_size
        if self.image_size is None:
            return 1.0
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


def _agree(mine: FloatArray, theirs: FloatArray) -> bool:
    """Whether angles are the same up to one offset for all, which is an aligned specimen's."""
    difference = theirs - mine
    return bool(np.abs(difference - np.median(difference)).max() <= ANGLE_TOLERANCE)


def _rows_by_angle(mine: FloatArray, theirs: FloatArray) -> IntArray | None:
    """Find the row of each of my angles among theirs; None where there is not one for each."""
    order = np.argsort(theirs, kind="stable")
    if len(mine) == len(theirs):
        rows = order[ranks(mine)]
        return rows if _agree(mine, theirs[rows]) else None
    # Of more tilts than mine, whose offset could be anything, the nearest.
    rows = np.abs(theirs - mine[:, None]).argmin(axis=1) if len(theirs) > len(mine) else np.zeros(0, np.int64)
    alone = len(set(rows.tolist())) == len(mine)
    return rows if alone and bool(np.abs(theirs[rows] - mine).max() <= ANGLE_TOLERANCE) else None


def _listed(angles: FloatArray) -> str:
    shown = ", ".join(f"{angle:g}" for angle in angles[:4])
    return f"{shown}{', ...' if len(angles) > 4 else ''} ({len(angles)})"


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
