"""Object stores and folders as key-value stores (TensorStore), one way for both.

Paths with a scheme go to TensorStore as they are (`gs://bucket/set`, `s3://bucket/set`), and so does a JSON
specification of one of its key-value stores, for endpoints and credentials of one's own; others are local folders.
"""

from __future__ import annotations

import json
import os

import tensorstore as ts

from mgjax.errors import InputError


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path is a folder of this machine."""
    return "://" not in str(path) and not str(path).startswith("{")


def open_store(path: str | os.PathLike) -> ts.KvStore:
    """The store of everything below `path`.

    Raises:
        InputError: there is no such kind of store.
    """
    path = str(path)
    try:
        if path.startswith("{"):
            spec = json.loads(path)
            return ts.KvStore.open({**spec, "path": str(spec.get("path", "")).rstrip("/") + "/"}).result()
        if "://" in path:
            return ts.KvStore.open(path.rstrip("/") + "/").result()
        return ts.KvStore.open({"driver": "file", "path": os.path.abspath(path) + "/"}).result()
    except ValueError as error:
        raise InputError(f"{path} cannot be opened: {error}") from None


def read(store: ts.KvStore, key: str, part: slice | None = None) -> bytes | None:
    """The bytes of a key, or None when it is missing or shorter than `part`."""
    try:
        answer = store.read(key, byte_range=part).result()
    except ValueError as error:
        if "OUT_OF_RANGE" in str(error) or "out of range" in str(error).lower():
            return None
        raise InputError(f"{store.url}{key} cannot be read: {error}") from None
    return answer.value if answer.state == "value" else None


def write(store: ts.KvStore, key: str, data: bytes) -> None:
    """Puts the whole value of a key, or none of it."""
    try:
        store.write(key, data).result()
    except ValueError as error:
        raise InputError(f"{store.url}{key} cannot be written: {error}") from None
