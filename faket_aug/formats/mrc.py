"""MRC files: volumes `(z, y, x)`, tilt stacks `(tilt, y, x)`, voxel sizes in Å."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
import numpy.typing as npt
import torch
from mrcfile.mrcinterpreter import MrcInterpreter
from torch import Tensor

from faket_aug._checks import FileFormatError, check_finite, check_ndim, check_positive
from faket_aug.formats._atomic import atomic_path

#: IMOD's stamp in a header, and its flags for signed bytes and for bytes that hold two values.
IMOD_STAMP = 1146047817
_SIGNED, _PACKED = 1, 16
_HEADER_BYTES = 1024
#: Bytes of a value, by mode.
_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 6: 2, 12: 2}
#: What is unpacked of a compressed file: gzip's best is 1032 bytes from one; a file of zeros may be smaller still.
_MOST_PACKED, _LEAST_UNPACKED = 1100, 2**28
#: Share of the size along x that others may differ by: headers are rounded.
_SAME_SIZE = 0.01


def read_mrc(
    path: str | Path, *, rows: slice | None = None, stack: bool = False, memory_map: bool = False
) -> tuple[Tensor, float]:
    """Read an MRC file (`.mrc`, `.st`, `.mrcs`, `.map`; plain, or compressed by gzip or bzip2).

    Parameters
    ----------
    path
        The file. It is opened strictly first; what only mrcfile's permissive mode reads gives a warning that says
        what is wrong with it.
    rows
        Which sections, along the first axis, to read; all by default. The others stay on disk.
    stack
        Whether the sections are images of their own (a tilt-series), so that the header's size along z means nothing,
        and a single image is a stack of one.
    memory_map
        Leave the data on disk, for files that are larger than memory: the tensor reads what is looked at. Half
        precision stays as it is, and values are not checked for NaN here. Changes of the tensor do not reach the file.

    Returns
    -------
    The data, `(z, y, x)`, as stored (integers stay integers, half precision becomes float32 unless mapped; bytes are
    those that IMOD means, where its stamp or the header's maximum says so), and the voxel size in Å, 0 where the file
    holds none.

    Raises
    ------
    FileFormatError
        If it is not an MRC file, is truncated, has a wrong header or voxels of unequal sides, or holds NaN or infinite
        values; with `memory_map` also if it is compressed, or not of plain floating-point numbers.
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected an MRC file, found none at {path}")
    header = _header(path)
    _check_header(path, header)
    if memory_map:
        mapped, sizes = _map(path, rows)
        return torch.from_numpy(mapped), _side(sizes[: 2 if stack else 3], path)
    # One image is a file of two axes: a stack of one.
    one = stack and header.shape[0] == 1
    stored, sizes = _open(path, header, None if one else rows)
    if one and stored.ndim == 2:
        stored = stored[None][rows or slice(None)]
    if stored.ndim != 3:
        raise FileFormatError(f"{path}: expected an MRC file of three axes, got shape {stored.shape}")
    data = torch.from_numpy(_native(_with_sign(stored, header), path))
    check_finite(data, str(path))
    return data, _side(sizes[: 2 if stack else 3], path)


class _Header(NamedTuple):
    """What is looked at before the data are: `shape` (z, y, x), and IMOD's stamp and flags."""

    shape: tuple[int, int, int]
    mode: int
    extended: int
    low: float
    high: float
    stamp: int
    flags: int

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * _BYTES.get(self.mode, 1)


def _header(path: Path) -> _Header:
    """Read the header alone, in whichever byte order its mode makes sense."""
    try:
        with _stream(path) as stream:
            content = stream.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(f"{path}: expected a whole compressed file, got a damaged one ({error})") from error
    if len(content) < _HEADER_BYTES:
        raise FileFormatError(
            f"{path}: expected an MRC file, got one that cannot be read ({len(content)} bytes, less than a header)"
        )
    order = "<" if 0 <= struct.unpack_from("<i", content, 12)[0] < 2**15 else ">"
    x, y, z, mode = struct.unpack_from(f"{order}4i", content, 0)
    low, high = struct.unpack_from(f"{order}2f", content, 76)
    (extended,) = struct.unpack_from(f"{order}i", content, 92)
    stamp, flags = struct.unpack_from(f"{order}2i", content, 152)
    return _Header((z, y, x), mode, extended, low, high, stamp, flags)


def _is_compressed(path: Path) -> str:
    """Tell by its first bytes how a file is compressed, as mrcfile does: `gzip`, `bzip2` or not at all."""
    with path.open("rb") as stream:
        begin = stream.read(212)
    if begin[208:212] == b"MAP ":
        return ""
    return "gzip" if begin[:2] == b"\x1f\x8b" else "bzip2" if begin[:3] == b"BZh" else ""


def _stream(path: Path) -> Any:
    kind = _is_compressed(path)
    return gzip.open(path) if kind == "gzip" else bz2.open(path) if kind == "bzip2" else path.open("rb")


def _check_header(path: Path, header: _Header) -> None:
    """Raise a `FileFormatError` where a header asks for nothing, or for far more than the file can hold."""
    if min(header.shape) < 1 or header.extended < 0:
        raise FileFormatError(
            f"{path}: expected an MRC file with voxels, got a header of {header.shape} (z, y, x); write it again"
        )
    if header.stamp == IMOD_STAMP and header.mode == 0 and header.flags & _PACKED:
        raise FileFormatError(f"{path}: expected bytes, got IMOD's packed ones of 4 bits; rewrite it with newstack")
    size = path.stat().st_size
    most = max(_LEAST_UNPACKED, _MOST_PACKED * size)
    if _is_compressed(path) and header.data_bytes + header.extended > most:
        raise FileFormatError(
            f"{path}: expected at most {most >> 20} MiB from {size} compressed bytes, got a header of {header.shape} "
            "values; unpack it first if that is right"
        )


def _map(path: Path, rows: slice | None) -> tuple[npt.NDArray[Any], list[float]]:
    """Map a file's data into memory, to be read when it is looked at, and never written."""
    try:
        with mrcfile.mmap(path, mode="r") as file:
            _check_axes(path, file)
            dtype, shape, offset = file.data.dtype, file.data.shape, file.data.offset
            sizes = _voxel_sizes(file)
    except FileFormatError:
        raise
    except (ValueError, OSError) as error:
        raise FileFormatError(
            f"{path}: expected a whole, uncompressed MRC file for `memory_map`, got another ({error}); unpack it, or "
            "read it without"
        ) from error
    if len(shape) != 3 or dtype.kind != "f" or not dtype.isnative:
        raise FileFormatError(
            f"{path}: expected three axes of floating-point numbers in this machine's byte order for `memory_map`, got "
            f"{dtype.str} of shape {shape}; convert it, or read it without"
        )
    # Mode "c": the tensor may be written to, the file is not.
    return np.memmap(path, dtype=dtype, mode="c", offset=offset, shape=shape)[rows or slice(None)], sizes


#: What mrcfile and mmap say of a file that is shorter than its header says.
_TRUNCATED = ("data block", "mmap length is greater")


def _open(path: Path, header: _Header, rows: slice | None) -> tuple[npt.NDArray[Any], list[float]]:
    keep = rows or slice(None)
    try:
        with _opened(path, header) as file:
            _check_axes(path, file)
            return np.array(file.data[keep]), _voxel_sizes(file)
    except FileFormatError:
        raise
    except (EOFError, zlib.error) as error:
        raise FileFormatError(f"{path}: expected a whole compressed file, got a truncated one ({error})") from error
    except (ValueError, OSError, OverflowError) as error:
        strict_error = error
    there = max(path.stat().st_size - _HEADER_BYTES - header.extended, 0)
    missing = not _is_compressed(path) and header.data_bytes > there
    if any(words in str(strict_error) for words in _TRUNCATED):
        # Less data than the header says: even the permissive mode could only make something up.
        raise FileFormatError(
            f"{path}: expected a whole MRC file of {header.shape} values, got a truncated one of {there} bytes "
            f"of data ({strict_error}); copy it again"
        )
    if missing:
        raise FileFormatError(
            f"{path}: expected a whole MRC file with a valid header, got: {strict_error}; and {there} of the "
            f"{header.data_bytes} bytes of data that the header asks for"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with _opened(path, header, permissive=True) as file:
                data = None if file.data is None else np.array(file.data[keep])
                sizes = [] if data is None else _voxel_sizes(file)
        except Exception as error:
            raise FileFormatError(f"{path}: expected an MRC file, got one that cannot be read ({error})") from error
    found = "; ".join(dict.fromkeys([str(strict_error), *(str(w.message) for w in caught)]))
    if data is None or data.size == 0:
        raise FileFormatError(f"{path}: expected a whole MRC file with a valid header, got: {found}")
    warnings.warn(f"{path}: not quite an MRC file, read all the same: {found}", stacklevel=3)
    return data, sizes


def _opened(path: Path, header: _Header, *, permissive: bool = False) -> Any:
    """Open a file with mrcfile; of a compressed one no more is unpacked than its header says."""
    if not _is_compressed(path):
        # Sizes of a damaged header overflow where mrcfile multiplies them, which its own checks then notice.
        with np.errstate(all="ignore"):
            return mrcfile.open(path, mode="r", permissive=True) if permissive else mrcfile.mmap(path, mode="r")
    with _stream(path) as stream:
        content = stream.read(_HEADER_BYTES + header.extended + header.data_bytes)
        # Reading on checks the sum at the end.
        longer = bool(stream.read(1))
    if longer and not permissive:
        warnings.warn(f"{path}: longer than its header says; the rest is left out", stacklevel=4)
    return MrcInterpreter(iostream=io.BytesIO(content), permissive=permissive)


def _with_sign(stored: npt.NDArray[Any], header: _Header) -> npt.NDArray[Any]:
    """Read bytes (mode 0) as the program that wrote them meant them.

    The MRC format of 2014 has signed bytes. IMOD says by its stamp and a flag which it wrote: unsigned ones (all before
    IMOD 4.2.23), or signed ones that stand for 0 to 255 less 128. Files without the stamp whose header says that the
    maximum is above 127 hold unsigned ones. A minimum below 0 is that of bytes that another program has written since.
    """
    if header.mode != 0 or stored.dtype != np.int8:
        return stored
    if header.stamp == IMOD_STAMP and header.flags & _SIGNED:
        negative = header.low < 0 or bool((stored < 0).any())
        # The upper bit turned over is the addition of 128.
        return (stored.view(np.uint8) ^ 128) if negative else stored
    unsigned = header.stamp == IMOD_STAMP or header.high > 127
    return stored.view(np.uint8) if unsigned and not header.low < 0 else stored


def read_mrc_shape(path: str | Path) -> tuple[int, int, int]:
    """Read the shape `(z, y, x)` of an MRC file from its header alone."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected an MRC file, found none at {path}")
    header = _header(path)
    _check_header(path, header)
    return header.shape


def _check_axes(path: Path, file: Any) -> None:
    order = (int(file.header.mapc), int(file.header.mapr), int(file.header.maps))
    # Old programs leave zeros.
    if order not in ((1, 2, 3), (0, 0, 0)):
        raise FileFormatError(
            f"{path}: expected columns, rows and sections along x, y and z (MAPC, MAPR, MAPS 1, 2, 3), got {order}; "
            "rewrite it in that order"
        )


def _voxel_sizes(file: Any) -> list[float]:
    """Return the sizes along x, y and z; 0, which asks for one, where the header holds no number that can be one."""
    sizes = [float(file.voxel_size[axis]) for axis in "xyz"]
    return [size if np.isfinite(size) and size > 0 else 0.0 for size in sizes]


def _side(sizes: list[float], path: Path) -> float:
    """Return the one side of all voxels; axes whose size is not known are taken to have that of x."""
    if sizes[0] > 0 and any(size > 0 and abs(size - sizes[0]) > _SAME_SIZE * sizes[0] for size in sizes):
        raise FileFormatError(
            f"{path}: expected voxels of equal sides, got {' x '.join(f'{size:g}' for size in sizes)} Å (x, y"
            f"{', z' * (len(sizes) > 2)}); correct the header, or resample it"
        )
    return sizes[0]


def _native(stored: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """Turn what torch does not take (foreign byte order, half precision, unsigned integers) into what it does."""
    if stored.dtype.kind == "c":
        raise FileFormatError(f"{path}: expected real numbers, got complex ones ({stored.dtype})")
    if stored.dtype.kind == "f":
        return stored.astype(np.float32, copy=False)
    if stored.dtype.kind == "u" and stored.dtype.itemsize > 1:
        return stored.astype(np.int32)
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def write_mrc(path: str | Path, data: Tensor, *, voxel_size: float) -> None:
    """Write an MRC file under a temporary name, flush it and rename it.

    Parameters
    ----------
    path
        The file; an existing one is replaced when the new one is whole.
    data
        `(z, y, x)` or `(tilt, y, x)`; float16 stays (mode 12), other floating point becomes float32, integers int8 or
        int16 as they fit.
    voxel_size
        Å.
    """
    check_ndim("data", data, "z y x")
    check_positive("voxel_size", voxel_size)
    values = (data.float() if data.dtype == torch.bfloat16 else data).detach().cpu().numpy()
    with atomic_path(path) as temporary:
        file = mrcfile.new(temporary, overwrite=True)
        try:
            file.set_data(_storable(values))
            file.voxel_size = voxel_size
            file.flush()
        finally:
            # On a full disk closing fails once more; the first error is the one to be seen.
            with contextlib.suppress(OSError):
                file.close()


def _storable(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind == "f":
        return values if values.dtype == np.float16 else values.astype(np.float32)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    for dtype in (np.int8, np.int16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype)
    raise ValueError(f"expected integers that fit 16 bits in an MRC file, got {low} to {high}")
