"""Saving streams to a file and taking them up again in another process.

A snapshot is one safetensors file: every leaf of the StreamState, bit for bit, and in its header what it belongs to.
The same state gives the same bytes. The frames that follow a load are those that would have followed the save: bit by
bit where the same programs run again, that is on CPUs of one kind with the same jaxlib, and on a GPU that chooses the
same algorithms; elsewhere up to rounding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from mgjax.config import to_json
from mgjax.errors import InputError
from mgjax.io.files import atomic_path
from mgjax.types import StreamState

if TYPE_CHECKING:
    from mgjax.world import Params, World

FORMAT = "mgjax stream 2"
_KEY = "mgjax"  # of the header's entry


def fingerprint(params: Params) -> str:
    """A short hash that tells weights apart: paths, shapes and a few leading values of every leaf."""
    digest, leaves = hashlib.sha256(), _paths(params)
    if jax.default_backend() == "cpu":  # where an array is one of numpy's already, and a program would be compiled
        heads = _heads({name: np.asarray(leaf) for name, leaf in leaves.items()})
    else:
        heads = jax.device_get(jax.jit(_heads)(leaves))
    for name in sorted(leaves):
        leaf = leaves[name]
        digest.update(f"{name}{leaf.shape}{leaf.dtype}".encode() + np.asarray(heads[name]).tobytes())
    return digest.hexdigest()[:16]


def _heads(leaves: dict) -> dict:
    return {name: leaf[(0,) * (leaf.ndim - 1)][:8] for name, leaf in leaves.items()}


def _identity(world: World, params: Params) -> dict[str, str]:
    """What a snapshot must agree on with the world that takes it up, in the order in which it is checked."""
    return {
        "format": FORMAT,
        "model": world.cfg.name,
        "config": to_json(world.cfg),
        "settings": json.dumps(dataclasses.asdict(world.settings)),
        "weights": fingerprint(world.streaming(params)),
    }


def _paths(state) -> dict[str, jax.Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _condition_shape(world: World, file) -> tuple[int, ...]:
    """[b, t, h, w, c] of the picture's condition: the one leaf that tells the batch and the horizon."""
    dit = world.cfg.dit
    shape = tuple(file.get_slice("condition").get_shape())
    if len(shape) != 5 or 0 in shape or shape[2:] != (dit.latent_height, dit.latent_width, dit.latent_channels):
        raise SafetensorError(f"its condition is of shape {shape}")
    return shape


def save(path: str | Path, world: World, params: Params, state: StreamState) -> None:
    """Writes `state` to `path`; the file stands there only when it is whole."""
    with atomic_path(Path(path)) as temporary:
        try:
            # One entry, for the library writes several in any order.
            save_file(_paths(state), temporary, metadata={_KEY: json.dumps(_identity(world, params))})
        except (SafetensorError, OSError) as error:
            raise InputError(f"cannot write the stream state {path}: {error}") from error


def load(path: str | Path, world: World, params: Params) -> StreamState:
    """The state in `path`; InputError says why where it belongs to another model, version or weights, or is damaged."""
    path = Path(path)
    try:
        with safe_open(path, framework="flax") as file:
            found = _header(file)
            for name, value in _identity(world, params).items():
                if found.get(name) != value:
                    raise InputError(_refusal(path, name, found, value))
            like = world.state_shapes(*_condition_shape(world, file)[:2])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"there is no stream state {path}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable stream state: {error}") from None
    expected = _paths(like)
    for name in tensors.keys() - expected.keys():
        raise InputError(f"the stream state {path} is damaged: it holds {name!r}, which is no part of a state")
    for name, leaf in expected.items():
        if name not in tensors or tensors[name].shape != leaf.shape or tensors[name].dtype != leaf.dtype:
            raise InputError(f"the stream state {path} is damaged: {name} is missing or misshapen")
    # One answer for all leaves: a question a leaf would wait for the device each time.
    finite = jax.device_get({name: jnp.isfinite(leaf).all() for name, leaf in tensors.items()})
    for name in expected:
        if not finite[name]:
            raise InputError(f"the stream state {path} is damaged: {name} holds values that are no numbers")
    if (np.asarray(tensors["position"]) < 0).any():
        raise InputError(f"the stream state {path} is damaged: position is negative")
    return jax.tree.unflatten(jax.tree.structure(like), [tensors[name] for name in expected])


def _header(file) -> dict[str, str]:
    """What `_identity` was when the file was written."""
    try:
        found = json.loads((file.metadata() or {}).get(_KEY, "{}"))
    except (ValueError, RecursionError):
        found = None
    if not (isinstance(found, dict) and all(isinstance(value, str) for value in found.values())):
        raise SafetensorError("its header is damaged")
    return found


def _refusal(path: Path, name: str, found: dict[str, str], expected: str) -> str:
    if name == "format":
        return f"{path} is {found.get(name, 'no stream state')!r}, and this version reads {FORMAT!r}"
    if name == "model":
        return f"the stream state {path} was made by the model {found.get(name)!r}, not {expected!r}"
    if name == "settings":
        return f"the stream state {path} was made with the settings {found.get(name)}, not {expected}"
    what = {"config": "config of this model", "weights": "set of weights"}[name]
    return f"the stream state {path} was made with another {what}"
