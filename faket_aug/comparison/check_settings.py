"""Settings of the check of a fitted microscope."""

from __future__ import annotations

from dataclasses import dataclass

from faket_aug._checks import check_count, check_positive


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """How a check is done.

    Parameters
    ----------
    count
        How many tomograms are simulated, 2 or more: the classifier learns from one half of them, and is tested on the
        other.
    steps
        Steps of training after which the classifier is tested.
    seeds
        How many classifiers are trained.
    patch
        Voxels along each side of the classifier's patches.
    hits
        So many best hits of the particle are averaged in the measured tomogram; in all simulated ones together as many,
        or as many as there are particles.
    rotations
        How many rotations of the particle are tried at each place.
    low_pass
        Å, of the template matching.
    jitter
        Voxels, standard deviation by which true places are moved along each axis.

    Raises
    ------
    ValueError
        If a setting is not possible.
    """

    count: int = 2
    steps: tuple[int, ...] = (250, 1000)
    seeds: int = 3
    patch: int = 32
    hits: int = 100
    rotations: int = 500
    low_pass: float = 40.0
    jitter: float = 1.5

    def __post_init__(self) -> None:
        for name in ("count", "seeds", "patch", "hits", "rotations"):
            check_count(name, getattr(self, name))
        if self.count < 2:
            raise ValueError(
                "expected 2 simulated tomograms or more, one for training and one for the test, got `count` 1; set it"
            )
        if not self.steps:
            raise ValueError("expected at least one number of `steps`, got none")
        for number in self.steps:
            check_count("steps", number)
        check_positive("low_pass", self.low_pass)
        check_positive("jitter", self.jitter, zero=True)
