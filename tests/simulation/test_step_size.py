"""The choice of a step: tilts that were made with one, or without, are what it has to find again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from faket_aug import ContrastTransfer, ExposureDamage, FakETSimulator, Imperfections, StyleBank, TiltSeries
from faket_aug.microscope.spectra import RINGS, match_spectrum, series_spectra
from faket_aug.simulation.step_size import STEPS, choose_step_size, split_series
from faket_aug.statistics import standardize
from tests._helpers import ANGLES, narrow_vgg, noise_model, simulator, specimen, style_series

SIZE = (16, 96, 96)


@pytest.fixture
def styled(tmp_path: Path) -> FakETSimulator:
    """A simulator of noisy tilts that a step takes far towards a style of stripes."""
    features = narrow_vgg(tmp_path)
    y = torch.arange(96.0)
    stripes = torch.sin(y * 1.3)[:, None] * 30 + torch.zeros(len(ANGLES), 96, 96) + torch.linspace(0, 9, 96)
    bank = StyleBank.build(TiltSeries(tilts=stripes, tilt_angles=np.array(ANGLES)), features, style_layers=(1, 6))
    return simulator("faket", tmp_path, style=bank, features=features, noise=noise_model())


def _measured(made: FakETSimulator, seed: int) -> TiltSeries:
    tilts = made(specimen(seed, shape=SIZE), seed=seed).tiltseries
    return TiltSeries(tilts=tilts, tilt_angles=np.array(ANGLES), name=f"series {seed}")


@pytest.mark.parametrize("step", [0.0, 0.05])
def test_the_step_of_the_measured_tilts_is_found(styled: FakETSimulator, step: float) -> None:
    """Tilts that a microscope with this very step made: it is found again, and none where there was none."""
    measured = [_measured(replace(styled, step_size=step), seed) for seed in (4, 5)]
    choice = choose_step_size(styled, [specimen(6, shape=SIZE)], measured)
    assert (choice.step_size, choice.keep_spectrum) == (step, False)
    assert [trial.step_size for trial in choice.trials] == [0.0, *np.repeat(STEPS, 2)]
    best = next(t for t in choice.trials if (t.step_size, t.keep_spectrum) == (step, False))
    assert best.score == min(trial.score for trial in choice.trials)
    assert choice.applied(styled).step_size == step
    assert f"chosen: step {step:g}" in choice.report()[-1]
    assert "between measured tilts: spectrum" in choice.report()[-2]


def test_one_series_is_shared_out() -> None:
    """Tilts of the bank are never those that are held out."""
    one = style_series(0)
    (style,), (held_out,) = split_series([one])
    assert sorted([*style.tilt_angles, *held_out.tilt_angles]) == sorted(one.tilt_angles)
    assert not set(style.tilt_angles) & set(held_out.tilt_angles)
    several = [style_series(seed) for seed in range(3)]
    style_, held_out_ = split_series(several)
    assert [len(style_), len(held_out_)] == [2, 1]
    assert style_[1] is several[2]


def test_one_held_out_series_is_compared_with_itself(styled: FakETSimulator) -> None:
    choice = choose_step_size(
        styled, [specimen(6, shape=SIZE)], [_measured(replace(styled, step_size=0.0), 4)], steps=(0.15,)
    )
    assert choice.natural_spectrum > 0
    assert choice.step_size == 0


def test_what_cannot_be_chosen_from(styled: FakETSimulator) -> None:
    held_out = [style_series(0)]
    with pytest.raises(ValueError, match="expected a simulator of the modality \"faket\", got 'noisy'"):
        choose_step_size(replace(styled, modality="noisy"), [specimen(0)], held_out)
    with pytest.raises(ValueError, match="expected specimens and held-out tilt-series, got 0 and 1"):
        choose_step_size(styled, [], held_out)
    with pytest.raises(ValueError, match="expected `steps` .*got -1"):
        choose_step_size(styled, [specimen(0)], held_out, steps=(0, -1))


def test_tilts_of_other_sizes_compare(styled: FakETSimulator) -> None:
    """The specimen's tilts need not be as large as the measured ones: the same noise is no farther."""
    grain = torch.randn(len(ANGLES), 192, 160, generator=torch.Generator().manual_seed(1))
    large, small = (
        TiltSeries(tilts=one, tilt_angles=np.array(ANGLES)) for one in (grain, grain[:, :96, :96].contiguous())
    )
    found = [
        choose_step_size(styled, [specimen(6, shape=SIZE)], [one], steps=()).trials[0].spectrum
        for one in (large, small)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.2)


