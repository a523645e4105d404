"""What a comparison of training data is: its specimens, its arms, and how each is trained; read from a TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

from faket_aug._checks import FileFormatError, check_choice, check_count, check_positive
from faket_aug._reading import expected, explained, read_table, read_value
from faket_aug._settings import IsPath, Part, Setting, as_json, from_library, setting_of, settings_of
from faket_aug.comparison.arms import MEMBER, PAPER_ARMS, SIMULATOR, Arm, Encoder
from faket_aug.data.dataset import FakETDataset
from faket_aug.formats._settings_file import load_table
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.recipe import BEFORE, RECIPE, make_generator
from faket_aug.microscope.ctf import DEFOCUS_RANGE, ContrastTransfer
from faket_aug.microscope.intensity import SCALE_SOURCES
from faket_aug.picking.clustering import METHODS, pick
from faket_aug.picking.inference import check_tiles, segment
from faket_aug.picking.network import DeepFinderNet
from faket_aug.picking.precision import PRECISIONS
from faket_aug.picking.scoring import evaluate_shrec
from faket_aug.picking.settings import TrainingSettings
from faket_aug.simulation.fit_microscope import CROWDS, KNOWN_OPTICS, fit_microscope
from faket_aug.simulation.plain_settings import MIXTURE, member_settings
from faket_aug.simulation.simulator import FakETSimulator
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.style.bank import StyleBank
from faket_aug.style.vgg19 import VGG19Features
from faket_aug.tomography.filters import FILTERS

#: What a recipe of `generated` was called before.
_RENAMED_RECIPE = {"count": "counts"}
_Path = Annotated[str, IsPath()]
#: Settings that the training does not depend on: with others, what is trained is scored again.
SCORING_SETTINGS = ("test", "tile_size", "overlap", "picking", "bandwidth", "skip")
#: More of these, which most comparisons do not have.
MORE_SCORING = ("segmentation", "picks")


def _microscope() -> dict[str, Setting]:
    """The settings of `fit_microscope` that are plain values."""
    optics = Part({name: setting_of(ContrastTransfer, name) for name in KNOWN_OPTICS})
    told = settings_of(
        fit_microscope,
        without=("series", "specimens", "ctf", "extend", "shape", "features", "bank", "seed", "origin", "progress"),
        choices={"scale": SCALE_SOURCES, "crowd": CROWDS},
    )
    usual = " to ".join(f"{one:g}" for one in DEFOCUS_RANGE)
    defocus = f"µm, of all series: a number that is known, or (lowest, highest) to be searched. By default {usual} µm."
    return told | {
        "defocus": replace(told["defocus"], help=defocus),
        "optics": replace(told["optics"], hint=Annotated[Mapping[str, Any], optics]),
    }


#: Tables of a comparison, each with more settings of what it is for: all that have no setting of their own.
TABLES: dict[str, dict[str, Setting]] = {
    "training": settings_of(
        TrainingSettings, without=("steps", "learning_rate", "cross_entropy", "precision", "validate_every")
    ),
    "patches": settings_of(
        FakETDataset,
        without=(
            *("specimens", "simulator", "patch_size", "patches_per_tomogram", "tomograms_per_epoch", "shift"),
            *("class_balanced", "seed", "rank", "world_size", "item_device", "transform"),
        ),
    ),
    "encoder": settings_of(VGG19Features, without=("weights", "precision")),
    "bank": settings_of(StyleBank.build, without=("tilt_series", "features", "style_layers", "cache")),
    "segmentation": settings_of(
        segment,
        without=("network", "tomogram", "tile_size", "overlap", "precision", "device", "normalized", "voxel_size"),
    ),
    "picks": settings_of(pick, without=("labels", "method", "bandwidth", "min_sizes")),
    "microscope": _microscope(),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A whole comparison: every arm is trained with every seed, and scored on the same measured tomograms.

    Labels of the validation specimen choose the step and the sizes of picks; those of the test specimens touch the
    score only. Settings that the library has, too, have its defaults.

    Parameters
    ----------
    train, validation, test
        Folders in SHREC's layout, each with the target's `projections.mrc` and `alignment_simulated.txt`.
    arms
        By name; the published ones by default.
    seeds
        Each gives first weights, patches and simulations of its own.
    generated
        What the specimens of arms with `specimens="generated"` hold, see `RECIPE`: particles of the classes of the
        validation specimen, which have its numbers and its voxel size.
    style
        Folders or files of the unlabelled tilt-series; those of `train` by default.
    clean
        Folders of specimens whose clean projections are compared with the style in the fit of `noise="unpaired"`; by
        default the validation specimen, which is none of those that were measured for training.
    weights, style_layers
        Of the encoder and of the style bank, see `VGG19Features` and `StyleBank.build`.
    z_range
        As for `GrandModel.from_shrec`.
    filter
        Of the reconstruction, of measured and simulated tilts alike.
    steps
        Of the training; as published by default, 70 epochs of 100 steps.
    batch_size
        Patches of a step; as published by default.
    patch_size, shift, patches_per_tomogram, class_balanced
        Of the patches, see `FakETDataset`; as published by default.
    learning_rate, cross_entropy, validate_every, precision
        Of the training, see `TrainingSettings`; the precision also of the encoder.
    validation_patches
        Patches of the validation tomogram that give its loss.
    widths
        Of the network, see `DeepFinderNet`.
    tile_size, overlap
        Of the segmentation, see `segment`.
    picking, bandwidth
        How picks are found in a segmented tomogram, see `pick`.
    skip
        Classes that the score leaves out.
    device, threads
        Where it all runs, and with how many threads.
    workers
        Processes that simulate, of a `DataLoader`.
    training, patches, encoder, bank, segmentation, picks
        More settings of `TrainingSettings`, `FakETDataset`, `VGG19Features`, `StyleBank.build`, `segment` and `pick`.
    microscope
        Settings of `fit_microscope`, for the fit of `noise="unpaired"`.
    """

    train: Sequence[_Path]
    validation: _Path
    test: Sequence[_Path]
    arms: Mapping[str, Arm] = field(default_factory=lambda: PAPER_ARMS)
    seeds: Sequence[int] = (0,)
    generated: Annotated[Mapping[str, Any], Part(RECIPE, _RENAMED_RECIPE)] | None = None
    style: Sequence[_Path] = ()
    clean: Sequence[_Path] = ()
    weights: Encoder = from_library(VGG19Features, "weights")
    style_layers: Sequence[int] = from_library(StyleBank.build, "style_layers")
    z_range: str | tuple[int, int] | None = from_library(GrandModel.from_shrec, "z_range")
    filter: str = from_library(FakETSimulator, "filter")
    steps: int = 7000
    batch_size: int = 25
    patch_size: int = from_library(FakETDataset, "patch_size")
    shift: int = from_library(FakETDataset, "shift")
    patches_per_tomogram: int = 250
    learning_rate: float = from_library(TrainingSettings, "learning_rate")
    cross_entropy: float = from_library(TrainingSettings, "cross_entropy")
    class_balanced: bool = True
    validate_every: int = from_library(TrainingSettings, "validate_every")
    validation_patches: int = 100
    widths: Sequence[int] = from_library(DeepFinderNet, "widths")
    precision: str = from_library(TrainingSettings, "precision")
    tile_size: int = from_library(segment, "tile_size")
    overlap: int = from_library(segment, "overlap")
    picking: str = "mean-shift"
    bandwidth: float = from_library(pick, "bandwidth")
    skip: Sequence[str] = from_library(evaluate_shrec, "skip")
    device: str = from_library(FakETSimulator, "device")
    threads: int = from_library(FakETSimulator, "threads")
    workers: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)
    patches: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    bank: Mapping[str, Any] = field(default_factory=dict)
    segmentation: Mapping[str, Any] = field(default_factory=dict)
    picks: Mapping[str, Any] = field(default_factory=dict)
    microscope: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("train", "test", "arms", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"expected at least one entry in `{name}`, got none")
        for name in ("steps", "batch_size", "patch_size", "patches_per_tomogram", "validate_every", "threads"):
            check_count(name, getattr(self, name))
        check_count("validation_patches", self.validation_patches)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("picking", self.picking, METHODS)
        check_choice("filter", self.filter, FILTERS)
        check_positive("bandwidth", self.bandwidth)
        check_positive("learning_rate", self.learning_rate)
        check_tiles((self.tile_size,) * 3, self.overlap)
        if len(self.widths) != 3 or min(self.widths) < 1:
            raise ValueError(f"expected `widths` of three levels, each 1 or more, got {tuple(self.widths)}")
        parts = [[Path(name).resolve() for name in part] for part in (self.train, (self.validation,), self.test)]
        folders = [folder for part in parts for folder in part]
        twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
        if twice:
            raise ValueError(f"expected different specimens for training, validation and test, got {twice} twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected each of the `seeds` once, got {list(self.seeds)}")
        for name, arm in self.arms.items():
            if "/" in name or name.startswith("."):
                raise ValueError(f"expected names of arms that can be folders, got {name!r}")
            if arm.specimens == "generated" and self.generated is None:
                raise ValueError(
                    f"arm {name}: expected `generated`, which says what its specimens hold, got none; set it"
                )
            if arm.start is not None and arm.start not in self.arms:
                raise ValueError(f"arm {name}: expected `start` to be one of {', '.join(self.arms)}, got {arm.start!r}")
            if arm.tomograms is not None and arm.tomograms > len(self.train):
                raise ValueError(
                    f"arm {name}: expected at most {len(self.train)} `tomograms`, as many as `train`, got "
                    f"{arm.tomograms}"
                )
        self.ordered_arms()
        for name in TABLES:
            self.more(name)
        self._check_microscope()
        if self.generated is not None:
            read_table(RECIPE, self.generated, "generated", renamed=_RENAMED_RECIPE)

    def _check_microscope(self) -> None:
        """Refuse at once what the fit would refuse after other arms were trained."""
        settings = self.more("microscope")
        for name, check in (("count", check_count), ("exposure", check_positive), ("thickness", check_positive)):
            if settings.get(name) is not None:
                check(f"microscope.{name}", settings[name])
        if settings.get("noise_order") is not None:
            check_count("microscope.noise_order", settings["noise_order"], zero=True)
        if settings.get("crowd") == "occupancy":
            raise ValueError(
                'expected `microscope.crowd` to be "field", got "occupancy", which generates more particles, and the '
                "specimens of the fit are files; leave it out"
            )
        try:
            ContrastTransfer.within(**settings.get("optics", {}))
        except ValueError as error:
            raise ValueError(f"`microscope.optics`: {error}") from error

    def more(self, name: str) -> dict[str, Any]:
        """Return the settings of one of the `TABLES`, as the library takes them."""
        return read_table(TABLES[name], getattr(self, name), name)

    def generator(self, voxel_size: float, class_names: Mapping[int, str]) -> GrandModelGenerator:
        """Make the generator of `generated`.

        Parameters
        ----------
        voxel_size
            Å.
        class_names
            The class numbers that its specimens have.
        """
        recipe = read_table(RECIPE, self.generated or {}, "generated", renamed=_RENAMED_RECIPE)
        return make_generator(recipe, voxel_size=voxel_size, class_table=class_names, threads=self.threads)

    def ordered_arms(self) -> list[str]:
        """Names of the arms, each after the one that it starts from.

        Raises
        ------
        ValueError
            If arms start from each other in a circle.
        """
        done: list[str] = []
        while len(done) < len(self.arms):
            ready = [n for n, arm in self.arms.items() if n not in done and (arm.start is None or arm.start in done)]
            if not ready:
                left = ", ".join(name for name in self.arms if name not in done)
                raise ValueError(f"expected arms whose `start` leads to one without, got a circle of {left}")
            done += ready
        return done

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON types."""
        told = {**asdict(self), "arms": {name: asdict(arm) for name, arm in self.arms.items()}}
        # What a later version may have another default for is said.
        said = {name: RECIPE[name].default for name in BEFORE}
        return told | ({"generated": said | dict(self.generated)} if self.generated is not None else {})

    def differences(self, kept: Mapping[str, Any]) -> list[str]:
        """Name the settings, but for arms, in which a comparison that was kept by `to_dict` differs from this one.

        Parameters
        ----------
        kept
            As JSON types; what an older version did not know has its default.
        """
        known = {name: one.default for name, one in settings_of(Comparison).items() if name != "arms"}
        plain = {name: as_json(default) for name, default in known.items() if default is not MISSING}
        before, now = (_comparable(plain | dict(settings)) for settings in (kept, as_json(self.to_dict())))
        return sorted(name for name in {*before, *now} - {"arms"} if before.get(name) != now.get(name))

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a comparison: the settings above at the top, and a table `[arms.NAME]` for each arm.

        Relative paths are taken from the file's folder.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If there is no such file, it is no TOML, or a setting is unknown or cannot be; the message names the file.
        """
        path = Path(path)
        table = load_table(path, "a comparison's TOML file", usual="toml")
        try:
            given = {name: one for name, one in table.items() if name != "arms" or one}
            made: Self = read_value(cls, given, "", lambda entry: str((path.parent / entry).resolve()))
            return made
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise FileFormatError(f"{path}: {error}") from error


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the recipe of `generated` to today's names, with its defaults, so that it compares."""
    if not settings.get("generated"):
        return dict(settings)
    given = BEFORE | {_RENAMED_RECIPE.get(name, name): one for name, one in settings["generated"].items()}
    recipe = {name: one.default for name, one in RECIPE.items()} | read_table(RECIPE, given, "generated")
    told = {name: as_json(one) for name, one in recipe.items() if one is not MISSING}
    return dict(settings) | {"generated": {name: one for name, one in told.items() if one not in (None, {}, [])}}


def described() -> dict[str, list[str]]:
    """Describe all settings of a comparison's file, a line each, by their table: type, meaning, default."""
    tables = {"": settings_of(Comparison), "arms.NAME": settings_of(Arm), "arms.NAME.simulator": SIMULATOR}
    own = {name: one for name, one in member_settings(MEMBER).items() if name not in SIMULATOR}
    tables |= {f"arms.NAME.simulator.{MIXTURE}": own, "generated": RECIPE} | TABLES
    # A table is described under its own name.
    told = {name: one for name, one in tables[""].items() if name not in ("arms", *tables)}
    lines = {"": told} | {name: table for name, table in tables.items() if name}
    return {
        table: [f"{n} ({expected(one.hint)}): {explained(one).replace('`', '')}" for n, one in settings.items()]
        for table, settings in lines.items()
    }
