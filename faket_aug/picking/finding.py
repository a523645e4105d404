"""Finding particles in a tomogram with a trained picker: prepared as in training, with a control."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from faket_aug._arrays import FloatArray
from faket_aug._checks import (
    check_choice,
    check_count,
    check_finite,
    check_fraction,
    check_ndim,
    check_positive,
    same_size,
)
from faket_aug.picking.clustering import Picks
from faket_aug.picking.control import Control, control_box, control_volume
from faket_aug.picking.inference import FLIPS, OVERLAP, TILE_SIZE, class_probabilities
from faket_aug.picking.locating import METHODS, PEAKS, locate
from faket_aug.picking.peaks import LEAST_SCORE, Sphere, in_large_blobs, spheres_of
from faket_aug.picking.picker import Picker
from faket_aug.picking.precision import PRECISIONS, fastest_precision
from faket_aug.picking.preparation import measured_voxels
from faket_aug.picking.thresholds import thresholds_by_control
from faket_aug.tomography.resample import resample_volume

AUTO = "auto"
#: What particles are in a tomogram: `auto` looks, and refuses a tomogram in which they seem to be bright.
CONTRASTS = (AUTO, "dark", "bright")
#: A tomogram's voxels may be so many times as large as the training's: what is finer is lost in it. Smaller ones are
#: binned.
MOST_ENLARGED, MOST_BINNED = 1.5, 16.0
#: (z, y, x), voxels in which both signs are tried.
SIGN_SIZE = (64, 160, 160)
#: So many times as many picks of the other sign, and at least so many, say that particles are bright.
_TIMES, _LEAST = 3.0, 12
#: Score from which on picks are counted there, and where neither training nor control give a threshold.
DEFAULT_THRESHOLD = 0.3
#: Voxels of a cube whose noise is looked at, and the share of the usual noise that it has to have.
_CUBE, _GRAIN = 8, 0.4
#: Å, of blocks whose means show the contrast of what is dense.
_BLOCK = 40.0


@dataclass(frozen=True, kw_only=True)
class FindSettings:
    """How particles are found.

    Parameters
    ----------
    method
        `"peaks"`: where a sphere of the particle's size is full and the shell around it is not. `"components"` or
        `"mean-shift"`: pieces of the most likely class, those of more than three particles split by peaks.
    flips
        Probabilities are the mean over so many half turns of the tomogram: 1, 2 or 4. The time is so many times as
        long.
    precision
        Of the network: `"float32"`, `"bfloat16"`, or `"auto"`, bfloat16 where the device computes faster in it.
    tile_size, overlap
        Of the tiles, voxels, see `segment`.
    control
        Whether the same is done with noise of the tomogram's spectrum, in a volume of at most 128 × 256 × 256 voxels;
        what is found there is scaled to the tomogram.
    contrast
        Whether particles are `"dark"`, as in training, or `"bright"`. `"auto"` tries both signs in a part of the
        tomogram, and refuses it where they seem to be bright.
    seed
        Of the control's noise.

    Raises
    ------
    ValueError
        If a setting is impossible.
    """

    method: str = PEAKS
    flips: int = 1
    precision: str = AUTO
    tile_size: int = TILE_SIZE
    overlap: int = OVERLAP
    control: bool = True
    contrast: str = AUTO
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("flips", self.flips, FLIPS)
        check_choice("precision", self.precision, (AUTO, *PRECISIONS))
        check_choice("contrast", self.contrast, CONTRASTS)
        check_count("seed", self.seed, zero=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundPicks:
    """What a picker finds in a tomogram.

    Parameters
    ----------
    picks
        All with a score of 0.002 or more, also poor ones; positions in voxels of the tomogram.
    control
        What it finds in noise; `None` without control.
    in_large_blobs
        `(n,)`, which picks lie in a blob of more than three particles.
    notes
        What was done or noticed, in sentences.
    probabilities
        `(class, z, y, x)`, float16, in voxels of the training's size.
    voxel_size
        Å, of the probabilities.
    """

    picks: Picks
    control: Control | None
    in_large_blobs: npt.NDArray[np.bool_]
    notes: tuple[str, ...]
    probabilities: Tensor
    voxel_size: float


def find_particles(
    picker: Picker,
    tomogram: Tensor,
    *,
    voxel_size: float,
    settings: FindSettings | None = None,
    within: Tensor | None = None,
    progress: Callable[[float], None] | None = None,
) -> FoundPicks:
    """Find particles in a tomogram.

    The tomogram is prepared as the training's patches were, and resampled if its voxels have another size.

    Parameters
    ----------
    picker
        From `load_picker`.
    tomogram
        `(z, y, x)`.
    voxel_size
        Å, of the tomogram.
    settings
        How it is done; by default as `FindSettings` says.
    within
        `(z, y, x)`, bool: where particles are looked for; by default everywhere.
    progress
        Is told the share that is done.

    Returns
    -------
    Picks with scores, and those in noise. `chosen_thresholds` says which picks count.

    Raises
    ------
    ValueError
        If the voxel sizes are too different, or particles seem to be bright.
    """
    check_ndim("tomogram", tomogram, "z y x")
    check_positive("voxel_size", voxel_size)
    check_finite(tomogram, "tomogram")
    made, tell = settings or FindSettings(), progress or (lambda share: None)
    description = picker.description
    work = _Work(picker, made, spheres_of_picker(picker))
    volume, region, notes = _resampled(tomogram, within, voxel_size, description.voxel_size)
    # What was filled in has no noise, and would look like anything once it is scaled to a standard deviation of 1.
    region = grainy_voxels(volume) if region is None else grainy_voxels(volume) & region
    volume = _with_dark_particles(work, volume, region, made.contrast)
    tell(0.05)
    # Tiles of the control and of the tomogram take the same time each.
    searched = measured_voxels(volume) & region
    box = control_box(bounding_box(searched))
    part = 0.9 * volume[box].numel() / (volume[box].numel() + volume.numel()) if made.control else 0.0
    control = None
    if made.control:
        noise = control_volume(volume, box, seed=made.seed)
        probabilities = work.probabilities(noise, None, lambda share: tell(0.05 + part * share))
        control = Control(picks=work.located(probabilities, None), share=noise.numel() / max(int(searched.sum()), 1))
    probabilities = work.probabilities(volume, region, lambda share: tell(0.05 + part + (0.9 - part) * share))
    found = work.located(probabilities, region)
    large = in_large_blobs(probabilities, work.spheres, found)
    tell(1.0)
    return FoundPicks(
        picks=replace(found, positions=_back(found.positions, volume.shape, tomogram.shape)),
        control=control,
        in_large_blobs=large,
        notes=tuple(notes),
        probabilities=probabilities,
        voxel_size=voxel_size if volume.shape == tomogram.shape else description.voxel_size,
    )


def spheres_of_picker(picker: Picker) -> dict[int, Sphere]:
    """Return what each class's particles look like in a picker's probabilities."""
    of = picker.description
    return spheres_of(of.radii, target_radius=of.target_radius, voxel_size=of.voxel_size)


def chosen_thresholds(
    found: FoundPicks,
    picker: Picker,
    *,
    given: float | Mapping[int, float] | None = None,
    rate: float | None = None,
) -> tuple[dict[int, float], str]:
    """Say from which score on picks of each class count.

    Parameters
    ----------
    found
        Picks and control.
    picker
        Whose training may have chosen thresholds.
    given
        Thresholds of one's own, for all classes or by class number; the others are chosen.
    rate
        Picks in noise for each pick, by which the control chooses; by default the training's thresholds are taken, or,
        where it has none, a rate of 0.25.

    Returns
    -------
    Thresholds by class number, and where they come from, in words.

    Raises
    ------
    ValueError
        If a rate is given and there is no control.
    """
    numbers = list(picker.description.class_names)
    if isinstance(given, float | int):
        check_fraction("given", given)
        return dict.fromkeys(numbers, float(given)), "given"
    own = dict(picker.description.thresholds)
    if rate is not None and found.control is None:
        raise ValueError("expected a control for thresholds by its rate, got none; leave `control` on, or give them")
    if found.control is not None and (rate is not None or not own):
        share = RATE if rate is None else rate
        chosen = thresholds_by_control(found.picks, found.control, numbers, rate=share)
        words = f"by the control, {share:g} picks in noise for each"
    elif own:
        chosen, words = {number: own.get(number, DEFAULT_THRESHOLD) for number in numbers}, "chosen by the training"
    else:
        chosen, words = dict.fromkeys(numbers, DEFAULT_THRESHOLD), "the default"
    if given:
        words = f"given, others {words}" if set(given) != set(numbers) else "given"
    return {number: float((given or {}).get(number, chosen[number])) for number in numbers}, words


#: Picks in noise for each pick, where neither training nor user say more.
RATE = 0.25


@dataclass(frozen=True)
class _Work:
    picker: Picker
    made: FindSettings
    spheres: Mapping[int, Sphere]

    def probabilities(
        self, volume: Tensor, region: Tensor | None, tell: Callable[[float], None], *, flips: int = 0
    ) -> Tensor:
        network = self.picker.network
        device = next(network.parameters()).device
        precision = fastest_precision(device) if self.made.precision == AUTO else self.made.precision
        return class_probabilities(
            network,
            volume,
            tile_size=self.made.tile_size,
            overlap=self.made.overlap,
            precision=precision,
            flips=flips or self.made.flips,
            within=region,
            progress=lambda done, total: tell(done / total),
        )

    def located(self, probabilities: Tensor, region: Tensor | None, least: float = LEAST_SCORE) -> Picks:
        return locate(probabilities, self.spheres, method=self.made.method, within=region, least_score=least)


# The tomogram ---------------------------------------------------------------------------------------------------------


def check_voxel_size(voxel_size: float, wanted: float, *, source: str = "") -> None:
    """Raise a `ValueError` unless a tomogram can be resampled to the training's voxel size, Å.

    Parameters
    ----------
    voxel_size, wanted
        Å, of the tomogram and of the training.
    source
        Goes before the message.
    """
    ratio = voxel_size / wanted
    if not 1 / MOST_BINNED <= ratio <= MOST_ENLARGED:
        way = "reconstruct it with a smaller `bin`" if ratio > 1 else "bin it"
        raise ValueError(
            f"{source}expected a tomogram with voxels of about {wanted:g} Å, on which the picker was trained, got "
            f"{voxel_size:g} Å; {way}, correct the voxel size, or train on such voxels"
        )


def _resampled(
    tomogram: Tensor, within: Tensor | None, voxel_size: float, wanted: float
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Bring a tomogram to the training's voxel size, if it has another one."""
    if within is not None and within.shape != tomogram.shape:
        raise ValueError(f"expected `within` of shape {tuple(tomogram.shape)}, got {tuple(within.shape)}")
    if same_size(voxel_size, wanted):
        return tomogram.to(torch.float32), within, []
    check_voxel_size(voxel_size, wanted)
    ratio = voxel_size / wanted
    shape = [max(round(n * ratio), 4) for n in tomogram.shape]
    note = f"resampled from voxels of {voxel_size:g} Å to the training's {wanted:g} Å"
    if ratio > 1:
        note += "; what its larger voxels do not show, the picker misses"
        warnings.warn(f"the tomogram was {note}; reconstruct it with a smaller `bin`", stacklevel=3)
    region = within
    if within is not None:
        # The nearest voxel of the mask.
        rows = [((np.arange(n) + 0.5) * m / n).astype(np.int64) for n, m in zip(shape, within.shape, strict=True)]
        region = within[np.ix_(*rows)]
    return resample_volume(tomogram, shape), region, [note]


