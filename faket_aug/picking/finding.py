"""Finding particles in a tomogram with a trained picker: prepared as in training, with a control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import (
    check_choice,
    check_count,
    check_finite,
    check_fraction,
    check_ndim,
    check_positive,
)
from faket_aug.picking.clustering import Picks
from faket_aug.picking.control import Control, control_box, control_volume
from faket_aug.picking.inference import FLIPS, OVERLAP, TILE_SIZE, class_probabilities
from faket_aug.picking.locating import METHODS, PEAKS, locate
from faket_aug.picking.peaks import LEAST_SCORE, Sphere, in_large_blobs, spheres_of
from faket_aug.picking.picker import Picker
from faket_aug.picking.precision import AUTO, PRECISIONS
from faket_aug.picking.preparation import measured_voxels
from faket_aug.picking.thresholds import thresholds_by_control
from faket_aug.picking.tomogram import bounding_box, grainy_voxels, positions_before, resampled, skewness
from faket_aug.tomography.resample import resample_volume

#: What particles are in a tomogram: `auto` looks, and refuses a tomogram in which they seem to be bright.
CONTRASTS = (AUTO, "dark", "bright")
#: (z, y, x), voxels in which both signs are tried.
SIGN_SIZE = (64, 160, 160)
#: So many times as many picks of the other sign, and at least so many, say that particles are bright.
_TIMES, _LEAST = 3.0, 12
#: Score from which on picks are counted there, and where neither training nor control give a threshold.
DEFAULT_THRESHOLD = 0.3


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
        check_choice("precision", self.precision, PRECISIONS)
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
    tomogram: Tensor | Mapping[str, Tensor],
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
        `(z, y, x)`. For a picker of several channels its flavours by name, each `(z, y, x)`; or `(channel, z, y, x)` in
        the order of `PickerDescription.channels`.
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
        If the voxel sizes are too different, particles seem to be bright, or flavours of the training are missing.
    """
    description = picker.description
    given = _flavours(tomogram, description.channels)
    check_positive("voxel_size", voxel_size)
    for one in given:
        check_finite(one, "tomogram")
    made, tell = settings or FindSettings(), progress or (lambda share: None)
    work = _Work(picker, made, spheres_of_picker(picker))
    first, region, notes = resampled(given[0], within, voxel_size, description.voxel_size)
    # What was filled in has no noise, and would look like anything once it is scaled to a standard deviation of 1.
    region = grainy_voxels(first) if region is None else grainy_voxels(first) & region
    volume = first if len(given) == 1 else torch.stack([first, *(_resampled_as(one, first) for one in given[1:])])
    volume = _with_dark_particles(work, volume, region, made.contrast)
    tell(0.05)
    # Tiles of the control and of the tomogram take the same time each.
    searched = measured_voxels(_first(volume)) & region
    box = control_box(bounding_box(searched))
    inside = first[box].numel()
    part = 0.9 * inside / (inside + first.numel()) if made.control else 0.0
    control = None
    if made.control:
        noise = control_volume(volume, box, seed=made.seed)
        probabilities = work.probabilities(noise, None, lambda share: tell(0.05 + part * share))
        control = Control(picks=work.located(probabilities, None), share=inside / max(int(searched.sum()), 1))
    probabilities = work.probabilities(volume, region, lambda share: tell(0.05 + part + (0.9 - part) * share))
    found = work.located(probabilities, region)
    large = in_large_blobs(probabilities, work.spheres, found)
    tell(1.0)
    return FoundPicks(
        picks=replace(found, positions=positions_before(found.positions, first.shape, given[0].shape)),
        control=control,
        in_large_blobs=large,
        notes=tuple(notes),
        probabilities=probabilities,
        voxel_size=voxel_size if first.shape == given[0].shape else description.voxel_size,
    )


