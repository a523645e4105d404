"""The frozen encoder: torchvision's VGG-19 to the letter, and weights files of every kind, good and bad."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from faket_aug._checks import WeightsError
from faket_aug.style import weight_files
from faket_aug.style.layers import unpadded
from faket_aug.style.vgg19 import CONVOLUTIONS, POOLINGS, RELUS, VGG19Features

State = dict[str, Tensor]

#: Of the random encoder of seed 0.
PINNED_FIRST = (-0.133788, 0.328460, -0.306025, -0.017160)
PINNED_LAST = [0.03353, -0.0291]
PINNED_SUM = -1.2316


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Images this small are encoded faster by one thread than by several that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _state(*, convolutions: int = 16, widths: tuple[int, ...] = (3, 4, 5, 6), seed: int = 0) -> State:
    """Make the state dict of a narrow VGG-19 (widths in turn) in torchvision's names, classifier included."""
    generator = torch.Generator().manual_seed(seed)
    state, channels = {}, 3
    for i, index in enumerate(CONVOLUTIONS[:convolutions]):
        width = widths[i % len(widths)]
        state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) / channels
        state[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=generator)
        channels = width
    if convolutions == 16:
        state |= {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    return state


def _save(state: State, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    return _save(_state(), tmp_path / "narrow.safetensors")


def _images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _reference(state: State, images: Tensor, layers: tuple[int, ...], pooling: str = "max") -> dict[int, Tensor]:
    """Compute the features by torch's own modules, one after the other, as torchvision's `features` has them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    result = (images - mean[:, None, None]) / std[:, None, None]
    found = {}
    for index in range(max(layers) + 1):
        if index in CONVOLUTIONS:
            weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
            mode = "replicate" if index == 0 else "zeros"
            layer = nn.utils.skip_init(
                nn.Conv2d, weight.shape[1], weight.shape[0], kernel_size=3, padding=1, padding_mode=mode
            )
            layer.load_state_dict({"weight": weight, "bias": bias})
            layer.requires_grad_(False)
            result = layer(result)
        elif index in POOLINGS and pooling == "max":
            result = nn.MaxPool2d(kernel_size=2, stride=2)(result)
        elif index in POOLINGS and pooling == "average":
            result = 2 * nn.AvgPool2d(kernel_size=2, stride=2)(result)
        elif index in POOLINGS:
            result = 0.78 * (4 * nn.AvgPool2d(kernel_size=2, stride=2)(result**2)).sqrt()
        else:
            result = nn.ReLU()(result)
        if index in layers:
            found[index] = result
    return found


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["max", "average", "l2"])
@pytest.mark.parametrize("size", [(32, 48), (37, 21)])
def test_features_are_those_of_the_modules(narrow: Path, pooling: str, size: tuple[int, int]) -> None:
    """After each ReLU asked for, the features are those of torch's modules in torchvision's order, at any size."""
    layers = (1, 6, 8, 11, 20, 29)
    images = _images(2, 3, *size)
    found = VGG19Features(narrow, pooling=pooling)(images, layers)
    expected = _reference(_state(), images, layers, pooling)
    assert sorted(found) == sorted(layers)
    for layer in layers:
        torch.testing.assert_close(found[layer], expected[layer], rtol=1e-4, atol=1e-5)
        assert float(found[layer].min()) >= 0.0


def test_torchvision_has_these_indices(tmp_path: Path) -> None:
    """In torchvision's VGG-19 the same indices are convolutions, ReLUs and poolings; features agree off the border."""
    from torchvision.models import vgg

    with torch.device("meta"):
        modules = vgg.make_layers(vgg.cfgs["E"], batch_norm=False)
    kinds = {nn.Conv2d: CONVOLUTIONS, nn.ReLU: RELUS, nn.MaxPool2d: (*POOLINGS, 36)}
    for kind, indices in kinds.items():
        assert tuple(i for i, module in enumerate(modules) if isinstance(module, kind)) == indices
    # Full width, up to features.7: what a user has who cuts torchvision's file.
    generator = torch.Generator().manual_seed(0)
    first = modules[:9].to_empty(device="cpu")
    state = {key: 0.05 * torch.randn(value.shape, generator=generator) for key, value in first.state_dict().items()}
    first.load_state_dict(state)
    path = _save({f"features.{key}": value for key, value in state.items()}, tmp_path / "cut.pth")
    images = _images(1, 3, 40, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = first((images - mean[:, None, None]) / std[:, None, None])
    found = VGG19Features(path)(images, [8])[8]
    # Zeros instead of replicated borders reach three pixels deep here.
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(found[inner], expected[inner], rtol=1e-4, atol=1e-4 * float(expected.max()))
    assert float((found - expected).abs().max()) > 1e-2 * float(expected.max())


def test_first_layer_repeats_the_border(tmp_path: Path) -> None:
    """A constant image has constant features at relu1_1: the first convolution pads by replication."""
    found = VGG19Features(_save(_state(convolutions=2), tmp_path / "two.pth"))(torch.full((1, 3, 6, 7), 0.6), [1, 3])
    torch.testing.assert_close(found[1], found[1][..., :1, :1].expand_as(found[1]), rtol=1e-5, atol=1e-6)
    assert float(found[3].std()) > 1e-3  # the second pads by zeros


def test_images_of_a_batch_do_not_mix(narrow: Path) -> None:
    """A batch gives what its images give alone."""
    features = VGG19Features(narrow)
    images = _images(3, 3, 20, 24)
    together = features(images, [1, 11])
    for i in range(3):
        for layer, found in features(images[i : i + 1], [1, 11]).items():
            torch.testing.assert_close(together[layer][i : i + 1], found, rtol=0, atol=1e-5 * float(found.max()))


def test_encoder_is_frozen(narrow: Path) -> None:
    """No weight wants a gradient; asking for no layer computes nothing."""
    features = VGG19Features(narrow)
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert features(_images(1, 3, 16, 16), []) == {}


@pytest.mark.parametrize("pooling", ["max", "average", "l2"])
@pytest.mark.parametrize("layers", [(8,), (1, 6, 8, 11, 20, 29)])
@pytest.mark.parametrize("size", [(32, 48), (37, 21)])
def test_pullback_is_the_derivative(narrow: Path, pooling: str, layers: tuple[int, ...], size: tuple[int, int]) -> None:
    """The written-out derivative is autograd's of torch's own modules, for every pooling, layer and size."""
    images = _images(2, 3, *size).requires_grad_()
    expected_features = _reference(_state(), images, layers, pooling)
    slopes = {
        layer: torch.randn(f.shape, generator=torch.Generator().manual_seed(layer))
        for layer, f in expected_features.items()
    }
    loss = sum((slopes[layer] * f).sum() for layer, f in expected_features.items())
    (expected,) = torch.autograd.grad(loss, images)
    with torch.no_grad():
        found, pullback = VGG19Features(narrow, pooling=pooling).forward_and_pullback(images, layers)
        gradient = pullback(slopes)
    for layer in layers:
        torch.testing.assert_close(found[layer], expected_features[layer].detach(), rtol=1e-4, atol=1e-5)
    assert gradient.shape == images.shape
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_turned_weights_are_kept(narrow: Path) -> None:
    """Weights are turned once; copies and other values are not taken for them, and nothing of it travels."""
    features, images = VGG19Features(narrow), _images(1, 3, 16, 16)
    before, size = features.fingerprint, len(pickle.dumps(features))

    def slope(of: VGG19Features) -> Tensor:
        found, pullback = of.forward_and_pullback(images, [6])
        return pullback({6: torch.ones_like(found[6])})

    first = slope(features)
    kept = features._transposes.of(0, features.convolutions["weight_0"])
    assert torch.equal(slope(features), first)
    assert features._transposes.of(0, features.convolutions["weight_0"]) is kept
    assert (features.fingerprint, len(pickle.dumps(features))) == (before, size)
    assert torch.equal(slope(pickle.loads(pickle.dumps(features))), first)
    assert torch.equal(slope(copy.deepcopy(features)), first)
    with torch.no_grad():
        features.convolutions["weight_0"].mul_(2)
    assert not torch.equal(slope(features), first)
    assert torch.equal(slope(copy.deepcopy(features).double().float()), slope(features))


def test_pullback_of_some_layers(narrow: Path) -> None:
    """The pull-back takes gradients by some or none of the layers (its to overwrite), once: it forgets as it goes."""
    features = VGG19Features(narrow)
    images = _images(1, 3, 24, 24)

    def pulled(*layers: int) -> Tensor:
        found, pullback = features.forward_and_pullback(images, [1, 6, 11])
        gradient = pullback({layer: torch.ones_like(found[layer]) for layer in layers})
        with pytest.raises(RuntimeError, match="one use"):
            pullback({})
        return gradient

    whole = pulled(1, 6, 11)
    apart = [pulled(layer) for layer in (1, 6, 11)]
    torch.testing.assert_close(whole, apart[0] + apart[1] + apart[2], rtol=1e-4, atol=1e-5 * float(whole.abs().max()))
    assert torch.equal(whole, pulled(1, 6, 11))
    assert torch.equal(pulled(), torch.zeros_like(images))


@pytest.mark.parametrize("pooling", ["max", "average", "l2"])
def test_autograd_works_as_well(narrow: Path, pooling: str) -> None:
    """A plain call is differentiable by autograd, too, and gives the same gradient."""
    features = VGG19Features(narrow, pooling=pooling)
    images = _images(1, 3, 24, 20).requires_grad_()
    found = features(images, [1, 6, 11])
    sum(value.sum() for value in found.values()).backward()
    with torch.no_grad():
        plain, pullback = features.forward_and_pullback(images, [1, 6, 11])
        expected = pullback({layer: torch.ones_like(f) for layer, f in plain.items()})
    torch.testing.assert_close(images.grad, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_bfloat16_is_near(narrow: Path) -> None:
    """In bfloat16 features and gradients are near those of float32; the gradient by the images is float32."""
    images = _images(1, 3, 32, 32)
    half, full = VGG19Features(narrow, precision="bfloat16"), VGG19Features(narrow)
    found, pullback = half.forward_and_pullback(images, [11])
    expected, full_pullback = full.forward_and_pullback(images, [11])
    assert found[11].dtype == torch.bfloat16
    assert float((found[11].float() - expected[11]).norm() / expected[11].norm()) < 0.02
    gradient = pullback({11: torch.ones_like(found[11])})
    full_gradient = full_pullback({11: torch.ones_like(expected[11])})
    assert gradient.dtype == torch.float32
    assert float((gradient - full_gradient).norm() / full_gradient.norm()) < 0.2


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("convolutions", "deepest"), [(16, 35), (7, 15), (1, 1)])
def test_weights_files(tmp_path: Path, suffix: str, convolutions: int, deepest: int) -> None:
    """Both formats are read, whole (with the classifier) or up to some convolution, as `str` and as `Path`."""
    path = _save(_state(convolutions=convolutions), tmp_path / f"weights{suffix}")
    features = VGG19Features(path)
    assert features.deepest == deepest
    images = _images(1, 3, 32, 32)
    found = features(images, [deepest])[deepest]
    expected = _reference(_state(convolutions=convolutions), images, (deepest,))[deepest]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert VGG19Features(str(path)).fingerprint == features.fingerprint


def test_weights_in_other_precisions(tmp_path: Path) -> None:
    """Weights stored in float16 or float64 are used in float32."""
    for dtype in (torch.float16, torch.float64):
        path = _save({key: value.to(dtype) for key, value in _state().items()}, tmp_path / "weights.safetensors")
        assert VGG19Features(path)(_images(1, 3, 16, 16), [6])[6].dtype == torch.float32


def _vgg16() -> State:
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    state = _state()
    return {
        f"features.{new}.{kind}": state[f"features.{old}.{kind}"]
        for new, old in zip(indices, CONVOLUTIONS, strict=False)
        for kind in ("weight", "bias")
    }


def _alexnet() -> State:
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    return {f"features.{i}.weight": torch.zeros(s) for i, s in shapes.items()} | {
        f"features.{i}.bias": torch.zeros(s[0]) for i, s in shapes.items()
    }


def _without(state: State, *keys: str) -> State:
    return {key: value for key, value in state.items() if key not in keys}


OTHER_NETWORKS = {
    "VGG-16": (_vgg16(), r"another network with weights at \[0, 2, 5, 7, 10, 12, 14, 17"),
    "AlexNet": (_alexnet(), r"another network with weights at \[0, 3, 6, 8, 10\]"),
    "AlexNet's first": (
        {"features.0.weight": torch.zeros(64, 3, 11, 11), "features.0.bias": torch.zeros(64)},
        r"features.0 with weight \(64, 3, 3, 3\) .* got \(64, 3, 11, 11\)",
    ),
    "no bias": (_without(_state(), "features.5.bias"), r"features.5 .* and None; these are weights of another network"),
    "wrong bias": (_state() | {"features.5.bias": torch.zeros(7)}, r"features.5 .* and \(7,\)"),
    "wrong channels": (
        _state() | {"features.2.weight": torch.zeros(4, 7, 3, 3)},
        r"features.2 with weight \(4, 3, 3, 3\) .*got \(4, 7, 3, 3\)",
    ),
    "a gap": (_without(_state(), "features.5.weight"), "another network with weights at"),
    "no first layer": (_without(_state(), "features.0.weight"), "another network with weights at"),
    "ResNet": ({"conv1.weight": torch.zeros(8, 3, 7, 7)}, "features.0.weight and so on, got conv1.weight"),
    "DenseNet": ({"features.conv0.weight": torch.zeros(8, 3, 7, 7)}, "features.conv0.weight"),
    "a scalar": ({"features.0.weight": torch.tensor(3.0), "features.0.bias": torch.zeros(1)}, "features.0"),
    "nothing": ({}, "got none"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "name",
    OTHER_NETWORKS,
)
def test_other_networks_are_refused(tmp_path: Path, suffix: str, name: str) -> None:
    """Weights of another network are a `WeightsError` that names the file and says what is wrong."""
    state, message = OTHER_NETWORKS[name]
    path = _save(state, tmp_path / f"other{suffix}")
    with pytest.raises(WeightsError, match=f"other{suffix}: .*{message}"):
        VGG19Features(path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        {"state_dict": _state(convolutions=1)},
        {"features.0.weight": 3},
        {0: 1},
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    """A `.pth` file that holds something else is a `WeightsError` that names the file."""
    torch.save(content, tmp_path / "thing.pth")
    with pytest.raises(WeightsError, match="thing.pth: expected "):
        VGG19Features(tmp_path / "thing.pth")


def test_missing_file(tmp_path: Path) -> None:
    """A path without a file lists what `weights` can be."""
    with pytest.raises(WeightsError, match='"torchvision", "random" or a .pth or .safetensors file, got .*nowhere.pth'):
        VGG19Features(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="there is no such file"):
        VGG19Features(tmp_path)
    with pytest.raises(WeightsError, match="got imagenet: there is no such file"):
        VGG19Features("imagenet")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    """A file cut off anywhere is a `WeightsError` that names it."""
    path = _save(_state(), tmp_path / f"cut{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=f"cut{suffix}: expected a file of tensors, got one that cannot be read"):
        VGG19Features(path)


class _Bomb:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_no_pickle_is_run(tmp_path: Path, save) -> None:
    """A `.pth` file that holds code is refused, and the code does not run."""
    save({"features.0.weight": _Bomb(tmp_path / "boom")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="evil.pth: expected a file of tensors"):
        VGG19Features(tmp_path / "evil.pth")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, suffix: str, value: float) -> None:
    """One NaN or infinite weight is refused, with the file's name and the weight's."""
    state = _state(convolutions=2)
    state["features.2.bias"][1] = value
    path = _save(state, tmp_path / f"bad{suffix}")
    with pytest.raises(WeightsError, match=rf"bad{suffix}: expected finite numbers in features.2.bias, got NaN, inf"):
        VGG19Features(path)


def test_hash_in_the_name(tmp_path: Path) -> None:
    """A file named as PyTorch names weights is what its name says, or is refused; other names say nothing."""
    path = _save(_state(convolutions=2), tmp_path / "some.pth")
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    right = path.rename(tmp_path / f"tiny-{found}.pth")
    assert VGG19Features(right).deepest == 3
    wrong = right.rename(tmp_path / "vgg19-dcbb9e9d.pth")
    with pytest.raises(
        WeightsError,
        match=f"vgg19-dcbb9e9d.pth: expected content whose SHA-256 begins with dcbb9e9d, as its name says, got {found};"
        " the file is damaged: download it again, or rename it",
    ):
        VGG19Features(wrong)
    for name in ("vgg19-20240131.pth", "vgg19-dcbb9e9.pth", "vgg19-dcbb9e9d-mine.pth", "dcbb9e9d.pth"):
        assert VGG19Features(wrong.rename(tmp_path / name)).deepest == 3
        (tmp_path / name).rename(wrong)


def test_flipped_bit_in_pytorchs_file(tmp_path: Path) -> None:
    """PyTorch's archive holds checksums of its parts: other weights than were written are refused."""
    state = _state(convolutions=2)
    path = _save(state, tmp_path / "bits.pth")
    content = bytearray(path.read_bytes())
    content[bytes(content).index(state["features.2.weight"].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"bits.pth: expected a file of tensors, .*its part .* has another checksum"):
        VGG19Features(path)


def test_weights_errors_pickle(tmp_path: Path) -> None:
    """The error reaches another process with its text."""
    with pytest.raises(WeightsError) as caught:
        VGG19Features(tmp_path / "nowhere.pth")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# --- random and torchvision -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_zero() -> VGG19Features:
    return VGG19Features("random")


def test_random_weights_are_pinned(random_zero: VGG19Features) -> None:
    """The random encoder of a seed is the same on every machine and for ever: pinned values, He's deviations."""
    weights = random_zero.convolutions
    assert random_zero.deepest == 29
    assert {key: tuple(value.shape) for key, value in weights.items() if key in ("weight_0", "weight_28")} == {
        "weight_0": (64, 3, 3, 3),
        "weight_28": (512, 512, 3, 3),
    }
    first = weights["weight_0"].flatten()[:4].tolist()
    assert first == pytest.approx(PINNED_FIRST, abs=1e-5)
    last = weights["weight_28"].flatten()[-2:].tolist()
    assert last == pytest.approx(PINNED_LAST, abs=1e-5)
    assert float(weights["weight_7"].double().sum()) == pytest.approx(PINNED_SUM, abs=1e-2)
    for index, channels in ((0, 3), (2, 64), (28, 512)):
        assert float(weights[f"weight_{index}"].std()) == pytest.approx((2 / (9 * channels)) ** 0.5, rel=0.05)
        assert float(weights[f"bias_{index}"].abs().max()) == 0.0


def test_random_weights_follow_the_seed(random_zero: VGG19Features) -> None:
    """The same seed gives the same encoder, another seed another one."""
    again = VGG19Features("random", seed=0)
    other = VGG19Features("random", seed=1)
    assert again.fingerprint == random_zero.fingerprint
    assert other.fingerprint != random_zero.fingerprint
    assert not torch.equal(other.convolutions["weight_0"], random_zero.convolutions["weight_0"])


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub with an empty cache, that fails to download."""

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no internet here")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    return tmp_path


@pytest.mark.usefixtures("offline")
def test_constructor_does_not_download() -> None:
    """`VGG19Features()` opens no network; the first use does, and its failure says how to use a local file."""
    features = VGG19Features()
    for use in (features.load, lambda: features.deepest, lambda: features(_images(1, 3, 8, 8), [1])):
        with pytest.raises(
            WeightsError, match=r"OSError: no internet here; .*/vgg19-dcbb9e9d.pth, copy it here, and set `weights` to"
        ):
            use()


def test_cached_torchvision_weights_are_used(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torchvision's file is in torch.hub's cache it is read, and nothing is downloaded."""
    # Other weights than the name says.
    monkeypatch.setattr(weight_files, "check_hash", lambda path: None)
    (offline / "checkpoints").mkdir()
    _save(_state(), offline / "checkpoints" / "vgg19-dcbb9e9d.pth")
    assert VGG19Features("torchvision").deepest == 35


def test_download_is_checked_and_not_unpickled(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is of the file whose hash is in its name, checks that hash, and loads weights only."""
    asked: dict[str, object] = {}

    def deliver(url: str, **options: object) -> State:
        asked.update(options, url=url)
        return _state()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", deliver)
    features = VGG19Features()
    assert not asked
    features.load()
    features.load()
    assert asked["url"] == "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
    assert asked["check_hash"] is True
    assert asked["weights_only"] is True
    assert asked["progress"] is False
    assert features.deepest == 35


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch, narrow: Path) -> None:
    """Without torchvision local weights work, and torchvision's say how to get them."""
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert VGG19Features(narrow).deepest == 35
    with pytest.raises(WeightsError, match="set `weights` to its path"):
        VGG19Features().load()


# --- errors and identity ----------------------------------------------------------------------------------------------


def test_layers_deeper_than_the_weights(tmp_path: Path) -> None:
    """A layer that the weights do not reach names the layer, the file, and how deep it goes."""
    features = VGG19Features(_save(_state(convolutions=8), tmp_path / "short.pth"))
    message = "weights that reach layer 29, got .*short.pth that ends at layer 17; .*set `style_layers`"
    with pytest.raises(WeightsError, match=message):
        features(_images(1, 3, 32, 32), [1, 29])
    with pytest.raises(WeightsError, match=message):
        features.check_layers((29,))


@pytest.mark.parametrize("layer", [0, 2, 4, 36, -1])
def test_layers_that_are_no_relu(narrow: Path, layer: int) -> None:
    """An index that is not a ReLU's is answered with those that are."""
    listed = ", ".join(str(index) for index in RELUS)
    with pytest.raises(ValueError, match=f"expected `layer` to be one of {listed}, got {layer}"):
        VGG19Features(narrow)(_images(1, 3, 32, 32), [1, layer])


@pytest.mark.parametrize(("layer", "smallest"), [(1, 1), (3, 1), (6, 2), (11, 4), (20, 8), (29, 16)])
def test_too_small_images(narrow: Path, layer: int, smallest: int) -> None:
    """Images that vanish in the poolings are refused with the size that is needed; that size itself works."""
    features = VGG19Features(narrow)
    assert features(_images(1, 3, smallest, smallest + 3), [layer])[layer].numel() > 0
    if smallest > 1:
        message = f"tilts of at least {smallest} pixels a side for layer {layer}, got {smallest - 1} x 40"
        with pytest.raises(ValueError, match=message):
            features(_images(1, 3, smallest - 1, 40), [layer])


def test_unknown_choices_list_the_known(narrow: Path) -> None:
    """Poolings and precisions that do not exist are answered with those that do."""
    with pytest.raises(ValueError, match="`pooling` to be one of 'max', 'average', 'l2', got 'mean'"):
        VGG19Features(narrow, pooling="mean")
    with pytest.raises(ValueError, match="`precision` to be one of 'float32', 'bfloat16', got 'float16'"):
        VGG19Features(narrow, precision="float16")


def test_fingerprints(tmp_path: Path) -> None:
    """The fingerprint is of the weights' content, the pooling and the precision: not of the file's name or format."""
    path = _save(_state(), tmp_path / "a.pth")
    twin = _save(_state(), tmp_path / "b.safetensors")
    changed = _state()
    changed["features.28.bias"][0] += 1e-3
    encoders = [
        VGG19Features(path),
        VGG19Features(path, pooling="average"),
        VGG19Features(path, pooling="l2"),
        VGG19Features(path, precision="bfloat16"),
        VGG19Features(_save(changed, tmp_path / "c.pth")),
        VGG19Features(_save(_state(convolutions=15), tmp_path / "d.pth")),
    ]
    assert len({encoder.fingerprint for encoder in encoders}) == len(encoders)
    assert VGG19Features(twin).fingerprint == encoders[0].fingerprint


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 1, 4, 3), (1, 2, 3, 3)])
def test_a_gpus_derivative_of_the_padding(shape: tuple[int, ...]) -> None:
    """What a GPU adds, side by side, is the derivative of the padding by replication."""
    gradient = _images(*shape)
    like = gradient[..., 1:-1, 1:-1]
    expected = torch.ops.aten.replication_pad2d_backward(gradient, like, (1, 1, 1, 1))
    torch.testing.assert_close(unpadded(gradient), expected)


def _features_on_the_gpu(narrow: Path, layers: list[int]) -> list[tuple[Tensor, Tensor]]:
    """The features of each layer on a GPU, and on the CPU."""
    features, images = VGG19Features(narrow), _images(2, 3, 32, 32)
    expected, fingerprint = features(images, layers), features.fingerprint
    found = features.cuda()(images.cuda(), layers)
    assert features.fingerprint == fingerprint
    return [(found[layer].cpu(), expected[layer]) for layer in layers]


@pytest.mark.gpu
def test_cuda_equals_cpu(narrow: Path, exact_convolutions: None) -> None:
    """On the GPU the features are the CPU's, and the fingerprint is the same."""
    for found, expected in _features_on_the_gpu(narrow, [6, 11]):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@pytest.mark.gpu
def test_tf32_is_near_the_cpu(narrow: Path, tf32_convolutions: None) -> None:
    """As PyTorch sets it, a GPU may round each factor to 11 bits: features are off by less than 0.5 %."""
    for found, expected in _features_on_the_gpu(narrow, [6, 11]):
        assert float((found - expected).norm() / expected.norm()) < 5e-3
