"""The student's own rollouts in training: the chunks of inference, left at a chosen step, and their gradients.

Sampling and differentiating are separate. `roll` carries streams on without any gradient, through the same network
calls, loop and cache as inference, and keeps what the last step of every chunk was given. The gradient then flows
through that step alone, by one of two equal ways:

- `replay`: all chunks at once, in one pass over the clean and the noisy clip (training page 3.2, parallel replay);
- `repeat_steps`: chunk by chunk along the rollout, for streams whose past a single pass cannot rebuild.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mgjax.config import WorldConfig
from mgjax.diffusion.flow import clean, timestep
from mgjax.diffusion.rollout import rollout, sample
from mgjax.diffusion.schedule import step_sigmas
from mgjax.models import dit
from mgjax.train.parts.network import Network, PastNoise, cast, forced
from mgjax.train.stage import Params
from mgjax.types import Actions, ClipBatch, ImageCondition, StreamState
from mgjax.world import World


class Rolled(NamedTuple):
    """Chunks of a rollout, and of each what its last step was given and in what noise it is remembered."""

    latents: Float[Array, "i b t h w c"]
    last: Float[Array, "i b t h w c"]
    noise: Float[Array, "i b t h w c"] | None  # None: remembered as it is


def student_levels(world: WorldConfig) -> np.ndarray:
    """Sigmas of the few-step list, float64."""
    return step_sigmas(world.sampler.steps, world.sampler.shift)


def stream_params(weights: Params, net: Network) -> dict:
    """Stacked weights in the compute dtype, for streams; no gradient flows into them."""
    return {"dit": cast(jax.lax.stop_gradient(weights), net.dtype)}


def begin(world: World, params: dict, clips: ClipBatch) -> StreamState:
    """New streams at the pictures of `clips`. They are never decoded, and noise is given to them, so no key is drawn
    from."""
    keys = jax.random.split(jax.random.key(0), clips.features.shape[0])
    condition = ImageCondition(clips.condition, clips.features)
    return world.begin(params, condition, keys)._replace(decoder=None)


def chunk_rows(net: Network, actions: Actions, start: Int[Array, ""] | int, chunks: int) -> Actions:
    """Rows [i, b, 12] that the chunks from latent frame `start` on take, of clips whose rows begin at frame 0.

    The rows of a chunk begin 4 before its first latent frame; those before row 0 are never read.
    """
    size = net.stride * net.dit.chunk

    def cut(part):
        part = jnp.pad(part.astype(jnp.float32), ((0, 0), (net.stride, 0), (0, 0)))
        part = jax.lax.dynamic_slice_in_dim(part, net.stride * start, chunks * size, 1)
        return jnp.moveaxis(part.reshape(part.shape[0], chunks, size, -1), 1, 0)

    return Actions(*map(cut, actions))


def draw_noise(key: Array, net: Network, batch: int, chunks: int, draws: int) -> Float[Array, "b i draws t h w c"]:
    """All noise of a rollout (`SamplerConfig.draws` a chunk), the batch on the leading axis."""
    shape = net.dit.chunk, net.dit.latent_height, net.dit.latent_width, net.dit.latent_channels
    return jax.random.normal(key, (batch, chunks, draws, *shape))


def roll(
    world: World,
    params: dict,
    state: StreamState,
    rows: Actions,
    noise: Float[Array, "b i draws t h w c"],
    exit: Int[Array, ""],
) -> tuple[Rolled, StreamState]:
    """Carries streams on by the chunks of `rows`, leaving every chunk after step `exit`."""
    levels = tuple(student_levels(world.cfg).tolist())

    def step(state, inputs):
        rows, noise = inputs
        made = sample(partial(world.denoise, params, world.bind(params, state, rows)), noise, levels, exit)
        remembered = noise[:, len(levels)] if world.cfg.sampler.context else None
        return Rolled(made.x0, made.last, remembered), world.commit(params, state, rows, made.x0, remembered)

    return rollout(step, state, (rows, jnp.moveaxis(noise, 1, 0)))


def clip_of(chunks: Float[Array, "i b t h w c"]) -> Float[Array, "b t2 h w c"]:
    """The chunks of a rollout one after another."""
    chunks = jnp.moveaxis(chunks, 0, 1)
    return chunks.reshape(chunks.shape[0], -1, *chunks.shape[3:])


def replay(
    net: Network,
    weights: Params,
    clips: ClipBatch,
    rolled: Rolled,
    sigma: Float[Array, ""],
    context: float = 0.0,
    kv_gradient: bool = False,
) -> Float[Array, "b t h w c"]:
    """The latents of `rolled`, which began at frame 0 of `clips`, as a differentiable function of `weights`.
    `context` is the sigma in which the world remembers chunks.

    `kv_gradient` also trains how clean frames are written into the cache: another estimator, which Self-Forcing is not.
    """
    past, last = clip_of(rolled.latents), clip_of(rolled.last)
    sigma = jnp.broadcast_to(sigma, last.shape[:2])
    noise = None if rolled.noise is None else PastNoise(clip_of(rolled.noise), jnp.full(1, context))
    velocity = forced(net, past, noise, detached=not kv_gradient)
    return clean(last, velocity(weights, last, sigma, clips), sigma)


def repeat_steps(
    world: World,
    net: Network,
    weights: Params,
    params: dict,
    features: Float[Array, "b i f"],
    state: StreamState,
    rolled: Rolled,
    rows: Actions,
    sigma: Float[Array, ""],
) -> Float[Array, "b t h w c"]:
    """The latents of `rolled`, which carried `state` on by `rows`, as a differentiable function of `weights`: of the
    last steps and of the keys and values of the picture, which belong to them. The rest of the cache is as it was: it
    is written again by `params`, those of the rollout."""

    @jax.checkpoint
    def step(weights, state, rows, last):
        params = {"dit": cast(weights, net.dtype)}  # here, so that the chunks' gradients add up in float32
        image = dit.prepare_image(params["dit"], net.dit, features, net.dtype)
        chunk = world.bind(params, state._replace(image=image), rows)
        return last - sigma * world.denoise(params, chunk, last, timestep(sigma)[None, None])

    def body(state, inputs):
        rows, made = inputs
        after = world.commit(params, state, rows, made.latents, made.noise)
        return after, step(weights, state, rows, made.last)

    _, x0 = jax.lax.scan(body, state, (rows, rolled))
    return clip_of(x0)
