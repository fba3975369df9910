"""Normalisations, always computed in float32 and returned in the dtype of their input."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.ops.products import spread


def layer_norm(x: Float[Array, "*shape d"], eps: float, scale=None, bias=None) -> Float[Array, "*shape d"]:
    """Zero mean and unit variance over the last axis, then `scale` and `bias` [d] where given."""
    h = x.astype(jnp.float32)
    h = h - h.mean(-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + eps)
    if scale is not None:
        h = h * spread(scale.astype(jnp.float32), h.shape)
    if bias is not None:
        h = h + spread(bias.astype(jnp.float32), h.shape)
    return h.astype(x.dtype)


def rms_norm(x: Float[Array, "*shape d"], eps: float, scale=None) -> Float[Array, "*shape d"]:
    """Unit mean square over the last axis, then `scale` [d] where given."""
    h = x.astype(jnp.float32)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + eps)
    if scale is not None:
        h = h * spread(scale.astype(jnp.float32), h.shape)
    return h.astype(x.dtype)
