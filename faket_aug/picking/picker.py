"""What a run's network is for, kept with its weights: its classes, and how the tomograms of its training were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from faket_aug._checks import FileFormatError, check_choice, check_count, check_fraction, check_positive
from faket_aug.microscope.flavours import FLAVOURS
from faket_aug.picking.checkpoints import BEST, CHECKPOINT, load_weights, read_state, write_state
from faket_aug.picking.network import DeepFinderNet
from faket_aug.tomography.filters import FILTERS

#: Where a checkpoint keeps the description.
PICKER = "picker"
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class PickerDescription:
    """What a network tells apart, and in which tomograms.

    Parameters
    ----------
    class_names
        Names of the class numbers, from 1; 0 is the background.
    widths
        Of the `DeepFinderNet`.
    voxel_size
        Å, of the tomograms.
    filter
        Of their reconstruction.
    bin
        By how much the tilts were binned in the reconstruction.
    ctf_correction
        Of their tilts, see `FakETSimulator`; None for none.
    flavour
        Of the tomograms, see `FakETSimulator`; None where `ctf_correction` alone tells.
    radii
        Å, of each class: of the sphere that has the volume of a particle's labels.
    target_radius
        Share of the radius that the spheres of the training's targets had; 1 where the labels had the particles' shape.
    distractors
        Names of what was simulated without a class of its own: it belongs to the background.
    thresholds
        The score from which on a pick of a class counts; empty where none were chosen.
    channels
        Flavours of the tomogram that are the network's channels, in this order, see `FakETDataset`; empty where it has
        one channel.

    Raises
    ------
    ValueError
        If a value is impossible.
    """

    class_names: Mapping[int, str]
    widths: Sequence[int]
    voxel_size: float
    filter: str
    bin: int = 1
    ctf_correction: str | None = None
    flavour: str | None = None
    radii: Mapping[int, float]
    target_radius: float = 1.0
    distractors: Sequence[str] = ()
    thresholds: Mapping[int, float] = field(default_factory=dict)
    channels: Sequence[str] = ()

    def __post_init__(self) -> None:
        names = {_number("class_names", key): str(name) for key, name in sorted(_table("class_names", self).items())}
        if not names or len(set(names.values())) < len(names):
            raise ValueError(f"expected `class_names` of one class or more, each with its name, got {names}")
        radii, thresholds = ({int(n): float(v) for n, v in _table(k, self).items()} for k in ("radii", "thresholds"))
        for key, numbers in (("radii", set(radii) ^ set(names)), ("thresholds", set(thresholds) - set(names))):
            if numbers:
                raise ValueError(f"expected `{key}` of classes {list(names)}, got classes {sorted(getattr(self, key))}")
        for number, radius in radii.items():
            check_positive(f"radii[{number}]", radius)
        for number, threshold in thresholds.items():
            check_fraction(f"thresholds[{number}]", threshold)
        widths = tuple(int(width) for width in self.widths)
        if len(widths) != 3 or min(widths) < 1:
            raise ValueError(f"expected `widths` of three levels, each 1 or more, got {widths}")
        check_positive("voxel_size", self.voxel_size)
        check_choice("filter", self.filter, FILTERS)
        if self.flavour is not None:
            check_choice("flavour", self.flavour, FLAVOURS)
        check_count("bin", self.bin)
        check_positive("target_radius", self.target_radius)
        for channel in self.channels:
            check_choice("channels", channel, FLAVOURS)
        if len(set(self.channels)) < len(self.channels):
            raise ValueError(f"expected each flavour once in `channels`, got {', '.join(self.channels)}")
        object.__setattr__(self, "channels", tuple(self.channels))
        made = {"class_names": names, "widths": widths, "radii": radii, "thresholds": thresholds}
        for name, value in (made | {"distractors": tuple(map(str, self.distractors))}).items():
            object.__setattr__(self, name, value)

    @property
    def kind(self) -> str:
        """What was done to tilts or tomograms beside the reconstruction: one of `FLAVOURS`."""
        return kind_of(self.flavour, self.ctf_correction)

    @property
    def in_channels(self) -> int:
        """How many channels the network sees."""
        return max(len(self.channels), 1)

    @property
    def classes(self) -> int:
        """How many classes the network has, the background among them."""
        return 1 + max(self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        tables = {name: {str(n): v for n, v in value.items()} for name, value in found.items() if name in _TABLES}
        lists = {name: list(found[name]) for name in ("widths", "distractors", "channels")}
        # Descriptions of one channel are those from before there were several.
        return {name: one for name, one in (found | tables | lists).items() if one or name not in _LATER}

    @classmethod
    def from_dict(cls, content: Any, *, source: str = "a picker") -> Self:
        """Read what `to_dict` returned.

        Parameters
        ----------
        content
            JSON types.
        source
            The file, for messages.

        Raises
        ------
        FileFormatError
            If it is something else; the message names the file.
        """
        known = {one.name for one in fields(cls)}
        if not isinstance(content, Mapping) or set(content) | set(_LATER) != known:
            told = sorted(map(str, content)) if isinstance(content, Mapping) else content
            wanted = ", ".join(sorted(known - set(_LATER)))
            raise FileFormatError(f"{source}: expected a picker with {wanted}, got {str(told)[:200]}")
        try:
            tables = {name: {int(n): value for n, value in content[name].items()} for name in _TABLES}
            return cls(**{**content, **tables})
        except (ValueError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{source}: expected the description of a picker, got another ({error})") from error


def kind_of(flavour: str | None, ctf_correction: str | None) -> str:
    """Name what was done to tilts or tomograms by the two settings that may say it."""
    return flavour or ctf_correction or FLAVOURS[0]


#: What older descriptions do not have.
_LATER = ("channels", "flavour")
#: By class number.
_TABLES = ("class_names", "radii", "thresholds")


@dataclass(frozen=True, kw_only=True)
class Picker:
    """A trained network, ready to use.

    Parameters
    ----------
    network
        With its weights, in evaluation mode; it knows how its patches were prepared.
    description
        What it tells apart, and in which tomograms.
    path
        The file of the weights.
    """

    network: DeepFinderNet
    description: PickerDescription
    path: Path


def load_picker(run: str | Path, *, device: torch.device | str | None = None) -> Picker:
    """Load the network of a run of `faket-aug train`, or of `fit` with `describes`.

    Parameters
    ----------
    run
        The run's folder: `best.pt` is taken where there is one, else `checkpoint.pt`. Or one of these files.
    device
        Where the network is put; by default the CPU.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is damaged, or it does not say what its network is for.
    """
    path = weights_of(run)
    description = _description(read_state(path), path)
    with torch.random.fork_rng(devices=[]):
        network = DeepFinderNet(
            description.classes,
            in_channels=description.in_channels,
            widths=description.widths,
            voxel_size=description.voxel_size,
        )
    load_weights(network, path)
    return Picker(network=network.to(device or "cpu").eval(), description=description, path=path)


def describe_run(run: str | Path) -> PickerDescription:
    """Tell what a run's network is for, without making it.

    Parameters
    ----------
    run
        As for `load_picker`.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is damaged, or it does not say what its network is for.
    """
    path = weights_of(run)
    return _description(read_state(path), path)


def weights_of(run: str | Path) -> Path:
    """Find the weights of a run: `best.pt` where there is one, else `checkpoint.pt`; a file is taken as it is.

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    path = Path(run)
    found = path if path.is_file() else next((path / one for one in (BEST, CHECKPOINT) if (path / one).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{path}: expected the folder of a training with {BEST} or {CHECKPOINT}, or one of these files, found "
            f"{'neither in it' if path.is_dir() else 'nothing there'}; train with `faket-aug train`, or name its folder"
        )
    return found


def set_thresholds(run: str | Path, thresholds: Mapping[int, float]) -> PickerDescription:
    """Write the thresholds of picks into the files of a run, `best.pt` and `checkpoint.pt`.

    Parameters
    ----------
    run
        The run's folder.
    thresholds
        By class number, within [0, 1].

    Returns
    -------
    The description as it is now.

    Raises
    ------
    FileNotFoundError, ValueError
        If there are no such files, they do not say what their network is for, or a threshold is impossible.
    """
    weights_of(run)
    files = [path for path in (Path(run) / BEST, Path(run) / CHECKPOINT) if path.is_file()]
    for path in files:
        state = read_state(path)
        description = replace(_description(state, path), thresholds=thresholds)
        write_state(path, state | {PICKER: description.to_dict()})
    return description


def _description(state: Mapping[str, Any], path: Path) -> PickerDescription:
    if state.get(PICKER) is None:
        raise FileFormatError(
            f"{path}: expected weights that say what their network is for, got none that do; train with `faket-aug "
            "train`, or give `describes` to `fit`"
        )
    return PickerDescription.from_dict(state[PICKER], source=str(path))


def _table(name: str, description: PickerDescription) -> dict[Any, Any]:
    found = getattr(description, name)
    if not isinstance(found, Mapping):
        raise ValueError(f"expected `{name}` by class number, got {found!r}")
    return dict(found)


def _number(name: str, key: Any) -> int:
    check_count(f"{name}: class", key)
    return int(key)
