"""Files and folders that appear under their final name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mgjax.errors import InputError

# What a disk or a limit says that takes no more; tensorstore reports it as text alone.
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk's quota is used up",
    errno.EFBIG: "the file is larger than this system allows",
}


@contextlib.contextmanager
def atomic_path(path: Path, *, folder: bool = False, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary sibling of `path`, to be written as a file, or made as a `folder`; renames it when the body
    ends.

    The sibling keeps the suffix of `path`, is hidden, and is removed when the body fails; a killed process leaves it
    behind, never a part of it under the final name. Where `path` is a link, what it points to is written. An existing
    file is replaced in one step. An existing folder with something in it is refused unless `replace`; it is then moved
    aside, and removed once the new one is there.

    Raises:
        InputError: nothing can be written there, a file or folder is in the way, or the disk is full.
    """
    path = Path(os.path.realpath(path))
    check_writable(path, folder=folder, replace=replace)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        _move(temporary, path)
    except Exception as error:
        if reason := _full(error):
            raise InputError(f"{reason}: {path} was not written") from error
        raise
    finally:
        _remove(temporary)


def check_writable(path: Path, *, folder: bool = False, replace: bool = False) -> None:
    """Finds out early, before minutes of work, what would stop a file, or a `folder`, from getting the name `path`.

    Raises:
        InputError: nothing can be written there, or a file or folder is in the way.
    """
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} is not writable")
    if path.is_dir() and not folder:
        raise InputError(f"{path} is a folder, and a file is to be written")
    if path.is_dir() and any(path.iterdir()) and not replace:
        raise InputError(f"{path} is a folder that is not empty: choose another name")
    if path.exists() and not path.is_dir() and folder:
        raise InputError(f"{path} is a file, and a folder is to be written: choose another name")


@contextlib.contextmanager
def literal_path(path: Path) -> Iterator[Path]:
    """`path`, absolute and without ".."; where a folder on the way to it has characters of a pattern in its name, the
    same by a link.

    For libraries that hand paths to `glob`: Orbax finds nothing of its own in a folder "w [v2]".
    """
    path = Path(path).resolve()
    if not set(str(path)) & set("[]*?\\"):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mgjax-") as folder:
        link = Path(folder) / "link"
        link.symlink_to(path.parent, target_is_directory=True)
        yield link / path.name


def _flush(path: Path) -> None:
    """Hands the bytes to the disk before the name: a rename that outlives a power cut must not outlive its data."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(temporary: Path, path: Path) -> None:
    if not path.is_dir():
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


def _full(error: BaseException | None) -> str | None:
    """The reason, when `error` or one of its causes is that there is no more room."""
    while error is not None:
        for code, reason in _FULL.items():
            if (isinstance(error, OSError) and error.errno == code) or os.strerror(code) in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None
