"""A domain critic: how near simulated tomograms are to measured ones, in the eyes of a network trained on these."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from faket_aug.picking.arms import Experiment, Report
from faket_aug.picking.summary import Estimate, estimate
from faket_aug.picking.training import load_weights
from faket_aug.specimen import GrandModel

#: The row of the measured tomograms themselves.
TARGET = "target"
SCORES = ("localization_f1", "macro_f1")


@dataclass(frozen=True, kw_only=True)
class Criticism:
    """What a critic makes of one kind of tomograms.

    Parameters
    ----------
    arm
        How the tomograms were made; `TARGET` for measured ones.
    seed
        Of the critic and of the simulation.
    localization_f1, macro_f1
        Means over the test specimens.
    """

    arm: str
    seed: int
    localization_f1: float
    macro_f1: float


def criticize(experiment: Experiment, critic: str, seed: int, report: Report | None = None) -> list[Criticism]:
    """Let a network that was trained on measured tomograms pick in the test specimens as each arm simulates them.

    The nearer its score to that on the measured tomograms of the same specimens, the nearer the domains; a fresh picker
    for each arm takes hours, this takes minutes.

    Parameters
    ----------
    experiment
        Its test specimens are seen by neither the critic nor the noise; its simulated arms are judged.
    critic
        Name of the arm whose network judges; trained where it is not yet.
    seed
        Of the critic and of the simulation.
    report
        Is told how far the critic's training is.

    Returns
    -------
    The target first, then the arms in their order.

    Raises
    ------
    ValueError
        If the critic is not trained on measured tomograms.
    """
    arms = experiment.comparison.arms
    if arms[critic].source != "measured":
        raise ValueError(f"expected a critic that is trained on measured tomograms, got {critic!r}; set its `source`")
    done = experiment.run(critic, seed, report)
    found = [Criticism(arm=TARGET, seed=seed, localization_f1=done.localization_f1, macro_f1=done.macro_f1)]
    network = experiment.network(seed)
    load_weights(network, experiment.weights(critic, seed))
    sizes = {int(number): size for number, size in done.min_sizes.items()}
    for name, arm in arms.items():
        if arm.source != "simulated":
            continue
        simulator = experiment.simulator(arm)
        scores = []
        for index, test in enumerate(experiment.comparison.test):
            specimen = GrandModel.from_shrec(test, z_range=experiment.comparison.z_range)
            made = simulator(specimen, seed=seed, tomogram=index)
            scores.append(experiment.score(network, str(test), sizes, made.tomogram))
        means = {score: float(np.mean([getattr(one, score) for one in scores])) for score in SCORES}
        found.append(Criticism(arm=name, seed=seed, **means))
    return found


def shares(criticisms: Sequence[Criticism]) -> dict[str, dict[str, Estimate]]:
    """For each arm, its scores as shares of the target's with the same seed."""
    targets = {one.seed: one for one in criticisms if one.arm == TARGET}
    collected: dict[str, dict[str, list[float]]] = {}
    for one in criticisms:
        row = collected.setdefault(one.arm, {score: [] for score in SCORES})
        for score in SCORES:
            row[score].append(getattr(one, score) / max(getattr(targets[one.seed], score), 1e-12))
    return {arm: {score: estimate(values) for score, values in row.items()} for arm, row in collected.items()}


def critic_markdown(criticisms: Sequence[Criticism]) -> str:
    """Write means over seeds, and shares of the target's scores, as Markdown."""
    lines = ["| tomograms | localisation F1 | of the target | macro-F1 | of the target |", "|---|---|---|---|---|"]
    for arm, row in shares(criticisms).items():
        own = [one for one in criticisms if one.arm == arm]
        cells = [f"{np.mean([getattr(one, score) for one in own]):.3f} | {row[score].mean:.3f}" for score in SCORES]
        lines.append(f"| {arm} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def critic_csv(criticisms: Sequence[Criticism]) -> str:
    """Write a row for each kind of tomograms and seed as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["tomograms", "seed", *SCORES])
    for one in criticisms:
        writer.writerow([one.arm, one.seed, *(f"{getattr(one, score):.4f}" for score in SCORES)])
    return stream.getvalue()
