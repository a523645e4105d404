"""Files: what is written is read back, what is wrong is said, and nothing is ever half written."""

from __future__ import annotations

import bz2
import gzip
import os
import stat
import struct
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from faket_aug import FileFormatError
from faket_aug._checks import check_finite
from faket_aug.formats import _atomic
from faket_aug.formats._atomic import atomic_path, write_bytes, write_text
from faket_aug.formats.angles import (
    find_tilt_angles,
    read_mdoc,
    read_shrec_alignment,
    read_tilt_angles,
    read_tlt,
    write_tlt,
)
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.formats.particles import ParticleList, read_particles_csv
from faket_aug.formats.shrec import (
    read_class_conversion_table,
    read_particle_locations,
    write_class_conversion_table,
    write_particle_locations,
)
from tests._helpers import SHREC_ALIGNMENT, mdoc

VALUES = np.arange(60).reshape(3, 4, 5) - 20


def _mrc(path: Path, values: Any = None, voxel_size: float = 2.5) -> Path:
    """Write an MRC file with mrcfile itself."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.asarray(VALUES.astype(np.float32) if values is None else values))
        file.voxel_size = voxel_size
    return path


def _with_data(path: Path, values: np.ndarray) -> Path:
    """Write float32 values that mrcfile would warn about, behind the header of a file of the same shape."""
    raw = _mrc(path, np.zeros(values.shape, np.float32)).read_bytes()
    path.write_bytes(raw[:1024] + values.astype("<f4").tobytes())
    return path


def _changed(path: Path, offset: int, form: str, *values: Any) -> Path:
    """Overwrite fields of a header."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, offset, *values)
    path.write_bytes(bytes(raw))
    return path


# --- MRC: reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("i1", torch.int8),
        ("i2", torch.int16),
        ("u2", torch.int32),
        ("f2", torch.float32),
        ("f4", torch.float32),
        (">i2", torch.int16),
        (">f4", torch.float32),
    ],
)
def test_modes(tmp_path: Path, stored: str, read: torch.dtype) -> None:
    """Every mode of real numbers (0, 1, 2, 6, 12), in either byte order, is read with its values."""
    values = np.abs(VALUES) if stored == "u2" else VALUES
    data, voxel_size = read_mrc(_mrc(tmp_path / "a.mrc", values.astype(stored)))
    assert data.dtype == read
    assert np.array_equal(data.numpy(), values)
    assert voxel_size == pytest.approx(2.5)


def test_large_unsigned_values(tmp_path: Path) -> None:
    """Unsigned 16-bit counts beyond 32767 stay what they are."""
    values = np.full((1, 2, 3), 65535, dtype=np.uint16)
    assert read_mrc(_mrc(tmp_path / "a.mrc", values))[0].unique().tolist() == [65535]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed(tmp_path: Path, suffix: str, compress: Any) -> None:
    """Files compressed by gzip and bzip2 read the same, also in part."""
    plain = _mrc(tmp_path / "a.mrc")
    packed = tmp_path / f"a.mrc{suffix}"
    packed.write_bytes(compress(plain.read_bytes()))
    assert torch.equal(read_mrc(packed)[0], read_mrc(plain)[0])
    assert torch.equal(read_mrc(packed, rows=slice(1, 2))[0], read_mrc(plain)[0][1:2])


@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 3), slice(2, 3), slice(0, 3)])
def test_some_sections(tmp_path: Path, rows: slice) -> None:
    """Reading some sections gives those of the whole."""
    path = _mrc(tmp_path / "a.mrc")
    assert torch.equal(read_mrc(path, rows=rows)[0], read_mrc(path)[0][rows])


def test_result_owns_its_memory(tmp_path: Path) -> None:
    """What was read may be changed, and does not change with the file."""
    path = _mrc(tmp_path / "a.mrc")
    data, _ = read_mrc(path)
    data[0, 0, 0] = 7
    assert read_mrc(path)[0][0, 0, 0] == -20
    _mrc(path, np.zeros((3, 4, 5), np.float32))
    assert data[0, 0, 1] == -19


def test_no_voxel_size(tmp_path: Path) -> None:
    """A header without voxel size reads as 0."""
    assert read_mrc(_mrc(tmp_path / "a.mrc", voxel_size=0.0))[1] == 0.0


