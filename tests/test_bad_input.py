"""What users get wrong, in one list: each message names the file or argument, what was expected and what was found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from _helpers import (
    ANGLES,
    MORE_WORKERS_THAN_CORES,
    SHAPE,
    STYLE_LAYERS,
    WIDTHS,
    dataset,
    empty_specimen,
    error_of,
    loader,
    narrow_state,
    narrow_vgg,
    noise_model,
    simulator,
    specimen,
    style_series,
    write_shrec,
)

from faket_aug import (
    CacheError,
    FakETSimulator,
    FileFormatError,
    GrandModel,
    NoiseModel,
    PatchAugmentation,
    ShrecSpecimens,
    SimulationError,
    StyleBank,
    TiltSeries,
    VGG19Features,
    WeightsError,
    backproject,
    project,
    reconstruct,
)
from faket_aug._runtime.threads import usable_device
from faket_aug.data import stream as stream_module
from faket_aug.formats.mrc import write_mrc
from faket_aug.style import weight_files

pytestmark = pytest.mark.filterwarnings(MORE_WORKERS_THAN_CORES)

# --- specimens --------------------------------------------------------------------------------------------------------


def _model(folder: Path) -> Path:
    return write_shrec(folder / "model_3", specimen(0))


def _stack(folder: Path) -> Path:
    path = folder / "tilts.mrc"
    write_mrc(path, style_series().tilts, voxel_size=10.0)
    return path


def _overwrite(path: Path, offset: int, content: bytes) -> Path:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(bytes(raw))
    return path


def _nan_density(folder: Path) -> object:
    _overwrite(_model(folder) / "grandmodel.mrc", 1024, np.float32(np.nan).tobytes())
    return GrandModel.from_shrec(folder / "model_3")


def _truncated_density(folder: Path) -> object:
    path = _model(folder) / "grandmodel.mrc"
    path.write_bytes(path.read_bytes()[:-100])
    return GrandModel.from_shrec(folder / "model_3")


def _wrong_mode(folder: Path) -> object:
    _overwrite(_model(folder) / "class_mask.mrc", 12, np.int32(77).tobytes())
    return GrandModel.from_shrec(folder / "model_3")


def _text_as_mrc(folder: Path) -> object:
    (_model(folder) / "grandmodel.mrc").write_text("not a volume\n" * 200)
    return GrandModel.from_shrec(folder / "model_3")


def _other_labels(folder: Path) -> object:
    labels = torch.zeros((16, 24, 30), dtype=torch.uint8)
    model = write_shrec(folder / "model_3", specimen(0), instances=False)
    write_mrc(model / "class_mask.mrc", labels, voxel_size=10.0)
    return GrandModel.from_shrec(folder / "model_3")


def _unknown_class(folder: Path) -> object:
    path = _model(folder) / "particle_locations.txt"
    path.write_text("9XYZ 1 2 3 0 0 0\n")
    return GrandModel.from_shrec(folder / "model_3")


def _empty_folder(folder: Path) -> object:
    (folder / "model_9").mkdir()
    return ShrecSpecimens([folder / "model_9"])


# --- tilt-series and noise --------------------------------------------------------------------------------------------


def _angles_mismatch(folder: Path) -> object:
    stack = _stack(folder)
    stack.with_suffix(".tlt").write_text("0\n3\n6\n")
    return TiltSeries.read(stack)


def _no_angles(folder: Path) -> object:
    return TiltSeries.read(_stack(folder))


def _words_for_angles(folder: Path) -> object:
    stack = _stack(folder)
    stack.with_suffix(".rawtlt").write_text("-60\nminus three\n")
    return TiltSeries.read(stack)


def _infinite_tilts(folder: Path) -> object:
    stack = _overwrite(_stack(folder), 1024, np.float32(np.inf).tobytes())
    return TiltSeries.read(stack, tilt_angles=[0] * 6)


def _constant(tilt: int) -> TiltSeries:
    tilts = style_series().tilts.clone()
    tilts[tilt] = 3.0
    return TiltSeries(tilts=tilts, tilt_angles=style_series().tilt_angles, name="grid_2.mrc")


def _constant_style(folder: Path) -> object:
    return StyleBank.build(_constant(1), narrow_vgg(folder), style_layers=STYLE_LAYERS)


def _constant_noise_target(_: Path) -> object:
    target = _constant(1)
    clean = torch.randn(target.tilts.shape, generator=torch.Generator().manual_seed(0))
    return NoiseModel.fit(clean=clean, target=target.tilts, tilt_angles=target.tilt_angles)


def _pairs_of_other_shape(_: Path) -> object:
    return NoiseModel.fit(clean=torch.zeros(5, 8, 8), target=torch.zeros(5, 8, 9), tilt_angles=ANGLES)


# --- weights ----------------------------------------------------------------------------------------------------------


def _saved(folder: Path, state: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(state, path)
    return path


def _vgg16(folder: Path) -> object:
    # VGG-16 has three convolutions in its third block, so its fourth begins two places earlier.
    widths = dict.fromkeys((0, 2, 5, 7, 10, 12, 14, 17, 19, 21), 4)
    return VGG19Features(_saved(folder, narrow_state(widths=widths)))


def _with_batch_norm(folder: Path) -> object:
    state = narrow_state() | {"features.1.weight": torch.ones(4), "features.1.bias": torch.ones(4)}
    return VGG19Features(_saved(folder, state))


def _other_names(folder: Path) -> object:
    return VGG19Features(_saved(folder, {"layer1.0.conv1.weight": torch.zeros(4, 3, 3, 3)}))


def _gray_weights(folder: Path) -> object:
    return VGG19Features(_saved(folder, narrow_state() | {"features.0.weight": torch.zeros(4, 1, 3, 3)}))


def _no_bias(folder: Path) -> object:
    return VGG19Features(_saved(folder, {k: v for k, v in narrow_state().items() if k != "features.5.bias"}))


def _no_state_dict(folder: Path) -> object:
    return VGG19Features(_saved(folder, torch.zeros(3)))


def _text_as_weights(folder: Path) -> object:
    (folder / "weights.pth").write_text("weights")
    return VGG19Features(folder / "weights.pth")


class _Executed:
    """What a pickle could run when it is loaded."""

    def __reduce__(self) -> Any:
        return print, ("this was run",)


def _pickle_as_weights(folder: Path) -> object:
    return VGG19Features(_saved(folder, {"features.0.weight": _Executed()}))


def _missing_weights(folder: Path) -> object:
    return VGG19Features(folder / "none.pth")


def _shallow_weights(folder: Path) -> object:
    return StyleBank.build(style_series(), narrow_vgg(folder))


# --- settings ---------------------------------------------------------------------------------------------------------


def _unknown_filter(_: Path) -> object:
    return reconstruct(torch.zeros(5, 8, 8), ANGLES, depth=8, filter="ramlak")


def _unknown_filter_of_the_simulator(_: Path) -> object:
    return simulator(filter="ramlak")


def _angles_for_other_tilts(_: Path) -> object:
    return reconstruct(torch.zeros(4, 8, 8), ANGLES, depth=8)


def _angles_for_other_projections(_: Path) -> object:
    return backproject(torch.zeros(4, 8, 8), ANGLES, depth=8)


def _flat_volume(_: Path) -> object:
    return project(torch.zeros(8, 8), ANGLES)


def _patch_too_large(_: Path) -> object:
    return list(dataset(specimens=[specimen(0, name="model_3")], patch_size=56))


def _unknown_radius(_: Path) -> object:
    return list(dataset(specimens=[specimen(0, name="model_3")], target="sphere", radii={"9XYZ": 50.0}))


def _read_only_cache(folder: Path) -> object:
    (folder / "a_file").write_text("x")
    return StyleBank.build(
        style_series(), narrow_vgg(folder), style_layers=STYLE_LAYERS, cache=folder / "a_file" / "styles"
    )


def _wedge(_: Path) -> object:
    return PatchAugmentation(rotation_deg=(0, 0, 10))


def _no_noise(_: Path) -> object:
    return FakETSimulator(tilt_angles=ANGLES, modality="noisy")


def _no_style(_: Path) -> object:
    return FakETSimulator(tilt_angles=ANGLES, noise=noise_model())


@dataclass(frozen=True)
class Case:
    """A mistake, the class of its error, and all that the message has to say."""

    make: Callable[[Path], object]
    error: type[Exception]
    says: tuple[str, ...]


CASES = [
    Case(
        _nan_density, FileFormatError, ("model_3/grandmodel.mrc", "expected finite numbers", "got 1 NaN", "(0, 0, 0)")
    ),
    Case(
        _truncated_density,
        FileFormatError,
        ("model_3/grandmodel.mrc", "expected a whole MRC file", "(16, 24, 32)", "49052 bytes"),
    ),
    Case(_wrong_mode, FileFormatError, ("model_3/class_mask.mrc", "expected", "got", "mode '77'")),
    Case(_text_as_mrc, FileFormatError, ("model_3/grandmodel.mrc", "expected", "got")),
    Case(_other_labels, FileFormatError, ("model_3", "expected labels", "(16, 24, 32)", "got (16, 24, 30)")),
    Case(_unknown_class, FileFormatError, ("model_3/particle_locations.txt", "small, large, rare", "got 9XYZ")),
    Case(
        _empty_folder,
        FileNotFoundError,
        ("model_9", "expected", "grandmodel_unbinned.mrc or grandmodel.mrc", "found none"),
    ),
    Case(
        _angles_mismatch,
        FileFormatError,
        ("tilts.mrc", "expected one tilt angle for each of its 6", "got 3", "tilts.tlt"),
    ),
    Case(
        _no_angles, FileNotFoundError, ("tilts.mrc", "expected a file of tilt angles", "tilts.tlt", "set `tilt_angles`")
    ),
    Case(_words_for_angles, FileFormatError, ("tilts.rawtlt, line 2", "expected a number", "got 'minus three'")),
    Case(_infinite_tilts, FileFormatError, ("tilts.mrc", "expected finite numbers", "got 1 NaN or infinite")),
    Case(
        _constant_style,
        ValueError,
        ("grid_2.mrc", "expected every style tilt to vary", "[1]", "-33°", "leave them out"),
    ),
    Case(_constant_noise_target, ValueError, ("target", "expected every tilt to vary", "[1]", "leave them out")),
    Case(_pairs_of_other_shape, ValueError, ("`target`", "`clean`", "(5, 8, 8)", "got (5, 8, 9)")),
    Case(_vgg16, WeightsError, ("weights.pth", "expected VGG-19 with convolutions", "got another network", "17")),
    Case(_with_batch_norm, WeightsError, ("weights.pth", "expected VGG-19", "got another network")),
    Case(_other_names, WeightsError, ("weights.pth", "features.0.weight", "got layer1.0.conv1.weight")),
    Case(
        _gray_weights,
        WeightsError,
        ("weights.pth", "features.0", "(4, 3, 3, 3)", "got (4, 1, 3, 3)", "another network"),
    ),
    Case(_no_bias, WeightsError, ("weights.pth", "features.5", "expected", "None")),
    Case(_no_state_dict, WeightsError, ("weights.pth", "expected a state dict", "got Tensor")),
    Case(_text_as_weights, WeightsError, ("weights.pth", "expected a file of tensors", "cannot be read")),
    Case(_pickle_as_weights, WeightsError, ("weights.pth", "expected a file of tensors", "cannot be read")),
    Case(_missing_weights, WeightsError, ("none.pth", '"torchvision"', '"random"', ".safetensors", "no such file")),
    Case(_shallow_weights, WeightsError, ("layer 20", "narrow_vgg_0.pth", "ends at layer 11", "`style_layers`")),
    Case(_unknown_filter, ValueError, ("`filter`", "'shrec', 'ramp'", "'none'", "got 'ramlak'")),
    Case(_unknown_filter_of_the_simulator, ValueError, ("`filter`", "'shrec', 'ramp'", "'none'", "got 'ramlak'")),
    Case(
        _angles_for_other_tilts, ValueError, ("expected one tilt angle for each of 4 tilts", "got 5", "`tilt_angles`")
    ),
    Case(_angles_for_other_projections, ValueError, ("for each of 4 tilts", "got 5", "`tilt_angles`")),
    Case(_flat_volume, ValueError, ("`volume`", "(..., z, y, x)", "got (8, 8)")),
    Case(_patch_too_large, SimulationError, ("model_3", "expected a patch that fits", "(16, 24, 32)", "(56, 56, 56)")),
    Case(_unknown_radius, SimulationError, ("model_3", "`radii`", "1 small, 2 large, 3 rare", "'9XYZ'")),
    Case(
        _read_only_cache, CacheError, ("a_file/styles", "expected a style cache folder that can be written", "`cache`")
    ),
    Case(_wedge, ValueError, ("`rotation_deg`", "missing wedge", "`keep_missing_wedge`", "`half_turns`")),
    Case(_no_noise, ValueError, ("`noise`", "'noisy'", "got None", "`NoiseModel`")),
    Case(_no_style, ValueError, ("`style` and `features`", '"faket"', "got None", "`StyleBank`", "`VGG19Features`")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make.__name__.strip("_"))
def test_message(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is an error of the documented class whose message says where, what was expected, what was found."""
    with pytest.raises(case.error) as caught:
        case.make(tmp_path)
    message = str(caught.value)
    missing = [part for part in case.says if part not in message]
    assert not missing, f"{missing} not in: {message}"
    assert re.search(r"expected|refused", message)
    # The library is silent, and runs nothing that a file brings along.
    assert capsys.readouterr() == ("", "")


