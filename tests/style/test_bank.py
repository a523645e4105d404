"""The style bank and its cache: what is read back is what would be computed, whatever happened to the file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _helpers import STYLE_LAYERS, narrow_vgg, style_series
from torch import Tensor

from faket_aug import CacheError, StyleBank, TiltSeries, VGG19Features, WeightsError
from faket_aug.formats import _atomic
from faket_aug.statistics import mean_std
from faket_aug.style import bank as module
from faket_aug.style.gram import gram_matrix


@pytest.fixture
def features(tmp_path: Path) -> VGG19Features:
    """The narrow encoder."""
    return narrow_vgg(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "cache" / "styles"


class Calls(list[str]):
    """Which series were encoded."""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Count how often the encoder is used."""
    calls, encode = Calls(), module._encode

    def counting(stack: TiltSeries, *arguments: Any) -> Any:
        calls.append(stack.name)
        return encode(stack, *arguments)

    monkeypatch.setattr(module, "_encode", counting)
    return calls


def _build(features: VGG19Features, *series: TiltSeries, **settings: Any) -> StyleBank:
    return StyleBank.build(list(series) or style_series(), features, **({"style_layers": STYLE_LAYERS} | settings))


def _assert_equal(found: StyleBank, expected: StyleBank) -> None:
    """Two banks, bit for bit."""
    assert found.key == expected.key
    assert found.quantiles == expected.quantiles
    assert found.encoder == expected.encoder
    assert len(found.series) == len(expected.series)
    for a, b in zip(found.series, expected.series, strict=True):
        assert a.name == b.name
        assert np.array_equal(a.tilt_angles, b.tilt_angles)
        assert list(a.grams) == list(b.grams)
        for x, y in [*zip(a.grams.values(), b.grams.values(), strict=True), (a.mean, b.mean), (a.std, b.std)]:
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


# --- what it holds ----------------------------------------------------------------------------------------------------


def test_content(features: VGG19Features) -> None:
    """A bank holds each tilt's Gram matrices, of the whole stack in [0, 1], and its mean and deviation in its unit."""
    series = style_series()
    (found,) = _build(features, series).series
    assert np.array_equal(found.tilt_angles, series.tilt_angles)
    mean, std = mean_std(series.tilts)
    assert torch.equal(found.mean, mean)
    assert torch.equal(found.std, std)
    low, high = series.tilts.min(), series.tilts.max()
    unit = ((series.tilts - low) / (high - low))[:, None].expand(-1, 3, -1, -1)
    expected = features(unit, STYLE_LAYERS)
    assert list(found.grams) == list(STYLE_LAYERS)
    for layer, gram in found.grams.items():
        assert gram.dtype == torch.float32
        torch.testing.assert_close(gram, gram_matrix(expected[layer]), rtol=1e-4, atol=1e-6)


def test_one_series_or_several(features: VGG19Features) -> None:
    """A series and a list of one are the same; several keep their order."""
    single = StyleBank.build(style_series(), features, style_layers=STYLE_LAYERS)
    _assert_equal(single, _build(features, style_series()))
    several = _build(features, style_series(1), style_series(0))
    assert [series.name for series in several.series] == ["style 1", "style 0"]
    assert several.style_layers == STYLE_LAYERS


def test_select_takes_the_nearest_tilt(features: VGG19Features) -> None:
    """For each angle the targets are those of the style tilt nearest to it."""
    bank = _build(features, style_series(0, shape=(3, 24, 32), angles=[-40.0, 0.0, 40.0]), style_series(1))
    targets = bank.select([50.0, -19.0, -21.0, 0.0, 19.9])
    index = [2, 1, 0, 1, 1]
    first = bank.series[0]
    assert torch.equal(targets.mean, first.mean[index])
    assert torch.equal(targets.std, first.std[index])
    assert all(torch.equal(gram, first.grams[layer][index]) for layer, gram in targets.grams.items())
    assert torch.equal(bank.select([55.0], series=1).mean, bank.series[1].mean[-1:])


def test_memory_budget(features: VGG19Features) -> None:
    """Tilt by tilt or all at once: the same within rounding."""
    whole, single = _build(features), _build(features, memory_budget=1)
    for layer, gram in whole.series[0].grams.items():
        torch.testing.assert_close(single.series[0].grams[layer], gram, rtol=1e-4, atol=1e-6)


