"""Sets of tomograms on disk: settings that are written once, shards, and going on after a stop."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faket_aug._checks import FileFormatError
from faket_aug._runtime.signals import done_at_a_late_end
from faket_aug.formats._atomic import ABANDONED, make_writable_folder, remove_parts
from faket_aug.formats._json import read_json, write_json
from faket_aug.formats._text import shortened
from faket_aug.simulation.saving import UNFINISHED_FILE, is_whole

SETTINGS_FILE = "simulation.json"
PREVIEW_FILE = "preview.png"
#: Within the folder of a set, deep enough that nothing in it is taken for a specimen of the set.
COPICK_PROJECT = Path("projects") / "copick"
#: In the folder of a set whose making stopped before a tomogram was whole: other settings may take its place.
STOPPED_FILE = ".stopped"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One part of the work: every `of`-th tomogram, from the `number`-th (counted from 1) on.

    Parameters
    ----------
    number, of
        1 to `of`.

    Raises
    ------
    ValueError
        If `number` lies outside.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ValueError(
                f"expected --shard i/n with i from 1 to n, got {self.number}/{self.of}; a job array that counts from 1 "
                "fits, as #SBATCH --array=1-10 with --shard $SLURM_ARRAY_TASK_ID/10"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`."""
        match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
        if match is None:
            raise ValueError(f"expected --shard to be i/n, as 3/10, got {text!r}")
        return cls(number=int(match[1]), of=int(match[2]))

    def indices(self, count: int) -> range:
        """Return which of `count` tomograms are this shard's; together, all shards have each once."""
        return range(self.number - 1, count, self.of)


def tomogram_folder(folder: Path, index: int) -> Path:
    """Return where tomogram `index` of a set is written."""
    return folder / f"tomogram_{index:04d}"


def open_set(
    folder: Path,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Make the folder of a set, or go on in one that was made with the same settings.

    Where the making of a set stopped before a tomogram was whole, other settings take the place of those.

    Parameters
    ----------
    folder
        The set's.
    settings
        All that its tomograms depend on, as JSON types.
    options
        What they were made from, as a user gives it; kept, but not compared: files may have moved. Their content is in
        the settings.
    defaults
        What settings are that an older set does not tell.
    renamed
        New names of the settings of an older set.

    Raises
    ------
    ValueError
        If the folder holds a set of other settings; the message names those that differ.
    OSError
        If it cannot be written, or holds other things.
    """
    try:
        make_writable_folder(folder)
    except OSError as error:
        raise OSError(
            f"expected an output folder that can be written, got {folder} ({error.strerror or error}); choose another"
        ) from error
    path = folder / SETTINGS_FILE
    wanted = json.loads(json.dumps(settings))
    if not path.is_file():
        # Other shards may be trying whether they can write here: what is gone at once is none of a user's files.
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        found = sorted(entry.name for entry in entries if entry.exists())
        if found and SETTINGS_FILE not in found:
            raise FileExistsError(
                f"expected an empty folder, or one with {SETTINGS_FILE}, got {folder} with {', '.join(found[:3])}; "
                "choose another"
            )
        if SETTINGS_FILE not in found:
            write_json(path, {"format": _FORMAT, "options": dict(options), "settings": wanted})
    remove_parts(folder, older_than=ABANDONED)
    # Read back, too: another shard may have begun the set with other settings at the same moment.
    differing = _differing(path, wanted, defaults or {}, renamed or {})
    if differing and stopped_early(folder):
        _remove_unfinished(folder)
        write_json(path, {"format": _FORMAT, "options": dict(options), "settings": wanted})
    if differing:
        # Here, or by another shard at the same moment, settings may have taken the place of others.
        differing = _differing(path, wanted, defaults or {}, renamed or {})
    if differing:
        empty = ", or remove this one, where no tomogram is whole" if not _has_whole(folder) else ""
        raise ValueError(
            f"expected the settings that {path} was made with, got others for {differing}; go on with those, or "
            f"choose another folder{empty}"
        )
    (folder / STOPPED_FILE).unlink(missing_ok=True)


def _differing(path: Path, wanted: Mapping[str, Any], defaults: Mapping[str, Any], renamed: Mapping[str, str]) -> str:
    kept = {renamed.get(name, name): value for name, value in read_settings(path).items()}
    before = dict(defaults) | {name: value for name, value in kept.items() if value is not None}
    return describe_differences(before, wanted)


def stopped_early(folder: Path) -> bool:
    """Tell whether the making of a set stopped before a tomogram was whole: then its settings do not count."""
    return (folder / STOPPED_FILE).is_file() and not _has_whole(folder)


@contextmanager
def noting_a_stop(folder: Path, shard: Shard) -> Iterator[None]:
    """Note in the folder of a set if the body does not come to a tomogram, so that a corrected command may.

    One of several shards notes nothing: others may be at work, whose tomograms would have other settings.
    """

    def note() -> None:
        # On a full disk an empty file has room, as a rule.
        with suppress(OSError):
            if shard.of == 1 and not _has_whole(folder):
                (folder / STOPPED_FILE).touch()

    with done_at_a_late_end(note):
        try:
            yield
        except BaseException:
            note()
            raise


def _tomograms(folder: Path) -> list[Path]:
    return [path for path in folder.glob("tomogram_*") if re.fullmatch(r"tomogram_\d{4,}", path.name)]


def _has_whole(folder: Path) -> bool:
    return any(is_whole(path) for path in _tomograms(folder))


def _remove_unfinished(folder: Path) -> None:
    """Remove tomograms that are not whole: with other settings, other files may be written.

    So is the copick project that they are in, unless it has other runs.
    """
    unfinished = [path for path in _tomograms(folder) if (path / UNFINISHED_FILE).is_file() and not path.is_symlink()]
    project = folder / COPICK_PROJECT
    runs = {path.name for path in project.glob("ExperimentRuns/*")}
    if project.is_dir() and not project.is_symlink() and runs <= {path.name for path in unfinished}:
        shutil.rmtree(project)
    for path in unfinished:
        shutil.rmtree(path)


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a set.

    Raises
    ------
    FileFormatError
        If the file is no such file, or is damaged.
    """
    content = read_json(path, what="the settings of a set of tomograms")
    settings = content.get("settings")
    known = set(content) == {"format", "options", "settings"} and content["format"] == _FORMAT
    if not known or not isinstance(settings, dict):
        raise FileFormatError(
            f"{path}: expected the settings of a set of tomograms (format {_FORMAT}), got "
            f"{shortened(json.dumps(content))}; choose another folder, or remove the file if the folder holds no set"
        )
    return settings


def describe_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the settings that differ, with both values where they are short."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return ", ".join(_difference(name, before.get(name), now.get(name)) for name in names)


def _difference(name: str, before: Any, now: Any) -> str:
    texts = [json.dumps(value) for value in (before, now)]
    return f"{name} ({texts[1]} instead of {texts[0]})" if max(map(len, texts)) <= 40 else name


def missing(folder: Path, *, count: int, shard: Shard) -> list[int]:
    """List the tomograms of a shard that are not there, or not whole."""
    return [index for index in shard.indices(count) if not is_whole(tomogram_folder(folder, index))]
