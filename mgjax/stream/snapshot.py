"""Saving streams to a file and taking them up again in another process.

A snapshot is one safetensors file: every leaf of the StreamState, bit for bit, and in its header what it belongs to.
The frames that follow a load are those that would have followed the save, on the same kind of device and jaxlib.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from mgjax.config import to_json
from mgjax.errors import InputError
from mgjax.io.files import atomic_path
from mgjax.types import ImageCondition, StreamState
from mgjax.world import World, streaming_params

FORMAT = "mgjax stream 1"


def fingerprint(params: dict) -> str:
    """A short hash that tells weights apart: shapes and a few leading values of every leaf."""
    digest = hashlib.sha256()
    heads = [leaf.ravel()[:8] for leaf in jax.tree.leaves(params)]
    for leaf, head in zip(jax.tree.leaves(params), jax.device_get(heads), strict=True):
        digest.update(f"{leaf.shape}{leaf.dtype}".encode() + np.asarray(head).tobytes())
    return digest.hexdigest()[:16]


def _identity(world: World, params: dict) -> dict[str, str]:
    """What a snapshot must agree on with the world that takes it up, in the order in which it is checked."""
    return {
        "format": FORMAT,
        "model": world.cfg.name,
        "config": to_json(world.cfg),
        "settings": json.dumps(dataclasses.asdict(world.settings)),
        "weights": fingerprint(streaming_params(world, params)),
    }


def _paths(state) -> dict[str, jax.Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _like(world: World, params: dict, file) -> StreamState:
    """Shapes of a state with the batch and the horizon of the one in `file`."""
    dit = world.cfg.dit
    shape = _condition_shape(world, file)
    condition = ImageCondition(
        latents=jax.ShapeDtypeStruct(shape, jnp.float32),
        features=jax.ShapeDtypeStruct((shape[0], dit.image_tokens, dit.image_dim), jnp.dtype(world.settings.dtype)),
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape[0]))
    return jax.eval_shape(world.begin, params, condition, keys)


def _condition_shape(world: World, file) -> tuple[int, ...]:
    """[b, t, h, w, c] of the picture's condition: the one leaf that tells the batch and the horizon."""
    dit = world.cfg.dit
    shape = tuple(file.get_slice("condition").get_shape())
    if len(shape) != 5 or 0 in shape or shape[2:] != (dit.latent_height, dit.latent_width, dit.latent_channels):
        raise SafetensorError(f"its condition is of shape {shape}")
    return shape


def save(path: str | Path, world: World, params: dict, state: StreamState) -> None:
    """Writes `state` to `path`; the file stands there only when it is whole."""
    with atomic_path(Path(path)) as temporary:
        try:
            save_file(_paths(state), temporary, metadata=_identity(world, params))
        except (SafetensorError, OSError) as error:
            raise InputError(f"cannot write the stream state {path}: {error}") from error


def load(path: str | Path, world: World, params: dict) -> StreamState:
    """The state in `path`; InputError says why where it belongs to another model, version or weights, or is damaged."""
    path = Path(path)
    try:
        with safe_open(path, framework="flax") as file:
            found = file.metadata() or {}
            for name, value in _identity(world, params).items():
                if found.get(name) != value:
                    raise InputError(_refusal(path, name, found, value))
            like = _like(world, params, file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"there is no stream state {path}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable stream state: {error}") from None
    expected = _paths(like)
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


def _refusal(path: Path, name: str, found: dict[str, str], expected: str) -> str:
    if name == "format":
        return f"{path} is {found.get(name, 'no stream state')!r}, and this version reads {FORMAT!r}"
    if name == "model":
        return f"the stream state {path} was made by the model {found.get(name)!r}, not {expected!r}"
    if name == "settings":
        return f"the stream state {path} was made with the settings {found.get(name)}, not {expected}"
    what = {"config": "config of this model", "weights": "set of weights"}[name]
    return f"the stream state {path} was made with another {what}"