@pytest.mark.parametrize("offset", [208, 212])
def test_strict_first_then_permissive(tmp_path: Path, offset: int) -> None:
    """A wrong map id or machine stamp is read all the same; the warning names the file and what is wrong."""
    path = _changed(_mrc(tmp_path / "old.mrc"), offset, "4s", b"\x12\x34\0\0")
    found = {208: "Map ID string not found", 212: "Unrecognised machine stamp: 0x12 0x34 0x00 0x00"}[offset]
    with pytest.warns(UserWarning, match=f"old.mrc: not quite an MRC file, read all the same: .*{found}"):
        data, voxel_size = read_mrc(path)
    assert np.array_equal(data.numpy(), VALUES)
    assert voxel_size == pytest.approx(2.5)


def test_good_file_does_not_warn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A good file is read in silence."""
    read_mrc(_mrc(tmp_path / "a.mrc"))
    assert len(recwarn) == 0


# --- MRC: damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 100, 240])
@pytest.mark.parametrize("damaged_header", [False, True])
def test_truncated(tmp_path: Path, missing: int, damaged_header: bool) -> None:
    """A file with less data than its header says is an error, never filled up, whatever else is wrong with it."""
    path = _mrc(tmp_path / "cut.mrc")
    if damaged_header:
        _changed(path, 208, "4s", b"\0\0\0\0")
    path.write_bytes(path.read_bytes()[:-missing])
    size = r"(of \(3, 4, 5\) values|.*240 bytes)"
    with pytest.raises(FileFormatError, match=f"cut.mrc: expected a whole MRC file {size}") as caught:
        read_mrc(path)
    assert str(240 - missing) in str(caught.value)


@pytest.mark.parametrize("size", [0, 500, 1023])
def test_truncated_header(tmp_path: Path, size: int) -> None:
    """A file that ends within the header is an error."""
    path = _mrc(tmp_path / "cut.mrc")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FileFormatError, match="cut.mrc: expected an MRC file, got one that cannot be read .*header"):
        read_mrc(path)


@pytest.mark.parametrize(
    "cut",
    [
        "content",
        "stream",
    ],
)
def test_truncated_and_compressed(tmp_path: Path, cut: str) -> None:
    """A compressed file that is cut off, before or after it was compressed, is an error with its name."""
    raw = _mrc(tmp_path / "a.mrc").read_bytes()
    path = tmp_path / "cut.mrc.gz"
    path.write_bytes(gzip.compress(raw[:-8]) if cut == "content" else gzip.compress(raw)[:-30])
    with pytest.raises(FileFormatError, match="cut.mrc.gz: expected"):
        read_mrc(path)


@pytest.mark.parametrize(
    ("offset", "form", "values"),
    [
        pytest.param(12, "<i", (99,), id="unknown mode"),
        pytest.param(0, "<i", (-5,), id="negative size"),
        pytest.param(0, "<i", (50_000,), id="size of another file"),
        pytest.param(92, "<i", (1000,), id="extended header that is not there"),
    ],
)
def test_wrong_header(tmp_path: Path, offset: int, form: str, values: tuple[Any, ...]) -> None:
    """A header that cannot be is an error with the file's name."""
    path = _changed(_mrc(tmp_path / "bad.mrc"), offset, form, *values)
    with pytest.raises(FileFormatError, match="bad.mrc: expected .* got"):
        read_mrc(path)


def test_unequal_voxels(tmp_path: Path) -> None:
    """A volume whose voxels are no cubes is refused; of a stack of tilts the size along z means nothing."""
    path = tmp_path / "a.mrc"
    for sizes, is_volume, is_stack in (
        ((10, 10, 5), False, True),
        ((10, 5, 10), False, False),
        ((10, 10.05, 9.95), True, True),
        ((10, 10, 0), True, True),
    ):
        write_mrc(path, torch.zeros(2, 3, 4), voxel_size=10.0)
        with mrcfile.open(path, mode="r+") as file:
            file.voxel_size = sizes
        for stack, fits in ((False, is_volume), (True, is_stack)):
            if fits:
                assert read_mrc(path, stack=stack)[1] == 10.0
                continue
            with pytest.raises(FileFormatError, match=r"a.mrc: expected voxels of equal sides, got 10 x .* Å \(x, y"):
                read_mrc(path, stack=stack)


@pytest.mark.parametrize("size", [float("nan"), -10.0, float("inf")])
def test_impossible_voxel_size(tmp_path: Path, size: float) -> None:
    """A voxel size that is negative or no number reads as 0, which asks for one where one is needed."""
    path = _changed(_mrc(tmp_path / "bad.mrc"), 40, "<f", size)
    assert read_mrc(path)[1] == 0.0