def _back(positions: FloatArray, shape: Sequence[int], own: Sequence[int]) -> FloatArray:
    """Turn positions in a resampled volume into those in the tomogram's own voxels."""
    if tuple(shape) == tuple(own):
        return positions
    back: FloatArray = (positions + 0.5) * (np.array(own) / np.array(shape)) - 0.5
    return back


def bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """Find the smallest box that holds all voxels of a mask.

    Raises
    ------
    ValueError
        If there are none.
    """
    if not bool(mask.any()):
        raise ValueError("expected measured voxels within the mask, got none; set another mask or range of sections")
    box = []
    for axis in range(mask.ndim):
        rows = mask.movedim(axis, 0).flatten(1).any(dim=1).nonzero()[:, 0]
        box.append(slice(int(rows[0]), int(rows[-1]) + 1))
    return tuple(box)


def grainy_voxels(volume: Tensor) -> Tensor:
    """Tell which voxels have noise as the tomogram has it: differences of neighbours are 0.4 of the usual ones or more.

    Corners that an aligned series did not cover are filled smoothly: nothing is to be found in them and at their edge.

    Parameters
    ----------
    volume
        `(z, y, x)`.

    Returns
    -------
    `(z, y, x)`, bool, in cubes of 8 voxels a side, without those beside smooth ones.
    """
    steps = torch.zeros_like(volume, dtype=torch.float32)
    steps[..., 1:] = (volume[..., 1:] - volume[..., :-1]).square_()
    if volume.shape[-1] > 1:
        steps[..., 0] = steps[..., 1]
    sides = [min(_CUBE, n) for n in volume.shape]
    power = functional.avg_pool3d(steps[None], sides, ceil_mode=True, count_include_pad=False)[0]
    usual = power[power > 0].median() if bool((power > 0).any()) else power.new_zeros(())
    smooth = functional.max_pool3d((power <= _GRAIN**2 * usual).float()[None], 3, stride=1, padding=1)[0]
    grainy = smooth == 0
    for axis, (side, length) in enumerate(zip(sides, volume.shape, strict=True)):
        grainy = grainy.repeat_interleave(side, dim=axis).narrow(axis, 0, length)
    return grainy


