"""DeepFinder's network and loss: layers, sizes, padding, values by hand, gradients."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from faket_aug.picking import DeepFinderNet, tversky_loss

#: A network draws its first weights from torch's global generator, as every module does.
pytestmark = pytest.mark.touches_global_rng

CLASSES = 13
#: Input channels, output channels and kernel of each convolution, from the input to the classes.
LAYERS = [
    (1, 32, 3),
    (32, 32, 3),
    (32, 48, 3),
    (48, 48, 3),
    (48, 64, 3),
    (64, 64, 3),
    (64, 64, 3),
    (64, 64, 3),
    (64, 64, 2),
    (64 + 48, 48, 3),
    (48, 48, 3),
    (48, 48, 2),
    (48 + 32, 32, 3),
    (32, 32, 3),
    (32, CLASSES, 1),
]


@pytest.fixture(scope="module")
def network() -> DeepFinderNet:
    """A network for 13 classes."""
    torch.manual_seed(0)
    return DeepFinderNet(CLASSES)


def _convolutions(network: nn.Module) -> list[nn.Conv3d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv3d)]


def _published(network: DeepFinderNet, images: Tensor) -> Tensor:
    """The network once more, from its convolutions in order, padding written out."""

    def layer(index: int, x: Tensor) -> Tensor:
        kernel = convolutions[index].kernel_size[0]
        # A kernel of 3 takes one voxel at both ends, one of 2 only at the end.
        padded = functional.pad(x, ((kernel - 1) // 2, kernel // 2) * 3)
        return functional.relu(functional.conv3d(padded, convolutions[index].weight, convolutions[index].bias))

    def twice(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)

    convolutions = _convolutions(network)
    high = layer(1, layer(0, images))
    middle = layer(3, layer(2, functional.max_pool3d(high, 2)))
    low = layer(7, layer(6, layer(5, layer(4, functional.max_pool3d(middle, 2)))))
    up = layer(10, layer(9, torch.cat([layer(8, twice(low)), middle], dim=1)))
    top = layer(13, layer(12, torch.cat([layer(11, twice(up)), high], dim=1)))
    return functional.conv3d(top, convolutions[14].weight, convolutions[14].bias)


# --- network ----------------------------------------------------------------------------------------------------------


def test_layer_table(network: DeepFinderNet) -> None:
    """The convolutions are the published ones, in order."""
    found = [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in _convolutions(network)]
    assert found == LAYERS
    assert all(len(set(c.kernel_size)) == 1 for c in _convolutions(network))


def test_parameter_count(network: DeepFinderNet) -> None:
    """13 classes take 903 357 parameters, every further class 33."""
    assert sum(p.numel() for p in network.parameters()) == 903_357
    assert sum(o * (i * k**3 + 1) for i, o, k in LAYERS) == 903_357
    assert sum(p.numel() for p in DeepFinderNet(CLASSES + 1).parameters()) == 903_357 + 33


def test_whole_network_against_padding_written_out(network: DeepFinderNet) -> None:
    """The network is its layers one after the other, with Keras's padding, concatenations and no last ReLU."""
    images = torch.randn(2, 1, 8, 12, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = network(images), _published(network, images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found < 0).any(), "logits are not clamped"


def test_even_kernels_reach_forward() -> None:
    """A kernel of 2³ at voxel i sees i and i + 1: the padding is at the end of each axis."""
    upsampling = DeepFinderNet(2).up_2
    with torch.no_grad():
        upsampling.convolution.weight.fill_(1.0)
        upsampling.convolution.bias.zero_()
        image = torch.zeros(1, 64, 2, 3, 4)
        image[0, 0, 1, 1, 2] = 1.0  # after upsampling voxels 2..3, 2..3, 4..5
        found = upsampling(image)[0, 0]
    assert found.shape == (4, 6, 8)
    # Along each axis: how many of the voxels i, i + 1 are set.
    z, y, x = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 2, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 2, 1, 0, 0])
    expected = z[:, None, None] * y[:, None] * x
    assert torch.equal(found, expected.float())


