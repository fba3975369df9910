"""What several models share: small parameter holders, how parameters are created."""

import math
import re
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mgjax.ops.convolution import conv3x3, strided3x3
from mgjax.ops.products import linear

declared = nn.initializers.zeros
"""How a module declares a parameter: by its shape, since `create` gives the numbers. Flax calls this wherever the
parameter is read as well, and to trace one that draws takes longer than what the parameter is for."""


def apply(module: nn.Module, params: dict, *args: Any, **kwargs: Any) -> Any:
    """What `module` gives with the parameters `params`; it has no other collections."""
    return module.apply({"params": params}, *args, **kwargs)


class Norm(nn.Module):
    """The parameters `scale` and, on demand, `bias` [dim] of a norm of `mgjax.ops.norms`."""

    dim: int
    bias: bool = False

    @nn.compact
    def __call__(self) -> tuple[jax.typing.ArrayLike, ...]:
        scale = self.param("scale", declared, (self.dim,))
        return (scale, self.param("bias", declared, (self.dim,))) if self.bias else (scale,)


class Adapted(NamedTuple):
    """A kernel and what is added to it, as its two low-rank factors (arXiv:2106.09685): frozen + a @ b, which is never
    formed. It stands where a `Dense` or `JoinDense` has its kernel."""

    frozen: Float[Array, "i o"]
    a: Float[Array, "i r"]
    b: Float[Array, "r o"]


def _linear(x: Array, kernel: Array | np.ndarray | Adapted, bias: Array | np.ndarray | None, dtype) -> Array:
    """x @ kernel + bias in `dtype`, by `mgjax.ops.products.linear`."""
    x, kernel, bias = jax.tree.map(lambda leaf: leaf.astype(dtype), (x, kernel, bias))
    if isinstance(kernel, Adapted):
        return linear(x, kernel.frozen, bias) + linear(linear(x, kernel.a), kernel.b)
    return linear(x, kernel, bias)


def _inputs(kernel: Array | np.ndarray | Adapted, rows: slice) -> Array | np.ndarray | Adapted:
    """The part of `kernel` for some of its inputs."""
    if isinstance(kernel, Adapted):
        return kernel._replace(frozen=kernel.frozen[rows], a=kernel.a[rows])
    return kernel[rows]


class Dense(nn.Module):
    """x @ kernel + bias in `dtype`."""

    features: int
    use_bias: bool = True
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", declared, (x.shape[-1], self.features))
        bias = self.param("bias", declared, (self.features,)) if self.use_bias else None
        return _linear(x, kernel, bias, self.dtype)


class Conv(nn.Module):
    """3 x 3 convolution of pictures [*, h, w, c] in their dtype, zeros beyond the edge; or every second of its results,
    with `halved` zeros before and behind."""

    features: int
    halved: tuple[int, int] | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", declared, (3, 3, x.shape[-1], self.features)).astype(x.dtype)
        pictures = x.reshape(-1, *x.shape[-3:])
        out = strided3x3(pictures, kernel, self.halved) if self.halved else conv3x3(pictures, kernel)
        out = out.reshape(*x.shape[:-3], *out.shape[1:])
        return out + self.param("bias", declared, (self.features,)).astype(x.dtype) if self.use_bias else out


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """By tanh, in float32: rounded to bfloat16 after each of its operations it takes a CPU four times as long."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


class JoinDense(nn.Module):
    """Linear(concat(x, y)), where y has length-one axes beside x: its part is computed once and broadcast."""

    features: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        shape = (x.shape[-1] + y.shape[-1], self.features)
        kernel = self.param("kernel", declared, shape)
        bias = self.param("bias", declared, (self.features,))
        of_x, of_y = _inputs(kernel, slice(x.shape[-1])), _inputs(kernel, slice(x.shape[-1], None))
        return _linear(x, of_x, None, self.dtype) + _linear(y, of_y, bias, self.dtype)


def create(shapes: dict, key: PRNGKeyArray, dtype=jnp.float32, zero: str = "(?!)") -> dict:
    """Random parameters of the given shapes, leaf by leaf, so that no float32 copy of a large model is made.

    By the leaf's name: `bias` zeros; `scale` and `gamma` ones; `kernel` normal with variance 1 / fan-in (its axes but
    the last); others normal with variance 1 / (last axis). Leaves whose path matches the regex `zero` are zeros:
    released networks start with the outputs of their heads and action modules at zero.
    """
    take = _normals(key)

    def leaf(path, shape):
        name, shape = path[-1].key, shape.shape
        if name == "bias" or re.search(zero, jax.tree_util.keystr(path, simple=True, separator="/")):
            return jnp.zeros(shape, dtype)
        if name in ("scale", "gamma") or name.startswith("unused"):
            return jnp.ones(shape, dtype)
        fan = math.prod(shape[:-1]) if name == "kernel" else shape[-1]
        return take(shape, fan**-0.5, dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _normals(key: PRNGKeyArray):
    """take(shape, scale, dtype): the next numbers of an endless row of normal ones, drawn in blocks of one size. XLA
    compiles one draw and one cut a shape; a draw for every leaf would take it half a minute for a model.
    """
    block, offset, count = None, _BLOCK, 0

    def draw():
        nonlocal count
        count += 1
        return _draw(jax.random.fold_in(key, count))

    def take(shape, scale, dtype):
        nonlocal block, offset
        size = math.prod(shape)
        if size > _BLOCK:
            return _cut(jnp.concatenate([draw() for _ in range(-(-size // _BLOCK))]), 0, scale, shape, dtype)
        if offset + size > _BLOCK:
            block, offset = draw(), 0
        offset += size
        return _cut(block, offset - size, scale, shape, dtype)

    return take


_BLOCK = 2**20


@jax.jit
def _draw(key):
    return jax.random.normal(key, (_BLOCK,), jnp.float32)


@partial(jax.jit, static_argnums=(3, 4))
def _cut(row, offset, scale, shape, dtype):
    return (scale * jax.lax.dynamic_slice_in_dim(row, offset, math.prod(shape))).astype(dtype).reshape(shape)
