"""Simulated tomograms, and the records that make them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import FileFormatError, check_choice, check_flag, check_same_shape, checked_names
from faket_aug._identity import described
from faket_aug._random import torch_seed
from faket_aug.formats._json import seal, unseal
from faket_aug.microscope.flavours import FLAVOURS
from faket_aug.microscope.misalignment import TiltErrors
from faket_aug.simulation.saving import (
    HALF_FILES,
    NOISELESS_FILE,
    RECORD_FILE,
    TOMOGRAM_FILE,
    SavedTomogram,
    check_formats,
    check_names,
    flavour_file,
    read_record_file,
    rewritten_folder,
)
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.particles import Labelled, check_companions

#: Key of a record's settings: a simulator of one's own.
SIMULATOR = "simulator"
#: Packages, besides torch, whose version may change the last bits of a result.
_PACKAGES = ("faket_aug", "numpy", "scipy")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a tomogram depends on."""
    return {"torch": str(torch.__version__)} | {name: version(name) for name in _PACKAGES}


@dataclass(frozen=True, kw_only=True)
class SimulationRecord:
    """The record that makes a simulated tomogram again from its specimen: random seeds and the simulator's settings.

    Parameters
    ----------
    seed, epoch, tomogram
        The address of all random numbers.
    specimen
        Name of the specimen.
    noise_seed
        Seed of the generator of the noise.
    style_series
        Index of the series in the style bank; -1 where no style was used.
    settings
        The settings of the simulator, as JSON types.
    versions
        Versions of the packages that were used.
    defocus
        `(tilt,)`, the drawn defocus in µm; empty without a contrast transfer function.
    misalignment
        `(tilt, 4)`, the drawn errors, in the order of `misalignment.ERRORS`; empty where tilts are aligned.
    ice
        What was drawn of the ice: the numbers of a `DrawnIce`, or `series` and `mirrored` (y, x) of a measured map;
        empty for ice of even thickness.
    """

    seed: int
    epoch: int
    tomogram: int
    specimen: str
    noise_seed: int
    style_series: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)
    defocus: tuple[float, ...] = ()
    misalignment: TiltErrors = ()
    ice: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # JSON has only lists.
        object.__setattr__(self, "defocus", tuple(self.defocus))
        object.__setattr__(self, "misalignment", tuple(tuple(row) for row in self.misalignment))

    @classmethod
    def of(
        cls, simulator: object, specimen: Labelled, *, seed: int, epoch: int = 0, tomogram: int = 0, **settings: Any
    ) -> Self:
        """Make the record of a tomogram that a simulator of your own makes.

        Parameters
        ----------
        simulator
            It stands in the settings as `simulator`, with its class and its settings: those that its method
            `settings()` returns, as JSON types, or else its attributes.
        specimen
            The specimen.
        seed, epoch, tomogram
            The address of all random numbers. `noise_seed` is drawn from it, for `torch.Generator.manual_seed`.
        **settings
            More settings, as JSON types; `modality` is what files of the tomogram are named after.

        Raises
        ------
        TypeError
            If an attribute of the simulator cannot be told apart from others; the message names it.
        """
        record = cls(
            seed=seed,
            epoch=epoch,
            tomogram=tomogram,
            specimen=specimen.name,
            noise_seed=torch_seed(seed, "noise", epoch=epoch, tomogram=tomogram),
            style_series=-1,
            settings={"modality": "noisy"} | settings,
            versions=package_versions(),
        )
        return record.told_by(simulator)

    def told_by(self, simulator: object) -> Self:
        """Return the record with the class and the settings of a simulator that goes on from another one's tomogram.

        Parameters
        ----------
        simulator
            As for `of`.

        Raises
        ------
        TypeError
            As for `of`.
        """
        before = [self.settings[SIMULATOR]] if SIMULATOR in self.settings else []
        told = [*before, described(simulator)]
        return replace(self, settings=dict(self.settings) | {SIMULATOR: told[0] if len(told) == 1 else told})

    def to_json(self) -> str:
        """Write the record as JSON text."""
        return seal(self.to_dict(), indent=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON types; without `ice` where it is even, as records were before."""
        return {name: one for name, one in asdict(self).items() if name != "ice" or one}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a record from the text of `to_json`, strictly."""
        return cls._of(unseal(text, source="record", what="a simulation record"))

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> Self:
        wanted = {entry.name for entry in fields(cls)} - {"ice"}
        if not isinstance(data, Mapping):
            raise ValueError(f"expected a simulation record with {sorted(wanted)}, got {data!r:.80}")
        if set(data) - {"ice"} != wanted:
            raise ValueError(f"expected a simulation record with {sorted(wanted)}, got {sorted(data)}")
        kinds: dict[str, Any] = {"specimen": str, "settings": Mapping, "versions": Mapping, "defocus": list | tuple}
        kinds |= {"ice": Mapping} if "ice" in data else {}
        kinds |= {"misalignment": list | tuple} | dict.fromkeys(
            ("seed", "epoch", "tomogram", "noise_seed", "style_series"), int
        )
        for name, kind in kinds.items():
            if not isinstance(data[name], kind):
                raise ValueError(f"expected a simulation record, got {data[name]!r:.80} for `{name}`")
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"expected a simulation record, got other numbers: {error}") from error

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the record of a saved tomogram.

        Parameters
        ----------
        path
            The folder that `SimulatedTomogram.save` wrote, or the `record.json` in it.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If there is no record, or the file is something else.
        """
        path = Path(path)
        file = path / RECORD_FILE if path.is_dir() else path
        try:
            return cls._of(read_record_file(file)["record"])
        except FileFormatError:
            raise
        except ValueError as error:
            raise FileFormatError(f"{file}: {error}") from error


#: Halves of a tomogram with independent noise: of every other tilt, or of half of the exposure of each.
HALVES = ("tilts", "exposures")


@dataclass(frozen=True, kw_only=True)
class Companions:
    """What is made beside a tomogram, see `FakETSimulator.simulate`; nothing by default."""

    halves: str | None = None
    clean: bool = False
    flavours: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "flavours", checked_names("flavours", self.flavours, FLAVOURS))
        check_flag("clean", self.clean)
        if self.halves is not None:
            check_choice("halves", self.halves, HALVES)

    def __bool__(self) -> bool:
        """Whether anything is."""
        return bool(self.asked())

    def asked(self) -> dict[str, Any]:
        """Return what to ask a simulator for: the arguments that are not the default."""
        named: dict[str, Any] = {"halves": self.halves, "clean": self.clean, "flavours": self.flavours}
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True, kw_only=True)
class SimulatedTomogram(Labelled):
    """A tomogram, its labels, and the tilt-series it was reconstructed from.

    Parameters
    ----------
    tiltseries
        `(tilt, y, x)`, float32, dark particles, in the unit of the style; not binned.
    tilt_angles
        `(tilt,)`, degrees.
    tomogram
        `(z, y, x)`, float32, dark particles.
    labels, instances
        As of `Labelled`, of the tomogram's shape.
    voxel_size
        Å, of the tomogram.
    record
        The record that makes the tomogram again from its specimen.
    halves
        Two tomograms `(z, y, x)` with the same signal and independent noise, where they were asked for.
    clean
        `(z, y, x)`, the tomogram without noise, in its unit, where it was asked for.
    flavours
        The tomogram in other flavours, `(z, y, x)` each, by their names, where they were asked for.
    name
        For messages; by default the specimen's.
    particles, class_names, not_particles
        As of `Labelled`. Particles of the classes `not_particles` are written into SHREC's list only.

    Raises
    ------
    ValueError, FileFormatError
        If labels, instances and particle table do not fit together.
    """

    tiltseries: Tensor
    tilt_angles: FloatArray
    tomogram: Tensor
    record: SimulationRecord
    halves: tuple[Tensor, Tensor] | None = None
    clean: Tensor | None = None
    flavours: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.record.specimen)
        super().__post_init__()
        check_companions(self.halves, self.clean, self.flavours, self.tomogram)

    @property
    def bin(self) -> int:
        """Pixels of a tilt, along each axis, per voxel of the tomogram."""
        return self.tiltseries.shape[-2] // self.tomogram.shape[-2]

    def save(
        self,
        folder: str | Path,
        *,
        formats: Sequence[str] = ("shrec",),
        specimen: GrandModel | None = None,
        noiseless: Tensor | None = None,
        copick_project: str | Path | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the tomogram, its tilt-series, labels and particles into a folder, under SHREC's names.

        The files are `projections.mrc`, `.tlt` and `.rawtlt` (`projections_unbinned` where the tilts are finer than the
        tomogram), `reconstruction.mrc`, `class_mask.mrc`, `occupancy_mask.mrc`, `class_conversion_table.txt`, the lists
        of particles, and `record.json`, which makes the tomogram again from its specimen. Halves are written as
        `reconstruction_even.mrc` (the first) and `reconstruction_odd.mrc`, flavours as `reconstruction_low-pass.mrc`.
        Each file is complete or does not exist. The record is written last: a folder without it is not finished.
        `TiltSeries.read` reads the folder. `GrandModel.from_shrec` reads it, too, if `specimen` was given (set
        `z_range=None` for tomograms of 512³, which would be cut as those of SHREC 2021).

        Parameters
        ----------
        folder
            The folder; it is made if it does not exist. A tomogram that was saved there before is replaced. A folder
            with other files is refused.
        formats
            Formats of the particles: `"shrec"` (`particle_locations.txt`), `"star3"`, `"star4"`, `"star5"` (RELION 3, 4
            or 5), `"deepfinder"` (`object_list.xml`), `"copick"` (picks, segmentation and tomogram, in a run with the
            folder's name). Only SHREC's list contains the classes that are `not_particles`.
        specimen
            The specimen of the tomogram. If it is given, its density is written as `grandmodel.mrc`.
        noiseless
            `(z, y, x)`, the tomogram without noise, written as `reconstruction_noiseless.mrc`; by default `clean`, if
            it was made.
        copick_project
            Folder of the copick project, which several tomograms may share; by default `copick` within the folder.
        origin
            Where the specimen came from, as JSON types, for the record: the record holds the address of a generated
            specimen, but not the settings of its generator. `faket-aug simulate` keeps its options here. They make
            specimen and tomogram again, for example tomogram 7 alone:
            `faket-aug simulate again --config set/tomogram_0007/record.json --count 8 --shard 8/8`.

        Raises
        ------
        ValueError
            For an unknown format, or if the specimen or the noiseless tomogram has another shape.
        FileExistsError
            If the folder holds other files.
        OSError
            If the folder cannot be written, or the disk is full.
        """
        check_formats(formats)
        check_names(self.all_class_names, formats, tomogram=Path(folder).resolve().name)
        noiseless = self.clean if noiseless is None else noiseless
        if noiseless is not None:
            check_same_shape("noiseless", noiseless.shape, "tomogram", self.tomogram.shape)
        if specimen is not None:
            check_same_shape("specimen.labels", specimen.labels.shape, "labels", self.labels.shape)
        unbinned = "_unbinned" if self.bin > 1 else ""
        fine, coarse = self.voxel_size / self.bin, self.voxel_size
        volumes = {
            f"projections{unbinned}.mrc": (self.tiltseries, fine),
            TOMOGRAM_FILE: (self.tomogram, coarse),
            NOISELESS_FILE: (noiseless, coarse),
            **{name: (half, coarse) for name, half in zip(HALF_FILES, self.halves or (None, None), strict=True)},
            **{flavour_file(Path(TOMOGRAM_FILE), n).name: (one, coarse) for n, one in self.flavours.items()},
            f"grandmodel{unbinned}.mrc": (None if specimen is None else specimen.density, fine),
            "class_mask.mrc": (self.labels, coarse),
            "occupancy_mask.mrc": (self.instances, coarse),
        }
        with rewritten_folder(folder) as files:
            # Small files come first: an error of a format is raised before the volumes are written.
            files.class_names(self.all_class_names)
            saved = SavedTomogram(
                labelled=self,
                tomogram=self.tomogram,
                name=files.path.resolve().name,
                modality=str(self.record.settings["modality"]),
                copick_project=files.path / "copick" if copick_project is None else Path(copick_project),
            )
            files.particles(saved, formats)
            files.angles(f"projections{unbinned}", self.tilt_angles)
            for name, (data, voxel_size) in volumes.items():
                if data is not None:
                    files.volume(name, data, voxel_size=voxel_size)
            files.finish(self.record.to_dict(), origin or {})
