"""Where clips live: shards of whole clips, on a local disk or an object store.

    DIR/schema.toml
    DIR/shards/NAME.clips     encoded clips (`codec.py`), one after another
    DIR/shards/NAME.json      their index: name, frames, offset, bytes, sha256 and info of each, and dropped clips

A clip becomes a shard of its own the moment it is finished, so that a killed writer loses only the clip it was on;
when enough have gathered they are merged into one shard. Every file is written whole or not at all (tensorstore's
file driver writes under another name, syncs and renames; object stores put whole objects), its index last: what an
index names is there. A clip is found by name in the indexes and read by one range request; no index is ever rebuilt.
A clip whose bytes do not fit their checksum is named by `DamagedClip`, and an index that cannot be read by
`Dataset.damaged`; all other clips stay usable. Appending is adding shards; one process at a time may write.

Paths are folders or object stores, as of `mgjax.io.stores`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import tensorstore as ts

from mgjax.data.store import codec, schema
from mgjax.data.store.schema import Schema
from mgjax.data.types import Clip
from mgjax.errors import InputError
from mgjax.io import stores
from mgjax.io.stores import is_local, open_store

VERSION = 1
SHARD_BYTES = 64 << 20
_SHARDS = ts.KvStore.KeyRange("shards/", "shards0")  # 0 follows / in ASCII


class DamagedClip(InputError):
    """The bytes of a clip are missing or not those that were written; the message names the clip and its shard."""


class Entry(NamedTuple):
    """One clip of the index. A clip that the filters dropped has no bytes: it counts, and is not recorded again."""

    name: str
    frames: int
    shard: str
    offset: int
    bytes: int
    sha256: str
    info: Mapping[str, Any]  # where it comes from and what the filters counted

    @property
    def kept(self) -> bool:
        return self.bytes > 0


def clip_name(text: str) -> str:
    """`text` as a clip's name: letters, digits, dot, minus and underscore; what had to change is made unique again."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", text).strip(".") or "_"
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _shard_names(store: ts.KvStore) -> list[str]:
    keys = store.list(_SHARDS).result()
    return sorted(key.decode()[len("shards/") : -len(".json")] for key in keys if key.endswith(b".json"))


