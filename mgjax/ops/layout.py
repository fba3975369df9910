"""Where activations lie on a mesh: the batch over data and fsdp, the tokens of a frame over context.

Only under `jax.set_mesh` with a mesh of these axes; everywhere else these functions return what they are given. Without
such pins XLA's partitioner moves activations where it should gather weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

BATCH = ("data", "fsdp")


def tokens(x: Float[Array, "b t s d"]) -> Float[Array, "b t s d"]:
    """Between blocks: each device holds a part of every frame."""
    return _pin(x, BATCH, (), ("context",), ())


def heads(x: Float[Array, "b *s k e"]) -> Float[Array, "b *s k e"]:
    """Inside attention over tokens: each device holds whole frames of some heads."""
    return _pin(x, BATCH, *((),) * (x.ndim - 3), ("context", "tensor"), ())


def local(attend: Callable[..., Array]) -> Callable[..., Array]:
    """`attend(q, k, v, *rows)` by every device on its own rows and heads: q, k, v [b, n, heads, e], `rows` [b].

    Tokens of frames are one axis here: of five axes it would take the third, the tokens of a frame, for the heads.

    Without it the partitioner cuts through the loops of an attention in tiles, and every device computes all of it.
    """

    def on_devices(q, k, v, *rows):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return attend(q, k, v, *rows)
        assert q.ndim == 4, q.shape
        batch, heads = fit(BATCH, q.shape[0], mesh), fit(("context", "tensor"), q.shape[2], mesh)
        whole = PartitionSpec(batch, None, heads)
        specs = whole, whole, whole, *(PartitionSpec(batch) for _ in rows)
        return jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)(q, k, v, *rows)

    return on_devices


def fit(axes: tuple[str, ...], size: int, mesh) -> tuple[str, ...] | None:
    """As many of `axes`, from the last, as together divide `size`: what a PartitionSpec takes for one dimension."""
    for start in range(len(axes)):
        if size % math.prod(mesh.shape[axis] for axis in axes[start:]) == 0:
            return axes[start:]
    return None


def _pin(x: Array, *axes: tuple[str, ...]) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = PartitionSpec(*(fit(some, size, mesh) for some, size in zip(axes, x.shape, strict=True)))
    return jax.lax.with_sharding_constraint(x, spec)
