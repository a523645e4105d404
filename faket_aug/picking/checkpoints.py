"""Checkpoints of a training: written whole, checked for damage when read, with the one before kept in reserve."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from faket_aug._checks import same_size
from faket_aug.formats._atomic import DISK_FULL, NOT_ALLOWED, atomic_path
from faket_aug.picking.precision import AUTO
from faket_aug.picking.preparation import Preparation

#: 3: without the patches' preparation (0.1.0).
_FORMATS = (3, 4)
CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
#: The checkpoint before the last one, for the case that the last one is damaged.
PREVIOUS = "checkpoint.previous.pt"
_FULL = "free some space and start the training again: it goes on from its last whole checkpoint"
_ELSEWHERE = "set `output` to a folder that you may write in"
_ADVICE = {
    **dict.fromkeys(DISK_FULL, _FULL),
    **dict.fromkeys((*NOT_ALLOWED, errno.ENOTDIR, errno.EEXIST), _ELSEWHERE),
}
#: Of DeepFinderNet: the voxel size that it is trained on.
_VOXEL_SIZE = "_voxel_size"
#: What `torch.compile` puts before the names of weights, of a whole network or of a part of it.
_COMPILED = "_orig_mod."


#: Where a checkpoint keeps the weights that are trained, if those to use are an average of them.
TRAINED = "trained_model"
#: Settings that checkpoints of before do not have, and what those were trained with.
_LATER = {"average": 0.0}

#: Names of what a run that was killed left half written.
_PARTS = (f".{CHECKPOINT}.*.part", f".{PREVIOUS}.*.part", f".{BEST}.*.part", ".log.csv.*.part")


def remove_parts(folder: Path) -> None:
    """Remove what a killed run left half written. One training at a time writes in a folder."""
    for pattern in _PARTS:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


@contextmanager
def explaining_the_disk(folder: Path) -> Iterator[None]:
    """Say what to do where the files of a training cannot be written.

    Raises
    ------
    OSError
        Of the kind that the system reports: no permission, no space, no such folder.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None or str(error).startswith("expected "):
            raise
        told = type(error)(f"expected to write in {folder}, got {error.strerror!r}; {advice}")
        told.errno = error.errno
        raise told from error


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state so that it is either whole or not there."""
    with atomic_path(path) as temporary:
        try:
            torch.save({"format": _FORMATS[-1], **state}, temporary)
        except RuntimeError as error:
            # PyTorch's writer reports that a disk is full in its own way.
            if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `checkpoint.pt`, and keep the one that was there as `checkpoint.previous.pt`."""
    path = folder / CHECKPOINT
    if path.exists():
        with atomic_path(folder / PREVIOUS) as temporary:
            temporary.unlink()
            try:
                # Both names stand for one file, until the new checkpoint takes the first: it is there at any moment.
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
    write_state(path, state)


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint or weights.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is damaged, or something else; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint, found none at {path}; set `resume=False` to begin anew")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} has another checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = state["format"] in _FORMATS
    except Exception as error:
        raise ValueError(
            f"{path}: expected a checkpoint, got another or a damaged file ({type(error).__name__}); remove it"
        ) from error
    if not known:
        raise ValueError(f"{path}: expected a checkpoint of format {_FORMATS[-1]}, got {state['format']!r}")
    return state


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read `checkpoint.pt`; if it is damaged or missing, the one before it, with a warning.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is none that can be read.
    """
    path, before = folder / CHECKPOINT, folder / PREVIOUS
    try:
        return read_state(path)
    except (FileNotFoundError, ValueError) as error:
        if not before.is_file():
            raise
        try:
            state = read_state(before)
        except ValueError:
            raise error from None
        told = str(error).partition("; ")[0]
        warnings.warn(f"{told}; the training goes on from {before.name}", stacklevel=4)
        return state


def remove_checkpoints(folder: Path) -> None:
    """Remove what an earlier training left in a folder."""
    for name in (CHECKPOINT, PREVIOUS, BEST):
        (folder / name).unlink(missing_ok=True)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load the weights of a checkpoint (`checkpoint.pt` or `best.pt`) into a network, to use or to fine-tune it.

    A network that was made for a voxel size keeps this voxel size. `segment` then prepares tomograms as the training's
    patches were prepared.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is damaged, or it holds the weights of another network. The message names another
        number of classes.

    Warns
    -----
    UserWarning
        If the weights were trained on voxels of another size than the network is for.
    """
    path = Path(path)
    saved = read_state(path)
    state = plain_weights(saved["model"])
    trained, own = (
        float(one.get(_VOXEL_SIZE, torch.zeros(()))) for one in (state, plain_weights(network.state_dict()))
    )
    trained = trained or float((saved.get("preparation") or {}).get("voxel_size", 0.0))
    if own and trained and not same_size(own, trained):
        warnings.warn(
            f"{path}: expected weights trained on the network's voxels of {own:g} Å, got {trained:g} Å: particles have "
            f"another size in them; make the network with `voxel_size={trained:g}`, or train on voxels of {own:g} Å",
            stacklevel=2,
        )
    if own:
        state[_VOXEL_SIZE] = plain_weights(network.state_dict())[_VOXEL_SIZE]
    load_plain_weights(network, state, path)
    if saved.get("preparation") is not None:
        set_preparation(network, Preparation(**saved["preparation"]))


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file gives back of settings: lists for tuples, strings for keys.

    Raises
    ------
    TypeError
        If they are no JSON types.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    except TypeError as error:
        raise TypeError(f"expected `depends_on` of JSON types, got {error}") from error
    return plain


def other_settings(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """List the settings that differ from those of a checkpoint, with both values; nothing if it can be resumed."""
    # A longer training goes on from a shorter one, and one in whatever precision is fast on any processor.
    free = {"steps", "checkpoint_every"} | ({"precision"} if own.get("precision") == AUTO else set())
    names = sorted((set(saved) | set(own)) - free)
    saved = _LATER | dict(saved)
    other = [name for name in names if saved.get(name) != own.get(name)]
    return ", ".join(f"{n} (was {saved.get(n)!s:.60}, is {own.get(n)!s:.60})" for n in other)


def set_preparation(network: nn.Module, preparation: Preparation | None) -> None:
    """Tell a network how the patches that it was trained on were prepared; `segment` asks for it."""
    network.__dict__["preparation"] = preparation


def plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names of the network itself, also those of one that `torch.compile` had compiled."""
    return {_plain(name): value for name, value in state.items()}


def load_plain_weights(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights by the names of the network itself, also into one that is compiled.

    Raises
    ------
    ValueError
        If they are another network's, or not finite; the message names the file.
    """
    own, state = network.state_dict(), plain_weights(weights)
    _check_weights(type(network).__name__, plain_weights(own), state, path)
    network.load_state_dict({name: state[_plain(name)] for name in own})


def _plain(name: str) -> str:
    return name.replace(_COMPILED, "")


def _check_weights(kind: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    head = next((name for name in reversed(list(own)) if own[name].ndim), "")
    saved, wanted = (len(weights[head]) if head in weights else 0 for weights in (state, own))
    if other and set(state) == set(own) and saved != wanted:
        raise ValueError(
            f"{path}: expected weights of a network with {wanted} classes, got {saved}; make the network with "
            f"`classes={saved}`"
        )
    if other or set(state) != set(own):
        raise ValueError(f"{path}: expected weights of a {kind} of these widths, got another network's")
    wrong = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise ValueError(f"{path}: expected finite weights, got NaN or infinite ones in {wrong[0]}; train again")
