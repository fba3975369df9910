"""The dimension legend, and the pytrees that cross package borders.

Dimensions: `b` batch, `f` pixel frames, `t` latent frames, `h w` latent grid, `hp wp` token grid, `c` channels,
`n` tokens of the current chunk, `s` cached tokens, `d` width, `k` heads, `e` head width, `a` keyboard columns,
`m` mouse values. Latents are `b t h w c`; video is `b f h w 3`, uint8 at the border and float in [-1, 1] inside.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32


class Actions(NamedTuple):
    """The controls of consecutive pixel frames: row r is applied at frame r and produces frame r + 1."""

    keyboard: Float[Array, "b f a"]
    mouse: Float[Array, "b f m"]  # [pitch, yaw], up and right positive; m = 0 for a world without a mouse


class Frames(NamedTuple):
    """What a world shows."""

    pixels: UInt8[Array, "*i b f h w 3"]
    finite: Bool[Array, "*i b"]  # false where a number in them, or in the latents behind them, was none


class ImageCondition(NamedTuple):
    """What the DiT sees of the picture that a stream starts from."""

    latents: Float[Array, "b t h w c"]  # VAE encoding of [image, 0, 0, ...]; its last frame stands for all later ones
    features: Float[Array, "b i f"]  # CLIP


class ClipBatch(NamedTuple):
    """Training clips of t latent frames and their 4 (t - 1) + 1 pixel frames; axis 0 of every leaf is the batch."""

    latents: Float[Array, "b t h w c"]  # normalised
    condition: Float[Array, "b u h w c"]  # ImageCondition.latents of the clip's first frame
    features: Float[Array, "b i f"]  # CLIP features of the clip's first frame
    actions: Actions  # row r is applied at frame r; the last row is never read


class VideoBatch(NamedTuple):
    """Training clips of the VAE stage."""

    video: Float[Array, "b f h w 3"]  # in [-1, 1], f = 4 (t - 1) + 1


class StreamState(NamedTuple):
    """Everything that streams carry from chunk to chunk. Axis 0 of every leaf is the batch; each row is a stream of its
    own.
    """

    key: UInt32[Array, "b 2"]
    position: Int[Array, " b"]  # latent frames committed so far
    rows: Actions  # the last rows, which the next chunk still sees
    condition: Float[Array, "b t h w c"]  # ImageCondition.latents
    image: Any  # the picture's cross-attention keys and values, one KV a layer
    cache: Any  # keys and values of past latent frames, one BlockKV a layer
    decoder: Any  # the video decoder's cache
