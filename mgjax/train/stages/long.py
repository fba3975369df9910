"""Stage 5: Self-Forcing on streams that stay alive from step to step (arXiv:2509.22622; training page section 4.1).

Every step carries the streams on by `new_latents` latent frames and scores the window of these and the `overlap`
before them; only new frames count. A stream that would outgrow `max_latents` is replaced by one that begins at the
batch's pictures. Window and sink are the cache's own, as at inference. Cached keys and values stem from earlier
weights: they are older than the weights by at most a window.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mgjax.config import Settings, WorldConfig
from mgjax.models import dit
from mgjax.train.parts.distil import distillation
from mgjax.train.parts.fit import clip_spec
from mgjax.train.parts.lora import tuning
from mgjax.train.parts.network import network_of
from mgjax.train.parts.optim import in_parts
from mgjax.train.parts.rolling import (
    begin,
    chunk_rows,
    clip_of,
    draw_noise,
    repeat_steps,
    roll,
    stream_params,
    student_levels,
)
from mgjax.train.stage import Stage, fold
from mgjax.train_config import LongStage
from mgjax.types import ClipBatch, StreamState
from mgjax.world import World


class LongStream(NamedTuple):
    """The streams of a batch; all are at the same place."""

    frames: Int[Array, ""]  # latent frames so far
    state: StreamState
    tail: Float[Array, "b t h w c"]  # the last `overlap` latents
    clips: ClipBatch  # pictures and actions that the streams follow; no latents


def make_stage(cfg: LongStage, world: WorldConfig) -> Stage:
    """`pretrained` as for Self-Forcing. The batch's clips have `max_latents` latent frames; of their latents none is
    read."""
    net = network_of(world, cfg.dtype, cfg.attention, cfg.remat)
    functions = World(world, Settings(dtype=cfg.dtype, attention=cfg.attention))
    levels = jnp.asarray(student_levels(world), jnp.float32)
    chunk = net.dit.chunk
    window = cfg.overlap + cfg.new_latents
    if cfg.new_latents % chunk or cfg.overlap % chunk:
        raise ValueError(f"{cfg.overlap} latents and {cfg.new_latents} new ones are not whole chunks of {chunk}")
    if window > cfg.max_latents:
        raise ValueError(f"a window of {cfg.new_latents} + {cfg.overlap} latents exceeds max_latents {cfg.max_latents}")
    ages = -(-(cfg.max_latents - cfg.overlap) // cfg.new_latents) if cfg.max_latents > window else 1
    if math.gcd(ages, cfg.ratio) > 1:
        raise ValueError(
            f"a stream lives for {ages} steps and every {cfg.ratio}th trains the generator, which would not see streams"
            " of every age: choose max_latents or ratio so that the two numbers share no factor"
        )
    new, first = cfg.new_latents // chunk, cfg.overlap // chunk
    tune, distil = tuning(cfg.lora), distillation(cfg, net, cfg.shift_in(world))

    def start_streams(params, clips: ClipBatch, noise, exit) -> LongStream:
        """New streams, carried on by the overlap of their first window."""
        rows = chunk_rows(net, clips.actions, 0, first)
        rolled, state = roll(functions, params, begin(functions, params, clips), rows, noise, exit)
        return LongStream(
            jnp.full((), cfg.overlap, jnp.int32), state, clip_of(rolled.latents), clips._replace(latents=None)
        )

    def empty(weights, batch: int) -> LongStream:
        """Streams that are already at their end."""
        clips = clip_spec(world, batch, cfg.max_latents)
        noise = jax.ShapeDtypeStruct((batch, first, world.sampler.draws, *_chunk_shape(net.dit)), jnp.float32)
        shapes = jax.eval_shape(lambda w, c, n: start_streams(stream_params(w, net), c, n, 0), weights, clips, noise)
        stream = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return stream._replace(frames=jnp.full((), cfg.max_latents, stream.frames.dtype))

    def init(key, pretrained):
        state = distil.init(key, pretrained)
        return state._replace(stream=empty(tune.adapt(state.params, state.base), cfg.batch))

    def step(both, state, clips):
        batch, held = clips.features.shape[0], distil.hold(state)
        params = stream_params(held.generator(), net)
        exit = jax.random.randint(fold(state, "exit"), (), 0, len(levels))
        noise = draw_noise(fold(state, "rollout"), net, batch, first + new, world.sampler.draws)

        anew = (state.stream.frames + cfg.new_latents > cfg.max_latents) | ~jnp.isfinite(state.stream.tail).all()
        frames = jnp.where(anew, cfg.overlap, state.stream.frames)

        def carry_on(piece):
            stream, clips, noise = piece
            stream = jax.lax.cond(
                anew,
                lambda: start_streams(params, clips, noise[:, :first], exit)._replace(frames=None),
                lambda: stream,
            )
            # The picture's keys and values are the current weights'; the rest of the cache stays as it was written.
            image = dit.prepare_image(params["dit"], net.dit, stream.clips.features, net.dtype)
            stream = stream._replace(state=stream.state._replace(image=image))
            rows = chunk_rows(net, stream.clips.actions, frames, new)
            rolled, after = roll(functions, params, stream.state, rows, noise[:, first:], exit)
            return stream, _swapped(rolled), _swapped(rows), after

        begun = state.stream._replace(frames=None), clips, noise
        stream, rolled, rows, after = in_parts(carry_on, begun, cfg.accumulate)
        made = clip_of(_swapped(rolled.latents))
        start = frames - cfg.overlap
        counts = jnp.broadcast_to(jnp.arange(window) >= cfg.overlap, (batch, window))
        shape = (batch, window, *made.shape[2:])

        def generator_loss(trained, piece):
            rolled, rows, before, tail, clips, score, counts = piece
            weights = distil.trained(trained, state, held)
            made = before, _swapped(rolled), _swapped(rows), levels[exit]
            x = repeat_steps(functions, net, weights, params, clips.features, *made)
            x = jnp.concatenate([tail, x], 1)
            return distil.generator_loss(held, x, clips, score, start, counts)

        def critic_loss(critic, piece):
            x, clips, score, counts = piece
            return distil.critic_loss(held, critic, x, clips, score, start, counts)

        piece = (rolled, rows, stream.state, stream.tail, stream.clips)
        critic_piece = (jnp.concatenate([stream.tail, made], 1), stream.clips)
        state, metrics = distil.step(
            both,
            state,
            generator_loss,
            (*piece, distil.draw(fold(state, "score"), shape), counts),
            critic_loss,
            (*critic_piece, distil.draw(fold(state, "critic_score"), shape), counts),
        )
        tail = jnp.concatenate([stream.tail, made], 1)[:, -cfg.overlap :]
        kept = stream._replace(frames=frames + cfg.new_latents, state=after, tail=tail)
        return state._replace(stream=kept), {**metrics, "stream_frames": kept.frames.astype(jnp.float32)}

    def evaluate(state, clips):
        """Drift: the score gap at the end of a rollout of `max_latents`, and how far its statistics move from the
        start."""
        weights = distil.weights(state)
        params = stream_params(weights, net)
        chunks = cfg.max_latents // chunk
        noise = draw_noise(jax.random.key(0), net, clips.features.shape[0], chunks, world.sampler.draws)
        rows = chunk_rows(net, clips.actions, 0, chunks)
        rolled, _ = roll(functions, params, begin(functions, params, clips), rows, noise, jnp.asarray(len(levels) - 1))
        x = clip_of(rolled.latents)
        end = x[:, -window:]
        score = distil.draw(jax.random.key(1), end.shape)
        _, metrics = distil.generator_loss(distil.hold(state), end, clips, score, chunks * chunk - window)
        error = jnp.mean(jnp.square(end - clips.latents[:, chunks * chunk - window : chunks * chunk]))
        return {"loss": metrics["score_gap"], "error": error, "drift": jnp.abs(end.std() - x[:, :window].std())}

    return Stage(
        name="long",
        init=init,
        turns=distil.turns(step),
        batch_spec=lambda batch: clip_spec(world, batch, cfg.max_latents),
        evaluate=evaluate,
        export=distil.export,
    )


def _swapped(chunks):
    """Chunks first as batch first, and the other way."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), chunks)


def _chunk_shape(cfg):
    return cfg.chunk, cfg.latent_height, cfg.latent_width, cfg.latent_channels
