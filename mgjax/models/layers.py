"""Small parameter holders that several modules share, and how parameters are created."""

import math
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray


class Norm(nn.Module):
    """The parameters `scale` and, on demand, `bias` [dim] of a norm of `mgjax.ops.norms`."""

    dim: int
    bias: bool = False

    @nn.compact
    def __call__(self) -> tuple[Array, ...]:
        scale = self.param("scale", nn.initializers.ones, (self.dim,))
        return (scale, self.param("bias", nn.initializers.zeros, (self.dim,))) if self.bias else (scale,)


class JoinDense(nn.Module):
    """Linear(concat(x, y)), where y has length-one axes beside x: its part is computed once and broadcast."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        shape = (x.shape[-1] + y.shape[-1], self.features)
        kernel = self.param("kernel", nn.linear.default_kernel_init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x @ kernel[: x.shape[-1]] + (y.astype(self.dtype) @ kernel[x.shape[-1] :] + bias)


def create(shapes: dict, key: PRNGKeyArray, dtype=jnp.float32, zero: str = "(?!)") -> dict:
    """Random parameters of the given shapes, leaf by leaf, so that neither one large program nor a float32 copy is made.

    By the leaf's name: `bias` zeros; `scale` and `gamma` ones; `kernel` normal with variance 1 / fan-in (its axes but the
    last); others normal with variance 1 / (last axis). Leaves whose path matches the regex `zero` are zeros: released
    networks start with the outputs of their heads and action modules at zero.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)

    def leaf(path, shape, key):
        name = path[-1].key
        if name == "bias" or re.search(zero, jax.tree_util.keystr(path, simple=True, separator="/")):
            return jnp.zeros(shape.shape, dtype)
        if name in ("scale", "gamma") or name.startswith("unused"):
            return jnp.ones(shape.shape, dtype)
        fan = math.prod(shape.shape[:-1]) if name == "kernel" else shape.shape[-1]
        return _normal(key, shape.shape, fan**-0.5, dtype)

    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(leaf(path, shape, key) for (path, shape), key in zip(leaves, keys, strict=True))


@partial(jax.jit, static_argnums=(1, 3))
def _normal(key, shape, scale, dtype):
    return (scale * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