def test_permuted_axes(tmp_path: Path) -> None:
    """A header that says that the columns are z and the sections x (MAPC, MAPR, MAPS) is obeyed or refused."""
    path = _changed(_mrc(tmp_path / "bad.mrc"), 64, "<iii", 3, 2, 1)
    try:
        data, _ = read_mrc(path)
    except FileFormatError as error:
        assert "bad.mrc" in str(error)  # noqa: PT017 - either is right
    else:
        assert tuple(data.shape) == (5, 4, 3)


def test_not_an_mrc_file(tmp_path: Path) -> None:
    """A text file is no MRC file."""
    path = tmp_path / "notes.mrc"
    path.write_text("hello world\n" * 200)
    with pytest.raises(FileFormatError, match="notes.mrc: expected a whole MRC file with a valid header"):
        read_mrc(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, value: float) -> None:
    """NaN and infinite values are an error that counts them and says where the first is."""
    values = VALUES.astype(np.float32)
    values[1, 2, 3] = values[2, 0, 0] = value
    message = r"a.mrc: expected finite numbers, got 2 NaN or infinite values, the first at index \(1, 2, 3\)"
    with pytest.raises(FileFormatError, match=message):
        read_mrc(_with_data(tmp_path / "a.mrc", values))


def test_not_finite_in_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large array is looked at in parts: all that is wrong is counted, and the first is named."""
    monkeypatch.setattr("faket_aug._checks._CHECKED", 8)
    values = torch.zeros(5, 2, 3)
    values[3, 1, 2] = values[4, 0, 0] = torch.nan
    with pytest.raises(FileFormatError, match=r"got 2 NaN or infinite values, the first at index \(3, 1, 2\)"):
        check_finite(values, "a")
    check_finite(torch.zeros(0, 2, 3), "a")


def test_large_finite_values_pass(tmp_path: Path) -> None:
    """Values whose sum overflows float32 are finite all the same."""
    values = np.full((3, 4, 5), 3e38, dtype=np.float32)
    assert torch.equal(read_mrc(_with_data(tmp_path / "a.mrc", values))[0], torch.from_numpy(values))


def test_complex_numbers(tmp_path: Path) -> None:
    """Complex numbers are an error with the file's name."""
    with pytest.raises(FileFormatError, match="a.mrc.*expected real numbers, got complex"):
        read_mrc(_mrc(tmp_path / "a.mrc", VALUES.astype(np.complex64)))


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 5)])
def test_other_numbers_of_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """An image, or a stack of volumes, is no volume."""
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as file:
        file.set_data(np.zeros(shape, np.float32))
    with pytest.raises(FileFormatError, match=r"a.mrc: expected an MRC file of three axes, got shape \(") as caught:
        read_mrc(path)
    assert str(shape) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is a FileNotFoundError with its path."""
    with pytest.raises(FileNotFoundError, match="expected an MRC file, found none at .*none.mrc"):
        read_mrc(tmp_path / "none.mrc")


# --- MRC: writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)), torch.float32),
        (torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).double(), torch.float32),
        (torch.from_numpy(VALUES).to(torch.int8), torch.int8),
        (torch.from_numpy(VALUES), torch.int8),
        (torch.from_numpy(VALUES) * 100, torch.int16),
        (torch.from_numpy(VALUES).abs().to(torch.uint8) * 5, torch.int16),
        (torch.tensor([[[True, False]]]), torch.int8),
    ],
)
def test_round_trip(tmp_path: Path, data: torch.Tensor, stored: torch.dtype) -> None:
    """What is written is read back: floating point as float32, integers as the smallest type that holds them."""
    write_mrc(tmp_path / "a.mrc", data, voxel_size=13.48)
    found, voxel_size = read_mrc(tmp_path / "a.mrc")
    assert found.dtype == stored
    assert torch.equal(found, data.to(stored))
    assert voxel_size == pytest.approx(13.48)
    assert mrcfile.validate(tmp_path / "a.mrc")


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_smallest_integers(tmp_path: Path, dtype: torch.dtype) -> None:
    """The smallest integer of a type is written as it is, or refused."""
    least = torch.iinfo(dtype).min
    try:
        write_mrc(tmp_path / "a.mrc", torch.tensor([[[least, 1]]], dtype=dtype), voxel_size=1.0)
    except ValueError:
        assert dtype != torch.int16
    else:
        assert read_mrc(tmp_path / "a.mrc")[0].tolist() == [[[least, 1]]]


@pytest.mark.parametrize(("dtype", "mode"), [(torch.float16, 12), (torch.bfloat16, 2)])
def test_half_precision_is_written(tmp_path: Path, dtype: torch.dtype, mode: int) -> None:
    """float16 is stored as it is; bfloat16, which MRC does not know, as float32."""
    data = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    write_mrc(tmp_path / "a.mrc", data, voxel_size=2.0)
    with mrcfile.open(tmp_path / "a.mrc") as file:
        assert int(file.header.mode) == mode
    assert torch.equal(read_mrc(tmp_path / "a.mrc")[0], data.float())


# --- MRC, left on disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [None, slice(1, 3)])
def test_memory_map(tmp_path: Path, dtype: torch.dtype, rows: slice | None) -> None:
    """A file that is left on disk reads the same, in its own precision; changes do not reach it."""
    data = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    write_mrc(tmp_path / "a.mrc", data, voxel_size=2.0)
    before = (tmp_path / "a.mrc").read_bytes()
    found, voxel_size = read_mrc(tmp_path / "a.mrc", rows=rows, memory_map=True)
    assert torch.equal(found, data[rows or slice(None)])
    assert voxel_size == 2.0
    found += 1.0
    assert (tmp_path / "a.mrc").read_bytes() == before


def test_memory_map_takes_no_memory(tmp_path: Path) -> None:
    """64 MiB on disk are not read when they are mapped."""
    path = tmp_path / "a.mrc"
    with mrcfile.new_mmap(path, shape=(64, 512, 512), mrc_mode=2) as file:
        file.voxel_size = 2.0
    before = _own_memory()
    found, _ = read_mrc(path, memory_map=True)
    assert found.shape == (64, 512, 512)
    assert _own_memory() - before < 2**23


def _own_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_map_of_what_cannot_be_mapped(tmp_path: Path) -> None:
    """Integers, compressed files and other byte orders are refused, with what to do."""
    write_mrc(tmp_path / "whole.mrc", torch.from_numpy(VALUES), voxel_size=2.0)
    with pytest.raises(FileFormatError, match=r"whole.mrc: expected three axes of floating-point .*got \|i1 .*without"):
        read_mrc(tmp_path / "whole.mrc", memory_map=True)
    path = _mrc(tmp_path / "a.mrc", VALUES.astype(np.float32))
    (tmp_path / "a.mrc.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(FileFormatError, match=r"a.mrc.gz: expected a whole, uncompressed MRC file"):
        read_mrc(tmp_path / "a.mrc.gz", memory_map=True)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError, match=r"a.mrc: expected a whole, uncompressed MRC file"):
        read_mrc(path, memory_map=True)
    with mrcfile.new(tmp_path / "foreign.mrc") as file:
        file.set_data(VALUES.astype(">f4"))
    with pytest.raises(FileFormatError, match=r"foreign.mrc: expected .* byte order .*got >f4"):
        read_mrc(tmp_path / "foreign.mrc", memory_map=True)


# --- MRC, the rest ----------------------------------------------------------------------------------------------------


def test_axes_are_not_turned(tmp_path: Path) -> None:
    """x runs fastest in the file: the first values are the first row of the first section."""
    write_mrc(tmp_path / "a.mrc", torch.from_numpy(VALUES).float(), voxel_size=1.0)
    raw = (tmp_path / "a.mrc").read_bytes()
    assert struct.unpack_from("<3i", raw, 0) == (5, 4, 3)
    assert struct.unpack_from("<5f", raw, 1024) == (-20, -19, -18, -17, -16)


def test_integers_that_do_not_fit(tmp_path: Path) -> None:
    """Integers beyond 16 bits are refused, and nothing is left."""
    with pytest.raises(ValueError, match="expected integers that fit 16 bits in an MRC file, got 0 to 40000"):
        write_mrc(tmp_path / "a.mrc", torch.full((1, 1, 1), 40_000), voxel_size=1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("voxel_size", [0.0, -1.0])
def test_voxel_size_to_write(tmp_path: Path, voxel_size: float) -> None:
    """A file is not written without its voxel size."""
    with pytest.raises(ValueError, match="expected `voxel_size` to be more than 0"):
        write_mrc(tmp_path / "a.mrc", torch.zeros(1, 1, 1), voxel_size=voxel_size)
    assert list(tmp_path.iterdir()) == []


# --- writing as a whole -----------------------------------------------------------------------------------------------


def _fail(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["set_data", "fsync", "replace"])
def test_failure_midway_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """When writing fails, at any step, the old file is whole and no temporary one is left."""
    path = tmp_path / "a.mrc"
    write_mrc(path, torch.ones(1, 2, 3), voxel_size=1.0)
    before = path.read_bytes()
    target = {
        "set_data": (mrcfile.mrcfile.MrcFile, "set_data"),
        "fsync": (_atomic.os, "fsync"),
        "replace": (Path, "replace"),
    }[where]
    monkeypatch.setattr(*target, _fail)
    with pytest.raises(OSError, match="No space left"):
        write_mrc(path, torch.zeros(1, 2, 3), voxel_size=1.0)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interruption_midway_leaves_the_old_file(tmp_path: Path) -> None:
    """Ctrl-C while writing is no different."""
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at", ["touch", "fsync"])
def test_signal_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """A signal just after the file was made, or while it is flushed, leaves no file behind."""
    target = {"touch": (Path, "touch"), "fsync": (_atomic.os, "fsync")}[at]
    original = getattr(*target)

    def interrupted(*arguments: Any, **settings: Any) -> None:
        original(*arguments, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(*target, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.txt", "x")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system does not say which file it had no room for."""
    monkeypatch.setattr(_atomic.os, "fsync", _fail)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "a.txt", "x")
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_reader_never_sees_a_part(tmp_path: Path) -> None:
    """While the new file is written, the old one is what is there under the name."""
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent, "a rename across file systems is no rename"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_flushed_before_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on the disk before the name is."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(_atomic.os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (steps.append("replace"), replace(self, to))[1])
    write_bytes(tmp_path / "a", b"x")
    assert steps == ["fsync", "replace"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    """A written file has the permissions of any other file of the user, not those of a temporary one."""
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "ours", "x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")}
    assert len(modes) == 1


