"""The functions of a stream over dictionaries of named arrays, which is what an artefact and an ONNX model take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mgjax.export.artefact import flatten, nest
from mgjax.types import Actions, ImageCondition
from mgjax.world import World

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Function:
    """A function of dictionaries of arrays, and the shapes that it is called with: weights first."""

    call: Callable[..., Arrays]
    inputs: tuple[dict[str, jax.ShapeDtypeStruct], ...]
    donated: tuple[int, ...] = ()  # of `inputs`


@contextlib.contextmanager
def cudnn_assumed() -> Iterator[None]:
    """JAX asks for the version of this machine's cuDNN whenever it traces: that of the artefact will have one."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    asked = fused.check_cudnn_version
    fused.check_cudnn_version = lambda: 91400
    try:
        yield
    finally:
        fused.check_cudnn_version = asked


@cudnn_assumed()
def functions(world: World, params: dict, batch: int) -> dict[str, Function]:
    """encode, begin, sample, decode, commit and chunk_step of `batch` streams, and denoise, a step of `sample`.

    A stream's state comes in two dictionaries, its decoder's cache (names begin with "decoder/") and the rest. Where
    `commit` is handed "noise" beside "latents" it draws none (`World.commit`).
    """
    cfg, action = world.cfg, world.cfg.dit.action
    weights = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flatten(params).items()}

    def spec(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    image = spec(cfg.height, cfg.width, 3)
    condition = jax.eval_shape(world.encode, params, image)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    begun = jax.eval_shape(world.begin, params, condition, keys)
    stream, stream_def = flatten(begun._replace(decoder=None)), jax.tree.structure(begun._replace(decoder=None))
    cache, cache_def = _decoder(begun.decoder), jax.tree.structure(begun.decoder)
    rows = {
        "keyboard": spec(cfg.chunk_frames, action.keyboard_dim),
        "mouse": spec(cfg.chunk_frames, action.mouse_dim),
    }
    latents = spec(*world.latent_shape)

    def state_of(leaves):
        return jax.tree.unflatten(stream_def, [leaves[name] for name in stream])

    def cache_of(leaves):
        return jax.tree.unflatten(cache_def, [leaves[name] for name in cache])

    def encode(weights, inputs):
        return world.encode(nest(weights), inputs["image"])._asdict()

    def begin(weights, condition, inputs):
        keys = jax.random.wrap_key_data(inputs["key"])
        return flatten(world.begin(nest(weights), ImageCondition(**condition), keys))

    def sample(weights, state, rows):
        return {"latents": world.sample(nest(weights), state_of(state), Actions(**rows))}

    def denoise(weights, state, rows, inputs):
        params = nest(weights)
        chunk = world.bind(params, state_of(state), Actions(**rows))
        return {"velocity": world.denoise(params, chunk, inputs["x"], inputs["timestep"])}

    def decode(weights, cache, inputs):
        frames, cache = world.decode(nest(weights), inputs["latents"], inputs["position"], cache_of(cache))
        return {**frames._asdict(), **_decoder(cache)}

    def commit(weights, state, rows, inputs):
        after = world.commit(nest(weights), state_of(state), Actions(**rows), inputs["latents"], inputs.get("noise"))
        return flatten(after)

    def chunk_step(weights, state, cache, rows):
        whole = state_of(state)._replace(decoder=cache_of(cache))
        frames, after = world.chunk_step(nest(weights), whole, Actions(**rows))
        return {**frames._asdict(), **flatten(after)}

    key = {"key": jax.ShapeDtypeStruct((batch, *jax.random.key_data(jax.random.key(0)).shape), jnp.uint32)}
    noisy = {"x": latents, "timestep": jax.ShapeDtypeStruct((1, 1), jnp.float32)}
    position = spec(dtype=jnp.int32)
    return {
        "encode": Function(encode, (weights, {"image": image})),
        "begin": Function(begin, (weights, condition._asdict(), key)),
        "sample": Function(sample, (weights, stream, rows)),
        "denoise": Function(denoise, (weights, stream, rows, noisy)),
        "decode": Function(decode, (weights, cache, {"latents": latents, "position": position}), (1,)),
        "commit": Function(commit, (weights, stream, rows, {"latents": latents}), (1,)),
        "chunk_step": Function(chunk_step, (weights, stream, cache, rows), (1, 2)),
    }


def _decoder(cache: Any) -> Arrays:
    return {f"decoder/{name}": leaf for name, leaf in flatten(cache).items()}
