"""Profile one simulation, stage by stage: seconds, peak memory, and how near the machine's ceiling each stage comes.

    python tests/benchmarks/profile_simulation.py                                       # 61 x 512², CPU
    python tests/benchmarks/profile_simulation.py --size 1024 --bin 2 --device cuda --precision bfloat16

The stages are those of `FakETSimulator` with the modality "faket", called one after the other. Every tilt of the style
transfer costs the same, so on a CPU some are measured (`--style-tilts`), and the seconds scaled up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from _report import Row, ceilings, forget_peak, header, keep, median, peak_gib, read, seconds_of, settle
from generation import VOXEL_SIZE, crowd
from torch import Tensor

from faket_aug import FakETSimulator, GrandModel, NoiseModel, StyleBank, TiltSeries, VGG19Features, project
from faket_aug._runtime.threads import concrete_device
from faket_aug.data.patches import cut
from faket_aug.formats.mrc import read_mrc
from faket_aug.microscope.noise import CONTENT_NOISE
from faket_aug.statistics import match_mean_std
from faket_aug.style.transfer import CONTENT_LAYERS, STYLE_LAYERS, gray_to_rgb, stylize
from faket_aug.style.vgg19 import CONVOLUTIONS, POOLINGS, WIDTHS
from faket_aug.tomography.filters import filter_projections
from faket_aug.tomography.reconstruction import voxel_map
from faket_aug.tomography.resample import bin_images

PATCH = 56


class WatchedEncoder:
    """An encoder that says how long its two ways took."""

    def __init__(self, inner: VGG19Features, device: torch.device) -> None:
        self.inner, self.device = inner, device
        self.forward = self.backward = 0.0

    def __call__(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Compute features."""
        return self.inner(images, layers)

    def forward_and_pullback(self, images: Tensor, layers: Iterable[int]) -> Any:
        """Compute features, and the way back, which the losses are part of."""
        made: list[Any] = []
        self.forward += seconds_of(lambda: made.append(self.inner.forward_and_pullback(images, layers)), self.device)
        features, pullback = made.pop()

        def watched(gradients: Mapping[int, Tensor]) -> Tensor:
            result: list[Tensor] = []
            self.backward += seconds_of(lambda: result.append(pullback(gradients)), self.device)
            return result[0]

        return features, watched


def flops_of_vgg(pixels: int, deepest: int) -> float:
    """Count the operations of one tilt's forward pass up to a ReLU."""
    total, channels = 0.0, 3
    for index, width in zip(CONVOLUTIONS, WIDTHS, strict=True):
        if index >= deepest:
            break
        level = sum(pooling < index for pooling in POOLINGS)
        total += 2 * 9 * channels * width * pixels / 4**level
        channels = width
    return total


class Profile:
    """Times stages, and gathers the rows of the table."""

    def __init__(self, device: torch.device, repeats: int, tflops: float, gbytes: float) -> None:
        self.device, self.repeats, self.tflops, self.gbytes = device, repeats, tflops, gbytes
        self.rows: list[Row] = []
        self.whole: Row | None = None

    def stage(self, name: str, run: Callable[[], Any], *, gigabytes: float = 0.0) -> Any:
        """Run a stage once to warm up, and some times to be measured; with no repeats the only run is measured."""
        results = [run()] if self.repeats else []
        settle(self.device)
        forget_peak(self.device)
        times = []
        for _ in range(max(1, self.repeats)):
            results.clear()  # so that there are never two
            times.append(seconds_of(lambda: results.append(run()), self.device))
        self.add(name, times, gigabytes=gigabytes)
        return results[0]

    def add(self, name: str, times: list[float], *, teraflop: float = 0.0, gigabytes: float = 0.0) -> None:
        """Add a row: its work over its time, as a share of what the machine can do."""
        row: Row = {"name": name, "seconds": times, "peak_gib": peak_gib(self.device)}
        seconds = median(times)
        if teraflop:
            row |= {"achieved": f"{teraflop / seconds:.2f} TFLOP/s", "ceiling": teraflop / seconds / self.tflops}
        if gigabytes:
            row |= {"achieved": f"{gigabytes / seconds:.1f} GB/s", "ceiling": gigabytes / seconds / self.gbytes}
        self.rows.append(row)

    def show(self) -> None:
        """Print the table."""
        total = sum(median(row["seconds"]) for row in self.rows)
        print(f"{'stage':32s} {'seconds':>9s} {'share':>7s} {'peak GiB':>9s} {'achieved':>16s} {'of ceiling':>11s}")
        for row in self.rows:
            seconds, ceiling = median(row["seconds"]), row.get("ceiling")
            known = f"{row['achieved']:>16s} {ceiling:11.0%}" if ceiling else ""
            print(f"{row['name']:32s} {seconds:9.3f} {seconds / total:7.1%} {row['peak_gib']:9.2f} {known}")
        print(f"{'sum':32s} {total:9.3f}")
        if self.whole is not None:
            print(
                f"{self.whole['name']:32s} {median(self.whole['seconds']):9.3f} {'':7s} {self.whole['peak_gib']:9.2f}"
            )
            self.rows.append(self.whole)


