"""A linear code of video: every block of frames, rows and columns is so many numbers, and both ways are one product.

Nothing better is known of a small world's pictures before there is a network: its principal components (`fit`) are
found in seconds, keep what varies most, and have no memory, so that a chunk is decoded alone. The interface is that of
`mgjax.models.vae`: latent frame 0 stands for one pixel frame, here repeated to fill its block, every later one for
`cfg.frames`.

A decoder may also refine: a small network looks at a block's numbers and at those of the blocks to its left and right,
and adds to the block's pixels. What it reads stays linear, so a world can be trained before it, beside it or without.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mgjax.config import LinearConfig
from mgjax.models.layers import Dense, Norm, apply, create, gelu
from mgjax.ops.norms import layer_norm

Cache = dict  # always empty: the code has no memory
_EPS = 1e-5  # of the refinement's norms


class Refinement(nn.Module):
    """Latents [b, t, hl, wl, c] -> what is added to the blocks that they decode to [b, t, hl, wl, d]."""

    cfg: LinearConfig
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, latents):
        dim = self.cfg.refine_dim
        x = Dense(dim, dtype=self.dtype, name="in")(latents)
        for layer in range(self.cfg.refine_layers):
            h = layer_norm(x, _EPS, *Norm(dim, bias=True, name=f"norm_{layer}")())
            padded = jnp.pad(h, ((0, 0),) * 3 + ((1, 1), (0, 0)))
            h = jnp.concatenate([padded[..., :-2, :], h, padded[..., 2:, :]], -1)
            h = gelu(Dense(2 * dim, dtype=self.dtype, name=f"in_{layer}")(h))
            x = x + Dense(dim, dtype=self.dtype, name=f"out_{layer}")(h)
        x = layer_norm(x, _EPS, *Norm(dim, bias=True, name="norm")())
        return Dense(self.cfg.block_size, dtype=self.dtype, name="out")(x)


def settled_latents(cfg: LinearConfig) -> int:
    """Latent frames of an image condition that differ: the picture's, and that of the blank frames after it."""
    return 2


def init(key: PRNGKeyArray, cfg: LinearConfig, dtype=jnp.float32) -> dict:
    """Random parameters {"encoder", "decoder"}, each a kernel and a bias; of a refinement, whose output is zero at
    first, "decoder" has "refine" too."""

    def dense(inputs, outputs):
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in _dense(inputs, outputs).items()}

    channels, pixels = cfg.latent_channels, cfg.block_size
    shapes = {"encoder": dense(pixels, channels), "decoder": dense(channels, pixels)}
    if cfg.refine_layers:
        latents = jax.ShapeDtypeStruct((1, 1, 1, 1, channels), jnp.float32)
        shapes["decoder"]["refine"] = jax.eval_shape(Refinement(cfg, jnp.float32).init, key, latents)["params"]
    return create(shapes, key, dtype, zero=r"/refine/out/")


