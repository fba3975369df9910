"""The dimension legend, and the pytrees that cross package borders.

Dimensions: `b` batch, `f` pixel frames, `t` latent frames, `h w` latent grid, `hp wp` token grid, `c` channels,
`n` tokens of the current chunk, `s` cached tokens, `d` width, `k` heads, `e` head width, `a` keyboard columns.
Latents are `b t h w c`; video is `b f h w 3`, uint8 at the border and float in [-1, 1] inside.
"""

from typing import NamedTuple

from jaxtyping import Array, Float


class Actions(NamedTuple):
    """The controls of consecutive pixel frames: row r is applied at frame r and produces frame r + 1."""

    keyboard: Float[Array, "b f a"]
    mouse: Float[Array, "b f m"]  # [pitch, yaw], up and right positive; m = 0 for a world without a mouse


class ImageCondition(NamedTuple):
    """What the DiT sees of the picture that a stream starts from."""

    latents: Float[Array, "b t h w c"]  # VAE encoding of [image, 0, 0, ...]; the last frame is the settled one
    tokens: Float[Array, "b i d"]  # CLIP features
