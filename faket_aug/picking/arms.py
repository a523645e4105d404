"""Running one arm of a comparison with one seed: data, training, choice on the validation specimen, score."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from faket_aug._checks import FileFormatError
from faket_aug.dataset import FakETDataset
from faket_aug.features import VGG19Features
from faket_aug.formats._atomic import write_text
from faket_aug.mixing import LabelledPatches, LabelledTomogram
from faket_aug.noise import NoiseModel
from faket_aug.picking.clustering import Picks, pick
from faket_aug.picking.comparison import Arm, Comparison
from faket_aug.picking.inference import segment
from faket_aug.picking.losses import tversky_loss
from faket_aug.picking.network import DeepFinderNet
from faket_aug.picking.scoring import ShrecScore, choose_min_sizes, evaluate_shrec
from faket_aug.picking.training import BEST, CHECKPOINT, TrainingHistory, TrainingSettings, fit, load_weights
from faket_aug.projection import project
from faket_aug.reconstruction import reconstruct
from faket_aug.simulator import FakETSimulator
from faket_aug.specimen import GrandModel, ShrecSpecimens
from faket_aug.stylebank import StyleBank
from faket_aug.tiltseries import TiltSeries

RESULT = "result.json"
#: Told of what is going on: arm, seed, step, and steps in all.
Report = Callable[[str, int, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """What one arm with one seed came to.

    Parameters
    ----------
    arm, seed
        Which.
    scores
        By test folder; see `ShrecScore` (its confusion matrix as lists).
    min_sizes
        Sizes of picks chosen on the validation specimen, by class number.
    losses, validations
        Of the training.
    best_step
        The step whose weights were used.
    """

    arm: str
    seed: int
    scores: Mapping[str, Mapping[str, Any]]
    min_sizes: Mapping[str, int]
    losses: Sequence[float]
    validations: Sequence[tuple[int, float]]
    best_step: int

    @property
    def macro_f1(self) -> float:
        """Mean over the test specimens."""
        return float(np.mean([score["macro_f1"] for score in self.scores.values()]))

    @property
    def localization_f1(self) -> float:
        """Mean over the test specimens."""
        return float(np.mean([score["localization_f1"] for score in self.scores.values()]))


class MeasuredTomograms(Sequence[LabelledTomogram]):
    """Tomograms of the target's own tilt-series with the specimens' labels; each is reconstructed when asked for.

    Parameters
    ----------
    folders
        In SHREC's layout, with `projections.mrc`.
    filter
        Of the reconstruction.
    z_range
        As for `GrandModel.from_shrec`.
    """

    def __init__(self, folders: Sequence[str], *, filter: str, z_range: str | None) -> None:
        self.folders, self.filter, self.z_range = tuple(folders), filter, z_range
        self._made: dict[int, LabelledTomogram] = {}

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: Any) -> Any:
        if index not in self._made:
            self._made[index] = measured_tomogram(self.folders[index], filter=self.filter, z_range=self.z_range)
        return self._made[index]


def measured_tomogram(folder: str | Path, *, filter: str, z_range: str | None = "auto") -> LabelledTomogram:
    """Reconstruct the tilt-series of a folder in SHREC's layout, and put the specimen's labels to it.

    Parameters
    ----------
    folder
        With `projections.mrc` or `projections_unbinned.mrc`, and a specimen.
    filter, z_range
        See `reconstruct` and `GrandModel.from_shrec`.

    Raises
    ------
    FileFormatError
        If tilts and labels do not go together.
    """
    specimen = GrandModel.from_shrec(folder, z_range=z_range)
    series = TiltSeries.read(folder)
    bin, rest = divmod(series.tilts.shape[-1], specimen.labels.shape[-1])
    if rest or bin < 1:
        raise FileFormatError(
            f"{folder}: expected tilts as wide as the labels, {specimen.labels.shape[-1]}, or a whole factor wider, "
            f"got {series.tilts.shape[-1]}"
        )
    depth = specimen.labels.shape[0]
    return LabelledTomogram(
        tomogram=reconstruct(series.tilts, series.tilt_angles, depth=depth, filter=filter, bin=bin),
        labels=specimen.labels,
        particles=specimen.particles,
        voxel_size=specimen.label_voxel_size,
        class_names=specimen.class_names,
        name=str(folder),
    )


class Experiment:
    """What all arms of a comparison share, each made when it is first needed.

    Parameters
    ----------
    comparison
        The whole comparison.
    output
        Its folder; every arm and seed has one below it.
    """

    def __init__(self, comparison: Comparison, output: str | Path) -> None:
        self.comparison, self.output = comparison, Path(output)

    def folder(self, arm: str, seed: int) -> Path:
        """The folder of one arm with one seed."""
        return self.output / arm.replace("/", "_") / f"seed_{seed}"

    @cached_property
    def style(self) -> list[TiltSeries]:
        """The unlabelled tilt-series."""
        return [TiltSeries.read(path) for path in self.comparison.style or self.comparison.train]

    @cached_property
    def noise(self) -> NoiseModel:
        """The published paired fit: measured tilts against the projections of the same specimens."""
        clean, measured, angles = [], [], []
        for folder in self.comparison.train:
            # The axis of rotation goes through the middle of all of it.
            truth, series = GrandModel.from_shrec(folder, z_range=None), TiltSeries.read(folder)
            clean.append(-project(truth.density, series.tilt_angles))
            measured.append(series.tilts)
            angles.append(series.tilt_angles)
        return NoiseModel.fit(clean, measured, angles)

    @cached_property
    def validation(self) -> LabelledTomogram:
        """The measured tomogram on which steps and sizes are chosen."""
        return self._measured(self.comparison.validation)

    @cached_property
    def class_names(self) -> dict[int, str]:
        """Names of the class numbers, of the first training specimen."""
        return dict(GrandModel.from_shrec(self.comparison.train[0], z_range=self.comparison.z_range).class_names)

    def _measured(self, folder: str) -> LabelledTomogram:
        return measured_tomogram(folder, filter=self.comparison.filter, z_range=self.comparison.z_range)

    def network(self, seed: int) -> DeepFinderNet:
        """A network with the seed's first weights, the same for all arms."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            classes = 1 + max(self.class_names)
            return DeepFinderNet(classes, widths=self.comparison.widths, voxel_size=self.validation.voxel_size).to(
                self.comparison.device
            )

    def dataset(self, arm: Arm, seed: int) -> FakETDataset:
        """The patches that an arm is trained on."""
        made = self.comparison
        folders = list(made.train)[: arm.tomograms]
        patches: dict[str, Any] = {
            "patch_size": made.patch_size,
            "patches_per_tomogram": made.patches_per_tomogram,
            "shift": made.shift,
            "class_balanced": made.class_balanced,
            "seed": seed,
        }
        if arm.source == "measured":
            return LabelledPatches(MeasuredTomograms(folders, filter=made.filter, z_range=made.z_range), **patches)
        specimens = ShrecSpecimens(folders, z_range=made.z_range)
        return FakETDataset(specimens, self.simulator(arm), **patches)

    def simulator(self, arm: Arm) -> FakETSimulator:
        """The simulator of an arm."""
        made = self.comparison
        settings: dict[str, Any] = {"filter": made.filter, "device": made.device, "threads": made.threads}
        if arm.modality != "noiseless":
            settings["noise"] = self.noise
        if arm.modality == "faket":
            features = VGG19Features(arm.weights or made.weights, precision=made.precision)
            bank = StyleBank.build(
                self.style, features, style_layers=tuple(made.style_layers), cache=self.output / "style"
            )
            settings |= {"style": bank, "features": features}
        angles = self.style[0].tilt_angles
        return FakETSimulator(tilt_angles=angles, modality=arm.modality, **(settings | dict(arm.simulator)))

    def run(self, name: str, seed: int, report: Report | None = None) -> ArmResult:
        """Train an arm with a seed, choose on the validation specimen, score on the test specimens.

        What is done is not done again: a finished one is read, a broken one goes on from its checkpoint.
        """
        folder = self.folder(name, seed)
        if (folder / RESULT).is_file():
            return read_result(folder / RESULT)
        network, history = self._train(name, seed, report)
        sizes = self._sizes(network)
        scores = {str(test): _as_json(self._score(network, str(test), sizes)) for test in self.comparison.test}
        best = history.best
        result = ArmResult(
            arm=name,
            seed=seed,
            scores=scores,
            min_sizes={str(number): size for number, size in sizes.items()},
            losses=history.losses,
            validations=history.validations,
            best_step=len(history.losses) if best is None else best[0],
        )
        write_text(folder / RESULT, json.dumps(asdict(result) | {"made_by": versions()}, indent=1))
        return result

    def _train(self, name: str, seed: int, report: Report | None) -> tuple[DeepFinderNet, TrainingHistory]:
        made, arm = self.comparison, self.comparison.arms[name]
        network = self.network(seed)
        if arm.start is not None:
            load_weights(network, _weights_of(self.folder(arm.start, seed)))
        settings = TrainingSettings(
            steps=arm.steps or made.steps,
            learning_rate=arm.learning_rate or made.learning_rate,
            cross_entropy=made.cross_entropy,
            precision=made.precision,
            validate_every=made.validate_every,
            checkpoint_every=made.validate_every,
        )
        loader = DataLoader(self.dataset(arm, seed), batch_size=made.batch_size, num_workers=made.workers)
        folder = self.folder(name, seed)
        history = fit(
            network,
            loader,
            folder,
            settings=settings,
            validation=self._validate,
            depends_on={"arm": json.loads(json.dumps(asdict(arm))), "seed": seed},
            on_step=None if report is None else lambda step, _: report(name, seed, step, settings.steps),
        )
        load_weights(network, _weights_of(folder))
        return network, history

    @cached_property
    def _validation_batches(self) -> list[dict[str, Tensor]]:
        made = self.comparison
        data = LabelledPatches(
            [self.validation],
            patch_size=made.patch_size,
            patches_per_tomogram=made.validation_patches,
            shift=made.shift,
            class_balanced=made.class_balanced,
        )
        return list(DataLoader(data, batch_size=made.batch_size, generator=torch.Generator()))

    def _validate(self, network: nn.Module) -> float:
        """The loss on patches of the validation tomogram, always the same ones."""
        total = 0.0
        place = torch.device(self.comparison.device)
        low = self.comparison.precision == "bfloat16"
        for batch in self._validation_batches:
            with torch.autocast(place.type, dtype=torch.bfloat16, enabled=low):
                logits = network(batch["image"].to(place))
            labels = batch["label"].to(place)
            loss = tversky_loss(logits.float(), labels)
            if self.comparison.cross_entropy:
                loss = loss + self.comparison.cross_entropy * nn.functional.cross_entropy(logits.float(), labels)
            total += loss.item() * len(labels)
        return total / self.comparison.validation_patches

    def _picks(self, network: nn.Module, tomogram: Tensor) -> Picks:
        made = self.comparison
        labels = segment(network, tomogram, tile_size=made.tile_size, overlap=made.overlap, precision=made.precision)
        return pick(labels, method=made.picking, bandwidth=made.bandwidth)

    def _sizes(self, network: nn.Module) -> dict[int, int]:
        picks = self._picks(network, self.validation.tomogram)
        return choose_min_sizes(picks, self.comparison.validation, class_names=self.class_names)

    def _score(self, network: nn.Module, folder: str, sizes: Mapping[int, int]) -> ShrecScore:
        picks = self._picks(network, self._measured(folder).tomogram).larger_than(sizes)
        return evaluate_shrec(picks.particles(self.class_names), folder, skip=self.comparison.skip)


def read_result(path: Path) -> ArmResult:
    """Read what an arm came to.

    Raises
    ------
    FileFormatError
        If the file is damaged.
    """
    try:
        data = json.loads(path.read_text())
        data.pop("made_by")
        result = ArmResult(**data)
        return replace(result, validations=[(int(s), float(v)) for s, v in result.validations])
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(
            f"{path}: expected an arm's result, got {error}; remove it to run the arm again"
        ) from error


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    return {
        "faket_aug": version("faket_aug"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _weights_of(folder: Path) -> Path:
    return folder / BEST if (folder / BEST).is_file() else folder / CHECKPOINT


def _as_json(score: ShrecScore) -> dict[str, Any]:
    data = asdict(score) | {"confusion": score.confusion.tolist(), "labels": list(score.labels)}
    # JSON knows no NaN.
    return data | {"mean_distance": None if math.isnan(score.mean_distance) else score.mean_distance}
