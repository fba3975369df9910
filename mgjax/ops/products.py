"""Matrix products that sum in float32, whatever they multiply, and broadcasts whose gradients are such products.

XLA:CPU has fast bfloat16 products (AMX, AVX512-BF16) only for sums that are asked for in float32, and of a left side
whose summed axis lies innermost; every other form it multiplies in float32, four times slower. Accelerators sum in
float32 by themselves and round once, so there only the gradients of weights, which are also summed over devices, are
asked for in float32.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float


@jax.custom_vjp
def linear(
    x: Float[Array, "*shape i"], kernel: Float[Array, "i o"], bias: Float[Array, " o"] | None = None
) -> Float[Array, "*shape o"]:
    """x @ kernel + bias in their one dtype. Gradients of kernel and bias are summed in float32."""

    def on_cpu(x, kernel, bias):
        out = product(x, kernel)
        return (out if bias is None else out + bias.astype(jnp.float32)).astype(x.dtype)

    def default(x, kernel, bias):
        return x @ kernel if bias is None else x @ kernel + bias

    return jax.lax.platform_dependent(x, kernel, bias, cpu=on_cpu, default=default)


def _linear_fwd(x, kernel, bias):
    return linear(x, kernel, bias), (x, kernel, bias)


def _linear_bwd(saved, g):
    x, kernel, bias = saved

    def on_cpu(x, kernel, g):
        rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        dx = jax.lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        return dx.astype(x.dtype), product(transposed(rows), g_rows), _sum_of_rows(g_rows)

    def default(x, kernel, g):
        rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        dkernel = jax.lax.dot_general(rows, g_rows, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return g @ kernel.T, dkernel, g_rows.sum(0, dtype=jnp.float32)

    dx, dkernel, dbias = jax.lax.platform_dependent(x, kernel, g, cpu=on_cpu, default=default)
    return dx, dkernel.astype(kernel.dtype), None if bias is None else dbias.astype(bias.dtype)


linear.defvjp(_linear_fwd, _linear_bwd)


def product(x: Float[Array, "*shape i"], y: Float[Array, "i o"]) -> Float[Array, "*shape o"]:
    """x @ y, float32."""
    return jax.lax.dot_general(x, y, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def spread(x: Float[Array | np.ndarray, "*part d"], shape: tuple[int, ...]) -> Float[Array, "*shape d"]:
    """x broadcast to `shape`. Its gradient is summed in float32, on a CPU by all cores."""
    return _spread(x, shape)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _spread(x, shape):
    return jnp.broadcast_to(x, shape)


def _spread_fwd(x, shape):
    return jnp.broadcast_to(x, shape), (jnp.zeros((0, *x.shape), x.dtype),)


def _spread_bwd(shape, saved, g):
    (part,) = saved
    size = (1,) * (len(shape) + 1 - part.ndim) + part.shape[1:]
    kept = next((axis for axis in range(len(shape)) if size[axis] != shape[axis]), len(shape) - 1)

    def on_cpu(g):
        rows = g.reshape(*shape[:kept], -1, shape[-1])
        sums = _sum_of_rows
        for _ in range(kept):
            sums = jax.vmap(sums)
        return sums(rows).reshape(size)

    def default(g):
        axes = tuple(axis for axis in range(len(shape)) if size[axis] != shape[axis])
        return g.sum(axes, dtype=jnp.float32, keepdims=True).reshape(size)

    leading = all(length == 1 for length in size[kept:-1]) and size[-1] == shape[-1]
    total = jax.lax.platform_dependent(g, cpu=on_cpu, default=default) if leading else default(g)
    return (total.reshape(part.shape[1:]).astype(part.dtype),)


_spread.defvjp(_spread_fwd, _spread_bwd)


def _sum_of_rows(x: Float[Array, "n d"]) -> Float[Array, " d"]:
    """The sum over axis 0 as a product, which XLA:CPU gives to all cores; float32."""
    return product(jnp.ones((1, len(x)), x.dtype), x)[0]


def transposed(x: Float[Array, "*shape n i"]) -> Float[Array, "*shape i n"]:
    """x with its last two axes exchanged, written out where a bfloat16 product would otherwise take it as it lies, and
    leave its fast form. On a mesh, whose partitioner knows no layouts, it may."""
    mesh, flipped = jax.sharding.get_abstract_mesh(), x.swapaxes(-1, -2)
    if x.dtype == jnp.float32 or mesh.size > 1:
        return flipped
    return with_layout_constraint(flipped, Layout(major_to_minor=tuple(range(x.ndim))))
