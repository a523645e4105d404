"""The frozen encoder of the style transfer: VGG-19 up to the deepest layer that is used."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from faket_aug._checks import WeightsError, check_choice
from faket_aug._random import torch_generator, torch_seed
from faket_aug.style.encoder import StyleEncoder
from faket_aug.style.layers import Transposes, add_bias_relu_, add_relu_backward_, relu_backward_, unpadded
from faket_aug.style.pooling import MODES as POOLING_MODES
from faket_aug.style.pooling import pool, pool_with_pullback
from faket_aug.style.weight_files import read_state_dict

#: Indices of VGG-19's convolutions and poolings in torchvision's numbering; a ReLU follows each convolution.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
POOLINGS = (4, 9, 18, 27)
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
RELUS = tuple(index + 1 for index in CONVOLUTIONS)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """The values of one layer that the derivative needs: output after the ReLU, or the pull-back of a pooling."""

    index: int
    activation: Tensor | None = None
    pullback: Callable[[Tensor], Tensor] | None = None


class VGG19Features(StyleEncoder):
    """Compute features of VGG-19 after chosen ReLUs, for images in [0, 1].

    Parameters
    ----------
    weights
        `"torchvision"`: the ImageNet weights, from the cache of torchvision, or downloaded at the first use.
        `"random"`: random weights, drawn from `seed`; they need no file and are weaker (FAKET_RANDOM in the paper). Or
        a path to a `.pth` or `.safetensors` file with the names of torchvision (`features.0.weight`, ...). The file may
        end with the deepest layer that is used, and its layers may be narrower.
    pooling
        `"max"` (as published), `"average"` (scaled by 2) or `"l2"` (scaled by 0.78).
    precision
        `"float32"`, or `"bfloat16"` for the convolutions; losses and Gram matrices stay in float32.
    seed
        Seed of the `"random"` weights, which are the same on every machine.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, has weights of another network, or weights that are not finite; or if its name
        ends with a hash (`vgg19-dcbb9e9d.pth`), and its content has another.

    References
    ----------
    Simonyan and Zisserman, arXiv 1409.1556, configuration E.
    """

    def __init__(
        self,
        weights: str | Path = "torchvision",
        *,
        pooling: str = "max",
        precision: str = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, POOLING_MODES)
        check_choice("precision", precision, PRECISIONS)
        self.pooling = pooling
        self.precision = precision
        self.source = str(weights)
        self.convolutions = nn.ParameterDict()
        self._transposes = Transposes()
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        self.mean: Tensor
        self.std: Tensor
        if weights == "random":
            self._set_weights(_random_weights(seed))
        elif weights == "torchvision":
            cached = _torchvision_file()
            # A constructor does not download: without the cached file the first use does.
            if cached is not None and cached.is_file():
                self._set_weights(_read_weights(cached))
        else:
            self._set_weights(_read_weights(Path(weights)))

    def load(self) -> None:
        """Load the weights now. Those of torchvision are downloaded if they are not in its cache.

        Raises
        ------
        WeightsError
            If the download fails. The message says how to use a local file.
        """
        if not self.convolutions:
            self._set_weights(_download_weights())

    @property
    def deepest(self) -> int:
        """Index of the deepest ReLU for which there are weights."""
        self.load()
        return max(int(key.split("_")[1]) for key in self.convolutions) + 1

    @property
    def layers(self) -> tuple[int, ...]:
        """The ReLUs for which there are weights."""
        return tuple(layer for layer in RELUS if layer <= self.deepest)

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, the pooling and the precision."""
        self.load()
        return hashlib.sha256(f"{self.pooling}|{self.precision}|{self._weights_hash}".encode()).hexdigest()

    @property
    def can_be_recorded(self) -> bool:
        """Whether a CUDA graph can replay it; a class that derives from it may do anything."""
        return type(self) is VGG19Features

    def check_layers(self, layers: Iterable[int]) -> None:
        """Raise an error unless every layer is a ReLU of VGG-19 for which there are weights.

        Raises
        ------
        ValueError
            If an index is not that of a ReLU.
        WeightsError
            If a layer is deeper than the weights. The message names both.
        """
        for layer in layers:
            check_choice("layer", layer, RELUS)
            if layer > self.deepest:
                raise WeightsError(
                    f"expected weights that reach layer {layer}, got {self.source} that ends at layer {self.deepest}; "
                    "use deeper weights, or set `style_layers` and `content_layers` to layers up to it"
                )

    def forward(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Compute the features after the ReLUs at `layers`.

        Parameters
        ----------
        images
            `(n, 3, y, x)`, values in [0, 1].
        layers
            Indices in torchvision's numbering: 1 is relu1_1, 6 relu2_1, 8 relu2_2, 11 relu3_1, 20 relu4_1, 29 relu5_1.

        Returns
        -------
        Features `(n, channels, y', x')` of each layer, in the precision of the encoder.
        """
        return self._run(images, layers)

    def forward_and_pullback(
        self, images: Tensor, layers: Iterable[int]
    ) -> tuple[dict[int, Tensor], Callable[[Mapping[int, Tensor]], Tensor]]:
        """Compute features, and the function from gradients by the features to the gradient by the images.

        The derivative is written by hand for two reasons. The engine of autograd does not work after a fork of a
        process that has trained on a GPU. And memory is saved: one activation is kept for each layer.

        Parameters
        ----------
        images, layers
            As for `forward`.

        Returns
        -------
        The features, and a function. It takes gradients by some or all of the features, and returns the gradient by
        the images, `(n, 3, y, x)` in float32. It asks for the gradient of each layer once, the deepest layer first, may
        overwrite it, and can be called once.
        """
        tapes: list[list[_Saved]] = [[]]
        features = self._run(images, layers, tapes[0])

        def pullback(gradients: Mapping[int, Tensor]) -> Tensor:
            if not tapes:
                raise RuntimeError(
                    "expected one use of a pull-back, which frees its memory, got another; call "
                    "`forward_and_pullback` again"
                )
            return self._pull_back(gradients, tapes.pop(), tuple(images.shape))

        return features, pullback

    def _run(self, images: Tensor, layers: Iterable[int], tape: list[_Saved] | None = None) -> dict[int, Tensor]:
        wanted = set(layers)
        self.check_layers(wanted)
        self.check_size(images.shape[-2], images.shape[-1], wanted)
        result = ((images - self.mean) / self.std).to(PRECISIONS[self.precision], memory_format=torch.channels_last)
        features = {}
        for index in range(max(wanted, default=-1) + 1):
            if index in CONVOLUTIONS:
                result = self._convolve(result, index)
                saved = _Saved(index=index, activation=result)
            elif index in POOLINGS and tape is None:
                result = pool(result, self.pooling)
            elif index in POOLINGS:
                result, pullback = pool_with_pullback(result, self.pooling)
                saved = _Saved(index=index, pullback=pullback)
            else:
                if index in wanted:
                    features[index] = result
                continue
            if tape is not None:
                tape.append(saved)
        return features

    def _pull_back(self, gradients: Mapping[int, Tensor], tape: list[_Saved], shape: tuple[int, ...]) -> Tensor:
        gradient: Tensor | None = None
        while tape:
            saved = tape.pop()  # what is behind is not needed again
            if saved.pullback is not None:
                gradient = None if gradient is None else saved.pullback(gradient)
                continue
            assert saved.activation is not None, "kept of every convolution"
            own = gradients.get(saved.index + 1)
            if own is not None:
                own = own.to(saved.activation.dtype)
            if gradient is not None and own is not None:
                gradient = add_relu_backward_(gradient, own, saved.activation)
            elif (gradient := own if gradient is None else gradient) is not None:
                gradient = relu_backward_(gradient, saved.activation)
            if gradient is not None:
                gradient = self._convolve_backward(gradient, saved.index)
        if gradient is None:
            return torch.zeros(shape, device=self.mean.device)
        return gradient.float() / self.std

    def check_size(self, height: int, width: int, layers: Iterable[int]) -> None:
        """Raise a `ValueError` if images of this size are too small for the poolings before the deepest layer."""
        deepest = max(layers, default=0)
        smallest = 2 ** sum(index < deepest for index in POOLINGS)
        if min(height, width) < smallest:
            raise ValueError(
                f"expected tilts of at least {smallest} pixels a side for layer {deepest}, got {height} x {width}; "
                "use larger tilts or shallower layers"
            )

    def _convolve(self, images: Tensor, index: int) -> Tensor:
        weight, bias = self.convolutions[f"weight_{index}"], self.convolutions[f"bias_{index}"]
        if index == 0:
            # The first layer repeats the border: zeros would draw a frame of edges around a tilt.
            images = torch.ops.aten.replication_pad2d(images, (1, 1, 1, 1))
        padding = 0 if index == 0 else 1
        if images.is_cuda:
            # There a convolution's bias is a pass of its own.
            return add_bias_relu_(functional.conv2d(images, weight, padding=padding), bias)
        return functional.relu_(functional.conv2d(images, weight, bias, padding=padding))

    def _convolve_backward(self, gradient: Tensor, index: int) -> Tensor:
        # The transpose of a convolution is one with the weights turned round.
        weight = self._transposes.of(index, self.convolutions[f"weight_{index}"])
        if index:
            return functional.conv2d(gradient, weight, padding=1)
        pulled = functional.conv2d(gradient, weight, padding=2)
        if pulled.is_cuda:
            return unpadded(pulled)
        like = pulled[..., 1:-1, 1:-1]
        padded: Tensor = torch.ops.aten.replication_pad2d_backward(pulled, like, (1, 1, 1, 1))
        return padded

    def _set_weights(self, weights: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        digest = hashlib.sha256()
        for index, (weight, bias) in sorted(weights.items()):
            for name, tensor in ((f"weight_{index}", weight), (f"bias_{index}", bias)):
                exact = tensor.detach().to("cpu", torch.float32).contiguous()
                digest.update(name.encode())
                digest.update(exact.numpy().tobytes())
                values = exact.to(self.mean.device, PRECISIONS[self.precision])
                if values.ndim == 4:
                    # Channels last is what convolutions are fastest with, on CPUs and on GPUs.
                    values = values.contiguous(memory_format=torch.channels_last)
                self.convolutions[name] = nn.Parameter(values, requires_grad=False)
        self._weights_hash = digest.hexdigest()


def cpu_has_bfloat16() -> bool:
    """Tell whether the CPU has instructions for bfloat16 (AMX, AVX512-BF16); without, float32 is faster."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)


def fastest_precision(device: torch.device) -> str:
    """Return `"bfloat16"` where a device computes faster in it, else `"float32"`."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Without such instructions a CPU is slower in bfloat16.
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def _random_weights(seed: int) -> dict[int, tuple[Tensor, Tensor]]:
    """He's normal weights, drawn on the CPU so that they are the same on every machine.

    The filters of the first layer have mean 0.
    """
    generator = torch_generator(torch_seed(seed, "encoder"))
    weights, channels = {}, 3
    for index, width in zip(CONVOLUTIONS, WIDTHS, strict=True):
        if index > RELUS[12]:
            break
        weight = torch.randn(width, channels, 3, 3, generator=generator, device="cpu") * math.sqrt(2 / (9 * channels))
        if index == 0:
            # Differs from FakET: filters that see the mean brightness dominate the Gram matrices, and the style step
            # then does nothing but shift the brightness; 9/8 restores the variance.
            weight = (weight - weight.mean(dim=(2, 3), keepdim=True)) * math.sqrt(9 / 8)
        weights[index] = (weight, torch.zeros(width, device="cpu"))
        channels = width
    return weights


def _read_weights(path: Path) -> dict[int, tuple[Tensor, Tensor]]:
    return _check_state(read_state_dict(path), path)


def _check_state(state: Mapping[str, Tensor], path: Path) -> dict[int, tuple[Tensor, Tensor]]:
    """Take the convolutions of VGG-19 from a state dict, or say what is wrong with it."""
    names = [str(key) for key in state]
    found = {int(match[1]) for name in names if (match := re.fullmatch(r"features\.(\d+)\.weight", name))}
    if not found:
        raise WeightsError(
            f"{path}: expected weights of VGG-19 named features.0.weight and so on, got "
            f"{', '.join(names[:4]) or 'none'}"
        )
    wanted = set(CONVOLUTIONS[: len(found)])
    if found != wanted:
        raise WeightsError(
            f"{path}: expected VGG-19 with convolutions at features {sorted(wanted)}, got another network with weights "
            f"at {sorted(found)}"
        )
    weights, channels = {}, 3
    for index in sorted(found):
        weight, bias = state[f"features.{index}.weight"], state.get(f"features.{index}.bias")
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else None for t in (weight, bias)]
        width = shapes[0][0] if shapes[0] else 0
        expected = [(width, channels, 3, 3), (width,)]
        if shapes != expected or bias is None:
            raise WeightsError(
                f"{path}: expected features.{index} with weight {expected[0]} and bias {expected[1]}, got "
                f"{shapes[0]} and {shapes[1]}; these are weights of another network"
            )
        for part, tensor in (("weight", weight), ("bias", bias)):
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                raise WeightsError(
                    f"{path}: expected finite numbers in features.{index}.{part}, got NaN, infinite or other values; "
                    "the file is damaged: get it again"
                )
        weights[index] = (weight, bias)
        channels = weight.shape[0]
    return weights


def _torchvision_url() -> str:
    from torchvision.models import VGG19_Weights

    return str(VGG19_Weights.IMAGENET1K_V1.url)


def _torchvision_file() -> Path | None:
    """Return where torchvision keeps the downloaded weights, or nothing without torchvision."""
    try:
        name = _torchvision_url().rsplit("/", 1)[-1]
    except (ImportError, RuntimeError):
        return None
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _download_weights() -> dict[int, tuple[Tensor, Tensor]]:
    try:
        url = _torchvision_url()
        # The name carries the file's hash, which is checked before use.
        state = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:
        raise WeightsError(
            f"expected to download the VGG-19 weights of torchvision, got {type(error).__name__}: {error}; on a "
            "machine with internet fetch https://download.pytorch.org/models/vgg19-dcbb9e9d.pth, copy it here, and set "
            '`weights` to its path (or set `weights="random"`, which is weaker)'
        ) from error
    return _check_state(state, Path(url))