def test_input_is_left_alone(features: VGG19Features) -> None:
    """Building changes neither the tilts nor the encoder."""
    series = style_series()
    before, fingerprint = series.tilts.clone(), features.fingerprint
    _build(features, series)
    assert torch.equal(series.tilts, before)
    assert features.fingerprint == fingerprint


def test_bank_can_be_sent_to_a_worker(features: VGG19Features) -> None:
    """A bank is the same after pickling."""
    bank = _build(features, style_series(0), style_series(1))
    _assert_equal(pickle.loads(pickle.dumps(bank)), bank)


# --- odd styles -------------------------------------------------------------------------------------------------------


def _with(series: TiltSeries, values: Tensor) -> TiltSeries:
    return TiltSeries(tilts=values, tilt_angles=series.tilt_angles, name=series.name)


@pytest.mark.parametrize("value", [0.0, 5.0, -3e4])
def test_constant_tilt(features: VGG19Features, value: float) -> None:
    """A constant style tilt is an error that names the series, the tilt and its angle."""
    values = style_series().tilts.clone()
    values[3] = value
    message = r"style 0: expected every style tilt to vary, got constant tilt\(s\) \[3\] \(at 11°\); leave them out"
    with pytest.raises(ValueError, match=message):
        _build(features, _with(style_series(), values))


def test_hot_pixel(features: VGG19Features) -> None:
    """With quantiles a hot pixel changes next to nothing; without, it squeezes all else into the lowest values."""
    series = style_series()
    values = series.tilts.clone()
    values[2, 5, 7] = 1e6
    hot = _with(series, values)
    plain, squeezed = _build(features, series), _build(features, hot)
    robust, squeezed_not = (_build(features, s, quantiles=(0.001, 0.999)) for s in (series, hot))
    layer = STYLE_LAYERS[0]

    def difference(a: StyleBank, b: StyleBank) -> float:
        x, y = a.series[0].grams[layer], b.series[0].grams[layer]
        return float((x - y).norm() / y.norm())

    assert difference(squeezed_not, robust) < 0.05
    assert difference(squeezed, plain) > 0.3
    torch.testing.assert_close(squeezed_not.series[0].std, robust.series[0].std, rtol=0.02, atol=0)
    assert squeezed.series[0].std[2] > 100 * plain.series[0].std[2]


@pytest.mark.parametrize("shape", [(2, 9, 40), (41, 16, 16), (1, 31, 33)])
def test_any_size_and_number(features: VGG19Features, shape: tuple[int, int, int]) -> None:
    """Any number of tilts of any size that the poolings leave something of."""
    (found,) = _build(features, style_series(0, shape=shape, angles=np.linspace(-50, 50, shape[0]))).series
    assert found.mean.shape == shape[:1]
    assert all(gram.isfinite().all() for gram in found.grams.values())


def test_too_small(features: VGG19Features) -> None:
    """Tilts that vanish in the poolings are refused with both sizes."""
    with pytest.raises(ValueError, match="expected tilts of at least 4 pixels a side for layer 11, got 3 x 32"):
        _build(features, style_series(0, shape=(3, 3, 32)), style_layers=(1, 11))


def test_bad_arguments(features: VGG19Features) -> None:
    """No series, layers that are none or too deep, and quantiles that cannot be are refused."""
    with pytest.raises(ValueError, match="expected at least one style tilt-series, got none"):
        StyleBank.build([], features)
    with pytest.raises(ValueError, match="expected `layer` to be one of 1, 3, 6"):
        _build(features, style_layers=(2,))
    with pytest.raises(WeightsError, match="expected weights that reach layer 20, got .*that ends at layer 11"):
        StyleBank.build(style_series(), features)
    with pytest.raises(ValueError, match="expected `quantiles` to be a pair 0 <= low < high <= 1"):
        _build(features, quantiles=(0.5, 0.5))


# --- the cache --------------------------------------------------------------------------------------------------------


