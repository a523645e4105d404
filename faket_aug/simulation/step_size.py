"""Choose the step of the style transfer that makes simulated tilts most similar to measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_positive
from faket_aug._runtime.threads import usable_device
from faket_aug._runtime.transfers import sent
from faket_aug.geometry import nearest_tilts
from faket_aug.microscope.imperfections import Imperfections
from faket_aug.microscope.noise import GivenNoise
from faket_aug.microscope.spectra import RINGS, match_spectrum, series_spectra
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.specimens.tilted import Specimen
from faket_aug.statistics import standardize
from faket_aug.style.bank import StyleBank
from faket_aug.style.encoder import StyleEncoder
from faket_aug.style.transfer import style_grams, style_weights_for
from faket_aug.tilts.series import TiltSeries

#: Steps that are tried, in addition to 0. The last one is the published step.
STEPS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.15)
#: Number of tilts that are compared.
TILTS = 5
#: Frequencies that are compared, cycles per pixel: below them specimens differ, above them the spectrum has corners.
_RANGE = (RINGS > 0.02) & (RINGS < 0.48)
#: The mean of a tilt plus and minus so many standard deviations is scaled to 1 and 0.
_DEVIATIONS = 4.0
#: A step is chosen only if it lowers the score by this much.
_WORTH = 0.05


@dataclass(frozen=True, kw_only=True)
class StepTrial:
    """One step that was tried.

    Parameters
    ----------
    step_size, keep_spectrum
        Settings of `FakETSimulator`.
    spectrum
        Distance of the radial power spectra, after each was divided by its total power: the mean of
        `|log(power / power)|` over frequencies and tilts.
    gram
        Distance of the Gram matrices: the norm of the difference divided by the norm, averaged over tilts and (with
        weights) over layers.
    score
        The sum of both distances. Each is first divided by the same distance between measured tilts. A quotient below 1
        counts as 1: to be more similar than measured tilts are to each other is no advantage.
    """

    step_size: float
    keep_spectrum: bool
    spectrum: float
    gram: float
    score: float


@dataclass(frozen=True, kw_only=True)
class StepChoice:
    """The chosen step, and all steps that were tried.

    Parameters
    ----------
    step_size, keep_spectrum
        Settings of `FakETSimulator`. A step of 0 means no style transfer.
    trials
        All steps that were tried; the first one is 0.
    natural_spectrum, natural_gram
        The distances between measured series. If there is only one series: between the halves of its tilts.
    """

    step_size: float
    keep_spectrum: bool
    trials: tuple[StepTrial, ...]
    natural_spectrum: float
    natural_gram: float

    def applied(self, simulator: FakETSimulator) -> FakETSimulator:
        """Return a simulator with the chosen step."""
        return replace(simulator, step_size=self.step_size, keep_spectrum=self.keep_spectrum)

    def report(self) -> list[str]:
        """Return lines of text: the steps that were tried, and why this one was chosen."""
        lines = [
            f"{_name(trial)}: spectrum {trial.spectrum:.3f}, Gram {trial.gram:.3f}, score {trial.score:.2f}"
            for trial in self.trials
        ]
        between = f"between measured tilts: spectrum {self.natural_spectrum:.3f}, Gram {self.natural_gram:.3f}"
        chosen = next(t for t in self.trials if (t.step_size, t.keep_spectrum) == (self.step_size, self.keep_spectrum))
        gain = self.trials[0].score - chosen.score
        why = f"a score lower by {gain:.2f} than without" if self.step_size else "no step brings tilts nearer"
        return [*lines, between, f"chosen: {_name(chosen)} ({why})"]


def _name(trial: StepTrial) -> str:
    return f"step {trial.step_size:g}{', spectrum kept' if trial.keep_spectrum else ''}"


def choose_step_size(
    simulator: FakETSimulator,
    specimens: Sequence[Specimen],
    held_out: Sequence[TiltSeries],
    *,
    steps: Sequence[float] = STEPS,
    tilts: int = TILTS,
    seed: int = 0,
) -> StepChoice:
    """Choose the step of the style transfer by measured tilts that are not in the style bank.

    Every step is tried without and with `keep_spectrum`. The step 0, no style transfer, is one of the choices. This is
    not part of the published method, whose step is 0.15.

    Parameters
    ----------
    simulator
        A simulator of the modality `"faket"`. Its style bank must have none of the `held_out` series.
    specimens
        Specimens of the kind that will be simulated; one is enough.
    held_out
        Unlabelled tilt-series of the same microscope, see `split_series`.
    steps
        Steps that are tried, in addition to 0.
    tilts
        Number of tilts that are compared.
    seed
        Seed of the noise, which is the same for all steps.

    Raises
    ------
    ValueError
        If the simulator has another modality, there are no specimens or no series, or a step is negative.
    """
    if simulator.modality != "faket":
        raise ValueError(f'expected a simulator of the modality "faket", got {simulator.modality!r}')
    if not specimens or not held_out:
        raise ValueError(
            f"expected specimens and held-out tilt-series, got {len(specimens)} and {len(held_out)}; give both"
        )
    for step in steps:
        check_positive("steps", step, zero=True)
    angles = np.asarray(simulator.tilt_angles)
    index = np.unique(np.linspace(0, len(angles) - 1, tilts).round().astype(int))
    chosen = angles[index]
    measured = [_Look.of(_at(series, chosen), simulator) for series in held_out]
    natural = _natural(measured, [_at(series, chosen) for series in held_out], simulator)

    def tilts_of(modality: str) -> list[Tensor]:
        made = replace(simulator, modality=modality)
        every = [made(specimen, seed=seed, tomogram=i).tiltseries for i, specimen in enumerate(specimens)]
        return [one[torch.from_numpy(index)] for one in every]

    def tried(images: Sequence[Tensor], step: float, kept: bool) -> StepTrial:
        looks = [_Look.of(TiltSeries(tilts=one, tilt_angles=chosen), simulator) for one in images]
        distances = [look.distances(one, simulator.style_weights) for look in looks for one in measured]
        spectrum, gram = (float(value) for value in np.mean(distances, axis=0))
        score = max(spectrum / natural[0], 1.0) + max(gram / natural[1], 1.0)
        return StepTrial(step_size=step, keep_spectrum=kept, spectrum=spectrum, gram=gram, score=score)

    noisy = tilts_of("noisy")
    content = noisy if isinstance(simulator.noise_model, GivenNoise) else tilts_of("content")
    trials = [tried(noisy, 0.0, False)]
    # Of these tilts alone; what was drawn for each tilt is in them already.
    plain: dict[str, Any] = {"ctf": None, "ctf_correction": None, "imperfections": Imperfections()}
    for step in (step for step in steps if step > 0):
        made = replace(simulator, tilt_angles=chosen, step_size=step, keep_spectrum=False, **plain)
        after = [made.restyle(a, b, series=0) for a, b in zip(content, noisy, strict=True)]
        trials.append(tried(after, step, False))
        # The distances do not depend on means and standard deviations, which `restyle` sets at its end.
        trials.append(tried([match_spectrum(a, b) for a, b in zip(after, noisy, strict=True)], step, True))
    best = min(trials, key=lambda trial: trial.score)
    best = best if best.score < trials[0].score - _WORTH else trials[0]
    return StepChoice(
        step_size=best.step_size,
        keep_spectrum=best.keep_spectrum,
        trials=tuple(trials),
        natural_spectrum=natural[0],
        natural_gram=natural[1],
    )


def choose_step_by_series(
    series: Sequence[TiltSeries],
    specimens: Sequence[Specimen],
    features: StyleEncoder,
    *,
    bank: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    **settings: Any,
) -> StepChoice:
    """Choose the step of the style transfer by measured tilt-series, some of which are held out of the style bank.

    Parameters
    ----------
    series
        Unlabelled tilt-series of one microscope; `split_series` shares them out.
    specimens
        As for `choose_step_size`.
    features
        The encoder.
    bank
        Settings of `StyleBank.build`.
    search
        Settings of `choose_step_size`.
    **settings
        Of `FakETSimulator`, beside its style.
    """
    style, held_out = split_series(series)
    made = StyleBank.build(style, features, **(bank or {}))
    simulator = FakETSimulator(**(settings | {"modality": "faket", "style": made, "features": features}))
    return choose_step_size(simulator, specimens, held_out, **(search or {}))


def split_series(series: Sequence[TiltSeries]) -> tuple[list[TiltSeries], list[TiltSeries]]:
    """Divide tilt-series into those for the style bank and those held out. A single series is divided tilt by tilt."""
    if len(series) > 1:
        return list(series[::2]), list(series[1::2])
    one = series[0]
    style, held_out = (
        replace(
            one,
            tilts=one.tilts[first::2],
            tilt_angles=one.tilt_angles[first::2],
            metadata=None,
            measured=None if one.measured is None else one.measured[first::2],
        )
        for first in (0, 1)
    )
    return [style], [held_out]


def _at(series: TiltSeries, angles: FloatArray) -> TiltSeries:
    """Take the tilts that are nearest to some angles, and give them these angles."""
    index = torch.from_numpy(nearest_tilts(angles, series.tilt_angles))
    measured = None if series.measured is None else series.measured[index]
    return replace(series, tilts=series.tilts[index], tilt_angles=angles, metadata=None, measured=measured)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """The look of tilts: the power spectrum `(tilt, ring)`, and the Gram matrices of each layer."""

    power: FloatArray
    grams: Mapping[int, Tensor]

    @classmethod
    def of(cls, series: TiltSeries, simulator: FakETSimulator) -> _Look:
        transfer = simulator.style_transfer
        assert transfer is not None, "the modality needs it"
        place = usable_device(simulator.device)
        tilts = sent(series.tilts, place)
        measured = None if series.measured is None else sent(series.measured, place)
        spectra = series_spectra(tilts, series.tilt_angles, name=series.name, measured=measured)
        # The mean over pixels, so that images of other sizes compare.
        total = (spectra.power * spectra.counts).sum(axis=1, keepdims=True) / spectra.counts.sum()
        # Each tilt is scaled to [0, 1] by its standard deviation, so that a bright bead does not change the texture.
        unit = (0.5 + standardize(tilts, measured) / (2 * _DEVIATIONS)).clamp(0.0, 1.0)
        layers = transfer.bank.style_layers
        encoder, budget = transfer.encoder_on(unit.device), simulator.memory_budget
        grams = style_grams(unit, encoder, layers=layers, memory_budget=budget, measured=measured)
        return cls(power=(spectra.power / total)[:, _RANGE], grams=grams)

    def distances(self, other: _Look, style_weights: Sequence[float] | None) -> tuple[float, float]:
        """Return the distances to other tilts at the same angles: of spectra, and of Gram matrices."""
        spectrum = float(np.abs(np.log(self.power / other.power)).mean())
        weights = style_weights_for(tuple(self.grams), style_weights)
        apart = []
        for weight, (layer, gram) in zip(weights, self.grams.items(), strict=True):
            theirs = other.grams[layer]
            apart.append(weight * float(((gram - theirs).norm(dim=(1, 2)) / theirs.norm(dim=(1, 2))).mean()))
        return spectrum, sum(apart)


def _natural(looks: Sequence[_Look], series: Sequence[TiltSeries], simulator: FakETSimulator) -> tuple[float, float]:
    """Return the distances between measured series, or between the halves of a single series."""
    pairs = list(combinations(looks, 2))
    if not pairs:
        (one,) = series
        middle = one.tilts.shape[1] // 2
        halves = [
            replace(one, tilts=one.tilts[:, part], measured=None if one.measured is None else one.measured[:, part])
            for part in (slice(middle), slice(middle, None))
        ]
        pairs = [(_Look.of(halves[0], simulator), _Look.of(halves[1], simulator))]
    spectrum, gram = np.mean([first.distances(second, simulator.style_weights) for first, second in pairs], axis=0)
    return float(max(spectrum, 1e-6)), float(max(gram, 1e-6))
