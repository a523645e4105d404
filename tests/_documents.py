"""What the tests of README and docs share: blocks of code, their commands, and data small enough to run them on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import faket_aug
from faket_aug.formats.angles import write_tlt
from faket_aug.formats.mrc import write_mrc
from faket_aug.specimens.procedural import procedural_specimen
from tests._helpers import blobs, narrow_state

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
#: As many tilts as make the code run quickly, and as the fit of a microscope needs; the pages' own shapes are SHREC's.
ANGLES = np.linspace(-60.0, 60.0, 13)
SIZE = 64
VOXEL_SIZE = 10.0

_BLOCK = re.compile(r"^```(?P<language>\S*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_REASON = re.compile(r"<!--\s*not run:\s*(?P<reason>.*?)\s*-->\s*\Z", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code on a page; with a reason where it cannot run."""

    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Find the blocks of code of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        reason = _REASON.search(before)
        found.append(
            Block(
                page=page,
                line=before.count("\n") + 1,
                language=match["language"],
                code=match["code"],
                reason=None if reason is None else reason["reason"],
            )
        )
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Split a block of shell into the words of its commands; comments are left out."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            end = words.index("&&")
            yield words[:end]
            words = words[end + 1 :]
        if words:
            yield words


# --- data -------------------------------------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    """Write what the pages' code reads, small: specimens, a microscope's tilts, weights, maps, tomograms."""
    for number in range(3):
        write_model(folder / f"model_{number}", seed=number)
    write_microscope(folder / "microscope")
    widths = dict.fromkeys([0, 2], 4) | dict.fromkeys([5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28], 6)
    torch.save(narrow_state(widths=widths), folder / "narrow.pth")
    (folder / "particles").mkdir()
    bean = blobs((16, 16, 16), [(8, 8, 6), (8, 8, 10)], 2.0)
    write_mrc(folder / "particles" / "bean.mrc", bean, voxel_size=VOXEL_SIZE)
    write_mrc(folder / "ribosome.mrc", bean, voxel_size=VOXEL_SIZE)
    generator = torch.Generator().manual_seed(5)
    for name in ("tomogram", "even", "odd"):
        noise = torch.randn(32, SIZE, SIZE, generator=generator)
        write_mrc(folder / f"{name}.mrc", noise, voxel_size=VOXEL_SIZE)
    write_tlt(folder / "tomogram.tlt", ANGLES)
    write_simulated(folder)
    write_mrc(folder / "micrograph.mrc", rings(512, pixel_size=1.5, defocus=2.2)[None], voxel_size=1.5)
    (folder / "examples").symlink_to(ROOT / "examples")


def write_model(folder: Path, seed: int) -> None:
    """Write a specimen in SHREC's layout with measured tilts of it."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    place = [int(n) for n in torch.randint(20, SIZE - 20, (3,), generator=generator)]
    density = blobs((SIZE, SIZE, SIZE), [place], spread=4.0).float()
    write_mrc(folder / "grandmodel.mrc", density, voxel_size=VOXEL_SIZE)
    for name in ("class_mask", "occupancy_mask"):
        write_mrc(folder / f"{name}.mrc", (density > 0.5).to(torch.uint8), voxel_size=VOXEL_SIZE)
    (folder / "class_conversion_table.txt").write_text("0 background\n1 4V94\n")
    z, y, x = place
    (folder / "particle_locations.txt").write_text(f"4V94 {x} {y} {z} 0 0 0\n")
    clean = faket_aug.project(density, ANGLES)
    tilts = 100.0 - clean + torch.randn(clean.shape, generator=generator)
    write_mrc(folder / "projections.mrc", tilts, voxel_size=VOXEL_SIZE)
    rows = "".join(f"0 0 {-angle} 0 1 projections.mrc\n" for angle in ANGLES)
    (folder / "alignment_simulated.txt").write_text("# comment\n" * 6 + rows)


def write_microscope(folder: Path) -> None:
    """Write a tilt-series of 3.5 µm defocus; angles, alignment and what SerialEM would note beside it."""
    folder.mkdir()
    specimen = procedural_specimen(shape=(40, 128, 128), seed=3)
    clean = -faket_aug.project(specimen.density.float(), ANGLES)
    signal = faket_aug.ContrastTransfer(defocus=3.5).apply(100 * clean / clean.std(), VOXEL_SIZE)
    noise = 30 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))
    write_mrc(folder / "series_1.mrc", 2000 + signal + noise, voxel_size=VOXEL_SIZE)
    write_tlt(folder / "series_1.tlt", ANGLES)
    # It moves nothing: IMOD turns about the middle of the image, half a pixel before pixel n // 2.
    (folder / "series_1.xf").write_text("1 0 0 1 -0.5 -0.5\n" * len(ANGLES))
    rows = "".join(
        f"[ZValue = {i}]\nTiltAngle = {angle}\nExposureDose = 3\nDateTime = 30-Nov-15  15:{i:02d}:00\n\n"
        for i, angle in enumerate(ANGLES)
    )
    head = "PixelSpacing = 10\nVoltage = 300\nImageSize = 128 128\n\n[T = SerialEM]\n\n[T = Tilt axis angle = 85.3]\n\n"
    (folder / "series_1.mdoc").write_text(head + rows)


def write_simulated(folder: Path) -> None:
    """Write tilts, labels and picks as another program's simulation."""
    density = blobs((32, SIZE, SIZE), [(16, 30, 34)], spread=4.0).float()
    write_mrc(folder / "sim_1.mrc", -faket_aug.project(density, ANGLES), voxel_size=VOXEL_SIZE)
    write_tlt(folder / "sim_1.tlt", ANGLES)
    write_mrc(folder / "labels_1.mrc", (density > 0.5).to(torch.uint8), voxel_size=VOXEL_SIZE)
    (folder / "class_conversion_table.txt").write_text("0 background\n1 4V94\n")
    columns = ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ", "faketClassName")
    head = "".join(f"_{name} #{i}\n" for i, name in enumerate(columns, start=1))
    (folder / "picks_1.star").write_text(f"\ndata_particles\n\nloop_\n{head}34 30 16 4V94\n\n")


def rings(size: int, *, pixel_size: float, defocus: float) -> Tensor:
    """Make an image whose power spectrum has the rings of a transfer function."""
    generator = torch.Generator().manual_seed(2)
    seen = faket_aug.ContrastTransfer(defocus=defocus, b_factor=60.0).apply(
        torch.randn(1, 2 * size, 2 * size, generator=generator), pixel_size
    )
    noise = torch.randn(size, size, generator=generator)
    image: Tensor = 1000 + 30 * (1.4 * seen[0, :size, :size] + noise)
    return image
