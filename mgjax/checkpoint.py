"""A world's weights on disk.

    FOLDER/config.json      format version and the WorldConfig
    FOLDER/dit/ vae/ ...    one Orbax checkpoint for each component that was given
    FOLDER/schema.toml      what the numbers of its action rows mean (`mgjax.data.store.schema`), where that is known
    FOLDER/checksums.json   SHA-256 of every other file: Orbax loads a flipped byte without a word

The folder is written beside its place and renamed when whole. Arrays are written a batch at a time, so that a tree of
`LazyArray`s never lies in memory; any Orbax reads the result (`ocp.StandardCheckpointer().restore(FOLDER / "dit")`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from mgjax.config import WorldConfig, from_json
from mgjax.errors import InputError
from mgjax.io.files import atomic_path, check_writable, literal_path
from mgjax.io.tensors import LazyArray

FORMAT = 1
COMPONENTS = ("dit", "vae", "taehv", "clip")
CHECKSUMS = "checksums.json"
SCHEMA = "schema.toml"
SHIPPED = (
    Path(__file__).parent / "weights"
)  # of the models that come with mgjax, each in a folder of its name, in bfloat16
_BATCH = 256 << 20  # bytes in memory at a time; a batch becomes one file, so that thousands of arrays stay few files
_CONCURRENT_GB = 2  # read at a time when loading; more than the largest array of any world


def save(
    folder: Path,
    cfg: WorldConfig,
    components: Mapping[str, dict],
    *,
    schema: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Writes the parameter trees of `components` (some of dit, vae, taehv, clip), `cfg` and the text of a `schema`.

    Leaves are arrays or `LazyArray`s. `progress` is told the bytes of each batch that was written. A folder that exists
    is replaced with `overwrite`, and only if it is such a checkpoint.

    Raises:
        InputError: the folder cannot be written, is taken, or the disk is full.
    """
    folder = Path(folder)
    check_target(folder, overwrite=overwrite)
    with atomic_path(folder, folder=True, replace=overwrite) as temporary:
        temporary.mkdir()
        (temporary / "config.json").write_text(
            json.dumps({"format": FORMAT, "world": dataclasses.asdict(cfg)}, indent=1)
        )
        if schema is not None:
            (temporary / SCHEMA).write_text(schema, encoding="utf-8")
        for component, tree in components.items():
            _save_tree(temporary / component, tree, progress)
            _open_once(temporary / component, tree)
        sums = {str(path.relative_to(temporary)): _sha256(path) for path in _files(temporary)}
        (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=1))


def check_target(folder: Path, *, overwrite: bool = False) -> None:
    """Finds out early what would stop `save` from writing `folder`; InputError."""
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise InputError(f"{folder} is there already: choose another name or pass --overwrite")
        _read_json(folder, "config.json")
    check_writable(folder, folder=True, replace=overwrite)


def read_config(folder: Path) -> WorldConfig:
    """The config of a checkpoint.

    Raises:
        InputError: there is none, or it has another format version.
    """
    stored = _read_json(Path(folder), "config.json")
    if stored.get("format") != FORMAT:
        raise InputError(f"{folder} has format {stored.get('format')!r}; this version of mgjax reads {FORMAT}")
    try:
        return from_json(json.dumps(stored.get("world")))
    except ValueError as error:
        raise InputError(f"{folder}/config.json is damaged: {error}") from None


def read_schema(folder: Path) -> str | None:
    """The text of a checkpoint's schema.toml; None where it has none."""
    path = Path(folder) / SCHEMA
    try:
        return path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def components(folder: Path) -> tuple[str, ...]:
    """The components that a checkpoint holds."""
    read_config(folder)
    return tuple(name for name in COMPONENTS if (Path(folder) / name).is_dir())


def load(
    folder: Path,
    component: str,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    sharding: jax.sharding.Sharding | dict | None = None,
    verify: bool = True,
) -> dict:
    """The parameter tree of a component as jax arrays.

    Args:
        dtype: what floating-point arrays are cast to; None leaves them as they are stored.
        sharding: one for all arrays, or a tree of them; None puts all on the first local device.
        verify: compare every file with its checksum first.

    Raises:
        InputError: no such component, another format version, or a damaged file (which is named when verified).
    """
    path = _component(folder, component, verify)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]) if sharding is None else sharding

    def target(stored, place):
        kind = dtype if dtype is not None and jnp.issubdtype(stored.dtype, jnp.floating) else stored.dtype
        return jax.ShapeDtypeStruct(stored.shape, kind, sharding=place)

    try:
        with _reader() as checkpointer, literal_path(path) as literal:
            stored = _stored(checkpointer, path)
            places = jax.tree.map(lambda _: one, stored) if isinstance(one, jax.sharding.Sharding) else one
            return checkpointer.restore(literal, args=ocp.args.StandardRestore(jax.tree.map(target, stored, places)))
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load {path}: {str(error).splitlines()[0]}") from error


