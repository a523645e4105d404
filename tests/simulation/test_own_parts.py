"""Parts of one's own: what they must have is checked when they are given, and records tell them apart."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import ANGLES, assert_same_items, dataset, loader, noise_model, simulator, specimen
from torch import Tensor

from faket_aug import (
    ContrastTransfer,
    FakETSimulator,
    NoiseModel,
    SimulatedTomogram,
    SimulationError,
    SimulationRecord,
    Variation,
    VariedSimulator,
    backproject,
    reconstruct,
)

THING = specimen(0)


# --- a reconstruction of one's own ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unfiltered:
    """A back-projection with a factor."""

    factor: float = 1.0

    def __call__(self, tilts: Tensor, tilt_angles: Any, *, depth: int, bin: int) -> Tensor:
        assert bin == 1
        return self.factor * backproject(tilts, tilt_angles, depth=depth)


def by_function(tilts: Tensor, tilt_angles: Any, *, depth: int, bin: int) -> Tensor:
    """A function of a module."""
    return reconstruct(tilts, tilt_angles, depth=depth, bin=bin, filter="hann")


def test_a_reconstruction_is_used() -> None:
    """Its tomogram takes the place of the filtered back-projection, after the correction; halves, flavours use it."""
    made = simulator(
        "noisy", ctf=ContrastTransfer(defocus=2.0), ctf_correction="phase-flip", reconstruction=Unfiltered()
    )
    found = made(THING, seed=1, halves="tilts", clean=True, flavours=("raw", "phase-flip"))
    tilts, angles = found.tiltseries, np.array(ANGLES)
    assert torch.allclose(found.flavours["raw"], backproject(tilts, angles, depth=16), atol=1e-4)
    assert torch.equal(found.flavours["phase-flip"], found.tomogram)
    assert not torch.allclose(found.flavours["raw"], found.tomogram, atol=1e-2)
    assert found.halves is not None
    assert torch.allclose(found.halves[0], backproject(tilts[0::2], angles[0::2], depth=16), atol=1e-4)
    own = reconstruct(simulator("noisy")(THING, seed=1).tiltseries, ANGLES, depth=16, filter="hann")
    by = simulator("noisy", reconstruction=by_function)(THING, seed=1)
    assert torch.allclose(by.tomogram, own, atol=1e-5)
    assert "reconstruction" not in simulator("noisy").settings()


def test_reconstructions_are_told_apart() -> None:
    """Class and attributes stand in the record; another one is refused."""
    made = [simulator("noisy", reconstruction=one) for one in (Unfiltered(), Unfiltered(2.0), by_function, None)]
    records = [one.draw(THING, seed=0) for one in made]
    assert len({str(record.settings.get("reconstruction")) for record in records}) == 4
    assert records[1].settings["reconstruction"] == {"class": f"{__name__}.Unfiltered", "settings": {"factor": 2.0}}
    record = SimulationRecord.from_json(records[0].to_json())
    assert torch.equal(made[0].simulate(THING, record).tomogram, made[0](THING, seed=0).tomogram)
    for other in made[1:3]:
        with pytest.raises(ValueError, match="got others for reconstruction"):
            other.simulate(THING, record)


def test_a_reconstruction_in_workers() -> None:
    """It pickles, and items are the same for all workers."""
    made = simulator("noisy", reconstruction=Unfiltered())
    expected = list(dataset(made, count=2))
    for start in ("fork", "spawn"):
        assert_same_items(loader(dataset(made, count=2), workers=2, start=start, batch_size=None), expected)
    assert pickle.loads(pickle.dumps(made)).settings() == made.settings()


@pytest.mark.parametrize(
    ("reconstruction", "message"),
    [
        (3.0, r"expected a `reconstruction` with a call `\(tilts, tilt_angles, \*, depth, bin\)`, got float"),
        (lambda tilts: tilts, "expected a `reconstruction` with a call"),
        (lambda tilts, tilt_angles, *, depth, bin: tilts, "expected a function of a module"),
        (Unfiltered, "expected a `reconstruction` with a call"),
        (Unfiltered(factor=object()), r"Unfiltered\.factor; give the class a method `settings\(\)`"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_reconstruction(reconstruction: Any, message: str) -> None:
    """It is told when the simulator is made."""
    with pytest.raises(TypeError, match=message):
        simulator("noisy", reconstruction=reconstruction)


class Wrong:
    """It returns what it was told to."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __call__(self, tilts: Tensor, tilt_angles: Any, *, depth: int, bin: int) -> Any:
        return self.result

    def settings(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "expected .*Wrong to return a floating-point tensor, got NoneType"),
        (torch.zeros(16, 24, 32, dtype=torch.int64), "to return a floating-point tensor, got torch.int64"),
        (torch.zeros(16, 24, 30), r"to return a tomogram of \(16, 24, 32\) voxels .* got \(16, 24, 30\)"),
    ],
)
def test_what_a_reconstruction_returns(result: Any, message: str) -> None:
    """Something else than a tomogram of the labels' shape is an error that names the class and the specimen."""
    with pytest.raises(SimulationError, match=f"specimen 0: .*{message}"):
        simulator("noisy", reconstruction=Wrong(result))(THING, seed=0)


