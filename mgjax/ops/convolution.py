"""3 x 3 convolutions whose weights XLA:CPU trains without going slow.

The gradient of a kernel is itself a convolution, whose window is as large as the picture; XLA:CPU takes six times as
long for it as for the convolution forward, which has as many products. Written along one axis, with the shifts along
the other laid on the channels, it takes about half of that (BENCHMARKS.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def conv3x3(x: Float[Array, "n h w c"], kernel: Float[Array | np.ndarray, "3 3 c o"]) -> Float[Array, "n h w o"]:
    """The convolution that keeps the size, zeros beyond the edge, in the one dtype of both."""
    return _plain(x, kernel)


def strided3x3(
    x: Float[Array, "n h w c"], kernel: Float[Array | np.ndarray, "3 3 c o"], padding: tuple[int, int]
) -> Float[Array, "n h2 w2 o"]:
    """Every second result along h and w, with `padding` zeros before and behind both."""
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), (padding, padding), dimension_numbers=_LAYOUT)


def _plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _conv3x3_fwd(x, kernel):
    return conv3x3(x, kernel), (x, kernel)


def _conv3x3_bwd(saved, g):
    x, kernel = saved

    def default(x, g):
        return jax.linear_transpose(lambda kernel: _plain(x, kernel), kernel)(g)[0]

    (dx,) = jax.linear_transpose(lambda x: _plain(x, kernel), x)(g)
    return dx, jax.lax.platform_dependent(x, g, cpu=_kernel_gradient, default=default)


conv3x3.defvjp(_conv3x3_fwd, _conv3x3_bwd)


def _kernel_gradient(x: Float[Array, "n h w c"], g: Float[Array, "n h w o"]) -> Float[Array, "3 3 c o"]:
    """The sum over all pictures and places of x, shifted by -1 to 1 in both axes, times g: along w a convolution of
    three results, along h three copies of g beside each other."""
    (n, h, w, c), o = x.shape, g.shape[-1]
    x = x.transpose(3, 2, 0, 1).reshape(c, w, n * h)
    g = jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0))).transpose(2, 0, 1, 3)
    g = jnp.concatenate([g[:, :, 2 - shift : 2 - shift + h] for shift in range(3)], axis=-1).reshape(w, n * h, 3 * o)
    sums = jax.lax.conv_general_dilated(
        x, g, (1,), ((1, 1),), dimension_numbers=("NWC", "WIO", "NWC"), preferred_element_type=jnp.float32
    )
    return sums.reshape(c, 3, 3, o).transpose(2, 1, 0, 3).astype(x.dtype)
