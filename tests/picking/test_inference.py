"""Segmentation by tiles: the same as one pass where the network's view allows it, in bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faket_aug.picking import DeepFinderNet
from faket_aug.picking.inference import DEFAULT_WINDOW, class_probabilities, segment
from faket_aug.picking.preparation import LocalNormalization, Preparation
from faket_aug.picking.tiles import spans_of
from tests._helpers import generator

SHAPE = (20, 44, 53)


def _small_net(classes: int = 3) -> nn.Module:
    """A network that sees 2 voxels to each side."""
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, classes, 3, padding=1))
    for index, parameter in enumerate(net.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator(index)) * 0.5
    return net


def _tomogram(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=generator(7))


@pytest.mark.parametrize("blend", ["crop", "linear"])
def test_equals_one_pass(blend: str) -> None:
    """With an overlap of twice the view, tiles give what one pass gives (crop: everywhere)."""
    net, image = _small_net(), _tomogram()
    padded = torch.nn.functional.pad(image[None, None], (0, 3, 0, 0, 0, 0), mode="replicate")
    with torch.no_grad():
        expected = net(padded)[0, :, :, :, : SHAPE[2]].argmax(dim=0)
    found = segment(net, image, tile_size=(16, 16, 24), overlap=8, blend=blend, normalized=True)
    assert found.dtype == torch.uint8
    assert found.shape == SHAPE
    agreement = (found == expected).float().mean()
    assert agreement == 1.0 if blend == "crop" else agreement > 0.97


def test_logits_equal_one_pass_for_deepfinder() -> None:
    """DeepFinder's network, an overlap of twice its view: the logits agree to 1e-4."""
    with torch.random.fork_rng():
        net = _Recorder(DeepFinderNet(2))
    for index, parameter in enumerate(net.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator(index)) * (2 / parameter[0].numel()) ** 0.5
    image = _tomogram((8, 8, 176))
    with torch.no_grad():
        whole = net.inner(image[None, None])[0]
    segment(net, image, tile_size=(8, 8, 120), overlap=64, normalized=True)
    spans = spans_of(176, 120, 64)
    assert len(net.seen) == len(spans) == 2
    for span, logits in zip(spans, net.seen, strict=True):
        inner = logits[..., span.first - span.start : span.last - span.start]
        expected = whole[..., span.first : span.last]
        assert (inner - expected).abs().max() <= 1e-4 * expected.abs().max()
        # Nearer than its view to a border, the network sees something else: the test can fail.
    assert (net.seen[0][..., -1] - whole[..., 119]).abs().max() > 1e-3 * whole.abs().max()


class _Recorder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        self.seen.append(logits[0])
        return logits


def test_spans_cover_and_keep_alignment() -> None:
    """Every voxel is kept once; tiles begin at multiples of 4, where pooling has the same phase."""
    for length in (8, 20, 100, 104, 252):
        spans = spans_of(length, 40, 16)
        assert [n for span in spans for n in range(span.first, span.last)] == list(range(length))
        assert all(span.start % 4 == 0 for span in spans)
        assert all(span.start <= span.first < span.last <= span.stop for span in spans)