def test_settings_of_each_tilt_belong_to_the_whole_series(styled: FakETSimulator) -> None:
    """Compared are some tilts of the series as it would be simulated, with what is said of every one of them."""
    angles = np.linspace(-60, 60, 11)
    series = TiltSeries(tilts=torch.randn(11, 96, 96, generator=torch.Generator().manual_seed(1)), tilt_angles=angles)
    damage = ExposureDamage(per_tilt=3.0, before=tuple(3.0 * number for number in range(11)))
    defocus = ContrastTransfer(defocus=tuple(np.linspace(2, 3, 11)))
    given = replace(styled, tilt_angles=angles, ctf=defocus, imperfections=Imperfections(damage=damage))
    choice = choose_step_size(given, [specimen(6, shape=SIZE)], [series], steps=(0.05,))
    other = choose_step_size(
        replace(given, imperfections=Imperfections()), [specimen(6, shape=SIZE)], [series], steps=(0.05,)
    )
    assert len(choice.trials) == 3
    assert choice.trials[0].spectrum != other.trials[0].spectrum


def test_no_step_leaves_tilts_as_they_are(styled: FakETSimulator) -> None:
    thing = specimen(6, shape=SIZE)
    made, noisy = replace(styled, step_size=0.0)(thing, seed=2), replace(styled, modality="noisy")(thing, seed=2)
    assert torch.equal(made.tiltseries, noisy.tiltseries)


def test_tilts_keep_the_spectrum_they_had(styled: FakETSimulator) -> None:
    """With `keep_spectrum` the transfer changes tilts, but not how their power is spread over frequencies."""
    angles, thing = np.array(ANGLES), specimen(6, shape=SIZE)
    noisy, moved, kept = (
        standardize(made(thing, seed=3).tiltseries)
        for made in (
            replace(styled, modality="noisy"),
            replace(styled, step_size=0.1),
            replace(styled, step_size=0.1, keep_spectrum=True),
        )
    )
    assert torch.allclose(kept, standardize(match_spectrum(moved, noisy)), atol=1e-3)
    assert not torch.allclose(kept, noisy, atol=0.1)
    raw = [
        m(thing, seed=3).tiltseries for m in (replace(styled, modality="noisy"), replace(styled, keep_spectrum=True))
    ]
    assert torch.allclose(raw[0].std(dim=(1, 2)), raw[1].std(dim=(1, 2)), rtol=1e-3)
    power = [series_spectra(one, angles).power[:, (RINGS > 0.03) & (RINGS < 0.5)] for one in (noisy, moved, kept)]
    assert np.abs(np.log(power[2] / power[0])).mean() < 0.2 * np.abs(np.log(power[1] / power[0])).mean()


def test_what_was_not_measured_does_not_count(styled: FakETSimulator) -> None:
    """A step is chosen by measured pixels alone, of one held-out series (its halves) and of several."""
    known = torch.ones(len(ANGLES), 96, 96, dtype=torch.bool)
    known[:, :20] = False
    measured = [_measured(replace(styled, step_size=0.0), seed) for seed in (4, 5)]
    for held_out in (measured[:1], measured):
        choices = [
            choose_step_size(
                styled,
                [specimen(6, shape=SIZE)],
                [replace(one, tilts=torch.where(known, one.tilts, fill), measured=known) for one in held_out],
                steps=(0.15,),
            )
            for fill in (0.0, 1e4)
        ]
        assert choices[0] == choices[1]


@pytest.mark.gpu
def test_the_step_is_found_on_a_gpu(styled: FakETSimulator) -> None:
    """Measured tilts may lie on a GPU, and the looks are compared there; the distances are the CPU's."""
    measured = [style_series(seed) for seed in (3, 4)]
    there = [replace(one, tilts=one.tilts.cuda()) for one in measured]
    thing = specimen(6, shape=SIZE)
    expected = choose_step_size(replace(styled, step_size=0.0), [thing], measured, steps=()).trials[0]
    found = choose_step_size(replace(styled, step_size=0.0, device="cuda"), [thing], there, steps=(0.05,))
    assert len(found.trials) == 3
    # The noise is another one.
    assert found.trials[0].spectrum == pytest.approx(expected.spectrum, rel=0.1)
    assert found.trials[0].gram == pytest.approx(expected.gram, rel=0.1)
