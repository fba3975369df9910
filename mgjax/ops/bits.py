"""bfloat16 numbers as their bits.

XLA:CPU multiplies matrices in bfloat16 and nothing else: what only carries such numbers (a slice, a concatenation, what
a loop hands on) it converts to float32 and back, some of it one number after another. Bits it moves as they are.
"""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Tree = TypeVar("Tree")


def as_bits(tree: Tree) -> Tree:
    """Leaves in bfloat16 as uint16."""
    return jax.tree.map(lambda x: _bits(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x, tree)


def from_bits(tree: Tree) -> Tree:
    """Leaves in uint16 as bfloat16."""
    return jax.tree.map(lambda x: _bits(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x, tree)


_bits = jax.lax.bitcast_convert_type


def concatenate(x: Float[Array, "*shape"], y: Float[Array, "*other"], axis: int) -> Float[Array, "*joined"]:
    """`jnp.concatenate((x, y), axis)` of two of one dtype."""
    if x.dtype != jnp.bfloat16:
        return jnp.concatenate((x, y), axis)
    return _concatenate(axis, x.shape[axis], x, y)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _concatenate(axis, length, x, y):
    def on_cpu(x, y):
        return from_bits(jnp.concatenate(as_bits((x, y)), axis))

    def default(x, y):
        return jnp.concatenate((x, y), axis)

    return jax.lax.platform_dependent(x, y, cpu=on_cpu, default=default)


_concatenate.defvjp(
    lambda axis, length, x, y: (_concatenate(axis, length, x, y), None),
    lambda axis, length, _, g: tuple(jnp.split(g, (length,), axis)),
)


def exp(x: Float[Array, "*shape"], dtype) -> Float[Array, "*shape"]:
    """exp(x) of float32 in `dtype`, for CPUs. In bfloat16, of x up to 88, it is a polynomial of degree 3 times a power
    of two (relative error 1.2e-4; rounding to bfloat16 has up to 3.9e-3), rounded by hand: XLA's own takes 2.5 times as
    long."""
    if dtype != jnp.bfloat16:
        return jnp.exp(x).astype(dtype)
    binary = jnp.maximum(x * _LOG2_E, _LEAST)
    # In integers: of floats XLA takes (x + c) - c to be x.
    whole = _bits(binary + _ROUND, jnp.int32) - _bits(_ROUND, jnp.int32)
    rest = binary - whole.astype(jnp.float32)
    power = _EXP2[0] + rest * (_EXP2[1] + rest * (_EXP2[2] + rest * _EXP2[3]))
    bits = _bits(power, jnp.int32) + (whole << 23)
    return _bits(((bits + 0x8000) >> 16).astype(jnp.uint16), jnp.bfloat16)


_LOG2_E, _LEAST = np.float32(1 / np.log(2)), np.float32(-126)  # the least exponent of a normal number
_ROUND = np.float32(1.5 * 2**23)  # a float32 added to it leaves the nearest integer, in the last bits
# Of 2 ** f, |f| <= 1/2, with the least relative error.
_EXP2 = tuple(map(np.float32, (0.999945998, 0.693255484, 0.242347494, 0.0550656058)))