def test_folder_must_exist(tmp_path: Path) -> None:
    """Writing makes no folders."""
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "none" / "a.txt", "x")


# --- tilt angles ------------------------------------------------------------------------------------------------------


def test_tlt(tmp_path: Path) -> None:
    """One angle a line, with its sign, in the file's order; blank lines and further columns do not matter."""
    path = tmp_path / "a.tlt"
    path.write_text(" -60.00\n\n  3.0 12 whatever\n-0.5   # a remark\n60\n")
    assert read_tlt(path).tolist() == [-60.0, 3.0, -0.5, 60.0]


@settings(max_examples=50, deadline=None)
@given(angles=st.lists(st.floats(-90, 90), min_size=1, max_size=20))
def test_tlt_round_trip(tmp_path_factory: pytest.TempPathFactory, angles: list[float]) -> None:
    """Angles that are written are read back to a ten-thousandth of a degree."""
    path = tmp_path_factory.mktemp("tlt") / "a.tlt"
    write_tlt(path, angles)
    np.testing.assert_allclose(read_tlt(path), angles, atol=5.1e-5)


def test_shrec_alignment_is_negated(tmp_path: Path) -> None:
    """SHREC's angles have scikit-image's sign: reading turns it, and makes no negative zero."""
    path = tmp_path / "alignment_simulated.txt"
    path.write_text(SHREC_ALIGNMENT)
    angles = read_shrec_alignment(path)
    assert angles.tolist() == [60.0, 0.0, -57.0]
    assert not np.signbit(angles[1])
    assert read_tilt_angles(path).tolist() == angles.tolist()


