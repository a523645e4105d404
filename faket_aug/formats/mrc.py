"""MRC files: volumes `(z, y, x)`, tilt stacks `(tilt, y, x)`, voxel sizes in Å."""

from __future__ import annotations

import contextlib
import warnings
import zlib
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._checks import FileFormatError, check_finite, check_ndim, check_positive
from faket_aug.formats._atomic import atomic_path

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
        Whether the sections are images of their own (a tilt-series), so that the header's size along z means nothing.
    memory_map
        Leave the data on disk, for files that are larger than memory: the tensor reads what is looked at. Half
        precision stays as it is, and values are not checked for NaN here. Changes of the tensor do not reach the file.

    Returns
    -------
    The data, `(z, y, x)`, as stored (integers stay integers, half precision becomes float32 unless mapped), and the
    voxel size in Å, 0 where the file holds none.

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
    if memory_map:
        mapped, sizes = _map(path, rows)
        return torch.from_numpy(mapped), _side(sizes[: 2 if stack else 3], path)
    stored, sizes = _open(path, rows)
    if stored.ndim != 3:
        raise FileFormatError(f"{path}: expected an MRC file of three axes, got shape {stored.shape}")
    data = torch.from_numpy(_native(stored, path))
    check_finite(data, str(path))
    return data, _side(sizes[: 2 if stack else 3], path)


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


def _open(path: Path, rows: slice | None) -> tuple[npt.NDArray[Any], list[float]]:
    opener: Any = mrcfile.open if path.suffix in (".gz", ".bz2") else mrcfile.mmap
    try:
        with opener(path, mode="r") as file:
            _check_axes(path, file)
            return np.array(file.data[rows or slice(None)]), _voxel_sizes(file)
    except FileFormatError:
        raise
    except (EOFError, zlib.error) as error:
        raise FileFormatError(f"{path}: expected a whole compressed file, got a truncated one ({error})") from error
    except (ValueError, OSError) as error:
        strict_error = error
    if any(words in str(strict_error) for words in _TRUNCATED):
        # Less data than the header says: even the permissive mode could only make something up.
        there = max(path.stat().st_size - 1024, 0)
        raise FileFormatError(
            f"{path}: expected a whole MRC file of {read_mrc_shape(path)} values, got a truncated one of {there} bytes "
            f"of data ({strict_error}); copy it again"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with mrcfile.open(path, mode="r", permissive=True) as file:
                data = None if file.data is None else np.array(file.data[rows or slice(None)])
                sizes = [] if data is None else _voxel_sizes(file)
        except Exception as error:
            raise FileFormatError(f"{path}: expected an MRC file, got one that cannot be read ({error})") from error
    found = "; ".join(dict.fromkeys([str(strict_error), *(str(w.message) for w in caught)]))
    if data is None or data.size == 0:
        raise FileFormatError(f"{path}: expected a whole MRC file with a valid header, got: {found}")
    warnings.warn(f"{path}: not quite an MRC file, read all the same: {found}", stacklevel=3)
    return data, sizes


def read_mrc_shape(path: str | Path) -> tuple[int, int, int]:
    """Read the shape `(z, y, x)` of an MRC file from its header alone."""
    try:
        with warnings.catch_warnings():
            # `read_mrc` says what is wrong with a header.
            warnings.simplefilter("ignore")
            with mrcfile.open(path, mode="r", permissive=True, header_only=True) as file:
                header = file.header
                return int(header.nz), int(header.ny), int(header.nx)
    except Exception as error:
        raise FileFormatError(f"{path}: expected an MRC file, got one that cannot be read ({error})") from error


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
