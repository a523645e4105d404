"""Small valid files of every kind that this package writes or is configured by, and how each is read."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from faket_aug import ContrastTransfer, MicroscopeResponse, NoiseModel, SimulationRecord, StyleBank, VGG19Features
from faket_aug._runtime.threads import intra_op_threads
from faket_aug.cli._options import Options
from faket_aug.cli._sets import open_set, read_settings
from faket_aug.cli.compare import _keep_settings, read_kept
from faket_aug.comparison.result import ArmResult, read_result, read_results, write_result, write_results
from faket_aug.comparison.settings import Comparison
from faket_aug.formats.copick import (
    read_copick_classes,
    read_copick_picks,
    read_copick_runs,
    read_copick_segmentation,
    write_copick,
)
from faket_aug.microscope.background import SlowBackground
from faket_aug.microscope.crowd import CrowdField, medium
from faket_aug.microscope.file import MicroscopeFile, read_microscope, write_microscope
from faket_aug.microscope.ice_map import ThicknessMap
from faket_aug.microscope.intensity import ContrastReport
from faket_aug.microscope.noise import ResponseNoise
from faket_aug.microscope.response import Envelope
from faket_aug.microscope.spectra import RINGS
from faket_aug.picking.checkpoints import load_weights, read_state, write_state
from faket_aug.picking.logs import TrainingLog, read_log
from faket_aug.picking.preparation import Preparation
from faket_aug.simulation.saving import read_record_file
from tests._helpers import ANGLES as TILTS
from tests._helpers import noise_model, simulator, specimen, style_series
from tests.fuzz._samples import NUMBERS, Sample, _particles, _text


def _state(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"features.0.weight": (4, 3, 3, 3), "features.0.bias": (4,)}
    shapes |= {"features.2.weight": (4, 4, 3, 3), "features.2.bias": (4,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def _pth() -> bytes:
    stream = io.BytesIO()
    torch.save(_state(), stream)
    return stream.getvalue()


PTH = _pth()
HASH = hashlib.sha256(PTH).hexdigest()[:8]


def _weights(path: Path) -> list[torch.Tensor]:
    return list(VGG19Features(path).convolutions.values())


def _record(path: Path) -> None:
    made = simulator()(specimen(0), seed=0)
    made.save(path.parent / "tomogram", origin={"options": {"fiducials": 1}})
    path.write_bytes((path.parent / "tomogram" / "record.json").read_bytes())


def _unsealed(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """As version 0.1.0 wrote it, without a checksum."""

    def write(path: Path) -> None:
        make(path)
        content = json.loads(path.read_text())
        for row in content if isinstance(content, list) else [content]:
            row.pop("checksum")
        path.write_text(json.dumps(content, indent=1))

    return write


def _microscope(path: Path) -> None:
    response = MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=0.0),
        noise=(tuple(np.full(len(RINGS), 4.0)),),
        angle_range=(-60.0, 60.0),
    )
    noise = NoiseModel(series=noise_model().series, response=response)
    style = {"step_size": 0.02, "keep_spectrum": True}
    write_microscope(path, MicroscopeFile(noise=noise, tilt_angles=TILTS, style=style, about={"specimens": 2}))


def _whole_microscope(path: Path) -> None:
    """With all that a fit finds: the crowd, the scale of the contrast, slow backgrounds, ice."""
    _microscope(path)
    model = read_microscope(path)
    assert isinstance(model.noise, ResponseNoise)
    spectrum = tuple((0.25 * medium(RINGS / 10.0, 15.0)).tolist())
    crowd = CrowdField(
        frequencies=tuple((RINGS / 10.0).tolist()), power=spectrum, mean=0.3, solid=3.0, depth=900.0, beyond=spectrum
    )
    contrast = ContrastReport(
        source=("intensity",), zero=(-90.0,), zero_error=(0.5,), explained=0.5, thickness=(900.0,)
    )
    tilts = torch.randn(len(TILTS), 40, 40, generator=torch.Generator().manual_seed(0)) + 100
    background = SlowBackground.of(tilts, TILTS, 50.0)
    noise = replace(model.noise, crowd=crowd, contrast=contrast, backgrounds=(background,), background=0)
    noise = replace(noise, ice=(ThicknessMap(extent=(2000.0, 4000.0), depth=((0.5, 0.6), (0.7, 0.8))),))
    write_microscope(path, replace(model, noise=noise))


OPTIONS: dict[str, Any] = {
    "fiducials": 2,
    "shape": [16, 32, 32],
    "voxel_size": 10.0,
    "tilt_angles": "-60:60:3",
    "snr": 0.2,
    "ctf": {"defocus": 3.0},
    "formats": ["shrec", "star4"],
    "seed": 3,
}
OPTIONS_TOML = """fiducials = 2
shape = [16, 32, 32]
voxel_size = 10.0
tilt_angles = "-60:60:3"
snr = 0.2
formats = ["shrec", "star4"]
seed = 3