def test_cached_file_is_used(features: VGG19Features, cache: Path, encoded: Calls) -> None:
    """The second time nothing is encoded, and the bank is the same, bit for bit; so it is without a cache."""
    first = _build(features, style_series(0), style_series(1), cache=cache)
    assert encoded == ["style 0", "style 1"]
    again = _build(features, style_series(0), style_series(1), cache=str(cache))
    assert len(encoded) == 2
    _assert_equal(again, first)
    _assert_equal(_build(features, style_series(0), style_series(1)), first)
    assert len(_files(cache)) == 2


def test_only_what_is_new_is_encoded(features: VGG19Features, cache: Path, encoded: Calls) -> None:
    """Each series has its own file: a new one in a list is encoded alone."""
    _build(features, style_series(0), cache=cache)
    _build(features, style_series(1), style_series(0), cache=cache)
    assert encoded == ["style 0", "style 1"]


def test_parts_of_killed_builds_are_removed(features: VGG19Features, cache: Path) -> None:
    """What a killed build left half written goes, unless it is so young that another process may be writing it."""
    cache.mkdir(parents=True)
    old, young, other = (cache / f".{name}.part" for name in ("style-a.safetensors.x", "style-a.safetensors.y", "mine"))
    for path in (old, young, other):
        path.write_text("")
    for path in (old, other):
        os.utime(path, (0, 0))
    StyleBank.build(style_series(), features, style_layers=STYLE_LAYERS, cache=cache)
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


