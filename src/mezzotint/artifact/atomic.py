"""A folder that appears whole or not at all.

Everything is written to a sibling, `.NAME.partial-PID`, flushed to the disk, and moved into place by one rename. To
replace an old folder the two are *exchanged* by one system call (renameat2 with RENAME_EXCHANGE, Linux) and the old one
is removed after that, so a process killed at any moment leaves the old folder or the new one, never neither. Where that
call is not to be had (other systems, some network disks) the old folder is moved aside first; a process killed in the
instant between the two renames leaves it as `.NAME.old-PID`, complete, to be renamed by hand. Exceptions are rolled
back everywhere.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mezzotint.errors import OutputError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new, empty folder to write to; it takes the place of `folder` when the block ends without an exception."""
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise OutputError(f"{folder}: cannot write there: {error.strerror}; choose another folder") from error
    try:
        yield partial
        flush(partial)
        replace(partial, folder)
    except OSError as error:
        raise OutputError(f"{folder}: writing failed: {error.strerror or error}; nothing there was changed") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flush(folder: Path) -> None:
    """Asks the system to put every file and folder below `folder` on the disk; all get the usual permissions.

    safetensors makes its files readable by their owner only; a folder that is meant to be shared should not depend on
    it.
    """
    mode = folder.stat().st_mode & 0o666
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            path.chmod(mode)
            _fsync(path)
        _fsync(Path(parent))


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(new: Path, folder: Path) -> None:
    """Moves `new` to `folder`. An old `folder` ends up where `new` was, or is removed."""
    if not folder.exists():
        new.rename(folder)
    elif not exchange(new, folder):
        _replace_in_two_steps(new, folder)
    _fsync(folder.parent)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two paths by one system call; False where the system has none."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _replace_in_two_steps(new: Path, folder: Path) -> None:
    aside = folder.parent / f".{folder.name}.old-{os.getpid()}"
    folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