# --- a noise model of one's own ---------------------------------------------------------------------------------------


class Grain(NoiseModel):
    """Noise of a strength that its text does not tell."""

    def __init__(self, strength: Any) -> None:
        self.strength = strength

    def sample(self, clean: Tensor, noise: Tensor, tilt_angles: Any, *, noise_scale: float = 1.0) -> Tensor:
        return clean + self.strength * noise_scale * noise

    def to_json(self) -> str:
        return '"grain"'


class Deaf(Grain):
    """It lacks a parameter."""

    def sample(self, clean: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        return clean


def test_noise_models_are_told_apart_by_all_that_they_hold() -> None:
    """Two models with one text, but other attributes, have other records; those of before are still made again."""
    one, other = (FakETSimulator(tilt_angles=ANGLES, modality="noisy", noise=Grain(s)) for s in (1.0, 2.0))
    record = one.draw(THING, seed=0)
    assert record.settings["noise_settings"] == {"strength": 1.0}
    with pytest.raises(ValueError, match="got others for noise_settings"):
        other.simulate(THING, record)
    older = {key: value for key, value in record.settings.items() if key not in ("noise_class", "noise_settings")}
    again = one.simulate(THING, SimulationRecord(**{**vars(record), "settings": older}))
    assert torch.equal(again.tomogram, one(THING, seed=0).tomogram)
    assert "noise_settings" not in simulator("noisy", noise=noise_model()).settings()


def test_what_is_no_noise_model() -> None:
    """Another signature, and what cannot be told apart, are told when the simulator is made."""
    with pytest.raises(
        TypeError, match=r"expected .*Deaf with a method `sample\(clean, noise, tilt_angles, \*, noise_s"
    ):
        FakETSimulator(tilt_angles=ANGLES, modality="noisy", noise=Deaf(1.0))
    with pytest.raises(TypeError, match=r"Grain\.strength; give the class a method `settings\(\)`"):
        FakETSimulator(tilt_angles=ANGLES, modality="noisy", noise=Grain(object()))


# --- a simulator of one's own -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doubled:
    """It goes on from another simulator's tomogram."""

    inner: Any
    factor: float = 2.0
    device = "cpu"
    threads = 1

    def __call__(self, specimen: Any, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulatedTomogram:
        made = self.inner(specimen, seed=seed, epoch=epoch, tomogram=tomogram)
        told = made.record.told_by(self)
        return SimulatedTomogram(**{**vars(made), "tomogram": self.factor * made.tomogram, "record": told})


@dataclass(frozen=True)
class Alone:
    """It makes tilts and tomogram by itself."""

    strength: float = 1.0
    device = "cpu"
    threads = 1

    def __call__(self, specimen: Any, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulatedTomogram:
        record = SimulationRecord.of(self, specimen, seed=seed, epoch=epoch, tomogram=tomogram)
        generator = torch.Generator().manual_seed(record.noise_seed)
        noise = self.strength * torch.randn(specimen.density.shape, generator=generator)
        return SimulatedTomogram(
            tomogram=noise - specimen.density,
            tiltseries=-specimen.density.sum(0, keepdim=True),
            tilt_angles=np.zeros(1),
            labels=specimen.labels,
            particles=specimen.particles,
            voxel_size=specimen.voxel_size,
            class_names=specimen.class_names,
            record=record,
        )


def test_simulators_are_told_apart() -> None:
    """Records name class and settings of a simulator, and of those that it goes on from."""
    base = simulator("noisy")
    records = [made(THING, seed=3).record for made in (Doubled(base), Doubled(base, 3.0), Alone(), Alone(2.0), base)]
    assert len({record.to_json() for record in records}) == 5
    assert records[0].settings["simulator"]["class"] == f"{__name__}.Doubled"
    assert records[0].settings["simulator"]["settings"]["factor"] == 2.0
    twice = Doubled(Doubled(base))(THING, seed=3).record
    assert [one["settings"]["factor"] for one in twice.settings["simulator"]] == [2.0, 2.0]
    assert SimulationRecord.from_json(twice.to_json()) == twice
    assert set(records[2].versions) == set(records[4].versions)


def test_a_simulator_that_stands_alone(tmp_path: Any) -> None:
    """Its tomograms are items and files."""
    made = Alone()(THING, seed=1, tomogram=2)
    assert made.record.noise_seed == simulator().draw(THING, seed=1, tomogram=2).noise_seed
    made.save(tmp_path / "a")
    assert SimulationRecord.read(tmp_path / "a") == made.record
    expected = list(dataset(Alone()))  # type: ignore[arg-type]
    assert_same_items(loader(dataset(Alone()), workers=2, batch_size=None), expected)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Alone\.strength; give the class a method `settings\(\)`"):
        Alone(strength=object())(THING, seed=0)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Broken(Alone):
    """It makes tomograms that do not fit their labels, or are not finite."""

    crop: int = 0

    def __call__(self, specimen: Any, *, seed: int, epoch: int = 0, tomogram: int = 0) -> SimulatedTomogram:
        made = super().__call__(specimen, seed=seed, epoch=epoch, tomogram=tomogram)
        wrong = made.tomogram[self.crop :] if self.crop else made.tomogram / 0.0
        return SimulatedTomogram(**{**vars(made), "tomogram": wrong})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Broken(crop=4), r"the labels' shape, got \(12, "),
        (Broken(), "Broken to make a tomogram of finite numbers, got NaN"),
    ],
)
def test_what_a_simulator_makes_is_checked(broken: Broken, message: str) -> None:
    """A tomogram of another shape would move all patches; one that is not finite would spoil a network."""
    for made in (broken, VariedSimulator(broken)):
        with pytest.raises((ValueError, SimulationError), match=message):
            list(dataset(made))  # type: ignore[arg-type]


