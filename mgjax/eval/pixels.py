"""What a user sees of a world against the engine's own pictures: of the autoencoder its worst frame, of a student how
long its pictures are better than the first one repeated, and whether they follow the actions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mgjax.config import Settings, WorldConfig
from mgjax.models import codecs, dit, taehv
from mgjax.train.parts.network import network_of
from mgjax.train.parts.rolling import chunk_rows
from mgjax.types import Actions
from mgjax.world import World

SECONDS = (1, 2, 5)
_AROUND = 2  # frames before and after a second whose errors count with it


class Pixels(NamedTuple):
    """Mean squared errors, of pixels in [-1, 1], at each of SECONDS."""

    own: tuple[float, ...]  # of the student's pictures under a clip's own actions
    swapped: tuple[float, ...]  # under those of the next clip
    first: tuple[float, ...]  # of the clip's first picture repeated


def decibels(error: float) -> float:
    """PSNR of a mean squared error of pixels in [-1, 1]."""
    return float(10 * np.log10(4 / error))


def frames_needed(world: WorldConfig) -> int:
    """Frames of the shortest clip of whole chunks that has the last of SECONDS."""
    chunks = -(-(SECONDS[-1] * world.fps + _AROUND + 1 + world.vae.temporal_stride - 1) // world.chunk_frames)
    return chunks * world.chunk_frames - world.vae.temporal_stride + 1


def worst_frame(
    world: WorldConfig, params: dict, video: Float[Array, "b f h w 3"], fast: bool = False
) -> tuple[float, int]:
    """The lowest PSNR of a frame of the decoded clips, over all clips, and which frame it is. `fast`: by the small
    decoder."""

    def errors(params, video):
        codec = codecs.of(world.vae)
        z = codec.encode(params["vae"], world.vae, video)
        model, name = (taehv, "taehv") if fast else (codec, "vae")
        made = model.decode(params[name], getattr(world, name), z)
        return jnp.square(jnp.clip(made, -1, 1) - video).mean((1, 2, 3))[0]

    run = jax.jit(lambda params, video: jax.lax.map(lambda clip: errors(params, clip[None]), video))
    error = np.asarray(run(params, video)).reshape(video.shape[0], -1).mean(0)
    return decibels(error.max()), int(error.argmax())


def student_pixels(world: WorldConfig, params: dict, video: Float[Array, "b f h w 3"], actions: Actions) -> Pixels:
    """Of the few-step world `params` ("dit", "vae", "clip"), from each clip's first picture on by its actions."""
    functions = World(world, Settings("float32"))
    net = network_of(world, "float32", "xla")
    params = {
        **params,
        "dit": dit.stack(params["dit"], net.dit),
    }  # in loops over layers: compiled in a fraction of the time
    chunks = (video.shape[1] + net.stride - 1) // world.chunk_frames

    @jax.jit
    def play(params, image, actions):
        keys = jax.random.split(jax.random.key(0), image.shape[0])
        state = functions.begin(params, functions.encode(params, image), keys)
        frames, _ = functions.rollout(params, state, chunk_rows(net, actions, 0, chunks))
        frames = jnp.moveaxis(frames.pixels, 0, 1).reshape(image.shape[0], -1, *image.shape[1:])
        return frames[:, net.stride - 1 :].astype(jnp.float32) / 127.5 - 1

    swapped = jax.tree.map(lambda rows: jnp.roll(rows, 1, 0), actions)
    return compare(world.fps, video, lambda actions: play(params, video[:, 0], actions), actions, swapped)


def compare(fps: int, video: Array, play: Callable[[Actions], Array], own: Actions, swapped: Actions) -> Pixels:
    """Errors of what `play` makes of actions against `video` [b f h w 3], both in [-1, 1]."""

    def errors(made):
        by_frame = np.asarray(jnp.square(made - video).mean((0, 2, 3, 4)))
        return tuple(float(by_frame[fps * s - _AROUND : fps * s + _AROUND + 1].mean()) for s in SECONDS)

    return Pixels(errors(play(own)), errors(play(swapped)), errors(video[:, :1]))
