"""The copy of a run on an object store: what is whole on the disk goes there, and from there to another machine.

The store has the names that the run's folder has. Of a checkpoint the seal is copied last, of a finished stage its
summary: what has one is whole. A machine that begins with an empty disk, as one does that was lent for less, fetches
what is not there and goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import tensorstore as ts

from mgjax.errors import InputError
from mgjax.io import stores
from mgjax.io.files import atomic_path

_SUMMARY, _CHECKPOINTS, _WEIGHTS = "summary.json", "checkpoints", "weights"
_PROFILE = "profile"  # traces, which are the machine's own
_THREADS = 4  # files at a time, each of them whole in memory
_log = logging.getLogger(__name__)


class Copy:
    """The copy at `url`, as of `mgjax.io.stores`, of the run in the folder `out`. One process of a job uses it."""

    def __init__(self, url: str, out: Path):
        self._url, self._store, self._out = url, stores.open_store(url), Path(out).resolve()

    def steps(self, stage: str) -> list[int]:
        """The steps of the checkpoints that are whole there, ascending."""
        found = map(_step_of, self._keys(f"{stage}/{_CHECKPOINTS}/"))
        return sorted(step for step in found if step is not None)

    def put_checkpoint(self, path: Path, seal: Path) -> None:
        """Copies a sealed checkpoint and what the run has told by then, and removes those that are here no more. A
        failure is told and no more: the checkpoint is on the disk."""
        stage = path.parent.parent
        try:
            self._put(_files(path))
            told = (file for file in _files(stage) if file.parent == stage and file.name != _SUMMARY)
            self._put([*told, seal])
            for step in self.steps(stage.name):
                name = path.with_name(f"{step:0{len(path.name)}d}")
                if not name.is_dir():
                    self._remove(f"{self._key(name)}.json")  # first: it says that the rest is whole
                    self._remove(f"{self._key(name)}/")
        except (InputError, OSError, ValueError) as error:
            _log.warning("checkpoint %s is not copied to %s: %s", path, self._url, error)

    def put_results(self, stage: str) -> None:
        """Copies what a finished stage leaves, but for its checkpoints, unless the copy has it.

        Raises:
            InputError: it cannot be written.
        """
        folder = self._out / stage
        summary = folder / _SUMMARY
        if stores.read(self._store, self._key(summary)) == summary.read_bytes():
            return
        within = (file for file in _files(folder) if file.relative_to(folder).parts[0] not in (_CHECKPOINTS, _PROFILE))
        self._put([file for file in within if file != summary])
        self._put([summary])

    def fetch_results(self, stage: str) -> None:
        """Fetches what a finished stage left there, if it is not here.

        Raises:
            InputError: it cannot be read or written.
        """
        folder, there = self._out / stage, self._keys(f"{stage}/")
        if f"{stage}/{_SUMMARY}" not in there or (folder / _SUMMARY).exists():
            return
        self._take_folder(folder / _WEIGHTS, there)
        self._take(self._told(stage, there))

    def fetch_checkpoint(self, stage: str) -> None:
        """Fetches the newest checkpoint, if it is newer than those here, and what the run had told by then.

        Raises:
            InputError: it cannot be read or written.
        """
        folder, steps = self._out / stage / _CHECKPOINTS, self.steps(stage)
        here = [int(seal.stem) for seal in folder.glob("*.json") if seal.stem.isdigit()]
        if not steps or steps[-1] <= max(here, default=-1):
            return
        there = self._keys(f"{stage}/")
        seal = next(key for key in there if _step_of(key) == steps[-1])
        self._take(key for key in self._told(stage, there) if not key.endswith(_SUMMARY))
        self._take_folder(self._out / seal.removesuffix(".json"), there)
        self._take([seal])

    @staticmethod
    def _told(stage: str, there: list[str]) -> list[str]:
        """The keys of what is neither checkpoint nor weights, the summary last."""
        apart = tuple(f"{stage}/{name}/" for name in (_CHECKPOINTS, _WEIGHTS))
        return sorted((key for key in there if not key.startswith(apart)), key=lambda key: key.endswith(_SUMMARY))

    def _put(self, files: Iterable[Path]) -> None:
        """All files, then the last: nothing has come if it has not."""
        *most, last = files
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self._put_file, most))
        self._put_file(last)

    def _put_file(self, file: Path) -> None:
        stores.write(self._store, self._key(file), file.read_bytes())

    def _take_folder(self, folder: Path, there: list[str]) -> None:
        """A folder, which then is here whole or not at all."""
        prefix = f"{self._key(folder)}/"
        keys = [key for key in there if key.startswith(prefix)]
        if not keys:
            raise InputError(f"{self._url} is not whole: it has nothing of {prefix[:-1]}")
        with atomic_path(folder, folder=True, replace=True) as temporary, ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda key: self._take_file(key, temporary / key.removeprefix(prefix)), keys))

    def _take(self, keys: Iterable[str]) -> None:
        for key in keys:
            with atomic_path(self._out / key) as temporary:
                self._take_file(key, temporary)

    def _take_file(self, key: str, path: Path) -> None:
        data = stores.read(self._store, key)
        if data is None:
            raise InputError(f"{self._url} has {key} no more")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def _remove(self, prefix: str) -> None:
        self._store.delete_range(ts.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))).result()

    def _keys(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix`, which ends in a slash."""
        try:
            found = self._store.list(ts.KvStore.KeyRange(prefix, f"{prefix[:-1]}0")).result()  # 0 follows / in ASCII
        except ValueError as error:
            raise InputError(f"{self._url} cannot be read: {error}") from None
        return [str(_inside(key.decode())) for key in sorted(found)]

    def _key(self, path: Path) -> str:
        return path.relative_to(self._out).as_posix()


def _files(folder: Path) -> list[Path]:
    """All files of a folder but those that are being written (`mgjax.io.files.atomic_path`)."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and ".tmp" not in path.suffixes)


def _step_of(key: str) -> int | None:
    """The step of the checkpoint whose seal has this key."""
    name = PurePosixPath(key)
    sealed = len(name.parts) == 3 and name.parts[1] == _CHECKPOINTS and name.suffix == ".json" and name.stem.isdigit()
    return int(name.stem) if sealed else None


def _inside(key: str) -> PurePosixPath:
    """A key as a path below the run's folder: a store is no reason to write elsewhere."""
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"the copy of the run holds {key!r}, which is no name within a run")
    return path