[ctf]
defocus = 3.0
"""
COMPARISON = """train = ["model_0", "model_1"]
validation = "model_2"
test = ["model_3"]
weights = "random"
steps = 4
widths = [4, 4, 4]
patch_size = 8
patches_per_tomogram = 2
seeds = [0, 1]

[arms.BENCHMARK]
source = "measured"

[arms.FAKET]
modality = "faket"

[arms.FAKET.simulator]
step_size = 0.15
iterations = 1
"""


def _kept(path: Path) -> None:
    toml = path.parent / "a.toml"
    toml.write_text(COMPARISON)
    _keep_settings(Comparison.from_toml(toml), path.parent)


def _result(seed: int) -> ArmResult:
    return ArmResult(
        arm="FAKET",
        seed=seed,
        scores={"model_3": {"macro_f1": 0.5, "localization_f1": 0.75, "confusion": [[1, 2], [3, 4]]}},
        min_sizes={"1": 3},
        losses=[0.5, 0.25],
        validations=[(2, 0.25)],
        best_step=2,
        made_with={"arm": {"steps": 2}},
        versions={"torch": "2"},
    )


def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 1))


def _checkpoint(path: Path) -> None:
    network = _network()
    optimiser = torch.optim.Adam(network.parameters())
    state: dict[str, Any] = {"model": network.state_dict(), "optimiser": optimiser.state_dict(), "step": 3}
    write_state(path, state | {"preparation": Preparation(patch_size=(8, 8, 8)).to_dict(), "loss": [0.5, 0.25]})


def _read_checkpoint(path: Path) -> Any:
    network = _network()
    load_weights(network, path)
    return [read_state(path), dict(network.state_dict())]


def _log(path: Path) -> None:
    with TrainingLog(path.parent, kind="csv", steps=0) as log:
        for step in (1, 2, 3):
            log.add(step, {"loss": 1 / step})
        log.add(3, {"validation": 0.5})


def _bank(path: Path) -> StyleBank:
    weights = path.parent / "tiny.pth"
    weights.write_bytes(PTH)
    series = style_series(shape=(3, 8, 8))
    # Threads wait for each other longer than these sums take.
    with intra_op_threads(1):
        return StyleBank.build(series, VGG19Features(weights), style_layers=[1, 3], cache=path.parent)


def _style_cache() -> Sample:
    """The cache's name depends on its key, which depends on the tilts and the weights alone."""

    def make(path: Path) -> None:
        _bank(path)
        (made,) = path.parent.glob("style-*.safetensors")
        made.rename(path)
        NAMES["style"] = made.name

    def read(path: Path) -> StyleBank:
        # It is made again where it is damaged.
        (path.parent / NAMES["style"]).write_bytes(path.read_bytes())
        return _bank(path)

    return Sample(file="cached.bin", make=make, read=read, text=False, checksum=True)


NAMES: dict[str, str] = {}
RUN = "TS_1"


def _copick(folder: Path) -> None:
    particles = _particles()
    labels = torch.zeros(6, 8, 10, dtype=torch.uint8)
    labels[2:4, 3:5, 2:6] = 1
    write_copick(folder, run=RUN, particles=particles, class_numbers=NUMBERS, voxel_size=10.0, labels=labels)


