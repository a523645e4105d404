"""Style transfer: the published results, Adam by the book, and tilts that do not depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from faket_aug.statistics import match_mean_std, mean_std, to_unit_range
from faket_aug.style import gram as products
from faket_aug.style.gram import gram_matrix
from faket_aug.style.transfer import (
    AVERAGE_DECAY,
    STEP_SIZE,
    STYLE_LAYERS,
    STYLE_WEIGHTS,
    StyleTargets,
    chunks_of_tilts,
    gray_to_rgb,
    style_grams,
    style_weights_for,
    stylize,
)
from faket_aug.style.vgg19 import CONVOLUTIONS, VGG19Features

FULL = "vgg19_conv1_1_to_conv3_4.safetensors"
DISTILLED = "vgg19_distilled_conv1_1_to_conv5_1.safetensors"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Images this small are encoded faster by one thread than by several that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _random(*shape: int, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1], each tilt with its own 0 and 1, so that the whole stack's range is every tilt's."""
    tilts = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tilts[:, 0, 0], tilts[:, -1, -1] = 0.0, 1.0
    return tilts


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1])


def _targets(style: Tensor, features, layers: Iterable[int]) -> StyleTargets:
    mean, std = mean_std(style)
    return StyleTargets(grams=style_grams(to_unit_range(style), features, layers=tuple(layers)), mean=mean, std=std)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> VGG19Features:
    """A narrow VGG-19 with random weights."""
    generator, state, channels = torch.Generator().manual_seed(0), {}, 3
    for index, width in zip(CONVOLUTIONS, (6, 6, 8, 8, 9), strict=False):
        scale = (2 / (9 * channels)) ** 0.5
        state[f"features.{index}.weight"] = scale * torch.randn(width, channels, 3, 3, generator=generator)
        state[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=generator)
        channels = width
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    save_file(state, path)
    return VGG19Features(path)


