"""Running one arm of a comparison with one seed: data, training, choice on the validation specimen, score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from faket_aug._checks import FileFormatError
from faket_aug.comparison.arms import AUTO, Arm
from faket_aug.comparison.measured import MeasuredTomograms, kept_sections, measured_tomogram
from faket_aug.comparison.result import RESULT, ArmResult, read_result, score_as_json, versions, write_result
from faket_aug.comparison.settings import MORE_SCORING, SCORING_SETTINGS, Comparison
from faket_aug.data.dataset import FakETDataset, LabelledPatches, PatchDataset
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.formats._json import read_json, write_json
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.noise import NoiseModel
from faket_aug.picking.checkpoints import BEST, CHECKPOINT, load_weights
from faket_aug.picking.clustering import Picks, pick
from faket_aug.picking.history import TrainingHistory
from faket_aug.picking.inference import segment
from faket_aug.picking.losses import tversky_loss
from faket_aug.picking.network import DeepFinderNet
from faket_aug.picking.precision import autocast, chosen_precision
from faket_aug.picking.scoring import ShrecScore, choose_min_sizes, evaluate_shrec
from faket_aug.picking.settings import TrainingSettings
from faket_aug.picking.training import fit
from faket_aug.simulation.fit_microscope import fit_microscope
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.simulation.step_size import choose_step_by_series
from faket_aug.simulation.varied import Simulator, mixture_of
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.lazy import ShrecSpecimens
from faket_aug.style.bank import StyleBank
from faket_aug.style.vgg19 import VGG19Features
from faket_aug.tilts.series import TiltSeries
from faket_aug.tomography.projection import project

#: Folder of the steps of the style transfer that were chosen, and why, see `Arm.simulator`.
STEPS = "steps"
#: Told of what is going on: arm, seed, step, and steps in all.
Report = Callable[[str, int, int, int], None]


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
        measured = [TiltSeries.read(folder) for folder in self.comparison.train]
        clean = [
            _clean(folder, series.tilt_angles) for folder, series in zip(self.comparison.train, measured, strict=True)
        ]
        return NoiseModel.fit(
            clean=clean,
            target=[one.tilts for one in measured],
            tilt_angles=[one.tilt_angles for one in measured],
            measured=[one.measured for one in measured],
        )

    @cached_property
    def unpaired_noise(self) -> NoiseModel:
        """The fit without truth: the unlabelled tilt-series against projections of other specimens."""
        made = self.comparison
        others = ShrecSpecimens(made.clean or (made.validation,), z_range=None)
        # A series whose file does not tell its pixel size has that of the specimens.
        series = [replace(one, pixel_size=one.pixel_size or others[0].voxel_size) for one in self.style]
        own = made.more("microscope")
        if own.get("defocus") is None:
            # Then it is searched, whatever files say.
            own["ctf"] = ContrastTransfer.within(**own.pop("optics", {}))
        return fit_microscope(series, others, **own).noise

    @cached_property
    def validation(self) -> LabelledTomogram:
        """The measured tomogram on which steps and sizes are chosen."""
        return self._measured(self.comparison.validation)

    @cached_property
    def class_names(self) -> dict[int, str]:
        """Names of the class numbers, of the validation specimen's table.

        Raises
        ------
        FileFormatError
            If it has none.
        """
        names = dict(self.validation.class_names)
        if not names:
            raise FileFormatError(
                f"{self.comparison.validation}: expected class_conversion_table.txt there or in the folder above, "
                "which says what the labels are called, found none"
            )
        return names

    def _measured(self, folder: str) -> LabelledTomogram:
        return measured_tomogram(folder, filter=self.comparison.filter, z_range=self.comparison.z_range)

    def network(self, seed: int) -> DeepFinderNet:
        """A network with the seed's first weights, the same for all arms."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classes = 1 + max(self.class_names)
            return DeepFinderNet(classes, widths=self.comparison.widths, voxel_size=self.validation.voxel_size).to(
                self.comparison.device
            )

    def dataset(self, arm: Arm, seed: int) -> PatchDataset:
        """The patches that an arm is trained on."""
        made = self.comparison
        folders = list(made.train)[: arm.tomograms]
        patches: dict[str, Any] = {
            "patch_size": made.patch_size,
            "patches_per_tomogram": made.patches_per_tomogram,
            "shift": made.shift,
            "class_balanced": made.class_balanced,
            "seed": seed,
            **made.more("patches"),
        }
        if arm.source == "measured":
            return LabelledPatches(MeasuredTomograms(folders, filter=made.filter, z_range=made.z_range), **patches)
        if arm.specimens == "generated":
            voxel_size = self.validation.voxel_size
            endless = made.generator(voxel_size, self.class_names)
            return FakETDataset(endless, self.simulator(arm), tomograms_per_epoch=len(folders), **patches)
        specimens = ShrecSpecimens(folders, z_range=made.z_range)
        return FakETDataset(specimens, self.simulator(arm), **patches)

    def simulator(self, arm: Arm) -> Simulator:
        """The simulator of an arm, or its mixture of them."""
        weights, each = zip(*arm.mixture(), strict=True)
        plain = [self._plain_simulator(own) for own in each]
        return mixture_of(plain, [own.simulator_settings().get("variation") for own in each], weights)

    def _plain_simulator(self, arm: Arm) -> FakETSimulator:
        """One simulator, whose settings are the same for all tomograms."""
        made = self.comparison
        settings: dict[str, Any] = {"filter": made.filter, "device": made.device, "threads": made.threads}
        if arm.modality != "noiseless":
            settings["noise"] = self.noise if arm.noise == "paired" else self.unpaired_noise
        if arm.modality == "faket":
            precision = chosen_precision(made.precision, made.device)
            features = VGG19Features(arm.weights or made.weights, precision=precision, **made.more("encoder"))
            settings |= {"style": StyleBank.build(self.style, features, **self._bank), "features": features}
        settings |= {"tilt_angles": self.style[0].tilt_angles, "modality": arm.modality} | arm.simulator_settings()
        settings.pop("variation", None)
        if settings.get("step_size") == AUTO:
            settings |= self._chosen_step(arm, settings)
        return FakETSimulator(**settings)

    @property
    def _bank(self) -> dict[str, Any]:
        """Settings of the style bank."""
        made = self.comparison
        own = {"style_layers": tuple(made.style_layers), "cache": self.output / "style", "device": made.device}
        return own | made.more("bank")

    def _chosen_step(self, arm: Arm, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the step by style series that are held out, and a specimen that no arm is trained on; once an arm."""
        made, kind = self.comparison, json.loads(json.dumps(asdict(arm) | self._fitted(arm)))
        name = hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:8]
        path = self.output / STEPS / f"{name}.json"
        if not path.is_file():
            specimen = GrandModel.from_shrec((made.clean or (made.validation,))[0], z_range=made.z_range)
            trial = dict(settings) | {"step_size": 0.0}
            choice = choose_step_by_series(self.style, [specimen], bank=self._bank, **trial)
            chosen = {"step_size": choice.step_size, "keep_spectrum": choice.keep_spectrum}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"arm": kind, "chosen": chosen, "why": choice.report()})
        content = read_json(path, what="a chosen step")
        found = content.get("chosen")
        if set(content) != {"arm", "chosen", "why"} or not isinstance(found, dict):
            raise FileFormatError(f"{path}: expected a chosen step, got other JSON; remove it")
        return found

    def run(self, name: str, seed: int, report: Report | None = None) -> ArmResult:
        """Train an arm with a seed, choose on the validation specimen, score on the test specimens.

        What is done is not done again: a finished one is read, a broken one goes on from its checkpoint. With other
        settings of the scoring it is scored again.

        Raises
        ------
        ValueError
            If the arm that it starts from is not finished, or it was trained with other settings.
        """
        done = self._done(name, seed)
        if done is not None:
            return done
        network, history = self._train(name, seed, report)
        sizes = self._sizes(network)
        scores = {str(test): score_as_json(self.score(network, str(test), sizes)) for test in self.comparison.test}
        best = history.best
        result = ArmResult(
            arm=name,
            seed=seed,
            scores=scores,
            min_sizes={str(number): size for number, size in sizes.items()},
            losses=history.losses,
            validations=history.validations,
            best_step=len(history.losses) if best is None else best[0],
            made_with=self.made_with(name),
            versions=versions(),
        )
        write_result(self.folder(name, seed) / RESULT, result)
        return result

    def finished(self) -> list[ArmResult]:
        """Read what is finished, by seeds and arms, in their order."""
        names = self.comparison.ordered_arms()
        found = [self._done(name, seed) for seed in self.comparison.seeds for name in names]
        return [one for one in found if one is not None]

    def _done(self, name: str, seed: int) -> ArmResult | None:
        """Read the result of an arm with a seed, where there is one that was made and scored as it would be now."""
        path = self.folder(name, seed) / RESULT
        found = read_result(path) if path.is_file() else None
        return found if found is not None and found.made_with == self.made_with(name) else None

    def weights(self, name: str, seed: int) -> Path:
        """The file of an arm's trained weights."""
        return _weights_of(self.folder(name, seed))

    def made_with(self, name: str) -> dict[str, Any]:
        """All that an arm's result depends on beside the training that all arms share, as JSON types."""
        more = [key for key in MORE_SCORING if getattr(self.comparison, key)]
        scoring = {key: getattr(self.comparison, key) for key in (*SCORING_SETTINGS, *more)}
        arm = self.comparison.arms[name]
        plain: dict[str, Any] = json.loads(json.dumps({"arm": asdict(arm), **self._fitted(arm), **scoring}))
        return plain

    def _fitted(self, arm: Arm) -> dict[str, Any]:
        """The settings of the fitted microscope, for an arm that has it, and where there are any."""
        unpaired = any(one.noise == "unpaired" and one.modality != "noiseless" for _, one in arm.mixture())
        settings = self.comparison.microscope
        return {"microscope": settings} if settings and unpaired and arm.source == "simulated" else {}

    def _train(self, name: str, seed: int, report: Report | None) -> tuple[DeepFinderNet, TrainingHistory]:
        made, arm = self.comparison, self.comparison.arms[name]
        network = self.network(seed)
        if arm.start is not None:
            start = self.folder(arm.start, seed)
            if not (start / RESULT).is_file():
                raise ValueError(
                    f"{start}: expected a finished arm to start from; run {arm.start!r}, seed {seed}, first"
                )
            load_weights(network, _weights_of(start))
        settings = TrainingSettings(
            steps=arm.steps or made.steps,
            learning_rate=arm.learning_rate or made.learning_rate,
            cross_entropy=made.cross_entropy,
            precision=made.precision,
            validate_every=made.validate_every,
            **({"checkpoint_every": made.validate_every} | made.more("training")),
        )
        workers: dict[str, Any] = {"num_workers": made.workers, "persistent_workers": made.workers > 0}
        loader = DataLoader(self.dataset(arm, seed), batch_size=made.batch_size, **workers)
        folder = self.folder(name, seed)
        history = fit(
            network,
            loader,
            folder,
            settings=settings,
            validation=self._validate,
            depends_on=json.loads(json.dumps({"arm": asdict(arm), "seed": seed, **self._fitted(arm)})),
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
            **{name: one for name, one in made.more("patches").items() if name in ("normalize", "target", "radii")},
        )
        return list(DataLoader(data, batch_size=made.batch_size, generator=torch.Generator()))

    def _validate(self, network: nn.Module) -> float:
        """The loss on patches of the validation tomogram, always the same ones."""
        total = 0.0
        place = torch.device(self.comparison.device)
        for batch in self._validation_batches:
            with autocast(place, self.comparison.precision):
                logits = network(batch["image"].to(place))
            labels = batch["label"].to(place)
            loss = tversky_loss(logits.float(), labels)
            if self.comparison.cross_entropy:
                loss = loss + self.comparison.cross_entropy * nn.functional.cross_entropy(logits.float(), labels)
            total += loss.item() * len(labels)
        return total / self.comparison.validation_patches

    def _picks(self, network: nn.Module, tomogram: LabelledTomogram) -> Picks:
        """Pick in a measured tomogram; positions count from its first section, also from sections that are cut off."""
        made = self.comparison
        labels = segment(
            network,
            tomogram.tomogram,
            tile_size=made.tile_size,
            overlap=made.overlap,
            precision=made.precision,
            voxel_size=tomogram.voxel_size,
            **made.more("segmentation"),
        )
        picks = pick(labels, method=made.picking, bandwidth=made.bandwidth, **made.more("picks"))
        keep, _ = kept_sections(tomogram.name, made.z_range)
        return replace(picks, positions=picks.positions + np.array([keep.start, 0, 0]))

    def _sizes(self, network: nn.Module) -> dict[int, int]:
        picks = self._picks(network, self.validation)
        return choose_min_sizes(picks, self.comparison.validation, class_names=self.class_names)

    def score(
        self, network: nn.Module, folder: str, sizes: Mapping[int, int], tomogram: Tensor | None = None
    ) -> ShrecScore:
        """Score a network's picks in a specimen's measured tomogram, or in another one of it.

        Parameters
        ----------
        network
            What segments.
        folder
            Of the specimen.
        sizes
            That picks must have, by class number.
        tomogram
            `(z, y, x)`, of the sections that are kept; the measured one by default.
        """
        measured = self._measured(folder)
        seen = measured if tomogram is None else replace(measured, tomogram=tomogram)
        picks = self._picks(network, seen).larger_than(sizes)
        return evaluate_shrec(picks.particles(self.class_names), folder, skip=self.comparison.skip)


def _clean(folder: str, tilt_angles: Any) -> Tensor:
    # The axis of rotation goes through the middle of all of it.
    return -project(GrandModel.from_shrec(folder, z_range=None).density, tilt_angles)


def _weights_of(folder: Path) -> Path:
    return folder / BEST if (folder / BEST).is_file() else folder / CHECKPOINT
