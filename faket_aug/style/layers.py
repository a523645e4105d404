"""What layers of an encoder do beside their convolutions on a GPU: bias and ReLU, and derivatives."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from faket_aug._runtime.kernels import Kernel
from faket_aug._runtime.threads import Made, use_on_current_stream


class Transposes:
    """The weights of the transposes of convolutions, each made at its first use. A copy has none, and makes its own."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, tuple[object, ...], Tensor, Made]] = {}

    def __reduce__(self) -> tuple[type[Transposes], tuple[()]]:
        return Transposes, ()

    def of(self, index: int, weight: Tensor) -> Tensor:
        """Turn the weights `(out, in, y, x)` of a convolution round, or return what was made of them before."""
        # A module that moves keeps its parameters, and gives them other data.
        key = weight.device, weight.data_ptr(), 0 if weight.is_inference() else weight._version
        found = self._kept.get(index)
        if found is None or found[0] is not weight or found[1] != key:
            turned = weight.detach().flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
            found = self._kept[index] = weight, key, turned, Made(turned.device)
        _, _, turned, made = found
        # It may have been made on another stream.
        made.before(turned.device)
        use_on_current_stream([turned])
        return turned


def unpadded(gradient: Tensor) -> Tensor:
    """Return the gradient before a padding of 1 by replication: PyTorch's kernel for GPUs adds in any order."""
    rows = gradient[..., 1:-1, :].clone()
    rows[..., 0, :] += gradient[..., 0, :]
    rows[..., -1, :] += gradient[..., -1, :]
    result = rows[..., 1:-1].clone()
    result[..., 0] += rows[..., 0]
    result[..., -1] += rows[..., -1]
    return result


def relu_backward_(gradient: Tensor, activation: Tensor) -> Tensor:
    """Set a gradient to 0 where ReLU let nothing through, in place: what it let through is positive."""
    changed: Tensor = torch.ops.aten.threshold_backward.grad_input(gradient, activation, 0, grad_input=gradient)
    return changed


def channels_are_last(*images: Tensor) -> bool:
    """Tell whether images `(n, channels, y, x)` lie in memory without gaps, channels last."""
    return all(one.ndim == 4 and one.permute(0, 2, 3, 1).is_contiguous() for one in images)


#: Shapes of samples: as layers have them, and one of nothing but odd sizes.
SAMPLE_SHAPES = ((1, 64, 6, 7), (2, 5, 7, 9))


def odd_images(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Make images `(n, channels, y, x)`, channels last, with equal values side by side, NaN and infinities."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-8, 9, shape, generator=generator, device="cpu").to(torch.float32) / 4
    for first, step, value in ((4, 23, torch.nan), (9, 29, torch.inf), (2, 31, -torch.inf), (5, 19, -0.0)):
        images.view(-1)[first::step] = value
    return images.to(device, dtype).contiguous(memory_format=torch.channels_last)


def _launch_bias_relu(values: Tensor, bias: Tensor) -> Tensor:
    from faket_aug.style import kernels

    return kernels.add_bias_relu_(values, bias)


def _plain_bias_relu(values: Tensor, bias: Tensor) -> Tensor:
    return values.add_(bias[:, None, None]).relu_()


def _bias_samples(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for shape in SAMPLE_SHAPES:
        bias = (torch.arange(shape[1]).remainder(11) - 5) / 4
        yield odd_images(device, dtype, shape), bias.to(device, dtype)


#: Add a bias `(channels,)` to images `(n, channels, y, x)`, and set what is negative to 0; in place.
add_bias_relu_ = Kernel(
    "add_bias_relu",
    launch=_launch_bias_relu,
    plain=_plain_bias_relu,
    samples=_bias_samples,
    accepts=lambda values, bias: channels_are_last(values) and values.dtype == bias.dtype,
)


def _launch_add_relu_backward(gradient: Tensor, own: Tensor, activation: Tensor) -> Tensor:
    from faket_aug.style import kernels

    return kernels.add_relu_backward_(gradient, own, activation)


def _plain_add_relu_backward(gradient: Tensor, own: Tensor, activation: Tensor) -> Tensor:
    return relu_backward_(gradient.add_(own), activation)


def _backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for shape in SAMPLE_SHAPES:
        images = odd_images(device, dtype, shape)
        own, activation = (images.flip(axes).contiguous(memory_format=torch.channels_last) for axes in ((1,), (2, 3)))
        yield images, own, activation


def _accepts_backward(gradient: Tensor, own: Tensor, activation: Tensor) -> bool:
    alike = gradient.shape == own.shape == activation.shape and gradient.dtype == own.dtype == activation.dtype
    return alike and channels_are_last(gradient, own, activation)


#: Add a second gradient to the first, and set it to 0 where ReLU let nothing through; in place.
add_relu_backward_ = Kernel(
    "add_relu_backward",
    launch=_launch_add_relu_backward,
    plain=_plain_add_relu_backward,
    samples=_backward_samples,
    accepts=_accepts_backward,
)