# --- what looks bad and is not ----------------------------------------------------------------------------------------


def test_hot_pixel_works(tmp_path: Path) -> None:
    """A hot pixel of 1e6 in the user's tilts: the chain works, robustly with quantiles, and without all the same."""
    tilts = style_series().tilts.clone()
    tilts[0, 3, 4] = 1e6
    series = TiltSeries(tilts=tilts, tilt_angles=style_series().tilt_angles)
    features = narrow_vgg(tmp_path)
    for quantiles in ((0.0, 1.0), (0.005, 0.995)):
        bank = StyleBank.build(series, features, style_layers=STYLE_LAYERS, quantiles=quantiles)
        noise = NoiseModel.assume(series.tilts, series.tilt_angles, quantiles=quantiles)
        made = simulator("faket", tmp_path, noise=noise, style=bank, features=features)(specimen(0), seed=0)
        assert made.tomogram.isfinite().all()


@pytest.mark.parametrize(
    "series",
    [
        style_series(0, shape=(2, 24, 32), angles=[30.0, -30.0]),
        style_series(0, shape=(4, 24, 32), angles=[0.0, 3.0, -3.0, 6.0]),
        style_series(0, shape=(6, 13, 50)),
    ],
    ids=["shorter", "ordered by exposure", "another size"],
)
def test_any_style_works(tmp_path: Path, series: TiltSeries) -> None:
    """A style series that is shorter, ordered by exposure, or of another size gives items like any other."""
    features = narrow_vgg(tmp_path)
    bank = StyleBank.build(series, features, style_layers=STYLE_LAYERS)
    items = list(dataset(simulator("faket", tmp_path, style=bank, features=features)))
    assert len(items) == 15
    assert all(item["image"].isfinite().all() for item in items)


