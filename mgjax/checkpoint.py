"""A world's weights on disk.

    FOLDER/config.json      format version and the WorldConfig
    FOLDER/dit/ vae/ ...    one Orbax checkpoint for each component that was given
    FOLDER/schema.toml      what the numbers of its action rows mean (`mgjax.data.store.schema`), where that is known
    FOLDER/checksums.json   SHA-256 of every other file: Orbax loads a flipped byte without a word

The folder is written beside its place and renamed when whole. Arrays are written a batch at a time, so that a tree of
`LazyArray`s never lies in memory; any Orbax reads the result (`ocp.StandardCheckpointer().restore(FOLDER / "dit")`).
Reading goes to TensorStore, on which Orbax stands: of the hundreds of small arrays of a small world it takes a fifth of
the time, and a player waits for it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from mgjax.config import WorldConfig, from_json
from mgjax.errors import InputError
from mgjax.io.files import atomic_path, check_writable, literal_path
from mgjax.io.tensors import LazyArray, batches

FORMAT = 1
COMPONENTS = ("dit", "vae", "taehv", "clip")
CHECKSUMS = "checksums.json"
SCHEMA = "schema.toml"
SHIPPED = (
    Path(__file__).parent / "weights"
)  # of the models that come with mgjax, each in a folder of its name, in bfloat16
_BATCH = 2 << 30  # bytes that are read at a time, so that not all arrays lie in memory twice


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
        from mgjax.io import orbax  # only who writes waits for its import

        for component, tree in components.items():
            orbax.write(temporary / component, tree, progress)
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
    try:
        with literal_path(path) as literal:
            stored, structure = jax.tree.flatten(_open(literal))
            places = [one] * len(stored) if isinstance(one, jax.sharding.Sharding) else structure.flatten_up_to(one)
            if dtype is not None:
                kinds = [
                    np.dtype(dtype) if jnp.issubdtype(_dtype(array), jnp.floating) else _dtype(array)
                    for array in stored
                ]
                stored = [ts.cast(array, kind) for array, kind in zip(stored, kinds, strict=True)]
            arrays = []
            for span in batches([math.prod(array.shape) * _dtype(array).itemsize for array in stored], _BATCH):
                arrays += _read(stored[span], places[span])
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error
    return jax.tree.unflatten(structure, arrays)


def load_lazy(folder: Path, component: str, *, verify: bool = True) -> dict:
    """The parameter tree of a component as `LazyArray`s that read one array at a time.

    Raises:
        InputError: as `load`.
    """
    path = _component(folder, component, verify)
    try:
        with literal_path(path) as literal:
            stored = _open(literal)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error

    def read(keys) -> np.ndarray:
        with literal_path(path) as literal:
            return _open_array(literal, [key.key for key in keys], ts.Context()).result().read().result()

    return jax.tree_util.tree_map_with_path(
        lambda keys, array: LazyArray(array.shape, _dtype(array), lambda: read(keys)), stored
    )


def _open(path: Path) -> dict:
    """The tree of a component's arrays, opened and not yet read.

    Raises:
        OSError, ValueError, KeyError: its table of arrays, or an array of it, is absent or damaged.
    """
    entries = json.loads((path / "_METADATA").read_bytes())["tree_metadata"].values()
    paths = [[key["key"] for key in entry["key_metadata"]] for entry in entries]
    context = ts.Context()  # one for all, so that the index of the arrays is read once
    opened = [_open_array(path, keys, context) for keys in paths]
    tree: dict = {}
    for (*above, name), array in zip(paths, opened, strict=True):
        functools.reduce(lambda place, key: place.setdefault(key, {}), above, tree)[name] = array.result()
    return tree


def _open_array(path: Path, keys: Sequence[str], context: ts.Context) -> ts.Future:
    base = {"driver": "file", "path": f"{path}/"}
    store = {"driver": "ocdbt", "base": base, "path": f"{'.'.join(keys)}/"}
    return ts.open({"driver": "zarr", "kvstore": store}, read=True, context=context)


def _read(stored: Sequence[ts.TensorStore], places: Sequence[jax.sharding.Sharding]) -> list[jax.Array]:
    """The arrays of `stored` as `places` lays them out: all at a time, of each what lies on this process's devices, and
    once what several of them hold."""

    def begin(array, place) -> dict:
        indices = {str(index): index for index in place.addressable_devices_indices_map(array.shape).values()}
        return {key: array[index].read() for key, index in indices.items()}

    begun = [begin(array, place) for array, place in zip(stored, places, strict=True)]
    return [
        jax.make_array_from_callback(array.shape, place, lambda index, parts=parts: parts[str(index)].result())
        for array, place, parts in zip(stored, places, begun, strict=True)
    ]


def _dtype(array: ts.TensorStore) -> np.dtype:
    return array.dtype.numpy_dtype


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot load {path}: {str(error).splitlines()[0]}")


def _open_once(path: Path, tree: dict) -> None:
    """Finds out whether what was written can be read: the table of arrays, and the smallest of them."""
    try:
        with literal_path(path) as literal:
            stored = _open(literal)
            written = jax.tree.map(lambda leaf: tuple(leaf.shape), tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
            if jax.tree.map(lambda leaf: tuple(leaf.shape), stored) != written:
                raise InputError("its arrays are not those that were written")
            min(jax.tree.leaves(stored), key=lambda array: math.prod(array.shape)).read().result()
    except (InputError, OSError, ValueError, KeyError) as error:
        raise InputError(f"what was written cannot be read again, so nothing was kept: {error}") from error


def _component(folder: Path, component: str, verify: bool) -> Path:
    """The component's checkpoint, as an absolute path without "..", which is what TensorStore takes."""
    folder = Path(folder)
    there = components(folder)
    if component not in there:
        raise InputError(f"{folder} holds no {component} weights, only {', '.join(there) or 'none'}")
    if verify:
        _verify(folder, component)
    return (folder / component).resolve()


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