def test_memory_is_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tile the network sees is larger than asked for, however large the tomogram."""
    net = _Recorder(_small_net())
    segment(net, _tomogram((40, 40, 80)), tile_size=16, overlap=8)
    assert {tuple(seen.shape[1:]) for seen in net.seen} == {(16, 16, 16)}


def test_prepares_the_tomogram_and_keeps_the_mode() -> None:
    """The unit of the gray values makes no difference; a tomogram that is prepared already is taken as it is."""
    net, image = _small_net().train(), _tomogram()
    expected = segment(net, image * 7 + 100, tile_size=16, overlap=8)
    assert (segment(net, image, tile_size=16, overlap=8) == expected).float().mean() > 0.999
    whole = [slice(0, n) for n in image.shape]
    prepared = LocalNormalization(image, (DEFAULT_WINDOW,) * 3).tile(whole)
    found = segment(net, prepared, tile_size=16, overlap=8, normalized=True)
    assert (expected == found).float().mean() > 0.999
    assert net.training


def test_what_lies_around_a_tomogram_makes_no_difference() -> None:
    """Zeros around a tomogram are background, and change nothing within it."""
    net, image = _small_net(), _tomogram()
    preparation = Preparation(patch_size=(16, 16, 16))
    larger = torch.zeros([n + 32 for n in image.shape])
    inner = tuple(slice(16, 16 + n) for n in image.shape)
    larger[inner] = image + 50
    settings: dict[str, Any] = {"tile_size": 24, "overlap": 16, "preparation": preparation}
    found = segment(net, larger, **settings)
    # The network sees zeros where it saw the tomogram's border before, so only what is further in is compared.
    core = tuple(slice(8, n - 8) for n in image.shape)
    assert (found[inner][core] == segment(net, image, **settings)[core]).float().mean() > 0.99
    found[inner] = 0
    assert not bool(found.any())


def test_unprepared_patches() -> None:
    """A network that was trained on patches as they are sees the tomogram as it is."""
    net, image = _small_net(), _tomogram() * 3 + 1
    plain = Preparation(patch_size=(16, 16, 16), normalized=False)
    found = segment(net, image, tile_size=16, overlap=8, preparation=plain)
    assert torch.equal(found, segment(net, image, tile_size=16, overlap=8, normalized=True))


def test_flavours_are_channels() -> None:
    """Each channel is prepared by itself; tiles give what one pass gives; what one flavour lacks is background."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = DeepFinderNet(3, in_channels=2, widths=(2, 3, 4))
    first, second = (torch.randn(12, 36, 40, generator=generator(seed)) for seed in (1, 2))
    both = torch.stack([first, second])
    with torch.no_grad():
        wanted = network(both[None])[0].argmax(dim=0)
    assert torch.equal(segment(network, both, normalized=True), wanted.to(torch.uint8))
    tiled = segment(network, both, normalized=True, tile_size=24, overlap=16)
    assert (tiled == wanted).float().mean() > 0.98
    prepared = segment(network, both)
    assert (segment(network, torch.stack([first, 3 * second + 7])) == prepared).float().mean() > 0.999
    assert not torch.equal(segment(network, torch.stack([second, first])), prepared)
    holed = both.clone()
    holed[1, :, :, 20:] = 0.0
    assert not segment(network, holed)[:, :, 20:].any()
    probable = class_probabilities(network, holed, within=torch.ones(12, 36, 40, dtype=torch.bool))
    assert probable.shape == (2, 12, 36, 40)
    assert not probable[..., 20:].any()
    with pytest.raises(ValueError, match=r"`tomogram` \(channel, z, y, x\) with 2 channels, got shape \(12, 36, 40\)"):
        segment(network, first)


def test_bfloat16_agrees_mostly() -> None:
    net, image = _small_net(), _tomogram()
    low = segment(net, image, tile_size=16, overlap=8, precision="bfloat16")
    assert (low == segment(net, image, tile_size=16, overlap=8)).float().mean() > 0.97


def test_bad_settings() -> None:
    net, image = _small_net(), _tomogram()
    with pytest.raises(ValueError, match="`tile_size` in multiples of 4 .* got \\(18, 18, 18\\) and 8"):
        segment(net, image, tile_size=18, overlap=8)
    with pytest.raises(ValueError, match="a smaller `overlap`"):
        segment(net, image, tile_size=16, overlap=16)
    with pytest.raises(ValueError, match="'crop', 'linear', got 'mean'"):
        segment(net, image, blend="mean")
    with pytest.raises(ValueError, match="at most 256 classes, got 300"):
        segment(_small_net(300), image, tile_size=16, overlap=8)


def test_other_voxel_size_is_warned_of() -> None:
    """The voxel size is kept with the weights; a tomogram of another one gives a warning, the same one none."""
    with torch.random.fork_rng(devices=[]):
        trained, loaded = DeepFinderNet(2, widths=(2, 2, 2), voxel_size=10.0), DeepFinderNet(2, widths=(2, 2, 2))
    loaded.load_state_dict(trained.state_dict())
    assert loaded.voxel_size == 10.0
    image = _tomogram((8, 8, 8))
    segment(loaded, image, tile_size=8, overlap=0, voxel_size=10.1)
    with pytest.warns(UserWarning, match="trained on voxels of 10 Å, the tomogram has voxels of 13.5 Å"):
        segment(loaded, image, tile_size=8, overlap=0, voxel_size=13.5)


# --- GPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("blend", ["crop", "linear"])
@pytest.mark.parametrize("free", [2**40, 0])
def test_cuda_equals_cpu(blend: str, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network on a GPU gives the CPU's labels where the tomogram is, with room for a slab there and without."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**40))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DeepFinderNet(3, widths=(2, 3, 4))
    volume = torch.randn(20, 40, 36, generator=torch.Generator().manual_seed(1))
    expected = segment(network, volume, tile_size=16, overlap=8, blend=blend)
    found = segment(network.cuda(), volume, tile_size=16, overlap=8, blend=blend)
    assert found.device.type == "cpu"
    assert float((found == expected).double().mean()) > 0.999
