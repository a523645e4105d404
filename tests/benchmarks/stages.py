"""Time each stage against what it replaces; prints ratios of medians, measured in one run."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import radontea
import torch
from _report import Row, header, keep, median, read, seconds_of
from skimage.transform import radon
from torch import Tensor, nn

from faket_aug import StyleBank, TiltSeries, VGG19Features, project, reconstruct, stylize
from faket_aug.style.transfer import STYLE_LAYERS, style_weights_for
from faket_aug.style.vgg19 import CONVOLUTIONS, POOLINGS

CONTENT_LAYER = 8


def in_turn(own: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Run both once to warm up, then in turn: a machine whose speed drifts slows both."""
    own()
    other()
    pairs = [(seconds_of(own), seconds_of(other)) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def report(name: str, other: str, times: tuple[list[float], list[float]], expected: str, scale: float = 1.0) -> Row:
    """Print one line of the table: medians, and the median of the pairs' ratios with its range."""
    ratios = sorted(b * scale / a for a, b in zip(*times, strict=True))
    ratio = f"{median(ratios):6.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f}; expected {expected})"
    print(f"{name:25s} {median(times[0]):8.3f} s   {other:29s} {median(times[1]) * scale:8.2f} s   {ratio}", flush=True)
    return {"name": name, "seconds": times[0], "ratios": ratios}


def bench_projection(size: int, depth: int, angles: np.ndarray, repeats: int, slices: int) -> Row:
    volume = torch.randn(depth, size, size)
    some = volume[:, :slices].numpy()
    times = in_turn(
        lambda: project(volume, angles),
        lambda: [radon(some[:, y], theta=-angles, circle=False) for y in range(slices)],
        repeats,
    )
    return report("project", "skimage.transform.radon", times, ">= 90 x", size / slices)


def bench_reconstruction(size: int, angles: np.ndarray, repeats: int, slices: int) -> Row:
    tilts = torch.randn(len(angles), size, size)
    some, radians = tilts[:, :slices].numpy(), np.deg2rad(angles)
    times = in_turn(
        lambda: reconstruct(tilts, angles, depth=size, filter="ramp"),
        lambda: [radontea.backproject(some[:, y], radians, weight_angles=False) for y in range(slices)],
        repeats,
    )
    return report("reconstruct", "radontea.backproject", times, ">= 70 x", size / slices)


class PlainVGG(nn.Module):
    """VGG-19 as a published style transfer code has it: `nn.Sequential`, every layer kept by autograd."""

    def __init__(self, features: VGG19Features) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for index in range(max(STYLE_LAYERS) + 1):
            if index in CONVOLUTIONS:
                weight = features.convolutions[f"weight_{index}"]
                layer = nn.Conv2d(
                    weight.shape[1], weight.shape[0], 3, padding=1, padding_mode="replicate" if index == 0 else "zeros"
                )
                layer.weight, layer.bias = weight, features.convolutions[f"bias_{index}"]
                self.layers.append(layer)
            else:
                self.layers.append(nn.MaxPool2d(2) if index in POOLINGS else nn.ReLU())
        self.register_buffer("mean", features.mean)
        self.register_buffer("std", features.std)

    def forward(self, image: Tensor, wanted: tuple[int, ...]) -> dict[int, Tensor]:
        found, image = {}, (image - self.mean) / self.std
        for index, layer in enumerate(self.layers[: max(wanted) + 1]):
            image = layer(image)
            if index in wanted:
                found[index] = image
        return found


def plain_style_step(vgg: PlainVGG, content: Tensor, init: Tensor, style: Tensor) -> Tensor:
    """One iteration for one tilt in [0, 1], with nothing cached."""

    def gram(features: Tensor) -> Tensor:
        flat = features.flatten(2)
        return flat @ flat.mT / flat.shape[-1]

    def error(found: Tensor, target: Tensor) -> Tensor:
        difference = found - target
        return difference.square().sum() / (difference.abs().sum() + 1e-8)

    with torch.no_grad():
        kept = vgg(content.expand(1, 3, -1, -1), (CONTENT_LAYER,))[CONTENT_LAYER]
        targets = {layer: gram(found) for layer, found in vgg(style.expand(1, 3, -1, -1), STYLE_LAYERS).items()}
    image = nn.Parameter(init.expand(1, 3, -1, -1).clone())
    optimizer = torch.optim.Adam([image], lr=0.15)
    found = vgg(image, (CONTENT_LAYER, *STYLE_LAYERS))
    loss = error(found[CONTENT_LAYER], kept)
    for weight, layer in zip(style_weights_for(STYLE_LAYERS, None), STYLE_LAYERS, strict=True):
        loss = loss + weight * error(gram(found[layer]), targets[layer])
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        return ((0.99 * init + image.clamp(0, 1)) / 1.99).mean(dim=1)


def bench_style(size: int, repeats: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    content, init, style = torch.rand(3, 1, size, size, generator=generator)
    series = TiltSeries(tilts=style, tilt_angles=np.zeros(1))
    features = VGG19Features("random")
    vgg, rows = PlainVGG(features), []
    for precision, expected in (("float32", ">= 1.45 x"), ("bfloat16", ">= 6 x with AMX")):
        encoder = VGG19Features("random", precision=precision)
        target = StyleBank.build(series, encoder).select([0.0])
        times = in_turn(
            lambda encoder=encoder, target=target: stylize(content, init, target, features=encoder),
            lambda: plain_style_step(vgg, content[None], init[None], style[None]),
            repeats,
        )
        name = f"stylize {size}², {precision}"
        rows.append(report(name, "plain float32 loop, no cache", times, expected))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="pixels of a tilt, voxels in x and y")
    parser.add_argument("--depth", type=int, default=180, help="voxels of the specimen in z")
    parser.add_argument("--tilts", type=int, default=61)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slices", type=int, default=2, help="slices that the per-slice libraries are timed on")
    parser.add_argument("--style-size", type=int, default=1024, help="pixels of the tilt that is stylized")
    options = read(parser)
    angles = np.linspace(-60.0, 60.0, options.tilts)
    print(f"{header(torch.device('cpu'))}; {options.tilts} tilts of {options.size}², depth {options.depth}; medians")
    rows = [
        bench_projection(options.size, options.depth, angles, options.repeats, options.slices),
        bench_reconstruction(options.size, angles, options.repeats, options.slices),
        *bench_style(options.style_size, options.repeats),
    ]
    keep(options, "stages", torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
