"""Softmax attention for CPUs: heads first, as batched products that sum in float32, over tiles of the logits.

Logits and softmax are float32; the products multiply in the dtype of the inputs. Every product has the form that
`mgjax.ops.products` describes, forward and backward. A gradient computes the logits again, from the logarithm of every
row's sum, and keeps none (arXiv:2205.14135, algorithm 4).

A row's maximum is a pass over the logits that is needed only where sums of their exponentials could leave float32. The
longest query and key bound all of them, and mostly say that it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from mgjax.ops.bits import as_bits, exp, from_bits
from mgjax.ops.loops import fold
from mgjax.ops.products import transposed

_TILE = 5 * 2**19  # logits at most: measured at 2640 queries and 5280 keys
_BOUND = 30.0  # of logits that need no maximum


def tiled_attention(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b s k e"],
    v: Float[Array, "b s k e"],
    length: Int[Array, " b"] | None = None,
) -> Float[Array, "b n k e"]:
    """As `mgjax.ops.attention.attention`."""
    batch, queries, heads, width = q.shape
    keys, rows = k.shape[1], batch * heads
    seen = jnp.ones((batch, keys), q.dtype)
    if length is not None:  # hidden keys are zeros, as are their values and what they add to a row's sum
        seen = (jnp.arange(keys) < length[:, None]).astype(q.dtype)
        k, v = (jnp.where(seen[..., None, None] > 0, x, 0) for x in (k, v))
    group = _divisor(rows, _TILE // (queries * keys))
    size, most = _divisor(queries, _TILE // (group * keys)), min(queries, max(1, _TILE // (group * keys)))
    if size <= most // 2:  # such as 1, of a prime number: queries of zeros make whole tiles
        size = most
        q = jnp.pad(q, ((0, 0), (0, -queries % size), (0, 0), (0, 0)))
    padded = q.shape[1]
    seen = jnp.broadcast_to(seen[..., None, None], (*k.shape[:3], 8))

    def grouped(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(-1, group, x.shape[1], x.shape[3])

    out: Array = _attend(size, grouped(q * jnp.asarray(width**-0.5, q.dtype)), grouped(k), grouped(v), grouped(seen))
    return rearrange(out.reshape(rows, padded, width), "(b k) n e -> b n k e", b=batch)[:, :queries]


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` up to `limit`; 1 at least."""
    return next(size for size in range(max(min(limit, number), 1), 0, -1) if number % size == 0)


def _longest(x: Float[Array, "g n e"]) -> Float[Array, ""]:
    """Squared length of the longest vector. Two of them bound all inner products (Cauchy and Schwarz)."""
    return jnp.square(x.astype(jnp.float32)).sum(-1).max()


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    size: int,
    q: Float[Array, "m g n e"],
    k: Float[Array, "m g s e"],
    v: Float[Array, "m g s e"],
    seen: Float[Array, "m g s 8"],
) -> Float[Array, "m g n e"]:
    """Group after group, `size` queries at a time. `seen` is 1 for keys that exist."""
    return _forward(size, q, k, v, seen)[0]


def _forward(size, q, k, v, seen):
    out, log_total = _map(partial(_forward_group, size), (q, k, v, seen))
    return out, (q, k, v, out, log_total)


def _forward_group(size, q, k, v, seen):
    bounded = _longest(q) * _longest(k) < _BOUND**2
    cap = jnp.where(bounded, _BOUND, 0.0)  # of exponents: hidden keys have a logit of 0, whatever the row's maximum

    def tile(q):
        logits = _dot(q, k, 2, 2)
        shift = jax.lax.cond(bounded, lambda x, _: jnp.zeros_like(x[..., :1]), _row_max, logits, seen)
        weights = exp(jnp.minimum(logits - shift, cap), q.dtype)
        # XLA:CPU sums rows on one core, and multiplies by one column in float32; a product by several is neither.
        total = _dot(weights, seen, 2, 1).max(-1, keepdims=True)
        return _dot(weights, v, 2, 1) / total, shift + jnp.log(total)

    out, log_total = _joined(fold(lambda _, q: (None, tile(q)), None, _tiles(q, size))[1])
    return out.astype(q.dtype), log_total


def _backward(size, saved, g):
    dq, dk, dv = _map(partial(_backward_group, size), (*saved, g))
    return dq, dk, dv, None


def _backward_group(size, q, k, v, out, log_total, g):
    along = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)

    def tile(sums, rows):
        q, g, log_total, along = rows
        weights = jnp.exp(jnp.minimum(_dot(q, k, 2, 2) - log_total, 0.0))
        inner = (weights * (_dot(g, v, 2, 2) - along)).astype(q.dtype)
        # The narrow factors are transposed, not the wide weights.
        parts = _dot(transposed(q), inner, 2, 1), _dot(transposed(g), weights.astype(q.dtype), 2, 1)
        return jax.tree.map(jnp.add, sums, parts), _dot(inner, k, 2, 1)

    zeros = jnp.zeros((k.shape[0], k.shape[2], k.shape[1]), jnp.float32)
    sums, dq = fold(tile, (zeros, zeros), _tiles((q, g, log_total, along), size))
    # Without the barrier XLA turns the last product itself around, for which it has no fast form.
    dk, dv = (part.swapaxes(1, 2).astype(k.dtype) for part in jax.lax.optimization_barrier(sums))
    return _joined(dq).astype(q.dtype), dk, dv


_attend.defvjp(_forward, _backward)


def _map(function: Callable, groups: tuple[Array, ...]) -> tuple[Array, ...]:
    """What `function` gives for each group."""

    def step(_, group):
        return None, as_bits(function(*from_bits(group)))

    return from_bits(fold(step, None, as_bits(groups))[1])


def _tiles(tree, size: int):
    """[g, n, e] -> [n / size, g, size, e]."""
    return jax.tree.map(lambda x: rearrange(x, "g (i n) e -> i g n e", n=size), tree)


def _joined(tree):
    return jax.tree.map(lambda x: rearrange(x, "i g n e -> g (i n) e"), tree)


def _dot(a: Array, b: Array, axis: int, other: int) -> Array:
    """Batched over axis 0, summed over `axis` of a and `other` of b; float32."""
    return jax.lax.dot_general(a, b, (((axis,), (other,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def _row_max(x: Float[Array, "g n s"], seen: Float[Array, "g s 8"]) -> Float[Array, "g n 1"]:
    """Over quarters of the rows first: XLA:CPU takes several cores for a large result only. The barrier keeps it from
    making one reduction of the two."""
    x = jnp.where(seen[..., 0][:, None] > 0, x, -jnp.inf)
    if x.shape[-1] % 4 == 0:
        x = jax.lax.optimization_barrier(rearrange(x, "g n (q s) -> g n q s", q=4).max(2))
    return x.max(-1, keepdims=True)