class FakeEncoder:
    """Features that can be checked by hand: at every layer a fixed mixture of the channels, in the images' dtype."""

    def __init__(self, *, mix: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        self.matrices = {
            layer: torch.randn(4, 3, generator=generator, dtype=torch.float64)
            if mix
            else torch.eye(3, dtype=torch.float64)
            for layer in (1, 6, 8, 11, 20, 29)
        }

    def __call__(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        return {layer: torch.einsum("kc,ncyx->nkyx", self.matrices[layer].to(images), images) for layer in layers}

    def forward_and_pullback(
        self, images: Tensor, layers: Iterable[int]
    ) -> tuple[dict[int, Tensor], Callable[[Mapping[int, Tensor]], Tensor]]:
        def pullback(slopes: Mapping[int, Tensor]) -> Tensor:
            return sum(torch.einsum("kc,nkyx->ncyx", self.matrices[k].to(images), s) for k, s in slopes.items())

        return self(images, layers), pullback


# --- published values -------------------------------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize(
    ("key", "weights", "layers", "options", "iterations", "least"),
    [
        ("styled_relu3", FULL, (1, 6, 11), {}, 1, 0.9999),
        ("styled_relu3", FULL, (1, 6, 11), {"precision": "bfloat16"}, 1, 0.98),
        ("styled_relu5", DISTILLED, STYLE_LAYERS, {}, 1, 0.9999),
        ("styled_relu5", DISTILLED, STYLE_LAYERS, {"precision": "bfloat16"}, 1, 0.98),
        ("styled_relu5_iter3", DISTILLED, STYLE_LAYERS, {}, 3, 0.99),
        ("styled_relu3_average", FULL, (1, 6, 11), {"pooling": "average"}, 1, 0.9999),
        ("styled_relu3_l2", FULL, (1, 6, 11), {"pooling": "l2"}, 1, 0.9999),
    ],
)
def test_golden_style_transfer(
    reference: Path,
    reference_file,
    key: str,
    weights: str,
    layers: tuple[int, ...],
    options: dict[str, str],
    iterations: int,
    least: float,
) -> None:
    """The update of every pixel correlates with the published program's, and the matched result is the published."""
    golden = np.load(reference_file(reference, "golden/tiltseries_nst.npz"))
    content, init, style, before = (torch.from_numpy(golden[k]) for k in ("content", "init", "style", "init_unit"))
    torch.testing.assert_close(to_unit_range(init), before, rtol=0, atol=1e-6)
    features = VGG19Features(reference_file(reference, f"golden/{weights}"), **options)
    targets = _targets(style, features, layers)
    found = stylize(content, init, targets, features=features, iterations=iterations)
    assert found.dtype == torch.float32
    assert _correlation(found - before, torch.from_numpy(golden[key]) - before) >= least
    final = key.replace("styled", "final")
    if final in golden and "precision" not in options:
        matched = match_mean_std(found, targets.mean, targets.std)
        assert _correlation(matched, torch.from_numpy(golden[final])) >= 0.9999
        mean, std = mean_std(matched)
        torch.testing.assert_close(mean, targets.mean, rtol=1e-5, atol=0)
        torch.testing.assert_close(std, targets.std, rtol=1e-5, atol=0)


# --- by the book ------------------------------------------------------------------------------------------------------


def _loss(
    images: Tensor, encoder: FakeEncoder, content: Tensor, content_layers: tuple[int, ...], style: StyleTargets
) -> Tensor:
    """Write the design's loss down: `Σd² / (Σ|d| + 1e-8)` a tilt and layer; Gram matrix `F Fᵀ / pixels`."""

    def error(found: Tensor, target: Tensor) -> Tensor:
        d = (found - target).flatten(1)
        return ((d**2).sum(1) / (d.abs().sum(1) + 1e-8)).sum()

    found = encoder(images, (*content_layers, *style.grams))
    kept = encoder(gray_to_rgb(content), content_layers)
    weights = np.array([256, 64, 16, 4, 1][: len(style.grams)], dtype=np.float64)
    weights /= weights.sum()
    loss = sum(error(found[layer], kept[layer]) for layer in content_layers)
    for weight, (layer, gram) in zip(weights, style.grams.items(), strict=True):
        flat = found[layer].flatten(2)
        loss = loss + weight * error(flat @ flat.transpose(1, 2) / flat.shape[2], gram)
    return loss


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("style_layers", [(1, 6, 11), (1, 8), STYLE_LAYERS])
def test_equals_torch_adam(mix: bool, iterations: int, style_layers: tuple[int, ...]) -> None:
    """The steps are `torch.optim.Adam`'s on the design's loss, with clamp and bias-corrected average after each."""
    encoder = FakeEncoder(mix=mix)
    content, init, style = _random(3, 7, 11), _random(3, 7, 11, seed=1), _random(3, 6, 5, seed=2) ** 3
    targets = _targets(style, encoder, style_layers)
    found = stylize(content, init, targets, features=encoder, iterations=iterations)

    images = gray_to_rgb(init).clone().requires_grad_()
    adam = torch.optim.Adam([images], lr=STEP_SIZE, betas=(0.9, 0.999), eps=1e-8)
    average, weight = images.detach().clone(), 1.0
    for _ in range(iterations):
        adam.zero_grad()
        _loss(images, encoder, content, (8,), targets).backward()
        adam.step()
        images.data.clamp_(0, 1)
        average, weight = AVERAGE_DECAY * average + images.detach(), AVERAGE_DECAY * weight + 1
    torch.testing.assert_close(found, (average / weight).mean(1), rtol=1e-6, atol=1e-7)
    assert float((found - init).abs().max()) > 0.05


def test_one_step_is_the_sign(encoder: VGG19Features) -> None:
    """One step moves each channel by 0.15 at most, of which the average takes 1/1.99; it stays in [0, 1]."""
    content, init, style = (_random(2, 24, 32, seed=i).float() for i in range(3))
    found = stylize(content, init, _targets(style, encoder, (1, 6)), features=encoder)
    moved = (found - init).abs()
    assert float(moved.max()) <= STEP_SIZE / 1.99 + 1e-6
    assert float(moved.median()) > 0.01
    assert 0.0 <= float(found.min()) <= float(found.max()) <= 1.0


def test_step_zero_is_the_start(encoder: VGG19Features) -> None:
    """A step of size 0 gives the start back: the noisy tilts in [0, 1]."""
    init = 2000 + 150 * _random(2, 24, 32, seed=1).float()
    found = stylize(_random(2, 24, 32).float(), init, _targets(init, encoder, (1,)), features=encoder, step_size=0.0)
    torch.testing.assert_close(found, to_unit_range(init), rtol=0, atol=1e-6)


def test_nothing_to_do_changes_nothing() -> None:
    """A tilt that has the content and the style already has gradient 0, and stays."""
    encoder = FakeEncoder()
    init = _random(2, 6, 9)
    found = stylize(init, init, _targets(init, encoder, (1, 6)), features=encoder)
    torch.testing.assert_close(found, init, rtol=0, atol=1e-12)


def test_style_loss_falls() -> None:
    """Steps bring the Gram matrices nearer to the style's."""
    encoder = FakeEncoder(mix=False)
    content, init, style = _random(2, 8, 12), _random(2, 8, 12, seed=1), _random(2, 8, 12, seed=2) ** 3
    targets = _targets(style, encoder, (1,))

    def distance(tilts: Tensor) -> float:
        return float((style_grams(tilts, encoder, layers=(1,))[1] - targets.grams[1]).abs().sum())

    found = stylize(content, init, targets, features=encoder, content_weight=0.0)
    assert distance(found) < 0.9 * distance(init)


# --- tilts do not depend on each other --------------------------------------------------------------------------------


def test_batched_equals_one_by_one(encoder: VGG19Features) -> None:
    """A stack gives what its tilts give alone, with their own style targets."""
    content, init, style = (_random(3, 20, 28, seed=i).float() for i in range(3))
    targets = _targets(style, encoder, (1, 6, 11))
    together = stylize(content, init, targets, features=encoder)
    for i in range(3):
        one = StyleTargets(
            grams={layer: gram[i : i + 1] for layer, gram in targets.grams.items()},
            mean=targets.mean[i : i + 1],
            std=targets.std[i : i + 1],
        )
        alone = stylize(content[i : i + 1], init[i : i + 1], one, features=encoder)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2])
