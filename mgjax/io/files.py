"""Files and folders that appear under their final name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from mgjax.errors import InputError

_FULL = "No space left on device"


@contextlib.contextmanager
def atomic_path(path: Path, *, replace_folder: bool = False) -> Iterator[Path]:
    """Yields a temporary sibling of `path`, to be written as a file or made as a folder; renames it when the body ends.

    The sibling keeps the suffix of `path`, is hidden, and is removed when the body fails; a killed process leaves it
    behind, never a part of it under the final name. An existing file is replaced in one step. An existing folder with
    something in it is refused unless `replace_folder`; it is then moved aside, and removed once the new one is there.

    Raises:
        InputError: nothing can be written there, a folder is in the way, or the disk is full.
    """
    path = Path(os.path.abspath(path))
    check_writable(path, replace_folder=replace_folder)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        _move(temporary, path, replace_folder)
    except Exception as error:
        if _disk_full(error):
            raise InputError(f"the disk is full: {path} was not written") from error
        raise
    finally:
        _remove(temporary)


def check_writable(path: Path, *, replace_folder: bool = False) -> None:
    """Finds out early, before minutes of work, what would stop a file or folder from getting the name `path`.

    Raises:
        InputError: nothing can be written there, or a folder is in the way.
    """
    path = Path(os.path.abspath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} is not writable")
    if path.is_dir() and any(path.iterdir()) and not replace_folder:
        raise InputError(f"{path} is a folder that is not empty: choose another name")


def _flush(path: Path) -> None:
    """Hands the bytes to the disk before the name: a rename that outlives a power cut must not outlive its data."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(temporary: Path, path: Path, replace_folder: bool) -> None:
    if path.is_dir() and temporary.is_file():
        raise InputError(f"{path} is a folder, and a file was to be written")
    if not (path.is_dir() and replace_folder):
        os.replace(temporary, path)
        return
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _disk_full(error: BaseException | None) -> bool:
    """True when `error` or one of its causes says so; tensorstore reports it as text in a ValueError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if _FULL in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