@pytest.mark.parametrize("size", [(4, 4, 4), (8, 4, 12), (16, 20, 8)])
def test_output_has_the_input_size(network: DeepFinderNet, size: tuple[int, int, int]) -> None:
    """Any multiples of 4, also unequal ones, keep their size."""
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *size)).shape == (1, CLASSES, *size)


def test_batched_equals_one_by_one(network: DeepFinderNet) -> None:
    """Items of a batch do not see each other."""
    images = torch.randn(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together, alone = network(images), torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8, 8), (8, 8, 10), (8, 9, 8), (0, 8, 8)])
def test_other_sizes_are_refused(network: DeepFinderNet, size: tuple[int, int, int]) -> None:
    """The message gives the size, the rule and the remedy."""
    with pytest.raises(ValueError, match=r"multiples of 4, got \(.*\); crop or pad"):
        network(torch.zeros(1, 1, *size))


@pytest.mark.parametrize(("shape", "message"), [((1, 8, 8, 8), "n, channel, z, y, x"), ((1, 2, 8, 8, 8), "1 channel")])
def test_other_shapes_are_refused(network: DeepFinderNet, shape: tuple[int, ...], message: str) -> None:
    """Missing axes and wrong channels are said so."""
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(shape))


def test_settings_are_checked() -> None:
    """One class cannot be told apart; a network without channels sees nothing."""
    with pytest.raises(ValueError, match="`classes` to be 2 or more"):
        DeepFinderNet(1)
    with pytest.raises(ValueError, match="`in_channels` to be more than 0"):
        DeepFinderNet(2, in_channels=0)
    with torch.no_grad():
        assert DeepFinderNet(2, in_channels=3)(torch.zeros(1, 3, 4, 4, 4)).shape == (1, 2, 4, 4, 4)


def test_first_weights_are_glorots(network: DeepFinderNet) -> None:
    """Weights are uniform within `sqrt(6 / (fan in + fan out))`, as Keras draws them; biases are 0."""
    for convolution in _convolutions(network):
        voxels = convolution.kernel_size[0] ** 3
        bound = math.sqrt(6 / ((convolution.in_channels + convolution.out_channels) * voxels))
        assert 0.9 * bound < float(convolution.weight.detach().abs().max()) <= bound
        assert not convolution.bias.any()


def test_pickles(network: DeepFinderNet) -> None:
    """The network travels to other processes."""
    images = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(network))(images), network(images))


# --- loss -------------------------------------------------------------------------------------------------------------


def _logits(probability: Tensor) -> Tensor:
    return probability.log()


def test_tversky_by_hand() -> None:
    """Two voxels, three classes, two of which occur: the sums written out."""
    # Voxel 0 is of class 0, voxel 1 of class 1; columns are the classes' probabilities.
    probability = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    logits = _logits(probability).T.reshape(1, 3, 1, 1, 2)
    #   class   TP   FP   FN
    #   0       0.7  0.3  0.3
    #   1       0.6  0.2  0.4
    #   2       0    0.2  0
    expected = 3 - 0.7 / (0.7 + 0.3 * 0.3 + 0.7 * 0.3) - 0.6 / (0.6 + 0.3 * 0.2 + 0.7 * 0.4) - 0
    found = tversky_loss(logits, labels.reshape(1, 1, 1, 2), alpha=0.3, beta=0.7)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(expected, abs=1e-6)
    halves = 3 - 0.7 / (0.7 + 0.15 + 0.15) - 0.6 / (0.6 + 0.1 + 0.2)
    assert float(tversky_loss(logits, labels.reshape(1, 1, 1, 2))) == pytest.approx(halves, abs=1e-6)


