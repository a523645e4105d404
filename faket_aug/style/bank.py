"""The style bank: Gram matrices and statistics of unlabelled tilt-series, with a cache on disk."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from faket_aug._checks import CacheError, check_ndim, check_quantiles
from faket_aug._runtime.threads import DEVICE
from faket_aug.formats._atomic import ABANDONED, make_writable_folder, remove_parts, write_bytes
from faket_aug.geometry import Angles, nearest_tilts
from faket_aug.statistics import FULL_RANGE, clip_images, constant_images, mean_std, scale_to_unit, value_range
from faket_aug.style.encoder import StyleEncoder, check_encoder, device_of
from faket_aug.style.transfer import MEMORY_BUDGET, STYLE_LAYERS, StyleTargets, style_grams
from faket_aug.tilts.series import TiltSeries

#: Version of the files. It is part of every key, so that files of another version are not read.
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class StyleSeries:
    """Gram matrices and statistics of one style tilt-series.

    Parameters
    ----------
    name
        Name of the series, for messages and records.
    tilt_angles
        `(tilt,)`, degrees.
    grams
        Gram matrices, `(tilt, channels, channels)`, float32, for each style layer.
    mean, std
        `(tilt,)`, float64, mean and standard deviation of each tilt, in the unit of the camera.
    pixel_size
        Å; 0 where it is not known.
    """

    name: str
    tilt_angles: npt.NDArray[np.float64]
    grams: Mapping[int, Tensor]
    mean: Tensor
    std: Tensor
    pixel_size: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StyleBank:
    """Gram matrices and statistics of one or several style tilt-series.

    Parameters
    ----------
    series
        The style series.
    key
        Hash of the tilts, the weights of the encoder, every parameter, and the version of the format.
    encoder
        Fingerprint of the encoder that built the bank.
    quantiles
        The values of each stack at these quantiles were scaled to 0 and 1.
    """

    series: tuple[StyleSeries, ...]
    key: str
    encoder: str
    quantiles: tuple[float, float] = FULL_RANGE

    @classmethod
    def build(
        cls,
        tilt_series: TiltSeries | Sequence[TiltSeries],
        features: StyleEncoder,
        *,
        style_layers: Sequence[int] = STYLE_LAYERS,
        quantiles: tuple[float, float] = FULL_RANGE,
        cache: str | Path | None = None,
        memory_budget: int = MEMORY_BUDGET,
        device: str | torch.device = DEVICE,
    ) -> Self:
        """Encode style tilt-series, or read the result from the cache.

        Parameters
        ----------
        tilt_series
            Unlabelled tilt-series, with any number of tilts, in any order, of any size, and on any device. Pixels that
            were not `measured` do not count.
        features
            The encoder: a `VGG19Features`, or one of your own (`StyleEncoder`).
        style_layers
            ReLUs of the encoder, by the numbers of torchvision.
        quantiles
            The values of each stack at these quantiles are scaled to 0 and 1; by default minimum and maximum, as
            published. Set `(0.001, 0.999)` against hot pixels and gold beads. Then each tilt is also clipped to its own
            quantiles before its mean and standard deviation are computed.
        cache
            Folder of the cache, which is made if it is missing. By default nothing is written.
        memory_budget
            Memory for the activations of one chunk of tilts, bytes.
        device
            Device of the encoder.

        Raises
        ------
        ValueError
            If there is no series, or a tilt is constant (the message names it).
        WeightsError
            If a layer is deeper than the weights.
        CacheError
            If the cache folder cannot be written.
        """
        stacks = [tilt_series] if isinstance(tilt_series, TiltSeries) else list(tilt_series)
        if not stacks:
            raise ValueError("expected at least one style tilt-series, got none")
        layers = tuple(sorted(set(style_layers)))
        check_encoder(features)
        features.check_layers(layers)
        check_quantiles("quantiles", quantiles)
        folder = None if cache is None else Path(cache)
        series, keys = [], []
        for stack in stacks:
            key = _series_key(stack, features, layers, quantiles)
            file = None if folder is None else folder / f"style-{key[:32]}.safetensors"
            found = None if file is None else _read(file, key, stack)
            if found is None:
                if folder is not None:
                    _check_writable(folder)
                    # Of builds that were killed; younger ones another process may be writing.
                    remove_parts(folder, pattern=".style-*.safetensors.*.part", older_than=ABANDONED)
                found = _encode(stack, features, layers, quantiles, memory_budget, torch.device(device))
                if file is not None:
                    _write(file, key, found)
            series.append(found)
            keys.append(key)
        return cls(
            series=tuple(series),
            key=hashlib.sha256("".join(keys).encode()).hexdigest(),
            encoder=features.fingerprint,
            quantiles=quantiles,
        )

    @property
    def style_layers(self) -> tuple[int, ...]:
        """The layers for which there are Gram matrices."""
        return tuple(self.series[0].grams)

    def select(self, tilt_angles: Angles, *, series: int = 0) -> StyleTargets:
        """Take, for each content tilt, the targets of the style tilt with the nearest angle.

        Parameters
        ----------
        tilt_angles
            `(tilt,)`, degrees, angles of the content tilts.
        series
            Index of the style series.

        Returns
        -------
        The targets, with one entry for each of `tilt_angles`.
        """
        chosen = self.series[series]
        # Differs from FakET: the nearest in angle, so that a style may have other tilts than the content.
        index = torch.from_numpy(nearest_tilts(tilt_angles, chosen.tilt_angles))
        return StyleTargets(
            grams={layer: gram[index] for layer, gram in chosen.grams.items()},
            mean=chosen.mean[index],
            std=chosen.std[index],
        )


def _encode(
    stack: TiltSeries,
    features: StyleEncoder,
    layers: tuple[int, ...],
    quantiles: tuple[float, float],
    memory_budget: int,
    device: torch.device,
) -> StyleSeries:
    check_ndim("tilts", stack.tilts, "tilt y x")
    clipped = clip_images(stack.tilts, quantiles, stack.measured)
    constant = constant_images(clipped, stack.measured)
    low, high = value_range(stack.tilts, quantiles, stack.measured)
    if constant or high <= low:
        angles = [f"{stack.tilt_angles[i]:g}°" for i in constant]
        raise ValueError(
            f"{stack.name}: expected every style tilt to vary, got constant tilt(s) {constant} (at "
            f"{', '.join(angles)}); leave them out of the series"
        )
    mean, std = mean_std(clipped, stack.measured)
    features.check_size(stack.tilts.shape[-2], stack.tilts.shape[-1], layers)
    unit = scale_to_unit(stack.tilts, (low, high)).to(device)
    measured = None if stack.measured is None else stack.measured.to(device)
    home = device_of(features)
    try:
        grams = style_grams(unit, features.to(device), layers=layers, memory_budget=memory_budget, measured=measured)
    finally:
        features.to(home)
    return StyleSeries(
        name=stack.name,
        tilt_angles=stack.tilt_angles,
        grams={layer: gram.cpu().contiguous() for layer, gram in grams.items()},
        mean=mean.cpu(),
        std=std.cpu(),
        pixel_size=stack.pixel_size,
    )


def _series_key(
    stack: TiltSeries, features: StyleEncoder, layers: tuple[int, ...], quantiles: tuple[float, float]
) -> str:
    digest = hashlib.sha256(
        json.dumps([_FORMAT, features.fingerprint, layers, quantiles, list(stack.tilts.shape)]).encode()
    )
    digest.update(np.ascontiguousarray(stack.tilt_angles).tobytes())
    digest.update(stack.tilts.cpu().contiguous().numpy().tobytes())
    if stack.measured is not None:
        digest.update(np.packbits(stack.measured.cpu().numpy()).tobytes())
    return digest.hexdigest()


def _check_writable(folder: Path) -> None:
    """Make the folder and try to write in it, before anything is computed."""
    try:
        make_writable_folder(folder)
    except OSError as error:
        raise CacheError(
            f"expected a style cache folder that can be written, got {folder} ({error.strerror or error}); set `cache` "
            "to another folder, or to None to keep the bank in memory only"
        ) from error


def _write(file: Path, key: str, series: StyleSeries) -> None:
    tensors = {f"gram_{layer}": gram for layer, gram in series.grams.items()}
    tensors |= {"mean": series.mean, "std": series.std, "tilt_angles": torch.from_numpy(series.tilt_angles)}
    metadata = {"format": str(_FORMAT), "key": key, "name": series.name, "checksum": _checksum(tensors)}
    try:
        write_bytes(file, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))
    except OSError as error:
        raise CacheError(
            f"{file}: expected to write the style cache, got {error.strerror or error}; free some space, or set "
            "`cache` to another folder"
        ) from error


def _read(file: Path, key: str, stack: TiltSeries) -> StyleSeries | None:
    """Read a series from the cache. Return None if there is no file, or (with a warning) if the file is damaged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        # Not from the opened file: its tensors would lie in the file on disk, which may change.
        tensors = load(file.read_bytes())
        if metadata["key"] != key or metadata["checksum"] != _checksum(tensors):
            raise ValueError("its checksum is not that of its content")
    except Exception as error:
        warnings.warn(f"{file}: the cached style is damaged and is made again ({error})", stacklevel=4)
        return None
    layers = sorted(int(name.removeprefix("gram_")) for name in tensors if name.startswith("gram_"))
    return StyleSeries(
        # The same tilts may be read by another name, or with another pixel size, than when they were cached.
        name=stack.name,
        pixel_size=stack.pixel_size,
        tilt_angles=tensors["tilt_angles"].numpy(),
        grams={layer: tensors[f"gram_{layer}"] for layer in layers},
        mean=tensors["mean"],
        std=tensors["std"],
    )


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}|{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
