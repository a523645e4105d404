"""A domain critic: a network that was trained on measured tomograms says how near simulated ones are to them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from faket_aug._checks import FileFormatError
from faket_aug.comparison.experiment import Experiment, Report
from faket_aug.comparison.summary import SCORES, Estimate, estimate
from faket_aug.formats._json import read_json, write_json
from faket_aug.picking.checkpoints import load_weights
from faket_aug.specimens.grandmodel import GrandModel

#: The row of the measured tomograms themselves.
TARGET = "target"
#: Beside the weights of the critic.
CRITICISMS = "critic.json"
#: 1, of version 0.1.0, is not told in the file.
_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Criticism:
    """Scores of a critic on one kind of tomograms.

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


def criticize(
    experiment: Experiment, critic: str, seed: int, report: Report | None = None, *, only: Sequence[str] = ()
) -> list[Criticism]:
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
    only
        Names of the arms to be judged; all simulated ones by default.

    Returns
    -------
    The target first, then the arms in their order. They are kept beside the critic's weights, and not made again.

    Raises
    ------
    ValueError
        If the critic is not trained on measured tomograms.
    """
    arms = experiment.comparison.arms
    if arms[critic].source != "measured":
        raise ValueError(f"expected a critic that is trained on measured tomograms, got {critic!r}; set its `source`")
    done = experiment.run(critic, seed, report)
    known = {one.arm: one for one in read_criticisms(experiment, critic, seed)}
    found = {TARGET: Criticism(arm=TARGET, seed=seed, **{score: getattr(done, score) for score in SCORES})}
    _write(experiment, critic, seed, known | found)
    network = experiment.network(seed)
    load_weights(network, experiment.weights(critic, seed))
    sizes = {int(number): size for number, size in done.min_sizes.items()}
    for name, arm in arms.items():
        if arm.source != "simulated" or (only and name not in only):
            continue
        found[name] = known.get(name) or _judge(experiment, network, sizes, name, seed)
        _write(experiment, critic, seed, known | found)
    return list(found.values())


def _judge(experiment: Experiment, network: nn.Module, sizes: Mapping[int, int], name: str, seed: int) -> Criticism:
    made = experiment.comparison
    simulator = experiment.simulator(made.arms[name])
    scores = []
    for index, test in enumerate(made.test):
        specimen = GrandModel.from_shrec(test, z_range=made.z_range)
        tomogram = simulator(specimen, seed=seed, tomogram=index).tomogram
        scores.append(experiment.score(network, str(test), sizes, tomogram))
    means = {score: float(np.mean([getattr(one, score) for one in scores])) for score in SCORES}
    return Criticism(arm=name, seed=seed, **means)


def read_criticisms(experiment: Experiment, critic: str, seed: int) -> list[Criticism]:
    """Read what a critic with a seed said before, as far as arms, critic and scoring are still the same."""
    path = experiment.folder(critic, seed) / CRITICISMS
    if not path.is_file():
        return []
    try:
        kept = read_json(path, what="what a critic said", since=_FORMAT)
        # 0.1.0 had the arms at the top.
        kept = kept["criticisms"] if kept.get("format") == _FORMAT else kept
        settings = {name: _made_with(experiment, critic, name) for name in (TARGET, *experiment.comparison.arms)}
        rows = [Criticism(**row["scores"]) for name, row in kept.items() if row["made_with"] == settings.get(name)]
    except FileFormatError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileFormatError(f"{path}: expected what a critic said, got {error!r}; remove it to ask again") from error
    order = [TARGET, *experiment.comparison.arms]
    return sorted(rows, key=lambda row: order.index(row.arm))


def _write(experiment: Experiment, critic: str, seed: int, found: Mapping[str, Criticism]) -> None:
    rows = {
        name: {"made_with": _made_with(experiment, critic, name), "scores": asdict(one)} for name, one in found.items()
    }
    write_json(experiment.folder(critic, seed) / CRITICISMS, {"format": _FORMAT, "criticisms": rows})


def _made_with(experiment: Experiment, critic: str, name: str) -> dict[str, Any]:
    own = {} if name == TARGET else {"arm": experiment.made_with(name)}
    return {"critic": experiment.made_with(critic), **own}


def shares(criticisms: Sequence[Criticism]) -> dict[str, dict[str, Estimate]]:
    """For each arm, its scores as shares of the target's with the same seed; NaN where the target's is 0."""
    targets = {one.seed: one for one in criticisms if one.arm == TARGET}
    collected: dict[str, dict[str, list[float]]] = {}
    for one in criticisms:
        row = collected.setdefault(one.arm, {score: [] for score in SCORES})
        for score in SCORES:
            whole = getattr(targets[one.seed], score)
            row[score].append(getattr(one, score) / whole if whole > 0 else math.nan)
    return {arm: {score: estimate(values) for score, values in row.items()} for arm, row in collected.items()}


def critic_markdown(criticisms: Sequence[Criticism]) -> str:
    """Write means over seeds, and shares of the target's scores, as Markdown."""
    lines = ["| tomograms | localisation F1 | of the target | macro-F1 | of the target |", "|---|---|---|---|---|"]
    for arm, row in shares(criticisms).items():
        own = [one for one in criticisms if one.arm == arm]
        means = [float(np.mean([getattr(one, score) for one in own])) for score in SCORES]
        parts = ["–" if math.isnan(row[score].mean) else f"{row[score].mean:.3f}" for score in SCORES]
        cells = [f"{mean:.3f} | {part}" for mean, part in zip(means, parts, strict=True)]
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