def test_mdoc(tmp_path: Path) -> None:
    """The angles of an .mdoc are those of its sections in the stack's order, whatever the order in the file."""
    path = tmp_path / "a.mrc.mdoc"
    path.write_text(mdoc([0.01, 3.0, -3.0]))
    assert read_mdoc(path).tolist() == [0.01, 3.0, -3.0]
    path.write_text(mdoc([3.0, -3.0, 0.01], sections=[1, 2, 0]))
    assert read_mdoc(path).tolist() == [0.01, 3.0, -3.0]


def test_mdoc_with_many_sections(tmp_path: Path) -> None:
    """Sections are ordered as numbers: 10 comes after 9, not after 1."""
    path = tmp_path / "a.mdoc"
    angles = [float(i) for i in range(12)]
    path.write_text(mdoc(angles[::-1], sections=list(range(12))[::-1]))
    assert read_mdoc(path).tolist() == angles


def test_real_mdoc(reference: Path) -> None:
    """A .mdoc as SerialEM writes it."""
    found = sorted((reference / "data" / "real" / "metadata" / "serialem").glob("*.mdoc"))
    assert found
    for path in found:
        angles = read_tilt_angles(path)
        assert len(angles) > 5
        assert np.ptp(angles) > 30


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tlt", "-60\nsixty\n", "a.tlt, line 2: expected a number in column 1, got 'sixty'"),
        ("a.rawtlt", "", "a.rawtlt: expected tilt angles in degrees, got none"),
        ("a.tlt", "nan\n", "a.tlt, line 1: expected a number in column 1, got 'nan'"),
        ("a.tlt", "1000\n", "a.tlt: expected tilt angles within ±180°, got"),
        ("a.txt", "0 0 0 0\n", "a.txt: expected one column of tilt angles, AreTomo's two or three"),
        ("a.mdoc", "PixelSpacing = 2.17\n", "a.mdoc: expected an .mdoc with a TiltAngle for every section"),
        ("a.mdoc", "[ZValue = 0]\nMagnification = 5\n", "a.mdoc: expected an .mdoc with a TiltAngle"),
        ("a.xml", "<a/>", "a.xml: expected a file of angles that ends in .tlt, .rawtlt, .mdoc, .txt"),
    ],
)
def test_bad_angles(tmp_path: Path, name: str, content: str, message: str) -> None:
    """A file of angles that is wrong is an error with file, line and what was found."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(FileFormatError) as caught:
        read_tilt_angles(path)
    assert message in str(caught.value)


def test_missing_angles(tmp_path: Path) -> None:
    """A missing file of angles is a FileNotFoundError; where none is beside a stack, the names are listed."""
    for name in ("a.tlt", "a.mdoc", "a.txt"):
        with pytest.raises(FileNotFoundError, match=f"found none at .*{name}"):
            read_tilt_angles(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"one of a.tlt, a.rawtlt, a.st.mdoc, a.mdoc, alignment_simulated.txt"):
        find_tilt_angles(tmp_path / "a.st")


def test_order_of_preference(tmp_path: Path) -> None:
    """Aligned angles go before raw ones, those before the microscope's, those before SHREC's."""
    names = ["a.tlt", "a.rawtlt", "a.st.mdoc", "a.mdoc", "alignment_simulated.txt"]
    for name in names[::-1]:
        (tmp_path / name).write_text("0\n")
        assert find_tilt_angles(tmp_path / "a.st").name == name


# --- SHREC's text files -----------------------------------------------------------------------------------------------


def test_particle_locations(tmp_path: Path) -> None:
    """Positions are turned to (z, y, x), angles to intrinsic ZXZ matrices; no angles, or NaN, is no orientation."""
    path = tmp_path / "particle_locations.txt"
    path.write_text("1BXN 11 22 33 -24.854 95.987 -0.822\nfiducial 1 2.5 3 NaN NaN NaN\n\n4CR2 4 5 6\n")
    found = read_particle_locations(path)
    assert found.names == ("1BXN", "fiducial", "4CR2")
    assert found.positions.tolist() == [[33, 22, 11], [3, 2.5, 1], [6, 5, 4]]
    expected = Rotation.from_euler("ZXZ", [-24.854, 95.987, -0.822], degrees=True).as_matrix()
    np.testing.assert_allclose(found.orientations[0], expected, atol=1e-12)
    assert np.isnan(found.orientations[1:]).all()
    assert found.orientations.shape == (3, 3, 3)


def test_no_particles(tmp_path: Path) -> None:
    """An empty file is a table without rows."""
    path = tmp_path / "particle_locations.txt"
    path.write_text("\n# nothing here\n")
    found = read_particle_locations(path)
    assert found.names == ()
    assert found.positions.shape == (0, 3)
    assert found.orientations.shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1BXN 1 2", "line 2: expected `name x y z Z1 X Z2`, got '1BXN 1 2'"),
        ("1BXN 1 2 3 4", "line 2: expected `name x y z Z1 X Z2`"),
        ("1BXN 1 2 three 0 0 0", "line 2: expected `name x y z Z1 X Z2`"),
        (
            "1BXN 1 2 nan 0 0 0",
            "expected numbers as position, got [1.0, 2.0, nan] for particle 2 of 2; remove it or correct",
        ),
    ],
)
def test_bad_particle_locations(tmp_path: Path, line: str, message: str) -> None:
    """A row that is none is an error with file, line and what was found."""
    path = tmp_path / "particle_locations.txt"
    path.write_text(f"1BXN 1 2 3 0 0 0\n{line}\n")
    with pytest.raises(FileFormatError) as caught:
        read_particle_locations(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "0 background\n1 4V94\n12 fiducial\n",
        "0: background\n1: 4V94\n\n12: fiducial",
        "1,4V94\n12,fiducial # gold",
    ],
)
def test_class_conversion_table(tmp_path: Path, text: str) -> None:
    """Number and name a line, with or without colon or comma; the background is left out."""
    path = tmp_path / "class_conversion_table.txt"
    path.write_text(text)
    assert read_class_conversion_table(path) == {1: "4V94", 12: "fiducial"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 a\n1 b\n", "line 2: expected each class once, got 1 again"),
        ("one a\n", "line 1: expected `number name`, got 'one a'"),
        ("1 a b\n", "line 1: expected `number name`, got '1 a b'"),
        ("-1 a\n", "line 1: expected `number name`, got '-1 a'"),
    ],
)
def test_bad_class_conversion_table(tmp_path: Path, text: str, message: str) -> None:
    """A table that is wrong is an error with file, line and what was found."""
    path = tmp_path / "class_conversion_table.txt"
    path.write_text(text)
    with pytest.raises(FileFormatError) as caught:
        read_class_conversion_table(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_text_files(tmp_path: Path) -> None:
    """Text files that are not there are named."""
    for read in (read_particle_locations, read_class_conversion_table):
        with pytest.raises(FileNotFoundError, match="found none at .*none.txt"):
            read(tmp_path / "none.txt")


def test_particle_locations_of_2019(tmp_path: Path) -> None:
    """SHREC 2019 writes z first, and angles of an unknown kind: no orientation. The rows alone do not tell it."""
    path = tmp_path / "particle_locations_model_0.txt"
    path.write_text("1bxn  11  222  333  -24   95   -1\n4d8q    5    6    7    0    0    0\n")
    found = read_particle_locations(path, layout="2019")
    assert found.names == ("1bxn", "4d8q")
    assert found.positions.tolist() == [[11, 222, 333], [5, 6, 7]]
    assert np.isnan(found.orientations).all()
    assert read_particle_locations(path).positions.tolist() == [[333, 222, 11], [7, 6, 5]]
    with pytest.raises(ValueError, match="expected `layout` to be one of '2021', '2019', got '2020'"):
        read_particle_locations(path, layout="2020")
    path.write_text("1bxn 1 2\n")
    with pytest.raises(FileFormatError, match="line 1: expected `name z y x r1 r2 r3`, got '1bxn 1 2'"):
        read_particle_locations(path, layout="2019")


def test_written_particle_locations(tmp_path: Path) -> None:
    """Rows as SHREC 2021's: x, y, z, whole where they are, angles ZXZ or NaN."""
    path = tmp_path / "particle_locations.txt"
    turns = Rotation.from_euler("ZXZ", [[-24.5, 95.25, -1], [0, 0, 0]], degrees=True).as_matrix()
    turns[1] = np.nan
    write_particle_locations(path, ParticleList(("1BXN", "gold"), np.array([[33.0, 22, 11], [3.25, 2, 1]]), turns))
    assert path.read_text() == "1BXN 11 22 33 -24.5000 95.2500 -1.0000\ngold 1 2 3.2500 NaN NaN NaN\n"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(0, 5))
