"""Rotary position embedding with absolute positions that never lose precision.

Neighbouring channels (2i, 2i + 1) are a complex number that turns by position * frequency_i (arXiv:2104.09864).
Computed in float32 the angle of position 1,000,000 is off by 0.03 rad. Here a position is written in base 1024 and the
turn is the product of one exact table entry a digit, so its error stays below 4e-7 for every position up to 2**30 (five
years at 6 a second).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_BASE = 1024
_DIGITS = 3
MAX_POSITION = _BASE**_DIGITS


class Turn(NamedTuple):
    """Cosine and sine of the angle of every channel pair, broadcastable against [..., heads, pairs]."""

    cos: Float[Array, "*shape p"]
    sin: Float[Array, "*shape p"]


def frequencies(dim: int, theta: float) -> np.ndarray:
    """Angle per position of the dim / 2 channel pairs, float64: theta ** (-2i / dim)."""
    return theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)


def turn(positions: Int[Array, "*shape"], freqs: np.ndarray) -> Turn:
    """The turns of `positions` (0 <= position < 2**30) at the given frequencies, float32."""
    cos, sin = jnp.ones((*positions.shape, len(freqs)), jnp.float32), 0.0
    for place in range(_DIGITS):
        angles = np.outer(np.arange(_BASE) * float(_BASE**place), freqs)
        digit = (positions // _BASE**place) % _BASE
        c = jnp.asarray(np.cos(angles), jnp.float32)[digit]
        s = jnp.asarray(np.sin(angles), jnp.float32)[digit]
        cos, sin = cos * c - sin * s, sin * c + cos * s
    return Turn(cos, sin)


def grid_turn(positions: Int[Array, "b t"], grid: tuple[int, int], head_dim: int, theta: float) -> Turn:
    """Turns of the tokens of latent frames at `positions` over (time, row, column): [b, t, hp * wp, head_dim / 2].

    Row and column get head_dim // 6 pairs each, time the rest (22, 21, 21 of a head of 128; design page section 2).
    """
    rows, columns = grid
    space = 2 * (head_dim // 6)
    time = turn(positions, frequencies(head_dim - 2 * space, theta))
    angles_row = np.outer(np.arange(rows), frequencies(space, theta))
    angles_column = np.outer(np.arange(columns), frequencies(space, theta))
    shape = (*positions.shape, rows, columns)

    def tokens(time_part, of):
        row, column = jnp.asarray(of(angles_row), jnp.float32), jnp.asarray(of(angles_column), jnp.float32)
        parts = (time_part[:, :, None, None, :], row[:, None, :], column[None, :, :])
        parts = [jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in parts]
        return jnp.concatenate(parts, -1).reshape(*positions.shape, rows * columns, head_dim // 2)

    return Turn(tokens(time.cos, np.cos), tokens(time.sin, np.sin))


@jax.custom_vjp
def rotate(x: Float[Array, "*shape k e"], by: Turn) -> Float[Array, "*shape k e"]:
    """Turns the leading 2 * pairs channels of every head of x; the others stay. `by` has shape [*shape, pairs].

    The gradient is turned back; to `by` there is none.
    """
    turned = 2 * by.cos.shape[-1]
    part, cos, sin = x[..., :turned], by.cos[..., None, :], by.sin[..., None, :]
    if x.dtype == jnp.bfloat16:
        out = jax.lax.platform_dependent(part, cos, sin, cpu=_rotate_words, default=_rotate_pairs)
    else:
        out = _rotate_pairs(part, cos, sin)
    return out if turned == x.shape[-1] else jnp.concatenate([out, x[..., turned:]], -1)


def _rotate_pairs(x, cos, sin):
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(x.shape).astype(x.dtype)


def _rotate_words(x, cos, sin):
    """The same of bfloat16, two of which are a word: an XLA:CPU that takes them apart does so one by one."""
    bits = jax.lax.bitcast_convert_type
    words = bits(x.reshape(*x.shape[:-1], -1, 2), jnp.uint32)
    even, odd = bits(words << 16, jnp.float32), bits(words >> 16 << 16, jnp.float32)
    low, high = (
        bits(part.astype(x.dtype), jnp.uint16).astype(jnp.uint32)
        for part in (even * cos - odd * sin, odd * cos + even * sin)
    )
    return bits(low | high << 16, x.dtype).reshape(x.shape)


rotate.defvjp(lambda x, by: (rotate(x, by), by), lambda by, g: (rotate(g, Turn(by.cos, -by.sin)), None))
