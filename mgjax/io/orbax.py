"""Trees of arrays written as Orbax checkpoints, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mgjax.io.files import literal_path
from mgjax.io.tensors import LazyArray, batches

_BATCH = 256 << 20  # bytes in memory at a time; a batch becomes one file, so that thousands of arrays stay few files


def write(path: Path, tree: dict, progress: Callable[[int], None] = lambda count: None) -> None:
    """Writes `tree`, of arrays or `LazyArray`s, into the new folder `path`; `progress` is told the bytes of each batch.

    Raises:
        OSError, ValueError: it cannot be written.
    """
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, ocp.type_handlers.ArrayHandler()),
        (LazyArray, _LazyHandler(progress)),
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer, literal_path(path) as literal:
        checkpointer.save(literal, jax.tree.map(_lazy, tree))
    for mark in path.glob("commit_success.txt"):  # Orbax asks whether it is there; what it says is this machine's path
        mark.write_text("committed\n")


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """Orbax writes all arrays of a tree at once; this writes them batch after batch, each read just before."""

    def __init__(self, progress: Callable[[int], None]):
        super().__init__(deepcopy_host_arrays=False)
        self._progress = progress

    async def serialize(self, values: Any, infos, args=None):
        args = args or [ocp.SaveArgs()] * len(values)
        for span in batches([value.nbytes for value in values], _BATCH):
            arrays = [value.read() for value in values[span]]
            for future in await super().serialize(arrays, infos[span], args[span]):
                future.result()
            self._progress(sum(array.nbytes for array in arrays))
        return []


def _lazy(leaf) -> LazyArray:
    if isinstance(leaf, LazyArray):
        return leaf
    return LazyArray(tuple(leaf.shape), np.dtype(leaf.dtype), lambda: np.asarray(leaf))
