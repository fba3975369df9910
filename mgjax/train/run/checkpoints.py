"""Checkpoints of a run: Orbax writes them in the background, a seal of our own says which of them are whole.

A checkpoint is a folder `NNNNNNNN` and, beside it, its seal `NNNNNNNN.json`: the SHA-256 of every file and what else
the run must remember (the data feed's position, the config's fingerprint). The seal appears in one step once the folder
is whole. Orbax loads a flipped byte silently and lists a truncated step as its latest, so a folder without a seal
that verifies counts for nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mgjax.errors import InputError
from mgjax.io.files import atomic_path, literal_path
from mgjax.train.run.copy import Copy

_DIGITS = 8
_BLOCK = 1 << 22
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one folder, which all processes of a job share. Every process makes the same calls; what is
    sealed goes to the run's `copy`, if it has one."""

    def __init__(self, folder: Path, keep: int, copy: Copy | None = None):
        self.folder, self.keep, self._copy = Path(folder).resolve(), keep, copy
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: Any, extra: dict) -> None:
        """Begins to save `state` and the JSON-able `extra`. The arrays may be donated as soon as this returns.

        Waits for the save before it; what went wrong there is raised here or by `finish`.

        Raises:
            InputError: the folder cannot be written, or the disk is full.
        """
        from orbax.checkpoint import v1 as ocp

        self.finish()
        path = self._path(step)
        if jax.process_index() == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                _seal_of(path).unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"cannot write checkpoints to {self.folder}: {error.strerror}") from None
        literal = contextlib.ExitStack()
        response = ocp.save_async(literal.enter_context(literal_path(path)), state, overwrite=True)
        self._thread = threading.Thread(target=self._complete, args=(response, path, extra, literal), daemon=True)
        self._thread.start()

    def _complete(self, response, path: Path, extra: dict, literal: contextlib.ExitStack) -> None:
        try:
            with literal:
                response.result()
            if jax.process_index() == 0:
                seal(path, extra)
                self._prune()
                if self._copy:
                    self._copy.put_checkpoint(path, _seal_of(path))
        except Exception as error:
            self._error = error

    def finish(self) -> None:
        """Waits until what was begun is saved and sealed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise InputError(f"a checkpoint could not be written to {self.folder}: {error}") from error

    def newest(self) -> tuple[int, dict] | None:
        """Step and `extra` of the newest checkpoint that verifies, if any. Names those that do not."""
        step = -1
        if jax.process_index() == 0:
            step = next((step for step in reversed(self.steps()) if self._intact(step)), -1)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        return None if step < 0 else (step, json.loads(_seal_of(self._path(step)).read_text())["extra"])

    def load(self, step: int, abstract: Any) -> Any:
        """The state saved at `step`, placed as the ShapeDtypeStructs of `abstract` say: any mesh, any number of hosts.

        Raises:
            InputError: what was saved has other parts than `abstract`.
        """
        from orbax.checkpoint import v1 as ocp

        try:
            with literal_path(self._path(step)) as path:
                return ocp.load(path, abstract)
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise InputError(f"checkpoint {self._path(step)} does not hold this stage's state: {reason}") from error

    def steps(self) -> list[int]:
        """The steps that have a seal, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdigit())

    def _intact(self, step: int) -> bool:
        problem = verify(self._path(step))
        if problem:
            _log.warning("checkpoint %s is not used: %s", self._path(step), problem)
        return problem is None

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:0{_DIGITS}d}"

    def _prune(self) -> None:
        """Removes all but the newest sealed steps, seal first, and what killed saves left."""
        steps = self.steps()
        for step in steps[: -self.keep]:
            _seal_of(self._path(step)).unlink(missing_ok=True)
        kept = {self._path(step).name for step in steps[-self.keep :]}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name.split(".")[0].isdigit() and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def seal(path: Path, extra: dict) -> None:
    """Writes the seal of the finished folder `path`."""
    body = {"files": _digests(path), "extra": extra}
    with atomic_path(_seal_of(path)) as temporary:
        temporary.write_text(json.dumps({**body, "seal": _digest_of(body)}, indent=1))


def verify(path: Path) -> str | None:
    """What is wrong with the sealed folder `path`; None if every file is as it was sealed."""
    try:
        body = json.loads(_seal_of(path).read_text())
        claimed = body.pop("seal")
    except (OSError, ValueError, KeyError, AttributeError):
        return "its seal cannot be read"
    if claimed != _digest_of(body):
        return "its seal was changed"
    if not path.is_dir():
        return "its folder is missing"
    found = _digests(path)
    for name in sorted(body["files"].keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if found[name] != body["files"].get(name):
            return f"{name} was changed"
    return None


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _digest_of(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as pool:
        return {
            str(file.relative_to(folder)): digest for file, digest in zip(files, pool.map(_digest, files), strict=True)
        }


def _digest(file: Path) -> str:
    total = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