def test_specimens_without_particles_and_without_classes_work() -> None:
    """Among others a specimen without particles, and one without a class, give patches like any other."""
    things = [specimen(0), empty_specimen(), specimen(1, classes=(1, 1))]
    items = list(dataset(specimens=things, class_balanced=True, target="sphere", radii={"small": 30.0, "rare": 20.0}))
    assert len(items) == 15


def test_constant_specimen_works() -> None:
    """A specimen of ice alone has constant projections: noise, not NaN."""
    ice = replace(empty_specimen(), density=torch.zeros(SHAPE))
    for modality in ("noiseless", "noisy"):
        assert all(item["image"].isfinite().all() for item in dataset(simulator(modality), specimens=[ice]))


# --- the internet -----------------------------------------------------------------------------------------------------


def test_download_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without internet and without cached weights the error says how to give a local file; making is no download."""
    pytest.importorskip("torchvision")

    def unreachable(*_: Any, **settings: Any) -> None:
        assert settings["check_hash"]
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    features = VGG19Features()
    with pytest.raises(WeightsError) as caught:
        features.load()
    for part in ("expected to download", "URLError", "Name or service not known", "vgg19-dcbb9e9d.pth", "`weights`"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match="expected to download"):
        StyleBank.build(style_series(), features)


def test_download_of_something_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A download whose hash is another, or that is another network, is no encoder."""
    pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def wrong_hash(*_: Any, **__: Any) -> None:
        raise RuntimeError('invalid hash value (expected "dcbb9e9d", got "00000000")')

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", wrong_hash)
    with pytest.raises(WeightsError, match="RuntimeError: invalid hash value"):
        VGG19Features().load()
    other = narrow_state(widths={0: 4, 3: 8})
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: other)
    with pytest.raises(WeightsError, match="expected VGG-19 .*got another network"):
        VGG19Features().load()