def _flavours(tomogram: Tensor | Mapping[str, Tensor], channels: Sequence[str]) -> list[Tensor]:
    """Return the volumes `(z, y, x)` that a picker sees, in its order."""
    names = ", ".join(channels)
    if isinstance(tomogram, Mapping):
        missing = [name for name in channels if name not in tomogram]
        if missing or not channels:
            wanted = f"the flavours {names}" if channels else "one tomogram (z, y, x)"
            raise ValueError(
                f"expected {wanted}, on which the picker was trained, got {', '.join(tomogram) or 'none'}; "
                + (f"add {', '.join(missing)}" if missing else "give the one that it was trained on")
            )
        found = [tomogram[name] for name in channels]
    elif len(channels) > 1 and (tomogram.ndim != 4 or len(tomogram) != len(channels)):
        raise ValueError(
            f"expected `tomogram` by flavour, or (channel, z, y, x) with the flavours {names}, on which the picker was "
            f"trained, got shape {tuple(tomogram.shape)}"
        )
    elif len(channels) < 2 and tomogram.ndim == 4 and len(tomogram) != 1:
        raise ValueError(
            "expected `tomogram` (z, y, x), as the picker was trained on one, got shape "
            f"{tuple(tomogram.shape)}; give one tomogram after the other, or the flavour of the training alone"
        )
    else:
        found = list(tomogram) if tomogram.ndim == 4 else [tomogram]
    for one in found:
        check_ndim("tomogram", one, "z y x")
    shapes = {tuple(one.shape) for one in found}
    if len(shapes) > 1:
        raise ValueError(f"expected flavours of one shape, got {', '.join(map(str, sorted(shapes)))}")
    return found


def _resampled_as(channel: Tensor, first: Tensor) -> Tensor:
    channel = channel.to(torch.float32)
    return channel if channel.shape == first.shape else resample_volume(channel, first.shape)


def _first(volume: Tensor) -> Tensor:
    """The first channel."""
    return volume[0] if volume.ndim == 4 else volume


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
        Picks in noise for each pick, by which the control alone chooses. By default it is 0.25, and thresholds are half
        of those that the training chose, at least: particles of real tomograms score less than simulated ones, but in
        noise there are no look-alikes. Without control the training's thresholds are taken.

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
    if found.control is not None:
        share = RATE if rate is None else rate
        chosen = thresholds_by_control(found.picks, found.control, numbers, rate=share)
        words = f"by the control, {share:g} picks in noise for each"
        if rate is None and own:
            chosen = {number: max(least, LEAST_SHARE * own.get(number, 0.0)) for number, least in chosen.items()}
            words += f", at least {LEAST_SHARE:g} times the training's"
    elif own:
        chosen, words = {number: own.get(number, DEFAULT_THRESHOLD) for number in numbers}, "chosen by the training"
    else:
        chosen, words = dict.fromkeys(numbers, DEFAULT_THRESHOLD), "the default"
    if given:
        words = f"given, others {words}" if set(given) != set(numbers) else "given"
    return {number: float((given or {}).get(number, chosen[number])) for number in numbers}, words


#: Picks in noise for each pick, where the user says nothing. In a real cell the picks were then as many as template
#: matching finds.
RATE = 0.25
#: Share of the training's threshold that the control's is at least.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class _Work:
    picker: Picker
    made: FindSettings
    spheres: Mapping[int, Sphere]

    def probabilities(
        self, volume: Tensor, region: Tensor | None, tell: Callable[[float], None], *, flips: int = 0
    ) -> Tensor:
        return class_probabilities(
            self.picker.network,
            volume,
            tile_size=self.made.tile_size,
            overlap=self.made.overlap,
            precision=self.made.precision,
            flips=flips or self.made.flips,
            within=region,
            progress=lambda done, total: tell(done / total),
        )

    def located(self, probabilities: Tensor, region: Tensor | None, least: float = LEAST_SCORE) -> Picks:
        return locate(probabilities, self.spheres, method=self.made.method, within=region, least_score=least)


def _with_dark_particles(work: _Work, volume: Tensor, region: Tensor, contrast: str) -> Tensor:
    if contrast == "bright":
        return -volume
    if contrast == AUTO:
        within = measured_voxels(_first(volume)) & region
        z, y, x = control_box(bounding_box(within), SIGN_SIZE)
        part = volume[..., z, y, x]
        part = part - (part.mean() if part.ndim == 3 else part.mean(dim=(1, 2, 3), keepdim=True))
        counts = []
        for sign in (1.0, -1.0):
            probabilities = work.probabilities(sign * part, None, lambda share: None, flips=1)
            counts.append(len(work.located(probabilities, None, DEFAULT_THRESHOLD)))
        dark, bright = counts
        skewed = skewness(_first(part), work.picker.description.voxel_size)
        if skewed > 0 and bright >= max(_LEAST, _TIMES * dark):
            raise ValueError(
                f"expected dark particles, as in training, got a tomogram in which they seem to be bright: in its "
                f"middle {dark} are found as it is, {bright} with its sign changed; set `contrast` to 'bright', or to "
                "'dark' if it is right as it is"
            )
    return volume
