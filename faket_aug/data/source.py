"""Where the specimens of an epoch come from: a sequence, or a generator."""

from __future__ import annotations

from collections.abc import Sequence

from faket_aug._checks import SimulationError, check_count
from faket_aug._random import numpy_generator
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.specimens.tilted import Specimen


def tomograms_of_epoch(specimens: Sequence[Specimen] | GrandModelGenerator, wanted: int | None) -> int:
    """Return how many tomograms an epoch has: as many as wanted, or one for each specimen of a sequence.

    Raises
    ------
    ValueError
        If there are no specimens, or nobody says how many tomograms a generator is asked for.
    """
    if isinstance(specimens, GrandModelGenerator):
        if wanted is None:
            raise ValueError("expected `tomograms_per_epoch` with a generator, which has no end of its own, got None")
    elif len(specimens) == 0:
        raise ValueError("expected at least one specimen, got none")
    elif wanted is None:
        wanted = len(specimens)
    check_count("tomograms_per_epoch", wanted)
    return int(wanted)


def specimen_of(
    specimens: Sequence[Specimen] | GrandModelGenerator, *, seed: int, epoch: int, tomogram: int
) -> Specimen:
    """Return the specimen of a tomogram: a new one of a generator, or one of a sequence.

    A sequence is shuffled anew each time all of its specimens were used.

    Raises
    ------
    SimulationError
        If it cannot be had; the message says which.
    """
    if isinstance(specimens, GrandModelGenerator):
        which = f"generated specimen {tomogram} of epoch {epoch}"
    else:
        round_, place = divmod(tomogram, len(specimens))
        order = numpy_generator(seed, "specimen", epoch=epoch, tomogram=round_).permutation(len(specimens))
        number = int(order[place])
        which = f"specimen {number}"
    try:
        if isinstance(specimens, GrandModelGenerator):
            return specimens.generate(seed=seed, epoch=epoch, tomogram=tomogram)
        return specimens[number]
    except Exception as error:
        raise SimulationError(f"{which}: {type(error).__name__}: {error}") from error
