"""The arms of a comparison: what each kind of training data is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from faket_aug._checks import check_choice, check_count, check_positive
from faket_aug._reading import read_table
from faket_aug._settings import IsPath, Setting, from_library, settings_of
from faket_aug.simulation.plain_settings import MIXTURE, WEIGHT, mixture_setting, simulator_settings, variation_setting
from faket_aug.simulation.simulator import MODALITIES, RENAMED, FakETSimulator

#: Where an arm's patches come from: tomograms of the target's own tilt-series, or simulated ones.
SOURCES = ("measured", "simulated")
#: For `step_size`: chosen by tilts that are held out.
AUTO = "auto"
#: What simulated tilts are of: the training specimens, or new ones for every tomogram.
SPECIMENS = ("train", "generated")
#: How the noise of simulated tilts is fitted.
NOISES = ("paired", "unpaired")
#: The file of an encoder's weights.
Encoder = Annotated[str, IsPath(words=("torchvision", "random"))]


def _simulator() -> dict[str, Setting]:
    """The settings of an arm's simulator: those of `FakETSimulator` that the arm does not have itself."""
    found = simulator_settings()
    del found["modality"]
    step = found["step_size"]
    step = replace(step, hint=Literal["auto"] | step.hint, help=f'{step.help} Or "{AUTO}".')
    return found | {"step_size": step, "variation": variation_setting()}


SIMULATOR = _simulator()


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One kind of training data.

    Parameters
    ----------
    source
        `"measured"`: the target's own labelled tomograms (BENCHMARK); `"simulated"`: made from the specimens.
    modality
        Of the simulation, see `FakETSimulator`.
    specimens
        `"train"`: the training specimens, again and again; `"generated"`: new ones without end, see
        `Comparison.generated`.
    noise
        `"paired"`: as published, by the truth of the training specimens' tilts; `"unpaired"`: transfer function and
        spectra without it, see `NoiseModel.fit_unpaired`.
    weights
        Of the encoder, in place of the comparison's: `"random"` for FAKET_RANDOM.
    start
        Name of the arm whose network (of the same seed) this one goes on from.
    tomograms
        How many of the training specimens to use; all by default.
    steps, learning_rate
        In place of the comparison's.
    simulator
        More settings of `FakETSimulator`, by name; those of `ctf` and `imperfections` are tables. `step_size` may be
        `"auto"`: tilts that are held out choose it, see `choose_step_size`. And `variation` of `VariedSimulator`, and
        `mixture`: a list of simulators, each with its `weight`, its `variation`, and `modality`, `noise` and settings
        in place of the arm's.
    """

    source: str = "simulated"
    modality: str = from_library(FakETSimulator, "modality")
    specimens: str = "train"
    noise: str = "paired"
    weights: Encoder | None = None
    start: str | None = None
    tomograms: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    simulator: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("source", self.source, SOURCES)
        check_choice("modality", self.modality, MODALITIES)
        check_choice("specimens", self.specimens, SPECIMENS)
        check_choice("noise", self.noise, NOISES)
        for name in ("tomograms", "steps"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        self.mixture()
        step = self.simulator_settings().get("step_size")
        if step == AUTO and self.modality != "faket":
            raise ValueError(f'expected `step_size` as a number, or "{AUTO}" with the modality "faket", got {step!r}')
        if step == AUTO and "keep_spectrum" in self.simulator:
            raise ValueError(f'expected no `keep_spectrum` beside a step of "{AUTO}", which chooses both; leave it out')

    def simulator_settings(self) -> dict[str, Any]:
        """Return `simulator` as `FakETSimulator` and `VariedSimulator` (`variation`) take it."""
        return read_table(SIMULATOR, self.simulator, "simulator", renamed=RENAMED)

    def mixture(self) -> tuple[tuple[Any, Arm], ...]:
        """Return the simulators that one is drawn of, each as an arm with its weight; this one where there is no other.

        Raises
        ------
        ValueError
            If settings of one do not go together; the message says of which.
        """
        several = self.simulator_settings().get(MIXTURE)
        if not several:
            return ((1.0, self),)
        common = {name: one for name, one in self.simulator.items() if name != MIXTURE}
        found = []
        for number, own in enumerate(self.simulator[MIXTURE]):
            of_arm = {name: one for name, one in own.items() if name in _OF_ARM}
            others = {name: one for name, one in own.items() if name not in (WEIGHT, *_OF_ARM)}
            try:
                found.append((several[number].get(WEIGHT, 1.0), replace(self, simulator=common | others, **of_arm)))
            except ValueError as error:
                raise ValueError(f"mixture[{number}]: {error}") from error
        return tuple(found)


#: What a simulator of a mixture may have of an arm's own settings; and all that it may have.
_OF_ARM = ("modality", "noise")
MEMBER = {name: one for name, one in settings_of(Arm).items() if name in _OF_ARM} | SIMULATOR
SIMULATOR[MIXTURE] = mixture_setting(MEMBER)

#: The published comparison.
PAPER_ARMS: Mapping[str, Arm] = {
    "BENCHMARK": Arm(source="measured"),
    "NOISELESS": Arm(modality="noiseless"),
    "BASELINE": Arm(modality="baseline"),
    "NOISY": Arm(modality="noisy"),
    "FAKET": Arm(),
    "FAKET_RANDOM": Arm(weights="random"),
    "FAKET + fine-tuning": Arm(start="FAKET", source="measured", tomograms=1, steps=1000),
}
