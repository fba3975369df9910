import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.ops.convolution import conv3x3, strided3x3


def _inputs(dtype, shape=(5, 6, 9, 4), features=7):
    rng = np.random.default_rng(0)
    x, kernel, seed = (rng.normal(size=size) for size in (shape, (3, 3, shape[-1], features), (*shape[:-1], features)))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), jnp.asarray(seed, dtype)


def _by_hand(x, kernel, seed):
    """Values and gradients of the sum of nine shifted products, in float64."""
    x, kernel, seed = (np.asarray(part.astype(jnp.float32), np.float64) for part in (x, kernel, seed))
    _, h, w, _ = x.shape
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out, dx, dkernel = np.zeros(seed.shape), np.zeros(around.shape), np.zeros(kernel.shape)
    for i in range(3):
        for j in range(3):
            shifted = np.s_[:, i : i + h, j : j + w]
            out += around[shifted] @ kernel[i, j]
            dx[shifted] += seed @ kernel[i, j].T
            dkernel[i, j] = np.einsum("nhwc,nhwo->co", around[shifted], seed)
    return out, dx[:, 1:-1, 1:-1], dkernel


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(5, 6, 9, 4), (1, 1, 2, 3), (3, 8, 1, 1)])
def test_values_and_gradients_are_those_of_nine_products(dtype, shape):
    """1e-6: float32; 2e-3: one rounding to bfloat16 (2**-9) of sums in float32."""
    x, kernel, seed = _inputs(dtype, shape)
    out, pull = jax.vjp(jax.jit(conv3x3), x, kernel)
    for ours, theirs in zip((out, *pull(seed)), _by_hand(x, kernel, seed), strict=True):
        assert ours.dtype == dtype
        error = np.linalg.norm(ours.astype(jnp.float32) - theirs) / np.linalg.norm(theirs)
        assert error < (1e-6 if dtype == jnp.float32 else 2e-3)


def test_a_strided_convolution_is_every_second_result():
    x, kernel, _ = _inputs(jnp.float32, (2, 6, 8, 4))
    whole = conv3x3(x, kernel)
    np.testing.assert_allclose(strided3x3(x, kernel, (1, 1)), whole[:, ::2, ::2], atol=1e-5)
    np.testing.assert_allclose(strided3x3(x, kernel, (0, 1)), whole[:, 1::2, 1::2], atol=1e-5)


def test_only_a_cpu_takes_the_gradient_along_one_axis():
    x, kernel, seed = _inputs(jnp.float32)

    def axes(platform):
        gradient = jax.jit(lambda x, kernel, seed: jax.vjp(conv3x3, x, kernel)[1](seed)[1])
        text = gradient.trace(x, kernel, seed).lower(lowering_platforms=(platform,)).as_text()
        (convolution,) = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        return len(convolution.split("stride = [")[1].split("]")[0].split(","))

    assert [axes("cpu"), axes("cuda")] == [1, 2]