def _dense(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {"kernel": (inputs, outputs), "bias": (outputs,)}


def fit(cfg: LinearConfig, blocks: Float[np.ndarray, "n d"], seed: int = 0, passes: int = 4) -> dict:
    """Parameters in float32 that code blocks as `blocks` (`to_blocks`, in [-1, 1]) by their principal components; a
    refinement adds nothing yet.

    The components are found by subspace iteration (Halko, Martinsson and Tropp, arXiv:0909.4061). Each is divided by
    the root of its deviation: the latents' variance is 1 on average, and halved in decibels between the first and the
    last, so that a loss over them is led by what shows without forgetting the rest.

    Raises:
        ValueError: there are fewer blocks than components.
    """
    channels = cfg.latent_channels
    if len(blocks) < channels:
        raise ValueError(f"{len(blocks)} blocks do not have {channels} components")
    mean = blocks.mean(0)
    centred = blocks - mean
    spare = min(len(blocks), cfg.block_size, channels + 40)
    basis = np.random.default_rng(seed).normal(size=(cfg.block_size, spare)).astype(np.float32)
    for _ in range(passes):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    _, values, turn = np.linalg.svd(centred @ basis, full_matrices=False)
    basis = (basis @ turn.T)[:, :channels]
    deviation = np.maximum(values[:channels] / len(blocks) ** 0.5, 1e-6)
    unit = deviation**0.5 * deviation.mean() ** 0.5
    encoder = (basis / unit).astype(np.float32)
    fitted = {
        "encoder": {"kernel": encoder, "bias": -(mean @ encoder).astype(np.float32)},
        "decoder": {"kernel": (basis * unit).T.astype(np.float32), "bias": mean.astype(np.float32)},
    }
    if cfg.refine_layers:
        fitted["decoder"]["refine"] = init(jax.random.key(seed), cfg)["decoder"]["refine"]
    return fitted


def to_blocks(
    cfg: LinearConfig, video: Float[Array | np.ndarray, "b f h w 3"]
) -> Float[Array | np.ndarray, "b t hl wl d"]:
    """The blocks of whole groups of `cfg.frames` frames."""
    sides = {"s": cfg.frames, "p": cfg.rows, "q": cfg.columns}
    return rearrange(video, "b (t s) (h p) (w q) c -> b t h w (s p q c)", **sides)


def from_blocks(cfg: LinearConfig, blocks: Float[Array, "b t hl wl d"]) -> Float[Array, "b f h w 3"]:
    sides = {"s": cfg.frames, "p": cfg.rows, "q": cfg.columns, "c": 3}
    return rearrange(blocks, "b t h w (s p q c) -> b (t s) (h p) (w q) c", **sides)


def encode(
    params: dict, cfg: LinearConfig, video: Float[Array, "b f h w 3"], *, dtype=jnp.float32
) -> Float[Array, "b t hl wl c"]:
    """Latents of a video in [-1, 1] of 1 + `frames` (t - 1) frames."""
    if video.shape[1] % cfg.frames != 1 % cfg.frames:
        raise ValueError(f"{video.shape[1]} frames are not one more than a multiple of {cfg.frames}")
    whole = jnp.concatenate([jnp.repeat(video[:, :1], cfg.frames, 1), video[:, 1:]], 1)
    return _product(params["encoder"], to_blocks(cfg, whole), dtype)


def encode_image_condition(
    params: dict, cfg: LinearConfig, image: Float[Array, "b h w 3"], num_latents: int, *, dtype=jnp.float32
) -> Float[Array, "b t hl wl c"]:
    """Latents of the picture, then zeros: a blank frame would say nothing more, and less plainly."""
    first = encode(params, cfg, image[:, None], dtype=dtype)
    return jnp.concatenate([first, jnp.zeros_like(first).repeat(num_latents - 1, 1)], 1)


def init_decoder_cache(
    cfg: LinearConfig, batch: int, latent_height: int, latent_width: int, dtype=jnp.float32
) -> Cache:
    """Empty."""
    return {}


def decode_step(
    params: dict,
    cfg: LinearConfig,
    latents: Float[Array, "b t hl wl c"],
    first: Bool[Array, " b"],
    cache: Cache,
    *,
    dtype=jnp.float32,
    whole: bool = False,
) -> tuple[Float[Array, "b f h w 3"], Cache]:
    """Frames of the next latents, `cfg.frames` each, in [-1, 1]; as `mgjax.models.vae.decode_step`."""
    frames = jnp.clip(pixels(params["decoder"], cfg, latents, dtype=dtype), -1, 1)
    hidden = first[:, None] & (jnp.arange(frames.shape[1]) < cfg.frames - 1)
    return jnp.where(hidden[:, :, None, None, None], 0, frames), cache


def pixels(
    decoder: dict, cfg: LinearConfig, latents: Float[Array, "b t hl wl c"], *, dtype=jnp.float32
) -> Float[Array, "b f h w 3"]:
    """The frames of whole blocks as they are decoded, not cut to [-1, 1]: what training compares."""
    blocks = _product(decoder, latents, dtype)
    if cfg.refine_layers:
        blocks += apply(Refinement(cfg, dtype), decoder["refine"], latents).astype(jnp.float32)
    return from_blocks(cfg, blocks)


def decode(
    params: dict, cfg: LinearConfig, latents: Float[Array, "b t hl wl c"], *, dtype=jnp.float32, whole: bool = False
) -> Float[Array, "b f h w 3"]:
    """The whole video of 1 + `frames` (t - 1) frames, in [-1, 1]."""
    frames, _ = decode_step(params, cfg, latents, jnp.ones(len(latents), bool), {}, dtype=dtype)
    return frames[:, cfg.frames - 1 :]


def _product(dense: dict, x: Array, dtype) -> Array:
    out = jnp.einsum("...i,io->...o", x.astype(dtype), dense["kernel"].astype(dtype))
    return out.astype(jnp.float32) + dense["bias"].astype(jnp.float32)