def test_a_simulator_in_a_mixture() -> None:
    """It is drawn as the package's are, nothing of it is varied, and its records make its tomograms again."""
    mixed = VariedSimulator([simulator("noisy"), Doubled(simulator("noisy")), Alone()])
    found = [mixed(THING, seed=4, tomogram=number) for number in range(12)]
    numbers = [made.record.settings["drawn"]["simulator"] for made in found]
    assert set(numbers) == {0, 1, 2}
    for number, made in enumerate(found):
        assert mixed.draw(THING, seed=4, tomogram=number) == made.record
        again = mixed.simulate(THING, SimulationRecord.from_json(made.record.to_json()))
        assert torch.equal(again.tomogram, made.tomogram)
        assert again.record == made.record
    alone = numbers.index(2)
    assert torch.equal(found[alone].tomogram, Alone()(THING, seed=4, tomogram=alone).tomogram)
    other = VariedSimulator([simulator("noisy"), Doubled(simulator("noisy")), Alone(3.0)])
    with pytest.raises(ValueError, match="expected a record with the settings of Alone, got others"):
        other.simulate(THING, found[alone].record)
    assert mixed.with_settings(modality="noiseless").simulators[2] == Alone()
    expected = list(dataset(mixed, tomograms_per_epoch=5))  # type: ignore[arg-type]
    again_in = loader(dataset(mixed, tomograms_per_epoch=5), workers=2, batch_size=None)  # type: ignore[arg-type]
    assert_same_items(again_in, expected)


def test_a_simulator_that_draws_within_a_mixture() -> None:
    """What it has drawn itself stays in the record."""
    inner = VariedSimulator(simulator("noisy"), Variation(filter=("hann",)))
    record = VariedSimulator([Doubled(inner)])(THING, seed=2).record
    assert record.settings["drawn"]["filter"] is None
    assert record.settings["inner_drawn"]["filter"] == "hann"


@pytest.mark.parametrize(
    ("give", "error", "message"),
    [
        (lambda: VariedSimulator(None), TypeError, "expected a simulator with `device`"),  # type: ignore[arg-type]
        (lambda: VariedSimulator(["x"]), TypeError, "expected a simulator with `device`"),  # type: ignore[list-item]
        (lambda: VariedSimulator([VariedSimulator(simulator("noisy"))]), TypeError, "that are not varied themselves"),
        (
            lambda: VariedSimulator(Alone(), Variation(missing=0.1)),
            ValueError,
            "expected no ranges for Alone, a simulator of your own",
        ),
        (
            lambda: dataset(VariedSimulator(Alone()), halves="tilts"),  # type: ignore[arg-type]
            TypeError,
            "a call .*halves=.*got Alone without",
        ),
    ],
)
def test_what_a_mixture_refuses(give: Any, error: type[Exception], message: str) -> None:
    """What is no simulator, what is a mixture itself, ranges of a simulator of one's own, and what it cannot make."""
    with pytest.raises(error, match=message):
        give()
