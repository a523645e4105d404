"""Writing so that a file is either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

#: What the system says where a disk is full, and where a path may not be written.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; flush it and move it there when the body ends well.

    Parameters
    ----------
    path
        The file to be written. Its folder must exist.
    """
    final = Path(path)
    # The name is known before the file is there: a signal at any moment leaves no file behind.
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(6)}.part")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(final)
    except OSError as error:
        # A full disk does not say which file it was.
        if error.errno is not None and error.filename is None:
            error.filename = str(final)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Run the body while no other process does so for `path`, by a hidden lock file beside it.

    Where the system or the disk knows no locks, the body runs all the same.
    """
    path = Path(path)
    lock = path.parent / f".{path.name}.lock"
    while True:
        with lock.open("a") as stream:
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                mine = os.path.samestat(os.fstat(stream.fileno()), lock.stat())
            except FileNotFoundError:
                mine = False
            if mine:
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
        # Whoever had the lock before has removed its file: try again with a new one.


def flush_folder(folder: Path) -> None:
    """Flush all files of a folder to the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())


def move_into_place(made: Path, final: Path, *, aside: Path) -> None:
    """Move a file or folder that is complete, and flushed, to its place; what is there is moved aside first."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        aside.parent.mkdir(parents=True, exist_ok=True)
        final.replace(aside)
    made.replace(final)


#: Seconds after which nobody is writing a small file any more; other processes may be at work in the same folder.
ABANDONED = 300.0


def remove_parts(folder: Path, *, pattern: str = ".*.part", older_than: float = 0.0) -> None:
    """Remove temporary files that a killed run left in a folder (not in its subfolders).

    Parameters
    ----------
    folder
        The folder.
    pattern
        Pattern of the temporary names.
    older_than
        Seconds. Younger files are kept: another run may be writing them.
    """
    for left in folder.glob(pattern):
        try:
            if time.time() - left.lstat().st_mtime < older_than:
                continue
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        except FileNotFoundError:
            # Another run has just renamed or removed it.
            continue


#: What to do where something exists that would be overwritten: refuse, move it aside, or replace it.
EXISTING = ("refuse", "aside", "replace")


def make_way(path: str | Path, existing: str) -> None:
    """Deal with what is at a path that is to be written.

    Parameters
    ----------
    path
        A file, or a folder that is written as one thing.
    existing
        One of `EXISTING`. `"aside"` renames what is there to the same name with `.1`, `.2`, ... at its end.

    Raises
    ------
    FileExistsError
        For `"refuse"`, if there is anything.
    """
    path = Path(path)
    if existing == "replace" or not (path.exists() or path.is_symlink()):
        return
    if existing == "refuse":
        raise FileExistsError(
            f"expected a new name, found {path}, which this call did not write; choose another name, or set "
            '`existing="aside"`'
        )
    number = next(n for n in count(1) if not path.with_name(f"{path.name}.{n}").exists())
    path.rename(path.with_name(f"{path.name}.{number}"))


def make_writable_folder(folder: Path) -> None:
    """Make a folder where it is missing and try to write in it; raise an `OSError` where that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes to a file so that it is either whole or not there."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write text, in UTF-8, to a file so that it is either whole or not there."""
    write_bytes(path, text.encode())
