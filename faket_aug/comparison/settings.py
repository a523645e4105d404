"""What a comparison of training data is: its specimens, its arms, and how each is trained; read from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from faket_aug._checks import FileFormatError, check_choice, check_count, check_positive
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.templates import find_templates, read_templates
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.imperfections import Imperfections
from faket_aug.picking.clustering import BANDWIDTH, METHODS
from faket_aug.picking.inference import OVERLAP, TILE_SIZE, check_tiles
from faket_aug.picking.network import WIDTHS
from faket_aug.picking.precision import PRECISIONS
from faket_aug.picking.settings import LEARNING_RATE
from faket_aug.simulation.simulator import MODALITIES, FakETSimulator
from faket_aug.style.transfer import STYLE_LAYERS
from faket_aug.tomography.filters import FILTERS

#: Where an arm's patches come from: tomograms of the target's own tilt-series, or simulated ones.
SOURCES = ("measured", "simulated")
#: For `step_size`: chosen by tilts that are held out.
AUTO = "auto"
#: What simulated tilts are of: the training specimens, or new ones for every tomogram.
SPECIMENS = ("train", "generated")
#: How the noise of simulated tilts is fitted.
NOISES = ("paired", "unpaired")


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
        `"train"`: the training specimens, again and again; `"generated"`: new ones without end, see `Generated`.
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
        More settings of `FakETSimulator`; `ctf` and `imperfections` as tables of theirs, `step_size` also as `"auto"`,
        see `choose_step_size`.
    """

    source: str = "simulated"
    modality: str = "faket"
    specimens: str = "train"
    noise: str = "paired"
    weights: str | None = None
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
        own = {"tilt_angles", "modality", "noise", "style", "features"}
        unknown = sorted(set(self.simulator) - {e.name for e in fields(FakETSimulator) if e.init and e.name not in own})
        if unknown:
            raise ValueError(f"expected settings of `FakETSimulator` in `simulator`, got {', '.join(unknown)}")
        self.simulator_settings()
        step = self.simulator.get("step_size", 0.0)
        if isinstance(step, str) and (step != AUTO or self.modality != "faket"):
            raise ValueError(f'expected `step_size` as a number, or "{AUTO}" with the modality "faket", got {step!r}')
        if step == AUTO and "keep_spectrum" in self.simulator:
            raise ValueError(f'expected no `keep_spectrum` beside a step of "{AUTO}", which chooses both; leave it out')

    def simulator_settings(self) -> dict[str, Any]:
        """Return `simulator` as `FakETSimulator` takes it."""
        settings = dict(self.simulator)
        readers: Mapping[str, Callable[[dict[str, Any]], Any]] = {
            "ctf": ContrastTransfer.from_dict,
            "imperfections": Imperfections.from_dict,
        }
        for name, read in readers.items():
            if isinstance(settings.get(name), Mapping):
                settings[name] = read(dict(settings[name]))
        return settings


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Specimens without end, see `GrandModelGenerator`; classes have the validation specimen's numbers.

    Parameters
    ----------
    templates
        Files or folders of density maps and structures, named as the classes.
    shape
        `(z, y, x)`, voxels.
    count
        Of each class: a number, or (lowest, highest).
    normalize
        Bring maps to volts, see `ParticleTemplate.from_map`.
    factor
        On the templates' density.
    threshold
        Density, after `factor`, above which a voxel belongs to a particle; by default each template's own. Labels
        should be as large as those of the measured specimens.
    fiducials
        Settings of `FiducialSpecies`; without, no gold.
    """

    templates: Sequence[str]
    shape: Sequence[int]
    count: int | Sequence[int]
    normalize: bool = True
    factor: float = 1.0
    threshold: float | None = None
    fiducials: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)
        if self.threshold is not None:
            check_positive("threshold", self.threshold)

    def generator(self, voxel_size: float, class_names: Mapping[int, str], *, threads: int = 1) -> GrandModelGenerator:
        """Make the generator for a voxel size in Å, with the numbers of a class table."""
        count = self.count if isinstance(self.count, int) else (self.count[0], self.count[1])
        paths = [path for entry in self.templates for path in find_templates(entry)]
        made = read_templates(paths, voxel_size=voxel_size, normalize=self.normalize)
        scaled = [
            replace(one, density=one.density * self.factor, threshold=self.threshold or one.threshold * self.factor)
            for one in made
        ]
        return GrandModelGenerator(
            particles=[ParticleSpecies(templates=one, count=count) for one in scaled],
            fiducials=FiducialSpecies(**self.fiducials) if self.fiducials else (),
            shape=self.shape,
            voxel_size=voxel_size,
            class_table=class_names,
            threads=threads,
        )


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
#: Settings that the training does not depend on: with others, what is trained is scored again.
SCORING_SETTINGS = ("test", "tile_size", "overlap", "picking", "bandwidth", "skip")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A whole comparison: every arm is trained with every seed, and scored on the same measured tomograms.

    Labels of the validation specimen choose the step and the sizes of picks; those of the test specimens touch the
    score only.

    Parameters
    ----------
    train, validation, test
        Folders in SHREC's layout, each with the target's `projections.mrc` and `alignment_simulated.txt`.
    arms
        By name.
    seeds
        Of all chance; each arm is trained once with each.
    generated
        The specimens of arms that have `specimens="generated"`.
    style
        Folders or stacks of unlabelled tilt-series; those of `train` by default.
    clean
        Folders of specimens whose projections the unpaired noise is fitted with; that of `validation` by default, which
        is none of those that were measured for training.
    weights
        Encoder weights: a file, `"torchvision"` or `"random"`.
    style_layers
        ReLUs of VGG-19.
    z_range
        As for `GrandModel.from_shrec`.
    filter
        Of the reconstruction, of measured and simulated tilts alike.
    steps, batch_size, patch_size, shift, patches_per_tomogram, learning_rate, cross_entropy, class_balanced
        Of the training; as published by default, at 70 epochs of 100 steps.
    validate_every, validation_patches
        Steps between validations, and how many patches of the validation tomogram give its loss.
    widths
        Of the network.
    precision
        Of network and encoder.
    tile_size, overlap
        Of the segmentation.
    picking, bandwidth
        How picks are found in a segmented tomogram.
    skip
        Classes that the score leaves out.
    device, threads, workers
        Where it all runs.
    """

    train: Sequence[str]
    validation: str
    test: Sequence[str]
    arms: Mapping[str, Arm]
    seeds: Sequence[int] = (0,)
    generated: Generated | None = None
    style: Sequence[str] = ()
    clean: Sequence[str] = ()
    weights: str = "torchvision"
    style_layers: Sequence[int] = STYLE_LAYERS
    z_range: str | None = "auto"
    filter: str = "shrec"
    steps: int = 7000
    batch_size: int = 25
    patch_size: int = 56
    shift: int = 13
    patches_per_tomogram: int = 250
    learning_rate: float = LEARNING_RATE
    cross_entropy: float = 0.0
    class_balanced: bool = True
    validate_every: int = 500
    validation_patches: int = 100
    widths: Sequence[int] = WIDTHS
    precision: str = "float32"
    tile_size: int = TILE_SIZE
    overlap: int = OVERLAP
    picking: str = "mean-shift"
    bandwidth: float = BANDWIDTH
    skip: Sequence[str] = ()
    device: str = "cpu"
    threads: int = 1
    workers: int = 0

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
        return {**asdict(self), "arms": {name: asdict(arm) for name, arm in self.arms.items()}}

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a comparison: the settings above at the top, and a table `[arms.NAME]` for each arm.

        Relative paths are taken from the file's folder. Without any arm it is the published set, `PAPER_ARMS`.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If there is no such file, it is no TOML, or a setting is unknown or cannot be; the message names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"expected a comparison's TOML file, found none at {path}")
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            arms = {
                name: Arm(**_from(path, _known(Arm, entry, f"arms.{name}")))
                for name, entry in table.pop("arms", {}).items()
            }
            settings = _from(path, {"train": [], "test": []} | _known(cls, table, "the top"))
            if "generated" in settings:
                settings["generated"] = Generated(**_from(path, _known(Generated, settings["generated"], "generated")))
            return cls(arms=arms or PAPER_ARMS, **settings)
        except (ValueError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path}: {error}") from error


def _from(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Take the paths among the settings from the file's folder."""
    for name in ("train", "test", "style", "clean", "templates"):
        if not isinstance(settings.get(name, []), list):
            raise ValueError(f"expected `{name}` to be a list of folders, got {settings[name]!r}")
        if name in settings:
            settings[name] = [_resolved(path, entry) for entry in settings[name]]
    if "validation" in settings:
        settings["validation"] = _resolved(path, settings["validation"])
    if settings.get("weights") not in (None, "torchvision", "random"):
        settings["weights"] = _resolved(path, settings["weights"])
    return settings


def _resolved(path: Path, entry: str) -> str:
    return str((path.parent / entry).resolve())


def _known(kind: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = [entry.name for entry in fields(kind)]
    unknown = sorted(set(table) - set(names))
    if unknown:
        raise ValueError(f"expected settings among {', '.join(names)} at {where}, got {', '.join(unknown)}")
    return dict(table)