def test_particle_locations_round_trip(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    """What is written is read back to a ten-thousandth of a voxel and of a degree."""
    path = tmp_path_factory.mktemp("shrec") / "particle_locations.txt"
    random = np.random.default_rng(seed)
    turns = Rotation.random(count, random_state=random).as_matrix() if count else np.zeros((0, 3, 3))
    particles = ParticleList(tuple("abcde"[:count]), random.uniform(-5, 600, (count, 3)), turns)
    write_particle_locations(path, particles)
    found = read_particle_locations(path)
    assert found.names == particles.names
    np.testing.assert_allclose(found.positions, particles.positions, atol=5.1e-5)
    np.testing.assert_allclose(found.orientations, turns, atol=5e-6)


@pytest.mark.parametrize(
    ("names", "place", "message"),
    [
        (("a b",), 1.0, "expected class names without spaces, quotes and #, got 'a b'; rename it"),
        (("",), 1.0, "expected class names without spaces, quotes and #, got ''"),
        (("a#1",), 1.0, "expected class names without spaces, quotes and #, got 'a#1'"),
        (("a",), np.nan, r"expected finite places, got \[nan, nan, nan\] for particle 1"),
    ],
)
def test_particles_that_cannot_be_written(tmp_path: Path, names: tuple[str, ...], place: float, message: str) -> None:
    """Names that would break the row, and places that are none, are refused; no file is left."""
    particles = ParticleList(names, np.full((1, 3), place), np.eye(3)[None])
    with pytest.raises(ValueError, match=message):
        write_particle_locations(tmp_path / "a.txt", particles)
    assert list(tmp_path.iterdir()) == []


def test_particle_lists_have_one_length() -> None:
    """Names, places and orientations go together."""
    with pytest.raises(
        ValueError, match=r"expected places and orientations of 1 particles, got arrays of \(\(2, 3\), "
    ):
        ParticleList(("a",), np.zeros((2, 3)), np.zeros((1, 3, 3)))
    assert ParticleList(
        ("a", "b"), np.zeros((2, 3)), np.stack([np.eye(3), np.full((3, 3), np.nan)])
    ).oriented.tolist() == [
        True,
        False,
    ]


def test_written_class_conversion_table(tmp_path: Path) -> None:
    """The table begins with the background, is sorted by number, and reads back."""
    path = tmp_path / "class_conversion_table.txt"
    names = {12: "fiducial", 1: "4V94", 2: "1e5"}
    write_class_conversion_table(path, names)
    assert path.read_text() == "0 background\n1 4V94\n2 1e5\n12 fiducial\n"
    assert read_class_conversion_table(path) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({0: "a"}, "expected class numbers of 1 or more, got 0 for a"),
        ({1: "a", 2: "a"}, "expected each class name once, in whatever case, got a, a"),
        ({1: "Ab", 2: "aB"}, "expected each class name once, in whatever case, got Ab, aB"),
        ({1: "7"}, "expected class names that are not numbers themselves, got '7'; rename it"),
        ({1: "a b"}, "expected class names without spaces, quotes and #, got 'a b'"),
    ],
)
def test_class_tables_that_cannot_be_written(tmp_path: Path, names: dict[int, str], message: str) -> None:
    """A table that would not read back is refused."""
    with pytest.raises(ValueError, match=message):
        write_class_conversion_table(tmp_path / "a.txt", names)
    assert list(tmp_path.iterdir()) == []