def test_sums_run_over_batch_and_space_together() -> None:
    """How voxels are shared out over batch and space does not matter (a mean over items would differ)."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 2, 2, 2), generator=generator)
    joined = logits.movedim(1, 0).reshape(1, 3, 4, 2, 2)  # (class, n z y x), then one item
    found = tversky_loss(joined, labels.reshape(1, 4, 2, 2))
    assert float(found) == pytest.approx(float(tversky_loss(logits, labels)), abs=1e-12)


def test_perfect_and_wrong() -> None:
    """A certain, right answer costs 0, a certain, wrong one the number of classes."""
    labels = torch.arange(4).reshape(1, 1, 2, 2) % 2
    right = 200.0 * functional.one_hot(labels, 2).movedim(-1, 1).float()
    assert float(tversky_loss(right, labels)) == pytest.approx(0.0, abs=1e-5)
    assert float(tversky_loss(-right, labels)) == pytest.approx(2.0, abs=1e-5)


def test_absent_classes() -> None:
    """A class that does not occur costs 1 however small its probability, and nothing, nor NaN, at probability 0."""
    labels = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    for gap, expected in ((0.0, 1 + 1 / 3), (30.0, 1.0), (60.0, 1.0), (500.0, 0.0)):
        logits = torch.zeros(1, 2, 2, 2, 2)
        logits[:, 1] -= gap
        logits.requires_grad_()
        loss = tversky_loss(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(expected, abs=1e-3)
        assert bool(gradient.isfinite().all())


def test_gradient_against_finite_differences() -> None:
    """The gradient is that of the formula."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 3, 1, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 1, 2, 2), generator=generator)
    assert torch.autograd.gradcheck(lambda x: tversky_loss(x, labels, alpha=0.3, beta=0.7), (logits,))


def test_gradient_reaches_every_parameter(network: DeepFinderNet) -> None:
    """A step along the gradient makes the loss smaller."""
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(1, 1, 8, 8, 8, generator=generator)
    labels = torch.randint(0, CLASSES, (1, 8, 8, 8), generator=generator)
    loss = tversky_loss(network(images), labels)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)
    stepped = {name: p.detach() - 0.01 * g for (name, p), g in zip(network.named_parameters(), gradients, strict=True)}
    with torch.no_grad():
        after = tversky_loss(torch.func.functional_call(network, stepped, (images,)), labels)
    assert float(after) < float(loss.detach())


def test_half_precision_sums_in_float32() -> None:
    """Many voxels in bfloat16 logits lose nothing in the sums."""
    logits = torch.zeros(1, 2, 32, 32, 32, dtype=torch.bfloat16)
    labels = torch.zeros(1, 32, 32, 32, dtype=torch.int64)
    # Every voxel is half right: class 0 has TP = FN = 1/2 and no FP, class 1 only FP.
    found = tversky_loss(logits, labels)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(2 - 0.5 / 0.75, abs=1e-6)


def test_loss_refuses_what_does_not_fit() -> None:
    """Shapes, labels beyond the classes and negative weights are said so."""
    logits = torch.zeros(1, 3, 4, 4, 4)
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"`labels` to have the shape"):
        tversky_loss(logits, labels[:, :2])
    with pytest.raises(ValueError, match="`labels` from 0 to 2, got 0 to 3"):
        tversky_loss(logits, labels.index_fill(1, torch.tensor(0), 3))
    with pytest.raises(ValueError, match="`alpha`"):
        tversky_loss(logits, labels, alpha=-0.1)
    with pytest.raises(ValueError, match=r"n, class, z, y, x"):
        tversky_loss(logits[0], labels)


def test_compiles_in_one_graph() -> None:
    """`torch.compile` takes the whole network, without a break, and it computes the same."""
    with torch.random.fork_rng():
        net = DeepFinderNet(3, widths=(4, 4, 4))
    images = torch.randn((1, 1, 8, 8, 12), generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), net(images))


@pytest.mark.parametrize("widths", [(4, 4), (4, 0, 4)])
def test_bad_widths(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`widths` of three levels, each 1 or more"):
        DeepFinderNet(3, widths=widths)


@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 16, 12), (4, 8, 8), (12, 8, 8)])
def test_gradients_of_small_patches_in_bfloat16(patch: tuple[int, int, int]) -> None:
    """Gradients in bfloat16 are near those in float32, and the same each time, also for two voxels at a level."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DeepFinderNet(3, widths=(4, 6, 8))
    images = torch.randn(2, 1, *patch, generator=torch.Generator().manual_seed(1))

    def gradients(*, half: bool) -> dict[str, Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = network(images)
        logits.float().square().sum().backward()
        return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}

    expected, found, again = gradients(half=False), gradients(half=True), gradients(half=True)
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) < 0.3 * float(gradient.norm()), name
        assert torch.equal(found[name], again[name]), name