def test_cached_weights_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where torchvision's file is in its cache, nothing is downloaded."""
    pytest.importorskip("torchvision")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    # Other weights than the name says.
    monkeypatch.setattr(weight_files, "check_hash", lambda path: None)
    (tmp_path / "checkpoints").mkdir()
    torch.save(narrow_state(), tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth")
    features = VGG19Features()
    features.load()
    assert features.deepest == max(WIDTHS) + 1


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_in_a_forked_worker(device: str) -> None:
    """A simulation on CUDA in a forked worker is refused, with GPU or without, and the remedy is in the message."""
    error = error_of(lambda: list(loader(dataset(simulator(device=device)), workers=1, batch_size=None)))
    assert isinstance(error, ValueError)
    for part in ("forked worker", f"`device` {device!r}", 'multiprocessing_context="spawn"', "num_workers=0"):
        assert part in str(error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none() -> None:
    """CUDA on a machine without it is refused, and the message says what to set."""
    message = "expected a CUDA device for `device` 'cuda', found none; set `device` to \"cpu\""
    with pytest.raises(ValueError, match=message):
        list(dataset(simulator(device="cuda")))
    with pytest.raises(SimulationError, match="specimen 0: ValueError: expected a CUDA device for `device` 'cuda'"):
        simulator(device="cuda")(specimen(0), seed=0)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a GPU beyond the last is refused before anything is made."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"expected one of 2 CUDA devices for `device`, .* got 'cuda:2'"):
        list(dataset(simulator(device="cuda:2")))


def test_threads_in_a_forked_worker() -> None:
    """Several threads in a forked worker are refused, and the remedy is in the message."""
    error = error_of(lambda: list(loader(dataset(simulator(threads=2)), workers=1, batch_size=None)))
    assert isinstance(error, ValueError)
    for part in ("`threads=1` in a forked worker", "got 2", 'multiprocessing_context="spawn"'):
        assert part in str(error)


def test_threads_elsewhere_work() -> None:
    """Several threads are fine in the main process, and leave its own number as it was."""
    before = torch.get_num_threads()
    items = list(dataset(simulator("noisy", threads=2)))
    assert len(items) == 15
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_threads_in_a_spawned_worker_work() -> None:
    """Several threads are fine in a spawned worker, and give the main process's items."""
    expected = {item["index"]: item for item in dataset(simulator("noisy", threads=2))}
    for item in loader(dataset(simulator("noisy", threads=2)), workers=1, start="spawn", batch_size=None):
        assert torch.equal(item["image"], expected[item["index"]]["image"])


def test_simulation_errors_in_workers_keep_their_class(tmp_path: Path) -> None:
    """An error in a worker is a SimulationError in the main process, too, with file and specimen in its message."""
    folders = [write_shrec(tmp_path / f"model_{i}", specimen(i)) for i in range(2)]
    things = ShrecSpecimens(folders)
    path = folders[1] / "grandmodel.mrc"
    path.write_bytes(path.read_bytes()[:-1])
    error = error_of(lambda: list(loader(dataset(specimens=things), workers=2, batch_size=None)))
    assert isinstance(error, SimulationError)
    for part in ("specimen 1: FileFormatError", "model_1/grandmodel.mrc", "expected a whole MRC file"):
        assert part in str(error)


def test_more_workers_than_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of workers beyond all reason is refused before the first item, with the largest."""
    monkeypatch.setattr(stream_module, "get_worker_info", lambda: SimpleNamespace(id=0, num_workers=5000))
    with pytest.raises(ValueError, match="expected at most 1024 workers, got 5000"):
        iter(dataset())