# --- plain tables of particles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_particles_csv(tmp_path: Path, mark: str) -> None:
    """Columns in any order and case; RELION's angles where there are any."""
    rows = ["Z,x,Y,class,Rot,tilt,psi", "3,1.5,2,gold,,,", "", "6,4,5,1e5,10,20,30"]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(rows).replace(",", mark) + "\n")
    found = read_particles_csv(path)
    assert found.names == ("gold", "1e5")
    assert found.positions.tolist() == [[3, 2, 1.5], [6, 5, 4]]
    assert np.isnan(found.orientations[0]).all()
    expected = Rotation.from_euler("ZYZ", [10, 20, 30], degrees=True).inv().as_matrix()
    np.testing.assert_allclose(found.orientations[1], expected, atol=1e-12)
    path.write_text("class,x,y,z\n")
    assert len(read_particles_csv(path)) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv: expected the columns class, x, y, z and, for orientations, rot, tilt, psi, got none"),
        ("class,x,y\n", "a.csv: expected the columns class, x, y, z and.*, got class, x, y$"),
        ("class,x,y,z,score\n", "a.csv: expected the columns class, x, y, z and.*, got class, x, y, z, score"),
        ("class,x,y,z,rot\n", "a.csv: expected the columns class, x, y, z and.*, got class, x, y, z, rot"),
        ("class,x,y,z\na,1,2,3\na,1,2\n", "a.csv, line 3: expected class, x, y, z, got 'a,1,2'"),
        ("class,x,y,z\na,1,2,here\n", "a.csv, line 2: expected class, x, y, z, got 'a,1,2,here'"),
        ("class,x,y,z\na,1,2,nan\n", "a.csv, line 2: expected class, x, y, z, got 'a,1,2,nan'"),
        ("class,x,y,z\na,1,2,3,4\n", "a.csv, line 2: expected class, x, y, z, got 'a,1,2,3,4'"),
        ("class,x,y,z,rot,tilt,psi\na,1,2,3,4,,\n", "a.csv, line 2: expected class, .*, got 'a,1,2,3,4,,'"),
    ],
)
def test_bad_particles_csv(tmp_path: Path, text: str, message: str) -> None:
    """Columns that are missing or unknown, and rows that are none, are errors with file and line."""
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message):
        read_particles_csv(path)
    with pytest.raises(FileNotFoundError, match="expected a table of particles, found none at .*none.csv"):
        read_particles_csv(tmp_path / "none.csv")