def test_memory_budget_changes_nothing(encoder: VGG19Features, iterations: int) -> None:
    """However the tilts are cut into chunks, the result is the same to 1e-6."""
    content, init, style = (_random(5, 16, 20, seed=i).float() for i in range(3))
    mean, std = mean_std(style)
    results = []
    for budget in (2**30, 2 * 16 * 20 * 4 * 64 * 8, 1):
        grams = style_grams(to_unit_range(style), encoder, layers=(1, 6), memory_budget=budget)
        targets = StyleTargets(grams=grams, mean=mean, std=std)
        results.append(stylize(content, init, targets, features=encoder, iterations=iterations, memory_budget=budget))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("budget", [1, 10**6, 3 * 10**6, 2**40])
def test_chunks_cover_each_tilt_once(count: int, budget: int) -> None:
    """Chunks follow each other, cover all tilts, and hold one at least."""
    chunks = chunks_of_tilts(count, 16 * 16, budget)
    assert [i for chunk in chunks for i in range(count)[chunk]] == list(range(count))
    assert all(chunk.stop > chunk.start for chunk in chunks)
    with pytest.raises(ValueError, match="`memory_budget` to be more than 0, got 0"):
        chunks_of_tilts(count, 16, 0)


def test_style_of_another_size(encoder: VGG19Features) -> None:
    """The style's tilts may have another size; content that is not square is not transposed."""
    style = _random(2, 30, 18, seed=2).float()
    content, init = _random(2, 16, 26).float(), _random(2, 16, 26, seed=1).float()
    found = stylize(content, init, _targets(style, encoder, (1, 6)), features=encoder)
    assert found.shape == (2, 16, 26)
    assert _correlation(found, init) > 0.95