def load_lazy(folder: Path, component: str, *, verify: bool = True) -> dict:
    """The parameter tree of a component as `LazyArray`s that read one array at a time.

    Raises:
        InputError: as `load`.
    """
    path = _component(folder, component, verify)
    with _reader() as checkpointer:
        stored = _stored(checkpointer, path)

    def lazy(keys, array) -> LazyArray:
        name = ".".join(key.key for key in keys)
        return LazyArray(tuple(array.shape), np.dtype(array.dtype), lambda: _read_array(path, name))

    return jax.tree_util.tree_map_with_path(lazy, stored)


def _reader() -> ocp.Checkpointer:
    # The limit keeps the compressed copies of all arrays from lying in memory beside the arrays.
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(restore_concurrent_gb=_CONCURRENT_GB))


def _stored(checkpointer: ocp.Checkpointer, path: Path) -> dict:
    """Shapes and types of a stored tree."""
    with literal_path(path) as literal:
        metadata = checkpointer.metadata(literal).item_metadata
    if metadata is None:
        raise InputError(f"cannot load {path}: its table of arrays is absent or damaged")
    return metadata.tree


def _read_array(path: Path, name: str) -> np.ndarray:
    with literal_path(path) as literal:
        base = {"driver": "file", "path": f"{literal}/"}
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
        return ts.open(spec, read=True).result().read().result()


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """Orbax writes all arrays of a tree at once; this writes them batch after batch, each read just before."""

    def __init__(self, progress: Callable[[int], None]):
        super().__init__(deepcopy_host_arrays=False)
        self._progress = progress

    async def serialize(self, values: Any, infos, args=None):
        args = args or [ocp.SaveArgs()] * len(values)
        for span in _batches([value.nbytes for value in values]):
            arrays = [value.read() for value in values[span]]
            for future in await super().serialize(arrays, infos[span], args[span]):
                future.result()
            self._progress(sum(array.nbytes for array in arrays))
        return []


def _batches(sizes: list[int]) -> Iterator[slice]:
    """Consecutive spans of at most _BATCH bytes, or of one array that is larger."""
    begin, held = 0, 0
    for index, size in enumerate(sizes):
        if held and held + size > _BATCH:
            yield slice(begin, index)
            begin, held = index, 0
        held += size
    if begin < len(sizes):
        yield slice(begin, len(sizes))


def _save_tree(path: Path, tree: dict, progress: Callable[[int], None]) -> None:
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, ocp.type_handlers.ArrayHandler()),
        (LazyArray, _LazyHandler(progress)),
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer, literal_path(path) as literal:
        checkpointer.save(literal, jax.tree.map(_lazy, tree))
    for mark in path.glob("commit_success.txt"):  # Orbax asks whether it is there; what it says is this machine's path
        mark.write_text("committed\n")


def _open_once(path: Path, tree: dict) -> None:
    """Finds out whether what was written can be read: the table of arrays, and the smallest of them."""
    try:
        with _reader() as checkpointer:
            stored = _stored(checkpointer, path.absolute())
        written = jax.tree.map(lambda leaf: tuple(leaf.shape), tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
        if jax.tree.map(lambda leaf: tuple(leaf.shape), stored) != written:
            raise InputError("its arrays are not those that were written")
        leaves = jax.tree_util.tree_leaves_with_path(stored)
        keys, smallest = min(leaves, key=lambda leaf: math.prod(leaf[1].shape))
        if _read_array(path.absolute(), ".".join(key.key for key in keys)).shape != tuple(smallest.shape):
            raise InputError("an array has another shape")
    except (InputError, OSError, ValueError, KeyError) as error:
        raise InputError(f"what was written cannot be read again, so nothing was kept: {error}") from error


def _lazy(leaf) -> LazyArray:
    if isinstance(leaf, LazyArray):
        return leaf
    return LazyArray(tuple(leaf.shape), np.dtype(leaf.dtype), lambda: np.asarray(leaf))


def _component(folder: Path, component: str, verify: bool) -> Path:
    """The component's checkpoint, as an absolute path, which is what Orbax takes."""
    folder = Path(folder)
    there = components(folder)
    if component not in there:
        raise InputError(f"{folder} holds no {component} weights, only {', '.join(there) or 'none'}")
    if verify:
        _verify(folder, component)
    return (folder / component).absolute()


def _verify(folder: Path, component: str) -> None:
    sums = _read_json(folder, CHECKSUMS)
    for name, expected in sums.items():
        if name == "config.json" or name.startswith(f"{component}/"):
            path = folder / name
            if not path.is_file():
                raise InputError(f"{folder} is damaged: it lacks {name}")
            if _sha256(path) != expected:
                raise InputError(f"{path} is damaged: its checksum differs")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _read_json(folder: Path, name: str) -> dict:
    try:
        value = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder} is no mgjax checkpoint: it has no {name}") from None
    except NotADirectoryError:
        raise InputError(f"{folder} is a file, not the folder of an mgjax checkpoint") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{folder / name} is damaged")
    return value
