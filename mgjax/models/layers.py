"""Small parameter holders that several modules share."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array


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