def test_units_do_not_matter(encoder: VGG19Features) -> None:
    """Content and init may come in any unit: the whole stack's range is brought to [0, 1]."""
    content, init, style = (_random(2, 16, 20, seed=i).float() for i in range(3))
    targets = _targets(style, encoder, (1, 6))
    expected = stylize(content, init, targets, features=encoder)
    found = stylize(64 * content - 16, 2 + 8 * init, targets, features=encoder)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_quantiles_resist_a_hot_pixel(encoder: VGG19Features) -> None:
    """With a robust range one hot pixel changes little; with minimum and maximum it flattens the stack."""
    content, init, style = (_random(2, 24, 24, seed=i).float() for i in range(3))
    targets = _targets(style, encoder, (1, 6))
    hot = init.clone()
    hot[0, 5, 5] = 1e6
    assert float(stylize(content, hot, targets, features=encoder).median()) < 0.1
    found = stylize(content, hot, targets, features=encoder, quantiles=(0.01, 0.99))
    calm = stylize(content, init, targets, features=encoder, quantiles=(0.01, 0.99))
    assert _correlation(found[1], calm[1]) > 0.99
    assert 0.0 <= float(found.min()) <= float(found.max()) <= 1.0


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_tilts_make_no_nan(encoder: VGG19Features, value: float) -> None:
    """Constant content, init or style give numbers, not NaN."""
    flat, tilts = torch.full((2, 16, 16), value), _random(2, 16, 16).float()
    for content, init, style in ((flat, tilts, tilts), (tilts, flat, tilts), (tilts, tilts, flat), (flat, flat, flat)):
        found = stylize(content, init, _targets(style, encoder, (1, 6)), features=encoder)
        assert bool(torch.isfinite(found).all())


