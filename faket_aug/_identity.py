"""What tells an object of a user's own class apart from others: its class and its settings, as JSON types."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def described(part: object) -> dict[str, Any]:
    """Describe an object by its class and its settings: two that differ in either have different descriptions.

    The settings are what the method `settings()` of the object returns. Without this method they are the fields of a
    dataclass, or all attributes of another object. Tensors, arrays and weights of a network stand there by their hash.

    Parameters
    ----------
    part
        The object.

    Returns
    -------
    `class`, its full name, and `settings`, as JSON types.

    Raises
    ------
    TypeError
        If an attribute cannot be told apart from others: then the class needs a method `settings()`.
    """
    own = getattr(part, "settings", None)
    if callable(own):
        found = own()
        try:
            settings = json.loads(json.dumps(found))
        except TypeError as error:
            raise TypeError(
                f"expected `settings()` of {class_name(part)} to return JSON types (numbers, texts, lists, dicts), got "
                f"others: {error}"
            ) from error
        return {"class": class_name(part), "settings": settings}
    return {"class": class_name(part), "settings": {n: _plain(v, f"{class_name(part)}.{n}") for n, v in _held(part)}}


def class_name(part: object) -> str:
    """Return the full name of the class of an object, or of a function."""
    kind = part if inspect.isroutine(part) else type(part)
    return f"{kind.__module__}.{kind.__qualname__}"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash tensors with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        exact = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{exact.dtype}|{tuple(exact.shape)}".encode())
        # Bytes of any type, bfloat16 among them, which NumPy does not have.
        digest.update(exact.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _held(part: object) -> list[tuple[str, Any]]:
    """List what an object holds, by name."""
    if dataclasses.is_dataclass(part):
        return [(entry.name, getattr(part, entry.name)) for entry in dataclasses.fields(part) if entry.init]
    if isinstance(part, nn.Module):
        # Of the parts within, the text of the network tells what is no weight.
        hidden = {*nn.Module().__dict__, "_own_fingerprint", "_transposes"}
        own = [(name, value) for name, value in sorted(vars(part).items()) if name not in hidden]
        return [("network", repr(part)), ("weights", digest_of(part.state_dict())), *own]
    if isinstance(part, functools.partial):
        return [("function", part.func), ("arguments", part.args), ("keywords", part.keywords)]
    if inspect.isroutine(part):
        name = class_name(part)
        if "<" in name or inspect.ismethod(part):
            raise TypeError(
                f"expected a function of a module, whose name tells what it does, got {name}; write it there, or as a "
                "class with a method `settings()`"
            )
        return []
    slots = [name for kind in type(part).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(part, name)]
    return sorted({**getattr(part, "__dict__", {}), **{name: getattr(part, name) for name in slots}}.items())


def _plain(value: Any, name: str) -> Any:
    """Turn what an object holds into JSON types."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic | Path):
        return value.item() if isinstance(value, np.generic) else str(value)
    if isinstance(value, Tensor | np.ndarray):
        return {"hash": digest_of({"": torch.as_tensor(value)}), "shape": [int(n) for n in value.shape]}
    if isinstance(value, Mapping):
        return {str(key): _plain(one, f"{name}[{key!r}]") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, name) for one in value]
    if isinstance(value, set | frozenset):
        return {"set": sorted((_plain(one, name) for one in value), key=repr)}
    known = hasattr(value, "__dict__") or hasattr(value, "settings") or inspect.isroutine(value)
    if not known or isinstance(value, type) or inspect.ismodule(value) or inspect.isgenerator(value):
        raise TypeError(
            f"expected settings that can be told apart, got {type(value).__name__} for {name}; give the class a method "
            "`settings()` that returns them as JSON types"
        )
    return described(value)