def _read_index(shard: str, data: bytes) -> list[Entry]:
    """The entries of a shard; ValueError says what is wrong with its index."""
    index = json.loads(data)
    if not isinstance(index, dict) or index.get("version") != VERSION:
        raise ValueError(f"it is not of version {VERSION}")
    try:
        return [
            Entry(str(c["name"]), int(c["frames"]), shard, int(c["offset"]), int(c["bytes"]), c["sha256"], c["info"])
            for c in index["clips"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"an entry is not whole ({error})") from None


def _write_shard(store: ts.KvStore, shard: str, data: bytes, entries: list[Entry]) -> None:
    index = {"version": VERSION, "clips": [{k: v for k, v in e._asdict().items() if k != "shard"} for e in entries]}
    if data:
        stores.write(store, f"shards/{shard}.clips", data)
    stores.write(store, f"shards/{shard}.json", json.dumps(index, indent=1).encode())


def _load_entries(store: ts.KvStore) -> tuple[dict[str, Entry], list[str], list[str]]:
    """Entries by clip name, what is damaged, and the shards that a merge left behind (their clips are elsewhere)."""
    shards, damaged = {}, []
    names = _shard_names(store)
    for name, future in [(name, store.read(f"shards/{name}.json")) for name in names]:
        try:
            shards[name] = _read_index(name, future.result().value)
        except (ValueError, KeyError) as error:
            damaged.append(f"shard {name}: its index cannot be read: {error}")
    entries: dict[str, Entry] = {}
    leftovers = []
    for name, found in sorted(shards.items(), key=lambda shard: -len(shard[1])):
        if all(entry.name in entries for entry in found):
            leftovers.append(name)
        for entry in found:
            entries.setdefault(entry.name, entry)
    return entries, damaged, leftovers


def store_clip(path: str | os.PathLike, name: str, data: bytes, num_frames: int, info: Mapping[str, Any]) -> Entry:
    """Stores an encoded clip as a shard of its own, for the `Writer` that holds the dataset at `path` to `adopt`.

    Any process of that writer's may call it. Empty `data` notes that the clip was dropped.
    """
    if name != clip_name(name):
        raise ValueError(f"clip name {name!r} has characters that a name cannot have")
    entry = Entry(name, num_frames, _single(name), 0, len(data), hashlib.sha256(data).hexdigest(), dict(info))
    _write_shard(open_store(path), entry.shard, data, [entry])
    return entry


class Dataset:
    """A folder of clips to read: random access, picklable, safe to share between threads.

    Attributes:
      schema: what the columns and numbers mean.
      clips: entries of the kept clips, sorted by name.
      dropped: entries of the clips that the filters dropped.
      damaged: one sentence for each index that cannot be read; its clips are missing.

    Raises:
      InputError: there is no dataset at `path`, or its schema is wrong.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = str(path)
        self._store = open_store(path)
        text = stores.read(self._store, schema.FILE)
        if text is None:
            raise InputError(f"{path} is no dataset: it has no {schema.FILE}")
        self.schema = schema.loads(text.decode(errors="replace"), f"{path}/{schema.FILE}")
        entries, damaged, _ = _load_entries(self._store)
        ordered = [entries[name] for name in sorted(entries)]
        self.clips = tuple(entry for entry in ordered if entry.kept)
        self.dropped = tuple(entry for entry in ordered if not entry.kept)
        self.damaged = tuple(damaged)

    def __len__(self) -> int:
        return len(self.clips)

    def read_bytes(self, index: int) -> bytes:
        """The encoded clip; DamagedClip when it is not what was written."""
        entry = self.clips[index]
        data = self._read_entry(entry)
        if data is None:  # a writer may have merged the shard since this dataset was opened
            entry = _load_entries(self._store)[0].get(entry.name, entry)
            data = self._read_entry(entry)
        if data is None:
            raise DamagedClip(f"{self.path}: shard {entry.shard} is missing or cut off at clip {entry.name}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DamagedClip(f"{self.path}: clip {entry.name} in shard {entry.shard} does not fit its checksum")
        return data

    def _read_entry(self, entry: Entry) -> bytes | None:
        return stores.read(self._store, f"shards/{entry.shard}.clips", slice(entry.offset, entry.offset + entry.bytes))

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Clip:
        """Frames [start, stop) of a clip."""
        self._check_pictures()
        return codec.decode(self.read_bytes(index), start, stop)

    def read_rows(self, index: int) -> Clip:
        """A clip without its pictures (`frames` is [f, 0, 0, 3])."""
        self._check_pictures()
        return codec.decode_rows(self.read_bytes(index))

    def _check_pictures(self) -> None:
        if self.schema.encoded is not None:
            raise InputError(f"{self.path} holds the latents that `mgjax data encode` made, not pictures")


class Writer:
    """Adds clips to the dataset at `path`, which it makes if there is none; also a context manager.

    Raises:
      InputError: a dataset with another schema is there, or another process is writing.
    """

    def __init__(self, path: str | os.PathLike, new_schema: Schema, shard_bytes: int = SHARD_BYTES):
        self.path = str(path)
        self._shard_bytes = shard_bytes
        self._lock = _lock(path) if is_local(path) else None
        try:
            self._store = open_store(path)
            self._fit_schema(new_schema)
            self.entries, _, leftovers = _load_entries(self._store)
            for shard in [*leftovers, *self._orphans()]:
                self._remove(shard)
        except BaseException:
            self._unlock()
            raise
        self._single = [e for e in self.entries.values() if e.shard == _single(e.name)]

    def add(self, name: str, data: bytes, num_frames: int, info: Mapping[str, Any]) -> None:
        """Stores an encoded clip; empty `data` notes that the clip was dropped. It is safe once this returns."""
        if name in self.entries:
            raise ValueError(f"clip name {name!r} is taken")
        self.adopt(store_clip(self.path, name, data, num_frames, info))

    def adopt(self, entry: Entry) -> None:
        """Takes in a clip that `store_clip` has stored."""
        self.entries[entry.name] = entry
        self._single.append(entry)
        if sum(e.bytes for e in self._single) >= self._shard_bytes:
            self._merge()

    def discard(self, names: Set[str]) -> None:
        """Takes clips out of the index, so that others may have their names; merged shards keep the bytes."""
        shards = {self.entries[name].shard for name in names}
        for shard in sorted(shards):
            rest = [e for e in self.entries.values() if e.shard == shard and e.name not in names]
            if rest:
                _write_shard(self._store, shard, b"", rest)
            else:
                self._remove(shard)
        self.entries = {name: entry for name, entry in self.entries.items() if name not in names}
        self._single = [entry for entry in self._single if entry.name not in names]

    def close(self) -> None:
        """Merges what is left over and lets go of the folder."""
        self._merge()
        self._unlock()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self._unlock()

    def _fit_schema(self, new: Schema) -> None:
        """Writes the schema of a new dataset; InputError when there is one that does not fit."""
        text = stores.read(self._store, schema.FILE)
        if text is None:
            stores.write(self._store, schema.FILE, schema.dumps(new).encode())
            return
        old = schema.loads(text.decode(errors="replace"), f"{self.path}/{schema.FILE}")
        if (difference := schema.difference(old, new)) is not None:
            raise InputError(f"{self.path} holds other recordings: {difference}")

    def _merge(self) -> None:
        """Makes one shard of all that hold a single clip. Killed between any two lines it leaves no clip unreadable."""
        if len(self._single) < 2:
            return
        parts, merged, offset = [], [], 0
        singles = sorted(self._single, key=lambda e: e.name)
        shard = f"{singles[0].name}+{len(singles) - 1}"
        while any(entry.shard == shard for entry in self.entries.values()):  # of clips that were discarded since
            shard += "+"
        for entry in singles:
            data = stores.read(self._store, f"shards/{entry.shard}.clips") if entry.kept else b""
            if data is None or hashlib.sha256(data).hexdigest() != entry.sha256:
                continue  # stays where it is, damaged and named when it is read
            parts.append(data)
            merged.append(entry._replace(shard=shard, offset=offset))
            offset += len(data)
        _write_shard(self._store, shard, b"".join(parts), merged)
        for entry in merged:
            self._remove(_single(entry.name))
        self.entries.update({entry.name: entry for entry in merged})
        self._single = []

    def _orphans(self) -> list[str]:
        """Shards without an index: of a clip that was not finished, or of a merge whose clips are still there."""
        keys = {key.decode() for key in self._store.list(_SHARDS).result()}
        names = [key[len("shards/") : -len(".clips")] for key in keys if key.endswith(".clips")]
        orphans = [name for name in names if f"shards/{name}.json" not in keys]
        return [name for name in orphans if "+" not in name or name.rpartition("+")[0] in self.entries]

    def _remove(self, shard: str) -> None:
        self._store.write(f"shards/{shard}.json", None).result()
        self._store.write(f"shards/{shard}.clips", None).result()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _single(name: str) -> str:
    """Shard name of a clip that has not been merged."""
    return f"one-{name}"


def _lock(path: str | os.PathLike) -> int:
    """Keeps a second writer out of a local folder; the kernel lets go when this process ends in whatever way."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(Path(path) / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InputError(f"another process is writing to {path}") from None
    return descriptor