def mapped_density(folder: Path, shape: tuple[int, int, int]) -> Tensor:
    """Write a density in half precision, a section at a time, unless it is there, and map it into memory."""
    path = folder / f"density_{'_'.join(map(str, shape))}.mrc"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.mrc")
        section = np.random.default_rng(0).random(shape[1:], dtype=np.float32).astype(np.float16)
        with mrcfile.new_mmap(unfinished, shape=shape, mrc_mode=12, overwrite=True) as file:
            file.voxel_size = VOXEL_SIZE
            for z in range(shape[0]):
                file.data[z] = np.roll(section, z)
        unfinished.replace(path)
    return read_mrc(path, memory_map=True)[0]


def binned(specimen: GrandModel, bin: int) -> GrandModel:
    """Give a specimen coarser labels, and with them a tomogram that is binned."""
    particles = replace(specimen.particles, positions=specimen.particles.positions / bin)
    labels = specimen.labels[::bin, ::bin, ::bin].contiguous()
    return replace(specimen, labels=labels, instances=None, particles=particles)


def profile(options: argparse.Namespace, device: torch.device, watch: Profile) -> None:
    """Go through the stages; through a whole simulation, too, where all tilts are styled and memory holds all."""
    angles = np.linspace(-60.0, 60.0, options.tilts)
    shape = (options.depth, options.size, options.size)
    if options.mapped:
        density, specimen = mapped_density(options.mapped, shape), None
    else:
        generator = crowd(shape, device=str(device), threads=torch.get_num_threads())
        specimen = watch.stage("specimen", lambda: generator.generate(seed=0))
        density = specimen.density
    chance = torch.Generator(device.type).manual_seed(0)
    stack = options.tilts * options.size**2 * 4 / 1e9

    held: dict[str, Tensor] = {}
    held["clean"] = watch.stage(
        "projection",
        lambda: project(density, angles, device=device, dtype=torch.float32).neg_(),
        gigabytes=0.0 if density.device != device else density.numel() * (4 + density.element_size()) / 1e9 + stack,
    )
    small = TiltSeries(tilts=torch.randn(options.tilts, 64, 64), tilt_angles=angles)
    model = NoiseModel.assume(small.tilts, angles)
    held["noise"] = watch.stage(
        "random numbers",
        lambda: torch.randn(held["clean"].shape, generator=chance, device=device),
        gigabytes=stack,
    )
    held["noisy"] = watch.stage(
        "noise", lambda: model.sample(held["clean"], held["noise"], angles), gigabytes=3 * stack
    )
    held["content"] = model.sample(held.pop("clean"), held.pop("noise"), angles, noise_scale=CONTENT_NOISE)

    encoder = VGG19Features(options.weights, precision=options.precision)
    bank = StyleBank.build(small, encoder)
    style_stages(options, device, watch, encoder.to(device), bank, angles, held["content"], held["noisy"])
    held["styled"] = held.pop("noisy")  # of the same size
    held.pop("content")
    flat, unit = (torch.full((options.tilts,), value, device=device) for value in (0.0, 1.0))
    held["tilts"] = watch.stage("matching", lambda: match_mean_std(held["styled"], flat, unit), gigabytes=4 * stack)
    held.pop("styled")
    tomogram = back_stages(options, device, watch, held.pop("tilts"), angles, stack)
    random = np.random.default_rng(0)
    places = [random.integers(PATCH // 2, np.array(tomogram.shape) - PATCH // 2 + 1) for _ in range(options.patches)]
    patches = watch.stage(
        f"cutting {options.patches} patches of {PATCH}³",
        lambda: torch.stack([cut(tomogram, place, (PATCH,) * 3) for place in places]),
        gigabytes=2 * options.patches * PATCH**3 * 4 / 1e9,
    )
    watch.stage("patches to the host", lambda: patches.to("cpu", copy=True))
    if options.style_tilts < options.tilts or specimen is None:
        return
    simulator = FakETSimulator(
        tilt_angles=angles,
        noise=model,
        style=bank,
        features=VGG19Features(options.weights, precision=options.precision),
        device=str(device),
        threads=torch.get_num_threads(),
    )
    whole = binned(specimen, options.bin)
    if watch.repeats:
        simulator(whole, seed=0)
    forget_peak(device)
    times = [seconds_of(lambda: simulator(whole, seed=1), device) for _ in range(max(1, watch.repeats))]
    watch.whole = {"name": "a whole simulation", "seconds": times, "peak_gib": peak_gib(device)}


def style_stages(
    options: argparse.Namespace,
    device: torch.device,
    watch: Profile,
    encoder: VGG19Features,
    bank: StyleBank,
    angles: np.ndarray,
    content: Tensor,
    noisy: Tensor,
) -> None:
    """Style transfer: the content's features, the forward pass, losses with the way back, and the step itself."""
    count = options.style_tilts
    scale, pixels = options.tilts / count, options.size**2
    chosen = slice(0, count)
    targets = bank.select(angles[chosen]).to(device)
    flops = [flops_of_vgg(pixels, layer) * options.tilts / 1e12 for layer in (max(CONTENT_LAYERS), max(STYLE_LAYERS))]

    def featured() -> None:
        for tilt in content[chosen]:
            encoder(gray_to_rgb(tilt[None]), CONTENT_LAYERS)

    if watch.repeats:
        seconds_of(featured, device)
    forget_peak(device)
    contents = [scale * seconds_of(featured, device) for _ in range(max(1, watch.repeats))]
    watch.add("style: content features", contents, teraflop=flops[0])
    forwards, backwards, rests = [], [], []
    for repeat in range(watch.repeats + 1):
        watched = WatchedEncoder(encoder, device)
        forget_peak(device)
        whole = seconds_of(
            lambda watched=watched: stylize(
                content[chosen], noisy[chosen], targets, features=watched, memory_budget=options.memory_budget
            ),
            device,
        )
        if repeat or not watch.repeats:
            forwards.append(scale * watched.forward)
            backwards.append(scale * watched.backward)
            rests.append(scale * (whole - watched.forward - watched.backward) - median(contents))
    watch.add("style: forward pass", forwards, teraflop=flops[1])
    watch.add("style: losses and gradient", backwards, teraflop=flops[1])
    watch.add("style: ranges and step", rests)


def back_stages(
    options: argparse.Namespace, device: torch.device, watch: Profile, tilts: Tensor, angles: np.ndarray, stack: float
) -> Tensor:
    """Reconstruction: binning, filtering, back-projection."""
    binned = tilts
    if options.bin > 1:
        binned = watch.stage("binning", lambda: bin_images(tilts, options.bin), gigabytes=stack)
    size, depth = binned.shape[-1], max(PATCH, options.depth // options.bin)
    filtered = watch.stage("filtering", lambda: filter_projections(binned), gigabytes=2 * stack / options.bin**2)
    plane_map = voxel_map(angles, depth, size, size, device, torch.float32)
    voxels = depth * size**2
    return watch.stage("back-projection", lambda: plane_map(filtered), gigabytes=2 * voxels * 4 / 1e9)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", type=int, default=512, help="pixels of a tilt")
    add("--depth", type=int, help="voxels of the specimen in z; by default 180 of 512")
    add("--tilts", type=int, default=61)
    add("--bin", type=int, default=1, help="of the tomogram")
    add("--device", default="cpu")
    add("--precision", default="float32", choices=["float32", "bfloat16"])
    add("--weights", default="random", help="of VGG-19")
    add("--mapped", type=Path, metavar="FOLDER", help="leave the density there on disk, in half precision")
    add("--patches", type=int, default=64)
    add("--style-tilts", type=int, help="tilts that are styled; by default 4 on a CPU, all on a GPU")
    add("--memory-budget", type=int, default=2**30)
    add("--repeats", type=int, default=3, help="0: everything runs once, cold")
    options = read(parser)
    device = concrete_device(options.device)  # tensors tell the index of their GPU
    options.depth = options.depth or options.size * 180 // 512
    options.style_tilts = min(options.tilts, options.style_tilts or (4 if device.type == "cpu" else options.tilts))
    with torch.no_grad():
        dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
        tflops, gbytes = ceilings(device, dtype)
        print(header(device))
        print(
            f"{options.tilts} x {options.size}² from {options.depth} slices, {options.precision}; ceilings: a matrix "
            f"product {tflops:.2f} TFLOP/s, a copy {gbytes:.0f} GB/s"
        )
        watch = Profile(device, options.repeats, tflops, gbytes)
        try:
            profile(options, device, watch)
        finally:  # what was measured before an interruption, too
            watch.show()
            keep(options, "profile_simulation", device, watch.rows)


if __name__ == "__main__":
    main()