def test_nothing_given_is_changed(encoder: VGG19Features) -> None:
    """Content, init and targets are left alone; the result wants no gradient; twice gives the same bits."""
    content, init, style = (_random(2, 16, 16, seed=i).float() for i in range(3))
    targets = _targets(style, encoder, (1, 8))
    before = [tensor.clone() for tensor in (content, init, *targets.grams.values())]
    first = stylize(content, init, targets, features=encoder, iterations=2)
    assert torch.equal(first, stylize(content, init, targets, features=encoder, iterations=2))
    after = (content, init, *targets.grams.values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not first.requires_grad
    assert not any(gram.requires_grad for gram in targets.grams.values())


# --- Gram matrices and weights ----------------------------------------------------------------------------------------


def test_gram_matrix() -> None:
    """`F Fᵀ / pixels` of each tilt by itself, whatever the memory's order."""
    features = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = features.flatten(2)
    expected = torch.einsum("ncp,ndp->ncd", flat, flat) / 42
    torch.testing.assert_close(gram_matrix(features), expected)
    torch.testing.assert_close(gram_matrix(features.contiguous(memory_format=torch.channels_last)), expected)


def test_autocast_does_not_reach_gram_matrices() -> None:
    """Within `torch.autocast` they are as without: float32 at least."""
    features = _random(2, 5, 6, 7).float()
    for one in (features, features.to(torch.bfloat16)):
        expected = gram_matrix(one)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gram_matrix(one)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def test_gram_matrix_accumulates_in_float32() -> None:
    """Of bfloat16 features the Gram matrix is float32, summed so: small channels beside large ones are not lost."""
    features = (
        torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        * torch.tensor([100.0, 1.0, 0.01])[:, None, None]
    )
    half = features.to(torch.bfloat16)
    found = gram_matrix(half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), gram_matrix(half.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pixels", [7, 64, 150])
def test_a_gpus_gram_matrix(dtype: torch.dtype, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split over pixels, with a rest or without, the products add up to the Gram matrix, in float32."""
    bmm = torch.bmm

    def widening(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return bmm(a, b) if out_dtype is None else bmm(a.to(out_dtype), b.to(out_dtype))

    monkeypatch.setattr(torch, "bmm", widening)
    monkeypatch.setattr(products, "_GPU_PIXELS", 32)
    features = _random(2, 5, pixels, 1).to(dtype)
    found = products._split_products(products.pixels_by_channels(features), torch.float32) / pixels
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gram_matrix(features.double()).float(), rtol=1e-5, atol=1e-5)


def test_products_that_are_not_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch cannot multiply half precision into float32, or does it wrongly, it is not asked to."""
    cpu = torch.device("cpu")
    assert not products.widens_products.__wrapped__(cpu, torch.bfloat16)
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b, out_dtype=None: bmm(a.float(), b.float()))
    assert products.widens_products.__wrapped__(cpu, torch.bfloat16)
    monkeypatch.setattr(
        torch, "bmm", lambda a, b, out_dtype=None: bmm(a.float(), b.float()) * (1 if out_dtype is None else 2)
    )
    assert not products.widens_products.__wrapped__(cpu, torch.bfloat16)


def test_a_lack_of_memory_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first product finds no memory, nothing is known yet of products: the same sums later as ever."""

    def full(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "bmm", full)
    with pytest.raises(torch.OutOfMemoryError):
        products.widens_products(torch.device("cpu"), torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_matrix_on_a_gpu(dtype: torch.dtype) -> None:
    """On a GPU it is the CPU's, and the same each time, bit for bit."""
    features = _random(3, 8, 70, 130).to(dtype).contiguous(memory_format=torch.channels_last)
    found = gram_matrix(features.cuda())
    torch.testing.assert_close(found.cpu(), gram_matrix(features), rtol=1e-4, atol=1e-5)
    assert torch.equal(gram_matrix(features.cuda()), found)


def test_bfloat16_encoder_gives_float32_grams(encoder: VGG19Features, tmp_path: Path) -> None:
    """Style targets of a bfloat16 encoder are float32."""
    state = {}
    for key, value in encoder.convolutions.items():
        kind, index = key.split("_")
        state[f"features.{index}.{kind}"] = value.detach().contiguous()
    save_file(state, tmp_path / "weights.safetensors")
    half = VGG19Features(tmp_path / "weights.safetensors", precision="bfloat16")
    style = _random(2, 16, 16).float()
    exact = style_grams(style, encoder, layers=(1, 6))
    for layer, gram in style_grams(style, half, layers=(1, 6)).items():
        assert gram.dtype == torch.float32
        assert float((gram - exact[layer]).norm() / exact[layer].norm()) < 0.02


def test_style_weights() -> None:
    """By default 256:64:16:4:1 from the first layer on, normalised to sum 1; only the proportions count."""
    assert STYLE_WEIGHTS == (256, 64, 16, 4, 1)
    assert style_weights_for((1, 6, 11), None) == pytest.approx((256 / 336, 64 / 336, 16 / 336))
    assert sum(style_weights_for(STYLE_LAYERS, None)) == pytest.approx(1.0)
    assert style_weights_for((1, 6), (3.0, 1.0)) == style_weights_for((1, 6), (30, 10)) == (0.75, 0.25)
    with pytest.raises(ValueError, match="one of `style_weights` for each of 2 `style_layers`, got 3"):
        style_weights_for((1, 6), (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="the sum of `style_weights`"):
        style_weights_for((1, 6), (0.0, 0.0))


def test_targets_move_between_devices(encoder: VGG19Features) -> None:
    """`to` moves all tensors and nothing else."""
    targets = _targets(_random(2, 8, 8).float(), encoder, (1,))
    moved = targets.to("meta")
    assert all(t.device.type == "meta" for t in (moved.mean, moved.std, *moved.grams.values()))
    assert targets.mean.device.type == "cpu"
    assert torch.equal(targets.to("cpu").grams[1], targets.grams[1])


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors(encoder: VGG19Features) -> None:
    """Shapes that do not belong together and settings out of range are refused by name."""
    tilts = _random(2, 16, 16).float()
    targets = _targets(tilts, encoder, (1,))

    def run(content: Tensor = tilts, init: Tensor = tilts, style: StyleTargets = targets, **settings) -> None:
        stylize(content, init, style, features=encoder, **settings)

    with pytest.raises(ValueError, match=r"`content` of shape \(tilt, y, x\), got \(16, 16\)"):
        run(content=tilts[0])
    with pytest.raises(ValueError, match=r"`init` to have the shape of `content`, \(2, 16, 16\), got \(2, 16, 15\)"):
        run(init=tilts[:, :, 1:])
    with pytest.raises(ValueError, match=r"`style.mean` .*\(1,\), got \(2,\)"):
        run(content=tilts[:1], init=tilts[:1])
    with pytest.raises(ValueError, match="`step_size` to be 0 or more, got -1"):
        run(step_size=-1)
    with pytest.raises(ValueError, match="`iterations` to be more than 0, got 0"):
        run(iterations=0)
    with pytest.raises(ValueError, match=r"`average_decay` to lie in \[0, 1\], got 1.5"):
        run(average_decay=1.5)
    with pytest.raises(ValueError, match="`quantiles` to be a pair"):
        run(quantiles=(0.9, 0.1))
    with pytest.raises(ValueError, match="`memory_budget` to be more than 0"):
        run(memory_budget=0)
    with pytest.raises(ValueError, match=r"`tilts` of shape \(tilt, y, x\)"):
        style_grams(tilts[0], encoder)


def test_too_small_tilts_are_refused(encoder: VGG19Features) -> None:
    """Tilts that vanish in the poolings are refused with the size that is needed."""
    with pytest.raises(ValueError, match="tilts of at least 4 pixels a side for layer 11, got 3 x 9"):
        style_grams(_random(1, 3, 9).float(), encoder, layers=(1, 11))


def _updates(encoder: VGG19Features) -> tuple[Tensor, Tensor]:
    """What the step changes on a GPU, and on the CPU."""
    content, init, style = (_random(2, 32, 32, seed=i).float() for i in range(3))
    targets = _targets(style, encoder, (1, 6, 11))
    expected = stylize(content, init, targets, features=encoder)
    try:
        found = stylize(content.cuda(), init.cuda(), targets.to("cuda"), features=encoder.cuda())
    finally:
        encoder.cpu()
    return found.cpu() - init, expected - init


@pytest.mark.gpu
def test_cuda_is_near_the_cpu(encoder: VGG19Features, exact_convolutions: None) -> None:
    """On the GPU the update is the CPU's, but for pixels whose gradient is near zero."""
    assert _correlation(*_updates(encoder)) > 0.99


@pytest.mark.gpu
def test_tf32_is_near_the_cpu(encoder: VGG19Features, tf32_convolutions: None) -> None:
    """With factors of 11 bits, as PyTorch sets it, a few more pixels, whose gradient is small, go the other way."""
    assert _correlation(*_updates(encoder)) > 0.98


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*CuBLAS", "ignore:.*CUBLAS_WORKSPACE_CONFIG")
def test_deterministic_algorithms(encoder: VGG19Features) -> None:
    """Nothing is done that PyTorch calls not deterministic (of cuBLAS it only asks for a setting), twice the same."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = (_updates(encoder)[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)