def skewness(volume: Tensor, voxel_size: float) -> float:
    """Return the skewness of a tomogram's means over blocks of 40 Å: below 0 where what is dense is dark."""
    side = max(1, round(_BLOCK / voxel_size))
    side = min(side, *volume.shape)
    means = functional.avg_pool3d(volume[None].to(torch.float32), side)[0].flatten().double()
    deviation = means - means.mean()
    variance = deviation.square().mean()
    return float(deviation.pow(3).mean() / variance.pow(1.5)) if float(variance) > 0 else 0.0


def _with_dark_particles(work: _Work, volume: Tensor, region: Tensor, contrast: str) -> Tensor:
    if contrast == "bright":
        return -volume
    if contrast == AUTO:
        within = measured_voxels(volume) & region
        part = volume[control_box(bounding_box(within), SIGN_SIZE)]
        part = part - part.mean()
        counts = []
        for sign in (1.0, -1.0):
            probabilities = work.probabilities(sign * part, None, lambda share: None, flips=1)
            counts.append(len(work.located(probabilities, None, DEFAULT_THRESHOLD)))
        dark, bright = counts
        skewed = skewness(part, work.picker.description.voxel_size)
        if skewed > 0 and bright >= max(_LEAST, _TIMES * dark):
            raise ValueError(
                f"expected dark particles, as in training, got a tomogram in which they seem to be bright: in its "
                f"middle {dark} are found as it is, {bright} with its sign changed; set `contrast` to 'bright', or to "
                "'dark' if it is right as it is"
            )
    return volume