PICKS = f"ExperimentRuns/{RUN}/Picks/faket-aug_0_alpha.json"
ZATTRS = f"ExperimentRuns/{RUN}/Segmentations/10.000_faket-aug_0_labels-multilabel.zarr/.zattrs"


def _read_config(path: Path) -> Any:
    return [read_copick_classes(path), read_copick_runs(path), read_copick_picks(path, run=RUN, voxel_size=10.0)]


OWN: dict[str, Sample] = {
    "record.json": Sample(
        file="record.json", make=_record, read=lambda p: [read_record_file(p), SimulationRecord.read(p)], checksum=True
    ),
    "record.json, 0.1.0": Sample(file="record.json", make=_unsealed(_record), read=SimulationRecord.read),
    "noise JSON": Sample(
        file="noise.json",
        make=lambda p: p.write_text(noise_model().to_json()),
        read=read_microscope,
        checksum=True,
    ),
    "noise JSON, 0.1.0": Sample(
        file="noise.json",
        make=_unsealed(lambda p: p.write_text(noise_model().to_json())),
        read=read_microscope,
    ),
    "microscope JSON": Sample(file="microscope.json", make=_microscope, read=read_microscope, checksum=True),
    "microscope JSON, all parts": Sample(
        file="microscope.json", make=_whole_microscope, read=read_microscope, checksum=True
    ),
    "microscope JSON, 0.1.0": Sample(file="microscope.json", make=_unsealed(_microscope), read=read_microscope),
    "simulate JSON": Sample(
        file="settings.json", make=_text(json.dumps(OPTIONS, indent=1)), read=lambda p: Options.read(p, {})
    ),
    "simulate TOML": Sample(file="settings.toml", make=_text(OPTIONS_TOML), read=lambda p: Options.read(p, {})),
    "simulation.json": Sample(
        file="simulation.json",
        make=lambda p: open_set(p.parent, OPTIONS, OPTIONS),
        read=lambda p: [read_settings(p), Options.read(p, {})],
        checksum=True,
    ),
    "comparison TOML": Sample(file="small.toml", make=_text(COMPARISON), read=Comparison.from_toml),
    "comparison.json": Sample(file="comparison.json", make=_kept, read=read_kept, checksum=True),
    "result.json": Sample(
        file="result.json", make=lambda p: write_result(p, _result(0)), read=read_result, checksum=True
    ),
    "results.json": Sample(
        file="results.json",
        make=lambda p: write_results(p, [_result(0), _result(1)]),
        read=read_results,
        checksum=True,
    ),
    "results.json, 0.1.0": Sample(
        file="results.json", make=_unsealed(lambda p: write_results(p, [_result(0), _result(1)])), read=read_results
    ),
    "checkpoint": Sample(file="checkpoint.pt", make=_checkpoint, read=_read_checkpoint, text=False, checksum=True),
    "log.csv": Sample(file="log.csv", make=_log, read=read_log),
    "weights .pth": Sample(file="tiny.pth", make=lambda p: p.write_bytes(PTH), read=_weights, text=False),
    "weights .pth, hash": Sample(
        file=f"tiny-{HASH}.pth", make=lambda p: p.write_bytes(PTH), read=_weights, text=False, checksum=True
    ),
    "weights .safetensors": Sample(
        file="tiny.safetensors",
        make=lambda p: safetensors.torch.save_file(_state(), p),
        read=_weights,
        text=False,
    ),
    "style cache": _style_cache(),
}
if find_spec("copick") is not None:
    OWN |= {
        "copick configuration": Sample(file="copick_config.json", make=lambda p: _copick(p.parent), read=_read_config),
        "copick picks": Sample(
            file=PICKS,
            make=lambda p: _copick(p.parents[3]),
            read=lambda p: read_copick_picks(p.parents[3], run=RUN, voxel_size=10.0),
        ),
        "copick segmentation": Sample(
            file=ZATTRS,
            make=lambda p: _copick(p.parents[4]),
            read=lambda p: read_copick_segmentation(p.parents[4], run=RUN),
            error=lambda p: p.parent.name,
        ),
    }
