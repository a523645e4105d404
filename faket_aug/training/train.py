"""Training a picker on endless simulated tomograms, with a validation of its own, thresholds, and a picture."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from faket_aug._checks import check_same_size
from faket_aug.figures import save_figure
from faket_aug.formats._atomic import remove_parts
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.microscope.ctf import CORRECTIONS
from faket_aug.picking.checkpoints import (
    CHECKPOINT,
    PREVIOUS,
    load_weights,
    other_settings,
    plain_settings,
    read_checkpoint,
    read_state,
)
from faket_aug.picking.history import TrainingHistory
from faket_aug.picking.network import DeepFinderNet
from faket_aug.picking.picker import PickerDescription, kind_of, load_picker, set_thresholds, weights_of
from faket_aug.picking.ranks import Ranks
from faket_aug.picking.run import VALIDATION
from faket_aug.picking.settings import LEARNING_RATE, TrainingSettings
from faket_aug.picking.training import fit
from faket_aug.simulation.own_parts import check_simulator
from faket_aug.simulation.tomogram import Companions
from faket_aug.training.data import PickerData, digest_of, picker_dataset, plain_simulator, with_flavour
from faket_aug.training.picture import Shown, draw_training
from faket_aug.training.settings import AVERAGE, FINE_TUNING_RATE, PickerTraining
from faket_aug.training.validation import Validation, held_out, make_validation, read_validation

PICTURE = "training.png"
#: Seconds; a time limit that is over before the first step ends the training after it.
_AT_ONCE = 1e-6
#: Learning rate of networks of the default widths, which are narrower than DeepFinder's.
RATE = 10 * LEARNING_RATE


@dataclass(frozen=True, kw_only=True)
class Report:
    """Whom a training tells how far it is.

    Parameters
    ----------
    validation
        Is told how many validation tomograms of how many are there.
    step
        Is told each step's number and loss.
    validated
        Is told the history after each validation.
    """

    validation: Callable[[int, int], None] = lambda done, total: None
    step: Callable[[int, float], None] = lambda step, loss: None
    validated: Callable[[TrainingHistory], None] = lambda history: None


@dataclass(frozen=True, kw_only=True)
class TrainedPicker:
    """What came of a training.

    Parameters
    ----------
    history
        Its losses and scores.
    description
        What the network is for, with the thresholds of its picks.
    """

    history: TrainingHistory
    description: PickerDescription


class PickerRun:
    """A training of a picker in a folder, checked before anything is computed.

    Parameters
    ----------
    data
        What it is trained on.
    output
        Folder of the run.
    settings
        How it is trained.
    seed
        Of all chance.
    depends_on
        What else the weights depend on, as JSON types: a training goes on only with the same.
    start
        The run, or the file, whose weights it begins with.
    device
        Where the network is trained.

    Raises
    ------
    ValueError
        If patches do not fit the specimens, real tomograms or the start do not go with them, or the folder holds a
        training with other settings; the message names them.
    """

    def __init__(
        self,
        data: PickerData,
        output: str | Path,
        *,
        settings: PickerTraining,
        seed: int = 0,
        depends_on: Mapping[str, Any] | None = None,
        start: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.folder, self.settings, self.seed, self.device = Path(output), settings, seed, device
        if settings.flavours:
            check_simulator(data.simulator, Companions(flavours=settings.flavours))
            data = replace(data, simulator=with_flavour(data.simulator, settings.flavours[0]))
        self.data = data
        self.begun = time.monotonic()
        self.training_specimens, self.validation_specimens = held_out(data.specimens, settings.validation_tomograms)
        self.description = self._described()
        self._check_sizes()
        self.start = None if start is None else weights_of(start)
        self.fit_settings = self._fit_settings()
        #: What tomograms depend on, also those of the validation.
        self.simulated_by = plain_settings(depends_on or {})
        self.depends_on = plain_settings(self.simulated_by | self._depends_on())
        #: Steps that were taken before.
        self.done = 0
        self._check_folder()

    # Checks ----------------------------------------------------------------------------------------------------------

    def _described(self) -> PickerDescription:
        simulator, classes, settings = plain_simulator(self.data.simulator), self.data.classes, self.settings
        specimens = self.data.specimens
        if isinstance(specimens, GrandModelGenerator):
            voxel_size, bin = specimens.voxel_size, 1
        else:
            voxel_size, bin = specimens[0].label_voxel_size, specimens[0].bin
        kind = kind_of(simulator.flavour, simulator.ctf_correction)
        return PickerDescription(
            class_names=classes.names,
            widths=settings.widths,
            voxel_size=voxel_size,
            filter=simulator.filter,
            bin=bin,
            # Also where the flavour says it: a measured tomogram is reconstructed like this.
            ctf_correction=kind if kind in CORRECTIONS else None,
            flavour=simulator.flavour,
            radii=classes.radii,
            target_radius=settings.target_radius if settings.targets == "spheres" else 1.0,
            distractors=classes.others,
            channels=settings.flavours,
        )

    def _check_sizes(self) -> None:
        side = self.settings.patch_size
        shape = self.data.specimens.shape if isinstance(self.data.specimens, GrandModelGenerator) else None
        if shape is not None and min(shape) < side:
            raise ValueError(f"expected `patch_size` of at most the specimens' {min(shape)} voxels, got {side}")
        for one in self.data.real:
            if min(one.tomogram.shape) < side:
                raise ValueError(
                    f"{one.name}: expected at least the {side} voxels of `patch_size` along each axis, got "
                    f"{tuple(one.tomogram.shape)}"
                )
        names = [(one.name, one.voxel_size) for one in self.data.real]
        names += [] if self.data.watched is None else [(self.data.watched.title, self.data.watched.voxel_size)]
        for name, size in names:
            advice = "bin or resample it (`faket-aug reconstruct --bin`), or set `voxel_size`"
            check_same_size(name, size, "the simulated tomograms", self.description.voxel_size, advice=advice)

    def _fit_settings(self) -> TrainingSettings:
        made = self.settings
        return TrainingSettings(
            steps=made.steps,
            learning_rate=made.learning_rate or (RATE if self.start is None else FINE_TUNING_RATE),
            cross_entropy=made.cross_entropy,
            precision=made.precision,
            validate_every=made.validate_every,
            patience=made.patience,
            checkpoint_every=made.checkpoint_every,
            average=AVERAGE if made.average is None else made.average,
        )

    def _depends_on(self) -> dict[str, Any]:
        names = (
            *("batch_size", "patch_size", "widths", "targets", "target_radius", "patches_per_tomogram", "workers"),
            *("tomograms_per_epoch", "background_share", "class_balanced", "validation_tomograms"),
        )
        found = {name: getattr(self.settings, name) for name in names}
        found |= {"seed": self.seed, "classes": dict(self.description.class_names)} | self._flavours()
        if self.data.real:
            found |= {"real_share": self.settings.real_share, "real": [digest_of(one) for one in self.data.real]}
        if self.start is not None:
            found["resume_from"] = self._start_digest(self.start)
        return found

    def _flavours(self) -> dict[str, Any]:
        """Tell the channels, where there are several; trainings of one are those from before there were more."""
        return {"flavours": list(self.settings.flavours)} if self.settings.flavours else {}

    def _start_digest(self, path: Path) -> str:
        """Hash the weights that the training begins with, after a look whether they are this picker's."""
        theirs, own = load_picker(path).description, self.description
        for name, before, now in (
            ("classes", list(theirs.class_names.values()), list(own.class_names.values())),
            ("widths", theirs.widths, own.widths),
            ("flavours", theirs.channels, own.channels),
        ):
            if before != now:
                told = [", ".join(map(str, one)) or "none" for one in (now, before)]
                raise ValueError(f"{path}: expected a picker with the `{name}` {told[0]}, got {told[1]}")
        check_same_size(str(path), theirs.voxel_size, "the simulated tomograms", own.voxel_size, advice="use another")
        digest = hashlib.sha256()
        for key, value in sorted(read_state(path)["model"].items()):
            digest.update(f"{key}|{tuple(value.shape)}|".encode())
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _check_folder(self) -> None:
        """Refuse a folder that holds a training with other settings; see how far one of these is."""
        if not any((self.folder / name).is_file() for name in (CHECKPOINT, PREVIOUS)):
            return
        saved = read_checkpoint(self.folder)
        self.done = len(saved["losses"])
        if self.settings.average is None:
            # A training that was begun before there was an average goes on without.
            self.fit_settings = replace(self.fit_settings, average=saved["settings"].get("average", 0.0))
        listed = other_settings(saved["settings"], plain_settings({**asdict(self.fit_settings), **self.depends_on}))
        if listed:
            raise ValueError(
                f"{self.folder}: expected the settings that this training was begun with, got other {listed}; go on "
                "with those, or set `output` to another folder"
            )

    def minutes_left(self) -> float | None:
        """Return how long the training may still take; None without a limit."""
        limit = self.settings.time_limit
        return None if limit is None else max(limit - (time.monotonic() - self.begun) / 60, 0.0)

    # Training --------------------------------------------------------------------------------------------------------

    def train(self, report: Report | None = None) -> TrainedPicker:
        """Train, or go on; then choose the thresholds of picks.

        Every rank of a distributed job calls this.

        Parameters
        ----------
        report
            Whom to tell how far it is.

        Raises
        ------
        ValueError, OSError, SimulationError, RankError
            As of `fit`.
        """
        told, ranks = report or Report(), Ranks(torch.device(self.device))
        ranks.tell(lambda: self._make_validation(told))
        validation = self._validation() if ranks.rank == 0 else None
        shown = None if validation is None else self._shown(validation)
        network, loader = self._network(), self._loader()

        def validated(network: nn.Module, history: TrainingHistory) -> None:
            assert shown is not None, "only rank 0 is told"
            self._draw(network, history, shown)
            told.validated(history)

        left = self.minutes_left()
        history = fit(
            network,
            loader,
            self.folder,
            settings=self.fit_settings,
            validation=validation if validation is not None else lambda _: {VALIDATION: 0.0},
            depends_on=self.depends_on,
            describes=self.description,
            log=self.settings.log,
            device=self.device,
            on_step=told.step,
            on_validation=validated,
            time_limit=None if left is None else max(60 * left, _AT_ONCE),
        )
        description = ranks.tell(lambda: self._with_thresholds(validation))
        return TrainedPicker(history=history, description=description)

    def _make_validation(self, told: Report) -> None:
        count = self.settings.validation_tomograms
        depends_on = self.simulated_by | {"seed": self.seed, "classes": list(self.data.classes.names.values())}
        make_validation(
            self.folder,
            self.validation_specimens,
            self.data.simulator,
            count=count,
            seed=self.seed,
            depends_on=depends_on | self._flavours(),
            flavours=self.settings.flavours,
            progress=told.validation,
        )

    def _validation(self) -> Validation:
        made = self.settings
        return Validation(
            tomograms=read_validation(
                self.folder, made.validation_tomograms, self.data.classes.names, flavours=made.flavours
            ),
            real=self.data.real,
            description=self.description,
            precision=self.fit_settings.precision,
            device=self.device,
            real_counts=bool(self.data.real) and made.real_share == 0,
        )

    def _shown(self, validation: Validation) -> tuple[Shown, Shown | None]:
        """Choose what the picture shows: a simulated tomogram, and the user's own."""
        first = validation.tomograms[0]
        simulated = Shown.of(
            first.tomogram,
            name="simulated, for validation",
            voxel_size=first.voxel_size,
            labels=first.labels,
            flavours=first.flavours,
        )
        real = self.data.watched
        if real is None and self.data.real:
            own = self.data.real[0]
            real = Shown.of(
                own.tomogram, name="your labelled tomogram", voxel_size=own.voxel_size, flavours=own.flavours
            )
        if real is None:
            return simulated, None
        height, width = (min(sides) for sides in zip(simulated.image.shape, real.image.shape, strict=True))
        return simulated.cropped(height, width), real.cropped(height, width)

    def _draw(self, network: nn.Module, history: TrainingHistory, shown: tuple[Shown, Shown | None]) -> None:
        simulated, real = shown
        precision = self.fit_settings.precision
        seen = (real or simulated).probabilities(network, precision=precision, device=self.device)
        figure = draw_training(
            history,
            class_names=self.data.classes.names,
            simulated=simulated,
            real=real,
            seen=seen,
            steps=self.settings.steps,
        )
        remove_parts(self.folder, pattern=f".{PICTURE}.*.part")
        save_figure(figure, self.folder / PICTURE)

    def _network(self) -> DeepFinderNet:
        """Make the network with the seed's first weights, or with those of the other run."""
        made = self.description
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = DeepFinderNet(
                made.classes, in_channels=made.in_channels, widths=made.widths, voxel_size=made.voxel_size
            )
        if self.start is not None:
            load_weights(network, self.start)
        return network.to(self.device)

    def _loader(self) -> DataLoader[Any]:
        made = self.settings
        more: dict[str, Any] = {}
        if made.workers:
            more = {"multiprocessing_context": "spawn", "persistent_workers": True}
        return DataLoader(
            picker_dataset(self.data, self.training_specimens, made, seed=self.seed, device=self.device),
            batch_size=made.batch_size,
            num_workers=made.workers,
            generator=torch.Generator().manual_seed(self.seed),
            **more,
        )

    def _with_thresholds(self, validation: Validation | None) -> PickerDescription:
        """Choose the scores from which on picks count, with the weights that are used: the best ones."""
        assert validation is not None, "rank 0 has one"
        picker = load_picker(self.folder, device=self.device)
        found = validation.choose_thresholds(picker.network)
        # No pick may be good enough: then the threshold lies above all scores.
        thresholds = {number: min(threshold, 1.0) for number, threshold in found.items()}
        if thresholds == dict(picker.description.thresholds):
            return picker.description
        return set_thresholds(self.folder, thresholds)