def test_without_cache_nothing_is_written(
    features: VGG19Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cache=None` writes nothing, anywhere."""

    def refuse(*_: Any) -> None:
        raise AssertionError("something was written")

    monkeypatch.setattr(module, "write_bytes", refuse)
    before = sorted(tmp_path.rglob("*"))
    _build(features)
    assert sorted(tmp_path.rglob("*")) == before


def _variations(folder: Path) -> Iterator[tuple[str, StyleBank]]:
    features, series = narrow_vgg(folder), style_series()
    values = series.tilts.clone()
    values[0, 0, 0] += 1e-3
    yield "as it is", _build(features, series)
    yield "one pixel", _build(features, _with(series, values))
    other = TiltSeries(tilts=series.tilts, tilt_angles=series.tilt_angles + 0.5)
    yield "angles", _build(features, other)
    shape = TiltSeries(tilts=series.tilts.reshape(6, 32, 24), tilt_angles=series.tilt_angles)
    yield "shape", _build(features, shape)
    yield "weights", _build(narrow_vgg(folder, seed=1), series)
    yield "average pooling", _build(narrow_vgg(folder, pooling="average"), series)
    yield "l2 pooling", _build(narrow_vgg(folder, pooling="l2"), series)
    yield "precision", _build(narrow_vgg(folder, precision="bfloat16"), series)
    yield "one layer", _build(features, series, style_layers=(1,))
    yield "another layer", _build(features, series, style_layers=(1, 3))
    yield "quantiles", _build(features, series, quantiles=(0.01, 0.99))
    yield "twice", _build(features, series, series)


def test_key_changes_with_everything(tmp_path: Path) -> None:
    """The key is another for every other content, angle, shape, weight, pooling, precision, layer and quantile."""
    keys = {name: bank.key for name, bank in _variations(tmp_path)}
    assert len(set(keys.values())) == len(keys)


def test_key_stays(features: VGG19Features, tmp_path: Path, cache: Path, encoded: Calls) -> None:
    """The key does not depend on the series' name, the order of layers, or the path of the weights."""
    expected = _build(features, cache=cache)
    renamed = TiltSeries(tilts=style_series().tilts, tilt_angles=style_series().tilt_angles, name="renamed")
    found = _build(features, renamed, cache=cache, style_layers=STYLE_LAYERS[::-1])
    assert found.key == expected.key
    assert found.series[0].name == "renamed"
    (tmp_path / "elsewhere").mkdir()
    assert _build(narrow_vgg(tmp_path / "elsewhere"), cache=cache).key == expected.key
    assert len(encoded) == 1


def test_file_is_not_pickle(features: VGG19Features, cache: Path) -> None:
    """The file is safetensors: a length, JSON, and numbers; it can be read without this package."""
    from safetensors.torch import load_file

    bank = _build(features, cache=cache)
    (file,) = _files(cache)
    assert file.suffix == ".safetensors"
    tensors = load_file(file)
    assert torch.equal(tensors["mean"], bank.series[0].mean)
    assert torch.equal(tensors["gram_1"], bank.series[0].grams[1])


# --- damage -----------------------------------------------------------------------------------------------------------


def _truncate(content: bytes) -> Iterator[bytes]:
    for size in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        yield content[:size]


def _replace(content: bytes) -> Iterator[bytes]:
    yield b"not a safetensors file at all" * 50
    yield b"\0" * len(content)
    yield b"\xff" * len(content)
    yield pickle.dumps({"mean": 1})
    yield content + b"more"
    yield content[:8] + b"[" + content[9:]


@pytest.mark.parametrize("damage", [_truncate, _replace])
def test_damaged_file_is_made_again(features: VGG19Features, cache: Path, encoded: Calls, damage: Any) -> None:
    """A truncated or foreign file is noticed: a warning names it, and it is made again, whole."""
    expected = _build(features, cache=cache)
    (file,) = _files(cache)
    content = file.read_bytes()
    for count, damaged in enumerate(damage(content), start=2):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match=f"{re.escape(str(file))}: the cached style is damaged and is made again"):
            _assert_equal(_build(features, cache=cache), expected)
        assert len(encoded) == count
        # Whole again: read without a warning, and not encoded.
        _assert_equal(_build(features, cache=cache), expected)
        assert len(encoded) == count
        assert _files(cache) == [file]


def test_flipped_bytes(features: VGG19Features, cache: Path) -> None:
    """Whichever byte is flipped, the bank that comes back is the right one; among the numbers it is noticed."""
    expected = _build(features, cache=cache)
    (file,) = _files(cache)
    content = file.read_bytes()
    numbers = 8 + int.from_bytes(content[:8], "little")
    for place in [*range(0, numbers, 11), *range(numbers, len(content), 101), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        file.write_bytes(bytes(damaged))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _assert_equal(_build(features, cache=cache), expected)
        assert len(caught) == 1 or place < numbers, f"byte {place} went unnoticed"
        file.write_bytes(content)


def test_file_of_another_style(features: VGG19Features, cache: Path) -> None:
    """A good file under the name of another style is not taken for it."""
    _build(features, style_series(0), cache=cache)
    (first,) = _files(cache)
    expected = _build(features, style_series(1), cache=cache)
    (second,) = set(_files(cache)) - {first}
    second.write_bytes(first.read_bytes())
    with pytest.warns(UserWarning, match="the cached style is damaged and is made again"):
        _assert_equal(_build(features, style_series(1), cache=cache), expected)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk(features: VGG19Features, cache: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """When writing fails the error is a CacheError with the file, and nothing is left."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"fsync": (_atomic.os, "fsync"), "replace": (Path, "replace")}[step], full)
    with pytest.raises(CacheError, match=r"style-.*safetensors: expected to write the style cache, got No space left"):
        _build(features, cache=cache)
    monkeypatch.undo()
    assert _files(cache) == []


def _crash(folder: Path, cache: Path, step: str) -> None:
    """Die in the middle of writing, as by kill -9."""
    # OpenMP's threads do not survive a fork.
    torch.set_num_threads(1)

    def die(*_: Any) -> None:
        os._exit(9)

    if step == "write":
        Path.write_bytes = lambda self, content: (self.open("wb").write(content[:100]), die())  # type: ignore[assignment, method-assign]
    else:
        setattr(*{"fsync": (_atomic.os, "fsync"), "replace": (Path, "replace")}[step], die)
    _build(narrow_vgg(folder), cache=cache)


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_crash_while_writing(features: VGG19Features, tmp_path: Path, cache: Path, encoded: Calls, step: str) -> None:
    """A process that dies while writing leaves no file under the style's name; the next one writes it."""
    process = multiprocessing.get_context("fork").Process(target=_crash, args=(tmp_path, cache, step))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert not list(cache.glob("style-*"))
    expected = _build(features)
    _assert_equal(_build(features, cache=cache), expected)
    _assert_equal(_build(features, cache=cache), expected)
    assert len(encoded) == 2


def _build_into(folder: Path, cache: Path, result: Path, barrier: Any) -> None:
    """One of several processes that build at once."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    features = narrow_vgg(folder)
    barrier.wait(60)
    for round_ in range(5):
        bank = _build(features, style_series(round_), cache=cache)
        torch.save([bank.key, *bank.series[0].grams.values(), bank.series[0].mean], f"{result}_{round_}")


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_several_processes_at_once(features: VGG19Features, tmp_path: Path, cache: Path, start: str) -> None:
    """Processes that build the same bank at once get equal ones, and leave one good file for each style."""
    context = multiprocessing.get_context(start)
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=_build_into, args=(tmp_path, cache, tmp_path / f"result_{i}", barrier)) for i in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for round_ in range(5):
        results = [torch.load(tmp_path / f"result_{i}_{round_}", weights_only=True) for i in range(3)]
        for other in results[1:]:
            assert other[0] == results[0][0]
            assert all(torch.equal(a, b) for a, b in zip(other[1:], results[0][1:], strict=True))
    assert len(_files(cache)) == 5
    expected = _build(features, style_series(4))
    _assert_equal(_build(features, style_series(4), cache=cache), expected)


# --- folders that cannot be written -----------------------------------------------------------------------------------


def test_cache_below_a_file(features: VGG19Features, tmp_path: Path, encoded: Calls) -> None:
    """A cache that cannot be a folder is a CacheError that names it, before anything is computed."""
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache", Path("/proc/no_such_folder/cache")):
        with pytest.raises(CacheError, match="expected a style cache folder that can be written, got") as caught:
            _build(features, cache=folder)
        assert str(folder) in str(caught.value)
        assert "set `cache` to another folder, or to None" in str(caught.value)
    assert encoded == []


def test_read_only_folder(features: VGG19Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only folder is a CacheError that names it; a bank that is there already is read from it all the same."""
    folder = tmp_path / "read_only"
    expected = _build(features, style_series(0), cache=folder)
    folder.chmod(0o555)

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    # The administrator may write anywhere.
    monkeypatch.setattr("faket_aug.formats._atomic.tempfile.TemporaryFile", read_only)
    try:
        _assert_equal(_build(features, style_series(0), cache=folder), expected)
        with pytest.raises(CacheError, match=r"read_only \(Read-only file system\)"):
            _build(features, style_series(1), cache=folder)
        monkeypatch.undo()
        if os.geteuid() != 0:
            with pytest.raises(CacheError, match=r"read_only \(Permission denied\)"):
                _build(features, style_series(1), cache=folder)
    finally:
        folder.chmod(0o755)


def test_checking_the_folder_leaves_nothing(features: VGG19Features, cache: Path) -> None:
    """Besides the style's file there is nothing in the folder."""
    _build(features, cache=cache)
    assert [file.suffix for file in _files(cache)] == [".safetensors"]


# --- the reference data -----------------------------------------------------------------------------------------------


def test_real_style(reference: Path, features: VGG19Features) -> None:
    """A bank of a real tilt-series: finite, one entry a tilt, by the narrow encoder."""
    series = TiltSeries.read(reference / "data" / "real" / "empiar10499_ts00254")
    (found,) = _build(features, series).series
    assert found.mean.shape == (41,)
    assert all(gram.isfinite().all() for gram in found.grams.values())
    assert (found.std > 0).all()


@pytest.mark.gpu
def test_tilts_on_a_gpu(features: VGG19Features, cache: Path) -> None:
    """Tilts may lie on a GPU: the bank's key is that of the same tilts on the CPU, its numbers are near, on the CPU."""
    series = style_series()
    measured = torch.ones_like(series.tilts, dtype=torch.bool)
    measured[:, :5] = False
    masked = replace(series, measured=measured)
    there = replace(series, tilts=series.tilts.cuda(), measured=measured.cuda())
    expected = _build(features, masked, quantiles=(0.01, 0.99))
    found = _build(features, there, quantiles=(0.01, 0.99), device="cuda", cache=cache)
    assert found.key == expected.key
    (one,), (other,) = found.series, expected.series
    assert one.mean.device.type == "cpu"
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.std, other.std)
    for layer, gram in one.grams.items():
        assert float((gram - other.grams[layer]).norm() / other.grams[layer].norm()) < 1e-2
