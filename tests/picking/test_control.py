"""The control: noise of the same spectrum, what is counted in it, and thresholds from it and from particles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from faket_aug.formats.particles import ParticleList
from faket_aug.picking.clustering import Picks
from faket_aug.picking.control import (
    Control,
    compare_with_control,
    control_box,
    control_volume,
    randomize_phases,
)
from faket_aug.picking.thresholds import choose_thresholds, thresholds_by_control
from tests._helpers import generator

SHAPE = (12, 17, 20)


def _picks(scores: list[float], *, classes: list[int] | None = None, places: list[float] | None = None) -> Picks:
    positions = np.zeros((len(scores), 3))
    positions[:, 2] = 100.0 * np.arange(len(scores)) if places is None else places
    numbers = np.array(classes or [1] * len(scores), dtype=np.int64)
    return Picks(
        classes=numbers, positions=positions, sizes=np.ones(len(scores), dtype=np.int64), scores=np.array(scores)
    )


def _list(places: list[float], name: str = "a") -> ParticleList:
    positions = np.zeros((len(places), 3))
    positions[:, 2] = places
    return ParticleList((name,) * len(places), positions, np.full((len(places), 3, 3), np.nan))


@pytest.mark.parametrize("shape", [SHAPE, (11, 16, 19)])
def test_noise_has_the_same_spectrum(shape: tuple[int, int, int]) -> None:
    """Law: amplitudes and mean stay, the volume is real, phases differ, and nothing of the volume is left."""
    volume = torch.randn(shape, generator=generator(1)) + 5
    volume[3:6, 4:9, 5:9] -= 8
    noise = randomize_phases(volume, seed=3)
    assert noise.dtype == torch.float32
    assert noise.shape == volume.shape
    amplitudes, wanted = torch.fft.rfftn(noise).abs(), torch.fft.rfftn(volume).abs()
    assert torch.allclose(amplitudes, wanted, rtol=1e-3, atol=1e-2)
    assert float(noise.mean()) == pytest.approx(float(volume.mean()), abs=1e-4)
    assert float(noise.std()) == pytest.approx(float(volume.std()), rel=1e-4)
    correlation = np.corrcoef(noise.flatten().numpy(), volume.flatten().numpy())[0, 1]
    assert abs(correlation) < 0.2


def test_flavours_keep_what_they_have_in_common() -> None:
    """Law: noise of a filtered tomogram is the filtered noise of the tomogram, also where signs are flipped."""
    volume = torch.randn(SHAPE, generator=generator(1))
    filtered = torch.fft.irfftn(torch.fft.rfftn(volume) * _flips(), s=SHAPE)
    first, second = randomize_phases(torch.stack([volume, filtered]), seed=3)
    assert torch.equal(first, randomize_phases(volume, seed=3))
    assert torch.allclose(second, torch.fft.irfftn(torch.fft.rfftn(first) * _flips(), s=SHAPE), atol=1e-4)
    box = (slice(2, 10), slice(0, 17), slice(3, 19))
    assert control_volume(torch.stack([volume, filtered]), box).shape == (2, 8, 17, 16)


def test_what_one_flavour_lacks_the_others_keep() -> None:
    """Coefficients that are 0 in the first flavour keep their amplitudes in the others."""
    volume = torch.randn(SHAPE, generator=generator(1))
    first, second = randomize_phases(torch.stack([torch.zeros(SHAPE), volume]), seed=3)
    assert not first.any()
    amplitudes = [torch.fft.rfftn(one).abs() for one in (second, volume)]
    assert torch.allclose(*amplitudes, atol=1e-3)
    assert float(second.std()) == pytest.approx(float(volume.std()), rel=1e-4)


def _flips() -> torch.Tensor:
    """A filter that flips signs beyond a radius, as a contrast transfer function does."""
    z, y, x = torch.fft.fftfreq(12), torch.fft.fftfreq(17), torch.fft.rfftfreq(20)
    radius = (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2).sqrt()
    return torch.where(radius > 0.2, -0.5, 1.0)


def test_noise_comes_by_seed() -> None:
    volume = torch.randn(SHAPE, generator=generator(1))
    assert torch.equal(randomize_phases(volume, seed=1), randomize_phases(volume, seed=1))
    assert not torch.allclose(randomize_phases(volume, seed=1), randomize_phases(volume, seed=2))


def test_gold_is_no_part_of_the_noise() -> None:
    """A bead of thousands of standard deviations does not become ripples everywhere."""
    volume = torch.randn((40, 40, 40), generator=generator(1))
    volume[20, 20, 20] = -5000.0
    noise = control_volume(volume, (slice(0, 40),) * 3)
    assert float(noise.std()) < 1.2


def test_control_box_is_the_middle() -> None:
    region = (slice(10, 50), slice(0, 512), slice(100, 200))
    assert control_box(region, (128, 256, 64)) == (slice(10, 50), slice(128, 384), slice(118, 182))


def test_counts_in_noise_are_scaled() -> None:
    """Noise of a quarter of the tomogram counts four times; classes are counted apart."""
    picks = _picks([0.9, 0.8, 0.3, 0.7], classes=[1, 1, 1, 2])
    control = Control(picks=_picks([0.85, 0.2, 0.1], classes=[1, 1, 2]), share=0.25)
    counts = compare_with_control(picks, control, {1: 0.25, 2: 0.5})
    assert (counts[1].picks, counts[1].noise, counts[1].rate) == (3, 4.0, 1.0)
    assert (counts[2].picks, counts[2].noise, counts[2].rate) == (1, 0.0, 0.0)
    assert compare_with_control(picks, control, {3: 0.1})[3].rate is None


def test_threshold_by_the_controls_rate() -> None:
    """It is the lowest score at which noise gives at most this share."""
    picks = _picks([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    control = Control(picks=_picks([0.65, 0.45, 0.3]), share=1.0)
    assert thresholds_by_control(picks, control, [1], rate=0.0) == {1: 0.7}
    assert thresholds_by_control(picks, control, [1], rate=0.2) == {1: 0.5}
    assert thresholds_by_control(picks, control, [1], rate=1.0) == {1: 0.4}
    # Noise that is better than all picks leaves none.
    worse = Control(picks=_picks([0.95, 0.94]), share=1.0)
    threshold = thresholds_by_control(picks, worse, [1], rate=0.1)[1]
    assert len(picks.above({1: threshold})) == 0


def test_threshold_with_the_best_f1() -> None:
    """Three hits, then false picks: the threshold lies half way between the last hit and the first false pick."""
    picks = _picks([0.9, 0.8, 0.7, 0.5, 0.4], places=[0, 100, 200, 300, 400])
    truth = _list([1, 101, 202, 900])
    settings = {"class_names": {0: "background", 1: "a"}, "radii": {1: 50.0}, "voxel_size": 10.0}
    assert choose_thresholds(picks, truth, **settings) == {1: pytest.approx(0.6)}
    # Recall alone wants them all; the last pick's own score is then the threshold.
    more = _list([1, 101, 202, 401, 900])
    assert choose_thresholds(picks, more, beta=10.0, **settings)[1] == 0.4
    # Two tomograms count as one.
    both = choose_thresholds([picks, _picks([0.45])], [truth, _list([0])], **settings)
    assert both[1] == pytest.approx((0.45 + 0.4) / 2)


def test_a_second_pick_of_a_particle_is_false() -> None:
    picks = _picks([0.9, 0.8], places=[0, 1])
    found = choose_thresholds(picks, _list([0]), class_names={1: "a"}, radii={1: 50.0}, voxel_size=10.0)
    assert found == {1: pytest.approx(0.85)}


def test_thresholds_of_classes_without_hits_or_particles() -> None:
    """Without a hit nothing counts; without particles nothing is said."""
    picks = _picks([0.9, 0.8], classes=[1, 2], places=[0, 100])
    found = choose_thresholds(picks, _list([500]), class_names={1: "a", 2: "b"}, radii={1: 50.0}, voxel_size=10.0)
    assert list(found) == [1]
    assert found[1] > 0.9


def test_bad_input() -> None:
    picks = _picks([0.5])
    with pytest.raises(ValueError, match="particles of each of 1 tomograms with picks, got 2 lists"):
        choose_thresholds(picks, [_list([0]), _list([0])], class_names={1: "a"}, radii={1: 1.0}, voxel_size=1.0)
    bare = Picks(classes=picks.classes, positions=picks.positions, sizes=picks.sizes)
    with pytest.raises(ValueError, match="picks with scores"):
        Control(picks=bare, share=1.0)
    with pytest.raises(ValueError, match="picks with scores"):
        bare.above(0.5)
    with pytest.raises(ValueError, match="a score for each of 1 picks"):
        Picks(classes=picks.classes, positions=picks.positions, sizes=picks.sizes, scores=np.zeros(2))
